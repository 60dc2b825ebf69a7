"""A three-node HTTPS cluster as the production how-tos set it up: a YAML file and a set of certificates per node,
started by `etcd --config-file` (here `etcdfast`), operated with etcdctl, all three endpoints and certificates."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from tests.harness.certs import Authority
from tests.harness.ports import free_port
from tests.harness.servers import BIN_DIR, target_name
from tests.harness.wait import wait_until

TOKEN = "etcd-cluster-tls"


def program() -> list[str]:
    if target_name() == "etcd":
        return [str(BIN_DIR / "etcd")]
    return [sys.executable, "-m", "etcdfast"]


class Site:
    """The directory of the how-to: certificates in pki/, one folder per node."""

    def __init__(self, directory: Path, names: tuple[str, ...] = ("node1", "node2", "node3")) -> None:
        self.directory = directory
        self.authority = Authority(directory / "pki")
        self.root = self.authority.issue("etcdctl", server=False)
        self.nodes = [Node(self, name) for name in names]

    @property
    def initial_cluster(self) -> str:
        return ",".join(f"{node.name}={node.peer_url}" for node in self.nodes)

    def start(self, *nodes: Node) -> None:
        for node in nodes or self.nodes:
            node.start()

    def close(self) -> None:
        for node in self.nodes:
            node.kill()

    def ctl(self, *words: str, endpoints: list[Node] | None = None, user: str = "", check: bool = True) -> str:
        """etcdctl with all endpoints and certificates, given through its variables as in the how-tos."""
        environment = {
            **os.environ,
            "ETCDCTL_API": "3",
            "ETCDCTL_ENDPOINTS": ",".join(node.client_url for node in endpoints or self.nodes),
            "ETCDCTL_CACERT": str(self.authority.ca_path),
            "ETCDCTL_CERT": str(self.root.cert_path),
            "ETCDCTL_KEY": str(self.root.key_path),
        }
        if user:
            environment["ETCDCTL_USER"] = user
        ran = subprocess.run(
            [str(BIN_DIR / "etcdctl"), "--dial-timeout=10s", "--command-timeout=30s", *words],
            capture_output=True,
            text=True,
            timeout=90,
            env=environment,
        )
        if check:
            logs = "".join(node.log_tail() for node in self.nodes)
            assert ran.returncode == 0, f"etcdctl {' '.join(words)}: {ran.stdout}{ran.stderr}\n{logs}"
        return ran.stdout if check else ran.stdout + ran.stderr


class Node:
    """One host: its file, its certificates, its process."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.name = site, name
        self.directory = site.directory / name
        self.directory.mkdir()
        self.client_url = f"https://127.0.0.1:{free_port()}"
        self.peer_url = f"https://127.0.0.1:{free_port()}"
        self.metrics_url = f"http://127.0.0.1:{free_port()}"
        self.cert = site.authority.issue(name, hosts=["127.0.0.1", "localhost"])
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def config_path(self) -> Path:
        return self.directory / "etcd.conf.yml"

    def write_config(self, initial_cluster: str, state: str = "new", token: str = TOKEN) -> None:
        security = {
            "cert-file": str(self.cert.cert_path),
            "key-file": str(self.cert.key_path),
            "trusted-ca-file": str(self.site.authority.ca_path),
            "client-cert-auth": True,
        }
        config = {
            "name": self.name,
            "data-dir": str(self.data_dir),
            "listen-peer-urls": self.peer_url,
            "listen-client-urls": self.client_url,
            "listen-metrics-urls": self.metrics_url,
            "initial-advertise-peer-urls": self.peer_url,
            "advertise-client-urls": self.client_url,
            "initial-cluster": initial_cluster,
            "initial-cluster-token": token,
            "initial-cluster-state": state,
            "heartbeat-interval": 100,
            "election-timeout": 1000,
            "quota-backend-bytes": 4294967296,
            "auto-compaction-mode": "periodic",
            "auto-compaction-retention": "1h",
            "client-transport-security": security,
            "peer-transport-security": security,
            "log-level": "info",
        }
        self.config_path.write_text(yaml.safe_dump(config, sort_keys=False))

    def start(self) -> None:
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*program(), "--config-file", str(self.config_path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={key: value for key, value in os.environ.items() if not key.startswith("ETCD_")},
            )

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(30) in (0, -signal.SIGTERM), self.log_tail()

    def kill(self) -> None:
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(20)

    def wipe(self) -> None:
        shutil.rmtree(self.data_dir)

    def log_tail(self) -> str:
        path = self.directory / "log"
        return f"--- {self.name}\n{path.read_text(errors='replace')[-1500:]}\n" if path.exists() else ""


def wait_healthy(site: Site, nodes: list[Node]) -> None:
    wait_until(
        lambda: "successfully committed" in site.ctl("endpoint", "health", endpoints=nodes[:1], check=False),
        f"{nodes[0].name} to be healthy",
        deadline_seconds=60,
    )
    site.ctl("endpoint", "health", endpoints=nodes)
