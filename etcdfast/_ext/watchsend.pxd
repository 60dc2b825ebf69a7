"""What the watch hub puts into the rings of the frontends.

An outlet is one frontend. Answers to clients' requests that find no room wait in it and go before anything
else; whatever else finds no room stays where it was and the outlet is `blocked` until the next try.
Credit is charged when a record is made: its DATA bytes with the 5 of the gRPC prefix.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from etcdfast._ext.kvenc cimport header_ids
from etcdfast._ext.outbuf cimport outbuf, outbuf_free, outbuf_reserve, outbuf_reset
from etcdfast._ext.ring cimport (
    IPC_BEGIN, IPC_EVENTS, IPC_MESSAGE, IPC_PART, ipc_events, ipc_record, ipc_target, record_payload,
    ring_await_room, ring_claim, ring_commit, ring_publish, ring_view,
)
from etcdfast._ext.rpcids cimport RPC_WATCH
from etcdfast._ext.watchtypes cimport (
    HEAD_BYTES_MAX, big_send, event_ref, stream_link, watch_blob, watch_group, watch_stream, watcher,
)
from etcdfast._ext.watchwire cimport event_bytes, put_watch_header, put_watch_id, watch_id_bytes
from etcdfast._ext.wire cimport wire_put_uint

cdef enum:
    PIECE_BYTES = 49152        # events of one EVENTS record; a larger revision goes as BEGIN and PARTs
    PART_BYTES = 32768
    TARGETS_MAX = 1024         # of one EVENTS record
    PREFIX_BYTES = 5           # gRPC's, in front of every message
    WAITING_BYTES_MAX = 1048576   # of answers waiting in an outlet or behind a large message; then no calls are taken

cdef enum:
    SEND_DONE = 0
    SEND_NO_CREDIT = 1
    SEND_NO_ROOM = 2           # room is asked for
    SEND_NO_MEMORY = -1

ctypedef struct outlet:
    ring_view *ring            # NULL: not attached
    outbuf waiting             # ipc_records, from waiting_at on
    uint64_t waiting_at
    bint blocked
    ipc_record *open           # EVENTS being filled, NULL none
    uint32_t open_targets
    uint32_t open_max
    uint32_t targets_max       # TARGETS_MAX, fewer when the ring is small
    stream_link ready          # streams with QUEUE_READY

# What an EVENTS record says: whole revisions, as refs.
ctypedef struct event_piece:
    const event_ref *refs
    uint32_t count
    uint32_t events
    uint64_t bytes
    int64_t first_main
    int64_t last_main
    int64_t charge             # of each target, without its watch id
    uint32_t head_size
    uint8_t head[HEAD_BYTES_MAX]


cdef inline ipc_record *outlet_claim(outlet *o, uint64_t payload) noexcept nogil:
    """A record, or NULL: blocked, room asked for."""
    cdef uint32_t length = <uint32_t>(sizeof(ipc_record) + payload)
    cdef ipc_record *r
    if o.blocked:
        return NULL
    r = ring_claim(o.ring, length)
    if r == NULL:
        # What is committed must be seen before anybody can make room.
        ring_publish(o.ring)
        if ring_await_room(o.ring, length):
            r = ring_claim(o.ring, length)
        o.blocked = r == NULL
    return r


cdef inline void record_for(ipc_record *r, const watch_stream *s, uint8_t kind, uint64_t index) noexcept nogil:
    """Everything but the length."""
    r.kind = kind
    r.method = RPC_WATCH
    r.frontend = s.frontend
    r.flags = s.flags
    r.slot = s.slot
    r.generation = s.generation
    r.stream = s.stream
    r.status = 0
    r.index = index
    r.term = 0


# ---- answers to requests ----

cdef inline bint outlet_flush(outlet *o) noexcept nogil:
    """Answers that waited, into the ring; whether all went."""
    cdef ipc_record *r
    cdef ipc_record *to
    if o.waiting.size == 0:
        return True
    while o.waiting_at < o.waiting.size:
        r = <ipc_record *>(o.waiting.data + o.waiting_at)
        to = outlet_claim(o, r.length - sizeof(ipc_record))
        if to == NULL:
            return False
        memcpy(to, r, r.length)
        ring_commit(o.ring, to)
        o.waiting_at += (r.length + 7) & ~<uint64_t>7
    o.waiting_at = 0
    outbuf_reset(&o.waiting)
    return True


cdef inline int control_wait(outbuf *queue, const watch_stream *s, const uint8_t *data, uint64_t size) noexcept nogil:
    cdef uint64_t length = sizeof(ipc_record) + size
    cdef uint64_t padded = (length + 7) & ~<uint64_t>7
    cdef ipc_record *r = <ipc_record *>outbuf_reserve(queue, padded)
    if r == NULL:
        return SEND_NO_MEMORY
    r.length = <uint32_t>length
    record_for(r, s, IPC_MESSAGE, 0)
    memcpy(record_payload(r), data, size)
    queue.size += padded
    return SEND_DONE


cdef inline int control_send(outlet *o, watch_stream *s, const uint8_t *data, uint64_t size) noexcept nogil:
    """One message to a stream, behind everything that was sent to it before; never refused for credit."""
    cdef ipc_record *r
    if s.big != NULL:
        # Charged when it goes: the large message in front of it needs the credit.
        return control_wait(&s.big.held, s, data, size)
    s.credit -= <int64_t>size + PREFIX_BYTES
    if o.waiting.size == 0:
        r = outlet_claim(o, size)
        if r != NULL:
            record_for(r, s, IPC_MESSAGE, 0)
            memcpy(record_payload(r), data, size)
            ring_commit(o.ring, r)
            return SEND_DONE
    return control_wait(&o.waiting, s, data, size)


# ---- events for many ----

cdef inline void piece_of(
    event_piece *piece, const event_ref *refs, uint32_t count, const header_ids *ids, int64_t revision
) noexcept nogil:
    """A message of all these refs (count >= 1), with `revision` in its header."""
    cdef uint32_t i
    piece.refs = refs
    piece.count = count
    piece.events = 0
    piece.bytes = 0
    for i in range(count):
        piece.bytes += refs[i].size
        piece.events += refs[i].events
    piece.first_main = refs[0].main
    piece.last_main = refs[count - 1].main
    piece.head_size = <uint32_t>(put_watch_header(piece.head, ids, revision) - piece.head)
    piece.charge = <int64_t>(piece.head_size + piece.bytes) + PREFIX_BYTES


cdef inline uint32_t piece_length(const event_ref *refs, uint32_t count, uint64_t bytes_max) noexcept nogil:
    """How many of these refs go into one message: whole revisions of at most bytes_max in all; 0 when the
    first revision alone is larger."""
    cdef uint32_t whole = 0
    cdef uint32_t i
    cdef uint64_t size = 0
    for i in range(count):
        if i and refs[i].main != refs[i - 1].main:
            whole = i
        size += refs[i].size
        if size > bytes_max:
            return whole
    return count


cdef inline uint32_t revision_length(const event_ref *refs, uint32_t count) noexcept nogil:
    """How many refs the first revision has."""
    cdef uint32_t i = 1
    while i < count and refs[i].main == refs[0].main:
        i += 1
    return i


cdef inline void piece_close(outlet *o, const event_piece *piece) noexcept nogil:
    """The record being filled, into the ring: head and events go behind its targets."""
    cdef ipc_record *r = o.open
    cdef ipc_events *events
    cdef uint8_t *p
    cdef uint32_t i
    if r == NULL:
        return
    o.open = NULL
    events = <ipc_events *>record_payload(r)
    events.targets = o.open_targets
    events.head_bytes = piece.head_size
    p = <uint8_t *>events + sizeof(ipc_events) + <uint64_t>o.open_targets * sizeof(ipc_target)
    memcpy(p, piece.head, piece.head_size)
    p += piece.head_size
    for i in range(piece.count):
        memcpy(p, piece.refs[i].data, piece.refs[i].size)
        p += piece.refs[i].size
    r.length = <uint32_t>(p - <uint8_t *>r)
    ring_commit(o.ring, r)


cdef inline int piece_target(
    outlet *o, const event_piece *piece, watch_stream *s, int64_t watch_id, uint64_t expected
) noexcept nogil:
    """One more who gets the piece, charged; `expected`: about how many there are, this one included.
    SEND_DONE, or SEND_NO_ROOM (nothing changed)."""
    cdef ipc_record *r = o.open
    cdef ipc_target *t
    if r == NULL:
        if o.waiting.size:
            return SEND_NO_ROOM
        if expected > o.targets_max:
            expected = o.targets_max
        r = outlet_claim(o, sizeof(ipc_events) + expected * sizeof(ipc_target) + piece.head_size + piece.bytes)
        if r == NULL:
            return SEND_NO_ROOM
        record_for(r, s, IPC_EVENTS, 0)
        r.slot = r.generation = r.stream = 0
        r.flags = 0
        o.open = r
        o.open_targets = 0
        o.open_max = <uint32_t>expected
    t = <ipc_target *>(record_payload(r) + sizeof(ipc_events)) + o.open_targets
    t.slot = s.slot
    t.generation = s.generation
    t.stream = s.stream
    t.unused = 0
    t.watch_id = watch_id
    s.credit -= piece.charge + watch_id_bytes(watch_id)
    o.open_targets += 1
    if o.open_targets == o.open_max:
        piece_close(o, piece)
    return SEND_DONE


# ---- large messages ----

cdef inline watch_blob *blob_of(const event_ref *refs, uint32_t count, uint64_t size) noexcept nogil:
    """One revision's events in one piece, without users; NULL without memory."""
    cdef watch_blob *blob = <watch_blob *>malloc(sizeof(watch_blob) + size)
    cdef uint8_t *p
    cdef uint32_t i
    if blob == NULL:
        return NULL
    blob.data = <uint8_t *>blob + sizeof(watch_blob)
    blob.size = size
    blob.main = refs[0].main
    blob.users = 0
    blob.events = 0
    p = blob.data
    for i in range(count):
        memcpy(p, refs[i].data, refs[i].size)
        p += refs[i].size
        blob.events += refs[i].events
    return blob


