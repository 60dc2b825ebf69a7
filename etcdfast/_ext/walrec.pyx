"""WAL frames: the encoder that writes records in place, and the reader that trusts nothing it reads."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from etcdfast._ext.crc32c cimport crc32c_update

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "the WAL codec is written for little-endian machines"
    #endif
    static inline void walrec_store64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }
    static inline uint64_t walrec_load64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
    """
    void walrec_store64(uint8_t *p, uint64_t v) noexcept nogil
    uint64_t walrec_load64(const uint8_t *p) noexcept nogil

# A record's data can be no longer than a frame's 56-bit length allows; anything near it is nonsense and would
# overflow sums, so lengths read are bounded by this first.
cdef uint64_t LENGTH_MASK = (<uint64_t>1 << 56) - 1

# ---- encoding -------------------------------------------------------------------------------------


cdef inline size_t varint_bytes(uint64_t v) noexcept nogil:
    cdef size_t n = 1
    while v >= 0x80:
        v >>= 7
        n += 1
    return n


cdef inline uint8_t *put_varint(uint8_t *p, uint64_t v) noexcept nogil:
    while v >= 0x80:
        p[0] = <uint8_t>(v | 0x80)
        v >>= 7
        p += 1
    p[0] = <uint8_t>v
    return p + 1


cdef inline uint8_t *put_field(uint8_t *p, uint8_t tag, uint64_t v) noexcept nogil:
    p[0] = tag
    return put_varint(p + 1, v)


# The checksum stands before the data but depends on it. Room for a checksum varint of five bytes is left
# (fifteen of sixteen values need it); for a shorter one the data moves down after it is written.
cdef inline uint8_t *begin_record(uint8_t *out, int type, size_t data_bytes) noexcept nogil:
    cdef uint8_t *p = out + 8
    p[0] = 0x08
    p[1] = <uint8_t>type
    p[2] = 0x10
    p[8] = 0x1a
    return put_varint(p + 9, data_bytes)


cdef inline size_t finish_frame(uint8_t *out, size_t record_bytes) noexcept nogil:
    cdef size_t pad = (0 - record_bytes) & 7
    cdef uint64_t word = record_bytes
    if pad:
        word |= (<uint64_t>(0x80 | pad)) << 56
        memset(out + 8 + record_bytes, 0, pad)
    walrec_store64(out, word)
    return 8 + record_bytes + pad


cdef inline size_t finish_record(uint8_t *out, uint32_t *crc, uint8_t *data, size_t data_bytes) noexcept nogil:
    cdef uint8_t *tail = out + 16  # tag of the data
    cdef uint8_t *end
    crc[0] = crc32c_update(crc[0], data, data_bytes)
    end = put_varint(out + 11, crc[0])
    # A five-byte varint ends exactly at the data's tag.
    if end != tail:
        memmove(end, tail, <size_t>(data + data_bytes - tail))
    return finish_frame(out, <size_t>(data + data_bytes - (out + 8)) - <size_t>(tail - end))


cdef size_t walrec_put_entry(
    uint8_t *out, uint32_t *crc, int type, uint64_t term, uint64_t index,
    const uint8_t *prefix, size_t prefix_bytes,
    const uint8_t *data, size_t data_bytes,
    const uint8_t *suffix, size_t suffix_bytes,
) noexcept nogil:
    cdef size_t total = prefix_bytes + data_bytes + suffix_bytes
    cdef size_t entry_bytes = 3 + varint_bytes(<uint64_t>type) + varint_bytes(term) + varint_bytes(index)
    cdef uint8_t *start
    cdef uint8_t *p
    if total:
        entry_bytes += 1 + varint_bytes(total) + total
    start = begin_record(out, WALREC_ENTRY, entry_bytes)
    p = put_field(start, 0x08, <uint64_t>type)
    p = put_field(p, 0x10, term)
    p = put_field(p, 0x18, index)
    if total:
        p = put_field(p, 0x22, total)
        if prefix_bytes:
            memcpy(p, prefix, prefix_bytes)
            p += prefix_bytes
        if data_bytes:
            memcpy(p, data, data_bytes)
            p += data_bytes
        if suffix_bytes:
            memcpy(p, suffix, suffix_bytes)
    return finish_record(out, crc, start, entry_bytes)


