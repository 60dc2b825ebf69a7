"""Campaign, Proclaim, Leader, Observe, Resign over the in-memory world."""

import random

import pytest

from etcdfast.api import errors
from etcdfast.api.pb import rpc_pb2, v3election_pb2
from etcdfast.api.pb.kv_pb2 import KeyValue
from etcdfast.apply import services as runtime
from tests.apply.world import COMPACT, DELETE, GRANT, LEASE_NOT_FOUND, PUT, REVOKE, TIMED_OUT, TXN, World

UNKNOWN = errors.ID["UNKNOWN"]
EXPIRED = "election: session is expired"
NOT_LEADER = "election: not leader"


def ask(world, method, request=None, **fields):
    name = {"Observe": "Leader"}.get(method, method)
    request = request or getattr(v3election_pb2, f"{name}Request")(**fields)
    return world.ask(f"/v3electionpb.Election/{method}", request)


def campaign(world, lease, value=b"v", name=b"e"):
    return ask(world, "Campaign", name=name, lease=lease, value=value)


def leader_of(world, name=b"e"):
    who = ask(world, "Leader", name=name)
    return world.answers[who]


@pytest.fixture
def world():
    world = World()
    world.grant(1, 2, 3)
    yield world


def won(world, lease, value=b"v"):
    who = campaign(world, lease, value)
    world.settle()
    return world.answers[who].message.leader


def test_the_first_leads_and_the_next_follows(world):
    first, second = campaign(world, 1, b"x"), campaign(world, 2, b"y")
    world.settle()
    answer = world.answers[first].message
    assert (answer.leader.name, answer.leader.key, answer.leader.rev, answer.leader.lease) == (b"e", b"e/1", 2, 1)
    assert answer.header.revision == 2
    assert leader_of(world).message.kv.value == b"x"
    assert second not in world.answers
    resigned = ask(world, "Resign", leader=answer.leader)
    world.settle()
    assert world.answers[resigned].message.header.revision == 4
    # etcd's answer carries the header of the campaign's own entry, not of the moment it won.
    assert world.answers[second].message.header.revision == world.answers[second].message.leader.rev == 3
    found = leader_of(world).message
    assert (found.kv.key, found.kv.value, found.header) == (b"e/2", b"y", world.model.header())


def test_nobody_leads(world):
    assert leader_of(world) == (UNKNOWN, "election: no leader", None)


def test_a_campaign_of_who_leads_already(world):
    key = won(world, 1, b"x")
    again = campaign(world, 1, b"x")
    world.settle()
    assert world.answers[again].message.leader == key and world.model.current == 2
    other = campaign(world, 1, b"y")
    world.settle()
    assert world.answers[other].message.leader == key
    assert leader_of(world).message.kv.value == b"y"
    assert (world.answers[other].message.header.revision, world.model.current) == (2, 3)


def test_proclaim(world):
    key = won(world, 1)
    proclaimed = ask(world, "Proclaim", leader=key, value=b"new")
    world.settle()
    assert world.answers[proclaimed].message.header.revision == 3
    assert leader_of(world).message.kv.value == b"new"
    key.rev += 1
    for method, fields in (("Proclaim", {"value": b"z"}), ("Resign", {})):
        who = ask(world, method, leader=key, **fields)
        world.settle()
        if method == "Proclaim":
            assert world.answers[who] == (UNKNOWN, NOT_LEADER, None)
        else:
            assert world.answers[who].message.header.revision == 3  # resigned, though it did not lead
    assert leader_of(world).message.kv.value == b"new"


@pytest.mark.parametrize("method", ["Proclaim", "Resign"])
def test_a_leader_key_that_cannot_be(world, method):
    none = ask(world, method)
    empty = ask(world, method, leader=v3election_pb2.LeaderKey(lease=1))
    malformed = ask(world, method, request=b"\x0a\x02\x0a\x05")
    assert world.answers[none] == (UNKNOWN, '"leader" field must be provided', None)
    assert world.answers[empty] == (UNKNOWN, "etcdserver: key is not provided", None)
    assert world.answers[malformed].status == errors.ID["INTERNAL"]
    assert not world.pending


