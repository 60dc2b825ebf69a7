"""Threads, locks, atomics and file locks as the WAL's modules use them; static C, no module of its own."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/futex.h>
    #include <poll.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/eventfd.h>
    #include <sys/file.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    #define walsys_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define walsys_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    /* One writer per counter: a plain add published by a relaxed store is enough. */
    #define walsys_add(p, v) __atomic_store_n((p), *(p) + (v), __ATOMIC_RELAXED)
    #define walsys_peek(p) __atomic_load_n((p), __ATOMIC_RELAXED)

    static inline void walsys_pause(void) {
    #if defined(__x86_64__)
        __builtin_ia32_pause();
    #endif
    }

    static uint64_t walsys_now(void) {   /* nanoseconds */
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    }

    static void walsys_futex_wait(int32_t *word, int32_t seen) {
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    }
    static void walsys_futex_wake(int32_t *word) {
        syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }

    static int walsys_eventfd(void) { return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }
    static void walsys_ring(int fd) {
        uint64_t one = 1;
        /* A full counter means that the reader has yet to look: the ring is already pending. */
        if (write(fd, &one, 8) != 8) {}
    }
    static void walsys_await_ring(int fd) {
        struct pollfd p = {fd, POLLIN, 0};
        uint64_t count;
        if (poll(&p, 1, 100) > 0 && read(fd, &count, 8) != 8) {}
    }

    /* Exclusive lock of the whole file that belongs to the open descriptor, as etcd takes it. */
    static int walsys_lock(int fd) {
        struct flock whole;
        memset(&whole, 0, sizeof whole);
        whole.l_type = F_WRLCK;
        whole.l_whence = SEEK_SET;
        if (fcntl(fd, F_OFD_SETLK, &whole) == 0)
            return 0;
        return errno == EINVAL ? flock(fd, LOCK_EX | LOCK_NB) : -1;
    }

    static void walsys_write_out(int fd, int64_t offset, int64_t size) {
        sync_file_range(fd, offset, size,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    }

    static void *walsys_aligned(size_t bytes) {
        void *p = NULL;
        return posix_memalign(&p, 4096, bytes) == 0 ? p : NULL;
    }

    static int walsys_thread(pthread_t *thread, void *(*body)(void *), void *argument, const char *name) {
        sigset_t all, before;
        int error;
        /* Signals belong to the process's main thread. */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(thread, NULL, body, argument);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (!error)
            pthread_setname_np(*thread, name);
        return error;
    }

    static void walsys_background_io(void) {   /* I/O class "idle", where the scheduler has classes */
        syscall(SYS_ioprio_set, 1, 0, 3 << 13);
    }

    static void walsys_cond_wait_ms(pthread_cond_t *cond, pthread_mutex_t *mutex, long milliseconds) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += milliseconds * 1000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(cond, mutex, &until);
    }
    """
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes) noexcept nogil
    int pthread_mutex_lock(pthread_mutex_t *mutex) noexcept nogil
    int pthread_mutex_unlock(pthread_mutex_t *mutex) noexcept nogil
    int pthread_cond_init(pthread_cond_t *cond, void *attributes) noexcept nogil
    int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex) noexcept nogil
    int pthread_cond_broadcast(pthread_cond_t *cond) noexcept nogil
    int pthread_join(pthread_t thread, void **result) noexcept nogil
    int32_t load32 "walsys_load"(int32_t *p) noexcept nogil
    void store32 "walsys_store"(int32_t *p, int32_t v) noexcept nogil
    uint64_t load64 "walsys_load"(uint64_t *p) noexcept nogil
    void store64 "walsys_store"(uint64_t *p, uint64_t v) noexcept nogil
    void add64 "walsys_add"(uint64_t *p, uint64_t v) noexcept nogil
    uint64_t peek64 "walsys_peek"(uint64_t *p) noexcept nogil
    void walsys_pause() noexcept nogil
    uint64_t walsys_now() noexcept nogil
    void walsys_futex_wait(int32_t *word, int32_t seen) noexcept nogil
    void walsys_futex_wake(int32_t *word) noexcept nogil
    int walsys_eventfd() noexcept nogil
    void walsys_ring(int fd) noexcept nogil
    void walsys_await_ring(int fd) noexcept nogil
    int walsys_lock(int fd) noexcept nogil
    void walsys_write_out(int fd, int64_t offset, int64_t size) noexcept nogil
    void *walsys_aligned(size_t bytes) noexcept nogil
    int walsys_thread(pthread_t *thread, void *(*body)(void *) noexcept nogil, void *argument, const char *name) noexcept nogil
    void walsys_background_io() noexcept nogil
    void walsys_cond_wait_ms(pthread_cond_t *cond, pthread_mutex_t *mutex, long milliseconds) noexcept nogil
    int c_close "close"(int fd) noexcept nogil
    int64_t c_pread "pread"(int fd, void *data, size_t size, int64_t offset) noexcept nogil
    enum: O_RDWR
    enum: O_CREAT
    enum: O_TRUNC
    enum: O_CLOEXEC
