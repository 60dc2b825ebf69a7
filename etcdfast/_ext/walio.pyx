"""The segment writer: a filling buffer, a disk thread and a helper that prepares and removes files.

Who touches what: the loop thread owns the filling buffer, the encoder's checksum and all log positions; the disk
thread owns the open segment's descriptor and, between submit and idle, the buffer in flight. The hand-over is the
one word `job`. Other files of the log are walfiles' business.
"""

import os

from libc.errno cimport errno
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from etcdfast._ext.walfiles cimport (
    WALFILES_NAME_BYTES, walfiles_add, walfiles_adopt_spare, walfiles_await_spare, walfiles_init, walfiles_keep_from,
    walfiles_name, walfiles_oldest_index, walfiles_release_to, walfiles_start, walfiles_stop, walfiles_t,
)
from etcdfast._ext.walmeters cimport walmeters_synced, walmeters_written
from etcdfast._ext.walops cimport FaultPlan, walops_system, walops_table
from etcdfast._ext.walrec cimport (
    WALREC_METADATA, WALREC_STATE_FRAME_MAX, walrec_entry_bound, walrec_put_crc, walrec_put_entry, walrec_put_record,
    walrec_put_snapshot, walrec_put_state, walrec_record_bound,
)
from etcdfast._ext.walsys cimport (
    add64, c_close, c_pread, load32, load64, peek64, pthread_join, pthread_mutex_lock, pthread_mutex_unlock,
    pthread_t, store32, store64, walsys_aligned, walsys_await_ring, walsys_eventfd, walsys_futex_wait,
    walsys_futex_wake, walsys_now, walsys_pause, walsys_ring, walsys_thread,
)

# Batches are written in whole blocks of this, aligned in the file: eight sectors, a page.
cdef enum:
    BLOCK_BYTES = 4096

cdef enum:
    JOB_IDLE = 0
    JOB_BATCH = 1
    JOB_STOP = 2

# One side of the double buffer. base[0] lies at file_offset of its segment (a multiple of BLOCK_BYTES).
cdef struct wal_buffer:
    uint8_t *base  # BLOCK_BYTES-aligned
    size_t capacity  # multiple of BLOCK_BYTES
    size_t head  # bytes at the start that are on disk already: the begun block, or a new segment's head
    size_t end  # bytes used, head included
    uint64_t file_offset
    uint64_t last_index, last_term  # of the last entry or snapshot in it
    bint has_entries
    uint64_t entries
    bint must_sync
    bint cut  # the segment ends with this batch

cdef struct wal_state:
    uint64_t term, vote, commit

cdef struct wal_t:
    const walops_table *ops
    # settings
    size_t buffer_bytes  # limit of the filling buffer
    size_t record_bytes_max
    uint64_t spin_nanoseconds
    # loop thread
    wal_buffer buffers[2]
    wal_buffer *fill
    uint32_t crc
    uint8_t *metadata
    size_t metadata_bytes
    wal_state wanted  # as last appended
    wal_state written  # as last encoded
    uint64_t last_index, last_term
    uint64_t covered  # entries up to here are on disk before the filling buffer is
    uint64_t submitted
    uint64_t seen  # tickets that wal_poll has reported
    uint64_t flight_index, flight_term
    uint64_t durable_index, durable_term
    uint64_t fill_sequence  # segment of the filling buffer
    uint64_t flight_sequence, flight_end
    uint64_t durable_sequence, durable_end
    bint unsynced  # something was written without a sync
    bint closed
    # hand-over
    int32_t job
    wal_buffer *flight
    uint64_t flight_ticket
    uint8_t *cut_head  # first records of the next segment, zero-padded to whole blocks
    size_t cut_head_bytes
    uint64_t cut_index
    # published by the disk thread
    uint64_t durable_ticket
    int32_t failed
    wal_failure failure
    wal_counters counters
    # disk thread
    int fd
    uint64_t sequence
    int done_fd
    walfiles_t files
    pthread_t disk
    bint disk_started


