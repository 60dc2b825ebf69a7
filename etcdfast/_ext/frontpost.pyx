"""Requests into the rings: see frontpost.pxd."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy, memset

from etcdfast._ext.frontconn cimport LATE_COST_BYTES, cancel_t, conn_resume, conn_t, late_t, loop_t
from etcdfast._ext.frontauth cimport WHO_FREE, client_t, client_who
from etcdfast._ext.grpcwire cimport GRPC_PREFIX_BYTES, be32
from etcdfast._ext.h2request cimport h2_keep_request
from etcdfast._ext.h2stream cimport h2_drop_request, h2_taken
from etcdfast._ext.h2types cimport *
from etcdfast._ext.meters cimport M_RING_FULL, meter_count
from etcdfast._ext.ring cimport *
from etcdfast._ext.rpcids cimport RPC_AUTHENTICATE


cdef inline bint post(loop_t *loop, h2_stream *s, int ring, int kind, const uint8_t *data, uint32_t size) noexcept nogil:
    """Write the request's record; False while it does not fit."""
    cdef client_t who
    cdef ipc_record *r
    cdef int found = WHO_FREE
    who.size = 0
    if kind != IPC_HALF and s.method != RPC_AUTHENTICATE:
        found = client_who(loop, s, &who)
    loop.post_need = <uint32_t>sizeof(ipc_record) + size + who.size
    r = ring_claim(loop.out[ring], loop.post_need)
    if r == NULL:
        return False
    fill_record(loop, r, s, kind)
    if size:
        memcpy(record_payload(r), data, size)
    if found != WHO_FREE:
        r.flags |= who.flags
        r.status = who.size
        r.index = who.revision
        if who.size:
            memcpy(record_payload(r) + size, who.name, who.size)
    ring_commit(loop.out[ring], r)
    s.flags |= STREAM_DISPATCHED
    if kind == IPC_CALL or kind == IPC_READ:
        s.flags |= STREAM_CANCELLABLE
    return True


cdef void late_add(loop_t *loop, h2_stream *s, int ring, int kind, uint32_t size) noexcept nogil:
    """The stream waits, and the process keeps `size` bytes for it meanwhile."""
    cdef late_t *late = &loop.late[ring]
    cdef conn_t *conn = <conn_t *>s.conn.owner
    loop.ring_full += 1
    meter_count(M_RING_FULL, 1)
    conn.late_count += 1
    s.late_bytes = size + LATE_COST_BYTES
    loop.late_bytes += s.late_bytes
    s.flags |= STREAM_LATE
    s.late_ring = <uint8_t>ring
    s.late_kind = <uint8_t>kind
    s.late_next = NULL
    s.late_prev = late.tail
    if late.tail != NULL:
        late.tail.late_next = s
    else:
        late.head = s
    late.tail = s
    loop.late_count += 1


cdef void late_remove(loop_t *loop, h2_stream *s) noexcept nogil:
    cdef late_t *late = &loop.late[s.late_ring]
    cdef conn_t *conn = <conn_t *>s.conn.owner
    if not s.flags & STREAM_LATE:
        return
    conn.late_count -= 1
    loop.late_bytes -= s.late_bytes
    if conn.late_count == 0:
        conn_resume(loop, conn)
    s.flags &= ~<uint32_t>STREAM_LATE
    if s.late_prev != NULL:
        s.late_prev.late_next = s.late_next
    else:
        late.head = s.late_next
    if s.late_next != NULL:
        s.late_next.late_prev = s.late_prev
    else:
        late.tail = s.late_prev
    loop.late_count -= 1


cdef void post_request(loop_t *loop, h2_stream *s, int ring, int kind, const uint8_t *data,
                       uint32_t size) noexcept nogil:
    if loop.late[ring].head == NULL and post(loop, s, ring, kind, data, size):
        h2_drop_request(s)
        return
    h2_keep_request(s)
    late_add(loop, s, ring, kind, s.room)


