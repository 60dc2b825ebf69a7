"""Python handles of rings and status pages: set-up, tests and cold use. The hot functions are in ring.h."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.string cimport memcpy, memset
from libc.stdint cimport uint32_t, uint64_t

import os


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED
    void *MAP_FAILED

STATUS_PAGE_BYTES = 4096
RECORD_HEADER_BYTES = sizeof(ipc_record)

KINDS = {
    "PROPOSE": IPC_PROPOSE, "READ": IPC_READ, "CALL": IPC_CALL, "CREDIT": IPC_CREDIT, "CANCEL": IPC_CANCEL,
    "ENTRY": IPC_ENTRY, "REFUSE": IPC_REFUSE, "HARD": IPC_HARD, "REPLY": IPC_REPLY, "MESSAGE": IPC_MESSAGE,
    "BEGIN": IPC_BEGIN, "PART": IPC_PART, "END": IPC_END, "HALF": IPC_HALF, "EVENTS": IPC_EVENTS,
    "PEER": IPC_PEER, "PEER_REPLY": IPC_PEER_REPLY, "FORWARD": IPC_FORWARD, "FORWARDED": IPC_FORWARDED,
    "SNAPSHOT": IPC_SNAPSHOT, "SNAPSHOT_DONE": IPC_SNAPSHOT_DONE, "MEMBERS": IPC_MEMBERS,
}
NOBODY = IPC_NOBODY
SELF = IPC_SELF
FLAG_NEW_ID = IPC_FLAG_NEW_ID

# Of both pages, written and read by Python alone: CLOCK_MONOTONIC when the loop last came round, 0 before it runs.
ALIVE_WORD = 63

CONSENSUS_WORDS = {
    "member_id": ST_MEMBER_ID, "cluster_id": ST_CLUSTER_ID, "term": ST_TERM, "leader": ST_LEADER,
    "commit_index": ST_COMMIT_INDEX, "last_index": ST_LAST_INDEX, "handed_index": ST_HANDED_INDEX,
    "durable_index": ST_DURABLE_INDEX, "learner": ST_LEARNER, "wal_fsync_count": ST_WAL_FSYNC_COUNT,
    "wal_fsync_ns": ST_WAL_FSYNC_NS, "wal_bytes": ST_WAL_BYTES, "snapshot_index": ST_SNAPSHOT_INDEX,
    "ready": ST_CONSENSUS_READY, "opened": ST_CONSENSUS_OPENED, "leader_elected_ns": ST_LEADER_ELECTED_NS,
    "leader_lost_ns": ST_LEADER_LOST_NS, "connected_since_ns": ST_CONNECTED_SINCE_NS, "peers": ST_PEERS,
    "peers_active": ST_PEERS_ACTIVE, "leader_changes": ST_LEADER_CHANGES,
    "proposals_forwarded": ST_PROPOSALS_FORWARDED, "alive_ns": ALIVE_WORD,
    "cluster_version": ST_CLUSTER_VERSION,
}
APPLY_WORDS = {
    "applied_index": ST_APPLIED_INDEX, "applied_term": ST_APPLIED_TERM, "flushed_index": ST_FLUSHED_INDEX,
    "revision": ST_REVISION, "compacted": ST_COMPACTED, "db_bytes": ST_DB_BYTES,
    "db_in_use_bytes": ST_DB_IN_USE_BYTES, "quota_bytes": ST_QUOTA_BYTES, "alarms": ST_ALARMS,
    "keys": ST_KEYS, "index_bytes": ST_INDEX_BYTES, "ready": ST_APPLY_READY,
    "auth_enabled": ST_AUTH_ENABLED, "auth_revision": ST_AUTH_REVISION, "opened": ST_APPLY_OPENED,
    "watch_streams": ST_WATCH_STREAMS, "watchers": ST_WATCHERS, "slow_watchers": ST_SLOW_WATCHERS,
    "watch_events": ST_WATCH_EVENTS, "leases": ST_LEASES, "leases_granted": ST_LEASES_GRANTED,
    "leases_revoked": ST_LEASES_REVOKED, "leases_renewed": ST_LEASES_RENEWED, "leases_expired": ST_LEASES_EXPIRED,
    "alive_ns": ALIVE_WORD,
}


class RingError(Exception):
    """The shared ring could not be made, mapped or read."""


def format_ring(int fd, uint64_t capacity):
    """Make the memfd `fd` a ring of `capacity` data bytes (a power of two, at least 4096).

    Errors: RingError with the system's reason.
    """
    cdef int rc = ring_format(fd, capacity)
    if rc:
        raise RingError(f"ring of {capacity} bytes: {os.strerror(-rc)}")


cdef class Ring:
    """One side of the ring behind `fd`; `peer_doorbell` is the eventfd of the other process.

    Errors: RingError when fd is no ring.
    """

    def __cinit__(self, int fd, int peer_doorbell):
        memset(&self.view, 0, sizeof(ring_view))
        cdef int rc = ring_map(&self.view, fd, peer_doorbell)
        if rc:
            raise RingError(f"cannot map ring: {os.strerror(-rc)}")
        self.mapped = True

    def __dealloc__(self):
        if self.mapped:
            ring_unmap(&self.view)

    @property
    def capacity(self):
        return self.view.capacity

    @property
    def room(self):
        return ring_room(&self.view)

    def push(self, int kind, bytes payload=b"", *, int method=0, int frontend=IPC_NOBODY, int flags=0,
             uint32_t slot=0, uint32_t generation=0, uint32_t stream=0, uint32_t status=0,
             uint64_t index=0, uint64_t term=0, bint publish=True):
        """Write one record; False while it does not fit. Errors: RingError when it never can."""
        cdef uint64_t length = sizeof(ipc_record) + <uint64_t>len(payload)
        cdef ipc_record *r
        if length > self.view.capacity:
            raise RingError(f"record of {length} bytes is larger than the ring ({self.view.capacity} bytes)")
        r = ring_claim(&self.view, <uint32_t>length)
        if r == NULL:
            return False
        r.kind = <unsigned char>kind
        r.method = <unsigned char>method
        r.frontend = <unsigned char>frontend
        r.flags = <unsigned char>flags
        r.slot = slot
        r.generation = generation
        r.stream = stream
        r.status = status
        r.index = index
        r.term = term
        memcpy(record_payload(r), <char *>payload, len(payload))
        ring_commit(&self.view, r)
        if publish:
            ring_publish(&self.view)
        return True

    def publish(self):
        ring_publish(&self.view)

    def pop(self):
        """The next record as a dict with `payload` bytes, or None. Errors: RingError on a broken ring."""
        cdef ipc_record *r = ring_peek(&self.view)
        if r == NULL:
            if ring_broken(&self.view):
                raise RingError("ring holds a record that runs past its published bytes")
            return None
        found = {
            "kind": r.kind, "method": r.method, "frontend": r.frontend, "flags": r.flags, "slot": r.slot,
            "generation": r.generation, "stream": r.stream, "status": r.status, "index": r.index,
            "term": r.term,
            "payload": PyBytes_FromStringAndSize(record_payload(r), record_payload_len(r)),
        }
        ring_advance(&self.view, r)
        ring_release(&self.view)
        return found

    def sleep(self):
        """Announce sleep; True when the ring is empty and the caller may wait on its doorbell."""
        return bool(ring_sleep(&self.view))

    def awake(self):
        ring_awake(&self.view)

    def await_room(self, uint32_t length):
        return bool(ring_await_room(&self.view, length))


cdef class StatusPage:
    """A shared page of 512 64-bit words behind `fd`; one process writes, all read."""

    def __cinit__(self, int fd):
        self.page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if self.page == MAP_FAILED:
            self.page = NULL
            raise RingError(f"cannot map status page: {os.strerror(errno)}")

    def __dealloc__(self):
        if self.page != NULL:
            munmap(self.page, 4096)

    def __getitem__(self, int word):
        if not 0 <= word < 512:
            raise IndexError(word)
        return status_get(self.page, word)

    def __setitem__(self, int word, uint64_t value):
        if not 0 <= word < 512:
            raise IndexError(word)
        status_put(self.page, word, value)
