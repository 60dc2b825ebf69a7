"""What a member does with the data it finds: replay, kill -9 at any moment, and data that does not fit."""

import os
import random
import shutil

import pytest

from etcdfast._ext.ring import KINDS
from etcdfast.api.pb import raft_internal_pb2, rpc_pb2
from etcdfast.formats import memberid, raftpb, snapfile, wal
from tests.consensus.member import Member, make_config
from tests.harness.wait import wait_until

ENTRY, HARD = KINDS["ENTRY"], KINDS["HARD"]


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path / "data")


def put(key, value=b"v"):
    return rpc_pb2.PutRequest(key=key, value=value).SerializeToString()


def rows(records):
    return {r["index"]: (r["term"], r["method"], r["payload"]) for r in records if r["kind"] == ENTRY}


def write(member, count, serial=0):
    """Propose and take `count` puts; returns the records."""
    records = []
    for number in range(count):
        while not member.propose(put(b"%d" % (serial + number), bytes(number % 700)), stream=number):
            records.append(member.take())
    while len(records) < count:
        records.append(member.take())
    return records


@pytest.mark.parametrize("applied", [0, 1, 3, 4, 5, 60, 103, 104])
def test_replay_starts_behind_what_the_store_has(config, applied):
    with Member(config) as member:
        records = [*member.start(), *write(member, 100)]
        assert member.stop() == 0
    before = rows(records)
    assert max(before) == 104
    with Member(config, applied=applied) as member:
        replayed = member.start()
        found = rows(replayed)
        assert min(found) == applied + 1
        assert {i: row for i, row in found.items() if i <= 104} == {i: r for i, r in before.items() if i > applied}
        # The next term's empty entry and the attributes; the version is known already.
        assert found[105] == (3, 0, b"")
        assert max(found) == 106
        assert (replayed[-1]["kind"], replayed[-1]["index"], replayed[-1]["term"]) == (HARD, 106, 3)


@pytest.mark.parametrize("ring_bytes", [4096, 8192, 65536])
def test_replay_of_more_than_the_ring_holds_ends_with_hard(config, ring_bytes):
    """The ring is full when the last entry goes in: HARD must still follow."""
    with Member(config) as member:
        member.start()
        write(member, 300)
        member.stop()
    for applied in range(0, 12):
        with Member(config, applied=applied, ring_bytes={"ca": ring_bytes}) as member:
            # Everything is committed and in the ring, or waits for room, before the first record is taken.
            wait_until(
                lambda member=member: member.word("durable_index") >= member.word("last_index") > 304, "the term"
            )
            records = member.start()
            found = [r["index"] for r in records if r["kind"] == ENTRY]
            assert found == list(range(applied + 1, records[-1]["index"] + 1))
            assert member.told() == {"ready": "consensus"}


def test_kill_9_at_any_moment_keeps_what_was_handed_over(config):
    """Whatever apply was shown may have been acknowledged, so every later start must show it again."""
    seed = int(os.environ.get("ETCDFAST_TEST_SEED", "20261120"))
    print("ETCDFAST_TEST_SEED =", seed)
    chance = random.Random(seed)
    handed = {}
    serial = 0
    for _ in range(25):
        applied = chance.choice((0, chance.randint(0, max(handed, default=0))))
        with Member(config, applied=applied) as member:
            life = chance.choice((0, 0, 1, 5, 50, 400, 2000))
            expected = applied + 1
            seen = 0
            while seen < life:
                for _ in range(chance.randint(0, 40)):
                    member.propose(put(b"%d" % serial, bytes(chance.randint(0, 900))), stream=serial & 0xFFFF)
                    serial += 1
                record = member.take()
                seen += 1
                if record["kind"] != ENTRY:
                    continue
                assert record["index"] == expected
                expected += 1
                row = (record["term"], record["method"], record["payload"])
                assert handed.setdefault(record["index"], row) == row
            member.kill()
            while (record := member.out.pop()) is not None:
                if record["kind"] == ENTRY:
                    row = (record["term"], record["method"], record["payload"])
                    assert handed.setdefault(record["index"], row) == row
    with Member(config) as member:
        found = rows(member.start())
    assert {index: found[index] for index in handed} == handed
    assert sorted(found) == list(range(1, max(found) + 1))
    terms = [found[index][0] for index in sorted(found)]
    assert terms == sorted(terms)


def test_a_crash_in_the_first_start_is_made_good(config):
    """At each write of the first start."""
    for call in range(1, 6):
        shutil.rmtree(config.data_dir, ignore_errors=True)
        with Member(config, wal={"faults": f"pwrite:{call}:kill"}) as member:
            assert member.wait() == -9
        with Member(config) as member:
            records = member.start()
            found = rows(records)
            change = raftpb.decode_conf_change(found[1][2])
            assert (found[1][:2], change.node_id) == ((1, 1), member.word("member_id"))
            assert sorted(found) == list(range(1, records[-1]["index"] + 1))


def test_attributes_are_published_anew_at_each_start(config):
    with Member(config) as member:
        member.start()
        member.stop()
    changed = config._replace(name="other", advertise_client_urls=("http://10.0.0.1:2379",))
    with Member(changed, applied=4) as member:
        published = [
            raft_internal_pb2.InternalRaftRequest.FromString(r["payload"])
            for r in member.start()
            if r["kind"] == ENTRY and r["payload"]
        ]
        assert [str(p.cluster_member_attr_set.member_attributes.name) for p in published] == ["other"]
        # Ids come from the log, whatever the flags say now.
        assert published[0].cluster_member_attr_set.member_ID == memberid.member_id(
            ["http://localhost:2380"], "etcd-cluster"
        )


