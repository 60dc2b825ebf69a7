"""Our protos against real etcd 3.5.1: every field it sends is one we know, and none is mistaken.

A wrong number shows as an unknown field or as a value in the wrong place; both are checked on answers of
every service and on the records of its log, which are also encoded back to the same bytes.
"""

import struct

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from etcdfast.api import rpcs
from etcdfast.api.grpc_stubs import Client
from etcdfast.api.pb import (
    etcdserver_pb2,
    kv_pb2,
    lease_pb2,
    membership_pb2,
    raft_internal_pb2,
    raft_pb2,
    record_pb2,
    v3election_pb2,
    v3lock_pb2,
)
from etcdfast.api.pb import rpc_pb2 as pb
from tests.harness import EtcdServer

DEADLINE_SECONDS = 60


def assert_all_known(message):
    assert len(UnknownFieldSet(message)) == 0, f"{message.DESCRIPTOR.full_name} has fields we do not know"
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in value if hasattr(value, "__len__") else (value,):
                assert_all_known(part)


@pytest.fixture(scope="module")
def server():
    with EtcdServer() as running:
        yield running


class Checked:
    """The stubs of a client; every answer is checked for unknown fields and gathered by RPC."""

    def __init__(self, channel):
        self._client = Client(channel)
        self.called = set()

    def __call__(self, path, request, **kwargs):
        service, method = path.split(".")
        stub = getattr(getattr(self._client, service), method)
        self.called.add(path)
        answer = stub(request, timeout=DEADLINE_SECONDS, **kwargs)
        if hasattr(answer, "ListFields"):
            assert_all_known(answer)
        return answer


@pytest.fixture(scope="module")
def call(server):
    with grpc.insecure_channel(server.endpoint) as channel:
        yield Checked(channel)


def put(key, value, **options):
    return pb.PutRequest(key=key, value=value, **options)


def test_kv(call):
    call("KV.Put", put(b"a", b"1"))
    changed = call("KV.Put", put(b"a", b"2", prev_kv=True))
    assert (changed.prev_kv.key, changed.prev_kv.value, changed.prev_kv.version) == (b"a", b"1", 1)
    found = call("KV.Range", pb.RangeRequest(key=b"a", range_end=b"b", limit=1))
    revision = found.header.revision
    assert [(kv.key, kv.value, kv.version, kv.mod_revision) for kv in found.kvs] == [(b"a", b"2", 2, revision)]
    assert (found.count, found.more, found.kvs[0].create_revision) == (1, False, revision - 1)
    options = dict(
        sort_order=pb.RangeRequest.DESCEND, sort_target=pb.RangeRequest.VALUE, serializable=True, keys_only=True
    )
    bounds = dict(min_mod_revision=1, max_mod_revision=9, min_create_revision=1, max_create_revision=9)
    assert call("KV.Range", pb.RangeRequest(key=b"a", revision=revision, **options, **bounds)).kvs[0].value == b""
    assert call("KV.Range", pb.RangeRequest(key=b"a", count_only=True)).count == 1
    kept = call("KV.Put", put(b"a", b"", ignore_value=True, ignore_lease=True, prev_kv=True))
    assert kept.prev_kv.value == b"2"
    deleted = call("KV.DeleteRange", pb.DeleteRangeRequest(key=b"a", range_end=b"\0", prev_kv=True))
    assert (deleted.deleted, deleted.prev_kvs[0].value) == (1, b"2")
    call("KV.Compact", pb.CompactionRequest(revision=deleted.header.revision, physical=True))
    with pytest.raises(grpc.RpcError) as caught:
        call("KV.Range", pb.RangeRequest(key=b"a", revision=revision))
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE


