"""The revision index for Python: tests, tools and cold paths; hot callers use revindex.pxd."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc

from etcdfast._ext.revindex cimport (
    IDX_BUSY, IDX_COMPACTED, IDX_NOT_FOUND, IDX_NOT_NEWER, IDX_NO_MEMORY, IDX_TOO_LONG, IDX_TOO_MANY,
    SCAN_BUDGET, SCAN_DONE, DroppedRev, IndexStats, KeyInfo, RevIndex, Scan,
)
from etcdfast._ext.revrecord cimport (
    KEY_LEN_MASK, SIZE_MASK, SIZE_TOMBSTONE, History, Record, Revision, history_generation, history_revisions,
    record_dead, record_spilled,
)
from etcdfast._ext.revtree cimport Leaf, leaf_search, tree_find_leaf, tree_verify

cdef enum:
    BATCH_MAX = 256     # results a Python call fetches at a time


class CompactedError(ValueError):
    """The revision asked for lies below the compacted one."""


cdef object _raise(int status):
    if status == IDX_NO_MEMORY:
        raise MemoryError("revision index: out of memory")
    if status == IDX_COMPACTED:
        raise CompactedError("revision has been compacted")
    if status == IDX_NOT_NEWER:
        raise ValueError("revision is not above the newest one of its key")
    if status == IDX_TOO_LONG:
        raise ValueError("key too long for the revision index")
    if status == IDX_BUSY:
        raise RuntimeError("a compaction is under way")
    raise RuntimeError(f"revision index: status {status}")


cdef inline object _key_of(const char* key, uint32_t key_len):
    return key[:key_len]


cdef object _info(KeyInfo* info):
    return (
        _key_of(info.key, info.key_len), info.create_main, info.mod_main, info.mod_sub, info.version, info.size
    )


cdef object _revision(Revision* revision):
    return (
        revision.main, revision.sub, bool(revision.size_mark & SIZE_TOMBSTONE), revision.size_mark & SIZE_MASK
    )


cdef int64_t _main(object value) except -1:
    cdef int64_t main = value
    if main < 1:
        raise ValueError("main revision must be at least 1")
    return main


cdef uint32_t _length(bytes key) except? 0xFFFFFFFF:
    if len(key) > KEY_LEN_MASK:
        _raise(IDX_TOO_LONG)
    return <uint32_t>len(key)


cdef class RevisionIndex:
    """RevIndex for Python: tests, tools and cold paths. Not for use by two threads at a time.

    Keys are bytes; rev <= 0 means now; a range's end is b"" (one key), b"\\0" (all keys >= key) or
    the first key behind the range. A key's state is (key, create_main, mod_main, mod_sub, version,
    size). Errors: CompactedError below the compacted revision, MemoryError (nothing changed),
    ValueError for a revision that is not newer, OverflowError for a number that does not fit.
    """

    cdef RevIndex core

    def __cinit__(self):
        self.core = RevIndex()

    def put(self, bytes key, main, uint32_t sub, uint32_t size=0):
        """Add a revision; (create_main, version) of it."""
        cdef KeyInfo info
        cdef int status
        if size > SIZE_MASK:
            raise ValueError("size must be below 2**31 bytes")
        # The size goes in as the hot caller does it: after the put, by handle.
        status = self.core.put(key, _length(key), _main(main), sub, 0, &info)
        if status < 0:
            _raise(status)
        self.core.set_size(&info, size)
        return info.create_main, info.version

    def tombstone(self, bytes key, main, uint32_t sub):
        """End the key's generation; False when the key is not there."""
        cdef int status = self.core.tombstone(key, _length(key), _main(main), sub)
        if status == IDX_NOT_FOUND:
            return False
        if status < 0:
            _raise(status)
        return True

    def restore(self, bytes key, main, uint32_t sub, int64_t create_main=0, int64_t version=1,
                bint is_tombstone=False, uint32_t size=0):
        """Add a stored revision at start-up; False for a tombstone of a dead key (left out)."""
        cdef int status
        if size > SIZE_MASK or version < 1:
            raise ValueError("size must be below 2**31 bytes, version at least 1")
        status = self.core.restore(
            key, _length(key), _main(main), sub, create_main, version, is_tombstone, size
        )
        if status == IDX_NOT_FOUND:
            return False
        if status < 0:
            _raise(status)
        return True

    def get(self, bytes key, int64_t rev=0):
        """The key's state at rev, or None."""
        cdef KeyInfo info
        cdef int status = self.core.get(key, _length(key), rev, &info)
        if status == IDX_NOT_FOUND:
            return None
        if status < 0:
            _raise(status)
        return _info(&info)

    def count(self, bytes key, bytes end=b"", int64_t rev=0):
        """Number of keys in a range at rev."""
        cdef int64_t total = self.core.count(key, _length(key), end, _length(end), rev)
        if total < 0:
            _raise(<int>total)
        return total

    def count_step(self, bytes key, bytes end, int64_t rev, int64_t budget):
        """(keys counted, key to go on from or None) after looking at most at budget records."""
        cdef Scan scan
        cdef int64_t total = 0
        cdef int status
        if budget < 1:
            raise ValueError("budget must be at least 1")
        status = self.core.count_step(key, _length(key), end, _length(end), rev, budget, &total, &scan)
        if status < 0:
            _raise(status)
        return total, None if scan.state == SCAN_DONE else _key_of(scan.resume_key, scan.resume_len)

    def range_batch(self, bytes key, bytes end=b"", int64_t rev=0, bint exclusive=False,
                    int cap=BATCH_MAX, int64_t budget=1 << 40):
        """(states ascending, key to go on from with exclusive=True, or None at the end)."""
        cdef KeyInfo infos[BATCH_MAX]
        cdef Scan scan
        cdef int given, i
        if not 1 <= cap <= BATCH_MAX or budget < 1:
            raise ValueError(f"cap must be 1 to {BATCH_MAX}, budget at least 1")
        given = self.core.range_batch(
            key, _length(key), exclusive, end, _length(end), rev, infos, cap, budget, &scan
        )
        if given < 0:
            _raise(given)
        resume = None if scan.state == SCAN_DONE else _key_of(scan.resume_key, scan.resume_len)
        return [_info(&infos[i]) for i in range(given)], resume

    def range_batch_desc(self, bytes key, bytes end=b"", int64_t rev=0, bytes before=None,
                         int cap=BATCH_MAX, int64_t budget=1 << 40):
        """(states descending, key to go on from as `before`, or None at the end)."""
        cdef KeyInfo infos[BATCH_MAX]
        cdef Scan scan
        cdef const char* before_key = NULL
        cdef uint32_t before_len = 0
        cdef int given, i
        if not 1 <= cap <= BATCH_MAX or budget < 1:
            raise ValueError(f"cap must be 1 to {BATCH_MAX}, budget at least 1")
        if before is not None:
            before_key = before
            before_len = _length(before)
        given = self.core.range_batch_desc(
            key, _length(key), end, _length(end), before_key, before_len, rev, infos, cap, budget, &scan
        )
        if given < 0:
            _raise(given)
        resume = None if scan.state == SCAN_DONE else _key_of(scan.resume_key, scan.resume_len)
        return [_info(&infos[i]) for i in range(given)], resume

    def compact_begin(self, int64_t compact_rev):
        """Start a compaction; CompactedError unless above the last one."""
        cdef int status = self.core.compact_begin(compact_rev)
        if status < 0:
            _raise(status)

    def compact_step(self, int64_t budget=1 << 40, int cap=BATCH_MAX):
        """([(main, sub, is_tombstone, size) dropped], done)."""
        cdef DroppedRev dropped[BATCH_MAX]
        cdef bint done
        cdef int count, i
        if not 1 <= cap <= BATCH_MAX or budget < 1:
            raise ValueError(f"cap must be 1 to {BATCH_MAX}, budget at least 1")
        count = self.core.compact_step(budget, dropped, cap, &done)
        if count < 0:
            _raise(count)
        return [
            (dropped[i].main, dropped[i].sub, bool(dropped[i].is_tombstone), dropped[i].size)
            for i in range(count)
        ], bool(done)

    def kept_at(self, bytes key, int64_t main, uint32_t sub, int64_t rev):
        """Whether a revision is in HashKV's keep set at rev."""
        cdef int status = self.core.kept_at(key, _length(key), main, sub, rev)
        if status < 0:
            _raise(status)
        return status == 1

    def kept_any(self, int64_t rev, int64_t budget=1 << 40):
        """Whether HashKV's keep set at rev has any member (in slices of budget records)."""
        cdef Scan scan
        cdef bytes key = b""
        cdef int status
        if budget < 1:
            raise ValueError("budget must be at least 1")
        while True:
            status = self.core.kept_any_step(key, <uint32_t>len(key), rev, budget, &scan)
            if status < 0:
                _raise(status)
            if status or scan.state == SCAN_DONE:
                return status == 1
            key = _key_of(scan.resume_key, scan.resume_len)

    def revisions(self, bytes key):
        """Every revision held of a key, oldest first: (main, sub, is_tombstone, size, create, version)."""
        cdef uint32_t key_len = _length(key)
        cdef Leaf* leaf = tree_find_leaf(&self.core.tree, key, key_len)
        cdef Record* record
        cdef History* history
        cdef Revision* revision
        cdef int64_t created, version
        cdef bint found
        cdef int position
        cdef uint32_t i
        if leaf == NULL:
            return []
        position = leaf_search(leaf, key, key_len, &found)
        if not found:
            return []
        record = leaf.records[position]
        if not record_spilled(record):
            return [(
                record.mod_main, record.sub, bool(record_dead(record)), record.size,
                record.link.create_main, record.version,
            )]
        history = record.link.history
        held = []
        for i in range(history.head, history.head + history.length):
            revision = history_revisions(history) + i
            history_generation(history, i, &created, &version)
            held.append((
                revision.main, revision.sub, bool(revision.size_mark & SIZE_TOMBSTONE),
                revision.size_mark & SIZE_MASK, created, version,
            ))
        return held

    def revs_from(self, bytes key, int64_t main, uint32_t sub=0, int cap=BATCH_MAX):
        """Up to cap revisions of a key from (main, sub) on: (main, sub, is_tombstone, size)."""
        cdef Revision revisions[BATCH_MAX]
        cdef int given, i
        if not 1 <= cap <= BATCH_MAX:
            raise ValueError(f"cap must be 1 to {BATCH_MAX}")
        given = self.core.revs_from(key, _length(key), main, sub, revisions, cap)
        return [_revision(&revisions[i]) for i in range(given)]

    def revs_of_range(self, bytes key, bytes end, int64_t first, int64_t last, int64_t cap, int64_t budget=1 << 40):
        """All revisions of a range with first <= main <= last, key by key; None when there are too many."""
        cdef Revision* revisions
        cdef int64_t given, i
        if not 0 <= cap <= 1 << 20:
            raise ValueError("cap must be 0 to 2**20")
        revisions = <Revision*>malloc((<size_t>(cap if cap else 1)) * sizeof(Revision))
        if revisions == NULL:
            raise MemoryError
        try:
            given = self.core.revs_of_range(
                key, _length(key), end, _length(end), first, last, revisions, cap, budget
            )
            if given == IDX_TOO_MANY:
                return None
            return [_revision(&revisions[i]) for i in range(given)]
        finally:
            free(revisions)

    def stats(self):
        """keys, live_keys, revisions, leaves (counts); used_bytes, held_bytes; height of the tree."""
        cdef IndexStats stats
        self.core.stats(&stats)
        return {
            "keys": stats.keys,
            "live_keys": stats.live_keys,
            "revisions": stats.revisions,
            "leaves": stats.leaves,
            "used_bytes": stats.used_bytes,
            "held_bytes": stats.held_bytes,
            "height": self.core.tree.height,
        }

    def verify(self):
        """Check every invariant of the tree; 0, or the number of the broken one (revtree.pxd)."""
        return tree_verify(&self.core.tree)

    def fail_allocation(self, int64_t countdown):
        """Test hook: let the countdown-th allocation from now fail, once; 0 turns it off.

        Returns what was left of the countdown before: 0 if it has fired or was off.
        """
        cdef int64_t left = self.core.tree.arena.fail_countdown
        if countdown < 0:
            raise ValueError("countdown must not be negative")
        self.core.tree.arena.fail_countdown = countdown
        return left

    def clear(self):
        """Forget everything and give the memory back."""
        self.core.clear()


