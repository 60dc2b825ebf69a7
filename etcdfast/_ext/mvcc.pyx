"""Key-value state of the apply process; see mvcc.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from etcdfast._ext.kvenc cimport (
    APPLIED_KEY_BYTES, APPLIED_MARK, BUCKET_KEY, REVISION_KEY_BYTES, TOMBSTONE_KEY_BYTES, get_be64,
    keyvalue_size, parse_keyvalue, put_be64, put_keyvalue, put_revision_key, stored_kv,
)
from etcdfast._ext.kvreq cimport bytes_view
from etcdfast._ext.leasetable cimport TABLE_CORRUPT, LeaseTable
from etcdfast._ext.revindex cimport (
    IDX_COMPACTED, IDX_NO_MEMORY, IDX_NOT_FOUND, SCAN_BUDGET, SCAN_DONE, DroppedRev, IndexStats, KeyInfo,
    RevIndex, Scan,
)

cdef enum:
    DELETE_BATCH_KEYS = 256
    META_MARK = 0xFE        # b"k" + BE64 main + 0xfe + key: a change of another bucket
    BUCKET_LEASE = 108      # b"l"
    LEASE_KEY_BYTES = 19    # b"k" + BE64 main + 0xfe + b"l" + BE64 id


class StoreCorrupt(Exception):
    """RocksDB does not hold what the index or the applied record says: the member must stop."""


cdef class Mvcc:
    """`read`: key -> value or None; `walk`: key -> iterator of (key, value) from there; `new_batch`: () ->
    WriteBatch; `write`: (WriteBatch) -> None, raises when the write failed."""

    def __cinit__(self, read, walk, new_batch, write):
        self.index = RevIndex()
        self.leases = LeaseTable()
        self.current = 1
        self.compacted = -1
        self.in_use_bytes = 0
        self.read = read
        self.walk = walk
        self.new_batch = new_batch
        self.write = write
        self.pending_values = []
        self.pending = NULL
        self.pending_capacity = 0
        self.pending_count = 0
        self.changed_values = []
        self.changes = NULL
        self.change_capacity = 0
        self.change_count = 0
        self.open_batch()

    def __dealloc__(self):
        free(self.pending)
        free(self.changes)

    # ---- the turn's batch ----

    def open_batch(self):
        self.batch = self.new_batch()
        self.batch_put = self.batch.put
        self.batch_changes = 0
        self.pending_count = 0
        if self.pending_values:
            self.pending_values = []

    def write_batch(self, uint64_t applied_index, uint64_t applied_term):
        """Write the turn's changes and the applied index behind them, in one batch.

        Errors: what `write` raises; the state in memory is then ahead of the disk and the member must stop.
        """
        cdef kv_change *swapped = self.changes
        cdef size_t capacity = self.change_capacity
        self.batch_put(applied_key(self.current), applied_value(applied_index, applied_term))
        self.write(self.batch)
        if self.followed and self.pending_count:
            self.changes, self.pending = self.pending, swapped
            self.change_capacity, self.pending_capacity = self.pending_capacity, capacity
            self.change_count = self.pending_count
            self.changed_values, self.pending_values = self.pending_values, []
        self.open_batch()

    cdef void forget_changes(self) noexcept:
        self.change_count = 0
        self.changed_values = []

    cdef int add_pending(self, int64_t main, int64_t sub, bytes value, bint is_tombstone) except -1:
        cdef kv_change *change
        cdef void *grown
        if self.pending_count == self.pending_capacity:
            self.pending_capacity = self.pending_capacity * 2 if self.pending_capacity else 1024
            grown = realloc(self.pending, self.pending_capacity * sizeof(kv_change))
            if grown == NULL:
                raise MemoryError
            self.pending = <kv_change *>grown
        change = &self.pending[self.pending_count]
        change.main = main
        change.sub = sub
        change.record = <const uint8_t *>PyBytes_AS_STRING(value)
        change.size = <uint32_t>PyBytes_GET_SIZE(value)
        change.is_tombstone = is_tombstone
        self.pending_count += 1
        self.pending_values.append(value)
        self.batch_changes += 1
        return 0

    # ---- changes ----

    cdef int put(self, const bytes_view *key, const bytes_view *value, int64_t lease) except -1:
        cdef KeyInfo info
        cdef int64_t main = self.current + 1
        cdef uint64_t size
        cdef int rc
        cdef bytes record
        cdef bytes revision_key
        rc = self.index.put(<const char *>key.data, <uint32_t>key.size, main, <uint32_t>self.sub, 0, &info)
        if rc != 0:
            raise MemoryError(f"revision index: error {rc}")
        size = keyvalue_size(key.size, info.create_main, main, info.version, value.size, lease)
        self.index.set_size(&info, <uint32_t>size)
        if lease:
            self.leased = True
            if self.leases.attach(<const char *>key.data, <uint32_t>key.size, lease) != 0:
                raise MemoryError("keys of leases")
        elif self.leases.attached:
            self.leases.detach(<const char *>key.data, <uint32_t>key.size)
        record = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        put_keyvalue(<uint8_t *>PyBytes_AS_STRING(record), key.data, key.size, info.create_main, main,
                     info.version, value.data, value.size, lease)
        revision_key = PyBytes_FromStringAndSize(NULL, REVISION_KEY_BYTES)
        put_revision_key(<uint8_t *>PyBytes_AS_STRING(revision_key), main, self.sub)
        self.batch_put(revision_key, record)
        self.add_pending(main, self.sub, record, False)
        self.in_use_bytes += <int64_t>size + REVISION_KEY_BYTES - 1
        self.sub += 1
        return 0

    cdef int tombstone(self, const char *key, uint32_t key_len) except -1:
        cdef int64_t main = self.current + 1
        cdef uint64_t size = keyvalue_size(key_len, 0, 0, 0, 0, 0)
        cdef bytes record = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        cdef bytes revision_key = PyBytes_FromStringAndSize(NULL, TOMBSTONE_KEY_BYTES)
        cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(revision_key)
        cdef int rc
        put_keyvalue(<uint8_t *>PyBytes_AS_STRING(record), key, key_len, 0, 0, 0, NULL, 0, 0)
        put_revision_key(p, main, self.sub)
        p[REVISION_KEY_BYTES] = 116  # 't'
        rc = self.index.tombstone(key, key_len, main, <uint32_t>self.sub)
        if rc != 0:
            raise MemoryError(f"revision index: error {rc}")
        if self.leases.attached:
            self.leases.detach(key, key_len)
        self.batch_put(revision_key, record)
        self.add_pending(main, self.sub, record, True)
        self.in_use_bytes += TOMBSTONE_KEY_BYTES - 1
        self.sub += 1
        return 0

    cdef int64_t delete_range(self, const bytes_view *key, const bytes_view *end) except -1:
        cdef KeyInfo found[DELETE_BATCH_KEYS]
        cdef KeyInfo one
        cdef Scan scan
        cdef int64_t deleted = 0
        cdef bytes resume
        cdef bytes last = None
        cdef list keys
        cdef bytes name
        cdef int count, i
        if end.size == 0:
            if self.index.get(<const char *>key.data, <uint32_t>key.size, 0, &one) != 0:
                return 0
            self.tombstone(<const char *>key.data, <uint32_t>key.size)
            return 1
        while True:
            if last is None:
                count = self.index.range_batch(
                    <const char *>key.data, <uint32_t>key.size, False, <const char *>end.data,
                    <uint32_t>end.size, 0, found, DELETE_BATCH_KEYS, 1 << 30, &scan)
            else:
                count = self.index.range_batch(
                    PyBytes_AS_STRING(last), <uint32_t>PyBytes_GET_SIZE(last), True, <const char *>end.data,
                    <uint32_t>end.size, 0, found, DELETE_BATCH_KEYS, 1 << 30, &scan)
            if count < 0:
                raise StoreCorrupt(f"revision index: error {count} while deleting a range")
            resume = None
            if scan.state != SCAN_DONE:
                resume = PyBytes_FromStringAndSize(scan.resume_key, scan.resume_len)
            # The keys lie in the index, which every tombstone changes: copy them first.
            keys = [PyBytes_FromStringAndSize(found[i].key, found[i].key_len) for i in range(count)]
            for name in keys:
                self.tombstone(PyBytes_AS_STRING(name), <uint32_t>PyBytes_GET_SIZE(name))
            deleted += count
            if resume is None:
                return deleted
            last = resume

    # ---- reads ----

    cdef bytes fetch(self, int64_t main, int64_t sub):
        cdef size_t low, high, middle
        cdef bytes revision_key
        cdef object value
        if self.pending_count and main >= self.pending[0].main:
            low = 0
            high = self.pending_count
            while low < high:
                middle = (low + high) >> 1
                if self.pending[middle].main < main or (
                        self.pending[middle].main == main and self.pending[middle].sub < sub):
                    low = middle + 1
                else:
                    high = middle
            if low < self.pending_count and self.pending[low].main == main and self.pending[low].sub == sub:
                return <bytes>self.pending_values[low]
        revision_key = PyBytes_FromStringAndSize(NULL, REVISION_KEY_BYTES)
        put_revision_key(<uint8_t *>PyBytes_AS_STRING(revision_key), main, sub)
        try:
            value = self.read(revision_key)
        except Exception as err:
            raise StoreCorrupt(f"cannot read revision {main}_{sub}: {err}") from err
        if type(value) is not bytes:
            raise StoreCorrupt(f"revision {main}_{sub} is in the index and not in the store")
        return <bytes>value

    def get(self, bytes key, int64_t at_rev=0):
        """(create, mod, version, stored KeyValue) of a key, or None: for tests and cold use."""
        cdef KeyInfo info
        if self.index.get(PyBytes_AS_STRING(key), <uint32_t>PyBytes_GET_SIZE(key), at_rev, &info) != 0:
            return None
        return info.create_main, info.mod_main, info.version, self.fetch(info.mod_main, info.mod_sub)

    # ---- other buckets ----

    def meta_put(self, bytes key, bytes value, int64_t replaced, int64_t growth):
        """A change of another bucket, into the turn's batch; `replaced` is the revision that the value it
        replaces was stored at, 0 for none, and `growth` what the bucket grows by, in bytes. Every key is
        in the store once, so no old value can come back.
        """
        self.in_use_bytes += growth
        if replaced and replaced != self.current:
            self.batch.delete(meta_key(replaced, key))
        self.batch_put(meta_key(self.current, key), value)
        self.batch_changes += 1

    def meta_delete(self, bytes key, int64_t replaced, int64_t growth):
        self.in_use_bytes += growth
        self.batch.delete(meta_key(replaced, key))
        self.batch_changes += 1

    # ---- compaction ----

    def set_compacted(self, int64_t revision):
        self.compacted = revision

    def compact_begin(self, int64_t revision):
        """Index error code, 0 when the dropping may start."""
        return self.index.compact_begin(revision)

    def compact_step(self, int64_t budget, int drops_max, batch):
        """Drop up to drops_max revisions from the index and, through `batch`, from the store.

        Returns (dropped, done). The caller writes the batch.
        """
        cdef DroppedRev *dropped = <DroppedRev *>malloc(drops_max * sizeof(DroppedRev))
        cdef bint done = False
        cdef int count, i
        cdef uint8_t key[TOMBSTONE_KEY_BYTES]
        if dropped == NULL:
            raise MemoryError
        try:
            count = self.index.compact_step(budget, dropped, drops_max, &done)
            if count < 0:
                raise MemoryError("compaction of the revision index")
            delete = batch.delete
            for i in range(count):
                put_revision_key(key, dropped[i].main, dropped[i].sub)
                key[REVISION_KEY_BYTES] = 116
                delete(PyBytes_FromStringAndSize(
                    <char *>key, TOMBSTONE_KEY_BYTES if dropped[i].is_tombstone else REVISION_KEY_BYTES))
                self.in_use_bytes -= dropped[i].size + (
                    TOMBSTONE_KEY_BYTES if dropped[i].is_tombstone else REVISION_KEY_BYTES) - 1
            return count, bool(done)
        finally:
            free(dropped)

    # ---- start ----

    def load(self, items, last_key, dict meta, dict meta_revisions):
        """Rebuild index and revisions from the stored records in order; other buckets go to `meta`
        (key -> value) and `meta_revisions` (key -> revision it is stored at).

        items: iterator of (key, value) of the whole store, which must come to last_key (None: it is empty).
        Returns how many revisions.
        Errors: StoreCorrupt naming the record.
        """
        cdef stored_kv kv
        cdef bytes key = None
        cdef bytes value
        cdef const uint8_t *k
        cdef Py_ssize_t key_len
        cdef int64_t main, sub
        cdef int64_t records = 0
        cdef int64_t in_use = 0
        cdef bint is_tombstone
        cdef int rc
        for key, value in items:
            k = <const uint8_t *>PyBytes_AS_STRING(key)
            key_len = PyBytes_GET_SIZE(key)
            if key_len < APPLIED_KEY_BYTES or k[0] != BUCKET_KEY:
                raise StoreCorrupt(f"store holds a key that is none of ours: {key.hex()}")
            main = <int64_t>get_be64(k + 1)
            if main > self.current:
                self.current = main
            if k[9] == 95 and (key_len == REVISION_KEY_BYTES or key_len == TOMBSTONE_KEY_BYTES):
                sub = <int64_t>get_be64(k + 10)
                is_tombstone = key_len == TOMBSTONE_KEY_BYTES
                if parse_keyvalue(PyBytes_AS_STRING(value), <uint64_t>PyBytes_GET_SIZE(value), &kv) < 0:
                    raise StoreCorrupt(f"revision {main}_{sub} holds no KeyValue")
                rc = self.index.restore(
                    <const char *>kv.key, <uint32_t>kv.key_len, main, <uint32_t>sub,
                    main if is_tombstone else kv.create, 1 if is_tombstone else kv.version, is_tombstone,
                    <uint32_t>PyBytes_GET_SIZE(value))
                if rc == IDX_NO_MEMORY:
                    raise MemoryError
                if rc != 0 and rc != IDX_NOT_FOUND:
                    raise StoreCorrupt(f"revision {main}_{sub} does not follow the one before it (error {rc})")
                if kv.lease and not is_tombstone:
                    self.leased = True
                    if self.leases.restore_key(<const char *>kv.key, <uint32_t>kv.key_len, kv.lease) != 0:
                        raise MemoryError
                elif self.leases.attached:
                    self.leases.detach(<const char *>kv.key, <uint32_t>kv.key_len)
                in_use += key_len - 1 + (0 if is_tombstone else PyBytes_GET_SIZE(value))
                records += 1
            elif k[9] == APPLIED_MARK and key_len == APPLIED_KEY_BYTES:
                pass
            elif k[9] == META_MARK:
                if key_len == LEASE_KEY_BYTES and k[10] == BUCKET_LEASE:
                    # There may be a million: they go to their table, not into a dictionary.
                    rc = self.leases.restore(
                        <int64_t>get_be64(k + 11), PyBytes_AS_STRING(value), <uint64_t>PyBytes_GET_SIZE(value), main)
                    if rc == TABLE_CORRUPT:
                        raise StoreCorrupt(f"lease {get_be64(k + 11):x} cannot be read or is stored twice")
                    if rc != 0:
                        raise MemoryError
                else:
                    meta[key[10:]] = value
                    meta_revisions[key[10:]] = main
                in_use += key_len - APPLIED_KEY_BYTES - 1 + PyBytes_GET_SIZE(value)
            else:
                raise StoreCorrupt(f"store holds a key that is none of ours: {key.hex()}")
        if key != last_key:
            raise StoreCorrupt(f"store is damaged behind key {key.hex() if key is not None else None}")
        self.in_use_bytes = in_use
        self.leases.loaded()
        return records

    def raise_current(self, int64_t revision):
        """The current revision is at least this: a compaction had been scheduled at it."""
        if revision > self.current:
            self.current = revision

    # ---- figures ----

    def count_at(self, int64_t revision):
        """Live keys at a revision."""
        return self.index.count("", 0, "\0", 1, revision)

    def kept_at(self, bytes key, int64_t main, int64_t sub, int64_t revision):
        """Whether HashKV at `revision` takes the record (main, sub) of the key."""
        return self.index.kept_at(
            PyBytes_AS_STRING(key), <uint32_t>PyBytes_GET_SIZE(key), main, <uint32_t>sub, revision) == 1

    def kept_any(self, int64_t revision):
        """Whether HashKV's keep set at `revision` has any member."""
        cdef Scan scan
        cdef bytes start = b""
        cdef int rc
        while True:
            rc = self.index.kept_any_step(
                PyBytes_AS_STRING(start), <uint32_t>PyBytes_GET_SIZE(start), revision, 1 << 30, &scan)
            if rc != 0 or scan.state != SCAN_BUDGET:
                return rc == 1
            start = PyBytes_FromStringAndSize(scan.resume_key, scan.resume_len)

    @property
    def index_stats(self):
        """(keys, live keys, revisions, used bytes, held bytes) of the index."""
        cdef IndexStats stats
        self.index.stats(&stats)
        return stats.keys, stats.live_keys, stats.revisions, stats.used_bytes, stats.held_bytes


