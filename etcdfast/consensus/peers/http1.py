"""HTTP/1.1 messages on a wire: heads and bodies as they come, with limits. Parsing is httptools' (llhttp)."""

import asyncio
from collections import deque

import httptools

HEAD_BYTES_MAX = 65536
HEADERS_MAX = 128
READ_BYTES = 65536
_PIPELINED_MAX = 64  # requests read ahead of their answers


class HttpError(Exception):
    """The other side sent something that is no HTTP/1.1 message, or broke a limit; `status` is what to answer."""

    def __init__(self, text, status=400):
        super().__init__(text)
        self.status = status


class Disconnected(HttpError):
    """The other side closed in the middle of a message."""


class Message:
    """A request (`method`, `target`) or a response (`status`); header names are lower case."""

    __slots__ = ("complete", "head_done", "headers", "keep_alive", "method", "pieces", "status", "target")

    def __init__(self):
        self.method = ""
        self.target = b""
        self.status = 0
        self.headers = {}
        self.keep_alive = False
        self.head_done = False
        self.complete = False
        self.pieces = deque()  # of the body, not taken yet


class _Events:
    """What the parser calls."""

    def __init__(self):
        self.messages = deque()
        self.parser = None

    def on_message_begin(self):
        if len(self.messages) >= _PIPELINED_MAX:
            raise HttpError("too many requests at once")
        self.messages.append(Message())

    def on_url(self, part):
        self.messages[-1].target += part

    def on_header(self, name, value):
        headers = self.messages[-1].headers
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
        if len(headers) >= HEADERS_MAX:
            raise HttpError("too many headers", 431)
        headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def on_headers_complete(self):
        message = self.messages[-1]
        if isinstance(self.parser, httptools.HttpRequestParser):
            message.method = self.parser.get_method().decode("latin-1")
        else:
            message.status = self.parser.get_status_code()
        message.keep_alive = self.parser.should_keep_alive()
        message.head_done = True

    def on_body(self, piece):
        self.messages[-1].pieces.append(piece)

    def on_message_complete(self):
        self.messages[-1].complete = True


class HttpReader:
    """The messages that come on a wire, one after the other: `head`, then `piece` until it is None.

    Errors of both: HttpError, TimeoutError, OSError.
    """

    def __init__(self, wire, parser_class):
        self._wire = wire
        self._events = _Events()
        self._parser = self._events.parser = parser_class(self._events)
        self._head_bytes = 0

    @property
    def idle(self):
        """Nothing was read that is not done with."""
        return not self._events.messages

    async def _more(self, timeout_seconds):
        async with asyncio.timeout(timeout_seconds):
            data = await self._wire.recv(READ_BYTES)
        if data:
            self._feed(data)
        return len(data)

    def _feed(self, data):
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise HttpError("no other protocol is spoken here") from None
        except httptools.HttpParserCallbackError as err:
            cause = err.__context__
            raise (cause if isinstance(cause, HttpError) else HttpError(str(err))) from None
        except httptools.HttpParserError as err:
            raise HttpError(str(err)) from None

    async def head(self, timeout_seconds):
        """The next message with its head complete; None when the other side closed before one began."""
        messages = self._events.messages
        while not messages or not messages[0].head_done:
            came = await self._more(timeout_seconds)
            if not came:
                if not messages:
                    return None
                raise Disconnected("closed within a head")
            self._head_bytes += came
            if self._head_bytes > HEAD_BYTES_MAX and not (messages and messages[0].head_done):
                raise HttpError("head too large", 431)
        self._head_bytes = 0
        return messages[0]

    async def piece(self, timeout_seconds):
        """The next part of the body of the message last returned by `head`; None at its end."""
        message = self._events.messages[0]
        while not message.pieces:
            if message.complete:
                self._events.messages.popleft()
                return None
            if not await self._more(timeout_seconds):
                if message.status and not message.headers.keys() & {"content-length", "transfer-encoding"}:
                    message.complete = True  # a response that ends with its connection
                    continue
                raise Disconnected("closed within a body")
        return message.pieces.popleft()

    async def body(self, bytes_max, timeout_seconds):
        """The whole body. HttpError with status 413 when it is larger."""
        pieces, size = [], 0
        while (piece := await self.piece(timeout_seconds)) is not None:
            size += len(piece)
            if size > bytes_max:
                raise HttpError("request body too large", 413)
            pieces.append(piece)
        return b"".join(pieces)


async def read_response_head(wire, timeout_seconds):
    """(Message, bytes behind the head) of a response whose body somebody else reads.

    Errors: HttpError, TimeoutError, OSError.
    """
    data = b""
    async with asyncio.timeout(timeout_seconds):
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > HEAD_BYTES_MAX:
                raise HttpError("head too large")
            more = await wire.recv(4096)
            if not more:
                raise Disconnected("closed within a head")
            data += more
    reader = HttpReader(wire, httptools.HttpResponseParser)
    reader._feed(data[: end + 4])
    messages = reader._events.messages
    if not messages or not messages[0].head_done:
        raise HttpError("not a response")
    return messages[0], data[end + 4 :]


REASONS = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    410: "Gone",
    412: "Precondition Failed",
    413: "Request Entity Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


def response_head(status, headers):
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}"]
    lines += (f"{name}: {value}" for name, value in headers.items())
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def request_head(method, target, headers):
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
