"""Power cuts under load: what was answered had been synced, in the log and in the store."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import EtcdServer, target_name, target_server

from . import powerloss
from .checker import Broken, Checker
from .workload import Load

ROUNDS = 8
SEED_VARIABLE = "ETCDFAST_CRASH_SEED"

_WRITER = """
import os, signal, sys
synced, torn, late, grown = (os.open(os.path.join(sys.argv[1], name), os.O_RDWR | os.O_CREAT) for name in "abcd")
os.pwrite(torn, b"0" * 4096, 0); os.fsync(torn)
os.pwrite(synced, b"1" * 4096, 0); os.fdatasync(synced)
os.pwrite(torn, b"1" * 4096, 0)
os.write(late, b"1" * 4096); os.fsync(late); os.write(late, b"2" * 100)
os.writev(grown, [b"3" * 10, b"4" * 10])
os.write(os.open(os.path.join(sys.argv[1], "e.tmp"), os.O_RDWR | os.O_CREAT), b"5" * 700)
os.rename(os.path.join(sys.argv[1], "e.tmp"), os.path.join(sys.argv[1], "e"))
os.write(os.open(os.path.join(sys.argv[1], "f"), os.O_RDWR | os.O_CREAT), b"6")
os.unlink(os.path.join(sys.argv[1], "f"))
kept = os.open(os.path.join(sys.argv[1], "f"), os.O_RDWR | os.O_CREAT)
os.write(kept, b"7"); os.fsync(kept)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return powerloss.build(tmp_path_factory.mktemp("powerloss"))


def test_a_cut_takes_what_was_not_synced(library: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    settings = powerloss.environment(library, data, tmp_path / "journal")
    done = subprocess.run([sys.executable, "-c", _WRITER, str(data)], env={**os.environ, **settings}, check=False)
    assert done.returncode == -9
    result = powerloss.cut(tmp_path / "journal", random.Random(1), keep=0.0)
    assert (data / "a").read_bytes() == b"1" * 4096
    assert (data / "b").read_bytes() == b"0" * 4096
    assert (data / "c").read_bytes() == b"1" * 4096
    assert (data / "d").read_bytes() == b""
    assert (data / "e").read_bytes() == b"", "renamed without a sync"
    assert (data / "f").read_bytes() == b"7"
    assert (result.synced, result.unsynced) == (4, 4)


def test_a_cut_may_keep_all_or_some(library: Path, tmp_path: Path) -> None:
    for keep, expected in ((1.0, {b"1"}), (0.5, {b"0", b"1"})):
        data = tmp_path / f"data{keep}"
        data.mkdir()
        settings = powerloss.environment(library, data, tmp_path / "journal")
        subprocess.run([sys.executable, "-c", _WRITER, str(data)], env={**os.environ, **settings}, check=False)
        powerloss.cut(tmp_path / "journal", random.Random(1), keep=keep)
        content = (data / "b").read_bytes()
        sectors = [content[at : at + 512] for at in range(0, 4096, 512)]
        assert {sector[:1] for sector in sectors} == expected
        assert all(len(set(sector)) == 1 for sector in sectors)


def _rounds(library: Path, directory: Path, rng: random.Random, flags: list[str], lie: str = "") -> tuple[int, int]:
    """Rounds of load, kill, power cut, restart and check: (synced, unsynced) writes seen. Errors: Broken."""
    journal = directory / "journal"
    server = target_server(directory=directory / "member", flags=flags)
    server.environment = powerloss.environment(library, server.data_dir, journal)
    if lie:
        server.environment["POWERLOSS_LIE"] = lie
    mirror = EtcdServer(flags=["--unsafe-no-fsync"])
    unsynced = synced = 0
    try:
        mirror.spawn()
        server.start()
        mirror.wait_ready()
        with mirror.client() as mirror_client:
            checker = Checker(mirror_client)
            for number in range(ROUNDS):
                try:
                    live = [key for key in checker.model.live if not key.startswith(b"hot/")]
                    load = Load(server, rng, number, live)
                    load.start()
                    load.wait_answers(rng.randint(1, 300))
                    server.kill9()
                    answered, unanswered = load.join()
                    done = powerloss.cut(journal, rng, keep=0.0 if lie else None)
                    unsynced += done.unsynced
                    synced += done.synced
                    server.start()
                    with server.client() as client:
                        checker.after_restart(client, answered, unanswered)
                except AssertionError as error:
                    raise Broken(f"round {number}: {error}\n{server.log_tail()}") from error
    finally:
        server.close()
        mirror.close()
    return synced, unsynced


@pytest.mark.skipif(target_name() == "etcd", reason="etcd makes its system calls without the C library")
class TestPowerCuts:
    @pytest.fixture
    def rng(self) -> random.Random:
        seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
        print(f"seed {seed} ({SEED_VARIABLE}={seed})")
        return random.Random(seed)

    @pytest.mark.parametrize("name", ["defaults", "small-snapshot-count"])
    def test_under_load(self, library: Path, tmp_path: Path, rng: random.Random, name: str) -> None:
        flags = ["--snapshot-count", "150"] if name == "small-snapshot-count" else []
        synced, unsynced = _rounds(library, tmp_path, rng, flags)
        print(f"{synced} writes synced, {unsynced} not")
        assert synced > ROUNDS, "the journal saw no syncs: the server's calls do not pass through the library"
        assert unsynced > 0

    @pytest.mark.parametrize("lie", [".wal", ".sst"])
    def test_files_that_are_never_synced_are_found_out(
        self, library: Path, tmp_path: Path, rng: random.Random, lie: str
    ) -> None:
        with pytest.raises(Broken):
            _rounds(library, tmp_path, rng, ["--snapshot-count", "50"], lie=lie)
