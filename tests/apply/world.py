"""The services of apply over an in-memory key space and log; the test is the loop, the clock and consensus.

Nothing happens by itself: proposals lie in `pending` until `commit`, `refuse` or `lose`, and time stands
still until `wait`.
"""

from collections import namedtuple

from etcdfast.api import errors, rpcs
from etcdfast.api.pb import rpc_pb2
from etcdfast.apply import elections, locks
from etcdfast.apply.services import Services
from tests.apply.model import Model, Refused
from tests.apply.rig import CLUSTER, MEMBER, TERM

REQUEST_BYTES_MAX = 1536 * 1024
SECOND = 10**9
Answer = namedtuple("Answer", "status text message")
Pending = namedtuple("Pending", "method request token")
LEASE_NOT_FOUND = errors.ERRORS[errors.ID["LEASE_NOT_FOUND"]].text
TIMED_OUT = errors.ERRORS[errors.ID["TIMEOUT"]].text

_REQUESTS = {
    rpcs.BY_PATH[f"/etcdserverpb.{path}"].id: (name, rpcs.message_class(rpcs.BY_PATH[f"/etcdserverpb.{path}"].request))
    for path, name in (
        ("KV/Put", "put"),
        ("KV/DeleteRange", "delete_range"),
        ("KV/Txn", "txn"),
        ("KV/Compact", "compact"),
        ("Lease/LeaseGrant", "lease_grant"),
        ("Lease/LeaseRevoke", "lease_revoke"),
    )
}
PUT, DELETE, TXN, COMPACT, GRANT, REVOKE = _REQUESTS


class LeaseModel(Model):
    """The KV model with leases that end when told to, and a list of what changed."""

    def __init__(self, new_ids=()):
        super().__init__()
        self.leases = set()
        self.new_ids = list(new_ids)  # of leases granted without an id
        self.changes = []  # (key, main, deleted) since the last look

    def lease_grant(self, r):
        lease = r.ID or (self.new_ids.pop(0) if self.new_ids else 1000 + len(self.leases))
        if lease in self.leases:
            raise Refused("LEASE_EXIST")
        self.leases.add(lease)
        return rpc_pb2.LeaseGrantResponse(header=self.header(), ID=lease, TTL=r.TTL)

    def lease_revoke(self, r):
        if r.ID not in self.leases:
            raise Refused("LEASE_NOT_FOUND")
        self.leases.discard(r.ID)
        attached = [key for key, kv in self.states[self.current].items() if kv.lease == r.ID]

        def work(state, changes):
            for key in sorted(attached):
                self._delete(rpc_pb2.DeleteRangeRequest(key=key), state, changes)
            return rpc_pb2.LeaseRevokeResponse()

        return self._write(work)

    def put(self, r):
        if r.lease and r.lease not in self.leases:
            raise Refused("LEASE_NOT_FOUND")
        return self._write(lambda state, changes: self._put(r, state, changes))

    def _check(self, r, path, kind):
        for op in r.success if path[0] else r.failure:
            lease = op.request_put.lease
            if lease and lease not in self.leases:
                raise Refused("LEASE_NOT_FOUND")

    def _put(self, r, state, changes):
        self.changes.append((r.key, self.current + 1, False))
        return super()._put(r, state, changes)

    def _delete(self, r, state, changes):
        before = len(changes)
        out = super()._delete(r, state, changes)
        self.changes += [(key, self.current + 1, True) for key in changes[before:]]
        return out


class Space:
    """The face of services.py on a model."""

    cluster_id, member_id, raft_term, leader = CLUSTER, MEMBER, TERM, MEMBER

    def __init__(self, model):
        self._model = model

    @property
    def current_revision(self):
        return self._model.current

    def get(self, key, revision=0):
        if 0 < revision < self._model.compacted:
            return None
        kv = self._model.states[revision or self._model.current].get(key)
        return kv and (kv.create_revision, kv.mod_revision, kv.version, kv.SerializeToString())

    def _below(self, prefix):
        state = self._model.states[self._model.current]
        return [state[key] for key in sorted(state) if key.startswith(prefix)]

    def first_created(self, prefix):
        found = self._below(prefix)
        return min(found, key=lambda kv: kv.create_revision).SerializeToString() if found else None

    def last_created(self, prefix, create_max):
        found = [kv for kv in self._below(prefix) if kv.create_revision <= create_max]
        return max(found, key=lambda kv: kv.create_revision).key if found else None


