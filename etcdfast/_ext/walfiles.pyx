"""The log's directory while it is open: locked segments, the next one prepared ahead, old ones removed."""

from libc.errno cimport EIO, ENOENT, ENOMEM, errno
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, realloc

from etcdfast._ext.walops cimport walops_table
from etcdfast._ext.walsys cimport (
    O_CLOEXEC,
    O_CREAT,
    O_RDWR,
    O_TRUNC,
    add64,
    c_close,
    pthread_cond_broadcast,
    pthread_cond_init,
    pthread_cond_wait,
    pthread_join,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
    walsys_background_io,
    walsys_cond_wait_ms,
    walsys_lock,
    walsys_thread,
    walsys_write_out,
)

cdef enum:
    PREWRITE_BYTES = 131072  # about 0.1 ms of a disk that syncs in as much: what one of the log's syncs may wait
    PREWRITE_PAUSE_MS = 2


cdef void walfiles_init(walfiles_t *files) noexcept nogil:
    files.directory = files.spare_fd = -1
    pthread_mutex_init(&files.lock, NULL)
    pthread_cond_init(&files.changed, NULL)


cdef int walfiles_start(walfiles_t *files) noexcept nogil:
    cdef int error
    files.release_due = True
    error = walsys_thread(&files.helper, helper_main, files, "wal-files")
    files.started = error == 0
    return error


cdef int walfiles_await_spare(walfiles_t *files, char *name, int *error) noexcept nogil:
    cdef int fd
    pthread_mutex_lock(&files.lock)
    files.spare_urgent = True
    pthread_cond_broadcast(&files.changed)
    while files.spare_fd < 0 and not files.spare_error:
        pthread_cond_wait(&files.changed, &files.lock)
    fd = files.spare_fd
    error[0] = files.spare_error
    snprintf(name, WALFILES_NAME_BYTES, "%d.tmp", files.spare_number)
    pthread_mutex_unlock(&files.lock)
    return fd


cdef int walfiles_adopt_spare(walfiles_t *files, uint64_t sequence, uint64_t index) noexcept nogil:
    cdef int error
    pthread_mutex_lock(&files.lock)
    error = walfiles_add(files, sequence, index, files.spare_fd)
    if error == 0:
        files.spare_fd = -1
        files.spare_number = 1 - files.spare_number
        files.spare_urgent = False
        files.release_due = True
        pthread_cond_broadcast(&files.changed)
    pthread_mutex_unlock(&files.lock)
    return error


cdef void walfiles_release_to(walfiles_t *files, uint64_t index) noexcept nogil:
    pthread_mutex_lock(&files.lock)
    if index > files.release_index:
        files.release_index = index
        files.release_due = True
        pthread_cond_broadcast(&files.changed)
    pthread_mutex_unlock(&files.lock)


cdef void walfiles_keep_from(walfiles_t *files, uint64_t index) noexcept nogil:
    pthread_mutex_lock(&files.lock)
    if index != files.keep_index:
        files.keep_index = index
        files.release_due = True
        pthread_cond_broadcast(&files.changed)
    pthread_mutex_unlock(&files.lock)


cdef uint64_t walfiles_oldest_index(walfiles_t *files) noexcept nogil:
    cdef uint64_t index
    pthread_mutex_lock(&files.lock)
    index = files.segments[0].index if files.segment_count else 0
    pthread_mutex_unlock(&files.lock)
    return index


cdef void walfiles_stop(walfiles_t *files) noexcept nogil:
    cdef char name[WALFILES_NAME_BYTES]
    cdef size_t i
    if files.started:
        pthread_mutex_lock(&files.lock)
        files.stopping = True
        pthread_cond_broadcast(&files.changed)
        pthread_mutex_unlock(&files.lock)
        pthread_join(files.helper, NULL)
        files.started = False
        snprintf(name, WALFILES_NAME_BYTES, "%d.tmp", files.spare_number)
        files.ops.unlinkat(files.ops.context, files.directory, name)
    if files.spare_fd >= 0:
        c_close(files.spare_fd)
        files.spare_fd = -1
    for i in range(files.segment_count):
        if files.segments[i].fd >= 0:
            c_close(files.segments[i].fd)
    free(files.segments)
    files.segments = NULL
    files.segment_count = files.segment_capacity = 0
    if files.directory >= 0:
        c_close(files.directory)
        files.directory = -1


cdef void walfiles_name(char *out, uint64_t sequence, uint64_t index) noexcept nogil:
    snprintf(out, WALFILES_NAME_BYTES, "%016llx-%016llx.wal", <unsigned long long>sequence, <unsigned long long>index)


# Under `lock`.
cdef int walfiles_add(walfiles_t *files, uint64_t sequence, uint64_t index, int fd) noexcept nogil:
    cdef size_t capacity
    cdef walfiles_segment *grown
    if files.segment_count == files.segment_capacity:
        capacity = files.segment_capacity * 2 if files.segment_capacity else 16
        grown = <walfiles_segment *>realloc(files.segments, capacity * sizeof(walfiles_segment))
        if grown == NULL:
            return ENOMEM
        files.segments = grown
        files.segment_capacity = capacity
    files.segments[files.segment_count].sequence = sequence
    files.segments[files.segment_count].index = index
    files.segments[files.segment_count].fd = fd
    files.segment_count += 1
    return 0


