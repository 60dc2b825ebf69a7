"""One member under test, started from nothing: real etcd 3.5.1 or etcdfast, and what it costs.

CPU and memory are summed over the whole process tree, so that a server of several processes and a
server of one are measured alike.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import _path  # noqa: F401
import grpc
import psutil

from etcdfast.api import rpcs
from etcdfast.api.grpc_stubs import Client

REPOSITORY = Path(__file__).resolve().parents[1]
QUOTA_BYTES = 8 << 30
READY_SECONDS = 180.0
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# RangeRequest{key: "\0"}: any key will do, the answer must have gone through the log
LINEARIZABLE_READ = b"\x0a\x01\x00"


class MemberError(Exception):
    """The member did not start or died; one line, with the end of its log."""


@dataclass(frozen=True)
class Memory:
    """Sums over the process tree, in bytes. `pss` counts a page shared by two processes once."""

    pss: int
    rss: int
    anonymous: int


class Member:
    """A server with its own data directory. `kind`: "etcd" or "etcdfast".

    Who wants TLS or users makes a subclass: `scheme` of the client URLs, `flags` of the server, `bench_flags` of
    etcdfast-bench, `channel` and `metadata` of calls.
    """

    scheme = "http"

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.directory = directory
        self.port, self._peer_port = _free_port(), _free_port()
        self._process: subprocess.Popen | None = None
        self._log = directory / f"{kind}.log"
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def flags(self) -> list[str]:
        return []

    @property
    def bench_flags(self) -> list[str]:
        return []

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def channel(self, options=()) -> grpc.Channel:
        return grpc.insecure_channel(self.endpoint, options=options)

    def command(self) -> list[str]:
        url, peer = f"{self.scheme}://{self.endpoint}", f"http://127.0.0.1:{self._peer_port}"
        common = [
            "--name", "bench",
            "--data-dir", str(self.directory / "data"),
            "--listen-client-urls", url,
            "--advertise-client-urls", url,
            "--quota-backend-bytes", str(QUOTA_BYTES),
            "--log-level", "error",
            "--listen-peer-urls", peer,
            "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"bench={peer}",
            *self.flags(),
        ]  # fmt: skip
        if self.kind == "etcdfast":
            return [sys.executable, "-m", "etcdfast", *common]
        return [str(Path(sys.executable).with_name("etcd")), *common]

    def start(self) -> float:
        """Start it; returns the seconds until the first linearizable read was answered."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
        begin = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=REPOSITORY, env=environment
            )
        self._wait_ready(begin + READY_SECONDS)
        return time.monotonic() - begin

    def _wait_ready(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise MemberError(f"{self.kind} ended with status {self._process.returncode}: {self._log_end()}")
            # a plain connect first: a gRPC channel that meets a closed port waits a second before it tries again
            with socket.socket() as probe:
                probe.settimeout(1.0)
                listening = probe.connect_ex(("127.0.0.1", self.port)) == 0
            if listening and self._answers(min(5.0, max(deadline - time.monotonic(), 0.1))):
                return
            time.sleep(0.002)
        raise MemberError(f"{self.kind} answered no linearizable read within {READY_SECONDS:g} s: {self._log_end()}")

    def _answers(self, seconds: float) -> bool:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with self.channel(options) as channel:
            try:
                call = channel.unary_unary("/etcdserverpb.KV/Range")
                call(LINEARIZABLE_READ, timeout=seconds, metadata=self.metadata)
                return True
            except grpc.RpcError:
                return False

    def revision(self) -> int:
        """The newest revision, by a linearizable read."""
        return self._range(key=b"\0").header.revision

    def count(self, prefix: str) -> int:
        """How many keys begin with a prefix (ASCII, not empty)."""
        key = prefix.encode()
        return self._range(key=key, range_end=key[:-1] + bytes([key[-1] + 1]), count_only=True).count

    def _range(self, **fields):
        with self.channel() as channel:
            try:
                request = rpcs.message_class("etcdserverpb.RangeRequest")(**fields)
                return Client(channel).KV.Range(request, timeout=READY_SECONDS, metadata=self.metadata)
            except grpc.RpcError as e:
                raise MemberError(f"{self.kind}: {e.details()}") from None

    def _log_end(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return lines[-1][-500:] if lines else "its log is empty"

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _tree(self) -> list[int]:
        try:
            main = psutil.Process(self._process.pid)
            return [main.pid, *(child.pid for child in main.children(recursive=True))]
        except psutil.NoSuchProcess:
            raise MemberError(f"{self.kind} is gone: {self._log_end()}") from None

    def cpu_seconds(self) -> CpuMark:
        return CpuMark({pid: _process_cpu(pid) for pid in self._tree()})

    def memory(self) -> Memory:
        pss = rss = anonymous = 0
        for pid in self._tree():
            try:
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    name, _, value = line.partition(":")
                    if name == "Pss":
                        pss += int(value.split()[0]) << 10
                    elif name == "Rss":
                        rss += int(value.split()[0]) << 10
                    elif name == "Anonymous":
                        anonymous += int(value.split()[0]) << 10
            except (FileNotFoundError, ProcessLookupError):
                continue
        return Memory(pss, rss, anonymous)

    def settled_memory(self, deadline_seconds: float = 20.0) -> Memory:
        """Memory once the member is at rest: less than 5% of a core used over half a second."""
        deadline = time.monotonic() + deadline_seconds
        while time.monotonic() < deadline:
            mark = self.cpu_seconds()
            time.sleep(0.5)
            if self.cpu_seconds().since(mark) < 0.025:
                break
        return self.memory()

    def kill9(self) -> None:
        """SIGKILL to every process at once, as a power cut for them."""
        for pid in self._tree():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait(30)

    def stop(self) -> None:
        if not self.alive():
            return
        pids = self._tree()
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            for pid in pids:
                if psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait(30)

    def remove_data(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


@dataclass(frozen=True)
class CpuMark:
    """CPU used so far: process id -> (all of it in ticks as seconds, {thread id: ns on a CPU})."""

    processes: dict[int, tuple[float, dict[int, int]]]

    def since(self, earlier: CpuMark) -> float:
        """Seconds of CPU used since then by the processes of both marks and by new ones.

        Thread counters are exact to the nanosecond; where a thread has ended, the process's own
        sum is taken, which counts ended threads but only whole ticks.
        """
        total = 0.0
        for pid, (seconds, threads) in self.processes.items():
            before_seconds, before_threads = earlier.processes.get(pid, (0.0, {}))
            if threads and before_threads.keys() <= threads.keys():
                total += sum(ns - before_threads.get(tid, 0) for tid, ns in threads.items()) / 1e9
            else:
                total += seconds - before_seconds
        return total


def _process_cpu(pid: int) -> tuple[float, dict[int, int]]:
    threads = {}
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                threads[int(task.name)] = int((task / "schedstat").read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                continue
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, {}
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND, threads


class PeakMemory:
    """Context manager: the largest sum of PSS (and of RSS) seen while it is open, in bytes."""

    PAUSE_SECONDS = 0.02

    def __init__(self, member: Member) -> None:
        self._member, self._stop = member, threading.Event()
        self.pss = self.rss = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                memory = self._member.memory()
            except MemberError:
                return
            self.pss, self.rss = max(self.pss, memory.pss), max(self.rss, memory.rss)
            if self._stop.wait(self.PAUSE_SECONDS):
                return


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
