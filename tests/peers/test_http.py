"""The peer thread's HTTP: hostile bytes, limits, and the ways between two peer threads."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcdfast._ext.peerwire import marshal_message
from etcdfast.api.pb import raft_pb2
from etcdfast.consensus.peers import Inbox
from tests.harness.wait import wait_until
from tests.peers.fakemember import FakeMember, listener, view_of
from tests.peers.rawhttp import ask, exchange, parse, request_bytes

A, B, STRANGER, CLUSTER = 0xA, 0xB, 0xABC, 0xC1
NOBODY = "http://127.0.0.1:1"


def headers(frm=B, **changes):
    return {
        "X-Server-From": f"{frm:x}",
        "X-Server-Version": "3.5.1",
        "X-Min-Cluster-Version": "3.0.0",
        "X-Etcd-Cluster-Id": f"{CLUSTER:x}",
        **changes,
    }


class Lone:
    """Member A, whose main loop runs in a thread and answers by `answers`: event name -> arguments of reply."""

    def __init__(self, directory, urls=None, **settings):
        listening, self.url = listener()
        self.port = int(self.url.rpartition(":")[2])
        view = view_of(A, CLUSTER, {A: self.url, B: NOBODY, **(urls or {})})
        self.member = FakeMember(directory, listening, view, **settings)
        self.member.thread.dial = lambda peer: None  # nobody is there
        self.member.start()
        self.answers = {"snapshot": (204,)}
        self.seen = []
        self._stopping = False
        self._thread = threading.Thread(target=self._main)
        self._thread.start()

    def _main(self):
        while not self._stopping:
            self.member.turn(0.02)
            events, self.member.events = self.member.events, []
            for event in events:
                self.seen.append(event)
                if event[0] in self.answers:
                    event[-1](*self.answers[event[0]])

    def close(self):
        self._stopping = True
        self._thread.join()
        self.member.close()

    def ask(self, method, path, fields=None, body=b""):
        return ask(self.port, method, path, fields or headers(), body)


@pytest.fixture
def lone(tmp_path):
    made = []

    def make(**settings):
        made.append(Lone(tmp_path / "snap", **settings))
        return made[-1]

    yield make
    for member in made:
        member.close()


# ---- hostile bytes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, status",
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 100, 400),  # TLS
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /raft HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 70000, 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(200)) + b"\r\n", 431),
        (b"GET /members HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 400),
        (b"GET " + b"/" * 70000, 431),
    ],
)
def test_no_http(lone, data, status):
    member = lone()
    answer = parse(exchange(member.port, data))
    assert answer.status == status
    assert member.ask("GET", "/version").status == 200


def test_any_bytes_leave_the_server_alive(lone):
    member = lone()
    heads = [b"", b"GET / HTTP/1.1\r\n", b"POST /raft HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"]

    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from(heads), st.binary(max_size=300))
    def any_bytes(head, data):
        with socket.create_connection(("127.0.0.1", member.port), 10) as connected:
            connected.sendall(head + data)
            connected.shutdown(socket.SHUT_WR)
            try:
                while connected.recv(65536):
                    pass
            except ConnectionResetError:
                pass

    any_bytes()
    assert member.ask("GET", "/version").status == 200


def test_the_date_is_a_date(lone):
    assert parsedate_to_datetime(lone().ask("GET", "/version").headers["date"]).year >= 2026


def test_bodies_above_the_limit(lone):
    member = lone(message_bytes_max=1000)
    assert member.ask("POST", "/raft", None, b"x" * 1001).status == 413
    chunk = b"200\r\n" + b"x" * 512 + b"\r\n"
    fields = headers(**{"Transfer-Encoding": "chunked"})
    data = request_bytes("POST", "/raft", fields, length=False) + chunk * 3
    assert parse(exchange(member.port, data)).status == 413
    assert member.ask("POST", "/leases", None, b"x" * 70000).status == 413
    assert not member.seen


def test_a_request_cut_short_is_no_message(lone):
    member = lone()
    data = request_bytes("POST", "/raft", headers(), marshal_message(9, A, B))
    for cut in (10, len(data) - 30, len(data) - 1):
        with socket.create_connection(("127.0.0.1", member.port)) as connected:
            connected.sendall(data[:cut])
            connected.shutdown(socket.SHUT_WR)
            while connected.recv(1000):
                pass
    assert member.ask("POST", "/raft", None, marshal_message(8, A, B, 5)).status == 204
    assert [m.term for m in member.member.got] == [5]


def test_pipelined_requests_are_answered_in_order(lone):
    member = lone()
    paths = ["/version", "/members", "/x", "/version"]
    with socket.create_connection(("127.0.0.1", member.port)) as connected:
        connected.sendall(b"".join(request_bytes("GET", path) for path in paths))
        got = b""
        while got.count(b"HTTP/1.1") < 4 or not got.endswith(b"}"):
            got += connected.recv(65536)
    assert [part[:4] for part in got.split(b"HTTP/1.1 ")[1:]] == [b"200 ", b"200 ", b"404 ", b"200 "]


def test_a_large_body_waits_for_an_expected_word(lone):
    member = lone()
    body = marshal_message(8, A, B, 5, context=b"x" * 100_000)
    with socket.create_connection(("127.0.0.1", member.port)) as connected:
        fields = headers(**{"Expect": "100-continue", "Content-Length": str(len(body))})
        connected.sendall(request_bytes("POST", "/raft", fields, length=False))
        assert connected.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connected.sendall(body)
        assert connected.recv(100).startswith(b"HTTP/1.1 204")


def test_silent_connections_make_room_for_others(lone):
    member = lone(connections_max=8)
    silent = [socket.create_connection(("127.0.0.1", member.port)) for _ in range(20)]
    try:
        # Twelve of them wait in front of it: each has to push out an older one first.
        assert member.ask("GET", "/version").status == 200
    finally:
        for connected in silent:
            connected.close()


def test_many_requests_at_once(lone):
    member = lone(connections_max=16)
    body = marshal_message(8, A, B, 5)
    statuses = []

    def post():
        for _ in range(5):
            statuses.append(member.ask("POST", "/raft", None, body).status)

    threads = [threading.Thread(target=post) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [204] * 150
    assert len(member.member.got) == 150


def test_large_bodies_take_turns(lone):
    member = lone(bodies_bytes_max=3_000_000)
    body = marshal_message(8, A, B, 5, context=b"x" * 2_000_000)
    data = request_bytes("POST", "/raft", headers(), body)
    stalled = socket.create_connection(("127.0.0.1", member.port))
    with stalled:
        stalled.sendall(data[:1_000_000])
        statuses = []
        others = [threading.Thread(target=lambda: statuses.append(parse(exchange(member.port, data)).status))]
        others[0].start()
        # A small one passes by the large ones that wait.
        assert member.ask("POST", "/raft", None, marshal_message(8, A, B, 6)).status == 204
        stalled.sendall(data[1_000_000:])
        assert stalled.recv(100).startswith(b"HTTP/1.1 204")
        others[0].join()
        assert statuses == [204]
    assert sorted(m.term for m in member.member.got) == [5, 5, 6]


# ---- streams ----------------------------------------------------------------------------------------


def dial(port, kind, frm=B):
    connected = socket.create_connection(("127.0.0.1", port), 10)
    fields = headers(frm, **{"X-Raft-To": f"{A:x}"})
    connected.sendall(request_bytes("GET", f"/raft/stream/{kind}/{frm:x}", fields))
    got = b""
    while b"\r\n\r\n" not in got:
        got += connected.recv(1000)
    return connected, got


def test_a_stream_goes_to_the_main_thread(lone):
    member = lone()
    connected, head = dial(member.port, "message")
    with connected:
        assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"Transfer-Encoding: chunked\r\n" in head
        assert b"X-Server-Version: " in head
        # The first frame of a new stream is a link heartbeat.
        assert connected.recv(100).startswith(b"00000026\r\n\x00\x00\x00\x00\x00\x00\x00\x1e\x08\x08")
        again, _ = dial(member.port, "message")
        with again:
            assert again.recv(1)
            while connected.recv(1000):
                pass  # the older one ends


def test_headers_of_the_dialler_come_along(lone):
    member = lone()
    taken = []
    attach = member.member._event
    member.member._event = lambda name, *arguments: (taken.append((name, arguments[-1])), attach(name, *arguments))
    connected, _ = dial(member.port, "msgapp")
    with connected:
        wait_until(lambda: taken, "the stream")
    assert taken[0][0] == "stream_out"
    assert taken[0][1]["x-server-version"] == "3.5.1"


def test_strangers_are_remembered_for_answers(lone, tmp_path):
    member = lone()
    answered = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        fields = headers(STRANGER, **{"X-PeerURLs": url})
        assert member.ask("GET", f"/raft/stream/message/{STRANGER:x}", fields).status == 404
        member.member.thread.post(STRANGER, marshal_message(9, STRANGER, A), answered.append)
        connected, _ = server.accept()
        with connected:
            data = b""
            while not data.endswith(marshal_message(9, STRANGER, A)):
                data += connected.recv(1000)
            assert data.startswith(b"POST /raft HTTP/1.1\r\n")
            connected.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            wait_until(lambda: answered == [True], "the end of the post")
    # A removed one is not.
    member.member.set_view(removed=frozenset([0xDEAD]))
    fields = headers(0xDEAD, **{"X-PeerURLs": NOBODY})
    assert member.ask("GET", f"/raft/stream/message/{0xDEAD:x}", fields).status == 410
    member.member.thread.post(0xDEAD, b"", answered.append)
    wait_until(lambda: answered == [True, False], "the end of the post")
    assert ("unreachable", 0xDEAD) in member.seen


def test_only_so_many_strangers_are_remembered(lone):
    member = lone()
    for stranger in range(0x1000, 0x1000 + 100):
        fields = headers(stranger, **{"X-PeerURLs": NOBODY})
        assert member.ask("GET", f"/raft/stream/message/{stranger:x}", fields).status == 404
    assert len(member.member.thread._remotes) == 64


# ---- answers of the main thread ---------------------------------------------------------------------


def test_what_main_answers_is_sent(lone):
    member = lone()
    member.answers = {
        "lease_keep_alive": (200, b"\x10\x05\x18\x0a", "application/protobuf"),
        "lease_time_to_live": (408, b"etcdserver: request timed out"),
        "promote": (412, b"etcdserver: can only promote a learner member which is in sync with leader"),
        "hash_kv": (200, b"{}"),
    }
    answer = member.ask("POST", "/leases", None, b"\x08\x05")
    assert (answer.status, answer.body) == (200, b"\x10\x05\x18\x0a")
    assert answer.headers["content-type"] == "application/protobuf"
    answer = member.ask("POST", "/leases/internal", None, b"\x0a\x02\x08\x05")
    assert (answer.status, answer.body) == (408, b"etcdserver: request timed out\n")
    assert member.ask("POST", "/members/promote/77").status == 412
    assert member.ask("GET", "/members/hashkv", None, b'{"revision":3}').headers["content-type"] == "application/json"
    assert [event[:2] for event in member.seen] == [
        ("lease_keep_alive", b"\x08\x05"),
        ("lease_time_to_live", b"\x0a\x02\x08\x05"),
        ("promote", 77),
        ("hash_kv", b'{"revision":3}'),
    ]


def test_the_view_is_what_is_shown(lone):
    member = lone()
    assert json.loads(member.ask("GET", "/version").body)["etcdcluster"] == "not_decided"
    member.member.set_view(cluster_version="3.5.0", members_json=b'[{"id":1}]')
    assert json.loads(member.ask("GET", "/version").body)["etcdcluster"] == "3.5.0"
    assert member.ask("GET", "/members").body == b'[{"id":1}]\n'


def test_a_full_inbox_refuses():
    inbox = Inbox(items_max=2)
    assert inbox.put("a") and inbox.put("b") and not inbox.put("c")
    assert inbox.put("call", print, ())  # the end of something that main waits for
    assert inbox.take() == [("a",), ("b",), ("call", print, ())]
    assert inbox.take() == []
    inbox.close()
    assert not inbox.put("d")


# ---- snapshots --------------------------------------------------------------------------------------


def snapshot_message(index, to=A, frm=B):
    metadata = {"index": index, "term": 3, "conf_state": {"voters": [A, B]}}
    snapshot = raft_pb2.Snapshot(data=b'{"Root":{}}' * 100, metadata=metadata).SerializeToString()
    return marshal_message(7, to, frm, 3, snapshot=snapshot)


def snapshot_body(message, database):
    return struct.pack(">Q", len(message)) + message + database


def test_a_snapshot_becomes_a_file(lone, tmp_path):
    member = lone()
    message, database = snapshot_message(0x1F), os.urandom(3_000_000)
    answer = member.ask("POST", "/raft/snapshot", None, snapshot_body(message, database))
    assert (answer.status, answer.body) == (204, b"")
    ((name, got, path, _),) = member.seen
    assert (name, got) == ("snapshot", message)
    assert path == str(tmp_path / "snap" / "000000000000001f.snap.db")
    assert Path(path).read_bytes() == database
    assert os.listdir(tmp_path / "snap") == ["000000000000001f.snap.db"]


def test_a_snapshot_that_ends_early_leaves_nothing(lone, tmp_path):
    member = lone()
    body = snapshot_body(snapshot_message(5), b"x" * 100_000)
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:500], body[500:]))
    whole = [
        request_bytes("POST", "/raft/snapshot", headers(), body),
        request_bytes("POST", "/raft/snapshot", headers(**{"Transfer-Encoding": "chunked"}), chunked, length=False),
    ]
    for data in whole:
        with socket.create_connection(("127.0.0.1", member.port)) as connected:
            connected.sendall(data[:-10] if data is whole[0] else data)  # no last chunk
            connected.shutdown(socket.SHUT_WR)
            while connected.recv(1000):
                pass
    assert os.listdir(tmp_path / "snap") == []
    assert not member.seen
    assert member.ask("POST", "/raft/snapshot", None, body).status == 204


def test_one_snapshot_at_a_time(lone, tmp_path):
    member = lone()
    body = snapshot_body(snapshot_message(5), b"x" * 1000)
    with socket.create_connection(("127.0.0.1", member.port)) as connected:
        connected.sendall(request_bytes("POST", "/raft/snapshot", headers(), body)[:-1])
        wait_until(lambda: os.listdir(tmp_path / "snap"), "the beginning of the file")
        assert member.ask("POST", "/raft/snapshot", None, body).status == 503
        connected.sendall(body[-1:])
        assert connected.recv(100).startswith(b"HTTP/1.1 204")


@pytest.mark.parametrize(
    "body, text",
    [
        (struct.pack(">Q", 2**64 - 1), b"failed to decode raft message (error limit exceeded)\n"),
        (struct.pack(">Q", (64 << 20) + 1) + b"x" * 100, b"failed to decode raft message (error limit exceeded)\n"),
        (snapshot_body(marshal_message(3, A, B), b""), b"wrong raft message type\n"),
    ],
)
def test_snapshot_messages_that_are_none(lone, body, text):
    answer = lone().ask("POST", "/raft/snapshot", None, body)
    assert (answer.status, answer.body) == (400, text)


def test_a_snapshot_that_cannot_be_stored(lone, tmp_path):
    member = lone()
    (tmp_path / "snap").rmdir()
    answer = member.ask("POST", "/raft/snapshot", None, snapshot_body(snapshot_message(5), b"x"))
    assert (answer.status, answer.body) == (500, b"failed to save KV snapshot (No such file or directory)\n")
    assert not member.seen


def test_leftovers_of_a_receive_go_at_the_start(tmp_path, lone):
    (tmp_path / "snap").mkdir()
    for name in ("tmp-1.snap.db", "0000000000000001.snap.db", "tmp123"):
        (tmp_path / "snap" / name).touch()
    lone()
    assert sorted(os.listdir(tmp_path / "snap")) == ["0000000000000001.snap.db", "tmp123"]


class Two:
    """Members A and B that talk to each other; the test's thread runs both main loops."""

    def __init__(self, directory, **settings):
        listening = {A: listener(), B: listener()}
        urls = {member: url for member, (_, url) in listening.items()}
        self.members = {
            member: FakeMember(directory / f"{member:x}", made, view_of(member, CLUSTER, urls), **settings)
            for member, (made, _) in listening.items()
        }
        for member in self.members.values():
            member.start()

    def close(self):
        for member in self.members.values():
            member.close()

    def run_until(self, condition, what, deadline_seconds=20.0):
        end = time.monotonic() + deadline_seconds
        while not (result := condition()):
            assert time.monotonic() < end, what
            for member in self.members.values():
                member.turn(0.005)
        return result


