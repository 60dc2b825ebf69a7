"""Who is found corrupt, and by what."""

import pytest

from etcdfast.api.pb import raft_internal_pb2, rpc_pb2
from etcdfast.cluster import corruption
from etcdfast.cluster.corruption import Answer, Own, Peers

GOOD, BAD, WORSE = 0xAAAA, 0xBBBB, 0xCCCC


def answer(hash=GOOD, revision=100, compacted=50, at=100):
    return Answer(revision, hash, compacted, at)


def run(check, *given):
    """Feed a check; (what it asked for, what it returned)."""
    asked = []
    try:
        asked.append(next(check))
        for value in given:
            asked.append(check.send(value))
    except StopIteration as stop:
        return asked, stop.value
    raise AssertionError(f"it goes on: {asked}")


def test_the_periodic_check_asks_in_order():
    asked, found = run(corruption.periodic(1), answer(), {2: answer(), 3: None}, answer(revision=120, at=120))
    assert asked == [Own(0), Peers(100), Own(0, True)]
    assert found == []


@pytest.mark.parametrize(
    "after, answers, wrong",
    [
        (answer(), {2: answer(), 3: answer()}, []),
        (answer(), {2: answer(BAD), 3: answer()}, [2]),
        (answer(), {2: answer(BAD), 3: answer(BAD)}, [2, 3]),
        # not comparable: another compaction, a member of 3.5 that does not say what it hashed, no answer
        (answer(), {2: answer(BAD, compacted=40), 3: None}, []),
        (answer(), {2: answer(BAD, at=0)}, []),
        # ahead of the leader
        (answer(), {2: answer(revision=101)}, [2]),
        (answer(), {2: answer(BAD, compacted=51)}, [2]),
        (answer(revision=120, at=120, compacted=60), {2: answer(revision=120, compacted=60)}, []),
        # the leader's own hash of the same revision has changed
        (answer(BAD), {2: answer(BAD), 3: answer()}, [1]),
        (answer(BAD, revision=120, at=120), {2: answer()}, []),
    ],
)
def test_judgement_of_the_leader(after, answers, wrong):
    assert run(corruption.periodic(1), answer(), answers, after)[1] == wrong


@pytest.mark.parametrize("given", [(None,), (answer(), {2: answer(BAD)}, None)])
def test_without_a_hash_of_its_own_the_leader_judges_nobody(given):
    assert run(corruption.periodic(1), *given)[1] == []


@pytest.mark.parametrize(
    "answers, found",
    [
        ({2: answer(), 3: answer()}, ([], True)),
        ({2: answer(), 3: None}, ([], False)),
        ({2: answer(), 3: answer(BAD)}, ([3], True)),
        ({2: answer(BAD), 3: answer(BAD)}, ([1], True)),  # the leader itself
        ({2: answer(BAD), 3: answer(WORSE)}, ([0], True)),  # nobody knows
        ({2: answer(BAD), 3: None}, ([0], True)),
        ({2: answer(), 3: answer(BAD), 4: answer(WORSE), 5: answer()}, ([3, 4], True)),
        ({2: answer(BAD, compacted=49), 3: answer()}, ([], False)),
        ({}, ([], True)),
    ],
)
def test_judgement_at_a_compaction(answers, found):
    asked, value = run(corruption.compacted(1, 100), answer(), answers)
    assert asked == [Own(100), Peers(100)] and value == found


@pytest.mark.parametrize(
    "answers, found",
    [
        ({2: answer(), 3: None}, []),
        ({2: answer(BAD), 3: answer()}, [2]),
        ({2: answer(BAD), 3: answer(BAD)}, [2, 3]),
        ({2: answer(BAD, compacted=60)}, []),
        ({2: answer(BAD, at=0)}, []),
    ],
)
def test_judgement_at_the_start(answers, found):
    asked, value = run(corruption.initial(1), answer(), answers)
    assert asked == [Own(0), Peers(100)] and value == found


def test_answers_are_read():
    body = b'{"header":{"revision":7},"hash":3735928559,"compact_revision":-1,"hash_revision":6}'
    assert corruption.read_answer(body) == Answer(7, 0xDEADBEEF, -1, 6)
    assert corruption.read_answer(b'{"header":{"revision":7},"hash":1,"compact_revision":4}\n') == Answer(7, 1, 4, 0)
    for body in (b"", b"[]", b'{"hash":"x"}', b'{"header":3}', b'{"hash":null}'):
        with pytest.raises(corruption.AnswerError):
            corruption.read_answer(body)


def test_alarms_are_etcds():
    request = rpc_pb2.AlarmRequest.FromString(corruption.alarm_request(7))
    assert (request.action, request.memberID, request.alarm) == (1, 7, 2)
    entry = raft_internal_pb2.InternalRaftRequest.FromString(corruption.alarm_entry(99, 0))
    assert (entry.header.ID, entry.alarm.action, entry.alarm.memberID, entry.alarm.alarm) == (99, 1, 0, 2)
    assert entry.SerializeToString() == corruption.alarm_entry(99, 0)
