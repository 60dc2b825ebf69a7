"""Counters move as etcd's do under the same calls; gauges show what is so."""

from __future__ import annotations

import pytest

from tests.harness import pb
from tests.harness.rpc import KEEP_ALIVE, Method
from tests.harness.servers import EtcdfastServer, EtcdServer
from tests.harness.streams import Stream
from tests.harness.wait import wait_until
from tests.metrics.page import scrape

WATCH = Method("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse)
# Compared after the same calls: name and labels that pick the series.
SAME = (
    "etcd_mvcc_put_total",
    "etcd_mvcc_delete_total",
    "etcd_mvcc_range_total",
    "etcd_mvcc_txn_total",
    "etcd_debugging_mvcc_range_total",
    "etcd_debugging_mvcc_total_put_size_in_bytes",
    "etcd_debugging_mvcc_keys_total",
    "etcd_debugging_mvcc_current_revision",
    "etcd_debugging_mvcc_compact_revision",
    "etcd_debugging_mvcc_events_total",
    "etcd_debugging_mvcc_watch_stream_total",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_debugging_lease_granted_total",
    "etcd_debugging_lease_revoked_total",
    "etcd_debugging_lease_renewed_total",
    "etcd_debugging_lease_ttl_total_sum",
    "etcd_debugging_lease_ttl_total_count",
    "etcd_mvcc_hash_rev_duration_seconds_count",
    "etcd_mvcc_hash_duration_seconds_count",
    "etcd_network_client_grpc_received_bytes_total",
    "etcd_server_has_leader",
    "etcd_server_is_leader",
    "etcd_server_is_learner",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_proposals_failed_total",
    "etcd_server_quota_backend_bytes",
)
CALLS = ("grpc_server_started_total", "grpc_server_handled_total", "grpc_server_msg_received_total")
CALLS += ("grpc_server_msg_sent_total",)


def put_op(key, value=b"v", **more):
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, **more))


def range_op(key, end=b""):
    return pb.RequestOp(request_range=pb.RangeRequest(key=key, range_end=end))


def delete_op(key, end=b""):
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end))


def version_is(key, number):
    return pb.Compare(key=key, target=pb.Compare.VERSION, result=pb.Compare.EQUAL, version=number)


UNARY = [
    *(("Put", pb.PutRequest(key=b"k%d" % i, value=b"value" * i)) for i in range(6)),
    ("Put", pb.PutRequest(key=b"k1", value=b"again", prev_kv=True)),
    ("Put", pb.PutRequest(key=b"k1", ignore_value=True)),
    ("Put", pb.PutRequest(key=b"nothing", ignore_value=True)),
    ("Put", pb.PutRequest(key=b"k1", lease=77)),
    ("Put", pb.PutRequest()),
    ("Range", pb.RangeRequest(key=b"k1")),
    ("Range", pb.RangeRequest(key=b"k", range_end=b"l", serializable=True)),
    ("Range", pb.RangeRequest(key=b"k", revision=99)),
    ("DeleteRange", pb.DeleteRangeRequest(key=b"k0")),
    ("DeleteRange", pb.DeleteRangeRequest(key=b"k2", prev_kv=True)),
    ("DeleteRange", pb.DeleteRangeRequest(key=b"none")),
    ("Txn", pb.TxnRequest(success=[put_op(b"t1")])),
    ("Txn", pb.TxnRequest(success=[put_op(b"t1"), put_op(b"t2"), range_op(b"t1"), delete_op(b"t2")])),
    ("Txn", pb.TxnRequest(compare=[version_is(b"t1", 2)], success=[put_op(b"t3")], failure=[range_op(b"t1")])),
    ("Txn", pb.TxnRequest(compare=[version_is(b"t1", 2), version_is(b"k1", 9)], success=[], failure=[put_op(b"t4")])),
    ("Txn", pb.TxnRequest(compare=[version_is(b"t1", 2)], success=[range_op(b"t1"), range_op(b"a", b"z")])),
    ("Txn", pb.TxnRequest(success=[put_op(b"t1", ignore_value=True, value=b""), put_op(b"t5", prev_kv=True)])),
    ("LeaseGrant", pb.LeaseGrantRequest(ID=5, TTL=100)),
    ("LeaseGrant", pb.LeaseGrantRequest(ID=5, TTL=100)),
    ("LeaseGrant", pb.LeaseGrantRequest(ID=6, TTL=7)),
    ("Put", pb.PutRequest(key=b"l1", value=b"x", lease=5)),
    ("Put", pb.PutRequest(key=b"l2", value=b"x", lease=5)),
    ("LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=5, keys=True)),
    ("LeaseLeases", pb.LeaseLeasesRequest()),
    ("LeaseRevoke", pb.LeaseRevokeRequest(ID=5)),
    ("LeaseRevoke", pb.LeaseRevokeRequest(ID=5)),
    ("Compact", pb.CompactionRequest(revision=3, physical=True)),
    ("Compact", pb.CompactionRequest(revision=3)),
    ("Range", pb.RangeRequest(key=b"k", revision=2)),
    ("HashKV", pb.HashKVRequest()),
    ("Hash", pb.HashRequest()),
    ("MemberList", pb.MemberListRequest()),
]


def exercise(server):
    """The same calls to either server; returns the page before and after. Streams are open at the second look."""
    before = scrape(server.url)
    with server.client() as client:
        codes = [(method, client.call(method, request).code) for method, request in UNARY]
        with Stream(client.channel, WATCH, 30) as watch, Stream(client.channel, KEEP_ALIVE, 30) as renew:
            watch.send(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"w", range_end=b"x")))
            watch.receive()
            for _ in range(3):
                client.call("Put", pb.PutRequest(key=b"w", value=b"1"))
                watch.receive()
            for _ in range(2):
                renew.send(pb.LeaseKeepAliveRequest(ID=6))
                renew.receive()
            pages = []

            def settled():
                # Some of ours are published by housekeeping, every so often.
                pages.append(scrape(server.url))
                return pages[-1].value("etcd_debugging_mvcc_watcher_total") == 1 and (
                    pages[-1].value("etcd_debugging_lease_renewed_total") == 2
                    and pages[-1].value("etcd_debugging_mvcc_events_total") == 3
                )

            wait_until(settled, "the figures of watches and leases")
    return codes, before, pages[-1]


