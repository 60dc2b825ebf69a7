"""Seeded random histories of writes and compactions with watches of every kind in the middle of them.

Step i of a history is a pure function of (seed, i, current revision, compacted revision), as in
`generator`. Watches live in numbered slots, so that a step ("toggle slot 7") means something whatever
happened before it: any subset of steps is a history, too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tests.harness import pb
from tests.harness.watch import NODELETE, NOPUT

from .generator import INT64_MAX, INT64_MIN, Call, State, call_at, interval

STREAMS = 4
SLOTS = 32  # slot n lives on stream n % STREAMS
BIG_KEY = b"m-big"
BIG_BYTES = (700_000, 1_100_000, 1_500_000)
OWN_IDS = 1_000_000  # ids from here on are of watches that one side refuses, and are not compared
_WRITES = ("Put", "Txn", "DeleteRange")
_FILTERS: tuple[list[Any], ...] = ([], [], [], [], [NOPUT], [NODELETE], [NOPUT, NODELETE], [NODELETE, NODELETE])


@dataclass(frozen=True, slots=True)
class WatchStep:
    """`kind` is one of KINDS; `request` and `number` mean what the runner's method of that name says."""

    index: int
    kind: str
    slot: int = 0
    request: Any = None
    number: int = 0
    flag: bool = False


KINDS = (
    "toggle",
    "settle",
    "compact",
    "duplicate",
    "refused",
    "negative",
    "unknown",
    "nothing",
    "progress",
    "reconnect",
)


def step_at(seed: int, index: int, state: State) -> Call | WatchStep:
    """Step number `index` of history `seed`, for a store in `state`."""
    rng = random.Random(f"watch:{seed}:{index}")
    roll = rng.random()
    if roll < 0.69:
        return _write(seed, index, state)
    if roll < 0.695:
        return _big(rng, index)
    if roll < 0.90:
        request = _create(rng, state, index)
        # number: how likely a slot with a past is opened anew rather than resumed; flag: settle before a cancel.
        return WatchStep(index, "toggle", rng.randrange(SLOTS), request, rng.randrange(100), rng.random() < 0.5)
    kind = rng.choices(KINDS[1:], (26, 7, 12, 12, 8, 8, 5, 17, 5))[0]
    slot = rng.randrange(SLOTS)
    if kind == "compact":
        return WatchStep(index, kind, number=_compaction(rng, state), flag=rng.random() < 0.5)
    if kind == "unknown":
        return WatchStep(index, kind, slot, number=rng.choice((10_000_000, -3, INT64_MAX, INT64_MIN)))
    if kind == "reconnect":
        return WatchStep(index, kind, slot, flag=rng.random() < 0.5)
    request = _create(rng, state, index)
    if kind == "negative":
        request.start_revision = rng.choice((-1, -2, -rng.randint(3, 1000), INT64_MIN))
        # 3.5.1 takes an id for it; one of its own keeps the ids of later watches equal.
        request.watch_id = OWN_IDS + index
        if request.range_end != b"\x00" and request.range_end <= (request.key or b"\x00"):
            request.range_end = b""
    if kind == "refused":
        empty = (b"b", b"a"), (b"b", b"b"), (b"\xff", b"\x00\x00"), (b"a\x00", b"a")
        request.key, request.range_end = rng.choice(empty)
    return WatchStep(index, kind, slot, request)


def _write(seed: int, index: int, state: State) -> Call:
    for again in range(100):
        # Multiples of BIG_EVERY would always meet the same phase of the generator.
        call = call_at(seed, index + again * 1_000_003, state)
        if call.method in _WRITES and len(call.request.SerializeToString()) < 200_000:
            return Call(index, call.method, call.request)
    raise AssertionError("a hundred calls without a write")


def _big(rng: random.Random, index: int) -> Call:
    """A value that makes a response large; half of the time it goes away again."""
    if rng.random() < 0.5:
        return Call(index, "DeleteRange", pb.DeleteRangeRequest(key=BIG_KEY))
    return Call(index, "Put", pb.PutRequest(key=BIG_KEY, value=rng.randbytes(16) * (rng.choice(BIG_BYTES) // 16)))


def _create(rng: random.Random, state: State, index: int) -> Any:
    key, range_end = interval(rng)
    if rng.random() < 0.15:
        key, range_end = b"", b"\x00"  # everything
    request = pb.WatchCreateRequest(
        key=key,
        range_end=range_end,
        start_revision=_start(rng, state),
        prev_kv=rng.random() < 0.5,
        progress_notify=rng.random() < 0.3,
        fragment=rng.random() < 0.3,
        filters=rng.choice(_FILTERS),
    )
    roll = rng.random()
    if roll < 0.2:
        # Never used twice: etcd may hand a cancelled watch's last events to the next one of its id.
        request.watch_id = 100_000 + index if roll < 0.15 else -100_000 - index
    return request


def _start(rng: random.Random, state: State) -> int:
    roll = rng.random()
    if roll < 0.35:
        return 0
    low = max(state.compacted, 1)
    if roll < 0.7:
        return rng.randint(low, state.current) if low <= state.current else state.current
    if roll < 0.8:
        return state.current + rng.randint(2, 25)
    return rng.choice(
        (
            state.current,
            state.current + 1,
            low,
            low,
            low + 1,
            max(1, low - 1),
            1,
            INT64_MAX,
            state.current + 1_000_000,
        )
    )


def _compaction(rng: random.Random, state: State) -> int:
    if rng.random() < 0.3:
        return state.current - rng.randrange(2)
    return rng.randint(max(state.compacted, 1), state.current)
