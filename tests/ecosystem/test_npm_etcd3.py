"""The npm package etcd3 (gRPC): same lines from etcd and from etcdfast."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

from .runs import same_lines

NPM = Path(__file__).with_name("npm")


@pytest.fixture(scope="module")
def packages() -> None:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("no node and npm on this machine (Debian: apt-get install nodejs npm)")
    with open(NPM / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test run may be installing
        if not (NPM / "node_modules" / "etcd3").exists():
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=NPM, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("packages")
def test_the_flows_of_its_documentation() -> None:
    lines = same_lines(["node", str(NPM / "flows.js")])
    assert lines[-1] == "-- end" and len(lines) > 35
