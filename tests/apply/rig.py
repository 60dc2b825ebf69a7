"""The apply process' parts in the test process, with the test as consensus and frontend on real rings."""

import os
from collections import namedtuple

from etcdfast._ext import ring
from etcdfast.api import errors, rpcs
from etcdfast.api.pb import raft_internal_pb2, rpc_pb2
from etcdfast.apply.process import Process

KINDS = ring.KINDS
NOBODY = ring.NOBODY
CREDIT_BYTES = 262144
_FIELDS = {
    "quota_bytes": 2 << 30,
    "snapshot_count": 10_000,
    "max_learners": 1,
    "election_timeout": 1000,
    "heartbeat_interval": 100,
    "max_request_bytes": 1536 << 10,
    "message_bytes_max": 2 << 20,
    "request_timeout_seconds": 7.0,
    "lease_checkpoint_interval": 300.0,
    "watch_progress_seconds": 600.0,
    "auto_compaction_mode": "periodic",
    "auto_compaction_amount": 0,
    "auth_token": "simple",
    "auth_token_ttl": 300,
    "bcrypt_cost": 4,
}
# What apply reads of the configuration.
Config = namedtuple("Config", _FIELDS, defaults=_FIELDS.values())
MEMBER, CLUSTER, TERM = 0x8E9E05C52164694D, 0xCDF818194E3A8C32, 2

RPC = (
    {row.path.split("/")[-1]: row.id for row in rpcs.RPCS}
    if hasattr(rpcs, "RPCS")
    else {path.split("/")[-1]: row.id for path, row in rpcs.BY_PATH.items()}
)
FIELD = {"Put": "put", "DeleteRange": "delete_range", "Txn": "txn", "Compact": "compaction", "Alarm": "alarm"}
RESPONSE = {
    "Put": rpc_pb2.PutResponse,
    "DeleteRange": rpc_pb2.DeleteRangeResponse,
    "Txn": rpc_pb2.TxnResponse,
    "Compact": rpc_pb2.CompactionResponse,
    "Range": rpc_pb2.RangeResponse,
    "Alarm": rpc_pb2.AlarmResponse,
    "HashKV": rpc_pb2.HashKVResponse,
    "Hash": rpc_pb2.HashResponse,
    "Status": rpc_pb2.StatusResponse,
}

Answer = namedtuple("Answer", "status text message")


