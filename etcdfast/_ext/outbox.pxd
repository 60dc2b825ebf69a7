"""What apply sends: answers to the frontends, requests of its own to consensus; and its sleep.

Answers of a turn gather in the outbox and leave with `deliver`, which waits for room: a frontend always
drains its ring. Requests of apply's own never wait: without room `propose` says so.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from etcdfast._ext.longread cimport asker
from etcdfast._ext.outbuf cimport outbuf
from etcdfast._ext.ring cimport ring_view

cdef enum:
    FRONTENDS_MAX = 64
    PEER_SHARE_OF_RING = 2   # of the ring to consensus: a larger answer to another member is an error instead


cdef class Outbox:
    cdef list rings             # keeps the Ring objects alive
    cdef ring_view *af[FRONTENDS_MAX]
    cdef int frontends
    cdef ring_view *ac
    cdef int epoll
    cdef int life
    cdef bint stopping
    cdef outbuf records         # ipc_records, in order
    cdef list own               # [(token, status, payload)] answers to apply's own requests
    cdef object members         # deque of (token, status, payload): answers to other members, while there is no room

    # Append a record.
    cdef int post(self, const asker *who, int kind, int status, const void *data, uint64_t size) except -1
    # BEGIN of a message of `size` bytes, whose PARTs follow.
    cdef int begin(self, const asker *who, uint64_t size) except -1
    # Bring the records into the rings; waits for room.
    cdef int deliver(self) except -1
    cdef void publish(self) noexcept nogil
    # A request of apply's own; `token` gets its answer in `own`, 0 when nobody waits. False: no room now. In whose name:
    # the last `user_bytes` of the data, known since `auth_revision`; 0: nobody's.
    cdef bint propose(self, int method, int flags, const void *data, uint64_t size, uint32_t token,
                      uint32_t user_bytes=*, uint64_t auth_revision=*) noexcept nogil
    # A record for consensus that is no request. False: no room now.
    cdef bint tell(self, int kind, uint64_t index, uint32_t status, const void *data, uint64_t size) noexcept nogil
    # FORWARD to the leader; what comes back has the token. False: no room now.
    cdef bint forward(self, int method, const void *data, uint64_t size, uint32_t token, uint64_t deadline_ns) noexcept nogil
    # A ReadIndex of apply's own; `token` gets its answer in `own`. False: no room now.
    cdef bint read_index(self, int method, uint32_t token, uint64_t deadline_ns) noexcept nogil
    # PEER_REPLYs that there is room for.
    cdef int answer_members(self) except -1
    cdef bint ask(self, int kind, int method, int flags, int frontend, uint32_t token, uint64_t deadline_ns,
                  const void *data, uint64_t size, uint32_t user_bytes, uint64_t auth_revision) noexcept nogil
    cdef int wait_room(self, ring_view *ring, uint32_t length) except -1
    # Sleep until something rings the doorbell or a signal came; how many descriptors spoke.
    cdef int wait_events(self, int timeout_ms) except -1
