"""Figures of this process that /metrics shows, in a shared block: the C contract (see meters.h).

    meter_count(M_PUTS, 1)               # one line where the thing happens
    meter_observe(H_WAL_FSYNC, ns)

`meters_block` is the process's own block: private memory until `attach` maps the shared one, so that nobody has to
ask whether there is one. Each figure has one writing thread.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

cdef extern from "meters.h" nogil:
    enum:
        M_CLIENT_RECEIVED_BYTES
        M_CLIENT_SENT_BYTES
        M_CONNECTIONS
        M_CONNECTIONS_MAX
        M_CONNECTIONS_ACCEPTED
        M_CONNECTIONS_TLS
        M_CONNECTIONS_FULL
        M_ACCEPTS_FAILED
        M_PROPOSALS_FAILED
        M_READS_FAILED
        M_REQUESTS_WAITING
        M_RING_FULL
        M_HELD_BYTES
        M_WAL_WRITE_BYTES
        M_RANGES
        M_PUTS
        M_DELETES
        M_TXNS
        M_PUT_BYTES
        M_SLOW_APPLIES
        M_OPEN_READS
        M_PENDING_EVENTS
        M_COUNT
    enum:
        H_WAL_FSYNC
        H_WAL_WRITE
        H_FSYNC_ENTRIES
        H_FSYNC_BYTES
        H_BACKEND_COMMIT
        H_LEASE_TTL
        H_RANGE_OK
        H_RANGE_FAILED
        H_STAGE_FRONTEND
        H_STAGE_CONSENSUS
        H_STAGE_WAL
        H_STAGE_APPLY
        H_COUNT
    enum:
        METER_BYTES
        METER_WORDS
        METER_HISTOGRAM_WORDS
        METER_AT_HISTOGRAMS
        METER_AT_PEERS
        METER_PEERS_MAX
        METER_PEER_WORDS
        METER_AT_VERSIONS
        METER_VERSIONS_MAX
        METER_VERSION_WORDS
        METER_VERSION_BYTES
        METER_AT_CALLS
        METER_CALLS_WORDS
        METER_AT_HANDLING
        METER_HANDLING_BOUNDS
        METER_HANDLING_WORDS
        METER_AT_OPS
        METER_OPS_MAX
        METER_OP_BOUNDS
        METER_AT_REQUESTS
        METER_REQUEST_BOUNDS
        METER_REQUEST_WORDS
    enum:
        PEER_ID
        PEER_SENT_BYTES
        PEER_RECEIVED_BYTES
        PEER_SENT_FAILURES
        PEER_RECEIVED_FAILURES
        PEER_ACTIVE
        PEER_DISCONNECTED
        PEER_SNAPSHOT_SENDING
        PEER_SNAPSHOT_SENT
        PEER_SNAPSHOT_SEND_FAILURES
        PEER_SNAPSHOT_RECEIVING
        PEER_SNAPSHOT_RECEIVED
        PEER_SNAPSHOT_RECEIVE_FAILURES
        PEER_GONE
        PEER_ROUND_TRIP
        PEER_ROUND_TRIP_BOUNDS
        PEER_SNAPSHOT_SEND
        PEER_SNAPSHOT_RECEIVE
        PEER_SNAPSHOT_BOUNDS
    ctypedef struct meter_shape:
        const char *name
        uint64_t first
        int bounds
        double scale
    const char *const METER_NAMES[]
    const meter_shape METER_SHAPES[]
    const uint64_t METER_HANDLING[]
    void meter_add(uint64_t *word, uint64_t n)
    void meter_put(uint64_t *word, uint64_t value)
    uint64_t meter_get(const uint64_t *word)
    void meter_observe_at(uint64_t *words, uint64_t first, int bounds, uint64_t value, uint64_t n)
    void meter_observe_n(uint64_t *block, int id, uint64_t value, uint64_t n)
    void meter_handled(uint64_t *block, unsigned method, int failed, uint64_t ns)
    void meter_applied(uint64_t *block, unsigned op, int failed, uint64_t ns, uint64_t n)


# Kinds of entries in etcd_server_apply_duration_seconds; OPS in meters.pyx has etcd's words for them.
cdef enum:
    OP_APPLY_PUT = 0
    OP_APPLY_DELETE_RANGE = 1
    OP_APPLY_TXN = 2
    OP_APPLY_COMPACTION = 3
    OP_APPLY_LEASE_GRANT = 4
    OP_APPLY_LEASE_REVOKE = 5
    OP_APPLY_LEASE_CHECKPOINT = 6
    OP_APPLY_OTHER = 7


cdef uint64_t *meters_block


cdef inline void meter_count(int word, uint64_t n) noexcept nogil:
    meter_add(meters_block + word, n)


cdef inline void meter_set(int word, uint64_t value) noexcept nogil:
    meter_put(meters_block + word, value)


cdef inline void meter_observe(int histogram, uint64_t value) noexcept nogil:
    meter_observe_n(meters_block, histogram, value, 1)


cdef inline unsigned char meter_version(const unsigned char *text, size_t size) noexcept nogil:
    """The row of a client's version: 0 when it names none, the last for those beyond the table, so that clients cannot
    make series without bound."""
    cdef char *words
    cdef int i
    if size == 0 or size > METER_VERSION_BYTES:
        return METER_VERSIONS_MAX - 1 if size else 0
    for i in range(1, METER_VERSIONS_MAX - 1):
        words = <char *>(meters_block + METER_AT_VERSIONS + i * METER_VERSION_WORDS + 2)
        if words[0] == 0:
            memcpy(words, text, size)
            return <unsigned char>i
        if memcmp(words, text, size) == 0 and (size == METER_VERSION_BYTES or words[size] == 0):
            return <unsigned char>i
    return METER_VERSIONS_MAX - 1


cdef inline void meter_client(unsigned char version, bint stream) noexcept nogil:
    meter_add(meters_block + METER_AT_VERSIONS + version * METER_VERSION_WORDS + stream, 1)


cdef class Meters:
    """A block by its descriptor, for whoever shows it."""
    cdef uint64_t *block
