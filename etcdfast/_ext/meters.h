/* Figures of one process in shared memory: written by plain stores of the thread that owns the figure, read by
   whoever maps the block. The tables below are the one list of names; meters.pxd repeats their ids for Cython.

   A word has one writing thread. A reader may see a histogram between two of its words: it takes the count from the
   buckets it read, so what it shows is consistent, and one observation early or late. */

#ifndef ETCDFAST_METERS_H
#define ETCDFAST_METERS_H

#include <stdint.h>

/* Counters and gauges. */
#define METER_WORDS_TABLE(X) \
    /* frontends */ \
    X(CLIENT_RECEIVED_BYTES, "client_received_bytes") \
    X(CLIENT_SENT_BYTES, "client_sent_bytes") \
    X(CONNECTIONS, "connections") \
    X(CONNECTIONS_MAX, "connections_max") \
    X(CONNECTIONS_ACCEPTED, "connections_accepted") \
    X(CONNECTIONS_TLS, "connections_tls") \
    X(CONNECTIONS_FULL, "connections_full") \
    X(ACCEPTS_FAILED, "accepts_failed") \
    X(PROPOSALS_FAILED, "proposals_failed") \
    X(READS_FAILED, "reads_failed") \
    X(REQUESTS_WAITING, "requests_waiting") \
    X(RING_FULL, "ring_full") \
    X(HELD_BYTES, "held_bytes") \
    X(HEALTH_SUCCESS, "health_success") \
    X(HEALTH_FAILURES, "health_failures") \
    X(HEALTH_LIVEZ_SERIALIZABLE_READ_SUCCESS, "livez_serializable_read_success") \
    X(HEALTH_LIVEZ_SERIALIZABLE_READ_ERROR, "livez_serializable_read_error") \
    X(HEALTH_LIVEZ_SERIALIZABLE_READ_NOW, "livez_serializable_read_now") \
    X(HEALTH_READYZ_DATA_CORRUPTION_SUCCESS, "readyz_data_corruption_success") \
    X(HEALTH_READYZ_DATA_CORRUPTION_ERROR, "readyz_data_corruption_error") \
    X(HEALTH_READYZ_DATA_CORRUPTION_NOW, "readyz_data_corruption_now") \
    X(HEALTH_READYZ_SERIALIZABLE_READ_SUCCESS, "readyz_serializable_read_success") \
    X(HEALTH_READYZ_SERIALIZABLE_READ_ERROR, "readyz_serializable_read_error") \
    X(HEALTH_READYZ_SERIALIZABLE_READ_NOW, "readyz_serializable_read_now") \
    X(HEALTH_READYZ_LINEARIZABLE_READ_SUCCESS, "readyz_linearizable_read_success") \
    X(HEALTH_READYZ_LINEARIZABLE_READ_ERROR, "readyz_linearizable_read_error") \
    X(HEALTH_READYZ_LINEARIZABLE_READ_NOW, "readyz_linearizable_read_now") \
    X(HEALTH_READYZ_NON_LEARNER_SUCCESS, "readyz_non_learner_success") \
    X(HEALTH_READYZ_NON_LEARNER_ERROR, "readyz_non_learner_error") \
    X(HEALTH_READYZ_NON_LEARNER_NOW, "readyz_non_learner_now") \
    /* consensus */ \
    X(WAL_WRITE_BYTES, "wal_write_bytes") \
    X(SLOW_READ_INDEXES, "slow_read_indexes") \
    X(HEARTBEAT_FAILURES, "heartbeat_failures") \
    X(PROMOTE_SUCCESSES, "promote_successes") \
    X(PROMOTE_FAILURES, "promote_failures") \
    X(SNAPSHOT_APPLYING, "snapshot_applying") \
    /* apply */ \
    X(RANGES, "ranges") \
    X(PUTS, "puts") \
    X(DELETES, "deletes") \
    X(TXNS, "txns") \
    X(PUT_BYTES, "put_bytes") \
    X(SLOW_APPLIES, "slow_applies") \
    X(OPEN_READS, "open_reads") \
    X(DEFRAG_INFLIGHT, "defrag_inflight") \
    X(COMPACTION_LAST, "compaction_last") \
    X(COMPACTION_KEYS, "compaction_keys") \
    X(PENDING_EVENTS, "pending_events") \
    /* supervisor */ \
    X(SCRAPES_OK, "scrapes_ok") \
    X(SCRAPES_FAILED, "scrapes_failed") \
    X(SCRAPES_BUSY, "scrapes_busy") \
    X(SCRAPES_RUNNING, "scrapes_running") \
    X(RESTARTS, "restarts")

/* Histograms: id, name, first upper bound in the units of what is observed, bounds (each twice the one before),
   units per unit of the metric. */
