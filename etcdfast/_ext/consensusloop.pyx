"""The consensus loop as Python deals with it; its turn is consensusturn.pyx."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport errno
from libc.stdint cimport UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.unistd cimport close

from etcdfast._ext.consensusturn cimport *
from etcdfast._ext.netsys cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLET, EPOLLIN, clock_ns, epoll_create1, epoll_ctl, epoll_event,
)
from etcdfast._ext.peerset cimport PEERS_FOLLOWING, PEERS_IDLE, PEERS_LEADING, EntryBatch, Peers
from etcdfast._ext.raftlog cimport (
    RAFTLOG_NO_MEMORY, RAFTLOG_OK, RaftLog, raft_log, raftlog_append, raftlog_release_to,
    raftlog_term, raftlog_truncate_after,
)
from etcdfast._ext.readwait cimport read_batch
from etcdfast._ext.ring cimport (
    IPC_NOBODY, IPC_READ, Ring, ST_COMMIT_INDEX, StatusPage, ipc_record, record_payload, ring_claim, ring_commit,
    ring_publish, status_put,
)
from etcdfast._ext.spin cimport spin_note
from etcdfast._ext.walio cimport (
    WAL_FULL, WAL_OK, Wal, wal_append_snapshot, wal_done_fd, wal_durable, wal_pending_bytes, wal_submitted,
)
from etcdfast._ext.walscan cimport EntryTable, walscan_row

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
PEERS = EV_PEERS
READS = EV_READS
CALLS = EV_CALLS
OWN = EV_OWN
INBOX = EV_INBOX
FORWARD = EV_FORWARD

NOTHING = TAKE_NOTHING
ALONE = TAKE_ALONE
LEADING = TAKE_LEADING
FOLLOWING = TAKE_FOLLOWING


class LoopError(Exception):
    """The loop cannot be set up or take what it was given."""


cdef class Loop(Turn):
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
                 Wal wal not None, RaftLog log not None, Peers peers not None, EntryTable table or None,
                 int wake, int life, int inbox,
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
        self.log, self.wal, self.table, self.peers = log, wal, table, peers
        self.calls = []
        self.own = []
        self.keep_index = UINT64_MAX
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
        self.written = self.sent = self.stable = self.reported_last = self.entries.last
        self.state_term, self.state_vote, self.state_commit = hard_state
        self.given_term, self.given_vote, self.given_commit = hard_state
        self.sent_term, self.sent_vote = hard_state[:2]
        self.durable_term_of_state, self.durable_vote = hard_state[:2]
        if table is not None and table.count:
            self.replay = table.refs
            self.replay_bases = table.bases
            self.replay_first = table.refs[0].index
            self.replay_last = self.replay_first + table.count - 1
            if self.replay_last + 1 < self.entries.first:
                raise LoopError(f"table ends at {self.replay_last}, log begins at {self.entries.first}")
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
        self.watch(inbox, FD_INBOX, EPOLLIN | EPOLLET)
        peers.watch(self.epoll)

    def __dealloc__(self):
        if self.epoll >= 0:
            close(self.epoll)
        free(self.waiters)
        free(self.reads[0].data)
        free(self.reads[1].data)

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

    def take(self, int taking, uint64_t term, uint64_t leader):
        """What becomes of proposals and reads from now on (TAKE_*); entries drained into the own log are of `term`."""
        if term > self.term:
            self.lost_suffix = suffix_of(self.request_suffix)
            self.lost_term = term
            self.lost_due = False
        self.taking = taking
        self.term = term
        self.peers.follow(
            PEERS_FOLLOWING if taking == TAKE_FOLLOWING else PEERS_IDLE if taking == TAKE_NOTHING else PEERS_LEADING,
            term, leader)
        self.forward_blocked = self.forward_full = False

    def propose(self, int type, bytes data, uint64_t request_id):
        """Log an entry of this process' own, here or by way of the leader; a turn returns OWN once it is handed over.
        With a request_id of 0 nobody waits, or whoever waits is told by its data (`wait_for`).

        True, or False when nothing is taken now or there is no room.
        """
        cdef raft_log *to = self.entries
        cdef uint64_t term = self.term
        cdef int code
        if self.taking == TAKE_NOTHING:
            return False
        if self.taking == TAKE_FOLLOWING:
            to = self.peers.arena
            term = 0
        code = raftlog_append(
            to, type, term, request_id, NULL, 0, <const uint8_t *>PyBytes_AS_STRING(data),
            <uint64_t>PyBytes_GET_SIZE(data), NULL, 0)
        if code == RAFTLOG_NO_MEMORY:
            raise MemoryError(f"entry of {len(data)} bytes")
        if code != RAFTLOG_OK:
            return False
        if request_id:
            self.wait_for(request_id)
        return True

    def wait_for(self, uint64_t request_id, bytes record=None):
        """Whoever sent `record` (a call) waits for the entry with that id; without one, this process itself."""
        cdef loop_waiter *waiter = &self.waiters[request_id & self.waiter_mask]
        cdef ipc_record *r
        waiter.request_id = request_id
        if record is None:
            waiter.slot = waiter.generation = waiter.stream = 0
            waiter.frontend = LOOP_OWN
            waiter.flags = 0
            return
        r = <ipc_record *>PyBytes_AS_STRING(record)
        waiter.slot = r.slot
        waiter.generation = r.generation
        waiter.stream = r.stream
        waiter.frontend = r.frontend
        waiter.method = r.method
        waiter.flags = r.flags

    def take_calls(self):
        """Records that Python carries out, whole, as bytes; see record()."""
        calls, self.calls = self.calls, []
        return calls

    def take_own(self):
        """Request ids of the process' own entries that were handed over."""
        own, self.own = self.own, []
        return own

    def refuse_call(self, bytes record not None, uint32_t status):
        """Answer a call with an error. False while `ca` has no room."""
        cdef int code = self.refuse(<ipc_record *>PyBytes_AS_STRING(record), status)
        ring_publish(self.out)
        return code == 0

    def pass_call(self, bytes record not None):
        """Hand a call to apply for its answer, behind what is handed over. False while `ca` has no room."""
        cdef ipc_record *r = <ipc_record *>PyBytes_AS_STRING(record)
        cdef int code
        r.kind = IPC_READ
        code = self.pass_read(r)
        ring_publish(self.out)
        return code == 0

    def tell_apply(self, int kind, bytes payload not None, int method=0, uint64_t index=0, uint32_t slot=0,
                   uint32_t status=0):
        """A record for apply from this process. False while `ca` has no room. Errors: LoopError when it never fits."""
        cdef uint64_t size = sizeof(ipc_record) + <uint64_t>PyBytes_GET_SIZE(payload)
        cdef ipc_record *r
        if size > self.out.capacity:
            raise LoopError(f"record of {size} bytes for apply")
        r = ring_claim(self.out, <uint32_t>size)
        if r == NULL:
            return False
        r.kind = <uint8_t>kind
        r.method = <uint8_t>method
        r.frontend = IPC_NOBODY
        r.flags = 0
        r.slot = slot
        r.generation = r.stream = 0
        r.status = status
        r.index = index
        r.term = self.term
        memcpy(record_payload(r), PyBytes_AS_STRING(payload), <size_t>PyBytes_GET_SIZE(payload))
        ring_commit(self.out, r)
        ring_publish(self.out)
        return True

    # ---- other members ---------------------------------------------------------------------------

    def receive(self, step):
        """Read what came from other members; `step` gets each message (EV_PEERS)."""
        cdef int messages
        messages = self.peers.receive(step)
        if messages:
            spin_note(&self.spin, self.peers.entries_received if self.peers.entries_received else 1)

    def extend(self, EntryBatch batch not None, uint64_t start):
        """A leader's entries: the log is cut behind start - 1 and goes on with the batch's from `start` on.

        Precondition: nothing from `start` on is committed; start lies in the batch and is at most last + 1.
        """
        if start <= self.handed or start <= self.commit:
            raise LoopError(f"entry {start} is committed and cannot be replaced")
        if self.taking == TAKE_ALONE or self.taking == TAKE_LEADING:
            # Another leads, and what else came with its entries must not be logged behind them under the old term.
            # The core tells what to take from now on.
            self.take(TAKE_NOTHING, self.term, 0)
        if start <= self.entries.last:
            raftlog_truncate_after(self.entries, start - 1)
            self.written = min(self.written, start - 1)
            self.sent = min(self.sent, start - 1)
            self.stable = min(self.stable, start - 1)
        self.peers.extend(batch, start, self.request_prefix)

    def restore(self, uint64_t index, uint64_t term):
        """The log is empty and goes on behind a snapshot; for the core's eyes, since the process starts anew then."""
        raftlog_release_to(self.entries, self.entries.last)
        self.entries.last = index
        self.entries.first = index + 1
        self.entries.before_term = term
        self.written = self.sent = self.stable = index

    def forward(self):
        """Send the leader what gathered for it (EV_FORWARD); what finds no way waits for unblock_forward()."""
        self.forward_full = False
        self.forward_blocked = self.peers.forward() != 0

    def unblock_forward(self):
        """The leader's stream may take something again."""
        self.forward_blocked = False

    def seal_reads(self):
        """The reads gathered go into one round of ReadIndex; False when there are none or one is under way."""
        self.reads_told = False
        if self.reads[1 - self.filling].sealed or self.reads[self.filling].size == 0:
            return False
        self.reads[self.filling].sealed = True
        self.filling = 1 - self.filling
        return True

    @property
    def reads_wait(self):
        """A round is under way and not confirmed yet."""
        cdef read_batch *b = &self.reads[1 - self.filling]
        return b.sealed and not b.confirmed

    def confirm_reads(self, uint64_t index):
        """The round under way ended: its reads belong behind `index`."""
        cdef read_batch *b = &self.reads[1 - self.filling]
        if b.sealed and not b.confirmed:
            b.confirmed = True
            b.index = index

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
        if self.replay == NULL or index < self.replay_first or index >= self.entries.first:
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
        """Last index of the present log that is on the own disk."""
        return self.stable

    @property
    def durable_term(self):
        return raftlog_term(self.entries, self.stable)

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

