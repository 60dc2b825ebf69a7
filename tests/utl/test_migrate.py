"""migrate, both ways, with real etcd 3.5.1 on one side and the server of this repository on the other."""

import os
import shutil

import pytest

from etcdfast.formats import bbolt, snapfile, wal
from etcdfast.utl.errors import UtlError
from etcdfast.utl.migrate import _settle_version
from tests.harness import boltread, etcdutl, pb
from tests.harness.rpc import Client
from tests.harness.servers import EtcdfastServer, EtcdServer
from tests.utl.tools import etcdctl, everything, fill, utl


def hash_of(endpoint, revision=0):
    with Client(endpoint) as client:
        reply = client.call("HashKV", pb.HashKVRequest(revision=revision)).message
        return reply.header.revision, reply.hash, reply.compact_revision


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """(data directory of a stopped etcdfast, what it held, its HashKV)."""
    directory = tmp_path_factory.mktemp("etcdfast")
    with EtcdfastServer(directory=directory) as server:
        fill(server.endpoint, users=False)
        held, hashed = everything(server.endpoint), hash_of(server.endpoint)
        server.stop()
        return server.data_dir, held, hashed


def migrate(data_dir, target, *flags):
    return utl("migrate", "--data-dir", data_dir, "--target", target, *flags)


def test_etcd_starts_from_what_was_etcdfasts(ours, tmp_path):
    data_dir, held, (revision, *hashed) = ours
    before = sorted(os.listdir(data_dir / "member"))
    done = migrate(data_dir, "etcd", "--output-dir", tmp_path / "data")
    assert done.code == 0, done.err
    assert f"start etcd 3.5 with --data-dir {tmp_path / 'data'}" in done.out
    assert sorted(os.listdir(data_dir / "member")) == before
    db = tmp_path / "data" / "member" / "snap" / "db"
    etcdutl.status(db)
    assert boltread.buckets(db)[b"cluster"] == {b"clusterVersion": b"3.5.0"}
    with EtcdServer(directory=tmp_path) as etcd:
        assert everything(etcd.endpoint) == held
        assert hash_of(etcd.endpoint, revision)[1:] == tuple(hashed)
        with Client(etcd.endpoint) as client:
            assert len(client.call("LeaseLeases", pb.LeaseLeasesRequest()).message.leases) == 1
        listed = etcdctl(etcd.endpoint, "member", "list")
        assert "8e9e05c52164694d, started, default" in listed
        etcdctl(etcd.endpoint, "put", "written by", "etcd")
        etcd.stop()
        etcd.start()
        assert everything(etcd.endpoint).keys() == {*held, b"written by"}


def test_there_and_back_again(ours, tmp_path):
    """etcdfast -> etcd -> etcdfast, by the tool and by a start alone: one member all the time."""
    data_dir, held, _ = ours
    assert migrate(data_dir, "etcd", "--output-dir", tmp_path / "data").code == 0
    with EtcdServer(directory=tmp_path) as etcd:
        etcdctl(etcd.endpoint, "put", "written by", "etcd")
        hashed = hash_of(etcd.endpoint)
        etcd.stop()
    shutil.copytree(tmp_path / "data", tmp_path / "untouched" / "data")
    checked = migrate(tmp_path / "data", "etcdfast", "--dry-run")
    assert checked.code == 0, checked.err
    assert "member 8e9e05c52164694d of cluster cdf818194e3a8c32: log and database are sound" in checked.out
    assert (tmp_path / "data" / "member" / "snap" / "db").exists()
    done = migrate(tmp_path / "data", "etcdfast")
    assert done.code == 0, done.err
    assert done.out.startswith(checked.out) and "imported: start etcdfast with --data-dir" in done.out
    assert sorted(os.listdir(tmp_path / "data" / "member" / "snap"))[-1] == "db.imported"
    assert migrate(tmp_path / "data", "etcdfast").out.endswith("of etcdfast already: nothing to do\n")
    for directory in (tmp_path, tmp_path / "untouched"):
        with EtcdfastServer(directory=directory) as server:
            assert everything(server.endpoint).keys() == {*held, b"written by"}
            assert hash_of(server.endpoint) == hashed
            assert "8e9e05c52164694d, started, default" in etcdctl(server.endpoint, "member", "list")


def test_the_log_behind_the_store_goes_along(ours, tmp_path):
    """A member that was killed: what apply had not yet on disk comes out of the log."""
    with EtcdfastServer(directory=tmp_path / "a") as server:
        for i in range(20):
            etcdctl(server.endpoint, "put", f"k{i}", f"v{i}")
        server.stop()
        server.start()
        for i in range(20, 30):
            etcdctl(server.endpoint, "put", f"k{i}", f"v{i}")
        held, hashed = everything(server.endpoint), hash_of(server.endpoint)
        server.kill9()
    done = migrate(tmp_path / "a" / "data", "etcd", "--output-dir", tmp_path / "b" / "data")
    assert done.code == 0, done.err
    assert "0 entries behind it" not in done.out
    with EtcdServer(directory=tmp_path / "b") as etcd:
        assert everything(etcd.endpoint) == held
        assert hash_of(etcd.endpoint) == hashed


