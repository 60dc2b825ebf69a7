"""Entries and records as apply judges them: by the identity in them alone, and by its own state when it gets there."""

from __future__ import annotations

import pytest

from etcdfast._ext.authtable import READ, READWRITE
from etcdfast.api import errors
from etcdfast.api.pb import raft_internal_pb2, rpc_pb2
from tests.apply.rig import KINDS, RPC, Config, Rig, answer_of

REVISION = 7
CREDIT, BAD_TOKEN = 2, 8


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path / "store", config=Config())
    table = made.loop.ops.auth
    table.set_user(b"root", True)
    table.set_user(b"ann", False, [(READWRITE, b"a", b"c"), (READ, b"d", b"")])
    yield made
    made.close()


def turn_on(rig, revision=REVISION):
    rig.loop.ops.auth.set_enabled(True, revision)


def put(rig, key, header_first=False, **header):
    request = raft_internal_pb2.InternalRaftRequest(put=rpc_pb2.PutRequest(key=key)).SerializeToString()
    head = raft_internal_pb2.InternalRaftRequest(header={"ID": 1, **header}).SerializeToString()
    stream = rig.entry(head + request if header_first else request + head)
    return answer_of("Put", rig.settle()[stream]).status


def test_an_entry_counts_as_the_header_says_wherever_it_stands(rig):
    turn_on(rig)
    for header_first in (False, True):
        ann = {"header_first": header_first, "username": "ann", "auth_revision": REVISION}
        assert put(rig, b"b", **ann) == ""
        assert put(rig, b"d", **ann) == "PERMISSION_DENIED"
        assert put(rig, b"b", **{**ann, "auth_revision": REVISION - 1}) == "AUTH_OLD_REVISION"
        assert put(rig, b"b", **{**ann, "auth_revision": 0}) == "USER_EMPTY"
        assert put(rig, b"b", **{**ann, "username": "gone"}) == "PERMISSION_DENIED"
        assert put(rig, b"zz", **{**ann, "username": "root"}) == ""


def test_auth_that_came_on_behind_the_proposal_counts(rig):
    """The entry was posted while auth was off, and is applied behind the one that turned it on: as in etcd."""
    assert put(rig, b"b") == ""
    turn_on(rig)
    assert put(rig, b"b") == "USER_EMPTY"
    rig.loop.ops.auth.set_enabled(False, REVISION)
    assert put(rig, b"b") == "" and put(rig, b"b", username="ann", auth_revision=1) == ""


def test_frontends_learn_of_auth_before_anybody_is_answered(rig):
    rig.turn()
    assert rig.word("auth_enabled") == 0
    turn_on(rig)
    rig.turn()
    assert (rig.word("auth_enabled"), rig.word("auth_revision")) == (1, REVISION)


def ask(rig, kind, method, request, user=b"", revision=0, flags=CREDIT):
    """A record with an identity, as frontends write them."""
    ring = rig.ca if kind == "READ" else rig.f0a
    rig.stream += 2
    assert ring.push(
        KINDS[kind], request.SerializeToString() + user, method=RPC[method], frontend=0, slot=7, generation=3,
        stream=rig.stream, status=len(user), index=revision, flags=flags,
    )  # fmt: skip
    return rig.stream


def symbol(records):
    return errors.ERRORS[records[0]["status"]].symbol if records[0]["status"] else ""


@pytest.mark.parametrize("kind", ["READ", "CALL"])
def test_reads_are_checked_by_the_identity_behind_their_message(rig, kind):
    turn_on(rig)

    def of(key, user=b"", revision=REVISION, **more):
        stream = ask(rig, kind, "Range", rpc_pb2.RangeRequest(key=key), user, revision, **more)
        return symbol(rig.settle()[stream])

    assert of(b"b", b"ann") == "" and of(b"d", b"ann") == "" and of(b"zz", b"root") == ""
    assert of(b"e", b"ann") == "PERMISSION_DENIED"
    assert of(b"b", b"ann", REVISION - 1) == "AUTH_OLD_REVISION"
    assert of(b"b", b"ann", REVISION + 1) == "AUTH_OLD_REVISION"  # a JWT that a newer auth store has made
    assert of(b"b", b"", 0) == "USER_EMPTY"
    assert of(b"b", b"ann", flags=CREDIT | BAD_TOKEN) == "INVALID_AUTH_TOKEN"


def test_what_root_alone_may_do_goes_on_to_consensus_in_nobodys_name(rig):
    turn_on(rig)
    request = rpc_pb2.CompactionRequest(revision=3)
    for user, expected in ((b"ann", "PERMISSION_DENIED"), (b"", "USER_EMPTY"), (b"gone", "USER_NOT_FOUND")):
        stream = ask(rig, "CALL", "Compact", request, user, REVISION)
        assert symbol(rig.settle()[stream]) == expected
        assert rig.ac.pop() is None
    stream = ask(rig, "CALL", "Compact", request, b"root", REVISION)
    assert stream not in rig.settle()
    passed = rig.ac.pop()
    assert passed["kind"] == KINDS["PROPOSE"] and passed["payload"] == request.SerializeToString()
    assert (passed["frontend"], passed["slot"], passed["generation"], passed["stream"]) == (0, 7, 3, stream)
    assert (passed["status"], passed["index"]) == (0, 0)
