"""A member's data on disk at start: made for a new member, or read and checked for an old one.

    <data-dir>/member/wal    the write-ahead log (or --wal-dir)
    <data-dir>/member/snap   *.snap, one per raft snapshot; <index>.snap.db, a state received from a leader

An existing log wins over the flags: ids, members and voters come from it, as in etcd.

    open_member -> Opened -> (apply opens the store) -> settle -> raft starts
"""

import mmap
import os
from collections import namedtuple

from etcdfast import log
from etcdfast._ext import walscan
from etcdfast._ext.walio import WalError
from etcdfast._ext.walscan import LogScan
from etcdfast.cluster import membership as rules
from etcdfast.cluster.membership import MembershipError
from etcdfast.consensus import bootstrap, join, versions
from etcdfast.consensus.membership import Membership
from etcdfast.consensus.raft import HardState
from etcdfast.formats import memberid, snapfile, wal
from etcdfast.formats.raftpb import (
    ConfState,
    RaftMessageError,
    decode_conf_change,
    decode_conf_state,
    encode_conf_change,
    encode_conf_state,
    put_uint,
    read_fields,
)

ENTRY_CONF_CHANGE = 1  # raftpb.EntryType
INDEX_MAX = (1 << 64) - 1

WAL_BUFFER_BYTES = 4 << 20  # two of them

# member_id, cluster_id; disk: Wal; last_index, last_term: of the log; table: EntryTable of what was read, from behind
# `snapshot` on; hard_state: HardState; membership: of the entries up to hard_state.commit, with conf_state for
# raft and applied_conf_index, the last configuration change in it; runs: [(index, term)] of the log read; rare:
# indexes of entries no client asked for; snapshot: (index, term) that the log goes on from; remotes: (Member, ...) of
# the cluster that this member joins, as long as its log does not tell of any; settings: for formats.wal.
Opened = namedtuple(
    "Opened",
    "member_id cluster_id disk last_index last_term table hard_state membership applied_conf_index runs rare "
    "snapshot conf_state remotes settings",
)


class StorageError(Exception):
    """The member cannot start on this data; one line for the user. `corrupt` tells damage from a wrong request."""

    def __init__(self, reason, corrupt=False):
        super().__init__(reason)
        self.corrupt = corrupt


class DiskFailed(Exception):
    """The write-ahead log or a snapshot file cannot be written; one line."""


def open_member(config, **wal_settings):
    """Make or read the member's log. Blocks while other members are asked, 10 s at most, at a first start only.

    wal_settings go to formats.wal (segment_bytes, faults). Errors: StorageError, DiskFailed, OSError.
    """
    settings = {
        "buffer_bytes": max(WAL_BUFFER_BYTES, config.max_request_bytes + 65536),
        "record_bytes_max": max(config.max_request_bytes, 64 << 20) + 65536,
        "max_wals": config.max_wals,
        **wal_settings,
        "faults": wal.fault_plan(wal_settings.get("faults")),  # one for all times that the log is opened
    }
    os.makedirs(_snap_dir(config), 0o700, exist_ok=True)
    with _named_errors():
        if wal.exists(config.wal_path):
            return _read(config, settings)
        if config.initial_cluster_state == "existing":
            return _join(config, settings)
        return _create(config, settings)


class _named_errors:
    """The errors of what is below as those of this module."""

    def __enter__(self):
        return self

    def __exit__(self, kind, err, trace):
        if isinstance(err, WalError):
            raise DiskFailed(str(err)) from None
        if isinstance(err, (wal.WalLocked, join.JoinError)):
            raise StorageError(str(err)) from None
        if isinstance(err, (wal.WalProblem, MembershipError, RaftMessageError, snapfile.SnapFileError)):
            raise StorageError(str(err), corrupt=True) from None


def _snap_dir(config):
    return os.path.join(config.member_dir, "snap")


# ---- a new member ---------------------------------------------------------------------------------


def _create(config, settings):
    members = bootstrap.first_members(config)
    own = next(member.id for member in members if member.name == config.name)
    if len(members) > 1 and join.is_bootstrapped(config, own):
        raise StorageError(f"member {own:x} has already been bootstrapped")
    disk = _make_log(config, settings, own, memberid.cluster_id([member.id for member in members]))
    _append_first(disk, bootstrap.first_entries(members))
    # What was just written is read back: apply gets it from there like the entries of any start.
    disk.close()
    return _read(config, settings)