def test_txn(call):
    call("KV.Put", put(b"t", b"v"))
    kv = call("KV.Range", pb.RangeRequest(key=b"t")).kvs[0]
    equal, greater, less, not_equal = 0, 1, 2, 3
    version, create, mod, value, lease = range(5)
    compares = [
        pb.Compare(key=b"t", result=equal, target=version, version=kv.version),
        pb.Compare(key=b"t", result=less, target=create, create_revision=kv.create_revision + 1),
        pb.Compare(key=b"t", result=greater, target=mod, mod_revision=kv.mod_revision - 1),
        pb.Compare(key=b"t", result=not_equal, target=value, value=b"w"),
        pb.Compare(key=b"t", result=equal, target=lease, lease=0, range_end=b"u"),
    ]
    nested = pb.TxnRequest(success=[pb.RequestOp(request_put=put(b"n", b"1"))])
    ops = [
        pb.RequestOp(request_range=pb.RangeRequest(key=b"t")),
        pb.RequestOp(request_put=put(b"t2", b"2")),
        pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"t")),
        pb.RequestOp(request_txn=nested),
    ]
    done = call("KV.Txn", pb.TxnRequest(compare=compares, success=ops))
    assert done.succeeded
    kinds = ["response_range", "response_put", "response_delete_range", "response_txn"]
    assert [op.WhichOneof("response") for op in done.responses] == kinds
    assert done.responses[0].response_range.kvs[0].value == b"v"
    assert done.responses[2].response_delete_range.deleted == 1
    assert done.responses[3].response_txn.succeeded
    compares[0].version += 1
    other = call("KV.Txn", pb.TxnRequest(compare=compares, failure=ops[:1]))
    assert not other.succeeded and len(other.responses) == 1


def test_lease(call):
    granted = call("Lease.LeaseGrant", pb.LeaseGrantRequest(TTL=1000, ID=77))
    assert (granted.ID, granted.TTL, granted.error) == (77, 1000, "")
    call("KV.Put", put(b"l", b"", lease=77))
    assert call("KV.Range", pb.RangeRequest(key=b"l")).kvs[0].lease == 77
    alive = next(call("Lease.LeaseKeepAlive", iter([pb.LeaseKeepAliveRequest(ID=77)])))
    assert_all_known(alive)
    assert (alive.ID, alive.TTL) == (77, 1000)
    left = call("Lease.LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=77, keys=True))
    assert (left.ID, left.grantedTTL, list(left.keys)) == (77, 1000, [b"l"])
    assert [lease.ID for lease in call("Lease.LeaseLeases", pb.LeaseLeasesRequest()).leases] == [77]
    call("Lease.LeaseRevoke", pb.LeaseRevokeRequest(ID=77))
    assert call("KV.Range", pb.RangeRequest(key=b"l")).count == 0


def test_watch(call):
    start = call("KV.Put", put(b"w", b"1")).header.revision
    call("KV.Put", put(b"w", b"2"))
    call("KV.DeleteRange", pb.DeleteRangeRequest(key=b"w"))
    create = pb.WatchCreateRequest(
        key=b"w", start_revision=start, prev_kv=True, watch_id=5, fragment=True, progress_notify=True
    )
    no_puts = pb.WatchCreateRequest(key=b"w", start_revision=start, filters=[pb.WatchCreateRequest.NOPUT])
    requests = [
        pb.WatchRequest(create_request=create),
        pb.WatchRequest(create_request=no_puts),
        pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=5)),
    ]
    events, seen = [], {"created": 0, "canceled": 0}
    done = []

    def send():
        yield from requests[:2]
        while not done:  # the third only after the events came
            yield pb.WatchRequest(progress_request=pb.WatchProgressRequest())
        yield requests[2]

    stream = call("Watch.Watch", send())
    for answer in stream:
        assert_all_known(answer)
        seen["created"] += answer.created
        seen["canceled"] += answer.canceled
        events += [(answer.watch_id, event) for event in answer.events]
        if len(events) == 4:
            done.append(True)
        if seen["canceled"]:
            assert answer.watch_id == 5
            break
    stream.cancel()
    assert seen["created"] == 2
    of_first = [event for watch_id, event in events if watch_id == 5]
    assert [event.type for event in of_first] == [kv_pb2.Event.PUT, kv_pb2.Event.PUT, kv_pb2.Event.DELETE]
    assert [event.prev_kv.value for event in of_first] == [b"", b"1", b"2"]
    assert [event.type for watch_id, event in events if watch_id != 5] == [kv_pb2.Event.DELETE]


