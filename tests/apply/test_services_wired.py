"""Lock and Election through the real apply loop, rings and store; the test is consensus and frontend."""

import pytest

from etcdfast.api import errors, rpcs
from etcdfast.api.pb import raft_internal_pb2, rpc_pb2, v3election_pb2, v3lock_pb2
from tests.apply.rig import KINDS, RPC, TERM, Rig
from tests.apply.world import COMPACT, DELETE, GRANT, TXN
from tests.harness.wait import wait_until

SELF = 0xFE
NEW_ID = 4
FIELDS = {TXN: "txn", DELETE: "delete_range", GRANT: "lease_grant", COMPACT: "compaction"}


class Wired:
    """`asked[stream]`: the records that answer it, in order."""

    def __init__(self, rig):
        self.rig = rig
        self.records = {}
        self.methods = {}
        self.proposed = []  # records of `ac` not yet committed
        self.log = []

    def step(self):
        """One turn; whether anything happened."""
        worked = self.rig.turn()
        for record in self.rig.take():
            self.records.setdefault(record["stream"], []).append(record)
            if record["kind"] == KINDS["PART"] and self.methods[record["stream"]] != "Observe":
                self.tell("CREDIT", record["stream"], len(record["payload"]))
            worked = True
        while (record := self.rig.ac.pop()) is not None:
            worked = True
            if record["kind"] == KINDS["READ"]:
                self.read(record)
                continue
            assert record["kind"] == KINDS["PROPOSE"]
            self.proposed.append(record)
        return worked

    def read(self, record):
        """A ReadIndex of the services, confirmed at once."""
        assert record["frontend"] == SELF and record["term"]
        assert self.rig.ca.push(KINDS["READ"], method=record["method"], frontend=SELF, slot=record["slot"])

    def turn(self):
        idle = 0
        while idle < 3:
            idle = 0 if self.step() else idle + 1

    def commit(self):
        """Log what is proposed, until nothing more is."""
        self.turn()
        while self.proposed:
            proposed, self.proposed = self.proposed, []
            for record in proposed:
                self.entry(record)
            self.turn()

    def entry(self, record):
        rig = self.rig
        rig.index += 1
        name = FIELDS[record["method"]]
        request = raft_internal_pb2.InternalRaftRequest(header={"ID": rig.index})
        getattr(request, name).ParseFromString(record["payload"])
        if name == "lease_grant" and record["flags"] & NEW_ID:
            request.lease_grant.ID = 0x1000 + rig.index
        self.log.append(name)
        while not rig.ca.push(
            KINDS["ENTRY"],
            request.SerializeToString(),
            frontend=record["frontend"],
            slot=record["slot"],
            generation=record["generation"],
            stream=record["stream"],
            index=rig.index,
            term=TERM,
        ):
            self.step()

    def refuse(self, symbol):
        for record in self.proposed:
            assert self.rig.ca.push(
                KINDS["REFUSE"],
                method=record["method"],
                frontend=record["frontend"],
                slot=record["slot"],
                generation=record["generation"],
                stream=record["stream"],
                status=errors.ID[symbol],
            )
        self.proposed.clear()
        self.turn()

    def ask(self, method, request):
        stream = self.rig.ask(method, request)
        self.methods[stream] = method
        return stream

    def tell(self, kind, stream, size=0):
        """A CREDIT or CANCEL as the frontend writes it."""
        method = RPC[self.methods[stream]]
        assert self.rig.f0a.push(
            KINDS[kind], method=method, frontend=0, slot=7, generation=3, stream=stream, index=size
        )

    def answer(self, stream):
        """(status, text, message) of a unary call, or None while there is none."""
        records = self.records.get(stream)
        if not records or records[-1]["kind"] not in (KINDS["REPLY"], KINDS["END"]):
            return None
        status = records[-1]["status"]
        if status:
            return status, records[-1]["payload"].decode(), None
        if records[0]["kind"] == KINDS["BEGIN"]:
            data = b"".join(record["payload"] for record in records[1:-1])
            assert len(data) == records[0]["index"]
        else:
            data = records[0]["payload"]
        path = next(rpc.path for rpc in rpcs.RPCS if rpc.id == RPC[self.methods[stream]])
        return 0, "", rpcs.message_class(rpcs.BY_PATH[path].response).FromString(data)

    def messages(self, stream):
        """Whole messages of a stream."""
        out, part, size = [], b"", 0
        for record in self.records.get(stream, ()):
            if record["kind"] == KINDS["MESSAGE"]:
                out.append(record["payload"])
            elif record["kind"] == KINDS["BEGIN"]:
                part, size = b"", record["index"]
            elif record["kind"] == KINDS["PART"]:
                part += record["payload"]
                if len(part) == size:
                    out.append(part)
        return [v3election_pb2.LeaderResponse.FromString(data) for data in out]

    def call(self, method, request):
        stream = self.ask(method, request)
        self.commit()
        return self.answer(stream)

    def put(self, key, value=b"", lease=0):
        self.rig.propose("Put", rpc_pb2.PutRequest(key=key, value=value, lease=lease), asked=False)
        self.commit()

    def delete(self, key):
        self.rig.propose("DeleteRange", rpc_pb2.DeleteRangeRequest(key=key), asked=False)
        self.commit()


