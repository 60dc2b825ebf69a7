"""The turn of the consensus process (contract and picture in consensusturn.pxd)."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EINTR, errno
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from etcdfast._ext.authfields cimport auth_field
from etcdfast._ext.authtable cimport AUTH_NAME_BYTES_MAX
from etcdfast._ext.errids cimport (
    ERR_INVALID_AUTH_TOKEN, ERR_REQUEST_TOO_LARGE, ERR_TIMEOUT_LEADER_FAIL, ERR_TOO_MANY_REQUESTS, ERR_UNIMPLEMENTED,
)
from etcdfast._ext.meters cimport H_STAGE_CONSENSUS, meter_observe
from etcdfast._ext.identity cimport IPC_FLAG_BAD_TOKEN, message_bytes
from etcdfast._ext.netsys cimport clock_ns, epoll_event, epoll_wait
from etcdfast._ext.peerset cimport PEERS_TAG
from etcdfast._ext.raftlog cimport (
    RAFTLOG_FULL, RAFTLOG_NO_MEMORY, RAFTLOG_OK, raft_log, raftlog_append, raftlog_at, raftlog_release_to, raftlog_row,
)
from etcdfast._ext.readwait cimport read_batch, read_batch_add, read_batch_clear
from etcdfast._ext.ring cimport (
    IPC_ENTRY, IPC_FLAG_NEW_ID, IPC_FORWARD, IPC_HARD, IPC_LEASE_CHECKPOINT, IPC_NOBODY, IPC_PEER_REPLY, IPC_PROPOSE,
    IPC_READ, IPC_REFUSE, IPC_SNAPSHOT_DONE, ST_DURABLE_INDEX, ST_HANDED_INDEX, ST_LAST_INDEX, ST_WAL_BYTES, ST_WAL_FSYNC_COUNT, ST_WAL_FSYNC_NS, ipc_record,
    record_payload, record_payload_len, ring_advance, ring_await_room, ring_awake, ring_broken, ring_claim,
    ring_commit, ring_peek, ring_publish, ring_release, ring_sleep, ring_view, status_put,
)
from etcdfast._ext.rpcids cimport (
    RPC_ALARM, RPC_COMPACT, RPC_DELETE_RANGE, RPC_LEASE_GRANT, RPC_LEASE_REVOKE, RPC_MEMBER_ADD, RPC_MEMBER_PROMOTE,
    RPC_MEMBER_REMOVE, RPC_MEMBER_UPDATE, RPC_MOVE_LEADER, RPC_PUT, RPC_TXN,
)
from etcdfast._ext.spin cimport SPIN_NS, sched_yield, spin_in_vain, spin_note, spin_pays
from etcdfast._ext.walio cimport (
    WAL_FAILED, WAL_FULL, WAL_NO_MEMORY, WAL_OK, wal_append_entry, wal_append_state, wal_counters, wal_durable_index, wal_has_news, wal_idle,
    wal_pending_bytes, wal_poll, wal_stats, wal_submit,
)
from etcdfast._ext.walscan cimport walscan_row
from etcdfast._ext.wire cimport (
    WIRE_BYTES, wire_bytes_size, wire_put_bytes, wire_put_tag, wire_put_uint, wire_put_varint, wire_uint_size,
)


cdef enum:
    EVENTS_MAX = 64


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
    return auth_field(method)


cdef inline uint8_t *put_header(uint8_t *p, uint64_t request_id, const ipc_record *r) noexcept nogil:
    """The header field {ID, username, auth_revision} that ends a request; returns the byte behind it. The identity is
    that of the record, which follows its message there."""
    cdef uint32_t name_bytes = r.status
    cdef uint64_t size = wire_uint_size(1, request_id)
    p = wire_put_tag(p, 100, WIRE_BYTES)  # formats.md 3.1
    if r.index == 0:
        p[0] = <uint8_t>size  # at most 11: one length byte
        return wire_put_uint(p + 1, 1, request_id)
    if name_bytes:
        size += wire_bytes_size(2, name_bytes)
    p = wire_put_varint(p, size + wire_uint_size(3, r.index))
    p = wire_put_uint(p, 1, request_id)
    if name_bytes:
        p = wire_put_bytes(p, 2, record_payload(<ipc_record *>r) + message_bytes(r), name_bytes)
    return wire_put_uint(p, 3, r.index)


cdef inline void copy_asker(ipc_record *to, const ipc_record *asker) noexcept nogil:
    to.method = asker.method
    to.frontend = asker.frontend
    to.flags = asker.flags
    to.slot = asker.slot
    to.generation = asker.generation
    to.stream = asker.stream


cdef inline bint is_own_request(const uint8_t *data, uint32_t data_bytes) noexcept nogil:
    """Whether an entry may be one that members write of themselves (cluster/entries.py): it begins with its header, or
    with the id of a v2 request; a client's request begins with neither."""
    return data_bytes > 2 and ((data[0] == 0xA2 and data[1] == 0x06) or data[0] == 0x08)


