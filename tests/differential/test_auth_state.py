"""Users outlive restarts and travel: in snapshots both ways, through mixed clusters, in JWT tokens of either server."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcdfast.apply.auth import signing
from etcdfast.config import authtoken
from tests.apply.test_auth_helpers import _PRIVATE, key_files
from tests.e2e.etcdctl import etcdctl
from tests.harness import Server, boltread, etcdutl, pb, reference_server, target_name, target_server, wait_until
from tests.harness.cluster import RELAXED, Cluster

from .auth_calls import ROLES, USERS, management
from .test_auth import FLAGS

TARGET = target_name()
CALLS = 120


def build(client, seed: int) -> None:
    """Random users and roles, and a root; auth stays off."""
    chance = random.Random(seed)
    for _ in range(CALLS):
        client.call(*management(chance))
    for method, request in (
        ("UserDelete", pb.AuthUserDeleteRequest(name="root")),
        ("UserAdd", pb.AuthUserAddRequest(name="root", password="pw")),
        ("UserGrantRole", pb.AuthUserGrantRoleRequest(user="root", role="root")),
        ("UserAdd", pb.AuthUserAddRequest(name="cert", options={"no_password": True})),
        ("RoleAdd", pb.AuthRoleAddRequest(name="kept")),
        ("UserAdd", pb.AuthUserAddRequest(name="kept", password="kept's")),
        ("UserGrantRole", pb.AuthUserGrantRoleRequest(user="kept", role="kept")),
        ("RoleGrantPermission", pb.AuthRoleGrantPermissionRequest(name="kept", perm={"key": b"k", "permType": 2})),
    ):
        client.call(method, request)


def state(client, token: str | None = None) -> dict:
    """All that can be seen, without headers."""
    seen = {}
    for method, request in (
        ("AuthStatus", pb.AuthStatusRequest()),
        ("UserList", pb.AuthUserListRequest()),
        ("RoleList", pb.AuthRoleListRequest()),
        *(("UserGet", pb.AuthUserGetRequest(name=name)) for name in (*USERS, "cert", "kept")),
        *(("RoleGet", pb.AuthRoleGetRequest(role=name)) for name in (*ROLES, "kept") if name != "root"),
    ):
        reply = client.call(method, request, token=token)
        message = reply.message if reply.ok else None
        if message is not None:
            message.ClearField("header")
        seen[method, str(request)] = reply.code, reply.text, message
    return seen


def enable(client) -> str:
    """Switch it on; root's token."""
    client.call("AuthEnable", pb.AuthEnableRequest()).message  # noqa: B018 - raises
    return log_in(client, "root", "pw")


def log_in(client, name: str, password: str) -> str:
    return client.call("Authenticate", pb.AuthenticateRequest(name=name, password=password)).message.token


@pytest.mark.parametrize("saver,heirs", [("etcd", "target"), ("target", "etcd")])
def test_a_snapshot_carries_users(saver: str, heirs: str, tmp_path: Path) -> None:
    kinds = {"etcd": reference_server, "target": target_server}
    source, heir = kinds[saver](flags=FLAGS), kinds[heirs](flags=FLAGS)
    try:
        source.start()
        with source.client() as client:
            build(client, 7)
            before = state(client)
        saved = tmp_path / "saved.db"
        assert etcdctl(source.endpoint, "snapshot", "save", str(saved)).code == 0
        done = etcdutl.run("snapshot", "restore", saved, "--data-dir", heir.data_dir)
        assert done.returncode == 0, done.stderr
        heir.start()
        with heir.client() as client:
            assert state(client) == before
            enable(client)
            log_in(client, "kept", "kept's")
            wrong = client.call("Authenticate", pb.AuthenticateRequest(name="kept", password="pw"))
            assert (wrong.code, wrong.text) == (3, "etcdserver: authentication failed, invalid user ID or password")
    finally:
        source.close()
        heir.close()


def test_a_data_directory_with_auth_on_is_taken_over_and_written_as_etcds(tmp_path: Path) -> None:
    """etcd's own directory, opened by the target; then what the target writes of it, byte for byte."""
    old, heir = reference_server(flags=FLAGS), target_server(flags=FLAGS)
    try:
        old.start()
        with old.client() as client:
            build(client, 8)
            token = enable(client)
            client.call("RoleAdd", pb.AuthRoleAddRequest(name="late"), token=token).message  # noqa: B018 - raises
            before = state(client, token)
        old.stop()
        kept = boltread.buckets(old.data_dir / "member/snap/db")
        shutil.copytree(old.data_dir, heir.data_dir)
        for _ in range(2):  # the second time from what it has stored itself
            heir.start()
            with heir.client() as client:
                assert state(client, log_in(client, "root", "pw")) == before
            done = etcdctl(heir.endpoint, "snapshot", "save", str(tmp_path / "saved.db"), "--user", "root:pw")
            assert done.code == 0, done
            found = boltread.buckets(tmp_path / "saved.db")
            for bucket in (b"auth", b"authUsers", b"authRoles"):
                assert found[bucket] == kept[bucket] and kept[bucket]
            heir.stop()
    finally:
        old.close()
        heir.close()


