"""Revision index: which revisions each key has, in key order (etcd's treeIndex, in C memory).

One thread owns an index. Every method is `noexcept nogil`, touches no Python object and takes time
logarithmic in the number of keys plus what its budget allows; the parts below it are revtree
(B+tree), revrecord (revisions of one key) and revslab (memory).

Conventions
- Keys are any bytes, also empty, up to KEY_LEN_MASK; a pointer may be NULL when its length is 0.
- Revisions are (main, sub); mains never fall from one call to the next. at_rev <= 0 means now;
  at_rev above the newest revision reads as now (the caller knows the current revision and refuses).
- Ranges as in etcd: end_len 0 is the one key; end "\\0" is every key >= key; else [key, end).
- Pointers in a KeyInfo or Scan point into the index and hold until the next put, tombstone, restore,
  compact_step or clear.
- A call that returns IDX_NO_MEMORY has changed nothing.

Source: etcd's treeIndex and keyIndex, rules of reference/formats.md 9.1, 9.2, 9.4, 9.5 (>= 3.5.16).
"""

from libc.stdint cimport int64_t, uint32_t

from etcdfast._ext.revrecord cimport Record, Revision
from etcdfast._ext.revtree cimport Tree

cdef enum:
    IDX_NOT_FOUND = -1      # no such key at that revision
    IDX_NO_MEMORY = -2
    IDX_COMPACTED = -3      # revision below (compact_begin: not above) the compacted one
    IDX_NOT_NEWER = -4      # (main, sub) not above the key's newest revision
    IDX_TOO_LONG = -5       # key longer than KEY_LEN_MASK
    IDX_BUSY = -6           # a compaction is under way
    IDX_TOO_MANY = -7       # more results than cap, or more to look at than the budget

cdef enum:
    SCAN_DONE = 0           # nothing left in the range
    SCAN_FULL = 1           # cap results given; there may be more
    SCAN_BUDGET = 2         # budget used up before that

cdef struct KeyInfo:
    const char* key
    Record* record          # for set_size
    int64_t create_main
    int64_t mod_main
    int64_t version
    uint32_t key_len
    uint32_t mod_sub
    uint32_t size           # of the stored mvccpb.KeyValue, bytes

cdef struct Scan:
    const char* resume_key  # where to go on; copy it before any mutation
    uint32_t resume_len
    int state               # SCAN_*; at SCAN_DONE there is no resume_key

cdef struct DroppedRev:
    int64_t main
    uint32_t sub
    uint32_t size           # bytes; 0 for a tombstone
    int is_tombstone

cdef struct IndexStats:
    int64_t keys            # with any revision, dead ones included
    int64_t live_keys       # live now
    int64_t revisions
    int64_t leaves          # of the tree; keys / leaves / 64 is how full they are
    int64_t used_bytes      # blocks in use, rounded up as the allocator does
    int64_t held_bytes      # memory taken from the system

