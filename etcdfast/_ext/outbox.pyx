"""What apply sends, and its sleep; see outbox.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close, read

from etcdfast._ext.errids cimport ERR_INTERNAL
from etcdfast._ext.longread cimport asker, record_to
from etcdfast._ext.netsys cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, epoll_create1, epoll_ctl, epoll_event, epoll_wait,
)
from etcdfast._ext.outbuf cimport outbuf_free, outbuf_init, outbuf_reserve, outbuf_reset
from etcdfast._ext.ring cimport (
    IPC_BEGIN, IPC_FORWARD, IPC_MEMBER, IPC_NOBODY, IPC_PEER_REPLY, IPC_PROPOSE, IPC_READ, IPC_SELF, Ring, ipc_record,
    record_payload, ring_await_room, ring_claim, ring_commit, ring_publish, ring_view,
)

from collections import deque

cdef enum:
    ROOM_WAIT_MS = 1000


class LoopError(Exception):
    """The rings or the log handed over break their contract: the member must stop."""


class SupervisorGone(Exception):
    """The supervisor ended: so does this process, at once."""


cdef class Outbox:
    """`life` reads end of file when the supervisor is gone; `wake` is a pipe that signals write to.

    Errors: OSError.
    """

    def __cinit__(self, list to_frontends, Ring to_consensus, int doorbell, int life, int wake):
        cdef Ring ring
        cdef epoll_event event
        cdef int fd
        self.epoll = -1
        outbuf_init(&self.records)
        self.rings = [*to_frontends, to_consensus]
        self.own = []
        self.members = deque()
        self.frontends = len(to_frontends)
        if not 0 < self.frontends <= FRONTENDS_MAX:
            raise LoopError(f"{self.frontends} frontends")
        for i, ring in enumerate(to_frontends):
            self.af[i] = &ring.view
        self.ac = NULL
        if to_consensus is not None:
            self.ac = &to_consensus.view
        self.life = life
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, "epoll_create1")
        for fd in (doorbell, life, wake):
            if fd < 0:
                continue
            event.events = EPOLLIN
            event.data.u64 = <uint64_t>fd
            if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) != 0:
                raise OSError(errno, "epoll_ctl")

    def __dealloc__(self):
        outbuf_free(&self.records)
        if self.epoll >= 0:
            close(self.epoll)

    cdef int post(self, const asker *who, int kind, int status, const void *data, uint64_t size) except -1:
        cdef uint64_t length = sizeof(ipc_record) + size
        cdef uint64_t padded = (length + 7) & ~<uint64_t>7
        cdef ipc_record *r
        if who.frontend == IPC_SELF:
            self.own.append((who.slot, status, PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>size)))
            return 0
        if who.frontend == IPC_MEMBER:
            self.members.append((<uint64_t>who.generation << 32 | who.slot, status,
                                 PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>size)))
            return 0
        r = <ipc_record *>outbuf_reserve(&self.records, padded)
        if r == NULL:
            raise MemoryError
        r.length = <uint32_t>length
        record_to(r, who, kind, <uint32_t>status)
        if size:
            memcpy(record_payload(r), data, size)
        self.records.size += padded
        return 0

    cdef int deliver(self) except -1:
        cdef uint64_t at = 0
        cdef ipc_record *r
        cdef ipc_record *to
        cdef ring_view *ring
        if self.records.size == 0:
            return 0
        while at < self.records.size:
            r = <ipc_record *>(self.records.data + at)
            at += (r.length + 7) & ~<uint64_t>7
            if r.frontend >= self.frontends:
                raise LoopError(f"an answer for frontend {r.frontend} of {self.frontends}")
            ring = self.af[r.frontend]
            to = ring_claim(ring, r.length)
            while to == NULL and self.wait_room(ring, r.length):
                to = ring_claim(ring, r.length)
            if to != NULL:
                memcpy(to, r, r.length)
                ring_commit(ring, to)
        self.publish()
        outbuf_reset(&self.records)
        return 0

    cdef void publish(self) noexcept nogil:
        cdef int i
        for i in range(self.frontends):
            ring_publish(self.af[i])

    cdef int begin(self, const asker *who, uint64_t size) except -1:
        cdef uint64_t at = self.records.size
        self.post(who, IPC_BEGIN, 0, NULL, 0)
        (<ipc_record *>(self.records.data + at)).index = size
        return 0

    cdef bint ask(self, int kind, int method, int flags, int frontend, uint32_t token, uint64_t deadline_ns,
                  const void *data, uint64_t size, uint32_t user_bytes, uint64_t auth_revision) noexcept nogil:
        """One record for consensus; False: no room now."""
        cdef ipc_record *r
        if self.ac == NULL or self.stopping:
            return False
        r = ring_claim(self.ac, <uint32_t>(sizeof(ipc_record) + size))
        if r == NULL:
            return False
        memset(<char *>r + 4, 0, sizeof(ipc_record) - 4)
        r.kind = <unsigned char>kind
        r.method = <unsigned char>method
        r.flags = <unsigned char>flags
        r.frontend = <unsigned char>frontend
        r.slot = token
        r.term = deadline_ns
        r.status = user_bytes
        r.index = auth_revision
        if size:
            memcpy(record_payload(r), data, size)
        ring_commit(self.ac, r)
        ring_publish(self.ac)
        return True

    cdef bint tell(self, int kind, uint64_t index, uint32_t status, const void *data, uint64_t size) noexcept nogil:
        cdef ipc_record *r
        if self.ac == NULL or self.stopping:
            return False
        r = ring_claim(self.ac, <uint32_t>(sizeof(ipc_record) + size))
        if r == NULL:
            return False
        memset(<char *>r + 4, 0, sizeof(ipc_record) - 4)
        r.kind = <unsigned char>kind
        r.frontend = IPC_NOBODY
        r.index = index
        r.status = status
        if size:
            memcpy(record_payload(r), data, size)
        ring_commit(self.ac, r)
        ring_publish(self.ac)
        return True

    cdef bint propose(self, int method, int flags, const void *data, uint64_t size, uint32_t token,
                      uint32_t user_bytes=0, uint64_t auth_revision=0) noexcept nogil:
        return self.ask(IPC_PROPOSE, method, flags, IPC_SELF if token else IPC_NOBODY, token, 0, data, size,
                        user_bytes, auth_revision)

    cdef bint forward(self, int method, const void *data, uint64_t size, uint32_t token, uint64_t deadline_ns) noexcept nogil:
        return self.ask(IPC_FORWARD, method, 0, IPC_SELF, token, deadline_ns, data, size, 0, 0)

    cdef bint read_index(self, int method, uint32_t token, uint64_t deadline_ns) noexcept nogil:
        return self.ask(IPC_READ, method, 0, IPC_SELF, token, deadline_ns, NULL, 0, 0, 0)

    cdef int answer_members(self) except -1:
        cdef bytes payload
        cdef uint64_t size
        if self.ac == NULL or self.stopping:
            self.members.clear()
            return 0
        while self.members:
            token, status, payload = self.members[0]
            size = <uint64_t>PyBytes_GET_SIZE(payload)
            if size > self.ac.capacity // PEER_SHARE_OF_RING:
                status, payload, size = ERR_INTERNAL, b"", 0
            if not self.tell(IPC_PEER_REPLY, token, status, PyBytes_AS_STRING(payload), size):
                break
            self.members.popleft()
        return 0

    cdef int wait_room(self, ring_view *ring, uint32_t length) except -1:
        """Wait for room: a frontend always drains this ring. 0 when there will be none: this process is told to
        stop only when the frontends have ended, and what their clients asked for is not lost with the answer."""
        ring_publish(ring)
        while not ring_await_room(ring, length):
            if self.stopping:
                return 0
            self.wait_events(ROOM_WAIT_MS)
        return 1

    cdef int wait_events(self, int timeout_ms) except -1:
        cdef epoll_event events[4]
        cdef uint64_t drained
        cdef int count, i, fd
        with nogil:
            count = epoll_wait(self.epoll, events, 4, timeout_ms)
        if count < 0 and errno != EINTR:
            raise OSError(errno, "epoll_wait")
        for i in range(count):
            fd = <int>events[i].data.u64
            if fd == self.life:
                raise SupervisorGone
            read(fd, &drained, 8)
        PyErr_CheckSignals()
        return max(count, 0)  # -1 is an interrupted wait here, and would read as an exception
