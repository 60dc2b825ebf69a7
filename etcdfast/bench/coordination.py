"""Workloads of watches and leases: what each message is, and how many events must come of it."""

from __future__ import annotations

import os
import random
from array import array
from collections import Counter

from etcdfast.bench.workload import (
    KV,
    LEASE,
    LEASE_IDS,
    WATCH,
    Message,
    Watching,
    Workload,
    WorkloadError,
    bytes_field,
    check_keys,
    framed,
    int_field,
    prefix_end,
    put_fields,
    range_request,
    varint,
)

WATCHERS_MAX = 10_000_000
TTL_TOGETHER_MAX = 127
LATENCY_PUTS_MAX = 10_000_000


def _create(prefix: bytes, key_bytes: int, end: bytes = b"", *, revision: int = 0, prev_kv: bool = False) -> Message:
    """WatchRequest with a WatchCreateRequest; its key is prefix and hole."""
    key = bytes_field(1, prefix + bytes(key_bytes))
    body = key + (bytes_field(2, end) if end else b"") + int_field(3, revision) + int_field(6, prev_kv)
    data = bytes_field(1, body)
    hole = len(data) - len(body) + len(key) - key_bytes
    return Message(framed(data), [5 + hole] if key_bytes else [], method=1)


def _put_message(prefix: bytes, key_bytes: int, value_bytes: int) -> Message:
    data, key_at, value_at = put_fields(prefix, key_bytes, value_bytes)
    return Message(framed(data), [5 + key_at] if key_bytes else [], [5 + value_at] if value_bytes else [])


def _check_watchers(streams: int, each: int) -> None:
    if streams * each > WATCHERS_MAX:
        raise WorkloadError(f"expected at most {WATCHERS_MAX} watchers, got {streams} x {each}")


def watched_numbers(total: int, key_space: int, sequential: bool, seed: int) -> array:
    """The watched keys: number i of `total` is one of `key_space`."""
    if sequential:
        return array("Q", (i % key_space for i in range(total)))
    chosen = random.Random(seed)
    return array("Q", (chosen.randrange(key_space) for _ in range(total)))


def events_of_puts(numbers: array, watchers: int, puts: int) -> int:
    """Events that `puts` puts of the watched keys in turn bring to `watchers` watchers of them in turn."""
    rounds, rest = divmod(watchers, len(numbers))
    watching = Counter()
    for i, number in enumerate(numbers):
        watching[number] += rounds + (i < rest)
    per_round = [watching[number] for number in numbers]
    rounds, rest = divmod(puts, len(numbers))
    return rounds * sum(per_round) + sum(per_round[:rest])


def watch(
    *,
    streams: int,
    watchers_each: int,
    watched_keys: int,
    puts: int,
    key_size: int,
    key_space: int,
    sequential: bool,
    prefix: bytes,
    whole_prefix: bool,
    val_size: int,
    start_revision: int,
    prev_kv: bool,
    events: int,
    hold: bool,
    timeout_seconds: float,
    seed: int,
) -> Workload:
    """Watchers of the watched keys in turn, then puts of those keys in turn. `events` 0: those of the puts."""
    check_keys(key_size, key_space)
    _check_watchers(streams, watchers_each)
    if start_revision and not events:
        raise WorkloadError("--start-revision brings events of the past: say with --events how many")
    numbers = watched_numbers(watched_keys, key_space, sequential, seed)
    if whole_prefix:
        create = _create(prefix or b"\0", 0, prefix_end(prefix), revision=start_revision, prev_kv=prev_kv)
        expected = puts * streams * watchers_each
    else:
        create = _create(prefix, key_size, revision=start_revision, prev_kv=prev_kv)
        expected = events_of_puts(numbers, streams * watchers_each, puts)
    return Workload(
        "watch",
        (KV + "Put", WATCH),
        [_put_message(prefix, key_size, val_size), create],
        ["Put", "Create", "Event"],
        key_size,
        val_size,
        key_space,
        watching=Watching(streams, watchers_each, events or expected, hold=hold, timeout_seconds=timeout_seconds),
        key_numbers=numbers.tobytes(),
        stamped=True,
    )


def watch_latency(
    *, streams: int, watchers_each: int, puts: int, key_size: int, val_size: int, prev_kv: bool, timeout_seconds: float
) -> Workload:
    """Every watcher watches one random key, which one client puts again and again."""
    _check_watchers(streams, watchers_each)
    if puts > LATENCY_PUTS_MAX:
        raise WorkloadError(f"expected at most {LATENCY_PUTS_MAX} puts, got {puts}")
    key = os.urandom(key_size)
    return Workload(
        "watch-latency",
        (KV + "Put", WATCH),
        [_put_message(key, 0, val_size), _create(key, 0, prev_kv=prev_kv)],
        ["Put", "Create", "Event", "Event-After-Answer"],
        0,
        val_size,
        watching=Watching(
            streams, watchers_each, puts * streams * watchers_each, apart=True, timeout_seconds=timeout_seconds
        ),
        by_number=True,
    )


