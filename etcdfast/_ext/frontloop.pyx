"""Epoll loop of a frontend process: see frontloop.pxd for the shape of a turn, frontloop.pyi for Python."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset, strlen

from etcdfast._ext.errids cimport (
    ERR_DEADLINE, ERR_ID_MAX, ERR_NOT_LEADER, ERR_NOT_SUPPORTED_FOR_LEARNER, ERR_NO_LEADER, ERR_NO_SPACE, ERR_STOPPED,
)
from etcdfast._ext.frontauth cimport answer_error, auth_admits, auth_admits_message, auth_answered, auth_unpark
from etcdfast._ext.frontconn cimport *
from etcdfast._ext.frontleader cimport (
    lacks_leader, leader_lost_wait_ms, leads, leader_refuses, leader_watch, learner_refuses, timeout_error,
)
from etcdfast._ext.fronthttp cimport http_plain_gone
from etcdfast._ext.frontevents cimport TURN_EVENT_BYTES_MAX, events_deliver
from etcdfast._ext.fronttls cimport HANDSHAKES_MAX
from etcdfast._ext.frontpost cimport (
    RING_APPLY, RING_CONSENSUS, cancel, cancel_retry, fill_record, late_remove, late_retry, post_half, post_message,
    post_request,
)
from etcdfast._ext.grpcwire cimport GRPC_INTERNAL, GRPC_NOT_FOUND, GRPC_UNAVAILABLE
from etcdfast._ext.h2stream cimport (
    h2_begin, h2_drop_request, h2_end, h2_message, h2_part, h2_reply, h2_say, h2_settle,
)
from etcdfast._ext.h2types cimport *
from etcdfast._ext.http2 cimport h2_find, h2_hash, h2_server_free, h2_server_init
from etcdfast._ext.meters cimport (
    M_CLIENT_RECEIVED_BYTES, M_CONNECTIONS_MAX, M_PROPOSALS_FAILED, M_READS_FAILED, METER_AT_CALLS, meter_client,
    meter_count, meter_set, meters_block,
)
from etcdfast._ext.identity cimport IPC_TOKEN_CHECK
from etcdfast._ext.netsys cimport *
from etcdfast._ext.requests cimport REQUEST_MALFORMED, request_check, request_facts
from etcdfast._ext.ring cimport *
from etcdfast._ext.rpcids cimport (
    RPC_ALARM, RPC_COMPACT, RPC_DEFRAGMENT, RPC_DELETE_RANGE, RPC_DOWNGRADE, RPC_ELECTION_CAMPAIGN, RPC_ELECTION_OBSERVE,
    RPC_HASH, RPC_HASH_KV, RPC_HEALTH_CHECK, RPC_HEALTH_LIST, RPC_ID_MAX, RPC_LEASE_GRANT, RPC_LEASE_LEASES,
    RPC_LEASE_REVOKE, RPC_LEASE_TIME_TO_LIVE, RPC_LOCK, RPC_MEMBER_ADD, RPC_MEMBER_LIST, RPC_MEMBER_PROMOTE,
    RPC_MEMBER_REMOVE, RPC_MEMBER_UPDATE, RPC_MOVE_LEADER, RPC_PUT, RPC_RANGE, RPC_RANGE_STREAM, RPC_SNAPSHOT, RPC_STATUS,
    RPC_WATCH,
)
from etcdfast._ext.spin cimport SPIN_NS, sched_yield, spin_in_vain, spin_note, spin_pays
from etcdfast._ext.streamtimers cimport TIMER_TICK_SHIFT, timer_expired, timer_set, timer_stop, timer_wait_ms
from etcdfast._ext.tlscontext cimport TlsContext
from etcdfast._ext.tokenpage cimport TokenReader
from etcdfast._ext.wire cimport WIRE_BYTES, WIRE_MORE, wire_cursor, wire_field, wire_next, wire_put_uint

import os

cdef enum:
    ROUTE_NONE = 0
    ROUTE_PROPOSE = 1
    ROUTE_READ = 2
    ROUTE_APPLY = 3
    ROUTE_LOCAL = 4

cdef enum:
    RAN_ON = 0
    RAN_WAKEUP = 1
    RAN_LIFE = 2
    RAN_DRAINED = 3
    RAN_HTTP = 4
    RAN_BROKEN_RING = 5
    RAN_REJECTED = 6

RUN_WAKEUP = RAN_WAKEUP
RUN_LIFE = RAN_LIFE
RUN_DRAINED = RAN_DRAINED
RUN_HTTP = RAN_HTTP
RUN_BROKEN_RING = RAN_BROKEN_RING
RUN_REJECTED = RAN_REJECTED

cdef uint64_t TAG = <uint64_t>1 << TAG_BIT
cdef uint64_t TAG_DOORBELL = TAG | 1
cdef uint64_t TAG_WAKEUP = TAG | 2
cdef uint64_t TAG_LIFE = TAG | 3
cdef uint64_t TAG_KNOCK = TAG | 4

cdef uint64_t NS = 1000000000
BUFFER_BYTES_MAX = 512 << 20

cdef uint64_t SWEEP_NS = 1000000000


# ---- answers of the frontend itself

cdef void health(loop_t *loop, h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil:
    """grpc.health.v1: the one service is "", which serves while this loop accepts calls."""
    cdef wire_cursor c
    cdef wire_field f
    cdef bint known = True
    if s.method == RPC_HEALTH_LIST:
        h2_reply(s, b"\x0a\x06\x0a\x00\x12\x02\x08\x01", 8)
        return
    c.pos = data
    c.end = data + size
    while wire_next(&c, &f) == WIRE_MORE:
        if f.number == 1 and f.type == WIRE_BYTES:
            known = f.size == 0
    if s.method == RPC_HEALTH_CHECK:
        if known:
            h2_reply(s, b"\x08\x01", 2)
        else:
            h2_say(s, GRPC_NOT_FOUND, b"unknown service")
        return
    s.flags |= STREAM_HEALTH_WATCH
    h2_message(s, b"\x08\x01" if known else b"\x08\x03", 2)
    h2_drop_request(s)


cdef void raise_alarm(loop_t *loop) noexcept nogil:
    """Propose NOSPACE, once while apply has not shown it; again after a second, in case it got lost."""
    cdef uint8_t body[32]
    cdef uint8_t *end
    cdef ipc_record *r
    if status_get(loop.apply_page, ST_ALARMS) & 1 or \
            (loop.alarm_ns and loop.server.now_ns - loop.alarm_ns < NS):
        return
    end = wire_put_uint(body, 1, 1)
    end = wire_put_uint(end, 2, status_get(loop.consensus_page, ST_MEMBER_ID))
    end = wire_put_uint(end, 3, 1)
    r = ring_claim(loop.out[RING_CONSENSUS], <uint32_t>(sizeof(ipc_record) + (end - body)))
    if r == NULL:
        return
    loop.alarm_ns = loop.server.now_ns
    memset(<char *>r + 4, 0, sizeof(ipc_record) - 4)
    r.kind = IPC_PROPOSE
    r.method = RPC_ALARM
    r.frontend = IPC_NOBODY
    memcpy(record_payload(r), body, end - body)
    ring_commit(loop.out[RING_CONSENSUS], r)


# ---- events of http2

cdef void on_open(h2_conn *h2, h2_stream *s) noexcept nogil:
    cdef loop_t *loop = <loop_t *>h2.server.owner
    cdef uint32_t error = 0
    meter_client(s.version, loop.stream_methods >> s.method & 1)
    if loop.drain_step and loop.lasting_methods >> s.method & 1:
        error = ERR_STOPPED
    elif loop.stream_methods >> s.method & 1:
        # A stream is refused before its first message, as by etcd's interceptors.
        error = leader_refuses(loop, s, False)
    if error:
        answer_error(loop, s, error)
    elif s.timeout_ns:
        s.deadline_is_clients = True
        # One less: a timeout of nothing (kept as 1) has passed by on_call, whatever the clock's step is.
        s.client_deadline_ns = loop.server.now_ns + min(s.timeout_ns, <uint64_t>1 << 60) - 1
        timer_set(&loop.timers, s, s.client_deadline_ns)


cdef inline void forget(loop_t *loop, h2_stream *s) noexcept nogil:
    """Nobody waits for its answer any more: what is not posted stays so, and apply is told if it works for it."""
    timer_stop(&loop.timers, s)
    if s.flags & STREAM_LATE:
        late_remove(loop, s)
    if s.flags & STREAM_PARKED:
        auth_unpark(s)
    if s.flags & STREAM_CANCELLABLE:
        cancel(loop, s)


cdef inline void note_failed(loop_t *loop, h2_stream *s) noexcept nogil:
    """What consensus should have ordered was not."""
    if s.flags & STREAM_READS:
        meter_count(M_READS_FAILED, 1)
    elif loop.route[s.method] == ROUTE_PROPOSE and s.flags & (STREAM_DISPATCHED | STREAM_LATE):
        meter_count(M_PROPOSALS_FAILED, 1)


cdef void expire(loop_t *loop, h2_stream *s) noexcept nogil:
    note_failed(loop, s)
    answer_error(loop, s, ERR_DEADLINE if s.deadline_is_clients else timeout_error(loop, s))
    forget(loop, s)


cdef void end_leaderless(loop_t *loop) noexcept nogil:
    """Streams whose client asked for a leader (metadata hasleader) end when there has been none for too long."""
    cdef uint32_t slot
    cdef h2_stream *s
    cdef h2_stream *after
    for slot in range(loop.conn_room):
        if loop.conns[slot] == NULL or loop.conns[slot].h2 == NULL:
            continue
        s = loop.conns[slot].h2.streams
        while s != NULL:
            after = s.list_next
            if s.flags & STREAM_OPENED and not s.flags & (STREAM_NO_LEADER_OK | STREAM_ANSWERED) and \
                    loop.stream_methods >> s.method & 1:
                answer_error(loop, s, ERR_NO_LEADER)
                forget(loop, s)
            s = after


cdef void on_gone(h2_conn *h2, h2_stream *s) noexcept nogil:
    forget(<loop_t *>h2.server.owner, s)


cdef void say_malformed(loop_t *loop, h2_stream *s) noexcept nogil:
    """In grpc-go's words, which differ for streams."""
    if loop.stream_methods >> s.method & 1:
        h2_say(s, GRPC_INTERNAL, b"grpc: failed to unmarshal the received message: "
            b"proto: cannot parse invalid wire-format data")
    else:
        h2_say(s, GRPC_INTERNAL, b"grpc: error unmarshalling request: "
            b"proto: cannot parse invalid wire-format data")