@pytest.fixture(scope="module")
def both():
    flags = ["--metrics", "extensive"]
    with EtcdServer(flags=flags) as etcd, EtcdfastServer(flags=[*flags, "--frontends", "1"]) as ours:
        theirs, mine = exercise(etcd), exercise(ours)
        assert theirs[0] == mine[0]
        yield theirs[1:], mine[1:]


@pytest.mark.parametrize("name", SAME)
def test_a_figure_moves_as_etcds(name, both):
    (before, after), (own_before, own_after) = both
    gauges = ("etcd_server_", "etcd_debugging_mvcc_current", "etcd_debugging_mvcc_compact_revision")
    if name.startswith(gauges):
        assert own_after.value(name) == after.value(name)
    else:
        assert own_after.value(name) - own_before.value(name) == after.value(name) - before.value(name)


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_counted_as_by_etcd(name, both):
    (before, after), (own_before, own_after) = both

    def moved(first, then):
        return {
            labels: value - first.samples.get((its, labels), 0.0)
            for (its, labels), value in then.samples.items()
            if its == name and value != first.samples.get((its, labels), 0.0)
        }

    assert moved(own_before, own_after) == moved(before, after)


def test_histograms_add_up(both):
    page = both[1][1]
    counts = {(name, labels): value for (name, labels), value in page.samples.items() if name.endswith("_count")}
    assert counts
    for (name, labels), count in counts.items():
        bounds = {
            dict(its)["le"]: value
            for (bucket, its), value in page.samples.items()
            if bucket == name.removesuffix("_count") + "_bucket" and set(labels) <= set(its)
        }
        values = [bounds[bound] for bound in sorted(bounds, key=float)]
        assert values == sorted(values) and values[-1] == count, name
    commits = page.value("etcd_disk_backend_commit_duration_seconds_count")
    assert commits >= page.value("etcd_mvcc_put_total") / 10
    syncs = page.value("etcd_disk_wal_fsync_duration_seconds_count")
    assert syncs == page.value("etcdfast_wal_sync_entries_count")
    assert page.value("etcdfast_wal_sync_entries_sum") >= page.value("etcd_server_proposals_committed_total") - 1


def test_our_own_figures(both):
    before, after = both[1]
    for stage in ("frontend", "consensus", "wal", "apply"):
        assert after.value("etcdfast_stage_duration_seconds_count", stage=stage) > before.value(
            "etcdfast_stage_duration_seconds_count", stage=stage
        )
    for process in ("supervisor", "consensus", "apply", "frontend0"):
        assert after.value("etcdfast_process_resident_memory_bytes", process=process) > 1 << 20
        assert after.value("etcdfast_process_cpu_seconds_total", process=process) > 0
    for ring in ("ca", "ac", "f0c", "f0a", "af0"):
        capacity = after.value("etcdfast_ring_capacity_bytes", ring=ring)
        assert 0 <= after.value("etcdfast_ring_used_bytes", ring=ring) <= capacity
    assert after.value("etcdfast_client_connections") >= 1
    assert after.value("process_cpu_seconds_total") >= before.value("process_cpu_seconds_total") > 0
    one = max(
        after.value("etcdfast_process_resident_memory_bytes", process=name)
        for name in ("supervisor", "consensus", "apply", "frontend0")
    )
    assert one < after.value("process_resident_memory_bytes")
    assert 0 < after.value("os_fd_used") < after.value("os_fd_limit")
    assert after.value("etcd_server_client_requests_total", type="stream", client_api_version="unknown") == 2
    assert after.total("promhttp_metric_handler_requests_total", code="200") >= 1


def test_times_of_requests_by_kind(both):
    after = both[1][1]
    puts = after.value("etcd_server_request_duration_seconds_count", type="Put", success="true")
    assert puts == after.value(
        "grpc_server_handled_total", grpc_method="Put", grpc_code="OK", grpc_service="etcdserverpb.KV"
    )
    assert after.value("etcd_server_apply_duration_seconds_count", version="v3", op="Put", success="false") == 2
    assert after.value("etcd_server_range_duration_seconds_count", success="false") == 2
