"""Which worker runs which tests, when pytest runs several (`make test` does).

A file's tests stay together, for what they share; those of the files below that share nothing go one by one.
Long ones begin first, so that none of them is alone at the end. Both lists are about time only: a file
that is missing in them is run all the same.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

ONE_BY_ONE = (
    "tests/crash/test_kill9.py",
    "tests/crash/test_faults.py",
    "tests/cluster/test_mixed.py",
    "tests/consensus/test_restart.py",
    "tests/consensus/test_simulation.py",
    "tests/cluster/test_bootstrap.py",
    "tests/unit/test_revindex.py",
)
LONG = (
    *ONE_BY_ONE,
    "tests/cluster/test_faults.py",
    "tests/ecosystem/test_patroni.py",
    "tests/tls/test_members.py",
    "tests/e2e/test_howto.py",
    "tests/differential/test_random_calls.py",
    "tests/e2e/test_coordination.py",
    "tests/bench/test_compare.py",
    "tests/bench/test_cli.py",
    "tests/differential/test_snapshot.py",
    "tests/crash/test_watch_storm.py",
    "tests/crash/test_powerloss.py",
    "tests/crash/test_linearizable.py",
    "tests/crash/test_lease_expiry.py",
    "tests/crash/test_snapshot_kill.py",
    "tests/apply/test_importing.py",
    "tests/cluster/test_basics.py",
    "tests/cluster/test_network.py",
    "tests/cluster/test_refusals.py",
    "tests/cluster/test_leases.py",
    "tests/consensus/test_process.py",
    "tests/differential/test_lease.py",
    "tests/differential/test_watch.py",
    "tests/bench/test_watch_load.py",
    "tests/utl/test_migrate.py",
    "tests/supervisor/test_member.py",
    "tests/peers/test_etcd_member.py",
)


def longest_first(items: list[pytest.Item]) -> None:
    place = {file: number for number, file in enumerate(LONG)}
    items.sort(key=lambda item: place.get(_file(item.nodeid), len(LONG)))


class Scheduling(LoadScopeScheduling):
    """Hands the tests out in their order, by file."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file = _file(nodeid)
        return nodeid if file in ONE_BY_ONE else file


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]
