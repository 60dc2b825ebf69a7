"""A first start beside running members: joining real etcd, and every refusal in the words of etcd."""

import contextlib
import http.server
import json
import os
import re
import threading
import time

import pytest

from etcdfast.consensus import join
from etcdfast.consensus.raft import HardState
from etcdfast.consensus.storage import StorageError, open_member
from etcdfast.formats import wal
from etcdfast.formats.raftpb import put_uint
from tests.consensus.member import make_config
from tests.harness import pb
from tests.harness.ports import free_port
from tests.harness.rpc import Client
from tests.harness.servers import EtcdServer

SMALL = {"segment_bytes": 65536, "prewrite": False}


def peer_url(server):
    return f"http://127.0.0.1:{server.peer_port}"


def cluster_of(**urls):
    return ",".join(f"{name}={url}" for name, url in urls.items())


@contextlib.contextmanager
def etcd(directory, name, cluster=None, state="new", token="t-1"):
    server = EtcdServer(directory=directory / name, name=name)
    url = peer_url(server)
    server.flags = [
        "--initial-cluster", cluster(url) if cluster else cluster_of(**{name: url}),
        "--initial-advertise-peer-urls", url,
        "--initial-cluster-state", state,
        "--initial-cluster-token", token,
    ]  # fmt: skip
    try:
        yield server
    finally:
        server.close()


def config_of(tmp_path, url, cluster, state="existing", name="b"):
    return make_config(
        tmp_path / "data",
        name=name,
        initial_cluster=cluster,
        initial_cluster_state=state,
        initial_cluster_token="t-1",
        initial_advertise_peer_urls=(url,),
    )


def error_of_etcd(directory, url, cluster, state="existing", name="b"):
    """What real etcd says when it is started with the same settings."""
    flags = [
        "--initial-cluster", cluster, "--initial-advertise-peer-urls", url,
        "--initial-cluster-state", state, "--initial-cluster-token", "t-1",
    ]  # fmt: skip
    server = EtcdServer(directory=directory, name=name, flags=flags)
    try:
        server.spawn().wait(20)
        lines = [json.loads(line) for line in server.log_text().splitlines()]
    finally:
        server.close()
    return next(line["error"] for line in lines if line["level"] == "fatal")


def error_of_ours(config):
    with pytest.raises(StorageError) as caught:
        open_member(config, **SMALL).disk.close()
    assert not caught.value.corrupt
    assert not wal.exists(config.wal_path), "nothing may be left behind that the next start takes for a log"
    return str(caught.value)


@pytest.mark.parametrize("is_learner", [False, True])
def test_joining_real_etcd(tmp_path, is_learner):
    """Ids are those that the cluster gave; the log has a head and nothing else; a second start asks again."""
    own_url = f"http://127.0.0.1:{free_port()}"
    with etcd(tmp_path, "a") as server:
        server.start()
        with Client(server.endpoint) as client:
            added = client.call("MemberAdd", pb.MemberAddRequest(peerURLs=[own_url], isLearner=is_learner)).message
        config = config_of(tmp_path, own_url, cluster_of(a=peer_url(server), b=own_url))
        for _ in range(2):
            opened = open_member(config, **SMALL)
            opened.disk.close()
            assert (opened.member_id, opened.cluster_id) == (added.member.ID, added.header.cluster_id)
            assert opened.hard_state == HardState(0, 0, 0)
            assert (len(opened.table), opened.last_index, opened.conf_state.voters) == (0, 0, ())
            assert not opened.membership.members
            assert [(m.id, m.name, m.peer_urls) for m in opened.remotes] == [
                (added.header.member_id, "a", (peer_url(server),))
            ]
        assert wal.read(config.wal_path).snapshots == [(0, 0, None)]
        # The log of another cluster than the one that answers.
        other = config_of(tmp_path, own_url, config.initial_cluster)._replace(data_dir=str(tmp_path / "other"))
        wal_of_another(other)
        with pytest.raises(StorageError, match="^cluster ID mismatch: "):
            open_member(other, **SMALL)
    # Nobody there any more: they know this member and will find it.
    opened = open_member(config, **SMALL)
    opened.disk.close()
    assert opened.remotes == ()


def wal_of_another(config):
    os.makedirs(config.member_dir)
    wal.create(config.wal_path, put_uint(1, 5) + put_uint(2, 6), **SMALL).close()


def test_refusals_are_those_of_etcd(tmp_path):
    own_url = f"http://127.0.0.1:{free_port()}"
    nowhere = f"http://127.0.0.1:{free_port()}"
    with etcd(tmp_path, "a") as server:
        server.start()
        url = peer_url(server)
        for number, cluster in enumerate(
            (
                cluster_of(b=own_url, a=url),  # nobody added it
                cluster_of(b=own_url),
                cluster_of(b=own_url, a=nowhere),
            )
        ):
            theirs = error_of_etcd(tmp_path / f"etcd{number}", own_url, cluster)
            assert error_of_ours(config_of(tmp_path, own_url, cluster)) == theirs
        with Client(server.endpoint) as client:
            assert client.call("MemberAdd", pb.MemberAddRequest(peerURLs=[own_url])).ok
        wrong = cluster_of(b=nowhere, a=url)
        theirs = error_of_etcd(tmp_path / "etcd9", nowhere, wrong)
        ours = error_of_ours(config_of(tmp_path, nowhere, wrong))
        same = in_order_of_ids(theirs).partition(", last resolver error")[0]
        assert "PeerURLs: no match found for existing member" in same
        assert in_order_of_ids(ours).partition(", --initial-cluster has")[0] == same


