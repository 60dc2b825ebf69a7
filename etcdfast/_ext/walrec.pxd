"""WAL frames without I/O: encode records into the caller's memory, walk and verify them.

A frame is an 8-byte little-endian length word, one walpb.Record and zero padding to a multiple of 8
(formats.md 1.2). Bits 0-55 of the word count the record's bytes; with padding the top byte is 0x80 | pad.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

# walpb.Record.type
cdef enum:
    WALREC_METADATA = 1
    WALREC_ENTRY = 2
    WALREC_STATE = 3
    WALREC_CRC = 4
    WALREC_SNAPSHOT = 5

# raftpb.EntryType
cdef enum:
    RAFT_ENTRY_NORMAL = 0
    RAFT_ENTRY_CONF_CHANGE = 1
    RAFT_ENTRY_CONF_CHANGE_V2 = 2

cdef enum:
    WALREC_SECTOR_BYTES = 512  # a disk writes a sector whole or not at all
    # word 8, type 2, crc 6, data tag and length 11, padding 7
    WALREC_FRAME_OVERHEAD_MAX = 34
    # type 2..11, term 11, index 11, data tag and length 11
    WALREC_ENTRY_OVERHEAD_MAX = 44
    WALREC_STATE_FRAME_MAX = 34 + 33
    WALREC_CRC_FRAME_BYTES_MAX = 16

# What walking a log can find. Zero and above: go on. Below: the log does not read on from here.
cdef enum:
    WALREC_OK = 0
    WALREC_END = 1  # end of the file, or a zero length word: the segment's data ends here
    WALREC_TORN = -1  # a write that never finished: ends inside a frame, or a sector of it is missing
    WALREC_BAD_LENGTH = -2  # the length word contradicts itself, its record or its own sector
    WALREC_BAD_RECORD = -3  # the record does not parse, or its padding is not zero
    WALREC_BAD_CRC = -4  # the checksum chain breaks here
    WALREC_BAD_DATA = -5  # the checksum fits but the contents make no sense for their type
    WALREC_BAD_ORDER = -6  # a record where it must not be (no metadata yet, no seed first)
    WALREC_CONFLICT = -7  # metadata differs from the earlier metadata
    WALREC_GAP = -8  # an entry's index leaves a hole after the entries before it
    WALREC_LOST = -9  # a tail that looks torn, but later records prove it had been durable
    WALREC_NO_MEMORY = -10

# One frame of a buffer. `data` points into the buffer; NULL when the record carries none.
ctypedef struct walrec_frame:
    size_t frame_bytes  # whole frame: word, record, padding
    int64_t type
    uint32_t crc
    const uint8_t *data
    size_t data_bytes

# raftpb.Entry; `data` points into the buffer it was read from, NULL when absent.
ctypedef struct walrec_entry:
    int32_t type  # RAFT_ENTRY_*
    uint64_t term
    uint64_t index
    const uint8_t *data
    size_t data_bytes

# raftpb.HardState
ctypedef struct walrec_state:
    uint64_t term
    uint64_t vote
    uint64_t commit

# ---- encoding -------------------------------------------------------------------------------------
# Each writes one frame at `out` and returns its bytes. `crc` is the rolling value, read and advanced.
# The caller must own at least the bound in bytes at `out`; the frame is never larger.

# Largest frame that an entry with `data_bytes` of Data can need.
cdef inline size_t walrec_entry_bound(size_t data_bytes) noexcept nogil:
    return data_bytes + WALREC_FRAME_OVERHEAD_MAX + WALREC_ENTRY_OVERHEAD_MAX

# Largest frame for a record with `data_bytes` of any other data.
cdef inline size_t walrec_record_bound(size_t data_bytes) noexcept nogil:
    return data_bytes + WALREC_FRAME_OVERHEAD_MAX

# A raftpb.Entry whose Data is prefix + data + suffix (each may be NULL when its size is 0). An empty Data
# is left out, as etcd does for the empty entry of a new leader.
cdef size_t walrec_put_entry(
    uint8_t *out, uint32_t *crc, int type, uint64_t term, uint64_t index,
    const uint8_t *prefix, size_t prefix_bytes,
    const uint8_t *data, size_t data_bytes,
    const uint8_t *suffix, size_t suffix_bytes,
) noexcept nogil

# A raftpb.HardState. All zero must not be written (etcd never does): the caller leaves it out.
cdef size_t walrec_put_state(uint8_t *out, uint32_t *crc, uint64_t term, uint64_t vote, uint64_t commit) noexcept nogil

# A walpb.Snapshot; `conf_state` is a marshalled raftpb.ConfState, NULL leaves field 3 out (only right for
# index 0: etcd 3.5 and later refuse to write another without it). Bound: walrec_record_bound(size + 34).
cdef size_t walrec_put_snapshot(
    uint8_t *out, uint32_t *crc, uint64_t index, uint64_t term,
    const uint8_t *conf_state, size_t conf_state_bytes,
) noexcept nogil

# A record of any type but CRC whose data is already marshalled (metadata).
cdef size_t walrec_put_record(uint8_t *out, uint32_t *crc, int type, const uint8_t *data, size_t data_bytes) noexcept nogil

# The seed record at the head of a segment; does not advance the chain.
cdef size_t walrec_put_crc(uint8_t *out, uint32_t crc) noexcept nogil

# ---- reading --------------------------------------------------------------------------------------

# Read the frame at `offset` (a multiple of 8, at most `size`) of a segment held whole in memory. `crc` is the
# rolling value before it; on WALREC_OK it is advanced (a CRC record reseeds it). `torn_ok` says whether this is
# the last segment, the only one where a torn tail may be.
# WALREC_OK, WALREC_END, WALREC_TORN, WALREC_BAD_LENGTH, WALREC_BAD_RECORD, WALREC_BAD_CRC.
cdef int walrec_next(
    const uint8_t *base, size_t size, size_t offset, bint torn_ok, uint32_t *crc, walrec_frame *frame,
) noexcept nogil

# Decode the data of an ENTRY or STATE record. WALREC_OK or WALREC_BAD_DATA.
cdef int walrec_parse_entry(const uint8_t *data, size_t size, walrec_entry *out) noexcept nogil
cdef int walrec_parse_state(const uint8_t *data, size_t size, walrec_state *out) noexcept nogil
# Fields 1 and 2, and field 3 as a varint or, with `bytes_third`, as bytes whose count is given.
cdef int walrec_parse_varints(
    const uint8_t *data, size_t size, uint64_t *first, uint64_t *second, uint64_t *third, bint bytes_third,
) noexcept nogil

cdef bint walrec_all_zero(const uint8_t *start, const uint8_t *end) noexcept nogil

# True when intact records at or after `offset` show that entry `index` had been durable before them. Only a hard
# state's commit can: ours is never written above what was on disk before its batch (walio.pxd), so a missing entry
# below it was lost after it was acknowledged. Two neighbouring frames whose checksums follow from each other are
# taken as intact; one alone proves nothing.
cdef bint walrec_later_commit_covers(const uint8_t *base, size_t size, size_t offset, uint64_t index) noexcept nogil
