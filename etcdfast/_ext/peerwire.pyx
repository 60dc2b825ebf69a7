"""Raft messages and HTTP chunks as bytes (contract in peerwire.pxd)."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove, memset

from etcdfast._ext.wire cimport WIRE_END, WIRE_MORE, WIRE_VARINT, wire_cursor, wire_field, wire_next

# Snapshot{metadata: {conf_state: {auto_leave: false}, index: 0, term: 0}} as field 9
cdef uint8_t[PEER_EMPTY_SNAPSHOT_BYTES] EMPTY_SNAPSHOT = [
    0x4A, 0x0A, 0x12, 0x08, 0x0A, 0x02, 0x28, 0x00, 0x10, 0x00, 0x18, 0x00]


# ---- writing ----------------------------------------------------------------------------------------


cdef uint64_t peer_entries_bound(const peer_entry *entries, uint32_t count) noexcept nogil:
    cdef uint64_t bound = <uint64_t>count * PEER_ENTRY_OVERHEAD_MAX
    cdef uint32_t i
    for i in range(count):
        bound += entries[i].data_bytes
    return bound


cdef uint64_t peer_message_bound(const peer_message *m) noexcept nogil:
    cdef uint64_t bound = PEER_MESSAGE_OVERHEAD_MAX + m.context_bytes + peer_entries_bound(m.entries, m.entry_count)
    return bound + 11 + m.snapshot_bytes if m.snapshot != NULL else bound


cdef uint8_t *peer_put_message(uint8_t *p, const peer_message *m, bint empty_snapshot) noexcept nogil:
    cdef peer_entry proposal
    cdef const peer_entry *e
    cdef uint32_t i
    p = wire_put_uint(p, 1, <uint64_t>m.type)
    p = wire_put_uint(p, 2, m.to)
    p = wire_put_uint(p, 3, m.frm)
    p = wire_put_uint(p, 4, m.term)
    p = wire_put_uint(p, 5, m.log_term)
    p = wire_put_uint(p, 6, m.index)
    for i in range(m.entry_count):
        e = &m.entries[i]
        if m.type == PEER_MSG_PROP:
            proposal = e[0]
            proposal.term = proposal.index = 0
            e = &proposal
        p[0] = 7 << 3 | WIRE_BYTES
        p = wire_put_varint(p + 1, peer_entry_bytes(e))
        p = peer_put_entry(p, e)
    p = wire_put_uint(p, 8, m.commit)
    if m.snapshot != NULL:
        p = wire_put_bytes(p, 9, m.snapshot, m.snapshot_bytes)
    elif empty_snapshot:
        memcpy(p, EMPTY_SNAPSHOT, PEER_EMPTY_SNAPSHOT_BYTES)
        p += PEER_EMPTY_SNAPSHOT_BYTES
    p = wire_put_uint(p, 10, 1 if m.reject else 0)
    p = wire_put_uint(p, 11, m.reject_hint)
    return wire_put_bytes(p, 12, m.context, m.context_bytes) if m.context != NULL else p


# ---- reading ----------------------------------------------------------------------------------------


cdef bint peer_entry_list_reserve(peer_entry_list *list, uint32_t count) noexcept nogil:
    cdef uint64_t room = list.room
    cdef void *grown
    if count <= room:
        return True
    if count > PEER_ENTRIES_MAX:
        return False
    room = room * 2 if room else 64
    while room < count:
        room *= 2
    grown = realloc(list.rows, room * sizeof(peer_entry))
    if grown == NULL:
        return False
    list.rows = <peer_entry *>grown
    list.room = <uint32_t>room
    return True


cdef void peer_entry_list_free(peer_entry_list *list) noexcept nogil:
    free(list.rows)
    list.rows = NULL
    list.room = 0


cdef int peer_parse_entry(const uint8_t *data, uint64_t size, peer_entry *out) noexcept nogil:
    cdef wire_cursor c
    cdef wire_field f
    cdef int rc
    c.pos = data
    c.end = data + size
    memset(out, 0, sizeof(peer_entry))
    while True:
        rc = wire_next(&c, &f)
        if rc != WIRE_MORE:
            return PEER_OK if rc == WIRE_END else PEER_MALFORMED
        if f.number == 4:
            if f.type != WIRE_BYTES or f.size > 0xFFFFFFFFu:
                return PEER_MALFORMED
            out.data = f.data if f.size else NULL
            out.data_bytes = <uint32_t>f.size
        elif f.number <= 3:
            if f.type != WIRE_VARINT:
                return PEER_MALFORMED
            if f.number == 2:
                out.term = f.value
            elif f.number == 3:
                out.index = f.value
            elif f.value > 0x7FFFFFFF:
                return PEER_MALFORMED
            else:
                out.type = <int32_t>f.value


cdef int parse_snapshot(const uint8_t *data, uint64_t size, peer_message *out) noexcept nogil:
    """Index and term of a raftpb.Snapshot: field 2, there 2 and 3."""
    cdef wire_cursor c, inner
    cdef wire_field f
    cdef int rc
    c.pos = data
    c.end = data + size
    while True:
        rc = wire_next(&c, &f)
        if rc != WIRE_MORE:
            return PEER_OK if rc == WIRE_END else PEER_MALFORMED
        if f.number != 2:
            continue
        if f.type != WIRE_BYTES:
            return PEER_MALFORMED
        inner.pos = f.data
        inner.end = f.data + f.size
        while True:
            rc = wire_next(&inner, &f)
            if rc == WIRE_END:
                break
            if rc != WIRE_MORE:
                return PEER_MALFORMED
            if f.number == 2 or f.number == 3:
                if f.type != WIRE_VARINT:
                    return PEER_MALFORMED
                if f.number == 2:
                    out.snap_index = f.value
                else:
                    out.snap_term = f.value


cdef int parse_scalar(peer_message *out, const wire_field *f) noexcept nogil:
    if f.type != WIRE_VARINT:
        return PEER_MALFORMED
    if f.number == 1:
        if f.value > 0x7FFFFFFF:
            return PEER_MALFORMED
        out.type = <int>f.value
    elif f.number == 2:
        out.to = f.value
    elif f.number == 3:
        out.frm = f.value
    elif f.number == 4:
        out.term = f.value
    elif f.number == 5:
        out.log_term = f.value
    elif f.number == 6:
        out.index = f.value
    elif f.number == 8:
        out.commit = f.value
    elif f.number == 10:
        out.reject = f.value != 0
    elif f.number == 11:
        out.reject_hint = f.value
    return PEER_OK


cdef int peer_parse_message(
    const uint8_t *data, uint64_t size, peer_message *out, peer_entry_list *list,
) noexcept nogil:
    cdef wire_cursor c
    cdef wire_field f
    cdef int rc
    c.pos = data
    c.end = data + size
    memset(out, 0, sizeof(peer_message))
    while True:
        rc = wire_next(&c, &f)
        if rc != WIRE_MORE:
            break
        if f.number == 7:
            if f.type != WIRE_BYTES or out.entry_count >= PEER_ENTRIES_MAX:
                return PEER_MALFORMED
            if not peer_entry_list_reserve(list, out.entry_count + 1):
                return PEER_NO_MEMORY
            if peer_parse_entry(f.data, f.size, &list.rows[out.entry_count]):
                return PEER_MALFORMED
            out.entry_count += 1
        elif f.number == 9:
            if f.type != WIRE_BYTES or parse_snapshot(f.data, f.size, out):
                return PEER_MALFORMED
            out.snapshot = f.data
            out.snapshot_bytes = f.size
        elif f.number == 12:
            if f.type != WIRE_BYTES:
                return PEER_MALFORMED
            # Absent and empty are different things to a message that is written again.
            out.context = f.data
            out.context_bytes = <uint32_t>f.size
        elif f.number <= 11 and parse_scalar(out, &f):
            return PEER_MALFORMED
    if rc != WIRE_END:
        return PEER_MALFORMED
    out.entries = list.rows if out.entry_count else NULL
    if out.snap_index == 0:
        out.snapshot = NULL
        out.snapshot_bytes = 0
    return PEER_OK if out.type != PEER_MSG_APP or peer_entries_follow(out) else PEER_MALFORMED


cdef bint peer_entries_follow(const peer_message *m) noexcept nogil:
    cdef uint64_t term = m.log_term
    cdef uint32_t i
    if m.index + m.entry_count < m.index:
        return False
    for i in range(m.entry_count):
        if m.entries[i].index != m.index + 1 + i or m.entries[i].term < term or m.entries[i].term > m.term:
            return False
        term = m.entries[i].term
    return True


# ---- HTTP/1.1 chunks --------------------------------------------------------------------------------


cdef inline int hex_digit(uint8_t byte) noexcept nogil:
    if 48 <= byte <= 57:
        return byte - 48
    byte |= 32
    if 97 <= byte <= 102:
        return byte - 87
    return -1


cdef int64_t chunk_decode(chunk_decoder *d, uint8_t *data, uint64_t size) noexcept nogil:
    cdef const uint8_t *p = data
    cdef const uint8_t *end = data + size
    cdef uint8_t *out = data
    cdef uint64_t part
    cdef int digit
    while p < end:
        if d.state == CHUNK_DATA:
            part = <uint64_t>(end - p)
            if part > d.left:
                part = d.left
            if out != p:
                memmove(out, p, part)
            out += part
            p += part
            d.left -= part
            if d.left == 0:
                d.state = CHUNK_DATA_CR
            continue
        if d.state == CHUNK_END:
            break
        if d.state == CHUNK_SIZE:
            digit = hex_digit(p[0])
            if digit >= 0:
                # 15 digits cannot overflow; leading zeros count too, nobody needs more of them.
                if d.digits == 15:
                    return PEER_MALFORMED
                d.digits += 1
                d.left = d.left << 4 | <uint64_t>digit
                p += 1
                continue
            if d.digits == 0 or (p[0] != 13 and p[0] != 59 and p[0] != 32 and p[0] != 9):
                return PEER_MALFORMED
            d.state = CHUNK_EXTENSION
        if d.state == CHUNK_EXTENSION:
            d.line_bytes += 1
            if p[0] == 13:
                d.state = CHUNK_SIZE_LF
            elif p[0] == 10 or d.line_bytes > CHUNK_LINE_BYTES_MAX:
                return PEER_MALFORMED
            p += 1
            continue
        if d.state == CHUNK_DATA_CR:
            if p[0] != 13:
                return PEER_MALFORMED
            d.state = CHUNK_DATA_LF
        elif p[0] != 10:
            return PEER_MALFORMED
        elif d.state == CHUNK_SIZE_LF:
            d.state = CHUNK_DATA if d.left else CHUNK_END
        else:  # CHUNK_DATA_LF
            d.state = CHUNK_SIZE
            d.digits = d.line_bytes = 0
            d.left = 0
        p += 1
    return <int64_t>(out - data)


# ---- Python's face ----------------------------------------------------------------------------------


class PeerMessageError(ValueError):
    """Bytes that are no raftpb.Message."""


cdef class PeerMessage:
    """raftpb.Message out of bytes; C code uses `.message`, whose pointers live as long as this object.

    Errors: PeerMessageError; MemoryError.
    """

    def __cinit__(self, bytes data not None):
        cdef int rc
        cdef const uint8_t *start = data
        memset(&self.list, 0, sizeof(peer_entry_list))
        if <uint64_t>len(data) > 0xFFFFFFFFu:
            raise PeerMessageError(f"{len(data)} bytes")
        self.source = data
        rc = peer_parse_message(start, <uint64_t>len(data), &self.message, &self.list)
        if rc == PEER_NO_MEMORY:
            raise MemoryError
        if rc:
            raise PeerMessageError("malformed message")

    def __dealloc__(self):
        peer_entry_list_free(&self.list)

    @property
    def type(self):
        return self.message.type

    @property
    def to(self):
        return self.message.to

    @property
    def frm(self):
        return self.message.frm

    @property
    def snap_index(self):
        """Index of the snapshot in it, 0 without one."""
        return self.message.snap_index

    def fields(self):
        """(type, to, frm, term, log_term, index, commit, entries, reject, reject_hint, context, snapshot), entries as
        (term, index, type, data), snapshot as the marshalled raftpb.Snapshot; both bytes None when absent."""
        return message_fields(&self.message)


cdef object bytes_or_none(const uint8_t *data, uint64_t size):
    return None if data == NULL else (<const char *>data)[:<Py_ssize_t>size]


cdef tuple message_fields(const peer_message *m):
    cdef uint32_t i
    cdef list entries = []
    for i in range(m.entry_count):
        entries.append((
            m.entries[i].term, m.entries[i].index, m.entries[i].type,
            (<const char *>m.entries[i].data)[:m.entries[i].data_bytes] if m.entries[i].data_bytes else b"",
        ))
    return (
        m.type, m.to, m.frm, m.term, m.log_term, m.index, m.commit, entries, bool(m.reject), m.reject_hint,
        bytes_or_none(m.context, m.context_bytes), bytes_or_none(m.snapshot, m.snapshot_bytes),
    )


cdef bytes marshal(const peer_message *m, bint empty_snapshot):
    cdef uint64_t bound = peer_message_bound(m)
    cdef bytearray room = bytearray(bound)
    cdef uint8_t *start = room
    cdef uint8_t *end = peer_put_message(start, m, empty_snapshot)
    return (<const char *>start)[:end - start]


cdef int fill_entries(peer_entry_list *list, object entries, object keep) except -1:
    """Rows of (term, index, type, data); `keep` holds what they point to. Errors: MemoryError, ValueError."""
    cdef uint32_t i = 0
    cdef bytes data
    if len(entries) > PEER_ENTRIES_MAX:
        raise ValueError(f"{len(entries)} entries")
    if not peer_entry_list_reserve(list, <uint32_t>len(entries)):
        raise MemoryError
    for term, index, type, raw in entries:
        data = bytes(raw)
        keep.append(data)
        list.rows[i].term = term
        list.rows[i].index = index
        list.rows[i].type = type
        list.rows[i].data_bytes = <uint32_t>len(data)
        list.rows[i].data = <const uint8_t *>data if len(data) else NULL
        i += 1
    return 0


def marshal_message(
    int type, uint64_t to=0, uint64_t frm=0, uint64_t term=0, uint64_t log_term=0, uint64_t index=0,
    uint64_t commit=0, entries=(), bint reject=False, uint64_t reject_hint=0, bytes context=None,
    bytes snapshot=None, *, bint empty_snapshot=True,
):
    """raftpb.Message as bytes, for POST /raft and /raft/snapshot; the fields are those of PeerMessage.fields().

    Errors: MemoryError, ValueError for too many entries.
    """
    cdef peer_message m
    cdef peer_entry_list list
    memset(&m, 0, sizeof(peer_message))
    memset(&list, 0, sizeof(peer_entry_list))
    keep = []
    m.type, m.to, m.frm, m.term, m.log_term, m.index, m.commit = type, to, frm, term, log_term, index, commit
    m.reject, m.reject_hint = reject, reject_hint
    if context is not None:
        m.context, m.context_bytes = context, <uint32_t>len(context)
    if snapshot is not None:
        m.snapshot, m.snapshot_bytes = snapshot, <uint64_t>len(snapshot)
    try:
        fill_entries(&list, entries, keep)
        m.entries, m.entry_count = list.rows, <uint32_t>len(keep)
        return marshal(&m, empty_snapshot)
    finally:
        peer_entry_list_free(&list)


cdef class ChunkDecoder:
    """chunk_decode for tests and for streams read by Python."""
    cdef chunk_decoder chunks

    def __cinit__(self):
        memset(&self.chunks, 0, sizeof(chunk_decoder))

    def feed(self, bytes data not None):
        """Payload of the next bytes. Errors: PeerMessageError."""
        cdef bytearray room = bytearray(data)
        cdef int64_t size = chunk_decode(&self.chunks, room, <uint64_t>len(data))
        if size < 0:
            raise PeerMessageError("malformed chunk")
        return bytes(room[:size])

    @property
    def ended(self):
        return self.chunks.state == CHUNK_END
