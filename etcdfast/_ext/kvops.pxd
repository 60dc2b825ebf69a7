"""Put, DeleteRange and Txn executed on the MVCC state, answers encoded as they are made.

Every function takes the request's bytes (in a ring or anywhere) and appends the whole response message
to `out`. It returns an ERR_ id; with an error nothing was changed and `out` holds rubbish to drop.
Sources: reference/formats.md 9.1 and 9.3; the order of checks is that of etcd's applier.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from etcdfast._ext.authtable cimport AuthTable, auth_caller
from etcdfast._ext.kvenc cimport header_ids
from etcdfast._ext.kvreq cimport bytes_view, compare_op, delete_request, put_request, range_request
from etcdfast._ext.leasetable cimport LeaseTable
from etcdfast._ext.mvcc cimport Mvcc
from etcdfast._ext.outbuf cimport outbuf

cdef enum:
    ALARM_NOSPACE = 1
    ALARM_CORRUPT = 2

cdef enum:
    OPS_FAILED = -1      # a Python exception is set
    OPS_MALFORMED = -2   # the request is no protobuf of its type


cdef class KvOps:
    cdef readonly Mvcc mvcc
    cdef header_ids ids          # of the ResponseHeader; kept up to date by the loop
    cdef public int alarms       # ALARM_* bits
    cdef readonly AuthTable auth # who may do what; apply/auth fills it
    cdef auth_caller caller      # of the request at hand; `free` while auth is off. Set before each of these three
    cdef LeaseTable leases       # None: no lease exists
    cdef int64_t compared_at     # revision that compares look at, 0: whatever is newest in the index
    cdef uint32_t ranges         # of the transaction that runs, as etcd counts them
    cdef uint32_t writes
    cdef outbuf path             # which branch each transaction reached takes, one byte each
    cdef uint64_t path_at        # next of those bytes
    cdef outbuf deletes          # delete_requests met while checking puts, in order of execution

    # ERR_ id, or OPS_*.
    cdef int put(self, const bytes_view *message, outbuf *out) except OPS_FAILED
    cdef int delete_range(self, const bytes_view *message, outbuf *out) except OPS_FAILED
    cdef int txn(self, const bytes_view *message, bint read_only, outbuf *out) except OPS_FAILED
    cdef void header(self, outbuf *out, int64_t revision) noexcept nogil

    cdef void count_txn(self) noexcept nogil
    # Whether the caller may: 0 or ERR_ id, of a transaction also OPS_MALFORMED. Both branches of all levels count.
    cdef int may_put(self, const put_request *r) noexcept nogil
    cdef int may_delete(self, const delete_request *r) noexcept nogil
    cdef int may_txn(self, const bytes_view *message, int depth) noexcept nogil
    cdef bint lease_exists(self, int64_t lease) noexcept nogil
    cdef int do_put(self, const put_request *r, outbuf *out, bint nested) except OPS_FAILED
    cdef int do_delete(self, const delete_request *r, outbuf *out, bint nested) except OPS_FAILED
    cdef int do_range(self, const range_request *r, outbuf *out) except OPS_FAILED
    cdef int put_previous(self, const delete_request *r, outbuf *out) except OPS_FAILED
    cdef int next_keys(
        self, const bytes_view *key, const bytes_view *end, bytes resume, int64_t at_rev, void *found, void *scan
    ) except OPS_FAILED
    cdef void nested_header(self, outbuf *out, int64_t revision) noexcept nogil
    cdef int choose(self, const bytes_view *message, int depth) except OPS_FAILED
    cdef int check(self, const bytes_view *message, int op) except OPS_FAILED
    cdef int check_op(self, int op, const bytes_view *inner) except OPS_FAILED
    cdef bint deleted_before(self, const bytes_view *key) noexcept nogil
    cdef int execute(self, const bytes_view *message, outbuf *out, uint64_t top) except OPS_FAILED
    cdef int holds(self, const compare_op *c) except OPS_FAILED
    cdef bint has_put(self, const bytes_view *message) noexcept nogil
