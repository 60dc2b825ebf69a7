"""What time and clients do to leases: expiry and checkpoints become proposals, keep-alives are answered.

A keep-alive that meets a lease on its way out waits until the lease is gone, and what its stream sends
meanwhile waits behind it: the answers of a stream keep their order.
"""

from libc.stdint cimport int64_t, uint32_t

from etcdfast._ext.kvreq cimport bytes_view
from etcdfast._ext.leaseops cimport LeaseOps
from etcdfast._ext.longread cimport asker
from etcdfast._ext.outbox cimport Outbox
from etcdfast._ext.outbuf cimport outbuf
from etcdfast._ext.ring cimport ipc_record

cdef enum:
    EXPIRE_BATCH = 256        # revokes proposed in a turn
    WAITING_MAX = 65536       # keep-alives that wait, all streams together; more end their stream


cdef class LeaseClock:
    cdef readonly LeaseOps ops
    cdef Outbox out
    cdef outbuf answer
    cdef dict waiting         # stream key -> (asker as bytes, deque of messages; None for the client's end)
    cdef dict parked          # lease id -> stream keys whose first message waits for it
    cdef list unled           # stream keys that wait for this member to lead
    cdef uint32_t messages    # in waiting
    cdef int64_t not_before_ns   # when the ring had no room, the time to look again

    cdef void connect(self, Outbox out) noexcept
    # A record of a keep-alive stream: CALL, HALF or CANCEL.
    cdef int take(self, ipc_record *r) except -1
    # What is due by now. Called when next_due_ns() has come.
    cdef int step(self, int64_t now) except -1
    cdef int64_t next_due_ns(self) noexcept nogil
    # Ask again for those whose lease is gone; when ops.settled_count says so.
    cdef int settle(self) except -1
    # Whether this LeaseRevokeRequest names a lease that goes in slices.
    cdef bint is_large(self, const bytes_view *message) noexcept nogil
    cdef int promote(self, int64_t now) except -1
    cdef int demote(self) except -1
    cdef void figures(self, void *page) noexcept nogil

    cdef int ask(self, const asker *who, bytes message) except -2
    cdef int ask_waiting(self, key) except -1
