"""Seeded random KV calls: every option, and wrong input, on a key space small enough to collide.

Call i of a run is a pure function of (seed, i, current revision, compacted revision). No call
depends on the ones before it but through those two numbers, so any subset of indexes can be sent
again to fresh servers, which is what the minimiser does, and revisions stay meaningful in it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.harness import pb

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)
MAX_TXN_OPS = 128  # etcd's default --max-txn-ops

# Neighbours in byte order, prefixes of each other, the ends of the byte range, and plain names.
KEYS = (
    b"\x00",
    b"\x00\x00",
    b"\x01",
    b"a",
    b"a\x00",
    b"a\x00\x00",
    b"a\x01",
    b"a\xff",
    b"a\xff\xff",
    b"aa",
    b"ab",
    b"b",
    b"b/1",
    b"b/2",
    b"b/\xc3\x28",  # not UTF-8
    b"c",
    b"key-with-a-longer-name-0123456789-0123456789-0123456789-0123456789",
    b"z",
    b"\xfe",
    b"\xff",
    b"\xff\x00",
    b"\xff\xff",
)
VALUES = (b"", b"\x00", b"a", b"b", b"bb", b"\xff", b"value-1", b"value-2", b"v" * 100)

# A value near the request limit lives under its own key for a few calls only, because every range
# over the whole space carries it for as long as it is there.
BIG_KEY = b"m-big"
BIG_EVERY = 2500
BIG_CALLS = 6
BIG_SIZES = (1_000_000, 1_572_000, 1_572_850, 1_572_864, 1_600_000, 2_097_000, 2_097_152, 2_200_000)

Request = Any


@dataclass(frozen=True, slots=True)
class State:
    """What the generator may know about the store: both numbers as etcd reports them."""

    current: int = 1
    compacted: int = -1


@dataclass(frozen=True, slots=True)
class Call:
    index: int
    method: str
    request: Request


def call_at(seed: int, index: int, state: State) -> Call:
    """Call number `index` of run `seed`, for a store in `state`."""
    phase = index % BIG_EVERY
    rng = random.Random(f"{seed}:{index}")
    if phase == BIG_EVERY - BIG_CALLS - 2:
        value = rng.randbytes(16) * (rng.choice(BIG_SIZES) // 16)
        return Call(index, "Put", pb.PutRequest(key=BIG_KEY, value=value, prev_kv=rng.random() < 0.5))
    if phase == BIG_EVERY - 1:
        return Call(index, "DeleteRange", pb.DeleteRangeRequest(key=BIG_KEY, prev_kv=rng.random() < 0.5))
    method, make = rng.choices(_MIX, _WEIGHTS)[0]
    return Call(index, method, make(rng, state))


# -- parts --------------------------------------------------------------------------------------


def _key(rng: random.Random) -> bytes:
    roll = rng.random()
    if roll < 0.01:
        return b""
    if roll < 0.02:
        return rng.randbytes(rng.randint(1, 8))
    if roll < 0.022:
        return b"long/" + rng.randbytes(1) * rng.choice((1000, 40_000))
    return rng.choice(KEYS)


def _prefix_end(key: bytes) -> bytes:
    """First key after all keys with this prefix, by etcd's client rule (`\\0` if there is none)."""
    stripped = key.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\x00"


def interval(rng: random.Random) -> tuple[bytes, bytes]:
    """(key, range_end) in every form there is, reversed and empty ones too."""
    key = _key(rng)
    roll = rng.random()
    if roll < 0.40:
        return key, b""
    if roll < 0.52:
        return key, b"\x00"
    if roll < 0.60:
        return b"\x00", b"\x00"
    if roll < 0.74:
        return key, _prefix_end(key)
    if roll < 0.77:
        return key, key
    if roll < 0.80:
        return key, key + b"\x00"
    return key, rng.choice(KEYS)  # about half of them reversed


def _revision(rng: random.Random, state: State) -> int:
    """Past, current, future, compacted, zero, negative and the ends of the type."""
    roll = rng.random()
    if roll < 0.35:
        return max(1, state.current - rng.randint(0, 60))
    if roll < 0.55:
        low = max(state.compacted, 1)
        return rng.randint(min(low, state.current), state.current)
    return rng.choice(
        (
            0,
            state.current,
            state.current + 1,
            state.current + rng.randint(2, 1000),
            state.compacted,
            state.compacted + 1,
            state.compacted - 1,
            1,
            2,
            -1,
            -2,
            -rng.randint(3, 1000),
            INT64_MAX,
            INT64_MIN,
        )
    )


