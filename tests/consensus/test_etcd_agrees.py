"""A real etcd 3.5.1 beside the consensus process: same ids, its snapshot files read here, our log opened there."""

import os
import shutil
import urllib.parse

import pytest

from etcdfast._ext import walrec, walscan
from etcdfast._ext.ring import KINDS
from etcdfast.api.pb import raft_internal_pb2, rpc_pb2
from etcdfast.formats import raftpb, snapfile, wal
from tests.consensus.member import Member, make_config
from tests.harness import pb
from tests.harness.ports import free_port
from tests.harness.rpc import Client
from tests.harness.servers import EtcdServer
from tests.harness.wait import wait_until

ENTRY = KINDS["ENTRY"]
CRC, METADATA = 4, 1


def etcd_ids(server):
    with Client(server.endpoint) as client:
        header = client.call("Status", pb.StatusRequest()).message.header
    return header.member_id, header.cluster_id


def test_ids_equal_those_of_etcd(tmp_path):
    """With several peer URLs (given unsorted), a token and a name."""
    ports = free_port(), free_port()
    urls = [f"http://127.0.0.1:{port}" for port in sorted(ports, reverse=True)]
    cluster = ",".join(f"m1={url}" for url in urls)
    flags = [
        "--initial-cluster", cluster,
        "--initial-cluster-token", "token-7",
        "--initial-advertise-peer-urls", ",".join(urls),
    ]  # fmt: skip
    with EtcdServer(directory=tmp_path / "etcd", name="m1", flags=flags) as server:
        expected = etcd_ids(server)
    config = make_config(tmp_path / "data", name="m1", initial_cluster=cluster, initial_cluster_token="token-7")
    with Member(config) as member:
        member.start()
        assert (member.word("member_id"), member.word("cluster_id")) == expected


def test_the_first_entries_are_those_of_etcd(tmp_path):
    """Entry by entry: types, terms, and the member's JSON as etcd writes it."""
    with EtcdServer(directory=tmp_path / "etcd", name="m1", flags=peer_flags("m1")) as server:
        server.stop()
    theirs = wal.read(server.data_dir / "member" / "wal")
    config = make_config(tmp_path / "data", name="m1", initial_cluster="m1=http://127.0.0.1:2380")
    with Member(config) as member:
        member.start()
        member.stop()
    ours = wal.read(config.wal_path)
    assert ours.metadata == theirs.metadata
    assert ours.entries.entry(0) == theirs.entries.entry(0)  # the configuration, bytes and all
    assert ours.entries.entry(1) == theirs.entries.entry(1)  # the leader's empty entry, term 2
    assert [row[:3] for row in map(ours.entries.entry, range(4))] == [
        row[:3] for row in map(theirs.entries.entry, range(4))
    ]
    assert ours.state[:2] == theirs.state[:2]


def peer_flags(name):
    url = "http://127.0.0.1:2380"
    return ["--initial-advertise-peer-urls", url, "--initial-cluster", f"{name}={url}"]


def test_snapshot_files_of_etcd_are_read(tmp_path):
    flags = [*peer_flags("m1"), "--snapshot-count", "10"]
    with EtcdServer(directory=tmp_path / "etcd", name="m1", flags=flags) as server:
        with Client(server.endpoint) as client:
            for number in range(30):
                assert client.call("Put", pb.PutRequest(key=b"%d" % number)).ok
        snap_dir = server.data_dir / "member" / "snap"
        wait_until(lambda: snapfile.names(snap_dir), "a snapshot file of etcd")
        member_id = etcd_ids(server)[0]
        server.stop()
    name = snapfile.names(snap_dir)[0]
    data, conf_state, index, term = snapfile.read(snap_dir, name)
    assert (term, index) == snapfile.position(name)
    assert conf_state == raftpb.ConfState(voters=(member_id,))
    members, removed, version = snapfile.decode_members(data)
    assert members == [(member_id, ("http://127.0.0.1:2380",), "m1", (server.url,), False)]
    assert (removed, version) == ((), "3.5.0")
    # Written back in our form it says the same.
    again = snapfile.encode_members(members, removed, version)
    assert snapfile.decode_members(again) == (members, removed, version)
    found = wal.read(server.data_dir / "member" / "wal", (index, term))
    conf_states = {row[0]: row[2] for row in found.snapshots}
    assert conf_states[index] == raftpb.encode_conf_state(conf_state)


