"""Cores with one planted fault each, of the kinds that raft implementations have had. The checker must find each:
a simulation that cannot fail proves nothing."""

from etcdfast.consensus.raft import FOLLOWER, LEADER, HardState, Raft
from etcdfast.consensus.raft.acceptance import Acceptance
from etcdfast.consensus.raft.messages import MSG_HEARTBEAT, MSG_VOTE
from etcdfast.consensus.raft.progress import majority_match
from etcdfast.consensus.raft.replication import Replication


class CommitsOlderTerms(Raft):
    """Figure 8: entries of older terms are committed by counting."""

    def _advance_commit(self):
        if self.role == LEADER and self.conf_state.voters:
            index = majority_match([self.progress[voter].match for voter in self.conf_state.voters])
            if index > self.commit and self.log.term(index) != self.term:
                self.commit = index
                self._replication.due = True
        super()._advance_commit()


class VotesBeforeDurable(Raft):
    """A granted vote goes out before the disk holds it."""

    def _step_vote(self, message):
        super()._step_vote(message)
        if message.type == MSG_VOTE and self._held:
            self._messages.extend(self._held)
            self._held.clear()


class AsksBeforeDurable(Raft):
    """A candidate asks for votes before its own is durable."""

    def _ask_for_votes(self, kind, term, context, out):
        super()._ask_for_votes(kind, term, context, self._messages)


class VotesTwice(Raft):
    """A second candidate of the term gets a vote too."""

    def _step_vote(self, message):
        if message.type == MSG_VOTE and self.role == FOLLOWER:
            self.vote = self.leader = 0
        super()._step_vote(message)


class ForgetsItsVote(Raft):
    """After a restart a member does not know for whom it voted."""

    def __init__(self, config, log, hard_state, conf_state, applied_conf_index):
        super().__init__(config, log, HardState(hard_state.term, 0, hard_state.commit), conf_state, applied_conf_index)


class VotesForShorterLogs(Raft):
    """A candidate's log is not looked at."""

    def _step_vote(self, message):
        super()._step_vote(message._replace(index=1 << 60, log_term=1 << 60))


class CountsItselfEarly(Raft):
    """The leader counts its own entries before they are durable."""

    def appended(self, last_index):
        super().appended(last_index)
        if self.id in self.progress:
            self.progress[self.id].match = last_index
            self._advance_commit()


class _EagerAcceptance(Acceptance):
    __slots__ = ()

    def append(self, message, commit):
        last = super().append(message, commit)
        self.stable = self._log.last_index
        return last


class AcknowledgesEarly(Raft):
    """A follower acknowledges before its disk has the entries."""

    def __init__(self, *args):
        super().__init__(*args)
        self._acceptance = _EagerAcceptance(self.log)


class _TruncatingAcceptance(Acceptance):
    __slots__ = ()

    def append(self, message, commit):
        entries, log = message.entries, self._log
        if message.index >= commit and entries.count and log.term(message.index) == message.log_term:
            log.extend(entries, entries.first)
            self.stable = min(self.stable, entries.first - 1)
        return super().append(message, commit)


class TruncatesOnDuplicates(Raft):
    """An old message that comes again cuts off what came after it."""

    def __init__(self, *args):
        super().__init__(*args)
        self._acceptance = _TruncatingAcceptance(self.log)


class _TrustingAcceptance(Acceptance):
    __slots__ = ()

    def append(self, message, commit):
        last = super().append(message, commit)
        if last >= 0:
            self.accepted = self._log.last_index
        return last


class AcknowledgesItsWholeLog(Raft):
    """A follower answers with the end of its log, which may be another leader's."""

    def __init__(self, *args):
        super().__init__(*args)
        self._acceptance = _TrustingAcceptance(self.log)


class CommitsBehindTheMessage(Raft):
    """A follower takes the leader's commit index for entries that the message did not confirm."""

    def _step_append(self, message):
        super()._step_append(message)
        if self._acceptance.accepted:
            self._commit_to(min(message.commit, self.log.last_index))


