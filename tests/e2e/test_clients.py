"""The Python client library aetcd does what its documentation shows, alike against both servers.

aetcd (gRPC, asyncio, maintained) is a test dependency. etcd3-py speaks to etcd's HTTP gateway only; its
flows come with the gateway (issue 5). python-etcd3 does not load with the protobuf this project needs.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.harness import Server, started_pair

FLOWS = Path(__file__).parent / "aetcd_flows.py"
TIMEOUT_SECONDS = 120


def _run(server: Server) -> list[str]:
    host, _, port = server.endpoint.partition(":")
    done = subprocess.run(
        [sys.executable, str(FLOWS), host, port], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    assert done.returncode == 0, f"{server.kind}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout.splitlines()


def test_aetcd() -> None:
    with started_pair() as servers, ThreadPoolExecutor(2) as pool:
        left, right = pool.map(_run, servers)
    assert left[-1] == "end: True"
    assert left == right
