"""Leases are granted, lent to keys, renewed, listed, revoked and reloaded alike by etcd 3.5.1 and the target."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.harness import Reply, StreamEnded, pb, reference_server, started_pair, target_name, target_server, wait_until

from .compare import compare_replies
from .generator import Call, State
from .known_differences import unexplained
from .leases import IDS, LOST_BY_ETCD, MAX_TTL_SECONDS, MIN_TTL_SECONDS, LeasePair, lease_call_at
from .test_random_calls import SEED_VARIABLE

SECTIONS = 3
STEPS_PER_SECTION = 300
HASH_EVERY = 100

# What the history has to provoke; one that no longer does is a defect of the generator.
EXPECTED = (
    "LeaseGrant 9 etcdserver: lease already exists",
    "LeaseGrant 11 etcdserver: too large lease TTL",
    "LeaseRevoke 5 etcdserver: requested lease not found",
    "Put 5 etcdserver: requested lease not found",
    "Put 3 etcdserver: lease is provided",
    "Txn 5 etcdserver: requested lease not found",
    "LeaseGrant",
    "LeaseRevoke",
    "LeaseKeepAlive",
    "LeaseTimeToLive",
    "LeaseLeases",
    "Txn",
)


def _alike(pair: LeasePair, call: Call, where: str) -> Reply:
    exchange, differences = pair.exchange(call)
    left_over = unexplained(exchange, differences)
    if left_over:
        text = " ".join(str(call.request).split())[:2000]
        pytest.fail(f"{where}: {call.method} {text}\n  " + "\n  ".join(map(str, left_over)), pytrace=False)
    return exchange.left


def _all_alike(pair: LeasePair, where: str) -> None:
    """Contents, hashes, and every lease with its keys."""
    _alike(pair, Call(-1, "Range", pb.RangeRequest(key=b"\0", range_end=b"\0")), where)
    _alike(pair, Call(-1, "HashKV", pb.HashKVRequest()), where)
    _alike(pair, Call(-1, "LeaseLeases", pb.LeaseLeasesRequest()), where)
    for id_ in IDS:
        _alike(pair, Call(-1, "LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=id_, keys=True)), where)


# Few histories draw these; a test of one in a hundred seeds failed for the want of them.
RARE = (
    Call(-1, "LeaseRevoke", pb.LeaseRevokeRequest(ID=999_999)),
    Call(-1, "Put", pb.PutRequest(key=b"rare", lease=999_999)),
    Call(-1, "LeaseGrant", pb.LeaseGrantRequest(ID=999_999, TTL=9_000_000_001)),
)


def _history(pair: LeasePair, seed: int, first: int, seen: Counter[str]) -> None:
    for index in range(first, first + STEPS_PER_SECTION):
        calls = lease_call_at(seed, index, pair.state, sorted(pair.live))
        for call in (*RARE, *calls) if index == first else calls:
            reply = _alike(pair, call, f"seed {seed}, step {index} (revision {pair.state.current})")
            assert reply.code != 14, f"seed {seed}, step {index}: the reference died of {call}"
            seen[call.method if reply.ok else f"{call.method} {reply.code} {reply.text}"] += 1
        if index % HASH_EVERY == HASH_EVERY - 1:
            _all_alike(pair, f"seed {seed}, after step {index}")


def test_random_lease_histories_over_restarts() -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"seed {seed} ({SEED_VARIABLE}={seed})")
    left, right = reference_server(), target_server()
    seen: Counter[str] = Counter()
    pair = None
    try:
        for section in range(SECTIONS):
            before = time.monotonic()
            left.spawn()
            right.spawn()
            left.wait_ready()
            right.wait_ready()
            with left.client(120) as one, right.client(120) as other:
                if pair is None:
                    pair = LeasePair(one, other)
                else:
                    pair.restarted(one, other, before)
                    _all_alike(pair, f"seed {seed}, after restart {section}")
                _history(pair, seed, section * STEPS_PER_SECTION, seen)
                pair.close()
            left.stop()
            if section % 2 and target_name() != "etcd":
                right.kill9()
            else:
                right.stop()
    finally:
        left.close()
        right.close()
    missing = [what for what in EXPECTED if what not in seen]
    assert not missing, f"seed {seed} provoked none of {missing}: {seen}"


@pytest.fixture(scope="module")
def pair() -> Iterator[LeasePair]:
    with started_pair() as (left, right), left.client(120) as one, right.client(120) as other:
        found = LeasePair(one, other)
        yield found
        found.close()


def _grant(pair: LeasePair, id_: int, ttl: int) -> Reply:
    return _alike(pair, Call(0, "LeaseGrant", pb.LeaseGrantRequest(ID=id_, TTL=ttl)), f"grant {id_} {ttl}")


def _put(pair: LeasePair, key: bytes, **fields: object) -> None:
    assert _alike(pair, Call(0, "Put", pb.PutRequest(key=key, value=b"v", **fields)), f"put {key!r}").ok  # type: ignore[arg-type]


def _clear(pair: LeasePair) -> None:
    for id_ in sorted(pair.live):
        _alike(pair, Call(0, "LeaseRevoke", pb.LeaseRevokeRequest(ID=id_)), "clear")
    _alike(pair, Call(0, "DeleteRange", pb.DeleteRangeRequest(key=b"\0", range_end=b"\0")), "clear")


def test_ttl_rules(pair: LeasePair) -> None:
    """The minimum is given for anything below it; the maximum is taken, one more is not."""
    _clear(pair)
    granted = {}
    for number, ttl in enumerate((-(2**63), -1, 0, 1, 2, 3, MAX_TTL_SECONDS, MAX_TTL_SECONDS + 1, 2**63 - 1), 1):
        reply = _grant(pair, number, ttl)
        granted[ttl] = reply.message.TTL if reply.ok else reply.code
        if reply.ok:
            _alike(pair, Call(0, "LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=number)), f"ttl {ttl}")
            _alike(pair, Call(0, "LeaseKeepAlive", pb.LeaseKeepAliveRequest(ID=number)), f"ttl {ttl}")
            _alike(pair, Call(0, "LeaseRevoke", pb.LeaseRevokeRequest(ID=number)), f"ttl {ttl}")
    assert list(granted.values()) == [MIN_TTL_SECONDS] * 5 + [3, MAX_TTL_SECONDS, 11, 11]


def test_ids_of_the_servers_choice(pair: LeasePair) -> None:
    """ID 0: each server's own ids are positive and never the same, and all answers but for the id are alike."""
    chosen: set[int] = set()
    for _ in range(50):
        left, right = (
            side.call("LeaseGrant", pb.LeaseGrantRequest(TTL=1000)).message for side in (pair.left, pair.right)
        )
        assert left.ID > 0 and right.ID > 0
        assert right.ID not in chosen
        chosen.add(right.ID)
        assert (left.TTL, left.header.revision) == (right.TTL, right.header.revision)
        for side, id_ in ((pair.left, left.ID), (pair.right, right.ID)):
            assert side.call("LeaseGrant", pb.LeaseGrantRequest(ID=id_, TTL=5)).text == (
                "etcdserver: lease already exists"
            )
            assert side.call("LeaseRevoke", pb.LeaseRevokeRequest(ID=id_)).ok
            assert side.call("LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=id_)).message.TTL == -1


def test_ids_at_the_ends_of_the_type(pair: LeasePair) -> None:
    _clear(pair)
    for id_ in LOST_BY_ETCD:
        assert _grant(pair, id_, 5000).ok
        _put(pair, b"end/%d" % id_, lease=id_)
        _put(pair, b"end/1", lease=id_)
        for method in ("LeaseKeepAlive", "LeaseTimeToLive"):
            _alike(pair, Call(0, method, getattr(pb, f"{method}Request")(ID=id_)), f"{method} {id_}")
    _all_alike(pair, "with all of them")
    for id_ in LOST_BY_ETCD:
        assert _alike(pair, Call(0, "LeaseRevoke", pb.LeaseRevokeRequest(ID=id_)), f"revoke {id_}").ok
        _all_alike(pair, f"without {id_}")
    assert pair.right.get(b"end/", b"end0").count == 0


@pytest.mark.skipif(target_name() == "etcd", reason="etcd loses them (leases.LOST_BY_ETCD)")
def test_ids_at_the_ends_of_the_type_outlive_a_restart() -> None:
    with target_server() as server:
        with server.client() as client:
            for id_ in LOST_BY_ETCD:
                assert client.call("LeaseGrant", pb.LeaseGrantRequest(ID=id_, TTL=5000)).ok
                client.put(b"end/%d" % id_, b"", lease=id_)
        server.kill9()
        server.start()
        with server.client() as client:
            leases = client.call("LeaseLeases", pb.LeaseLeasesRequest()).message.leases
            assert sorted(lease.ID for lease in leases) == sorted(LOST_BY_ETCD)
            for id_ in LOST_BY_ETCD:
                assert client.call("LeaseRevoke", pb.LeaseRevokeRequest(ID=id_)).ok
            assert client.get(b"end/", b"end0").count == 0


def test_revoke_deletes_all_keys_in_one_revision(pair: LeasePair) -> None:
    """5,000 keys of one lease go at one revision; keys taken over by another lease, or by none, stay."""
    _clear(pair)
    _grant(pair, 1, 5000)
    _grant(pair, 7, 5000)
    for chunk in range(0, 5000, 100):
        txn = pb.TxnRequest()
        for number in range(chunk, chunk + 100):
            txn.success.add().request_put.CopyFrom(pb.PutRequest(key=b"many/%05d" % number, value=b"v", lease=1))
        assert _alike(pair, Call(0, "Txn", txn), "fill").ok
    _put(pair, b"many/00001", lease=7)
    _put(pair, b"many/00002")
    _put(pair, b"many/00003", ignore_lease=True)
    before = pair.state.current
    _alike(pair, Call(0, "LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=1, keys=True)), "keys of lease 1")
    revoked = _alike(pair, Call(0, "LeaseRevoke", pb.LeaseRevokeRequest(ID=1)), "revoke").message
    assert revoked.header.revision == before + 1
    for revision in (before, before + 1):
        request = pb.RangeRequest(key=b"many/", range_end=b"many0", revision=revision)
        _alike(pair, Call(0, "Range", request), f"revision {revision}")
    _all_alike(pair, "after the revoke")
    left = pair.right.get(b"many/", b"many0")
    assert [kv.key for kv in left.kvs] == [b"many/00001", b"many/00002"]
    again = _alike(pair, Call(0, "LeaseRevoke", pb.LeaseRevokeRequest(ID=1)), "revoke again")
    assert (again.code, again.text) == (5, "etcdserver: requested lease not found")


def test_an_empty_lease_goes_without_a_revision(pair: LeasePair) -> None:
    _clear(pair)
    _grant(pair, 1, 5000)
    before = pair.state.current
    assert _alike(pair, Call(0, "LeaseRevoke", pb.LeaseRevokeRequest(ID=1)), "revoke").message.header.revision == before


def test_expiry_leaves_the_same_store(pair: LeasePair) -> None:
    """What an expired lease takes with it, and in which revision, is as if it had been revoked."""
    _clear(pair)
    _grant(pair, 7, 5000)
    _grant(pair, 1, MIN_TTL_SECONDS)
    for number in range(20):
        _put(pair, b"short/%02d" % number, lease=1)
    _put(pair, b"short/03", lease=7)
    _put(pair, b"short/04")
    _put(pair, b"stays", lease=7)
    before = pair.state.current
    for side in (pair.left, pair.right):
        wait_until(
            lambda side=side: side.call("LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=1)).message.TTL == -1,
            "the end of the lease",
        )
    del pair.live[1]
    pair.state = State(before + 1, pair.state.compacted)
    for side in (pair.left, pair.right):
        contents = side.get(b"\0", b"\0")
        assert contents.header.revision == before + 1
        assert [kv.key for kv in contents.kvs] == [b"short/03", b"short/04", b"stays"]
    _all_alike(pair, "after the expiry")
    _alike(pair, Call(0, "LeaseKeepAlive", pb.LeaseKeepAliveRequest(ID=1)), "keep-alive of an expired lease")
    assert _alike(pair, Call(0, "LeaseRevoke", pb.LeaseRevokeRequest(ID=1)), "revoke of an expired lease").code == 5
    assert _grant(pair, 1, 5000).ok, "its id is free again"


def test_a_full_store_takes_no_lease(pair: LeasePair) -> None:
    """NOSPACE refuses grants; what frees space or keeps things alive goes on."""
    _clear(pair)
    _grant(pair, 1, 5000)
    _put(pair, b"k", lease=1)
    alarm = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, alarm=pb.NOSPACE)
    alarm.memberID = pair.left.call("Status", pb.StatusRequest()).message.header.member_id
    assert pair.left.call("Alarm", alarm).ok and pair.right.call("Alarm", alarm).ok
    try:
        assert _grant(pair, 7, 5000).text == "etcdserver: mvcc: database space exceeded"
        assert _alike(pair, Call(0, "LeaseKeepAlive", pb.LeaseKeepAliveRequest(ID=1)), "keep-alive").ok
        assert _alike(pair, Call(0, "LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=1, keys=True)), "time").ok
        assert _alike(pair, Call(0, "LeaseRevoke", pb.LeaseRevokeRequest(ID=1)), "revoke").ok
    finally:
        alarm.action = pb.AlarmRequest.DEACTIVATE
        assert pair.left.call("Alarm", alarm).ok and pair.right.call("Alarm", alarm).ok
    assert _grant(pair, 7, 5000).ok


@pytest.mark.parametrize("data", [b"\x08", b"\x0a\x05ab", b"\xff\xff\xff", b"\x10\x80"])
@pytest.mark.parametrize("method", ["LeaseGrant", "LeaseRevoke", "LeaseTimeToLive"])
def test_bytes_that_are_no_message(pair: LeasePair, method: str, data: bytes) -> None:
    left, right = pair.left.call(method, data), pair.right.call(method, data)
    assert left.code == right.code == 13, (left, right)


def test_a_keep_alive_stream_answers_in_order_and_ends_when_asked(pair: LeasePair) -> None:
    """500 requests at once: as many answers in their order, then OK after the client's half-close."""
    _clear(pair)
    _grant(pair, 1, 5000)
    _grant(pair, 7, 4000)
    rng = random.Random(5)
    ids = [rng.choice((1, 7, 99, 0)) for _ in range(500)]
    transcripts = []
    for side in (pair.left, pair.right):
        with side.keep_alive() as stream:
            for id_ in ids:
                stream.send(pb.LeaseKeepAliveRequest(ID=id_))
            answers = [stream.receive() for _ in ids]
            stream.half_close()
            with pytest.raises(StreamEnded) as ended:
                stream.receive()
            transcripts.append((answers, ended.value.code, ended.value.text))
    assert transcripts[0] == transcripts[1]
    answers, code, _ = transcripts[1]
    assert code == 0
    assert [(answer.ID, answer.TTL) for answer in answers] == [(id_, {1: 5000, 7: 4000}.get(id_, 0)) for id_ in ids]


def test_bad_bytes_end_a_keep_alive_stream(pair: LeasePair) -> None:
    """As for any call: INTERNAL; the text names the decoder's own complaint and is not compared."""
    codes = []
    for side in (pair.left, pair.right):
        call = side.channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")(iter([b"\xff\xff\xff"]), timeout=20)
        try:
            list(call)
        except Exception:  # noqa: BLE001 - grpcio's own class; the code tells
            pass
        codes.append(call.code())
    assert codes[0] == codes[1], codes


def test_compare_replies_sees_lease_fields(pair: LeasePair) -> None:
    """The comparison itself: a lease attached on one side only is seen."""
    _clear(pair)
    _grant(pair, 1, 5000)
    _put(pair, b"k", lease=1)
    request = pb.RangeRequest(key=b"k")
    left = pair.left.call("Range", request)
    changed = left.message
    changed.kvs[0].lease = 7
    assert compare_replies("Range", request, left, Reply("Range", 0, "", changed.SerializeToString()))
