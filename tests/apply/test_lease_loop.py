"""Leases through the turn of the loop: streams of keep-alives, proposals to consensus, slices, stops."""

import random
import time

import pytest

from etcdfast._ext.ring import CONSENSUS_WORDS
from etcdfast.api import errors
from etcdfast.api.pb import raft_internal_pb2, rpc_pb2
from tests.apply.rig import KINDS, MEMBER, NOBODY, RPC, TERM, Config, Rig
from tests.apply.test_determinism import apply_all, copied, image

CHECKPOINT = 0xFF  # method of a proposal that no RPC stands for
SECOND = 10**9
LEASE_CALLS = {
    "LeaseGrant": ("lease_grant", rpc_pb2.LeaseGrantResponse),
    "LeaseRevoke": ("lease_revoke", rpc_pb2.LeaseRevokeResponse),
}


class LeaseLoop(Rig):
    """`short` TTLs of a second are allowed, and this member leads unless told otherwise."""

    def __init__(self, path, lead=True, ring_bytes=1 << 22, **config):
        config = Config(**{"election_timeout": 100, "heartbeat_interval": 10} | config)
        super().__init__(path, ring_bytes, config)
        if lead:
            self.lead()

    def lead(self, leader=MEMBER):
        self.consensus_page[CONSENSUS_WORDS["leader"]] = leader
        assert self.ca.push(KINDS["HARD"], index=self.index, term=TERM)
        self.turn()

    def begin(self, field, request, asked=True):
        return self.entry(raft_internal_pb2.InternalRaftRequest(**{field: request}).SerializeToString(), asked)

    def change(self, method, **fields):
        """The answer of a lease entry, or the symbol of its error."""
        field, response = LEASE_CALLS[method]
        request = getattr(rpc_pb2, f"{method}Request")(**fields)
        stream = self.begin(field, request)
        (record,) = self.settle()[stream]
        return response.FromString(record["payload"]) if record["status"] == 0 else symbol(record)

    def grant(self, lease, ttl):
        return self.change("LeaseGrant", ID=lease, TTL=ttl)

    def query(self, method, **fields):
        stream = self.read(method, getattr(rpc_pb2, f"{method}Request")(**fields))
        (record,) = self.settle()[stream]
        if record["status"]:
            return symbol(record)
        return getattr(rpc_pb2, f"{method}Response").FromString(record["payload"])

    def keep_alive(self, stream, lease):
        assert self.f0a.push(
            KINDS["CALL"],
            rpc_pb2.LeaseKeepAliveRequest(ID=lease).SerializeToString(),
            method=RPC["LeaseKeepAlive"],
            frontend=0,
            slot=7,
            generation=3,
            stream=stream,
        )

    def end(self, stream, kind="HALF"):
        assert self.f0a.push(KINDS[kind], method=RPC["LeaseKeepAlive"], frontend=0, slot=7, generation=3, stream=stream)

    def answered(self, stream):
        """(id, TTL) per message of a keep-alive stream since the last look, and its end if it came."""
        return [
            ended(record) if record["kind"] == KINDS["END"] else ttl_of(record)
            for record in self.settle().get(stream, ())
        ]

    def proposed(self, deadline_seconds=10.0):
        """The next proposal: (method, message). Waits for it."""
        end = time.monotonic() + deadline_seconds
        while (record := self.ac.pop()) is None:
            assert time.monotonic() < end, "nothing was proposed"
            time.sleep(0.001)
            self.turn()
        assert record["kind"] == KINDS["PROPOSE"] and record["frontend"] == NOBODY
        return record["method"], record["payload"]

    def commit(self, method, payload):
        """A proposal comes back as an entry."""
        field = {RPC["LeaseRevoke"]: "lease_revoke", CHECKPOINT: "lease_checkpoint"}[method]
        request = {"lease_revoke": rpc_pb2.LeaseRevokeRequest, "lease_checkpoint": rpc_pb2.LeaseCheckpointRequest}
        self.begin(field, request[field].FromString(payload), asked=False)


def symbol(record):
    return errors.ERRORS[record["status"]].symbol


def ended(record):
    return "end" if record["status"] == 0 else symbol(record)


def ttl_of(record):
    assert record["kind"] == KINDS["MESSAGE"] and record["status"] == 0
    answer = rpc_pb2.LeaseKeepAliveResponse.FromString(record["payload"])
    assert answer.header.member_id == MEMBER and answer.header.raft_term == TERM and answer.header.revision
    return answer.ID, answer.TTL


@pytest.fixture
def rig(tmp_path):
    rig = LeaseLoop(tmp_path / "store")
    yield rig
    rig.close()


