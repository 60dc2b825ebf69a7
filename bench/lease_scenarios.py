"""Lease loads: renewals, a million leases, many that end at once."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from members import Member, MemberError
from scenario import MB, Bar, Scenario, Size, bench, faster, figures_of, length_of
from watch_scenarios import steady

GONE_SECONDS_MAX = 20.0
TTL_LONG = "36000"
TTL_TOGETHER_MAX = 120
PREFIX = "lease/"
ETCD_SHARE = 10


def _renewals(member: Member, size: Size, *more: str) -> dict:
    clients = min(1000, size.clients_max)
    spread = ["--conns", str(min(100, clients)), "--clients", str(clients), "lease-keepalive", *more]
    if size.warm_seconds:
        bench(member, *spread, "--duration", f"{size.warm_seconds:g}s")
    before = member.cpu_seconds()
    report = bench(member, *spread, *length_of(size))
    cpu = member.cpu_seconds().since(before)
    return figures_of(report) | {"cpu_us": cpu / max(report["requests"], 1) * 1e6}


def _keepalive(member: Member, size: Size) -> dict:
    """As etcd's tool, a stream for each renewal; then one stream for all, as client libraries do."""
    figures = _renewals(member, size)
    one = _renewals(member, size, "--one-stream")
    figures |= {f"one_stream_{name}": one[name] for name in ("requests_per_second", "p99_ms", "cpu_us")}
    figures["errors"] += one["errors"]
    return figures


def _grant(member: Member, size: Size, count: int, *more: str) -> dict:
    clients = min(1000, size.clients_max)
    report = bench(
        member, "--conns", str(min(100, clients)), "--clients", str(clients), "lease-grant", "--total", str(count),
        *more,
    )  # fmt: skip
    if report["requests"] != count or report.get("attached", report)["requests"] != count:
        raise MemberError(f"{member.kind}: {report['requests']} of {count} leases granted: {report['errors']}")
    return report


def _million(member: Member, size: Size) -> dict:
    if member.kind == "etcd":
        # it grants a million in minutes and ends 1000 a second at most; no bar compares with it here
        size = replace(size, leases=size.leases // ETCD_SHARE, expiring=size.expiring // ETCD_SHARE)
    without = steady(member, size)
    rest = member.settled_memory(size.settle_seconds)
    granted = _grant(member, size, size.leases, "--ttl", TTL_LONG)
    loaded = member.settled_memory(size.settle_seconds)
    having = steady(member, size)
    figures = {
        "grants_per_second": granted["requests_per_second"],
        "lease_pss_bytes": (loaded.pss - rest.pss) / size.leases,
        "without_p99_ms": without["p99_ms"],
        "with_p99_ms": having["p99_ms"],
        "p99_ratio": having["p99_ms"] / without["p99_ms"],
        "loaded_pss_mb": loaded.pss / MB,
        "requests": size.leases,
        "errors": 0,
    }
    # granting and attaching must be over before the first of them ends
    ttl = min(math.ceil(3 * size.expiring / granted["requests_per_second"]) + size.ttl_spare_seconds, TTL_TOGETHER_MAX)
    return figures | _expiry(member, size, ttl)


def _expiry(member: Member, size: Size, ttl: int) -> dict:
    """Leases with a key each that end within the same second; their time is the end of that second."""
    report = _grant(
        member, size, size.expiring, "--attach-keys", "--expire-together", "--ttl", str(ttl), "--prefix", PREFIX
    )
    begin = report["expire_at_ns"] / 1e9
    if time.monotonic() > begin - 0.2:
        raise MemberError(f"{member.kind}: attaching {size.expiring} keys took longer than {ttl} s")
    time.sleep(begin - 0.1 - time.monotonic())
    if member.count(PREFIX) != size.expiring:
        raise MemberError(f"{member.kind}: leases ended before their time")
    end = begin + 1
    before = member.cpu_seconds()
    while True:
        left = member.count(PREFIX)
        seconds = time.monotonic() - end
        if left == 0 or seconds > GONE_SECONDS_MAX:
            break
        time.sleep(0.1)
    gone = size.expiring - left
    figures = {
        "gone_per_second": gone / max(seconds + 1, 0.1),
        "expiry_cpu_us": member.cpu_seconds().since(before) / max(gone, 1) * 1e6,
        "left_after_20s": left,
    }
    return figures | ({"gone_seconds": max(seconds, 0.0)} if left == 0 else {})


SCENARIOS = [
    Scenario(
        "lease-keepalive",
        "renewals, 100 connections, 1000 clients: a stream each time; one stream for all",
        _keepalive,
        [faster(3), faster(3, "one_stream_requests_per_second")],
        shown=(
            "requests_per_second",
            "p50_ms",
            "p99_ms",
            "cpu_us",
            "client_cpu_us",
            "one_stream_requests_per_second",
            "one_stream_p99_ms",
            "one_stream_cpu_us",
        ),
    ),
    Scenario(
        "leases-1m",
        "1,000,000 leases and 5000 puts/s beside them; then 100,000 with a key each end together (etcd: a tenth)",
        _million,
        [
            Bar("lease_pss_bytes", 200),
            Bar("p99_ratio", 1.25, text="p99_ratio <= 1.25 (puts with the leases / without)"),
            Bar("left_after_20s", 0),
            Bar("gone_seconds", 10),
        ],
        shown=(
            "grants_per_second",
            "lease_pss_bytes",
            "without_p99_ms",
            "with_p99_ms",
            "p99_ratio",
            "gone_seconds",
            "gone_per_second",
            "left_after_20s",
            "expiry_cpu_us",
        ),
        heavy=True,
    ),
]
