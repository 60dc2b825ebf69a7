"""What leases do, rule by rule, on a clock that the test moves. Random histories: test_lease_model.py."""

import pytest

from etcdfast._ext.mvcc import StoreCorrupt
from etcdfast.api.pb import lease_pb2, rpc_pb2
from tests.apply.leaserig import GRACE_NS, NOT_PRIMARY, SECOND, SLICED, WAITS, LeaseRig

NEVER = 2**63 - 1
TTL_MAX = 9_000_000_000


@pytest.fixture
def rig(tmp_path):
    rig = LeaseRig(tmp_path / "store")
    rig.ops.lead(rig.now)
    yield rig
    rig.close()


# ---- grant ----


def test_grant_answers_with_id_and_ttl(rig):
    answer = rig.grant(7, 60)
    assert (answer.ID, answer.TTL, answer.header.revision) == (7, 60, 1)
    assert rig.ops.granted == rig.table.count == 1


@pytest.mark.parametrize(("asked", "given"), [(0, 2), (-5, 2), (1, 2), (2, 2), (3, 3), (TTL_MAX, TTL_MAX)])
def test_a_ttl_is_raised_to_the_minimum(rig, asked, given):
    assert rig.grant(7, asked).TTL == given
    assert rig.time_to_live(7).grantedTTL == given
    # Far beyond what a clock can count to, it still does not end.
    rig.advance(given - 0.001)
    assert rig.expire() == []


@pytest.mark.parametrize(
    ("lease", "ttl", "error"),
    [(7, TTL_MAX + 1, "LEASE_TTL_TOO_LARGE"), (8, 60, "LEASE_EXIST"), (0, 60, "LEASE_NOT_FOUND")],
)
def test_grants_that_are_refused_change_nothing(rig, lease, ttl, error):
    rig.grant(8, 10)
    before = rig.stored()
    assert rig.grant(lease, ttl) == error
    assert rig.stored() == before and rig.table.count == 1


def test_any_id_but_zero(rig):
    ids = [1, -1, 2**63 - 1, -(2**63), 0x7FFF]
    for lease in ids:
        assert rig.grant(lease, 9).ID == lease
    assert sorted(rig.listed()) == sorted(ids)
    # Bucket lease is in the order of unsigned big-endian ids, as bbolt sorts keys.
    assert [key for key, _ in rig.stored()] == sorted(b"l" + (lease % 2**64).to_bytes(8, "big") for lease in ids)


# ---- keys ----


def test_a_key_hangs_on_one_lease(rig):
    rig.grant(1, 60)
    rig.grant(2, 60)
    rig.put(b"a", 1)
    rig.put(b"b", 1)
    assert rig.keys(1) == [b"a", b"b"] and rig.table.attached == 2
    rig.put(b"a", 2)
    assert rig.keys(1) == [b"b"] and rig.keys(2) == [b"a"] and rig.table.attached == 2
    rig.put(b"a", 2)
    assert rig.keys(2) == [b"a"] and rig.table.attached == 2
    rig.put(b"a")
    assert rig.keys(2) == [] and rig.table.attached == 1
    rig.delete(b"b")
    assert rig.keys(1) == [] and rig.table.attached == 0


def test_an_ignoring_put_keeps_the_lease(rig):
    rig.grant(1, 60)
    rig.put(b"a", 1, value=b"x")
    rig.put(b"a", ignore_lease=True, value=b"y")
    assert rig.keys(1) == [b"a"]
    rig.put(b"a", ignore_value=True)
    assert rig.keys(1) == []
    rig.put(b"a", ignore_lease=True, value=b"z")
    assert rig.keys(1) == []


def test_a_put_needs_its_lease(rig):
    rig.grant(1, 60)
    assert rig.put(b"a", 9) == "LEASE_NOT_FOUND"
    put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"a", lease=1))
    bad = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"b", lease=9))
    assert rig.apply(rpc_pb2.TxnRequest(success=[put, bad])) == "LEASE_NOT_FOUND"
    assert rig.table.attached == 0 and rig.mvcc.current == 1
    # Only what the branch taken holds is looked at.
    assert rig.apply(rpc_pb2.TxnRequest(success=[put], failure=[bad])).succeeded
    assert rig.keys(1) == [b"a"]