def test_cluster_and_maintenance(call, server):
    members = call("Cluster.MemberList", pb.MemberListRequest(linearizable=True)).members
    assert [(m.name, bool(m.ID), list(m.clientURLs), m.isLearner) for m in members] == [
        (server.name, True, [server.url], False)
    ]
    status = call("Maintenance.Status", pb.StatusRequest())
    assert (status.version, status.leader) == ("3.5.1", members[0].ID)
    assert status.dbSize >= status.dbSizeInUse > 0 and status.raftIndex >= status.raftAppliedIndex > 0
    assert status.raftTerm == status.header.raft_term and not status.errors
    hashed = call("Maintenance.HashKV", pb.HashKVRequest())
    assert hashed.hash and hashed.compact_revision > 0
    assert call("Maintenance.Hash", pb.HashRequest()).hash
    for action in (pb.AlarmRequest.ACTIVATE, pb.AlarmRequest.GET, pb.AlarmRequest.DEACTIVATE):
        raised = call("Maintenance.Alarm", pb.AlarmRequest(action=action, memberID=members[0].ID, alarm=pb.NOSPACE))
        assert [(alarm.memberID, alarm.alarm) for alarm in raised.alarms] == [(members[0].ID, pb.NOSPACE)]
    call("Maintenance.Defragment", pb.DefragmentRequest())
    pieces = list(call("Maintenance.Snapshot", pb.SnapshotRequest()))
    for piece in pieces:
        assert_all_known(piece)
    assert pieces[-1].remaining_bytes == 0 and sum(len(piece.blob) for piece in pieces) > 4096
    with pytest.raises(grpc.RpcError, match="wrong downgrade target version format"):
        call("Maintenance.Downgrade", pb.DowngradeRequest(action=pb.DowngradeRequest.VALIDATE, version="x"))
    learner = call("Cluster.MemberAdd", pb.MemberAddRequest(peerURLs=["http://127.0.0.1:1"], isLearner=True))
    assert learner.member.isLearner and list(learner.member.peerURLs) == ["http://127.0.0.1:1"]
    # A change that comes before etcd's raft has heard that the one before is applied becomes an empty entry, and nobody
    # is told: a put in between is answered only after that.
    call("KV.Put", put(b"between", b"changes"))
    own_urls = list(members[0].peerURLs)
    updated = call("Cluster.MemberUpdate", pb.MemberUpdateRequest(ID=members[0].ID, peerURLs=own_urls))
    assert own_urls in [list(m.peerURLs) for m in updated.members]
    with pytest.raises(grpc.RpcError, match="in sync with leader"):
        call("Cluster.MemberPromote", pb.MemberPromoteRequest(ID=learner.member.ID))
    call("KV.Put", put(b"between", b"changes"))
    removed = call("Cluster.MemberRemove", pb.MemberRemoveRequest(ID=learner.member.ID))
    assert len(removed.members) == 1
    call("Maintenance.MoveLeader", pb.MoveLeaderRequest(targetID=members[0].ID))


def test_lock_and_election(call):
    lock = call("Lock.Lock", v3lock_pb2.LockRequest(name=b"L"))
    assert lock.key.startswith(b"L/")
    call("Lock.Unlock", v3lock_pb2.UnlockRequest(key=lock.key))
    lease = call("Lease.LeaseGrant", pb.LeaseGrantRequest(TTL=100)).ID
    campaign = v3election_pb2.CampaignRequest(name=b"E", lease=lease, value=b"me")
    won = call("Election.Campaign", campaign).leader
    assert (won.name, won.lease) == (b"E", lease) and won.key.startswith(b"E/") and won.rev > 0
    call("Election.Proclaim", v3election_pb2.ProclaimRequest(leader=won, value=b"still me"))
    assert call("Election.Leader", v3election_pb2.LeaderRequest(name=b"E")).kv.value == b"still me"
    observed = call("Election.Observe", v3election_pb2.LeaderRequest(name=b"E"))
    first = next(observed)
    assert_all_known(first)
    assert first.kv.value == b"still me"
    observed.cancel()
    call("Election.Resign", v3election_pb2.ResignRequest(leader=won))
    call("Lease.LeaseRevoke", pb.LeaseRevokeRequest(ID=lease))


