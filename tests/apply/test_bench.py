"""The micro benchmarks of apply, tiny, so that they do not rot."""

import io

from bench.micro import apply, leases


def test_micro_benchmark_runs():
    out = io.StringIO()
    apply.main(["--entries", "300", "--batch", "20", "--keys", "8", "--values", "16"], out)
    text = out.getvalue()
    assert "put" in text and "range of one key" in text and "start with 300 keys" in text


def test_micro_benchmark_of_leases_runs():
    out = io.StringIO()
    leases.main(["--leases", "600", "--keyed", "50"], out)
    assert all(name in out.getvalue() for name in ("grant", "keep-alive", "restart", "promote", "expiry"))
