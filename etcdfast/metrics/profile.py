"""/debug/profile: where the threads of one process are, sampled from here (see _ext/profiler.pyx).

99 times a second each thread of the process that runs just then is sent SIGPROF and answers with a sample. The result
is one line per stack, "thread;outermost;...;innermost count", which flame graph tools read. What sleeps is not
shown: this is a profile of CPU time.

Bounds: one profile at a time, 300 s, 20,000 samples (10 MB of the page) and 64 MB of Python frames.
"""

import os
import re
import struct
import time
from collections import Counter

from etcdfast._ext import profiler
from etcdfast.metrics.sources import SUPERVISOR
from etcdfast.metrics.symbols import Symbols

HERTZ = 99
SECONDS_DEFAULT = 10.0
SECONDS_MAX = 300.0
TEXT_BYTES_MAX = 64 << 20
ANSWER_SECONDS = 0.002  # for a thread to answer its signal
TEXT = "text/plain; charset=utf-8"
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
# Frames of the interpreter itself: between Python functions they tell nothing.
_EVAL = "_PyEval_EvalFrameDefault"


class Profiles:
    def __init__(self, sources, names):
        self._sources = sources
        self.fds = {}
        for name in (SUPERVISOR, *names):
            self.fds[name] = os.memfd_create(f"etcdfast-profile-{name}")
            os.ftruncate(self.fds[name], profiler.PAGE_BYTES)
        profiler.install(self.fds[SUPERVISOR])

    def answer(self, query):
        """(status, headers, body)."""
        headers = {"Content-Type": TEXT}
        name = query.get("process", "apply")
        try:
            seconds = float(query.get("seconds") or SECONDS_DEFAULT)
        except ValueError:
            seconds = -1.0
        if name not in self.fds or not 0 < seconds <= SECONDS_MAX or query.get("format", "collapsed") != "collapsed":
            text = (
                f"expected process={'|'.join(self.fds)}, seconds up to {SECONDS_MAX:.0f}, format=collapsed (or none)\n"
            )
            return 400, headers, text.encode()
        pid = self._sources.pids.get(name)
        if pid is None or self._word(name, profiler.PID) != pid:
            return 503, headers, f"{name} is not ready to be sampled\n".encode()
        try:
            stacks = self._profile(name, pid, seconds)
        except OSError as err:
            return 503, headers, f"{name}: {err.strerror}\n".encode()
        return 200, headers, "".join(f"{stack} {count}\n" for stack, count in stacks.most_common()).encode()

    def _word(self, name, word):
        return struct.unpack("<Q", os.pread(self.fds[name], 8, 8 * word))[0]

    def _put(self, name, word, value):
        os.pwrite(self.fds[name], struct.pack("<Q", value), 8 * word)

    # ---- sampling ------------------------------------------------------------------------------------

    def _profile(self, name, pid, seconds):
        fd = self.fds[name]
        os.ftruncate(fd, profiler.PAGE_BYTES)
        os.lseek(fd, profiler.PAGE_BYTES, os.SEEK_SET)  # where the handler's text goes: the offset is shared
        for word in (profiler.TAKEN, profiler.DONE):
            self._put(name, word, 0)
        self._put(name, profiler.ARMED, 1)
        own = {os.getpid(): _own_thread()}.get(pid)
        try:
            threads = self._sample(name, pid, own, time.monotonic() + seconds)
        finally:
            self._put(name, profiler.ARMED, 0)
        time.sleep(ANSWER_SECONDS)  # for a handler that is at it
        stacks = self._read(name, pid, threads)
        os.ftruncate(fd, profiler.HEAD_BYTES)  # give the memory back
        os.ftruncate(fd, profiler.PAGE_BYTES)
        return stacks

    def _sample(self, name, pid, own, end):
        """Names of the threads that were met."""
        threads = {}
        due = time.monotonic()
        sent = 0
        while due < end:
            for tid in map(int, os.listdir(f"/proc/{pid}/task")):
                if tid == own or not _runs(pid, tid, threads):
                    continue
                if self._word(name, profiler.PID) != pid or sent >= profiler.SAMPLES_MAX:
                    return threads
                before = self._word(name, profiler.DONE)
                if profiler.interrupt(pid, tid):
                    sent += 1
                    # One after the other: they write into one file.
                    limit = time.monotonic() + ANSWER_SECONDS
                    while self._word(name, profiler.DONE) == before and time.monotonic() < limit:
                        time.sleep(0.0001)
            if os.fstat(self.fds[name]).st_size > profiler.PAGE_BYTES + TEXT_BYTES_MAX:
                break
            due = max(due + 1 / HERTZ, time.monotonic() - 1 / HERTZ)
            time.sleep(max(0.0, due - time.monotonic()))
        return threads

    # ---- what the samples say --------------------------------------------------------------------------

    def _read(self, name, pid, threads):
        fd = self.fds[name]
        count = min(self._word(name, profiler.TAKEN), profiler.SAMPLES_MAX)
        samples = os.pread(fd, count * profiler.SAMPLE_BYTES, profiler.HEAD_BYTES)
        python = _python_frames(_read_text(fd))
        symbols = Symbols(pid)
        stacks = Counter()
        for i in range(count):
            tid, depth, interrupted, *pcs = struct.unpack_from(
                f"<{3 + profiler.DEPTH}Q", samples, i * profiler.SAMPLE_BYTES
            )
            pcs = pcs[: min(depth, profiler.DEPTH)]
            if interrupted in pcs:
                pcs = pcs[pcs.index(interrupted) :]
            # A return address lies behind its call.
            names = [symbols.name(pc if at == 0 else pc - 1) for at, pc in enumerate(pcs)]
            frames = _merge(names, python.get(i, ()))
            stacks[";".join((threads.get(tid, str(tid)), *frames))] += 1
        return stacks


