"""kill -9 while a snapshot is made or sent: a member goes on without its helper, and leaves nothing behind itself."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.etcdctl import ETCDCTL
from tests.harness import Server, etcdutl, pb, target_name, target_server
from tests.harness.wait import wait_until

KEYS = 400
ROUNDS = 5
SEED_VARIABLE = "ETCDFAST_CRASH_SEED"

pytestmark = pytest.mark.skipif(target_name() == "etcd", reason="etcd has no helper process")


@pytest.fixture
def server() -> Iterator[Server]:
    with target_server() as started:
        with started.client(60) as client:
            for number in range(KEYS):
                client.put(b"key%05d" % number, random.Random(number).randbytes(20_000))
        yield started


def _save(server: Server, path: Path) -> subprocess.Popen[bytes]:
    command = [ETCDCTL, "--endpoints", server.endpoint, "snapshot", "save", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _whole(server: Server, path: Path) -> bool:
    """Whether a save at rest gives everything."""
    saving = _save(server, path)
    said = saving.communicate(timeout=60)[0]
    assert saving.returncode == 0, said
    return etcdutl.status(path)["totalKey"] >= KEYS


def _helper(server: Server) -> psutil.Process | None:
    for process in server.processes():
        try:
            if "etcdfast.apply.export" in process.cmdline():
                return process
        except psutil.NoSuchProcess:
            pass
    return None


def _left(server: Server) -> list[str]:
    return [name for name in os.listdir(server.data_dir / "member" / "snap") if name.startswith("tmp")]


def test_a_member_goes_on_without_its_helper(server: Server, tmp_path: Path) -> None:
    saving = _save(server, tmp_path / "saved.db")
    wait_until(lambda: _helper(server), "a helper process", poll_seconds=0.0005).kill()
    said = saving.communicate(timeout=60)[0]
    assert saving.returncode != 0 and b"the helper process ended with status -9" in said, said
    assert not (tmp_path / "saved.db").exists()
    assert _whole(server, tmp_path / "saved.db")
    assert _left(server) == []


def test_a_killed_member_leaves_no_helper_and_no_files(server: Server, tmp_path: Path) -> None:
    """At random moments of making and sending."""
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"seed {seed} ({SEED_VARIABLE}={seed})")
    rng = random.Random(seed)
    for number in range(ROUNDS):
        saving = _save(server, tmp_path / f"{number}.db")
        try:
            saving.wait(rng.random() * 0.4)
        except subprocess.TimeoutExpired:
            pass
        server.kill9([next(p.pid for p in server.processes() if "etcdfast.apply" in p.cmdline())])
        server.wait_exit()  # the helper too: it belongs to the tree
        saving.kill()  # it would wait for another member
        saving.communicate(timeout=60)
        server.start()
        assert _left(server) == []
        with server.client() as client:
            count = client.call("Range", pb.RangeRequest(key=b"key", range_end=b"kez", count_only=True)).message.count
            assert count == KEYS
    assert _whole(server, tmp_path / "last.db")