def _join(config, settings):
    found = join.join(config)
    disk = _make_log(config, settings, found.member_id, found.cluster_id)
    log.info(
        "joining a cluster",
        cluster_id=f"{found.cluster_id:x}",
        member_id=f"{found.member_id:x}",
        members=[f"{member.id:x}" for member in found.members],
    )
    disk.close()
    return _read(config, settings, found)


def _make_log(config, settings, member_id, cluster_id):
    os.makedirs(os.path.dirname(os.path.abspath(config.wal_path)), 0o700, exist_ok=True)
    disk = wal.create(config.wal_path, put_uint(1, member_id) + put_uint(2, cluster_id), **settings)
    log.info("made the write-ahead log of a new member", path=config.wal_path)
    return disk


def _append_first(disk, entries, first=1):
    """Entries that every member of a new cluster begins with, from index `first` on, then the hard state that commits
    all of them.

    Two writes: the hard state may only cover entries that are durable. A crash between them leaves a log without a
    hard state, which `_finish_first_start` knows.
    """
    for index, data in enumerate(entries[first - 1 :], first):
        disk.append_entry(ENTRY_CONF_CHANGE, 1, index, data)
    disk.flush()
    disk.append_state(1, 0, len(entries))
    disk.flush()


def _finish_first_start(config, settings, found, disk, ids):
    """The first start of a new cluster ended before its hard state; nothing was ever acknowledged."""
    members = bootstrap.first_members(config)
    entries = bootstrap.first_entries(members)
    there = [found.entries.entry(row) for row in range(len(found.entries))]
    expected = [(ENTRY_CONF_CHANGE, 1, index, data) for index, data in enumerate(entries, 1)]
    own = next((member.id for member in members if member.name == config.name), 0)
    if ids != (own, memberid.cluster_id([member.id for member in members])) or there != expected[: len(there)]:
        disk.close()
        raise StorageError(
            f"the write-ahead log {config.wal_path} is of a first start that did not come to its end, with other "
            "--initial-cluster settings: start with those, or remove the data directory to begin anew"
        )
    log.warn("the first start did not come to its end; finishing it now", path=config.wal_path)
    _append_first(disk, entries, len(there) + 1)
    disk.close()
    return _read(config, settings)


# ---- a member that has been here ------------------------------------------------------------------


def _read(config, settings, joined=None):
    found, disk, snapshot = _open_log(config, settings)
    if found.repaired:
        log.warn("cut a torn tail off the write-ahead log", copy=found.repaired)
    ids = read_fields(found.metadata, {1: int, 2: int})
    member_id, cluster_id = (sum(ids[1][-1:]), sum(ids[2][-1:]))
    table = found.entries
    last_index, last_term = found.position[2:]
    hard_state = HardState(*found.state)
    if hard_state == (0, 0, 0) and config.initial_cluster_state == "new":
        return _finish_first_start(config, settings, found, disk, (member_id, cluster_id))
    # An entry may have reached the disk before the hard state of its term did.
    if last_term > hard_state.term:
        hard_state = HardState(last_term, 0, hard_state.commit)
    runs, rare = table.survey()
    membership = Membership(learners_max=config.max_learners)
    conf_state, applied_conf_index = ConfState(()), 0
    if snapshot:
        membership.load_snapshot(snapshot[0])
        conf_state, applied_conf_index = snapshot[1], snapshot[2]
        _check_members(membership, conf_state, snapshot[2])
    opened = Opened(
        member_id,
        cluster_id,
        disk,
        last_index,
        last_term,
        table,
        hard_state,
        membership,
        applied_conf_index,
        runs or [(last_index, last_term)],
        rare,
        (snapshot[2], snapshot[3]) if snapshot else (0, 0),
        conf_state,
        (),
        settings,
    )
    opened = _follow(opened, 0, hard_state.commit)
    if not membership.members and config.initial_cluster_state == "existing":
        opened = opened._replace(remotes=_remotes(config, opened, joined))
    return opened


