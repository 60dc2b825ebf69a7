"""The HTTP server on the peer URLs: connections, their limits, and one answer after the other on each."""

import asyncio
import errno
import time
from collections import OrderedDict
from typing import NamedTuple

import httptools

from etcdfast import log
from etcdfast.consensus.peers import sockets
from etcdfast.consensus.peers.http1 import HttpError, HttpReader, response_head
from etcdfast.consensus.peers.tls import TlsRefused

IDLE_SECONDS = 300.0  # without a request, as etcd's read timeout
SILENT_SECONDS = 1.0  # without a request, after which a connection may have to make room for others
PIECE_SECONDS = 60.0  # without a byte of a body
BODY_SECONDS = 300.0  # for a body that is held in memory, as etcd
SEND_SECONDS = 60.0  # for an answer
SMALL_BODY_BYTES = 65536  # of a body, that are not accounted for
LINGER_SECONDS = 1.0  # for the other side to read a last answer
LINGER_BYTES_MAX = 4 << 20
TEXT = "text/plain; charset=utf-8"


class Response(NamedTuple):
    status: int
    body: bytes = b""
    content_type: str | None = None
    headers: dict = {}  # noqa: RUF012  (never changed)
    close: bool = False  # end the connection behind it


def failure(status, text, headers=None, close=False):
    """An error as Go's http.Error writes it."""
    return Response(
        status, text.encode() + b"\n", TEXT, {"X-Content-Type-Options": "nosniff", **(headers or {})}, close
    )


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _http_date():
    # Not strftime, whose names follow the locale, and not email.utils, which imports half the mail library.
    now = time.gmtime()
    clock = f"{now.tm_hour:02d}:{now.tm_min:02d}:{now.tm_sec:02d}"
    return f"{_DAYS[now.tm_wday]}, {now.tm_mday:02d} {_MONTHS[now.tm_mon - 1]} {now.tm_year} {clock} GMT"


class Taken:
    """What a handler returns that has given the connection's socket away."""


class Budget:
    """Bytes of request bodies held at once. Who finds it used up waits; one that is alone may be of any size."""

    def __init__(self, bytes_max):
        self._bytes_max = bytes_max
        self._used = 0
        self._freed = asyncio.Condition()

    async def reserve(self, size):
        async with self._freed:
            await self._freed.wait_for(lambda: not self._used or self._used + size <= self._bytes_max)
            self._used += size

    async def release(self, size):
        async with self._freed:
            self._used -= size
            self._freed.notify_all()


class Request:
    """One request under way: head, and a body to be read by its handler."""

    def __init__(self, connection, message):
        self.method = message.method
        self.path, _, self.query = message.target.decode("latin-1").partition("?")
        self.headers = message.headers
        self._connection = connection
        self._reader = connection.reader
        self._reserved = 0
        self._ended = False

    @property
    def wire(self):
        return self._connection.wire

    async def piece(self):
        """The next part of the body, None at its end. Errors: HttpError, TimeoutError, OSError."""
        if self._ended:
            return None
        if self.headers.pop("expect", "").lower() == "100-continue":
            await self.wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        piece = await self._reader.piece(PIECE_SECONDS)
        self._ended = piece is None
        return piece

    async def body(self, bytes_max):
        """The whole body, accounted for until the request is done. HttpError 413 when it is larger."""
        announced = self.headers.get("content-length", "")
        most = int(announced) if announced.isdecimal() else bytes_max
        if most > bytes_max:
            raise HttpError("request body too large", 413)
        async with asyncio.timeout(BODY_SECONDS):
            return await self._pieces(bytes_max, most)

    async def _pieces(self, bytes_max, most):
        pieces, size = [], 0
        while (piece := await self.piece()) is not None:
            size += len(piece)
            if size > bytes_max:
                raise HttpError("request body too large", 413)
            # Every request may hold a little, so that small ones pass by large ones. Beyond that it waits for all that
            # it may need: two that each hold a part and want more would wait for each other.
            if size > SMALL_BODY_BYTES and not self._reserved:
                await self._connection.server.budget.reserve(most)
                self._reserved = most
            pieces.append(piece)
        return b"".join(pieces)

    async def done(self):
        if self._reserved:
            await self._connection.server.budget.release(self._reserved)
            self._reserved = 0

    async def skip_body(self):
        """Read what the handler left, if it is little. False when the connection must end instead."""
        left = 262144
        while left > 0:
            piece = await self.piece()
            if piece is None:
                return True
            left -= len(piece)
        return False


