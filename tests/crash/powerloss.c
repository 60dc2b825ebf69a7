/* LD_PRELOAD library that remembers which written bytes no fsync has made durable.
 *
 * Each process appends events to its own journal file, $POWERLOSS_JOURNAL.<pid>. A journal lives in the page
 * cache and survives kill -9; powerloss.py reads it afterwards and takes back what a power cut could take.
 * Only regular files below $POWERLOSS_DIR are followed. One event, little endian:
 *
 *   u8 kind   'W' write about to happen, 'D' write done, 'B' sync about to happen, 'E' sync done, 'T' truncate,
 *             'R' renamed, 'U' unlinked
 *   u64 id    of the write or sync; unique in the process
 *   i64 a     W: offset; T: new size; else 0
 *   u64 b     W: bytes to be written; T, D: 0 (D: 1 if it failed)
 *   i64 size  W, T: size of the file before
 *   u32 n, u32 m, then n bytes of path, then m bytes: W: what the file held there before (up to its old end);
 *             R: the new path
 *
 * With $POWERLOSS_LIE set, syncs of files whose name ends in it are left out: a disk that lies, by which the
 * tests of this library see that it would find a missing sync.
 *
 * A write counts as durable when its 'D' precedes the 'B' of a sync of the same file that reached its 'E'.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int journal = -1;
static pid_t journal_pid;
static uint64_t ids;

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_renameat)(int, const char *, int, const char *);
static int (*real_unlinkat)(int, const char *, int);

__attribute__((constructor)) static void find_real_calls(void) {
    real_write = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    real_pwrite = (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64");
    real_writev = (ssize_t (*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "writev");
    real_pwritev = (ssize_t (*)(int, const struct iovec *, int, off_t))dlsym(RTLD_NEXT, "pwritev64");
    real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    real_ftruncate = (int (*)(int, off_t))dlsym(RTLD_NEXT, "ftruncate64");
    real_renameat = (int (*)(int, const char *, int, const char *))dlsym(RTLD_NEXT, "renameat");
    real_unlinkat = (int (*)(int, const char *, int))dlsym(RTLD_NEXT, "unlinkat");
}

/* 1 and the path, if the descriptor is a regular file that is followed. */
static int followed(int fd, char path[PATH_MAX]) {
    const char *root = getenv("POWERLOSS_DIR");
    char link[64];
    struct stat st;
    if (root == NULL || fd < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return strncmp(path, root, strlen(root)) == 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
}

static void die(const char *why) {
    dprintf(2, "powerloss: %s: %s\n", why, strerror(errno));
    abort();
}

static void event(char kind, uint64_t id, int64_t a, uint64_t b, int64_t size, const char *path, const void *old,
                  uint32_t old_bytes) {
    struct __attribute__((packed)) { char kind; uint64_t id; int64_t a; uint64_t b; int64_t size; uint32_t n, m; }
        head = {kind, id, a, b, size, (uint32_t)strlen(path), old_bytes};
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)path, head.n}, {(void *)old, old_bytes}};
    pthread_mutex_lock(&lock);
    if (journal < 0 || journal_pid != getpid()) {
        char name[PATH_MAX];
        journal_pid = getpid();
        snprintf(name, sizeof name, "%s.%d", getenv("POWERLOSS_JOURNAL"), (int)journal_pid);
        journal = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (journal < 0) die("cannot open the journal");
    }
    if (real_writev(journal, parts, 3) != (ssize_t)(sizeof head + head.n + old_bytes)) die("cannot write the journal");
    pthread_mutex_unlock(&lock);
}

static uint64_t before_write(int fd, const char *path, off_t offset, size_t size) {
    struct stat st;
    uint64_t id = __atomic_add_fetch(&ids, 1, __ATOMIC_RELAXED);
    if (fstat(fd, &st)) die("fstat");
    size_t old = offset >= st.st_size ? 0 : (size_t)(st.st_size - offset) < size ? (size_t)(st.st_size - offset) : size;
    void *held = malloc(old ? old : 1);
    if (held == NULL) die("malloc");
    if (old) { /* the descriptor may be write-only */
        int reader = open(path, O_RDONLY | O_CLOEXEC);
        if (reader < 0 || pread(reader, held, old, offset) != (ssize_t)old) die("pread");
        close(reader);
    }
    event('W', id, offset, size, st.st_size, path, held, (uint32_t)old);
    free(held);
    return id;
}

