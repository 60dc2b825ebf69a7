"""Leases on a real store, without loop and rings: the test hands over entries and moves the clock."""

from etcdfast._ext.kvops import KvOps
from etcdfast._ext.leaseops import LeaseOps
from etcdfast._ext.mvcc import Mvcc
from etcdfast.api import errors
from etcdfast.api.pb import raft_internal_pb2, rpc_pb2
from etcdfast.apply.store import MetaBatch, Store

SECOND = 10**9
MIN_TTL = 2
ELECTION_NS = SECOND
CHECKPOINT_NS = 300 * SECOND
GRACE_NS = SECOND // 4
WAITS, SLICED, NOT_PRIMARY = -3, -4, -5

Internal = raft_internal_pb2.InternalRaftRequest
_KIND = {
    rpc_pb2.PutRequest: (4, rpc_pb2.PutResponse),
    rpc_pb2.DeleteRangeRequest: (5, rpc_pb2.DeleteRangeResponse),
    rpc_pb2.TxnRequest: (6, rpc_pb2.TxnResponse),
    rpc_pb2.LeaseGrantRequest: (8, rpc_pb2.LeaseGrantResponse),
    rpc_pb2.LeaseRevokeRequest: (9, rpc_pb2.LeaseRevokeResponse),
    rpc_pb2.LeaseCheckpointRequest: (11, None),
}


class LeaseRig:
    """`now` is the clock in ns; nothing moves it but the test."""

    def __init__(self, path, now=10**12, checkpoint_ns=CHECKPOINT_NS):
        self.path = str(path)
        self.now = now
        self.checkpoint_ns = checkpoint_ns
        self.index = 0
        self.open()

    def open(self):
        store = self.store = Store(self.path)
        self.mvcc = Mvcc(store.read, store.walk, store.new_batch, store.write)
        self.mvcc.load(*store.records(), store.meta, store.meta_revisions)
        MetaBatch(store, self.mvcc)
        self.table = self.mvcc.leases
        self.kv = KvOps(self.mvcc)
        self.ops = LeaseOps(self.kv, self.table, MIN_TTL, ELECTION_NS, self.checkpoint_ns)

    def close(self):
        self.write()
        self.store.close()

    def restart(self):
        self.close()
        self.open()

    def write(self):
        """The end of a turn."""
        if self.mvcc.batch_changes:
            self.mvcc.write_batch(self.index, 2)

    # ---- entries and calls ----

    def start(self, request):
        """An entry, a large revoke up to its first slice only: (status, answer bytes)."""
        self.index += 1
        self.ops.now_ns = self.now
        return self.ops.entry(_KIND[type(request)][0], request.SerializeToString())

    def apply(self, request):
        """The answer, or the symbol of its error."""
        status, answer = self.start(request)
        while status == SLICED or status == 1 and self.slicing:
            self.slicing = True
            status, answer = self.ops.step(1024)
        self.slicing = False
        if status:
            return errors.ERRORS[status].symbol
        response = _KIND[type(request)][1]
        return response.FromString(answer) if response else None

    slicing = False

    def put(self, key, lease=0, **more):
        return self.apply(rpc_pb2.PutRequest(key=key, lease=lease, **more))

    def delete(self, key, end=b""):
        return self.apply(rpc_pb2.DeleteRangeRequest(key=key, range_end=end))

    def grant(self, lease, ttl):
        return self.apply(rpc_pb2.LeaseGrantRequest(ID=lease, TTL=ttl))

    def revoke(self, lease):
        return self.apply(rpc_pb2.LeaseRevokeRequest(ID=lease))

    def checkpoint(self, **remaining):
        request = rpc_pb2.LeaseCheckpointRequest()
        for lease, seconds in remaining.items():
            request.checkpoints.add(ID=int(lease[1:]), remaining_TTL=seconds)
        return self.apply(request)

    def keep_alive(self, lease):
        """TTL of the answer, or WAITS or NOT_PRIMARY."""
        request = rpc_pb2.LeaseKeepAliveRequest(ID=lease)
        status, answer = self.ops.call("keep_alive", request.SerializeToString(), self.now)
        if status:
            return status
        answer = rpc_pb2.LeaseKeepAliveResponse.FromString(answer)
        assert answer.ID == lease and answer.header.revision == self.mvcc.current
        return answer.TTL

    def time_to_live(self, lease, keys=True):
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease, keys=keys)
        status, answer = self.ops.call("time_to_live", request.SerializeToString(), self.now)
        if status == NOT_PRIMARY:
            return status
        if status:
            return errors.ERRORS[status].symbol
        return rpc_pb2.LeaseTimeToLiveResponse.FromString(answer)

    def keys(self, lease):
        return sorted(self.time_to_live(lease).keys)

    def listed(self):
        status, answer = self.ops.call("leases", b"", self.now)
        assert status == 0
        return [lease.ID for lease in rpc_pb2.LeaseLeasesResponse.FromString(answer).leases]

    def stored(self):
        """Bucket lease as hashes see it."""
        return list(self.store.scan(b"l", b"m"))

    # ---- time ----

    def advance(self, seconds):
        self.now += int(seconds * SECOND)

    def expire(self):
        """Propose and apply what is due; the ids, in order."""
        gone = []
        while ids := self.ops.take_due(self.now):
            for lease in ids:
                self.revoke(lease)
            gone += ids
        return gone
