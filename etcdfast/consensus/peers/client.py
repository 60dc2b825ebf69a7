"""Requests to one peer over connections that are kept: POST /raft (the pipeline), probing, and what main asks for."""

import asyncio
import time
from collections import deque

import httptools

from etcdfast import log
from etcdfast.consensus.peers import sockets
from etcdfast.consensus.peers.http1 import HttpError, HttpReader, request_head

IDLE_MAX = 4  # connections kept
POSTS_MAX = 64  # messages that wait for the pipeline, as etcd
POSTS_BYTES_MAX = 64 << 20  # and their bytes, the one that is alone excepted
POSTS_AT_ONCE = 4  # as etcd
POST_SECONDS = 10.0  # for the answer
ANSWER_BYTES_MAX = 16 << 20
REMOVED, MISMATCH = 403, 412


class UrlPicker:
    """One of a peer's URLs, and the next one after it failed."""

    def __init__(self, urls):
        self._urls = urls  # function
        self._at = 0

    def pick(self):
        """Errors: OSError when the peer has none."""
        urls = self._urls()
        if not urls:
            raise OSError("no URL of this member is known")
        return urls[self._at % len(urls)]

    def failed(self):
        self._at += 1


class PeerClient:
    """Requests to one peer. `owner` gives view, settings and inbox; `urls()` the peer's URLs at this time."""

    def __init__(self, owner, peer, urls):
        self.peer = peer
        self.picker = UrlPicker(urls)
        self._owner = owner
        self._idle = []  # (url, wire, reader), youngest last
        self._posts = deque()  # (message, done)
        self._post_bytes = 0
        self._posting = 0

    async def request(self, method, path, body=b"", headers=None, timeout_seconds=POST_SECONDS):
        """(status, headers, body) of one request.

        Errors: OSError (TimeoutError among them), HttpError, ValueError for a bad URL.
        """
        url = self.picker.pick()
        try:
            # A kept connection may have been closed by the peer meanwhile; a fresh one tells the truth.
            while self._idle:
                kept_url, wire, reader = self._idle.pop()
                if kept_url != url:
                    wire.close()
                    continue
                try:
                    return await self._exchange(url, wire, reader, method, path, body, headers, timeout_seconds)
                except TimeoutError:
                    raise
                except (OSError, HttpError):
                    continue
            wire = await sockets.connect(url, self._owner.settings.dial_seconds, self._owner.tls)
            reader = HttpReader(wire, httptools.HttpResponseParser)
            return await self._exchange(url, wire, reader, method, path, body, headers, timeout_seconds)
        except (OSError, HttpError, ValueError):
            self.picker.failed()
            raise

    async def _exchange(self, url, wire, reader, method, path, body, headers, timeout_seconds):
        head = {"Host": sockets.host_of(url), **self._owner.view.request_headers(), **(headers or {})}
        if body or method != "GET":
            head["Content-Length"] = len(body)
        keep = False
        try:
            async with asyncio.timeout(timeout_seconds):
                await wire.send(request_head(method, path, head) + body)
                response = await reader.head(timeout_seconds)
                if response is None:
                    raise HttpError("closed without an answer")
                answer = await reader.body(ANSWER_BYTES_MAX, timeout_seconds)
            keep = response.keep_alive and reader.idle and len(self._idle) < IDLE_MAX
            return response.status, response.headers, answer
        finally:
            if keep:
                self._idle.append((url, wire, reader))
            else:
                wire.close()

    # ---- the pipeline ----------------------------------------------------------------------------

    def post(self, message, done):
        """Send a message by POST /raft, or drop it when too many wait; done(ok) comes back on the main thread."""
        full = self._posts and self._post_bytes + len(message) > POSTS_BYTES_MAX
        if len(self._posts) >= POSTS_MAX or full:
            self._posted(done, False)
            return
        self._posts.append((message, done))
        self._post_bytes += len(message)
        if self._posting < POSTS_AT_ONCE:
            self._posting += 1
            self._owner.spawn(self._drain_posts())

    async def _drain_posts(self):
        try:
            while self._posts:
                message, done = self._posts.popleft()
                ok = False
                try:
                    ok = await self._post_one(message)
                finally:
                    self._post_bytes -= len(message)
                    self._posted(done, ok)
        finally:
            self._posting -= 1

    async def _post_one(self, message):
        try:
            status, _, answer = await self.request("POST", "/raft", message, {"Content-Type": "application/protobuf"})
        except (OSError, HttpError, ValueError) as err:
            log.debug("failed to post a raft message", remote_member=f"{self.peer:x}", error=f"{err}")
            return False
        if status == REMOVED:
            self._owner.inbox.put("removed")
        elif status == MISMATCH:
            log.warn("a peer refused a raft message", remote_member=f"{self.peer:x}", reason=_line(answer))
        return status == 204

    def _posted(self, done, ok):
        if not ok:
            self._owner.inbox.put("unreachable", self.peer)
        if done is not None:
            self._owner.inbox.put("call", done, (ok,))

    # ---- probing ---------------------------------------------------------------------------------

    async def probe_for_ever(self):
        """Tell the main thread the round trip to the peer, again and again."""
        seconds = self._owner.settings.probe_seconds
        while True:
            started = time.monotonic()
            try:
                status, _, _ = await self.request("GET", "/raft/probing", timeout_seconds=seconds)
                took = time.monotonic() - started if status == 200 else None
            except (OSError, HttpError, ValueError):
                took = None
            self._owner.inbox.put("probe", self.peer, took)
            await asyncio.sleep(max(0.0, started + seconds - time.monotonic()))

    def close(self):
        for _, wire, _ in self._idle:
            wire.close()
        self._idle.clear()
        while self._posts:
            self._posted(self._posts.popleft()[1], False)
        self._post_bytes = 0


def _line(text):
    return text[:200].decode("utf-8", "replace").strip()
