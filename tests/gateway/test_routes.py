"""Every route, with the answers of real etcd."""

from __future__ import annotations

import random

import pytest

from etcdfast.frontend.http.gateway import PATHS
from tests.gateway.web import b64

# Routes whose calls change what the later tests rest on, or never answer by themselves.
APART = {"watch", "election/observe", "lock/lock", "election/campaign", "maintenance/snapshot", "cluster/member/add"}
# Ids and ports differ; `etcd 3.5.1 looks for the member before it looks at its URLs`.
APART |= {"cluster/member/list", "lease/leases", "cluster/member/update"}
APART |= {"maintenance/status", "maintenance/hash", "maintenance/hashkv", "lease/keepalive"}
# 3.7 answers without auth enabled as well.
APART |= {"maintenance/downgrade"}


@pytest.mark.parametrize("path", sorted(set(PATHS) - APART))
def test_an_empty_request(pair, path):
    if path.startswith("cluster/"):
        pair.post("kv/put", {"key": b64("between")})  # etcd's raft loses a change that comes too early
    pair.post(path, {}, normal=_without_lease_id)


def _without_lease_id(value):
    if isinstance(value, dict) and "ID" in value:
        value = value | {"ID": "some"}
    return value


@pytest.mark.parametrize("path", ["kv/range", "kv/put", "watch", "lease/keepalive", "nothing", "", "kv", "kv/range/"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
def test_other_methods(pair, path, method):
    pair.alike(method, f"/v3/{path}")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nothing",
        "/v3alpha/kv/range",
        "/v3beta/kv/nothing",
        "/health/x",
        "/versions",
        "//health",
        "/v3//kv/range",
        "/v3/../health",
        "/./version?a=b",
        "/v3",
        "/v3?x=1",
        "/v3/kv%2frange",
        "/%68ealth",
        "/v3/kv/./range/",
    ],
)
def test_other_paths(pair, path):
    pair.alike("GET", path)
    pair.alike("POST", path, "{}")


def test_the_old_prefix(pair):
    pair.alike("POST", "/v3beta/kv/put", {"key": b64("beta"), "value": b64("x")})
    assert pair.alike("POST", "/v3beta/kv/range", {"key": b64("beta")})["count"] == "1"


def test_every_kind_of_value(pair):
    put = {"key": b64(bytes(range(256))), "value": b64(bytes(255 - i for i in range(256)))}
    pair.post("kv/put", put)
    for request in (
        {"key": put["key"]},
        {"key": put["key"], "keys_only": True},
        {"key": put["key"], "keysOnly": True, "rangeEnd": b64("\0")},
        {"key": b64("\0"), "range_end": b64("\0"), "count_only": True},
        {"key": b64("\0"), "range_end": b64("\0"), "limit": 1},
        {"key": b64("\0"), "range_end": b64("\0"), "limit": "1", "serializable": True},
        {"key": b64("\0"), "range_end": b64("\0"), "sort_order": "DESCEND", "sort_target": "MOD"},
        {"key": b64("\0"), "range_end": b64("\0"), "sort_order": 1, "sort_target": 2},
        {"key": put["key"], "unknown": [{}], "revision": "0", "limit": None},
        {"key": put["key"], "min_mod_revision": "1", "max_create_revision": "9223372036854775807"},
        {"key": put["key"], "revision": "-1"},
        {"key": put["key"], "revision": 1},
    ):
        pair.post("kv/range", request)


