"""A program of a client library, run against one server: its lines are what is compared."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from tests.harness.servers import Server, reference_server, target_server

SECONDS_MAX = 120


def lines_of(server: Server, command: Sequence[str]) -> list[str]:
    """What `command` PORT prints. Errors: AssertionError with everything it said when it fails."""
    ran = subprocess.run([*command, str(server.port)], capture_output=True, text=True, timeout=SECONDS_MAX)
    assert ran.returncode == 0, f"status {ran.returncode}\n{ran.stdout}\n{ran.stderr}\n{server.log_tail()}"
    return ran.stdout.splitlines()


def same_lines(command: Sequence[str]) -> list[str]:
    """Run `command` against a fresh server of each kind; the lines, which must be equal."""
    with reference_server() as reference, target_server() as target:
        theirs, ours = lines_of(reference, command), lines_of(target, command)
    assert ours == theirs
    return ours
