"""watchtree and watchhistory for Python: tests and tools, nothing on the way of an event."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.changes cimport kv_change
from etcdfast._ext.kvreq cimport bytes_view
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbuf cimport outbuf, outbuf_free, outbuf_init, outbuf_reserve
from etcdfast._ext.watchhistory cimport (
    HISTORY_COMPACTED, HISTORY_FRONT, HISTORY_MORE, HISTORY_NO_DELETE, HISTORY_NO_PUT, HISTORY_PREV_KV,
    HISTORY_TOO_LARGE, History, event_append, event_cuts, event_cuts_free, event_cuts_init, previous_of,
)
from etcdfast._ext.watchtree cimport (
    WatchTree, stab_begin, stab_cursor, watch_range, watch_range_end, watch_range_key,
)

cdef enum:
    STAB_BATCH = 64


cdef inline const uint8_t *data_of(bytes text) noexcept:
    return <const uint8_t *>PyBytes_AS_STRING(text)


cdef inline uint32_t length_of(bytes text) noexcept:
    return <uint32_t>PyBytes_GET_SIZE(text)


cdef tuple range_of(const watch_range *r):
    return (
        PyBytes_FromStringAndSize(<const char *>watch_range_key(r), r.key_len),
        PyBytes_FromStringAndSize(<const char *>watch_range_end(r), r.end_len),
    )


cdef class WatchedRanges:
    """WatchTree for Python. A range is (key, end); its owner is a number, 0 at first."""

    cdef WatchTree tree

    def __cinit__(self, uint64_t seed=1):
        self.tree = WatchTree(seed)

    def __len__(self):
        return self.tree.count

    def add(self, bytes key, bytes end=b""):
        """The owner of the range, which is added if it is not there."""
        cdef watch_range *r = self.tree.find_or_add(data_of(key), length_of(key), data_of(end), length_of(end))
        if r == NULL:
            raise MemoryError("watched ranges: out of memory")
        return <size_t>r.owner

    def own(self, bytes key, bytes end, size_t owner):
        """Set the owner of a range. KeyError when there is no such range."""
        self._find(key, end).owner = <void *>owner

    def drop(self, bytes key, bytes end=b""):
        self.tree.drop(self._find(key, end))

    cdef watch_range *_find(self, bytes key, bytes end) except NULL:
        cdef watch_range *r = self.tree.find(data_of(key), length_of(key), data_of(end), length_of(end))
        if r == NULL:
            raise KeyError((key, end))
        return r

    def stab(self, bytes key, int cap=STAB_BATCH):
        """Ranges that hold the key with their owners, fetched cap at a time."""
        cdef watch_range *found[STAB_BATCH]
        cdef stab_cursor cursor
        cdef int given, i
        if not 1 <= cap <= STAB_BATCH:
            raise ValueError(f"cap must be 1 to {STAB_BATCH}")
        held = []
        stab_begin(&cursor)
        while True:
            given = self.tree.stab(data_of(key), length_of(key), found, cap, &cursor)
            for i in range(given):
                held.append((range_of(found[i]), <size_t>found[i].owner))
            if given < cap:
                return held

    def stab_all(self, bytes keys, uint32_t key_len):
        """Stab each key of a packed array without Python in between: how many ranges were met."""
        cdef watch_range *found[STAB_BATCH]
        cdef stab_cursor cursor
        cdef const uint8_t *key = data_of(keys)
        cdef const uint8_t *stop = key + PyBytes_GET_SIZE(keys)
        cdef int64_t total = 0
        cdef int given
        if key_len < 1:
            raise ValueError("keys must not be empty")
        with nogil:
            while stop - key >= key_len:
                stab_begin(&cursor)
                while True:
                    given = self.tree.stab(key, key_len, found, STAB_BATCH, &cursor)
                    total += given
                    if given < STAB_BATCH:
                        break
                key += key_len
        return total

    def add_all(self, bytes keys, uint32_t key_len, bint prefixes=False):
        """Add each key of a packed array, by itself or as a prefix (its last byte must be below 0xff)."""
        cdef const uint8_t *key = data_of(keys)
        cdef const uint8_t *stop = key + PyBytes_GET_SIZE(keys)
        cdef uint8_t end[256]
        cdef uint32_t i
        if not 1 <= key_len <= 256:
            raise ValueError("keys must have 1 to 256 bytes")
        with nogil:
            while stop - key >= key_len:
                for i in range(key_len):
                    end[i] = key[i]
                end[key_len - 1] += 1
                self.tree.find_or_add(key, key_len, end, key_len if prefixes else 0)
                key += key_len

    def stats(self):
        """count, nodes (ranges in the tree), prefix_lengths (in use); used_bytes, held_bytes."""
        return {
            "count": self.tree.count,
            "nodes": self.tree.node_count,
            "prefix_lengths": self.tree.prefix_length_count,
            "used_bytes": self.tree.used_bytes(),
            "held_bytes": self.tree.arena.held_bytes,
        }

    def verify(self):
        """0, or the number of the broken invariant (watchtree.pyx)."""
        return self.tree.verify()

    def fail_allocation(self, int64_t countdown):
        """Test hook: let the countdown-th allocation from now fail, once; 0 turns it off. What was left before."""
        cdef int64_t left = self.tree.arena.fail_countdown
        if countdown < 0:
            raise ValueError("countdown must not be negative")
        self.tree.arena.fail_countdown = countdown
        return left


# ---- watchhistory ----

PREV_KV, NO_PUT, NO_DELETE = HISTORY_PREV_KV, HISTORY_NO_PUT, HISTORY_NO_DELETE
FRONT, MORE, COMPACTED, TOO_LARGE = HISTORY_FRONT, HISTORY_MORE, HISTORY_COMPACTED, HISTORY_TOO_LARGE


cdef inline bytes_view view_of(bytes text) noexcept:
    cdef bytes_view view
    view.data = data_of(text)
    view.size = length_of(text)
    return view


def write(Mvcc mvcc, list changes):
    """One transaction of (key, value) pairs, value None to delete; whether anything changed. Not yet in a batch
    that is written: mvcc.write_batch does that."""
    cdef bytes key, value
    cdef bytes_view key_view, value_view
    mvcc.begin()
    for key, value in changes:
        key_view = view_of(key)
        if value is None:
            value_view.data = NULL
            value_view.size = 0
            mvcc.delete_range(&key_view, &value_view)
        else:
            value_view = view_of(value)
            mvcc.put(&key_view, &value_view, 0)
    return mvcc.commit()


def event(int64_t main, bytes record, bint is_tombstone=False, bytes prev=None):
    """One Event as a field of WatchResponse. ValueError when a tombstone's record is no KeyValue."""
    cdef kv_change change
    cdef outbuf out
    cdef const uint8_t *prev_data = NULL
    cdef uint64_t prev_size = 0
    change.main = main
    change.sub = 0
    change.record = data_of(record)
    change.size = length_of(record)
    change.is_tombstone = is_tombstone
    if prev is not None:
        prev_data = data_of(prev)
        prev_size = length_of(prev)
    outbuf_init(&out)
    try:
        if event_append(&out, &change, prev_data, prev_size) != 0:
            raise ValueError("the tombstone's record is no KeyValue")
        if out.failed:
            raise MemoryError
        return PyBytes_FromStringAndSize(<const char *>out.data, <Py_ssize_t>out.size)
    finally:
        outbuf_free(&out)


