"""The consensus loop's data path under a real raft core: what changes in the middle of a turn, and what the disk has of
a log that was cut while it was written."""

import os
from collections import deque
from types import SimpleNamespace

import pytest

from etcdfast._ext import consensusloop as turns
from etcdfast._ext.consensusloop import Loop
from etcdfast._ext.peerset import Peers
from etcdfast._ext.peerwire import PeerMessage, marshal_message
from etcdfast._ext.raftlog import RaftLog
from etcdfast._ext.ring import APPLY_WORDS, CONSENSUS_WORDS, STATUS_PAGE_BYTES, Ring, StatusPage, format_ring
from etcdfast.consensus.memberlog import MemberLog
from etcdfast.consensus.membership import Member, Membership
from etcdfast.consensus.messenger import Messenger
from etcdfast.consensus.process import Process
from etcdfast.consensus.raft import ConfState, Message, Raft, RaftConfig
from etcdfast.consensus.raft.messages import MSG_APP, MSG_HEARTBEAT_RESP, MSG_PROP, MSG_SNAP, MSG_VOTE_RESP, Span
from etcdfast.consensus.transfer import Transfers
from etcdfast.formats import wal
from etcdfast.formats.raftpb import ConfChange, encode_conf_change, encode_snapshot, put_uint

OWN, VOTERS = 1, (1, 2, 3)


class Rig:
    """Member 1 of three with its log, WAL and core; the others are played by `post`."""

    def __init__(self, path, faults=None):
        self.wal = wal.create(path / "wal", put_uint(1, OWN) + put_uint(2, 9), prewrite=False, faults=faults)
        self.log = RaftLog(0, 0, rows_max=1024, bytes_max=1 << 20)
        self.peers = Peers(OWN, self.log, RaftLog(0, 0, rows_max=1024, bytes_max=1 << 20), Message)
        self.peers.on_special = lambda kind, data: None
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        self.life, self.life_write = os.pipe()
        rings = []
        for name in ("f0c", "ca"):
            fd = os.memfd_create(name)
            format_ring(fd, 1 << 20)
            rings.append(Ring(fd, self.fds[0]))
            self.fds.append(fd)
        status = os.memfd_create("status")
        os.ftruncate(status, STATUS_PAGE_BYTES)
        self.fds.append(status)
        self.loop = Loop(
            doorbell=self.fds[0],
            inbound=rings[:1],
            out=rings[1],
            status=StatusPage(status),
            wal=self.wal,
            log=self.log,
            peers=self.peers,
            table=None,
            wake=self.fds[1],
            life=self.life,
            inbox=self.fds[2],
            request_prefix=OWN << 48,
            request_bytes_max=1 << 20,
            tick_seconds=0.01,
            handed=0,
            commit=0,
            hard_state=(0, 0, 0),
        )
        self.loop.tell_appended = True
        self.core_log = MemberLog(self.loop, [], (0, 0))
        self.raft = Raft(
            RaftConfig(OWN, 1000, lambda n: 0, pre_vote=False), self.core_log, conf_state=ConfState(VOTERS)
        )

    def close(self):
        self.wal.close()
        for fd in (*self.fds, self.life, self.life_write):
            os.close(fd)

    def post(self, *fields, **named):
        """A message as it comes from another member: its entries are [(term, index, type, data)]."""
        self.peers.take_marshalled(PeerMessage(marshal_message(*fields, **named)), self.raft.step)

    def carry_out(self):
        ready = self.raft.ready()
        if ready.hard_state is not None:
            self.loop.hard_state(*ready.hard_state)
            self.loop.commit_to(ready.commit)
        taking = turns.LEADING if self.raft.leads else turns.FOLLOWING if self.raft.leader else turns.NOTHING
        self.loop.take(taking, self.raft.term, self.raft.leader)
        return ready

    def turn(self):
        events = self.loop.turn()
        if events & turns.DURABLE:
            loop = self.loop
            self.raft.persisted(loop.durable_index, loop.durable_term, loop.durable_term_of_state, loop.durable_vote)
        return events

    def lead(self):
        self.raft.campaign()
        self.carry_out()
        while self.raft._held:
            self.turn()
        self.post(MSG_VOTE_RESP, OWN, 2, self.raft.term)
        assert self.raft.leads
        self.carry_out()

    def terms(self):
        return [self.log.term(index) for index in range(1, self.log.last_index + 1)]

    def append(self, frm, term, before, before_term, entry_terms):
        entries = [(each, before + n, 0, b"x") for n, each in enumerate(entry_terms, 1)]
        self.post(MSG_APP, OWN, frm, term, log_term=before_term, index=before, entries=entries)


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    made.close()


