"""What learners and members without a leader refuse: the same codes and texts on etcd and on the target."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tests.harness import pb, target_name
from tests.harness.cluster import RELAXED, Cluster, ClusterMember
from tests.harness.rpc import METHODS, channel_options
from tests.harness.wait import wait_until

HAS_LEADER = (("hasleader", "true"),)
Answer = tuple[int, str]
TIMEOUT_SECONDS = 20.0
STREAM_SECONDS = 3.0  # a stream that lives so long is one that was not refused

UNARY: dict[str, Any] = {
    "Put": pb.PutRequest(key=b"a", value=b"b"),
    "Range": pb.RangeRequest(key=b"a"),
    "DeleteRange": pb.DeleteRangeRequest(key=b"a"),
    "Txn": pb.TxnRequest(),
    "Compact": pb.CompactionRequest(revision=1),
    "LeaseGrant": pb.LeaseGrantRequest(TTL=60),
    "LeaseRevoke": pb.LeaseRevokeRequest(ID=1),
    "LeaseTimeToLive": pb.LeaseTimeToLiveRequest(ID=1),
    "LeaseLeases": pb.LeaseLeasesRequest(),
    "HashKV": pb.HashKVRequest(),
    "Hash": pb.HashRequest(),
    "Defragment": pb.DefragmentRequest(),
    "Alarm": pb.AlarmRequest(),
    "MoveLeader": pb.MoveLeaderRequest(targetID=1),
    "MemberList": pb.MemberListRequest(linearizable=True),
    "MemberAdd": pb.MemberAddRequest(peerURLs=["http://127.0.0.1:9"]),
    "MemberRemove": pb.MemberRemoveRequest(ID=1),
    "MemberPromote": pb.MemberPromoteRequest(ID=1),
    "MemberUpdate": pb.MemberUpdateRequest(ID=1, peerURLs=["http://127.0.0.1:9"]),
    "Lock": pb.LockRequest(name=b"l", lease=1),
    "Campaign": pb.CampaignRequest(name=b"e", lease=1),
    "Leader": pb.LeaderRequest(name=b"e"),
}


# Without a leader these wait as long as their client does; two of them for their turn behind another read.
# LeaseLeases is answered by etcd from what the member itself knows; ours is linearizable.
PATIENT = {"MemberAdd", "MemberRemove", "MemberUpdate", "MemberList", "Leader", "LeaseLeases"}

# What 3.5.1 answers, and the newest release does, whose codes and texts etcdfast has (reference/etcd-behaviour.md).
NEWEST = {
    (14, "etcdserver: rpc not supported for learner"): (9, "etcdserver: rpc not supported for learner"),
    (2, "context deadline exceeded"): (4, "etcdserver: context deadline exceeded"),
}
# Handed on by services that drop the code (gotcha G1).
WITHOUT_CODE = {"Lock", "Campaign"}


def _newest(name: str, answer: Answer) -> Answer:
    code, text = NEWEST.get(answer, answer)
    return (answer[0] if name in WITHOUT_CODE and answer[0] == 2 else code), text


def _answers(member: ClusterMember, metadata: tuple = (), without: Iterable[str] = ()) -> dict[str, Answer]:
    """Code and text of every call above, all under way at once."""
    with grpc.insecure_channel(member.endpoint, options=channel_options()) as channel:
        calls = {
            name: channel.unary_unary(
                METHODS[name].path, request_serializer=lambda message: message.SerializeToString()
            ).future(request, timeout=TIMEOUT_SECONDS, metadata=metadata)
            for name, request in UNARY.items()
            if name not in without
        }
        return {name: _outcome(call) for name, call in calls.items()}


def _outcome(call: Any) -> Answer:
    try:
        call.result()
    except grpc.RpcError as error:
        return error.code().value[0], error.details() or ""
    return 0, ""


def _stream_end(member: ClusterMember, path: str, request: Any, metadata: tuple = ()) -> Answer:
    """How a bidirectional stream ends after one request; (0, "open") when it lives on until our deadline."""
    done = threading.Event()

    def requests() -> Iterator[bytes]:
        yield request.SerializeToString()
        done.wait(4 * TIMEOUT_SECONDS)  # the call would end with its requests

    with grpc.insecure_channel(member.endpoint, options=channel_options()) as channel:
        began = time.monotonic()
        call = channel.stream_stream(path)(requests(), timeout=STREAM_SECONDS, metadata=metadata)
        try:
            for _ in call:
                pass
        except grpc.RpcError as error:
            # Never before our deadline has passed: a server that gives up earlier is heard as what it says.
            if _is_deadline(error) and time.monotonic() - began >= STREAM_SECONDS:
                return 0, "open"
            return error.code().value[0], error.details() or ""
        finally:
            done.set()
        return 0, "ended"


def _is_deadline(error: Any) -> bool:
    """At a deadline the client and the server both end the call, and either may be heard first: the server
    says it in its own words, and 3.5.1 with the code of an unknown error."""
    return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED or error.details() == "context deadline exceeded"


WATCH = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"a"))
KEEP_ALIVE = pb.LeaseKeepAliveRequest(ID=1)
SNAPSHOT = "/etcdserverpb.Maintenance/Snapshot"


def _streams(member: ClusterMember) -> dict[str, Answer]:
    streams = {
        "Watch": ("/etcdserverpb.Watch/Watch", WATCH),
        "Watch with hasleader": ("/etcdserverpb.Watch/Watch", WATCH, HAS_LEADER),
        "LeaseKeepAlive": ("/etcdserverpb.Lease/LeaseKeepAlive", KEEP_ALIVE),
        "LeaseKeepAlive with hasleader": ("/etcdserverpb.Lease/LeaseKeepAlive", KEEP_ALIVE, HAS_LEADER),
    }
    with ThreadPoolExecutor(len(streams)) as pool:
        ends = {name: pool.submit(_stream_end, member, *arguments) for name, arguments in streams.items()}
        return {name: end.result() for name, end in ends.items()}


def _same(kinds: tuple[str, str], script: Callable[[str], dict[str, Answer]]) -> dict[str, Answer]:
    with ThreadPoolExecutor(2) as pool:
        left, right = pool.map(script, kinds)
    if kinds[1] == "etcdfast":
        left = {name: _newest(name, answer) for name, answer in left.items()}
    wrong = [f"{name}: etcd {left[name]}, other {right[name]}" for name in left if left[name] != right[name]]
    assert not wrong, "\n".join(wrong)
    return left


@pytest.fixture(scope="module")
def kinds() -> tuple[str, str]:
    return "etcd", target_name()


def test_what_a_learner_refuses(kinds: tuple[str, str]) -> None:
    def script(kind: str) -> dict[str, Answer]:
        with Cluster(kind, 1, flags=RELAXED) as cluster:
            learner = cluster.add(kind, learner=True)
            told = _answers(learner) | _streams(learner)
            with learner.client(5) as client:
                reply = client.call("Range", pb.RangeRequest(key=b"a", serializable=True))
                told["serializable Range"] = (reply.code, reply.text)
                status = client.call("Status", pb.StatusRequest()).message
                told["Status"] = (status.isLearner, str(sorted(status.errors)))
            return told

    told = _same(kinds, script)
    assert told["Put"][1] == "etcdserver: rpc not supported for learner", told
    assert told["serializable Range"] == (0, "")


def test_what_a_member_without_a_leader_refuses(kinds: tuple[str, str]) -> None:
    """Two of three are dead: calls that need the others run into etcd's own time limit and say why."""

    def script(kind: str) -> dict[str, Answer]:
        with Cluster(kind, 3, flags=RELAXED) as cluster:
            left = cluster.followers()[0]
            for member in cluster.members:
                if member is not left:
                    member.kill9()
            wait_until(lambda: left.status().leader == 0, "the member left alone to know no leader")
            with ThreadPoolExecutor(2) as pool:
                plain = pool.submit(_answers, left, (), PATIENT)
                streams = pool.submit(_streams, left)
                told = {f"{name} with hasleader": one for name, one in _answers(left, HAS_LEADER).items()}
                told |= plain.result() | streams.result()
            del told["LeaseKeepAlive"]  # etcd ends it when its own time limit is over, about when we look
            status = left.status()
            told["Status"] = (0, str(sorted(status.errors)))
            return told

    told = _same(kinds, script)
    assert told["Put with hasleader"] == (14, "etcdserver: no leader"), told
    assert told["Watch with hasleader"] == (14, "etcdserver: no leader"), told


