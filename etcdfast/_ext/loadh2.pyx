"""HTTP/2 client of the load generator: just what a closed loop of gRPC calls needs.

Requests are encoded by copying: the headers of a run never change, so after the first request of a
connection they are a few references into the peer's table. Responses are followed frame by frame
without being stored; only header blocks that are not mere table references reach nghttp2's decoder.
"""

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from etcdfast._ext.loadclients cimport fail_request, lose_request, mark_dirty, push_ready, settle
from etcdfast._ext.loadread cimport keep_content, on_message
from etcdfast._ext.loadrequest cimport fill_message, header_block, header_block_bound, message_bytes_of, method_of
from etcdfast._ext.loadstats cimport record_latency
from etcdfast._ext.loadstm cimport stm_answered, stm_build
from etcdfast._ext.loadstream cimport (
    LEAVE_FINISHED, LEAVE_RESET, LEAVE_SILENT, leave_stream, output_room, slot_find, slot_put, window_update,
)
from etcdfast._ext.loadtypes cimport (
    ACKNOWLEDGED_MAX, BLOCK_TOTAL_BYTES_MAX, CLIENT_INFLIGHT, CLIENT_READY, CONN_DRAINING, CONN_HANDSHAKE, CONN_OPEN, Client, Conn,
    END_COMPRESSION, END_DRAINED, END_FLOW, END_MEMORY, END_MESSAGE, END_NOT_HTTP2, END_PROTOCOL, ERROR_TEXT_BYTES,
    FAULT_COMPRESSED, FAULT_EXPIRED, FAULT_NONE, FLAG_ACK, FLAG_END_HEADERS, FLAG_END_STREAM, FLAG_PADDED,
    FLAG_PRIORITY, FRAME_BYTES_MAX, FRAME_CONTINUATION, FRAME_DATA, FRAME_GOAWAY, FRAME_HEADERS, FRAME_PING,
    FRAME_PUSH_PROMISE, FRAME_RST_STREAM, FRAME_SETTINGS, FRAME_WINDOW_UPDATE, GRPC_CANCELLED, GRPC_INTERNAL,
    GRPC_NOT_FOUND, GRPC_RESOURCE_EXHAUSTED, GRPC_STATUS_MISSING, GRPC_UNAVAILABLE, GRPC_UNIMPLEMENTED,
    GRPC_UNKNOWN, KEPT_BYTES_MAX, Load, MEMOS, Memo, OUT_HIGH_BYTES, READ_NOTHING, READ_WATCH, STEP_WAIT,
    StreamSlot, TABLE_EMPTY, TABLE_RESIZED, load_be32, nghttp2_hd_inflater, store_be32, store_frame_head,
)


cdef extern from "nghttp2/nghttp2.h" nogil:
    ctypedef struct nghttp2_nv:
        uint8_t* name
        uint8_t* value
        size_t namelen
        size_t valuelen
    int nghttp2_hd_inflate_new(nghttp2_hd_inflater** inflater_ptr)
    void nghttp2_hd_inflate_del(nghttp2_hd_inflater* inflater)
    ssize_t nghttp2_hd_inflate_hd2(nghttp2_hd_inflater* inflater, nghttp2_nv* nv_out, int* flags,
                                   const uint8_t* data, size_t length, int final)
    int nghttp2_hd_inflate_end_headers(nghttp2_hd_inflater* inflater)
    enum:
        NGHTTP2_HD_INFLATE_FINAL
        NGHTTP2_HD_INFLATE_EMIT


cdef int64_t WINDOW_MAX = 0x7fffffff
# return window in large steps: one frame per half GiB received
cdef uint32_t WINDOW_STEP = 0x20000000

cdef uint8_t PREFACE[64]
cdef uint32_t PREFACE_BYTES = 0


cdef void build_preface() noexcept:
    """Connection preface, SETTINGS (no push, largest stream window), window of the connection."""
    global PREFACE_BYTES
    cdef uint8_t* p = PREFACE
    memcpy(p, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24)
    store_frame_head(p + 24, 12, FRAME_SETTINGS, 0, 0)
    p[33] = 0
    p[34] = 2
    store_be32(p + 35, 0)
    p[39] = 0
    p[40] = 4
    store_be32(p + 41, <uint32_t>WINDOW_MAX)
    store_frame_head(p + 45, 4, FRAME_WINDOW_UPDATE, 0, 0)
    store_be32(p + 54, <uint32_t>(WINDOW_MAX - 65535))
    PREFACE_BYTES = 58


