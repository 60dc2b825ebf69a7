"""v3 discovery through a real etcd."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from etcdfast.config.load import load
from etcdfast.log import Quiet
from etcdfast.supervisor.discovery import DiscoveryError, Registry, join
from tests.harness import pb
from tests.harness.servers import EtcdfastServer, EtcdServer


@pytest.fixture(scope="module")
def etcd():
    with EtcdServer() as server:
        yield server


def config(etcd, token, name, *more):
    return load(
        [
            f"--discovery-token={token}",
            f"--discovery-endpoints={etcd.endpoint}",
            f"--name={name}",
            f"--initial-advertise-peer-urls=http://{name}:1,http://{name}:2",
            *more,
        ],
        {},
        Quiet,
    )


def find(etcd, token, name):
    settings = config(etcd, token, name)
    return join(settings, Registry(settings))


def set_size(etcd, token, size):
    with etcd.client() as client:
        client.put(f"/_etcd/registry/{token}/_config/size".encode(), size)


def test_members_wait_for_each_other_and_who_comes_late_is_refused(etcd):
    set_size(etcd, "three", b"3")
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda name: find(etcd, "three", name), ("a", "b", "c")))
    assert len(set(found)) == 1
    pairs = [f"{name}=http://{name}:{port}" for name in "abc" for port in (1, 2)]
    assert sorted(found[0].split(",")) == pairs
    with pytest.raises(DiscoveryError, match="^discovery: cluster is full$"):
        find(etcd, "three", "d")
    assert find(etcd, "three", "b") == found[0]  # one of them, once more


@pytest.mark.parametrize(
    "size, reason", [(None, "discovery: size key not found"), (b"x", "discovery: size key is bad"), (b"0", "is bad")]
)
def test_a_token_that_nobody_prepared(etcd, size, reason):
    if size is not None:
        set_size(etcd, "bad", size)
    with pytest.raises(DiscoveryError, match=reason):
        find(etcd, "bad" if size is not None else "missing", "a")


def test_a_member_starts_by_discovery(etcd):
    set_size(etcd, "one", b"1")
    server = EtcdfastServer(flags=["--discovery-token=one", f"--discovery-endpoints=http://{etcd.endpoint}"])
    with server, server.client() as client:
        members = client.call("MemberList", pb.MemberListRequest()).message
        with etcd.client() as registry:
            (pair,) = registry.get(b"/_etcd/registry/one/members/", b"/_etcd/registry/one/members0").kvs
        assert pair.key.decode().rpartition("/")[2] == f"{members.members[0].ID:x}"
        assert pair.value == b"default=http://localhost:2380"
        assert server.stop() in (143, -signal.SIGTERM)


def test_a_start_that_cannot_be_says_why(etcd):
    server = EtcdfastServer(flags=["--discovery-token=nobody", f"--discovery-endpoints={etcd.endpoint}"])
    server.spawn()
    assert server.wait_exit() == 1
    assert "failed to join discovery cluster (discovery: size key not found)" in server.log_text()
