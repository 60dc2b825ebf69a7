"""A member from a configuration file: unix sockets, and what SIGHUP changes while it runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import pb
from tests.harness.rpc import Client
from tests.harness.servers import EtcdfastServer
from tests.harness.wait import wait_until

MIB = 1 << 20


class FileServer(EtcdfastServer):
    """Its settings are a YAML file; `write` replaces it."""

    @property
    def config_path(self):
        return self.directory / "etcd.yml"

    @property
    def socket_path(self):
        return self.directory / "s"

    @property
    def member_log(self):
        return self.directory / "member.log"

    def write(self, more=""):
        self.config_path.write_text(
            f"name: filed\ndata-dir: {self.data_dir}\nlog-outputs: [{self.member_log}]\n"
            f"listen-client-urls: '{self.url},unix://{self.socket_path}'\nadvertise-client-urls: {self.url}\n"
            f"listen-peer-urls: http://127.0.0.1:{self.peer_port}\n{more}"
        )

    def command(self):
        return [sys.executable, "-m", "etcdfast", "--config-file", str(self.config_path), "--name", "ignored"]

    def lines(self):
        return [json.loads(line) for line in self.member_log.read_text().splitlines()]

    def reload(self):
        """SIGHUP, and what the supervisor says about it."""
        before = len(self.lines())
        os.kill(self.process.pid, signal.SIGHUP)
        wanted = ("read the configuration again", "cannot read the configuration again; it stays as it is")
        wait_until(lambda: any(line["msg"] in wanted for line in self.lines()[before:]), "the supervisor has read")
        return self.lines()[before:]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = FileServer(tmp_path_factory.mktemp("file"))
    server.write()
    with server:
        yield server


def quota_of(server):
    with server.client() as client:
        return client.call("Status", pb.StatusRequest()).message.dbSizeQuota


def test_a_unix_socket_serves_like_any_other(server):
    with Client(f"unix://{server.socket_path}") as unix, server.client() as tcp:
        unix.put(b"k", b"v")
        assert tcp.get(b"k").kvs[0].value == b"v"
    (line,) = [line for line in server.lines() if line["msg"] == "starting etcdfast"]
    assert line["name"] == "filed"


def test_a_reload_takes_level_and_quota_and_names_what_it_cannot(server):
    server.write(f"quota-backend-bytes: {64 * MIB}\nmax-txn-ops: 7\n")
    told = server.reload()
    wait_until(lambda: quota_of(server) == 64 * MIB, "apply has the new quota")
    (warning,) = [line for line in told if line["level"] == "warn"]
    assert warning["settings"] == ["max-txn-ops"]
    (line,) = [line for line in told if line["msg"] == "read the configuration again"]
    assert line["quota-backend-bytes"] == 64 * MIB


def test_a_file_that_is_wrong_changes_nothing(server):
    server.write(f"quota-backend-bytes: {128 * MIB}\nheartbeat-interval: x\n")
    told = server.reload()
    assert "cannot unmarshal string into heartbeat-interval" in told[-1]["error"]
    assert quota_of(server) == 64 * MIB


def test_the_frontends_have_the_new_quota_too(server):
    def refused():
        with server.client() as client:
            return client.call("Put", pb.PutRequest(key=b"q", value=b"x" * 1000)).text

    assert refused() == ""
    server.write("quota-backend-bytes: 1\n")
    server.reload()
    wait_until(lambda: refused() == "etcdserver: mvcc: database space exceeded", "writes are refused")


def test_levels_change_in_every_process_and_the_socket_is_gone_at_the_end(server):
    server.write("log-level: error\n")
    server.reload()
    with server.client() as client:  # each process has reloaded once apply has the default quota again
        wait_until(
            lambda: client.call("Status", pb.StatusRequest()).message.dbSizeQuota == 2 << 30, "apply has reloaded"
        )
    before = len(server.lines())
    assert server.stop() in (143, -signal.SIGTERM)
    assert [line for line in server.lines()[before:] if line["level"] == "info"] == []
    assert not server.socket_path.exists()


def test_the_command_may_be_called_etcd(tmp_path):
    link = tmp_path / "etcd"
    link.symlink_to(Path(sys.executable).with_name("etcdfast"))
    shown = subprocess.run([link, "--version"], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("etcd Version: 3.")
