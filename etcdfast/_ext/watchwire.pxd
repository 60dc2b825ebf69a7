"""WatchRequest decoded from, and control answers of WatchResponse encoded to, the wire. No allocation.

As protobuf asks: the last member of the oneof wins and repeats of one member merge; unknown fields are
skipped. Source: etcdserverpb WatchRequest, WatchCreateRequest, WatchResponse; reference/formats.md 9.6.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.kvenc cimport header_ids, header_size, put_header
from etcdfast._ext.kvreq cimport bytes_view, view_clear
from etcdfast._ext.wire cimport (
    WIRE_BYTES, WIRE_END, WIRE_MALFORMED, WIRE_MORE, WIRE_VARINT, wire_cursor, wire_field, wire_next,
    wire_put_bytes, wire_put_uint, wire_put_varint, wire_varint, wire_varint_size,
)
from etcdfast._ext.watchhistory cimport HISTORY_NO_DELETE, HISTORY_NO_PUT, HISTORY_PREV_KV

# watch_request.kind: field numbers of the oneof
cdef enum:
    WATCH_NONE = 0
    WATCH_CREATE = 1
    WATCH_CANCEL = 2
    WATCH_PROGRESS = 3

cdef enum:
    FILTER_NO_PUT = 0
    FILTER_NO_DELETE = 1

cdef enum:
    CONTROL_BYTES_MAX = 256  # longest control answer, cancel reason included

ctypedef struct watch_request:
    int kind
    bytes_view key
    bytes_view end
    int64_t start_revision
    int64_t watch_id
    uint32_t options         # HISTORY_PREV_KV, HISTORY_NO_PUT, HISTORY_NO_DELETE
    bint progress_notify
    bint fragment


cdef inline void watch_request_clear(watch_request *r, int kind) noexcept nogil:
    r.kind = kind
    view_clear(&r.key)
    view_clear(&r.end)
    r.start_revision = 0
    r.watch_id = 0
    r.options = 0
    r.progress_notify = False
    r.fragment = False


cdef inline void watch_filter(watch_request *r, uint64_t filter) noexcept nogil:
    # An enum is an int32 on the wire: its low half counts. Unknown ones are no filters.
    if <uint32_t>filter == FILTER_NO_PUT:
        r.options |= HISTORY_NO_PUT
    elif <uint32_t>filter == FILTER_NO_DELETE:
        r.options |= HISTORY_NO_DELETE


cdef inline int decode_watch_create(const wire_field *message, watch_request *r) noexcept nogil:
    cdef wire_cursor c, packed
    cdef wire_field f
    cdef uint64_t filter
    cdef int rc
    c.pos = message.data
    c.end = message.data + message.size
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
            elif f.number == 5:
                packed.pos = f.data
                packed.end = f.data + f.size
                while packed.pos < packed.end:
                    if wire_varint(&packed, &filter) < 0:
                        return WIRE_MALFORMED
                    watch_filter(r, filter)
        elif f.type == WIRE_VARINT:
            if f.number == 3:
                r.start_revision = <int64_t>f.value
            elif f.number == 4:
                r.progress_notify = f.value != 0
            elif f.number == 5:
                watch_filter(r, f.value)
            elif f.number == 6:
                r.options &= ~<uint32_t>HISTORY_PREV_KV
                if f.value:
                    r.options |= HISTORY_PREV_KV
            elif f.number == 7:
                r.watch_id = <int64_t>f.value
            elif f.number == 8:
                r.fragment = f.value != 0


cdef inline int decode_watch(const uint8_t *data, uint64_t size, watch_request *r) noexcept nogil:
    """0, or WIRE_MALFORMED. Views point into `data`."""
    cdef wire_cursor c, inner
    cdef wire_field f, g
    cdef int rc
    c.pos = data
    c.end = data + size
    watch_request_clear(r, WATCH_NONE)
    while True:
        rc = wire_next(&c, &f)
        if rc == WIRE_END:
            return 0
        if rc < 0:
            return WIRE_MALFORMED
        if f.type != WIRE_BYTES or f.number > WATCH_PROGRESS:
            continue
        if r.kind != <int>f.number:
            watch_request_clear(r, <int>f.number)
        if f.number == WATCH_CREATE:
            if decode_watch_create(&f, r) < 0:
                return WIRE_MALFORMED
            continue
        inner.pos = f.data
        inner.end = f.data + f.size
        rc = wire_next(&inner, &g)
        while rc == WIRE_MORE:
            if f.number == WATCH_CANCEL and g.number == 1 and g.type == WIRE_VARINT:
                r.watch_id = <int64_t>g.value
            rc = wire_next(&inner, &g)
        if rc < 0:
            return WIRE_MALFORMED


cdef inline uint32_t watch_id_bytes(int64_t watch_id) noexcept nogil:
    """Of field 2; 0 is left out."""
    return 1 + wire_varint_size(<uint64_t>watch_id) if watch_id else 0


cdef inline uint8_t *put_watch_header(uint8_t *p, const header_ids *ids, int64_t revision) noexcept nogil:
    """Field 1, at most 46 bytes."""
    p[0] = 1 << 3 | WIRE_BYTES
    p = wire_put_varint(p + 1, header_size(ids, revision))   # always below 128
    return put_header(p, ids, revision)


cdef inline uint8_t *put_watch_id(uint8_t *p, int64_t watch_id) noexcept nogil:
    return wire_put_uint(p, 2, <uint64_t>watch_id) if watch_id else p


cdef inline uint32_t put_control(
    uint8_t *out, const header_ids *ids, int64_t revision, int64_t watch_id, bint created, bint canceled,
    int64_t compact_revision, const char *reason, uint32_t reason_size
) noexcept nogil:
    """A WatchResponse without events; bytes written, at most CONTROL_BYTES_MAX. reason_size <= 128."""
    cdef uint8_t *p = put_watch_id(put_watch_header(out, ids, revision), watch_id)
    if created:
        p = wire_put_uint(p, 3, 1)
    if canceled:
        p = wire_put_uint(p, 4, 1)
    if compact_revision:
        p = wire_put_uint(p, 5, <uint64_t>compact_revision)
    if reason_size:
        p = wire_put_bytes(p, 6, reason, reason_size)
    return <uint32_t>(p - out)


cdef inline uint64_t event_bytes(const uint8_t *event, const uint8_t *end) noexcept nogil:
    """Size of the field 11 at `event`, its tag and length included; 0 when it is none."""
    cdef wire_cursor c
    cdef wire_field f
    c.pos = event
    c.end = end
    if wire_next(&c, &f) != WIRE_MORE or f.number != 11 or f.type != WIRE_BYTES:
        return 0
    return <uint64_t>(c.pos - event)
