"""What must hold at every step, whatever the faults.

It sees more than any member: every entry that ever was in a log, every commit index that anybody ever knew.
"""


class Violation(AssertionError):
    """A broken promise of raft, in one line."""


class Checker:
    def __init__(self):
        self.leaders = {}  # term -> member
        self.votes = {}  # (member, term) -> for whom
        self.entries = {}  # (index, term) -> (entry, term before): log matching
        self.committed = {}  # index -> entry
        self.commit_max = 0  # highest commit index known to anybody
        self.acknowledged = {}  # data of a proposal -> index

    def entry(self, index, entry, term_before):
        """An entry got into a log. Equal index and term: equal entry, and equal logs before it."""
        known = self.entries.setdefault((index, entry[0]), (entry, term_before))
        if known != (entry, term_before):
            raise Violation(f"log matching: entry {index} of term {entry[0]} is {known} and {(entry, term_before)}")
        if term_before > entry[0]:
            raise Violation(f"entry {index} of term {entry[0]} lies behind one of term {term_before}")

    def leads(self, member):
        raft, log = member.raft, member.log
        if self.leaders.setdefault(raft.term, member.id) != member.id:
            raise Violation(f"two leaders in term {raft.term}: {self.leaders[raft.term]} and {member.id}")
        for index in range(log.first_index, self.commit_max + 1):
            if log.term(index) != self.committed[index][0]:
                raise Violation(
                    f"leader completeness: {member.id} leads term {raft.term} without the committed entry {index} "
                    f"of term {self.committed[index][0]}"
                )

    def commits(self, member, before):
        """A member's commit index rose from `before`."""
        commit, log = member.raft.commit, member.log
        if commit < before:
            raise Violation(f"the commit index of {member.id} fell from {before} to {commit}")
        if commit > log.last_index:
            raise Violation(f"{member.id} commits {commit}, behind the end of its log {log.last_index}")
        for index in range(max(before + 1, log.first_index), commit + 1):
            self._commits_entry(member.id, index, log.entry(index))
        self.commit_max = max(self.commit_max, commit)

    def _commits_entry(self, member_id, index, entry):
        known = self.committed.setdefault(index, entry)
        if known != entry:
            raise Violation(f"committed entry {index} is {known}, and {entry} on {member_id}")

    def applies(self, member, index, entry):
        if index > member.disk.image.last_index:
            raise Violation(f"{member.id} hands over entry {index}, which its disk does not hold")
        self._commits_entry(member.id, index, entry)

    def snapshot(self, member_id, snapshot):
        known = self.committed.get(snapshot.index)
        if known is None or known[0] != snapshot.term:
            raise Violation(f"{member_id} installs a snapshot at {snapshot.index} of term {snapshot.term}: {known}")

    def acknowledges(self, data, index):
        if self.acknowledged.setdefault(data, index) != index:
            raise Violation(f"proposal {data} is acknowledged at {self.acknowledged[data]} and {index}")

    def read(self, member_id, index, asked):
        if index < asked:
            raise Violation(f"stale read on {member_id}: index {index}, but {asked} was committed before it was asked")

    # ---- messages: what depends on the disk must be there ------------------------------------------

    def accepts(self, member, term, index):
        image, log = member.disk.image, member.log
        if index <= image.snapshot.index:
            return
        # What came later in the same turn may have replaced the log in memory.
        same = term != member.raft.term or index < log.first_index or image.term(index) == log.term(index)
        if image.last_index < index or not same or image.state[0] < term:
            raise Violation(f"{member.id} acknowledges entry {index} in term {term}, which its disk does not hold")

    def votes_for(self, member, term, candidate):
        if member.disk.image.state[:2] != (term, candidate):
            raise Violation(
                f"{member.id} votes for {candidate} in term {term}, but its disk says {member.disk.image.state}"
            )
        if self.votes.setdefault((member.id, term), candidate) != candidate:
            raise Violation(f"{member.id} votes twice in term {term}: {self.votes[member.id, term]} and {candidate}")
