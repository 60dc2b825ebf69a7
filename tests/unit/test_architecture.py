"""The rules of ARCHITECTURE.md that a program can check: who imports whom, what a pure room may touch, file sizes."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "etcdfast"
LINES_MAX = 800
SUFFIXES = (".py", ".pyi", ".pyx", ".pxd")

ROOMS = {"frontend", "consensus", "apply"}
# What each part may import of ours besides itself. Plain modules of the package (log, version) are parts too.
ALLOWED = {
    "_ext": set(),
    "version": set(),
    "log": {"logfile"},
    "logfile": set(),
    "api": {"version"},
    "config": {"version", "log"},
    "formats": {"_ext", "api", "version"},
    "cluster": {"api", "formats", "version"},
    "metrics": {"_ext", "api", "log", "version"},
    "ipc": {"_ext", "api", "config", "formats", "log", "version"},
    "frontend": {"_ext", "api", "cluster", "config", "formats", "ipc", "log", "metrics", "version"},
    "consensus": {"_ext", "api", "cluster", "config", "formats", "ipc", "log", "version"},
    "apply": {"_ext", "api", "cluster", "config", "formats", "ipc", "log", "version"},
    "supervisor": {"_ext", "api", "cluster", "config", "formats", "ipc", "log", "logfile", "metrics", "version"},
    "client": {"api", "version"},
    "ctl": {"api", "client", "version"},
    "utl": {"_ext", "api", "client", "cluster", "config", "formats", "version"},
    "bench": {"_ext", "api", "client", "config", "log", "version"},
    "__init__": {"version"},
    "__main__": {"supervisor"},
}
# Rooms that simulation runs: time, chance, files and the network come in as arguments or not at all.
PURE = ["consensus/raft", "apply/mvcc", "cluster"]
IMPURE = {"asyncio", "os", "pathlib", "random", "secrets", "select", "selectors", "signal", "socket", "subprocess"}
IMPURE |= {"tempfile", "threading", "time", "datetime", "uuid"}


def sources(*suffixes, below=PACKAGE):
    generated = PACKAGE / "api" / "pb"
    for path in sorted(below.rglob("*")):
        if path.suffix in suffixes and generated not in path.parents and "__pycache__" not in path.parts:
            yield path


def imported_modules(path):
    text = path.read_text()
    if path.suffix in (".py", ".pyi"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                yield base
                # `from etcdfast import log` names the part only behind the import word.
                yield from (f"{base}.{alias.name}" for alias in node.names if base == "etcdfast")
        return
    for line in text.splitlines():
        match = re.match(r"\s*from\s+([\w.]+)\s+c?import\s+(\w*)", line) or re.match(r"\s*c?import\s+([\w.]+)()", line)
        if match:
            yield match[1]
            if match[1] == "etcdfast":
                yield f"etcdfast.{match[2]}"


def part_of(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def our_parts(path):
    for module in imported_modules(path):
        assert not module.startswith("."), f"{path}: relative imports hide the room: {module}"
        words = module.split(".")
        if words[0] == "etcdfast" and len(words) > 1:
            yield words[1]


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_a_part_imports_only_what_it_may(part):
    for path in sources(*SUFFIXES):
        if part_of(path) == part:
            # What `etcdfast/__init__.py` defines is no part.
            wrong = set(our_parts(path)) - {part} - ALLOWED[part] - {"__version__"}
            assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_every_part_has_a_rule():
    assert {part_of(path) for path in sources(*SUFFIXES)} <= set(ALLOWED)


def test_the_rules_keep_the_rooms_apart():
    for room in ROOMS:
        assert not ALLOWED[room] & (ROOMS | {"supervisor"})


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_touch_no_clock_disk_or_network(room):
    for path in sources(".py", ".pyx", below=PACKAGE / room):
        wrong = {module.split(".")[0] for module in imported_modules(path)} & IMPURE
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_files_are_short_enough_to_do_one_thing():
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in sources(*SUFFIXES, ".h")}
    assert {str(path): lines for path, lines in lengths.items() if lines > LINES_MAX} == {}


def modules_loaded_by(*names):
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(shown.stdout.split())


def test_the_supervisor_starts_without_heavy_modules():
    loaded = modules_loaded_by(
        "etcdfast.supervisor.main",
        "etcdfast.supervisor.member",
        "etcdfast.supervisor.listeners",
        "etcdfast.config.load",
    )
    heavy = {"grpc", "google", "google.protobuf", "numpy", "asyncio", "subprocess", "typing", "dataclasses", "logging"}
    assert not loaded & heavy


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"`([\w/.-]+\.(?:pyx|pxd|pyi|py|md|h))`", (ROOT / page).read_text())
    named += re.findall(r"\]\(([\w/.-]+)\)", (ROOT / page).read_text())
    places = (ROOT, PACKAGE, PACKAGE / "_ext")
    assert named
    assert [name for name in named if not any((place / name).exists() for place in places)] == []
