"""Scenarios of several members, in the form of scenario.py. The first command is `cluster`.

cluster 1 2 3 learners=4 prevote=no entries=1    members; entries: most entries in one message
member 2 term=3 vote=1 commit=1 log=1,1,2        before all else: a member with a past; log: the term of each entry
campaign 1 | tick 1 5                            tick stops when somebody stands for election
elect 1            campaign, and run: shows only who became what
pass 5             ticks of everybody with all messages delivered; shows only who became what
propose 1 a b      entries, one by one, at a leader or a follower
change 1 add 4     also learner, promote, remove; a member that is new starts with nothing
read 2 r1 | transfer 1 2 | unreachable 1 2
run                deliver messages until none is left, and show them; those on cut links are lost
step               deliver only what is under way now
drop               lose what is under way; drop 1 2: only from 1 to 2
cut 1 2 | cut 1>2 | isolate 1 | heal             links, both ways or one way
disk 2 hold | disk 2 go                          writes wait, are made
ring 2 full | ring 2 go                          nothing is handed over, it goes on
crash 1 | restart 1                              what was not written is lost
compact 1 5        a snapshot at 5; the log before it goes
old 3              from now on its refusals look like etcd 3.4's
show
"""

from etcdfast.consensus.raft import (
    ENTRY_CONF_CHANGE,
    ROLE_NAMES,
    HardState,
    Message,
    ProposalDropped,
    Raft,
    RaftConfig,
    SnapshotMeta,
    messages,
)
from etcdfast.consensus.raft.messages import MSG_APP, MSG_APP_RESP, MSG_PROP, MSG_SNAP
from etcdfast.consensus.raft.progress import STATE_NAMES
from tests.consensus.sim.disk import Disk, Image, Snapshot
from tests.consensus.sim.entries import Batch, Roster, SimLog

ELECTION_TICKS = 10
_NAMES = {
    number: "".join(word.capitalize() for word in name.split("_")[1:])
    for name, number in vars(messages).items()
    if name.startswith("MSG_")
}


class Node:
    def __init__(self, cluster, member, image):
        self.cluster, self.id, self.disk = cluster, member, Disk(image)
        self.held = self.old = self.full = False
        self.start()

    def start(self):
        image = self.disk.image
        self.roster = image.snapshot.roster.copy()
        commit = max(image.state[2], image.snapshot.index)
        for _, kind, data in image.entries[: commit - image.snapshot.index]:
            if kind == ENTRY_CONF_CHANGE:
                self.roster.apply(*data)
        self.log = SimLog(image.snapshot.index, image.snapshot.term, image.entries, lambda *entry: None)
        self.raft = self.cluster.raft_class(
            # The random part of the election timeout grows with the id: 1 is first.
            RaftConfig(
                self.id,
                ELECTION_TICKS,
                lambda n: min(self.id - 1, n - 1),
                pre_vote=self.cluster.pre_vote,
                message_bytes_max=self.cluster.entries_max,
            ),
            self.log,
            HardState(*image.state[:2], commit),
            self.roster.conf_state(),
            commit,
        )
        self.handed = self.commit_ready = commit
        self.reads = []

    def settle(self):
        """Everything that follows from what happened, but for what comes by the network."""
        raft = self.raft
        if raft is None:
            return []
        shown = self._hand_over()
        while True:
            while raft.has_ready():
                shown += self._carry_out(raft.ready())
            self._write_changes()
            if self.held or self.disk.idle:
                return shown
            self.disk.start_sync()
            raft.persisted(*self.disk.end_sync())

    def _carry_out(self, ready):
        raft, shown = self.raft, []
        if ready.snapshot:
            snapshot = self.cluster.snapshots[ready.snapshot.index]
            self.disk.write(("snapshot", snapshot))
            self.roster, self.handed = snapshot.roster.copy(), snapshot.index
            shown.append(f"{self.id} installs the snapshot at {snapshot.index}")
        self._write_changes()
        if ready.hard_state:
            self.disk.write(("state", tuple(ready.hard_state)))
        if ready.soft:
            role, leader = ready.soft
            shown.append(f"{self.id} {ROLE_NAMES[role]} term={raft.term} leader={leader}")
        self.commit_ready = ready.commit
        shown += self._hand_over()
        shown += [f"{self.id} read {read.context.decode()} behind {read.index}" for read in ready.reads]
        for message in ready.messages:
            if message.type == MSG_APP:
                first, last = message.entries
                message = message._replace(entries=Batch(first, self.log.slice(first, last)))
            elif message.type == MSG_APP_RESP and message.reject and self.old:
                message = message._replace(log_term=0, reject_hint=min(message.index, self.log.last_index))
            self.cluster.under_way.append(message)
        for peer in ready.snapshots_wanted:
            snapshot = Snapshot(self.handed, self.log.term(self.handed), self.roster.copy())
            self.cluster.snapshots[self.handed] = snapshot
            meta = SnapshotMeta(self.handed, snapshot.term, self.roster.conf_state())
            raft.snapshot_sent(peer, self.handed)
            self.cluster.under_way.append(Message(MSG_SNAP, peer, self.id, raft.term, snapshot=meta))
        return shown

    def _hand_over(self):
        raft, shown = self.raft, []
        while self.handed < self.commit_ready and not self.full:
            self.handed += 1
            _, kind, data = self.log.entry(self.handed)
            if kind == ENTRY_CONF_CHANGE:
                state = raft.apply_conf_change(self.handed, self.roster.apply(*data))
                shown.append(f"{self.id} voters={list(state.voters)} learners={list(state.learners)}")
        raft.applied_to(self.handed)
        return shown

    def _write_changes(self):
        changes = self.log.take_changes()
        if changes:
            for index, entry in enumerate(changes[1], changes[0]):
                self.disk.write(("entry", index, entry))

    def show(self):
        if self.raft is None:
            return f"{self.id} down"
        raft, log = self.raft, self.log
        entries = " ".join(
            f"{index}/{log.term(index)}{'c' if log.entry(index)[1] else ''}"
            for index in range(log.first_index, log.last_index + 1)
        )
        known = ""
        if raft.leads:
            known = " " + " ".join(
                f"{member}:{at.match} {STATE_NAMES[at.state]}"
                for member, at in sorted(raft.progress.items())
                if member != self.id
            )
        moving = f" transferring={raft.transferring}" if raft.transferring else ""
        return (
            f"{self.id} {ROLE_NAMES[raft.role]} term={raft.term} vote={raft.vote} leader={raft.leader} "
            f"commit={raft.commit}{moving} [{entries}]{known}"
        )


