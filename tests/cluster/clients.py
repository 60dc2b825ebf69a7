"""A client of a whole cluster: what one member does not answer is asked of the next."""

from __future__ import annotations

from typing import Any

from tests.harness import Client, Reply, pb
from tests.harness.cluster import Cluster

OPEN_CODES = (1, 4, 14)


class AnyClient:
    """Calls go to one member until that fails, then to the next; only for calls that may be made twice."""

    def __init__(self, cluster: Cluster, timeout_seconds: float) -> None:
        self._clients = [Client(member.endpoint, timeout_seconds) for member in cluster.members]
        self._at = 0

    def __enter__(self) -> AnyClient:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()

    def call(self, method: str, request: Any) -> Reply:
        for _ in self._clients:
            reply = self._clients[self._at].call(method, request)
            if reply.code not in OPEN_CODES:
                return reply
            self._at = (self._at + 1) % len(self._clients)
        return reply

    def put(self, key: bytes, value: bytes, **fields: Any) -> Any:
        return self.call("Put", pb.PutRequest(key=key, value=value, **fields)).message


class AnyMember:
    """Stands where tests of one server expect a `Server`: its clients ask whoever answers."""

    kind = "cluster"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def client(self, timeout_seconds: float = 20.0) -> AnyClient:
        return AnyClient(self._cluster, timeout_seconds)
