"""B+tree of the revision index: key records in key order.

What makes it quick: a node knows how many bytes all its keys share (shared_len) and holds the next
four bytes of each key as a number (heads), so a search reads one small array and then, as a rule,
one key. What makes counts quick: a leaf has a bitmap of the keys live now, and an inner node the
number of live keys and the newest revision below each child.

Invariants (tree_verify checks them):
- keys of child i are >= seps[i-1] and < seps[i]; a separator is an own, shortest possible string;
- a leaf's shared_len is common to every key that can come into it (it follows from the separators
  around it, 0 at either edge of the tree); an inner node's is that of the separators it holds;
- every leaf but a lone root has keys; every inner node has at least two children;
- newest[i], and the leaf's own newest, are >= the newest revision of every record below.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from etcdfast._ext.revrecord cimport (
    KEY_LEN_MASK, Record, record_dead, record_deep, record_free, record_key, record_key_len,
)
from etcdfast._ext.revslab cimport Arena, arena_alloc, arena_free

cdef extern from * nogil:
    uint32_t __builtin_bswap32(uint32_t value)
    int __builtin_popcountll(unsigned long long value)
    int __builtin_ctzll(unsigned long long value)
    int __builtin_clzll(unsigned long long value)
    void __builtin_prefetch(const void* address)

cdef enum:
    LEAF_KEYS = 64          # a uint64 bitmap covers a leaf
    INNER_CHILDREN = 64
    SPLIT_EDGE = 58         # keys that stay behind when a node grows at its end: ascending loads pack
    SPLIT_RUN = 8           # so many inserts in a row make a sorted load, wherever in the leaf
    LEAF_MERGE_BELOW = 16
    LEAF_MERGED_MAX = 56    # a merged leaf keeps room, so that the next insert does not split it again
    INNER_MERGE_BELOW = 16
    TREE_DEPTH_MAX = 24     # 64 keys a leaf and >= 6 children a node: beyond any memory

cdef struct Separator:
    uint32_t length
    # char bytes[length] follows

cdef struct Leaf:
    uint16_t level          # 0
    uint16_t count
    uint32_t shared_len
    uint64_t live           # bit i: record i is live at the current revision
    uint64_t deep           # bit i: record_deep(record i)
    int64_t newest
    Leaf* next
    Leaf* prev
    uint8_t last_insert     # position of the latest insert
    uint8_t ascending       # how many inserts in a row each came right behind the one before
    uint8_t descending      # ... right before it
    int32_t heads[LEAF_KEYS]
    Record* records[LEAF_KEYS]

cdef struct Inner:
    uint16_t level          # 1 above the leaves
    uint16_t count          # children
    uint32_t shared_len
    int32_t heads[INNER_CHILDREN]
    Separator* seps[INNER_CHILDREN]     # count - 1 used
    void* children[INNER_CHILDREN]
    int64_t live[INNER_CHILDREN]
    int64_t newest[INNER_CHILDREN]

cdef struct Tree:
    Arena arena
    void* root              # Leaf when height is 0; NULL before the first key
    Leaf* first
    uint32_t height         # level of the root
    int64_t keys
    int64_t live_keys
    int64_t revisions
    int64_t leaves

cdef struct Path:           # the way from the root to a key's place
    Inner* nodes[TREE_DEPTH_MAX]
    int indexes[TREE_DEPTH_MAX]
    int depth
    Leaf* leaf
    int position            # of the key, or where it would go: 0 .. leaf.count
    bint found
    Separator* low          # separators around the leaf; NULL at the edge of the tree
    Separator* high


cdef inline char* separator_bytes(Separator* separator) noexcept nogil:
    return <char*>separator + sizeof(Separator)


cdef inline uint64_t bits_below(int position) noexcept nogil:
    return (<uint64_t>1 << position) - 1 if position < 64 else ~<uint64_t>0


cdef inline int key_compare(
    const char* a, uint32_t a_len, const char* b, uint32_t b_len, uint32_t skip
) noexcept nogil:
    """Order of two keys known to agree in their first skip bytes: < 0, 0, > 0."""
    cdef uint32_t shorter = a_len if a_len < b_len else b_len
    cdef int order
    if shorter > skip:
        order = memcmp(a + skip, b + skip, shorter - skip)
        if order:
            return order
    return (a_len > b_len) - (a_len < b_len)


cdef inline uint32_t key_shared(
    const char* a, uint32_t a_len, const char* b, uint32_t b_len
) noexcept nogil:
    """Length of the longest common prefix, bytes."""
    cdef uint32_t shorter = a_len if a_len < b_len else b_len
    cdef uint32_t i = 0
    while i + 64 <= shorter and memcmp(a + i, b + i, 64) == 0:
        i += 64
    while i < shorter and a[i] == b[i]:
        i += 1
    return i


cdef inline int32_t key_head(const char* key, uint32_t key_len, uint32_t skip) noexcept nogil:
    """Four bytes after the first skip, zero-filled, as a number that orders like the bytes.

    The top bit is flipped so that a signed comparison, which SSE2 has, orders unsigned bytes.
    """
    cdef uint32_t word = 0
    if key_len >= skip + 4:
        memcpy(&word, key + skip, 4)
    elif key_len > skip:
        memcpy(&word, key + skip, key_len - skip)
    return <int32_t>(__builtin_bswap32(word) ^ 0x80000000U)


cdef inline int leaf_search(Leaf* leaf, const char* key, uint32_t key_len, bint* found) noexcept nogil:
    """First position whose key is >= key, for a key within the leaf's separators."""
    cdef int32_t head = key_head(key, key_len, leaf.shared_len)
    cdef int low = 0
    cdef int equal = 0
    cdef int count = leaf.count
    cdef int high, middle, i, order
    cdef Record* record
    for i in range(0, count, 8):  # one cache line each: they arrive while the heads are searched
        __builtin_prefetch(&leaf.records[i])
    for i in range(count):
        low += leaf.heads[i] < head
        equal += leaf.heads[i] == head
    high = low + equal
    found[0] = False
    while low < high:
        middle = (low + high) >> 1
        record = leaf.records[middle]
        order = key_compare(record_key(record), record_key_len(record), key, key_len, leaf.shared_len)
        if order == 0:
            found[0] = True
            return middle
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline int inner_search(Inner* node, const char* key, uint32_t key_len) noexcept nogil:
    """Child that a key belongs to: the number of separators <= key."""
    cdef int count = node.count - 1
    cdef int low = 0
    cdef int equal = 0
    cdef int high, middle, i, order
    cdef int32_t head
    cdef uint32_t shared = node.shared_len
    cdef Separator* separator
    if shared:
        # The pointer of an empty key may be NULL, which memcmp must not be given.
        order = memcmp(key, separator_bytes(node.seps[0]), key_len if key_len < shared else shared) if key_len else 0
        if order < 0 or (order == 0 and key_len < shared):
            return 0
        if order > 0:
            return count
    head = key_head(key, key_len, shared)
    for i in range(count):
        low += node.heads[i] < head
        equal += node.heads[i] == head
    high = low + equal
    while low < high:
        middle = (low + high) >> 1
        separator = node.seps[middle]
        if key_compare(separator_bytes(separator), separator.length, key, key_len, shared) <= 0:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline void tree_descend(Tree* tree, const char* key, uint32_t key_len, Path* path) noexcept nogil:
    """Find a key's place; the tree must have a root."""
    cdef void* node = tree.root
    cdef int level = <int>tree.height
    cdef int index
    cdef Inner* inner
    path.depth = level
    path.low = NULL
    path.high = NULL
    while level > 0:
        inner = <Inner*>node
        index = inner_search(inner, key, key_len)
        if index > 0:
            path.low = inner.seps[index - 1]
        if index < inner.count - 1:
            path.high = inner.seps[index]
        path.nodes[level - 1] = inner  # nodes[0] is the parent of the leaf
        path.indexes[level - 1] = index
        node = inner.children[index]
        level -= 1
    path.leaf = <Leaf*>node
    path.position = leaf_search(path.leaf, key, key_len, &path.found)


