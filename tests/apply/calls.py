"""Random KV calls from one seed: small key space, every option, many that fail."""

from etcdfast.api.pb import rpc_pb2

R, C = rpc_pb2.RangeRequest, rpc_pb2.Compare
KEYS = [bytes([97 + i // 4, 97 + i % 4]) for i in range(16)] + [b"a", b"b", b"\0", b"\xff\xff"]
ENDS = [b"", b"", b"\0", b"b", b"c", b"bb", b"d\0", b"\xff"]


class Calls:
    """`model` is asked for revisions that make sense most of the time."""

    def __init__(self, rng, model, revisions_back=40):
        self.rng = rng
        self.model = model
        self.back = revisions_back

    def next(self):
        """(method, request) of one call."""
        roll = self.rng.random()
        if roll < 0.30:
            return "Put", self.put()
        if roll < 0.40:
            return "DeleteRange", self.delete()
        if roll < 0.68:
            return "Range", self.range()
        if roll < 0.985:
            return "Txn", self.txn()
        return "Compact", self.compact()

    def key(self):
        return self.rng.choice(KEYS)

    def some(self, odds=0.15):
        return self.rng.random() < odds

    def value(self):
        if self.some(0.02):
            return self.rng.randbytes(self.rng.choice((200, 5000, 70_000)))
        return self.rng.choice((b"", b"x", b"y", b"yy", b"\0"))

    def revision(self):
        current = self.model.current
        return self.rng.choice((0, 0, 0, current, current - 1, current + 1, -3, -1, self.rng.randint(1, current)))

    def recent(self):
        return self.rng.randint(max(self.model.current - self.back, 1), self.model.current)

    def put(self, key=None):
        ignore_value, ignore_lease = self.some(0.1), self.some(0.1)
        return rpc_pb2.PutRequest(
            key=key or self.key(),
            value=b"" if ignore_value else self.value(),
            lease=77 if not ignore_lease and self.some(0.03) else 0,
            prev_kv=self.some(0.3),
            ignore_value=ignore_value,
            ignore_lease=ignore_lease,
        )

    def delete(self, key=None, end=None):
        return rpc_pb2.DeleteRangeRequest(
            key=key or self.key(), range_end=self.rng.choice(ENDS) if end is None else end, prev_kv=self.some(0.4)
        )

    def range(self):
        request = R(
            key=self.key(),
            range_end=self.rng.choice(ENDS),
            revision=self.revision(),
            keys_only=self.some(),
            count_only=self.some(0.1),
            serializable=self.some(),
        )
        if self.some(0.4):
            request.limit = self.rng.choice((1, 2, 5, 100, -1))
        if self.some(0.5):
            request.sort_order = self.rng.choice((R.NONE, R.ASCEND, R.DESCEND))
            # Sorts are compared as they come: MOD and KEY have no equal elements within a state but those of
            # one transaction; the test compares VERSION, CREATE and VALUE as groups.
            request.sort_target = self.rng.choice((R.KEY, R.VERSION, R.CREATE, R.MOD, R.VALUE))
        for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            if self.some(0.06):
                setattr(request, name, self.recent())
        return request

    def compact(self):
        return rpc_pb2.CompactionRequest(
            revision=self.rng.choice((self.recent(), self.model.current, self.model.current + 5, self.model.compacted)),
            physical=self.some(0.5),
        )

    def compare(self):
        request = C(
            key=self.key(),
            range_end=self.rng.choice(ENDS) if self.some(0.2) else b"",
            target=self.rng.choice((C.VERSION, C.CREATE, C.MOD, C.VALUE, C.LEASE)),
            result=self.rng.choice((C.EQUAL, C.GREATER, C.LESS, C.NOT_EQUAL)),
        )
        name = self.rng.choice(("version", "create_revision", "mod_revision", "value", "lease"))
        if not self.some(0.1):
            name = {0: "version", 1: "create_revision", 2: "mod_revision", 3: "value", 4: "lease"}[request.target]
        if not self.some(0.1):
            value = {"version": self.rng.randint(0, 3), "value": self.value()}.get(name)
            setattr(request, name, self.recent() if value is None else value)
        return request

    def txn(self, depth=0):
        request = rpc_pb2.TxnRequest()
        for _ in range(self.rng.choice((0, 1, 1, 2))):
            request.compare.append(self.compare())
        for branch in (request.success, request.failure):
            self.branch(branch, depth)
        return request

    def branch(self, branch, depth):
        """The API refuses a key put twice, or put and deleted: keys of puts and deletes stay apart here."""
        puts = list(KEYS)
        self.rng.shuffle(puts)
        for _ in range(self.rng.choice((0, 1, 2, 3))):
            roll = self.rng.random()
            op = branch.add()
            if roll < 0.4:
                op.request_put.CopyFrom(self.put(puts.pop()))
            elif roll < 0.5:
                op.request_delete_range.CopyFrom(self.delete(puts.pop(), b""))
            elif roll < 0.9 or depth >= 2:
                op.request_range.CopyFrom(self.range())
            else:
                op.request_txn.CopyFrom(self.txn(depth + 1))
