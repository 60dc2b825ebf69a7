"""The turn of the consensus process (contract and picture in consensusloop.pxd)."""

from libc.errno cimport EINTR, errno
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.unistd cimport close

from etcdfast._ext.errids cimport ERR_REQUEST_TOO_LARGE, ERR_UNIMPLEMENTED
from etcdfast._ext.netsys cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLET, EPOLLIN, clock_ns, epoll_create1, epoll_ctl, epoll_event, epoll_wait,
)
from etcdfast._ext.raftlog cimport (
    RAFTLOG_FULL, RAFTLOG_OK, RaftLog, raft_log, raftlog_append, raftlog_at, raftlog_release_to, raftlog_row,
)
from etcdfast._ext.ring cimport (
    IPC_ENTRY, IPC_FLAG_NEW_ID, IPC_HARD, IPC_LEASE_CHECKPOINT, IPC_NOBODY, IPC_PROPOSE, IPC_READ, IPC_REFUSE, Ring, ST_COMMIT_INDEX, ST_DURABLE_INDEX,
    ST_HANDED_INDEX, ST_LAST_INDEX, ST_WAL_BYTES, ST_WAL_FSYNC_COUNT, ST_WAL_FSYNC_NS, StatusPage, ipc_record,
    record_payload, record_payload_len, ring_advance, ring_await_room, ring_awake, ring_broken, ring_claim,
    ring_commit, ring_peek, ring_publish, ring_release, ring_sleep, ring_view, status_put,
)
from etcdfast._ext.rpcids cimport (
    RPC_ALARM, RPC_COMPACT, RPC_DELETE_RANGE, RPC_ID_MAX, RPC_LEASE_GRANT, RPC_LEASE_REVOKE, RPC_PUT, RPC_TXN,
)
from etcdfast._ext.spin cimport SPIN_NS, sched_yield, spin_in_vain, spin_note, spin_pays
from etcdfast._ext.walio cimport (
    WAL_FAILED, WAL_FULL, WAL_NO_MEMORY, WAL_OK, Wal, wal_append_entry, wal_append_snapshot, wal_append_state,
    wal_counters, wal_done_fd, wal_durable, wal_durable_index, wal_durable_term, wal_has_news, wal_idle,
    wal_pending_bytes, wal_poll, wal_stats, wal_submit, wal_submitted,
)
from etcdfast._ext.walscan cimport EntryTable, walscan_row
from etcdfast._ext.wire cimport WIRE_BYTES, wire_put_tag, wire_put_uint, wire_put_varint

import os


APPENDED = EV_APPENDED
DURABLE = EV_DURABLE
TICK = EV_TICK
WAKE = EV_WAKE
LIFE = EV_LIFE
CONF = EV_CONF
WAL_BROKEN = EV_WAL_FAILED
RING_BROKEN = EV_RING_BROKEN
NO_MEMORY = EV_NO_MEMORY
ENTRY_TOO_LARGE = EV_ENTRY_TOO_LARGE
HARD = EV_HARD


# Descriptors in the epoll set.
cdef enum:
    FD_DOORBELL = 0
    FD_WAL = 1
    FD_WAKE = 2
    FD_LIFE = 3


class LoopError(Exception):
    """The loop cannot be set up or take what it was given."""


cdef inline uint32_t request_field(uint8_t method) noexcept nogil:
    """Field of InternalRaftRequest that carries a method's request; 0 when it is not proposed like that."""
    if method == RPC_PUT:
        return 4
    if method == RPC_DELETE_RANGE:
        return 5
    if method == RPC_TXN:
        return 6
    if method == RPC_COMPACT:
        return 7
    if method == RPC_LEASE_GRANT:
        return 8
    if method == RPC_LEASE_REVOKE:
        return 9
    if method == RPC_ALARM:
        return 10
    if method == IPC_LEASE_CHECKPOINT:
        return 11
    return 0


cdef inline uint8_t *put_header(uint8_t *p, uint64_t request_id) noexcept nogil:
    """The header field {ID} that ends a request; returns the byte behind it."""
    cdef uint8_t *body
    p = wire_put_tag(p, 100, WIRE_BYTES)  # formats.md 3.1
    body = wire_put_uint(p + 1, 1, request_id)
    p[0] = <uint8_t>(body - p - 1)  # at most 11: one length byte
    return body


