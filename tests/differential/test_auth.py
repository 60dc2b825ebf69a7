"""Users, roles, permissions and what they allow: etcd 3.5.1 and the target answer alike."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.harness import Reply, pb, reference_server, started_pair, target_server

from .auth_calls import NOBODY, PASSWORDS, ROLES, USERS, Asked, Side, management, operation
from .compare import Difference, compare_replies
from .test_random_calls import SEED_VARIABLE

STEPS = 300
FLAGS = ("--bcrypt-cost", "4")


class Pair:
    def __init__(self, left: Side, right: Side) -> None:
        self.left, self.right = left, right
        self.seen: Counter[str] = Counter()
        self.passwords: dict[str, str] = {}

    def ask(self, user: str | None, method: str, request: object, where: str = "") -> Reply:
        asked = Asked(user, method, request)
        left, right = self.left.ask(asked), self.right.ask(asked)
        found = [one for one in compare_replies(method, request, left, right) if not _known(asked, left, right, one)]
        if found:
            pytest.fail(f"{where} {asked}\n  " + "\n  ".join(map(str, found)), pytrace=False)
        self.seen[method if left.ok else f"{method} {left.code} {left.text}"] += 1
        if left.ok and method in ("UserAdd", "UserChangePassword"):
            self.passwords[request.name] = request.password
        if left.ok and method == "RoleGrantPermission":
            # From seven on the order of equal keys is that of the sort of the Go release which etcd was built with:
            # before Go 1.19 it was stable for six, now for twelve.
            role = self.ask(user, "RoleGet", pb.AuthRoleGetRequest(role=request.name), where)
            if role.ok and len(role.message.perm) >= 6 or request.name == "root":
                self.ask(user, "RoleDelete", pb.AuthRoleDeleteRequest(role=request.name), where)
        return left

    def all_alike(self, where: str) -> None:
        for method, request in (
            ("AuthStatus", pb.AuthStatusRequest()),
            ("UserList", pb.AuthUserListRequest()),
            ("RoleList", pb.AuthRoleListRequest()),
            *(("UserGet", pb.AuthUserGetRequest(name=name)) for name in USERS),
            *(("RoleGet", pb.AuthRoleGetRequest(role=name)) for name in ROLES),
        ):
            self.ask("root", method, request, where)


def _known(asked: Asked, left: Reply, right: Reply, found: Difference) -> bool:
    """Where 3.5.1 differs from the newest release, which the target follows."""
    if asked.method == "Authenticate" and found.path == "token":
        return True
    if asked.method == "RoleGet" and asked.request.role == "root":
        return right.ok and [(p.permType, p.key, p.range_end) for p in right.message.perm] == [(2, b"", b"\0")]
    if asked.method == "AuthStatus" and not left.ok:  # for everybody since 3.7
        return right.ok and right.message.enabled
    return False


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[object, object]]:
    with started_pair(reference_server(flags=FLAGS), target_server(flags=FLAGS)) as pair:
        yield pair


@pytest.fixture(scope="module")
def pair(servers: tuple) -> Iterator[Pair]:
    with servers[0].client() as left, servers[1].client() as right:
        yield Pair(Side(left), Side(right))


def _seed() -> int:
    return int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))


def test_auth_that_is_off_is_managed_by_anybody(pair: Pair) -> None:
    seed = _seed()
    chance = random.Random(seed)
    pair.ask(NOBODY, "AuthEnable", pb.AuthEnableRequest())
    pair.ask(NOBODY, "Authenticate", pb.AuthenticateRequest(name="ann", password="pw"))
    for step in range(STEPS):
        pair.ask(NOBODY, *management(chance), f"seed {seed}, step {step}")
        if step % 50 == 49:
            pair.all_alike(f"seed {seed}, after step {step}")
    for expected in (
        "UserAdd 9 etcdserver: user name already exists",
        "UserAdd 3 etcdserver: user name is empty",
        "RoleAdd 3 etcdserver: role name is empty",
        "UserDelete 9 etcdserver: user name not found",
        "RoleRevokePermission 9 etcdserver: permission is not granted to the role",
        "RoleGrantPermission 3 etcdserver: permission not given",
        "UserRevokeRole 9 etcdserver: role is not granted to the user",
        "UserGrantRole 9 etcdserver: role name not found",
        "AuthEnable 9 etcdserver: root user does not exist",
        "Authenticate 9 etcdserver: authentication is not enabled",
    ):
        assert pair.seen[expected], f"seed {seed}: never came: {expected}; {sorted(pair.seen)}"


def _everybody_logs_in(pair: Pair, where: str) -> None:
    for name in ("root", "ann", "bob", "cat", "dan"):
        pair.ask(
            NOBODY, "Authenticate", pb.AuthenticateRequest(name=name, password=pair.passwords.get(name, "")), where
        )


def test_auth_that_is_on_lets_users_do_what_they_may(pair: Pair) -> None:
    seed = _seed()
    chance = random.Random(seed)
    pair.ask(NOBODY, "UserDelete", pb.AuthUserDeleteRequest(name="root"))
    pair.ask(NOBODY, "UserAdd", pb.AuthUserAddRequest(name="root", password="pw"))
    pair.ask(NOBODY, "AuthEnable", pb.AuthEnableRequest())
    pair.ask(NOBODY, "UserGrantRole", pb.AuthUserGrantRoleRequest(user="root", role="root"))
    for name in ("ann", "bob", "cat", "dan"):
        pair.ask(NOBODY, "UserDelete", pb.AuthUserDeleteRequest(name=name))
        pair.ask(NOBODY, "UserAdd", pb.AuthUserAddRequest(name=name, password=chance.choice(PASSWORDS)))
    for step in range(60):  # so that there is something to allow
        method, request = management(chance)
        if method in ("RoleAdd", "RoleGrantPermission", "UserGrantRole"):
            pair.ask(NOBODY, method, request, f"seed {seed}, before, {step}")
    # Once more: a role `root` that came and went took it along.
    pair.ask(NOBODY, "UserGrantRole", pb.AuthUserGrantRoleRequest(user="root", role="root"))
    assert pair.ask(NOBODY, "AuthEnable", pb.AuthEnableRequest()).ok, f"seed {seed}"
    _everybody_logs_in(pair, f"seed {seed}")
    for step in range(STEPS):
        where = f"seed {seed}, step {step}"
        user = chance.choice((NOBODY, "root", "ann", "bob", "cat", "dan"))
        kind = chance.random()
        if kind < 0.55:
            pair.ask(user, *operation(chance), where)
        elif kind < 0.75:
            pair.ask("root", *management(chance), where)
        elif kind < 0.9:
            pair.ask(user, *management(chance), where)
        elif kind < 0.97:
            name = chance.choice(USERS)
            password = pair.passwords.get(name, "") if chance.random() < 0.7 else "wrong"
            pair.ask(user, "Authenticate", pb.AuthenticateRequest(name=name, password=password), where)
        elif kind < 0.98:
            pair.ask(user, "AuthEnable", pb.AuthEnableRequest(), where)
        else:
            pair.ask(user, "AuthStatus", pb.AuthStatusRequest(), where)
        if step % 50 == 49:
            _everybody_logs_in(pair, where)
            pair.all_alike(where)
    for expected in (
        "Put 7 etcdserver: permission denied",
        "Range 7 etcdserver: permission denied",
        "Range 3 etcdserver: user name is empty",
        "Authenticate 3 etcdserver: authentication failed, invalid user ID or password",
        "Range",
        "Put",
        "Txn",
    ):
        assert pair.seen[expected], f"seed {seed}: never came: {expected}; {sorted(pair.seen)}"
    managed = [name for name in pair.seen if name.startswith(("User", "Role"))]
    assert any(name.endswith("7 etcdserver: permission denied") for name in managed), f"seed {seed}"
    pair.ask("root", "AuthDisable", pb.AuthDisableRequest())
    pair.all_alike("off again")
    pair.ask(NOBODY, "Put", pb.PutRequest(key=b"k"))
