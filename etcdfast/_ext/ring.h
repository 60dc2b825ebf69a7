/* Single-producer single-consumer byte ring in shared memory.
 *
 * One memfd holds a control page and `capacity` data bytes (a power of two, whole pages). Each side maps
 * the data twice in a row, so that every record is contiguous in virtual memory wherever it lies and no
 * padding record exists.
 *
 * Positions are byte counts since creation, never reduced: tail - head is the number of bytes in use.
 * The producer claims and commits records against its private `tail`, and publishes many at once; the
 * consumer walks its private `head`, and releases many at once. So the shared words are written once per
 * batch, not once per record.
 *
 * Sleeping: the consumer stores consumer_asleep = 1, then looks at tail again; the producer stores tail,
 * then looks at consumer_asleep. A full fence between store and look on both sides makes it impossible
 * for both to see the old value, so no wake-up is lost and an awake consumer is never rung. The same
 * holds with the roles exchanged for producer_asleep, when the ring was full.
 */
#ifndef ETCDFAST_RING_H
#define ETCDFAST_RING_H

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define RING_MAGIC 0x31676e6972666465ull /* "edfring1" */
#define RING_CONTROL_BYTES 4096
#define RING_ALIGN 8u
#define RING_BYTES_MAX (1ull << 30)

typedef struct {
    uint64_t magic;
    uint64_t capacity; /* data bytes, power of two */
    char pad0[112];
    _Atomic uint64_t tail; /* written by the producer only */
    char pad1[120];
    _Atomic uint64_t head; /* written by the consumer only */
    char pad2[120];
    _Atomic uint32_t consumer_asleep;
    char pad3[124];
    _Atomic uint32_t producer_asleep;
    char pad4[124];
} ring_control;
_Static_assert(sizeof(ring_control) == 640, "ring_control is part of the shared layout");

/* One side's view. A process is either producer or consumer of a ring, never both. */
typedef struct {
    ring_control *control;
    char *data;
    uint64_t mask;
    uint64_t capacity;
    uint64_t tail;     /* producer: claimed up to here; consumer: last tail seen */
    uint64_t head;     /* consumer: walked up to here; producer: last head seen */
    int peer_doorbell; /* eventfd of the other process */
} ring_view;

/* Every record starts with this header; `length` counts header and payload, without alignment. */
typedef struct {
    uint32_t length;
    uint8_t kind;       /* IPC_*, ipc.pxd */
    uint8_t method;     /* RPC id, rpcids.pxd; 0 for none */
    uint8_t frontend;   /* which frontend asked; IPC_NOBODY when nobody waits */
    uint8_t flags;      /* IPC_FLAG_* */
    uint32_t slot;      /* connection slot in that frontend */
    uint32_t generation; /* of the slot: an answer to a closed connection is dropped */
    uint32_t stream;    /* HTTP/2 stream id */
    uint32_t status;    /* error id, errids.pxd; 0 = OK */
    uint64_t index;     /* raft index, or as the kind says */
    uint64_t term;      /* raft term, or as the kind says */
} ipc_record;
_Static_assert(sizeof(ipc_record) == 40, "ipc_record is part of the shared layout");

static inline uint64_t ring_aligned(uint64_t n) { return (n + RING_ALIGN - 1) & ~(uint64_t)(RING_ALIGN - 1); }

