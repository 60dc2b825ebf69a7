"""The raft log in memory: the entries that may still be needed, oldest first, in bounded C memory.

Rows are found by index; their data lies in chunks, filled in index order. Both ends move: `append` and
`truncate_after` (a new leader's log wins) at the young end, `release_to` (handed over, and not wanted by a
slow member any more) at the old end. What was released is still in the write-ahead log.

    released | first .................... last
             ^ first - 1: its term is kept, for the match at the boundary

One thread owns a log; nothing here blocks or does I/O.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef enum:
    RAFTLOG_OK = 0
    RAFTLOG_FULL = -1  # at its limit of rows or bytes: release first
    RAFTLOG_NO_MEMORY = -2
    RAFTLOG_TOO_LARGE = -3  # data above 2^32 - 1 bytes

cdef enum:
    RAFTLOG_CHUNK_BYTES = 262144  # of data in an ordinary chunk; a larger entry gets a chunk of its own
    RAFTLOG_SPARE_CHUNKS_MAX = 4  # ordinary chunks kept for reuse: the memory stays warm in the cache

ctypedef struct raftlog_chunk:
    raftlog_chunk *younger
    raftlog_chunk *older
    uint32_t capacity  # bytes at `data`
    uint32_t used
    uint32_t rows  # rows whose data lies here
    uint8_t *data

ctypedef struct raftlog_row:
    uint64_t term
    uint64_t request_id  # who waits for it here, 0 nobody
    const uint8_t *data  # NULL when data_bytes is 0; valid until the row is released or truncated
    raftlog_chunk *chunk  # NULL when data_bytes is 0
    uint32_t data_bytes
    int32_t type  # raftpb.EntryType

ctypedef struct raft_log:
    raftlog_row *rows  # ring of `rows_max` (a power of two), by index
    uint64_t rows_max
    uint64_t first  # oldest index held; last + 1 when empty
    uint64_t last
    uint64_t before_term  # term of first - 1
    raftlog_chunk *youngest
    raftlog_chunk *oldest
    raftlog_chunk *spare  # linked by `younger`
    uint32_t spares
    uint64_t bytes  # capacity of the chunks in use
    uint64_t bytes_max

# Append at last + 1; Data = prefix + data + suffix, copied before the call returns. An empty log takes an
# entry of any size, so that one above bytes_max cannot block for ever.
# RAFTLOG_OK, RAFTLOG_FULL, RAFTLOG_NO_MEMORY, RAFTLOG_TOO_LARGE: on anything but OK nothing was appended.
cdef int raftlog_append(
    raft_log *log, int32_t type, uint64_t term, uint64_t request_id,
    const uint8_t *prefix, uint64_t prefix_bytes,
    const uint8_t *data, uint64_t data_bytes,
    const uint8_t *suffix, uint64_t suffix_bytes,
) noexcept nogil

# Forget every row above `index`. Precondition: index + 1 >= first.
cdef void raftlog_truncate_after(raft_log *log, uint64_t index) noexcept nogil

# Forget every row up to `index`, at most up to `last`.
cdef void raftlog_release_to(raft_log *log, uint64_t index) noexcept nogil

# Term of an index from first - 1 to last; 0 outside.
cdef uint64_t raftlog_term(const raft_log *log, uint64_t index) noexcept nogil


cdef inline raftlog_row *raftlog_at(raft_log *log, uint64_t index) noexcept nogil:
    """Row of an index. Precondition: first <= index <= last."""
    return &log.rows[index & (log.rows_max - 1)]


cdef class RaftLog:
    """Owner of a raft_log, and the log that the raft core sees."""
    cdef raft_log log
