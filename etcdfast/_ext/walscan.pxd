"""The entries of a log as rows in C memory, for start-up: no Python object per entry."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

# One row of an EntryTable: where an entry's data lies. 40 bytes, native order (Python reads it with numpy).
ctypedef struct walscan_row:
    uint64_t term
    uint64_t index
    uint64_t offset  # of Entry.data from the start of its segment; 0 when absent
    uint32_t data_bytes
    uint32_t segment  # position in EntryTable.segments
    int32_t type
    uint32_t reserved


cdef class EntryTable:
    """The entries of a log after one snapshot index, as rows that point into the segments' memory."""
    cdef walscan_row *refs  # owned; `count` rows, index ascending by one
    cdef size_t count
    cdef size_t capacity
    cdef const uint8_t **bases  # owned; start of each segment's memory
    cdef list segments  # the buffers, kept alive
    cdef list views

    # Data of row `i` (NULL when absent). Precondition: i < count.
    cdef const uint8_t *data(self, size_t i) noexcept nogil
