"""A log's life: create, append, cut, release, reopen. Contents are checked by the independent model."""

import fcntl
import os
import random
import select
import struct
import subprocess
import sys

import numpy as np
import pytest

from etcdfast._ext.walio import WalError, WalFull
from etcdfast.formats import wal, waldump
from tests.harness.wait import wait_until
from tests.unit import walmodel

METADATA = b"\x08\x81\x01\x10\x82\x02"
CONF_STATE = b"\x08\x81\x01\x28\x00"
SMALL = 65536


def contents(directory):
    out = []
    for segment in wal.list_segments(directory):
        with open(segment.path, "rb") as file:
            out.append(file.read())
    return out


def model_entries(directory):
    """{index: (term, type, data)} as the model reads them, later ones replacing."""
    out = {}
    for found in walmodel.log(contents(directory)):
        for frame in found:
            if frame.type == walmodel.ENTRY:
                entry = walmodel.Entry.FromString(frame.data)
                for later in [i for i in out if i >= entry.Index]:
                    del out[later]
                out[entry.Index] = (entry.Term, entry.Type, entry.Data if entry.HasField("Data") else None)
    return out


def table_entries(table):
    return {index: (term, kind, data) for kind, term, index, data in map(table.entry, range(len(table)))}


@pytest.fixture
def directory(tmp_path):
    return str(tmp_path / "wal")


def create(directory, **settings):
    return wal.create(directory, METADATA, **{"segment_bytes": SMALL, "prewrite": False, **settings})


def reopen(directory, **settings):
    return wal.open_for_append(directory, **{"segment_bytes": SMALL, "prewrite": False, **settings})


def test_flush_leaves_nothing_behind(directory):
    """Also when the disk finishes just as the flush looks: what was pending then has to go too."""
    log = create(directory, segment_bytes=1 << 20)
    index = 0
    for _ in range(300):
        log.append_entry(0, 1, index + 1, b"in flight")
        log.submit()
        log.append_entry(0, 1, index + 2, b"pending")
        index += 2
        log.flush()
        assert (log.pending_bytes, log.durable_index) == (0, index)
    log.close()


def test_new_log_is_etcds_head(directory):
    create(directory).close()
    (content,) = contents(directory)
    found = walmodel.frames(content)
    assert [(f.type, f.data) for f in found] == [(4, None), (1, METADATA), (5, b"\x08\x00\x10\x00")]
    assert len(content) == SMALL
    assert oct(os.stat(directory).st_mode & 0o777) == "0o700"
    (segment,) = wal.list_segments(directory)
    assert os.path.basename(segment.path) == "0000000000000000-0000000000000000.wal"
    assert oct(os.stat(segment.path).st_mode & 0o777) == "0o600"


def test_full_size_segment_is_64_000_000_bytes(directory):
    wal.create(directory, METADATA, prewrite=False).close()
    assert os.path.getsize(wal.list_segments(directory)[0].path) == 64_000_000


def test_creation_replaces_a_half_made_log_and_refuses_a_whole_one(directory):
    os.makedirs(directory + ".tmp")
    with open(directory + ".tmp/0000000000000000-0000000000000000.wal", "w") as file:
        file.write("half")
    create(directory).close()
    assert not os.path.exists(directory + ".tmp")
    with pytest.raises(FileExistsError):
        create(directory)


def test_what_is_appended_is_read_back(directory):
    log = create(directory)
    rng = random.Random(1)
    expected = {}
    for index in range(1, 200):
        data = rng.randbytes(rng.randrange(300))
        log.append_entry(0, 3, index, data)
        expected[index] = (3, 0, data or None)
    log.append_state(3, 0x81, 0)
    log.flush()
    assert log.durable_index == 199
    log.append_state(3, 0x81, 199)
    log.close()
    assert model_entries(directory) == expected
    back = wal.read(directory)
    assert table_entries(back.entries) == expected
    assert back.state == (3, 0x81, 199)
    assert back.metadata == METADATA
    assert back.snapshots == [(0, 0, None)]
    rows = np.frombuffer(back.entries.rows(), dtype=wal.ROW)
    assert rows["index"].tolist() == list(range(1, 200))
    assert rows["data_bytes"].sum() == sum(len(d) for _, _, d in expected.values() if d)


def test_nothing_is_durable_before_submit(directory):
    log = create(directory)
    log.append_entry(0, 1, 1, b"x")
    assert (log.durable_index, log.pending_bytes > 0, log.stats()["writes"]) == (0, True, 0)
    log.flush()
    assert (log.durable_index, log.pending_bytes) == (1, 0)
    log.close()


