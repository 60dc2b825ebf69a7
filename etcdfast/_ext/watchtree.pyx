"""Who watches a key; see watchtree.pxd."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from etcdfast._ext.revslab cimport arena_alloc, arena_free, arena_init, arena_release

cdef extern from * nogil:
    """
    /* High and low half of the product, mixed: every bit of the result hangs on every bit of both. */
    static inline unsigned long long watchtree_fold(unsigned long long a, unsigned long long b) {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (unsigned long long)product ^ (unsigned long long)(product >> 64);
    }
    """
    uint64_t fold "watchtree_fold"(uint64_t a, uint64_t b)
    void __builtin_prefetch(const void *address)

cdef enum:
    PART_SHIFT = 54             # 64 - log2(TABLE_PARTS)
    SLOTS_MIN = 4
    SLOTS_MAX = 524288          # 2^19: the hash bits that a slot keeps
    KEY_HEADER_BYTES = 24       # sizeof(watch_range)
    NODE_HEADER_BYTES = 48      # sizeof(range_node)

# Blocks are aligned to 8 and addresses have 48 bits, which leaves 16 bits above and 3 below for the hash.
cdef uint64_t SLOT_ADDRESS = 0x0000FFFFFFFFFFF8
cdef uint64_t HASH_KEPT = SLOTS_MAX - 1
cdef uint64_t MIX_WORD = 0x9E3779B97F4A7C15
cdef uint64_t MIX_END = 0xD6E8FEB86659FD93


# ---- keys and ends ----

cdef inline int bytes_compare(const uint8_t *a, uint32_t a_len, const uint8_t *b, uint32_t b_len) noexcept nogil:
    cdef uint32_t shorter = a_len if a_len < b_len else b_len
    cdef int order
    if shorter:
        order = memcmp(a, b, shorter)
        if order:
            return order
    return (a_len > b_len) - (a_len < b_len)


cdef inline bint end_is_open(const uint8_t *end, uint32_t end_len) noexcept nogil:
    return end_len == 1 and end[0] == 0


cdef inline bint ends_behind(const watch_range *r, const uint8_t *key, uint32_t key_len) noexcept nogil:
    """Whether the range's end lies behind the key."""
    cdef const uint8_t *end = watch_range_end(r)
    return end_is_open(end, r.end_len) or bytes_compare(end, r.end_len, key, key_len) > 0


cdef inline range_node *further(range_node *a, range_node *b) noexcept nogil:
    """The one of two nodes whose range ends later."""
    cdef const uint8_t *a_end = watch_range_end(&a.range)
    cdef const uint8_t *b_end = watch_range_end(&b.range)
    if end_is_open(a_end, a.range.end_len):
        return a
    if end_is_open(b_end, b.range.end_len):
        return b
    return a if bytes_compare(a_end, a.range.end_len, b_end, b.range.end_len) >= 0 else b


cdef inline bint is_prefix(const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len) noexcept nogil:
    """Whether [key, end) is the keys that begin with key: its last byte below 0xff raised, the rest cut off."""
    cdef uint32_t n = key_len
    while n and key[n - 1] == 0xFF:
        n -= 1
    return n > 0 and end_len == n and end[n - 1] == key[n - 1] + 1 and memcmp(key, end, n - 1) == 0


# ---- slots ----

cdef inline uint64_t hash_of(uint64_t seed, const uint8_t *key, uint32_t key_len, uint32_t kind) noexcept nogil:
    cdef uint64_t h = seed ^ fold(<uint64_t>key_len << 2 | kind, MIX_END)
    cdef uint64_t word
    while key_len >= 8:
        memcpy(&word, key, 8)
        h = fold(h ^ word, MIX_WORD)
        key += 8
        key_len -= 8
    word = 0
    if key_len:
        memcpy(&word, key, key_len)
    return fold(h ^ word, MIX_END)


cdef inline uint64_t slot_of(const watch_range *r, uint64_t h) noexcept nogil:
    return <uint64_t><size_t>r | (h & 7) | (h & HASH_KEPT) >> 3 << 48


cdef inline watch_range *slot_range(uint64_t slot) noexcept nogil:
    return <watch_range *><size_t>(slot & SLOT_ADDRESS)


