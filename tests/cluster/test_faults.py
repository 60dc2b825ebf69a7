"""Members are killed, stopped, cut off and slowed under load, and what clients were told still fits together.

Registers: some order of all calls, each between its beginning and its end, explains every answer. Leases
granted and renewed meanwhile never end before their time, and do end. Writes and watches: every acknowledged
write is found at its revision, and every watch saw just what happened.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest

from tests.crash.checker import Broken, Checker
from tests.crash.followers import Followers, ReplayModel
from tests.crash.history import Operation
from tests.crash.leaseclock import Guard
from tests.crash.linearizable import is_linearizable
from tests.crash.recorder import Recorder, history_of
from tests.crash.workload import Load
from tests.harness import pb
from tests.harness.cluster import Cluster, ClusterMember
from tests.harness.network import faulty_network
from tests.harness.streams import StreamEnded
from tests.harness.wait import WaitTimeout

from .clients import AnyMember
from .faults import fault, faults_for

SEED_VARIABLE = "ETCDFAST_CRASH_SEED"
ROUNDS_VARIABLE = "ETCDFAST_CLUSTER_ROUNDS"  # of `make soak`
KINDS_VARIABLE = "ETCDFAST_CLUSTER_KINDS"  # such as etcd,etcdfast,etcd; else three of the target
ROUNDS = 5
CALLS_BETWEEN = 150
# As long as an election takes: shorter faults are not noticed by all, longer ones only wait.
FAULT_SECONDS = 1.2
FLAGS = ["--snapshot-count", "300", "--experimental-watch-progress-notify-interval", "100ms"]


@pytest.fixture
def seed() -> int:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"seed {seed} ({SEED_VARIABLE}={seed} repeats the same clients and faults)")
    return seed


def _new_cluster() -> Cluster:
    kinds = os.environ.get(KINDS_VARIABLE, "").split(",")
    return Cluster(kinds if len(kinds) > 1 else None, flags=FLAGS, network=faulty_network())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with _new_cluster() as cluster:
        yield cluster


@pytest.fixture
def fresh_cluster() -> Iterator[Cluster]:
    """Without any write yet: the test accounts for every revision."""
    with _new_cluster() as cluster:
        yield cluster


def _rounds() -> int:
    return int(os.environ.get(ROUNDS_VARIABLE) or ROUNDS)


def _hold() -> None:
    time.sleep(FAULT_SECONDS)  # the fault lasts: that is what is tested


def test_registers_and_leases_under_faults(cluster: Cluster, seed: int) -> None:
    rng = random.Random(seed)
    told = []
    leases = Leases(cluster)
    recorder = Recorder(cluster.endpoints, rng)
    try:
        for name in faults_for(rng, _rounds()):
            recorder.wait_more(rng.randrange(20, CALLS_BETWEEN), 60)
            leases.grant_and_renew()
            with fault(name, cluster, rng) as what:
                told.append(what)
                _hold()
        recorder.wait_more(CALLS_BETWEEN, 60)
    finally:
        lines = recorder.end()
    leases.finish()
    history = history_of(lines)
    unknown = sum(call.is_open for calls in history.values() for call in calls)
    print(f"{len(lines)} calls, {unknown} without an answer; {'; '.join(told)}; leases: {leases.told}")
    for key, calls in sorted(history.items()):
        assert is_linearizable(calls), f"no order explains what clients of {key} were told: seed {seed}; {told}"
    cluster.wait_equal()


class Leases:
    """Some leases of every round: half of them renewed as long as it lasts, all left alone afterwards."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.guard = Guard(AnyMember(cluster))
        self._id = 1

    @property
    def told(self) -> str:
        leases = self.guard.leases.values()
        return f"{len(leases)}, {sum(lease.renewals for lease in leases)} renewals"

    def grant_and_renew(self) -> None:
        """Through whoever serves: what is not answered is not held against anybody."""
        with AnyMember(self.cluster).client(5) as client:
            for ttl in (2, 4, 60):
                self._id += 1
                try:
                    self.guard.grant(client, self._id, ttl)
                except AssertionError:
                    self.guard.leases.pop(self._id, None)
        member = random.Random(self._id).choice(self.cluster.live)
        renewed = [lease for lease in self.guard.leases.values() if not lease.ended]
        with member.client(5) as client, client.keep_alive() as stream:
            try:
                self.guard.renew(stream, renewed)
            except (StreamEnded, WaitTimeout):
                pass
        self.guard.check()

    def finish(self) -> None:
        """All that are short must end now; a new leader gives each its whole time again."""
        self.cluster.wait_leader()
        short = [lease for lease in self.guard.leases.values() if lease.ttl < 60]
        assert short, "no lease was granted"
        self.guard.all_end(short, time.monotonic() + max(lease.ttl for lease in short))
        long = [lease for lease in self.guard.leases.values() if lease.ttl >= 60]
        self.guard.close()
        self.guard.check()
        gone = [lease.id for lease in long if lease.ended and lease.ended < lease.not_before]
        assert not gone, f"leases {gone} of 60 s ended"


