"""The streams between this member and one other: frames in and out of sockets, no decisions of raft.

    we write:   raft log --link_put_*--> frame in a chunk --> outgoing buffer --link_flush--> stream the peer dialled
    we read:    stream we dialled --link_receive--> bytes without chunks --link_next--> peer_message

Each side dials both kinds, so a link has up to four connections (formats.md 4.4). They arrive with their HTTP heads
and TLS handshakes done. A link owns the descriptors and TLS states it was given: whoever watches them by epoll does so by `link.out[kind].fd` and
`link.incoming[kind].fd` (-1: not attached); closing takes them out of epoll by itself.

One thread owns a link. Nothing here blocks.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.tlsconn cimport tls_conn
from etcdfast._ext.peerwire cimport chunk_decoder, peer_entry, peer_entry_list, peer_message

cdef enum:
    LINK_APP = 0  # msgappv2: MsgApp only
    LINK_MESSAGE = 1  # everything else but MsgSnap
    LINK_KINDS = 2

cdef enum:
    LINK_OK = 0
    LINK_DOWN = -1  # no such stream attached
    LINK_FULL = -2  # the outgoing buffer is at its limit; nothing was put
    LINK_NO_MEMORY = -3
    LINK_BROKEN = -4  # closed by the other side, or an error of the socket: detach it
    LINK_MALFORMED = -5  # bytes that no member writes: detach it

# Bits of link_heartbeat and link_expired.
cdef enum:
    LINK_BIT_OUT_APP = 1
    LINK_BIT_OUT_MESSAGE = 2
    LINK_BIT_IN_APP = 4
    LINK_BIT_IN_MESSAGE = 8

cdef enum:
    LINK_READ_BYTES = 131072  # room for one read, at least
    LINK_KEEP_BYTES = 262144  # buffers are multiples; a larger one that stays empty for a heartbeat is given back
    LINK_CHUNK_HEAD = 10  # 8 hex digits, CR LF
    LINK_CHUNK_TAIL = 2

ctypedef struct link_out:
    int fd  # -1: not attached
    tls_conn *tls  # owned; NULL: plain
    uint8_t *data
    uint64_t capacity
    uint64_t start  # first byte not written yet
    uint64_t end
    uint64_t busy_bytes  # most that was waiting since the last heartbeat
    uint64_t heartbeat_ns  # when the last link heartbeat was put
    uint64_t progress_ns  # when the socket last took bytes, or first refused to; 0: what waits was not offered yet
    uint64_t app_term, app_index  # state of the msgappv2 encoder

ctypedef struct link_in:
    int fd  # -1: not attached
    tls_conn *tls  # owned; NULL: plain
    bint chunked
    bint malformed  # bytes came that are no chunks: nothing more is taken from it
    chunk_decoder chunks
    uint8_t *data
    uint64_t capacity
    uint64_t start  # first byte of the next frame
    uint64_t end  # of bytes without chunks
    uint64_t need_bytes  # size of the frame that begins at `start`, as far as known
    uint64_t scanned  # bytes of a type 1 frame walked so far, from `start`
    uint64_t entries_left  # entries of it not walked yet
    uint64_t busy_bytes
    uint64_t received_ns  # when bytes last came, or the stream was attached
    uint64_t app_term, app_index  # state of the msgappv2 decoder

ctypedef struct peer_link:
    uint64_t remote
    uint64_t local
    bint empty_snapshot  # put the empty snapshot field into messages, as etcd 3.4 and 3.5 do
    uint64_t out_bytes_max  # per channel; one message alone may exceed it
    uint64_t frame_bytes_max  # larger frames are malformed
    uint64_t read_ns, write_ns  # without a byte in, or without one out of what waits: the stream is dead
    link_out out[LINK_KINDS]
    link_in incoming[LINK_KINDS]
    peer_entry_list entries  # of the message last returned by link_next
    # totals of this link's life
    uint64_t sent_bytes, received_bytes
    uint64_t sent_messages, received_messages
    uint64_t full  # messages refused with LINK_FULL

# ---- sending --------------------------------------------------------------------------------------
# All: LINK_OK, LINK_DOWN, LINK_FULL, LINK_NO_MEMORY; data is copied, and leaves with link_flush.

# A MsgApp on the msgappv2 stream, compact when the encoder's state allows it.
# Precondition: entries follow prev_index without a hole.
cdef int link_put_app(
    peer_link *link, uint64_t term, uint64_t prev_index, uint64_t prev_term, uint64_t commit,
    const peer_entry *entries, uint32_t count,
) noexcept nogil

# Any message but MsgSnap, on the message stream (formats.md 4.7 sends MsgApp elsewhere, but readers take it).
cdef int link_put(peer_link *link, const peer_message *m) noexcept nogil

# A message that is marshalled already.
cdef int link_put_message(peer_link *link, const uint8_t *data, uint64_t size) noexcept nogil

# A message without entries. `context` NULL leaves it out.
cdef int link_put_plain(
    peer_link *link, int type, uint64_t to, uint64_t frm, uint64_t term, uint64_t log_term, uint64_t index,
    uint64_t commit, bint reject, uint64_t reject_hint, const uint8_t *context, uint32_t context_bytes,
) noexcept nogil

# MsgProp: proposals forwarded to the leader; of each entry only type and data are sent, term and index as 0. They
# may fill three quarters of the buffer, so that there is always room for the small messages that keep a leader.
cdef int link_put_prop(
    peer_link *link, uint64_t frm, uint64_t to, const peer_entry *entries, uint32_t count,
) noexcept nogil

# MsgReadIndex and MsgReadIndexResp: the context travels as data of the only entry.
cdef int link_put_read(
    peer_link *link, int type, uint64_t to, uint64_t frm, uint64_t term, uint64_t index,
    const uint8_t *context, uint32_t context_bytes,
) noexcept nogil

# Put link heartbeats on both streams when due (a third of read_ns, which members have alike: 1.667 s), and give back
# memory not needed lately. Returns LINK_BIT_OUT_* of the streams to flush.
cdef int link_heartbeat(peer_link *link, uint64_t now_ns) noexcept nogil

# Write without blocking what the socket takes. 0 all gone (or not attached), 1 would block (EPOLLOUT tells when to go
# on), LINK_BROKEN.
cdef int link_flush(peer_link *link, int kind) noexcept nogil


cdef inline uint64_t link_pending(const peer_link *link, int kind) noexcept nogil:
    """Bytes put and not written yet."""
    return link.out[kind].end - link.out[kind].start


# The socket of an outgoing stream is readable: its dialler says nothing, so this is its end. LINK_OK or LINK_BROKEN.
cdef int link_check_out(peer_link *link, int kind) noexcept nogil

# ---- receiving ------------------------------------------------------------------------------------

# One read. > 0: bytes came; 0: would block; LINK_DOWN; LINK_BROKEN; LINK_MALFORMED; LINK_NO_MEMORY.
# Invalidates what link_next returned from this stream.
cdef int64_t link_receive(peer_link *link, int kind) noexcept nogil

# The next message of what was received; link heartbeats are passed over. 1: a message, its pointers are valid until the
# next link_next or link_heartbeat of this link or link_receive of this stream; 0: nothing whole is there; LINK_DOWN;
# LINK_BROKEN: the stream ended behind what was returned; LINK_MALFORMED; LINK_NO_MEMORY.
# To be called after attach_in too: bytes may have come with the HTTP head.
cdef int link_next(peer_link *link, int kind, peer_message *out) noexcept nogil

# LINK_BIT_* of streams that are dead: nothing received, or nothing written of what waits, for 5 s. After a pause of
# this process its sockets are asked first, so that its own silence is not taken for the peer's.
cdef int link_expired(peer_link *link, uint64_t now_ns) noexcept nogil

# ---- streams come and go --------------------------------------------------------------------------

# Close the stream and forget what was waiting. Nothing when it is not attached.
cdef void link_detach_out(peer_link *link, int kind) noexcept nogil
cdef void link_detach_in(peer_link *link, int kind) noexcept nogil


cdef class PeerLink:
    """Owner of a peer_link, and its face for Python."""
    cdef peer_link link
    cpdef close(self)
