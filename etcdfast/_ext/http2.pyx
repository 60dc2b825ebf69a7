"""HTTP/2 sessions on nghttp2 and gRPC framing on top: see http2.pxd.

nghttp2 keeps the protocol's state machine. What it does not limit in the versions that distributions ship
is limited here, ahead of it: every frame header is seen by `guard_scan` before nghttp2 sees the bytes.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset, strlen

from etcdfast._ext.grpcwire cimport (
    GRPC_CANCELLED, GRPC_INTERNAL, GRPC_INVALID_ARGUMENT, GRPC_PREFIX_BYTES, GRPC_RESOURCE_EXHAUSTED,
    GRPC_UNIMPLEMENTED, be32, decimal, grpc_percent_encode, grpc_timeout_ns, put_be32,
)
from etcdfast._ext.nghttp2 cimport *

cdef enum:
    OUT_SLACK_BYTES = 73728      # one frame or one header block beyond H2_OUT_BYTES
    NOTE_BYTES_MAX = 1024
    TEXT_BYTES_MAX = 16384       # encoded grpc-message; longer ones are cut
    BLOCK_STEP = 64              # allocator: sizes in steps of this
    BLOCK_CLASSES = 16
    BLOCK_HEADER = 16
    NS_PER_MS = 1000000

cdef enum:
    SEEN_POST = 1
    SEEN_PATH = 2
    SEEN_CONTENT_TYPE = 4

cdef const char *CODE_TEXTS[17]
CODE_TEXTS[:] = [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9", b"10", b"11", b"12", b"13", b"14", b"15",
                 b"16"]


# ---- allocator for nghttp2: a call makes and frees about ten small blocks, more than malloc's own cache
# ---- holds of one size when hundreds of calls are open

cdef void *block_malloc(size_t size, void *user) noexcept nogil:
    cdef h2_server *server = <h2_server *>user
    cdef size_t steps = (size + BLOCK_HEADER + BLOCK_STEP - 1) // BLOCK_STEP
    cdef char *block
    if steps <= BLOCK_CLASSES:
        block = <char *>server.free_blocks[steps]
        if block != NULL:
            server.free_blocks[steps] = (<void **>(block + BLOCK_HEADER))[0]
            return block + BLOCK_HEADER
    block = <char *>malloc(steps * BLOCK_STEP)
    if block == NULL:
        return NULL
    (<size_t *>block)[0] = steps
    return block + BLOCK_HEADER


cdef void block_free(void *data, void *user) noexcept nogil:
    cdef h2_server *server = <h2_server *>user
    cdef char *block
    cdef size_t steps
    if data == NULL:
        return
    block = <char *>data - BLOCK_HEADER
    steps = (<size_t *>block)[0]
    if steps > BLOCK_CLASSES:
        free(block)
        return
    (<void **>data)[0] = server.free_blocks[steps]
    server.free_blocks[steps] = block


cdef void *block_calloc(size_t count, size_t size, void *user) noexcept nogil:
    cdef void *data
    if size and count > (<size_t>1 << 40) // size:
        return NULL
    data = block_malloc(count * size, user)
    if data != NULL:
        memset(data, 0, count * size)
    return data


cdef void *block_realloc(void *data, size_t size, void *user) noexcept nogil:
    cdef size_t room
    cdef void *moved
    if data == NULL:
        return block_malloc(size, user)
    room = (<size_t *>(<char *>data - BLOCK_HEADER))[0] * BLOCK_STEP - BLOCK_HEADER
    if size <= room:
        return data
    moved = block_malloc(size, user)
    if moved != NULL:
        memcpy(moved, data, room)
        block_free(data, user)
    return moved


# ---- helpers

cdef inline void set_fatal(h2_conn *conn, uint32_t code, const char *text) noexcept nogil:
    if conn.fatal == 0:
        conn.fatal = code + 1
        conn.fatal_text = text
        mark_dirty(conn)


cdef inline void mark_dirty(h2_conn *conn) noexcept nogil:
    if not conn.dirty:
        conn.dirty = True
        conn.dirty_next = conn.server.dirty
        conn.server.dirty = conn


cdef inline void set_nv(nghttp2_nv *nv, const char *name, size_t name_size, const char *value, size_t size,
                        uint8_t flags) noexcept nogil:
    nv.name = <uint8_t *>name
    nv.namelen = name_size
    nv.value = <uint8_t *>value
    nv.valuelen = size
    nv.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME | flags


cdef uint32_t h2_hash(const uint8_t *data, size_t size) noexcept nogil:
    cdef uint32_t h = 2166136261u
    cdef size_t i
    for i in range(size):
        h = (h ^ data[i]) * 16777619u
    return h ^ h >> 15


cdef h2_route *find_route(h2_server *server, const uint8_t *path, size_t size) noexcept nogil:
    cdef uint32_t i = h2_hash(path, size) & server.routes_mask
    while server.routes[i].path != NULL:
        if server.routes[i].size == size and memcmp(server.routes[i].path, path, size) == 0:
            return &server.routes[i]
        i = (i + 1) & server.routes_mask
    return NULL


cdef void keep_note(h2_stream *s, const uint8_t *text, size_t size) noexcept nogil:
    """Keep text from the request for an error answer. Without memory the answer lacks it."""
    if size > NOTE_BYTES_MAX:
        size = NOTE_BYTES_MAX
    free(s.note)
    s.note_size = 0
    s.note = <char *>malloc(size if size else 1)
    if s.note != NULL:
        memcpy(s.note, text, size)
        s.note_size = <uint32_t>size


# ---- guard: what each frame costs, before nghttp2 sees it

cdef int guard_frame(h2_conn *conn, const uint8_t *head) noexcept nogil:
    """Account one frame header. 0, or -1 with conn.fatal set."""
    cdef h2_guard *g = &conn.guard
    cdef uint32_t length = <uint32_t>head[0] << 16 | <uint32_t>head[1] << 8 | head[2]
    cdef uint8_t kind = head[3]
    cdef uint8_t flags = head[4]
    g.skip = length
    g.framed = True
    if kind == NGHTTP2_DATA:
        if length or flags & NGHTTP2_FLAG_END_STREAM:
            return 0
    elif kind == NGHTTP2_HEADERS or kind == NGHTTP2_CONTINUATION:
        if kind == NGHTTP2_HEADERS:
            g.continuations = 0
            g.block_bytes = 0
            if not g.in_block:
                g.block_since_ns = conn.server.now_ns
            g.in_block = True
        else:
            g.continuations += 1
        g.block_bytes += length
        g.block_ends = (flags & NGHTTP2_FLAG_END_HEADERS) != 0
        if g.continuations > H2_CONTINUATIONS_MAX:
            set_fatal(conn, NGHTTP2_ENHANCE_YOUR_CALM, b"too_many_continuations")
            return -1
        if g.block_bytes > H2_HEADER_BYTES_MAX:
            set_fatal(conn, NGHTTP2_ENHANCE_YOUR_CALM, b"header_list_too_large")
            return -1
        if length == 0 and g.block_ends:
            g.in_block = False
        return 0
    elif kind == NGHTTP2_RST_STREAM:
        g.reset_tokens -= 1000
        if g.reset_tokens < 0:
            guard_refill(conn)
            if g.reset_tokens < 0:
                set_fatal(conn, NGHTTP2_ENHANCE_YOUR_CALM, b"too_many_resets")
                return -1
        return 0
    g.control_tokens -= 1000
    if g.control_tokens < 0:
        guard_refill(conn)
        if g.control_tokens < 0:
            set_fatal(conn, NGHTTP2_ENHANCE_YOUR_CALM, b"too_many_control_frames")
            return -1
    return 0


cdef void guard_refill(h2_conn *conn) noexcept nogil:
    cdef h2_guard *g = &conn.guard
    cdef uint64_t elapsed_ms = (conn.server.now_ns - g.refilled_ns) // NS_PER_MS
    if elapsed_ms > 100000:
        elapsed_ms = 100000
    g.refilled_ns = conn.server.now_ns
    g.reset_tokens = min(g.reset_tokens + <int64_t>elapsed_ms * H2_RESET_PER_SECOND, <int64_t>H2_RESET_BURST * 1000)
    g.control_tokens = min(g.control_tokens + <int64_t>elapsed_ms * H2_CONTROL_PER_SECOND,
                           <int64_t>H2_CONTROL_BURST * 1000)


cdef int guard_scan(h2_conn *conn, const uint8_t *data, uint32_t size) noexcept nogil:
    cdef h2_guard *g = &conn.guard
    cdef const uint8_t *pos = data
    cdef const uint8_t *end = data + size
    cdef uint64_t step
    while pos < end:
        if g.skip:
            step = <uint64_t>(end - pos)
            if step > g.skip:
                step = g.skip
            g.skip -= step
            pos += step
            if g.skip == 0 and g.in_block and g.block_ends:
                g.in_block = False
        elif g.preface_left:
            step = <uint64_t>(end - pos)
            if step > g.preface_left:
                step = g.preface_left
            g.preface_left -= <uint32_t>step
            pos += step
        elif g.have == 0 and end - pos >= 9:
            if guard_frame(conn, pos) < 0:
                return -1
            pos += 9
        else:
            g.head[g.have] = pos[0]
            g.have += 1
            pos += 1
            if g.have == 9:
                g.have = 0
                if guard_frame(conn, g.head) < 0:
                    return -1
    return 0


# ---- streams

cdef h2_stream *new_stream(h2_conn *conn, int32_t stream_id) noexcept nogil:
    cdef h2_server *server = conn.server
    cdef h2_stream *s = server.free_streams
    if s != NULL:
        server.free_streams = s.list_next
        memset(s, 0, sizeof(h2_stream))
    else:
        s = <h2_stream *>calloc(1, sizeof(h2_stream))
        if s == NULL:
            return NULL
    s.conn = conn
    s.id = stream_id
    s.flags = STREAM_NO_LEADER_OK
    s.timer_slot = -1
    s.list_next = conn.streams
    if conn.streams != NULL:
        conn.streams.list_prev = s
    conn.streams = s
    conn.stream_count += 1
    return s


cdef void free_chunk(h2_stream *s, h2_chunk *c) noexcept nogil:
    if not c.borrowed and c.data != NULL:
        free(<void *>c.data)
        s.conn.answer_bytes -= c.size
        s.conn.server.counters.answer_buffer_bytes -= c.size
    if c == &s.first:
        s.first_used = False
    else:
        free(c)


cdef void drop_stream(h2_stream *s) noexcept nogil:
    """Last use: tell the owner, take it out of every list, give it back."""
    cdef h2_conn *conn = s.conn
    cdef h2_server *server = conn.server
    cdef h2_chunk *c
    cdef h2_stream **link
    server.on_gone(conn, s)
    if not s.flags & STREAM_ANSWERED and s.method:
        server.counters.handled[s.method][GRPC_CANCELLED] += 1
    h2_drop_request(s)
    while s.out_head != NULL:
        c = s.out_head
        s.out_head = c.next
        free_chunk(s, c)
    free(s.note)
    free(s.text)
    if s.in_borrowers:
        link = &server.borrowers
        while link[0] != s:
            link = &link[0].borrow_next
        link[0] = s.borrow_next
    if s.in_sent:
        link = &server.sent
        while link[0] != s:
            link = &link[0].sent_next
        link[0] = s.sent_next
    if conn.open == s:
        conn.open = NULL
    if s.list_prev != NULL:
        s.list_prev.list_next = s.list_next
    else:
        conn.streams = s.list_next
    if s.list_next != NULL:
        s.list_next.list_prev = s.list_prev
    conn.stream_count -= 1
    s.list_next = server.free_streams
    server.free_streams = s


cdef void h2_drop_request(h2_stream *s) noexcept nogil:
    cdef h2_conn *conn = s.conn
    if conn.loaner == s:
        conn.loaner = NULL
    s.loan = NULL
    if s.buf != NULL:
        free(s.buf)
        s.buf = NULL
        conn.request_bytes -= s.room
        conn.server.counters.request_buffer_bytes -= s.room
        s.room = 0
    if s.flags & STREAM_GRANT_WAITS:
        unlink_grant(s)
        serve_grants(conn)
    if s.grant:
        conn.grants -= s.grant
        s.grant = 0
        serve_grants(conn)


# ---- windows for messages larger than the initial one: a grant for the whole message, in turn, within
# ---- H2_GRANT_BYTES_MAX per connection; so some large message can always complete

cdef void unlink_grant(h2_stream *s) noexcept nogil:
    cdef h2_conn *conn = s.conn
    cdef h2_stream *before = NULL
    cdef h2_stream *at = conn.grant_head
    while at != s:
        before = at
        at = at.grant_next
    if before == NULL:
        conn.grant_head = s.grant_next
    else:
        before.grant_next = s.grant_next
    if conn.grant_tail == s:
        conn.grant_tail = before
    s.flags &= ~<uint32_t>STREAM_GRANT_WAITS


cdef void want_grant(h2_stream *s) noexcept nogil:
    cdef h2_conn *conn = s.conn
    s.flags |= STREAM_GRANT_WAITS
    s.grant_next = NULL
    if conn.grant_tail == NULL:
        conn.grant_head = s
    else:
        conn.grant_tail.grant_next = s
    conn.grant_tail = s
    serve_grants(conn)


cdef void serve_grants(h2_conn *conn) noexcept nogil:
    cdef h2_stream *s
    cdef uint32_t need
    while conn.grant_head != NULL:
        s = conn.grant_head
        # The length of the message is known; padding and the 5 bytes of the prefix need a little more.
        need = be32(s.buf + 1) + H2_STREAM_WINDOW
        if conn.grants and conn.grants + need > H2_GRANT_BYTES_MAX:
            return
        conn.grant_head = s.grant_next
        if conn.grant_head == NULL:
            conn.grant_tail = NULL
        s.flags &= ~<uint32_t>STREAM_GRANT_WAITS
        s.grant = need
        conn.grants += need
        if nghttp2_submit_window_update(conn.session, NGHTTP2_FLAG_NONE, s.id, <int32_t>need) == 0:
            mark_dirty(conn)


# ---- answers

cdef inline void decide(h2_stream *s, int code) noexcept nogil:
    """Fix the status of the call: counted once, and honest work pays for cancels and pings."""
    cdef h2_guard *g = &s.conn.guard
    s.flags |= STREAM_ANSWERED
    s.code = <uint8_t>code
    s.conn.server.counters.handled[s.method][code] += 1
    if g.reset_tokens < <int64_t>H2_RESET_BURST * 1000:
        g.reset_tokens += 1000
    if g.control_tokens < <int64_t>H2_CONTROL_BURST * 1000:
        g.control_tokens += H2_CONTROL_PER_ANSWER * 1000


cdef int submit_status(h2_stream *s, const char *http_status, bint trailer) noexcept nogil:
    """Trailers, or the one header block of an answer without a message."""
    cdef nghttp2_nv nv[5]
    cdef size_t n = 0
    cdef size_t code_size = 2 if s.code > 9 else 1
    if not trailer:
        set_nv(&nv[0], b":status", 7, http_status, 3, NGHTTP2_NV_FLAG_NO_COPY_VALUE)
        set_nv(&nv[1], b"content-type", 12, b"application/grpc", 16, NGHTTP2_NV_FLAG_NO_COPY_VALUE)
        n = 2
    set_nv(&nv[n], b"grpc-status", 11, CODE_TEXTS[s.code], code_size, NGHTTP2_NV_FLAG_NO_COPY_VALUE)
    n += 1
    if s.text_size:
        set_nv(&nv[n], b"grpc-message", 12, s.text, s.text_size, NGHTTP2_NV_FLAG_NO_INDEX)
        n += 1
    if s.encoding_refused and not trailer:
        set_nv(&nv[n], b"grpc-accept-encoding", 20, b"identity", 8, NGHTTP2_NV_FLAG_NO_COPY_VALUE)
        n += 1
    if trailer:
        return nghttp2_submit_trailer(s.conn.session, s.id, nv, n)
    return nghttp2_submit_response(s.conn.session, s.id, nv, n, NULL)


cdef ssize_t read_answer(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t length,
                         uint32_t *data_flags, nghttp2_data_source *source, void *user) noexcept nogil:
    cdef h2_stream *s = <h2_stream *>source.ptr
    cdef size_t n = s.out_bytes if s.out_bytes < length else length
    if n == 0 and not s.out_ended:
        s.flags |= STREAM_DEFERRED
        return NGHTTP2_ERR_DEFERRED
    data_flags[0] |= NGHTTP2_DATA_FLAG_NO_COPY
    if n == s.out_bytes and s.out_ended:
        data_flags[0] |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
        if submit_status(s, NULL, True) != 0:
            return NGHTTP2_ERR_CALLBACK_FAILURE
    return <ssize_t>n


cdef int send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head, size_t length,
                   nghttp2_data_source *source, void *user) noexcept nogil:
    """Copy a DATA frame straight from the answer (often still in the ring) to the bytes to write."""
    cdef h2_conn *conn = <h2_conn *>user
    cdef h2_server *server = conn.server
    cdef h2_stream *s = <h2_stream *>source.ptr
    cdef h2_chunk *c
    cdef size_t step
    cdef uint8_t *out
    if server.out_size >= H2_OUT_BYTES or length + 9 > OUT_SLACK_BYTES:
        return NGHTTP2_ERR_WOULDBLOCK
    out = server.out + server.out_size
    memcpy(out, head, 9)
    out += 9
    server.out_size += <uint32_t>length + 9
    conn.ping_reset = True
    s.out_bytes -= length
    while length:
        c = s.out_head
        if c.head_left:
            step = c.head_left if c.head_left < length else length
            memcpy(out, c.head + GRPC_PREFIX_BYTES - c.head_left, step)
            c.head_left -= <uint8_t>step
        else:
            step = c.size - c.sent
            if step > length:
                step = length
            memcpy(out, c.data + c.sent, step)
            c.sent += <uint32_t>step
            if s.flags & STREAM_CREDITED:
                s.sent_bytes += <uint32_t>step
                if not s.in_sent:
                    s.in_sent = True
                    s.sent_next = server.sent
                    server.sent = s
        out += step
        length -= step
        if c.head_left == 0 and c.sent == c.size:
            s.out_head = c.next
            if s.out_head == NULL:
                s.out_tail = NULL
            free_chunk(s, c)
    return 0


cdef int push_chunk(h2_stream *s, const uint8_t *data, uint32_t size, bint prefix, uint32_t total) noexcept nogil:
    cdef h2_chunk *c
    cdef h2_server *server = s.conn.server
    if not s.first_used:
        c = &s.first
        s.first_used = True
    else:
        c = <h2_chunk *>malloc(sizeof(h2_chunk))
        if c == NULL:
            set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
            return -1
    c.next = NULL
    c.data = data
    c.size = size
    c.sent = 0
    c.borrowed = True
    c.head_left = 0
    if prefix:
        c.head[0] = 0
        put_be32(c.head + 1, total)
        c.head_left = GRPC_PREFIX_BYTES
    if s.out_tail == NULL:
        s.out_head = c
    else:
        s.out_tail.next = c
    s.out_tail = c
    s.out_bytes += size + c.head_left
    if size and not s.in_borrowers:
        s.in_borrowers = True
        s.borrow_next = server.borrowers
        server.borrowers = s
    return 0


cdef int flow(h2_stream *s) noexcept nogil:
    """Have nghttp2 take up what the stream has to send."""
    cdef nghttp2_nv nv[2]
    cdef nghttp2_data_provider provider
    cdef int rc = 0
    if not s.flags & STREAM_STARTED:
        s.flags |= STREAM_STARTED
        set_nv(&nv[0], b":status", 7, b"200", 3, NGHTTP2_NV_FLAG_NO_COPY_VALUE)
        set_nv(&nv[1], b"content-type", 12, b"application/grpc", 16, NGHTTP2_NV_FLAG_NO_COPY_VALUE)
        provider.source.ptr = s
        provider.read_callback = read_answer
        rc = nghttp2_submit_response(s.conn.session, s.id, nv, 2, &provider)
    elif s.flags & STREAM_DEFERRED:
        s.flags &= ~<uint32_t>STREAM_DEFERRED
        rc = nghttp2_session_resume_data(s.conn.session, s.id)
    if rc == NGHTTP2_ERR_NOMEM:
        set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
        return -1
    mark_dirty(s.conn)
    return 0


cdef int h2_reply(h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil:
    if s.flags & STREAM_ANSWERED:
        return 0
    decide(s, 0)
    if push_chunk(s, data, size, True, size) < 0:
        return -1
    s.out_ended = True
    return flow(s)


cdef int h2_message(h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil:
    if s.flags & STREAM_ANSWERED:
        return 0
    return -1 if push_chunk(s, data, size, True, size) < 0 else flow(s)


cdef int h2_begin(h2_stream *s, uint32_t total) noexcept nogil:
    if s.flags & STREAM_ANSWERED:
        return 0
    s.begun_left = total
    return -1 if push_chunk(s, NULL, 0, True, total) < 0 else flow(s)


cdef int h2_part(h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil:
    if s.flags & STREAM_ANSWERED or size == 0:
        return 0
    if size > s.begun_left:
        set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"answer_longer_than_begun")
        return -1
    s.begun_left -= size
    return -1 if push_chunk(s, data, size, False, 0) < 0 else flow(s)


cdef int h2_end(h2_stream *s, int code, const char *text, uint32_t text_size) noexcept nogil:
    if s.flags & STREAM_ANSWERED:
        return 0
    decide(s, code)
    if text_size:
        if text_size > TEXT_BYTES_MAX // 3:
            text_size = TEXT_BYTES_MAX // 3
        s.text = <char *>malloc(<size_t>text_size * 3)
        if s.text != NULL:
            s.text_size = <uint32_t>grpc_percent_encode(<uint8_t *>s.text, <const uint8_t *>text, text_size)
    s.out_ended = True
    h2_drop_request(s)
    if s.flags & STREAM_STARTED:
        return flow(s)
    s.flags |= STREAM_STARTED
    if submit_status(s, b"415" if s.http_status == 415 else b"405" if s.http_status == 405
                     else b"400" if s.http_status == 400 else b"200", False) == NGHTTP2_ERR_NOMEM:
        set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
        return -1
    mark_dirty(s.conn)
    return 0


cdef void h2_settle(h2_server *server) noexcept nogil:
    cdef h2_stream *s
    cdef h2_chunk *c
    cdef uint8_t *copy
    cdef uint32_t left
    while server.borrowers != NULL:
        s = server.borrowers
        server.borrowers = s.borrow_next
        s.in_borrowers = False
        c = s.out_head
        while c != NULL:
            if c.borrowed:
                left = c.size - c.sent
                copy = NULL
                if left:
                    copy = <uint8_t *>malloc(left)
                    if copy == NULL:
                        # The bytes leave with the ring: what is left of the stream cannot be told apart.
                        set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
                        left = 0
                    else:
                        memcpy(copy, c.data + c.sent, left)
                c.data = copy
                if copy == NULL:
                    s.out_bytes -= c.size - c.sent
                c.size = left
                c.sent = 0
                c.borrowed = False
                s.conn.answer_bytes += left
                server.counters.answer_buffer_bytes += left
            c = c.next
        if server.counters.answer_buffer_bytes > server.counters.answer_buffer_peak:
            server.counters.answer_buffer_peak = server.counters.answer_buffer_bytes
        if s.conn.answer_bytes > H2_ANSWER_BUFFER_MAX:
            set_fatal(s.conn, NGHTTP2_ENHANCE_YOUR_CALM, b"too_many_unread_answers")


# ---- requests

cdef inline void say(h2_stream *s, int code, const char *text) noexcept nogil:
    h2_end(s, code, text, <uint32_t>strlen(text))


cdef void refuse_text(h2_stream *s, int code, const char *before, const char *after) noexcept nogil:
    """Answer `code` with before + note + after, each note in Go's double quotes where `before` ends in one."""
    cdef char text[NOTE_BYTES_MAX + 256]
    cdef size_t n = strlen(before)
    memcpy(text, before, n)
    memcpy(text + n, s.note, s.note_size)
    n += s.note_size
    memcpy(text + n, after, strlen(after))
    n += strlen(after)
    h2_end(s, code, text, <uint32_t>n)