build_preface()


cdef int h2_start(Load* g, Conn* c) noexcept nogil:
    if nghttp2_hd_inflate_new(&c.inflater) != 0 or output_room(c, PREFACE_BYTES) < 0:
        return END_MEMORY
    memcpy(c.out, PREFACE, PREFACE_BYTES)
    c.out_bytes = PREFACE_BYTES
    c.state = CONN_HANDSHAKE
    c.next_stream_id = 1
    c.peer_streams_max = <uint32_t>-1
    c.peer_frame_bytes_max = 16384
    c.peer_table_bytes = 4096
    c.peer_initial_window = 65535
    c.send_window = 65535
    c.table_state = TABLE_EMPTY
    return 0


cdef void h2_stop(Conn* c) noexcept nogil:
    if c.inflater != NULL:
        nghttp2_hd_inflate_del(c.inflater)
        c.inflater = NULL
    c.out_bytes = c.out_sent = c.kept_bytes = c.data_left = c.padding_left = 0
    c.block_bytes = c.block_stream_id = c.unacked_bytes = 0
    c.data_client = -1
    c.sending_head = c.sending_tail = -1
    memset(c.memos, 0, sizeof(c.memos))
    memset(c.slots, 0, (c.slots_mask + 1) * sizeof(StreamSlot))
    c.active = 0


cdef int h2_fill(Load* g, Conn* c) noexcept nogil:
    cdef int rc
    cdef int32_t i
    if c.sending_head >= 0:
        rc = send_bodies(g, c)
        if rc < 0:
            return rc
    if c.state == CONN_OPEN:
        while (c.ready_head >= 0 and c.sending_head < 0 and c.state == CONN_OPEN
               and c.out_bytes - c.out_sent < OUT_HIGH_BYTES):
            i = c.ready_head
            if c.active >= c.peer_streams_max and not g.clients[i].stream_id:
                break
            c.ready_head = g.clients[i].next
            if c.ready_head < 0:
                c.ready_tail = -1
            # its stream may have been lost while it waited
            if g.clients[i].state != CLIENT_READY:
                continue
            rc = send_request(g, c, i)
            if rc < 0:
                return rc
    elif c.state == CONN_DRAINING and c.active == 0:
        return END_DRAINED
    return 0


cdef void finish(Load* g, Conn* c, int32_t i, int32_t grpc_status, const uint8_t* text, size_t text_bytes,
                 int64_t now) noexcept nogil:
    """The peer ended client i's stream: judge the answer."""
    cdef Client* client = &g.clients[i]
    leave_stream(g, c, i, LEAVE_FINISHED)
    if client.http_status != 200:
        fail_http(g, i, client.http_status, now)
    elif grpc_status == GRPC_STATUS_MISSING:
        fail_request(g, i, GRPC_INTERNAL, "server closed the stream without sending trailers", now)
    elif grpc_status != 0:
        lose_request(g, i, grpc_status, text, text_bytes, now)
    elif client.held:
        fail_request(g, i, GRPC_UNAVAILABLE, "the server ended a stream that was to stay open", now)
    elif client.fault == FAULT_EXPIRED:
        fail_request(g, i, GRPC_NOT_FOUND, "etcdserver: requested lease not found", now)
    elif client.fault == FAULT_COMPRESSED:
        fail_request(g, i, GRPC_INTERNAL, "the answer is compressed though no encoding was offered", now)
    elif client.prefix_bytes or client.message_left:
        fail_request(g, i, GRPC_INTERNAL, "the stream ended within a message", now)
    elif client.messages != 1 and not g.streaming:
        fail_request(g, i, GRPC_INTERNAL, "a unary call was not answered by exactly one message", now)
    elif client.stm != NULL:
        if client.stm.step == STEP_WAIT:
            fail_request(g, i, GRPC_UNAVAILABLE, "the server ended a watch of a lock", now)
        else:
            stm_answered(g, i, now)
    else:
        record_latency(g, client, now)
        if g.put_done_ns != NULL:
            g.put_done_ns[client.index] = now
        if g.acknowledged != NULL and client.index < ACKNOWLEDGED_MAX:
            g.acknowledged[client.index >> 3] |= <uint8_t>(1 << (client.index & 7))
        settle(g, i, now)


