"""The long answers under way; see longanswers.pxd."""

from libc.stdint cimport int64_t, uint64_t

from etcdfast._ext.clock cimport now_ns
from etcdfast._ext.errids cimport ERR_COMPACTED, ERR_TOO_MANY_REQUESTS
from etcdfast._ext.kvenc cimport header_ids
from etcdfast._ext.longread cimport (
    STATE_END, STREAM_ENDED, STREAM_GOING, STREAM_NO_ROOM, LongAnswer, asker,
)
from etcdfast._ext.meters cimport M_OPEN_READS, meter_set
from etcdfast._ext.outbuf cimport outbuf_free
from etcdfast._ext.ring cimport IPC_END, IPC_REPLY, IPC_STREAM_CREDIT_BYTES

from collections import deque

from etcdfast._ext.outbox import LoopError
from etcdfast._ext.rangeread import RangeTooLarge


cdef class LongAnswers:

    def __cinit__(self):
        self.streams = {}
        self.runnable = deque()
        self.pins = {}

    # ---- what a read needs of old revisions ----

    def pin(self, int64_t revision):
        """Hold back compaction of what a read at `revision` needs; returns what unpin takes."""
        self.pins[revision] = self.pins.get(revision, 0) + 1
        return revision

    def unpin(self, int64_t revision):
        left = self.pins[revision] - 1
        if left:
            self.pins[revision] = left
        else:
            del self.pins[revision]

    def oldest_pin(self):
        """The oldest revision that something under way still reads, or None."""
        return min(self.pins) if self.pins else None

    def end_below(self, int64_t revision):
        """End long reads pinned below `revision` with the compacted error: they held up compaction too long."""
        cdef LongAnswer stream
        for stream in list(self.streams.values()):
            if 0 < stream.revision < revision:
                self.out.post(&stream.who, IPC_END if stream.answered else IPC_REPLY, ERR_COMPACTED, NULL, 0)
                self.end(stream)
        self.out.deliver()

    # ---- one answer ----

    cdef bint holds(self, uint64_t more) noexcept nogil:
        return self.held_bytes + <int64_t>more <= HELD_BYTES_MAX

    cdef int start(self, LongAnswer stream) except -1:
        if stream.who.frontend >= self.out.frontends:
            raise LoopError(f"an answer for frontend {stream.who.frontend} of {self.out.frontends}")
        self.streams[key_of(&stream.who)] = stream
        self.full = len(self.streams) >= STREAMS_MAX
        meter_set(M_OPEN_READS, <uint64_t>len(self.streams))
        if stream.revision:
            self.pin(stream.revision)
        else:
            self.held_bytes += <int64_t>stream.data.capacity
        stream.queued = True
        self.runnable.append(stream)
        return 0

    cdef int end(self, LongAnswer stream) except -1:
        """Forget it; its end is in the ring or nobody waits for it."""
        if self.streams.pop(key_of(&stream.who), None) is None:
            return 0
        meter_set(M_OPEN_READS, <uint64_t>len(self.streams))
        self.full = False
        if stream.revision:
            self.unpin(stream.revision)
        else:
            self.held_bytes -= <int64_t>stream.data.capacity
        stream.run = None
        stream.state = STATE_END
        outbuf_free(&stream.data)
        return 0

    cdef int credit(self, const asker *who, int64_t size) except -1:
        cdef LongAnswer stream = self.streams.get(key_of(who))
        if stream is None:
            return 0
        stream.credit += size
        if stream.credit > IPC_STREAM_CREDIT_BYTES:
            raise LoopError("a frontend gave more credit than it has")
        if not stream.queued:
            stream.queued = True
            self.runnable.append(stream)
        return 0

    cdef bint cancel(self, const asker *who) except -1:
        cdef LongAnswer stream = self.streams.get(key_of(who))
        if stream is None:
            return False
        self.end(stream)
        return True

    # ---- all of them ----

    cdef int run(self, int64_t stop_ns, const header_ids *ids) except -1:
        cdef LongAnswer stream
        cdef int rc
        cdef list blocked = []
        while self.runnable:
            stream = <LongAnswer>self.runnable.popleft()
            stream.queued = False
            if key_of(&stream.who) not in self.streams:
                continue  # cancelled
            try:
                rc = stream.step(self.out.af[stream.who.frontend], ids)
            except RangeTooLarge:
                rc = stream.fail(self.out.af[stream.who.frontend], ERR_TOO_MANY_REQUESTS)
                rc = STREAM_ENDED if rc == STREAM_ENDED else STREAM_NO_ROOM
            if rc == STREAM_GOING:
                stream.queued = True
                self.runnable.append(stream)
            elif rc == STREAM_NO_ROOM:
                blocked.append(stream)
            elif rc == STREAM_ENDED:
                if stream.left != 0:
                    raise LoopError(f"an answer of {stream.left} bytes less than announced")
                self.end(stream)
            if now_ns() >= stop_ns:
                break
        rc = 1 if self.runnable else 0
        for stream in blocked:
            stream.queued = True
            self.runnable.append(stream)
        self.out.publish()
        return rc
