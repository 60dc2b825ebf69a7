"""The consensus process on its rings: what it does with proposals and reads, and in which order."""

import os
import random
import signal
import time
from collections import Counter

import pytest

from etcdfast._ext.ring import KINDS, NOBODY
from etcdfast.api import errors, rpcs
from etcdfast.api.pb import raft_internal_pb2, rpc_pb2
from etcdfast.formats import wal
from tests.consensus.member import Member, make_config
from tests.harness.wait import wait_until

ENTRY, READ, REFUSE, HARD = (KINDS[name] for name in ("ENTRY", "READ", "REFUSE", "HARD"))
RPC = {rpc.method: rpc.id for rpc in rpcs.RPCS}


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path / "data")


def put(key, value=b"v"):
    return rpc_pb2.PutRequest(key=key, value=value).SerializeToString()


def unwrapped(record):
    request = raft_internal_pb2.InternalRaftRequest.FromString(record["payload"])
    # Nothing was added to what etcd would have marshalled.
    assert request.SerializeToString() == record["payload"]
    return request


def test_a_first_start_shows_apply_the_entries_of_an_etcd(config):
    with Member(config) as member:
        records = member.start()
        assert [(r["kind"], r["index"], r["term"], r["method"]) for r in records] == [
            (ENTRY, 1, 1, 1),  # the configuration of the first member
            (ENTRY, 2, 2, 0),  # the leader's empty entry
            (ENTRY, 3, 2, 0),  # attributes
            (ENTRY, 4, 2, 0),  # cluster version
            (HARD, 4, 2, 0),
        ]
        assert all(r["frontend"] == NOBODY for r in records)
        assert records[1]["payload"] == b""
        attributes = unwrapped(records[2])
        assert attributes.cluster_member_attr_set.member_ID == member.word("member_id")
        assert attributes.cluster_member_attr_set.member_attributes.name == "default"
        assert list(attributes.cluster_member_attr_set.member_attributes.client_urls) == ["http://localhost:2379"]
        assert unwrapped(records[3]).cluster_version_set.ver == "3.7.0"
        assert attributes.header.ID >> 48 == member.word("member_id") & 0xFFFF
        assert member.told() == {"ready": "consensus"}
        assert member.word("term") == 2
        assert member.word("leader") == member.word("member_id")
        assert member.word("ready") == 1


def test_a_first_start_on_a_slow_disk_writes_the_same_entries(config):
    with Member(config, wal={"faults": "fdatasync:1+:delay=250000"}) as member:  # longer than a tick
        records = member.start()
        assert [(r["kind"], r["index"]) for r in records] == [*((ENTRY, index) for index in range(1, 5)), (HARD, 4)]


def test_requests_are_wrapped_and_find_their_way_back(config):
    messages = {
        "Put": put(b"k"),
        "DeleteRange": rpc_pb2.DeleteRangeRequest(key=b"k").SerializeToString(),
        "Txn": rpc_pb2.TxnRequest(
            success=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"k"))]
        ).SerializeToString(),
        "Compact": rpc_pb2.CompactionRequest(revision=3).SerializeToString(),
        "LeaseGrant": rpc_pb2.LeaseGrantRequest(TTL=5, ID=9).SerializeToString(),
        "LeaseRevoke": rpc_pb2.LeaseRevokeRequest(ID=9).SerializeToString(),
        "Alarm": rpc_pb2.AlarmRequest(action=1, alarm=1).SerializeToString(),
    }
    fields = {
        "Put": "put", "DeleteRange": "delete_range", "Txn": "txn", "Compact": "compaction",
        "LeaseGrant": "lease_grant", "LeaseRevoke": "lease_revoke", "Alarm": "alarm",
    }  # fmt: skip
    with Member(config) as member:
        first = member.start()[-1]["index"] + 1
        for stream, (name, message) in enumerate(messages.items(), 1):
            assert member.propose(message, method=RPC[name], slot=4, generation=5, stream=stream, flags=1)
        ids = []
        for stream, (name, message) in enumerate(messages.items(), 1):
            record = member.take()
            assert (record["kind"], record["index"]) == (ENTRY, first + stream - 1)
            asker = {key: record[key] for key in ("frontend", "slot", "generation", "stream", "flags")}
            assert asker == {"frontend": 0, "slot": 4, "generation": 5, "stream": stream, "flags": 1}
            request = unwrapped(record)
            assert getattr(request, fields[name]).SerializeToString() == message
            ids.append(request.header.ID)
        assert ids == list(range(ids[0], ids[0] + len(ids)))


def test_thousands_of_proposals_of_several_frontends_keep_their_order(config):
    chance = random.Random(42)
    total = 6000
    with Member(config, frontends=3) as member:
        first = member.start()[-1]["index"] + 1
        waiting = {frontend: [] for frontend in range(3)}
        sent, seen = 0, 0
        while seen < total:
            while sent < total and sent - seen < 2000:
                frontend = chance.randrange(3)
                data = put(b"%d" % sent, chance.randbytes(chance.choice((0, 5, 300, 4000))))
                if not member.propose(data, frontend=frontend, stream=sent):
                    break
                waiting[frontend].append((sent, data))
                sent += 1
            record = member.take()
            assert record["index"] == first + seen
            stream, data = waiting[record["frontend"]].pop(0)
            assert record["stream"] == stream
            assert unwrapped(record).put.SerializeToString() == data
            seen += 1
        assert member.word("durable_index") >= first + total - 1
        wait_until(lambda: member.word("handed_index") == first + total - 1, "the status word")


