"""What the peer URLs answer: the same requests to a real etcd 3.5.1 and to a peer thread that plays the same member."""

from __future__ import annotations

import json
import struct
import threading

import pytest

from etcdfast._ext.peerwire import marshal_message
from tests.harness import pb
from tests.harness.ports import free_port
from tests.harness.servers import EtcdServer
from tests.peers.fakemember import FakeMember, listener, view_of
from tests.peers.rawhttp import ask

STRANGER = 0xABC
# Headers in which the two may differ.
_OWN = {"date", "content-length", "connection", "transfer-encoding", "allow"}


class Twin:
    """A real single member, and ours that shows the same ids and members and answers as its main thread would."""

    def __init__(self, directory):
        port = free_port()
        self.etcd_port = port
        self.url = f"http://127.0.0.1:{port}"
        self.etcd = EtcdServer(
            directory / "etcd",
            flags=[
                *("--initial-advertise-peer-urls", self.url, "--initial-cluster", f"default={self.url}"),
                "--strict-reconfig-check=false",  # which also wants members to be long connected
            ],
        )
        self.etcd._peer_port = port
        self.directory = directory
        self.stopping = False
        self.thread = None

    def start(self):
        self.etcd.start()
        with self.etcd.client() as client:
            added = client.call("MemberAdd", pb.MemberAddRequest(peerURLs=["http://127.0.0.1:1"], isLearner=True))
            assert added.ok, added.text
            self.removed = added.message.member.ID
            # A change before raft has heard that the last is applied would be lost; a grant is answered after that.
            assert client.call("LeaseGrant", pb.LeaseGrantRequest(ID=1, TTL=3600)).ok
            removed = client.call("MemberRemove", pb.MemberRemoveRequest(ID=self.removed))
            assert removed.ok, removed.text
        members = ask(self.etcd_port, "GET", "/members")
        self.cluster_id = int(members.headers["x-etcd-cluster-id"], 16)
        (member,) = json.loads(members.body)
        self.id = member["id"]
        listening, url = listener()
        self.port = int(url.rpartition(":")[2])
        view = view_of(
            self.id,
            self.cluster_id,
            {self.id: self.url},
            removed=frozenset([self.removed]),
            cluster_version="3.5.0",
            members_json=members.body.rstrip(b"\n"),
        )
        self.ours = FakeMember(self.directory / "snap", listening, view)
        self.ours.start()
        self.thread = threading.Thread(target=self._main)
        self.thread.start()
        return self

    def _main(self):
        while not self.stopping:
            self.ours.turn(0.02)
            events, self.ours.events = self.ours.events, []
            for name, *arguments in events:
                if name == "snapshot":
                    arguments[-1](204)
                elif name == "promote":
                    arguments[-1](404, b"membership: ID not found")
                elif name == "hash_kv":
                    self._hash_kv(*arguments)
                elif name.startswith("lease"):
                    # A body that is no lease request: the main thread, too, says so.
                    bad = arguments[0].startswith(b"\xff")
                    arguments[-1](*((400, b"error unmarshalling request") if bad else (404, b"lease not found")))

    def _hash_kv(self, body, reply):
        if json.loads(body).get("revision", 0) > 1:
            reply(400, b"mvcc: required revision is a future revision")
        else:
            reply(200, b'{"header":{"revision":1},"hash":1084519789,"compact_revision":-1}')

    def close(self):
        self.stopping = True
        if self.thread is not None:
            self.thread.join()
            self.ours.close()
        self.etcd.close()

    def headers(self, **changes):
        base = {
            "X-Server-From": f"{STRANGER:x}",
            "X-Server-Version": "3.5.1",
            "X-Min-Cluster-Version": "3.0.0",
            "X-Etcd-Cluster-Id": f"{self.cluster_id:x}",
            "X-Raft-To": f"{self.id:x}",
        }
        return {**base, **{name.replace("_", "-"): value for name, value in changes.items()}}

    def same(self, method, path, body=b"", **changes):
        """Both answers; fails unless status, body and headers agree."""
        headers = self.headers(**changes)
        theirs = ask(self.etcd_port, method, path, headers, body)
        ours = ask(self.port, method, path, headers, body)
        assert ours is not None, (theirs, ours)
        assert (ours.status, ours.body) == (theirs.status, theirs.body)
        shown = [{n: v for n, v in answer.headers.items() if n not in _OWN} for answer in (ours, theirs)]
        for answer in shown:
            answer.pop("x-server-version", None)
        assert shown[0] == shown[1]
        if "allow" in theirs.headers:
            assert ours.headers["allow"] == theirs.headers["allow"]
        assert ("x-server-version" in ours.headers) == ("x-server-version" in theirs.headers)
        return ours


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    made = Twin(tmp_path_factory.mktemp("twin"))
    try:
        yield made.start()
    finally:
        made.close()