class ClusterFollowers(Followers):
    """Each stream follows another member."""

    def member_of(self, stream: str) -> ClusterMember:
        names = sorted({follower.stream for follower in self.all})
        members = self.server.cluster.members
        return members[names.index(stream) % len(members)]

    def endpoint_of(self, stream: str) -> str:
        return self.member_of(stream).endpoint


class ClusterLoad(Load):
    """Each writer writes through another member; what is not answered in time is open."""

    call_seconds = 3.0

    def endpoint_of(self, number: int) -> str:
        members = self.server.cluster.members
        return members[number % len(members)].endpoint


def test_writes_and_watches_under_faults(fresh_cluster: Cluster, seed: int) -> None:
    cluster = fresh_cluster
    rng = random.Random(seed)
    model = ReplayModel()
    checker = Checker(model=model, late=True)
    followers = ClusterFollowers(cluster.members[0])
    told: list[str] = []
    open_ones: list[Operation] = []
    try:
        for number, name in enumerate(faults_for(rng, _rounds())):
            # A delete whose outcome is open may still be done: its key is left alone.
            maybe_gone = {key for one in open_ones for key, value in one.effects if value is None}
            mine = [key for key in model.live if not key.startswith(b"hot/") and key not in maybe_gone]
            followers.connect()
            load = ClusterLoad(cluster.members[0], rng, number, mine, 0.005)
            load.start()
            load.wait_answers(rng.randint(1, 30))
            followers.stop_reading()
            followers.churn(rng)
            load.wait_answers(rng.randint(30, 120))
            killed = {member: member.process for member in cluster.members}
            with fault(name, cluster, rng) as what:
                told.append(what)
                _hold()
            answered, unanswered = load.join()
            with cluster.client(rng.choice(cluster.members)) as client:
                sent = [*open_ones, *unanswered]
                found = checker.after_restart(client, answered, sent)
            open_ones = [one for one in sent if one not in found]
            followers.collect(ended={one.endpoint for one, process in killed.items() if one.process is not process})
            followers.check(model.replay)
        followers.connect()
        followers.wait_for_all(model.replay)
        followers.collect(ended=set())
        followers.check(model.replay, through=model.current)
        cluster.wait_equal()
    except AssertionError as error:
        raise Broken(f"seed {seed}, {told}: {error}") from error
    finally:
        followers.abandon()
    print(f"revision {model.current}, {followers.events} events, {followers.resumed} watches; {'; '.join(told)}")
    assert followers.events > model.current > 100


def test_a_leader_cut_off_serves_no_stale_read(cluster: Cluster) -> None:
    """The old leader cannot know of the new one, and answers no linearizable read and no write."""
    old = cluster.leader()
    with cluster.client(old) as client:
        client.put(b"value", b"old")
    with fault_between(cluster, old):
        new = cluster.wait_leader(other_than=old)
        with cluster.client(new) as client:
            client.put(b"value", b"new")
        with old.client(1.5) as client:
            assert not client.call("Range", pb.RangeRequest(key=b"value")).ok
            assert not client.call("Put", pb.PutRequest(key=b"value", value=b"lost")).ok
            assert client.get(b"value", serializable=True).kvs[0].value == b"old"
    cluster.wait_all_healthy()
    with cluster.client(old) as client:
        assert client.get(b"value").kvs[0].value == b"new"


class fault_between:
    """`member` and the others do not hear each other within the block."""

    def __init__(self, cluster: Cluster, member: ClusterMember) -> None:
        self.cluster, self.member = cluster, member

    def __enter__(self) -> None:
        for other in self.cluster.members:
            if other is not self.member:
                self.cluster.network.cut(self.member.number, other.number)
                self.cluster.network.cut(other.number, self.member.number)

    def __exit__(self, *_: object) -> None:
        self.cluster.network.heal()


def test_leases_outlive_their_leader_and_end(cluster: Cluster) -> None:
    """After the leader's death none ends early, a keep-alive through a follower counts, and all end."""
    guard = Guard(AnyMember(cluster))
    follower = cluster.followers()[0]
    with cluster.client(follower) as client:
        leases = [guard.grant(client, number, 2 + number % 3) for number in range(1001, 1010)]
    killed = cluster.leader()
    killed.kill9()
    cluster.wait_leader(other_than=killed)
    elected = time.monotonic()
    with cluster.client(follower) as client, client.keep_alive() as stream:
        kept = [lease for lease in leases if lease.ttl == 4]
        lost = guard.renew(stream, kept)
        guard.check()
        assert not lost, f"{lost} ended at the change of leader"
    guard.all_end(leases, elected + 4)
    guard.close()
    guard.check()
    killed.start()