cdef inline Leaf* tree_find_leaf(Tree* tree, const char* key, uint32_t key_len) noexcept nogil:
    """The leaf a key belongs to; NULL in a tree without a root."""
    cdef void* node = tree.root
    cdef int level = <int>tree.height
    while level > 0:
        node = (<Inner*>node).children[inner_search(<Inner*>node, key, key_len)]
        level -= 1
    return <Leaf*>node


cdef inline void path_changed(Tree* tree, Path* path, int64_t main, int live_change) noexcept nogil:
    """Carry a new revision of the path's key, and a key come to life or dead, up to the root."""
    cdef int level, index
    cdef Inner* node
    if main > path.leaf.newest:
        path.leaf.newest = main
    for level in range(path.depth):
        node = path.nodes[level]
        index = path.indexes[level]
        node.live[index] += live_change
        if main > node.newest[index]:
            node.newest[index] = main
    tree.live_keys += live_change


cdef inline void leaf_mark(Leaf* leaf, int position) noexcept nogil:
    """Bring both bitmaps in line with the record at a position."""
    cdef uint64_t bit = <uint64_t>1 << position
    cdef Record* record = leaf.records[position]
    leaf.live = leaf.live & ~bit if record_dead(record) else leaf.live | bit
    leaf.deep = leaf.deep | bit if record_deep(record) else leaf.deep & ~bit


