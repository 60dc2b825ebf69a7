"""A real etcd 3.5.1 in a cluster whose other member is made of our peer thread and peer links."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from etcdfast._ext.peerlink import PeerLink
from etcdfast._ext.peerwire import ChunkDecoder, PeerMessage, marshal_message
from etcdfast.cluster import entries
from etcdfast.consensus.peers.sockets import Taken
from etcdfast.formats import bbolt, memberid, raftpb
from tests.harness import pb
from tests.harness.ports import free_port
from tests.harness.servers import EtcdServer
from tests.peers.fakemember import (
    APP,
    APP_RESP,
    HEARTBEAT,
    PROP,
    READ_INDEX,
    SNAP,
    FakeLeader,
    FakeMember,
    listener,
    view_of,
)  # fmt: skip

TOKEN = "etcd-cluster"
APP_STREAM, MESSAGE_STREAM = 0, 1


class _Etcd(EtcdServer):
    """Without the peer flags of its base class."""

    def command(self):
        command = super().command()
        at = command.index("--listen-peer-urls")
        return command[:at] + command[at + 2 :]


class Pair:
    """Member `a` is real etcd, member `b` is ours. `flags` go to etcd."""

    def __init__(self, directory, kind=FakeMember, flags=()):
        self.listening, self.fake_url = listener()
        self.etcd_url = f"http://127.0.0.1:{free_port()}"
        self.etcd_id = memberid.member_id([self.etcd_url], TOKEN)
        self.fake_id = memberid.member_id([self.fake_url], TOKEN)
        self.cluster_id = memberid.cluster_id([self.etcd_id, self.fake_id])
        view = view_of(self.fake_id, self.cluster_id, {self.etcd_id: self.etcd_url, self.fake_id: self.fake_url})
        self.fake = kind(directory / "snap", self.listening, view, probe_seconds=0.2)
        self.etcd = _Etcd(directory / "etcd", "a", [
            "--listen-peer-urls", self.etcd_url,
            "--initial-advertise-peer-urls", self.etcd_url,
            "--initial-cluster", f"a={self.etcd_url},b={self.fake_url}",
            *flags,
        ])  # fmt: skip

    def __enter__(self):
        self.fake.start()
        self.etcd.spawn()
        return self

    def __exit__(self, *_):
        self.fake.close()
        self.etcd.close()

    def streams(self):
        self.fake.run_until(lambda: self.fake.streams(self.etcd_id) == 4, "all four streams")

    def follow(self):
        """Until etcd leads and has taken its cluster version and its name into the log."""
        self.streams()
        self.fake.run_until(lambda: self.fake.commit >= 5, "a leader's first commits")

    def lead(self, term, last_index, last_term):
        """Make the fake member leader, and let etcd serve."""
        fake = self.fake
        self.streams()
        fake.campaign(self.etcd_id, term, last_index, last_term)
        fake.run_until(lambda: fake.leading, "a vote")
        fake.snapshot, fake.commit = (last_index, last_term), last_index
        fake.append((0, b""))
        version = entries.cluster_version(1, "3.5.0", v2=True)
        fake.append((0, version))
        fake.run_until(lambda: fake.commit >= last_index + 2, "the first commits")

    @contextmanager
    def calls(self, *requests, at_once=False):
        """The replies to calls of a client, made while the fake's main loop runs."""
        replies = []

        def call():
            with self.etcd.client(10.0) as client:
                if at_once:
                    under_way = [client.start(name, request) for name, request in requests]
                    replies.extend(call.reply() for call in under_way)
                else:
                    replies.extend(client.call(name, request) for name, request in requests)

        thread = threading.Thread(target=call)
        thread.start()
        try:
            self.fake.run_until(lambda: not thread.is_alive(), "replies", 40.0)
        finally:
            thread.join()
        yield replies


class Recorder(FakeMember):
    """Keeps every byte that comes on the streams it dials."""

    def _event(self, name, *arguments):
        if name == "stream_in":
            kind, peer, connected, leftover = arguments
            self.__dict__.setdefault("recorded", {})[kind] = pieces = [leftover]
            near, far = socket.socketpair()
            fd, _ = connected.detach()
            source = socket.socket(fileno=fd)
            source.setblocking(True)
            threading.Thread(target=_copy, args=(source, near, pieces), daemon=True).start()
            arguments = kind, peer, Taken(far.detach()), leftover
        super()._event(name, *arguments)

    def stream_bytes(self, kind):
        """What came on it, without chunks."""
        return ChunkDecoder().feed(b"".join(self.recorded[kind]))