cdef void *helper_main(void *argument) noexcept nogil:
    cdef walfiles_t *files = <walfiles_t *>argument
    cdef int fd, error
    walsys_background_io()
    pthread_mutex_lock(&files.lock)
    while not files.stopping:
        if files.spare_fd < 0 and not files.spare_error:
            error = 0
            pthread_mutex_unlock(&files.lock)
            fd = prepare_spare(files, &error)
            pthread_mutex_lock(&files.lock)
            files.spare_fd = fd
            files.spare_error = error
            pthread_cond_broadcast(&files.changed)
        elif files.release_due:
            files.release_due = False
            purge(files)
        else:
            pthread_cond_wait(&files.changed, &files.lock)
    pthread_mutex_unlock(&files.lock)
    return NULL


# A locked file of segment_bytes zeros. -1 and the errno in `error`; a stop leaves both unset (-1, 0).
# The zeros are really written: the first write into an extent that is only allocated makes fdatasync commit the
# file system's journal as well (112 instead of 177 us for a 4 KiB batch on ext4, see bench/micro/wal.py).
cdef int prepare_spare(walfiles_t *files, int *error) noexcept nogil:
    cdef char name[WALFILES_NAME_BYTES]
    cdef const walops_table *ops = files.ops
    cdef uint8_t *zeros
    cdef int fd
    snprintf(name, WALFILES_NAME_BYTES, "%d.tmp", files.spare_number)
    fd = ops.openat(ops.context, files.directory, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC)
    if fd < 0:
        error[0] = errno
        return -1
    if walsys_lock(fd) != 0 or ops.fallocate(ops.context, fd, <int64_t>files.segment_bytes) != 0:
        error[0] = errno
    elif files.prewrite:
        zeros = <uint8_t *>calloc(1, PREWRITE_BYTES)
        error[0] = ENOMEM if zeros == NULL else write_zeros(files, fd, zeros)
        free(zeros)
    if error[0] == 0 and ops.presync(ops.context, fd) != 0:
        error[0] = errno
    if error[0] or files.stopping:
        c_close(fd)
        return -1
    return fd


cdef int write_zeros(walfiles_t *files, int fd, const uint8_t *zeros) noexcept nogil:
    cdef const walops_table *ops = files.ops
    cdef uint64_t offset = 0
    cdef size_t size
    cdef int64_t n
    cdef bint stop
    while offset < files.segment_bytes:
        size = PREWRITE_BYTES
        if size > files.segment_bytes - offset:
            size = <size_t>(files.segment_bytes - offset)
        n = ops.prewrite(ops.context, fd, zeros, size, <int64_t>offset)
        if n != <int64_t>size:
            return errno if n < 0 else EIO
        offset += size
        # Small pieces with pauses, sent to the disk without a flush: the log's own syncs must not queue behind 64 MB.
        # An error in one shows at the sync of the whole.
        walsys_write_out(fd, <int64_t>(offset - size), <int64_t>size)
        pthread_mutex_lock(&files.lock)
        if not files.spare_urgent and not files.stopping:
            walsys_cond_wait_ms(&files.changed, &files.lock, PREWRITE_PAUSE_MS)
        stop = files.stopping
        pthread_mutex_unlock(&files.lock)
        if stop:
            return 0
    return 0


# Under `lock`. The oldest file is one too many, and nothing in it is wanted, or it would be too much to keep.
cdef bint oldest_may_go(walfiles_t *files) noexcept nogil:
    if not files.max_wals or files.segment_count <= files.max_wals or files.segments[0].fd >= 0:
        return False
    # What the next one begins with is behind all that this one holds.
    if files.keep_index and files.segment_count > 1 and files.segments[1].index > files.keep_index:
        return files.segment_count > files.keep_max
    return True


# Under `lock`, given up while removing a file. Lets go of segments wholly before the release index and removes the
# oldest while there are too many. Another holder of a file's lock (a backup) keeps it.
cdef void purge(walfiles_t *files) noexcept nogil:
    cdef char name[WALFILES_NAME_BYTES]
    cdef size_t keep, i
    cdef int fd
    cdef bint mine
    keep = 0
    while keep < files.segment_count and files.segments[keep].index < files.release_index:
        keep += 1
    # The first one at or after the index may begin behind it: its predecessor stays, the last one always.
    if keep == files.segment_count:
        keep -= 1
    keep = keep - 1 if keep else 0
    for i in range(keep):
        if files.segments[i].fd >= 0:
            c_close(files.segments[i].fd)
            files.segments[i].fd = -1
    while oldest_may_go(files) and not files.stopping:
        walfiles_name(name, files.segments[0].sequence, files.segments[0].index)
        pthread_mutex_unlock(&files.lock)
        fd = files.ops.openat(files.ops.context, files.directory, name, O_RDWR | O_CLOEXEC)
        mine = errno == ENOENT if fd < 0 else walsys_lock(fd) == 0
        if mine and fd >= 0:
            mine = files.ops.unlinkat(files.ops.context, files.directory, name) == 0
        if fd >= 0:
            c_close(fd)
        pthread_mutex_lock(&files.lock)
        if not mine:
            return
        # Only this thread removes rows, and from the front; the disk thread may have added some at the end.
        files.segment_count -= 1
        for i in range(files.segment_count):
            files.segments[i] = files.segments[i + 1]
        add64(&files.purged, 1)
