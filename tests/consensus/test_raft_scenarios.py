"""The raft core against scenarios in plain text; see scenario.py (one member) and cluster_scenario.py
(several) for the commands."""

import os
from pathlib import Path

import pytest

from tests.consensus.cluster_scenario import ClusterScenario
from tests.consensus.scenario import Scenario, parse, render

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path):
    steps = parse(path.read_text())
    assert steps, f"{path.name} holds no step"
    scenario = ClusterScenario() if steps[0][1].startswith("cluster") else Scenario()
    shown = [(comments, command, scenario.run(command)) for comments, command, _ in steps]
    if os.environ.get("ETCDFAST_REWRITE"):
        path.write_text(render(shown))
        return
    for (_, command, expected), (_, _, found) in zip(steps, shown, strict=True):
        assert found == expected, f"{path.name}: {command}"


def test_scenarios_exist():
    assert FILES
