"""The calls that consensus itself carries out: members come and go, leadership is handed over.

A call is a record of a frontend that the C turn left to Python. One that changes the membership becomes an entry;
apply answers it when it gets there, and refusals go back by way of apply too. Source: formats.md 2.3, 4.1 and 5.4.
"""

import time

from etcdfast._ext import meters
from etcdfast.api import errors, rpcs
from etcdfast.cluster import membership as rules
from etcdfast.config.values import urls as parse_urls
from etcdfast.consensus.raft import ProposalDropped
from etcdfast.consensus.records import Record
from etcdfast.formats import memberid
from etcdfast.formats.raftpb import RaftMessageError, encode_conf_change, read_fields

_CLUSTER = "/etcdserverpb.Cluster/"
ADD, REMOVE, UPDATE, PROMOTE = (
    rpcs.BY_PATH[_CLUSTER + name].id for name in ("MemberAdd", "MemberRemove", "MemberUpdate", "MemberPromote")
)
MOVE_LEADER = rpcs.BY_PATH["/etcdserverpb.Maintenance/MoveLeader"].id
WAITING_MAX = 256


class Refused(Exception):
    """A call that cannot be carried out: the symbol of an error."""


class Calls:
    def __init__(self, process):
        self._process = process
        self._moves = []  # (record, to, deadline) of leadership on its way
        self._changes = {}  # request id -> (member id, reply) of promotions that other members asked for
        self._promoted_elsewhere = []  # (record, member id, deadline): the leader has done it, its entry is coming here
        self._undelivered = []  # (record, error or None) that found no room in the ring to apply
        self._handlers = {
            ADD: self._add,
            REMOVE: self._remove,
            UPDATE: self._update,
            PROMOTE: self._promote,
            MOVE_LEADER: self._move_leader,
        }

    def take(self, raw):
        """A record that the turn left to Python."""
        record = Record(raw)
        if record.kind != Record.PROPOSE:
            self._process.peering.take_record(record)
            return
        try:
            self._handlers[record.method](record)
        except Refused as refusal:
            self.refuse(record, str(refusal))
        except RaftMessageError:
            self.refuse(record, "INTERNAL")

    # ---- answers -----------------------------------------------------------------------------------

    def refuse(self, record, symbol):
        self._answer(record, errors.ID[symbol])

    def _answer(self, record, error):
        """An error, or None: apply makes the answer."""
        loop = self._process.loop
        done = loop.pass_call(record.raw) if error is None else loop.refuse_call(record.raw, error)
        if not done and len(self._undelivered) < WAITING_MAX:
            self._undelivered.append((record, error))

    def tick(self):
        undelivered, self._undelivered = self._undelivered, []
        for record, error in undelivered:
            self._answer(record, error)
        if self._promoted_elsewhere:
            self._tell_promoted()
        now = time.monotonic()
        raft = self._process.raft
        for move in list(self._moves):
            record, to, deadline = move
            if raft.leader == to or now >= deadline or (raft.leads and not raft.transferring):
                self._moves.remove(move)
                if raft.leader == to:
                    self._answer(record, None)
                else:
                    self.refuse(record, "TIMEOUT_LEADER_TRANSFER")

    def leader_changed(self, leader):
        if self._moves:
            self.tick()

    # ---- members -----------------------------------------------------------------------------------

    def _propose(self, record, change):
        """The change as an entry, here or by way of the leader."""
        process = self._process
        self._log(change)
        process.loop.wait_for(change.id, record.raw)

    def _log(self, change):
        if not self._process.propose_change(change.id, encode_conf_change(change)):
            raise Refused("TIMEOUT")

    def _strict(self):
        return self._process.config.strict_reconfig_check

    def _add(self, record):
        process, members = self._process, self._process.membership
        found = read_fields(record.message, {1: bytes, 2: int})
        try:
            urls = _urls(found[1])
        except ValueError:
            raise Refused("MEMBER_BAD_URLS") from None
        is_learner = bool(found[2] and found[2][-1])
        if self._strict():
            self._check(rules.may_add(members, is_learner, process.peering.connected()))
        member_id = memberid.member_id(urls, "", int(time.time()))
        change = rules.add_change(process.loop.next_request_id(), member_id, urls, is_learner)
        self._check(members.check(change))
        self._propose(record, change)

    def _remove(self, record):
        process, members = self._process, self._process.membership
        member_id = self._member(record, 1)
        if self._strict() and member_id in members.members:
            peering = process.peering
            self._check(
                rules.may_remove(
                    members, member_id, process.raft.id, peering.connected(), peering.is_active(member_id)
                )
            )
        change = rules.remove_change(process.loop.next_request_id(), member_id)
        self._check(members.check(change))
        self._propose(record, change)

    def _update(self, record):
        process = self._process
        found = read_fields(record.message, {1: int, 2: bytes})
        member_id = found[1][-1] if found[1] else 0
        try:
            urls = _urls(found[2])
        except ValueError:
            raise Refused("MEMBER_BAD_URLS") from None
        change = rules.update_change(process.loop.next_request_id(), member_id, urls)
        self._check(process.membership.check(change))
        self._propose(record, change)

    def _promote(self, record):
        process = self._process
        member_id = self._member(record, 1)
        if process.raft.leads:
            change = self._promotion(member_id)
            self._propose(record, change)
            return
        if not process.raft.leader:
            raise Refused("NO_LEADER")
        # Only the leader knows how far a learner is: it is asked to do it, and the answer is made here when the change
        # has got here too.
        process.peering.ask_promote(member_id, lambda error: self._promoted(record, error))

    def _promoted(self, record, error):
        if error is not None:
            self.refuse(record, error)
            return
        if len(self._promoted_elsewhere) >= WAITING_MAX:
            self._answer(self._promoted_elsewhere.pop(0)[0], None)
        deadline = time.monotonic() + self._process.config.request_timeout_seconds
        self._promoted_elsewhere.append((record, self._member(record, 1), deadline))
        self._tell_promoted()

    def _tell_promoted(self):
        """Answer those whose learner is a voter here too."""
        members, now = self._process.membership.members, time.monotonic()
        for waiting in list(self._promoted_elsewhere):
            record, member_id, deadline = waiting
            member = members.get(member_id)
            if member is None or not member.is_learner or now >= deadline:
                self._promoted_elsewhere.remove(waiting)
                self._answer(record, None)

    def _promotion(self, member_id):
        """The checked change that makes a learner a voter, by this leader. Errors: Refused."""
        try:
            change = self._checked_promotion(member_id)
        except Refused:
            meters.count("promote_failures")
            raise
        meters.count("promote_successes")
        return change

    def _checked_promotion(self, member_id):
        process, members = self._process, self._process.membership
        change = rules.promote_change(process.loop.next_request_id(), member_id)
        self._check(members.check(change))
        progress = process.raft.progress
        learner, own = progress.get(member_id), progress.get(process.raft.id)
        leader_match = own.match if own is not None else process.raft.commit
        self._check(rules.learner_ready(learner.match if learner is not None else None, leader_match))
        if self._strict():
            self._check(rules.may_promote(members, member_id))
        return change

    def promote_for_peer(self, member_id, reply):
        """POST /members/promote of another member."""
        try:
            if not self._process.raft.leads:
                raise Refused("NOT_LEADER")
            change = self._promotion(member_id)
            self._log(change)
        except Refused as refusal:
            reply(*_promote_failure(str(refusal)))
            return
        if len(self._changes) >= WAITING_MAX:
            self._changes.pop(next(iter(self._changes)))
        self._changes[change.id] = reply

    def change_applied(self, request_id):
        """A configuration change was handed to apply, by whomever it was proposed."""
        if self._promoted_elsewhere:
            self._tell_promoted()
        reply = self._changes.pop(request_id, None)
        if reply is not None:
            reply(200, self._process.membership.members_json(), "application/json")

    def _check(self, refused):
        if refused is not None:
            raise Refused(refused)

    def _member(self, record, field):
        found = read_fields(record.message, {field: int})[field]
        return found[-1] if found else 0

    # ---- leadership ---------------------------------------------------------------------------------

    def _move_leader(self, record):
        raft = self._process.raft
        to = self._member(record, 1)
        if not raft.leads:
            raise Refused("NOT_LEADER")
        if to not in raft.conf_state.voters:
            raise Refused("BAD_LEADER_TRANSFEREE")
        if to == raft.id:
            self._answer(record, None)
            return
        if len(self._moves) >= WAITING_MAX:
            raise Refused("TOO_MANY_REQUESTS")
        try:
            raft.transfer_leader(to)
        except ProposalDropped:
            raise Refused("NOT_LEADER") from None
        self._moves.append((record, to, time.monotonic() + self._process.config.election_timeout / 1000))


def _urls(found):
    """Peer URLs of a request, checked. Errors: ValueError."""
    if not found:
        raise ValueError("no URLs")
    return parse_urls(",".join(url.decode() for url in found))


def _promote_failure(symbol):
    """HTTP status and body of a refused promotion, as etcd's peers read them."""
    text = errors.ERRORS[errors.ID[symbol]].text
    if symbol == "MEMBER_NOT_FOUND":
        return 404, text.encode()
    if symbol in ("MEMBER_NOT_LEARNER", "LEARNER_NOT_READY"):
        return 412, text.encode()
    return 500, text.encode()