cdef void fail_http(Load* g, int32_t i, int status, int64_t now) noexcept nogil:
    cdef char text[64]
    snprintf(text, sizeof(text), "unexpected HTTP status code received from server: %d", status)
    fail_request(g, i, GRPC_UNIMPLEMENTED if status == 404 else GRPC_UNKNOWN, text, now)


cdef int open_stream(Load* g, Conn* c, int32_t i) noexcept nogil:
    """HEADERS of a new stream for client i."""
    cdef Client* client = &g.clients[i]
    cdef uint8_t* p
    cdef uint8_t* end
    cdef int rc = output_room(c, 9 + header_block_bound(g, client, &g.endpoints[c.endpoint]))
    if rc < 0:
        return rc
    client.stream_id = c.next_stream_id
    client.http_status = 0
    client.message_left = client.messages = client.unacked_bytes = client.content_bytes = 0
    client.prefix_bytes = 0
    client.send_window = c.peer_initial_window
    c.next_stream_id += 2
    c.active += 1
    slot_put(c, client.stream_id, i)
    if c.next_stream_id > g.stream_ids_max:
        c.state = CONN_DRAINING
    p = c.out + c.out_bytes
    end = header_block(g, c, method_of(g, client), p + 9)
    store_frame_head(p, <uint32_t>(end - p - 9), FRAME_HEADERS, FLAG_END_HEADERS, client.stream_id)
    c.out_bytes += <uint32_t>(end - p)
    return 0


cdef int send_request(Load* g, Conn* c, int32_t i) noexcept nogil:
    """Send client i's request, on its open stream or a new one; DATA as far as flow control lets it."""
    cdef Client* client = &g.clients[i]
    cdef uint32_t message_bytes
    cdef uint8_t* p
    cdef int rc
    if client.stm != NULL:
        stm_build(g, client)
    message_bytes = message_bytes_of(g, client)
    client.state = CLIENT_INFLIGHT
    client.fault = FAULT_NONE
    client.next = -1
    if g.put_sent_ns != NULL and client.reads != READ_WATCH:
        g.put_sent_ns[client.index] = client.start_ns
    if client.stream_id == 0:
        rc = open_stream(g, c, i)
        if rc < 0:
            return rc
    if (message_bytes <= FRAME_BYTES_MAX and message_bytes <= c.peer_frame_bytes_max
            and message_bytes <= c.send_window and message_bytes <= client.send_window):
        rc = output_room(c, 9 + message_bytes)
        if rc < 0:
            return rc
        p = c.out + c.out_bytes
        store_frame_head(p, message_bytes, FRAME_DATA, 0 if client.held else FLAG_END_STREAM, client.stream_id)
        fill_message(g, i, client, p + 9)
        c.out_bytes += 9 + message_bytes
        c.send_window -= message_bytes
        client.send_window -= message_bytes
        return 0
    client.body = <uint8_t*>malloc(message_bytes)
    if client.body == NULL:
        return END_MEMORY
    fill_message(g, i, client, client.body)
    client.body_bytes = message_bytes
    client.body_sent = 0
    if c.sending_head < 0:
        c.sending_head = i
    else:
        g.clients[c.sending_tail].next = i
    c.sending_tail = i
    return send_bodies(g, c)


cdef int send_bodies(Load* g, Conn* c) noexcept nogil:
    """Send on what flow control held back, in order; stops when the connection's window is used up."""
    cdef int32_t i = c.sending_head
    cdef int32_t before = -1
    cdef int32_t following
    cdef Client* client
    cdef int64_t part
    cdef int rc
    while i >= 0:
        client = &g.clients[i]
        following = client.next
        while True:
            part = min(<int64_t>(client.body_bytes - client.body_sent), <int64_t>c.peer_frame_bytes_max)
            part = min(min(part, <int64_t>FRAME_BYTES_MAX), min(client.send_window, c.send_window))
            if part <= 0 or c.out_bytes - c.out_sent >= OUT_HIGH_BYTES:
                break
            rc = output_room(c, 9 + <uint32_t>part)
            if rc < 0:
                return rc
            store_frame_head(c.out + c.out_bytes, <uint32_t>part, FRAME_DATA,
                             FLAG_END_STREAM if client.body_sent + part == client.body_bytes and not client.held else 0,
                             client.stream_id)
            memcpy(c.out + c.out_bytes + 9, client.body + client.body_sent, part)
            c.out_bytes += 9 + <uint32_t>part
            c.send_window -= part
            client.send_window -= part
            client.body_sent += <uint32_t>part
            if client.body_sent == client.body_bytes:
                break
        if client.body_sent == client.body_bytes:
            free(client.body)
            client.body = NULL
            if before < 0:
                c.sending_head = following
            else:
                g.clients[before].next = following
            if c.sending_tail == i:
                c.sending_tail = before
        else:
            before = i
        if c.send_window <= 0 or c.out_bytes - c.out_sent >= OUT_HIGH_BYTES:
            return 0
        i = following
    return 0


