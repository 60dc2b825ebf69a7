"""One negative test for each advisory on etcd that concerns auth, named after it (reference/anchors.md 5d)."""

from __future__ import annotations

import base64
import urllib.request
from collections.abc import Iterator

import grpc
import pytest

from tests.harness import pb, target_server

from .actors import Actor, populate

DENIED = (7, "etcdserver: permission denied")
EMPTY = (3, "etcdserver: user name is empty")


@pytest.fixture(scope="module")
def actors() -> Iterator[dict[str, Actor]]:
    with target_server(flags=("--bcrypt-cost", "4", "--frontends", "3")) as server, server.client() as client:
        found = populate(client)
        for key in (b"a", b"b", b"c", b"d", b"e"):
            assert found["root"].ask("Put", pb.PutRequest(key=key, value=b"secret")).ok
        yield found


def test_cve_2021_28235_passwords_are_not_kept() -> None:
    """etcd showed the last Authenticate request, with its password, on a debug page. Ours has no such page, and no
    password stands anywhere else: debug log, write-ahead log, store, what the supervisor tells."""
    first, second, wrong = "first-of-all-passwords", "second-of-all-passwords", "wrong-of-all-passwords"
    with target_server(flags=("--bcrypt-cost", "4", "--log-level", "debug", "--enable-pprof")) as server:
        with server.client() as client:
            root = populate(client)["root"]
            assert root.ask("UserAdd", pb.AuthUserAddRequest(name="new", password=first)).ok
            assert root.ask("UserChangePassword", pb.AuthUserChangePasswordRequest(name="new", password=second)).ok
            assert client.call("Authenticate", pb.AuthenticateRequest(name="new", password=second)).message.token
            assert client.call("Authenticate", pb.AuthenticateRequest(name="new", password=wrong)).code == 3
        shown = [
            urllib.request.urlopen(f"{server.url}{path}", timeout=10).read() for path in ("/metrics", "/debug/vars")
        ]
        server.stop()  # what is in memory goes to the files
        found = [path for path in server.directory.rglob("*") if path.is_file()]
        kept = [path.read_bytes() for path in found]
    # The log has the hash, in base64 as etcd puts it: so these are the files in which a password would stand.
    assert any(base64.b64encode(b"$2a$04$")[:9] in data for data in kept)
    for password in (first, second, wrong):
        assert not any(password.encode() in data for data in (*shown, *kept)), password


def test_cve_2026_33413_nothing_is_served_without_a_name(actors: dict[str, Actor]) -> None:
    for method, request in (
        ("MemberList", pb.MemberListRequest()),
        ("MemberList", pb.MemberListRequest(linearizable=True)),
        ("Alarm", pb.AlarmRequest()),
        ("Alarm", pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=1, alarm=pb.NOSPACE)),
        ("LeaseGrant", pb.LeaseGrantRequest(TTL=100)),
        ("LeaseRevoke", pb.LeaseRevokeRequest(ID=1)),
        ("LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=1)),
        ("LeaseLeases", pb.LeaseLeasesRequest()),
        ("Compact", pb.CompactionRequest(revision=1)),
        ("Status", pb.StatusRequest()),
    ):
        assert actors[""].refusal(method, request) == EMPTY, method
    assert actors[""].renew(1) == EMPTY
    # And what needs root is refused to others.
    for method, request in (
        ("Compact", pb.CompactionRequest(revision=1)),
        ("Alarm", pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=1, alarm=pb.NOSPACE)),
        ("Alarm", pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=1, alarm=pb.NOSPACE)),
    ):
        assert actors["ann"].refusal(method, request) == DENIED, method
    for method, request in (
        ("MemberList", pb.MemberListRequest()), ("Alarm", pb.AlarmRequest()), ("Status", pb.StatusRequest()),
    ):  # fmt: skip
        assert actors["nil"].ask(method, request).ok, method
    assert not actors["root"].ask("Alarm", pb.AlarmRequest()).message.alarms


