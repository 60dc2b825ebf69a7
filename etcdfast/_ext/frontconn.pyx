"""Connections: see frontconn.pxd."""

from libc.errno cimport EAGAIN, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset, strlen

from etcdfast._ext.errids cimport ERR_STOPPED
from etcdfast._ext.fronttls cimport (
    HANDSHAKE_TURN_NS, end_tls, keep_identity, note_rejected, shake_enter, shake_leave, transport_recv, transport_send,
)
from etcdfast._ext.fronthttp cimport TOLD_GONE, TOLD_WRITABLE, http_arrived, http_tell
from etcdfast._ext.grpcwire cimport GRPC_UNAVAILABLE
from etcdfast._ext.h2budget cimport heaviest, hold, over_budget
from etcdfast._ext.h2stream cimport h2_end, h2_say, h2_serve_grants
from etcdfast._ext.h2types cimport *
from etcdfast._ext.http2 cimport (
    h2_close, h2_feed, h2_finished, h2_goaway_frame, h2_open, h2_open_calls, h2_ping, h2_pull, h2_shutdown,
)
from etcdfast._ext.meters cimport (
    M_ACCEPTS_FAILED, M_CONNECTIONS, M_CONNECTIONS_ACCEPTED, M_CONNECTIONS_FULL, M_CONNECTIONS_TLS, M_HELD_BYTES,
    M_REQUESTS_WAITING, meter_count, meter_set,
)
from etcdfast._ext.netsys cimport *
from etcdfast._ext.nghttp2 cimport NGHTTP2_ENHANCE_YOUR_CALM
from etcdfast._ext.tlsconn cimport (
    TLS_CONN_BYTES, TLS_DONE, TLS_FAILED, TLS_WANT_READ, TLS_WANT_WRITE, tls_error, tls_flush, tls_handshake, tls_open,
    tls_shutdown, tls_unsent,
)

cdef uint64_t NS = 1000000000
cdef uint64_t CLOSING_NS = 10 * NS          # for a peer to take what is written before its GOAWAY
cdef enum:
    TLS_FIRST_BYTE = 22        # of a record with a handshake
cdef const char *PLAIN_ON_TLS = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
cdef uint64_t DRAIN_NOTICE_NS = 100000000   # between GOAWAY that announces and the one that fixes the last stream


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


cdef void conn_listen(loop_t *loop, bint on) noexcept nogil:
    cdef epoll_event event
    cdef uint32_t i
    cdef bint wanted
    loop.listening = on
    for i in range(loop.listener_count):
        wanted = on and not (loop.listener_tls[i] and loop.shaking_count >= loop.shaking_max)
        if loop.listener_on[i] == wanted:
            continue
        loop.listener_on[i] = wanted
        event.events = EPOLLIN
        event.data.u64 = <uint64_t>1 << TAG_BIT | <uint64_t>1 << TAG_LISTEN_BIT | i
        epoll_ctl(loop.epoll_fd, EPOLL_CTL_ADD if wanted else EPOLL_CTL_DEL, loop.listeners[i], &event)


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
    meter_set(M_CONNECTIONS, loop.conn_count)
    return conn


cdef void close_h2(conn_t *conn) noexcept nogil:
    """End its streams. Taken off first: what they give up must not bring the connection back (conn_resume)."""
    cdef h2_conn *h2 = conn.h2
    conn.h2 = NULL
    if h2 != NULL:
        h2_close(h2)
        conn.loop.closing_bytes += conn.pending_size + conn.tls_held
    if conn.state == CONN_HTTP1:
        conn.state = CONN_CLOSING
        free(conn.arrived)
        conn.arrived = NULL
        conn.arrived_size = conn.arrived_room = 0
        http_tell(conn.loop, conn, 0, TOLD_GONE)


cdef inline void pending_grew(loop_t *loop, conn_t *conn, int64_t more) noexcept nogil:
    if conn.h2 != NULL:
        hold(conn.h2, more)
    else:
        loop.closing_bytes = <uint64_t>(<int64_t>loop.closing_bytes + more)