@pytest.fixture
def wired(tmp_path):
    rig = Rig(tmp_path)
    wired = Wired(rig)
    for lease in (1, 2, 3):
        grant = raft_internal_pb2.InternalRaftRequest(header={"ID": lease}, lease_grant={"ID": lease, "TTL": 1000})
        rig.entry(grant.SerializeToString(), asked=False)
    wired.commit()
    yield wired
    rig.close()


def test_locks_go_round(wired):
    streams = [wired.ask("Lock", v3lock_pb2.LockRequest(name=b"n", lease=lease)) for lease in (1, 2, 3, 0)]
    wired.commit()
    assert wired.answer(streams[0])[2].key == b"n/1"
    assert not any(wired.answer(stream) for stream in streams[1:])
    assert sorted(wired.log) == ["lease_grant", *4 * ["txn"]]
    assert wired.call("Unlock", v3lock_pb2.UnlockRequest(key=b"n/1"))[0] == 0
    answer = wired.answer(streams[1])[2]
    assert answer.key == b"n/2"
    assert answer.header.revision == wired.rig.word("revision") and answer.header.raft_term == TERM
    wired.tell("CANCEL", streams[2])
    wired.commit()
    wired.delete(b"n/2")
    assert wired.answer(streams[2]) is None
    assert wired.answer(streams[3])[2].key.startswith(b"n/10")


def test_a_refused_lock(wired):
    stream = wired.ask("Lock", v3lock_pb2.LockRequest(name=b"n", lease=1))
    wired.turn()
    wired.refuse("NO_LEADER")
    assert wired.answer(stream) == (errors.ID["UNKNOWN"], "etcdserver: no leader", None)


def test_a_lease_that_is_none(wired):
    answer = wired.call("Lock", v3lock_pb2.LockRequest(name=b"n", lease=77))
    assert answer == (errors.ID["UNKNOWN"], "etcdserver: requested lease not found", None)


@pytest.mark.parametrize("size", [100, 60_000, 70_000, 1_200_000])
def test_a_key_with_a_large_value_in_the_line(wired, size):
    """The else branch of the acquiring transaction answers with that value."""
    wired.put(b"n/1", b"x" * size, lease=1)
    assert wired.call("Lock", v3lock_pb2.LockRequest(name=b"n", lease=1))[2].key == b"n/1"
    won = wired.call("Campaign", v3election_pb2.CampaignRequest(name=b"n", lease=1, value=b"x" * size))
    assert won[2].leader.key == b"n/1"
    assert wired.call("Leader", v3election_pb2.LeaderRequest(name=b"n"))[2].kv.value == b"x" * size


