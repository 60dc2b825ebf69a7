"""KV.Range at a pinned revision; see rangeread.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport PyObject, Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, qsort, realloc
from libc.string cimport memcmp

from etcdfast._ext.errids cimport ERR_COMPACTED, ERR_FUTURE_REV, ERR_NONE
from etcdfast._ext.kvenc cimport (
    APPLIED_KEY_BYTES, REVISION_KEY_BYTES, keyvalue_size, parse_keyvalue, put_keyvalue, put_revision_key, stored_kv,
)
from etcdfast._ext.kvreq cimport (
    SORT_ASCEND, SORT_DESCEND, SORT_NONE, TARGET_CREATE, TARGET_KEY, TARGET_MOD, TARGET_VALUE, TARGET_VERSION,
    range_request,
)
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbuf cimport outbuf, outbuf_bytes_field, outbuf_reserve, outbuf_uint_field
from etcdfast._ext.revindex cimport IDX_NOT_FOUND, SCAN_DONE, KeyInfo, Scan
from etcdfast._ext.wire cimport wire_bytes_size, wire_put_tag, wire_put_varint, WIRE_BYTES

from etcdfast._ext.mvcc import StoreCorrupt

cdef enum:
    BATCH_KEYS = 128
    WALK_GAP_MAX = 8         # revisions between two keys up to which stepping beats reading
    WALK_SKIP_MAX = 24       # records stepped over at most: applied records and deletes lie between
    FETCH_COST = 8           # a read of RocksDB against a step in the index
    WHOLE_BUDGET = 1 << 30
    # Values held for one range sorted by value without a limit; more is refused.
    CHOSEN_BYTES_MAX = 268435456


class RangeTooLarge(Exception):
    """A sorted range would need more memory than one request may take."""


cdef int by_number(const void *a, const void *b) noexcept nogil:
    cdef int64_t x = (<const selected *>a).number
    cdef int64_t y = (<const selected *>b).number
    return (x > y) - (x < y)


cdef int by_number_falling(const void *a, const void *b) noexcept nogil:
    return by_number(b, a)


cdef int by_value(const void *a, const void *b) noexcept nogil:
    cdef uint64_t n = (<const selected *>a).value_len
    cdef uint64_t m = (<const selected *>b).value_len
    cdef int order = memcmp((<const selected *>a).value, (<const selected *>b).value, n if n < m else m)
    return order if order else (n > m) - (n < m)


cdef int by_value_falling(const void *a, const void *b) noexcept nogil:
    return by_value(b, a)


cdef uint32_t range_refused(Mvcc mvcc, const range_request *r) noexcept nogil:
    if r.revision > mvcc.visible():
        return ERR_FUTURE_REV
    if 0 < r.revision < mvcc.compacted:
        return ERR_COMPACTED
    return ERR_NONE


cdef RangeRun range_open(Mvcc mvcc, const range_request *r):
    cdef RangeRun run = RangeRun.__new__(RangeRun)
    cdef int order = r.order
    run.mvcc = mvcc
    run.request = r[0]
    run.key = PyBytes_FromStringAndSize(<const char *>r.key.data, <Py_ssize_t>r.key.size)
    run.end = PyBytes_FromStringAndSize(<const char *>r.end.data, <Py_ssize_t>r.end.size)
    run.request.key.data = <const uint8_t *>PyBytes_AS_STRING(run.key)
    run.request.end.data = <const uint8_t *>PyBytes_AS_STRING(run.end)
    run.revision = r.revision if r.revision > 0 else mvcc.visible()
    run.count = -1
    run.filtered = r.min_mod != 0 or r.max_mod != 0 or r.min_create != 0 or r.max_create != 0
    if r.target != TARGET_KEY and order == SORT_NONE:
        order = SORT_ASCEND
    run.request.order = order
    run.descending = r.target == TARGET_KEY and order == SORT_DESCEND
    run.ordered = not run.filtered and r.target == TARGET_KEY
    run.first_only = not run.filtered and r.order == SORT_NONE and r.limit > 0
    run.compare = NULL
    if r.target == TARGET_VALUE:
        run.compare = by_value_falling if order == SORT_DESCEND else by_value
    elif r.target != TARGET_KEY:
        run.compare = by_number_falling if order == SORT_DESCEND else by_number
    # What lease a revision has is in its record alone.
    run.by_index = r.keys_only and r.target != TARGET_VALUE and not mvcc.leased
    run.take = r.limit if r.limit > 0 else -1
    if r.count_only:
        run.take = 0
        run.phase = PHASE_DONE
    else:
        run.phase = PHASE_EMIT if run.ordered else PHASE_SELECT
    return run


cdef class RangeRun:

    def __cinit__(self):
        self.chosen = NULL
        self.chosen_count = self.chosen_capacity = self.chosen_bytes = 0
        self.emitted = self.passed = 0
        self.size_count = self.size_bytes = 0
        self.more = False

    def __dealloc__(self):
        self.drop_chosen()

    cdef void drop_chosen(self) noexcept:
        cdef int64_t i
        for i in range(self.chosen_count):
            Py_XDECREF(self.chosen[i].record)
        free(self.chosen)
        self.chosen = NULL
        self.chosen_count = 0

    cdef int batch(self, bytes resume, void *found, int cap, int64_t budget, void *scan) except -2:
        """The next keys behind `resume` (None: from the start), in the run's direction."""
        cdef int count
        if self.descending:
            count = self.mvcc.index.range_batch_desc(
                <const char *>self.request.key.data, <uint32_t>self.request.key.size,
                <const char *>self.request.end.data, <uint32_t>self.request.end.size,
                NULL if resume is None else PyBytes_AS_STRING(resume),
                0 if resume is None else <uint32_t>PyBytes_GET_SIZE(resume),
                self.revision, <KeyInfo *>found, cap, budget, <Scan *>scan)
        elif resume is None:
            count = self.mvcc.index.range_batch(
                <const char *>self.request.key.data, <uint32_t>self.request.key.size, False,
                <const char *>self.request.end.data, <uint32_t>self.request.end.size,
                self.revision, <KeyInfo *>found, cap, budget, <Scan *>scan)
        else:
            count = self.mvcc.index.range_batch(
                PyBytes_AS_STRING(resume), <uint32_t>PyBytes_GET_SIZE(resume), True,
                <const char *>self.request.end.data, <uint32_t>self.request.end.size,
                self.revision, <KeyInfo *>found, cap, budget, <Scan *>scan)
        if count < 0:
            # Pins hold back compaction, so the index cannot have lost the revision.
            raise StoreCorrupt(f"revision index: error {count} at revision {self.revision}")
        return count

    cdef int step(self, outbuf *out, int64_t budget, uint64_t bytes_max) except RANGE_BROKEN:
        if self.count < 0:
            self.count = self.mvcc.index.count(
                <const char *>self.request.key.data, <uint32_t>self.request.key.size,
                <const char *>self.request.end.data, <uint32_t>self.request.end.size, self.revision)
            if self.count < 0:
                raise StoreCorrupt(f"revision index: error {self.count} at revision {self.revision}")
        if self.phase == PHASE_SELECT:
            return self.select_step(budget)
        if self.phase == PHASE_EMIT:
            if self.ordered:
                return self.emit_ordered(out, budget, bytes_max)
            return self.emit_chosen(out, bytes_max)
        return RANGE_END

    # ---- in key order ----

    cdef int emit_ordered(self, outbuf *out, int64_t budget, uint64_t bytes_max) except RANGE_BROKEN:
        cdef KeyInfo found[BATCH_KEYS]
        cdef Scan scan
        cdef KeyInfo *k
        cdef uint64_t stop = out.size + bytes_max
        cdef int64_t cap
        cdef int count, i
        cdef uint64_t size
        cdef uint8_t *p
        cdef int64_t main_before = 0
        self.walk = None  # an iterator holds on to what RocksDB would let go: never from slice to slice
        if self.take >= 0:
            self.more = self.count > self.take
        while True:
            cap = BATCH_KEYS
            if self.take >= 0 and cap > self.take - self.emitted:
                cap = self.take - self.emitted
            if cap == 0:
                self.phase = PHASE_DONE
                return RANGE_END
            count = self.batch(self.resume, found, <int>cap, budget, &scan)
            for i in range(count):
                k = &found[i]
                if self.by_index:
                    size = keyvalue_size(k.key_len, k.create_main, k.mod_main, k.version, 0, 0)
                    p = outbuf_reserve(out, size + 11)
                    if p != NULL:
                        p = wire_put_varint(wire_put_tag(p, 2, WIRE_BYTES), size)
                        p = put_keyvalue(p, k.key, k.key_len, k.create_main, k.mod_main, k.version, NULL, 0, 0)
                        out.size = <uint64_t>(p - out.data)
                elif 0 < k.mod_main - main_before <= WALK_GAP_MAX or (
                        i + 1 < count and 0 < found[i + 1].mod_main - k.mod_main <= WALK_GAP_MAX):
                    # Written in this order, as loads often are: stepping on costs a third of a read.
                    self.emit_record(out, self.step_to(k.mod_main, k.mod_sub))
                else:
                    self.emit_stored(out, k.mod_main, k.mod_sub)
                main_before = k.mod_main
                self.emitted += 1
                if out.size >= stop and not (i == count - 1 and scan.state == SCAN_DONE):
                    self.resume = PyBytes_FromStringAndSize(k.key, k.key_len)
                    if self.emitted == self.take:
                        self.phase = PHASE_DONE
                        return RANGE_END
                    return RANGE_MORE
            if scan.state == SCAN_DONE or self.emitted == self.take:
                self.phase = PHASE_DONE
                return RANGE_END
            self.resume = PyBytes_FromStringAndSize(scan.resume_key, scan.resume_len)
            budget -= count + 1
            if budget <= 0:
                return RANGE_MORE

    cdef bytes step_to(self, int64_t main, int64_t sub):
        """The stored KeyValue of a revision a few records behind the one before."""
        cdef uint8_t wanted[REVISION_KEY_BYTES]
        cdef bytes key, value
        cdef int skipped, order
        if self.mvcc.pending_count:
            return self.mvcc.fetch(main, sub)
        put_revision_key(wanted, main, sub)
        if self.walk is None:
            self.walk = self.mvcc.walk(PyBytes_FromStringAndSize(<char *>wanted, REVISION_KEY_BYTES))
        for skipped in range(WALK_SKIP_MAX):
            item = next(self.walk, None)
            if item is None:
                break
            key, value = item
            order = memcmp(PyBytes_AS_STRING(key), wanted, REVISION_KEY_BYTES) if (
                PyBytes_GET_SIZE(key) >= REVISION_KEY_BYTES) else memcmp(PyBytes_AS_STRING(key), wanted, APPLIED_KEY_BYTES)
            if order == 0 and PyBytes_GET_SIZE(key) == REVISION_KEY_BYTES:
                return value
            if order > 0:
                break
        self.walk = None
        return self.mvcc.fetch(main, sub)

    cdef int emit_stored(self, outbuf *out, int64_t main, int64_t sub) except RANGE_BROKEN:
        self.emit_record(out, self.mvcc.fetch(main, sub))
        return RANGE_MORE

    cdef int emit_record(self, outbuf *out, bytes record) except RANGE_BROKEN:
        cdef stored_kv kv
        cdef uint64_t size
        cdef uint8_t *p
        if not self.request.keys_only:
            outbuf_bytes_field(out, 2, PyBytes_AS_STRING(record), <uint64_t>PyBytes_GET_SIZE(record))
            return RANGE_MORE
        if parse_keyvalue(PyBytes_AS_STRING(record), <uint64_t>PyBytes_GET_SIZE(record), &kv) < 0:
            raise StoreCorrupt("a revision holds no KeyValue")
        size = keyvalue_size(kv.key_len, kv.create, kv.mod, kv.version, 0, kv.lease)
        p = outbuf_reserve(out, size + 11)
        if p != NULL:
            p = wire_put_varint(wire_put_tag(p, 2, WIRE_BYTES), size)
            p = put_keyvalue(p, kv.key, kv.key_len, kv.create, kv.mod, kv.version, NULL, 0, kv.lease)
            out.size = <uint64_t>(p - out.data)
        return RANGE_MORE

    cdef uint64_t size_without_value(self, int64_t main, int64_t sub) except? 0:
        cdef stored_kv kv
        cdef bytes record = self.mvcc.fetch(main, sub)
        if parse_keyvalue(PyBytes_AS_STRING(record), <uint64_t>PyBytes_GET_SIZE(record), &kv) < 0:
            raise StoreCorrupt(f"revision {main}_{sub} holds no KeyValue")
        return keyvalue_size(kv.key_len, kv.create, kv.mod, kv.version, 0, kv.lease)

    # ---- sorted or filtered ----

    cdef int select_step(self, int64_t budget) except RANGE_BROKEN:
        cdef KeyInfo found[BATCH_KEYS]
        cdef Scan scan
        cdef int64_t enough = -1
        cdef int64_t cap
        cdef int count, i
        if self.take >= 0 and (self.first_only or self.compare == NULL):
            enough = self.take + 1  # one more than wanted tells `more`
        while True:
            scan.state = SCAN_DONE
            cap = BATCH_KEYS
            if enough >= 0 and not self.filtered and cap > enough - self.passed:
                cap = enough - self.passed
            count = 0
            if cap > 0:
                count = self.batch(self.resume, found, <int>cap, budget, &scan)
            for i in range(count):
                self.select(&found[i])
            if scan.state == SCAN_DONE or (enough >= 0 and self.passed >= enough):
                self.resume = None
                self.more = self.take >= 0 and self.passed > self.take
                if self.compare != NULL and self.chosen_count > 1:
                    qsort(self.chosen, <size_t>self.chosen_count, sizeof(selected), self.compare)
                while self.take >= 0 and self.chosen_count > self.take:
                    self.chosen_count -= 1
                    Py_XDECREF(self.chosen[self.chosen_count].record)
                self.phase = PHASE_EMIT
                return RANGE_MORE
            self.resume = PyBytes_FromStringAndSize(scan.resume_key, scan.resume_len)
            budget -= (count + 1) * (
                FETCH_COST if self.request.target == TARGET_VALUE or self.request.keys_only and not self.by_index else 1)
            if budget <= 0:
                return RANGE_MORE

    cdef int select(self, void *info) except RANGE_BROKEN:
        """Take one key into the choice if it passes the filters and may be among those wanted."""
        cdef KeyInfo *k = <KeyInfo *>info
        cdef range_request *r = &self.request
        cdef selected item
        cdef stored_kv kv
        cdef bytes record
        cdef int64_t capacity
        cdef void *grown
        if (r.max_mod != 0 and k.mod_main > r.max_mod) or (r.min_mod != 0 and k.mod_main < r.min_mod) or (
                r.max_create != 0 and k.create_main > r.max_create) or (
                r.min_create != 0 and k.create_main < r.min_create):
            return RANGE_MORE
        self.passed += 1
        item.main = k.mod_main
        item.sub = k.mod_sub
        item.record = NULL
        item.value = NULL
        item.value_len = 0
        item.number = 0
        item.emit_size = k.size
        if self.by_index:
            item.emit_size = <uint32_t>keyvalue_size(k.key_len, k.create_main, k.mod_main, k.version, 0, 0)
        elif r.keys_only and r.target != TARGET_VALUE:
            item.emit_size = <uint32_t>self.size_without_value(item.main, item.sub)
        if self.compare == NULL:
            if 0 <= self.take <= self.chosen_count:
                return RANGE_MORE
        elif r.target == TARGET_VERSION:
            item.number = k.version
        elif r.target == TARGET_CREATE:
            item.number = k.create_main
        elif r.target == TARGET_MOD:
            item.number = k.mod_main
        else:
            record = self.mvcc.fetch(item.main, item.sub)
            if parse_keyvalue(PyBytes_AS_STRING(record), <uint64_t>PyBytes_GET_SIZE(record), &kv) < 0:
                raise StoreCorrupt(f"revision {item.main}_{item.sub} holds no KeyValue")
            item.value = kv.value
            item.value_len = kv.value_len
            if r.keys_only:
                item.emit_size = <uint32_t>keyvalue_size(
                    kv.key_len, kv.create, kv.mod, kv.version, 0, kv.lease)
        if self.compare != NULL and 0 <= self.take <= self.chosen_count and not self.first_only:
            # The choice is full: a heap with the last of those wanted at its root.
            if self.compare(&item, &self.chosen[0]) >= 0:
                return RANGE_MORE
            if item.value != NULL:
                self.chosen_bytes += PyBytes_GET_SIZE(record) - PyBytes_GET_SIZE(<object>self.chosen[0].record)
                Py_DECREF(<object>self.chosen[0].record)
                Py_INCREF(record)
                item.record = <PyObject *>record
            self.chosen[0] = item
            heap_down(self.chosen, self.chosen_count, 0, self.compare)
            return RANGE_MORE
        if self.chosen_count == self.chosen_capacity:
            capacity = self.chosen_capacity * 2 if self.chosen_capacity else 64
            grown = realloc(self.chosen, <size_t>capacity * sizeof(selected))
            if grown == NULL:
                raise MemoryError
            self.chosen = <selected *>grown
            self.chosen_capacity = capacity
        self.chosen_bytes += sizeof(selected)
        if item.value != NULL:
            Py_INCREF(record)
            item.record = <PyObject *>record
            self.chosen_bytes += PyBytes_GET_SIZE(record)
        self.chosen[self.chosen_count] = item
        self.chosen_count += 1
        if self.chosen_bytes > CHOSEN_BYTES_MAX:
            raise RangeTooLarge
        if self.compare != NULL and self.chosen_count == self.take and not self.first_only:
            heap_build(self.chosen, self.chosen_count, self.compare)
        return RANGE_MORE

    cdef int emit_chosen(self, outbuf *out, uint64_t bytes_max) except RANGE_BROKEN:
        cdef uint64_t stop = out.size + bytes_max
        cdef selected *item
        while self.emitted < self.chosen_count:
            if out.size >= stop:
                return RANGE_MORE
            item = &self.chosen[self.emitted]
            if item.record != NULL:
                self.emit_record(out, <bytes>item.record)
                Py_DECREF(<object>item.record)
                item.record = NULL
            else:
                self.emit_stored(out, item.main, item.sub)
            self.emitted += 1
        self.phase = PHASE_DONE
        return RANGE_END

    # ---- size known up front ----

    cdef int size_step(self, int64_t budget, int64_t *total) except RANGE_BROKEN:
        cdef KeyInfo found[BATCH_KEYS]
        cdef Scan scan
        cdef KeyInfo *k
        cdef int64_t i, cap
        cdef int count
        cdef uint64_t size
        if self.phase == PHASE_DONE:
            total[0] = 0
            return RANGE_END
        if not self.ordered:
            for i in range(self.emitted, self.chosen_count):
                self.size_bytes += <int64_t>wire_bytes_size(2, self.chosen[i].emit_size)
            total[0] = self.size_bytes
            return RANGE_END
        if self.size_resume is None:
            self.size_resume = self.resume
            self.size_count = self.emitted
        while True:
            cap = BATCH_KEYS
            if self.take >= 0 and cap > self.take - self.size_count:
                cap = self.take - self.size_count
            if cap == 0:
                break
            count = self.batch(self.size_resume, found, <int>cap, budget, &scan)
            for i in range(count):
                k = &found[i]
                size = k.size
                if self.by_index:
                    size = keyvalue_size(k.key_len, k.create_main, k.mod_main, k.version, 0, 0)
                elif self.request.keys_only:
                    size = self.size_without_value(k.mod_main, k.mod_sub)
                self.size_bytes += <int64_t>wire_bytes_size(2, size)
            self.size_count += count
            if scan.state == SCAN_DONE:
                break
            self.size_resume = PyBytes_FromStringAndSize(scan.resume_key, scan.resume_len)
            budget -= (count + 1) * (FETCH_COST if self.request.keys_only and not self.by_index else 1)
            if budget <= 0:
                return RANGE_MORE
        total[0] = self.size_bytes
        return RANGE_END

    cdef void tail(self, outbuf *out) noexcept nogil:
        if self.more:
            outbuf_uint_field(out, 3, 1)
        if self.count:
            outbuf_uint_field(out, 4, <uint64_t>self.count)


