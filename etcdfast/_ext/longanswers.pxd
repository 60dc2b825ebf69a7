"""The long answers under way: whose turn it is, what they pin, how many there may be."""

from libc.stdint cimport int64_t, uint64_t

from etcdfast._ext.kvenc cimport header_ids
from etcdfast._ext.longread cimport LongAnswer, asker
from etcdfast._ext.outbox cimport Outbox

cdef enum:
    STREAMS_MAX = 2048          # long answers under way; more are refused
    HELD_BYTES_MAX = 268435456  # of long answers made whole; more are refused


cdef class LongAnswers:
    cdef Outbox out
    cdef dict streams           # (frontend, slot, generation, stream) -> LongAnswer
    cdef object runnable        # deque of those with something to do, in turn
    cdef int64_t held_bytes     # of answers made whole
    cdef dict pins              # revision -> how many hold it
    cdef bint full              # no further one may start

    cdef bint holds(self, uint64_t more) noexcept nogil   # memory allows one more of that size
    cdef int start(self, LongAnswer stream) except -1
    cdef int end(self, LongAnswer stream) except -1
    cdef int credit(self, const asker *who, int64_t size) except -1
    cdef bint cancel(self, const asker *who) except -1    # whether it was one of these
    # Slices in turn until stop_ns. 1 when one could go on at once.
    cdef int run(self, int64_t stop_ns, const header_ids *ids) except -1


cdef inline tuple key_of(const asker *who):
    return who.frontend, who.slot, who.generation, who.stream
