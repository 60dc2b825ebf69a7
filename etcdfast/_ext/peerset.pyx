"""The links to all other members; see peerset.pxd."""

from libc.stdint cimport UINT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from etcdfast._ext.netsys cimport (
    EPOLL_CTL_ADD, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, clock_ns, epoll_ctl, epoll_event,
)
from etcdfast._ext.peerlink cimport (
    LINK_APP, LINK_BROKEN, LINK_DOWN, LINK_FULL, LINK_MESSAGE, LINK_NO_MEMORY, LINK_OK, PeerLink, link_check_out,
    link_expired, link_flush, link_heartbeat, link_next, link_put_app, link_put_plain, link_put_prop, link_put_read, link_receive,
    peer_link,
)
from etcdfast._ext.peerwire cimport (
    PEER_MSG_APP, PEER_MSG_PROP, PEER_MSG_READ_INDEX, PEER_MSG_READ_INDEX_RESP, PeerMessage, peer_entry, peer_message,
)
from etcdfast._ext.raftlog cimport (
    RAFTLOG_FULL, RAFTLOG_NO_MEMORY, RAFTLOG_OK, RaftLog, raft_log, raftlog_append, raftlog_at, raftlog_release_to,
    raftlog_row,
)
from etcdfast._ext.walscan cimport EntryTable, walscan_row
from etcdfast._ext.wire cimport WIRE_BYTES, WIRE_MORE, WIRE_VARINT, wire_cursor, wire_field, wire_next

cdef enum:
    HEADER_FIELD = 100  # of InternalRaftRequest
    CONF_CHANGE = 1  # raftpb.EntryType
    ENTRY_OVERHEAD = 16  # bytes of an Entry in a message besides its data, about

OK = LINK_OK
DOWN = LINK_DOWN
FULL = LINK_FULL
APP = LINK_APP
MESSAGE = LINK_MESSAGE

IDLE = PEERS_IDLE
LEADING = PEERS_LEADING
FOLLOWING = PEERS_FOLLOWING


cdef uint64_t own_request_id(const uint8_t *data, uint32_t size, int32_t type, uint64_t prefix) noexcept nogil:
    """Request id of an entry that this member may have proposed, told by the id's high bits; 0 when it did not.

    A request's id stands in its header, behind the request or before it; a configuration change's is field 1.
    """
    cdef wire_cursor c
    cdef wire_field f
    cdef uint64_t found = 0
    c.pos = data
    c.end = data + size
    while wire_next(&c, &f) == WIRE_MORE:
        if type == CONF_CHANGE:
            if f.number == 1 and f.type == WIRE_VARINT:
                found = f.value
        elif f.number == 1 and f.type == WIRE_VARINT:
            found = f.value  # a v2 request's
        elif f.number == HEADER_FIELD and f.type == WIRE_BYTES:
            c.pos = f.data
            c.end = f.data + f.size
            while wire_next(&c, &f) == WIRE_MORE:
                if f.number == 1 and f.type == WIRE_VARINT:
                    found = f.value
            break
    return found if found >> 48 == prefix >> 48 else 0


cdef class EntryBatch:

    conf_changes = True  # it may hold some: nobody looked

    def runs(self, uint64_t start):
        """[(first index, term)] of each stretch of one term from index `start` on."""
        cdef uint64_t term = 0
        cdef uint32_t i
        runs = []
        for i in range(<uint32_t>(start - self.first), self.count):
            if self.entries[i].term != term:
                term = self.entries[i].term
                runs.append((self.first + i, term))
        return runs

    def entry(self, uint32_t i):
        """(term, type, data) of the i-th entry. Errors: IndexError."""
        cdef const peer_entry *e
        if i >= self.count:
            raise IndexError(i)
        e = self.entries + i
        return e.term, e.type, (<const char *>e.data)[: e.data_bytes] if e.data_bytes else b""


