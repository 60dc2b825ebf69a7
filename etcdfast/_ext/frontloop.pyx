"""Epoll loop of a frontend process: see frontloop.pxd for the shape of a turn, frontloop.pyi for Python."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, ENFILE, EMFILE, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset, strlen

from etcdfast._ext.errids cimport ERR_DEADLINE, ERR_ID_MAX, ERR_NO_LEADER, ERR_NO_SPACE, ERR_TIMEOUT
from etcdfast._ext.grpcwire cimport GRPC_INTERNAL, GRPC_NOT_FOUND, GRPC_PREFIX_BYTES, GRPC_UNAVAILABLE
from etcdfast._ext.http2 cimport *
from etcdfast._ext.requests cimport REQUEST_MALFORMED, request_check, request_facts
from etcdfast._ext.ring cimport *
from etcdfast._ext.rpcids cimport (
    RPC_ALARM, RPC_COMPACT, RPC_DEFRAGMENT, RPC_HEALTH_CHECK, RPC_HEALTH_LIST, RPC_HEALTH_WATCH, RPC_ID_MAX,
    RPC_MEMBER_LIST, RPC_RANGE, RPC_RANGE_STREAM, RPC_TXN,
)
from etcdfast._ext.wire cimport WIRE_BYTES, WIRE_MORE, wire_cursor, wire_field, wire_next, wire_put_uint

import os

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLLIN
        EPOLLOUT
        EPOLLRDHUP
        EPOLLHUP
        EPOLLERR
        EPOLLET

cdef extern from "<sys/socket.h>" nogil:
    int accept4(int fd, void *address, void *size, int flags)
    int shutdown(int fd, int how)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int size)
    ssize_t recv(int fd, void *buf, size_t size, int flags)
    ssize_t send(int fd, const void *buf, size_t size, int flags)
    enum:
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        SHUT_WR
        SOL_SOCKET
        SO_KEEPALIVE
        MSG_NOSIGNAL

cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_NODELAY

cdef extern from "<netinet/in.h>" nogil:
    enum:
        IPPROTO_TCP

cdef extern from "<unistd.h>" nogil:
    int close_fd "close" (int fd)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *t)
    enum:
        CLOCK_MONOTONIC

cdef enum:
    RING_CONSENSUS = 0
    RING_APPLY = 1

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
    RAN_HANDOFF = 4
    RAN_BROKEN_RING = 5

RUN_WAKEUP = RAN_WAKEUP
RUN_LIFE = RAN_LIFE
RUN_DRAINED = RAN_DRAINED
RUN_HANDOFF = RAN_HANDOFF
RUN_BROKEN_RING = RAN_BROKEN_RING

# epoll data: connections are generation << 32 | slot with the top bit clear, the rest are these.
cdef uint64_t TAG = 1ull << 63
cdef uint64_t TAG_DOORBELL = TAG | 1
cdef uint64_t TAG_WAKEUP = TAG | 2
cdef uint64_t TAG_LIFE = TAG | 3
cdef uint64_t TAG_LISTEN = TAG | 1ull << 32

cdef uint64_t NS = 1000000000
cdef uint64_t SWEEP_NS = 1000000000
cdef uint64_t DRAIN_NOTICE_NS = 100000000   # between GOAWAY that announces and the one that fixes the last stream


cdef inline uint64_t clock_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000u + <uint64_t>t.tv_nsec


# ---- timer wheel: O(1) to set and to stop, one list per tick

cdef inline void timer_stop(loop_t *loop, h2_stream *s) noexcept nogil:
    cdef uint32_t slot
    if s.timer_slot < 0:
        return
    slot = <uint32_t>s.timer_slot
    if s.timer_prev != NULL:
        s.timer_prev.timer_next = s.timer_next
    else:
        loop.wheel[slot] = s.timer_next
        if s.timer_next == NULL:
            loop.wheel_bits[slot >> 6] &= ~(<uint64_t>1 << (slot & 63))
    if s.timer_next != NULL:
        s.timer_next.timer_prev = s.timer_prev
    s.timer_slot = -1
    loop.timers -= 1


cdef inline void timer_set(loop_t *loop, h2_stream *s, uint64_t deadline_ns) noexcept nogil:
    cdef uint64_t tick = (deadline_ns >> TIMER_TICK_SHIFT) + 1
    cdef uint32_t slot
    timer_stop(loop, s)
    s.deadline_ns = deadline_ns
    if tick <= loop.wheel_tick:
        tick = loop.wheel_tick + 1
    elif tick >= loop.wheel_tick + TIMER_SLOTS:
        tick = loop.wheel_tick + TIMER_SLOTS - 1
    slot = <uint32_t>(tick & (TIMER_SLOTS - 1))
    s.timer_prev = NULL
    s.timer_next = loop.wheel[slot]
    if s.timer_next != NULL:
        s.timer_next.timer_prev = s
    loop.wheel[slot] = s
    loop.wheel_bits[slot >> 6] |= <uint64_t>1 << (slot & 63)
    s.timer_slot = <int32_t>slot
    loop.timers += 1


cdef void run_timers(loop_t *loop) noexcept nogil:
    cdef uint64_t now = loop.server.now_ns
    cdef uint64_t tick = now >> TIMER_TICK_SHIFT
    cdef uint32_t slot
    cdef h2_stream *s
    cdef h2_stream *after
    if tick - loop.wheel_tick > TIMER_SLOTS:
        loop.wheel_tick = tick - TIMER_SLOTS
    while loop.wheel_tick < tick:
        loop.wheel_tick += 1
        slot = <uint32_t>(loop.wheel_tick & (TIMER_SLOTS - 1))
        s = loop.wheel[slot]
        while s != NULL:
            after = s.timer_next
            timer_stop(loop, s)
            if s.deadline_ns > now:
                timer_set(loop, s, s.deadline_ns)
            else:
                expire(loop, s)
            s = after


cdef int timer_wait_ms(loop_t *loop) noexcept nogil:
    """Until the next slot that holds a timer; -1 when none does."""
    cdef uint32_t ahead = 1
    cdef uint32_t slot
    cdef uint64_t word
    cdef uint64_t due
    if loop.timers == 0:
        return -1
    while ahead < TIMER_SLOTS:
        slot = <uint32_t>((loop.wheel_tick + ahead) & (TIMER_SLOTS - 1))
        word = loop.wheel_bits[slot >> 6] >> (slot & 63)
        if word & 1:
            break
        ahead += 1 if word else 64 - (slot & 63)
    due = (loop.wheel_tick + ahead) << TIMER_TICK_SHIFT
    return <int>((due - loop.server.now_ns) // 1000000 + 1) if due > loop.server.now_ns else 0


# ---- answers of the frontend itself

cdef inline void say(h2_stream *s, int code, const char *text) noexcept nogil:
    h2_end(s, code, text, <uint32_t>strlen(text))


cdef inline void answer_error(loop_t *loop, h2_stream *s, uint32_t error) noexcept nogil:
    if error > loop.errors:
        say(s, GRPC_INTERNAL, b"unknown error id")
    else:
        h2_end(s, loop.error_code[error], loop.error_text[error], loop.error_size[error])


cdef void expire(loop_t *loop, h2_stream *s) noexcept nogil:
    late_remove(loop, s)
    answer_error(loop, s, ERR_DEADLINE if s.deadline_is_clients else ERR_TIMEOUT)
    cancel(loop, s)


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
            say(s, GRPC_NOT_FOUND, b"unknown service")
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


# ---- requests into the rings

cdef inline void fill_record(loop_t *loop, ipc_record *r, h2_stream *s, int kind) noexcept nogil:
    cdef conn_t *conn = <conn_t *>s.conn.owner
    r.kind = <uint8_t>kind
    r.method = s.method
    r.frontend = loop.index
    r.flags = IPC_FLAG_CREDIT
    r.slot = conn.slot
    r.generation = conn.generation
    r.stream = <uint32_t>s.id
    r.status = 0
    r.index = 0
    r.term = s.deadline_ns


cdef inline bint post(loop_t *loop, h2_stream *s, int ring, int kind, const uint8_t *data, uint32_t size) noexcept nogil:
    """Write the request's record; False while it does not fit."""
    cdef ipc_record *r = ring_claim(loop.out[ring], <uint32_t>sizeof(ipc_record) + size)
    if r == NULL:
        return False
    fill_record(loop, r, s, kind)
    memcpy(record_payload(r), data, size)
    ring_commit(loop.out[ring], r)
    s.flags |= STREAM_DISPATCHED
    if kind != IPC_PROPOSE:
        s.flags |= STREAM_CANCELLABLE
    return True


