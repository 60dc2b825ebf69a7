"""Stored forms of the key bucket: revision keys, mvccpb.KeyValue, ResponseHeader. Inline, no allocation.

Layouts: reference/formats.md 6.2. Writers do not check room: the caller reserves with the size
functions. The first byte of a stored key is the bucket, BUCKET_KEY for revisions.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from etcdfast._ext.wire cimport (
    WIRE_BYTES, WIRE_END, WIRE_MALFORMED, WIRE_MORE, WIRE_VARINT, wire_bytes_size, wire_cursor, wire_field,
    wire_next, wire_put_bytes, wire_put_uint, wire_uint_size,
)

cdef extern from * nogil:
    uint64_t __builtin_bswap64(uint64_t value)

cdef enum:
    BUCKET_KEY = 107           # b"k"
    REVISION_KEY_BYTES = 18    # bucket, BE64 main, '_', BE64 sub
    TOMBSTONE_KEY_BYTES = 19   # the same and 't'
    APPLIED_KEY_BYTES = 10     # bucket, BE64 main, 0xff: right behind the last key of that revision
    APPLIED_MARK = 0xFF

ctypedef struct stored_kv:
    const uint8_t *key      # inside the bytes parsed
    uint64_t key_len
    const uint8_t *value
    uint64_t value_len
    int64_t create
    int64_t mod
    int64_t version
    int64_t lease


cdef inline void put_be64(uint8_t *p, uint64_t value) noexcept nogil:
    value = __builtin_bswap64(value)
    memcpy(p, &value, 8)


cdef inline uint64_t get_be64(const uint8_t *p) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, p, 8)
    return __builtin_bswap64(value)


cdef inline void put_revision_key(uint8_t *p, int64_t main, int64_t sub) noexcept nogil:
    """REVISION_KEY_BYTES at p."""
    p[0] = BUCKET_KEY
    put_be64(p + 1, <uint64_t>main)
    p[9] = 95  # '_'
    put_be64(p + 10, <uint64_t>sub)


cdef inline uint64_t keyvalue_size(
    uint64_t key_len, int64_t create, int64_t mod, int64_t version, uint64_t value_len, int64_t lease
) noexcept nogil:
    """Bytes of a mvccpb.KeyValue; zero fields are left out, as etcd's encoder does."""
    cdef uint64_t n = wire_bytes_size(1, key_len) if key_len else 0
    if create:
        n += wire_uint_size(2, <uint64_t>create)
    if mod:
        n += wire_uint_size(3, <uint64_t>mod)
    if version:
        n += wire_uint_size(4, <uint64_t>version)
    if value_len:
        n += wire_bytes_size(5, value_len)
    if lease:
        n += wire_uint_size(6, <uint64_t>lease)
    return n


cdef inline uint8_t *put_keyvalue(
    uint8_t *p, const void *key, uint64_t key_len, int64_t create, int64_t mod, int64_t version,
    const void *value, uint64_t value_len, int64_t lease
) noexcept nogil:
    if key_len:
        p = wire_put_bytes(p, 1, key, key_len)
    if create:
        p = wire_put_uint(p, 2, <uint64_t>create)
    if mod:
        p = wire_put_uint(p, 3, <uint64_t>mod)
    if version:
        p = wire_put_uint(p, 4, <uint64_t>version)
    if value_len:
        p = wire_put_bytes(p, 5, value, value_len)
    if lease:
        p = wire_put_uint(p, 6, <uint64_t>lease)
    return p


cdef inline int parse_keyvalue(const void *data, uint64_t size, stored_kv *kv) noexcept nogil:
    """0, or WIRE_MALFORMED."""
    cdef wire_cursor c
    cdef wire_field f
    cdef int rc
    c.pos = <const uint8_t *>data
    c.end = c.pos + size
    kv.key = c.pos
    kv.key_len = 0
    kv.value = c.pos
    kv.value_len = 0
    kv.create = 0
    kv.mod = 0
    kv.version = 0
    kv.lease = 0
    while True:
        rc = wire_next(&c, &f)
        if rc == WIRE_END:
            return 0
        if rc < 0:
            return WIRE_MALFORMED
        if f.type == WIRE_VARINT:
            if f.number == 2:
                kv.create = <int64_t>f.value
            elif f.number == 3:
                kv.mod = <int64_t>f.value
            elif f.number == 4:
                kv.version = <int64_t>f.value
            elif f.number == 6:
                kv.lease = <int64_t>f.value
        elif f.type == WIRE_BYTES:
            if f.number == 1:
                kv.key = f.data
                kv.key_len = f.size
            elif f.number == 5:
                kv.value = f.data
                kv.value_len = f.size


ctypedef struct header_ids:
    uint64_t cluster
    uint64_t member
    uint64_t term


cdef inline uint64_t header_size(const header_ids *h, int64_t revision) noexcept nogil:
    """Bytes inside a ResponseHeader."""
    cdef uint64_t n = 0
    if h.cluster:
        n += wire_uint_size(1, h.cluster)
    if h.member:
        n += wire_uint_size(2, h.member)
    if revision:
        n += wire_uint_size(3, <uint64_t>revision)
    if h.term:
        n += wire_uint_size(4, h.term)
    return n


cdef inline uint8_t *put_header(uint8_t *p, const header_ids *h, int64_t revision) noexcept nogil:
    """What header_size counted."""
    if h.cluster:
        p = wire_put_uint(p, 1, h.cluster)
    if h.member:
        p = wire_put_uint(p, 2, h.member)
    if revision:
        p = wire_put_uint(p, 3, <uint64_t>revision)
    if h.term:
        p = wire_put_uint(p, 4, h.term)
    return p
