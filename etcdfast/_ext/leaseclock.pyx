"""What time and clients do to leases; see leaseclock.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from etcdfast._ext.clock cimport now_ns
from etcdfast._ext.errids cimport ERR_TOO_MANY_REQUESTS
from etcdfast._ext.kvreq cimport bytes_view, decode_lease, lease_request
from etcdfast._ext.leaseops cimport LEASE_NOT_PRIMARY, LEASE_WAITS, REVOKE_KEYS_MAX, LeaseOps
from etcdfast._ext.leasetable cimport lease_row
from etcdfast._ext.longanswers cimport key_of
from etcdfast._ext.longread cimport asker, asker_of
from etcdfast._ext.outbox cimport Outbox
from etcdfast._ext.outbuf cimport outbuf_free, outbuf_init, outbuf_reset
from etcdfast._ext.ring cimport (
    IPC_CALL, IPC_END, IPC_HALF, IPC_LEASE_CHECKPOINT, IPC_MESSAGE, ST_LEASES, ST_LEASES_EXPIRED, ST_LEASES_GRANTED,
    ST_LEASES_RENEWED, ST_LEASES_REVOKED, ipc_record, record_payload, record_payload_len, ring_room, status_put,
)
from etcdfast._ext.rpcids cimport RPC_LEASE_REVOKE
from etcdfast._ext.wire cimport WIRE_MORE, WIRE_VARINT, wire_cursor, wire_field, wire_next, wire_put_uint

from collections import deque

from etcdfast._ext.outbox import LoopError

cdef enum:
    PROPOSAL_BYTES = 128        # of one revoke in the ring, with room to spare
    CHECKPOINT_BYTES = 65536    # of one checkpoint request at most
    NO_ROOM_NS = 5000000        # until the ring is looked at again


cdef int64_t lease_id(bytes message) noexcept:
    """Field 1 of a request that names a lease by it."""
    cdef wire_cursor c
    cdef wire_field f
    cdef int64_t found = 0
    c.pos = <const uint8_t *>PyBytes_AS_STRING(message)
    c.end = c.pos + PyBytes_GET_SIZE(message)
    while wire_next(&c, &f) == WIRE_MORE:
        if f.number == 1 and f.type == WIRE_VARINT:
            found = <int64_t>f.value
    return found


cdef class LeaseClock:

    def __cinit__(self, LeaseOps ops):
        self.ops = ops
        self.waiting = {}
        self.parked = {}
        self.unled = []
        outbuf_init(&self.answer)

    def __dealloc__(self):
        outbuf_free(&self.answer)

    cdef void connect(self, Outbox out) noexcept:
        self.out = out

    # ---- keep-alive streams ----

    cdef int take(self, ipc_record *r) except -1:
        cdef asker who
        cdef bytes message = None
        asker_of(&who, r, r.method)
        key = key_of(&who)
        if r.kind == IPC_CALL:
            message = PyBytes_FromStringAndSize(record_payload(r), record_payload_len(r))
            if key not in self.waiting:
                self.ask(&who, message)
                return 0
        elif r.kind == IPC_HALF:
            if key not in self.waiting:
                self.out.post(&who, IPC_END, 0, NULL, 0)
                return 0
        else:
            # CANCEL. The key stays in `parked`, where nobody is found under it any more.
            found = self.waiting.pop(key, None)
            if found is not None:
                self.messages -= <int>len(found[1])
            return 0
        self.waiting[key][1].append(message)
        self.messages += 1
        if self.messages > WAITING_MAX:
            self.messages -= <int>len(self.waiting.pop(key)[1])
            self.out.post(&who, IPC_END, ERR_TOO_MANY_REQUESTS, NULL, 0)
        return 0

    cdef int ask(self, const asker *who, bytes message) except -2:
        """Answer one keep-alive, or have it wait: LEASE_WAITS or LEASE_NOT_PRIMARY, else 0."""
        cdef bytes_view view
        cdef int status
        view.data = <const uint8_t *>PyBytes_AS_STRING(message)
        view.size = <uint64_t>PyBytes_GET_SIZE(message)
        outbuf_reset(&self.answer)
        status = self.ops.keep_alive(&view, &self.answer, now_ns())
        if status == 0:
            self.out.post(who, IPC_MESSAGE, 0, self.answer.data, self.answer.size)
            return 0
        if status > 0:
            self.out.post(who, IPC_END, status, NULL, 0)
            return 0
        if status != LEASE_WAITS and status != LEASE_NOT_PRIMARY:
            raise LoopError("a frontend passed on a keep-alive that is none")
        key = key_of(who)
        if key not in self.waiting:
            self.waiting[key] = (PyBytes_FromStringAndSize(<char *>who, sizeof(asker)), deque((message,)))
            self.messages += 1
        if status == LEASE_WAITS:
            self.parked.setdefault(lease_id(message), []).append(key)
        else:
            self.unled.append(key)
        return status

    cdef int ask_waiting(self, key) except -1:
        """Go on with a stream from its first message that waits."""
        cdef asker who
        cdef bytes raw
        found = self.waiting.get(key)
        if found is None:
            return 0
        raw, messages = found
        memcpy(&who, PyBytes_AS_STRING(raw), sizeof(asker))
        while messages:
            message = messages[0]
            if message is None:
                self.out.post(&who, IPC_END, 0, NULL, 0)
            elif self.ask(&who, message) != 0:
                return 0
            messages.popleft()
            self.messages -= 1
        del self.waiting[key]
        return 0

    cdef int settle(self) except -1:
        cdef int64_t ids[64]
        cdef int count, i
        while True:
            count = self.ops.settled(ids, 64)
            if count == 0:
                return 0
            for i in range(count):
                for key in self.parked.pop(ids[i], ()):
                    self.ask_waiting(key)

    cdef bint is_large(self, const bytes_view *message) noexcept nogil:
        cdef lease_request r
        cdef lease_row *row
        if decode_lease(message, &r) < 0:
            return False
        row = self.ops.table.find(r.id)
        return row != NULL and row.key_count > REVOKE_KEYS_MAX // 2

    # ---- time ----

    cdef int64_t next_due_ns(self) noexcept nogil:
        return max(self.ops.next_due_ns(), self.not_before_ns)

    cdef int step(self, int64_t now) except -1:
        cdef int64_t ids[EXPIRE_BATCH]
        cdef uint8_t request[16]
        cdef int count, i
        if self.out.ac == NULL or ring_room(self.out.ac) < EXPIRE_BATCH * PROPOSAL_BYTES + CHECKPOINT_BYTES:
            self.not_before_ns = now + NO_ROOM_NS   # consensus has enough to do; what is due stays due
            return 0
        count = self.ops.due(now, ids, EXPIRE_BATCH)
        for i in range(count):
            self.out.propose(
                RPC_LEASE_REVOKE, 0, request, <uint64_t>(wire_put_uint(request, 1, <uint64_t>ids[i]) - request), 0)
        outbuf_reset(&self.answer)
        if self.ops.checkpoints_due(now, &self.answer) > 0:
            self.out.propose(IPC_LEASE_CHECKPOINT, 0, self.answer.data, self.answer.size, 0)
        return count

    cdef int promote(self, int64_t now) except -1:
        self.ops.promote(now)
        self.settle()
        unled, self.unled = self.unled, []
        for key in unled:
            self.ask_waiting(key)
        return 0

    cdef int demote(self) except -1:
        self.ops.demote()
        return self.settle()

    cdef void figures(self, void *page) noexcept nogil:
        status_put(page, ST_LEASES, self.ops.table.count)
        status_put(page, ST_LEASES_GRANTED, self.ops.granted)
        status_put(page, ST_LEASES_REVOKED, self.ops.revoked)
        status_put(page, ST_LEASES_RENEWED, self.ops.renewed)
        status_put(page, ST_LEASES_EXPIRED, self.ops.expired)
