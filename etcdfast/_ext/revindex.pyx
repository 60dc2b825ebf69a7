"""Revision index: the operations, on the tree of revtree and the records of revrecord."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from etcdfast._ext.revrecord cimport (
    KEY_LEN_MASK, RECORD_DEAD, RECORD_SPILLED, SIZE_MASK, SIZE_TOMBSTONE,
    History, Record, Revision,
    history_after, history_revisions,
    record_append, record_dead, record_drop, record_free, record_history_new, record_keep_from,
    record_kept_main, record_key, record_key_len, record_new, record_spilled,
)
from etcdfast._ext.revscan cimport (
    HIGH_BEFORE, HIGH_NONE, PREFETCH_RECORDS, Bounds, CountWalk,
    bounds_empty, bounds_end, bounds_set, count_node, info_at, info_now,
)
from etcdfast._ext.revslab cimport arena_init, arena_must_fail, arena_release
from etcdfast._ext.revtree cimport (
    Inner, Leaf, Path, __builtin_ctzll, __builtin_prefetch,
    bits_below, key_compare, leaf_mark, leaf_remove, leaf_search, leaf_thin,
    path_changed, tree_descend, tree_find_leaf, tree_insert, tree_plant, tree_rebalance,
)

cdef int64_t REV_NOW = 0x7FFFFFFFFFFFFFFF

cdef inline Leaf* last_leaf(void* node, uint32_t height) noexcept nogil:
    cdef uint32_t level
    for level in range(height):
        node = (<Inner*>node).children[(<Inner*>node).count - 1]
    return <Leaf*>node


cdef inline void scan_stop(Scan* scan, int state, Record* record) noexcept nogil:
    scan.state = state
    scan.resume_key = record_key(record)
    scan.resume_len = record_key_len(record)


cdef inline int64_t record_revs(
    Record* record, int64_t main, uint32_t sub, int64_t last, Revision* out, int64_t cap
) noexcept nogil:
    """Copy up to cap revisions of a record from (main, sub) on, up to main revision `last`; how many."""
    cdef History* history
    cdef Revision* revisions
    cdef int64_t given = 0
    cdef uint32_t i
    if record.mod_main < main:
        return 0
    if not record_spilled(record):
        if cap < 1 or record.mod_main > last or (record.mod_main == main and record.sub < sub):
            return 0
        out.main = record.mod_main
        out.sub = record.sub
        out.size_mark = record.size | (SIZE_TOMBSTONE if record_dead(record) else 0)
        return 1
    history = record.link.history
    revisions = history_revisions(history) + history.head
    i = history_after(history, main - 1)
    while i < history.length and revisions[i].main == main and revisions[i].sub < sub:
        i += 1
    while i < history.length and given < cap and revisions[i].main <= last:
        out[given] = revisions[i]
        given += 1
        i += 1
    return given


cdef class RevIndex:
    def __cinit__(self):
        arena_init(&self.tree.arena)

    def __dealloc__(self):
        self.clear()

    cdef int _add(
        self, const char* key, uint32_t key_len, int64_t main, uint32_t sub, uint32_t size_mark,
        int64_t create_main, int64_t version, bint must_live, Record** out
    ) noexcept nogil:
        """One descent for put, tombstone and restore; create_main and version are for a new key."""
        cdef Tree* tree = &self.tree
        cdef Path path
        cdef Record* record
        cdef History* history
        cdef bint was_dead
        if key_len > KEY_LEN_MASK:
            return IDX_TOO_LONG
        if tree.root == NULL:
            if must_live:
                return IDX_NOT_FOUND
            if tree_plant(tree) != 0:
                return IDX_NO_MEMORY
        tree_descend(tree, key, key_len, &path)
        if path.found:
            record = path.leaf.records[path.position]
            was_dead = record_dead(record)
            if must_live and was_dead:
                return IDX_NOT_FOUND
            if main < record.mod_main or (main == record.mod_main and sub <= record.sub):
                return IDX_NOT_NEWER
            if record_append(&tree.arena, record, main, sub, size_mark) != 0:
                return IDX_NO_MEMORY
            leaf_mark(path.leaf, path.position)
            path_changed(tree, &path, main, <int>was_dead - <int>record_dead(record))
        else:
            if must_live:
                return IDX_NOT_FOUND
            record = record_new(&tree.arena, key, key_len)
            if record == NULL:
                return IDX_NO_MEMORY
            record.mod_main = main
            record.sub = sub
            record.size = size_mark & SIZE_MASK
            record.link.create_main = create_main
            record.version = <uint32_t>version
            if size_mark & SIZE_TOMBSTONE:
                record.key_len_marks |= RECORD_DEAD
            if version > 0xFFFFFFFFU:
                history = record_history_new(&tree.arena, record, 1)
                if history == NULL:
                    record_free(&tree.arena, record)
                    return IDX_NO_MEMORY
                history.first_version = version
                record.link.history = history
                record.key_len_marks |= RECORD_SPILLED
            if tree_insert(tree, &path, record) != 0:
                record_free(&tree.arena, record)
                return IDX_NO_MEMORY
        tree.revisions += 1
        out[0] = record
        return 0

    cdef int put(
        self, const char* key, uint32_t key_len, int64_t main, uint32_t sub, uint32_t size, KeyInfo* out
    ) noexcept nogil:
        cdef Record* record
        cdef int status = self._add(key, key_len, main, sub, size & SIZE_MASK, main, 1, False, &record)
        if status == 0:
            info_now(record, out)
        return status

    cdef void set_size(self, KeyInfo* info, uint32_t size) noexcept nogil:
        cdef Record* record = info.record
        cdef History* history
        record.size = size & SIZE_MASK
        info.size = record.size
        if record_spilled(record):
            history = record.link.history
            history_revisions(history)[history.head + history.length - 1].size_mark = record.size

    cdef int tombstone(self, const char* key, uint32_t key_len, int64_t main, uint32_t sub) noexcept nogil:
        cdef Record* record
        return self._add(key, key_len, main, sub, SIZE_TOMBSTONE, 0, 0, True, &record)

    cdef int restore(
        self, const char* key, uint32_t key_len, int64_t main, uint32_t sub, int64_t create_main,
        int64_t version, bint is_tombstone, uint32_t size
    ) noexcept nogil:
        cdef Record* record
        cdef int status
        if not is_tombstone:
            return self._add(key, key_len, main, sub, size & SIZE_MASK, create_main, version, False, &record)
        status = self._add(key, key_len, main, sub, SIZE_TOMBSTONE, 0, 1, True, &record)
        if status == IDX_NOT_FOUND and not self._holds(key, key_len):
            status = self._add(key, key_len, main, sub, SIZE_TOMBSTONE, 0, 1, False, &record)
        return status

    cdef bint _holds(self, const char* key, uint32_t key_len) noexcept nogil:
        """Whether a key has any revision, dead or alive."""
        cdef Leaf* leaf = tree_find_leaf(&self.tree, key, key_len)
        cdef bint found = False
        if leaf != NULL:
            leaf_search(leaf, key, key_len, &found)
        return found

    cdef int get(self, const char* key, uint32_t key_len, int64_t at_rev, KeyInfo* out) noexcept nogil:
        cdef Leaf* leaf = tree_find_leaf(&self.tree, key, key_len)
        cdef bint found
        cdef int position
        if 0 < at_rev < self.compact_rev:
            return IDX_COMPACTED
        if leaf == NULL:
            return IDX_NOT_FOUND
        position = leaf_search(leaf, key, key_len, &found)
        if not found or not info_at(leaf.records[position], at_rev if at_rev > 0 else REV_NOW, out):
            return IDX_NOT_FOUND
        return 0

    cdef int64_t count(
        self, const char* key, uint32_t key_len, const char* end, uint32_t end_len, int64_t at_rev
    ) noexcept nogil:
        cdef int64_t total = 0
        cdef Scan scan
        cdef int status = self.count_step(key, key_len, end, end_len, at_rev, REV_NOW, &total, &scan)
        return total if status == 0 else status

    cdef int count_step(
        self, const char* key, uint32_t key_len, const char* end, uint32_t end_len, int64_t at_rev,
        int64_t budget, int64_t* total, Scan* scan
    ) noexcept nogil:
        cdef CountWalk walk
        scan.state = SCAN_DONE
        if 0 < at_rev < self.compact_rev:
            return IDX_COMPACTED
        bounds_set(&walk.bounds, key, key_len, end, end_len)
        if self.tree.root == NULL or bounds_empty(&walk.bounds):
            return 0
        walk.rev = at_rev if at_rev > 0 else REV_NOW
        walk.budget = budget
        walk.total = 0
        walk.stopped = False
        count_node(
            self.tree.root, <int>self.tree.height, key_len == 0, walk.bounds.high_kind == HIGH_NONE, &walk
        )
        total[0] += walk.total
        if walk.stopped:
            scan.state = SCAN_BUDGET
            scan.resume_key = walk.resume_key
            scan.resume_len = walk.resume_len
        return 0

    cdef int range_batch(
        self, const char* key, uint32_t key_len, bint exclusive, const char* end, uint32_t end_len,
        int64_t at_rev, KeyInfo* out, int cap, int64_t budget, Scan* scan
    ) noexcept nogil:
        cdef Bounds bounds
        cdef Leaf* leaf
        cdef Leaf* end_leaf = NULL
        cdef Record* record = NULL
        cdef int64_t rev = at_rev if at_rev > 0 else REV_NOW
        cdef int end_position = 0
        cdef int given = 0
        cdef int i, stop
        cdef bint found, settled
        scan.state = SCAN_DONE
        if 0 < at_rev < self.compact_rev:
            return IDX_COMPACTED
        bounds_set(&bounds, key, key_len, end, end_len)
        if self.tree.root == NULL or bounds_empty(&bounds):
            return 0
        if bounds.high_kind != HIGH_NONE:
            end_leaf = tree_find_leaf(&self.tree, bounds.high, bounds.high_len)
            end_position = bounds_end(&bounds, end_leaf)
        leaf = tree_find_leaf(&self.tree, key, key_len)
        i = leaf_search(leaf, key, key_len, &found)
        if found and exclusive:
            i += 1
        if i == leaf.count and leaf != end_leaf:  # a budget of one leaf must not go on this one again
            leaf = leaf.next
            i = 0
        while leaf != NULL:
            stop = end_position if leaf == end_leaf else leaf.count
            settled = rev >= leaf.newest  # the bitmap then answers for rev, too
            while i < stop:
                if settled and not (leaf.live >> i) & 1:
                    i += 1
                    continue
                if i + PREFETCH_RECORDS < stop:
                    __builtin_prefetch(leaf.records[i + PREFETCH_RECORDS])
                if given == cap or budget <= 0:
                    if record == NULL:  # cap or budget 0: a caller's mistake must not loop forever
                        scan.state = SCAN_DONE
                        return 0
                    scan_stop(scan, SCAN_FULL if given == cap else SCAN_BUDGET, record)
                    return given
                record = leaf.records[i]
                budget -= 1
                if info_at(record, rev, &out[given]):
                    given += 1
                i += 1
            if leaf == end_leaf:
                return given
            budget -= 1
            if budget <= 0 and leaf.next != NULL and leaf.count:
                record = leaf.records[leaf.count - 1]
                scan_stop(scan, SCAN_BUDGET, record)
                return given
            leaf = leaf.next
            i = 0
        return given

    cdef int range_batch_desc(
        self, const char* key, uint32_t key_len, const char* end, uint32_t end_len,
        const char* before, uint32_t before_len, int64_t at_rev,
        KeyInfo* out, int cap, int64_t budget, Scan* scan
    ) noexcept nogil:
        cdef Bounds bounds
        cdef Leaf* leaf
        cdef Leaf* low_leaf
        cdef Record* record = NULL
        cdef int64_t rev = at_rev if at_rev > 0 else REV_NOW
        cdef int given = 0
        cdef int i, stop, low_position
        cdef bint found, settled
        scan.state = SCAN_DONE
        if 0 < at_rev < self.compact_rev:
            return IDX_COMPACTED
        bounds_set(&bounds, key, key_len, end, end_len)
        if before != NULL and (
            bounds.high_kind == HIGH_NONE
            or key_compare(before, before_len, bounds.high, bounds.high_len, 0) <= 0
        ):
            bounds.high = before
            bounds.high_len = before_len
            bounds.high_kind = HIGH_BEFORE
        if self.tree.root == NULL or bounds_empty(&bounds):
            return 0
        low_leaf = tree_find_leaf(&self.tree, key, key_len)
        low_position = leaf_search(low_leaf, key, key_len, &found)
        if bounds.high_kind == HIGH_NONE:
            leaf = last_leaf(self.tree.root, self.tree.height)
            i = leaf.count - 1
        else:
            leaf = tree_find_leaf(&self.tree, bounds.high, bounds.high_len)
            i = bounds_end(&bounds, leaf) - 1
        if i < 0 and leaf != low_leaf:
            leaf = leaf.prev
            if leaf != NULL:
                i = leaf.count - 1
        while leaf != NULL:
            stop = low_position if leaf == low_leaf else 0
            settled = rev >= leaf.newest
            while i >= stop:
                if settled and not (leaf.live >> i) & 1:
                    i -= 1
                    continue
                if i >= PREFETCH_RECORDS:
                    __builtin_prefetch(leaf.records[i - PREFETCH_RECORDS])
                if given == cap or budget <= 0:
                    if record == NULL:
                        return 0
                    scan_stop(scan, SCAN_FULL if given == cap else SCAN_BUDGET, record)
                    return given
                record = leaf.records[i]
                budget -= 1
                if info_at(record, rev, &out[given]):
                    given += 1
                i -= 1
            if leaf == low_leaf:
                return given
            budget -= 1
            if budget <= 0 and leaf.prev != NULL and leaf.count:
                scan_stop(scan, SCAN_BUDGET, leaf.records[0])
                return given
            leaf = leaf.prev
            if leaf != NULL:
                i = leaf.count - 1
        return given

    cdef int compact_begin(self, int64_t compact_rev) noexcept nogil:
        if self.compacting:
            return IDX_BUSY
        if compact_rev <= self.compact_rev:
            return IDX_COMPACTED
        self.compact_rev = compact_rev
        self.compacting = True
        self.cursor_len = 0
        return 0

    cdef bint _keep_cursor(self, const char* key, uint32_t key_len) noexcept nogil:
        """Remember where the compaction goes on; False without memory (the old place stays)."""
        cdef char* grown
        if key_len > self.cursor_capacity:
            if arena_must_fail(&self.tree.arena):
                return False
            grown = <char*>realloc(self.cursor, key_len)
            if grown == NULL:
                return False
            self.cursor = grown
            self.cursor_capacity = key_len
        if key_len:
            memcpy(self.cursor, key, key_len)
        self.cursor_len = key_len
        return True

    cdef void _drop_cursor(self) noexcept nogil:
        free(self.cursor)
        self.cursor = NULL
        self.cursor_len = 0
        self.cursor_capacity = 0

    cdef int compact_step(self, int64_t budget, DroppedRev* out, int cap, bint* done) noexcept nogil:
        cdef Tree* tree = &self.tree
        cdef Path path
        cdef Leaf* leaf
        cdef Record* record
        cdef Revision* revision
        cdef int dropped = 0
        cdef int i, k
        cdef uint32_t count, part
        cdef uint64_t deep
        cdef bint found
        done[0] = False
        if not self.compacting:
            done[0] = True
            return 0
        leaf = tree_find_leaf(tree, self.cursor, self.cursor_len)
        i = 0
        if leaf != NULL:
            i = leaf_search(leaf, self.cursor, self.cursor_len, &found)
        while leaf != NULL:
            # A record that is one live revision has nothing to drop: the bitmap passes over it.
            deep = leaf.deep & ~bits_below(i)
            if deep == 0:
                leaf = leaf.next
                i = 0
                budget -= 1
                if budget <= 0 and leaf != NULL:
                    record = leaf.records[0]
                    break
                continue
            i = __builtin_ctzll(deep)
            record = leaf.records[i]
            if budget <= 0 or dropped == cap:
                break
            budget -= 1
            count = record_keep_from(record, self.compact_rev)
            if count == 0:
                i += 1
                continue
            part = count if count <= <uint32_t>(cap - dropped) else <uint32_t>(cap - dropped)
            if record_spilled(record):
                revision = history_revisions(record.link.history) + record.link.history.head
                for k in range(<int>part):
                    out[dropped].main = revision[k].main
                    out[dropped].sub = revision[k].sub
                    out[dropped].size = revision[k].size_mark & SIZE_MASK
                    out[dropped].is_tombstone = (revision[k].size_mark & SIZE_TOMBSTONE) != 0
                    dropped += 1
            else:
                out[dropped].main = record.mod_main
                out[dropped].sub = record.sub
                out[dropped].size = 0
                out[dropped].is_tombstone = True
                dropped += 1
            tree.revisions -= part
            if record_spilled(record) and part < record.link.history.length:
                record_drop(&tree.arena, record, part, part == count)
                leaf_mark(leaf, i)
                if part == count:
                    i += 1
                continue
            # Nothing is left of the key, and it is dead: no count above the leaf changes.
            leaf_remove(leaf, i)
            tree.keys -= 1
            if leaf_thin(tree, leaf):
                tree_descend(tree, record_key(record), record_key_len(record), &path)
                tree_rebalance(tree, &path)
                leaf = tree_find_leaf(tree, record_key(record), record_key_len(record))
                i = leaf_search(leaf, record_key(record), record_key_len(record), &found)
            record_free(&tree.arena, record)
        if leaf == NULL:
            self.compacting = False
            self._drop_cursor()
            done[0] = True
            return dropped
        # The old place does as well as a new one: what lies between has nothing left to drop.
        if not self._keep_cursor(record_key(record), record_key_len(record)) and dropped == 0:
            return IDX_NO_MEMORY
        return dropped

    cdef int kept_at(
        self, const char* key, uint32_t key_len, int64_t main, uint32_t sub, int64_t rev
    ) noexcept nogil:
        cdef Leaf* leaf = tree_find_leaf(&self.tree, key, key_len)
        cdef bint found
        cdef int position
        cdef int64_t kept_main
        cdef uint32_t kept_sub
        if rev < self.compact_rev:
            return IDX_COMPACTED
        if leaf == NULL:
            return 0
        position = leaf_search(leaf, key, key_len, &found)
        if not found or not record_kept_main(leaf.records[position], rev, &kept_main, &kept_sub):
            return 0
        return kept_main == main and kept_sub == sub

    cdef int kept_any_step(
        self, const char* key, uint32_t key_len, int64_t rev, int64_t budget, Scan* scan
    ) noexcept nogil:
        cdef Leaf* leaf = tree_find_leaf(&self.tree, key, key_len)
        cdef bint found
        cdef int i
        cdef int64_t kept_main
        cdef uint32_t kept_sub
        scan.state = SCAN_DONE
        if rev < self.compact_rev:
            return IDX_COMPACTED
        if leaf == NULL:
            return 0
        i = leaf_search(leaf, key, key_len, &found)
        while leaf != NULL:
            while i < leaf.count:
                if budget <= 0:
                    scan_stop(scan, SCAN_BUDGET, leaf.records[i])
                    return 0
                budget -= 1
                if record_kept_main(leaf.records[i], rev, &kept_main, &kept_sub):
                    return 1
                i += 1
            leaf = leaf.next
            i = 0
        return 0

    cdef void stats(self, IndexStats* out) noexcept nogil:
        out.keys = self.tree.keys
        out.live_keys = self.tree.live_keys
        out.revisions = self.tree.revisions
        out.leaves = self.tree.leaves
        out.used_bytes = self.tree.arena.used_bytes + self.cursor_capacity
        out.held_bytes = self.tree.arena.held_bytes + self.cursor_capacity

    cdef void clear(self) noexcept nogil:
        arena_release(&self.tree.arena)
        self.tree.root = NULL
        self.tree.first = NULL
        self.tree.height = 0
        self.tree.keys = 0
        self.tree.live_keys = 0
        self.tree.revisions = 0
        self.tree.leaves = 0
        self.compact_rev = 0
        self.compacting = False
        self._drop_cursor()

    cdef int revs_from(
        self, const char* key, uint32_t key_len, int64_t main, uint32_t sub, Revision* out, int cap
    ) noexcept nogil:
        cdef Leaf* leaf = tree_find_leaf(&self.tree, key, key_len)
        cdef int position
        cdef bint found
        if leaf == NULL:
            return 0
        position = leaf_search(leaf, key, key_len, &found)
        if not found:
            return 0
        return <int>record_revs(leaf.records[position], main, sub, REV_NOW, out, cap)

    cdef int64_t revs_of_range(
        self, const char* key, uint32_t key_len, const char* end, uint32_t end_len, int64_t first, int64_t last,
        Revision* out, int64_t cap, int64_t budget
    ) noexcept nogil:
        cdef Bounds bounds
        cdef Leaf* leaf
        cdef Leaf* end_leaf = NULL
        cdef Record* record
        cdef Revision further
        cdef int64_t given = 0
        cdef int64_t taken
        cdef int end_position = 0
        cdef int i, stop
        cdef bint found
        bounds_set(&bounds, key, key_len, end, end_len)
        if self.tree.root == NULL or bounds_empty(&bounds):
            return 0
        if bounds.high_kind != HIGH_NONE:
            end_leaf = tree_find_leaf(&self.tree, bounds.high, bounds.high_len)
            end_position = bounds_end(&bounds, end_leaf)
        leaf = tree_find_leaf(&self.tree, key, key_len)
        i = leaf_search(leaf, key, key_len, &found)
        while leaf != NULL:
            stop = end_position if leaf == end_leaf else leaf.count
            budget -= 1
            if leaf.newest >= first and i < stop:
                budget -= stop - i
                while i < stop:
                    if i + PREFETCH_RECORDS < stop:
                        __builtin_prefetch(leaf.records[i + PREFETCH_RECORDS])
                    record = leaf.records[i]
                    if record.mod_main >= first:
                        taken = record_revs(record, first, 0, last, out + given, cap - given)
                        given += taken
                        if given == cap:
                            if taken:
                                taken = record_revs(
                                    record, out[given - 1].main, out[given - 1].sub + 1, last, &further, 1)
                            else:
                                taken = record_revs(record, first, 0, last, &further, 1)
                            if taken:
                                return IDX_TOO_MANY
                    i += 1
            if leaf == end_leaf:
                break
            leaf = leaf.next
            i = 0
            if budget < 0 and leaf != NULL:
                return IDX_TOO_MANY
        return given
