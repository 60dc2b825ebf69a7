"""Which live key below a prefix was created first, or last before a revision: what locks and elections ask.

Only the index is looked at, at the current revision: a revoke may be under way in slices. One thread.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t

from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.revindex cimport SCAN_DONE, KeyInfo, Scan

cdef enum:
    BATCH = 128
    KEY_BYTES_MAX = 536870912   # as --max-request-bytes; lengths in the index have 32 bits


cdef class KeyOrder:
    """Errors: ValueError for a prefix that does not end with a slash, StoreCorrupt as Mvcc.get."""

    cdef Mvcc mvcc

    def __cinit__(self, Mvcc mvcc):
        self.mvcc = mvcc

    def first_created(self, bytes prefix):
        """The stored KeyValue of the key with the lowest create revision, or None. Of equal ones the lowest key."""
        key = self.pick(prefix, 0)
        if key is None:
            return None
        return self.mvcc.get(key, self.mvcc.current)[3]

    def last_created(self, bytes prefix, int64_t create_max):
        """The key with the highest create revision <= create_max, or None. Of equal ones the lowest key."""
        if create_max < 1:
            return None
        return self.pick(prefix, create_max)

    cdef bytes pick(self, bytes prefix, int64_t create_max):
        """create_max 0: the first created, else the last."""
        cdef KeyInfo found[BATCH]
        cdef Scan scan
        cdef Py_ssize_t size = PyBytes_GET_SIZE(prefix)
        cdef bytes end, at, best = None
        cdef int64_t best_main = 0
        cdef int64_t main
        cdef int count, i
        cdef int take
        cdef bint exclusive = False
        if size == 0 or size > KEY_BYTES_MAX or PyBytes_AS_STRING(prefix)[size - 1] != 47:
            raise ValueError("a prefix ends with a slash")
        end = prefix[:size - 1] + b"0"  # the byte behind the slash
        at = prefix
        while True:
            count = self.mvcc.index.range_batch(
                PyBytes_AS_STRING(at), <uint32_t>PyBytes_GET_SIZE(at), exclusive, PyBytes_AS_STRING(end),
                <uint32_t>size, self.mvcc.current, found, BATCH, 1 << 30, &scan)
            if count < 0:
                raise ValueError(f"revision index: status {count}")
            take = -1
            for i in range(count):
                main = found[i].create_main
                if create_max == 0:
                    if best_main and main >= best_main:
                        continue
                elif main > create_max or main <= best_main:
                    continue
                best_main = main
                take = i
            if take >= 0:
                best = PyBytes_FromStringAndSize(found[take].key, found[take].key_len)
            if scan.state == SCAN_DONE:
                return best
            at = PyBytes_FromStringAndSize(scan.resume_key, scan.resume_len)
            exclusive = True
