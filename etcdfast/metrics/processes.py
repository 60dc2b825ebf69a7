"""What the kernel says of the member's processes, from /proc.

A member is several processes, dashboards know one. Memory is what all of them take together: each one's own pages, and
of files and shared memory the largest process' share, for the others map the same pages. (PSS would be exact, but its
walk holds a lock that page faults of the process wait for.) CPU and descriptors are sums; CPU includes processes that
have ended, which the kernel adds to the supervisor's, so that it never goes back.
"""

import os
from collections import namedtuple

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

Process = namedtuple(
    "Process",
    "cpu_seconds ended_seconds anon_bytes file_bytes shared_bytes virtual_bytes threads open_fds max_fds start",
)
Member = namedtuple(
    "Member",
    "cpu_seconds resident_bytes virtual_bytes open_fds max_fds nearest_open nearest_max start threads virtual_max",
)


def read(pid):
    """Figures of one process, None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open(f"/proc/{pid}/status", "rb") as file:
            status = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
        with open(f"/proc/{pid}/limits", "rb") as file:
            limit = next(line for line in file if line.startswith(b"Max open files")).split()[3]
        open_fds = len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, StopIteration, IndexError):
        return None
    return Process(
        (int(fields[11]) + int(fields[12])) / _TICK,
        (int(fields[13]) + int(fields[14])) / _TICK,
        _kilobytes(status, b"RssAnon"),
        _kilobytes(status, b"RssFile"),
        _kilobytes(status, b"RssShmem"),
        int(fields[20]),
        int(fields[17]),
        open_fds,
        float(limit) if limit != b"unlimited" else float("inf"),
        boot_time() + int(fields[19]) / _TICK,
    )


def _kilobytes(status, name):
    return int(status.get(name, b"0").split()[0]) * 1024


def boot_time():
    with open("/proc/stat", "rb") as file:
        for line in file:
            if line.startswith(b"btime"):
                return int(line.split()[1])
    return 0


def member(found):
    """The figures of a member out of those of its processes, the supervisor's first."""
    # The one that will run out first; the soft limit of each is its own.
    nearest = max(found, key=lambda p: p.open_fds / p.max_fds if p.max_fds else 1.0)
    return Member(
        sum(p.cpu_seconds + p.ended_seconds for p in found),
        sum(p.anon_bytes for p in found) + max(p.file_bytes for p in found) + max(p.shared_bytes for p in found),
        sum(p.virtual_bytes for p in found),
        sum(p.open_fds for p in found),
        sum(p.max_fds for p in found),
        nearest.open_fds,
        nearest.max_fds,
        found[0].start,
        sum(p.threads for p in found),
        float(2**64 - 1),
    )