cdef int keep(Conn* c, const uint8_t* p, size_t n) noexcept nogil:
    if n > KEPT_BYTES_MAX:
        return END_PROTOCOL
    if c.kept == NULL:
        c.kept = <uint8_t*>malloc(KEPT_BYTES_MAX)
        if c.kept == NULL:
            return END_MEMORY
    memcpy(c.kept, p, n)
    c.kept_bytes = <uint32_t>n
    return 0


cdef int h2_receive(Load* g, Conn* c, const uint8_t* p, size_t n, int64_t now) noexcept nogil:
    """Handle every whole frame of p[:n], and DATA as far as it goes; keep the rest."""
    cdef uint32_t length, stream_id
    cdef size_t part
    cdef uint8_t kind, flags
    cdef int rc
    while True:
        if c.data_left:
            part = min(n, <size_t>c.data_left)
            if part == 0:
                return 0
            rc = on_data(g, c, p, part, now)
            if rc < 0:
                return rc
            c.data_left -= <uint32_t>part
            p += part
            n -= part
            if c.data_left == 0 and c.padding_left == 0:
                end_data(g, c, now)
            continue
        if c.padding_left:
            part = min(n, <size_t>c.padding_left)
            if part == 0:
                return 0
            c.padding_left -= <uint32_t>part
            p += part
            n -= part
            if c.padding_left == 0:
                end_data(g, c, now)
            continue
        if n < 9:
            return keep(c, p, n) if n else 0
        length = (<uint32_t>p[0] << 16) | (<uint32_t>p[1] << 8) | p[2]
        kind = p[3]
        flags = p[4]
        stream_id = load_be32(p + 5) & 0x7fffffff
        if c.state == CONN_HANDSHAKE and kind != FRAME_SETTINGS:
            return END_NOT_HTTP2
        if length > FRAME_BYTES_MAX:
            return END_PROTOCOL
        if c.block_stream_id and (kind != FRAME_CONTINUATION or stream_id != c.block_stream_id):
            return END_PROTOCOL
        if kind == FRAME_DATA:
            if flags & FLAG_PADDED and n < 10:
                return keep(c, p, n)
            rc = begin_data(g, c, p + 9, length, flags, stream_id)
            if rc < 0:
                return rc
            p += 9 + (1 if flags & FLAG_PADDED else 0)
            n -= 9 + (1 if flags & FLAG_PADDED else 0)
            if c.data_left == 0 and c.padding_left == 0:
                end_data(g, c, now)
            continue
        if n < 9 + <size_t>length:
            return keep(c, p, n)
        rc = on_frame(g, c, kind, flags, stream_id, p + 9, length, now)
        if rc < 0:
            return rc
        p += 9 + length
        n -= 9 + length


cdef int begin_data(Load* g, Conn* c, const uint8_t* payload, uint32_t length, uint8_t flags,
                    uint32_t stream_id) noexcept nogil:
    cdef uint32_t padding = 0
    cdef uint32_t taken = length
    cdef Client* client
    cdef int rc
    if stream_id == 0 or stream_id >= c.next_stream_id:
        return END_PROTOCOL
    if flags & FLAG_PADDED:
        if length == 0 or payload[0] >= length:
            return END_PROTOCOL
        padding = payload[0]
        length -= 1 + padding
    c.data_left = length
    c.padding_left = padding
    c.data_ends_stream = flags & FLAG_END_STREAM
    c.data_client = slot_find(c, stream_id)
    # flow control counts padding too, and streams we no longer know
    c.unacked_bytes += taken
    if c.unacked_bytes >= WINDOW_STEP:
        rc = window_update(g, c, 0, c.unacked_bytes)
        if rc < 0:
            return rc
        c.unacked_bytes = 0
    if c.data_client >= 0:
        client = &g.clients[c.data_client]
        client.unacked_bytes += taken
        if client.unacked_bytes >= WINDOW_STEP:
            rc = window_update(g, c, stream_id, client.unacked_bytes)
            if rc < 0:
                return rc
            client.unacked_bytes = 0
    return 0