def test_proposals_of_apply_are_taken_and_nobody_waits_for_them(config):
    with Member(config) as member:
        member.start()
        alarm = rpc_pb2.AlarmRequest(action=1, alarm=1).SerializeToString()
        member.into["ac"].push(KINDS["PROPOSE"], alarm, method=RPC["Alarm"])
        record = member.take()
        assert record["frontend"] == NOBODY
        assert unwrapped(record).alarm.action == 1


def test_size_limit_is_that_of_the_wrapped_request(config):
    limit = 10_000
    config = config._replace(max_request_bytes=limit)
    with Member(config) as member:
        member.start()
        member.propose(put(b"probe"))
        record = member.take()
        header = len(record["payload"]) - 2 - len(put(b"probe"))
        # The put's tag and two-byte length, its key field, the value's tag and two-byte length.
        fits = limit - header - 3 - 3 - 3
        member.propose(put(b"k", b"x" * fits), stream=8)
        record = member.take()
        assert (record["kind"], len(record["payload"])) == (ENTRY, limit)
        member.propose(put(b"k", b"x" * (fits + 1)), stream=9, slot=3, generation=2)
        member.propose(put(b"after"), stream=10)
        refused, accepted = member.take(), member.take()
        assert refused["kind"] == REFUSE
        assert refused["status"] == errors.ID["REQUEST_TOO_LARGE"]
        assert (refused["frontend"], refused["slot"], refused["generation"], refused["stream"]) == (0, 3, 2, 9)
        assert (accepted["kind"], accepted["stream"]) == (ENTRY, 10)
        assert accepted["index"] == record["index"] + 1


def test_refused_requests_do_not_use_up_the_table_of_waiters(config):
    """A request in the log keeps its waiter, however many are refused before it is committed."""
    config = config._replace(max_request_bytes=200)
    refused = 40_000  # more than the table has places
    with Member(config, wal={"faults": "fdatasync:12+:delay=1500000"}) as member:
        member.start()
        while member.word("wal_fsync_count") < 11:
            assert member.propose(put(b"k"), stream=5)
            assert member.take()["kind"] == ENTRY
        member.propose(put(b"k"), stream=7)
        wait_until(lambda: member.word("last_index") > member.word("durable_index"), "a sync under way")
        asked = 0
        answered = []

        def send(payload, stream):
            while not member.propose(payload, stream=stream):
                while (record := member.out.pop()) is not None:
                    answered.append(record)

        for number in range(refused):
            if number % 127 == 0:  # 128 ids in a turn: those of two accepted ones may lie one table apart
                send(put(b"k"), 11)
                asked += 1
            send(put(b"k", bytes(200)), 9)
        assert all(record["kind"] == REFUSE for record in answered), "the sync ended before the test came to its point"
        while len(answered) < refused + 1 + asked:
            answered.append(member.take())
        streams = Counter(record["stream"] for record in answered)
        assert streams == {7: 1, 9: refused, 11: asked}, "0 is the stream of an answer that nobody gets"


def test_what_cannot_be_proposed_is_refused(config):
    with Member(config) as member:
        member.start()
        member.propose(b"", method=RPC["Snapshot"], stream=5)
        record = member.take()
        assert (record["kind"], record["stream"]) == (REFUSE, 5)
        assert record["status"] == errors.ID["UNIMPLEMENTED"]


def test_a_proposal_past_its_deadline_is_not_logged(config):
    with Member(config) as member:
        last = member.start()[-1]["index"]
        now = time.monotonic_ns()
        member.propose(put(b"late"), term=now - 1, stream=1)
        member.propose(put(b"in time"), term=now + 10**12, stream=2)
        record = member.take()
        assert (record["stream"], record["index"]) == (2, last + 1)


def test_a_read_lies_behind_what_was_committed_and_does_not_wait_for_the_disk(config):
    # From the twentieth sync on the disk takes a second: a read must overtake the write that waits for it.
    with Member(config, wal={"faults": "fdatasync:20+:delay=1000000"}) as member:
        last = member.start()[-1]["index"]
        synced = 0
        while member.word("wal_fsync_count") < 19:
            synced += 1
            member.propose(put(b"k"), stream=synced)
            last = member.take()["index"]
        member.propose(put(b"slow"), stream=1000)
        wait_until(lambda: member.word("last_index") == last + 1, "the slow write in the log")
        member.read(b"range", stream=1001, slot=6)
        record = member.take()
        assert (record["kind"], record["stream"], record["slot"]) == (READ, 1001, 6)
        assert record["payload"] == b"range"
        record = member.take()
        assert (record["kind"], record["stream"], record["index"]) == (ENTRY, 1000, last + 1)
        member.read(b"", stream=1002)
        record = member.take()
        assert (record["kind"], record["stream"]) == (READ, 1002)


