"""A process that is behind goes to the end of the queue, and comes back; tried in a process of its own."""

import subprocess
import sys

CODE = """
import os
from etcdfast.ipc.yielding import Yielding
usual = os.getpriority(os.PRIO_PROCESS, 0)
yielding = Yielding()
told = []
for entries in (0, 19_999, 20_000, 5_000, 2_000, 5_000):
    yielding.note(entries)
    told.append((yielding.yields, os.getpriority(os.PRIO_PROCESS, 0) - usual))
print(told)
"""


def test_it_yields_while_it_is_far_behind():
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    told = eval(out)
    if not any(yields for yields, _ in told):
        assert all(nice == 0 for _, nice in told)  # this user may not come back, so it never goes
        return
    assert [yields for yields, _ in told] == [False, False, True, True, False, False]
    assert [nice > 0 for _, nice in told] == [False, False, True, True, False, False]
