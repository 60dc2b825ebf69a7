"""The write-ahead log's open segment: appended by one thread, written and synced by another.

The loop thread (the only caller of the functions below, but for wal_stats) encodes records into the filling
buffer. `wal_submit` hands that buffer to the disk thread if it is idle; what arrives meanwhile gathers in the
other buffer and becomes the next batch (group commit without timers). A third thread prepares the next
segment ahead of time and removes old ones.

    append*  ->  wal_submit  ->  [disk thread: pwrite, fdatasync]  ->  done fd rings  ->  wal_poll  ->  answer

Any failed write or sync is final: WAL_FAILED from then on, nothing more becomes durable, the member must stop.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.walops cimport FaultPlan, walops_table

cdef enum:
    WAL_OK = 0
    WAL_FULL = -1  # the filling buffer is at its limit: stop draining rings until the next wal_poll() == 1
    WAL_FAILED = -2  # a write or sync failed; wal_error says which. Final
    WAL_TOO_LARGE = -3  # one record above record_bytes_max
    WAL_NO_MEMORY = -4
    WAL_CLOSED = -5

# What the disk was doing when it failed (wal_failure.what).
cdef enum:
    WAL_DID_NOTHING = 0
    WAL_DID_WRITE = 1
    WAL_DID_SYNC = 2
    WAL_DID_TRUNCATE = 3
    WAL_DID_PREPARE = 4  # the next segment's file
    WAL_DID_RENAME = 5
    WAL_DID_SYNC_DIRECTORY = 6

ctypedef struct wal_failure:
    int32_t what  # WAL_DID_*
    int32_t error  # errno; 0 for a short write
    uint64_t sequence  # of the segment
    uint64_t offset  # bytes from the segment's start where the failed call began

cdef enum:
    WAL_FSYNC_BUCKETS = 15  # upper bounds 0.001 * 2**i seconds for i in 0..13, then the rest (as etcd's metric)

# Monotonic counters, written by the disk thread, readable by any thread without a lock.
ctypedef struct wal_counters:
    uint64_t fsyncs
    uint64_t fsync_nanoseconds
    uint64_t fsync_bucket[WAL_FSYNC_BUCKETS]  # not cumulative
    uint64_t writes
    uint64_t bytes_written  # record bytes, without block padding
    uint64_t cuts
    uint64_t purged  # segments removed

# Defined in walio.pyx: nothing outside looks into it.
cdef struct wal_t

# ---- appending: loop thread only, nothing here blocks ---------------------------------------------
# WAL_OK, WAL_FULL, WAL_TOO_LARGE, WAL_FAILED, WAL_NO_MEMORY, WAL_CLOSED. On anything but WAL_OK nothing was
# appended. Data is copied before the call returns.

# Entry.Data = prefix + data + suffix; all empty writes an entry without Data. Entries may overwrite earlier
# indexes (a new leader's log wins); a reader keeps the later one.
cdef int wal_append_entry(
    wal_t *wal, int type, uint64_t term, uint64_t index,
    const uint8_t *prefix, size_t prefix_bytes,
    const uint8_t *data, size_t data_bytes,
    const uint8_t *suffix, size_t suffix_bytes,
) noexcept nogil

# After the entries of the same turn. An empty or unchanged state writes nothing. Changed term or vote makes
# the batch sync; a changed commit alone does not. A commit beyond what was on disk before this batch is written
# lowered to that: so a hard state found in a log proves that every entry it covers had been durable, which is how
# a reader tells a damaged log from a torn tail. The rest of the commit follows with a later state, at the latest
# before a snapshot record and at close.
cdef int wal_append_state(wal_t *wal, uint64_t term, uint64_t vote, uint64_t commit) noexcept nogil

# Only after the snapshot itself is durable. `conf_state`: marshalled raftpb.ConfState, required for index > 0.
cdef int wal_append_snapshot(
    wal_t *wal, uint64_t index, uint64_t term, const uint8_t *conf_state, size_t conf_state_bytes,
) noexcept nogil

# Bytes that may still be appended before WAL_FULL.
cdef size_t wal_room(wal_t *wal) noexcept nogil

# ---- handing over ---------------------------------------------------------------------------------

# 1: the filling buffer is with the disk thread now. 0: nothing to write, or the disk is busy (call again after
# wal_poll() == 1 or when the done fd rings). WAL_FAILED, WAL_NO_MEMORY, WAL_CLOSED.
cdef int wal_submit(wal_t *wal) noexcept nogil

# 1: the batch in flight became durable since the last call (wal_durable_* advanced). 0: not yet. WAL_FAILED.
# A batch without entries and with unchanged term and vote counts as durable when it is written.
cdef int wal_poll(wal_t *wal) noexcept nogil

# eventfd that is rung after each durable batch, after each cut and on failure. Register it edge-triggered
# (EPOLLET) and it never needs to be read.
cdef int wal_done_fd(wal_t *wal) noexcept nogil

# Index and term of the last entry of the last durable batch that had entries (at open: of the log read).
cdef uint64_t wal_durable_index(wal_t *wal) noexcept nogil
cdef uint64_t wal_durable_term(wal_t *wal) noexcept nogil
# Index and term of the last entry appended.
cdef uint64_t wal_last_index(wal_t *wal) noexcept nogil
# Where durable records end: the segment's sequence number and the byte behind the last of them. What is before it
# in any segment never changes any more.
cdef void wal_durable_end(wal_t *wal, uint64_t *sequence, uint64_t *offset) noexcept nogil
# Batches handed over and batches durable; equal means nothing is in flight.
cdef uint64_t wal_submitted(wal_t *wal) noexcept nogil
cdef uint64_t wal_durable(wal_t *wal) noexcept nogil
# Record bytes waiting in the filling buffer.
cdef size_t wal_pending_bytes(wal_t *wal) noexcept nogil
# True when the disk thread takes a submit now: it rests, and wal_poll has told of all it did.
cdef bint wal_idle(wal_t *wal) noexcept nogil
# True when wal_poll would say something other than 0.
cdef bint wal_has_news(wal_t *wal) noexcept nogil

# WAL_OK, or WAL_FAILED with `failure` filled in.
cdef int wal_error(wal_t *wal, wal_failure *failure) noexcept nogil

# ---- housekeeping ---------------------------------------------------------------------------------

# A snapshot at `index` is durable: segments wholly before it are let go, the oldest removed while more than
# max_wals files exist. Returns at once; the helper thread does it.
cdef void wal_release_to(wal_t *wal, uint64_t index) noexcept nogil

# See walfiles_keep_from: for a follower that is behind and served from the files. Returns at once.
cdef void wal_keep_from(wal_t *wal, uint64_t index) noexcept nogil

# Index of the first entry expected in the oldest file there is.
cdef uint64_t wal_oldest_index(wal_t *wal) noexcept nogil

# A copy of the counters; any thread.
cdef void wal_stats(wal_t *wal, wal_counters *counters) noexcept nogil

# Write and sync everything appended, stop both threads, close every segment. Blocks. WAL_OK or WAL_FAILED.
# The memory itself is freed with the Wal object.
cdef int wal_close(wal_t *wal) noexcept nogil


cdef class Wal:
    """Owner of a wal_t. Made by `etcdfast.formats.wal.create` and `.open_for_append`."""
    cdef wal_t *wal  # for callers in C; valid while this object lives
    cdef FaultPlan _faults  # keeps the table's context alive
