"""Raft messages and snapshot files written by hand here, against the protobuf runtime."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcdfast.api.pb import raft_internal_pb2, raft_pb2, snap_pb2
from etcdfast.cluster import entries
from etcdfast.consensus import requests
from etcdfast.formats import raftpb, snapfile

ids = st.integers(0, (1 << 64) - 1)
id_lists = st.lists(ids, max_size=5).map(tuple)
conf_states = st.builds(raftpb.ConfState, id_lists, id_lists, id_lists, id_lists, st.integers(0, 1))


@given(conf_states)
def test_conf_state(state):
    data = raftpb.encode_conf_state(state)
    parsed = raft_pb2.ConfState.FromString(data)
    assert tuple(parsed.voters) == state.voters
    assert tuple(parsed.learners) == state.learners
    assert tuple(parsed.voters_outgoing) == state.voters_outgoing
    assert tuple(parsed.learners_next) == state.learners_next
    assert parsed.auto_leave == state.auto_leave
    assert raftpb.decode_conf_state(data) == state
    assert data == parsed.SerializeToString()


@given(ids, st.integers(0, 3), ids, st.one_of(st.none(), st.binary(max_size=40)))
def test_conf_change(change_id, change_type, node_id, context):
    change = raftpb.ConfChange(change_id, change_type, node_id, context)
    data = raftpb.encode_conf_change(change)
    parsed = raft_pb2.ConfChange.FromString(data)
    assert (parsed.id, parsed.type, parsed.node_id) == (change_id, change_type, node_id)
    assert (parsed.context if parsed.HasField("context") else None) == context
    assert raftpb.decode_conf_change(data) == change


@given(st.binary(max_size=60), conf_states, ids, ids)
def test_snapshot_file(data, state, index, term):
    content = snapfile.encode(data, state, index, term)
    parsed = snap_pb2.snapshot.FromString(content)
    inner = raft_pb2.Snapshot.FromString(parsed.data)
    assert (inner.data, inner.metadata.index, inner.metadata.term) == (data, index, term)
    assert snapfile.decode(content) == (data, state, index, term)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(data):
    for decode in (raftpb.decode_conf_state, raftpb.decode_conf_change, raftpb.decode_snapshot, snapfile.decode):
        try:
            decode(data)
        except raftpb.RaftMessageError:
            pass
    entries.read(data)
    try:
        snapfile.decode_members(data)
    except snapfile.SnapFileError:
        pass


def test_every_flipped_bit_of_a_snapshot_file_is_noticed(tmp_path):
    path = snapfile.write(tmp_path, b"membership", raftpb.ConfState((7,)), 5, 2)
    with open(path, "rb") as file:
        content = file.read()
    expected = snapfile.read(tmp_path, os.path.basename(path))
    for bit in range(len(content) * 8):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        try:
            found = snapfile.decode(bytes(broken))
        except raftpb.RaftMessageError:
            continue
        assert found == expected, f"bit {bit}"


def test_purge_keeps_the_newest(tmp_path):
    for index in (10, 20, 30, 40):
        snapfile.write(tmp_path, b"%d" % index, raftpb.ConfState((7,)), index, 2)
    snapfile.purge(tmp_path, 2)
    assert snapfile.names(tmp_path) == [snapfile.file_name(2, 40), snapfile.file_name(2, 30)]


def test_own_requests_are_those_of_the_protos():
    data = requests.member_attributes(11, 22, "näme", ("http://a:1", "http://b:2"))
    request = raft_internal_pb2.InternalRaftRequest.FromString(data)
    assert request.SerializeToString() == data
    assert (request.header.ID, request.cluster_member_attr_set.member_ID) == (11, 22)
    assert entries.read(data) == ("attributes", 22, "näme", ("http://a:1", "http://b:2"))
    data = requests.cluster_version(12, "3.7.0")
    assert raft_internal_pb2.InternalRaftRequest.FromString(data).cluster_version_set.ver == "3.7.0"
    assert entries.read(data) == ("version", "3.7.0")


@pytest.mark.parametrize("members", [[], [(1, ("http://h:1",), "", (), False)], [(5, (), "n", ("http://c:1",), True)]])
def test_membership_survives_the_v2_form(members):
    data = snapfile.encode_members(members, (9,), None)
    assert snapfile.decode_members(data) == (members, (9,), None)
