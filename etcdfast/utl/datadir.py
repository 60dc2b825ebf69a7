"""A member's data directory as it lies on disk after a stop: whose it is, and what its log says.

Source: formats.md sections 1.7, 6 and 8.4-8.5.
"""

import fcntl
import os
import time
from collections import namedtuple

from etcdfast.formats import snapfile, wal
from etcdfast.formats.raftpb import RaftMessageError, read_fields
from etcdfast.utl.errors import UtlError

LOCK = "etcdfast.lock"  # supervisor/datadir.py takes it
ORPHANS_SECONDS = 5.0

# member_id, cluster_id; log: formats.wal.Log; snapshot: (v2 store JSON, ConfState, index, term) that it goes on from
# or None
RaftState = namedtuple("RaftState", "member_id cluster_id log snapshot")


class Layout:
    """Paths of a data directory. `wal_dir` as --wal-dir, "" for the place within it."""

    def __init__(self, data_dir, wal_dir=""):
        self.data_dir = data_dir
        self.member = os.path.join(data_dir, "member")
        self.snap = os.path.join(self.member, "snap")
        self.wal = wal_dir or os.path.join(self.member, "wal")
        self.db = os.path.join(self.snap, "db")
        self.store = os.path.join(self.member, "store")

    def kind(self):
        """ "etcd", "etcdfast", or None when there is no member in it. Errors: UtlError."""
        if not os.path.isdir(self.member):
            raise UtlError(f"{self.data_dir} is no data directory: there is no directory {self.member}")
        if os.path.exists(os.path.join(self.store, "CURRENT")):
            return "etcdfast"
        return "etcd" if os.path.exists(self.db) else None


def lock(layout):
    """Keep a member of etcdfast from starting there while the returned file is open. Errors: UtlError.

    When the supervisor that has it was killed, its processes end a moment later; this waits for them.
    """
    file = open(os.path.join(layout.member, LOCK), "a+b")  # stays open, and the lock with it
    deadline = time.monotonic() + ORPHANS_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            holder = os.pread(file.fileno(), 20, 0).decode(errors="replace").strip()
        if time.monotonic() > deadline or not holder.isdecimal() or os.path.exists(f"/proc/{holder}"):
            file.close()
            who = f" (process {holder})" if holder.isdecimal() else ""
            reason = f"data directory {layout.data_dir} is in use by an etcdfast member{who}: stop it first"
            raise UtlError(reason)
        time.sleep(0.01)


def read_raft(layout):
    """The RaftState, from the newest snapshot file that the log knows. Errors: UtlError."""
    try:
        log, snapshot = _read_log(layout)
        ids = read_fields(log.metadata, {1: int, 2: int})
    except wal.WalCorrupt as err:
        if "torn" in err.reason:
            raise UtlError(f"{err}: the member was not stopped cleanly; start it and stop it once") from None
        raise UtlError(str(err)) from None
    except (wal.WalProblem, snapfile.SnapFileError, RaftMessageError) as err:
        raise UtlError(str(err)) from None
    return RaftState(sum(ids[1][-1:]), sum(ids[2][-1:]), log, snapshot)


def _read_log(layout):
    if not wal.exists(layout.wal):
        raise UtlError(f"no write-ahead log in {layout.wal} (give --wal-dir if it lies elsewhere)")
    for name in snapfile.names(layout.snap) if os.path.isdir(layout.snap) else ():
        term, index = snapfile.position(name)
        try:
            log = wal.read(layout.wal, (index, term))
        except wal.WalMissing:
            continue  # the member died between file and record: an older one is right
        if (index, term) in log.usable_snapshots:
            return log, snapfile.read(layout.snap, name)
    return wal.read(layout.wal), None


def entries_after(log, index):
    """[(type, term, index, data)] of the log behind `index`, in order."""
    rows = (log.entries.entry(i) for i in range(len(log.entries)))
    return [(kind, term, at, data or b"") for kind, term, at, data in rows if at > index]
