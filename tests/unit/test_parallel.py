"""The lists by which workers share the tests name files that are there."""

from pathlib import Path

import pytest

from tests import parallel

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("file", parallel.LONG)
def test_a_listed_file_is_there(file):
    assert (ROOT / file).is_file()


@pytest.mark.parametrize("file", parallel.ONE_BY_ONE)
def test_a_file_that_is_run_one_by_one_shares_no_fixture(file):
    """Each test would make the shared thing anew."""
    assert "scope=" not in (ROOT / file).read_text()
