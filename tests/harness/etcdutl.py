"""Run the real etcdutl 3.5.1. (The wheel's console script for it is broken; the program it should start is not.)"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from .servers import ETCDUTL


def run(*arguments: object, timeout_seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run it to its end; nothing is checked."""
    return subprocess.run([ETCDUTL, *map(str, arguments)], capture_output=True, text=True, timeout=timeout_seconds)


def status(path: Path | str) -> dict[str, int]:
    """`snapshot status -w json` as a dict. Errors: AssertionError when the file does not pass."""
    done = run("snapshot", "status", "-w", "json", path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
