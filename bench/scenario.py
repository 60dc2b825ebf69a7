"""What a scenario is, and the measured load that most of them are made of.

A scenario takes a started member with an empty data directory and returns figures by name. Units
are the last word of a name: per_second, ms, us, mb (10^6 bytes), seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from members import REPOSITORY, Member, MemberError

MB = 1e6
LOAD_SECONDS_MAX = 1800


@dataclass(frozen=True)
class Size:
    """How long or how much a run is. `total` 0: run for `seconds`."""

    seconds: float = 5.0
    warm_seconds: float = 1.0
    total: int = 0
    keys: int = 1_000_000
    stream_keys: int = 500_000
    preload: int = 10_000
    clients_max: int = 1 << 20
    puts_per_second: int = 600
    streams: int = 100
    watchers_each: int = 100
    many_watchers: int = 100_000
    pending_events: int = 1_000_000
    leases: int = 1_000_000
    expiring: int = 100_000
    missed_puts: int = 1_000_000
    settle_seconds: float = 10.0
    ttl_spare_seconds: int = 4
    # the side that plays etcdfast may be an etcd in a self-test, and etcd 3.5 has no RangeStream
    stream: bool = True


@dataclass(frozen=True)
class Bar:
    """A figure etcdfast is to reach. `ratio`: against etcd in the same pair, else the figure itself."""

    figure: str
    limit: float
    at_least: bool = False
    ratio: bool = False
    of_scenario: str = ""
    text: str = ""

    def describe(self) -> str:
        return (
            self.text
            or f"{self.figure} {'>=' if self.at_least else '<='} {self.limit:g}{' x etcd' if self.ratio else ''}"
        )


@dataclass(frozen=True)
class Scenario:
    name: str
    what: str
    run: Callable[[Member, Size], dict]
    bars: list[Bar] = field(default_factory=list)
    # figures shown in the table, in this order
    shown: tuple[str, ...] = ("requests_per_second", "p50_ms", "p99_ms", "cpu_us", "client_cpu_us", "pss_mb", "rss_mb")
    heavy: bool = False
    # three members (cluster.Cluster) in place of one
    cluster: bool = False
    member: type[Member] = Member


def bench(member: Member, *args: str) -> dict:
    """Run etcdfast-bench against the member; returns its JSON report. Errors: MemberError."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, "-m", "etcdfast.bench", "--endpoints", member.endpoint, "--no-progress"]
        command += member.bench_flags
        command += ["--report-json", out.name, *args]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LOAD_SECONDS_MAX)
        raw = Path(out.name).read_text()
    if done.returncode != 0 or not raw:
        lines = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()
        raise MemberError(f"load on {member.kind} failed: {lines[-1]}")
    return json.loads(raw)


def length_of(size: Size) -> list[str]:
    """Flags that end a measured load."""
    return ["--total", str(size.total)] if size.total else ["--duration", f"{size.seconds:g}s"]


def figures_of(report: dict) -> dict:
    latency = report["latency"]["all"]
    requests = max(report["requests"], 1)
    return {
        "requests_per_second": report["requests_per_second"],
        "p50_ms": latency.get("p50_ms", 0.0),
        "p99_ms": latency.get("p99_ms", 0.0),
        "mean_ms": latency.get("mean_ms", 0.0),
        "client_cpu_us": report["client_cpu_seconds"] / requests * 1e6,
        "requests": report["requests"],
        "errors": report["errors_total"],
    }


def loaded(member: Member, size: Size, conns: int, clients: int, *command: str) -> dict:
    """Warm up, then measure one load with the CPU of the whole member around it."""
    clients = min(clients, size.clients_max)
    spread = ["--conns", str(min(conns, clients)), "--clients", str(clients)]
    if size.warm_seconds:
        bench(member, *spread, *command, "--duration", f"{size.warm_seconds:g}s")
    revision = member.revision()
    before = member.cpu_seconds()
    report = bench(member, *spread, *command, *length_of(size))
    cpu = member.cpu_seconds().since(before)
    memory = member.memory()
    written = member.revision() - revision
    if command[0] in ("put", "txn-put") and written < report["requests"]:
        raise MemberError(f"{member.kind} acknowledged {report['requests']} writes but made {written} revisions")
    figures = figures_of(report)
    figures["cpu_us"] = cpu / max(report["requests"], 1) * 1e6
    figures["cores_used"] = cpu / report["seconds"] if report["seconds"] else 0.0
    figures["pss_mb"], figures["rss_mb"] = memory.pss / MB, memory.rss / MB
    return figures


def faster(times: float, figure: str = "requests_per_second") -> Bar:
    return Bar(figure, times, at_least=True, ratio=True)