cdef bint post_message(loop_t *loop, h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil:
    if not s.flags & STREAM_LATE:
        if loop.late[RING_APPLY].head == NULL and post(loop, s, RING_APPLY, IPC_CALL, data, size):
            return True
        late_add(loop, s, RING_APPLY, IPC_CALL, 0)
    s.late_bytes += size
    loop.late_bytes += size
    return False


cdef void post_unparked(loop_t *loop, h2_stream *s) noexcept nogil:
    cdef uint32_t at = s.taken
    cdef uint32_t size
    if not s.flags & STREAM_BIDI:
        late_add(loop, s, s.late_ring, s.late_kind, s.room)
        return
    late_add(loop, s, RING_APPLY, IPC_CALL, 0)
    while at < s.whole:
        size = be32(s.buf + at + 1)
        s.late_bytes += size
        loop.late_bytes += size
        at += GRPC_PREFIX_BYTES + size


cdef void post_half(loop_t *loop, h2_stream *s) noexcept nogil:
    if s.flags & STREAM_PARKED:
        s.flags |= STREAM_HALF_OWED
        return
    if not s.flags & STREAM_LATE:
        if loop.late[RING_APPLY].head == NULL and post(loop, s, RING_APPLY, IPC_HALF, NULL, 0):
            return
        late_add(loop, s, RING_APPLY, IPC_CALL, 0)
    s.flags |= STREAM_HALF_OWED


cdef bint retry_post(loop_t *loop, h2_stream *s, int kind, const uint8_t *data, uint32_t size) noexcept nogil:
    """Post, or ask for a knock when there is room."""
    cdef ring_view *ring = loop.out[s.late_ring]
    while not post(loop, s, s.late_ring, kind, data, size):
        ring_publish(ring)
        if not ring_await_room(ring, loop.post_need):
            return False
    return True


cdef bint retry_messages(loop_t *loop, h2_stream *s) noexcept nogil:
    """What a bidi stream has waiting, in its client's order. False while there is no room."""
    cdef uint32_t size
    while s.taken < s.whole:
        size = be32(s.buf + s.taken + 1)
        if not retry_post(loop, s, IPC_CALL, s.buf + s.taken + GRPC_PREFIX_BYTES, size):
            return False
        s.taken += GRPC_PREFIX_BYTES + size
        s.late_bytes -= size
        loop.late_bytes -= size
    if s.flags & STREAM_HALF_OWED and not retry_post(loop, s, IPC_HALF, NULL, 0):
        return False
    s.flags &= ~<uint32_t>STREAM_HALF_OWED
    late_remove(loop, s)
    h2_taken(s)
    return True


cdef bint retry_request(loop_t *loop, h2_stream *s) noexcept nogil:
    if s.buf != NULL and not retry_post(loop, s, s.late_kind, s.buf + GRPC_PREFIX_BYTES, s.have - GRPC_PREFIX_BYTES):
        return False
    late_remove(loop, s)
    h2_drop_request(s)
    return True


cdef void late_retry(loop_t *loop) noexcept nogil:
    cdef int ring
    cdef h2_stream *s
    for ring in range(2):
        while loop.late[ring].head != NULL:
            s = loop.late[ring].head
            if not (retry_messages(loop, s) if s.flags & STREAM_BIDI else retry_request(loop, s)):
                break


cdef bint post_cancel(loop_t *loop, cancel_t *c) noexcept nogil:
    cdef ipc_record *r = ring_claim(loop.out[RING_APPLY], sizeof(ipc_record))
    if r == NULL:
        return False
    memset(<char *>r + 4, 0, sizeof(ipc_record) - 4)
    r.kind = IPC_CANCEL
    r.method = c.method
    r.frontend = loop.index
    r.slot = c.slot
    r.generation = c.generation
    r.stream = c.stream
    ring_commit(loop.out[RING_APPLY], r)
    return True


cdef void cancel(loop_t *loop, h2_stream *s) noexcept nogil:
    cdef conn_t *conn = <conn_t *>s.conn.owner
    cdef cancel_t c
    cdef cancel_t *grown
    cdef uint32_t room
    if not s.flags & STREAM_CANCELLABLE:
        return
    s.flags &= ~<uint32_t>STREAM_CANCELLABLE
    c.slot = conn.slot
    c.generation = conn.generation
    c.stream = <uint32_t>s.id
    c.method = s.method
    if loop.cancel_count == 0 and post_cancel(loop, &c):
        return
    if loop.cancel_count == loop.cancel_room:
        room = loop.cancel_room * 2 if loop.cancel_room else 64
        grown = <cancel_t *>realloc(loop.cancels, room * sizeof(cancel_t))
        if grown == NULL:
            return
        loop.cancels = grown
        loop.cancel_room = room
    loop.cancels[loop.cancel_count] = c
    loop.cancel_count += 1


cdef void cancel_retry(loop_t *loop) noexcept nogil:
    while loop.cancel_count:
        if post_cancel(loop, &loop.cancels[loop.cancel_count - 1]):
            loop.cancel_count -= 1
            continue
        ring_publish(loop.out[RING_APPLY])
        if not ring_await_room(loop.out[RING_APPLY], sizeof(ipc_record)):
            return
