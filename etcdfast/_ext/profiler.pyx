"""Samples of where this process' threads are, C code included: the signal handler's side of /debug/profile.

The supervisor sends SIGPROF to one thread at a time, only to threads that run just now, and only while a profile is
under way; the handler writes the thread's return addresses into a shared page and its Python frames behind it. Nothing
is symbolised here and nothing is allocated.

Why this is safe in a signal handler:
- It touches preallocated shared memory, registers and the own stack, and calls backtrace(), write() and
  _Py_DumpTraceback(), which is made for handlers (faulthandler is built on it). errno is kept.
- backtrace() allocates and loads libgcc once, at its first call: `install` makes that call. After that the unwinder
  finds its tables through _dl_find_object (glibc from 2.35 on), which takes no lock. Older ones take a lock that is
  recursive, and no thread that holds it waits for another of ours.
- A signal interrupts a system call only of a thread that the supervisor saw running: SA_RESTART has it go on where the
  kernel can, and every wait of ours (epoll, futex, poll) is a loop that takes EINTR for "look again".
- SIGPROF would end a process without a handler: the page says which process has one, and the supervisor asks it first.
"""

from libc.errno cimport errno
from libc.stdint cimport uint64_t

import os

cdef extern from *:
    r"""
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <dlfcn.h>
    #include <errno.h>
    #include <execinfo.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <ucontext.h>
    #include <unistd.h>

    enum {
        PROFILE_DEPTH = 61,
        PROFILE_SAMPLES = 20000,
        PROFILE_HEAD_BYTES = 4096,
    };
    typedef struct {
        uint64_t tid;
        uint64_t depth;
        uint64_t interrupted; /* where the signal met the thread */
        uint64_t pc[PROFILE_DEPTH];
    } profile_sample;
    typedef struct {
        uint64_t pid;   /* which process has installed its handler */
        uint64_t armed; /* 1 while samples are wanted */
        uint64_t taken; /* samples begun */
        uint64_t done;
    } profile_head;

    static char *profile_page;
    static int profile_fd = -1;
    static void (*profile_dump)(int, PyThreadState *);

    #define PROFILE_BYTES ((size_t)PROFILE_HEAD_BYTES + sizeof(profile_sample) * PROFILE_SAMPLES)

    static uint64_t interrupted_at(void *context) {
    #if defined(__x86_64__)
        return (uint64_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    #elif defined(__aarch64__)
        return (uint64_t)((ucontext_t *)context)->uc_mcontext.pc;
    #else
        return 0;
    #endif
    }

    static void profile_write_mark(uint64_t i) {
        char text[32];
        int at = sizeof text;
        text[--at] = '\n';
        do {
            text[--at] = (char)('0' + i % 10);
            i /= 10;
        } while (i);
        text[--at] = '#';
        ssize_t n = write(profile_fd, text + at, sizeof text - at);
        (void)n;
    }

    static void profile_handler(int number, siginfo_t *info, void *context) {
        int kept = errno;
        profile_head *head = (profile_head *)profile_page;
        if (head && __atomic_load_n(&head->armed, __ATOMIC_ACQUIRE)) {
            uint64_t i = __atomic_fetch_add(&head->taken, 1, __ATOMIC_ACQ_REL);
            if (i < PROFILE_SAMPLES) {
                profile_sample *s = (profile_sample *)(profile_page + PROFILE_HEAD_BYTES) + i;
                int depth = backtrace((void **)s->pc, PROFILE_DEPTH);
                PyThreadState *state = PyGILState_GetThisThreadState();
                s->tid = (uint64_t)syscall(SYS_gettid);
                s->interrupted = interrupted_at(context);
                s->depth = depth > 0 ? (uint64_t)depth : 0;
                if (state && profile_dump) {
                    profile_write_mark(i);
                    profile_dump(profile_fd, state);
                }
            }
            __atomic_fetch_add(&head->done, 1, __ATOMIC_ACQ_REL);
        }
        errno = kept;
        (void)number;
        (void)info;
    }

    static int profile_map(int fd) {
        void *found = mmap(NULL, PROFILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (found == MAP_FAILED) return -errno;
        profile_page = found;
        profile_fd = fd;
        return 0;
    }

    static int profile_install(void) {
        void *warm[4];
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_sigaction = profile_handler;
        action.sa_flags = SA_SIGINFO | SA_RESTART;
        sigfillset(&action.sa_mask);
        profile_dump = (void (*)(int, PyThreadState *))dlsym(RTLD_DEFAULT, "_Py_DumpTraceback");
        if (backtrace(warm, 4) < 1 || sigaction(SIGPROF, &action, NULL) != 0) return -1;
        __atomic_store_n(&((profile_head *)profile_page)->pid, (uint64_t)getpid(), __ATOMIC_RELEASE);
        return 0;
    }
    """
    enum:
        PROFILE_DEPTH
        PROFILE_SAMPLES
        PROFILE_HEAD_BYTES
        SIGPROF
        SYS_tgkill
    ctypedef struct profile_sample:
        uint64_t tid
    size_t PROFILE_BYTES
    int profile_map(int fd)
    int profile_install()
    long syscall(long number, ...)

DEPTH = PROFILE_DEPTH
SAMPLES_MAX = PROFILE_SAMPLES
HEAD_BYTES = PROFILE_HEAD_BYTES
SAMPLE_BYTES = sizeof(profile_sample)
PAGE_BYTES = PROFILE_BYTES
# Words of the page's head.
PID, ARMED, TAKEN, DONE = range(4)


def install(int fd):
    """Be ready to be sampled: the page is `fd`, of PAGE_BYTES. Once per process. Errors: OSError."""
    cdef int rc = profile_map(fd)
    if rc:
        raise OSError(-rc, os.strerror(-rc))
    if profile_install() != 0:
        raise OSError(errno, "cannot install the handler of SIGPROF")


def interrupt(int pid, int tid):
    """Send SIGPROF to one thread; False when it is gone."""
    return syscall(SYS_tgkill, <long>pid, <long>tid, <long>SIGPROF) == 0
