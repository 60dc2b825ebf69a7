"""The streams between this member and one other (contract and picture in peerlink.pxd)."""

import os

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from etcdfast._ext.netsys cimport IPPROTO_TCP, MSG_NOSIGNAL, TCP_NODELAY, clock_ns, close_fd, recv, send, setsockopt
from etcdfast._ext.peerwire cimport *
from etcdfast._ext.tlsconn cimport (
    TLS_AGAIN, tls_close, tls_conn, tls_flush, tls_more, tls_recv, tls_send, tls_shutdown, tls_unsent,
)
from etcdfast._ext.tlscontext cimport tls_take

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static inline void link_store_be64(uint8_t *p, uint64_t v) { v = __builtin_bswap64(v); memcpy(p, &v, 8); }
    static inline uint64_t link_load_be64(const uint8_t *p) {
        uint64_t v;
        memcpy(&v, p, 8);
        return __builtin_bswap64(v);
    }
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "the frame codec is written for little-endian machines"
    #endif
    """
    void link_store_be64(uint8_t *p, uint64_t v) noexcept nogil
    uint64_t link_load_be64(const uint8_t *p) noexcept nogil

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_PEEK

cdef enum:
    FRAME_HEARTBEAT = 0
    FRAME_ENTRIES = 1
    FRAME_MESSAGE = 2

cdef uint64_t CHUNK_BYTES_MAX = 0xFFFFFFFF  # eight hex digits
cdef bytes HEX_DIGITS = b"0123456789abcdef"
cdef const uint8_t *HEX = HEX_DIGITS

STREAMS = {"msgapp": LINK_APP, "message": LINK_MESSAGE}  # name in the URL -> kind
OUT_BYTES_MAX = 16 << 20
FRAME_BYTES_MAX = 64 << 20


# ---- outgoing buffer --------------------------------------------------------------------------------


cdef uint8_t *frame_begin(link_out *out, uint64_t bound, uint64_t limit, int *rc) noexcept nogil:
    """Room for a frame of at most `bound` bytes behind a chunk's head; NULL with the reason in rc."""
    cdef uint64_t waiting = out.end - out.start
    cdef uint64_t need = LINK_CHUNK_HEAD + bound + LINK_CHUNK_TAIL
    cdef uint64_t capacity
    cdef uint8_t *grown
    if out.fd < 0:
        rc[0] = LINK_DOWN
        return NULL
    if waiting and waiting + need > limit:
        rc[0] = LINK_FULL
        return NULL
    rc[0] = LINK_NO_MEMORY
    if bound > CHUNK_BYTES_MAX:
        return NULL
    if waiting == 0:
        out.start = out.end = 0
        out.progress_ns = 0
    if out.capacity - out.end < need:
        # Moved down only when at least as much was written: each byte moves once on the average.
        if out.start >= waiting and out.capacity - waiting >= need:
            memmove(out.data, out.data + out.start, waiting)
        else:
            capacity = out.capacity * 2 if out.capacity else 16384
            if capacity < waiting + need:
                capacity = waiting + need
            grown = <uint8_t *>malloc(capacity)
            if grown == NULL:
                return NULL
            if waiting:
                memcpy(grown, out.data + out.start, waiting)
            free(out.data)
            out.data = grown
            out.capacity = capacity
        out.start = 0
        out.end = waiting
    rc[0] = LINK_OK
    return out.data + out.end + LINK_CHUNK_HEAD


cdef void frame_end(link_out *out, uint8_t *p) noexcept nogil:
    """The frame ends at `p`: write its chunk's head and tail."""
    cdef uint8_t *head = out.data + out.end
    cdef uint64_t size = <uint64_t>(p - head) - LINK_CHUNK_HEAD
    cdef int i
    for i in range(8):
        head[i] = HEX[size >> (28 - 4 * i) & 15]
    head[8] = p[0] = 13
    head[9] = p[1] = 10
    out.end = <uint64_t>(p + 2 - out.data)
    if out.end - out.start > out.busy_bytes:
        out.busy_bytes = out.end - out.start


cdef int refused(peer_link *link, int rc) noexcept nogil:
    if rc == LINK_FULL:
        link.full += 1
    return rc


# ---- sending ----------------------------------------------------------------------------------------


