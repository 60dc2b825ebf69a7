"""The watches of a member; see watchhub.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from etcdfast._ext.authtable cimport AuthTable, auth_caller_of, auth_identity, auth_may_read
from etcdfast._ext.changes cimport kv_change
from etcdfast._ext.errids cimport ERR_AUTH_OLD_REVISION, ERR_USER_EMPTY
from etcdfast._ext.identity cimport IPC_FLAG_BAD_TOKEN, identity_of, message_bytes
from etcdfast._ext.kvenc cimport parse_keyvalue, stored_kv
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbuf cimport outbuf_free, outbuf_init, outbuf_reset
from etcdfast._ext.revslab cimport arena_alloc, arena_free
from etcdfast._ext.ring cimport (
    IPC_STREAM_CREDIT_BYTES, ST_SLOW_WATCHERS, ST_WATCHERS, ST_WATCH_EVENTS, ST_WATCH_STREAMS, ipc_record,
    record_payload, record_payload_len, status_put,
)
from etcdfast._ext.watchcore cimport LAG_FRONT, LAG_HISTORY, WatchCore
from etcdfast._ext.watchhistory cimport (
    HISTORY_COMPACTED, HISTORY_FRONT, HISTORY_MORE, HISTORY_NO_DELETE, HISTORY_NO_PUT, HISTORY_PREV_KV,
    HISTORY_TOO_LARGE, History, event_append, event_cuts_free, event_cuts_init, previous_of,
)
from etcdfast._ext.watchlog cimport (
    buffer_append, buffer_enlist, buffer_take, buffer_unlist, log_drop_first, log_mark_here, log_put,
)
from etcdfast._ext.watchsend cimport (
    PREFIX_BYTES, SEND_DONE, WAITING_BYTES_MAX, event_piece, outlet, outlet_claim, piece_close, piece_length, piece_of,
    piece_target,
)
from etcdfast._ext.watchtable cimport (
    front_add, front_reserve, id_find, id_insert, lag_add, mixed, stream_erase, stream_find, stream_insert,
)
from etcdfast._ext.watchtree cimport (
    stab_begin, stab_cursor, watch_range, watch_range_end, watch_range_key,
)
from etcdfast._ext.watchtypes cimport (
    BUFFER_DIRTY, BUFFER_KEPT, QUEUE_HISTORY, WATCHER_AHEAD, WATCHER_FRAGMENT, WATCHER_FUTURE, WATCHER_LAGGING,
    WATCHER_NOTIFY, WATCHER_SENDING, WATCHER_SENT, event_buffer, event_ref, link_alone, link_init, link_push,
    link_remove, stream_link, watch_blob, watch_group, watch_stream, watcher,
)
from etcdfast._ext.watchwire cimport (
    WATCH_CANCEL, WATCH_CREATE, WATCH_PROGRESS, decode_watch, event_bytes, put_watch_header, watch_request,
)

from etcdfast._ext.watchcore import HubError

cdef enum:
    STAB_BATCH = 64
    HISTORY_RECORD_BYTES = 2048   # of an EVENTS record beside its events, with a few dozen targets

# What a slice of history came to.
cdef enum:
    SLICE_DONE = 0
    SLICE_PARTIAL = 1    # in the middle of a large revision
    SLICE_NO_ROOM = 2


cdef int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef inline bint filtered(const watch_group *g, bint is_tombstone) noexcept nogil:
    return (g.options & (HISTORY_NO_DELETE if is_tombstone else HISTORY_NO_PUT)) != 0


cdef class WatchHub(WatchCore):
    """`progress_interval_ns`: between notifications, up to a tenth more; `message_bytes_max`: what a message to a
    watcher that asked for fragments stays below."""

    def __cinit__(self, Mvcc mvcc, uint64_t progress_interval_ns, uint64_t seed, uint64_t message_bytes_max):
        self.progress_interval_ns = progress_interval_ns
        self.random = seed
        self.compacted_seen = mvcc.compacted
        self.window_max = IPC_STREAM_CREDIT_BYTES
        self.connections = {}
        outbuf_init(&self.scratch)
        outbuf_init(&self.past)
        event_cuts_init(&self.cuts)

    def __dealloc__(self):
        outbuf_free(&self.scratch)
        outbuf_free(&self.past)
        event_cuts_free(&self.cuts)
        free(self.past_refs)

    # ---- what clients ask for ----

    cdef int call(self, const ipc_record *r) except -1:
        cdef watch_request q
        cdef watch_stream *s = stream_find(&self.streams, r)
        cdef watcher *w
        cdef auth_identity who
        if decode_watch(<const uint8_t *>record_payload(<ipc_record *>r), message_bytes(r), &q) < 0:
            raise HubError("a frontend passed on a watch request that is none")
        if s == NULL:
            s = self.open_stream(r)
        if s.big != NULL and s.big.held.size > WAITING_BYTES_MAX:
            return 0  # its client sends without end and does not read
        if q.kind == WATCH_CREATE:
            if self.auth is not None and self.auth.enabled:
                identity_of(r, &who)
                auth_caller_of(self.auth, &who, &self.caller)
                self.bad_token = (r.flags & IPC_FLAG_BAD_TOKEN) != 0
            self.create(s, &q)
        elif q.kind == WATCH_CANCEL:
            w = id_find(s, q.watch_id)
            if w != NULL:
                self.remove(w)
                self.answer(s, self.mvcc.current, q.watch_id, False, True, 0, NULL)
        elif q.kind == WATCH_PROGRESS:
            self.progress(s)
        return 0

    cdef watch_stream *open_stream(self, const ipc_record *r) except NULL:
        cdef watch_stream *s
        if r.frontend >= self.frontends or self.outlets[r.frontend].ring == NULL:
            raise HubError(f"a watch stream of frontend {r.frontend}, which is not attached")
        s = <watch_stream *>arena_alloc(&self.tree.arena, sizeof(watch_stream))
        if s == NULL:
            raise MemoryError
        memset(s, 0, sizeof(watch_stream))
        link_init(&s.work, s)
        link_init(&s.ticker, s)
        link_init(&s.wish, s)
        s.slot = r.slot
        s.generation = r.generation
        s.stream = r.stream
        s.frontend = r.frontend
        s.flags = r.flags
        if stream_insert(&self.streams, &self.tree.arena, s) != 0:
            arena_free(&self.tree.arena, s, sizeof(watch_stream))
            raise MemoryError
        connection = (s.frontend, s.slot, s.generation)
        streams = self.connections.get(connection, 0) + 1
        self.connections[connection] = streams
        s.window = min(self.window_max, max(STREAM_CREDIT_MIN, CONNECTION_CREDIT_BYTES // streams))
        s.credit = s.window
        return s

    cdef int create(self, watch_stream *s, const watch_request *q) except -1:
        cdef watch_group *g
        cdef watcher *w
        cdef uint64_t shorter
        cdef int order
        cdef int64_t current = self.mvcc.current
        cdef const char *refusal
        cdef watch_request whole
        if q.key.size == 0:
            whole = q[0]
            whole.key.data = <const uint8_t *>"\0"
            whole.key.size = 1
            return self.create(s, &whole)
        if q.start_revision < 0:
            return self.answer(s, current, -1, True, True, 0, "etcdserver: mvcc: required revision has been compacted")
        if self.auth is not None and self.auth.enabled:
            refusal = self.forbids(q)
            if refusal != NULL:
                return self.answer(s, current, -1, True, True, 0, refusal)
        if q.end.size and not (q.end.size == 1 and q.end.data[0] == 0):
            shorter = q.key.size if q.key.size < q.end.size else q.end.size
            order = memcmp(q.key.data, q.end.data, shorter)
            if order > 0 or (order == 0 and q.key.size >= q.end.size):
                return self.answer(s, current, -1, True, True, 0, "mvcc: watcher range is empty")
        if q.watch_id and id_find(s, q.watch_id) != NULL:
            return self.answer(
                s, current, -1, True, True, 0, "mvcc: duplicate watch ID provided on the WatchStream")
        if self.watchers >= WATCHERS_MAX:
            return self.answer(s, current, -1, True, True, 0, "etcdserver: too many requests")

        if not self.following:
            self.fed = current   # nobody wanted to know of what came before
        g = self.group_for(q)
        w = <watcher *>arena_alloc(&self.tree.arena, sizeof(watcher))
        if w == NULL:
            self.group_drop(g)
            raise MemoryError
        memset(w, 0, sizeof(watcher))
        w.stream = s
        w.group = g
        w.watch_id = q.watch_id
        if w.watch_id == 0:
            while id_find(s, s.next_id) != NULL:
                s.next_id += 1
            w.watch_id = s.next_id
        # Every watcher of a group has its place at the front, so that coming there can never fail.
        if front_reserve(g, &self.tree.arena, g.watchers + 1) != 0 or id_insert(s, &self.tree.arena, w) != 0:
            arena_free(&self.tree.arena, w, sizeof(watcher))
            self.group_drop(g)
            raise MemoryError
        if q.watch_id == 0:
            s.next_id = w.watch_id + 1
        g.watchers += 1
        self.watchers += 1
        self.following = True
        if q.fragment:
            w.flags |= WATCHER_FRAGMENT
        if q.progress_notify:
            w.flags |= WATCHER_NOTIFY
            s.notified += 1
            if link_alone(&s.ticker):
                link_push(&self.ticking, &s.ticker)
        self.answer(s, current, w.watch_id, True, False, 0, NULL)
        if 0 < q.start_revision <= current:
            lag_add(w, q.start_revision)
            self.lagging += 1
            if q.start_revision < self.mvcc.compacted:
                return self.cancel_compacted(w)
            self.schedule(s)
            return 0
        w.next_rev = current + 1
        if q.start_revision > current:
            w.next_rev = q.start_revision
            w.flags |= WATCHER_AHEAD | WATCHER_FUTURE
            s.futures += 1
        elif self.fed != current or g.buffer != NULL:
            w.flags |= WATCHER_AHEAD
        front_add(g, w)
        return 0

    cdef const char *forbids(self, const watch_request *q) noexcept nogil:
        # The range as it came: an end of one zero byte asks for every key from the first on.
        cdef int error
        if self.bad_token:
            return "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"
        error = auth_may_read(&self.caller, q.key.data, q.key.size, q.end.data, q.end.size)
        if error == 0:
            return NULL
        if error == ERR_AUTH_OLD_REVISION:
            return "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old"
        if error == ERR_USER_EMPTY:
            return "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"
        return "rpc error: code = PermissionDenied desc = etcdserver: permission denied"

    cdef int gone(self, const ipc_record *r) except -1:
        cdef watch_stream *s = stream_find(&self.streams, r)
        cdef watch_blob *blob
        cdef uint32_t i
        if s == NULL:
            return 0
        stream_erase(&self.streams, s)
        self.unqueue(s)
        link_remove(&s.wish)
        for i in range(s.id_capacity):
            if s.ids[i] != NULL:
                self.detach(s.ids[i])
        if s.ids != NULL:
            arena_free(&self.tree.arena, s.ids, s.id_capacity * sizeof(void *))
        if s.big != NULL:
            blob = s.big.blob
            outbuf_free(&s.big.held)
            free(s.big)
            self.blob_release(blob)
        connection = (s.frontend, s.slot, s.generation)
        left = self.connections[connection] - 1
        if left:
            self.connections[connection] = left
        else:
            del self.connections[connection]
        arena_free(&self.tree.arena, s, sizeof(watch_stream))
        return 1

    cdef int credit(self, const ipc_record *r) except -1:
        cdef watch_stream *s = stream_find(&self.streams, r)
        if s == NULL:
            return 0
        if r.index > <uint64_t>(s.window - s.credit):
            raise HubError("a frontend gave a watch stream more credit than it has")
        s.credit += <int64_t>r.index
        self.schedule(s)
        return 0

    # ---- what time brings ----

    cdef int tick(self, int64_t now_ns) except -1:
        cdef stream_link *link
        cdef stream_link *next
        cdef watch_stream *s
        cdef watcher *w
        cdef watcher *following
        cdef uint64_t i
        cdef uint32_t left
        if self.compacted_seen != self.mvcc.compacted:
            self.compacted_seen = self.mvcc.compacted
            for i in range(self.streams.capacity if self.lagging else 0):
                s = self.streams.slots[i]
                if s == NULL:
                    continue
                w = s.lag_head
                left = s.lagging
                while left:
                    left -= 1
                    following = w.stream_next
                    if (w.next_rev < self.mvcc.compacted and not w.flags & WATCHER_SENDING
                            and self.lag_state(w) == LAG_HISTORY):
                        self.cancel_compacted(w)
                    w = following
        link = self.ticking.next
        while link != &self.ticking:
            next = link.next
            s = link.stream
            if s.progress_due == 0:
                s.progress_due = now_ns + self.jittered()
            elif now_ns >= s.progress_due and s.big == NULL and s.credit > 0 and self.dirty.first == NULL and (
                    self.fed == self.mvcc.current):
                self.notify(s, now_ns)
            link = next
        return 0

    cdef int notify(self, watch_stream *s, int64_t now_ns) noexcept nogil:
        """Tell every watcher of the stream that wants it and had no events lately how far it is. SEND_*."""
        cdef outlet *o = &self.outlets[s.frontend]
        cdef event_piece *piece = &self.piece
        cdef watcher *w
        cdef uint32_t i
        cdef int rc = SEND_DONE
        piece.refs = NULL
        piece.count = piece.events = 0
        piece.bytes = 0
        piece.head_size = <uint32_t>(put_watch_header(piece.head, self.ids, self.mvcc.current) - piece.head)
        piece.charge = piece.head_size + PREFIX_BYTES
        for i in range(s.id_capacity):
            w = s.ids[i]
            if w == NULL or not w.flags & WATCHER_NOTIFY:
                continue
            if w.flags & WATCHER_SENT:
                w.flags &= ~<uint32_t>WATCHER_SENT
                continue
            if w.flags & WATCHER_LAGGING or (w.flags & WATCHER_FUTURE and w.next_rev > self.mvcc.current):
                continue
            if s.credit <= 0:
                break  # it is not reading: nothing is lost when it hears of this later
            rc = piece_target(o, piece, s, w.watch_id, s.notified)
            if rc != SEND_DONE:
                break
        piece_close(o, piece)
        if rc == SEND_DONE:
            s.progress_due = now_ns + self.jittered()
        return rc

    cdef int64_t jittered(self) noexcept nogil:
        self.random = mixed(self.random + <uint64_t>0x9E3779B97F4A7C15)
        return <int64_t>(self.progress_interval_ns + self.random % (self.progress_interval_ns // 10 + 1))

    cdef int cancel_compacted(self, watcher *w) except -1:
        cdef watch_stream *s = w.stream
        cdef int64_t watch_id = w.watch_id
        self.remove(w)
        return self.answer(s, 0, watch_id, False, True, self.mvcc.compacted, NULL)

    # ---- what happened ----

    cdef int feed(self, const kv_change *changes, size_t count) except -1:
        cdef watch_range *ranges[STAB_BATCH]
        cdef stab_cursor cursor
        cdef stored_kv kv
        cdef watch_group *g
        cdef const kv_change *change
        cdef const uint8_t *plain
        cdef const uint8_t *with_prev
        cdef uint32_t plain_size = 0
        cdef uint32_t with_prev_size = 0
        cdef size_t i
        cdef int found, k
        if self.following:
            if self.dirty.first == NULL:
                log_mark_here(&self.log, &self.turn_mark)
                self.turn_marked = True
                self.turn_kept = False
            for i in range(count):
                change = &changes[i]
                if change.main <= self.fed:
                    continue
                if parse_keyvalue(change.record, change.size, &kv) < 0:
                    raise HubError(f"the change {change.main}_{change.sub} holds no KeyValue")
                plain = with_prev = NULL
                stab_begin(&cursor)
                found = STAB_BATCH
                while found == STAB_BATCH:
                    found = self.tree.stab(kv.key, <uint32_t>kv.key_len, ranges, STAB_BATCH, &cursor)
                    for k in range(found):
                        g = <watch_group *>ranges[k].owner
                        while g != NULL:
                            if not filtered(g, change.is_tombstone) and (g.buffer != NULL or g.front_count):
                                if g.options & HISTORY_PREV_KV:
                                    if with_prev == NULL:
                                        with_prev = self.encode(
                                            change,
                                            None if kv.create == change.main and not change.is_tombstone else
                                            previous_of(self.mvcc, kv.key, <uint32_t>kv.key_len, change.main),
                                            &with_prev_size)
                                    if self.add_event(g, with_prev, with_prev_size, change.main) != 0:
                                        raise MemoryError
                                else:
                                    if plain == NULL:
                                        plain = self.encode(change, None, &plain_size)
                                    if self.add_event(g, plain, plain_size, change.main) != 0:
                                        raise MemoryError
                            g = g.next
                self.bound_memory()
        self.fed = self.mvcc.current
        return 0

    cdef const uint8_t *encode(self, const kv_change *change, bytes prev, uint32_t *size) except NULL:
        """The change as field 11, in the log."""
        cdef const uint8_t *event
        cdef int rc
        outbuf_reset(&self.scratch)
        if prev is None:
            rc = event_append(&self.scratch, change, NULL, 0)
        else:
            rc = event_append(
                &self.scratch, change, <const uint8_t *>PyBytes_AS_STRING(prev), <uint64_t>PyBytes_GET_SIZE(prev))
        if rc != 0:
            raise HubError(f"the change {change.main}_{change.sub} holds no KeyValue")
        event = NULL if self.scratch.failed else log_put(
            &self.log, self.scratch.data, self.scratch.size, change.main)
        if event == NULL:
            raise MemoryError
        size[0] = <uint32_t>self.scratch.size
        return event

    cdef int add_event(self, watch_group *g, const uint8_t *data, uint32_t size, int64_t main) noexcept nogil:
        cdef event_buffer *b = g.buffer
        if b == NULL:
            b = buffer_take(&self.pool, g)
            if b == NULL:
                return -1
            g.buffer = b
            # A buffer given up in the middle of this revision took its earlier events along.
            b.floor = main + 1 if main == self.torn else main
        if b.list != BUFFER_DIRTY:
            if b.list == BUFFER_KEPT:
                buffer_unlist(&self.kept, b)
            buffer_enlist(&self.dirty, b, BUFFER_DIRTY)
        return buffer_append(&self.pool, b, data, size, main)

    cdef void bound_memory(self) noexcept nogil:
        """Whoever needs what is dropped here reads it from history."""
        cdef event_buffer *b
        cdef event_buffer *next
        if self.log.bytes > self.log_bytes_max:
            while self.log.bytes > self.log_bytes_max and self.log.first != self.log.last:
                log_drop_first(&self.log)
            self.turn_marked = False
            b = self.dirty.first
            while b != NULL:
                next = b.next
                if b.sent < b.count and b.refs[b.sent].main < self.log.floor:
                    self.fall_back(b)
                b = next
        while self.pool.bytes > self.refs_bytes_max and self.kept.first != NULL:
            self.buffer_drop(self.kept.first)
        while self.pool.bytes > self.refs_bytes_max and self.dirty.first != self.dirty.last:
            self.fall_back(self.dirty.first)

    # ---- past events ----

    cdef int catch_up(self, int64_t stop_ns) except -1:
        cdef stream_link stalled
        cdef watch_stream *s
        cdef outlet *o
        cdef int rc, i
        link_init(&stalled, NULL)
        while not link_alone(&self.reading):
            s = self.reading.next.stream
            o = &self.outlets[s.frontend]
            self.unqueue(s)
            if s.credit <= 0 or s.big != NULL or s.lag_head == NULL or self.lag_state(s.lag_head) != LAG_HISTORY:
                self.schedule(s)
                continue
            # Room first: what is read and cannot be sent was read in vain.
            if o.waiting.size or outlet_claim(o, self.piece_bytes + HISTORY_RECORD_BYTES) == NULL:
                rc = SLICE_NO_ROOM
            else:
                rc = self.read_history(s)
            if rc == SLICE_DONE:
                self.schedule(s)
            else:
                s.queue = QUEUE_HISTORY
                link_push(&stalled if rc == SLICE_NO_ROOM else self.reading.next, &s.work)
            if now_ns() >= stop_ns:
                break
        rc = 0 if link_alone(&self.reading) else 1
        while not link_alone(&stalled):
            s = stalled.next.stream
            link_remove(&s.work)
            link_push(&self.reading, &s.work)
        for i in range(self.frontends):
            o = &self.outlets[i]
            if not link_alone(&o.ready) and not o.blocked and o.waiting.size == 0:
                rc = 1
        return rc

    cdef int read_history(self, watch_stream *s) except -1:
        """A slice for the watcher whose turn it is, and whoever of its group stands at the same place. SLICE_*."""
        cdef watcher *w = s.lag_head
        cdef watcher *following
        cdef watch_group *g = w.group
        cdef int64_t at = w.next_rev
        cdef int64_t current = self.mvcc.current
        cdef int64_t upto
        cdef uint32_t length
        cdef int64_t watch_id
        cdef History history
        cdef int rc
        if at < self.mvcc.compacted:
            self.cancel_compacted(w)
            return SLICE_DONE
        history = self.histories.pop(<size_t>g, None)
        if history is None or history.next_rev != at:
            history = History()
            rc = history.open(
                self.mvcc, watch_range_key(g.range), g.range.key_len, watch_range_end(g.range), g.range.end_len,
                <int>g.options, at)
            if rc == HISTORY_COMPACTED:
                self.cancel_compacted(w)
                return SLICE_DONE
        outbuf_reset(&self.past)
        self.cuts.count = 0
        # A quarter less than a record takes, so that the revision it ends with mostly fits as well.
        rc = history.step(&self.past, &self.cuts, HISTORY_BUDGET, self.piece_bytes * 3 // 4)
        if self.past.failed:
            raise MemoryError
        if rc == HISTORY_COMPACTED and self.cuts.count == 0:
            self.cancel_compacted(w)
            return SLICE_DONE
        if rc == HISTORY_TOO_LARGE and self.cuts.count == 0:
            watch_id = w.watch_id
            self.remove(w)
            self.answer(s, current, watch_id, False, True, 0, "etcdserver: request is too large")
            return SLICE_DONE
        upto = history.next_rev
        if rc == HISTORY_FRONT and upto <= current:
            upto = current + 1
        if self.cuts.count == 0:
            if rc == HISTORY_MORE:
                if len(self.histories) >= HISTORIES_MAX:
                    del self.histories[next(iter(self.histories))]
                self.histories[<size_t>g] = history
                if upto == at:
                    return SLICE_PARTIAL
            w = g.lag_first
            while w != NULL:
                following = w.group_next
                if w.next_rev == at and not w.flags & WATCHER_SENDING:
                    w.next_rev = upto
                    if w.stream.lag_head == w:
                        w.stream.lag_head = w.stream_next
                    if self.lag_state(w) == LAG_FRONT:
                        self.join(w)
                w = following
            return SLICE_DONE
        self.history_refs()
        length = piece_length(self.past_refs, self.cuts.count, self.piece_bytes)
        if length == 0:
            self.start_big(s, w, self.past_refs, 1)
            return SLICE_DONE
        if length < self.cuts.count:
            upto = self.past_refs[length - 1].main + 1
            rc = HISTORY_MORE
        piece_of(&self.piece, self.past_refs, length, self.ids,
                 current if rc == HISTORY_FRONT else self.past_refs[length - 1].main)
        if self.send_lagging(w, upto) != SEND_DONE:
            return SLICE_NO_ROOM
        if rc == HISTORY_MORE and length == self.cuts.count:
            if len(self.histories) >= HISTORIES_MAX:
                del self.histories[next(iter(self.histories))]
            self.histories[<size_t>g] = history
        return SLICE_DONE

    cdef int history_refs(self) except -1:
        """One ref for each revision in self.past."""
        cdef uint64_t begin = 0
        cdef uint64_t at
        cdef uint64_t size
        cdef event_ref *refs
        cdef uint32_t i
        if self.cuts.count > self.past_capacity:
            refs = <event_ref *>realloc(self.past_refs, self.cuts.count * sizeof(event_ref))
            if refs == NULL:
                raise MemoryError
            self.past_refs = refs
            self.past_capacity = self.cuts.count
        for i in range(self.cuts.count):
            refs = &self.past_refs[i]
            refs.main = self.cuts.items[i].revision
            refs.data = self.past.data + begin
            refs.size = <uint32_t>(self.cuts.items[i].end - begin)
            refs.events = 0
            at = begin
            begin = self.cuts.items[i].end
            while at < begin:
                size = event_bytes(self.past.data + at, self.past.data + begin)
                if size == 0:
                    raise HubError("past events that are none")
                at += size
                refs.events += 1
        return 0

    # ---- figures ----

    cdef void figures(self, void *page) noexcept nogil:
        status_put(page, ST_WATCH_STREAMS, self.streams.count)
        status_put(page, ST_WATCHERS, self.watchers)
        status_put(page, ST_SLOW_WATCHERS, self.lagging)
        status_put(page, ST_WATCH_EVENTS, self.events_sent)
