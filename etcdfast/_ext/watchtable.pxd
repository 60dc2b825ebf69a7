"""Tables and lists of the watch hub: streams by their address, watchers by id, front and lagging ones.

Allocating functions return -1 or NULL without memory and have then changed nothing.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from etcdfast._ext.revslab cimport Arena, arena_alloc, arena_free
from etcdfast._ext.ring cimport ipc_record
from etcdfast._ext.watchtypes cimport (
    WATCHER_AHEAD, WATCHER_FUTURE, WATCHER_LAGGING, event_buffer, watch_group, watch_stream, watcher,
)

cdef enum:
    IDS_CAPACITY_MIN = 4
    STREAMS_CAPACITY_MIN = 64


ctypedef struct stream_table:
    watch_stream **slots
    uint64_t count
    uint64_t capacity        # power of two


# ---- streams by (frontend, slot, generation, stream) ----

cdef inline uint64_t mixed(uint64_t value) noexcept nogil:
    """Every bit of the result depends on every bit of the value."""
    value ^= value >> 33
    value *= <uint64_t>0xFF51AFD7ED558CCD
    value ^= value >> 33
    value *= <uint64_t>0xC4CEB9FE1A85EC53
    return value ^ (value >> 33)


cdef inline uint64_t stream_hash(uint8_t frontend, uint32_t slot, uint32_t generation, uint32_t stream) noexcept nogil:
    return mixed((<uint64_t>slot << 32 | stream) ^ mixed(<uint64_t>generation << 8 | frontend))


cdef inline uint64_t stream_home(const stream_table *t, const watch_stream *s) noexcept nogil:
    return stream_hash(s.frontend, s.slot, s.generation, s.stream) & (t.capacity - 1)


cdef inline watch_stream *stream_find(const stream_table *t, const ipc_record *r) noexcept nogil:
    cdef uint64_t at
    cdef watch_stream *s
    if t.count == 0:
        return NULL
    at = stream_hash(r.frontend, r.slot, r.generation, r.stream) & (t.capacity - 1)
    while True:
        s = t.slots[at]
        if s == NULL:
            return NULL
        if s.slot == r.slot and s.stream == r.stream and s.generation == r.generation and s.frontend == r.frontend:
            return s
        at = (at + 1) & (t.capacity - 1)


cdef inline int stream_insert(stream_table *t, Arena *arena, watch_stream *s) noexcept nogil:
    """0, or -1 without memory. Precondition: it is not in the table."""
    cdef watch_stream **old = t.slots
    cdef uint64_t old_capacity = t.capacity
    cdef uint64_t capacity, at, i
    if (t.count + 1) * 4 > t.capacity * 3:
        capacity = old_capacity * 2 if old_capacity else STREAMS_CAPACITY_MIN
        t.slots = <watch_stream **>arena_alloc(arena, capacity * sizeof(void *))
        if t.slots == NULL:
            t.slots = old
            return -1
        memset(t.slots, 0, capacity * sizeof(void *))
        t.capacity = capacity
        for i in range(old_capacity):
            if old[i] != NULL:
                at = stream_home(t, old[i])
                while t.slots[at] != NULL:
                    at = (at + 1) & (capacity - 1)
                t.slots[at] = old[i]
        if old != NULL:
            arena_free(arena, old, old_capacity * sizeof(void *))
    at = stream_home(t, s)
    while t.slots[at] != NULL:
        at = (at + 1) & (t.capacity - 1)
    t.slots[at] = s
    t.count += 1
    return 0


cdef inline void stream_erase(stream_table *t, watch_stream *s) noexcept nogil:
    """Precondition: it is in the table."""
    cdef uint64_t mask = t.capacity - 1
    cdef uint64_t hole = stream_home(t, s)
    cdef uint64_t at, home
    while t.slots[hole] != s:
        hole = (hole + 1) & mask
    at = hole
    while True:
        # Whatever follows without a gap moves up, unless that would put it before its home.
        at = (at + 1) & mask
        if t.slots[at] == NULL:
            break
        home = stream_home(t, t.slots[at])
        if ((at - home) & mask) >= ((at - hole) & mask):
            t.slots[hole] = t.slots[at]
            hole = at
    t.slots[hole] = NULL
    t.count -= 1


# ---- watchers of a stream by id ----

cdef inline uint32_t id_home(int64_t watch_id, uint32_t mask) noexcept nogil:
    # Ids count up, mostly: they lie side by side and never collide.
    return <uint32_t>(<uint64_t>watch_id ^ (<uint64_t>watch_id >> 32)) & mask


cdef inline watcher *id_find(const watch_stream *s, int64_t watch_id) noexcept nogil:
    cdef uint32_t mask = s.id_capacity - 1
    cdef uint32_t at
    if s.id_count == 0:
        return NULL
    at = id_home(watch_id, mask)
    while s.ids[at] != NULL:
        if s.ids[at].watch_id == watch_id:
            return s.ids[at]
        at = (at + 1) & mask
    return NULL


cdef inline int ids_resize(watch_stream *s, Arena *arena, uint32_t capacity) noexcept nogil:
    cdef watcher **old = s.ids
    cdef watcher **grown = <watcher **>arena_alloc(arena, capacity * sizeof(void *))
    cdef uint32_t i, at
    if grown == NULL:
        return -1
    memset(grown, 0, capacity * sizeof(void *))
    for i in range(s.id_capacity):
        if old[i] != NULL:
            at = id_home(old[i].watch_id, capacity - 1)
            while grown[at] != NULL:
                at = (at + 1) & (capacity - 1)
            grown[at] = old[i]
    if old != NULL:
        arena_free(arena, old, s.id_capacity * sizeof(void *))
    s.ids = grown
    s.id_capacity = capacity
    return 0


cdef inline int id_insert(watch_stream *s, Arena *arena, watcher *w) noexcept nogil:
    """0, or -1 without memory. Precondition: no watcher of that id."""
    cdef uint32_t at
    if (s.id_count + 1) * 8 > s.id_capacity * 7:
        if ids_resize(s, arena, s.id_capacity * 2 if s.id_capacity else IDS_CAPACITY_MIN) != 0:
            return -1
    at = id_home(w.watch_id, s.id_capacity - 1)
    while s.ids[at] != NULL:
        at = (at + 1) & (s.id_capacity - 1)
    s.ids[at] = w
    s.id_count += 1
    return 0


cdef inline void id_erase(watch_stream *s, Arena *arena, watcher *w) noexcept nogil:
    cdef uint32_t mask = s.id_capacity - 1
    cdef uint32_t hole = id_home(w.watch_id, mask)
    cdef uint32_t at, home
    while s.ids[hole] != w:
        hole = (hole + 1) & mask
    at = hole
    while True:
        at = (at + 1) & mask
        if s.ids[at] == NULL:
            break
        home = id_home(s.ids[at].watch_id, mask)
        if ((at - home) & mask) >= ((at - hole) & mask):
            s.ids[hole] = s.ids[at]
            hole = at
    s.ids[hole] = NULL
    s.id_count -= 1
    if s.id_capacity > IDS_CAPACITY_MIN and s.id_count * 8 < s.id_capacity:
        ids_resize(s, arena, s.id_capacity // 2)   # without memory it stays as large as it is


# ---- the front of a group ----

cdef inline int front_reserve(watch_group *g, Arena *arena, uint32_t count) noexcept nogil:
    """Room for `count` at the front."""
    cdef uint32_t capacity
    cdef watcher **grown
    if count <= g.front_capacity:
        return 0
    capacity = g.front_capacity * 2
    grown = <watcher **>arena_alloc(arena, capacity * sizeof(void *))
    if grown == NULL:
        return -1
    memcpy(grown, g.front, g.front_count * sizeof(void *))
    if g.front_capacity > 1:
        arena_free(arena, g.front, g.front_capacity * sizeof(void *))
    g.front = grown
    g.front_capacity = capacity
    return 0


cdef inline void front_add(watch_group *g, watcher *w) noexcept nogil:
    """Precondition: there is room."""
    w.place = g.front_count
    g.front[g.front_count] = w
    g.front_count += 1


cdef inline void front_remove(watch_group *g, watcher *w) noexcept nogil:
    """Those before the buffer's cursor stay before it, the others behind it."""
    cdef uint32_t hole = w.place
    cdef watcher *moved
    if g.buffer != NULL and hole < g.buffer.cursor:
        g.buffer.cursor -= 1
        moved = g.front[g.buffer.cursor]
        g.front[hole] = moved
        moved.place = hole
        hole = g.buffer.cursor
    g.front_count -= 1
    moved = g.front[g.front_count]
    g.front[hole] = moved
    moved.place = hole


