"""Long answers in slices under credit; see longread.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from etcdfast._ext.kvenc cimport header_ids, header_size, put_header
from etcdfast._ext.outbuf cimport outbuf, outbuf_free, outbuf_init, outbuf_reserve
from etcdfast._ext.rangeread cimport PHASE_SELECT, RANGE_END, RANGE_MORE, RangeRun
from etcdfast._ext.ring cimport (
    IPC_BEGIN, IPC_END, IPC_MESSAGE, IPC_PART, IPC_REPLY_BYTES_MAX, IPC_STREAM_CREDIT_BYTES, ipc_record,
    record_payload, ring_await_room, ring_claim, ring_commit, ring_view,
)
from etcdfast._ext.wire cimport WIRE_BYTES, wire_bytes_size, wire_put_varint, wire_uint_size, wire_varint_size

from etcdfast._ext.mvcc import StoreCorrupt

cdef enum:
    MAKE_BUDGET = 128       # index records per slice, most of which are read from RocksDB
    SELECT_BUDGET = 1024
    SIZE_BUDGET = 4096
    MAKE_BYTES = 32768


cdef void swap(outbuf *a, outbuf *b) noexcept nogil:
    cdef outbuf kept = a[0]
    a[0] = b[0]
    b[0] = kept


cdef LongAnswer answer_of_run(const asker *who, RangeRun run, bint chunked, int64_t header_revision, outbuf *first):
    cdef LongAnswer answer = LongAnswer.__new__(LongAnswer)
    answer.who = who[0]
    answer.run = run
    answer.revision = run.revision
    answer.header_revision = header_revision
    answer.chunked = chunked
    if chunked:
        answer.state = STATE_MAKE
    else:
        swap(&answer.data, first)
        answer.state = STATE_SELECT if run.phase == PHASE_SELECT else STATE_SIZE
    return answer


cdef LongAnswer answer_of_bytes(const asker *who, outbuf *whole):
    cdef LongAnswer answer = LongAnswer.__new__(LongAnswer)
    answer.who = who[0]
    swap(&answer.data, whole)
    answer.made_all = True
    answer.left = <int64_t>answer.data.size
    answer.state = STATE_SEND
    return answer


cdef class LongAnswer:

    def __cinit__(self):
        outbuf_init(&self.data)
        self.credit = IPC_STREAM_CREDIT_BYTES

    def __dealloc__(self):
        outbuf_free(&self.data)

    cdef int step(self, ring_view *ring, const header_ids *ids) except -1:
        if self.state == STATE_SELECT:
            self.run.step(&self.data, SELECT_BUDGET, MAKE_BYTES)
            if self.run.phase != PHASE_SELECT:
                self.state = STATE_SIZE
            return STREAM_GOING
        if self.state == STATE_SIZE:
            self.size()
            return STREAM_GOING
        if self.state == STATE_MAKE:
            if self.credit <= 0:
                return STREAM_IDLE
            self.make(ids)
            return STREAM_GOING
        return self.send(ring)

    cdef int size(self) except -1:
        """The exact size of a unary answer, before its first byte leaves."""
        cdef int64_t rest = 0
        if self.run.size_step(SIZE_BUDGET, &rest) == RANGE_MORE:
            return 0
        self.left = <int64_t>self.data.size + rest
        if self.run.more:
            self.left += 2
        if self.run.count:
            self.left += wire_uint_size(4, <uint64_t>self.run.count)
        self.state = STATE_SEND
        return 0

    cdef int make(self, const header_ids *ids) except -1:
        cdef int rc
        if not self.chunked:
            self.data.size = 0
            rc = self.run.step(&self.data, MAKE_BUDGET, MAKE_BYTES)
            if rc == RANGE_END:
                self.run.tail(&self.data)
                self.made_all = True
                self.run = None
            self.state = STATE_SEND
        else:
            rc = self.run.step(&self.data, MAKE_BUDGET, CHUNK_BYTES - self.data.size)
            if rc == RANGE_END:
                self.made_all = True
            if rc == RANGE_END or self.data.size >= CHUNK_BYTES:
                self.wrap_chunk(ids)
                self.state = STATE_SEND
        if self.data.failed:
            raise MemoryError
        return 0

    cdef int wrap_chunk(self, const header_ids *ids) except -1:
        """The kvs in data become a RangeStreamResponse; the last one has header, more and count too."""
        cdef uint64_t head = 0
        cdef uint64_t kvs = self.data.size
        cdef uint64_t inner, outer
        cdef uint8_t *p
        if self.made_all:
            head = header_size(ids, self.header_revision) + 2
            self.run.tail(&self.data)
            self.run = None
        inner = head + self.data.size
        outer = 1 + wire_varint_size(inner)
        if outbuf_reserve(&self.data, head + outer) == NULL:
            raise MemoryError
        p = self.data.data
        memmove(p + outer + head, p, self.data.size)
        p[0] = 1 << 3 | WIRE_BYTES
        p = wire_put_varint(p + 1, inner)
        if head:
            p[0] = 1 << 3 | WIRE_BYTES
            p[1] = <uint8_t>(head - 2)
            put_header(p + 2, ids, self.header_revision)
        self.data.size += head + outer
        self.left = <int64_t>self.data.size
        self.begun = False
        return 0

    cdef ipc_record *claim(self, ring_view *ring, uint64_t payload) noexcept nogil:
        """A record, or NULL with the wish for room told."""
        cdef uint32_t length = <uint32_t>(sizeof(ipc_record) + payload)
        cdef ipc_record *r = ring_claim(ring, length)
        if r == NULL and ring_await_room(ring, length):
            r = ring_claim(ring, length)
        return r

    cdef int send(self, ring_view *ring) noexcept nogil:
        cdef uint64_t size = self.data.size - self.sent
        cdef ipc_record *r
        if self.state == STATE_SEND and not self.begun:
            if self.chunked and size <= IPC_REPLY_BYTES_MAX:
                if self.credit < <int64_t>size:
                    return STREAM_IDLE
                r = self.claim(ring, size)
                if r == NULL:
                    return STREAM_NO_ROOM
                record_to(r, &self.who, IPC_MESSAGE, 0)
                memcpy(record_payload(r), self.data.data, size)
                ring_commit(ring, r)
                self.credit -= <int64_t>size
                self.left = 0
                size = 0
                self.sent = self.data.size
            else:
                r = self.claim(ring, 0)
                if r == NULL:
                    return STREAM_NO_ROOM
                record_to(r, &self.who, IPC_BEGIN, 0)
                r.index = <uint64_t>self.left
                ring_commit(ring, r)
            self.begun = True
            self.answered = True
        if self.state == STATE_SEND:
            if size > PART_BYTES:
                size = PART_BYTES
            if size:
                if self.credit <= 0:
                    return STREAM_IDLE
                if size > <uint64_t>self.credit:
                    size = <uint64_t>self.credit
                r = self.claim(ring, size)
                if r == NULL:
                    return STREAM_NO_ROOM
                record_to(r, &self.who, IPC_PART, 0)
                memcpy(record_payload(r), self.data.data + self.sent, size)
                ring_commit(ring, r)
                self.credit -= <int64_t>size
                self.left -= <int64_t>size
                self.sent += size
            if self.sent < self.data.size:
                return STREAM_GOING
            self.sent = 0
            self.data.size = 0
            if not self.made_all:
                self.state = STATE_MAKE
                return STREAM_GOING
            self.state = STATE_END
        r = self.claim(ring, 0)
        if r == NULL:
            return STREAM_NO_ROOM
        record_to(r, &self.who, IPC_END, 0)
        ring_commit(ring, r)
        return STREAM_ENDED

    cdef int fail(self, ring_view *ring, uint32_t status) noexcept nogil:
        cdef ipc_record *r = self.claim(ring, 0)
        if r == NULL:
            return STREAM_NO_ROOM
        record_to(r, &self.who, IPC_END, status)
        ring_commit(ring, r)
        return STREAM_ENDED
