"""What a batch of the write-ahead log adds to the figures; called by the disk thread alone."""

from libc.stdint cimport uint64_t

from etcdfast._ext.meters cimport (
    H_FSYNC_BYTES, H_FSYNC_ENTRIES, H_STAGE_WAL, H_WAL_FSYNC, H_WAL_WRITE, M_WAL_WRITE_BYTES, meter_count, meter_observe,
)
from etcdfast._ext.walio cimport WAL_FSYNC_BUCKETS, wal_counters
from etcdfast._ext.walsys cimport add64


cdef inline void walmeters_written(wal_counters *counters, uint64_t bytes, uint64_t nanoseconds) noexcept nogil:
    add64(&counters.writes, 1)
    add64(&counters.bytes_written, bytes)
    meter_count(M_WAL_WRITE_BYTES, bytes)
    meter_observe(H_WAL_WRITE, nanoseconds)


cdef inline void walmeters_synced(wal_counters *counters, uint64_t entries, uint64_t bytes, uint64_t nanoseconds,
                                  uint64_t since_write) noexcept nogil:
    """nanoseconds: of the sync; since_write: from the begin of the write before it."""
    cdef uint64_t bound = 1000000
    cdef int bucket = 0
    while bucket < WAL_FSYNC_BUCKETS - 1 and nanoseconds > bound:
        bound *= 2
        bucket += 1
    add64(&counters.fsync_bucket[bucket], 1)
    add64(&counters.fsync_nanoseconds, nanoseconds)
    add64(&counters.fsyncs, 1)
    meter_observe(H_WAL_FSYNC, nanoseconds)
    meter_observe(H_STAGE_WAL, since_write)
    meter_observe(H_FSYNC_ENTRIES, entries)
    meter_observe(H_FSYNC_BYTES, bytes)
