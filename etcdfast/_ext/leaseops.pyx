"""Leases carried out; see leaseops.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memmove

from etcdfast._ext.authlease cimport auth_may_write_row
from etcdfast._ext.errids cimport (
    ERR_CORRUPT, ERR_LEASE_EXIST, ERR_LEASE_NOT_FOUND, ERR_LEASE_TTL_TOO_LARGE, ERR_NONE,
    ERR_NO_SPACE,
)
from etcdfast._ext.kvops cimport ALARM_CORRUPT, OPS_MALFORMED, KvOps
from etcdfast._ext.kvreq cimport (
    INTERNAL_DELETE, INTERNAL_LEASE_CHECKPOINT, INTERNAL_LEASE_GRANT, INTERNAL_LEASE_REVOKE, INTERNAL_PUT,
    INTERNAL_TXN, bytes_view, cursor_at, decode_lease, decode_lease_checkpoint, decode_lease_grant,
    lease_checkpoint, lease_grant_request, lease_request,
)
from etcdfast._ext.leasetable cimport (
    LEASE_VALUE_MAX, QUEUE_CHECKPOINT, QUEUE_EXPIRY, ROW_AWAITED, ROW_OFFERED, ROW_RESETTING,
    ROW_REVOKING, LeaseTable, key_bytes, lease_key, lease_queue, lease_row, lease_value_size, put_lease_value,
    stored_key,
)
from etcdfast._ext.meters cimport H_LEASE_TTL, M_DELETES, meter_count, meter_observe
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbuf cimport (
    outbuf, outbuf_bytes_field, outbuf_close, outbuf_free, outbuf_init, outbuf_open, outbuf_reset,
    outbuf_uint_field,
)
from etcdfast._ext.wire cimport (
    WIRE_BYTES, WIRE_END, wire_cursor, wire_field, wire_next,
)

cdef enum:
    KEY_BYTES = 8                   # of a stored lease, as etcd counts it: without our bucket byte
    HEAP_KEEP = 65536               # keys: a larger heap is given back after the revoke
    GATHER_PER_DELETE = 4           # taking a key into the heap costs about a quarter of deleting it

cdef int64_t SECOND_NS = 1000000000
cdef int64_t TTL_MAX = 9000000000           # seconds, etcd's MaxLeaseTTL: still fits int64 in ns
# Answers are on their way while the TTL runs. etcd looks for expired leases every 500 ms, so its leases live
# on for 250 ms on average; ours do so exactly, and no client sees one end early because its answer was slow.
cdef int64_t GRACE_NS = 250000000
cdef int64_t RETRY_NS = 3000000000          # until a proposal that came to nothing is made again, as etcd
# A million leases checkpointed every five minutes need 13 requests of CHECKPOINTS_MAX per second.
cdef int64_t CHECKPOINT_GAP_NS = 25000000


cdef int64_t deadline(int64_t now_ns, int64_t seconds, int64_t extra_ns) noexcept nogil:
    """now + seconds + extra, at most the instant before never; seconds may come from anybody's log."""
    if seconds < 0:
        seconds = 0
    elif seconds > TTL_MAX:
        seconds = TTL_MAX
    now_ns += extra_ns
    if seconds * SECOND_NS >= INT64_MAX - now_ns:
        return INT64_MAX - 1
    return now_ns + seconds * SECOND_NS


cdef int key_order(const lease_key *a, const lease_key *b) noexcept nogil:
    cdef int order = memcmp(key_bytes(a), key_bytes(b), a.key_len if a.key_len < b.key_len else b.key_len)
    return order if order else (a.key_len > b.key_len) - (a.key_len < b.key_len)


cdef struct listed_lease:
    int64_t expiry_ns
    int64_t id


