"""KV requests decoded from the wire into C structs that point into the bytes given. No allocation.

As protobuf asks: fields in any order, the last of a scalar or oneof wins, unknown fields are skipped,
and so is a known field of another wire type. All decoders return 0 or WIRE_MALFORMED.

What requests.pxd lets into the log must never be malformed here, or one request would end the member at
every start: both sides rest on wire_next, and tests/apply/test_hostile.py holds them together.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.wire cimport (
    WIRE_BYTES, WIRE_END, WIRE_MALFORMED, WIRE_MORE, WIRE_VARINT, wire_cursor, wire_field, wire_next,
)

cdef enum:
    SORT_NONE = 0
    SORT_ASCEND = 1
    SORT_DESCEND = 2

cdef enum:
    TARGET_KEY = 0
    TARGET_VERSION = 1
    TARGET_CREATE = 2
    TARGET_MOD = 3
    TARGET_VALUE = 4

cdef enum:
    COMPARE_EQUAL = 0
    COMPARE_GREATER = 1
    COMPARE_LESS = 2
    COMPARE_NOT_EQUAL = 3

cdef enum:
    COMPARE_VERSION = 0
    COMPARE_CREATE = 1
    COMPARE_MOD = 2
    COMPARE_VALUE = 3
    COMPARE_LEASE = 4

# RequestOp oneof and fields of TxnRequest
cdef enum:
    OP_NONE = 0
    OP_RANGE = 1
    OP_PUT = 2
    OP_DELETE = 3
    OP_TXN = 4
    TXN_COMPARE = 1
    TXN_SUCCESS = 2
    TXN_FAILURE = 3

# Fields of InternalRaftRequest that the hot path decodes itself
cdef enum:
    INTERNAL_PUT = 4
    INTERNAL_DELETE = 5
    INTERNAL_TXN = 6
    INTERNAL_COMPACT = 7
    INTERNAL_LEASE_GRANT = 8
    INTERNAL_LEASE_REVOKE = 9
    INTERNAL_LEASE_CHECKPOINT = 11
    INTERNAL_HEADER = 100
    INTERNAL_RARE = 0     # anything else: the cold path decodes it

ctypedef struct bytes_view:
    const uint8_t *data
    uint64_t size

ctypedef struct put_request:
    bytes_view key
    bytes_view value
    int64_t lease
    bint prev_kv
    bint ignore_value
    bint ignore_lease

ctypedef struct delete_request:
    bytes_view key
    bytes_view end
    bint prev_kv

ctypedef struct range_request:
    bytes_view key
    bytes_view end
    int64_t limit
    int64_t revision
    int32_t order
    int32_t target
    bint keys_only
    bint count_only
    int64_t min_mod
    int64_t max_mod
    int64_t min_create
    int64_t max_create

ctypedef struct compact_request:
    int64_t revision
    bint physical

ctypedef struct lease_grant_request:
    int64_t ttl            # seconds
    int64_t id

ctypedef struct lease_request:   # LeaseRevokeRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest
    int64_t id
    bint keys

ctypedef struct lease_checkpoint:
    int64_t id
    int64_t remaining      # seconds

ctypedef struct compare_op:
    bytes_view key
    bytes_view end
    int32_t result
    int32_t target
    uint32_t union_field   # field number of the oneof that is set, 0 none
    int64_t number
    bytes_view value


cdef inline void cursor_at(wire_cursor *c, const bytes_view *view) noexcept nogil:
    c.pos = view.data
    c.end = view.data + view.size


cdef inline void view_clear(bytes_view *view) noexcept nogil:
    view.data = <const uint8_t *>""
    view.size = 0


cdef inline int decode_put(const bytes_view *message, put_request *r) noexcept nogil:
    cdef wire_cursor c
    cdef wire_field f
    cdef int rc
    cursor_at(&c, message)
    view_clear(&r.key)
    view_clear(&r.value)
    r.lease = 0
    r.prev_kv = r.ignore_value = r.ignore_lease = False
    while True:
        rc = wire_next(&c, &f)
        if rc == WIRE_END:
            return 0
        if rc < 0:
            return WIRE_MALFORMED
        if f.type == WIRE_BYTES:
            if f.number == 1:
                r.key.data = f.data
                r.key.size = f.size
            elif f.number == 2:
                r.value.data = f.data
                r.value.size = f.size
        elif f.type == WIRE_VARINT:
            if f.number == 3:
                r.lease = <int64_t>f.value
            elif f.number == 4:
                r.prev_kv = f.value != 0
            elif f.number == 5:
                r.ignore_value = f.value != 0
            elif f.number == 6:
                r.ignore_lease = f.value != 0


cdef inline int decode_delete(const bytes_view *message, delete_request *r) noexcept nogil:
    cdef wire_cursor c
    cdef wire_field f
    cdef int rc
    cursor_at(&c, message)
    view_clear(&r.key)
    view_clear(&r.end)
    r.prev_kv = False
    while True:
        rc = wire_next(&c, &f)
        if rc == WIRE_END:
            return 0
        if rc < 0:
            return WIRE_MALFORMED
        if f.type == WIRE_BYTES:
            if f.number == 1:
                r.key.data = f.data
                r.key.size = f.size
            elif f.number == 2:
                r.end.data = f.data
                r.end.size = f.size
        elif f.type == WIRE_VARINT and f.number == 3:
            r.prev_kv = f.value != 0


cdef inline int decode_range(const bytes_view *message, range_request *r) noexcept nogil:
    cdef wire_cursor c
    cdef wire_field f
    cdef int rc
    cursor_at(&c, message)
    view_clear(&r.key)
    view_clear(&r.end)
    r.limit = r.revision = 0
    r.order = r.target = 0
    r.keys_only = r.count_only = False
    r.min_mod = r.max_mod = r.min_create = r.max_create = 0
    while True:
        rc = wire_next(&c, &f)
        if rc == WIRE_END:
            return 0
        if rc < 0:
            return WIRE_MALFORMED
        if f.type == WIRE_BYTES:
            if f.number == 1:
                r.key.data = f.data
                r.key.size = f.size
            elif f.number == 2:
                r.end.data = f.data
                r.end.size = f.size
        elif f.type == WIRE_VARINT:
            if f.number == 3:
                r.limit = <int64_t>f.value
            elif f.number == 4:
                r.revision = <int64_t>f.value
            elif f.number == 5:
                r.order = <int32_t>f.value
            elif f.number == 6:
                r.target = <int32_t>f.value
            elif f.number == 8:
                r.keys_only = f.value != 0
            elif f.number == 9:
                r.count_only = f.value != 0
            elif f.number == 10:
                r.min_mod = <int64_t>f.value
            elif f.number == 11:
                r.max_mod = <int64_t>f.value
            elif f.number == 12:
                r.min_create = <int64_t>f.value
            elif f.number == 13:
                r.max_create = <int64_t>f.value


cdef inline int decode_compact(const bytes_view *message, compact_request *r) noexcept nogil:
    cdef wire_cursor c
    cdef wire_field f
    cdef int rc
    cursor_at(&c, message)
    r.revision = 0
    r.physical = False
    while True:
        rc = wire_next(&c, &f)
        if rc == WIRE_END:
            return 0
        if rc < 0:
            return WIRE_MALFORMED
        if f.type == WIRE_VARINT:
            if f.number == 1:
                r.revision = <int64_t>f.value
            elif f.number == 2:
                r.physical = f.value != 0


cdef inline int decode_lease_grant(const bytes_view *message, lease_grant_request *r) noexcept nogil:
    cdef wire_cursor c
    cdef wire_field f
    cdef int rc
    cursor_at(&c, message)
    r.ttl = r.id = 0
    while True:
        rc = wire_next(&c, &f)
        if rc == WIRE_END:
            return 0
        if rc < 0:
            return WIRE_MALFORMED
        if f.type == WIRE_VARINT:
            if f.number == 1:
                r.ttl = <int64_t>f.value
            elif f.number == 2:
                r.id = <int64_t>f.value


cdef inline int decode_lease(const bytes_view *message, lease_request *r) noexcept nogil:
    cdef wire_cursor c
    cdef wire_field f
    cdef int rc
    cursor_at(&c, message)
    r.id = 0
    r.keys = False
    while True:
        rc = wire_next(&c, &f)
        if rc == WIRE_END:
            return 0
        if rc < 0:
            return WIRE_MALFORMED
        if f.type == WIRE_VARINT:
            if f.number == 1:
                r.id = <int64_t>f.value
            elif f.number == 2:
                r.keys = f.value != 0


cdef inline int decode_lease_checkpoint(const bytes_view *message, lease_checkpoint *r) noexcept nogil:
    """One LeaseCheckpoint out of a LeaseCheckpointRequest's field 1."""
    cdef wire_cursor c
    cdef wire_field f
    cdef int rc
    cursor_at(&c, message)
    r.id = r.remaining = 0
    while True:
        rc = wire_next(&c, &f)
        if rc == WIRE_END:
            return 0
        if rc < 0:
            return WIRE_MALFORMED
        if f.type == WIRE_VARINT:
            if f.number == 1:
                r.id = <int64_t>f.value
            elif f.number == 2:
                r.remaining = <int64_t>f.value


