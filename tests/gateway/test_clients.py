"""The requests of programs that live on the gateway, in their own shapes (reference/anchors.md 6b)."""

from __future__ import annotations

import json

from tests.gateway.web import Stream, b64


def test_patroni(pair):
    """GET /version for the API's path, a lease, leader and members as transactions, a watch on a prefix."""
    for web in (pair.left, pair.right):
        assert tuple(map(int, web.get("/version").json["etcdserver"].split(".")))[:2] >= (3, 4)
    for web in (pair.left, pair.right):
        lease = web.post("/v3/lease/grant", {"TTL": 30}).json
        assert set(lease) == {"header", "ID", "TTL"} and lease["TTL"] == "30"
        put = {"key": b64("/service/demo/leader"), "value": b64("pg0"), "lease": lease["ID"]}
        compare = {"key": put["key"], "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
        txn = {"compare": [compare], "success": [{"request_put": put}], "failure": []}
        assert web.post("/v3/kv/txn", txn).json["succeeded"] is True
        assert "succeeded" not in web.post("/v3/kv/txn", txn).json
        held = {"key": put["key"], "target": "VALUE", "result": "EQUAL", "value": put["value"]}
        nested = {
            "compare": [held],
            "success": [{"request_put": put}],
            "failure": [{"request_txn": {"compare": [compare], "success": [{"request_put": put}]}}],
        }
        assert web.post("/v3/kv/txn", nested).json["succeeded"] is True
        alive = web.post("/v3/lease/keepalive", {"ID": lease["ID"]})
        assert alive.json["result"]["TTL"] == "30"
        cluster = web.post("/v3/kv/range", {"key": b64("/service/demo/"), "range_end": b64("/service/demo0")}).json
        assert [entry["lease"] for entry in cluster["kvs"]] == [lease["ID"]]
        revision = str(int(cluster["header"]["revision"]) + 1)
        watch = {"create_request": {"key": b64("/service/demo/"), "range_end": b64("/service/demo0")}}
        watch["create_request"] |= {"start_revision": revision, "filters": []}
        with Stream(web, "/v3/watch", watch) as stream:
            assert stream.line()["result"]["created"] is True
            web.post("/v3/kv/put", {"key": b64("/service/demo/members/pg1"), "value": b64("{}")})
            assert len(stream.line()["result"]["events"]) == 1
        delete = {"request_delete_range": {"key": put["key"]}}
        assert web.post("/v3/kv/txn", {"compare": [held], "success": [delete]}).json["succeeded"] is True
        members = web.post("/v3/cluster/member/list", {}).json["members"]
        assert members[0]["clientURLs"]
        assert web.post("/v3/lease/revoke", {"ID": lease["ID"]}).status == 200


def test_etcd3_py(pair):
    """It sends everything as strings where the API's description says so, with all fields."""
    pair.post("kv/put", {"key": b64("e3"), "value": b64("v"), "lease": 0, "prev_kv": False, "ignore_value": False})
    pair.post(
        "kv/range",
        {
            "key": b64("e3"),
            "range_end": b64("e4"),
            "limit": 0,
            "revision": 0,
            "serializable": False,
            "keys_only": False,
            "count_only": False,
            "min_mod_revision": 0,
            "max_mod_revision": 0,
            "min_create_revision": 0,
            "max_create_revision": 0,
            "sort_target": "KEY",
            "sort_order": "NONE",
        },
    )
    pair.post("kv/deleterange", {"key": b64("e3"), "range_end": b64("e4"), "prev_kv": True})


def test_lua_resty_etcd(pair):
    """APISIX: aliases below /v3/kv/lease/, a watch whose connection is given up after a while."""
    for web in (pair.left, pair.right):
        grant = web.post("/v3/lease/grant", json.dumps({"TTL": 60, "ID": "0"})).json
        assert web.post("/v3/kv/lease/timetolive", {"ID": grant["ID"], "keys": True}).json["grantedTTL"] == "60"
        leases = web.post("/v3/kv/lease/leases", {}).json["leases"]
        assert {"ID": grant["ID"]} in leases
        assert web.post("/v3/kv/lease/revoke", {"ID": grant["ID"]}).status == 200