cdef void refuse_path(h2_stream *s) noexcept nogil:
    """UNIMPLEMENTED in grpc-go's three texts: malformed, unknown service, unknown method."""
    cdef char text[NOTE_BYTES_MAX + 256]
    cdef uint32_t cut = s.note_size
    cdef uint32_t n
    cdef h2_route *route
    while cut > 0 and s.note[cut - 1] != 47:
        cut -= 1
    # `cut` is one past the last slash; the service lies between the first byte and it.
    if s.note_size == 0 or s.note[0] != 47 or cut < 2:
        refuse_text(s, GRPC_UNIMPLEMENTED, b"malformed method name: \"", b"\"")
        return
    route = find_route(s.conn.server, <const uint8_t *>s.note + 1, cut - 2)
    if route == NULL or route.method:
        memmove_note(s, 1, cut - 2)
        refuse_text(s, GRPC_UNIMPLEMENTED, b"unknown service ", b"")
        return
    memcpy(text, b"unknown method ", 15)
    n = 15
    memcpy(text + n, s.note + cut, s.note_size - cut)
    n += s.note_size - cut
    memcpy(text + n, b" for service ", 13)
    n += 13
    memcpy(text + n, s.note + 1, cut - 2)
    n += cut - 2
    h2_end(s, GRPC_UNIMPLEMENTED, text, n)


