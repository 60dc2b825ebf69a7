"""What holds for every test of the project."""

import os
import signal
import sys

import hypothesis
import pytest

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("etcdfast", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("etcdfast")

# Most tests wait: for servers to start, for disks, for time limits.
WORKERS_PER_CORE = 2


def pytest_configure():
    # Servers are started a thousand times: where Python is told to keep no compiled modules, each start compiles
    # its own anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # A shell that starts `make test &` has it ignore SIGINT, and so would every server and tool under test,
    # by inheritance: a handler of our own is not inherited, they begin with the default again.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# -- several workers (pytest -n auto, as `make test` does): which runs what is in parallel.py -----------------------


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    return WORKERS_PER_CORE * len(os.sched_getaffinity(0))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from tests.parallel import Scheduling

    return Scheduling(config, log)


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        from tests.parallel import longest_first

        longest_first(items)