def _copy(source, target, pieces):
    with source, target:
        try:
            while data := source.recv(65536):
                pieces.append(data)
                target.sendall(data)
        except OSError:
            pass


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A pair with traffic behind it: etcd leads, our member follows and records."""
    with Pair(tmp_path_factory.mktemp("recorded"), Recorder) as pair:
        pair.follow()
        puts = [("Put", pb.PutRequest(key=b"k%d" % i, value=b"v" * (i * 997 % 5000))) for i in range(60)]
        with pair.calls(*puts, ("Range", pb.RangeRequest(key=b"k1"))) as replies:
            assert all(reply.ok for reply in replies)
            assert replies[-1].message.kvs[0].value == b"v" * 997
        yield pair


def test_streams_attach_and_a_real_leader_commits(recorded):
    fake = recorded.fake
    assert {m.frm for m in fake.got} == {recorded.etcd_id}
    assert {m.to for m in fake.got} == {recorded.fake_id}
    assert [entry[2] for entry in fake.entries[:2]] == [1, 1]  # configuration changes
    assert [entry[1] for entry in fake.entries] == list(range(1, len(fake.entries) + 1))
    assert sum(b"v" * 100 in entry[3] for entry in fake.entries) > 50
    assert not fake.posted or all(PeerMessage(body).frm == recorded.etcd_id for body in fake.posted)
    assert {m.type for m in fake.got} >= {APP, HEARTBEAT}
    assert any(event[0] == "probe" and event[2] is not None for event in fake.events)


def frames_of(data):
    """msgappv2 frames of a stream; link heartbeats are left out."""
    at, frames = 0, []

    def u64(where):
        return int.from_bytes(data[where : where + 8], "big")

    while at < len(data):
        start, kind = at, data[at]
        if kind == 0:
            at += 1
            continue
        if kind == 2:
            at += 9 + u64(at + 1)
        else:
            assert kind == 1
            count, at = u64(at + 1), at + 9
            for _ in range(count):
                at += 8 + u64(at)
            at += 8
        if at > len(data):
            break  # the recording ends within it
        frames.append(data[start:at])
    return frames


def test_our_append_frames_are_etcds_bytes(recorded):
    recording = frames_of(recorded.fake.stream_bytes(APP_STREAM))
    assert {frame[0] for frame in recording} == {1, 2}
    reader = PeerLink(recorded.etcd_id, recorded.fake_id)
    writer = PeerLink(recorded.fake_id, recorded.etcd_id)  # as etcd's end of it
    to_reader, reader_end = socket.socketpair()
    writer_end, from_writer = socket.socketpair()
    reader.attach_in(APP_STREAM, reader_end.detach(), b"", False)
    writer.attach_out(APP_STREAM, writer_end.detach())
    decoder = ChunkDecoder()
    with to_reader, from_writer:
        for frame in recording:
            to_reader.sendall(frame)
            assert reader.receive(APP_STREAM) == len(frame)
            fields = reader.next(APP_STREAM)
            _, _, _, term, log_term, index, commit, rows, *_ = fields
            assert writer.put_app(term, index, log_term, commit, rows) == 0
            assert writer.flush(APP_STREAM) == 0
            assert decoder.feed(from_writer.recv(1 << 20)) == frame
    reader.close()
    writer.close()


def test_our_messages_are_etcds_bytes(recorded):
    data = recorded.fake.stream_bytes(MESSAGE_STREAM)
    at, types = 0, set()
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 8], "big")
        message = data[at + 8 : at + 8 + size]
        if len(message) < size:
            break
        fields = PeerMessage(message).fields()
        assert marshal_message(*fields) == message
        types.add(fields[0])
        at += 8 + size
    assert HEARTBEAT in types
    for message in recorded.fake.posted:
        assert marshal_message(*PeerMessage(message).fields()) == message


def test_link_heartbeats_come_and_keep_the_streams(recorded):
    fake = recorded.fake
    fds = [fake.link(recorded.etcd_id).fd(kind, outgoing) for kind in (0, 1) for outgoing in (False, True)]
    end = time.monotonic() + 6  # above the deadline of both sides
    fake.run_until(lambda: time.monotonic() > end, "six seconds")
    assert fds == [fake.link(recorded.etcd_id).fd(kind, outgoing) for kind in (0, 1) for outgoing in (False, True)]
    text = recorded.etcd.log_text()
    assert "lost TCP streaming connection" not in text


def test_a_real_follower_takes_what_we_send(tmp_path):
    with Pair(tmp_path, FakeLeader) as pair:
        pair.lead(term=2, last_index=2, last_term=1)
        fake = pair.fake
        fake.run_until(lambda: any(m.type == PROP for m in fake.got), "etcd's name as a proposal")
        calls = [("Put", pb.PutRequest(key=b"a", value=b"1" * size)) for size in (1, 100, 100_000, 1_000_000)]
        with pair.calls(*calls, ("Range", pb.RangeRequest(key=b"a"))) as replies:
            assert [reply.code for reply in replies] == [0] * 5, [reply.text for reply in replies]
            assert len(replies[-1].message.kvs[0].value) == 1_000_000
        assert fake.compact > 4
        assert any(m.type == READ_INDEX for m in fake.got)
        assert all(m.frm == pair.etcd_id for m in fake.got)
        # What it acknowledged is what was sent.
        assert max(m.index for m in fake.got if m.type == APP_RESP) == fake.last_index()


def test_snapshots_go_both_ways(tmp_path):
    flags = ["--snapshot-count", "10"]
    with Pair(tmp_path, FakeLeader, flags) as pair:
        fake = pair.fake
        # Real leader, our follower: it loses its log, which etcd has compacted meanwhile.
        fake._message = lambda m: FakeMember._message(fake, m)
        pair.follow()
        # etcd 3.5 keeps 5000 entries behind its last snapshot.
        puts = [("Put", pb.PutRequest(key=b"key", value=b"%d" % i)) for i in range(5200)]
        with pair.calls(*puts, at_once=True) as replies:
            assert all(reply.ok for reply in replies)
        fake.entries = []
        with pair.calls(puts[0]):
            pass  # an append to find out by
        fake.run_until(lambda: [e for e in fake.events if e[0] == "snapshot"], "a snapshot of the leader")
        _, message, path, reply = next(e for e in fake.events if e[0] == "snapshot")
        reply(204)
        fields = PeerMessage(message).fields()
        assert (fields[0], fields[1], fields[2]) == (SNAP, pair.fake_id, pair.etcd_id)
        data, conf_state, index, term = raftpb.decode_snapshot(fields[-1])
        assert index > 5000 and data.startswith(b"{") and set(conf_state.voters) == {pair.etcd_id, pair.fake_id}
        assert path.endswith(f"{index:016x}.snap.db")
        with bbolt.Reader(path) as database:
            assert b"key" in database.buckets() and b"members" in database.buckets()
        last_term = fields[3]

        # Our leader, real follower: it starts again with nothing.
        pair.etcd.kill9()
        shutil.rmtree(pair.etcd.data_dir)
        del fake._message
        fake.run_until(lambda: fake.streams(pair.etcd_id) < 4, "the end of the streams")
        pair.etcd.spawn()
        pair.streams()
        fake.campaign(pair.etcd_id, last_term + 1, index, term)
        fake.run_until(lambda: fake.leading, "a vote")
        fake.snapshot, fake.commit = (index, term), index
        ended = []
        sent = marshal_message(SNAP, pair.etcd_id, fake.id, fake.term, snapshot=fields[-1])
        fake.thread.send_snapshot(pair.etcd_id, sent, str(Path(path)), ended.append)
        fake.run_until(lambda: ended, "the end of the snapshot")
        assert ended == [True]
        fake.run_until(lambda: fake.match >= index, "the follower's word that it has it")
        fake.append((0, b""))
        fake.run_until(lambda: fake.commit > index, "a commit behind the snapshot")
        with pair.calls(("Range", pb.RangeRequest(key=b"key", serializable=True))) as replies:
            assert replies[0].ok, replies[0].text
            assert int(replies[0].message.kvs[0].value) > 20