@pytest.mark.parametrize("version", ["3.4", "3.6", "3.7"])
def test_other_releases(version, ours, tmp_path):
    done = migrate(ours[0], "etcd", "--output-dir", tmp_path / "data", "--target-version", version)
    assert done.code == 0, done.err
    buckets = boltread.buckets(tmp_path / "data" / "member" / "snap" / "db")
    assert buckets[b"cluster"][b"clusterVersion"] == f"{version}.0".encode()
    stored = buckets[b"meta"].get(b"storageVersion")
    assert stored == (f"{version}.0".encode() if version >= "3.6" else None)
    snap_dir = tmp_path / "data" / "member" / "snap"
    (name,) = snapfile.names(snap_dir)
    data, conf_state, index, _ = snapfile.read(snap_dir, name)
    members, removed, cluster_version = snapfile.decode_members(data)
    assert [member[0] for member in members] == list(conf_state.voters) and cluster_version == f"{version}.0"
    assert int.from_bytes(buckets[b"meta"][b"consistent_index"], "big") == index
    log = wal.read(tmp_path / "data" / "member" / "wal", snapfile.position(name)[::-1])
    assert log.state[2] >= index


def test_a_cluster_of_several_keeps_its_version_unless_forced(tmp_path):
    path = tmp_path / "db"
    with bbolt.Writer(path) as writer:
        writer.bucket(b"cluster", [(b"clusterVersion", b"3.7.0"), (b"downgrade", b"{}")])
        writer.bucket(b"members", [(b"%x" % i, b'{"id":%d,"peerURLs":["http://h:%d"]}' % (i, i)) for i in (1, 2)])
        writer.bucket(b"meta", [(b"storageVersion", b"3.7.0")])
        writer.finish()
    with bbolt.Reader(path) as reader:
        with pytest.raises(UtlError, match="cluster of 2 members is at version 3.7.0, above 3.5"):
            _settle_version(reader, "3.5", force=False)
        members, replaced = _settle_version(reader, "3.5", force=True)
        assert (members.cluster_version, replaced[b"cluster"]) == ("3.5.0", {b"clusterVersion": b"3.5.0"})
        assert replaced[b"meta"] == {}
        members, replaced = _settle_version(reader, "3.7", force=False)
        assert members.cluster_version == "3.7.0" and replaced[b"meta"] == {b"storageVersion": b"3.7.0"}


def test_a_member_that_runs_is_refused(tmp_path):
    with EtcdfastServer(directory=tmp_path / "a") as server:
        done = migrate(server.data_dir, "etcd")
        assert done.code == 1 and "is in use by an etcdfast member (process " in done.err
    with EtcdServer(directory=tmp_path / "b") as etcd:
        done = migrate(etcd.data_dir, "etcdfast")
        assert done.code == 1 and "a running etcd has this database open: stop it first" in done.err
    assert not (tmp_path / "a" / "data.etcd").exists()


def test_damage_is_named_before_anything_is_changed(source, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(source.data_dir, data)
    db = data / "member" / "snap" / "db"
    content = bytearray(db.read_bytes())
    with bbolt.Reader(db) as reader:
        content[reader._file.root * 4096 + 8] = 0
    db.write_bytes(content)
    done = migrate(data, "etcdfast")
    assert done.code == 1 and "integrity check failed" in done.err and "wrong type" in done.err
    shutil.copy(source.data_dir / "member" / "snap" / "db", db)
    segment = wal.list_segments(data / "member" / "wal")[-1].path
    with open(segment, "r+b") as file:
        file.seek(100)
        file.write(b"\xff\xff\xff")
    done = migrate(data, "etcdfast")
    assert done.code == 1 and f"write-ahead log is damaged: {segment}" in done.err
    assert not (data / "member" / "store").exists()


def test_what_is_typed_wrong(tmp_path, ours):
    done = utl("migrate", "--target", "etcd")
    assert done.code == 1 and 'required flag(s) "data-dir" not set' in done.err
    done = migrate(tmp_path, "mongodb")
    assert done.code == 1 and "expected etcd or etcdfast" in done.err
    done = migrate(tmp_path, "etcd")
    assert done.code == 1 and "is no data directory" in done.err
    (tmp_path / "member").mkdir()
    done = migrate(tmp_path, "etcd")
    assert done.code == 1 and "holds neither a database of etcd" in done.err
    done = migrate(ours[0], "etcd", "--output-dir", tmp_path)
    assert done.code == 1 and "not empty" in done.err
    done = migrate(ours[0], "etcd", "--target-version", "2.3")
    assert done.code == 1 and "expected one of 3.4, 3.5, 3.6, 3.7" in done.err
    done = utl("migrate", ours[0], "--target", "etcd")
    assert done.code == 128 and "takes no arguments" in done.err
