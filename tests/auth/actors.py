"""Users of a server with auth on: each asks with the token that it got."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc

from tests.harness import Client, Reply, pb

READ, WRITE, READWRITE = pb.Permission.READ, pb.Permission.WRITE, pb.Permission.READWRITE
PASSWORD = "pw"
# user -> (permission, key, range_end)
USERS = {
    "ann": ((READWRITE, b"a", b"c"),),
    "bob": ((READ, b"a", b""), (WRITE, b"b", b""), (READWRITE, b"c", b"d"), (READ, b"d", b"\0")),
    "wes": ((WRITE, b"a", b"\0"),),
    "nil": (),
}
CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass
class Actor:
    """`token` None: asks without one."""

    client: Client
    token: str | None = None

    def ask(self, method: str, request: Any, timeout_seconds: float | None = None) -> Reply:
        return self.client.call(method, request, timeout_seconds, token=self.token)

    def refusal(self, method: str, request: Any) -> tuple[int, str]:
        reply = self.ask(method, request)
        return reply.code, reply.text

    @property
    def _metadata(self) -> Any:
        return None if self.token is None else (("token", self.token),)

    def stream(self, path: str, request: Any, response: type, kind: str = "stream_stream", count: int = 1) -> list[Any]:
        """The first messages of a stream that is asked once, and (code, text) when it ended before."""
        make = getattr(self.client.channel, kind)
        start = make(
            path, request_serializer=lambda m: m.SerializeToString(), response_deserializer=response.FromString
        )
        call = start(iter([request]) if kind == "stream_stream" else request, metadata=self._metadata, timeout=20)
        found: list[Any] = []
        try:
            for message in call:
                found.append(message)
                if len(found) == count:
                    break
        except grpc.RpcError as error:
            found.append((error.code().value[0], error.details()))
        call.cancel()
        return found

    def watch(self, key: bytes, range_end: bytes = b"") -> str | None:
        """Why a watch is refused, None when it is not."""
        request = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=key, range_end=range_end))
        (created,) = self.stream("/etcdserverpb.Watch/Watch", request, pb.WatchResponse)
        if isinstance(created, tuple):
            return f"{created[0]} {created[1]}"
        assert created.created
        return created.cancel_reason if created.canceled else None

    def renew(self, lease: int) -> Any:
        """TTL of a keep-alive, or (code, text)."""
        request = pb.LeaseKeepAliveRequest(ID=lease)
        (found,) = self.stream("/etcdserverpb.Lease/LeaseKeepAlive", request, pb.LeaseKeepAliveResponse)
        return found if isinstance(found, tuple) else found.TTL

    def authenticate(self, name: str, password: str = PASSWORD) -> Actor:
        reply = self.client.call("Authenticate", pb.AuthenticateRequest(name=name, password=password))
        return Actor(self.client, reply.message.token)


def populate(client: Client, users: dict[str, tuple[Any, ...]] = USERS) -> dict[str, Actor]:
    """Users with a role each, root, auth on: actors by name, "" for nobody."""
    nobody = Actor(client)

    def do(method: str, request: Any) -> None:
        assert nobody.ask(method, request).ok

    for name, permissions in {"root": (), **users}.items():
        do("UserAdd", pb.AuthUserAddRequest(name=name, password=PASSWORD))
        do("RoleAdd", pb.AuthRoleAddRequest(name=name))
        do("UserGrantRole", pb.AuthUserGrantRoleRequest(user=name, role=name))
        for kind, key, end in permissions:
            perm = pb.Permission(permType=kind, key=key, range_end=end)
            do("RoleGrantPermission", pb.AuthRoleGrantPermissionRequest(name=name, perm=perm))
    do("AuthEnable", pb.AuthEnableRequest())
    return {"": nobody, **{name: nobody.authenticate(name) for name in ("root", *users)}}
