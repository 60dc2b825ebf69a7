"""The rare requests and entries of apply, on a store that is a sorted dict and an engine of constants."""

import json

import pytest

from etcdfast._ext import crc32c
from etcdfast.api import errors, rpcs
from etcdfast.api.pb import etcdserver_pb2, raft_internal_pb2, raft_pb2, rpc_pb2
from etcdfast.apply import buckets
from etcdfast.apply.cold import ColdPath, UnknownEntry
from etcdfast.apply.membership import MembershipError
from etcdfast.cluster.membership import ADD_LEARNER_NODE, ADD_NODE, REMOVE_NODE, UPDATE_NODE
from tests.apply.authrig import bare_auth

ME = 0x8E9E05C52164694D


class Store(dict):
    """Store and write batch in one."""

    put = dict.__setitem__

    def delete(self, key):
        self.pop(key, None)

    def scan(self, start, end):
        return [(k, self[k]) for k in sorted(self) if start <= k < end]


class Engine:
    member_id, cluster_id, leader, raft_term, commit_index, applied_index = ME, 7, ME, 3, 12, 11
    current_revision, compacted_revision, db_bytes, db_in_use_bytes = 5, -1, 4096, 1024

    def __init__(self, store=None):
        self.store = Store() if store is None else store
        self.alarm_bits = None
        self.compactions = 0
        self.pins = 0

    def set_alarms(self, bits):
        self.alarm_bits = bits

    def schedule_compaction(self):
        self.compactions += 1

    def pin(self, revision):
        self.pins += 1
        return self.pins

    def unpin(self, pin):
        self.pins -= 1

    def kept_any(self, revision):
        return True

    def kept_at(self, key, main, sub, revision):
        return key == b"kept"


def cold_path(engine):
    return ColdPath(engine, bare_auth(engine.store), 0)


@pytest.fixture
def cold():
    return cold_path(Engine())


def rpc_id(service, method):
    return rpcs.BY_PATH[f"/etcdserverpb.{service}/{method}"].id


def finish(answer):
    """Run a sliced answer to its end; (slices, result)."""
    if isinstance(answer, tuple):
        return 0, answer
    slices = 0
    while True:
        try:
            assert next(answer) is None
            slices += 1
        except StopIteration as stop:
            return slices, stop.value


def change(kind, node_id, **context):
    context = json.dumps({"id": node_id, **context}).encode() if context else b""
    return raft_pb2.ConfChange(id=0, type=kind, node_id=node_id, context=context).SerializeToString()


def internal(**fields):
    return raft_internal_pb2.InternalRaftRequest(
        header=raft_internal_pb2.RequestHeader(ID=9), **fields
    ).SerializeToString()


def bootstrap(cold, batch):
    data = change(ADD_NODE, ME, peerURLs=["http://localhost:2380"], name="m1")
    assert cold.entry(1, 1, 1, data, batch, waited=False) is None


def test_bootstrap_member_is_stored_as_etcd_stores_it(cold):
    store = cold.engine.store
    bootstrap(cold, store)
    assert store[buckets.MEMBERS + f"{ME:x}".encode()] == (
        b'{"id":%d,"peerURLs":["http://localhost:2380"],"name":"m1"}' % ME
    )
    assert store[buckets.CONF_STATE] == b'{"voters":[%d],"auto_leave":false}' % ME


def test_members_survive_a_restart(cold):
    bootstrap(cold, cold.engine.store)
    request = internal(
        cluster_member_attr_set={
            "member_ID": ME,
            "member_attributes": {"name": "m2", "client_urls": ["http://localhost:2379"]},
        }
    )
    cold.entry(3, 2, 0, request, cold.engine.store)
    cold.entry(4, 2, 0, internal(cluster_version_set={"ver": "3.7.0"}), cold.engine.store)
    again = cold_path(Engine(cold.engine.store))
    assert again.members.members == cold.members.members
    assert (again.members.cluster_version, again.members.storage_version) == ("3.7.0", "3.7.0")
    listed = rpc_pb2.MemberListResponse.FromString(again.call(rpc_id("Cluster", "MemberList"), b"")[1])
    assert [(m.ID, m.name, list(m.clientURLs)) for m in listed.members] == [(ME, "m2", ["http://localhost:2379"])]
    assert listed.header.revision == 0 and listed.header.raft_term == 3