def test_without_a_lease_every_call_that_writes_is_granted_one(world):
    who = campaign(world, 0)
    world.settle()
    key = world.answers[who].message.leader
    assert key.lease and key.key == b"e/%x" % key.lease
    key.lease = 0
    for method, fields in (("Proclaim", {"value": b"z"}), ("Resign", {})):
        del world.log[:]
        who = ask(world, method, leader=key, **fields)
        world.settle()
        assert world.answers[who].status == 0
        assert [method for method, _ in world.log] == [GRANT, TXN]


def test_a_lease_that_is_none(world):
    who = campaign(world, 77)
    world.settle()
    assert world.answers[who] == (UNKNOWN, LEASE_NOT_FOUND, None)


def test_a_campaign_whose_key_vanishes_fails_at_once(world):
    won(world, 1)
    second, third = campaign(world, 2), campaign(world, 3)
    world.settle()
    world.apply(REVOKE, rpc_pb2.LeaseRevokeRequest(ID=2))
    assert world.answers[second] == (UNKNOWN, EXPIRED, None)
    assert third not in world.answers
    world.apply(REVOKE, rpc_pb2.LeaseRevokeRequest(ID=1))
    assert world.answers[third].status == 0


def test_a_cancelled_campaign_resigns(world):
    won(world, 1)
    second, third = campaign(world, 2), campaign(world, 3)
    world.settle()
    world.services.cancel(second)
    world.settle()
    assert world.keys(b"e/") == [b"e/1", b"e/3"]
    world.services.cancel(third)
    world.refuse("NO_LEADER")
    world.wait(1)
    world.settle()
    assert world.keys(b"e/") == [b"e/1"]
    world.wait(10)
    world.assert_idle()


def test_a_campaign_cancelled_on_its_way_resigns(world):
    who = campaign(world, 1)
    world.services.cancel(who)
    world.settle()
    assert not world.keys() and [method for method, _ in world.log] == [TXN, TXN]


def test_a_cancelled_second_campaign_of_the_leader_leaves_it_leading(world):
    won(world, 1, b"x")
    for cancelled_at in (1, 2):
        who = campaign(world, 1, b"%d" % cancelled_at)
        if cancelled_at == 2:
            world.commit(1)
        world.services.cancel(who)
        world.settle()
        assert world.keys() == [b"e/1"]


def test_two_campaigns_wait_with_one_key(world):
    won(world, 1)
    waiters = [campaign(world, 2), campaign(world, 2)]
    world.settle()
    world.services.cancel(waiters[1])
    world.settle()
    assert world.keys() == [b"e/1"]
    assert world.answers[waiters[0]] == (UNKNOWN, EXPIRED, None)


def test_a_campaign_that_cannot_proclaim_gives_its_key_up(world):
    won(world, 1, b"x")
    who = campaign(world, 1, b"y")
    world.commit(1)
    world.refuse("NO_SPACE")
    world.settle()
    assert world.answers[who] == (UNKNOWN, "etcdserver: mvcc: database space exceeded", None)
    assert not world.keys()
    # One whose key is taken away in between is told so.
    won(world, 1, b"x")
    who = campaign(world, 1, b"y")
    world.commit(1)
    world.apply(DELETE, rpc_pb2.DeleteRangeRequest(key=b"e/1"))
    world.settle()
    assert world.answers[who] == (UNKNOWN, NOT_LEADER, None)


def test_a_campaign_that_comes_too_late_is_undone(world):
    who = campaign(world, 1)
    world.wait(8)
    assert world.answers[who] == (UNKNOWN, TIMED_OUT, None)
    world.settle()
    assert not world.keys()
    world.wait(10)
    world.assert_idle()


# ---- Observe ----


def seen(world, who):
    return [(m.header.revision, m.kv.key, m.kv.mod_revision, m.kv.value) for m in world.messages.get(who, [])]


def test_observe(world):
    who = ask(world, "Observe", name=b"e")
    world.apply(PUT, rpc_pb2.PutRequest(key=b"f/1"))
    world.apply(DELETE, rpc_pb2.DeleteRangeRequest(key=b"e/9"))
    assert who not in world.messages
    key = won(world, 1, b"a")
    ask(world, "Proclaim", leader=key, value=b"b")
    campaign(world, 2, b"c")
    world.settle()
    late = ask(world, "Observe", name=b"e")
    ask(world, "Resign", leader=key)
    world.settle()
    expected = [(3, b"e/1", 3, b"a"), (4, b"e/1", 4, b"b"), (6, b"e/2", 5, b"c")]
    assert seen(world, who) == expected
    assert seen(world, late) == [(5, b"e/1", 4, b"b"), (6, b"e/2", 5, b"c")]
    world.apply(DELETE, rpc_pb2.DeleteRangeRequest(key=b"e/2"))
    won(world, 3, b"d")
    assert seen(world, who)[3:] == [(8, b"e/3", 8, b"d")]
    for each in (who, late):
        world.services.cancel(each)
    world.turn()
    world.wait(10)
    world.assert_idle()
    assert not any(each in world.answers for each in (who, late))


