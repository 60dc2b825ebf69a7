"""A member with two frontend processes: both serve, and they are one member."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator

import psutil
import pytest

from tests.frontend.rawh2 import GOAWAY
from tests.frontend.rawh2 import Client as RawClient
from tests.harness import Server, target_name, target_server
from tests.harness.rpc import Client

pytestmark = pytest.mark.skipif(target_name() == "etcd", reason="etcdfast's own setting")

CLIENTS = 48  # all on one of two frontends: once in 10^14 runs


@pytest.fixture
def server() -> Iterator[Server]:
    with target_server(flags=["--frontends=2"]) as started:
        yield started


def frontends(server: Server) -> list[psutil.Process]:
    return [p for p in server.processes() if "etcdfast.frontend" in p.cmdline()]


def connections(process: psutil.Process, server: Server) -> int:
    found = process.net_connections(kind="tcp")
    return sum(c.status == psutil.CONN_ESTABLISHED and c.laddr.port == server.port for c in found)


def test_connections_spread_and_every_frontend_shows_one_member(server: Server) -> None:
    processes = frontends(server)
    assert len(processes) == 2
    clients = [Client(server.endpoint) for _ in range(CLIENTS)]
    try:
        revisions = [c.put(b"key/%02d" % n, b"%d" % n).header.revision for n, c in enumerate(clients)]
        assert revisions == list(range(revisions[0], revisions[0] + CLIENTS))
        held = [connections(p, server) for p in processes]
        assert min(held) > 0
        assert sum(held) == CLIENTS
        # What was put through one is there through the other, in the log's order and locally.
        for n, client in enumerate(clients):
            assert client.get(b"key/%02d" % (CLIENTS - 1 - n)).kvs[0].value == b"%d" % (CLIENTS - 1 - n)
        answers = [client.get(b"key/", b"key0", serializable=True) for client in clients]
        assert all(a.count == CLIENTS and a.header == answers[0].header for a in answers)
        for _ in range(CLIENTS):
            with urllib.request.urlopen(f"{server.url}/health", timeout=10) as health:
                assert health.read() == b'{"health":"true","reason":""}'
    finally:
        for client in clients:
            client.close()


def test_puts_through_both_at_once_are_all_there(server: Server) -> None:
    failures: list[BaseException] = []
    revisions: list[int] = []

    def work(number: int) -> None:
        try:
            with Client(server.endpoint) as client:
                for turn in range(30):
                    revisions.append(client.put(b"both/%02d/%02d" % (number, turn), bytes(500)).header.revision)
                    got = client.get(b"both/%02d/" % number, b"both/%02d0" % number)
                    assert got.count == turn + 1
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert len(set(revisions)) == len(revisions) == 480


def test_sigterm_drains_both(server: Server) -> None:
    clients = [RawClient(server.port) for _ in range(CLIENTS)]
    health = "/grpc.health.v1.Health/Check"
    for client in clients:
        stream, data = client.call(b"", path=health)
        client.send(data)
        assert client.answer(stream)[0]["grpc-status"] == "0"
    held = [connections(p, server) for p in frontends(server)]
    assert min(held) > 0
    # One call under way on each connection: its answer comes, then GOAWAY without an error, then the end.
    acked = []
    for number, client in enumerate(clients):
        client.send(client.call(b"\x0a\x04%04d\x12\x01v" % number, path="/etcdserverpb.KV/Put")[1])
    done = threading.Thread(target=server.stop)
    done.start()
    for number, client in enumerate(clients):
        assert client.read_to_end() == (0, "")
        if any(f[0] == 1 and ("grpc-status", "0") in f[3] and f[2] == 3 for f in client.frames):
            acked.append(b"%04d" % number)
        assert [f for f in client.frames if f[0] == GOAWAY]
        client.socket.close()
    done.join()
    assert len(acked) == CLIENTS
    server.flags = []
    server.start()
    with server.client() as client:
        for key in acked:
            assert client.get(key).count == 1
    assert len(frontends(server)) == 1
