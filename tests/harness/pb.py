"""The etcd API's message classes under one roof for the tests."""

from __future__ import annotations

from etcdfast.api.pb.kv_pb2 import KeyValue
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
)

__all__ = [name for name in dir() if name[0].isupper()]