class Rig:
    """`path`: folder of the store. Turns run when the test asks for them: `turn()`, `settle()`."""

    def __init__(self, path, ring_bytes=1 << 22, config=None):
        self.fds = []
        config = config or Config()
        self.config = config
        self.path = str(path)

        def memfd(name, size):
            fd = os.memfd_create(name)
            self.fds.append(fd)
            if size == 4096:
                os.ftruncate(fd, size)
            else:
                ring.format_ring(fd, size)
            return fd

        def doorbell():
            fd = os.eventfd(0, os.EFD_NONBLOCK)
            self.fds.append(fd)
            return fd

        fds = {name: memfd(name, ring_bytes) for name in ("ca", "ac", "f0a", "af0")}
        self.bells = {"consensus": doorbell(), "frontend0": doorbell(), "apply": doorbell()}
        status = {"consensus": memfd("consensus", 4096), "apply": memfd("apply", 4096)}
        self.consensus_page = ring.StatusPage(status["consensus"])
        self.page = ring.StatusPage(status["apply"])
        words = {"member_id": MEMBER, "cluster_id": CLUSTER, "term": TERM, "leader": MEMBER, "opened": 1}
        for name, value in words.items():
            self.consensus_page[ring.CONSENSUS_WORDS[name]] = value
        life_read, self.life = os.pipe()
        self.fds += [life_read, self.life]
        self.ca = ring.Ring(fds["ca"], self.bells["apply"])
        self.f0a = ring.Ring(fds["f0a"], self.bells["apply"])
        self.af0 = ring.Ring(fds["af0"], self.bells["apply"])
        self.ac = ring.Ring(fds["ac"], self.bells["apply"])
        self.process = Process(
            self.path, self.path + ".snap", fds, self.bells, status, self.bells["apply"], 1, life_read, -1, config
        )
        self.process.open()
        self.process.load()
        self.loop = self.process.loop
        self.index = self.loop.applied_index
        self.stream = 1
        self.log = []
        self.answers = {}

    def close(self, flush=True):
        """flush=False: as after kill -9, but that RocksDB's files stay as they are on the disk."""
        if flush:
            self.process.close()
        else:
            self.process.store.db.cancel_all_background(True)
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def word(self, name):
        return self.page[ring.APPLY_WORDS[name]]

    # ---- as consensus ----

    def entry(self, data, asked=True, index=None, term=TERM, entry_type=0):
        """Hand over one committed entry; returns the stream id that its answer will carry."""
        if index is None:
            self.index += 1
            index = self.index
            self.log.append((entry_type, data))
        self.stream += 2
        assert self.ca.push(
            KINDS["ENTRY"],
            data,
            method=entry_type,
            frontend=0 if asked else NOBODY,
            slot=7,
            generation=3,
            stream=self.stream,
            index=index,
            term=term,
        ), "ca is full"
        return self.stream

    def propose(self, method, request, asked=True):
        internal = raft_internal_pb2.InternalRaftRequest(header={"ID": self.index + 1}, **{FIELD[method]: request})
        return self.entry(internal.SerializeToString(), asked)

    def read(self, method, request):
        return self._ask(self.ca, "READ", method, request)

    # ---- as frontend ----

    def ask(self, method, request):
        return self._ask(self.f0a, "CALL", method, request)

    def _ask(self, ring, kind, method, request):
        self.stream += 2
        assert ring.push(
            KINDS[kind],
            request.SerializeToString(),
            method=RPC[method],
            frontend=0,
            slot=7,
            generation=3,
            stream=self.stream,
        ), "the ring is full"
        return self.stream

    def credit(self, stream, size):
        assert self.f0a.push(KINDS["CREDIT"], frontend=0, slot=7, generation=3, stream=stream, index=size)

    def cancel(self, stream):
        assert self.f0a.push(KINDS["CANCEL"], frontend=0, slot=7, generation=3, stream=stream)

    # ---- turning ----

    def turn(self):
        return self.loop.run_turn()

    def take(self):
        """Every record that apply has published, as dicts."""
        found = []
        while (record := self.af0.pop()) is not None:
            found.append(record)
        return found

    def drain(self):
        """As take, but only how many: for benchmarks."""
        found = 0
        while self.af0.pop() is not None:
            found += 1
        return found

    def settle(self, limit=100_000):
        """Turn until nothing is left, with credit given as bytes come. Records by stream."""
        by_stream = {}
        idle = 0
        for _ in range(limit):
            worked = self.turn()
            records = self.take()
            for record in records:
                by_stream.setdefault(record["stream"], []).append(record)
                if record["kind"] in (KINDS["PART"], KINDS["MESSAGE"]):
                    self.credit(record["stream"], len(record["payload"]))
            idle = 0 if worked or records else idle + 1
            if idle >= 2:
                return by_stream
        raise AssertionError(f"still at work after {limit} turns")

    def call(self, method, request, via=None):
        """One call from request to whole answer. via: "log", "read" or "call"; the method's own by default."""
        via = via or ("log" if method in FIELD else "call")
        send = {"log": self.propose, "read": self.read, "call": self.ask}[via]
        stream = send(method, request)
        return answer_of(method, self.settle()[stream])

    def put(self, key, value=b"", **more):
        return self.call("Put", rpc_pb2.PutRequest(key=key, value=value, **more))

    def range(self, key, end=b"", via="read", **more):
        return self.call("Range", rpc_pb2.RangeRequest(key=key, range_end=end, **more), via)


def answer_of(method, records):
    """One Answer from the records of one call, with their order checked."""
    first = records[0]
    if first["kind"] == KINDS["REPLY"]:
        assert len(records) == 1
        if first["status"]:
            return Answer(errors.ERRORS[first["status"]].symbol, first["payload"].decode(), None)
        return Answer("", "", RESPONSE[method].FromString(first["payload"]))
    last = records[-1]
    assert last["kind"] == KINDS["END"], records
    if first["kind"] == KINDS["END"]:
        return Answer(errors.ERRORS[last["status"]].symbol, "", None)
    assert first["kind"] == KINDS["BEGIN"] and all(r["kind"] == KINDS["PART"] for r in records[1:-1])
    data = b"".join(r["payload"] for r in records[1:-1])
    if last["status"]:
        return Answer(errors.ERRORS[last["status"]].symbol, "", None)
    assert len(data) == first["index"]
    return Answer("", "", RESPONSE[method].FromString(data))
