"""Requests: gRPC messages out of the DATA frames of a stream.

A unary or server-stream call has one message, told by `on_call` once END_STREAM came; while it lies in the bytes
being fed it is on loan and not copied. A bidi stream has any number of them, each told by `on_message` as soon
as it is whole; what finds no room stays in the stream's buffer, in order, within the window it was given.
"""

from libc.stdint cimport uint8_t, uint32_t

from etcdfast._ext.h2types cimport h2_conn, h2_stream

# Bytes of a DATA frame. Preconditions: the stream is open and not answered, size > 0.
cdef void h2_take_data(h2_conn *conn, h2_stream *s, const uint8_t *data, size_t size) noexcept nogil
# END_STREAM came.
cdef void h2_end_request(h2_conn *conn, h2_stream *s) noexcept nogil
# A header of a request that may not be gRPC, into the stream's buffer; without a name `value` is such headers.
cdef void h2_keep_header(h2_stream *s, const uint8_t *name, size_t name_size, const uint8_t *value,
                         size_t size) noexcept nogil
# The same to `out`; returns the bytes written.
cdef uint32_t h2_put_header(uint8_t *out, const uint8_t *name, size_t name_size, const uint8_t *value,
                            size_t size) noexcept nogil
# Inside on_call: the request must outlive the call, at s.buf + 5.
cdef void h2_keep_request(h2_stream *s) noexcept nogil
