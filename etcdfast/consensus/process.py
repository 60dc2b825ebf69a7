"""The main loop of the consensus process: what the C turn reports goes into the raft core, and what the core
decides goes back into the C turn. Python runs per batch, never per request.
"""

import gc
import os
import random
import select
import signal
import time

from etcdfast import log
from etcdfast._ext import consensusloop as turns
from etcdfast._ext.consensusloop import Loop
from etcdfast._ext.ring import APPLY_WORDS, CONSENSUS_WORDS, Ring, StatusPage
from etcdfast._ext.walio import WalError
from etcdfast.consensus import requests
from etcdfast.consensus.raft import ROLE_NAMES, ConfChange, Raft, RaftConfig
from etcdfast.consensus.snapshots import Snapshots
from etcdfast.consensus.storage import ENTRY_CONF_CHANGE, DiskFailed, StorageError, open_member, settle
from etcdfast.formats.raftpb import decode_conf_change
from etcdfast.version import CLUSTER_VERSION

# How long a stop waits for apply to take what is committed; all of it is durable by then.
STOP_SECONDS = 10.0
SLOW_FSYNC_SECONDS = 1.0  # as etcd warns

_FATAL = turns.WAL_BROKEN | turns.RING_BROKEN | turns.NO_MEMORY | turns.ENTRY_TOO_LARGE | turns.LIFE
_RARE = _FATAL | turns.WAKE | turns.TICK | turns.CONF | turns.HARD


class ProcessFault(Exception):
    """Something that no working member does; one line."""


class SupervisorGone(Exception):
    """The life pipe is at its end."""


