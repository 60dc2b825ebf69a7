"""What the target does not serve yet: its tests run against etcd alone until the mark goes.

ETCDFAST_TEST_PENDING=1 runs them against etcdfast as well.
"""

from __future__ import annotations

import os

import pytest

from .servers import target_name

coordination = pytest.mark.skipif(
    target_name() != "etcd" and not os.environ.get("ETCDFAST_TEST_PENDING"),
    reason="watches, leases, locks and elections are not served yet",
)