def test_a_transaction_attaches_and_detaches(rig):
    rig.grant(1, 60)
    rig.grant(2, 60)
    rig.put(b"a", 1)
    rig.put(b"b", 1)
    rig.put(b"c", 1)
    op = rpc_pb2.RequestOp
    rig.apply(
        rpc_pb2.TxnRequest(
            success=[
                op(request_put=rpc_pb2.PutRequest(key=b"a", lease=2)),
                op(request_delete_range=rpc_pb2.DeleteRangeRequest(key=b"b", range_end=b"c")),
                op(request_txn=rpc_pb2.TxnRequest(success=[op(request_put=rpc_pb2.PutRequest(key=b"d", lease=1))])),
            ]
        )
    )
    assert rig.keys(1) == [b"c", b"d"] and rig.keys(2) == [b"a"]


def test_keys_of_any_bytes(rig):
    rig.grant(1, 60)
    keys = [bytes([i]) * n for i in (0, 97, 255) for n in (1, 7, 8, 9, 16, 1000)]
    for key in keys:
        rig.put(key, 1)
    assert rig.keys(1) == sorted(keys)
    rig.revoke(1)
    assert all(rig.mvcc.get(key) is None for key in keys)


# ---- revoke ----


def test_revoke_deletes_keys_in_order_in_one_revision(rig):
    rig.grant(1, 60)
    for key in (b"c", b"a", b"d", b"b"):
        rig.put(key, 1)
    rig.put(b"d")
    before = rig.mvcc.current
    answer = rig.revoke(1)
    assert answer.header.revision == rig.mvcc.current == before + 1
    rig.write()
    tombstones = [(key, value) for key, value in rig.store.records()[0] if len(key) == 19 and key[-1:] == b"t"]
    assert [key[1:9] for key, _ in tombstones] == [(before + 1).to_bytes(8, "big")] * 3
    assert [value[2:] for _, value in tombstones] == [b"a", b"b", b"c"]
    assert rig.mvcc.get(b"d") is not None
    assert rig.stored() == [] and rig.table.attached == 0


def test_revoke_without_keys_makes_no_revision(rig):
    rig.grant(1, 60)
    assert rig.revoke(1).header.revision == 1
    assert rig.revoke(1) == "LEASE_NOT_FOUND"
    assert rig.ops.revoked == 1 and rig.ops.expired == 0


def test_a_large_revoke_goes_in_slices_that_nobody_sees(rig):
    rig.grant(1, 60)
    rig.put(b"free", 0, value=b"x")
    keys = [b"k%06d" % (i * 7919 % 5000) for i in range(5000)]
    for key in keys:
        rig.put(key, 1)
    current = rig.mvcc.current
    status, _ = rig.start(rpc_pb2.LeaseRevokeRequest(ID=1))
    assert status == SLICED
    slices = 0
    exists = rpc_pb2.Compare(key=keys[0], target=rpc_pb2.Compare.CREATE, result=rpc_pb2.Compare.GREATER)
    count = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=b"k", range_end=b"l", count_only=True))
    first = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=min(keys)))
    while True:
        read = rpc_pb2.TxnRequest(compare=[exists], success=[count, first]).SerializeToString()
        status, answer = rig.ops.call("txn", read, rig.now)
        answer = rpc_pb2.TxnResponse.FromString(answer)
        assert answer.succeeded and answer.header.revision == current == rig.mvcc.current
        assert [op.response_range.count for op in answer.responses] == [5000, 1]
        assert rig.keep_alive(1) == WAITS
        status, answer = rig.ops.step(1000)
        slices += 1
        if status == 0:
            break
    assert slices >= 5
    assert rpc_pb2.LeaseRevokeResponse.FromString(answer).header.revision == rig.mvcc.current == current + 1
    assert rig.ops.take_settled() == [1] and rig.keep_alive(1) == 0
    rig.write()
    tombstones = [value[2:] for key, value in rig.store.records()[0] if len(key) == 19 and key[-1:] == b"t"]
    assert tombstones == sorted(keys)
    assert rig.mvcc.get(b"free") is not None


