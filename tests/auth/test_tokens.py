"""Tokens between processes and members: known everywhere at once, alive while used, asked after only when unknown."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator

import grpc
import pytest

from tests.harness import Client, Server, pb, target_server
from tests.harness.cluster import Cluster

from .actors import PASSWORD, Actor, populate

FLAGS = ("--bcrypt-cost", "4", "--frontends", "3")
INVALID = (16, "etcdserver: invalid auth token")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with target_server(flags=FLAGS) as running:
        yield running


@pytest.fixture(scope="module")
def actors(server: Server) -> Iterator[dict[str, Actor]]:
    with server.client() as client:
        yield populate(client)


def connections(server: Server, count: int) -> list[Client]:
    return [server.client() for _ in range(count)]


def test_a_token_holds_on_every_frontend_straight_after_authenticate(server: Server, actors: dict[str, Actor]) -> None:
    clients = connections(server, 12)  # spread over the frontends by the kernel
    for _ in range(3):
        token = actors[""].authenticate("ann").token
        pending = [
            client.start("Put", pb.PutRequest(key=b"a", value=b"%d" % i), token=token)
            for i, client in enumerate(clients)
        ]
        assert all(one.reply().ok for one in pending)
    for client in clients:
        client.close()


def test_many_tokens_at_once_and_many_that_are_none(server: Server, actors: dict[str, Actor]) -> None:
    tokens = [actors[""].authenticate(name).token for name in ("ann", "bob", "root") * 3]
    assert len(set(tokens)) == 9
    with server.client() as client:
        pending = []
        for i in range(600):
            token = tokens[i % 9] if i % 3 else f"none{i % 40}.1"
            pending.append((i % 3, client.start("Range", pb.RangeRequest(key=b"a"), token=token)))
        for good, one in pending:
            reply = one.reply()
            assert (reply.code, reply.text) == ((0, "") if good else INVALID)


def test_calls_parked_for_an_unknown_token_are_answered_cancelled_and_timed_out(
    server: Server, actors: dict[str, Actor]
) -> None:
    future = "abcdefghijklmnop.99999999"  # of an entry that may come: etcd waits as long as the client does
    with server.client() as client:
        begun = time.monotonic()
        waiting = [client.start("Put", pb.PutRequest(key=b"a"), 1.0, token=future) for _ in range(50)]
        cancelled = [client.start("Range", pb.RangeRequest(key=b"a"), 10.0, token=future) for _ in range(50)]
        for one in cancelled:
            one.cancel()
        assert {one.reply().code for one in waiting} == {4}
        assert time.monotonic() - begun < 5
        assert client.call("Range", pb.RangeRequest(key=b"a"), token=actors["ann"].token).ok


def test_the_first_of_token_and_authorization_counts_as_in_etcd(server: Server, actors: dict[str, Actor]) -> None:
    token = actors["ann"].token
    with server.client() as client:
        put = client.channel.unary_unary("/etcdserverpb.KV/Put")
        request = pb.PutRequest(key=b"a").SerializeToString()
        for metadata in (
            (("authorization", token),),
            (("authorization", f"Bearer {token}"),),
            (("token", f"Bearer {token}"),),
            (("authorization", "none.1"), ("token", token)),
            (("token", token), ("authorization", "none.1")),
            (("token", token), ("token", "none.1")),
        ):
            put(request, metadata=metadata, timeout=10)
        for metadata in ((("token", "none.1"), ("authorization", token)), (("authorization", "Basic x"),)):
            with pytest.raises(grpc.RpcError) as failure:
                put(request, metadata=metadata, timeout=10)
            assert failure.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_token_ends_with_its_users_password_and_with_auth(server: Server, actors: dict[str, Actor]) -> None:
    root = actors["root"]
    assert root.ask("UserAdd", pb.AuthUserAddRequest(name="eve", password=PASSWORD)).ok
    eve = actors[""].authenticate("eve")
    assert eve.refusal("Range", pb.RangeRequest(key=b"a"))[0] == 7
    assert root.ask("UserChangePassword", pb.AuthUserChangePasswordRequest(name="eve", password="new")).ok
    assert eve.refusal("Range", pb.RangeRequest(key=b"a")) == INVALID
    eve = actors[""].authenticate("eve", "new")
    assert root.ask("UserDelete", pb.AuthUserDeleteRequest(name="eve")).ok
    assert eve.refusal("Range", pb.RangeRequest(key=b"a")) == INVALID


def test_the_gateway_hands_the_authorization_header_on(server: Server, actors: dict[str, Actor]) -> None:
    def put(key: bytes, token: str | None) -> tuple[int, dict]:
        body = json.dumps({"key": b64encode(key).decode(), "value": "dg=="}).encode()
        request = urllib.request.Request(f"{server.url}/v3/kv/put", body)
        if token is not None:
            request.add_header("Authorization", token)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    token = actors["ann"].token
    assert put(b"a", token)[0] == 200 and put(b"a", f"Bearer {token}")[0] == 200
    assert put(b"e", token) == (403, {**put(b"e", token)[1], "code": 7})
    assert put(b"a", None)[0] == 400 and put(b"a", "none.1")[0] == 401


def test_a_token_lives_by_use_and_dies_of_disuse() -> None:
    with target_server(flags=(*FLAGS, "--auth-token-ttl", "2")) as server, server.client() as client:
        nobody = populate(client)[""]
        unused, used = nobody.authenticate("bob"), nobody.authenticate("ann")
        end = time.monotonic() + 4
        while time.monotonic() < end:
            assert used.ask("Range", pb.RangeRequest(key=b"a")).ok
            time.sleep(0.1)
        assert unused.refusal("Range", pb.RangeRequest(key=b"a")) == INVALID
        assert used.ask("Range", pb.RangeRequest(key=b"a")).ok


@pytest.mark.parametrize("kinds", [("etcdfast", "etcd", "etcdfast"), ("etcd", "etcdfast", "etcd")])
def test_identities_go_through_the_log_between_both_kinds_of_members(kinds: tuple[str, ...]) -> None:
    """Whoever leads, and by whomever the entry came: each member judges it by its header, and alike."""
    environment = {"ETCD_MAX_CLUSTER_VERSION": "3.5.0"}
    with Cluster(kinds, flags=["--bcrypt-cost", "4"], environment=environment) as cluster:
        cluster.wait_leader()
        with cluster.members[0].client() as client:
            populate(client)
            users = {name: Actor(client).authenticate(name).token for name in ("root", "ann")}
        clients = [member.client() for member in cluster.members]
        try:
            for i, client in enumerate(clients):
                # The token is known to each member, at the latest once its entry is applied there.
                ann = Actor(client, users["ann"])
                assert ann.ask("Put", pb.PutRequest(key=b"a%d" % i, value=b"v")).ok, kinds[i]
                assert ann.refusal("Put", pb.PutRequest(key=b"e"))[0] == 7, kinds[i]
                assert Actor(client).refusal("Put", pb.PutRequest(key=b"a"))[0] == 3, kinds[i]
                assert Actor(client, users["root"]).ask("Put", pb.PutRequest(key=b"e", value=b"v")).ok, kinds[i]
                # A lease that ends by time is ended in root's name, whoever leads.
            root = Actor(clients[1], users["root"])
            assert root.ask("LeaseGrant", pb.LeaseGrantRequest(ID=99, TTL=1)).ok
            assert root.ask("Put", pb.PutRequest(key=b"leased", lease=99)).ok
            end = time.monotonic() + 20
            while root.ask("Range", pb.RangeRequest(key=b"leased")).message.kvs:
                assert time.monotonic() < end
                time.sleep(0.2)
            hashes = set()
            for client in clients:
                assert Actor(client, users["root"]).ask("Range", pb.RangeRequest(key=b"a")).ok
                hashes.add(Actor(client, users["root"]).ask("HashKV", pb.HashKVRequest()).message.hash)
            assert len(hashes) == 1
        finally:
            for client in clients:
                client.close()
