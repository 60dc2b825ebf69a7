"""What a caller may do with a lease: that follows from the keys which hang on it."""

from libc.stdint cimport int64_t, uint8_t

from etcdfast._ext.authtable cimport auth_caller, auth_may_read, auth_may_write
from etcdfast._ext.leasetable cimport LeaseTable, key_bytes, lease_key, lease_row


cdef inline int auth_may_write_row(const auth_caller *c, const lease_row *row) noexcept nogil:
    cdef const lease_key *key = row.keys
    cdef int error
    while key != NULL and not c.free:
        error = auth_may_write(c, <const uint8_t *>key_bytes(key), key.key_len, NULL, 0)
        if error:
            return error
        key = key.next
    return 0


cdef inline int auth_may_read_row(const auth_caller *c, const lease_row *row) noexcept nogil:
    cdef const lease_key *key = row.keys
    cdef int error
    while key != NULL and not c.free:
        error = auth_may_read(c, <const uint8_t *>key_bytes(key), key.key_len, NULL, 0)
        if error:
            return error
        key = key.next
    return 0


cdef inline int auth_may_write_lease(LeaseTable leases, const auth_caller *c, int64_t id) noexcept nogil:
    """0 when the caller may write every key of the lease, or there is no such lease: else it may neither end nor renew
    it, nor hang another key on it."""
    cdef lease_row *row
    if c.free or leases is None or id == 0:
        return 0
    row = leases.find(id)
    return auth_may_write_row(c, row) if row != NULL else 0
