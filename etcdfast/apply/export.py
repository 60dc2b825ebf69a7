"""A store as a bbolt file, byte for byte what etcd's backend would hold: run as a process of its own.

    python -m etcdfast.apply.export '{"store": ..., "path": ..., "parent": <pid>, ...}'

`store` is a folder that nobody writes (apply/checkpoint.py), `path` the file to make. One line of JSON on
standard output is the result: {"index", "term", "bytes", "revision", "version"[, "sha256"]}, or {"error"}.
It runs when the member has time to spare, and ends with its parent.

Source: reference/formats.md section 6.
"""

import json
import os
import sys
from itertools import islice

from etcdfast._ext.mvcc import StoreCorrupt
from etcdfast.apply import buckets
from etcdfast.apply.store import Store, StoreError
from etcdfast.formats import bbolt

LEASE_BYTE = buckets.LEASE[0]
# Disk space that a file nobody needs for long must leave to the write-ahead log: two segments.
RESERVE_BYTES = 128 << 20
SPACE_CHECK_BYTES = 16 << 20
BATCH_ITEMS = 1024
# Not 19: on a machine that is busy with writes a million keys would take half a minute, and whoever waits may be a
# member that has to catch up.
NICE = 10


class ExportError(Exception):
    """One line: why there is no file."""


def export(store_path, path, conf_state=None, reserve_bytes=RESERVE_BYTES):
    """Write the store into a new bbolt file; returns the result without the hash.

    conf_state: {"voters": [...], "learners": [...]} when it is known better than the store has it.
    Errors: ExportError, StoreError, StoreCorrupt, OSError.
    """
    store = Store(store_path, read_only=True)
    revision, index, term = store.applied()
    with bbolt.Writer(path) as writer:
        others, leases = _copy_revisions(store, writer, _SpaceGuard(path, reserve_bytes))
        version = _storage_version(others)
        # A new store of etcd's has it, as its first change; ours counts from there without it.
        others.setdefault(buckets.AUTH_REVISION, (1).to_bytes(8, "big"))
        others.update(_meta(others, index, term, version, conf_state))
        _copy_others(others, leases, writer)
        # Not synced: it lives in the page cache for as long as somebody reads it, and syncing would hold up the log.
        size = writer.finish(sync=False)
    return {"index": index, "term": term, "bytes": size, "revision": revision, "version": version}


def _copy_revisions(store, writer, guard):
    """Bucket `key`, in one pass over the store.

    Returns the other buckets' records, prefixed key -> value, and the leases: there may be a million, so each is one
    object, its id before its value.
    """
    others, leases = {}, []
    items, last_key = store.records()
    last = None
    writer.begin_bucket(b"key")
    while batch := list(islice(items, BATCH_ITEMS)):
        guard.look(sum(len(value) for _, value in batch))
        if writer.put_revisions(batch) < len(batch):
            for key, value in batch:
                if key[9] == 0xFE:
                    if key[10] == LEASE_BYTE:
                        leases.append(key[11:] + value)
                    else:
                        others[key[10:]] = value
        last = batch[-1][0]
    writer.end_bucket()
    if last != last_key:
        raise StoreCorrupt(f"store is damaged behind key {last.hex() if last is not None else None}")
    return others, leases


def _copy_others(others, leases, writer):
    """The other buckets, the empty ones too, each in the order of its keys."""
    by_bucket = {prefix: [] for prefix in buckets.NAMES.values()}
    for key, value in others.items():
        by_bucket[key[:1]].append((key[1:], value))
    leases.sort()
    for name, prefix in buckets.NAMES.items():
        if prefix == buckets.LEASE:
            writer.bucket(name, ((lease[:8], lease[8:]) for lease in leases))
        elif prefix != buckets.KEY:
            writer.bucket(name, sorted(by_bucket[prefix]))


def _meta(others, index, term, version, conf_state):
    """What etcd keeps in bucket meta beside the compaction marks."""
    found = {buckets.META + b"consistent_index": index.to_bytes(8, "big")}
    if term:
        found[buckets.META + b"term"] = term.to_bytes(8, "big")
    found[buckets.CONF_STATE] = _conf_state(others, conf_state)
    others.pop(buckets.STORAGE_VERSION, None)
    if version and tuple(map(int, version.split("."))) >= (3, 6):
        found[buckets.STORAGE_VERSION] = version.encode()
    return found


def _conf_state(others, given):
    """In etcd's form. The members say it: what the store has may be of another cluster, after a restore by etcdutl,
    and one taken over from etcd 3.4 has none."""
    if given is None:
        members = [json.loads(value) for key, value in sorted(others.items()) if key[:1] == buckets.MEMBERS]
        given = {
            "voters": [member["id"] for member in members if not member.get("isLearner")],
            "learners": [member["id"] for member in members if member.get("isLearner")],
        }
    state = {"voters": sorted(given["voters"])}
    if given.get("learners"):
        state["learners"] = sorted(given["learners"])
    state["auto_leave"] = False
    return json.dumps(state, separators=(",", ":")).encode()


def _storage_version(others):
    """The schema that the file is in, as text: that of the cluster's version."""
    cluster = others.get(buckets.CLUSTER_VERSION, b"").decode()
    numbers = cluster.split(".")
    return f"{numbers[0]}.{numbers[1]}.0" if len(numbers) == 3 else ""


class _SpaceGuard:
    """Stops an export before it takes the disk space that the log needs."""

    def __init__(self, path, reserve_bytes):
        self._folder = os.path.dirname(path)
        self._reserve = reserve_bytes
        self._left = 0

    def look(self, size):
        """`size` bytes more are about to be written. Errors: ExportError."""
        self._left -= size
        if self._left < 0:
            self._left = SPACE_CHECK_BYTES
            space = os.statvfs(self._folder)
            if space.f_bavail * space.f_frsize < self._reserve:
                raise ExportError(f"less than {self._reserve >> 20} MiB of disk space are left in {self._folder}")


def _sha256_of(path, size):
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return bbolt.digest_of(fd, size).hex()
    finally:
        os.close(fd)


def main(arguments):
    from etcdfast._ext import proc

    asked = json.loads(arguments[0])
    if not proc.die_with_parent(asked["parent"]):
        return 1
    proc.set_name("etcdfast-export")
    proc.stand_back(NICE)
    path = asked["path"]
    try:
        result = export(asked["store"], path, asked.get("conf_state"), asked.get("reserve_bytes", RESERVE_BYTES))
        if asked.get("sha256"):
            result["sha256"] = _sha256_of(path, result["bytes"])
    except (ExportError, StoreError, StoreCorrupt) as err:
        result = {"error": str(err)}
    except OSError as err:
        result = {"error": f"cannot write {path}: {err.strerror or err}"}
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)
