"""What time, clients and other members do to leases: expiry and checkpoints become proposals, keep-alives and
questions for the time left are answered, or passed on to the leader, whose clock alone counts.

A keep-alive that meets a lease on its way out waits until the lease is gone, and what its stream sends
meanwhile waits behind it: the answers of a stream keep their order. So it is with one that waits for the leader:
one FORWARD of a stream is under way at a time, and asked again every RETRY_NS until it is answered, refused for
good, or `timeout_ns` have passed.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from etcdfast._ext.authgate cimport AuthGate
from etcdfast._ext.kvreq cimport bytes_view
from etcdfast._ext.leaseops cimport LeaseOps
from etcdfast._ext.longread cimport asker
from etcdfast._ext.outbox cimport Outbox
from etcdfast._ext.outbuf cimport outbuf
from etcdfast._ext.ring cimport ipc_record

cdef enum:
    EXPIRE_BATCH = 256        # revokes proposed in a turn
    WAITING_MAX = 65536       # messages that wait, all streams together; more end their stream


cdef class LeaseClock:
    cdef readonly LeaseOps ops
    cdef Outbox out
    cdef AuthGate gate
    cdef void *page           # of consensus
    cdef int64_t timeout_ns   # that a call may wait for the leader
    cdef outbuf answer
    cdef dict waiting         # call key -> Waiter
    cdef dict parked          # lease id -> call keys whose first message waits for it
    cdef dict asked           # token of a FORWARD under way -> call key
    cdef object stalled       # deque of (time, call key): to be asked again then
    cdef list answers         # [(asker, response)] of LeaseTimeToLive, for the loop to send
    cdef uint32_t last_token
    cdef uint32_t messages    # in waiting
    cdef int64_t stalled_due_ns    # of the first in `stalled`
    cdef int64_t deadline_due_ns   # no call's time to wait for the leader is over before
    cdef int64_t not_before_ns     # when the ring had no room, the time to look again
    cdef uint64_t led_term         # in which this member was promoted last

    cdef void connect(self, Outbox out, AuthGate gate, void *consensus_page) noexcept
    # ERR_ id of why a keep-alive may not be, 0 none.
    cdef int refuses(self, ipc_record *r, bytes message) except -1
    # A record of a keep-alive stream: CALL, HALF or CANCEL.
    cdef int take(self, ipc_record *r) except -1
    # A LeaseTimeToLive behind the log; its answer comes in `answers`, an error goes out at once.
    cdef int time_to_live(self, const asker *who, bytes message) except -1
    # Nobody waits for that call any more. Whether it waited here.
    cdef bint cancel(self, key) except -1
    # PEER of a keep-alive or LeaseTimeToLive.
    cdef int member_asks(self, ipc_record *r) except -1
    # FORWARDED: what the leader said.
    cdef int leader_said(self, ipc_record *r) except -1
    # What is due by now. Called when next_due_ns() has come.
    cdef int step(self, int64_t now) except -1
    cdef int64_t next_due_ns(self) noexcept nogil
    # Ask again for those whose lease is gone; when ops.settled_count says so.
    cdef int settle(self) except -1
    # Whether this LeaseRevokeRequest names a lease that goes in slices.
    cdef bint is_large(self, const bytes_view *message) noexcept nogil
    # HARD: who leads has changed.
    cdef int lead(self, bint leads, uint64_t term, int64_t now) except -1
    cdef void figures(self, void *page) noexcept nogil

    cdef int ask(self, const asker *who, bytes message) except -2
    cdef int ask_waiting(self, key) except -1
    cdef int ask_leader(self, key) except -1
    cdef int ask_stalled(self, int64_t now) except -1
    cdef int time_out(self, int64_t now) except -1
    cdef int give(self, const asker *who) except -1
    cdef int refuse(self, const asker *who, int status) except -1
    cdef int give_member(self, const asker *who, bytes message, int status) except -2
    cdef void stall(self, key, int64_t now) noexcept