/* Size a new memfd and write its control page. 0, or -errno. */
static inline int ring_format(int fd, uint64_t capacity) {
    if (capacity < 4096 || capacity > RING_BYTES_MAX || (capacity & (capacity - 1))) return -EINVAL;
    if (ftruncate(fd, (off_t)(RING_CONTROL_BYTES + capacity)) != 0) return -errno;
    ring_control *c = mmap(NULL, RING_CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (c == MAP_FAILED) return -errno;
    c->capacity = capacity;
    c->magic = RING_MAGIC;
    munmap(c, RING_CONTROL_BYTES);
    return 0;
}

/* Map a formatted ring. 0, or -errno (EINVAL when it is no ring of ours). */
static inline int ring_map(ring_view *v, int fd, int peer_doorbell) {
    struct stat st;
    if (fstat(fd, &st) != 0) return -errno;
    ring_control *c = mmap(NULL, RING_CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (c == MAP_FAILED) return -errno;
    uint64_t n = c->capacity;
    if (c->magic != RING_MAGIC || n < 4096 || n > RING_BYTES_MAX || (n & (n - 1)) ||
        (uint64_t)st.st_size != RING_CONTROL_BYTES + n) {
        munmap(c, RING_CONTROL_BYTES);
        return -EINVAL;
    }
    char *area = mmap(NULL, 2 * n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) { int e = errno; munmap(c, RING_CONTROL_BYTES); return -e; }
    if (mmap(area, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, RING_CONTROL_BYTES) == MAP_FAILED ||
        mmap(area + n, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, RING_CONTROL_BYTES) == MAP_FAILED) {
        int e = errno;
        munmap(area, 2 * n);
        munmap(c, RING_CONTROL_BYTES);
        return -e;
    }
    v->control = c;
    v->data = area;
    v->capacity = n;
    v->mask = n - 1;
    v->tail = atomic_load_explicit(&c->tail, memory_order_acquire);
    v->head = atomic_load_explicit(&c->head, memory_order_acquire);
    v->peer_doorbell = peer_doorbell;
    return 0;
}

static inline void ring_unmap(ring_view *v) {
    if (!v->control) return;
    munmap(v->data, 2 * v->capacity);
    munmap(v->control, RING_CONTROL_BYTES);
    memset(v, 0, sizeof *v);
    v->peer_doorbell = -1;
}

static inline void ring_knock(int doorbell) {
    /* EAGAIN means the counter is at its maximum: the other side has a wake-up pending anyway. */
    uint64_t one = 1;
    ssize_t r = write(doorbell, &one, 8);
    (void)r;
}

/* ---- producer ---- */

/* Bytes that a claim may take now. */
static inline uint64_t ring_room(ring_view *v) {
    uint64_t room = v->capacity - (v->tail - v->head);
    if (room < v->capacity / 2) {
        v->head = atomic_load_explicit(&v->control->head, memory_order_acquire);
        room = v->capacity - (v->tail - v->head);
    }
    return room;
}

/* Space for one record of `length` bytes (header included), or NULL while it does not fit. The header's
 * length is filled in. Precondition: sizeof(ipc_record) <= length <= capacity. */
static inline ipc_record *ring_claim(ring_view *v, uint32_t length) {
    uint64_t need = ring_aligned(length);
    if (v->capacity - (v->tail - v->head) < need) {
        v->head = atomic_load_explicit(&v->control->head, memory_order_acquire);
        if (v->capacity - (v->tail - v->head) < need) return NULL;
    }
    ipc_record *r = (ipc_record *)(v->data + (v->tail & v->mask));
    r->length = length;
    return r;
}

/* Take the claimed record into the batch; it may have shrunk since the claim (its length is read). */
static inline void ring_commit(ring_view *v, ipc_record *r) { v->tail += ring_aligned(r->length); }

/* Show all committed records to the consumer, and wake it if it sleeps. */
static inline void ring_publish(ring_view *v) {
    if (atomic_load_explicit(&v->control->tail, memory_order_relaxed) == v->tail) return;
    atomic_store_explicit(&v->control->tail, v->tail, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&v->control->consumer_asleep, memory_order_relaxed) &&
        atomic_exchange_explicit(&v->control->consumer_asleep, 0, memory_order_acq_rel))
        ring_knock(v->peer_doorbell);
}

/* After a failed claim: ask for a knock once the consumer has released. 1 when `length` fits already. */
static inline int ring_await_room(ring_view *v, uint32_t length) {
    atomic_store_explicit(&v->control->producer_asleep, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    v->head = atomic_load_explicit(&v->control->head, memory_order_acquire);
    if (v->capacity - (v->tail - v->head) >= ring_aligned(length)) {
        atomic_store_explicit(&v->control->producer_asleep, 0, memory_order_relaxed);
        return 1;
    }
    return 0;
}

/* ---- consumer ---- */

/* The record at the head, or NULL when the ring is empty or what lies there is no record
 * (a length outside the published bytes: the producer is broken; ring_broken() tells them apart). */
static inline ipc_record *ring_peek(ring_view *v) {
    if (v->head == v->tail) {
        v->tail = atomic_load_explicit(&v->control->tail, memory_order_acquire);
        if (v->head == v->tail) return NULL;
    }
    ipc_record *r = (ipc_record *)(v->data + (v->head & v->mask));
    uint64_t published = v->tail - v->head;
    if (r->length < sizeof(ipc_record) || ring_aligned(r->length) > published || published > v->capacity) return NULL;
    return r;
}

static inline int ring_broken(ring_view *v) { return v->head != v->tail && ring_peek(v) == NULL; }

/* Step over the record just peeked. Its bytes stay valid until ring_release. */
static inline void ring_advance(ring_view *v, ipc_record *r) { v->head += ring_aligned(r->length); }

/* Give all bytes walked over back to the producer, and wake it if it waits for room. */
static inline void ring_release(ring_view *v) {
    if (atomic_load_explicit(&v->control->head, memory_order_relaxed) == v->head) return;
    atomic_store_explicit(&v->control->head, v->head, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&v->control->producer_asleep, memory_order_relaxed) &&
        atomic_exchange_explicit(&v->control->producer_asleep, 0, memory_order_acq_rel))
        ring_knock(v->peer_doorbell);
}

/* Announce sleep. 1: the ring is empty, sleep on the doorbell; 0: records came, do not sleep. */
static inline int ring_sleep(ring_view *v) {
    atomic_store_explicit(&v->control->consumer_asleep, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    v->tail = atomic_load_explicit(&v->control->tail, memory_order_acquire);
    if (v->tail != v->head) {
        atomic_store_explicit(&v->control->consumer_asleep, 0, memory_order_relaxed);
        return 0;
    }
    return 1;
}

static inline void ring_awake(ring_view *v) {
    atomic_store_explicit(&v->control->consumer_asleep, 0, memory_order_relaxed);
}

/* ---- status page: one page of 64-bit words, one writer each ---- */

static inline void status_put(void *page, int word, uint64_t value) {
    atomic_store_explicit((_Atomic uint64_t *)page + word, value, memory_order_release);
}

static inline uint64_t status_get(void *page, int word) {
    return atomic_load_explicit((_Atomic uint64_t *)page + word, memory_order_acquire);
}

static inline void status_max(void *page, int word, uint64_t value) {
    if (status_get(page, word) < value) status_put(page, word, value);
}

#endif
