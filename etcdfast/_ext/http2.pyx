"""HTTP/2 sessions on nghttp2: see http2.pxd. nghttp2 keeps the protocol's state machine, h2guard.pxd the
limits it lacks, h2request and h2stream the streams."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset, strlen

from etcdfast._ext.blockpool cimport block_calloc, block_free, block_malloc, block_pool_free, block_realloc
from etcdfast._ext.bidimap cimport bidi_add, bidi_find
from etcdfast._ext.grpcwire cimport (
    GRPC_INTERNAL, GRPC_INVALID_ARGUMENT, GRPC_UNIMPLEMENTED, grpc_timeout_ns, put_be32,
)
from etcdfast._ext.h2budget cimport hold_text, weight_unlink
from etcdfast._ext.h2guard cimport H2_HEADER_BYTES_MAX, guard_init, guard_reset, guard_scan
from etcdfast._ext.h2pen cimport spare_free
from etcdfast._ext.h2request cimport h2_end_request, h2_keep_header, h2_keep_request, h2_put_header, h2_take_data
from etcdfast._ext.h2stream cimport h2_drop_request, h2_drop_stream, h2_end, h2_give_window, h2_new_stream, h2_send_data
from etcdfast._ext.h2token cimport token_close, token_note
from etcdfast._ext.h2types cimport *
from etcdfast._ext.meters cimport meter_version
from etcdfast._ext.nghttp2 cimport *

cdef enum:
    NOTE_BYTES_MAX = 1024
    NS_PER_MS = 1000000

cdef enum:
    SEEN_POST = 1
    SEEN_CONTENT_TYPE = 2
    SEEN_TOKEN = 4             # metadata "token", which goes before "authorization"
    SEEN_AUTHORIZATION = 8


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
        hold_text(s, <uint32_t>size)
        memcpy(s.note, text, size)
        s.note_size = <uint32_t>size


# ---- requests

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
    if s.flags & STREAM_PLAIN_HEAD:
        s.flags |= STREAM_PLAIN | STREAM_OPENED
        s.whole = s.have
        told_add(s)
    elif s.http_status == 405 or not s.seen & SEEN_POST:
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
        if conn.server.bidi_methods >> s.method & 1:
            if bidi_add(conn, s) < 0:
                set_fatal(conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
                return
            s.flags |= STREAM_BIDI
            if conn.server.counted_methods >> s.method & 1:
                s.flags |= STREAM_CREDITED | STREAM_COUNTED
        s.flags |= STREAM_OPENED
        conn.server.on_open(conn, s)


# ---- nghttp2's callbacks

cdef int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept nogil:
    cdef h2_conn *conn = <h2_conn *>user
    cdef h2_stream *s
    conn.header_bytes = conn.early_size = 0
    conn.open = NULL
    if frame.hd.type != NGHTTP2_HEADERS or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    s = h2_new_stream(conn, frame.hd.stream_id)
    if s == NULL:
        set_fatal(conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
        return NGHTTP2_ERR_CALLBACK_FAILURE
    nghttp2_session_set_stream_user_data(session, s.id, s)
    conn.open = s
    conn.last_stream = s.id
    return 0


cdef void note_plain(h2_conn *conn, h2_stream *s, const uint8_t *name, size_t name_size, const uint8_t *value,
                     size_t size) noexcept nogil:
    """Headers of a request that looks like no gRPC: kept until its content type says what it is.

    A path that is no RPC's begins it; pseudo headers before it have waited in conn.early.
    """
    if s.flags & STREAM_PLAIN_HEAD:
        h2_keep_header(s, name, name_size, value, size)
    elif name_size == 5 and memcmp(name, b":path", 5) == 0:
        if s.method == 0:
            s.flags |= STREAM_PLAIN_HEAD
            h2_keep_header(s, NULL, 0, conn.early, conn.early_size)
            h2_keep_header(s, name, name_size, value, size)
    elif name[0] == 58 and conn.early_size + name_size + size + 8 <= H2_EARLY_BYTES:
        conn.early_size += h2_put_header(conn.early + conn.early_size, name, name_size, value, size)


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
        if route != NULL and route.method and route.served and not conn.grpc_off:
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
            if s.flags & STREAM_PLAIN_HEAD:
                s.flags &= ~<uint32_t>STREAM_PLAIN_HEAD
                h2_drop_request(s)
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
    elif name_size == 18 and memcmp(name, b"client-api-version", 18) == 0:
        s.version = meter_version(value, size)
    elif name_size == 5 and memcmp(name, b"token", 5) == 0:
        if not s.seen & SEEN_TOKEN:
            s.seen |= SEEN_TOKEN
            token_note(conn, s, value, size)
    elif name_size == 13 and memcmp(name, b"authorization", 13) == 0:
        if not s.seen & (SEEN_TOKEN | SEEN_AUTHORIZATION):
            s.seen |= SEEN_AUTHORIZATION
            token_note(conn, s, value, size)
    elif name_size == 9 and memcmp(name, b"hasleader", 9) == 0:
        if size == 4 and memcmp(value, b"true", 4) == 0:
            s.flags &= ~<uint32_t>STREAM_NO_LEADER_OK
    if conn.serves_plain and s.method == 0 and not s.seen & SEEN_CONTENT_TYPE:
        note_plain(conn, s, name, name_size, value, size)
        if conn.fatal:
            return NGHTTP2_ERR_CALLBACK_FAILURE
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
                h2_end_request(conn, s)
        elif conn.bidi != NULL:
            s = bidi_find(conn, <uint32_t>frame.hd.stream_id)
            if s != NULL:
                s.window_used += <uint32_t>frame.hd.length   # with the padding
                h2_give_window(s)
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
            h2_end_request(conn, s)
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
        h2_take_data(conn, s, data, size)
        if conn.fatal:
            return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept nogil:
    cdef h2_conn *conn = <h2_conn *>user
    cdef h2_stream *s
    if frame.hd.type == NGHTTP2_DATA:
        if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            s = <h2_stream *>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
            if s != NULL and not s.flags & STREAM_REQUEST_ENDED:
                nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, s.id, NGHTTP2_NO_ERROR)
    elif frame.hd.type == NGHTTP2_HEADERS:
        conn.ping_reset = True
        if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            s = <h2_stream *>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
            if s != NULL and not s.flags & STREAM_REQUEST_ENDED:
                # Answered before the request ended: the client may stop sending.
                nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, s.id, NGHTTP2_NO_ERROR)
    elif frame.hd.type == NGHTTP2_RST_STREAM:
        # A client that makes us reset its streams costs as much as one that resets them itself.
        if frame.rst_stream.error_code not in (NGHTTP2_NO_ERROR, NGHTTP2_CANCEL, NGHTTP2_REFUSED_STREAM):
            if not guard_reset(&conn.guard):
                set_fatal(conn, NGHTTP2_ENHANCE_YOUR_CALM, b"too_many_resets")
    return 0


cdef int on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t code, void *user) noexcept nogil:
    cdef h2_stream *s = <h2_stream *>nghttp2_session_get_stream_user_data(session, stream_id)
    if s != NULL:
        nghttp2_session_set_stream_user_data(session, stream_id, NULL)
        h2_drop_stream(s)
    return 0


# ---- connections

cdef int h2_server_init(h2_server *server) noexcept nogil:
    """Precondition: limits, routes, events and counters are set. 0, or -1 out of memory."""
    server.mem.mem_user_data = &server.pool
    server.mem.malloc = block_malloc
    server.mem.free = block_free
    server.mem.calloc = block_calloc
    server.mem.realloc = block_realloc
    server.out = <uint8_t *>malloc(H2_OUT_BYTES + H2_OUT_SLACK_BYTES)
    if server.out == NULL or nghttp2_session_callbacks_new(&server.callbacks) != 0 or \
            nghttp2_option_new(&server.option) != 0:
        return -1
    nghttp2_session_callbacks_set_on_frame_recv_callback(server.callbacks, on_frame_recv)
    nghttp2_session_callbacks_set_on_frame_send_callback(server.callbacks, on_frame_send)
    nghttp2_session_callbacks_set_on_begin_headers_callback(server.callbacks, on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(server.callbacks, on_header)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(server.callbacks, on_data_chunk)
    nghttp2_session_callbacks_set_on_stream_close_callback(server.callbacks, on_stream_close)
    nghttp2_session_callbacks_set_send_data_callback(server.callbacks, h2_send_data)
    # Windows follow what is buffered here, see serve_grants.
    nghttp2_option_set_no_auto_window_update(server.option, 1)
    # A closed stream is of no use to a server, and kept ones are memory a client can claim.
    nghttp2_option_set_no_closed_streams(server.option, 1)
    # Its own limit on resets knows nothing of answered calls and would end honest connections.
    nghttp2_leave_resets_to_us(server.option)
    return 0


cdef void h2_server_free(h2_server *server) noexcept nogil:
    cdef h2_stream *s
    if server.callbacks != NULL:
        nghttp2_session_callbacks_del(server.callbacks)
    if server.option != NULL:
        nghttp2_option_del(server.option)
    free(server.out)
    while server.free_streams != NULL:
        s = server.free_streams
        server.free_streams = s.list_next
        free(s)
    spare_free(server)
    block_pool_free(&server.pool)


cdef h2_conn *h2_open(h2_server *server, void *owner) noexcept nogil:
    """NULL when out of memory."""
    cdef nghttp2_settings_entry settings[3]
    cdef h2_conn *conn = <h2_conn *>calloc(1, sizeof(h2_conn))
    if conn == NULL:
        return NULL
    conn.server = server
    conn.owner = owner
    guard_init(&conn.guard, server.now_ns)
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


cdef h2_conn *h2_open_calls(h2_server *server, void *owner) noexcept nogil:
    cdef h2_conn *conn = <h2_conn *>calloc(1, sizeof(h2_conn))
    if conn != NULL:
        conn.server = server
        conn.owner = owner
        guard_init(&conn.guard, server.now_ns)
    return conn


cdef void h2_close(h2_conn *conn) noexcept nogil:
    cdef h2_conn **link
    if conn.fatal:
        conn.server.counters.goaways[conn.fatal - 1 & 15] += 1
    while conn.streams != NULL:
        if conn.session != NULL:
            nghttp2_session_set_stream_user_data(conn.session, conn.streams.id, NULL)
        h2_drop_stream(conn.streams)
    token_close(conn)
    nghttp2_session_del(conn.session)
    if conn.dirty:
        link = &conn.server.dirty
        while link[0] != conn:
            link = &link[0].dirty_next
        link[0] = conn.dirty_next
    weight_unlink(conn)
    conn.server.held_bytes -= conn.held_bytes   # what the owner added
    free(conn)


cdef int h2_feed(h2_conn *conn, const uint8_t *data, uint32_t size) noexcept nogil:
    cdef ssize_t took
    cdef const char *why
    conn.server.counters.received_bytes += size
    if conn.fatal:
        return -1
    conn.guard.now_ns = conn.server.now_ns
    why = guard_scan(&conn.guard, data, size)
    if why != NULL:
        set_fatal(conn, NGHTTP2_ENHANCE_YOUR_CALM, why)
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
            conn.broken = True
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
    if conn.broken:
        return -1
    while server.out_size < H2_OUT_BYTES:
        n = nghttp2_session_mem_send(conn.session, &data)
        if n <= 0:
            break
        if n > H2_OUT_SLACK_BYTES:
            n = NGHTTP2_ERR_NOMEM
            break
        memcpy(server.out + server.out_size, data, n)
        server.out_size += <uint32_t>n
    else:
        n = 0
    server.counters.sent_bytes += server.out_size
    if n < 0:
        conn.broken = True
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
    if not stream_id & 1:
        return bidi_find(conn, stream_id)   # a call of Python's: clients have odd ids
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
