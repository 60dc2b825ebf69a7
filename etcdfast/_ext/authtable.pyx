"""Who may do what; see authtable.pxd and authtable.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

cdef enum:
    BUCKETS_LEAST = 16

READ, WRITE, READWRITE = 0, 1, 2   # authpb.Permission.Type


cdef uint32_t name_hash(const uint8_t *data, uint32_t size) noexcept nogil:
    # Names are given by the administrator: nobody else can make them collide.
    cdef uint32_t h = 2166136261u
    cdef uint32_t i
    for i in range(size):
        h = (h ^ data[i]) * 16777619u
    return h ^ h >> 15


cdef list merged(list wanted):
    """[(begin, end; b"" open)] of permissions' (key, range_end), in ascending order and apart from each other."""
    intervals = []
    for key, end in wanted:
        if not key:
            continue
        if end == b"\0":
            end = b""
        elif not end:
            end = key + b"\0"
        elif end <= key:
            continue
        intervals.append((key, end))
    intervals.sort()
    out = []
    last_begin = last_end = None
    for begin, end in intervals:
        if last_begin is None or (last_end and begin > last_end):
            if last_begin is not None:
                out.append((last_begin, last_end))
            last_begin, last_end = begin, end
        elif last_end and (not end or end > last_end):
            last_end = end
    if last_begin is not None:
        out.append((last_begin, last_end))
    return out


cdef uint8_t *put_text(uint8_t *at, bytes text):
    memcpy(at, PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text))
    return at + PyBytes_GET_SIZE(text)


cdef uint8_t *put_ranges(auth_range *to, list intervals, uint8_t *at):
    cdef bytes begin, end
    cdef Py_ssize_t i
    for i in range(len(intervals)):
        begin, end = intervals[i]
        to[i].begin = at
        to[i].begin_size = <uint32_t>PyBytes_GET_SIZE(begin)
        at = put_text(at, begin)
        to[i].end = at
        to[i].end_size = <uint32_t>PyBytes_GET_SIZE(end)
        at = put_text(at, end)
    return at


cdef list listed(const auth_range *ranges, uint32_t count):
    return [(PyBytes_FromStringAndSize(<const char *>ranges[i].begin, ranges[i].begin_size),
             PyBytes_FromStringAndSize(<const char *>ranges[i].end, ranges[i].end_size)) for i in range(count)]


