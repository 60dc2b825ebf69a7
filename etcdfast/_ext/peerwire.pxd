"""Raft messages between members as bytes: raftpb.Message and Entry, and HTTP chunks (formats.md 2.1, 4.5, 4.6).

No I/O and no allocation but the list of entries. Readers check every length; pointers in what they return lie in
the caller's bytes. Writers do not check room: the caller reserves the bound first.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.wire cimport (
    WIRE_BYTES, wire_bytes_size, wire_put_bytes, wire_put_uint, wire_put_varint, wire_uint_size, wire_varint_size,
)

# raftpb.MessageType, those that travel
cdef enum:
    PEER_MSG_PROP = 2
    PEER_MSG_APP = 3
    PEER_MSG_APP_RESP = 4
    PEER_MSG_VOTE = 5
    PEER_MSG_VOTE_RESP = 6
    PEER_MSG_SNAP = 7
    PEER_MSG_HEARTBEAT = 8
    PEER_MSG_HEARTBEAT_RESP = 9
    PEER_MSG_TRANSFER_LEADER = 13
    PEER_MSG_TIMEOUT_NOW = 14
    PEER_MSG_READ_INDEX = 15
    PEER_MSG_READ_INDEX_RESP = 16
    PEER_MSG_PRE_VOTE = 17
    PEER_MSG_PRE_VOTE_RESP = 18

cdef enum:
    PEER_OK = 0
    PEER_MALFORMED = -1
    PEER_NO_MEMORY = -2

cdef enum:
    # etcd's messages hold 1 MiB of entries of at least 6 bytes each. Without a limit a frame of empty entries would
    # cost several times its own bytes as rows.
    PEER_ENTRIES_MAX = 262144
    PEER_ENTRY_OVERHEAD_MAX = 52  # tag and length around it 11; type, term and index 11 each; tag and length of data 6
    PEER_MESSAGE_OVERHEAD_MAX = 128  # ten scalars of at most 11, the empty snapshot 12, tag of context 6
    PEER_EMPTY_SNAPSHOT_BYTES = 12
    CHUNK_LINE_BYTES_MAX = 4096  # of a chunk's head; real ones are below 20

# raftpb.Entry
ctypedef struct peer_entry:
    uint64_t term
    uint64_t index
    const uint8_t *data  # NULL when data_bytes is 0
    uint32_t data_bytes
    int32_t type  # raftpb.EntryType

# raftpb.Message
ctypedef struct peer_message:
    int type
    bint reject
    uint64_t to
    uint64_t frm
    uint64_t term
    uint64_t log_term
    uint64_t index
    uint64_t commit
    uint64_t reject_hint
    const uint8_t *context  # NULL when absent
    uint32_t context_bytes
    uint32_t entry_count
    peer_entry *entries
    uint64_t snap_index  # 0: no snapshot in it
    uint64_t snap_term
    const uint8_t *snapshot  # the raftpb.Snapshot, NULL when absent
    uint64_t snapshot_bytes

# Rows for the entries of one message at a time; zeroed by its owner before the first use.
ctypedef struct peer_entry_list:
    peer_entry *rows
    uint32_t room


cdef inline uint64_t peer_entry_bytes(const peer_entry *e) noexcept nogil:
    """Size of the marshalled Entry, exactly."""
    cdef uint64_t size = 3 + wire_varint_size(<uint64_t>e.type) + wire_varint_size(e.term) + wire_varint_size(e.index)
    return size + wire_bytes_size(4, e.data_bytes) if e.data_bytes else size


cdef inline uint8_t *peer_put_entry(uint8_t *p, const peer_entry *e) noexcept nogil:
    p = wire_put_uint(p, 1, <uint64_t>e.type)
    p = wire_put_uint(p, 2, e.term)
    p = wire_put_uint(p, 3, e.index)
    return wire_put_bytes(p, 4, e.data, e.data_bytes) if e.data_bytes else p


# Bytes that `count` entries can need at most, wrapped one by one with up to 11 bytes.
cdef uint64_t peer_entries_bound(const peer_entry *entries, uint32_t count) noexcept nogil

# Bytes that peer_put_message can need at most.
cdef uint64_t peer_message_bound(const peer_message *m) noexcept nogil

# Marshal; returns the end. With `empty_snapshot` and without a snapshot the constant that etcd 3.4 and 3.5 write.
# Entries of a MsgProp go out with term and index 0: the leader fills them in.
cdef uint8_t *peer_put_message(uint8_t *p, const peer_message *m, bint empty_snapshot) noexcept nogil

# Unmarshal. Entries go into `list`, replacing what was there; out.entries points there. Entries of a MsgApp must
# follow message.index without a hole, with terms that never fall and do not exceed the message's: whoever stores
# them relies on it. Precondition: size < 2^32.
# PEER_OK, PEER_MALFORMED, PEER_NO_MEMORY.
cdef int peer_parse_message(
    const uint8_t *data, uint64_t size, peer_message *out, peer_entry_list *list,
) noexcept nogil
cdef int peer_parse_entry(const uint8_t *data, uint64_t size, peer_entry *out) noexcept nogil
cdef bint peer_entries_follow(const peer_message *m) noexcept nogil

# Room for one more row. False without memory or at PEER_ENTRIES_MAX.
cdef bint peer_entry_list_reserve(peer_entry_list *list, uint32_t count) noexcept nogil
cdef void peer_entry_list_free(peer_entry_list *list) noexcept nogil

# ---- HTTP/1.1 chunks --------------------------------------------------------------------------------

cdef enum:
    CHUNK_SIZE = 0  # in the digits of a chunk's size
    CHUNK_EXTENSION = 1  # behind them, up to CR
    CHUNK_SIZE_LF = 2
    CHUNK_DATA = 3
    CHUNK_DATA_CR = 4
    CHUNK_DATA_LF = 5
    CHUNK_END = 6  # the last chunk came; trailers are not looked at

ctypedef struct chunk_decoder:
    int state
    uint32_t line_bytes  # of the head so far
    uint32_t digits
    uint64_t left  # bytes of data still to come in this chunk; in the head: its size so far

# Take the chunk heads out of `data`, in place; they may be cut anywhere. Returns the bytes of payload, now at the
# front, or PEER_MALFORMED.
cdef int64_t chunk_decode(chunk_decoder *d, uint8_t *data, uint64_t size) noexcept nogil


cdef class PeerMessage:
    """One raftpb.Message that came as bytes (POST /raft), and its owner."""
    cdef peer_message message
    cdef peer_entry_list list
    cdef object source


cdef tuple message_fields(const peer_message *m)

# For POST /raft: any message as bytes.
cdef bytes marshal(const peer_message *m, bint empty_snapshot)
cdef int fill_entries(peer_entry_list *list, object entries, object keep) except -1
