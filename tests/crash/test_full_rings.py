"""kill -9 of one process while another stands still and the rings between them are full."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.harness import pb, target_name, target_server
from tests.harness.wait import wait_until

from .victims import by_role

BEFORE, PUTS, VALUE_BYTES = 60, 160, 100_000  # 16 MB: more than all rings and the raft log hold


def _value(number: int) -> bytes:
    return b"%d=" % number + bytes(VALUE_BYTES)


@pytest.mark.skipif(target_name() == "etcd", reason="etcd is one process")
@pytest.mark.parametrize(
    "still, killed",
    [("apply", "consensus"), ("apply", "frontend"), ("consensus", "apply"), ("frontend", "consensus")],
)
def test_death_in_a_jam(still: str, killed: str) -> None:
    with target_server() as server:
        roles = by_role(server)
        with server.client() as client:
            answered = {number: client.put(b"%d" % number, _value(number)) for number in range(BEFORE)}
            os.kill(roles[still][0], signal.SIGSTOP)
            pending = [
                client.start("Put", pb.PutRequest(key=b"%d" % number, value=_value(number)))
                for number in range(BEFORE, BEFORE + PUTS)
            ]
            if still != "frontend":
                # It takes from the socket until there is no room; then it rests.
                wait_until(lambda: _rests(roles["frontend"][0]), "the frontend full")
            os.kill(roles[killed][0], signal.SIGKILL)
            os.kill(roles[still][0], signal.SIGCONT)
            for number, one in enumerate(pending, BEFORE):
                reply = one.reply()
                if reply.ok:
                    answered[number] = reply.message
        assert server.wait_exit(20) != 0
        server.start()
        with server.client() as client:
            revisions = {}
            for number in range(BEFORE + PUTS):
                kvs = client.get(b"%d" % number).kvs
                if number in answered:
                    assert kvs, f"put {number} was answered and is lost"
                    assert kvs[0].mod_revision == answered[number].header.revision
                if kvs:
                    assert (kvs[0].value, kvs[0].version) == (_value(number), 1), f"put {number} done wrong or twice"
                    revisions[kvs[0].mod_revision] = number
            # One connection, one order: no hole in what was taken over.
            assert sorted(revisions) == list(range(2, 2 + len(revisions)))


def _rests(pid: int) -> bool:
    before = _cpu_ticks(pid)
    time.sleep(0.25)
    return _cpu_ticks(pid) == before


def _cpu_ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