cdef inline void front_shrink(watch_group *g, Arena *arena) noexcept nogil:
    """Give back what a group that was once larger does not need; places stay."""
    cdef uint32_t capacity = g.front_capacity
    cdef watcher **smaller
    if capacity <= 4 or g.watchers * 4 >= capacity:
        return
    capacity //= 2
    smaller = <watcher **>arena_alloc(arena, capacity * sizeof(void *))
    if smaller == NULL:
        return
    memcpy(smaller, g.front, g.front_count * sizeof(void *))
    arena_free(arena, g.front, g.front_capacity * sizeof(void *))
    g.front = smaller
    g.front_capacity = capacity


# ---- those who lag ----

cdef inline void lag_add(watcher *w, int64_t next_rev) noexcept nogil:
    """Into the lists of its stream and its group, last in turn. Precondition: not at the front."""
    cdef watch_stream *s = w.stream
    cdef watch_group *g = w.group
    if w.flags & WATCHER_FUTURE:
        s.futures -= 1
    w.flags = (w.flags & ~<uint32_t>(WATCHER_AHEAD | WATCHER_FUTURE)) | WATCHER_LAGGING
    w.next_rev = next_rev
    if s.lag_head == NULL:
        s.lag_head = w.stream_next = w.stream_prev = w
    else:
        w.stream_next = s.lag_head
        w.stream_prev = s.lag_head.stream_prev
        w.stream_prev.stream_next = w
        s.lag_head.stream_prev = w
    s.lagging += 1
    w.group_next = NULL
    w.group_prev = g.lag_last
    if g.lag_last != NULL:
        g.lag_last.group_next = w
    else:
        g.lag_first = w
    g.lag_last = w


cdef inline void lag_remove(watcher *w) noexcept nogil:
    cdef watch_stream *s = w.stream
    cdef watch_group *g = w.group
    w.flags &= ~<uint32_t>WATCHER_LAGGING
    s.lagging -= 1
    if s.lagging == 0:
        s.lag_head = NULL
    else:
        if s.lag_head == w:
            s.lag_head = w.stream_next
        w.stream_next.stream_prev = w.stream_prev
        w.stream_prev.stream_next = w.stream_next
    if w.group_prev != NULL:
        w.group_prev.group_next = w.group_next
    else:
        g.lag_first = w.group_next
    if w.group_next != NULL:
        w.group_next.group_prev = w.group_prev
    else:
        g.lag_last = w.group_prev
