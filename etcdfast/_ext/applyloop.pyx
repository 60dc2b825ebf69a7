"""The turn of the apply process; see applyloop.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from etcdfast._ext.applymeters cimport figures_entry, figures_ranges, figures_turn
from etcdfast._ext.authgate cimport AuthGate
from etcdfast._ext.changes cimport kv_change
from etcdfast._ext.clock cimport now_ns
from etcdfast._ext.errids cimport (
    ERR_COMPACTED, ERR_CORRUPT, ERR_FUTURE_REV, ERR_NONE, ERR_NOT_CAPABLE, ERR_RANGE_STREAM_FILTER,
    ERR_RANGE_STREAM_SORT, ERR_TOO_MANY_REQUESTS,
)
from etcdfast._ext.identity cimport IPC_TOKEN_CHECK, is_relayed, is_service, message_bytes
from etcdfast._ext.kvenc cimport parse_keyvalue, stored_kv
from etcdfast._ext.kvops cimport ALARM_CORRUPT, OPS_MALFORMED, KvOps
from etcdfast._ext.kvreq cimport (
    INTERNAL_COMPACT, INTERNAL_DELETE, INTERNAL_LEASE_CHECKPOINT, INTERNAL_LEASE_GRANT, INTERNAL_LEASE_REVOKE,
    INTERNAL_PUT, INTERNAL_TXN, SORT_ASCEND, SORT_NONE, TARGET_KEY,
    bytes_view, compact_request, decode_compact, decode_internal, decode_range, range_request,
)
from etcdfast._ext.leaseclock cimport LeaseClock
from etcdfast._ext.leaseops cimport LEASE_SLICED, REVOKE_KEYS_MAX
from etcdfast._ext.longanswers cimport LongAnswers, key_of
from etcdfast._ext.longread cimport answer_of_bytes, answer_of_run, asker, asker_of
from etcdfast._ext.meters cimport (
    H_BACKEND_COMMIT, M_RANGES, OP_APPLY_COMPACTION, OP_APPLY_DELETE_RANGE, OP_APPLY_LEASE_CHECKPOINT,
    OP_APPLY_LEASE_GRANT, OP_APPLY_LEASE_REVOKE, OP_APPLY_OTHER, OP_APPLY_PUT, OP_APPLY_TXN, meter_count, meter_observe,
)
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbox cimport Outbox
from etcdfast._ext.outbuf cimport outbuf, outbuf_free, outbuf_init, outbuf_reserve, outbuf_reset
from etcdfast._ext.rangeread cimport RANGE_END, RangeRun, range_open, range_refused, range_whole
from etcdfast._ext.spin cimport SPIN_NS, sched_yield, spin_in_vain, spin_note, spin_pays
from etcdfast._ext.ring cimport (
    IPC_CALL, IPC_CANCEL, IPC_CREDIT, IPC_ENTRY, IPC_FORWARDED, IPC_HALF, IPC_HARD, IPC_MEMBER, IPC_MEMBERS,
    IPC_NOBODY, IPC_PEER, IPC_READ, IPC_REFUSE, IPC_REPLY, IPC_REPLY_BYTES_MAX, IPC_SELF, IPC_SNAPSHOT, IPC_SNAPSHOT_DONE,
    Ring, ST_APPLIED_INDEX, ST_APPLIED_TERM, ST_APPLY_READY, ST_CLUSTER_ID, ST_COMPACTED, ST_DB_IN_USE_BYTES, ST_LEADER, ST_MEMBER_ID, ST_REVISION,
    ST_TERM, StatusPage, ipc_record, record_payload, record_payload_len, ring_advance, ring_awake,
    ring_broken, ring_knock, ring_peek, ring_release, ring_sleep, ring_view, status_get, status_put,
)
from etcdfast._ext.watchhub cimport WatchHub
from etcdfast._ext.rpcids cimport (
    RPC_COMPACT, RPC_DELETE_RANGE, RPC_LEASE_GRANT, RPC_LEASE_KEEP_ALIVE, RPC_LEASE_LEASES, RPC_LEASE_REVOKE,
    RPC_LEASE_TIME_TO_LIVE, RPC_PUT, RPC_RANGE, RPC_RANGE_STREAM, RPC_TXN, RPC_WATCH,
)

from collections import deque

from etcdfast._ext.mvcc import StoreCorrupt
from etcdfast._ext.outbox import LoopError, SupervisorGone
from etcdfast._ext.rangeread import RangeTooLarge

cdef enum:
    SLEEP_MS = 1000
    READ_NS = 2000000        # of short reads per turn and source
    DEFERRED_MAX = 4096      # reads that wait for a turn with time
    ROOM_NS = 5000000        # until a service that found no room for its proposal looks again
    READ_BUDGET = 256        # index records that a read may look at before it is sliced


class EntryCorrupt(Exception):
    """A committed entry that cannot be decoded: going on would part this member from the others."""


cdef int append(outbuf *b, bytes data) except -1:
    cdef uint64_t size = <uint64_t>PyBytes_GET_SIZE(data)
    cdef uint8_t *p = outbuf_reserve(b, size)
    if p != NULL:
        memcpy(p, PyBytes_AS_STRING(data), size)
        b.size += size
    return 0


cdef class ApplyLoop:
    """See etcdfast/apply/__main__.py for how it is put together.

    `hub`: watches; `leases`: what time does to leases; `meta_batch`: put(key, value), delete(key) of other
    buckets; `compactor`: etcdfast.apply.compaction;
    `housekeeper`: called with CLOCK_MONOTONIC ns, at least every `housekeeping_ns` while the loop runs.
    """

    def __cinit__(self, KvOps ops, WatchHub hub, LeaseClock leases, meta_batch, compactor, housekeeper,
                  int64_t housekeeping_ns):
        self.ops = ops
        self.hub = hub
        self.leases = leases
        self.mvcc = ops.mvcc
        self.gate = AuthGate(ops)
        self.meta_batch = meta_batch
        self.compactor = compactor
        self.housekeeper = housekeeper
        self.housekeeping_ns = housekeeping_ns
        self.rings = []
        self.ca = NULL
        self.own_page = self.consensus_page = NULL
        self.answers = LongAnswers()
        self.calls = []
        self.cancels = {}
        self.deferred = deque()
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
        self.answers.out = out
        self.gate.out = out
        self.leases.connect(out, self.gate, consensus.page)
        self.hub.ids = &self.ops.ids
        self.hub.auth = self.ops.auth
        for i in range(self.frontends):
            self.hub.attach_ring(i, out.af[i])
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

    def attach_cold(self, cold, services, exports):
        self.cold = self.gate.cold = cold
        self.services = services
        self.exports = exports
        self.services_due = True

    # ---- the loop ----

    def run(self):
        """Turns until `stopping` and nothing is left to do.

        Errors: SupervisorGone, EntryCorrupt, StoreCorrupt, LoopError, and what the store raises on write.
        """
        cdef bint worked
        while True:
            worked = self.turn()
            if self.aside is not None:
                aside, self.aside = self.aside, None
                aside()
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
        cdef bint more
        cdef int64_t now
        self.ops.ids.cluster = status_get(self.consensus_page, ST_CLUSTER_ID)
        self.ops.ids.member = status_get(self.consensus_page, ST_MEMBER_ID)
        self.ops.ids.term = status_get(self.consensus_page, ST_TERM)
        self.turns += 1
        self.leases.ops.now_ns = self.figures.turn_ns = now_ns()
        if self.revoking:
            worked |= self.go_on_revoking()
        self.reads_count = 0
        if not self.revoking:
            worked |= self.take_committed()
        if self.mvcc.batch_changes and not self.revoking:
            self.mvcc.followed = self.hub.following or self.services.waiting
            self.finish_batch()
            if self.mvcc.change_count:
                self.tell_changes()
        self.publish()
        self.out.deliver()
        figures_turn(&self.figures)
        if self.reads_count or self.deferred:
            self.run_reads()
            self.out.deliver()
            worked |= 1
        ring_release(self.ca)
        worked |= self.take_calls()
        if self.gate.waiting:
            worked |= self.gate.ask_again(self.applied_index, now_ns())
        if self.calls:
            worked |= self.run_calls()
        if self.leases.ops.settled_count:
            self.leases.settle()
        if self.leases.answers:
            self.answer_leases()
        if self.out.own:
            self.answer_own()
        if self.services_due:
            self.services.tick(now_ns())   # what they begin now counts its time from now
            more = self.services.turn()
            worked |= more
            # What found no room to propose tries again in every turn; that alone does not keep the loop awake.
            self.services_due = more or self.services.blocked
        self.out.deliver()
        if self.out.members:
            self.out.answer_members()
        self.hub.deliver()
        now = now_ns()
        worked |= self.hub.catch_up(now + SLICE_NS)
        self.out.publish()
        if self.answers.runnable:
            worked |= self.answers.run(now + SLICE_NS, &self.ops.ids)
            now = now_ns()
        if now >= self.leases.next_due_ns():
            self.leases.step(now)
        if self.revoking:
            return 1   # the changes under way are no state to store
        if self.exports.active:
            self.exports.step()
        if self.cold.auth.active:
            self.cold.auth.step()
            self.services_due = True
        if self.compactor.active:
            worked |= self.compactor.step(now)
            self.answer_compacted()
        if now >= self.housekeeping_due:
            self.housekeeping_due = now + self.housekeeping_ns
            self.turns_kept = self.turns + 1
            self.hub.tick(now)
            self.hub.figures(self.own_page)
            self.leases.figures(self.own_page)
            if self.services.next_due_ns:
                self.services.tick(now)
                self.services_due = True
            self.housekeeper(now)
        return worked

    cdef int tell_changes(self) except -1:
        """What the batch just written changed, to those who follow it."""
        cdef kv_change *change
        cdef stored_kv kv
        cdef size_t i
        if self.hub.following:
            self.hub.feed(self.mvcc.changes, self.mvcc.change_count)
        if self.services.waiting:
            self.services_due = True
            for i in range(self.mvcc.change_count):
                change = &self.mvcc.changes[i]
                parse_keyvalue(change.record, change.size, &kv)
                self.services.changed(
                    PyBytes_FromStringAndSize(<const char *>kv.key, <Py_ssize_t>kv.key_len), change.main,
                    bool(change.is_tombstone))
        self.mvcc.forget_changes()
        return 0

    cdef int answer_own(self) except -1:
        """Answers to what apply itself proposed."""
        own, self.out.own = self.out.own, []
        for token, status, payload in own:
            self.services.answered(token, status, payload)
        self.services_due = True
        return 0

    cdef int take_committed(self) except -1:
        cdef ipc_record *r
        cdef int records = 0
        cdef int waited = 0
        cdef uint64_t taken = 0
        cdef asker who
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
            waited += r.frontend != IPC_NOBODY
            if r.kind == IPC_ENTRY:
                if self.apply_entry(r):
                    break   # it wants a batch of its own
                if self.revoking:
                    ring_advance(self.ca, r)
                    break
            elif r.kind == IPC_READ:
                self.reads[self.reads_count] = r
                self.reads_count += 1
            elif r.kind == IPC_REFUSE:
                asker_of(&who, r, r.method)
                self.out.post(&who, IPC_REPLY, r.status, record_payload(r), record_payload_len(r))
            elif r.kind == IPC_HARD:
                self.lead(status_get(self.consensus_page, ST_LEADER) == self.ops.ids.member, r.term)
                if not self.ready and self.applied_index >= r.index:
                    self.ready = True
                    self.publish()
                    status_put(self.own_page, ST_APPLY_READY, 1)
                    for i in range(self.frontends):
                        ring_knock(self.out.af[i].peer_doorbell)
            elif r.kind == IPC_SNAPSHOT:
                self.exports.ask(r.index, PyBytes_FromStringAndSize(record_payload(r), record_payload_len(r)))
                ring_advance(self.ca, r)
                break   # of the state that this turn ends with
            else:
                self.take_other(r)
            ring_advance(self.ca, r)
        # What nobody here waits for (entries of another member's clients) is worth no waiting awake.
        spin_note(&self.spin, <uint32_t>waited)
        return records

    cdef int take_other(self, ipc_record *r) except -1:
        """What consensus says besides the log and those who wait behind it."""
        cdef asker who
        if r.kind == IPC_FORWARDED:
            return self.leases.leader_said(r)
        if r.kind == IPC_PEER and (r.method == RPC_LEASE_KEEP_ALIVE or r.method == RPC_LEASE_TIME_TO_LIVE):
            return self.leases.member_asks(r)
        payload = PyBytes_FromStringAndSize(record_payload(r), record_payload_len(r))
        if r.kind == IPC_PEER:
            memset(&who, 0, sizeof(asker))
            who.frontend = IPC_MEMBER
            who.slot = <uint32_t>r.index
            who.generation = <uint32_t>(r.index >> 32)
            if len(self.calls) >= CALLS_MAX:
                return self.out.post(&who, IPC_REPLY, ERR_TOO_MANY_REQUESTS, NULL, 0)
            self.calls.append((self.cold.member_call(r.method, payload),
                               PyBytes_FromStringAndSize(<char *>&who, sizeof(asker))))
        elif r.kind == IPC_MEMBERS:
            self.cold.set_members(payload, self.meta_batch)
        else:
            raise LoopError(f"record of kind {r.kind} from consensus")
        return 0

    cdef int lead(self, bint leads, uint64_t term) except -1:
        self.leases.lead(leads, term, now_ns())
        self.services.lead(leads)
        return 0

    # ---- entries ----

    cdef int apply_entry(self, ipc_record *r) except -1:
        cdef bytes_view message, inner
        cdef int kind
        cdef int status = 0
        cdef int method
        cdef int op = OP_APPLY_OTHER
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
            self.gate.admit_entry(&message)
            if kind == INTERNAL_PUT:
                method = RPC_PUT
                op = OP_APPLY_PUT
                status = self.ops.put(&inner, &self.answer)
            elif kind == INTERNAL_DELETE:
                method = RPC_DELETE_RANGE
                op = OP_APPLY_DELETE_RANGE
                status = self.ops.delete_range(&inner, &self.answer)
            elif kind == INTERNAL_TXN:
                method = RPC_TXN
                op = OP_APPLY_TXN
                status = self.ops.txn(&inner, False, &self.answer)
            elif kind == INTERNAL_COMPACT:
                method = 0
                op = OP_APPLY_COMPACTION
                status = self.apply_compact(&inner, r)
            elif kind == INTERNAL_LEASE_GRANT or kind == INTERNAL_LEASE_REVOKE or kind == INTERNAL_LEASE_CHECKPOINT:
                method = 0
                op = (OP_APPLY_LEASE_GRANT if kind == INTERNAL_LEASE_GRANT else OP_APPLY_LEASE_REVOKE
                      if kind == INTERNAL_LEASE_REVOKE else OP_APPLY_LEASE_CHECKPOINT)
                if kind == INTERNAL_LEASE_REVOKE and self.mvcc.batch_changes and self.leases.is_large(&inner):
                    return 1
                status = self.apply_lease(kind, &inner, r)
                if status == LEASE_SLICED:
                    return 0
            else:
                method = 0
                status = self.apply_cold(r)
            if status == OPS_MALFORMED:
                raise EntryCorrupt(f"entry {r.index} of {message.size} bytes cannot be decoded")
            if method and r.frontend != IPC_NOBODY:
                asker_of(&who, r, method)
                self.reply(&who, status)
            figures_entry(&self.figures, op, status != 0)
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
        answered = self.cold.entry(r.index, r.term, r.method, data, self.meta_batch, r.frontend != IPC_NOBODY)
        if answered is not None and r.frontend != IPC_NOBODY:
            method, status, payload = answered
            asker_of(&who, r, method)
            self.reply_cold(&who, (status, payload))
        return 0

    cdef int apply_lease(self, int kind, const bytes_view *message, ipc_record *r) except -1:
        cdef asker who
        cdef int status
        cdef int method = RPC_LEASE_REVOKE
        if kind == INTERNAL_LEASE_CHECKPOINT:
            status = self.leases.ops.checkpoint(message)
            return OPS_MALFORMED if status == OPS_MALFORMED else 0
        if kind == INTERNAL_LEASE_GRANT:
            method = RPC_LEASE_GRANT
            status = self.leases.ops.grant(message, &self.answer)
        else:
            status = self.leases.ops.revoke(message, &self.answer)
        if status == OPS_MALFORMED:
            return status
        asker_of(&who, r, method)
        if status == LEASE_SLICED:
            self.revoking = True
            self.revoke_asker = who
            self.revoke_index = r.index
            self.revoke_term = r.term
            return status
        if who.frontend != IPC_NOBODY:
            self.reply(&who, status)
        return 0

    cdef int go_on_revoking(self) except -1:
        """Some more keys of a lease that has many: reads and watchers go on in between, at the revision before."""
        outbuf_reset(&self.answer)
        if self.leases.ops.revoke_step(&self.answer, REVOKE_KEYS_MAX):
            return 1
        self.revoking = False
        self.applied_index = self.revoke_index
        self.applied_term = self.revoke_term
        if self.revoke_asker.frontend != IPC_NOBODY:
            self.reply(&self.revoke_asker, ERR_NONE)
        return 1

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
            meter_count(M_RANGES, 1)   # etcd reads a key for its answer
        if waiter is None and r.frontend != IPC_NOBODY:
            self.reply(&who, status)
        return 0

    cdef int answer_leases(self) except -1:
        """Answers to LeaseTimeToLive, which may be long ones."""
        cdef asker who
        cdef bytes raw, payload
        answers, self.leases.answers = self.leases.answers, []
        for raw, payload in answers:
            memcpy(&who, PyBytes_AS_STRING(raw), sizeof(asker))
            self.reply_cold(&who, (0, payload))
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
        cdef int64_t began = now_ns()
        self.mvcc.write_batch(self.applied_index, self.applied_term)
        meter_observe(H_BACKEND_COMMIT, <uint64_t>(now_ns() - began))
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
        figures_ranges(&self.figures, stop - READ_NS)
        return 0

    cdef int run_read(self, ipc_record *r) except -1:
        cdef bytes_view message
        cdef asker who
        cdef int status
        asker_of(&who, r, r.method)
        if self.cancels and self.cancels.pop(key_of(&who), None) is not None:
            return 0
        message.data = <const uint8_t *>record_payload(r)
        message.size = message_bytes(r)
        status = self.gate.check(r)
        if status:
            return self.reply(&who, status)
        if r.method == RPC_RANGE or r.method == RPC_RANGE_STREAM:
            return self.start_range(&message, r)
        outbuf_reset(&self.answer)
        if r.method == RPC_TXN:
            status = self.ops.txn(&message, True, &self.answer)
            if status == OPS_MALFORMED:
                raise LoopError("a frontend passed on a transaction that is none, or writes")
            return self.reply(&who, status)
        if r.frontend == IPC_SELF:
            return self.out.post(&who, IPC_REPLY, 0, NULL, 0)   # a ReadIndex of the services: the state is new enough
        if r.method == RPC_LEASE_TIME_TO_LIVE:
            return self.leases.time_to_live(
                &who, PyBytes_FromStringAndSize(record_payload(r), <Py_ssize_t>message.size))
        if r.method == RPC_LEASE_LEASES:
            return self.reply(&who, self.leases.ops.leases(&self.answer))
        if len(self.calls) >= CALLS_MAX:
            return self.reply(&who, ERR_TOO_MANY_REQUESTS)
        made = self.cold.call(r.method, PyBytes_FromStringAndSize(record_payload(r), <Py_ssize_t>message.size))
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
        self.figures.ranges[status != 0] += 1
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
        if self.answers.full:
            return self.reply(&who, ERR_TOO_MANY_REQUESTS)
        return self.answers.start(answer_of_run(&who, run, chunked, self.mvcc.current, &self.answer))

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
            while records < TURN_RECORDS_MAX and not self.hub.crowded and ((records & 15) != 15 or now_ns() < stop):
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
        figures_ranges(&self.figures, stop - READ_NS)
        return worked

    cdef int take_call(self, ipc_record *r) except -1:
        cdef asker who
        if r.method == RPC_WATCH:
            if r.kind == IPC_CALL:
                return self.hub.call(r)
            if r.kind == IPC_CREDIT:
                return self.hub.credit(r)
            if r.kind == IPC_CANCEL:
                self.hub.gone(r)
                return 0
            if r.kind == IPC_HALF:
                return 0   # a client that asks no more still gets its events
        elif r.method == RPC_LEASE_KEEP_ALIVE:
            return self.leases.take(r)
        elif is_service(r.method):
            return self.take_service(r)
        elif r.kind == IPC_CALL and (is_relayed(r.method) or r.method == IPC_TOKEN_CHECK):
            return self.gate.take(r)
        elif r.kind == IPC_CALL:
            return self.run_read(r)
        asker_of(&who, r, 0)
        if r.kind == IPC_CREDIT:
            self.answers.credit(&who, <int64_t>r.index)
        elif r.kind == IPC_CANCEL:
            if not self.answers.cancel(&who) and not self.leases.cancel(key_of(&who)):
                # Its read may still be on the way through consensus; the oldest are those surely gone.
                if len(self.cancels) >= CANCELS_MAX:
                    del self.cancels[next(iter(self.cancels))]
                self.cancels[key_of(&who)] = True
        else:
            raise LoopError(f"record of kind {r.kind} from a frontend")
        return 0

    # ---- locks and elections: what apply/services.py needs of the loop ----

    cdef int take_service(self, ipc_record *r) except -1:
        cdef asker who
        cdef bytes name
        memset(&who, 0, sizeof(asker))
        asker_of(&who, r, r.method)
        who.flags = 0   # not all records of a call have the same
        name = PyBytes_FromStringAndSize(<char *>&who, sizeof(asker))
        self.services_due = True
        if r.kind == IPC_CALL:
            refused = self.gate.service_refused(r)
            if refused is not None:
                return self.reply_cold(&who, refused)
            self.services.call(r.method, *self.gate.parts(r, name))
        elif r.kind == IPC_CREDIT:
            if not self.services.credit(name, r.index):
                self.answers.credit(&who, <int64_t>r.index)   # its answer is a long one
        elif not self.services.cancel(name):
            self.answers.cancel(&who)
        return 0

    def tell_snapshot(self, uint64_t token, bytes payload):
        """Answer consensus' wish for a snapshot file; False while there is no room."""
        return bool(self.out.tell(
            IPC_SNAPSHOT_DONE, token, 0, PyBytes_AS_STRING(payload), <uint64_t>PyBytes_GET_SIZE(payload)))

    # ---- answers ----

    cdef int reply(self, const asker *who, int status) except -1:
        if self.answer.failed and not status:
            status = ERR_TOO_MANY_REQUESTS  # the answer alone is what could not be made
        if status:
            return self.out.post(who, IPC_REPLY, status, NULL, 0)
        if self.answer.size <= IPC_REPLY_BYTES_MAX or who.frontend == IPC_SELF or who.frontend == IPC_MEMBER:
            return self.out.post(who, IPC_REPLY, 0, self.answer.data, self.answer.size)
        if self.answers.full or not self.answers.holds(self.answer.size):
            return self.out.post(who, IPC_REPLY, ERR_TOO_MANY_REQUESTS, NULL, 0)
        return self.answers.start(answer_of_bytes(who, &self.answer))

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
        cdef int64_t wait_ns, now
        cdef int i
        for i in range(self.frontends):
            empty = ring_sleep(self.fa[i]) and empty
        if empty and not self.stop_asked:
            # After work, housekeeping comes once more when it is due; an idle member sleeps long.
            wait_ns = SLEEP_MS * 1000000
            now = now_ns()
            if self.turns_kept != self.turns or self.hub.following:
                wait_ns = self.housekeeping_due - now
            wait_ns = min(wait_ns, self.leases.next_due_ns() - now)
            if self.services.next_due_ns:
                wait_ns = min(wait_ns, self.services.next_due_ns - now)
            if self.services.blocked:
                wait_ns = min(wait_ns, ROOM_NS)
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
        self.gate.publish(page)
        status_put(page, ST_APPLIED_TERM, self.applied_term)
        status_put(page, ST_APPLIED_INDEX, self.applied_index)
