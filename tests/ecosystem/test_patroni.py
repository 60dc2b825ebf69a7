"""Patroni runs PostgreSQL on etcdfast's JSON gateway: leader election, replication, switchover, configuration."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import pb
from tests.harness.servers import Server, target_server
from tests.harness.wait import wait_until

from .patroni import PATRONI, SCOPE, Node, postgres_bin

pytestmark = pytest.mark.skipif(
    PATRONI is None or postgres_bin() is None,
    reason="no Patroni and PostgreSQL here (apt-get install patroni postgresql)",
)


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="patroni-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


def _value(server: Server, name: str) -> str | None:
    with server.client() as client:
        found = client.call("Range", pb.RangeRequest(key=f"/service/{SCOPE}/{name}".encode())).message.kvs
    return found[0].value.decode() if found else None


def _keys(server: Server) -> set[str]:
    prefix = f"/service/{SCOPE}/".encode()
    with server.client() as client:
        found = client.call("Range", pb.RangeRequest(key=prefix, range_end=prefix[:-1] + b"0", keys_only=True)).message
    return {kv.key.removeprefix(prefix).decode() for kv in found.kvs}


def test_a_cluster_of_two_and_a_switchover(directory: Path) -> None:
    with target_server() as server:
        first, second = Node("one", directory, server), Node("two", directory, server)
        try:
            first.start()
            first.wait_for("leader", "the leader")
            assert _value(server, "leader") == "one"
            first.sql("create table t (n int)")
            second.start()
            second.wait_for("replica", "a replica")
            first.sql("insert into t values (7)")
            wait_until(lambda: second.sql("select count(*) from t") == "1", "the row to come to the replica")
            assert {"config", "initialize", "leader", "members/one", "members/two", "status"} <= _keys(server)

            first.ctl("switchover", SCOPE, "--leader", "one", "--candidate", "two", "--force")
            second.wait_for("leader", "the leader")
            assert _value(server, "leader") == "two"
            first.wait_for("replica", "a replica")
            second.sql("insert into t values (8)")

            first.ctl("edit-config", SCOPE, "--set", "ttl=25", "--force", "--quiet")
            assert json.loads(_value(server, "config") or "{}")["ttl"] == 25
            history = json.loads(_value(server, "history") or "[]")
            assert len(history) >= 1
            assert "two" in second.ctl("list", SCOPE)

            # A leader that stops in order gives its key back; the other takes over.
            second.stop()
            first.wait_for("leader", "the leader")
            assert first.sql("select sum(n) from t") == "15"
        finally:
            first.stop()
            second.stop()