def test_transactions(pair):
    key, other = b64("txn"), b64("other")
    for request in (
        {"success": [{"request_put": {"key": key, "value": b64("1")}}]},
        {
            "compare": [{"key": key, "target": "VALUE", "value": b64("1")}],
            "success": [{"requestRange": {"key": key}}, {"request_put": {"key": key, "value": b64("2")}}],
            "failure": [{"request_delete_range": {"key": key}}],
        },
        {
            "compare": [
                {"key": key, "target": "VERSION", "result": "GREATER", "version": "1"},
                {"key": key, "target": "MOD", "result": "NOT_EQUAL", "mod_revision": 1},
                {"key": key, "target": "CREATE", "result": 2, "createRevision": "999999"},
                {"key": other, "target": "LEASE", "lease": "0"},
            ],
            "success": [
                {
                    "request_txn": {
                        "compare": [{"key": other, "result": "EQUAL", "target": "CREATE", "create_revision": 0}],
                        "success": [{"request_put": {"key": other, "value": b64("n"), "prev_kv": True}}],
                        "failure": [{"request_delete_range": {"key": other, "prev_kv": True}}],
                    }
                }
            ],
        },
        {"failure": [{"request_range": {"key": key}}]},
        {"success": [{"request_put": {"key": key}}, {"request_put": {"key": key}}]},
        {"success": [{}]},
        {"success": [{"request_delete_range": {"key": key, "prevKv": True}}]},
        {"compare": [{"key": key, "range_end": b64("z"), "target": "VERSION", "version": 1}]},
    ):
        pair.post("kv/txn", request)


def test_leases(pair):
    for web in (pair.left, pair.right):
        for lease in web.post("/v3/lease/leases", {}).json.get("leases", ()):
            web.post("/v3/lease/revoke", lease)
    pair.post("lease/grant", {"TTL": "100", "ID": "77"})
    pair.post("lease/grant", {"TTL": 100, "ID": 77})
    pair.post("kv/put", {"key": b64("leased"), "lease": "77"})
    for prefix in ("", "kv/"):
        pair.post(f"{prefix}lease/timetolive", {"ID": 77, "keys": True}, normal=_without_ttl)
        pair.post(f"{prefix}lease/timetolive", {"ID": "5"})
        pair.post(f"{prefix}lease/leases", {})
    pair.post("kv/lease/revoke", {"ID": "77"})
    pair.post("lease/revoke", {"ID": "77"})
    pair.post("kv/put", {"key": b64("leased"), "lease": 77})
    pair.post("lease/grant", {"TTL": "9000000001"})


def _without_ttl(value):
    return {name: item for name, item in value.items() if name != "TTL"}


def test_locks_and_elections(pair):
    pair.post("lease/grant", {"TTL": "100", "ID": "88"})
    lock = pair.post("lock/lock", {"name": b64("lock"), "lease": "88"})
    pair.post("lock/unlock", {"key": lock["key"]})
    leader = pair.post("election/campaign", {"name": b64("e"), "lease": 88, "value": b64("v")})["leader"]
    pair.post("election/proclaim", {"leader": leader, "value": b64("w")})
    pair.post("election/leader", {"name": b64("e")})
    pair.post("election/resign", {"leader": leader})
    pair.post("election/leader", {"name": b64("e")})
    pair.post("lease/revoke", {"ID": 88})


def test_members_and_maintenance(pair):
    pair.post("cluster/member/list", {"linearizable": True}, normal=_without_ports)
    pair.post("cluster/member/list", {}, normal=_without_ports)
    for path, request in (
        ("remove", {"ID": "1"}),
        ("add", {"peerURLs": ["nonsense"]}),
        ("update", {"ID": 1, "peerURLs": ["http://127.0.0.1:1"]}),
        ("promote", {"ID": 1}),
    ):
        pair.post("kv/put", {"key": b64("between")})  # etcd's raft loses a change that comes too early
        pair.post(f"cluster/member/{path}", request)
    pair.post("maintenance/alarm", {"action": "GET"})
    pair.post("maintenance/alarm", {"action": "GET", "alarm": "NOSPACE"})
    pair.post("maintenance/transfer-leadership", {"targetID": "1"})
    left, right = pair.both("POST", "/v3/maintenance/status", "{}")
    assert set(left.json) <= set(right.json)
    assert left.json["header"]["cluster_id"] == right.json["header"]["cluster_id"]
    # 3.5.1 has no route for HashKV.
    found = pair.right.post("/v3/maintenance/hashkv", {"revision": 0}).json
    assert type(found["hash"]) is int and found["hash_revision"] == found["header"]["revision"]


