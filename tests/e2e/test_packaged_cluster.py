"""The three members of packaging/compose.yaml with the certificates of packaging/make-certs, without containers.

Addresses and paths are replaced, everything else is the file's; etcdctl talks to them as the file's head says.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.harness.ports import free_port
from tests.harness.servers import ETCDCTL
from tests.harness.wait import wait_until

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"
NAMES = ("m1", "m2", "m3")


class Packaged:
    def __init__(self, folder):
        self.folder = folder
        subprocess.run([PACKAGING / "make-certs", folder / "certs", *NAMES], check=True)
        self.ports = {name: (free_port(), free_port(), free_port()) for name in NAMES}
        services = yaml.safe_load((PACKAGING / "compose.yaml").read_text())["services"]
        self.processes = {name: self.start(name, services[name]["environment"]) for name in NAMES}

    def start(self, name, settings):
        environ = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
        for variable, text in settings.items():
            text = text.replace("/certs/", f"{self.folder}/certs/").replace("/var/lib/etcd", f"{self.folder}/{name}")
            for member, (client, peer, _) in self.ports.items():
                text = text.replace(f"//{member}:2379", f"//localhost:{client}")
                text = text.replace(f"//{member}:2380", f"//localhost:{peer}")
            for ours, port in zip((2379, 2380, 2381), self.ports[name]):
                text = text.replace(f"//0.0.0.0:{ours}", f"//127.0.0.1:{port}")
                text = text.replace(f"//127.0.0.1:{ours}", f"//127.0.0.1:{port}")
            environ[variable] = text
        with open(self.folder / f"{name}.log", "wb") as log:
            return subprocess.Popen([sys.executable, "-m", "etcdfast"], cwd=ROOT, env=environ, stderr=log)

    def logs(self):
        return {name: (self.folder / f"{name}.log").read_text() for name in NAMES}

    def etcdctl(self, *arguments, names=NAMES, identity="client"):
        endpoints = ",".join(f"https://localhost:{self.ports[name][0]}" for name in names)
        certs = self.folder / "certs"
        own = [f"--cert={certs / identity}.crt", f"--key={certs / identity}.key"] if identity else []
        command = [ETCDCTL, f"--endpoints={endpoints}", f"--cacert={certs / 'ca.crt'}", *own, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def stop(self):
        for process in self.processes.values():
            process.terminate()
        return [process.wait(60) for process in self.processes.values()]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Packaged(tmp_path_factory.mktemp("packaged"))
    try:
        wait_until(
            lambda: (
                all("ready to serve client requests" in text for text in cluster.logs().values())
                or any(process.poll() is not None for process in cluster.processes.values())
            ),
            "three members are ready",
            60,
        )
        assert all(process.poll() is None for process in cluster.processes.values()), cluster.logs()
        yield cluster
    finally:
        cluster.stop()


def test_what_one_member_takes_every_member_has(cluster):
    put = cluster.etcdctl("put", "k", "v", names=["m1"])
    assert (put.returncode, put.stdout) == (0, "OK\n"), put.stderr
    for name in NAMES:
        assert cluster.etcdctl("get", "k", names=[name]).stdout == "k\nv\n"
    status = json.loads(cluster.etcdctl("endpoint", "status", "--cluster", "-w", "json").stdout)
    assert len(status) == 3
    assert len({found["Status"]["leader"] for found in status}) == 1
    assert all(found["Endpoint"].startswith("https://localhost:") for found in status)


def test_who_has_no_certificate_is_not_served(cluster):
    refused = cluster.etcdctl("--command-timeout=1s", "--dial-timeout=1s", "get", "k", names=["m1"], identity=None)
    assert refused.returncode != 0


def test_members_stop_by_the_signal(cluster):
    assert cluster.stop() == [-signal.SIGTERM] * 3
