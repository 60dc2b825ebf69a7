"""Lock and Election side by side with a real etcd 3.5.1: equal answers, and equal bytes in the log.

Every step is done by both and settled before the next, so that nothing depends on who is faster. Then etcd is
stopped and its write-ahead log read: the requests there must be those that our services proposed.
"""

import random

import grpc
import pytest

from etcdfast.api import errors
from etcdfast.api.grpc_stubs import Client, method
from etcdfast.api.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from etcdfast.api.pb.kv_pb2 import KeyValue
from etcdfast.formats import wal
from etcdfast.formats.waldump import fields
from tests.apply.world import COMPACT, DELETE, GRANT, PUT, TXN, World
from tests.harness.servers import EtcdServer
from tests.harness.wait import wait_until

# Fields of InternalRaftRequest, formats.md 3.1
LOGGED = {4: PUT, 5: DELETE, 6: TXN, 7: COMPACT, 8: GRANT}
LOCK, UNLOCK = "/v3lockpb.Lock/Lock", "/v3lockpb.Lock/Unlock"
TIMEOUT_SECONDS = 20


def election(name):
    return f"/v3electionpb.Election/{name}"


class Pair:
    """One etcd and our services over the model. `etcd_log` and `our_log`: [(method, request bytes)]."""

    def __init__(self, server):
        self.server = server
        self.channel = grpc.insecure_channel(server.endpoint)
        self.etcd = Client(self.channel)
        self.world = World()
        self.waiting = {}  # who in the world -> future at etcd
        self.streams = {}  # who in the world -> [call at etcd, messages compared]
        self.our_log = self.world.log
        self.steps = []

    # ---- requests of everybody ----

    def write(self, entry, request):
        """A put, delete or grant straight from a client."""
        stub = {
            PUT: self.etcd.KV.Put,
            DELETE: self.etcd.KV.DeleteRange,
            GRANT: self.etcd.Lease.LeaseGrant,
        }[entry]
        stub(request, timeout=TIMEOUT_SECONDS)
        self.steps.append((entry, request))
        self.our_log.append((entry, request.SerializeToString()))
        self.world.apply(entry, request)
        self.world.settle()
        self.check()

    def call(self, path, request):
        """Start a call of the services on both sides; returns who asked in the world."""
        self.steps.append((path, request))
        leases = self._leases()
        future = method(self.channel, path).future(request, timeout=TIMEOUT_SECONDS)
        new = self._settled(future, leases)
        self.world.model.new_ids += new
        who = self.world.ask(path, request)
        self.waiting[who] = future
        self.world.settle()
        self.check()
        return who

    def cancel(self, who):
        self.steps.append(("cancel", who))
        future = self.waiting.pop(who)
        future.cancel()
        self.world.services.cancel(who)
        self.world.settle()
        wait_until(lambda: self._keys() == self.world.keys(), "etcd to take a cancelled key out")
        self.check()

    def observe(self, name):
        self.steps.append(("observe", name))
        request = v3election_pb2.LeaderRequest(name=name)
        who = self.world.ask(election("Observe"), request)
        self.streams[who] = [method(self.channel, election("Observe"))(request), 0]
        self.check()
        return who

    # ---- comparing ----

    def check(self):
        """Who is answered here is answered there and alike; who waits here waits there."""
        for who in [who for who in self.waiting if who in self.world.answers]:
            theirs, ours = _result(self.waiting.pop(who)), self.world.answers[who]
            shown = (0, "", ours.message) if not ours.status else (errors.ERRORS[ours.status].code, ours.text, None)
            assert shown == theirs, self.steps[-3:]
        for who, future in self.waiting.items():
            assert not future.done(), (who, self.steps[-3:])
        for who, stream in self.streams.items():
            for message in self.world.messages.get(who, ())[stream[1] :]:
                assert next(stream[0]) == message, self.steps[-3:]
                stream[1] += 1
        assert self._keys() == self.world.keys(), self.steps[-3:]

    def compare_logs(self):
        """Cancel what waits, stop etcd and read its log. Returns how many requests were equal."""
        for who in list(self.waiting):
            self.cancel(who)
        for stream, _ in self.streams.values():
            stream.cancel()
        self.channel.close()
        self.server.stop()
        entries = wal.read(str(self.server.data_dir / "member" / "wal")).entries
        theirs = []
        for i in range(len(entries)):
            kind, _, _, data = entries.entry(i)
            if kind == 0 and data:
                theirs += [(LOGGED[n], value) for n, w, value in _fields(data) if n in LOGGED and w == 2]
        ours = [(entry, _with_id(request, theirs[i : i + 1])) for i, (entry, request) in enumerate(self.our_log)]
        for i, (their, our) in enumerate(zip(theirs, ours)):
            assert our == their, f"request {i} of the log"
        assert len(ours) == len(theirs), theirs[len(ours) :]
        return len(ours)

    def _leases(self):
        return {lease.ID for lease in self.etcd.Lease.LeaseLeases(rpc_pb2.LeaseLeasesRequest(), timeout=20).leases}

    def _keys(self):
        found = self.etcd.KV.Range(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0"), timeout=TIMEOUT_SECONDS)
        return sorted(kv.key for kv in found.kvs)

    def _revision(self):
        return self.etcd.KV.Range(rpc_pb2.RangeRequest(key=b"\0"), timeout=TIMEOUT_SECONDS).header.revision

    def _settled(self, future, leases):
        """Wait until etcd has answered, or has the waiter's key; the ids of leases it granted meanwhile."""
        before = self.world.model.current
        wait_until(lambda: future.done() or self._revision() > before, "etcd to take the call")
        return sorted(self._leases() - leases)


def _fields(data):
    try:
        found = fields(data)
    except ValueError:
        return []
    return found if any(number == 100 for number, _, _ in found) else []  # else it is a v2 request


def _with_id(request, theirs):
    """A LeaseGrant gets its id on the way into the log: that is consensus' work."""
    grant = rpc_pb2.LeaseGrantRequest
    if theirs and theirs[0][0] == GRANT and request == grant(TTL=60).SerializeToString():
        return grant(TTL=60, ID=grant.FromString(theirs[0][1]).ID).SerializeToString()
    return request


def _result(future):
    try:
        return 0, "", future.result(timeout=TIMEOUT_SECONDS)
    except grpc.RpcError as error:
        return error.code().value[0], error.details(), None


@pytest.fixture
def pair(tmp_path):
    with EtcdServer(directory=tmp_path) as server:
        pair = Pair(server)
        yield pair
        pair.channel.close()


def test_every_kind_of_call(pair):
    key = v3election_pb2.LeaderKey
    for lease in (0xABC, 0xDEF):
        pair.write(GRANT, rpc_pb2.LeaseGrantRequest(TTL=100, ID=lease))
    for request in (
        v3lock_pb2.LockRequest(name=b"a"),
        v3lock_pb2.LockRequest(name=b"a", lease=77),
        v3lock_pb2.LockRequest(name=b"a", lease=-77),
        v3lock_pb2.LockRequest(name=b"", lease=0xABC),
        v3lock_pb2.LockRequest(name=b"b", lease=0xABC),
        v3lock_pb2.LockRequest(name=b"b", lease=0xABC),
        v3lock_pb2.LockRequest(name=b"\x00\xff/", lease=0xABC),
        v3lock_pb2.LockRequest(name=b"n" * 400_000, lease=0xABC),
    ):
        pair.call(LOCK, request)
    waiter = pair.call(LOCK, v3lock_pb2.LockRequest(name=b"b", lease=0xDEF))
    pair.write(PUT, rpc_pb2.PutRequest(key=b"x"))
    for unlocked in (b"b/abc", b"b/abc", b"", b"none"):
        pair.call(UNLOCK, v3lock_pb2.UnlockRequest(key=unlocked))
    assert waiter in pair.world.answers
    waiter = pair.call(LOCK, v3lock_pb2.LockRequest(name=b"b", lease=0xABC))
    pair.cancel(waiter)

    pair.observe(b"e")
    for name, request in (
        ("Leader", v3election_pb2.LeaderRequest(name=b"e")),
        ("Proclaim", v3election_pb2.ProclaimRequest(value=b"1")),
        ("Resign", v3election_pb2.ResignRequest()),
        ("Proclaim", v3election_pb2.ProclaimRequest(value=b"1", leader=key(lease=0xABC))),
        ("Resign", v3election_pb2.ResignRequest(leader=key())),
        ("Proclaim", v3election_pb2.ProclaimRequest(value=b"1", leader=key(name=b"e", key=b"e/1", rev=5))),
        ("Resign", v3election_pb2.ResignRequest(leader=key(name=b"e", key=b"e/1", rev=5))),
        ("Resign", v3election_pb2.ResignRequest(leader=key(name=b"e", key=b"e/1", lease=0xABC))),
        ("Campaign", v3election_pb2.CampaignRequest(name=b"e", lease=99, value=b"v")),
        ("Campaign", v3election_pb2.CampaignRequest(name=b"e", lease=0xABC, value=b"v1")),
        ("Campaign", v3election_pb2.CampaignRequest(name=b"e", lease=0xABC, value=b"v1")),
        ("Campaign", v3election_pb2.CampaignRequest(name=b"e", lease=0xABC)),
        ("Leader", v3election_pb2.LeaderRequest(name=b"e")),
        ("Campaign", v3election_pb2.CampaignRequest(lease=0xDEF, value=b"empty name")),
        ("Campaign", v3election_pb2.CampaignRequest(name=b"z", value=b"no lease")),
        ("Campaign", v3election_pb2.CampaignRequest(name=b"z", lease=0xABC, value=b"large" * 400_000)),
    ):
        last = pair.call(election(name), request)
        if name == "Campaign" and request.name == b"e" and request.lease == 0xABC:
            leads = pair.world.answers[last].message.leader
    pair.call(election("Proclaim"), v3election_pb2.ProclaimRequest(leader=leads, value=b"v3"))
    for lease in (0, -1):
        other = key(name=b"e", key=leads.key, rev=leads.rev, lease=lease)
        pair.call(election("Proclaim"), v3election_pb2.ProclaimRequest(leader=other, value=b"v4"))
    waiter = pair.call(election("Campaign"), v3election_pb2.CampaignRequest(name=b"e", lease=0xDEF, value=b"w"))
    pair.write(PUT, rpc_pb2.PutRequest(key=b"x"))
    pair.call(election("Resign"), v3election_pb2.ResignRequest(leader=leads))
    assert waiter in pair.world.answers
    waiter = pair.call(election("Campaign"), v3election_pb2.CampaignRequest(name=b"e", lease=0xABC, value=b"w"))
    pair.cancel(waiter)
    assert len(pair.world.messages[next(iter(pair.streams))]) == 5
    assert pair.compare_logs() > 40


@pytest.mark.parametrize("seed", [20261120])
def test_random_calls(pair, seed):
    print(f"seed {seed}")
    rng = random.Random(seed)
    world = pair.world
    for lease in range(1, 7):
        pair.write(GRANT, rpc_pb2.LeaseGrantRequest(TTL=1000, ID=lease))
    names = (b"a", b"a/b")
    for name in names:
        pair.observe(name)
    for _ in range(150):
        roll = rng.random()
        name, lease = rng.choice(names), rng.choice([0, *range(1, 7)])
        key, first = name + b"/%x" % lease, world.space.first_created(name + b"/")
        if roll < 0.45 and world.space.get(key) and KeyValue.FromString(first).key != key:
            continue  # a second waiter with this key: when the first leaves, ours fails at once and etcd's does not
        if roll < 0.25:
            pair.call(LOCK, v3lock_pb2.LockRequest(name=name, lease=lease))
        elif roll < 0.45:
            value = b"%d" % rng.randint(0, 2)
            pair.call(election("Campaign"), v3election_pb2.CampaignRequest(name=name, lease=lease, value=value))
        elif roll < 0.52 and len(pair.waiting) > 3:
            who = rng.choice(list(pair.waiting))
            pair.cancel(who)
        elif roll < 0.60:
            pair.write(PUT, rpc_pb2.PutRequest(key=b"other/%d" % rng.randint(0, 3)))
        else:
            if first is None:
                continue
            kv = KeyValue.FromString(first)
            key = v3election_pb2.LeaderKey(name=name, key=kv.key, lease=rng.choice((0, *range(1, 7))))
            key.rev = kv.create_revision - rng.choice((0, 0, 0, 1))
            action = rng.choice(("Unlock", "Resign", "Proclaim", "Leader", "delete"))
            if action == "Unlock":
                pair.call(UNLOCK, v3lock_pb2.UnlockRequest(key=kv.key))
            elif action == "Resign":
                pair.call(election(action), v3election_pb2.ResignRequest(leader=key))
            elif action == "Proclaim":
                pair.call(election(action), v3election_pb2.ProclaimRequest(leader=key, value=b"%d" % rng.randint(0, 9)))
            elif action == "Leader":
                pair.call(election(action), v3election_pb2.LeaderRequest(name=name))
            else:
                pair.write(DELETE, rpc_pb2.DeleteRangeRequest(key=kv.key))
    assert pair.compare_logs() > 100
