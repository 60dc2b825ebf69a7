"""Request checks on wire bytes against a plain model of etcd's rules that works on protobuf messages."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcdfast._ext.requests import check
from etcdfast.api.errors import ID
from etcdfast.api.pb import rpc_pb2 as pb
from etcdfast.api.pb import v3election_pb2 as election
from etcdfast.api.pb import v3lock_pb2 as lock
from etcdfast.api.rpcs import RPCS

RPC = {rpc.method: rpc.id for rpc in RPCS if not rpc.service.startswith("grpc.")}
OPS_MAX = 4  # small, so that budgets run out


# ---- the model


class Refused(Exception):
    pass


def check_range(r):
    if not r.key:
        raise Refused("EMPTY_KEY")
    if r.sort_order not in (0, 1, 2) or r.sort_target not in (0, 1, 2, 3, 4):
        raise Refused("INVALID_SORT_OPTION")


def check_put(p):
    if not p.key:
        raise Refused("EMPTY_KEY")
    if p.ignore_value and p.value:
        raise Refused("VALUE_PROVIDED")
    if p.ignore_lease and p.lease:
        raise Refused("LEASE_PROVIDED")


def check_delete(d):
    if not d.key:
        raise Refused("EMPTY_KEY")


def check_txn(t, budget):
    most = max(len(t.compare), len(t.success), len(t.failure))
    if most > budget:
        raise Refused("TOO_MANY_OPS")
    if any(not c.key for c in t.compare):
        raise Refused("EMPTY_KEY")
    for op in [*t.success, *t.failure]:
        kind = op.WhichOneof("request")
        if kind is None:
            raise Refused("KEY_NOT_FOUND")
        body = getattr(op, kind)
        if kind == "request_txn":
            check_txn(body, budget - most)
        else:
            {"request_range": check_range, "request_put": check_put, "request_delete_range": check_delete}[kind](body)


def covers(delete, key):
    if not delete.range_end:
        return key == delete.key
    return delete.key <= key < delete.range_end


def check_overlaps(ops):
    """Keys put and deletes made by a list, as sets; etcd's order and its blind spots included."""

    def of(kind):
        return [getattr(op, kind) for op in ops if op.WhichOneof("request") == kind]

    deletes, puts = list(of("request_delete_range")), set()

    def add(key):
        if key in puts or any(covers(d, key) for d in deletes):
            raise Refused("DUPLICATE_KEY")
        puts.add(key)

    for txn in of("request_txn"):
        then_puts, then_deletes = check_overlaps(txn.success)
        else_puts, else_deletes = check_overlaps(txn.failure)
        for key in then_puts:
            add(key)
        for key in else_puts - then_puts:
            add(key)
        for key in else_puts & then_puts:
            if any(covers(d, key) for d in deletes):
                raise Refused("DUPLICATE_KEY")
        deletes += then_deletes + else_deletes
    for put in of("request_put"):
        add(put.key)
    return puts, deletes


def cost(message):
    if isinstance(message, pb.PutRequest):
        return 256 + len(message.key) + len(message.value)
    if isinstance(message, pb.TxnRequest):
        return max(sum(cost_of_op(op) for op in ops) for ops in (message.success, message.failure))
    return 0


def cost_of_op(op):
    kind = op.WhichOneof("request")
    return cost(getattr(op, kind)) if kind else 0


def model(message, budget=OPS_MAX):
    """Symbol of the error, or None."""
    try:
        if isinstance(message, pb.TxnRequest):
            check_txn(message, budget)
            check_overlaps(message.success)
            check_overlaps(message.failure)
        else:
            {pb.RangeRequest: check_range, pb.PutRequest: check_put, pb.DeleteRangeRequest: check_delete}[
                type(message)
            ](message)
    except Refused as refused:
        return str(refused)
    return None


def read_only(txn):
    return all(op.WhichOneof("request") == "request_range" for op in [*txn.success, *txn.failure])


def serializable(txn):
    return read_only(txn) and all(op.request_range.serializable for op in [*txn.success, *txn.failure])


