"""Events, and reading past ones; see watchhistory.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.changes cimport kv_change
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbuf cimport outbuf


cdef int event_append(outbuf *out, const kv_change *change, const uint8_t *prev, uint64_t prev_size) noexcept nogil:
    return 0


cdef bytes previous_of(Mvcc mvcc, const uint8_t *key, uint32_t key_len, int64_t main):
    return None


cdef class History:

    cdef int open(
        self, Mvcc mvcc, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len,
        int options, int64_t from_rev
    ) except -1:
        return HISTORY_FRONT

    cdef int step(self, outbuf *events, event_cuts *cuts, int64_t budget, uint64_t bytes_max) except -1:
        return HISTORY_FRONT