cdef inline void memmove_note(h2_stream *s, uint32_t first, uint32_t size) noexcept nogil:
    cdef uint32_t i
    for i in range(size):
        s.note[i] = s.note[first + i]
    s.note_size = size


cdef void open_call(h2_conn *conn, h2_stream *s) noexcept nogil:
    """The header block is complete: refuse, or hand the call to the owner."""
    if s.http_status == 405 or not s.seen & SEEN_POST:
        s.http_status = 405
        refuse_text(s, GRPC_INTERNAL, b"Received a HEADERS frame with :method \"", b"\" which should be POST")
    elif s.http_status == 415 or not s.seen & SEEN_CONTENT_TYPE:
        s.http_status = 415
        refuse_text(s, GRPC_INVALID_ARGUMENT, b"invalid gRPC request content-type \"", b"\"")
    elif s.bad_timeout:
        s.http_status = 400
        refuse_text(s, GRPC_INTERNAL, b"malformed grpc-timeout: \"", b"\"")
    elif s.method == 0:
        conn.server.counters.unknown_calls += 1
        refuse_path(s)
    else:
        conn.server.counters.started[s.method] += 1
        if s.encoding_refused:
            refuse_text(s, GRPC_UNIMPLEMENTED, b"grpc: Decompressor is not installed for grpc-encoding \"", b"\"")
            return
        s.flags |= STREAM_OPENED
        conn.server.on_open(conn, s)


