"""A lease with very many keys goes in one revision: nobody sees half of it gone, nor does a kill leave half."""

from __future__ import annotations

import os
import random
import threading
import time

from tests.harness import Client, pb, target_server

from .test_linearizable import SEED_VARIABLE

KEYS = 20_000
OPS = 100  # per txn
ROUNDS = 2
LEASE = 7
PREFIX, PREFIX_END = b"owned/", b"owned0"


def _fill(client: Client) -> None:
    assert client.call("LeaseGrant", pb.LeaseGrantRequest(ID=LEASE, TTL=9000)).ok
    window = []
    for first in range(0, KEYS, OPS):
        txn = pb.TxnRequest()
        for number in range(first, first + OPS):
            put = pb.PutRequest(key=PREFIX + b"%06d" % number, value=b"v", lease=LEASE)
            txn.success.add().request_put.CopyFrom(put)
        window.append(client.start("Txn", txn))
    assert all(pending.reply().ok for pending in window)


def _count(client: Client, **fields: object) -> tuple[int, int]:
    """(keys, revision they were counted at)"""
    answer = client.get(PREFIX, PREFIX_END, count_only=True, **fields)
    return answer.count, answer.header.revision


class Reader(threading.Thread):
    """Counts the keys over and over, and puts between; `seen` are (count, revision) in order."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(name="reader", daemon=True)
        self.endpoint = endpoint
        self.seen: list[tuple[int, int]] = []
        self.puts: list[int] = []
        self.failure: BaseException | None = None
        self.stopping = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with Client(self.endpoint) as client:
                while not self.stopping.is_set():
                    self.seen.append(_count(client, serializable=len(self.seen) % 2 == 0))
                    self.puts.append(client.put(b"other", b"").header.revision)
        except BaseException as error:  # noqa: BLE001 - raised again by the test
            self.failure = error


def test_readers_see_all_keys_or_none() -> None:
    with target_server() as server, server.client() as client:
        _fill(client)
        reader = Reader(server.endpoint)
        while not reader.seen and reader.failure is None:
            time.sleep(0.001)
        revoked = client.call("LeaseRevoke", pb.LeaseRevokeRequest(ID=LEASE)).message.header.revision
        last = _count(client)
        reader.stopping.set()
        reader.join(30)
        if reader.failure is not None:
            raise reader.failure
        assert last[0] == 0
        assert {count for count, _ in reader.seen} <= {0, KEYS}
        assert all((count == KEYS) == (revision < revoked) for count, revision in reader.seen)
        assert revoked not in reader.puts, "the revoke has its revision for itself"
        assert _count(client, revision=revoked - 1)[0] == KEYS
        assert _count(client, revision=revoked)[0] == 0


def test_a_kill_leaves_all_keys_or_none() -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"seed {seed} ({SEED_VARIABLE}={seed})")
    rng = random.Random(seed)
    with target_server() as server:
        for _ in range(ROUNDS):
            with server.client() as client:
                _fill(client)
                client.put(b"fence", b"")
                revoke = client.start("LeaseRevoke", pb.LeaseRevokeRequest(ID=LEASE))
                time.sleep(rng.random() * 0.15)  # somewhere before, in or behind the revoke
                server.kill9()
                answered = revoke.reply().ok
            server.start()
            with server.client() as client:
                count, _ = _count(client)
                time_left = client.call("LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=LEASE, keys=True)).message
                print(f"revoke {'answered' if answered else 'not answered'}, {count} keys are left")
                assert count == (KEYS if time_left.TTL > 0 else 0)
                assert len(time_left.keys) == count
                assert not (answered and count)
                client.call("LeaseRevoke", pb.LeaseRevokeRequest(ID=LEASE))
                assert _count(client)[0] == 0
