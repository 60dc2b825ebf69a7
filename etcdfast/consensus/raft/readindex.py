"""Linearizable reads at the leader: each waits until a quorum has confirmed that it still leads.

Reads that came between two batches share one round of heartbeats. A round's context is its number; as members
answer heartbeats that were sent later, the answer to a round answers all before it too. A round that gets lost is
not repeated, but every ordinary heartbeat asks for the newest one again.
"""

from collections import deque

# Reads that may wait, for the first commit of a term or for a quorum; the rings hold back the rest.
PENDING_READS_MAX = 4096


class ReadIndex:
    __slots__ = ("early", "fresh", "_rounds", "round", "_waiting")

    def __init__(self):
        self.early = []  # (from, context): before the first commit of the term
        self.fresh = []  # (from, context, index): not part of a round yet
        self.round = 0
        self._rounds = deque()  # (number, reads)
        self._waiting = 0

    def full(self):
        return self._waiting + len(self.fresh) + len(self.early) >= PENDING_READS_MAX

    def start_round(self):
        """The context of a round for everything fresh."""
        self.round += 1
        self._rounds.append((self.round, self.fresh))
        self._waiting += len(self.fresh)
        self.fresh = []
        return self.round.to_bytes(8, "big")

    def context(self):
        """The newest round that waits, as the context of an ordinary heartbeat; empty for none."""
        return self.round.to_bytes(8, "big") if self._rounds else b""

    def number(self, context):
        """The round of an answer's context, 0 for one that is not of this leader."""
        number = int.from_bytes(context, "big") if len(context) == 8 else 0
        return number if number <= self.round else 0

    def confirmed(self, number):
        """Reads of all rounds up to `number`, which a quorum answered."""
        rounds = self._rounds
        done = []
        while rounds and rounds[0][0] <= number:
            done.extend(rounds.popleft()[1])
        self._waiting -= len(done)
        return done