#define METER_HISTOGRAMS_TABLE(X) \
    X(WAL_FSYNC, "wal_fsync", 1000000, 14, 1e9) \
    X(WAL_WRITE, "wal_write", 1000000, 14, 1e9) \
    X(FSYNC_ENTRIES, "fsync_entries", 1, 15, 1) \
    X(FSYNC_BYTES, "fsync_bytes", 4096, 14, 1) \
    X(SNAP_FSYNC, "snap_fsync", 1000000, 14, 1e9) \
    X(SNAP_SAVE, "snap_save", 1000000, 14, 1e9) \
    X(SNAP_MARSHAL, "snap_marshal", 1000000, 14, 1e9) \
    X(SNAP_DB_FSYNC, "snap_db_fsync", 1000000, 14, 1e9) \
    X(SNAP_DB_SAVE, "snap_db_save", 100000000, 10, 1e9) \
    X(BACKEND_COMMIT, "backend_commit", 1000000, 14, 1e9) \
    X(BACKEND_SNAPSHOT, "backend_snapshot", 10000000, 17, 1e9) \
    X(BACKEND_DEFRAG, "backend_defrag", 100000000, 13, 1e9) \
    X(HASH, "hash", 10000000, 15, 1e9) \
    X(HASH_REV, "hash_rev", 10000000, 15, 1e9) \
    X(COMPACTION_PAUSE, "compaction_pause", 1000000, 13, 1e6) \
    X(COMPACTION_TOTAL, "compaction_total", 100000000, 14, 1e6) \
    X(INDEX_PAUSE, "index_pause", 500000, 14, 1e6) \
    X(LEASE_TTL, "lease_ttl", 1, 24, 1) \
    X(RANGE_OK, "range_ok", 100000, 20, 1e9) \
    X(RANGE_FAILED, "range_failed", 100000, 20, 1e9) \
    X(WATCH_SEND, "watch_send", 1000000, 14, 1e9) \
    X(STAGE_FRONTEND, "stage_frontend", 16000, 20, 1e9) \
    X(STAGE_CONSENSUS, "stage_consensus", 16000, 20, 1e9) \
    X(STAGE_WAL, "stage_wal", 16000, 20, 1e9) \
    X(STAGE_APPLY, "stage_apply", 16000, 20, 1e9)

#define METER_ENUM_WORD(id, name) M_##id,
#define METER_ENUM_HISTOGRAM(id, name, first, n, scale) H_##id,
enum { METER_WORDS_TABLE(METER_ENUM_WORD) M_COUNT };
enum { METER_HISTOGRAMS_TABLE(METER_ENUM_HISTOGRAM) H_COUNT };

typedef struct meter_shape {
    const char *name;
    uint64_t first;
    int bounds;
    double scale;
} meter_shape;

#define METER_NAME(id, name) name,
#define METER_SHAPE(id, name, first, n, scale) {name, first, n, scale},
static const char *const METER_NAMES[] = {METER_WORDS_TABLE(METER_NAME)};
static const meter_shape METER_SHAPES[] = {METER_HISTOGRAMS_TABLE(METER_SHAPE)};

/* Where things stand in a block, in words of 8 bytes. */
enum {
    METER_HISTOGRAM_WORDS = 32,  /* buckets, then the rest, then the sum */
    METER_AT_HISTOGRAMS = 256,
    METER_HISTOGRAMS_MAX = 48,
    METER_AT_PEERS = METER_AT_HISTOGRAMS + METER_HISTOGRAMS_MAX * METER_HISTOGRAM_WORDS,
    METER_PEERS_MAX = 64,
    METER_PEER_WORDS = 96,
    METER_AT_VERSIONS = METER_AT_PEERS + METER_PEERS_MAX * METER_PEER_WORDS,
    METER_VERSIONS_MAX = 16,     /* client versions told apart; the rest is counted in the last */
    METER_VERSION_WORDS = 8,     /* unary calls, streams, then the text */
    METER_VERSION_BYTES = 48,
    METER_AT_CALLS = METER_AT_VERSIONS + METER_VERSIONS_MAX * METER_VERSION_WORDS,
    METER_CALLS_WORDS = 2048,
    METER_AT_HANDLING = METER_AT_CALLS + METER_CALLS_WORDS,
    METER_HANDLING_BOUNDS = 11,
    METER_HANDLING_WORDS = 16,   /* of each of 64 methods */
    METER_AT_OPS = METER_AT_HANDLING + 64 * METER_HANDLING_WORDS,
    METER_OPS_MAX = 40,          /* kinds of entries, each with success and failure */
    METER_OP_BOUNDS = 20,
    METER_AT_REQUESTS = METER_AT_OPS + METER_OPS_MAX * 2 * METER_HISTOGRAM_WORDS,
    METER_REQUEST_BOUNDS = 14,   /* from 1 ms, as WAL_FSYNC; of each of 64 methods with success and failure */
    METER_REQUEST_WORDS = 16,
    METER_WORDS = METER_AT_REQUESTS + 64 * 2 * METER_REQUEST_WORDS,
    METER_BYTES = METER_WORDS * 8,
};
_Static_assert((int)M_COUNT <= (int)METER_AT_HISTOGRAMS, "too many counters");
_Static_assert((int)H_COUNT <= (int)METER_HISTOGRAMS_MAX, "too many histograms");

