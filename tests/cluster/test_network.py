"""The faults of links, on real etcd: each kind of network cuts and heals what it says, and only that."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.harness.cluster import Cluster
from tests.harness.network import Namespaces, Network, Proxies, can_have_namespaces
from tests.harness.wait import wait_until


@pytest.fixture(params=["namespaces", "proxies"])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    if request.param == "namespaces" and not can_have_namespaces():
        pytest.skip("this machine or user cannot have network namespaces")
    return Namespaces() if request.param == "namespaces" else Proxies()


def test_cut_and_heal(network: Network) -> None:
    with Cluster("etcd", 3, network=network) as cluster:
        old = cluster.leader()
        others = [member for member in cluster.members if member is not old]
        for other in others:
            network.cut(old.number, other.number)
        # Its heartbeats do not arrive, its ears still work: it hears of the new leader and follows.
        new = cluster.wait_leader(other_than=old)
        wait_until(lambda: old.status().leader == new.id, "the old leader to hear of the new one")
        for other in others:
            network.cut(other.number, old.number)
        wait_until(lambda: old.status().leader == 0, "the member that is cut off to know no leader")
        with cluster.client(new) as client:
            client.put(b"key", b"value")
        network.heal()
        network.slow(new.number)
        wait_until(lambda: old.status().leader, "the healed member to know a leader again")
        network.heal()
        cluster.wait_all_healthy()
        cluster.wait_equal()


@pytest.mark.skipif(not can_have_namespaces(), reason="this machine or user cannot have network namespaces")
def test_namespaces_of_dead_runs_are_taken_down() -> None:
    """A run that is killed cannot clean up; the next one does, and leaves those of living runs alone."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = f"efnet{ended.pid}-198-18-99-1"
    subprocess.run(["ip", "netns", "add", left], check=True)
    first = Namespaces()
    first.join(1)
    second = Namespaces()
    try:
        listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
        assert left not in listed and f"{first.name}-1" in listed
    finally:
        first.close()
        second.close()
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    assert first.name not in listed
