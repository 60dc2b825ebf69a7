"""Where the figures of a member come from, held by the supervisor over restarts in place."""

import os
import struct
import threading

from etcdfast._ext.meters import BLOCK_BYTES, Meters
from etcdfast._ext.ring import APPLY_WORDS, CONSENSUS_WORDS, STATUS_PAGE_BYTES
from etcdfast.metrics import processes

SUPERVISOR = "supervisor"
# ring.h: capacity, tail and head in the control page
_CAPACITY, _TAIL, _HEAD, _CONTROL_BYTES = 8, 128, 256, 264


class Sources:
    """One block of figures per process: counters go on when the processes start anew.

    `meters`: {process: Meters}; `config`: the member's settings.
    """

    def __init__(self, names, config):
        self.config = config
        self.fds = {}
        self.meters = {}
        for name in (SUPERVISOR, *names):
            self.fds[name] = os.memfd_create(f"etcdfast-meters-{name}")
            os.ftruncate(self.fds[name], BLOCK_BYTES)
            self.meters[name] = Meters(self.fds[name])
        self._lock = threading.Lock()
        self._status = {}
        self._rings = {}
        self._pids = {}

    def follow(self, status_fds, ring_fds):
        """The pages and rings of the processes that start now; their descriptors are copied."""
        with self._lock:
            for fd in (*self._status.values(), *self._rings.values()):
                os.close(fd)
            self._status = {name: os.dup(fd) for name, fd in status_fds.items()}
            self._rings = {name: os.dup(fd) for name, fd in ring_fds.items()}

    def set_pids(self, pids):
        self._pids = dict(pids)

    @property
    def pids(self):
        """{process: pid}, the supervisor's first."""
        return {SUPERVISOR: os.getpid(), **self._pids}

    @property
    def frontends(self):
        return [block for name, block in self.meters.items() if name.startswith("frontend")]

    def pages(self):
        """({word: value} of consensus, the same of apply)."""
        with self._lock:
            raw = {name: os.pread(fd, STATUS_PAGE_BYTES, 0) for name, fd in self._status.items()}
        return tuple(
            {word: struct.unpack_from("<Q", raw[page], 8 * at)[0] for word, at in words.items()}
            for page, words in (("consensus", CONSENSUS_WORDS), ("apply", APPLY_WORDS))
        )

    def rings(self):
        """{ring: (bytes in use, capacity)}."""
        found = {}
        with self._lock:
            for name, fd in self._rings.items():
                control = os.pread(fd, _CONTROL_BYTES, 0)
                capacity, tail, head = (struct.unpack_from("<Q", control, at)[0] for at in (_CAPACITY, _TAIL, _HEAD))
                found[name] = max(0, tail - head), capacity
        return found

    def processes(self):
        """{process: processes.Process}; who is just gone is left out."""
        found = {name: processes.read(pid) for name, pid in self.pids.items()}
        return {name: figures for name, figures in found.items() if figures is not None}
