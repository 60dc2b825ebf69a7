"""The rules of users and roles on entries of a log; that they are etcd's is for tests/differential/test_auth.py."""

import base64

import pytest

from etcdfast._ext.authtable import AuthTable
from etcdfast._ext.wire import WireError
from etcdfast.api import errors
from etcdfast.api.pb import auth_pb2, raft_internal_pb2, rpc_pb2
from etcdfast.apply import buckets
from etcdfast.apply.auth import messages
from etcdfast.apply.auth.store import NO_PASSWORD_GIVEN
from tests.apply.authrig import AuthRig

READ, WRITE, READWRITE = range(3)


@pytest.fixture
def rig():
    return AuthRig()


def hashed(text=b"$2a$04$x"):
    return base64.b64encode(text).decode()


def with_root(rig):
    rig.apply(auth_user_add={"name": "root", "hashedPassword": hashed()})
    rig.apply(auth_user_grant_role={"user": "root", "role": "root"})
    assert rig.apply(auth_enable={}) == (0, b"")


def refusal(answered):
    return errors.ERRORS[answered[0]].symbol


def test_buckets_hold_what_etcd_writes(rig):
    rig.apply(auth_user_add={"name": "ann", "hashedPassword": hashed(b"$2a$10$abc")})
    rig.apply(auth_user_add={"name": "cn", "options": {"no_password": True}})
    rig.apply(auth_role_add={"name": "r"})
    rig.apply(auth_user_grant_role={"user": "ann", "role": "r"})
    rig.apply(auth_role_grant_permission={"name": "r", "perm": {"key": b"k", "range_end": b"l", "permType": 2}})
    kept = rig.kept
    assert kept[buckets.AUTH_USERS + b"ann"] == b"\x0a\x03ann\x12\x0a$2a$10$abc\x1a\x01r\x22\x00"
    assert kept[buckets.AUTH_USERS + b"cn"] == b"\x0a\x02cn\x22\x02\x08\x01"
    assert kept[buckets.AUTH_ROLES + b"r"] == b"\x0a\x01r\x12\x08\x08\x02\x12\x01k\x1a\x01l"
    assert kept[buckets.AUTH_REVISION] == (6).to_bytes(8, "big")
    assert buckets.AUTH_ENABLED not in kept
    for key, value in kept.items():
        if key[:1] in (buckets.AUTH_USERS, buckets.AUTH_ROLES):
            kind = auth_pb2.User if key[:1] == buckets.AUTH_USERS else auth_pb2.Role
            assert kind.FromString(value).SerializeToString() == value
    again = AuthRig(kept)
    assert (again.store.users, again.store.roles, again.store.revision) == (
        rig.store.users,
        rig.store.roles,
        rig.store.revision,
    )


def test_the_hot_path_hears_of_every_change(rig):
    with_root(rig)
    rig.apply("root", auth_user_add={"name": "ann", "hashedPassword": hashed()})
    rig.apply("root", auth_role_add={"name": "r"})
    rig.apply("root", auth_user_grant_role={"user": "ann", "role": "r"})
    assert rig.table.users == {b"root": (True, []), b"ann": (False, [])}
    rig.apply("root", auth_role_grant_permission={"name": "r", "perm": {"key": b"k", "permType": WRITE}})
    assert rig.table.users[b"ann"] == (False, [(WRITE, b"k", b"")])
    rig.apply("root", auth_role_grant_permission={"name": "r", "perm": {"key": b"k", "permType": READ}})
    assert rig.table.users[b"ann"] == (False, [(READ, b"k", b"")])
    assert rig.table.state == (True, rig.store.revision)
    rig.apply("root", auth_role_delete={"role": "r"})
    assert rig.table.users[b"ann"] == (False, [])
    rig.apply("root", auth_user_delete={"name": "ann"})
    assert b"ann" not in rig.table.users
    rig.apply("root", auth_disable={})
    assert rig.table.state == (False, rig.store.revision)


def test_tokens_go_with_their_user(rig):
    with_root(rig)
    rig.apply("root", auth_user_add={"name": "ann", "hashedPassword": hashed()})
    rig.apply("root", auth_user_change_password={"name": "ann", "hashedPassword": hashed()})
    rig.apply("root", auth_user_delete={"name": "ann"})
    rig.apply("root", auth_disable={})
    assert rig.tokens.told == ["enable", b"ann", b"ann", "disable"]


def test_a_token_is_named_after_its_entry(rig):
    assert refusal(rig.apply(authenticate={"name": "ann", "simple_token": "abc"})) == "AUTH_NOT_ENABLED"
    with_root(rig)
    rig.index = 76
    status, answer = rig.apply(authenticate={"name": "root", "simple_token": "abcdefgh"})
    assert not status and rpc_pb2.AuthenticateResponse.FromString(answer).token == "abcdefgh.77"
    rig.apply("root", auth_user_add={"name": "cn", "options": {"no_password": True}})
    for name in ("nobody", "cn"):
        assert refusal(rig.apply(authenticate={"name": name, "simple_token": "a"})) == "AUTH_FAILED"


