"""The watch hub for Python: tests and measurements. The loop's part is played by its caller."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from etcdfast._ext.kvenc cimport header_ids
from etcdfast._ext.kvreq cimport bytes_view
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.ring cimport (
    IPC_CALL, IPC_CANCEL, IPC_CREDIT, IPC_EVENTS, IPC_HALF, Ring, StatusPage, ipc_events, ipc_record, record_payload,
    ring_advance, ring_peek, ring_publish, ring_release,
)
from etcdfast._ext.watchhub cimport WatchHub
from etcdfast._ext.watchtypes cimport (
    BUFFER_DIRTY, BUFFER_KEPT, BUFFER_NONE, WATCHER_AHEAD, WATCHER_FUTURE, WATCHER_LAGGING, WATCHER_NOTIFY,
    event_buffer, watch_group, watch_stream, watcher,
)

cdef int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef void view_of(bytes data, bytes_view *view) noexcept:
    view.data = <const uint8_t *>PyBytes_AS_STRING(data)
    view.size = <uint64_t>PyBytes_GET_SIZE(data)


cdef class HubFace:
    """A WatchHub on an Mvcc, and the writes that it follows."""

    cdef readonly WatchHub hub
    cdef readonly Mvcc mvcc
    cdef list rings
    cdef header_ids ids

    def __cinit__(self, Mvcc mvcc, uint64_t progress_interval_ns, uint64_t seed, uint64_t message_bytes_max,
                  uint64_t cluster=1, uint64_t member=2, uint64_t term=3):
        self.mvcc = mvcc
        mvcc.followed = True
        self.hub = WatchHub(mvcc, progress_interval_ns, seed, message_bytes_max)
        self.ids.cluster = cluster
        self.ids.member = member
        self.ids.term = term
        self.hub.ids = &self.ids
        self.rings = []

    def attach(self, int frontend, Ring ring):
        self.rings.append(ring)
        self.hub.attach_ring(frontend, &ring.view)

    def limit(self, *, piece_bytes=None, part_bytes=None, log_bytes=None, refs_bytes=None, group_bytes=None,
              blob_bytes=None, window=None):
        """Other limits than those of a member; pieces and parts only get smaller, for the rings' sake."""
        if piece_bytes:
            self.hub.piece_bytes = min(piece_bytes, self.hub.piece_bytes)
        if part_bytes:
            self.hub.part_bytes = min(part_bytes, self.hub.part_bytes)
        if log_bytes:
            self.hub.log_bytes_max = log_bytes
        if refs_bytes:
            self.hub.refs_bytes_max = refs_bytes
        if group_bytes:
            self.hub.group_bytes_max = group_bytes
        if window:
            self.hub.window_max = window
        if blob_bytes:
            self.hub.blob_bytes_max = blob_bytes

    # ---- the loop ----

    def take(self, Ring ring, int records_max=1 << 30):
        """Records of a frontend, to the hub; how many."""
        cdef ipc_record *r
        cdef int taken = 0
        while taken < records_max and not self.hub.crowded:
            r = ring_peek(&ring.view)
            if r == NULL:
                break
            if r.kind == IPC_CALL:
                self.hub.call(r)
            elif r.kind == IPC_CREDIT:
                self.hub.credit(r)
            elif r.kind == IPC_CANCEL:
                self.hub.gone(r)
            elif r.kind != IPC_HALF:
                raise ValueError(r.kind)
            ring_advance(&ring.view, r)
            taken += 1
        ring_release(&ring.view)
        return taken

    def apply(self, list operations):
        """One transaction of (key, value) puts and (key, end, None) deletes; whether it changed anything."""
        cdef bytes_view key, value
        self.mvcc.begin()
        for operation in operations:
            view_of(operation[0], &key)
            view_of(operation[1], &value)
            if len(operation) == 2:
                self.mvcc.put(&key, &value, 0)
            else:
                self.mvcc.delete_range(&key, &value)
        return bool(self.mvcc.commit())

    def write(self):
        """The batch to the store, and what it changed to the hub."""
        if self.mvcc.batch_changes:
            self.mvcc.write_batch(1, 1)
        self.feed()

    def feed(self):
        self.hub.feed(self.mvcc.changes, self.mvcc.change_count)
        self.mvcc.forget_changes()

    def deliver(self):
        cdef int more = self.hub.deliver()
        self.publish()
        return more

    def catch_up(self, int64_t slice_ns=1000000000):
        """slice_ns 0: one slice."""
        cdef int more = self.hub.catch_up(now_ns() + slice_ns)
        self.publish()
        return more

    def tick(self, int64_t at_ns):
        self.hub.tick(at_ns)
        self.publish()

    def publish(self):
        cdef Ring ring
        for ring in self.rings:
            ring_publish(&ring.view)

    def figures(self, StatusPage page):
        self.hub.figures(page.page)

    def discard(self, Ring ring):
        """Take what is in a ring and give all credit back, as a frontend that is infinitely fast; how many targets
        of EVENTS. For measurements."""
        cdef ipc_record *r
        cdef watch_stream *s
        cdef uint64_t targets = 0
        cdef uint64_t i
        while True:
            r = ring_peek(&ring.view)
            if r == NULL:
                break
            if r.kind == IPC_EVENTS:
                targets += (<ipc_events *>record_payload(r)).targets
            ring_advance(&ring.view, r)
        ring_release(&ring.view)
        for i in range(self.hub.streams.capacity):
            s = self.hub.streams.slots[i]
            if s != NULL:
                s.credit = s.window
                self.hub.schedule(s)
        return targets

    # ---- looking inside ----

    @property
    def bytes_held(self):
        """(log, buffers, blobs, arena in use, arena taken from the system)."""
        return (self.hub.log.bytes, self.hub.pool.bytes, self.hub.blob_bytes, self.hub.tree.used_bytes(),
                self.hub.tree.arena.held_bytes)

    def streams(self):
        """(frontend, slot, generation, stream, credit, window, watchers, lagging) of each."""
        cdef uint64_t i
        cdef watch_stream *s
        found = []
        for i in range(self.hub.streams.capacity):
            s = self.hub.streams.slots[i]
            if s != NULL:
                found.append((s.frontend, s.slot, s.generation, s.stream, s.credit, s.window, s.id_count, s.lagging))
        return found

    def verify(self):
        """Every list and counter says the same; AssertionError. How many watchers."""
        cdef uint64_t i
        cdef uint32_t k
        cdef watch_stream *s
        cdef watcher *w
        cdef watcher *v
        cdef watch_group *g
        cdef event_buffer *b
        cdef uint64_t watchers = 0
        cdef uint64_t lagging = 0
        cdef uint32_t on_stream, notified, futures, in_group, count
        for i in range(self.hub.streams.capacity):
            s = self.hub.streams.slots[i]
            if s == NULL:
                continue
            on_stream = notified = futures = count = 0
            for k in range(s.id_capacity):
                w = s.ids[k]
                if w == NULL:
                    continue
                count += 1
                assert w.stream == s
                g = w.group
                notified += 1 if w.flags & WATCHER_NOTIFY else 0
                futures += 1 if w.flags & WATCHER_FUTURE else 0
                if w.flags & WATCHER_LAGGING:
                    on_stream += 1
                    assert w.stream_next.stream_prev == w and w.stream_prev.stream_next == w
                    assert not w.flags & (WATCHER_AHEAD | WATCHER_FUTURE)
                else:
                    assert g.front[w.place] == w and w.place < g.front_count
                in_group = 0
                v = g.lag_first
                while v != NULL:
                    in_group += 1
                    assert v.flags & WATCHER_LAGGING and v.group == g
                    v = v.group_next
                assert g.watchers == g.front_count + in_group <= g.front_capacity
            assert count == s.id_count and on_stream == s.lagging
            assert notified == s.notified and futures == s.futures
            assert s.credit <= s.window
            watchers += count
            lagging += on_stream
        assert watchers == self.hub.watchers and lagging == self.hub.lagging
        b = self.hub.dirty.first
        while b != NULL:
            assert b.list == BUFFER_DIRTY and b.group.buffer == b and b.first <= b.sent < b.count <= b.capacity
            b = b.next
        b = self.hub.kept.first
        while b != NULL:
            assert b.list == BUFFER_KEPT and b.group.buffer == b and b.first <= b.sent == b.count
            assert b.group.lag_first != NULL
            b = b.next
        return watchers
