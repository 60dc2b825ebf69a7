"""Requests of restricted users: etcd 3.5.1 and the target answer alike, where 3.5.1 had it right."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.differential.compare import compare_replies
from tests.harness import pb, reference_server, started_pair, target_server

from .actors import USERS, Actor, populate

FLAGS = ("--bcrypt-cost", "4")
STEPS = 600
SEED_VARIABLE = "ETCDFAST_SEED"
KEYS = (b"a", b"aa", b"b", b"c", b"cc", b"d", b"e", b"\xff")
LEASES = (7, 8, 9)
Sides = tuple[dict[str, Actor], dict[str, Actor]]


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    with started_pair(reference_server(flags=FLAGS), target_server(flags=FLAGS)) as (left, right):
        with left.client() as one, right.client() as other:
            yield populate(one), populate(other)


def a_range(chance: random.Random) -> tuple[bytes, bytes]:
    key = chance.choice(KEYS)
    above = [other for other in KEYS if other > key] + [b"\0"]
    return key, chance.choice((b"", b"", chance.choice(above)))


def an_operation(chance: random.Random, op: Any) -> None:
    key, end = a_range(chance)
    kind = chance.randrange(3)
    if kind == 0:
        op.request_range.CopyFrom(pb.RangeRequest(key=key, range_end=end))
    elif kind == 1:
        op.request_put.CopyFrom(pb.PutRequest(key=key, value=b"t"))
    else:
        op.request_delete_range.CopyFrom(pb.DeleteRangeRequest(key=key, range_end=end, prev_kv=chance.random() < 0.4))


def a_request(chance: random.Random) -> tuple[str, Any]:
    """What 3.5.1 judges as the newest release does: advisories since then are in test_advisories.py."""
    key, end = a_range(chance)
    kind = chance.randrange(11)
    if kind < 2:
        prev_kv, lease = chance.random() < 0.3, chance.choice((0, 0, *LEASES))
        return "Put", pb.PutRequest(key=key, value=b"v", prev_kv=prev_kv, lease=lease)
    if kind < 4:
        return "Range", pb.RangeRequest(key=key, range_end=end, serializable=chance.random() < 0.3)
    if kind == 4:
        return "DeleteRange", pb.DeleteRangeRequest(key=key, range_end=end, prev_kv=chance.random() < 0.4)
    if kind < 8:
        request = pb.TxnRequest()
        for _ in range(chance.randrange(3)):
            other, other_end = a_range(chance)
            request.compare.add(key=other, range_end=other_end, target=pb.Compare.VERSION, result=pb.Compare.GREATER)
        for branch in (request.success, request.failure):
            for _ in range(chance.randrange(3)):
                an_operation(chance, branch.add())
        return "Txn", request
    if kind == 8:
        return "LeaseGrant", pb.LeaseGrantRequest(ID=chance.choice(LEASES), TTL=1000)
    if kind == 9:
        return "LeaseRevoke", pb.LeaseRevokeRequest(ID=chance.choice(LEASES))
    return "LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=chance.choice(LEASES))


def test_restricted_users_get_etcds_answers(sides: Sides) -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    chance = random.Random(seed)
    seen: Counter[str] = Counter()
    for step in range(STEPS):
        user = chance.choice(("root", *USERS, ""))
        method, request = a_request(chance)
        if user == "" and method.startswith("Lease"):
            continue  # open to anybody in 3.5.1: CVE-2026-33413
        if user == "" and method == "Txn" and not (request.compare or request.success or request.failure):
            continue
        left, right = sides[0][user].ask(method, request), sides[1][user].ask(method, request)
        found = compare_replies(method, request, left, right)
        found = [one for one in found if one.path not in ("TTL", "ttl")]
        assert not found, f"seed {seed}, step {step}: {user or 'nobody'}: {method} {request}\n{list(map(str, found))}"
        seen[f"{method} {left.code}"] += 1
    for method in ("Put", "Range", "DeleteRange", "Txn"):
        assert seen[f"{method} 0"] and seen[f"{method} 7"], f"seed {seed}: {sorted(seen)}"


def both(sides: Sides, user: str, ask: Any) -> list[Any]:
    return [ask(side[user]) for side in sides]


def test_watches_are_refused_in_etcds_words(sides: Sides) -> None:
    for user, key, end in (
        ("ann", b"a", b"b"), ("ann", b"a", b""), ("ann", b"a", b"cc"), ("ann", b"e", b""), ("ann", b"", b""),
        ("bob", b"d", b"\0"), ("wes", b"a", b""), ("nil", b"a", b""), ("root", b"", b"\0"),
    ):  # fmt: skip
        left, right = both(sides, user, lambda actor, k=key, e=end: actor.watch(k, e))
        assert left == right, (user, key, end)
    # 3.5.1 has the same text for whoever has no permission.
    assert sides[1][""].watch(b"a") == "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"
    refused = Actor(sides[1][""].client, "no.1").watch(b"a")
    assert refused == "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"


def test_a_token_that_is_none_is_refused_everywhere(sides: Sides) -> None:
    for token in ("x", "", "abc.1", "a.b", "x" * 3000, "no.1.2"):
        for method, request in (
            ("Put", pb.PutRequest(key=b"a")),
            ("Range", pb.RangeRequest(key=b"a")),
            ("LeaseGrant", pb.LeaseGrantRequest(TTL=5)),
            ("UserList", pb.AuthUserListRequest()),
            ("HashKV", pb.HashKVRequest()),
            ("MemberAdd", pb.MemberAddRequest(peerURLs=["http://127.0.0.1:1"])),
        ):
            left, right = (Actor(side[""].client, token).refusal(method, request) for side in sides)
            if method == "HashKV":
                left = right  # 3.5.1: UNKNOWN, "auth: invalid auth token"
            assert left == right == (16, "etcdserver: invalid auth token"), (token[:10], method)


def test_who_is_not_root_administers_nothing(sides: Sides) -> None:
    for method, request in (
        ("Defragment", pb.DefragmentRequest()),
        ("HashKV", pb.HashKVRequest()),
        ("Hash", pb.HashRequest()),
        ("MoveLeader", pb.MoveLeaderRequest(targetID=1)),
        ("MemberAdd", pb.MemberAddRequest(peerURLs=["http://127.0.0.1:1"])),
        ("MemberRemove", pb.MemberRemoveRequest(ID=1)),
        ("MemberUpdate", pb.MemberUpdateRequest(ID=1, peerURLs=["http://127.0.0.1:1"])),
        ("MemberPromote", pb.MemberPromoteRequest(ID=1)),
    ):
        for user in ("ann", ""):
            left, right = both(sides, user, lambda actor, m=method, r=request: actor.refusal(m, r))
            if method in ("Defragment", "HashKV", "Hash", "MoveLeader"):
                left = right  # 3.5.1: UNKNOWN, "auth: permission denied"
            assert left == right, (user, method)
            assert right[0] == (7 if user else 3), (user, method, right)
    for method, request in (
        ("HashKV", pb.HashKVRequest()),
        ("Alarm", pb.AlarmRequest()),
        ("Status", pb.StatusRequest()),
    ):
        assert sides[1]["root"].ask(method, request).ok, method


def test_keep_alives_need_the_right_to_write_every_key_of_the_lease(sides: Sides) -> None:
    right = sides[1]
    assert right["root"].ask("LeaseGrant", pb.LeaseGrantRequest(ID=77, TTL=500)).ok
    assert right["ann"].renew(77) == 500 and right["nil"].renew(77) == 500  # no key hangs on it
    assert right["root"].ask("Put", pb.PutRequest(key=b"a", lease=77)).ok
    assert right["ann"].renew(77) == 500 and right["root"].renew(77) == 500
    assert right["bob"].renew(77) == (7, "etcdserver: permission denied")
    assert right[""].renew(77) == (3, "etcdserver: user name is empty")
    assert Actor(right[""].client, "no.1").renew(77) == (16, "etcdserver: invalid auth token")
    assert right["ann"].renew(4242) == 0


def test_locks_and_elections_act_in_the_name_of_their_caller(sides: Sides) -> None:
    for user in ("ann", "bob", ""):
        for method, request in (
            ("Lock", pb.LockRequest(name=b"a/lock")),
            ("Lock", pb.LockRequest(name=b"e/lock")),
            ("Unlock", pb.UnlockRequest(key=b"e/lock/1")),
            ("Campaign", pb.CampaignRequest(name=b"e", value=b"v")),
            ("Campaign", pb.CampaignRequest(name=b"b", value=b"v")),
            ("Leader", pb.LeaderRequest(name=b"e")),
            ("Leader", pb.LeaderRequest(name=b"b")),
        ):
            left, right = both(sides, user, lambda actor, m=method, r=request: actor.refusal(m, r))
            assert left == right, (user, method, request)
    left, right = (Actor(side[""].client, "no.1").refusal("Leader", pb.LeaderRequest(name=b"b")) for side in sides)
    assert left == right


def test_identities_of_an_older_auth_store_are_refused_and_simple_tokens_follow_it(sides: Sides) -> None:
    for side in sides:
        perm = pb.Permission(permType=pb.Permission.READ, key=b"zz")
        assert side["root"].ask("RoleGrantPermission", pb.AuthRoleGrantPermissionRequest(name="nil", perm=perm)).ok
    for user in ("ann", "nil", "root"):
        left, right = both(sides, user, lambda actor: actor.ask("Range", pb.RangeRequest(key=b"zz")).code)
        assert left == right
    assert right == 0
