"""bbolt files read with suspicion: every page, length and order is checked before anything in it is used.

Pages are read with pread, not mapped: a file cut short while it is read, or a sector that the disk cannot give,
is then an error and no signal. Source: formats.md 7.1-7.5, 7.8.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EINTR, errno
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset
from posix.types cimport off_t
from posix.unistd cimport pread

import os

from etcdfast._ext.boltpage cimport (
    BOLT_BRANCH,
    BOLT_DEPTH_MAX,
    BOLT_ELEMENT_BYTES,
    BOLT_FREELIST,
    BOLT_HEADER_BYTES,
    BOLT_IS_BUCKET,
    BOLT_KEY_BYTES_MAX,
    BOLT_LEAF,
    BOLT_META_SUMMED_BYTES,
    BOLT_PAGE_BYTES_MAX,
    BOLT_PAGE_BYTES_MIN,
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
from etcdfast._ext.crc32c cimport crc32c_update


cdef enum:
    BOLT_MORE = 1  # a leaf is at hand
    BOLT_OK = 0  # or: no more leaves
    BOLT_NO_MEMORY = -1
    BOLT_READ = -2  # errno is in `error_errno`
    BOLT_SHORT = -3
    BOLT_RANGE = -4
    BOLT_TWICE = -5
    BOLT_ID = -6
    BOLT_TYPE = -7
    BOLT_OVERFLOW = -8
    BOLT_COUNT = -9
    BOLT_ELEMENT = -10
    BOLT_KEY = -11
    BOLT_ORDER = -12
    BOLT_PARENT = -13
    BOLT_FLAGS = -14
    BOLT_NO_CHILD = -15
    BOLT_DEEP = -16
    BOLT_BUCKET = -17
    BOLT_FREE = -18
    BOLT_FREE_ORDER = -19
    BOLT_LOST = -20
    BOLT_INLINE_FLAGS = -21

REASONS = {
    BOLT_SHORT: "the file ends before it",
    BOLT_RANGE: "its id is outside the database",
    BOLT_TWICE: "it is referred to twice",
    BOLT_ID: "it carries another page's id",
    BOLT_TYPE: "it is of a wrong type",
    BOLT_OVERFLOW: "it reaches beyond the database",
    BOLT_COUNT: "it counts more elements than fit",
    BOLT_ELEMENT: "an element reaches beyond the page",
    BOLT_KEY: "a key is empty or too long",
    BOLT_ORDER: "its keys are not in order",
    BOLT_PARENT: "it holds keys outside the range that its parent gives it",
    BOLT_FLAGS: "an element has unknown flags",
    BOLT_NO_CHILD: "it is a branch without children",
    BOLT_DEEP: "the tree is too deep",
    BOLT_BUCKET: "the value of a bucket is too short",
    BOLT_FREE: "it is in use and in the freelist",
    BOLT_FREE_ORDER: "the freelist is not in order",
    BOLT_LOST: "it is neither in use nor in the freelist",
    BOLT_INLINE_FLAGS: "an inline bucket is no leaf",
}  # fmt: skip


class BoltError(Exception):
    """A database file that cannot be read: `path`, `page` (None when it is the whole file), `reason`."""

    def __init__(self, path, page, reason):
        at = "" if page is None else f": page {page}"
        super().__init__(f"{path}{at}: {reason}")
        self.path = path
        self.page = page
        self.reason = reason


cdef class BoltFile:
    """An open database file: its newest valid meta, and the reading of pages.

    Errors: BoltError when there is no valid meta or the file is shorter than it says. The descriptor is borrowed.
    """
    cdef int fd
    cdef readonly object path
    cdef readonly uint64_t file_bytes
    cdef readonly size_t page_bytes
    cdef readonly uint64_t pages  # of the database; pages from here on are not part of it
    cdef readonly uint64_t root
    cdef readonly bint has_freelist
    cdef readonly uint64_t freelist_page  # if has_freelist
    cdef readonly uint64_t txid
    cdef uint64_t error_page  # 0: an inline bucket, which has no page of its own
    cdef int error_errno

    def __init__(self, int fd, path):
        cdef bolt_meta meta
        cdef bolt_meta newest
        cdef int found = 0
        cdef size_t page_bytes
        self.fd = fd
        self.path = path
        self.file_bytes = <uint64_t>os.fstat(fd).st_size
        memset(&newest, 0, sizeof(newest))
        if self.read_meta(BOLT_HEADER_BYTES, &meta):
            newest = meta
            found = 1
            page_bytes = meta.page_bytes
            if self.read_meta(page_bytes + BOLT_HEADER_BYTES, &meta) and meta.page_bytes == page_bytes:
                if meta.txid > newest.txid:
                    newest = meta
        else:
            page_bytes = BOLT_PAGE_BYTES_MIN
            while page_bytes <= BOLT_PAGE_BYTES_MAX:
                if self.read_meta(page_bytes + BOLT_HEADER_BYTES, &meta) and meta.page_bytes == page_bytes:
                    newest = meta
                    found = 1
                    break
                page_bytes *= 2
        if not found:
            raise BoltError(path, None, "this is no bbolt database, or both of its meta pages are damaged")
        self.page_bytes = newest.page_bytes
        self.pages = newest.pages
        self.root = newest.root
        self.txid = newest.txid
        self.freelist_page = newest.freelist
        self.has_freelist = newest.freelist != bolt_no_freelist()
        if self.pages > self.file_bytes // self.page_bytes:
            raise BoltError(
                path, None,
                f"the file has {self.file_bytes} bytes, its database {self.pages} pages of {self.page_bytes}: it was cut short",
            )

    # Whether a valid meta is at `offset` of the file.
    cdef bint read_meta(self, size_t offset, bolt_meta *meta):
        cdef int code = self.read_at(<uint8_t *>meta, sizeof(bolt_meta), offset)
        if code == BOLT_READ:
            raise OSError(self.error_errno, os.strerror(self.error_errno), self.path)
        if code != BOLT_OK:
            return False
        return (
            meta.magic == bolt_magic()
            and meta.version == BOLT_VERSION
            and meta.checksum == bolt_fnv1a(meta, BOLT_META_SUMMED_BYTES)
            and meta.page_bytes >= BOLT_PAGE_BYTES_MIN
            and meta.page_bytes <= BOLT_PAGE_BYTES_MAX
            and meta.page_bytes & (meta.page_bytes - 1) == 0
        )

    cdef int read_at(self, uint8_t *out, size_t size, uint64_t offset) noexcept nogil:
        cdef ssize_t got
        while size:
            got = pread(self.fd, out, size, <off_t>offset)
            if got < 0:
                if errno == EINTR:
                    continue
                self.error_errno = errno
                return BOLT_READ
            if got == 0:
                return BOLT_SHORT
            out += got
            size -= <size_t>got
            offset += <uint64_t>got
        return BOLT_OK

    cdef object raise_code(self, int code):
        if code == BOLT_NO_MEMORY:
            raise MemoryError()
        if code == BOLT_READ:
            raise OSError(self.error_errno, os.strerror(self.error_errno), self.path)
        if self.error_page == 0:
            raise BoltError(self.path, None, f"in a bucket: {REASONS[code]}")
        raise BoltError(self.path, self.error_page, REASONS[code])

    def check_freelist(self, PageSet seen not None):
        """That each page is either in `seen` (what the trees reach) or in the freelist, not both.

        Nothing to check when the file keeps no freelist. Errors: BoltError.
        """
        cdef uint8_t *data = NULL
        cdef size_t data_bytes = 0
        cdef int code
        if not self.has_freelist:
            return
        with nogil:
            code = read_freelist(self, seen, &data, &data_bytes)
            free(data)
        if code != BOLT_OK:
            self.raise_code(code)


cdef class PageSet:
    """One bit per page of a file. Errors: MemoryError."""
    cdef uint8_t *bits
    cdef uint64_t pages

    def __cinit__(self, BoltFile file not None):
        self.pages = file.pages
        # The file is at least as long as its pages say, so this is a 32768th of its size at most.
        self.bits = <uint8_t *>calloc(<size_t>(self.pages // 8 + 1), 1)
        if self.bits == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.bits)

    # True when it was there already.
    cdef bint add(self, uint64_t page) noexcept nogil:
        cdef uint8_t bit = <uint8_t>(1 << (page & 7))
        cdef uint8_t before = self.bits[page >> 3]
        self.bits[page >> 3] = before | bit
        return before & bit != 0

    cdef bint has(self, uint64_t page) noexcept nogil:
        return self.bits[page >> 3] >> (page & 7) & 1


# A page with its overflow in memory; of a branch, the child to visit next.
ctypedef struct page_frame:
    uint8_t *data
    size_t data_bytes  # of the page, with overflow
    size_t capacity
    uint64_t id
    uint32_t count
    uint32_t next_child
    bint is_leaf
    # The keys of the subtree are below this one; NULL: no bound. Points into the frame of a parent.
    const uint8_t *bound
    size_t bound_bytes


# Read page `id` into `frame` and check its frame: id, type, extent, count. The pages it takes are added to `seen`.
cdef int load_page(BoltFile file, PageSet seen, page_frame *frame, uint64_t id) noexcept nogil:
    cdef bolt_page header
    cdef uint64_t page
    cdef size_t wanted
    cdef uint8_t *moved
    cdef int code
    file.error_page = id
    if id < 2 or id >= file.pages:
        return BOLT_RANGE
    if seen.add(id):
        return BOLT_TWICE
    if frame.capacity < file.page_bytes:
        moved = <uint8_t *>realloc(frame.data, file.page_bytes)
        if moved == NULL:
            return BOLT_NO_MEMORY
        frame.data = moved
        frame.capacity = file.page_bytes
    code = file.read_at(frame.data, file.page_bytes, id * file.page_bytes)
    if code != BOLT_OK:
        return code
    memcpy(&header, frame.data, sizeof(header))
    if header.id != id:
        return BOLT_ID
    if header.flags != BOLT_LEAF and header.flags != BOLT_BRANCH and header.flags != BOLT_FREELIST:
        return BOLT_TYPE
    if header.overflow >= file.pages - id:
        return BOLT_OVERFLOW
    wanted = file.page_bytes * (<size_t>header.overflow + 1)
    if header.overflow:
        for page in range(id + 1, id + header.overflow + 1):
            if seen.add(page):
                file.error_page = page
                return BOLT_TWICE
        if frame.capacity < wanted:
            moved = <uint8_t *>realloc(frame.data, wanted)
            if moved == NULL:
                return BOLT_NO_MEMORY
            frame.data = moved
            frame.capacity = wanted
        code = file.read_at(frame.data + file.page_bytes, wanted - file.page_bytes, (id + 1) * file.page_bytes)
        if code != BOLT_OK:
            return code
    frame.data_bytes = wanted
    frame.id = id
    frame.count = header.count
    frame.next_child = 0
    frame.is_leaf = header.flags == BOLT_LEAF
    # A freelist's numbers are checked by who reads them.
    if header.flags != BOLT_FREELIST and BOLT_HEADER_BYTES + <size_t>header.count * BOLT_ELEMENT_BYTES > wanted:
        return BOLT_COUNT
    return BOLT_OK


cdef int compare(const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes) noexcept nogil:
    cdef int order = memcmp(a, b, a_bytes if a_bytes < b_bytes else b_bytes)
    if order:
        return order
    return 0 if a_bytes == b_bytes else (-1 if a_bytes < b_bytes else 1)


# All elements of a leaf lie within the page, and their keys ascend.
cdef int check_leaf(page_frame *frame) noexcept nogil:
    cdef const bolt_leaf *elements = <const bolt_leaf *>(frame.data + BOLT_HEADER_BYTES)
    cdef const uint8_t *last = NULL
    cdef const uint8_t *key
    cdef size_t last_bytes = 0
    cdef size_t floor = BOLT_HEADER_BYTES + <size_t>frame.count * BOLT_ELEMENT_BYTES
    cdef size_t at
    cdef uint32_t i
    for i in range(frame.count):
        at = BOLT_HEADER_BYTES + <size_t>i * BOLT_ELEMENT_BYTES + elements[i].pos
        if at < floor or at + elements[i].key_bytes + elements[i].value_bytes > frame.data_bytes:
            return BOLT_ELEMENT
        if elements[i].key_bytes == 0 or elements[i].key_bytes > BOLT_KEY_BYTES_MAX:
            return BOLT_KEY
        if elements[i].flags != 0 and elements[i].flags != BOLT_IS_BUCKET:
            return BOLT_FLAGS
        if elements[i].flags == BOLT_IS_BUCKET and elements[i].value_bytes < sizeof(bolt_bucket):
            return BOLT_BUCKET
        key = frame.data + at
        if i and compare(last, last_bytes, key, elements[i].key_bytes) >= 0:
            return BOLT_ORDER
        last = key
        last_bytes = elements[i].key_bytes
    return BOLT_OK


cdef int check_branch(page_frame *frame) noexcept nogil:
    cdef const bolt_branch *elements = <const bolt_branch *>(frame.data + BOLT_HEADER_BYTES)
    cdef const uint8_t *last = NULL
    cdef const uint8_t *key
    cdef size_t last_bytes = 0
    cdef size_t floor = BOLT_HEADER_BYTES + <size_t>frame.count * BOLT_ELEMENT_BYTES
    cdef size_t at
    cdef uint32_t i
    if frame.count == 0:
        return BOLT_NO_CHILD
    for i in range(frame.count):
        at = BOLT_HEADER_BYTES + <size_t>i * BOLT_ELEMENT_BYTES + elements[i].pos
        if at < floor or at + elements[i].key_bytes > frame.data_bytes:
            return BOLT_ELEMENT
        if elements[i].key_bytes == 0 or elements[i].key_bytes > BOLT_KEY_BYTES_MAX:
            return BOLT_KEY
        key = frame.data + at
        if i and compare(last, last_bytes, key, elements[i].key_bytes) >= 0:
            return BOLT_ORDER
        last = key
        last_bytes = elements[i].key_bytes
    return BOLT_OK


cdef int read_freelist(BoltFile file, PageSet seen, uint8_t **data, size_t *data_bytes) noexcept nogil:
    cdef page_frame frame
    cdef bolt_page header
    cdef const uint64_t *ids
    cdef uint64_t count, i, last, id
    cdef int code
    memset(&frame, 0, sizeof(frame))
    code = load_page(file, seen, &frame, file.freelist_page)
    data[0] = frame.data
    data_bytes[0] = frame.data_bytes
    if code != BOLT_OK:
        return code
    memcpy(&header, frame.data, sizeof(header))
    if header.flags != BOLT_FREELIST:
        return BOLT_TYPE
    ids = <const uint64_t *>(frame.data + BOLT_HEADER_BYTES)
    count = header.count
    if count == 0xFFFF:  # the real count is the first number
        count = ids[0]
        ids += 1
    if count > (frame.data_bytes - <size_t>(<const uint8_t *>ids - frame.data)) // 8:
        return BOLT_COUNT
    last = 1
    for i in range(count):
        id = ids[i]
        if id <= last:
            return BOLT_FREE_ORDER
        last = id
        if id >= file.pages:
            file.error_page = id
            return BOLT_RANGE
        if seen.add(id):
            file.error_page = id
            return BOLT_FREE
    for id in range(2, file.pages):
        if not seen.has(id):
            file.error_page = id
            return BOLT_LOST
    return BOLT_OK


cdef class Tree:
    """The items of one bucket in order, a leaf page at a time.

    `bucket` is the value of the bucket's element, None for the tree of top-level buckets. `seen` collects the pages
    met (a file's trees share no page); None makes a set of its own, which still ends a tree that runs in circles.
    Errors: BoltError, OSError, MemoryError from whatever reads on; after one of them the tree is done with.
    """
    cdef BoltFile file
    cdef PageSet seen
    cdef page_frame frames[64]
    cdef int depth  # frames in use
    cdef bint started, ended
    cdef uint64_t root
    cdef uint32_t leaf_next  # element of the leaf on top that comes next
    cdef bint have_leaf
    cdef uint8_t prior_key[32768]  # of the leaf before
    cdef size_t prior_key_bytes
    cdef bint has_prior_key
    cdef readonly uint64_t sequence
    cdef readonly uint64_t items  # met by crc(), of all kinds

    def __init__(self, BoltFile file not None, bytes bucket=None, PageSet seen=None):
        cdef bolt_bucket value
        self.file = file
        self.seen = PageSet(file) if seen is None else seen
        self.root = file.root
        if bucket is None:
            return
        if len(bucket) < <Py_ssize_t>sizeof(value):
            file.error_page = 0
            file.raise_code(BOLT_BUCKET)
        memcpy(&value, PyBytes_AS_STRING(bucket), sizeof(value))
        self.root = value.root
        self.sequence = value.sequence
        if value.root == 0:
            self.open_inline(bucket)

    def __dealloc__(self):
        cdef int i
        for i in range(BOLT_DEPTH_MAX):
            free(self.frames[i].data)

    cdef object open_inline(self, bytes bucket):
        cdef bolt_page header
        cdef page_frame *frame = &self.frames[0]
        cdef size_t size = <size_t>len(bucket) - sizeof(bolt_bucket)
        cdef int code = BOLT_OK
        self.started = True
        self.file.error_page = 0
        if size < BOLT_HEADER_BYTES:
            self.file.raise_code(BOLT_BUCKET)
        # A copy: within a page it may lie at any address.
        frame.data = <uint8_t *>malloc(size)
        if frame.data == NULL:
            raise MemoryError()
        frame.capacity = size
        frame.data_bytes = size
        memcpy(frame.data, PyBytes_AS_STRING(bucket) + sizeof(bolt_bucket), size)
        memcpy(&header, frame.data, sizeof(header))
        frame.count = header.count
        frame.is_leaf = True
        if header.flags != BOLT_LEAF:
            code = BOLT_INLINE_FLAGS
        elif BOLT_HEADER_BYTES + <size_t>header.count * BOLT_ELEMENT_BYTES > size:
            code = BOLT_COUNT
        else:
            code = check_leaf(frame)
        if code != BOLT_OK:
            self.file.raise_code(code)
        self.depth = 1
        self.have_leaf = True

    # Make the next leaf the top frame. BOLT_MORE, BOLT_OK at the end, or what is wrong.
    cdef int advance(self) noexcept nogil:
        cdef page_frame *top
        cdef const bolt_branch *children
        cdef uint64_t child
        cdef int code
        if self.ended:
            return BOLT_OK
        if self.have_leaf:
            self.have_leaf = False
            self.keep_prior_key()
            self.depth -= 1
        if not self.started:
            self.started = True
            code = self.enter(self.root)
            if code != BOLT_OK:
                self.ended = True
                return code
        while self.depth:
            top = &self.frames[self.depth - 1]
            if top.is_leaf:
                self.have_leaf = True
                self.leaf_next = 0
                return BOLT_MORE
            if top.next_child == top.count:
                self.depth -= 1
                continue
            children = <const bolt_branch *>(top.data + BOLT_HEADER_BYTES)
            child = children[top.next_child].child
            code = self.enter(child)
            if code != BOLT_OK:
                self.ended = True
                return code
        self.ended = True
        return BOLT_OK

    # Load `page` as the child that the top frame names next (or as the root) and check it against its place.
    cdef int enter(self, uint64_t page) noexcept nogil:
        cdef page_frame *parent = NULL
        cdef page_frame *frame
        cdef const bolt_branch *children
        cdef const uint8_t *at
        cdef int code
        if self.depth == BOLT_DEPTH_MAX:
            self.file.error_page = page
            return BOLT_DEEP
        frame = &self.frames[self.depth]
        code = load_page(self.file, self.seen, frame, page)
        if code != BOLT_OK:
            return code
        if frame.is_leaf:
            code = check_leaf(frame)
        elif (<const bolt_page *>frame.data).flags == BOLT_BRANCH:
            code = check_branch(frame)
        else:
            return BOLT_TYPE
        if code != BOLT_OK:
            return code
        frame.bound = NULL
        frame.bound_bytes = 0
        if self.depth:
            parent = &self.frames[self.depth - 1]
            children = <const bolt_branch *>(parent.data + BOLT_HEADER_BYTES) + parent.next_child
            at = <const uint8_t *>children + children.pos
            if not self.in_range(frame, at, children.key_bytes):
                return BOLT_PARENT
            parent.next_child += 1
            if parent.next_child < parent.count:
                children += 1
                frame.bound = <const uint8_t *>children + children.pos
                frame.bound_bytes = children.key_bytes
            else:
                frame.bound = parent.bound
                frame.bound_bytes = parent.bound_bytes
            if frame.bound != NULL and not self.below(frame):
                return BOLT_PARENT
        self.depth += 1
        return BOLT_OK

    # Whether the first key of `frame` is not below what its parent says, nor below what came before.
    cdef bint in_range(self, page_frame *frame, const uint8_t *low, size_t low_bytes) noexcept nogil:
        cdef const uint8_t *key
        cdef size_t key_bytes = 0
        if frame.count == 0:
            return True
        key = key_of(frame, 0, &key_bytes)
        if compare(key, key_bytes, low, low_bytes) < 0:
            return False
        return not self.has_prior_key or compare(self.prior_key, self.prior_key_bytes, key, key_bytes) < 0

    cdef bint below(self, page_frame *frame) noexcept nogil:
        cdef const uint8_t *key
        cdef size_t key_bytes = 0
        if frame.count == 0:
            return True
        key = key_of(frame, frame.count - 1, &key_bytes)
        return compare(key, key_bytes, frame.bound, frame.bound_bytes) < 0

    cdef void keep_prior_key(self) noexcept nogil:
        cdef page_frame *leaf = &self.frames[self.depth - 1]
        cdef const uint8_t *key
        cdef size_t key_bytes = 0
        if leaf.count:
            key = key_of(leaf, leaf.count - 1, &key_bytes)
            memcpy(self.prior_key, key, key_bytes)
            self.prior_key_bytes = key_bytes
            self.has_prior_key = True

    # ---- for Python ----

    def batch(self, size_t items_max, bytes prefix not None=b"", bint buckets=False):
        """The next items as [(prefix + key, value)], at most `items_max`; [] at the end.

        Elements that are buckets are left out; with `buckets` it is the others that are.
        """
        cdef list out = []
        cdef page_frame *leaf
        cdef const bolt_leaf *element
        cdef const uint8_t *key
        cdef const char *prefix_data = PyBytes_AS_STRING(prefix)
        cdef size_t prefix_bytes = <size_t>len(prefix)
        cdef bytes made
        cdef char *into
        cdef size_t left = items_max
        cdef int code
        while left:
            if not self.have_leaf or self.leaf_next == self.frames[self.depth - 1].count:
                with nogil:
                    code = self.advance()
                if code < 0:
                    self.file.raise_code(code)
                if code == BOLT_OK:
                    break
                continue
            leaf = &self.frames[self.depth - 1]
            while left and self.leaf_next < leaf.count:
                element = <const bolt_leaf *>(leaf.data + BOLT_HEADER_BYTES) + self.leaf_next
                self.leaf_next += 1
                if (element.flags == BOLT_IS_BUCKET) != buckets:
                    continue
                key = <const uint8_t *>element + element.pos
                made = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(prefix_bytes + element.key_bytes))
                into = PyBytes_AS_STRING(made)
                memcpy(into, prefix_data, prefix_bytes)
                memcpy(into + prefix_bytes, key, element.key_bytes)
                out.append(
                    (made, PyBytes_FromStringAndSize(<const char *>key + element.key_bytes, element.value_bytes))
                )
                left -= 1
        return out

    def crc(self, uint32_t seed):
        """Walk what is left; the CRC-32C of `seed` and all keys and values, as etcd's snapshot status takes it.

        Of a bucket element only the name counts. Adds to `items`; afterwards last_key() is the last key.
        """
        cdef int code = BOLT_OK
        with nogil:
            while True:
                if self.have_leaf:
                    seed = self.leaf_crc(seed)
                code = self.advance()
                if code != BOLT_MORE:
                    break
        if code < 0:
            self.file.raise_code(code)
        return seed

    def walk(self):
        """Walk what is left only for its checks. Returns [value] of the buckets in it."""
        cdef int code = BOLT_OK
        cdef list found = []
        while True:
            with nogil:
                while True:
                    if self.have_leaf and self.seek_bucket():
                        code = BOLT_MORE
                        break
                    code = self.advance()
                    if code != BOLT_MORE:
                        break
            if code < 0:
                self.file.raise_code(code)
            if code == BOLT_OK:
                return found
            found.extend(value for _, value in self.batch(1, b"", True))

    # Whether a bucket is left in this leaf; leaf_next is then its element.
    cdef bint seek_bucket(self) noexcept nogil:
        cdef page_frame *leaf = &self.frames[self.depth - 1]
        cdef const bolt_leaf *elements = <const bolt_leaf *>(leaf.data + BOLT_HEADER_BYTES)
        while self.leaf_next < leaf.count:
            if elements[self.leaf_next].flags == BOLT_IS_BUCKET:
                return True
            self.leaf_next += 1
        return False

    cdef uint32_t leaf_crc(self, uint32_t seed) noexcept nogil:
        cdef page_frame *leaf = &self.frames[self.depth - 1]
        cdef const bolt_leaf *element
        while self.leaf_next < leaf.count:
            element = <const bolt_leaf *>(leaf.data + BOLT_HEADER_BYTES) + self.leaf_next
            # Key and value lie one behind the other.
            seed = crc32c_update(
                seed, <const uint8_t *>element + element.pos,
                <size_t>element.key_bytes + (0 if element.flags else element.value_bytes),
            )
            self.leaf_next += 1
            self.items += 1
        return seed

    def last_key(self):
        """The last key of the tree once it is walked to the end; None when it has no items."""
        return (<const char *>self.prior_key)[:self.prior_key_bytes] if self.has_prior_key else None


# Key `i` of a checked page.
cdef const uint8_t *key_of(page_frame *frame, uint32_t i, size_t *key_bytes) noexcept nogil:
    cdef const bolt_leaf *leaf
    cdef const bolt_branch *branch
    if frame.is_leaf:
        leaf = <const bolt_leaf *>(frame.data + BOLT_HEADER_BYTES) + i
        key_bytes[0] = leaf.key_bytes
        return <const uint8_t *>leaf + leaf.pos
    branch = <const bolt_branch *>(frame.data + BOLT_HEADER_BYTES) + i
    key_bytes[0] = branch.key_bytes
    return <const uint8_t *>branch + branch.pos
