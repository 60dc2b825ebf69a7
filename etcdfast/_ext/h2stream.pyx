"""Streams: see h2stream.pxd. Answers leave through nghttp2's data providers without a copy of their own."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset, strlen

from etcdfast._ext.bidimap cimport bidi_find, bidi_remove
from etcdfast._ext.grpcwire cimport GRPC_CANCELLED, GRPC_PREFIX_BYTES, be32, grpc_percent_encode, put_be32
from etcdfast._ext.h2budget cimport hold, hold_text
from etcdfast._ext.h2guard cimport guard_answered, guard_delivered
from etcdfast._ext.h2pen cimport (
    SPARE_CHUNK, SPARE_LARGE, SPARE_SMALL, pen_close, pen_count, put_event_head, spare_give, spare_size, spare_take,
)
from etcdfast._ext.h2token cimport token_drop
from etcdfast._ext.h2types cimport *
from etcdfast._ext.meters cimport H_STAGE_FRONTEND, M_CLIENT_SENT_BYTES, meter_count, meter_handled, meter_observe, meters_block
from etcdfast._ext.nghttp2 cimport *

cdef enum:
    TEXT_BYTES_MAX = 16384       # encoded grpc-message; longer ones are cut

cdef const char *CODE_TEXTS[17]
CODE_TEXTS[:] = [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9", b"10", b"11", b"12", b"13", b"14", b"15",
                 b"16"]


# ---- streams

cdef h2_stream *h2_new_stream(h2_conn *conn, int32_t stream_id) noexcept nogil:
    cdef h2_server *server = conn.server
    cdef h2_stream *s = server.free_streams
    if s != NULL:
        server.free_streams = s.list_next
        memset(s, 0, sizeof(h2_stream) - sizeof(h2_chunk))
    else:
        s = <h2_stream *>calloc(1, sizeof(h2_stream))
        if s == NULL:
            return NULL
    s.conn = conn
    s.id = stream_id
    s.flags = STREAM_NO_LEADER_OK
    s.timer_slot = -1
    s.opened_ns = server.now_ns
    s.list_next = conn.streams
    if conn.streams != NULL:
        conn.streams.list_prev = s
    conn.streams = s
    conn.stream_count += 1
    hold(conn, H2_STREAM_COST_BYTES)
    return s


cdef inline void keep_answer(h2_stream *s, int64_t more) noexcept nogil:
    """Count `more` bytes of answers that the process keeps for the stream; fewer when negative."""
    s.conn.answer_bytes = <uint64_t>(<int64_t>s.conn.answer_bytes + more)
    hold(s.conn, more)
    s.conn.server.counters.answer_buffer_bytes = <uint64_t>(
        <int64_t>s.conn.server.counters.answer_buffer_bytes + more)


cdef void check_unread(h2_stream *s) noexcept nogil:
    cdef h2_server *server = s.conn.server
    if server.counters.answer_buffer_bytes > server.counters.answer_buffer_peak:
        server.counters.answer_buffer_peak = server.counters.answer_buffer_bytes
    if s.conn.answer_bytes > H2_ANSWER_BUFFER_MAX:
        set_fatal(s.conn, NGHTTP2_ENHANCE_YOUR_CALM, b"too_many_unread_answers")


cdef void free_chunk(h2_stream *s, h2_chunk *c) noexcept nogil:
    cdef int which
    if c.kind >= CHUNK_PEN_SMALL:
        which = SPARE_SMALL if c.kind == CHUNK_PEN_SMALL else SPARE_LARGE
        keep_answer(s, -<int64_t>spare_size(which))
        spare_give(s.conn.server, c, which)
        return
    if c.kind == CHUNK_OWNED and c.data != NULL:
        free(<void *>c.data)
        keep_answer(s, -<int64_t>c.size)
    if c == &s.first:
        s.first_used = False
    else:
        spare_give(s.conn.server, c, SPARE_CHUNK)


cdef void h2_drop_stream(h2_stream *s) noexcept nogil:
    """Last use: tell the owner, take it out of every list, give it back."""
    cdef h2_conn *conn = s.conn
    cdef h2_server *server = conn.server
    cdef h2_chunk *c
    server.on_gone(conn, s)
    if not s.flags & STREAM_ANSWERED and s.method:
        server.counters.handled[s.method][GRPC_CANCELLED] += 1
        meter_handled(meters_block, s.method, 1, server.now_ns - s.opened_ns)
    h2_drop_request(s)
    if s.flags & STREAM_PLAIN:
        server.on_plain_gone(conn, s)
    if s.flags & (STREAM_BIDI | STREAM_CALL):
        bidi_remove(conn, s)
    while s.out_head != NULL:
        c = s.out_head
        s.out_head = c.next
        free_chunk(s, c)
    free(s.note)
    free(s.text)
    token_drop(s)
    borrowers_remove(s)
    sent_remove(s)
    told_remove(s)
    if conn.open == s:
        conn.open = NULL
    if s.list_prev != NULL:
        s.list_prev.list_next = s.list_next
    else:
        conn.streams = s.list_next
    if s.list_next != NULL:
        s.list_next.list_prev = s.list_prev
    conn.stream_count -= 1
    hold(conn, -<int64_t>(H2_STREAM_COST_BYTES + s.text_held))
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
        hold(conn, -<int64_t>s.room)
        conn.server.counters.request_buffer_bytes -= s.room
        s.room = 0
    s.have = s.whole = s.taken = 0
    if s.flags & STREAM_GRANT_WAITS:
        unlink_grant(s)
        h2_serve_grants(conn)
    if s.grant:
        conn.grants -= s.grant
        s.grant = 0
        h2_serve_grants(conn)


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


cdef void h2_want_grant(h2_stream *s) noexcept nogil:
    cdef h2_conn *conn = s.conn
    if s.flags & STREAM_CALL:
        return     # has no window
    s.flags |= STREAM_GRANT_WAITS
    s.grant_next = NULL
    if conn.grant_tail == NULL:
        conn.grant_head = s
    else:
        conn.grant_tail.grant_next = s
    conn.grant_tail = s
    h2_serve_grants(conn)


cdef void h2_serve_grants(h2_conn *conn) noexcept nogil:
    cdef h2_server *server = conn.server
    cdef h2_stream *s
    cdef uint32_t need, open_now
    cdef int32_t left
    # Near the end of the budget what is open may complete, and nothing large begins.
    while conn.grant_head != NULL and server.held_bytes <= server.budget_bytes // 4 * 3:
        s = conn.grant_head
        # The length of the message is known; padding and the 5 bytes of the prefix need a little more.
        need = be32(s.buf + 1) + H2_STREAM_WINDOW
        if s.flags & STREAM_BIDI:
            # What is open already counts: else the window would grow with each such message.
            left = nghttp2_session_get_stream_local_window_size(conn.session, s.id)
            open_now = <uint32_t>left if left > 0 else 0
            need = need - open_now if need > open_now else 0
        if conn.grants and conn.grants + need > H2_GRANT_BYTES_MAX:
            return
        conn.grant_head = s.grant_next
        if conn.grant_head == NULL:
            conn.grant_tail = NULL
        s.flags &= ~<uint32_t>STREAM_GRANT_WAITS
        s.grant = need
        conn.grants += need
        if need and nghttp2_submit_window_update(conn.session, NGHTTP2_FLAG_NONE, s.id, <int32_t>need) == 0:
            mark_dirty(conn)


# ---- windows of bidi streams

cdef void h2_taken(h2_stream *s) noexcept nogil:
    cdef h2_conn *conn = s.conn
    cdef uint32_t rest = s.have - s.taken
    if rest == 0:
        h2_drop_request(s)
    elif s.taken:
        memmove(s.buf, s.buf + s.taken, rest)
        s.have = rest
        s.whole -= s.taken
        s.taken = 0
        if s.grant:
            conn.grants -= s.grant   # of the message that is out
            s.grant = 0
            h2_serve_grants(conn)
        if s.whole == 0 and rest >= GRPC_PREFIX_BYTES and \
                be32(s.buf + 1) + GRPC_PREFIX_BYTES > H2_STREAM_WINDOW:
            h2_want_grant(s)
    h2_give_window(s)


cdef void h2_give_window(h2_stream *s) noexcept nogil:
    cdef int32_t left
    cdef int rc
    if s.window_used < H2_WINDOW_STEP or s.out_bytes >= H2_UNSENT_BYTES_MAX or s.whole or s.grant or \
            s.flags & (STREAM_CALL | STREAM_LATE | STREAM_ANSWERED | STREAM_REQUEST_ENDED | STREAM_GRANT_WAITS):
        return
    s.window_used = 0
    left = nghttp2_session_get_stream_local_window_size(s.conn.session, s.id)
    if left < 0 or left >= H2_STREAM_WINDOW:
        return
    rc = nghttp2_submit_window_update(s.conn.session, NGHTTP2_FLAG_NONE, s.id, H2_STREAM_WINDOW - left)
    if rc == NGHTTP2_ERR_NOMEM:
        # Without it the stream would stand still for ever.
        set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
    mark_dirty(s.conn)


# ---- answers

cdef inline void set_nv(nghttp2_nv *nv, const char *name, size_t name_size, const char *value, size_t size,
                        uint8_t flags) noexcept nogil:
    nv.name = <uint8_t *>name
    nv.namelen = name_size
    nv.value = <uint8_t *>value
    nv.valuelen = size
    nv.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME | flags


cdef inline void decide(h2_stream *s, int code) noexcept nogil:
    """Fix the status of the call: counted once."""
    s.flags |= STREAM_ANSWERED
    s.code = <uint8_t>code
    s.conn.server.counters.handled[s.method][code] += 1
    meter_handled(meters_block, s.method, code, s.conn.server.now_ns - s.opened_ns)
    if not s.flags & STREAM_BIDI:
        meter_observe(H_STAGE_FRONTEND, s.conn.server.now_ns - s.opened_ns)
    guard_answered(&s.conn.guard)


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


cdef ssize_t read_plain(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t length,
                        uint32_t *data_flags, nghttp2_data_source *source, void *user) noexcept nogil:
    cdef h2_stream *s = <h2_stream *>source.ptr
    cdef size_t n = s.out_bytes if s.out_bytes < length else length
    if n == 0 and not s.out_ended:
        s.flags |= STREAM_DEFERRED
        return NGHTTP2_ERR_DEFERRED
    data_flags[0] |= NGHTTP2_DATA_FLAG_NO_COPY
    if n == s.out_bytes and s.out_ended:
        data_flags[0] |= NGHTTP2_DATA_FLAG_EOF
    return <ssize_t>n


cdef ssize_t read_answer(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t length,
                         uint32_t *data_flags, nghttp2_data_source *source, void *user) noexcept nogil:
    """As read_plain, with the gRPC status behind it."""
    cdef ssize_t n = read_plain(session, stream_id, buf, length, data_flags, source, user)
    if data_flags[0] & NGHTTP2_DATA_FLAG_EOF:
        data_flags[0] |= NGHTTP2_DATA_FLAG_NO_END_STREAM
        if submit_status(<h2_stream *>source.ptr, NULL, True) != 0:
            return NGHTTP2_ERR_CALLBACK_FAILURE
    return n


cdef inline void count_sent(h2_stream *s, size_t size) noexcept nogil:
    s.sent_bytes += <uint32_t>size
    sent_add(s)


cdef inline void plain_sent(h2_stream *s) noexcept nogil:
    """Its client has read: the call behind it may go on."""
    cdef h2_stream *call
    if s.out_bytes < H2_UNSENT_BYTES_MAX:
        call = bidi_find(s.conn, <uint32_t>s.id + 1)
        if call != NULL and (call.out_bytes or call.out_ended):
            told_add(call)


cdef int h2_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head, size_t length,
                      nghttp2_data_source *source, void *user) noexcept nogil:
    """Copy a DATA frame straight from the answer (often still in the ring) to the bytes to write."""
    cdef h2_conn *conn = <h2_conn *>user
    cdef h2_server *server = conn.server
    cdef h2_stream *s = <h2_stream *>source.ptr
    cdef uint8_t *out
    if server.out_size >= H2_OUT_BYTES or length + 9 > H2_OUT_SLACK_BYTES:
        return NGHTTP2_ERR_WOULDBLOCK
    out = server.out + server.out_size
    memcpy(out, head, 9)
    out += 9
    server.out_size += <uint32_t>length + 9
    conn.ping_reset = True
    guard_delivered(&conn.guard)
    h2_copy_out(s, out, length)
    if s.flags & STREAM_PLAIN:
        plain_sent(s)
    if s.flags & STREAM_BIDI and s.window_used >= H2_WINDOW_STEP:
        h2_give_window(s)
    return 0


cdef void h2_copy_out(h2_stream *s, uint8_t *out, size_t length) noexcept nogil:
    cdef h2_chunk *c
    cdef size_t step
    s.out_bytes -= length
    pen_count(s)
    if s.flags & STREAM_COUNTED:
        count_sent(s, length)
    while length:
        c = s.out_head
        if c.head_sent < c.head_size:
            step = <size_t>(c.head_size - c.head_sent)
            if step > length:
                step = length
            memcpy(out, c.head + c.head_sent, step)
            c.head_sent += <uint8_t>step
        else:
            step = c.size - c.sent
            if step > length:
                step = length
            memcpy(out, c.data + c.sent, step)
            c.sent += <uint32_t>step
            if s.flags & (STREAM_CREDITED | STREAM_COUNTED) == STREAM_CREDITED:
                count_sent(s, step)
        out += step
        length -= step
        if c.head_sent == c.head_size and c.sent == c.size:
            s.out_head = c.next
            if s.out_head == NULL:
                s.out_tail = NULL
                s.pen = s.pen_end = NULL
            free_chunk(s, c)


cdef h2_chunk *push_chunk(h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil:
    """Bytes in the ring behind what the stream has to send. NULL when out of memory: the connection is fatal.

    Bytes of its head go before them; whoever fills them in adds them to out_bytes.
    """
    cdef h2_chunk *c
    cdef h2_server *server = s.conn.server
    if not s.first_used:
        c = &s.first
        s.first_used = True
    else:
        c = spare_take(server, SPARE_CHUNK)
        if c == NULL:
            set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
            return NULL
    c.next = NULL
    c.data = data
    c.size = size
    c.sent = 0
    c.kind = CHUNK_BORROWED
    c.head_size = c.head_sent = 0
    pen_close(s)
    if s.out_tail == NULL:
        s.out_head = c
    else:
        s.out_tail.next = c
    s.out_tail = c
    s.out_bytes += size
    if size:
        borrowers_add(s)
    return c


cdef int h2_push_copy(h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil:
    cdef h2_chunk *c
    cdef uint8_t *copy = <uint8_t *>malloc(size if size else 1)
    if copy == NULL:
        set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
        return -1
    memcpy(copy, data, size)
    c = push_chunk(s, copy, size)
    if c == NULL:
        free(copy)
        return -1
    c.kind = CHUNK_OWNED
    keep_answer(s, size)
    return 0


cdef inline void h2_count_sent(h2_stream *s, uint32_t size) noexcept nogil:
    s.conn.server.counters.sent[s.method] += 1
    meter_count(M_CLIENT_SENT_BYTES, size)


cdef int push_message(h2_stream *s, const uint8_t *data, uint32_t size, uint32_t total) noexcept nogil:
    """The prefix of a message of `total` bytes, and bytes of it."""
    cdef h2_chunk *c
    if s.begun_left:
        set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"answer_within_another")
        return -1
    c = push_chunk(s, data, size)
    if c == NULL:
        return -1
    c.head[0] = 0
    put_be32(c.head + 1, total)
    c.head_size = GRPC_PREFIX_BYTES
    s.out_bytes += GRPC_PREFIX_BYTES
    h2_count_sent(s, total)
    return 0


cdef uint8_t *h2_pen_open(h2_stream *s, uint32_t size) noexcept nogil:
    # A second block in a row is large: who has that much to say has more.
    cdef bint small = s.pen == NULL and size <= PEN_SMALL_BYTES - sizeof(h2_chunk)
    cdef int which = SPARE_SMALL if small else SPARE_LARGE
    cdef h2_chunk *c
    if s.begun_left:
        set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"answer_within_another")
        return NULL
    c = spare_take(s.conn.server, which)
    if c == NULL:
        set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
        return NULL
    pen_close(s)
    c.next = NULL
    c.data = <uint8_t *>c + sizeof(h2_chunk)
    c.size = c.sent = 0
    c.kind = CHUNK_PEN_SMALL if small else CHUNK_PEN_LARGE
    c.head_size = c.head_sent = 0
    if s.out_tail == NULL:
        s.out_head = c
    else:
        s.out_tail.next = c
    s.out_tail = c
    s.pen = <uint8_t *>c.data
    s.pen_end = <uint8_t *>c + spare_size(which)
    keep_answer(s, spare_size(which))
    check_unread(s)
    return s.pen


cdef int h2_flow(h2_stream *s) noexcept nogil:
    cdef nghttp2_nv nv[2]
    cdef nghttp2_data_provider provider
    cdef int rc = 0
    if s.flags & STREAM_CALL:
        told_add(s)
        return 0
    if not s.flags & STREAM_STARTED:
        s.flags |= STREAM_STARTED
        set_nv(&nv[0], b":status", 7, b"200", 3, NGHTTP2_NV_FLAG_NO_COPY_VALUE)
        set_nv(&nv[1], b"content-type", 12, b"application/grpc", 16, NGHTTP2_NV_FLAG_NO_COPY_VALUE)
        provider.source.ptr = s
        provider.read_callback = read_answer
        if s.flags & STREAM_BIDI and not s.flags & STREAM_ANSWERED:
            guard_answered(&s.conn.guard)   # the stream may be reset by its client, which has been served
        rc = nghttp2_submit_response(s.conn.session, s.id, nv, 2, &provider)
    elif s.flags & STREAM_DEFERRED:
        s.flags &= ~<uint32_t>STREAM_DEFERRED
        rc = nghttp2_session_resume_data(s.conn.session, s.id)
    if rc == NGHTTP2_ERR_NOMEM:
        set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
        return -1
    mark_dirty(s.conn)
    return 0


cdef int h2_respond(h2_stream *s, const nghttp2_nv *headers, size_t count, bint end) noexcept nogil:
    cdef nghttp2_data_provider provider
    cdef int rc
    s.flags |= STREAM_STARTED
    s.out_ended = end
    provider.source.ptr = s
    provider.read_callback = read_plain
    rc = nghttp2_submit_response(s.conn.session, s.id, headers, count, NULL if end else &provider)
    guard_answered(&s.conn.guard)
    if rc == NGHTTP2_ERR_NOMEM:
        set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
    mark_dirty(s.conn)
    return rc


cdef int h2_reply(h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil:
    if s.flags & STREAM_ANSWERED:
        return 0
    decide(s, 0)
    if push_message(s, data, size, size) < 0:
        return -1
    s.out_ended = True
    return h2_flow(s)


cdef int h2_message(h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil:
    if s.flags & STREAM_ANSWERED:
        return 0
    return -1 if push_message(s, data, size, size) < 0 else h2_flow(s)


cdef int h2_lend_event(h2_stream *s, const uint8_t *head, uint32_t head_size, int64_t watch_id,
                       const uint8_t *events, uint32_t events_size) noexcept nogil:
    cdef h2_chunk *c
    if s.begun_left:
        set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"answer_within_another")
        return -1
    c = push_chunk(s, events, events_size)
    if c == NULL:
        return -1
    c.head_size = <uint8_t>(put_event_head(c.head, head, head_size, watch_id, events_size) - c.head)
    s.out_bytes += c.head_size
    h2_count_sent(s, c.head_size + events_size - GRPC_PREFIX_BYTES)
    return h2_flow(s)


cdef int h2_begin(h2_stream *s, uint32_t total) noexcept nogil:
    if s.flags & STREAM_ANSWERED:
        return 0
    if push_message(s, NULL, 0, total) < 0:
        return -1
    s.begun_left = total
    return h2_flow(s)


cdef int h2_part(h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil:
    if s.flags & STREAM_ANSWERED or size == 0:
        return 0
    if size > s.begun_left:
        set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"answer_longer_than_begun")
        return -1
    s.begun_left -= size
    return -1 if push_chunk(s, data, size) == NULL else h2_flow(s)


cdef int h2_end(h2_stream *s, int code, const char *text, uint32_t text_size) noexcept nogil:
    if s.flags & STREAM_ANSWERED:
        return 0
    decide(s, code)
    if text_size:
        if text_size > TEXT_BYTES_MAX // 3:
            text_size = TEXT_BYTES_MAX // 3
        s.text = <char *>malloc(<size_t>text_size * 3)
        if s.text != NULL:
            hold_text(s, text_size * 3)
            s.text_size = <uint32_t>grpc_percent_encode(<uint8_t *>s.text, <const uint8_t *>text, text_size)
    s.out_ended = True
    h2_drop_request(s)
    if s.flags & (STREAM_STARTED | STREAM_CALL):
        return h2_flow(s)
    s.flags |= STREAM_STARTED
    if submit_status(s, b"415" if s.http_status == 415 else b"405" if s.http_status == 405
                     else b"400" if s.http_status == 400 else b"200", False) == NGHTTP2_ERR_NOMEM:
        set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
        return -1
    mark_dirty(s.conn)
    return 0


cdef void h2_say(h2_stream *s, int code, const char *text) noexcept nogil:
    h2_end(s, code, text, <uint32_t>strlen(text))


cdef void h2_settle(h2_server *server) noexcept nogil:
    cdef h2_stream *s
    cdef h2_chunk *c
    cdef uint8_t *copy
    cdef uint32_t left
    while server.borrowers != NULL:
        s = server.borrowers
        borrowers_remove(s)
        c = s.out_head
        while c != NULL:
            if c.kind == CHUNK_BORROWED:
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
                c.kind = CHUNK_OWNED
                keep_answer(s, left)
            c = c.next
        check_unread(s)