class _Connection:
    def __init__(self, server, wire, tls):
        self.server = server
        self.wire = wire
        self.reader = None
        self._tls = tls

    async def serve(self):
        try:
            if self._tls is not None:
                await self._shake_hands()
            self.reader = HttpReader(self.wire, httptools.HttpRequestParser)
            while await self._one():
                pass
        except TlsRefused:
            pass  # told already
        except HttpError as err:
            await self._refuse(err)
        except (OSError, TimeoutError):
            pass
        finally:
            self.wire.close()

    async def _shake_hands(self):
        """Who is not done with it may have to make room for others, as who sends no request."""
        self.server.waits(self)
        try:
            self.wire = await self._tls.accept(self.wire)
        finally:
            self.server.idle.pop(self, None)

    async def _linger(self):
        """Closing with unread bytes would reset the connection, and the reset can overtake the answer."""
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                self.wire.end_sending()
                left = LINGER_BYTES_MAX
                while left > 0 and (data := await self.wire.recv(65536)):
                    left -= len(data)
        except (OSError, TimeoutError):
            pass

    async def _refuse(self, err):
        try:
            await self._send(Response(err.status, str(err).encode() + b"\n", TEXT, close=True), "", False)
            await self._linger()
        except (OSError, TimeoutError):
            pass

    async def _one(self):
        """Serve one request; False when the connection is done."""
        self.server.waits(self)
        try:
            message = await self.reader.head(IDLE_SECONDS)
        finally:
            self.server.idle.pop(self, None)
        if message is None:
            return False
        request = Request(self, message)
        try:
            response = await self.server.handle(request)
            if response is Taken:
                return False
            keep = message.keep_alive and not response.close
            if keep and not await request.skip_body():
                keep = False
        finally:
            await request.done()
        await self._send(response, request.method, keep)
        if not keep:
            await self._linger()
        return keep

    async def _send(self, response, method, keep):
        headers = dict(response.headers)
        if response.content_type:
            headers["Content-Type"] = response.content_type
        headers["Date"] = _http_date()
        if response.status != 204:
            headers["Content-Length"] = len(response.body)
        if not keep:
            headers["Connection"] = "close"
        body = b"" if method == "HEAD" else response.body
        async with asyncio.timeout(SEND_SECONDS):
            await self.wire.send(response_head(response.status, headers) + body)


class Server:
    """Accepts on listening sockets and asks `handle(request)` for a Response, or Taken."""

    def __init__(self, handle, connections_max, bodies_bytes_max):
        self.handle = handle
        self.budget = Budget(bodies_bytes_max)
        self.idle = OrderedDict()  # connection that waits for a request -> its task, since when; oldest first
        self._connections_max = connections_max
        self._tasks = set()
        self.room = asyncio.Event()

    @property
    def connections(self):
        return len(self._tasks)

    async def listen(self, listener, tls=None):
        """Accept for ever; `tls`: the PeerTls of an https URL. Errors: OSError of a listening socket that is broken."""
        while True:
            await self._wait_for_room()
            try:
                wire = await sockets.accept(listener)
            except OSError as err:
                if err.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    log.warn("cannot accept a peer connection", error=str(err))
                    await asyncio.sleep(0.1)
                    continue
                if err.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK):
                    raise
                continue  # the connection was gone before it was accepted
            task = asyncio.create_task(_Connection(self, wire, tls).serve())
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def waits(self, connection):
        """The connection, whose task this is, waits for its peer from now on."""
        self.idle[connection] = asyncio.current_task(), asyncio.get_running_loop().time()
        self.room.set()

    async def _wait_for_room(self):
        while len(self._tasks) >= self._connections_max:
            # Who waits for a request longest goes, so that silent connections cannot keep members out; but not who has
            # only just come: its request is on the way.
            left_seconds = None
            if self.idle:
                connection, (task, since) = next(iter(self.idle.items()))
                left_seconds = since + SILENT_SECONDS - asyncio.get_running_loop().time()
                if left_seconds <= 0:
                    del self.idle[connection]
                    task.cancel()
                    left_seconds = None
            self.room.clear()
            try:
                async with asyncio.timeout(left_seconds):
                    await self.room.wait()
            except TimeoutError:
                pass

    def _ended(self, task):
        self._tasks.discard(task)
        self.room.set()
        if not task.cancelled() and task.exception() is not None:
            err = task.exception()
            log.error("a peer request failed on an internal error", error=f"{type(err).__name__}: {err}")

    async def close(self):
        # Answers that the main thread has just given go out: they are in the way to their connections, and a socket
        # takes a short one at once.
        for _ in range(20):
            await asyncio.sleep(0)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
