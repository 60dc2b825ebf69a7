"""Micro benchmarks of the write-ahead log: checksum, record encoding, start-up scan, batch latency.

Run: python bench/micro/wal.py [--directory DIR] [--tiny]. `--tiny` only shows that everything still runs.
Disk figures depend on DIR's file system; put it where the data directory would be.
"""

import argparse
import os
import select
import shutil
import statistics
import tempfile
import time

from etcdfast._ext import crc32c, walrec
from etcdfast.formats import wal


def crc_bytes_per_second(size, update, rounds):
    data = os.urandom(size)
    update(0, data)
    began = time.perf_counter()
    for _ in range(rounds):
        update(0, data)
    return size * rounds / (time.perf_counter() - began)


def encode_nanoseconds(payload_bytes, count):
    walrec.encode_benchmark(count // 10 + 1, payload_bytes)
    began = time.perf_counter()
    walrec.encode_benchmark(count, payload_bytes)
    return (time.perf_counter() - began) / count * 1e9


def batch_microseconds(directory, batch_bytes, count, busy=False, **settings):
    """Median and 99th percentile from submit to the ring of the done fd, one batch at a time; mean sync."""
    log = wal.create(directory, b"\x08\x01\x10\x02", **settings)
    if not busy:
        while not log.spare_ready:
            time.sleep(0.01)
    poller = select.epoll()
    poller.register(log.done_fd, select.EPOLLIN | select.EPOLLET)
    payload, times = bytes(256), []
    entries = max(1, batch_bytes // 290)
    for i in range(count):
        for j in range(entries):
            log.append_entry(0, 2, i * entries + j + 1, payload)
        began = time.perf_counter()
        log.submit()
        while not log.poll():
            poller.poll(1)
        times.append((time.perf_counter() - began) * 1e6)
    disk = log.stats()
    log.close()
    shutil.rmtree(directory)
    times.sort()
    return statistics.median(times), times[len(times) * 99 // 100], disk["fsync_nanoseconds"] / disk["fsyncs"] / 1e3


def replay_seconds(directory, entries):
    log = wal.create(directory, b"\x08\x01\x10\x02", max_wals=0)
    payload = bytes(range(256))
    for index in range(1, entries + 1):
        log.append_entry(0, 2, index, payload)
        if index % 10000 == 0:
            log.flush()
    log.close()
    began = time.perf_counter()
    read = wal.read(directory)
    seconds = time.perf_counter() - began
    assert len(read.entries) == entries
    shutil.rmtree(directory)
    return seconds


def show(name, figures):
    print(f"{name}: p50 {figures[0]:.1f} us, p99 {figures[1]:.1f} us, mean sync {figures[2]:.1f} us")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", default=None, help="where to write (default: the temporary directory)")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    scale = 100 if options.tiny else 1
    small = {"segment_bytes": 1_000_000} if options.tiny else {}
    base = tempfile.mkdtemp(prefix="wal-bench-", dir=options.directory)
    path = os.path.join(base, "wal")
    try:
        for size in (64, 290, 4096, 1 << 20):
            rounds = max(1, (1 << 28) // max(size, 4096) // scale)
            fast = crc_bytes_per_second(size, crc32c.update, rounds) / 1e9
            slow = crc_bytes_per_second(size, crc32c.update_portable, max(1, rounds // 8)) / 1e9
            print(f"crc32c {size:>8} B: {crc32c.implementation()} {fast:6.2f} GB/s, portable {slow:5.2f} GB/s")
        for payload in (0, 16, 256, 4096):
            print(f"encode entry {payload:>5} B: {encode_nanoseconds(payload, 2_000_000 // scale):7.1f} ns")
        print(f"read 100,000 entries of 256 B: {replay_seconds(path, 100_000 // scale):.3f} s")
        for prewrite in (False, True):
            for size in (300, 20_000):
                figures = batch_microseconds(path, size, 1000 // scale, prewrite=prewrite, **small)
                show(f"batch {size} B, prewritten={prewrite}", figures)
        show(
            "batch 300 B, next segment being prepared", batch_microseconds(path, 300, 1000 // scale, busy=True, **small)
        )
        for spin in (50e-6, 500e-6):
            figures = batch_microseconds(path, 300, 1000 // scale, spin_seconds=spin, **small)
            show(f"batch 300 B, disk thread spins {spin * 1e6:.0f} us", figures)
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
