"""Registers under concurrent clients and kill -9: some order of the calls explains every answer."""

from __future__ import annotations

import os
import random

import pytest

from tests.harness import target_server

from .linearizable import NEVER, Call, is_linearizable
from .recorder import Recorder, history_of
from .victims import choose

SEED_VARIABLE = "ETCDFAST_CRASH_SEED"
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
