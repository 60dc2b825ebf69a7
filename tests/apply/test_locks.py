"""Lock and Unlock: the queue by create revision, whoever leaves it, and whatever becomes of the proposals."""

import random

import pytest

from etcdfast.api import errors
from etcdfast.api.pb import rpc_pb2, v3lock_pb2
from etcdfast.api.pb.kv_pb2 import KeyValue
from etcdfast.apply import services as runtime
from etcdfast.apply.services import LOST_NS, PROPOSAL_TIMEOUT_NS
from tests.apply.world import DELETE, GRANT, LEASE_NOT_FOUND, PUT, REVOKE, SECOND, TIMED_OUT, TXN, World

LOCK, UNLOCK = "/v3lockpb.Lock/Lock", "/v3lockpb.Lock/Unlock"
EXPIRED = "mutex: session is expired"
UNKNOWN = errors.ID["UNKNOWN"]


def lock(world, name, lease=0, **options):
    return world.ask(LOCK, v3lock_pb2.LockRequest(name=name, lease=lease), **options)


def unlock(world, key):
    return world.ask(UNLOCK, v3lock_pb2.UnlockRequest(key=key))


def delete(world, key):
    return world.apply(DELETE, rpc_pb2.DeleteRangeRequest(key=key))


@pytest.fixture
def world():
    world = World()
    world.grant(1, 2, 3, 0xABC)
    yield world


def test_a_free_lock(world):
    who = lock(world, b"n", 0xABC)
    assert who not in world.answers
    world.settle()
    answer = world.answers[who]
    assert (answer.status, answer.message.key, answer.message.header) == (0, b"n/abc", world.model.header())
    assert world.space.get(b"n/abc")[0] == answer.message.header.revision == 2
    world.wait(10)  # over the time of the proposal
    world.assert_idle()


def test_a_waiter_gets_the_lock_at_the_revision_that_freed_it(world):
    first, second, third = (lock(world, b"n", lease) for lease in (1, 2, 3))
    world.settle()
    assert set(world.answers) == {first}
    world.apply(PUT, rpc_pb2.PutRequest(key=b"else"))
    unlocked = unlock(world, b"n/1")
    world.settle()
    assert world.answers[unlocked].message.header.revision == world.answers[second].message.header.revision == 6
    assert third not in world.answers
    delete(world, b"n/2")
    assert world.answers[third].message.key == b"n/3"


def test_who_holds_it_already_gets_it_again(world):
    first = lock(world, b"n", 1)
    world.settle()
    again = lock(world, b"n", 1)
    world.settle()
    assert world.answers[first].message == world.answers[again].message
    assert world.model.current == 2


def test_only_the_next_in_line_is_woken(world):
    leases = range(10, 40)
    world.grant(*leases)
    waiting = [lock(world, b"n", lease) for lease in leases]
    world.settle()
    looks = 0
    last_created = world.space.last_created

    def counted(*arguments):
        nonlocal looks
        looks += 1
        return last_created(*arguments)

    world.space.last_created = counted
    delete(world, b"n/a")
    assert set(world.answers) == set(waiting[:2]) and looks == 1


def test_a_lock_without_a_lease_gets_one_of_a_minute(world):
    world.model.new_ids.append(0x77)
    who = lock(world, b"n")
    world.settle()
    assert world.answers[who].message.key == b"n/77"
    assert world.log[0] == (GRANT, rpc_pb2.LeaseGrantRequest(TTL=60).SerializeToString())


@pytest.mark.parametrize("lease", [99, -99])
def test_a_lease_that_is_none(world, lease):
    who = lock(world, b"n", lease)
    world.settle()
    assert world.answers[who] == (UNKNOWN, LEASE_NOT_FOUND, None)
    assert not world.keys()


def test_names_with_anything_in_them(world):
    for name in (b"", b"a", b"a/b", b"\xff\x00"):
        who = lock(world, name, 1)
        world.settle()
        assert world.answers[who].message.key == name + b"/1"
    # etcd's queue of "a" is everything below "a/": the keys of the lock "a/b" wait in it too.
    waiter = lock(world, b"a", 2)
    world.settle()
    delete(world, b"a/1")
    assert waiter not in world.answers
    delete(world, b"a/b/1")
    assert world.answers[waiter].message.key == b"a/2"