class HeartbeatsCommitTooMuch(Raft):
    """A heartbeat carries the leader's commit index as it is."""

    def step(self, message):
        if message.type == MSG_HEARTBEAT:
            commit = min(self.world_commit(message), self.log.last_index)
            message = message._replace(commit=max(message.commit, commit))
        super().step(message)

    commits = {}

    def world_commit(self, message):
        return self.commits.get((message.frm, message.term), 0)

    def ready(self):
        if self.role == LEADER:
            self.commits[self.id, self.term] = self.commit
        return super().ready()


class BelievesLateReports(Raft):
    """A disk report of entries that were replaced meanwhile counts."""

    def persisted(self, index, index_term, state_term, state_vote):
        index = min(index, self.log.last_index)
        super().persisted(index, self.log.term(index), self.term, self.vote)


class ReadsWithoutAsking(Raft):
    """The leader answers reads without a round of heartbeats."""

    def _read_index(self, frm, context):
        if self.committed_in_term:
            self._answer_read(frm, context, self.commit)
        else:
            super()._read_index(frm, context)


class ReadsBeforeTheFirstCommit(Raft):
    """A new leader answers from a commit index that may be older than its predecessor's."""

    def _read_index(self, frm, context):
        self._reads.fresh.append((frm, context, self.commit))


class ReadsFromAnyAnswer(Raft):
    """One answer to a heartbeat confirms a read, whatever the quorum."""

    def _confirm_reads(self):
        number = max(at.read_round for at in self.progress.values())
        for frm, context, index in self._reads.confirmed(number):
            self._answer_read(frm, context, index)


class ChangesAtAnyTime(Raft):
    """Configuration changes overlap, and a member stands for election with an outdated configuration."""

    def propose(self, data, type=0):
        self._changes_to = 0
        return super().propose(data, type)

    def _step_proposals(self, message):
        self._changes_to = 0
        super()._step_proposals(message)

    def _change_pending(self):
        return False


class StandsWithAChangePending(Raft):
    """A member stands for election before a committed change is in force."""

    def _change_pending(self):
        return False


class NeverProbes(Raft):
    """A follower whose log differs is never asked where the logs meet."""

    def _step_append_answer(self, message):
        if not message.reject:
            super()._step_append_answer(message)


class _ForgetfulReplication(Replication):
    __slots__ = ()

    def answered_heartbeat(self, at):
        pass


class NeverRepeats(Raft):
    """A lost append is not noticed."""

    def __init__(self, *args):
        super().__init__(*args)
        self._replication = _ForgetfulReplication(self._config, self.log)
        self._configure()

    def report_unreachable(self, peer):
        pass


class AnswersHigherTermsOnly(Raft):
    """The message of a leader of a lower term is dropped in silence: a member with a newer term stays outside."""

    def _step_term(self, message):
        return message.term > self.term and super()._step_term(message)


class ForgetsReplacedEntries(Raft):
    """`stable` does not fall when entries are replaced."""

    def _step_append(self, message):
        before = self._acceptance.stable
        super()._step_append(message)
        self._acceptance.stable = max(before, self._acceptance.stable)


MUTANTS = {
    mutant.__name__: mutant
    for mutant in (
        CommitsOlderTerms,
        VotesBeforeDurable,
        AsksBeforeDurable,
        VotesTwice,
        ForgetsItsVote,
        VotesForShorterLogs,
        CountsItselfEarly,
        AcknowledgesEarly,
        TruncatesOnDuplicates,
        AcknowledgesItsWholeLog,
        CommitsBehindTheMessage,
        HeartbeatsCommitTooMuch,
        BelievesLateReports,
        ReadsWithoutAsking,
        ReadsBeforeTheFirstCommit,
        ReadsFromAnyAnswer,
        ChangesAtAnyTime,
        StandsWithAChangePending,
        NeverProbes,
        NeverRepeats,
        AnswersHigherTermsOnly,
        ForgetsReplacedEntries,
    )
}
