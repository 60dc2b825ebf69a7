"""A real etcd replays the target's write-ahead log, entry by entry, and comes to the same store.

The log is read from the stopped member, written again with the one kind of entry that etcd 3.5.1
would refuse made to suit it, and given to a fresh etcd that has nothing but this log.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from etcdfast.api.pb.raft_internal_pb2 import InternalRaftRequest
from etcdfast.formats import wal
from tests.harness import Client, EtcdServer, pb, target_server

from .generator import State, call_at
from .known_differences import ranges_of
from .test_random_calls import SEED_VARIABLE

CALLS = 2500
_NORMAL = 0  # raftpb.EntryType
_REFERENCE_CLUSTER_VERSION = "3.5.0"  # a member refuses to run in a cluster newer than itself


def _write_history(client: Client, seed: int) -> None:
    state = State()
    for index in range(CALLS):
        call = call_at(seed, index, state)
        if call.method in ("Range", "HashKV") or _replays_otherwise(call.method, call.request):
            continue
        reply = client.call(call.method, call.request)
        if reply.ok:
            compacted = call.request.revision if call.method == "Compact" else state.compacted
            state = State(max(state.current, reply.message.header.revision), compacted)


def _replays_otherwise(method: str, request: Any) -> bool:
    """Whether etcd 3.5.1 itself may come to another result when it replays this from its log.

    Where nobody waits for the answer it drops the reads of a txn before it checks them; a txn that a
    read of a compacted or future revision had made fail is then carried out (seen live 2026-11-20).
    """
    return method == "Txn" and any(read.revision for read in ranges_of(request))


def _for_the_reference(data: bytes) -> bytes:
    """An entry's data, with a cluster version that etcd 3.5.1 can live with."""
    try:
        request = InternalRaftRequest.FromString(data)
    except DecodeError:
        return data  # a request of the v2 API, as 3.5 still writes for member attributes
    if not request.HasField("cluster_version_set"):
        return data
    request.cluster_version_set.ver = _REFERENCE_CLUSTER_VERSION
    return request.SerializeToString()


def _rewrite(source: Path, destination: Path) -> int:
    """Copy a log entry by entry; returns the number of entries."""
    log = wal.read(source)
    destination.parent.mkdir(parents=True)
    copy = wal.create(destination, log.metadata)
    try:
        for number in range(len(log.entries)):
            kind, term, index, data = log.entries.entry(number)
            if kind == _NORMAL and data:
                data = _for_the_reference(data)
            copy.append_entry(kind, term, index, data or b"")
        copy.append_state(*log.state)
        copy.flush()
    finally:
        copy.close()
    return len(log.entries)


def _image(client: Client) -> tuple[list[int], list[tuple[int, int]], list[object]]:
    """Revision, hashes at several revisions, and every key."""
    everything = client.get(b"\x00", b"\x00")
    current = everything.header.revision
    newest = client.hashkv()
    compacted = max(newest.compact_revision, 1)
    hashes = [
        (answer.hash, answer.compact_revision)
        for answer in (client.hashkv(revision) for revision in range(compacted + 1, current, 97))
    ]
    return [current, newest.hash, newest.compact_revision], hashes, list(everything.kvs)


def test_real_etcd_replays_the_log_to_the_same_store(tmp_path: Path) -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"seed {seed} ({SEED_VARIABLE}={seed})")
    with target_server(directory=tmp_path / "source") as server:
        with server.client() as client:
            _write_history(client, seed)
            # What etcd removes in the background must be gone on both sides before hashes are compared.
            newest = client.hashkv()
            revision = max(newest.compact_revision, newest.header.revision - 100)
            client.call("Compact", pb.CompactionRequest(revision=revision, physical=True))
            left = _image(client)
        server.stop()
    replica = EtcdServer(directory=tmp_path / "replica")
    entries = _rewrite(server.data_dir / "member" / "wal", replica.data_dir / "member" / "wal")
    assert entries > CALLS // 3
    with replica, replica.client() as client:
        client.call("Compact", pb.CompactionRequest(revision=1, physical=True))
        assert _image(client) == left
