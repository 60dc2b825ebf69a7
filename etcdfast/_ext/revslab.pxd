"""Slab allocator of the revision index: blocks without headers, by size class.

A slab is SLAB_BYTES long and aligned to its length, so a block finds its slab by masking its own
address and needs no header. Slabs of one class with room form a list; an empty slab goes back to a
common pool, so space of one size serves every other size again. Single-threaded.

The caller gives the size again when it frees: it knows it anyway, and that saves the header.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint32_t, uintptr_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t length)
    int madvise(void* address, size_t length, int advice)
    void* MAP_FAILED
    int PROT_READ
    int PROT_WRITE
    int MAP_PRIVATE
    int MAP_ANONYMOUS
    int MADV_DONTNEED
    int MADV_HUGEPAGE

cdef extern from * nogil:
    """
    /* Under AddressSanitizer every block is a malloc of its own, so that it sees overruns and leaks. */
    #ifdef __SANITIZE_ADDRESS__
    #define REVSLAB_BLOCK_MAX 0
    #else
    #define REVSLAB_BLOCK_MAX 8192
    #endif
    """
    size_t SLAB_BLOCK_MAX "REVSLAB_BLOCK_MAX"  # bytes; a larger block comes from malloc
    int __builtin_clzll(unsigned long long value)

cdef enum:
    SLAB_BYTES = 65536
    CHUNK_BYTES = 2097152   # from the system at a time: one huge page, as random reads live on the TLB
    CHUNK_SLABS = 32        # CHUNK_BYTES / SLAB_BYTES
    SLAB_HEADER_BYTES = 64  # keeps 64-byte blocks on cache lines
    SLAB_CLASSES = 96       # 64 in steps of 8 bytes, then 8 per doubling
    SLAB_STEP_MAX = 512     # largest block of the 8-byte steps
    SLAB_SPARES_MAX = 64    # empty slabs kept warm; further ones give their pages back
    SLAB_PAGE_BYTES = 4096

cdef struct Slab:
    Slab* next              # neighbours in the list of its class, or in the pool
    Slab* prev
    void* free_blocks       # chain through the first word of each freed block
    uint32_t block_bytes
    uint32_t block_class
    uint32_t used           # blocks handed out and not freed
    uint32_t carved         # blocks ever handed out; the rest of the slab is untouched memory
    uint32_t capacity
    uint32_t returned       # 1: its pages (but the first) were given back to the system

cdef struct Chunk:
    Chunk* next
    void* base

cdef struct LargeBlock:     # header in front of a block above SLAB_BLOCK_MAX
    LargeBlock* next
    LargeBlock* prev
    size_t block_bytes
    size_t padding          # keeps the block aligned to 16

cdef struct Arena:
    Slab* partial[SLAB_CLASSES]
    Slab* spares
    Chunk* chunks
    LargeBlock* larges
    int64_t spare_count
    int64_t used_bytes      # blocks handed out, rounded up to their class
    int64_t held_bytes      # taken from the system and not given back
    int64_t fail_countdown  # test hook: 1 fails the next allocation, 2 the one after; 0 is off


cdef inline void arena_init(Arena* arena) noexcept nogil:
    memset(arena, 0, sizeof(Arena))


cdef inline uint32_t slab_class(size_t block_bytes) noexcept nogil:
    cdef int doubling
    if block_bytes <= SLAB_STEP_MAX:
        return <uint32_t>((block_bytes + 7) >> 3) - 1
    doubling = 63 - __builtin_clzll(block_bytes - 1)
    return 64 + <uint32_t>(doubling - 9) * 8 + <uint32_t>(((block_bytes - 1) >> (doubling - 3)) & 7)


cdef inline uint32_t slab_class_bytes(uint32_t block_class) noexcept nogil:
    if block_class < 64:
        return (block_class + 1) << 3
    return (9 + (block_class & 7)) << (6 + ((block_class - 64) >> 3))


cdef inline void* chunk_map() noexcept nogil:
    """CHUNK_BYTES of zeroed memory aligned to their length; NULL without memory."""
    cdef char* wide = <char*>mmap(
        NULL, 2 * CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
    )
    cdef size_t before
    if wide == <char*>MAP_FAILED:
        return NULL
    before = <size_t>(-<uintptr_t>wide & <uintptr_t>(CHUNK_BYTES - 1))
    if before:
        munmap(wide, before)
    munmap(wide + before + CHUNK_BYTES, CHUNK_BYTES - before)
    madvise(wide + before, CHUNK_BYTES, MADV_HUGEPAGE)  # a wish; without it the index is only slower
    return wide + before


cdef inline int arena_grow(Arena* arena) noexcept nogil:
    """Take one chunk from the system into the pool; 0, or -1 without memory."""
    cdef Chunk* chunk = <Chunk*>malloc(sizeof(Chunk))
    cdef Slab* slab
    cdef int i
    if chunk == NULL:
        return -1
    chunk.base = chunk_map()
    if chunk.base == NULL:
        free(chunk)
        return -1
    chunk.next = arena.chunks
    arena.chunks = chunk
    for i in range(CHUNK_SLABS - 1, -1, -1):  # pool order = address order
        slab = <Slab*>(<char*>chunk.base + <size_t>i * SLAB_BYTES)
        slab.returned = 0
        slab.next = arena.spares
        arena.spares = slab
    arena.spare_count += CHUNK_SLABS
    arena.held_bytes += CHUNK_BYTES
    return 0


cdef inline Slab* slab_take(Arena* arena, uint32_t block_class) noexcept nogil:
    cdef Slab* slab
    if arena.spares == NULL and arena_grow(arena) != 0:
        return NULL
    slab = arena.spares
    arena.spares = slab.next
    arena.spare_count -= 1
    if slab.returned:
        arena.held_bytes += SLAB_BYTES - SLAB_PAGE_BYTES
        slab.returned = 0
    slab.next = NULL
    slab.prev = NULL
    slab.free_blocks = NULL
    slab.block_class = block_class
    slab.block_bytes = slab_class_bytes(block_class)
    slab.capacity = (SLAB_BYTES - SLAB_HEADER_BYTES) // slab.block_bytes
    slab.used = 0
    slab.carved = 0
    arena.partial[block_class] = slab
    return slab


cdef inline void slab_unlink(Arena* arena, Slab* slab) noexcept nogil:
    if slab.prev != NULL:
        slab.prev.next = slab.next
    else:
        arena.partial[slab.block_class] = slab.next
    if slab.next != NULL:
        slab.next.prev = slab.prev


cdef inline bint arena_must_fail(Arena* arena) noexcept nogil:
    if arena.fail_countdown == 0:
        return False
    arena.fail_countdown -= 1
    return arena.fail_countdown == 0


cdef inline void* large_alloc(Arena* arena, size_t block_bytes) noexcept nogil:
    cdef LargeBlock* large = <LargeBlock*>malloc(sizeof(LargeBlock) + block_bytes)
    if large == NULL:
        return NULL
    large.block_bytes = block_bytes
    large.prev = NULL
    large.next = arena.larges
    if large.next != NULL:
        large.next.prev = large
    arena.larges = large
    arena.used_bytes += <int64_t>(sizeof(LargeBlock) + block_bytes)
    arena.held_bytes += <int64_t>(sizeof(LargeBlock) + block_bytes)
    return <char*>large + sizeof(LargeBlock)


cdef inline void large_free(Arena* arena, void* block) noexcept nogil:
    cdef LargeBlock* large = <LargeBlock*>(<char*>block - sizeof(LargeBlock))
    if large.prev != NULL:
        large.prev.next = large.next
    else:
        arena.larges = large.next
    if large.next != NULL:
        large.next.prev = large.prev
    arena.used_bytes -= <int64_t>(sizeof(LargeBlock) + large.block_bytes)
    arena.held_bytes -= <int64_t>(sizeof(LargeBlock) + large.block_bytes)
    free(large)


cdef inline void* arena_alloc(Arena* arena, size_t block_bytes) noexcept nogil:
    """A block of at least block_bytes (1 or more), aligned to 8; NULL without memory."""
    cdef Slab* slab
    cdef void* block
    cdef uint32_t block_class
    if arena_must_fail(arena):
        return NULL
    if block_bytes > SLAB_BLOCK_MAX:
        return large_alloc(arena, block_bytes)
    block_class = slab_class(block_bytes)
    slab = arena.partial[block_class]
    if slab == NULL:
        slab = slab_take(arena, block_class)
        if slab == NULL:
            return NULL
    block = slab.free_blocks
    if block != NULL:
        slab.free_blocks = (<void**>block)[0]
    else:
        block = <char*>slab + SLAB_HEADER_BYTES + <size_t>slab.carved * slab.block_bytes
        slab.carved += 1
    slab.used += 1
    if slab.used == slab.capacity:
        slab_unlink(arena, slab)
    arena.used_bytes += slab.block_bytes
    return block


cdef inline void arena_free(Arena* arena, void* block, size_t block_bytes) noexcept nogil:
    """Give back a block; block_bytes as it was asked for."""
    cdef Slab* slab
    if block_bytes > SLAB_BLOCK_MAX:
        large_free(arena, block)
        return
    slab = <Slab*>(<uintptr_t>block & ~<uintptr_t>(SLAB_BYTES - 1))
    if slab.used == slab.capacity:
        slab.prev = NULL
        slab.next = arena.partial[slab.block_class]
        if slab.next != NULL:
            slab.next.prev = slab
        arena.partial[slab.block_class] = slab
    (<void**>block)[0] = slab.free_blocks
    slab.free_blocks = block
    slab.used -= 1
    arena.used_bytes -= slab.block_bytes
    # The last slab of a class stays with it: a class that swings around empty must not thrash.
    if slab.used == 0 and (slab.prev != NULL or slab.next != NULL):
        slab_unlink(arena, slab)
        if arena.spare_count >= SLAB_SPARES_MAX:
            if madvise(<char*>slab + SLAB_PAGE_BYTES, SLAB_BYTES - SLAB_PAGE_BYTES, MADV_DONTNEED) == 0:
                slab.returned = 1
                arena.held_bytes -= SLAB_BYTES - SLAB_PAGE_BYTES
        slab.next = arena.spares
        arena.spares = slab
        arena.spare_count += 1


cdef inline void* arena_resize(
    Arena* arena, void* block, size_t old_bytes, size_t new_bytes, size_t keep_bytes
) noexcept nogil:
    """Move a block to a new size with its first keep_bytes; NULL leaves the old block as it was."""
    cdef LargeBlock* large
    cdef void* moved
    if old_bytes > SLAB_BLOCK_MAX and new_bytes > SLAB_BLOCK_MAX:
        # realloc moves pages, not bytes: a key with millions of revisions must not stall the turn.
        if arena_must_fail(arena):
            return NULL
        large = <LargeBlock*>realloc(<char*>block - sizeof(LargeBlock), sizeof(LargeBlock) + new_bytes)
        if large == NULL:
            return NULL
        if large.prev != NULL:
            large.prev.next = large
        else:
            arena.larges = large
        if large.next != NULL:
            large.next.prev = large
        arena.used_bytes += <int64_t>new_bytes - <int64_t>large.block_bytes
        arena.held_bytes += <int64_t>new_bytes - <int64_t>large.block_bytes
        large.block_bytes = new_bytes
        return <char*>large + sizeof(LargeBlock)
    moved = arena_alloc(arena, new_bytes)
    if moved == NULL:
        return NULL
    memcpy(moved, block, keep_bytes)
    arena_free(arena, block, old_bytes)
    return moved


cdef inline void arena_release(Arena* arena) noexcept nogil:
    """Give everything back at once; the arena is then as new (the test hook is off)."""
    cdef Chunk* chunk
    cdef LargeBlock* large
    while arena.chunks != NULL:
        chunk = arena.chunks
        arena.chunks = chunk.next
        munmap(chunk.base, CHUNK_BYTES)
        free(chunk)
    while arena.larges != NULL:
        large = arena.larges
        arena.larges = large.next
        free(large)
    arena_init(arena)
