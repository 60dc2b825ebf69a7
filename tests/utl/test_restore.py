"""snapshot restore: the same directory as real etcdutl makes, and real etcd starts from it."""

import json
import os
import stat

import pytest

from etcdfast.formats import bbolt, snapfile, wal
from tests.harness import boltread, etcdutl, pb
from tests.harness.rpc import Client
from tests.harness.servers import EtcdServer, target_server
from tests.utl.tools import etcdctl, everything, utl

THREE = "m1=http://localhost:2380,m2=http://localhost:2382,m3=http://localhost:2384"


def wal_entries(data_dir):
    log = wal.read(data_dir / "member" / "wal")
    return log.metadata, log.state, log.snapshots, [log.entries.entry(i) for i in range(len(log.entries))]


def snapshot_of(data_dir):
    directory = data_dir / "member" / "snap"
    (name,) = snapfile.names(directory)
    data, conf_state, index, term = snapfile.read(directory, name)
    return name, snapfile.decode_members(data), conf_state, index, term


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--name", "m2", "--initial-cluster", THREE, "--initial-advertise-peer-urls", "http://localhost:2382"),
        ("--name", "m1", "--initial-cluster", THREE, "--initial-cluster-token", "other"),
    ],
    ids=["one member", "three members", "another token"],
)
def test_the_directory_is_what_etcdutl_makes(flags, source, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    done = utl("snapshot", "restore", source.snapshot, "--data-dir", ours, *flags)
    assert (done.code, done.out) == (0, ""), done.err
    real = etcdutl.run("snapshot", "restore", source.snapshot, "--data-dir", theirs, *flags)
    assert real.returncode == 0, real.stderr

    assert wal_entries(ours) == wal_entries(theirs)
    assert snapshot_of(ours) == snapshot_of(theirs)
    mine, others = (boltread.buckets(where / "member" / "snap" / "db") for where in (ours, theirs))
    # etcdutl leaves the voters of the old cluster in it.
    voters = json.loads(mine[b"meta"].pop(b"confState"))["voters"]
    assert voters == [int(member, 16) for member in mine[b"members"]]
    others[b"meta"].pop(b"confState")
    assert mine == others
    assert _tree(ours) == _tree(theirs)


def _tree(top):
    """Names and modes; the .snap file of etcdutl may be read by all."""
    found = {}
    for where, _, names in os.walk(top):
        found[os.path.relpath(where, top)] = stat.S_IMODE(os.stat(where).st_mode)
        for name in names:
            mode = stat.S_IMODE(os.stat(os.path.join(where, name)).st_mode)
            found[os.path.relpath(os.path.join(where, name), top)] = None if name.endswith(".snap") else mode
    return found


def test_etcd_starts_from_it(source, tmp_path):
    done = utl("snapshot", "restore", source.snapshot, "--data-dir", tmp_path / "data")
    assert done.code == 0, done.err
    with EtcdServer(directory=tmp_path) as etcd:
        with Client(etcd.endpoint) as client:
            # Compacted nothing more, lost nothing: the hash of the last revision of the source.
            reply = client.call("HashKV", pb.HashKVRequest(revision=source.revision)).message
            assert (reply.hash, reply.compact_revision) == source.hashes[source.revision]
            leases = client.call("LeaseLeases", pb.LeaseLeasesRequest()).message.leases
            assert len(leases) == 1
        assert "alice" in etcdctl(etcd.endpoint, "user", "list")
        before = everything(etcd.endpoint)
        assert before[b"large"][0] == bytes(range(256)) * 400
        etcdctl(etcd.endpoint, "put", "after", "restore")
        etcd.stop()
        etcd.start()
        assert everything(etcd.endpoint).keys() == {*before, b"after"}
        # etcd has written into the file that we made.
        etcd.stop()
        with bbolt.Reader(etcd.data_dir / "member" / "snap" / "db") as reader:
            reader.check()
        etcdutl.status(etcd.data_dir / "member" / "snap" / "db")


def test_three_members_of_etcd_make_a_cluster_of_it(source, tmp_path):
    from tests.harness.ports import free_port

    peers = {f"m{i}": f"http://127.0.0.1:{free_port()}" for i in (1, 2, 3)}
    cluster = ",".join(f"{name}={url}" for name, url in peers.items())
    members = []
    try:
        for name, url in peers.items():
            flags = ("--name", name, "--initial-cluster", cluster, "--initial-advertise-peer-urls", url)
            done = utl("snapshot", "restore", source.snapshot, "--data-dir", tmp_path / name / "data", *flags)
            assert done.code == 0, done.err
            member = EtcdServer(directory=tmp_path / name, name=name)
            member._peer_port = url.rpartition(":")[2]
            member.flags += ["--initial-cluster", cluster, "--initial-advertise-peer-urls", url]
            member.spawn()
            members.append(member)
        for member in members:
            member.wait_ready()
        etcdctl(members[0].endpoint, "put", "one", "two")
        assert everything(members[2].endpoint)[b"one"][0] == b"two"
        listed = json.loads(etcdctl(members[1].endpoint, "member", "list", "-w", "json"))
        assert sorted(member["name"] for member in listed["members"]) == ["m1", "m2", "m3"]
    finally:
        for member in members:
            member.close()


def test_a_raised_revision_is_seen_by_etcd(source, tmp_path):
    flags = ("--bump-revision", 1000, "--mark-compacted")
    done = utl("snapshot", "restore", source.snapshot, "--data-dir", tmp_path / "data", *flags)
    assert done.code == 0, done.err
    with EtcdServer(directory=tmp_path) as etcd:
        raised = source.revision + 1000
        with Client(etcd.endpoint) as client:
            put = client.call("Put", pb.PutRequest(key=b"k", value=b"v")).message
            assert put.header.revision == raised + 1
            old = client.call("Range", pb.RangeRequest(key=b"k", revision=raised - 1))
            assert "required revision has been compacted" in old.text


@pytest.mark.parametrize(
    "flags",
    [
        ("--name", "other"),
        ("--initial-cluster", "default=localhost"),
        ("--initial-cluster", "default"),
        ("--initial-cluster", "default=http://localhost:2380,b=http://localhost:2380"),
        ("--initial-cluster", ""),
        ("--initial-advertise-peer-urls", "http://localhost:2381"),
        ("--initial-advertise-peer-urls", "localhost:2381"),
        ("--data-dir", "{full}"),
        ("--wal-dir", "{full}"),
    ],
)
def test_wrong_flags_are_answered_as_by_etcdutl(flags, source, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    flags = [flag.format(full=full) for flag in flags]
    wanted = tmp_path / "data"
    arguments = ("snapshot", "restore", source.snapshot, "--data-dir", wanted, *flags)
    ours, real = utl(*arguments), etcdutl.run(*arguments)
    assert (ours.code, real.returncode) == (1, 1)
    ours_said, real_said = (text.strip().splitlines()[-1] for text in (ours.err, real.stderr))
    # etcdutl goes on to what the names were resolved to
    assert real_said.startswith(ours_said) and (len(real_said) == len(ours_said) or "resolved from" in real_said)
    assert not wanted.exists() and os.listdir(full) == ["file"]


def test_a_file_without_a_right_hash_is_refused_and_leaves_nothing(source, tmp_path):
    data = tmp_path / "data"
    done = utl("snapshot", "restore", source.database, "--data-dir", data)
    assert (done.code, done.err.splitlines()[-1]) == (1, "Error: snapshot missing hash but --skip-hash-check=false")
    changed = tmp_path / "changed"
    content = bytearray(source.snapshot.read_bytes())
    content[-100] ^= 1
    changed.write_bytes(content)
    done = utl("snapshot", "restore", changed, "--data-dir", data)
    assert done.code == 1 and done.err.splitlines()[-1].startswith("Error: expected sha256 ")
    damaged = tmp_path / "damaged"
    damaged.write_bytes(source.database.read_bytes()[:20000])
    done = utl("snapshot", "restore", damaged, "--data-dir", data, "--skip-hash-check")
    assert done.code == 1 and "cut short" in done.err
    assert utl("snapshot", "restore", tmp_path / "none", "--data-dir", data).code == 1
    assert not data.exists()
    # A directory that was there stays, empty.
    data.mkdir()
    (tmp_path / "wal").mkdir()
    flags = ("--data-dir", data, "--wal-dir", tmp_path / "wal", "--skip-hash-check")
    assert utl("snapshot", "restore", damaged, *flags).code == 1
    assert os.listdir(data) == os.listdir(tmp_path / "wal") == []
    done = utl("snapshot", "restore", changed, *flags)
    assert done.code == 0, done.err
    assert len(wal.list_segments(tmp_path / "wal")) == 1 and os.listdir(data / "member") == ["snap"]


def test_raising_needs_both_flags(source, tmp_path):
    for flags in (("--bump-revision", "5"), ("--mark-compacted",)):
        done = utl("snapshot", "restore", source.snapshot, "--data-dir", tmp_path / "data", *flags)
        assert done.code == 1 and "--bump-revision and --mark-compacted go together" in done.err
    flags = ("--bump-revision", (1 << 63) - 1, "--mark-compacted")
    done = utl("snapshot", "restore", source.snapshot, "--data-dir", tmp_path / "data", *flags)
    assert done.code == 1 and "too large for etcd" in done.err and not (tmp_path / "data").exists()


def test_a_bbolt_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.db"
    with bbolt.Writer(path) as writer:
        writer.bucket(b"widgets", [(b"a", b"b")])
        writer.finish()
    done = utl("snapshot", "restore", path, "--data-dir", tmp_path / "data", "--skip-hash-check")
    assert done.code == 1 and "is no database of etcd" in done.err


@pytest.mark.parametrize("who", ["etcdfastutl", "etcdutl"])
def test_the_server_under_test_starts_from_it(who, source, tmp_path):
    run = utl if who == "etcdfastutl" else etcdutl.run
    run("snapshot", "restore", source.snapshot, "--data-dir", tmp_path / "data")
    with target_server(directory=tmp_path) as server:
        with Client(server.endpoint) as client:
            reply = client.call("HashKV", pb.HashKVRequest(revision=source.revision)).message
            assert (reply.hash, reply.compact_revision) == source.hashes[source.revision]
            assert len(client.call("LeaseLeases", pb.LeaseLeasesRequest()).message.leases) == 1
        before = everything(server.endpoint)
        assert before[b"large"][0] == bytes(range(256)) * 400
        etcdctl(server.endpoint, "put", "after", "restore")
        server.stop()
        server.start()
        assert everything(server.endpoint).keys() == {*before, b"after"}