def test_a_watch_that_wants_a_leader_ends_when_it_is_gone(kinds: tuple[str, str]) -> None:
    """It was opened while there was a leader; one without the wish lives on."""

    def script(kind: str) -> dict[str, Answer]:
        with Cluster(kind, 3, flags=RELAXED) as cluster:
            left = cluster.followers()[0]
            with grpc.insecure_channel(left.endpoint, options=channel_options()) as channel:
                path = "/etcdserverpb.Watch/Watch"
                ends = {}
                with ThreadPoolExecutor(2) as pool:
                    futures = {}
                    for name, metadata in (("with", HAS_LEADER), ("without", ())):
                        opened = channel.stream_stream(path)(_until_cancelled(), timeout=4.0, metadata=metadata)
                        next(opened)
                        futures[name] = pool.submit(_end_of, opened)
                    for member in cluster.members:
                        if member is not left:
                            member.kill9()
                    ends["with"] = futures["with"].result()
                    ends["without"] = futures["without"].result()
            return ends

    told = _same(kinds, script)
    assert told == {"with": (14, "etcdserver: no leader"), "without": (4, "our deadline")}


def _until_cancelled() -> Iterator[bytes]:
    yield WATCH.SerializeToString()
    time.sleep(5.0)  # grpcio ends the call when its requests do; the deadline comes before


def _end_of(call: Any) -> Answer:
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        if _is_deadline(error):
            return 4, "our deadline"
        return error.code().value[0], error.details() or ""
    return 0, "ended"
