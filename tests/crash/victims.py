"""Whom to kill: the processes of a member by their role."""

from __future__ import annotations

import random

import psutil

from tests.harness import Server

ROLES = ("supervisor", "frontend", "consensus", "apply")


def role_of(process: psutil.Process, server: Server) -> str:
    """The role of one process of a server; `supervisor` is the one the test started."""
    assert server.process is not None
    if process.pid == server.process.pid:
        return "supervisor"
    line = " ".join(process.cmdline())
    return next((role for role in ROLES if f"etcdfast.{role}" in line), "other")


def by_role(server: Server) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for process in server.processes():
        try:
            found.setdefault(role_of(process, server), []).append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def choose(server: Server, rng: random.Random) -> tuple[str, list[int]]:
    """(what is killed, pids): one process of a random role, or all at once."""
    roles = by_role(server)
    names = sorted(roles)
    pick = rng.choice([*names, "all"]) if len(names) > 1 else "all"
    if pick == "all":
        pids = [pid for name in names for pid in roles[name]]
        rng.shuffle(pids)
        return pick, pids
    return pick, [rng.choice(sorted(roles[pick]))]
