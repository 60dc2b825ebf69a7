"""The report of a run: text laid out as etcd's benchmark tool prints it, and JSON for programs.

Latencies come from a histogram with buckets of 0.8% width; slowest, fastest, average and standard
deviation are exact, percentiles and the bars are within 0.4%.
"""

from __future__ import annotations

import datetime

import numpy as np

from etcdfast.bench.runner import TIMELINE_BIN_NS, KindResult, Result

PERCENTILES = (10, 25, 50, 75, 90, 95, 99, 99.9)
BARS = 10
BAR_WIDTH = 40
BUCKETS = 7424


def _bucket_middles() -> np.ndarray:
    """Middle of each bucket in ns (generator: bucket_of)."""
    index = np.arange(BUCKETS, dtype=np.int64)
    shift = np.maximum((index >> 7) - 1, 0)
    low = np.where(index < 256, index, ((index & 127) + 128).astype(np.float64) * np.exp2(shift))
    return low + np.where(index < 256, 0.0, np.exp2(shift) / 2)


MIDDLES_NS = _bucket_middles()


def percentile_ns(kind: KindResult, percent: float) -> float:
    """Latency that `percent` of the requests did not exceed; 0 without requests."""
    if not kind.count:
        return 0.0
    rank = min(max(int(np.ceil(percent * (kind.count + 1) / 100)), 1), kind.count)
    at = int(np.searchsorted(np.cumsum(np.asarray(kind.buckets)), rank))
    return float(min(max(MIDDLES_NS[at], kind.min_ns), kind.max_ns))


def _number(value: float, precise: bool) -> str:
    return repr(float(value)) if precise else f"{value:4.4f}"


def text_report(kind: KindResult, seconds: float, errors: dict[str, int], *, precise: bool, sample: bool) -> str:
    out = []
    if kind.count:
        out += _summary(kind, seconds, precise)
        out += _histogram(kind, precise)
        out += ["", "Latency distribution:"]
        for percent in PERCENTILES:
            value = percentile_ns(kind, percent)
            if value > 0:
                out.append(f"  {percent:g}% in {value / 1e6:.3f} ms.")
        if sample:
            out += _samples(kind)
    if errors:
        out += ["", "Error distribution:"]
        out += [f"  [{count}]\t{text}" for text, count in sorted(errors.items(), key=lambda row: -row[1])]
    return "\n".join(out) + "\n"


def _summary(kind: KindResult, seconds: float, precise: bool) -> list[str]:
    mean = kind.sum_ns / kind.count / 1e9
    deviation = max(kind.sum_squares / kind.count - mean * mean, 0) ** 0.5
    rows = [
        ("Total", seconds),
        ("Slowest", kind.max_ns / 1e9),
        ("Fastest", kind.min_ns / 1e9),
        ("Average", mean),
        ("Stddev", deviation),
    ]
    out = ["", "Summary:"]
    out += [f"  {name}:\t{_number(value, precise)} secs." for name, value in rows]
    out.append(f"  Requests/sec:\t{_number(kind.count / seconds if seconds else 0.0, precise)}")
    return out


