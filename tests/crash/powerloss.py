"""A power cut for a data directory: after kill -9, take back what was written but never synced.

`kill -9` alone cannot find a missing fsync, since the page cache outlives the process. The library in
powerloss.c journals writes and syncs; `cut` then leaves of the unsynced writes what a disk may have
kept: nothing, everything, or any part in sectors of 512 bytes. Names (create, rename, unlink) and
truncations are taken as durable at once, which is what a journalling file system comes to in practice.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("powerloss.c")
SECTOR_BYTES = 512
_HEAD = struct.Struct("<cQqQqII")


@dataclass(slots=True)
class _Write:
    id: int
    offset: int
    size: int
    size_before: int  # of the file
    old: bytes
    done: bool = False


@dataclass(slots=True)
class Cut:
    """What a power cut found and did."""

    synced: int = 0
    unsynced: int = 0
    taken_back_bytes: int = 0


def build(directory: Path) -> Path:
    """Compile the library into `directory`."""
    library = directory / "powerloss.so"
    command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, str(SOURCE), "-o", str(library), "-ldl", "-pthread"], check=True)
    return library


def environment(library: Path, followed: Path, journal: Path) -> dict[str, str]:
    """What to set for a server whose files below `followed` are to be journalled."""
    return {
        "LD_PRELOAD": str(library),
        "POWERLOSS_DIR": f"{followed.resolve()}{os.sep}",
        "POWERLOSS_JOURNAL": str(journal.resolve()),
    }


def cut(journal: Path, rng: random.Random, keep: float | None = None) -> Cut:
    """Take back unsynced writes of all processes of the last run, and remove their journals.

    `keep` is the chance of a written sector to have reached the disk; drawn when None.
    """
    result = Cut()
    if keep is None:
        keep = rng.choice((0.0, 0.0, 0.5, rng.random(), 1.0))
    for path in sorted(journal.parent.glob(f"{journal.name}.*")):
        _cut_one(path.read_bytes(), rng, keep, result)
        path.unlink()
    return result


def _cut_one(data: bytes, rng: random.Random, keep: float, result: Cut) -> None:
    pending: dict[str, list[_Write]] = {}
    syncs: dict[int, set[int]] = {}  # sync under way -> writes it will make durable
    at = 0
    while at + _HEAD.size <= len(data):
        kind, id, a, b, size, path_bytes, old_bytes = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        path = data[at : at + path_bytes].decode()
        old = data[at + path_bytes : at + path_bytes + old_bytes]
        at += path_bytes + old_bytes
        writes = pending.setdefault(path, [])
        if kind == b"W":
            writes.append(_Write(id, a, b, size, old))
        elif kind == b"D":
            for write in writes:
                write.done |= write.id == id
        elif kind == b"B":
            syncs[id] = {write.id for write in writes if write.done}
        elif kind == b"E":
            covered = syncs.pop(id)
            result.synced += len(covered)
            pending[path] = [write for write in writes if write.id not in covered]
        elif kind == b"T":
            pending[path] = [write for write in writes if write.offset < a]
        elif kind == b"R":
            pending[old.decode()] = pending.pop(path)
        elif kind == b"U":
            del pending[path]
    for path, writes in pending.items():
        if writes and os.path.exists(path):
            result.unsynced += len(writes)
            result.taken_back_bytes += _take_back(path, writes, rng, keep)


def _take_back(path: str, writes: list[_Write], rng: random.Random, keep: float) -> int:
    """Undo, newest first, sector by sector; sectors that were beyond the old end become zeros."""
    lost = 0
    whole = os.path.getsize(path)
    with open(path, "r+b") as file:
        for write in reversed(writes):
            end = min(write.offset + write.size, whole)
            for start in range(write.offset, end, SECTOR_BYTES):
                if keep and rng.random() < keep:
                    continue
                size = min(SECTOR_BYTES, end - start)
                before = write.old[start - write.offset : start - write.offset + size]
                file.seek(start)
                file.write(before + bytes(size - len(before)))
                lost += size
        # Without any of its appended bytes a file also lacks the length they gave it.
        if not keep:
            shortest = min(write.size_before for write in writes)
            if shortest < whole and all(write.offset >= write.size_before for write in writes):
                file.truncate(max(shortest, 0))
    return lost