@pytest.fixture(scope="module")
def mixed() -> Iterator[Cluster]:
    """Two of etcd and one of the target: what one is asked, all must carry out alike."""
    environment = {"ETCD_MAX_CLUSTER_VERSION": "3.5.0"}
    with Cluster("etcd", 3, flags=[*FLAGS, *RELAXED], environment=environment) as cluster:
        victim = cluster.followers()[0]
        cluster.remove(victim)
        member = cluster.add(TARGET, learner=False, flags=[*FLAGS])
        cluster.wait_all_healthy()
        cluster.mixed_member = member
        yield cluster


def test_a_mixed_cluster_stays_equal_with_auth(mixed: Cluster) -> None:
    ours = mixed.mixed_member
    theirs = next(member for member in mixed.live if member is not ours)
    seed = random.SystemRandom().randrange(2**31)
    chance = random.Random(seed)
    with ours.client() as one, theirs.client() as other:
        for _ in range(CALLS):
            chance.choice((one, other)).call(*management(chance))
        build(one, seed)
        assert state(one) == state(other), f"seed {seed}"
        token = enable(other)
        wait_until(lambda: state(one, token) == state(other, token), f"equal states, seed {seed}")
        for client in (one, other):
            # A token of one is good at the other, at once.
            fresh = log_in(client, "kept", "kept's")
            for asked in (other, one):
                assert asked.call("Put", pb.PutRequest(key=b"k"), token=fresh).ok
                denied = asked.call("Put", pb.PutRequest(key=b"other"), token=fresh)
                assert (denied.code, denied.text) == (7, "etcdserver: permission denied")
        for asked, change in ((one, "RoleAdd"), (other, "RoleDelete"), (one, "UserDelete")):
            request = {
                "RoleAdd": pb.AuthRoleAddRequest(name="new"),
                "RoleDelete": pb.AuthRoleDeleteRequest(role="new"),
                "UserDelete": pb.AuthUserDeleteRequest(name="kept"),
            }[change]
            assert asked.call(change, request, token=token).ok
        assert state(one, token) == state(other, token)
        gone = one.call("Put", pb.PutRequest(key=b"k"), token=fresh)
        assert gone.text == "etcdserver: invalid auth token"


# One of each kind that etcd 3.5.1 takes; EdDSA came later.
CROSSED = ("PS384", "ES512", "HS256")


@pytest.mark.parametrize("method", CROSSED)
def test_jwt_tokens_of_etcd_and_of_the_target_are_good_at_the_other(method: str, tmp_path: Path) -> None:
    files = key_files(method, tmp_path)
    text = ",".join(["jwt", f"sign-method={method}", *(f"{name}={path}" for name, path in files.items() if path)])
    flags = [*FLAGS, "--auth-token", text]
    servers: list[Server] = [reference_server(flags=flags), target_server(flags=flags)]
    try:
        for server in servers:
            server.start()
        with servers[0].client() as left, servers[1].client() as right:
            tokens = []
            for client in (left, right):
                build(client, 9)
                tokens.append(enable(client))
            signer = signing.Signer(authtoken.parse(text)[1])
            for token in tokens:
                left_ns, _, user = signing.read_verified(signer.verify(token.encode()))
                assert user == b"root" and 200e9 < left_ns <= 300e9
                for client in (left, right):
                    assert client.call("UserList", pb.AuthUserListRequest(), token=token).ok
            forged = tokens[0][:-6] + "AAAAAA"
            for client in (left, right):
                refused = client.call("UserList", pb.AuthUserListRequest(), token=forged)
                assert (refused.code, refused.text) == (16, "etcdserver: invalid auth token")
    finally:
        for server in servers:
            server.close()


def test_a_simple_token_ends_without_use() -> None:
    with target_server(flags=[*FLAGS, "--auth-token-ttl", "2"]) as server, server.client() as client:
        build(client, 10)
        token = enable(client)
        began = time.monotonic()
        while time.monotonic() < began + 2.5:  # use keeps it
            assert client.call("UserList", pb.AuthUserListRequest(), token=token).ok
            time.sleep(0.2)
        time.sleep(2.2)
        refused = client.call("UserList", pb.AuthUserListRequest(), token=token)
        assert (refused.code, refused.text) == (16, "etcdserver: invalid auth token")


def test_new_jwt_keys_are_taken_at_sighup(tmp_path: Path) -> None:
    """Without a restart; keys that are none leave the old ones in force."""
    files = key_files("ES256", tmp_path)
    text = f"jwt,sign-method=ES256,priv-key={files['priv-key']},pub-key={files['pub-key']}"
    with target_server(flags=[*FLAGS, "--auth-token", text]) as server, server.client() as client:
        build(client, 11)
        old = enable(client)

        def works(token: str) -> bool:
            return client.call("UserList", pb.AuthUserListRequest(), token=token).ok

        def hangup(line: str) -> None:
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: line in server.log_text(), f"log: {line}")

        good = {name: Path(path).read_bytes() for name, path in files.items()}
        Path(files["priv-key"]).write_text("none")
        hangup("cannot use the new keys of JWT tokens; the old ones stay")
        assert works(old) and works(log_in(client, "root", "pw"))
        _PRIVATE.pop("ES256")
        key_files("ES256", tmp_path)
        assert good["priv-key"] != Path(files["priv-key"]).read_bytes()
        hangup("read the keys of JWT tokens again")
        assert works(log_in(client, "root", "pw"))
        assert not works(old)