cdef size_t walrec_put_state(uint8_t *out, uint32_t *crc, uint64_t term, uint64_t vote, uint64_t commit) noexcept nogil:
    cdef size_t state_bytes = 3 + varint_bytes(term) + varint_bytes(vote) + varint_bytes(commit)
    cdef uint8_t *start = begin_record(out, WALREC_STATE, state_bytes)
    cdef uint8_t *p = put_field(start, 0x08, term)
    p = put_field(p, 0x10, vote)
    put_field(p, 0x18, commit)
    return finish_record(out, crc, start, state_bytes)


cdef size_t walrec_put_snapshot(
    uint8_t *out, uint32_t *crc, uint64_t index, uint64_t term,
    const uint8_t *conf_state, size_t conf_state_bytes,
) noexcept nogil:
    cdef size_t snapshot_bytes = 2 + varint_bytes(index) + varint_bytes(term)
    cdef uint8_t *start
    cdef uint8_t *p
    if conf_state != NULL:
        snapshot_bytes += 1 + varint_bytes(conf_state_bytes) + conf_state_bytes
    start = begin_record(out, WALREC_SNAPSHOT, snapshot_bytes)
    p = put_field(start, 0x08, index)
    p = put_field(p, 0x10, term)
    if conf_state != NULL:
        p = put_field(p, 0x1a, conf_state_bytes)
        memcpy(p, conf_state, conf_state_bytes)
    return finish_record(out, crc, start, snapshot_bytes)


cdef size_t walrec_put_record(uint8_t *out, uint32_t *crc, int type, const uint8_t *data, size_t data_bytes) noexcept nogil:
    cdef uint8_t *start = begin_record(out, type, data_bytes)
    if data_bytes:
        memcpy(start, data, data_bytes)
    return finish_record(out, crc, start, data_bytes)


cdef size_t walrec_put_crc(uint8_t *out, uint32_t crc) noexcept nogil:
    out[8] = 0x08
    out[9] = WALREC_CRC
    out[10] = 0x10
    return finish_frame(out, <size_t>(put_varint(out + 11, crc) - (out + 8)))


# ---- reading --------------------------------------------------------------------------------------


# Next varint of at most ten bytes; NULL when it does not end before `end` or overflows 64 bits.
cdef inline const uint8_t *get_varint(const uint8_t *p, const uint8_t *end, uint64_t *out) noexcept nogil:
    cdef uint64_t v = 0
    cdef int shift = 0
    while p < end and shift < 64:
        if shift == 63 and p[0] > 1:
            return NULL
        v |= (<uint64_t>(p[0] & 0x7f)) << shift
        if p[0] < 0x80:
            out[0] = v
            return p + 1
        p += 1
        shift += 7
    return NULL


cdef bint walrec_all_zero(const uint8_t *p, const uint8_t *end) noexcept nogil:
    while p < end and (<size_t>p & 7):
        if p[0]:
            return False
        p += 1
    while end - p >= 8:
        if walrec_load64(p):
            return False
        p += 8
    while p < end:
        if p[0]:
            return False
        p += 1
    return True


