"""bench/compare.py: a tiny run with real etcd on both sides, and its arithmetic on made-up figures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import compare

    return compare


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCH / "compare.py"), *args], capture_output=True, text=True, timeout=300
    )


def test_self_test(tmp_path):
    history = (BENCH / "history.ndjson").read_text() if (BENCH / "history.ndjson").exists() else None
    done = run("--self-test", "--pairs", "2", "--scenarios", "put,memory-1m", "--data-root", str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in ("put:", "memory-1m:"):
        assert any(line.startswith(name) for line in lines)
    figures = [line.split()[0] for line in lines if line.startswith("  ") and "bar " not in line]
    for figure in ("requests_per_second", "cpu_us", "pss_mb", "loaded_pss_mb", "restart_seconds", "read_extra_pss_mb"):
        assert figure in figures
    assert "not measured" not in done.stdout and " -  " not in done.stdout
    # alternating order
    order = [line.split("]")[1].split(":")[0].strip() for line in done.stderr.splitlines() if "] put " in line]
    assert order == ["put pair 1 etcd", "put pair 1 etcdfast", "put pair 2 etcdfast", "put pair 2 etcd"]
    assert list(tmp_path.iterdir()) == []
    assert history == ((BENCH / "history.ndjson").read_text() if (BENCH / "history.ndjson").exists() else None)


def test_self_test_of_watches_leases_and_snapshots(tmp_path):
    names = ["watch-fanout", "stuck-watcher", "leases-1m", "snapshot-save"]
    done = run(
        "--self-test", "--only", "etcd", "--pairs", "1", "--total", "30", "--scenarios", ",".join(names),
        "--data-root", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tables = {text.partition(":")[0]: text for text in done.stdout.split("\n\n")[1:]}
    assert list(tables) == names
    for name, figure, value in [
        ("watch-fanout", "events_per_second", r"[\d,.]+ "),
        ("stuck-watcher", "events", "2,000 "),
        ("leases-1m", "left_after_20s", "0 "),
        ("snapshot-save", "kept", r"[\d.]+ "),
    ]:
        assert re.search(rf"^  {figure} +{value}", tables[name], re.M), tables[name]


def test_self_test_of_clusters(tmp_path):
    names = ["cluster-kill-leader", "cluster-catch-up", "cluster-snapshot"]
    done = run(
        "--self-test", "--only", "etcd", "--pairs", "1", "--total", "100", "--scenarios", ",".join(names),
        "--data-root", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tables = {text.partition(":")[0]: text for text in done.stdout.split("\n\n")[1:]}
    assert list(tables) == names
    for name, figure, value in [
        ("cluster-kill-leader", "acknowledged_lost", "0 "),
        ("cluster-kill-leader", "without_success_ms", r"[1-9][\d,.]+ "),
        ("cluster-catch-up", "catch_up_seconds", r"[\d.]+ "),
        ("cluster-snapshot", "kept_throughput", r"[\d.]+ "),
    ]:
        assert re.search(rf"^  {figure} +{value}", tables[name], re.M), tables[name]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--scenarios", "put,jump"], "unknown jump"),
        (["--pairs", "0"], "expected 1 or more"),
        (["--pairs", "x"], "--pairs"),
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--only", "redis"], "--only"),
        (["--data-root", "/proc/nothing"], "/proc/nothing"),
    ],
)
def test_wrong_input(args, reason):
    done = run(*args)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_bars_are_judged_by_medians_of_pairs(compare):
    put = compare.BY_NAME["put"]

    def figures(rate, p99, cpu):
        return {
            "requests_per_second": rate,
            "p50_ms": 1,
            "p99_ms": p99,
            "cpu_us": cpu,
            "pss_mb": 1,
            "rss_mb": 1,
            "errors": 0,
        }

    runs = {
        "put": {
            "etcd": [figures(10_000, 10, 40), figures(20_000, 10, 40), figures(10_000, 10, 40), None],
            "etcdfast": [figures(31_000, 6, 10), figures(80_000, 4, 13), figures(29_000, 5, 11), figures(1, 1, 1)],
        }
    }
    text = compare.table(put, runs["put"], runs)
    assert "bar  requests_per_second >= 3 x etcd: 3.1 met" in text
    assert "bar  requests_per_second >= 10000: 30,000 met" in text
    assert "bar  p99_ms <= 0.5 x etcd: 0.5 met" in text
    assert "bar  cpu_us <= 12: 10.5 met" in text
    assert "bar  cpu_us <= 0.285714 x etcd: 0.275 met" in text
    runs["put"]["etcdfast"][1] = figures(50_000, 9, 13)
    text = compare.table(put, runs["put"], runs)
    assert "requests_per_second >= 3 x etcd: 2.9 MISSED" in text
    assert "p99_ms <= 0.5 x etcd: 0.6 MISSED" in text


def test_a_bar_against_another_scenario(compare):
    sides = {"etcdfast": [{"requests_per_second": 70_000}]}
    runs = {"put": {"etcdfast": [{"requests_per_second": 100_000}]}, "put-16k": sides}
    text = compare.table(compare.BY_NAME["put-16k"], sides, runs)
    assert "0.8 x its own put: 0.7 MISSED" in text


def test_cpu_is_summed_over_the_tree(compare):
    import members

    earlier = members.CpuMark({1: (1.0, {1: 1_000_000_000}), 2: (5.0, {2: 10, 3: 4_990_000_000})})
    later = members.CpuMark(
        {1: (3.0, {1: 3_500_000_000, 7: 250_000_000}), 2: (6.0, {2: 10}), 9: (0.5, {9: 500_000_000})}
    )
    # process 1 by its threads, process 2 by its own sum as a thread ended, process 9 is new
    assert later.since(earlier) == pytest.approx(2.75 + 1.0 + 0.5)


def test_self_test_of_security(tmp_path):
    done = run(
        "--self-test", "--only", "etcd", "--pairs", "1", "--total", "100", "--scenarios", "put-tls,put-auth",
        "--data-root", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tables = {text.partition(":")[0]: text for text in done.stdout.split("\n\n")[1:]}
    for name in ("put-tls", "put-auth"):
        assert re.search(r"^  requests_per_second +[1-9]", tables[name], re.M), tables[name]
        assert "failed" not in tables[name]


WRK = """\
Running 1s test @ http://127.0.0.1:2379
  1 threads and 20 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     4.16ms    1.02ms  20.14ms   89.50%
    Req/Sec     4.80k   398.32     5.33k    80.00%
  Latency Distribution
     50%  850.00us
     75%    4.51ms
     90%    5.22ms
     99%    1.02s
  4794 requests in 1.00s, 1.07MB read
  Socket errors: connect 0, read 1, write 2, timeout 0
  Non-2xx or 3xx responses: 4
Requests/sec:   4776.91
Transfer/sec:      1.07MB
"""


def test_figures_of_wrk(compare):
    import http_scenarios

    assert http_scenarios.read_wrk(WRK) == {
        "requests_per_second": 4776.91,
        "p50_ms": 0.85,
        "p99_ms": 1020.0,
        "requests": 4790,
        "errors": 7,
    }
    with pytest.raises(http_scenarios.MemberError):
        http_scenarios.read_wrk(WRK.replace("responses: 4\n", "responses: 4794\n"))
