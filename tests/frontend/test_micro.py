"""The micro benchmark runs, tiny, so that it does not rot."""

import shutil

import pytest

from bench.micro import frontend


@pytest.mark.skipif(not shutil.which("h2load"), reason="nghttp2-client is not installed")
def test_the_benchmark_answers_every_call():
    assert frontend.measure(calls=2000, conns=4, streams=5, value_bytes=64)["answered"] >= 2000