cdef inline void count_unsent(loop_t *loop, conn_t *conn) noexcept nogil:
    """What TLS keeps of its own for a socket that is full."""
    cdef uint32_t now = <uint32_t>tls_unsent(conn.tls) if conn.tls != NULL else 0
    if now != conn.tls_held:
        pending_grew(loop, conn, <int64_t>now - conn.tls_held)
        conn.tls_held = now


cdef void close_tls(loop_t *loop, conn_t *conn) noexcept nogil:
    if conn.tls != NULL:
        shake_leave(loop, conn)
        end_tls(conn)
        count_unsent(loop, conn)


cdef void free_pending(loop_t *loop, conn_t *conn) noexcept nogil:
    pending_grew(loop, conn, -<int64_t>conn.pending_size)
    free(conn.pending)
    conn.pending = NULL
    conn.pending_size = conn.pending_sent = 0


cdef void free_conn(loop_t *loop, conn_t *conn) noexcept nogil:
    """Forget the connection. Precondition: it is not in the ready list."""
    close_h2(conn)
    free_pending(loop, conn)
    close_tls(loop, conn)
    free(conn.cert_name)
    close_fd(conn.fd)
    conn.used = False
    conn.generation = (conn.generation + 1) & 0x7FFFFFFF
    conn.free_next = loop.free_conns
    loop.free_conns = conn
    loop.conn_count -= 1
    meter_set(M_CONNECTIONS, loop.conn_count)
    if not loop.drain_step:
        conn_listen(loop, True)


cdef void drop_conn(loop_t *loop, conn_t *conn) noexcept nogil:
    """End it now. While it is in the ready list only its insides go; read_ready frees the rest."""
    if conn.in_ready:
        close_h2(conn)
        close_tls(loop, conn)
        conn.state = CONN_LINGER
        conn.peer_done = True
        conn.linger_until_ns = 0
        conn.lingered_bytes = LINGER_BYTES_MAX
        return
    free_conn(loop, conn)


