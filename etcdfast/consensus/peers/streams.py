"""Dialling a peer's streams: one task for each, which hands a stream over and waits until main has lost it."""

import asyncio
import time

from etcdfast import log, version
from etcdfast.consensus.peers import sockets
from etcdfast.consensus.peers.client import UrlPicker
from etcdfast.consensus.peers.http1 import HttpError, read_response_head, request_head
from etcdfast.consensus.peers.view import major_minor

REDIAL_SECONDS = 0.1  # between two attempts of one stream, as etcd
HEAD_SECONDS = 5.0  # for the answer to a dial
REMOVED_SECONDS = 5.0  # between attempts once a peer said that this member was removed


class DialError(Exception):
    """A stream that a peer did not give, with the reason; one line. `removed`: this member is not of the cluster.
    `refused`: nobody listens there."""

    removed = False
    refused = False


class StreamDialer:
    """One stream from one peer: dial, hand over, wait until `lost`, dial again."""

    def __init__(self, owner, peer, name, kind, urls):
        self._owner = owner
        self._peer = peer
        self._name = name
        self._kind = kind
        self._picker = UrlPicker(urls)
        self._lost = asyncio.Event()
        self._said = ""  # reason last logged

    def lost(self):
        """The main thread has no stream any more."""
        self._lost.set()

    async def run(self):
        while True:
            started = time.monotonic()
            self._lost.clear()
            pause = REDIAL_SECONDS
            try:
                await self._dial()
                await self._lost.wait()
            except DialError as err:
                self._picker.failed()
                self._say(str(err))
                if err.removed:
                    self._owner.inbox.put("removed")
                    pause = REMOVED_SECONDS
                if err.refused:
                    self._owner.inbox.put("refused", self._peer)
            left = started + pause - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)

    def _say(self, reason):
        if reason != self._said:
            self._said = reason
            log.warn("cannot dial a peer's stream", remote_member=f"{self._peer:x}", stream=self._name, error=reason)

    async def _dial(self):
        """Errors: DialError."""
        settings, view = self._owner.settings, self._owner.view
        wire = None
        try:
            url = self._picker.pick()
            wire = await sockets.connect(url, settings.dial_seconds, self._owner.tls)
            head = {
                "Host": sockets.host_of(url),
                **view.request_headers(),
                "X-Raft-To": f"{self._peer:x}",
            }
            async with asyncio.timeout(HEAD_SECONDS):
                await wire.send(request_head("GET", f"/raft/stream/{self._name}/{view.member_id:x}", head))
            response, rest = await read_response_head(wire, HEAD_SECONDS)
            await self._check(wire, response, rest)
            taken = wire.detach()
        except (OSError, HttpError, ValueError) as err:
            failure = DialError(str(err) or type(err).__name__)
            failure.refused = isinstance(err, ConnectionRefusedError)
            raise failure from None
        finally:
            if wire is not None:
                wire.close()
        if not self._owner.inbox.put("stream_in", self._kind, self._peer, taken, rest):
            taken.close()
            raise DialError("the member is too busy to take the stream")
        self._said = ""

    async def _check(self, wire, response, rest):
        """Errors: DialError for an answer that gives no stream; OSError, TimeoutError."""
        remote = major_minor(response.headers.get("x-server-version", "2.0.0"))
        if remote is None or remote < major_minor(version.MIN_CLUSTER_VERSION):
            raise DialError("the peer is of an incompatible version")
        if response.status == 200:
            if response.headers.get("transfer-encoding", "").lower() != "chunked":
                raise DialError("the peer's answer is not chunked")
            return
        if response.status == 410:
            err = DialError("the member has been permanently removed from the cluster")
            err.removed = True
            raise err
        if response.status == 404:
            raise DialError("peer failed to find local member")
        if not rest:
            async with asyncio.timeout(HEAD_SECONDS):
                rest = await wire.recv(512)
        raise DialError(f"unexpected status {response.status}: {rest[:200].decode('utf-8', 'replace').strip()}")