cdef inline size_t whole_blocks(size_t bytes) noexcept nogil:
    return (bytes + BLOCK_BYTES - 1) & ~<size_t>(BLOCK_BYTES - 1)


# ---- appending ------------------------------------------------------------------------------------


# Room for `bound` bytes at the end of the filling buffer, or NULL with the reason in `code`.
cdef inline uint8_t *reserve(wal_t *wal, size_t bound, int *code) noexcept nogil:
    cdef wal_buffer *buffer = wal.fill
    if bound <= buffer.capacity - buffer.end and not load32(&wal.failed) and not wal.closed:
        return buffer.base + buffer.end
    return reserve_slowly(wal, bound, code)


cdef uint8_t *reserve_slowly(wal_t *wal, size_t bound, int *code) noexcept nogil:
    cdef wal_buffer *buffer = wal.fill
    cdef uint8_t *grown
    cdef size_t capacity
    if wal.closed:
        code[0] = WAL_CLOSED
    elif load32(&wal.failed):
        code[0] = WAL_FAILED
    elif bound > wal.record_bytes_max:
        code[0] = WAL_TOO_LARGE
    elif buffer.end > buffer.head:
        code[0] = WAL_FULL
    else:
        # One record larger than the limit goes alone, in memory that is given back at the next swap.
        capacity = whole_blocks(buffer.end + bound)
        grown = <uint8_t *>walsys_aligned(capacity)
        if grown == NULL:
            code[0] = WAL_NO_MEMORY
            return NULL
        memcpy(grown, buffer.base, buffer.end)
        free(buffer.base)
        buffer.base = grown
        buffer.capacity = capacity
        return buffer.base + buffer.end
    return NULL


cdef int wal_append_entry(
    wal_t *wal, int type, uint64_t term, uint64_t index,
    const uint8_t *prefix, size_t prefix_bytes,
    const uint8_t *data, size_t data_bytes,
    const uint8_t *suffix, size_t suffix_bytes,
) noexcept nogil:
    cdef int code = WAL_OK
    cdef wal_buffer *buffer
    cdef uint8_t *out
    if data_bytes > wal.record_bytes_max:
        return WAL_TOO_LARGE
    out = reserve(wal, walrec_entry_bound(prefix_bytes + data_bytes + suffix_bytes), &code)
    if out == NULL:
        return code
    buffer = wal.fill
    buffer.end += walrec_put_entry(
        out, &wal.crc, type, term, index, prefix, prefix_bytes, data, data_bytes, suffix, suffix_bytes)
    buffer.must_sync = True
    buffer.has_entries = True
    buffer.entries += 1
    buffer.last_index = index
    buffer.last_term = term
    wal.last_index = index
    wal.last_term = term
    if wal.covered >= index:  # overwrites: what is on disk for these indexes is another leader's
        wal.covered = index - 1
    return WAL_OK


cdef int wal_append_state(wal_t *wal, uint64_t term, uint64_t vote, uint64_t commit) noexcept nogil:
    if not (term or vote or commit):
        return WAL_OK
    cdef int code = put_state(wal, term, vote, commit)
    if code == WAL_OK:
        wal.wanted.term = term
        wal.wanted.vote = vote
        wal.wanted.commit = commit
    return code


cdef int put_state(wal_t *wal, uint64_t term, uint64_t vote, uint64_t commit) noexcept nogil:
    cdef int code = WAL_OK
    cdef uint8_t *out
    if commit > wal.covered:
        commit = wal.covered
    if commit < wal.written.commit:
        commit = wal.written.commit
    if term == wal.written.term and vote == wal.written.vote and commit == wal.written.commit:
        return WAL_OK
    out = reserve(wal, WALREC_STATE_FRAME_MAX, &code)
    if out == NULL:
        return code
    wal.fill.end += walrec_put_state(out, &wal.crc, term, vote, commit)
    if term != wal.written.term or vote != wal.written.vote:
        wal.fill.must_sync = True
    wal.written.term = term
    wal.written.vote = vote
    wal.written.commit = commit
    return WAL_OK


