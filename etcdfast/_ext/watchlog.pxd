"""Recent events as they go out, once for all groups, and which of them each group still needs.

The log is a queue of blocks; events are appended in revision order and never move. When it takes too much
memory its oldest block goes, and with it whatever lies below `floor`: who still wanted that reads history.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from etcdfast._ext.watchtypes cimport (
    BUFFER_DIRTY, BUFFER_KEPT, BUFFER_NONE, event_buffer, event_ref, watch_group,
)

cdef enum:
    LOG_BLOCK_BYTES = 262144
    REFS_MIN = 4
    REFS_POOLED_MAX = 64       # a buffer with more room is not kept for reuse
    POOL_BUFFERS_MAX = 4096

ctypedef struct log_block:
    log_block *next
    uint64_t capacity
    uint64_t size
    int64_t last_main          # highest revision with an event in it

ctypedef struct event_log:
    log_block *first
    log_block *last
    log_block *spare
    uint64_t bytes             # of all blocks
    int64_t floor              # everything from this revision on is here still

# Place to go back to when nobody keeps what was appended since.
ctypedef struct log_mark:
    log_block *block           # NULL: the log was empty
    uint64_t size
    int64_t last_main

ctypedef struct buffer_list:
    event_buffer *first
    event_buffer *last
    uint64_t count

ctypedef struct buffer_pool:
    event_buffer *free_list    # through `next`
    uint64_t free_count
    uint64_t bytes             # of buffers handed out, with their refs


# ---- log ----

cdef inline uint8_t *block_data(log_block *block) noexcept nogil:
    return <uint8_t *>block + sizeof(log_block)


cdef inline uint8_t *log_put(event_log *log, const uint8_t *data, uint64_t size, int64_t main) noexcept nogil:
    """A copy of one event; NULL without memory. Mains never fall."""
    cdef log_block *block = log.last
    cdef uint64_t capacity = LOG_BLOCK_BYTES - sizeof(log_block)
    cdef uint8_t *p
    if block == NULL or block.capacity - block.size < size:
        if size <= capacity and log.spare != NULL:
            block = log.spare
            log.spare = NULL
        else:
            if size > capacity:
                capacity = size
            block = <log_block *>malloc(sizeof(log_block) + capacity)
            if block == NULL:
                return NULL
            block.capacity = capacity
        block.next = NULL
        block.size = 0
        if log.last != NULL:
            log.last.next = block
        else:
            log.first = block
        log.last = block
        log.bytes += sizeof(log_block) + block.capacity
    p = block_data(block) + block.size
    memcpy(p, data, size)
    block.size += size
    block.last_main = main
    return p


cdef inline void log_give_back(event_log *log, log_block *block) noexcept nogil:
    log.bytes -= sizeof(log_block) + block.capacity
    if log.spare == NULL and block.capacity + sizeof(log_block) == LOG_BLOCK_BYTES:
        log.spare = block
    else:
        free(block)


cdef inline void log_drop_first(event_log *log) noexcept nogil:
    cdef log_block *block = log.first
    if block == NULL:
        return
    log.first = block.next
    if log.first == NULL:
        log.last = NULL
    if block.last_main >= log.floor:
        log.floor = block.last_main + 1
    log_give_back(log, block)


cdef inline void log_mark_here(const event_log *log, log_mark *mark) noexcept nogil:
    mark.block = log.last
    mark.size = log.last.size if log.last != NULL else 0
    mark.last_main = log.last.last_main if log.last != NULL else 0


cdef inline void log_back_to(event_log *log, const log_mark *mark) noexcept nogil:
    """Forget what was appended since. Precondition: no block has been dropped since."""
    cdef log_block *block
    cdef log_block *next
    if mark.block == NULL:
        block = log.first
        log.first = log.last = NULL
    else:
        block = mark.block.next
        mark.block.next = NULL
        mark.block.size = mark.size
        mark.block.last_main = mark.last_main
        log.last = mark.block
    while block != NULL:
        next = block.next
        log_give_back(log, block)
        block = next


cdef inline void log_free(event_log *log) noexcept nogil:
    cdef log_block *next
    while log.first != NULL:
        next = log.first.next
        free(log.first)
        log.first = next
    free(log.spare)
    log.last = log.spare = NULL
    log.bytes = 0


# ---- buffers of groups ----

cdef inline void buffer_unlist(buffer_list *list, event_buffer *b) noexcept nogil:
    if b.prev != NULL:
        b.prev.next = b.next
    else:
        list.first = b.next
    if b.next != NULL:
        b.next.prev = b.prev
    else:
        list.last = b.prev
    b.list = BUFFER_NONE
    list.count -= 1


cdef inline void buffer_enlist(buffer_list *list, event_buffer *b, uint32_t kind) noexcept nogil:
    b.next = NULL
    b.prev = list.last
    if list.last != NULL:
        list.last.next = b
    else:
        list.first = b
    list.last = b
    b.list = kind
    list.count += 1


cdef inline uint64_t buffer_footprint(const event_buffer *b) noexcept nogil:
    return sizeof(event_buffer) + <uint64_t>b.capacity * sizeof(event_ref)


cdef inline event_buffer *buffer_take(buffer_pool *pool, watch_group *g) noexcept nogil:
    """An empty buffer for the group; NULL without memory."""
    cdef event_buffer *b = pool.free_list
    if b != NULL:
        pool.free_list = b.next
        pool.free_count -= 1
    else:
        b = <event_buffer *>malloc(sizeof(event_buffer))
        if b == NULL:
            return NULL
        b.refs = <event_ref *>malloc(REFS_MIN * sizeof(event_ref))
        if b.refs == NULL:
            free(b)
            return NULL
        b.capacity = REFS_MIN
    pool.bytes += buffer_footprint(b)
    b.group = g
    b.next = b.prev = NULL
    b.bytes = 0
    b.floor = 0
    b.first = b.count = b.sent = b.piece_end = b.cursor = 0
    b.list = BUFFER_NONE
    return b


cdef inline void buffer_give_back(buffer_pool *pool, event_buffer *b) noexcept nogil:
    """Precondition: it is in no list and its group does not point to it."""
    pool.bytes -= buffer_footprint(b)
    if b.capacity <= REFS_POOLED_MAX and pool.free_count < POOL_BUFFERS_MAX:
        b.next = pool.free_list
        pool.free_list = b
        pool.free_count += 1
    else:
        free(b.refs)
        free(b)


cdef inline void buffer_pool_clear(buffer_pool *pool) noexcept nogil:
    cdef event_buffer *b
    while pool.free_list != NULL:
        b = pool.free_list
        pool.free_list = b.next
        free(b.refs)
        free(b)
    pool.free_count = 0


cdef inline void buffer_pack(event_buffer *b) noexcept nogil:
    """Live refs to the start of the array."""
    if b.first == 0:
        return
    memmove(b.refs, b.refs + b.first, <uint64_t>(b.count - b.first) * sizeof(event_ref))
    b.count -= b.first
    b.sent -= b.first
    if b.piece_end:
        b.piece_end -= b.first
    b.first = 0


cdef inline int buffer_append(
    buffer_pool *pool, event_buffer *b, const uint8_t *data, uint32_t size, int64_t main
) noexcept nogil:
    """One more event; 0, or -1 without memory."""
    cdef event_ref *grown
    cdef event_ref *ref
    if b.count == b.capacity:
        if b.first > b.capacity // 2:
            buffer_pack(b)
        else:
            grown = <event_ref *>realloc(b.refs, <uint64_t>b.capacity * 2 * sizeof(event_ref))
            if grown == NULL:
                return -1
            pool.bytes += <uint64_t>b.capacity * sizeof(event_ref)
            b.refs = grown
            b.capacity *= 2
    ref = &b.refs[b.count]
    ref.data = data
    ref.main = main
    ref.size = size
    ref.events = 1
    b.count += 1
    b.bytes += size
    return 0


cdef inline void buffer_trim(event_buffer *b, int64_t floor) noexcept nogil:
    """Forget sent refs below `floor`."""
    while b.first < b.sent and b.refs[b.first].main < floor:
        b.bytes -= b.refs[b.first].size
        b.first += 1
    if b.floor < floor:
        b.floor = floor


cdef inline void buffer_halve(event_buffer *b) noexcept nogil:
    """Forget the older half of the sent refs, whole revisions."""
    cdef uint32_t middle = b.first + (b.sent - b.first) // 2
    if b.first == b.sent:
        return
    buffer_trim(b, b.refs[middle].main + 1)


cdef inline uint32_t buffer_find(const event_buffer *b, int64_t next_rev) noexcept nogil:
    """The first live ref of a revision >= next_rev; count when there is none."""
    cdef uint32_t low = b.first
    cdef uint32_t high = b.count
    cdef uint32_t middle
    while low < high:
        middle = (low + high) >> 1
        if b.refs[middle].main < next_rev:
            low = middle + 1
        else:
            high = middle
    return low
