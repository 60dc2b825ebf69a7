"""kill -9 of any process of a member under load: nothing answered is lost, nothing is half there."""

from __future__ import annotations

import os
import random

import pytest

from tests.harness.servers import FULL_LOG_FILES

from .rounds import Report, crash_rounds, is_self_test

SEED_VARIABLE = "ETCDFAST_CRASH_SEED"
ROUNDS_VARIABLE = "ETCDFAST_CRASH_ROUNDS"  # `make soak` sets it
ROUNDS = 30
# Few entries per snapshot: flushes, log snapshots and the release of segments fall into the crashes too.
SETTINGS = {"defaults": ([], FULL_LOG_FILES), "small-snapshot-count": (["--snapshot-count", "200"], None)}


@pytest.mark.parametrize("name", SETTINGS)
def test_kill9_rounds(name: str) -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    default = 6 if is_self_test() else ROUNDS
    rounds = int(os.environ.get(ROUNDS_VARIABLE) or default)
    print(f"seed {seed} ({SEED_VARIABLE}={seed} repeats the same load and kills)")
    report: Report = crash_rounds(seed, rounds, *SETTINGS[name])
    print(report)
    assert report.rounds == rounds
    # A run without load, or without calls cut off in the middle, would prove nothing.
    assert report.answered > rounds * 10
    assert report.unanswered > 0