cdef int on_data(Load* g, Conn* c, const uint8_t* p, size_t n, int64_t now) noexcept nogil:
    """Follow the gRPC messages in a piece of a DATA payload; most are counted, some are read."""
    cdef Client* client
    cdef int32_t i = c.data_client
    cdef uint32_t part
    cdef int rc
    g.response_bytes += n
    if i < 0:
        return 0
    client = &g.clients[i]
    while n:
        if client.message_left:
            part = <uint32_t>min(n, <size_t>client.message_left)
            client.message_left -= part
            if client.reads != READ_NOTHING:
                rc = 0
                if client.content_bytes or client.message_left:
                    rc = keep_content(client, p, part, client.content_bytes + part + client.message_left)
                    if rc == 0 and client.message_left == 0:
                        rc = on_message(g, i, client.content, client.content_bytes, now)
                        client.content_bytes = 0
                else:
                    rc = on_message(g, i, p, part, now)
                if rc < 0:
                    return rc
                if rc > 0:
                    # a stream that would stay open has told what it was opened for
                    leave_stream(g, c, i, LEAVE_RESET)
                    stm_answered(g, i, now)
                    return 0
            p += part
            n -= part
            if client.message_left == 0:
                client.messages += 1
            continue
        while n and client.prefix_bytes < 5:
            client.prefix[client.prefix_bytes] = p[0]
            client.prefix_bytes += 1
            p += 1
            n -= 1
        if client.prefix_bytes == 5:
            client.prefix_bytes = 0
            if client.prefix[0]:
                client.fault = FAULT_COMPRESSED
                if client.reads != READ_NOTHING:
                    return END_MESSAGE
            client.message_left = load_be32(client.prefix + 1)
            if client.message_left == 0:
                client.messages += 1
                if client.reads != READ_NOTHING:
                    rc = on_message(g, i, p, 0, now)
                    if rc < 0:
                        return rc
    return 0


cdef void end_data(Load* g, Conn* c, int64_t now) noexcept nogil:
    cdef int32_t i = c.data_client
    c.data_client = -1
    if i >= 0 and c.data_ends_stream:
        finish(g, c, i, GRPC_STATUS_MISSING, NULL, 0, now)


cdef int on_frame(Load* g, Conn* c, uint8_t kind, uint8_t flags, uint32_t stream_id, const uint8_t* p,
                  uint32_t length, int64_t now) noexcept nogil:
    cdef uint32_t padding
    cdef int32_t i
    cdef int rc
    cdef int64_t increment
    if kind == FRAME_HEADERS:
        if stream_id == 0 or stream_id >= c.next_stream_id:
            return END_PROTOCOL
        if flags & FLAG_PADDED:
            if length == 0 or p[0] >= length:
                return END_PROTOCOL
            padding = p[0]
            p += 1
            length -= 1 + padding
        if flags & FLAG_PRIORITY:
            if length < 5:
                return END_PROTOCOL
            p += 5
            length -= 5
        if flags & FLAG_END_HEADERS:
            return on_block(g, c, stream_id, flags & FLAG_END_STREAM, p, length, now)
        c.block_stream_id = stream_id
        c.block_ends_stream = flags & FLAG_END_STREAM
        return keep_block(c, p, length)
    if kind == FRAME_CONTINUATION:
        if c.block_stream_id == 0:
            return END_PROTOCOL
        rc = keep_block(c, p, length)
        if rc == 0 and flags & FLAG_END_HEADERS:
            rc = on_block(g, c, stream_id, c.block_ends_stream, c.block, c.block_bytes, now)
            c.block_bytes = c.block_stream_id = 0
        return rc
    if kind == FRAME_SETTINGS:
        return on_settings(g, c, flags, stream_id, p, length)
    if kind == FRAME_PING:
        if length != 8 or stream_id:
            return END_PROTOCOL
        if flags & FLAG_ACK:
            return 0
        rc = output_room(c, 17)
        if rc == 0:
            store_frame_head(c.out + c.out_bytes, 8, FRAME_PING, FLAG_ACK, 0)
            memcpy(c.out + c.out_bytes + 9, p, 8)
            c.out_bytes += 17
            mark_dirty(g, c)
        return rc
    if kind == FRAME_WINDOW_UPDATE:
        if length != 4:
            return END_PROTOCOL
        increment = load_be32(p) & 0x7fffffff
        if stream_id == 0:
            c.send_window += increment
            if increment == 0 or c.send_window > WINDOW_MAX:
                return END_FLOW
        else:
            i = slot_find(c, stream_id)
            if i < 0 or g.clients[i].body == NULL and not g.clients[i].held:
                return 0
            g.clients[i].send_window += increment
            if increment == 0 or g.clients[i].send_window > WINDOW_MAX:
                return END_FLOW
        if c.sending_head >= 0:
            mark_dirty(g, c)
        return 0
    if kind == FRAME_RST_STREAM:
        if length != 4 or stream_id == 0:
            return END_PROTOCOL
        i = slot_find(c, stream_id)
        if i >= 0:
            on_reset(g, c, i, load_be32(p), now)
        return 0
    if kind == FRAME_GOAWAY:
        if length < 8 or stream_id:
            return END_PROTOCOL
        on_goaway(g, c, load_be32(p) & 0x7fffffff)
        return 0
    if kind == FRAME_PUSH_PROMISE:
        return END_PROTOCOL
    return 0


