"""A run: a cluster, clients, a time of faults, then a time without in which everything must come right.

Everything that happens is drawn from one seed, so a run repeats exactly.
"""

import heapq
import random
from collections import namedtuple

from etcdfast.consensus.raft import ENTRY_CONF_CHANGE, Raft
from tests.consensus.sim.checker import Checker, Violation
from tests.consensus.sim.disk import Disk, Image, Snapshot
from tests.consensus.sim.entries import Roster
from tests.consensus.sim.member import Member
from tests.consensus.sim.network import Network

Settings = namedtuple(
    "Settings",
    "members election_ticks pre_vote message_entries_max inflight_max inflight_full_max turn_ms_max state_first "
    "ring_full ring_stall_ms delay_max sync_ms_max fault_ms hunt changes compaction clumsy old",
)

CHAOS_MS = 8000
MEMBERS_MAX = 8
HEAL_MS_MAX = 120_000
CHECK_MS = 200


# Leaders fall one after the other, each with entries that few have: figure 8 of the paper.
FALLING_LEADERS = {
    "members": 5,
    "election_ticks": 3,
    "pre_vote": 0,
    "message_entries_max": 1,
    "inflight_max": 1,
    "delay_max": 100,
    "fault_ms": 200,
    "hunt": 1,
    "changes": 0,
    "compaction": 0,
}
# Members come and go while hand-over lags behind: configurations differ between members.
LATE_CONFIGURATIONS = {
    "members": 3,
    "election_ticks": 3,
    "ring_full": 0.2,
    "ring_stall_ms": 2000,
    "fault_ms": 100,
    "hunt": 1,
    "changes": 20,
}


def draw_settings(chance):
    settings = Settings(
        members=chance.choice((3, 3, 5, 5, 7)),
        election_ticks=chance.choice((3, 3, 5, 10)),
        pre_vote=chance.choice((1, 1, 1, 0, 0.5)),  # share of members that ask first
        message_entries_max=chance.choice((1, 2, 5, 100)),
        inflight_max=chance.choice((1, 4, 512)),
        inflight_full_max=chance.choice((1, 16)),
        turn_ms_max=chance.choice((0, 1, 5)),
        state_first=chance.random() < 0.5,
        ring_full=chance.choice((0, 0, 0.1, 0.4)),
        ring_stall_ms=chance.choice((40, 2000)),
        delay_max=chance.choice((4, 4, 30)),  # of a message while the network is well
        sync_ms_max=chance.choice((3, 3, 100)),
        # Mean time between two faults.
        fault_ms=chance.choice((60, 150, 400, 2000)),
        # Chance that whoever just became leader, or put a new configuration in force, is hit at once.
        hunt=chance.choice((0, 0.5, 1)),
        changes=chance.choice((0, 0, 1, 6)),  # weight of membership changes among the faults
        compaction=chance.choice((0, 1, 3)),
        clumsy=chance.random() < 0.3,  # leaders look for the place where logs meet below it, as they may
        old=chance.choice((0, 0, 0.5)),  # share of members that refuse like etcd 3.4, without a term at their hint
    )
    profile = chance.random()
    if profile < 0.25:
        return settings._replace(**FALLING_LEADERS)
    if profile < 0.4:
        return settings._replace(**LATE_CONFIGURATIONS)
    return settings