def previous(Mvcc mvcc, bytes key, int64_t main):
    """Stored KeyValue of the key at main - 1, or None."""
    return previous_of(mvcc, data_of(key), length_of(key), main)


cdef class PastEvents:
    """History for Python. `opened` is COMPACTED when from_rev is."""

    cdef History history
    cdef readonly int opened

    def __cinit__(self, Mvcc mvcc, bytes key, bytes end=b"", int options=0, int64_t from_rev=1):
        self.history = History()
        self.opened = self.history.open(
            mvcc, data_of(key), length_of(key), data_of(end), length_of(end), options, from_rev)

    @property
    def next_rev(self):
        return self.history.next_rev

    @property
    def listed(self):
        """Whether a list of revisions is being read."""
        return self.history.listed_upto != 0

    def step(self, int64_t budget=1 << 40, uint64_t bytes_max=1 << 40, uint64_t before=0):
        """(status, [(revision, its events)]); `before`: bytes that the buffer holds already."""
        cdef outbuf events
        cdef event_cuts cuts
        cdef uint64_t start = before
        cdef uint32_t i
        if budget < 1 or bytes_max < 1:
            raise ValueError("budget and bytes_max must be at least 1")
        outbuf_init(&events)
        event_cuts_init(&cuts)
        try:
            if outbuf_reserve(&events, before) == NULL and before:
                raise MemoryError
            events.size = before
            status = self.history.step(&events, &cuts, budget, bytes_max)
            given = []
            for i in range(cuts.count):
                given.append((cuts.items[i].revision, events.data[start:cuts.items[i].end]))
                start = cuts.items[i].end
            assert start == events.size, "bytes behind the last cut"
            return status, given
        finally:
            outbuf_free(&events)
            event_cuts_free(&cuts)

    def drain(self, int64_t budget=1 << 14, uint64_t bytes_max=1 << 18):
        """Step to the front without Python in between: (status, revisions with events, bytes)."""
        cdef outbuf events
        cdef event_cuts cuts
        cdef int64_t revisions = 0
        cdef uint64_t total = 0
        cdef int status = HISTORY_MORE
        outbuf_init(&events)
        event_cuts_init(&cuts)
        try:
            while status == HISTORY_MORE:
                status = self.history.step(&events, &cuts, budget, bytes_max)
                revisions += cuts.count
                total += events.size
                events.size = 0
                cuts.count = 0
            return status, revisions, total
        finally:
            outbuf_free(&events)
            event_cuts_free(&cuts)