def test_a_long_answer_that_is_cancelled_goes_no_further(wired):
    wired.put(b"n/1", b"x" * 1_000_000, lease=1)
    stream = wired.rig.ask("Leader", v3election_pb2.LeaderRequest(name=b"n"))
    wired.methods[stream] = "Observe"  # whose credit is not given by itself
    wired.turn()
    sent = len(wired.records[stream])
    assert wired.records[stream][0]["kind"] == KINDS["BEGIN"]
    wired.methods[stream] = "Leader"
    wired.tell("CANCEL", stream)
    wired.tell("CREDIT", stream, 200_000)
    wired.turn()
    assert len(wired.records[stream]) == sent


def test_a_large_name(wired):
    name = b"n" * 200_000
    assert wired.call("Lock", v3lock_pb2.LockRequest(name=name, lease=1))[2].key == name + b"/1"


def test_observe(wired):
    stream = wired.ask("Observe", v3election_pb2.LeaderRequest(name=b"e"))
    wired.turn()
    values = [b"a", b"b" * 70_000, b"c" * 300_000]
    won = wired.call("Campaign", v3election_pb2.CampaignRequest(name=b"e", lease=1, value=values[0]))[2]
    wired.call("Proclaim", v3election_pb2.ProclaimRequest(leader=won.leader, value=values[1]))
    assert [m.kv.value for m in wired.messages(stream)] == values[:2]
    # 70,000 bytes are more than a stream may have under way.
    wired.call("Proclaim", v3election_pb2.ProclaimRequest(leader=won.leader, value=b"missed"))
    wired.call("Proclaim", v3election_pb2.ProclaimRequest(leader=won.leader, value=values[2]))
    assert len(wired.messages(stream)) == 2
    wired.tell("CREDIT", stream, 70_200)
    wired.turn()
    assert [m.kv.value for m in wired.messages(stream)] == values
    wired.call("Resign", v3election_pb2.ResignRequest(leader=won.leader))
    wired.tell("CANCEL", stream)
    wired.call("Campaign", v3election_pb2.CampaignRequest(name=b"e", lease=2, value=b"unseen"))
    assert len(wired.messages(stream)) == 3


def test_a_campaigns_lease_is_revoked(wired):
    first = wired.ask("Campaign", v3election_pb2.CampaignRequest(name=b"e", lease=1))
    second = wired.ask("Campaign", v3election_pb2.CampaignRequest(name=b"e", lease=2))
    wired.commit()
    revoke = raft_internal_pb2.InternalRaftRequest(header={"ID": 9}, lease_revoke={"ID": 2})
    wired.rig.entry(revoke.SerializeToString(), asked=False)
    wired.commit()
    assert wired.answer(first)[0] == 0
    assert wired.answer(second) == (errors.ID["UNKNOWN"], "election: session is expired", None)


def test_a_full_ring_to_consensus(tmp_path):
    rig = Rig(tmp_path, ring_bytes=1 << 17)
    wired = Wired(rig)
    grant = raft_internal_pb2.InternalRaftRequest(header={"ID": 1}, lease_grant={"ID": 1, "TTL": 1000})
    rig.entry(grant.SerializeToString(), asked=False)
    rig.settle()
    streams = []
    for i in range(40):
        streams.append(wired.ask("Lock", v3lock_pb2.LockRequest(name=b"%02d" % i + b"n" * 2000, lease=1)))
        rig.turn()
    for _ in range(20):
        rig.turn()
    wired.step()
    assert 0 < len(wired.proposed) < len(streams)  # nobody read `ac`: most waited for room
    wait_until(lambda: (wired.commit(), all(wired.answer(stream) for stream in streams))[1], "every lock")
    assert all(wired.answer(stream)[0] == 0 for stream in streams)
    rig.close()
