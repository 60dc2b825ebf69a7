"""Auth tokens in shared memory: the C contract (see tokenpage.h). Writer: apply, through TokenPage. Readers: frontends.

A reader hashes a token once, finds it, and from then on only asks token_use() whether what it found still holds:
one load of a shared word per request.
"""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "tokenpage.h" nogil:
    enum:
        TOKEN_WAYS
        TOKEN_NAME_BYTES
        TOKEN_SLOTS_MAX

    ctypedef struct token_slot:
        uint64_t hash[2]
        uint64_t ttl_ns
        uint64_t expires_ns

    ctypedef struct token_view:
        token_slot *slots
        uint64_t set_mask

    ctypedef struct token_found:
        uint32_t name_size
        uint64_t revision   # 0: the current one
        char name[256]

    int token_format(int fd, uint64_t slots, uint64_t key0, uint64_t key1)
    int token_map(token_view *v, int fd)
    void token_unmap(token_view *v)
    void token_hash(const token_view *v, const void *data, uint64_t size, uint64_t *out)
    token_slot *token_set(const token_view *v, const uint64_t *hash)
    # Reader: whether the token is in the table, valid or not.
    int token_find(const token_view *v, const uint64_t *hash, token_found *out)
    # Reader: whether what was found is still there and valid; if so it counts as used now (CLOCK_MONOTONIC ns).
    int token_use(const token_found *f, uint64_t now_ns)
    uint64_t token_due(uint64_t used_ns, uint64_t ttl_ns, uint64_t expires_ns)
    int token_lives(uint64_t used_ns, uint64_t ttl_ns, uint64_t expires_ns, uint64_t now_ns)
    uint64_t token_used(const token_slot *slot)
    void token_write(token_slot *slot, const uint64_t *hash, const char *name, uint32_t name_size, uint64_t revision,
                     uint64_t ttl_ns, uint64_t expires_ns, uint64_t used_ns)


cdef class TokenReader:
    """A frontend's view; the loop uses `view` directly."""
    cdef token_view view
    cdef bint mapped
