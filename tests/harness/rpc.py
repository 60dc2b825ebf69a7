"""A thin gRPC client that shows exactly what came back: code, text and message bytes.

grpcio's channel does the HTTP/2 work; retries and service configs are off, so one call here is
one request on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc

from . import pb
from .streams import Stream

CODE_OK = 0

_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    # A killed server comes back within a second; the default back-off of grpcio grows to minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    # Which is also the time a connection has to come about: on a busy machine a server answers late.
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 200),
)


def channel_options(window_bytes: int | None = None, connect_ms: int | None = None) -> list[tuple[str, int]]:
    """The options of every channel of the tests.

    `window_bytes` pins the flow-control window of a stream; `connect_ms`: the time one attempt to connect has
    (too little for a call nobody repeats, on a busy machine, is what suits calls that are repeated).
    """
    options = dict(_OPTIONS)
    if connect_ms is not None:
        options["grpc.min_reconnect_backoff_ms"] = options["grpc.max_reconnect_backoff_ms"] = connect_ms
    if window_bytes is not None:
        options.update({"grpc.http2.lookahead_bytes": window_bytes, "grpc.http2.bdp_probe": 0})
    return list(options.items())


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC: its path and its two message classes."""

    path: str
    request: type
    response: type


# Message names of the Auth service: prefix, methods.
AUTH_METHODS = (
    ("", "AuthEnable AuthDisable AuthStatus Authenticate"),
    ("Auth", "UserAdd UserGet UserList UserDelete UserChangePassword UserGrantRole UserRevokeRole"),
    ("Auth", "RoleAdd RoleGet RoleList RoleDelete RoleGrantPermission RoleRevokePermission"),
)


def _methods() -> dict[str, Method]:
    table = {
        "etcdserverpb.KV": {
            "Range": (pb.RangeRequest, pb.RangeResponse),
            "Put": (pb.PutRequest, pb.PutResponse),
            "DeleteRange": (pb.DeleteRangeRequest, pb.DeleteRangeResponse),
            "Txn": (pb.TxnRequest, pb.TxnResponse),
            "Compact": (pb.CompactionRequest, pb.CompactionResponse),
        },
        "etcdserverpb.Lease": {
            "LeaseGrant": (pb.LeaseGrantRequest, pb.LeaseGrantResponse),
            "LeaseRevoke": (pb.LeaseRevokeRequest, pb.LeaseRevokeResponse),
            "LeaseTimeToLive": (pb.LeaseTimeToLiveRequest, pb.LeaseTimeToLiveResponse),
            "LeaseLeases": (pb.LeaseLeasesRequest, pb.LeaseLeasesResponse),
        },
        "etcdserverpb.Maintenance": {
            "HashKV": (pb.HashKVRequest, pb.HashKVResponse),
            "Hash": (pb.HashRequest, pb.HashResponse),
            "Status": (pb.StatusRequest, pb.StatusResponse),
            "Defragment": (pb.DefragmentRequest, pb.DefragmentResponse),
            "Alarm": (pb.AlarmRequest, pb.AlarmResponse),
            "MoveLeader": (pb.MoveLeaderRequest, pb.MoveLeaderResponse),
        },
        "etcdserverpb.Cluster": {
            "MemberAdd": (pb.MemberAddRequest, pb.MemberAddResponse),
            "MemberRemove": (pb.MemberRemoveRequest, pb.MemberRemoveResponse),
            "MemberUpdate": (pb.MemberUpdateRequest, pb.MemberUpdateResponse),
            "MemberList": (pb.MemberListRequest, pb.MemberListResponse),
            "MemberPromote": (pb.MemberPromoteRequest, pb.MemberPromoteResponse),
        },
        "etcdserverpb.Auth": {
            name: (getattr(pb, f"{prefix}{name}Request"), getattr(pb, f"{prefix}{name}Response"))
            for prefix, names in AUTH_METHODS
            for name in names.split()
        },
        "v3lockpb.Lock": {
            "Lock": (pb.LockRequest, pb.LockResponse),
            "Unlock": (pb.UnlockRequest, pb.UnlockResponse),
        },
        "v3electionpb.Election": {
            "Campaign": (pb.CampaignRequest, pb.CampaignResponse),
            "Proclaim": (pb.ProclaimRequest, pb.ProclaimResponse),
            "Leader": (pb.LeaderRequest, pb.LeaderResponse),
            "Resign": (pb.ResignRequest, pb.ResignResponse),
        },
    }
    return {
        name: Method(f"/{service}/{name}", request, response)
        for service, methods in table.items()
        for name, (request, response) in methods.items()
    }