cdef void late_add(loop_t *loop, h2_stream *s, int ring, int kind) noexcept nogil:
    cdef late_t *late = &loop.late[ring]
    h2_keep_request(s)
    s.flags |= STREAM_LATE
    s.late_ring = <uint8_t>ring
    s.late_kind = <uint8_t>kind
    s.late_next = NULL
    s.late_prev = late.tail
    if late.tail != NULL:
        late.tail.late_next = s
    else:
        late.head = s
    late.tail = s
    loop.late_count += 1


cdef void late_remove(loop_t *loop, h2_stream *s) noexcept nogil:
    cdef late_t *late = &loop.late[s.late_ring]
    if not s.flags & STREAM_LATE:
        return
    s.flags &= ~<uint32_t>STREAM_LATE
    if s.late_prev != NULL:
        s.late_prev.late_next = s.late_next
    else:
        late.head = s.late_next
    if s.late_next != NULL:
        s.late_next.late_prev = s.late_prev
    else:
        late.tail = s.late_prev
    loop.late_count -= 1


cdef void late_retry(loop_t *loop) noexcept nogil:
    cdef int ring
    cdef h2_stream *s
    cdef uint32_t size
    for ring in range(2):
        while loop.late[ring].head != NULL:
            s = loop.late[ring].head
            if s.buf == NULL:
                late_remove(loop, s)
                continue
            size = s.have - GRPC_PREFIX_BYTES
            if not post(loop, s, ring, s.late_kind, s.buf + GRPC_PREFIX_BYTES, size):
                ring_publish(loop.out[ring])
                if not ring_await_room(loop.out[ring], <uint32_t>sizeof(ipc_record) + size):
                    break
                continue
            late_remove(loop, s)
            h2_drop_request(s)


