"""The raft core: who leads, in which term, and what is committed.

It works on positions, never on data, and it is asked once per batch, never per entry:

    tick, campaign, appended, persisted, read_index   what happened
    ready                                             what is to be done about it

The rules that keep a cluster safe, and where they are:
- a vote for itself counts only once the hard state that holds it is durable (`persisted`);
- an entry counts as stored only once it is durable, on the leader too (`persisted`);
- a leader commits by counting only entries of its own term (`_advance_commit`); older ones follow along;
- reads wait until the leader has committed in its term (`read_index`), for only then is its commit index
  known to be the newest.

Time is ticks; the random source is an argument. Source: formats.md section 12.
"""

from collections import namedtuple

from etcdfast.consensus.raft.progress import Progress, majority, majority_match

FOLLOWER, CANDIDATE, LEADER = range(3)
ROLE_NAMES = ("follower", "candidate", "leader")
NOBODY = 0  # as `vote` and as `leader`

# raftpb.ConfChangeType
ADD_NODE, REMOVE_NODE, UPDATE_NODE, ADD_LEARNER_NODE = range(4)

# Reads that may wait for the first commit of a term; the rings hold back the rest.
PENDING_READS_MAX = 4096

HardState = namedtuple("HardState", "term vote commit")
ReadState = namedtuple("ReadState", "index context")
ConfChange = namedtuple("ConfChange", "type node_id")

_NEW = HardState(0, NOBODY, 0)

# hard_state: to be written, None when unchanged; must_sync: term or vote changed, so nothing that
# depends on them may go out before it is durable. soft: (role, leader) when changed. commit: hand over up
# to here. reads: confirmed reads, to be served behind `index`.
Ready = namedtuple("Ready", "hard_state must_sync soft commit reads")

# election_ticks: without a leader for that long (and up to twice that, by chance) a member campaigns.
# random(n): an integer in [0, n).
RaftConfig = namedtuple("RaftConfig", "id election_ticks random")


class ProposalDropped(Exception):
    """This member cannot take a proposal now: it does not lead."""


class UnsupportedConfiguration(Exception):
    """A configuration other than this member as the only voter."""