def test_cve_2026_33413_leases_show_no_keys_that_may_not_be_read(actors: dict[str, Actor]) -> None:
    root = actors["root"]
    assert root.ask("LeaseGrant", pb.LeaseGrantRequest(ID=5, TTL=500)).ok
    assert root.ask("Put", pb.PutRequest(key=b"e", lease=5)).ok
    assert actors["ann"].refusal("LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=5, keys=True)) == DENIED
    assert actors["ann"].ask("LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=5)).ok
    assert actors["ann"].refusal("LeaseLeases", pb.LeaseLeasesRequest()) == DENIED
    assert actors["bob"].ask("LeaseLeases", pb.LeaseLeasesRequest()).ok  # reads all from d on
    assert actors["ann"].refusal("LeaseRevoke", pb.LeaseRevokeRequest(ID=5)) == DENIED
    assert root.ask("LeaseRevoke", pb.LeaseRevokeRequest(ID=5)).ok


def nested(op: pb.RequestOp, depth: int, in_failure: bool) -> pb.TxnRequest:
    request = pb.TxnRequest()
    (request.failure if in_failure else request.success).add().CopyFrom(op)
    for _ in range(depth):
        outer = pb.TxnRequest()
        outer.success.add().request_txn.CopyFrom(request)
        request = outer
    return request


def state(root: Actor) -> bytes:
    reply = root.ask("Range", pb.RangeRequest(key=b"\0", range_end=b"\0")).message
    reply.ClearField("header")
    return reply.SerializeToString()


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("in_failure", [False, True])
def test_cve_2026_33343_operations_of_nested_transactions_are_checked(
    actors: dict[str, Actor], depth: int, in_failure: bool
) -> None:
    before = state(actors["root"])
    for op in (
        pb.RequestOp(request_range=pb.RangeRequest(key=b"e")),
        pb.RequestOp(request_range=pb.RangeRequest(key=b"a", range_end=b"\0")),
        pb.RequestOp(request_put=pb.PutRequest(key=b"e", value=b"mine")),
        pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"e")),
        pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"b", range_end=b"z")),
    ):
        request = nested(op, depth, in_failure)
        request.success.add().request_put.CopyFrom(pb.PutRequest(key=b"aa", value=b"allowed"))
        assert actors["ann"].refusal("Txn", request) == DENIED, op
        assert actors[""].refusal("Txn", request) == EMPTY
    compared = pb.TxnRequest()
    compared.success.add().request_txn.compare.add(key=b"e", target=pb.Compare.VALUE, value=b"secret")
    assert actors["ann"].refusal("Txn", compared) == DENIED
    assert state(actors["root"]) == before  # nothing of a refused transaction is carried out
    allowed = nested(pb.RequestOp(request_range=pb.RangeRequest(key=b"a")), depth, in_failure)
    assert actors["ann"].ask("Txn", allowed).ok


def test_cve_2026_44283_puts_in_transactions_neither_read_nor_take_leases_of_others(actors: dict[str, Actor]) -> None:
    root, wes, ann = actors["root"], actors["wes"], actors["ann"]
    reading = pb.PutRequest(key=b"b", value=b"mine", prev_kv=True)
    assert wes.refusal("Put", reading) == DENIED
    for depth in (0, 1):
        assert wes.refusal("Txn", nested(pb.RequestOp(request_put=reading), depth, False)) == DENIED
    assert root.ask("LeaseGrant", pb.LeaseGrantRequest(ID=6, TTL=500)).ok
    assert root.ask("Put", pb.PutRequest(key=b"e", lease=6)).ok
    taking = pb.PutRequest(key=b"a", value=b"mine", lease=6)
    assert ann.refusal("Put", taking) == DENIED
    for depth in (0, 1):
        assert ann.refusal("Txn", nested(pb.RequestOp(request_put=taking), depth, False)) == DENIED
    assert root.ask("Range", pb.RangeRequest(key=b"a")).message.kvs[0].value == b"secret"
    deleting = pb.DeleteRangeRequest(key=b"b", prev_kv=True)
    assert wes.refusal("DeleteRange", deleting) == DENIED
    assert wes.refusal("Txn", nested(pb.RequestOp(request_delete_range=deleting), 1, False)) == DENIED
    assert root.ask("LeaseRevoke", pb.LeaseRevokeRequest(ID=6)).ok


def test_ghsa_xg4h_6gfc_h4m8_a_watch_needs_the_whole_of_its_range(actors: dict[str, Actor]) -> None:
    refused = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    bob = actors["bob"]  # reads the key a alone, [c, d), and all from d on
    assert bob.watch(b"a") is None and bob.watch(b"c", b"d") is None and bob.watch(b"c", b"\0") is None
    for key, end in ((b"a", b"\0"), (b"a", b"b"), (b"a", b"a\0\0"), (b"b", b"\0"), (b"", b"\0"), (b"", b"")):
        assert bob.watch(key, end) == refused, (key, end)
    assert actors["ann"].watch(b"a", b"\0") == refused and actors["ann"].watch(b"a", b"c") is None


@pytest.mark.parametrize("path", ["etcdserverpb.KV/Put", "/etcdserverpb.KV", "//etcdserverpb.KV/Put", "Put", ""])
def test_cve_2026_33186_paths_that_are_none_reach_nothing(actors: dict[str, Actor], path: str) -> None:
    client = actors["root"].client
    call = client.channel.unary_unary(path, request_serializer=None, response_deserializer=None)
    with pytest.raises(grpc.RpcError) as failure:
        call(pb.PutRequest(key=b"a", value=b"mine").SerializeToString(), metadata=(("token", actors["root"].token),))
    assert failure.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL)
    assert actors["root"].ask("Range", pb.RangeRequest(key=b"a")).message.kvs[0].value == b"secret"


def test_snapshots_and_range_streams_are_checked_too(actors: dict[str, Actor]) -> None:
    def first(actor: Actor, path: str, request: object, response: type) -> object:
        return actor.stream(path, request, response, "unary_stream")[0]

    snapshot = "/etcdserverpb.Maintenance/Snapshot", pb.SnapshotRequest(), pb.SnapshotResponse
    assert first(actors["ann"], *snapshot) == DENIED
    assert first(actors[""], *snapshot) == EMPTY
    assert isinstance(first(actors["root"], *snapshot), pb.SnapshotResponse)
    path = "/etcdserverpb.KV/RangeStream"
    for key, end, allowed in ((b"a", b"c", True), (b"a", b"\0", False), (b"e", b"", False)):
        found = first(actors["ann"], path, pb.RangeRequest(key=key, range_end=end), pb.RangeStreamResponse)
        assert isinstance(found, tuple) != allowed, (key, end, found)
