"""The disk fails under a running member: it stops, says why, and nothing it answered is lost.

The faults come from the WAL writer's own plan (etcdfast._ext.walops.FaultPlan), handed over in the
environment; the n-th call of an operation fails, falls short, is torn or kills the process.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from tests.harness import EtcdServer, Server, pb, target_name, target_server

from .checker import Broken, Checker
from .workload import Load

TEST_WAL_VARIABLE = "ETCDFAST_TEST_WAL"  # read by etcdfast.consensus
SEGMENT_BYTES = 128 * 1024
SEED_VARIABLE = "ETCDFAST_CRASH_SEED"

pytestmark = pytest.mark.skipif(target_name() == "etcd", reason="the fault plan is etcdfast's own")

# (operation:call:action with {n} for the call, what the log must name). The first calls belong to the
# start-up, so n lies well above them.
FAULTS = {
    "fdatasync fails": ("fdatasync:{n}:EIO", "Input/output error"),
    "fdatasync says the disk is full": ("fdatasync:{n}:ENOSPC", "No space left on device"),
    "write fails": ("pwrite:{n}:EIO", "Input/output error"),
    "disk full": ("pwrite:{n}+:ENOSPC", "No space left on device"),
    "quota of the disk": ("pwrite:{n}+:EDQUOT", "quota"),
    "short write": ("pwrite:{n}:short=10", "short write"),
    "write of nothing": ("pwrite:{n}:short=0", "short write"),
}
DEATHS = {
    "killed instead of fdatasync": "fdatasync:{n}:kill",
    "killed instead of a write": "pwrite:{n}:kill",
    "torn write": "pwrite:{n}:tear={bytes}",
}


@pytest.fixture
def rng() -> random.Random:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"seed {seed}")
    return random.Random(seed)


def _with(faults: str = "", segment_bytes: int = 64_000_000) -> dict[str, str]:
    """The environment of a member whose log meets these faults."""
    settings: dict[str, object] = {"segment_bytes": segment_bytes}
    if faults:
        settings["faults"] = faults
    return {TEST_WAL_VARIABLE: json.dumps(settings)}


def _fail_under_load(server: Server, spec: str, rng: random.Random, number: int, checker: Checker) -> tuple[int, str]:
    """Run load until the planned fault ends the member, restart without it, check; (status, log)."""
    server.environment = _with(spec)
    server.start()
    live = [key for key in checker.model.live if not key.startswith(b"hot/")]
    load = Load(server, rng, number, live)
    load.start()
    load.wait_answers(1_000_000, deadline_seconds=30)  # until all writers have met the end
    status = server.wait_exit(10)
    log = server.log_text()
    answered, unanswered = load.join()
    server.environment = {}
    server.start()
    with server.client() as client:
        try:
            checker.after_restart(client, answered, unanswered)
            checker.check_contents(client)
        except AssertionError as error:
            raise Broken(f"{spec}: {error}\n{server.log_tail()}") from error
    assert answered, "the fault came before any answer: nothing was tested"
    return status, log


@pytest.mark.parametrize("name", FAULTS)
def test_a_failing_disk_stops_the_member(name: str, rng: random.Random) -> None:
    template, reason = FAULTS[name]
    with target_server() as server, server.client() as client:
        client.put(b"hot/0", b"first")
        server.stop()
        checker = Checker()
        checker.model.live = {b"hot/0": (b"first", 2, 2, 1)}
        checker.model.current = 2
        spec = template.format(n=rng.randint(30, 60))
        status, log = _fail_under_load(server, spec, rng, 0, checker)
        assert status not in (0, None) and status > 0, f"{spec}: status {status}"
        assert reason.lower() in log.lower(), f"{spec}: the log does not say why\n{log[-3000:]}"
        assert "Traceback" not in log, log[-3000:]


@pytest.mark.parametrize("name", DEATHS)
def test_a_death_in_the_middle_of_the_disk_work(name: str, rng: random.Random) -> None:
    """Several in a row on one data directory, each at another call."""
    with EtcdServer(flags=["--unsafe-no-fsync"]) as mirror, mirror.client() as mirror_client:
        checker = Checker(mirror_client)
        server = target_server()
        try:
            for number in range(3):
                # Whole sectors: neither a disk nor a kill tears a write within one. A length word cut in its middle
                # is named as damage, as a flipped bit in it is.
                size = 512 * rng.choice((1, 2, 7, 8, 9, rng.randint(1, 40)))
                spec = DEATHS[name].format(n=rng.randint(25, 80), bytes=size)
                status, _ = _fail_under_load(server, spec, rng, number, checker)
                assert status != 0
                server.stop()
        finally:
            server.close()


def test_faults_around_the_end_of_a_segment(rng: random.Random) -> None:
    """Small segments: the next one is prepared, renamed and entered again and again while things fail."""
    with EtcdServer(flags=["--unsafe-no-fsync"]) as mirror, mirror.client() as mirror_client:
        checker = Checker(mirror_client)
        server = target_server(flags=["--snapshot-count", "100"])
        try:
            for number, spec in enumerate(
                (
                    "renameat:3:EIO",
                    "fsync:4:EIO",
                    "fallocate:3:ENOSPC",
                    "prewrite:5:ENOSPC",
                    "presync:3:EIO",
                    "renameat:3:kill",
                    "fsync:5:kill",
                    "fallocate:3:kill",
                    "unlinkat:1:kill",
                    "ftruncate:1:kill",
                )
            ):
                server.environment = _with(spec, SEGMENT_BYTES)
                server.start()
                live = [key for key in checker.model.live if not key.startswith(b"hot/")]
                load = Load(server, rng, number, live)
                load.start()
                load.wait_answers(800, deadline_seconds=60)
                if server.alive:  # not every one of these ends the member: the file may be prepared again later
                    server.kill9()
                assert server.wait_exit(10) != 0
                answered, unanswered = load.join()
                server.environment = _with(segment_bytes=SEGMENT_BYTES)
                server.start()
                try:
                    with server.client() as client:
                        checker.after_restart(client, answered, unanswered)
                except AssertionError as error:
                    raise Broken(f"{spec}: {error}\n{server.log_tail()}") from error
                server.stop()
        finally:
            server.close()


def test_no_answer_before_the_sync() -> None:
    """While fdatasync takes its time a write is neither answered nor to be seen."""
    delay_seconds = 0.4
    server = target_server()
    server.environment = _with(f"fdatasync:*:delay={int(delay_seconds * 1e6)}")
    with server, server.client() as client:
        for number in range(3):
            start = time.monotonic()
            pending = client.start("Put", pb.PutRequest(key=b"k", value=b"%d" % number))
            looks = []
            while time.monotonic() - start < delay_seconds / 2:
                seen = client.get(b"k", serializable=True)
                looks.append((time.monotonic() - start, seen.kvs[0].value if seen.kvs else b""))
            pending.reply().message  # noqa: B018 - raises if refused
            # A lower bound only: the answer cannot come before a sync that started after the request.
            assert time.monotonic() - start >= delay_seconds / 2
            early = [value for at, value in looks if at < delay_seconds / 2]
            assert b"%d" % number not in early, "a write not yet durable was read"


def test_a_wrong_plan_is_refused(tmp_path: Path) -> None:
    """So that a typing error here cannot turn every test above into one without faults."""
    server = target_server(directory=tmp_path / "member")
    server.environment = _with("fdatasync:nonsense")
    try:
        server.spawn()
        assert server.wait_exit(20) != 0
        assert "fault plan" in server.log_text()
    finally:
        server.close()
