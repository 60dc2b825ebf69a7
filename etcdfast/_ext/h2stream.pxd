"""What one stream holds: request bytes and their window, and the answer on its way out.

Functions that answer take bytes that may lie in a ring until h2_settle. They return 0, or -1 when the
connection became fatal (out of memory, or too much that the client does not read).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.nghttp2 cimport nghttp2_data_source, nghttp2_frame, nghttp2_nv, nghttp2_session
from etcdfast._ext.h2types cimport h2_conn, h2_server, h2_stream

# NULL when out of memory.
cdef h2_stream *h2_new_stream(h2_conn *conn, int32_t stream_id) noexcept nogil
# Last use: on_gone, out of every list, back to the pool.
cdef void h2_drop_stream(h2_stream *s) noexcept nogil
# The request's bytes are no longer needed.
cdef void h2_drop_request(h2_stream *s) noexcept nogil
# Open the stream's window for the whole message, whose length is in its buffer; in turn.
cdef void h2_want_grant(h2_stream *s) noexcept nogil
# Open what windows may be opened now; for those who wait while the process's budget is short.
cdef void h2_serve_grants(h2_conn *conn) noexcept nogil

# A message has been taken out of the buffer of a bidi stream: what is left moves up, window is given back.
cdef void h2_taken(h2_stream *s) noexcept nogil
# Give a bidi stream the window back that it has used, unless its messages wait or its answers are not read.
cdef void h2_give_window(h2_stream *s) noexcept nogil
# A new block for messages of up to `size` bytes; NULL when out of memory (the connection is fatal then).
cdef uint8_t *h2_pen_open(h2_stream *s, uint32_t size) noexcept nogil
# Have nghttp2 take up what the stream has to send.
cdef int h2_flow(h2_stream *s) noexcept nogil

cdef int h2_reply(h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil
cdef int h2_message(h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil
cdef int h2_begin(h2_stream *s, uint32_t total) noexcept nogil
cdef int h2_part(h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil
# One WatchResponse of which `events` lie in the ring; head as in h2pen.pxd.
cdef int h2_lend_event(h2_stream *s, const uint8_t *head, uint32_t head_size, int64_t watch_id,
                       const uint8_t *events, uint32_t events_size) noexcept nogil
cdef int h2_end(h2_stream *s, int code, const char *text, uint32_t text_size) noexcept nogil
# The same with a text that ends in a zero byte.
cdef void h2_say(h2_stream *s, int code, const char *text) noexcept nogil
# Headers of the answer to a request that is not gRPC; its body follows by h2_push_copy and h2_flow unless `end`.
cdef int h2_respond(h2_stream *s, const nghttp2_nv *headers, size_t count, bint end) noexcept nogil
# Bytes of `s.out_bytes` to `out`: they count as sent.
cdef void h2_copy_out(h2_stream *s, uint8_t *out, size_t length) noexcept nogil
# Bytes of ours behind what the stream has to send, copied.
cdef int h2_push_copy(h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil
# Copy every answer that still lies in the ring and was not sent.
cdef void h2_settle(h2_server *server) noexcept nogil
# nghttp2's callback that takes a DATA frame's bytes: user is the h2_conn.
cdef int h2_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head, size_t length,
                      nghttp2_data_source *source, void *user) noexcept nogil