def test_reopened_log_goes_on_where_it_ended(directory):
    expected = {}
    log = create(directory)
    index = 0
    for _ in range(7):
        for _ in range(random.Random(index).randrange(1, 9)):
            index += 1
            data = bytes([index % 251]) * (index * 37 % 900)
            log.append_entry(0, 2, index, data)
            expected[index] = (2, 0, data or None)
        log.append_state(2, 5, index)
        log.close()
        assert model_entries(directory) == expected
        back, log = reopen(directory)
        assert table_entries(back.entries) == expected
        assert back.state == (2, 5, index)
        assert back.repaired is None
    log.close()


def test_cut_under_load(directory):
    """Segments are cut after the save that passes the limit; heads, names and the chain are etcd's."""
    log = create(directory, max_wals=0)
    rng = random.Random(4)
    batches = []
    log.append_state(2, 9, 0)
    index = 0
    while len(wal.list_segments(directory)) < 6:
        for _ in range(rng.randrange(1, 30)):
            index += 1
            log.append_entry(0, 2, index, rng.randbytes(rng.randrange(700)))
        log.append_state(2, 9, index)
        log.flush()
        batches.append(index)
    stats = log.stats()
    log.close()
    assert stats["cuts"] >= 5
    segments = wal.list_segments(directory)
    assert [s.sequence for s in segments] == list(range(len(segments)))
    found = walmodel.log(contents(directory))
    for segment, frames, content in zip(segments[1:], found[1:], contents(directory)[1:], strict=True):
        assert [f.type for f in frames[:3]] == [walmodel.CRC, walmodel.METADATA, walmodel.STATE]
        assert segment.index - 1 in batches
        if segment is not segments[-1]:
            assert len(content) == frames[-1].end >= SMALL
    assert len(contents(directory)[0]) == found[0][-1].end
    assert sorted(model_entries(directory)) == list(range(1, index + 1))
    assert len(wal.read(directory).entries) == index


def test_reading_starts_at_the_snapshots_segment(directory):
    log = create(directory, max_wals=0)
    for index in range(1, 401):
        log.append_entry(0, 2, index, bytes(1000))
        log.append_state(2, 9, index - 1)
        log.flush()
        if index == 300:
            log.append_snapshot(300, 2, CONF_STATE)
    log.close()
    back = wal.read(directory, (300, 2))
    assert back.released
    assert back.segments[0].index <= 300
    assert back.entries.entry(0)[2] == 301
    assert len(back.entries) == 100
    assert (300, 2, CONF_STATE) in back.snapshots
    assert (300, 2) in back.usable_snapshots
    with pytest.raises(wal.WalMissing, match="term 2"):
        wal.read(directory, (300, 1))
    with pytest.raises(wal.WalMissing, match="not in the write-ahead log"):
        wal.read(directory, (299, 2))
    os.unlink(back.segments[1].path)
    with pytest.raises(wal.WalMissing, match="is missing"):
        wal.read(directory, (300, 2))


def test_later_entries_replace_earlier_ones(directory):
    log = create(directory)
    for term, indexes in [(1, range(1, 11)), (2, range(6, 9)), (3, range(8, 15))]:
        for index in indexes:
            log.append_entry(0, term, index, b"%d/%d" % (term, index))
        log.flush()
        read = wal.read(directory)
        assert len(read.entries) == log.last_index, "what follows the replaced entry is gone with it"
        assert table_entries(read.entries) == model_entries(directory)
    log.append_state(3, 0, 0)
    log.close()
    back = wal.read(directory)
    terms = {index: term for index, (term, _, _) in table_entries(back.entries).items()}
    assert terms == {**dict.fromkeys(range(1, 6), 1), 6: 2, 7: 2, **dict.fromkeys(range(8, 15), 3)}
    assert table_entries(back.entries) == model_entries(directory)


def test_a_gap_is_named(directory):
    log = create(directory)
    for index in (1, 2, 4):
        log.append_entry(0, 1, index)
    log.close()
    with pytest.raises(wal.WalCorrupt, match="gap"):
        wal.read(directory)