def test_alarms(rig):
    rig.grant(1, 60)
    rig.put(b"a", 1)
    rig.kv.alarms = 1
    assert rig.grant(2, 60) == "NO_SPACE"
    assert rig.revoke(1).header.revision == 3
    rig.kv.alarms = 3
    assert rig.grant(2, 60) == "CORRUPT" and rig.revoke(1) == "CORRUPT"
    rig.kv.alarms = 0
    assert rig.revoke(1) == "LEASE_NOT_FOUND"


# ---- time ----


def test_never_before_its_ttl_and_soon_after(rig):
    rig.grant(1, 10)
    due = rig.now + 10 * SECOND + GRACE_NS
    assert rig.ops.next_due == due
    rig.now = due - 1
    assert rig.expire() == []
    assert rig.time_to_live(1).TTL == 0
    rig.now = due
    assert rig.expire() == [1]
    assert rig.ops.expired == 1 and rig.ops.next_due == NEVER


def test_time_to_live_counts_down_whole_seconds(rig):
    rig.grant(1, 10)
    left = []
    for _ in range(11):
        left.append(rig.time_to_live(1).TTL)
        rig.advance(1)
    assert left == list(range(10, -1, -1))


def test_time_to_live_of_an_unknown_lease(rig):
    answer = rig.time_to_live(99)
    assert (answer.ID, answer.TTL, answer.grantedTTL, list(answer.keys)) == (99, -1, 0, [])
    assert rig.keep_alive(99) == 0


def test_leases_expire_and_are_listed_in_order_of_expiry(rig):
    ttls = {lease: 3 + lease * 7919 % 287 for lease in range(1, 288)}
    for lease, ttl in ttls.items():
        rig.grant(lease, ttl)
    by_expiry = sorted(ttls, key=lambda lease: (ttls[lease], lease))
    assert rig.listed() == by_expiry
    gone = []
    while rig.table.count:
        rig.now = max(rig.now, rig.ops.next_due)
        gone += rig.expire()
    assert gone == by_expiry


def test_a_renewal_moves_the_end(rig):
    rig.grant(1, 10)
    rig.grant(2, 10)
    rig.advance(9)
    assert rig.keep_alive(1) == 10
    rig.advance(2)
    assert rig.expire() == [2]
    assert rig.listed() == [1]
    rig.advance(7.9)
    assert rig.expire() == []
    rig.advance(0.4)
    assert rig.expire() == [1]
    assert rig.ops.renewed == 1


def test_a_stopped_process_ends_what_ran_out_but_not_what_was_renewed(rig):
    """The clock jumps as after SIGSTOP: what is past its time and not yet offered can still be renewed."""
    for lease in range(1, 5):
        rig.grant(lease, 5)
    rig.advance(1000)
    assert rig.keep_alive(3) == 5
    assert sorted(rig.expire()) == [1, 2, 4]
    assert rig.listed() == [3]
    rig.advance(1000)
    assert rig.expire() == [3]


def test_a_keep_alive_waits_for_a_revoke_under_way(rig):
    rig.grant(1, 5)
    rig.put(b"a", 1)
    rig.advance(6)
    assert rig.ops.take_due(rig.now) == [1]
    assert rig.keep_alive(1) == WAITS and rig.keep_alive(1) == WAITS
    assert rig.ops.take_settled() == []
    rig.revoke(1)
    assert rig.ops.take_settled() == [1] and rig.ops.take_settled() == []
    assert rig.keep_alive(1) == 0


def test_a_revoke_that_came_to_nothing_is_offered_again(rig):
    for lease in range(1, 6):
        rig.grant(lease, 5)
    rig.advance(6)
    assert sorted(rig.ops.take_due(rig.now)) == [1, 2, 3, 4, 5]
    assert rig.ops.take_due(rig.now) == [] and rig.ops.offered == 5
    assert rig.ops.next_due == rig.now + 3 * SECOND
    rig.revoke(2)
    assert rig.ops.offered == 4
    rig.advance(2.9)
    assert rig.ops.take_due(rig.now) == []
    rig.advance(0.1)
    assert sorted(rig.ops.take_due(rig.now, 3) + rig.ops.take_due(rig.now)) == [1, 3, 4, 5]
    assert rig.ops.take_due(rig.now) == []
    for lease in (1, 3, 4, 5):
        rig.revoke(lease)
    assert rig.ops.expired == 5 and rig.ops.offered == 0 and rig.ops.next_due == NEVER


