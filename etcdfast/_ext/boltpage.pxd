"""Layout of bbolt's pages (formats.md 7.1-7.4), shared by the reader and the writer; static C, no module of its own."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>

    #ifndef BOLT_PAGE_STRUCTS
    #define BOLT_PAGE_STRUCTS
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "bbolt files are little-endian wherever etcd runs"
    #endif
    typedef struct { uint64_t id; uint16_t flags; uint16_t count; uint32_t overflow; } bolt_page;
    typedef struct { uint32_t flags, pos, key_bytes, value_bytes; } bolt_leaf;
    typedef struct { uint32_t pos, key_bytes; uint64_t child; } bolt_branch;
    typedef struct {
        uint32_t magic, version, page_bytes, flags;
        uint64_t root, sequence, freelist, pages, txid, checksum;
    } bolt_meta;
    typedef struct { uint64_t root, sequence; } bolt_bucket;
    _Static_assert(sizeof(bolt_page) == 16, "bolt_page is a layout on disk");
    _Static_assert(sizeof(bolt_leaf) == 16, "bolt_leaf is a layout on disk");
    _Static_assert(sizeof(bolt_branch) == 16, "bolt_branch is a layout on disk");
    _Static_assert(sizeof(bolt_meta) == 64, "bolt_meta is a layout on disk");
    _Static_assert(sizeof(bolt_bucket) == 16, "bolt_bucket is a layout on disk");

    static inline uint64_t bolt_fnv1a(const void *data, size_t size) {
        const uint8_t *p = (const uint8_t *)data;
        uint64_t hash = 0xcbf29ce484222325u;
        while (size--)
            hash = (hash ^ *p++) * 0x100000001b3u;
        return hash;
    }
    #endif
    """
    # At the start of every page. overflow: pages that follow and belong to it.
    ctypedef struct bolt_page:
        uint64_t id
        uint16_t flags
        uint16_t count
        uint32_t overflow

    # pos counts from the start of the element; the value follows the key.
    ctypedef struct bolt_leaf:
        uint32_t flags
        uint32_t pos
        uint32_t key_bytes
        uint32_t value_bytes

    ctypedef struct bolt_branch:
        uint32_t pos
        uint32_t key_bytes
        uint64_t child

    # Behind the page header of pages 0 and 1. pages: the first page id never given out.
    ctypedef struct bolt_meta:
        uint32_t magic
        uint32_t version
        uint32_t page_bytes
        uint32_t flags
        uint64_t root
        uint64_t sequence
        uint64_t freelist
        uint64_t pages
        uint64_t txid
        uint64_t checksum

    # The value of a leaf element that is a bucket; root 0: an inline page follows.
    ctypedef struct bolt_bucket:
        uint64_t root
        uint64_t sequence

    uint64_t bolt_fnv1a(const void *data, size_t size) noexcept nogil

cdef enum:
    BOLT_BRANCH = 0x01
    BOLT_LEAF = 0x02
    BOLT_META = 0x04
    BOLT_FREELIST = 0x10

    BOLT_IS_BUCKET = 1  # flags of a leaf element

    BOLT_HEADER_BYTES = 16
    BOLT_ELEMENT_BYTES = 16
    BOLT_META_SUMMED_BYTES = 56  # what the meta's checksum covers
    BOLT_VERSION = 2
    BOLT_KEY_BYTES_MAX = 32768
    BOLT_VALUE_BYTES_MAX = 0x7FFFFFFE
    BOLT_PAGE_BYTES_MIN = 1024
    BOLT_PAGE_BYTES_MAX = 65536
    BOLT_COUNT_MAX = 65535
    # A branch has at least two children, as a rule, so no honest tree is deeper.
    BOLT_DEPTH_MAX = 64

cdef inline uint32_t bolt_magic() noexcept nogil:
    return <uint32_t>0xED0CDAED

# The freelist page id of a file that does not keep its freelist.
cdef inline uint64_t bolt_no_freelist() noexcept nogil:
    return ~<uint64_t>0
