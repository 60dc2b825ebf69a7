"""Leases in C memory; see leasetable.pxd."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from etcdfast._ext.kvenc cimport put_be64
from etcdfast._ext.wire cimport (
    WIRE_END, WIRE_VARINT, wire_cursor, wire_field, wire_next, wire_put_uint, wire_uint_size,
)

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *buffer, size_t size, unsigned int flags)

cdef extern from * nogil:
    """
    #include <stdint.h>
    /* Both halves of the 128-bit product, folded: every input bit reaches every output bit. */
    static inline uint64_t lease_mix(uint64_t a, uint64_t b) {
        __uint128_t product = (__uint128_t)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    static const uint64_t LEASE_MIX_A = 0x9e3779b97f4a7c15u;
    static const uint64_t LEASE_MIX_B = 0xd1b54a32d192ed03u;
    """
    uint64_t lease_mix(uint64_t a, uint64_t b)
    uint64_t LEASE_MIX_A
    uint64_t LEASE_MIX_B

cdef enum:
    BUCKETS_MIN = 64
    QUEUE_MIN = 64
    BUCKET_LEASE = 108      # b"l"
    MALLOC_BYTES = 8        # of glibc, per block

# The head of both kinds of node.
cdef struct chain_node:
    chain_node *hash_next


cdef inline uint32_t hash_id(uint64_t seed, int64_t id) noexcept nogil:
    return <uint32_t>lease_mix(<uint64_t>id ^ seed, LEASE_MIX_A)


# ---- buckets ----

cdef inline size_t bucket_of(const lease_buckets *b, uint32_t hash) noexcept nogil:
    cdef size_t i = hash & (b.mask << 1 | 1)
    return i if i < b.buckets else i & b.mask


cdef inline uint32_t node_hash(const lease_buckets *b, chain_node *node, bint is_row) noexcept nogil:
    return hash_id(b.seed, (<lease_row *>node).id) if is_row else (<lease_key *>node).hash


cdef int buckets_init(lease_buckets *b, uint64_t seed) noexcept nogil:
    b.heads = <void **>malloc(BUCKETS_MIN * sizeof(void *))
    if b.heads == NULL:
        return TABLE_NO_MEMORY
    memset(b.heads, 0, BUCKETS_MIN * sizeof(void *))
    b.capacity = b.buckets = BUCKETS_MIN
    b.mask = BUCKETS_MIN - 1
    b.seed = seed
    return 0


cdef void buckets_link(lease_buckets *b, chain_node *node, uint64_t count, bint is_row) noexcept nogil:
    """Put a node in; `count` nodes are in then. One bucket is split when there are fewer than nodes."""
    cdef size_t i = bucket_of(b, node_hash(b, node, is_row))
    cdef size_t fresh, capacity
    cdef void *grown
    cdef chain_node *walk
    cdef chain_node *next_node
    node.hash_next = <chain_node *>b.heads[i]
    b.heads[i] = node
    if count <= b.buckets:
        return
    if b.buckets == b.capacity:
        capacity = b.capacity * 2
        # Large blocks are moved by the kernel's page tables: this copies nothing.
        grown = realloc(b.heads, capacity * sizeof(void *))
        if grown == NULL:
            return  # longer chains until there is memory again
        b.heads = <void **>grown
        b.capacity = capacity
    fresh = b.buckets
    walk = <chain_node *>b.heads[fresh & b.mask]
    b.heads[fresh & b.mask] = NULL
    b.heads[fresh] = NULL
    b.buckets += 1
    while walk != NULL:
        next_node = walk.hash_next
        i = bucket_of(b, node_hash(b, walk, is_row))
        walk.hash_next = <chain_node *>b.heads[i]
        b.heads[i] = walk
        walk = next_node
    if b.buckets == (b.mask + 1) * 2:
        b.mask = b.mask << 1 | 1


cdef void buckets_merge(lease_buckets *b) noexcept nogil:
    """Undo the last split."""
    cdef chain_node **at
    cdef void *shrunk
    if b.buckets == b.mask + 1:
        b.mask >>= 1
    b.buckets -= 1
    at = <chain_node **>&b.heads[b.buckets & b.mask]
    while at[0] != NULL:
        at = &at[0].hash_next
    at[0] = <chain_node *>b.heads[b.buckets]
    if b.buckets < b.capacity // 4:
        shrunk = realloc(b.heads, b.capacity // 2 * sizeof(void *))
        if shrunk != NULL:
            b.heads = <void **>shrunk
            b.capacity //= 2


cdef void buckets_unlink(lease_buckets *b, chain_node *node, uint64_t count, bint is_row) noexcept nogil:
    """Take a node out; `count` nodes are left. Two buckets are merged while half of them would do, so that
    none are left when the nodes are gone."""
    cdef chain_node **at = <chain_node **>&b.heads[bucket_of(b, node_hash(b, node, is_row))]
    cdef int merged = 0
    while at[0] != node:
        at = &at[0].hash_next
    at[0] = node.hash_next
    while merged < 2 and b.buckets > BUCKETS_MIN and count <= b.buckets // 2:
        buckets_merge(b)
        merged += 1


cdef class LeaseTable:

    def __cinit__(self):
        cdef uint64_t seeds[2]
        # Clients choose keys and ids: they must not be able to choose their buckets.
        if getrandom(seeds, sizeof(seeds), 0) != <ssize_t>sizeof(seeds):
            raise OSError("getrandom gave too little")
        memset(self.queues, 0, sizeof(self.queues))
        if buckets_init(&self.rows, seeds[0]) < 0 or buckets_init(&self.keys, seeds[1]) < 0:
            raise MemoryError

    def __dealloc__(self):
        cdef uint32_t i
        cdef int queue
        cdef lease_key *k
        cdef lease_key *next_key
        for i in range(self.queues[QUEUE_EXPIRY].count):
            k = self.queues[QUEUE_EXPIRY].items[i].row.keys
            while k != NULL:
                next_key = k.next
                free(k)
                k = next_key
            free(self.queues[QUEUE_EXPIRY].items[i].row)
        for queue in range(QUEUES):
            free(self.queues[queue].items)
        free(self.rows.heads)
        free(self.keys.heads)

    # ---- rows ----

    cdef lease_row *find(self, int64_t id) noexcept nogil:
        cdef lease_row *row = <lease_row *>self.rows.heads[bucket_of(&self.rows, hash_id(self.rows.seed, id))]
        while row != NULL and row.id != id:
            row = row.hash_next
        return row

    cdef lease_row *add(self, int64_t id, int64_t ttl, int64_t expiry_ns) noexcept nogil:
        cdef lease_row *row = <lease_row *>malloc(sizeof(lease_row))
        if row == NULL:
            return NULL
        memset(row, 0, sizeof(lease_row))
        row.id = id
        row.ttl = ttl
        row.expiry_ns = expiry_ns
        row.position[QUEUE_EXPIRY] = row.position[QUEUE_CHECKPOINT] = NOT_QUEUED
        if self.enqueue(row, QUEUE_EXPIRY, expiry_ns) < 0:
            free(row)
            return NULL
        self.count += 1
        buckets_link(&self.rows, <chain_node *>row, self.count, True)
        return row

    cdef void drop(self, lease_row *row) noexcept nogil:
        cdef lease_key *k
        while row.keys != NULL:
            k = row.keys
            self.unhang(k)
            free(k)
        self.dequeue(row, QUEUE_EXPIRY)
        self.dequeue(row, QUEUE_CHECKPOINT)
        self.count -= 1
        buckets_unlink(&self.rows, <chain_node *>row, self.count, True)
        free(row)

    # ---- keys ----

    cdef uint32_t hash_of(self, const char *key, uint32_t key_len) noexcept nogil:
        cdef uint64_t h = lease_mix(self.keys.seed ^ key_len, LEASE_MIX_A)
        cdef uint64_t word = 0
        while key_len >= 8:
            memcpy(&word, key, 8)
            h = lease_mix(h ^ word, LEASE_MIX_B)
            key += 8
            key_len -= 8
        if key_len:
            word = 0
            memcpy(&word, key, key_len)
            h = lease_mix(h ^ word, LEASE_MIX_B)
        return <uint32_t>(h ^ h >> 32)

    cdef lease_key *find_key(self, const char *key, uint32_t key_len, uint32_t hash) noexcept nogil:
        cdef lease_key *k = <lease_key *>self.keys.heads[bucket_of(&self.keys, hash)]
        while k != NULL and not (
                k.hash == hash and k.key_len == key_len and memcmp(key_bytes(k), key, key_len) == 0):
            k = k.hash_next
        return k

    cdef void unhang(self, lease_key *k) noexcept nogil:
        if k.prev != NULL:
            k.prev.next = k.next
        else:
            k.lease.keys = k.next
        if k.next != NULL:
            k.next.prev = k.prev
        k.lease.key_count -= 1
        self.attached -= 1
        buckets_unlink(&self.keys, <chain_node *>k, self.attached, False)

    cdef int hang(self, const char *key, uint32_t key_len, lease_row *row) noexcept nogil:
        """The key onto the row, from wherever it hangs; NULL: from there only."""
        cdef uint32_t hash = self.hash_of(key, key_len)
        cdef lease_key *k = self.find_key(key, key_len, hash)
        if k != NULL:
            if k.lease == row:
                return 0
            self.unhang(k)
            if row == NULL:
                free(k)
        elif row != NULL:
            k = <lease_key *>malloc(sizeof(lease_key) + key_len)
            if k == NULL:
                return TABLE_NO_MEMORY
            k.hash = hash
            k.key_len = key_len
            memcpy(<char *>k + sizeof(lease_key), key, key_len)
        if row == NULL:
            return 0
        k.lease = row
        k.prev = NULL
        k.next = row.keys
        if row.keys != NULL:
            row.keys.prev = k
        row.keys = k
        row.key_count += 1
        self.attached += 1
        buckets_link(&self.keys, <chain_node *>k, self.attached, False)
        return 0

    cdef int attach(self, const char *key, uint32_t key_len, int64_t id) noexcept nogil:
        return self.hang(key, key_len, self.find(id))

    cdef void detach(self, const char *key, uint32_t key_len) noexcept nogil:
        self.hang(key, key_len, NULL)

    # ---- start ----

    cdef int restore(self, int64_t id, const void *value, uint64_t size, int64_t revision) noexcept nogil:
        cdef wire_cursor c
        cdef wire_field f
        cdef int rc
        cdef int64_t stored_id = 0
        cdef int64_t ttl = 0
        cdef int64_t remaining = 0
        cdef lease_row *row
        c.pos = <const uint8_t *>value
        c.end = c.pos + size
        while True:
            rc = wire_next(&c, &f)
            if rc == WIRE_END:
                break
            if rc < 0:
                return TABLE_CORRUPT
            if f.type == WIRE_VARINT:
                if f.number == 1:
                    stored_id = <int64_t>f.value
                elif f.number == 2:
                    ttl = <int64_t>f.value
                elif f.number == 3:
                    remaining = <int64_t>f.value
        if stored_id != id or id == 0:
            return TABLE_CORRUPT
        row = self.find(id)
        if row == NULL:
            row = self.add(id, ttl, INT64_MAX)
            if row == NULL:
                return TABLE_NO_MEMORY
        elif not row.flags & ROW_PLACEHOLDER:
            return TABLE_CORRUPT
        row.flags = 0
        row.ttl = ttl
        row.remaining = remaining
        row.stored_rev = revision
        return 0

    cdef int restore_key(self, const char *key, uint32_t key_len, int64_t id) noexcept nogil:
        cdef lease_row *row = self.find(id)
        if row == NULL:
            row = self.add(id, 0, INT64_MAX)
            if row == NULL:
                return TABLE_NO_MEMORY
            row.flags = ROW_PLACEHOLDER
        return self.hang(key, key_len, row)

    cdef uint64_t loaded(self) noexcept nogil:
        cdef lease_queue *q = &self.queues[QUEUE_EXPIRY]
        cdef uint64_t dropped = 0
        cdef uint32_t i = q.count
        # Backwards: a row dropped is replaced by one from behind it, which has been looked at.
        while i > 0:
            i -= 1
            if q.items[i].row.flags & ROW_PLACEHOLDER:
                self.drop(q.items[i].row)
                dropped += 1
        return dropped

    # ---- queues ----

    cdef void lift(self, lease_queue *q, int queue, uint32_t i, queue_item item) noexcept nogil:
        """Place `item` at i or above."""
        cdef uint32_t parent
        while i > 0:
            parent = (i - 1) >> 1
            if q.items[parent].time_ns <= item.time_ns:
                break
            q.items[i] = q.items[parent]
            q.items[i].row.position[queue] = i
            i = parent
        q.items[i] = item
        item.row.position[queue] = i

    cdef void sink(self, lease_queue *q, int queue, uint32_t i, queue_item item) noexcept nogil:
        """Place `item` at i or below."""
        cdef uint64_t child
        while True:
            child = 2 * <uint64_t>i + 1
            if child >= q.count:
                break
            if child + 1 < q.count and q.items[child + 1].time_ns < q.items[child].time_ns:
                child += 1
            if item.time_ns <= q.items[child].time_ns:
                break
            q.items[i] = q.items[child]
            q.items[i].row.position[queue] = i
            i = <uint32_t>child
        q.items[i] = item
        item.row.position[queue] = i

    cdef int enqueue(self, lease_row *row, int queue, int64_t time_ns) noexcept nogil:
        cdef lease_queue *q = &self.queues[queue]
        cdef uint32_t capacity
        cdef uint32_t i = row.position[queue]
        cdef queue_item item
        cdef void *grown
        item.time_ns = time_ns
        item.row = row
        if i == NOT_QUEUED:
            if q.count == q.capacity:
                if q.capacity >= <uint32_t>1 << 31:
                    return TABLE_NO_MEMORY
                capacity = q.capacity * 2 if q.capacity else QUEUE_MIN
                grown = realloc(q.items, capacity * sizeof(queue_item))
                if grown == NULL:
                    return TABLE_NO_MEMORY
                q.items = <queue_item *>grown
                q.capacity = capacity
            q.count += 1
            self.lift(q, queue, q.count - 1, item)
        elif time_ns < q.items[i].time_ns:
            self.lift(q, queue, i, item)
        else:
            self.sink(q, queue, i, item)
        return 0

    cdef void dequeue(self, lease_row *row, int queue) noexcept nogil:
        cdef lease_queue *q = &self.queues[queue]
        cdef uint32_t i = row.position[queue]
        cdef queue_item last
        cdef void *shrunk
        if i == NOT_QUEUED:
            return
        row.position[queue] = NOT_QUEUED
        q.count -= 1
        if i != q.count:
            last = q.items[q.count]
            if i > 0 and last.time_ns < q.items[(i - 1) >> 1].time_ns:
                self.lift(q, queue, i, last)
            else:
                self.sink(q, queue, i, last)
        if q.capacity > QUEUE_MIN and q.count < q.capacity // 4:
            shrunk = realloc(q.items, q.capacity // 2 * sizeof(queue_item))
            if shrunk != NULL:
                q.items = <queue_item *>shrunk
                q.capacity //= 2

    cdef void rebuild(self) noexcept nogil:
        cdef lease_queue *q = &self.queues[QUEUE_EXPIRY]
        cdef uint32_t i
        for i in range(q.count):
            q.items[i].time_ns = q.items[i].row.expiry_ns
        i = q.count // 2
        while i > 0:
            i -= 1
            self.sink(q, QUEUE_EXPIRY, i, q.items[i])

    cdef void clear_queue(self, int queue) noexcept nogil:
        cdef lease_queue *q = &self.queues[queue]
        cdef uint32_t i
        for i in range(q.count):
            q.items[i].row.position[queue] = NOT_QUEUED
        free(q.items)
        memset(q, 0, sizeof(lease_queue))


    # ---- bucket lease, for hashes ----

    def items(self):
        """(stored key, leasepb.Lease) of every lease as of now, in the order of the keys, as an iterator."""
        return LeaseItems(self)

    @property
    def held_bytes(self):
        """Memory of rows, queues and hash; that of the keys apart."""
        cdef size_t held = self.count * (sizeof(lease_row) + MALLOC_BYTES) + self.rows.capacity * sizeof(void *)
        return held + (
            <size_t>self.queues[QUEUE_EXPIRY].capacity + self.queues[QUEUE_CHECKPOINT].capacity) * sizeof(queue_item)


cdef class LeaseItems:
    """A copy of all rows: a heap by id, so that sorting is paid for item by item."""
    cdef lease_row *rows
    cdef uint32_t count

    def __cinit__(self, LeaseTable table):
        cdef lease_queue *q = &table.queues[QUEUE_EXPIRY]
        cdef uint32_t i
        self.rows = <lease_row *>malloc((q.count + 1) * sizeof(lease_row))
        if self.rows == NULL:
            raise MemoryError
        self.count = q.count
        for i in range(q.count):
            self.rows[i] = q.items[i].row[0]
        i = self.count // 2
        while i > 0:
            i -= 1
            self.sink(i, self.rows[i])

    def __dealloc__(self):
        free(self.rows)

    cdef void sink(self, uint32_t i, lease_row row) noexcept nogil:
        cdef uint64_t child
        while True:
            child = 2 * <uint64_t>i + 1
            if child >= self.count:
                break
            if child + 1 < self.count and <uint64_t>self.rows[child + 1].id < <uint64_t>self.rows[child].id:
                child += 1
            if <uint64_t>row.id <= <uint64_t>self.rows[child].id:
                break
            self.rows[i] = self.rows[child]
            i = <uint32_t>child
        self.rows[i] = row

    def __iter__(self):
        return self

    def __next__(self):
        cdef uint8_t value[LEASE_VALUE_MAX]
        cdef lease_row row
        if self.count == 0:
            raise StopIteration
        row = self.rows[0]
        self.count -= 1
        if self.count:
            self.sink(0, self.rows[self.count])
        return stored_key(row.id), PyBytes_FromStringAndSize(<char *>value, <Py_ssize_t>put_lease_value(value, &row))


cdef bytes stored_key(int64_t id):
    cdef uint8_t key[STORED_KEY_BYTES]
    key[0] = BUCKET_LEASE
    put_be64(key + 1, <uint64_t>id)
    return PyBytes_FromStringAndSize(<char *>key, STORED_KEY_BYTES)


cdef uint64_t lease_value_size(const lease_row *row) noexcept nogil:
    cdef uint64_t n = wire_uint_size(1, <uint64_t>row.id)
    if row.ttl:
        n += wire_uint_size(2, <uint64_t>row.ttl)
    if row.remaining:
        n += wire_uint_size(3, <uint64_t>row.remaining)
    return n


cdef uint64_t put_lease_value(void *p, const lease_row *row) noexcept nogil:
    """Fields of 0 are left out, as etcd's encoder does; an id never is 0."""
    cdef uint8_t *at = wire_put_uint(<uint8_t *>p, 1, <uint64_t>row.id)
    if row.ttl:
        at = wire_put_uint(at, 2, <uint64_t>row.ttl)
    if row.remaining:
        at = wire_put_uint(at, 3, <uint64_t>row.remaining)
    return <uint64_t>(at - <uint8_t *>p)
