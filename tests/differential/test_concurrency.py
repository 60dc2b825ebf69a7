"""Concurrent compare-and-swap on few counters: no update is lost, none is seen twice."""

from __future__ import annotations

import threading

from tests.harness import Client, pb, target_server

THREADS = 8
INCREMENTS = 150  # per thread
COUNTERS = (b"counter/0", b"counter/1")


def _increment(client: Client, key: bytes, seen: list[tuple[bytes, int, int]]) -> None:
    """Read, then write value + 1 if nothing happened in between; until it works."""
    for _ in range(100_000):
        got = client.get(key)
        value, modified = (int(got.kvs[0].value), got.kvs[0].mod_revision) if got.kvs else (0, 0)
        txn = pb.TxnRequest()
        compare = txn.compare.add(key=key, target=pb.Compare.MOD, result=pb.Compare.EQUAL)
        compare.mod_revision = modified
        txn.success.add().request_put.CopyFrom(pb.PutRequest(key=key, value=b"%d" % (value + 1)))
        txn.failure.add().request_range.key = key
        answer = client.call("Txn", txn).message
        if answer.succeeded:
            seen.append((key, value + 1, answer.header.revision))
            return
        newer = answer.responses[0].response_range.kvs[0]
        assert newer.mod_revision > modified, "the compare failed though nothing had changed"
    raise AssertionError("no increment succeeded in 100,000 tries")


def test_no_lost_update() -> None:
    with target_server() as server:
        results: list[list[tuple[bytes, int, int]]] = [[] for _ in range(THREADS)]
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                with server.client() as client:
                    for turn in range(INCREMENTS):
                        key = COUNTERS[(number + turn) % len(COUNTERS)]
                        _increment(client, key, results[number])
            except BaseException as error:  # noqa: BLE001 - shown by the main thread
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors[0]

        done = [item for result in results for item in result]
        assert len(done) == THREADS * INCREMENTS
        # Each write took its own revision, in an order that agrees with the counters' values.
        assert sorted(revision for _, _, revision in done) == list(range(2, len(done) + 2))
        with server.client() as client:
            for key in COUNTERS:
                steps = sorted((revision, value) for k, value, revision in done if k == key)
                assert [value for _, value in steps] == list(range(1, len(steps) + 1))
                last = client.get(key).kvs[0]
                assert (int(last.value), last.version, last.mod_revision) == (
                    len(steps), len(steps), steps[-1][0],
                )  # fmt: skip
