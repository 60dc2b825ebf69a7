"""The turn of the apply process; see applyloop.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from etcdfast._ext.errids cimport (
    ERR_COMPACTED, ERR_CORRUPT, ERR_FUTURE_REV, ERR_NONE, ERR_NOT_CAPABLE, ERR_RANGE_STREAM_FILTER,
    ERR_RANGE_STREAM_SORT, ERR_TOO_MANY_REQUESTS,
)
from etcdfast._ext.kvops cimport ALARM_CORRUPT, OPS_MALFORMED, KvOps
from etcdfast._ext.kvreq cimport (
    INTERNAL_COMPACT, INTERNAL_DELETE, INTERNAL_PUT, INTERNAL_TXN, SORT_ASCEND, SORT_NONE, TARGET_KEY,
    bytes_view, compact_request, decode_compact, decode_internal, decode_range, range_request,
)
from etcdfast._ext.longread cimport (
    STATE_END, STREAM_ENDED, STREAM_GOING, STREAM_NO_ROOM, LongAnswer, answer_of_bytes, answer_of_run, asker,
    asker_of, record_to,
)
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbox cimport Outbox
from etcdfast._ext.outbuf cimport outbuf, outbuf_free, outbuf_init, outbuf_reserve, outbuf_reset
from etcdfast._ext.rangeread cimport RANGE_END, RangeRun, range_open, range_refused, range_whole
from etcdfast._ext.spin cimport SPIN_NS, sched_yield, spin_in_vain, spin_note, spin_pays
from etcdfast._ext.ring cimport (
    IPC_CALL, IPC_CANCEL, IPC_CREDIT, IPC_END, IPC_ENTRY, IPC_HARD, IPC_NOBODY, IPC_READ, IPC_REFUSE, IPC_REPLY, IPC_REPLY_BYTES_MAX, IPC_STREAM_CREDIT_BYTES, Ring, StatusPage, ST_ALARMS,
    ST_APPLIED_INDEX, ST_APPLIED_TERM, ST_APPLY_READY, ST_CLUSTER_ID, ST_COMPACTED, ST_DB_IN_USE_BYTES,
    ST_INDEX_BYTES, ST_KEYS, ST_MEMBER_ID, ST_REVISION, ST_TERM, ipc_record, record_payload, record_payload_len,
    ring_advance, ring_awake, ring_broken, ring_knock, ring_peek, ring_release, ring_sleep, ring_view, status_get,
    status_put,
)
from etcdfast._ext.rpcids cimport (
    RPC_COMPACT, RPC_DELETE_RANGE, RPC_PUT, RPC_RANGE, RPC_RANGE_STREAM, RPC_TXN,
)

from collections import deque

from etcdfast._ext.mvcc import StoreCorrupt
from etcdfast._ext.outbox import LoopError, SupervisorGone
from etcdfast._ext.rangeread import RangeTooLarge

cdef enum:
    SLEEP_MS = 1000
    READ_NS = 2000000        # of short reads per turn and source
    DEFERRED_MAX = 4096      # reads that wait for a turn with time
    READ_BUDGET = 256        # index records that a read may look at before it is sliced


class EntryCorrupt(Exception):
    """A committed entry that cannot be decoded: going on would part this member from the others."""


cdef int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef int append(outbuf *b, bytes data) except -1:
    cdef uint64_t size = <uint64_t>PyBytes_GET_SIZE(data)
    cdef uint8_t *p = outbuf_reserve(b, size)
    if p != NULL:
        memcpy(p, PyBytes_AS_STRING(data), size)
        b.size += size
    return 0


cdef inline tuple key_of(const asker *who):
    return who.frontend, who.slot, who.generation, who.stream


cdef class ApplyLoop:
    """See etcdfast/apply/__main__.py for how it is put together.

    `meta_batch`: put(key, value), delete(key) of other buckets; `compactor`: etcdfast.apply.compaction;
    `housekeeper`: called with CLOCK_MONOTONIC ns, at least every `housekeeping_ns` while the loop runs.
    """

    def __cinit__(self, KvOps ops, meta_batch, compactor, housekeeper, int64_t housekeeping_ns):
        self.ops = ops
        self.mvcc = ops.mvcc
        self.meta_batch = meta_batch
        self.compactor = compactor
        self.housekeeper = housekeeper
        self.housekeeping_ns = housekeeping_ns
        self.rings = []
        self.ca = NULL
        self.own_page = self.consensus_page = NULL
        self.streams = {}
        self.runnable = deque()
        self.calls = []
        self.cancels = {}
        self.deferred = deque()
        self.pins = {}
        outbuf_init(&self.answer)

    def __dealloc__(self):
        outbuf_free(&self.answer)

    # ---- set-up ----

    def connect(self, Ring ca, list from_frontends, Outbox out, StatusPage own, StatusPage consensus):
        """Rings of the frontends in the order of their numbers."""
        cdef Ring ring
        if len(from_frontends) != out.frontends:
            raise LoopError(f"{len(from_frontends)} frontends ask, {out.frontends} are answered")
        self.rings = [ca, *from_frontends]
        self.pages = (own, consensus)
        self.ca = &ca.view
        self.frontends = out.frontends
        for i, ring in enumerate(from_frontends):
            self.fa[i] = &ring.view
        self.out = out
        out.stopping = self.stop_asked
        self.own_page = own.page
        self.consensus_page = consensus.page

    @property
    def stopping(self):
        return self.stop_asked

    @stopping.setter
    def stopping(self, bint value):
        self.stop_asked = value
        if self.out is not None:
            self.out.stopping = value

    def start_at(self, uint64_t index, uint64_t term):
        """The stored applied record."""
        self.applied_index = self.stored_index = index
        self.applied_term = term

    def attach_cold(self, cold):
        self.cold = cold

    # ---- the loop ----

    def run(self):
        """Turns until `stopping` and nothing is left to do.

        Errors: SupervisorGone, EntryCorrupt, StoreCorrupt, LoopError, and what the store raises on write.
        """
        cdef bint worked
        while True:
            worked = self.turn()
            if not worked:
                if self.stop_asked:
                    return
                if not (spin_pays(&self.spin) and self.wait_awake()):
                    self.sleep()

    def run_turn(self):
        """One turn, for tests: whether there was something to do."""
        return bool(self.turn())

    cdef int turn(self) except -1:
        cdef int worked = 0
        cdef int64_t now
        self.ops.ids.cluster = status_get(self.consensus_page, ST_CLUSTER_ID)
        self.ops.ids.member = status_get(self.consensus_page, ST_MEMBER_ID)
        self.ops.ids.term = status_get(self.consensus_page, ST_TERM)
        self.turns += 1
        worked |= self.take_committed()
        if self.mvcc.batch_changes:
            self.finish_batch()
        self.publish()
        self.out.deliver()
        if self.reads_count or self.deferred:
            self.run_reads()
            self.out.deliver()
            worked |= 1
        ring_release(self.ca)
        worked |= self.take_calls()
        if self.calls:
            worked |= self.run_calls()
        self.out.deliver()
        if self.runnable:
            worked |= self.run_streams()
        now = now_ns()
        if self.compactor.active:
            worked |= self.compactor.step(now)
            self.answer_compacted()
        if now >= self.housekeeping_due:
            self.housekeeping_due = now + self.housekeeping_ns
            self.turns_kept = self.turns + 1
            self.housekeeper(now)
        return worked

    cdef int take_committed(self) except -1:
        cdef ipc_record *r
        cdef int records = 0
        cdef uint64_t taken = 0
        cdef asker who
        self.reads_count = 0
        if len(self.deferred) >= DEFERRED_MAX:
            return 0  # reads come in faster than they can be answered: let the ring fill
        while records < TURN_RECORDS_MAX and taken < TURN_BYTES_MAX and self.out.records.size < TURN_ANSWER_BYTES_MAX:
            r = ring_peek(self.ca)
            if r == NULL:
                if ring_broken(self.ca):
                    raise LoopError("the ring from consensus holds a broken record")
                break
            records += 1
            taken += r.length
            if r.kind == IPC_ENTRY:
                self.apply_entry(r)
            elif r.kind == IPC_READ:
                self.reads[self.reads_count] = r
                self.reads_count += 1
            elif r.kind == IPC_REFUSE:
                asker_of(&who, r, r.method)
                self.out.post(&who, IPC_REPLY, r.status, record_payload(r), record_payload_len(r))
            elif r.kind == IPC_HARD:
                if not self.ready and self.applied_index >= r.index:
                    self.ready = True
                    self.publish()
                    status_put(self.own_page, ST_APPLY_READY, 1)
                    for i in range(self.frontends):
                        ring_knock(self.out.af[i].peer_doorbell)
            else:
                raise LoopError(f"record of kind {r.kind} from consensus")
            ring_advance(self.ca, r)
        spin_note(&self.spin, <uint32_t>records)
        return records

    # ---- entries ----

    cdef int apply_entry(self, ipc_record *r) except -1:
        cdef bytes_view message, inner
        cdef int kind
        cdef int status
        cdef int method
        cdef asker who
        if r.index <= self.applied_index:
            return 0  # replayed: RocksDB has it already
        if r.index != self.applied_index + 1:
            raise LoopError(f"entry {r.index} handed over after entry {self.applied_index}")
        message.data = <const uint8_t *>record_payload(r)
        message.size = record_payload_len(r)
        outbuf_reset(&self.answer)
        if r.method != 0:
            self.apply_cold(r)
        elif message.size:
            kind = decode_internal(&message, &inner)
            if kind == INTERNAL_PUT:
                method = RPC_PUT
                status = self.ops.put(&inner, &self.answer)
            elif kind == INTERNAL_DELETE:
                method = RPC_DELETE_RANGE
                status = self.ops.delete_range(&inner, &self.answer)
            elif kind == INTERNAL_TXN:
                method = RPC_TXN
                status = self.ops.txn(&inner, False, &self.answer)
            elif kind == INTERNAL_COMPACT:
                method = 0
                status = self.apply_compact(&inner, r)
            else:
                method = 0
                status = self.apply_cold(r)
            if status == OPS_MALFORMED:
                raise EntryCorrupt(f"entry {r.index} of {message.size} bytes cannot be decoded")
            if method and r.frontend != IPC_NOBODY:
                asker_of(&who, r, method)
                self.reply(&who, status)
        self.applied_index = r.index
        self.applied_term = r.term
        return 0

    cdef int apply_cold(self, ipc_record *r) except -1:
        cdef asker who
        cdef bytes payload
        data = PyBytes_FromStringAndSize(record_payload(r), record_payload_len(r))
        # The cold path reads applied_index for its answers: it is that of this entry already.
        self.applied_index = r.index
        self.applied_term = r.term
        answered = self.cold.entry(r.index, r.term, r.method, data, self.meta_batch)
        if answered is not None and r.frontend != IPC_NOBODY:
            method, status, payload = answered
            asker_of(&who, r, method)
            outbuf_reset(&self.answer)
            if not status:
                append(&self.answer, payload)
            self.reply(&who, status)
        return 0

    cdef int apply_compact(self, const bytes_view *message, ipc_record *r) except -1:
        cdef compact_request request
        cdef asker who
        cdef int status = ERR_NONE
        if decode_compact(message, &request) < 0:
            return OPS_MALFORMED
        if self.ops.alarms & ALARM_CORRUPT:
            status = ERR_CORRUPT
        elif request.revision <= self.mvcc.compacted:
            status = ERR_COMPACTED
        elif request.revision > self.mvcc.current:
            status = ERR_FUTURE_REV
        asker_of(&who, r, RPC_COMPACT)
        waiter = None
        if status == ERR_NONE:
            self.ops.header(&self.answer, self.mvcc.current)
            if request.physical and r.frontend != IPC_NOBODY:
                waiter = (PyBytes_FromStringAndSize(<char *>&who, sizeof(asker)),
                          PyBytes_FromStringAndSize(<char *>self.answer.data, <Py_ssize_t>self.answer.size))
            self.compactor.request(request.revision, waiter, self.meta_batch)
        if waiter is None and r.frontend != IPC_NOBODY:
            self.reply(&who, status)
        return 0

    def answer_compacted(self):
        """Answer those who waited for the end of a physical compaction."""
        cdef asker who
        cdef bytes raw, payload
        for raw, payload in self.compactor.take_finished():
            memcpy(&who, PyBytes_AS_STRING(raw), sizeof(asker))
            self.out.post(&who, IPC_REPLY, 0, PyBytes_AS_STRING(payload), <uint64_t>PyBytes_GET_SIZE(payload))
        self.out.deliver()

    cdef int finish_batch(self) except -1:
        self.mvcc.write_batch(self.applied_index, self.applied_term)
        self.stored_index = self.applied_index
        return 0

    def store_meta(self, bytes key, bytes value):
        """Store a value of another bucket now."""
        self.meta_batch.put(key, value)
        self.finish_batch()

    def store_applied(self):
        """Bring the stored applied record up to date: entries that changed nothing are not stored one by one."""
        if self.stored_index != self.applied_index or self.mvcc.batch_changes:
            self.finish_batch()

    # ---- reads and calls ----

    cdef int run_reads(self) except -1:
        """Reads of earlier turns, then those of this one, for about READ_NS; the rest waits for the next turn."""
        cdef int64_t stop = now_ns() + READ_NS
        cdef int i = 0
        cdef ipc_record *r
        while self.deferred:
            self.run_read(<ipc_record *>PyBytes_AS_STRING(self.deferred.popleft()))
            if self.out.records.size > TURN_ANSWER_BYTES_MAX:
                self.out.deliver()
            if now_ns() >= stop:
                break
        while i < self.reads_count and not self.deferred:
            self.run_read(self.reads[i])
            i += 1
            if self.out.records.size > TURN_ANSWER_BYTES_MAX:
                self.out.deliver()
            if (i & 15) == 0 and now_ns() >= stop:
                break
        # The ring gets its bytes back after every turn: entries behind these reads must not wait for them.
        while i < self.reads_count:
            r = self.reads[i]
            self.deferred.append(PyBytes_FromStringAndSize(<char *>r, r.length))
            i += 1
        self.reads_count = 0
        return 0

    cdef int run_read(self, ipc_record *r) except -1:
        cdef bytes_view message
        cdef asker who
        cdef int status
        asker_of(&who, r, r.method)
        if self.cancels and self.cancels.pop(key_of(&who), None) is not None:
            return 0
        message.data = <const uint8_t *>record_payload(r)
        message.size = record_payload_len(r)
        if r.method == RPC_RANGE or r.method == RPC_RANGE_STREAM:
            return self.start_range(&message, r)
        outbuf_reset(&self.answer)
        if r.method == RPC_TXN:
            status = self.ops.txn(&message, True, &self.answer)
            if status == OPS_MALFORMED:
                raise LoopError("a frontend passed on a transaction that is none, or writes")
            return self.reply(&who, status)
        if len(self.calls) >= CALLS_MAX:
            return self.reply(&who, ERR_TOO_MANY_REQUESTS)
        made = self.cold.call(r.method, PyBytes_FromStringAndSize(record_payload(r), record_payload_len(r)))
        if type(made) is tuple:
            return self.reply_cold(&who, made)
        self.calls.append((made, PyBytes_FromStringAndSize(<char *>&who, sizeof(asker))))
        return 0

    cdef int reply_cold(self, const asker *who, made) except -1:
        status, payload = made
        outbuf_reset(&self.answer)
        append(&self.answer, payload)
        if status and payload:
            return self.out.post(who, IPC_REPLY, status, self.answer.data, self.answer.size)
        return self.reply(who, status)

    cdef int run_calls(self) except -1:
        cdef asker who
        cdef bytes raw
        going_on = []
        for call in self.calls:
            generator, raw = call
            memcpy(&who, PyBytes_AS_STRING(raw), sizeof(asker))
            if self.cancels and self.cancels.pop(key_of(&who), None) is not None:
                generator.close()
                continue
            try:
                next(generator)
            except StopIteration as end:
                self.reply_cold(&who, end.value)
            else:
                going_on.append(call)
        self.calls = going_on
        return 1

    cdef int start_range(self, const bytes_view *message, ipc_record *r) except -1:
        cdef range_request request
        cdef RangeRun run
        cdef asker who
        cdef int status
        cdef bint chunked = r.method == RPC_RANGE_STREAM
        asker_of(&who, r, r.method)
        outbuf_reset(&self.answer)
        if decode_range(message, &request) < 0:
            raise LoopError("a frontend passed on a range that is none")
        status = <int>range_refused(self.mvcc, &request)
        if chunked and (request.min_mod or request.max_mod or request.min_create or request.max_create):
            status = ERR_RANGE_STREAM_FILTER
        elif chunked and request.order != SORT_NONE and not (
                request.order == SORT_ASCEND and request.target == TARGET_KEY):
            status = ERR_RANGE_STREAM_SORT
        if status:
            return self.reply(&who, status)
        if not chunked:
            self.ops.header(&self.answer, self.mvcc.current)
            if request.end.size == 0:
                range_whole(self.mvcc, &request, &self.answer)
                return self.reply(&who, ERR_NONE)
        run = range_open(self.mvcc, &request)
        try:
            if not chunked and run.step(&self.answer, READ_BUDGET, IPC_REPLY_BYTES_MAX) == RANGE_END:
                run.tail(&self.answer)
                return self.reply(&who, ERR_NONE)
        except RangeTooLarge:
            return self.reply(&who, ERR_TOO_MANY_REQUESTS)
        if len(self.streams) >= STREAMS_MAX:
            return self.reply(&who, ERR_TOO_MANY_REQUESTS)
        return self.start_stream(answer_of_run(&who, run, chunked, self.mvcc.current, &self.answer))

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

    def end_streams_below(self, int64_t revision):
        """End long reads pinned below `revision` with the compacted error: they held up compaction too long."""
        cdef LongAnswer stream
        for stream in list(self.streams.values()):
            if 0 < stream.revision < revision:
                self.out.post(&stream.who, IPC_END if stream.answered else IPC_REPLY, ERR_COMPACTED, NULL, 0)
                self.end_stream(stream)
        self.out.deliver()

    cdef int take_calls(self) except -1:
        cdef ipc_record *r
        cdef ring_view *ring
        cdef int i
        cdef int records
        cdef int worked = 0
        cdef int64_t stop = now_ns() + READ_NS
        for i in range(self.frontends):
            ring = self.fa[i]
            records = 0
            while records < TURN_RECORDS_MAX and ((records & 15) != 15 or now_ns() < stop):
                r = ring_peek(ring)
                if r == NULL:
                    if ring_broken(ring):
                        raise LoopError(f"the ring from frontend {i} holds a broken record")
                    break
                records += 1
                self.take_call(r)
                ring_advance(ring, r)
                if self.out.records.size > TURN_ANSWER_BYTES_MAX:
                    self.out.deliver()
            # A record taken is a record done: what time did not reach stays in the ring.
            ring_release(ring)
            worked |= records
        return worked

    cdef int take_call(self, ipc_record *r) except -1:
        cdef asker who
        cdef LongAnswer stream
        if r.kind == IPC_CALL:
            return self.run_read(r)
        asker_of(&who, r, 0)
        stream = self.streams.get(key_of(&who))
        if r.kind == IPC_CREDIT:
            if stream is not None:
                stream.credit += <int64_t>r.index
                if stream.credit > IPC_STREAM_CREDIT_BYTES:
                    raise LoopError("a frontend gave more credit than it has")
                if not stream.queued:
                    stream.queued = True
                    self.runnable.append(stream)
        elif r.kind == IPC_CANCEL:
            if stream is not None:
                self.end_stream(stream)
            else:
                # Its read may still be on the way through consensus; the oldest are those surely gone.
                if len(self.cancels) >= CANCELS_MAX:
                    del self.cancels[next(iter(self.cancels))]
                self.cancels[key_of(&who)] = True
        else:
            raise LoopError(f"record of kind {r.kind} from a frontend")
        return 0

    # ---- long answers ----

    cdef int start_stream(self, LongAnswer stream) except -1:
        if stream.who.frontend >= self.frontends:
            raise LoopError(f"an answer for frontend {stream.who.frontend} of {self.frontends}")
        self.streams[key_of(&stream.who)] = stream
        if stream.revision:
            self.pin(stream.revision)
        else:
            self.held_bytes += <int64_t>stream.data.capacity
        stream.queued = True
        self.runnable.append(stream)
        return 0

    cdef int end_stream(self, LongAnswer stream) except -1:
        """Forget it; its end is in the ring or nobody waits for it."""
        if self.streams.pop(key_of(&stream.who), None) is None:
            return 0
        if stream.revision:
            self.unpin(stream.revision)
        else:
            self.held_bytes -= <int64_t>stream.data.capacity
        stream.run = None
        stream.state = STATE_END
        outbuf_free(&stream.data)
        return 0

    cdef int run_streams(self) except -1:
        """Slices of long answers, in turn, for about SLICE_NS. 1 when one could go on at once."""
        cdef int64_t stop = now_ns() + SLICE_NS
        cdef LongAnswer stream
        cdef int rc, i
        cdef list blocked = []
        while self.runnable:
            stream = <LongAnswer>self.runnable.popleft()
            stream.queued = False
            if key_of(&stream.who) not in self.streams:
                continue  # cancelled
            try:
                rc = stream.step(self.out.af[stream.who.frontend], &self.ops.ids)
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
                self.end_stream(stream)
            if now_ns() >= stop:
                break
        rc = 1 if self.runnable else 0
        for stream in blocked:
            stream.queued = True
            self.runnable.append(stream)
        self.out.publish()
        return rc

    # ---- answers ----

    cdef int reply(self, const asker *who, int status) except -1:
        if self.answer.failed and not status:
            status = ERR_TOO_MANY_REQUESTS  # the answer alone is what could not be made
        if status:
            return self.out.post(who, IPC_REPLY, status, NULL, 0)
        if self.answer.size <= IPC_REPLY_BYTES_MAX:
            return self.out.post(who, IPC_REPLY, 0, self.answer.data, self.answer.size)
        if len(self.streams) >= STREAMS_MAX or self.held_bytes + <int64_t>self.answer.size > HELD_BYTES_MAX:
            return self.out.post(who, IPC_REPLY, ERR_TOO_MANY_REQUESTS, NULL, 0)
        self.start_stream(answer_of_bytes(who, &self.answer))
        return 0

    # ---- sleeping ----

    cdef bint wait_awake(self) noexcept nogil:
        """Look for records without sleeping; False when none came in time."""
        cdef int64_t until = now_ns() + SPIN_NS
        cdef int i
        while ring_peek(self.ca) == NULL:
            for i in range(self.frontends):
                if ring_peek(self.fa[i]) != NULL:
                    return True
            sched_yield()
            if now_ns() >= until:
                spin_in_vain(&self.spin)
                return False
        return True

    cdef int sleep(self) except -1:
        cdef bint empty = ring_sleep(self.ca)
        cdef int64_t wait_ns
        cdef int i
        for i in range(self.frontends):
            empty = ring_sleep(self.fa[i]) and empty
        if empty and not self.stop_asked:
            # After work, housekeeping comes once more when it is due; an idle member sleeps long.
            wait_ns = SLEEP_MS * 1000000
            if self.turns_kept != self.turns:
                wait_ns = self.housekeeping_due - now_ns()
            if wait_ns > 0:
                self.out.wait_events(<int>(wait_ns // 1000000) + 1)
        ring_awake(self.ca)
        for i in range(self.frontends):
            ring_awake(self.fa[i])
        return 0

    cdef void publish(self) noexcept nogil:
        cdef void *page = self.own_page
        status_put(page, ST_REVISION, <uint64_t>self.mvcc.current)
        status_put(page, ST_COMPACTED, <uint64_t>self.mvcc.compacted)
        status_put(page, ST_DB_IN_USE_BYTES, <uint64_t>self.mvcc.in_use_bytes)
        status_put(page, ST_ALARMS, <uint64_t>self.ops.alarms)
        status_put(page, ST_APPLIED_TERM, self.applied_term)
        status_put(page, ST_APPLIED_INDEX, self.applied_index)