cdef inline void copy_asker(ipc_record *to, const ipc_record *asker) noexcept nogil:
    to.method = asker.method
    to.frontend = asker.frontend
    to.flags = asker.flags
    to.slot = asker.slot
    to.generation = asker.generation
    to.stream = asker.stream


def survey(EntryTable table not None):
    """What a start needs to know of a log without reading its requests one by one.

    Returns (runs, rare): runs is [(first index, term)] of each stretch of one term; rare lists the indexes of
    entries that no client asked for: configuration changes, and requests that begin with their header (etcd's
    own: attributes and versions), for a client's request lies before the header.
    """
    cdef size_t i
    cdef walscan_row *row
    cdef const uint8_t *data
    cdef uint64_t term = 0
    runs = []
    rare = []
    for i in range(table.count):
        row = table.refs + i
        if row.term != term:
            term = row.term
            runs.append((row.index, term))
        data = table.data(i)
        if row.type or (row.data_bytes > 2 and data[0] == 0xA2 and data[1] == 0x06):
            rare.append(row.index)
    return runs, rare


cdef class Loop:
    """The data path of one member's consensus process.

    doorbell: own eventfd. inbound: rings drained, frontends' first. out: the `ca` ring. status: own page.
    wake, life: descriptors that end a turn when readable, or at their end. request_prefix: the 64-bit start
    value of request ids (formats.md 3.6). table: entries read from the WAL at start; log and wal go on behind
    its last. handed: last index that apply has. Units: request_bytes_max is bytes of a marshalled
    InternalRaftRequest; tick_seconds.
    Errors: LoopError, MemoryError.
    """

    def __cinit__(self):
        self.epoll = -1

    def __init__(self, *, int doorbell, list inbound, Ring out not None, StatusPage status not None,
                 Wal wal not None, RaftLog log not None, EntryTable table or None, int wake, int life,
                 uint64_t request_prefix, uint64_t request_bytes_max, double tick_seconds,
                 uint64_t handed, uint64_t commit, tuple hard_state):
        cdef Ring ring
        cdef uint64_t waiters = log.log.rows_max
        if self.epoll >= 0:
            raise LoopError("a loop is set up once")
        if not 0 < len(inbound) <= LOOP_INBOUND_MAX:
            raise LoopError(f"{len(inbound)} inbound rings, at most {LOOP_INBOUND_MAX}")
        self.rings = [*inbound, out]
        self.pages = status
        self.log, self.wal, self.table = log, wal, table
        for ring in inbound:
            self.inbound[self.inbounds] = &ring.view
            self.inbounds += 1
        self.out = &out.view
        self.status = status.page
        self.entries = &log.log
        self.disk = wal.wal
        self.waiters = <loop_waiter *>calloc(waiters, sizeof(loop_waiter))
        if self.waiters == NULL:
            raise MemoryError(f"{waiters} waiters")
        self.waiter_mask = waiters - 1
        self.request_bytes_max = request_bytes_max
        self.request_prefix = request_prefix & (<uint64_t>0xFFFF << 48)
        self.request_suffix = request_prefix
        self.handed = handed
        self.commit = commit
        self.written = self.reported_last = self.entries.last
        self.state_term, self.state_vote, self.state_commit = hard_state
        self.given_term, self.given_vote, self.given_commit = hard_state
        self.sent_term, self.sent_vote = hard_state[:2]
        self.durable_term_of_state, self.durable_vote = hard_state[:2]
        if table is not None and table.count:
            self.replay = table.refs
            self.replay_bases = table.bases
            self.replay_first = table.refs[0].index
            self.replay_last = self.replay_first + table.count - 1
            if self.replay_last != self.entries.last:
                raise LoopError(f"table ends at {self.replay_last}, log goes on behind {self.entries.last}")
        self.tick_nanoseconds = <uint64_t>(tick_seconds * 1e9)
        if not self.tick_nanoseconds:
            raise LoopError("a tick of no length")
        self.tick_at = clock_ns() + self.tick_nanoseconds
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise LoopError(f"epoll: {os.strerror(errno)}")
        # The eventfds are edge-triggered: they are never read, a turn looks at all its sources anyway.
        self.watch(doorbell, FD_DOORBELL, EPOLLIN | EPOLLET)
        self.watch(wal_done_fd(self.disk), FD_WAL, EPOLLIN | EPOLLET)
        self.watch(wake, FD_WAKE, EPOLLIN)
        self.watch(life, FD_LIFE, EPOLLIN)

    def __dealloc__(self):
        if self.epoll >= 0:
            close(self.epoll)
        free(self.waiters)

    cdef watch(self, int fd, uint32_t what, uint32_t events):
        cdef epoll_event event
        event.events = events
        event.data.u64 = what
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) != 0:
            raise LoopError(f"epoll: descriptor {fd}: {os.strerror(errno)}")

    # ---- Python's side ---------------------------------------------------------------------------

    def turn(self):
        """Work until something is to be told, sleeping when there is nothing to do; returns EV_* bits."""
        cdef int events
        with nogil:
            events = self.turn_once()
        return events

    def lead(self, uint64_t term, bint accepting):
        """Entries drained from now on are of `term`; accepting: whether any are."""
        self.term = term
        self.accepting = accepting

    def commit_to(self, uint64_t index):
        """Hand over entries up to `index`. Precondition: they are durable on a majority."""
        if index > self.commit:
            self.commit = index
            status_put(self.status, ST_COMMIT_INDEX, index)

    def hand_hard(self, uint64_t index, uint64_t term):
        """Tell apply of `term`, behind entry `index`; a turn returns HARD once that is in `ca`."""
        self.hard_index = index
        self.hard_term = term

    def hard_state(self, uint64_t term, uint64_t vote, uint64_t commit):
        """The core's hard state. Changed term or vote is written at once; a commit index with the next entries."""
        self.state_term, self.state_vote, self.state_commit = term, vote, commit

    def flush_hard_state(self):
        """Write a hard state of which only the commit index is new, without waiting for entries."""
        self.flush_state = True

    def next_request_id(self):
        """A new id: unique in the cluster while members' ids differ in their low 16 bits."""
        return self.new_request_id()

    def release_replay(self):
        """Let go of the log read at start, once all of it is handed over. True when it is gone."""
        if self.replay != NULL and self.handed >= self.replay_last:
            self.replay = NULL
            self.table = None
        return self.replay == NULL

    def entry(self, uint64_t index):
        """(term, type, data) of an entry still held. Errors: IndexError."""
        cdef walscan_row *ref
        cdef size_t row
        if self.replay == NULL or index < self.replay_first or index > self.replay_last:
            return self.log.entry(index)[:3]
        row = index - self.replay_first
        ref = self.replay + row
        data = (<const char *>self.table.data(row))[: ref.data_bytes] if ref.data_bytes else b""
        return ref.term, ref.type, data

    def append_snapshot(self, uint64_t index, uint64_t term, const uint8_t[::1] conf_state not None):
        """A raft snapshot is durable: record it in the WAL. False when the WAL buffer is full now.

        Errors: LoopError when the WAL refuses it.
        """
        cdef int code = wal_append_snapshot(
            self.disk, index, term, &conf_state[0], <size_t>conf_state.shape[0])
        if code == WAL_FULL:
            return False
        if code != WAL_OK:
            raise LoopError(f"WAL snapshot record at {index}: code {code}")
        return True

    @property
    def last_index(self):
        return self.entries.last

    @property
    def durable_index(self):
        return wal_durable_index(self.disk)

    @property
    def durable_term(self):
        return wal_durable_term(self.disk)

    @property
    def batches(self):
        """(given to the disk, durable): equal when nothing is in flight."""
        return wal_submitted(self.disk), wal_durable(self.disk)

    @property
    def idle(self):
        """Everything appended is durable and everything committed is handed over."""
        return (
            self.written == self.entries.last
            and self.handed == self.commit
            and wal_pending_bytes(self.disk) == 0
            and wal_submitted(self.disk) == wal_durable(self.disk)
        )

    # ---- the turn --------------------------------------------------------------------------------

    cdef int turn_once(self) noexcept nogil:
        cdef int events
        cdef int code
        while True:
            code = wal_poll(self.disk)
            if code == 1:
                self.durable_term_of_state = self.sent_term
                self.durable_vote = self.sent_vote
                # Before the hand-over, so that the disk does not wait for it.
                events = self.write_wal()
                self.show_disk()
                return EV_DURABLE | events
            if code < 0:
                return EV_WAL_FAILED
            self.now = clock_ns()
            self.more = False
            self.blocked_bytes = 0
            events = self.hand_over()
            if self.accepting and self.handed == self.commit and not self.blocked_bytes and not events:
                events = self.drain()
            ring_publish(self.out)
            events |= self.write_wal()
            if self.entries.last != self.reported_last:
                self.reported_last = self.entries.last
                status_put(self.status, ST_LAST_INDEX, self.reported_last)
                if self.tell_appended:
                    events |= EV_APPENDED
            if self.now >= self.tick_at:
                # A process that was stopped for a while does not make up for the ticks it slept through.
                self.ticks_due = 1
                self.tick_at = self.now + self.tick_nanoseconds
                events |= EV_TICK
            if events:
                return events
            if not self.more:
                events = self.sleep()
                if events:
                    return events

    cdef void show_disk(self) noexcept nogil:
        cdef wal_counters counters
        wal_stats(self.disk, &counters)
        status_put(self.status, ST_DURABLE_INDEX, wal_durable_index(self.disk))
        status_put(self.status, ST_WAL_FSYNC_COUNT, counters.fsyncs)
        status_put(self.status, ST_WAL_FSYNC_NS, counters.fsync_nanoseconds)
        status_put(self.status, ST_WAL_BYTES, counters.bytes_written)

    # ---- committed entries to apply --------------------------------------------------------------

    cdef int hand_over(self) noexcept nogil:
        """Entries (handed, commit] into `ca`, as many as fit; then forget them."""
        cdef raftlog_row *row
        cdef walscan_row *ref
        cdef ipc_record *r
        cdef const uint8_t *data
        cdef uint64_t index, term, request_id, need, row_number
        cdef uint32_t data_bytes
        cdef int32_t type
        cdef int events = 0
        cdef int count = 0
        # Rows stay until here, not only until they are handed, so that Python can read the last one.
        raftlog_release_to(self.entries, self.handed)
        if self.handed == self.commit and not self.hard_index:
            return 0
        while self.handed < self.commit:
            index = self.handed + 1
            if self.replay != NULL and index <= self.replay_last:
                row_number = index - self.replay_first
                ref = self.replay + row_number
                data = self.replay_bases[ref.segment] + ref.offset
                data_bytes, type, term, request_id = ref.data_bytes, ref.type, ref.term, 0
            else:
                row = raftlog_at(self.entries, index)
                data, data_bytes, type, term, request_id = row.data, row.data_bytes, row.type, row.term, row.request_id
            need = sizeof(ipc_record) + <uint64_t>data_bytes
            if need > self.out.capacity:
                return EV_ENTRY_TOO_LARGE
            r = ring_claim(self.out, <uint32_t>need)
            if r == NULL:
                self.blocked_bytes = need
                break
            r.kind = IPC_ENTRY
            r.method = <uint8_t>type
            r.status = 0
            r.index = index
            r.term = term
            self.fill_waiter(r, request_id)
            if data_bytes:
                memcpy(record_payload(r), data, data_bytes)
            ring_commit(self.out, r)
            self.handed = index
            count += 1
            if type:
                self.conf_index = index
                events = EV_CONF
                break
            if count % LOOP_PUBLISH_RECORDS == 0:
                ring_publish(self.out)
                if count == LOOP_HAND_RECORDS:
                    self.more = True
                    break
        if self.hard_index and self.handed >= self.hard_index and not self.blocked_bytes:
            events |= self.hand_hard_record()
        ring_publish(self.out)
        status_put(self.status, ST_HANDED_INDEX, self.handed)
        return events

    cdef int hand_hard_record(self) noexcept nogil:
        """HARD for apply; EV_HARD, or 0 while `ca` has no room."""
        cdef ipc_record *r = ring_claim(self.out, sizeof(ipc_record))
        if r == NULL:
            self.blocked_bytes = sizeof(ipc_record)
            return 0
        r.kind = IPC_HARD
        r.method = r.flags = 0
        r.frontend = IPC_NOBODY
        r.slot = r.generation = r.stream = r.status = 0
        r.index = self.handed
        r.term = self.hard_term
        ring_commit(self.out, r)
        self.hard_index = 0
        return EV_HARD

    cdef inline void fill_waiter(self, ipc_record *r, uint64_t request_id) noexcept nogil:
        cdef loop_waiter *waiter = &self.waiters[request_id & self.waiter_mask]
        if request_id and waiter.request_id == request_id:
            r.frontend = waiter.frontend
            r.flags = waiter.flags
            r.slot = waiter.slot
            r.generation = waiter.generation
            r.stream = waiter.stream
            waiter.request_id = 0
        else:
            r.frontend = IPC_NOBODY
            r.flags = 0
            r.slot = r.generation = r.stream = 0

    # ---- proposals and reads ---------------------------------------------------------------------

    cdef inline uint64_t new_request_id(self) noexcept nogil:
        # Not `+=`: debug builds check self for None there, which needs the interpreter lock.
        self.request_suffix = self.request_suffix + 1
        return self.request_prefix | (self.request_suffix & 0xFFFFFFFFFFFFu)

    cdef int drain(self) noexcept nogil:
        """Records of all inbound rings, in turn and within limits. Precondition: handed == commit, so that a
        read put into `ca` now lies behind everything committed."""
        cdef ring_view *ring
        cdef ipc_record *r
        cdef int left = LOOP_TURN_RECORDS
        cdef int64_t bytes_left = LOOP_TURN_BYTES
        cdef int tried = 0
        cdef int count
        cdef int events = 0
        self.log_full = False
        while tried < self.inbounds and not events:
            ring = self.inbound[self.next_inbound]
            count = 0
            while count < LOOP_RING_RECORDS:
                if left == 0 or bytes_left <= 0:
                    self.more = True
                    events = -1
                    break
                r = ring_peek(ring)
                if r == NULL:
                    if ring_broken(ring):
                        events = EV_RING_BROKEN
                    break
                if r.kind == IPC_PROPOSE:
                    events = self.propose(r)
                elif r.kind == IPC_READ:
                    events = self.pass_read(r)
                else:
                    events = EV_RING_BROKEN
                if events:
                    break
                bytes_left -= r.length
                ring_advance(ring, r)
                count += 1
                left -= 1
            ring_release(ring)
            # A ring that had more than its share is asked again after the others.
            tried = tried + 1 if count < LOOP_RING_RECORDS else 0
            if not events or events == -1:
                self.next_inbound = self.next_inbound + 1 if self.next_inbound + 1 < self.inbounds else 0
        spin_note(&self.spin, <uint32_t>(LOOP_TURN_RECORDS - left))
        return events if events > 0 else 0

    cdef int propose(self, ipc_record *r) noexcept nogil:
        """Wrap one request into an entry. 0 when dealt with, -1 when there is no room now, or EV_*."""
        cdef uint8_t prefix[LOOP_PREFIX_MAX]
        cdef uint8_t suffix[LOOP_HEADER_MAX]
        cdef loop_waiter *waiter
        cdef uint64_t request_id, prefix_bytes, suffix_bytes, own_bytes
        cdef uint64_t data_bytes = record_payload_len(r)
        cdef uint32_t field = request_field(r.method)
        cdef uint8_t *end
        cdef int code
        if field == 0:
            return self.refuse(r, ERR_UNIMPLEMENTED)
        # The frontend has answered already when the deadline is over.
        if r.term and r.term < self.now:
            return 0
        request_id = self.new_request_id()
        end = suffix
        if r.flags & IPC_FLAG_NEW_ID:
            # A field that comes twice counts as it came last, so an id of 0 before it does no harm.
            end = wire_put_uint(end, 2, request_id & <uint64_t>INT64_MAX)
        own_bytes = <uint64_t>(end - suffix)
        end = put_header(end, request_id)
        suffix_bytes = <uint64_t>(end - suffix)
        end = wire_put_varint(wire_put_tag(prefix, field, WIRE_BYTES), data_bytes + own_bytes)
        prefix_bytes = <uint64_t>(end - prefix)
        if prefix_bytes + data_bytes + suffix_bytes > self.request_bytes_max:
            # Ids of requests in the log must lie closer together than the table of waiters is long.
            self.request_suffix = self.request_suffix - 1
            return self.refuse(r, ERR_REQUEST_TOO_LARGE)
        code = raftlog_append(
            self.entries, 0, self.term, request_id, prefix, prefix_bytes,
            <const uint8_t *>record_payload(r), data_bytes, suffix, suffix_bytes)
        if code == RAFTLOG_OK:
            if r.frontend != IPC_NOBODY:
                # As many waiters as rows: a newer request never takes the place of one still in the log.
                waiter = &self.waiters[request_id & self.waiter_mask]
                waiter.request_id = request_id
                waiter.slot = r.slot
                waiter.generation = r.generation
                waiter.stream = r.stream
                waiter.frontend = r.frontend
                waiter.method = r.method
                waiter.flags = r.flags
            return 0
        self.request_suffix = self.request_suffix - 1
        if code == RAFTLOG_FULL:
            self.log_full = True
            return -1
        return EV_NO_MEMORY

    cdef int pass_read(self, ipc_record *r) noexcept nogil:
        """A linearizable read, confirmed at once: this member is its own majority."""
        cdef ipc_record *to
        if r.length > self.out.capacity:
            return EV_RING_BROKEN
        to = ring_claim(self.out, r.length)
        if to == NULL:
            self.blocked_bytes = r.length
            return -1
        memcpy(to, r, r.length)
        to.index = self.commit
        ring_commit(self.out, to)
        return 0

    cdef int refuse(self, ipc_record *r, uint32_t status) noexcept nogil:
        cdef ipc_record *to
        if r.frontend == IPC_NOBODY:
            return 0
        to = ring_claim(self.out, sizeof(ipc_record))
        if to == NULL:
            self.blocked_bytes = sizeof(ipc_record)
            return -1
        to.kind = IPC_REFUSE
        copy_asker(to, r)
        to.status = status
        to.index = to.term = 0
        ring_commit(self.out, to)
        return 0

    # ---- the log to disk -------------------------------------------------------------------------

    cdef int write_wal(self) noexcept nogil:
        """New entries and hard state into the filling buffer; to the disk thread when that is idle."""
        cdef raftlog_row *row
        cdef int code = WAL_OK
        cdef bint grew = False
        while self.written < self.entries.last:
            row = raftlog_at(self.entries, self.written + 1)
            code = wal_append_entry(
                self.disk, row.type, row.term, self.written + 1, NULL, 0, row.data, row.data_bytes, NULL, 0)
            if code != WAL_OK:
                break
            self.written = self.written + 1
            grew = True
        if code == WAL_OK and (
            self.state_term != self.given_term or self.state_vote != self.given_vote
            or (self.state_commit != self.given_commit and (grew or self.flush_state))
        ):
            code = wal_append_state(self.disk, self.state_term, self.state_vote, self.state_commit)
            if code == WAL_OK:
                self.given_term = self.state_term
                self.given_vote = self.state_vote
                self.given_commit = self.state_commit
                self.flush_state = False
        if code == WAL_OK or code == WAL_FULL:
            if not wal_pending_bytes(self.disk) or not wal_idle(self.disk):
                return 0
            code = wal_submit(self.disk)
            if code == 1:
                self.sent_term = self.given_term
                self.sent_vote = self.given_vote
        if code == WAL_NO_MEMORY:
            return EV_NO_MEMORY
        return EV_WAL_FAILED if code < 0 else 0

    # ---- sleep -----------------------------------------------------------------------------------

    cdef bint wait_awake(self) noexcept nogil:
        """Look for the end of a sync under way, and for requests; False when neither came in time."""
        cdef uint64_t until = clock_ns() + SPIN_NS
        cdef int i
        while not wal_has_news(self.disk):
            for i in range(self.inbounds):
                if ring_peek(self.inbound[i]) != NULL:
                    return True
            sched_yield()
            if clock_ns() >= until:
                spin_in_vain(&self.spin)
                return False
        return True

    cdef int sleep(self) noexcept nogil:
        cdef epoll_event found[4]
        cdef int listening = 0
        cdef int i, n
        cdef int events = 0
        cdef uint64_t wait = self.tick_at - self.now if self.tick_at > self.now else 0
        if (self.accepting and not self.blocked_bytes and not self.log_full
                and spin_pays(&self.spin) and self.wait_awake()):
            return 0
        # While `ca` or the log is full, requests stay in their rings and nobody need knock for them.
        if self.accepting and not self.blocked_bytes and not self.log_full:
            while listening < self.inbounds:
                listening += 1
                if not ring_sleep(self.inbound[listening - 1]):
                    for i in range(listening):
                        ring_awake(self.inbound[i])
                    return 0
        if self.blocked_bytes and ring_await_room(self.out, <uint32_t>self.blocked_bytes):
            return 0
        n = epoll_wait(self.epoll, found, 4, <int>((wait + 999999) // 1000000))
        for i in range(listening):
            ring_awake(self.inbound[i])
        if n < 0:
            # Also after SIGSTOP and SIGCONT; a signal that means something writes to the wake descriptor.
            return 0 if errno == EINTR else EV_NO_MEMORY
        for i in range(n):
            if found[i].data.u64 == FD_WAKE:
                events |= EV_WAKE
            elif found[i].data.u64 == FD_LIFE:
                events |= EV_LIFE
        return events
