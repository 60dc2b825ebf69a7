"""Waiting awake for what will come within microseconds, when there is almost nothing else to do.

A process that sleeps while its only request is under way lets its core halt, and each wake-up of a halted
core costs a virtual machine some 20 us: more than all work on a put. So with one or two requests under way
the loops look again and again, yielding to whoever can run, for SPIN_NS at most. With more, nobody spins:
the cores are busy anyway. Where a wait was in vain (a slow disk, a long read) the next SPIN_REST waits sleep
at once.
"""

from libc.stdint cimport uint32_t


cdef extern from "<sched.h>" nogil:
    int sched_yield()


cdef enum:
    SPIN_NS = 250000
    SPIN_REQUESTS_MAX = 2
    SPIN_REST = 64


ctypedef struct spin_t:
    uint32_t rest  # waits to go that sleep at once
    bint warm      # the last work was one or two requests, and no wait since was in vain


cdef inline void spin_note(spin_t *s, uint32_t requests) noexcept nogil:
    """Some requests were worked on."""
    if requests:
        s.warm = requests <= SPIN_REQUESTS_MAX


cdef inline bint spin_pays(spin_t *s) noexcept nogil:
    """Whether this wait may spin."""
    if not s.warm:
        return False
    if s.rest:
        s.rest -= 1
        return False
    return True


cdef inline void spin_in_vain(spin_t *s) noexcept nogil:
    s.rest = SPIN_REST
    s.warm = False
