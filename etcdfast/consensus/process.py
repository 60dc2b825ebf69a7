"""The main loop of the consensus process: what the C turn reports goes into the raft core, and what the core
decides goes back into the C turn. Python runs per batch, never per request.

    turn -> events -> raft core -> Ready -> hard state and commit index into the turn, messages onto the links
                  \\-> duties (duties.py), calls (calls.py), other members' requests (peering.py)
"""

import gc
import os
import random
import select
import signal
import socket
import sys
import time

from etcdfast import log
from etcdfast._ext import consensusloop as turns
from etcdfast._ext import meters
from etcdfast._ext.consensusloop import Loop
from etcdfast._ext.peerset import Peers
from etcdfast._ext.raftlog import RaftLog
from etcdfast._ext.ring import APPLY_WORDS, CONSENSUS_WORDS, KINDS, Ring, StatusPage
from etcdfast._ext.walio import WalError
from etcdfast.config.checks import is_tls
from etcdfast.consensus import versions
from etcdfast.consensus.calls import Calls
from etcdfast.consensus.corruptcheck import CorruptionChecks
from etcdfast.consensus.duties import Duties
from etcdfast.consensus.memberlog import MemberLog
from etcdfast.consensus.messenger import Messenger
from etcdfast.consensus.peering import Peering
from etcdfast.consensus.raft import ROLE_NAMES, ConfChange, ProposalDropped, Raft, RaftConfig
from etcdfast.consensus.raft.messages import Message
from etcdfast.consensus.snapshots import Snapshots
from etcdfast.consensus.storage import ENTRY_CONF_CHANGE, DiskFailed, open_member, settle
from etcdfast.consensus.transfer import Transfers
from etcdfast.consensus.walreader import WalReader
from etcdfast.formats.raftpb import decode_conf_change
from etcdfast.ipc.yielding import Yielding

# How long a stop waits for apply to take what is committed; all of it is durable by then.
STOP_SECONDS = 10.0
SLOW_FSYNC_SECONDS = 1.0  # as etcd warns
ADVANCE_SECONDS = 5.0  # for other members to be there at a start
READ_RETRY_SECONDS = 0.5  # as etcd asks again for a ReadIndex
# Entries in memory: between their arrival and their hand-over, and what other members may still lack. 16,000 clients
# with a request each under way fit, and so does any one request.
LOG_ROWS_MAX = 65536
LOG_BYTES_MAX = 32 << 20
ARENA_ROWS_MAX = 32768
ARENA_BYTES_MAX = 8 << 20
# Messages of 1 MiB under way to a member that is behind: enough to keep its disk busy, and not so many that those who
# share that disk wait behind them.
INFLIGHT_FULL_MAX = 4
# The peer thread must never keep the loop waiting for the interpreter lock for long.
SWITCH_SECONDS = 0.0002

_FATAL = turns.WAL_BROKEN | turns.RING_BROKEN | turns.NO_MEMORY | turns.ENTRY_TOO_LARGE | turns.LIFE
_RARE = _FATAL | turns.WAKE | turns.TICK | turns.CONF | turns.HARD | turns.CALLS | turns.OWN | turns.INBOX


class ProcessFault(Exception):
    """Something that no working member does; one line."""


class SupervisorGone(Exception):
    """The life pipe is at its end."""


class MemberRemoved(Exception):
    """This member is no part of its cluster any more."""


