"""The raft core: who leads, in which term, and what is committed.

It works on positions, never on data, and it is asked once per batch, never per entry:

    tick, campaign, step, appended, persisted, propose, read_index ...   what happened
    ready                                                                what is to be done about it

The rules that keep a cluster safe, and where they are:
- a vote, for itself or another, goes out only once the hard state that holds it is durable, and a member asks for
  votes only then: an answer that comes late must never meet a candidate that lost its log since (`_held`);
- an entry counts as stored only once it is durable, on the leader too (`persisted`, acceptance.py);
- a leader commits by counting only entries of its own term (`_advance_commit`); older ones follow along;
- reads wait until the leader has committed in its term, for only then is its commit index known to be the newest,
  and until a quorum has answered a heartbeat sent after the read came (readindex.py);
- one configuration change at a time, and nobody stands for election with a committed change not yet in force
  (`_change_pending`).

Time is ticks; the random source is an argument. Source: formats.md section 12.
"""

from etcdfast.consensus.raft.acceptance import Acceptance
from etcdfast.consensus.raft.ballot import LOST, WON, Ballot, up_to_date
from etcdfast.consensus.raft.configuration import changed, checked
from etcdfast.consensus.raft.log import last_of_term
from etcdfast.consensus.raft.messages import (
    CAMPAIGN_TRANSFER,
    CANDIDATE,
    ENTRY_NORMAL,
    FOLLOWER,
    LEADER,
    MSG_APP,
    MSG_APP_RESP,
    MSG_HEARTBEAT,
    MSG_HEARTBEAT_RESP,
    MSG_PRE_VOTE,
    MSG_PRE_VOTE_RESP,
    MSG_PROP,
    MSG_READ_INDEX,
    MSG_READ_INDEX_RESP,
    MSG_SNAP,
    MSG_TIMEOUT_NOW,
    MSG_TRANSFER_LEADER,
    MSG_VOTE,
    MSG_VOTE_RESP,
    NEW,
    NO_MEMBERS,
    NOBODY,
    PRE_CANDIDATE,
    ROLE_NAMES,
    HardState,
    Message,
    ProposalDropped,
    RaftFault,
    ReadState,
    Ready,
)
from etcdfast.consensus.raft.progress import majority, majority_match
from etcdfast.consensus.raft.readindex import PENDING_READS_MAX, ReadIndex
from etcdfast.consensus.raft.replication import Replication

_FORWARDED = (MSG_PROP, MSG_READ_INDEX, MSG_TRANSFER_LEADER)