# ---- generated requests: few keys, so that they meet

keys = st.sampled_from([b"", b"a", b"b", b"b\0", b"c", b"d"])
some_keys = st.sampled_from([b"a", b"b", b"b\0", b"c", b"d"])
ends = st.sampled_from([b"", b"", b"\0", b"a", b"b", b"c", b"e"])


def ranges(key=keys):
    return st.builds(
        pb.RangeRequest,
        key=key,
        range_end=ends,
        serializable=st.booleans(),
        limit=st.integers(-5, 5),
        sort_order=st.integers(-1, 4),
        sort_target=st.integers(-1, 6),
        min_mod_revision=st.sampled_from([0, 0, 3]),
        max_create_revision=st.sampled_from([0, 0, -1]),
    )


def puts(key=keys):
    return st.builds(
        pb.PutRequest,
        key=key,
        value=st.sampled_from([b"", b"v", b"w" * 200]),
        lease=st.sampled_from([0, 0, 7, -7]),
        ignore_value=st.booleans(),
        ignore_lease=st.booleans(),
        prev_kv=st.booleans(),
    )


deletes = st.builds(pb.DeleteRangeRequest, key=keys, range_end=ends)
good_ops = st.one_of(
    st.builds(lambda k: pb.RequestOp(request_put=pb.PutRequest(key=k, value=b"v")), some_keys),
    st.builds(
        lambda k, e: pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=k, range_end=e)), some_keys, ends
    ),
    st.builds(lambda s: pb.RequestOp(request_range=pb.RangeRequest(key=b"a", serializable=s)), st.booleans()),
)
any_ops = st.one_of(
    good_ops,
    st.builds(lambda r: pb.RequestOp(request_range=r), ranges()),
    st.builds(lambda p: pb.RequestOp(request_put=p), puts()),
    st.builds(lambda d: pb.RequestOp(request_delete_range=d), deletes),
    st.just(pb.RequestOp()),
)
compares = st.lists(st.builds(pb.Compare, key=st.sampled_from([b"a", b"a", b"a", b""])), max_size=2)


def txns(ops, size):
    flat = st.builds(
        pb.TxnRequest, compare=compares, success=st.lists(ops, max_size=size), failure=st.lists(ops, max_size=size)
    )
    return st.recursive(
        flat,
        lambda inner: st.builds(
            pb.TxnRequest,
            success=st.lists(st.one_of(ops, inner.map(lambda t: pb.RequestOp(request_txn=t))), max_size=size),
            failure=st.lists(st.one_of(ops, inner.map(lambda t: pb.RequestOp(request_txn=t))), max_size=size),
        ),
        max_leaves=6,
    )


def verdict(method, message, budget=OPS_MAX):
    return check(RPC[method], message.SerializeToString(), budget)


def assert_like_model(method, message, budget=OPS_MAX):
    symbol = model(message, budget)
    got = verdict(method, message, budget)
    assert not got.malformed
    assert got.error == (ID[symbol] if symbol else 0)
    assert got.cost == cost(message)


@given(ranges())
def test_range_is_judged_as_etcd_does(request):
    assert_like_model("Range", request)
    assert verdict("Range", request).serializable == request.serializable


@given(puts())
def test_put_is_judged_as_etcd_does(request):
    assert_like_model("Put", request)


@given(deletes)
def test_delete_range_is_judged_as_etcd_does(request):
    assert_like_model("DeleteRange", request)


@settings(max_examples=400)
@given(txns(any_ops, 3))
def test_txn_with_any_operation_is_judged_as_etcd_does(request):
    assert_like_model("Txn", request)
    got = verdict("Txn", request)
    assert (got.read_only, got.serializable) == (read_only(request), serializable(request))


@settings(max_examples=600)
@given(txns(good_ops, 4))
def test_the_duplicate_key_rule_is_etcds(request):
    assert_like_model("Txn", request, budget=64)