def test_entries_and_queries_answer_whole_messages(rig):
    answer = rig.grant(7, 60)
    assert (answer.ID, answer.TTL, answer.header.revision, answer.header.member_id) == (7, 60, 1, MEMBER)
    assert rig.grant(7, 60) == "LEASE_EXIST"
    assert rig.put(b"b", lease=8).status == "LEASE_NOT_FOUND"
    rig.put(b"b", lease=7)
    rig.put(b"a", lease=7)
    answer = rig.query("LeaseTimeToLive", ID=7, keys=True)
    assert answer.grantedTTL == 60 and answer.TTL in (59, 60) and sorted(answer.keys) == [b"a", b"b"]
    assert rig.query("LeaseTimeToLive", ID=9).TTL == -1
    assert [lease.ID for lease in rig.query("LeaseLeases").leases] == [7]
    assert rig.change("LeaseRevoke", ID=7).header.revision == 4
    assert rig.change("LeaseRevoke", ID=7) == "LEASE_NOT_FOUND"
    assert rig.range(b"a", b"c").message.count == 0


def test_a_lease_runs_out_by_a_proposal(rig):
    granted = time.monotonic()
    rig.grant(7, 1)
    rig.put(b"a", lease=7)
    method, payload = rig.proposed()
    assert time.monotonic() - granted > 1
    assert (method, payload) == (RPC["LeaseRevoke"], b"\x08\x07")
    assert rig.range(b"a").message.count == 1, "nothing happens before the entry is committed"
    rig.commit(method, payload)
    rig.settle()
    assert rig.range(b"a").message.count == 0


def test_the_answers_of_a_stream_keep_their_order(rig):
    """The first lease of the stream is on its way out: everything behind it waits, other streams do not."""
    rig.grant(1, 1)
    rig.grant(2, 60)
    revoke = rig.proposed()
    for lease in (1, 2, 99, 1):
        rig.keep_alive(501, lease)
    rig.end(501)
    rig.keep_alive(503, 2)
    assert rig.answered(501) == []
    rig.keep_alive(503, 2)
    rig.end(503)
    assert rig.answered(503) == [(2, 60), "end"]
    rig.keep_alive(505, 1)
    assert rig.answered(505) == []
    rig.end(505, "CANCEL")
    rig.turn()
    rig.commit(*revoke)
    records = rig.settle()
    assert [ended(r) if r["kind"] == KINDS["END"] else ttl_of(r) for r in records[501]] == [
        (1, 0), (2, 60), (99, 0), (1, 0), "end",
    ]  # fmt: skip
    assert 505 not in records


def test_a_checkpointed_lease_is_renewed_when_the_checkpoint_is_taken_back(rig):
    rig.grant(1, 1000)
    rig.begin("lease_checkpoint", rpc_pb2.LeaseCheckpointRequest(checkpoints=[{"ID": 1, "remaining_TTL": 400}]))
    rig.keep_alive(501, 1)
    assert rig.answered(501) == []
    method, payload = rig.proposed()
    assert (method, payload) == (CHECKPOINT, b"\x0a\x02\x08\x01")
    rig.commit(method, payload)
    assert rig.answered(501) == [(1, 1000)]


def test_checkpoints_are_proposed_after_their_interval(tmp_path):
    rig = LeaseLoop(tmp_path / "store", lease_checkpoint_interval=1.0)
    rig.grant(1, 100)
    method, payload = rig.proposed()
    (checkpoint,) = rpc_pb2.LeaseCheckpointRequest.FromString(payload).checkpoints
    assert method == CHECKPOINT and checkpoint.ID == 1 and checkpoint.remaining_TTL in (98, 99)
    rig.commit(method, payload)
    rig.settle()
    rig.close()
    rig = LeaseLoop(tmp_path / "store")
    assert rig.query("LeaseTimeToLive", ID=1).TTL in (97, 98, 99)
    rig.close()