@pytest.fixture
def two(tmp_path):
    made = Two(tmp_path, probe_seconds=0.1)
    yield made
    made.close()


def test_two_members_dial_each_other_and_again(two):
    a, b = two.members[A], two.members[B]
    two.run_until(lambda: a.streams(B) == b.streams(A) == 4, "all streams")
    a.answer = b.answer = False
    a.link(B).put_app(1, 0, 0, 0, [(1, 1, 0, b"x")])
    a.send(9, B, term=1)
    two.run_until(lambda: len(b.got) == 2, "messages of both streams")
    b.link(A).close()
    two.run_until(lambda: a.streams(B) < 4, "the end of the streams")
    for kind in (0, 1):
        b._watched.clear()
        b.thread.stream_lost(A, kind)
    two.run_until(lambda: a.streams(B) == b.streams(A) == 4, "all streams again")
    two.run_until(lambda: any(e[0] == "probe" and e[2] is not None for e in a.events), "a probe")


def test_a_database_goes_from_one_to_the_other(two, tmp_path):
    a, b = two.members[A], two.members[B]
    database = os.urandom(1000) * 20_000
    (tmp_path / "made.db").write_bytes(database)
    message = snapshot_message(0x77, to=B, frm=A)
    ended = []
    a.thread.send_snapshot(B, message, str(tmp_path / "made.db"), ended.append)
    two.run_until(lambda: [e for e in b.events if e[0] == "snapshot"], "the snapshot")
    (event,) = [e for e in b.events if e[0] == "snapshot"]
    assert event[1] == message and Path(event[2]).read_bytes() == database
    assert ended == []
    event[3](204)
    two.run_until(lambda: ended, "the answer")
    assert ended == [True]
    # One that is refused, and one whose file is not there.
    b.set_view(cluster_id=CLUSTER + 1)
    a.thread.send_snapshot(B, message, str(tmp_path / "made.db"), ended.append)
    two.run_until(lambda: len(ended) == 2, "the refusal")
    a.thread.send_snapshot(B, message, str(tmp_path / "none.db"), ended.append)
    two.run_until(lambda: len(ended) == 3, "the failure")
    assert ended == [True, False, False]