cdef inline uint32_t slot_hash(uint64_t slot) noexcept nogil:
    return <uint32_t>(slot >> 48 << 3 | (slot & 7))


cdef inline void slots_insert(uint64_t *slots, uint32_t mask, uint64_t slot) noexcept nogil:
    cdef uint32_t at = slot_hash(slot) & mask
    while slots[at]:
        at = (at + 1) & mask
    slots[at] = slot


# ---- nodes ----

cdef inline int height_of(const range_node *node) noexcept nogil:
    return node.range.height if node != NULL else 0


cdef inline void node_refresh(range_node *node) noexcept nogil:
    """Height and furthest end from the children."""
    cdef int left = height_of(node.left)
    cdef int right = height_of(node.right)
    cdef range_node *furthest = node
    node.range.height = <uint8_t>(1 + (left if left > right else right))
    if node.left != NULL:
        furthest = further(furthest, node.left.furthest)
    if node.right != NULL:
        furthest = further(furthest, node.right.furthest)
    node.furthest = furthest


cdef inline range_node *rotate_right(range_node *node) noexcept nogil:
    cdef range_node *top = node.left
    node.left = top.right
    top.right = node
    node_refresh(node)
    node_refresh(top)
    return top


cdef inline range_node *rotate_left(range_node *node) noexcept nogil:
    cdef range_node *top = node.right
    node.right = top.left
    top.left = node
    node_refresh(node)
    node_refresh(top)
    return top


cdef inline range_node *balanced(range_node *node) noexcept nogil:
    """The node that stands here once both sides differ by at most one again."""
    cdef int lean = height_of(node.left) - height_of(node.right)
    if lean > 1:
        if height_of(node.left.left) < height_of(node.left.right):
            node.left = rotate_left(node.left)
        return rotate_right(node)
    if lean < -1:
        if height_of(node.right.right) < height_of(node.right.left):
            node.right = rotate_right(node.right)
        return rotate_left(node)
    node_refresh(node)
    return node


cdef inline int node_order(
    const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len, const watch_range *r
) noexcept nogil:
    cdef int order = bytes_compare(key, key_len, watch_range_key(r), r.key_len)
    return order if order else bytes_compare(end, end_len, watch_range_end(r), r.end_len)


cdef int check_nodes(
    range_node *node, range_node **last, int64_t *count
) noexcept nogil:
    cdef int left, right, broken
    cdef range_node *furthest = node
    if node == NULL:
        return 0
    broken = check_nodes(node.left, last, count)
    if broken:
        return broken
    if last[0] != NULL and node_order(
            watch_range_key(&node.range), node.range.key_len, watch_range_end(&node.range), node.range.end_len,
            &last[0].range) <= 0:
        return 1  # order
    last[0] = node
    count[0] += 1
    broken = check_nodes(node.right, last, count)
    if broken:
        return broken
    left = height_of(node.left)
    right = height_of(node.right)
    if node.range.height != 1 + (left if left > right else right) or left - right > 1 or right - left > 1:
        return 2  # balance
    if node.left != NULL:
        furthest = further(furthest, node.left.furthest)
    if node.right != NULL:
        furthest = further(furthest, node.right.furthest)
    if further(furthest, node.furthest) != furthest or further(node.furthest, furthest) != node.furthest:
        return 3  # furthest end
    return 4 if node.range.kind != RANGE_NODE else 0


cdef inline void range_init(
    watch_range *r, uint32_t header_bytes, uint32_t kind, const uint8_t *key, uint32_t key_len,
    const uint8_t *end, uint32_t end_len
) noexcept nogil:
    r.owner = NULL
    r.key_len = key_len
    r.end_len = end_len
    r.key_offset = <uint8_t>header_bytes
    r.height = 0
    r.kind = <uint16_t>kind
    r.reserved = 0
    if key_len:
        memcpy(<uint8_t *>r + header_bytes, key, key_len)
    if end_len:
        memcpy(<uint8_t *>r + header_bytes + key_len, end, end_len)


cdef inline size_t range_bytes(const watch_range *r) noexcept nogil:
    return <size_t>r.key_offset + r.key_len + r.end_len


