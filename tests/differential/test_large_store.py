"""Ranges over many keys: long answers come in pieces inside the server, and must not show it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import Client, pb, started_pair, target_server

from .generator import Call
from .runner import Pair
from .test_random_calls import SEED_VARIABLE

KEYS = 12_000
RANGES = 150
PREFIX = b"large/"
END = b"large0"


def _key(number: int) -> bytes:
    return PREFIX + b"%06d" % number


def _fill(client: Client) -> None:
    """KEYS keys of mixed sizes and versions, some of them deleted again; the same for both servers."""
    rng = random.Random(7)
    for start in range(0, KEYS, 100):
        txn = pb.TxnRequest()
        for number in range(start, start + 100):
            value = rng.randbytes(8) * rng.choice((0, 1, 4, 30))
            txn.success.add().request_put.CopyFrom(pb.PutRequest(key=_key(number), value=value))
        client.call("Txn", txn).message  # noqa: B018 - raises if refused
    for _ in range(300):
        client.put(_key(rng.randrange(KEYS)), rng.randbytes(20))
    client.delete(_key(5000), _key(5500))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with started_pair() as (left, right), left.client(60) as one, right.client(60) as other:
        threads = [threading.Thread(target=_fill, args=(client,)) for client in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        yield Pair(one, other)


def _random_range(rng: random.Random, current: int) -> Any:
    key, end = sorted((_key(rng.randrange(KEYS)), _key(rng.randrange(KEYS))))
    request = pb.RangeRequest(key=rng.choice((key, PREFIX)), range_end=rng.choice((end, END, b"\x00")))
    if rng.random() < 0.4:
        request.limit = rng.choice((1, 100, 1000, 5000, KEYS, KEYS * 2))
    if rng.random() < 0.4:
        request.revision = rng.randint(max(1, current - 300), current)
    if rng.random() < 0.4:
        request.sort_order = rng.randrange(3)
        request.sort_target = rng.randrange(5)
    request.serializable = rng.random() < 0.3
    request.keys_only = rng.random() < 0.3
    request.count_only = rng.random() < 0.1
    if rng.random() < 0.3:
        request.min_mod_revision = rng.randint(1, current)
    if rng.random() < 0.1:
        request.max_create_revision = rng.randint(1, current)
    return request


def test_long_ranges_are_answered_alike(pair: Pair) -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"seed {seed} ({SEED_VARIABLE}={seed})")
    rng = random.Random(seed)
    current = pair.left.get(b"x").header.revision
    for number in range(RANGES):
        request = _random_range(rng, current)
        if number % 10 == 0:  # inside a txn the same read may not be cut into pieces
            txn = pb.TxnRequest()
            txn.success.add().request_range.CopyFrom(request)
            txn.success.add().request_range.key = b"x"
            _, differences = pair.exchange(Call(number, "Txn", txn))
        else:
            _, differences = pair.exchange(Call(number, "Range", request))
        assert not differences, f"seed {seed}, range {number}: {request}\n" + "\n".join(map(str, differences[:5]))


def test_wide_deletes_are_answered_alike(pair: Pair) -> None:
    for key, end in ((_key(100), _key(3000)), (_key(6000), END), (PREFIX, b"\x00")):
        request = pb.DeleteRangeRequest(key=key, range_end=end, prev_kv=True)
        exchange, differences = pair.exchange(Call(0, "DeleteRange", request))
        assert not differences, "\n".join(map(str, differences[:5]))
        assert exchange.left.message.deleted > 2000
    for client in (pair.left, pair.right):
        client.compact(client.get(b"x").header.revision - 1)
    _, differences = pair.exchange(Call(0, "Range", pb.RangeRequest(key=b"\x00", range_end=b"\x00")))
    assert not differences
    left, right = pair.left.hashkv(), pair.right.hashkv()
    assert (left.hash, left.compact_revision) == (right.hash, right.compact_revision)


def test_a_long_range_sees_one_revision() -> None:
    """Readers of everything, while writers change the first and the last key in one txn and others compact."""
    server = target_server()
    stop = threading.Event()
    errors: list[BaseException] = []
    reads = 0

    def guarded(work: Any) -> threading.Thread:
        def run() -> None:
            try:
                with server.client(60) as client:
                    work(client)
            except BaseException as error:  # noqa: BLE001 - shown by the main thread
                errors.append(error)
                stop.set()

        return threading.Thread(target=run)

    def write(client: Client) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            txn = pb.TxnRequest()
            for key in (_key(0), _key(KEYS // 2), _key(KEYS - 1)):
                txn.success.add().request_put.CopyFrom(pb.PutRequest(key=key, value=b"%d" % number))
            client.call("Txn", txn).message  # noqa: B018 - raises if refused

    def compact(client: Client) -> None:
        while not stop.is_set():
            revision = client.get(b"x").header.revision
            reply = client.call("Compact", pb.CompactionRequest(revision=revision - 3, physical=True))
            assert reply.ok or reply.code == 11, reply.text

    def read(client: Client) -> None:
        nonlocal reads
        for turn in range(40):
            fields: dict[str, Any] = {"serializable": turn % 2 == 0}
            if turn % 3 == 0:
                fields["sort_target"], fields["sort_order"] = pb.RangeRequest.MOD, pb.RangeRequest.DESCEND
            reply = client.call("Range", pb.RangeRequest(key=PREFIX, range_end=END, **fields))
            message = reply.message
            values = {kv.key: kv for kv in message.kvs}
            assert len(message.kvs) == len(values) == message.count == KEYS
            marked = [values[_key(number)] for number in (0, KEYS // 2, KEYS - 1)]
            assert len({(kv.value, kv.mod_revision) for kv in marked}) == 1, marked
            assert max(kv.mod_revision for kv in message.kvs) <= message.header.revision
            reads += 1

    with server, server.client(60) as client:
        for start in range(0, KEYS, 100):
            txn = pb.TxnRequest()
            for number in range(start, start + 100):
                txn.success.add().request_put.CopyFrom(pb.PutRequest(key=_key(number), value=b"0" * 40))
            client.call("Txn", txn).message  # noqa: B018 - raises if refused
        txn = pb.TxnRequest()
        for key in (_key(0), _key(KEYS // 2), _key(KEYS - 1)):
            txn.success.add().request_put.CopyFrom(pb.PutRequest(key=key, value=b"0"))
        client.call("Txn", txn).message  # noqa: B018 - raises if refused
        background = [guarded(write), guarded(compact)]
        readers = [guarded(read), guarded(read)]
        for thread in (*background, *readers):
            thread.start()
        for thread in readers:
            thread.join()
        stop.set()
        for thread in background:
            thread.join()
    assert not errors, errors[0]
    assert reads == 80