/* One other member, of METER_PEER_WORDS: words, then histograms of (bounds + 2) words. */
enum {
    PEER_ID,                     /* 0: free */
    PEER_SENT_BYTES,
    PEER_RECEIVED_BYTES,
    PEER_SENT_FAILURES,
    PEER_RECEIVED_FAILURES,
    PEER_ACTIVE,
    PEER_DISCONNECTED,
    PEER_SNAPSHOT_SENDING,
    PEER_SNAPSHOT_SENT,
    PEER_SNAPSHOT_SEND_FAILURES,
    PEER_SNAPSHOT_RECEIVING,
    PEER_SNAPSHOT_RECEIVED,
    PEER_SNAPSHOT_RECEIVE_FAILURES,
    PEER_GONE,                   /* not of the cluster any more */
    PEER_COUNTERS,
    PEER_ROUND_TRIP = 24,
    PEER_ROUND_TRIP_BOUNDS = 16, /* from 0.1 ms */
    PEER_SNAPSHOT_SEND = PEER_ROUND_TRIP + PEER_ROUND_TRIP_BOUNDS + 2,
    PEER_SNAPSHOT_BOUNDS = 10,   /* from 0.1 s */
    PEER_SNAPSHOT_RECEIVE = PEER_SNAPSHOT_SEND + PEER_SNAPSHOT_BOUNDS + 2,
    PEER_END = PEER_SNAPSHOT_RECEIVE + PEER_SNAPSHOT_BOUNDS + 2,
};
_Static_assert((int)PEER_END <= (int)METER_PEER_WORDS, "a peer's words");

/* A word of the owner's: no lock, no fence; a reader sees each store as a whole. */
static inline void meter_add(uint64_t *word, uint64_t n)
{
    __atomic_store_n(word, __atomic_load_n(word, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

static inline void meter_put(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

static inline uint64_t meter_get(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

/* `n` observations of `value` each, in a histogram of doubling bounds. Most values lie in the first buckets. */
static inline void meter_observe_at(uint64_t *words, uint64_t first, int bounds, uint64_t value, uint64_t n)
{
    int i = 0;
    while (i < bounds && value > first) {
        first <<= 1;
        i++;
    }
    meter_add(words + i, n);
    meter_add(words + bounds + 1, value * n);
}

static inline void meter_observe_n(uint64_t *block, int id, uint64_t value, uint64_t n)
{
    const meter_shape *shape = &METER_SHAPES[id];
    meter_observe_at(block + METER_AT_HISTOGRAMS + id * METER_HISTOGRAM_WORDS, shape->first, shape->bounds, value, n);
}

/* Bounds of grpc_server_handling_seconds, in nanoseconds. */
static const uint64_t METER_HANDLING[METER_HANDLING_BOUNDS] = {
    5000000, 10000000, 25000000, 50000000, 100000000, 250000000, 500000000, 1000000000, 2500000000, 5000000000,
    10000000000,
};

static inline void meter_handled(uint64_t *block, unsigned method, int failed, uint64_t ns)
{
    meter_observe_at(block + METER_AT_REQUESTS + ((method & 63) * 2 + (failed != 0)) * METER_REQUEST_WORDS, 1000000,
                     METER_REQUEST_BOUNDS, ns, 1);
    uint64_t *words = block + METER_AT_HANDLING + (method & 63) * METER_HANDLING_WORDS;
    int i = 0;
    while (i < METER_HANDLING_BOUNDS && ns > METER_HANDLING[i])
        i++;
    meter_add(words + i, 1);
    meter_add(words + METER_HANDLING_BOUNDS + 1, ns);
}

static inline void meter_applied(uint64_t *block, unsigned op, int failed, uint64_t ns, uint64_t n)
{
    if (op < METER_OPS_MAX)
        meter_observe_at(block + METER_AT_OPS + (op * 2 + failed) * METER_HISTOGRAM_WORDS, 100000, METER_OP_BOUNDS, ns, n);
}

#endif
