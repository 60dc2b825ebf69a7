"""What a process of a member asks of the kernel and the C library about itself. Rare calls only."""

from libc.errno cimport errno

import os


cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
    enum:
        PR_SET_PDEATHSIG
        PR_SET_NAME

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<sys/syscall.h>" nogil:
    enum:
        SYS_ioprio_set

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t pad)

cdef extern from "<signal.h>" nogil:
    enum:
        SIGKILL


def die_with_parent(int parent_pid):
    """Have the kernel end this process when its parent thread ends; False if the parent is gone already.

    Errors: OSError.
    """
    if prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0:
        raise OSError(errno, os.strerror(errno))
    # The parent may have ended before the call: then the signal would never come.
    return os.getppid() == parent_pid


def set_name(str name):
    """Name shown by ps and top; the kernel keeps 15 bytes."""
    cdef bytes encoded = name.encode()[:15]
    cdef const char *text = encoded
    prctl(PR_SET_NAME, <unsigned long>text, 0, 0, 0)


def stand_back(int nice):
    """Let others have the processor first, and the disk before all: for helpers that nobody waits for by the
    millisecond."""
    os.nice(nice)
    # IOPRIO_WHO_PROCESS, this thread, class IDLE. A scheduler without classes ignores it.
    syscall(SYS_ioprio_set, 1, 0, 3 << 13)


def trim_heap():
    """Give free heap pages back to the kernel: after a start-up or another burst of allocation."""
    malloc_trim(0)