cdef inline void leaf_heads(Leaf* leaf, uint32_t shared_len) noexcept nogil:
    cdef int i
    cdef Record* record
    leaf.shared_len = shared_len
    for i in range(leaf.count):
        if i + 8 < leaf.count:
            __builtin_prefetch(leaf.records[i + 8])
        record = leaf.records[i]
        leaf.heads[i] = key_head(record_key(record), record_key_len(record), shared_len)


cdef inline uint64_t bits_insert(uint64_t bits, int position) noexcept nogil:
    """Open a zero bit at a position."""
    cdef uint64_t below = bits & bits_below(position)
    return below | ((bits & ~bits_below(position)) << 1)


cdef inline uint64_t bits_remove(uint64_t bits, int position) noexcept nogil:
    return (bits & bits_below(position)) | ((bits >> 1) & ~bits_below(position))


cdef inline void leaf_forget_run(Leaf* leaf) noexcept nogil:
    leaf.last_insert = 0
    leaf.ascending = 0
    leaf.descending = 0


cdef inline int leaf_cut(Leaf* leaf, int position) noexcept nogil:
    """How many records of a full leaf stay in it when one more goes to a position.

    A sorted load leaves full leaves behind; in the middle of the key space its place is where the
    run of inserts is, not the end of the leaf.
    """
    if position == LEAF_KEYS:
        return SPLIT_EDGE
    if position == 0:
        return LEAF_KEYS - SPLIT_EDGE
    if leaf.ascending >= SPLIT_RUN and position == leaf.last_insert + 1:
        return position
    if leaf.descending >= SPLIT_RUN and position == leaf.last_insert:
        return position
    return LEAF_KEYS // 2


cdef inline void leaf_insert(Leaf* leaf, int position, Record* record) noexcept nogil:
    cdef int moved = leaf.count - position
    memmove(&leaf.heads[position + 1], &leaf.heads[position], moved * sizeof(int32_t))
    memmove(&leaf.records[position + 1], &leaf.records[position], moved * sizeof(void*))
    leaf.heads[position] = key_head(record_key(record), record_key_len(record), leaf.shared_len)
    leaf.records[position] = record
    leaf.count += 1
    leaf.ascending = leaf.ascending + (leaf.ascending < 255) if position == leaf.last_insert + 1 else 0
    leaf.descending = leaf.descending + (leaf.descending < 255) if position == leaf.last_insert else 0
    leaf.last_insert = <uint8_t>position
    leaf.live = bits_insert(leaf.live, position)
    leaf.deep = bits_insert(leaf.deep, position)
    leaf_mark(leaf, position)


