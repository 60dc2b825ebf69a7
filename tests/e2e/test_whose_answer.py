"""A thousand clients at once: each gets the answers to its own requests, whoever else cancels or goes away.

Every client owns a few keys, and every value says who wrote it and when. An answer meant for another client
would carry a foreign key, a foreign value, or a value of the client's own past that is gone.
"""

from __future__ import annotations

import asyncio
import os
import random

import grpc
import pytest

from tests.harness import pb, target_server
from tests.harness.rpc import METHODS

SEED_VARIABLE = "ETCDFAST_CRASH_SEED"
CLIENTS = 1000
CONNECTIONS = 50
CALLS = 12
CANCEL_CHANCE = 0.15
RECONNECT_CHANCE = 0.02
BIG_BYTES = 100_000  # answers longer than one record of a ring, in parts and on credit
OPTIONS = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))


class Connection:
    """A channel shared by some clients; whoever likes may replace it under the others' feet."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.channel = grpc.aio.insecure_channel(endpoint, options=OPTIONS)
        self.reconnects = 0

    def call(self, method: str, request):
        row = METHODS[method]
        stub = self.channel.unary_unary(
            row.path, request_serializer=row.request.SerializeToString, response_deserializer=row.response.FromString
        )
        return stub(request, timeout=30)

    async def reconnect(self) -> None:
        old, self.channel = self.channel, grpc.aio.insecure_channel(self.endpoint, options=OPTIONS)
        self.reconnects += 1
        await old.close()


class Client:
    """One after the other: calls on its own key, checked against what it was told before."""

    def __init__(self, number: int, connection: Connection, rng: random.Random) -> None:
        self.key = b"client/%d" % number
        self.connection, self.rng = connection, rng
        self.known = b""
        self.open: set[bytes] = set()  # written without an answer: may come at any time, on another connection's way
        self.revision = 0
        self.answered = self.lost = 0

    async def run(self) -> None:
        for count in range(CALLS):
            method, request, check = self._choose(count)
            value = request.value if method == "Put" else None
            try:
                call = self.connection.call(method, request)
                if self.rng.random() < CANCEL_CHANCE:
                    await asyncio.sleep(self.rng.random() * 0.02)
                    call.cancel()
                answer = await call
            except (asyncio.CancelledError, grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
                if isinstance(error, grpc.aio.AioRpcError):
                    cancelled = error.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
                    assert cancelled, f"{method} of {self.key!r}: {error.code()} {error.details()}"
                self.lost += 1
                if value is not None:
                    self.open.add(value)
                continue
            check(request, answer)
            self.answered += 1
            if value is not None:
                self.known = value
            if self.rng.random() < RECONNECT_CHANCE:
                await self.connection.reconnect()

    def _choose(self, count: int):
        roll = self.rng.random()
        if roll < 0.5:
            value = self.key + b"=%d " % count
            if self.rng.random() < 0.02:
                value += bytes(BIG_BYTES)
            return "Put", pb.PutRequest(key=self.key, value=value, prev_kv=True), self._put
        if roll < 0.75:
            return "Range", pb.RangeRequest(key=self.key, serializable=roll < 0.6), self._range
        if roll < 0.85:
            # Never true: another way to the value, through the log.
            request = pb.TxnRequest()
            request.compare.add(key=self.key, target=pb.Compare.VERSION, result=pb.Compare.LESS, version=0)
            request.success.add().request_put.CopyFrom(pb.PutRequest(key=b"never", value=self.key))
            request.failure.add().request_range.key = self.key
            return "Txn", request, self._txn
        # Nobody ever writes there: the count of exactly this answer is nought, and its revision is not.
        return "DeleteRange", pb.DeleteRangeRequest(key=self.key + b"/none", prev_kv=True), self._delete

    def _moved_on(self, header) -> None:
        assert header.revision >= self.revision, f"{self.key!r}: back from {self.revision} to {header.revision}"
        self.revision = header.revision

    def _settled(self, kvs) -> None:
        found = kvs[0].value if kvs else b""
        assert len(kvs) <= 1 and all(kv.key == self.key for kv in kvs), f"{self.key!r} got {[kv.key for kv in kvs]}"
        expected = {self.known, *self.open}
        assert found in expected, f"{self.key!r}: {found[:60]!r} is none of {[value[:60] for value in expected]}"

    def _put(self, request, answer) -> None:
        assert answer.header.revision > self.revision
        self._moved_on(answer.header)
        self._settled([answer.prev_kv] if answer.HasField("prev_kv") else [])

    def _range(self, request, answer) -> None:
        self._moved_on(answer.header)
        assert answer.count == len(answer.kvs)
        self._settled(answer.kvs)

    def _txn(self, request, answer) -> None:
        self._moved_on(answer.header)
        assert not answer.succeeded and len(answer.responses) == 1
        self._settled(answer.responses[0].response_range.kvs)

    def _delete(self, request, answer) -> None:
        self._moved_on(answer.header)
        assert answer.deleted == 0 and not answer.prev_kvs


async def _all(endpoint: str, rng: random.Random) -> tuple[int, int, int]:
    connections = [Connection(endpoint) for _ in range(CONNECTIONS)]
    clients = [
        Client(number, connections[number % CONNECTIONS], random.Random(rng.getrandbits(64)))
        for number in range(CLIENTS)
    ]
    await asyncio.gather(*(client.run() for client in clients))
    for connection in connections:
        await connection.channel.close()
    return (
        sum(client.answered for client in clients),
        sum(client.lost for client in clients),
        sum(connection.reconnects for connection in connections),
    )


@pytest.mark.parametrize("frontends", [1, 2])
def test_every_answer_belongs_to_its_request(frontends: int) -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"seed {seed} ({SEED_VARIABLE}={seed})")
    with target_server(flags=["--frontends", str(frontends)] if frontends > 1 else []) as server:
        answered, lost, reconnects = asyncio.run(_all(server.endpoint, random.Random(seed)))
        print(f"{answered} answers, {lost} cancelled or cut off, {reconnects} reconnects")
        with server.client() as client:
            assert client.get(b"never").count == 0
    assert answered > CLIENTS * CALLS // 2 and lost > CLIENTS // 4 and reconnects > 10
