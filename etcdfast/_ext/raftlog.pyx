"""The raft log in memory (contract and picture in raftlog.pxd)."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

ENTRY_BYTES_MAX = 0xFFFFFFFF


# ---- chunks ---------------------------------------------------------------------------------------


cdef raftlog_chunk *chunk_take(raft_log *log, uint32_t need) noexcept nogil:
    cdef raftlog_chunk *chunk
    cdef uint32_t capacity = need if need > RAFTLOG_CHUNK_BYTES else RAFTLOG_CHUNK_BYTES
    if capacity == RAFTLOG_CHUNK_BYTES and log.spare != NULL:
        chunk = log.spare
        log.spare = chunk.younger
        log.spares -= 1
    else:
        chunk = <raftlog_chunk *>malloc(sizeof(raftlog_chunk) + capacity)
        if chunk == NULL:
            return NULL
        chunk.capacity = capacity
        chunk.data = <uint8_t *>chunk + sizeof(raftlog_chunk)
    chunk.used = chunk.rows = 0
    chunk.younger = NULL
    chunk.older = log.youngest
    if log.youngest != NULL:
        log.youngest.younger = chunk
    else:
        log.oldest = chunk
    log.youngest = chunk
    log.bytes += capacity
    return chunk


cdef void chunk_drop(raft_log *log, raftlog_chunk *chunk) noexcept nogil:
    if chunk.older != NULL:
        chunk.older.younger = chunk.younger
    else:
        log.oldest = chunk.younger
    if chunk.younger != NULL:
        chunk.younger.older = chunk.older
    else:
        log.youngest = chunk.older
    log.bytes -= chunk.capacity
    if chunk.capacity == RAFTLOG_CHUNK_BYTES and log.spares < RAFTLOG_SPARE_CHUNKS_MAX:
        chunk.younger = log.spare
        log.spare = chunk
        log.spares += 1
    else:
        free(chunk)


cdef inline void row_drop(raft_log *log, raftlog_row *row) noexcept nogil:
    cdef raftlog_chunk *chunk = row.chunk
    if chunk == NULL:
        return
    chunk.rows -= 1
    if chunk.rows == 0:
        # The youngest ordinary chunk stays where it is and is filled anew: no list work for a log that is
        # handed over as fast as it grows.
        if chunk == log.youngest and chunk.capacity == RAFTLOG_CHUNK_BYTES:
            chunk.used = 0
        else:
            chunk_drop(log, chunk)


# ---- rows -----------------------------------------------------------------------------------------


cdef int raftlog_append(
    raft_log *log, int32_t type, uint64_t term, uint64_t request_id,
    const uint8_t *prefix, uint64_t prefix_bytes,
    const uint8_t *data, uint64_t data_bytes,
    const uint8_t *suffix, uint64_t suffix_bytes,
) noexcept nogil:
    cdef uint64_t need = prefix_bytes + data_bytes + suffix_bytes
    cdef uint64_t fresh
    cdef raftlog_chunk *chunk = log.youngest
    cdef raftlog_row *row
    cdef uint8_t *at
    if need > 0xFFFFFFFFu:
        return RAFTLOG_TOO_LARGE
    if log.last - log.first + 1 >= log.rows_max:
        return RAFTLOG_FULL
    if need and (chunk == NULL or chunk.capacity - chunk.used < need):
        if chunk != NULL and chunk.rows == 0:
            chunk_drop(log, chunk)  # empty and too small: nothing would ever drop it behind a younger one
        fresh = need if need > RAFTLOG_CHUNK_BYTES else RAFTLOG_CHUNK_BYTES
        if log.bytes + fresh > log.bytes_max and log.last >= log.first:
            return RAFTLOG_FULL
        chunk = chunk_take(log, <uint32_t>need)
        if chunk == NULL:
            return RAFTLOG_NO_MEMORY
    log.last += 1
    row = raftlog_at(log, log.last)
    row.term = term
    row.request_id = request_id
    row.type = type
    row.data_bytes = <uint32_t>need
    if not need:
        row.data = NULL
        row.chunk = NULL
        return RAFTLOG_OK
    at = chunk.data + chunk.used
    row.data = at
    row.chunk = chunk
    chunk.used += <uint32_t>need
    chunk.rows += 1
    if prefix_bytes:
        memcpy(at, prefix, prefix_bytes)
    if data_bytes:
        memcpy(at + prefix_bytes, data, data_bytes)
    if suffix_bytes:
        memcpy(at + prefix_bytes + data_bytes, suffix, suffix_bytes)
    return RAFTLOG_OK


cdef void raftlog_truncate_after(raft_log *log, uint64_t index) noexcept nogil:
    cdef raftlog_row *row
    cdef raftlog_chunk *chunk
    while log.last > index and log.last >= log.first:
        row = raftlog_at(log, log.last)
        chunk = row.chunk
        if chunk != NULL and chunk.rows > 1:
            chunk.used = <uint32_t>(row.data - chunk.data)
        row_drop(log, row)
        log.last -= 1


cdef void raftlog_release_to(raft_log *log, uint64_t index) noexcept nogil:
    cdef raftlog_row *row
    if index > log.last:
        index = log.last
    while log.first <= index:
        row = raftlog_at(log, log.first)
        log.before_term = row.term
        row_drop(log, row)
        log.first += 1


cdef uint64_t raftlog_term(const raft_log *log, uint64_t index) noexcept nogil:
    if index + 1 == log.first:
        return log.before_term
    if index < log.first or index > log.last:
        return 0
    return log.rows[index & (log.rows_max - 1)].term


# ---- Python's face --------------------------------------------------------------------------------


class RaftLogFull(Exception):
    """The log is at its limit of rows or bytes."""


cdef class RaftLog:
    """An empty log that goes on behind `index` (of `term`): the next entry is index + 1.

    Units: rows_max is a power of two; bytes_max bounds the data of all rows, in chunks of 256 KiB.
    Errors: ValueError for a bad rows_max, MemoryError.
    """

    def __cinit__(self, uint64_t index, uint64_t term, *, uint64_t rows_max, uint64_t bytes_max):
        memset(&self.log, 0, sizeof(raft_log))
        if not rows_max or rows_max & (rows_max - 1):
            raise ValueError(f"rows_max {rows_max} is no power of two")
        self.log.rows = <raftlog_row *>calloc(rows_max, sizeof(raftlog_row))
        if self.log.rows == NULL:
            raise MemoryError(f"raft log of {rows_max} rows")
        self.log.rows_max = rows_max
        self.log.bytes_max = bytes_max
        self.log.last = index
        self.log.first = index + 1
        self.log.before_term = term

    def __dealloc__(self):
        cdef raftlog_chunk *chunk = self.log.oldest
        cdef raftlog_chunk *following
        while chunk != NULL:
            following = chunk.younger
            free(chunk)
            chunk = following
        chunk = self.log.spare
        while chunk != NULL:
            following = chunk.younger
            free(chunk)
            chunk = following
        free(self.log.rows)

    @property
    def first_index(self):
        """Oldest index held; last_index + 1 when empty."""
        return self.log.first

    @property
    def last_index(self):
        return self.log.last

    @property
    def last_term(self):
        return raftlog_term(&self.log, self.log.last)

    @property
    def bytes_held(self):
        """Memory of the chunks in use, spares not counted."""
        return self.log.bytes

    def term(self, uint64_t index):
        """Term of `index`, from first_index - 1 to last_index; 0 outside."""
        return raftlog_term(&self.log, index)

    def append(self, uint64_t term, const uint8_t[::1] data not None, int type=0, uint64_t request_id=0):
        """Append one entry and return its index. Errors: RaftLogFull, MemoryError."""
        cdef uint64_t size = <uint64_t>data.shape[0]
        cdef int code = raftlog_append(
            &self.log, type, term, request_id, NULL, 0, &data[0] if size else NULL, size, NULL, 0)
        if code == RAFTLOG_NO_MEMORY:
            raise MemoryError(f"raft entry of {size} bytes")
        if code == RAFTLOG_TOO_LARGE:
            raise ValueError(f"raft entry of {size} bytes")
        if code:
            raise RaftLogFull(f"{self.log.last - self.log.first + 1} rows, {self.log.bytes} bytes")
        return self.log.last

    def entry(self, uint64_t index):
        """(term, type, data, request id) of an index held. Errors: IndexError."""
        cdef raftlog_row *row
        if index < self.log.first or index > self.log.last:
            raise IndexError(index)
        row = raftlog_at(&self.log, index)
        data = (<const char *>row.data)[: row.data_bytes] if row.data_bytes else b""
        return row.term, row.type, data, row.request_id

    def truncate_after(self, uint64_t index):
        """Forget every entry above `index`. Errors: IndexError below first_index - 1."""
        if index + 1 < self.log.first:
            raise IndexError(index)
        raftlog_truncate_after(&self.log, index)

    def release_to(self, uint64_t index):
        """Forget every entry up to `index` (at most up to last_index)."""
        raftlog_release_to(&self.log, index)
