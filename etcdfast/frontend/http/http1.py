"""An HTTP/1.1 connection: bytes into requests, answers into bytes. No sockets.

httptools (llhttp) parses, and is strict: a request with both lengths, a bad length or a stray byte in a header ends
the connection with 400. One request is worked on at a time; those pipelined behind it wait, and while any waits
nothing more is read.
"""

from collections import deque

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from etcdfast.frontend.http.request import REASONS, Request, is_websocket

HEADER_BYTES_MAX = 65536
HEADER_SECONDS = 10.0
BODY_SECONDS = 60.0
IDLE_SECONDS = 300.0
PIECE_BYTES = 512  # of a body, from which on it is kept as it came
REQUEST_COST_BYTES = 2048  # of a request's objects
UPGRADE_HEADERS = frozenset({"upgrade", "connection", "http2-settings"})
BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"
)
TOO_LARGE = (
    b"HTTP/1.1 413 Request Entity Too Large\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"413 Request Entity Too Large"
)
TOO_LARGE_HEAD = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Connection: close\r\n\r\n431 Request Header Fields Too Large"
)


class Http1Connection:
    __slots__ = (
        "server",
        "handle",
        "role",
        "parser",
        "parsing",
        "header_bytes",
        "in_headers",
        "since",
        "active",
        "waiting",
        "going_on",
        "next_call",
        "closing",
        "raw",
    )

    def __init__(self, server, handle, role):
        self.server = server
        self.handle = handle
        self.role = role
        self.parser = HttpRequestParser(self)
        self.parsing = None  # the request whose bytes come
        self.header_bytes = 0  # since the headers or a piece of the body ended
        self.in_headers = True
        self.since = server.now  # of what sweep looks at
        self.active = None  # the request that is worked on
        self.waiting = deque()
        self.going_on = False
        self.next_call = 2
        self.closing = False  # nothing more is taken
        self.raw = None  # raw(bytes) once the protocol was changed

    # ---- bytes that came

    def feed(self, data):
        if self.raw is not None:
            self.raw(data)
            return
        if self.closing:
            return
        self.header_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            # The protocol changes only if the handler has said so.
            rest = data[upgrade.args[0] :]
            if self.raw is None:
                self._as_if_plain(rest)
            elif rest:
                self.raw(rest)
        except HttpParserError:
            # Also what the methods below raise.
            self.refuse(TOO_LARGE if self.parsing is not None and self.parsing.too_large else BAD_REQUEST)
            return
        if self.header_bytes > HEADER_BYTES_MAX and not self.closing:
            # Also trailers, and what a client hides in the heads of chunks.
            self.refuse(TOO_LARGE_HEAD)
        elif self.waiting:
            self.server.face.read(self.handle, False)

    def _as_if_plain(self, rest):
        """An upgrade that is not taken: the parser has left the body alone, so the head goes through another one
        without what asks for it."""
        request, self.parsing = self.parsing, None
        if request is None or self.closing:
            return
        head = [f"{request.method} {request.target} HTTP/1.1\r\n"]
        kept = (item for item in request.headers.items() if item[0] not in UPGRADE_HEADERS)
        head += [f"{name}: {value}\r\n" for name, value in kept]
        head.append("Connection: close\r\n\r\n")
        self.parser = HttpRequestParser(self)
        self.feed("".join(head).encode("latin-1") + rest)

    def refuse(self, answer):
        """Say it behind what is answered already, and close."""
        self.closing = True
        if self.active is not None:
            self.server.face.drop(self.handle)
            return
        self.server.face.say(self.handle, answer)
        self.server.face.finish(self.handle)

    # ---- httptools

    def on_message_begin(self):
        if self.closing:
            raise ValueError("the connection ends")
        self.parsing = Request(self.server, self, self.handle, 0)
        self.since = self.server.now
        self.in_headers = True

    def on_url(self, url):
        self.parsing.path += url.decode("latin-1")

    def on_header(self, name, value):
        if not self.in_headers:
            return  # a trailer: it must not change what the request was let in for
        headers = self.parsing.headers
        name = name.decode("latin-1").lower()
        value = value.decode("latin-1").strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value

    def on_headers_complete(self):
        request = self.parsing
        self.in_headers = False
        request.hold(REQUEST_COST_BYTES + self.header_bytes)
        self.header_bytes = 0
        self.since = self.server.now
        request.role = self.role
        request.method = self.parser.get_method().decode("latin-1")
        request.http10 = self.parser.get_http_version() == "1.0"
        request.upgrade = "upgrade" in request.headers and self.parser.should_upgrade()
        request.expects_continue = request.headers.get("expect", "").lower() == "100-continue"
        target = request.target = request.path
        if not target.startswith("/"):
            target = _path_of(target)
        request.path, _, request.query = target.partition("?")
        if "host" not in request.headers and not request.http10:
            raise ValueError("no Host")
        self.server.admit(request)
        if request.upgrade and not is_websocket(request):
            return
        if request.route is not None and request.route.streams:
            request.keep_alive = not request.http10 and self.parser.should_keep_alive()
            self.enter(request)
        elif request.expects_continue and self.active is None and request.route is not None:
            self.server.face.say(self.handle, b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data):
        self.header_bytes = 0
        request = self.parsing
        request.body_bytes += len(data)
        if request.on_body is not None:
            request.on_body(data, False)
        elif request.body_bytes > self.server.body_bytes_max:
            request.too_large = True
            raise ValueError("body too large")
        elif not request.answered:
            request.hold(len(data))
            parts = request.parts
            if len(data) >= PIECE_BYTES or not parts:
                parts.append(data)
            elif type(parts[-1]) is bytearray:
                parts[-1] += data  # a client that sends a byte at a time must not get an object for each
            else:
                parts.append(bytearray(data))

    def on_message_complete(self):
        request = self.parsing
        if request.upgrade and not is_websocket(request):
            return  # see _as_if_plain
        self.parsing = None
        self.in_headers = True
        self.header_bytes = 0
        request.body_ended = True
        request.keep_alive = request.keep_alive and self.parser.should_keep_alive()
        if request.route is not None and request.route.streams:
            if request.on_body is not None:
                request.on_body(b"", True)
            return
        parts = request.parts
        request.body = parts[0] if len(parts) == 1 else b"".join(parts)  # the first is never a bytearray
        request.parts = None
        self.enter(request)

    # ---- one request after another

    def enter(self, request):
        if self.active is not None:
            self.waiting.append(request)
            return
        self.start(request)

    def start(self, request):
        self.active = request
        request.call_id = self.next_call
        self.next_call = self.next_call + 2 & 0x7FFFFFFE or 2
        self.server.dispatch(request)

    def done(self, request):
        """The answer of the active request is out."""
        request.release()
        if not request.body_ended or not request.keep_alive or self.server.draining:
            # What is left of its body would have to be read to find the next request.
            self.closing = True
            self.active = None
            self.server.forget(self.handle)
            self.server.face.finish(self.handle)
            return
        self.active = None
        self.since = self.server.now
        if self.waiting and not self.going_on:
            self.going_on = True  # what is answered at once comes back here
            while self.waiting and self.active is None and not self.closing:
                self.start(self.waiting.popleft())
            self.going_on = False
            if not self.waiting and not self.closing:
                self.server.face.read(self.handle, True)

    def gone(self):
        self.closing = True
        request, self.active = self.active, None
        self.waiting.clear()
        if request is not None:
            _tell_gone(request)
        if self.parsing is not None and self.parsing is not request:
            _tell_gone(self.parsing)
        self.parser = None  # it refers to us

    def sweep(self, now):
        """Whether the connection has to go."""
        if self.waiting and now - self.since > BODY_SECONDS:
            return True  # it is not read, so that nobody would notice its client's end
        if self.active is not None or self.raw is not None:
            # A body that belongs to the active request and never ends; streams may take as long as they like.
            late = self.parsing is self.active and self.active is not None and self.active.on_body is None
            return late and now - self.since > BODY_SECONDS
        if self.parsing is None:
            return now - self.since > IDLE_SECONDS or (self.header_bytes > 0 and now - self.since > HEADER_SECONDS)
        return now - self.since > (HEADER_SECONDS if self.in_headers else BODY_SECONDS)

    # ---- answers

    def _head(self, request, status, content_type, headers, rest):
        lines = [f"HTTP/1.1 {status} {REASONS[status]}\r\n{request.cors}"]
        if content_type:
            lines.append(f"Content-Type: {content_type}\r\n")
        lines += [f"{name}: {value}\r\n" for name, value in headers]
        lines.append(self.server.date)
        if not request.keep_alive or self.server.draining or not request.body_ended:
            request.keep_alive = False
            lines.append("Connection: close\r\n")
        elif request.http10:
            lines.append("Connection: keep-alive\r\n")
        lines.append(rest)
        return "".join(lines).encode("latin-1", "replace")

    def send_whole(self, request, status, body, content_type, headers):
        head = self._head(request, status, content_type, headers, f"Content-Length: {len(body)}\r\n\r\n")
        self.server.face.say(self.handle, head if request.method == "HEAD" else head + body)
        self.done(request)

    def send_head(self, request, status, content_type, headers):
        request.chunked = not request.http10
        if request.http10:
            request.keep_alive = False
        rest = "Transfer-Encoding: chunked\r\n\r\n" if request.chunked else "\r\n"
        self.server.face.say(self.handle, self._head(request, status, content_type, headers, rest))

    def send_piece(self, request, data):
        if request.method == "HEAD":
            return
        self.server.face.say(self.handle, b"%x\r\n%b\r\n" % (len(data), data) if request.chunked else data)

    def send_end(self, request):
        if request.chunked and request.method != "HEAD":
            self.server.face.say(self.handle, b"0\r\n\r\n")
        self.done(request)

    def switch(self, request, headers, raw):
        """101: from here on bytes go to `raw`."""
        self.raw = raw
        request.answered = True
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        self.server.face.say(self.handle, f"HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n".encode("latin-1"))

    def say_raw(self, data):
        self.server.face.say(self.handle, data)

    def close(self):
        self.closing = True
        self.active = None
        self.server.forget(self.handle)
        self.server.face.finish(self.handle)


def _path_of(target):
    """Path and query of an absolute target; "*" stays what it is."""
    _, mark, rest = target.partition("://")
    if not mark:
        return target
    slash = rest.find("/")
    return rest[slash:] if slash >= 0 else "/"


def _tell_gone(request):
    request.gone = True
    if request.on_gone is not None:
        request.on_gone()