cdef void take_data(h2_conn *conn, h2_stream *s, const uint8_t *data, size_t size) noexcept nogil:
    """Bytes of the request, which is one prefixed message."""
    cdef uint32_t need, room
    cdef uint8_t *grown
    cdef char text[128]
    cdef size_t n
    if s.have == 0 and s.loan == NULL and size >= GRPC_PREFIX_BYTES and data[0] == 0 and \
            <uint64_t>be32(data + 1) + GRPC_PREFIX_BYTES == size and size <= conn.server.message_bytes_max:
        s.loan = data
        s.loan_size = <uint32_t>size
        conn.loaner = s
        return
    if s.loan != NULL:
        too_many_messages(s)
        return
    while size:
        if s.have < GRPC_PREFIX_BYTES:
            need = GRPC_PREFIX_BYTES
        else:
            need = be32(s.buf + 1) + GRPC_PREFIX_BYTES
            if s.have == need:
                too_many_messages(s)
                return
        if s.have + size < need:
            n = size
        else:
            n = need - s.have
        if s.have + n > s.room:
            room = s.room * 2 if s.room else 512
            if room < s.have + n:
                room = <uint32_t>(s.have + n)
            if need > GRPC_PREFIX_BYTES and room > need:
                room = need
            grown = <uint8_t *>realloc(s.buf, room)
            if grown == NULL:
                set_fatal(conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
                return
            s.buf = grown
            conn.request_bytes += room - s.room
            conn.server.counters.request_buffer_bytes += room - s.room
            s.room = room
            if conn.request_bytes > H2_REQUEST_BUFFER_MAX:
                set_fatal(conn, NGHTTP2_ENHANCE_YOUR_CALM, b"too_many_buffered_requests")
                return
        memcpy(s.buf + s.have, data, n)
        s.have += <uint32_t>n
        data += n
        size -= n
        if s.have == GRPC_PREFIX_BYTES and need == GRPC_PREFIX_BYTES:
            if s.buf[0] > 1:
                memcpy(text, b"grpc: received unexpected payload format ", 41)
                n = 41 + decimal(<uint8_t *>text + 41, s.buf[0])
                h2_end(s, GRPC_INTERNAL, text, <uint32_t>n)
                return
            if s.buf[0] == 1:
                say(s, GRPC_INTERNAL, b"grpc: compressed flag set with identity or empty encoding")
                return
            need = be32(s.buf + 1)
            if need > conn.server.message_bytes_max:
                memcpy(text, b"grpc: received message larger than max (", 40)
                n = 40 + decimal(<uint8_t *>text + 40, need)
                memcpy(text + n, b" vs. ", 5)
                n += 5
                n += decimal(<uint8_t *>text + n, conn.server.message_bytes_max)
                text[n] = 41
                h2_end(s, GRPC_RESOURCE_EXHAUSTED, text, <uint32_t>n + 1)
                return
            if need + GRPC_PREFIX_BYTES > H2_STREAM_WINDOW:
                want_grant(s)


cdef void too_many_messages(h2_stream *s) noexcept nogil:
    say(s, GRPC_INTERNAL, b"cardinality violation: received multiple request messages for non-client-streaming RPC")


cdef void end_request(h2_conn *conn, h2_stream *s) noexcept nogil:
    """END_STREAM came: the message must be whole."""
    s.flags |= STREAM_REQUEST_ENDED
    if s.flags & STREAM_ANSWERED or not s.flags & STREAM_OPENED:
        return
    if s.loan != NULL:
        conn.loaner = NULL
        conn.server.on_call(conn, s, s.loan + GRPC_PREFIX_BYTES, s.loan_size - GRPC_PREFIX_BYTES)
        s.loan = NULL
    elif s.have == 0:
        say(s, GRPC_INTERNAL, b"cardinality violation: received no request message from non-client-streaming RPC")
    elif s.have < GRPC_PREFIX_BYTES or s.have < be32(s.buf + 1) + GRPC_PREFIX_BYTES:
        say(s, GRPC_INTERNAL, b"unexpected EOF")
    else:
        conn.server.on_call(conn, s, s.buf + GRPC_PREFIX_BYTES, s.have - GRPC_PREFIX_BYTES)


cdef void h2_keep_request(h2_stream *s) noexcept nogil:
    cdef h2_conn *conn = s.conn
    cdef const uint8_t *data = s.loan
    cdef uint8_t *buf
    if data == NULL:
        return
    if conn.loaner == s:
        conn.loaner = NULL
    s.loan = NULL
    buf = <uint8_t *>malloc(s.loan_size)
    if buf == NULL:
        set_fatal(conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
        return
    memcpy(buf, data, s.loan_size)
    s.buf = buf
    s.have = s.room = s.loan_size
    conn.request_bytes += s.room
    conn.server.counters.request_buffer_bytes += s.room
    if conn.request_bytes > H2_REQUEST_BUFFER_MAX:
        set_fatal(conn, NGHTTP2_ENHANCE_YOUR_CALM, b"too_many_buffered_requests")


# ---- nghttp2's callbacks

cdef int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept nogil:
    cdef h2_conn *conn = <h2_conn *>user
    cdef h2_stream *s
    conn.header_bytes = 0
    conn.open = NULL
    if frame.hd.type != NGHTTP2_HEADERS or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    s = new_stream(conn, frame.hd.stream_id)
    if s == NULL:
        set_fatal(conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
        return NGHTTP2_ERR_CALLBACK_FAILURE
    nghttp2_session_set_stream_user_data(session, s.id, s)
    conn.open = s
    conn.last_stream = s.id
    return 0


cdef int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
                   const uint8_t *value, size_t size, uint8_t flags, void *user) noexcept nogil:
    cdef h2_conn *conn = <h2_conn *>user
    cdef h2_stream *s = conn.open
    cdef h2_route *route
    conn.header_bytes += <uint32_t>(name_size + size + 32)
    if conn.header_bytes > H2_HEADER_BYTES_MAX:
        set_fatal(conn, NGHTTP2_ENHANCE_YOUR_CALM, b"header_list_too_large")
        return NGHTTP2_ERR_CALLBACK_FAILURE
    if s == NULL:
        return 0
    if name_size == 5 and memcmp(name, b":path", 5) == 0:
        route = find_route(conn.server, value, size)
        if route != NULL and route.method and route.served:
            s.method = route.method
        elif s.http_status == 0 and not s.bad_timeout:
            keep_note(s, value, size)
    elif name_size == 7 and memcmp(name, b":method", 7) == 0:
        if size == 4 and memcmp(value, b"POST", 4) == 0:
            s.seen |= SEEN_POST
        else:
            s.http_status = 405
            keep_note(s, value, size)
    elif name_size == 12 and memcmp(name, b"content-type", 12) == 0:
        # application/grpc, or with +codec or ;parameters behind, as grpc-go takes it
        if size >= 16 and memcmp(value, b"application/grpc", 16) == 0 and \
                (size == 16 or value[16] == 43 or value[16] == 59):
            s.seen |= SEEN_CONTENT_TYPE
        elif s.http_status == 0:
            s.http_status = 415
            keep_note(s, value, size)
    elif name_size == 12 and memcmp(name, b"grpc-timeout", 12) == 0:
        if grpc_timeout_ns(value, size, &s.timeout_ns) < 0:
            s.bad_timeout = True
            if s.http_status == 0:
                keep_note(s, value, size)
        elif s.timeout_ns == 0:
            s.timeout_ns = 1
    elif name_size == 13 and memcmp(name, b"grpc-encoding", 13) == 0:
        if not (size == 8 and memcmp(value, b"identity", 8) == 0):
            s.encoding_refused = True
            if s.http_status == 0 and not s.bad_timeout and s.method:
                keep_note(s, value, size)
    elif name_size == 9 and memcmp(name, b"hasleader", 9) == 0:
        if size == 4 and memcmp(value, b"true", 4) == 0:
            s.flags &= ~<uint32_t>STREAM_NO_LEADER_OK
    return 0


cdef void on_ping(h2_conn *conn) noexcept nogil:
    """grpc-go's rule: a ping too soon is a strike, data sent in between forgives them."""
    cdef h2_server *server = conn.server
    cdef uint64_t least = server.ping_min_ns
    if conn.ping_reset:
        conn.ping_reset = False
        conn.ping_strikes = 0
    else:
        if conn.stream_count == 0:
            least = <uint64_t>H2_PING_IDLE_SECONDS * 1000 * NS_PER_MS
        if conn.last_ping_ns and server.now_ns - conn.last_ping_ns < least:
            conn.ping_strikes += 1
            if conn.ping_strikes > H2_PING_STRIKES_MAX:
                set_fatal(conn, NGHTTP2_ENHANCE_YOUR_CALM, b"too_many_pings")
    conn.last_ping_ns = server.now_ns


cdef int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept nogil:
    cdef h2_conn *conn = <h2_conn *>user
    cdef h2_stream *s
    if frame.hd.type == NGHTTP2_DATA:
        if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            s = <h2_stream *>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
            if s != NULL:
                end_request(conn, s)
    elif frame.hd.type == NGHTTP2_HEADERS:
        s = conn.open
        conn.open = NULL
        if s != NULL:
            if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
                s.flags |= STREAM_REQUEST_ENDED
            open_call(conn, s)
        elif frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            s = <h2_stream *>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
        if s != NULL and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            end_request(conn, s)
    elif frame.hd.type == NGHTTP2_PING and not frame.hd.flags & NGHTTP2_FLAG_ACK:
        on_ping(conn)
    return NGHTTP2_ERR_CALLBACK_FAILURE if conn.fatal else 0


cdef int on_data_chunk(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data,
                       size_t size, void *user) noexcept nogil:
    cdef h2_conn *conn = <h2_conn *>user
    cdef h2_stream *s
    nghttp2_session_consume_connection(session, size)
    s = <h2_stream *>nghttp2_session_get_stream_user_data(session, stream_id)
    if s != NULL and not s.flags & STREAM_ANSWERED and s.flags & STREAM_OPENED and size:
        take_data(conn, s, data, size)
        if conn.fatal:
            return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept nogil:
    cdef h2_conn *conn = <h2_conn *>user
    cdef h2_stream *s
    if frame.hd.type == NGHTTP2_HEADERS:
        conn.ping_reset = True
        if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            s = <h2_stream *>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
            if s != NULL and not s.flags & STREAM_REQUEST_ENDED:
                # Answered before the request ended: the client may stop sending.
                nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, s.id, NGHTTP2_NO_ERROR)
    elif frame.hd.type == NGHTTP2_RST_STREAM:
        # A client that makes us reset its streams costs as much as one that resets them itself.
        if frame.rst_stream.error_code not in (NGHTTP2_NO_ERROR, NGHTTP2_CANCEL, NGHTTP2_REFUSED_STREAM):
            conn.guard.reset_tokens -= 1000
            if conn.guard.reset_tokens < 0:
                guard_refill(conn)
                if conn.guard.reset_tokens < 0:
                    set_fatal(conn, NGHTTP2_ENHANCE_YOUR_CALM, b"too_many_resets")
    return 0


cdef int on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t code, void *user) noexcept nogil:
    cdef h2_stream *s = <h2_stream *>nghttp2_session_get_stream_user_data(session, stream_id)
    if s != NULL:
        nghttp2_session_set_stream_user_data(session, stream_id, NULL)
        drop_stream(s)
    return 0


