"""Groups, delivery and those who lag; see watchcore.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strlen

from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbuf cimport outbuf_free, outbuf_init
from etcdfast._ext.revslab cimport arena_alloc, arena_free
from etcdfast._ext.ring cimport ipc_record, ipc_target, record_payload, record_payload_len, ring_view
from etcdfast._ext.watchlog cimport (
    buffer_enlist, buffer_find, buffer_give_back, buffer_halve, buffer_pool_clear, buffer_unlist, log_back_to,
    log_free,
)
from etcdfast._ext.watchsend cimport (
    PART_BYTES, PIECE_BYTES, TARGETS_MAX, SEND_DONE, SEND_NO_ROOM, WAITING_BYTES_MAX, big_next_message, big_step, blob_of,
    control_send, event_piece, outlet, outlet_flush, piece_close, piece_length, piece_of, piece_target,
    revision_length,
)
from etcdfast._ext.watchtable cimport (
    front_add, front_remove, front_shrink, id_erase, lag_add, lag_remove,
)
from etcdfast._ext.watchtree cimport WatchTree, watch_range
from etcdfast._ext.watchtypes cimport (
    BUFFER_DIRTY, BUFFER_KEPT, BUFFER_NONE, QUEUE_BLOB, QUEUE_HISTORY, QUEUE_NONE, QUEUE_READY, WATCHER_AHEAD,
    WATCHER_FRAGMENT, WATCHER_FUTURE, WATCHER_LAGGING, WATCHER_NOTIFY, WATCHER_SENDING, WATCHER_SENT, big_send,
    event_buffer, event_ref, link_alone, link_init, link_push, link_remove, stream_link, watch_blob, watch_group,
    watch_stream, watcher,
)
from etcdfast._ext.watchwire cimport CONTROL_BYTES_MAX, put_control, watch_request

cdef enum:
    TARGETS_EXPECTED = 64     # room claimed at a time for those who lag at one place
    TARGETS_AT_ONCE = 1024
    LOOKED_AT_MAX = 16        # of the group's laggards, for one that needs its buffer
    PASSED_OVER_MAX = 32      # of the group's laggards, before nobody further on is looked for


class HubError(Exception):
    """The rings break their contract: the member must stop."""


cdef class WatchCore:

    def __cinit__(self, Mvcc mvcc, uint64_t progress_interval_ns, uint64_t seed, uint64_t message_bytes_max):
        self.mvcc = mvcc
        self.tree = WatchTree(seed)
        self.no_ids.cluster = self.no_ids.member = self.no_ids.term = 0
        self.ids = &self.no_ids
        self.fed = mvcc.current
        self.message_bytes_max = message_bytes_max
        self.piece_bytes = PIECE_BYTES
        self.part_bytes = PART_BYTES
        self.log_bytes_max = LOG_BYTES_MAX
        self.refs_bytes_max = REFS_BYTES_MAX
        self.group_bytes_max = GROUP_BYTES_MAX
        self.blob_bytes_max = BLOB_BYTES_MAX
        self.histories = {}
        memset(self.outlets, 0, sizeof(self.outlets))
        for i in range(FRONTENDS_MAX):
            link_init(&self.outlets[i].ready, NULL)
        link_init(&self.reading, NULL)
        link_init(&self.starved, NULL)
        link_init(&self.ticking, NULL)
        link_init(&self.wishing, NULL)

    def __dealloc__(self):
        cdef uint64_t i
        cdef int frontend
        cdef event_buffer *b
        cdef watch_blob *blob
        cdef big_send *big
        # Watchers, groups and tables lie in the arena of the tree, which gives them back itself.
        for i in range(self.streams.capacity):
            if self.streams.slots[i] != NULL and self.streams.slots[i].big != NULL:
                big = self.streams.slots[i].big
                outbuf_free(&big.held)
                free(big)
        while self.dirty.first != NULL:
            b = self.dirty.first
            buffer_unlist(&self.dirty, b)
            buffer_give_back(&self.pool, b)
        while self.kept.first != NULL:
            b = self.kept.first
            buffer_unlist(&self.kept, b)
            buffer_give_back(&self.pool, b)
        buffer_pool_clear(&self.pool)
        while self.blobs != NULL:
            blob = self.blobs
            self.blobs = blob.next
            free(blob)
        log_free(&self.log)
        for frontend in range(FRONTENDS_MAX):
            outbuf_free(&self.outlets[frontend].waiting)

    cdef void attach_ring(self, int frontend, ring_view *af) noexcept:
        self.outlets[frontend].ring = af
        if frontend >= self.frontends:
            self.frontends = frontend + 1
        # Every record fits into an empty ring, with its targets, head and events.
        self.outlets[frontend].targets_max = <uint32_t>min(<uint64_t>TARGETS_MAX, af.capacity // 4 // sizeof(ipc_target))
        if self.piece_bytes > af.capacity // 4:
            self.piece_bytes = af.capacity // 4
        if self.part_bytes > af.capacity // 4:
            self.part_bytes = af.capacity // 4

    # ---- watchers and groups ----

    cdef watch_group *group_for(self, const watch_request *q) except NULL:
        cdef watch_range *range = self.tree.find_or_add(
            q.key.data, <uint32_t>q.key.size, q.end.data, <uint32_t>q.end.size)
        cdef watch_group *g
        if range == NULL:
            raise MemoryError
        g = <watch_group *>range.owner
        while g != NULL:
            if g.options == q.options:
                return g
            g = g.next
        g = <watch_group *>arena_alloc(&self.tree.arena, sizeof(watch_group))
        if g == NULL:
            if range.owner == NULL:
                self.tree.drop(range)
            raise MemoryError
        memset(g, 0, sizeof(watch_group))
        g.range = range
        g.options = q.options
        g.front = &g.only
        g.front_capacity = 1
        g.next = <watch_group *>range.owner
        range.owner = g
        return g

    cdef int group_drop(self, watch_group *g) except -1:
        """Forget a group if nobody is left in it."""
        cdef watch_blob *blob = self.blobs
        cdef watch_group *before
        if g.watchers:
            front_shrink(g, &self.tree.arena)
            return 0
        if g.buffer != NULL:
            self.buffer_drop(g.buffer)
        while blob != NULL:
            if blob.group == g:
                blob.group = NULL
            blob = blob.next
        if self.histories:
            self.histories.pop(<size_t>g, None)
        before = <watch_group *>g.range.owner
        if before == g:
            g.range.owner = g.next
            if g.next == NULL:
                self.tree.drop(g.range)
        else:
            while before.next != g:
                before = before.next
            before.next = g.next
        if g.front_capacity > 1:
            arena_free(&self.tree.arena, g.front, g.front_capacity * sizeof(void *))
        arena_free(&self.tree.arena, g, sizeof(watch_group))
        return 0

    cdef int detach(self, watcher *w) except -1:
        """Out of its group and every list but the stream's ids, and freed."""
        cdef watch_stream *s = w.stream
        cdef watch_group *g = w.group
        if w.flags & WATCHER_SENDING:
            s.big.target = NULL
        if w.flags & WATCHER_LAGGING:
            lag_remove(w)
            self.lagging -= 1
        else:
            front_remove(g, w)
            if w.flags & WATCHER_FUTURE:
                s.futures -= 1
                if w.next_rev == s.future_rev:
                    s.future_rev = 0
        if w.flags & WATCHER_NOTIFY:
            s.notified -= 1
            if s.notified == 0:
                link_remove(&s.ticker)
                s.progress_due = 0
        arena_free(&self.tree.arena, w, sizeof(watcher))
        self.watchers -= 1
        self.following = self.watchers != 0
        g.watchers -= 1
        if g.buffer != NULL:
            self.buffer_settle(g.buffer)
        return self.group_drop(g)

    cdef int remove(self, watcher *w) except -1:
        id_erase(w.stream, &self.tree.arena, w)
        return self.detach(w)

    cdef int answer(
        self, watch_stream *s, int64_t revision, int64_t watch_id, bint created, bint canceled,
        int64_t compact_revision, const char *reason
    ) except -1:
        cdef uint8_t message[CONTROL_BYTES_MAX]
        cdef outlet *o = &self.outlets[s.frontend]
        cdef uint32_t size = put_control(
            message, self.ids, revision, watch_id, created, canceled, compact_revision, reason,
            <uint32_t>strlen(reason) if reason != NULL else 0)
        if control_send(o, s, message, size) != SEND_DONE:
            raise MemoryError
        if o.waiting.size - o.waiting_at > WAITING_BYTES_MAX:
            self.crowded = True
        return 0

    # ---- progress requests ----

    cdef bint all_at_front(self, const watch_stream *s) noexcept nogil:
        """Whether every watcher of the stream has, in the ring, all that happened."""
        return s.lagging == 0 and s.big == NULL and self.dirty.first == NULL and self.fed == self.mvcc.current

    cdef bint waits_for_future(self, watch_stream *s) noexcept nogil:
        """Looks at all watchers only when the one found last time is there no more: requests are cheap to send."""
        cdef watcher *w
        cdef uint32_t i
        if s.futures == 0:
            return False
        if s.future_rev > self.mvcc.current:
            return True
        s.future_rev = 0
        for i in range(s.id_capacity):
            w = s.ids[i]
            if w == NULL or not w.flags & WATCHER_FUTURE:
                continue
            if w.next_rev <= self.mvcc.current:
                w.flags &= ~<uint32_t>WATCHER_FUTURE
                s.futures -= 1
            elif w.next_rev > s.future_rev:
                s.future_rev = w.next_rev
        return s.future_rev != 0

    cdef int progress(self, watch_stream *s) except -1:
        """Answered when it is true; etcd would let the client ask again."""
        if s.id_count == 0 or self.waits_for_future(s):
            return 0
        if self.all_at_front(s):
            return self.answer(s, self.mvcc.current, -1, False, False, 0, NULL)
        if link_alone(&s.wish):
            link_push(&self.wishing, &s.wish)
        return 0

    # ---- buffers of groups ----

    cdef void buffer_drop(self, event_buffer *b) noexcept nogil:
        b.group.buffer = NULL
        if b.list != BUFFER_NONE:
            buffer_unlist(&self.dirty if b.list == BUFFER_DIRTY else &self.kept, b)
        buffer_give_back(&self.pool, b)

    cdef void buffer_settle(self, event_buffer *b) noexcept nogil:
        """Keep what is sent only for those who lag, and not too much of it."""
        cdef watch_group *g = b.group
        cdef watcher *w
        cdef int looked = 0
        if b.sent < b.count:
            if g.front_count == 0 and g.lag_first == NULL:
                self.buffer_drop(b)
            return
        if g.lag_first == NULL:
            self.buffer_drop(b)
            return
        if b.list != BUFFER_KEPT:
            if b.list == BUFFER_DIRTY:
                buffer_unlist(&self.dirty, b)
            buffer_enlist(&self.kept, b, BUFFER_KEPT)
        if b.bytes > self.group_bytes_max:
            while b.bytes > self.group_bytes_max // 2 and b.first < b.sent:
                buffer_halve(b)
        # Nobody waits for what is here when all who lag read history. Who fell behind last comes last; looking
        # at a few is enough, as what is dropped can be read.
        if g.lag_last.next_rev < b.floor:
            w = g.lag_first
            while w != NULL and w.next_rev < b.floor and looked < LOOKED_AT_MAX:
                w = w.group_next
                looked += 1
            if w == NULL or looked == LOOKED_AT_MAX:
                self.buffer_drop(b)

    cdef void fall_behind(self, watcher *w, int64_t next_rev) noexcept nogil:
        """From the front to those who lag."""
        if w.flags & WATCHER_AHEAD and w.next_rev > next_rev:
            next_rev = w.next_rev
        front_remove(w.group, w)
        lag_add(w, next_rev)
        self.lagging += 1
        self.schedule(w.stream)

    cdef void fall_back(self, event_buffer *b) noexcept nogil:
        """Give up a buffer with unsent events: the whole front of the group goes on through history."""
        cdef watch_group *g = b.group
        cdef int64_t unsent = b.refs[b.sent].main
        cdef int64_t last = b.refs[b.count - 1].main
        cdef int64_t behind_piece = b.refs[b.piece_end - 1].main + 1 if b.piece_end else unsent
        cdef uint32_t i = g.front_count
        cdef watcher *w
        if last > self.torn:
            self.torn = last
        while i:
            i -= 1
            w = g.front[i]
            if not w.flags & WATCHER_AHEAD or w.next_rev <= last:
                self.fall_behind(w, behind_piece if i < b.cursor else unsent)
        self.buffer_drop(b)

    # ---- those who lag ----

    cdef int lag_state(self, const watcher *w) noexcept nogil:
        cdef event_buffer *b = w.group.buffer
        if b != NULL and w.next_rev >= b.floor and w.next_rev >= self.log.floor:
            return LAG_FRONT if buffer_find(b, w.next_rev) >= b.sent else LAG_BUFFER
        return LAG_FRONT if w.next_rev > self.fed else LAG_HISTORY

    cdef void join(self, watcher *w) noexcept nogil:
        """To the front. Precondition: LAG_FRONT."""
        cdef watch_group *g = w.group
        cdef event_buffer *b = g.buffer
        lag_remove(w)
        self.lagging -= 1
        if w.next_rev > self.fed + 1 or (b != NULL and b.sent < b.count and w.next_rev > b.refs[b.sent].main):
            w.flags |= WATCHER_AHEAD
        front_add(g, w)
        if b != NULL:
            self.buffer_settle(b)

    cdef void schedule(self, watch_stream *s) noexcept nogil:
        """Into the list of those that something can be done for, if it is not in one."""
        if s.queue != QUEUE_NONE or s.credit <= 0:
            return
        if s.big == NULL:
            if s.lag_head == NULL:
                return
            if self.lag_state(s.lag_head) == LAG_HISTORY:
                s.queue = QUEUE_HISTORY
                link_push(&self.reading, &s.work)
                return
        s.queue = QUEUE_READY
        link_push(&self.outlets[s.frontend].ready, &s.work)

    cdef void unqueue(self, watch_stream *s) noexcept nogil:
        link_remove(&s.work)
        s.queue = QUEUE_NONE

    # ---- sending ----

    cdef void close_pieces(self) noexcept nogil:
        cdef int i
        for i in range(self.frontends):
            piece_close(&self.outlets[i], &self.piece)

    cdef bint send_front(self, event_buffer *b) noexcept nogil:
        """What a group's front has not got; False when a ring has no room."""
        cdef watch_group *g = b.group
        cdef event_piece *piece = &self.piece
        cdef watcher *w
        cdef watch_stream *s
        cdef uint32_t length, i
        cdef int64_t main
        while b.sent < b.count:
            if b.piece_end == 0:
                length = piece_length(b.refs + b.sent, b.count - b.sent, self.piece_bytes)
                if length == 0:
                    # Each of them is sent this one in parts, in its own time.
                    main = b.refs[b.sent].main
                    i = 0
                    while i < g.front_count:
                        w = g.front[i]
                        if w.flags & WATCHER_AHEAD and w.next_rev > main:
                            i += 1
                        else:
                            self.fall_behind(w, main)
                    b.sent += revision_length(b.refs + b.sent, b.count - b.sent)
                    continue
                b.piece_end = b.sent + length
                b.cursor = 0
            piece_of(piece, b.refs + b.sent, b.piece_end - b.sent, self.ids, b.refs[b.piece_end - 1].main)
            while b.cursor < g.front_count:
                w = g.front[b.cursor]
                s = w.stream
                if w.flags & WATCHER_AHEAD:
                    if w.next_rev > piece.last_main:
                        b.cursor += 1
                        continue
                    if w.next_rev > piece.first_main:
                        self.fall_behind(w, w.next_rev)
                        continue
                    if w.flags & WATCHER_FUTURE:
                        s.futures -= 1
                    w.flags &= ~<uint32_t>(WATCHER_AHEAD | WATCHER_FUTURE)
                if s.credit <= 0 or s.big != NULL:
                    self.fall_behind(w, piece.first_main)
                    continue
                if piece_target(
                        &self.outlets[s.frontend], piece, s, w.watch_id, g.front_count - b.cursor) != SEND_DONE:
                    self.close_pieces()
                    return False
                if w.flags & WATCHER_NOTIFY:
                    w.flags |= WATCHER_SENT
                self.events_sent += piece.events
                b.cursor += 1
            self.close_pieces()
            b.sent = b.piece_end
            b.piece_end = b.cursor = 0
        return True

    cdef int deliver(self) except -1:
        cdef event_buffer *b
        cdef event_buffer *next
        cdef stream_link *link
        cdef watch_group *g
        cdef watch_stream *s
        cdef int i
        cdef int stalled = 0
        cdef int worked
        cdef bint crowded = False
        for i in range(self.frontends):
            if self.outlets[i].ring != NULL:
                self.outlets[i].blocked = False
                if not outlet_flush(&self.outlets[i]):
                    crowded = crowded or (
                        self.outlets[i].waiting.size - self.outlets[i].waiting_at > WAITING_BYTES_MAX)
        self.crowded = crowded
        b = self.dirty.first
        while b != NULL and stalled < STALLED_MAX:
            next = b.next
            if b.refs[b.sent].main < self.log.floor:
                self.fall_back(b)
            elif self.send_front(b):
                g = b.group
                self.buffer_settle(b)
                if g.buffer != NULL:
                    self.turn_kept = True
            else:
                stalled += 1
            b = next
        if self.dirty.first == NULL and self.log.first != NULL:
            if self.kept.first == NULL:
                self.turn_mark.block = NULL
                log_back_to(&self.log, &self.turn_mark)
            elif self.turn_marked and not self.turn_kept:
                log_back_to(&self.log, &self.turn_mark)
            self.turn_marked = False
        worked = self.serve_ready()
        if self.dirty.first == NULL and not link_alone(&self.wishing):
            link = self.wishing.next
            i = 0
            while link != &self.wishing and i < READY_MAX:
                s = link.stream
                link = link.next
                i += 1
                link_remove(&s.wish)
                if self.all_at_front(s):
                    self.progress(s)
                else:
                    link_push(&self.wishing, &s.wish)
        return worked

    cdef int serve_ready(self) except -1:
        cdef outlet *o
        cdef watch_stream *s
        cdef int i, served
        cdef int more = 0
        for i in range(self.frontends):
            o = &self.outlets[i]
            served = 0
            while not link_alone(&o.ready) and not o.blocked and served < READY_MAX:
                s = o.ready.next.stream
                self.unqueue(s)
                if self.serve(o, s) == SEND_NO_ROOM:
                    s.queue = QUEUE_READY
                    link_push(o.ready.next, &s.work)   # before the first: it keeps its turn
                    break
                self.schedule(s)
                served += 1
            if not link_alone(&o.ready) and not o.blocked and o.waiting.size == 0:
                more = 1
        return more

    cdef int serve(self, outlet *o, watch_stream *s) except -1:
        """One step for a stream that has credit, without reading. SEND_*."""
        cdef watcher *w
        cdef event_buffer *b
        cdef uint32_t at, length
        cdef int rc
        cdef int state
        if s.big != NULL:
            rc = big_step(o, s, self.ids, self.part_bytes)
            if rc == SEND_DONE:
                self.end_big(s)
            return rc
        w = s.lag_head
        if w == NULL or s.credit <= 0:
            return SEND_DONE
        state = self.lag_state(w)
        if state == LAG_FRONT:
            self.join(w)
            return SEND_DONE
        if state == LAG_HISTORY:
            return SEND_DONE   # schedule sees it
        b = w.group.buffer
        at = buffer_find(b, w.next_rev)
        length = piece_length(b.refs + at, b.sent - at, self.piece_bytes)
        if length == 0:
            return self.start_big(s, w, b.refs + at, revision_length(b.refs + at, b.sent - at))
        piece_of(&self.piece, b.refs + at, length, self.ids, b.refs[at + length - 1].main)
        return self.send_lagging(w, self.piece.last_main + 1)

    cdef int send_lagging(self, watcher *w, int64_t next_rev) noexcept nogil:
        """self.piece to a watcher, and to those of its group that stand at the same place and can take it; they
        then lack what is from next_rev on. SEND_DONE, or SEND_NO_ROOM when not even the first was sent."""
        cdef int64_t at = w.next_rev
        cdef watcher *v = w
        cdef watcher *following
        cdef watch_stream *s
        cdef int passed_over = 0
        cdef int sent = 0
        while v != NULL and sent < TARGETS_AT_ONCE and passed_over < PASSED_OVER_MAX:
            following = v.group_next
            s = v.stream
            if v.next_rev != at or s.credit <= 0 or s.big != NULL or piece_target(
                    &self.outlets[s.frontend], &self.piece, s, v.watch_id, TARGETS_EXPECTED) != SEND_DONE:
                if v == w:
                    return SEND_NO_ROOM
                passed_over += 1
                v = following
                continue
            sent += 1
            v.next_rev = next_rev
            if v.flags & WATCHER_NOTIFY:
                v.flags |= WATCHER_SENT
            self.events_sent += self.piece.events
            if s.lag_head == v:
                s.lag_head = v.stream_next
            v = following
        self.close_pieces()
        # Only now: coming to the front may give up the buffer that the piece lies in.
        v = w
        while v != NULL and sent:
            following = v.group_next
            if v.next_rev == next_rev:
                sent -= 1
                if self.lag_state(v) == LAG_FRONT:
                    self.join(v)
            v = following
        return SEND_DONE

    # ---- large messages ----

    cdef int start_big(self, watch_stream *s, watcher *w, const event_ref *refs, uint32_t count) except -1:
        """One revision, in parts. SEND_DONE; the stream waits when too much of the kind is under way."""
        cdef watch_blob *blob = self.blobs
        cdef big_send *big
        cdef uint64_t size = 0
        cdef uint32_t i
        while blob != NULL and not (blob.group == w.group and blob.main == refs[0].main):
            blob = blob.next
        if blob == NULL:
            for i in range(count):
                size += refs[i].size
            if self.blob_bytes and self.blob_bytes + size > self.blob_bytes_max:
                s.queue = QUEUE_BLOB
                link_push(&self.starved, &s.work)
                return SEND_DONE
            blob = blob_of(refs, count, size)
            if blob == NULL:
                raise MemoryError
            blob.group = w.group
            blob.prev = NULL
            blob.next = self.blobs
            if self.blobs != NULL:
                self.blobs.prev = blob
            self.blobs = blob
            self.blob_bytes += size
        blob.users += 1
        big = <big_send *>calloc(1, sizeof(big_send))
        if big == NULL:
            self.blob_release(blob)
            raise MemoryError
        outbuf_init(&big.held)
        big.blob = blob
        big.target = w
        big.watch_id = w.watch_id
        big.fragment_bytes = self.message_bytes_max if w.flags & WATCHER_FRAGMENT else 0
        s.big = big
        w.flags |= WATCHER_SENDING
        big_next_message(big, self.ids)
        return SEND_DONE

    cdef int end_big(self, watch_stream *s) except -1:
        cdef big_send *big = s.big
        cdef outlet *o = &self.outlets[s.frontend]
        cdef watch_blob *blob = big.blob
        cdef watcher *w = big.target
        cdef ipc_record *r
        cdef uint64_t at = 0
        s.big = NULL
        while at < big.held.size:
            r = <ipc_record *>(big.held.data + at)
            at += (r.length + 7) & ~<uint64_t>7
            if control_send(o, s, <uint8_t *>record_payload(r), record_payload_len(r)) != SEND_DONE:
                raise MemoryError
        outbuf_free(&big.held)
        free(big)
        if w != NULL:
            w.next_rev = blob.main + 1
            w.flags &= ~<uint32_t>WATCHER_SENDING
            if w.flags & WATCHER_NOTIFY:
                w.flags |= WATCHER_SENT
            self.events_sent += blob.events
            if s.lag_head == w:
                s.lag_head = w.stream_next
            if self.lag_state(w) == LAG_FRONT:
                self.join(w)
        self.blob_release(blob)
        return 0

    cdef void blob_release(self, watch_blob *blob) noexcept nogil:
        cdef watch_stream *s
        blob.users -= 1
        if blob.users:
            return
        if blob.prev != NULL:
            blob.prev.next = blob.next
        else:
            self.blobs = blob.next
        if blob.next != NULL:
            blob.next.prev = blob.prev
        self.blob_bytes -= blob.size
        free(blob)
        while not link_alone(&self.starved):
            s = self.starved.next.stream
            self.unqueue(s)
            self.schedule(s)
