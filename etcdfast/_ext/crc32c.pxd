"""CRC-32C (Castagnoli), the checksum of the write-ahead log and of snapshot files.

Values are the ordinary finalised ones, so they chain: `crc32c_update(crc32c_update(0, a), b)` is the
checksum of `a` followed by `b`.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t

# The fastest path this processor has; chosen once at import. `data` may be NULL when `size` is 0.
cdef uint32_t crc32c_update(uint32_t crc, const void *data, size_t size) noexcept nogil

# The portable path (slicing by eight); the tests hold the two against each other.
cdef uint32_t crc32c_update_portable(uint32_t crc, const void *data, size_t size) noexcept nogil