def test_no_more_than_so_many_are_offered_at_a_time(rig):
    for lease in range(1, 5001):
        rig.grant(lease, 5)
    rig.advance(6)
    offered = []
    while ids := rig.ops.take_due(rig.now, 256):
        offered += ids
    assert len(offered) == rig.ops.offered == 2048
    # Lost proposals do not block the rest for good: they come again, and as they go others follow.
    rig.advance(3)
    assert sorted(rig.ops.take_due(rig.now)) == sorted(offered)
    for lease in offered:
        rig.revoke(lease)
    assert len(rig.expire()) == 5000 - 2048 and rig.table.count == 0


def test_many_renewed_leases_are_put_right_in_steps(rig):
    """All come to their old time together: one call looks at a bounded number, and none is offered."""
    for lease in range(1, 10_001):
        rig.grant(lease, 10)
    rig.advance(5)
    for lease in range(1, 10_001):
        assert rig.keep_alive(lease) == 10
    rig.advance(6)
    calls = 0
    while rig.ops.next_due <= rig.now:
        assert rig.ops.take_due(rig.now) == []
        calls += 1
    assert calls == 3


# ---- leading ----


def test_only_a_leader_counts(rig):
    rig.grant(1, 5)
    rig.ops.follow()
    rig.grant(2, 5)
    rig.advance(10_000)
    assert rig.ops.next_due == NEVER and rig.expire() == []
    assert rig.keep_alive(1) == NOT_PRIMARY and rig.keep_alive(77) == NOT_PRIMARY
    assert rig.time_to_live(1) == NOT_PRIMARY
    assert sorted(rig.listed()) == [1, 2]


def test_a_new_leader_gives_the_whole_time_and_an_election(rig):
    rig.grant(1, 5)
    rig.advance(4)
    rig.ops.follow()
    rig.grant(2, 20)
    rig.ops.lead(rig.now)
    assert rig.ops.next_due == rig.now + 6 * SECOND + GRACE_NS
    assert rig.time_to_live(1).TTL == 6 and rig.time_to_live(2).TTL == 21
    assert rig.time_to_live(1).grantedTTL == 5
    rig.advance(7)
    assert rig.expire() == [1]


def test_who_waits_is_told_when_the_leader_changes(rig):
    rig.grant(1, 5)
    rig.advance(6)
    assert rig.ops.take_due(rig.now) == [1] and rig.keep_alive(1) == WAITS
    rig.ops.follow()
    assert rig.ops.take_settled() == [1] and rig.ops.offered == 0
    assert rig.keep_alive(1) == NOT_PRIMARY
    rig.ops.lead(rig.now)
    assert rig.keep_alive(1) == 5
    # Leading once more without having followed: proposals of the term before may be lost.
    rig.advance(6)
    assert rig.ops.take_due(rig.now) == [1] and rig.keep_alive(1) == WAITS
    rig.ops.lead(rig.now)
    assert rig.ops.take_settled() == [1] and rig.keep_alive(1) == 5


# ---- checkpoints ----


def taken(rig):
    """What is due to be checkpointed now, applied: id -> remaining."""
    found = {}
    while request := rig.ops.take_checkpoints(rig.now):
        request = rpc_pb2.LeaseCheckpointRequest.FromString(request)
        assert 0 < len(request.checkpoints) <= 256
        found |= {lease.ID: lease.remaining_TTL for lease in request.checkpoints}
        rig.apply(request)
    return found


def test_long_leases_are_checkpointed_every_five_minutes(rig):
    rig.grant(1, 1000)
    rig.grant(2, 300)
    assert rig.ops.take_checkpoints(rig.now + 299 * SECOND) is None
    rig.advance(300)
    rig.keep_alive(2)
    assert taken(rig) == {1: 700}
    assert rig.stored()[0][1] == lease_pb2.Lease(ID=1, TTL=1000, RemainingTTL=700).SerializeToString()
    rig.advance(299)
    assert taken(rig) == {}
    rig.advance(1.5)
    assert taken(rig) == {1: 400}  # 399.5 s, rounded up: never less than what it has
    rig.advance(300)
    assert taken(rig) == {1: 100}
    # Less than the interval is left: nothing more to write down.
    assert rig.ops.take_checkpoints(rig.now + 10**5 * SECOND) is None