cdef int keep_block(Conn* c, const uint8_t* p, uint32_t length) noexcept nogil:
    if c.block == NULL:
        c.block = <uint8_t*>malloc(BLOCK_TOTAL_BYTES_MAX)
        if c.block == NULL:
            return END_MEMORY
    if c.block_bytes + length > BLOCK_TOTAL_BYTES_MAX:
        return END_PROTOCOL
    memcpy(c.block + c.block_bytes, p, length)
    c.block_bytes += length
    return 0


cdef int on_settings(Load* g, Conn* c, uint8_t flags, uint32_t stream_id, const uint8_t* p,
                     uint32_t length) noexcept nogil:
    cdef uint32_t at, value
    cdef int name, rc
    cdef int32_t i
    if stream_id or length % 6 or (flags & FLAG_ACK and length):
        return END_PROTOCOL
    if flags & FLAG_ACK:
        return 0
    for at in range(0, length, 6):
        name = (<int>p[at] << 8) | p[at + 1]
        value = load_be32(p + at + 2)
        if name == 1:
            if value != c.peer_table_bytes:
                c.peer_table_bytes = value
                c.table_state = TABLE_RESIZED
        elif name == 3:
            c.peer_streams_max = value
        elif name == 4:
            if value > WINDOW_MAX:
                return END_FLOW
            for i in range(<int32_t>g.client_count):
                if g.clients[i].stream_id and &g.conns[g.clients[i].conn] == c:
                    g.clients[i].send_window += <int64_t>value - c.peer_initial_window
            c.peer_initial_window = value
        elif name == 5:
            if value < 16384 or value > 16777215:
                return END_PROTOCOL
            c.peer_frame_bytes_max = value
    rc = output_room(c, 9)
    if rc < 0:
        return rc
    store_frame_head(c.out + c.out_bytes, 0, FRAME_SETTINGS, FLAG_ACK, 0)
    c.out_bytes += 9
    if c.state == CONN_HANDSHAKE:
        c.state = CONN_OPEN
        c.backoff_ns = 0
        g.connecting -= 1
        g.open_conns += 1
    mark_dirty(g, c)
    return 0


cdef void on_reset(Load* g, Conn* c, int32_t i, uint32_t code, int64_t now) noexcept nogil:
    cdef char text[100]
    cdef int32_t status = GRPC_INTERNAL
    if code == 7:
        status = GRPC_UNAVAILABLE
    elif code == 8:
        status = GRPC_CANCELLED
    elif code == 11:
        status = GRPC_RESOURCE_EXHAUSTED
    snprintf(text, sizeof(text), "stream terminated by RST_STREAM with HTTP/2 error code %u", code)
    leave_stream(g, c, i, LEAVE_SILENT)
    fail_request(g, i, status, text, now)