def _own_thread():
    import threading

    return threading.get_native_id()


def _runs(pid, tid, threads):
    """Whether the thread is on a processor or waits for one."""
    try:
        with open(f"/proc/{pid}/task/{tid}/stat", "rb") as file:
            name, _, rest = file.read().partition(b"(")[2].rpartition(b")")
    except OSError:
        return False
    if rest.split(None, 1)[0] != b"R":
        return False
    threads[tid] = name.decode("utf-8", "replace").replace(";", ":").replace(" ", "_")
    return True


def _read_text(fd):
    data = bytearray()
    at, size = profiler.PAGE_BYTES, os.fstat(fd).st_size
    while at < size:
        piece = os.pread(fd, min(1 << 20, size - at), at)
        if not piece:
            break
        data += piece
        at += len(piece)
    return data.decode("utf-8", "replace")


def _python_frames(text):
    """{sample: [functions, outermost first]}."""
    found, frames = {}, None
    for line in text.splitlines():
        if line.startswith("#"):
            frames = found.setdefault(int(line[1:]), []) if line[1:].isdecimal() else None
        elif frames is not None:
            match = _FRAME.match(line)
            if match:
                module = "/".join(match[1].rsplit("/", 2)[-2:]).removesuffix(".py")
                frames.insert(0, f"{module}:{match[3]}".replace(";", ":").replace(" ", "_"))
    return found


def _merge(names, python):
    """Outermost first: the Python frames in the place of the interpreter's, then what the innermost of them called."""
    outward = names  # innermost first
    innermost = []
    for at, name in enumerate(outward):
        if name == _EVAL:
            if python:
                return [*python, *(part.replace(" ", "_") for part in reversed(innermost))]
            return [part.replace(" ", "_") for part in reversed(outward[: at + 1])]
        innermost.append(name)
    if python:
        return [*python, *(part.replace(" ", "_") for part in reversed(innermost))]
    return [part.replace(" ", "_") for part in reversed(outward)]
