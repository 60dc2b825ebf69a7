"""The micro benchmark of apply, tiny, so that it does not rot."""

import io

from bench.micro import apply


def test_micro_benchmark_runs():
    out = io.StringIO()
    apply.main(["--entries", "300", "--batch", "20", "--keys", "8", "--values", "16"], out)
    text = out.getvalue()
    assert "put" in text and "range of one key" in text and "start with 300 keys" in text
