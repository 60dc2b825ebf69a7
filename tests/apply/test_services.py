"""The runtime itself: limits, tokens, who is woken by what, and that nothing of a call stays behind."""

import random

import pytest

from etcdfast.api import errors
from etcdfast.api.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from etcdfast.apply import services as runtime
from etcdfast.apply.services import Gone, Pause, Proposal, Refused, Services, Wait
from tests.apply.world import DELETE, PUT, SECOND, World

LOCK = "/v3lockpb.Lock/Lock"
METHOD = 43


class Bare:
    """Services with one handler of the test, whose steps it notes."""

    def __init__(self, script, **limits):
        self.replies = {}
        self.proposed = []
        self.room = True
        self.current_revision = 7
        self.leader = 1
        self.notes = []

        def handler(services, call, payload):
            return script(self, services, call, payload)

        self.services = Services(self, self, {METHOD: handler}, 1000, **limits)

    def propose(self, method, request, token):
        if self.room:
            self.proposed.append((method, request, token))
        return self.room

    def read(self, method, token, deadline_ns):
        if self.room:
            self.proposed.append((method, None, token))
        return self.room

    def reply(self, who, status, payload, text):
        assert who not in self.replies
        self.replies[who] = status, payload, text

    def start(self, who=1, payload=b""):
        self.services.call(METHOD, payload, who)
        self.services.turn()


def waits(keys=(), prefix=None):
    def script(bare, services, call, payload):
        bare.notes.append((yield Wait(keys, prefix)))
        return 0, b"", ""

    return script


def test_a_method_without_a_handler():
    with pytest.raises(KeyError):
        Bare(waits()).services.call(1, b"", 1)


def test_too_many_calls():
    bare = Bare(waits((b"k",)), calls_max=3)
    for who in range(4):
        bare.start(who)
    assert bare.replies == {3: (errors.ID["TOO_MANY_REQUESTS"], b"", "")}
    bare.services.cancel(0)
    bare.services.turn()
    bare.start(9)
    assert 9 not in bare.replies


def test_those_who_run_on_for_nobody_count_too():
    def script(bare, services, call, payload):
        yield Proposal(1, b"")

    bare = Bare(script, calls_max=3)
    for who in range(3):
        bare.start(who)
        bare.services.cancel(who)
    bare.start(3)
    assert bare.replies == {3: (errors.ID["TOO_MANY_REQUESTS"], b"", "")}


def test_too_many_bytes_wait(monkeypatch):
    monkeypatch.setattr(runtime, "HELD_BYTES_MAX", 100)
    bare = Bare(waits((b"k",)))
    bare.start(1, b"x" * 90)
    bare.start(2, b"x" * 11)
    assert set(bare.replies) == {2}
    bare.services.cancel(1)
    bare.services.turn()
    bare.start(3, b"x" * 100)
    assert 3 not in bare.replies


def test_a_request_too_large_is_not_proposed():
    def script(bare, services, call, payload):
        bare.notes.append((yield Proposal(1, b"x" * 1001)))
        bare.notes.append((yield Proposal(1, b"x" * 1000)))

    bare = Bare(script)
    bare.start()
    assert bare.notes == [(errors.ID["REQUEST_TOO_LARGE"], b"")] and len(bare.proposed) == 1


def test_a_large_proposal_that_waits_for_room_is_not_overtaken():
    def script(bare, services, call, payload):
        yield Proposal(1, payload)

    bare = Bare(script)
    bare.room = False
    bare.start(1, b"large")
    bare.room = True
    propose, bare.propose = (
        bare.propose,
        lambda method, request, token: request != b"large" and propose(method, request, token),
    )
    bare.start(2, b"small")
    assert not bare.proposed
    bare.propose = propose
    bare.services.turn()
    assert [request for _, request, _ in bare.proposed] == [b"large", b"small"]


