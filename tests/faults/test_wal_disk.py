"""A disk that fails: the n-th call of each kind errs, falls short, or the process dies in it.

What was reported durable must be in the log afterwards, byte for byte; what failed must be named and final.
"""

import json
import os
import signal
import subprocess
import sys

import pytest

from etcdfast._ext.walio import WalError
from etcdfast._ext.walops import FaultPlan
from etcdfast.formats import wal
from tests.harness.wait import wait_until
from tests.unit import walmodel

METADATA = b"\x08\x81\x01\x10\x82\x02"
SETTINGS = {"segment_bytes": 16384, "prewrite": True}


def payload(index):
    return bytes([index % 251 + 1]) * (index * 53 % 1700)


def run(log, count):
    """Append and flush `count` entries one by one; the last index that was reported durable, and the error."""
    durable = log.durable_index
    for index in range(log.last_index + 1, log.last_index + 1 + count):
        try:
            log.append_entry(0, 2, index, payload(index))
            log.append_state(2, 0x81, durable)
            log.flush()
        except WalError as error:
            # What was synced before the failing call stays reported.
            assert log.durable_index in (durable, index)
            return log.durable_index, error
        durable = log.durable_index
    return durable, None


def check(directory, durable):
    """The log reads, holds at least what was durable, and goes on."""
    back, log = wal.open_for_append(directory, **SETTINGS)
    kept = len(back.entries)
    assert kept >= durable
    for i in range(kept):
        assert back.entries.entry(i) == (0, 2, i + 1, payload(i + 1) or None)
    last, error = run(log, 30)
    log.close()
    assert (last, error) == (kept + 30, None)
    assert len(wal.read(directory).entries) == kept + 30
    return back


CASES = [
    *[
        (f"{call}:{n}:{error}", error)
        for call in ("pwrite", "fdatasync")
        for n in (1, 2, 9)
        for error in ("EIO", "ENOSPC")
    ],
    *[(f"pwrite:{n}:short={size}", "short write") for n in (1, 4) for size in (0, 1, 511, 512, 4095)],
    *[(f"{call}:{n}:EIO", "EIO") for call in ("fsync", "renameat", "ftruncate") for n in (1, 2, 3)],
    *[(f"{call}:{n}:ENOSPC", "ENOSPC") for call in ("fallocate", "openat", "prewrite", "presync") for n in (1, 2)],
    ("prewrite:1:short=100", "EIO"),
]
WORDS = {"EIO": "Input/output error", "ENOSPC": "No space left on device", "short write": "short write"}


@pytest.mark.parametrize(("plan", "reason"), CASES)
def test_a_failed_call_is_named_and_final(tmp_path, plan, reason):
    directory = str(tmp_path / "wal")
    faults = FaultPlan(plan)
    log = wal.create(directory, METADATA, faults=faults, **SETTINGS)
    durable, error = run(log, 80)
    assert error is not None, "the fault was never met"
    text = str(error)
    assert WORDS[reason] in text
    assert "segment " in text
    assert "offset " in text
    assert log.failure() == text
    writes = faults.calls("pwrite"), faults.calls("fdatasync"), log.stats()["writes"]
    for call in (
        lambda: log.append_entry(0, 2, 1000, b"x"),
        log.submit,
        log.poll,
        log.flush,
        lambda: log.append_state(9, 9, 9),
    ):
        with pytest.raises(WalError, match="cannot"):
            call()
    with pytest.raises(WalError):
        log.close()
    assert (faults.calls("pwrite"), faults.calls("fdatasync"), log.stats()["writes"]) == writes, "retried"
    assert log.durable_index == durable
    check(directory, durable)


def test_failed_purge_is_tried_again_and_harms_nothing(tmp_path):
    directory = str(tmp_path / "wal")
    faults = FaultPlan("unlinkat:1:EIO")
    log = wal.create(directory, METADATA, faults=faults, max_wals=2, **SETTINGS)
    run(log, 120)
    assert log.stats()["cuts"] > 4
    log.release_to(log.segments()[3][1])
    wait_until(lambda: faults.calls("unlinkat") == 1, "first removal")
    log.release_to(log.segments()[4][1])
    wait_until(lambda: log.stats()["purged"] == 3, "removal")
    log.close()


def test_slow_disk_gathers_a_batch(tmp_path):
    """Everything that arrives during one sync shares the next one."""
    directory = str(tmp_path / "wal")
    log = wal.create(directory, METADATA, faults="fdatasync:1:delay=200000", segment_bytes=1 << 20, prewrite=False)
    log.append_entry(0, 2, 1, b"first")
    assert log.submit()
    for index in range(2, 1002):
        log.append_entry(0, 2, index, b"later")
        assert not log.submit() or log.poll() or log.durable_index
    log.flush()
    stats = log.stats()
    log.close()
    assert stats["fsyncs"] <= 4
    assert sum(stats["fsync_bucket"]) == stats["fsyncs"]
    assert stats["fsync_nanoseconds"] >= 200_000_000
    assert sum(stats["fsync_bucket"][8:]) >= 1  # 128 ms and more
    assert len(wal.read(directory).entries) == 1001


CHILD = """
import json, sys
from etcdfast.formats import wal
directory, plan, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
log = wal.create(directory, bytes.fromhex(sys.argv[4]), faults=plan, **settings)
index = 0
while index < 3000:
    for _ in range(1 + index % 7):
        index += 1
        log.append_entry(0, 2, index, bytes([index % 251 + 1]) * (index * 53 % 1700))
    log.append_state(2, 0x81, log.durable_index)
    log.flush()
    print(log.durable_index, flush=True)
"""

DEATHS = [
    *[f"pwrite:{n}:tear={size}" for n in (1, 30) for size in (1, 512, 1000, 9000)],
    *[f"{call}:{n}:kill" for call in ("pwrite", "fdatasync") for n in (1, 40)],
    *[f"fsync:{n}:kill" for n in (1, 2, 3, 4)],  # old segment, new segment, directory, and the next old one
    *[f"{call}:2:kill" for call in ("ftruncate", "renameat", "openat", "fallocate", "prewrite", "presync")],
]


@pytest.mark.parametrize("plan", DEATHS)
def test_death_in_the_middle_of_a_call(tmp_path, plan):
    directory = str(tmp_path / "wal")
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, directory, plan, json.dumps(SETTINGS), METADATA.hex()],
        capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr
    lines = child.stdout.split()
    durable = int(lines[-1]) if lines else 0
    check(directory, durable)
    contents = []
    for segment in wal.list_segments(directory):
        with open(segment.path, "rb") as file:
            contents.append(file.read())
    walmodel.log(contents)
