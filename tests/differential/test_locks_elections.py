"""The lock and election services queue, elect, time out and refuse as those of etcd 3.5.1 do."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.harness import Client, Pending, Reply, pb, reference_server, started_pair, target_server, wait_until

from .compare import compare_replies
from .queues import QueuePair, Waiting, leader_key
from .test_random_calls import SEED_VARIABLE

STEPS = 180
LEASES = (1, 2, 3, 0x694D_8C4E_1A2B_3C4D, -5)
TTL_SECONDS = 5000
LOCKS = (b"lock", b"deep/er")
ELECTIONS = (b"vote", b"other\xff")


def _grant(pair: QueuePair, *leases: int) -> None:
    for lease in leases:
        for side in pair.sides:
            side.call("LeaseGrant", pb.LeaseGrantRequest(ID=lease, TTL=TTL_SECONDS))


def _revoke(pair: QueuePair, lease: int) -> Reply:
    return pair.call("LeaseRevoke", pb.LeaseRevokeRequest(ID=lease))


@pytest.fixture(scope="module")
def clients() -> Iterator[tuple]:
    with started_pair() as (left, right), left.client(120) as one, right.client(120) as other:
        yield one, other


@pytest.fixture
def pair(clients: tuple) -> Iterator[QueuePair]:
    """The shared servers, emptied: no keys, and the leases of LEASES granted anew."""
    found = QueuePair(*clients)
    for lease in LEASES:
        for side in clients:
            side.call("LeaseRevoke", pb.LeaseRevokeRequest(ID=lease))
    for side in clients:
        # An equal number of revisions on both sides, whatever the test before left behind.
        side.call("DeleteRange", pb.DeleteRangeRequest(key=b"\0", range_end=b"\0"))
    _grant(found, *LEASES)
    yield found
    found.close()


# -- refusals ------------------------------------------------------------------------------------

ABSENT = 55
REFUSED = (
    ("Lock", pb.LockRequest(name=b"n", lease=ABSENT)),
    ("Lock", pb.LockRequest(name=b"n", lease=-1)),
    ("Campaign", pb.CampaignRequest(name=b"n", lease=ABSENT, value=b"v")),
    ("Unlock", pb.UnlockRequest()),
    ("Leader", pb.LeaderRequest(name=b"nobody")),
    ("Leader", pb.LeaderRequest()),
    ("Proclaim", pb.ProclaimRequest(value=b"v")),
    ("Resign", pb.ResignRequest()),
    ("Proclaim", pb.ProclaimRequest(leader=pb.LeaderKey(), value=b"v")),
    ("Resign", pb.ResignRequest(leader=pb.LeaderKey())),
    ("Proclaim", pb.ProclaimRequest(leader=pb.LeaderKey(name=b"x", key=b"x/1", rev=3, lease=1))),
)
IDLE = (
    ("Unlock", pb.UnlockRequest(key=b"nothing/1")),
    ("Resign", pb.ResignRequest(leader=pb.LeaderKey(name=b"x", key=b"x/1", rev=3, lease=1))),
)


@pytest.mark.parametrize("method,request_", REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_refusals(pair: QueuePair, method: str, request_: object) -> None:
    assert not pair.call(method, request_).ok


@pytest.mark.parametrize("method,request_", IDLE, ids=lambda value: value if isinstance(value, str) else "")
def test_calls_that_change_nothing(pair: QueuePair, method: str, request_: object) -> None:
    before = pair.sides[1].get(b"\0", b"\0").header.revision
    assert pair.call(method, request_).message.header.revision == before


@pytest.mark.parametrize("method", ["Lock", "Unlock", "Campaign", "Proclaim", "Leader", "Resign"])
def test_bytes_that_are_no_message(pair: QueuePair, method: str) -> None:
    left, right = (side.call(method, b"\x0a\x05ab") for side in pair.sides)
    assert left.code == right.code == 13, (left, right)


# -- locks ---------------------------------------------------------------------------------------


def test_a_lock_goes_round_in_the_order_of_asking(pair: QueuePair) -> None:
    assert pair.enter("Lock", b"lock", 1).message.key == b"lock/1"  # type: ignore[union-attr]
    for lease in LEASES[1:]:
        assert pair.enter("Lock", b"lock", lease) is None
    for lease in LEASES:
        key = b"lock/%x" % lease if lease > 0 else b"lock/-5"
        if lease != 1:
            assert pair.answered[-1].message.key == key
        pair.call("Unlock", pb.UnlockRequest(key=key))
    assert not pair.waiting


def test_the_holder_locks_again_at_once(pair: QueuePair) -> None:
    first = pair.enter("Lock", b"lock", 1)
    again = pair.enter("Lock", b"lock", 1)
    assert first.message.key == again.message.key  # type: ignore[union-attr]
    assert pair.sides[1].get(b"lock/1").kvs[0].version == 1


def test_the_holders_lease_dies(pair: QueuePair) -> None:
    pair.enter("Lock", b"lock", 1)
    assert pair.enter("Lock", b"lock", 2) is None
    _revoke(pair, 1)
    assert pair.answered[-1].message.key == b"lock/2"


def test_a_waiters_lease_dies(pair: QueuePair) -> None:
    """It leaves the queue and is told so; who stands behind it is not held up."""
    pair.enter("Lock", b"lock", 1)
    assert pair.enter("Lock", b"lock", 2) is None
    assert pair.enter("Lock", b"lock", 3) is None
    _revoke(pair, 2)
    pair.call("Unlock", pb.UnlockRequest(key=b"lock/1"))
    assert not pair.waiting
    assert sorted(reply.code for reply in pair.answered) == [0, 0, 2]


def test_a_waiter_that_gives_up(pair: QueuePair) -> None:
    pair.enter("Lock", b"lock", 1)
    pair.enter("Lock", b"lock", 2)
    pair.enter("Lock", b"lock", 3)
    pair.cancel(pair.waiting[0])
    assert [one.key for one in pair.waiting] == [b"lock/3"]
    pair.call("Unlock", pb.UnlockRequest(key=b"lock/1"))
    assert pair.answered[-1].message.key == b"lock/3"


@pytest.mark.parametrize("method", ["Lock", "Campaign"])
def test_a_waiter_whose_deadline_passes(pair: QueuePair, method: str) -> None:
    """It is told of the deadline, by the client library or by the server, and its key is taken away."""
    pair.enter(method, b"held", 1)
    request = {"Lock": pb.LockRequest, "Campaign": pb.CampaignRequest}[method](name=b"held", lease=2)
    calls = [side.start(method, request, timeout_seconds=0.3) for side in pair.sides]
    for reply in [call.reply() for call in calls]:
        # etcd passes its own context's error on as it is, which is Unknown to gRPC.
        assert reply.code == 4 or (reply.code, reply.text) == (2, "context deadline exceeded"), reply
    for side in pair.sides:
        wait_until(lambda side=side: side.get(b"held/2").count == 0, "the waiter's key to go")
    pair.settle()


def test_a_lock_without_a_lease_gets_one_of_a_minute(pair: QueuePair) -> None:
    """The lease is the server's choice, is not renewed, and names the key."""
    for side in pair.sides:
        key = side.call("Lock", pb.LockRequest(name=b"alone")).message.key
        name, _, lease = key.rpartition(b"/")
        assert name == b"alone"
        left = side.call("LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=int(lease, 16), keys=True)).message
        assert (left.grantedTTL, list(left.keys)) == (60, [key])
        assert left.TTL <= 60
        assert side.call("LeaseRevoke", pb.LeaseRevokeRequest(ID=int(lease, 16))).ok


def test_a_foreign_key_in_the_queue_counts(pair: QueuePair) -> None:
    """The queue is the prefix: a key put there by hand holds the lock until it is deleted."""
    pair.call("Put", pb.PutRequest(key=b"lock/by-hand", value=b""))
    assert pair.enter("Lock", b"lock", 1) is None
    pair.call("Put", pb.PutRequest(key=b"lock/by-hand", value=b"again"))
    assert len(pair.waiting) == 1
    pair.call("DeleteRange", pb.DeleteRangeRequest(key=b"lock/by-hand"))
    assert pair.answered[-1].ok


# -- elections -----------------------------------------------------------------------------------


def test_an_election_from_campaign_to_resignation(pair: QueuePair) -> None:
    pair.observe(b"vote")
    won = pair.enter("Campaign", b"vote", 1, b"one").message.leader  # type: ignore[union-attr]
    assert pair.enter("Campaign", b"vote", 2, b"two") is None
    assert pair.call("Leader", pb.LeaderRequest(name=b"vote")).message.kv.value == b"one"
    for value in (b"uno", b"", b"eins"):
        assert pair.call("Proclaim", pb.ProclaimRequest(leader=won, value=value)).ok
    assert pair.call("Leader", pb.LeaderRequest(name=b"vote")).message.kv.value == b"eins"
    assert pair.call("Resign", pb.ResignRequest(leader=won)).ok
    assert pair.answered[-1].message.leader.key == b"vote/2"
    late = pair.call("Proclaim", pb.ProclaimRequest(leader=won, value=b"late"))
    assert (late.code, late.text) == (2, "election: not leader")
    assert pair.call("Resign", pb.ResignRequest(leader=won)).ok, "resigning twice changes nothing"
    _revoke(pair, 2)
    assert pair.call("Leader", pb.LeaderRequest(name=b"vote")).text == "election: no leader"
    assert pair.enter("Campaign", b"vote", 3, b"three").ok  # type: ignore[union-attr]


def test_campaigning_again_proclaims(pair: QueuePair) -> None:
    """The same session once more: another value is put, the same one is not."""
    pair.enter("Campaign", b"vote", 1, b"v")
    assert pair.enter("Campaign", b"vote", 1, b"v").ok  # type: ignore[union-attr]
    assert pair.sides[1].get(b"vote/1").kvs[0].version == 1
    assert pair.enter("Campaign", b"vote", 1, b"w").ok  # type: ignore[union-attr]
    assert pair.sides[1].get(b"vote/1").kvs[0].version == 2


def test_a_candidate_that_gives_up(pair: QueuePair) -> None:
    pair.enter("Campaign", b"vote", 1, b"one")
    pair.enter("Campaign", b"vote", 2, b"two")
    pair.enter("Campaign", b"vote", 3, b"three")
    pair.cancel(pair.waiting[0])
    pair.call("Resign", pb.ResignRequest(leader=leader_key(pair.sides[0], b"vote")))
    assert pair.answered[-1].message.leader.key == b"vote/3"


def test_a_candidates_lease_dies(pair: QueuePair) -> None:
    """etcd elects it all the same when its turn comes; the target has to say what is true."""
    pair.enter("Campaign", b"vote", 1, b"one")
    pair.enter("Campaign", b"vote", 2, b"two")
    _revoke(pair, 2)
    _revoke(pair, 1)
    assert not pair.waiting
    assert pair.call("Leader", pb.LeaderRequest(name=b"vote")).text == "election: no leader"


def test_an_observer_waits_for_the_first_leader_and_ends_with_its_client(pair: QueuePair) -> None:
    pair.observe(b"vote")
    pair.call("Put", pb.PutRequest(key=b"unrelated", value=b""))
    pair.enter("Campaign", b"vote", 1, b"one")
    _revoke(pair, 1)
    pair.enter("Campaign", b"vote", 2, b"two")
    pair.close()
    pair.call("Leader", pb.LeaderRequest(name=b"vote"))


# -- all of it at random ---------------------------------------------------------------------------


def _step(pair: QueuePair, rng: random.Random, alive: set[int], counts: dict[str, int]) -> None:
    roll = rng.random()
    lease = rng.choice(LEASES)
    if roll < 0.48:
        if roll < 0.26:
            method, name, value = "Lock", rng.choice(LOCKS), b""
        else:
            method, name, value = "Campaign", rng.choice(ELECTIONS), rng.choice((b"v", b"w", b""))
        key = b"%s/" % name + (b"%x" % lease if lease > 0 else b"-5")
        if lease not in alive or any(one.key == key and one.gone for one in pair.waiting):
            # A refused call is tested above; and of two calls with one key, of which the first has lost
            # it, etcd takes the second one's key for the first one's.
            return
        pair.enter(method, name, lease, value)
        counts[method] = counts.get(method, 0) + 1
    elif roll < 0.60:
        name = rng.choice(LOCKS)
        keys = [kv.key for kv in pair.sides[0].get(name + b"/", name + b"0", sort_order=1, sort_target=2).kvs]
        if keys:
            # Mostly the holder unlocks; a waiter's key may be unlocked as well.
            pair.call("Unlock", pb.UnlockRequest(key=keys[0] if rng.random() < 0.8 else rng.choice(keys)))
            counts["Unlock"] = counts.get("Unlock", 0) + 1
    elif roll < 0.71:
        leader = leader_key(pair.sides[0], rng.choice(ELECTIONS))
        if leader is not None:
            if rng.random() < 0.5:
                pair.call("Proclaim", pb.ProclaimRequest(leader=leader, value=rng.choice((b"p", b"q"))))
            else:
                pair.call("Resign", pb.ResignRequest(leader=leader))
            counts["Resign"] = counts.get("Resign", 0) + 1
    elif roll < 0.84:
        # Of two calls with one key, nobody sees from outside whether the second has come to wait already: one that
        # is cancelled before leaves the key to the first.
        keys = Counter(one.key for one in pair.waiting)
        patient = [one for one in pair.waiting if not one.gone and keys[one.key] == 1]
        if patient:
            pair.cancel(rng.choice(patient))
            counts["cancel"] = counts.get("cancel", 0) + 1
    elif roll < 0.90:
        if lease in alive:
            alive.discard(lease)
            _revoke(pair, lease)
            counts["revoke"] = counts.get("revoke", 0) + 1
    elif roll < 0.97:
        _grant(pair, lease)
        alive.add(lease)
    else:
        pair.call("Leader", pb.LeaderRequest(name=rng.choice(ELECTIONS)))


def test_random_queues(pair: QueuePair) -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"seed {seed} ({SEED_VARIABLE}={seed})")
    rng = random.Random(f"queues {seed}")
    for name in ELECTIONS:
        pair.observe(name)
    alive, counts = set(LEASES), {}
    for number in range(STEPS):
        try:
            _step(pair, rng, alive, counts)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, step {number}: {error}") from error
    missing = {"Lock", "Campaign", "Unlock", "Resign", "cancel", "revoke"} - set(counts)
    assert not missing, f"seed {seed} never came to {missing}"


