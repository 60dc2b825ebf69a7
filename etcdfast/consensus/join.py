"""What a first start asks the other members before there is a log: who they are, and which version they run.

Plain requests over HTTP to their peer URLs, all at once, from threads that end with their timeout; nothing else of
this process runs yet. Texts are etcd's. Source: reference/formats.md sections 4.13, 5.2 and 5.3.
"""

import asyncio
import json
import threading
import time
from collections import namedtuple

import httptools

from etcdfast import log
from etcdfast.cluster.membership import MembershipError, members_from_json
from etcdfast.config.values import same_addresses
from etcdfast.consensus import versions
from etcdfast.consensus.peers import sockets
from etcdfast.consensus.peers.http1 import HttpError, HttpReader, request_head
from etcdfast.consensus.peers.tls import PeerTls

NEW_SECONDS = 1.0  # a new cluster: nobody has to be there yet
EXISTING_SECONDS = 10.0
VERSION_SECONDS = 5.0
ANSWER_BYTES_MAX = 16 << 20

# cluster_id; member_id: own, assigned by the cluster; members: [cluster.membership.Member], own included.
Joined = namedtuple("Joined", "cluster_id member_id members")
_Answer = namedtuple("_Answer", "headers body")


class JoinError(Exception):
    """The cluster cannot be joined; one line."""


# ---- what is asked --------------------------------------------------------------------------------


def join(config):
    """Ask the members of an existing cluster, by the URLs of --initial-cluster. Errors: JoinError."""
    local = dict(config.initial_members)
    cluster_id, members = _members_of_cluster(
        config, _remote_urls(config), EXISTING_SECONDS, "failed to get cluster response"
    )
    if members is None:
        raise JoinError(
            "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
        )
    if not members:
        raise JoinError(
            "cannot fetch cluster info from peer urls: failed to get raft cluster member(s) from the given URLs"
        )
    ids = _ids_by_name(local, cluster_id, members)
    others = [member for member in members if member.id != ids[config.name]]
    found = ask_versions(config, others)
    if not versions.compatible(found):
        raise JoinError("incompatible with current running cluster")
    return Joined(cluster_id, ids[config.name], members)


def is_bootstrapped(config, member_id):
    """Whether a running cluster knows this member of a new one as started: its data is gone, then."""
    _, members = _members_of_cluster(config, _remote_urls(config), NEW_SECONDS, None)
    return any(member.id == member_id and member.client_urls for member in members or ())


def ask_versions(config, members):
    """{member: (server version, cluster version)} of those that answer."""
    urls = {url: member for member in members for url in member.peer_urls}
    found = {}
    for url, answer in _ask(config, list(urls), "/version", VERSION_SECONDS, lambda answers: False):
        try:
            told = json.loads(answer.body)
            found[urls[url].id] = str(told["etcdserver"]), str(told["etcdcluster"])
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            log.warn("failed to unmarshal version response", address=url, error=repr(err))
    return found


def _remote_urls(config):
    return sorted(url for name, urls in config.initial_members if name != config.name for url in urls)


def _members_of_cluster(config, urls, seconds, warning):
    """(cluster id, members) as the first that answers has them; (None, None) when nobody does."""
    for url, answer in _ask(config, urls, "/members", seconds, lambda answers: len(answers) > 0, warning):
        try:
            return int(answer.headers.get("x-etcd-cluster-id", ""), 16), members_from_json(answer.body)
        except (ValueError, MembershipError) as err:
            if warning:
                log.warn("failed to unmarshal cluster response", address=f"{url}/members", error=str(err))
    return None, None


def _ids_by_name(local, cluster_id, members):
    """{name: id}: every member of the cluster has its URLs in --initial-cluster, and the other way round."""
    ids = {}
    reason = None
    if len(local) != len(members):
        reason = "member count is unequal"
    for member in members if reason is None else ():
        name = next((n for n, urls in local.items() if n not in ids and same_addresses(urls, member.peer_urls)), None)
        if name is None:
            listed = ",".join(url for urls in local.values() for url in urls)
            reason = (
                f"PeerURLs: no match found for existing member ({member.id:x}, [{' '.join(member.peer_urls)}]), "
                f"--initial-cluster has {listed}"
            )
            break
        ids[name] = member.id
    if reason:
        raise JoinError(f"error validating peerURLs {_cluster_text(cluster_id, members)}: {reason}")
    return ids


def _cluster_text(cluster_id, members):
    # As etcd prints it: people search for this line.
    shown = " ".join(
        f"&{{ID:{member.id:x} RaftAttributes:{{PeerURLs:[{' '.join(member.peer_urls)}] "
        f"IsLearner:{str(member.is_learner).lower()}}} "
        f"Attributes:{{Name:{member.name} ClientURLs:[{' '.join(member.client_urls)}]}}}}"
        for member in members
    )
    return f"{{ClusterID:{cluster_id:x} Members:[{shown}] RemovedMemberIDs:[]}}"


# ---- asking ---------------------------------------------------------------------------------------


def _ask(config, urls, path, seconds, enough, warning=None):
    """GET `path` of every URL at once: [(url, _Answer)] in the order of `urls`, when all have answered or failed, when
    `enough(answers)` says so, or when the time is over."""
    answers, done = {}, threading.Condition()
    tls = PeerTls(config)
    left = set(urls)

    def ask(url):
        answer = failure = None
        try:
            answer = _get(url, path, seconds, tls)
        except (OSError, HttpError, ValueError) as err:
            failure = str(err) or repr(err)
        with done:
            left.discard(url)
            if answer is not None:
                answers[url] = answer
            elif warning:
                log.warn(warning, address=url + path, error=failure)
            done.notify()

    for url in urls:
        threading.Thread(target=ask, args=(url,), name="ask", daemon=True).start()
    deadline = time.monotonic() + seconds
    with done:
        done.wait_for(lambda: not left or enough(answers), timeout=max(deadline - time.monotonic(), 0))
        return [(url, answers[url]) for url in urls if url in answers]


def _get(url, path, seconds, tls):
    """Errors: OSError (TimeoutError among them), HttpError, ValueError."""
    return asyncio.run(_request(url, path, seconds, tls))


async def _request(url, path, seconds, tls):
    async with asyncio.timeout(seconds):
        wire = await sockets.connect(url, seconds, tls)
        try:
            head = {"Host": sockets.host_of(url), "Connection": "close"}
            await wire.send(request_head("GET", path, head))
            reader = HttpReader(wire, httptools.HttpResponseParser)
            response = await reader.head(seconds)
            if response is None:
                raise HttpError("closed without an answer")
            body = await reader.body(ANSWER_BYTES_MAX, seconds)
        finally:
            wire.close()
    if response.status != 200:
        raise ValueError(f"status {response.status}")
    return _Answer(response.headers, body)
