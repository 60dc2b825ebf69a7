"""The same files under a real etcd 3.5.1: we read its log, it reads ours."""

import base64
import json
import subprocess

import pytest

from etcdfast.api.pb.raft_internal_pb2 import InternalRaftRequest
from etcdfast.api.pb.raft_pb2 import ConfChange, ConfState
from etcdfast.api.pb.rpc_pb2 import PutRequest
from etcdfast.formats import wal
from tests.harness.servers import ETCDCTL, EtcdServer
from tests.unit import walmodel


def etcdctl(server, *arguments, value=None):
    run = subprocess.run(
        [ETCDCTL, "--endpoints", server.endpoint, *arguments],
        input=value, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def wal_directory(server):
    return str(server.data_dir / "member" / "wal")


def puts(entries):
    """{key: value} of the put requests among Normal entries, in log order."""
    out = {}
    for i in range(len(entries)):
        kind, _, _, data = entries.entry(i)
        if kind != 0 or not data:
            continue
        request = InternalRaftRequest()
        try:
            request.ParseFromString(data)
        except Exception:  # a v2 Request, formats.md 3.4
            continue
        if request.HasField("put"):
            out[request.put.key] = request.put.value
    return out


def test_etcds_log_is_read_appended_to_and_read_by_etcd_again(tmp_path):
    expected = {b"key%d" % i: b"value %d" % i * (i * 9 + 1) for i in range(5)}
    with EtcdServer(directory=tmp_path) as etcd:
        for key, value in expected.items():
            etcdctl(etcd, "put", key.decode(), value.decode())
        etcd.stop()
        directory = wal_directory(etcd)

        log = wal.read(directory)
        assert puts(log.entries) == expected
        with open(log.segments[-1].path, "rb") as file:
            frames = walmodel.frames(file.read())
        modelled = [f.data for f in frames if f.type == walmodel.ENTRY]
        ours = [walmodel.entry(k, t, i, d) for k, t, i, d in map(log.entries.entry, range(len(log.entries)))]
        assert ours == modelled
        assert log.position[0] == frames[-1].end
        assert log.position[1] == frames[-1].crc
        term, vote, commit = log.state
        assert commit == len(log.entries)

        # One more entry by our writer, then etcd takes its log back.
        _, writer = wal.open_for_append(directory)
        request = InternalRaftRequest(put=PutRequest(key=b"ours", value=b"by etcdfast"))
        request.header.ID = 77
        writer.append_entry(0, term, commit + 1, request.SerializeToString())
        writer.append_state(term, vote, commit)
        writer.flush()
        writer.append_state(term, vote, commit + 1)
        writer.close()
        etcd.start()
        assert etcdctl(etcd, "get", "ours", "--print-value-only") == b"by etcdfast\n"
        lines = etcdctl(etcd, "get", "key", "--prefix").split(b"\n")
        assert dict(zip(lines[0:-1:2], lines[1::2], strict=True)) == expected


def test_etcd_starts_on_a_log_of_ours(tmp_path):
    """A bootstrap log (formats.md 5.2) with entries, cut into several segments, and nothing but that log."""
    member, cluster = 0x1234_5678_9ABC_DEF0, 0x0FED_CBA9_8765_4321
    member_url = "http://localhost:2380"
    metadata = b"\x08" + _varint(member) + b"\x10" + _varint(cluster)
    context = json.dumps({"id": member, "peerURLs": [member_url], "name": "default"}, separators=(",", ":")).encode()
    change = ConfChange(id=0, type=0, node_id=member, context=context).SerializeToString()
    expected = {}
    server = EtcdServer(directory=tmp_path)
    (server.data_dir / "member").mkdir(parents=True, mode=0o700)
    (server.data_dir / "member" / "snap").mkdir(mode=0o700)
    log = wal.create(wal_directory(server), metadata, segment_bytes=65536, prewrite=False, max_wals=0)
    log.append_entry(1, 1, 1, change)
    log.append_state(1, 0, 1)
    log.flush()
    log.append_entry(0, 2, 2)
    for index in range(3, 303):
        request = InternalRaftRequest(put=PutRequest(key=b"k%04d" % (index % 200), value=b"%d" % index * (index % 300)))
        request.header.ID = index
        expected[request.put.key] = request.put.value
        log.append_entry(0, 2, index, request.SerializeToString())
        log.append_state(2, member, index - 1)
        if index % 20 == 0:
            log.flush()
    log.append_state(2, member, 302)
    log.close()
    assert len(wal.list_segments(wal_directory(server))) > 2
    with server:
        answer = json.loads(etcdctl(server, "get", "k", "--prefix", "-w", "json"))
        got = {base64.b64decode(kv["key"]): base64.b64decode(kv.get("value", "")) for kv in answer["kvs"]}
        assert got == expected
        assert answer["header"]["member_id"] == member
        assert answer["header"]["cluster_id"] == cluster
        assert answer["header"]["revision"] == 301
        etcdctl(server, "put", "after", "start")
        server.stop()
    back = wal.read(wal_directory(server))
    assert puts(back.entries)[b"after"] == b"start"
    assert back.metadata == metadata


def test_etcd_repairs_and_refuses_what_we_repair_and_refuse(tmp_path):
    """The same torn and flipped log in both: etcd's answers are the yardstick (formats.md 1.8)."""
    with EtcdServer(directory=tmp_path / "source") as source:
        for i in range(5):
            etcdctl(source, "put", f"k{i}", "v" * 700)
        source.stop()
        segment = wal.list_segments(wal_directory(source))[-1]
        with open(segment.path, "rb") as file:
            content = file.read()
    frames = walmodel.frames(content)
    last = [f for f in frames if f.type == walmodel.ENTRY][-1]
    torn = content[: last.offset + 300]
    flipped = bytearray(content)
    flipped[last.offset + 200] ^= 4

    ours = tmp_path / "ours"
    ours.mkdir()
    name = segment.path.rsplit("/", 1)[1]
    for damage, starts in ((torn, True), (flipped, False)):
        (ours / name).write_bytes(damage)
        if starts:
            log, writer = wal.open_for_append(str(ours))
            writer.close()
            assert log.repaired
            assert log.position[0] == last.offset
        else:
            with pytest.raises(wal.WalCorrupt, match="crc mismatch"):
                wal.open_for_append(str(ours))
        with open(segment.path, "wb") as file:
            file.write(damage)
        # Without its database etcd has to replay the log, so its answer shows what it read there.
        (source.data_dir / "member" / "snap" / "db").unlink()
        if starts:
            source.start()
            assert json.loads(etcdctl(source, "get", "k", "--prefix", "-w", "json"))["count"] == 5 - 1
            source.stop()
            with open(segment.path, "rb") as file:
                assert file.read(last.offset) == content[: last.offset]
        else:
            process = source.spawn()
            assert process.wait(30) != 0
            assert "crc mismatch" in source.log_text()


def test_conf_state_of_a_snapshot_record_is_raftpbs(tmp_path):
    conf_state = ConfState(voters=[1, 2**63 + 5], learners=[7], auto_leave=False).SerializeToString()
    log = wal.create(str(tmp_path / "wal"), b"\x08\x01\x10\x02", prewrite=False, segment_bytes=65536)
    log.append_entry(0, 1, 1, b"")
    log.flush()
    log.append_snapshot(1, 1, conf_state)
    log.close()
    assert wal.read(str(tmp_path / "wal")).snapshots[-1] == (1, 1, conf_state)


def _varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
