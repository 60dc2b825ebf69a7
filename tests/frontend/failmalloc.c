/* Preloaded into a frontend: fails one allocation, the n-th from when the test says so.
 *
 * FAILMALLOC_FILE names a file of four 64-bit words that the test maps, too:
 *   [0] allocations to go before the one that fails, 0 = none fails
 *   [1] allocations failed so far
 * Only the main thread counts: helper threads would make the number mean something else each time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

static uint64_t *words;

__attribute__((constructor)) static void map_words(void) {
    const char *path = getenv("FAILMALLOC_FILE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED) words = at;
}

static int fails(void) {
    if (!words || !words[0] || syscall(SYS_gettid) != getpid()) return 0;
    if (--words[0]) return 0;
    words[1]++;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size) { return fails() ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return fails() ? NULL : __libc_calloc(count, size); }
void *realloc(void *data, size_t size) { return fails() ? NULL : __libc_realloc(data, size); }