def test_requests_that_cannot_be(world):
    malformed = world.ask(LOCK, b"\x0a\x05a")
    unlocked = unlock(world, b"")
    large = lock(world, b"n" * (400 << 10), 1)
    assert world.answers[malformed].status == errors.ID["INTERNAL"]
    assert world.answers[malformed].text.startswith("grpc: error unmarshalling request: proto: ")
    assert world.answers[unlocked] == (UNKNOWN, "etcdserver: key is not provided", None)
    assert world.answers[large] == (UNKNOWN, "etcdserver: request is too large", None)
    assert not world.pending
    world.assert_idle()


def test_a_waiter_whose_lease_ends_leaves_at_once(world):
    holder, waiter, last = (lock(world, b"n", lease) for lease in (1, 2, 3))
    world.settle()
    world.apply(REVOKE, rpc_pb2.LeaseRevokeRequest(ID=2))
    assert world.answers[waiter] == (UNKNOWN, EXPIRED, None)
    assert last not in world.answers
    world.apply(REVOKE, rpc_pb2.LeaseRevokeRequest(ID=1))
    assert world.answers[last].status == 0
    assert world.answers[holder].status == 0


def test_a_key_made_anew_under_the_same_lease_is_anothers(world):
    lock(world, b"n", 1)
    waiter = lock(world, b"n", 2)
    world.settle()
    world.apply_all(
        [
            (DELETE, rpc_pb2.DeleteRangeRequest(key=b"n/2")),
            (PUT, rpc_pb2.PutRequest(key=b"n/2", lease=2)),
            (DELETE, rpc_pb2.DeleteRangeRequest(key=b"n/1")),
        ]
    )
    assert world.answers[waiter] == (UNKNOWN, EXPIRED, None)


def test_holder_and_waiter_end_in_one_turn(world):
    lock(world, b"n", 1)
    second, third = lock(world, b"n", 2), lock(world, b"n", 3)
    world.settle()
    world.apply_all([(DELETE, rpc_pb2.DeleteRangeRequest(key=key)) for key in (b"n/1", b"n/2")])
    assert world.answers[second].text == EXPIRED
    assert world.answers[third].status == 0


def test_a_cancelled_waiter_takes_its_key_out(world):
    lock(world, b"n", 1)
    second, third = lock(world, b"n", 2), lock(world, b"n", 3)
    world.settle()
    assert world.services.cancel(second)
    assert not world.services.cancel(second)
    world.settle()
    assert world.keys(b"n/") == [b"n/1", b"n/3"]
    assert world.log[-1] == (DELETE, rpc_pb2.DeleteRangeRequest(key=b"n/2").SerializeToString())
    delete(world, b"n/1")
    assert world.answers[third].status == 0 and second not in world.answers
    world.wait(10)
    world.assert_idle()


def test_cancelled_before_it_began(world):
    who = lock(world, b"n", 1, turn=False)
    world.services.cancel(who)
    world.turn()
    assert not world.pending
    world.assert_idle()


def test_cancelled_before_there_was_room(world):
    world.room = 0
    who = lock(world, b"n", 1)
    assert world.services.blocked
    world.services.cancel(who)
    world.room = 1
    world.settle()
    assert not world.log and not world.keys()
    world.assert_idle()


@pytest.mark.parametrize("lease", [0, 1])
def test_cancelled_while_its_key_is_on_the_way(world, lease):
    who = lock(world, b"n", lease)
    if not lease:
        world.commit(1)
    assert world.pending[0].method == TXN
    world.services.cancel(who)
    world.settle()
    assert not world.keys() and not world.answers
    assert [method for method, _ in world.log[-2:]] == [TXN, DELETE]
    world.wait(10)
    world.assert_idle()


def test_cancelled_while_its_lease_is_on_the_way(world):
    who = lock(world, b"n")
    world.services.cancel(who)
    world.settle()
    assert [method for method, _ in world.log] == [GRANT]


def test_a_cancelled_second_call_of_the_holder_leaves_the_lock_alone(world):
    lock(world, b"n", 1)
    world.settle()
    again = lock(world, b"n", 1)
    world.services.cancel(again)
    world.settle()
    assert world.keys() == [b"n/1"]


def test_cancelled_in_the_turn_that_gave_it_the_lock(world):
    lock(world, b"n", 1)
    waiter = lock(world, b"n", 2)
    world.settle()
    world.model.delete_range(rpc_pb2.DeleteRangeRequest(key=b"n/1"))
    for change in world.model.changes:
        world.services.changed(*change)
    world.model.changes = []
    world.services.cancel(waiter)
    world.settle()
    assert not world.keys() and waiter not in world.answers
    world.wait(10)
    world.assert_idle()


