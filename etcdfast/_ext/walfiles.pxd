"""The log's directory while it is open: locked segments, the next one prepared ahead, old ones removed.

A helper thread keeps one file of zeros ready (0.tmp and 1.tmp in turn) and removes what is released. Everything
here may be called from any thread but `walfiles_init`, `_start` and `_stop`, which belong to the owner.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint32_t, uint64_t

from etcdfast._ext.walops cimport walops_table
from etcdfast._ext.walsys cimport pthread_cond_t, pthread_mutex_t, pthread_t

cdef enum:
    WALFILES_NAME_BYTES = 48

ctypedef struct walfiles_segment:
    uint64_t sequence
    uint64_t index  # of the first entry expected in it
    int fd  # locked; -1 once let go

ctypedef struct walfiles_t:
    # settings, fixed from walfiles_start on
    const walops_table *ops
    int directory  # descriptor, owned
    uint64_t segment_bytes
    uint32_t max_wals  # 0: no limit
    bint prewrite
    # under `lock`
    pthread_mutex_t lock
    pthread_cond_t changed
    walfiles_segment *segments  # every file, oldest first; descriptors owned
    size_t segment_count, segment_capacity
    int spare_fd  # -1: not ready
    int spare_number
    int32_t spare_error
    bint spare_urgent  # somebody waits: no pauses
    bint stopping
    uint64_t release_index
    uint64_t keep_index  # entries from here on are wanted, if that takes no more than keep_max files; 0: nobody
    uint32_t keep_max
    bint release_due
    uint64_t purged  # files removed; written by the helper only
    pthread_t helper
    bint started

# Zeroed memory becomes an empty list. Then fill in the settings and walfiles_add what is there.
cdef void walfiles_init(walfiles_t *files) noexcept nogil
# Start the helper. 0 or an errno.
cdef int walfiles_start(walfiles_t *files) noexcept nogil
# Stop the helper, remove the spare file, close everything. May be called twice.
cdef void walfiles_stop(walfiles_t *files) noexcept nogil

# Take over `fd` (locked, or -1). 0 or ENOMEM. Before the start, or under `lock`.
cdef int walfiles_add(walfiles_t *files, uint64_t sequence, uint64_t index, int fd) noexcept nogil

# Blocks until the spare file is ready: its descriptor, and its name (WALFILES_NAME_BYTES). -1 and `error` when it
# could not be made; that is final.
cdef int walfiles_await_spare(walfiles_t *files, char *name, int *error) noexcept nogil
# The spare has become segment (sequence, index) by a rename: list it and make the next. 0 or ENOMEM.
cdef int walfiles_adopt_spare(walfiles_t *files, uint64_t sequence, uint64_t index) noexcept nogil

# Let go of the segments wholly before `index`, remove the oldest beyond max_wals. Returns at once.
cdef void walfiles_release_to(walfiles_t *files, uint64_t index) noexcept nogil

# Somebody may still read entries from `index` on (0: nobody): segments that hold them are not removed, released or
# not, while there are at most keep_max files. Returns at once.
cdef void walfiles_keep_from(walfiles_t *files, uint64_t index) noexcept nogil

# Index of the first entry expected in the oldest file.
cdef uint64_t walfiles_oldest_index(walfiles_t *files) noexcept nogil

# A segment's file name, WALFILES_NAME_BYTES at `out`.
cdef void walfiles_name(char *out, uint64_t sequence, uint64_t index) noexcept nogil
