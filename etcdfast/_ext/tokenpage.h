/* Table of auth tokens in shared memory: apply writes it, frontends look tokens up and stamp their use.
 *
 * One memfd holds a control page and slots in sets of TOKEN_WAYS. A token is known by a keyed 128-bit hash
 * (SipHash-2-4 with a key made at format time), so its own bytes, a secret, are in no shared memory, and a token
 * of any length takes one slot. Nobody who lacks the key can make two tokens meet.
 *
 * Each slot is a seqlock: the one writer makes `seq` odd, changes the slot, makes it even. A reader that saw an
 * even `seq` and sees it again behind its loads has read one state. `used_ns` is outside of it: any frontend
 * stores it at any time, at worst into a slot that was given to another token just now, which then lives a
 * little longer.
 */
#ifndef ETCDFAST_TOKENPAGE_H
#define ETCDFAST_TOKENPAGE_H

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define TOKEN_MAGIC 0x31736e656b6f7464ull /* "dtokens1" */
#define TOKEN_CONTROL_BYTES 4096
#define TOKEN_WAYS 8u
#define TOKEN_NAME_BYTES 256u
#define TOKEN_SLOTS_MAX (1ull << 24)
#define TOKEN_READ_ATTEMPTS 64
#define TOKEN_USE_STEP_NS 1000000000ull /* etcd looks at TTLs once a second */

typedef struct {
    uint64_t magic;
    uint64_t slots; /* power of two, at least TOKEN_WAYS */
    uint64_t key[2];
} token_control;

typedef struct {
    _Atomic uint32_t seq;
    uint32_t name_size;
    uint64_t hash[2];    /* 0, 0: free */
    uint64_t revision;   /* of the auth store that the identity was established at; 0: whatever is current */
    uint64_t ttl_ns;     /* valid this long after its last use; 0 for ever */
    uint64_t expires_ns; /* CLOCK_MONOTONIC, 0 never */
    _Atomic uint64_t used_ns;
    char name[TOKEN_NAME_BYTES];
    uint64_t unused;
} token_slot;
_Static_assert(sizeof(token_slot) == 320, "token_slot is part of the shared layout");

typedef struct {
    token_control *control;
    token_slot *slots;
    uint64_t set_mask;
    uint64_t bytes;
} token_view;

/* What a reader found; `slot` and `seq` let it ask later whether that still holds. */
typedef struct {
    token_slot *slot;
    uint32_t seq;
    uint32_t name_size;
    uint64_t revision;
    uint64_t ttl_ns;
    uint64_t expires_ns;
    char name[TOKEN_NAME_BYTES];
} token_found;

