"""A member's data on disk at start: made for a new member, or read and checked for an old one.

    <data-dir>/member/wal    the write-ahead log (or --wal-dir)
    <data-dir>/member/snap   *.snap, one per raft snapshot

An existing log wins over the flags: ids, members and voters come from it, as in etcd.
"""

import mmap
import os
from collections import namedtuple

from etcdfast import log
from etcdfast._ext import walscan
from etcdfast._ext.consensusloop import survey
from etcdfast._ext.raftlog import RaftLog
from etcdfast._ext.walio import WalError
from etcdfast._ext.walscan import LogScan
from etcdfast.consensus import requests
from etcdfast.consensus.membership import Membership, MembershipError
from etcdfast.consensus.raft import HardState
from etcdfast.formats import memberid, snapfile, wal
from etcdfast.formats.raftpb import RaftMessageError, decode_conf_change, decode_conf_state, put_uint, read_fields

ENTRY_CONF_CHANGE = 1  # raftpb.EntryType
INDEX_MAX = (1 << 64) - 1

# Entries between their arrival and their hand-over. 16,000 clients with a request each under way fit, and so
# does any one request; a fuller log would only mean that the disk or apply is behind.
LOG_ROWS_MAX = 32768
LOG_BYTES_MAX = 8 << 20
WAL_BUFFER_BYTES = 4 << 20  # two of them

# member_id, cluster_id; disk: Wal; log: RaftLog behind the WAL's last entry; table: EntryTable of what was read;
# hard_state: HardState; membership; applied_conf_index: configuration changes in it; runs: [(index, term)] of
# the log read; rare: indexes of entries no client asked for; snapshot: (index, term) that the log goes on from.
Opened = namedtuple(
    "Opened", "member_id cluster_id disk log table hard_state membership applied_conf_index runs rare snapshot"
)


class StorageError(Exception):
    """The member cannot start on this data; one line for the user. `corrupt` tells damage from a wrong request."""

    def __init__(self, reason, corrupt=False):
        super().__init__(reason)
        self.corrupt = corrupt


class DiskFailed(Exception):
    """The write-ahead log or a snapshot file cannot be written; one line."""


def open_member(config, **wal_settings):
    """Make or read the member's log. Errors: StorageError, DiskFailed, OSError.

    wal_settings go to formats.wal (segment_bytes, faults).
    """
    wal_settings = {
        "buffer_bytes": max(WAL_BUFFER_BYTES, config.max_request_bytes + 65536),
        "record_bytes_max": max(config.max_request_bytes, 64 << 20) + 65536,
        **wal_settings,
    }
    snap_dir = os.path.join(config.member_dir, "snap")
    os.makedirs(snap_dir, 0o700, exist_ok=True)
    try:
        if wal.exists(config.wal_path):
            return _read(config, snap_dir, wal_settings)
        return _create(config, wal_settings)
    except WalError as err:
        raise DiskFailed(str(err)) from None
    except wal.WalLocked as err:
        raise StorageError(str(err)) from None
    except (wal.WalProblem, MembershipError, RaftMessageError, snapfile.SnapFileError) as err:
        raise StorageError(str(err), corrupt=True) from None


# ---- a new member ---------------------------------------------------------------------------------


def _create(config, wal_settings):
    if config.initial_cluster_state == "existing":
        raise StorageError("--initial-cluster-state existing: joining a cluster is not supported yet")
    initial = dict(config.initial_members)
    if len(initial) != 1:
        raise StorageError(f"--initial-cluster has {len(initial)} members: only one is supported yet")
    urls = initial[config.name]
    member_id = memberid.member_id(urls, config.initial_cluster_token)
    cluster_id = memberid.cluster_id([member_id])
    os.makedirs(os.path.dirname(os.path.abspath(config.wal_path)), 0o700, exist_ok=True)
    metadata = put_uint(1, member_id) + put_uint(2, cluster_id)
    disk = wal.create(config.wal_path, metadata, **wal_settings)
    log.info("made the write-ahead log of a new member", path=config.wal_path)
    _append_first_members(disk, ((member_id, urls, config.name),))
    return _first_start(disk, member_id, cluster_id, urls, config.name)


def _append_first_members(disk, members):
    """The entries that every member of a new cluster begins with, then the hard state that commits them.

    Two writes: the hard state may only cover entries that are durable. A crash between them leaves a log
    without a hard state, which `_read` knows.
    """
    for index, (member_id, urls, name) in enumerate(sorted(members), 1):
        disk.append_entry(ENTRY_CONF_CHANGE, 1, index, requests.bootstrap_member(member_id, urls, name))
    disk.flush()
    disk.append_state(1, 0, len(members))
    disk.flush()


def _first_start(disk, member_id, cluster_id, urls, name):
    """As if read back: one member, one entry, which apply still has to see."""
    membership = Membership()
    change = requests.bootstrap_member(member_id, urls, name)
    membership.apply_conf_change(decode_conf_change(change))
    entries = RaftLog(0, 0, rows_max=LOG_ROWS_MAX, bytes_max=LOG_BYTES_MAX)
    entries.append(1, change, ENTRY_CONF_CHANGE)
    return Opened(member_id, cluster_id, disk, entries, None, HardState(1, 0, 1), membership, 1, [(1, 1)], [1], (0, 0))


