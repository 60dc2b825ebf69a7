"""Random calls of the Auth service and of users with and without permissions; names few, so that they collide."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from tests.harness import Client, Reply, pb

USERS = ("root", "ann", "bob", "cat", "dan", "")
ROLES = ("root", "readers", "writers", "ops", "none", "")
PASSWORDS = ("pw", "other", "x" * 72)
KEYS = (b"a", b"b", b"c", b"d", b"da", b"e", b"\xff")
NOBODY = None

PERM = pb.Permission
OLD_PASSWORD = "the one before"


@dataclass
class Asked:
    """One call: by whom (a user whose token is sent, or nobody), method, request."""

    user: str | None
    method: str
    request: Any

    def __str__(self) -> str:
        return f"{self.user or 'nobody'}: {self.method} {' '.join(str(self.request).split())}"


def random_range(chance: random.Random) -> tuple[bytes, bytes]:
    key = chance.choice(KEYS)
    shape = chance.random()
    if shape < 0.45:
        return key, b""
    if shape < 0.55:
        return key, b"\0"
    above = [other for other in KEYS if other > key]
    return (key, chance.choice(above)) if above else (key, b"")


def management(chance: random.Random) -> tuple[str, Any]:
    """One call of the Auth service that does not switch it on or off."""
    user, role = chance.choice(USERS), chance.choice(ROLES)
    key, end = random_range(chance)
    perm = PERM(key=key, range_end=end, permType=chance.choice((PERM.READ, PERM.WRITE, PERM.READWRITE)))
    options = chance.choice((None, None, {"no_password": False}, {"no_password": True}))
    password = chance.choice(PASSWORDS)
    table = (
        (4, "UserAdd", pb.AuthUserAddRequest(name=user, password=password, options=options)),
        (2, "UserGet", pb.AuthUserGetRequest(name=user)),
        (1, "UserList", pb.AuthUserListRequest()),
        (2, "UserDelete", pb.AuthUserDeleteRequest(name=user)),
        (2, "UserChangePassword", pb.AuthUserChangePasswordRequest(name=user, password=password)),
        (6, "UserGrantRole", pb.AuthUserGrantRoleRequest(user=user, role=role)),
        (3, "UserRevokeRole", pb.AuthUserRevokeRoleRequest(name=user, role=role)),
        (4, "RoleAdd", pb.AuthRoleAddRequest(name=role)),
        (2, "RoleGet", pb.AuthRoleGetRequest(role=role)),
        (1, "RoleList", pb.AuthRoleListRequest()),
        (1, "RoleDelete", pb.AuthRoleDeleteRequest(role=role)),
        (8, "RoleGrantPermission", pb.AuthRoleGrantPermissionRequest(name=role, perm=perm)),
        (1, "RoleGrantPermission", pb.AuthRoleGrantPermissionRequest(name=role)),
        (4, "RoleRevokePermission", pb.AuthRoleRevokePermissionRequest(role=role, key=key, range_end=end)),
    )
    _, method, request = chance.choices(table, [row[0] for row in table])[0]
    return method, request


def operation(chance: random.Random) -> tuple[str, Any]:
    """One call of the KV service, small enough that every release judges it alike."""
    key, end = random_range(chance)
    kind = chance.randrange(6)
    if kind < 2:
        return "Range", pb.RangeRequest(key=key, range_end=end, serializable=chance.random() < 0.3)
    if kind == 2:
        return "Put", pb.PutRequest(key=key, value=b"v", prev_kv=chance.random() < 0.3)
    if kind == 3:
        return "DeleteRange", pb.DeleteRangeRequest(key=key, range_end=end, prev_kv=chance.random() < 0.3)
    other, other_end = random_range(chance)
    request = pb.TxnRequest()
    request.compare.add(key=key, target=pb.Compare.VERSION, result=pb.Compare.GREATER, version=0)
    for branch in (request.success, request.failure):
        if chance.random() < 0.5:
            branch.add().request_range.CopyFrom(pb.RangeRequest(key=other, range_end=other_end))
        else:
            branch.add().request_delete_range.CopyFrom(pb.DeleteRangeRequest(key=other, range_end=other_end))
    return "Txn", request


@dataclass
class Side:
    """A server's client and the tokens it gave."""

    client: Client
    tokens: dict[str, str] = field(default_factory=dict)

    def ask(self, asked: Asked) -> Reply:
        token = self.tokens.get(asked.user) if asked.user is not None else None
        reply = self.client.call(asked.method, asked.request, token=token)
        if asked.method == "Authenticate" and reply.ok:
            self.tokens[asked.request.name] = reply.message.token
        if asked.method == "AuthDisable" and reply.ok:
            self.tokens.clear()
        return reply