# etcd's test for a write that never finished: some sector's share of the frame is all zero. Segments are
# written over zeros, so that is what a sector which did not reach the disk holds.
cdef bint has_zero_sector(const uint8_t *base, size_t start, size_t end) noexcept nogil:
    cdef size_t next_sector
    while start < end:
        next_sector = (start // WALREC_SECTOR_BYTES + 1) * WALREC_SECTOR_BYTES
        if next_sector > end:
            next_sector = end
        if walrec_all_zero(base + start, base + next_sector):
            return True
        start = next_sector
    return False


# Parse walpb.Record in [p, end). `exact` gets the record size that the fields claim, 0 when they end before
# the data's length is known. WALREC_OK only when the fields fill [p, end) exactly.
cdef int parse_record(const uint8_t *p, const uint8_t *end, walrec_frame *frame, uint64_t *exact, const uint8_t **header_end) noexcept nogil:
    cdef const uint8_t *start = p
    cdef uint64_t v = 0
    cdef uint64_t tag = 0
    frame.type = 0
    frame.crc = 0
    frame.data = NULL
    frame.data_bytes = 0
    exact[0] = 0
    header_end[0] = p
    while p < end:
        p = get_varint(p, end, &tag)
        if p == NULL:
            return WALREC_BAD_RECORD
        if tag == 0x1a:
            p = get_varint(p, end, &v)
            if p == NULL or v > LENGTH_MASK:
                return WALREC_BAD_RECORD
            header_end[0] = p
            exact[0] = <uint64_t>(p - start) + v
            if v > <uint64_t>(end - p):
                return WALREC_BAD_RECORD
            frame.data = p
            frame.data_bytes = <size_t>v
            p += v
        elif tag == 0x08:
            p = get_varint(p, end, &v)
            if p == NULL:
                return WALREC_BAD_RECORD
            frame.type = <int64_t>v
        elif tag == 0x10:
            p = get_varint(p, end, &v)
            if p == NULL or v > 0xffffffffu:
                return WALREC_BAD_RECORD
            frame.crc = <uint32_t>v
        else:
            return WALREC_BAD_RECORD
    return WALREC_OK


# A length word that disagrees with a record whose own fields arrived intact is a changed word, not a torn
# write: the word and the fields are in sectors that did reach the disk.
cdef bint length_contradicts(
    const uint8_t *base, size_t offset, size_t size, uint64_t record_bytes,
) noexcept nogil:
    cdef walrec_frame frame
    cdef uint64_t exact = 0
    cdef const uint8_t *header_end = NULL
    cdef size_t header_offset, sector
    parse_record(base + offset + 8, base + size, &frame, &exact, &header_end)
    if exact == 0 or exact == record_bytes:
        return False
    header_offset = <size_t>(header_end - base)
    sector = (header_offset - 1) // WALREC_SECTOR_BYTES * WALREC_SECTOR_BYTES
    if sector <= offset:
        return True
    # The fields run on into the next sector: they count only if that one was written.
    header_offset = sector + WALREC_SECTOR_BYTES
    return not walrec_all_zero(base + sector, base + (header_offset if header_offset < size else size))


# A zero length word ends the data. It is honest only if the rest of its sector is zero too: a sector that was
# not written is wholly old, and what is old after the last record is zero.
cdef int end_or_bad(const uint8_t *base, size_t size, size_t offset) noexcept nogil:
    cdef size_t sector_end = (offset // WALREC_SECTOR_BYTES + 1) * WALREC_SECTOR_BYTES
    if sector_end > size:
        sector_end = size
    return WALREC_END if walrec_all_zero(base + offset, base + sector_end) else WALREC_BAD_LENGTH


cdef int walrec_next(
    const uint8_t *base, size_t size, size_t offset, bint torn_ok, uint32_t *crc, walrec_frame *frame,
) noexcept nogil:
    cdef uint64_t word, record_bytes, exact = 0
    cdef size_t pad, left
    cdef uint32_t after
    cdef const uint8_t *record
    cdef const uint8_t *header_end = NULL
    cdef bint torn
    left = size - offset
    if left < 8:
        return WALREC_END if walrec_all_zero(base + offset, base + size) else WALREC_TORN
    word = walrec_load64(base + offset)
    if word == 0:
        return end_or_bad(base, size, offset)
    record_bytes = word & LENGTH_MASK
    pad = <size_t>((0 - record_bytes) & 7)
    if record_bytes == 0 or (word >> 56) != (0x80 | pad if pad else 0):
        return WALREC_BAD_LENGTH
    if record_bytes + pad > left - 8:
        return WALREC_BAD_LENGTH if length_contradicts(base, offset, size, record_bytes) else WALREC_TORN
    record = base + offset + 8
    frame.frame_bytes = 8 + <size_t>record_bytes + pad
    after = crc[0]
    if parse_record(record, record + record_bytes, frame, &exact, &header_end) == WALREC_OK:
        if frame.type == WALREC_CRC:
            if frame.data == NULL and (crc[0] == 0 or crc[0] == frame.crc):
                if not walrec_all_zero(record + record_bytes, record + record_bytes + pad):
                    return WALREC_BAD_RECORD
                crc[0] = frame.crc
                return WALREC_OK
            return WALREC_BAD_CRC
        after = crc32c_update(crc[0], frame.data, frame.data_bytes)
        if after == frame.crc:
            if not walrec_all_zero(record + record_bytes, record + record_bytes + pad):
                return WALREC_BAD_RECORD
            crc[0] = after
            return WALREC_OK
    torn = has_zero_sector(base, offset + 8, offset + frame.frame_bytes)
    if length_contradicts(base, offset, size, record_bytes):
        return WALREC_BAD_LENGTH
    if torn and torn_ok:
        return WALREC_TORN
    return WALREC_BAD_CRC if exact == record_bytes else WALREC_BAD_RECORD


cdef int walrec_parse_entry(const uint8_t *data, size_t size, walrec_entry *out) noexcept nogil:
    cdef const uint8_t *p = data
    cdef const uint8_t *end = data + size
    cdef uint64_t v = 0
    cdef uint64_t type = 0
    cdef uint64_t tag = 0
    out.term = 0
    out.index = 0
    out.data = NULL
    out.data_bytes = 0
    while p != NULL and p < end:
        p = get_varint(p, end, &tag)
        if p == NULL:
            return WALREC_BAD_DATA
        if tag == 0x22:
            p = get_varint(p, end, &v)
            if p == NULL or v > <uint64_t>(end - p):
                return WALREC_BAD_DATA
            if v > 0xffffffffu:
                return WALREC_BAD_DATA
            out.data = p
            out.data_bytes = <size_t>v
            p += v
        elif tag == 0x08:
            p = get_varint(p, end, &type)
        elif tag == 0x10:
            p = get_varint(p, end, &out.term)
        elif tag == 0x18:
            p = get_varint(p, end, &out.index)
        else:
            return WALREC_BAD_DATA
    # The record type is outside the checksum: a hard state read as an entry shows by these.
    if p == NULL or type > RAFT_ENTRY_CONF_CHANGE_V2 or out.index == 0 or out.term == 0:
        return WALREC_BAD_DATA
    if type != RAFT_ENTRY_NORMAL and out.data_bytes == 0:
        return WALREC_BAD_DATA
    out.type = <int32_t>type
    return WALREC_OK


cdef int walrec_parse_varints(const uint8_t *p, size_t size, uint64_t *first, uint64_t *second, uint64_t *third, bint bytes_third) noexcept nogil:
    cdef const uint8_t *end = p + size
    cdef uint64_t tag = 0
    cdef uint64_t v = 0
    first[0] = 0
    second[0] = 0
    third[0] = 0
    while p != NULL and p < end:
        p = get_varint(p, end, &tag)
        if p == NULL:
            return WALREC_BAD_DATA
        if tag == 0x08:
            p = get_varint(p, end, first)
        elif tag == 0x10:
            p = get_varint(p, end, second)
        elif tag == 0x18 and not bytes_third:
            p = get_varint(p, end, third)
        elif tag == 0x1a and bytes_third:
            p = get_varint(p, end, &v)
            if p == NULL or v > <uint64_t>(end - p):
                return WALREC_BAD_DATA
            p += v
            third[0] = v
        else:
            return WALREC_BAD_DATA
    return WALREC_BAD_DATA if p == NULL else WALREC_OK


cdef int walrec_parse_state(const uint8_t *data, size_t size, walrec_state *out) noexcept nogil:
    if walrec_parse_varints(data, size, &out.term, &out.vote, &out.commit, False) != WALREC_OK:
        return WALREC_BAD_DATA
    # etcd never writes an empty state, and a term comes before any vote or commit.
    return WALREC_OK if out.term else WALREC_BAD_DATA


cdef bint walrec_later_commit_covers(const uint8_t *base, size_t size, size_t offset, uint64_t index) noexcept nogil:
    cdef walrec_frame frame
    cdef walrec_state state
    cdef uint32_t crc
    cdef size_t at = (offset + 7) & ~<size_t>7
    cdef size_t probe, links
    cdef uint64_t word
    while at < size and size - at >= 16:
        word = walrec_load64(base + at)
        if word == 0 or probe_frame(base, size, at, &frame) != WALREC_OK:
            at += 8
            continue
        probe = at
        links = 0
        while True:
            crc = frame.crc
            probe += frame.frame_bytes
            if probe >= size or probe_frame(base, size, probe, &frame) != WALREC_OK:
                break
            if frame.type == WALREC_CRC or crc32c_update(crc, frame.data, frame.data_bytes) != frame.crc:
                break
            links += 1
            if (frame.type == WALREC_STATE and walrec_parse_state(frame.data, frame.data_bytes, &state) == WALREC_OK
                    and state.commit >= index):
                return True
        # An intact stretch is not walked again from its second frame: the search stays linear.
        at = probe if links else at + 8
    return False


cdef int probe_frame(const uint8_t *base, size_t size, size_t offset, walrec_frame *frame) noexcept nogil:
    cdef uint64_t exact = 0
    cdef const uint8_t *header_end = NULL
    cdef uint64_t word, record_bytes
    cdef size_t pad
    if size - offset < 16:
        return WALREC_END
    word = walrec_load64(base + offset)
    record_bytes = word & LENGTH_MASK
    pad = <size_t>((0 - record_bytes) & 7)
    if record_bytes == 0 or (word >> 56) != (0x80 | pad if pad else 0) or record_bytes + pad > size - offset - 8:
        return WALREC_BAD_LENGTH
    frame.frame_bytes = 8 + <size_t>record_bytes + pad
    return parse_record(base + offset + 8, base + offset + 8 + record_bytes, frame, &exact, &header_end)


# ---- for tests and tools --------------------------------------------------------------------------


def encode_entry(uint32_t crc, int type, uint64_t term, uint64_t index, const uint8_t[::1] prefix not None,
                 const uint8_t[::1] data not None, const uint8_t[::1] suffix not None):
    """(frame, new crc) of one entry whose Data is prefix + data + suffix."""
    cdef size_t total = <size_t>(prefix.shape[0] + data.shape[0] + suffix.shape[0])
    out = bytearray(walrec_entry_bound(total))
    cdef uint8_t[::1] view = out
    cdef size_t n = walrec_put_entry(
        &view[0], &crc, type, term, index,
        &prefix[0] if prefix.shape[0] else NULL, <size_t>prefix.shape[0],
        &data[0] if data.shape[0] else NULL, <size_t>data.shape[0],
        &suffix[0] if suffix.shape[0] else NULL, <size_t>suffix.shape[0],
    )
    return bytes(out[:n]), crc


def encode_state(uint32_t crc, uint64_t term, uint64_t vote, uint64_t commit):
    """(frame, new crc) of one hard state."""
    cdef uint8_t[WALREC_STATE_FRAME_MAX] out
    cdef size_t n = walrec_put_state(out, &crc, term, vote, commit)
    return (<char *>out)[:n], crc


def encode_snapshot(uint32_t crc, uint64_t index, uint64_t term, conf_state=None):
    """(frame, new crc) of one snapshot record; `conf_state` is a marshalled raftpb.ConfState or None."""
    cdef const uint8_t[::1] view = conf_state if conf_state else b"\0"
    cdef size_t size = <size_t>len(conf_state) if conf_state else 0
    out = bytearray(walrec_record_bound(size + 34))
    cdef uint8_t[::1] target = out
    cdef size_t n = walrec_put_snapshot(&target[0], &crc, index, term, &view[0] if size else NULL, size)
    return bytes(out[:n]), crc


def encode_record(uint32_t crc, int type, const uint8_t[::1] data not None):
    """(frame, new crc) of a record whose data is marshalled already (metadata)."""
    out = bytearray(walrec_record_bound(<size_t>data.shape[0]))
    cdef uint8_t[::1] target = out
    cdef size_t n = walrec_put_record(
        &target[0], &crc, type, &data[0] if data.shape[0] else NULL, <size_t>data.shape[0])
    return bytes(out[:n]), crc


def encode_crc(uint32_t crc):
    """The seed record that begins a segment."""
    cdef uint8_t[WALREC_CRC_FRAME_BYTES_MAX] out
    cdef size_t n = walrec_put_crc(out, crc)
    return (<char *>out)[:n]


def next_frame(buffer, size_t offset, uint32_t crc, bint last=True):
    """(code, frame bytes, type, new crc, data or None) of the frame at `offset`, for tools and tests."""
    cdef const uint8_t[::1] view = buffer
    cdef walrec_frame frame
    cdef int code
    if offset > <size_t>view.shape[0] or offset % 8:
        raise ValueError(f"offset {offset}: not a frame position in {view.shape[0]} bytes")
    if offset == <size_t>view.shape[0]:
        return WALREC_END, 0, 0, crc, None
    memset(&frame, 0, sizeof(frame))
    code = walrec_next(&view[0], <size_t>view.shape[0], offset, last, &crc, &frame)
    if code != WALREC_OK:
        return code, 0, 0, crc, None
    data = (<char *>frame.data)[: frame.data_bytes] if frame.data != NULL else None
    return code, frame.frame_bytes, frame.type, crc, data


def encode_benchmark(size_t count, size_t payload_bytes):
    """Checksum after encoding `count` entries into one small buffer again and again (bench/micro/wal.py)."""
    cdef uint8_t *out = <uint8_t *>malloc(walrec_entry_bound(payload_bytes + 32))
    cdef uint8_t *payload = <uint8_t *>malloc(payload_bytes + 1)
    cdef uint8_t[16] around
    cdef uint32_t crc = 0
    cdef size_t i
    if out == NULL or payload == NULL:
        free(out)
        free(payload)
        raise MemoryError("benchmark buffers")
    memset(payload, 0x61, payload_bytes + 1)
    memset(around, 0x62, sizeof(around))
    with nogil:
        for i in range(count):
            walrec_put_entry(out, &crc, 0, 2, i + 1, around, 3, payload, payload_bytes, around, 13)
    free(out)
    free(payload)
    return crc
