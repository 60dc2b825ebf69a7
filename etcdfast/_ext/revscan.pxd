"""Reading the revision index: ranges, what a read sees of a record, counts over the tree."""

from libc.stdint cimport int64_t, uint32_t

from etcdfast._ext.revindex cimport KeyInfo
from etcdfast._ext.revrecord cimport (
    SIZE_TOMBSTONE, History, Record, Revision,
    history_after, history_generation, history_revisions,
    record_dead, record_key, record_key_len, record_spilled,
)
from etcdfast._ext.revtree cimport (
    Inner, Leaf, __builtin_popcountll, __builtin_prefetch, bits_below, inner_search, key_compare, leaf_search,
)

cdef enum:
    HIGH_NONE = 0       # to the last key
    HIGH_BEFORE = 1     # keys < high
    HIGH_UPTO = 2       # keys <= high: the range of one key
    PREFETCH_RECORDS = 8

cdef struct Bounds:
    const char* low
    const char* high
    uint32_t low_len
    uint32_t high_len
    int high_kind

cdef struct CountWalk:
    Bounds bounds
    int64_t rev
    int64_t budget
    int64_t total
    const char* resume_key
    uint32_t resume_len
    bint stopped


cdef inline void bounds_set(
    Bounds* bounds, const char* key, uint32_t key_len, const char* end, uint32_t end_len
) noexcept nogil:
    bounds.low = key
    bounds.low_len = key_len
    bounds.high = end
    bounds.high_len = end_len
    if end_len == 0:
        bounds.high = key
        bounds.high_len = key_len
        bounds.high_kind = HIGH_UPTO
    elif end_len == 1 and end[0] == 0:
        bounds.high_kind = HIGH_NONE
    else:
        bounds.high_kind = HIGH_BEFORE


cdef inline bint bounds_empty(Bounds* bounds) noexcept nogil:
    return bounds.high_kind == HIGH_BEFORE and key_compare(
        bounds.low, bounds.low_len, bounds.high, bounds.high_len, 0
    ) >= 0


cdef inline int bounds_end(Bounds* bounds, Leaf* leaf) noexcept nogil:
    """First position behind the range, in the leaf that its upper bound belongs to."""
    cdef bint found
    cdef int position = leaf_search(leaf, bounds.high, bounds.high_len, &found)
    return position + 1 if found and bounds.high_kind == HIGH_UPTO else position


cdef inline void info_now(Record* record, KeyInfo* out) noexcept nogil:
    """Describe the newest revision of a live record."""
    cdef History* history
    out.key = record_key(record)
    out.key_len = record_key_len(record)
    out.record = record
    out.mod_main = record.mod_main
    out.mod_sub = record.sub
    out.size = record.size
    if record_spilled(record):
        history = record.link.history
        history_generation(history, history.head + history.length - 1, &out.create_main, &out.version)
    else:
        out.create_main = record.link.create_main
        out.version = record.version


cdef inline bint info_at(Record* record, int64_t rev, KeyInfo* out) noexcept nogil:
    """Describe the revision a read at rev sees; False if the key was not there."""
    cdef History* history
    cdef Revision* revision
    cdef uint32_t after
    if record.mod_main <= rev:
        if record_dead(record):
            return False
        info_now(record, out)
        return True
    if not record_spilled(record):
        return False
    history = record.link.history
    after = history_after(history, rev)
    if after == 0:
        return False
    revision = history_revisions(history) + history.head + after - 1
    if revision.size_mark & SIZE_TOMBSTONE:
        return False
    out.key = record_key(record)
    out.key_len = record_key_len(record)
    out.record = record
    out.mod_main = revision.main
    out.mod_sub = revision.sub
    out.size = revision.size_mark
    history_generation(history, history.head + after - 1, &out.create_main, &out.version)
    return True


cdef inline bint live_at(Record* record, int64_t rev) noexcept nogil:
    cdef History* history
    cdef uint32_t after
    if record.mod_main <= rev:
        return not record_dead(record)
    if not record_spilled(record):
        return False
    history = record.link.history
    after = history_after(history, rev)
    if after == 0:
        return False
    return not history_revisions(history)[history.head + after - 1].size_mark & SIZE_TOMBSTONE


cdef inline void count_leaf(Leaf* leaf, bint low_open, bint high_open, CountWalk* walk) noexcept nogil:
    cdef bint found
    cdef int i = 0
    cdef int end = leaf.count
    cdef Record* record
    if not low_open:
        i = leaf_search(leaf, walk.bounds.low, walk.bounds.low_len, &found)
    if not high_open:
        end = bounds_end(&walk.bounds, leaf)
    if i >= end:
        return
    if walk.budget > 0 and walk.rev >= leaf.newest:
        walk.budget -= 1
        walk.total += __builtin_popcountll(leaf.live & bits_below(end) & ~bits_below(i))
        return
    while i < end:
        if i + PREFETCH_RECORDS < end:
            __builtin_prefetch(leaf.records[i + PREFETCH_RECORDS])
        record = leaf.records[i]
        if walk.budget <= 0:
            walk.stopped = True
            walk.resume_key = record_key(record)
            walk.resume_len = record_key_len(record)
            return
        walk.budget -= 1
        walk.total += live_at(record, walk.rev)
        i += 1


cdef inline void count_node(void* node, int level, bint low_open, bint high_open, CountWalk* walk) noexcept nogil:
    """Count below a node; an open side lies wholly within the range."""
    cdef Inner* inner
    cdef int first, last, i
    cdef bint low_in, high_in
    if level == 0:
        count_leaf(<Leaf*>node, low_open, high_open, walk)
        return
    inner = <Inner*>node
    first = 0 if low_open else inner_search(inner, walk.bounds.low, walk.bounds.low_len)
    last = inner.count - 1 if high_open else inner_search(inner, walk.bounds.high, walk.bounds.high_len)
    for i in range(first, last + 1):
        low_in = low_open or i > first
        high_in = high_open or i < last
        if low_in and high_in and walk.rev >= inner.newest[i]:
            walk.total += inner.live[i]
        else:
            count_node(inner.children[i], level - 1, low_in, high_in, walk)
            if walk.stopped:
                return
