"""Long answers: made and sent in slices, under credit, without holding up anything else.

A unary answer goes as BEGIN (its exact size: sizes of stored records are in the index), PARTs and END;
RangeStream as one MESSAGE per chunk (BEGIN and PARTs when a single value is larger) and END. Its bytes
are made only as fast as the reader takes them, so memory does not grow with the range.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.kvenc cimport header_ids
from etcdfast._ext.outbuf cimport outbuf
from etcdfast._ext.rangeread cimport RangeRun
from etcdfast._ext.ring cimport ipc_record, ring_view

cdef enum:
    PART_BYTES = 32768
    CHUNK_BYTES = 49152     # kvs of one RangeStream message: its record stays below IPC_REPLY_BYTES_MAX

# What a slice ended with.
cdef enum:
    STREAM_GOING = 0        # more can be done at once
    STREAM_IDLE = 1         # waits for credit
    STREAM_NO_ROOM = 2      # waits for room in the ring, which is asked for
    STREAM_ENDED = 3        # END is in the ring

cdef enum:
    STATE_SELECT = 0
    STATE_SIZE = 1
    STATE_MAKE = 2
    STATE_SEND = 3
    STATE_END = 4


# Who waits for an answer: a copy of the request record's header.
ctypedef struct asker:
    uint32_t slot
    uint32_t generation
    uint32_t stream
    uint8_t frontend
    uint8_t method
    uint8_t flags


cdef inline void asker_of(asker *who, const ipc_record *r, int method) noexcept nogil:
    who.slot = r.slot
    who.generation = r.generation
    who.stream = r.stream
    who.frontend = r.frontend
    who.method = <uint8_t>method
    who.flags = r.flags


cdef inline void record_to(ipc_record *r, const asker *who, int kind, uint32_t status) noexcept nogil:
    """Everything of an answer's header but its length."""
    r.kind = <uint8_t>kind
    r.method = who.method
    r.frontend = who.frontend
    r.flags = who.flags
    r.slot = who.slot
    r.generation = who.generation
    r.stream = who.stream
    r.status = status
    r.index = 0
    r.term = 0


cdef class LongAnswer:
    cdef asker who
    cdef RangeRun run         # None when the whole answer is in data
    cdef outbuf data          # made and not yet sent, from `sent` on
    cdef uint64_t sent
    cdef readonly int64_t credit   # bytes that may be sent now
    cdef int64_t left         # bytes of the message begun still to be sent
    cdef readonly int64_t revision # pinned, 0 none
    cdef int64_t header_revision
    cdef int state
    cdef bint begun           # BEGIN of the message under way is in the ring
    cdef bint answered        # something of this call is in the ring
    cdef bint chunked         # RangeStream
    cdef bint made_all        # data holds the last bytes there will be
    cdef bint queued          # in the loop's list of those to go on with

    # One slice. STREAM_*; RangeTooLarge before anything was sent; StoreCorrupt.
    cdef int step(self, ring_view *ring, const header_ids *ids) except -1
    # End the call with an error now. STREAM_ENDED or STREAM_NO_ROOM.
    cdef int fail(self, ring_view *ring, uint32_t status) noexcept nogil

    cdef int size(self) except -1
    cdef int make(self, const header_ids *ids) except -1
    cdef int wrap_chunk(self, const header_ids *ids) except -1
    cdef int send(self, ring_view *ring) noexcept nogil
    cdef ipc_record *claim(self, ring_view *ring, uint64_t payload) noexcept nogil


# A long answer from a run of which `first` (swapped away) holds the bytes made so far.
cdef LongAnswer answer_of_run(const asker *who, RangeRun run, bint chunked, int64_t header_revision, outbuf *first)
# A long answer whose bytes are all in `whole` (swapped away).
cdef LongAnswer answer_of_bytes(const asker *who, outbuf *whole)