cdef inline int decode_compare(const bytes_view *message, compare_op *r) noexcept nogil:
    cdef wire_cursor c
    cdef wire_field f
    cdef int rc
    cursor_at(&c, message)
    view_clear(&r.key)
    view_clear(&r.end)
    view_clear(&r.value)
    r.result = r.target = 0
    r.union_field = 0
    r.number = 0
    while True:
        rc = wire_next(&c, &f)
        if rc == WIRE_END:
            return 0
        if rc < 0:
            return WIRE_MALFORMED
        if f.type == WIRE_BYTES:
            if f.number == 3:
                r.key.data = f.data
                r.key.size = f.size
            elif f.number == 64:
                r.end.data = f.data
                r.end.size = f.size
            elif f.number == 7:
                r.union_field = 7
                r.value.data = f.data
                r.value.size = f.size
        elif f.type == WIRE_VARINT:
            if f.number == 1:
                r.result = <int32_t>f.value
            elif f.number == 2:
                r.target = <int32_t>f.value
            elif 4 <= f.number <= 6 or f.number == 8:
                r.union_field = f.number
                r.number = <int64_t>f.value


cdef inline int decode_op(const bytes_view *message, bytes_view *inner) noexcept nogil:
    """OP_* of a RequestOp and the bytes of the request in it; OP_NONE when empty; WIRE_MALFORMED."""
    cdef wire_cursor c
    cdef wire_field f
    cdef int rc
    cdef int op = OP_NONE
    cursor_at(&c, message)
    view_clear(inner)
    while True:
        rc = wire_next(&c, &f)
        if rc == WIRE_END:
            return op
        if rc < 0:
            return WIRE_MALFORMED
        if f.number <= 4 and f.type == WIRE_BYTES:
            op = <int>f.number
            inner.data = f.data
            inner.size = f.size


