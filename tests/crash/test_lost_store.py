"""The log alone is enough: a store that is gone is made again from it, to the last bit of its hashes."""

from __future__ import annotations

import shutil

import pytest

from tests.harness import Client, target_name, target_server

PUTS, KEYS = 400, 37


def _write(client: Client) -> None:
    for number in range(PUTS):
        client.put(b"key/%d" % (number % KEYS), b"%d" % number)
        if number % 50 == 49:
            client.delete(b"key/%d" % (number % KEYS))
    client.compact(PUTS // 2)


def _image(client: Client) -> tuple[int, ...]:
    newest = client.hashkv()
    return newest.header.revision, newest.compact_revision, newest.hash


@pytest.mark.skipif(target_name() == "etcd", reason="etcd's store is another")
def test_a_store_is_made_again_from_the_log() -> None:
    with target_server() as server:
        with server.client() as client:
            _write(client)
            before = _image(client)
        server.stop()
        shutil.rmtree(server.data_dir / "member" / "store")
        server.start()
        with server.client() as client:
            assert _image(client) == before
            client.compact(before[0])
            after = _image(client)
        server.kill9()
        server.start()
        with server.client() as client:
            assert _image(client) == after