def test_a_checkpoint_is_what_the_next_leader_gives(rig):
    rig.grant(1, 1000)
    rig.checkpoint(_1=400, _5=3)
    rig.restart()
    rig.ops.lead(rig.now)
    answer = rig.time_to_live(1)
    assert (answer.TTL, answer.grantedTTL) == (401, 1000)
    rig.advance(401.25)
    assert rig.expire() == [1]


def test_a_renewal_of_a_checkpointed_lease_takes_the_checkpoint_back_first(rig):
    rig.grant(1, 1000)
    rig.advance(300)
    assert taken(rig) == {1: 700}
    rig.advance(100)
    assert rig.keep_alive(1) == WAITS
    assert rig.ops.next_due <= rig.now
    request = rig.ops.take_checkpoints(rig.now)
    assert request == rpc_pb2.LeaseCheckpointRequest(checkpoints=[{"ID": 1}]).SerializeToString()
    assert rig.ops.take_checkpoints(rig.now) is None
    # Lost on its way: asked for again.
    rig.advance(3)
    assert rig.ops.take_checkpoints(rig.now) == request
    rig.apply(rpc_pb2.LeaseCheckpointRequest.FromString(request))
    assert rig.ops.take_settled() == [1]
    assert rig.keep_alive(1) == 1000 and rig.time_to_live(1).TTL == 1000
    rig.restart()
    rig.ops.lead(rig.now)
    assert rig.time_to_live(1).TTL == 1001


def test_a_checkpoint_on_its_way_does_not_count_as_the_answer(rig):
    rig.grant(1, 1000)
    rig.checkpoint(_1=700)
    rig.advance(300)
    under_way = rpc_pb2.LeaseCheckpointRequest.FromString(rig.ops.take_checkpoints(rig.now))
    assert rig.keep_alive(1) == WAITS
    rig.apply(under_way)
    assert rig.ops.take_settled() == []
    assert taken(rig) == {1: 0} and rig.ops.take_settled() == [1]


def test_checkpoints_of_many_leases_are_spread(rig):
    for lease in range(1, 1001):
        rig.grant(lease, 1000)
    rig.advance(300)
    assert rig.ops.take_checkpoints(rig.now) is not None
    assert rig.ops.take_checkpoints(rig.now) is None
    assert rig.now < rig.ops.next_due < rig.now + SECOND
    found = 0
    while rig.ops.next_due < rig.now + SECOND:
        rig.now = rig.ops.next_due
        found += len(taken(rig))
    assert found == 1000 - 256


def test_a_lease_renewed_at_the_moment_is_checkpointed_the_next_time(rig):
    rig.grant(1, 1000)
    rig.advance(300)
    rig.keep_alive(1)
    assert rig.ops.take_checkpoints(rig.now) is None
    rig.advance(300)
    assert taken(rig) == {1: 700}


def test_no_checkpoints_when_told_so(tmp_path):
    rig = LeaseRig(tmp_path / "store", checkpoint_ns=0)
    rig.ops.lead(rig.now)
    rig.grant(1, 1000)
    assert rig.ops.take_checkpoints(rig.now + 10**6 * SECOND) is None
    rig.close()


def test_checkpoints_of_strange_values(rig):
    """Whatever a log holds is applied, and no lease lives longer than etcd's maximum for it."""
    rig.grant(1, 1000)
    rig.grant(2, 1000)
    rig.checkpoint(_1=2**62, _2=-4)
    rig.ops.lead(rig.now)
    assert rig.time_to_live(1).TTL == TTL_MAX + 1
    assert rig.time_to_live(2).TTL == 1001


# ---- many ----