cdef int wal_append_snapshot(
    wal_t *wal, uint64_t index, uint64_t term, const uint8_t *conf_state, size_t conf_state_bytes,
) noexcept nogil:
    cdef int code = WAL_OK
    cdef uint8_t *out
    cdef wal_buffer *buffer
    if conf_state_bytes > wal.record_bytes_max:
        return WAL_TOO_LARGE
    # Room for both records first, so that both are appended or none.
    out = reserve(wal, walrec_record_bound(conf_state_bytes + 34) + WALREC_STATE_FRAME_MAX, &code)
    if out == NULL:
        return code
    if wal.covered < index:
        wal.covered = index
    # A reader uses only snapshots that the last hard state's commit covers.
    if wal.wanted.commit > wal.written.commit:
        put_state(wal, wal.wanted.term, wal.wanted.vote, wal.wanted.commit)
    buffer = wal.fill
    buffer.end += walrec_put_snapshot(
        buffer.base + buffer.end, &wal.crc, index, term, conf_state, conf_state_bytes)
    buffer.must_sync = True
    if index > wal.last_index:
        wal.last_index = buffer.last_index = index
        wal.last_term = buffer.last_term = term
        buffer.has_entries = True
    return WAL_OK


cdef size_t wal_room(wal_t *wal) noexcept nogil:
    return wal.fill.capacity - wal.fill.end


# ---- handing over ---------------------------------------------------------------------------------


cdef int wal_submit(wal_t *wal) noexcept nogil:
    cdef wal_buffer *full = wal.fill
    cdef wal_buffer *next = &wal.buffers[1] if full == &wal.buffers[0] else &wal.buffers[0]
    cdef size_t tail_start
    cdef uint8_t *fresh
    if wal.closed:
        return WAL_CLOSED
    if load32(&wal.failed):
        return WAL_FAILED
    # A batch that ended is first made known by wal_poll: its index is kept for one batch only, and the next
    # one's must never be taken for durable in its place.
    if full.end == full.head or not wal_idle(wal):
        return 0
    if next.capacity != wal.buffer_bytes:
        fresh = <uint8_t *>walsys_aligned(wal.buffer_bytes)
        if fresh == NULL:
            return WAL_NO_MEMORY
        free(next.base)
        next.base = fresh
        next.capacity = wal.buffer_bytes
    memset(full.base + full.end, 0, whole_blocks(full.end) - full.end)
    full.cut = full.file_offset + full.end >= wal.files.segment_bytes
    if full.cut:
        next.file_offset = 0
        next.head = put_segment_head(wal, next.base)
        memset(wal.cut_head, 0, wal.cut_head_bytes)
        memcpy(wal.cut_head, next.base, next.head)
        wal.cut_index = wal.last_index + 1
    else:
        # The block begun goes with the next batch again, whole.
        tail_start = full.end & ~<size_t>(BLOCK_BYTES - 1)
        next.file_offset = full.file_offset + tail_start
        next.head = full.end - tail_start
        memcpy(next.base, full.base + tail_start, next.head)
    next.end = next.head
    next.has_entries = False
    next.entries = 0
    next.must_sync = False
    if full.has_entries:
        wal.flight_index = full.last_index
        wal.flight_term = full.last_term
    wal.flight_sequence = wal.fill_sequence
    wal.flight_end = full.file_offset + full.end
    if full.cut:
        wal.fill_sequence += 1
    if not full.must_sync:
        wal.unsynced = True
    wal.covered = wal.last_index
    wal.submitted += 1
    wal.flight = full
    wal.flight_ticket = wal.submitted
    wal.fill = next
    store32(&wal.job, JOB_BATCH)
    walsys_futex_wake(&wal.job)
    return 1


# CRC, METADATA and, unless empty, STATE: how every segment but the first begins.
cdef size_t put_segment_head(wal_t *wal, uint8_t *out) noexcept nogil:
    cdef size_t n = walrec_put_crc(out, wal.crc)
    n += walrec_put_record(out + n, &wal.crc, WALREC_METADATA, wal.metadata, wal.metadata_bytes)
    if wal.written.term or wal.written.vote or wal.written.commit:
        n += walrec_put_state(out + n, &wal.crc, wal.written.term, wal.written.vote, wal.written.commit)
    return n


