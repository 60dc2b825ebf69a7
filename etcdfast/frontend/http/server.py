"""The frontend's HTTP side: what `_ext/fronthttp` tells becomes requests, requests find their routes.

server = HttpServer(loop, roles=[routes.CLIENT], ...)
server.routes.add("/metrics", handler, routes.EVERYWHERE)
server.turn()                      # whenever run() returned RUN_HTTP
"""

import html
import os
import queue
import socket
import threading
import time
from collections import deque
from email.utils import formatdate
from urllib.parse import quote, unquote, unquote_to_bytes

from etcdfast import log
from etcdfast._ext import fronthttp
from etcdfast.frontend.http import routes
from etcdfast.frontend.http.access import Access
from etcdfast.frontend.http.http1 import Http1Connection
from etcdfast.frontend.http.http2 import Http2Exchange

LATER_MAX = 64  # requests that wait for the helper thread
TURN_SECONDS = 0.005  # of requests in a row; gRPC waits meanwhile
SLICE_BYTES = 2048  # of what may be hundreds of requests, or of a websocket's frames


class HttpServer:
    def __init__(self, loop, roles, knock, cors=("*",), host_whitelist=("*",), message_bytes_max=2 << 20):
        """roles: by listener; knock: the eventfd that FrontLoop was given."""
        self.face = fronthttp.HttpFace(loop)
        self.routes = routes.Routes()
        self.access = Access(cors, host_whitelist)
        self.roles = roles
        # base64 takes four bytes for three; names and blanks of the largest message fit besides.
        self.body_bytes_max = message_bytes_max // 3 * 4 + (1 << 20)
        self.draining = False
        self.now = time.monotonic()
        self.date = ""
        self._set_date()
        self._connections = {}  # handle: Http1Connection
        self._exchanges = {}  # (handle, stream): Http2Exchange
        self._swept = self.now
        self._events = deque()  # taken and not looked at yet
        self._knock = knock
        self._later = None  # queue of the helper thread
        self._finished = deque()  # (request, answer) of it

    # ---- what came

    def turn(self):
        self.now = time.monotonic()
        if not self._events:
            self._events.extend(self.face.take())
        while self._events:
            if time.monotonic() - self.now > TURN_SECONDS:
                os.eventfd_write(self._knock, 1)
                break
            event = self._events.popleft()
            kind, handle, stream, data = event[:4]
            if kind == fronthttp.ARRIVED:
                connection = self._connections.get(handle)
                if connection is None:
                    if stream:
                        continue  # the rest of what a connection sent that takes no more
                    connection = self._connect(handle)
                if len(data) > SLICE_BYTES and connection.in_headers:
                    self._events.appendleft((kind, handle, 1, data[SLICE_BYTES:]))
                    data = data[:SLICE_BYTES]
                self._guarded(handle, connection.feed, data)
            elif kind == fronthttp.ANSWER:
                self._answer(handle, stream, data, event[4], event[5])
            elif kind == fronthttp.GONE:
                connection = self._connections.pop(handle, None)
                if connection is not None:
                    connection.gone()
            elif kind == fronthttp.REQUEST:
                role = self._role(handle)
                exchange = self._exchanges[handle, stream] = Http2Exchange(self, handle, stream, role)
                self._guarded(handle, exchange.open, data, event[4])
            elif kind == fronthttp.BODY:
                exchange = self._exchanges.get((handle, stream))
                if exchange is not None:
                    self._guarded(handle, exchange.body, data, event[4])
            elif kind == fronthttp.RESET:
                exchange = self._exchanges.pop((handle, stream), None)
                if exchange is not None:
                    exchange.gone()
        while self._finished:
            request, answer = self._finished.popleft()
            request.respond(*answer)
        if self.now - self._swept >= 1.0:
            self._sweep()

    def _role(self, handle):
        listener = self.face.listener(handle)
        return self.roles[listener] if 0 <= listener < len(self.roles) else routes.CLIENT

    def _connect(self, handle):
        connection = self._connections[handle] = Http1Connection(self, handle, self._role(handle))
        return connection

    def _guarded(self, handle, work, *arguments):
        """Errors in a handler end that connection, not the member's service."""
        try:
            work(*arguments)
        except Exception as err:
            log.error("an HTTP request failed within", error=f"{type(err).__name__}: {err}")
            self.face.drop(handle)

    def _answer(self, handle, stream, frames, code, text):
        connection = self._connections.get(handle)
        if connection is not None:
            request = connection.active
        else:
            exchange = self._exchanges.get((handle, stream - 1))
            request = exchange.request if exchange is not None else None
        if request is None or request.call_id != stream or request.on_answer is None:
            return
        on_answer = request.on_answer
        if code >= 0:
            request.on_answer = None
            if text is not None:
                text = unquote_to_bytes(text).decode("utf-8", "replace")
        self._guarded(handle, on_answer, frames, code, text)

    def forget(self, handle):
        """An HTTP/1.1 connection takes nothing more."""
        connection = self._connections.pop(handle, None)
        if connection is not None:
            connection.parser = None

    # ---- requests

    def admit(self, request):
        """The headers are there: rewrite the path, find the route."""
        if "%" in request.path:
            request.path = unquote(request.path)
        if request.path.startswith("/v3beta/"):
            request.path = "/v3/" + request.path[8:]
        request.cors = self.access.cors_lines(request)
        request.route = self.routes.find(request.path, request.role)

    def dispatch(self, request):
        try:
            if self.access.refused(request):
                return
            clean = clean_path(request.path)
            if clean != request.path or self.routes.is_folder(clean, request.role):
                _redirect(request, clean if clean != request.path else clean + "/")
            elif request.route is None:
                request.error(404, "404 page not found")
            else:
                request.route.handler(request)
        except Exception as err:
            log.error("an HTTP request failed within", path=request.path, error=f"{type(err).__name__}: {err}")
            request.error(500, "internal error")

    def run_later(self, request, work):
        if self._later is None:
            self._later = queue.Queue(LATER_MAX)
            threading.Thread(target=self._work, name="http-later", daemon=True).start()
        try:
            self._later.put_nowait((request, work))
        except queue.Full:
            request.error(503, "too many requests of this kind wait")

    def _work(self):
        # Not nice: a thread that holds the interpreter lock while others keep it off the core would stop the loop.
        while True:
            request, work = self._later.get()
            try:
                answer = work()
            except Exception as err:
                log.error("an HTTP request failed within", path=request.path, error=f"{type(err).__name__}: {err}")
                answer = (500, b"internal error\n")
            self.answer_from_thread(request, answer)

    def answer_from_thread(self, request, answer):
        """`answer` are the arguments of request.respond; called by any thread."""
        self._finished.append((request, answer))
        os.eventfd_write(self._knock, 1)

    # ---- time

    def _set_date(self):
        self.date = f"Date: {formatdate(usegmt=True)}\r\n"

    def _sweep(self):
        self._swept = self.now
        self._set_date()
        for connection in [c for c in self._connections.values() if c.sweep(self.now)]:
            self.face.drop(connection.handle)
        for exchange in [e for e in self._exchanges.values() if e.sweep(self.now)]:
            self.face.reset(exchange.handle, exchange.stream)

    def begin_drain(self):
        """Connections without a request are closed, the others with the end of theirs."""
        self.draining = True
        for connection in list(self._connections.values()):
            if connection.active is None and connection.parsing is None:
                self.forget(connection.handle)
                self.face.finish(connection.handle)

    def peer_of(self, handle):
        fd = self.face.fileno(handle)
        if fd < 0:
            return ""
        with socket.socket(fileno=os.dup(fd)) as copy:
            try:
                address = copy.getpeername()
            except OSError:
                return ""
        return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)


def clean_path(path):
    """Without empty and dot elements, as Go's ServeMux has it."""
    if "//" not in path and "/." not in path and path.startswith("/"):
        return path
    kept = []
    for word in path.split("/"):
        if word == "..":
            kept = kept[:-1]
        elif word and word != ".":
            kept.append(word)
    return "/" + "/".join(kept) + ("/" if kept and path.endswith("/") else "")


def _redirect(request, path):
    where = quote(path) + (f"?{request.query}" if request.query else "")
    body, kind = b"", ""
    if request.method in ("GET", "HEAD"):
        kind = "text/html; charset=utf-8"
        body = f'<a href="{html.escape(where)}">Moved Permanently</a>.\n\n'.encode()
    request.respond(301, body, kind, [("Location", where)])