cdef inline bint too_late(loop_t *loop, h2_stream *s) noexcept nogil:
    return s.client_deadline_ns != 0 and s.client_deadline_ns <= loop.server.now_ns


cdef inline void note_received(loop_t *loop, h2_stream *s, uint32_t size) noexcept nogil:
    loop.server.counters.received[s.method] += 1
    meter_count(M_CLIENT_RECEIVED_BYTES, size)


cdef void on_call(h2_conn *h2, h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil:
    cdef loop_t *loop = <loop_t *>h2.server.owner
    cdef request_facts facts
    cdef int route = loop.route[s.method]
    cdef int kind, ring
    cdef int rc = request_check(s.method, data, size, loop.txn_ops_max, &facts)
    note_received(loop, s, size)
    if rc < 0:
        if rc == REQUEST_MALFORMED:
            say_malformed(loop, s)
        else:
            h2_say(s, GRPC_UNAVAILABLE, b"out of memory")
    elif learner_refuses(loop, s, facts.serializable):
        answer_error(loop, s, ERR_NOT_SUPPORTED_FOR_LEARNER)
    elif route == ROUTE_LOCAL:
        health(loop, s, data, size)
    elif lacks_leader(loop, s):
        answer_error(loop, s, ERR_NO_LEADER)
    elif s.method == RPC_MOVE_LEADER and not leads(loop) and not status_get(loop.apply_page, ST_AUTH_ENABLED):
        answer_error(loop, s, ERR_NOT_LEADER)
    else:
        if facts.cost:
            # etcd asks the quota before it looks at the request any further.
            if loop.quota_bytes and status_get(loop.apply_page, ST_DB_BYTES) + facts.cost >= loop.quota_bytes:
                raise_alarm(loop)
                rc = ERR_NO_SPACE
        if rc:
            answer_error(loop, s, <uint32_t>rc)
        elif too_late(loop, s):
            answer_error(loop, s, ERR_DEADLINE)
    if s.flags & STREAM_ANSWERED or route == ROUTE_LOCAL:
        timer_stop(&loop.timers, s)
        return
    kind = IPC_PROPOSE
    ring = RING_CONSENSUS
    if route == ROUTE_APPLY or (facts.serializable and (route == ROUTE_READ or facts.read_only)):
        kind = IPC_CALL
        ring = RING_APPLY
    elif route == ROUTE_READ or facts.read_only:
        kind = IPC_READ
        s.flags |= STREAM_READS
    if facts.new_id:
        s.flags |= STREAM_NEW_ID
    # What consensus orders is bounded as in etcd: 5 s and two election timeouts. The removal that a
    # physical compaction waits for may take longer.
    if ring == RING_CONSENSUS and not facts.physical and \
            (s.timer_slot < 0 or s.deadline_ns > loop.server.now_ns + loop.request_timeout_ns):
        s.deadline_is_clients = False
        timer_set(&loop.timers, s, loop.server.now_ns + loop.request_timeout_ns)
    if not status_get(loop.apply_page, ST_AUTH_ENABLED) or auth_admits(loop, s, &ring, &kind):
        post_request(loop, s, ring, kind, data, size)


cdef bint on_message(h2_conn *h2, h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil:
    cdef loop_t *loop = <loop_t *>h2.server.owner
    cdef request_facts facts
    note_received(loop, s, size)
    if request_check(s.method, data, size, loop.txn_ops_max, &facts) < 0:
        say_malformed(loop, s)
    elif not s.flags & (STREAM_DISPATCHED | STREAM_LATE) and too_late(loop, s):
        answer_error(loop, s, ERR_DEADLINE)
    elif (s.flags & STREAM_PARKED or status_get(loop.apply_page, ST_AUTH_ENABLED)) and not auth_admits_message(loop, s) \
            and not s.flags & STREAM_ANSWERED:
        return False
    if s.flags & STREAM_ANSWERED:
        forget(loop, s)
        return True
    return post_message(loop, s, data, size)


cdef void on_half(h2_conn *h2, h2_stream *s) noexcept nogil:
    post_half(<loop_t *>h2.server.owner, s)


# ---- answers from apply

cdef void finish(loop_t *loop, h2_stream *s, ipc_record *r) noexcept nogil:
    cdef uint32_t size = record_payload_len(r)
    if r.status and size and r.status <= loop.errors:
        h2_end(s, loop.error_code[r.status], record_payload(r), size)
    else:
        answer_error(loop, s, r.status)


cdef void answer_begun(loop_t *loop, h2_stream *s) noexcept nogil:
    """From here on the client's own pace decides how long it takes, so only its own deadline stays."""
    if s.flags & STREAM_BIDI:
        return     # never had another one
    s.flags |= STREAM_CREDITED
    if s.deadline_is_clients or s.timer_slot < 0:
        return
    timer_stop(&loop.timers, s)
    if s.client_deadline_ns:
        s.deadline_is_clients = True
        timer_set(&loop.timers, s, s.client_deadline_ns)


cdef void deliver(loop_t *loop, ipc_record *r) noexcept nogil:
    cdef conn_t *conn
    cdef h2_stream *s
    if r.slot >= loop.conn_room:
        return
    conn = loop.conns[r.slot]
    if conn == NULL or conn.generation != r.generation or conn.h2 == NULL:
        return
    if r.method == IPC_TOKEN_CHECK:
        auth_answered(loop, conn, r)
        return
    s = h2_find(conn.h2, r.stream)
    if s == NULL or s.flags & STREAM_ANSWERED:
        return
    if r.kind == IPC_REPLY and r.status == 0:
        h2_reply(s, <const uint8_t *>record_payload(r), record_payload_len(r))
    elif r.kind == IPC_MESSAGE:
        answer_begun(loop, s)
        h2_message(s, <const uint8_t *>record_payload(r), record_payload_len(r))
    elif r.kind == IPC_BEGIN:
        answer_begun(loop, s)
        h2_begin(s, <uint32_t>r.index)
    elif r.kind == IPC_PART:
        h2_part(s, <const uint8_t *>record_payload(r), record_payload_len(r))
    elif r.kind == IPC_END or r.kind == IPC_REPLY or r.kind == IPC_REFUSE:
        if r.kind == IPC_REFUSE:
            note_failed(loop, s)
        finish(loop, s, r)
    if s.flags & STREAM_ANSWERED:
        s.flags &= ~<uint32_t>STREAM_CANCELLABLE   # apply has ended it
        forget(loop, s)


cdef int drain_answers(loop_t *loop) noexcept nogil:
    """All that apply has answered; of watch events no more than the sockets take in a turn, since each record
    may become a thousand messages."""
    cdef ipc_record *r
    cdef uint64_t events = 0
    loop.answers_wait = False
    while True:
        r = ring_peek(loop.af)
        if r == NULL:
            return -1 if ring_broken(loop.af) else 0
        if r.kind == IPC_EVENTS:
            events += events_deliver(loop, r)
        else:
            deliver(loop, r)
        ring_advance(loop.af, r)
        if events > TURN_EVENT_BYTES_MAX:
            loop.answers_wait = True
            return 0


cdef bint owes_credit(h2_stream *s) noexcept nogil:
    if s.flags & STREAM_ANSWERED or s.sent_bytes == 0:
        return False
    if s.flags & STREAM_COUNTED:
        return s.sent_bytes >= CREDIT_COUNTED_BYTES
    return s.sent_bytes >= CREDIT_STEP_BYTES or s.out_head == NULL


cdef void give_credit(loop_t *loop) noexcept nogil:
    """CREDIT for what the sockets took. Streams that find no room keep their place for the next turn."""
    cdef h2_stream *s = loop.server.sent
    cdef h2_stream *after
    cdef ipc_record *r
    while s != NULL:
        after = s.sent_next
        if owes_credit(s):
            r = ring_claim(loop.out[RING_APPLY], sizeof(ipc_record))
            if r == NULL:
                ring_publish(loop.out[RING_APPLY])
                if not ring_await_room(loop.out[RING_APPLY], sizeof(ipc_record)):
                    return
                continue
            fill_record(loop, r, s, IPC_CREDIT)
            r.index = s.sent_bytes
            ring_commit(loop.out[RING_APPLY], r)
            s.sent_bytes = 0
        sent_remove(s)
        s = after


# ---- the loop

cdef inline bint has_news(loop_t *loop) noexcept nogil:
    """Whether there is something for Python."""
    return loop.told_count != 0 or loop.server.told != NULL or loop.python_due


cdef int wait_ms(loop_t *loop) noexcept nogil:
    cdef int timer
    # The sweep tells of refused handshakes, and opens listeners again that ran out of descriptors.
    cdef int most = 1000 if loop.conn_count or loop.tls_rejected != loop.tls_told or not loop.listening else -1
    if loop.drain_step:
        most = 20
    if loop.server.dirty != NULL or loop.answers_wait or has_news(loop) or (loop.ready_head != NULL and not conn_paused(loop)):
        return 0
    if loop.leaderless_ns:
        most = leader_lost_wait_ms(loop, most)
    timer = timer_wait_ms(&loop.timers, loop.server.now_ns)
    if timer < 0:
        return most
    return timer if most < 0 or timer < most else most


cdef void take_event(loop_t *loop, epoll_event *event) noexcept nogil:
    cdef uint64_t tag = event.data.u64
    cdef conn_t *conn
    if tag & TAG:
        if tag == TAG_WAKEUP:
            loop.woken = True
        elif tag == TAG_LIFE:
            loop.life_gone = True
        elif tag == TAG_KNOCK:
            loop.python_due = True
        elif tag & <uint64_t>1 << TAG_LISTEN_BIT and not loop.drain_step:
            conn_accept(loop, <uint32_t>tag)
        return     # the doorbell is edge-triggered and needs no read
    conn = loop.conns[<uint32_t>tag]
    if not conn.used or conn.generation != <uint32_t>(tag >> 32):
        return     # closed earlier in this batch of events
    conn_event(loop, conn, event.events)


cdef bint wait_awake(loop_t *loop, epoll_event *events, int *found) noexcept nogil:
    """Look for answers and events without sleeping; False when nothing came in time."""
    cdef uint64_t until = clock_ns() + SPIN_NS
    found[0] = 0
    while ring_peek(loop.af) == NULL:
        found[0] = epoll_wait(loop.epoll_fd, events, EVENTS_MAX, 0)
        if found[0]:
            return True
        sched_yield()
        if clock_ns() >= until:
            spin_in_vain(&loop.spin)
            return False
    return True


cdef int turn(loop_t *loop) noexcept nogil:
    cdef epoll_event events[EVENTS_MAX]
    cdef int timeout = wait_ms(loop)
    cdef int n, i
    cdef h2_stream *s
    spin_note(&loop.spin, loop.timers.count)   # each call that waits for consensus has a timer
    if not (timeout and spin_pays(&loop.spin) and wait_awake(loop, events, &n)):
        if timeout and not ring_sleep(loop.af):
            timeout = 0
        n = epoll_wait(loop.epoll_fd, events, EVENTS_MAX, timeout)
        if timeout:
            ring_awake(loop.af)
    loop.turns += 1
    loop.server.now_ns = clock_ns()
    for i in range(n):
        take_event(loop, &events[i])
    if drain_answers(loop) < 0:
        return RAN_BROKEN_RING
    if loop.cancel_count:
        cancel_retry(loop)
    if loop.late_count:
        late_retry(loop)
    conn_read_ready(loop)
    if loop.late_count:
        late_retry(loop)   # asks for the knock, too, for what has begun to wait
    ring_publish(loop.out[RING_CONSENSUS])
    ring_publish(loop.out[RING_APPLY])
    s = timer_expired(&loop.timers, loop.server.now_ns)
    while s != NULL:
        expire(loop, s)
        s = timer_expired(&loop.timers, loop.server.now_ns)
    if leader_watch(loop):
        end_leaderless(loop)
    if loop.cancel_count:
        cancel_retry(loop)
    if loop.drain_step:
        conn_drain(loop)
    if loop.drain_step or loop.server.now_ns - loop.sweep_ns > SWEEP_NS:
        conn_sweep(loop)
    conn_flush_dirty(loop)
    give_credit(loop)
    ring_publish(loop.out[RING_CONSENSUS])
    ring_publish(loop.out[RING_APPLY])
    h2_settle(&loop.server)
    ring_release(loop.af)
    if conn_shed(loop):
        ring_publish(loop.out[RING_APPLY])   # CANCEL for what was under way
    if loop.life_gone:
        return RAN_LIFE
    if loop.woken:
        loop.woken = False
        return RAN_WAKEUP
    if has_news(loop):
        return RAN_HTTP
    if loop.drain_step and loop.conn_count == 0:
        return RAN_DRAINED
    if loop.tell_rejected:
        loop.tell_rejected = False
        return RAN_REJECTED
    return RAN_ON


cdef class FrontLoop:
    def __cinit__(self):
        self.loop = <loop_t *>calloc(1, sizeof(loop_t))
        if self.loop == NULL:
            raise MemoryError
        self.loop.epoll_fd = -1

    def __init__(self, *, int index, int doorbell, Ring to_consensus not None, Ring to_apply not None,
                 Ring from_apply not None, StatusPage consensus_page not None, StatusPage apply_page not None,
                 listeners, int wakeup, int life, rpcs, errors, roles=(), int knock=-1, uint32_t message_bytes_max,
                 uint32_t txn_ops_max=128, uint32_t streams_max=4096, uint32_t connections_max=4096,
                 uint64_t quota_bytes=0, uint64_t buffer_bytes_max=BUFFER_BYTES_MAX, double request_timeout_seconds=7.0,
                 double election_timeout_seconds=1.0, double ping_min_seconds=5.0,
                 double keepalive_idle_seconds=7200.0, double keepalive_timeout_seconds=20.0,
                 double header_seconds=10.0, double drain_seconds=5.0, TlsContext tls=None, tls_listeners=(),
                 TokenReader tokens=None, bint cert_names=False,
                 double handshake_seconds=10.0, uint32_t handshakes_max=HANDSHAKES_MAX,
                 bint share_figures=False):
        cdef loop_t *loop = self.loop
        cdef int i
        loop.index = <uint8_t>index
        self.kept = [to_consensus, to_apply, from_apply, consensus_page, apply_page]
        loop.out[RING_CONSENSUS] = &to_consensus.view
        loop.out[RING_APPLY] = &to_apply.view
        loop.af = &from_apply.view
        loop.consensus_page = consensus_page.page
        loop.apply_page = apply_page.page
        if sizeof(ipc_record) + <uint64_t>message_bytes_max + 8 > min(to_consensus.capacity, to_apply.capacity):
            raise ValueError(f"a ring is smaller than a message of {message_bytes_max} bytes")
        if tokens is not None:
            self.kept.append(tokens)
            loop.tokens = &tokens.view
        loop.cert_names = cert_names
        for i in (RPC_RANGE, RPC_PUT, RPC_DELETE_RANGE, RPC_COMPACT, RPC_RANGE_STREAM, RPC_LEASE_GRANT, RPC_LEASE_REVOKE,
                  RPC_LEASE_TIME_TO_LIVE, RPC_LEASE_LEASES, RPC_MEMBER_ADD, RPC_MEMBER_REMOVE, RPC_MEMBER_UPDATE,
                  RPC_MEMBER_LIST, RPC_MEMBER_PROMOTE, RPC_ALARM, RPC_STATUS, RPC_DEFRAGMENT, RPC_HASH, RPC_HASH_KV,
                  RPC_SNAPSHOT, RPC_MOVE_LEADER, RPC_DOWNGRADE):
            loop.identity_methods |= <uint64_t>1 << i
        loop.txn_ops_max = txn_ops_max
        loop.conns_max = connections_max
        loop.quota_bytes = quota_bytes
        loop.request_timeout_ns = <uint64_t>(request_timeout_seconds * 1e9)
        loop.election_ns = <uint64_t>(max(election_timeout_seconds, 0.0) * 1e9)
        loop.keepalive_idle_ns = <uint64_t>(keepalive_idle_seconds * 1e9)
        loop.keepalive_timeout_ns = <uint64_t>(keepalive_timeout_seconds * 1e9)
        loop.header_ns = <uint64_t>(header_seconds * 1e9)
        loop.drain_ns = <uint64_t>(drain_seconds * 1e9)
        loop.handshake_ns = <uint64_t>(handshake_seconds * 1e9)
        loop.shaking_max = handshakes_max
        loop.server.owner = loop
        loop.server.counters = &loop.counters
        if share_figures:
            loop.server.counters = <h2_counters *>(meters_block + METER_AT_CALLS)
            # Of a former life of the process; counters go on, what is held now begins anew.
            loop.server.counters.request_buffer_bytes = loop.server.counters.answer_buffer_bytes = 0
        meter_set(M_CONNECTIONS_MAX, connections_max)
        loop.server.message_bytes_max = message_bytes_max
        loop.server.streams_max = streams_max
        loop.server.budget_bytes = buffer_bytes_max
        loop.late_bytes_max = min(<uint64_t>LATE_BYTES_MAX, buffer_bytes_max // LATE_SHARE_OF_BUDGET)
        loop.server.ping_min_ns = <uint64_t>(ping_min_seconds * 1e9)
        loop.server.now_ns = loop.sweep_ns = clock_ns()
        loop.timers.tick = loop.server.now_ns >> TIMER_TICK_SHIFT
        loop.server.on_open = on_open
        loop.server.on_call = on_call
        loop.server.on_message = on_message
        loop.server.on_half = on_half
        loop.server.on_refused = on_gone
        loop.server.on_gone = on_gone
        loop.server.on_plain_gone = http_plain_gone
        self._set_routes(rpcs)
        self._set_errors(errors)
        loop.buf = <uint8_t *>malloc(READ_BYTES)
        loop.listener_count = <uint32_t>len(listeners)
        loop.listeners = <int *>malloc(max(1, len(listeners)) * sizeof(int))
        self._set_tls(tls, tls_listeners)
        loop.roles = <uint8_t *>calloc(max(1, len(listeners)), 1)
        if loop.buf == NULL or loop.roles == NULL or loop.listeners == NULL or h2_server_init(&loop.server) < 0:
            raise MemoryError
        for i, fd in enumerate(listeners):
            loop.listeners[i] = fd
        for i, role in enumerate(roles):
            loop.roles[i] = role
        loop.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if loop.epoll_fd < 0:
            raise OSError(errno, os.strerror(errno))
        self._watch(doorbell, TAG_DOORBELL, EPOLLIN | <uint32_t>EPOLLET)
        self._watch(wakeup, TAG_WAKEUP, EPOLLIN)
        self._watch(life, TAG_LIFE, EPOLLIN)
        if knock >= 0:
            self._watch(knock, TAG_KNOCK, EPOLLIN | <uint32_t>EPOLLET)
        conn_listen(loop, True)

    cdef _set_tls(self, TlsContext tls, tls_listeners):
        cdef loop_t *loop = self.loop
        loop.listener_tls = <bint *>calloc(max(1, loop.listener_count), sizeof(bint))
        loop.listener_on = <bint *>calloc(max(1, loop.listener_count), sizeof(bint))
        if loop.listener_tls == NULL or loop.listener_on == NULL:
            raise MemoryError
        for i in tls_listeners:
            if tls is None or not 0 <= i < loop.listener_count:
                raise ValueError(f"listener {i} cannot be of TLS")
            loop.listener_tls[i] = True
        if tls is not None:
            self.kept.append(tls)
            loop.tls = &tls.ctx

    cdef _watch(self, int fd, unsigned long tag, unsigned int what):
        cdef epoll_event event
        event.events = what
        event.data.u64 = tag
        if epoll_ctl(self.loop.epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0:
            raise OSError(errno, os.strerror(errno))

    cdef _set_routes(self, rpcs):
        cdef h2_server *server = &self.loop.server
        cdef uint32_t i
        cdef uint32_t size = 8
        routes = {"none": ROUTE_NONE, "propose": ROUTE_PROPOSE, "read": ROUTE_READ, "apply": ROUTE_APPLY,
                  "local": ROUTE_LOCAL}
        for rpc_id, _, kind, _ in rpcs:
            if not 0 <= rpc_id <= RPC_ID_MAX:
                raise ValueError(f"RPC id {rpc_id} is out of range")
            server.bidi_methods |= <uint64_t>(kind == "bidi") << rpc_id
            self.loop.stream_methods |= <uint64_t>(kind != "unary") << rpc_id
        server.counted_methods = <uint64_t>1 << RPC_WATCH
        self.loop.lasting_methods = server.bidi_methods | <uint64_t>1 << RPC_ELECTION_OBSERVE | \
            <uint64_t>1 << RPC_LOCK | <uint64_t>1 << RPC_ELECTION_CAMPAIGN
        server.bidi_factor = int.from_bytes(os.urandom(4), "big") | 1
        entries = {path: (rpc_id, routes[route]) for rpc_id, path, _, route in rpcs}
        for path in list(entries):
            entries[path.split(b"/")[1]] = (0, ROUTE_NONE)
        while size < 4 * len(entries):
            size *= 2
        server.routes = <h2_route *>calloc(size, sizeof(h2_route))
        if server.routes == NULL:
            raise MemoryError
        server.routes_mask = size - 1
        for path, (rpc_id, route) in entries.items():
            self.kept.append(path)
            i = h2_hash(<const uint8_t *><const char *>path, len(path)) & server.routes_mask
            while server.routes[i].path != NULL:
                i = (i + 1) & server.routes_mask
            server.routes[i].path = <const char *>path
            server.routes[i].size = <uint32_t>len(path)
            server.routes[i].method = <uint8_t>rpc_id
            server.routes[i].served = route != ROUTE_NONE
            if rpc_id:
                self.loop.route[rpc_id] = <uint8_t>route

    cdef _set_errors(self, errors):
        cdef int i
        if not ERR_ID_MAX < len(errors) <= ERRORS_MAX:
            raise ValueError(f"{len(errors)} errors do not fit the ids")
        for i, (code, text) in enumerate(errors):
            self.kept.append(text)
            self.loop.error_code[i] = code
            self.loop.error_text[i] = <const char *>text
            self.loop.error_size[i] = <uint32_t>len(text)
        self.loop.errors = <uint32_t>len(errors) - 1

    def __dealloc__(self):
        cdef loop_t *loop = self.loop
        if loop == NULL:
            return
        conn_free_all(loop)
        if loop.epoll_fd >= 0:
            close_fd(loop.epoll_fd)
        h2_server_free(&loop.server)
        free(loop.server.routes)
        free(loop.buf)
        free(loop.told)
        free(loop.roles)
        free(loop.listeners)
        free(loop.listener_tls)
        free(loop.listener_on)
        free(loop.cancels)
        free(loop)

    def run(self):
        cdef int why = RAN_ON
        with nogil:
            # What Python has done since.
            give_credit(self.loop)
            ring_publish(self.loop.out[RING_CONSENSUS])
            ring_publish(self.loop.out[RING_APPLY])
            while why == RAN_ON:
                why = turn(self.loop)
        return why

    def set_quota(self, uint64_t quota_bytes):
        self.loop.quota_bytes = quota_bytes

    def take_rejected(self):
        cdef loop_t *loop = self.loop
        count = loop.tls_rejected - loop.tls_told
        loop.tls_told = loop.tls_rejected
        return count, loop.rejected_why.decode("utf-8", "replace"), \
            PyBytes_FromStringAndSize(<char *>loop.rejected_from, loop.rejected_from_size)

    def begin_drain(self):
        if self.loop.drain_step == 0:
            conn_listen(self.loop, False)
            self.loop.server.now_ns = clock_ns()
            self.loop.drain_since_ns = self.loop.server.now_ns
            self.loop.drain_step = 1

    def counters(self):
        cdef loop_t *loop = self.loop
        cdef h2_counters *c = loop.server.counters
        cdef int rpc, code
        return {
            "started": {rpc: c.started[rpc] for rpc in range(RPC_ID_MAX + 1) if c.started[rpc]},
            "handled": {(rpc, code): c.handled[rpc][code] for rpc in range(RPC_ID_MAX + 1) for code in range(17)
                        if c.handled[rpc][code]},
            "unknown_calls": c.unknown_calls,
            "received_bytes": c.received_bytes,
            "sent_bytes": c.sent_bytes,
            "goaways": {code: c.goaways[code] for code in range(16) if c.goaways[code]},
            "request_buffer_bytes": c.request_buffer_bytes,
            "answer_buffer_bytes": c.answer_buffer_bytes,
            "answer_buffer_bytes_peak": c.answer_buffer_peak,
            "held_bytes": loop.server.held_bytes,
            "closing_bytes": loop.closing_bytes,
            "connections": loop.conn_count,
            "connections_accepted": loop.accepted,
            "connections_refused": loop.refused_connections,
            "handshakes": loop.shaken,
            "handshakes_rejected": loop.tls_rejected,
            "handshakes_under_way": loop.shaking_count,
            "timers": loop.timers.count,
            "requests_waiting": loop.late_count,
            "requests_waiting_bytes": loop.late_bytes,
            "ring_full": loop.ring_full,
            "turns": loop.turns,
            "reads": loop.reads,
            "writes": loop.writes,
        }
