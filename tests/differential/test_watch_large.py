"""Revisions larger than a message: brought whole or in fragments, live and from the past, by both alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import Client, pb, started_pair
from tests.harness.watch import Watch, WatchStream

# A response of this size with two events or more is split when `fragment` is asked for: the default
# --max-request-bytes and etcd's allowance for what gRPC adds.
SPLIT_BYTES = (3 << 19) + (512 << 10)
TXN_OPS, VALUE_BYTES = 128, 10_000
DELETED_KEYS = 20_000
DELETED_PREFIX = b"d/" + b"-" * 100  # long keys: the deletions alone fill more than one message

Options = tuple[dict[str, Any], ...]
EVERY_OPTION: Options = ({}, {"fragment": True}, {"prev_kv": True}, {"prev_kv": True, "fragment": True})


_etcd_endpoints: set[str] = set()


@pytest.fixture(scope="module")
def clients() -> Iterator[list[Client]]:
    with started_pair() as servers:
        _etcd_endpoints.update(server.endpoint for server in servers if server.kind == "etcd")
        with servers[0].client() as one, servers[1].client() as other:
            yield [one, other]


def _txn(prefix: bytes, numbers: range, value: bytes) -> Any:
    txn = pb.TxnRequest()
    for number in numbers:
        txn.success.add().request_put.CopyFrom(pb.PutRequest(key=b"%s%05d" % (prefix, number), value=value))
    return txn


def _live_and_past(stream: WatchStream, prefix: bytes, write: Any) -> tuple[list[Watch], int]:
    """A watch with each of EVERY_OPTION open before the write, and one that comes after it; the write's revision."""
    end = prefix[:-1] + bytes([prefix[-1] + 1])
    watches = [stream.open(prefix, end, **fields) for fields in EVERY_OPTION]
    revision = write().header.revision
    watches += [stream.open(prefix, end, start_revision=revision, **fields) for fields in EVERY_OPTION]
    return watches, revision


def _in_one_piece(client: Client, watch: Watch) -> bool:
    """etcd sends what it has ready before the answer to the creation behind that answer, and unsplit."""
    return bool(watch.request.start_revision) and client.endpoint in _etcd_endpoints and not watch.fragments


def _check_parts(client: Client, watches: list[Watch]) -> None:
    for watch in watches:
        if _in_one_piece(client, watch):
            continue
        if not watch.request.fragment:
            assert watch.fragments == 0
            continue
        total = sum(event.ByteSize() for event in watch.events)
        assert (watch.fragments > 1) == (total >= SPLIT_BYTES), (watch.fragments, total)
        assert max(watch.message_bytes) < SPLIT_BYTES


def test_a_txn_of_128_large_puts(clients: list[Client]) -> None:
    seen = []
    for client in clients:
        with WatchStream(client.endpoint) as stream:
            client.call("Txn", _txn(b"t/", range(TXN_OPS), b"1" * VALUE_BYTES)).message  # noqa: B018
            second = _txn(b"t/", range(TXN_OPS), b"2" * VALUE_BYTES)
            watches, revision = _live_and_past(stream, b"t/", lambda c=client, txn=second: c.call("Txn", txn).message)
            for watch in watches:
                stream.wait_events(watch, TXN_OPS)
            client.put(b"t/last", b"")
            for watch in watches:
                stream.wait_events(watch, TXN_OPS + 1)
                assert [event.kv.key for event in watch.events[:TXN_OPS]] == [b"t/%05d" % n for n in range(TXN_OPS)]
                assert {event.kv.mod_revision for event in watch.events[:TXN_OPS]} == {revision}
                # The revision in one piece; the next one may share the last response of a catch-up.
                assert sum(event.kv.mod_revision == revision for event in watch.responses[0].events) == TXN_OPS
            _check_parts(client, watches)
            stream.check()
            seen.append([watch.events for watch in watches])
    assert seen[0] == seen[1]


def test_a_delete_of_20_000_keys(clients: list[Client]) -> None:
    seen = []
    for client in clients:
        with WatchStream(client.endpoint) as stream:
            for first in range(0, DELETED_KEYS, TXN_OPS):
                numbers = range(first, min(first + TXN_OPS, DELETED_KEYS))
                client.call("Txn", _txn(DELETED_PREFIX, numbers, b"v")).message  # noqa: B018
            single = stream.open(DELETED_PREFIX + b"12345", prev_kv=True)
            part = stream.open(DELETED_PREFIX + b"1", DELETED_PREFIX + b"2", prev_kv=True, fragment=True)
            whole = stream.open(b"d/", b"d0")
            revision = client.delete(b"d/", b"d0").header.revision
            # etcd's splitting takes time that grows with the square of the events: it is spared this one.
            split = stream.open(b"d/", b"d0", start_revision=revision, fragment=client.endpoint not in _etcd_endpoints)
            watches = [whole, split, stream.open(b"d/", b"d0", start_revision=revision)]
            for watch in watches:
                stream.wait_events(watch, DELETED_KEYS)
            stream.wait_events(single, 1)
            stream.wait_events(part, DELETED_KEYS // 2)
            for watch in (*watches, part):
                # A message comes in one piece, fragments come one after the other.
                stream.wait(lambda watch=watch: watch.responses, "the whole revision")
                assert len(watch.responses) == 1
                assert watch.responses[0].header.revision == revision
            assert single.events[0].prev_kv.value == b"v" == part.events[-1].prev_kv.value
            _check_parts(client, [*watches, part])
            seen.append([watch.events for watch in (*watches, single, part)])
    assert seen[0] == seen[1]


def test_many_revisions_are_caught_up_in_fragments(clients: list[Client]) -> None:
    """From the past, a response may hold many revisions and be split; joined it holds them whole."""
    seen = []
    for client in clients:
        with WatchStream(client.endpoint) as stream:
            first = client.put(b"m/0", b"").header.revision
            for number in range(5):
                client.call("Txn", _txn(b"m/", range(100), b"%d" % number * VALUE_BYTES)).message  # noqa: B018
            watches = [stream.open(b"m/", b"m0", start_revision=first, **options) for options in EVERY_OPTION]
            for watch in watches:
                stream.wait_events(watch, 501)
                for response in watch.responses:
                    revisions = [event.kv.mod_revision for event in response.events]
                    assert revisions == sorted(revisions)
                    for revision in set(revisions) - {first}:
                        assert revisions.count(revision) == 100, "a revision is split over responses"
                if watch.request.fragment and not _in_one_piece(client, watch):
                    assert max(watch.message_bytes) < SPLIT_BYTES
            seen.append([watch.events for watch in watches])
    assert seen[0] == seen[1]
