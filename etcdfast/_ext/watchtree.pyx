"""Who watches a key; see watchtree.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint32_t


cdef class WatchTree:

    cdef watch_range *find_or_add(
        self, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len
    ) noexcept nogil:
        return NULL

    cdef watch_range *find(
        self, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len
    ) noexcept nogil:
        return NULL

    cdef void drop(self, watch_range *r) noexcept nogil:
        pass

    cdef int stab(
        self, const uint8_t *key, uint32_t key_len, watch_range **out, int cap, stab_cursor *c
    ) noexcept nogil:
        return 0

    cdef int64_t used_bytes(self) noexcept nogil:
        return self.arena.used_bytes

    cdef watch_range *find_hashed(self, const uint8_t *key, uint32_t key_len, uint32_t kind) noexcept nogil:
        return NULL

    cdef watch_range *add_hashed(
        self, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len, uint32_t kind
    ) noexcept nogil:
        return NULL

    cdef watch_range *add_node(
        self, const uint8_t *key, uint32_t key_len, const uint8_t *end, uint32_t end_len
    ) noexcept nogil:
        return NULL