# ---- connections

cdef int h2_server_init(h2_server *server) noexcept nogil:
    """Precondition: limits, routes, events and counters are set. 0, or -1 out of memory."""
    server.mem.mem_user_data = server
    server.mem.malloc = block_malloc
    server.mem.free = block_free
    server.mem.calloc = block_calloc
    server.mem.realloc = block_realloc
    server.out = <uint8_t *>malloc(H2_OUT_BYTES + OUT_SLACK_BYTES)
    if server.out == NULL or nghttp2_session_callbacks_new(&server.callbacks) != 0 or \
            nghttp2_option_new(&server.option) != 0:
        return -1
    nghttp2_session_callbacks_set_on_frame_recv_callback(server.callbacks, on_frame_recv)
    nghttp2_session_callbacks_set_on_frame_send_callback(server.callbacks, on_frame_send)
    nghttp2_session_callbacks_set_on_begin_headers_callback(server.callbacks, on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(server.callbacks, on_header)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(server.callbacks, on_data_chunk)
    nghttp2_session_callbacks_set_on_stream_close_callback(server.callbacks, on_stream_close)
    nghttp2_session_callbacks_set_send_data_callback(server.callbacks, send_data)
    # Windows follow what is buffered here, see serve_grants.
    nghttp2_option_set_no_auto_window_update(server.option, 1)
    # A closed stream is of no use to a server, and kept ones are memory a client can claim.
    nghttp2_option_set_no_closed_streams(server.option, 1)
    return 0


cdef void h2_server_free(h2_server *server) noexcept nogil:
    cdef h2_stream *s
    cdef char *block
    cdef int i
    if server.callbacks != NULL:
        nghttp2_session_callbacks_del(server.callbacks)
    if server.option != NULL:
        nghttp2_option_del(server.option)
    free(server.out)
    while server.free_streams != NULL:
        s = server.free_streams
        server.free_streams = s.list_next
        free(s)
    for i in range(BLOCK_CLASSES + 1):
        while server.free_blocks[i] != NULL:
            block = <char *>server.free_blocks[i]
            server.free_blocks[i] = (<void **>(block + BLOCK_HEADER))[0]
            free(block)


cdef h2_conn *h2_open(h2_server *server, void *owner) noexcept nogil:
    """NULL when out of memory."""
    cdef nghttp2_settings_entry settings[3]
    cdef h2_conn *conn = <h2_conn *>calloc(1, sizeof(h2_conn))
    if conn == NULL:
        return NULL
    conn.server = server
    conn.owner = owner
    conn.guard.preface_left = 24
    conn.guard.refilled_ns = server.now_ns
    conn.guard.reset_tokens = <int64_t>H2_RESET_BURST * 1000
    conn.guard.control_tokens = <int64_t>H2_CONTROL_BURST * 1000
    if nghttp2_session_server_new3(&conn.session, server.callbacks, conn, server.option, &server.mem) != 0:
        free(conn)
        return NULL
    settings[0].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
    settings[0].value = server.streams_max
    settings[1].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
    settings[1].value = H2_HEADER_BYTES_MAX
    # RFC 7540 priorities would let a client build and reorder trees here; no gRPC client needs them.
    settings[2].settings_id = NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES
    settings[2].value = 1
    if nghttp2_submit_settings(conn.session, NGHTTP2_FLAG_NONE, settings, 3) != 0 or \
            nghttp2_session_set_local_window_size(conn.session, NGHTTP2_FLAG_NONE, 0, H2_CONNECTION_WINDOW) != 0:
        nghttp2_session_del(conn.session)
        free(conn)
        return NULL
    mark_dirty(conn)
    return conn


cdef void h2_close(h2_conn *conn) noexcept nogil:
    cdef h2_conn **link
    if conn.fatal:
        conn.server.counters.goaways[conn.fatal - 1 & 15] += 1
    while conn.streams != NULL:
        nghttp2_session_set_stream_user_data(conn.session, conn.streams.id, NULL)
        drop_stream(conn.streams)
    nghttp2_session_del(conn.session)
    if conn.dirty:
        link = &conn.server.dirty
        while link[0] != conn:
            link = &link[0].dirty_next
        link[0] = conn.dirty_next
    free(conn)


cdef int h2_feed(h2_conn *conn, const uint8_t *data, uint32_t size) noexcept nogil:
    cdef ssize_t took
    conn.server.counters.received_bytes += size
    if conn.fatal or guard_scan(conn, data, size) < 0:
        return -1
    took = nghttp2_session_mem_recv(conn.session, data, size)
    if conn.loaner != NULL:
        h2_keep_request(conn.loaner)   # the bytes fed go away before END_STREAM came
    if took < 0:
        if took == NGHTTP2_ERR_FLOODED:
            set_fatal(conn, NGHTTP2_ENHANCE_YOUR_CALM, b"flooded")
        elif took == NGHTTP2_ERR_BAD_CLIENT_MAGIC:
            set_fatal(conn, NGHTTP2_PROTOCOL_ERROR, b"bad_preface")
        else:
            set_fatal(conn, NGHTTP2_INTERNAL_ERROR, b"")
    if conn.fatal:
        return -1
    if nghttp2_session_want_write(conn.session) or not nghttp2_session_want_read(conn.session):
        mark_dirty(conn)
    return 0


cdef int h2_pull(h2_conn *conn) noexcept nogil:
    cdef h2_server *server = conn.server
    cdef const uint8_t *data
    cdef ssize_t n
    server.out_size = 0
    while server.out_size < H2_OUT_BYTES:
        n = nghttp2_session_mem_send(conn.session, &data)
        if n <= 0:
            break
        if n > OUT_SLACK_BYTES:
            n = NGHTTP2_ERR_NOMEM
            break
        memcpy(server.out + server.out_size, data, n)
        server.out_size += <uint32_t>n
    else:
        n = 0
    server.counters.sent_bytes += server.out_size
    if n < 0:
        set_fatal(conn, NGHTTP2_INTERNAL_ERROR, b"")
    if conn.fatal:
        return -1
    return server.out_size >= H2_OUT_BYTES


cdef uint32_t h2_goaway_frame(h2_conn *conn, uint8_t *out) noexcept nogil:
    # Made by hand: nghttp2 queues behind what is blocked, and after a failed callback sends nothing.
    cdef size_t size = strlen(conn.fatal_text) if conn.fatal_text != NULL else 0
    if size > 40:
        size = 40
    memset(out, 0, 9)
    out[2] = <uint8_t>(8 + size)
    out[3] = NGHTTP2_GOAWAY
    put_be32(out + 9, <uint32_t>conn.last_stream)
    put_be32(out + 13, conn.fatal - 1)
    memcpy(out + 17, conn.fatal_text, size)
    return <uint32_t>(17 + size)


cdef bint h2_finished(h2_conn *conn) noexcept nogil:
    return not nghttp2_session_want_read(conn.session) and not nghttp2_session_want_write(conn.session)


cdef h2_stream *h2_find(h2_conn *conn, uint32_t stream_id) noexcept nogil:
    return <h2_stream *>nghttp2_session_get_stream_user_data(conn.session, <int32_t>stream_id)


cdef void h2_ping(h2_conn *conn) noexcept nogil:
    nghttp2_submit_ping(conn.session, NGHTTP2_FLAG_NONE, NULL)
    mark_dirty(conn)


cdef void h2_shutdown(h2_conn *conn, int step) noexcept nogil:
    if step == 0:
        nghttp2_submit_shutdown_notice(conn.session)
    else:
        nghttp2_submit_goaway(conn.session, NGHTTP2_FLAG_NONE,
                              nghttp2_session_get_last_proc_stream_id(conn.session), NGHTTP2_NO_ERROR, NULL, 0)
    conn.going_away = True
    mark_dirty(conn)
