"""A disk that keeps what was synced: records are written in order, and a crash cuts them off at some point behind
the last sync that ended."""

from collections import deque, namedtuple

Snapshot = namedtuple("Snapshot", "index term roster")


class Image:
    """What a start would read: the newest snapshot, the entries behind it, the hard state."""

    def __init__(self, snapshot, entries, state):
        self.snapshot = snapshot
        self.entries = list(entries)
        self.state = state  # (term, vote, commit)

    @property
    def last_index(self):
        return self.snapshot.index + len(self.entries)

    def term(self, index):
        at = index - self.snapshot.index
        if at == 0:
            return self.snapshot.term
        return self.entries[at - 1][0] if 0 < at <= len(self.entries) else 0

    def take(self, record):
        kind, *what = record
        if kind == "state":
            self.state = what[0]
        elif kind == "entry":
            index, entry = what
            at = index - self.snapshot.index - 1
            # A snapshot may have overtaken it.
            if at >= 0:
                assert at <= len(self.entries), "a gap in the log on disk"
                del self.entries[at:]
                self.entries.append(entry)
        elif kind == "mark":
            # The member's own snapshot: what is behind it stays.
            (snapshot,) = what
            del self.entries[: snapshot.index - self.snapshot.index]
            self.snapshot = snapshot
        else:
            (self.snapshot,) = what
            self.entries.clear()


class Disk:
    """`image` is durable. `write` queues records; `sync` starts at most one sync at a time."""

    def __init__(self, image):
        self.image = image
        self._queue = deque()
        self._syncing = 0

    def write(self, record):
        self._queue.append(record)

    @property
    def idle(self):
        return not self._queue

    def start_sync(self):
        """True when a sync of everything queued starts; its end is `end_sync`."""
        if self._syncing or not self._queue:
            return False
        self._syncing = len(self._queue)
        return True

    def end_sync(self):
        """What the disk now holds: (last index, its term, term, vote)."""
        self._keep(self._syncing)
        self._syncing = 0
        image = self.image
        return image.last_index, image.term(image.last_index), *image.state[:2]

    def crash(self, chance):
        """Some of what was not synced may be there nevertheless."""
        self._keep(chance.randint(0, len(self._queue)) if self._queue else 0)
        self.drop()

    def drop(self):
        """All that was not synced is lost."""
        self._queue.clear()
        self._syncing = 0

    def _keep(self, records):
        for _ in range(records):
            self.image.take(self._queue.popleft())
