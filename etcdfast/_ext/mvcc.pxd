"""Key-value state of the apply process: revision index, current revision, and the turn's write batch.

A change goes to the index at once and to RocksDB with the turn's batch; until that is written, records
of the turn are found in `pending`. One thread; nothing here reads a clock. Sources: reference/formats.md
sections 6.2 and 9.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from etcdfast._ext.changes cimport kv_change
from etcdfast._ext.kvreq cimport bytes_view
from etcdfast._ext.leasetable cimport LeaseTable
from etcdfast._ext.revindex cimport RevIndex


cdef class Mvcc:
    cdef readonly RevIndex index
    cdef readonly LeaseTable leases
    cdef readonly int64_t current       # revision, >= 1
    cdef readonly int64_t compacted     # revision, -1 when never compacted
    cdef readonly int64_t in_use_bytes  # keys and values of all buckets; of a tombstone its key only
    cdef readonly bint leased           # some revision has a lease, or had one
    cdef readonly uint64_t batch_changes  # records in the turn's batch, of any kind
    cdef int64_t sub                    # changes of the transaction under way
    cdef object read                    # bytes key -> bytes value or None
    cdef object walk                    # bytes key -> iterator of (key, value) from there on
    cdef object new_batch
    cdef object write
    cdef object batch
    cdef object batch_put
    cdef list pending_values            # stored KeyValues of the turn, in revision order
    cdef kv_change *pending             # the same, with the tombstones' keys
    cdef size_t pending_count
    cdef size_t pending_capacity
    cdef public bint followed           # somebody wants the changes of a batch once it is written
    cdef list changed_values            # keeps the bytes that changes point to
    cdef kv_change *changes             # of the batch last written, while followed; until forget_changes
    cdef size_t change_count
    cdef size_t change_capacity

    # Revision that reads see: the current one, or that of the running transaction once it wrote.
    cdef inline int64_t visible(self) noexcept nogil:
        return self.current + (1 if self.sub else 0)

    # A write transaction is begin, then changes, then commit. commit returns whether anything changed.
    cdef inline void begin(self) noexcept nogil:
        self.sub = 0

    cdef inline bint commit(self) noexcept nogil:
        cdef bint changed = self.sub != 0
        if changed:
            self.current += 1
            self.sub = 0
        return changed

    # Store a value. Key and value may lie in a ring: they are copied. MemoryError.
    cdef int put(self, const bytes_view *key, const bytes_view *value, int64_t lease) except -1
    # Tombstones for every live key of the range; how many.
    cdef int64_t delete_range(self, const bytes_view *key, const bytes_view *end) except -1
    # The stored KeyValue of a revision the index knows. StoreCorrupt when it is not there.
    cdef bytes fetch(self, int64_t main, int64_t sub)
    cdef int add_pending(self, int64_t main, int64_t sub, bytes value, bint is_tombstone) except -1
    cdef void forget_changes(self) noexcept
    cdef int tombstone(self, const char *key, uint32_t key_len) except -1
