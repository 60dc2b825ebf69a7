"""Loads over TLS and in the name of a user, on a real etcd."""

from __future__ import annotations

import json
import subprocess
import sys

import grpc
import pytest

from etcdfast.api.grpc_stubs import Client
from etcdfast.api.rpcs import message_class
from tests.harness import pb
from tests.harness.certs import Authority
from tests.harness.ports import free_port
from tests.harness.security import ClientSecurity
from tests.harness.servers import reference_server
from tests.harness.wait import wait_until


def bench(*args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "etcdfast.bench", "--conns", "3", "--clients", "12", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


class SecureEtcd:
    def __init__(self, directory):
        self.security = ClientSecurity(directory / "certs")
        port = free_port()
        self.server = reference_server(directory=directory / "etcd", port=port, flags=self.security.server_flags(port))
        self.endpoint = f"127.0.0.1:{port}"
        self.server.spawn()
        self.channel = self.security.channel(self.endpoint)
        self.client = Client(self.channel)
        wait_until(self._answers, "etcd over TLS")

    def _answers(self):
        try:
            return self.client.KV.Range(pb.RangeRequest(key=b"a"), timeout=1)
        except grpc.RpcError:
            return None

    def revision(self):
        return self._answers().header.revision

    def close(self):
        self.channel.close()
        self.server.close()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory):
    server = SecureEtcd(tmp_path_factory.mktemp("secure"))
    yield server
    server.close()


def test_puts_and_reads(etcd):
    before = etcd.revision()
    done = bench(
        "--endpoints", etcd.endpoint, *etcd.security.client_flags(), "put", "--total", "300", "--val-size", "300",
        "--key-space-size", "300", "--sequential-keys", "--report-json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["errors"] == {}
    assert etcd.revision() == before + 300
    # Answers of many records, and a request that fills many, on one connection.
    done = bench(
        "--endpoints", f"https://{etcd.endpoint}", *etcd.security.client_flags(), "range", "--prefix", "",
        "--total", "30",
    )  # fmt: skip
    assert done.returncode == 0 and "Error distribution" not in done.stdout, done.stdout + done.stderr
    done = bench(
        "--endpoints", f"https://{etcd.endpoint}", *etcd.security.client_flags(), "put", "--val-size", "1000000",
        "--total", "15",
    )  # fmt: skip
    assert done.returncode == 0 and "Error distribution" not in done.stdout, done.stdout + done.stderr


def test_watches_and_calls_beside_the_load(etcd):
    done = bench(
        "--endpoints", etcd.endpoint, *etcd.security.client_flags(), "watch", "--streams", "3",
        "--watch-per-stream", "5", "--watched-key-total", "5", "--key-space-size", "5", "--sequential-keys",
        "--put-total", "50",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    done = bench("--endpoints", etcd.endpoint, *etcd.security.client_flags(), "put", "--total", "20", "--check-hashkv")
    assert done.returncode == 0 and "\tHashKV: " in done.stdout, done.stdout + done.stderr


def test_who_the_server_is_is_checked(etcd, tmp_path):
    stranger = Authority(tmp_path, "other-ca")
    flags = etcd.security.client_flags()
    wrong = ["--cacert", str(stranger.ca_path), *flags[2:]]
    done = bench("--endpoints", etcd.endpoint, *wrong, "put", "--total", "20", "--dial-timeout", "300ms")
    assert done.returncode == 1 and "unable to get local issuer certificate" in done.stderr, done.stderr
    done = bench(
        "--endpoints", etcd.endpoint, "--insecure-skip-tls-verify", *wrong, "put", "--total", "20", "--check-hashkv"
    )
    assert done.returncode == 0 and "\tHashKV: " in done.stdout, done.stdout + done.stderr


def test_without_a_certificate_or_without_tls(etcd):
    done = bench(
        "--endpoints",
        etcd.endpoint,
        *etcd.security.client_flags()[:2],
        "put",
        "--total",
        "20",
        "--dial-timeout",
        "300ms",
    )
    assert done.returncode == 1 and "cannot connect" in done.stderr, done.stderr
    done = bench("--endpoints", f"http://{etcd.endpoint}", "put", "--total", "20", "--dial-timeout", "300ms")
    assert done.returncode == 1 and "cannot connect" in done.stderr, done.stderr


def test_in_the_name_of_a_user(etcd):
    """Last: it leaves authentication on."""
    auth = etcd.client.Auth
    for name, fields in (
        ("UserAdd", {"name": "root", "password": "secret"}),
        ("RoleAdd", {"name": "root"}),
        ("UserGrantRole", {"user": "root", "role": "root"}),
        ("Enable", {}),
    ):
        request = message_class(f"etcdserverpb.Auth{name}Request")(**fields)
        getattr(auth, "AuthEnable" if name == "Enable" else name)(request)
    common = ["--endpoints", etcd.endpoint, *etcd.security.client_flags()]
    done = bench(*common, "--user", "root:secret", "put", "--total", "200", "--report-json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["errors"] == {} and report["flags"]["user"] == "root"
    assert "secret" not in done.stdout
    # The certificate's name is no user's: without a token nothing is allowed.
    done = bench(*common, "put", "--total", "20")
    assert done.returncode == 1 and "Error distribution" in done.stdout
    done = bench(*common, "--user", "root:wrong", "put", "--total", "20")
    assert done.returncode == 1
    assert "cannot authenticate" in done.stderr and "invalid user ID or password" in done.stderr
    done = bench(*common, "--user", "root:secret", "--processes", "2", "put", "--total", "50", "--check-hashkv")
    assert done.returncode == 0 and "\tHashKV: " in done.stdout, done.stdout + done.stderr
