"""Apply as a follower and as the leader that followers ask: FORWARD, FORWARDED, PEER, MEMBERS through the real loop."""

import json
import time

import pytest

from etcdfast._ext.ring import CONSENSUS_WORDS
from etcdfast.api import errors
from etcdfast.api.pb import lease_pb2, rpc_pb2
from etcdfast.apply import buckets
from etcdfast.apply.cold import UnknownEntry
from etcdfast.cluster import entries
from etcdfast.cluster import membership as rules
from etcdfast.cluster.membership import Member, Membership
from etcdfast.formats.raftpb import encode_conf_change
from tests.apply.rig import KINDS, MEMBER, RPC, TERM
from tests.apply.test_lease_loop import LeaseLoop, ended, symbol, ttl_of

LEADER = 5
KEEP_ALIVE, TIME_TO_LIVE, HASH_KV = RPC["LeaseKeepAlive"], RPC["LeaseTimeToLive"], RPC["HashKV"]


class ClusterLoop(LeaseLoop):
    """`forwarded`: FORWARD records not answered yet; `replies`: PEER_REPLYs by token."""

    def __init__(self, path, leader, **config):
        super().__init__(path, lead=False, **config)
        self.forwarded = []
        self.replies = {}
        self.lead(leader)

    def look(self):
        """Settle; the answers by stream."""
        found = self.settle()
        while (record := self.ac.pop()) is not None:
            if record["kind"] == KINDS["FORWARD"]:
                self.forwarded.append(record)
            elif record["kind"] == KINDS["PEER_REPLY"]:
                assert record["index"] not in self.replies
                self.replies[record["index"]] = record
            else:
                assert record["kind"] == KINDS["PROPOSE"]
        return found

    def told(self, record, message=None, symbol="NONE"):
        payload = message.SerializeToString() if message is not None else b""
        status = errors.ID[symbol]
        assert self.ca.push(KINDS["FORWARDED"], payload, method=record["method"], slot=record["slot"], status=status)

    def peer(self, token, method, request):
        payload = request if isinstance(request, bytes) else request.SerializeToString()
        assert self.ca.push(KINDS["PEER"], payload, method=method, index=token)

    def reply(self, token, deadline_seconds=10.0):
        end = time.monotonic() + deadline_seconds
        while token not in self.replies:
            assert time.monotonic() < end, "no answer for the other member"
            self.look()
        record = self.replies[token]
        return errors.ERRORS[record["status"]].symbol, record["payload"]

    def wait_for(self, condition, deadline_seconds=10.0):
        end = time.monotonic() + deadline_seconds
        while not condition():
            assert time.monotonic() < end
            self.look()
            time.sleep(0.002)


@pytest.fixture
def follower(tmp_path):
    rig = ClusterLoop(tmp_path / "store", LEADER)
    yield rig
    rig.close()


@pytest.fixture
def leader(tmp_path):
    rig = ClusterLoop(tmp_path / "store", MEMBER)
    yield rig
    rig.close()


def kept(lease, ttl):
    return rpc_pb2.LeaseKeepAliveResponse(ID=lease, TTL=ttl)


# ---- a follower asks ----


def test_keep_alives_go_to_the_leader_one_at_a_time(follower):
    follower.grant(1, 60)
    for lease in (1, 2, 3):
        follower.keep_alive(501, lease)
    follower.keep_alive(503, 4)
    follower.end(501)
    assert follower.look() == {}
    assert [rpc_pb2.LeaseKeepAliveRequest.FromString(r["payload"]).ID for r in follower.forwarded] == [1, 4]
    assert all(r["method"] == KEEP_ALIVE and r["term"] for r in follower.forwarded)
    first, other = follower.forwarded
    follower.forwarded.clear()
    follower.told(first, kept(1, 60))
    assert [ttl_of(record) for record in follower.look()[501]] == [(1, 60)]
    follower.told(other, symbol="LEASE_NOT_FOUND")
    assert [ttl_of(record) for record in follower.look()[503]] == [(4, 0)]
    follower.told(follower.forwarded.pop(), kept(2, 61))
    assert [ttl_of(record) for record in follower.look()[501]] == [(2, 61)]
    follower.told(follower.forwarded.pop(), symbol="LEASE_NOT_FOUND")
    found = follower.look()[501]
    assert ttl_of(found[0]) == (3, 0) and ended(found[1]) == "end"
    assert not follower.forwarded