def test_only_root_manages_while_it_is_on(rig):
    rig.apply(auth_user_add={"name": "ann", "hashedPassword": hashed()})
    rig.apply(auth_role_add={"name": "r"})
    rig.apply(auth_user_grant_role={"user": "ann", "role": "r"})
    with_root(rig)
    revision = rig.store.revision
    asked = {
        "auth_disable": {},
        "auth_user_add": {"name": "x"},
        "auth_user_delete": {"name": "ann"},
        "auth_user_change_password": {"name": "ann"},
        "auth_user_grant_role": {"user": "ann", "role": "root"},
        "auth_user_revoke_role": {"name": "ann", "role": "r"},
        "auth_user_list": {},
        "auth_role_add": {"name": "x"},
        "auth_role_delete": {"role": "r"},
        "auth_role_list": {},
        "auth_role_grant_permission": {"name": "r", "perm": {"key": b"k"}},
        "auth_role_revoke_permission": {"role": "r", "key": b"k"},
        "auth_enable": {},
    }
    for who, symbol in (("", "USER_EMPTY"), ("nobody", "USER_NOT_FOUND"), ("ann", "PERMISSION_DENIED")):
        for name, request in asked.items():
            assert refusal(rig.apply(who, **{name: request})) == symbol, (who, name)
    assert rig.store.revision == revision
    assert rig.apply("ann", auth_user_get={"name": "ann"})[0] == 0
    assert rig.apply("ann", auth_role_get={"role": "r"})[0] == 0
    assert refusal(rig.apply("ann", auth_user_get={"name": "root"})) == "PERMISSION_DENIED"
    assert refusal(rig.apply("ann", auth_role_get={"role": "root"})) == "PERMISSION_DENIED"
    assert rig.apply("", auth_status={})[0] == 0  # for everybody, since 3.7


def test_root_stays_while_it_is_on(rig):
    with_root(rig)
    rig.apply("root", auth_role_add={"name": "root"})
    for request in (
        {"auth_user_delete": {"name": "root"}},
        {"auth_user_revoke_role": {"name": "root", "role": "root"}},
        {"auth_role_delete": {"role": "root"}},
    ):
        assert refusal(rig.apply("root", **request)) == "INVALID_AUTH_MGMT"
    status, answer = rig.apply("root", auth_role_get={"role": "root"})
    (perm,) = rpc_pb2.AuthRoleGetResponse.FromString(answer).perm
    assert not status and (perm.permType, perm.key, perm.range_end) == (READWRITE, b"", b"\0")


@pytest.mark.parametrize("key,end", [(b"", b""), (b"", b"z"), (b"b", b"a"), (b"b", b"b")])
def test_a_range_of_nothing_is_no_permission(rig, key, end):
    rig.apply(auth_role_add={"name": "r"})
    request = {"name": "r", "perm": {"key": key, "range_end": end}}
    assert refusal(rig.apply(auth_role_grant_permission=request)) == "INVALID_AUTH_MGMT"
    assert refusal(rig.apply(auth_role_grant_permission={"name": "r"})) == "PERMISSION_NOT_GIVEN"


def test_a_password_of_an_old_release_is_hashed_here(rig):
    rig.apply(auth_user_add={"name": "ann", "password": "clear"})
    assert rig.store.users[b"ann"].password == b"hash of clear"


def test_what_is_no_hash_is_refused_in_etcds_words(rig):
    status, text = rig.apply(auth_user_add={"name": "ann", "hashedPassword": "%"})
    assert errors.ERRORS[status].symbol == "UNKNOWN" and text.decode() == NO_PASSWORD_GIVEN
    assert not rig.store.users


def test_names_need_not_be_text(rig):
    """Of etcd 3.5, which never looked; the protobuf runtime would not read such an entry."""
    name = b"\xff\xfe"
    body = messages.encode_user_add(name, None, base64.b64encode(b"hash"))
    entry = b"\xa2\x06\x02\x08\x01" + b"\xe2\x44" + bytes([len(body)]) + body
    number, request, head = messages.internal(entry)
    assert number == 1100
    assert rig.store.carry_out(number, request, head, 1, rig.kept)[1] == 0
    assert rig.apply(auth_user_list={}) == (0, b"\x12\x02" + name)


def test_an_entry_with_two_requests_is_none():
    both = raft_internal_pb2.InternalRaftRequest(auth_enable={}, auth_disable={}).SerializeToString()
    with pytest.raises(WireError):
        messages.internal(both)


def test_a_kind_of_permission_that_nobody_knows_is_kept_and_grants_nothing(rig):
    """The hot path's table takes no such thing, and the entry comes again at each start."""
    with_root(rig)
    rig.store._table = table = AuthTable()
    rig.apply("root", auth_role_add={"name": "r"})
    rig.apply("root", auth_user_add={"name": "u", "hashedPassword": hashed()})
    rig.apply("root", auth_user_grant_role={"user": "u", "role": "r"})
    perm = {"key": b"k", "permType": 7}
    status, _ = rig.apply("root", auth_role_grant_permission={"name": "r", "perm": perm})
    assert not status and table.ranges(b"u") == ([], [])
    assert rig.store.roles[b"r"].permissions[0].type == 7
