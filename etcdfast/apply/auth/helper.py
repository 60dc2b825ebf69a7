"""A process beside apply for what takes long: hashing passwords, signing and verifying tokens.

Parent and child talk over a pair of SOCK_SEQPACKET sockets, one job per message:

    parent -> child   u64 job id, u8 kind, bytes of the job
    child -> parent   u64 job id, u8 error id, bytes of the answer (job 0: the child is ready, or cannot be)

and the child rings apply's doorbell with each answer, so apply needs no thread for it. Jobs wait in the parent, where
they can be taken back; only as many are under way as the child has threads. It is a process and not a thread because a
thread of low priority that holds the interpreter lock would stop apply for as long as others keep it off the core.
"""

import json
import os
import socket
import struct
import subprocess
import sys
from collections import deque

from etcdfast import log
from etcdfast.api import errors

QUEUE_MAX = 128
JOB_BYTES_MAX = 65536
START_SECONDS = 30.0  # only for who has to know that the child can work (start)
STOP_SECONDS = 2.0

_HEAD = struct.Struct("<QB")
_BROKEN = errors.ID["INTERNAL"]


class HelperError(Exception):
    """The child cannot work; one line."""


class Helper:
    """`module`: run as `python -m module`, its main calls serve(); `options`: a dict for it; `doorbell`: eventfd of
    apply; `workers`: jobs under way at once.

    active: step() has something to do, sooner or later; `on_work()` is called when that begins.
    """

    def __init__(self, module, options, doorbell, workers=1, queue_max=QUEUE_MAX):
        self._module = module
        self._options = options
        self._doorbell = doorbell
        self._workers = workers
        self._queue_max = queue_max
        self._socket = None
        self._process = None
        self._queue = deque()  # (owner, kind, request, done)
        self._under_way = {}  # job id -> (owner, done)
        self._last_id = 0
        self.on_work = None

    @property
    def active(self):
        return bool(self._under_way)

    @property
    def waiting(self):
        return len(self._queue)

    def submit(self, owner, kind, request, done):
        """Have a job done: step() will call done(owner, error id, answer). False when too many wait, or it is too
        large. Errors: none; a child that cannot be started is an error of the job."""
        if len(self._queue) >= self._queue_max or len(request) > JOB_BYTES_MAX:
            return False
        self._queue.append((owner, kind, request, done))
        self._feed()
        return True

    def withdraw(self, owner):
        """Nobody waits for the jobs of `owner` any more."""
        self._queue = deque(job for job in self._queue if job[0] is not owner)

    def take_oldest(self):
        """The arguments of submit() of the job that waits longest, which does not wait here any more.
        Precondition: waiting."""
        return self._queue.popleft()

    def step(self):
        """Pass on the answers that are there."""
        while self._under_way:
            try:
                message = self._socket.recv(JOB_BYTES_MAX + _HEAD.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                message = b""
            if len(message) < _HEAD.size:
                self._lost()
                break
            job, status = _HEAD.unpack_from(message)
            answer = message[_HEAD.size :]
            if job == 0:
                if status:
                    log.error("a helper process cannot work", module=self._module, error=answer.decode())
                    self._lost()
                continue
            owner, done = self._under_way.pop(job)
            done(owner, status, answer)
        self._feed()

    def start(self):
        """Start the child now. With wait_ready() it is known to work."""
        if self._process is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                asked = {
                    **self._options,
                    "socket": theirs.fileno(),
                    "doorbell": self._doorbell,
                    "parent": os.getpid(),
                    "workers": self._workers,
                }
                command = [sys.executable, "-P", "-s", "-m", self._module, json.dumps(asked)]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), self._doorbell)
                )
            self._socket = ours

    def wait_ready(self):
        """Wait for a child just started. Errors: HelperError with its reason."""
        self._socket.settimeout(START_SECONDS)
        try:
            message = self._socket.recv(JOB_BYTES_MAX)
        except OSError:
            message = b""
        self._socket.settimeout(None)
        if len(message) < _HEAD.size or message[8]:
            self.close()
            raise HelperError(message[_HEAD.size :].decode() or f"{self._module} cannot be started")

    def close(self):
        """The child ends; what it was given, or would have been, is answered with an error."""
        process, self._process = self._process, None
        lost = [*self._under_way.values(), *((owner, done) for owner, _, _, done in self._queue)]
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._under_way.clear()
        self._queue.clear()
        if process is not None:
            process.kill()
            process.wait(STOP_SECONDS)
        for owner, done in lost:
            done(owner, _BROKEN, b"")

    def _feed(self):
        while self._queue and len(self._under_way) < self._workers:
            owner, kind, request, done = self._queue.popleft()
            self._last_id += 1
            self._under_way[self._last_id] = owner, done
            if self.on_work is not None:
                self.on_work()
            try:
                self.start()
                self._socket.send(_HEAD.pack(self._last_id, kind) + request)
            except OSError:
                self._lost()

    def _lost(self):
        """The child is gone: those who wait for it learn it, the next job starts another."""
        lost, self._under_way = self._under_way, {}
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is not None:
            process.kill()
            process.wait(STOP_SECONDS)
            log.warn("a helper process is gone", module=self._module, status=process.returncode)
        for owner, done in lost.values():
            done(owner, _BROKEN, b"")


def serve(asked, name, handle, nice=0, idle=False):
    """The child: do jobs until the parent is gone. handle(kind, request) -> answer, or raises HelperError. `idle`: it
    gets the processor only while nobody else of the member, or of its control group, wants it."""
    import queue
    import threading

    from etcdfast._ext import proc

    if not proc.die_with_parent(asked["parent"]):
        return
    proc.set_name(name)
    if nice:
        proc.stand_back(nice)
    if idle:
        # Niceness decides who gets how much, in slices of milliseconds; this, that who wakes up takes over at once.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    link = socket.socket(fileno=asked["socket"])
    jobs = queue.SimpleQueue()

    def work():
        while True:
            job, kind, request = jobs.get()
            status = 0
            try:
                answer = handle(kind, request)
            except HelperError as err:
                status, answer = errors.ID["UNKNOWN"], str(err).encode()
            except Exception:  # never with its text: it may be somebody's password
                status, answer = _BROKEN, b""
            del request
            link.send(_HEAD.pack(job, status) + answer)
            os.eventfd_write(asked["doorbell"], 1)

    for _ in range(asked["workers"]):
        threading.Thread(target=work, daemon=True).start()
    say_ready(asked)
    while message := link.recv(JOB_BYTES_MAX + _HEAD.size):
        job, kind = _HEAD.unpack_from(message)
        jobs.put((job, kind, message[_HEAD.size :]))


def say_ready(asked, error=""):
    """The child's first word; `error` is why it cannot work."""
    link = socket.socket(fileno=os.dup(asked["socket"]))
    with link:
        link.send(_HEAD.pack(0, _BROKEN if error else 0) + error.encode())