cdef void cancel(loop_t *loop, h2_stream *s) noexcept nogil:
    """Tell apply that nobody waits any more. Best effort: without room the answer is dropped on arrival,
    and a cursor starves for want of credit until its connection's other calls make room."""
    cdef ipc_record *r
    if not s.flags & STREAM_CANCELLABLE:
        return
    s.flags &= ~<uint32_t>STREAM_CANCELLABLE
    r = ring_claim(loop.out[RING_APPLY], sizeof(ipc_record))
    if r != NULL:
        fill_record(loop, r, s, IPC_CANCEL)
        ring_commit(loop.out[RING_APPLY], r)


# ---- events of http2

cdef void on_open(h2_conn *h2, h2_stream *s) noexcept nogil:
    cdef loop_t *loop = <loop_t *>h2.server.owner
    if s.timeout_ns:
        s.deadline_is_clients = True
        timer_set(loop, s, loop.server.now_ns + min(s.timeout_ns, <uint64_t>1 << 60))


cdef void on_gone(h2_conn *h2, h2_stream *s) noexcept nogil:
    cdef loop_t *loop = <loop_t *>h2.server.owner
    timer_stop(loop, s)
    late_remove(loop, s)
    if not s.flags & STREAM_ANSWERED:
        cancel(loop, s)