cdef inline void leaf_remove(Leaf* leaf, int position) noexcept nogil:
    cdef int moved = leaf.count - position - 1
    memmove(&leaf.heads[position], &leaf.heads[position + 1], moved * sizeof(int32_t))
    memmove(&leaf.records[position], &leaf.records[position + 1], moved * sizeof(void*))
    leaf.count -= 1
    leaf_forget_run(leaf)
    leaf.live = bits_remove(leaf.live, position)
    leaf.deep = bits_remove(leaf.deep, position)


cdef inline void inner_heads(Inner* node) noexcept nogil:
    """Set shared_len and every head from the separators."""
    cdef int count = node.count - 1
    cdef int i
    cdef Separator* first
    cdef Separator* last
    if count < 1:
        node.shared_len = 0
        return
    first = node.seps[0]
    last = node.seps[count - 1]
    node.shared_len = key_shared(separator_bytes(first), first.length, separator_bytes(last), last.length)
    for i in range(count):
        node.heads[i] = key_head(separator_bytes(node.seps[i]), node.seps[i].length, node.shared_len)


cdef inline void inner_insert(
    Inner* node, int index, Separator* separator, void* child, int64_t live, int64_t newest
) noexcept nogil:
    """Add a child to the right of child index, of which it takes over live keys."""
    cdef int moved = node.count - index - 1
    memmove(&node.heads[index + 1], &node.heads[index], moved * sizeof(int32_t))
    memmove(&node.seps[index + 1], &node.seps[index], moved * sizeof(void*))
    memmove(&node.children[index + 2], &node.children[index + 1], moved * sizeof(void*))
    memmove(&node.live[index + 2], &node.live[index + 1], moved * sizeof(int64_t))
    memmove(&node.newest[index + 2], &node.newest[index + 1], moved * sizeof(int64_t))
    node.seps[index] = separator
    node.children[index + 1] = child
    node.live[index] -= live
    node.live[index + 1] = live
    node.newest[index + 1] = newest
    node.count += 1
    if index == 0 or moved == 0:  # a new first or last separator may share less (or, alone, more)
        inner_heads(node)
    else:
        node.heads[index] = key_head(separator_bytes(separator), separator.length, node.shared_len)


cdef inline void inner_remove(Inner* node, int index) noexcept nogil:
    """Take out child index + 1 and the separator before it; child index takes over its figures."""
    cdef int moved = node.count - index - 2
    node.live[index] += node.live[index + 1]
    if node.newest[index + 1] > node.newest[index]:
        node.newest[index] = node.newest[index + 1]
    memmove(&node.seps[index], &node.seps[index + 1], moved * sizeof(void*))
    memmove(&node.children[index + 1], &node.children[index + 2], moved * sizeof(void*))
    memmove(&node.live[index + 1], &node.live[index + 2], moved * sizeof(int64_t))
    memmove(&node.newest[index + 1], &node.newest[index + 2], moved * sizeof(int64_t))
    node.count -= 1
    inner_heads(node)


cdef inline void inner_sums(Inner* node, int64_t* live, int64_t* newest) noexcept nogil:
    cdef int i
    live[0] = 0
    newest[0] = 0
    for i in range(node.count):
        live[0] += node.live[i]
        if node.newest[i] > newest[0]:
            newest[0] = node.newest[i]


cdef inline void separator_free(Arena* arena, Separator* separator) noexcept nogil:
    arena_free(arena, separator, sizeof(Separator) + separator.length)


cdef inline Separator* separator_between(Arena* arena, Record* left, Record* right) noexcept nogil:
    """The shortest string that is > left's key and <= right's key; NULL without memory."""
    cdef uint32_t length = 1 + key_shared(
        record_key(left), record_key_len(left), record_key(right), record_key_len(right)
    )
    cdef Separator* separator = <Separator*>arena_alloc(arena, sizeof(Separator) + length)
    if separator != NULL:
        separator.length = length
        memcpy(separator_bytes(separator), record_key(right), length)
    return separator


