"""Shared figures for Python: the own process's (`attach`, then `count`, `put`, `observe`) and those of others
(`Meters`). The hot side is meters.pxd."""

from libc.errno cimport errno
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

import os

from etcdfast._ext.h2types cimport h2_counters


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED
    void *MAP_FAILED

cdef uint64_t private_block[METER_WORDS]
meters_block = private_block

BLOCK_BYTES = METER_BYTES
WORDS = {METER_NAMES[i].decode(): i for i in range(M_COUNT)}
HISTOGRAMS = {METER_SHAPES[i].name.decode(): i for i in range(H_COUNT)}
OPS = ("Put", "DeleteRange", "Txn", "Compaction", "LeaseGrant", "LeaseRevoke", "LeaseCheckpoint", "unknown")
PEER_WORDS = {
    "sent_bytes": PEER_SENT_BYTES, "received_bytes": PEER_RECEIVED_BYTES, "sent_failures": PEER_SENT_FAILURES,
    "received_failures": PEER_RECEIVED_FAILURES, "active": PEER_ACTIVE, "disconnected": PEER_DISCONNECTED,
    "snapshot_sending": PEER_SNAPSHOT_SENDING, "snapshot_sent": PEER_SNAPSHOT_SENT,
    "snapshot_send_failures": PEER_SNAPSHOT_SEND_FAILURES, "snapshot_receiving": PEER_SNAPSHOT_RECEIVING,
    "snapshot_received": PEER_SNAPSHOT_RECEIVED, "snapshot_receive_failures": PEER_SNAPSHOT_RECEIVE_FAILURES,
    "gone": PEER_GONE,
}
# name -> (word, first bound in ns, bounds)
PEER_HISTOGRAMS = {
    "round_trip": (PEER_ROUND_TRIP, 100_000, PEER_ROUND_TRIP_BOUNDS),
    "snapshot_send": (PEER_SNAPSHOT_SEND, 100_000_000, PEER_SNAPSHOT_BOUNDS),
    "snapshot_receive": (PEER_SNAPSHOT_RECEIVE, 100_000_000, PEER_SNAPSHOT_BOUNDS),
}

