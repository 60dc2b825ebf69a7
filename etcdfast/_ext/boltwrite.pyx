"""A bbolt file in one pass: leaf pages as the items come, then branches, then the root and the metas.

Nothing is written twice and nothing but the first key of each page is kept (about 40 bytes a page), so a file of
any size takes a few MiB. Source: formats.md 7.7.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_CheckExact, PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.errno cimport EINTR, errno
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset
from posix.types cimport off_t
from posix.unistd cimport pwrite

import os

from etcdfast._ext.boltpage cimport (
    BOLT_BRANCH,
    BOLT_COUNT_MAX,
    BOLT_ELEMENT_BYTES,
    BOLT_HEADER_BYTES,
    BOLT_IS_BUCKET,
    BOLT_KEY_BYTES_MAX,
    BOLT_LEAF,
    BOLT_META,
    BOLT_META_SUMMED_BYTES,
    BOLT_PAGE_BYTES_MAX,
    BOLT_PAGE_BYTES_MIN,
    BOLT_VALUE_BYTES_MAX,
    BOLT_VERSION,
    bolt_branch,
    bolt_bucket,
    bolt_fnv1a,
    bolt_leaf,
    bolt_magic,
    bolt_meta,
    bolt_no_freelist,
    bolt_page,
)


cdef enum:
    WRITE_OK = 0
    WRITE_NO_MEMORY = -1
    WRITE_FAILED = -2  # errno is in `failed_errno`
    WRITE_ORDER = -3  # the key is not above the one before it
    WRITE_KEY = -4  # an empty key or a too long one
    WRITE_VALUE = -5

    OUT_BYTES = 1 << 20  # written at once
    FIRST_PAGE = 2  # behind the metas
    # Keys of items come right behind the bucket byte of our store; what has no `_` there is no revision.
    REVISION_MARK_AT = 9
    REVISION_MARK = 0x5F


# A page of the level below: its id, and where its first key is in `row_keys`.
ctypedef struct page_row:
    uint64_t page
    uint64_t key_at
    uint64_t key_bytes


cdef class TreeWriter:
    """Writes the pages of one B+tree after the other to `fd`, from page 2 on.

    For each tree: put() in ascending order of keys, then end(). Then finish(root of the tree of buckets).
    Errors: ValueError for what bbolt forbids (order, sizes), OSError, MemoryError; after one of the last two the
    file is useless. Source: formats.md 7.7.
    """
    cdef int fd
    cdef readonly size_t page_bytes
    cdef readonly uint64_t next_page  # the first id not given out yet
    cdef readonly uint64_t items  # put so far, in all trees
    cdef int failed_errno
    # Pages on their way to the file, all of them at the file's end.
    cdef uint8_t *out
    cdef size_t out_bytes, out_capacity
    cdef int64_t out_offset  # where `out` begins in the file
    # The open leaf: elements, whose pos is from the start of `data` until the page is closed, and keys and values.
    cdef bolt_leaf *leaf
    cdef uint32_t leaf_count, leaf_capacity
    cdef uint8_t *data
    cdef size_t data_bytes, data_capacity
    cdef bint has_bucket
    # The last key of the page before the open one, for the check of order.
    cdef uint8_t last_key[32768]
    cdef size_t last_key_bytes
    cdef bint has_last_key
    # Pages of the level being made.
    cdef page_row *rows
    cdef size_t row_count, row_capacity
    cdef uint8_t *row_keys
    cdef size_t row_keys_bytes, row_keys_capacity

    def __init__(self, int fd, size_t page_bytes=4096):
        if page_bytes < BOLT_PAGE_BYTES_MIN or page_bytes > BOLT_PAGE_BYTES_MAX or page_bytes & (page_bytes - 1):
            raise ValueError(f"page size {page_bytes}: expected a power of two from 1024 to 65536")
        self.fd = fd
        self.page_bytes = page_bytes
        self.next_page = FIRST_PAGE
        self.out_offset = <int64_t>(FIRST_PAGE * page_bytes)
        self.out_capacity = OUT_BYTES
        self.data_capacity = 2 * page_bytes
        self.leaf_capacity = <uint32_t>(page_bytes // BOLT_ELEMENT_BYTES)
        self.out = <uint8_t *>malloc(self.out_capacity)
        self.data = <uint8_t *>malloc(self.data_capacity)
        self.leaf = <bolt_leaf *>malloc(self.leaf_capacity * sizeof(bolt_leaf))
        if self.out == NULL or self.data == NULL or self.leaf == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.out)
        free(self.data)
        free(self.leaf)
        free(self.rows)
        free(self.row_keys)

    # ---- items ----

    def put(self, bytes key not None, bytes value not None, bint bucket=False):
        """Add one item; `value` of a bucket is what end() of its tree returned."""
        self.check(
            self.add(
                <const uint8_t *>PyBytes_AS_STRING(key), <size_t>PyBytes_GET_SIZE(key),
                <const uint8_t *>PyBytes_AS_STRING(value), <size_t>PyBytes_GET_SIZE(value), bucket,
            ),
            key,
        )

    def put_many(self, items, size_t skip=0):
        """Add (key, value) tuples of bytes from any iterable; the first `skip` bytes of each key are left out.

        Returns how many they were.
        """
        return self.put_iterable(items, skip, False)

    def put_revisions(self, items):
        """Add the revisions among (key, value) tuples of bucket `key` of etcdfast's store (apply/store.py).

        The bucket byte is left out, and so are the store's own records that stand between the revisions.
        Returns how many were written.
        """
        return self.put_iterable(items, 1, True)

    cdef object put_iterable(self, items, size_t skip, bint revisions_only):
        cdef uint64_t before = self.items
        cdef const uint8_t *key_data
        cdef size_t key_bytes
        cdef int code
        for pair in items:
            if not PyTuple_CheckExact(pair) or PyTuple_GET_SIZE(pair) != 2:
                raise TypeError("expected (key, value) tuples")
            key = <object>PyTuple_GET_ITEM(pair, 0)
            value = <object>PyTuple_GET_ITEM(pair, 1)
            if not PyBytes_CheckExact(key) or not PyBytes_CheckExact(value):
                raise TypeError("expected keys and values of type bytes")
            key_data = <const uint8_t *>PyBytes_AS_STRING(key)
            key_bytes = <size_t>PyBytes_GET_SIZE(key)
            if revisions_only and (key_bytes <= REVISION_MARK_AT or key_data[REVISION_MARK_AT] != REVISION_MARK):
                continue
            if key_bytes < skip:
                raise ValueError(f"key {key!r} is shorter than the {skip} bytes to leave out")
            code = self.add(
                key_data + skip, key_bytes - skip,
                <const uint8_t *>PyBytes_AS_STRING(value), <size_t>PyBytes_GET_SIZE(value), False,
            )
            if code != WRITE_OK:
                self.check(code, key[skip:])
        return self.items - before

    # ---- trees ----

    def end(self, bint inline=True, uint64_t sequence=0):
        """Close the tree and begin the next. Returns the value of its bucket's element.

        A small one without buckets in it lies inline in that value, as bbolt keeps it; with inline=False every
        tree gets pages. The root's page id is the first 8 bytes, 0 when inline.
        """
        cdef bolt_bucket bucket
        cdef size_t bytes_all = BOLT_HEADER_BYTES + self.leaf_count * BOLT_ELEMENT_BYTES + self.data_bytes
        cdef int code
        cdef bytes value
        bucket.root = 0
        bucket.sequence = sequence
        if inline and self.row_count == 0 and not self.has_bucket and bytes_all <= self.page_bytes // 4:
            value = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(sizeof(bucket) + bytes_all))
            memcpy(PyBytes_AS_STRING(value), &bucket, sizeof(bucket))
            self.image(<uint8_t *>PyBytes_AS_STRING(value) + sizeof(bucket), 0, 0)
            self.reset()
            return value
        with nogil:
            code = self.close_tree(&bucket.root)
        self.check(code, b"")
        self.reset()
        return (<const char *>&bucket)[:sizeof(bucket)]

    def finish(self, uint64_t root):
        """Write what is left and the metas. Returns the file's bytes. The caller syncs."""
        cdef int code
        with nogil:
            code = self.drain()
            if code == WRITE_OK:
                code = self.write_metas(root)
        self.check(code, b"")
        return self.next_page * self.page_bytes

    # ---- inside ----

    cdef object check(self, int code, bytes key):
        if code == WRITE_OK:
            return
        if code == WRITE_NO_MEMORY:
            raise MemoryError()
        if code == WRITE_FAILED:
            raise OSError(self.failed_errno, os.strerror(self.failed_errno))
        if code == WRITE_ORDER:
            raise ValueError(f"key {key!r} is not above the key before it")
        if code == WRITE_KEY:
            raise ValueError(f"a key of {len(key)} bytes: expected 1 to {BOLT_KEY_BYTES_MAX}")
        raise ValueError(f"the value of key {key!r} is too large: expected at most {BOLT_VALUE_BYTES_MAX} bytes")

    cdef void reset(self) noexcept nogil:
        self.leaf_count = 0
        self.data_bytes = 0
        self.has_bucket = False
        self.has_last_key = False
        self.row_count = 0
        self.row_keys_bytes = 0

    cdef int add(self, const uint8_t *key, size_t key_bytes, const uint8_t *value, size_t value_bytes, bint bucket) noexcept nogil:
        cdef bolt_leaf *element
        cdef const uint8_t *last = self.last_key
        cdef size_t last_bytes = self.last_key_bytes
        cdef size_t used = BOLT_HEADER_BYTES + self.leaf_count * BOLT_ELEMENT_BYTES + self.data_bytes
        cdef int order
        cdef int code
        if key_bytes == 0 or key_bytes > BOLT_KEY_BYTES_MAX:
            return WRITE_KEY
        if value_bytes > BOLT_VALUE_BYTES_MAX:
            return WRITE_VALUE
        if self.leaf_count:
            element = &self.leaf[self.leaf_count - 1]
            last = self.data + element.pos
            last_bytes = element.key_bytes
        if self.leaf_count or self.has_last_key:
            order = memcmp(last, key, last_bytes if last_bytes < key_bytes else key_bytes)
            if order > 0 or (order == 0 and last_bytes >= key_bytes):
                return WRITE_ORDER
        if self.leaf_count and used + BOLT_ELEMENT_BYTES + key_bytes + value_bytes > self.page_bytes:
            code = self.close_leaf()
            if code != WRITE_OK:
                return code
        if self.data_bytes + key_bytes + value_bytes > self.data_capacity:
            code = make_room(&self.data, &self.data_capacity, self.data_bytes + key_bytes + value_bytes)
            if code != WRITE_OK:
                return code
        element = &self.leaf[self.leaf_count]
        element.flags = BOLT_IS_BUCKET if bucket else 0
        element.pos = <uint32_t>self.data_bytes
        element.key_bytes = <uint32_t>key_bytes
        element.value_bytes = <uint32_t>value_bytes
        memcpy(self.data + self.data_bytes, key, key_bytes)
        memcpy(self.data + self.data_bytes + key_bytes, value, value_bytes)
        self.data_bytes += key_bytes + value_bytes
        self.leaf_count += 1
        self.items += 1
        if bucket:
            self.has_bucket = True
        return WRITE_OK

    # The open leaf as page `id` at `out`; returns its bytes.
    cdef size_t image(self, uint8_t *out, uint64_t id, uint32_t overflow) noexcept nogil:
        cdef bolt_page header
        cdef uint32_t i
        cdef size_t elements_bytes = self.leaf_count * BOLT_ELEMENT_BYTES
        header.id = id
        header.flags = BOLT_LEAF
        header.count = <unsigned short>self.leaf_count
        header.overflow = overflow
        for i in range(self.leaf_count):
            self.leaf[i].pos += <uint32_t>(elements_bytes - i * BOLT_ELEMENT_BYTES)
        memcpy(out, &header, sizeof(header))
        memcpy(out + BOLT_HEADER_BYTES, self.leaf, elements_bytes)
        memcpy(out + BOLT_HEADER_BYTES + elements_bytes, self.data, self.data_bytes)
        return BOLT_HEADER_BYTES + elements_bytes + self.data_bytes

    # Give out the pages that `bytes_all` need; room for them at the end of `out`, zeros behind `bytes_all`.
    cdef int claim(self, size_t bytes_all, uint64_t *id, uint32_t *overflow, uint8_t **at) noexcept nogil:
        cdef size_t pages = (bytes_all + self.page_bytes - 1) // self.page_bytes
        cdef size_t room = pages * self.page_bytes
        cdef int code
        if self.out_bytes + room > self.out_capacity:
            code = self.drain()
            if code == WRITE_OK and room > self.out_capacity:
                code = make_room(&self.out, &self.out_capacity, room)
            if code != WRITE_OK:
                return code
        at[0] = self.out + self.out_bytes
        memset(at[0] + bytes_all, 0, room - bytes_all)
        id[0] = self.next_page
        overflow[0] = <uint32_t>(pages - 1)
        self.next_page += pages
        self.out_bytes += room
        return WRITE_OK

    cdef int close_leaf(self) noexcept nogil:
        cdef size_t bytes_all = BOLT_HEADER_BYTES + self.leaf_count * BOLT_ELEMENT_BYTES + self.data_bytes
        cdef uint64_t id = 0
        cdef uint32_t overflow = 0
        cdef uint8_t *at = NULL
        cdef bolt_leaf *last
        cdef int code
        if self.leaf_count:
            code = self.note(self.next_page, self.data, self.leaf[0].key_bytes)
            if code != WRITE_OK:
                return code
            last = &self.leaf[self.leaf_count - 1]
            memcpy(self.last_key, self.data + last.pos, last.key_bytes)
            self.last_key_bytes = last.key_bytes
            self.has_last_key = True
        else:
            code = self.note(self.next_page, NULL, 0)
            if code != WRITE_OK:
                return code
        code = self.claim(bytes_all, &id, &overflow, &at)
        if code != WRITE_OK:
            return code
        self.image(at, id, overflow)
        self.leaf_count = 0
        self.data_bytes = 0
        return WRITE_OK

    # Remember a page for the level above.
    cdef int note(self, uint64_t page, const uint8_t *key, size_t key_bytes) noexcept nogil:
        cdef size_t row_bytes = self.row_capacity * sizeof(page_row)
        cdef page_row *row
        cdef int code
        if self.row_count == self.row_capacity:
            code = make_room(<uint8_t **>&self.rows, &row_bytes, row_bytes + 256 * sizeof(page_row))
            if code != WRITE_OK:
                return code
            self.row_capacity = row_bytes // sizeof(page_row)
        if self.row_keys_bytes + key_bytes > self.row_keys_capacity:
            code = make_room(&self.row_keys, &self.row_keys_capacity, self.row_keys_bytes + key_bytes)
            if code != WRITE_OK:
                return code
        row = &self.rows[self.row_count]
        row.page = page
        row.key_at = self.row_keys_bytes
        row.key_bytes = key_bytes
        if key_bytes:
            memcpy(self.row_keys + self.row_keys_bytes, key, key_bytes)
        self.row_keys_bytes += key_bytes
        self.row_count += 1
        return WRITE_OK

    cdef int close_tree(self, uint64_t *root) noexcept nogil:
        cdef int code
        if self.leaf_count or self.row_count == 0:
            code = self.close_leaf()
            if code != WRITE_OK:
                return code
        while self.row_count > 1:
            code = self.close_level()
            if code != WRITE_OK:
                return code
        root[0] = self.rows[0].page
        return WRITE_OK

    # Branch pages over `rows`, which becomes the rows of those pages. Each takes two children at least, whatever
    # the size of their keys, so that every level is at most half as long as the one below.
    cdef int close_level(self) noexcept nogil:
        cdef size_t first = 0
        cdef size_t made = 0
        cdef size_t i, count, bytes_all, need
        cdef page_row first_row
        cdef int code
        while first < self.row_count:
            count = 0
            bytes_all = BOLT_HEADER_BYTES
            for i in range(first, self.row_count):
                need = BOLT_ELEMENT_BYTES + self.rows[i].key_bytes
                if count == BOLT_COUNT_MAX or (count >= 2 and bytes_all + need > self.page_bytes):
                    break
                bytes_all += need
                count += 1
            if self.row_count - first - count == 1 and count > 2:  # no page with a single child at the end
                count -= 1
                bytes_all -= BOLT_ELEMENT_BYTES + self.rows[first + count].key_bytes
            # The row of the new page goes where rows already read were: made < first + count.
            first_row = self.rows[first]
            first_row.page = self.next_page
            code = self.write_branch(first, count, bytes_all)
            if code != WRITE_OK:
                return code
            self.rows[made] = first_row
            made += 1
            first += count
        self.row_count = made
        return WRITE_OK

    cdef int write_branch(self, size_t first, size_t count, size_t bytes_all) noexcept nogil:
        cdef bolt_page header
        cdef bolt_branch element
        cdef uint64_t id = 0
        cdef uint32_t overflow = 0
        cdef uint8_t *at = NULL
        cdef uint8_t *element_at
        cdef uint8_t *key_at
        cdef page_row *row
        cdef size_t i
        cdef int code = self.claim(bytes_all, &id, &overflow, &at)
        if code != WRITE_OK:
            return code
        header.id = id
        header.flags = BOLT_BRANCH
        header.count = <unsigned short>count
        header.overflow = overflow
        memcpy(at, &header, sizeof(header))
        element_at = at + BOLT_HEADER_BYTES
        key_at = element_at + count * BOLT_ELEMENT_BYTES
        for i in range(first, first + count):
            row = &self.rows[i]
            element.pos = <uint32_t>(key_at - element_at)
            element.key_bytes = <uint32_t>row.key_bytes
            element.child = row.page
            memcpy(element_at, &element, sizeof(element))
            memcpy(key_at, self.row_keys + row.key_at, row.key_bytes)
            element_at += BOLT_ELEMENT_BYTES
            key_at += row.key_bytes
        return WRITE_OK

    cdef int drain(self) noexcept nogil:
        cdef int code = self.write_at(self.out, self.out_bytes, self.out_offset)
        if code == WRITE_OK:
            self.out_offset += <int64_t>self.out_bytes
            self.out_bytes = 0
        return code

    cdef int write_at(self, const uint8_t *data, size_t size, int64_t offset) noexcept nogil:
        cdef ssize_t wrote
        while size:
            wrote = pwrite(self.fd, data, size, <off_t>offset)
            if wrote < 0:
                if errno == EINTR:
                    continue
                self.failed_errno = errno
                return WRITE_FAILED
            data += wrote
            size -= <size_t>wrote
            offset += wrote
        return WRITE_OK

    # Page 0 has an even transaction id and the higher one: so the first commit of whoever opens the file goes to
    # page 1, and a crash in it leaves page 0.
    cdef int write_metas(self, uint64_t root) noexcept nogil:
        cdef bolt_page header
        cdef bolt_meta meta
        cdef uint64_t number
        cdef uint8_t *page = self.out
        memset(page, 0, 2 * self.page_bytes)
        for number in range(2):
            memset(&header, 0, sizeof(header))
            header.id = number
            header.flags = BOLT_META
            meta.magic = bolt_magic()
            meta.version = BOLT_VERSION
            meta.page_bytes = <uint32_t>self.page_bytes
            meta.flags = 0
            meta.root = root
            meta.sequence = 0
            meta.freelist = bolt_no_freelist()
            meta.pages = self.next_page
            meta.txid = 2 - number
            meta.checksum = bolt_fnv1a(&meta, BOLT_META_SUMMED_BYTES)
            memcpy(page, &header, sizeof(header))
            memcpy(page + BOLT_HEADER_BYTES, &meta, sizeof(meta))
            page += self.page_bytes
        return self.write_at(self.out, 2 * self.page_bytes, 0)


# Grow `block` to at least `wanted` bytes, by half of what it has or more.
cdef int make_room(uint8_t **block, size_t *capacity, size_t wanted) noexcept nogil:
    cdef size_t grown = capacity[0] + capacity[0] // 2
    cdef uint8_t *moved
    if grown < wanted:
        grown = wanted
    moved = <uint8_t *>realloc(block[0], grown)
    if moved == NULL:
        return WRITE_NO_MEMORY
    block[0] = moved
    capacity[0] = grown
    return WRITE_OK