cdef inline void inner_split(Inner* node, Inner* right, int index, Separator** middle) noexcept nogil:
    """Move the upper children of a full node to an empty one; middle separates the two."""
    cdef int cut = INNER_CHILDREN // 2
    cdef int moved
    if index == INNER_CHILDREN - 1:
        cut = SPLIT_EDGE
    elif index == 0:
        cut = INNER_CHILDREN - SPLIT_EDGE
    moved = INNER_CHILDREN - cut
    middle[0] = node.seps[cut - 1]
    right.level = node.level
    right.count = <uint16_t>moved
    memcpy(right.seps, &node.seps[cut], (moved - 1) * sizeof(void*))
    memcpy(right.children, &node.children[cut], moved * sizeof(void*))
    memcpy(right.live, &node.live[cut], moved * sizeof(int64_t))
    memcpy(right.newest, &node.newest[cut], moved * sizeof(int64_t))
    node.count = <uint16_t>cut
    inner_heads(node)
    inner_heads(right)


cdef inline void leaf_split(Leaf* leaf, Leaf* right, int cut) noexcept nogil:
    """Move the upper records of a full leaf to an empty one, and link that one in."""
    cdef int moved = LEAF_KEYS - cut
    right.level = 0
    right.count = <uint16_t>moved
    right.shared_len = leaf.shared_len
    right.newest = leaf.newest  # an upper bound is enough
    right.live = leaf.live >> cut
    right.deep = leaf.deep >> cut
    memcpy(right.heads, &leaf.heads[cut], moved * sizeof(int32_t))
    memcpy(right.records, &leaf.records[cut], moved * sizeof(void*))
    leaf.count = <uint16_t>cut
    leaf.live &= bits_below(cut)
    leaf.deep &= bits_below(cut)
    leaf_forget_run(leaf)
    leaf_forget_run(right)
    right.next = leaf.next
    right.prev = leaf
    leaf.next = right
    if right.next != NULL:
        right.next.prev = right


cdef inline int tree_plant(Tree* tree) noexcept nogil:
    """Give an empty tree its root leaf; 0, or -1 without memory."""
    cdef Leaf* leaf = <Leaf*>arena_alloc(&tree.arena, sizeof(Leaf))
    if leaf == NULL:
        return -1
    leaf.level = 0
    leaf.count = 0
    leaf.shared_len = 0
    leaf.live = 0
    leaf.deep = 0
    leaf.newest = 0
    leaf.next = NULL
    leaf.prev = NULL
    leaf_forget_run(leaf)
    tree.root = leaf
    tree.first = leaf
    tree.height = 0
    tree.leaves = 1
    return 0


