"""Send the same calls to two servers and find the first unexplained difference."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.harness import Client, Reply, pb, started_pair

from .compare import Difference, compare_replies
from .generator import Call, State, call_at
from .known_differences import KNOWN_DIFFERENCES, Exchange, unexplained

HASH_EVERY = 1000
HASH_SETTLE_SECONDS = 2.0
_UNAVAILABLE = 14
_DIED = Difference("(the reference died of this call, or of one shortly before)", "", "")


@dataclass(slots=True)
class Failure:
    """The first call of a run whose answers differ without an explanation."""

    seed: int
    call: Call
    left: Reply
    right: Reply
    differences: list[Difference]

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, call {self.call.index}: {self.call.method} {_text(self.call.request)}"]
        lines += [f"  {difference}" for difference in self.differences]
        return "\n".join(lines)


@dataclass(slots=True)
class Summary:
    """What a run did; `failure` is None when everything was equal."""

    calls: int = 0
    failure: Failure | None = None
    methods: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)


class Pair:
    """A reference server and a target server that receive the same calls."""

    def __init__(self, left: Client, right: Client) -> None:
        self.left = left
        self.right = right
        self.state = State()

    def exchange(self, call: Call) -> tuple[Exchange, list[Difference]]:
        """Both answers to one call, and how they differ apart from the known differences."""
        before = self.state
        pending = self.left.start(call.method, call.request)
        right = self.right.call(call.method, call.request)
        left = pending.reply()
        differences = compare_replies(call.method, call.request, left, right, self._contents)
        if call.method == "HashKV" and "hash" in {difference.path for difference in differences}:
            left, right, differences = self._hash_again(call)
        self._learn(call, left)
        exchange = Exchange(call.method, call.request, left, right, before.current, before.compacted, self._created)
        return exchange, differences

    def _hash_again(self, call: Call) -> tuple[Reply, Reply, list[Difference]]:
        """Hash until both agree or the time is up.

        While a compaction removes items in the background, etcd's own hash of a revision at which no
        key was live still covers what is not yet removed (formats.md 9.5, step 3, K empty).
        """
        end = time.monotonic() + HASH_SETTLE_SECONDS
        while True:
            left, right = (side.call(call.method, call.request) for side in (self.left, self.right))
            differences = compare_replies(call.method, call.request, left, right)
            if "hash" not in {difference.path for difference in differences} or time.monotonic() > end:
                return left, right, differences
            time.sleep(0.02)

    def _learn(self, call: Call, left: Reply) -> None:
        if not left.ok:
            return
        current, compacted = self.state.current, self.state.compacted
        if call.method == "Compact":
            compacted = call.request.revision
        revision = left.message.header.revision
        self.state = State(max(current, revision), compacted)

    def _created(self, revision: int) -> dict[bytes, int]:
        return {kv.key: kv.create_revision for kv in self.left.get(b"\x00", b"\x00", revision=revision).kvs}

    def _contents(self, request: Any, header_revision: int) -> dict[bytes, Any]:
        revision = request.revision if request.revision > 0 else header_revision
        everything = pb.RangeRequest(
            key=request.key,
            range_end=request.range_end,
            revision=revision,
            min_mod_revision=request.min_mod_revision,
            max_mod_revision=request.max_mod_revision,
            min_create_revision=request.min_create_revision,
            max_create_revision=request.max_create_revision,
        )
        return {kv.key: kv for kv in self.left.call("Range", everything).message.kvs}


def run(pair: Pair, seed: int, indexes: Iterable[int], trace: Callable[[str], object] | None = None) -> Summary:
    """Send calls `indexes` of run `seed`, with HashKV checkpoints; stops at the first failure."""
    summary = Summary()
    for index in indexes:
        call = call_at(seed, index, pair.state)
        if trace is not None:
            trace(f"{index} (revision {pair.state.current}) {call.method} {_text(call.request)}")
        if not _step(pair, seed, call, summary):
            return summary
        if index % HASH_EVERY == HASH_EVERY - 1 and not _checkpoint(pair, seed, index, summary):
            return summary
    _checkpoint(pair, seed, -1, summary)
    return summary


def _step(pair: Pair, seed: int, call: Call, summary: Summary) -> bool:
    exchange, differences = pair.exchange(call)
    summary.calls += 1
    summary.methods[call.method] += 1
    if exchange.left.code == _UNAVAILABLE:
        # No call of the generator may be answered so; both dying of one call would look alike.
        summary.failure = Failure(seed, call, exchange.left, exchange.right, [_DIED])
        return False
    if not exchange.left.ok:
        summary.errors[f"{exchange.left.code} {exchange.left.text}"[:90]] += 1
    if not differences:
        return True
    left_over = unexplained(exchange, differences)
    if not left_over:
        for known in KNOWN_DIFFERENCES:
            summary.known[known.id] += any(known.accepts(exchange, item) for item in differences)
        return True
    summary.failure = Failure(seed, call, exchange.left, exchange.right, left_over)
    return False


def _checkpoint(pair: Pair, seed: int, index: int, summary: Summary) -> bool:
    """The whole contents equal: HashKV at several revisions, and a read of everything."""
    current, compacted = pair.state.current, max(pair.state.compacted, 1)
    revisions = {0, current, current - 1, (current + compacted) // 2, compacted + 1}
    for revision in sorted(revisions):
        if revision == 0 or compacted < revision <= current:
            call = Call(index, "HashKV", pb.HashKVRequest(revision=revision))
            if not _step(pair, seed, call, summary):
                return False
    return _step(pair, seed, Call(index, "Range", pb.RangeRequest(key=b"\x00", range_end=b"\x00")), summary)


def fresh_pair_run(seed: int, indexes: Iterable[int], trace: Callable[[str], object] | None = None) -> Summary:
    """`run` against newly started servers."""
    with started_pair() as (left, right), left.client() as one, right.client() as other:
        return run(Pair(one, other), seed, indexes, trace)


def _text(request: Any) -> str:
    text = " ".join(str(request).split())
    return text if len(text) <= 2000 else f"{text[:2000]}... ({len(text)} characters)"