def test_a_stalled_apply_holds_back_everything_and_loses_nothing(config):
    chance = random.Random(7)
    sizes = [500] * 60 + [chance.choice((10, 500, 3000)) for _ in range(2000)]
    with Member(config, ring_bytes={"ca": 8192, "f0c": 65536}) as member:
        first = member.start()[-1]["index"] + 1
        sent = 0
        while sent < 60:
            assert member.propose(put(b"%d" % sent, bytes(sizes[sent])), stream=sent)
            sent += 1
        # Apply takes nothing, and `ca` cannot hold twenty of them: from here on the hand-over stands still.
        wait_until(lambda: member.word("commit_index") >= first + 20, "twenty committed entries")
        held = member.word("last_index")
        # So nothing more is drained, and the request ring fills.
        while member.propose(put(b"%d" % sent, bytes(sizes[sent])), stream=sent):
            sent += 1
        assert sent < 60 + 65536 // 40
        assert member.word("last_index") == held
        assert member.word("handed_index") < first + 20
        for seen in range(len(sizes)):
            record = member.take()
            assert (record["index"], record["stream"]) == (first + seen, seen)
            assert len(unwrapped(record).put.value) == sizes[seen]
            while sent < len(sizes) and member.propose(put(b"%d" % sent, bytes(sizes[sent])), stream=sent):
                sent += 1


def test_reads_wait_for_room_in_their_order(config):
    with Member(config, ring_bytes={"ca": 4096, "f0c": 65536}) as member:
        member.start()
        kinds = ["read" if number % 3 else "write" for number in range(300)]
        sent = 0
        for number in range(300):
            while sent < 300 and (
                member.read(bytes(1000), stream=sent)
                if kinds[sent] == "read"
                else member.propose(put(b"k"), stream=sent)
            ):
                sent += 1
            record = member.take()
            if record["kind"] == READ:
                assert kinds[record["stream"]] == "read"
            else:
                assert kinds[record["stream"]] == "write"
            if number == 299:
                assert sent == 300


def test_a_record_nobody_writes_ends_the_process_with_one_line(config):
    with Member(config) as member:
        member.start()
        member.into["f0c"].push(99, b"")
        assert member.wait() == 70
        assert '"level":"fatal"' in member.log_text()
        assert "a ring holds a record that no process of this member writes" in member.log_text()


def test_sigterm_makes_everything_durable_and_hands_it_over(config):
    with Member(config) as member:
        first = member.start()[-1]["index"] + 1
        for number in range(500):
            assert member.propose(put(b"%d" % number), stream=number)
        # All of it has arrived before the stop.
        wait_until(lambda: member.word("last_index") == first + 499, "500 entries in the log")
        assert member.stop() == 0
        records = [member.out.pop() for _ in range(500)]
        assert [r["index"] for r in records] == list(range(first, first + 500))
        assert member.out.pop() is None
    found = wal.read(config.wal_path)
    assert found.position[2] == first + 499
    assert found.state[2] == first + 499, "a clean stop leaves the commit index in the last hard state"


def test_sigterm_before_the_store_is_open_stops_cleanly(config):
    with Member(config, opened=False) as member:
        wait_until(lambda: member.word("member_id"), "the member id")
        assert member.stop() == 0


def test_the_end_of_the_supervisor_ends_the_process(config):
    with Member(config) as member:
        member.start()
        os.close(member.life_write)
        member.life_write = os.dup(member.life_read)
        assert member.wait() == 70


def process_state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(") ")[2][0]


def test_a_stopped_process_loses_nothing(config):
    with Member(config) as member:
        first = member.start()[-1]["index"] + 1
        for round_number in range(5):
            member.process.send_signal(signal.SIGSTOP)
            wait_until(lambda: process_state(member.process.pid) == "T", "the process to stop")
            for number in range(100):
                assert member.propose(put(b"k"), stream=round_number * 100 + number)
            member.process.send_signal(signal.SIGCONT)
            for number in range(100):
                record = member.take()
                assert record["stream"] == round_number * 100 + number
                assert record["index"] == first + round_number * 100 + number


def test_ticks_write_the_commit_index_of_an_idle_member(config):
    with Member(config) as member:
        member.start()
        member.propose(put(b"k"))
        last = member.take()["index"]
        wait_until(lambda: wal.read(config.wal_path).state[2] == last, "the commit index in the log")


def test_memory_is_small(config):
    with Member(config) as member:
        member.start()
        for number in range(20000):
            while not member.propose(put(b"%d" % number, bytes(256)), stream=number):
                assert member.take()["kind"] == ENTRY
        with open(f"/proc/{member.process.pid}/status") as file:
            words = dict(line.split(":", 1) for line in file)
        assert int(words["RssAnon"].split()[0]) < 28 * 1024
        assert int(words["VmRSS"].split()[0]) < 48 * 1024  # asyncio of the peer thread has 8 MB of it
