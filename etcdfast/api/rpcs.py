"""The RPCs of the client port: one row per RPC.

Ids are one byte on the rings and in `etcdfast/_ext/rpcids.pxd`. They are written out, not counted:
tables in C are indexed by them, and the hot ones come first.

Message classes are named by protobuf full name and looked up on first use, because frontends and
consensus know RPCs but never load the protobuf runtime.
"""

from collections import namedtuple

UNARY = "unary"
SERVER_STREAM = "server-stream"
BIDI_STREAM = "bidi"

# Where a request goes once the frontend has it. A route says the widest way a request of that RPC can
# take: a serializable Range and a MemberList that is not linearizable skip consensus, a Txn that only
# reads is ordered like a read.
PROPOSE = "propose"  # through the raft log
READ = "read"  # behind a ReadIndex of consensus, then apply
APPLY = "apply"  # straight to apply: answers for this member alone
LOCAL = "local"  # the frontend answers by itself
NONE = "none"  # not served yet: UNIMPLEMENTED


class Rpc(namedtuple("Rpc", "id path kind request response route since")):
    """path: the :path of the HTTP/2 request; request, response: protobuf full names; since: etcd release."""

    __slots__ = ()

    @property
    def service(self):
        return self.path.split("/")[1]

    @property
    def method(self):
        return self.path.split("/")[2]


def _row(rpc_id, service, method, kind, request, response, route, since):
    package = service.rsplit(".", 1)[0]
    return Rpc(rpc_id, f"/{service}/{method}", kind, f"{package}.{request}", f"{package}.{response}", route, since)


_KV = "etcdserverpb.KV"
_WATCH = "etcdserverpb.Watch"
_LEASE = "etcdserverpb.Lease"
_CLUSTER = "etcdserverpb.Cluster"
_MAINTENANCE = "etcdserverpb.Maintenance"
_AUTH = "etcdserverpb.Auth"
_LOCK = "v3lockpb.Lock"
_ELECTION = "v3electionpb.Election"
_HEALTH = "grpc.health.v1.Health"

