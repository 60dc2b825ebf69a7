"""Past events: how a change becomes an Event, and reading the events of a range from a revision on.

Events are written as etcd writes them in WatchResponse.events (field 11); sources: reference/formats.md 9.6.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from etcdfast._ext.changes cimport kv_change
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbuf cimport outbuf
from etcdfast._ext.revrecord cimport Revision

# Options of a History, added up.
cdef enum:
    HISTORY_PREV_KV = 1
    HISTORY_NO_PUT = 2
    HISTORY_NO_DELETE = 4

# What History.open and step return; -1 with an exception set.
cdef enum:
    HISTORY_FRONT = 0       # every event up to mvcc.current has been given; step may be called again later
    HISTORY_MORE = 1        # budget or bytes used up
    HISTORY_COMPACTED = 2   # next_rev lies below mvcc.compacted: events may be missing
    HISTORY_TOO_LARGE = 3   # the events of revision next_rev alone are more than OUTBUF_LIMIT_BYTES

# Where the events of a revision end. Revisions without events have no entry.
ctypedef struct event_cut:
    int64_t revision
    uint64_t end            # offset in the buffer of events, behind the last one of that revision

ctypedef struct event_cuts:
    event_cut *items        # ascending
    uint32_t count
    uint32_t capacity


cdef inline void event_cuts_init(event_cuts *cuts) noexcept nogil:
    cuts.items = NULL
    cuts.count = 0
    cuts.capacity = 0


cdef inline void event_cuts_free(event_cuts *cuts) noexcept nogil:
    free(cuts.items)
    event_cuts_init(cuts)


cdef inline int event_cuts_add(event_cuts *cuts, int64_t revision, uint64_t end) noexcept nogil:
    """Note that the buffer of events ends at `end` after those of `revision`, which may be the last one
    noted. 0, or -1 without memory (unchanged)."""
    cdef uint32_t capacity
    cdef void *grown
    if cuts.count and cuts.items[cuts.count - 1].revision == revision:
        cuts.items[cuts.count - 1].end = end
        return 0
    if cuts.count == cuts.capacity:
        if cuts.capacity > 0x3FFFFFFF:
            return -1
        capacity = cuts.capacity + cuts.capacity // 2 + 16
        grown = realloc(cuts.items, <size_t>capacity * sizeof(event_cut))
        if grown == NULL:
            return -1
        cuts.items = <event_cut *>grown
        cuts.capacity = capacity
    cuts.items[cuts.count].revision = revision
    cuts.items[cuts.count].end = end
    cuts.count += 1
    return 0


# Appends one Event as field 11 of WatchResponse: type (only DELETE), kv (of a put the stored KeyValue as it
# is, of a delete key and mod_revision), prev_kv when prev is not NULL. 0; WIRE_MALFORMED (-1) when a
# tombstone's record holds no KeyValue (nothing written). A full buffer shows in out.failed.
cdef int event_append(outbuf *out, const kv_change *change, const uint8_t *prev, uint64_t prev_size) noexcept nogil

# The stored KeyValue of a key at revision main - 1; None when it was not there then, or that revision is
# compacted. StoreCorrupt.
cdef bytes previous_of(Mvcc mvcc, const uint8_t *key, uint32_t key_len, int64_t main)


# Past events of one range with one set of options. Holds no iterator and nothing of the index between two
# steps, so writes, deletes and compactions may come in between.
#
# One key, and a range that has few revisions of its own between next_rev and now, are read by a list of their
# revisions from the index; any other range by walking the store from next_rev on.
cdef class History:
    cdef Mvcc mvcc
    cdef bytes key
    cdef bytes end
    cdef readonly int64_t next_rev      # all events with a revision below this have been given
    cdef int options
    cdef outbuf partial                 # events of revision next_rev, of which a step could not see the end
    cdef int64_t partial_sub            # where that revision goes on; 0 when none is under way
    cdef Revision *listed               # revisions of the range, ascending
    cdef int64_t listed_count
    cdef int64_t listed_capacity
    cdef int64_t listed_at              # next one to read
    cdef int64_t listed_upto            # the list is complete from next_rev up to this revision; 0: there is none
    cdef int64_t walk_upto              # no list is worth while up to this revision
    cdef bint stepping                  # this list's records may lie close together in the store
    cdef bytes last_record              # one key: what the revision read last put, when known
    cdef int64_t last_main              # its main revision
    # Of the step under way: what it was called with, and
    cdef outbuf *events
    cdef event_cuts *cuts
    cdef int64_t budget
    cdef uint64_t bytes_stop            # size of events from which no further revision is begun
    cdef uint64_t whole                 # size of events behind the last whole revision
    cdef bint given                     # a revision has been given
    cdef int64_t upto                   # current revision
    cdef object walk                    # iterator of the store
    cdef int64_t walk_main              # revision it was last asked for, when there is a list

    # 0 (HISTORY_FRONT), or HISTORY_COMPACTED. Copies key and end. from_rev >= 1.
    cdef int open(
        self, Mvcc mvcc, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len,
        int options, int64_t from_rev
    ) except -1

    # Appends further events to `events` and a cut for each of their revisions to `cuts`: whole revisions only.
    # budget (>= 1): about how many records to step over; bytes_max (>= 1): no further revision is begun once so
    # many bytes were appended. A revision that takes more than the budget is kept aside until its end is met:
    # MORE then comes without a cut. HISTORY_*; StoreCorrupt, MemoryError.
    cdef int step(self, outbuf *events, event_cuts *cuts, int64_t budget, uint64_t bytes_max) except -1

    cdef int read_on(self, int64_t upto) except -1
    cdef int make_list(self, int64_t upto) except -1
    cdef int list_key(self, int64_t upto) except -1
    cdef int read_list(self) except -1
    cdef int read_walk(self, int64_t upto) except -1
    cdef int check_end(self) except -1
    cdef object open_walk(self, const uint8_t *key, Py_ssize_t key_len)
    cdef bytes listed_record(self, const Revision *r)
    cdef int emit(self, int64_t main, bint is_tombstone, bytes record) except -1
    cdef int room_for(self, int64_t count) except -1
    cdef void drop_list(self) noexcept
    cdef int end_revision(self, int64_t resume) except -1
    cdef int set_aside(self, int64_t sub) except -1
    cdef void begin_again(self) noexcept
    cdef void drop_partial(self) noexcept
