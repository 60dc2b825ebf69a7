"""Rounds of load, kill -9, restart and check on one data directory."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.harness import EtcdServer, Server, pb, target_name, target_server

from .checker import Broken, Checker
from .history import Operation
from .victims import choose
from .workload import Load

CONTENTS_EVERY = 20
STOP_CHANCE = 0.08
START_KILL_CHANCE = 0.15
COMPACT_EVERY = 4


@dataclass(slots=True)
class Report:
    rounds: int = 0
    killed: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    unanswered: int = 0
    unanswered_found: int = 0
    compactions: int = 0


def crash_rounds(
    seed: int, rounds: int, flags: list[str] | None = None, environment: dict[str, str] | None = None
) -> Report:
    """Run them. Errors: Broken with seed, round and the end of the server's log."""
    rng = random.Random(seed)
    report = Report()
    server = target_server(flags=flags or [], environment=environment)
    # No fsync: it never crashes, and it only has to keep up.
    mirror = EtcdServer(flags=["--unsafe-no-fsync", "--quota-backend-bytes", str(8 << 30)])
    try:
        server.spawn()
        mirror.spawn()
        mirror.wait_ready()
        server.wait_ready()
        with mirror.client() as mirror_client:
            checker = Checker(mirror_client)
            for number in range(rounds):
                try:
                    _round(server, checker, rng, number, report)
                except AssertionError as error:
                    raise Broken(f"seed {seed}, round {number}: {error}\n{server.log_tail()}") from error
    finally:
        server.close()
        mirror.close()
    return report


def _round(server: Server, checker: Checker, rng: random.Random, number: int, report: Report) -> None:
    mine = [key for key in checker.model.live if not key.startswith(b"hot/")]
    load = Load(server, rng, number, mine)
    load.start()
    load.wait_answers(rng.choice((1, rng.randint(2, 60), rng.randint(60, 400))))
    compact = number % COMPACT_EVERY == COMPACT_EVERY - 1 and checker.model.current > checker.compacted + 50
    if compact:
        # Never above the last round's revision, so this round's writes can still be read one by one.
        revision = rng.randint(max(checker.compacted + 1, 2), checker.model.current)
        with server.client(20) as client:
            request = pb.CompactionRequest(revision=revision, physical=rng.random() < 0.3)
            pending = client.start("Compact", request)
            if rng.random() < 0.7:
                pending.reply()
                report.compactions += 1
    if rng.random() < STOP_CHANCE:
        what = "SIGTERM"
        server.stop()
    else:
        what, pids = choose(server, rng)
        server.kill9(pids)
        if server.wait_exit(10) == 0:
            raise Broken(f"{what} was killed, and the member ended with status 0")
    answered, unanswered = load.join()
    if rng.random() < START_KILL_CHANCE:
        # Death in any stage of the replay: nothing that was recovered may be lost by recovering.
        server.spawn()
        time.sleep(rng.uniform(0.02, 0.6))
        server.kill9()
        what += ", then again in the start"
    server.start()
    with server.client() as client:
        found = checker.after_restart(client, answered, unanswered)
        if what.startswith("SIGTERM") and found and not is_self_test():
            raise Broken(f"{len(found)} writes were done but not answered, though the member was stopped cleanly")
        if number % CONTENTS_EVERY == CONTENTS_EVERY - 1:
            checker.check_contents(client)
    report.rounds += 1
    report.killed[what] += 1
    report.answered += len(answered)
    report.unanswered += len(unanswered)
    report.unanswered_found += len(found)


def is_self_test() -> bool:
    return target_name() == "etcd"


__all__ = ["Broken", "Operation", "Report", "crash_rounds", "is_self_test"]
