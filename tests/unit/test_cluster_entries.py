"""Entries of etcd's own, against the protobuf runtime."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcdfast.api.pb import etcdserver_pb2, raft_internal_pb2, rpc_pb2
from etcdfast.cluster import entries

MEMBER = 0x8E9E05C52164694D


@pytest.mark.parametrize("v2", [False, True])
def test_both_forms_say_the_same(v2):
    read = entries.read
    urls = ("http://a:1", "http://b:2")
    assert read(entries.attributes(11, MEMBER, "näme", urls, v2)) == ("attributes", MEMBER, "näme", urls)
    assert read(entries.attributes(11, MEMBER, "", (), v2)) == ("attributes", MEMBER, "", ())
    assert read(entries.cluster_version(12, "3.5.0", v2)) == ("version", "3.5.0")


def test_the_v2_form_is_that_of_the_protos():
    data = entries.attributes(11, MEMBER, "m1", ["http://c:1"], v2=True)
    request = etcdserver_pb2.Request.FromString(data)
    assert (request.ID, request.Method) == (11, "PUT")
    assert request.Path == "/0/members/8e9e05c52164694d/attributes"
    assert request.Val == '{"name":"m1","clientURLs":["http://c:1"]}'
    assert request.HasField("Stream") and not request.HasField("PrevExist") and not request.HasField("Refresh")
    assert data == request.SerializeToString()
    # An older decoder tries the other message first, and must fail at it.
    with pytest.raises(Exception, match="parsing"):
        raft_internal_pb2.InternalRaftRequest.FromString(data)


def test_the_new_form_is_that_of_the_protos():
    for data in (entries.attributes(11, MEMBER, "m1", ["http://c:1"]), entries.cluster_version(11, "3.7.0")):
        assert raft_internal_pb2.InternalRaftRequest.FromString(data).SerializeToString() == data


def internal(**fields):
    header = raft_internal_pb2.RequestHeader(ID=9)
    return raft_internal_pb2.InternalRaftRequest(header=header, **fields).SerializeToString()


def test_downgrades():
    assert entries.read(internal(downgrade_info_set={"enabled": True, "ver": "3.4.0"})) == ("downgrade", True, "3.4.0")
    assert entries.read(internal(downgrade_info_set={})) == ("downgrade", False, "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        internal(),
        internal(put=rpc_pb2.PutRequest(key=b"k")),
        internal(alarm=rpc_pb2.AlarmRequest(action=1)),
        internal(auth_enable={}),
        etcdserver_pb2.Request(ID=2, Method="DELETE", Path="/0/version").SerializeToString(),
        etcdserver_pb2.Request(ID=2, Method="PUT", Path="/0/members/zz/attributes", Val="{}").SerializeToString(),
        etcdserver_pb2.Request(ID=2, Method="PUT", Path="/0/members/1/attributes", Val="[]").SerializeToString(),
        etcdserver_pb2.Request(ID=2, Method="PUT", Path="/1/keys/version", Val="x").SerializeToString(),
    ],
)
def test_anything_else_is_no_news(data):
    assert entries.read(data) is None


@given(
    st.binary(max_size=80),
    st.sampled_from([b"", b"\x08\x01\x12\x03PUT\x1a\x0a/0/version\x22", b"\xa2\x06\x02\x08\x01"]),
)
def test_any_bytes_are_read_or_passed_over(data, start):
    entries.read(start + data)