def in_order_of_ids(text):
    """etcd lists the cluster's members as its hash table has them: another order in every run."""
    shown = re.compile(r"&{ID:[0-9a-f]+ RaftAttributes:{[^{}]*} Attributes:{[^{}]*}}")
    members = sorted(shown.findall(text))
    assert len(members) == 2, text
    return shown.sub(lambda _: members.pop(0), text)


def test_a_member_of_a_running_cluster_that_lost_its_data_is_not_made_anew(tmp_path):
    own_url = f"http://127.0.0.1:{free_port()}"
    with etcd(tmp_path, "a", lambda url: cluster_of(a=url, b=own_url)) as server:
        cluster = cluster_of(a=peer_url(server), b=own_url)
        other = EtcdServer(
            directory=tmp_path / "b",
            name="b",
            flags=[
                "--initial-cluster", cluster, "--initial-advertise-peer-urls", own_url,
                "--listen-peer-urls", own_url, "--initial-cluster-token", "t-1",
            ],
        )  # fmt: skip
        try:
            server.spawn()
            other.spawn()
            server.wait_ready()
            other.wait_ready()
        finally:
            other.close()
        theirs = error_of_etcd(tmp_path / "again", own_url, cluster, state="new")
        assert theirs.endswith("has already been bootstrapped")
        assert error_of_ours(config_of(tmp_path, own_url, cluster, state="new")) == theirs


# ---- members that answer otherwise than etcd ------------------------------------------------------


class Peer:
    """An HTTP server that answers every path with what it was told to."""

    def __init__(self):
        self.answers = {}
        self.hold = threading.Event()
        peer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                status, body = peer.answers.get(self.path, (404, b""))
                if status is None:
                    peer.hold.wait(30)
                    return
                self.send_response(status)
                self.send_header("X-Etcd-Cluster-ID", "77")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.hold.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def peer():
    made = Peer()
    yield made
    made.close()


def joined_by(tmp_path, peer):
    own_url = f"http://127.0.0.1:{free_port()}"
    members = [{"id": 5, "peerURLs": [peer.url], "name": "a"}, {"id": (1 << 64) - 1, "peerURLs": [own_url]}]
    peer.answers["/members"] = 200, json.dumps(members).encode()
    return config_of(tmp_path, own_url, cluster_of(a=peer.url, b=own_url))


@pytest.mark.parametrize(
    "version, joins",
    [
        ('{"etcdserver":"3.5.1","etcdcluster":"3.5.0"}', True),
        ('{"etcdserver":"3.5.1","etcdcluster":"3.8.0"}', False),
        ('{"etcdserver":"2.3.1","etcdcluster":"2.3.0"}', False),
        ('{"etcdserver":"3.5.1","etcdcluster":"not_decided"}', False),
        ("nonsense", False),
        ("[]", False),
        (None, False),
    ],
)
def test_versions_decide_on_joining(tmp_path, peer, version, joins):
    config = joined_by(tmp_path, peer)
    if version:
        peer.answers["/version"] = 200, version.encode()
    if joins:
        opened = open_member(config, **SMALL)
        opened.disk.close()
        assert (opened.member_id, opened.cluster_id) == ((1 << 64) - 1, 0x77)
    else:
        assert error_of_ours(config) == "incompatible with current running cluster"


@pytest.mark.parametrize(
    "answer", [(500, b""), (200, b"{"), (200, b'{"a":1}'), (200, b'[{"peerURLs":[]}]'), (200, b"\xff")]
)
def test_nonsense_is_no_answer(tmp_path, peer, answer):
    config = joined_by(tmp_path, peer)
    peer.answers["/members"] = answer
    assert error_of_ours(config).endswith("could not retrieve cluster information from the given URLs")


def test_an_empty_cluster_is_none(tmp_path, peer):
    config = joined_by(tmp_path, peer)
    peer.answers["/members"] = 200, b"[]"
    assert error_of_ours(config).endswith("failed to get raft cluster member(s) from the given URLs")


def test_one_that_does_not_answer_holds_up_a_new_cluster_for_a_moment_only(tmp_path, peer, monkeypatch):
    monkeypatch.setattr(join, "NEW_SECONDS", 0.2)
    peer.answers["/members"] = None, b""
    own_url = f"http://127.0.0.1:{free_port()}"
    config = config_of(tmp_path, own_url, cluster_of(a=peer.url, b=own_url), state="new")
    open_member(config, **SMALL).disk.close()
    assert wal.exists(config.wal_path)


def test_whoever_answers_first_is_enough(tmp_path, peer):
    """The others may be down in a way that only shows after a long while."""
    config = joined_by(tmp_path, peer)
    deaf = Peer()
    deaf.answers["/members"] = None, b""
    try:
        began = time.monotonic()
        found = join._members_of_cluster(config, [deaf.url, peer.url], 30.0, None)
        assert found[0] == 0x77 and time.monotonic() - began < 25
    finally:
        deaf.close()
