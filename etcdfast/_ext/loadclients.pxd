# Clients in a closed loop: which request comes next, when the rate lets it go, and whose turn it is.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset, strlen

from etcdfast._ext.loadstats cimport count_error
from etcdfast._ext.loadsys cimport (
    __ATOMIC_RELAXED, TFD_TIMER_ABSTIME, __atomic_fetch_add, __atomic_load_n, itimerspec, timerfd_settime,
)
from etcdfast._ext.loadtypes cimport (
    CLIENT_DONE, CLIENT_INFLIGHT, CLIENT_LIMITED, CLIENT_READY, READ_WATCH, STEP_BEGIN, STEP_UNLOCK, Client, Conn, Load,
    mix64,
)


cdef inline void mark_dirty(Load* g, Conn* c) noexcept nogil:
    if not c.dirty:
        c.dirty = 1
        g.dirty[g.dirty_count] = <int32_t>(c - g.conns)
        g.dirty_count += 1


cdef inline void push_ready(Load* g, int32_t i) noexcept nogil:
    cdef Conn* c = &g.conns[g.clients[i].conn]
    g.clients[i].state = CLIENT_READY
    g.clients[i].next = -1
    if c.ready_head < 0:
        c.ready_head = i
    else:
        g.clients[c.ready_tail].next = i
    c.ready_tail = i
    mark_dirty(g, c)


cdef inline void release_slots(Load* g, int64_t now) noexcept nogil:
    """Hand over the clients whose slot has come and set the timer for the next one."""
    cdef itimerspec timer
    cdef Client* client = NULL
    cdef int32_t i
    cdef int64_t stopping
    while g.limited_count:
        i = g.limited[g.limited_head]
        client = &g.clients[i]
        stopping = __atomic_load_n(g.stop_flag, __ATOMIC_RELAXED)
        if client.slot_ns > now and not stopping:
            break
        g.limited_head += 1
        if g.limited_head == g.load_clients:
            g.limited_head = 0
        g.limited_count -= 1
        if stopping:
            client.state = CLIENT_DONE
            g.running -= 1
        else:
            client.start_ns = now
            push_ready(g, i)
    if g.limited_count and g.timer_armed_ns != client.slot_ns:
        memset(&timer, 0, sizeof(timer))
        timer.it_value.tv_sec = client.slot_ns // 1000000000
        timer.it_value.tv_nsec = client.slot_ns % 1000000000
        timerfd_settime(g.timer_fd, TFD_TIMER_ABSTIME, &timer, NULL)
        g.timer_armed_ns = client.slot_ns


cdef inline void next_request(Load* g, int32_t i, int64_t now) noexcept nogil:
    """Give client i its next request, or end it when all are taken."""
    cdef Client* client = &g.clients[i]
    cdef uint64_t r
    if not __atomic_load_n(g.stop_flag, __ATOMIC_RELAXED):
        client.index = __atomic_fetch_add(g.next_index, 1, __ATOMIC_RELAXED)
    else:
        client.index = g.total
    if client.index >= g.total:
        client.state = CLIENT_DONE
        g.running -= 1
        return
    if g.load_kinds > 1:
        r = mix64(g.seed ^ <uint64_t>client.index * 0x2545F491)
        client.kind = 0 if (r >> 32) < g.read_share else 1
    if g.interval_ns:
        g.last_slot_ns = max(g.last_slot_ns + g.interval_ns, now)
        client.slot_ns = g.last_slot_ns
        client.state = CLIENT_LIMITED
        g.limited[(g.limited_head + g.limited_count) % g.load_clients] = i
        g.limited_count += 1
        if g.limited_count == 1:
            release_slots(g, now)
        return
    client.start_ns = now
    push_ready(g, i)


cdef inline void settle(Load* g, int32_t i, int64_t now) noexcept nogil:
    __atomic_fetch_add(g.done_count, 1, __ATOMIC_RELAXED)
    g.end_ns = now
    next_request(g, i, now)




cdef inline void lose_request(Load* g, int32_t i, int32_t code, const uint8_t* text, size_t text_bytes,
                              int64_t now) noexcept nogil:
    """The stream of client i has ended before its time, and is gone already.

    A watch stream is not opened again: what its watchers missed would be counted as what the server failed
    to send. A held stream that ends between two requests is opened anew by the next one.
    """
    cdef Client* client = &g.clients[i]
    if client.reads == READ_WATCH:
        count_error(g, code, text, text_bytes)
        g.streams_lost += 1
        if client.state != CLIENT_DONE:
            client.state = CLIENT_DONE
            g.running -= 1
    elif client.state == CLIENT_INFLIGHT:
        count_error(g, code, text, text_bytes)
        if client.stm != NULL:
            # others wait for the lock: give it back, unless just that has failed
            if client.stm.locked and client.stm.step != STEP_UNLOCK:
                client.stm.failed = 1
                client.stm.step = STEP_UNLOCK
                push_ready(g, i)
                return
            client.stm.step = STEP_BEGIN
        settle(g, i, now)


cdef inline void fail_request(Load* g, int32_t i, int32_t code, const char* text, int64_t now) noexcept nogil:
    """Count client i's request as failed and go on to its next one. Its stream is gone already."""
    lose_request(g, i, code, <const uint8_t*>text, strlen(text), now)
