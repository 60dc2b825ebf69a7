"""One Range at a pinned revision, run in steps: scan, select, size, emit.

A run owns copies of its keys, so neither the request's bytes nor the index need to stand still between
two steps. Memory: O(limit) for a sorted range with a limit, one small entry per key for one without,
nothing per key for a range in key order. Source: reference/formats.md 9.2.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from cpython.ref cimport PyObject

from etcdfast._ext.kvreq cimport range_request
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbuf cimport outbuf

# One key that a sorted range keeps. `record` is owned, and only there when values are compared.
ctypedef struct selected:
    int64_t number          # what is compared, for number targets
    int64_t main
    const uint8_t *value    # what is compared for VALUE; inside record
    uint64_t value_len
    PyObject *record
    uint32_t sub
    uint32_t emit_size      # bytes of the KeyValue in the answer


# Less than 0: a comes first.
ctypedef int (*comparator)(const void *a, const void *b) noexcept nogil

cdef enum:
    RANGE_MORE = 0
    RANGE_END = 1
    RANGE_BROKEN = -1       # a Python exception is set

# Phases of a run, in order; a range in key order has no SELECT.
cdef enum:
    PHASE_SELECT = 0        # collect what a sort or filter needs
    PHASE_EMIT = 1
    PHASE_DONE = 2


cdef class RangeRun:
    cdef Mvcc mvcc
    cdef range_request request
    cdef bytes key
    cdef bytes end
    cdef bytes resume           # last key handled of the pass under way, None at its start
    cdef readonly int64_t revision   # pinned
    cdef readonly int64_t count      # keys in range, -1 until known
    cdef readonly bint more
    cdef readonly int phase
    cdef bint ordered           # in key order: nothing to select
    cdef bint descending        # by key
    cdef bint by_index          # keys_only from the index: no record has a lease
    cdef bint filtered
    cdef bint first_only        # a target without order: etcd sorts only the first keys up to the limit
    cdef comparator compare     # NULL: keys stay in the order met
    cdef object walk            # iterator of the store while records are met in revision order
    cdef int64_t take           # keys to emit at most, -1 all
    cdef int64_t emitted
    cdef int64_t passed         # keys that passed the filters, in SELECT
    cdef selected *chosen
    cdef int64_t chosen_count
    cdef int64_t chosen_capacity
    cdef int64_t chosen_bytes   # of records held
    cdef int64_t size_count     # of the size pass
    cdef int64_t size_bytes
    cdef bytes size_resume

    # SELECT or EMIT for up to `budget` index records and about `bytes_max` bytes of output; kvs are
    # written to `out` as field 2 of RangeResponse. RANGE_*.
    cdef int step(self, outbuf *out, int64_t budget, uint64_t bytes_max) except RANGE_BROKEN
    # Bytes that the kvs still to be emitted take; in steps of `budget`. RANGE_MORE until *total is right.
    cdef int size_step(self, int64_t budget, int64_t *total) except RANGE_BROKEN
    # more and count, as fields 3 and 4.
    cdef void tail(self, outbuf *out) noexcept nogil

    cdef int select_step(self, int64_t budget) except RANGE_BROKEN
    cdef int select(self, void *info) except RANGE_BROKEN
    cdef int emit_chosen(self, outbuf *out, uint64_t bytes_max) except RANGE_BROKEN
    cdef int emit_ordered(self, outbuf *out, int64_t budget, uint64_t bytes_max) except RANGE_BROKEN
    cdef bytes step_to(self, int64_t main, int64_t sub)
    cdef int emit_record(self, outbuf *out, bytes record) except RANGE_BROKEN
    cdef int emit_stored(self, outbuf *out, int64_t main, int64_t sub) except RANGE_BROKEN
    cdef uint64_t size_without_value(self, int64_t main, int64_t sub) except? 0
    cdef int batch(self, bytes resume, void *found, int cap, int64_t budget, void *scan) except -2
    cdef void drop_chosen(self) noexcept


# Error id of a range that cannot be read at its revision, 0 when it can.
cdef uint32_t range_refused(Mvcc mvcc, const range_request *r) noexcept nogil
cdef RangeRun range_open(Mvcc mvcc, const range_request *r)
# The whole RangeResponse body without its header (fields 2 to 4) of a range that was not refused.
cdef int range_whole(Mvcc mvcc, const range_request *r, outbuf *out) except -1
