"""Clusters that several tests share are kept when one of the tests fails."""

from tests.cluster.conftest import pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]