cdef int listed_order(const void *a, const void *b) noexcept nogil:
    cdef const listed_lease *x = <const listed_lease *>a
    cdef const listed_lease *y = <const listed_lease *>b
    if x.expiry_ns != y.expiry_ns:
        return 1 if x.expiry_ns > y.expiry_ns else -1
    return (x.id > y.id) - (x.id < y.id)


cdef class LeaseOps:
    """`min_ttl` in seconds; `extend_ns`: election timeout, which leases get on top when a member begins to lead;
    `checkpoint_ns`: between two checkpoints of a lease, 0 for none. The table becomes that of `ops` too."""

    def __cinit__(self, KvOps ops, LeaseTable table, int64_t min_ttl, int64_t extend_ns, int64_t checkpoint_ns):
        self.ops = ops
        self.mvcc = ops.mvcc
        self.table = table
        ops.leases = table
        self.min_ttl = min_ttl
        self.extend_ns = extend_ns
        self.checkpoint_ns = checkpoint_ns
        self.retry_ns = INT64_MAX
        self.heap = NULL
        self.settled_ids = NULL
        self.revoking = NULL
        outbuf_init(&self.made)

    def __dealloc__(self):
        free(self.heap)
        free(self.settled_ids)
        outbuf_free(&self.made)

    cdef int64_t effective_ttl(self, const lease_row *row) noexcept nogil:
        # A lease stored when the election timeout was shorter gets today's minimum, as etcd does at start.
        return row.ttl if row.ttl > self.min_ttl else self.min_ttl

    cdef int64_t time_left(self, const lease_row *row) noexcept nogil:
        """Seconds that a lease has from its last checkpoint or from its grant."""
        return row.remaining if row.remaining > 0 else self.effective_ttl(row)

    # ---- entries ----

    cdef int store(self, lease_row *row, int64_t replaced, int64_t old_bytes) except -1:
        cdef uint8_t value[LEASE_VALUE_MAX]
        cdef uint64_t size = put_lease_value(value, row)
        self.mvcc.meta_put(stored_key(row.id), PyBytes_FromStringAndSize(<char *>value, <Py_ssize_t>size), replaced,
                           KEY_BYTES + <int64_t>size - old_bytes)
        row.stored_rev = self.mvcc.current
        return 0

    cdef int grant(self, const bytes_view *message, outbuf *out) except -1:
        cdef lease_grant_request r
        cdef lease_row *row
        cdef int64_t ttl
        if decode_lease_grant(message, &r) < 0:
            return OPS_MALFORMED
        if self.ops.alarms:
            return ERR_CORRUPT if self.ops.alarms & ALARM_CORRUPT else ERR_NO_SPACE
        if r.id == 0:
            return ERR_LEASE_NOT_FOUND
        if r.ttl > TTL_MAX:
            return ERR_LEASE_TTL_TOO_LARGE
        if self.table.find(r.id) != NULL:
            return ERR_LEASE_EXIST
        ttl = r.ttl if r.ttl > self.min_ttl else self.min_ttl
        row = self.table.add(r.id, ttl, deadline(self.now_ns, ttl, GRACE_NS) if self.primary else INT64_MAX)
        if row == NULL:
            raise MemoryError
        self.store(row, 0, 0)
        self.plan_checkpoint(row)
        self.granted += 1
        meter_observe(H_LEASE_TTL, <uint64_t>ttl)
        self.ops.header(out, self.mvcc.current)
        outbuf_uint_field(out, 2, <uint64_t>r.id)
        outbuf_uint_field(out, 3, <uint64_t>ttl)
        return ERR_NONE

    cdef int checkpoint(self, const bytes_view *message) except -1:
        cdef wire_cursor c
        cdef wire_field f
        cdef bytes_view part
        cdef lease_checkpoint r
        cdef lease_row *row
        cdef int64_t old_bytes
        cdef int rc
        cursor_at(&c, message)
        while True:
            rc = wire_next(&c, &f)
            if rc == WIRE_END:
                return ERR_NONE
            if rc < 0:
                return OPS_MALFORMED
            if f.number != 1 or f.type != WIRE_BYTES:
                continue
            part.data = f.data
            part.size = f.size
            if decode_lease_checkpoint(&part, &r) < 0:
                return OPS_MALFORMED
            row = self.table.find(r.id)
            if row == NULL:
                continue
            if row.remaining != r.remaining:
                old_bytes = KEY_BYTES + <int64_t>lease_value_size(row)
                row.remaining = r.remaining
                self.store(row, row.stored_rev, old_bytes)
            if row.flags & ROW_RESETTING:
                if r.remaining > 0:
                    continue  # one that was under way already: that of 0 is behind it
                row.flags &= ~ROW_RESETTING
                self.settle(row)
            self.plan_checkpoint(row)

    cdef int plan_checkpoint(self, lease_row *row) except -1:
        """Have the remaining time written down after the interval, if the lease lives longer than that."""
        if not self.primary or row.flags & ROW_OFFERED:
            return 0
        if self.checkpoint_ns == 0 or self.time_left(row) <= self.checkpoint_ns // SECOND_NS:
            self.table.dequeue(row, QUEUE_CHECKPOINT)
        elif self.table.enqueue(row, QUEUE_CHECKPOINT, self.now_ns + self.checkpoint_ns) < 0:
            raise MemoryError
        return 0

    # ---- revoke ----

    cdef int revoke(self, const bytes_view *message, outbuf *out) except -1:
        cdef lease_request r
        cdef lease_row *row
        cdef int error
        if decode_lease(message, &r) < 0:
            return OPS_MALFORMED
        if self.ops.alarms & ALARM_CORRUPT:
            return ERR_CORRUPT
        row = self.table.find(r.id)
        if row == NULL:
            return ERR_LEASE_NOT_FOUND
        if not self.ops.caller.free:
            error = auth_may_write_row(&self.ops.caller, row)
            if error:
                return error
        if self.revoking != NULL:
            raise AssertionError("an entry was handed over between two slices of a revoke")
        self.mvcc.begin()
        self.revoking = row
        row.flags |= ROW_REVOKING
        self.revoking_sub = 0
        self.heap_count = 0
        self.gathered_to = row.keys
        if self.revoke_step(out, REVOKE_KEYS_MAX) != 0:
            return LEASE_SLICED
        return ERR_NONE

    cdef int revoke_step(self, outbuf *out, int64_t keys_max) except -1:
        self.mvcc.sub = self.revoking_sub
        self.delete_keys(keys_max)
        if self.revoking.keys == NULL:
            return self.finish_revoke(out)
        self.revoking_sub = self.mvcc.sub
        self.mvcc.sub = 0
        return 1

    cdef int delete_keys(self, int64_t keys_max) except -1:
        """Tombstones in key order, as on every member: first all keys go into a heap, then they come out."""
        cdef lease_key *k
        cdef int64_t left = keys_max * GATHER_PER_DELETE
        while self.gathered_to != NULL:
            if left <= 0:
                return 0
            self.push_key(self.gathered_to)
            self.gathered_to = self.gathered_to.next
            left -= 1
        while self.heap_count and left > 0:
            k = self.pop_key()
            # Off the table first: the tombstone detaches its key, and would free these bytes.
            self.table.unhang(k)
            self.mvcc.tombstone(key_bytes(k), k.key_len)
            self.ops.writes += 1
            meter_count(M_DELETES, 1)
            free(k)
            left -= GATHER_PER_DELETE
        return 0

    cdef int finish_revoke(self, outbuf *out) except -1:
        cdef lease_row *row = self.revoking
        self.mvcc.commit()
        self.ops.count_txn()
        self.mvcc.meta_delete(stored_key(row.id), row.stored_rev, -KEY_BYTES - <int64_t>lease_value_size(row))
        self.revoking = NULL
        if row.flags & ROW_OFFERED:
            self.expired += 1
            self.take_back(row)
        self.settle(row)
        self.table.drop(row)
        self.revoked += 1
        if self.heap_capacity > HEAP_KEEP:
            free(self.heap)
            self.heap = NULL
            self.heap_capacity = 0
        self.ops.header(out, self.mvcc.current)
        return 0

    cdef int push_key(self, lease_key *key) except -1:
        cdef size_t i, parent
        cdef void *grown
        if self.heap_count == self.heap_capacity:
            self.heap_capacity = self.heap_capacity * 2 if self.heap_capacity else 1024
            grown = realloc(self.heap, self.heap_capacity * sizeof(lease_key *))
            if grown == NULL:
                raise MemoryError
            self.heap = <lease_key **>grown
        i = self.heap_count
        self.heap_count += 1
        while i > 0:
            parent = (i - 1) >> 1
            if key_order(self.heap[parent], key) <= 0:
                break
            self.heap[i] = self.heap[parent]
            i = parent
        self.heap[i] = key
        return 0

    cdef lease_key *pop_key(self) noexcept nogil:
        cdef lease_key *smallest = self.heap[0]
        cdef lease_key *last
        cdef size_t i = 0
        cdef size_t child
        self.heap_count -= 1
        last = self.heap[self.heap_count]
        while True:
            child = 2 * i + 1
            if child >= self.heap_count:
                break
            if child + 1 < self.heap_count and key_order(self.heap[child + 1], self.heap[child]) < 0:
                child += 1
            if key_order(last, self.heap[child]) <= 0:
                break
            self.heap[i] = self.heap[child]
            i = child
        self.heap[i] = last
        return smallest

    # ---- calls ----

    cdef int keep_alive(self, const bytes_view *message, outbuf *out, int64_t now_ns) except -1:
        cdef lease_request r
        cdef lease_row *row
        cdef int64_t expiry_ns
        if decode_lease(message, &r) < 0:
            return OPS_MALFORMED
        if not self.primary:
            return LEASE_NOT_PRIMARY
        row = self.table.find(r.id)
        if row == NULL:
            self.ops.header(out, self.mvcc.current)
            if r.id:
                outbuf_uint_field(out, 2, <uint64_t>r.id)
            return ERR_NONE
        if row.flags & (ROW_OFFERED | ROW_REVOKING):
            row.flags |= ROW_AWAITED
            return LEASE_WAITS
        # Mostly later than its place in the queue says, which is put right when that time comes; earlier where
        # promote added an election timeout.
        expiry_ns = deadline(now_ns, self.effective_ttl(row), GRACE_NS)
        if expiry_ns < row.expiry_ns:
            self.table.enqueue(row, QUEUE_EXPIRY, expiry_ns)
        row.expiry_ns = expiry_ns
        if row.remaining > 0:
            # The next leader would count from the checkpoint: what is promised now must be in the log first.
            row.flags |= ROW_AWAITED
            if not row.flags & ROW_RESETTING:
                row.flags |= ROW_RESETTING
                if self.table.enqueue(row, QUEUE_CHECKPOINT, 0) < 0:
                    raise MemoryError
            return LEASE_WAITS
        self.renewed += 1
        self.ops.header(out, self.mvcc.current)
        outbuf_uint_field(out, 2, <uint64_t>r.id)
        outbuf_uint_field(out, 3, <uint64_t>self.effective_ttl(row))
        return ERR_NONE

    cdef int time_to_live(self, const bytes_view *message, outbuf *out, int64_t now_ns) except -1:
        cdef lease_request r
        cdef lease_row *row
        cdef lease_key *k
        cdef int64_t left
        if decode_lease(message, &r) < 0:
            return OPS_MALFORMED
        if not self.primary:
            return LEASE_NOT_PRIMARY
        row = self.table.find(r.id)
        self.ops.header(out, self.mvcc.current)
        if r.id:
            outbuf_uint_field(out, 2, <uint64_t>r.id)
        if row == NULL:
            outbuf_uint_field(out, 3, <uint64_t>-1)
            return ERR_NONE
        left = (row.expiry_ns - GRACE_NS - now_ns) // SECOND_NS
        if left:
            outbuf_uint_field(out, 3, <uint64_t>left)
        outbuf_uint_field(out, 4, <uint64_t>self.effective_ttl(row))
        if r.keys:
            k = row.keys
            while k != NULL:
                outbuf_bytes_field(out, 5, key_bytes(k), k.key_len)
                k = k.next
        return ERR_NONE

    cdef int leases(self, outbuf *out) except -1:
        cdef lease_queue *q = &self.table.queues[QUEUE_EXPIRY]
        cdef listed_lease *listed
        cdef uint64_t mark
        cdef uint32_t i
        self.ops.header(out, self.mvcc.current)
        if q.count == 0:
            return ERR_NONE
        listed = <listed_lease *>malloc(q.count * sizeof(listed_lease))
        if listed == NULL:
            out.failed = True
            return ERR_NONE
        for i in range(q.count):
            listed[i].expiry_ns = q.items[i].row.expiry_ns
            listed[i].id = q.items[i].row.id
        qsort(listed, q.count, sizeof(listed_lease), listed_order)
        for i in range(q.count):
            mark = outbuf_open(out, 2)
            outbuf_uint_field(out, 1, <uint64_t>listed[i].id)
            outbuf_close(out, mark)
        free(listed)
        return ERR_NONE

    cdef int settle(self, lease_row *row) except -1:
        cdef void *grown
        if not row.flags & ROW_AWAITED:
            return 0
        row.flags &= ~ROW_AWAITED
        if self.settled_count == self.settled_capacity:
            self.settled_capacity = self.settled_capacity * 2 if self.settled_capacity else 64
            grown = realloc(self.settled_ids, self.settled_capacity * sizeof(int64_t))
            if grown == NULL:
                raise MemoryError
            self.settled_ids = <int64_t *>grown
        self.settled_ids[self.settled_count] = row.id
        self.settled_count += 1
        return 0

    cdef int settled(self, int64_t *ids, int cap) noexcept nogil:
        cdef size_t count = <size_t>cap if <size_t>cap < self.settled_count else self.settled_count
        if count:
            memcpy(ids, self.settled_ids, count * sizeof(int64_t))
            self.settled_count -= count
            memmove(self.settled_ids, self.settled_ids + count, self.settled_count * sizeof(int64_t))
        return <int>count

    # ---- time ----

    cdef int reset(self) except -1:
        """Forget the proposals of the time before; whoever waits for one asks again."""
        cdef lease_queue *q = &self.table.queues[QUEUE_EXPIRY]
        cdef uint32_t i
        for i in range(q.count):
            self.settle(q.items[i].row)
            q.items[i].row.flags &= ROW_REVOKING
        self.table.clear_queue(QUEUE_CHECKPOINT)
        self.offered = 0
        self.retry_ns = INT64_MAX
        self.checkpoint_next_ns = 0
        return 0

    cdef int promote(self, int64_t now_ns) except -1:
        cdef lease_queue *q = &self.table.queues[QUEUE_EXPIRY]
        cdef lease_row *row
        cdef uint32_t i
        self.now_ns = now_ns
        self.primary = True
        self.reset()
        for i in range(q.count):
            row = q.items[i].row
            row.expiry_ns = deadline(now_ns, self.time_left(row), self.extend_ns + GRACE_NS)
            self.plan_checkpoint(row)
        self.table.rebuild()
        return 0

    cdef int demote(self) except -1:
        cdef lease_queue *q = &self.table.queues[QUEUE_EXPIRY]
        cdef uint32_t i
        self.primary = False
        self.reset()
        for i in range(q.count):
            q.items[i].row.expiry_ns = INT64_MAX
        self.table.rebuild()
        return 0

    cdef int64_t next_due_ns(self) noexcept nogil:
        cdef lease_queue *q = &self.table.queues[QUEUE_EXPIRY]
        cdef int64_t due_ns = self.retry_ns
        cdef int64_t at_ns
        if not self.primary:
            return INT64_MAX
        if q.count and self.offered < OFFERS_MAX and q.items[0].time_ns < due_ns:
            due_ns = q.items[0].time_ns
        q = &self.table.queues[QUEUE_CHECKPOINT]
        if q.count:
            at_ns = q.items[0].time_ns
            if at_ns and at_ns < self.checkpoint_next_ns:
                at_ns = self.checkpoint_next_ns
            if at_ns < due_ns:
                due_ns = at_ns
        return due_ns

    cdef int due(self, int64_t now_ns, int64_t *ids, int cap) noexcept nogil:
        cdef lease_queue *q = &self.table.queues[QUEUE_EXPIRY]
        cdef lease_row *row
        cdef int64_t retry_ns = INT64_MAX
        cdef int count = 0
        cdef int steps = 0
        cdef int i
        if not self.primary:
            return 0
        if now_ns >= self.retry_ns:
            for i in range(self.offered):
                if self.offers[i].retry_ns <= now_ns and count < cap:
                    self.offers[i].retry_ns = now_ns + RETRY_NS
                    ids[count] = self.offers[i].row.id
                    count += 1
                if self.offers[i].retry_ns < retry_ns:
                    retry_ns = self.offers[i].retry_ns
            self.retry_ns = retry_ns
        while count < cap and self.offered < OFFERS_MAX and q.count and q.items[0].time_ns <= now_ns:
            if steps == DUE_STEPS_MAX:
                break
            steps += 1
            row = q.items[0].row
            if row.flags & ROW_REVOKING:
                self.table.enqueue(row, QUEUE_EXPIRY, INT64_MAX)
            elif row.expiry_ns > now_ns:
                self.table.enqueue(row, QUEUE_EXPIRY, row.expiry_ns)
            else:
                self.table.enqueue(row, QUEUE_EXPIRY, INT64_MAX)
                self.table.dequeue(row, QUEUE_CHECKPOINT)
                row.flags |= ROW_OFFERED
                row.offer = <uint16_t>self.offered
                self.offers[self.offered].row = row
                self.offers[self.offered].retry_ns = now_ns + RETRY_NS
                self.offered += 1
                if now_ns + RETRY_NS < self.retry_ns:
                    self.retry_ns = now_ns + RETRY_NS
                ids[count] = row.id
                count += 1
        return count

    cdef void take_back(self, lease_row *row) noexcept nogil:
        self.offered -= 1
        self.offers[row.offer] = self.offers[self.offered]
        self.offers[row.offer].row.offer = row.offer
        row.flags &= ~ROW_OFFERED
        if self.offered == 0:
            self.retry_ns = INT64_MAX

    cdef int checkpoints_due(self, int64_t now_ns, outbuf *request) except -1:
        cdef lease_queue *q = &self.table.queues[QUEUE_CHECKPOINT]
        cdef lease_row *row
        cdef int64_t left, next_ns
        cdef uint64_t mark
        cdef int count = 0
        cdef int steps = 0
        cdef bint planned = False
        self.now_ns = now_ns
        if not self.primary:
            return 0
        while count < CHECKPOINTS_MAX and steps < DUE_STEPS_MAX and q.count and q.items[0].time_ns <= now_ns:
            row = q.items[0].row
            if q.items[0].time_ns and now_ns < self.checkpoint_next_ns:
                break
            steps += 1
            if row.flags & ROW_RESETTING:
                left = 0
                next_ns = now_ns + RETRY_NS
            else:
                planned = True
                left = (row.expiry_ns - GRACE_NS - now_ns + SECOND_NS - 1) // SECOND_NS
                next_ns = now_ns + self.checkpoint_ns
            if left < self.effective_ttl(row) and (left > 0 or row.flags & ROW_RESETTING):
                mark = outbuf_open(request, 1)
                outbuf_uint_field(request, 1, <uint64_t>row.id)
                if left:
                    outbuf_uint_field(request, 2, <uint64_t>left)
                outbuf_close(request, mark)
                count += 1
            if self.table.enqueue(row, QUEUE_CHECKPOINT, next_ns) < 0:
                raise MemoryError
        if planned:
            self.checkpoint_next_ns = now_ns + CHECKPOINT_GAP_NS
        return count

    # ---- for tests and benchmarks ----

    cdef tuple answer_of(self, int status):
        if status:
            return status, b""
        if self.made.failed:
            raise MemoryError
        return 0, PyBytes_FromStringAndSize(<char *>self.made.data, <Py_ssize_t>self.made.size)

    cdef void made_view(self, bytes message, bytes_view *view) noexcept:
        view.data = <const uint8_t *>PyBytes_AS_STRING(message)
        view.size = <uint64_t>PyBytes_GET_SIZE(message)
        outbuf_reset(&self.made)

    def entry(self, int kind, bytes message):
        """(status, answer) of one entry; kind: field of InternalRaftRequest, KV writes included."""
        cdef bytes_view view
        self.made_view(message, &view)
        if kind == INTERNAL_LEASE_GRANT:
            return self.answer_of(self.grant(&view, &self.made))
        if kind == INTERNAL_LEASE_REVOKE:
            return self.answer_of(self.revoke(&view, &self.made))
        if kind == INTERNAL_LEASE_CHECKPOINT:
            return self.answer_of(self.checkpoint(&view))
        if kind == INTERNAL_PUT:
            return self.answer_of(self.ops.put(&view, &self.made))
        if kind == INTERNAL_DELETE:
            return self.answer_of(self.ops.delete_range(&view, &self.made))
        if kind == INTERNAL_TXN:
            return self.answer_of(self.ops.txn(&view, False, &self.made))
        raise ValueError(f"entry of kind {kind}")

    def step(self, int64_t keys_max):
        """One slice of the revoke under way; (1, b"") while there is more."""
        outbuf_reset(&self.made)
        return self.answer_of(self.revoke_step(&self.made, keys_max))

    def call(self, str name, bytes message, int64_t now_ns):
        """(status, answer) of keep_alive, time_to_live or leases, or of txn as a read."""
        cdef bytes_view view
        self.made_view(message, &view)
        if name == "keep_alive":
            return self.answer_of(self.keep_alive(&view, &self.made, now_ns))
        if name == "time_to_live":
            return self.answer_of(self.time_to_live(&view, &self.made, now_ns))
        if name == "txn":
            return self.answer_of(self.ops.txn(&view, True, &self.made))
        return self.answer_of(self.leases(&self.made))

    def lead(self, int64_t now_ns):
        self.promote(now_ns)

    def follow(self):
        self.demote()

    def take_due(self, int64_t now_ns, int cap=2048):
        cdef int64_t ids[OFFERS_MAX]
        cdef int count = self.due(now_ns, ids, min(cap, OFFERS_MAX))
        return [ids[i] for i in range(count)]

    def take_settled(self):
        cdef int64_t ids[16]
        cdef int count
        cdef list found = []
        while True:
            count = self.settled(ids, 16)
            if count == 0:
                return found
            found += [ids[i] for i in range(count)]

    def take_checkpoints(self, int64_t now_ns):
        """A LeaseCheckpointRequest, or None."""
        outbuf_reset(&self.made)
        if self.checkpoints_due(now_ns, &self.made) == 0:
            return None
        return self.answer_of(0)[1]

    @property
    def next_due(self):
        return self.next_due_ns()