# -- many at once ----------------------------------------------------------------------------------

CLIENTS, TURNS = 20, 8


def _give_up(client: Client, pending: Pending, key: bytes, rng: random.Random) -> None:
    """Wait until the call stands in the queue; cancel it or let it be, for its lease to be revoked."""
    wait_until(lambda: pending.done or client.get(key).count, "a place in the queue")
    if rng.random() < 0.5:
        pending.cancel()


def test_one_holder_at_a_time() -> None:
    """Twenty clients take turns at one lock, some of them giving up or losing their lease on the way."""
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"seed {seed} ({SEED_VARIABLE}={seed})")
    holders: list[int] = []
    held: list[int] = []
    wrong: list[str] = []

    def turns(number: int) -> None:
        rng = random.Random(f"{seed}:{number}")
        for turn in range(TURNS):
            # A lease of its own for every turn: etcd may clear up after a cancelled call so late that it
            # takes away the same key of the next.
            lease = 1000 + number * TURNS + turn
            client.call("LeaseGrant", pb.LeaseGrantRequest(ID=lease, TTL=TTL_SECONDS))
            pending = client.start("Lock", pb.LockRequest(name=b"one", lease=lease))
            if rng.random() < 0.15:
                _give_up(client, pending, b"one/%x" % lease, rng)
                client.call("LeaseRevoke", pb.LeaseRevokeRequest(ID=lease))
                pending.reply()
                continue
            reply = pending.reply()
            if not reply.ok:
                wrong.append(f"{number}: {reply}")
                return
            if holders:
                wrong.append(f"{number} holds the lock beside {holders}")
            holders.append(number)
            held.append(lease)
            if rng.random() < 0.5:
                client.put(b"work", b"%d" % number)
            holders.remove(number)
            if not client.call("Unlock", pb.UnlockRequest(key=reply.message.key)).ok:
                wrong.append(f"{number}: unlock")

    with target_server() as server, server.client(60) as client:
        wait_until(lambda: client.call("Leader", pb.LeaderRequest(name=b"none")).code == 2, "the connection")
        threads = [threading.Thread(target=turns, args=(number,), daemon=True) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "someone waits for ever"
        assert not wrong, wrong
        assert len(held) > CLIENTS * TURNS / 2
        assert client.get(b"one/", b"one0").count == 0


# -- over a restart --------------------------------------------------------------------------------


def test_queues_outlive_a_kill() -> None:
    """Keys and leases are still there; whoever asks again takes its old place."""
    left, right = reference_server(), target_server()
    try:
        for server in (left, right):
            server.start()
        with left.client(60) as one, right.client(60) as other:
            pair = QueuePair(one, other)
            _grant(pair, 1, 2, 3)
            pair.enter("Lock", b"lock", 1)
            pair.enter("Lock", b"lock", 2)
            pair.enter("Lock", b"lock", 3)
            waiting: list[Waiting] = list(pair.waiting)
            for server in (left, right):
                server.kill9()
            assert [call.reply().code for one in waiting for call in one.calls] == [14] * 4
        for server in (left, right):
            server.start()
        with left.client(60) as one, right.client(60) as other:
            pair = QueuePair(one, other)
            assert pair.enter("Lock", b"lock", 3) is None
            assert pair.enter("Lock", b"lock", 1).ok  # type: ignore[union-attr]
            assert pair.enter("Lock", b"lock", 2) is None
            pair.call("Unlock", pb.UnlockRequest(key=b"lock/1"))
            assert pair.answered[-1].message.key == b"lock/2"
            pair.call("Unlock", pb.UnlockRequest(key=b"lock/2"))
            assert pair.answered[-1].message.key == b"lock/3"
            pair.close()
    finally:
        left.close()
        right.close()


def test_the_comparison_sees_a_wrong_owner() -> None:
    """Another key or revision in an answer does not pass."""
    request = pb.LockRequest(name=b"n", lease=1)
    header = {"cluster_id": 1, "member_id": 2, "revision": 3, "raft_term": 2}
    good = pb.LockResponse(header=header, key=b"n/1")
    later = {**header, "revision": 4}
    for bad in (pb.LockResponse(header=header, key=b"n/2"), pb.LockResponse(header=later, key=b"n/1")):
        assert compare_replies(
            "Lock",
            request,
            Reply("Lock", 0, "", good.SerializeToString()),
            Reply("Lock", 0, "", bad.SerializeToString()),
        )
