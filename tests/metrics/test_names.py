"""Every metric of a real etcd 3.5.1 is here too: same name, type and labels; and what dashboards and alerts ask for."""

from __future__ import annotations

import re

import pytest

from tests.harness.cluster import Cluster
from tests.harness.servers import EtcdfastServer, EtcdServer
from tests.harness.wait import wait_until
from tests.metrics.page import Page, get, parse, scrape

# Families of etcd that are not here, and why.
ABSENT = {
    "go_": "figures of Go's runtime: there is none",
}
# Labels that say something about the server rather than about what is counted.
ABOUT_THE_SERVER = ("server_version", "server_go_version", "cluster_version", "server_id")
ABOUT_THE_SERVER += ("Local", "Remote", "To", "From")
# Series that etcd alone has, and why.
ALONE = {
    "etcd_server_apply_duration_seconds": "its first entries are requests of API v2, ours are of v3",
}
# What the rules and panels of etcd's mixin (contrib/mixin) ask for: metric and the labels they name.
ALERTS = {
    "etcdMembersDown": [("etcd_network_peer_sent_failures_total", {"To"})],
    "etcdNoLeader": [("etcd_server_has_leader", set())],
    "etcdHighNumberOfLeaderChanges": [("etcd_server_leader_changes_seen_total", set())],
    "etcdHighNumberOfFailedGRPCRequests": [
        ("grpc_server_handled_total", {"grpc_code", "grpc_type", "grpc_service", "grpc_method"})
    ],
    "etcdGRPCRequestsSlow": [("grpc_server_handling_seconds_bucket", {"grpc_method", "grpc_type", "le"})],
    "etcdMemberCommunicationSlow": [("etcd_network_peer_round_trip_time_seconds_bucket", {"To", "le"})],
    "etcdHighNumberOfFailedProposals": [("etcd_server_proposals_failed_total", set())],
    "etcdHighFsyncDurations": [("etcd_disk_wal_fsync_duration_seconds_bucket", {"le"})],
    "etcdHighCommitDurations": [("etcd_disk_backend_commit_duration_seconds_bucket", {"le"})],
    "etcdDatabaseQuotaLowSpace": [
        ("etcd_mvcc_db_total_size_in_bytes", set()),
        ("etcd_server_quota_backend_bytes", set()),
    ],
    "etcdDatabaseHighFragmentationRatio": [("etcd_mvcc_db_total_size_in_use_in_bytes", set())],
}
PANELS = {
    "up": ("etcd_server_has_leader", set()),
    "RPC rate": ("grpc_server_started_total", {"grpc_type", "grpc_service", "grpc_method"}),
    "RPC failed rate": ("grpc_server_handled_total", {"grpc_type", "grpc_code"}),
    "DB size": ("etcd_mvcc_db_total_size_in_bytes", set()),
    "WAL fsync": ("etcd_disk_wal_fsync_duration_seconds_bucket", {"le"}),
    "DB fsync": ("etcd_disk_backend_commit_duration_seconds_bucket", {"le"}),
    "memory": ("process_resident_memory_bytes", set()),
    "client traffic in": ("etcd_network_client_grpc_received_bytes_total", set()),
    "client traffic out": ("etcd_network_client_grpc_sent_bytes_total", set()),
    "peer traffic in": ("etcd_network_peer_received_bytes_total", {"From"}),
    "peer traffic out": ("etcd_network_peer_sent_bytes_total", {"To"}),
    "leader elections": ("etcd_server_leader_changes_seen_total", set()),
    "peer round trip": ("etcd_network_peer_round_trip_time_seconds_bucket", {"To", "le"}),
    "proposals failed": ("etcd_server_proposals_failed_total", set()),
    "proposals pending": ("etcd_server_proposals_pending", set()),
    "proposals committed": ("etcd_server_proposals_committed_total", set()),
    "proposals applied": ("etcd_server_proposals_applied_total", set()),
}


def labels_of(page: Page) -> dict[str, set[tuple[tuple[str, str], ...]]]:
    found: dict[str, set[tuple[tuple[str, str], ...]]] = {}
    for name, labels in page.samples:
        kept = tuple((label, "" if label in ABOUT_THE_SERVER else value) for label, value in labels)
        found.setdefault(name, set()).add(kept)
    return found


def family_of(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


@pytest.fixture(scope="module")
def pages():
    """Of one member each, with --metrics extensive."""
    with EtcdServer(flags=["--metrics", "extensive"]) as etcd, EtcdfastServer(flags=["--metrics", "extensive"]) as ours:
        yield scrape(etcd.url), scrape(ours.url)


@pytest.fixture(scope="module")
def members():
    """Of the leader of three members each, after a round of probes."""
    shown = {}
    for kind in ("etcd", "etcdfast"):
        with Cluster([kind] * 3) as cluster:
            leader = cluster.leader()

            def probed(leader=leader, kind=kind):
                shown[kind] = scrape(leader.url)
                name = "etcd_network_peer_round_trip_time_seconds_count"
                counts = [value for (its, _), value in shown[kind].samples.items() if its == name]
                return len(counts) == 2 and all(counts)

            wait_until(probed, f"probes between members of {kind}")
    return shown["etcd"], shown["etcdfast"]


def compare(theirs: Page, ours: Page) -> None:
    there = {name for name in theirs.types if not name.startswith(tuple(ABSENT))}
    assert there - set(ours.types) == set()
    assert {name: ours.types[name] for name in there} == {name: theirs.types[name] for name in there}
    here = labels_of(ours)
    for name, labels in labels_of(theirs).items():
        if name.startswith(tuple(ABSENT)) or family_of(name) in ALONE:
            continue
        assert labels - here.get(name, set()) == set(), name


def test_every_metric_of_etcd_is_here_with_its_type_and_labels(pages):
    compare(*pages)


def test_so_are_those_about_other_members(members):
    compare(*members)


def test_exceptions_are_still_needed(pages):
    theirs, ours = pages
    for prefix in ABSENT:
        assert any(name.startswith(prefix) for name in set(theirs.types) - set(ours.types)), prefix
    for name in ALONE:
        assert name in theirs.types


@pytest.mark.parametrize("rule", ALERTS)
def test_an_alert_finds_its_metrics(rule, members, pages):
    found = labels_of(members[1]) | labels_of(pages[1])
    for name, labels in ALERTS[rule]:
        assert name in found, name
        assert all(labels <= {label for label, _ in series} for series in found[name])


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_finds_its_metric(panel, members):
    name, labels = PANELS[panel]
    found = labels_of(members[1])
    assert name in found
    assert all(labels <= {label for label, _ in series} for series in found[name])


def test_times_of_calls_are_shown_only_when_asked_for(members):
    assert not any(name.startswith("grpc_server_handling_seconds") for name in members[1].types)


def test_the_page_in_plain_and_packed(pages):
    with EtcdfastServer() as server:
        status, headers, body = get(server.url, "/metrics")
        assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert "Content-Encoding" not in headers
        plain = parse(body.decode())
        assert plain.types.keys() == scrape(server.url).types.keys()
        # Every family has a text and a type, in that order, and is there once.
        lines = body.decode().splitlines()
        helps = [line.split()[2] for line in lines if line.startswith("# HELP")]
        assert helps == sorted(set(helps)) == [line.split()[2] for line in lines if line.startswith("# TYPE")]
