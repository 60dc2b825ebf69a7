"""The machine a figure was measured on, and the state of the source."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]


def facts(directory: Path) -> dict:
    """What a line of history needs to be read later. `directory`: where the data lies."""
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "filesystem": filesystem(directory),
        **{f"fdatasync_us_p{p}": round(s * 1e6, 1) for p, s in fdatasync_percentiles(directory).items()},
        "python": platform.python_version(),
    }


def _git(*args: str) -> str:
    try:
        return subprocess.run(["git", *args], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def filesystem(directory: Path) -> str:
    directory = directory.resolve()
    best = max(
        (part for part in psutil.disk_partitions(all=True) if directory.is_relative_to(part.mountpoint)),
        key=lambda part: len(part.mountpoint),
        default=None,
    )
    return best.fstype if best else "unknown"


def fdatasync_percentiles(directory: Path, rounds: int = 200, block_bytes: int = 4096) -> dict[int, float]:
    """Seconds of overwriting one block of a prepared file and fdatasync, as a WAL does it: p10, p50, p99."""
    path = directory / "fdatasync-probe"
    block = os.urandom(block_bytes)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(fd, bytes(block_bytes * rounds), 0)
        os.fsync(fd)
        times = []
        for i in range(rounds):
            begin = time.perf_counter()
            os.pwrite(fd, block, i * block_bytes)
            os.fdatasync(fd)
            times.append(time.perf_counter() - begin)
        cuts = statistics.quantiles(times, n=100)
        return {percent: cuts[percent - 1] for percent in (10, 50, 99)}
    finally:
        os.close(fd)
        path.unlink()
