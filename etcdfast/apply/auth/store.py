"""Users, roles and permissions as the log makes them, and what a request about them is answered with.

Nothing here depends on anything but the entries applied so far, so all members of a cluster have the same, real etcd
among them: the order of checks is etcd's, for a refused request must be refused by all. What other members propose
comes through here as well.

Source: reference/formats.md section 10; etcd's server/auth/store and apply/auth, newest release. Known to differ from
3.5.1: an empty or reversed range is refused (since 3.5.8), AuthStatus is for everybody (since 3.7), RoleGet of role
`root` shows all keys (since 3.6).
"""

import base64
import binascii
from bisect import bisect_left

from etcdfast import log
from etcdfast._ext.wire import WireError
from etcdfast.api import errors, rpcs
from etcdfast.apply import buckets
from etcdfast.apply.auth import messages
from etcdfast.apply.auth.messages import ALL_KEYS, READ, READWRITE, WRITE, Permission, Role, User

ROOT = b"root"  # the user that must exist, and the role that may everything
NO_PASSWORD_GIVEN = "auth: authentication failed, password was given for no password user"
_ALL = Permission(READWRITE, b"", ALL_KEYS)


class Denied(Exception):
    """A request that leaves everything as it was. symbol: of api/errors; text replaces the table's unless empty."""

    def __init__(self, symbol, text=""):
        super().__init__(text or symbol)
        self.status = errors.ID[symbol]
        self.text = text


