"""A disk that fails: one clear line, status 74, and nothing acknowledged after it or lost before it."""

import os

import pytest

from etcdfast._ext.ring import KINDS
from etcdfast.api.pb import rpc_pb2
from etcdfast.formats import wal
from tests.consensus.member import Member, make_config
from tests.harness.wait import wait_until

ENTRY, HARD = KINDS["ENTRY"], KINDS["HARD"]


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path / "data")


def put(serial):
    return rpc_pb2.PutRequest(key=b"%d" % serial, value=bytes(300)).SerializeToString()


def entries(records):
    return {r["index"]: r["payload"] for r in records if r["kind"] == ENTRY}


@pytest.mark.parametrize(
    "fault, words",
    [
        ("fdatasync:12:EIO", ("sync", "Input/output error")),
        ("pwrite:12:EIO", ("write", "Input/output error")),
        ("pwrite:12:ENOSPC", ("write", "No space left on device")),
        ("pwrite:12+:short=100", ("write",)),
        ("fdatasync:1:EIO", ("sync", "Input/output error")),
    ],
)
def test_a_failed_write_or_sync_ends_the_member(config, fault, words):
    with Member(config, wal={"faults": fault}) as member:
        records, serial = [], 0
        while (record := member.take()) is not None:
            records.append(record)
            if records[-1]["kind"] == HARD or serial:
                for _ in range(3):
                    member.propose(put(serial), stream=serial)
                    serial += 1
        assert member.wait() == 74
        handed = member.word("handed_index")
        last = member.word("last_index")
        fatal = [line for line in member.log_text().splitlines() if '"level":"fatal"' in line]
        assert len(fatal) == 1
        for word in (*words, "segment 0000000000000000", "offset"):
            assert word in fatal[0]
        assert "Traceback" not in member.log_text()
        if not member.word("ready"):
            error = member.told()["error"]
            assert all(word in error for word in words)
    shown = entries(records)
    assert max(shown, default=0) == handed, "what the failed write held must not reach apply"
    # Equal when it held no entry: the place up to which all is committed is a record, too.
    assert handed <= last
    # Everything that was shown is in the log of the next start.
    with Member(config) as member:
        found = entries(member.start())
    assert {index: found[index] for index in shown} == shown


def test_nothing_is_acknowledged_while_the_disk_hangs(config):
    with Member(config, wal={"faults": "fdatasync:15+:delay=400000"}) as member:
        member.start()
        serial = 0
        while member.word("wal_fsync_count") < 14:
            member.propose(put(serial), stream=serial)
            assert member.take()["kind"] == ENTRY
            serial += 1
        for _ in range(200):
            member.propose(put(serial), stream=serial)
            serial += 1
        wait_until(lambda: member.word("last_index") >= member.word("handed_index") + 200, "200 entries in the log")
        seen = 0
        while seen < 200:
            record = member.take()
            assert record["index"] <= member.word("durable_index")
            seen += 1


def test_a_full_disk_at_the_snapshot_file_ends_the_member(config, tmp_path):
    config = config._replace(snapshot_count=10)
    with Member(config) as member:
        last = member.start()[-1]["index"]
        for serial in range(20):
            member.propose(put(serial), stream=serial)
            last = member.take()["index"]
        snap_dir = os.path.join(config.member_dir, "snap")
        os.rename(snap_dir, snap_dir + ".away")
        with open(snap_dir, "w"):  # a file where the directory was
            pass
        member.flushed(last)
        assert member.wait() == 74
        assert "cannot write a snapshot file" in member.log_text()
    os.unlink(snap_dir)
    os.rename(snap_dir + ".away", snap_dir)
    with Member(config, applied=last) as member:
        assert min(entries(member.start())) == last + 1


@pytest.mark.parametrize("call", [4, 5])
def test_a_crash_around_a_snapshot_record_replays(config, call):
    """Kill at the write that holds the SNAPSHOT record, or the commit index before it."""
    config = config._replace(snapshot_count=10)
    with Member(config) as member:
        last = member.start()[-1]["index"]
        for serial in range(20):
            member.propose(put(serial), stream=serial)
            last = member.take()["index"]
        member.stop()
    # A second start writes its vote, its empty entry, its attributes; then the snapshot's record.
    with Member(config, applied=last, wal={"faults": f"pwrite:{call}:kill"}) as member:
        last = member.start()[-1]["index"]
        member.flushed(last)
        assert member.wait() == -9
    with Member(config, applied=last) as member:
        records = member.start()
        assert min(entries(records)) == last + 1
    assert wal.read(config.wal_path).state[2] >= last