cdef void shed_handshakes(loop_t *loop) noexcept nogil:
    """Handshakes that wait for a client which has said nothing for a second give way to others, the oldest first; and
    those that have taken a quarter of their time, for a byte now and then must not hold a place."""
    cdef conn_t *conn = loop.shake_head
    cdef conn_t *after
    while conn != NULL and loop.server.now_ns - conn.opened_ns > NS:
        after = conn.shake_next
        if not conn.in_ready and (loop.server.now_ns - conn.read_ns > NS or
                                  loop.server.now_ns - conn.opened_ns > loop.handshake_ns // 4):
            note_rejected(loop, conn, b"TLS handshake: too many under way")
            free_conn(loop, conn)
        conn = after


cdef void conn_accept(loop_t *loop, uint32_t listener) noexcept nogil:
    cdef epoll_event event
    cdef conn_t *conn
    cdef int fd, one, i
    one = 1
    for i in range(ACCEPTS_PER_TURN):
        if loop.conn_count >= loop.conns_max:
            # As etcd: the backlog holds the rest until a connection ends.
            meter_count(M_CONNECTIONS_FULL, 1)
            conn_listen(loop, False)
            return
        if loop.listener_tls[listener] and loop.shaking_count >= loop.shaking_max:
            shed_handshakes(loop)
            if loop.shaking_count >= loop.shaking_max:
                conn_listen(loop, loop.listening)
                return
        fd = accept4(loop.listeners[listener], NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd < 0:
            if errno == EMFILE or errno == ENFILE or errno == ENOBUFS or errno == ENOMEM:
                # It would be ready again at once, for nothing: the sweep looks again within a second.
                loop.refused_connections += 1
                meter_count(M_ACCEPTS_FAILED, 1)
                conn_listen(loop, False)
            return
        conn = new_conn(loop)
        if conn == NULL:
            close_fd(fd)
            return
        conn.fd = fd
        conn.listener = listener
        if loop.listener_tls[listener]:
            conn.tls = tls_open(loop.tls, fd, True, NULL)
            if conn.tls == NULL:
                free_conn(loop, conn)
                return
            conn.state = CONN_HANDSHAKE
            meter_count(M_CONNECTIONS_TLS, 1)
            shake_enter(loop, conn)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one))
        event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | <uint32_t>EPOLLET
        event.data.u64 = <uint64_t>conn.generation << 32 | conn.slot
        if epoll_ctl(loop.epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0:
            free_conn(loop, conn)
            return
        loop.accepted += 1
        meter_count(M_CONNECTIONS_ACCEPTED, 1)


cdef void start_linger(loop_t *loop, conn_t *conn) noexcept nogil:
    """All is written: shut our side, then read what the peer still sends until it closes too. Closing with
    unread bytes would reset the connection, and the reset can overtake the GOAWAY."""
    if conn.tls != NULL:
        tls_shutdown(conn.tls)
        close_tls(loop, conn)
    shutdown(conn.fd, SHUT_WR)
    conn.state = CONN_LINGER
    conn.linger_until_ns = loop.server.now_ns + (DRAIN_NOTICE_NS if loop.drain_step else NS)
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
        n = transport_send(conn, data, size)
        if n == <ssize_t>size:
            return True
        if n < 0:
            return False
    kept = <uint8_t *>realloc(conn.pending, conn.pending_size + size - n)
    if kept == NULL:
        return False
    memcpy(kept + conn.pending_size, data + n, size - n)
    conn.pending = kept
    conn.pending_size += <uint32_t>(size - n)
    pending_grew(loop, conn, size - n)
    count_unsent(loop, conn)
    conn.blocked = True
    return True


cdef bint write_pending(loop_t *loop, conn_t *conn) noexcept nogil:
    """Go on with what the socket did not take. False when the connection is gone."""
    cdef ssize_t n
    loop.writes += 1
    n = transport_send(conn, conn.pending + conn.pending_sent, conn.pending_size - conn.pending_sent)
    if n < 0:
        return False
    count_unsent(loop, conn)
    conn.pending_sent += <uint32_t>n
    if conn.pending_sent == conn.pending_size:
        free_pending(loop, conn)
        conn.blocked = False
    return True


cdef void kill_conn(loop_t *loop, conn_t *conn) noexcept nogil:
    """The peer broke a rule: GOAWAY with the reason, then close."""
    cdef uint8_t frame[64]
    cdef uint32_t size
    if conn.state == CONN_HTTP1:
        drop_conn(loop, conn)
        return
    size = h2_goaway_frame(conn.h2, frame)
    close_h2(conn)
    if loop.closing_bytes > CLOSING_BYTES_MAX:
        drop_conn(loop, conn)
        return
    conn.state = CONN_CLOSING
    conn.linger_until_ns = loop.server.now_ns + CLOSING_NS
    if not write_out(loop, conn, frame, size):
        drop_conn(loop, conn)
    elif conn.pending == NULL:
        start_linger(loop, conn)


cdef void flush_conn(loop_t *loop, conn_t *conn) noexcept nogil:
    """One write of everything the connection has to say, up to H2_OUT_BYTES."""
    cdef int rc
    if conn.state == CONN_HTTP1:
        if conn.h2.fatal:
            drop_conn(loop, conn)
        return
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
            mark_dirty(conn.h2)
        elif h2_finished(conn.h2):
            close_h2(conn)
            start_linger(loop, conn)


cdef void conn_flush_dirty(loop_t *loop) noexcept nogil:
    cdef h2_conn *h2 = loop.server.dirty
    cdef h2_conn *after
    loop.server.dirty = NULL
    while h2 != NULL:
        after = h2.dirty_next
        h2.dirty = False
        flush_conn(loop, <conn_t *>h2.owner)
        h2 = after


cdef bint tls_writable(loop_t *loop, conn_t *conn) noexcept nogil:
    """The socket takes bytes again: what TLS had to say for itself, or what waited for that. False: it is broken."""
    if conn.state == CONN_HANDSHAKE:
        if tls_unsent(conn.tls):
            ready_add(loop, conn)
        return True
    if conn.pending == NULL and tls_unsent(conn.tls):
        if tls_flush(conn.tls) == -1:
            return False
        count_unsent(loop, conn)
    if conn.tls.recv_needs_write:
        conn.readable = True
        ready_add(loop, conn)
    return True


cdef void on_writable(loop_t *loop, conn_t *conn) noexcept nogil:
    if conn.tls != NULL and not tls_writable(loop, conn):
        drop_conn(loop, conn)
        return
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
    if conn.state == CONN_HTTP1:
        http_tell(loop, conn, 0, TOLD_WRITABLE)
    elif conn.h2 != NULL:
        mark_dirty(conn.h2)
    if conn.readable or conn.peer_done:
        ready_add(loop, conn)


cdef bint begin_http1(loop_t *loop, conn_t *conn) noexcept nogil:
    """A connection that does not speak HTTP/2 is Python's, from its first byte on."""
    if loop.roles[conn.listener] == ROLE_GRPC:
        return False
    conn.h2 = h2_open_calls(&loop.server, conn)
    if conn.h2 == NULL:
        return False
    conn.state = CONN_HTTP1
    if conn.tls != NULL:
        hold(conn.h2, TLS_CONN_BYTES)
    http_arrived(loop, conn, conn.sniffed, conn.sniffed_size)
    return True


cdef int sniff(loop_t *loop, conn_t *conn, const uint8_t *data, uint32_t size) noexcept nogil:
    """Tell HTTP/2 by its first three bytes. 1 it is, 0 not known yet, -1 it is not, -2 to be closed."""
    cdef uint32_t i
    if conn.tls == NULL and conn.sniffed_size == 0 and data[0] == TLS_FIRST_BYTE:
        return -2      # TLS on a plain port: there is no answer that it would understand
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
        return -2
    conn.state = CONN_HTTP2
    conn.h2.serves_plain = loop.roles[conn.listener] != ROLE_GRPC
    conn.h2.grpc_off = loop.roles[conn.listener] >= ROLE_HTTP
    if loop.drain_step:
        h2_shutdown(conn.h2, 1)
    if conn.tls != NULL:
        hold(conn.h2, TLS_CONN_BYTES)
    h2_feed(conn.h2, conn.sniffed, conn.sniffed_size)
    return 1


cdef void refuse_plain(loop_t *loop, conn_t *conn) noexcept nogil:
    """A plain HTTP request on a TLS port is told so, in Go's words."""
    close_tls(loop, conn)
    conn.state = CONN_CLOSING
    conn.linger_until_ns = loop.server.now_ns + NS
    if not write_out(loop, conn, <const uint8_t *>PLAIN_ON_TLS, <uint32_t>strlen(PLAIN_ON_TLS)):
        free_conn(loop, conn)
    elif conn.pending == NULL:
        start_linger(loop, conn)


cdef void shake(loop_t *loop, conn_t *conn) noexcept nogil:
    """One step of the handshake. Precondition: taken out of the ready list."""
    cdef int rc = tls_handshake(conn.tls)
    conn.readable = False
    if rc == TLS_WANT_WRITE:
        return
    conn.read_ns = loop.server.now_ns
    if rc == TLS_WANT_READ:
        # The end of a peer that is shut rings no more, and what OpenSSL has taken from the socket neither.
        if conn.peer_done or not conn.tls.starved:
            ready_add(loop, conn)
        return
    shake_leave(loop, conn)
    if rc == TLS_DONE:
        loop.shaken += 1
        keep_identity(conn)
        conn.state = CONN_SNIFF
        conn.opened_ns = loop.server.now_ns
        conn.readable = True
        ready_add(loop, conn)
    else:
        note_rejected(loop, conn, tls_error(conn.tls))
        if conn.tls.plain_http:
            refuse_plain(loop, conn)
        else:
            # Closing with unread bytes would reset the alert away, which tells the client what is wrong.
            close_tls(loop, conn)
            start_linger(loop, conn)
    if not loop.drain_step and loop.listening:
        conn_listen(loop, True)


cdef void read_conn(loop_t *loop, conn_t *conn) noexcept nogil:
    """One read, and all frames of it. Precondition: taken out of the ready list."""
    cdef ssize_t n
    cdef int rc
    loop.reads += 1
    n = transport_recv(loop, conn)
    if n == 0:
        if conn.readable:
            ready_add(loop, conn)
        return
    if n < 0:
        free_conn(loop, conn)
        return
    conn.read_ns = loop.server.now_ns
    conn.ping_ns = 0
    if conn.state == CONN_SNIFF:
        rc = sniff(loop, conn, loop.buf, <uint32_t>n)
        if rc < 0:
            if rc == -2 or not begin_http1(loop, conn):
                free_conn(loop, conn)
                return
        if rc == 0:
            if conn.readable:
                ready_add(loop, conn)
            return
    if conn.state == CONN_HTTP2:
        if h2_feed(conn.h2, loop.buf, <uint32_t>n) < 0:
            kill_conn(loop, conn)
            return
    elif conn.state == CONN_HTTP1:
        if not http_arrived(loop, conn, loop.buf, <uint32_t>n):
            free_conn(loop, conn)
        return
    elif conn.state == CONN_LINGER:
        conn.lingered_bytes += <uint32_t>n
        if conn.lingered_bytes >= LINGER_BYTES_MAX:
            free_conn(loop, conn)
            return
    if conn.readable:
        ready_add(loop, conn)


cdef bint conn_paused(loop_t *loop) noexcept nogil:
    return loop.late_bytes >= loop.late_bytes_max or loop.cancel_count >= CANCELS_MAX


cdef void conn_resume(loop_t *loop, conn_t *conn) noexcept nogil:
    if conn.h2 != NULL and (conn.readable or conn.peer_done):
        ready_add(loop, conn)


cdef void conn_read_ready(loop_t *loop) noexcept nogil:
    """Each ready connection once. One whose request waits for room in a ring is added again by conn_resume."""
    cdef conn_t *conn
    cdef conn_t *last = loop.ready_tail
    cdef uint64_t spent_ns = 0
    cdef uint64_t before_ns
    while loop.ready_head != NULL and not conn_paused(loop) and not over_budget(&loop.server):
        conn = loop.ready_head
        loop.ready_head = conn.ready_next
        if loop.ready_head == NULL:
            loop.ready_tail = NULL
        conn.in_ready = False
        if conn.state == CONN_LINGER and conn.lingered_bytes >= LINGER_BYTES_MAX:
            free_conn(loop, conn)
        elif conn.state == CONN_HANDSHAKE:
            if spent_ns > HANDSHAKE_TURN_NS:
                ready_add(loop, conn)      # the next turn has time for it
            else:
                before_ns = clock_ns()
                shake(loop, conn)
                spent_ns += clock_ns() - before_ns
        elif not conn.blocked and conn.late_count == 0 and not conn.arrived_told and not conn.read_off:
            read_conn(loop, conn)
        if conn == last:
            return


cdef void sweep_conn(loop_t *loop, conn_t *conn) noexcept nogil:
    cdef uint64_t now = loop.server.now_ns
    cdef h2_conn *h2 = conn.h2
    if conn.state == CONN_LINGER or conn.state == CONN_CLOSING:
        if now > conn.linger_until_ns:
            drop_conn(loop, conn)
    elif conn.state == CONN_HANDSHAKE:
        if conn_paused(loop):
            conn.opened_ns = conn.read_ns = now    # it is not read: none of its silence is its own
        elif now - conn.opened_ns > loop.handshake_ns:
            note_rejected(loop, conn, b"TLS handshake: timed out")
            drop_conn(loop, conn)
    elif h2 == NULL:
        if now - conn.opened_ns > loop.header_ns:
            drop_conn(loop, conn)
    elif conn.state == CONN_HTTP1:
        loop.python_due = True     # which keeps its deadlines
    elif conn.late_count or conn_paused(loop):
        conn.read_ns = now     # it is not read: none of its silence is its own
        if h2.guard.in_block:
            h2.guard.block_since_ns = now
        if conn.ping_ns:
            conn.ping_ns = now
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
    set_fatal(conn.h2, NGHTTP2_ENHANCE_YOUR_CALM, why)
    kill_conn(loop, conn)


cdef bint conn_shed(loop_t *loop) noexcept nogil:
    cdef h2_conn *h2
    cdef bint any = False
    while over_budget(&loop.server):
        h2 = heaviest(&loop.server)
        fail_conn(loop, <conn_t *>h2.owner, b"too_much_memory_held")
        any = True
    return any


cdef void conn_sweep(loop_t *loop) noexcept nogil:
    cdef uint32_t slot
    cdef conn_t *conn
    loop.sweep_ns = loop.server.now_ns
    meter_set(M_HELD_BYTES, loop.server.held_bytes)
    meter_set(M_REQUESTS_WAITING, loop.late_count)
    for slot in range(loop.conn_room):
        conn = loop.conns[slot]
        if conn != NULL and conn.used:
            if conn.state == CONN_HTTP2:
                h2_serve_grants(conn.h2)
            sweep_conn(loop, conn)
    if loop.shaking_count >= loop.shaking_max:
        shed_handshakes(loop)
    loop.tell_rejected = loop.tls_rejected != loop.tls_told
    if not loop.drain_step and loop.conn_count < loop.conns_max:
        conn_listen(loop, True)


cdef void end_lasting(loop_t *loop, conn_t *conn) noexcept nogil:
    """Calls that would last as long as the connection: their clients go on with another member."""
    cdef h2_stream *s = conn.h2.streams
    while s != NULL:
        if s.flags & STREAM_HEALTH_WATCH:
            h2_say(s, GRPC_UNAVAILABLE, b"server is shutting down")
        elif s.flags & (STREAM_OPENED | STREAM_ANSWERED) == STREAM_OPENED and loop.lasting_methods >> s.method & 1:
            h2_end(s, loop.error_code[ERR_STOPPED], loop.error_text[ERR_STOPPED], loop.error_size[ERR_STOPPED])
            loop.server.on_refused(conn.h2, s)
        s = s.list_next


cdef void conn_drain(loop_t *loop) noexcept nogil:
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
        if since > loop.drain_ns or conn.state == CONN_SNIFF or conn.state == CONN_HANDSHAKE:
            drop_conn(loop, conn)
        elif conn.state == CONN_HTTP1:
            if step == 1:
                end_lasting(loop, conn)
        elif conn.state == CONN_HTTP2:
            if step == 1:
                h2_shutdown(conn.h2, 0)
                end_lasting(loop, conn)
            elif step == 2 and loop.drain_step == 3:
                h2_shutdown(conn.h2, 1)
    if step == 1:
        loop.drain_step = 2


cdef void conn_event(loop_t *loop, conn_t *conn, uint32_t events) noexcept nogil:
    if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        conn.peer_done = True
        if events & (EPOLLHUP | EPOLLERR):
            if conn.state == CONN_HTTP1 and (conn.read_off or conn.arrived_told):
                drop_conn(loop, conn)      # no read would tell
                return
            conn.blocked = False   # nothing can be written any more; let the read tell
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        conn.readable = True
        ready_add(loop, conn)
    if events & EPOLLOUT:
        on_writable(loop, conn)


cdef void conn_say(loop_t *loop, conn_t *conn, const uint8_t *data, uint32_t size) noexcept nogil:
    if not write_out(loop, conn, data, size):
        drop_conn(loop, conn)


cdef void conn_finish(loop_t *loop, conn_t *conn) noexcept nogil:
    close_h2(conn)
    conn.read_off = conn.arrived_told = False
    if conn.pending == NULL:
        start_linger(loop, conn)
        return
    conn.state = CONN_CLOSING
    conn.linger_until_ns = loop.server.now_ns + CLOSING_NS


cdef void conn_drop(loop_t *loop, conn_t *conn) noexcept nogil:
    drop_conn(loop, conn)


cdef void conn_read_on(loop_t *loop, conn_t *conn) noexcept nogil:
    if not conn.arrived_told and not conn.read_off and (conn.readable or conn.peer_done):
        ready_add(loop, conn)


cdef void conn_free_all(loop_t *loop) noexcept nogil:
    cdef uint32_t slot
    cdef conn_t *conn
    for slot in range(loop.conn_room):
        conn = loop.conns[slot]
        if conn == NULL:
            continue
        if conn.used:
            close_h2(conn)
            close_tls(loop, conn)
            free(conn.cert_name)
            free(conn.pending)
            free(conn.arrived)
            close_fd(conn.fd)
        free(conn)
    free(loop.conns)
    loop.conns = NULL
    loop.conn_room = 0
