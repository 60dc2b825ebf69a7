"""The whole differential chain goes red on wrong answers: etcd on both sides, one of them falsified.

Always against real etcd, whatever the target of the run, so it says something about the test alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.harness import Client, EtcdServer, Reply, Server, started_pair

from .runner import Pair, run

CALLS = 1500
SEED = 5


class FalseClient:
    """A client whose replies pass through `falsify`; None leaves a reply as it is."""

    def __init__(self, client: Client, falsify: Callable[[Reply], Any]) -> None:
        self._client = client
        self._falsify = falsify
        self.done = 0

    def call(self, method: str, request: Any) -> Reply:
        reply = self._client.call(method, request)
        changed = self._falsify(reply)
        if changed is None:
            return reply
        self.done += 1
        return changed if isinstance(changed, Reply) else Reply(method, 0, "", changed.SerializeToString())


@pytest.fixture
def pair() -> Iterator[tuple[Server, Server]]:
    with started_pair(EtcdServer(), EtcdServer()) as servers:
        yield servers


def _count_off_by_one(reply: Reply) -> Any:
    if reply.method != "Range" or not reply.ok or reply.message.count < 3:
        return None
    message = reply.message
    message.count -= 1
    return message


def _lost_prev_kv(reply: Reply) -> Any:
    if reply.method != "DeleteRange" or not reply.ok or not reply.message.prev_kvs:
        return None
    message = reply.message
    del message.prev_kvs[:]
    return message


def _wrong_branch(reply: Reply) -> Any:
    if reply.method != "Txn" or not reply.ok:
        return None
    message = reply.message
    message.succeeded = not message.succeeded
    return message


def _stale_value_in_txn(reply: Reply) -> Any:
    if reply.method != "Txn" or not reply.ok:
        return None
    message = reply.message
    for response in message.responses:
        if response.response_range.kvs:
            response.response_range.kvs[0].value += b"!"
            return message
    return None


def _hash(reply: Reply) -> Any:
    if reply.method != "HashKV" or not reply.ok:
        return None
    message = reply.message
    message.hash ^= 1
    return message


def _other_text(reply: Reply) -> Any:
    return None if reply.ok else Reply(reply.method, reply.code, reply.text + ".", b"")


def _other_code(reply: Reply) -> Any:
    return None if reply.ok else Reply(reply.method, 2, reply.text, b"")


def _refused(reply: Reply) -> Any:
    return Reply(reply.method, 14, "etcdserver: no leader", b"") if reply.ok else None


MUTATIONS = [
    _count_off_by_one,
    _lost_prev_kv,
    _wrong_branch,
    _stale_value_in_txn,
    _hash,
    _other_text,
    _other_code,
    _refused,
]


def test_each_wrong_answer_fails_at_its_call(pair: tuple[Server, Server]) -> None:
    """One pair of servers for all: each mutation runs on where the last one stopped."""
    left, right = pair
    with left.client() as one, right.client() as other:
        honest = Pair(one, other)
        first = 0
        assert run(honest, SEED, range(100)).failure is None
        for falsify in MUTATIONS:
            first += CALLS
            client = FalseClient(other, falsify)
            honest.right = client  # type: ignore[assignment]
            summary = run(honest, SEED, range(first, first + CALLS))
            assert client.done, f"{falsify.__name__} never came to act"
            assert summary.failure is not None, f"{falsify.__name__} went unnoticed"
        honest.right = other
        assert run(honest, SEED, range(100)).failure is None


def test_a_lost_write_is_found_though_its_answer_was_right(pair: tuple[Server, Server]) -> None:
    left, right = pair
    with left.client() as one, right.client() as other:
        both = Pair(one, other)
        assert run(both, SEED, range(50)).failure is None
        one.put(b"only-here", b"")
        other.delete(b"\x00", b"")
        assert run(both, SEED, range(50, 60)).failure is not None
