"""The commands of a usual production how-to, word for word, with etcdfast in the place of etcd."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import etcdutl
from tests.harness.servers import BIN_DIR
from tests.harness.wait import wait_until

from .howto import Node, Site, wait_healthy


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        site.close()


def _status(site: Site, nodes: list[Node]) -> list[dict[str, object]]:
    return [row["Status"] for row in json.loads(site.ctl("endpoint", "status", "-w", "json", endpoints=nodes))]


def _member_ids(site: Site, nodes: list[Node]) -> dict[str, str]:
    rows = (line.split(", ") for line in site.ctl("member", "list", endpoints=nodes).splitlines())
    return {row[2]: row[0] for row in rows}


def test_three_nodes_from_first_start_to_restore(site: Site, tmp_path: Path) -> None:
    for node in site.nodes:
        node.write_config(site.initial_cluster)
    site.start()
    wait_healthy(site, site.nodes)

    # Look around, write, read.
    table = site.ctl("endpoint", "status", "--write-out=table", "--cluster")
    assert all(node.client_url in table for node in site.nodes)
    assert sum(status["leader"] == status["header"]["member_id"] for status in _status(site, site.nodes)) == 1
    assert site.ctl("member", "list").count("started") == 3
    site.ctl("put", "greeting", "hello")
    assert site.ctl("get", "greeting", "--print-value-only", endpoints=site.nodes[2:]) == "hello\n"
    with urllib.request.urlopen(f"{site.nodes[0].metrics_url}/health", timeout=10) as health:
        assert json.load(health)["health"] == "true"
    with urllib.request.urlopen(f"{site.nodes[0].metrics_url}/metrics", timeout=10) as metrics:
        assert b"etcd_server_has_leader 1" in metrics.read()

    # Who brings no certificate is not served.
    refused = subprocess.run(
        [str(BIN_DIR / "etcdctl"), "--endpoints", site.nodes[0].client_url, "--command-timeout=2s", "--dial-timeout=2s",
         "--cacert", str(site.authority.ca_path), "get", "greeting"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert refused.returncode != 0 and "hello" not in refused.stdout

    # Compaction and defragmentation.
    for value in ("one", "two", "three"):
        site.ctl("put", "changing", value)
    revision = _status(site, site.nodes)[0]["header"]["revision"]
    assert site.ctl("compaction", str(revision)) == f"compacted revision {revision}\n"
    assert site.ctl("defrag", "--cluster").count("Finished defragmenting") == 3

    # Backup.
    backup = tmp_path / "snapshot.db"
    site.ctl("snapshot", "save", str(backup), endpoints=site.nodes[:1])
    assert etcdutl.status(backup)["revision"] == revision

    # A node is lost, removed, and another comes in its place.
    ids = _member_ids(site, site.nodes)
    lost = site.nodes.pop(2)
    lost.kill()
    wait_healthy(site, site.nodes)
    # etcd 3.5.1 loses a change of members that its new leader hears of too early, so something goes before it.
    site.ctl("put", "after", "the loss", endpoints=site.nodes)
    site.ctl("member", "remove", ids[lost.name], endpoints=site.nodes)
    replacement = Node(site, "node4")

    def add() -> str | None:
        """Refused as "unhealthy cluster" until everybody has been connected for 5 s."""
        words = ("member", "add", "node4", f"--peer-urls={replacement.peer_url}")
        lines = site.ctl(*words, endpoints=site.nodes, check=False).splitlines()
        found = [line.split("=", 1)[1] for line in lines if line.startswith("ETCD_INITIAL_CLUSTER=")]
        return found[0].strip('"') if found else None

    initial_cluster = wait_until(add, "the new member to be taken", deadline_seconds=60)
    site.nodes.append(replacement)
    replacement.write_config(initial_cluster, state="existing")
    replacement.start()
    wait_healthy(site, site.nodes[::-1])
    assert site.ctl("get", "greeting", "--print-value-only", endpoints=[replacement]) == "hello\n"
    assert set(_member_ids(site, site.nodes)) == {"node1", "node2", "node4"}

    # Auth, as the how-tos switch it on.
    site.ctl("user", "add", "root:secret")
    site.ctl("user", "grant-role", "root", "root")
    site.ctl("auth", "enable")
    site.ctl("put", "greeting", "with a password", user="root:secret")
    assert "invalid user ID or password" in site.ctl("get", "greeting", user="root:wrong", check=False)
    site.ctl("auth", "disable", user="root:secret")

    # A rolling restart.
    for node in site.nodes:
        node.stop()
        node.start()
        wait_healthy(site, [node])

    # Everything is lost but the backup.
    for node in site.nodes:
        node.stop()
        node.wipe()
    for node in site.nodes:
        restored = etcdutl.run(
            "snapshot", "restore", backup, "--name", node.name, "--data-dir", node.data_dir,
            "--initial-cluster", site.initial_cluster, "--initial-cluster-token", "restored",
            "--initial-advertise-peer-urls", node.peer_url,
        )  # fmt: skip
        assert restored.returncode == 0, restored.stderr
        node.write_config(site.initial_cluster, token="restored")
    site.start()
    wait_healthy(site, site.nodes)
    assert site.ctl("get", "greeting", "--print-value-only") == "hello\n"