class AuthStore:
    """The state. `store`: get, scan (as apply/store); `table`: what the hot path asks (AuthTable of
    etcdfast/_ext/authtable); `tokens`: of etcdfast/apply/auth/tokens; `hash_password`: for entries of etcd 3.4, which
    have passwords in the clear: each member then stores a hash of its own salt, as etcd's do.

    users: {name: User}; roles: {name: Role}; enabled; revision, which every change raises.
    """

    def __init__(self, store, table, tokens, hash_password):
        self._table = table
        self._tokens = tokens
        self._hash_password = hash_password
        self.enabled = store.get(buckets.AUTH_ENABLED) == b"\x01"
        # A new store does not have it: etcd counts its making as the first change.
        self.revision = int.from_bytes(store.get(buckets.AUTH_REVISION) or b"\x01", "big")
        self.users = _named(messages.decode_user, store, buckets.AUTH_USERS)
        self.roles = _named(messages.decode_role, store, buckets.AUTH_ROLES)
        for name in self.users:
            self._show_user(name)
        self._show_state()
        if self.enabled:
            tokens.enable()

    # ---- who may ----

    def need_admin(self, user):
        """Errors: Denied."""
        if not self.enabled:
            return
        if not user:
            raise Denied("USER_EMPTY")
        found = self.users.get(user)
        if found is None:
            raise Denied("USER_NOT_FOUND")
        if not has_role(found, ROOT):
            raise Denied("PERMISSION_DENIED")

    def password_of(self, name):
        """The stored hash to compare with. Errors: Denied; AUTH_FAILED may as well come after a comparison with
        another hash."""
        if not self.enabled:
            raise Denied("AUTH_NOT_ENABLED")
        user = self.users.get(name)
        if user is None:
            raise Denied("AUTH_FAILED")
        if user.no_password:
            raise Denied("UNKNOWN", NO_PASSWORD_GIVEN)
        return user.password

    # ---- the log ----

    def carry_out(self, number, request, head, index, batch):
        """Apply one request, the field `number` of an InternalRaftRequest; `head` is its RequestHeader.

        Returns (RPC id, error id, answer without header, or text of the error). Errors: KeyError for a field that is
        no auth request; WireError.
        """
        name, method, admin_only = FIELDS[number]
        user, _ = messages.header(head)
        try:
            if admin_only:
                self.need_admin(user)
            return method, 0, getattr(self, name)(request, user, index, batch)
        except Denied as denied:
            return method, denied.status, denied.text.encode()

    def _auth_enable(self, request, user, index, batch):
        if self.enabled:
            log.info("authentication is already enabled; ignored auth enable request")
            return b""
        root = self.users.get(ROOT)
        if root is None:
            raise Denied("ROOT_USER_NOT_EXIST")
        if not has_role(root, ROOT):
            raise Denied("ROOT_ROLE_NOT_EXIST")
        batch.put(buckets.AUTH_ENABLED, b"\x01")
        self.enabled = True
        self._tokens.enable()
        self._show_state()
        log.info("enabled authentication")
        return b""

    def _auth_disable(self, request, user, index, batch):
        if self.enabled:
            batch.put(buckets.AUTH_ENABLED, b"\x00")
            self.enabled = False
            self._changed(batch)
            self._tokens.disable()
            log.info("disabled authentication")
        return b""

    def _auth_status(self, request, user, index, batch):
        return messages.status_answer(self.enabled, self.revision)

    def _authenticate(self, request, user, index, batch):
        # The password was compared before this was proposed.
        name, prefix = messages.texts(request, 1, 3)
        if not self.enabled:
            raise Denied("AUTH_NOT_ENABLED")
        found = self.users.get(name)
        if found is None or found.no_password:
            raise Denied("AUTH_FAILED")
        return messages.token_answer(self._tokens.assign(name, prefix, index, self.revision))

    def _user_add(self, request, user, index, batch):
        name, password, no_password, hashed = messages.user_add(request)
        if not name:
            raise Denied("USER_EMPTY")
        if name in self.users:
            raise Denied("USER_ALREADY_EXIST")
        stored = b"" if no_password else self._password(password, hashed)
        self._put_user(User(name, stored, (), bool(no_password)), batch)
        self._changed(batch)
        log.info("added a user", user_name=_text(name))
        return b""

    def _user_delete(self, request, user, index, batch):
        (name,) = messages.texts(request, 1)
        if self.enabled and name == ROOT:
            log.error("cannot delete 'root' user", user_name=_text(name))
            raise Denied("INVALID_AUTH_MGMT")
        found = self._user(name)
        del self.users[name]
        batch.delete(buckets.AUTH_USERS + name)
        self._table.remove_user(name)
        self._changed(batch)
        self._tokens.drop_user(name)
        log.info("deleted a user", user_name=_text(name), user_roles=_texts(found.roles))
        return b""

    def _user_change_password(self, request, user, index, batch):
        name, password, hashed = messages.texts(request, 1, 2, 3)
        found = self._user(name)
        stored = b"" if found.no_password else self._password(password, hashed)
        self._put_user(found._replace(password=stored), batch)
        self._changed(batch)
        self._tokens.drop_user(name)
        log.info("changed a password of a user", user_name=_text(name), user_roles=_texts(found.roles))
        return b""

    def _user_grant_role(self, request, user, index, batch):
        name, role = messages.texts(request, 1, 2)
        found = self._user(name)
        if role != ROOT:  # which need not exist
            self._role(role)
        if has_role(found, role):
            log.warn("ignored grant role request to a user", user_name=_text(name), duplicate_role_name=_text(role))
            return b""
        found = found._replace(roles=tuple(sorted((*found.roles, role))))
        self._put_user(found, batch)
        self._changed(batch)
        log.info("granted a role to a user", user_name=_text(name), user_roles=_texts(found.roles))
        return b""

    def _user_revoke_role(self, request, user, index, batch):
        name, role = messages.texts(request, 1, 2)
        if self.enabled and name == ROOT and role == ROOT:
            log.error("'root' user cannot revoke 'root' role", user_name=_text(name), role_name=_text(role))
            raise Denied("INVALID_AUTH_MGMT")
        found = self._user(name)
        left = tuple(held for held in found.roles if held != role)
        if len(left) == len(found.roles):
            raise Denied("ROLE_NOT_GRANTED")
        self._put_user(found._replace(roles=left), batch)
        self._changed(batch)
        log.info("revoked a role from a user", user_name=_text(name), revoked_role_name=_text(role))
        return b""

    def _user_get(self, request, user, index, batch):
        (name,) = messages.texts(request, 1)
        try:
            self.need_admin(user)
        except Denied:
            if name != user:
                raise
        return messages.names_answer(self._user(name).roles)

    def _user_list(self, request, user, index, batch):
        return messages.names_answer(sorted(self.users))

    def _role_add(self, request, user, index, batch):
        (name,) = messages.texts(request, 1)
        if not name:
            raise Denied("ROLE_EMPTY")
        if name in self.roles:
            raise Denied("ROLE_ALREADY_EXIST")
        self._put_role(Role(name), batch)
        self._changed(batch)
        log.info("created a role", role_name=_text(name))
        return b""

    def _role_delete(self, request, user, index, batch):
        (name,) = messages.texts(request, 1)
        if self.enabled and name == ROOT:
            log.error("cannot delete 'root' role", role_name=_text(name))
            raise Denied("INVALID_AUTH_MGMT")
        self._role(name)
        del self.roles[name]
        batch.delete(buckets.AUTH_ROLES + name)
        for found in list(self.users.values()):
            left = tuple(held for held in found.roles if held != name)
            if len(left) != len(found.roles):
                self._put_user(found._replace(roles=left), batch)
        self._changed(batch)
        log.info("deleted a role", role_name=_text(name))
        return b""

    def _role_get(self, request, user, index, batch):
        (name,) = messages.texts(request, 1)
        try:
            self.need_admin(user)
        except Denied:
            found = self.users.get(user)
            if found is None or name not in found.roles:
                raise
        role = self._role(name)
        return messages.role_answer((_ALL,) if name == ROOT else role.permissions)

    def _role_list(self, request, user, index, batch):
        return messages.names_answer(sorted(self.roles))

    def _role_grant_permission(self, request, user, index, batch):
        name, perm = messages.grant_permission(request)
        if perm is None:
            raise Denied("PERMISSION_NOT_GIVEN")
        if not perm.key or (perm.range_end not in (b"", ALL_KEYS) and perm.key >= perm.range_end):
            raise Denied("INVALID_AUTH_MGMT")
        role = self._role(name)
        held = list(role.permissions)
        at = bisect_left(held, perm.key, key=lambda one: one.key)
        # Only the first one of that key is looked at, so the same range may come to stand there twice.
        if at < len(held) and held[at].key == perm.key and held[at].range_end == perm.range_end:
            held[at] = perm
        else:
            held.append(perm)
            held.sort(key=lambda one: one.key)
        self._put_role(Role(name, tuple(held)), batch)
        self._changed(batch)
        log.info("granted/updated a permission to a role", role_name=_text(name), key=_text(perm.key))
        return b""

    def _role_revoke_permission(self, request, user, index, batch):
        name, key, range_end = messages.texts(request, 1, 2, 3)
        role = self._role(name)
        left = tuple(held for held in role.permissions if (held.key, held.range_end) != (key, range_end))
        if len(left) == len(role.permissions):
            raise Denied("PERMISSION_NOT_GRANTED")
        self._put_role(Role(name, left), batch)
        self._changed(batch)
        log.info("revoked a permission on range", role_name=_text(name), key=_text(key), range_end=_text(range_end))
        return b""

    # ---- parts of them ----

    def _user(self, name):
        found = self.users.get(name)
        if found is None:
            raise Denied("USER_NOT_FOUND")
        return found

    def _role(self, name):
        found = self.roles.get(name)
        if found is None:
            raise Denied("ROLE_NOT_FOUND")
        return found

    def _password(self, password, hashed):
        """What is stored: the member that was asked has hashed it, one of etcd 3.4 has not."""
        if password and not hashed:
            return self._hash_password(password)
        try:
            return base64.b64decode(hashed.translate(None, b"\r\n"), validate=True)
        except binascii.Error:
            raise Denied("UNKNOWN", NO_PASSWORD_GIVEN) from None  # etcd's words for it

    def _put_user(self, user, batch):
        self.users[user.name] = user
        batch.put(buckets.AUTH_USERS + user.name, messages.encode_user(user))
        self._show_user(user.name)

    def _put_role(self, role, batch):
        self.roles[role.name] = role
        batch.put(buckets.AUTH_ROLES + role.name, messages.encode_role(role))
        for user in self.users.values():
            if role.name in user.roles:
                self._show_user(user.name)

    def _changed(self, batch):
        self.revision += 1
        batch.put(buckets.AUTH_REVISION, self.revision.to_bytes(8, "big"))
        self._show_state()

    def _show_user(self, name):
        user = self.users[name]
        # Of a kind that this release does not know: etcd stores it and it grants nothing.
        permissions = [
            tuple(perm)
            for role in user.roles
            if role in self.roles
            for perm in self.roles[role].permissions
            if perm.type in (READ, WRITE, READWRITE)
        ]
        self._table.set_user(name, has_role(user, ROOT), permissions)

    def _show_state(self):
        self._table.set_enabled(self.enabled, self.revision)


