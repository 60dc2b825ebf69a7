"""etcd's backend, the buckets within a bbolt database: what the tools and an import need to know of them.

Source: formats.md sections 6 and 9.5.
"""

import json
from collections import namedtuple

from etcdfast._ext import crc32c, wire

# hash: CRC-32C; compact_revision: -1 when nothing was ever compacted
HashKV = namedtuple("HashKV", "hash hash_revision compact_revision")

_REVISION_BYTES = 17
_HEAD_BYTES = 8


class RevisionError(Exception):
    """The wanted revision is not in the file; the text is etcd's."""


def revision_key(main, sub=0):
    return main.to_bytes(8, "big") + b"_" + sub.to_bytes(8, "big")


def main_revision(key):
    """The main revision of a key of bucket `key`."""
    return int.from_bytes(key[:_HEAD_BYTES], "big", signed=True)


def conf_state_json(voters, learners=()):
    """meta/confState: who votes, as etcd writes it."""
    state = {"voters": sorted(voters)}
    if learners:
        state["learners"] = sorted(learners)
    state["auto_leave"] = False
    return json.dumps(state, separators=(",", ":")).encode()


def compacted_revision(reader):
    """The revision up to which the file is compacted, -1 for never.

    A compaction that was only begun counts: etcd resumes it before it answers anything.
    """
    marks = (reader.get(b"meta", name) for name in (b"scheduledCompactRev", b"finishedCompactRev"))
    return max((main_revision(mark) for mark in marks if mark and len(mark) >= _HEAD_BYTES), default=-1)


def hash_kv(reader, revision=0):
    """HashKV of a file at `revision` (0: its current one), equal to what a member with this database answers.

    Holds the keys of the items at or below the compacted revision in memory. Errors: RevisionError, BoltError.
    """
    compacted = compacted_revision(reader)
    status = reader.status()
    current = max(1, compacted, status.revision)
    at = revision or current
    if at < compacted:
        raise RevisionError("required revision has been compacted")
    if at > current:
        raise RevisionError("required revision is a future revision")
    outdated = _outdated(reader, at, compacted) if compacted >= 0 else set()
    crc = crc32c.update(0, b"key")
    for key, value in _items_up_to(reader, at):
        if key not in outdated:
            crc = crc32c.update(crc32c.update(crc, key), value)
    return HashKV(crc, at, compacted)


def _items_up_to(reader, at):
    end = revision_key(at + 1)
    for batch in reader.batches(b"key"):
        if batch[-1][0] < end:
            yield from batch
        else:
            yield from (item for item in batch if item[0] < end)
            return


def _outdated(reader, at, compacted):
    """Keys of items at or below `compacted` that are not what a reader at `at` would see, as HashKV leaves them out.

    Nothing but a tombstone of that very revision is left out when no key is alive at `at`.
    """
    end = revision_key(compacted + 1)
    newest = {}  # of the keys that have an item below `end`: its newest item's key up to `at`
    old = set()
    at_mark = set()
    last = b""
    for key, value in _items_up_to(reader, at):
        last = key
        if key < end:
            old.add(key)
            newest[_user_key(value)] = key
            if _is_tombstone(key) and main_revision(key) == compacted:
                at_mark.add(key)
        elif (user_key := _user_key(value)) in newest:
            newest[user_key] = key
    kept = {key for key in newest.values() if not _is_tombstone(key)}
    if kept or (last and not _is_tombstone(last)) or _any_alive(reader, at):
        return (old - kept) | at_mark
    return at_mark


def _any_alive(reader, at):
    alive = set()
    for key, value in _items_up_to(reader, at):
        (alive.discard if _is_tombstone(key) else alive.add)(_user_key(value))
    return bool(alive)


def _is_tombstone(key):
    return len(key) > _REVISION_BYTES


def _user_key(value):
    """Field 1 of a KeyValue: its first bytes, as a rule."""
    if value[:1] == b"\x0a" and value[1] < 0x80:
        return value[2 : 2 + value[1]]
    return next((data for number, _, data in wire.fields(value) if number == 1), b"")
