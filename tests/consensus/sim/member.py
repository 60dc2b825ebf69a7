"""One member: the core, its log and disk, and what a process does around them."""

from etcdfast.consensus.raft import ENTRY_CONF_CHANGE, LEADER, HardState, Message, ProposalDropped, RaftConfig
from etcdfast.consensus.raft.messages import (
    MSG_APP,
    MSG_APP_RESP,
    MSG_PROP,
    MSG_SNAP,
    MSG_VOTE,
    MSG_VOTE_RESP,
    SnapshotMeta,
)
from etcdfast.consensus.raft.progress import PROBE
from etcdfast.consensus.raft.replication import Replication
from tests.consensus.sim.disk import Snapshot
from tests.consensus.sim.entries import Batch, SimLog

READ_RETRY_MS = 500
LOG_KEPT_MAX = 12  # entries kept behind a member's own snapshot


class Member:
    """`up` between start and crash. Everything that happens to it waits in the inbox for its next turn."""

    def __init__(self, world, member_id, disk):
        self.world = world
        self.id = member_id
        self.disk = disk
        self.up = False
        self.life = 0  # events of an earlier life are void
        self.tick_ms = 100
        self.pre_vote = True
        self.old = False  # see World settings
        self.paused_until = 0
        self.sync_ms_max = 3
        self.report_late_ms_max = 2
        self.removed_at = 0  # entry by which it was removed, as it knows
        self.gone = False
        self.stored = 0  # the store has flushed up to here
        self.raft = self.log = self.roster = None

    # ---- life ------------------------------------------------------------------------------------

    def start(self):
        world, image = self.world, self.disk.image
        self.life += 1
        self.up = True
        term, vote, commit = image.state
        last_term = image.term(image.last_index)
        if last_term > term:
            term, vote = last_term, 0
        commit = max(commit, image.snapshot.index, self.stored)
        self.roster = image.snapshot.roster.copy()
        applied_conf = image.snapshot.index
        for index in range(image.snapshot.index + 1, commit + 1):
            _, kind, data = image.entries[index - image.snapshot.index - 1]
            if kind == ENTRY_CONF_CHANGE:
                self.roster.apply(*data)
                applied_conf = index
        self.log = SimLog(image.snapshot.index, image.snapshot.term, image.entries, world.checker.entry)
        settings = world.settings
        config = RaftConfig(
            self.id,
            settings.election_ticks,
            world.chance.randrange,
            pre_vote=self.pre_vote,
            message_bytes_max=settings.message_entries_max,
            inflight_max=settings.inflight_max,
            inflight_full_max=settings.inflight_full_max,
        )
        self.raft = world.raft_class(
            config, self.log, HardState(term, vote, commit), self.roster.conf_state(), applied_conf
        )
        if settings.clumsy and type(self.raft._replication) is Replication:
            self.raft._replication.__class__ = _clumsy(world.chance)
        self.handed = commit
        self.commit_ready = commit  # may be handed over
        self.commit_seen = commit
        self.role_seen = (None, 0)
        self.inbox = []
        self.scheduled = False
        self.stalled = False  # the ring to apply is full
        self.installing = None  # a snapshot on its way to the disk
        self.waiting = set()  # proposals made here
        self.reads = {}  # context -> commit index that somebody knew when it was asked
        world.trace(
            f"{self.id} starts: term {term} commit {commit} last {self.log.last_index} {self.roster.conf_state()[:2]}"
        )
        world.after(world.chance.randint(1, self.tick_ms), self._tick, self.life)

    def crash(self):
        self.world.trace(f"{self.id} crashes")
        self.up = False
        self.life += 1
        self.disk.crash(self.world.chance)
        self.raft = self.log = None

    def _tick(self, life):
        if life == self.life:
            self.put(self.raft.tick)
            self.world.after(self.tick_ms, self._tick, life)

    # ---- turns -----------------------------------------------------------------------------------

    def put(self, call, *args):
        """Something for the next turn."""
        if not self.up:
            return
        self.inbox.append((call, args))
        if not self.scheduled:
            self.scheduled = True
            world = self.world
            delay = world.chance.randint(0, world.settings.turn_ms_max)
            world.after(max(delay, self.paused_until - world.now), self._turn, self.life)

    def _turn(self, life):
        if life != self.life:
            return
        self.scheduled = False
        inbox, self.inbox = self.inbox, []
        raft = self.raft
        for call, args in inbox:
            call(*args)
        while raft.has_ready():
            self._carry_out(raft.ready())
            self._hand_over()
        self._hand_over()
        self._write_changes()
        self._watch()
        if self.disk.start_sync():
            self._sync()

    def _carry_out(self, ready):
        if ready.snapshot is not None:
            self._install(ready.snapshot)
        if self.world.settings.state_first:
            self._write_state(ready.hard_state)
            self._write_changes()
        else:
            self._write_changes()
            self._write_state(ready.hard_state)
        self.commit_ready = ready.commit
        for message in ready.messages:
            self._send(message)
        for read in ready.reads:
            self._read_confirmed(read)
        for peer in ready.snapshots_wanted:
            self.world.after(self.world.chance.randint(1, 50), self._send_snapshot, self.life, peer)

    def _write_state(self, state):
        if state is not None:
            self.disk.write(("state", tuple(state)))

    def _write_changes(self):
        changes = self.log.take_changes()
        if changes:
            for index, entry in enumerate(changes[1], changes[0]):
                self.disk.write(("entry", index, entry))

    def _watch(self):
        """Show the checker what this turn changed."""
        raft, world = self.raft, self.world
        role = (raft.role, raft.term)
        if role != self.role_seen:
            self.role_seen = role
            if raft.role == LEADER:
                world.trace(f"{self.id} leads term {raft.term}, last {self.log.last_index}")
                world.checker.leads(self)
                world.moment(self)
        if raft.commit != self.commit_seen:
            world.checker.commits(self, self.commit_seen)
            self.commit_seen = raft.commit

    # ---- disk ------------------------------------------------------------------------------------

    def _sync(self):
        self.world.after(self.world.chance.randint(1, self.sync_ms_max), self._sync_ended, self.life)

    def _sync_ended(self, life):
        if life != self.life:
            return
        report = self.disk.end_sync()
        late = self.world.chance.randint(0, self.report_late_ms_max)
        if late:
            self.world.after(late, self._report, life, report)
        else:
            self._report(life, report)
        if self.disk.start_sync():
            self._sync()

    def _report(self, life, report):
        if life == self.life:
            self.put(self._persisted, *report)

    def _persisted(self, *report):
        installing = self.installing
        if installing and self.disk.image.snapshot.index >= installing.index:
            self.installing = None
            self.handed = self.stored = installing.index
            self.roster = installing.roster.copy()
            if self.world.chance.random() < 0.5:
                # As the process does it: it starts anew from the snapshot.
                life = self.life
                self.world.after(0, lambda: life == self.life and self.world.restart(self))
        self.raft.persisted(*report)

    # ---- hand-over -------------------------------------------------------------------------------

    def _hand_over(self):
        if self.installing or self.stalled:
            return
        raft, checker = self.raft, self.world.checker
        chance, settings = self.world.chance, self.world.settings
        while self.handed < self.commit_ready:
            if settings.ring_full and chance.random() < settings.ring_full:
                # The rest with a later turn.
                if not self.stalled:
                    self.stalled = True
                    self.world.after(chance.randint(1, settings.ring_stall_ms), self._nudge, self.life)
                break
            index = self.handed + 1
            entry = self.log.entry(index)
            checker.applies(self, index, entry)
            self.handed = index
            _, kind, data = entry
            if kind == ENTRY_CONF_CHANGE:
                conf_state = raft.apply_conf_change(index, self.roster.apply(*data))
                assert conf_state[:2] == self.roster.conf_state()[:2]
                self.world.trace(f"{self.id} applies {data} at {index}: {conf_state[:2]}")
                if self.id in self.roster.removed:
                    self.world.removed(self, index)
                self.world.moment(self)
            if data in self.waiting:
                self.waiting.discard(data)
                checker.acknowledges(data, index)
        raft.applied_to(self.handed)

    def _nudge(self, life):
        if life == self.life:
            self.stalled = False
            self.put(lambda: None)

    def flush_store(self):
        self.stored = self.handed

    def compact(self):
        """A snapshot of its own; the log before it goes, but for a few entries."""
        if self.installing or self.handed <= self.log.first_index:
            return
        index = self.handed
        self.disk.write(("mark", Snapshot(index, self.log.term(index), self.roster.copy())))
        self.stored = index
        release = index - self.world.chance.randint(0, LOG_KEPT_MAX)
        if release >= self.log.first_index:
            # Entries in memory that still wait for the disk stay: their write comes first.
            self._write_changes()
            self.log.release(release)

    # ---- clients ---------------------------------------------------------------------------------

    def propose(self, data, kind=0):
        self.put(self._propose, data, kind)

    def _propose(self, data, kind):
        raft, chance = self.raft, self.world.chance
        try:
            if raft.leads and chance.random() < 0.5:
                raft.propose(data, kind)
            elif raft.leads and not kind and not raft.transferring and chance.random() < 0.5:
                # As the data path does it: the log grows first.
                self.log.append(raft.term, data)
                raft.appended(self.log.last_index)
            else:
                raft.step(Message(MSG_PROP, frm=self.id, entries=Batch(0, [(0, kind, data)])))
        except ProposalDropped:
            return
        self.waiting.add(data)

    def read(self, context):
        self.put(self._read, context)
        return self.world.checker.commit_max

    def _read(self, context):
        self.reads.setdefault(context, self.world.checker.commit_max)
        self._ask(self.life, context)

    def _ask(self, life, context):
        if life != self.life or context not in self.reads:
            return
        try:
            self.raft.read_index(context)
        except ProposalDropped:
            pass
        self.world.after(READ_RETRY_MS, self._ask_again, life, context)

    def _ask_again(self, life, context):
        if life == self.life:
            self.put(self._ask, life, context)

    def _read_confirmed(self, read):
        asked = self.reads.pop(read.context, None)
        if asked is not None:
            self.world.checker.read(self.id, read.index, asked)
            self.world.reads_done.add(read.context)

    # ---- messages --------------------------------------------------------------------------------

    def _send(self, message):
        checker = self.world.checker
        kind = message.type
        if kind == MSG_APP:
            first, last = message.entries
            message = message._replace(entries=Batch(first, self.log.slice(first, last)))
        elif kind == MSG_APP_RESP:
            if message.reject:
                if self.old:
                    message = message._replace(log_term=0, reject_hint=min(message.index, self.log.last_index))
            else:
                checker.accepts(self, message.term, message.index)
        elif kind == MSG_VOTE:
            checker.votes_for(self, message.term, self.id)
        elif kind == MSG_VOTE_RESP and not message.reject:
            checker.votes_for(self, message.term, message.to)
        if not self.world.send(self.id, message) and self.world.chance.random() < 0.3:
            self.put(self.raft.report_unreachable, message.to)

    # ---- snapshots -------------------------------------------------------------------------------

    def _send_snapshot(self, life, peer):
        if life != self.life:
            return
        world, index = self.world, self.handed
        if index < self.log.first_index - 1:
            return self.put(self.raft.report_snapshot, peer, False)
        term, roster = self.log.term(index), self.roster.copy()
        meta = SnapshotMeta(index, term, roster.conf_state())
        message = Message(MSG_SNAP, peer, self.id, self.raft.term, snapshot=meta)
        self.put(self.raft.snapshot_sent, peer, index)
        # The state itself; the message alone would name it only.
        world.snapshots[index, term] = Snapshot(index, term, roster)
        delay = world.chance.randint(5, 200)
        arrives = world.send(self.id, message, delay)
        ok = arrives and world.chance.random() < 0.9
        world.after(delay + world.chance.randint(1, 20), self._snapshot_ended, life, peer, ok)

    def _snapshot_ended(self, life, peer, ok):
        if life == self.life:
            self.put(self.raft.report_snapshot, peer, ok)

    def _install(self, meta):
        snapshot = self.world.snapshots[meta.index, meta.term]
        self.world.checker.snapshot(self.id, snapshot)
        self.world.trace(f"{self.id} installs the snapshot at {meta.index}")
        self.installing = snapshot
        self.disk.write(("snapshot", snapshot))


def _clumsy(chance):
    """A leader's side of replication that goes back further than it has to, so that followers get what they have."""

    class Clumsy(Replication):
        __slots__ = ()

        def rejected(self, at, index, hint, hint_term):
            super().rejected(at, index, hint, hint_term)
            if at.state == PROBE:
                at.next = max(at.match + 1, at.next - chance.randint(0, 6))

    return Clumsy