cdef inline int tree_split(Tree* tree, Path* path, const char* key, uint32_t key_len) noexcept nogil:
    """Split the path's full leaf, and full nodes above it; the path then leads to the half for key.

    0, or -1 without memory: everything is allocated before anything changes.
    """
    cdef Arena* arena = &tree.arena
    cdef Leaf* leaf = path.leaf
    cdef Leaf* right
    cdef Separator* separator
    cdef Separator* middle = NULL
    cdef Inner* spares[TREE_DEPTH_MAX]
    cdef Inner* node
    cdef Inner* sibling
    cdef void* child
    cdef int cut = leaf_cut(leaf, path.position)
    cdef int needed = 0
    cdef int level, index, got
    cdef int64_t live, newest, total
    cdef uint32_t low_shared = 0
    cdef uint32_t high_shared = 0

    while needed < path.depth and path.nodes[needed].count == INNER_CHILDREN:
        needed += 1
    if needed == path.depth:
        needed += 1  # a new root
        if path.depth + 1 >= TREE_DEPTH_MAX:
            return -1
    right = <Leaf*>arena_alloc(arena, sizeof(Leaf))
    if right == NULL:
        return -1
    separator = separator_between(arena, leaf.records[cut - 1], leaf.records[cut])
    if separator == NULL:
        arena_free(arena, right, sizeof(Leaf))
        return -1
    for got in range(needed):
        spares[got] = <Inner*>arena_alloc(arena, sizeof(Inner))
        if spares[got] == NULL:
            for index in range(got):
                arena_free(arena, spares[index], sizeof(Inner))
            separator_free(arena, separator)
            arena_free(arena, right, sizeof(Leaf))
            return -1

    leaf_split(leaf, right, cut)
    tree.leaves += 1
    if path.low != NULL:
        low_shared = key_shared(
            separator_bytes(path.low), path.low.length, separator_bytes(separator), separator.length
        )
    if path.high != NULL:
        high_shared = key_shared(
            separator_bytes(path.high), path.high.length, separator_bytes(separator), separator.length
        )
    if low_shared != leaf.shared_len:
        leaf_heads(leaf, low_shared)
    if high_shared != right.shared_len:
        leaf_heads(right, high_shared)

    child = right
    live = __builtin_popcountll(right.live)
    newest = right.newest
    for level in range(path.depth):
        node = path.nodes[level]
        index = path.indexes[level]
        if node.count < INNER_CHILDREN:
            inner_insert(node, index, separator, child, live, newest)
            break
        needed -= 1
        sibling = spares[needed]
        inner_split(node, sibling, index, &middle)
        if index < node.count:
            inner_insert(node, index, separator, child, live, newest)
        else:
            inner_insert(sibling, index - node.count, separator, child, live, newest)
        separator = middle
        child = sibling
        inner_sums(sibling, &live, &newest)
    else:
        needed -= 1
        node = spares[needed]
        node.level = <uint16_t>(tree.height + 1)
        node.count = 1
        node.children[0] = tree.root
        if tree.height == 0:
            total = __builtin_popcountll((<Leaf*>tree.root).live)
            node.newest[0] = (<Leaf*>tree.root).newest
        else:
            inner_sums(<Inner*>tree.root, &total, &node.newest[0])
        node.live[0] = total + live  # inner_insert moves live over to the new child
        inner_insert(node, 0, separator, child, live, newest)
        tree.root = node
        tree.height += 1
    tree_descend(tree, key, key_len, path)
    return 0


cdef inline int tree_insert(Tree* tree, Path* path, Record* record) noexcept nogil:
    """Put a record with its first revision at the path's place (found is False there).

    0, or -1 without memory (the record stays the caller's).
    """
    if path.leaf.count == LEAF_KEYS:
        if tree_split(tree, path, record_key(record), record_key_len(record)) != 0:
            return -1
    leaf_insert(path.leaf, path.position, record)
    tree.keys += 1
    path_changed(tree, path, record.mod_main, 0 if record_dead(record) else 1)
    return 0


cdef inline void leaf_merge(Tree* tree, Inner* parent, int index) noexcept nogil:
    """Move all records of the leaf right of child index into that child."""
    cdef Leaf* left = <Leaf*>parent.children[index]
    cdef Leaf* right = <Leaf*>parent.children[index + 1]
    cdef uint32_t shared = left.shared_len if left.shared_len < right.shared_len else right.shared_len
    cdef bint stale = left.shared_len != shared or right.shared_len != shared
    cdef int count = left.count
    memcpy(&left.heads[count], right.heads, right.count * sizeof(int32_t))
    memcpy(&left.records[count], right.records, right.count * sizeof(void*))
    if right.count:
        left.live |= right.live << count
        left.deep |= right.deep << count
    left.count = <uint16_t>(count + right.count)
    if right.newest > left.newest:
        left.newest = right.newest
    if stale:
        leaf_heads(left, shared)
    leaf_forget_run(left)
    left.next = right.next
    if left.next != NULL:
        left.next.prev = left
    tree.leaves -= 1
    arena_free(&tree.arena, right, sizeof(Leaf))
    separator_free(&tree.arena, parent.seps[index])
    inner_remove(parent, index)


