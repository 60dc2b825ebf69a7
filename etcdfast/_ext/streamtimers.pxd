"""Deadlines of streams: a timing wheel, O(1) to set and to stop, one list per tick.

A deadline beyond the wheel's span goes round again. A timer fires at most one tick late.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from etcdfast._ext.h2types cimport h2_stream

cdef enum:
    TIMER_SLOTS = 1024
    TIMER_WORDS = 16         # bits of the slots
    TIMER_TICK_SHIFT = 23    # 8.4 ms; the wheel spans 8.6 s


ctypedef struct timers_t:
    h2_stream *wheel[TIMER_SLOTS]
    uint64_t bits[TIMER_WORDS]   # slots that hold a timer
    uint64_t tick                # slots up to here have been looked at
    h2_stream *due               # of that slot, not looked at yet
    uint32_t count


cdef inline void timer_stop(timers_t *t, h2_stream *s) noexcept nogil:
    cdef uint32_t slot
    if s.timer_slot < 0:
        return
    slot = <uint32_t>s.timer_slot
    if t.due == s:
        t.due = s.timer_next
    if s.timer_prev != NULL:
        s.timer_prev.timer_next = s.timer_next
    else:
        t.wheel[slot] = s.timer_next
        if s.timer_next == NULL:
            t.bits[slot >> 6] &= ~(<uint64_t>1 << (slot & 63))
    if s.timer_next != NULL:
        s.timer_next.timer_prev = s.timer_prev
    s.timer_slot = -1
    t.count -= 1


cdef inline void timer_set(timers_t *t, h2_stream *s, uint64_t deadline_ns) noexcept nogil:
    cdef uint64_t tick = (deadline_ns >> TIMER_TICK_SHIFT) + 1
    cdef uint32_t slot
    timer_stop(t, s)
    s.deadline_ns = deadline_ns
    if tick <= t.tick:
        tick = t.tick + 1
    elif tick >= t.tick + TIMER_SLOTS:
        tick = t.tick + TIMER_SLOTS - 1
    slot = <uint32_t>(tick & (TIMER_SLOTS - 1))
    s.timer_prev = NULL
    s.timer_next = t.wheel[slot]
    if s.timer_next != NULL:
        s.timer_next.timer_prev = s
    t.wheel[slot] = s
    t.bits[slot >> 6] |= <uint64_t>1 << (slot & 63)
    s.timer_slot = <int32_t>slot
    t.count += 1


cdef inline h2_stream *timer_expired(timers_t *t, uint64_t now_ns) noexcept nogil:
    """The next stream whose deadline has passed, taken off the wheel; NULL when there is none.

    Any stream may be stopped, set or freed between two calls.
    """
    cdef uint64_t tick = now_ns >> TIMER_TICK_SHIFT
    cdef h2_stream *s
    if t.due == NULL and tick - t.tick > TIMER_SLOTS:
        t.tick = tick - TIMER_SLOTS
    while True:
        while t.due != NULL:
            s = t.due
            timer_stop(t, s)   # moves t.due on
            if s.deadline_ns <= now_ns:
                return s
            timer_set(t, s, s.deadline_ns)
        if t.tick >= tick:
            return NULL
        t.tick += 1
        t.due = t.wheel[t.tick & (TIMER_SLOTS - 1)]


cdef inline int timer_wait_ms(timers_t *t, uint64_t now_ns) noexcept nogil:
    """Until the next slot that holds a timer; -1 when none does."""
    cdef uint32_t ahead = 1
    cdef uint32_t slot
    cdef uint64_t word
    cdef uint64_t due
    if t.count == 0:
        return -1
    while ahead < TIMER_SLOTS:
        slot = <uint32_t>((t.tick + ahead) & (TIMER_SLOTS - 1))
        word = t.bits[slot >> 6] >> (slot & 63)
        if word & 1:
            break
        ahead += 1 if word else 64 - (slot & 63)
    due = (t.tick + ahead) << TIMER_TICK_SHIFT
    return <int>((due - now_ns) // 1000000 + 1) if due > now_ns else 0