def test_health(call):
    from etcdfast.api.pb import health_pb2

    serving = health_pb2.HealthCheckResponse.SERVING
    assert call("Health.Check", health_pb2.HealthCheckRequest()).status == serving
    watched = call("Health.Watch", health_pb2.HealthCheckRequest())
    assert next(watched).status == serving
    watched.cancel()


def test_auth(call):
    for role in ("root", "r"):
        call("Auth.RoleAdd", pb.AuthRoleAddRequest(name=role))
    for user in ("root", "u"):
        call("Auth.UserAdd", pb.AuthUserAddRequest(name=user, password="p", options={"no_password": False}))
    grant = pb.AuthRoleGrantPermissionRequest(name="r")
    grant.perm.permType, grant.perm.key, grant.perm.range_end = grant.perm.READWRITE, b"a", b"b"
    call("Auth.RoleGrantPermission", grant)
    assert call("Auth.RoleGet", pb.AuthRoleGetRequest(role="r")).perm == [grant.perm]
    for user, role in (("root", "root"), ("u", "r")):
        call("Auth.UserGrantRole", pb.AuthUserGrantRoleRequest(user=user, role=role))
    assert list(call("Auth.UserGet", pb.AuthUserGetRequest(name="u")).roles) == ["r"]
    assert list(call("Auth.UserList", pb.AuthUserListRequest()).users) == ["root", "u"]
    assert list(call("Auth.RoleList", pb.AuthRoleListRequest()).roles) == ["r", "root"]
    call("Auth.UserChangePassword", pb.AuthUserChangePasswordRequest(name="u", password="q"))
    call("Auth.AuthEnable", pb.AuthEnableRequest())
    try:
        token = call("Auth.Authenticate", pb.AuthenticateRequest(name="root", password="p")).token
        as_root = {"metadata": [("token", token)]}
        status = call("Auth.AuthStatus", pb.AuthStatusRequest(), **as_root)
        assert status.enabled and status.authRevision > 1
    finally:
        token = call("Auth.Authenticate", pb.AuthenticateRequest(name="root", password="p")).token
        call("Auth.AuthDisable", pb.AuthDisableRequest(), metadata=[("token", token)])
    call("Auth.UserRevokeRole", pb.AuthUserRevokeRoleRequest(name="u", role="r"))
    revoke = pb.AuthRoleRevokePermissionRequest(role="r", key=b"a", range_end=b"b")
    call("Auth.RoleRevokePermission", revoke)
    call("Auth.UserDelete", pb.AuthUserDeleteRequest(name="u"))
    call("Auth.RoleDelete", pb.AuthRoleDeleteRequest(role="r"))


def frames(data):
    """Records of a WAL segment (reference/formats.md section 1.2), read the simplest way there is."""
    at = 0
    while at + 8 <= len(data):
        (word,) = struct.unpack_from("<Q", data, at)
        if word == 0:
            return
        length, padding = word & (1 << 56) - 1, word >> 56 & 7
        yield data[at + 8 : at + 8 + length]
        at += 8 + length + padding