/* Size a new memfd and write its control page. 0, or -errno. */
static inline int token_format(int fd, uint64_t slots, uint64_t key0, uint64_t key1) {
    if (slots < TOKEN_WAYS || slots > TOKEN_SLOTS_MAX || (slots & (slots - 1))) return -EINVAL;
    if (ftruncate(fd, (off_t)(TOKEN_CONTROL_BYTES + slots * sizeof(token_slot))) != 0) return -errno;
    token_control *c = mmap(NULL, TOKEN_CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (c == MAP_FAILED) return -errno;
    c->slots = slots;
    c->key[0] = key0;
    c->key[1] = key1;
    c->magic = TOKEN_MAGIC;
    munmap(c, TOKEN_CONTROL_BYTES);
    return 0;
}

/* Map a formatted table. 0, or -errno (EINVAL when it is none of ours). */
static inline int token_map(token_view *v, int fd) {
    struct stat st;
    if (fstat(fd, &st) != 0) return -errno;
    if (st.st_size < TOKEN_CONTROL_BYTES) return -EINVAL;
    char *area = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (area == MAP_FAILED) return -errno;
    token_control *c = (token_control *)area;
    uint64_t n = c->slots;
    if (c->magic != TOKEN_MAGIC || n < TOKEN_WAYS || n > TOKEN_SLOTS_MAX || (n & (n - 1)) ||
        (uint64_t)st.st_size != TOKEN_CONTROL_BYTES + n * sizeof(token_slot)) {
        munmap(area, (size_t)st.st_size);
        return -EINVAL;
    }
    v->control = c;
    v->slots = (token_slot *)(area + TOKEN_CONTROL_BYTES);
    v->set_mask = n / TOKEN_WAYS - 1;
    v->bytes = (uint64_t)st.st_size;
    return 0;
}

static inline void token_unmap(token_view *v) {
    if (v->control) munmap(v->control, v->bytes);
    memset(v, 0, sizeof *v);
}

#define TOKEN_ROTATE(x, n) ((x) << (n) | (x) >> (64 - (n)))
#define TOKEN_ROUND(a, b, c, d)                                                                               \
    do {                                                                                                      \
        a += b; b = TOKEN_ROTATE(b, 13) ^ a; a = TOKEN_ROTATE(a, 32);                                         \
        c += d; d = TOKEN_ROTATE(d, 16) ^ c;                                                                  \
        a += d; d = TOKEN_ROTATE(d, 21) ^ a;                                                                  \
        c += b; b = TOKEN_ROTATE(b, 17) ^ c; c = TOKEN_ROTATE(c, 32);                                         \
    } while (0)

/* SipHash-2-4 with a 128-bit result (Aumasson, Bernstein). Never 0, 0: that is a free slot. */
static inline void token_hash(const token_view *view, const void *data, uint64_t size, uint64_t out[2]) {
    const uint8_t *at = data;
    uint64_t k0 = view->control->key[0], k1 = view->control->key[1];
    uint64_t a = k0 ^ 0x736f6d6570736575ull, b = k1 ^ 0x646f72616e646f6dull ^ 0xee;
    uint64_t c = k0 ^ 0x6c7967656e657261ull, d = k1 ^ 0x7465646279746573ull;
    uint64_t word, left = size;
    for (; left >= 8; left -= 8, at += 8) {
        memcpy(&word, at, 8);
        d ^= word;
        TOKEN_ROUND(a, b, c, d);
        TOKEN_ROUND(a, b, c, d);
        a ^= word;
    }
    word = 0;
    memcpy(&word, at, left);
    word |= size << 56;
    d ^= word;
    TOKEN_ROUND(a, b, c, d);
    TOKEN_ROUND(a, b, c, d);
    a ^= word;
    c ^= 0xee;
    for (int i = 0; i < 4; i++) TOKEN_ROUND(a, b, c, d);
    out[0] = a ^ b ^ c ^ d;
    b ^= 0xdd;
    for (int i = 0; i < 4; i++) TOKEN_ROUND(a, b, c, d);
    out[1] = a ^ b ^ c ^ d;
    if (!out[0] && !out[1]) out[1] = 1;
}

static inline uint64_t token_word(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }

static inline token_slot *token_set(const token_view *v, const uint64_t hash[2]) {
    return v->slots + (hash[0] & v->set_mask) * TOKEN_WAYS;
}

/* Use is stamped only so often, so that a busy token's slot is not written with each request. */
static inline uint64_t token_step(uint64_t ttl_ns) {
    return ttl_ns / 8 < TOKEN_USE_STEP_NS ? ttl_ns / 8 : TOKEN_USE_STEP_NS;
}

/* When it ends unless it is used again: never before its TTL is over, and at most a step behind that. */
static inline uint64_t token_due(uint64_t used_ns, uint64_t ttl_ns, uint64_t expires_ns) {
    uint64_t due = ttl_ns ? used_ns + ttl_ns + token_step(ttl_ns) : UINT64_MAX;
    return expires_ns && expires_ns < due ? expires_ns : due;
}

static inline int token_lives(uint64_t used_ns, uint64_t ttl_ns, uint64_t expires_ns, uint64_t now_ns) {
    return now_ns < token_due(used_ns, ttl_ns, expires_ns);
}

/* Reader: 1 when the token is there (valid or not), 0 when not. */
static inline int token_find(const token_view *v, const uint64_t hash[2], token_found *out) {
    token_slot *set = token_set(v, hash);
    uint64_t words[sizeof(token_slot) / 8];
    token_slot copy;
    for (unsigned i = 0; i < TOKEN_WAYS; i++) {
        token_slot *slot = set + i;
        if (token_word(&slot->hash[0]) != hash[0] || token_word(&slot->hash[1]) != hash[1]) continue;
        for (int attempt = 0; attempt < TOKEN_READ_ATTEMPTS; attempt++) {
            uint32_t seq = atomic_load_explicit(&slot->seq, memory_order_acquire);
            if (seq & 1) continue;
            for (size_t w = 0; w < sizeof(token_slot) / 8; w++) words[w] = token_word((const uint64_t *)slot + w);
            atomic_thread_fence(memory_order_acquire);
            if (atomic_load_explicit(&slot->seq, memory_order_relaxed) != seq) continue;
            memcpy(&copy, words, sizeof copy);
            if (copy.hash[0] != hash[0] || copy.hash[1] != hash[1] || copy.name_size > TOKEN_NAME_BYTES) break;
            out->slot = slot;
            out->seq = seq;
            out->name_size = copy.name_size;
            out->revision = copy.revision;
            out->ttl_ns = copy.ttl_ns;
            out->expires_ns = copy.expires_ns;
            memcpy(out->name, copy.name, TOKEN_NAME_BYTES);
            return 1;
        }
    }
    return 0;
}

/* Whether what was found is still what the slot holds. */
static inline int token_same(const token_found *f) {
    return atomic_load_explicit(&f->slot->seq, memory_order_acquire) == f->seq;
}

/* Reader: whether what was found is still there and valid; if so it counts as used now. */
static inline int token_use(const token_found *f, uint64_t now_ns) {
    if (!token_same(f)) return 0;
    uint64_t used = atomic_load_explicit(&f->slot->used_ns, memory_order_relaxed);
    if (!token_lives(used, f->ttl_ns, f->expires_ns, now_ns)) return 0;
    if (f->ttl_ns && now_ns > used) {
        if (now_ns - used > token_step(f->ttl_ns)) atomic_store_explicit(&f->slot->used_ns, now_ns, memory_order_relaxed);
    }
    return 1;
}

static inline uint64_t token_used(const token_slot *slot) {
    return atomic_load_explicit(&((token_slot *)slot)->used_ns, memory_order_relaxed);
}

/* Writer: `name` NULL frees the slot. */
static inline void token_write(token_slot *slot, const uint64_t hash[2], const char *name, uint32_t name_size,
                               uint64_t revision, uint64_t ttl_ns, uint64_t expires_ns, uint64_t used_ns) {
    uint32_t seq = atomic_load_explicit(&slot->seq, memory_order_relaxed);
    atomic_store_explicit(&slot->seq, seq + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    slot->hash[0] = name ? hash[0] : 0;
    slot->hash[1] = name ? hash[1] : 0;
    slot->name_size = name ? name_size : 0;
    slot->revision = revision;
    slot->ttl_ns = ttl_ns;
    slot->expires_ns = expires_ns;
    memset(slot->name, 0, TOKEN_NAME_BYTES);
    if (name) memcpy(slot->name, name, name_size);
    atomic_store_explicit(&slot->used_ns, used_ns, memory_order_relaxed);
    atomic_store_explicit(&slot->seq, seq + 2, memory_order_release);
}

#endif