cdef int wal_poll(wal_t *wal) noexcept nogil:
    cdef uint64_t ticket = load64(&wal.durable_ticket)
    if ticket != wal.seen:
        # At most one batch is in flight, so this is it.
        wal.seen = ticket
        wal.durable_index = wal.flight_index
        wal.durable_term = wal.flight_term
        wal.durable_sequence = wal.flight_sequence
        wal.durable_end = wal.flight_end
        return 1
    return WAL_FAILED if load32(&wal.failed) else 0


cdef int wal_done_fd(wal_t *wal) noexcept nogil:
    return wal.done_fd


cdef uint64_t wal_durable_index(wal_t *wal) noexcept nogil:
    return wal.durable_index


cdef uint64_t wal_durable_term(wal_t *wal) noexcept nogil:
    return wal.durable_term


cdef uint64_t wal_last_index(wal_t *wal) noexcept nogil:
    return wal.last_index


cdef void wal_durable_end(wal_t *wal, uint64_t *sequence, uint64_t *offset) noexcept nogil:
    sequence[0] = wal.durable_sequence
    offset[0] = wal.durable_end


cdef uint64_t wal_submitted(wal_t *wal) noexcept nogil:
    return wal.submitted


cdef uint64_t wal_durable(wal_t *wal) noexcept nogil:
    return wal.seen


cdef size_t wal_pending_bytes(wal_t *wal) noexcept nogil:
    return wal.fill.end - wal.fill.head


cdef bint wal_idle(wal_t *wal) noexcept nogil:
    return wal.seen == wal.submitted and load32(&wal.job) == JOB_IDLE


cdef bint wal_has_news(wal_t *wal) noexcept nogil:
    return load64(&wal.durable_ticket) != wal.seen or load32(&wal.failed) != 0


cdef int wal_error(wal_t *wal, wal_failure *failure) noexcept nogil:
    if not load32(&wal.failed):
        return WAL_OK
    failure[0] = wal.failure
    return WAL_FAILED


# ---- disk thread ----------------------------------------------------------------------------------


cdef int fail(wal_t *wal, int what, int error, uint64_t offset) noexcept nogil:
    wal.failure.what = what
    wal.failure.error = error
    wal.failure.sequence = wal.sequence
    wal.failure.offset = offset
    store32(&wal.failed, 1)
    walsys_ring(wal.done_fd)
    return WAL_FAILED


cdef void *disk_main(void *argument) noexcept nogil:
    cdef wal_t *wal = <wal_t *>argument
    cdef int32_t job
    while True:
        job = await_job(wal)
        if job == JOB_STOP:
            return NULL
        # A failure ends the batch but not the thread: it still has to be told to stop.
        if write_batch(wal, wal.flight) == WAL_OK and wal.flight.cut:
            cut_segment(wal, wal.flight.file_offset + wal.flight.end)
        store32(&wal.job, JOB_IDLE)
        walsys_ring(wal.done_fd)


cdef int32_t await_job(wal_t *wal) noexcept nogil:
    cdef int32_t job = load32(&wal.job)
    cdef uint64_t until
    if job == JOB_IDLE and wal.spin_nanoseconds:
        until = walsys_now() + wal.spin_nanoseconds
        while job == JOB_IDLE and walsys_now() < until:
            walsys_pause()
            job = load32(&wal.job)
    while job == JOB_IDLE:
        walsys_futex_wait(&wal.job, JOB_IDLE)
        job = load32(&wal.job)
    return job


