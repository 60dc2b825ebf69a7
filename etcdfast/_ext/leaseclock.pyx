"""What time, clients and other members do to leases; see leaseclock.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from etcdfast._ext.authgate cimport AuthGate
from etcdfast._ext.clock cimport now_ns
from etcdfast._ext.errids cimport (
    ERR_INVALID_AUTH_TOKEN, ERR_LEADER_CHANGED, ERR_LEASE_NOT_FOUND, ERR_NO_LEADER, ERR_NOT_LEADER, ERR_TIMEOUT, ERR_TOO_MANY_REQUESTS,
    ERR_UNKNOWN,
)
from etcdfast._ext.identity cimport IPC_FLAG_BAD_TOKEN, message_bytes
from etcdfast._ext.kvreq cimport bytes_view, decode_lease, lease_request
from etcdfast._ext.leaseops cimport LEASE_NOT_PRIMARY, LEASE_WAITS, REVOKE_KEYS_MAX, LeaseOps
from etcdfast._ext.leasetable cimport lease_row
from etcdfast._ext.longanswers cimport key_of
from etcdfast._ext.longread cimport asker, asker_of
from etcdfast._ext.outbox cimport Outbox
from etcdfast._ext.outbuf cimport (
    outbuf, outbuf_bytes_field, outbuf_free, outbuf_init, outbuf_reserve, outbuf_reset, outbuf_uint_field,
)
from etcdfast._ext.ring cimport (
    IPC_CALL, IPC_END, IPC_HALF, IPC_LEASE_CHECKPOINT, IPC_MEMBER, IPC_MESSAGE, IPC_REPLY, ST_LEADER, ST_LEASES,
    ST_LEASES_EXPIRED, ST_LEASES_GRANTED, ST_LEASES_RENEWED, ST_LEASES_REVOKED, ST_MEMBER_ID, ipc_record,
    record_payload, record_payload_len, ring_room, status_get, status_put,
)
from etcdfast._ext.rpcids cimport RPC_LEASE_REVOKE, RPC_LEASE_TIME_TO_LIVE
from etcdfast._ext.wire cimport (
    WIRE_END, WIRE_MORE, WIRE_VARINT, wire_cursor, wire_field, wire_next, wire_put_uint,
)

from collections import deque

from etcdfast._ext.outbox import LoopError

cdef enum:
    PROPOSAL_BYTES = 128        # of one revoke in the ring, with room to spare
    CHECKPOINT_BYTES = 65536    # of one checkpoint request at most
    NO_ROOM_NS = 5000000        # until the ring is looked at again
    RETRY_NS = 50000000         # until the leader is asked again, as in etcd


cdef class Waiter:
    """A call that waits: a stream of keep-alives, or one LeaseTimeToLive."""

    cdef bytes raw              # its asker
    cdef object messages        # deque; None for the client's end, an error id for what the caller may not
    cdef int64_t deadline_ns    # until which its first message may wait for the leader; 0: it does not
    cdef int64_t revision       # of the store when that message was first passed on: the answer's header
    cdef uint32_t token         # of its FORWARD under way, 0 none

    def __cinit__(self, bytes raw, bytes message):
        self.raw = raw
        self.messages = deque((message,))


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


cdef bint copy_but_header(outbuf *out, const void *data, uint64_t size) noexcept nogil:
    """A lease response without its field 1, which each member fills in for itself. False when it is none."""
    cdef wire_cursor c
    cdef wire_field f
    cdef const uint8_t *start
    cdef uint8_t *to
    cdef uint64_t bytes
    cdef int rc
    c.pos = <const uint8_t *>data
    c.end = c.pos + size
    while True:
        start = c.pos
        rc = wire_next(&c, &f)
        if rc != WIRE_MORE:
            return rc == WIRE_END
        if f.number == 1:
            continue
        bytes = <uint64_t>(c.pos - start)
        to = outbuf_reserve(out, bytes)
        if to == NULL:
            return False
        memcpy(to, start, bytes)
        out.size += bytes


cdef class LeaseClock:

    def __cinit__(self, LeaseOps ops, int64_t timeout_ns):
        self.ops = ops
        self.timeout_ns = timeout_ns
        self.waiting = {}
        self.parked = {}
        self.asked = {}
        self.stalled = deque()
        self.answers = []
        self.stalled_due_ns = self.deadline_due_ns = INT64_MAX
        outbuf_init(&self.answer)

    def __dealloc__(self):
        outbuf_free(&self.answer)

    cdef void connect(self, Outbox out, AuthGate gate, void *consensus_page) noexcept:
        self.out = out
        self.gate = gate
        self.page = consensus_page

    # ---- calls ----

    cdef int take(self, ipc_record *r) except -1:
        cdef asker who
        cdef Waiter waiter
        cdef int error
        message = None
        asker_of(&who, r, r.method)
        key = key_of(&who)
        waiter = self.waiting.get(key)
        if r.kind == IPC_CALL:
            message = PyBytes_FromStringAndSize(record_payload(r), message_bytes(r))
            error = self.refuses(r, message)
            if waiter is None:
                if error:
                    return self.refuse(&who, error)
                self.ask(&who, message)
                return 0
            if error:
                message = error   # in its turn
        elif r.kind == IPC_HALF:
            if waiter is None:
                self.out.post(&who, IPC_END, 0, NULL, 0)
                return 0
        else:
            self.cancel(key)
            return 0
        waiter.messages.append(message)
        self.messages += 1
        if self.messages > WAITING_MAX:
            self.cancel(key)
            self.out.post(&who, IPC_END, ERR_TOO_MANY_REQUESTS, NULL, 0)
        return 0

    cdef int refuses(self, ipc_record *r, bytes message) except -1:
        if not self.gate.table.enabled:
            return 0
        if r.flags & IPC_FLAG_BAD_TOKEN:
            return ERR_INVALID_AUTH_TOKEN
        self.gate.admit(r)
        return self.gate.may_renew(lease_id(message))

    cdef int time_to_live(self, const asker *who, bytes message) except -1:
        if self.messages >= WAITING_MAX:
            return self.refuse(who, ERR_TOO_MANY_REQUESTS)
        self.ask(who, message)
        return 0

    cdef bint cancel(self, key) except -1:
        # The key stays in `parked` and `stalled`, where nobody is found under it any more.
        cdef Waiter waiter = self.waiting.pop(key, None)
        if waiter is None:
            return False
        self.messages -= <uint32_t>len(waiter.messages)
        if waiter.token:
            del self.asked[waiter.token]
        return True

    cdef int member_asks(self, ipc_record *r) except -1:
        cdef asker who
        memset(&who, 0, sizeof(asker))
        who.frontend = IPC_MEMBER
        who.method = r.method
        who.slot = <uint32_t>r.index
        who.generation = <uint32_t>(r.index >> 32)
        if self.messages >= WAITING_MAX:
            return self.refuse(&who, ERR_TOO_MANY_REQUESTS)
        self.ask(&who, PyBytes_FromStringAndSize(record_payload(r), record_payload_len(r)))
        return 0

    cdef int ask(self, const asker *who, bytes message) except -2:
        """Answer one message, or have it wait: LEASE_WAITS or LEASE_NOT_PRIMARY, else 0."""
        cdef bytes_view view
        cdef int status
        cdef Waiter waiter
        view.data = <const uint8_t *>PyBytes_AS_STRING(message)
        view.size = <uint64_t>PyBytes_GET_SIZE(message)
        outbuf_reset(&self.answer)
        if who.method == RPC_LEASE_TIME_TO_LIVE:
            status = self.ops.time_to_live(&view, &self.answer, now_ns())
        else:
            status = self.ops.keep_alive(&view, &self.answer, now_ns())
        if who.frontend == IPC_MEMBER and status != LEASE_WAITS:
            return self.give_member(who, message, status)
        if status == 0:
            self.give(who)
            return 0
        if status > 0:
            self.refuse(who, status)
            return 0
        if status != LEASE_WAITS and status != LEASE_NOT_PRIMARY:
            raise LoopError("a frontend passed on a request for a lease that is none")
        key = key_of(who)
        waiter = self.waiting.get(key)
        if waiter is None:
            waiter = self.waiting[key] = Waiter(PyBytes_FromStringAndSize(<char *>who, sizeof(asker)), message)
            self.messages += 1
        if status == LEASE_WAITS:
            waiter.deadline_ns = 0
            self.parked.setdefault(lease_id(message), []).append(key)
        else:
            self.ask_leader(key)
        return status

    cdef int ask_waiting(self, key) except -1:
        """Go on with a call from its first message that waits."""
        cdef asker who
        cdef Waiter waiter = self.waiting.get(key)
        if waiter is None or waiter.token:
            return 0
        memcpy(&who, PyBytes_AS_STRING(waiter.raw), sizeof(asker))
        while waiter.messages:
            message = waiter.messages[0]
            if message is None:
                self.out.post(&who, IPC_END, 0, NULL, 0)
            elif type(message) is int:
                self.cancel(key)
                return self.refuse(&who, message)
            elif self.ask(&who, message) != 0:
                return 0
            waiter.messages.popleft()
            waiter.deadline_ns = 0
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

    # ---- answers: what lies in self.answer ----

    cdef int give(self, const asker *who) except -1:
        if who.method == RPC_LEASE_TIME_TO_LIVE:
            self.answers.append((
                PyBytes_FromStringAndSize(<char *>who, sizeof(asker)),
                PyBytes_FromStringAndSize(<char *>self.answer.data, <Py_ssize_t>self.answer.size)))
            return 0
        return self.out.post(who, IPC_MESSAGE, 0, self.answer.data, self.answer.size)

    cdef int refuse(self, const asker *who, int status) except -1:
        cdef bint whole = who.method == RPC_LEASE_TIME_TO_LIVE or who.frontend == IPC_MEMBER
        return self.out.post(who, IPC_REPLY if whole else IPC_END, status, NULL, 0)

    cdef int give_member(self, const asker *who, bytes message, int status) except -2:
        """The body that another member's HTTP request gets (formats.md 4.11)."""
        cdef outbuf body, inner
        cdef const char *text = b"not a primary lessor"
        if status == LEASE_NOT_PRIMARY:
            status = ERR_LEADER_CHANGED if who.method == RPC_LEASE_TIME_TO_LIVE else ERR_NOT_LEADER
            self.out.post(who, IPC_REPLY, status, text, 20)
            return 0
        if status != 0:
            text = b"error unmarshalling request"
            self.out.post(who, IPC_REPLY, ERR_UNKNOWN, text, 27)
            return 0
        if self.ops.table.find(lease_id(message)) == NULL:
            text = b"lease not found"
            self.out.post(who, IPC_REPLY, ERR_LEASE_NOT_FOUND, text, 15)
            return 0
        outbuf_init(&body)
        outbuf_init(&inner)
        if who.method == RPC_LEASE_TIME_TO_LIVE:
            outbuf_bytes_field(&inner, 1, NULL, 0)   # a header that says nothing
            copy_but_header(&inner, self.answer.data, self.answer.size)
            outbuf_bytes_field(&body, 1, <char *>inner.data, inner.size)
        else:
            copy_but_header(&body, self.answer.data, self.answer.size)
        try:
            if body.failed or inner.failed:
                raise MemoryError
            self.out.post(who, IPC_REPLY, 0, body.data, body.size)
        finally:
            outbuf_free(&body)
            outbuf_free(&inner)
        return 0

    # ---- the leader's word ----

    cdef void stall(self, key, int64_t now) noexcept:
        self.stalled.append((now + RETRY_NS, key))
        if self.stalled_due_ns == INT64_MAX:
            self.stalled_due_ns = now + RETRY_NS

    cdef int ask_leader(self, key) except -1:
        """Pass a call's first message on to the leader, or have it wait for one."""
        cdef Waiter waiter = self.waiting[key]
        cdef bytes message = waiter.messages[0]
        cdef int64_t now = now_ns()
        cdef uint64_t leader = status_get(self.page, ST_LEADER)
        cdef asker who
        if waiter.deadline_ns == 0:
            waiter.deadline_ns = now + self.timeout_ns
            waiter.revision = self.ops.mvcc.current
            if self.deadline_due_ns == INT64_MAX:
                self.deadline_due_ns = waiter.deadline_ns   # else an earlier one comes first
        # A member that has been elected waits to be promoted.
        if leader == 0 or leader == status_get(self.page, ST_MEMBER_ID):
            self.stall(key, now)
            return 0
        memcpy(&who, PyBytes_AS_STRING(waiter.raw), sizeof(asker))
        while True:
            self.last_token = self.last_token + 1 or 1
            if self.last_token not in self.asked:
                break
        if not self.out.forward(who.method, PyBytes_AS_STRING(message), <uint64_t>PyBytes_GET_SIZE(message),
                                self.last_token, <uint64_t>waiter.deadline_ns):
            self.stall(key, now)
            return 0
        waiter.token = self.last_token
        self.asked[waiter.token] = key
        return 0

    cdef int leader_said(self, ipc_record *r) except -1:
        cdef asker who
        cdef Waiter waiter
        cdef bytes message
        cdef int64_t lease
        key = self.asked.pop(r.slot, None)
        if key is None:
            return 0
        waiter = self.waiting[key]
        waiter.token = 0
        message = waiter.messages[0]
        memcpy(&who, PyBytes_AS_STRING(waiter.raw), sizeof(asker))
        outbuf_reset(&self.answer)
        self.ops.ops.header(&self.answer, waiter.revision)
        if r.status == ERR_LEASE_NOT_FOUND:
            lease = lease_id(message)
            if lease:
                outbuf_uint_field(&self.answer, 2, <uint64_t>lease)
            if who.method == RPC_LEASE_TIME_TO_LIVE:
                outbuf_uint_field(&self.answer, 3, <uint64_t>-1)
        elif r.status or not copy_but_header(&self.answer, record_payload(r), record_payload_len(r)):
            self.stall(key, now_ns())
            return 0
        self.give(&who)
        waiter.messages.popleft()
        waiter.deadline_ns = 0
        self.messages -= 1
        return self.ask_waiting(key)

    cdef int ask_stalled(self, int64_t now) except -1:
        """Those whose time to ask again has come by `now`."""
        cdef int64_t due
        for _ in range(len(self.stalled)):   # who stalls again goes to the end, and waits for the next time
            due, key = self.stalled[0]
            if due > now:
                break
            self.stalled.popleft()
            self.ask_waiting(key)
        self.stalled_due_ns = self.stalled[0][0] if self.stalled else INT64_MAX
        return 0

    cdef int time_out(self, int64_t now) except -1:
        cdef asker who
        cdef Waiter waiter
        cdef int64_t next_ns = INT64_MAX
        cdef list late = []
        for key, waiter in self.waiting.items():
            if waiter.deadline_ns == 0:
                continue
            if waiter.deadline_ns <= now:
                late.append(key)
            elif waiter.deadline_ns < next_ns:
                next_ns = waiter.deadline_ns
        self.deadline_due_ns = next_ns
        for key in late:
            waiter = self.waiting[key]
            memcpy(&who, PyBytes_AS_STRING(waiter.raw), sizeof(asker))
            self.cancel(key)
            self.refuse(&who, ERR_TIMEOUT if status_get(self.page, ST_LEADER) else ERR_NO_LEADER)
        return 0

    # ---- time ----

    cdef bint is_large(self, const bytes_view *message) noexcept nogil:
        cdef lease_request r
        cdef lease_row *row
        if decode_lease(message, &r) < 0:
            return False
        row = self.ops.table.find(r.id)
        return row != NULL and row.key_count > REVOKE_KEYS_MAX // 2

    cdef int64_t next_due_ns(self) noexcept nogil:
        return min(max(self.ops.next_due_ns(), self.not_before_ns), min(self.stalled_due_ns, self.deadline_due_ns))

    cdef int step(self, int64_t now) except -1:
        cdef int64_t ids[EXPIRE_BATCH]
        cdef uint8_t request[32]
        cdef uint64_t size
        cdef uint32_t root = 4 if self.gate.table.enabled else 0
        cdef int count, i
        if now >= self.deadline_due_ns:
            self.time_out(now)
        if now >= self.stalled_due_ns:
            self.ask_stalled(now)
        if self.out.ac == NULL or ring_room(self.out.ac) < EXPIRE_BATCH * PROPOSAL_BYTES + CHECKPOINT_BYTES:
            self.not_before_ns = now + NO_ROOM_NS   # consensus has enough to do; what is due stays due
            return 0
        count = self.ops.due(now, ids, EXPIRE_BATCH)
        for i in range(count):
            size = <uint64_t>(wire_put_uint(request, 1, <uint64_t>ids[i]) - request)
            memcpy(request + size, b"root", 4)   # as etcd: whoever may write its keys, time ends every lease
            self.out.propose(
                RPC_LEASE_REVOKE, 0, request, size + root, 0, root, self.gate.table.revision if root else 0)
        outbuf_reset(&self.answer)
        if self.ops.checkpoints_due(now, &self.answer) > 0:
            self.out.propose(IPC_LEASE_CHECKPOINT, 0, self.answer.data, self.answer.size, 0)
        return count

    cdef int lead(self, bint leads, uint64_t term, int64_t now) except -1:
        if not leads:
            self.ops.demote()
        elif not self.ops.primary or term != self.led_term:
            self.led_term = term
            self.ops.promote(now)
        self.settle()
        return self.ask_stalled(INT64_MAX)

    cdef void figures(self, void *page) noexcept nogil:
        status_put(page, ST_LEASES, self.ops.table.count)
        status_put(page, ST_LEASES_GRANTED, self.ops.granted)
        status_put(page, ST_LEASES_REVOKED, self.ops.revoked)
        status_put(page, ST_LEASES_RENEWED, self.ops.renewed)
        status_put(page, ST_LEASES_EXPIRED, self.ops.expired)