cdef class AuthTable:

    def __cinit__(self):
        self.buckets = <auth_user **>calloc(BUCKETS_LEAST, sizeof(auth_user *))
        if self.buckets == NULL:
            raise MemoryError
        self.bucket_mask = BUCKETS_LEAST - 1

    def __dealloc__(self):
        if self.buckets != NULL:
            self.clear()
            free(self.buckets)

    cdef const auth_user *find(self, const uint8_t *name, uint32_t size) noexcept nogil:
        cdef auth_user *u = self.buckets[name_hash(name, size) & self.bucket_mask]
        while u != NULL and not (u.name_size == size and memcmp(u.name, name, size) == 0):
            u = u.next
        return u

    cdef auth_user **place(self, const uint8_t *name, uint32_t size) noexcept nogil:
        """What points to the user, or to the end of its bucket."""
        cdef auth_user **at = &self.buckets[name_hash(name, size) & self.bucket_mask]
        while at[0] != NULL and not (at[0].name_size == size and memcmp(at[0].name, name, size) == 0):
            at = &at[0].next
        return at

    cdef int grow(self) except -1:
        cdef auth_user **old = self.buckets
        cdef auth_user *u
        cdef auth_user *after
        cdef auth_user **at
        cdef uint32_t i
        cdef uint32_t size = self.bucket_mask + 1
        if self.count < size:
            return 0
        self.buckets = <auth_user **>calloc(<size_t>size * 2, sizeof(auth_user *))
        if self.buckets == NULL:
            self.buckets = old
            raise MemoryError
        self.bucket_mask = size * 2 - 1
        for i in range(size):
            u = old[i]
            while u != NULL:
                after = u.next
                at = &self.buckets[name_hash(u.name, u.name_size) & self.bucket_mask]
                u.next = at[0]
                at[0] = u
                u = after
        free(old)
        return 0

    def set_enabled(self, bint enabled, uint64_t revision):
        self.enabled = enabled
        self.revision = revision

    def set_user(self, bytes name not None, bint is_root, permissions=()):
        cdef auth_user *u
        cdef auth_user **at
        cdef uint8_t *text
        cdef list reads, writes
        cdef size_t size
        given = list(permissions)
        for kind, key, end in given:
            if kind not in (READ, WRITE, READWRITE) or not isinstance(key, bytes) or not isinstance(end, bytes):
                raise ValueError(f"no permission: {kind!r}, {key!r}, {end!r}")
        reads = merged([(key, end) for kind, key, end in given if kind != WRITE])
        writes = merged([(key, end) for kind, key, end in given if kind != READ])
        size = sizeof(auth_user) + (len(reads) + len(writes)) * sizeof(auth_range) + len(name)
        size += sum(len(begin) + len(end) for begin, end in reads + writes)
        u = <auth_user *>malloc(size)
        if u == NULL:
            raise MemoryError
        u.is_root = is_root
        u.reads = <auth_range *>(<uint8_t *>u + sizeof(auth_user))
        u.read_count = <uint32_t>len(reads)
        u.writes = u.reads + u.read_count
        u.write_count = <uint32_t>len(writes)
        text = <uint8_t *>(u.writes + u.write_count)
        u.name = text
        u.name_size = <uint32_t>len(name)
        text = put_text(text, name)
        text = put_ranges(u.reads, reads, text)
        put_ranges(u.writes, writes, text)
        at = self.place(u.name, u.name_size)
        if at[0] != NULL:
            u.next = at[0].next
            free(at[0])
            at[0] = u
            return
        u.next = NULL
        at[0] = u
        self.count += 1
        self.grow()

    def remove_user(self, bytes name not None):
        cdef auth_user **at = self.place(<const uint8_t *>PyBytes_AS_STRING(name), <uint32_t>PyBytes_GET_SIZE(name))
        cdef auth_user *u = at[0]
        if u == NULL:
            return False
        at[0] = u.next
        free(u)
        self.count -= 1
        return True

    def clear(self):
        cdef auth_user *u
        cdef uint32_t i
        for i in range(self.bucket_mask + 1):
            while self.buckets[i] != NULL:
                u = self.buckets[i]
                self.buckets[i] = u.next
                free(u)
        self.count = 0

    def may_read(self, bytes name not None, uint64_t revision, bytes key not None, bytes range_end not None=b""):
        cdef auth_caller c
        self._caller(name, revision, &c)
        return auth_may_read(&c, <const uint8_t *>PyBytes_AS_STRING(key), <uint64_t>PyBytes_GET_SIZE(key),
                             <const uint8_t *>PyBytes_AS_STRING(range_end), <uint64_t>PyBytes_GET_SIZE(range_end))

    def may_write(self, bytes name not None, uint64_t revision, bytes key not None, bytes range_end not None=b""):
        cdef auth_caller c
        self._caller(name, revision, &c)
        return auth_may_write(&c, <const uint8_t *>PyBytes_AS_STRING(key), <uint64_t>PyBytes_GET_SIZE(key),
                              <const uint8_t *>PyBytes_AS_STRING(range_end), <uint64_t>PyBytes_GET_SIZE(range_end))

    def may_administer(self, bytes name not None):
        cdef auth_caller c
        self._caller(name, self.revision, &c)
        return auth_admin(self, &c)

    cdef _caller(self, bytes name, uint64_t revision, auth_caller *c):
        cdef auth_identity who
        who.name = <const uint8_t *>PyBytes_AS_STRING(name)
        who.name_size = <uint32_t>PyBytes_GET_SIZE(name)
        who.revision = revision
        auth_caller_of(self, &who, c)

    def ranges(self, bytes name not None):
        cdef const auth_user *u = self.find(
            <const uint8_t *>PyBytes_AS_STRING(name), <uint32_t>PyBytes_GET_SIZE(name))
        if u == NULL:
            return None
        return listed(u.reads, u.read_count), listed(u.writes, u.write_count)