@given(ranges(some_keys))
def test_range_stream_refuses_order_and_filters_after_the_common_checks(request):
    got = verdict("RangeStream", request)
    symbol = model(request)
    if symbol is None and request.sort_order and (request.sort_order, request.sort_target) != (1, 0):
        symbol = "RANGE_STREAM_SORT"
    if symbol is None and (request.min_mod_revision or request.max_create_revision):
        symbol = "RANGE_STREAM_FILTER"
    assert got.error == (ID[symbol] if symbol else 0)


@given(txns(any_ops, 3), st.data())
def test_a_cut_message_is_never_read_past_its_end(request, data):
    whole = request.SerializeToString()
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        parsed = pb.TxnRequest.FromString(cut)
    except Exception:
        assert check(RPC["Txn"], cut, OPS_MAX).malformed
    else:
        symbol = model(parsed)
        assert check(RPC["Txn"], cut, OPS_MAX).error == (ID[symbol] if symbol else 0)


@given(st.binary(max_size=60), st.sampled_from(sorted(set(RPC.values()))))
def test_random_bytes_get_a_verdict(message, method):
    got = check(method, message, OPS_MAX)
    assert not (got.malformed and got.error)


def nested(depth, leaf):
    message = leaf
    for _ in range(depth):
        message = pb.TxnRequest(success=[pb.RequestOp(request_txn=message)])
    return message


@pytest.mark.parametrize(("depth", "refused"), [(0, False), (127, False), (128, True), (200, True)])
def test_nesting_spends_the_budget(depth, refused):
    # protobuf's own parser stops at 100 levels, so the bytes are made by hand
    body = pb.TxnRequest(success=[pb.RequestOp(request_range=pb.RangeRequest(key=b"k"))]).SerializeToString()
    for _ in range(depth):
        for tag in (b"\x22", b"\x12"):  # RequestOp.request_txn, TxnRequest.success
            size, head = len(body), b""
            while size >= 128:
                head += bytes([size & 127 | 128])
                size >>= 7
            body = tag + head + bytes([size]) + body
    assert check(RPC["Txn"], body, 128).error == (ID["TOO_MANY_OPS"] if refused else 0)


def test_a_message_full_of_operations_is_judged_without_quadratic_work():
    # 2 x 60 thousand operations that all have to be compared; quadratic work would take minutes
    operations = [pb.RequestOp(request_put=pb.PutRequest(key=b"%06d" % i)) for i in range(60_000)] + [
        pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"x%05d" % i, range_end=b"y"))
        for i in range(60_000)
    ]
    message = pb.TxnRequest(success=operations, failure=operations).SerializeToString()
    assert check(RPC["Txn"], message, 1 << 30).error == 0


def test_a_deep_tree_of_branches_is_judged_without_exponential_work():
    leaf = pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(key=b"k"))])
    message = leaf
    for _ in range(14):
        message = pb.TxnRequest(
            success=[pb.RequestOp(request_txn=message)], failure=[pb.RequestOp(request_txn=message)]
        )
    assert verdict("Txn", message, 128).error == 0
    message.success.append(pb.RequestOp(request_put=pb.PutRequest(key=b"k")))
    assert verdict("Txn", message, 128).error == ID["DUPLICATE_KEY"]


def test_compaction_and_member_list_facts():
    assert verdict("Compact", pb.CompactionRequest(revision=3, physical=True)).physical
    assert not verdict("Compact", pb.CompactionRequest(revision=3)).physical
    assert not verdict("MemberList", pb.MemberListRequest(linearizable=True)).serializable
    assert verdict("MemberList", pb.MemberListRequest()).serializable


# ---- watches, leases, locks, elections: what is let through, apply must be able to decode

