"""Parts of the raft core by themselves: what scenarios and simulation would show only by its effect."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcdfast.consensus.raft import (
    ConfChange,
    ConfState,
    HardState,
    Message,
    ProposalDropped,
    Raft,
    RaftConfig,
    RaftFault,
    UnsupportedConfiguration,
)
from etcdfast.consensus.raft.log import last_of_term
from etcdfast.consensus.raft.messages import MSG_APP, MSG_APP_RESP, MSG_HEARTBEAT, MSG_PROP, MSG_VOTE_RESP
from etcdfast.consensus.raft.readindex import PENDING_READS_MAX
from tests.consensus.sim.entries import Batch, SimLog


def make_log(terms, index=0, term=0):
    return SimLog(index, term, [(each, 0, b"x") for each in terms], lambda *entry: None)


def make_leader(terms=(), **config):
    """Member 1 of three, leading term 2 with everything written and acknowledged by nobody."""
    log = make_log(terms)
    raft = Raft(RaftConfig(1, 10, lambda n: 0, pre_vote=False, **config), log, HardState(1, 0, 0), ConfState((1, 2, 3)))
    raft.campaign()
    raft.persisted(log.last_index, log.term(log.last_index), 2, 1)
    raft.step(Message(MSG_VOTE_RESP, 1, 2, 2))
    assert raft.leads
    return raft, log


def appends(raft, to=2):
    return [tuple(m.entries) for m in raft.ready().messages if m.type == MSG_APP and m.to == to]


@given(
    st.lists(st.integers(1, 6), max_size=30).map(sorted),
    st.integers(0, 5),
    st.integers(0, 40),
    st.integers(0, 7),
)
def test_last_of_term_is_what_a_walk_finds(terms, before, index, term):
    log = make_log(terms, before, min(terms, default=1) if before else 0)
    found = last_of_term(log, index, term)
    at = min(index, log.last_index)
    while at >= log.first_index - 1 and log.term(at) > term:
        at -= 1
    assert found[0] == max(at, 0)
    if at >= log.first_index - 1:
        assert found[1] == log.term(at)


def test_a_window_of_messages_bounds_what_is_under_way():
    raft, log = make_leader(message_bytes_max=1, inflight_max=4)
    assert appends(raft) == [(1, 1)]  # a probe: one message
    raft.step(Message(MSG_APP_RESP, 1, 2, 2, index=1))
    for _ in range(10):
        raft.propose(b"x")
    assert appends(raft) == [(2, 2), (3, 3), (4, 4), (5, 5)]
    raft.propose(b"x")
    assert appends(raft) == []
    raft.step(Message(MSG_APP_RESP, 1, 2, 2, index=3))
    assert appends(raft)[:2] == [(6, 6), (7, 7)]


def test_full_messages_have_a_window_of_their_own():
    raft, log = make_leader(message_bytes_max=2, inflight_full_max=3)
    appends(raft)
    raft.step(Message(MSG_APP_RESP, 1, 2, 2, index=1))
    for _ in range(20):
        raft.propose(b"x")
    assert appends(raft) == [(2, 3), (4, 5), (6, 7)]
    raft.step(Message(MSG_APP_RESP, 1, 2, 2, index=3))
    assert (8, 9) in appends(raft)


def test_many_proposals_are_one_message():
    raft, log = make_leader()
    appends(raft)
    raft.step(Message(MSG_APP_RESP, 1, 2, 2, index=1))
    for _ in range(100):
        raft.propose(b"x")
    assert appends(raft) == [(2, 101)]


def test_heartbeats_of_reads_do_not_reach_learners():
    raft, log = make_leader()
    raft.step(Message(MSG_APP_RESP, 1, 2, 2, index=1))
    raft.persisted(1, 2, 2, 1)
    raft.apply_conf_change(1, ConfChange(3, 4))
    raft.ready()
    raft.read_index(b"12345678")
    assert sorted(m.to for m in raft.ready().messages if m.type == MSG_HEARTBEAT) == [2, 3]


def test_reads_go_on_when_the_last_other_voter_goes():
    """Nobody is left to answer their round."""
    log = make_log([1])
    raft = Raft(RaftConfig(1, 10, lambda n: 0, pre_vote=False), log, HardState(1, 0, 0), ConfState((1, 2)))
    raft.campaign()
    raft.persisted(1, 1, 2, 1)
    raft.step(Message(MSG_VOTE_RESP, 1, 2, 2))
    raft.persisted(2, 2, 2, 1)
    raft.step(Message(MSG_APP_RESP, 1, 2, 2, index=2))
    raft.ready()
    assert raft.commit == 2
    raft.read_index(b"12345678")
    raft.apply_conf_change(2, ConfChange(1, 2))
    assert [tuple(read) for read in raft.ready().reads] == [(2, b"12345678")]
    assert not raft.has_ready()


def test_reads_that_wait_are_bounded():
    raft, log = make_leader()
    for number in range(PENDING_READS_MAX):
        raft.read_index(number.to_bytes(8, "big"))
    with pytest.raises(ProposalDropped):
        raft.read_index(b"one more")
    # Those of other members are dropped in silence; they ask again.
    raft.step(Message(15, 1, 2, context=b"remote 1"))


def test_a_batch_with_a_change_comes_alone():
    raft, log = make_leader()
    before = log.last_index
    raft.step(Message(MSG_PROP, 1, 2, entries=Batch(0, [(0, 1, ("add", 4)), (0, 0, b"x")])))
    assert log.last_index == before
    with pytest.raises(ProposalDropped):
        raft.step(Message(MSG_PROP, entries=Batch(0, [(0, 1, ("add", 4)), (0, 0, b"x")])))


def test_answers_that_cannot_be_are_not_believed():
    raft, log = make_leader()
    raft.step(Message(MSG_APP_RESP, 1, 2, 2, index=99))  # behind the leader's log
    raft.step(Message(MSG_APP_RESP, 1, 9, 2, index=1))  # no member
    raft.step(Message(MSG_APP_RESP, 1, 2, 0, index=1))  # without a term
    assert raft.progress[2].match == 0
    assert raft.commit == 0


def test_a_lost_log_is_named():
    raft = Raft(RaftConfig(2, 10, lambda n: 0), make_log([1]), HardState(2, 0, 1), ConfState((1, 2, 3)))
    with pytest.raises(RaftFault, match="its log ends at 1"):
        raft.step(Message(MSG_HEARTBEAT, 2, 1, 2, commit=5))


def test_a_leader_that_contradicts_what_is_committed_is_named():
    raft = Raft(RaftConfig(2, 10, lambda n: 0), make_log([1, 1]), HardState(2, 0, 1), ConfState((1, 2, 3)))
    raft.step(Message(MSG_APP, 2, 1, 3, 1, 1, 1, Batch(2, [(3, 0, b"y")])))  # entry 2 was not committed
    assert raft.log.term(2) == 3
    raft.step(Message(MSG_APP, 2, 1, 3, 3, 2, 2, Batch(3, [])))
    with pytest.raises(RaftFault, match="entry 2 is committed with term 3"):
        raft.step(Message(MSG_APP, 2, 3, 4, 1, 2, 2, Batch(3, [])))


def test_joint_configurations_are_refused():
    with pytest.raises(UnsupportedConfiguration):
        Raft(RaftConfig(1, 10, lambda n: 0), make_log([]), HardState(0, 0, 0), ConfState((1, 2), (), (1,)))


def test_messages_of_the_past_change_nothing():
    raft, log = make_leader([1, 1])
    appends(raft)
    raft.step(Message(MSG_APP, 1, 3, 1, 1, 1, 2, Batch(2, [])))
    # Whoever leads an older term is told of the newer one.
    assert [(m.type, m.to, m.term) for m in raft.ready().messages] == [(MSG_APP_RESP, 3, 2)]
    assert raft.leads
