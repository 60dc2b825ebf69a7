"""The log in memory, batches of entries on their way, and who is a member as entries tell it."""

from etcdfast.consensus.raft import (
    ADD_LEARNER_NODE,
    ADD_NODE,
    ENTRY_CONF_CHANGE,
    REMOVE_NODE,
    ConfChange,
    ConfState,
)

# An entry is (term, type, data). The data of a configuration change is a Change.


class Batch:
    """Entries of a message."""

    __slots__ = ("first", "last", "last_term", "count", "conf_changes", "entries")

    def __init__(self, first, entries):
        self.first = first
        self.entries = entries
        self.count = len(entries)
        self.last = first + len(entries) - 1
        self.last_term = entries[-1][0] if entries else 0
        self.conf_changes = any(kind == ENTRY_CONF_CHANGE for _, kind, _ in entries)


class SimLog:
    """A raft log in a list. changed_from: lowest index written since the last `take_changes`, 0 for none.

    `noted(index, entry, term before)` is called for each entry that gets in.
    """

    def __init__(self, index, term, entries, noted):
        self._before = index
        self._before_term = term
        self._entries = list(entries)
        self._noted = noted
        self.changed_from = 0

    @property
    def first_index(self):
        return self._before + 1

    @property
    def last_index(self):
        return self._before + len(self._entries)

    def term(self, index):
        at = index - self._before
        if at == 0:
            return self._before_term
        return self._entries[at - 1][0] if 0 < at <= len(self._entries) else 0

    def entry(self, index):
        return self._entries[index - self._before - 1]

    def slice(self, first, last):
        return self._entries[first - self._before - 1 : last - self._before]

    def append(self, term, data, type=0):
        self._put((term, type, data))
        return self.last_index

    def append_batch(self, term, entries):
        for _, kind, data in entries.entries:
            self._put((term, kind, data))
        return self.last_index

    def conflict(self, entries):
        assert self._before <= entries.first - 1 <= self.last_index
        for index, entry in enumerate(entries.entries, entries.first):
            if self.term(index) != entry[0]:
                return index
        return 0

    def extend(self, entries, start):
        del self._entries[start - self._before - 1 :]
        for entry in entries.entries[start - entries.first :]:
            self._put(entry)

    def fit(self, first, last, bytes_max):
        """Every entry counts as one byte."""
        return min(last, first + bytes_max - 1)

    def restore(self, index, term):
        self._before, self._before_term = index, term
        self._entries.clear()
        self.changed_from = 0

    def release(self, index):
        """Forget everything up to `index`."""
        term = self.term(index)
        del self._entries[: index - self._before]
        self._before, self._before_term = index, term

    def take_changes(self):
        """(first index, entries) written since the last call, or None."""
        start, self.changed_from = self.changed_from, 0
        return (start, self.slice(start, self.last_index)) if start else None

    def _put(self, entry):
        index = self.last_index + 1
        self._noted(index, entry, self.term(index - 1))
        self._entries.append(entry)
        if not self.changed_from or index < self.changed_from:
            self.changed_from = index


class Roster:
    """Members as the state machine follows them: it refuses what no etcd lets through, on every member alike."""

    def __init__(self, voters=(), learners=(), removed=()):
        self.voters, self.learners, self.removed = set(voters), set(learners), set(removed)

    def copy(self):
        return Roster(self.voters, self.learners, self.removed)

    def conf_state(self):
        return ConfState(tuple(sorted(self.voters)), tuple(sorted(self.learners)))

    def apply(self, kind, member):
        """Carry out a change; what raft is told about it. kind: "add", "learner", "promote", "remove"."""
        known = member in self.voters or member in self.learners
        if kind in ("add", "learner"):
            allowed = not known and member not in self.removed
        elif kind == "promote":
            allowed = member in self.learners
        else:
            allowed = known and self.voters != {member}
        if allowed:
            self.voters.discard(member)
            self.learners.discard(member)
            if kind == "remove":
                self.removed.add(member)
            else:
                (self.learners if kind == "learner" else self.voters).add(member)
        raft_kind = {"remove": REMOVE_NODE, "learner": ADD_LEARNER_NODE}.get(kind, ADD_NODE)
        return ConfChange(raft_kind, member if allowed else 0)
