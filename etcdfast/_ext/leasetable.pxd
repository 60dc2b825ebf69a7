"""Leases in C memory: rows by id, two queues by time, and which keys hang on which lease.

A row is found in O(1), granted, expired and dropped in O(log n); a renewal only writes a later time into the
row, and its place in the queue is put right when the old time comes. Both hash tables grow and shrink by one
bucket at a time, so no single put or grant pays for moving a million. One thread; no clock: every time is
given, in CLOCK_MONOTONIC ns or whatever the caller counts in.

About 130 bytes per lease, all included; a key that hangs on a lease costs 56 bytes and itself.
"""

from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint16_t, uint32_t, uint64_t

cdef enum:
    TABLE_NO_MEMORY = -1
    TABLE_CORRUPT = -2      # restore: no leasepb.Lease, or one that is there already

cdef enum:
    QUEUE_EXPIRY = 0        # every row is in it, at its expiry or before
    QUEUE_CHECKPOINT = 1    # rows whose remaining time is to be written down
    QUEUES = 2

cdef enum:
    NOT_QUEUED = 0xFFFFFFFF

cdef enum:
    ROW_OFFERED = 1         # its revoke is proposed
    ROW_AWAITED = 2         # a keep-alive waits for what becomes of it
    ROW_RESETTING = 4       # a checkpoint of 0 is proposed, or will be at once
    ROW_REVOKING = 8        # its keys are being deleted, slice by slice
    ROW_PLACEHOLDER = 16    # only during load: keys named it, it has not been met itself

cdef inline int64_t never() noexcept nogil:
    return INT64_MAX

cdef struct lease_key

cdef struct lease_row:
    lease_row *hash_next
    int64_t id
    int64_t ttl             # granted, seconds
    int64_t remaining       # of the last checkpoint, seconds; 0 none
    int64_t expiry_ns       # never() while this member is not primary
    int64_t stored_rev      # revision that its stored value lies at
    lease_key *keys         # the newest first
    uint32_t key_count
    uint32_t position[2]    # in the queues, NOT_QUEUED for none
    uint16_t flags          # ROW_*
    uint16_t offer          # place among those offered, while ROW_OFFERED

cdef struct lease_key:
    lease_key *hash_next
    lease_key *next         # of the same lease
    lease_key *prev
    lease_row *lease
    uint32_t hash
    uint32_t key_len        # the key's bytes follow

ctypedef struct queue_item:
    int64_t time_ns         # not after what the row says
    lease_row *row

ctypedef struct lease_queue:
    queue_item *items       # binary heap
    uint32_t count
    uint32_t capacity

# Buckets of a hash that grows by splitting one of them after the other (linear hashing).
ctypedef struct lease_buckets:
    void **heads
    size_t capacity         # heads there is room for
    size_t buckets          # in use, >= 1
    size_t mask             # of the round before: those at or above `buckets` fall back to it
    uint64_t seed


cdef inline const char *key_bytes(const lease_key *k) noexcept nogil:
    return <const char *>k + sizeof(lease_key)


cdef class LeaseTable:
    cdef readonly uint64_t count        # leases
    cdef readonly uint64_t attached     # keys that hang on one; 0: puts and deletes need not call detach
    cdef lease_queue queues[2]
    cdef lease_buckets rows
    cdef lease_buckets keys

    # ---- what Mvcc calls: each put and each tombstone ----

    # The key hangs on lease `id` from now on, and on no other. A lease that is not there is no error: the
    # key then hangs on none. 0, or TABLE_NO_MEMORY.
    cdef int attach(self, const char *key, uint32_t key_len, int64_t id) noexcept nogil
    # The key hangs on no lease any more. `key` may lie in the table itself.
    cdef void detach(self, const char *key, uint32_t key_len) noexcept nogil

    # ---- start ----

    # A stored lease: `value` is its leasepb.Lease, filed at `revision`. 0, TABLE_NO_MEMORY, TABLE_CORRUPT.
    cdef int restore(self, int64_t id, const void *value, uint64_t size, int64_t revision) noexcept nogil
    # As attach, but the lease itself may come later in the store. 0, or TABLE_NO_MEMORY.
    cdef int restore_key(self, const char *key, uint32_t key_len, int64_t id) noexcept nogil
    # The end: leases that keys named and the store does not hold go. How many those were.
    cdef uint64_t loaded(self) noexcept nogil

    # ---- rows ----

    cdef lease_row *find(self, int64_t id) noexcept nogil
    # NULL without memory. Precondition: no such lease. In QUEUE_EXPIRY at `expiry_ns`.
    cdef lease_row *add(self, int64_t id, int64_t ttl, int64_t expiry_ns) noexcept nogil
    # The row with its keys, and its place in all queues.
    cdef void drop(self, lease_row *row) noexcept nogil
    # Take a key off its lease without freeing it: who deletes it still needs its bytes, and frees it then.
    cdef void unhang(self, lease_key *k) noexcept nogil

    # ---- queues ----

    # Put a row into a queue, or move it within. 0, or TABLE_NO_MEMORY.
    cdef int enqueue(self, lease_row *row, int queue, int64_t time_ns) noexcept nogil
    cdef void dequeue(self, lease_row *row, int queue) noexcept nogil
    # Take every item's time from its row's expiry: O(n).
    cdef void rebuild(self) noexcept nogil
    cdef void clear_queue(self, int queue) noexcept nogil

    cdef void lift(self, lease_queue *q, int queue, uint32_t i, queue_item item) noexcept nogil
    cdef void sink(self, lease_queue *q, int queue, uint32_t i, queue_item item) noexcept nogil
    cdef lease_key *find_key(self, const char *key, uint32_t key_len, uint32_t hash) noexcept nogil
    cdef uint32_t hash_of(self, const char *key, uint32_t key_len) noexcept nogil
    cdef int hang(self, const char *key, uint32_t key_len, lease_row *row) noexcept nogil


cdef enum:
    STORED_KEY_BYTES = 9        # bucket byte and BE64 id
    LEASE_VALUE_MAX = 33

cdef bytes stored_key(int64_t id)
# Bytes of a row's leasepb.Lease, and the message itself at p (at most LEASE_VALUE_MAX bytes).
cdef uint64_t lease_value_size(const lease_row *row) noexcept nogil
cdef uint64_t put_lease_value(void *p, const lease_row *row) noexcept nogil