def test_the_log_of_real_etcd(call, server):
    """Runs last: the log holds what the tests above sent, of every kind."""
    rpc_paths = {f"{rpc.service.rsplit('.', 1)[1]}.{rpc.method}" for rpc in rpcs.RPCS}
    # Newer than 3.5.1, so there is nobody to ask.
    assert rpc_paths - call.called == {"KV.RangeStream", "Health.List"}
    (segment,) = (server.data_dir / "member" / "wal").glob("*.wal")
    kinds, changes = set(), []
    for frame in frames(segment.read_bytes()):
        record = record_pb2.Record.FromString(frame)
        assert_all_known(record)
        assert record.SerializeToString() == frame
        if record.type == 1:
            metadata = etcdserver_pb2.Metadata.FromString(record.data)
            assert metadata.NodeID and metadata.ClusterID and metadata.SerializeToString() == record.data
        elif record.type == 3:
            assert raft_pb2.HardState.FromString(record.data).SerializeToString() == record.data
        elif record.type == 5:
            assert record_pb2.Snapshot.FromString(record.data).SerializeToString() == record.data
        elif record.type == 2:
            entry = raft_pb2.Entry.FromString(record.data)
            assert_all_known(entry)
            assert entry.SerializeToString() == record.data
            if entry.Type == raft_pb2.EntryConfChange:
                changes.append(raft_pb2.ConfChange.FromString(entry.Data))
                assert changes[-1].SerializeToString() == entry.Data
            elif entry.Data:
                kinds |= check_request(entry.Data)
    assert {change.type for change in changes} == {0, 1, 2, 3}
    expected = {field.name for field in raft_internal_pb2.InternalRaftRequest.DESCRIPTOR.fields}
    # Never proposed: reads, the unused ids, what only a leader of several or a newer release writes.
    expected -= {"ID", "v2", "range", "lease_checkpoint", "cluster_version_set", "cluster_member_attr_set"}
    expected -= {"downgrade_info_set", "downgrade_version_test"}
    assert kinds == expected | {"v2 request"}


def check_request(data):
    try:
        request = raft_internal_pb2.InternalRaftRequest.FromString(data)
    except DecodeError:
        old = etcdserver_pb2.Request.FromString(data)
        assert old.Method == "PUT" and old.SerializeToString() == data
        return {"v2 request"}
    assert_all_known(request)
    assert request.SerializeToString() == data
    return {field.name for field, _ in request.ListFields()}


def test_a_v2_request_never_reads_as_an_internal_one():
    request = etcdserver_pb2.Request(ID=1, Method="PUT", Path="/0/version", Val="3.5.0")
    with pytest.raises(DecodeError):
        raft_internal_pb2.InternalRaftRequest.FromString(request.SerializeToString())


@pytest.mark.parametrize(
    "message, encoded",
    [
        # What 3.5.1 never sends: numbers of newer fields, checked against etcd's published protos by hand.
        (pb.StatusResponse(storageVersion="a", dbSizeQuota=1, downgradeInfo={"enabled": True}), "5a0161 6001 6a020801"),
        (pb.HashKVResponse(hash_revision=3), "2003"),
        (pb.SnapshotResponse(version="v"), "220176"),
        (pb.RangeStreamResponse(range_response={"count": 2}), "0a022002"),
        (membership_pb2.DowngradeInfoSetRequest(enabled=True, ver="a"), "0801 120161"),
        (membership_pb2.ClusterMemberAttrSetRequest(member_ID=1, member_attributes={"name": "n"}), "0801 12030a016e"),
        (raft_internal_pb2.InternalRaftRequest(cluster_version_set={"ver": "3"}), "a251030a0133"),
        (raft_internal_pb2.InternalRaftRequest(cluster_member_attr_set={"member_ID": 1}), "aa51020801"),
        (raft_internal_pb2.InternalRaftRequest(downgrade_info_set={"enabled": True}), "b251020801"),
        (raft_internal_pb2.InternalRaftRequest(lease_checkpoint={"checkpoints": [{"ID": 1}]}), "5a040a020801"),
        (raft_pb2.Message(vote=1, commit=2), "4002 6801"),
        (lease_pb2.Lease(ID=1, TTL=2, RemainingTTL=3), "0801 1002 1803"),
    ],
)
def test_numbers_of_fields_that_3_5_does_not_send(message, encoded):
    assert message.SerializeToString().hex() == encoded.replace(" ", "")
