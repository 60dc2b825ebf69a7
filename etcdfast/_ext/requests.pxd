"""Checks that etcd's API layer makes on a request before it enters the log, on its wire bytes.

Nothing is copied or kept. The verdict and the facts are those of etcd's newest release
(server/etcdserver/api/v3rpc/{key,quota}.go and txn/txn.go), errors in the order etcd meets them.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef enum:
    REQUEST_MALFORMED = -1   # not a protobuf message of this type
    REQUEST_NO_MEMORY = -2

# Levels of nested transactions. etcd's own bound is max_txn_ops (each level spends at least one
# operation of the budget), so this one is met only with a budget raised far beyond the default 128.
cdef enum:
    REQUEST_TXN_DEPTH_MAX = 256


ctypedef struct request_facts:
    uint64_t cost            # bytes that the quota charges; 0 for a request that stores nothing
    uint8_t read_only        # Txn: every operation is a range
    uint8_t serializable     # Range, or Txn of serializable ranges only; MemberList: not linearizable
    uint8_t physical         # Compact waits for the removal
    uint8_t new_id           # LeaseGrant that leaves the id to the server


# 0, an ERR_ id, or REQUEST_*. `facts` is filled whenever the result is not negative: the quota comes
# before the other checks in etcd. Precondition: method is an RPC_ id, data holds size bytes.
cdef int request_check(int method, const uint8_t *data, uint64_t size, uint32_t txn_ops_max,
                       request_facts *facts) noexcept nogil