cdef inline void big_next_message(big_send *big, const header_ids *ids) noexcept nogil:
    """Set out the message that begins at big.at: all the rest, or the next fragment of it."""
    cdef uint8_t *p = put_watch_id(put_watch_header(big.head, ids, big.blob.main), big.watch_id)
    cdef uint64_t size
    cdef uint64_t head_size = <uint64_t>(p - big.head)
    cdef const uint8_t *data = big.blob.data
    big.end = big.blob.size
    big.head_at = 0
    big.begun = False
    big.head_size = <uint32_t>head_size
    if big.fragment_bytes == 0:
        return
    if big.at == 0 and (head_size + big.end < big.fragment_bytes or event_bytes(data, data + big.end) == big.end):
        return
    # The first event goes in any case, further ones while the message stays below the limit.
    head_size += 2
    size = event_bytes(data + big.at, data + big.blob.size)
    big.end = big.at + size
    while size and big.end < big.blob.size:
        size = event_bytes(data + big.end, data + big.blob.size)
        if head_size + (big.end - big.at) + size >= big.fragment_bytes:
            break
        big.end += size
    if size == 0:
        big.end = big.blob.size
    if big.end < big.blob.size:
        big.head_size = <uint32_t>(wire_put_uint(p, 7, 1) - big.head)


