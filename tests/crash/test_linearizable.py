"""Registers under concurrent clients and kill -9: some order of the calls explains every answer."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections import defaultdict

import pytest

from tests.harness import target_server
from tests.harness.servers import REPOSITORY

from .linearizable import NEVER, Call, is_linearizable
from .victims import choose

SEED_VARIABLE = "ETCDFAST_CRASH_SEED"
PROCESSES, THREADS, KEYS = 3, 3, 4
KILLS = 4
CALLS_BETWEEN = 250


def _read(result, began, ended):
    return Call("read", None, result, began, ended)


def _write(value, began, ended):
    return Call("write", value, True, began, ended)


def _cas(expected, value, result, began, ended):
    return Call("cas", [expected, value], result, began, ended)


@pytest.mark.parametrize(
    "calls, verdict",
    [
        ([_write("a", 0, 10), _read("a", 5, 6), _read(None, 1, 4)], True),
        ([_write("a", 0, 10), _read("a", 1, 4), _read(None, 5, 6)], False),  # back in time
        ([_write("a", 0, 10), _read(None, 11, 12)], False),  # a lost write
        ([_write("a", 0, NEVER), _read(None, 11, 12), _read("a", 20, 21)], True),  # an open one may come late
        ([_write("a", 0, NEVER), _read("a", 11, 12), _read(None, 20, 21)], False),  # but not go again
        ([_write("a", 0, 5), _cas("a", "b", [True, "b"], 6, 9), _cas("a", "c", [True, "c"], 6, 9)], False),
        ([_write("a", 0, 5), _cas("a", "b", [True, "b"], 6, 9), _cas("a", "c", [False, "b"], 6, 9)], True),
        ([_write("a", 0, 5), _cas("a", "b", "?", 6, NEVER), _read("b", 9, 10), _read("a", 7, 8)], True),
        ([_write("a", 0, 5), _cas("x", "b", "?", 6, NEVER), _read("b", 9, 10)], False),  # its compare cannot hold
        ([_read("never written", 0, 1)], False),
    ],
)
def test_the_search_knows_right_from_wrong(calls, verdict) -> None:
    assert is_linearizable(calls) is verdict


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


def test_registers_under_kill9() -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"seed {seed} ({SEED_VARIABLE}={seed} repeats the same clients and kills)")
    rng = random.Random(seed)
    killed = []
    with target_server(flags=["--snapshot-count", "300"]) as server:
        recorder = Recorder(server.endpoint, rng)
        try:
            for _ in range(KILLS):
                recorder.wait_more(rng.randrange(20, CALLS_BETWEEN))
                what, pids = choose(server, rng)
                killed.append(what)
                server.kill9(pids)
                server.wait_exit(10)
                server.start()
            recorder.wait_more(CALLS_BETWEEN)
        finally:
            lines = recorder.end()
    history = history_of(lines)
    unknown = sum(call.is_open for calls in history.values() for call in calls)
    print(f"{len(lines)} calls, {unknown} without an answer, killed {killed}")
    assert unknown > 0, "no kill met a call under way"
    for key, calls in sorted(history.items()):
        assert is_linearizable(calls), f"no order explains what clients of {key} were told: seed {seed}"