def test_the_header_is_this_members_and_of_when_it_was_asked(follower):
    follower.put(b"a")
    follower.keep_alive(501, 1)
    follower.look()
    follower.put(b"b")
    answer = kept(1, 60)
    answer.header.member_id = LEADER  # a member that fills it in after all
    follower.told(follower.forwarded.pop(), answer)
    header = rpc_pb2.LeaseKeepAliveResponse.FromString(follower.look()[501][0]["payload"]).header
    assert (header.member_id, header.raft_term, header.revision) == (MEMBER, TERM, 2)


def test_an_error_of_the_leader_is_asked_again(follower):
    follower.keep_alive(501, 1)
    follower.look()
    for error in ("NOT_LEADER", "UNHEALTHY", "TIMEOUT"):
        follower.told(follower.forwarded.pop(), symbol=error)
        assert 501 not in follower.look()
        follower.wait_for(lambda: follower.forwarded)
    follower.told(follower.forwarded.pop(), kept(1, 60))
    assert [ttl_of(record) for record in follower.look()[501]] == [(1, 60)]


@pytest.mark.parametrize("known, error", [(LEADER, "TIMEOUT"), (0, "NO_LEADER")])
def test_who_waits_too_long_is_told_why(tmp_path, known, error):
    rig = ClusterLoop(tmp_path / "store", known, request_timeout_seconds=0.3)
    rig.keep_alive(501, 1)
    rig.keep_alive(501, 2)
    left = rig.read("LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=1))
    found = {}

    def told():
        for stream, records in rig.look().items():
            found.setdefault(stream, []).extend(records)
        return 501 in found and left in found

    rig.wait_for(told)
    assert [ended(record) for record in found[501]] == [error]
    assert [symbol(record) for record in found[left]] == [error]
    # An answer that comes after all finds nobody, and the stream's next life is one of its own.
    for record in rig.forwarded:
        rig.told(record, kept(1, 60))
    assert rig.look() == {}
    rig.close()


def test_calls_follow_the_leader(follower):
    """Nobody leads, then another member, then this one: what waits goes where the answer is."""
    follower.grant(1, 60)
    follower.lead(leader=0)
    follower.keep_alive(501, 1)
    left = follower.read("LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=1))
    assert follower.look() == {} and not follower.forwarded
    follower.lead(leader=9)
    follower.look()
    assert sorted(r["method"] for r in follower.forwarded) == [KEEP_ALIVE, TIME_TO_LIVE]
    for record in follower.forwarded:
        follower.told(record, symbol="NOT_LEADER")
    follower.lead(leader=MEMBER)
    found = {}
    follower.wait_for(lambda: found.update(follower.settle()) or {501, left} <= found.keys())
    assert [ttl_of(record) for record in found[501]] == [(1, 60)]
    assert rpc_pb2.LeaseTimeToLiveResponse.FromString(found[left][0]["payload"]).grantedTTL == 60


def test_time_to_live_of_the_leader(follower):
    left = follower.read("LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=7, keys=True))
    assert left not in follower.look()
    answer = rpc_pb2.LeaseTimeToLiveResponse(ID=7, TTL=55, grantedTTL=60, keys=[b"b", b"a"])
    answer.header.SetInParent()
    follower.told(follower.forwarded.pop(), answer)
    (record,) = follower.look()[left]
    found = rpc_pb2.LeaseTimeToLiveResponse.FromString(record["payload"])
    assert (found.ID, found.TTL, found.grantedTTL, list(found.keys)) == (7, 55, 60, [b"b", b"a"])
    assert found.header.member_id == MEMBER and found.header.revision == 1


def test_time_to_live_of_a_lease_the_leader_does_not_know(follower):
    left = follower.read("LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=7))
    follower.look()
    follower.told(follower.forwarded.pop(), symbol="LEASE_NOT_FOUND")
    (record,) = follower.look()[left]
    found = rpc_pb2.LeaseTimeToLiveResponse.FromString(record["payload"])
    assert (record["status"], found.ID, found.TTL, found.grantedTTL) == (0, 7, -1, 0)


def test_a_long_answer_of_the_leader_goes_in_parts(follower):
    keys = [b"%06d" % i * 4 for i in range(5000)]
    left = follower.read("LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=7, keys=True))
    follower.look()
    follower.told(follower.forwarded.pop(), rpc_pb2.LeaseTimeToLiveResponse(ID=7, TTL=5, grantedTTL=6, keys=keys))
    records = follower.look()[left]
    data = b"".join(record["payload"] for record in records[1:-1])
    assert list(rpc_pb2.LeaseTimeToLiveResponse.FromString(data).keys) == keys


def test_a_call_taken_back_leaves_nothing_behind(follower):
    follower.keep_alive(501, 1)
    left = follower.read("LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=1))
    follower.look()
    follower.end(501, "CANCEL")
    assert follower.f0a.push(KINDS["CANCEL"], method=TIME_TO_LIVE, frontend=0, slot=7, generation=3, stream=left)
    follower.look()
    for record in follower.forwarded:
        follower.told(record, kept(1, 60))
    follower.forwarded.clear()
    assert follower.look() == {}
    follower.lead(leader=MEMBER)
    assert follower.look() == {}


def test_garbage_from_the_leader_is_no_answer(follower):
    follower.keep_alive(501, 1)
    follower.look()
    record = follower.forwarded.pop()
    assert follower.ca.push(KINDS["FORWARDED"], b"\x12\xff", method=KEEP_ALIVE, slot=record["slot"])
    assert 501 not in follower.look()
    follower.wait_for(lambda: follower.forwarded)


def test_a_full_ring_only_delays(tmp_path):
    rig = ClusterLoop(tmp_path / "store", LEADER, ring_bytes=8192)
    for stream in range(501, 901, 2):
        rig.keep_alive(stream, stream)
        rig.turn()
    answered = {}

    def all_answered():
        for record in rig.forwarded:
            lease = rpc_pb2.LeaseKeepAliveRequest.FromString(record["payload"]).ID
            rig.told(record, kept(lease, lease))
            answered.update(rig.settle())
        rig.forwarded.clear()
        answered.update(rig.look())
        return len(answered) == 200

    rig.wait_for(all_answered)
    assert all(ttl_of(records[0]) == (stream, stream) for stream, records in answered.items())
    rig.close()


# ---- a follower is asked ----


def test_a_follower_says_that_it_does_not_lead(follower):
    follower.peer(1, KEEP_ALIVE, rpc_pb2.LeaseKeepAliveRequest(ID=1))
    follower.peer(2, TIME_TO_LIVE, rpc_pb2.LeaseTimeToLiveRequest(ID=1))
    assert follower.reply(1) == ("NOT_LEADER", b"not a primary lessor")
    assert follower.reply(2) == ("LEADER_CHANGED", b"not a primary lessor")


# ---- the leader is asked ----


def test_the_leader_keeps_alive_for_others(leader):
    leader.grant(7, 60)
    leader.peer(1 << 40 | 3, KEEP_ALIVE, rpc_pb2.LeaseKeepAliveRequest(ID=7))
    leader.peer(2, KEEP_ALIVE, rpc_pb2.LeaseKeepAliveRequest(ID=8))
    leader.peer(4, KEEP_ALIVE, b"\x08")
    assert leader.reply(1 << 40 | 3) == ("NONE", b"\x10\x07\x18\x3c")  # no header, as etcd
    assert leader.reply(2) == ("LEASE_NOT_FOUND", b"lease not found")
    assert leader.reply(4)[0] == "UNKNOWN"


def test_the_leader_tells_others_the_time_left(leader):
    leader.grant(7, 60)
    leader.put(b"k", lease=7)
    leader.peer(1, TIME_TO_LIVE, rpc_pb2.LeaseTimeToLiveRequest(ID=7, keys=True))
    leader.peer(2, TIME_TO_LIVE, rpc_pb2.LeaseTimeToLiveRequest(ID=8))
    status, body = leader.reply(1)
    assert status == "NONE" and body.startswith(b"\x0a") and b"\x0a\x00\x10\x07" in body[:8]
    found = lease_pb2.LeaseInternalResponse.FromString(body).LeaseTimeToLiveResponse
    assert (found.ID, found.grantedTTL, list(found.keys)) == (7, 60, [b"k"]) and found.TTL in (59, 60)
    assert found.HasField("header") and not found.header.member_id
    assert leader.reply(2) == ("LEASE_NOT_FOUND", b"lease not found")


def test_another_member_waits_for_a_lease_on_its_way_out(leader):
    leader.grant(1, 1)
    end = time.monotonic() + 10
    while (record := leader.ac.pop()) is None:
        assert time.monotonic() < end
        time.sleep(0.005)
        leader.turn()
    leader.peer(1, KEEP_ALIVE, rpc_pb2.LeaseKeepAliveRequest(ID=1))
    leader.look()
    assert not leader.replies
    leader.commit(record["method"], record["payload"])
    assert leader.reply(1) == ("LEASE_NOT_FOUND", b"lease not found")


def test_who_waits_at_a_leader_that_resigns_is_told(leader):
    leader.grant(1, 1)
    end = time.monotonic() + 10
    while leader.ac.pop() is None:
        assert time.monotonic() < end
        time.sleep(0.005)
        leader.turn()
    leader.peer(1, KEEP_ALIVE, rpc_pb2.LeaseKeepAliveRequest(ID=1))
    leader.look()
    leader.lead(leader=LEADER)
    assert leader.reply(1)[0] == "NOT_LEADER"


def test_hash_kv_for_another_member(leader):
    for i in range(3):
        leader.put(b"k%d" % i, b"v")
    own = leader.call("HashKV", rpc_pb2.HashKVRequest(revision=3)).message
    leader.peer(1, HASH_KV, rpc_pb2.HashKVRequest(revision=3))
    leader.peer(2, HASH_KV, rpc_pb2.HashKVRequest(revision=9))
    status, body = leader.reply(1)
    assert status == "NONE"
    assert json.loads(body) == {
        "header": {"revision": 4}, "hash": own.hash, "compact_revision": -1, "hash_revision": 3
    }  # fmt: skip
    assert leader.reply(2) == ("FUTURE_REV", b"mvcc: required revision is a future revision")


# ---- leadership back and forth ----


def test_a_lease_lives_on_through_changes_of_the_leader(tmp_path):
    """Each new leader gives the whole TTL and an election timeout on top; nobody else lets leases end."""
    rig = ClusterLoop(tmp_path / "store", MEMBER)
    rig.grant(1, 1)
    born = time.monotonic()
    for other in (LEADER, 0, LEADER):
        rig.lead(leader=other)
        rig.look()
    while time.monotonic() < born + 1.5:
        rig.turn()
        assert rig.ac.pop() is None, "a follower let a lease end"
        time.sleep(0.01)
    promoted = time.monotonic()
    rig.lead(leader=MEMBER)
    rig.proposed()
    assert time.monotonic() - promoted > 1.1  # TTL and election timeout (0.1 s in this rig)
    rig.close()


def test_the_same_term_promotes_once(leader):
    leader.grant(1, 60)
    leader.lead()
    leader.lead()
    assert leader.query("LeaseTimeToLive", ID=1).TTL in (59, 60)  # no election timeout on top


# ---- members ----


def test_members_are_taken_from_consensus(leader):
    cluster = Membership(
        [Member(MEMBER, "m0", ("http://h:1",), ("http://c:1",)), Member(3, "", ("http://h:3",), (), True)], [9], "3.5.0"
    )
    assert leader.ca.push(KINDS["MEMBERS"], cluster.to_json().encode())
    leader.look()
    store = leader.process.store
    assert store.meta[buckets.MEMBERS + b"3"] == b'{"id":3,"peerURLs":["http://h:3"],"isLearner":true}'
    assert store.meta[buckets.MEMBERS_REMOVED + b"9"] == b"removed"
    assert json.loads(store.meta[buckets.CONF_STATE]) == {"voters": [MEMBER], "learners": [3], "auto_leave": False}
    assert store.meta[buckets.CLUSTER_VERSION] == b"3.5.0"


def test_conf_changes_answer_who_asked(leader):
    changes = [
        (rules.bootstrap_change(MEMBER, ["http://h:1"], "m0"), "MemberAdd"),
        (rules.add_change(11, 3, ["http://h:3"], True), "MemberAdd"),
        (rules.promote_change(12, 3), "MemberPromote"),
        (rules.update_change(13, 3, ["http://h:4"]), "MemberUpdate"),
        (rules.remove_change(14, 3), "MemberRemove"),
        (rules.remove_change(15, 3), "MEMBER_NOT_FOUND"),
        (rules.add_change(16, 4, ["http://h:1"]), "PEER_URL_EXIST"),
    ]
    seen = []
    for change, expected in changes:
        stream = leader.entry(encode_conf_change(change), entry_type=1)
        (record,) = leader.look()[stream]
        if record["status"]:
            assert symbol(record) == expected
            continue
        answer = getattr(rpc_pb2, f"{expected}Response").FromString(record["payload"])
        assert (answer.header.member_id, answer.header.raft_term, answer.header.revision) == (MEMBER, TERM, 0)
        seen.append([(m.ID, list(m.peerURLs), m.isLearner) for m in answer.members])
        if expected == "MemberAdd":
            assert answer.member.ID == change.node_id
    own = (MEMBER, ["http://h:1"], False)
    assert seen == [
        [own],
        [(3, ["http://h:3"], True), own],
        [(3, ["http://h:3"], False), own],
        [(3, ["http://h:4"], False), own],
        [own],
    ]


def test_what_consensus_carried_out_is_answered(leader):
    leader.entry(encode_conf_change(rules.bootstrap_change(MEMBER, ["http://h:1"], "m0")), entry_type=1, asked=False)
    promote = leader.read("MemberPromote", rpc_pb2.MemberPromoteRequest(ID=3))
    move = leader.read("MoveLeader", rpc_pb2.MoveLeaderRequest(targetID=3))
    found = leader.look()
    answer = rpc_pb2.MemberPromoteResponse.FromString(found[promote][0]["payload"])
    assert [m.ID for m in answer.members] == [MEMBER] and answer.header.raft_term == TERM
    assert found[move][0]["status"] == 0 and found[move][0]["payload"] == b""


def test_status_says_learner_and_leader(leader):
    leader.entry(encode_conf_change(rules.add_change(1, MEMBER, ["http://h:1"], True)), entry_type=1, asked=False)
    leader.consensus_page[CONSENSUS_WORDS["leader"]] = LEADER
    leader.look()
    status = leader.call("Status", rpc_pb2.StatusRequest()).message
    assert status.isLearner and status.leader == LEADER and not status.errors


def test_only_the_leader_compacts_by_itself(leader):
    assert not leader.process.auto_compaction.paused
    leader.lead(leader=LEADER)
    assert leader.process.auto_compaction.paused
    leader.lead(leader=MEMBER)
    assert not leader.process.auto_compaction.paused


@pytest.mark.parametrize("v2", [False, True])
def test_what_members_publish_passes_between_clients_entries(leader, v2):
    """Names and versions of 3.4 and 3.5 are other messages than requests: the loop must tell them apart."""
    leader.entry(encode_conf_change(rules.bootstrap_change(MEMBER, ["http://h:1"], "m0")), entry_type=1, asked=False)
    leader.propose("Put", rpc_pb2.PutRequest(key=b"a"), asked=False)
    leader.entry(entries.attributes(1 << 63 | 5, MEMBER, "näme", ["http://c:1"], v2), asked=False)
    leader.entry(entries.cluster_version(1 << 63 | 6, "3.5.0", v2), asked=False)
    assert leader.put(b"b").message.header.revision == 3
    listed = leader.read("MemberList", rpc_pb2.MemberListRequest(linearizable=True))
    (member,) = rpc_pb2.MemberListResponse.FromString(leader.look()[listed][0]["payload"]).members
    assert (member.name, list(member.clientURLs)) == ("näme", ["http://c:1"])
    assert leader.process.store.meta[buckets.CLUSTER_VERSION] == b"3.5.0"


def test_an_entry_of_joint_consensus_stops_the_member(leader):
    leader.entry(b"", entry_type=2)
    with pytest.raises(UnknownEntry, match="type 2"):
        leader.look()


def test_other_members_alarms(leader):
    def alarm(action, member, kind):
        request = rpc_pb2.AlarmRequest(action=action, memberID=member, alarm=kind)
        answer = leader.call("Alarm", request).message
        return [(a.memberID, a.alarm) for a in answer.alarms]

    assert alarm(1, LEADER, 1) == [(LEADER, 1)]
    assert alarm(1, MEMBER, 1) == [(MEMBER, 1)]
    assert leader.put(b"k", b"v").status == "NO_SPACE"
    assert alarm(2, MEMBER, 1) == [(MEMBER, 1)]
    assert leader.put(b"k", b"v").status == "NO_SPACE"  # the other one still has none
    assert alarm(2, LEADER, 1) == [(LEADER, 1)]
    assert leader.put(b"k", b"v").status == ""
    assert alarm(1, 0, 2) == [(0, 2)]  # of the whole cluster
    assert leader.put(b"k", b"v").status == "CORRUPT"
    status = leader.call("Status", rpc_pb2.StatusRequest()).message
    assert list(status.errors) == ["memberID:0 alarm:CORRUPT "]
