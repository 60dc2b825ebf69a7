"""Runner for raft scenarios in plain text (tests/consensus/scenarios/*.txt).

A file is steps: a command line, a line of four dashes, the lines that the step shows, an empty line. Run with
ETCDFAST_REWRITE=1 to write what the core does now into the files; then read the difference.

    start voters=1 term=0 vote=0 commit=0 last=0/0    a member with id 1
    tick 3 | campaign | append 2 | read abc           what happens to it
    persist            the disk holds everything asked of it so far
    persisted index=2 term=1 state=1/1                the disk reports exactly this
    conf add 2 at=5    a committed configuration change
    release 3          the log forgets entries up to 3
    ready              what the core wants done
    show               its state
"""

from etcdfast._ext.raftlog import RaftLog
from etcdfast.consensus.raft import (
    ROLE_NAMES,
    ConfChange,
    ConfState,
    HardState,
    ProposalDropped,
    Raft,
    RaftConfig,
    UnsupportedConfiguration,
)

_CONF_TYPES = {"add": 0, "remove": 1, "update": 2, "learner": 3}
ELECTION_TICKS = 10


class Scenario:
    """One member driven by commands; `run` gives the lines a command shows."""

    def __init__(self):
        self.raft = self.log = None
        self.asked = HardState(0, 0, 0)

    def run(self, line):
        command, *words = line.split()
        named = dict(word.split("=") for word in words if "=" in word)
        plain = [word for word in words if "=" not in word]
        try:
            return getattr(self, f"do_{command}")(*plain, **named) or ["ok"]
        except (ProposalDropped, UnsupportedConfiguration) as err:
            return [f"{type(err).__name__}: {err}"]

    def do_start(self, voters="1", term="0", vote="0", commit="0", last="0/0"):
        index, last_term = map(int, last.split("/"))
        self.log = RaftLog(index, last_term, rows_max=64, bytes_max=1 << 20)
        self.asked = HardState(int(term), int(vote), int(commit))
        # The random part of the election timeout is fixed: 10 + 3 ticks.
        self.raft = Raft(
            RaftConfig(1, ELECTION_TICKS, lambda n: 3),
            self.log,
            self.asked,
            ConfState(tuple(int(v) for v in voters.split(",") if v)),
        )
        return self.do_show()

    def do_tick(self, count="1"):
        before = self.raft.term
        for number in range(1, int(count) + 1):
            self.raft.tick()
            if self.raft.term != before:
                return [f"campaigns at tick {number}", *self.do_show()]
        return ["nothing"]

    def do_campaign(self):
        self.raft.campaign()
        return self.do_show()

    def do_append(self, count="1"):
        if not self.raft.leads:
            self.raft.appended(self.log.last_index)
        for _ in range(int(count)):
            self.log.append(self.raft.term, b"x")
        self.raft.appended(self.log.last_index)
        return [f"last={self.log.last_index}"]

    def do_persist(self):
        self.raft.persisted(self.log.last_index, self.log.last_term, self.asked.term, self.asked.vote)
        return self.do_show()

    def do_persisted(self, index="0", term="0", state="0/0"):
        self.raft.persisted(int(index), int(term), *map(int, state.split("/")))
        return self.do_show()

    def do_read(self, context):
        self.raft.read_index(context)

    def do_conf(self, kind, member, at="0"):
        state = self.raft.apply_conf_change(int(at), ConfChange(_CONF_TYPES[kind], int(member)))
        return [f"voters={list(state.voters)}"]

    def do_release(self, index):
        self.log.release_to(int(index))

    def do_ready(self):
        if not self.raft.has_ready():
            return ["nothing"]
        ready = self.raft.ready()
        lines = []
        if ready.hard_state:
            self.asked = ready.hard_state
            sync = " sync" if ready.must_sync else ""
            lines.append("hard term={} vote={} commit={}{}".format(*ready.hard_state, sync))
        if ready.soft:
            lines.append(f"role {ROLE_NAMES[ready.soft[0]]} leader={ready.soft[1]}")
        lines.append(f"commit {ready.commit}")
        lines.extend(f"read {read.context} behind {read.index}" for read in ready.reads)
        return lines

    def do_show(self):
        raft = self.raft
        matches = " ".join(f"{m}:{p.match}/{p.next}" for m, p in sorted(raft.progress.items()))
        entries = " ".join(f"{i}/{self.log.term(i)}" for i in range(self.log.first_index, self.log.last_index + 1))
        return [
            f"{ROLE_NAMES[raft.role]} term={raft.term} vote={raft.vote} commit={raft.commit} "
            f"in-term={'yes' if raft.committed_in_term else 'no'}",
            f"progress {matches} log [{entries}]",
        ]


def parse(text):
    """[(comment lines, command, expected lines)]"""
    steps, comments = [], []
    blocks = text.split("\n\n")
    for block in blocks:
        lines = block.strip("\n").split("\n")
        while lines and (lines[0].startswith("#") or not lines[0]):
            comments.append(lines.pop(0))
        if lines:
            assert len(lines) >= 2 and lines[1] == "----", f"step without its four dashes: {lines[0]!r}"
            steps.append((comments, lines[0], lines[2:]))
            comments = []
    return steps


def render(steps):
    return "\n".join("\n".join([*comments, command, "----", *shown, ""]) for comments, command, shown in steps)
