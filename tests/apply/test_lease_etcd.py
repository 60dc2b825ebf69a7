"""A real etcd 3.5.1 and its files: the same entries give the same buckets here, byte for byte."""

from google.protobuf.message import DecodeError

from etcdfast.api.pb import raft_internal_pb2
from etcdfast.apply import buckets
from etcdfast.formats import wal
from tests.apply.leaserig import LeaseRig
from tests.harness import EtcdServer, boltread, pb, wait_until

_FIELDS = ("put", "delete_range", "txn", "lease_grant", "lease_revoke", "lease_checkpoint")
NORMAL = 0


def history(client):
    """Every way in which a key and a lease meet."""

    def call(method, request):
        return client.call(method, request).message

    def put(key, lease=0, **more):
        call("Put", pb.PutRequest(key=key, value=b"" if more.get("ignore_value") else b"v", lease=lease, **more))

    given = [call("LeaseGrant", pb.LeaseGrantRequest(TTL=100)).ID for _ in range(3)]
    for lease, ttl in ((7, 1), (8, 100), (9, 9_000_000_000), (-3, 60), (2**63 - 1, 60), (11, 60)):
        call("LeaseGrant", pb.LeaseGrantRequest(ID=lease, TTL=ttl))
    for key in (b"c", b"a", b"d", b"b"):
        put(key, 8)
    put(b"a", 9)
    put(b"b")
    put(b"c", ignore_lease=True)
    put(b"d", ignore_value=True, lease=11)
    put(b"expires", 7)
    put(b"auto", given[0])
    op = pb.RequestOp
    call(
        "Txn",
        pb.TxnRequest(
            success=[
                op(request_put=pb.PutRequest(key=b"t1", lease=11)),
                op(request_put=pb.PutRequest(key=b"t2", lease=11)),
                op(request_delete_range=pb.DeleteRangeRequest(key=b"auto")),
            ]
        ),
    )
    for i in range(300):
        put(b"many%03d" % (i * 7 % 300), given[1])
    call("LeaseRevoke", pb.LeaseRevokeRequest(ID=given[1]))
    call("LeaseRevoke", pb.LeaseRevokeRequest(ID=given[2]))
    call("LeaseRevoke", pb.LeaseRevokeRequest(ID=11))
    call("DeleteRange", pb.DeleteRangeRequest(key=b"t", range_end=b"u"))
    # The shortest lease runs out by itself: etcd proposes its revoke.
    wait_until(lambda: not client.get(b"expires").kvs, "the end of a lease of two seconds")
    put(b"last")


def test_equal_entries_make_equal_buckets(tmp_path):
    with EtcdServer(directory=tmp_path / "etcd") as server:
        with server.client() as client:
            history(client)
        server.stop()
    theirs = boltread.buckets(server.data_dir / "member" / "snap" / "db")
    log = wal.read(server.data_dir / "member" / "wal")
    rig = LeaseRig(tmp_path / "store")
    kinds = []
    for number in range(len(log.entries)):
        kind, _, _, data = log.entries.entry(number)
        if kind != NORMAL or not data:
            continue
        try:
            request = raft_internal_pb2.InternalRaftRequest.FromString(data)
        except DecodeError:
            continue  # a request of the v2 API, as 3.5 still writes for member attributes
        for field in _FIELDS:
            if request.HasField(field):
                rig.apply(getattr(request, field))
                kinds.append(field)
        if request.HasField("lease_revoke") and request.lease_revoke.ID == 7:
            # What etcd's clock proposed is what ours does, but for the header behind it.
            message = pb.LeaseRevokeRequest(ID=7).SerializeToString()
            assert data.startswith(bytes([9 << 3 | 2, len(message)]) + message + b"\xa2\x06")
    rig.write()
    assert kinds.count("lease_revoke") == 4, "three by the client and one by etcd's clock"
    assert [(key[1:], value) for key, value in rig.stored()] == list(theirs[b"lease"].items())
    assert len(theirs[b"lease"]) == 5
    ours = [
        (key[1:], value)
        for key, value in rig.store.scan(buckets.KEY, buckets.end(buckets.KEY))
        if buckets.is_revision(key)
    ]
    assert ours == list(theirs[b"key"].items())
    rig.ops.lead(rig.now)
    assert {lease: rig.keys(lease) for lease in (8, 9)} == {8: [b"c"], 9: [b"a"]}
    assert rig.table.attached == 2
    rig.close()
