"""The rules of membership: what a committed change does, what it is refused for, what may be proposed."""

import json

import pytest

from etcdfast.api import errors
from etcdfast.cluster import membership as rules
from etcdfast.cluster.membership import (
    ADD_LEARNER_NODE,
    ADD_NODE,
    UPDATE_NODE,
    Member,
    Membership,
    MembershipError,
)
from etcdfast.formats.raftpb import ConfChange, decode_conf_change, encode_conf_change

URL = "http://h:%d"


def members(*rows):
    """(id, started, learner) each."""
    return Membership(
        [
            Member(member_id, f"m{member_id}" if started else "", (URL % member_id,), (), learner)
            for member_id, started, learner in rows
        ]
    )


def voters(count, started=None):
    started = count if started is None else started
    return members(*((i, i <= started, False) for i in range(1, count + 1)))


def test_contexts_are_those_that_etcd_writes():
    assert rules.bootstrap_change(7, ["http://h:1"], "m1").context == b'{"id":7,"peerURLs":["http://h:1"],"name":"m1"}'
    assert rules.add_change(9, 7, ["http://h:1"]) == ConfChange(9, 0, 7, b'{"id":7,"peerURLs":["http://h:1"]}')
    assert rules.add_change(9, 7, ["http://h:1"], True) == ConfChange(
        9, 3, 7, b'{"id":7,"peerURLs":["http://h:1"],"isLearner":true}'
    )
    assert rules.promote_change(9, 7) == ConfChange(9, 0, 7, b'{"id":7,"peerURLs":null,"isPromote":true}')
    assert rules.update_change(9, 7, ["http://h:2"]) == ConfChange(9, 2, 7, b'{"id":7,"peerURLs":["http://h:2"]}')
    assert rules.remove_change(9, 7) == ConfChange(9, 1, 7, None)


def change(membership, conf_change):
    """Through the log's own form, as both processes do it."""
    conf_change = decode_conf_change(encode_conf_change(conf_change))
    refused = membership.check(conf_change)
    if refused is None:
        membership.apply(conf_change)
    return refused


def test_a_members_life():
    cluster = voters(1)
    big = (1 << 64) - 1
    assert change(cluster, rules.add_change(1, big, ["http://h:9"], True)) is None
    assert cluster.conf_state() == ((1,), (big,), (), (), 0)
    cluster.set_attributes(big, "late", ["http://c:9"])
    assert change(cluster, rules.promote_change(2, big)) is None
    assert cluster.members[big] == Member(big, "late", ("http://h:9",), ("http://c:9",), False)
    assert change(cluster, rules.update_change(3, big, ["http://h:8"])) is None
    assert cluster.members[big].peer_urls == ("http://h:8",)
    assert cluster.voters() == [1, big]
    assert change(cluster, rules.remove_change(4, big)) is None
    assert cluster.voters() == [1] and cluster.removed == {big}


@pytest.mark.parametrize(
    "conf_change, symbol",
    [
        (rules.add_change(1, 9, [URL % 1]), "PEER_URL_EXIST"),
        (rules.add_change(1, 9, [URL % 8, URL % 1], True), "PEER_URL_EXIST"),
        (rules.add_change(1, 2, [URL % 8]), "MEMBER_EXIST"),
        (rules.add_change(1, 3, [URL % 8], True), "MEMBER_EXIST"),
        (rules.add_change(1, 66, [URL % 8]), "MEMBER_NOT_FOUND"),
        (rules.add_change(1, 9, [URL % 8], True), "TOO_MANY_LEARNERS"),
        (rules.promote_change(1, 9), "MEMBER_NOT_FOUND"),
        (rules.promote_change(1, 66), "MEMBER_NOT_FOUND"),
        (rules.promote_change(1, 2), "MEMBER_NOT_LEARNER"),
        (rules.update_change(1, 9, [URL % 8]), "MEMBER_NOT_FOUND"),
        (rules.update_change(1, 2, [URL % 1]), "PEER_URL_EXIST"),
        (rules.remove_change(1, 9), "MEMBER_NOT_FOUND"),
        (rules.remove_change(1, 66), "MEMBER_NOT_FOUND"),
    ],
)
def test_a_refused_change_names_its_error_and_leaves_all_as_it_was(conf_change, symbol):
    cluster = members((1, True, False), (2, True, False), (3, True, True))
    cluster.removed.add(66)
    before = cluster.to_json()
    assert change(cluster, conf_change) == symbol
    assert symbol in errors.ID
    assert cluster.to_json() == before


def test_a_member_may_keep_its_own_urls_in_an_update():
    assert change(voters(3), rules.update_change(1, 2, [URL % 2, "http://other:1"])) is None


def test_more_learners_when_allowed():
    cluster = voters(1)
    cluster.learners_max = 2
    assert change(cluster, rules.add_change(1, 5, [URL % 5], True)) is None
    assert change(cluster, rules.add_change(1, 6, [URL % 6], True)) is None
    assert change(cluster, rules.add_change(1, 7, [URL % 7], True)) == "TOO_MANY_LEARNERS"


