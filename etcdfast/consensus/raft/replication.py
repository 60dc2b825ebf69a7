"""The leader's side of replication: what to send to whom, and what an answer means.

Nothing here decides what is committed. Messages are made in `messages`, once per batch: what was appended, a new
commit index and room in a window since the last call end up in the same message.
"""

from etcdfast.consensus.raft.log import last_of_term
from etcdfast.consensus.raft.messages import MSG_APP, MSG_HEARTBEAT, Message, Span
from etcdfast.consensus.raft.progress import PROBE, REPLICATE, SNAPSHOT, Progress


class Replication:
    """progress: {member id: Progress}, this member included as long as it is a member.

    due: `messages` may have something to send. wanted: members that need a snapshot.
    """

    __slots__ = ("progress", "due", "wanted", "_id", "_log", "_peers", "_bytes_max", "_inflight_max", "_full_max")

    def __init__(self, config, log):
        self.progress = {}
        self.due = False
        self.wanted = []
        self._id = config.id
        self._log = log
        self._peers = ()
        self._bytes_max = config.message_bytes_max
        self._inflight_max = config.inflight_max
        self._full_max = config.inflight_full_max

    # ---- members ---------------------------------------------------------------------------------

    def configure(self, conf_state):
        """Follow a configuration: who is new starts as a probe at the end of the log."""
        known = self.progress
        self.progress = {}
        following = self._log.last_index + 1
        for members, is_learner in ((conf_state.voters, False), (conf_state.learners, True)):
            for member in members:
                at = known.get(member)
                if at is None:
                    at = Progress(member, following)
                    # The check of the quorum gives it a full election timeout to be heard of.
                    at.recent_active = True
                at.is_learner = is_learner
                self.progress[member] = at
        self._peers = tuple(at for member, at in self.progress.items() if member != self._id)
        self.due = True

    def start(self, conf_state):
        """A new leader knows nothing of the others yet."""
        self.progress = {}
        self.wanted.clear()
        self.configure(conf_state)
        for at in self._peers:
            at.recent_active = False

    def peers(self):
        """Progress of the other members."""
        return self._peers

    # ---- out -------------------------------------------------------------------------------------

    def messages(self, term, commit, out):
        """Append to `out` every MsgApp that may go now."""
        self.due = False
        log = self._log
        first, last = log.first_index, log.last_index
        for at in self._peers:
            if at.state == REPLICATE:
                inflight = at.inflight
                while (
                    at.next <= last
                    and len(inflight) < self._inflight_max
                    and len(at.inflight_full) < self._full_max
                    and at.next >= first
                ):
                    end = log.fit(at.next, last, self._bytes_max)
                    inflight.append(end)
                    if end < last:
                        at.inflight_full.append(end)
                    self._append(at, end, term, commit, out)
                    at.next = end + 1
                if at.next <= last and at.next < first:
                    self._need_snapshot(at)
                elif at.push or (commit > at.sent_commit and at.sent_commit < at.next - 1 and at.next > last):
                    self._append(at, at.next - 1, term, commit, out)
            elif at.state == PROBE and not at.paused:
                if at.next < first:
                    self._need_snapshot(at)
                else:
                    end = log.fit(at.next, last, self._bytes_max) if at.next <= last else at.next - 1
                    self._append(at, end, term, commit, out)
                    at.paused = True

    def heartbeats(self, term, commit, context, out, voters_only=False):
        for at in self._peers:
            if not (voters_only and at.is_learner):
                # No further than what is known to be the same there.
                known = commit if commit < at.match else at.match
                out.append(Message(MSG_HEARTBEAT, at.id, self._id, term, 0, 0, known, context=context))

    def _append(self, at, end, term, commit, out):
        following = at.next
        before = following - 1
        out.append(
            Message(MSG_APP, at.id, self._id, term, self._log.term(before), before, commit, Span(following, end))
        )
        at.sent_commit = commit
        at.push = False

    def _need_snapshot(self, at):
        if at.recent_active:
            at.become_snapshot()
            self.wanted.append(at.id)
        else:
            at.become_probe()
            at.paused = True  # until it answers a heartbeat

    # ---- answers ---------------------------------------------------------------------------------

    def accepted(self, at, index):
        """The member holds the log up to `index`. True when that is news."""
        state = at.state
        if index <= at.match:
            # The answer to a probe that found the end of the member's log.
            if state == PROBE and index == at.match:
                at.become_replicate()
                self.due = True
            return False
        at.match = index
        if at.next <= index:
            at.next = index + 1
        if state == REPLICATE:
            at.free_to(index)
            if at.next <= self._log.last_index:
                self.due = True
        elif state == PROBE or index + 1 >= self._log.first_index:
            at.become_replicate()
            self.due = True
        return True

    def rejected(self, at, index, hint, hint_term):
        """The member lacks the entry at `index`; it guesses that the logs meet at `hint`, of `hint_term` (0 from
        etcd 3.4), or before.

        Where the term at the hint is higher than the leader's entries of that place allow, whole terms are
        skipped: a divergent log of any length costs one message per term.
        """
        if at.state == REPLICATE:
            if index <= at.match:
                return  # overtaken by an acceptance
            at.become_probe()
        elif at.state == PROBE:
            if index != at.next - 1:
                return  # not the answer to the last probe
            if hint_term:
                hint = last_of_term(self._log, hint, hint_term)[0]
            at.next = max(min(index, hint + 1), at.match + 1)
            at.paused = False
        else:
            return
        self.due = True

    def answered_heartbeat(self, at):
        """The member lives: what seems lost is asked for again."""
        if at.state == PROBE:
            at.paused = False
            self.due = True
        elif at.state == REPLICATE and at.match < self._log.last_index:
            at.push = True
            self.due = True

    def unreachable(self, member):
        """Messages to the member were lost, as the transport knows."""
        at = self.progress.get(member)
        if at is not None and at.state == REPLICATE:
            at.become_probe()
            self.due = True

    # ---- snapshots -------------------------------------------------------------------------------

    def snapshot_sent(self, member, index):
        at = self.progress.get(member)
        if at is not None and at.state == SNAPSHOT:
            at.snapshot_index = index

    def snapshot_ended(self, member, ok):
        """The transfer is over; replication goes on behind it when the member is next heard of."""
        at = self.progress.get(member)
        if at is not None and at.state == SNAPSHOT:
            if not ok:
                at.snapshot_index = 0
            at.become_probe()
            at.paused = True
