"""CLOCK_MONOTONIC in nanoseconds, signed for differences."""

from libc.stdint cimport int64_t

from etcdfast._ext.netsys cimport clock_ns


cdef inline int64_t now_ns() noexcept nogil:
    return <int64_t>clock_ns()