def test_written_commit_never_runs_ahead_of_the_disk(directory):
    """What a hard state in the file covers was durable before it: a follower may know more than that."""
    log = create(directory)
    for index in range(1, 6):
        log.append_entry(0, 2, index, b"x")
    log.append_state(2, 7, 5)
    log.flush()
    log.append_entry(0, 2, 6, b"x")
    log.append_state(2, 7, 6)
    log.flush()
    log.append_snapshot(6, 2, CONF_STATE)
    log.close()
    frames = [f for f in walmodel.log(contents(directory))[0] if f.type in (walmodel.STATE, walmodel.SNAPSHOT)]
    states = [
        (walmodel.HardState.FromString(f.data).commit if f.type == walmodel.STATE else "snapshot") for f in frames
    ]
    assert states == ["snapshot", 0, 5, 6, "snapshot"]


def test_commit_reaches_the_file_at_close(directory):
    log = create(directory)
    log.append_entry(0, 2, 1, b"x")
    log.append_state(2, 7, 1)
    log.close()
    assert wal.read(directory).state == (2, 7, 1)


def test_sync_only_where_etcd_must(directory):
    log = create(directory)

    def syncs(action):
        before = log.stats()["fsyncs"]
        action()
        log.flush()
        return log.stats()["fsyncs"] - before

    assert syncs(lambda: log.append_entry(0, 1, 1, b"x")) == 1
    assert syncs(lambda: log.append_state(1, 7, 1)) == 1
    assert syncs(lambda: log.append_entry(0, 1, 2, b"x")) == 1
    assert syncs(lambda: log.append_state(1, 7, 2)) == 0
    assert syncs(lambda: log.append_state(1, 7, 2)) == 0
    assert syncs(lambda: log.append_state(2, 7, 2)) == 1
    assert syncs(lambda: log.append_state(2, 8, 2)) == 1
    assert syncs(lambda: log.append_snapshot(2, 1, CONF_STATE)) == 1
    assert syncs(lambda: log.append_state(0, 0, 0)) == 0
    log.close()


def test_full_buffer_is_named_and_drains(directory):
    log = create(directory, buffer_bytes=SMALL, segment_bytes=1 << 20)
    index = 0
    with pytest.raises(WalFull):
        while True:
            log.append_entry(0, 1, index + 1, bytes(1000))
            index += 1
    assert index > 50
    room = log.room_bytes
    assert room < 1100
    log.flush()
    assert log.room_bytes > 50 * 1000
    log.append_entry(0, 1, index + 1, bytes(1000))
    log.close()
    assert len(wal.read(directory).entries) == index + 1


def test_record_larger_than_the_buffer_goes_alone(directory):
    log = create(directory, buffer_bytes=SMALL, record_bytes_max=2 << 20)
    big = random.Random(3).randbytes(1 << 20)
    log.append_entry(0, 1, 1, big)
    with pytest.raises(WalFull):
        log.append_entry(0, 1, 2, big)
    log.flush()
    log.append_entry(0, 1, 2, b"small")
    with pytest.raises(WalError, match="too large"):
        log.append_entry(0, 1, 3, bytes(3 << 20))
    log.close()
    assert table_entries(wal.read(directory).entries) == {1: (1, 0, big), 2: (1, 0, b"small")}


def test_release_lets_go_and_purges(directory):
    log = create(directory, max_wals=3)
    index = 0
    while log.stats()["cuts"] < 8:
        index += 1
        log.append_entry(0, 1, index, bytes(9000))
        log.flush()
    rows = log.segments()
    assert len(rows) == 9, "nothing is removed before it is released"
    assert all(held for _, _, held in rows)
    release = rows[6][1]
    log.release_to(release)
    wait_until(lambda: log.stats()["purged"] == 6 - 1, "purge")
    # The first segment at or after the index stays, and so does the one before it.
    assert [(s, held) for s, _, held in log.segments()] == [(5, True), (6, True), (7, True), (8, True)]
    assert [s.sequence for s in wal.list_segments(directory)] == [5, 6, 7, 8]
    log.release_to(10**9)
    wait_until(lambda: log.stats()["purged"] == 6, "purge to max_wals")
    assert [(s, held) for s, _, held in log.segments()] == [(6, False), (7, True), (8, True)]
    log.close()


