"""What the leader knows of each member, and what a majority of them has."""

from collections import deque

PROBE, REPLICATE, SNAPSHOT = range(3)
STATE_NAMES = ("probe", "replicate", "snapshot")


class Progress:
    """One member as the leader sees it.

    match: highest index known to be durable there, and equal to the leader's entry.
    next:  index of the next entry to send; match < next.
    state: PROBE      where its log meets the leader's is not known: one message, then wait for the answer or for
                      the answer to a heartbeat (`paused`);
           REPLICATE  messages follow each other without waiting, as many as the window takes;
           SNAPSHOT   it needs what the log does not hold any more: nothing is sent until the snapshot arrived.
    recent_active: heard of since the last check of the quorum.
    """

    __slots__ = (
        "id",
        "match",
        "next",
        "state",
        "recent_active",
        "is_learner",
        "paused",
        "push",  # REPLICATE: send a message even if there is nothing new, to find out what got lost
        "sent_commit",  # highest commit index that a message carried
        "snapshot_index",  # SNAPSHOT: what is on its way, 0 when nothing is yet
        "read_round",  # highest round of reads it confirmed
        "inflight",  # last index of each message under way, ascending
        "inflight_full",  # of those, the ones cut at the limit of bytes
    )

    def __init__(self, member, following, is_learner=False):
        self.id = member
        self.match = 0
        self.next = following
        self.state = PROBE
        self.recent_active = False
        self.is_learner = is_learner
        self.paused = False
        self.push = False
        self.sent_commit = 0
        self.snapshot_index = 0
        self.read_round = 0
        self.inflight = deque()
        self.inflight_full = deque()

    def become_probe(self):
        self.next = max(self.match, self.snapshot_index) + 1
        self._enter(PROBE)

    def become_replicate(self):
        self.next = self.match + 1
        # The message that was answered told a commit index too.
        sent = self.sent_commit if self.state == PROBE else 0
        self._enter(REPLICATE)
        self.sent_commit = sent

    def become_snapshot(self):
        self._enter(SNAPSHOT)

    def _enter(self, state):
        self.state = state
        self.paused = False
        self.push = False
        self.sent_commit = 0
        self.snapshot_index = 0
        self.inflight.clear()
        self.inflight_full.clear()

    def free_to(self, index):
        """Messages up to `index` arrived."""
        for window in (self.inflight, self.inflight_full):
            while window and window[0] <= index:
                window.popleft()


def majority_match(matches):
    """Highest index that a majority of the voters has; `matches` holds one number per voter.

    Of n sorted numbers the one at (n - 1) // 2 is reached by n // 2 + 1 voters.
    """
    return sorted(matches)[(len(matches) - 1) // 2]


def majority(voters):
    """Votes that decide among that many voters."""
    return voters // 2 + 1
