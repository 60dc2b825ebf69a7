"""etcd's KV semantics the simple way: every past state of the store is kept as a whole dict.

Requests and responses are the protobuf messages; header ids are those of the rig. An error is its symbol
in api/errors.py. Source: reference/formats.md 9.1 to 9.3; no line of it is shared with the program.
"""

from etcdfast.api.pb import kv_pb2, rpc_pb2
from tests.apply.rig import CLUSTER, MEMBER, TERM

R, C = rpc_pb2.RangeRequest, rpc_pb2.Compare


class Refused(Exception):
    pass


def in_range(key, start, end):
    if not end:
        return key == start
    return key >= start and (end == b"\0" or key < end)


class Model:
    """`states[rev]` is {key: KeyValue} after that revision."""

    def __init__(self):
        self.current = 1
        self.compacted = -1
        self.states = {1: {}}

    def header(self):
        return rpc_pb2.ResponseHeader(cluster_id=CLUSTER, member_id=MEMBER, raft_term=TERM, revision=self.current)

    # A write works on a copy of the newest state, kept when it changed anything.

    def _write(self, work):
        state, changes = dict(self.states[self.current]), []
        out = work(state, changes)
        if changes:
            self.current += 1
            self.states[self.current] = state
        out.header.CopyFrom(self.header())
        return out

    def put(self, r):
        if r.lease:
            raise Refused("LEASE_NOT_FOUND")
        return self._write(lambda state, changes: self._put(r, state, changes))

    def delete_range(self, r):
        return self._write(lambda state, changes: self._delete(r, state, changes))

    def range(self, r):
        out = self._range(r, self.states[self.current], self.current)
        out.header.CopyFrom(self.header())
        return out

    def compact(self, r):
        if r.revision <= self.compacted:
            raise Refused("COMPACTED")
        if r.revision > self.current:
            raise Refused("FUTURE_REV")
        self.compacted = r.revision
        return rpc_pb2.CompactionResponse(header=self.header())

    def txn(self, r):
        path = []
        self._choose(r, path)
        self._check(r, list(path), "request_put")
        self._check(r, list(path), "request_range")

        def work(state, changes):
            return self._execute(r, list(path), state, changes)

        return self._write(work)

    # ---- parts ----

    def _put(self, r, state, changes):
        old = state.get(r.key)
        if (r.ignore_value or r.ignore_lease) and old is None:
            raise Refused("KEY_NOT_FOUND")
        main = self.current + 1
        new = kv_pb2.KeyValue(
            key=r.key,
            value=old.value if r.ignore_value else r.value,
            lease=old.lease if r.ignore_lease else r.lease,
            create_revision=old.create_revision if old else main,
            mod_revision=main,
            version=old.version + 1 if old else 1,
        )
        state[r.key] = new
        changes.append(r.key)
        out = rpc_pb2.PutResponse(header={"revision": main})
        if r.prev_kv and old is not None:
            out.prev_kv.CopyFrom(old)
        return out

    def _delete(self, r, state, changes):
        gone = sorted(key for key in state if in_range(key, r.key, r.range_end))
        out = rpc_pb2.DeleteRangeResponse(deleted=len(gone))
        for key in gone:
            old = state.pop(key)
            changes.append(key)
            if r.prev_kv:
                out.prev_kvs.append(old)
        out.header.revision = self.current + bool(changes)
        return out

    def _range(self, r, state, visible):
        if r.revision > visible:
            raise Refused("FUTURE_REV")
        if 0 < r.revision < self.compacted:
            raise Refused("COMPACTED")
        at = self.states[r.revision] if 0 < r.revision < visible or r.revision == self.current else state
        found = [at[key] for key in sorted(at) if in_range(key, r.key, r.range_end)]
        out = rpc_pb2.RangeResponse(count=len(found), header={"revision": visible})
        if r.count_only:
            return out
        bounds = (r.min_mod_revision, r.max_mod_revision, r.min_create_revision, r.max_create_revision)
        if r.limit > 0 and r.sort_order == R.NONE and not any(bounds):
            found = found[: r.limit + 1]
        found = [
            kv
            for kv in found
            if not (r.max_mod_revision and kv.mod_revision > r.max_mod_revision)
            and not (r.min_mod_revision and kv.mod_revision < r.min_mod_revision)
            and not (r.max_create_revision and kv.create_revision > r.max_create_revision)
            and not (r.min_create_revision and kv.create_revision < r.min_create_revision)
        ]
        if r.sort_order != R.NONE or r.sort_target != R.KEY:
            found.sort(key=sort_key(r.sort_target), reverse=r.sort_order == R.DESCEND)
        out.more = r.limit > 0 and len(found) > r.limit
        for kv in found[: r.limit] if r.limit > 0 else found:
            shown = out.kvs.add()
            shown.CopyFrom(kv)
            if r.keys_only:
                shown.value = b""
        return out

    def _choose(self, r, path):
        path.append(all(self._holds(c) for c in r.compare))
        for op in r.success if path[-1] else r.failure:
            if op.WhichOneof("request") == "request_txn":
                self._choose(op.request_txn, path)

    def _holds(self, c):
        state = self.states[self.current]
        found = [state[key] for key in state if in_range(key, c.key, c.range_end)]
        if not found:
            return c.target != C.VALUE and compare(c, kv_pb2.KeyValue())
        return all(compare(c, kv) for kv in found)

    def _check(self, r, path, kind):
        for op in r.success if path.pop(0) else r.failure:
            which = op.WhichOneof("request")
            if which == "request_txn":
                self._check(op.request_txn, path, kind)
            elif which != kind:
                continue
            elif which == "request_put":
                put = op.request_put
                if (put.ignore_value or put.ignore_lease) and put.key not in self.states[self.current]:
                    raise Refused("KEY_NOT_FOUND")
                if put.lease:
                    raise Refused("LEASE_NOT_FOUND")
            else:
                revision = op.request_range.revision
                if revision > self.current:
                    raise Refused("FUTURE_REV")
                if revision and revision < self.compacted:
                    raise Refused("COMPACTED")

    def _execute(self, r, path, state, changes):
        taken = path.pop(0)
        out = rpc_pb2.TxnResponse(succeeded=taken)
        out.header.SetInParent()
        for op in r.success if taken else r.failure:
            which = op.WhichOneof("request")
            response = out.responses.add()
            if which == "request_put":
                response.response_put.CopyFrom(self._put(op.request_put, state, changes))
            elif which == "request_delete_range":
                response.response_delete_range.CopyFrom(self._delete(op.request_delete_range, state, changes))
            elif which == "request_range":
                visible = self.current + bool(changes)
                response.response_range.CopyFrom(self._range(op.request_range, state, visible))
            else:
                response.response_txn.CopyFrom(self._execute(op.request_txn, path, state, changes))
        return out


def sort_key(target):
    name = {R.KEY: "key", R.VERSION: "version", R.CREATE: "create_revision", R.MOD: "mod_revision", R.VALUE: "value"}
    return lambda kv: getattr(kv, name[target])


FIELDS = {
    C.VERSION: "version",
    C.CREATE: "create_revision",
    C.MOD: "mod_revision",
    C.VALUE: "value",
    C.LEASE: "lease",
}


def compare(c, kv):
    name = FIELDS[c.target]
    left = getattr(kv, name)
    right = getattr(c, name) if c.WhichOneof("target_union") == name else type(left)()
    order = (left > right) - (left < right)
    return {C.EQUAL: order == 0, C.NOT_EQUAL: order != 0, C.GREATER: order > 0, C.LESS: order < 0}[c.result]