@pytest.mark.parametrize(
    "kind, node_id, context",
    [
        (ADD_NODE, 4, b'{"id":5,"peerURLs":[]}'),
        (ADD_LEARNER_NODE, 4, b"not json"),
        (UPDATE_NODE, 1, b"[]"),
        (UPDATE_NODE, 1, None),
        (ADD_NODE, 4, b'{"id":4,"peerURLs":7}'),
    ],
)
def test_a_change_that_contradicts_itself_is_an_error(kind, node_id, context):
    with pytest.raises(MembershipError):
        voters(1).check(ConfChange(1, kind, node_id, context))


def test_attributes_of_strangers_are_ignored():
    cluster = voters(1)
    assert cluster.set_attributes(9, "x", ["http://c:1"]) is None
    assert list(cluster.members) == [1]


def test_forms():
    cluster = Membership(
        [Member(1, "näme", ("http://h:1",), ("http://c:1",)), Member(2, "", ("http://h:2",), (), True)],
        [9],
        "3.5.0",
    )
    assert Membership.from_v2(cluster.to_v2()) == cluster
    assert Membership.from_json(cluster.to_json()) == cluster
    assert rules.members_from_json(cluster.members_json()) == cluster.ordered()
    assert json.loads(cluster.members_json()) == [
        {"id": 1, "peerURLs": ["http://h:1"], "name": "näme", "clientURLs": ["http://c:1"]},
        {"id": 2, "peerURLs": ["http://h:2"], "isLearner": True},
    ]
    cluster.set_downgrade(True, "3.4.0")
    assert Membership.from_json(cluster.to_json()).downgrade == (True, "3.4.0")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"members":[{}],"removed":[]}', '{"members":[],"removed":["x"]}'])
def test_an_unreadable_form_is_an_error(text):
    with pytest.raises(MembershipError):
        Membership.from_json(text)


# ---- strict reconfiguration: (voters, started of them, connected of them) ----


@pytest.mark.parametrize(
    "count, started, connected, is_learner, refused",
    [
        (1, 1, 1, False, None),  # the one member of a restored cluster
        (2, 1, 2, False, "MEMBER_NOT_ENOUGH_STARTED"),
        (2, 2, 2, False, None),
        (2, 2, 1, False, "UNHEALTHY"),
        (3, 3, 3, False, None),
        (3, 3, 2, False, "UNHEALTHY"),
        (3, 2, 3, False, "MEMBER_NOT_ENOUGH_STARTED"),
        (4, 4, 3, False, None),  # three of five go on, whatever the new one does
        (3, 3, 2, True, None),
        (3, 1, 3, True, None),  # a learner does not change the quorum
        (3, 3, 1, True, "UNHEALTHY"),
    ],
)
def test_may_add(count, started, connected, is_learner, refused):
    assert rules.may_add(voters(count, started), is_learner, set(range(1, connected + 1))) == refused


@pytest.mark.parametrize(
    "count, started, connected, member_id, active, refused",
    [
        (1, 1, 1, 1, True, "MEMBER_NOT_ENOUGH_STARTED"),
        (2, 2, 2, 2, True, None),
        (3, 3, 3, 3, True, None),
        (3, 3, 2, 3, False, None),  # it is down
        (3, 3, 2, 2, True, "UNHEALTHY"),  # 3 is down, 2 is needed
        (3, 3, 2, 1, True, "UNHEALTHY"),
        (3, 2, 3, 3, True, None),  # not started, connected
        (3, 2, 3, 2, True, "MEMBER_NOT_ENOUGH_STARTED"),
        (3, 3, 3, 9, False, None),  # unknown: the change itself is refused
    ],
)
def test_may_remove(count, started, connected, member_id, active, refused):
    cluster = voters(count, started)
    assert rules.may_remove(cluster, member_id, 1, set(range(1, connected + 1)), active) == refused


def test_learners_may_always_go():
    cluster = members((1, True, False), (2, False, False), (3, False, True))
    assert rules.may_remove(cluster, 3, 1, {1}, True) is None


def test_may_promote():
    assert rules.may_promote(members((1, True, False), (2, False, True)), 2) is None
    assert rules.may_promote(members((1, True, False), (2, False, False), (3, True, True)), 3) is None
    cluster = members((1, True, False), (2, False, False), (3, False, False), (4, True, True))
    assert rules.may_promote(cluster, 4) == "MEMBER_NOT_ENOUGH_STARTED"


@pytest.mark.parametrize("match, refused", [(None, None), (89, "LEARNER_NOT_READY"), (90, None), (100, None)])
def test_a_learner_needs_nine_tenths_of_the_log(match, refused):
    assert rules.learner_ready(match, 100) == refused
