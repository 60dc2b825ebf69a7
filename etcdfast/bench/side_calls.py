"""Calls beside the load: compaction at an interval, and the hash of all keys at the end."""

from __future__ import annotations

import socket
import sys
import threading
import time

import grpc

from etcdfast.api import rpcs
from etcdfast.api.grpc_stubs import Client
from etcdfast.bench.endpoints import Endpoint
from etcdfast.bench.runner import RunError
from etcdfast.client.channels import open_channel, token_of

CALL_SECONDS = 5.0
HASH_SECONDS = 600.0


def _open(endpoint: Endpoint) -> grpc.Channel:
    address = endpoint.authority
    if endpoint.family == socket.AF_UNIX:
        address = "unix:" + endpoint.address[2:].rstrip(b"\0").decode()
    return open_channel(address, endpoint.security)


def token(endpoint: Endpoint, name: str, password: str, timeout_seconds: float) -> tuple[tuple[str, str], ...]:
    """Metadata of calls in the name of a user. Errors: RunError."""
    try:
        with _open(endpoint) as channel:
            return token_of(channel, name, password, timeout_seconds)
    except grpc.RpcError as e:
        raise RunError(f"cannot authenticate at {endpoint.text}: {e.details()}") from None
    except OSError as e:
        raise RunError(f"cannot authenticate at {endpoint.text}: {e.strerror or e}") from None


def _request(name: str, **fields):
    return rpcs.message_class(f"etcdserverpb.{name}")(**fields)


class Compactor:
    """Context manager: every `interval_seconds`, compact up to `keep` revisions before the newest.

    A compaction that fails is reported in one line and does not end the load.
    """

    def __init__(self, endpoint: Endpoint, interval_seconds: float, keep: int) -> None:
        self._endpoint, self._interval, self._keep = endpoint, interval_seconds, keep
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Compactor:
        self._thread = threading.Thread(target=self._run, name="compactor", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._stop.set()
        self._thread.join(2 * CALL_SECONDS)

    def _run(self) -> None:
        with _open(self._endpoint) as channel:
            client = Client(channel)
            more = {"timeout": CALL_SECONDS, "metadata": self._endpoint.metadata}
            while not self._stop.wait(self._interval):
                try:
                    newest = client.KV.Range(_request("RangeRequest", key=b"foo"), **more).header.revision
                    if newest > self._keep:
                        request = _request("CompactionRequest", revision=newest - self._keep)
                        client.KV.Compact(request, **more)
                except grpc.RpcError as e:
                    print(f"compaction failed: {e.details()}", file=sys.stderr)


def put_times(endpoint: Endpoint, key: bytes, times: int) -> int:
    """Put a key that often; returns the revision of the first put. Errors: RunError."""
    first = 0
    with _open(endpoint) as channel:
        client = Client(channel)
        for number in range(times):
            request = _request("PutRequest", key=key, value=str(number).encode())
            try:
                revision = client.KV.Put(request, timeout=CALL_SECONDS, metadata=endpoint.metadata).header.revision
            except grpc.RpcError as e:
                raise RunError(f"cannot put {key.decode()} on {endpoint.text}: {e.details()}") from None
            first = first or revision
    return first


def hashkv_summary(endpoint: Endpoint) -> str:
    """Text block with the hash of all keys, as etcd's tool lays it out."""
    start = time.monotonic()
    with _open(endpoint) as channel:
        client = Client(channel)
        try:
            more = {"metadata": endpoint.metadata}
            answer = client.Maintenance.HashKV(_request("HashKVRequest"), timeout=HASH_SECONDS, **more)
            size = client.Maintenance.Status(_request("StatusRequest"), timeout=CALL_SECONDS, **more).dbSize
        except grpc.RpcError as e:
            return f"HashKV Summary:\n\tfailed: {e.details()}"
    return (
        "HashKV Summary:\n"
        f"\tHashKV: {answer.hash}\n"
        f"\tEndpoint: {endpoint.text}\n"
        f"\tTime taken to get hashkv: {time.monotonic() - start:.6f}s\n"
        f"\tDB size: {_human_bytes(size)}"
    )


def _human_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