cdef int link_put_app(
    peer_link *link, uint64_t term, uint64_t prev_index, uint64_t prev_term, uint64_t commit,
    const peer_entry *entries, uint32_t count,
) noexcept nogil:
    cdef link_out *out = &link.out[LINK_APP]
    cdef peer_message m
    cdef uint8_t *p
    cdef uint8_t *start
    cdef uint32_t i
    cdef int rc
    p = start = frame_begin(
        out, 9 + PEER_MESSAGE_OVERHEAD_MAX + peer_entries_bound(entries, count), link.out_bytes_max, &rc)
    if p == NULL:
        return refused(link, rc)
    if prev_term == term and out.app_term == term and out.app_index == prev_index:
        p[0] = FRAME_ENTRIES
        link_store_be64(p + 1, count)
        p += 9
        for i in range(count):
            link_store_be64(p, peer_entry_bytes(&entries[i]))
            p = peer_put_entry(p + 8, &entries[i])
        link_store_be64(p, commit)
        p += 8
    else:
        memset(&m, 0, sizeof(peer_message))
        m.type = PEER_MSG_APP
        m.to = link.remote
        m.frm = link.local
        m.term = term
        m.log_term = prev_term
        m.index = prev_index
        m.commit = commit
        m.entries = <peer_entry *>entries
        m.entry_count = count
        p[0] = FRAME_MESSAGE
        p = peer_put_message(p + 9, &m, link.empty_snapshot)
        link_store_be64(start + 1, <uint64_t>(p - start) - 9)
    frame_end(out, p)
    out.app_term = term
    out.app_index = prev_index + count
    link.sent_messages += 1
    return LINK_OK


cdef int put_limited(peer_link *link, const peer_message *m, uint64_t limit) noexcept nogil:
    cdef link_out *out = &link.out[LINK_MESSAGE]
    cdef uint8_t *start
    cdef uint8_t *p
    cdef int rc
    start = frame_begin(out, 8 + peer_message_bound(m), limit, &rc)
    if start == NULL:
        return refused(link, rc)
    p = peer_put_message(start + 8, m, link.empty_snapshot)
    link_store_be64(start, <uint64_t>(p - start) - 8)
    frame_end(out, p)
    link.sent_messages += 1
    return LINK_OK


cdef int link_put(peer_link *link, const peer_message *m) noexcept nogil:
    return put_limited(link, m, link.out_bytes_max)


cdef int link_put_message(peer_link *link, const uint8_t *data, uint64_t size) noexcept nogil:
    cdef link_out *out = &link.out[LINK_MESSAGE]
    cdef int rc
    cdef uint8_t *p = frame_begin(out, 8 + size, link.out_bytes_max, &rc)
    if p == NULL:
        return refused(link, rc)
    link_store_be64(p, size)
    memcpy(p + 8, data, size)
    frame_end(out, p + 8 + size)
    link.sent_messages += 1
    return LINK_OK


cdef int link_put_plain(
    peer_link *link, int type, uint64_t to, uint64_t frm, uint64_t term, uint64_t log_term, uint64_t index,
    uint64_t commit, bint reject, uint64_t reject_hint, const uint8_t *context, uint32_t context_bytes,
) noexcept nogil:
    cdef peer_message m
    memset(&m, 0, sizeof(peer_message))
    m.type = type
    m.to = to
    m.frm = frm
    m.term = term
    m.log_term = log_term
    m.index = index
    m.commit = commit
    m.reject = reject
    m.reject_hint = reject_hint
    m.context = context
    m.context_bytes = context_bytes if context != NULL else 0
    return link_put(link, &m)


