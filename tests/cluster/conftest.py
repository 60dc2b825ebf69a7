"""Clusters that several tests share are kept when one of the tests fails."""

from __future__ import annotations

import pytest

from tests.harness.cluster import Failures


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    Failures.count += report.failed
    return report