class ClusterScenario:
    def __init__(self, raft_class=Raft):
        self.raft_class = raft_class

    def run(self, line):
        command, *words = line.split()
        named = dict(word.split("=") for word in words if "=" in word)
        plain = [word for word in words if "=" not in word]
        try:
            shown = getattr(self, f"do_{command}")(*plain, **named) or []
        except ProposalDropped as err:
            shown = [f"ProposalDropped: {err}"]
        for node in self.nodes.values():
            shown += node.settle()
        return shown or ["ok"]

    # ---- set-up ----------------------------------------------------------------------------------

    def do_cluster(self, *voters, learners="", prevote="yes", entries="100"):
        self.pre_vote, self.entries_max = prevote == "yes", int(entries)
        self.under_way, self.snapshots, self.cuts, self.nodes = [], {}, set(), {}
        self.roster = Roster(map(int, voters), [int(member) for member in learners.split(",") if member])
        for member in sorted(self.roster.voters | self.roster.learners):
            self.do_member(member)

    def do_member(self, member, term="0", vote="0", commit="0", log=""):
        entries = [(int(word), 0, "x") for word in log.split(",") if word]
        # The configuration comes with the start of the log, not with its entries.
        image = Image(Snapshot(0, 0, self.roster), entries, (int(term), int(vote), int(commit)))
        self.nodes[int(member)] = Node(self, int(member), image)

    # ---- what happens ----------------------------------------------------------------------------

    def do_campaign(self, member):
        self._raft(member).campaign()

    def do_tick(self, member, count="1"):
        node = self.nodes[int(member)]
        for number in range(1, int(count) + 1):
            before = node.raft.term, node.raft.role
            node.raft.tick()
            shown = node.settle()
            if (node.raft.term, node.raft.role) != before:
                return [f"tick {number}", *shown]
        return []

    def do_elect(self, member):
        self._raft(member).campaign()
        return self._events(self.nodes[int(member)].settle() + self.do_run())

    def do_pass(self, count):
        shown = []
        for _ in range(int(count)):
            for node in self.nodes.values():
                if node.raft:
                    node.raft.tick()
                    shown += node.settle()
            shown += self._events(self.do_run())
        return shown

    def _events(self, lines):
        return [line for line in lines if line.split()[0].isdigit()]

    def do_propose(self, member, *values):
        for value in values:
            self._propose(member, value, 0)

    def do_change(self, member, kind, other):
        if int(other) not in self.nodes:
            self.do_member(other)
        self._propose(member, (kind, int(other)), ENTRY_CONF_CHANGE)

    def _propose(self, member, data, kind):
        raft = self._raft(member)
        if raft.leads:
            raft.propose(data, kind)
        else:
            raft.step(Message(MSG_PROP, entries=Batch(0, [(0, kind, data)])))

    def do_read(self, member, context):
        self._raft(member).read_index(context.encode())

    def do_transfer(self, member, to):
        self._raft(member).transfer_leader(int(to))

    def do_unreachable(self, member, peer):
        self._raft(member).report_unreachable(int(peer))

    def _raft(self, member):
        return self.nodes[int(member)].raft

    # ---- network ---------------------------------------------------------------------------------

    def do_run(self):
        shown = []
        for _ in range(1000):
            if not self.under_way:
                return shown or ["nothing under way"]
            shown += self.do_step()
        raise AssertionError("messages go on for ever")

    def do_step(self):
        now, self.under_way = self.under_way, []
        shown = []
        for message in now:
            to = self.nodes.get(message.to)
            lost = (message.frm, message.to) in self.cuts or to is None or to.raft is None
            shown.append(describe(message) + (" lost" if lost else ""))
            sender = self.nodes[message.frm].raft if message.frm in self.nodes else None
            if not lost:
                to.raft.step(message)
                shown += to.settle()
            if message.type == MSG_SNAP and sender:
                sender.report_snapshot(message.to, not lost)
                shown += self.nodes[message.frm].settle()
        return shown or ["nothing under way"]

    def do_drop(self, frm="", to=""):
        kept = [m for m in self.under_way if frm and (m.frm, m.to) != (int(frm), int(to))]
        lost = len(self.under_way) - len(kept)
        self.under_way = kept
        return [f"{lost} lost"]

    def do_cut(self, *ends):
        if len(ends) == 1:
            frm, to = map(int, ends[0].split(">"))
            self.cuts.add((frm, to))
        else:
            one, other = map(int, ends)
            self.cuts |= {(one, other), (other, one)}

    def do_isolate(self, member):
        for other in self.nodes:
            self.cuts |= {(other, int(member)), (int(member), other)}

    def do_heal(self):
        self.cuts.clear()

    # ---- disks and lives -------------------------------------------------------------------------

    def do_disk(self, member, what):
        self.nodes[int(member)].held = what == "hold"

    def do_crash(self, member):
        node = self.nodes[int(member)]
        node.raft = None
        node.disk.drop()
        self.under_way = [message for message in self.under_way if message.frm != node.id]

    def do_restart(self, member):
        self.nodes[int(member)].start()

    def do_ring(self, member, what):
        self.nodes[int(member)].full = what == "full"

    def do_compact(self, member, index):
        node = self.nodes[int(member)]
        node.disk.write(("mark", Snapshot(int(index), node.log.term(int(index)), node.roster.copy())))
        node.log.release(int(index))

    def do_old(self, member):
        self.nodes[int(member)].old = True

    def do_show(self):
        return [node.show() for _, node in sorted(self.nodes.items())]


