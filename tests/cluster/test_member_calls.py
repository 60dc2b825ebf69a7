"""Calls that change members or the leader, and every way to be refused them: code and text as real etcd's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.harness import pb, target_name
from tests.harness.cluster import CHANGE_SECONDS, Cluster, ClusterMember
from tests.harness.ports import free_port
from tests.harness.wait import wait_until

Answer = tuple[int, str]


def _answer(member: ClusterMember, method: str, request: object) -> Answer:
    with member.client() as client:
        reply = client.call(method, request)
    return reply.code, reply.text


def _update(member: ClusterMember, url: str) -> object:
    return pb.MemberUpdateRequest(ID=member.id, peerURLs=[url])


def _wait_changeable(cluster: Cluster, wanted: bool = True) -> None:
    """Wait until a change is taken, as all members have been connected for five seconds; or until it is refused."""
    member = cluster.leader()

    def changeable() -> bool:
        url = f"http://127.0.0.1:{free_port()}"  # an id is made of URL and second, and is never used again
        with member.client() as client:
            added = client.call("MemberAdd", pb.MemberAddRequest(peerURLs=[url]))
            if added.ok:
                assert client.call("MemberRemove", pb.MemberRemoveRequest(ID=added.message.member.ID)).ok
        return added.ok is wanted

    wait_until(changeable, f"a cluster that may {'' if wanted else 'not '}change", CHANGE_SECONDS)


def _answer_while_healthy(cluster: Cluster, member: ClusterMember, method: str, request: object) -> Answer:
    """On a busy machine members lose sight of each other for a moment, which says nothing of the call."""

    def answered() -> Answer | None:
        answer = _answer(member, method, request)
        if answer == (14, "etcdserver: unhealthy cluster"):
            _wait_changeable(cluster)
            return None
        return answer

    return wait_until(answered, f"{method} of a cluster that may change", CHANGE_SECONDS)


def _story(kind: str) -> dict[str, Answer]:
    with Cluster(kind, 3) as cluster:
        return dict(_steps(cluster))


def _steps(cluster: Cluster) -> Iterator[tuple[str, Answer]]:
    _wait_changeable(cluster)
    leader, followers = cluster.leader(), cluster.followers()
    follower = followers[0]
    own = [member.peer_url for member in cluster.members]
    ask = partial(_answer_while_healthy, cluster)
    new = [f"http://127.0.0.1:{free_port()}" for _ in range(4)]
    for name, member in (("leader", leader), ("follower", follower)):
        for step, method, request in (
            ("add with a URL in use", "MemberAdd", pb.MemberAddRequest(peerURLs=[own[0]])),
            ("add with one URL in use", "MemberAdd", pb.MemberAddRequest(peerURLs=[new[0], own[2]], isLearner=True)),
            ("add with no URL", "MemberAdd", pb.MemberAddRequest()),
            ("add with nonsense", "MemberAdd", pb.MemberAddRequest(peerURLs=["nonsense"])),
            ("add with a path", "MemberAdd", pb.MemberAddRequest(peerURLs=["http://127.0.0.1:1/path"])),
            ("add without a port", "MemberAdd", pb.MemberAddRequest(peerURLs=["http://127.0.0.1"])),
            ("add with ftp", "MemberAdd", pb.MemberAddRequest(peerURLs=["ftp://127.0.0.1:1"])),
            ("update of nobody", "MemberUpdate", pb.MemberUpdateRequest(ID=1, peerURLs=new[:1])),
            ("update to a URL in use", "MemberUpdate", _update(follower, leader.peer_url)),
            ("update to the same", "MemberUpdate", _update(follower, follower.peer_url)),
            ("removal of nobody", "MemberRemove", pb.MemberRemoveRequest(ID=1)),
            ("promotion of nobody", "MemberPromote", pb.MemberPromoteRequest(ID=1)),
            ("move to nobody", "MoveLeader", pb.MoveLeaderRequest(targetID=1)),
        ):  # fmt: skip
            yield f"{name}: {step}", ask(member, method, request)
    yield "move to itself", ask(leader, "MoveLeader", pb.MoveLeaderRequest(targetID=leader.id))
    yield "a learner", ask(follower, "MemberAdd", pb.MemberAddRequest(peerURLs=new[:1], isLearner=True))
    (learner,) = (member.ID for member in cluster.member_list() if member.isLearner)
    yield "a second learner", ask(follower, "MemberAdd", pb.MemberAddRequest(peerURLs=new[1:2], isLearner=True))
    for name, member in (("leader", leader), ("follower", follower)):
        yield f"{name}: promotion too early", ask(member, "MemberPromote", pb.MemberPromoteRequest(ID=learner))
    yield "move to a learner", ask(leader, "MoveLeader", pb.MoveLeaderRequest(targetID=learner))
    yield "update of a learner", ask(leader, "MemberUpdate", pb.MemberUpdateRequest(ID=learner, peerURLs=new[2:3]))
    yield "removal of a learner", ask(follower, "MemberRemove", pb.MemberRemoveRequest(ID=learner))
    yield "removal again", ask(follower, "MemberRemove", pb.MemberRemoveRequest(ID=learner))
    yield "promotion of a removed one", ask(leader, "MemberPromote", pb.MemberPromoteRequest(ID=learner))
    followers[1].kill9()
    _wait_changeable(cluster, False)
    yield "add while one is down", _answer(leader, "MemberAdd", pb.MemberAddRequest(peerURLs=new[3:]))
    yield "removal of one that is needed", _answer(leader, "MemberRemove", pb.MemberRemoveRequest(ID=follower.id))
    yield "removal of the one that is down", _answer(leader, "MemberRemove", pb.MemberRemoveRequest(ID=followers[1].id))


def _alone(kind: str) -> dict[str, Answer]:
    """One member: what it may become, and that its last voter stays."""
    told = {}
    with Cluster(kind, 1) as cluster:
        (member,) = cluster.members
        told["removal of the last"] = _answer(member, "MemberRemove", pb.MemberRemoveRequest(ID=member.id))
        told["promotion of a voter"] = _answer(member, "MemberPromote", pb.MemberPromoteRequest(ID=member.id))
    return told


def _same(script) -> dict[str, Answer]:
    with ThreadPoolExecutor(2) as pool:
        left, right = pool.map(script, ("etcd", target_name()))
    assert list(left) == list(right)
    wrong = [f"{step}: etcd {left[step]}, other {right[step]}" for step in left if left[step] != right[step]]
    assert not wrong, "\n".join(wrong)
    return left


def test_refusals_of_member_calls() -> None:
    told = _same(_story)
    assert told["removal of one that is needed"] == (14, "etcdserver: unhealthy cluster"), told
    assert told["a second learner"] == (9, "etcdserver: too many learner members in cluster"), told


def test_urls_that_stop_an_etcd_are_refused() -> None:
    """etcd 3.5.1 logs a MemberUpdate to no URL, or to what is none, and every member panics."""
    if target_name() == "etcd":
        return
    with Cluster(target_name(), 1) as cluster:
        (member,) = cluster.members
        for urls in ([], ["nonsense"], ["http://127.0.0.1"]):
            answer = _answer(member, "MemberUpdate", pb.MemberUpdateRequest(ID=member.id, peerURLs=urls))
            assert answer == (3, "etcdserver: given member URLs are invalid"), urls


def test_a_member_alone() -> None:
    told = _same(_alone)
    assert told["removal of the last"][1].endswith("due to not enough started members"), told