def test_the_log_wins_over_flags_of_another_cluster(config):
    with Member(config) as member:
        member.start()
        ids = member.word("member_id"), member.word("cluster_id")
        member.stop()
    other = config._replace(initial_cluster="default=http://h:1", initial_cluster_token="other")
    with Member(other) as member:
        member.start()
        assert (member.word("member_id"), member.word("cluster_id")) == ids


def refused(config, applied, status):
    with Member(config, applied=applied) as member:
        told = member.told()
        assert member.wait() == status
        assert member.out.pop() is None, "a refused start shows apply nothing"
        assert '"level":"fatal"' in member.log_text()
        assert "Traceback" not in member.log_text()
    return told["error"]


def test_a_store_ahead_of_the_log_is_refused(config):
    with Member(config) as member:
        member.start()
        member.stop()
    error = refused(config, 5, 65)
    assert "the store has applied index 5" in error and "ends at 4" in error


@pytest.mark.parametrize("term", [1, 2, 3])
def test_a_store_of_another_log_is_known_by_its_term(config, term):
    """--wal-dir of one member, --data-dir of another: both have entry 4."""
    with Member(config) as member:
        member.start()
        member.stop()
    with Member(config, opened=False) as member:
        member.open_store(4, term)
        if term == 2:
            assert member.start()
        else:
            error = member.told()["error"]
            assert member.wait() == 65
            assert f"the store has entry 4 of term {term}" in error and "it is of term 2" in error


def test_a_log_that_begins_behind_the_store_is_refused(config):
    small_segments(config)
    snapshots = snapfile.names(os.path.join(config.member_dir, "snap"))
    assert snapshots
    error = refused(config, 3, 65)
    assert "the store has applied index 3" in error and "begins at" in error


def small_segments(config):
    """A member that has let go of its first segments. Returns the last index."""
    config = config._replace(snapshot_count=50)
    with Member(config, wal={"segment_bytes": 65536, "max_wals": 2}) as member:
        last = member.start()[-1]["index"]
        serial = 0
        for _ in range(4):
            records = write(member, 500, serial)
            serial += 500
            last = records[-1]["index"]
            member.flushed(last)
            wait_until(lambda last=last: member.word("snapshot_index") >= last - 49, "a raft snapshot")
        wait_until(lambda: len(wal.list_segments(config.wal_path)) <= 2, "the release of old segments")
        assert member.stop() == 0
    return last


def test_old_segments_go_and_the_rest_replays(config):
    last = small_segments(config)
    assert wal.list_segments(config.wal_path)[0].sequence > 0
    snap_dir = os.path.join(config.member_dir, "snap")
    names = snapfile.names(snap_dir)
    assert 1 <= len(names) <= 5
    data, conf_state, index, _ = snapfile.read(snap_dir, names[0])
    members, removed, version = snapfile.decode_members(data)
    assert conf_state.voters == (members[0][0],)
    assert members[0][1:] == (("http://localhost:2380",), "default", ("http://localhost:2379",), False)
    assert (removed, version) == ((), "3.7.0")
    with Member(config, applied=index) as member:
        found = rows(member.start())
        assert min(found) == index + 1
        assert found[last + 1] == (3, 0, b"")
        write(member, 10)


def test_a_snapshot_file_without_its_record_is_passed_over(config):
    """A crash between the two leaves it; the older snapshot is the right one then."""
    last = small_segments(config)
    snap_dir = os.path.join(config.member_dir, "snap")
    data, conf_state, index, term = snapfile.read(snap_dir, snapfile.names(snap_dir)[0])
    snapfile.write(snap_dir, data, conf_state, last + 1, term)
    with Member(config, applied=index) as member:
        assert max(rows(member.start())) > last
        assert "passed over a snapshot file" in member.log_text()


@pytest.mark.parametrize("lost", ["newest", "all"])
def test_lost_snapshot_files_do_not_lose_the_member(config, lost):
    """The log's own record of a snapshot is enough: the store has the data, and the flags the names."""
    last = small_segments(config)
    snap_dir = os.path.join(config.member_dir, "snap")
    names = snapfile.names(snap_dir)
    for name in names if lost == "all" else names[:1]:
        with open(os.path.join(snap_dir, name), "r+b") as file:
            file.truncate(20)
    with Member(config, applied=last) as member:
        assert sorted(rows(member.start()))[:2] == [last + 1, last + 2]
        assert "set a damaged snapshot file aside" in member.log_text()
        write(member, 10)
    assert os.path.exists(os.path.join(snap_dir, names[0] + ".broken"))


def test_a_torn_tail_is_cut_and_said(config):
    with Member(config) as member:
        member.start()
        write(member, 20)
        member.kill()
    path = wal.list_segments(config.wal_path)[-1].path
    end = wal.read(config.wal_path).position[0]
    # A frame that announces more than the file holds.
    with open(path, "r+b") as file:
        file.truncate(end + 12)
        file.seek(end)
        file.write((400).to_bytes(8, "little") + b"\x08\x02")
    with Member(config) as member:
        assert set(range(1, 25)) <= set(rows(member.start()))
        assert "cut a torn tail off the write-ahead log" in member.log_text()


def test_a_flipped_bit_is_fatal_and_named(config):
    with Member(config) as member:
        member.start()
        write(member, 20)
        member.stop()
    path = wal.list_segments(config.wal_path)[-1].path
    with open(path, "r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 4]))
    with Member(config, applied=0) as member:
        told = member.told()
        assert member.wait() == 65
        assert path in told["error"] and "offset" in told["error"]


def test_a_log_in_use_is_refused(config):
    with Member(config) as member:
        member.start()
        assert "in use by another process" in refused(config, 0, 1)
        write(member, 1)