static size_t total(const struct iovec *parts, int count) {
    size_t sum = 0;
    for (int i = 0; i < count; i++) sum += parts[i].iov_len;
    return sum;
}

static off_t position(int fd) {
    struct stat st;
    if (fcntl(fd, F_GETFL) & O_APPEND) return fstat(fd, &st) ? 0 : st.st_size;
    return lseek(fd, 0, SEEK_CUR);
}

#define AROUND(fd, offset, size, call)                                \
    char path[PATH_MAX];                                              \
    if (!followed(fd, path)) return call;                             \
    uint64_t id = before_write(fd, path, offset, size);               \
    ssize_t n = call;                                                 \
    int error = errno;                                                \
    event('D', id, 0, n < 0, 0, path, NULL, 0);                       \
    errno = error;                                                    \
    return n

ssize_t write(int fd, const void *data, size_t size) { AROUND(fd, position(fd), size, real_write(fd, data, size)); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { AROUND(fd, at, size, real_pwrite(fd, data, size, at)); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { AROUND(fd, at, size, real_pwrite(fd, data, size, at)); }
ssize_t writev(int fd, const struct iovec *p, int c) { AROUND(fd, position(fd), total(p, c), real_writev(fd, p, c)); }
ssize_t pwritev(int fd, const struct iovec *p, int c, off_t at) { AROUND(fd, at, total(p, c), real_pwritev(fd, p, c, at)); }
ssize_t pwritev64(int fd, const struct iovec *p, int c, off_t at) { AROUND(fd, at, total(p, c), real_pwritev(fd, p, c, at)); }

static int lied_about(const char *path) {
    const char *end = getenv("POWERLOSS_LIE");
    return end != NULL && strlen(path) >= strlen(end) && strcmp(path + strlen(path) - strlen(end), end) == 0;
}

static int around_sync(int fd, int (*call)(int)) {
    char path[PATH_MAX];
    if (!followed(fd, path) || lied_about(path)) return call(fd);
    uint64_t id = __atomic_add_fetch(&ids, 1, __ATOMIC_RELAXED);
    event('B', id, 0, 0, 0, path, NULL, 0);
    int result = call(fd);
    if (result == 0) event('E', id, 0, 0, 0, path, NULL, 0);
    return result;
}

int fsync(int fd) { return around_sync(fd, real_fsync); }
int fdatasync(int fd) { return around_sync(fd, real_fdatasync); }

/* Cutting off is taken as durable at once; it only has to be known, so that nothing is put back beyond it. */
static int around_truncate(int fd, off_t size) {
    char path[PATH_MAX];
    int result = real_ftruncate(fd, size);
    if (result == 0 && followed(fd, path)) event('T', 0, size, 0, 0, path, NULL, 0);
    return result;
}
int ftruncate(int fd, off_t size) { return around_truncate(fd, size); }
int ftruncate64(int fd, off_t size) { return around_truncate(fd, size); }

/* Absolute path of a name below a directory descriptor; no link in it is followed. */
static int named(int directory, const char *name, char path[PATH_MAX]) {
    const char *root = getenv("POWERLOSS_DIR");
    char link[64], base[PATH_MAX] = "";
    if (root == NULL) return 0;
    if (name[0] != '/') {
        if (directory == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t n = readlink(link, base, PATH_MAX - 2);
        if (n <= 0) return 0;
        base[n] = '/';
        base[n + 1] = 0;
    }
    if (strlen(base) + strlen(name) >= PATH_MAX) return 0;
    strcpy(path, base);
    strcat(path, name);
    return strncmp(path, root, strlen(root)) == 0;
}

int renameat(int from, const char *old, int to, const char *new) {
    char a[PATH_MAX], b[PATH_MAX];
    int seen = named(from, old, a) && named(to, new, b);
    int result = real_renameat(from, old, to, new);
    int error = errno;
    if (result == 0 && seen) event('R', 0, 0, 0, 0, a, b, (uint32_t)strlen(b));
    errno = error;
    return result;
}
int rename(const char *old, const char *new) { return renameat(AT_FDCWD, old, AT_FDCWD, new); }

int unlinkat(int directory, const char *name, int flags) {
    char path[PATH_MAX];
    int seen = named(directory, name, path);
    int result = real_unlinkat(directory, name, flags);
    int error = errno;
    if (result == 0 && seen) event('U', 0, 0, 0, 0, path, NULL, 0);
    errno = error;
    return result;
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