cdef void on_goaway(Load* g, Conn* c, uint32_t last_stream_id) noexcept nogil:
    """Take no new stream here; what the peer will not handle is sent again on the next connection."""
    cdef uint32_t k = <uint32_t>(c - g.conns)
    cdef int32_t i
    if c.state == CONN_OPEN:
        c.state = CONN_DRAINING
    for i in range(<int32_t>g.client_count):
        if g.clients[i].conn != k or g.clients[i].stream_id <= last_stream_id:
            continue
        leave_stream(g, c, i, LEAVE_FINISHED)
        if g.clients[i].state == CLIENT_INFLIGHT:
            push_ready(g, i)
    mark_dirty(g, c)


cdef int on_block(Load* g, Conn* c, uint32_t stream_id, bint ends_stream, const uint8_t* p, uint32_t length,
                  int64_t now) noexcept nogil:
    """Response headers or trailers of a stream."""
    cdef int16_t http_status = 0
    cdef int32_t grpc_status = GRPC_STATUS_MISSING
    cdef uint8_t text[240]
    cdef uint32_t text_bytes = 0
    cdef uint64_t block = 0
    cdef bint references = 0 < length <= 8
    cdef uint32_t at
    cdef int k
    cdef int32_t i
    cdef Memo* memo = NULL
    if references:
        for at in range(length):
            # a one-byte reference into the tables; 0xff begins a longer one
            references = references and p[at] >= 0x80 and p[at] != 0xff
            block = (block << 8) | p[at]
    if references:
        for k in range(MEMOS):
            if c.memos[k].block == block and c.memos[k].block_bytes == length:
                memo = &c.memos[k]
                http_status = memo.http_status
                grpc_status = memo.grpc_status
                break
    if memo == NULL:
        if not references:
            # it may have changed the table
            memset(c.memos, 0, sizeof(c.memos))
        if inflate(c, p, length, &http_status, &grpc_status, text, &text_bytes) < 0:
            return END_COMPRESSION
        if references and grpc_status <= 0:
            memo = &c.memos[c.memo_next]
            c.memo_next = (c.memo_next + 1) % MEMOS
            memo.block = block
            memo.block_bytes = <uint16_t>length
            memo.http_status = http_status
            memo.grpc_status = <int16_t>grpc_status
    i = slot_find(c, stream_id)
    if i < 0:
        return 0
    if http_status >= 200:
        g.clients[i].http_status = http_status
    if ends_stream:
        finish(g, c, i, grpc_status, text, text_bytes, now)
    return 0


cdef int inflate(Conn* c, const uint8_t* p, uint32_t length, int16_t* http_status, int32_t* grpc_status,
                 uint8_t* text, uint32_t* text_bytes) noexcept nogil:
    cdef nghttp2_nv nv
    cdef int flags
    cdef ssize_t used
    cdef int32_t number
    while True:
        flags = 0
        used = nghttp2_hd_inflate_hd2(c.inflater, &nv, &flags, p, length, 1)
        if used < 0:
            return -1
        p += used
        length -= <uint32_t>used
        if flags & NGHTTP2_HD_INFLATE_EMIT:
            if nv.namelen == 7 and memcmp(nv.name, b":status", 7) == 0:
                number = _decimal(nv.value, nv.valuelen)
                http_status[0] = <int16_t>number if 100 <= number <= 999 else 1
            elif nv.namelen == 11 and memcmp(nv.name, b"grpc-status", 11) == 0:
                number = _decimal(nv.value, nv.valuelen)
                grpc_status[0] = number if number >= 0 else GRPC_UNKNOWN
            elif nv.namelen == 12 and memcmp(nv.name, b"grpc-message", 12) == 0:
                text_bytes[0] = <uint32_t>min(nv.valuelen, <size_t>ERROR_TEXT_BYTES)
                memcpy(text, nv.value, text_bytes[0])
        if flags & NGHTTP2_HD_INFLATE_FINAL:
            nghttp2_hd_inflate_end_headers(c.inflater)
            return 0
        if not flags & NGHTTP2_HD_INFLATE_EMIT and length == 0:
            return -1


cdef inline int32_t _decimal(const uint8_t* p, size_t n) noexcept nogil:
    """Value of 1 to 4 decimal digits, or -1."""
    cdef int32_t value = 0
    cdef size_t k
    if n == 0 or n > 4:
        return -1
    for k in range(n):
        if p[k] < 48 or p[k] > 57:
            return -1
        value = value * 10 + p[k] - 48
    return value