def test_tokens_never_repeat_while_under_way():
    def script(bare, services, call, payload):
        yield Proposal(1, payload)
        return 0, payload, ""

    bare = Bare(script)
    bare.start(1)
    assert bare.proposed[0][2] == 1
    bare.services._last_token = runtime.TOKEN_MAX - 1
    bare.start(2)
    bare.start(3)
    bare.start(4)
    assert [token for _, _, token in bare.proposed] == [1, runtime.TOKEN_MAX, 2, 3]
    bare.services.answered(runtime.TOKEN_MAX, 0, b"")
    bare.services.answered(12345, 0, b"")  # nobody's
    bare.services.turn()
    assert set(bare.replies) == {2}


def test_what_a_handler_is_told_of():
    bare = Bare(waits((b"a", b"b"), b"p/q/"))
    services = bare.services
    bare.start()
    assert services.waiting == 3
    for change in ((b"c", 8, False), (b"a", 9, True), (b"p/q", 9, False), (b"p/q/r/s", 10, False), (b"b", 11, False)):
        services.changed(*change)
    assert bare.notes == []
    services.turn()
    assert sorted(bare.notes[0]) == [(b"a", 9, True), (b"b", 11, False), (b"p/q/r/s", 10, False)]
    assert bare.replies and services.waiting == 0


def test_changes_from_before_it_waited_are_not_news():
    bare = Bare(waits((b"a",)))
    bare.start()
    bare.services.changed(b"a", 7, True)  # current_revision when it began to wait
    bare.services.turn()
    assert not bare.notes
    bare.services.changed(b"a", 7, True)
    bare.services.changed(b"a", 8, False)
    bare.services.turn()
    assert bare.notes == [[(b"a", 8, False)]]


@pytest.mark.parametrize("seed", range(5))
def test_prefixes_are_found_as_a_plain_search_finds_them(seed):
    rng = random.Random(seed)
    names = ["".join(rng.choice("ab/") for _ in range(rng.randrange(5))).encode() + b"/" for _ in range(12)]
    bare = Bare(None)
    told = {}

    def script(bare, services, call, payload):
        told[payload] = {change.key for change in (yield Wait(prefix=payload))}
        return 0, b"", ""

    bare.services._handlers[METHOD] = lambda services, call, payload: script(bare, services, call, payload)
    for who, name in enumerate(set(names)):
        bare.start(who, name)
    keys = ["".join(rng.choice("ab/") for _ in range(rng.randrange(9))).encode() for _ in range(60)]
    for key in keys:
        bare.services.changed(key, 8, False)
    bare.services.turn()
    expected = {name: {key for key in keys if key.startswith(name)} for name in names}
    assert told == {name: found for name, found in expected.items() if found}
    for who in range(len(names)):
        bare.services.cancel(who)
    bare.services.turn()
    assert not bare.services._prefixes and not bare.services._prefix_lengths and not bare.services.waiting


def test_gone_while_it_waits_and_while_it_pauses():
    def script(bare, services, call, payload):
        try:
            yield Wait((b"k",))
        except Gone:
            bare.notes.append("gone")
            yield Pause(SECOND)
            bare.notes.append((yield Proposal(1, b"undo", True)))
            raise

    bare = Bare(script)
    bare.start()
    services = bare.services
    services.cancel(1)
    services.turn()
    assert bare.notes == ["gone"] and services.next_due_ns == SECOND
    services.tick(SECOND)
    services.turn()
    assert [request for _, request, _ in bare.proposed] == [b"undo"]
    services.answered(1, 5, b"text")
    services.turn()
    assert bare.notes == ["gone", (5, b"text")]
    assert not bare.replies and services.count == 0 and services.next_due_ns == 0


def test_a_call_that_is_gone_proposes_nothing_but_what_it_must():
    def script(bare, services, call, payload):
        yield Proposal(1, b"first")
        try:
            yield Proposal(1, b"second")
        except Gone:
            yield Proposal(1, b"undo", True)
            raise

    bare = Bare(script)
    bare.start()
    bare.services.cancel(1)
    bare.services.answered(1, 0, b"")
    bare.services.turn()
    assert [request for _, request, _ in bare.proposed] == [b"first", b"undo"]


