"""The clients of registers.py at work, and the history of each register out of what they print."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections import defaultdict

from tests.harness.servers import REPOSITORY

from .linearizable import NEVER, Call

PROCESSES, THREADS, KEYS = 3, 3, 4


class Recorder:
    """The processes of registers.py, and what they print."""

    def __init__(self, endpoint: str, rng: random.Random) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.crash.registers"]
                + [endpoint, str(number), str(rng.getrandbits(32)), str(THREADS), str(KEYS)],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(PROCESSES)
        ]
        self._readers = [threading.Thread(target=self._follow, args=(process,)) for process in self._processes]
        for reader in self._readers:
            reader.start()

    def _follow(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def wait_more(self, count: int, deadline_seconds: float = 30.0) -> None:
        """Until so many more calls have ended well."""
        target = self._answered() + count
        with self._changed:
            if not self._changed.wait_for(lambda: self._answered() >= target, deadline_seconds):
                raise AssertionError(f"{self._answered()} calls answered, {target} wanted in {deadline_seconds} s")

    def _answered(self) -> int:
        return sum('"?"' not in line for line in self.lines)

    def end(self) -> list[str]:
        for process in self._processes:
            process.stdin.close()
        for process, reader in zip(self._processes, self._readers, strict=True):
            status = process.wait(30)
            reader.join(30)
            process.stdout.close()
            assert status == 0, "a client met an answer that is none"
        return self.lines


def history_of(lines: list[str]) -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = defaultdict(list)
    for line in lines:
        key, kind, argument, result, began, ended = json.loads(line)
        found[key].append(Call(kind, argument, result, began, NEVER if result == "?" else ended))
    return found
