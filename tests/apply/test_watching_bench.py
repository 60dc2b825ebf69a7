"""The micro benchmark of watching, tiny: it must run and count right, whatever it measures."""

from bench.micro import watching


def test_runs_and_reports_every_figure():
    figures = watching.run(1000, 500, questions=100)
    assert {figure.partition("_")[0] for figure in figures} == {"key", "prefix", "range"}
    assert len(figures) == 3 * 3 * 4 + 2 * 3 and all(value is not None for value in figures.values())