class Process:
    """One member's consensus, from start to stop.

    Errors of `run`: DiskFailed, ProcessFault, SupervisorGone, MemberRemoved, StorageError, transfer.Restart.
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
        self._fsyncs_seen = (0, 0)
        self._read_contexts = set()  # of the round of ReadIndex under way: any of them confirms it
        self._read_asked = 0.0
        self._advance_before = 0.0  # monotonic seconds until which ticks may be skipped
        self._removed_at = 0.0
        self._yielding = Yielding()
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
        self._show("cluster_version", versions.packed(opened.membership.cluster_version))
        self._show("opened", 1)
        os.eventfd_write(self._boot.doorbells["apply"], 1)
        applied = self._wait_for_apply()
        meters.put("snapshot_applying", 0)
        if applied is None:
            opened.disk.close()
            return
        self._start(applied)
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(SWITCH_SECONDS)
        while not self._stopping:
            self.turn()
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
        if opened.member_id in opened.membership.removed:
            opened.disk.close()
            raise MemberRemoved
        hard_state = opened.hard_state
        commit = hard_state.commit
        self.membership = opened.membership
        self._members_known_to = commit
        entries = _log_behind(opened, commit)
        arena = RaftLog(0, 0, rows_max=ARENA_ROWS_MAX, bytes_max=ARENA_BYTES_MAX)
        self.snapshots = Snapshots(
            os.path.join(config.member_dir, "snap"),
            config.snapshot_count,
            opened.snapshot,
            config.max_snapshots,
            config.snapshot_catchup_entries,
        )
        self.peers = Peers(opened.member_id, entries, arena, Message)
        self.peers.on_special = self._propose_for_peer
        self.peering = Peering(self)
        self.loop = Loop(
            doorbell=self._boot.doorbell,
            inbound=self._inbound,
            out=self._out,
            status=self._status,
            wal=opened.disk,
            log=entries,
            peers=self.peers,
            table=opened.table,
            wake=self._wake,
            life=self._boot.life_fd,
            inbox=self.peering.wake_fd,
            request_prefix=_request_id_start(opened.member_id),
            request_bytes_max=config.max_request_bytes,
            tick_seconds=config.heartbeat_interval / 1000,
            handed=applied,
            commit=commit,
            hard_state=tuple(hard_state),
        )
        self.raft = Raft(
            RaftConfig(
                opened.member_id,
                config.election_ticks,
                random.randrange,
                pre_vote=config.pre_vote,
                inflight_full_max=INFLIGHT_FULL_MAX,
            ),
            MemberLog(self.loop, opened.runs, opened.snapshot),
            hard_state,
            opened.conf_state,
            opened.applied_conf_index,
        )
        self.messenger = Messenger(opened.member_id, self.loop, self.raft, self.peering.post)
        self.raft.log.reader = self.reader = WalReader(
            config.wal_path, opened.disk, self.raft.log.term, lambda: self.peering.call(self.messenger.retry)
        )
        self.calls = Calls(self)
        self.duties = Duties(self)
        self.transfers = Transfers(self)
        self.checks = CorruptionChecks(self)
        log.info(
            "starting raft",
            member_id=f"{opened.member_id:x}",
            cluster_id=f"{opened.cluster_id:x}",
            term=hard_state.term,
            commit_index=commit,
            last_index=entries.last_index,
            applied_index=applied,
        )
        self._show("commit_index", commit)
        self._show("last_index", entries.last_index)
        self._show("durable_index", entries.last_index)
        self.members_changed()
        self._import_to_mend = self.apply_word("opened") == 2
        self.peering.start()
        if config.initial_election_tick_advance:
            self._advance_before = time.monotonic() + ADVANCE_SECONDS
        if applied and config.initial_corrupt_check and len(self.membership.members) > 1:
            self.checks.start_initial(self.duties.may_publish)
        else:
            self.duties.may_publish()
        if self.alone:
            # A single voter waits for nobody: it need not sit out an election timeout.
            self.raft.campaign()
        self.carry_out()

    # ---- the loop --------------------------------------------------------------------------------

    def turn(self):
        loop, raft = self.loop, self.raft
        events = loop.turn()
        if events & turns.APPENDED and raft.leads:
            raft.appended(loop.last_index)
        if events & turns.DURABLE:
            raft.persisted(loop.durable_index, loop.durable_term, loop.durable_term_of_state, loop.durable_vote)
        if events & turns.PEERS:
            loop.receive(raft.step)
            if not raft.has_ready():
                self.peers.flush()
            if self.messenger.deferred:
                self.messenger.retry()
            loop.unblock_forward()  # a socket may have taken something
            if self.peers.any_broken:
                self.peering.note_broken()
        if events & turns.READS and loop.seal_reads():
            self.ask_for_reads()
        if events & turns.FORWARD:
            loop.forward()
            self.peers.flush()
        if events & _RARE:
            self._rare(events)
        if raft.has_ready():
            self.carry_out()

    def carry_out(self):
        """What the core wants done."""
        loop, raft = self.loop, self.raft
        ready = raft.ready()
        if ready.hard_state is not None:
            loop.hard_state(*ready.hard_state)
            loop.commit_to(ready.commit)
        if ready.messages:
            self.messenger.send(ready.messages)
        if ready.soft is not None or raft.term != loop.term:
            # In a new term the same leader is another, to those who wait for what they sent to it.
            self._role_changed(raft.role, raft.leader)
        elif raft.transferring != self._transferring:
            self._set_taking()
        for read in ready.reads:
            if read.context in self._read_contexts:
                self._read_contexts.clear()
                loop.confirm_reads(read.index)
        if ready.snapshot is not None:
            self.transfers.install(ready.snapshot, ready.hard_state or (raft.term, raft.vote, raft.commit))
        if ready.snapshots_wanted:
            self.transfers.wanted(ready.snapshots_wanted)
        if not self._first_commit_seen and raft.leads and raft.committed_in_term:
            self._first_commit()

    # ---- roles -----------------------------------------------------------------------------------

    @property
    def alone(self):
        """This member is the only voter."""
        return tuple(self.raft.conf_state.voters) == (self.raft.id,)

    _heartbeat_at = 0.0  # monotonic seconds of the last tick while leading
    _first_commit_seen = False  # of the present term, while leading
    _changed_at = 0  # the last configuration change that was handed over
    _transferring = 0  # to whom leadership goes, as of the last `_set_taking`

    def _role_changed(self, role, leader):
        raft = self.raft
        term_before, leader_before = self.loop.term, self._status[CONSENSUS_WORDS["leader"]]
        self._show("term", raft.term)
        self._show("leader", leader)
        if (raft.term, leader) != (term_before, leader_before):
            self._leader_changed(leader_before, leader)
        log.info(f"became {ROLE_NAMES[role]}", member_id=f"{raft.id:x}", term=raft.term, leader=f"{leader:x}")
        if not raft.leads:
            if self._first_commit_seen and self._greeted:
                self._hand_hard()
            self._first_commit_seen = False
        self._set_taking()
        if leader:
            self.ask_for_reads()
            self.duties.leader_known()
        self.calls.leader_changed(leader)
        self.messenger.forget()

    def _leader_changed(self, before, leader):
        now = time.monotonic_ns()
        if leader:
            self._show("leader_elected_ns", now)
            self._status[CONSENSUS_WORDS["leader_changes"]] += 1
        elif before:
            self._show("leader_lost_ns", now)
        self.peering.show()

    def _set_taking(self):
        """What becomes of requests, by what this member is just now."""
        raft = self.raft
        self._transferring = raft.transferring
        if self._stopping:
            taking = turns.NOTHING
        elif raft.leads:
            taking = turns.LEADING
            if raft.transferring:
                taking = turns.NOTHING  # what is logged now would only make the other wait
            elif self.alone:
                # Reads are confirmed by the commit index, which is the newest only then.
                taking = turns.ALONE if raft.committed_in_term else turns.NOTHING
        else:
            taking = turns.FOLLOWING if raft.leader else turns.NOTHING
        self.loop.take(taking, raft.term, raft.leader)

    def _first_commit(self):
        """The first entry of this leader's term is committed: its state is the newest there is."""
        self._first_commit_seen = True
        self._set_taking()
        self.duties.first_commit()
        if self._greeted:
            self._hand_hard()

    def _hand_hard(self):
        """Tell apply, behind what it was handed, whether this member leads: leases end by the leader's clock."""
        self.loop.hand_hard(max(self.raft.commit if self.raft.leads else self.loop.handed, 1), self.raft.term)

    @property
    def peer_listeners(self):
        """(listening socket, whether it speaks TLS) of the peer URLs."""
        return [(socket.socket(fileno=fd), is_tls(url)) for url, fd, _ in self._boot.listen]

    def on_reload(self, callback):
        self._boot.on_reload(callback)

    def removed_by_others(self):
        """A peer says that this member is not of the cluster any more."""
        if not self._removed_at:
            log.warn("the other members know this one as removed; it stops", member_id=f"{self.raft.id:x}")
            self._removed_at = time.monotonic()

    def members_changed(self):
        """The membership is another now: links, status and views follow."""
        own = self.membership.members.get(self.opened.member_id)
        self._show("learner", int(own is not None and own.is_learner))
        self._show("cluster_version", versions.packed(self.membership.cluster_version))
        self.loop.tell_appended = len(self.membership.members) > 1
        self.peering.sync()
        if self.raft.role or self.raft.leader:
            self._set_taking()

    # ---- reads -----------------------------------------------------------------------------------

    def ask_for_reads(self):
        """A round of ReadIndex for the reads that wait; asked again when its answer may have got lost."""
        if not self.loop.reads_wait:
            return
        context = self.loop.next_request_id().to_bytes(8)
        self._read_asked = time.monotonic()
        try:
            self.raft.read_index(context)
        except ProposalDropped:
            return  # no leader: they are asked for when there is one
        if len(self._read_contexts) >= 64:
            self._read_contexts.clear()
        self._read_contexts.add(context)

    def propose_change(self, request_id, data):
        """Log a configuration change, here or by way of the leader; False when that cannot be."""
        if not self.raft.leads:
            # A leader that was deposed in this very turn must not log one: its core would not know of it.
            return self.loop.taking == turns.FOLLOWING and self.loop.propose(ENTRY_CONF_CHANGE, data, 0)
        try:
            self.raft.applied_to(self.loop.handed)
            self.raft.log.propose(self.raft, data, ENTRY_CONF_CHANGE, request_id)
        except ProposalDropped:
            return False
        return True

    def _propose_for_peer(self, entry_type, data):
        """A configuration change that came with another member's proposals."""
        try:
            self.raft.applied_to(self.loop.handed)
            self.raft.propose(data, entry_type)
        except ProposalDropped:
            pass  # who asked runs into its deadline, as in etcd

    def _signalled(self, numbers):
        if signal.SIGHUP in numbers:
            self._boot.reload()
        if signal.SIGTERM in numbers:
            self._stopping = True

    # ---- rare events -----------------------------------------------------------------------------

    def _rare(self, events):
        if events & _FATAL:
            self._fail(events)
        if events & turns.WAKE:
            self._signalled(os.read(self._wake, 64))
        if events & turns.CONF:
            self._members_entry(self.loop.conf_index)
        if events & turns.HARD:
            self._greet()
        if events & turns.OWN:
            self.duties.done(self.loop.take_own())
        if events & turns.CALLS:
            for record in self.loop.take_calls():
                self.calls.take(record)
        if events & turns.INBOX:
            self.peering.take_inbox()
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

    def _members_entry(self, index):
        """A committed entry that concerns the members is with apply."""
        entry_type, data = self.loop.entry(index)[1:]
        raft = self.raft
        if entry_type == ENTRY_CONF_CHANGE:
            self._changed_at = index
            change = decode_conf_change(data)
            if index > self._members_known_to:
                refused = self.membership.apply_conf_change(change)
                # A snapshot may have told of its members before the log does; raft has them from the log alone.
                no_news = refused and not self._is_ahead_of_raft(change.node_id)
                raft.apply_conf_change(index, ConfChange(change.type, 0 if no_news else change.node_id))
                log.info(
                    "applied a configuration change",
                    member_id=f"{change.node_id:x}",
                    type=change.type,
                    refused=refused or "",
                    index=index,
                )
            self.calls.change_applied(change.id)
        elif entry_type:
            raise ProcessFault(f"entry {index} is of type {entry_type}, which no etcd writes")
        elif index > self._members_known_to:
            self.membership.apply_own_request(data)
        if index > self._members_known_to:
            self.members_changed()
            if self.opened.member_id in self.membership.removed and not self._removed_at:
                log.warn("this member is removed from the cluster; it stops", member_id=f"{raft.id:x}")
                self._removed_at = time.monotonic()
        raft.applied_to(index)

    def _is_ahead_of_raft(self, member_id):
        member, state = self.membership.members.get(member_id), self.raft.conf_state
        if member is None:
            return member_id in (*state.voters, *state.learners)
        return member_id not in (state.learners if member.is_learner else state.voters)

    def publish_done(self):
        """This member's name and URLs are in the log: it may serve."""
        if not self._greeted:
            # Alone, this member has the cluster's version right behind it in the log: clients shall see that too.
            self.loop.hand_hard(self.loop.last_index if self.alone else self.loop.handed, self.raft.term)

    def _greet(self):
        """Everything a start has to commit is with apply."""
        if self._greeted:
            return
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
        loop, raft = self.loop, self.raft
        self._show("alive_ns", time.monotonic_ns())
        raft.applied_to(loop.handed)
        raft.tick()
        loop.flush_hard_state()
        if self.opened.table is not None and loop.release_replay():
            self.opened = self.opened._replace(table=None)
        self._watch_disk()
        if self._import_to_mend:
            self._mend_import()
        if loop.tell_appended:
            self._tick_cluster()
        self.duties.tick()
        self.transfers.tick()
        self.checks.tick()
        self.calls.tick()
        if self._greeted:
            self._advance_snapshots()
        # A removed member tells nobody anything new; a second lets its last answers leave, as in etcd.
        if self._removed_at and time.monotonic() - self._removed_at > 1:
            raise MemberRemoved

    def _advance_ticks(self):
        """At a start: once other members can be heard and there is no leader, only the random part of an election
        timeout is sat out, as in etcd."""
        if self.raft.leader or time.monotonic() > self._advance_before:
            self._advance_before = 0.0
        elif self._status[CONSENSUS_WORDS["peers_active"]] > 1:
            self._advance_before = 0.0
            for _ in range(self.config.election_ticks - 2):
                self.raft.tick()

    def _mend_import(self):
        """An imported store has the members as etcd 3.5 leaves them in its database, which is not always right. Told
        behind the entries that the membership read at the start includes."""
        if self.loop.handed >= self._members_known_to and self.membership.members:
            self._import_to_mend = not self.loop.tell_apply(KINDS["MEMBERS"], self.membership.to_json().encode())

    def _tick_cluster(self):
        loop, raft = self.loop, self.raft
        if self._advance_before:
            self._advance_ticks()
        self.reader.tick()
        if self.messenger.deferred:
            self.messenger.retry()
        self.peers.heartbeat()
        self.peers.flush()
        self.peering.tick()
        loop.unblock_forward()
        if loop.reads_wait and time.monotonic() - self._read_asked >= READ_RETRY_SECONDS:
            meters.count("slow_read_indexes")
            self.ask_for_reads()
        self._note_heartbeat(raft.leads)
        self._show("proposals_forwarded", self.peers.forwarded)
        self._yielding.note(0 if raft.leads or not raft.leader else self.peers.behind)
        loop.keep_index = loop.handed
        wanted = ()
        if raft.leads:
            others = [progress for member, progress in raft.progress.items() if member != raft.id]
            # Memory is for those who keep up, the log's files for those who are away.
            loop.keep_index = min((p.match for p in others if p.recent_active), default=loop.handed)
            wanted = [p.match + 1 for p in others]
        self.opened.disk.keep_from(self.snapshots.keep_from(wanted))

    def _note_heartbeat(self, leads):
        """Heartbeats that left so late that others may have stood for election meanwhile."""
        now = time.monotonic()
        if leads and self._heartbeat_at and now - self._heartbeat_at > 2 * self.config.heartbeat_interval / 1000:
            meters.count("heartbeat_failures", len(self.peers.members))
        self._heartbeat_at = now if leads else 0.0

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
        index = min(flushed, self.loop.handed)
        if self._changed_at > index:
            # The membership is that of an entry behind it, which is to be flushed first: a change that was refused must
            # not meet a later one's outcome when it is replayed. Names and versions may come again.
            index = self.snapshots.index
        try:
            if self.snapshots.advance(self.loop, index, log_bytes, self._describe):
                self.loop.wal.release_to(self.snapshots.index)
                self._show("snapshot_index", self.snapshots.index)
                # The files may still hold entries before it, for members that are behind.
                self.raft.log.forget_to(min(self.snapshots.index, self.reader.first_index - 1))
        except OSError as err:
            raise DiskFailed(f"cannot write a snapshot file in {self.config.member_dir}: {err.strerror}") from None

    def _describe(self, index):
        """(term, ConfState, data) of a snapshot at `index`."""
        return self.raft.log.term(index), self.membership.conf_state(), self.membership.snapshot()

    def show(self, word, value):
        self._status[CONSENSUS_WORDS[word]] = value

    _show = show

    def apply_word(self, word):
        """A word of apply's status page."""
        return self._apply[APPLY_WORDS[word]]

    # ---- stop ------------------------------------------------------------------------------------

    def _stop(self):
        """Everything taken in becomes durable, and what is committed goes to apply; then the log is closed."""
        loop, raft = self.loop, self.raft
        log.info("stopping consensus", last_index=loop.last_index, commit_index=loop.commit)
        loop.take(turns.NOTHING, raft.term, 0)
        deadline = time.monotonic() + STOP_SECONDS
        self.transfers.hand_over_leadership(deadline)
        while not (loop.idle and (loop.commit == loop.last_index or not self.alone)) and time.monotonic() < deadline:
            self.turn()
        if loop.handed < loop.commit:
            log.warn("apply did not take every committed entry in time; it will at the next start", handed=loop.handed)
        self.peering.stop()
        loop.hard_state(raft.term, raft.vote, raft.commit)
        try:
            self.opened.disk.append_state(raft.term, raft.vote, raft.commit)
            self.opened.disk.close()
        except WalError as err:
            raise DiskFailed(str(err)) from None


def _log_behind(opened, commit):
    """The raft log in memory: behind what is committed, which apply gets from the log as it was read.

    What is not committed may still be replaced by another leader's entries.
    """
    table, last = opened.table, opened.last_index
    rows = [] if table is None else range(len(table))
    if not rows or commit >= last:
        return _new_log(last, opened.last_term, 0, 0)
    first = table.entry(0)[2]
    start = max(commit + 1, first)
    tail = [table.entry(index - first) for index in range(start, last + 1)]
    term = table.entry(start - 1 - first)[1] if start > first else opened.snapshot[1]
    entries = _new_log(start - 1, term, len(tail), sum(len(data or b"") + 64 for *_, data in tail))
    for entry_type, term, _, data in tail:
        entries.append(term, data or b"", entry_type)
    return entries


def _new_log(index, term, rows, size):
    rows_max = LOG_ROWS_MAX
    while rows_max < 2 * rows:
        rows_max *= 2
    return RaftLog(index, term, rows_max=rows_max, bytes_max=max(LOG_BYTES_MAX, 2 * size))


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
