"""Loads over TLS with client certificates, and in the name of a user."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import grpc
from members import REPOSITORY, Member, MemberError
from scenario import Bar, Scenario, Size, faster, loaded

from etcdfast.api.grpc_stubs import Client
from etcdfast.api.pb import auth_pb2
from etcdfast.api.rpcs import message_class
from tests.harness.certs import Authority

PUT = ("put", "--key-size", "8", "--val-size", "256", "--key-space-size", "100000")
USER, PASSWORD = "bench", "a password of some length"
CALL_SECONDS = 30.0


class TlsMember(Member):
    """Its clients must show a certificate."""

    scheme = "https"

    @functools.cached_property
    def _certs(self):
        authority = Authority(self.directory / "certs")
        server = authority.issue("server", hosts=["127.0.0.1"], client=False)
        return authority.ca_path, server, authority.issue("client", server=False)

    def flags(self) -> list[str]:
        ca, server, _ = self._certs
        return [
            "--cert-file", str(server.cert_path),
            "--key-file", str(server.key_path),
            "--trusted-ca-file", str(ca),
            "--client-cert-auth",
        ]  # fmt: skip

    @property
    def bench_flags(self) -> list[str]:
        ca, _, client = self._certs
        return ["--cacert", str(ca), "--cert", str(client.cert_path), "--key", str(client.key_path)]

    def channel(self, options=()) -> grpc.Channel:
        ca, _, client = self._certs
        read = Path.read_bytes
        credentials = grpc.ssl_channel_credentials(read(ca), read(client.key_path), read(client.cert_path))
        return grpc.secure_channel(self.endpoint, credentials, options=options)


class AuthMember(Member):
    """Authentication is on; the loads run in the name of a user who may do everything with keys, but is not root."""

    def __init__(self, kind: str, directory: Path) -> None:
        super().__init__(kind, directory)
        self._auth = False

    def start(self) -> float:
        took = super().start()
        if not self._auth:
            self._enable()
        return took

    def _enable(self) -> None:
        permission = auth_pb2.Permission(permType=2, key=b"\0", range_end=b"\0")
        steps = [
            ("UserAdd", {"name": "root", "password": PASSWORD}),
            ("RoleAdd", {"name": "root"}),
            ("UserGrantRole", {"user": "root", "role": "root"}),
            ("UserAdd", {"name": USER, "password": PASSWORD}),
            ("RoleAdd", {"name": "all"}),
            ("RoleGrantPermission", {"name": "all", "perm": permission}),
            ("UserGrantRole", {"user": USER, "role": "all"}),
            ("AuthEnable", {}),
        ]
        with self.channel() as channel:
            auth = Client(channel).Auth
            for name, fields in steps:
                request = message_class(f"etcdserverpb.{name if name == 'AuthEnable' else 'Auth' + name}Request")
                try:
                    getattr(auth, name)(request(**fields), timeout=CALL_SECONDS)
                except grpc.RpcError as e:
                    raise MemberError(f"{self.kind}: {name}: {e.details()}") from None
        self._auth = True

    @property
    def bench_flags(self) -> list[str]:
        return ["--user", f"{USER}:{PASSWORD}"]

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        if not self._auth:
            return ()
        request = message_class("etcdserverpb.AuthenticateRequest")(name=USER, password=PASSWORD)
        with self.channel() as channel:
            return (("token", Client(channel).Auth.Authenticate(request, timeout=CALL_SECONDS).token),)


def _put(member: Member, size: Size) -> dict:
    return loaded(member, size, 100, 1000, *PUT)


def _put_while_authenticate(member: Member, size: Size) -> dict:
    """A load that leaves the machine room, alone and beside clients that authenticate as fast as they can."""
    load = (10, 100, *PUT, "--rate", str(size.puts_per_second * 5))
    quiet = loaded(member, size, *load)
    command = [sys.executable, str(REPOSITORY / "bench" / "authenticate.py"), member.endpoint, USER, PASSWORD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as beside:
        try:
            beside.stdout.readline()  # it has begun
            figures = loaded(member, size, *load)
        finally:
            told = beside.communicate("\n", CALL_SECONDS)[0]
    counts = json.loads(told or "{}")
    figures |= {"quiet_p99_ms": quiet["p99_ms"], "quiet_p50_ms": quiet["p50_ms"]}
    figures["authenticates_per_second"] = counts.get("per_second", 0.0)
    figures["authenticates_failed"] = counts.get("failed", 0)
    figures["p99_grown"] = figures["p99_ms"] / quiet["p99_ms"] if quiet["p99_ms"] else 0.0
    return figures


SCENARIOS = [
    Scenario(
        "put-tls",
        "put over TLS with client certificates, 100 connections, 1000 clients",
        _put,
        [faster(2.5)],
        member=TlsMember,
    ),
    Scenario(
        "put-auth",
        "put in the name of a user, 100 connections, 1000 clients",
        _put,
        [faster(2.5)],
        member=AuthMember,
    ),
    Scenario(
        "put-while-authenticate",
        "3000 puts/s beside clients that authenticate at full rate",
        _put_while_authenticate,
        [Bar("p99_grown", 1.5, text="p99_grown <= 1.5: its p99 beside them, to that of the same puts alone")],
        shown=(
            "requests_per_second",
            "quiet_p50_ms",
            "quiet_p99_ms",
            "p50_ms",
            "p99_ms",
            "p99_grown",
            "authenticates_per_second",
            "authenticates_failed",
        ),
        member=AuthMember,
    ),
]
