"""The loads of the comparison: what is prepared, what is measured, which bar the figures meet.

Key-value loads are here, watches and leases in files of their own. `scenario` says what a scenario is.
"""

from __future__ import annotations

import sys

import cluster_scenarios
import http_scenarios
import lease_scenarios
import security_scenarios
import snapshot_scenarios
import watch_scenarios
from members import Member, MemberError, Memory, PeakMemory
from scenario import MB, Bar, Scenario, Size, bench, faster, loaded

PUT = ("put", "--key-size", "8", "--val-size", "256", "--key-space-size", "100000")
TXN_PUT = ("txn-put", "--key-size", "8", "--val-size", "256", "--key-space-size", "100000")
READ_KEY = "range-key"


def _put(conns: int, clients: int):
    return lambda member, size: loaded(member, size, conns, clients, *PUT)


def _txn_put(member: Member, size: Size) -> dict:
    return loaded(member, size, 100, 1000, *TXN_PUT)


def _range(conns: int, clients: int, consistency: str):
    def run(member: Member, size: Size) -> dict:
        bench(member, "--conns", "10", "--clients", "100", *PUT, "--sequential-keys", "--total", str(size.preload))
        bench(member, "put", "--prefix", READ_KEY, "--key-size", "1", "--val-size", "256", "--total", "1")
        return loaded(member, size, conns, clients, "range", "--consistency", consistency, READ_KEY, "--prefix")

    return run


def _load_keys(member: Member, count: int, key_bytes: int, value_bytes: int) -> dict:
    report = bench(
        member, "--conns", "100", "--clients", "1000", "put", "--sequential-keys",
        "--key-size", str(key_bytes), "--val-size", str(value_bytes),
        "--key-space-size", str(count), "--total", str(count),
    )  # fmt: skip
    if report["requests"] != count:
        raise MemberError(f"{member.kind}: {report['requests']} of {count} keys loaded: {report['errors']}")
    return report


def _read_all(member: Member, rest: Memory, stream: bool, limit: int = 0) -> dict:
    """One client reads every key (or the first `limit`) in one call; memory beyond that at rest, at its peak."""
    flags = (["--stream"] if stream else []) + (["--limit", str(limit)] if limit else [])
    with PeakMemory(member) as peak:
        report = bench(member, "range", "--total", "1", "--prefix", "", *flags)
    if report["requests"] != 1:
        raise MemberError(f"{member.kind}: reading all keys failed: {report['errors']}")
    return {
        "read_extra_pss_mb": max(peak.pss - rest.pss, 0) / MB,
        "read_extra_rss_mb": max(peak.rss - rest.rss, 0) / MB,
        "read_seconds": report["seconds"],
        "read_mb": report["response_bytes"] / MB,
    }


def _memory(member: Member, size: Size) -> dict:
    loaded = _load_keys(member, size.keys, 32, 256)
    rest = member.settled_memory()
    figures = {
        "load_per_second": loaded["requests_per_second"],
        "loaded_pss_mb": rest.pss / MB,
        "loaded_rss_mb": rest.rss / MB,
        "loaded_anonymous_mb": rest.anonymous / MB,
        "errors": 0,
        "requests": size.keys,
    }
    try:
        figures |= _read_all(member, rest, stream=False)
    except MemberError as e:
        # a read that fails is a figure that is missing; the others still count
        print(f"memory: {e}", file=sys.stderr)
        figures["errors"] = 1
    figures["after_read_pss_mb"] = member.settled_memory(5.0).pss / MB
    member.kill9()
    figures["restart_seconds"] = member.start()
    figures["restarted_pss_mb"] = member.settled_memory(5.0).pss / MB
    return figures


def _rangestream(member: Member, size: Size) -> dict:
    _load_keys(member, size.stream_keys, 16, 100)
    rest = member.settled_memory()
    stream = member.kind == "etcdfast" and size.stream
    # A tenth of the range fills caches and rings, which have a size of their own; what the other nine tenths
    # add is what grows with the range.
    part = _read_all(member, rest, stream, size.stream_keys // 10)
    figures = {"loaded_pss_mb": rest.pss / MB} | _read_all(member, rest, stream)
    figures["part_extra_pss_mb"] = part["read_extra_pss_mb"]
    figures["growth_pss_mb"] = figures["read_extra_pss_mb"] - part["read_extra_pss_mb"]
    return figures


SCENARIOS = [
    Scenario(
        "put",
        "put, 100 connections, 1000 clients, 8 B keys, 256 B values",
        _put(100, 1000),
        [
            faster(3),
            Bar("requests_per_second", 10_000, at_least=True),
            Bar("p99_ms", 0.5, ratio=True),
            Bar("cpu_us", 12),
            Bar("cpu_us", 1 / 3.5, ratio=True),
        ],
    ),
    Scenario("range-l", "range of one key, linearizable, 1000 clients", _range(100, 1000, "l"), [faster(3)]),
    Scenario("range-s", "range of one key, serializable, 1000 clients", _range(100, 1000, "s"), [faster(3)]),
    Scenario("txn-put", "transaction with one put, 1000 clients", _txn_put, [faster(2.5)]),
    Scenario(
        "put-1",
        "put, one client, one connection",
        _put(1, 1),
        [Bar("p50_ms", 1, ratio=True), Bar("mean_ms", 1, ratio=True)],
    ),
    Scenario(
        "range-1",
        "range of one key, linearizable, one client",
        _range(1, 1, "l"),
        [Bar("p50_ms", 1, ratio=True), Bar("mean_ms", 1, ratio=True)],
    ),
    Scenario(
        "put-16k",
        "put, 1000 connections, 16,000 clients",
        _put(1000, 16_000),
        [
            Bar(
                "requests_per_second",
                0.8,
                at_least=True,
                of_scenario="put",
                text="requests_per_second >= 0.8 x its own put",
            )
        ],
    ),
    Scenario(
        "memory-1m",
        "1,000,000 keys (32 B, values 256 B): memory, one read of all, start after kill -9",
        _memory,
        [
            Bar("loaded_pss_mb", 400),
            Bar("read_extra_pss_mb", 250),
            Bar("restart_seconds", 0.5, ratio=True),
        ],
        shown=(
            "load_per_second",
            "loaded_pss_mb",
            "loaded_rss_mb",
            "read_extra_pss_mb",
            "read_extra_rss_mb",
            "read_seconds",
            "restart_seconds",
        ),
        heavy=True,
    ),
    Scenario(
        "rangestream",
        "500,000 x 100 B in one call: RangeStream on etcdfast, Range on etcd 3.5.1",
        _rangestream,
        [Bar("growth_pss_mb", 6, text="growth_pss_mb <= 6, a tenth of the answer (does not grow with the range)")],
        shown=("loaded_pss_mb", "part_extra_pss_mb", "read_extra_pss_mb", "growth_pss_mb", "read_seconds", "read_mb"),
        heavy=True,
    ),
    *watch_scenarios.SCENARIOS,
    *lease_scenarios.SCENARIOS,
    *cluster_scenarios.SCENARIOS,
    *snapshot_scenarios.SCENARIOS,
    *security_scenarios.SCENARIOS,
    *http_scenarios.SCENARIOS,
]
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