PATHS = [
    "/", "/raft", "/raft/", "/raft/x", "/raft/snapshot", "/raft/stream/", "/raft/stream/x/abc",
    "/raft/stream/msgapp/zz", "/raft/stream/msgapp/", "/raft/stream/msgapp/a/b", "/raft/stream/msgapp/abc",
    "/raft/stream/message/abc", "/raft/stream/msgapp/11111111111111111", "/raft/stream/message/-1",
    "/raft/stream/message/0x1", "/members", "/members/", "/members/x", "/members/hashkv", "/members/promote/5",
    "/members/promote/x", "/members/promote/", "/members/promote/99999999999999999999", "/version/", "/leases",
    "/leases/x", "/downgrade/enabled", "/members?linearizable=false",
]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "HEAD"])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_and_method(twin, method, path):
    twin.same(method, path)


@pytest.mark.parametrize(
    "changes",
    [
        {"X_Server_Version": None},
        {"X_Server_Version": "2.3.0"},
        {"X_Server_Version": "3.4.0"},
        {"X_Server_Version": "3.9.1"},
        {"X_Min_Cluster_Version": None},
        {"X_Min_Cluster_Version": "3.8.0"},
        {"X_Etcd_Cluster_Id": None},
        {"X_Etcd_Cluster_Id": "1"},
        {"X_Etcd_Cluster_Id": ""},
        {"X_Server_Version": "2.3.0", "X_Etcd_Cluster_Id": "1"},
        {"X_Raft_To": "5"},
        {"X_PeerURLs": "http://127.0.0.1:1"},
    ],
)
@pytest.mark.parametrize("path", ["/raft/stream/message/abc", "/raft", "/raft/snapshot"])
def test_versions_and_clusters(twin, changes, path):
    twin.same("GET" if "stream" in path else "POST", path, b"" if "stream" in path else b"\xff", **changes)


def test_a_removed_member_is_told(twin):
    for kind in ("msgapp", "message"):
        answer = twin.same("GET", f"/raft/stream/{kind}/{twin.removed:x}", X_Server_From=f"{twin.removed:x}")
        assert answer.status == 410


def test_raft_messages(twin):
    assert twin.same("POST", "/raft", b"\xff\xff").status == 400
    # An empty message parses, and raft drops it.
    assert twin.same("POST", "/raft", b"").status == 204
    assert twin.same("POST", "/raft", marshal_message(9, twin.id, STRANGER)).status == 204
    assert twin.same("POST", "/raft", marshal_message(8, twin.id, twin.removed, 1)).status == 500


def test_snapshots_that_are_none(twin):
    other = marshal_message(8, twin.id, STRANGER, 1)
    for body in (b"", struct.pack(">Q", 100) + b"ab", struct.pack(">Q", len(other)) + other, b"\x00" * 7):
        assert twin.same("POST", "/raft/snapshot", body).status == 400


def test_hashes(twin):
    for body in (b"", b"{", b"[]", b'{"revision":"1"}', b'{"revision":1.5}', b'{"revision":100}', b'{"revision":1e2}'):
        assert twin.same("GET", "/members/hashkv", body).status == 400
    answer = twin.same("GET", "/members/hashkv", b'{"revision":0}', X_Etcd_Cluster_Id=None)
    assert answer.status == 200


def test_leases(twin):
    assert twin.same("POST", "/leases", b"\x08\x05").status == 404
    assert twin.same("POST", "/leases", b"\xff").status == 400
    assert twin.same("POST", "/leases/internal", b"\x0a\x02\x08\x05").status == 404


def test_version_and_probing(twin):
    theirs, ours = (ask(port, "GET", "/version") for port in (twin.etcd_port, twin.port))
    # From 3.6 on the storage version is shown too.
    assert set(json.loads(ours.body)) - set(json.loads(theirs.body)) == {"storage"}
    assert json.loads(ours.body)["etcdcluster"] == json.loads(theirs.body)["etcdcluster"]
    theirs, ours = (ask(port, "GET", "/raft/probing") for port in (twin.etcd_port, twin.port))
    assert set(json.loads(ours.body)) == set(json.loads(theirs.body)) == {"OK", "Now"}
    assert ours.headers["content-type"] == theirs.headers["content-type"]