cdef inline bint is_call(uint8_t method) noexcept nogil:
    """Whether consensus carries out a method itself, in Python."""
    return (
        method == RPC_MEMBER_ADD or method == RPC_MEMBER_REMOVE or method == RPC_MEMBER_UPDATE
        or method == RPC_MEMBER_PROMOTE or method == RPC_MOVE_LEADER)


cdef class Turn:
    """The data path of one member's consensus process; Loop (consensusloop.pyx) is how Python deals with it."""

    # ---- the turn --------------------------------------------------------------------------------

    cdef int turn_once(self) noexcept nogil:
        cdef int events
        cdef int code
        while True:
            code = wal_poll(self.disk)
            if code == 1:
                self.durable_term_of_state = self.sent_term
                self.durable_vote = self.sent_vote
                self.note_stable()
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
            if self.taking and not self.blocked_bytes and not events and not self.forward_full and (
                    self.handed == self.commit or self.taking != TAKE_ALONE):
                if self.peers.settle() == RAFTLOG_NO_MEMORY:
                    return EV_NO_MEMORY
                events = self.drain()
            ring_publish(self.out)
            events |= self.write_wal()
            if self.entries.last != self.reported_last:
                self.reported_last = self.entries.last
                status_put(self.status, ST_LAST_INDEX, self.reported_last)
                if self.tell_appended:
                    events |= EV_APPENDED
            if self.taking == TAKE_FOLLOWING and not self.forward_blocked and self.peers.arena.first <= self.peers.arena.last:
                events |= EV_FORWARD
            if self.reads[self.filling].size and not self.reads[1 - self.filling].sealed and not self.reads_told:
                self.reads_told = True
                events |= EV_READS
            if self.peers.has_work():
                events |= EV_PEERS
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
        # What other members have made a majority may not be on the own disk yet. Apply must never be ahead of that:
        # after a crash its store would hold entries that the log lacks.
        cdef uint64_t limit = min(self.commit, self.stable)
        # Rows stay until here, not only until they are handed, so that Python can read the last one.
        self.release_log()
        if (self.handed == limit and not self.hard_index and not self.lost_due
                and not self.reads[1 - self.filling].confirmed):
            return 0
        while self.handed < limit:
            index = self.handed + 1
            if index < self.entries.first:
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
            events |= self.fill_waiter(r, request_id)
            if data_bytes:
                memcpy(record_payload(r), data, data_bytes)
            ring_commit(self.out, r)
            self.handed = index
            count += 1
            if self.lost_term and term >= self.lost_term:
                self.lost_term = self.lost_at = 0
                self.lost_due = True
            if type or is_own_request(data, data_bytes):
                self.conf_index = index
                events |= EV_CONF
                break
            if count % LOOP_PUBLISH_RECORDS == 0:
                ring_publish(self.out)
                if count == LOOP_HAND_RECORDS:
                    self.more = True
                    break
        if count and (self.log_full or self.peers.ready[0]):
            self.more = True  # what was handed makes room, but only with the next turn
        if self.lost_due and not self.blocked_bytes:
            self.refuse_lost()
        if self.hard_index and self.handed >= self.hard_index and not self.blocked_bytes:
            events |= self.hand_hard_record()
        if not self.blocked_bytes:
            events |= self.hand_reads()
        ring_publish(self.out)
        status_put(self.status, ST_HANDED_INDEX, self.handed)
        if self.staged_index and self.handed >= self.staged_index:
            meter_observe(H_STAGE_CONSENSUS, clock_ns() - self.staged_ns)
            self.staged_index = 0
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

    cdef void release_log(self) noexcept nogil:
        """Forget rows that are handed over. While there is room, those stay that other members may lack."""
        cdef uint64_t limit = self.handed
        cdef raft_log *entries = self.entries
        if self.tell_appended:
            limit = min(limit, self.keep_index)
            limit = limit - LOOP_KEPT_ENTRIES if limit > LOOP_KEPT_ENTRIES else 0
            while limit < self.handed and (
                    entries.last - max(limit + 1, entries.first) > entries.rows_max // 2
                    or entries.bytes > entries.bytes_max // 2):
                limit = min(max(limit + 1, entries.first) + LOOP_KEPT_ENTRIES // 4, self.handed)
                raftlog_release_to(entries, limit)
        if limit >= entries.first:
            raftlog_release_to(entries, limit)

    cdef void note_stable(self) noexcept nogil:
        """How far the present log is on the own disk: what was cut off and written anew does not count."""
        if self.sent > self.stable:
            self.stable = self.sent

    cdef int hand_reads(self) noexcept nogil:
        """Reads of the confirmed batch into `ca`, once the entries they must see are there."""
        cdef read_batch *b = &self.reads[1 - self.filling]
        cdef ipc_record *r
        cdef int code
        if not b.confirmed or self.handed < b.index:
            return 0
        while b.at < b.size:
            r = <ipc_record *>(b.data + b.at)
            # Its frontend has answered already when its time is over.
            if not r.term or r.term >= self.now:
                code = self.pass_read(r)
                if code < 0:
                    return 0
                if code:
                    return code
            b.at += (<uint64_t>r.length + 7) & ~<uint64_t>7
        read_batch_clear(b)
        return 0

    cdef inline int fill_waiter(self, ipc_record *r, uint64_t request_id) noexcept nogil:
        """Who waits for the entry; EV_OWN when it is this process."""
        cdef loop_waiter *waiter = &self.waiters[request_id & self.waiter_mask]
        r.frontend = IPC_NOBODY
        r.flags = 0
        r.slot = r.generation = r.stream = 0
        if request_id and waiter.request_id == request_id:
            waiter.request_id = 0
            if waiter.frontend == LOOP_OWN:
                self.note_own(request_id)
                return EV_OWN
            r.frontend = waiter.frontend
            r.flags = waiter.flags
            r.slot = waiter.slot
            r.generation = waiter.generation
            r.stream = waiter.stream
        return 0

    cdef int refuse_lost(self) noexcept nogil:
        """Answer those whose proposals went with an old leader, or were cut off the own log: their entries would lie
        before the one of the new term that was just handed over. In etcd's words, but without its waiting. -1 while
        `ca` has no room."""
        cdef loop_waiter *waiter
        cdef ipc_record *to
        while self.lost_at <= self.waiter_mask:
            waiter = &self.waiters[self.lost_at]
            if (waiter.request_id and waiter.frontend != LOOP_OWN
                    and suffix_of(waiter.request_id) <= self.lost_suffix):
                to = ring_claim(self.out, sizeof(ipc_record))
                if to == NULL:
                    self.blocked_bytes = sizeof(ipc_record)
                    return -1
                to.kind = IPC_REFUSE
                to.method = waiter.method
                to.flags = waiter.flags
                to.frontend = waiter.frontend
                to.slot = waiter.slot
                to.generation = waiter.generation
                to.stream = waiter.stream
                to.status = ERR_TIMEOUT_LEADER_FAIL
                to.index = to.term = 0
                ring_commit(self.out, to)
                waiter.request_id = 0
            self.lost_at = self.lost_at + 1
        self.lost_due = False
        return 0

    cdef void note_own(self, uint64_t request_id) noexcept with gil:
        self.own.append(request_id)

    # ---- proposals and reads ---------------------------------------------------------------------

    cdef inline uint64_t new_request_id(self) noexcept nogil:
        # Not `+=`: debug builds check self for None there, which needs the interpreter lock.
        self.request_suffix = self.request_suffix + 1
        return self.request_prefix | suffix_of(self.request_suffix)

    cdef int drain(self) noexcept nogil:
        """Records of all inbound rings, in turn and within limits. Precondition of TAKE_ALONE: handed == commit, so that
        a read put into `ca` now lies behind everything committed."""
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
                    events = self.take_proposal(r)
                elif r.kind == IPC_READ:
                    events = self.pass_read(r) if self.taking == TAKE_ALONE else self.gather_read(r)
                elif r.kind == IPC_FORWARD or r.kind == IPC_PEER_REPLY or r.kind == IPC_SNAPSHOT_DONE:
                    events = self.gather_call(r)
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
        if self.called:
            self.called = False
            return (events if events > 0 else 0) | EV_CALLS
        return events if events > 0 else 0

    cdef int take_proposal(self, ipc_record *r) noexcept nogil:
        """Wrap one request into an entry. 0 when dealt with, -1 when there is no room now, or EV_*."""
        cdef uint8_t prefix[LOOP_PREFIX_MAX]
        cdef uint8_t suffix[LOOP_HEADER_MAX]
        cdef loop_waiter *waiter
        cdef uint64_t request_id, prefix_bytes, suffix_bytes, own_bytes
        cdef uint64_t data_bytes = message_bytes(r)
        cdef uint32_t field = request_field(r.method)
        cdef uint8_t *end
        cdef int code
        if field == 0:
            return self.gather_call(r) if is_call(r.method) else self.refuse(r, ERR_UNIMPLEMENTED)
        # The frontend has answered already when the deadline is over.
        if r.term and r.term < self.now:
            return 0
        if r.flags & IPC_FLAG_BAD_TOKEN or r.status > AUTH_NAME_BYTES_MAX:
            return self.refuse(r, ERR_INVALID_AUTH_TOKEN)
        request_id = self.new_request_id()
        end = suffix
        if r.flags & IPC_FLAG_NEW_ID:
            # A field that comes twice counts as it came last, so an id of 0 before it does no harm.
            end = wire_put_uint(end, 2, request_id & <uint64_t>INT64_MAX)
        own_bytes = <uint64_t>(end - suffix)
        end = put_header(end, request_id, r)
        suffix_bytes = <uint64_t>(end - suffix)
        end = wire_put_varint(wire_put_tag(prefix, field, WIRE_BYTES), data_bytes + own_bytes)
        prefix_bytes = <uint64_t>(end - prefix)
        if prefix_bytes + data_bytes + suffix_bytes > self.request_bytes_max:
            # Ids of requests in the log must lie closer together than the table of waiters is long.
            self.request_suffix = self.request_suffix - 1
            return self.refuse(r, ERR_REQUEST_TOO_LARGE)
        code = raftlog_append(
            self.peers.arena if self.taking == TAKE_FOLLOWING else self.entries,
            0, self.term, request_id, prefix, prefix_bytes,
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
            self.forward_full = self.taking == TAKE_FOLLOWING
            return -1
        return EV_NO_MEMORY

    cdef int gather_read(self, ipc_record *r) noexcept nogil:
        """A linearizable read that has to wait for a quorum's or the leader's word."""
        cdef int code = read_batch_add(&self.reads[self.filling], r)
        if code == -1:
            self.log_full = True
        return EV_NO_MEMORY if code == -2 else code

    cdef int gather_call(self, ipc_record *r) except -2 with gil:
        """A record for Python. 0 when dealt with, -1 when it has to wait."""
        if len(self.calls) >= LOOP_CALLS_MAX:
            if r.kind == IPC_PROPOSE:
                return self.refuse(r, ERR_TOO_MANY_REQUESTS)
            self.log_full = True
            return -1
        self.calls.append(PyBytes_FromStringAndSize(<char *>r, r.length))
        self.called = True
        return 0

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
                self.sent = self.written
                if not self.staged_index:
                    self.staged_index = self.written
                    self.staged_ns = clock_ns()
        if code == WAL_NO_MEMORY:
            return EV_NO_MEMORY
        return EV_WAL_FAILED if code < 0 else 0

    # ---- sleep -----------------------------------------------------------------------------------

    cdef int wait_awake(self, epoll_event *found) noexcept nogil:
        """Look without sleeping for the end of a sync under way, requests and messages: -1 when nothing came in time,
        else the number of events found."""
        cdef uint64_t until = clock_ns() + SPIN_NS
        cdef int i, n
        while not wal_has_news(self.disk):
            for i in range(self.inbounds):
                if ring_peek(self.inbound[i]) != NULL:
                    return 0
            if self.tell_appended:
                n = epoll_wait(self.epoll, found, EVENTS_MAX, 0)
                if n > 0:
                    return n
            sched_yield()
            if clock_ns() >= until:
                spin_in_vain(&self.spin)
                return -1
        return 0

    cdef int sleep(self) noexcept nogil:
        cdef epoll_event found[EVENTS_MAX]
        cdef int listening = 0
        cdef int i, n
        cdef int events = 0
        cdef uint64_t wait = self.tick_at - self.now if self.tick_at > self.now else 0
        # While `ca`, the log or the way to the leader is full, requests stay in their rings and nobody need knock.
        cdef bint listens = (
            self.taking and not self.blocked_bytes and not self.log_full and not self.forward_full)
        n = -1
        if listens and spin_pays(&self.spin):
            n = self.wait_awake(found)
        if n < 0:
            if listens:
                while listening < self.inbounds:
                    listening += 1
                    if not ring_sleep(self.inbound[listening - 1]):
                        for i in range(listening):
                            ring_awake(self.inbound[i])
                        return 0
            if self.blocked_bytes and ring_await_room(self.out, <uint32_t>self.blocked_bytes):
                return 0
            n = epoll_wait(self.epoll, found, EVENTS_MAX, <int>((wait + 999999) // 1000000))
            for i in range(listening):
                ring_awake(self.inbound[i])
        if n < 0:
            # Also after SIGSTOP and SIGCONT; a signal that means something writes to the wake descriptor.
            return 0 if errno == EINTR else EV_NO_MEMORY
        for i in range(n):
            if found[i].data.u64 >= PEERS_TAG:
                self.peers.on_event(found[i].data.u64, found[i].events)
            elif found[i].data.u64 == FD_WAKE:
                events |= EV_WAKE
            elif found[i].data.u64 == FD_LIFE:
                events |= EV_LIFE
            elif found[i].data.u64 == FD_INBOX:
                events |= EV_INBOX
        return events | EV_PEERS if self.peers.has_work() else events