cdef int link_put_prop(
    peer_link *link, uint64_t frm, uint64_t to, const peer_entry *entries, uint32_t count,
) noexcept nogil:
    cdef peer_message m
    memset(&m, 0, sizeof(peer_message))
    m.type = PEER_MSG_PROP
    m.to = to
    m.frm = frm
    m.entries = <peer_entry *>entries
    m.entry_count = count
    return put_limited(link, &m, link.out_bytes_max // 4 * 3)


cdef int link_put_read(
    peer_link *link, int type, uint64_t to, uint64_t frm, uint64_t term, uint64_t index,
    const uint8_t *context, uint32_t context_bytes,
) noexcept nogil:
    cdef peer_message m
    cdef peer_entry entry
    memset(&m, 0, sizeof(peer_message))
    memset(&entry, 0, sizeof(peer_entry))
    entry.data = context
    entry.data_bytes = context_bytes
    m.type = type
    m.to = to
    m.frm = frm
    m.term = term
    m.index = index
    m.entries = &entry
    m.entry_count = 1
    return link_put(link, &m)


cdef int link_heartbeat(peer_link *link, uint64_t now_ns) noexcept nogil:
    cdef link_out *out
    cdef uint8_t *p
    cdef int kind, rc
    cdef int due = 0
    cdef peer_message m
    for kind in range(LINK_KINDS):
        out = &link.out[kind]
        if now_ns - out.heartbeat_ns < link.read_ns // 3:
            continue
        out.heartbeat_ns = now_ns
        trim(link, kind)
        # What waits in the buffer says as much as a heartbeat behind it.
        if out.fd >= 0 and out.end == out.start:
            if kind == LINK_APP:
                p = frame_begin(out, 1, link.out_bytes_max, &rc)
                if p != NULL:
                    p[0] = FRAME_HEARTBEAT
                    frame_end(out, p + 1)
            else:
                memset(&m, 0, sizeof(peer_message))
                m.type = PEER_MSG_HEARTBEAT
                rc = link_put(link, &m)
                if rc == LINK_OK:
                    link.sent_messages -= 1
            if rc == LINK_OK:
                due |= LINK_BIT_OUT_APP << kind
    return due


cdef void trim(peer_link *link, int kind) noexcept nogil:
    """Give back large buffers that were not used since the last heartbeat."""
    cdef link_out *out = &link.out[kind]
    cdef link_in *incoming = &link.incoming[kind]
    if out.end == out.start and out.capacity > LINK_KEEP_BYTES and out.busy_bytes <= LINK_KEEP_BYTES:
        free_out(out)
    if incoming.end == incoming.start and incoming.capacity > LINK_KEEP_BYTES:
        if incoming.busy_bytes <= LINK_KEEP_BYTES:
            free_in(incoming)
    if kind == LINK_APP and link.entries.room > 4096 and incoming.busy_bytes <= LINK_KEEP_BYTES:
        peer_entry_list_free(&link.entries)
    out.busy_bytes = incoming.busy_bytes = 0


cdef inline ssize_t write_some(link_out *out) noexcept nogil:
    """> 0 bytes taken, TLS_AGAIN, -1 broken."""
    cdef ssize_t n
    if out.tls != NULL:
        return tls_send(out.tls, out.data + out.start, out.end - out.start)
    n = send(out.fd, out.data + out.start, out.end - out.start, MSG_NOSIGNAL)
    while n < 0 and errno == EINTR:
        n = send(out.fd, out.data + out.start, out.end - out.start, MSG_NOSIGNAL)
    return TLS_AGAIN if n < 0 and errno == EAGAIN else n


cdef inline ssize_t read_some(int fd, tls_conn *tls, uint8_t *data, uint64_t room) noexcept nogil:
    """> 0 bytes, 0 end, TLS_AGAIN nothing there, -1 broken. Over TLS, all records that are there and fit."""
    cdef ssize_t n
    if tls != NULL:
        return tls_recv(tls, data, room)
    n = recv(fd, data, room, 0)
    while n < 0 and errno == EINTR:
        n = recv(fd, data, room, 0)
    return TLS_AGAIN if n < 0 and errno == EAGAIN else n


cdef int link_flush(peer_link *link, int kind) noexcept nogil:
    cdef link_out *out = &link.out[kind]
    cdef ssize_t n
    if out.tls != NULL and tls_unsent(out.tls) and tls_flush(out.tls) == -1:
        return LINK_BROKEN
    while out.start < out.end:
        n = write_some(out)
        if n < 0:
            if n != TLS_AGAIN:
                return LINK_BROKEN
            if out.progress_ns == 0:
                out.progress_ns = clock_ns()
            return 1
        out.start += <uint64_t>n
        link.sent_bytes += <uint64_t>n
        if out.start < out.end:
            out.progress_ns = clock_ns()
    return 0


cdef int link_check_out(peer_link *link, int kind) noexcept nogil:
    cdef uint8_t[256] scratch
    cdef ssize_t n
    if link.out[kind].fd < 0:
        return LINK_OK
    n = read_some(link.out[kind].fd, link.out[kind].tls, scratch, sizeof(scratch))
    return LINK_OK if n == TLS_AGAIN else LINK_BROKEN


# ---- receiving --------------------------------------------------------------------------------------


cdef bint make_room(link_in *incoming, uint64_t least) noexcept nogil:
    """At least `least` bytes of room behind `end`. False without memory."""
    cdef uint64_t held = incoming.end - incoming.start
    cdef uint64_t more = least
    cdef uint64_t missing
    cdef uint8_t *grown
    if held == 0:
        incoming.start = incoming.end = 0
    if incoming.capacity - incoming.end >= least:
        return True
    if incoming.start >= held and incoming.capacity - held >= least:
        memmove(incoming.data, incoming.data + incoming.start, held)
    else:
        # A frame may claim any size: memory follows what really came, doubling on the way.
        missing = incoming.need_bytes - held if incoming.need_bytes > held else 0
        if missing > held:
            missing = held
        if missing > more:
            more = missing
        more = (held + more + LINK_KEEP_BYTES - 1) & ~<uint64_t>(LINK_KEEP_BYTES - 1)
        grown = <uint8_t *>malloc(more)
        if grown == NULL:
            return False
        if held:
            memcpy(grown, incoming.data + incoming.start, held)
        free(incoming.data)
        incoming.data = grown
        incoming.capacity = more
    incoming.start = 0
    incoming.end = held
    return True


cdef int take(peer_link *link, link_in *incoming, uint64_t size) noexcept nogil:
    """`size` raw bytes stand behind `end`."""
    cdef int64_t payload = <int64_t>size
    link.received_bytes += size
    incoming.received_ns = clock_ns()
    if incoming.chunked:
        payload = chunk_decode(&incoming.chunks, incoming.data + incoming.end, size)
        if payload < 0:
            incoming.malformed = True
            return LINK_MALFORMED
    incoming.end += <uint64_t>payload
    if incoming.end - incoming.start > incoming.busy_bytes:
        incoming.busy_bytes = incoming.end - incoming.start
    return LINK_OK


cdef int64_t link_receive(peer_link *link, int kind) noexcept nogil:
    cdef link_in *incoming = &link.incoming[kind]
    cdef ssize_t n
    cdef int rc
    if incoming.fd < 0:
        return LINK_DOWN
    if incoming.malformed:
        return LINK_MALFORMED
    if incoming.chunks.state == CHUNK_END:
        return LINK_BROKEN
    if not make_room(incoming, LINK_READ_BYTES):
        return LINK_NO_MEMORY
    n = read_some(incoming.fd, incoming.tls, incoming.data + incoming.end, incoming.capacity - incoming.end)
    if n <= 0:
        return 0 if n == TLS_AGAIN else LINK_BROKEN
    rc = take(link, incoming, <uint64_t>n)
    return rc if rc < 0 else <int64_t>n


cdef inline void frame_done(link_in *incoming, uint64_t size) noexcept nogil:
    incoming.start += size
    incoming.scanned = 0
    incoming.need_bytes = 0


cdef int parsed(int rc) noexcept nogil:
    if rc == PEER_OK:
        return LINK_OK
    return LINK_NO_MEMORY if rc == PEER_NO_MEMORY else LINK_MALFORMED


cdef int sized_message(
    peer_link *link, link_in *incoming, uint64_t before, peer_message *out,
) noexcept nogil:
    """`before` bytes, u64 BE size, raftpb.Message. 1 taken, 0 not whole yet, or the reason."""
    cdef uint64_t held = incoming.end - incoming.start
    cdef uint64_t size
    cdef const uint8_t *at = incoming.data + incoming.start + before
    cdef int rc
    incoming.need_bytes = before + 8
    if held < before + 8:
        return 0
    size = link_load_be64(at)
    if size > link.frame_bytes_max:
        return LINK_MALFORMED
    incoming.need_bytes = before + 8 + size
    if held < before + 8 + size:
        return 0
    rc = parsed(peer_parse_message(at + 8, size, out, &link.entries))
    if rc:
        return rc
    frame_done(incoming, before + 8 + size)
    return 1


cdef int entries_frame(peer_link *link, link_in *incoming, peer_message *out) noexcept nogil:
    """A compact MsgApp. 1 taken, 0 not whole yet, or the reason."""
    cdef uint64_t held = incoming.end - incoming.start
    cdef const uint8_t *frame = incoming.data + incoming.start
    cdef uint64_t size, count, at
    cdef uint32_t i
    if incoming.app_term == 0:
        return LINK_MALFORMED
    incoming.need_bytes = 9
    if held < 9:
        return 0
    count = link_load_be64(frame + 1)
    if count > PEER_ENTRIES_MAX:
        return LINK_MALFORMED
    if incoming.scanned == 0:
        incoming.scanned = 9
        incoming.entries_left = count
    # How far it was walked is kept: a large frame comes in many reads.
    while incoming.entries_left and held >= incoming.scanned + 8:
        size = link_load_be64(frame + incoming.scanned)
        if size > link.frame_bytes_max or incoming.scanned + 8 + size > link.frame_bytes_max:
            return LINK_MALFORMED
        incoming.scanned += 8 + size
        incoming.entries_left -= 1
    incoming.need_bytes = incoming.scanned + 8
    if incoming.entries_left or held < incoming.scanned + 8:
        return 0
    if not peer_entry_list_reserve(&link.entries, <uint32_t>count):
        return LINK_NO_MEMORY
    at = 9
    for i in range(<uint32_t>count):
        size = link_load_be64(frame + at)
        if peer_parse_entry(frame + at + 8, size, &link.entries.rows[i]):
            return LINK_MALFORMED
        at += 8 + size
    memset(out, 0, sizeof(peer_message))
    out.type = PEER_MSG_APP
    out.frm = link.remote
    out.to = link.local
    out.term = out.log_term = incoming.app_term
    out.index = incoming.app_index
    out.commit = link_load_be64(frame + at)
    out.entries = link.entries.rows if count else NULL
    out.entry_count = <uint32_t>count
    if not peer_entries_follow(out):
        return LINK_MALFORMED
    incoming.app_index += count
    frame_done(incoming, at + 8)
    return 1


cdef int app_frame(peer_link *link, link_in *incoming, peer_message *out) noexcept nogil:
    cdef int rc
    cdef uint8_t type
    while incoming.start < incoming.end:
        type = incoming.data[incoming.start]
        if type == FRAME_HEARTBEAT:
            frame_done(incoming, 1)
            continue
        if type == FRAME_ENTRIES:
            return entries_frame(link, incoming, out)
        if type != FRAME_MESSAGE:
            return LINK_MALFORMED
        rc = sized_message(link, incoming, 1, out)
        if rc == 1:
            if out.type != PEER_MSG_APP:
                return LINK_MALFORMED
            incoming.app_term = out.term
            incoming.app_index = out.index + out.entry_count
        return rc
    return 0


cdef int link_next(peer_link *link, int kind, peer_message *out) noexcept nogil:
    cdef link_in *incoming = &link.incoming[kind]
    cdef int rc
    if incoming.fd < 0:
        return LINK_DOWN
    if incoming.malformed:
        return LINK_MALFORMED
    if kind == LINK_APP:
        rc = app_frame(link, incoming, out)
    else:
        rc = sized_message(link, incoming, 0, out)
        while rc == 1 and out.type == PEER_MSG_HEARTBEAT and out.frm == 0 and out.to == 0:
            rc = sized_message(link, incoming, 0, out)
    if rc == 1:
        link.received_messages += 1
    elif rc == 0 and incoming.chunks.state == CHUNK_END:
        return LINK_BROKEN
    return rc


cdef int link_expired(peer_link *link, uint64_t now_ns) noexcept nogil:
    cdef int kind
    cdef int dead = 0
    cdef uint8_t byte
    cdef uint64_t start
    cdef link_out *out
    cdef link_in *incoming
    for kind in range(LINK_KINDS):
        out = &link.out[kind]
        incoming = &link.incoming[kind]
        # Signed: what was noted may be younger than the caller's now.
        if out.fd >= 0 and out.end != out.start and out.progress_ns:
            start = out.start
            if <int64_t>(now_ns - out.progress_ns) > <int64_t>link.write_ns:
                if link_flush(link, kind) < 0 or out.start == start:
                    dead |= LINK_BIT_OUT_APP << kind
        if incoming.fd >= 0 and <int64_t>(now_ns - incoming.received_ns) > <int64_t>link.read_ns:
            if incoming.tls != NULL and tls_more(incoming.tls):
                continue
            if recv(incoming.fd, &byte, 1, MSG_PEEK) <= 0:
                dead |= LINK_BIT_IN_APP << kind
    return dead


# ---- streams come and go ----------------------------------------------------------------------------


cdef void free_out(link_out *out) noexcept nogil:
    free(out.data)
    out.data = NULL
    out.capacity = out.start = out.end = 0


cdef void free_in(link_in *incoming) noexcept nogil:
    free(incoming.data)
    incoming.data = NULL
    incoming.capacity = incoming.start = incoming.end = 0


cdef void hang_up(int fd, tls_conn *tls) noexcept nogil:
    if tls != NULL:
        tls_shutdown(tls)  # if the socket takes it: who reads on learns that this is the end and no cut
        tls_close(tls)
    if fd >= 0:
        close_fd(fd)


cdef void link_detach_out(peer_link *link, int kind) noexcept nogil:
    cdef link_out *out = &link.out[kind]
    hang_up(out.fd, out.tls)
    free_out(out)
    memset(out, 0, sizeof(link_out))
    out.fd = -1


cdef void link_detach_in(peer_link *link, int kind) noexcept nogil:
    cdef link_in *incoming = &link.incoming[kind]
    hang_up(incoming.fd, incoming.tls)
    free_in(incoming)
    memset(incoming, 0, sizeof(link_in))
    incoming.fd = -1


cdef tls_conn *taken_tls(tls) except? NULL:
    return NULL if tls is None else tls_take(tls)


cdef int checked_kind(int kind) except -1:
    if kind < 0 or kind >= LINK_KINDS:
        raise ValueError(f"stream kind {kind}")
    return kind


cdef ready_socket(int fd):
    cdef int one = 1
    os.set_blocking(fd, False)
    # Without effect on sockets that are not TCP (tests).
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))


