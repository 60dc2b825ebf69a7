"""An AuthStore on a dict, with what it tells the hot path written down."""

from types import SimpleNamespace

from etcdfast.api.pb import raft_internal_pb2
from etcdfast.apply.auth import messages
from etcdfast.apply.auth.store import AuthStore


class Table:
    def __init__(self):
        self.users = {}
        self.state = None

    def set_user(self, name, is_root, permissions):
        self.users[name] = (is_root, list(permissions))

    def remove_user(self, name):
        del self.users[name]

    def set_enabled(self, enabled, revision):
        self.state = enabled, revision


class Tokens:
    """Simple tokens whose table is a list of what was asked of it."""

    signs = False

    def __init__(self):
        self.told = []

    def enable(self):
        self.told.append("enable")

    def disable(self):
        self.told.append("disable")

    def drop_user(self, name):
        self.told.append(name)

    def assign(self, user, prefix, index, revision):
        return prefix + b".%d" % index


class Bucket(dict):
    """Store and write batch in one."""

    put = dict.__setitem__

    def delete(self, key):
        self.pop(key, None)

    def scan(self, start, end):
        return [(k, self[k]) for k in sorted(self) if start <= k < end]


class AuthRig:
    """`store`: as apply/store, AuthStore's home."""

    def __init__(self, store=None):
        self.kept = Bucket() if store is None else store
        self.table, self.tokens = Table(), Tokens()
        self.store = AuthStore(self.kept, self.table, self.tokens, lambda password: b"hash of " + password)
        self.index = 0

    def apply(self, user="", **request):
        """Apply an InternalRaftRequest; (error symbol or "", answer)."""
        self.index += 1
        internal = raft_internal_pb2.InternalRaftRequest(header={"ID": 1, "username": user}, **request)
        number, body, head = messages.internal(internal.SerializeToString())
        _, status, answer = self.store.carry_out(number, body, head, self.index, self.kept)
        return status, answer


def bare_auth(store):
    """What ColdPath needs of etcdfast/apply/auth/rpcs.Auth."""
    return SimpleNamespace(store=AuthRig(store).store, active=False)
