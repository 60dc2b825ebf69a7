"""Growable byte buffer for answers whose size is not known before they are built. Single-threaded.

A failed growth sets `failed` and makes all further writes do nothing, so a builder checks once at its
end instead of after every field. `limit` bounds what one answer may take (OUTBUF_LIMIT_BYTES).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

from etcdfast._ext.wire cimport WIRE_BYTES, wire_put_varint, wire_varint_size

cdef enum:
    # A gRPC message may be 2^31-1 bytes, but no answer is worth that much memory at once.
    OUTBUF_LIMIT_BYTES = 268435456
    OUTBUF_KEEP_BYTES = 1048576   # a larger buffer is given back when it is reset

ctypedef struct outbuf:
    uint8_t *data
    uint64_t size
    uint64_t capacity
    bint failed        # out of memory, or more than OUTBUF_LIMIT_BYTES


cdef inline void outbuf_init(outbuf *b) noexcept nogil:
    b.data = NULL
    b.size = b.capacity = 0
    b.failed = False


cdef inline void outbuf_free(outbuf *b) noexcept nogil:
    free(b.data)
    outbuf_init(b)


cdef inline void outbuf_reset(outbuf *b) noexcept nogil:
    if b.capacity > OUTBUF_KEEP_BYTES:
        outbuf_free(b)
    b.size = 0
    b.failed = False


cdef inline uint8_t *outbuf_reserve(outbuf *b, uint64_t more) noexcept nogil:
    """Room for `more` bytes at the end, not yet counted in size; NULL when failed."""
    cdef uint64_t capacity
    cdef void *grown
    if b.failed:
        return NULL
    if b.capacity - b.size < more:
        if more > OUTBUF_LIMIT_BYTES or b.size + more > OUTBUF_LIMIT_BYTES:
            b.failed = True
            return NULL
        capacity = b.capacity + b.capacity // 2
        if capacity < b.size + more:
            capacity = b.size + more
        capacity = (capacity + 4095) & ~<uint64_t>4095
        grown = realloc(b.data, capacity)
        if grown == NULL:
            b.failed = True
            return NULL
        b.data = <uint8_t *>grown
        b.capacity = capacity
    return b.data + b.size


cdef inline void outbuf_bytes_field(outbuf *b, uint32_t number, const void *data, uint64_t size) noexcept nogil:
    """A length-delimited field; number < 16."""
    cdef uint8_t *p = outbuf_reserve(b, size + 11)
    if p == NULL:
        return
    p[0] = <uint8_t>(number << 3 | WIRE_BYTES)
    p = wire_put_varint(p + 1, size)
    if size:
        memcpy(p, data, size)
    b.size = <uint64_t>(p - b.data) + size


cdef inline void outbuf_uint_field(outbuf *b, uint32_t number, uint64_t value) noexcept nogil:
    """A varint field, zero included; number < 16."""
    cdef uint8_t *p = outbuf_reserve(b, 11)
    if p == NULL:
        return
    p[0] = <uint8_t>(number << 3)
    b.size = <uint64_t>(wire_put_varint(p + 1, value) - b.data)


cdef inline uint64_t outbuf_open(outbuf *b, uint32_t number) noexcept nogil:
    """Begin a nested message as field `number` < 16; the mark goes to outbuf_close."""
    cdef uint8_t *p = outbuf_reserve(b, 2)
    if p == NULL:
        return 0
    p[0] = <uint8_t>(number << 3 | WIRE_BYTES)
    b.size += 2   # one byte for the length: most nested messages are below 128 bytes
    return b.size


cdef inline void outbuf_close(outbuf *b, uint64_t mark) noexcept nogil:
    """End the nested message begun at mark: write its length, moving it when that needs more than one byte."""
    cdef uint64_t size
    cdef uint32_t extra
    if b.failed:
        return
    size = b.size - mark
    extra = wire_varint_size(size) - 1
    if extra:
        if outbuf_reserve(b, extra) == NULL:
            return
        memmove(b.data + mark + extra, b.data + mark, size)
        b.size += extra
    wire_put_varint(b.data + mark - 1, size)
