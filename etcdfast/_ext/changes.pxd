"""What a turn changed in the key space, in revision order: mvcc makes the list, who follows it reads it."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

ctypedef struct kv_change:
    int64_t main
    int64_t sub
    const uint8_t *record   # stored mvccpb.KeyValue; of a tombstone only its key is set
    uint32_t size           # bytes of it
    bint is_tombstone
