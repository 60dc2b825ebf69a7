"""Transport of a frontend's connections: plain sockets or TLS, told apart in two places, and handshakes.

A handshake takes from 0.1 ms (ECDSA) to 1 ms (RSA) of the processor, so they get a share of each turn, one step each;
who waits for its step stays in the ready list. Handshakes under way are limited: when the limit is reached, those that
said nothing for a second or took a quarter of their time give way, and new ones wait in the kernel.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from etcdfast._ext.frontconn cimport READ_BYTES, conn_t, loop_t
from etcdfast._ext.netsys cimport MSG_NOSIGNAL, recv, send
from etcdfast._ext.tlsconn cimport (
    TLS_AGAIN, TLS_NAME_BYTES_MAX, tls_close, tls_conn, tls_error, tls_has_peer, tls_more, tls_peer_name, tls_recv,
    tls_send, tls_shutdown, tls_unsent,
)

cdef enum:
    HANDSHAKES_MAX = 1024          # under way, of one frontend
    HANDSHAKE_TURN_NS = 2000000    # of a turn, for handshakes of all connections

cdef extern from "<sys/socket.h>" nogil:
    int getpeername(int fd, void *address, unsigned int *size)


cdef inline ssize_t transport_recv(loop_t *loop, conn_t *conn) noexcept nogil:
    """Into loop.buf: > 0 bytes, 0 nothing now, -1 the end. Sets conn.readable: whether there may be more.

    Edge-triggered: a short read means that the socket is empty and the next bytes ring again. A shut peer does not
    ring again, so then it is read on until that shows.
    """
    cdef ssize_t n
    if conn.tls == NULL:
        n = recv(conn.fd, loop.buf, READ_BYTES, 0)
        if n > 0:
            conn.readable = n == READ_BYTES or conn.peer_done
            return n
        if n < 0 and (errno == EAGAIN or errno == EINTR):
            conn.readable = False
            return 0
        return -1
    n = tls_recv(conn.tls, loop.buf, READ_BYTES)
    if n == TLS_AGAIN:
        conn.readable = conn.peer_done and not conn.tls.recv_needs_write
        return 0
    if n <= 0:
        if n == 0:
            tls_shutdown(conn.tls)     # a goodbye is answered
        return -1
    conn.readable = tls_more(conn.tls) or conn.peer_done
    return n


cdef inline ssize_t transport_send(conn_t *conn, const uint8_t *data, uint32_t size) noexcept nogil:
    """Bytes that left: fewer than `size` when the socket is full, -1 when it is broken.

    Of TLS what did not leave must come again first (it may be encrypted already).
    """
    cdef ssize_t n
    cdef uint32_t sent = 0
    if conn.tls == NULL:
        n = send(conn.fd, data, size, MSG_NOSIGNAL)
        if n < 0:
            return 0 if errno == EAGAIN or errno == EINTR else -1
        return n
    while sent < size:
        n = tls_send(conn.tls, data + sent, size - sent)
        if n == TLS_AGAIN:
            break
        if n < 0:
            return -1
        sent += <uint32_t>n
    return sent


cdef inline void shake_enter(loop_t *loop, conn_t *conn) noexcept nogil:
    """The youngest handshake."""
    conn.shaking = True
    conn.shake_next = NULL
    conn.shake_prev = loop.shake_tail
    if loop.shake_tail != NULL:
        loop.shake_tail.shake_next = conn
    else:
        loop.shake_head = conn
    loop.shake_tail = conn
    loop.shaking_count += 1


cdef inline void shake_leave(loop_t *loop, conn_t *conn) noexcept nogil:
    if not conn.shaking:
        return
    conn.shaking = False
    if conn.shake_prev != NULL:
        conn.shake_prev.shake_next = conn.shake_next
    else:
        loop.shake_head = conn.shake_next
    if conn.shake_next != NULL:
        conn.shake_next.shake_prev = conn.shake_prev
    else:
        loop.shake_tail = conn.shake_prev
    loop.shaking_count -= 1


cdef inline void note_rejected(loop_t *loop, conn_t *conn, const char *why) noexcept nogil:
    """For the log, which has the latest of each second."""
    cdef uint32_t i = 0
    loop.tls_rejected += 1
    while why[i] and i < sizeof(loop.rejected_why) - 1:
        loop.rejected_why[i] = why[i]
        i += 1
    loop.rejected_why[i] = 0
    loop.rejected_from_size = sizeof(loop.rejected_from)
    if getpeername(conn.fd, <void *>loop.rejected_from, &loop.rejected_from_size) != 0:
        loop.rejected_from_size = 0


cdef inline void keep_identity(conn_t *conn) noexcept nogil:
    """What the handshake has proved: that there is a certificate, and its CN."""
    cdef char name[TLS_NAME_BYTES_MAX]
    cdef int size
    conn.has_cert = tls_has_peer(conn.tls)
    size = tls_peer_name(conn.tls, name, sizeof(name)) if conn.has_cert else 0
    if size <= 0:
        return
    conn.cert_name = <char *>malloc(<size_t>size + 1)
    if conn.cert_name != NULL:
        memcpy(conn.cert_name, name, <size_t>size + 1)
        conn.cert_name_size = <uint32_t>size


cdef inline void end_tls(conn_t *conn) noexcept nogil:
    """Back to the plain socket; the descriptor stays."""
    tls_close(conn.tls)
    conn.tls = NULL
