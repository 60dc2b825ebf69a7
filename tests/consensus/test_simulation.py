"""The raft core under simulated faults; see tests/consensus/sim. A failing seed is in the test's name:

python -m tests.consensus.sim.replay SEED
"""

import pytest

from tests.consensus.sim.mutants import MUTANTS
from tests.consensus.sim.world import World

SEEDS = 300
CHUNK = 50


@pytest.mark.parametrize("first", range(1, SEEDS, CHUNK))
def test_nothing_committed_is_lost_whatever_fails(first):
    for seed in range(first, first + CHUNK):
        try:
            World(seed).run()
        except Exception as err:
            err.add_note(f"python -m tests.consensus.sim.replay {seed}")
            raise


def test_a_seed_repeats_exactly():
    told = []
    for _ in range(2):
        lines = []
        World(7, trace=lines.append).run()
        told.append(lines)
    assert told[0] == told[1]
    assert len(told[0]) > 10


# A few of the planted faults, each with a seed that shows it early.
@pytest.mark.parametrize("name", ["VotesTwice", "VotesForShorterLogs", "AcknowledgesEarly", "ForgetsReplacedEntries"])
def test_a_planted_fault_is_found(name):
    for seed in range(1, SEEDS):
        try:
            World(seed, raft_class=MUTANTS[name]).run()
        except Exception:
            return
    pytest.fail(f"{SEEDS} seeds do not find {name}")
