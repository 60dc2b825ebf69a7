"""What clients learn of the leader: calls that require one, learners, and the texts of calls that timed out.

The texts without a leader were compared with a member of a real etcd 3.5.1 cluster that had lost its quorum.
"""

import time

import pytest

from etcdfast._ext.ring import CONSENSUS_WORDS
from etcdfast.api.pb import rpc_pb2 as pb
from tests.frontend.duplex import KEEP_ALIVE, Duplex
from tests.frontend.member import Frontend, server_stream, unary
from tests.frontend.test_bidi import keep_alive, kinds_of, records, silent, watch
from tests.frontend.test_grpc import failure
from tests.harness.wait import wait_until

PUT = pb.PutRequest(key=b"k", value=b"v").SerializeToString()
GET = pb.RangeRequest(key=b"k").SerializeToString()
LOCAL_GET = pb.RangeRequest(key=b"k", serializable=True).SerializeToString()
NO_LEADER = ("UNAVAILABLE", "etcdserver: no leader")
LEARNER = ("FAILED_PRECONDITION", "etcdserver: rpc not supported for learner")
REQUIRED = [("hasleader", "true")]
SECOND = 10**9
OWN_ID = 0x1234  # of the member that Frontend plays
OBSERVE = "/v3electionpb.Election/Observe"


@pytest.fixture
def quiet():
    """A frontend whose requests nobody answers, with an election timeout of 0.2 s."""
    with Frontend(answer=silent, election_timeout=200) as frontend:
        yield frontend


def show(frontend, **words):
    for word, value in words.items():
        frontend.consensus[CONSENSUS_WORDS[word]] = value


# ---- hasleader ----


def test_a_stream_that_requires_a_leader_is_refused_before_its_first_message(quiet):
    with Duplex(quiet.port) as client:
        led = client.open(hasleader="true")
        client.say(led, watch(1))
        wait_until(lambda: records(quiet, led, "CALL"), "the call")
        show(quiet, leader=0)
        refused, easy = client.open(hasleader="true"), client.open()
        assert client.read_until_ended(refused) == ("14", "etcdserver: no leader")
        for stream in (led, easy):
            client.say(stream, watch(2))
        wait_until(lambda: records(quiet, easy, "CALL") and len(records(quiet, led, "CALL")) == 2, "the other calls")
        client.settle()
        assert kinds_of(quiet, refused) == []


def test_streams_that_require_a_leader_end_when_there_has_been_none_for_three_elections(quiet):
    with Duplex(quiet.port) as client:
        led = [client.open(hasleader="true"), client.open(KEEP_ALIVE, hasleader="true")]
        easy = [client.open(), client.open(KEEP_ALIVE)]
        for stream, message in zip([*led, *easy], [watch(1), keep_alive(1)] * 2, strict=True):
            client.say(stream, message)
            wait_until(lambda stream=stream: records(quiet, stream, "CALL"), "the call")
        since = time.monotonic()
        show(quiet, leader=0)
        for stream in led:
            assert client.read_until_ended(stream) == ("14", "etcdserver: no leader")
        assert time.monotonic() - since >= 0.55
        wait_until(lambda: all(records(quiet, stream, "CANCEL") for stream in led), "CANCEL")
        client.settle()
        assert not [r for stream in easy for r in records(quiet, stream, "CANCEL")]


def test_a_leader_in_time_keeps_the_streams():
    with Frontend(answer=silent, election_timeout=500) as quiet, Duplex(quiet.port) as client:
        led = client.open(hasleader="true")
        client.say(led, watch(1))
        wait_until(lambda: records(quiet, led, "CALL"), "the call")
        for _ in range(3):
            show(quiet, leader=0)
            time.sleep(0.6)  # less than three election timeouts, and more than that in all
            show(quiet, leader=2)
            client.say(led, watch(2))  # a turn
            time.sleep(0.02)
        client.settle()
        assert kinds_of(quiet, led) == ["CALL"] * 4


def test_only_the_leader_is_asked_to_move_it():
    with Frontend() as frontend, frontend.channel() as channel:
        move = unary(channel, "MoveLeader", "etcdserverpb.Maintenance")
        for leader in (0, 9):
            show(frontend, leader=leader)
            assert failure(move, b"\x08\x01") == ("FAILED_PRECONDITION", "etcdserver: not leader")
        show(frontend, leader=OWN_ID)
        assert move(b"\x08\x01", timeout=10) == b"\x08\x01"


# ---- learners ----


