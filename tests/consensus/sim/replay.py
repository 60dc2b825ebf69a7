"""Repeat a run and tell what happened: python -m tests.consensus.sim.replay SEED [--chaos-ms N] [--mutant NAME]

Or run many: python -m tests.consensus.sim.replay FIRST --runs N
"""

import argparse
import sys
import traceback

from tests.consensus.sim.mutants import MUTANTS
from tests.consensus.sim.world import CHAOS_MS, World


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--chaos-ms", type=int, default=CHAOS_MS)
    parser.add_argument("--mutant", choices=sorted(MUTANTS))
    options = parser.parse_args()
    more = {"raft_class": MUTANTS[options.mutant]} if options.mutant else {}
    failed = 0
    for seed in range(options.seed, options.seed + options.runs):
        world = World(seed, chaos_ms=options.chaos_ms, trace=print if options.runs == 1 else None, **more)
        try:
            world.run()
        except Exception:
            failed += 1
            traceback.print_exc(limit=-4)
            print(
                f"at {world.now} ms: python -m tests.consensus.sim.replay {seed} --chaos-ms {options.chaos_ms}",
                flush=True,
            )
    print(f"{options.runs} runs, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