class Process:
    """One member's consensus, from start to stop.

    Errors of `run`: StorageError, DiskFailed, ProcessFault, SupervisorGone.
    """

    def __init__(self, boot, wal_settings):
        self.config = boot.config
        self._boot = boot
        self._wake = _catch_sigterm()
        doorbells = boot.doorbells
        self._inbound = [
            *(Ring(boot.rings[f"f{i}c"], doorbells[f"frontend{i}"]) for i in range(boot.frontends)),
            Ring(boot.rings["ac"], doorbells["apply"]),
        ]
        self._out = Ring(boot.rings["ca"], doorbells["apply"])
        self._status = StatusPage(boot.status["consensus"])
        self._apply = StatusPage(boot.status["apply"])
        self._stopping = False
        self._greeted = False  # HARD sent, ready told
        self._greet_at = 0  # index after which that happens
        self._fsyncs_seen = (0, 0)
        self.opened = open_member(boot.config, **wal_settings)
        self.loop = None
        self.raft = None

    @property
    def told_ready(self):
        return self._greeted

    # ---- start -----------------------------------------------------------------------------------

    def run(self):
        """Serve until SIGTERM."""
        opened = self.opened
        self._show("member_id", opened.member_id)
        self._show("cluster_id", opened.cluster_id)
        self._show("snapshot_index", opened.snapshot[0])
        self._show("opened", 1)
        os.eventfd_write(self._boot.doorbells["apply"], 1)
        applied = self._wait_for_apply()
        if applied is None:
            opened.disk.close()
            return
        self._start(applied)
        gc.collect()
        gc.freeze()
        while not self._stopping:
            self._once()
        self._stop()

    def _wait_for_apply(self):
        """Applied index of the store, once it is open; None when told to stop before."""
        waiter = select.epoll()
        for fd in (self._boot.doorbell, self._boot.life_fd, self._wake):
            waiter.register(fd, select.EPOLLIN)
        try:
            while not self._apply[APPLY_WORDS["opened"]]:
                for fd, _ in waiter.poll(1.0):
                    if fd == self._boot.life_fd:
                        raise SupervisorGone
                    if fd == self._wake:
                        return None
                    os.read(fd, 8)
        finally:
            waiter.close()
        return self._apply[APPLY_WORDS["applied_index"]]

    def _start(self, applied):
        config = self.config
        self.opened = opened = settle(config, self.opened, applied, self._apply[APPLY_WORDS["applied_term"]])
        self._check_members()
        hard_state = opened.hard_state
        commit = hard_state.commit
        self.runs = list(opened.runs)
        self.membership = opened.membership
        self.snapshots = Snapshots(os.path.join(config.member_dir, "snap"), config.snapshot_count, opened.snapshot)
        self.raft = Raft(
            RaftConfig(opened.member_id, config.election_timeout // config.heartbeat_interval, random.randrange),
            opened.log,
            hard_state,
            opened.conf_state,
            opened.applied_conf_index,
        )
        self.loop = Loop(
            doorbell=self._boot.doorbell,
            inbound=self._inbound,
            out=self._out,
            status=self._status,
            wal=opened.disk,
            log=opened.log,
            table=opened.table,
            wake=self._wake,
            life=self._boot.life_fd,
            request_prefix=_request_id_start(opened.member_id),
            request_bytes_max=config.max_request_bytes,
            tick_seconds=config.heartbeat_interval / 1000,
            handed=applied,
            commit=commit,
            hard_state=tuple(hard_state),
        )
        log.info(
            "starting raft",
            member_id=f"{opened.member_id:x}",
            cluster_id=f"{opened.cluster_id:x}",
            term=hard_state.term,
            commit_index=commit,
            last_index=opened.log.last_index,
            applied_index=applied,
        )
        self._show("commit_index", commit)
        self._show("last_index", opened.log.last_index)
        self._show("durable_index", opened.log.last_index)
        # A single voter waits for nobody: it need not sit out an election timeout.
        self.raft.campaign()
        self._carry_out()

    def _check_members(self):
        own, members = self.opened.member_id, self.opened.membership.members
        if list(members) != [own] or members[own].is_learner:
            listed = ", ".join(f"{member:x}" for member in sorted(members)) or "none"
            raise StorageError(
                f"the write-ahead log {self.config.wal_path} is of a cluster of more than one member ({listed}; "
                f"this is {own:x}): only a single one is supported yet"
            )

    # ---- the loop --------------------------------------------------------------------------------

    def _once(self):
        loop, raft = self.loop, self.raft
        events = loop.turn()
        if events & turns.APPENDED and raft.leads:
            raft.appended(loop.last_index)
        if events & turns.DURABLE:
            raft.persisted(loop.durable_index, loop.durable_term, loop.durable_term_of_state, loop.durable_vote)
        if events & _RARE:
            self._rare(events)
        if raft.has_ready():
            self._carry_out()

    def _carry_out(self):
        """What the core wants done."""
        loop, raft = self.loop, self.raft
        ready = raft.ready()
        if ready.hard_state is not None:
            loop.hard_state(*ready.hard_state)
            loop.commit_to(ready.commit)
        if ready.soft is not None:
            self._role_changed(*ready.soft)
        if not self._greet_at and raft.committed_in_term:
            self._first_commit()

    def _role_changed(self, role, leader):
        raft = self.raft
        self._show("term", raft.term)
        self._show("leader", leader)
        log.info(f"became {ROLE_NAMES[role]}", member_id=f"{raft.id:x}", term=raft.term, leader=f"{leader:x}")
        self.loop.lead(raft.term, False)
        if raft.leads:
            self.runs.append((raft.log.last_index, raft.term))

    def _first_commit(self):
        """The first entry of this term is committed: say who this member is, and take requests."""
        config, loop = self.config, self.loop
        loop.lead(self.raft.term, True)
        attributes = requests.member_attributes(
            loop.next_request_id(), self.raft.id, config.name, config.advertise_client_urls
        )
        self._greet_at = self._propose(attributes)
        # Entries of the log read at start that were not known to be committed may hold it too; a second
        # entry that sets the same version changes nothing.
        if self.membership.cluster_version != CLUSTER_VERSION:
            log.info("setting up initial cluster version", cluster_version=CLUSTER_VERSION)
            self._greet_at = self._propose(requests.cluster_version(loop.next_request_id(), CLUSTER_VERSION))
            self.membership.cluster_version = CLUSTER_VERSION
        known = self.membership.members.get(self.raft.id)
        if known:
            self.membership.members[self.raft.id] = known._replace(
                name=config.name, client_urls=tuple(config.advertise_client_urls)
            )
        loop.hand_hard(self._greet_at, self.raft.term)

    def _propose(self, data):
        """Append an entry of this member's own; the next turn writes it."""
        return self.loop.log.append(self.raft.term, data)

    # ---- rare events -----------------------------------------------------------------------------

    def _rare(self, events):
        if events & _FATAL:
            self._fail(events)
        if events & turns.WAKE:
            self._stopping = True
        if events & turns.CONF:
            self._conf_change(self.loop.conf_index)
        if events & turns.HARD:
            self._greet()
        if events & turns.TICK:
            self._tick()

    def _fail(self, events):
        if events & turns.LIFE:
            raise SupervisorGone
        if events & turns.WAL_BROKEN:
            raise DiskFailed(self.loop.wal.failure() or "the write-ahead log refused a record")
        if events & turns.NO_MEMORY:
            raise ProcessFault("out of memory")
        if events & turns.ENTRY_TOO_LARGE:
            raise ProcessFault(
                f"committed entry {self.loop.handed + 1} does not fit the ring to apply: "
                "start with the --max-request-bytes it was written with"
            )
        raise ProcessFault("a ring holds a record that no process of this member writes")

    def _conf_change(self, index):
        if index <= self.raft.applied_conf_index:
            return
        entry_type, data = self.loop.entry(index)[1:]
        if entry_type != ENTRY_CONF_CHANGE:
            raise ProcessFault(f"entry {index} is of type {entry_type}, which no etcd writes")
        change = decode_conf_change(data)
        self.membership.apply_conf_change(change)
        self.raft.apply_conf_change(index, ConfChange(change.type, change.node_id))

    def _greet(self):
        """Everything a start has to commit is with apply: the member may serve."""
        self._greeted = True
        self._show("ready", 1)
        self._boot.tell_ready()
        log.info(
            "published local member to cluster through raft",
            local_member_id=f"{self.raft.id:x}",
            local_member_attributes=f"{{Name:{self.config.name} ClientURLs:{list(self.config.advertise_client_urls)}}}",
            cluster_id=f"{self.opened.cluster_id:x}",
        )

    def _tick(self):
        loop = self.loop
        self.raft.applied_to(loop.handed)
        self.raft.tick()
        loop.flush_hard_state()
        if self.opened.table is not None and loop.release_replay():
            self.opened = self.opened._replace(table=None)
        self._watch_disk()
        if self._greeted:
            self._advance_snapshots()

    def _watch_disk(self):
        """Warn of syncs that took longer than etcd would accept in silence."""
        seen = self._status[CONSENSUS_WORDS["wal_fsync_count"]], self._status[CONSENSUS_WORDS["wal_fsync_ns"]]
        count, nanoseconds = (now - before for now, before in zip(seen, self._fsyncs_seen, strict=True))
        self._fsyncs_seen = seen
        if count and nanoseconds / count > SLOW_FSYNC_SECONDS * 1e9:
            log.warn("slow fdatasync", took=f"{nanoseconds / count / 1e9:.3f}s", expected_duration="1s", syncs=count)

    def _advance_snapshots(self):
        flushed = self._apply[APPLY_WORDS["flushed_index"]]
        log_bytes = self._status[CONSENSUS_WORDS["wal_bytes"]]
        try:
            if self.snapshots.advance(self.loop, min(flushed, self.loop.handed), log_bytes, self._describe):
                self.loop.wal.release_to(self.snapshots.index)
                self._show("snapshot_index", self.snapshots.index)
                self._forget_runs()
        except OSError as err:
            raise DiskFailed(f"cannot write a snapshot file in {self.config.member_dir}: {err.strerror}") from None

    def _describe(self, index):
        """(term, ConfState, data) of a snapshot at `index`."""
        return self._term_at(index), self.membership.conf_state(), self.membership.snapshot()

    def _term_at(self, index):
        return next(term for first, term in reversed(self.runs) if first <= index)

    def _forget_runs(self):
        index = self.snapshots.index
        keep = max(i for i, (first, _) in enumerate(self.runs) if first <= index)
        del self.runs[:keep]

    def _show(self, word, value):
        self._status[CONSENSUS_WORDS[word]] = value

    # ---- stop ------------------------------------------------------------------------------------

    def _stop(self):
        """Everything taken in becomes durable and goes to apply; then the log is closed."""
        loop, raft = self.loop, self.raft
        log.info("stopping consensus", last_index=loop.last_index, commit_index=loop.commit)
        loop.lead(raft.term, False)
        deadline = time.monotonic() + STOP_SECONDS
        while not (loop.idle and loop.commit == loop.last_index) and time.monotonic() < deadline:
            self._once()
        if loop.handed < loop.commit:
            log.warn("apply did not take every committed entry in time; it will at the next start", handed=loop.handed)
        loop.hard_state(raft.term, raft.vote, raft.commit)
        try:
            self.opened.disk.append_state(raft.term, raft.vote, raft.commit)
            self.opened.disk.close()
        except WalError as err:
            raise DiskFailed(str(err)) from None


def _catch_sigterm():
    """A descriptor that becomes readable when SIGTERM comes."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    return read_end


def _request_id_start(member_id):
    """Where request ids begin: member, then milliseconds, then a count (formats.md 3.6)."""
    milliseconds = time.time_ns() // 1_000_000
    return (member_id & 0xFFFF) << 48 | (milliseconds & (1 << 40) - 1) << 8