def test_learner_is_promoted_updated_and_removed_for_ever(cold):
    store = cold.engine.store
    bootstrap(cold, store)
    cold.entry(5, 2, 1, change(ADD_LEARNER_NODE, 2, peerURLs=["http://h:1"], isLearner=True), store)
    assert json.loads(store[buckets.CONF_STATE]) == {"voters": [ME], "learners": [2], "auto_leave": False}
    cold.entry(6, 2, 1, change(ADD_NODE, 2, peerURLs=None, isPromote=True), store)
    assert not cold.members.members[2].is_learner
    cold.entry(7, 2, 1, change(UPDATE_NODE, 2, peerURLs=["http://h:2"]), store)
    assert cold.members.members[2].peer_urls == ("http://h:2",)
    cold.entry(8, 2, 1, change(REMOVE_NODE, 2), store)
    cold.entry(9, 2, 1, change(ADD_NODE, 2, peerURLs=["http://h:3"]), store)
    assert 2 not in cold.members.members
    assert store[buckets.MEMBERS_REMOVED + b"2"] == b"removed"


def test_a_peer_url_in_use_is_refused_without_effect(cold):
    store = cold.engine.store
    bootstrap(cold, store)
    before = dict(store)
    cold.entry(5, 2, 1, change(ADD_NODE, 3, peerURLs=["http://localhost:2380"]), store)
    assert dict(store) == before


@pytest.mark.parametrize(
    "data",
    [
        raft_pb2.ConfChange(id=0, type=0, node_id=4, context=b'{"id":5,"peerURLs":[]}').SerializeToString(),
        raft_pb2.ConfChange(id=0, type=0, node_id=4, context=b"not json").SerializeToString(),
    ],
)
def test_a_change_that_contradicts_itself_stops_the_member(cold, data):
    with pytest.raises(MembershipError):
        cold.entry(5, 2, 1, data, cold.engine.store)


def test_alarm_is_raised_listed_and_disarmed(cold):
    store = cold.engine.store

    def alarm(**fields):
        method, status, reply = cold.entry(9, 2, 0, internal(alarm=rpc_pb2.AlarmRequest(**fields)), store)
        assert (method, status) == (rpc_id("Maintenance", "Alarm"), 0)
        response = rpc_pb2.AlarmResponse.FromString(reply)
        assert response.header.revision == 5
        return [(a.memberID, a.alarm) for a in response.alarms]

    assert alarm(action=0) == []
    assert alarm(action=1, memberID=ME, alarm=1) == [(ME, 1)]
    assert alarm(action=1, memberID=ME, alarm=1) == [(ME, 1)]
    assert alarm(action=1, memberID=ME, alarm=0) == []
    assert cold.engine.alarm_bits == 1
    assert cold_path(Engine(store)).alarms.raised() == [(ME, 1)]
    status = rpc_pb2.StatusResponse.FromString(cold.call(rpc_id("Maintenance", "Status"), b"")[1])
    assert list(status.errors) == [f"memberID:{ME} alarm:NOSPACE "]
    assert alarm(action=0) == [(ME, 1)]
    assert alarm(action=2, memberID=ME, alarm=1) == [(ME, 1)]
    assert alarm(action=2, memberID=ME, alarm=1) == []
    assert cold.engine.alarm_bits == 0 and not store.scan(buckets.ALARM, buckets.end(buckets.ALARM))


def test_status_of_a_member_without_leader(cold):
    cold.engine.leader = 0
    status = rpc_pb2.StatusResponse.FromString(cold.call(rpc_id("Maintenance", "Status"), b"")[1])
    assert list(status.errors) == ["etcdserver: no leader"]
    assert (status.raftIndex, status.raftAppliedIndex, status.raftTerm) == (12, 11, 3)
    assert status.dbSizeQuota == 2 << 30


