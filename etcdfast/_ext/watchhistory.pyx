"""Events, and reading past ones; see watchhistory.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, qsort, realloc
from libc.string cimport memcmp, memcpy

from etcdfast._ext.changes cimport kv_change
from etcdfast._ext.kvenc cimport (
    APPLIED_KEY_BYTES, APPLIED_MARK, BUCKET_KEY, REVISION_KEY_BYTES, TOMBSTONE_KEY_BYTES, get_be64, keyvalue_size,
    parse_keyvalue, put_be64, put_keyvalue, put_revision_key, stored_kv,
)
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbuf cimport OUTBUF_LIMIT_BYTES, outbuf, outbuf_free, outbuf_init, outbuf_reserve
from etcdfast._ext.revindex cimport IDX_COMPACTED, IDX_NOT_FOUND, KeyInfo
from etcdfast._ext.revrecord cimport SIZE_TOMBSTONE, Revision
from etcdfast._ext.wire cimport (
    WIRE_BYTES, WIRE_MALFORMED, wire_bytes_size, wire_cursor, wire_put_bytes, wire_put_tag, wire_put_uint,
    wire_put_varint, wire_varint,
)

from etcdfast._ext.mvcc import StoreCorrupt

cdef enum:
    EVENTS_FIELD = 11        # of WatchResponse
    EVENT_DELETE = 1
    READ_COST = 8            # a point read of RocksDB against a step of its iterator
    NEAR_REVISIONS = 6       # between two revisions up to which stepping on beats a point read
    NEAR_SKIP_MAX = 24       # records stepped over at most: applied records and other keys lie between
    META_RUN_MAX = 16        # records of other buckets in a row before they are jumped over: a seek costs as much
    REVISION_MARK = 95       # '_' behind the main revision
    KEY_LIST = 256           # revisions of one key listed at a time
    RANGE_LIST_MAX = 32768   # of a range: sorting them takes two milliseconds
    LIST_LOOK_MAX = 32768    # records and leaves of the index looked at for a list: half a millisecond
    LIST_LOOK_FACTOR = 32    # looks at the index that cost what one record of the store does
    LIST_SPAN = 1048576      # revisions that one list spans
    LIST_SPAN_MIN = 1024     # below, walking costs no more than trying
    LIST_KEEP = 1024         # entries; a longer list is given back at its end


# ---- events ----

cdef inline uint64_t event_bytes(bint is_delete, uint64_t kv_bytes, bint with_prev, uint64_t prev_size) noexcept nogil:
    """Bytes inside an Event."""
    cdef uint64_t n = wire_bytes_size(2, kv_bytes)
    if is_delete:
        n += 2
    if with_prev:
        n += wire_bytes_size(3, prev_size)
    return n


cdef inline uint8_t *put_event_head(outbuf *out, bint is_delete, uint64_t body) noexcept nogil:
    """Room for the whole field, and its bytes up to the type; NULL when the buffer failed."""
    cdef uint8_t *p = outbuf_reserve(out, wire_bytes_size(EVENTS_FIELD, body))
    if p == NULL:
        return NULL
    p = wire_put_varint(wire_put_tag(p, EVENTS_FIELD, WIRE_BYTES), body)
    if is_delete:
        p = wire_put_uint(p, 1, EVENT_DELETE)
    return p


cdef void append_put(
    outbuf *out, const uint8_t *record, uint64_t size, const uint8_t *prev, uint64_t prev_size
) noexcept nogil:
    cdef uint8_t *p = put_event_head(out, False, event_bytes(False, size, prev != NULL, prev_size))
    if p == NULL:
        return
    p = wire_put_bytes(p, 2, record, size)
    if prev != NULL:
        p = wire_put_bytes(p, 3, prev, prev_size)
    out.size = <uint64_t>(p - out.data)


cdef void append_delete(
    outbuf *out, const uint8_t *key, uint64_t key_len, int64_t main, const uint8_t *prev, uint64_t prev_size
) noexcept nogil:
    cdef uint64_t kv_bytes = keyvalue_size(key_len, 0, main, 0, 0, 0)
    cdef uint8_t *p = put_event_head(out, True, event_bytes(True, kv_bytes, prev != NULL, prev_size))
    if p == NULL:
        return
    p = wire_put_varint(wire_put_tag(p, 2, WIRE_BYTES), kv_bytes)
    p = put_keyvalue(p, key, key_len, 0, main, 0, NULL, 0, 0)
    if prev != NULL:
        p = wire_put_bytes(p, 3, prev, prev_size)
    out.size = <uint64_t>(p - out.data)


cdef int event_append(outbuf *out, const kv_change *change, const uint8_t *prev, uint64_t prev_size) noexcept nogil:
    cdef stored_kv kv
    if not change.is_tombstone:
        append_put(out, change.record, change.size, prev, prev_size)
        return 0
    if parse_keyvalue(change.record, change.size, &kv) < 0:
        return WIRE_MALFORMED
    append_delete(out, kv.key, kv.key_len, change.main, prev, prev_size)
    return 0


cdef bytes previous_of(Mvcc mvcc, const uint8_t *key, uint32_t key_len, int64_t main):
    cdef KeyInfo info
    cdef int rc
    # The index takes a revision of 0 for now. It learns of a compaction later than `compacted` does.
    if main < 2 or main - 1 < mvcc.compacted:
        return None
    rc = mvcc.index.get(<const char *>key, key_len, main - 1, &info)
    if rc == IDX_NOT_FOUND or rc == IDX_COMPACTED:
        return None
    if rc != 0:
        raise StoreCorrupt(f"revision index: error {rc} at revision {main - 1}")
    return mvcc.fetch(info.mod_main, info.mod_sub)


# ---- past events ----

cdef int by_revision(const void *a, const void *b) noexcept nogil:
    cdef const Revision *x = <const Revision *>a
    cdef const Revision *y = <const Revision *>b
    if x.main != y.main:
        return 1 if x.main > y.main else -1
    return (x.sub > y.sub) - (x.sub < y.sub)


cdef inline bint record_key_of(bytes record, const uint8_t **key, uint64_t *key_len) noexcept:
    """The key of a stored KeyValue; False when it holds none. What we and etcd write has it first."""
    cdef wire_cursor c
    cdef stored_kv kv
    c.pos = <const uint8_t *>PyBytes_AS_STRING(record)
    c.end = c.pos + PyBytes_GET_SIZE(record)
    if c.pos < c.end and c.pos[0] == (1 << 3 | WIRE_BYTES):
        c.pos += 1
        if wire_varint(&c, key_len) < 0 or key_len[0] > <uint64_t>(c.end - c.pos):
            return False
        key[0] = c.pos
        return True
    if parse_keyvalue(c.pos, <uint64_t>(c.end - c.pos), &kv) < 0:
        return False
    key[0] = kv.key
    key_len[0] = kv.key_len
    return True


cdef inline int order_of(const uint8_t *a, uint64_t a_len, bytes b) noexcept:
    cdef uint64_t b_len = <uint64_t>PyBytes_GET_SIZE(b)
    cdef int order = memcmp(a, PyBytes_AS_STRING(b), a_len if a_len < b_len else b_len)
    return order if order else (a_len > b_len) - (a_len < b_len)


cdef class History:

    def __cinit__(self):
        outbuf_init(&self.partial)
        self.listed = NULL

    def __dealloc__(self):
        outbuf_free(&self.partial)
        free(self.listed)

    cdef int open(
        self, Mvcc mvcc, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len,
        int options, int64_t from_rev
    ) except -1:
        self.mvcc = mvcc
        self.key = PyBytes_FromStringAndSize(<const char *>key, key_len)
        self.end = PyBytes_FromStringAndSize(<const char *>end, end_len)
        self.options = options
        self.next_rev = from_rev
        self.listed_count = self.listed_at = self.listed_upto = self.walk_upto = 0
        self.last_record = None
        self.last_main = 0
        self.drop_partial()
        return HISTORY_COMPACTED if from_rev < mvcc.compacted else HISTORY_FRONT

    cdef void drop_partial(self) noexcept:
        outbuf_free(&self.partial)
        self.partial_sub = 0

    cdef int step(self, outbuf *events, event_cuts *cuts, int64_t budget, uint64_t bytes_max) except -1:
        cdef Mvcc mvcc = self.mvcc
        cdef int status = HISTORY_FRONT
        self.upto = mvcc.current
        if mvcc.pending_count:
            self.upto = mvcc.pending[0].main - 1  # what is not written yet cannot be walked over
        if self.next_rev < mvcc.compacted:
            self.drop_partial()
            return HISTORY_COMPACTED
        self.events = events
        self.cuts = cuts
        self.budget = budget
        self.bytes_stop = events.size + bytes_max
        self.whole = events.size
        self.given = False
        try:
            while self.next_rev <= self.upto and status == HISTORY_FRONT:
                if self.budget <= 0 or events.size >= self.bytes_stop:
                    status = HISTORY_MORE
                else:
                    status = self.read_on(self.upto)
        finally:
            # An iterator holds on to what RocksDB would let go: never from step to step.
            self.walk = None
            events.size = self.whole
            self.events = NULL
            self.cuts = NULL
        if status == HISTORY_FRONT and self.upto < mvcc.current:
            status = HISTORY_MORE
        return status

    cdef int read_on(self, int64_t upto) except -1:
        """Read by list or by walk; HISTORY_FRONT when that came to its end, which may lie before `upto`."""
        if self.listed_upto == 0 and self.partial_sub == 0 and self.next_rev > self.walk_upto:
            self.make_list(upto)
        if self.listed_upto:
            return self.read_list()
        return self.read_walk(min(upto, self.walk_upto))

    # ---- by list ----

    cdef int make_list(self, int64_t upto) except -1:
        """List what the range has from next_rev on, or note up to where to walk instead."""
        cdef int64_t span, look, found
        if PyBytes_GET_SIZE(self.end) == 0:
            return self.list_key(upto)
        if upto - self.next_rev >= LIST_SPAN:
            upto = self.next_rev + LIST_SPAN - 1
        span = upto - self.next_rev + 1
        if span >= LIST_SPAN_MIN:
            # In vain or not, it takes no more than half of the step: the other half goes on for certain.
            look = min(<int64_t>LIST_LOOK_MAX, span, self.budget * (LIST_LOOK_FACTOR // 2))
            found = min(<int64_t>RANGE_LIST_MAX, span // READ_COST, look)
            self.room_for(found)
            found = self.mvcc.index.revs_of_range(
                PyBytes_AS_STRING(self.key), <uint32_t>PyBytes_GET_SIZE(self.key),
                PyBytes_AS_STRING(self.end), <uint32_t>PyBytes_GET_SIZE(self.end),
                self.next_rev, upto, self.listed, found, look)
            self.budget -= look // LIST_LOOK_FACTOR
            if found >= 0:
                qsort(self.listed, <size_t>found, sizeof(Revision), by_revision)
                self.listed_count = found
                self.listed_at = 0
                self.listed_upto = upto
                self.stepping = True
                return 0
            self.drop_list()
        self.walk_upto = upto
        return 0

    cdef int list_key(self, int64_t upto) except -1:
        cdef int64_t cap = KEY_LIST
        cdef int64_t count
        self.budget -= 1
        while True:
            self.room_for(cap)
            count = self.mvcc.index.revs_from(
                PyBytes_AS_STRING(self.key), <uint32_t>PyBytes_GET_SIZE(self.key), self.next_rev, 0, self.listed,
                <int>cap)
            self.listed_upto = upto
            if count == cap and self.listed[count - 1].main <= upto:
                # The last revision may not be listed whole.
                self.listed_upto = self.listed[count - 1].main - 1
            while count and self.listed[count - 1].main > self.listed_upto:
                count -= 1
            if self.listed_upto >= self.next_rev:
                break
            cap *= 2
        self.listed_count = count
        self.listed_at = 0
        self.stepping = True
        return 0

    cdef int room_for(self, int64_t count) except -1:
        cdef void *grown
        if self.listed_capacity < count:
            grown = realloc(self.listed, <size_t>count * sizeof(Revision))
            if grown == NULL:
                raise MemoryError
            self.listed = <Revision *>grown
            self.listed_capacity = count
        return 0

    cdef void drop_list(self) noexcept:
        self.listed_count = self.listed_at = self.listed_upto = 0
        if self.listed_capacity > LIST_KEEP:
            free(self.listed)
            self.listed = NULL
            self.listed_capacity = 0

    cdef int read_list(self) except -1:
        cdef Revision *r
        cdef bytes record
        cdef int status
        cdef bint is_tombstone
        while self.listed_at < self.listed_count:
            r = &self.listed[self.listed_at]
            if self.listed_at and self.listed[self.listed_at - 1].main == r.main:
                if self.budget <= 0:
                    self.set_aside(1)
                    return HISTORY_MORE
            else:
                status = self.end_revision(r.main)
                if status != HISTORY_FRONT:
                    return status
                if self.budget <= 0 or self.events.size >= self.bytes_stop:
                    return HISTORY_MORE
            is_tombstone = (r.size_mark & SIZE_TOMBSTONE) != 0
            self.budget -= 1
            if self.options & (HISTORY_NO_DELETE if is_tombstone else HISTORY_NO_PUT):
                self.last_record = None
            else:
                record = None
                if not is_tombstone or PyBytes_GET_SIZE(self.end):
                    record = self.listed_record(r)
                status = self.emit(r.main, is_tombstone, record)
                if status != HISTORY_FRONT:
                    return status
            self.listed_at += 1
        status = self.end_revision(self.listed_upto + 1)
        if status == HISTORY_FRONT:
            self.drop_list()
        return status

    cdef bytes listed_record(self, const Revision *r):
        """What is stored of a listed revision. StoreCorrupt when it is not there."""
        cdef uint8_t wanted[TOMBSTONE_KEY_BYTES]
        cdef Py_ssize_t wanted_len = REVISION_KEY_BYTES
        cdef int64_t at = self.listed_at
        cdef int skipped, order
        cdef bytes key
        cdef object value
        put_revision_key(wanted, r.main, r.sub)
        if r.size_mark & SIZE_TOMBSTONE:
            wanted[REVISION_KEY_BYTES] = 116  # 't'
            wanted_len = TOMBSTONE_KEY_BYTES
        if r.main - self.walk_main > 2 * NEAR_REVISIONS:
            self.walk = None  # revisions that the options leave out, or a pause of the key, lie between
        self.walk_main = r.main
        if self.stepping and (
                (at and r.main - self.listed[at - 1].main <= NEAR_REVISIONS)
                or (at + 1 < self.listed_count and self.listed[at + 1].main - r.main <= NEAR_REVISIONS)):
            if self.walk is None:
                self.walk = self.open_walk(wanted, wanted_len)
            for skipped in range(NEAR_SKIP_MAX):
                item = next(self.walk, None)
                if item is None:
                    break
                key, value = item
                order = order_of(wanted, wanted_len, key)
                if order == 0 and type(value) is bytes:
                    self.budget -= skipped
                    return <bytes>value
                if order < 0:
                    break
            # Not as close as it seemed, or the walk ended early, which a point read tells apart.
            self.walk = None
            self.stepping = False
            self.budget -= NEAR_SKIP_MAX
        self.budget -= READ_COST - 1
        if not r.size_mark & SIZE_TOMBSTONE:
            return self.mvcc.fetch(r.main, r.sub)
        try:
            value = self.mvcc.read(PyBytes_FromStringAndSize(<char *>wanted, wanted_len))
        except Exception as err:
            raise StoreCorrupt(f"cannot read tombstone {r.main}_{r.sub}: {err}") from err
        if type(value) is not bytes:
            raise StoreCorrupt(f"tombstone {r.main}_{r.sub} is in the index and not in the store")
        return <bytes>value

    # ---- by walk ----

    cdef object open_walk(self, const uint8_t *key, Py_ssize_t key_len):
        try:
            return iter(self.mvcc.walk(PyBytes_FromStringAndSize(<const char *>key, key_len)))
        except Exception as err:
            raise StoreCorrupt(f"cannot walk the store from revision {self.next_rev}: {err}") from err

    cdef int read_walk(self, int64_t upto) except -1:
        """Read what is stored, up to revision `upto`."""
        cdef uint8_t start[REVISION_KEY_BYTES]
        cdef bytes key, value
        cdef const uint8_t *k
        cdef const uint8_t *found
        cdef uint64_t found_len
        cdef Py_ssize_t key_len
        cdef int64_t main, sub
        cdef int meta_run = 0
        cdef int status
        cdef bint is_tombstone
        cdef bint open_end = PyBytes_GET_SIZE(self.end) == 1 and PyBytes_AS_STRING(self.end)[0] == 0
        put_revision_key(start, self.next_rev, self.partial_sub)
        self.walk = self.open_walk(start, REVISION_KEY_BYTES)
        try:
            while True:
                item = next(self.walk, None)
                if item is None:
                    self.check_end()
                    return self.end_revision(upto + 1)
                key, value = item
                k = <const uint8_t *>PyBytes_AS_STRING(key)
                key_len = PyBytes_GET_SIZE(key)
                if key_len < APPLIED_KEY_BYTES or k[0] != BUCKET_KEY:
                    raise StoreCorrupt(f"store holds a key that is none of ours: {key.hex()}")
                main = <int64_t>get_be64(k + 1)
                if main > upto:
                    return self.end_revision(upto + 1)
                if main > self.next_rev:
                    status = self.end_revision(main)
                    if status != HISTORY_FRONT:
                        return status
                    if self.budget <= 0 or self.events.size >= self.bytes_stop:
                        return HISTORY_MORE
                if k[9] != REVISION_MARK:
                    if k[9] == APPLIED_MARK and main == upto:
                        return self.end_revision(upto + 1)
                    self.budget -= 1
                    meta_run += 1
                    if meta_run == META_RUN_MAX:
                        # Only the applied record comes behind those of the other buckets. It is not passed over:
                        # meeting it tells that the walk came to its end.
                        meta_run = 0
                        put_be64(start + 1, <uint64_t>main)
                        start[9] = APPLIED_MARK
                        self.walk = self.open_walk(start, APPLIED_KEY_BYTES)
                    continue
                meta_run = 0
                if key_len != REVISION_KEY_BYTES and key_len != TOMBSTONE_KEY_BYTES:
                    raise StoreCorrupt(f"store holds a key that is none of ours: {key.hex()}")
                sub = <int64_t>get_be64(k + 10)
                if self.budget <= 0 and sub:  # a revision begun: its end is not in sight
                    self.set_aside(sub)
                    return HISTORY_MORE
                self.budget -= 1
                is_tombstone = key_len == TOMBSTONE_KEY_BYTES
                if self.options & (HISTORY_NO_DELETE if is_tombstone else HISTORY_NO_PUT):
                    continue
                if not record_key_of(value, &found, &found_len):
                    raise StoreCorrupt(f"revision {main}_{sub} holds no KeyValue")
                if order_of(found, found_len, self.key) < 0:
                    continue
                if not open_end and order_of(found, found_len, self.end) >= 0:
                    continue
                status = self.emit(main, is_tombstone, value)
                if status != HISTORY_FRONT:
                    return status
        except (StoreCorrupt, MemoryError):
            raise
        except Exception as err:
            raise StoreCorrupt(f"cannot walk the store behind revision {self.next_rev}: {err}") from err

    cdef int check_end(self) except -1:
        """The store's iterator has ended: is that the end of the store? It ends at damage without a word.

        The last record is the applied one of the current revision. It is missing only when a restart took
        the current revision from a compaction and nothing was written since.
        """
        cdef uint8_t last[APPLIED_KEY_BYTES]
        last[0] = BUCKET_KEY
        put_be64(last + 1, <uint64_t>self.upto)
        last[9] = APPLIED_MARK
        try:
            value = self.mvcc.read(PyBytes_FromStringAndSize(<char *>last, APPLIED_KEY_BYTES))
        except Exception as err:
            raise StoreCorrupt(f"cannot read the applied record of revision {self.upto}: {err}") from err
        if value is not None:
            raise StoreCorrupt(f"store is damaged behind revision {self.next_rev}")
        return 0

    # ---- both ----

    cdef int emit(self, int64_t main, bint is_tombstone, bytes record) except -1:
        """One event; `record` may be None for a delete of a single key. HISTORY_FRONT when it is in, else the
        revision is to be begun again (HISTORY_MORE) or more than can be sent (HISTORY_TOO_LARGE)."""
        cdef outbuf *target = &self.partial if self.partial_sub else self.events
        cdef const uint8_t *key = <const uint8_t *>PyBytes_AS_STRING(self.key)
        cdef uint64_t key_len = <uint64_t>PyBytes_GET_SIZE(self.key)
        cdef bint single = PyBytes_GET_SIZE(self.end) == 0
        cdef const uint8_t *prev_data = NULL
        cdef uint64_t prev_size = 0
        cdef uint64_t need = 64
        cdef stored_kv kv
        cdef bytes prev = None
        cdef bint was_there = True
        if record is not None:
            need += <uint64_t>PyBytes_GET_SIZE(record)
            if not single and not record_key_of(record, &key, &key_len):
                raise StoreCorrupt(f"a tombstone of revision {main} holds no KeyValue")
        else:
            need += key_len
        if self.options & HISTORY_PREV_KV:
            if not is_tombstone:
                if parse_keyvalue(PyBytes_AS_STRING(record), <uint64_t>PyBytes_GET_SIZE(record), &kv) < 0:
                    raise StoreCorrupt(f"a record of revision {main} holds no KeyValue")
                was_there = kv.create != main
            if was_there:
                if single and self.last_record is not None and self.last_main < main:
                    prev = self.last_record if main - 1 >= self.mvcc.compacted else None
                else:
                    prev = previous_of(self.mvcc, key, <uint32_t>key_len, main)
            if single:
                self.last_record = None if is_tombstone else record
                self.last_main = main
            if prev is not None:
                prev_data = <const uint8_t *>PyBytes_AS_STRING(prev)
                prev_size = <uint64_t>PyBytes_GET_SIZE(prev)
                need += prev_size
        if target.size + need > OUTBUF_LIMIT_BYTES:
            self.begin_again()
            return HISTORY_MORE if self.given else HISTORY_TOO_LARGE
        if is_tombstone:
            append_delete(target, key, key_len, main, prev_data, prev_size)
        else:
            append_put(
                target, <const uint8_t *>PyBytes_AS_STRING(record), <uint64_t>PyBytes_GET_SIZE(record), prev_data,
                prev_size)
        if target.failed:
            raise MemoryError
        return HISTORY_FRONT

    cdef int end_revision(self, int64_t resume) except -1:
        """All events of next_rev are in, and there are none below `resume`."""
        cdef uint8_t *p
        if resume == self.next_rev:
            return HISTORY_FRONT
        if self.partial_sub:
            if self.events.size + self.partial.size > OUTBUF_LIMIT_BYTES:
                self.begin_again()
                return HISTORY_TOO_LARGE
            if self.partial.size:
                p = outbuf_reserve(self.events, self.partial.size)
                if p == NULL:
                    raise MemoryError
                memcpy(p, self.partial.data, self.partial.size)
                self.events.size += self.partial.size
            self.drop_partial()
        if self.events.size > self.whole:
            if event_cuts_add(self.cuts, self.next_rev, self.events.size) != 0:
                raise MemoryError
            self.whole = self.events.size
            self.given = True
        self.next_rev = resume
        return HISTORY_FRONT

    cdef void begin_again(self) noexcept:
        """Back to the first event of next_rev."""
        self.drop_partial()
        self.last_record = None
        while self.listed_at and self.listed[self.listed_at - 1].main >= self.next_rev:
            self.listed_at -= 1

    cdef int set_aside(self, int64_t sub) except -1:
        """Keep the events of a revision that goes on at `sub` for the next step."""
        cdef uint64_t size = self.events.size - self.whole
        cdef uint8_t *p
        if self.partial_sub == 0 and size:
            p = outbuf_reserve(&self.partial, size)
            if p == NULL:
                raise MemoryError
            memcpy(p, self.events.data + self.whole, size)
            self.partial.size = size
        self.partial_sub = sub
        return 0