cdef void heap_down(selected *heap, int64_t count, int64_t at, comparator compare) noexcept nogil:
    """Restore the heap below `at`; the root is the one that comes last."""
    cdef selected item = heap[at]
    cdef int64_t child
    while True:
        child = 2 * at + 1
        if child >= count:
            break
        if child + 1 < count and compare(&heap[child + 1], &heap[child]) > 0:
            child += 1
        if compare(&heap[child], &item) <= 0:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = item


cdef void heap_build(selected *heap, int64_t count, comparator compare) noexcept nogil:
    cdef int64_t at = count // 2
    while at > 0:
        at -= 1
        heap_down(heap, count, at, compare)


cdef int range_whole(Mvcc mvcc, const range_request *r, outbuf *out) except -1:
    cdef RangeRun run
    cdef KeyInfo info
    cdef bytes record
    cdef int rc
    if r.end.size == 0 and not r.keys_only and (
            r.min_mod == 0 and r.max_mod == 0 and r.min_create == 0 and r.max_create == 0):
        # One key, the common case: no run, no copies.
        rc = mvcc.index.get(<const char *>r.key.data, <uint32_t>r.key.size,
                            r.revision if r.revision > 0 else mvcc.visible(), &info)
        if rc == IDX_NOT_FOUND:
            return 0
        if rc != 0:
            raise StoreCorrupt(f"revision index: error {rc} at revision {r.revision}")
        if not r.count_only:
            record = mvcc.fetch(info.mod_main, info.mod_sub)
            outbuf_bytes_field(out, 2, PyBytes_AS_STRING(record), <uint64_t>PyBytes_GET_SIZE(record))
        outbuf_uint_field(out, 4, 1)
        return 0
    run = range_open(mvcc, r)
    while run.step(out, WHOLE_BUDGET, <uint64_t>WHOLE_BUDGET) == RANGE_MORE:
        pass
    run.tail(out)
    return 0
