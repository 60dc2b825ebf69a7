"""Who watches a key: the distinct ranges that are watched, and those of them that a key lies in.

Three places, by the shape of a range:
- one key: a hash table;
- a prefix ([p, p with its last byte raised)): the same table under the prefix, as long as no more than
  PREFIX_LENGTHS different lengths are in use. A stab asks once per length, however many prefixes there are;
- all others: an AVL tree ordered by (key, end), each node with the largest end below it. A stab looks
  only below nodes whose largest end lies behind the key: O(log n) for each range found.

The hash table is TABLE_PARTS small tables, each of which doubles and halves for itself: no add ever pays
for moving a million entries. A slot holds 19 bits of the hash beside the pointer, so neither growing nor
most misses touch the ranges. The hash is keyed with the seed, because clients choose what is watched.

One thread. Ranges are as in etcd: end_len 0 is the one key, end "\\0" every key >= key, else [key, end).
A pointer may be NULL when its length is 0; lengths are at most KEY_LEN_MASK.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from etcdfast._ext.revslab cimport Arena

cdef enum:
    TABLE_PARTS = 1024
    PREFIX_LENGTHS = 8      # lengths of prefixes that are hashed; a stab pays one look-up for each in use
    STAB_DEPTH_MAX = 64     # an AVL tree of 2^32 nodes is 46 high

# One distinct range. Allocated and freed by the tree; its address is stable.
ctypedef struct watch_range:
    void *owner             # the caller's; NULL at first
    uint32_t key_len
    uint32_t end_len        # as given: 0 the one key
    uint8_t key_offset      # from here to the key; the end follows the key
    uint8_t height          # in the AVL tree; 0: in the hash table
    uint16_t kind           # RANGE_KEY, RANGE_PREFIX (hashed), RANGE_NODE
    uint32_t reserved

cdef enum:
    RANGE_KEY = 0
    RANGE_PREFIX = 1
    RANGE_NODE = 2

cdef struct range_node:     # a range in the AVL tree
    watch_range range
    range_node *left
    range_node *right
    range_node *furthest    # range with the largest end at or below this node

# Where a stab is. No range may be added or dropped between two calls for one key.
ctypedef struct stab_cursor:
    range_node *pending[STAB_DEPTH_MAX]
    uint32_t depth
    uint32_t stage          # 0: not begun

cdef struct range_slots:    # open addressing; a slot is pointer and hash bits in one word, 0 is free
    uint64_t *slots
    uint32_t mask           # their number - 1
    uint32_t used


cdef inline const uint8_t *watch_range_key(const watch_range *r) noexcept nogil:
    return <const uint8_t *>r + r.key_offset


cdef inline const uint8_t *watch_range_end(const watch_range *r) noexcept nogil:
    return <const uint8_t *>r + r.key_offset + r.key_len


cdef inline void stab_begin(stab_cursor *c) noexcept nogil:
    c.stage = 0
    c.depth = 0


# WatchTree(seed): the seed keys the hash and is to be unknown outside.
cdef class WatchTree:
    cdef Arena arena        # the owner of the tree may take blocks of its own from here
    cdef readonly int64_t count         # ranges
    cdef readonly int64_t node_count    # of them, those in the AVL tree
    cdef range_slots parts[TABLE_PARTS]
    cdef range_node *root
    cdef uint64_t seed
    cdef int prefix_length_count        # lengths in use; each has a place in the two arrays
    cdef uint32_t prefix_lengths[PREFIX_LENGTHS]
    cdef int64_t prefix_counts[PREFIX_LENGTHS]

    # The range with just these bytes, new if there is none. NULL without memory (nothing changed).
    cdef watch_range *find_or_add(
        self, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len
    ) noexcept nogil

    # The same, NULL when there is none.
    cdef watch_range *find(
        self, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len
    ) noexcept nogil

    # Takes a range out and frees it.
    cdef void drop(self, watch_range *r) noexcept nogil

    # Up to cap (>= 1) ranges that hold the key, in no promised order. How many; as long as that is cap, call
    # again with the same key and cursor. stab_begin(c) comes before the first call.
    cdef int stab(
        self, const uint8_t *key, uint32_t key_len, watch_range **out, int cap, stab_cursor *c
    ) noexcept nogil

    # Bytes in use in `arena`, the owner's own blocks included.
    cdef int64_t used_bytes(self) noexcept nogil

    # 0, or the number of the broken invariant (watchtree.pyx); for tests.
    cdef int verify(self) noexcept nogil

    cdef int prefix_place(self, uint32_t length) noexcept nogil
    cdef watch_range *find_hashed(self, const uint8_t *key, uint32_t key_len, uint32_t kind) noexcept nogil
    cdef watch_range *add_hashed(
        self, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len, uint32_t kind
    ) noexcept nogil
    cdef void drop_hashed(self, watch_range *r) noexcept nogil
    cdef int resize_part(self, range_slots *part, uint32_t slots) noexcept nogil
    cdef watch_range *find_node(
        self, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len
    ) noexcept nogil
    cdef watch_range *add_node(
        self, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len
    ) noexcept nogil
    cdef void drop_node(self, watch_range *r) noexcept nogil