def test_a_log_of_etcd_is_replayed(tmp_path):
    with EtcdServer(directory=tmp_path / "etcd", name="m1", flags=peer_flags("m1")) as server:
        with Client(server.endpoint) as client:
            for number in range(50):
                assert client.call("Put", pb.PutRequest(key=b"k%d" % number, value=b"v")).ok
        member_id, cluster_id = etcd_ids(server)
        server.stop()
    shutil.copytree(server.data_dir / "member" / "wal", tmp_path / "data" / "member" / "wal")
    config = make_config(tmp_path / "data", name="m1", initial_cluster="m1=http://127.0.0.1:2380")
    with Member(config) as member:
        records = member.start()
        assert (member.word("member_id"), member.word("cluster_id")) == (member_id, cluster_id)
    requests = []
    for record in records:
        if record["kind"] == ENTRY and not record["method"] and record["payload"][:1] == b"\x22":
            requests.append(raft_internal_pb2.InternalRaftRequest.FromString(record["payload"]).put.key)
    assert requests == [b"k%d" % number for number in range(50)]


def with_cluster_version(source, target, version):
    """Copy a log, with the cluster version it sets replaced by one of the same length, checksums made right."""
    os.makedirs(target)
    crc_read = crc = 0
    for segment in wal.list_segments(source):
        with open(segment.path, "rb") as file:
            content = file.read()
        out, offset = b"", 0
        while True:
            code, size, kind, crc_read, data = walrec.next_frame(content, offset, crc_read)
            if code != walscan.OK:
                break
            offset += size
            if kind == CRC:
                out += walrec.encode_crc(crc)
                continue
            frame, crc = walrec.encode_record(crc, kind, data.replace(b"\n\x053.7.0", b"\n\x05" + version))
            out += frame
        with open(os.path.join(target, os.path.basename(segment.path)), "wb") as file:
            file.write(out)


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_etcd_opens_our_log(tmp_path, ending):
    """Real etcd replays every entry. It is 3.5.1, so the cluster version in the copy is set back to its own."""
    config = make_config(
        tmp_path / "data",
        name="m1",
        initial_cluster="m1=http://127.0.0.1:2380",
        advertise_client_urls=("http://127.0.0.1:1234",),
    )
    values = {b"key-%d" % number: bytes([number & 0xFF]) * (number * 37 % 3000) for number in range(200)}
    with Member(config) as member:
        last = member.start()[-1]["index"]
        for key, value in values.items():
            member.propose(rpc_pb2.PutRequest(key=key, value=value).SerializeToString())
            last = member.take()["index"]
        ids = member.word("member_id"), member.word("cluster_id")
        getattr(member, ending)()
    server = EtcdServer(directory=tmp_path / "etcd", name="m1", flags=peer_flags("m1"))
    with_cluster_version(config.wal_path, server.data_dir / "member" / "wal", b"3.5.0")
    os.chmod(server.data_dir, 0o700)
    with server:
        assert etcd_ids(server) == ids
        with Client(server.endpoint) as client:
            found = client.call("Range", pb.RangeRequest(key=b"\0", range_end=b"\0")).message
            assert {kv.key: kv.value for kv in found.kvs} == values
            assert found.header.revision == 1 + len(values)
            status = client.call("Status", pb.StatusRequest()).message
            assert status.raftIndex > last
            assert status.raftTerm == 3
            members = client.call("MemberList", pb.MemberListRequest()).message.members
            assert [(m.ID, m.name, list(m.peerURLs)) for m in members] == [(ids[0], "m1", ["http://127.0.0.1:2380"])]
            assert [urllib.parse.urlsplit(url).port for url in members[0].clientURLs] == [server.port]
