"""HTTP that is not gRPC, for Python: HTTP/1.1 connections and plain HTTP/2 requests of a frontend.

C keeps sockets, HTTP/2 frames and budgets; Python gets bytes and requests in one batch per turn and gives bytes back.
What Python wants of the member is a call: a stream with an even id on the connection that asked, which no frame
can name. It takes the very way of a gRPC call (checks, rings, deadlines, credit, counters), only its answers go to
`server.told` instead of nghttp2. An HTTP/2 request with id n has its call at n + 1.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy

from etcdfast._ext.frontconn cimport conn_t, loop_t, told_t
from etcdfast._ext.frontloop cimport FrontLoop
from etcdfast._ext.h2budget cimport hold
from etcdfast._ext.h2types cimport h2_conn, h2_stream

cdef enum:
    TOLD_ARRIVED = 0       # bytes of an HTTP/1.1 connection
    TOLD_GONE = 1          # the connection is closed, its calls are cancelled
    TOLD_WRITABLE = 2      # its socket has taken everything
    TOLD_RESET = 3         # an HTTP/2 request is over


cdef inline void http_tell(loop_t *loop, conn_t *conn, uint32_t stream, uint32_t kind) noexcept nogil:
    cdef told_t *grown
    cdef told_t *t
    cdef uint32_t room
    if loop.told_count == loop.told_room:
        room = loop.told_room * 2 if loop.told_room else 64
        grown = <told_t *>realloc(loop.told, room * sizeof(told_t))
        if grown == NULL:
            return
        loop.told = grown
        loop.told_room = room
    t = &loop.told[loop.told_count]
    loop.told_count += 1
    t.slot = conn.slot
    t.generation = conn.generation
    t.stream = stream
    t.kind = kind


cdef inline bint http_arrived(loop_t *loop, conn_t *conn, const uint8_t *data, uint32_t size) noexcept nogil:
    """Keep bytes for Python; until it took them the connection is not read. False when out of memory."""
    cdef uint8_t *grown
    if size == 0:
        return True
    if conn.arrived_size + size > conn.arrived_room:
        grown = <uint8_t *>realloc(conn.arrived, conn.arrived_size + size)
        if grown == NULL:
            return False
        hold(conn.h2, conn.arrived_size + size - conn.arrived_room)
        conn.arrived = grown
        conn.arrived_room = conn.arrived_size + size
    memcpy(conn.arrived + conn.arrived_size, data, size)
    conn.arrived_size += size
    if not conn.arrived_told:
        conn.arrived_told = True
        http_tell(loop, conn, 0, TOLD_ARRIVED)
    return True


cdef inline void http_plain_gone(h2_conn *h2, h2_stream *s) noexcept nogil:
    http_tell(<loop_t *>h2.server.owner, <conn_t *>h2.owner, <uint32_t>s.id, TOLD_RESET)


cdef class HttpFace:
    cdef loop_t *loop
    cdef FrontLoop kept
    cdef conn_t *find(self, uint64_t handle) noexcept
    cdef h2_stream *find_stream(self, uint64_t handle, uint32_t stream) noexcept
    cdef object take_arrived(self, told_t *t)
    cdef object take_call(self, h2_stream *s)
    cdef take_plain(self, h2_stream *s, list events)
