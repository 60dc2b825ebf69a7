"""HTTP/2 and gRPC framing of one connection: bytes in, calls and bytes out; no sockets, no clock.

The owner (frontloop) feeds what it read, gets `on_open`, `on_call` and `on_gone`, answers through
h2stream.pxd, and pulls the bytes to write. Time enters as h2_server.now_ns.
One h2_server per process holds what connections share; nothing here is safe for several threads.
"""

from libc.stdint cimport uint8_t, uint32_t

from etcdfast._ext.h2types cimport h2_conn, h2_server, h2_stream

cdef int h2_server_init(h2_server *server) noexcept nogil
cdef void h2_server_free(h2_server *server) noexcept nogil
cdef uint32_t h2_hash(const uint8_t *data, size_t size) noexcept nogil

cdef h2_conn *h2_open(h2_server *server, void *owner) noexcept nogil
# For an HTTP/1.1 connection: no session, its streams are calls of Python's. NULL when out of memory.
cdef h2_conn *h2_open_calls(h2_server *server, void *owner) noexcept nogil
# Ends every stream (on_gone for each) and frees the connection.
cdef void h2_close(h2_conn *conn) noexcept nogil
# Bytes as they came. 0, or -1 when the connection must end now (conn.fatal says with which code).
cdef int h2_feed(h2_conn *conn, const uint8_t *data, uint32_t size) noexcept nogil
# Bytes to write, into server.out; stops near H2_OUT_BYTES (1: more is waiting), 0 all, -1 fatal.
cdef int h2_pull(h2_conn *conn) noexcept nogil
# GOAWAY with conn.fatal; `out` holds 64 bytes. Returns the frame's size.
cdef uint32_t h2_goaway_frame(h2_conn *conn, uint8_t *out) noexcept nogil
# Whether neither side has anything left to say.
cdef bint h2_finished(h2_conn *conn) noexcept nogil
cdef h2_stream *h2_find(h2_conn *conn, uint32_t stream_id) noexcept nogil
cdef void h2_ping(h2_conn *conn) noexcept nogil
# Graceful end: step 0 announces, step 1 fixes the last stream.
cdef void h2_shutdown(h2_conn *conn, int step) noexcept nogil