cdef int write_batch(wal_t *wal, wal_buffer *batch) noexcept nogil:
    cdef size_t size = whole_blocks(batch.end)
    cdef uint64_t started = walsys_now()
    cdef uint64_t began, ended
    cdef int error
    cdef int64_t n = wal.ops.pwrite(wal.ops.context, wal.fd, batch.base, size, <int64_t>batch.file_offset)
    if n != <int64_t>size:
        error = errno if n < 0 else 0
        if n > <int64_t>batch.head:
            # Nobody was told of these records. Zeros end a log, half a record would be damage at the next start.
            n -= <int64_t>batch.head
            memset(batch.base + batch.head, 0, <size_t>n)
            wal.ops.pwrite(wal.ops.context, wal.fd, batch.base + batch.head, <size_t>n,
                           <int64_t>(batch.file_offset + batch.head))
        return fail(wal, WAL_DID_WRITE, error, batch.file_offset)
    began = walsys_now()
    walmeters_written(&wal.counters, batch.end - batch.head, began - started)
    if batch.must_sync:
        if wal.ops.fdatasync(wal.ops.context, wal.fd) != 0:
            return fail(wal, WAL_DID_SYNC, errno, batch.file_offset)
        ended = walsys_now()
        walmeters_synced(&wal.counters, batch.entries, batch.end - batch.head, ended - began, ended - started)
    store64(&wal.durable_ticket, wal.flight_ticket)
    if batch.cut:
        walsys_ring(wal.done_fd)  # the answers need not wait for the cut
    return WAL_OK


cdef int cut_segment(wal_t *wal, uint64_t end) noexcept nogil:
    cdef char spare_name[WALFILES_NAME_BYTES]
    cdef char name[WALFILES_NAME_BYTES]
    cdef const walops_table *ops = wal.ops
    cdef int spare
    cdef int error = 0
    cdef int64_t n
    # A reader takes what follows the last record for data: the file must end where its records do.
    if ops.ftruncate(ops.context, wal.fd, <int64_t>end) != 0:
        return fail(wal, WAL_DID_TRUNCATE, errno, end)
    if ops.fsync(ops.context, wal.fd) != 0:
        return fail(wal, WAL_DID_SYNC, errno, end)
    spare = walfiles_await_spare(&wal.files, spare_name, &error)
    if spare < 0:
        return fail(wal, WAL_DID_PREPARE, error, end)
    n = ops.pwrite(ops.context, spare, wal.cut_head, wal.cut_head_bytes, 0)
    if n != <int64_t>wal.cut_head_bytes:
        return fail(wal, WAL_DID_WRITE, errno if n < 0 else 0, end)
    if ops.fsync(ops.context, spare) != 0:
        return fail(wal, WAL_DID_SYNC, errno, end)
    walfiles_name(name, wal.sequence + 1, wal.cut_index)
    if ops.renameat(ops.context, wal.files.directory, spare_name, name) != 0:
        return fail(wal, WAL_DID_RENAME, errno, end)
    if ops.fsync(ops.context, wal.files.directory) != 0:
        return fail(wal, WAL_DID_SYNC_DIRECTORY, errno, end)
    error = walfiles_adopt_spare(&wal.files, wal.sequence + 1, wal.cut_index)
    if error:
        return fail(wal, WAL_DID_PREPARE, error, end)
    wal.fd = spare
    wal.sequence += 1
    add64(&wal.counters.cuts, 1)
    return WAL_OK


# ---- housekeeping ---------------------------------------------------------------------------------


cdef void wal_release_to(wal_t *wal, uint64_t index) noexcept nogil:
    if not wal.closed:
        walfiles_release_to(&wal.files, index)


cdef void wal_keep_from(wal_t *wal, uint64_t index) noexcept nogil:
    if not wal.closed:
        walfiles_keep_from(&wal.files, index)


cdef uint64_t wal_oldest_index(wal_t *wal) noexcept nogil:
    return walfiles_oldest_index(&wal.files)


cdef void wal_stats(wal_t *wal, wal_counters *counters) noexcept nogil:
    cdef int i
    counters.fsyncs = peek64(&wal.counters.fsyncs)
    counters.fsync_nanoseconds = peek64(&wal.counters.fsync_nanoseconds)
    for i in range(WAL_FSYNC_BUCKETS):
        counters.fsync_bucket[i] = peek64(&wal.counters.fsync_bucket[i])
    counters.writes = peek64(&wal.counters.writes)
    counters.bytes_written = peek64(&wal.counters.bytes_written)
    counters.cuts = peek64(&wal.counters.cuts)
    counters.purged = peek64(&wal.files.purged)


