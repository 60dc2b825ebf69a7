"""Replay and shrink a watch history: `python -m tests.differential.watch_replay SEED [--steps N] [--only I,J,...]`."""

from __future__ import annotations

import argparse
import sys
import time

from .minimise import minimise
from .watch_runner import WatchSummary, fresh_pair_history

SHRINK_SETTLE_SECONDS = 3.0  # an event that is missing costs this much in each replay


def describe(seed: int, summary: WatchSummary, limit_seconds: float = 60.0) -> str:
    """The failure, how to replay it, and a short list of steps that shows it (if it shows again)."""
    steps, last = summary.steps, summary.failure
    text = f"{last}\nreplay: python -m tests.differential.watch_replay {seed} --steps {steps}\n"

    def fails(indexes: object) -> bool:
        nonlocal last
        found = fresh_pair_history(seed, indexes, settle_seconds=SHRINK_SETTLE_SECONDS)  # type: ignore[arg-type]
        last = found.failure or last
        return found.failure is not None

    start = time.monotonic()
    if not fails(range(steps)):
        return f"{text}it does not show again in a second run"
    kept = minimise(range(steps), fails, limit_seconds - (time.monotonic() - start))
    only = ",".join(map(str, kept))
    return f"{text}shrunk to {len(kept)} steps: python -m tests.differential.watch_replay {seed} --only {only}\n{last}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, default=1200, help="number of steps from the start")
    parser.add_argument("--only", help="comma-separated step indexes instead")
    parser.add_argument("--shrink-seconds", type=float, default=60.0, help="0: do not shrink")
    parser.add_argument("--show", action="store_true", help="print every step of --only")
    arguments = parser.parse_args()
    indexes = [int(word) for word in arguments.only.split(",")] if arguments.only else list(range(arguments.steps))
    summary = fresh_pair_history(arguments.seed, indexes, trace=print if arguments.show else None)
    print(f"{summary.steps} steps: {dict(summary.kinds)}")
    print(f"{summary.watches} watches, {summary.events} events; known differences: {dict(summary.known)}")
    if summary.failure is None:
        print("no unexplained difference")
        return 0
    if arguments.only or not arguments.shrink_seconds:
        print(summary.failure)
    else:
        print(describe(arguments.seed, summary, arguments.shrink_seconds))
    return 1


if __name__ == "__main__":
    sys.exit(main())