def _remotes(config, opened, joined):
    """The other members of the cluster that this one joins, while its own log knows none."""
    if joined is None:
        try:
            joined = join.join(config)
        except join.JoinError as err:
            # They know this member, and dial it.
            log.warn("could not ask the cluster for its members", error=str(err))
            return ()
        if (joined.cluster_id, joined.member_id) != (opened.cluster_id, opened.member_id):
            opened.disk.close()
            raise StorageError(
                f"cluster ID mismatch: the data directory is of member {opened.member_id:x} of cluster "
                f"{opened.cluster_id:x}, --initial-cluster leads to {joined.member_id:x} of {joined.cluster_id:x}"
            )
    return tuple(member for member in joined.members if member.id != opened.member_id)


def _open_log(config, settings):
    """(formats.wal.Log, Wal, snapshot or None) from the newest snapshot that file and log agree on.

    A file without its record is a crash between the two: the next older one is right then. One whose record no hard
    state covers was being received from a leader, which will send another.
    """
    wal_path, snap_dir = config.wal_path, _snap_dir(config)
    for name in snapfile.names(snap_dir):
        term, index = snapfile.position(name)
        try:
            snapshot = snapfile.read(snap_dir, name)
            found, disk = wal.open_for_append(wal_path, (index, term), **settings)
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
        log.warn("removed a snapshot that was not fully received", file=name)
        snapfile.remove(snap_dir, name)
    try:
        return *wal.open_for_append(wal_path, **settings), None
    except wal.WalMissing:
        snapshot = _recorded_snapshot(wal_path, config)
        if snapshot is None:
            raise
    log.warn("no snapshot file to go on from: taking the log's own record", snapshot_index=snapshot[2])
    return *wal.open_for_append(wal_path, snapshot[2:], **settings), snapshot


