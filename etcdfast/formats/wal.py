"""The write-ahead log directory: create, read at start-up, repair a torn tail, open for append.

The records are read in Cython (`_ext.walscan`); this module chooses files, locks them and names what is wrong.
Source: reference/formats.md section 1. To look into a log: `python -m etcdfast.formats.wal DIR`.
"""

import fcntl
import mmap
import os
import re
import shutil
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from etcdfast._ext import walrec, walscan
from etcdfast._ext.walio import Wal
from etcdfast._ext.walops import FaultPlan

SEGMENT_BYTES = 64_000_000
FAULTS_VARIABLE = "ETCDFAST_WAL_FAULTS"  # a FaultPlan spec, for tests of a whole member
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.wal")
_ZEROS = bytes(1 << 20)

# numpy dtype of EntryTable.rows()
ROW = [
    ("term", "<u8"),
    ("index", "<u8"),
    ("offset", "<u8"),
    ("data_bytes", "<u4"),
    ("segment", "<u4"),
    ("type", "<i4"),
    ("reserved", "<u4"),
]


class WalProblem(Exception):
    """A log that cannot be used as it is; the text is one line for the operator."""


class WalCorrupt(WalProblem):
    """Damage that is no torn tail. Attributes: path of the segment, offset in bytes, reason."""

    def __init__(self, path, offset, reason):
        super().__init__(f"write-ahead log is damaged: {path} at offset {offset}: {reason}")
        self.path, self.offset, self.reason = path, offset, reason


class WalLocked(WalProblem):
    """Another process holds the log."""


class WalMissing(WalProblem):
    """No log here, a segment is missing, or the wanted snapshot is not in the log."""


class Segment(NamedTuple):
    sequence: int
    index: int  # of the first entry expected in it
    path: str


@dataclass
class Log:
    """What reading a log gives.

    entries: EntryTable of the entries after the snapshot (rows point into mapped segments).
    state: (term, vote, commit). snapshots: (index, term, conf_state or None) of every record read.
    position: (offset in the last segment, crc, last index, last term), where the next record goes.
    repaired: path of the copy made before a torn tail was cut off, None if there was none.
    """

    metadata: bytes
    state: tuple[int, int, int]
    snapshots: list
    entries: walscan.EntryTable
    position: tuple[int, int, int, int]
    segments: list[Segment]  # those read; the last one is the open one
    released: list[Segment] = field(default_factory=list)  # older ones, not needed
    tail_is_zero: bool = True
    repaired: str | None = None

    @property
    def usable_snapshots(self):
        """Snapshot records that the last hard state's commit covers, as (index, term)."""
        return [(index, term) for index, term, _ in self.snapshots if index <= self.state[2]]


def exists(directory):
    """True when there is a log in `directory`."""
    return bool(list_segments(directory))


