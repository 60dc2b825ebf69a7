"""Replay and shrink a run: `python -m tests.differential.replay SEED [--calls N] [--only I,J,...]`."""

from __future__ import annotations

import argparse
import sys

from .minimise import minimise
from .runner import Failure, fresh_pair_run


def shrink(failure: Failure, limit_seconds: float) -> tuple[list[int], Failure]:
    """Fewer calls that still end in an unexplained difference, and that difference."""
    seed, last = failure.seed, failure
    whole = range(max(failure.call.index, 0) + 1)

    def fails(indexes: object) -> bool:
        nonlocal last
        found = fresh_pair_run(seed, indexes).failure  # type: ignore[arg-type]
        if found is not None:
            last = found
        return found is not None

    kept = minimise(whole, fails, limit_seconds)
    again = fresh_pair_run(seed, kept).failure
    return kept, again or last


def describe(failure: Failure, limit_seconds: float = 60.0) -> str:
    """The failure, how to replay it, and a short list of calls that shows it."""
    kept, small = shrink(failure, limit_seconds)
    only = ",".join(map(str, kept))
    return (
        f"{failure}\n"
        f"replay: python -m tests.differential.replay {failure.seed} --calls {failure.call.index + 1}\n"
        f"shrunk to {len(kept)} calls: python -m tests.differential.replay {failure.seed} --only {only}\n"
        f"{small}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--calls", type=int, default=20_000, help="number of calls from the start")
    parser.add_argument("--only", help="comma-separated call indexes instead")
    parser.add_argument("--shrink-seconds", type=float, default=60.0, help="0: do not shrink")
    parser.add_argument("--show", action="store_true", help="print every call of --only")
    arguments = parser.parse_args()
    if arguments.only:
        indexes = [int(word) for word in arguments.only.split(",")]
    else:
        indexes = list(range(arguments.calls))
    trace = print if arguments.show else None
    summary = fresh_pair_run(arguments.seed, indexes, trace)
    print(f"{summary.calls} calls: {dict(summary.methods)}; known differences: {dict(summary.known)}")
    if summary.failure is None:
        print("no unexplained difference")
        return 0
    if arguments.only or not arguments.shrink_seconds:
        print(summary.failure)
    else:
        print(describe(summary.failure, arguments.shrink_seconds))
    return 1


if __name__ == "__main__":
    sys.exit(main())