cdef bytes applied_key(int64_t revision):
    cdef uint8_t key[APPLIED_KEY_BYTES]
    key[0] = BUCKET_KEY
    put_be64(key + 1, <uint64_t>revision)
    key[9] = APPLIED_MARK
    return PyBytes_FromStringAndSize(<char *>key, APPLIED_KEY_BYTES)


cdef bytes applied_value(uint64_t index, uint64_t term):
    cdef uint8_t value[17]
    value[0] = 1  # version of this layout
    put_be64(value + 1, index)
    put_be64(value + 9, term)
    return PyBytes_FromStringAndSize(<char *>value, 17)


cdef bytes meta_key(int64_t revision, bytes key):
    cdef uint8_t prefix[APPLIED_KEY_BYTES]
    prefix[0] = BUCKET_KEY
    put_be64(prefix + 1, <uint64_t>revision)
    prefix[9] = META_MARK
    return PyBytes_FromStringAndSize(<char *>prefix, APPLIED_KEY_BYTES) + key


def stored_applied(int64_t revision, uint64_t index, uint64_t term):
    """Key and value of an applied record."""
    return applied_key(revision), applied_value(index, term)


def stored_meta_key(int64_t revision, bytes key):
    """Where the value of another bucket's prefixed key is, when it was stored at `revision`."""
    return meta_key(revision, key)


def parse_applied(bytes key, bytes value):
    """(revision, index, term) of an applied record, or None when it is none."""
    cdef const uint8_t *k = <const uint8_t *>PyBytes_AS_STRING(key)
    cdef const uint8_t *v = <const uint8_t *>PyBytes_AS_STRING(value)
    if PyBytes_GET_SIZE(key) != APPLIED_KEY_BYTES or k[0] != BUCKET_KEY or k[9] != APPLIED_MARK:
        return None
    if PyBytes_GET_SIZE(value) != 17 or v[0] != 1:
        return None
    return get_be64(k + 1), get_be64(v + 1), get_be64(v + 9)
