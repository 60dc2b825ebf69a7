"""Whose request a record carries: how frontends, consensus and apply pass an identity on.

PROPOSE, READ and CALL records: `status` bytes of user name END the payload, the message is what lies before them;
`index` is the revision of the auth store that the identity was established at, 0 when there is none. While auth is
off all of them have neither. In the log it is the RequestHeader's username and auth_revision.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from etcdfast._ext.authtable cimport auth_identity
from etcdfast._ext.kvreq cimport INTERNAL_HEADER, bytes_view, cursor_at
from etcdfast._ext.ring cimport ipc_record, record_payload, record_payload_len
from etcdfast._ext.rpcids cimport (
    RPC_ALARM, RPC_AUTHENTICATE, RPC_COMPACT, RPC_DOWNGRADE, RPC_ELECTION_RESIGN, RPC_LOCK, RPC_MEMBER_ADD,
    RPC_MEMBER_PROMOTE, RPC_MEMBER_UPDATE, RPC_MOVE_LEADER, RPC_SNAPSHOT, RPC_USER_ADD, RPC_USER_CHANGE_PASSWORD,
)
from etcdfast._ext.wire cimport WIRE_BYTES, WIRE_MORE, WIRE_VARINT, wire_cursor, wire_field, wire_next

# More bits of a record's flags beside IPC_FLAG_*.
cdef enum:
    IPC_FLAG_BAD_TOKEN = 8   # CALL of a bidi stream: its token is none (any more)
    IPC_FLAG_AUTH_NOW = 16   # the identity counts at whatever auth revision: a simple token, a client certificate

# Method of a CALL that no RPC stands for: payload = an auth token that a frontend does not know; slot and generation
# name the connection, `stream` the question. Its REPLY has the same method: status 0, it is in the table of tokens
# now, or an error.
cdef enum:
    IPC_TOKEN_CHECK = 0xFE


cdef inline uint32_t message_bytes(const ipc_record *r) noexcept nogil:
    """Bytes of a record's message, without the name behind it. Precondition: one of the kinds above."""
    cdef uint32_t size = record_payload_len(<ipc_record *>r)
    return size - r.status if r.status <= size else 0


cdef inline void identity_of(const ipc_record *r, auth_identity *who) noexcept nogil:
    who.name_size = r.status if r.status <= record_payload_len(<ipc_record *>r) else 0
    who.name = <const uint8_t *>record_payload(<ipc_record *>r) + message_bytes(r)
    who.revision = r.index


cdef inline void identity_of_entry(const bytes_view *entry, auth_identity *who) noexcept nogil:
    """Username and auth revision of an InternalRaftRequest's header; neither when it has none."""
    cdef wire_cursor c, inner
    cdef wire_field f, h
    who.name = NULL
    who.name_size = 0
    who.revision = 0
    cursor_at(&c, entry)
    while wire_next(&c, &f) == WIRE_MORE:
        if f.number != INTERNAL_HEADER or f.type != WIRE_BYTES:
            continue
        inner.pos = f.data
        inner.end = f.data + f.size
        while wire_next(&inner, &h) == WIRE_MORE:
            if h.number == 2 and h.type == WIRE_BYTES:
                who.name = h.data
                who.name_size = <uint32_t>h.size
            elif h.number == 3 and h.type == WIRE_VARINT:
                who.revision = h.value


cdef inline bint is_relayed(int method) noexcept nogil:
    """Whether frontends send a proposal by way of apply while auth is on. Compaction and alarms are no business of the
    state machine's own checks: this member's own compactor and quota propose them in nobody's name."""
    return (RPC_MEMBER_ADD <= method <= RPC_MEMBER_UPDATE or method == RPC_MEMBER_PROMOTE or method == RPC_ALARM
            or method == RPC_COMPACT or method == RPC_MOVE_LEADER or method == RPC_DOWNGRADE)


cdef inline bint is_service(int method) noexcept nogil:
    """Whether apply/services.py carries a call out."""
    return (
        RPC_LOCK <= method <= RPC_ELECTION_RESIGN or method == RPC_SNAPSHOT or method == RPC_AUTHENTICATE
        or method == RPC_USER_ADD or method == RPC_USER_CHANGE_PASSWORD)
