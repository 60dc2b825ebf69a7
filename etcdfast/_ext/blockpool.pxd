"""Small blocks from free lists: the allocator that nghttp2 gets.

A call makes and frees about ten small blocks, more than malloc's own cache holds of one size when hundreds
of calls are open. Freed blocks stay in the pool until block_pool_free: its size is the peak of use.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

cdef enum:
    BLOCK_STEP = 64              # sizes in steps of this
    BLOCK_CLASSES = 16           # larger ones go to malloc
    BLOCK_HEADER = 16            # holds the size; keeps 16-byte alignment


ctypedef struct block_pool:
    void *free_blocks[17]        # BLOCK_CLASSES + 1, by steps


cdef inline void *block_malloc(size_t size, void *user) noexcept nogil:
    cdef block_pool *pool = <block_pool *>user
    cdef size_t steps = (size + BLOCK_HEADER + BLOCK_STEP - 1) // BLOCK_STEP
    cdef char *block
    if steps <= BLOCK_CLASSES:
        block = <char *>pool.free_blocks[steps]
        if block != NULL:
            pool.free_blocks[steps] = (<void **>(block + BLOCK_HEADER))[0]
            return block + BLOCK_HEADER
    block = <char *>malloc(steps * BLOCK_STEP)
    if block == NULL:
        return NULL
    (<size_t *>block)[0] = steps
    return block + BLOCK_HEADER


cdef inline void block_free(void *data, void *user) noexcept nogil:
    cdef block_pool *pool = <block_pool *>user
    cdef char *block
    cdef size_t steps
    if data == NULL:
        return
    block = <char *>data - BLOCK_HEADER
    steps = (<size_t *>block)[0]
    if steps > BLOCK_CLASSES:
        free(block)
        return
    (<void **>data)[0] = pool.free_blocks[steps]
    pool.free_blocks[steps] = block


cdef inline void *block_calloc(size_t count, size_t size, void *user) noexcept nogil:
    cdef void *data
    if size and count > (<size_t>1 << 40) // size:
        return NULL
    data = block_malloc(count * size, user)
    if data != NULL:
        memset(data, 0, count * size)
    return data


cdef inline void *block_realloc(void *data, size_t size, void *user) noexcept nogil:
    cdef size_t room
    cdef void *moved
    if data == NULL:
        return block_malloc(size, user)
    room = (<size_t *>(<char *>data - BLOCK_HEADER))[0] * BLOCK_STEP - BLOCK_HEADER
    if size <= room:
        return data
    moved = block_malloc(size, user)
    if moved != NULL:
        memcpy(moved, data, room)
        block_free(data, user)
    return moved


cdef inline void block_pool_free(block_pool *pool) noexcept nogil:
    cdef char *block
    cdef int i
    for i in range(BLOCK_CLASSES + 1):
        while pool.free_blocks[i] != NULL:
            block = <char *>pool.free_blocks[i]
            pool.free_blocks[i] = (<void **>(block + BLOCK_HEADER))[0]
            free(block)