def test_posts_go_when_no_stream_is_there_and_are_bounded(two):
    a, b = two.members[A], two.members[B]
    ended = []
    for term in range(1, 500):
        a.thread.post(B, marshal_message(9, B, A, term), ended.append)
    two.run_until(lambda: len(ended) == 499, "the end of all posts")
    assert len(b.posted) == sum(ended)
    assert 64 <= sum(ended) < 499  # the queue holds 64; the rest was dropped and told of
    assert sum(e == ("unreachable", B) for e in a.events) == 499 - sum(ended)
    # Four go at once on connections that are kept.
    assert len(a.thread._clients[B]._idle) <= 4


def test_one_member_asks_the_other(two):
    a = two.members[A]
    answers = []
    a.thread.ask(B, "GET", "/version", b"", lambda *answer: answers.append(answer))
    a.thread.ask(0xFFFF, "GET", "/version", b"", lambda *answer: answers.append(answer))
    two.run_until(lambda: len(answers) == 2, "both answers")
    by_status = {answer[0]: answer for answer in answers}
    assert json.loads(by_status[200][2])["etcdcluster"] == "not_decided"
    assert b"no URL" in by_status[0][2]


def test_a_removed_member_learns_it(two):
    a, b = two.members[A], two.members[B]
    two.run_until(lambda: a.streams(B) == b.streams(A) == 4, "all streams")
    b.set_view(removed=frozenset([A]))
    a.link(B).close()
    a._watched.clear()
    a.thread.stream_lost(B, 0)
    two.run_until(lambda: ("removed",) in a.events, "the news of its removal")