RPCS = tuple(
    _row(*row)
    for row in (
        (1, _KV, "Range", UNARY, "RangeRequest", "RangeResponse", READ, "3.0"),
        (2, _KV, "Put", UNARY, "PutRequest", "PutResponse", PROPOSE, "3.0"),
        (3, _KV, "DeleteRange", UNARY, "DeleteRangeRequest", "DeleteRangeResponse", PROPOSE, "3.0"),
        (4, _KV, "Txn", UNARY, "TxnRequest", "TxnResponse", PROPOSE, "3.0"),
        (5, _KV, "Compact", UNARY, "CompactionRequest", "CompactionResponse", PROPOSE, "3.0"),
        (6, _KV, "RangeStream", SERVER_STREAM, "RangeRequest", "RangeStreamResponse", READ, "3.7"),
        (7, _WATCH, "Watch", BIDI_STREAM, "WatchRequest", "WatchResponse", APPLY, "3.0"),
        (8, _LEASE, "LeaseGrant", UNARY, "LeaseGrantRequest", "LeaseGrantResponse", PROPOSE, "3.0"),
        (9, _LEASE, "LeaseRevoke", UNARY, "LeaseRevokeRequest", "LeaseRevokeResponse", PROPOSE, "3.0"),
        (10, _LEASE, "LeaseKeepAlive", BIDI_STREAM, "LeaseKeepAliveRequest", "LeaseKeepAliveResponse", APPLY, "3.0"),
        (11, _LEASE, "LeaseTimeToLive", UNARY, "LeaseTimeToLiveRequest", "LeaseTimeToLiveResponse", READ, "3.1"),
        (12, _LEASE, "LeaseLeases", UNARY, "LeaseLeasesRequest", "LeaseLeasesResponse", READ, "3.3"),
        (13, _CLUSTER, "MemberAdd", UNARY, "MemberAddRequest", "MemberAddResponse", PROPOSE, "3.0"),
        (14, _CLUSTER, "MemberRemove", UNARY, "MemberRemoveRequest", "MemberRemoveResponse", PROPOSE, "3.0"),
        (15, _CLUSTER, "MemberUpdate", UNARY, "MemberUpdateRequest", "MemberUpdateResponse", PROPOSE, "3.0"),
        (16, _CLUSTER, "MemberList", UNARY, "MemberListRequest", "MemberListResponse", READ, "3.0"),
        (17, _CLUSTER, "MemberPromote", UNARY, "MemberPromoteRequest", "MemberPromoteResponse", PROPOSE, "3.4"),
        (18, _MAINTENANCE, "Alarm", UNARY, "AlarmRequest", "AlarmResponse", PROPOSE, "3.0"),
        (19, _MAINTENANCE, "Status", UNARY, "StatusRequest", "StatusResponse", APPLY, "3.0"),
        (20, _MAINTENANCE, "Defragment", UNARY, "DefragmentRequest", "DefragmentResponse", APPLY, "3.0"),
        (21, _MAINTENANCE, "Hash", UNARY, "HashRequest", "HashResponse", APPLY, "3.0"),
        (22, _MAINTENANCE, "HashKV", UNARY, "HashKVRequest", "HashKVResponse", APPLY, "3.3"),
        (23, _MAINTENANCE, "Snapshot", SERVER_STREAM, "SnapshotRequest", "SnapshotResponse", APPLY, "3.0"),
        (24, _MAINTENANCE, "MoveLeader", UNARY, "MoveLeaderRequest", "MoveLeaderResponse", PROPOSE, "3.3"),
        (25, _MAINTENANCE, "Downgrade", UNARY, "DowngradeRequest", "DowngradeResponse", NONE, "3.5"),
        (26, _AUTH, "AuthEnable", UNARY, "AuthEnableRequest", "AuthEnableResponse", PROPOSE, "3.0"),
        (27, _AUTH, "AuthDisable", UNARY, "AuthDisableRequest", "AuthDisableResponse", PROPOSE, "3.0"),
        (28, _AUTH, "AuthStatus", UNARY, "AuthStatusRequest", "AuthStatusResponse", PROPOSE, "3.5"),
        (29, _AUTH, "Authenticate", UNARY, "AuthenticateRequest", "AuthenticateResponse", APPLY, "3.0"),
        (30, _AUTH, "UserAdd", UNARY, "AuthUserAddRequest", "AuthUserAddResponse", APPLY, "3.0"),
        (31, _AUTH, "UserGet", UNARY, "AuthUserGetRequest", "AuthUserGetResponse", PROPOSE, "3.0"),
        (32, _AUTH, "UserList", UNARY, "AuthUserListRequest", "AuthUserListResponse", PROPOSE, "3.0"),
        (33, _AUTH, "UserDelete", UNARY, "AuthUserDeleteRequest", "AuthUserDeleteResponse", PROPOSE, "3.0"),
        (
            34,
            _AUTH,
            "UserChangePassword",
            UNARY,
            "AuthUserChangePasswordRequest",
            "AuthUserChangePasswordResponse",
            APPLY,
            "3.0",
        ),
        (35, _AUTH, "UserGrantRole", UNARY, "AuthUserGrantRoleRequest", "AuthUserGrantRoleResponse", PROPOSE, "3.0"),
        (36, _AUTH, "UserRevokeRole", UNARY, "AuthUserRevokeRoleRequest", "AuthUserRevokeRoleResponse", PROPOSE, "3.0"),
        (37, _AUTH, "RoleAdd", UNARY, "AuthRoleAddRequest", "AuthRoleAddResponse", PROPOSE, "3.0"),
        (38, _AUTH, "RoleGet", UNARY, "AuthRoleGetRequest", "AuthRoleGetResponse", PROPOSE, "3.0"),
        (39, _AUTH, "RoleList", UNARY, "AuthRoleListRequest", "AuthRoleListResponse", PROPOSE, "3.0"),
        (40, _AUTH, "RoleDelete", UNARY, "AuthRoleDeleteRequest", "AuthRoleDeleteResponse", PROPOSE, "3.0"),
        (
            41,
            _AUTH,
            "RoleGrantPermission",
            UNARY,
            "AuthRoleGrantPermissionRequest",
            "AuthRoleGrantPermissionResponse",
            PROPOSE,
            "3.0",
        ),
        (
            42,
            _AUTH,
            "RoleRevokePermission",
            UNARY,
            "AuthRoleRevokePermissionRequest",
            "AuthRoleRevokePermissionResponse",
            PROPOSE,
            "3.0",
        ),
        (43, _LOCK, "Lock", UNARY, "LockRequest", "LockResponse", APPLY, "3.2"),
        (44, _LOCK, "Unlock", UNARY, "UnlockRequest", "UnlockResponse", APPLY, "3.2"),
        (45, _ELECTION, "Campaign", UNARY, "CampaignRequest", "CampaignResponse", APPLY, "3.2"),
        (46, _ELECTION, "Proclaim", UNARY, "ProclaimRequest", "ProclaimResponse", APPLY, "3.2"),
        (47, _ELECTION, "Leader", UNARY, "LeaderRequest", "LeaderResponse", APPLY, "3.2"),
        (48, _ELECTION, "Observe", SERVER_STREAM, "LeaderRequest", "LeaderResponse", APPLY, "3.2"),
        (49, _ELECTION, "Resign", UNARY, "ResignRequest", "ResignResponse", APPLY, "3.2"),
        (50, _HEALTH, "Check", UNARY, "HealthCheckRequest", "HealthCheckResponse", LOCAL, "3.0"),
        (51, _HEALTH, "Watch", SERVER_STREAM, "HealthCheckRequest", "HealthCheckResponse", LOCAL, "3.0"),
        (52, _HEALTH, "List", UNARY, "HealthListRequest", "HealthListResponse", LOCAL, "3.7"),
    )
)

BY_ID = {rpc.id: rpc for rpc in RPCS}
BY_PATH = {rpc.path: rpc for rpc in RPCS}


def id_symbol(rpc):
    """Name of the RPC's id in rpcids.pxd: RPC_RANGE, RPC_LEASE_GRANT, RPC_HEALTH_WATCH ..."""
    words = "".join(f"_{c}" if c.isupper() and not p.isupper() else c for p, c in zip(" " + rpc.method, rpc.method))
    name = words.strip("_ ").upper()
    # A method name may occur in two services; the service tells them apart where that service is
    # not the one the name speaks of.
    prefix = {_HEALTH: "HEALTH_", _ELECTION: "ELECTION_"}.get(rpc.service, "")
    return f"RPC_{prefix}{name}"


_MODULES = {
    "etcdserverpb": "rpc_pb2",
    "v3lockpb": "v3lock_pb2",
    "v3electionpb": "v3election_pb2",
    "grpc.health.v1": "health_pb2",
}


def message_class(full_name):
    """The message class of a protobuf full name used in `RPCS`; loads the protobuf runtime."""
    from importlib import import_module

    package, name = full_name.rsplit(".", 1)
    return getattr(import_module(f"etcdfast.api.pb.{_MODULES[package]}"), name)