def test_a_learner_refuses_all_but_status_serializable_ranges_and_snapshots():
    with Frontend() as frontend, frontend.channel() as channel:
        show(frontend, learner=1)
        assert unary(channel, "Range")(LOCAL_GET, timeout=10) == LOCAL_GET
        assert unary(channel, "Status", "etcdserverpb.Maintenance")(b"", timeout=10) == b""
        for service, method, request in (
            ("etcdserverpb.KV", "Range", GET),
            ("etcdserverpb.KV", "Put", PUT),
            ("etcdserverpb.KV", "Txn", b""),
            ("etcdserverpb.Lease", "LeaseTimeToLive", b"\x08\x01"),
            ("etcdserverpb.Cluster", "MemberList", b""),
            ("etcdserverpb.Maintenance", "HashKV", b""),
            ("etcdserverpb.Maintenance", "Alarm", b""),
            ("v3lockpb.Lock", "Lock", b"\x0a\x01n"),
            ("grpc.health.v1.Health", "Check", b""),
        ):
            assert failure(unary(channel, method, service), request) == LEARNER, method
            assert failure(unary(channel, method, service), request, metadata=REQUIRED) == LEARNER, method
        with Duplex(frontend.port) as client:
            for path in (None, KEEP_ALIVE, OBSERVE, "/etcdserverpb.KV/RangeStream"):
                stream = client.open(*[path] if path else [])
                assert client.read_until_ended(stream)[1] == LEARNER[1], path
        show(frontend, learner=0)
        assert unary(channel, "Put")(PUT, timeout=10) == PUT


def test_a_learner_streams_snapshots():
    def answer(record, member):
        return [("MESSAGE", b"part", {}), ("END", b"", {})]

    with Frontend(answer=answer) as frontend, frontend.channel() as channel:
        show(frontend, learner=1)
        assert list(server_stream(channel, "Snapshot", "etcdserverpb.Maintenance")(b"", timeout=10)) == [b"part"]


# ---- texts of timeouts ----


class Late:
    """A frontend that answers nothing, and gives up after 5 s + 2 elections = 0.4 s."""

    def __init__(self):
        self.frontend = Frontend(answer=silent, election_timeout=-2300)

    def __enter__(self):
        self.frontend.__enter__()
        show(self.frontend, peers=2, connected_since_ns=1, leader=1, leader_elected_ns=1)
        return self

    def __exit__(self, *_):
        self.frontend.__exit__()

    def fail(self, method="Put", request=PUT, service="etcdserverpb.KV", **then):
        """The error of a call; the words `then` change while it waits."""
        with self.frontend.channel() as channel:
            seen = len(self.frontend.seen)
            call = unary(channel, method, service).future(request, timeout=30)
            wait_until(lambda: len(self.frontend.seen) > seen, "the request")
            show(self.frontend, **then)
            error = call.exception()
            return error.code().name, error.details()


def now_ns():
    return time.monotonic_ns()


@pytest.fixture(scope="module")
def late():
    with Late() as member:
        yield member


@pytest.fixture(autouse=True)
def calm(request):
    if "late" in request.fixturenames:
        frontend = request.getfixturevalue("late").frontend
        show(frontend, peers=2, connected_since_ns=1, leader=1, leader_elected_ns=1, leader_lost_ns=0)


TIMED_OUT = "etcdserver: request timed out"
LEADER_FAILED = f"{TIMED_OUT}, possibly due to previous leader failure"
CONNECTION_LOST = f"{TIMED_OUT}, possibly due to connection lost"


def test_a_slow_leader(late):
    assert late.fail() == ("UNAVAILABLE", TIMED_OUT)


def test_a_new_leader_since_the_call_was_made(late):
    assert late.fail(leader_lost_ns=now_ns(), leader_elected_ns=now_ns() + SECOND // 10) == (
        "UNAVAILABLE",
        LEADER_FAILED,
    )


def test_a_call_made_long_after_the_election(late):
    show(late.frontend, leader_lost_ns=1, leader_elected_ns=2)
    assert late.fail() == ("UNAVAILABLE", TIMED_OUT)


def test_the_leader_cannot_be_reached(late):
    assert late.fail(connected_since_ns=0) == ("UNAVAILABLE", CONNECTION_LOST)


def test_the_leader_could_not_be_reached_for_a_while(late):
    assert late.fail(connected_since_ns=now_ns() + SECOND // 10) == ("UNAVAILABLE", CONNECTION_LOST)


def test_the_leader_is_lost_after_the_call(late):
    assert late.fail(leader=0) == ("UNAVAILABLE", TIMED_OUT)


def test_a_proposal_without_a_leader_at_all(late):
    show(late.frontend, leader=0)
    late.fail()  # the frontend has noticed
    assert late.fail() == ("DEADLINE_EXCEEDED", "etcdserver: context deadline exceeded")


def test_reads_say_only_that_they_timed_out(late):
    words = {"leader": 0, "connected_since_ns": 0, "leader_elected_ns": now_ns() + SECOND // 10}
    assert late.fail("Range", GET, **words) == ("UNAVAILABLE", TIMED_OUT)


@pytest.mark.parametrize(
    "service, method, request_bytes",
    [("Lease", "LeaseTimeToLive", b"\x08\x01"), ("Cluster", "MemberPromote", b"\x08\x01")],
)
def test_what_only_the_leader_answers(late, service, method, request_bytes):
    assert late.fail(method, request_bytes, f"etcdserverpb.{service}", leader=0) == NO_LEADER


def test_a_leader_that_does_not_move(late):
    show(late.frontend, leader=OWN_ID)
    error = late.fail("MoveLeader", b"\x08\x01", "etcdserverpb.Maintenance")
    assert error == ("UNKNOWN", "etcdserver: request timed out, leader transfer took too long")


def test_a_member_alone_has_no_connections_to_lose(late):
    assert late.fail(peers=0, connected_since_ns=0) == ("UNAVAILABLE", TIMED_OUT)