def test_undial_stops_dialling(two):
    a, b = two.members[A], two.members[B]
    two.run_until(lambda: a.streams(B) == b.streams(A) == 4, "all streams")
    for member, peer in ((a, B), (b, A)):
        member.thread.undial(peer)
        member.link(peer).close()
        member._watched.clear()
    a.thread.stream_lost(B, 0)
    answers = []
    a.thread.ask(B, "GET", "/version", b"", lambda *answer: answers.append(answer))
    two.run_until(lambda: answers, "an answer")
    assert a.streams(B) == b.streams(A) == 0


def test_an_answer_given_just_before_the_stop_goes_out(tmp_path):
    listening, url = listener()
    member = FakeMember(tmp_path, listening, view_of(A, CLUSTER, {A: url}))
    member.start()
    body = snapshot_body(snapshot_message(5), b"x" * 1000)
    got = []
    thread = threading.Thread(
        target=lambda: got.append(ask(int(url.rpartition(":")[2]), "POST", "/raft/snapshot", headers(), body))
    )
    thread.start()
    member.run_until(lambda: member.events, "the snapshot")
    member.events[0][-1](204)
    member.close()
    thread.join()
    assert got[0].status == 204


def test_a_stopped_thread_leaves_no_socket(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    made = Two(tmp_path)
    made.run_until(lambda: made.members[A].streams(B) == 4, "all streams")
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before
