"""The etcd API's message classes under one roof for the tests."""

from __future__ import annotations

from etcdfast.api.pb.kv_pb2 import Event, KeyValue
from etcdfast.api.pb.rpc_pb2 import (
    NOSPACE,
    AlarmRequest,
    AlarmResponse,
    CompactionRequest,
    CompactionResponse,
    Compare,
    DefragmentRequest,
    DefragmentResponse,
    DeleteRangeRequest,
    DeleteRangeResponse,
    HashKVRequest,
    HashKVResponse,
    HashRequest,
    HashResponse,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseLeasesRequest,
    LeaseLeasesResponse,
    LeaseRevokeRequest,
    LeaseRevokeResponse,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
    MemberListRequest,
    MemberListResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RangeStreamResponse,
    RequestOp,
    ResponseHeader,
    StatusRequest,
    StatusResponse,
    TxnRequest,
    TxnResponse,
    WatchCancelRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from etcdfast.api.pb.v3election_pb2 import (
    CampaignRequest,
    CampaignResponse,
    LeaderKey,
    LeaderRequest,
    LeaderResponse,
    ProclaimRequest,
    ProclaimResponse,
    ResignRequest,
    ResignResponse,
)
from etcdfast.api.pb.v3lock_pb2 import LockRequest, LockResponse, UnlockRequest, UnlockResponse

__all__ = [name for name in dir() if name[0].isupper()]
