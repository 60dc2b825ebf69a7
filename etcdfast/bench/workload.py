"""What one request of each benchmark is: method, message bytes with holes for keys and values.

The messages are put together by hand, field by field, because the generator needs to know where in
the bytes a key and a value lie. Field numbers: etcdserverpb (rpc.proto).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

KV = "/etcdserverpb.KV/"
WATCH = "/etcdserverpb.Watch/Watch"
LEASE = "/etcdserverpb.Lease/"
# lease ids of a run lie above this: they take 9 bytes as a varint, whichever they are
LEASE_IDS = 1 << 62


class WorkloadError(ValueError):
    """Sizes that do not fit together; the text names the flag."""


@dataclass(frozen=True)
class Message:
    """A gRPC message (5-byte prefix included); `keys_at`, `values_at`: offsets of the holes in bytes.

    `method`: index into the methods of its workload. `lease_at`: offset of a lease id (0: none), which
    is the client's or the request's number above LEASE_IDS; `ttl_at`: offset of a TTL of one byte.
    """

    data: bytes
    keys_at: list[int] = field(default_factory=list)
    values_at: list[int] = field(default_factory=list)
    method: int = 0
    lease_at: int = 0
    lease_of_client: bool = False
    ttl_at: int = 0


@dataclass(frozen=True)
class Watching:
    """Streams beside (or instead of) a load. The workload's message 1 makes a watcher.

    `events`: how many the watchers get in all; the run ends when they have come. `concurrent`: the
    load begins with the streams and ends with the events, else it begins when all watchers are made.
    `apart`: the load has a connection of its own.
    """

    streams: int
    watchers_each: int
    events: int
    concurrent: bool = False
    apart: bool = False
    hold: bool = False
    timeout_seconds: float = 30.0

    @property
    def watchers(self) -> int:
        return self.streams * self.watchers_each


@dataclass(frozen=True)
class Workload:
    """One benchmark. With two `load_kinds`, the first message is used for `read_share` of the requests.

    `key_numbers`: uint64s, the keys in turn. `renewing`, `held`, `stamped`, `by_number`: see `Generator`.
    """

    name: str
    methods: tuple[str, ...]
    messages: list[Message]
    labels: list[str]
    key_bytes: int = 0
    value_bytes: int = 0
    key_space: int = 1
    sequential: bool = False
    read_share: float = 1.0
    streaming: bool = False
    load_kinds: int = 1
    watching: Watching | None = None
    key_numbers: bytes | None = None
    renewing: bool = False
    held: bool = False
    stamped: bool = False
    by_number: bool = False
    lease_base: int = 0
    ttl_end_ns: int = 0
    stm: tuple[int, int, int, int, int] | tuple[()] = ()

    @property
    def lease_of_client(self) -> bool:
        """Each client has a lease of its own: lease_base and its number over all processes."""
        return self.renewing or bool(self.stm)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def bytes_field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def int_field(number: int, value: int) -> bytes:
    """Empty for 0, as proto3 does."""
    return varint(number << 3) + varint(value) if value else b""


def framed(message: bytes) -> bytes:
    return b"\0" + struct.pack(">I", len(message)) + message


def put_fields(prefix: bytes, key_bytes: int, value_bytes: int) -> tuple[bytes, int, int]:
    """PutRequest with a key of prefix and hole, and where the holes are."""
    key = bytes_field(1, prefix + bytes(key_bytes))
    value = bytes_field(2, bytes(value_bytes)) if value_bytes else b""
    return key + value, len(key) - key_bytes, len(key) + len(value) - value_bytes


def _txn(operations: list[tuple[bytes, int, int]], operation_field: int) -> Message:
    """TxnRequest without compares whose success branch is the operations."""
    body, keys_at, values_at = b"", [], []
    for data, key_at, value_at in operations:
        inner = bytes_field(operation_field, data)
        outer = bytes_field(2, inner)
        start = 5 + len(body) + len(outer) - len(data)
        keys_at.append(start + key_at)
        values_at.append(start + value_at)
        body += outer
    return Message(framed(body), keys_at, values_at)


def check_keys(key_size: int, key_space: int) -> None:
    if key_space <= 0:
        raise WorkloadError(f"expected positive --key-space-size, got ({key_space})")
    needed = len(varint(2 * (key_space - 1)))
    if key_size < needed:
        raise WorkloadError(
            f"--key-size {key_size} is too small for {key_space} different keys: at least {needed} bytes"
        )


def put(key_size: int, val_size: int, key_space: int, sequential: bool, prefix: bytes = b"") -> Workload:
    check_keys(key_size, key_space)
    data, key_at, value_at = put_fields(prefix, key_size, val_size)
    message = Message(framed(data), [5 + key_at], [5 + value_at])
    return Workload("put", (KV + "Put",), [message], [""], key_size, val_size, key_space, sequential)


def range_request(
    key: bytes,
    end: bytes = b"",
    *,
    limit: int = 0,
    serializable: bool = False,
    keys_only: bool = False,
    count_only: bool = False,
) -> bytes:
    return (
        bytes_field(1, key)
        + (bytes_field(2, end) if end else b"")
        + int_field(3, limit)
        + int_field(7, serializable)
        + int_field(8, keys_only)
        + int_field(9, count_only)
    )


def range_(request: bytes, stream: bool = False) -> Workload:
    method = KV + ("RangeStream" if stream else "Range")
    return Workload("range", (method,), [Message(framed(request))], [""], streaming=stream)


def txn_put(key_size: int, val_size: int, key_space: int, operations: int, prefix: bytes = b"") -> Workload:
    check_keys(key_size, key_space)
    if operations <= 0:
        raise WorkloadError(f"expected positive --txn-ops, got ({operations})")
    if operations > key_space:
        raise WorkloadError(
            f"expected --txn-ops no larger than --key-space-size, got txn-ops({operations}) key-space-size({key_space})"
        )
    message = _txn([put_fields(prefix, key_size, val_size)] * operations, 2)
    return Workload("txn-put", (KV + "Txn",), [message], [""], key_size, val_size, key_space, sequential=True)


def txn_mixed(key_size: int, val_size: int, key_space: int, rw_ratio: float, request: bytes) -> Workload:
    check_keys(key_size, key_space)
    if not rw_ratio >= 0:
        raise WorkloadError(f"expected --rw-ratio of 0 or more, got ({rw_ratio:g})")
    read = Message(framed(bytes_field(2, bytes_field(1, request))))
    write = _txn([put_fields(b"", key_size, val_size)], 2)
    share = rw_ratio / (1 + rw_ratio) if rw_ratio != float("inf") else 1.0
    return Workload(
        "txn-mixed", (KV + "Txn",), [read, write], ["Read", "Write"], key_size, val_size, key_space, True, share,
        load_kinds=2,
    )  # fmt: skip


def prefix_end(prefix: bytes) -> bytes:
    """End of the range of all keys with a prefix; `\\0` (from key) when there is no greater key."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\0"
