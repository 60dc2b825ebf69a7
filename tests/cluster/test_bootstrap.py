"""Beginnings and ends of members: first starts of both kinds at once, removal, a cluster forced out of one member,
restarts in place.
"""

from __future__ import annotations

import json
import random
import socket
import time

import pytest

from tests.harness import pb
from tests.harness.cluster import RELAXED, Cluster, ClusterMember
from tests.harness.wait import wait_until

BOTH = pytest.mark.parametrize("kind", ["etcd", "etcdfast"])
SMALL_FILES = {"ETCDFAST_TEST_WAL": json.dumps({"segment_bytes": 65536, "max_wals": 1, "keep_wals_max": 2})}
RESTARTED = "restarting the member's processes in place"


@pytest.mark.parametrize("kinds", [("etcdfast", "etcd", "etcdfast"), ("etcd", "etcdfast", "etcd")])
def test_first_members_of_both_kinds(kinds: tuple[str, str, str]) -> None:
    """Every one of them computes the same ids and the same first entries; the version is the lowest one."""
    with Cluster(kinds) as cluster:
        with cluster.client() as client:
            client.put(b"a", b"1")
        lists = {tuple(sorted((m.ID, m.name) for m in cluster.member_list(by))) for by in cluster.members}
        assert len(lists) == 1
        cluster.wait_equal()
        for member in cluster.members:
            cluster.move_leader(member)
        cluster.wait_equal()


def test_a_first_member_that_comes_late() -> None:
    with_two = Cluster("etcdfast")
    try:
        late = with_two.members[2]
        for member in with_two.members[:2]:
            member.spawn()
        for member in with_two.members[:2]:
            member.wait_ready()
        with with_two.client(with_two.members[0]) as client:
            client.put(b"a", b"1")
        late.start()
        with with_two.client(late) as client:
            assert client.get(b"a").kvs[0].value == b"1"
        with_two.wait_equal()
    finally:
        with_two.close()


@BOTH
def test_a_removed_member_ends_well_and_says_why(kind: str) -> None:
    """The same lines and the same exit status as real etcd; it does not come back."""
    with Cluster(kind, flags=RELAXED) as cluster:
        cluster.add(kind)
        present, absent = cluster.followers()[:2]
        cluster.remove(present)
        assert present.wait_exit(30) == 0
        _says_that_it_was_removed(present)
        absent.kill9()
        cluster.remove(absent)
        for gone in (present, absent):  # one knows by its own log, the other is told
            gone.spawn()
            assert gone.wait_exit(30) == 0
            _says_that_it_was_removed(gone)
        cluster.wait_all_healthy()


def _says_that_it_was_removed(member: ClusterMember) -> None:
    lines = [json.loads(line) for line in member.log_text().splitlines() if line.startswith("{")]
    told = {(line["msg"], line.get("error")) for line in lines if line["level"] == "warn"}
    assert ("server error", "the member has been permanently removed from the cluster") in told
    assert ("data-dir used by this member must be removed", None) in told


@BOTH
def test_a_cluster_forced_out_of_one_member(kind: str) -> None:
    """A quorum is lost; the member left goes on with all that was acknowledged, and takes new members."""
    with Cluster(kind, flags=RELAXED) as cluster:
        with cluster.client(cluster.leader()) as client:
            for number in range(20):
                client.put(b"k%d" % number, b"v")
        cluster.wait_equal()
        left, *lost = cluster.members
        for member in lost:
            member.kill9()
        left.stop()  # a killed one may not have written how far it had committed, and drops what is behind that
        left.flags.append("--force-new-cluster")
        left.start()
        left.flags.remove("--force-new-cluster")
        cluster.members[:] = [left]
        assert [m.ID for m in cluster.member_list(left)] == [left.id]
        with cluster.client(left) as client:
            assert client.call("Range", pb.RangeRequest(key=b"k", range_end=b"l", count_only=True)).message.count == 20
            client.put(b"after", b"1")
        left.stop()
        left.start()
        assert [m.ID for m in cluster.member_list(left)] == [left.id]
        added = cluster.add(kind)
        with cluster.client(added) as client:
            assert client.get(b"after").kvs[0].value == b"1"
        cluster.wait_equal()


def far_behind(cluster: Cluster) -> ClusterMember:
    """A member that was killed, and whose next entry nobody has any more."""
    lagging = cluster.followers()[0]
    lagging.kill9()
    left = [member for member in cluster.members if member is not lagging]
    with cluster.client(cluster.leader()) as client:
        for number in range(200):
            client.put(b"missed/%d" % (number % 50), random.randbytes(10_000))
    # Files go once their entries are in the store, which a stop brings about; memory goes with the process.
    for member in left:
        member.stop()
        member.start()
        wait_until(lambda member=member: _oldest_index(member) > 100, f"{member} to let go of old log files")
    cluster.wait_leader()
    return lagging


def _oldest_index(member: ClusterMember) -> int:
    names = sorted(path.name for path in (member.data_dir / "member" / "wal").glob("*.wal"))
    return int(names[0][17:33], 16)


def test_a_restart_in_place_keeps_who_connects_waiting() -> None:
    """A member takes a snapshot: its processes end, its listening sockets stay, and who comes then is served."""
    with Cluster("etcdfast", flags=["--snapshot-count", "50"], environment=SMALL_FILES) as cluster:
        lagging = far_behind(cluster)
        lagging.spawn()
        wait_until(lambda: RESTARTED in lagging.log_text(), "a restart in place", 60)
        with socket.create_connection(("127.0.0.1", lagging.port), 30) as client:
            client.sendall(b"GET /version HTTP/1.1\r\nHost: m\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        lagging.wait_ready()
        cluster.wait_equal()
        lagging.stop()
        lagging.start()
        cluster.wait_equal()
        assert lagging.log_text().count(RESTARTED) == 0


def test_kills_while_a_snapshot_is_taken() -> None:
    """Wherever it dies, the next start has the state of before or of the snapshot, and gets the rest."""
    chance = random.Random(7)
    with Cluster("etcdfast", flags=["--snapshot-count", "50"], environment=SMALL_FILES) as cluster:
        lagging = far_behind(cluster)
        for _ in range(8):
            lagging.spawn()
            wait_until(lambda: "established a stream with a peer" in lagging.log_text(), "links", 30)
            time.sleep(chance.random() * 1.5)
            lagging.kill9()
        lagging.start()
        cluster.wait_equal()