def test_cancelled_between_its_turn_and_its_answer(world, monkeypatch):
    first, second = lock(world, b"a", 1), lock(world, b"b", 1)
    waiters = [lock(world, b"a", 2), lock(world, b"b", 3)]
    world.settle()
    assert set(world.answers) == {first, second}
    world.reads_held = True
    for key in (b"a/1", b"b/1"):
        world.apply(DELETE, rpc_pb2.DeleteRangeRequest(key=key))
    world.reads_held = False
    monkeypatch.setattr(runtime, "STEPS_MAX", 1)
    world.answer_reads()
    world.services.turn()
    answered = [who for who in waiters if who in world.answers]
    assert len(answered) == 1
    (other,) = set(waiters) - set(answered)
    world.services.cancel(other)
    world.settle()
    assert other not in world.answers and world.keys() == [world.answers[answered[0]].message.key]


def test_a_lease_that_ended_elsewhere_is_seen_before_the_answer(world):
    """On a follower the end of our own lease may be in the log and not here yet when our turn comes."""
    lock(world, b"n", 1)
    waiter = lock(world, b"n", 2)
    world.settle()
    world.reads_held = True
    world.apply(DELETE, rpc_pb2.DeleteRangeRequest(key=b"n/1"))
    assert waiter not in world.answers
    world.apply(REVOKE, rpc_pb2.LeaseRevokeRequest(ID=2))
    world.reads_held = False
    world.settle()
    assert world.answers[waiter] == (UNKNOWN, EXPIRED, None)
    world.assert_idle()


def test_a_lock_that_cannot_be_confirmed_is_given_up(world):
    lock(world, b"n", 1)
    waiter = lock(world, b"n", 2)
    world.settle()
    world.reads_held = True
    world.apply(DELETE, rpc_pb2.DeleteRangeRequest(key=b"n/1"))
    world.answer_reads("NO_LEADER")
    world.reads_held = False
    world.settle()
    assert world.answers[waiter] == (UNKNOWN, "etcdserver: no leader", None)
    assert world.keys() == []
    world.assert_idle()


def test_cancelled_while_the_lock_is_confirmed(world):
    lock(world, b"n", 1)
    waiter = lock(world, b"n", 2)
    world.settle()
    world.reads_held = True
    world.apply(DELETE, rpc_pb2.DeleteRangeRequest(key=b"n/1"))
    world.services.cancel(waiter)
    world.reads_held = False
    world.settle()
    assert waiter not in world.answers and world.keys() == []
    world.assert_idle()


def test_two_calls_wait_with_one_key(world):
    """As in etcd the key goes with the first of them that ends, and the other has lost its place."""
    lock(world, b"n", 1)
    waiters = [lock(world, b"n", 2), lock(world, b"n", 2)]
    world.settle()
    world.services.cancel(waiters[1])
    world.settle()
    assert world.keys() == [b"n/1"]
    assert world.answers[waiters[0]] == (UNKNOWN, EXPIRED, None)


def test_a_refused_removal_is_asked_for_again(world):
    lock(world, b"n", 1)
    waiter = lock(world, b"n", 2)
    world.settle()
    world.services.cancel(waiter)
    world.turn()
    for _ in range(3):
        world.refuse("NO_LEADER")
        assert not world.pending
        world.wait(0.25)
        assert len(world.pending) == 1
    world.settle()
    assert world.keys() == [b"n/1"]


@pytest.mark.parametrize("symbol", ["NO_LEADER", "NO_SPACE", "TOO_MANY_REQUESTS", "STOPPED"])
def test_a_refused_acquisition(world, symbol):
    who = lock(world, b"n", 1)
    world.refuse(symbol)
    assert world.answers[who] == (UNKNOWN, errors.ERRORS[errors.ID[symbol]].text, None)
    world.wait(10)
    world.assert_idle()


def test_an_acquisition_that_comes_too_late_is_undone(world):
    who = lock(world, b"n", 1)
    world.wait(PROPOSAL_TIMEOUT_NS / SECOND - 0.5)
    assert not world.answers
    world.wait(0.5)
    assert world.answers[who] == (UNKNOWN, TIMED_OUT, None)
    world.wait(20)
    world.settle()
    assert not world.keys()
    assert [method for method, _ in world.log] == [TXN, DELETE]
    world.wait(10)
    world.assert_idle()


def test_an_acquisition_that_never_comes_is_forgotten(world):
    who = lock(world, b"n", 1)
    lost = world.lose()
    world.wait(8)
    assert world.answers[who].text == TIMED_OUT and world.services.count == 1
    world.wait(LOST_NS / SECOND)
    world.assert_idle()
    world.services.answered(lost[0].token, 0, b"")  # nobody's any more
    world.turn()