def test_tables_grow_and_shrink(rig):
    """Ten thousand leases and keys come and go in several orders; each is found while it is there, no other."""
    count = 10_000
    for stride in (1, 7, 4999):
        ids = [i * stride % count + 1 for i in range(count)]
        for lease in ids:
            rig.grant(lease, 60)
            rig.put(b"key%d" % lease, lease)
        assert rig.table.held_bytes < 160 * count
        assert rig.table.count == rig.table.attached == count
        order = [(i * 3 + 1) % count + 1 for i in range(count)]
        for i, lease in enumerate(order):
            assert rig.keep_alive(lease) == 60
            rig.revoke(lease)
            assert rig.keep_alive(lease) == 0
            other = order[(i + count // 2) % count]
            assert rig.keep_alive(other) == (0 if i >= count // 2 else 60)
        assert rig.table.count == rig.table.attached == 0
        assert rig.table.held_bytes < 4096
        rig.write()


# ---- restart ----


def test_leases_and_their_keys_come_back(rig):
    rig.grant(3, 60)
    rig.grant(1, 9)
    rig.put(b"a", 1)
    rig.put(b"b", 1)
    rig.put(b"c", 3)
    rig.put(b"a", 3)
    rig.put(b"b")
    rig.put(b"d", 3)
    rig.delete(b"d")
    rig.checkpoint(_3=40)
    rig.grant(5, 20)
    rig.put(b"e", 5)
    rig.revoke(5)
    stored, in_use = rig.stored(), rig.mvcc.in_use_bytes
    assert stored == [
        (b"l" + (1).to_bytes(8, "big"), lease_pb2.Lease(ID=1, TTL=9).SerializeToString()),
        (b"l" + (3).to_bytes(8, "big"), lease_pb2.Lease(ID=3, TTL=60, RemainingTTL=40).SerializeToString()),
    ]
    rig.restart()
    assert rig.stored() == stored and rig.mvcc.in_use_bytes == in_use
    assert rig.store.meta == {}
    rig.ops.lead(rig.now)
    assert rig.keys(1) == [] and rig.keys(3) == [b"a", b"c"] and rig.table.attached == 2
    assert rig.time_to_live(3).TTL == 41
    assert rig.mvcc.get(b"e") is None
    # Each lease is in the store once, whatever was written over and over.
    for _ in range(3):
        rig.checkpoint(_3=39)
        rig.put(b"x")
        rig.write()
        rig.checkpoint(_3=40)
        rig.write()
    found = [key[10:] for key, _ in rig.store.records()[0] if key[9:11] == b"\xfel"]
    assert sorted(found) == [key for key, _ in stored]


def test_a_key_whose_lease_is_gone_from_the_store(rig):
    """Placeholders made while loading do not stay, nor do what hung on them."""
    rig.grant(1, 60)
    rig.put(b"a", 1)
    rig.write()
    gone = next(key for key, _ in rig.store.records()[0] if key[9:11] == b"\xfel")
    batch = rig.store.new_batch()
    batch.delete(gone)
    rig.store.write(batch)
    rig.restart()
    assert rig.table.count == rig.table.attached == 0
    rig.ops.lead(rig.now)
    assert rig.put(b"a", ignore_lease=True, value=b"x").header.revision == 3
    assert rig.table.attached == 0


@pytest.mark.parametrize("value", [b"", b"\x08", b"\x08\x02\x10\x3c", b"\x10\x3c"])
def test_a_damaged_lease_stops_the_start(rig, value):
    rig.grant(1, 60)
    rig.write()
    key = next(key for key, _ in rig.store.records()[0] if key[9:11] == b"\xfel")
    batch = rig.store.new_batch()
    batch.put(key, value)
    rig.store.write(batch)
    with pytest.raises(StoreCorrupt, match="lease 1"):
        rig.restart()
    batch = rig.store.new_batch()
    batch.delete(key)
    rig.store.write(batch)


def test_a_minimum_that_grew_counts_for_old_leases_too(tmp_path, monkeypatch):
    rig = LeaseRig(tmp_path / "store")
    rig.grant(1, 2)
    stored = rig.stored()
    monkeypatch.setattr("tests.apply.leaserig.MIN_TTL", 9)
    rig.restart()
    rig.ops.lead(rig.now)
    assert rig.time_to_live(1).grantedTTL == rig.keep_alive(1) == 9
    assert rig.stored() == stored
    rig.close()
