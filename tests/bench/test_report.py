"""Layout of the text report, and its figures against plain arithmetic on the same latencies."""

from __future__ import annotations

import random
import re
from array import array

import pytest

from etcdfast.bench.report import BUCKETS, MIDDLES_NS, json_report, percentile_ns, text_report
from etcdfast.bench.runner import KindResult, Result


def bucket_of(value: int) -> int:
    """The generator's rule, written out again."""
    shift = max(value.bit_length() - 8, 0)
    return (shift << 7) + (value >> shift)


def kind_of(latencies_ns: list[int]) -> KindResult:
    buckets = array("Q", bytes(8 * BUCKETS))
    for value in latencies_ns:
        buckets[bucket_of(value)] += 1
    squares = sum((value / 1e9) ** 2 for value in latencies_ns)
    seconds = {1000: (2, 30_000_000, 10_000_000, 20_000_000), 1002: (1, 5_000_000, 5_000_000, 5_000_000)}
    return KindResult(
        len(latencies_ns), sum(latencies_ns), min(latencies_ns), max(latencies_ns), squares, buckets, seconds
    )


def test_layout():
    text = text_report(
        kind_of([1_000_000, 1_900_000, 11_000_000]), 0.5, {"etcdserver: x": 2, "y": 7}, precise=False, sample=True
    )
    lines = text.splitlines()
    assert lines[:8] == [
        "",
        "Summary:",
        "  Total:\t0.5000 secs.",
        "  Slowest:\t0.0110 secs.",
        "  Fastest:\t0.0010 secs.",
        "  Average:\t0.0046 secs.",
        "  Stddev:\t0.0045 secs.",
        "  Requests/sec:\t6.0000",
    ]
    bars = lines[lines.index("Response time histogram:") + 1 :][:11]
    assert bars[0] == "  0.0010 [1]\t|" + "∎" * 40
    assert bars[1] == "  0.0020 [1]\t|" + "∎" * 40
    assert bars[2] == "  0.0030 [0]\t|"
    assert bars[10] == "  0.0110 [1]\t|" + "∎" * 40
    at = lines.index("Latency distribution:")
    assert [line.split("%")[0].strip() for line in lines[at + 1 : at + 9]] == "10 25 50 75 90 95 99 99.9".split()
    assert all(re.fullmatch(r"  [\d.]+% in \d+\.\d{3} ms\.", line) for line in lines[at + 1 : at + 9])
    at = lines.index("UNIX-SECOND,MIN-LATENCY-MS,AVG-LATENCY-MS,MAX-LATENCY-MS,AVG-THROUGHPUT")
    assert lines[at - 1] == "Sample in one second (unix latency throughput):"
    assert lines[at + 1 : at + 4] == [
        "1000,10.000ms,15.000ms,20.000ms,2",
        "1001,0.000ms,0.000ms,0.000ms,0",
        "1002,5.000ms,5.000ms,5.000ms,1",
    ]
    assert lines[-3:] == ["Error distribution:", "  [7]\ty", "  [2]\tetcdserver: x"]


def test_precise_prints_every_digit():
    text = text_report(kind_of([1_234_567]), 1 / 3, {}, precise=True, sample=False)
    assert "  Total:\t0.3333333333333333 secs." in text
    assert "  Slowest:\t0.001234567 secs." in text


def test_only_errors():
    text = text_report(KindResult(), 1.0, {"x": 1}, precise=False, sample=True)
    assert text == "\nError distribution:\n  [1]\tx\n"


@pytest.mark.parametrize("seed", range(20))
def test_percentiles_within_a_hundredth(seed):
    chance = random.Random(seed)
    count = chance.choice([1, 2, 3, 10, 1000])
    latencies = sorted(int(10 ** chance.uniform(1, 11)) for _ in range(count))
    kind = kind_of(latencies)
    for percent in (0.1, 10, 25, 50, 75, 90, 99, 99.9, 100):
        # nearest rank over n + 1, as etcd's tool picks it
        rank = min(max(-(-percent * (count + 1) // 100), 1), count)
        exact = latencies[int(rank) - 1]
        assert percentile_ns(kind, percent) == pytest.approx(exact, rel=0.005), (seed, percent)


def test_every_bucket_holds_its_middle():
    for index in range(0, BUCKETS - 1, 7):
        if MIDDLES_NS[index] < 2**62:
            assert bucket_of(int(MIDDLES_NS[index])) == index


@pytest.mark.parametrize("seed", range(10))
def test_bars_count_every_request_once(seed):
    chance = random.Random(seed)
    latencies = [int(10 ** chance.uniform(5, 8)) for _ in range(chance.choice([1, 2, 50, 500]))]
    text = text_report(kind_of(latencies), 1.0, {}, precise=False, sample=False)
    counts = [int(n) for n in re.findall(r"\[(\d+)\]\t\|", text)]
    assert len(counts) == 11
    assert counts[0] >= 1
    assert sum(counts) == len(latencies)


def test_json_has_what_a_comparison_needs():
    result = Result(
        [kind_of([1_000_000] * 99 + [50_000_000]), KindResult()], {"x": 3}, 0, 2_000_000_000, 0.25, 4096, 1, 2
    )
    report = json_report("put", {"clients": 4}, [""], result)
    assert report["requests"] == 100
    assert report["requests_per_second"] == 50
    assert report["errors_total"] == 3
    assert report["client_cpu_seconds"] == 0.25
    assert report["latency"]["all"]["p50_ms"] == pytest.approx(1, rel=0.005)
    assert report["latency"]["all"]["p99.9_ms"] == pytest.approx(50, rel=0.005)
