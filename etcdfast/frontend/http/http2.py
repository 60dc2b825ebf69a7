"""HTTP/2 requests that are not gRPC, as the same request object: frames are C's."""

from etcdfast.frontend.http.http1 import BODY_SECONDS, REQUEST_COST_BYTES
from etcdfast.frontend.http.request import Request

# Headers of a connection have no place in HTTP/2.
HOP_HEADERS = frozenset({"connection", "transfer-encoding", "keep-alive", "upgrade"})


class Http2Exchange:
    __slots__ = ("server", "handle", "stream", "request", "since")

    def __init__(self, server, handle, stream, role):
        self.server = server
        self.handle = handle
        self.stream = stream
        self.since = server.now
        request = self.request = Request(server, self, handle, stream + 1)
        request.role = role

    def open(self, headers, ended):
        server, request = self.server, self.request
        found = request.headers
        target = "/"
        for name, value in headers:
            name, value = name.decode("latin-1"), value.decode("latin-1")
            if name == ":method":
                request.method = value
            elif name == ":path":
                target = value
            elif name == ":authority":
                found["host"] = value
            elif name[0] != ":":
                found[name] = f"{found[name]}, {value}" if name in found else value
        request.hold(REQUEST_COST_BYTES + sum(len(name) + len(value) for name, value in headers))
        request.path, _, request.query = target.partition("?")
        server.admit(request)
        if request.route is not None and request.route.streams:
            server.dispatch(request)
        if ended:
            self.body(b"", True)

    def body(self, data, ended):
        request = self.request
        request.body_bytes += len(data)
        request.body_ended = ended
        if request.route is not None and request.route.streams:
            if request.on_body is not None:
                request.on_body(data, ended)
            return
        if request.answered:
            return
        if request.body_bytes > self.server.body_bytes_max:
            request.error(413, "request body is too large")
            return
        request.hold(len(data))
        request.parts.append(data)
        if ended:
            request.body = b"".join(request.parts)
            request.parts = None
            self.server.dispatch(request)

    def gone(self):
        request = self.request
        request.gone = True
        request.release()
        self.server.face.cancel(self.handle, self.stream + 1)
        if request.on_gone is not None:
            request.on_gone()

    def sweep(self, now):
        request = self.request
        return not request.body_ended and request.on_body is None and now - self.since > BODY_SECONDS

    # ---- answers

    def _head(self, request, status, content_type, headers, end, size=None):
        lines = [(b":status", str(status).encode())]
        for line in request.cors.split("\r\n")[:-1]:
            name, _, value = line.partition(": ")
            lines.append((name.lower().encode(), value.encode("latin-1")))
        if content_type:
            lines.append((b"content-type", content_type.encode()))
        lines += [
            (name.lower().encode(), str(value).encode("latin-1", "replace"))
            for name, value in headers
            if name.lower() not in HOP_HEADERS
        ]
        lines.append((b"date", self.server.date[6:-2].encode()))
        if size is not None:
            lines.append((b"content-length", str(size).encode()))
        self.server.face.respond(self.handle, self.stream, lines, end)

    def send_whole(self, request, status, body, content_type, headers):
        empty = request.method == "HEAD" or not body
        self._head(request, status, content_type, headers, empty, len(body))
        if not empty:
            self.server.face.body(self.handle, self.stream, body, True)

    def send_head(self, request, status, content_type, headers):
        self._head(request, status, content_type, headers, False)

    def send_piece(self, request, data):
        self.server.face.body(self.handle, self.stream, data, False)

    def send_end(self, request):
        self.server.face.body(self.handle, self.stream, b"", True)