cdef int flush(wal_t *wal) noexcept nogil:
    """Everything appended is on disk when this returns WAL_OK."""
    cdef int code
    while True:
        code = wal_submit(wal)
        if code < 0:
            wal_poll(wal)  # what became durable before the failure still counts
            return code
        wal_poll(wal)
        if wal_idle(wal):
            # Busy a moment ago and idle now: what is pending has yet to be handed over.
            if wal.fill.end == wal.fill.head:
                break
        else:
            walsys_await_ring(wal.done_fd)
    wal_poll(wal)
    return WAL_FAILED if load32(&wal.failed) else WAL_OK


cdef int wal_close(wal_t *wal) noexcept nogil:
    cdef int code = WAL_OK
    if wal.closed:
        return WAL_CLOSED
    if wal.disk_started:
        code = flush(wal)
        if code == WAL_OK and wal.wanted.commit > wal.written.commit:
            code = put_state(wal, wal.wanted.term, wal.wanted.vote, wal.wanted.commit)
            if code == WAL_OK:
                wal.fill.must_sync = True
                code = flush(wal)
        elif code == WAL_OK and wal.unsynced and wal.ops.fdatasync(wal.ops.context, wal.fd) != 0:
            code = fail(wal, WAL_DID_SYNC, errno, wal.fill.file_offset)
        # Only an idle word may be replaced: a failed batch also ends idle.
        while load32(&wal.job) != JOB_IDLE:
            walsys_await_ring(wal.done_fd)
        store32(&wal.job, JOB_STOP)
        walsys_futex_wake(&wal.job)
        pthread_join(wal.disk, NULL)
        wal.disk_started = False
    wal.closed = True
    walfiles_stop(&wal.files)
    return code


# ---- Python ---------------------------------------------------------------------------------------


class WalFull(Exception):
    """The filling buffer is at its limit; append again after a batch is durable."""


class WalError(Exception):
    """The log cannot go on: a write or sync failed. Final; the member must stop."""


_DID = {
    WAL_DID_NOTHING: "nothing",
    WAL_DID_WRITE: "write",
    WAL_DID_SYNC: "sync",
    WAL_DID_TRUNCATE: "truncate",
    WAL_DID_PREPARE: "prepare the next segment after",
    WAL_DID_RENAME: "rename the segment after",
    WAL_DID_SYNC_DIRECTORY: "sync the directory after",
}


