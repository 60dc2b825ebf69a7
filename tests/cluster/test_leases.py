"""Leases, locks and elections through every member of a cluster, and over changes of its leader."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.harness import pb, target_name
from tests.harness.cluster import Cluster
from tests.harness.wait import wait_until

GONE = -1


def _kinds() -> list[list[str]]:
    target = target_name()
    return [[target] * 3, [target, "etcd", target]] if target != "etcd" else [["etcd"] * 3]


@pytest.fixture(scope="module", params=_kinds(), ids="-".join)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(request.param) as cluster:
        yield cluster


def _grant(cluster: Cluster, ttl: int) -> int:
    return cluster.call("LeaseGrant", pb.LeaseGrantRequest(TTL=ttl)).ID


def _kept(client, lease: int) -> int:
    with client.keep_alive() as stream:
        answer = stream.ask(pb.LeaseKeepAliveRequest(ID=lease))
        assert answer.ID == lease
        return answer.TTL


def test_every_member_keeps_leases_alive_and_tells_the_time_left(cluster: Cluster) -> None:
    lease = _grant(cluster, 60)
    cluster.call("Put", pb.PutRequest(key=b"on the lease", lease=lease))
    for leader, member in itertools.product(cluster.members, repeat=2):
        cluster.move_leader(leader)
        with member.client() as client:
            left = client.call("LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=lease, keys=True)).message
            assert (left.ID, left.grantedTTL, list(left.keys)) == (lease, 60, [b"on the lease"])
            assert 50 <= left.TTL <= 61  # a new leader adds an election timeout
            assert left.header.member_id == member.id and left.header.revision
            assert _kept(client, lease) == 60
            assert _kept(client, lease + 1) == 0
            unknown = client.call("LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=lease + 1)).message
            assert (unknown.TTL, unknown.grantedTTL) == (GONE, 0)


def test_a_lease_lives_as_long_as_any_member_keeps_it_alive_and_ends_everywhere(cluster: Cluster) -> None:
    ttl = 2
    lease = _grant(cluster, ttl)
    cluster.call("Put", pb.PutRequest(key=b"short", lease=lease))
    follower = cluster.followers()[0]
    with follower.client() as client:
        stream = client.keep_alive()
        end = time.monotonic() + 2.5 * ttl
        while time.monotonic() < end:
            stream.send(pb.LeaseKeepAliveRequest(ID=lease))
            assert stream.receive().TTL == ttl
            time.sleep(0.3)
        kept = time.monotonic()
        stream.close()

        def gone() -> bool:
            return not client.get(b"short").kvs

        wait_until(gone, "the end of the lease's key")
        assert time.monotonic() - kept > ttl - 0.5
    for member in cluster.members:
        with member.client() as client:
            assert not client.get(b"short").kvs
            assert client.call("LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=lease)).message.TTL == GONE
            assert lease not in [
                found.ID for found in client.call("LeaseLeases", pb.LeaseLeasesRequest()).message.leases
            ]


def test_a_stream_of_keep_alives_outlives_its_leader(cluster: Cluster) -> None:
    """The stream is of a member that first follows and then leads; the answers come in order throughout."""
    lease = _grant(cluster, 30)
    first = cluster.leader()
    next_leader = cluster.followers()[0]
    with next_leader.client() as client:
        stream = client.keep_alive()
        for leader in (None, next_leader, first):
            if leader is not None:
                cluster.move_leader(leader)
            for _ in range(3):
                stream.send(pb.LeaseKeepAliveRequest(ID=lease))
            stream.send(pb.LeaseKeepAliveRequest(ID=lease + 7))
            assert [stream.receive().TTL for _ in range(4)] == [30, 30, 30, 0]
        stream.close()


def test_a_new_leader_gives_leases_their_time_again(cluster: Cluster) -> None:
    lease = _grant(cluster, 20)
    time.sleep(1.5)
    cluster.move_leader(cluster.followers()[0])
    for member in cluster.members:
        with member.client() as client:
            left = client.call("LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=lease)).message
            assert 19 <= left.TTL <= 21, member


def test_one_line_for_a_lock_through_all_members(cluster: Cluster) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(member.client()) for member in cluster.members]
        leases = [_grant(cluster, 60) for _ in clients]
        calls = []
        for client, lease in zip(clients, leases, strict=True):
            waiting = len(client.get(b"lock/", b"lock0").kvs)
            calls.append(client.start("Lock", pb.LockRequest(name=b"lock", lease=lease)))
            wait_until(lambda c=client, n=waiting: len(c.get(b"lock/", b"lock0").kvs) == n + 1, "the place in the line")
        for at, call in enumerate(calls):
            answer = call.reply().message
            assert not any(later.done for later in calls[at + 1 :])
            other = clients[(at + 1) % len(clients)]
            assert other.get(answer.key).kvs[0].lease == leases[at]
            other.call("Unlock", pb.UnlockRequest(key=answer.key))


def test_elections_through_all_members(cluster: Cluster) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(member.client()) for member in cluster.members]
        for at, client in enumerate(clients):
            lease = _grant(cluster, 60)
            won = client.call("Campaign", pb.CampaignRequest(name=b"e", lease=lease, value=b"v%d" % at)).message
            for other in clients:
                assert other.call("Leader", pb.LeaderRequest(name=b"e")).message.kv.value == b"v%d" % at
            other = clients[(at + 1) % len(clients)]
            assert other.call("Proclaim", pb.ProclaimRequest(leader=won.leader, value=b"w")).ok
            assert client.call("Leader", pb.LeaderRequest(name=b"e")).message.kv.value == b"w"
            assert other.call("Resign", pb.ResignRequest(leader=won.leader)).ok


def test_a_lease_revoked_elsewhere_frees_the_lock(cluster: Cluster) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(member.client()) for member in cluster.members]
        first, second = _grant(cluster, 60), _grant(cluster, 60)
        assert clients[0].call("Lock", pb.LockRequest(name=b"r", lease=first)).ok
        waiting = clients[1].start("Lock", pb.LockRequest(name=b"r", lease=second))
        wait_until(lambda: len(clients[1].get(b"r/", b"r0").kvs) == 2, "the second in line")
        assert clients[2].call("LeaseRevoke", pb.LeaseRevokeRequest(ID=first)).ok
        assert waiting.reply().ok
    cluster.wait_equal()