def test_v2_requests_of_older_members_are_applied(cold):
    store = cold.engine.store
    bootstrap(cold, store)
    publish = etcdserver_pb2.Request(
        ID=1, Method="PUT", Path=f"/0/members/{ME:x}/attributes", Val='{"name":"old","clientURLs":["http://h:1"]}'
    )
    cold.entry(3, 2, 0, publish.SerializeToString(), store)
    version = etcdserver_pb2.Request(ID=2, Method="PUT", Path="/0/version", Val="3.5.0")
    cold.entry(4, 2, 0, version.SerializeToString(), store)
    assert cold.members.members[ME].name == "old" and cold.members.cluster_version == "3.5.0"


@pytest.mark.parametrize(
    "kind, data",
    [
        (0, b"\xff\xff"),
        (0, internal()),
        (0, etcdserver_pb2.Request(ID=2, Method="DELETE", Path="/0/version").SerializeToString()),
        (2, b""),
    ],
)
def test_an_entry_nobody_knows_is_never_skipped(cold, kind, data):
    with pytest.raises(UnknownEntry):
        cold.entry(9, 2, kind, data, cold.engine.store)


def put_item(store, main, value, sub=0, tombstone=False):
    key = buckets.KEY + main.to_bytes(8, "big") + b"_" + sub.to_bytes(8, "big") + b"t" * tombstone
    store[key] = value
    return key[1:] + value


def kv(key):
    return b"\x0a" + bytes([len(key)]) + key


def test_hash_kv_covers_revisions_and_skips_applied_records(cold):
    store = cold.engine.store
    covered = [put_item(store, main, kv(b"a%d" % main)) for main in range(2, 5)]
    store[buckets.KEY + (4).to_bytes(8, "big") + b"\xff"] = b"applied"
    put_item(store, 5, kv(b"later"))
    request = rpc_pb2.HashKVRequest(revision=4).SerializeToString()
    _, (status, reply) = finish(cold.call(rpc_id("Maintenance", "HashKV"), request))
    response = rpc_pb2.HashKVResponse.FromString(reply)
    assert status == 0 and response.hash == crc32c.update(0, b"key" + b"".join(covered))
    assert (response.compact_revision, response.hash_revision, cold.engine.pins) == (-1, 4, 0)


def test_hash_kv_under_compaction_takes_kept_revisions_only(cold):
    store, cold.engine.compacted_revision = cold.engine.store, 3
    put_item(store, 2, kv(b"gone"))
    kept = put_item(store, 2, kv(b"kept"), sub=1)
    put_item(store, 3, kv(b"kept"), tombstone=True)
    later = put_item(store, 4, kv(b"gone"))
    _, (_, reply) = finish(cold.call(rpc_id("Maintenance", "HashKV"), b""))
    assert rpc_pb2.HashKVResponse.FromString(reply).hash == crc32c.update(0, b"key" + kept + later)


@pytest.mark.parametrize("revision, symbol", [(2, "COMPACTED"), (6, "FUTURE_REV")])
def test_hash_kv_outside_the_history(cold, revision, symbol):
    cold.engine.compacted_revision = 3
    request = rpc_pb2.HashKVRequest(revision=revision).SerializeToString()
    assert finish(cold.call(rpc_id("Maintenance", "HashKV"), request))[1] == (errors.ID[symbol], b"")


def test_long_hashes_give_way_between_slices(cold):
    for main in range(2, 2002):
        put_item(cold.engine.store, main, kv(b"k"))
    slices, _ = finish(cold.call(rpc_id("Maintenance", "Hash"), b""))
    assert slices >= 3


def test_defragment_only_asks_for_background_work(cold):
    assert cold.call(rpc_id("Maintenance", "Defragment"), b"") == (0, b"")
    assert cold.engine.compactions == 1