def test_keep_alives_wait_until_somebody_leads(tmp_path):
    rig = LeaseLoop(tmp_path / "store", lead=False)
    rig.consensus_page[CONSENSUS_WORDS["leader"]] = 0
    rig.grant(1, 60)
    rig.keep_alive(501, 1)
    rig.keep_alive(501, 2)
    assert rig.answered(501) == []
    left = rig.read("LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=1))
    assert left not in rig.settle()
    rig.lead()
    found = rig.settle()
    assert [ttl_of(record) for record in found[501]] == [(1, 60), (2, 0)]
    assert rpc_pb2.LeaseTimeToLiveResponse.FromString(found[left][0]["payload"]).TTL in (59, 60)
    rig.lead(leader=0)
    rig.keep_alive(501, 1)
    assert rig.answered(501) == []
    rig.lead()
    assert rig.answered(501) == [(1, 60)]
    rig.close()


def test_a_large_lease_goes_in_slices_between_which_reads_see_it_whole(rig):
    rig.grant(1, 60)
    for i in range(6000):
        rig.begin("put", rpc_pb2.PutRequest(key=b"k%05d" % (i * 7 % 6000), lease=1), asked=False)
        if i % 500 == 499:
            rig.settle()
    rig.settle()
    before = rig.process.mvcc.current
    revoke = rig.begin("lease_revoke", rpc_pb2.LeaseRevokeRequest(ID=1))
    later = rig.propose("Put", rpc_pb2.PutRequest(key=b"later"))
    counted = rpc_pb2.RangeRequest(key=b"k", range_end=b"l", count_only=True)
    seen = []
    slices = 0
    order = []
    while revoke not in order or later not in order:
        read = rig.ask("Range", counted)
        rig.turn()
        slices += 1
        for record in rig.take():
            order.append(record["stream"])
            if record["stream"] == read:
                answer = rpc_pb2.RangeResponse.FromString(record["payload"])
                seen.append((answer.count, answer.header.revision))
    assert slices > 5
    assert order.index(revoke) < order.index(later)
    assert set(seen) <= {(6000, before), (0, before + 1), (0, before + 2)}
    assert seen.count((6000, before)) >= 4
    assert rig.process.mvcc.current == before + 2


def test_a_stop_in_the_middle_of_a_revoke_loses_nothing(tmp_path):
    path = tmp_path / "store"
    rig = LeaseLoop(path)
    rig.grant(1, 60)
    for i in range(4000):
        rig.begin("put", rpc_pb2.PutRequest(key=b"k%05d" % i, lease=1), asked=False)
        if i % 500 == 499:
            rig.settle()
    rig.settle()
    applied = rig.loop.applied_index
    rig.begin("lease_revoke", rpc_pb2.LeaseRevokeRequest(ID=1))
    rig.turn()
    rig.turn()
    assert rig.loop.applied_index == applied, "the revoke is not through"
    rig.process.store.db.flush(True)
    log = list(rig.log)
    rig.close(flush=False)
    rig = LeaseLoop(copied(path, tmp_path / "again"))
    assert rig.loop.applied_index == applied
    assert rig.range(b"k", b"l", count_only=True).message.count == 4000
    rig.entry(log[applied][1], index=applied + 1)
    rig.settle()
    assert rig.range(b"k", b"l", count_only=True).message.count == 0
    assert rig.process.mvcc.leases.count == rig.process.mvcc.leases.attached == 0
    rig.close()


def lease_log(seed, entries):
    """A log that grants, revokes, attaches, moves, detaches and checkpoints; some of it fails."""
    rng = random.Random(seed)
    keys = [b"%c%c" % (97 + i // 8, 97 + i % 8) for i in range(40)]
    op = rpc_pb2.RequestOp

    def put():
        lease = rng.choice((0, *range(1, 12)))
        ignoring = rng.random() < 0.1
        return rpc_pb2.PutRequest(key=rng.choice(keys), lease=0 if ignoring else lease, ignore_lease=ignoring)

    def delete():
        key = rng.choice(keys)
        return rpc_pb2.DeleteRangeRequest(key=key, range_end=rng.choice((b"", key + b"z", key[:1] + b"z")))

    def txn():
        chosen = {}
        for request in (put() for _ in range(3)):
            chosen[request.key] = request
        return rpc_pb2.TxnRequest(success=[op(request_put=request) for request in chosen.values()])

    def checkpoint():
        found = [{"ID": rng.randrange(1, 12), "remaining_TTL": rng.choice((0, 3, 500))} for _ in range(2)]
        return rpc_pb2.LeaseCheckpointRequest(checkpoints=found)

    makers = (
        (10, "lease_grant", lambda: rpc_pb2.LeaseGrantRequest(ID=rng.randrange(1, 12), TTL=rng.choice((1, 60, 900)))),
        (5, "lease_revoke", lambda: rpc_pb2.LeaseRevokeRequest(ID=rng.randrange(1, 12))),
        (4, "lease_checkpoint", checkpoint),
        (20, "put", put),
        (4, "delete_range", delete),
        (8, "txn", txn),
        (1, "compaction", lambda: rpc_pb2.CompactionRequest(revision=rng.randrange(1, entries))),
    )
    log = []
    for _ in range(entries):
        _, field, make = rng.choices(makers, [weight for weight, _, _ in makers])[0]
        log.append(raft_internal_pb2.InternalRaftRequest(**{field: make()}).SerializeToString())
    return log


@pytest.mark.parametrize("seed", [random.SystemRandom().randrange(1 << 30)], ids=["seed"])
def test_equal_logs_make_equal_leases_however_they_are_cut(tmp_path, seed):
    print(f"seed {seed}")
    rng = random.Random(seed)
    log = lease_log(seed, 500)
    images = {}
    for name, turn_max, stop_chance in (("one by one", 1, 0.0), ("hundreds", 300, 0.0), ("with stops", 60, 0.4)):
        rig = apply_all(tmp_path, name, log, rng, turn_max, stop_chance, 0.5)
        assert rig.ca.push(KINDS["HARD"], index=len(log), term=TERM)
        rig.turn()
        stored = list(rig.process.store.scan(b"l", b"m"))
        attached = {}
        for key, _ in stored:
            lease = int.from_bytes(key[1:], "big")
            stream = rig.read("LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=lease, keys=True))
            (record,) = rig.settle()[stream]
            attached[lease] = sorted(rpc_pb2.LeaseTimeToLiveResponse.FromString(record["payload"]).keys)
        by_value = {lease: [] for lease in attached}
        for kv in rig.range(b"\0", b"\0").message.kvs:
            if kv.lease:
                by_value[kv.lease].append(kv.key)
        assert attached == by_value
        images[name] = (*image(rig), stored, attached)
        rig.close()
    assert len(stored) > 3 and any(attached.values())
    assert len(set(map(repr, images.values()))) == 1, images
