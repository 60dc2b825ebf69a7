"""Patroni with PostgreSQL, both from Debian, on a server's JSON gateway.

PostgreSQL refuses root, so as root everything here runs as the user postgres.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import yaml

from tests.harness.ports import free_port
from tests.harness.servers import Server
from tests.harness.wait import wait_until

PATRONI = shutil.which("patroni")
PATRONICTL = shutil.which("patronictl")
SCOPE = "batman"


def postgres_bin() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def as_postgres() -> list[str]:
    if os.getuid():
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--pdeathsig=KILL"]


class Node:
    """One Patroni with its PostgreSQL in a directory of its own."""

    def __init__(self, name: str, directory: Path, server: Server, etcd: dict[str, object] | None = None) -> None:
        self.name = name
        self.directory = directory / name
        self.directory.mkdir(parents=True)
        self.rest_port, self.port = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        config = {
            "scope": SCOPE,
            "name": name,
            "restapi": {"listen": f"127.0.0.1:{self.rest_port}", "connect_address": f"127.0.0.1:{self.rest_port}"},
            "etcd3": {"host": server.endpoint, **(etcd or {})},
            "bootstrap": {
                "dcs": {"ttl": 20, "loop_wait": 1, "retry_timeout": 5, "maximum_lag_on_failover": 1048576},
                "initdb": ["data-checksums", {"encoding": "UTF8"}, "no-sync"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self.directory / "data"),
                "bin_dir": str(postgres_bin()),
                "pgpass": str(self.directory / "pgpass"),
                "authentication": {
                    "superuser": {"username": "postgres", "password": "super"},
                    "replication": {"username": "replicator", "password": "rep"},
                    "rewind": {"username": "rewind", "password": "rew"},
                },
                "parameters": {"unix_socket_directories": str(self.directory), "fsync": "off"},
                "pg_hba": [
                    "local all all trust",
                    "host all all 127.0.0.1/32 trust",
                    "host replication all 127.0.0.1/32 trust",
                ],
            },
        }
        self.config = self.directory / "patroni.yml"
        self.config.write_text(yaml.safe_dump(config))
        if not os.getuid():
            owner = pwd.getpwnam("postgres")
            for path in (self.directory, self.config):
                os.chown(path, owner.pw_uid, owner.pw_gid)

    def start(self) -> None:
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*as_postgres(), str(PATRONI), str(self.config)], stdout=log, stderr=subprocess.STDOUT, cwd="/tmp"
            )

    def rest(self, path: str) -> tuple[int, dict[str, object]]:
        """(HTTP status, JSON) of Patroni's own REST API; 0 when it does not listen yet."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.rest_port}/{path}", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, {}

    def wait_for(self, path: str, what: str) -> dict[str, object]:
        def look() -> dict[str, object] | None:
            assert self.process is not None and self.process.poll() is None, self.log()
            status, body = self.rest(path)
            return body if status == 200 else None

        try:
            return wait_until(look, f"{self.name} to be {what}", deadline_seconds=90)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def log(self) -> str:
        return (self.directory / "log").read_text()[-9000:]

    def sql(self, text: str) -> str:
        ran = subprocess.run(
            [*as_postgres(), "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-Atc", text],
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/tmp",
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    def kill(self) -> None:
        """Patroni and its PostgreSQL die at once."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._end_postgres(signal.SIGQUIT)

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._end_postgres(signal.SIGQUIT)

    def _end_postgres(self, number: int) -> None:
        try:
            pid = int((self.directory / "data" / "postmaster.pid").read_text().splitlines()[0])
            os.kill(pid, number)
        except (OSError, ValueError, IndexError):
            pass

    def ctl(self, *arguments: str) -> str:
        ran = subprocess.run(
            [*as_postgres(), str(PATRONICTL), "-c", str(self.config), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            cwd="/tmp",
        )
        assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}\n{self.log()}"
        return ran.stdout