def has_role(user, role):
    """By halving, as etcd looks: the roles of a user are in order."""
    at = bisect_left(user.roles, role)
    return at < len(user.roles) and user.roles[at] == role


def _named(decode, store, bucket):
    """{key: record} of a bucket."""
    return {key[1:]: decode(value) for key, value in store.scan(bucket, buckets.end(bucket))}


def _text(name):
    return name.decode("utf-8", "replace")


def _texts(names):
    return [_text(name) for name in names]


def _rpc(name):
    return rpcs.BY_PATH[f"/etcdserverpb.Auth/{name}"].id


# Field of InternalRaftRequest -> (method here, RPC id, whether it is for role root alone)
FIELDS = {
    1000: ("_auth_enable", _rpc("AuthEnable"), True),
    1011: ("_auth_disable", _rpc("AuthDisable"), True),
    1012: ("_authenticate", _rpc("Authenticate"), False),
    1013: ("_auth_status", _rpc("AuthStatus"), False),
    1100: ("_user_add", _rpc("UserAdd"), True),
    1101: ("_user_delete", _rpc("UserDelete"), True),
    1102: ("_user_get", _rpc("UserGet"), False),
    1103: ("_user_change_password", _rpc("UserChangePassword"), True),
    1104: ("_user_grant_role", _rpc("UserGrantRole"), True),
    1105: ("_user_revoke_role", _rpc("UserRevokeRole"), True),
    1106: ("_user_list", _rpc("UserList"), True),
    1107: ("_role_list", _rpc("RoleList"), True),
    1200: ("_role_add", _rpc("RoleAdd"), True),
    1201: ("_role_delete", _rpc("RoleDelete"), True),
    1202: ("_role_get", _rpc("RoleGet"), False),
    1203: ("_role_grant_permission", _rpc("RoleGrantPermission"), True),
    1204: ("_role_revoke_permission", _rpc("RoleRevokePermission"), True),
}

__all__ = ["AuthStore", "Denied", "FIELDS", "ROOT", "WireError", "has_role"]
