"""Pens: small messages of a stream written one after another into one block, so that a thousand watch events
cost no allocation each, and leave as few large DATA frames.

The open block is the stream's last chunk; `s.pen` is where the next message goes. Blocks come from lists of
spare ones.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from etcdfast._ext.grpcwire cimport GRPC_PREFIX_BYTES, put_be32
from etcdfast._ext.h2types cimport (
    PEN_LARGE_BYTES, PEN_SMALL_BYTES, PEN_SPARE_BYTES_MAX, h2_chunk, h2_server, h2_stream,
)
from etcdfast._ext.wire cimport WIRE_VARINT, wire_put_varint, wire_varint_size

cdef enum:
    SPARE_CHUNK = 0
    SPARE_SMALL = 1
    SPARE_LARGE = 2


cdef inline size_t spare_size(int which) noexcept nogil:
    return sizeof(h2_chunk) if which == SPARE_CHUNK else PEN_SMALL_BYTES if which == SPARE_SMALL else PEN_LARGE_BYTES


cdef inline h2_chunk *spare_take(h2_server *server, int which) noexcept nogil:
    cdef h2_chunk *c = server.spare[which]
    if c == NULL:
        return <h2_chunk *>malloc(spare_size(which))
    server.spare[which] = c.next
    server.spare_bytes -= spare_size(which)
    return c


cdef inline void spare_give(h2_server *server, h2_chunk *c, int which) noexcept nogil:
    if server.spare_bytes > PEN_SPARE_BYTES_MAX:
        free(c)
        return
    c.next = server.spare[which]
    server.spare[which] = c
    server.spare_bytes += spare_size(which)


cdef inline void spare_free(h2_server *server) noexcept nogil:
    cdef h2_chunk *c
    cdef int which
    for which in range(SPARE_LARGE + 1):
        while server.spare[which] != NULL:
            c = server.spare[which]
            server.spare[which] = c.next
            free(c)
    server.spare_bytes = 0


cdef inline void pen_count(h2_stream *s) noexcept nogil:
    """Bring the size of the open block up to date; it may be written on."""
    if s.pen != NULL:
        s.out_tail.size = <uint32_t>(s.pen - s.out_tail.data)


cdef inline void pen_close(h2_stream *s) noexcept nogil:
    """Something else comes behind what is written."""
    pen_count(s)
    s.pen = s.pen_end = NULL


cdef inline uint8_t *put_event_head(uint8_t *p, const uint8_t *head, uint32_t head_size, int64_t watch_id,
                                    uint32_t events_size) noexcept nogil:
    """gRPC prefix, `head` and the watch id (none when 0) of a WatchResponse whose events follow."""
    cdef uint32_t id_size = 1 + wire_varint_size(<uint64_t>watch_id) if watch_id else 0
    p[0] = 0
    put_be32(p + 1, head_size + id_size + events_size)
    memcpy(p + GRPC_PREFIX_BYTES, head, head_size)
    p += GRPC_PREFIX_BYTES + head_size
    if watch_id:
        p[0] = 2 << 3 | WIRE_VARINT
        p = wire_put_varint(p + 1, <uint64_t>watch_id)
    return p
