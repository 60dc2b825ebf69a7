"""Until etcdfast can be a cluster its tests run where they are asked for, and against etcd."""

from __future__ import annotations

import os

import pytest

from tests.harness import target_name
from tests.harness.cluster import Failures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if target_name() == "etcdfast" and not os.environ.get("ETCDFAST_TEST_CLUSTER"):
        for item in items:
            if item.path.parent.name == "cluster":
                item.add_marker(pytest.mark.skip(reason="etcdfast has no clusters yet"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    Failures.count += report.failed
    return report
