"""Protobuf wire format on raw bytes: field iteration and writing, no objects, no allocation.

Readers never look past `end`; every length is checked before use. Writers do not check room: the
caller reserves with the size functions first.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef enum:
    WIRE_VARINT = 0
    WIRE_FIXED64 = 1
    WIRE_BYTES = 2
    WIRE_FIXED32 = 5

cdef enum:
    WIRE_MORE = 1
    WIRE_END = 0
    WIRE_MALFORMED = -1


ctypedef struct wire_cursor:
    const uint8_t *pos   # next byte
    const uint8_t *end   # one past the last byte; both owned by the caller


ctypedef struct wire_field:
    uint32_t number      # 1 .. 2^29-1
    uint32_t type        # WIRE_*
    uint64_t value       # of a varint or fixed field
    const uint8_t *data  # of a WIRE_BYTES field, inside the cursor's bytes
    uint64_t size        # bytes at data


cdef inline int wire_varint(wire_cursor *c, uint64_t *out) noexcept nogil:
    """One varint of at most 10 bytes. WIRE_MORE, or WIRE_MALFORMED when cut short or too long."""
    cdef uint64_t value = 0
    cdef uint8_t byte
    cdef int shift = 0
    while c.pos < c.end and shift < 70:
        byte = c.pos[0]
        c.pos += 1
        value |= <uint64_t>(byte & 0x7F) << shift if shift < 64 else 0
        if byte < 0x80:
            # The tenth byte holds one bit; more is an overlong number.
            if shift == 63 and byte > 1:
                return WIRE_MALFORMED
            out[0] = value
            return WIRE_MORE
        shift += 7
    return WIRE_MALFORMED


cdef inline int wire_next(wire_cursor *c, wire_field *f) noexcept nogil:
    """Read the next field. WIRE_MORE, WIRE_END at the exact end, or WIRE_MALFORMED.

    Groups (wire types 3 and 4) are malformed: etcd's messages have none. So are tags of more than five
    bytes, as for the protobuf runtime of the cold paths, which must not fail on what was let through here.
    """
    cdef const uint8_t *start = c.pos
    cdef uint64_t tag
    cdef uint64_t left
    if c.pos == c.end:
        return WIRE_END
    if c.pos[0] < 0x80:
        tag = c.pos[0]
        c.pos += 1
    elif wire_varint(c, &tag) < 0 or tag > 0xFFFFFFFFu or c.pos - start > 5:
        return WIRE_MALFORMED
    f.number = <uint32_t>(tag >> 3)
    f.type = <uint32_t>(tag & 7)
    if f.number == 0:
        return WIRE_MALFORMED
    f.value = 0
    f.data = NULL
    f.size = 0
    if f.type == WIRE_VARINT:
        return wire_varint(c, &f.value)
    if f.type == WIRE_BYTES:
        if wire_varint(c, &f.size) < 0:
            return WIRE_MALFORMED
        left = <uint64_t>(c.end - c.pos)
        if f.size > left:
            return WIRE_MALFORMED
        f.data = c.pos
        c.pos += f.size
        return WIRE_MORE
    if f.type == WIRE_FIXED64:
        if c.end - c.pos < 8:
            return WIRE_MALFORMED
        memcpy(&f.value, c.pos, 8)
        c.pos += 8
        return WIRE_MORE
    if f.type == WIRE_FIXED32:
        if c.end - c.pos < 4:
            return WIRE_MALFORMED
        memcpy(&f.value, c.pos, 4)
        c.pos += 4
        return WIRE_MORE
    return WIRE_MALFORMED


cdef inline uint32_t wire_varint_size(uint64_t value) noexcept nogil:
    """Bytes of the varint, 1 to 10."""
    cdef uint32_t n = 1
    while value >= 0x80:
        value >>= 7
        n += 1
    return n


cdef inline uint8_t *wire_put_varint(uint8_t *p, uint64_t value) noexcept nogil:
    while value >= 0x80:
        p[0] = <uint8_t>(value | 0x80)
        p += 1
        value >>= 7
    p[0] = <uint8_t>value
    return p + 1


cdef inline uint8_t *wire_put_tag(uint8_t *p, uint32_t number, uint32_t type) noexcept nogil:
    return wire_put_varint(p, (<uint64_t>number << 3) | type)


cdef inline uint8_t *wire_put_uint(uint8_t *p, uint32_t number, uint64_t value) noexcept nogil:
    """A varint field, zero included; int64 goes through as its two's complement."""
    return wire_put_varint(wire_put_tag(p, number, WIRE_VARINT), value)


cdef inline uint8_t *wire_put_bytes(uint8_t *p, uint32_t number, const void *data, uint64_t size) noexcept nogil:
    p = wire_put_varint(wire_put_tag(p, number, WIRE_BYTES), size)
    if size:
        memcpy(p, data, size)
    return p + size


cdef inline uint32_t wire_uint_size(uint32_t number, uint64_t value) noexcept nogil:
    return wire_varint_size(<uint64_t>number << 3) + wire_varint_size(value)


cdef inline uint64_t wire_bytes_size(uint32_t number, uint64_t size) noexcept nogil:
    return wire_varint_size(<uint64_t>number << 3) + wire_varint_size(size) + size