cdef class WatchTree:

    def __cinit__(self, uint64_t seed):
        assert sizeof(watch_range) == KEY_HEADER_BYTES and sizeof(range_node) == NODE_HEADER_BYTES
        arena_init(&self.arena)
        self.seed = seed

    def __dealloc__(self):
        arena_release(&self.arena)

    # ---- one key, and prefixes: the hash table ----

    cdef watch_range *find_hashed(self, const uint8_t *key, uint32_t key_len, uint32_t kind) noexcept nogil:
        cdef uint64_t h = hash_of(self.seed, key, key_len, kind)
        cdef range_slots *part = &self.parts[h >> PART_SHIFT]
        cdef uint32_t wanted = <uint32_t>(h & HASH_KEPT)
        cdef uint32_t at = wanted & part.mask
        cdef uint64_t slot
        cdef watch_range *r
        if part.used == 0:
            return NULL
        while True:
            slot = part.slots[at]
            if slot == 0:
                return NULL
            if slot_hash(slot) == wanted:
                r = slot_range(slot)
                if r.kind == kind and r.key_len == key_len and (
                        key_len == 0 or memcmp(watch_range_key(r), key, key_len) == 0):
                    return r
            at = (at + 1) & part.mask

    cdef int resize_part(self, range_slots *part, uint32_t slots) noexcept nogil:
        """0, or -1 without memory (unchanged)."""
        cdef uint64_t *moved
        cdef uint32_t i
        if slots > SLOTS_MAX:
            return -1
        moved = <uint64_t *>arena_alloc(&self.arena, <size_t>slots * sizeof(uint64_t))
        if moved == NULL:
            return -1
        memset(moved, 0, <size_t>slots * sizeof(uint64_t))
        if part.slots != NULL:
            for i in range(part.mask + 1):
                if part.slots[i]:
                    slots_insert(moved, slots - 1, part.slots[i])
            arena_free(&self.arena, part.slots, (<size_t>part.mask + 1) * sizeof(uint64_t))
        part.slots = moved
        part.mask = slots - 1
        return 0

    cdef watch_range *add_hashed(
        self, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len, uint32_t kind
    ) noexcept nogil:
        cdef uint64_t h = hash_of(self.seed, key, key_len, kind)
        cdef range_slots *part = &self.parts[h >> PART_SHIFT]
        cdef size_t size = <size_t>KEY_HEADER_BYTES + key_len + end_len
        cdef watch_range *r = <watch_range *>arena_alloc(&self.arena, size)
        cdef uint32_t slots = part.mask + 1 if part.slots != NULL else 0
        if r == NULL:
            return NULL
        if (part.used + 1) * 4 > slots * 3 and self.resize_part(part, slots * 2 if slots else SLOTS_MIN) != 0:
            arena_free(&self.arena, r, size)
            return NULL
        range_init(r, KEY_HEADER_BYTES, kind, key, key_len, end, end_len)
        slots_insert(part.slots, part.mask, slot_of(r, h))
        part.used += 1
        return r

    cdef void drop_hashed(self, watch_range *r) noexcept nogil:
        cdef uint64_t h = hash_of(self.seed, watch_range_key(r), r.key_len, r.kind)
        cdef range_slots *part = &self.parts[h >> PART_SHIFT]
        cdef uint32_t mask = part.mask
        cdef uint32_t hole = <uint32_t>(h & HASH_KEPT) & mask
        cdef uint32_t at, home
        while slot_range(part.slots[hole]) != r:
            hole = (hole + 1) & mask
        # No marks for the dropped: entries behind move up unless that takes them before their home.
        at = (hole + 1) & mask
        while part.slots[at]:
            home = slot_hash(part.slots[at]) & mask
            if ((at - home) & mask) >= ((at - hole) & mask):
                part.slots[hole] = part.slots[at]
                hole = at
            at = (at + 1) & mask
        part.slots[hole] = 0
        part.used -= 1
        arena_free(&self.arena, r, range_bytes(r))
        if part.used == 0:
            arena_free(&self.arena, part.slots, (<size_t>mask + 1) * sizeof(uint64_t))
            part.slots = NULL
            part.mask = 0
        elif mask + 1 > SLOTS_MIN and part.used * 16 < (mask + 1) * 3:
            self.resize_part(part, (mask + 1) // 2)  # without memory the larger one does as well

    cdef int prefix_place(self, uint32_t length) noexcept nogil:
        """Place of a length in prefix_lengths, -1 when it is not in use."""
        cdef int i
        for i in range(self.prefix_length_count):
            if self.prefix_lengths[i] == length:
                return i
        return -1

    # ---- other ranges: the AVL tree ----

    cdef watch_range *find_node(
        self, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len
    ) noexcept nogil:
        cdef range_node *node = self.root
        cdef int order
        while node != NULL:
            order = node_order(key, key_len, end, end_len, &node.range)
            if order == 0:
                return &node.range
            node = node.left if order < 0 else node.right
        return NULL

    cdef watch_range *add_node(
        self, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len
    ) noexcept nogil:
        cdef range_node **links[STAB_DEPTH_MAX]
        cdef range_node **link = &self.root
        cdef range_node *node = <range_node *>arena_alloc(
            &self.arena, <size_t>NODE_HEADER_BYTES + key_len + end_len)
        cdef int depth = 0
        if node == NULL:
            return NULL
        range_init(&node.range, NODE_HEADER_BYTES, RANGE_NODE, key, key_len, end, end_len)
        node.left = NULL
        node.right = NULL
        while link[0] != NULL:
            links[depth] = link
            depth += 1
            if node_order(key, key_len, end, end_len, &link[0].range) < 0:
                link = &link[0].left
            else:
                link = &link[0].right
        link[0] = node
        node_refresh(node)
        while depth:
            depth -= 1
            links[depth][0] = balanced(links[depth][0])
        self.node_count += 1
        return &node.range

    cdef void drop_node(self, watch_range *r) noexcept nogil:
        cdef range_node **links[STAB_DEPTH_MAX]
        cdef range_node **link = &self.root
        cdef range_node *node = <range_node *>r
        cdef range_node *next_node
        cdef int depth = 0
        cdef int at
        while link[0] != node:
            links[depth] = link
            depth += 1
            if node_order(watch_range_key(r), r.key_len, watch_range_end(r), r.end_len, &link[0].range) < 0:
                link = &link[0].left
            else:
                link = &link[0].right
        if node.left == NULL or node.right == NULL:
            link[0] = node.left if node.right == NULL else node.right
        else:
            # The next node in order takes the place.
            at = depth
            links[depth] = link
            depth += 1
            link = &node.right
            while link[0].left != NULL:
                links[depth] = link
                depth += 1
                link = &link[0].left
            next_node = link[0]
            link[0] = next_node.right
            next_node.left = node.left
            next_node.right = node.right
            links[at][0] = next_node
            if depth > at + 1:
                links[at + 1] = &next_node.right
        while depth:
            depth -= 1
            links[depth][0] = balanced(links[depth][0])
        self.node_count -= 1
        arena_free(&self.arena, r, range_bytes(r))

    # ---- all ----

    cdef watch_range *find(
        self, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len
    ) noexcept nogil:
        cdef watch_range *r
        if end_len == 0:
            return self.find_hashed(key, key_len, RANGE_KEY)
        if self.prefix_place(key_len) >= 0 and is_prefix(key, key_len, end, end_len):
            r = self.find_hashed(key, key_len, RANGE_PREFIX)
            if r != NULL:
                return r
        # Also a prefix may be here, from a time when all lengths were in use.
        return self.find_node(key, key_len, end, end_len)

    cdef watch_range *find_or_add(
        self, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len
    ) noexcept nogil:
        cdef watch_range *r = self.find(key, key_len, end, end_len)
        cdef int place
        if r != NULL:
            return r
        if end_len == 0:
            r = self.add_hashed(key, key_len, end, end_len, RANGE_KEY)
        elif is_prefix(key, key_len, end, end_len):
            place = self.prefix_place(key_len)
            if place >= 0 or self.prefix_length_count < PREFIX_LENGTHS:
                r = self.add_hashed(key, key_len, end, end_len, RANGE_PREFIX)
                if r != NULL:
                    if place < 0:
                        place = self.prefix_length_count
                        self.prefix_length_count += 1
                        self.prefix_lengths[place] = key_len
                        self.prefix_counts[place] = 0
                    self.prefix_counts[place] += 1
            else:
                r = self.add_node(key, key_len, end, end_len)
        else:
            r = self.add_node(key, key_len, end, end_len)
        if r != NULL:
            self.count += 1
        return r

    cdef void drop(self, watch_range *r) noexcept nogil:
        cdef int place, last
        self.count -= 1
        if r.kind == RANGE_NODE:
            self.drop_node(r)
            return
        if r.kind == RANGE_PREFIX:
            place = self.prefix_place(r.key_len)
            self.prefix_counts[place] -= 1
            if self.prefix_counts[place] == 0:
                last = self.prefix_length_count - 1
                self.prefix_lengths[place] = self.prefix_lengths[last]
                self.prefix_counts[place] = self.prefix_counts[last]
                self.prefix_length_count = last
        self.drop_hashed(r)

    cdef int stab(
        self, const uint8_t *key, uint32_t key_len, watch_range **out, int cap, stab_cursor *c
    ) noexcept nogil:
        cdef watch_range *r
        cdef range_node *node
        cdef uint32_t length
        cdef int given = 0
        # Stages: 0 the key itself, 1 .. prefix_length_count the prefixes of a length, then the tree.
        while c.stage <= <uint32_t>self.prefix_length_count:
            if given == cap:
                return given
            if c.stage == 0:
                r = self.find_hashed(key, key_len, RANGE_KEY)
            else:
                length = self.prefix_lengths[c.stage - 1]
                r = self.find_hashed(key, length, RANGE_PREFIX) if length <= key_len else NULL
            if r != NULL:
                out[given] = r
                given += 1
            c.stage += 1
            if c.stage > <uint32_t>self.prefix_length_count and self.root != NULL:
                c.pending[0] = self.root
                c.depth = 1
        while c.depth and given < cap:
            c.depth -= 1
            node = c.pending[c.depth]
            if not ends_behind(&node.furthest.range, key, key_len):
                continue
            if bytes_compare(watch_range_key(&node.range), node.range.key_len, key, key_len) <= 0:
                if node.right != NULL:
                    __builtin_prefetch(node.right)
                    c.pending[c.depth] = node.right
                    c.depth += 1
                if ends_behind(&node.range, key, key_len):
                    out[given] = &node.range
                    given += 1
            if node.left != NULL:
                __builtin_prefetch(node.left)
                c.pending[c.depth] = node.left
                c.depth += 1
        return given

    cdef int64_t used_bytes(self) noexcept nogil:
        return self.arena.used_bytes

    cdef int verify(self) noexcept nogil:
        cdef range_node *last = NULL
        cdef int64_t nodes = 0
        cdef int64_t hashed = 0
        cdef int64_t prefixes = 0
        cdef int64_t held
        cdef range_slots *part
        cdef watch_range *r
        cdef uint32_t used
        cdef int p, i
        cdef uint32_t at
        cdef int broken = check_nodes(self.root, &last, &nodes)
        if broken:
            return broken
        if nodes != self.node_count:
            return 5
        for p in range(TABLE_PARTS):
            part = &self.parts[p]
            used = 0
            if part.slots != NULL:
                for at in range(part.mask + 1):
                    if part.slots[at] == 0:
                        continue
                    used += 1
                    r = slot_range(part.slots[at])
                    if self.find_hashed(watch_range_key(r), r.key_len, r.kind) != r:
                        return 6  # not found from its home, or twice
                    if r.kind == RANGE_PREFIX:
                        prefixes += 1
                        if self.prefix_place(r.key_len) < 0:
                            return 7
            elif part.mask:
                return 8
            if used != part.used or (part.slots != NULL and used == 0):
                return 9
            hashed += used
        held = 0
        for i in range(self.prefix_length_count):
            if self.prefix_counts[i] < 1:
                return 10
            held += self.prefix_counts[i]
        if held != prefixes:
            return 11
        return 12 if hashed + nodes != self.count else 0