cdef class PeerLink:
    """A link to member `remote` of this member `local`, without streams.

    `empty_snapshot`: write the empty snapshot field that 3.4 and 3.5 write in every message. Units: bytes;
    `out_bytes_max` bounds what waits on one stream, `frame_bytes_max` what one frame may hold.
    """

    def __cinit__(
        self, uint64_t remote, uint64_t local, *, bint empty_snapshot=True,
        uint64_t out_bytes_max=OUT_BYTES_MAX, uint64_t frame_bytes_max=FRAME_BYTES_MAX,
        double read_seconds=5.0, double write_seconds=5.0,
    ):
        cdef int kind
        memset(&self.link, 0, sizeof(peer_link))
        for kind in range(LINK_KINDS):
            self.link.out[kind].fd = self.link.incoming[kind].fd = -1
        if frame_bytes_max > 1 << 31:
            raise ValueError(f"frame_bytes_max {frame_bytes_max}")
        self.link.remote = remote
        self.link.local = local
        self.link.empty_snapshot = empty_snapshot
        self.link.out_bytes_max = out_bytes_max
        self.link.frame_bytes_max = frame_bytes_max
        self.link.read_ns = <uint64_t>(read_seconds * 1e9)
        self.link.write_ns = <uint64_t>(write_seconds * 1e9)

    def __dealloc__(self):
        self.close()
        peer_entry_list_free(&self.link.entries)

    cpdef close(self):
        """Close all streams; the link can be used again."""
        cdef int kind
        for kind in range(LINK_KINDS):
            link_detach_out(&self.link, kind)
            link_detach_in(&self.link, kind)

    def attach_out(self, int kind, int fd, tls=None):
        """Own `fd`, a stream the peer dialled whose HTTP head is answered, and its TLS state; an older one is closed. The
        msgappv2 encoder starts anew. Errors: ValueError, OSError (the descriptor stays the caller's)."""
        cdef link_out *out = &self.link.out[checked_kind(kind)]
        ready_socket(fd)
        link_detach_out(&self.link, kind)
        out.fd = fd
        out.tls = taken_tls(tls)

    def attach_in(self, int kind, int fd, bytes leftover not None=b"", bint chunked=True, tls=None):
        """Own `fd`, a stream this member dialled, and its TLS state; `leftover` was read behind the HTTP head. An older
        one is closed. That `leftover` makes no sense is told by link_next. Errors: ValueError for a bad kind, OSError (the
        descriptor stays the caller's), MemoryError."""
        cdef link_in *incoming = &self.link.incoming[checked_kind(kind)]
        cdef const uint8_t *data = leftover
        cdef uint64_t size = <uint64_t>len(leftover)
        ready_socket(fd)
        link_detach_in(&self.link, kind)
        incoming.fd = fd
        incoming.tls = taken_tls(tls)
        incoming.chunked = chunked
        incoming.received_ns = clock_ns()
        if not size:
            return
        if not make_room(incoming, size):
            raise MemoryError
        memcpy(incoming.data, data, size)
        take(&self.link, incoming, size)

    def detach(self, int kind, bint outgoing):
        if outgoing:
            link_detach_out(&self.link, checked_kind(kind))
        else:
            link_detach_in(&self.link, checked_kind(kind))

    @property
    def remote(self):
        return self.link.remote

    def counters(self):
        """Totals of the link's life, and bytes that wait now."""
        cdef peer_link *link = &self.link
        return {
            "sent_bytes": link.sent_bytes,
            "received_bytes": link.received_bytes,
            "sent_messages": link.sent_messages,
            "received_messages": link.received_messages,
            "full": link.full,
            "pending_app_bytes": link_pending(link, LINK_APP),
            "pending_message_bytes": link_pending(link, LINK_MESSAGE),
        }

    # What the loop does in C, for tests and rare callers.

    def fd(self, int kind, bint outgoing):
        """Descriptor of a stream, -1 when it is not attached."""
        checked_kind(kind)
        return self.link.out[kind].fd if outgoing else self.link.incoming[kind].fd

    def put_app(self, uint64_t term, uint64_t prev_index, uint64_t prev_term, uint64_t commit, entries):
        """LINK_* of a MsgApp; entries are (term, index, type, data)."""
        cdef peer_entry_list list
        memset(&list, 0, sizeof(peer_entry_list))
        keep = []
        try:
            fill_entries(&list, entries, keep)
            return link_put_app(&self.link, term, prev_index, prev_term, commit, list.rows, <uint32_t>len(keep))
        finally:
            peer_entry_list_free(&list)

    def put_prop(self, entries):
        """LINK_* of a MsgProp to this peer."""
        cdef peer_entry_list list
        memset(&list, 0, sizeof(peer_entry_list))
        keep = []
        try:
            fill_entries(&list, entries, keep)
            return link_put_prop(
                &self.link, self.link.local, self.link.remote, list.rows, <uint32_t>len(keep))
        finally:
            peer_entry_list_free(&list)

    def put_plain(
        self, int type, uint64_t to=0, uint64_t frm=0, uint64_t term=0, uint64_t log_term=0, uint64_t index=0,
        uint64_t commit=0, bint reject=False, uint64_t reject_hint=0, bytes context=None,
    ):
        """LINK_* of a message without entries."""
        cdef const uint8_t *data = NULL
        if context is not None:
            data = context
        return link_put_plain(
            &self.link, type, to, frm, term, log_term, index, commit, reject, reject_hint, data,
            <uint32_t>len(context) if context is not None else 0)

    def put_read(self, int type, uint64_t to, uint64_t frm, uint64_t term, uint64_t index, bytes context not None):
        """LINK_* of a MsgReadIndex or MsgReadIndexResp."""
        return link_put_read(&self.link, type, to, frm, term, index, context, <uint32_t>len(context))

    def put_message(self, bytes message not None):
        """LINK_* of a marshalled message."""
        return link_put_message(&self.link, message, <uint64_t>len(message))

    def heartbeat(self, uint64_t now_ns):
        """LINK_BIT_OUT_* of streams that got something to flush."""
        return link_heartbeat(&self.link, now_ns)

    def expired(self, uint64_t now_ns):
        return link_expired(&self.link, now_ns)

    def flush(self, int kind):
        cdef int rc
        checked_kind(kind)
        with nogil:
            rc = link_flush(&self.link, kind)
        return rc

    def check_out(self, int kind):
        return link_check_out(&self.link, checked_kind(kind))

    def receive(self, int kind):
        cdef int64_t rc
        checked_kind(kind)
        with nogil:
            rc = link_receive(&self.link, kind)
        return rc

    def next(self, int kind):
        """PeerMessage.fields() of the next message, 0, or a code below 0."""
        cdef peer_message m
        cdef int rc = link_next(&self.link, checked_kind(kind), &m)
        return message_fields(&m) if rc == 1 else rc