def list_segments(directory):
    """Every segment of the directory, ascending by sequence number; other names are not ours to judge."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match:
            found.append(Segment(int(match[1], 16), int(match[2], 16), os.path.join(directory, name)))
    return sorted(found)


def select_segments(segments, snapshot_index):
    """(older, wanted): wanted starts with the last segment that begins at or before the snapshot."""
    first = max((i for i, s in enumerate(segments) if s.index <= snapshot_index), default=None)
    if first is None:
        raise WalMissing(f"no write-ahead log segment begins at or before index {snapshot_index}")
    wanted = segments[first:]
    for before, after in zip(wanted, wanted[1:], strict=False):
        if after.sequence != before.sequence + 1:
            raise WalMissing(f"write-ahead log segment {before.sequence + 1:016x} is missing before {after.path}")
    return segments[:first], wanted


# ---- reading --------------------------------------------------------------------------------------


def read(directory, snapshot=(0, 0), *, durable_index=0):
    """Read the log after `snapshot` (index, term) without changing anything.

    durable_index: an index known to have been in the log (what apply has stored). A log that ends before it has
        lost records.
    Errors: WalCorrupt (a torn tail too: its reason is "torn"), WalMissing, OSError.
    """
    older, wanted = select_segments(list_segments(directory), snapshot[0])
    scan, code, path = _scan(wanted, snapshot[0])
    if code != walscan.END:
        raise WalCorrupt(path, scan.offset, walscan.describe(code))
    return _log(scan, older, wanted, snapshot, durable_index)


def _scan(wanted, snapshot_index):
    scan = walscan.LogScan(snapshot_index)
    code, path = walscan.END, wanted[0].path
    for segment in wanted:
        path = segment.path
        content = _map(path)
        code = scan.segment(content, segment is wanted[-1])
        if content:
            content.madvise(mmap.MADV_DONTNEED)  # walked to its last zero; only what is read again shall stay
        if code != walscan.END:
            break
    return scan, code, path


def _map(path):
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)


def _log(scan, older, wanted, snapshot, durable_index):
    path = wanted[-1].path
    if scan.metadata is None:
        raise WalCorrupt(path, scan.offset, "no metadata record")
    matches = [term for index, term, _ in scan.snapshots if index == snapshot[0]]
    if snapshot[1] not in matches:
        if matches:
            raise WalMissing(f"snapshot {snapshot[0]} has term {matches[-1]} in the write-ahead log, not {snapshot[1]}")
        raise WalMissing(f"snapshot {snapshot[0]} of term {snapshot[1]} is not in the write-ahead log")
    # Not the scan's own last: a record of a snapshot that was never fully received does not move the log's end.
    last_index, last_term = snapshot
    if len(scan.table):
        _, last_term, last_index, _ = scan.table.entry(len(scan.table) - 1)
    needed = max(scan.state[2], durable_index)
    if needed > last_index:
        raise WalCorrupt(path, scan.offset, f"log ends at index {last_index}, but {needed} had been committed")
    return Log(
        metadata=scan.metadata,
        state=scan.state,
        snapshots=scan.snapshots,
        entries=scan.table,
        position=(scan.offset, scan.crc, last_index, last_term),
        segments=wanted,
        released=older,
        tail_is_zero=_is_zero_from(path, scan.offset),
    )


def _is_zero_from(path, offset):
    """Nothing but zeros from `offset` to the end; read, not mapped: 64 MB would count as own memory."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while chunk := file.read(len(_ZEROS)):
            if chunk != _ZEROS[: len(chunk)]:
                return False
    return True


# ---- opening for append ---------------------------------------------------------------------------


def open_for_append(
    directory, snapshot=(0, 0), *, durable_index=0, segment_bytes=SEGMENT_BYTES, prewrite=True, faults=None, **settings
):
    """(Log, Wal): lock and read the log, repair a torn tail once, and open its end.

    settings: of `_ext.walio.Wal` (buffer_bytes, max_wals, spin_seconds, record_bytes_max).
    Errors: WalLocked, WalCorrupt, WalMissing, OSError.
    """
    faults = fault_plan(faults)
    older, wanted = select_segments(list_segments(directory), snapshot[0])
    descriptors = []
    try:
        for segment in wanted:
            descriptors.append(os.open(segment.path, os.O_RDWR | os.O_CLOEXEC))
            _lock(descriptors[-1], segment.path)
        scan, code, path = _scan(wanted, snapshot[0])
        repaired = None
        if code == walscan.TORN:
            offset = scan.offset
            scan = None  # unmap before the file shrinks
            repaired = _repair(directory, path, descriptors[-1], offset)
            scan, code, path = _scan(wanted, snapshot[0])
        if code != walscan.END:
            raise WalCorrupt(path, scan.offset, walscan.describe(code))
        log = _log(scan, older, wanted, snapshot, durable_index)
        log.repaired = repaired
        _extend(descriptors[-1], log, segment_bytes, prewrite)
        rows = [(s.sequence, s.index, -1) for s in older]
        rows += [(s.sequence, s.index, fd) for s, fd in zip(wanted, descriptors, strict=True)]
        descriptors = []  # the Wal's from here on, also when it fails to start
        return log, _wal(
            directory, rows, log.position, log.metadata, log.state, segment_bytes, prewrite, faults, settings
        )
    finally:
        for fd in descriptors:
            os.close(fd)


def fault_plan(faults):
    """A FaultPlan, its spec as text, or None; the tests of whole members hand it down by environment."""
    spec = os.environ.get(FAULTS_VARIABLE) if faults is None else faults
    return FaultPlan(spec) if isinstance(spec, str) and spec else faults


def _wal(directory, rows, position, metadata, state, segment_bytes, prewrite, faults, settings):
    return Wal(
        os.fspath(directory),
        rows,
        position,
        metadata,
        state,
        segment_bytes=segment_bytes,
        prewrite=prewrite,
        faults=faults,
        **settings,
    )


def _lock(fd, path):
    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(fd, _OFD_SETLK, whole)
    except (BlockingIOError, PermissionError):
        raise WalLocked(f"write-ahead log is in use by another process: {path}") from None