def test_without_room_a_proposal_times_out_and_is_never_made(world):
    world.room = 0
    first, second = lock(world, b"n", 1), lock(world, b"n", 2)
    world.wait(7)
    assert {world.answers[who].text for who in (first, second)} == {TIMED_OUT}
    world.room = 9
    world.settle()
    assert not world.log
    world.assert_idle()


def test_proposals_keep_their_order_when_there_is_no_room(world):
    world.room = 1
    waiting = [lock(world, b"n", lease) for lease in (3, 1, 2)]
    assert len(world.pending) == 1
    world.settle()
    assert world.keys(b"n/") == [b"n/1", b"n/2", b"n/3"]
    assert world.space.first_created(b"n/") == world.space.get(b"n/3")[3]
    assert set(world.answers) == {waiting[0]}


class Clients:
    """Random clients of a few locks under everything that can go wrong, from one seed."""

    NAMES = (b"a", b"b")
    LEASES = range(1, 9)

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.world = World()
        self.world.grant(*self.LEASES)
        self.waiting = {}  # who -> (name, lease)
        self.held = {}  # key -> create revision, as far as told to a client
        self.granted = 0
        self.lost = False  # a removal may be lost as well, then keys stay
        reply = self.world.reply

        def told(who, status, payload, text):
            reply(who, status, payload, text)
            self.told(who)

        self.world.reply = told

    def told(self, who):
        name, lease = self.waiting.pop(who, (None, None))
        answer = self.world.answers[who]
        if name is None or answer.status:
            return
        key = answer.message.key
        state = self.world.space.get(key)
        assert state is not None, f"{key} is not there"
        first = self.world.space.first_created(name + b"/")
        assert first == state[3], f"{key} is not the first of its queue"
        assert answer.message.header.revision >= state[0]
        for other, created in self.held.items():
            if other != key and other.startswith(name + b"/"):
                now = self.world.space.get(other)
                assert now is None or now[0] != created, f"{key} and {other} are held at once"
        self.held[key] = state[0]
        self.granted += 1

    def step(self):
        rng, world = self.rng, self.world
        roll = rng.random()
        if roll < 0.30:
            name, lease = rng.choice(self.NAMES), rng.choice([*self.LEASES, 0])
            who = ("client", world.asked + 1)
            self.waiting[who] = name, lease
            lock(world, name, lease, turn=rng.random() < 0.5)
        elif roll < 0.42 and self.waiting:
            who = rng.choice(list(self.waiting))
            del self.waiting[who]
            world.services.cancel(who)
        elif roll < 0.55 and self.held:
            key = rng.choice(list(self.held))
            del self.held[key]
            if rng.random() < 0.5:
                unlock(world, key)
            else:
                delete(world, key)
        elif roll < 0.58:
            lease = rng.choice(self.LEASES)
            world.apply(REVOKE, rpc_pb2.LeaseRevokeRequest(ID=lease))
            world.apply(GRANT, rpc_pb2.LeaseGrantRequest(ID=lease, TTL=9))
        elif roll < 0.62:
            world.refuse(rng.choice(("NO_LEADER", "TOO_MANY_REQUESTS", "TIMEOUT")), rng.randint(1, 3))
        elif roll < 0.63:
            self.lost |= any(pending.method == DELETE for pending in world.lose())
        elif roll < 0.68:
            world.room = rng.choice((0, 1, 3, 1 << 30))
        elif roll < 0.72:
            world.wait(rng.choice((0.1, 0.3, 3, 8)))
        else:
            world.commit(rng.randint(1, 4))

    def finish(self):
        """All goes well from here on: everybody gets the lock, or has left no trace."""
        world = self.world
        world.room = 1 << 30
        world.settle()
        world.wait(8)  # whose proposal was lost learns it now
        world.settle()
        for _ in range(2000):
            if not self.waiting:
                break
            for name in self.NAMES:
                first = world.space.first_created(name + b"/")
                if first is not None:
                    delete(world, KeyValue.FromString(first).key)
            world.settle()
        assert not self.waiting
        world.settle()
        world.wait(80)
        world.settle()
        world.wait(10)
        if not self.lost:
            for key in world.keys():
                assert key in self.held, f"{key} was left behind"
        world.assert_idle()


@pytest.mark.parametrize("seed", range(60))
def test_random_clients(seed):
    clients = Clients(seed)
    for _ in range(400):
        clients.step()
    clients.finish()
    assert clients.granted > 10