def test_purge_respects_a_foreign_lock(directory):
    log = create(directory, max_wals=1)
    index = 0
    while log.stats()["cuts"] < 3:
        index += 1
        log.append_entry(0, 1, index, bytes(9000))
        log.flush()
    first = wal.list_segments(directory)[0]
    holder = None
    log.release_to(log.segments()[1][1])  # lets go of none yet: the predecessor stays
    wait_until(lambda: log.segments()[0][2], "held")
    # A backup tool takes the lock as soon as the member has let go of it.
    log.close()
    holder = os.open(first.path, os.O_RDWR)
    fcntl.fcntl(holder, wal._OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    with pytest.raises(wal.WalLocked):
        reopen(directory, max_wals=1)
    os.close(holder)
    _, log = reopen(directory, max_wals=1)
    log.close()
    assert wal.list_segments(directory)[0] == first


def test_second_opener_is_refused(directory):
    log = create(directory)
    with pytest.raises(wal.WalLocked, match="in use"):
        reopen(directory)
    log.close()
    reopen(directory)[1].close()


def test_leftover_spare_files_are_ignored_and_replaced(directory):
    create(directory).close()
    for name in ("0.tmp", "1.tmp"):
        with open(os.path.join(directory, name), "wb") as file:
            file.write(b"\xff" * 100_000)
    _, log = reopen(directory)
    index = 0
    while log.stats()["cuts"] < 3:
        index += 1
        log.append_entry(0, 1, index, bytes(9000))
        log.flush()
    log.close()
    walmodel.log(contents(directory))
    assert not [n for n in os.listdir(directory) if n.endswith(".tmp")]
    assert len(wal.read(directory).entries) == index


def test_garbage_after_the_end_is_zeroed_for_append(directory):
    log = create(directory)
    log.append_entry(0, 1, 1, b"x")
    log.close()
    (segment,) = wal.list_segments(directory)
    end = walmodel.frames(contents(directory)[0])[-1].end
    with open(segment.path, "r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * 3000)
    back, log = reopen(directory)
    assert back.position[0] == end
    log.close()
    assert contents(directory)[0][end:] == bytes(SMALL - end)


def test_short_file_is_read_and_extended(directory):
    """Files of a few hundred bytes are legal (formats.md 1.1)."""
    log = create(directory)
    log.append_entry(0, 1, 1, b"x")
    log.close()
    (segment,) = wal.list_segments(directory)
    end = walmodel.frames(contents(directory)[0])[-1].end
    os.truncate(segment.path, end)
    assert len(wal.read(directory).entries) == 1
    _, log = reopen(directory)
    assert os.path.getsize(segment.path) == SMALL
    log.append_entry(0, 1, 2, b"y")
    log.close()
    assert len(wal.read(directory).entries) == 2


def test_log_that_ends_before_what_apply_has_is_named(directory):
    log = create(directory)
    log.append_entry(0, 1, 1, b"x")
    log.close()
    assert wal.read(directory, durable_index=1)
    with pytest.raises(wal.WalCorrupt, match="ends at index 1, but 2"):
        wal.read(directory, durable_index=2)


def test_synthetic_log_without_entries(directory):
    """formats.md 8.6: CRC, METADATA, STATE, SNAPSHOT, as an export writes it."""
    os.makedirs(directory)
    content, crc = walmodel.frame(0, walmodel.CRC, None)
    for kind, data in [
        (walmodel.METADATA, METADATA),
        (walmodel.STATE, walmodel.state(5, 0, 100)),
        (walmodel.SNAPSHOT, walmodel.snapshot(100, 5, CONF_STATE)),
    ]:
        piece, crc = walmodel.frame(crc, kind, data)
        content += piece
    with open(os.path.join(directory, "0000000000000002-0000000000000064.wal"), "wb") as file:
        file.write(content)
    back, log = reopen(directory, snapshot=(100, 5))
    assert (len(back.entries), back.state) == (0, (5, 0, 100))
    assert log.last_index == 100
    log.append_entry(0, 5, 101, b"next")
    log.close()
    assert wal.read(directory, (100, 5)).entries.entry(0) == (0, 5, 101, b"next")


def test_dump_names_every_record(directory, capsys):
    log = create(directory)
    log.append_entry(0, 2, 1, bytes.fromhex("22060a016b1201763a00"[:16]) + bytes.fromhex("a2060308e707"))
    log.append_entry(0, 2, 2)
    log.append_entry(1, 2, 3, b"\x08\x01\x10\x00\x18\x05")
    log.append_state(2, 0x81, 0)
    log.append_snapshot(3, 2, CONF_STATE)
    log.close()
    assert waldump.main([directory]) == 0
    text = capsys.readouterr().out
    for words in (
        "member=81 cluster=102", "index=1 term=2 normal", "put key=b'k' id=3e7", "index=2 term=2 normal no data",
        "conf-change bytes=6", "term=2 vote=81 commit=0", "index=3 term=2 voters=81", "end",
    ):  # fmt: skip
        assert words in text
    assert waldump.main([directory + "x"]) == 1
    assert "no write-ahead log" in capsys.readouterr().err


def test_dump_is_a_command(directory):
    create(directory).close()
    run = subprocess.run(
        [sys.executable, "-m", "etcdfast.formats.wal", directory], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert "METADATA" in run.stdout


@pytest.mark.parametrize(
    "settings", [{"segment_bytes": 100}, {"buffer_bytes": 1}, {"buffer_bytes": 1 << 40}, {"faults": "pwrite:x:EIO"}]
)
def test_settings_that_cannot_work_are_named(directory, settings):
    with pytest.raises(ValueError, match="expected|at most"):
        create(directory, **settings)


def test_closed_log_says_so(directory):
    log = create(directory)
    log.close()
    log.close()
    for call in (log.submit, log.flush, lambda: log.append_entry(0, 1, 1, b"x")):
        with pytest.raises(WalError, match="closed"):
            call()
    log.release_to(5)


def test_micro_benchmark_runs(tmp_path):
    run = subprocess.run(
        [sys.executable, "bench/micro/wal.py", "--tiny", "--directory", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        cwd=os.getcwd(),
    )
    assert run.returncode == 0, run.stderr
    assert "encode entry   256 B" in run.stdout


def test_a_batch_is_told_of_before_the_next_one_goes(directory):
    """Submit, sync, no poll, submit again: the second batch must not be taken for the first."""
    log = create(directory)
    log.append_entry(0, 1, 1, b"a")
    assert log.submit()
    wait_until(lambda: log.stats()["fsyncs"] >= 1 and select.select([log.done_fd], [], [], 0)[0], "the first sync")
    log.append_entry(0, 1, 2, b"b")
    assert not log.submit(), "the end of the first batch has not been polled"
    assert log.poll() and log.durable_index == 1
    assert log.submit()
    log.flush()
    assert log.durable_index == 2
    log.close()


def received(log, index, term):
    log.append_snapshot(index, term, CONF_STATE)
    log.append_state(term, 0, index)
    log.flush()


@pytest.mark.parametrize("index, last", [(500, 100), (100, 100), (60, 100)])
def test_a_received_snapshot_replaces_the_log(directory, index, last):
    """Also one below the last index, and one at it: what was there is of another history."""
    log = create(directory)
    for at in range(1, last + 1):
        log.append_entry(0, 1, at, b"old %d" % at)
    log.append_state(1, 0, 20)
    log.flush()
    received(log, index, 3)
    log.close()
    found, log = reopen(directory, snapshot=(index, 3))
    assert (len(found.entries), found.position[2:], log.last_index) == (0, (index, 3), index)
    assert (index, 3) in found.usable_snapshots
    log.append_entry(0, 3, index + 1, b"new")
    log.append_entry(0, 4, index + 2, b"new")
    log.close()
    found, log = reopen(directory, snapshot=(index, 3))
    assert table_entries(found.entries) == {index + 1: (3, 0, b"new"), index + 2: (4, 0, b"new")}
    assert found.position[2:] == (index + 2, 4)
    log.close()


def test_a_snapshot_of_the_own_log_drops_nothing(directory):
    log = create(directory)
    for at in range(1, 101):
        log.append_entry(0, 1, at, b"%d" % at)
    log.append_state(1, 0, 100)
    log.flush()
    log.append_snapshot(60, 1, CONF_STATE)
    log.close()
    found = wal.read(directory, (60, 1))
    assert sorted(table_entries(found.entries)) == list(range(61, 101))
    # An older record does not end the log either.
    assert len(wal.read(directory).entries) == 100


def test_a_snapshot_whose_hard_state_never_came_does_not_move_the_end(directory):
    """A crash between the record and the hard state that makes it count."""
    log = create(directory)
    for at in range(1, 31):
        log.append_entry(0, 1, at, b"%d" % at)
    log.append_state(1, 0, 30)
    log.flush()
    log.append_snapshot(500, 3, CONF_STATE)
    log.close()
    found, log = reopen(directory)
    assert found.position[2:] == (30, 1)
    assert (500, 3) not in found.usable_snapshots
    assert log.last_index == 30
    log.append_entry(0, 4, 31, b"goes on")
    log.append_state(4, 0, 31)
    log.close()
    found = wal.read(directory)
    assert (len(found.entries), found.position[2:]) == (31, (31, 4))