class Raft:
    """One member's raft state.

    Invariants: term never falls; one vote per term; commit never falls and never exceeds log.last_index;
    entries up to commit never change.
    """

    def __init__(self, config, log, hard_state=_NEW, voters=(), applied=0):
        self.id = config.id
        self.log = log
        self.term, self.vote, self.commit = hard_state
        self.role = FOLLOWER
        self.leader = NOBODY
        self.voters = frozenset()
        self.progress = {}
        self.applied_conf_index = applied  # configuration changes up to here are in `voters`
        self.committed_in_term = False
        self._config = config
        self._votes = {}
        self._reads_pending = []
        self._reads_confirmed = []
        self._written = HardState(self.term, self.vote, self.commit)
        self._shown = (self.role, self.leader)
        self._election_elapsed = 0
        self._timeout = 0
        self._reset_timer()
        self._set_voters(voters)

    # ---- what happened ---------------------------------------------------------------------------

    def tick(self):
        """One tick of time passed."""
        if self.role == LEADER:
            return
        self._election_elapsed += 1
        if self._election_elapsed >= self._timeout:
            self._election_elapsed = 0
            self.campaign()

    def campaign(self):
        """Stand for election, if this member may: a voter, and not leading already."""
        if self.role == LEADER or self.id not in self.voters:
            return
        self.term += 1
        self.vote = self.id
        self.role = CANDIDATE
        self.leader = NOBODY
        self.committed_in_term = False
        self._votes = {}
        self._reset_timer()

    def appended(self, last_index):
        """The leader's log was extended up to `last_index` with entries of its term (not durable yet).

        Errors: ProposalDropped when this member does not lead; the caller must not have appended.
        """
        if self.role != LEADER:
            raise ProposalDropped(ROLE_NAMES[self.role])
        self.progress[self.id].next = last_index + 1

    def persisted(self, index, index_term, state_term, state_vote):
        """This member's disk holds the log up to `index` (whose term is `index_term`) and a hard state.

        A report that a newer leader's truncation has overtaken is known by its term and changes nothing.
        """
        if self.role == CANDIDATE and state_term == self.term and state_vote == self.id:
            self._votes[self.id] = True
            self._count_votes()
        if self.role == LEADER and self.log.term(index) == index_term:
            if self.progress[self.id].persisted(index):
                self._advance_commit()

    def read_index(self, context):
        """Ask for a point in the log behind which a linearizable read is right; it comes in Ready.reads.

        Errors: ProposalDropped when this member does not lead, or too many reads wait already.
        """
        if self.role != LEADER:
            raise ProposalDropped(ROLE_NAMES[self.role])
        if not self.committed_in_term:
            if len(self._reads_pending) >= PENDING_READS_MAX:
                raise ProposalDropped(f"{PENDING_READS_MAX} reads wait for the first commit of the term")
            self._reads_pending.append(context)
        else:
            self._reads_confirmed.append(ReadState(self.commit, context))

    def apply_conf_change(self, index, change):
        """A committed configuration change (at `index`) takes effect. Returns the new voters.

        Errors: UnsupportedConfiguration.
        """
        self.applied_conf_index = max(self.applied_conf_index, index)
        voters = set(self.voters)
        if change.type == ADD_NODE and change.node_id:
            voters.add(change.node_id)
        elif change.type == REMOVE_NODE:
            voters.discard(change.node_id)
        elif change.type == ADD_LEARNER_NODE and change.node_id:
            raise UnsupportedConfiguration(f"learner {change.node_id:x}")
        self._set_voters(voters)
        return self.voters

    # ---- what is to be done ----------------------------------------------------------------------

    @property
    def leads(self):
        return self.role == LEADER

    def has_ready(self):
        return (
            self.commit != self._written.commit
            or self.term != self._written.term
            or self.vote != self._written.vote
            or bool(self._reads_confirmed)
            or self._shown != (self.role, self.leader)
        )

    def ready(self):
        """Everything to be done since the last call; the caller carries it out before it asks again."""
        now = HardState(self.term, self.vote, self.commit)
        must_sync = now[:2] != self._written[:2]
        soft = (self.role, self.leader)
        ready = Ready(
            now if now != self._written else None,
            must_sync,
            soft if soft != self._shown else None,
            self.commit,
            tuple(self._reads_confirmed),
        )
        self._written = now
        self._shown = soft
        self._reads_confirmed.clear()
        return ready

    # ---- inside ----------------------------------------------------------------------------------

    def _set_voters(self, voters):
        voters = frozenset(voters)
        if voters - {self.id}:
            raise UnsupportedConfiguration("voters " + ", ".join(f"{voter:x}" for voter in sorted(voters)))
        self.voters = voters
        self.progress = {
            voter: self.progress.get(voter) or Progress(self.log.last_index + 1) for voter in voters | {self.id}
        }

    def _reset_timer(self):
        self._election_elapsed = 0
        self._timeout = self._config.election_ticks + self._config.random(self._config.election_ticks)

    def _count_votes(self):
        if sum(self._votes.values()) >= majority(len(self.voters)):
            self._become_leader()

    def _become_leader(self):
        self.role = LEADER
        self.leader = self.id
        self.committed_in_term = False
        following = self.log.last_index + 1
        self.progress = {member: Progress(following) for member in self.progress}
        self.log.append(self.term, b"")
        self.appended(following)

    def _advance_commit(self):
        if not self.voters:
            return
        index = majority_match([self.progress[voter].match for voter in self.voters])
        if index <= self.commit or self.log.term(index) != self.term:
            return
        self.commit = index
        if not self.committed_in_term:
            self.committed_in_term = True
            self._reads_confirmed.extend(ReadState(index, context) for context in self._reads_pending)
            self._reads_pending.clear()