def describe(message):
    parts = [f"{message.frm}>{message.to} {_NAMES[message.type]}"]
    if message.term:
        parts.append(f"term={message.term}")
    kind = _NAMES[message.type]
    if kind == "App":
        parts.append(f"after={message.index}/{message.log_term}")
        terms = [entry[0] for entry in message.entries.entries]
        if terms:
            parts.append("entries=" + ",".join(f"{i}/{t}" for i, t in enumerate(terms, message.entries.first)))
        parts.append(f"commit={message.commit}")
    elif kind == "AppResp":
        parts.append(f"index={message.index}")
        if message.reject:
            parts.append(f"hint={message.reject_hint}/{message.log_term}")
    elif kind in ("Vote", "PreVote"):
        parts.append(f"last={message.index}/{message.log_term}")
    elif kind == "Heartbeat":
        parts.append(f"commit={message.commit}")
    elif kind == "ReadIndexResp":
        parts.append(f"index={message.index}")
    elif kind == "Snap":
        parts.append(f"at={message.snapshot.index}/{message.snapshot.term}")
    elif kind == "Prop":
        parts.append(" ".join(str(entry[2]) for entry in message.entries.entries))
    if message.reject:
        parts.append("reject")
    if message.context:
        context = message.context
        parts.append(f"round={context[7]}" if len(context) == 8 and not context[0] else context.decode())
    return " ".join(parts)
