# Streams and output of one connection: stream id -> client, room for frames, leaving a stream.

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

from etcdfast._ext.loadclients cimport mark_dirty
from etcdfast._ext.loadtypes cimport (
    END_MEMORY, END_OVERLOAD, FRAME_RST_STREAM, FRAME_WINDOW_UPDATE, OUT_BYTES_MAX, Client, Conn, Load, StreamSlot,
    store_be32, store_frame_head,
)


cdef enum:
    LEAVE_SILENT
    LEAVE_FINISHED
    LEAVE_RESET


cdef inline void slot_put(Conn* c, uint32_t stream_id, int32_t i) noexcept nogil:
    cdef uint32_t at = (stream_id >> 1) & c.slots_mask
    while c.slots[at].stream_id:
        at = (at + 1) & c.slots_mask
    c.slots[at].stream_id = stream_id
    c.slots[at].client = i


cdef inline int32_t slot_find(Conn* c, uint32_t stream_id) noexcept nogil:
    cdef uint32_t at = (stream_id >> 1) & c.slots_mask
    while c.slots[at].stream_id:
        if c.slots[at].stream_id == stream_id:
            return c.slots[at].client
        at = (at + 1) & c.slots_mask
    return -1


cdef inline void slot_drop(Conn* c, uint32_t stream_id) noexcept nogil:
    """Remove and close the gap, so that a search may stop at the first free slot."""
    cdef uint32_t mask = c.slots_mask
    cdef uint32_t at = (stream_id >> 1) & mask
    cdef uint32_t probe, home
    while c.slots[at].stream_id != stream_id:
        if c.slots[at].stream_id == 0:
            return
        at = (at + 1) & mask
    probe = at
    while True:
        probe = (probe + 1) & mask
        if c.slots[probe].stream_id == 0:
            break
        home = (c.slots[probe].stream_id >> 1) & mask
        if ((probe - home) & mask) >= ((probe - at) & mask):
            c.slots[at] = c.slots[probe]
            at = probe
    c.slots[at].stream_id = 0


cdef inline int output_room(Conn* c, uint32_t more) noexcept nogil:
    """Make room for `more` bytes of output; 0, or END_OVERLOAD, or END_MEMORY."""
    cdef uint32_t need, capacity
    cdef uint8_t* grown
    if c.out_sent and c.out_sent == c.out_bytes:
        c.out_sent = c.out_bytes = 0
    need = c.out_bytes + more
    if need <= c.out_capacity:
        return 0
    if c.out_sent:
        memmove(c.out, c.out + c.out_sent, c.out_bytes - c.out_sent)
        c.out_bytes -= c.out_sent
        c.out_sent = 0
        need = c.out_bytes + more
    if need > OUT_BYTES_MAX:
        return END_OVERLOAD
    if need > c.out_capacity:
        capacity = max(c.out_capacity, <uint32_t>4096)
        while capacity < need:
            capacity *= 2
        grown = <uint8_t*>realloc(c.out, capacity)
        if grown == NULL:
            return END_MEMORY
        c.out = grown
        c.out_capacity = capacity
    return 0


cdef inline int window_update(Load* g, Conn* c, uint32_t stream_id, uint32_t bytes_back) noexcept nogil:
    cdef int rc = output_room(c, 13)
    if rc < 0:
        return rc
    store_frame_head(c.out + c.out_bytes, 4, FRAME_WINDOW_UPDATE, 0, stream_id)
    store_be32(c.out + c.out_bytes + 9, bytes_back)
    c.out_bytes += 13
    mark_dirty(g, c)
    return 0


cdef inline void leave_stream(Load* g, Conn* c, int32_t i, int reset) noexcept nogil:
    """Take client i off its stream; what it still had to send is dropped.

    LEAVE_RESET resets it, LEAVE_FINISHED only if it is still open on our side; a reset is not answered by
    one (RFC 9113 5.4.2): LEAVE_SILENT.
    """
    cdef Client* client = &g.clients[i]
    cdef int32_t at, before
    cdef bint unfinished = client.held or client.body != NULL
    unfinished = reset == LEAVE_RESET or reset == LEAVE_FINISHED and unfinished
    slot_drop(c, client.stream_id)
    c.active -= 1
    if c.data_client == i:
        c.data_client = -1
    if client.body != NULL:
        free(client.body)
        client.body = NULL
        before = -1
        at = c.sending_head
        while at >= 0 and at != i:
            before = at
            at = g.clients[at].next
        if at == i:
            if before < 0:
                c.sending_head = client.next
            else:
                g.clients[before].next = client.next
            if c.sending_tail == i:
                c.sending_tail = before
    if unfinished and output_room(c, 13) == 0:
        store_frame_head(c.out + c.out_bytes, 4, FRAME_RST_STREAM, 0, client.stream_id)
        store_be32(c.out + c.out_bytes + 9, 8)
        c.out_bytes += 13
    client.stream_id = 0
    # also when nothing is ready: a draining connection closes in its flush
    mark_dirty(g, c)