def test_all_of_one_turn_is_observed(world):
    who = ask(world, "Observe", name=b"e")
    put = [(PUT, rpc_pb2.PutRequest(key=b"e/1", value=b"%d" % i)) for i in range(4)]
    world.apply_all(put[:2])
    world.apply_all(put[2:])
    assert [m.kv.value for m in world.messages[who]] == [b"0", b"1", b"2", b"3"]
    assert [m.header.revision for m in world.messages[who]] == [2, 3, 4, 5]
    # Leader and successor in one turn: the next is whoever leads at its end.
    world.apply_all(
        [
            (DELETE, rpc_pb2.DeleteRangeRequest(key=b"e/1")),
            (PUT, rpc_pb2.PutRequest(key=b"e/2", value=b"x")),
            (PUT, rpc_pb2.PutRequest(key=b"e/1", value=b"y")),
        ]
    )
    assert seen(world, who)[4:] == [(8, b"e/2", 7, b"x")]


def test_observe_over_a_compaction(world):
    who = ask(world, "Observe", name=b"e")
    put = [(PUT, rpc_pb2.PutRequest(key=b"e/1", value=b"%d" % i)) for i in range(6)]
    world.apply_all([*put[:5], (COMPACT, rpc_pb2.CompactionRequest(revision=5)), put[5]])
    assert seen(world, who)[-1] == (7, b"e/1", 7, b"5")


def test_a_slow_observer_gets_the_newest_once_it_reads_on(world):
    who = ask(world, "Observe", name=b"e")
    value = bytes(20 << 10)
    for i in range(40):
        world.apply(PUT, rpc_pb2.PutRequest(key=b"e/1", value=b"%d" % i + value))
    sent = len(world.messages[who])
    assert sent == 4  # over 64 KiB on the way with the last
    assert world.services.unsent_bytes < 4 * (21 << 10)
    world.services.credit(who, world.services.unsent_bytes)
    world.turn()
    assert [m.kv.value[:2] for m in world.messages[who]] == [b"0\0", b"1\0", b"2\0", b"3\0", b"39"]
    # Again behind, and meanwhile another leads.
    for i in range(9):
        world.apply(PUT, rpc_pb2.PutRequest(key=b"e/1", value=b"%d" % i + value))
    world.apply(DELETE, rpc_pb2.DeleteRangeRequest(key=b"e/1"))
    world.apply(PUT, rpc_pb2.PutRequest(key=b"e/7", value=b"last"))
    world.services.credit(who, 1 << 30)
    world.turn()
    assert world.messages[who][-1].kv.key == b"e/7"
    world.services.cancel(who)
    world.turn()
    world.assert_idle()


def test_all_slow_observers_together_are_bounded(world, monkeypatch):
    monkeypatch.setattr(runtime, "UNSENT_MAX", 100_000)
    whos = [ask(world, "Observe", name=b"e") for _ in range(20)]
    value = bytes(30_000)
    for i in range(3):
        world.apply(PUT, rpc_pb2.PutRequest(key=b"e/1", value=b"%d" % i + value))
    assert world.services.unsent_bytes < 140_000
    # All of them have the newest once everybody reads on, whoever had to wait for whom.
    for _ in range(len(whos)):
        for who in whos:
            world.services.credit(who, 1 << 20)
            world.turn()
    assert all(world.messages[who][-1].kv.value[:1] == b"2" for who in whos)
    for who in whos:
        world.services.cancel(who)
    world.turn()
    world.assert_idle()


def test_observe_of_a_request_that_is_none(world):
    who = ask(world, "Observe", request=b"\x0a\x05a")
    text = "grpc: failed to unmarshal the received message: proto: cannot parse invalid wire-format data"
    assert world.answers[who] == (errors.ID["INTERNAL"], text, None)


# ---- at random ----


