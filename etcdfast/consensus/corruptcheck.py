"""The corruption checks at work: who is asked, when, and what a difference leads to (cluster/corruption.py decides).

    periodic   the leader, every --corrupt-check-time: a CORRUPT alarm for each member that cannot be right
    compacted  the leader, after a compaction, every --compact-hash-check-time (feature gate CompactHashCheck)
    initial    once, before a member that has data serves: it does not start on data that differ from the others'
"""

import time

from etcdfast import log
from etcdfast.cluster import corruption
from etcdfast.cluster.corruption import Answer, AnswerError, Own

NEVER = (1 << 64) - 1  # compacted revision of a store that never was


class DataInconsistency(Exception):
    """This member's data differ from the others' at a start; one line."""


class CorruptionChecks:
    def __init__(self, process):
        self._process = process
        config = process.config
        self._periodic_seconds = config.corrupt_check_time
        self._periodic_at = time.monotonic() + self._periodic_seconds
        self._compact_seconds = config.compact_hash_check_time if config.compact_hash_check else 0.0
        self._compact_at = time.monotonic() + self._compact_seconds
        self._compact_checked = 0  # revision at which the last complete check was made
        self._check = None  # the generator under way
        self._finish = None
        self._answers = None  # {member id: Answer or None} that come in
        self._await_index = 0  # the question to apply waits until so much is handed over
        self._revision = 0
        self._term = 0  # in which the check under way began

    @property
    def busy(self):
        return self._check is not None

    def start_initial(self, done):
        """Compare with the others before this member serves. done() once that may be. Errors: DataInconsistency."""

        def finish(found):
            if found:
                listed = ", ".join(f"{member:x}" for member in found)
                raise DataInconsistency(f"checkInitialHashKV failed: found data inconsistency with peers {listed}")
            log.info("initial corruption check passed")
            done()

        self._start(corruption.initial(self._process.raft.id), finish)

    def tick(self):
        if self._check is not None:
            if self._await_index and self._process.loop.handed >= self._await_index:
                self._ask_own()
            return
        raft, now = self._process.raft, time.monotonic()
        if not raft.leads or not raft.committed_in_term or len(self._process.membership.members) < 2:
            return
        if self._periodic_seconds and now >= self._periodic_at:
            self._periodic_at = now + self._periodic_seconds
            self._start(corruption.periodic(raft.id), self._raise)
        elif self._compact_seconds and now >= self._compact_at:
            self._compact_at = now + self._compact_seconds
            compacted = self._process.apply_word("compacted")
            if compacted not in (0, NEVER) and compacted != self._compact_checked:
                self._start(
                    corruption.compacted(raft.id, compacted), lambda found: self._compared(compacted, *found)
                )

    def _compared(self, revision, members, complete):
        if complete:
            self._compact_checked = revision
        self._raise(members)

    def _raise(self, members):
        raft = self._process.raft
        if members and not (raft.leads and raft.term == self._term):
            # Those that were ahead of this member may have followed another leader already. An entry of the term in
            # which the check began can only be committed if that is not so.
            log.warn("a corruption check found differences, and its leader was replaced", members=len(members))
            return
        for member in members:
            log.error("found corruption: raising the CORRUPT alarm", member_id=f"{member:x}")
            request_id = self._process.loop.next_request_id()
            self._process.loop.propose(0, corruption.alarm_entry(request_id, member), request_id)

    # ---- one check ---------------------------------------------------------------------------------

    def _start(self, check, finish):
        self._check, self._finish = check, finish
        self._term = self._process.raft.term
        self._go_on(None)

    def _go_on(self, answer):
        try:
            wanted = self._check.send(answer)
        except StopIteration as end:
            self._check = None
            self._finish(end.value)
            return
        self._revision = wanted.revision
        if isinstance(wanted, Own):
            # Behind what is committed now, which is all that others can have applied when they answered before.
            self._await_index = max(self._process.raft.commit, 1) if wanted.linearizable else 1
            if self._process.loop.handed >= self._await_index:
                self._ask_own()
            return
        others = [member for member in self._process.membership.members if member != self._process.raft.id]
        self._answers = {}
        if not others:
            self._go_on({})
        for member in others:
            self._process.peering.ask_hash(member, corruption.question(wanted.revision), len(others), self._take)

    def _ask_own(self):
        self._await_index = 0
        self._process.peering.ask_own_hash(self._revision, self._take_own)

    def _take_own(self, status, body):
        self._go_on(None if status else _answer(body))

    def _take(self, member, expected, status, body):
        if self._check is None or self._answers is None:
            return
        self._answers[member] = _answer(body) if status == 200 else None
        if len(self._answers) == expected:
            answers, self._answers = self._answers, None
            self._go_on(answers)


def _answer(body) -> Answer | None:
    try:
        return corruption.read_answer(body)
    except AnswerError:
        return None