def test_a_must_that_waits_for_room_is_not_cut_off():
    def script(bare, services, call, payload):
        bare.notes.append((yield Proposal(1, b"undo", True)))
        raise Refused("after all")

    bare = Bare(script)
    bare.room = False
    bare.start()
    assert bare.services.blocked
    bare.services.cancel(1)
    bare.room = True
    bare.services.turn()
    assert not bare.services.blocked
    bare.services.answered(1, 0, b"")
    bare.services.turn()
    assert bare.notes == [(0, b"")] and not bare.replies and not bare.services.count


def test_a_turn_is_bounded():
    bare = Bare(waits((b"k",)), calls_max=10_000)
    for who in range(1000):
        bare.services.call(METHOD, b"", who)
    turns = 1
    while bare.services.turn():
        turns += 1
    assert turns == -(-1000 // runtime.STEPS_MAX)
    bare.services.changed(b"k", 8, True)
    while bare.services.turn():
        turns += 1
    assert len(bare.replies) == 1000 and turns == 7


def test_a_task_of_apply_itself_learns_that_time_is_up():
    bare = Bare(None)

    def task():
        bare.notes.append((yield Proposal(5, b"compact")))
        bare.notes.append((yield Proposal(5, b"again")))

    bare.services.start(task())
    bare.services.turn()
    bare.services.tick(runtime.PROPOSAL_TIMEOUT_NS)
    bare.services.turn()
    bare.services.answered(1, 0, b"late")
    bare.services.answered(2, 0, b"ok")
    bare.services.turn()
    assert bare.notes == [(errors.ID["TIMEOUT"], b""), (0, b"ok")]
    assert bare.services.count == 0 and bare.services.next_due_ns == 0


def test_the_due_time_is_that_of_what_is_still_waited_for():
    def script(bare, services, call, payload):
        yield Proposal(1, b"")
        return 0, b"", ""

    bare = Bare(script)
    for second in range(100):
        bare.services.tick(second * SECOND)
        bare.start(second)
        assert bare.services.next_due_ns == second * SECOND + runtime.PROPOSAL_TIMEOUT_NS
        bare.services.answered(second + 1, 0, b"")
        bare.services.turn()
        assert bare.services.next_due_ns == 0 and not bare.services._due


def test_many_waiters_on_many_locks_leave_nothing_behind():
    world = World()
    rng = random.Random(1)
    leases = range(1, 301)
    world.grant(*leases)
    names = [b"n%d" % i for i in range(20)]
    whos = [world.ask(LOCK, v3lock_pb2.LockRequest(name=rng.choice(names), lease=lease)) for lease in leases]
    whos += [
        world.ask("/v3electionpb.Election/Observe", v3election_pb2.LeaderRequest(name=name)) for name in names + [b"x"]
    ]
    world.commit()
    assert len(world.answers) == len(names)
    assert world.services.count == len(whos) - len(names)
    for who in rng.sample(whos, len(whos)):
        world.services.cancel(who)
        if rng.random() < 0.1:
            world.commit()
    world.settle()
    assert len(world.keys()) == len(world.answers)
    world.wait(8)
    world.assert_idle()


def test_a_put_nobody_waits_for_costs_nothing_but_a_look():
    world = World()
    world.grant(1, 2)
    for lease in (1, 2):
        world.ask(LOCK, v3lock_pb2.LockRequest(name=b"n", lease=lease))
    world.settle()
    ran = []
    run = world.services._run
    world.services._run = lambda call: (ran.append(call), run(call))
    for i in range(50):
        world.apply(PUT, rpc_pb2.PutRequest(key=b"m/%d" % i))
        world.apply(PUT, rpc_pb2.PutRequest(key=b"n/%d" % (100 + i)))
    assert not ran
    world.apply(DELETE, rpc_pb2.DeleteRangeRequest(key=b"n/1"))
    assert len(ran) == 2  # woken, and once more behind its ReadIndex