numbers = st.sampled_from([0, 1, 127, 128, 1 << 35, (1 << 63) - 1, -1])
blobs = st.sampled_from([b"", b"k", b"\0", b"\xff" * 200])
watch_requests = st.one_of(
    st.builds(
        lambda **fields: pb.WatchRequest(create_request=pb.WatchCreateRequest(**fields)),
        key=blobs,
        range_end=blobs,
        start_revision=numbers,
        filters=st.lists(st.sampled_from([0, 1, 1 << 30, -1]), max_size=3),
        prev_kv=st.booleans(),
        watch_id=numbers,
    ),
    st.builds(lambda n: pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=n)), numbers),
    st.just(pb.WatchRequest(progress_request=pb.WatchProgressRequest())),
    st.just(pb.WatchRequest()),
)
leaders = st.builds(election.LeaderKey, name=blobs, key=blobs, rev=numbers, lease=numbers)
COORDINATION = {
    "Watch": watch_requests,
    "LeaseGrant": st.builds(pb.LeaseGrantRequest, TTL=numbers, ID=numbers),
    "LeaseRevoke": st.builds(pb.LeaseRevokeRequest, ID=numbers),
    "LeaseKeepAlive": st.builds(pb.LeaseKeepAliveRequest, ID=numbers),
    "LeaseTimeToLive": st.builds(pb.LeaseTimeToLiveRequest, ID=numbers, keys=st.booleans()),
    "LeaseLeases": st.just(pb.LeaseLeasesRequest()),
    "Lock": st.builds(lock.LockRequest, name=blobs, lease=numbers),
    "Unlock": st.builds(lock.UnlockRequest, key=blobs),
    "Campaign": st.builds(election.CampaignRequest, name=blobs, lease=numbers, value=blobs),
    "Proclaim": st.builds(election.ProclaimRequest, leader=leaders, value=blobs),
    "Leader": st.builds(election.LeaderRequest, name=blobs),
    "Observe": st.builds(election.LeaderRequest, name=blobs),
    "Resign": st.builds(election.ResignRequest, leader=leaders),
}


def parses(kind, data):
    try:
        return kind.FromString(data)
    except Exception:
        return None


@pytest.mark.parametrize("method", COORDINATION)
@given(data=st.data())
def test_requests_of_coordination_are_let_through_when_they_decode(method, data):
    message = data.draw(COORDINATION[method])
    whole = message.SerializeToString()
    got = check(RPC[method], whole)
    assert not got.malformed and got.error == 0
    assert got.cost == (64 if method == "LeaseGrant" else 0)
    assert got.new_id == (method == "LeaseGrant" and message.ID == 0)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    assert check(RPC[method], cut).malformed == (parses(type(message), cut) is None)
    at = data.draw(st.integers(0, len(whole)))
    changed = whole[:at] + data.draw(st.binary(max_size=3)) + whole[at + data.draw(st.integers(0, 2)) :]
    verdict = check(RPC[method], changed)
    if not verdict.malformed:
        decoded = parses(type(message), changed)
        assert decoded is not None, changed
        if method == "LeaseGrant":
            assert verdict.new_id == (decoded.ID == 0)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("Watch", b"\x0a\x03\x2a\x01\x80"),  # packed filters that end within a number
        ("Watch", b"\x0a\x02\x0a\x05"),
        ("Watch", b"\x12\x01\x08"),
        ("Watch", b"\x1a\x01\x08"),
        ("Proclaim", b"\x0a\x02\x0a\x05"),
        ("Resign", b"\x0a\x01\x18"),
        ("LeaseGrant", b"\x10"),
        ("Lock", b"\x0a\x05n"),
    ],
)
def test_what_is_malformed_inside_is_refused(method, message):
    assert check(RPC[method], message).malformed


def test_a_name_that_no_snapshot_could_hold_is_refused():
    """It would be a key of bbolt, which takes 32 KiB; etcd ends itself for it."""
    for method, request in (("UserAdd", pb.AuthUserAddRequest), ("RoleAdd", pb.AuthRoleAddRequest)):
        assert check(RPC[method], request(name="x" * 32768).SerializeToString()).error == 0
        verdict = check(RPC[method], request(name="x" * 32769).SerializeToString())
        assert verdict.error == ID["REQUEST_TOO_LARGE"] and not verdict.malformed
