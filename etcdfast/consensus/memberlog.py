"""The raft log as the core sees it: positions and terms of what memory and the write-ahead log hold.

Entries themselves stay in C (`_ext/raftlog`) or on disk (`consensus/walreader.py`). Terms are known for all of them,
for they are few: one row per stretch of one term.
"""

from bisect import bisect_right

DISK_ENTRIES_MAX = 1024  # of one message that is read back


class MemberLog:
    """See raft/log.py for the contract.

    loop: `_ext.consensusloop.Loop`. runs: [(first index, term)] of each stretch of one term, ascending. snapshot:
    (index, term) that the log goes on from: the oldest index whose term is known. reader: entries on disk
    (walreader.WalReader), None while there is none.
    """

    def __init__(self, loop, runs, snapshot, reader=None):
        self._loop = loop
        self._entries = loop.log
        self._peers = loop.peers
        self._firsts, self._terms = [snapshot[0]], [snapshot[1]]
        self._floor = snapshot[0]
        self.reader = reader
        self._request_id = 0
        for first, term in runs:
            self._note(first, term)

    @property
    def first_index(self):
        memory = self._entries.first_index
        if self.reader is None:
            return memory
        return min(memory, max(self.reader.first_index, self._floor + 1))

    @property
    def last_index(self):
        return self._entries.last_index

    def term(self, index):
        firsts = self._firsts
        if index > self._entries.last_index or index < self._floor:
            return 0
        if index >= firsts[-1]:
            return self._terms[-1]
        return self._terms[bisect_right(firsts, index) - 1]

    def append(self, term, data, type=0):
        index = self._entries.append(term, data, type, self._request_id)
        self._note(index, term)
        return index

    def propose(self, raft, data, type, request_id):
        """raft.propose for an entry that somebody here waits for by its request id."""
        self._request_id = request_id
        try:
            return raft.propose(data, type)
        finally:
            self._request_id = 0

    def conflict(self, entries):
        return self._peers.conflict(entries)

    def extend(self, entries, start):
        self._loop.extend(entries, start)
        firsts, terms = self._firsts, self._terms
        while firsts[-1] >= start:  # what is committed stays, so the first of them does
            firsts.pop()
            terms.pop()
        if entries.last_term != terms[-1]:
            for first, term in entries.runs(start):
                self._note(first, term)

    def fit(self, first, last, bytes_max):
        if first < self._entries.first_index:
            # How large they are shows when they are read; the messenger cuts what is too large (messenger.py).
            return min(last, first + DISK_ENTRIES_MAX - 1, self._entries.first_index - 1)
        return self._peers.fit(first, last, bytes_max)

    def restore(self, index, term):
        """A snapshot takes the place of everything; the process restarts the member from it (install.py)."""
        self._firsts, self._terms, self._floor = [index], [term], index
        self._loop.restore(index, term)

    def forget_to(self, index):
        """Terms before `index` are not needed any more: nobody can be sent what lies there, unless memory has it."""
        index = min(index, self._entries.first_index - 1)
        keep = max(bisect_right(self._firsts, index) - 1, 0)
        del self._firsts[:keep]
        del self._terms[:keep]
        self._floor = max(self._floor, index)

    def _note(self, first, term):
        if self._terms[-1] != term:
            self._firsts.append(first)
            self._terms.append(term)
