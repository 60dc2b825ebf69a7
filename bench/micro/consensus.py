"""CPU and latency of the consensus process alone: this script plays the frontends and apply on its rings.

    python bench/micro/consensus.py [--clients 1000] [--total 300000] [--value-bytes 256] [--reads 0.0]

Every client has one request under way. CPU counts user and system time of the process with all its threads,
from ready to the end, per request. The played side is Python, so throughput here is a floor.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from etcdfast._ext.ring import KINDS  # noqa: E402
from tests.consensus.member import Member, make_config  # noqa: E402

PROPOSE, READ = KINDS["PROPOSE"], KINDS["READ"]
RPC_RANGE, RPC_PUT = 1, 2


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_kib(pid, name):
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith(name + ":"))
    return int(line.split()[1])


def run(clients, total, value_bytes, reads=0.0, data_dir=None):
    """One run; returns a dict of figures."""
    payload = b"\x0a\x08" + bytes(8) + b"\x12" + _varint(value_bytes) + bytes(value_bytes)
    chance = random.Random(1)
    with tempfile.TemporaryDirectory(dir=data_dir) as directory, Member(make_config(directory)) as member:
        member.start()
        pid = member.process.pid
        into, out = member.into["f0c"], member.out
        bell = member.doorbells["apply"]
        began = {}
        took = []
        cpu_before, fsyncs_before = cpu_seconds(pid), member.word("wal_fsync_count")
        start = time.perf_counter()
        sent = done = 0

        def send(stream):
            nonlocal sent
            kind, method = (READ, RPC_RANGE) if reads and chance.random() < reads else (PROPOSE, RPC_PUT)
            data = b"" if kind == READ else payload
            if not into.push(kind, data, method=method, frontend=0, stream=stream, publish=False):
                raise SystemExit("request ring full: fewer clients or smaller values")
            began[stream] = time.perf_counter()
            sent += 1

        for stream in range(1, clients + 1):
            send(stream)
        into.publish()
        while done < total:
            record = out.pop()
            if record is None:
                into.publish()
                if out.sleep():
                    select.select([bell], [], [])
                    os.eventfd_read(bell)
                out.awake()
                continue
            now = time.perf_counter()
            stream = record["stream"]
            took.append(now - began[stream])
            done += 1
            if sent < total:
                send(stream)
        seconds = time.perf_counter() - start
        cpu = cpu_seconds(pid) - cpu_before
        fsyncs = member.word("wal_fsync_count") - fsyncs_before
        fsync_seconds = member.word("wal_fsync_ns") / 1e9 / max(1, member.word("wal_fsync_count"))
        rss = memory_kib(pid, "VmRSS")
        anonymous = memory_kib(pid, "RssAnon")
        member.stop()
    took.sort()
    return {
        "clients": clients,
        "requests_per_second": total / seconds,
        "cpu_microseconds": cpu / total * 1e6,
        "requests_per_fsync": total / max(1, fsyncs),
        "fsync_microseconds": fsync_seconds * 1e6,
        "p50_microseconds": statistics.median(took) * 1e6,
        "p99_microseconds": took[int(len(took) * 0.99)] * 1e6,
        "rss_mib": rss / 1024,
        "anonymous_mib": anonymous / 1024,
    }


def _varint(value):
    from etcdfast._ext.wire import varint

    return varint(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--total", type=int, default=300_000)
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--reads", type=float, default=0.0, help="share of reads, 0 to 1")
    parser.add_argument("--data-dir", help="where the log is written (the file system matters)")
    options = parser.parse_args()
    for name, value in run(
        options.clients, options.total, options.value_bytes, options.reads, options.data_dir
    ).items():
        print(f"{name:22} {value:12.2f}")


if __name__ == "__main__":
    main()