def _bound(rng: random.Random, state: State) -> int:
    return rng.choice((0, 1, state.current, state.current - rng.randint(0, 80), -3, state.current + 5, INT64_MAX))


def _range(rng: random.Random, state: State, *, in_txn: bool = False) -> Request:
    key, range_end = interval(rng)
    request = pb.RangeRequest(key=key, range_end=range_end)
    if rng.random() < 0.4:
        request.limit = rng.choice((1, 1, 2, 3, 5, 10, 1000, -1, INT64_MAX, INT64_MAX - 1, INT64_MIN))
    if rng.random() < (0.2 if in_txn else 0.5):
        request.revision = _revision(rng, state)
    if rng.random() < 0.4:
        request.sort_order = rng.choice((0, 1, 1, 2, 2))
        request.sort_target = rng.choice((0, 1, 2, 3, 4))
    if rng.random() < 0.3:
        request.serializable = True
    if rng.random() < 0.15:
        request.keys_only = True
    if rng.random() < 0.12:
        request.count_only = True
    if rng.random() < 0.15:
        for field in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            if rng.random() < 0.5:
                setattr(request, field, _bound(rng, state))
    # An order outside the enum only: etcd 3.5.1 dies of a target outside it
    # (known_differences.INVALID_SORT_OPTION), and a write must not be refused on one side only.
    if not in_txn and rng.random() < 0.01:
        request.sort_order = rng.choice((3, 7, -1, 2**31 - 1))
    return request


def _put(rng: random.Random, state: State) -> Request:
    request = pb.PutRequest(key=_key(rng))
    if rng.random() < 0.9:
        request.value = rng.choice(VALUES) if rng.random() < 0.7 else rng.randbytes(rng.randint(0, 40))
    if rng.random() < 0.3:
        request.prev_kv = True
    if rng.random() < 0.12:
        request.ignore_value = True
        if rng.random() < 0.8:
            request.value = b""
    if rng.random() < 0.12:
        request.ignore_lease = True
    if rng.random() < 0.02:
        request.lease = rng.choice((1, 77, -1, INT64_MAX, INT64_MIN))
    return request


def _delete(rng: random.Random, state: State) -> Request:
    key, range_end = interval(rng)
    if range_end and rng.random() < 0.6:
        range_end = b""  # wide deletes are kept rare, or the store would be empty most of the time
    return pb.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=rng.random() < 0.4)


def _compare(rng: random.Random, state: State) -> Request:
    compare = pb.Compare(key=_key(rng))
    compare.result = rng.choice((0, 0, 1, 1, 2, 3)) if rng.random() > 0.01 else rng.choice((4, 99, -1))
    target = rng.randrange(5)
    compare.target = target if rng.random() > 0.01 else rng.choice((5, 42, -1))
    # The union names another field than the target says, or nothing, every now and then.
    union = target if rng.random() > 0.08 else rng.randrange(6)
    if union == 0:
        compare.version = rng.choice((0, 0, 1, 2, 3, 10, -1, INT64_MAX))
    elif union == 1:
        compare.create_revision = rng.choice((0, 0, 1, state.current, max(0, state.current - rng.randint(0, 99))))
    elif union == 2:
        compare.mod_revision = rng.choice((0, 0, 1, state.current, max(0, state.current - rng.randint(0, 99)), -1))
    elif union == 3:
        compare.value = rng.choice(VALUES)
    elif union == 4:
        compare.lease = rng.choice((0, 0, 0, 1, -1))
    if rng.random() < 0.2:
        key, range_end = interval(rng)
        compare.key, compare.range_end = key, range_end
    return compare


