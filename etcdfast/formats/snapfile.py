"""`.snap` files: a raft snapshot on disk, one per point from which the log before it was let go.

The content is one snappb.snapshot {crc, data}; data is a raftpb.Snapshot whose own data is the membership as a
v2 store in JSON (formats.md 8.4). Keys and values are not in it: they are in the store. etcd up to 3.6 needs the
file to open a data directory whose WAL does not reach back to index 1.
"""

import json
import os
import re
import time

from etcdfast._ext import crc32c
from etcdfast.formats import gojson
from etcdfast.formats.raftpb import (
    RaftMessageError,
    decode_snapshot,
    encode_snapshot,
    put_bytes,
    put_uint,
    read_fields,
)

_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.snap")
_DATABASE = re.compile(r"[0-9a-f]{16}\.snap\.db")
FILE_BYTES_MAX = 64 << 20  # membership only: far more is no file of ours


class SnapFileError(Exception):
    """A snapshot file that cannot be read; the text names the file."""


def file_name(term, index):
    return f"{term:016x}-{index:016x}.snap"


def encode(data, conf_state, index, term):
    """The bytes of a snapshot file."""
    snapshot = encode_snapshot(data, conf_state, index, term)
    return put_uint(1, crc32c.update(0, snapshot)) + put_bytes(2, snapshot)


def decode(content):
    """(data, ConfState, index, term). Errors: RaftMessageError when checksum or message are wrong."""
    found = read_fields(content, {1: int, 2: bytes})
    if not found[1] or not found[2] or not found[1][-1] or not found[2][-1]:
        raise RaftMessageError("empty snapshot")
    if crc32c.update(0, found[2][-1]) != found[1][-1]:
        raise RaftMessageError("checksum does not match")
    return decode_snapshot(found[2][-1])


def write(directory, data, conf_state, index, term, took=None):
    """Write one snapshot file, durable when this returns: file and directory are synced. Errors: OSError.

    took(nanoseconds of encoding, of the file's sync, of all) is told how long it took.
    """
    began = encoded = time.monotonic_ns()
    path = os.path.join(directory, file_name(term, index))
    temporary = os.path.join(directory, f"tmp{os.getpid()}.snap")  # etcd deletes `tmp*` at start
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        content = memoryview(encode(data, conf_state, index, term))
        encoded = time.monotonic_ns()
        while content:
            content = content[os.write(fd, content) :]
        syncing = time.monotonic_ns()
        os.fsync(fd)
        synced = time.monotonic_ns()
    finally:
        os.close(fd)
    os.replace(temporary, path)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    if took is not None:
        took(encoded - began, synced - syncing, time.monotonic_ns() - began)
    return path


def names(directory):
    """Names of the snapshot files, newest first (by term, then index, as their names sort)."""
    return sorted((name for name in os.listdir(directory) if _NAME.fullmatch(name)), reverse=True)


def position(name):
    """(term, index) of a snapshot file's name."""
    return int(name[:16], 16), int(name[17:33], 16)


def read(directory, name):
    """(data, ConfState, index, term) of one file. Errors: SnapFileError."""
    path = os.path.join(directory, name)
    try:
        if os.path.getsize(path) > FILE_BYTES_MAX:
            raise SnapFileError(f"snapshot file {path}: larger than {FILE_BYTES_MAX} bytes")
        with open(path, "rb") as file:
            return decode(file.read())
    except (OSError, RaftMessageError) as err:
        raise SnapFileError(f"snapshot file {path}: {err}") from None


def set_aside(directory, name):
    """Rename a file that cannot be read, as etcd does, so that the next start does not try it again."""
    path = os.path.join(directory, name)
    os.replace(path, path + ".broken")


def database_name(index):
    """Name of the database that came with a snapshot from a leader."""
    return f"{index:016x}.snap.db"


def remove(directory, name):
    """Remove one snapshot file and the database that came with it. Errors: OSError."""
    for each in (name, database_name(position(name)[1])):
        try:
            os.unlink(os.path.join(directory, each))
        except FileNotFoundError:
            pass


def purge(directory, keep, index=0):
    """Remove all but the `keep` newest snapshot files (0: keep all), and databases that came with snapshots before
    `index`. Errors: OSError."""
    gone = names(directory)[keep:] if keep else []
    gone += [name for name in os.listdir(directory) if _DATABASE.fullmatch(name) and int(name[:16], 16) < index]
    for name in gone:
        try:
            os.unlink(os.path.join(directory, name))
        except FileNotFoundError:  # an import that is through with it removes it too
            pass


# ---- membership as a v2 store ---------------------------------------------------------------------


def _folder(path, children):
    return {"Path": path, "Value": "", "Children": children}


def _leaf(path, value):
    return {"Path": path, "Value": value}


def encode_members(members, removed=(), cluster_version=None):
    """Membership as the smallest v2 store that etcd up to 3.5 takes.

    Shapes: members is [(id, peer urls, name, client urls, is learner)]; a name of "" is a member that never
    started. removed is member ids.
    """
    children = {}
    for member_id, peer_urls, name, client_urls, is_learner in members:
        path = f"/0/members/{member_id:x}"
        raft = {"peerURLs": list(peer_urls)}
        if is_learner:
            raft["isLearner"] = True
        nodes = {"raftAttributes": _leaf(f"{path}/raftAttributes", gojson.dumps(raft))}
        if name or client_urls:
            attributes = {"name": name, "clientURLs": list(client_urls)}
            nodes["attributes"] = _leaf(f"{path}/attributes", gojson.dumps(attributes))
        children[f"{member_id:x}"] = _folder(path, nodes)
    zero = {"members": _folder("/0/members", children)}
    if removed:
        path = "/0/removed_members"
        zero["removed_members"] = _folder(path, {f"{m:x}": _leaf(f"{path}/{m:x}", "") for m in removed})
    if cluster_version:
        zero["version"] = _leaf("/0/version", cluster_version)
    root = _folder("/", {"0": _folder("/0", zero), "1": _folder("/1", {})})
    return gojson.dumps({"Root": root, "CurrentIndex": 1, "CurrentVersion": 2}).encode()


def decode_members(data):
    """(members, removed, cluster version or None) as `encode_members` takes them.

    Errors: SnapFileError when the bytes are no v2 store.
    """
    try:
        zero = json.loads(data)["Root"]["Children"]["0"]["Children"]
        members = []
        for text, folder in (zero.get("members") or {"Children": {}})["Children"].items():
            nodes = folder["Children"]
            raft = json.loads(nodes["raftAttributes"]["Value"])
            attributes = json.loads(nodes["attributes"]["Value"]) if "attributes" in nodes else {}
            members.append(
                (
                    int(text, 16),
                    tuple(raft.get("peerURLs") or ()),
                    str(attributes.get("name") or ""),
                    tuple(attributes.get("clientURLs") or ()),
                    bool(raft.get("isLearner", False)),
                )
            )
        removed = tuple(int(text, 16) for text in (zero.get("removed_members") or {}).get("Children") or ())
        version = (zero.get("version") or {}).get("Value")
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise SnapFileError(f"membership in a snapshot cannot be read: {err!r}") from None
    return sorted(members), removed, version
