"""SPSC shared-memory byte ring, doorbells and status pages: the C contract (see ring.h).

A record is an `ipc_record` header and its payload bytes, contiguous in memory. Producer: claim, fill,
commit; publish once per batch. Consumer: peek, advance; release once per batch. Pointers into the ring
are valid until release (consumer) or publish (producer).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "ring.h" nogil:
    ctypedef struct ipc_record:
        uint32_t length      # bytes, header included, padding excluded
        uint8_t kind         # IPC_*
        uint8_t method       # RPC_* of rpcids.pxd, 0 none
        uint8_t frontend     # who asked, IPC_NOBODY for nobody
        uint8_t flags        # IPC_FLAG_*
        uint32_t slot        # connection slot in the frontend
        uint32_t generation  # generation of that slot
        uint32_t stream      # HTTP/2 stream id
        uint32_t status      # ERR_* of errids.pxd, 0 OK
        uint64_t index       # as the kind says
        uint64_t term        # as the kind says

    ctypedef struct ring_view:
        uint64_t capacity
        int peer_doorbell

    int ring_format(int fd, uint64_t capacity)
    int ring_map(ring_view *v, int fd, int peer_doorbell)
    void ring_unmap(ring_view *v)
    void ring_knock(int doorbell)
    uint64_t ring_room(ring_view *v)
    ipc_record *ring_claim(ring_view *v, uint32_t length)
    void ring_commit(ring_view *v, ipc_record *r)
    void ring_publish(ring_view *v)
    int ring_await_room(ring_view *v, uint32_t length)
    ipc_record *ring_peek(ring_view *v)
    int ring_broken(ring_view *v)
    void ring_advance(ring_view *v, ipc_record *r)
    void ring_release(ring_view *v)
    int ring_sleep(ring_view *v)
    void ring_awake(ring_view *v)
    void status_put(void *page, int word, uint64_t value)
    void status_max(void *page, int word, uint64_t value)
    uint64_t status_get(void *page, int word)


cdef inline char *record_payload(ipc_record *r) noexcept nogil:
    return <char *>r + sizeof(ipc_record)


cdef inline uint32_t record_payload_len(ipc_record *r) noexcept nogil:
    return r.length - <uint32_t>sizeof(ipc_record)


cdef enum:
    IPC_NOBODY = 0xFF
    IPC_SELF = 0xFE          # apply itself waits: slot is its own token
    IPC_MEMBER = 0xFD        # within apply: another member waits, slot and generation are the token of its PEER

# Kinds of record. Frontend -> consensus:
#   PROPOSE   payload = gRPC message bytes of `method`; term = deadline (CLOCK_MONOTONIC ns, 0 none)
#   READ      linearizable read, payload = gRPC message bytes; passes on to apply behind the log
#             (of MEMBER_ADD/REMOVE/UPDATE/PROMOTE and MOVE_LEADER: a call that consensus itself carries out)
# Apply -> consensus:
#   PROPOSE   as above, nobody waits or IPC_SELF
#   READ      as above, IPC_SELF and without payload: comes back as a READ once the state is new enough
#   FORWARD   ask the leader: method = LEASE_KEEP_ALIVE or LEASE_TIME_TO_LIVE, payload = gRPC message bytes,
#             slot = token that FORWARDED brings back; term = deadline (ns)
#   PEER_REPLY answer to PEER: index = its token, status = ERR_*, payload = bytes of the HTTP body, for a status
#             other than 0 its text. LEASE_NOT_FOUND is 404; NOT_LEADER (of a keep-alive), COMPACTED, FUTURE_REV 400;
#             LEADER_CHANGED and everything else 500
#   SNAPSHOT_DONE index = the token of SNAPSHOT, payload = JSON {"index","term","path","bytes"} or {"error"}
# Frontend -> apply:
#   CALL      what needs no log: serializable reads, Status, HashKV...; payload = gRPC message bytes
#   CREDIT    index = bytes that the stream may send more
#   CANCEL    the stream is gone: drop its cursor and any later answer
#   HALF      the client of a bidi stream sends no more requests; each of them came as a CALL of its own
# Consensus -> apply:
#   ENTRY     committed entry: index, term, method = raftpb entry type; payload = Entry.Data;
#             frontend/slot/generation/stream = who waits for the answer
#   READ      as above, behind the entries it must see
#   REFUSE    status = why a proposal or read was not accepted; apply passes it to the frontend
#   HARD      index = commit, term: state without entries (leader change), status page is newer
#   PEER      another member asks over HTTP: index = token, method = LEASE_KEEP_ALIVE, LEASE_TIME_TO_LIVE or
#             HASH_KV, payload = gRPC message bytes of that method
#   FORWARDED the leader's answer to FORWARD: slot = token, status = ERR_*, payload = gRPC message bytes.
#             LEASE_NOT_FOUND is an answer; after any other error apply asks again until the call's time is over
#   SNAPSHOT  write the state as it is here in order into a bbolt file (a helper does): index = token,
#             payload = JSON {"term", "conf_state": {...}} of the place in the log
#   MEMBERS   the membership as the log and its snapshot have it, before any entry: payload = JSON (after an import)
# Apply -> frontend:
#   REPLY     whole unary answer: payload = gRPC message bytes, status 0; or status != 0 and the
#             payload an optional text that replaces the table's
#   MESSAGE   one whole message of a stream (or of a unary call that END follows)
#   BEGIN     a message of `index` bytes begins, its bytes follow in PART records
#   PART      some bytes of the message begun
#   END       status ends the call
#   EVENTS    one WatchResponse for many watchers: ipc_events, its targets, head, events
cdef enum:
    IPC_PROPOSE = 1
    IPC_READ = 2
    IPC_CALL = 3
    IPC_CREDIT = 4
    IPC_CANCEL = 5
    IPC_ENTRY = 6
    IPC_REFUSE = 7
    IPC_HARD = 8
    IPC_REPLY = 9
    IPC_MESSAGE = 10
    IPC_BEGIN = 11
    IPC_PART = 12
    IPC_END = 13
    IPC_HALF = 14
    IPC_EVENTS = 15
    IPC_PEER = 16
    IPC_PEER_REPLY = 17
    IPC_FORWARD = 18
    IPC_FORWARDED = 19
    IPC_SNAPSHOT = 20
    IPC_SNAPSHOT_DONE = 21
    IPC_MEMBERS = 22

cdef enum:
    IPC_FLAG_GATEWAY = 1     # came through the JSON gateway
    IPC_FLAG_CREDIT = 2      # REPLY stream: the answer obeys CREDIT
    IPC_FLAG_NEW_ID = 4      # PROPOSE of a LeaseGrant without id: consensus appends one

# Method of a PROPOSE that no RPC stands for: payload is a LeaseCheckpointRequest.
cdef enum:
    IPC_LEASE_CHECKPOINT = 0xFF

# Payload of EVENTS: ipc_events, `targets` times ipc_target, head_bytes of field 1 (the ResponseHeader, with
# its tag), and fields 11 (the events) to the end. A target's message is head, field 2 (its watch id) unless
# that is 0, events.
ctypedef struct ipc_target:
    uint32_t slot
    uint32_t generation
    uint32_t stream
    uint32_t unused
    int64_t watch_id

ctypedef struct ipc_events:
    uint32_t targets
    uint32_t head_bytes

# Bytes that a stream may have under way from apply to the frontend's socket before CREDIT is needed.
cdef enum:
    IPC_STREAM_CREDIT_BYTES = 262144
    IPC_REPLY_BYTES_MAX = 65536   # larger answers travel as BEGIN/PART or MESSAGE/END under credit

# Words of the consensus status page (writer: consensus).
cdef enum:
    ST_MEMBER_ID = 0
    ST_CLUSTER_ID = 1
    ST_TERM = 2
    ST_LEADER = 3
    ST_COMMIT_INDEX = 4
    ST_LAST_INDEX = 5
    ST_HANDED_INDEX = 6      # last index handed to apply
    ST_DURABLE_INDEX = 7
    ST_LEARNER = 8
    ST_WAL_FSYNC_COUNT = 9
    ST_WAL_FSYNC_NS = 10
    ST_WAL_BYTES = 11
    ST_SNAPSHOT_INDEX = 12   # WAL released up to here
    ST_CONSENSUS_READY = 13
    ST_CONSENSUS_OPENED = 14       # ST_SNAPSHOT_INDEX is valid
    ST_LEADER_ELECTED_NS = 15      # CLOCK_MONOTONIC when the present leader became known, 0 never
    ST_LEADER_LOST_NS = 16         # when there was none last, 0 never
    ST_CONNECTED_SINCE_NS = 17     # since when the leader (own id: a quorum) can be reached, 0: it cannot
    ST_PEERS = 18                  # other members
    ST_PEERS_ACTIVE = 19           # of them heard of within an election timeout
    ST_LEADER_CHANGES = 20         # seen since the start
    ST_PROPOSALS_FORWARDED = 21
    ST_CLUSTER_VERSION = 22  # major << 32 | minor << 16 | patch, 0 not decided

# Words of the apply status page (writer: apply).
cdef enum:
    ST_APPLIED_INDEX = 0
    ST_APPLIED_TERM = 1
    ST_FLUSHED_INDEX = 2     # in RocksDB files: the WAL before it may go
    ST_REVISION = 3
    ST_COMPACTED = 4         # compacted revision, -1 (all ones) when never
    ST_DB_BYTES = 5
    ST_DB_IN_USE_BYTES = 6
    ST_QUOTA_BYTES = 7
    ST_ALARMS = 8            # bit 0 NOSPACE, bit 1 CORRUPT
    ST_KEYS = 9
    ST_INDEX_BYTES = 10
    ST_APPLY_READY = 11
    ST_AUTH_ENABLED = 12
    ST_AUTH_REVISION = 13
    ST_APPLY_OPENED = 14     # 1: ST_APPLIED_INDEX is valid; 2: and the store was imported just now
    ST_WATCH_STREAMS = 15
    ST_WATCHERS = 16
    ST_SLOW_WATCHERS = 17    # behind what has happened
    ST_WATCH_EVENTS = 18     # sent since the start
    ST_LEASES = 19
    ST_LEASES_GRANTED = 20   # since the start, as the next three
    ST_LEASES_REVOKED = 21
    ST_LEASES_RENEWED = 22
    ST_LEASES_EXPIRED = 23


cdef class Ring:
    """Python's handle of one side of a ring, for set-up and tests; loops use `view` directly."""
    cdef ring_view view
    cdef bint mapped


cdef class StatusPage:
    """One 4 KiB shared page of 64-bit words; `words` for C code, index access for Python."""
    cdef void *page