def check_watch_get(streams: int, watchers: int) -> None:
    if watchers % streams:
        raise WorkloadError(f"expected --watchers to be a multiple of --streams, got {watchers} and {streams}")
    _check_watchers(streams, watchers // streams)


def watch_get(
    *, streams: int, watchers: int, events: int, key: bytes, revision: int, timeout_seconds: float
) -> Workload:
    """Serializable gets while watchers of a key with a past catch up from `revision` on."""
    check_watch_get(streams, watchers)
    return Workload(
        "watch-get",
        (KV + "Range", WATCH),
        [
            Message(framed(range_request(b"abc", serializable=True))),
            _create(key, 0, revision=revision),
        ],
        ["Get", "Create"],
        watching=Watching(
            streams,
            watchers // streams,
            watchers * events,
            concurrent=True,
            apart=True,
            timeout_seconds=timeout_seconds,
        ),
    )


# ---- leases -------------------------------------------------------------------------------------


def new_lease_base() -> int:
    """Lease ids of a run: this and the next 2**32 numbers; nobody else has them, but for bad luck."""
    return LEASE_IDS + (int.from_bytes(os.urandom(3)) << 32)


def lease_grant(ttl_seconds: int, lease_base: int, end_ns: int = 0) -> Workload:
    """Leases number 0 and on. `end_ns`: instead of one TTL, each gets what is left until that time."""
    ttl = int_field(1, TTL_TOGETHER_MAX if end_ns else ttl_seconds)
    data = ttl + varint(2 << 3) + varint(lease_base)
    message = Message(framed(data), lease_at=5 + len(ttl) + 1, ttl_at=6 if end_ns else 0)
    return Workload("lease-grant", (LEASE + "LeaseGrant",), [message], [""], lease_base=lease_base, ttl_end_ns=end_ns)


def lease_put(prefix: bytes, key_size: int, val_size: int, leases: int, lease_base: int) -> Workload:
    """Puts of key number i with lease number i."""
    check_keys(key_size, leases)
    data, key_at, value_at = put_fields(prefix, key_size, val_size)
    lease = varint(3 << 3) + varint(lease_base)
    message = Message(
        framed(data + lease), [5 + key_at], [5 + value_at] if val_size else [], lease_at=5 + len(data) + 1
    )
    return Workload(
        "lease-put", (KV + "Put",), [message], [""], key_size, val_size, leases, True, lease_base=lease_base
    )


def lease_keepalive(lease_base: int, one_stream: bool) -> Workload:
    """Each client renews its own lease: on a stream for each renewal, or all on one stream."""
    data = varint(1 << 3) + varint(lease_base)
    message = Message(framed(data), lease_at=6, lease_of_client=True)
    return Workload(
        "lease-keepalive",
        (LEASE + "LeaseKeepAlive",),
        [message],
        [""],
        renewing=True,
        held=one_stream,
        lease_base=lease_base,
    )


# ---- software transactions ----------------------------------------------------------------------

# as loadtypes numbers them
STM_ISOLATIONS = ("c", "r", "s", "ss")
STM_LOCKERS = ("stm", "lock-client", "lock-rpc")
STM_METHODS = (
    KV + "Txn",
    KV + "Range",
    KV + "DeleteRange",
    WATCH,
    "/v3lockpb.Lock/Lock",
    "/v3lockpb.Lock/Unlock",
)
STM_KEYS_MAX = 1024


def stm(
    *, isolation: str, locker: str, keys: int, keys_per_txn: int, write_percent: int, val_size: int, lease_base: int
) -> Workload:
    """Transactions that read some keys and write a part of them, as etcd's client library runs them."""
    if keys <= 0:
        raise WorkloadError(f"expected positive --keys, got ({keys})")
    if not 0 <= write_percent <= 100:
        raise WorkloadError(f"expected [0, 100] --txn-wr-percent, got ({write_percent})")
    most = min(keys, STM_KEYS_MAX)
    if not 0 <= keys_per_txn <= most:
        raise WorkloadError(f"expected --keys-per-txn between 0 and {most}, got ({keys_per_txn})")
    numbers = (STM_ISOLATIONS.index(isolation), STM_LOCKERS.index(locker), keys, keys_per_txn)
    return Workload(
        "stm",
        STM_METHODS,
        [Message(framed(b""))],
        [""],
        value_bytes=val_size,
        lease_base=lease_base,
        stm=(*numbers, keys_per_txn * write_percent // 100),
    )
