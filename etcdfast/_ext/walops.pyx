"""The WAL's system calls, and the plan by which a test makes them fail."""

import errno as _errno

from libc.errno cimport EINTR
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.types cimport off_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <signal.h>
    #include <stdio.h>
    #include <time.h>
    #include <unistd.h>

    static void walops_wait(uint64_t microseconds) {
        struct timespec left = {(time_t)(microseconds / 1000000), (long)(microseconds % 1000000) * 1000};
        while (nanosleep(&left, &left) && errno == EINTR) {}
    }
    static void walops_die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }
    static uint64_t walops_count(uint64_t *counter) { return __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED); }
    static void walops_set_errno(int value) { errno = value; }
    """
    void walops_wait(uint64_t microseconds) noexcept nogil
    void walops_die() noexcept nogil
    uint64_t walops_count(uint64_t *counter) noexcept nogil
    void walops_set_errno(int value) noexcept nogil
    int64_t c_pwrite "pwrite"(int fd, const void *data, size_t size, off_t offset) noexcept nogil
    int c_fdatasync "fdatasync"(int fd) noexcept nogil
    int c_fsync "fsync"(int fd) noexcept nogil
    int c_fallocate "posix_fallocate"(int fd, off_t offset, off_t size) noexcept nogil
    int c_ftruncate "ftruncate"(int fd, off_t size) noexcept nogil
    int c_openat "openat"(int directory, const char *name, int flags, int mode) noexcept nogil
    int c_renameat "renameat"(int from_directory, const char *old, int to_directory, const char *new) noexcept nogil
    int c_unlinkat "unlinkat"(int directory, const char *name, int flags) noexcept nogil

# ---- the real calls -------------------------------------------------------------------------------


cdef int64_t system_pwrite(void *context, int fd, const void *data, size_t size, off_t offset) noexcept nogil:
    return c_pwrite(fd, data, size, offset)


cdef int system_fdatasync(void *context, int fd) noexcept nogil:
    return c_fdatasync(fd)


cdef int system_fsync(void *context, int fd) noexcept nogil:
    return c_fsync(fd)


cdef int system_fallocate(void *context, int fd, off_t size) noexcept nogil:
    cdef int error = EINTR
    while error == EINTR:  # a signal may end it, also SIGSTOP with SIGCONT, and the C library does not go on
        error = c_fallocate(fd, 0, size)  # returns the error, does not set errno
    if error:
        walops_set_errno(error)
        return -1
    return 0


cdef int system_ftruncate(void *context, int fd, off_t size) noexcept nogil:
    return c_ftruncate(fd, size)


cdef int system_openat(void *context, int directory, const char *name, int flags) noexcept nogil:
    return c_openat(directory, name, flags, 0o600)


cdef int system_renameat(void *context, int directory, const char *old, const char *new) noexcept nogil:
    return c_renameat(directory, old, directory, new)


cdef int system_unlinkat(void *context, int directory, const char *name) noexcept nogil:
    return c_unlinkat(directory, name, 0)


cdef walops_table SYSTEM
SYSTEM.context = NULL
SYSTEM.pwrite = system_pwrite
SYSTEM.fdatasync = system_fdatasync
SYSTEM.fsync = system_fsync
SYSTEM.fallocate = system_fallocate
SYSTEM.ftruncate = system_ftruncate
SYSTEM.openat = system_openat
SYSTEM.renameat = system_renameat
SYSTEM.unlinkat = system_unlinkat
SYSTEM.prewrite = system_pwrite
SYSTEM.presync = system_fdatasync


cdef const walops_table *walops_system() noexcept nogil:
    return &SYSTEM


# ---- planned faults -------------------------------------------------------------------------------

cdef enum:
    OP_PWRITE = 0
    OP_FDATASYNC = 1
    OP_FSYNC = 2
    OP_FALLOCATE = 3
    OP_FTRUNCATE = 4
    OP_OPENAT = 5
    OP_RENAMEAT = 6
    OP_UNLINKAT = 7
    OP_PREWRITE = 8
    OP_PRESYNC = 9
    OP_COUNT = 10
    RULES_MAX = 32

OPERATIONS = (
    "pwrite", "fdatasync", "fsync", "fallocate", "ftruncate", "openat", "renameat", "unlinkat", "prewrite", "presync",
)

cdef enum:
    DO_FAIL = 0  # return -1 with errno = amount
    DO_SHORT = 1  # writes only: write `amount` bytes and say so
    DO_DELAY = 2  # wait `amount` microseconds, then the real call
    DO_KILL = 3  # SIGKILL to the process instead of the call
    DO_TEAR = 4  # writes only: write `amount` bytes, then SIGKILL

ctypedef struct fault_rule:
    int32_t operation
    int32_t action
    uint64_t first, last  # numbers of the calls it meets, counted from 1 per operation
    uint64_t amount

ctypedef struct fault_plan:
    fault_rule rules[RULES_MAX]
    int32_t rule_count
    uint64_t calls[OP_COUNT]


# The rule for this call, delays already served; NULL: do the real call.
cdef const fault_rule *meet(fault_plan *plan, int operation) noexcept nogil:
    cdef uint64_t n = walops_count(&plan.calls[operation])
    cdef int i
    cdef const fault_rule *rule
    for i in range(plan.rule_count):
        rule = &plan.rules[i]
        if rule.operation != operation or n < rule.first or n > rule.last:
            continue
        if rule.action == DO_DELAY:
            walops_wait(rule.amount)
        elif rule.action == DO_KILL:
            walops_die()
        else:
            if rule.action == DO_FAIL:
                walops_set_errno(<int>rule.amount)
            return rule
    return NULL


cdef int64_t planned_write(void *context, int operation, int fd, const void *data, size_t size, off_t offset) noexcept nogil:
    cdef const fault_rule *rule = meet(<fault_plan *>context, operation)
    cdef int64_t n
    if rule == NULL:
        return c_pwrite(fd, data, size, offset)
    if rule.action == DO_FAIL:
        return -1
    n = c_pwrite(fd, data, rule.amount if rule.amount < size else size, offset)
    if rule.action == DO_TEAR:
        walops_die()
    return n


cdef int64_t planned_pwrite(void *context, int fd, const void *data, size_t size, off_t offset) noexcept nogil:
    return planned_write(context, OP_PWRITE, fd, data, size, offset)


cdef int64_t planned_prewrite(void *context, int fd, const void *data, size_t size, off_t offset) noexcept nogil:
    return planned_write(context, OP_PREWRITE, fd, data, size, offset)


cdef int planned_presync(void *context, int fd) noexcept nogil:
    return c_fdatasync(fd) if meet(<fault_plan *>context, OP_PRESYNC) == NULL else -1


cdef int planned_fdatasync(void *context, int fd) noexcept nogil:
    return c_fdatasync(fd) if meet(<fault_plan *>context, OP_FDATASYNC) == NULL else -1


cdef int planned_fsync(void *context, int fd) noexcept nogil:
    return c_fsync(fd) if meet(<fault_plan *>context, OP_FSYNC) == NULL else -1


cdef int planned_fallocate(void *context, int fd, off_t size) noexcept nogil:
    return system_fallocate(NULL, fd, size) if meet(<fault_plan *>context, OP_FALLOCATE) == NULL else -1


cdef int planned_ftruncate(void *context, int fd, off_t size) noexcept nogil:
    return c_ftruncate(fd, size) if meet(<fault_plan *>context, OP_FTRUNCATE) == NULL else -1


cdef int planned_openat(void *context, int directory, const char *name, int flags) noexcept nogil:
    return system_openat(NULL, directory, name, flags) if meet(<fault_plan *>context, OP_OPENAT) == NULL else -1


cdef int planned_renameat(void *context, int directory, const char *old, const char *new) noexcept nogil:
    return c_renameat(directory, old, directory, new) if meet(<fault_plan *>context, OP_RENAMEAT) == NULL else -1


cdef int planned_unlinkat(void *context, int directory, const char *name) noexcept nogil:
    return c_unlinkat(directory, name, 0) if meet(<fault_plan *>context, OP_UNLINKAT) == NULL else -1


cdef fault_rule parse_rule(str part) except *:
    cdef fault_rule rule
    try:
        operation, call, action = part.split(":")
        rule.operation = OPERATIONS.index(operation)
        if call == "*":
            rule.first, rule.last = 1, <uint64_t>-1
        elif call.endswith("+"):
            rule.first, rule.last = int(call.removesuffix("+")), <uint64_t>-1
        else:
            rule.first = rule.last = int(call)
        name, _, amount = action.partition("=")
        if name == "kill":
            rule.action, rule.amount = DO_KILL, 0
        elif name == "delay":
            rule.action, rule.amount = DO_DELAY, int(amount)
        elif name in ("short", "tear") and operation in ("pwrite", "prewrite"):
            rule.action, rule.amount = (DO_SHORT if name == "short" else DO_TEAR), int(amount)
        else:
            rule.action, rule.amount = DO_FAIL, getattr(_errno, name)
    except (ValueError, AttributeError, OverflowError):
        raise ValueError(f"WAL fault plan: cannot read {part!r}, expected operation:call:action") from None
    return rule


cdef class FaultPlan:
    """System calls of the WAL that fail where the plan says.

    spec: comma-separated `operation:call:action`. Operations as in OPERATIONS; call is `n` (the n-th), `n+`
    (from the n-th on) or `*`; action is an errno name (`EIO`, `ENOSPC`), `short=BYTES`, `tear=BYTES`,
    `delay=MICROSECONDS` or `kill`. Example: `fdatasync:3:EIO,pwrite:*:delay=500`.
    Errors: ValueError naming the part that is wrong.
    """

    def __cinit__(self, str spec):
        cdef fault_plan *plan = <fault_plan *>calloc(1, sizeof(fault_plan))
        if plan == NULL:
            raise MemoryError("fault plan")
        self.plan = plan
        self.spec = spec
        for part in filter(None, spec.split(",")):
            if plan.rule_count == RULES_MAX:
                raise ValueError(f"WAL fault plan: more than {RULES_MAX} rules")
            plan.rules[plan.rule_count] = parse_rule(part)
            plan.rule_count += 1
        self.table.context = plan
        self.table.pwrite = planned_pwrite
        self.table.fdatasync = planned_fdatasync
        self.table.fsync = planned_fsync
        self.table.fallocate = planned_fallocate
        self.table.ftruncate = planned_ftruncate
        self.table.openat = planned_openat
        self.table.renameat = planned_renameat
        self.table.unlinkat = planned_unlinkat
        self.table.prewrite = planned_prewrite
        self.table.presync = planned_presync

    def __dealloc__(self):
        free(self.plan)

    def calls(self, str operation):
        """How often `operation` has been called so far."""
        return (<fault_plan *>self.plan).calls[OPERATIONS.index(operation)]