def _op(rng: random.Random, state: State, depth: int, read_only: bool) -> Request:
    roll = rng.random()
    op = pb.RequestOp()
    if roll < 0.005:
        return op  # nothing in the union
    if roll < 0.08 and depth < 3:
        op.request_txn.CopyFrom(_txn(rng, state, depth + 1, read_only))
    elif read_only or roll < 0.35:
        op.request_range.CopyFrom(_range(rng, state, in_txn=True))
    elif roll < 0.80:
        op.request_put.CopyFrom(_put(rng, state))
    else:
        op.request_delete_range.CopyFrom(_delete(rng, state))
    return op


def _txn(rng: random.Random, state: State, depth: int = 0, read_only: bool | None = None) -> Request:
    if read_only is None:
        read_only = rng.random() < 0.2
    txn = pb.TxnRequest()
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3))):
        txn.compare.add().CopyFrom(_compare(rng, state))
    for branch in (txn.success, txn.failure):
        for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4))):
            branch.add().CopyFrom(_op(rng, state, depth, read_only))
    if depth == 0 and rng.random() < 0.01:
        _crowd(rng, txn)
    if depth == 0 and any(_deletes_from_key(branch) for branch in (txn.success, txn.failure)):
        _keep_nothing(txn)
    return txn


def _deletes_from_key(operations: Request) -> bool:
    for operation in operations:
        inner = operation.request_txn
        if operation.request_delete_range.range_end == b"\x00":
            return True
        if _deletes_from_key(inner.success) or _deletes_from_key(inner.failure):
            return True
    return False


def _keep_nothing(txn: Request) -> None:
    """No ignore_* in this txn: etcd dies of it (known_differences.DELETED_BEFORE_IGNORE)."""
    for operation in (*txn.success, *txn.failure):
        kind = operation.WhichOneof("request")
        if kind == "request_put":
            operation.request_put.ignore_value = operation.request_put.ignore_lease = False
        elif kind == "request_txn":
            _keep_nothing(operation.request_txn)


def _crowd(rng: random.Random, txn: Request) -> None:
    """Fill a txn up to, or just over, the limit on operations; also by way of nesting."""
    over = rng.choice((0, 1))
    shape = rng.randrange(4)
    if shape == 0:
        del txn.compare[:]
        for number in range(MAX_TXN_OPS + over):
            txn.compare.add(key=b"crowd%d" % (number % 3), version=0)
    elif shape == 3:
        del txn.success[:]
        del txn.failure[:]
        outer = rng.choice((64, 100, 127, 128))
        for number in range(outer - 1):
            txn.success.add().request_range.key = b"crowd%d" % (number % 3)
        inner = txn.success.add().request_txn
        for number in range(MAX_TXN_OPS - outer + over):
            inner.success.add().request_put.key = b"crowd%d" % number
    else:
        branch = txn.success if shape == 1 else txn.failure
        del branch[:]
        for number in range(MAX_TXN_OPS + over):
            branch.add().request_put.key = b"crowd%d" % number


def _compact(rng: random.Random, state: State) -> Request:
    roll = rng.random()
    if roll < 0.25:
        revision = max(1, state.current - rng.randint(0, 400))
    elif roll < 0.35:
        revision = state.current
    else:
        revision = rng.choice(
            (
                state.compacted,
                state.compacted - 1,
                0,
                -1,
                -7,
                1,
                state.current + 1,
                state.current + 500,
                INT64_MAX,
                INT64_MIN,
            )
        )
    return pb.CompactionRequest(revision=revision, physical=rng.random() < 0.5)


def _hashkv(rng: random.Random, state: State) -> Request:
    roll = rng.random()
    if roll < 0.7:
        low = max(1, min(state.compacted, state.current))
        revision = rng.randint(low, state.current)
    else:
        revision = rng.choice((0, state.current, state.current + 1, state.compacted, state.compacted - 1, 1, -1))
    return pb.HashKVRequest(revision=revision)


Maker = Callable[[random.Random, State], Request]
_TABLE: tuple[tuple[str, Maker, float], ...] = (
    ("Put", _put, 38.0),
    ("Range", _range, 28.0),
    ("Txn", _txn, 22.0),
    ("DeleteRange", _delete, 10.0),
    ("Compact", _compact, 1.2),
    ("HashKV", _hashkv, 0.4),
)
_MIX: tuple[tuple[str, Maker], ...] = tuple((name, make) for name, make, _ in _TABLE)
_WEIGHTS = tuple(weight for *_, weight in _TABLE)
