"""etcd3-py, a client that speaks to the JSON gateway only: same lines from etcd and from etcdfast."""

from __future__ import annotations

import sys
from pathlib import Path

from .runs import same_lines


def test_the_flows_of_its_documentation() -> None:
    lines = same_lines([sys.executable, str(Path(__file__).with_name("etcd3py_flows.py"))])
    assert lines[-1] == "-- end" and len(lines) > 40
