"""One side of a conversation with etcdctl: commands that end, commands that stay, and what all of them printed.

Two sides are compared by their transcripts. Lease ids are the server's choice, so each becomes LEASE1,
LEASE2, ... in the order a side first shows them; everything else stands as printed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable

from tests.harness import Client, Server, wait_until

from .etcdctl import ETCDCTL, TIMEOUT_SECONDS, Result, etcdctl, normalised

# Ids have sixteen hexadecimal digits (a leading zero goes in keys) or, in JSON, up to nineteen decimal
# ones; the ids of cluster and member look alike, but are equal on both sides.
_ID = re.compile(rb"(?<![0-9a-z])(?:[0-9a-f]{14,16}|[0-9]{17,19})(?![0-9a-z])")
_SAME_IDS = {14841639068965178418, 10276657743932975437}
_REMAINING = re.compile(rb'(TTL\((\d+)s\), remaining\(|"ttl":|"TTL" : )(\d+)')
_DECIMAL_DIGITS = 17
# A client told to stop while a call of its own waits may log that it gave the call up, or end before it does.
_GIVEN_UP = re.compile(rb'(?m)^\{"level":"warn"[^\n]*context canceled[^\n]*\n')


class Running:
    """An etcdctl that stays. What it prints is collected; end it with `interrupt` or wait with `ended`."""

    def __init__(self, endpoint: str, arguments: tuple[str, ...]) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")}
        self.arguments = arguments
        self._process = subprocess.Popen(
            [ETCDCTL, "--endpoints", endpoint, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        self._printed = {"stdout": bytearray(), "stderr": bytearray()}
        self._readers = [
            threading.Thread(target=self._read, args=(name,), name=f"{name} of etcdctl {arguments[0]}", daemon=True)
            for name in self._printed
        ]
        for reader in self._readers:
            reader.start()

    @property
    def stdout(self) -> bytes:
        return bytes(self._printed["stdout"])

    @property
    def stderr(self) -> bytes:
        return bytes(self._printed["stderr"])

    def shows(self, text: bytes, times: int = 1, where: str = "stdout") -> None:
        """Wait until it has printed `text` so many times."""
        wait_until(
            lambda: self._printed[where].count(text) >= times,
            f"etcdctl {' '.join(self.arguments)} to print {text!r}; it printed {self.stdout!r} {self.stderr!r}",
        )

    def type(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def no_more_input(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def interrupt(self) -> Result:
        """Control-C, and wait for its end."""
        self.signal()
        return self.ended()

    def signal(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def ended(self) -> Result:
        code = self._process.wait(TIMEOUT_SECONDS)
        for reader in self._readers:
            reader.join(TIMEOUT_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        return Result(code, self.stdout, self.stderr)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.ended()

    def _read(self, name: str) -> None:
        pipe = getattr(self._process, name)
        while piece := os.read(pipe.fileno(), 65536):
            self._printed[name] += piece


class Session:
    """One server, and the transcript of everything that etcdctl was asked of it."""

    def __init__(self, server: Server, client: Client) -> None:
        self.server, self.client = server, client
        self.transcript: list[tuple[str, Result]] = []
        self._names: dict[int, bytes] = {}
        self._running: list[Running] = []

    def run(self, *arguments: str, stdin: bytes = b"") -> Result:
        """A command that ends by itself; its raw result."""
        result = etcdctl(self.server.endpoint, *arguments, stdin=stdin)
        self._note(arguments, result)
        return result

    def start(self, *arguments: str) -> Running:
        """A command that stays; hand it to `finish` or `interrupt` to have it in the transcript."""
        running = Running(self.server.endpoint, arguments)
        self._running.append(running)
        return running

    def interrupt(self, running: Running, tidy: Callable[[bytes], bytes] = bytes) -> Result:
        """End a command by control-C; `tidy` takes out what may come any number of times."""
        running.signal()
        result = self.finish(running, tidy)
        shown, noted = self.transcript.pop()
        self.transcript.append((shown, Result(noted.code, noted.stdout, _GIVEN_UP.sub(b"", noted.stderr))))
        return result

    def finish(self, running: Running, tidy: Callable[[bytes], bytes] = bytes) -> Result:
        """Wait for a command that ends by itself now."""
        result = running.ended()
        self._running.remove(running)
        self._note(running.arguments, Result(result.code, tidy(result.stdout), result.stderr))
        return result

    def lease(self, ttl: int) -> str:
        """Grant a lease with etcdctl; its id in hexadecimal."""
        granted = re.match(rb"lease ([0-9a-f]{16}) granted", self.run("lease", "grant", str(ttl)).stdout)
        assert granted is not None
        return granted[1].decode()

    def watching(self, running: Running, key: str) -> None:
        """Wait until a watch that tells nothing of itself is there: put `key` until it shows.

        Its output has to be tidied of repeats (`without_pokes`), and revisions no longer compare.
        """

        def poked() -> bool:
            etcdctl(self.server.endpoint, "put", key, "poke")
            return b"poke" in running.stdout

        wait_until(poked, f"etcdctl {' '.join(running.arguments)} to watch", poll_seconds=0.05)

    def compare(self, what: str, shown: bytes) -> None:
        """Put something else that has to be equal on both sides into the transcript."""
        self.transcript.append((what, Result(0, shown, b"")))

    def close(self) -> None:
        for running in self._running:
            running.kill()

    # -- what is compared -------------------------------------------------------------------------

    def _note(self, arguments: tuple[str, ...], result: Result) -> None:
        shown = self._named(" ".join(arguments).replace(self.server.endpoint, "ENDPOINT").encode()).decode()
        result = normalised(arguments, result)
        if arguments[:2] == ("lease", "timetolive"):
            result = Result(result.code, _REMAINING.sub(_near, result.stdout), result.stderr)
        self.transcript.append((shown, Result(result.code, self._named(result.stdout), self._named(result.stderr))))

    def _named(self, text: bytes) -> bytes:
        return _ID.sub(self._name, text)

    def _name(self, found: re.Match[bytes]) -> bytes:
        token = found[0]
        decimal = token.isdigit() and len(token) >= _DECIMAL_DIGITS
        id_ = int(token, 10 if decimal else 16)
        if id_ in _SAME_IDS:
            return token
        return self._names.setdefault(id_, b"LEASE%d" % (len(self._names) + 1))


def _near(found: re.Match[bytes]) -> bytes:
    """What is left of a lease runs down while the test runs; it may not exceed what was granted."""
    left = int(found[3])
    if found[2] is not None and not int(found[2]) - 10 <= left <= int(found[2]):
        return found[0]
    return found[1] + b"LEFT"


def without_pokes(printed: bytes) -> bytes:
    """A run of equal events of `Session.watching` as one."""
    return re.sub(rb"(PUT\n[^\n]*\npoke\n)(?:\1)+", rb"\1", printed)


def unrepeated(printed: bytes) -> bytes:
    """Equal lines that follow each other as one."""
    return re.sub(rb"(?m)^([^\n]*\n)(?:\1)+", rb"\1", printed)
