"""Auto-compaction against a clock of the test: when it compacts what, in both modes."""

import pytest

from etcdfast.api.pb import rpc_pb2
from etcdfast.apply.autocompact import AutoCompaction
from tests.apply.world import COMPACT, PUT, SECOND, World

MINUTE, HOUR = 60, 3600


class Member:
    """A member that writes `puts` keys a step and lets its compactions through."""

    def __init__(self, mode, retention):
        self.world = World()
        self.auto = AutoCompaction(self.world.services, mode, retention)
        self.world.turn()
        self.done = []  # (seconds since the start, revision)
        self.started_ns = self.world.now_ns

    def put(self, count=1):
        for _ in range(count):
            self.world.apply(PUT, rpc_pb2.PutRequest(key=b"k"))

    def asked(self):
        return [rpc_pb2.CompactionRequest.FromString(p.request) for p in self.world.pending if p.method == COMPACT]

    def run(self, seconds, step, puts=1):
        end = self.world.now_ns + seconds * SECOND
        while self.world.now_ns < end:
            self.put(puts)
            self.world.wait(step, step)
            for request in self.asked():
                assert not request.physical
                self.done.append(((self.world.now_ns - self.started_ns) / SECOND, request.revision))
            self.world.commit()


@pytest.mark.parametrize(
    "retention, step, first, every",
    [
        (HOUR, 6 * MINUTE, HOUR, HOUR),
        (5, 0.5, 5, 5),
        (24 * HOUR, 6 * MINUTE, 24 * HOUR, HOUR),
        (10 * MINUTE, MINUTE, 10 * MINUTE, 10 * MINUTE),
    ],
)
def test_periodic(retention, step, first, every):
    member = Member("periodic", retention * SECOND)
    member.run(first + 3 * every, step)
    assert [at for at, _ in member.done] == [first + i * every for i in range(4)]
    # One put a step. From the second time on there is a sample more than the retention holds, as in etcd.
    ago = [retention, *3 * [retention + step]]
    assert [revision for _, revision in member.done] == [
        1 + round((at - before) / step) for (at, _), before in zip(member.done, ago)
    ]


def test_periodic_has_nothing_to_do_when_nothing_was_written():
    member = Member("periodic", 10 * SECOND)
    member.put(5)
    member.run(60, 1, puts=0)
    # etcd's 3.5.1 asked for the same revision again and again.
    assert [revision for _, revision in member.done] == [1, 6]


def test_periodic_tries_again_after_a_tenth():
    member = Member("periodic", 10 * SECOND)
    member.put(3)
    member.world.wait(10, 1)
    for revision in (1, 1, 4):  # what had no success moves on with its samples
        assert [request.revision for request in member.asked()] == [revision]
        member.world.refuse("NO_LEADER")
        member.world.wait(1, 1)
    member.put()
    member.world.commit()
    assert member.world.model.compacted == 4
    member.world.wait(10, 1)
    assert not member.asked()  # the oldest sample is still the revision compacted last
    member.world.wait(1, 1)
    assert [request.revision for request in member.asked()] == [5]


def test_compacted_further_by_somebody_else_is_as_good():
    member = Member("periodic", 10 * SECOND)
    member.put(30)
    member.world.apply(COMPACT, rpc_pb2.CompactionRequest(revision=25))
    member.run(40, 1, puts=0)
    assert [at for at, _ in member.done] == [10, 20]


def test_periodic_pauses_while_another_leads():
    member = Member("periodic", 10 * SECOND)
    member.auto.paused = True
    member.run(100, 1)
    assert not member.done
    member.auto.paused = False
    member.run(2, 1)
    # It took samples all the while.
    assert [revision for _, revision in member.done] == [91]


def test_a_lost_compaction_does_not_end_it():
    member = Member("periodic", 10 * SECOND)
    member.put(9)
    member.world.wait(10, 1)
    assert len(member.world.lose()) == 1
    member.world.wait(7, 1)
    assert not member.asked()
    member.world.wait(1, 1)
    assert [request.revision for request in member.asked()] == [1]


def test_by_revision():
    member = Member("revision", 100)
    member.put(50)
    member.run(10 * MINUTE, MINUTE, puts=0)
    assert not member.done
    member.run(20 * MINUTE, MINUTE, puts=30)
    assert member.done == [(900, 51 + 150 - 100), (1200, 251), (1500, 401), (1800, 551)]
    member.done.clear()
    member.run(20 * MINUTE, MINUTE, puts=0)
    assert not member.done
    member.put()
    member.run(5 * MINUTE, MINUTE, puts=0)
    assert [revision for _, revision in member.done] == [552]


def test_by_revision_fails_and_pauses():
    member = Member("revision", 10)
    member.put(20)
    member.world.wait(300, 50)
    assert [request.revision for request in member.asked()] == [11]
    member.world.refuse("TOO_MANY_REQUESTS")
    member.auto.paused = True
    member.world.wait(900, 50)
    assert not member.asked()
    member.auto.paused = False
    member.world.wait(300, 50)
    assert [request.revision for request in member.asked()] == [11]


@pytest.mark.parametrize("mode", ["periodic", "revision"])
def test_off(mode):
    member = Member(mode, 0)
    member.run(HOUR, MINUTE)
    assert not member.done
    member.world.assert_idle()


def test_a_period_of_nearly_nothing_is_no_endless_loop():
    member = Member("periodic", 5)
    member.world.wait(0.01, 0.001)
    assert len(member.asked()) == 1