cdef class Wal:
    """The open end of a log; made by `etcdfast.formats.wal`, driven from C through `wal` (walio.pxd).

    segments: (sequence, index, descriptor or -1) of every file, oldest first; -1 for one already let go. The
        last is open for writing and locked, and zero from `offset` on. The descriptors are taken over.
    position: (offset, crc, last index, last term) where the log ends.
    state: (term, vote, commit) as last written.
    Units: segment_bytes and buffer_bytes are bytes; max_wals and keep_wals_max are files (the latter with what
        `keep_from` asks for: 16 are 1 GB); spin_seconds is how long the disk thread looks for the next
        batch before it sleeps.
    Errors: OSError, MemoryError, ValueError for settings that cannot work.
    """

    def __cinit__(self, str directory, list segments, tuple position, bytes metadata, tuple state, *,
                  uint64_t segment_bytes=64_000_000, size_t buffer_bytes=8 << 20,
                  size_t record_bytes_max=256 << 20, uint32_t max_wals=5, bint prewrite=True,
                  uint32_t keep_wals_max=16, double spin_seconds=0.0, FaultPlan faults=None):
        cdef wal_t *wal
        cdef wal_buffer *buffer
        cdef int i, error
        wal = self.wal = <wal_t *>calloc(1, sizeof(wal_t))
        if wal == NULL:
            raise MemoryError("WAL")
        wal.done_fd = -1
        walfiles_init(&wal.files)
        for sequence, index, fd in segments:
            if walfiles_add(&wal.files, sequence, index, fd) != 0:
                raise MemoryError("WAL segments")
            wal.fd = fd
            wal.sequence = sequence
        if segment_bytes < BLOCK_BYTES or segment_bytes > 1 << 40:
            raise ValueError(f"segment_bytes {segment_bytes}: expected {BLOCK_BYTES} to 2**40")
        if buffer_bytes < 4 * BLOCK_BYTES or buffer_bytes > 1 << 30 or record_bytes_max > 1 << 30:
            raise ValueError(f"buffer_bytes {buffer_bytes}, record_bytes_max {record_bytes_max}: at most 2**30")
        if len(metadata) > BLOCK_BYTES:
            raise ValueError(f"metadata of {len(metadata)} bytes: expected at most {BLOCK_BYTES}")
        self._faults = faults
        wal.ops = walops_system()
        if faults is not None:
            wal.ops = &faults.table
        wal.files.segment_bytes = segment_bytes
        wal.buffer_bytes = whole_blocks(buffer_bytes)
        wal.record_bytes_max = record_bytes_max
        wal.files.ops = wal.ops
        wal.files.max_wals = max_wals
        wal.files.keep_max = keep_wals_max
        wal.files.prewrite = prewrite
        wal.spin_nanoseconds = <uint64_t>(spin_seconds * 1e9)
        wal.metadata_bytes = <size_t>len(metadata)
        wal.metadata = <uint8_t *>calloc(1, wal.metadata_bytes + 1)
        wal.cut_head_bytes = whole_blocks(
            walrec_record_bound(wal.metadata_bytes) + walrec_record_bound(0) + WALREC_STATE_FRAME_MAX)
        wal.cut_head = <uint8_t *>walsys_aligned(wal.cut_head_bytes)
        if wal.metadata == NULL or wal.cut_head == NULL:
            raise MemoryError("WAL head")
        memcpy(wal.metadata, <const char *>metadata, wal.metadata_bytes)
        for i in range(2):
            wal.buffers[i].capacity = wal.buffer_bytes
            wal.buffers[i].base = <uint8_t *>walsys_aligned(wal.buffer_bytes)
            if wal.buffers[i].base == NULL:
                raise MemoryError("WAL buffers")
        wal.wanted.term, wal.wanted.vote, wal.wanted.commit = state
        wal.written = wal.wanted
        offset, wal.crc, wal.last_index, wal.last_term = position
        wal.covered = wal.durable_index = wal.flight_index = wal.last_index
        wal.durable_term = wal.flight_term = wal.last_term
        wal.fill_sequence = wal.durable_sequence = wal.sequence
        wal.durable_end = offset
        buffer = wal.fill = &wal.buffers[0]
        buffer.file_offset = offset // BLOCK_BYTES * BLOCK_BYTES
        buffer.head = buffer.end = offset % BLOCK_BYTES
        if c_pread(wal.fd, buffer.base, buffer.head, <int64_t>buffer.file_offset) != <int64_t>buffer.head:
            raise OSError(errno, os.strerror(errno), directory)
        wal.files.directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        wal.done_fd = walsys_eventfd()
        if wal.done_fd < 0:
            raise OSError(errno, os.strerror(errno), "eventfd")
        error = walsys_thread(&wal.disk, disk_main, wal, "wal-disk")
        wal.disk_started = error == 0
        if wal.disk_started:
            error = walfiles_start(&wal.files)
        if error:
            raise OSError(error, os.strerror(error), "WAL thread")

    def __dealloc__(self):
        cdef wal_t *wal = self.wal
        if wal == NULL:
            return
        with nogil:
            wal_close(wal)
        if wal.done_fd >= 0:
            c_close(wal.done_fd)
        free(wal.buffers[0].base)
        free(wal.buffers[1].base)
        free(wal.metadata)
        free(wal.cut_head)
        free(wal)

    def check(self, int code):
        """Raise what a negative code of the C calls means; give back any other."""
        if code >= 0:
            return code
        if code == WAL_FULL:
            raise WalFull("the write-ahead log's buffer is full")
        if code == WAL_FAILED:
            raise WalError(self.failure())
        raise WalError({WAL_TOO_LARGE: "record too large for the write-ahead log",
                        WAL_NO_MEMORY: "no memory for the write-ahead log",
                        WAL_CLOSED: "the write-ahead log is closed"}[code])

    def failure(self):
        """One line about what failed, None while nothing has."""
        cdef wal_failure failure
        if wal_error(self.wal, &failure) == WAL_OK:
            return None
        reason = os.strerror(failure.error) if failure.error else "short write"
        return (f"write-ahead log: cannot {_DID[failure.what]} segment {failure.sequence:016x} "
                f"at offset {failure.offset}: {reason}")

    def append_entry(self, int type, uint64_t term, uint64_t index, bytes data=b""):
        """wal_append_entry; for tests and rare entries."""
        self.check(wal_append_entry(self.wal, type, term, index, NULL, 0, <const uint8_t *><const char *>data,
                                    <size_t>len(data), NULL, 0))

    def append_state(self, uint64_t term, uint64_t vote, uint64_t commit):
        """wal_append_state."""
        self.check(wal_append_state(self.wal, term, vote, commit))

    def append_snapshot(self, uint64_t index, uint64_t term, bytes conf_state):
        """wal_append_snapshot; `conf_state` is a marshalled raftpb.ConfState."""
        self.check(wal_append_snapshot(self.wal, index, term, <const uint8_t *><const char *>conf_state,
                                       <size_t>len(conf_state)))

    def submit(self):
        """True when the filling buffer went to the disk thread."""
        return self.check(wal_submit(self.wal)) == 1

    def poll(self):
        """True when a batch became durable since the last call."""
        return self.check(wal_poll(self.wal)) == 1

    def flush(self):
        """Block until everything appended is on disk."""
        cdef int code
        with nogil:
            code = WAL_CLOSED if self.wal.closed else flush(self.wal)
        self.check(code)

    def release_to(self, uint64_t index):
        """wal_release_to."""
        if not self.wal.closed:
            wal_release_to(self.wal, index)

    def keep_from(self, uint64_t index):
        """wal_keep_from."""
        wal_keep_from(self.wal, index)

    @property
    def oldest_index(self):
        """wal_oldest_index."""
        return wal_oldest_index(self.wal)

    @property
    def durable_end(self):
        """wal_durable_end: (sequence, offset)."""
        cdef uint64_t sequence = 0, offset = 0
        wal_durable_end(self.wal, &sequence, &offset)
        return sequence, offset

    def close(self):
        """wal_close; a second call does nothing. Errors: WalError when the last batches could not be written."""
        cdef int code
        with nogil:
            code = wal_close(self.wal)
        if code != WAL_CLOSED:
            self.check(code)

    def segments(self):
        """(sequence, index, held) of every segment file, oldest first."""
        cdef size_t i
        cdef walfiles_t *files = &self.wal.files
        pthread_mutex_lock(&files.lock)
        rows = [(files.segments[i].sequence, files.segments[i].index, files.segments[i].fd >= 0)
                for i in range(files.segment_count)]
        pthread_mutex_unlock(&files.lock)
        return rows

    def stats(self):
        """The counters as a dict; fsync_bucket is not cumulative, bounds 0.001 * 2**i seconds."""
        cdef wal_counters counters
        wal_stats(self.wal, &counters)
        return counters

    @property
    def spare_ready(self):
        """True when the next segment's file is prepared."""
        return self.wal.files.spare_fd >= 0

    @property
    def done_fd(self):
        return wal_done_fd(self.wal)

    @property
    def durable_index(self):
        return wal_durable_index(self.wal)

    @property
    def last_index(self):
        return wal_last_index(self.wal)

    @property
    def durable_batches(self):
        return wal_durable(self.wal)

    @property
    def pending_bytes(self):
        return wal_pending_bytes(self.wal)

    @property
    def room_bytes(self):
        return wal_room(self.wal)
