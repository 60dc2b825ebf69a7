"""The file system as the WAL sees it: a table of calls, so that a test can fail the n-th of any of them.

Every function behaves as the system call of its name: -1 and errno on failure.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint64_t
from posix.types cimport off_t

ctypedef struct walops_table:
    void *context  # handed to every call
    int64_t (*pwrite)(void *context, int fd, const void *data, size_t size, off_t offset) noexcept nogil
    int (*fdatasync)(void *context, int fd) noexcept nogil
    int (*fsync)(void *context, int fd) noexcept nogil
    int (*fallocate)(void *context, int fd, off_t size) noexcept nogil  # extends the length; -1 and errno
    int (*ftruncate)(void *context, int fd, off_t size) noexcept nogil
    int (*openat)(void *context, int directory, const char *name, int flags) noexcept nogil  # mode 0600
    int (*renameat)(void *context, int directory, const char *old, const char *new) noexcept nogil
    int (*unlinkat)(void *context, int directory, const char *name) noexcept nogil
    # The next segment's zeros, written ahead: calls of their own, so that faults in the log's writes can be counted.
    int64_t (*prewrite)(void *context, int fd, const void *data, size_t size, off_t offset) noexcept nogil
    int (*presync)(void *context, int fd) noexcept nogil

# The real system calls; `context` is not used.
cdef const walops_table *walops_system() noexcept nogil


cdef class FaultPlan:
    """Wraps the real calls and makes chosen ones fail, fall short or take long."""
    cdef walops_table table  # context is this object's memory: it must outlive every user
    cdef void *plan
    cdef readonly str spec
