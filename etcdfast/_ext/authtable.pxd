"""Who may do what, for C: each user's permissions merged into intervals of keys, to read and to write.

apply/auth fills the table at each change of users and roles; apply's turn asks it. A request's identity is looked
up once (auth_caller_of) and then checked against as many keys as the request names (auth_may_read, auth_may_write).

What holds is etcd's (server/auth/range_perm_cache.go): an end of one zero byte is open, an empty end is the key
alone, intervals that touch are one, and a range is permitted when one of them covers all of it. Inverted ranges and
empty keys grant nothing.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from etcdfast._ext.errids cimport (
    ERR_AUTH_OLD_REVISION, ERR_PERMISSION_DENIED, ERR_USER_EMPTY, ERR_USER_NOT_FOUND,
)

cdef enum:
    AUTH_NAME_BYTES_MAX = 256   # of a user that an identity can name: tokenpage.h

ctypedef struct auth_range:
    const uint8_t *begin
    const uint8_t *end
    uint32_t begin_size
    uint32_t end_size           # 0: open

ctypedef struct auth_user:
    auth_user *next             # of the same bucket
    const uint8_t *name
    uint32_t name_size
    bint is_root
    auth_range *reads           # ascending, apart from each other; all of it is one block of memory
    auth_range *writes
    uint32_t read_count
    uint32_t write_count

# Whose request it is, as its record or its entry's header says: kept by value only while those bytes stay.
ctypedef struct auth_identity:
    const uint8_t *name
    uint32_t name_size
    uint64_t revision           # of the auth store that it was established at; 0: there is no identity

ctypedef struct auth_caller:
    const auth_user *user       # NULL: nobody known
    uint64_t revision
    bint free                   # may do everything: auth is off, or it is root
    bint named                  # an identity was given, with a name
    int refused                 # error of whatever names a key, 0 none


cdef class AuthTable:
    cdef readonly bint enabled
    cdef readonly uint64_t revision
    cdef auth_user **buckets
    cdef uint32_t bucket_mask
    cdef readonly uint32_t count

    cdef const auth_user *find(self, const uint8_t *name, uint32_t size) noexcept nogil
    cdef int grow(self) except -1
    cdef auth_user **place(self, const uint8_t *name, uint32_t size) noexcept nogil
    cdef _caller(self, bytes name, uint64_t revision, auth_caller *c)


cdef inline void auth_caller_of(AuthTable table, const auth_identity *who, auth_caller *c) noexcept nogil:
    """Every check of a request rests on this one look at the table."""
    c.user = NULL
    c.revision = who.revision
    c.named = who.name_size != 0
    c.refused = 0
    c.free = not table.enabled
    if c.free:
        return
    if who.name_size:
        c.user = table.find(who.name, who.name_size)
    # The order is etcd's: a request without identity, one of an older auth store, then whose it is.
    if who.revision == 0:
        c.refused = ERR_USER_EMPTY
    elif who.revision < table.revision:
        c.refused = ERR_AUTH_OLD_REVISION
    elif c.user == NULL:
        c.refused = ERR_PERMISSION_DENIED
    else:
        c.free = c.user.is_root


cdef inline int auth_order(const uint8_t *a, uint64_t a_size, const uint8_t *b, uint64_t b_size) noexcept nogil:
    cdef int order = memcmp(a, b, a_size if a_size < b_size else b_size)
    return order if order else (a_size > b_size) - (a_size < b_size)


cdef inline int auth_covers(const auth_range *ranges, uint32_t count, const uint8_t *key, uint64_t key_size,
                            const uint8_t *end, uint64_t end_size) noexcept nogil:
    """Whether one of the intervals covers the key, or [key, end)."""
    cdef uint32_t low = 0
    cdef uint32_t high = count
    cdef uint32_t mid
    cdef const auth_range *r
    if key_size == 0:
        return False
    while low < high:      # behind the last that begins at the key or before
        mid = (low + high) // 2
        if auth_order(ranges[mid].begin, ranges[mid].begin_size, key, key_size) <= 0:
            low = mid + 1
        else:
            high = mid
    if low == 0:
        return False
    r = &ranges[low - 1]
    if r.end_size == 0:
        return True
    if auth_order(key, key_size, r.end, r.end_size) >= 0:
        return False
    if end_size == 0:
        return True
    if end_size == 1 and end[0] == 0:
        return False       # only an open interval covers an open range
    return auth_order(end, end_size, r.end, r.end_size) <= 0


cdef inline int auth_may_read(const auth_caller *c, const uint8_t *key, uint64_t key_size, const uint8_t *end,
                              uint64_t end_size) noexcept nogil:
    """0, or the ERR_ id of what keeps the caller from reading."""
    if c.free:
        return 0
    if c.refused:
        return c.refused
    if auth_covers(c.user.reads, c.user.read_count, key, key_size, end, end_size):
        return 0
    return ERR_PERMISSION_DENIED


cdef inline int auth_may_write(const auth_caller *c, const uint8_t *key, uint64_t key_size, const uint8_t *end,
                               uint64_t end_size) noexcept nogil:
    if c.free:
        return 0
    if c.refused:
        return c.refused
    if auth_covers(c.user.writes, c.user.write_count, key, key_size, end, end_size):
        return 0
    return ERR_PERMISSION_DENIED


cdef inline int auth_admin(AuthTable table, const auth_caller *c) noexcept nogil:
    """0 for root, or while auth is off. As in etcd the revision does not count here."""
    if not table.enabled:
        return 0
    if not c.named:
        return ERR_USER_EMPTY
    if c.user == NULL:
        return ERR_USER_NOT_FOUND
    return 0 if c.user.is_root else ERR_PERMISSION_DENIED


cdef inline int auth_any(AuthTable table, const auth_caller *c) noexcept nogil:
    """0 for whoever has an identity."""
    return ERR_USER_EMPTY if table.enabled and c.revision == 0 else 0
