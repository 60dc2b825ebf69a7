"""The crash checker goes red for each guarantee broken; against real etcd, with false histories."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator

import pytest

from tests.harness import Client, EtcdServer, pb

from . import history
from .checker import Broken, Checker
from .history import Operation
from .workload import Load


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[EtcdServer, EtcdServer]]:
    one, mirror = EtcdServer(flags=["--unsafe-no-fsync"]), EtcdServer(flags=["--unsafe-no-fsync"])
    try:
        one.spawn()
        mirror.spawn()
        one.wait_ready()
        mirror.wait_ready()
        yield one, mirror
    finally:
        one.close()
        mirror.close()


@pytest.fixture
def client(servers: tuple[EtcdServer, EtcdServer]) -> Iterator[Client]:
    with servers[0].client() as client:
        yield client


@pytest.fixture
def checker(client: Client) -> Checker:
    """Starts at the revision the shared server is at, with what is live in it."""
    checker = Checker()
    answer = client.get(b"\x00", b"\x00")
    checker.model.current = answer.header.revision
    checker.model.live = {kv.key: (kv.value, kv.create_revision, kv.mod_revision, kv.version) for kv in answer.kvs}
    return checker


def _send(client: Client, operation: Operation) -> Operation:
    operation.revision = client.call(operation.method, operation.request).message.header.revision
    return operation


def _txn(name: bytes, *more: history.Effect, by_failure: bool = False) -> Operation:
    return history.txn(name, ((name + b"/a", b"1"), (name + b"/b", b"2"), *more), by_failure=by_failure)


def test_a_true_history_passes(client: Client, checker: Checker) -> None:
    first = [_send(client, history.put(b"t1", b"v")), _send(client, _txn(b"t2", by_failure=True))]
    assert checker.after_restart(client, first, []) == []
    second = [_send(client, _txn(b"t3", (b"t1", None))), _send(client, history.put(b"t1", b"again"))]
    lost_answer = _txn(b"t4", (b"t2/a", None))
    _send(client, lost_answer).revision = None
    never_arrived = history.put(b"t5", b"v")
    last = [_send(client, history.delete(b"t2/b"))]
    assert checker.after_restart(client, [*second, *last], [never_arrived, lost_answer]) == [lost_answer]
    checker.check_contents(client)


def test_a_lost_write_fails(client: Client, checker: Checker) -> None:
    sent = _send(client, history.put(b"l1", b"v"))
    lost = history.put(b"l2", b"v")
    assert sent.revision is not None
    lost.revision = sent.revision + 1
    with pytest.raises(Broken, match="lost"):
        checker.after_restart(client, [sent, lost], [])


def test_one_revision_answered_twice_fails(client: Client, checker: Checker) -> None:
    sent, other = _send(client, history.put(b"d1", b"v")), history.put(b"d2", b"v")
    other.revision = sent.revision
    with pytest.raises(Broken, match="two writes"):
        checker.after_restart(client, [sent, other], [])


def test_an_answered_write_with_another_value_fails(client: Client, checker: Checker) -> None:
    sent = _send(client, history.put(b"o1", b"other"))
    claimed = history.put(b"o1", b"v")
    claimed.revision = sent.revision
    with pytest.raises(Broken, match="o1"):
        checker.after_restart(client, [claimed], [])


def test_half_a_transaction_fails(client: Client, checker: Checker) -> None:
    _send(client, history.put(b"h/a", b"1"))
    with pytest.raises(Broken, match="half a transaction"):
        checker.after_restart(client, [], [_txn(b"h")])


def test_a_transaction_without_its_delete_fails(client: Client, checker: Checker) -> None:
    setup = [_send(client, history.put(b"w", b"v"))]
    checker.after_restart(client, setup, [])
    _send(client, _txn(b"x"))
    with pytest.raises(Broken, match="half a transaction"):
        checker.after_restart(client, [], [_txn(b"x", (b"w", None))])


def test_an_answered_transaction_without_its_delete_fails(client: Client, checker: Checker) -> None:
    checker.after_restart(client, [_send(client, history.put(b"y", b"v"))], [])
    sent, claimed = _send(client, _txn(b"z")), _txn(b"z", (b"y", None))
    claimed.revision = sent.revision
    with pytest.raises(Broken, match="deleted"):
        checker.after_restart(client, [claimed], [])


def test_a_write_nobody_sent_fails(client: Client, checker: Checker) -> None:
    client.put(b"alien", b"v")
    with pytest.raises(Broken, match="nobody sent"):
        checker.after_restart(client, [], [history.put(b"mine", b"v")])


def test_an_open_write_done_twice_fails(client: Client, checker: Checker) -> None:
    operation = history.put(b"twice", b"v")
    client.call(operation.method, operation.request)
    client.call(operation.method, operation.request)
    with pytest.raises(Broken, match="nobody sent"):
        checker.after_restart(client, [], [operation])


def test_another_hash_than_the_mirror_fails(servers: tuple[EtcdServer, EtcdServer]) -> None:
    """The mirror gets one more key before the history is replayed."""
    with EtcdServer(flags=["--unsafe-no-fsync"]) as fresh, fresh.client() as client:
        with servers[1].client() as mirror:
            mirror.put(b"only in the mirror", b"v")
            checker = Checker(mirror)
            with pytest.raises(Broken, match="HashKV hash"):
                checker.after_restart(client, [_send(client, history.put(b"a", b"v"))], [])


def test_a_data_directory_set_back_fails(tmp_path) -> None:
    """The real thing: writes are answered, and then the disk forgets them."""
    server = EtcdServer()
    kept = tmp_path / "kept"
    try:
        server.start()
        rng = random.Random(1)
        with server.client() as client:
            client.put(b"before", b"v")
        server.kill9()
        shutil.copytree(server.data_dir, kept)
        server.start()
        load = Load(server, rng, 0, [])
        load.start()
        load.wait_answers(20)
        server.kill9()
        answered, unanswered = load.join()
        shutil.rmtree(server.data_dir)
        shutil.copytree(kept, server.data_dir)
        server.start()
        checker = Checker()
        checker.model.apply(history.put(b"before", b"v"), 2)
        with server.client() as client, pytest.raises(Broken, match="an acknowledged write is lost"):
            checker.after_restart(client, answered, unanswered)
    finally:
        server.close()


def test_requests_do_what_the_effects_say(client: Client) -> None:
    operation = _txn(b"q", by_failure=True)
    reply = client.call("Txn", operation.request).message
    assert not reply.succeeded
    assert client.get(b"q/a").kvs[0].value == b"1"
    assert pb.TxnRequest.FromString(operation.request).success[0].request_put.key == b"never/q"
