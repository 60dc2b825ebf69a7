"""Clusters of real etcd 3.5.1 and the target, changed member by member under load: the live migration, both ways.

With ETCDFAST_TEST_TARGET=etcd both kinds are etcd, which tests the tests.
"""

from __future__ import annotations

import json

import pytest

from tests.harness import pb, target_name
from tests.harness.cluster import RELAXED, Cluster, ClusterMember
from tests.harness.wait import wait_until

from .load import Load

TARGET = target_name()
BOTH_WAYS = pytest.mark.parametrize(
    "old, new", [("etcd", TARGET), (TARGET, "etcd")], ids=["etcd-to-target", "target-to-etcd"]
)
# Few enough that logs are cut off during a test. etcd keeps 5000 entries behind a snapshot for those who lag,
# etcdfast what is in its log's files: small ones here, and one of them.
SNAPSHOTS = ["--snapshot-count", "100", "--max-wals", "1"]
SMALL_FILES = {
    "ETCDFAST_TEST_WAL": json.dumps({"segment_bytes": 64_000, "keep_wals_max": 1}),
    "ETCD_MAX_CLUSTER_VERSION": "3.5.0",  # etcd 3.5 joins no cluster that has agreed on more
}
MISSED = 6000


def _many_puts(cluster: Cluster, number: int, prefix: bytes) -> None:
    with cluster.client(cluster.leader()) as client:
        for start in range(0, number, 500):
            requests = [
                pb.PutRequest(key=prefix + b"%d" % (n % 97), value=b"%d" % n) for n in range(start, start + 500)
            ]
            for pending in [client.start("Put", request) for request in requests]:
                assert pending.reply().ok


def _cut_logs(cluster: Cluster, *members: ClusterMember) -> None:
    """Have the beginning of the log gone. etcdfast lets go of what its store has on disk, which a stop brings about."""
    for member in members:
        if member.kind == "etcdfast":
            member.stop()
            member.start()
            wait_until(lambda member=member: _first_index(member) > 1, f"{member} to let go of its first log file")
    cluster.wait_leader()


def _first_index(member: ClusterMember) -> int:
    return min(int(path.stem.split("-")[1], 16) for path in (member.data_dir / "member/wal").glob("*.wal"))


@BOTH_WAYS
def test_live_migration_under_load(old: str, new: str) -> None:
    """One member after the other is replaced: joins as learner, becomes voter, follows, leads; then an old one goes."""
    with Cluster(old, 3, flags=[*SNAPSHOTS, *RELAXED], environment=SMALL_FILES) as cluster, Load(cluster) as load:
        load.wait_more(200)
        for leaving in list(cluster.members):
            joining = cluster.add(new, learner=True)
            load.wait_more(50)
            cluster.promote(joining)
            load.wait_more(50)
            cluster.move_leader(joining)
            load.wait_more(100)
            cluster.remove(leaving)
            load.wait_more(50)
        assert {member.kind for member in cluster.members} == {new}
        load.stop()
        load.check()
        cluster.wait_equal()
        for member in cluster.members:
            load.check(member)
        told = sorted((m.name, m.isLearner) for m in cluster.member_list())
        assert told == sorted((m.name, False) for m in cluster.members)


@BOTH_WAYS
def test_one_of_each_follows_and_leads_over_restarts(old: str, new: str) -> None:
    """Two of one kind and one of the other: each kind leads, dies, comes back and follows."""
    with (
        Cluster([old, new, old], flags=[*SNAPSHOTS, *RELAXED], environment=SMALL_FILES) as cluster,
        Load(cluster) as load,
    ):
        load.wait_more(100)
        for member in cluster.members[:2]:
            cluster.move_leader(member)
            load.wait_more(100)
            member.kill9()
            cluster.wait_leader(other_than=member)
            load.wait_more(100)
            member.start()
            load.wait_more(100)
        for member in cluster.members[:2]:
            member.stop()
            load.wait_more(100)
            member.start()
        load.stop()
        load.check()
        cluster.wait_equal()


@BOTH_WAYS
def test_a_member_far_behind_gets_a_snapshot_of_the_other_kind(old: str, new: str) -> None:
    """The leader is of kind `old`, who lags of kind `new`; then it starts again from what it was sent."""
    with Cluster([old, new, old], flags=[*SNAPSHOTS, *RELAXED], environment=SMALL_FILES) as cluster:
        leader, lagging, _ = cluster.members
        cluster.move_leader(leader)
        with cluster.client() as client:
            granted = client.call("LeaseGrant", pb.LeaseGrantRequest(ID=7, TTL=600)).message
            client.put(b"leased", b"", lease=granted.ID)
        lagging.kill9()
        _many_puts(cluster, MISSED, b"missed/")
        with cluster.client() as client:
            client.compact(cluster.revision() - 100)
        _cut_logs(cluster, cluster.members[0], cluster.members[2])
        lagging.start()
        cluster.wait_equal()
        _check_snapshot_was_sent(leader, lagging)
        with cluster.client(lagging) as client:
            left = client.call("LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=7, keys=True)).message
            assert (left.grantedTTL, list(left.keys)) == (600, [b"leased"])
        lagging.kill9()
        lagging.start()
        cluster.move_leader(lagging)
        _many_puts(cluster, 500, b"after/")
        cluster.wait_equal()


def _check_snapshot_was_sent(sender: ClusterMember, receiver: ClusterMember) -> None:
    """By the log of the side that is etcd; its lines come a moment after the deed."""
    if sender.kind == "etcd":
        wait_until(lambda: "sent database snapshot" in sender.log_text(), f"{sender} to tell that it sent a snapshot")
    elif receiver.kind == "etcd":
        wait_until(lambda: "applied snapshot" in receiver.log_text(), f"{receiver} to tell that it got a snapshot")


@BOTH_WAYS
def test_a_new_member_of_the_other_kind_gets_a_snapshot(old: str, new: str) -> None:
    """It joins as a voter, when the beginning of the log is gone."""
    with Cluster(old, 2, flags=[*SNAPSHOTS, *RELAXED], environment=SMALL_FILES) as cluster:
        _many_puts(cluster, MISSED, b"old/")
        _cut_logs(cluster, *cluster.members)
        joining = cluster.add(new)
        cluster.wait_equal()
        _check_snapshot_was_sent(cluster.leader(), joining)
        cluster.move_leader(joining)
        _many_puts(cluster, 500, b"new/")
        cluster.wait_equal()
