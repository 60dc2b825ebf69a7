"""What befalls the members of a cluster: each fault by its name, begun, left alone for a while, and ended."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.harness.cluster import Cluster, ClusterMember
from tests.harness.wait import WaitTimeout

Fault = Callable[[Cluster, random.Random], Iterator[str]]


def _leader_or_follower(cluster: Cluster, rng: random.Random) -> ClusterMember:
    """The leader half of the time: that is where faults hurt."""
    leader = cluster.leader()
    return leader if rng.random() < 0.5 else rng.choice([one for one in cluster.members if one is not leader])


def kill(cluster: Cluster, rng: random.Random) -> Iterator[str]:
    member = _leader_or_follower(cluster, rng)
    member.kill9()
    yield f"killed {member.name}"
    member.spawn()


def kill_the_leader(cluster: Cluster, rng: random.Random) -> Iterator[str]:
    member = cluster.leader()
    member.kill9()
    yield f"killed the leader {member.name}"
    member.spawn()


def kill_a_process(cluster: Cluster, rng: random.Random) -> Iterator[str]:
    """One process of a member of several: the rest has to end, too."""
    from tests.crash.victims import choose

    member = _leader_or_follower(cluster, rng)
    role, pids = choose(member, rng)
    member.kill9(pids)
    member.wait_exit()
    yield f"killed {role} of {member.name}"
    member.spawn()


def kill_all(cluster: Cluster, rng: random.Random) -> Iterator[str]:
    for member in cluster.members:
        member.kill9()
    yield "killed all"
    for member in cluster.members:
        member.spawn()


def pause(cluster: Cluster, rng: random.Random) -> Iterator[str]:
    """SIGSTOP: connections stay, nothing is answered."""
    member = _leader_or_follower(cluster, rng)
    member.pause()
    try:
        yield f"stopped {member.name}"
    finally:
        member.resume()


def cut_off(cluster: Cluster, rng: random.Random) -> Iterator[str]:
    """One member hears nobody and nobody hears it."""
    member = _leader_or_follower(cluster, rng)
    for other in cluster.members:
        if other is not member:
            cluster.network.cut(member.number, other.number)
            cluster.network.cut(other.number, member.number)
    yield f"cut off {member.name}"
    cluster.network.heal()


def cut_one_way(cluster: Cluster, rng: random.Random) -> Iterator[str]:
    """Heard by nobody though it hears all, or the reverse."""
    member = _leader_or_follower(cluster, rng)
    deaf = rng.random() < 0.5
    for other in cluster.members:
        if other is not member:
            pair = (other.number, member.number) if deaf else (member.number, other.number)
            cluster.network.cut(*pair)
    yield f"{member.name} {'hears nobody' if deaf else 'is heard by nobody'}"
    cluster.network.heal()


def cut_one_link(cluster: Cluster, rng: random.Random) -> Iterator[str]:
    """Two members do not hear each other; the third hears both."""
    one, other = rng.sample(cluster.members, 2)
    cluster.network.cut(one.number, other.number)
    cluster.network.cut(other.number, one.number)
    yield f"cut between {one.name} and {other.name}"
    cluster.network.heal()


def slow(cluster: Cluster, rng: random.Random) -> Iterator[str]:
    member = _leader_or_follower(cluster, rng)
    cluster.network.slow(member.number)
    yield f"slowed {member.name}"
    cluster.network.heal()


def move_leader(cluster: Cluster, rng: random.Random) -> Iterator[str]:
    to = rng.choice(cluster.followers())
    try:
        cluster.move_leader(to, 5)
    except WaitTimeout:
        pass  # refused under load: etcd gives up after an election timeout
    yield f"moved the leader to {to.name}"


FAULTS: dict[str, Fault] = {
    "kill": kill,
    "kill the leader": kill_the_leader,
    "kill a process": kill_a_process,
    "kill all": kill_all,
    "pause": pause,
    "cut off": cut_off,
    "cut one way": cut_one_way,
    "cut one link": cut_one_link,
    "slow": slow,
    "move leader": move_leader,
}


def faults_for(rng: random.Random, count: int) -> list[str]:
    """Each kind once in random order, then again; as many as asked for."""
    names: list[str] = []
    while len(names) < count:
        names += rng.sample(sorted(FAULTS), len(FAULTS))
    return names[:count]


@contextmanager
def fault(name: str, cluster: Cluster, rng: random.Random) -> Iterator[str]:
    """The fault holds inside the block; at its end it is undone, and the cluster is whole again."""
    going = FAULTS[name](cluster, rng)
    try:
        yield next(going)
    finally:
        next(going, None)
        cluster.network.heal()
    cluster.wait_all_healthy()