class Raft:
    """One member's raft state.

    conf_state holds every configuration change up to hard_state.commit; applied_conf_index is the last of them.
    The log given is durable as a whole, and so is the hard state.

    Invariants: term never falls; one vote per term; commit never falls and never exceeds log.last_index;
    entries up to commit never change.
    """

    def __init__(self, config, log, hard_state=NEW, conf_state=NO_MEMBERS, applied_conf_index=0):
        self.id = config.id
        self.log = log
        self.term, self.vote, self.commit = hard_state
        self.role = FOLLOWER
        self.leader = NOBODY
        self.transferring = NOBODY  # whom the leader hands over to; proposals are refused meanwhile
        self.conf_state = checked(conf_state)
        self.applied_conf_index = applied_conf_index  # configuration changes up to here are in conf_state
        self.committed_in_term = False
        self._config = config
        self._replication = Replication(config, log)
        self._acceptance = Acceptance(log)
        self._ballot = Ballot()
        self._reads = ReadIndex()
        self._reads_confirmed = []
        self._messages = []
        self._held = []  # to go out when (term, vote) is durable
        self._durable_state = (self.term, self.vote)
        self._written = HardState(self.term, self.vote, self.commit)
        self._shown = (self.role, self.leader, self.transferring)
        self._snapshot = None
        self._snapshot_index = 0  # of a snapshot not yet durable here
        self._applied = max(self.commit, applied_conf_index)
        # No configuration change lies in the log above this index. What a log read from disk holds is not known.
        self._changes_to = log.last_index
        self._stand_when_applied = False
        self._election_elapsed = 0
        self._heartbeat_elapsed = 0
        self._timeout = 0
        self._alone = False  # the only voter: nobody has to be asked
        self._configure()
        self._reset_timer()

    # ---- what happened ---------------------------------------------------------------------------

    def tick(self):
        """One tick of time passed."""
        self._election_elapsed += 1
        if self.role == LEADER:
            self._tick_leader()
        elif self._election_elapsed >= self._timeout and self._may_stand():
            self._election_elapsed = 0
            self.campaign()

    def campaign(self):
        """Stand for election, if this member may: a voter, and not leading already."""
        if self.role == LEADER or not self._may_stand():
            return
        if not self._config.pre_vote:
            self._stand(b"")
            return
        # Nobody's term changes before it is known that this member could win.
        self._become(PRE_CANDIDATE, self.term, NOBODY)
        self._ballot.record(self.id, True)
        self._ask_for_votes(MSG_PRE_VOTE, self.term + 1, b"", self._messages)
        self._count_votes()

    def step(self, message):
        """Take a message of another member, or a MsgProp of this one (`to` nobody).

        A message that cannot be of use is dropped in silence, as the network might have done.
        Errors: ProposalDropped for a MsgProp of this member's own, RaftFault.
        """
        kind = message.type
        if message.term != self.term:
            if message.term == 0:
                if kind not in _FORWARDED:
                    return
            elif not self._step_term(message):
                return
        if kind == MSG_APP:
            if self._follow(message):
                self._step_append(message)
        elif kind == MSG_APP_RESP:
            self._step_append_answer(message)
        elif kind == MSG_HEARTBEAT:
            if self._follow(message):
                self._commit_to(message.commit)
                self._send(MSG_HEARTBEAT_RESP, message.frm, context=message.context)
        elif kind == MSG_HEARTBEAT_RESP:
            self._step_heartbeat_answer(message)
        elif kind == MSG_PROP:
            self._step_proposals(message)
        elif kind == MSG_READ_INDEX:
            self._step_read_index(message)
        elif kind == MSG_READ_INDEX_RESP:
            if self.role == FOLLOWER:
                self._reads_confirmed.append(ReadState(message.index, message.context))
        elif kind == MSG_VOTE or kind == MSG_PRE_VOTE:
            self._step_vote(message)
        elif kind == MSG_VOTE_RESP or kind == MSG_PRE_VOTE_RESP:
            self._step_vote_answer(message)
        elif kind == MSG_SNAP:
            # Without its snapshot it came by a way that no member sends one.
            if message.snapshot is not None and self._follow(message):
                self._step_snapshot(message)
        elif kind == MSG_TRANSFER_LEADER:
            self._step_transfer(message)
        elif kind == MSG_TIMEOUT_NOW:
            if self.role == FOLLOWER and self.id in self.conf_state.voters:
                self._stand_when_applied = True
                self._stand_now()

    def leader_lost(self, rank):
        """It is known for certain that this member's leader is dead; nobody need wait out its election timeout.

        rank: place of this member among the voters left. The first stands for election at the next tick, each other
        two ticks later than the one before, so that they do not split the votes. Should the leader live after all, its
        next message makes it the leader again, and voters that hear it refuse.
        """
        if self.role == FOLLOWER and self.leader:
            self.leader = NOBODY
            self._election_elapsed = max(self._election_elapsed, self._timeout - 1 - 2 * rank)

    def appended(self, last_index):
        """The leader's log was extended up to `last_index` with entries of its term (not durable yet).

        Errors: ProposalDropped when this member does not lead; the caller must not have appended.
        """
        if self.role != LEADER:
            raise ProposalDropped(ROLE_NAMES[self.role])
        own = self._replication.progress.get(self.id)
        if own is not None:
            own.next = last_index + 1
        self._replication.due = True

    def persisted(self, index, index_term, state_term, state_vote):
        """This member's disk holds the log up to `index` (whose term is `index_term`) and a hard state.

        A report describes the disk up to one point of all that was written to it, in order. One that a newer
        leader's truncation has overtaken is known by its terms and changes nothing.
        """
        if state_term != self.term:
            return
        if self._durable_state != (state_term, state_vote):
            self._durable_state = (state_term, state_vote)
        if self._held and state_vote == self.vote:
            self._messages.extend(self._held)
            self._held.clear()
        if self.role == CANDIDATE and state_vote == self.id:
            self._ballot.record(self.id, True)
            self._count_votes()
        acceptance = self._acceptance
        if index > acceptance.stable and self.log.term(index) == index_term:
            acceptance.stable = index
            if index >= self._snapshot_index:
                self._snapshot_index = 0
        if self.role == LEADER:
            own = self._replication.progress.get(self.id)
            if own is not None and own.match < acceptance.stable:
                own.match = acceptance.stable
                self._advance_commit()
        elif self.leader:
            self._acknowledge(False)

    def propose(self, data, type=ENTRY_NORMAL):
        """Append an entry of this member's own and return its index; the caller writes it to disk.

        A configuration change that comes before the one before it is in force becomes an empty entry.
        Errors: ProposalDropped when this member does not lead or hands over leadership.
        """
        self._check_leads()
        if type != ENTRY_NORMAL and self._applied < self._changes_to:
            data, type = b"", ENTRY_NORMAL
        index = self.log.append(self.term, data, type)
        if type != ENTRY_NORMAL:
            self._changes_to = index
        self.appended(index)
        return index

    def read_index(self, context):
        """Ask for a point in the log behind which a linearizable read is right; it comes in Ready.reads.

        A follower asks its leader; when the answer gets lost, the caller asks again.
        Errors: ProposalDropped when there is no leader, or too many reads wait already.
        """
        if self.role == LEADER:
            self._read_index(NOBODY, context)
        elif self.leader:
            self._messages.append(Message(MSG_READ_INDEX, self.leader, self.id, context=context))
        else:
            raise ProposalDropped(f"{ROLE_NAMES[self.role]} without a leader")

    def transfer_leader(self, to):
        """Hand leadership over to a voter, given up after one election timeout. See `transferring`.

        A follower asks its leader to. Errors: ProposalDropped without a leader.
        """
        if not self.leader:
            raise ProposalDropped(f"{ROLE_NAMES[self.role]} without a leader")
        self._step_transfer(Message(MSG_TRANSFER_LEADER, self.leader, to))

    def apply_conf_change(self, index, change):
        """A committed configuration change (at `index`) takes effect. Returns the ConfState after it.

        Changes come in the order of the log; one that is in force already changes nothing.
        """
        if index > self.applied_conf_index:
            self.applied_conf_index = index
            self.conf_state = changed(self.conf_state, change)
            self._configure()
            if self.role == LEADER:
                if self.transferring and self.transferring not in self.conf_state.voters:
                    self.transferring = NOBODY
                # A smaller quorum may have what a larger one had not.
                self._advance_commit()
                self._confirm_reads()
                if self._alone:
                    # Nobody is left who could answer a round for these.
                    fresh, self._reads.fresh = self._reads.fresh, []
                    for read in fresh:
                        self._answer_read(*read)
        self.applied_to(index)
        return self.conf_state

    def applied_to(self, index):
        """Entries up to `index` were handed over: no configuration change up to there is still to come."""
        if index > self._applied:
            self._applied = index
            self._stand_now()

    def report_unreachable(self, peer):
        """Messages to a peer may have been lost."""
        if self.role == LEADER:
            self._replication.unreachable(peer)

    def snapshot_sent(self, peer, index):
        """A snapshot at `index` starts going to a peer of Ready.snapshots_wanted."""
        if self.role == LEADER:
            self._replication.snapshot_sent(peer, index)

    def report_snapshot(self, peer, ok):
        """The snapshot for a peer has arrived, or did not (or there is none to send)."""
        if self.role == LEADER:
            self._replication.snapshot_ended(peer, ok)

    # ---- what is to be done ----------------------------------------------------------------------

    @property
    def leads(self):
        return self.role == LEADER

    @property
    def voters(self):
        return self.conf_state.voters

    @property
    def progress(self):
        """{member id: Progress}; what it says is meant for the leader's use."""
        return self._replication.progress

    @property
    def stable(self):
        """Up to here this member's log is durable."""
        return self._acceptance.stable

    def has_ready(self):
        written = self._written
        return (
            bool(self._messages)
            or (self._replication.due and self.role == LEADER)
            or bool(self._reads_confirmed)
            or (self.commit > written.commit and self._acceptance.stable > written.commit)
            or self.term != written.term
            or self.vote != written.vote
            or bool(self._reads.fresh)
            or self._shown != (self.role, self.leader, self.transferring)
            or self._snapshot is not None
            or bool(self._replication.wanted)
        )

    def ready(self):
        """Everything to be done since the last call; the caller carries it out before it asks again."""
        messages, reads, wanted = self._messages, self._reads_confirmed, ()
        replication = self._replication
        if self.role == LEADER:
            if self._reads.fresh:
                replication.heartbeats(self.term, self.commit, self._reads.start_round(), messages, voters_only=True)
            if replication.due:
                replication.messages(self.term, self.commit, messages)
            if replication.wanted:
                wanted = tuple(replication.wanted)
                replication.wanted.clear()
        if messages:
            self._messages = []
        if reads:
            self._reads_confirmed = []
        written, stable = self._written, self._acceptance.stable
        # Never back, not even when a snapshot is on its way to the disk.
        commit = max(written.commit, self.commit if self.commit < stable else stable)
        must_sync = self.term != written.term or self.vote != written.vote
        hard_state = None
        if must_sync or commit != written.commit:
            hard_state = self._written = HardState(self.term, self.vote, commit)
        soft = (self.role, self.leader, self.transferring)
        shown, self._shown = self._shown, soft
        snapshot, self._snapshot = self._snapshot, None
        return Ready(
            hard_state,
            must_sync,
            soft[:2] if soft[:2] != shown[:2] else None,
            commit,
            reads,
            messages,
            snapshot,
            wanted,
        )

    # ---- terms and roles -------------------------------------------------------------------------

    def _step_term(self, message):
        """A message of another term. True when it is to be taken, in its term."""
        kind, term = message.type, message.term
        if term > self.term:
            if kind == MSG_VOTE or kind == MSG_PRE_VOTE:
                # Whoever heard of its leader within an election timeout does not help to depose it, unless the
                # leader itself wants that: a member that was cut off or removed disturbs nobody.
                lives = self.leader and self._election_elapsed < self._config.election_ticks
                if lives and message.context != CAMPAIGN_TRANSFER:
                    return False
                if kind == MSG_PRE_VOTE:
                    return True
            elif kind == MSG_PRE_VOTE_RESP and not message.reject:
                return True  # it grants a term that this member only asked about
            leads = kind == MSG_APP or kind == MSG_HEARTBEAT or kind == MSG_SNAP
            waited = self._election_elapsed, self._timeout, self.role == LEADER
            self._become(FOLLOWER, term, message.frm if leads else NOBODY)
            if kind == MSG_VOTE and not waited[2]:
                # Only who gets this vote is waited for anew (`_step_vote`): else a member that cannot win, but
                # asks often, would keep those that can from standing.
                self._election_elapsed, self._timeout = waited[:2]
            return True
        if kind == MSG_APP or kind == MSG_HEARTBEAT:
            # A leader that does not know it was deposed, or one that this member left behind while it was cut
            # off and whose votes it cannot get: the newer term must reach it.
            self._send(MSG_APP_RESP, message.frm)
        elif kind == MSG_PRE_VOTE:
            self._send(MSG_PRE_VOTE_RESP, message.frm, reject=True)
        return False

    def _become(self, role, term, leader):
        """Take a role, in a term that is at least the present one."""
        if term != self.term:
            self.term = term
            self.vote = NOBODY
        self.role = role
        self.leader = leader
        self.transferring = NOBODY
        self.committed_in_term = False
        self._stand_when_applied = False
        self._held.clear()
        self._ballot.clear()
        self._acceptance.follow_nobody()
        self._reads = ReadIndex()  # who asked asks again
        self._replication.wanted.clear()
        self._reset_timer()

    def _reset_timer(self):
        self._election_elapsed = 0
        self._heartbeat_elapsed = 0
        self._timeout = self._config.election_ticks + self._config.random(self._config.election_ticks)

    def _follow(self, message):
        """A message that only the leader of the term sends. False when this member leads that term itself."""
        if self.role == LEADER:
            return False
        if self.role != FOLLOWER or self.leader != message.frm:
            if self.role == FOLLOWER:
                self.leader = message.frm
            else:
                self._become(FOLLOWER, self.term, message.frm)
        self._election_elapsed = 0
        return True

    def _send(self, kind, to, index=0, log_term=0, reject=False, reject_hint=0, context=b""):
        self._messages.append(
            Message(kind, to, self.id, self.term, log_term, index, 0, None, reject, reject_hint, context)
        )

    def _configure(self):
        self._replication.configure(self.conf_state)
        self._alone = self.conf_state.voters == (self.id,)
        own = self._replication.progress.get(self.id)
        if own is not None:
            own.match = self._acceptance.stable
            own.next = self.log.last_index + 1

    # ---- elections -------------------------------------------------------------------------------

    def _may_stand(self):
        return self.id in self.conf_state.voters and not self._snapshot_index and not self._change_pending()

    def _change_pending(self):
        """A committed configuration change may not be in force yet. With an outdated one, two quorums that do
        not overlap could elect."""
        return self._applied < min(self._changes_to, self.commit)

    def _stand(self, context):
        self._become(CANDIDATE, self.term + 1, NOBODY)
        self.vote = self.id
        self._ask_for_votes(MSG_VOTE, self.term, context, self._held)

    def _stand_now(self):
        """The leader asked this member to take over; it may have to hand over some entries first."""
        if self._stand_when_applied and self.role == FOLLOWER and self._may_stand():
            self._stand(CAMPAIGN_TRANSFER)

    def _ask_for_votes(self, kind, term, context, out):
        last = self.log.last_index
        last_term = self.log.term(last)
        for voter in self.conf_state.voters:
            if voter != self.id:
                out.append(Message(kind, voter, self.id, term, last_term, last, context=context))

    def _step_vote(self, message):
        pre = message.type == MSG_PRE_VOTE
        free = (
            self.vote == message.frm
            or (self.vote == NOBODY and self.leader == NOBODY)
            or (pre and message.term > self.term)
        )
        if not (free and up_to_date(self.log, message.index, message.log_term)):
            self._send(MSG_PRE_VOTE_RESP if pre else MSG_VOTE_RESP, message.frm, reject=True)
            return
        if pre:
            # In the term asked about; it binds nobody.
            self._messages.append(Message(MSG_PRE_VOTE_RESP, message.frm, self.id, message.term))
            return
        self._election_elapsed = 0
        self.vote = message.frm
        if self._durable_state == (self.term, self.vote):
            self._send(MSG_VOTE_RESP, message.frm)
        elif not self._held:
            self._held.append(Message(MSG_VOTE_RESP, message.frm, self.id, self.term))

    def _step_vote_answer(self, message):
        if message.type == MSG_VOTE_RESP:
            asked = self.role == CANDIDATE
        else:
            # A grant names the term it is for; one of an earlier question does not count.
            asked = self.role == PRE_CANDIDATE and (message.reject or message.term == self.term + 1)
        if asked:
            self._ballot.record(message.frm, not message.reject)
            self._count_votes()

    def _count_votes(self):
        result = self._ballot.result(self.conf_state.voters)
        if self.id not in self.conf_state.voters:
            result = LOST  # no voter any more since it asked
        if result == WON:
            if self.role == PRE_CANDIDATE:
                self._stand(b"")
            else:
                self._become_leader()
        elif result == LOST:
            self._become(FOLLOWER, self.term, NOBODY)

    def _become_leader(self):
        self._become(LEADER, self.term, self.id)
        self._replication.start(self.conf_state)
        own = self._replication.progress[self.id]
        own.match = self._acceptance.stable
        own.recent_active = True
        self.appended(self.log.append(self.term, b""))

    # ---- following -------------------------------------------------------------------------------

    def _step_append(self, message):
        acceptance = self._acceptance
        last = acceptance.append(message, self.commit)
        if last < 0:
            hint, hint_term = last_of_term(self.log, message.index, message.log_term)
            self._send(MSG_APP_RESP, message.frm, message.index, hint_term, True, hint)
            return
        start = acceptance.replaced_from
        if start:
            if message.entries.conf_changes:
                self._changes_to = message.entries.last
            elif self._changes_to >= start:
                self._changes_to = start - 1
        # Entries behind `last` may be of another leader.
        self._commit_to(message.commit if message.commit < last else last)
        self._acknowledge(True)

    def _acknowledge(self, at_once):
        if self._durable_state[0] == self.term:
            index = self._acceptance.answer(at_once)
            if index >= 0:
                self._send(MSG_APP_RESP, self.leader, index)

    def _commit_to(self, index):
        if index > self.commit:
            if index > self.log.last_index:
                raise RaftFault(
                    f"the leader {self.leader:x} has committed entry {index} with this member's acknowledgement, but "
                    f"its log ends at {self.log.last_index}: the log was truncated, lost or replaced"
                )
            self.commit = index

    def _step_snapshot(self, message):
        index, term, conf_state = message.snapshot
        acceptance = self._acceptance
        if index <= self.commit or self.id not in (*conf_state.voters, *conf_state.learners):
            acceptance.accepted = max(acceptance.accepted, self.commit)
        elif self.log.term(index) == term:
            # The log has it all: only that it is committed is news.
            self.commit = index
            acceptance.accepted = max(acceptance.accepted, index)
        else:
            self.log.restore(index, term)
            self.commit = index
            self.conf_state = checked(conf_state)
            self.applied_conf_index = max(self.applied_conf_index, index)
            self._applied = max(self._applied, index)
            self._changes_to = index
            acceptance.stable = min(acceptance.stable, self._written.commit)
            acceptance.accepted = index
            self._snapshot = message.snapshot
            self._snapshot_index = index
            self._configure()
        acceptance.owed = True
        self._acknowledge(True)

    # ---- leading ---------------------------------------------------------------------------------

    def _tick_leader(self):
        if self._election_elapsed >= self._config.election_ticks:
            self._election_elapsed = 0
            if not self._quorum_active():
                self._become(FOLLOWER, self.term, NOBODY)
                return
            self.transferring = NOBODY
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= self._config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self._replication.heartbeats(self.term, self.commit, self._reads.context(), self._messages)

    def _quorum_active(self):
        """Whether a quorum was heard of since the last time this was asked."""
        progress = self._replication.progress
        active = 0
        for voter in self.conf_state.voters:
            at = progress[voter]
            active += voter == self.id or at.recent_active
        for at in self._replication.peers():
            at.recent_active = False
        return active >= majority(len(self.conf_state.voters))

    def _check_leads(self):
        if self.role != LEADER:
            raise ProposalDropped(ROLE_NAMES[self.role])
        if self.transferring:
            raise ProposalDropped(f"leadership goes to {self.transferring:x}")
        if self.id not in self._replication.progress:
            raise ProposalDropped("removed from the cluster")

    def _step_append_answer(self, message):
        at = self._replication.progress.get(message.frm)
        if self.role != LEADER or at is None or message.frm == self.id:
            return
        at.recent_active = True
        if message.reject:
            self._replication.rejected(at, message.index, message.reject_hint, message.log_term)
            return
        if message.index > self.log.last_index:
            return  # no member of this cluster can have said so
        if self._replication.accepted(at, message.index):
            self._advance_commit()
        if self.transferring == message.frm and at.match == self.log.last_index:
            self._send(MSG_TIMEOUT_NOW, message.frm)

    def _step_heartbeat_answer(self, message):
        at = self._replication.progress.get(message.frm)
        if self.role != LEADER or at is None:
            return
        at.recent_active = True
        if not message.context:
            self._replication.answered_heartbeat(at)
            return
        # Rounds of reads are many; an ordinary heartbeat may carry one too.
        number = self._reads.number(message.context)
        if at.paused or number <= at.read_round:
            self._replication.answered_heartbeat(at)
        if number > at.read_round:
            at.read_round = number
            self._confirm_reads()

    def _advance_commit(self):
        progress = self._replication.progress
        voters = self.conf_state.voters
        if not voters:
            return
        index = progress[self.id].match if self._alone else majority_match([progress[voter].match for voter in voters])
        if index <= self.commit or self.log.term(index) != self.term:
            return
        self.commit = index
        self._replication.due = True
        if not self.committed_in_term:
            self.committed_in_term = True
            early, self._reads.early = self._reads.early, []
            for frm, context in early:
                self._read_index(frm, context)

    def _step_proposals(self, message):
        """Entries that members have to propose, in one batch each."""
        if self.role != LEADER:
            if self.leader and self.role == FOLLOWER:
                self._messages.append(message._replace(to=self.leader, frm=message.frm or self.id))
                return
            if message.to == NOBODY:
                raise ProposalDropped(f"{ROLE_NAMES[self.role]} without a leader")
            return
        entries = message.entries
        try:
            self._check_leads()
            if not entries.conf_changes:
                index = self.log.append_batch(self.term, entries)
            elif entries.count > 1:
                raise ProposalDropped("a configuration change comes alone")
            elif self._applied < self._changes_to:
                index = self.log.append(self.term, b"")
            else:
                index = self._changes_to = self.log.append_batch(self.term, entries)
        except ProposalDropped:
            if message.to == NOBODY:
                raise
            return
        self.appended(index)

    def _step_read_index(self, message):
        if self.role == LEADER:
            try:
                self._read_index(NOBODY if message.frm == self.id else message.frm, message.context)
            except ProposalDropped:
                return  # who asked asks again
        elif self.leader:
            self._messages.append(message._replace(to=self.leader))

    def _read_index(self, frm, context):
        reads = self._reads
        if self.committed_in_term and self._alone:
            self._answer_read(frm, context, self.commit)
            return
        if reads.full():
            raise ProposalDropped(f"{PENDING_READS_MAX} reads wait for a quorum")
        if self.committed_in_term:
            reads.fresh.append((frm, context, self.commit))
        else:
            reads.early.append((frm, context))

    def _confirm_reads(self):
        if not self.conf_state.voters:
            return
        progress, reads = self._replication.progress, self._reads
        own = self.id
        number = majority_match(
            [reads.round if voter == own else progress[voter].read_round for voter in self.conf_state.voters]
        )
        for frm, context, index in reads.confirmed(number):
            self._answer_read(frm, context, index)

    def _answer_read(self, frm, context, index):
        if frm == NOBODY:
            self._reads_confirmed.append(ReadState(index, context))
        else:
            self._send(MSG_READ_INDEX_RESP, frm, index, context=context)

    def _step_transfer(self, message):
        """`frm` is whom leadership is to go to, as in etcd."""
        to = message.frm
        if self.role != LEADER:
            if self.leader:
                self._messages.append(Message(MSG_TRANSFER_LEADER, self.leader, to, self.term))
            return
        at = self._replication.progress.get(to)
        if at is None or at.is_learner or to == self.id or to == self.transferring:
            return
        self.transferring = to
        self._election_elapsed = 0  # so long it may take
        if at.match == self.log.last_index:
            self._send(MSG_TIMEOUT_NOW, to)
        else:
            at.push = True
            self._replication.due = True
