"""What each peer URL answers (formats.md 4.1 to 4.3, 4.9 to 4.11); tests compare status and body with etcd's."""

import asyncio
import json
import time

from etcdfast import log, version
from etcdfast._ext.peerlink import STREAMS
from etcdfast._ext.peerwire import PeerMessage, PeerMessageError
from etcdfast.consensus.peers.http1 import HttpError, response_head
from etcdfast.consensus.peers.mailbox import Reply
from etcdfast.consensus.peers.server import TEXT, Response, Taken, failure
from etcdfast.consensus.peers.snapshots import MSG_SNAP
from etcdfast.consensus.peers.view import NOT_DECIDED, parse_id, versions_fit

REMOTES_MAX = 64
SMALL_BODY_BYTES_MAX = 65536  # of lease and hash requests, as etcd
ANSWER_SECONDS = 10.0  # for the main thread to answer
PROMOTE_SECONDS = 30.0
_NOT_FOUND = failure(404, "404 page not found")
_STREAM_PREFIX = "/raft/stream/"
_PROMOTE_PREFIX = "/members/promote/"


class Routes:
    """Handlers of the peer server. `owner` gives view, settings, inbox, loop and the receiver of snapshots."""

    def __init__(self, owner):
        self._owner = owner
        self.remotes = {}  # id -> URLs of members that this one does not know yet
        self._exact = {
            "/raft": ("POST", self._message),
            "/raft/snapshot": ("POST", self._snapshot),
            "/raft/probing": (None, self._probing),
            "/members": ("GET", self._members),
            "/members/hashkv": ("GET", self._hash_kv),
            "/version": ("GET", self._version),
            "/leases": ("POST", self._leases),
            "/leases/internal": ("POST", self._leases),
            "/downgrade/enabled": ("GET", self._downgrade),
        }

    async def handle(self, request):
        path = request.path
        if path.startswith(_STREAM_PREFIX):
            method, handler = "GET", self._stream
        elif path.startswith(_PROMOTE_PREFIX):
            method, handler = "POST", self._promote
        elif path in self._exact:
            method, handler = self._exact[path]
        else:
            return _NOT_FOUND
        if method and request.method != method:
            return failure(405, "Method Not Allowed", {"Allow": method})
        return await handler(request)

    # ---- what the handlers share -----------------------------------------------------------------

    def _cluster_header(self):
        return {"X-Etcd-Cluster-Id": f"{self._owner.view.cluster_id:x}"}

    def _refuse_stranger(self, request, headers):
        """The answer to a sender of another version or cluster, None for one that fits."""
        if not versions_fit(request.headers):
            log.warn("refused a peer of an incompatible version", **_sender(request))
            return failure(412, "incompatible version", headers)
        if request.headers.get("x-etcd-cluster-id") != f"{self._owner.view.cluster_id:x}":
            log.warn("refused a peer of another cluster", **_sender(request))
            return failure(412, "cluster ID mismatch", headers)
        return None

    def _learn_remote(self, request, member):
        """Remember where a member answers that this one does not know yet: it may be behind the others."""
        urls = request.headers.get("x-peerurls")
        known = self._owner.view.peer_urls
        for gone in [remote for remote in self.remotes if remote in known]:
            del self.remotes[gone]
        if not urls or member is None or member in known or member in self._owner.view.removed:
            return
        if member in self.remotes or len(self.remotes) < REMOTES_MAX:
            self.remotes[member] = tuple(urls.split(",")[:16])

    async def _ask_main(self, seconds, kind, *arguments):
        """(status, body, content type) that the main thread gives; 503 when it is too busy, 408 when too late."""
        reply = Reply(asyncio.get_running_loop())
        if not self._owner.inbox.put(kind, *arguments, reply):
            return 503, b"too many requests", None
        try:
            return await asyncio.wait_for(reply.future, seconds)
        except TimeoutError:
            return 408, b"request timed out", None

    # ---- raft ------------------------------------------------------------------------------------

    async def _stream(self, request):
        view = self._owner.view
        headers = {"X-Server-Version": version.SERVER_VERSION, **self._cluster_header()}
        refusal = self._refuse_stranger(request, headers)
        if refusal:
            return refusal
        name, slash, member_text = request.path[len(_STREAM_PREFIX) :].rpartition("/")
        kind = STREAMS.get(name) if slash else None
        if kind is None:
            return failure(404, "invalid path", headers)
        member = parse_id(member_text)
        if member is None:
            return failure(404, "invalid from", headers)
        if member in view.removed:
            log.warn("refused a removed member", member=f"{member:x}")
            return failure(410, "removed member", headers)
        if member not in view.peer_urls or member == view.member_id:
            self._learn_remote(request, member)
            return failure(404, "error sender not found", headers)
        if request.headers.get("x-raft-to") != f"{view.member_id:x}":
            return failure(412, "to field mismatch", headers)
        await request.wire.send(response_head(200, {**headers, "Transfer-Encoding": "chunked"}))
        taken = request.wire.detach()
        if not self._owner.inbox.put("stream_out", kind, member, taken, request.headers):
            taken.close()
        return Taken

    async def _message(self, request):
        headers = self._cluster_header()
        refusal = self._refuse_stranger(request, headers)
        if refusal:
            return refusal
        self._learn_remote(request, parse_id(request.headers.get("x-server-from", "")))
        body = await request.body(self._owner.settings.message_bytes_max)
        try:
            message = PeerMessage(body)
        except PeerMessageError:
            return failure(400, "error unmarshalling raft message", headers)
        if message.type == MSG_SNAP:
            return failure(400, "a snapshot goes to /raft/snapshot", headers)
        if message.frm in self._owner.view.removed:
            # etcd means to say 403, and says this (formats.md 4.10).
            return failure(500, "error processing raft message", headers, close=True)
        return _finish(headers, *await self._ask_main(ANSWER_SECONDS, "message", body))

    async def _snapshot(self, request):
        headers = self._cluster_header()
        refusal = self._refuse_stranger(request, headers)
        if refusal:
            return refusal
        self._learn_remote(request, parse_id(request.headers.get("x-server-from", "")))
        try:
            received = await self._owner.receiver.receive(request)
        except HttpError as err:
            return failure(err.status, str(err), headers, close=True)
        message, path = received
        answer = await self._ask_main(self._owner.settings.snapshot_answer_seconds, "snapshot", message, path)
        return _finish(headers, *answer)

    async def _probing(self, request):
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"
        return Response(200, b'{"OK":true,"Now":"%s"}\n' % now.encode(), TEXT)

    # ---- the cluster -----------------------------------------------------------------------------

    async def _members(self, request):
        return Response(200, self._owner.view.members_json + b"\n", "application/json", self._cluster_header())

    async def _version(self, request):
        cluster_version = self._owner.view.cluster_version
        body = {"etcdserver": version.SERVER_VERSION, "etcdcluster": cluster_version or NOT_DECIDED}
        if cluster_version:
            body["storage"] = cluster_version
        return Response(200, json.dumps(body, separators=(",", ":")).encode(), "application/json")

    async def _downgrade(self, request):
        return Response(200, b"false", "text/plain", self._cluster_header())

    async def _promote(self, request):
        headers = self._cluster_header()
        text = request.path[len(_PROMOTE_PREFIX) :]
        if not text.isdecimal() or not text.isascii() or int(text) >= 1 << 64:
            return failure(404, f"member {text} not found in cluster", headers)
        return _finish(headers, *await self._ask_main(PROMOTE_SECONDS, "promote", int(text)))

    async def _hash_kv(self, request):
        headers = self._cluster_header()
        cluster = request.headers.get("x-etcd-cluster-id")
        if cluster and cluster != f"{self._owner.view.cluster_id:x}":
            return failure(412, "cluster ID mismatch", headers)
        body = await request.body(SMALL_BODY_BYTES_MAX)
        try:
            asked = json.loads(body)
            revision = asked.get("revision", 0)
            if type(revision) is not int or not -(1 << 63) <= revision < 1 << 63:
                raise ValueError
        except (ValueError, AttributeError, RecursionError):
            return failure(400, "error unmarshalling request")
        status, answer, content_type = await self._ask_main(ANSWER_SECONDS, "hash_kv", body)
        return _finish(headers if status == 200 else {}, status, answer, content_type or "application/json")

    async def _leases(self, request):
        kind = "lease_keep_alive" if request.path == "/leases" else "lease_time_to_live"
        body = await request.body(SMALL_BODY_BYTES_MAX)
        status, answer, content_type = await self._ask_main(ANSWER_SECONDS, kind, body)
        return _finish({}, status, answer, content_type or "application/protobuf")


def _finish(headers, status, body=b"", content_type=None):
    if status >= 300:
        return failure(status, body.decode("utf-8", "replace"), headers, close=status >= 500)
    return Response(status, body, content_type if body else None, headers)


def _sender(request):
    return {
        "remote_member": request.headers.get("x-server-from", "")[:32],
        "remote_version": request.headers.get("x-server-version", "")[:32],
        "remote_cluster": request.headers.get("x-etcd-cluster-id", "")[:32],
        "path": request.path[:128],
    }
