"""Run the real etcdctl 3.5.1, and name everything in its output that may differ between two servers."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.harness.servers import ETCDCTL

TIMEOUT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    stdout: bytes
    stderr: bytes

    def __str__(self) -> str:
        return f"exit {self.code}\nstdout: {self.stdout!r}\nstderr: {self.stderr!r}"


def etcdctl(endpoint: str, *arguments: str, stdin: bytes = b"") -> Result:
    """One run of etcdctl against `endpoint`, with no ETCDCTL_* settings from outside."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")}
    done = subprocess.run(
        [ETCDCTL, "--endpoints", endpoint, *arguments],
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        env=environment,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True, slots=True)
class Normalisation:
    """One thing that legitimately differs: `applies` to the command, `pattern` becomes `to`."""

    name: str
    why: str
    pattern: re.Pattern[bytes]
    to: bytes
    applies: Callable[[Sequence[str]], bool]


def _any(_: Sequence[str]) -> bool:
    return True


def _starts(*words: str) -> Callable[[Sequence[str]], bool]:
    return lambda arguments: tuple(arguments[: len(words)]) == words


def _status_as(form: str) -> Callable[[Sequence[str]], bool]:
    def applies(arguments: Sequence[str]) -> bool:
        chosen = arguments[arguments.index("-w") + 1] if "-w" in arguments else "simple"
        return tuple(arguments[:2]) == ("endpoint", "status") and chosen == form

    return applies


# Ports have five digits on both sides, so replacing one never changes the width of a table.
NORMALISATIONS = (
    Normalisation("endpoint", "each server has its own port", re.compile(rb"127\.0\.0\.1:\d{5}"), b"ENDPOINT", _any),
    Normalisation("timestamp", "log lines of etcdctl carry the time", re.compile(rb'"ts":"[^"]*"'), b'"ts":"TS"', _any),
    Normalisation("address", "log lines of etcdctl name a Go pointer", re.compile(rb"0x[0-9a-f]{6,}"), b"0xPTR", _any),
    Normalisation(
        "took",
        "how long a health check took",
        re.compile(rb"took = [0-9.]+(ns|\xc2\xb5s|ms|s)"),
        b"took = T",
        _starts("endpoint", "health"),
    ),
    Normalisation(
        "took-json", "the same in JSON", re.compile(rb'"took":"[^"]*"'), b'"took":"T"', _starts("endpoint", "health")
    ),
    Normalisation(
        "took-field", "the same as a field", re.compile(rb'"Took" : \S+'), b'"Took" : T', _starts("endpoint", "health")
    ),
    Normalisation(
        "took-cell",
        "the same in a table cell",
        re.compile(rb"[0-9.]+(ns|\xc2\xb5s|ms|s)(?= +\|)"),
        b"T",
        _starts("endpoint", "health"),
    ),
    Normalisation(
        "took-width", "the width of that cell", re.compile(rb"([ -])\1+"), rb"\1", _starts("endpoint", "health")
    ),
    Normalisation(
        "defrag-took",
        "how long a defragmentation took",
        re.compile(rb"took [0-9.]+(ns|\xc2\xb5s|ms|s)"),
        b"took T",
        _starts("defrag"),
    ),
    # endpoint status: the server's own version, its sizes, and the log index, which counts entries
    # of the server's own (version, attributes) besides the client's.
    Normalisation(
        "status-simple",
        "version, db size, raft index and applied index",
        re.compile(rb"(?m)^(\S+, [0-9a-f]+), [^,]+, [^,]+, (\w+), (\w+), (\d+), \d+, \d+, "),
        rb"\1, VERSION, SIZE, \2, \3, \4, INDEX, INDEX, ",
        _status_as("simple"),
    ),
    Normalisation(
        "status-table",
        "the same in a table: the differing cells",
        re.compile(rb"\| +(\d+\.\d+\.\d+\S*|[0-9.]+ [kMG]?B) +(?=\|)"),
        b"| X ",
        _status_as("table"),
    ),
    Normalisation(
        "status-table-index",
        "the same: the two indexes",
        re.compile(rb"\| +\d+ +\| +\d+ +\| +(?=\|\n)"),
        b"| I | I | ",
        _status_as("table"),
    ),
    Normalisation(
        "status-table-width", "the widths of those cells", re.compile(rb"([ -])\1+"), rb"\1", _status_as("table")
    ),
    Normalisation(
        "status-json",
        "the same in JSON",
        re.compile(rb'"(version|dbSize|dbSizeInUse|raftIndex|raftAppliedIndex)":("[^"]*"|\d+)'),
        rb'"\1":X',
        _status_as("json"),
    ),
    Normalisation(
        "status-fields",
        "the same as fields",
        re.compile(rb'"(Version|DBSize|RaftIndex|RaftAppliedIndex|DBSizeInUse)" : ("[^"]*"|\d+)'),
        rb'"\1" : X',
        _status_as("fields"),
    ),
)


def normalised(arguments: Sequence[str], result: Result) -> Result:
    """`result` with everything replaced that may differ for this command."""
    stdout, stderr = result.stdout, result.stderr
    for rule in NORMALISATIONS:
        if rule.applies(arguments):
            stdout = rule.pattern.sub(rule.to, stdout)
            stderr = rule.pattern.sub(rule.to, stderr)
    return Result(result.code, stdout, stderr)