cdef inline void inner_balance(Tree* tree, Inner* parent, int index) noexcept nogil:
    """Merge children index and index + 1 of a node of inner nodes, or share evenly between them."""
    cdef Inner* left = <Inner*>parent.children[index]
    cdef Inner* right = <Inner*>parent.children[index + 1]
    cdef Separator* seps[2 * INNER_CHILDREN]
    cdef void* children[2 * INNER_CHILDREN]
    cdef int64_t live[2 * INNER_CHILDREN]
    cdef int64_t newest[2 * INNER_CHILDREN]
    cdef int a = left.count
    cdef int b = right.count
    cdef int cut
    memcpy(seps, left.seps, (a - 1) * sizeof(void*))
    seps[a - 1] = parent.seps[index]
    memcpy(&seps[a], right.seps, (b - 1) * sizeof(void*))
    memcpy(children, left.children, a * sizeof(void*))
    memcpy(&children[a], right.children, b * sizeof(void*))
    memcpy(live, left.live, a * sizeof(int64_t))
    memcpy(&live[a], right.live, b * sizeof(int64_t))
    memcpy(newest, left.newest, a * sizeof(int64_t))
    memcpy(&newest[a], right.newest, b * sizeof(int64_t))
    cut = a + b if a + b <= INNER_CHILDREN else (a + b) // 2
    left.count = <uint16_t>cut
    memcpy(left.seps, seps, (cut - 1) * sizeof(void*))
    memcpy(left.children, children, cut * sizeof(void*))
    memcpy(left.live, live, cut * sizeof(int64_t))
    memcpy(left.newest, newest, cut * sizeof(int64_t))
    inner_heads(left)
    if cut == a + b:
        arena_free(&tree.arena, right, sizeof(Inner))
        inner_remove(parent, index)
        return
    right.count = <uint16_t>(a + b - cut)
    memcpy(right.seps, &seps[cut], (a + b - cut - 1) * sizeof(void*))
    memcpy(right.children, &children[cut], (a + b - cut) * sizeof(void*))
    memcpy(right.live, &live[cut], (a + b - cut) * sizeof(int64_t))
    memcpy(right.newest, &newest[cut], (a + b - cut) * sizeof(int64_t))
    inner_heads(right)
    parent.seps[index] = seps[cut - 1]
    inner_sums(left, &parent.live[index], &parent.newest[index])
    inner_sums(right, &parent.live[index + 1], &parent.newest[index + 1])
    inner_heads(parent)


cdef inline bint leaf_thin(Tree* tree, Leaf* leaf) noexcept nogil:
    """Whether a leaf has so few records that tree_rebalance should look at it."""
    return leaf.count < LEAF_MERGE_BELOW and tree.height > 0


cdef inline void tree_rebalance(Tree* tree, Path* path) noexcept nogil:
    """Merge the path's thin leaf with a neighbour where that fits; the path is void afterwards.

    Needs no memory, so a compaction cannot fail half way.
    """
    cdef Inner* parent = path.nodes[0]
    cdef Inner* node
    cdef Leaf* leaf = path.leaf
    cdef int index = path.indexes[0]
    cdef int limit = LEAF_MERGED_MAX if leaf.count else LEAF_KEYS
    cdef int level
    if index + 1 < parent.count and leaf.count + (<Leaf*>parent.children[index + 1]).count <= limit:
        leaf_merge(tree, parent, index)
    elif index > 0 and leaf.count + (<Leaf*>parent.children[index - 1]).count <= limit:
        leaf_merge(tree, parent, index - 1)
    else:
        return
    for level in range(1, path.depth):
        node = path.nodes[level - 1]
        if node.count >= INNER_MERGE_BELOW:
            return
        parent = path.nodes[level]
        index = path.indexes[level]
        inner_balance(tree, parent, index if index + 1 < parent.count else index - 1)
    node = <Inner*>tree.root
    if node.count == 1:
        tree.root = node.children[0]
        tree.height -= 1
        arena_free(&tree.arena, node, sizeof(Inner))