cdef class RevIndex:
    cdef Tree tree
    cdef int64_t compact_rev    # 0: never compacted
    cdef bint compacting
    cdef char* cursor           # compaction goes on at the first key >= this
    cdef uint32_t cursor_len
    cdef uint32_t cursor_capacity

    # Adds a revision. `out` (never NULL) gets create_main and version, from which the caller makes
    # the KeyValue; its length then goes in with set_size, which needs no second descent.
    # 0, IDX_NO_MEMORY, IDX_NOT_NEWER, IDX_TOO_LONG.
    cdef int put(
        self, const char* key, uint32_t key_len, int64_t main, uint32_t sub, uint32_t size, KeyInfo* out
    ) noexcept nogil

    # Sets the size of the newest revision of out.record; before the next mutation. size < 2**31.
    cdef void set_size(self, KeyInfo* info, uint32_t size) noexcept nogil

    # Ends the key's generation. 0, IDX_NOT_FOUND (no such key, or dead), IDX_NO_MEMORY, IDX_NOT_NEWER.
    cdef int tombstone(self, const char* key, uint32_t key_len, int64_t main, uint32_t sub) noexcept nogil

    # 0 and *out, IDX_NOT_FOUND, IDX_COMPACTED.
    cdef int get(self, const char* key, uint32_t key_len, int64_t at_rev, KeyInfo* out) noexcept nogil

    # Live keys in a range, without limit on the work: O(log n) now, and at at_rev O(log n) plus the
    # leaves that have changed since. IDX_COMPACTED.
    cdef int64_t count(
        self, const char* key, uint32_t key_len, const char* end, uint32_t end_len, int64_t at_rev
    ) noexcept nogil

    # As count, but looks at most at `budget` (>= 1) records and leaves and ADDS to *total. 0 or
    # IDX_COMPACTED. At SCAN_BUDGET call again with key = a copy of scan.resume_key and the same end.
    cdef int count_step(
        self, const char* key, uint32_t key_len, const char* end, uint32_t end_len, int64_t at_rev,
        int64_t budget, int64_t* total, Scan* scan
    ) noexcept nogil

    # Up to cap live keys in ascending order, from `key` (`exclusive`: from behind it). Looks at most
    # at `budget` (>= 1) records and leaves. Number of results, or IDX_COMPACTED. Unless SCAN_DONE,
    # call again with key = a copy of scan.resume_key, exclusive = 1 and the same end. The resume key
    # is the last result or a later key found dead, so it stays right whatever is written in between.
    cdef int range_batch(
        self, const char* key, uint32_t key_len, bint exclusive, const char* end, uint32_t end_len,
        int64_t at_rev, KeyInfo* out, int cap, int64_t budget, Scan* scan
    ) noexcept nogil

    # The same range in descending order. `before` not NULL: only keys < before (the resume key of
    # the call before; its length may be 0, its pointer then must still not be NULL).
    cdef int range_batch_desc(
        self, const char* key, uint32_t key_len, const char* end, uint32_t end_len,
        const char* before, uint32_t before_len, int64_t at_rev,
        KeyInfo* out, int cap, int64_t budget, Scan* scan
    ) noexcept nogil

    # Makes compact_rev the compacted revision; the dropping is done by compact_step.
    # 0, IDX_COMPACTED (not above the last one), IDX_BUSY.
    cdef int compact_begin(self, int64_t compact_rev) noexcept nogil

    # Goes on with the compaction: looks at most at `budget` (>= 1) records and leaves and drops at
    # most cap (>= 1) revisions, ascending by key, then by revision. Number dropped, or IDX_NO_MEMORY
    # (its position could not be kept: nothing was dropped, call again). *done: the compaction is over.
    # Writes, and reads at >= compact_rev, may come between two steps.
    cdef int compact_step(self, int64_t budget, DroppedRev* out, int cap, bint* done) noexcept nogil

    # HashKV: whether (main, sub) of a key is in the keep set at rev. 1, 0, IDX_COMPACTED.
    # For main > rev the answer is 0: the keep set has nothing above rev.
    cdef int kept_at(
        self, const char* key, uint32_t key_len, int64_t main, uint32_t sub, int64_t rev
    ) noexcept nogil

    # HashKV: whether the keep set at rev has any member, looking from `key` on. 1 (yes, settled),
    # 0, IDX_COMPACTED. With 0 and SCAN_BUDGET call again with key = a copy of scan.resume_key.
    # An exact answer, not count() > 0: a delete and a put of one key in one transaction at rev leave
    # the key live, yet the keep set has its tombstone's generation only, and so nothing.
    cdef int kept_any_step(
        self, const char* key, uint32_t key_len, int64_t rev, int64_t budget, Scan* scan
    ) noexcept nogil

    # Start-up: adds what is stored, in revision order. The first revision of a key brings its
    # create_main and version (a tombstone: a closed generation); later ones count on from there.
    # 0, IDX_NOT_FOUND (tombstone of a dead key: left out), IDX_NO_MEMORY, IDX_NOT_NEWER, IDX_TOO_LONG.
    cdef int restore(
        self, const char* key, uint32_t key_len, int64_t main, uint32_t sub, int64_t create_main,
        int64_t version, bint is_tombstone, uint32_t size
    ) noexcept nogil

    cdef void stats(self, IndexStats* out) noexcept nogil

    # Forgets everything, the compacted revision too, and gives all memory back.
    cdef void clear(self) noexcept nogil

    cdef int _add(
        self, const char* key, uint32_t key_len, int64_t main, uint32_t sub, uint32_t size_mark,
        int64_t create_main, int64_t version, bint must_live, Record** out
    ) noexcept nogil
    cdef bint _holds(self, const char* key, uint32_t key_len) noexcept nogil
    cdef bint _keep_cursor(self, const char* key, uint32_t key_len) noexcept nogil
    cdef void _drop_cursor(self) noexcept nogil

    # Revisions held of a key from (main, sub) on, ascending: up to cap of them. How many.
    cdef int revs_from(
        self, const char* key, uint32_t key_len, int64_t main, uint32_t sub, Revision* out, int cap
    ) noexcept nogil

    # Revisions with first <= main <= last of all keys in a range, key by key. How many, or IDX_TOO_MANY when
    # there are more than cap or more than `budget` records and leaves were to be looked at (leaves in which
    # nothing has changed since `first` count once).
    cdef int64_t revs_of_range(
        self, const char* key, uint32_t key_len, const char* end, uint32_t end_len, int64_t first, int64_t last,
        Revision* out, int64_t cap, int64_t budget
    ) noexcept nogil