METHODS = _methods()
KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse)
OBSERVE = Method("/v3electionpb.Election/Observe", pb.LeaderRequest, pb.LeaderResponse)


@dataclass(frozen=True, slots=True)
class Reply:
    """What one call returned: gRPC code (0 = OK), status text, and the message bytes if OK."""

    method: str
    code: int
    text: str
    data: bytes

    @property
    def ok(self) -> bool:
        return self.code == CODE_OK

    @property
    def message(self) -> Any:
        """The parsed response; only for OK replies."""
        if self.code != CODE_OK:
            raise AssertionError(f"{self.method}: code {self.code}: {self.text}")
        return METHODS[self.method].response.FromString(self.data)


class Pending:
    """A call under way; `reply()` waits for it."""

    __slots__ = ("_future", "_method")

    def __init__(self, method: str, future: Any) -> None:
        self._method = method
        self._future = future

    def reply(self) -> Reply:
        try:
            data = self._future.result()
        except grpc.RpcError as error:
            return Reply(self._method, error.code().value[0], error.details() or "", b"")
        except grpc.FutureCancelledError:
            return Reply(self._method, grpc.StatusCode.CANCELLED.value[0], "(cancelled here)", b"")
        return Reply(self._method, CODE_OK, "", data)

    @property
    def done(self) -> bool:
        """Whether `reply` would return at once."""
        return self._future.done()

    def cancel(self) -> None:
        """Take the call back; the server is told, and nothing it answers is seen any more."""
        self._future.cancel()


class Client:
    """Unary calls to one endpoint over one connection.

    Errors: none raised for a refused call; the Reply carries code and text as received.
    Close it (or use `with`) before the server stops, or grpcio keeps trying to reconnect.
    """

    def __init__(self, endpoint: str, timeout_seconds: float = 30.0) -> None:
        self.endpoint = endpoint
        self.timeout_seconds = timeout_seconds
        self._channel = grpc.insecure_channel(endpoint, options=channel_options())
        self._calls = {
            name: self._channel.unary_unary(method.path, request_serializer=_serialize, response_deserializer=None)
            for name, method in METHODS.items()
        }

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    @property
    def channel(self) -> grpc.Channel:
        """The grpcio channel, for calls that are not in the table (unknown methods, streams)."""
        return self._channel

    def start(
        self, method: str, request: Any, timeout_seconds: float | None = None, token: str | None = None
    ) -> Pending:
        """Send without waiting. `request` is a message of the method, or raw bytes."""
        timeout = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        metadata = None if token is None else (("token", token),)
        return Pending(method, self._calls[method].future(request, timeout=timeout, metadata=metadata))

    def call(self, method: str, request: Any, timeout_seconds: float | None = None, token: str | None = None) -> Reply:
        """One unary call, waited for; a blocking call costs a third of a future in grpcio. `token`: of Authenticate."""
        timeout = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        metadata = None if token is None else (("token", token),)
        try:
            data = self._calls[method](request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            return Reply(method, error.code().value[0], error.details() or "", b"")
        return Reply(method, CODE_OK, "", data)

    def keep_alive(self) -> Stream:
        """A LeaseKeepAlive stream."""
        return Stream(self._channel, KEEP_ALIVE, self.timeout_seconds)

    def observe(self, request: pb.LeaderRequest) -> Stream:
        """An Election.Observe stream."""
        return Stream(self._channel, OBSERVE, self.timeout_seconds, request)

    # Short forms for tests that are not about the wire.

    def put(self, key: bytes, value: bytes, **fields: Any) -> Any:
        return self.call("Put", pb.PutRequest(key=key, value=value, **fields)).message

    def get(self, key: bytes, range_end: bytes = b"", **fields: Any) -> Any:
        return self.call("Range", pb.RangeRequest(key=key, range_end=range_end, **fields)).message

    def delete(self, key: bytes, range_end: bytes = b"", **fields: Any) -> Any:
        request = pb.DeleteRangeRequest(key=key, range_end=range_end, **fields)
        return self.call("DeleteRange", request).message

    def compact(self, revision: int, physical: bool = True) -> Any:
        request = pb.CompactionRequest(revision=revision, physical=physical)
        return self.call("Compact", request).message

    def hashkv(self, revision: int = 0) -> Any:
        return self.call("HashKV", pb.HashKVRequest(revision=revision)).message


def _serialize(request: Any) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()
