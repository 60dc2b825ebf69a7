"""What apply does with the identities of requests; see authgate.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from etcdfast._ext.authlease cimport auth_may_read_row, auth_may_write_lease
from etcdfast._ext.authtable cimport (
    AuthTable, auth_admin, auth_any, auth_caller_of, auth_identity, auth_may_read,
)
from etcdfast._ext.clock cimport now_ns
from etcdfast._ext.errids cimport (
    ERR_AUTH_OLD_REVISION, ERR_INVALID_AUTH_TOKEN, ERR_TOO_MANY_REQUESTS, ERR_UNKNOWN,
)
from etcdfast._ext.identity cimport (
    IPC_FLAG_AUTH_NOW, IPC_FLAG_BAD_TOKEN, IPC_TOKEN_CHECK, identity_of, identity_of_entry, message_bytes,
)
from etcdfast._ext.kvops cimport KvOps
from etcdfast._ext.kvreq cimport bytes_view, decode_lease, decode_range, lease_request, range_request
from etcdfast._ext.leasetable cimport QUEUE_EXPIRY, lease_queue, lease_row
from etcdfast._ext.longread cimport asker, asker_of
from etcdfast._ext.outbox cimport Outbox
from etcdfast._ext.ring cimport (
    IPC_PROPOSE, IPC_REPLY, IPC_SELF, ST_ALARMS, ST_AUTH_ENABLED, ST_AUTH_REVISION, ipc_record, record_payload,
    record_payload_len, ring_claim, ring_commit, ring_publish, status_get, status_put,
)
from etcdfast._ext.rpcids cimport (
    RPC_ALARM, RPC_DEFRAGMENT, RPC_ELECTION_RESIGN, RPC_HASH, RPC_HASH_KV, RPC_LEASE_LEASES, RPC_LEASE_TIME_TO_LIVE, RPC_LOCK,
    RPC_MEMBER_LIST, RPC_RANGE, RPC_RANGE_STREAM, RPC_SNAPSHOT, RPC_STATUS, RPC_TXN,
)
from etcdfast._ext.wire cimport WIRE_MORE, WIRE_VARINT, wire_cursor, wire_field, wire_next


cdef bint only_asks(const uint8_t *data, uint64_t size) noexcept nogil:
    """Whether an AlarmRequest is a GET, whose action is 0."""
    cdef wire_cursor c
    cdef wire_field f
    cdef uint64_t action = 0
    c.pos = data
    c.end = data + size
    while wire_next(&c, &f) == WIRE_MORE:
        if f.number == 1 and f.type == WIRE_VARINT:
            action = f.value
    return <uint32_t>action == 0


cdef class AuthGate:
    def __cinit__(self, KvOps ops):
        self.ops = ops
        self.table = ops.auth
        self.waiting = []

    cdef void admit_entry(self, const bytes_view *entry) noexcept nogil:
        cdef auth_identity who
        self.ops.caller.free = not self.table.enabled
        if self.table.enabled:
            identity_of_entry(entry, &who)
            auth_caller_of(self.table, &who, &self.ops.caller)

    cdef void admit(self, const ipc_record *r) noexcept nogil:
        cdef auth_identity who
        self.ops.caller.free = not self.table.enabled
        if self.table.enabled:
            identity_of(r, &who)
            auth_caller_of(self.table, &who, &self.ops.caller)

    cdef int check(self, const ipc_record *r) noexcept nogil:
        self.admit(r)
        return self.refuses(r) if self.table.enabled and r.frontend != IPC_SELF else 0

    cdef int refuses(self, const ipc_record *r) noexcept nogil:
        cdef range_request query
        cdef lease_request lease
        cdef bytes_view message
        cdef int error = 0
        if r.flags & IPC_FLAG_BAD_TOKEN:
            return ERR_INVALID_AUTH_TOKEN
        message.data = <const uint8_t *>record_payload(<ipc_record *>r)
        message.size = message_bytes(r)
        if r.method == RPC_RANGE or r.method == RPC_RANGE_STREAM:
            if decode_range(&message, &query) < 0:
                return 0   # which says so itself
            error = auth_may_read(&self.ops.caller, query.key.data, query.key.size, query.end.data, query.end.size)
            return error if error else self.too_new()
        if r.method == RPC_TXN:
            return self.too_new()   # its keys: KvOps.txn
        if r.method == RPC_STATUS or r.method == RPC_MEMBER_LIST:
            return auth_any(self.table, &self.ops.caller)
        if r.method == RPC_LEASE_TIME_TO_LIVE:
            error = auth_any(self.table, &self.ops.caller)
            if error == 0 and decode_lease(&message, &lease) == 0 and lease.keys:
                error = self.may_see_keys(lease.id)
            return error
        if r.method == RPC_LEASE_LEASES:
            return self.may_list_leases()
        if r.method == RPC_DEFRAGMENT or r.method == RPC_HASH or r.method == RPC_HASH_KV or r.method == RPC_SNAPSHOT:
            return auth_admin(self.table, &self.ops.caller)
        return 0

    cdef int too_new(self) noexcept nogil:
        """An identity that a newer auth store than this member's has made. etcd looks behind the read whether the
        revision is still the same."""
        return ERR_AUTH_OLD_REVISION if self.ops.caller.revision > self.table.revision else 0

    cdef int may_see_keys(self, int64_t lease) noexcept nogil:
        cdef lease_row *row
        if self.ops.caller.free or self.ops.leases is None:
            return 0
        row = self.ops.leases.find(lease)
        return auth_may_read_row(&self.ops.caller, row) if row != NULL else 0

    cdef int may_renew(self, int64_t lease) noexcept nogil:
        cdef int error = auth_any(self.table, &self.ops.caller)
        return error if error else auth_may_write_lease(self.ops.leases, &self.ops.caller, lease)

    cdef int may_list_leases(self) noexcept nogil:
        cdef lease_queue *q
        cdef uint32_t i
        cdef int error = auth_any(self.table, &self.ops.caller)
        if error or self.ops.caller.free or self.ops.leases is None:
            return error
        q = &self.ops.leases.queues[QUEUE_EXPIRY]
        for i in range(q.count):
            error = auth_may_read_row(&self.ops.caller, q.items[i].row)
            if error:
                return error
        return 0

    cdef void publish(self, void *page) noexcept nogil:
        # They keep the line in their caches as long as it is not written.
        if status_get(page, ST_ALARMS) != <uint64_t>self.ops.alarms:
            status_put(page, ST_ALARMS, <uint64_t>self.ops.alarms)
        if status_get(page, ST_AUTH_REVISION) != self.table.revision:
            status_put(page, ST_AUTH_REVISION, self.table.revision)
        if status_get(page, ST_AUTH_ENABLED) != <uint64_t>self.table.enabled:
            status_put(page, ST_AUTH_ENABLED, self.table.enabled)

    cdef int take(self, ipc_record *r) except -1:
        return self.token_check(r) if r.method == IPC_TOKEN_CHECK else self.relay(r)

    cdef int relay(self, ipc_record *r) except -1:
        cdef ipc_record *to = NULL
        cdef asker who
        cdef uint32_t size = message_bytes(r)
        cdef int error = 0
        self.admit(r)
        if self.table.enabled:
            if r.flags & IPC_FLAG_BAD_TOKEN:
                error = ERR_INVALID_AUTH_TOKEN
            elif r.method == RPC_ALARM and only_asks(<const uint8_t *>record_payload(r), size):
                error = auth_any(self.table, &self.ops.caller)
            else:
                error = auth_admin(self.table, &self.ops.caller)
        if error == 0:
            to = ring_claim(self.out.ac, <uint32_t>sizeof(ipc_record) + size)
            if to == NULL:
                error = ERR_TOO_MANY_REQUESTS
        if error:
            asker_of(&who, r, r.method)
            return self.out.post(&who, IPC_REPLY, error, NULL, 0)
        memcpy(<char *>to + 4, <const char *>r + 4, sizeof(ipc_record) - 4 + size)
        to.kind = IPC_PROPOSE
        to.status = 0
        to.index = 0
        ring_commit(self.out.ac, to)
        ring_publish(self.out.ac)
        return 0

    cdef object service_refused(self, const ipc_record *r):
        cdef int error = self.check(r)
        if error == 0:
            return None
        if RPC_LOCK <= r.method <= RPC_ELECTION_RESIGN:
            # etcd's services hand on errors without their codes.
            return ERR_UNKNOWN, b"etcdserver: invalid auth token"
        return error, b""

    cdef tuple parts(self, const ipc_record *r, bytes name):
        cdef const char *payload = record_payload(<ipc_record *>r)
        cdef Py_ssize_t size = message_bytes(r)
        return (PyBytes_FromStringAndSize(payload, size), name, PyBytes_FromStringAndSize(payload + size, r.status),
                0 if r.flags & IPC_FLAG_AUTH_NOW else r.index)

    # ---- tokens that frontends do not know ----

    cdef int token_check(self, ipc_record *r) except -1:
        cdef asker who
        asker_of(&who, r, r.method)
        raw = PyBytes_FromStringAndSize(<char *>&who, sizeof(asker))
        token = PyBytes_FromStringAndSize(record_payload(r), record_payload_len(r))
        verdict = self.cold.auth.check_token(token)
        if verdict is not None:
            return self.answer_check(raw, verdict)
        if len(self.waiting) >= CHECKS_MAX:
            return self.out.post(&who, IPC_REPLY, ERR_TOO_MANY_REQUESTS, NULL, 0)
        self.waiting.append((raw, token, now_ns() + CHECK_NS))
        return 0

    cdef int ask_again(self, uint64_t applied_index, int64_t now) except -1:
        cdef int answered = 0
        cdef Py_ssize_t count = len(self.waiting)
        if count > FEW_CHECKS and now < <int64_t>self.asked_ns + count * CHECK_STEP_NS:
            return 0       # tokens that anybody may invent must not fill apply's turns
        self.asked_ns = <uint64_t>now
        going_on = []
        for raw, token, until_ns in self.waiting:
            verdict = self.cold.auth.check_token(token)
            if verdict is None and now < until_ns:
                going_on.append((raw, token, until_ns))
            else:
                self.answer_check(raw, verdict)
                answered = 1
        self.waiting = going_on
        return answered

    cdef int answer_check(self, bytes raw, verdict) except -1:
        cdef asker who
        memcpy(&who, PyBytes_AS_STRING(raw), sizeof(asker))
        return self.out.post(&who, IPC_REPLY, 0 if verdict else ERR_INVALID_AUTH_TOKEN, NULL, 0)