cdef void on_call(h2_conn *h2, h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil:
    cdef loop_t *loop = <loop_t *>h2.server.owner
    cdef request_facts facts
    cdef int route = loop.route[s.method]
    cdef int kind, ring
    cdef int rc = request_check(s.method, data, size, loop.txn_ops_max, &facts)
    if rc < 0:
        if rc == REQUEST_MALFORMED:
            if s.method == RPC_RANGE_STREAM or s.method == RPC_HEALTH_WATCH:
                say(s, GRPC_INTERNAL, b"grpc: failed to unmarshal the received message: "
                    b"proto: cannot parse invalid wire-format data")
            else:
                say(s, GRPC_INTERNAL, b"grpc: error unmarshalling request: "
                    b"proto: cannot parse invalid wire-format data")
        else:
            say(s, GRPC_UNAVAILABLE, b"out of memory")
    elif route == ROUTE_LOCAL:
        health(loop, s, data, size)
    elif not s.flags & STREAM_NO_LEADER_OK and status_get(loop.consensus_page, ST_LEADER) == 0:
        answer_error(loop, s, ERR_NO_LEADER)
    else:
        if facts.cost:
            # etcd asks the quota before it looks at the request any further.
            if loop.quota_bytes and status_get(loop.apply_page, ST_DB_BYTES) + facts.cost >= loop.quota_bytes:
                raise_alarm(loop)
                rc = ERR_NO_SPACE
        if rc:
            answer_error(loop, s, <uint32_t>rc)
    if s.flags & STREAM_ANSWERED or route == ROUTE_LOCAL:
        timer_stop(loop, s)
        return
    kind = IPC_PROPOSE
    ring = RING_CONSENSUS
    if route == ROUTE_APPLY or (facts.serializable and (route == ROUTE_READ or facts.read_only)):
        kind = IPC_CALL
        ring = RING_APPLY
    elif route == ROUTE_READ or facts.read_only:
        kind = IPC_READ
    # What consensus orders is bounded as in etcd: 5 s and two election timeouts. The removal that a
    # physical compaction waits for may take longer.
    if ring == RING_CONSENSUS and not facts.physical and \
            (s.timer_slot < 0 or s.deadline_ns > loop.server.now_ns + loop.request_timeout_ns):
        s.deadline_is_clients = False
        timer_set(loop, s, loop.server.now_ns + loop.request_timeout_ns)
    if loop.late[ring].head != NULL or not post(loop, s, ring, kind, data, size):
        loop.ring_full += 1
        late_add(loop, s, ring, kind)
    else:
        h2_drop_request(s)


# ---- answers from apply

cdef void finish(loop_t *loop, h2_stream *s, ipc_record *r) noexcept nogil:
    cdef uint32_t size = record_payload_len(r)
    if r.status and size and r.status <= loop.errors:
        h2_end(s, loop.error_code[r.status], record_payload(r), size)
    else:
        answer_error(loop, s, r.status)


cdef void deliver(loop_t *loop, ipc_record *r) noexcept nogil:
    cdef conn_t *conn
    cdef h2_stream *s
    if r.slot >= loop.conn_room:
        return
    conn = loop.conns[r.slot]
    if conn == NULL or conn.generation != r.generation or conn.h2 == NULL:
        return
    s = h2_find(conn.h2, r.stream)
    if s == NULL or s.flags & STREAM_ANSWERED:
        return
    if r.kind == IPC_REPLY and r.status == 0:
        h2_reply(s, <const uint8_t *>record_payload(r), record_payload_len(r))
    elif r.kind == IPC_MESSAGE:
        s.flags |= STREAM_CREDITED
        h2_message(s, <const uint8_t *>record_payload(r), record_payload_len(r))
    elif r.kind == IPC_BEGIN:
        s.flags |= STREAM_CREDITED
        h2_begin(s, <uint32_t>r.index)
    elif r.kind == IPC_PART:
        h2_part(s, <const uint8_t *>record_payload(r), record_payload_len(r))
    elif r.kind == IPC_END or r.kind == IPC_REPLY or r.kind == IPC_REFUSE:
        finish(loop, s, r)
    if s.flags & STREAM_ANSWERED:
        timer_stop(loop, s)


cdef int drain_answers(loop_t *loop) noexcept nogil:
    cdef ipc_record *r
    while True:
        r = ring_peek(loop.af)
        if r == NULL:
            return -1 if ring_broken(loop.af) else 0
        deliver(loop, r)
        ring_advance(loop.af, r)


cdef void give_credit(loop_t *loop) noexcept nogil:
    """CREDIT for what the sockets took. Streams that find no room keep their place for the next turn."""
    cdef h2_stream *s = loop.server.sent
    cdef h2_stream *kept = NULL
    cdef h2_stream *after
    cdef ipc_record *r
    while s != NULL:
        after = s.sent_next
        s.in_sent = False
        if s.flags & STREAM_ANSWERED == 0 and s.sent_bytes:
            if s.sent_bytes >= CREDIT_STEP_BYTES or s.out_head == NULL:
                r = ring_claim(loop.out[RING_APPLY], sizeof(ipc_record))
                if r != NULL:
                    fill_record(loop, r, s, IPC_CREDIT)
                    r.index = s.sent_bytes
                    ring_commit(loop.out[RING_APPLY], r)
                    s.sent_bytes = 0
                else:
                    ring_await_room(loop.out[RING_APPLY], sizeof(ipc_record))
                    s.in_sent = True
                    s.sent_next = kept
                    kept = s
        s = after
    loop.server.sent = kept


# ---- connections

cdef inline void ready_add(loop_t *loop, conn_t *conn) noexcept nogil:
    if conn.in_ready:
        return
    conn.in_ready = True
    conn.ready_next = NULL
    if loop.ready_tail != NULL:
        loop.ready_tail.ready_next = conn
    else:
        loop.ready_head = conn
    loop.ready_tail = conn


cdef void set_listening(loop_t *loop, bint on) noexcept nogil:
    cdef epoll_event event
    cdef uint32_t i
    if loop.listening == on:
        return
    loop.listening = on
    for i in range(loop.listener_count):
        event.events = EPOLLIN
        event.data.u64 = TAG_LISTEN | i
        epoll_ctl(loop.epoll_fd, EPOLL_CTL_ADD if on else EPOLL_CTL_DEL, loop.listeners[i], &event)


cdef conn_t *new_conn(loop_t *loop) noexcept nogil:
    cdef conn_t *conn = loop.free_conns
    cdef conn_t **grown
    cdef uint32_t room, slot
    cdef uint32_t generation
    if conn == NULL:
        room = loop.conn_room * 2 if loop.conn_room else 64
        grown = <conn_t **>realloc(loop.conns, room * sizeof(conn_t *))
        if grown == NULL:
            return NULL
        loop.conns = grown
        for slot in range(loop.conn_room, room):
            grown[slot] = NULL
        slot = loop.conn_room
        loop.conn_room = room
        while slot < room:
            conn = <conn_t *>calloc(1, sizeof(conn_t))
            if conn == NULL:
                break
            conn.slot = slot
            conn.loop = loop
            conn.free_next = loop.free_conns
            loop.free_conns = conn
            grown[slot] = conn
            slot += 1
        conn = loop.free_conns
        if conn == NULL:
            return NULL
    loop.free_conns = conn.free_next
    slot = conn.slot
    generation = (conn.generation + 1) & 0x7FFFFFFF
    memset(conn, 0, sizeof(conn_t))
    conn.loop = loop
    conn.slot = slot
    conn.generation = generation
    conn.used = True
    conn.opened_ns = conn.read_ns = loop.server.now_ns
    loop.conn_count += 1
    return conn


cdef void free_conn(loop_t *loop, conn_t *conn, bint keep_fd) noexcept nogil:
    """Forget the connection. Precondition: it is not in the ready list."""
    if conn.h2 != NULL:
        h2_close(conn.h2)
        conn.h2 = NULL
    free(conn.pending)
    conn.pending = NULL
    if not keep_fd:
        close_fd(conn.fd)
    conn.used = False
    conn.generation = (conn.generation + 1) & 0x7FFFFFFF
    conn.free_next = loop.free_conns
    loop.free_conns = conn
    loop.conn_count -= 1
    if not loop.drain_step:
        set_listening(loop, True)


cdef void drop_conn(loop_t *loop, conn_t *conn) noexcept nogil:
    """End it now. While it is in the ready list only its insides go; read_ready frees the rest."""
    if conn.in_ready:
        if conn.h2 != NULL:
            h2_close(conn.h2)
            conn.h2 = NULL
        conn.state = CONN_LINGER
        conn.peer_done = True
        conn.linger_until_ns = 0
        conn.lingered_bytes = LINGER_BYTES_MAX
        return
    free_conn(loop, conn, False)


cdef void accept_some(loop_t *loop, int listener) noexcept nogil:
    cdef epoll_event event
    cdef conn_t *conn
    cdef int fd, one, i
    one = 1
    for i in range(ACCEPTS_PER_TURN):
        if loop.conn_count >= loop.conns_max:
            # As etcd: the backlog holds the rest until a connection ends.
            set_listening(loop, False)
            return
        fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd < 0:
            if errno == EMFILE or errno == ENFILE:
                loop.refused_connections += 1
                set_listening(loop, False)
            return
        conn = new_conn(loop)
        if conn == NULL:
            close_fd(fd)
            return
        conn.fd = fd
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one))
        event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | <uint32_t>EPOLLET
        event.data.u64 = <uint64_t>conn.generation << 32 | conn.slot
        if epoll_ctl(loop.epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0:
            free_conn(loop, conn, False)
            return
        loop.accepted += 1


cdef void start_linger(loop_t *loop, conn_t *conn) noexcept nogil:
    """All is written: shut our side, then read what the peer still sends until it closes too. Closing with
    unread bytes would reset the connection, and the reset can overtake the GOAWAY."""
    shutdown(conn.fd, SHUT_WR)
    conn.state = CONN_LINGER
    conn.linger_until_ns = loop.server.now_ns + NS
    conn.readable = True
    ready_add(loop, conn)


cdef bint write_out(loop_t *loop, conn_t *conn, const uint8_t *data, uint32_t size) noexcept nogil:
    """Write, keep what the socket does not take. False when the connection is gone."""
    cdef ssize_t n = 0
    cdef uint8_t *kept
    if size == 0:
        return True
    if conn.pending == NULL:
        loop.writes += 1
        n = send(conn.fd, data, size, MSG_NOSIGNAL)
        if n == <ssize_t>size:
            return True
        if n < 0:
            if errno != EAGAIN and errno != EINTR:
                return False
            n = 0
    kept = <uint8_t *>realloc(conn.pending, conn.pending_size + size - n)
    if kept == NULL:
        return False
    memcpy(kept + conn.pending_size, data + n, size - n)
    conn.pending = kept
    conn.pending_size += <uint32_t>(size - n)
    conn.blocked = True
    return True


cdef bint write_pending(loop_t *loop, conn_t *conn) noexcept nogil:
    """Go on with what the socket did not take. False when the connection is gone."""
    cdef ssize_t n
    loop.writes += 1
    n = send(conn.fd, conn.pending + conn.pending_sent, conn.pending_size - conn.pending_sent, MSG_NOSIGNAL)
    if n < 0:
        return errno == EAGAIN or errno == EINTR
    conn.pending_sent += <uint32_t>n
    if conn.pending_sent == conn.pending_size:
        free(conn.pending)
        conn.pending = NULL
        conn.pending_size = conn.pending_sent = 0
        conn.blocked = False
    return True


cdef void kill_conn(loop_t *loop, conn_t *conn) noexcept nogil:
    """The peer broke a rule: GOAWAY with the reason, then close."""
    cdef uint8_t frame[64]
    cdef uint32_t size = h2_goaway_frame(conn.h2, frame)
    h2_close(conn.h2)
    conn.h2 = NULL
    conn.state = CONN_CLOSING
    if not write_out(loop, conn, frame, size):
        drop_conn(loop, conn)
    elif conn.pending == NULL:
        start_linger(loop, conn)


cdef void flush_conn(loop_t *loop, conn_t *conn) noexcept nogil:
    """One write of everything the connection has to say, up to H2_OUT_BYTES."""
    cdef int rc
    if conn.pending != NULL:
        return     # EPOLLOUT goes on
    rc = h2_pull(conn.h2)
    if not write_out(loop, conn, loop.server.out, loop.server.out_size):
        drop_conn(loop, conn)
        return
    if rc < 0 or conn.h2.fatal:
        kill_conn(loop, conn)
    elif conn.pending == NULL:
        if rc == 1:
            conn.h2.dirty = True
            conn.h2.dirty_next = loop.server.dirty
            loop.server.dirty = conn.h2
        elif h2_finished(conn.h2):
            h2_close(conn.h2)
            conn.h2 = NULL
            start_linger(loop, conn)


cdef void flush_dirty(loop_t *loop) noexcept nogil:
    cdef h2_conn *h2 = loop.server.dirty
    cdef h2_conn *after
    loop.server.dirty = NULL
    while h2 != NULL:
        after = h2.dirty_next
        h2.dirty = False
        flush_conn(loop, <conn_t *>h2.owner)
        h2 = after


cdef void on_writable(loop_t *loop, conn_t *conn) noexcept nogil:
    if conn.pending == NULL:
        return
    if not write_pending(loop, conn):
        drop_conn(loop, conn)
        return
    if conn.pending != NULL:
        return
    if conn.state == CONN_CLOSING:
        start_linger(loop, conn)
        return
    if conn.h2 != NULL and not conn.h2.dirty:
        conn.h2.dirty = True
        conn.h2.dirty_next = loop.server.dirty
        loop.server.dirty = conn.h2
    if conn.readable or conn.peer_done:
        ready_add(loop, conn)


cdef bint hand_off(loop_t *loop, conn_t *conn, const uint8_t *data, uint32_t size) noexcept nogil:
    """Give a connection that does not speak HTTP/2 to Python. Precondition: not in the ready list."""
    cdef handoff_t *h
    if loop.handoff_count == HANDOFFS_MAX or conn.sniffed_size + size > HANDOFF_BYTES_MAX:
        return False
    h = &loop.handoffs[loop.handoff_count]
    h.fd = conn.fd
    memcpy(h.data, conn.sniffed, conn.sniffed_size)
    memcpy(h.data + conn.sniffed_size, data, size)
    h.size = conn.sniffed_size + size
    loop.handoff_count += 1
    epoll_ctl(loop.epoll_fd, EPOLL_CTL_DEL, conn.fd, NULL)
    free_conn(loop, conn, True)
    return True


cdef int sniff(loop_t *loop, conn_t *conn, const uint8_t *data, uint32_t size) noexcept nogil:
    """Tell HTTP/2 by its first three bytes. 1 it is, 0 not known yet, -1 it is not or no memory is left."""
    cdef uint32_t i
    for i in range(size):
        if conn.sniffed_size + i == 3:
            break
        if data[i] != (<const uint8_t *>b"PRI")[conn.sniffed_size + i]:
            return -1
    if conn.sniffed_size + size < 3:
        memcpy(conn.sniffed + conn.sniffed_size, data, size)
        conn.sniffed_size += size
        return 0
    conn.h2 = h2_open(&loop.server, conn)
    if conn.h2 == NULL:
        return -1
    conn.state = CONN_HTTP2
    if loop.drain_step:
        h2_shutdown(conn.h2, 1)
    h2_feed(conn.h2, conn.sniffed, conn.sniffed_size)
    return 1


cdef void read_conn(loop_t *loop, conn_t *conn) noexcept nogil:
    """One read, and all frames of it. Precondition: taken out of the ready list."""
    cdef ssize_t n
    cdef int rc
    loop.reads += 1
    n = recv(conn.fd, loop.buf, READ_BYTES, 0)
    if n < 0 and (errno == EAGAIN or errno == EINTR):
        conn.readable = False
        return
    if n <= 0:
        free_conn(loop, conn, False)
        return
    # Edge-triggered: a short read means that the socket is empty and the next bytes ring again. A shut
    # peer does not ring again, so then read on until that shows.
    conn.readable = n == READ_BYTES or conn.peer_done
    conn.read_ns = loop.server.now_ns
    conn.ping_ns = 0
    if conn.state == CONN_SNIFF:
        rc = sniff(loop, conn, loop.buf, <uint32_t>n)
        if rc < 0:
            if not hand_off(loop, conn, loop.buf, <uint32_t>n):
                free_conn(loop, conn, False)
            return
        if rc == 0:
            if conn.readable:
                ready_add(loop, conn)
            return
    if conn.state == CONN_HTTP2:
        if h2_feed(conn.h2, loop.buf, <uint32_t>n) < 0:
            kill_conn(loop, conn)
            return
    elif conn.state == CONN_LINGER:
        conn.lingered_bytes += <uint32_t>n
        if conn.lingered_bytes >= LINGER_BYTES_MAX:
            free_conn(loop, conn, False)
            return
    if conn.readable:
        ready_add(loop, conn)


cdef void read_ready(loop_t *loop) noexcept nogil:
    """Each ready connection once. While a request waits for room in a ring, nothing more is read."""
    cdef conn_t *conn
    cdef conn_t *last = loop.ready_tail
    while loop.ready_head != NULL and loop.late_count == 0:
        conn = loop.ready_head
        loop.ready_head = conn.ready_next
        if loop.ready_head == NULL:
            loop.ready_tail = NULL
        conn.in_ready = False
        if conn.state == CONN_LINGER and conn.lingered_bytes >= LINGER_BYTES_MAX:
            free_conn(loop, conn, False)
        elif not conn.blocked:
            read_conn(loop, conn)
        if conn == last:
            return


# ---- housekeeping

cdef void sweep_conn(loop_t *loop, conn_t *conn) noexcept nogil:
    cdef uint64_t now = loop.server.now_ns
    cdef h2_conn *h2 = conn.h2
    if conn.state == CONN_LINGER or conn.state == CONN_CLOSING:
        if now > conn.linger_until_ns + (0 if conn.state == CONN_LINGER else 10 * NS):
            drop_conn(loop, conn)
    elif h2 == NULL:
        if now - conn.opened_ns > loop.header_ns:
            drop_conn(loop, conn)
    elif not h2.guard.framed:
        if now - conn.opened_ns > loop.header_ns:
            fail_conn(loop, conn, b"slow_preface")
    elif h2.guard.in_block and now - h2.guard.block_since_ns > loop.header_ns:
        fail_conn(loop, conn, b"slow_headers")
    elif conn.ping_ns:
        if now - conn.ping_ns > loop.keepalive_timeout_ns:
            drop_conn(loop, conn)
    elif now - conn.read_ns > loop.keepalive_idle_ns:
        conn.ping_ns = now
        h2_ping(h2)


cdef void fail_conn(loop_t *loop, conn_t *conn, const char *why) noexcept nogil:
    conn.h2.fatal = 11 + 1     # ENHANCE_YOUR_CALM
    conn.h2.fatal_text = why
    kill_conn(loop, conn)


cdef void sweep(loop_t *loop) noexcept nogil:
    cdef uint32_t slot
    loop.sweep_ns = loop.server.now_ns
    for slot in range(loop.conn_room):
        if loop.conns[slot] != NULL and loop.conns[slot].used:
            sweep_conn(loop, loop.conns[slot])
    if not loop.drain_step and loop.conn_count < loop.conns_max:
        set_listening(loop, True)


cdef void end_watches(conn_t *conn) noexcept nogil:
    cdef h2_stream *s = conn.h2.streams
    while s != NULL:
        if s.flags & STREAM_HEALTH_WATCH:
            say(s, GRPC_UNAVAILABLE, b"server is shutting down")
        s = s.list_next


cdef void drain(loop_t *loop) noexcept nogil:
    """Step 1: announce. Step 2, a little later: fix the last stream, then close what has no call left."""
    cdef uint64_t since = loop.server.now_ns - loop.drain_since_ns
    cdef uint32_t slot
    cdef conn_t *conn
    cdef int step = loop.drain_step
    if step == 2 and since > DRAIN_NOTICE_NS:
        loop.drain_step = 3
    for slot in range(loop.conn_room):
        conn = loop.conns[slot]
        if conn == NULL or not conn.used:
            continue
        if since > loop.drain_ns or conn.state == CONN_SNIFF:
            drop_conn(loop, conn)
        elif conn.state == CONN_HTTP2:
            if step == 1:
                end_watches(conn)
                h2_shutdown(conn.h2, 0)
            elif step == 2 and loop.drain_step == 3:
                h2_shutdown(conn.h2, 1)
    if step == 1:
        loop.drain_step = 2


cdef int wait_ms(loop_t *loop) noexcept nogil:
    cdef int timer
    cdef int most = 1000 if loop.conn_count else -1
    if loop.drain_step:
        most = 20
    if loop.server.dirty != NULL or (loop.ready_head != NULL and loop.late_count == 0):
        return 0
    timer = timer_wait_ms(loop)
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
        elif tag & 1ull << 32 and not loop.drain_step:
            accept_some(loop, loop.listeners[<uint32_t>tag])
        return     # the doorbell is edge-triggered and needs no read
    conn = loop.conns[<uint32_t>tag]
    if not conn.used or conn.generation != <uint32_t>(tag >> 32):
        return     # closed earlier in this batch of events
    if event.events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        conn.peer_done = True
        if event.events & (EPOLLHUP | EPOLLERR):
            conn.blocked = False   # nothing can be written any more; let the read tell
    if event.events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        conn.readable = True
        ready_add(loop, conn)
    if event.events & EPOLLOUT:
        on_writable(loop, conn)


cdef int turn(loop_t *loop) noexcept nogil:
    cdef epoll_event events[EVENTS_MAX]
    cdef int timeout = wait_ms(loop)
    cdef int n, i
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
    if loop.late_count:
        late_retry(loop)
    read_ready(loop)
    ring_publish(loop.out[RING_CONSENSUS])
    run_timers(loop)
    if loop.server.now_ns - loop.sweep_ns > SWEEP_NS:
        sweep(loop)
    if loop.drain_step:
        drain(loop)
    flush_dirty(loop)
    give_credit(loop)
    ring_publish(loop.out[RING_CONSENSUS])
    ring_publish(loop.out[RING_APPLY])
    h2_settle(&loop.server)
    ring_release(loop.af)
    if loop.life_gone:
        return RAN_LIFE
    if loop.woken:
        loop.woken = False
        return RAN_WAKEUP
    if loop.handoff_count:
        return RAN_HANDOFF
    if loop.drain_step and loop.conn_count == 0:
        return RAN_DRAINED
    return RAN_ON


cdef class FrontLoop:
    cdef loop_t *loop
    cdef list kept       # what the C structures point into

    def __cinit__(self):
        self.loop = <loop_t *>calloc(1, sizeof(loop_t))
        if self.loop == NULL:
            raise MemoryError
        self.loop.epoll_fd = -1

    def __init__(self, *, int index, int doorbell, Ring to_consensus not None, Ring to_apply not None,
                 Ring from_apply not None, StatusPage consensus_page not None, StatusPage apply_page not None,
                 listeners, int wakeup, int life, rpcs, errors, uint32_t message_bytes_max,
                 uint32_t txn_ops_max=128, uint32_t streams_max=4096, uint32_t connections_max=4096,
                 uint64_t quota_bytes=0, double request_timeout_seconds=7.0, double ping_min_seconds=5.0,
                 double keepalive_idle_seconds=7200.0, double keepalive_timeout_seconds=20.0,
                 double header_seconds=10.0, double drain_seconds=5.0):
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
        loop.txn_ops_max = txn_ops_max
        loop.conns_max = connections_max
        loop.quota_bytes = quota_bytes
        loop.request_timeout_ns = <uint64_t>(request_timeout_seconds * 1e9)
        loop.keepalive_idle_ns = <uint64_t>(keepalive_idle_seconds * 1e9)
        loop.keepalive_timeout_ns = <uint64_t>(keepalive_timeout_seconds * 1e9)
        loop.header_ns = <uint64_t>(header_seconds * 1e9)
        loop.drain_ns = <uint64_t>(drain_seconds * 1e9)
        loop.server.owner = loop
        loop.server.counters = &loop.counters
        loop.server.message_bytes_max = message_bytes_max
        loop.server.streams_max = streams_max
        loop.server.ping_min_ns = <uint64_t>(ping_min_seconds * 1e9)
        loop.server.now_ns = loop.sweep_ns = clock_ns()
        loop.wheel_tick = loop.server.now_ns >> TIMER_TICK_SHIFT
        loop.server.on_open = on_open
        loop.server.on_call = on_call
        loop.server.on_gone = on_gone
        self._set_routes(rpcs)
        self._set_errors(errors)
        loop.buf = <uint8_t *>malloc(READ_BYTES)
        loop.handoffs = <handoff_t *>malloc(HANDOFFS_MAX * sizeof(handoff_t))
        loop.listener_count = <uint32_t>len(listeners)
        loop.listeners = <int *>malloc(max(1, len(listeners)) * sizeof(int))
        if loop.buf == NULL or loop.handoffs == NULL or loop.listeners == NULL or h2_server_init(&loop.server) < 0:
            raise MemoryError
        for i, fd in enumerate(listeners):
            loop.listeners[i] = fd
        loop.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if loop.epoll_fd < 0:
            raise OSError(errno, os.strerror(errno))
        self._watch(doorbell, TAG_DOORBELL, EPOLLIN | <uint32_t>EPOLLET)
        self._watch(wakeup, TAG_WAKEUP, EPOLLIN)
        self._watch(life, TAG_LIFE, EPOLLIN)
        set_listening(loop, True)

    cdef _watch(self, int fd, uint64_t tag, uint32_t what):
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
        entries = {path: (rpc_id, routes[route]) for rpc_id, path, route in rpcs}
        for path in list(entries):
            entries[path.split(b"/")[1]] = (0, ROUTE_NONE)
        while size < 4 * len(entries):
            size *= 2
        server.routes = <h2_route *>calloc(size, sizeof(h2_route))
        if server.routes == NULL:
            raise MemoryError
        server.routes_mask = size - 1
        for path, (rpc_id, route) in entries.items():
            if not 0 <= rpc_id <= RPC_ID_MAX:
                raise ValueError(f"RPC id {rpc_id} is out of range")
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
        cdef uint32_t slot
        if loop == NULL:
            return
        for slot in range(loop.conn_room):
            if loop.conns[slot] != NULL:
                if loop.conns[slot].used:
                    free_conn_last(loop.conns[slot])
                free(loop.conns[slot])
        for slot in range(loop.handoff_count):
            close_fd(loop.handoffs[slot].fd)
        if loop.epoll_fd >= 0:
            close_fd(loop.epoll_fd)
        h2_server_free(&loop.server)
        free(loop.server.routes)
        free(loop.conns)
        free(loop.buf)
        free(loop.handoffs)
        free(loop.listeners)
        free(loop)

    def run(self):
        cdef int why = RAN_ON
        with nogil:
            while why == RAN_ON:
                why = turn(self.loop)
        return why

    def take_handoffs(self):
        cdef uint32_t i
        taken = []
        for i in range(self.loop.handoff_count):
            taken.append((self.loop.handoffs[i].fd,
                          PyBytes_FromStringAndSize(<char *>self.loop.handoffs[i].data, self.loop.handoffs[i].size)))
        self.loop.handoff_count = 0
        return taken

    def begin_drain(self):
        if self.loop.drain_step == 0:
            set_listening(self.loop, False)
            self.loop.server.now_ns = clock_ns()
            self.loop.drain_since_ns = self.loop.server.now_ns
            self.loop.drain_step = 1

    def counters(self):
        cdef loop_t *loop = self.loop
        cdef h2_counters *c = &loop.counters
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
            "connections": loop.conn_count,
            "connections_accepted": loop.accepted,
            "connections_refused": loop.refused_connections,
            "timers": loop.timers,
            "requests_waiting": loop.late_count,
            "ring_full": loop.ring_full,
            "turns": loop.turns,
            "reads": loop.reads,
            "writes": loop.writes,
        }


cdef void free_conn_last(conn_t *conn) noexcept nogil:
    """At the end of the loop object: nobody is told."""
    if conn.h2 != NULL:
        h2_close(conn.h2)
    free(conn.pending)
    close_fd(conn.fd)
