"""The micro benchmark runs, so that it does not rot. Nothing is timed here."""

import importlib.util
from pathlib import Path


def test_micro_benchmark_runs(tmp_path):
    path = Path(__file__).resolve().parents[2] / "bench" / "micro" / "consensus.py"
    spec = importlib.util.spec_from_file_location("bench_micro_consensus", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    figures = module.run(clients=10, total=200, value_bytes=16, reads=0.5, data_dir=tmp_path)
    assert figures["clients"] == 10
    assert figures["requests_per_second"] > 0
