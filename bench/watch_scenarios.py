"""Watch loads: fan-out, latency, many watchers, one that is stuck."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from members import REPOSITORY, Member, MemberError
from scenario import LOAD_SECONDS_MAX, MB, Bar, Scenario, Size, bench, faster, length_of

MAKE_SECONDS_MAX = 300
PUT = ("put", "--key-size", "8", "--val-size", "256", "--key-space-size", "100000", "--prefix", "other/")
# a load that a member carries with ease: its latency tells of disturbance, not of saturation
STEADY = ("--conns", "20", "--clients", "100", *PUT)
STEADY_RATE = 5000
STEADY_SLICES = 3
EVENTS_PER_TXN = 100
FILL_KEYS = 100_000


class Watchers:
    """`etcdfast-bench watch --hold` in a process of its own: made, then held until `go`, then waited for."""

    def __init__(self, member: Member, *args: str) -> None:
        self._member = member
        self._out = tempfile.NamedTemporaryFile(suffix=".json")
        command = [sys.executable, "-m", "etcdfast.bench", "--endpoints", member.endpoint, "--no-progress"]
        command += ["--report-json", self._out.name, "watch", "--hold", *args]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Watchers:
        timer = threading.Timer(MAKE_SECONDS_MAX, self._process.kill)
        timer.start()
        try:
            said = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not said.startswith("watching: "):
            self._fail()
        return self

    def __exit__(self, *exc) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._out.close()

    def _fail(self) -> None:
        self._process.kill()
        lines = self._process.communicate()[1].strip().splitlines()
        raise MemberError(f"watch on {self._member.kind} failed: {lines[-1] if lines else 'it said nothing'}")

    def stop(self) -> None:
        """From now on the client reads nothing, as one that hangs."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def finish(self) -> dict:
        """Let it do what it was held from; returns its JSON report. Errors: MemberError."""
        try:
            _, err = self._process.communicate("\n", timeout=LOAD_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._fail()
        raw = Path(self._out.name).read_text()
        if self._process.returncode != 0 or not raw:
            errors = list(json.loads(raw)["errors"]) if raw else []
            reason = (err.strip().splitlines() + errors or ["it said nothing"])[-1]
            raise MemberError(f"watch on {self._member.kind} failed: {reason}")
        return json.loads(raw)


def _fanout(member: Member, size: Size) -> dict:
    # 10 keys, each watched by a tenth of all watchers
    puts = size.total or int(size.puts_per_second * size.seconds)
    args = [
        "--conns", str(min(100, size.streams)), "--clients", "10", "--streams", str(size.streams),
        "--watch-per-stream", str(size.watchers_each), "--watched-key-total", "10", "--key-space-size", "10",
        "--sequential-keys", "--put-total", str(puts),
    ]  # fmt: skip
    with Watchers(member, *args) as watchers:
        before = member.cpu_seconds()
        report = watchers.finish()
        cpu = member.cpu_seconds().since(before)
    watch, age = report["watch"], report["latency"]["event"]
    events = max(watch["events"], 1)
    return {
        "events_per_second": watch["events_per_second"],
        "event_cpu_us": cpu / events * 1e6,
        "client_event_cpu_us": report["client_cpu_seconds"] / events * 1e6,
        "events_per_response": events / max(watch["responses"], 1),
        "age_p50_ms": age.get("p50_ms", 0.0),
        "age_p99_ms": age.get("p99_ms", 0.0),
        "puts_per_second": report["requests_per_second"],
        "pss_mb": member.memory().pss / MB,
        "events": watch["events"],
        "requests": report["requests"],
        "errors": report["errors_total"],
    }


def _latency(member: Member, size: Size) -> dict:
    """Medians of a few slices: at 100 puts/s the p99 is a handful of puts, and one hiccup of the disk would be it."""
    slices = 1 if size.total else STEADY_SLICES
    puts = size.total or max(int(100 * size.seconds / slices), 100)
    if size.warm_seconds:
        bench(member, "watch-latency", "--put-total", str(int(100 * size.warm_seconds)))
    rows = []
    for _ in range(slices):
        report = bench(member, "watch-latency", "--put-total", str(puts))
        event, answered, put = (report["latency"][kind] for kind in ("event", "event-after-answer", "put"))
        rows.append(
            {
                "event_p50_ms": event["p50_ms"],
                "event_p99_ms": event["p99_ms"],
                "after_answer_p99_ms": answered["p99_ms"],
                "put_p99_ms": put["p99_ms"],
            }
        )
    return _medians(rows) | {"requests": slices * puts, "errors": 0}


def _medians(rows: list[dict]) -> dict:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _put_speed(member: Member, size: Size, *more: str) -> float:
    clients = min(1000, size.clients_max)
    report = bench(
        member, "--conns", str(min(100, clients)), "--clients", str(clients), *(more or PUT), *length_of(size)
    )  # fmt: skip
    if report["errors_total"]:
        raise MemberError(f"{member.kind}: puts failed: {report['errors']}")
    return report["requests_per_second"]


def _many(member: Member, size: Size) -> dict:
    """Speed without watchers is the mean of before and after them, so that a drift falls on neither side."""
    count = size.many_watchers
    streams = min(100, count)
    keys = ("--key-size", "16", "--key-space-size", str(count), "--sequential-keys", "--prefix", "watched/")
    before = _put_speed(member, size)
    rest = member.settled_memory(size.settle_seconds)
    args = [
        "--conns", str(streams), "--streams", str(streams), "--watch-per-stream", str(count // streams),
        "--watched-key-total", str(count), *keys, "--put-total", "0",
    ]  # fmt: skip
    with Watchers(member, *args) as watchers:
        made = member.settled_memory(size.settle_seconds)
        during = _put_speed(member, size)
        watched = _put_speed(member, size, "put", "--val-size", "256", *keys)
        report = watchers.finish()
    after = _put_speed(member, size)
    speed = (before + after) / 2
    return {
        "watcher_pss_bytes": (made.pss - rest.pss) / count,
        "make_seconds": report["watch"]["make_seconds"],
        "without_per_second": speed,
        "with_per_second": during,
        "kept_speed": during / speed if speed else 0.0,
        "watched_per_second": watched,
        "events": report["watch"]["events"],
        "errors": 0,
        "requests": count,
    }


def steady(member: Member, size: Size) -> dict:
    """Latency of puts at a fixed rate: medians of a few slices, so that one hiccup of the disk is not the figure."""
    rate = min(STEADY_RATE, size.clients_max * 100)
    slices = 1 if size.total else STEADY_SLICES
    length = ["--total", str(size.total)] if size.total else ["--duration", f"{size.seconds / slices:g}s"]
    rows = []
    os.sync()  # what a load before left the kernel to write is no part of this
    for _ in range(slices):
        report = bench(member, *STEADY, "--rate", str(rate), *length)
        if report["errors_total"]:
            raise MemberError(f"{member.kind}: puts failed: {report['errors']}")
        rows.append(report["latency"]["all"])
    return _medians(rows)


def _fill(member: Member, events: int) -> None:
    """That many events under the prefix `w/`, many to a revision; the keys are there already or made by it."""
    report = bench(
        member, "--conns", "10", "--clients", "20", "txn-put", "--prefix", "w/", "--txn-ops", str(EVENTS_PER_TXN),
        "--key-space-size", str(FILL_KEYS), "--val-size", "100", "--total", str(events // EVENTS_PER_TXN),
    )  # fmt: skip
    if report["errors_total"]:
        raise MemberError(f"{member.kind}: transactions failed: {report['errors']}")


def _stuck(member: Member, size: Size) -> dict:
    """The same million changes twice: nobody watches, then one watcher that does not read.

    What memory grows by the second time beyond the first is due to the watcher; then it reads on while
    puts go on, and must get every event in order.
    """
    events = size.pending_events
    _fill(member, min(events, FILL_KEYS))
    start = member.settled_memory(size.settle_seconds)
    _fill(member, events)
    filled = member.settled_memory(size.settle_seconds)
    without = steady(member, size)
    with Watchers(
        member, "--streams", "1", "--watch-per-stream", "1", "--prefix", "w/", "--whole-prefix", "--events", str(events)
    ) as watcher:
        watcher.stop()
        before = member.settled_memory(size.settle_seconds)
        _fill(member, events)
        stuck = member.settled_memory(size.settle_seconds)
        during = steady(member, size)
        later = member.memory()
        watcher.go_on()
        report, catching_up = _together(watcher.finish, lambda: steady(member, size))
    # before and after the watcher, so that a drift of the disk falls on neither side
    without_ms = (without["p99_ms"] + steady(member, size)["p99_ms"]) / 2
    watch = report["watch"]
    return {
        "without_p99_ms": without_ms,
        "stuck_p99_ms": during["p99_ms"],
        "p99_ratio": during["p99_ms"] / without_ms,
        "catch_up_p99_ms": catching_up["p99_ms"],
        "fill_pss_mb": (filled.pss - start.pss) / MB,
        "stuck_fill_pss_mb": (stuck.pss - before.pss) / MB,
        "stuck_extra_pss_mb": (max(stuck.pss, later.pss) - before.pss - (filled.pss - start.pss)) / MB,
        "catch_up_seconds": watch["event_seconds"],
        "events": watch["events"],
        "requests": during["count"],
        "errors": 0,
    }


def _together(first, second):
    """Both results of two functions that run at the same time; what one raises is raised here."""
    done: dict = {}

    def run() -> None:
        try:
            done["second"] = second()
        except MemberError as e:
            done["error"] = e

    thread = threading.Thread(target=run)
    thread.start()
    try:
        result = first()
    finally:
        thread.join()
    if "error" in done:
        raise done["error"]
    return result, done["second"]


SCENARIOS = [
    Scenario(
        "watch-fanout",
        "100 streams x 100 watchers on 10 keys, puts as fast as they go",
        _fanout,
        [faster(3, "events_per_second"), Bar("event_cpu_us", 1 / 3, ratio=True)],
        shown=(
            "events_per_second",
            "event_cpu_us",
            "client_event_cpu_us",
            "events_per_response",
            "age_p50_ms",
            "age_p99_ms",
            "puts_per_second",
            "pss_mb",
        ),
    ),
    Scenario(
        "watch-latency",
        "10 streams x 10 watchers of one key, 100 puts/s",
        _latency,
        # What etcd's tool measures. Since the put was sent says less: a single etcd applies, and tells its
        # watchers, before the write is on its disk, so the sync of the log is in our figure and not in etcd's.
        [Bar("after_answer_p99_ms", 1, ratio=True)],
        shown=("after_answer_p99_ms", "event_p50_ms", "event_p99_ms", "put_p99_ms"),
    ),
    Scenario(
        "watchers-100k",
        "100,000 watchers on 100 connections, each of its own key: memory, speed of puts to other keys",
        _many,
        [Bar("watcher_pss_bytes", 350), Bar("kept_speed", 0.9, at_least=True)],
        shown=(
            "watcher_pss_bytes",
            "make_seconds",
            "without_per_second",
            "with_per_second",
            "kept_speed",
            "watched_per_second",
        ),
        heavy=True,
    ),
    Scenario(
        "stuck-watcher",
        "one watcher reads nothing while 1,000,000 events come, then reads on; 5000 puts/s beside it",
        _stuck,
        [
            Bar("p99_ratio", 1.25, text="p99_ratio <= 1.25 (puts with the stuck watcher / without)"),
            Bar("stuck_extra_pss_mb", 64, text="stuck_extra_pss_mb <= 64 (the events are more than 150 MB)"),
            Bar("events", 1_000_000, at_least=True),
        ],
        shown=(
            "without_p99_ms",
            "stuck_p99_ms",
            "p99_ratio",
            "catch_up_p99_ms",
            "fill_pss_mb",
            "stuck_fill_pss_mb",
            "stuck_extra_pss_mb",
            "catch_up_seconds",
            "events",
        ),
        heavy=True,
    ),
]