def _without_ports(value):
    for member in value["members"]:
        member["clientURLs"] = len(member["clientURLs"])
    return value


def test_compaction(pair):
    revision = pair.post("kv/put", {"key": b64("c"), "value": b64("1")})["header"]["revision"]
    pair.post("kv/compaction", {"revision": revision, "physical": True})
    pair.post("kv/compaction", {"revision": revision})
    pair.post("kv/compaction", {"revision": "100000"})
    pair.post("kv/range", {"key": b64("c"), "revision": "1"})


def test_auth_calls(pair):
    pair.post("auth/enable", {})
    pair.post("auth/disable", {})
    pair.post("auth/status", {})
    pair.post("auth/user/add", {"name": "u<1>&", "password": "pw"})
    pair.post("auth/user/add", {"name": "u<1>&", "password": "pw"})
    pair.post("auth/role/add", {"name": "r"})
    perm = {"permType": "READWRITE", "key": b64("a"), "range_end": b64("b")}
    pair.post("auth/role/grant", {"name": "r", "perm": perm})
    pair.post("auth/role/get", {"role": "r"})
    pair.post("auth/user/grant", {"user": "u<1>&", "role": "r"})
    pair.post("auth/user/get", {"name": "u<1>&"})
    pair.post("auth/user/list", {})
    pair.post("auth/role/list", {})
    pair.post("auth/authenticate", {"name": "u<1>&", "password": "pw"})
    pair.post("auth/user/revoke", {"name": "u<1>&", "role": "r"})
    pair.post("auth/role/revoke", {"role": "r", "key": b64("a"), "range_end": b64("b")})
    pair.post("auth/user/delete", {"name": "u<1>&"})
    pair.post("auth/user/delete", {"name": "u<1>&"})
    pair.post("auth/role/delete", {"role": "r"})


def test_random_calls(pair):
    rng = random.Random(20261127)
    keys = [b64(f"key{i}") for i in range(6)]

    def op():
        kind = rng.randrange(3)
        key = rng.choice(keys)
        if kind == 0:
            return {"request_range": {"key": key, "range_end": b64("z") if rng.random() < 0.5 else ""}}
        if kind == 1:
            return {"request_put": {"key": key, "value": b64(rng.randbytes(rng.randrange(40))), "prev_kv": True}}
        return {"request_delete_range": {"key": key, "prev_kv": rng.random() < 0.5}}

    for _ in range(150):
        kind = rng.randrange(5)
        if kind == 0:
            pair.post("kv/put", {"key": rng.choice(keys), "value": b64(rng.randbytes(8)), "prev_kv": True})
        elif kind == 1:
            pair.post("kv/deleterange", {"key": rng.choice(keys), "prevKv": True})
        elif kind == 2:
            target, field, value = rng.choice(
                [("VERSION", "version", "1"), ("MOD", "mod_revision", 5), ("VALUE", "value", "AAA=")]
            )
            compare = {"key": rng.choice(keys), "target": target, "result": rng.randrange(4), field: value}
            pair.post(
                "kv/txn",
                {"compare": [compare], "success": [op() for _ in range(rng.randrange(3))], "failure": [op()]},
            )
        else:
            pair.post(
                "kv/range",
                {
                    "key": rng.choice(keys),
                    "range_end": b64("z"),
                    "limit": rng.randrange(4),
                    "sort_order": rng.choice(["NONE", "ASCEND", "DESCEND"]),
                    "sort_target": rng.choice(["KEY", 0]),  # ties of others have no order in etcd
                    "keys_only": False,
                    "count_only": rng.random() < 0.1,
                },
            )