def test_nothing_is_logged_under_the_old_term_behind_a_new_leaders_entries(rig):
    """A member that led until this very batch of messages: what other members forwarded to it lies behind the new
    leader's entries there. Terms must not fall along a log."""
    rig.lead()
    assert rig.terms() == [1]
    rig.append(2, 2, 0, 0, [2, 2])
    rig.post(MSG_PROP, OWN, 3, 0, entries=[(0, 0, 0, b"late")])
    assert not rig.loop.propose(0, b"of its own", 0)
    assert rig.terms() == [2, 2]
    assert [rig.core_log.term(index) for index in (1, 2, 3)] == [2, 2, 0]
    # As soon as the core has said what to take, proposals go the new leader's way.
    rig.carry_out()
    assert (rig.loop.taking, rig.peers.leader) == (turns.FOLLOWING, 2)
    assert rig.loop.propose(0, b"of its own", 0)
    assert rig.terms() == [2, 2]


def test_what_a_deposed_leader_held_back_is_not_sent(rig):
    """Messages that wait are positions: by now the log there may be shorter, and another's."""
    rig.lead()
    for _ in range(5):
        assert rig.loop.propose(0, b"x", 0)
    messenger = Messenger(OWN, rig.loop, rig.raft, lambda member, data: pytest.fail("posted"))
    messenger.deferred[3] = deque([Message(MSG_APP, 3, OWN, 1, 1, 1, 0, Span(2, 6))])
    rig.append(2, 2, 0, 0, [2])
    messenger.retry()
    assert not messenger.deferred


def test_a_batch_written_before_the_log_was_cut_twice_stands_for_nothing_behind_the_cut(tmp_path):
    """Entries of term 1 are with the disk, are replaced by one of term 2, and come again from the leader of term 3. The
    sync under way has written the same entries, but what replaced them follows it onto the disk."""
    rig = Rig(tmp_path, faults="fdatasync:*:delay=200000")
    try:
        rig.append(2, 1, 0, 0, [1, 1, 1, 1])
        rig.carry_out()
        while rig.loop.batches[0] == 0:
            assert not rig.turn() & turns.DURABLE
        rig.append(3, 2, 1, 1, [2])
        rig.append(2, 3, 1, 1, [1, 1, 1])
        rig.carry_out()
        assert rig.terms() == [1, 1, 1, 1]
        while not rig.turn() & turns.DURABLE:
            pass
        assert rig.loop.durable_index == 1
        while not rig.turn() & turns.DURABLE:
            pass
        assert (rig.loop.durable_index, rig.loop.durable_term) == (4, 1)
    finally:
        rig.close()


def process_of(**parts):
    """A Process with just these parts."""
    process = object.__new__(Process)
    for name, part in parts.items():
        setattr(process, name, part)
    return process


def test_a_transfer_of_leadership_stops_requests_and_its_end_lets_them_go_on(rig):
    rig.lead()
    while rig.raft.has_ready():
        rig.carry_out()
    messenger = SimpleNamespace(send=lambda messages: None)
    process = process_of(raft=rig.raft, loop=rig.loop, messenger=messenger, _stopping=False, _first_commit_seen=True)
    assert rig.loop.taking == turns.LEADING
    rig.raft.transfer_leader(2)
    process.carry_out()
    assert rig.loop.taking == turns.NOTHING
    for _ in range(1000):  # an election timeout
        rig.raft.step(Message(MSG_HEARTBEAT_RESP, OWN, 3, rig.raft.term))
        rig.raft.tick()
    assert rig.raft.leads and not rig.raft.transferring
    process.carry_out()
    assert rig.loop.taking == turns.LEADING