cdef inline int tree_verify_node(
    Tree* tree, void* node, int level, Separator* low, Separator* high,
    Leaf** previous, int64_t* live, int64_t* newest, int64_t* keys
) noexcept nogil:
    """0, or the number of the first broken invariant below a node."""
    cdef Leaf* leaf
    cdef Inner* inner
    cdef Record* record
    cdef Separator* edge_low
    cdef Separator* edge_high
    cdef int i, fault
    cdef uint32_t shared = 0
    cdef int64_t below_live, below_newest
    if level == 0:
        leaf = <Leaf*>node
        if leaf.level != 0 or leaf.prev != previous[0] or leaf.count > LEAF_KEYS:
            return 1
        if leaf.count == 0 and tree.height:
            return 2
        if previous[0] == NULL and tree.first != leaf:
            return 3
        if previous[0] != NULL and previous[0].next != leaf:
            return 4
        if low != NULL and high != NULL:
            shared = key_shared(separator_bytes(low), low.length, separator_bytes(high), high.length)
        if leaf.shared_len > shared:
            return 5
        newest[0] = 0
        for i in range(leaf.count):
            record = leaf.records[i]
            if leaf.heads[i] != key_head(record_key(record), record_key_len(record), leaf.shared_len):
                return 6
            if i and key_compare(
                record_key(leaf.records[i - 1]), record_key_len(leaf.records[i - 1]),
                record_key(record), record_key_len(record), 0,
            ) >= 0:
                return 7
            if low != NULL and key_compare(
                separator_bytes(low), low.length, record_key(record), record_key_len(record), 0
            ) > 0:
                return 8
            if high != NULL and key_compare(
                separator_bytes(high), high.length, record_key(record), record_key_len(record), 0
            ) <= 0:
                return 9
            if <int>((leaf.live >> i) & 1) == record_dead(record):
                return 10
            if <int>((leaf.deep >> i) & 1) != record_deep(record):
                return 10
            if record.mod_main > newest[0]:
                newest[0] = record.mod_main
        if newest[0] > leaf.newest or (leaf.live | leaf.deep) & ~bits_below(leaf.count):
            return 11
        newest[0] = leaf.newest
        live[0] = __builtin_popcountll(leaf.live)
        keys[0] += leaf.count
        previous[0] = leaf
        return 0
    inner = <Inner*>node
    if inner.level != level or inner.count < 2 or inner.count > INNER_CHILDREN:
        return 12
    live[0] = 0
    newest[0] = 0
    for i in range(inner.count):
        edge_low = inner.seps[i - 1] if i else low
        edge_high = inner.seps[i] if i < inner.count - 1 else high
        if i < inner.count - 1 and inner.heads[i] != key_head(
            separator_bytes(inner.seps[i]), inner.seps[i].length, inner.shared_len
        ):
            return 13
        fault = tree_verify_node(
            tree, inner.children[i], level - 1, edge_low, edge_high, previous, &below_live, &below_newest, keys
        )
        if fault:
            return fault
        if below_live != inner.live[i] or below_newest > inner.newest[i]:
            return 14
        live[0] += below_live
        if inner.newest[i] > newest[0]:
            newest[0] = inner.newest[i]
    edge_low = inner.seps[0]
    edge_high = inner.seps[inner.count - 2]
    if inner.shared_len != key_shared(
        separator_bytes(edge_low), edge_low.length, separator_bytes(edge_high), edge_high.length
    ):
        return 15
    return 0


cdef inline int tree_verify(Tree* tree) noexcept nogil:
    """Check every invariant: 0, or the number of the first one broken. Walks the whole tree."""
    cdef Leaf* previous = NULL
    cdef int64_t live = 0
    cdef int64_t newest = 0
    cdef int64_t keys = 0
    cdef int fault
    if tree.root == NULL:
        return 0 if tree.keys == 0 and tree.live_keys == 0 else 16
    fault = tree_verify_node(tree, tree.root, <int>tree.height, NULL, NULL, &previous, &live, &newest, &keys)
    if fault:
        return fault
    if previous.next != NULL:
        return 17
    if live != tree.live_keys or keys != tree.keys:
        return 18
    return 0