_OFD_SETLK = getattr(fcntl, "F_OFD_SETLK", 37)


def _repair(directory, path, fd, offset):
    """Keep a copy of a torn segment and cut it after its last whole frame. Returns the copy's path."""
    broken = path + ".broken"
    shutil.copyfile(path, broken)
    os.chmod(broken, 0o600)
    with open(broken, "rb") as copy:
        os.fsync(copy.fileno())
    os.ftruncate(fd, offset)
    os.fsync(fd)
    _sync_directory(directory)
    return broken


def _extend(fd, log, segment_bytes, prewrite):
    """Zeros from the log's end to the segment's: what follows the last record must never look like one. All is on disk
    when this returns."""
    end = log.position[0]
    size = os.fstat(fd).st_size
    if not log.tail_is_zero:
        os.ftruncate(fd, end)
        size = end
    if size < segment_bytes:
        _preallocate(fd, size, segment_bytes, prewrite)
    # In any case: what a killed process wrote and did not sync was read from the page cache, and is taken for durable
    # from here on.
    os.fsync(fd)


def _preallocate(fd, start, end, prewrite):
    os.posix_fallocate(fd, 0, end)
    while prewrite and start < end:
        start += os.pwrite(fd, _ZEROS[: min(len(_ZEROS), end - start)], start)


def _sync_directory(directory):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---- creating -------------------------------------------------------------------------------------


def create(directory, metadata, *, segment_bytes=SEGMENT_BYTES, prewrite=True, faults=None, **settings):
    """Make a new log at `directory` (which must not exist) and open it: returns the Wal.

    It is built beside its place and renamed, so a crash leaves no half a log; an earlier half is removed.
    metadata: marshalled etcdserverpb.Metadata {1: member id, 2: cluster id}.
    Errors: FileExistsError, OSError.
    """
    faults = fault_plan(faults)
    directory = os.fspath(directory)
    if os.path.lexists(directory) and os.listdir(directory):
        raise FileExistsError(f"write-ahead log directory exists: {directory}")
    building = directory + ".tmp"
    shutil.rmtree(building, ignore_errors=True)
    os.makedirs(building, mode=0o700)
    head = walrec.encode_crc(0)
    frame, crc = walrec.encode_record(0, 1, metadata)
    head += frame
    frame, crc = walrec.encode_snapshot(crc, 0, 0)
    head += frame
    fd = os.open(
        os.path.join(building, f"{0:016x}-{0:016x}.wal"), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
    )
    try:
        _lock(fd, building)
        _preallocate(fd, 0, segment_bytes, prewrite)
        os.pwrite(fd, head, 0)
        os.fsync(fd)
        _sync_directory(building)
        if os.path.isdir(directory):
            os.rmdir(directory)
        os.rename(building, directory)
        _sync_directory(os.path.dirname(os.path.abspath(directory)))
    except BaseException:
        os.close(fd)
        raise
    return _wal(
        directory, [(0, 0, fd)], (len(head), crc, 0, 0), metadata, (0, 0, 0), segment_bytes, prewrite, faults, settings
    )


def write_once(directory, metadata, entries, state, snapshot, *, segment_bytes=SEGMENT_BYTES):
    """Make a log that a tool writes whole, in one segment, durable when this returns; nobody appends here.

    entries: [(type, term, index, data)] from index 1 on, or []. state: (term, vote, commit). snapshot: (index, term,
    marshalled ConfState) from which a member goes on. `directory` is made, and must be empty. Errors: OSError.
    Source: formats.md 8.3 and 8.6.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    frames = [walrec.encode_crc(0)]
    crc = 0

    def add(encode, *arguments):
        nonlocal crc
        frame, crc = encode(crc, *arguments)
        frames.append(frame)

    add(walrec.encode_record, 1, metadata)
    add(walrec.encode_snapshot, 0, 0)
    for kind, term, index, data in entries:
        add(walrec.encode_entry, kind, term, index, b"", data, b"")
    add(walrec.encode_state, *state)
    add(walrec.encode_snapshot, *snapshot)
    path = os.path.join(directory, f"{0:016x}-{0:016x}.wal")
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(b"".join(frames))
        os.posix_fallocate(file.fileno(), 0, segment_bytes)
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(directory)


if __name__ == "__main__":
    from etcdfast.formats.waldump import main

    raise SystemExit(main())