def drive(RevisionIndex index, str operation, bytes keys, uint32_t key_len, int64_t first_main=1):
    """One operation for each key of a packed array, without Python in between: what the hot caller pays.

    operation: put, get, get_old (at first_main), tombstone, restore, count (of [key, last byte 0xff..)),
    range (from the key, 10 keys). Key i is keys[i * key_len : (i + 1) * key_len]; writes of key i get
    main first_main + i. Returns how many succeeded (count and range: the sum of their results).
    """
    cdef const char* key = keys
    cdef int64_t number, done = 0
    cdef int64_t total = <int64_t>len(keys) // key_len if key_len else 0
    cdef int which = ("put", "get", "get_old", "tombstone", "restore", "count", "range").index(operation)
    cdef KeyInfo infos[10]
    cdef Scan scan
    with nogil:
        for number in range(total):
            if which == 0:
                if index.core.put(key, key_len, first_main + number, 0, 0, infos) == 0:
                    index.core.set_size(infos, 100)
                    done += 1
            elif which == 1:
                done += index.core.get(key, key_len, 0, infos) == 0
            elif which == 2:
                done += index.core.get(key, key_len, first_main, infos) == 0
            elif which == 3:
                done += index.core.tombstone(key, key_len, first_main + number, 0) == 0
            elif which == 4:
                done += index.core.restore(
                    key, key_len, first_main + number, 0, first_main + number, 1, False, 100
                ) == 0
            elif which == 5:
                done += index.core.count(key, key_len, b"\xff\xff", 2, first_main)
            else:
                done += index.core.range_batch(key, key_len, False, b"\0", 1, 0, infos, 10, 1000, &scan)
            key += key_len
    return done