class World:
    """One run. `trace` takes a line for each thing worth telling; settings: those of Settings not to be drawn.

    Errors of `run`: Violation.
    """

    def __init__(self, seed, raft_class=Raft, chaos_ms=CHAOS_MS, trace=None, settings=()):
        self.chance = random.Random(seed)
        self.settings = draw_settings(self.chance)._replace(**dict(settings))
        self.raft_class = raft_class
        self.chaos_ms = chaos_ms
        self.now = 0
        self.checker = Checker()
        self.network = Network(self.chance, self.settings.delay_max)
        self.snapshots = {}
        self.reads_done = set()
        self.steps = 0
        self._trace = trace
        self._events = []
        self._order = 0
        self._values = 0
        self._healing = False
        self.members = {}
        self._bootstrap()

    # ---- time ------------------------------------------------------------------------------------

    def after(self, delay, call, *args):
        self._order += 1
        heapq.heappush(self._events, (self.now + delay, self._order, call, args))

    def _run_until(self, end):
        events = self._events
        while events and events[0][0] <= end:
            self.now, _, call, args = heapq.heappop(events)
            self.steps += 1
            call(*args)
        self.now = end

    def trace(self, line):
        if self._trace:
            self._trace(f"{self.now:>7} {line}")

    # ---- members ---------------------------------------------------------------------------------

    def _bootstrap(self):
        """All begin with the same entries, as etcd's initial cluster does."""
        ids = range(1, self.settings.members + 1)
        entries = [(1, ENTRY_CONF_CHANGE, ("add", member)) for member in ids]
        for index, entry in enumerate(entries, 1):
            self.checker.entry(index, entry, 1 if index > 1 else 0)
            self.checker.committed[index] = entry
        self.checker.commit_max = len(entries)
        self.trace(str(self.settings))
        for member in ids:
            self._add(member, Image(Snapshot(0, 0, Roster()), entries, (1, 0, len(entries))))

    def _add(self, member_id, image):
        member = self.members[member_id] = Member(self, member_id, Disk(image))
        member.sync_ms_max = self.settings.sync_ms_max
        member.pre_vote = self.chance.random() < self.settings.pre_vote
        member.old = self.chance.random() < self.settings.old
        # Clocks differ, by a lot where the election timeout allows for it.
        wide = self.settings.election_ticks == 10 and self.chance.random() < 0.5
        member.tick_ms = self.chance.randint(40, 250) if wide else self.chance.randint(80, 125)
        member.start()

    def up(self):
        return [member for member in self.members.values() if member.up]

    def leader(self):
        """Of several, that of the highest term."""
        leaders = [member for member in self.up() if member.raft.leads]
        return max(leaders, key=lambda member: member.raft.term, default=None)

    def restart(self, member):
        member.crash()
        member.start()

    def removed(self, member, index):
        """A member learned that it was removed, by the entry at `index`; it stops after a while."""
        member.removed_at = index
        self.after(self.chance.randint(0, 2000), self._retire, member)

    def _retire(self, member):
        """It is gone for good, and its disk with it, once those that stay know that they can do without it."""
        staying = [self.members[other] for other in member.roster.voters]
        if all(other.up and other.handed >= member.removed_at for other in staying):
            if member.up:
                member.crash()
            member.gone = True
            self.trace(f"{member.id} is gone")
        else:
            self.after(500, self._retire, member)

    # ---- network ---------------------------------------------------------------------------------

    def send(self, frm, message, delay=0):
        """False when it is lost, as far as the sender could know."""
        to = self.members.get(message.to)
        arrivals = self.network.arrivals(frm, message.to)
        if to is None or not to.up:
            return False
        sender = self.members[frm]
        for extra in arrivals:
            self.after(delay + extra, self._arrive, sender, sender.life, to, to.life, message)
        return bool(arrivals)

    def _arrive(self, sender, sender_life, to, to_life, message):
        """A link that was cut, and often a sender that crashed, takes what was under way with it."""
        if to.life != to_life or (sender.id, to.id) in self.network.cut:
            return
        if sender.life != sender_life and self.chance.random() < 0.7:
            return
        to.put(to.raft.step, message)

    # ---- a run -----------------------------------------------------------------------------------

    def run(self):
        self.after(50, self._client)
        self.after(500, self._fault)
        self._run_until(self.chaos_ms)
        self._heal()

    def _client(self):
        if self._healing:
            return
        for _ in range(self.chance.randint(1, 3)):
            up = self.up()
            if up:
                self._request(self.chance.choice(up))
        self.after(self.chance.randint(5, 150), self._client)

    def _request(self, member):
        if self.chance.random() < 0.1:
            self._burst(member)
        self._values += 1
        if self.chance.random() < 0.6:
            member.propose(self._values)
            return
        member.read(self._values.to_bytes(8, "big"))

    def _burst(self, member):
        for _ in range(self.chance.randint(2, 12)):
            self._values += 1
            member.propose(self._values)

    def _late_read(self, member, life):
        """Whoever was hit may think it still leads."""
        if member.life == life and not self._healing:
            self._values += 1
            member.read(self._values.to_bytes(8, "big"))

    # ---- faults ----------------------------------------------------------------------------------

    def _fault(self):
        if self._healing:
            return
        changes = self.settings.changes
        faults = (
            (self._cut, 3),
            (self._cut_leader, 2),
            (self._hit_leader, 10 * self.settings.hunt),
            (self._one_way, 2),
            (self._mend, 6),
            (self._noise, 1),
            (self._quiet, 1),
            (self._crash_one, 3),
            (self._crash_leader, 2),
            (self._crash_all, 1),
            (self._pause, 2),
            (self._slow_disk, 2),
            (self._transfer, 2),
            (self._flush, 1),
            (self._change, 3 * changes),
            (self._compact, 3 * self.settings.compaction),
        )
        calls, weights = zip(*faults)
        fault = self.chance.choices(calls, weights)[0]
        fault()
        self.after(int(self.chance.expovariate(1 / self.settings.fault_ms)) + 1, self._fault)

    def moment(self, member):
        """A member just became leader, or has a new configuration: the moment at which faults hurt most."""
        if not self._healing and self.chance.random() < self.settings.hunt:
            life = member.life
            self.after(
                self.chance.randint(0, self.chance.choice((2, 10, 80))),
                lambda: life == member.life and not self._healing and self._hit(member),
            )

    def _hit_leader(self):
        leader = self.leader()
        if leader:
            self._hit(leader)

    def _hit(self, member):
        chance = self.chance
        others = [other for other in self.members if other != member.id]
        how = chance.randrange(4)
        if how == 0:
            self._crash(member)
        elif how == 1:
            # It keeps some of its links.
            for other in chance.sample(others, chance.randint(1, len(others))):
                self.network.cut |= {(other, member.id), (member.id, other)}
        elif how == 2:
            for other in chance.sample(others, chance.randint(1, len(others))):
                self.network.cut.add((member.id, other))
        else:
            self.network.split(list(self.members))
        self.trace(f"hit {member.id}: {('crash', 'cut', 'mute', 'split')[how]} {sorted(self.network.cut)}")
        if how and chance.random() < 0.5:
            self._burst(member)  # entries that only few will have
        for _ in range(3):
            delay = chance.randint(50, 250 * self.settings.election_ticks)
            self.after(delay, self._late_read, member, member.life)
        if chance.random() < 0.9:
            self.after(chance.randint(100, chance.choice((300, 1500))), self._mend)

    def _cut(self):
        self.network.split(list(self.members))
        self.trace(f"cut {sorted(self.network.cut)}")

    def _cut_leader(self):
        leader = self.leader()
        if leader:
            for other in self.members:
                self.network.cut |= {(other, leader.id), (leader.id, other)}
            self.trace(f"leader {leader.id} is cut off")

    def _one_way(self):
        self.network.cut_one_way(list(self.members))
        self.trace(f"cut {sorted(self.network.cut)}")

    def _mend(self):
        self.network.cut.clear()
        self.trace("links mended")

    def _noise(self):
        self.network.loss = self.chance.choice((0, 0.05, 0.3))
        self.network.twice = self.chance.choice((0, 0.1, 0.5))
        self.network.delay_max = self.chance.choice((4, 50, 400))
        self.trace(f"loss {self.network.loss} twice {self.network.twice} delay {self.network.delay_max}")

    def _quiet(self):
        self.network.calm()
        self.trace("network as new")

    def _crash_one(self):
        up = self.up()
        if up:
            self._crash(self.chance.choice(up))

    def _crash_leader(self):
        leader = self.leader()
        if leader:
            self._crash(leader)

    def _crash_all(self):
        for member in self.up():
            self._crash(member)

    def _crash(self, member):
        retired = member.id in member.roster.removed
        member.crash()
        if self.chance.random() < 0.5:
            self.after(self.chance.randint(0, 200), lambda: self._leader_refuses(member.id))
        life = member.life
        if not retired:
            self.after(
                self.chance.randint(0, self.chance.choice((50, 1500))), lambda: life == member.life and member.start()
            )

    def _leader_refuses(self, leader):
        """Members find that nobody listens where their leader did, which may be on its feet again by now."""
        for member in self.up():
            voters = sorted(voter for voter in member.raft.conf_state.voters if voter != leader)
            if member.raft.leader == leader and member.id in voters and self.chance.random() < 0.8:
                member.put(member.raft.leader_lost, voters.index(member.id))

    def _pause(self):
        up = self.up()
        if up:
            member = self.chance.choice(up)
            member.paused_until = self.now + self.chance.randint(100, 1500)
            self.trace(f"{member.id} pauses until {member.paused_until}")

    def _slow_disk(self):
        for member in self.up():
            member.sync_ms_max = self.chance.choice((3, 3, 30, 600))
            member.report_late_ms_max = self.chance.choice((0, 2, 100))

    def _transfer(self):
        up = self.up()
        if up:
            asked, to = self.chance.choice(up), self.chance.choice(list(self.members))
            self.trace(f"{asked.id} is asked to hand over to {to}")
            asked.put(lambda: asked.raft.leader and asked.raft.transfer_leader(to))

    def _flush(self):
        for member in self.up():
            member.flush_store()

    def _compact(self):
        for member in self.up():
            if self.chance.random() < 0.5:
                member.put(member.compact)

    def _change(self):
        """Up to three changes of membership; those that come too early become empty entries."""
        up = self.up()
        leader = self.leader()
        for _ in range(self.chance.randint(1, 3)):
            if not up:
                return
            member = leader if leader and self.chance.random() < 0.5 else self.chance.choice(up)
            change = self._draw_change(member.roster)
            if change:
                self.trace(f"{member.id} proposes {change}")
                member.propose(change, ENTRY_CONF_CHANGE)

    def _draw_change(self, roster):
        chance = self.chance
        kind = chance.choice(("add", "add", "learner", "promote", "remove"))
        if kind == "promote":
            return ("promote", chance.choice(sorted(roster.learners))) if roster.learners else None
        if kind == "remove":
            known = sorted(roster.voters | roster.learners)
            return ("remove", chance.choice(known)) if len(known) > 1 else None
        if len(roster.voters | roster.learners) >= MEMBERS_MAX:
            return None
        member = max(self.members) + 1
        # It starts with nothing, and knows nobody.
        self._add(member, Image(Snapshot(0, 0, Roster()), (), (0, 0, 0)))
        return (kind, member)

    # ---- the end ---------------------------------------------------------------------------------

    def _heal(self):
        """No more faults: within a bounded time a leader, equal logs, and answers for whoever asks anybody."""
        self._healing = True
        self.trace("no more faults")
        self.network.calm()
        for member in self.members.values():
            member.sync_ms_max, member.report_late_ms_max, member.paused_until = 3, 2, 0
            if not member.up and not member.gone:
                member.start()
        self.settings = self.settings._replace(ring_full=0)
        asked = {}
        end = self.now + HEAL_MS_MAX
        while self.now < end:
            self._run_until(self.now + CHECK_MS)
            leader = self.leader()
            if leader and self._settled(leader, asked):
                return
        raise Violation(f"liveness: {self._why_not(asked)}")

    def _settled(self, leader, asked):
        """Ask every member for a write and a read until both are answered; then compare."""
        done = True
        for member_id in (*leader.raft.conf_state.voters, *leader.raft.conf_state.learners):
            member = self.members[member_id]
            if not member.up:
                return False
            proposal, context, since = asked.get(member_id, (None, None, -5000))
            written, read = proposal in self.checker.acknowledged, context in self.reads_done
            if not (written and read):
                done = False
                if self.now - since > 3000:
                    self._values += 2
                    proposal, context = self._values, (self._values + 1).to_bytes(8, "big")
                    asked[member_id] = (proposal, context, self.now)
                    member.propose(proposal)
                    member.read(context)
            elif member.handed != leader.raft.commit or member.log.last_index != leader.log.last_index:
                done = False
        return done

    def _why_not(self, asked):
        leader = self.leader()
        lines = [f"leader {leader and leader.id}"]
        for member in self.up():
            raft = member.raft
            lines.append(
                f"{member.id}: term {raft.term} role {raft.role} leader {raft.leader} commit {raft.commit} "
                f"handed {member.handed} last {member.log.last_index} {raft.conf_state[:2]}"
            )
        if leader:
            lines += [
                f"{at.id} match {at.match} next {at.next} state {at.state}" for at in leader.raft.progress.values()
            ]
        return "; ".join(lines) + f" asked {asked}"


def run(seed, **options):
    """One run from a seed; the World after it. Errors: Violation, and whatever the core raises."""
    world = World(seed, **options)
    world.run()
    return world
