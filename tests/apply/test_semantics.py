"""Random KV calls: the apply process and the model answer alike, field by field."""

import random

import pytest

from etcdfast.api.pb import raft_internal_pb2, rpc_pb2
from tests.apply.calls import Calls
from tests.apply.model import Model, Refused, sort_key
from tests.apply.rig import FIELD, Rig, answer_of

R = rpc_pb2.RangeRequest
METHODS = {"Put": "put", "DeleteRange": "delete_range", "Txn": "txn", "Compact": "compact", "Range": "range"}


def normal(request, response):
    """Sorts are not stable: equal elements are put in key order before comparing.

    With a limit the cut may fall among equals; then what is cut is left to each side, as in etcd, and
    only the values sorted by are compared.
    """
    if isinstance(response, rpc_pb2.RangeResponse):
        if request.sort_target != R.KEY:
            by = sort_key(request.sort_target)
            if request.limit > 0 and request.sort_target != R.MOD:
                kvs = [by(kv) for kv in response.kvs] if not request.keys_only else [len(response.kvs)]
                return response.count, response.more, response.header.revision, kvs
            if not (request.keys_only and request.sort_target == R.VALUE):
                kvs = sorted(response.kvs, key=lambda kv: (by(kv), kv.key), reverse=request.sort_order == R.DESCEND)
                assert [by(kv) for kv in kvs] == [by(kv) for kv in response.kvs], "not sorted"
            else:
                kvs = sorted(response.kvs, key=lambda kv: kv.key)
            return response.count, response.more, response.header.revision, [kv.SerializeToString() for kv in kvs]
    if isinstance(response, rpc_pb2.TxnResponse):
        ops = request.success if response.succeeded else request.failure
        parts = []
        for op, answer in zip(ops, response.responses, strict=True):
            inner = getattr(op, op.WhichOneof("request"))
            parts.append(normal(inner, getattr(answer, answer.WhichOneof("response"))))
        return response.header.SerializeToString(), response.succeeded, parts
    return response.SerializeToString(deterministic=True)


def check(model, request, method, answer):
    try:
        expected = getattr(model, METHODS[method])(request)
    except Refused as refused:
        assert answer.status == str(refused)
        return
    assert answer.status == "", answer
    assert normal(request, answer.message) == normal(request, expected)


def read_only(request):
    return all(op.WhichOneof("request") == "request_range" for op in (*request.success, *request.failure))


@pytest.mark.parametrize("seed", range(6))
def test_random_calls_match_the_model(tmp_path, seed):
    """Calls go in groups of one turn, so turn boundaries fall everywhere; now and then all is reopened."""
    rng = random.Random(seed)
    rig, model = Rig(tmp_path / "store"), Model()
    calls = Calls(rng, model)
    count = 0
    while count < 1200:
        expected = []
        for _ in range(rng.choice((1, 1, 2, 5, 30))):
            method, request = calls.next()
            if method == "Compact" and expected:
                break
            via_log = method in FIELD and not (method == "Txn" and read_only(request))
            if not via_log and expected and expected[-1][3]:
                # Reads see all of their turn; the model can answer them only after the writes before them.
                break
            stream = rig.propose(method, request) if via_log else rig.read(method, request)
            expected.append((stream, method, request, via_log))
            if via_log:
                # The next request should know the revisions there will be.
                expected[-1] += (run_model(model, method, request),)
            else:
                expected[-1] += (None,)
        answers = rig.settle()
        for stream, method, request, via_log, outcome in expected:
            answer = answer_of(method, answers[stream])
            if not via_log:
                check(model, request, method, answer)
            elif isinstance(outcome, Refused):
                assert answer.status == str(outcome), (seed, count, method, request)
            else:
                assert answer.status == "", (seed, count, method, request, answer)
                assert normal(request, answer.message) == normal(request, outcome), (seed, count, method, request)
            count += 1
        if rng.random() < 0.01:
            rig.close()
            rig = Rig(tmp_path / "store")
    state = model.states[model.current]
    answer = rig.range(b"\0", b"\0")
    assert [kv.SerializeToString() for kv in answer.message.kvs] == [
        state[key].SerializeToString() for key in sorted(state)
    ]
    rig.close()


def run_model(model, method, request):
    try:
        return getattr(model, METHODS[method])(request)
    except Refused as refused:
        return refused


@pytest.mark.parametrize("nested", [False, True])
def test_a_put_that_its_own_transaction_took_the_key_from(tmp_path, nested):
    """etcd dies of this transaction; here it is refused before anything is written."""
    rig = Rig(tmp_path / "store")
    rig.put(b"p", b"v")
    txn = rpc_pb2.TxnRequest()
    branch = txn.success.add().request_txn.success if nested else txn.success
    branch.add().request_put.CopyFrom(rpc_pb2.PutRequest(key=b"other", value=b"v"))
    branch.add().request_delete_range.CopyFrom(rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\0"))
    txn.success.add().request_put.CopyFrom(rpc_pb2.PutRequest(key=b"p", ignore_value=True))
    assert rig.call("Txn", txn).status == "KEY_NOT_FOUND"
    assert [kv.key for kv in rig.range(b"\0", b"\0").message.kvs] == [b"p"]
    assert rig.put(b"q").message.header.revision == 3
    rig.close()


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"sort_order": rpc_pb2.RangeRequest.DESCEND},
        {"sort_target": rpc_pb2.RangeRequest.MOD, "sort_order": rpc_pb2.RangeRequest.DESCEND},
        {"sort_target": rpc_pb2.RangeRequest.VALUE, "sort_order": rpc_pb2.RangeRequest.ASCEND},
        {"min_mod_revision": 2},
    ],
    ids=["by key", "falling", "by revision", "by value", "filtered"],
)
@pytest.mark.parametrize("reopened", [False, True])
def test_keys_only_leaves_out_the_value_alone(tmp_path, order, reopened):
    """The lease stays, in short answers and in those whose size is told before they are made."""
    rig = Rig(tmp_path / "store")
    granted = raft_internal_pb2.InternalRaftRequest(header={"ID": 1}, lease_grant={"ID": 0x1234567, "TTL": 1000})
    rig.entry(granted.SerializeToString())
    txn = rpc_pb2.TxnRequest()
    for number in range(2500):
        lease = 0x1234567 if number % 3 == 0 else 0
        txn.success.add().request_put.CopyFrom(rpc_pb2.PutRequest(key=b"key%027d" % number, value=b"v", lease=lease))
    rig.call("Txn", txn)
    if reopened:
        rig.close()
        rig = Rig(tmp_path / "store")
    for limit in (0, 7):
        whole = rig.range(b"\0", b"\0", limit=limit, **order).message
        keys = rig.range(b"\0", b"\0", limit=limit, keys_only=True, **order).message
        assert len(keys.kvs) == (limit or 2500) and any(kv.lease for kv in keys.kvs)
        for kv in whole.kvs:
            kv.value = b""
        assert list(keys.kvs) == list(whole.kvs)
    rig.close()
