"""The Python client library aetcd does what its documentation shows, alike against both servers.

aetcd (gRPC, asyncio, maintained) is a test dependency. etcd3-py speaks to etcd's HTTP gateway only; its
flows come with the gateway (issue 5). python-etcd3 does not load with the protobuf this project needs.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.harness import Server, pb, reference_server, started_pair, target_server

FLOWS = Path(__file__).parent / "aetcd_flows.py"
LOGIN = Path(__file__).parent / "aetcd_login.py"
TIMEOUT_SECONDS = 120


def _run(server: Server, program: Path = FLOWS) -> list[str]:
    host, _, port = server.endpoint.partition(":")
    done = subprocess.run(
        [sys.executable, str(program), host, port], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    assert done.returncode == 0, f"{server.kind}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout.splitlines()


def test_aetcd() -> None:
    with started_pair() as servers, ThreadPoolExecutor(2) as pool:
        left, right = pool.map(_run, servers)
    assert left[-1] == "end: True"
    assert left == right


def _with_auth(server: Server) -> None:
    """root, and ann who may do everything below a/; auth on."""
    with server.client() as client:
        for method, request in (
            ("UserAdd", pb.AuthUserAddRequest(name="root", password="root's")),
            ("UserGrantRole", pb.AuthUserGrantRoleRequest(user="root", role="root")),
            ("UserAdd", pb.AuthUserAddRequest(name="ann", password="ann's")),
            ("RoleAdd", pb.AuthRoleAddRequest(name="a")),
            (
                "RoleGrantPermission",
                pb.AuthRoleGrantPermissionRequest(name="a", perm={"key": b"a/", "range_end": b"a0", "permType": 2}),
            ),
            ("UserGrantRole", pb.AuthUserGrantRoleRequest(user="ann", role="a")),
            ("AuthEnable", pb.AuthEnableRequest()),
        ):
            assert client.call(method, request).ok


def test_aetcd_logs_in() -> None:
    flags = ("--bcrypt-cost", "4")
    pair = started_pair(reference_server(flags=flags), target_server(flags=flags))
    with pair as servers, ThreadPoolExecutor(2) as pool:
        for server in servers:
            _with_auth(server)
        left, right = pool.map(lambda server: _run(server, LOGIN), servers)
    assert left[-1] == "end"
    assert left == right
