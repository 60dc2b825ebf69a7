"""Requests into the rings, in order, also while a ring is full; and CANCEL for those nobody waits for any more.

What finds no room waits in a list per ring, first come first served. A bidi stream stands in it once, with all
of its messages that wait in its buffer.
"""

from libc.stdint cimport uint8_t, uint32_t

from etcdfast._ext.frontconn cimport conn_t, loop_t
from etcdfast._ext.h2types cimport STREAM_NEW_ID, h2_stream
from etcdfast._ext.ring cimport IPC_FLAG_CREDIT, IPC_FLAG_NEW_ID, ipc_record

cdef enum:
    RING_CONSENSUS = 0
    RING_APPLY = 1


cdef inline void fill_record(loop_t *loop, ipc_record *r, h2_stream *s, int kind) noexcept nogil:
    cdef conn_t *conn = <conn_t *>s.conn.owner
    r.kind = <uint8_t>kind
    r.method = s.method
    r.frontend = loop.index
    r.flags = IPC_FLAG_CREDIT | IPC_FLAG_NEW_ID if s.flags & STREAM_NEW_ID else IPC_FLAG_CREDIT
    r.slot = conn.slot
    r.generation = conn.generation
    r.stream = <uint32_t>s.id
    r.status = 0
    r.index = 0
    r.term = s.deadline_ns


# The one request of a call; inside on_call.
cdef void post_request(loop_t *loop, h2_stream *s, int ring, int kind, const uint8_t *data, uint32_t size) noexcept nogil
# One message of a bidi stream. False: it waits, and the caller keeps it.
cdef bint post_message(loop_t *loop, h2_stream *s, const uint8_t *data, uint32_t size) noexcept nogil
# A call that was parked (frontauth.pxd) goes on: it waits for room like any other.
cdef void post_unparked(loop_t *loop, h2_stream *s) noexcept nogil
# The client of a bidi stream has sent its last message.
cdef void post_half(loop_t *loop, h2_stream *s) noexcept nogil
# The stream does not wait any more, posted or not.
cdef void late_remove(loop_t *loop, h2_stream *s) noexcept nogil
# Post what there is room for now; asks for a knock where there is none.
cdef void late_retry(loop_t *loop) noexcept nogil
# Tell apply that nobody waits any more, if it was asked: it may hold a cursor, a watch or a place in a queue.
cdef void cancel(loop_t *loop, h2_stream *s) noexcept nogil
cdef void cancel_retry(loop_t *loop) noexcept nogil