class World:
    """Start calls with `ask`; answers are in `answers` by who asked, messages of streams in `messages`."""

    def __init__(self, new_ids=(), **limits):
        self.model = LeaseModel(new_ids)
        self.space = Space(self.model)
        self.services = Services(
            self.space, self, {**locks.HANDLERS, **elections.HANDLERS}, REQUEST_BYTES_MAX, **limits
        )
        self.now_ns = 5 * SECOND
        self.services.tick(self.now_ns)
        self.room = 1 << 30  # proposals that the ring takes
        self.pending = []
        self.reads = []  # tokens of ReadIndexes
        self.reads_held = False  # else they are answered in the same turn
        self.log = []  # (method, request bytes) committed
        self.answers = {}
        self.messages = {}
        self.methods = {}
        self.asked = 0

    # ---- the loop's face ----

    def propose(self, method, request, token):
        assert 0 < token < 1 << 32 and len(request) <= REQUEST_BYTES_MAX
        if len(self.pending) >= self.room:
            return False
        self.pending.append(Pending(method, request, token))
        return True

    def may_read(self, user, auth_revision, key, range_end):
        return 0

    def read(self, method, token, deadline_ns):
        assert 0 < token < 1 << 32 and deadline_ns > self.now_ns
        self.reads.append(token)
        return True

    def reply(self, who, status, payload, text):
        assert who not in self.answers and who not in self.messages, f"call {who} is answered twice"
        message = None if status else rpcs.message_class(self.methods[who].response).FromString(payload)
        self.answers[who] = Answer(status, _text(status, text), message)

    def message(self, who, payload):
        assert who not in self.answers
        self.messages.setdefault(who, []).append(rpcs.message_class(self.methods[who].response).FromString(payload))

    def end(self, who, status, text):
        assert who in self.messages and who not in self.answers
        self.answers[who] = Answer(status, _text(status, text), None)

    # ---- what a test does ----

    def ask(self, path, request, turn=True):
        """Start a call; returns who asked."""
        self.asked += 1
        who = ("client", self.asked)
        rpc = self.methods[who] = rpcs.BY_PATH[path]
        payload = request if isinstance(request, bytes) else request.SerializeToString()
        self.services.call(rpc.id, payload, who)
        if turn:
            self.turn()
        return who

    def turn(self):
        while self.services.turn() or self.reads and not self.reads_held:
            if not self.reads_held:
                self.answer_reads()

    def answer_reads(self, symbol="NONE"):
        taken, self.reads = self.reads, []
        for token in taken:
            self.services.answered(token, errors.ID[symbol], b"")

    def settle(self):
        """Commit what is proposed, one entry per turn, until nothing is left to do."""
        self.turn()
        while self.pending:
            self.commit(1)

    def commit(self, count=1 << 30):
        """Apply the next proposals in one turn of the loop."""
        taken, self.pending = self.pending[:count], self.pending[count:]
        for pending in taken:
            self.log.append(pending[:2])
        self._turn_with([(pending.token, *self._apply(pending.method, pending.request)) for pending in taken])

    def refuse(self, symbol, count=1):
        taken, self.pending = self.pending[:count], self.pending[count:]
        self._turn_with([(pending.token, errors.ID[symbol], b"") for pending in taken])

    def lose(self, count=1):
        """Proposals that never come back."""
        taken, self.pending = self.pending[:count], self.pending[count:]
        return taken

    def apply(self, method, request):
        """An entry of somebody else."""
        return self.apply_all([(method, request)])[0]

    def apply_all(self, entries):
        """Entries of somebody else, all in one turn: their (error id, response bytes)."""
        out = [self._apply(method, request.SerializeToString()) for method, request in entries]
        self._turn_with([])
        return out

    def wait(self, seconds, step=0.5):
        """Time passes, and the loop turns as often as a real one does at least."""
        end_ns = self.now_ns + int(seconds * SECOND)
        while self.now_ns < end_ns:
            self.now_ns = min(self.now_ns + int(step * SECOND), end_ns)
            self.services.tick(self.now_ns)
            self.turn()

    def grant(self, *leases):
        self.model.leases.update(leases)

    def keys(self, prefix=b""):
        return sorted(key for key in self.model.states[self.model.current] if key.startswith(prefix))

    def assert_idle(self):
        """Nothing is left of any call."""
        services = self.services
        assert (services.count, services.waiting, services.unsent_bytes) == (0, 0, 0)
        assert not services.blocked and not services.next_due_ns
        for kept in ("_calls", "_ghosts", "_proposed", "_keys", "_prefixes", "_prefix_lengths", "_starved", "_due"):
            assert not getattr(services, kept), kept
        assert services._held_bytes == 0

    def _apply(self, method, request):
        name, message_class = _REQUESTS[method]
        try:
            return 0, getattr(self.model, name)(message_class.FromString(request)).SerializeToString()
        except Refused as refused:
            return errors.ID[str(refused)], b""

    def _turn_with(self, answered):
        changes, self.model.changes = self.model.changes, []
        if self.services.waiting:
            for change in changes:
                self.services.changed(*change)
        for answer in answered:
            self.services.answered(*answer)
        self.turn()


def _text(status, text):
    return (text or errors.ERRORS[status].text) if status else ""