cdef uint64_t *map_block(int fd) except NULL:
    cdef void *found = mmap(NULL, METER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if found == MAP_FAILED:
        raise OSError(errno, f"cannot map the block of figures: {os.strerror(errno)}")
    return <uint64_t *>found


def attach(int fd):
    """The process's figures go into this block from now on; before any loop runs. Errors: OSError."""
    global meters_block
    meters_block = map_block(fd)


def count(str name, uint64_t n=1):
    meter_add(meters_block + <int>WORDS[name], n)


def put(str name, uint64_t value):
    meter_put(meters_block + <int>WORDS[name], value)


def observe(str name, uint64_t value):
    """In the units of the table in meters.h: nanoseconds, bytes, seconds of a TTL."""
    meter_observe_n(meters_block, HISTOGRAMS[name], value, 1)


cdef uint64_t *peer_of(uint64_t member) noexcept nogil:
    """The words of another member; NULL when there have been too many."""
    cdef uint64_t *words
    cdef int i
    for i in range(METER_PEERS_MAX):
        words = meters_block + METER_AT_PEERS + i * METER_PEER_WORDS
        if words[PEER_ID] == member:
            return words
        if words[PEER_ID] == 0:
            meter_put(words + PEER_ID, member)
            return words
    return NULL


def peer_count(uint64_t member, str name, uint64_t n=1):
    cdef uint64_t *words = peer_of(member)
    if words != NULL:
        meter_add(words + <int>PEER_WORDS[name], n)


def peer_put(uint64_t member, str name, uint64_t value):
    cdef uint64_t *words = peer_of(member)
    if words != NULL:
        meter_put(words + <int>PEER_WORDS[name], value)


def peer_observe(uint64_t member, str name, uint64_t ns):
    cdef uint64_t *words = peer_of(member)
    if words != NULL:
        word, first, bounds = PEER_HISTOGRAMS[name]
        meter_observe_at(words + <int>word, first, bounds, ns, 1)


cdef tuple bounds_of(uint64_t first, int bounds, double scale):
    return tuple([(first << i) / scale for i in range(bounds)])


cdef tuple read_histogram(uint64_t *words, int bounds, double scale):
    cdef int i
    counts = [meter_get(words + i) for i in range(bounds + 1)]
    return counts, meter_get(words + bounds + 1) / scale


BOUNDS = {name: bounds_of(METER_SHAPES[i].first, METER_SHAPES[i].bounds, METER_SHAPES[i].scale)
          for name, i in HISTOGRAMS.items()}
PEER_BOUNDS = {name: bounds_of(first, bounds, 1e9) for name, (_, first, bounds) in PEER_HISTOGRAMS.items()}
HANDLING_BOUNDS = tuple([METER_HANDLING[i] / 1e9 for i in range(METER_HANDLING_BOUNDS)])
OP_BOUNDS = bounds_of(100_000, METER_OP_BOUNDS, 1e9)
REQUEST_BOUNDS = bounds_of(1_000_000, METER_REQUEST_BOUNDS, 1e9)


cdef class Meters:
    """The block behind `fd`. A histogram is ([count of each bucket, the rest], sum), not cumulative."""

    def __cinit__(self, int fd):
        self.block = map_block(fd)

    def __dealloc__(self):
        if self.block != NULL:
            munmap(self.block, METER_BYTES)

    def __getitem__(self, str name):
        return meter_get(self.block + <int>WORDS[name])

    def count(self, str name, uint64_t n=1):
        """For the process whose block it is."""
        meter_add(self.block + <int>WORDS[name], n)

    def histogram(self, str name):
        cdef int i = HISTOGRAMS[name]
        return read_histogram(self.block + METER_AT_HISTOGRAMS + i * METER_HISTOGRAM_WORDS,
                              METER_SHAPES[i].bounds, METER_SHAPES[i].scale)

    def handling(self, unsigned method):
        return read_histogram(self.block + METER_AT_HANDLING + (method & 63) * METER_HANDLING_WORDS,
                              METER_HANDLING_BOUNDS, 1e9)

    def requests(self, unsigned method, bint failed):
        return read_histogram(self.block + METER_AT_REQUESTS + ((method & 63) * 2 + failed) * METER_REQUEST_WORDS,
                              METER_REQUEST_BOUNDS, 1e9)

    def op(self, int op, bint failed):
        return read_histogram(self.block + METER_AT_OPS + (op * 2 + failed) * METER_HISTOGRAM_WORDS,
                              METER_OP_BOUNDS, 1e9)

    def peers(self):
        """{member id: ({word: value}, {histogram: figures})} of all that were ever seen."""
        cdef uint64_t *words
        cdef int i
        found = {}
        for i in range(METER_PEERS_MAX):
            words = self.block + METER_AT_PEERS + i * METER_PEER_WORDS
            if meter_get(words + PEER_ID) == 0:
                break
            found[meter_get(words + PEER_ID)] = (
                {name: meter_get(words + <int>word) for name, word in PEER_WORDS.items()},
                {name: read_histogram(words + <int>word, bounds, 1e9)
                 for name, (word, _, bounds) in PEER_HISTOGRAMS.items()},
            )
        return found

    def versions(self):
        """{client version: (unary calls, streams)}."""
        cdef uint64_t *words
        cdef char text[METER_VERSION_BYTES]
        cdef int i
        found = {}
        for i in range(METER_VERSIONS_MAX):
            words = self.block + METER_AT_VERSIONS + i * METER_VERSION_WORDS
            if meter_get(words) or meter_get(words + 1):
                memcpy(text, words + 2, METER_VERSION_BYTES)
                name = text[:METER_VERSION_BYTES].split(b"\0", 1)[0].decode("utf-8", "replace")
                name = name or ("other" if i else "unknown")
                unary, streams = found.get(name, (0, 0))
                found[name] = unary + meter_get(words), streams + meter_get(words + 1)
        return found

    def calls(self):
        """(started, received, sent: 64 numbers each by RPC id; handled: 64 tuples by gRPC code)."""
        cdef h2_counters *c = <h2_counters *>(self.block + METER_AT_CALLS)
        cdef int i, code
        return (
            [meter_get(&c.started[i]) for i in range(64)],
            [meter_get(&c.received[i]) for i in range(64)],
            [meter_get(&c.sent[i]) for i in range(64)],
            [tuple([meter_get(&c.handled[i][code]) for code in range(17)]) for i in range(64)],
        )

    def goaways(self):
        """Connections ended for a broken rule, by HTTP/2 error code."""
        cdef h2_counters *c = <h2_counters *>(self.block + METER_AT_CALLS)
        return [meter_get(&c.goaways[i]) for i in range(16)]