def _recorded_snapshot(wal_path, config):
    """The newest usable snapshot record as (data, ConfState, index, term), None if there is none.

    All that a snapshot file would tell more is names and URLs: this member's own are in the flags, and those of the
    others too as long as it is a first cluster. etcd 3.7 starts from the record in the same way.
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
    known = {member.id: member for member in bootstrap.first_members(config)}
    if len(conf_state.voters) == 1:
        # Its id may be of another token; its name and URLs are this member's.
        own = next((member for member in known.values() if member.name == config.name), None)
        known = {conf_state.voters[0]: own} if own else {}
    ids = (*conf_state.voters, *conf_state.learners)
    if not all(member_id in known for member_id in ids):
        return None
    members = [(i, known[i].peer_urls, known[i].name, (), i in conf_state.learners) for i in sorted(ids)]
    return snapfile.encode_members(members), conf_state, index, term


def _check_members(membership, conf_state, index):
    """Membership and raft's configuration come from two places of a snapshot; who votes must be known by address.

    etcd 3.6 describes the members of the moment at which it sends, so there may be others too.
    """
    wanted = {*conf_state.voters, *conf_state.learners}
    if set(membership.voters()) == set(conf_state.voters) and set(membership.learners()) == set(conf_state.learners):
        return
    shown, needed = (", ".join(f"{m:x}" for m in sorted(ids)) or "none" for ids in (membership.members, wanted))
    if not wanted <= membership.members.keys():
        raise MembershipError(f"snapshot {index} lists members {shown}, but its configuration is {needed}")
    log.warn("a snapshot's members differ from its configuration", snapshot_index=index, members=shown, voters=needed)


def _follow(opened, known, commit):
    """`opened` with the membership that committed entries above `known` up to `commit` make."""
    table, membership = opened.table, opened.membership
    applied_conf_index = opened.applied_conf_index
    if not len(table):
        return opened
    first = table.entry(0)[2]
    for index in opened.rare:
        if index <= known:
            continue
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
    if applied_conf_index == opened.applied_conf_index:
        return opened
    return opened._replace(applied_conf_index=applied_conf_index, conf_state=membership.conf_state())


# ---- what the store knows -------------------------------------------------------------------------


def settle(config, opened, applied, applied_term):
    """`opened` in the light of what the store has applied: checked, and with that much committed.

    What the store has was committed, even if the log's last hard state does not say so yet: membership and
    configuration follow. With --force-new-cluster the log is changed so that this member goes on alone.
    Errors: StorageError, DiskFailed, OSError.
    """
    _check_applied(config, opened, applied, applied_term)
    with _named_errors():
        if applied > opened.hard_state.commit:
            opened = _follow(opened, opened.hard_state.commit, applied)
            opened = opened._replace(hard_state=opened.hard_state._replace(commit=applied))
        refusal = versions.refusal(opened.membership.cluster_version, opened.membership.downgrade)
        if refusal:
            raise StorageError(refusal)
        return _force_new_cluster(config, opened) if config.force_new_cluster else opened


def _check_applied(config, opened, applied, applied_term):
    last, first = opened.last_index, opened.snapshot[0] + 1
    if applied > last:
        raise StorageError(
            f"the store has applied index {applied}, but the write-ahead log {config.wal_path} ends at "
            f"{last}: one of them is lost or belongs to another member",
            corrupt=True,
        )
    log_term = _term_in_log(opened, applied)
    if applied_term and log_term and applied_term != log_term:
        raise StorageError(
            f"the store has entry {applied} of term {applied_term}, but in the write-ahead log "
            f"{config.wal_path} it is of term {log_term}: they belong to different members",
            corrupt=True,
        )
    if applied + 1 < first:
        raise StorageError(
            f"the store has applied index {applied}, but the write-ahead log {config.wal_path} begins at "
            f"{first}: the entries between are lost",
            corrupt=True,
        )


def _term_in_log(opened, index):
    """Term of an entry of the log read at start, or of the snapshot it goes on from; 0 when it is neither."""
    if index == opened.snapshot[0]:
        return opened.snapshot[1]
    row = index - opened.snapshot[0] - 1
    return opened.table.entry(row)[1] if 0 <= row < len(opened.table) else 0


def _force_new_cluster(config, opened):
    """Append the configuration changes that leave this member as the only one, and read the log again.

    Entries that are not known to be committed are dropped, as in etcd, for another member may have replaced them. A
    member that is the only voter already has committed all of its log.
    """
    changes = bootstrap.changes_to_be_alone(opened.member_id, opened.membership, config.initial_advertise_peer_urls)
    if changes is None:
        opened.disk.close()
        raise StorageError(
            f"--force-new-cluster: member {opened.member_id:x} was removed from its cluster, or never got its log"
        )
    if not changes:
        return opened
    state, disk = opened.hard_state, opened.disk
    log.warn(
        "forcing a new cluster of this member alone",
        member_id=f"{opened.member_id:x}",
        discarded_entries=opened.last_index - state.commit,
        commit_index=state.commit,
        removed=[f"{change.node_id:x}" for change in changes if change.type == rules.REMOVE_NODE],
    )
    last = state.commit + len(changes)
    for index, change in enumerate(changes, state.commit + 1):
        disk.append_entry(ENTRY_CONF_CHANGE, state.term, index, encode_conf_change(change))
    disk.flush()
    disk.append_state(state.term, state.vote, last)
    disk.close()
    return _read(config, opened.settings)


# ---- a snapshot from a leader ---------------------------------------------------------------------


def install_snapshot(config, opened, meta, data, hard_state):
    """Make a received raft snapshot what the next start goes on from. Its database is durable as <index>.snap.db.

    meta: raft's SnapshotMeta; data: membership as the message carries it (v2 store); hard_state: (term, vote,
    commit). Each step is durable before the next: a crash in between leaves the member as it was before.
    Errors: StorageError when the snapshot does not fit itself, DiskFailed, OSError.
    """
    with _named_errors():
        membership = Membership()
        membership.load_snapshot(data)
        _check_members(membership, meta.conf_state, meta.index)
        snapfile.write(_snap_dir(config), data, meta.conf_state, meta.index, meta.term)
        term, vote, commit = hard_state
        disk = opened.disk
        disk.flush()  # what still waits for the disk may fill the buffer
        disk.append_snapshot(meta.index, meta.term, encode_conf_state(meta.conf_state))
        disk.append_state(term, vote, max(commit, meta.index))
        disk.flush()
