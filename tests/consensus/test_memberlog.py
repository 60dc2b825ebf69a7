"""What the core may ask of the log: terms are known from the entry before the first one that can be sent."""

from types import SimpleNamespace

import pytest

from etcdfast._ext.raftlog import RaftLog
from etcdfast.consensus.memberlog import MemberLog


def member_log(snapshot, on_disk_from):
    entries = RaftLog(*snapshot, rows_max=1024, bytes_max=1 << 20)
    reader = SimpleNamespace(first_index=on_disk_from)
    log = MemberLog(SimpleNamespace(log=entries, peers=None), [], snapshot, reader)
    return log, entries, reader


def sendable(log):
    return log.term(log.first_index - 1)


@pytest.mark.parametrize("released_to, on_disk_from, forget, first", [
    (0, 1, 90, 1),  # memory has everything
    (0, 60, 90, 1),
    (40, 1, 0, 1),  # the files have more
    (40, 60, 90, 41),
    (95, 60, 59, 60),
    (95, 60, 90, 91),
    (100, 101, 100, 101),
])  # fmt: skip
def test_the_entry_before_the_first_keeps_its_term(released_to, on_disk_from, forget, first):
    log, entries, reader = member_log((0, 0), 1)
    for index in range(1, 101):
        log.append(1 + index // 10, b"x")
    entries.release_to(released_to)
    reader.first_index = on_disk_from
    log.forget_to(forget)
    assert log.first_index == first
    assert sendable(log) == (1 + (first - 1) // 10 if first > 1 else 0)
    assert [log.term(index) for index in range(first, 101)] == [1 + index // 10 for index in range(first, 101)]
