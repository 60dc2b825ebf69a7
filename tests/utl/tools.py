"""The tool under test as a process, and etcd data to use it on."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

from etcdfast.utl import cli
from tests.harness import pb
from tests.harness.rpc import Client
from tests.harness.servers import ETCDCTL, EtcdServer

Done = namedtuple("Done", "code out err")
# snapshot: file of `etcdctl snapshot save`; database: the db of the data directory after a stop; hashes: {revision:
# (hash, compact revision)} of HashKV; revision: the last one; data_dir: of the stopped etcd
Source = namedtuple("Source", "snapshot database hashes revision data_dir")


def utl(*arguments: object, cwd: Path | None = None) -> Done:
    """Run etcdfastutl, in this process: a start of Python for each of a hundred runs is half a minute."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(cwd or "."):
        code = cli.main([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def utl_process(*arguments: object, **settings: object) -> subprocess.Popen[str]:
    """The tool as a process of its own, as users have it."""
    return subprocess.Popen(
        [sys.executable, "-m", "etcdfast.utl", *map(str, arguments)],
        text=True, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, **settings,
    )  # fmt: skip


def etcdctl(endpoint: str, *arguments: object) -> str:
    run = subprocess.run(
        [ETCDCTL, "--endpoints", endpoint, *map(str, arguments)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def fill(endpoint: str, users: bool = True) -> None:
    """Keys with history, deleted ones, large ones, leases, users, a compaction: something in every bucket."""
    with Client(endpoint) as client:

        def do(method, request):
            reply = client.call(method, request, timeout_seconds=10)
            assert reply.ok, reply
            return reply.message

        lease = do("LeaseGrant", pb.LeaseGrantRequest(TTL=10_000)).ID
        for i in range(300):
            do("Put", pb.PutRequest(key=b"key%d" % (i % 120), value=b"v" * (i * 7)))
        for i in range(0, 120, 5):
            do("DeleteRange", pb.DeleteRangeRequest(key=b"key%d" % i))
        do("Put", pb.PutRequest(key=b"large", value=bytes(range(256)) * 400, lease=lease))
        status = do("Put", pb.PutRequest(key=b"last before compaction", value=b"x")).header.revision
        do("Compact", pb.CompactionRequest(revision=status - 20, physical=True))
        for i in range(60):
            do("Put", pb.PutRequest(key=b"key%d" % i, value=b"again"))
        do("DeleteRange", pb.DeleteRangeRequest(key=b"key1", range_end=b"key2"))
    if not users:  # etcdfast has no users yet
        return
    etcdctl(endpoint, "user", "add", "alice:secret")
    etcdctl(endpoint, "role", "add", "reader")
    etcdctl(endpoint, "role", "grant-permission", "reader", "read", "a", "b")
    etcdctl(endpoint, "user", "grant-role", "alice", "reader")


def make_source(directory: Path) -> Source:
    """A real etcd that lived and stopped."""
    snapshot = directory / "snapshot.db"
    with EtcdServer(directory=directory / "etcd") as etcd:
        fill(etcd.endpoint)
        hashes = {}
        with Client(etcd.endpoint) as client:
            current = client.call("HashKV", pb.HashKVRequest()).message
            compacted = current.compact_revision
            for revision in (0, compacted + 1, compacted + 10, compacted + 30, current.header.revision):
                reply = client.call("HashKV", pb.HashKVRequest(revision=revision)).message
                hashes[revision] = reply.hash, reply.compact_revision
        etcdctl(etcd.endpoint, "snapshot", "save", snapshot)
        etcd.stop()
        database = directory / "stopped.db"
        shutil.copy(etcd.data_dir / "member" / "snap" / "db", database)
        return Source(snapshot, database, hashes, current.header.revision, etcd.data_dir)


def everything(endpoint: str) -> dict[bytes, tuple[bytes, int, int, int]]:
    """{key: (value, create revision, mod revision, version)} of all keys."""
    with Client(endpoint) as client:
        reply = client.call("Range", pb.RangeRequest(key=b"\0", range_end=b"\0"), timeout_seconds=20)
        assert reply.ok, reply
        return {kv.key: (kv.value, kv.create_revision, kv.mod_revision, kv.version) for kv in reply.message.kvs}
