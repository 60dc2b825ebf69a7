"""A real etcd 3.5.1 in a cluster whose other member is made of our peer thread and peer links."""

from __future__ import annotations

import pytest

from etcdfast.formats import memberid
from tests.harness.ports import free_port
from tests.harness.servers import EtcdServer
from tests.peers.fakemember import FakeMember, listener, view_of

TOKEN = "etcd-cluster"


class Pair:
    """Member `a` is real etcd, member `b` is ours."""

    def __init__(self, directory):
        self.directory = directory
        self.listening, self.fake_url = listener()
        self.etcd_url = f"http://127.0.0.1:{free_port()}"
        self.etcd_id = memberid.member_id([self.etcd_url], TOKEN)
        self.fake_id = memberid.member_id([self.fake_url], TOKEN)
        self.cluster_id = memberid.cluster_id([self.etcd_id, self.fake_id])
        view = view_of(self.fake_id, self.cluster_id, {self.etcd_id: self.etcd_url, self.fake_id: self.fake_url})
        self.fake = FakeMember(directory / "snap", self.listening, view, probe_seconds=0.2)
        self.etcd = _Etcd(directory / "etcd", "a", [
            "--listen-peer-urls", self.etcd_url,
            "--initial-advertise-peer-urls", self.etcd_url,
            "--initial-cluster", f"a={self.etcd_url},b={self.fake_url}",
        ])  # fmt: skip

    def __enter__(self):
        self.fake.start()
        self.etcd.spawn()
        return self

    def __exit__(self, *_):
        self.fake.close()
        self.etcd.close()

    def connected(self):
        self.fake.run_until(lambda: self.fake.streams(self.etcd_id) == 4, "all four streams")
        self.fake.run_until(lambda: self.fake.commit > 2, "a leader's first commit")


class _Etcd(EtcdServer):
    """Without the peer flags of its base class."""

    def command(self):
        command = super().command()
        at = command.index("--listen-peer-urls")
        return command[:at] + command[at + 2 :]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with Pair(tmp_path_factory.mktemp("pair")) as made:
        made.connected()
        yield made


def test_streams_attach_and_the_leader_commits(pair):
    fake = pair.fake
    assert {m.frm for m in fake.got} == {pair.etcd_id}
    assert {m.to for m in fake.got} == {pair.fake_id}
    assert fake.entries[:2] and [e[2] for e in fake.entries[:2]] == [1, 1]
    assert pair.etcd.alive