def _histogram(kind: KindResult, precise: bool) -> list[str]:
    """Bar i counts the requests above edge i-1 and up to edge i, as etcd's tool does."""
    low, high = kind.min_ns, kind.max_ns
    edges = [low + (high - low) / BARS * i for i in range(BARS)] + [high]
    buckets = np.asarray(kind.buckets)
    used = np.flatnonzero(buckets)
    places = np.clip(MIDDLES_NS[used], low, high)
    bars = np.minimum(np.searchsorted(edges, places), BARS)
    counts = np.bincount(bars, weights=buckets[used].astype(np.float64), minlength=BARS + 1).astype(int)
    # the fastest request lies on the first edge; its bucket's middle may not
    if counts[0] == 0:
        counts[0] += 1
        counts[int(np.flatnonzero(counts[1:])[0]) + 1 if counts[1:].any() else 0] -= 1
    largest = int(counts.max())
    out = ["", "Response time histogram:"]
    for edge, count in zip(edges, counts, strict=True):
        bar = "∎" * (int(count) * BAR_WIDTH // largest)
        out.append(f"  {_number(edge / 1e9, precise)} [{count}]\t|{bar}")
    return out


def _samples(kind: KindResult) -> list[str]:
    out = ["", "Sample in one second (unix latency throughput):"]
    out.append("UNIX-SECOND,MIN-LATENCY-MS,AVG-LATENCY-MS,MAX-LATENCY-MS,AVG-THROUGHPUT")
    for second, count, mean_ns, low_ns, high_ns in sample_rows(kind):
        out.append(f"{second},{low_ns / 1e6:.3f}ms,{mean_ns / 1e6:.3f}ms,{high_ns / 1e6:.3f}ms,{count}")
    out.append("")
    return out


def sample_rows(kind: KindResult) -> list[tuple[int, int, float, int, int]]:
    """(unix second, count, mean, fastest, slowest in ns) for every second from first to last."""
    if not kind.seconds:
        return []
    rows = []
    for second in range(min(kind.seconds), max(kind.seconds) + 1):
        count, sum_ns, low, high = kind.seconds.get(second, (0, 0, 0, 0))
        rows.append((second, count, sum_ns / count if count else 0.0, low, high))
    return rows


def watch_rows(result: Result) -> dict:
    """Figures of a watch load for programs: counts, seconds, rates."""
    watch = result.watch
    seconds = event_seconds(result)
    return {
        "watchers": watch.made,
        "make_seconds": watch.make_seconds,
        "events": watch.events,
        "responses": watch.responses,
        "response_bytes": watch.response_bytes,
        "event_seconds": seconds,
        "events_per_second": watch.events / seconds if seconds else 0.0,
    }


def event_seconds(result: Result) -> float:
    """From the start of the puts to the last event; without own puts, from the first event."""
    if result.watch.last_event_ns and result.kinds[0].count:
        return (result.watch.last_event_ns - result.start_ns) / 1e9
    return result.watch.event_seconds


def json_report(command: str, flags: dict, labels: list[str], result: Result) -> dict:
    """Everything the text report says, and what it leaves out. Times in the unit of the name."""
    seconds = result.seconds
    watch = {"watch": watch_rows(result)} if result.watch else {}
    return watch | {
        "command": command,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "flags": flags,
        "requests": result.count,
        "errors": result.errors,
        "errors_total": sum(result.errors.values()),
        "seconds": seconds,
        "requests_per_second": result.count / seconds if seconds else 0.0,
        "latency": {
            label.lower() or "all": latency_row(kind) for label, kind in zip(labels, result.kinds, strict=False)
        },
        "client_cpu_seconds": result.client_cpu_seconds,
        "client_processes": result.processes,
        "response_bytes": result.response_bytes,
        "reconnects": result.reconnects,
        "timeline": {
            "bin_ns": TIMELINE_BIN_NS,
            "first_ns": result.timeline.first_ns,
            "counts": list(result.timeline.counts),
        },
        "aborted": result.aborted,
        "interrupted": result.interrupted,
        "samples": {
            label.lower() or "all": [[second, count] for second, count, *_ in sample_rows(kind)]
            for label, kind in zip(labels, result.kinds, strict=False)
        },
    }


def latency_row(kind: KindResult) -> dict:
    if not kind.count:
        return {"count": 0}
    mean = kind.sum_ns / kind.count / 1e6
    squares = kind.sum_squares / kind.count * 1e6
    return {
        "count": kind.count,
        "min_ms": kind.min_ns / 1e6,
        "mean_ms": mean,
        "stddev_ms": max(squares - mean * mean, 0) ** 0.5,
        "max_ms": kind.max_ns / 1e6,
        **{f"p{percent:g}_ms": percentile_ns(kind, percent) / 1e6 for percent in PERCENTILES},
    }
