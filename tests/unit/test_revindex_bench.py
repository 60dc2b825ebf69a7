"""The micro benchmark of the revision index, tiny: it must run and count right, whatever it measures."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "bench" / "micro" / "revindex.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_micro_revindex", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runs_and_reports_every_figure(bench):
    figures = bench.run(400, 32)
    assert figures["keys"] == 400
    assert {name.partition("_")[0] for name in figures} == {"keys", "key", "random", "ascending"}
    assert all(value is not None for value in figures.values())


def test_memory_of_one_live_version_stays_below_64_bytes_beyond_the_key(bench):
    """The design target; blocks in use, so the answer does not depend on the size of the load."""
    import random

    from etcdfast._ext.revface import RevisionIndex, drive

    count = 30000
    index = RevisionIndex()
    assert drive(index, "put", bench.packed_keys(count, 32, "random", random.Random(1)), 32) == count
    assert index.stats()["used_bytes"] / count - 32 < 56