def test_a_deposed_leader_logs_no_change_of_members(rig):
    rig.lead()
    rig.post(8, OWN, 2, 2)  # a heartbeat of the next leader
    assert not rig.raft.leads and rig.loop.taking == turns.LEADING  # nobody has told the loop yet
    assert not process_of(raft=rig.raft, loop=rig.loop).propose_change(5, b"\x08\x05")
    assert rig.terms() == [1]


@pytest.mark.parametrize("changed_at, asked", [(7, 8), (8, 8), (9, 4)])
def test_a_raft_snapshot_is_not_of_an_entry_before_the_last_change_of_members(changed_at, asked):
    """Its membership is that of what was handed over."""
    seen = []
    snapshots = SimpleNamespace(index=4, advance=lambda loop, index, *rest: seen.append(index))
    process = process_of(
        snapshots=snapshots,
        loop=SimpleNamespace(handed=12),
        _changed_at=changed_at,
        _apply={APPLY_WORDS["flushed_index"]: 8},
        _status={CONSENSUS_WORDS["wal_bytes"]: 0},
    )
    process._advance_snapshots()
    assert seen == [asked]


def test_a_snapshot_whose_database_is_gone_is_not_taken(tmp_path):
    """Two that came at once share the file, and go through here one after the other."""
    answers = []
    stepped = SimpleNamespace(step=lambda message: pytest.fail("taken"))
    transfers = Transfers(SimpleNamespace(raft=stepped))
    snapshot = encode_snapshot(b"{}", ConfState(VOTERS), 5, 1)
    raw = marshal_message(MSG_SNAP, OWN, 2, 1, snapshot=snapshot)
    transfers.received(raw, str(tmp_path / "gone"), lambda status, *rest: answers.append(status))
    assert answers == [500]


def test_a_snapshot_without_its_database_changes_nothing(rig):
    """It came by a stream, or by POST /raft."""
    snapshot = encode_snapshot(b"{}", ConfState(VOTERS), 5, 1)
    rig.post(MSG_SNAP, OWN, 2, 1, snapshot=snapshot)
    assert (rig.raft.commit, rig.log.last_index) == (0, 0)


def test_an_opened_log_is_on_disk(tmp_path, monkeypatch):
    """What is read at a start is taken for durable: after kill -9 it may be in the page cache alone."""
    wal.create(tmp_path / "wal", b"\x08\x01", prewrite=False).close()
    synced = []
    sync = os.fsync
    monkeypatch.setattr(wal.os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    found, log = wal.open_for_append(tmp_path / "wal", prewrite=False)
    log.close()
    assert found.segments[-1].path in synced


@pytest.mark.parametrize("is_learner, kind, state", [
    (False, 0, ((1, 2, 3), ())),  # the snapshot knew the new member already
    (True, 3, ((1, 2), (3,))),
    (None, 0, ((1, 2), ())),  # refused for good: nobody knows it
])  # fmt: skip
def test_raft_learns_from_the_log_of_members_that_a_snapshot_told_of(is_learner, kind, state):
    membership = Membership([Member(each, "", (f"http://{each}",)) for each in (1, 2)])
    if is_learner is None:
        membership.removed.add(3)
    else:
        membership.members[3] = Member(3, "", ("http://3",), (), is_learner)
    change = ConfChange(7, kind, 3, b'{"id":3,"peerURLs":["http://3"]}')
    log = RaftLog(0, 0, rows_max=64, bytes_max=1 << 20)
    raft = Raft(RaftConfig(OWN, 10, lambda n: 0), log, conf_state=ConfState((1, 2)))
    process = process_of(
        raft=raft,
        membership=membership,
        loop=SimpleNamespace(entry=lambda index: (1, 1, encode_conf_change(change))),
        calls=SimpleNamespace(change_applied=lambda request_id: None),
        members_changed=lambda: None,
        opened=SimpleNamespace(member_id=OWN),
        _members_known_to=0,
        _removed_at=0.0,
    )
    process._members_entry(5)
    assert (raft.conf_state.voters, raft.conf_state.learners) == state
    process._members_entry(6)  # again: refused, and nothing is left to learn
    assert (raft.conf_state.voters, raft.conf_state.learners) == state