# ---- a member that has been here ------------------------------------------------------------------


def _read(config, snap_dir, wal_settings):
    found, disk, snapshot = _open_log(config, snap_dir, wal_settings)
    if found.repaired:
        log.warn("cut a torn tail off the write-ahead log", copy=found.repaired)
    ids = read_fields(found.metadata, {1: int, 2: int})
    member_id, cluster_id = (sum(ids[1][-1:]), sum(ids[2][-1:]))
    table = found.entries
    runs, rare = survey(table)
    last_index, last_term = found.position[2:]
    hard_state = HardState(*found.state)
    if hard_state == (0, 0, 0):
        if not last_index:
            log.warn("the first start did not come to its first entry; making it now", path=config.wal_path)
            urls = dict(config.initial_members)[config.name]
            _append_first_members(disk, ((member_id, urls, config.name),))
            return _first_start(disk, member_id, cluster_id, urls, config.name)
        # The first start ended between entries and hard state; nothing was ever acknowledged.
        hard_state = HardState(1, 0, last_index)
    # An entry may have reached the disk before the hard state of its term did.
    if last_term > hard_state.term:
        hard_state = HardState(last_term, 0, hard_state.commit)
    membership, applied_conf_index = _membership(snapshot, table, rare, hard_state.commit)
    entries = RaftLog(last_index, last_term, rows_max=LOG_ROWS_MAX, bytes_max=LOG_BYTES_MAX)
    position = (snapshot[2], snapshot[3]) if snapshot else (0, 0)
    return Opened(
        member_id,
        cluster_id,
        disk,
        entries,
        table,
        hard_state,
        membership,
        applied_conf_index,
        runs or [(last_index, last_term)],
        rare,
        position,
    )


def _open_log(config, snap_dir, wal_settings):
    """(formats.wal.Log, Wal, snapshot or None) from the newest snapshot that file and log agree on.

    A file without its record is a crash between the two: the next older one is right then.
    """
    wal_path = config.wal_path
    for name in snapfile.names(snap_dir):
        term, index = snapfile.position(name)
        try:
            snapshot = snapfile.read(snap_dir, name)
            found, disk = wal.open_for_append(wal_path, (index, term), **wal_settings)
        except snapfile.SnapFileError as err:
            log.warn("set a damaged snapshot file aside", reason=str(err))
            snapfile.set_aside(snap_dir, name)
            continue
        except wal.WalMissing as err:
            log.warn("passed over a snapshot file", file=name, reason=str(err))
            continue
        if (index, term) in found.usable_snapshots:
            return found, disk, snapshot
        disk.close()
        log.warn("passed over a snapshot file", file=name, reason="its index was not committed")
    try:
        return *wal.open_for_append(wal_path, **wal_settings), None
    except wal.WalMissing:
        snapshot = _recorded_snapshot(wal_path, config)
        if snapshot is None:
            raise
    log.warn("no snapshot file to go on from: taking the log's own record", snapshot_index=snapshot[2])
    return *wal.open_for_append(wal_path, snapshot[2:], **wal_settings), snapshot


def _recorded_snapshot(wal_path, config):
    """The newest usable snapshot record as (data, ConfState, index, term), None if there is none.

    All that a snapshot file would tell more is names and URLs; this member's own are in the flags. etcd 3.7
    starts from the record in the same way.
    """
    scan = LogScan(INDEX_MAX)
    segments = wal.list_segments(wal_path)
    for segment in segments:
        with open(segment.path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        if scan.segment(content, segment is segments[-1]) not in (walscan.END, walscan.TORN):
            return None  # reading it from its beginning names the damage
    usable = [row for row in scan.snapshots if row[2] and row[0] <= scan.state[2]]
    if not usable:
        return None
    index, term, marshalled = max(usable)
    conf_state = decode_conf_state(marshalled)
    urls = dict(config.initial_members).get(config.name, ())
    members = [(voter, urls, config.name, (), False) for voter in conf_state.voters]
    return snapfile.encode_members(members), conf_state, index, term


def _membership(snapshot, table, rare, commit):
    """Membership after the snapshot and the committed entries behind it."""
    membership = Membership()
    applied_conf_index = 0
    if snapshot:
        membership.load_snapshot(snapshot[0])
        applied_conf_index = snapshot[2]
    if not len(table):
        return membership, applied_conf_index
    first = table.entry(0)[2]
    for index in rare:
        if index > commit:
            break
        entry_type, _, _, data = table.entry(index - first)
        if entry_type == ENTRY_CONF_CHANGE:
            membership.apply_conf_change(decode_conf_change(data or b""))
            applied_conf_index = index
        elif entry_type == 0:
            membership.apply_own_request(data)
        else:
            raise MembershipError(f"entry {index} is of type {entry_type}, which no etcd writes")
    return membership, applied_conf_index