class Campaigners:
    """Random campaigns with observers, from one seed."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.world = World()
        self.world.grant(*range(1, 7))
        self.waiting = set()
        self.led = {}  # key -> revision, as told to a client
        self.wins = 0
        self.lost = False
        self.observers = [ask(self.world, "Observe", name=b"e") for _ in range(2)]
        reply = self.world.reply

        def told(who, status, payload, text):
            reply(who, status, payload, text)
            if who in self.waiting:
                self.waiting.discard(who)
                if not status:
                    self.won(self.world.answers[who].message.leader)

        self.world.reply = told

    def won(self, key):
        state = self.world.space.get(key.key)
        assert state is not None and state[0] == key.rev
        assert self.world.space.first_created(b"e/") == state[3]
        for other, revision in self.led.items():
            now = self.world.space.get(other)
            assert other == key.key or now is None or now[0] != revision
        self.led[key.key] = key.rev
        self.wins += 1

    def step(self):
        rng, world = self.rng, self.world
        roll = rng.random()
        if roll < 0.25:
            self.waiting.add(("client", world.asked + 1))
            campaign(world, rng.randint(1, 6), b"%d" % rng.randint(0, 3))
        elif roll < 0.33 and self.waiting:
            who = rng.choice(sorted(self.waiting))
            self.waiting.discard(who)
            world.services.cancel(who)
        elif roll < 0.45 and self.led:
            key = rng.choice(sorted(self.led))
            fields = {"leader": v3election_pb2.LeaderKey(key=key, rev=self.led[key], lease=rng.randint(1, 6))}
            if rng.random() < 0.5:
                ask(world, "Proclaim", value=b"%d" % rng.randint(0, 9), **fields)
            else:
                del self.led[key]
                ask(world, "Resign", **fields)
        elif roll < 0.48:
            lease = rng.randint(1, 6)
            world.apply(REVOKE, rpc_pb2.LeaseRevokeRequest(ID=lease))
            world.apply(GRANT, rpc_pb2.LeaseGrantRequest(ID=lease, TTL=9))
        elif roll < 0.52:
            world.refuse(rng.choice(("NO_LEADER", "LEADER_CHANGED")), rng.randint(1, 2))
        elif roll < 0.53:
            self.lost |= bool(world.lose())
        elif roll < 0.57:
            world.room = rng.choice((0, 1, 2, 1 << 30))
        elif roll < 0.61:
            world.wait(rng.choice((0.1, 0.3, 3, 8)))
        else:
            world.commit(rng.randint(1, 4))

    def finish(self):
        world = self.world
        world.room = 1 << 30
        world.settle()
        world.wait(8)
        world.settle()
        for _ in range(500):
            if not self.waiting:
                break
            first = world.space.first_created(b"e/")
            if first is not None:
                world.apply(DELETE, rpc_pb2.DeleteRangeRequest(key=KeyValue.FromString(first).key))
            world.settle()
        assert not self.waiting
        world.wait(80)
        world.settle()
        world.wait(80)
        if not self.lost:
            assert set(world.keys()) <= set(self.led)
        world.apply(DELETE, rpc_pb2.DeleteRangeRequest(key=b"e/", range_end=b"e0"))
        won(world, 6, b"the last word")
        for who in self.observers:
            self.check_observed(world.messages[who])
            world.services.cancel(who)
        world.turn()
        world.wait(10)
        world.assert_idle()

    def check_observed(self, messages):
        """Revisions rise, every message is a state that was, and the last is the newest."""
        states = self.world.model.states
        revisions = [m.kv.mod_revision for m in messages]
        assert len(set((m.kv.key, m.kv.mod_revision) for m in messages)) == len(revisions)
        assert [m.header.revision for m in messages] == sorted(m.header.revision for m in messages)
        for m in messages:
            assert states[m.kv.mod_revision][m.kv.key] == m.kv
            assert m.header.revision >= m.kv.mod_revision
            first = min(states[m.header.revision].values(), key=lambda kv: kv.create_revision)
            assert first.key == m.kv.key, "someone else led"
        assert messages[-1].kv.SerializeToString() == self.world.space.first_created(b"e/")


@pytest.mark.parametrize("seed", range(40))
def test_random_campaigners(seed):
    campaigners = Campaigners(seed)
    for _ in range(400):
        campaigners.step()
    campaigners.finish()
    assert campaigners.wins > 10