cdef inline int decode_internal(const bytes_view *message, bytes_view *inner) noexcept nogil:
    """INTERNAL_* of an InternalRaftRequest and the request's bytes. INTERNAL_RARE when it holds none or
    anything else besides the header; WIRE_MALFORMED."""
    cdef wire_cursor c
    cdef wire_field f
    cdef int rc
    cdef int found = INTERNAL_RARE
    cdef bint rare = False
    cursor_at(&c, message)
    view_clear(inner)
    while True:
        rc = wire_next(&c, &f)
        if rc == WIRE_END:
            return INTERNAL_RARE if rare else found
        if rc < 0:
            return WIRE_MALFORMED
        if (INTERNAL_PUT <= f.number <= INTERNAL_LEASE_REVOKE) or f.number == INTERNAL_LEASE_CHECKPOINT:
            if f.type != WIRE_BYTES:
                return WIRE_MALFORMED
            if found != INTERNAL_RARE:
                rare = True
            found = <int>f.number
            inner.data = f.data
            inner.size = f.size
        elif f.number != INTERNAL_HEADER and f.number != 1:
            rare = True


cdef inline bint whole_tail(const bytes_view *end) noexcept nogil:
    """range_end of one zero byte: all keys from the first on."""
    return end.size == 1 and end.data[0] == 0