cdef class Peers:
    """Links by member id. log: the raft log that leads or follows; arena: where proposals for the leader gather.

    message: class made with the fields of a raftpb.Message (consensus.raft.Message). request_prefix: the high 16
    bits mark request ids of this member.
    """

    def __cinit__(self, uint64_t local, RaftLog log not None, RaftLog arena not None, message):
        self.local = local
        self.main = log
        self.log = &log.log
        self.gathered = arena
        self.arena = &arena.log
        self.links = [None] * PEERS_MAX
        self.slots = {}
        self.message = message
        self.broken = []
        self.epoll = -1

    def __dealloc__(self):
        free(self.scratch)

    # ---- members -----------------------------------------------------------------------------------

    def watch(self, int epoll):
        """Streams attached from now on are watched there."""
        self.epoll = epoll

    def add(self, uint64_t member, PeerLink link not None):
        """A member to talk to. Errors: ValueError when there are PEERS_MAX already or it is there."""
        cdef int slot
        if member in self.slots or None not in self.links:
            raise ValueError(f"member {member:x}: known already, or one too many")
        slot = self.links.index(None)
        self.links[slot] = link
        self.at[slot] = &link.link
        self.slots[member] = slot

    def remove(self, uint64_t member):
        cdef int slot = self.slots.pop(member)
        cdef uint64_t keep = ~(<uint64_t>1 << slot)
        (<PeerLink>self.links[slot]).close()
        self.links[slot] = None
        self.at[slot] = NULL
        self.ready[0] &= keep
        self.ready[1] &= keep
        self.writable &= keep
        self.ended &= keep
        self.last_heard_ns[slot] = 0

    @property
    def members(self):
        return list(self.slots)

    def link(self, uint64_t member):
        return self.links[<int>self.slots[member]]

    def heard_ns(self, uint64_t member):
        """When something of the member came last (CLOCK_MONOTONIC), 0 never."""
        return self.last_heard_ns[<int>self.slots[member]]

    def attach(self, uint64_t member, int kind, bint outgoing, int fd, bytes leftover=b"", bint chunked=True,
               tls=None):
        """A stream is established; the link owns `fd` and its TLS state from here on. Errors: KeyError, OSError."""
        cdef int slot = self.slots[member]
        cdef PeerLink link = self.links[slot]
        cdef epoll_event event
        event.events = EPOLLIN | EPOLLRDHUP | EPOLLET | (EPOLLOUT if outgoing else 0)
        event.data.u64 = PEERS_TAG + slot * 4 + (2 if outgoing else 0) + kind
        if outgoing:
            link.attach_out(kind, fd, tls)
            self.writable |= <uint64_t>1 << slot
        else:
            link.attach_in(kind, fd, leftover, chunked, tls)
            self.ready[kind] |= <uint64_t>1 << slot
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) != 0:
            link.detach(kind, outgoing)
            raise OSError("cannot watch a stream of a peer")

    @property
    def any_broken(self):
        """Whether take_broken() has something to tell."""
        return len(self.broken) > 0

    def take_broken(self):
        """[(member id, kind, outgoing)] of the streams that ended since the last call."""
        broken, self.broken = self.broken, []
        return broken

    cdef fail(self, int slot, int kind, bint outgoing):
        (<PeerLink>self.links[slot]).detach(kind, outgoing)
        for member, at in self.slots.items():
            if at == slot:
                self.broken.append((member, kind, bool(outgoing)))

    # ---- what the loop asks -------------------------------------------------------------------------

    cdef bint has_work(self) noexcept nogil:
        return self.ready[1] != 0 or self.ended != 0 or self.writable != 0 or (self.ready[0] != 0 and self.room())

    cdef void on_event(self, uint64_t tag, uint32_t events) noexcept nogil:
        cdef uint64_t at = tag - PEERS_TAG
        cdef uint64_t bit = <uint64_t>1 << (at >> 2)
        if not at & 2:
            self.ready[at & 1] |= bit
            return
        if events & EPOLLOUT:
            self.writable |= bit
        if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            self.ended |= bit

    cdef bint room(self) noexcept nogil:
        cdef uint64_t held = self.log.last - self.log.first + 1
        return held == 0 or (
            held + PEERS_ROOM_ROWS <= self.log.rows_max and self.log.bytes + PEERS_ROOM_BYTES <= self.log.bytes_max)

    cdef int settle(self) noexcept nogil:
        cdef raftlog_row *row
        cdef int rc
        if self.mode != PEERS_LEADING:
            return 0
        while self.arena.first <= self.arena.last:
            row = raftlog_at(self.arena, self.arena.first)
            rc = raftlog_append(
                self.log, row.type, self.term, row.request_id, NULL, 0, row.data, row.data_bytes, NULL, 0)
            if rc != RAFTLOG_OK:
                return rc
            raftlog_release_to(self.arena, self.arena.first)
        return 0

    def follow(self, int mode, uint64_t term, uint64_t leader):
        """What proposals become from now on; `leader` is meant for FOLLOWING. What gathered for somebody else is
        forgotten: it may have been sent, and must not be logged twice. Those who wait for it run into their deadline."""
        if mode != self.mode or term != self.term or leader != self.leader:
            raftlog_release_to(self.arena, self.arena.last)
        self.mode = mode
        self.term = term
        self.leader = leader

    # ---- what came ----------------------------------------------------------------------------------

    def receive(self, step):
        """Read what came and give it to `step`; returns the number of messages."""
        cdef int slot
        cdef uint64_t bit
        cdef int messages = 0
        self.entries_received = 0
        for slot in range(PEERS_MAX):
            bit = <uint64_t>1 << slot
            # Answers and heartbeats before entries: they are short, and much waits for them.
            if self.ready[LINK_MESSAGE] & bit:
                messages += self.receive_kind(slot, LINK_MESSAGE, step)
            if self.ready[LINK_APP] & bit:
                messages += self.receive_kind(slot, LINK_APP, step)
        return messages

    cdef int receive_kind(self, int slot, int kind, step) except -1:
        cdef peer_link *link = self.at[slot]
        cdef uint64_t bit = <uint64_t>1 << slot
        cdef uint64_t taken = 0
        cdef int messages = 0
        cdef int64_t rc
        cdef peer_message m
        while link != NULL:
            if kind == LINK_APP and not self.room():
                return messages  # the bit stays
            rc = link_next(link, kind, &m)
            if rc == 1:
                self.take(slot, &m, step)
                messages += 1
                link = self.at[slot]  # what it said may have ended the link
                continue
            if rc < 0:
                break
            if taken >= PEERS_RECEIVE_BYTES:
                return messages  # more is there; the bit stays
            rc = link_receive(link, kind)
            if rc == 0:
                self.ready[kind] &= ~bit
                return messages
            if rc < 0:
                break
            taken += <uint64_t>rc
            self.last_heard_ns[slot] = clock_ns()
        self.ready[kind] &= ~bit
        if link != NULL:
            if rc == LINK_NO_MEMORY:
                raise MemoryError("a message of a peer")
            if rc != LINK_DOWN:
                self.fail(slot, kind, False)
        return messages

    cdef int take(self, int slot, peer_message *m, step) except -1:
        cdef EntryBatch batch = None
        cdef uint64_t free_rows
        if m.type == PEER_MSG_PROP:
            return self.take_proposals(slot, m)
        if m.type == PEER_MSG_APP:
            self.entries_received += m.entry_count
            batch = EntryBatch.__new__(EntryBatch)
            batch.entries = m.entries
            batch.count = m.entry_count
            # More entries than rows: as if the leader had sent fewer. It learns from the answer and sends them again.
            free_rows = self.log.rows_max - (self.log.last - self.log.first + 1)
            if batch.count > free_rows:
                batch.count = <uint32_t>free_rows
            batch.first = m.index + 1
            batch.last = m.index + batch.count
            batch.last_term = m.entries[batch.count - 1].term if batch.count else m.log_term
            self.behind = m.commit - batch.last if m.commit > batch.last else 0
        context = (<const char *>m.context)[: m.context_bytes] if m.context != NULL else b""
        if m.entry_count and (m.type == PEER_MSG_READ_INDEX or m.type == PEER_MSG_READ_INDEX_RESP):
            # These carry their context as an entry's data.
            context = (<const char *>m.entries[0].data)[: m.entries[0].data_bytes] if m.entries[0].data_bytes else b""
        step(self.message(
            m.type, m.to, m.frm, m.term, m.log_term, m.index, m.commit, batch, bool(m.reject), m.reject_hint, context))
        return 0

    cdef int take_proposals(self, int slot, peer_message *m) except -1:
        """Proposals of another member's clients: into the log, or on to the leader. What nobody leads is dropped, as
        in etcd: those who wait for it are told by their own member when their time is over."""
        cdef raft_log *to = self.log
        cdef const peer_entry *e
        cdef uint32_t i
        cdef int rc
        if self.mode == PEERS_IDLE or (
                self.mode == PEERS_FOLLOWING and (slot < 0 or self.slots.get(self.leader, -1) == slot)):
            self.dropped += m.entry_count  # a leader that asks its follower to propose asks itself
            return 0
        for i in range(m.entry_count):
            e = m.entries + i
            if e.type and self.mode == PEERS_LEADING:
                if self.on_special is not None:
                    self.on_special(e.type, (<const char *>e.data)[: e.data_bytes] if e.data_bytes else b"")
                continue
            rc = RAFTLOG_FULL
            if self.mode == PEERS_LEADING and self.arena.first > self.arena.last:
                rc = raftlog_append(to, e.type, self.term, 0, NULL, 0, e.data, e.data_bytes, NULL, 0)
            if rc == RAFTLOG_FULL:
                rc = raftlog_append(self.arena, e.type, 0, 0, NULL, 0, e.data, e.data_bytes, NULL, 0)
            if rc == RAFTLOG_NO_MEMORY:
                raise MemoryError("a proposal of a peer")
            if rc != RAFTLOG_OK:
                self.dropped += 1
        return 0

    def take_marshalled(self, PeerMessage posted not None, step):
        """A message that came by POST /raft."""
        self.take(self.slots.get(posted.message.frm, -1), &posted.message, step)

    def conflict(self, EntryBatch batch not None):
        """First index of the batch that the log lacks or holds with another term; 0 when it has all of it.

        Rows released are committed, and what is committed never differs.
        """
        cdef uint64_t index = batch.first
        cdef uint32_t i
        for i in range(batch.count):
            if index > self.log.last:
                return index
            if index >= self.log.first and raftlog_at(self.log, index).term != batch.entries[i].term:
                return index
            index += 1
        return 0

    def extend(self, EntryBatch batch not None, uint64_t start, uint64_t request_prefix):
        """Append the batch's entries from index `start` on, which is the log's next. Errors: MemoryError.

        The log may grow beyond its limit of bytes by this one message: `room` looked ahead for an ordinary one.
        """
        cdef uint64_t bytes_max = self.log.bytes_max
        cdef const peer_entry *e
        cdef uint32_t i
        cdef int rc
        self.log.bytes_max = UINT64_MAX
        try:
            for i in range(<uint32_t>(start - batch.first), batch.count):
                e = batch.entries + i
                rc = raftlog_append(
                    self.log, e.type, e.term, own_request_id(e.data, e.data_bytes, e.type, request_prefix),
                    NULL, 0, e.data, e.data_bytes, NULL, 0)
                if rc != RAFTLOG_OK:
                    raise MemoryError(f"entry {batch.first + i} of {e.data_bytes} bytes: code {rc}")
        finally:
            self.log.bytes_max = bytes_max

    # ---- what goes out ------------------------------------------------------------------------------

    def send(self, uint64_t to, int type, uint64_t term, uint64_t log_term, uint64_t index, uint64_t commit,
             bint reject, uint64_t reject_hint, bytes context):
        """A message without entries onto the message stream: OK, DOWN or FULL. Errors: KeyError, MemoryError."""
        cdef uint32_t size = <uint32_t>len(context)
        return self.put(link_put_plain(
            self.at[<int>self.slots[to]], type, to, self.local, term, log_term, index, commit, reject,
            reject_hint, <const uint8_t *><char *>context if size else NULL, size))

    def send_read_index(self, uint64_t to, int type, uint64_t term, uint64_t index, bytes context):
        """MsgReadIndex or its answer: the context is the data of an entry."""
        return self.put(link_put_read(
            self.at[<int>self.slots[to]], type, to, self.local, term, index,
            <const uint8_t *><char *>context, <uint32_t>len(context)))

    def fit(self, uint64_t first, uint64_t last, uint64_t bytes_max):
        """Last index of a message that starts at `first` and whose entries stay within bytes_max; at least `first`.

        Precondition: log.first <= first <= last <= log.last.
        """
        cdef uint64_t index = first
        cdef uint64_t size = raftlog_at(self.log, first).data_bytes
        while index < last:
            size += raftlog_at(self.log, index + 1).data_bytes + ENTRY_OVERHEAD
            if size > bytes_max:
                break
            index += 1
        return index

    cdef int put(self, int code) except -100:
        if code == LINK_NO_MEMORY:
            raise MemoryError("a message for a peer")
        return code

    cdef int grow_scratch(self, uint64_t count) except -1:
        cdef peer_entry *grown
        if count <= self.scratch_room:
            return 0
        grown = <peer_entry *>realloc(self.scratch, count * sizeof(peer_entry))
        if grown == NULL:
            raise MemoryError(f"{count} entries for a peer")
        self.scratch = grown
        self.scratch_room = <uint32_t>count
        return 0

    def send_app(self, uint64_t to, uint64_t term, uint64_t prev_index, uint64_t prev_term, uint64_t commit,
                 uint64_t last):
        """MsgApp with the entries (prev_index, last] of the log in memory: OK, DOWN or FULL. Errors: IndexError."""
        cdef uint64_t count = last - prev_index
        cdef uint64_t i
        cdef raftlog_row *row
        cdef peer_entry *e
        if count and (prev_index + 1 < self.log.first or last > self.log.last):
            raise IndexError(prev_index + 1)
        self.grow_scratch(count)
        for i in range(count):
            row = raftlog_at(self.log, prev_index + 1 + i)
            e = self.scratch + i
            e.term = row.term
            e.index = prev_index + 1 + i
            e.type = row.type
            e.data = row.data
            e.data_bytes = row.data_bytes
        return self.put(link_put_app(
            self.at[<int>self.slots[to]], term, prev_index, prev_term, commit, self.scratch, <uint32_t>count))

    def send_app_rows(self, uint64_t to, uint64_t term, uint64_t prev_index, uint64_t prev_term, uint64_t commit,
                      uint64_t last, EntryTable table not None, size_t row, uint64_t bytes_max):
        """The same from entries read back from the write-ahead log: those from prev_index + 1, which is row `row` of
        the table, up to `last`, or as many of them as stay within bytes_max (at least one).

        Returns (OK, DOWN or FULL, last index sent). Errors: IndexError.
        """
        cdef uint64_t count = last - prev_index
        cdef uint64_t size = 0
        cdef uint64_t i
        cdef walscan_row *ref
        cdef peer_entry *e
        if row + count > table.count:
            raise IndexError(last)
        self.grow_scratch(count)
        for i in range(count):
            ref = table.refs + row + i
            size += ref.data_bytes + ENTRY_OVERHEAD
            if i and size > bytes_max:
                count = i
                break
            e = self.scratch + i
            e.term = ref.term
            e.index = ref.index
            e.type = ref.type
            e.data = table.data(row + i)
            e.data_bytes = ref.data_bytes
        code = self.put(link_put_app(
            self.at[<int>self.slots[to]], term, prev_index, prev_term, commit, self.scratch, <uint32_t>count))
        return code, prev_index + count

    def forward(self):
        """Send what gathered for the leader, one MsgProp per batch: OK, or DOWN or FULL when some of it has to wait."""
        cdef uint64_t held = self.arena.last - self.arena.first + 1
        cdef uint32_t count
        cdef uint64_t size
        cdef raftlog_row *row
        cdef peer_entry *e
        cdef int rc
        if held == 0 or self.mode != PEERS_FOLLOWING:
            return LINK_OK
        slot = self.slots.get(self.leader)
        if slot is None:
            return LINK_DOWN
        while held:
            count = 0
            size = 0
            self.grow_scratch(min(held, <uint64_t>FORWARD_ENTRIES_MAX))
            while count < held and count < FORWARD_ENTRIES_MAX and size < FORWARD_BYTES_MAX:
                row = raftlog_at(self.arena, self.arena.first + count)
                e = self.scratch + count
                e.term = e.index = 0
                e.type = row.type
                e.data = row.data
                e.data_bytes = row.data_bytes
                size += row.data_bytes
                count += 1
            rc = self.put(link_put_prop(self.at[<int>slot], self.local, self.leader, self.scratch, count))
            if rc != LINK_OK:
                return rc
            raftlog_release_to(self.arena, self.arena.first + count - 1)
            self.forwarded += count
            held -= count
        return LINK_OK

    def flush(self):
        """Write what the sockets take, and see which streams the other side has closed."""
        cdef int slot, kind
        cdef uint64_t bit
        for member, at in list(self.slots.items()):
            slot = at
            bit = <uint64_t>1 << slot
            for kind in range(2):
                if self.ended & bit and link_check_out(self.at[slot], kind) == LINK_BROKEN:
                    self.fail(slot, kind, True)
                elif link_flush(self.at[slot], kind) == LINK_BROKEN:
                    self.fail(slot, kind, True)
        self.ended = self.writable = 0

    def heartbeat(self):
        """Link heartbeats that are due; streams on which nothing moves any more end."""
        cdef uint64_t now = clock_ns()
        cdef int slot, bits, i
        for at in self.slots.values():
            slot = at
            link_heartbeat(self.at[slot], now)
            bits = link_expired(self.at[slot], now)
            for i in range(4):
                if bits & 1 << i:
                    self.fail(slot, i & 1, i < 2)
