"""Requests out of DATA frames: see h2request.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport malloc, realloc
from libc.string cimport memcpy

from etcdfast._ext.grpcwire cimport GRPC_INTERNAL, GRPC_PREFIX_BYTES, GRPC_RESOURCE_EXHAUSTED, be32, decimal, put_be32
from etcdfast._ext.h2budget cimport hold
from etcdfast._ext.h2stream cimport h2_end, h2_say, h2_taken, h2_want_grant
from etcdfast._ext.h2types cimport *
from etcdfast._ext.nghttp2 cimport NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_INTERNAL_ERROR

cdef enum:
    BUFFER_BYTES_LEAST = 512


cdef inline void count_buffer(h2_stream *s, uint32_t room) noexcept nogil:
    """The stream's buffer has grown to `room`."""
    cdef h2_conn *conn = s.conn
    cdef uint32_t more = room - s.room
    s.room = room
    conn.request_bytes += more
    hold(conn, more)
    conn.server.counters.request_buffer_bytes += more
    if conn.request_bytes > H2_REQUEST_BUFFER_MAX:
        set_fatal(conn, NGHTTP2_ENHANCE_YOUR_CALM, b"too_many_buffered_requests")


cdef bint add_bytes(h2_stream *s, const uint8_t *data, size_t size, uint64_t most) noexcept nogil:
    """Append to the buffer, of which `most` bytes are known to come; False when the connection became fatal."""
    cdef uint64_t room
    cdef uint8_t *grown
    if s.have + size > s.room:
        room = s.room * 2 if s.room else BUFFER_BYTES_LEAST
        if room < s.have + size:
            room = s.have + size
        if s.have + size <= most < room:
            room = most
        grown = <uint8_t *>realloc(s.buf, room)
        if grown == NULL:
            set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
            return False
        s.buf = grown
        count_buffer(s, <uint32_t>room)
        if s.conn.fatal:
            return False
    memcpy(s.buf + s.have, data, size)
    s.have += <uint32_t>size
    return True


cdef bint check_prefix(h2_stream *s, const uint8_t *prefix) noexcept nogil:
    """Whether a message may begin like that; if not the call is answered."""
    cdef uint32_t size = be32(prefix + 1)
    cdef uint32_t most = s.conn.server.message_bytes_max
    cdef char text[128]
    cdef size_t n
    if prefix[0] > 1:
        memcpy(text, b"grpc: received unexpected payload format ", 41)
        n = 41 + decimal(<uint8_t *>text + 41, prefix[0])
        h2_end(s, GRPC_INTERNAL, text, <uint32_t>n)
        return False
    if prefix[0] == 1:
        h2_say(s, GRPC_INTERNAL, b"grpc: compressed flag set with identity or empty encoding")
        return False
    if size > most:
        memcpy(text, b"grpc: received message larger than max (", 40)
        n = 40 + decimal(<uint8_t *>text + 40, size)
        memcpy(text + n, b" vs. ", 5)
        n += 5
        n += decimal(<uint8_t *>text + n, most)
        text[n] = 41
        h2_end(s, GRPC_RESOURCE_EXHAUSTED, text, <uint32_t>n + 1)
        return False
    return True


# ---- requests that are not gRPC: headers as (name size, value size, name, value), sizes in 4 bytes, then the body

cdef uint32_t h2_put_header(uint8_t *out, const uint8_t *name, size_t name_size, const uint8_t *value,
                            size_t size) noexcept nogil:
    put_be32(out, <uint32_t>name_size)
    put_be32(out + 4, <uint32_t>size)
    memcpy(out + 8, name, name_size)
    memcpy(out + 8 + name_size, value, size)
    return <uint32_t>(8 + name_size + size)


cdef void h2_keep_header(h2_stream *s, const uint8_t *name, size_t name_size, const uint8_t *value,
                         size_t size) noexcept nogil:
    cdef uint8_t sizes[8]
    if name == NULL:
        add_bytes(s, value, size, 0)
        return
    put_be32(sizes, <uint32_t>name_size)
    put_be32(sizes + 4, <uint32_t>size)
    if add_bytes(s, sizes, 8, 0) and add_bytes(s, name, name_size, 0):
        add_bytes(s, value, size, 0)


# ---- one message

cdef void too_many_messages(h2_stream *s) noexcept nogil:
    h2_say(s, GRPC_INTERNAL, b"cardinality violation: received multiple request messages for non-client-streaming RPC")


