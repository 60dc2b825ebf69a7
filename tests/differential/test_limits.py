"""Limits at their exact edges, and the answers that cannot be drawn at random."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.harness import Client, pb, started_pair, target_name

from .compare import compare_replies
from .generator import Call
from .runner import Pair

MAX_REQUEST_BYTES = 1_572_864  # --max-request-bytes
MAX_MESSAGE_BYTES = MAX_REQUEST_BYTES + 512 * 1024  # what gRPC itself takes


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with started_pair() as (left, right), left.client() as one, right.client() as other:
        yield Pair(one, other)


def _put_of(message_bytes: int) -> pb.PutRequest:
    request = pb.PutRequest(key=b"k", value=bytes(message_bytes - 12))
    request.value += bytes(message_bytes - request.ByteSize())
    assert request.ByteSize() == message_bytes
    return request


def _alike(pair: Pair, method: str, request: object) -> tuple[int, str]:
    exchange, differences = pair.exchange(Call(0, method, request))
    assert not differences, "\n".join(map(str, differences))
    return exchange.left.code, exchange.left.text


def test_request_size_is_refused_at_the_same_byte(pair: Pair) -> None:
    """The limit counts the marshalled raft request, so its edge lies some bytes below the message's."""
    codes = [_alike(pair, "Put", _put_of(MAX_REQUEST_BYTES - below))[0] for below in range(40, -3, -1)]
    assert codes[0] == 0 and codes[-1] == 3
    assert codes == sorted(codes), "one edge only"


@pytest.mark.parametrize("over", [-1, 0, 1, 1000])
def test_message_size_is_refused_at_the_same_byte(pair: Pair, over: int) -> None:
    code, text = _alike(pair, "Put", _put_of(MAX_MESSAGE_BYTES + over))
    if over > 0:
        assert (code, text) == (
            8, f"grpc: received message larger than max ({MAX_MESSAGE_BYTES + over} vs. {MAX_MESSAGE_BYTES})",
        )  # fmt: skip
    else:
        assert (code, text) == (3, "etcdserver: request is too large")


def test_large_keys(pair: Pair) -> None:
    for size in (1, 127, 128, 16_383, 16_384, 65_535, 65_536, 500_000):
        key = b"K" * size
        assert _alike(pair, "Put", pb.PutRequest(key=key, value=b"v", prev_kv=True))[0] == 0
        assert _alike(pair, "Range", pb.RangeRequest(key=key, range_end=key + b"\0"))[0] == 0
        assert _alike(pair, "DeleteRange", pb.DeleteRangeRequest(key=key, prev_kv=True))[0] == 0


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05ab", b"\xff\xff\xff", b"\x0b", b"\x08\x80"])
@pytest.mark.parametrize("method", ["Range", "Put", "DeleteRange", "Txn", "Compact"])
def test_bytes_that_are_no_message_are_refused(pair: Pair, method: str, data: bytes) -> None:
    """Same code; the text names the decoder's own complaint, which is not part of the API."""
    left, right = pair.left.call(method, data), pair.right.call(method, data)
    assert left.code == right.code, (left, right)
    assert left.ok or left.code == 13
    if left.ok:
        assert not compare_replies(method, data, left, right)


def test_unknown_fields_are_ignored(pair: Pair) -> None:
    request = pb.PutRequest(key=b"unknown", value=b"v").SerializeToString() + b"\x98\x06\x01\xa2\x06\x02hi"
    left, right = pair.left.call("Put", request), pair.right.call("Put", request)
    assert left.ok and not compare_replies("Put", request, left, right)


def test_invalid_sort_target_is_refused(pair: Pair) -> None:
    """etcd 3.5.1 dies of it, so only etcdfast is asked (known_differences.INVALID_SORT_OPTION)."""
    if target_name() == "etcd":
        pytest.skip("kills etcd 3.5.1")
    client: Client = pair.right
    for request in (
        pb.RangeRequest(key=b"a", sort_target=5),
        pb.RangeRequest(key=b"a", sort_target=-1, sort_order=1),
        pb.RangeRequest(key=b"a", sort_order=3),
    ):
        reply = client.call("Range", request)
        assert (reply.code, reply.text) == (3, "etcdserver: invalid sort option")
        txn = pb.TxnRequest()
        txn.success.add().request_range.CopyFrom(request)
        reply = client.call("Txn", txn)
        assert (reply.code, reply.text) == (3, "etcdserver: invalid sort option")


def test_an_ignoring_put_after_a_delete_from_its_key(pair: Pair) -> None:
    """etcd dies of it (known_differences.DELETED_BEFORE_IGNORE); etcdfast refuses it, and nothing is written."""
    if target_name() == "etcd":
        pytest.skip("kills etcd 3.5.1")
    client: Client = pair.right
    revision = client.put(b"p", b"v").header.revision
    for field in ("ignore_value", "ignore_lease"):
        for nested in (False, True):
            txn = pb.TxnRequest()
            branch = txn.success.add().request_txn.success if nested else txn.success
            branch.add().request_put.CopyFrom(pb.PutRequest(key=b"other", value=b"v"))
            branch.add().request_delete_range.CopyFrom(pb.DeleteRangeRequest(key=b"\x00", range_end=b"\x00"))
            branch.add().request_put.CopyFrom(pb.PutRequest(key=b"p", **{field: True}))
            reply = client.call("Txn", txn)
            assert (reply.code, reply.text) in (
                (3, "etcdserver: key not found"), (3, "etcdserver: duplicate key given in txn request"),
            )  # fmt: skip
            after = client.get(b"p")
            assert (after.header.revision, after.count, client.get(b"other").count) == (revision, 1, 0)


def _refusal(client: Client, path: str) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        client.channel.unary_unary(path)(b"", timeout=10)
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("path", ["/etcdserverpb.KV/Nope", "/etcdserverpb.Nope/Range", "/a.b.C/D/E"])
def test_unknown_methods_are_unimplemented(pair: Pair, path: str) -> None:
    left = _refusal(pair.left, path)
    assert left[0] is grpc.StatusCode.UNIMPLEMENTED
    assert _refusal(pair.right, path) == left


def test_a_path_without_a_method_is_unimplemented(pair: Pair) -> None:
    """The gRPC library in etcd 3.5.1 says RESOURCE_EXHAUSTED; the gRPC specification, and newer ones, this."""
    if target_name() == "etcd":
        pytest.skip("an older rule in etcd 3.5.1")
    assert _refusal(pair.right, "/nonsense")[0] is grpc.StatusCode.UNIMPLEMENTED
