"""Every etcdctl command of the scenario files prints and returns the same against both servers.

A scenario is a text file: one etcdctl command per line, in shell quoting, `<` lines after it are its
standard input, `#` starts a comment. All its commands run in order on one fresh server of each kind.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import Server, reference_server, started_pair, target_server

from .etcdctl import Result, etcdctl, normalised

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@dataclass(frozen=True, slots=True)
class Command:
    line: int
    arguments: list[str]
    stdin: bytes


def parse(text: str) -> list[Command]:
    commands: list[Command] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("<"):
            last = commands.pop()
            commands.append(Command(last.line, last.arguments, last.stdin + line[2:].encode() + b"\n"))
        elif line and not line.startswith("#"):
            commands.append(Command(number, shlex.split(line), b""))
    return commands


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    environment = {"ETCD_BCRYPT_COST": "4"}
    with started_pair(reference_server(environment=environment), target_server(environment=environment)) as started:
        yield started


def _run(server: Server, commands: list[Command]) -> list[Result]:
    return [etcdctl(server.endpoint, *command.arguments, stdin=command.stdin) for command in commands]


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(servers: tuple[Server, Server], path: Path) -> None:
    commands = parse(path.read_text())
    assert commands
    with ThreadPoolExecutor(2) as pool:
        left, right = pool.map(_run, servers, (commands, commands))
    wrong = []
    for command, one, other in zip(commands, left, right, strict=True):
        if normalised(command.arguments, one) != normalised(command.arguments, other):
            shown = f"{path.name}:{command.line}: etcdctl {shlex.join(command.arguments)}"
            wrong.append(f"{shown}\netcd: {one}\nother: {other}")
    if wrong:
        pytest.fail(f"{len(wrong)} of {len(commands)} commands differ\n" + "\n\n".join(wrong), pytrace=False)


def test_a_dead_endpoint_is_reported_alike() -> None:
    """Only a statement about etcdctl itself; it holds the place of the exit code 1 rows."""
    result = etcdctl("127.0.0.1:1", "--command-timeout=300ms", "endpoint", "health")
    assert result.code == 1
    assert b"unhealthy" in result.stderr


def test_normalisation_hides_nothing_else() -> None:
    """Each normalisation is bound to its command: the same bytes elsewhere stay visible."""
    seen = Result(0, b"took = 5ms, 127.0.0.1:12345, 3.5.1, 20 kB, false", b"")
    assert normalised(["get", "a"], seen).stdout == b"took = 5ms, ENDPOINT, 3.5.1, 20 kB, false"
    status = b"127.0.0.1:12345, 8e9e05c52164694d, 3.5.1, 20 kB, true, false, 2, 4, 4, \n"
    changed = status.replace(b"true, false, 2", b"true, false, 3")
    command = ["endpoint", "status"]
    assert normalised(command, Result(0, status, b"")) != normalised(command, Result(0, changed, b""))
