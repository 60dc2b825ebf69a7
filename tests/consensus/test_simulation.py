"""The raft core under simulated faults; see tests/consensus/sim. A failing seed is in the test's name:

python -m tests.consensus.sim.replay SEED
"""

from pathlib import Path

import pytest

from tests.consensus.cluster_scenario import ClusterScenario
from tests.consensus.scenario import parse
from tests.consensus.sim.mutants import MUTANTS
from tests.consensus.sim.world import FALLING_LEADERS, World

SEEDS = 200
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


# Settings in which rare faults are less rare.
SHOWN_WITH = {
    "CommitsOlderTerms": FALLING_LEADERS,
    "CountsItselfEarly": {"members": 3, "hunt": 1, "fault_ms": 400, "sync_ms_max": 100, "election_ticks": 3},
}
# Those that a few hundred runs may not show are shown by a scenario.
SHOWN_BY = {
    "CommitsOlderTerms": "figure_8",
    "ReadsFromAnyAnswer": "reads_minority",
    "StandsWithAChangePending": "membership_election_waits",
}


@pytest.mark.parametrize("name", sorted(MUTANTS.keys() - {"ReadsFromAnyAnswer", "StandsWithAChangePending"}))
def test_a_planted_fault_is_found(name):
    for seed in range(1, 1000):
        try:
            World(seed, raft_class=MUTANTS[name], settings=SHOWN_WITH.get(name, ())).run()
        except Exception:
            return
    pytest.fail(f"1000 seeds do not find {name}")


@pytest.mark.parametrize("name", SHOWN_BY)
def test_a_scenario_shows_a_planted_fault(name):
    steps = parse((Path(__file__).parent / "scenarios" / f"{SHOWN_BY[name]}.txt").read_text())
    scenario = ClusterScenario(MUTANTS[name])
    assert [scenario.run(command) for _, command, _ in steps] != [expected for _, _, expected in steps]