cdef void take_single(h2_conn *conn, h2_stream *s, const uint8_t *data, size_t size) noexcept nogil:
    """Bytes of the request, which is one prefixed message."""
    cdef uint32_t need
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
        n = need - s.have
        if n > size:
            n = size
        if not add_bytes(s, data, n, need if need > GRPC_PREFIX_BYTES else 0):
            return
        data += n
        size -= n
        if s.have == GRPC_PREFIX_BYTES and need == GRPC_PREFIX_BYTES:
            if not check_prefix(s, s.buf):
                return
            if be32(s.buf + 1) + GRPC_PREFIX_BYTES > H2_STREAM_WINDOW:
                h2_want_grant(s)


cdef void h2_keep_request(h2_stream *s) noexcept nogil:
    cdef const uint8_t *data = s.loan
    if data == NULL:
        return
    if s.conn.loaner == s:
        s.conn.loaner = NULL
    s.loan = NULL
    add_bytes(s, data, s.loan_size, s.loan_size)


# ---- many messages

cdef void refuse_prefix(h2_stream *s) noexcept nogil:
    s.conn.server.on_refused(s.conn, s)


cdef void take_many(h2_conn *conn, h2_stream *s, const uint8_t *data, size_t size) noexcept nogil:
    """Bytes of a bidi stream: messages one after another, wherever frames begin and end."""
    cdef uint32_t begun, need
    cdef size_t n
    while size:
        begun = s.have - s.whole     # bytes of a message whose end has not come
        if begun == 0 and size >= GRPC_PREFIX_BYTES:
            if not check_prefix(s, data):
                refuse_prefix(s)
                return
            need = be32(data + 1) + GRPC_PREFIX_BYTES
            if size >= need:
                if not conn.server.on_message(conn, s, data + GRPC_PREFIX_BYTES, need - GRPC_PREFIX_BYTES):
                    if not add_bytes(s, data, need, 0):
                        return
                    s.whole = s.have
                if s.flags & STREAM_ANSWERED:
                    return
                data += need
                size -= need
                continue
        need = GRPC_PREFIX_BYTES
        if begun >= GRPC_PREFIX_BYTES:
            need = be32(s.buf + s.whole + 1) + GRPC_PREFIX_BYTES
        n = need - begun
        if n > size:
            n = size
        if not add_bytes(s, data, n, s.whole + need if need > GRPC_PREFIX_BYTES else 0):
            return
        data += n
        size -= n
        begun += <uint32_t>n
        if begun == GRPC_PREFIX_BYTES and need == GRPC_PREFIX_BYTES:
            if not check_prefix(s, s.buf + s.whole):
                refuse_prefix(s)
                return
            need = be32(s.buf + s.whole + 1) + GRPC_PREFIX_BYTES
            # Behind messages that wait no window is opened: h2_taken asks for it.
            if need > H2_STREAM_WINDOW and s.whole == 0:
                h2_want_grant(s)
        if begun == need:
            n = s.whole + GRPC_PREFIX_BYTES
            if conn.server.on_message(conn, s, s.buf + n, need - GRPC_PREFIX_BYTES):
                if s.flags & STREAM_ANSWERED:
                    return
                # It was not kept, so nothing waits before it.
                s.taken = s.whole = s.have
                h2_taken(s)
            else:
                s.whole = s.have


# ---- what http2 calls

cdef void h2_take_data(h2_conn *conn, h2_stream *s, const uint8_t *data, size_t size) noexcept nogil:
    if s.flags & STREAM_PLAIN:
        s.window_used += <uint32_t>size
        add_bytes(s, data, size, 0)
        told_add(s)
    elif s.flags & STREAM_BIDI:
        take_many(conn, s, data, size)
    else:
        take_single(conn, s, data, size)


cdef void h2_end_request(h2_conn *conn, h2_stream *s) noexcept nogil:
    s.flags |= STREAM_REQUEST_ENDED
    if s.flags & STREAM_ANSWERED or not s.flags & STREAM_OPENED:
        return
    if s.flags & STREAM_PLAIN:
        told_add(s)
    elif s.flags & STREAM_BIDI:
        if s.have != s.whole:
            h2_say(s, GRPC_INTERNAL, b"unexpected EOF")
            conn.server.on_refused(conn, s)
        else:
            conn.server.on_half(conn, s)
    elif s.loan != NULL:
        conn.loaner = NULL
        conn.server.on_call(conn, s, s.loan + GRPC_PREFIX_BYTES, s.loan_size - GRPC_PREFIX_BYTES)
        s.loan = NULL
    elif s.have == 0:
        h2_say(s, GRPC_INTERNAL, b"cardinality violation: received no request message from non-client-streaming RPC")
    elif s.have < GRPC_PREFIX_BYTES or s.have < be32(s.buf + 1) + GRPC_PREFIX_BYTES:
        h2_say(s, GRPC_INTERNAL, b"unexpected EOF")
    else:
        conn.server.on_call(conn, s, s.buf + GRPC_PREFIX_BYTES, s.have - GRPC_PREFIX_BYTES)
