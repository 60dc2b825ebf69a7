"""Linearizable reads that wait for the leader's word on where they belong: one round of ReadIndex per batch.

Records gather in one batch while the other is under way. A batch that is confirmed for an index goes to apply
behind the entry of that index, as fast as the ring takes it.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from etcdfast._ext.ring cimport ipc_record

cdef enum:
    READ_BATCH_BYTES = 4194304  # a fuller batch takes no more: the rings hold back the rest
    READ_BATCH_KEPT_BYTES = 262144  # room that an empty batch keeps

ctypedef struct read_batch:
    uint8_t *data  # records, each padded to 8 bytes
    uint64_t size
    uint64_t room
    uint64_t at  # records before this offset are with apply
    uint64_t index  # behind which it goes; valid when confirmed
    uint32_t records
    bint sealed  # a round for it is under way
    bint confirmed


cdef inline int read_batch_add(read_batch *b, const ipc_record *r) noexcept nogil:
    """Copy a record in. 0, -1 when the batch is full, -2 without memory."""
    cdef uint64_t need = (<uint64_t>r.length + 7) & ~<uint64_t>7
    cdef uint64_t room
    cdef uint8_t *data
    if b.size and b.size + need > READ_BATCH_BYTES:
        return -1
    if b.size + need > b.room:
        room = b.room * 2 if b.room else 65536
        while room < b.size + need:
            room *= 2
        data = <uint8_t *>realloc(b.data, room)
        if data == NULL:
            return -2
        b.data = data
        b.room = room
    memcpy(b.data + b.size, r, r.length)
    b.size += need
    b.records += 1
    return 0


cdef inline void read_batch_clear(read_batch *b) noexcept nogil:
    b.size = b.at = b.index = 0
    b.records = 0
    b.sealed = b.confirmed = False
    if b.room > READ_BATCH_KEPT_BYTES:
        free(b.data)
        b.data = <uint8_t *>0
        b.room = 0