cdef inline int big_step(outlet *o, watch_stream *s, const header_ids *ids, uint64_t part_bytes) noexcept nogil:
    """Go on with the large message of a stream. SEND_DONE: all of it is in the ring, or as much as its
    watcher wanted; SEND_NO_CREDIT, SEND_NO_ROOM."""
    cdef big_send *big = s.big
    cdef ipc_record *r
    cdef uint64_t size, head
    cdef uint8_t *p
    if o.waiting.size:
        return SEND_NO_ROOM
    while True:
        if s.credit <= 0:
            return SEND_NO_CREDIT
        if not big.begun:
            r = outlet_claim(o, 0)
            if r == NULL:
                return SEND_NO_ROOM
            record_for(r, s, IPC_BEGIN, big.head_size + (big.end - big.at))
            ring_commit(o.ring, r)
            s.credit -= PREFIX_BYTES
            big.begun = True
            continue
        head = big.head_size - big.head_at
        size = head + (big.end - big.at)
        if size > part_bytes:
            size = part_bytes
        if size > <uint64_t>s.credit:
            size = <uint64_t>s.credit
        r = outlet_claim(o, size)
        if r == NULL:
            return SEND_NO_ROOM
        record_for(r, s, IPC_PART, 0)
        p = <uint8_t *>record_payload(r)
        if head > size:
            head = size
        memcpy(p, big.head + big.head_at, head)
        big.head_at += <uint32_t>head
        memcpy(p + head, big.blob.data + big.at, size - head)
        big.at += size - head
        ring_commit(o.ring, r)
        s.credit -= <int64_t>size
        if big.head_at == big.head_size and big.at == big.end:
            if big.end == big.blob.size or big.target == NULL:
                return SEND_DONE
            big_next_message(big, ids)
