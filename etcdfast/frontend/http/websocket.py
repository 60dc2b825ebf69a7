"""Websockets on the gateway's paths, as etcd's grpc-websocket-proxy has them.

Each text or binary message of the client is one JSON request; each line of the answer is one text message. A token may
come as the subprotocol `Bearer, <token>` or as the cookie `token`, for browsers cannot set headers.
"""

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import RemoteProtocolError, generate_accept_token

from etcdfast.frontend.http.request import Request

MESSAGE_BYTES_MAX = 4 << 20


def serve_websocket(request, handler, streams):
    """Shake hands and have `handler` serve a request in the place of this one."""
    headers = request.headers
    key = headers.get("sec-websocket-key")
    if not key or headers.get("sec-websocket-version") != "13":
        request.error(400, "Bad Request", [("Sec-Websocket-Version", "13")])
        return
    answer = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", generate_accept_token(key.encode("latin-1")).decode()),
    ]
    protocols = [word.strip() for word in headers.get("sec-websocket-protocol", "").split(",")]
    if len(protocols) == 2 and protocols[0] == "Bearer":
        headers["authorization"] = f"Bearer {protocols[1]}"
        answer.append(("Sec-WebSocket-Protocol", "Bearer"))
    for cookie in headers.get("cookie", "").split(";"):
        name, _, value = cookie.strip().partition("=")
        if name == "token":
            headers["authorization"] = f"Bearer {value}"
    socket = _Socket(request, handler, streams)
    request.exchange.switch(request, answer, socket.arrived)
    socket.start()


class _Socket:
    """The exchange of the inner request: lines out, messages in."""

    def __init__(self, outer, handler, streams):
        self.connection = outer.exchange
        self.frames = Connection(ConnectionType.SERVER)
        self.handler = handler
        self.streams = streams
        self.message = bytearray()
        self.line = b""
        self.closed = False
        inner = self.inner = Request(outer.server, self, outer.handle, outer.call_id)
        inner.method = "POST"
        inner.path, inner.query, inner.headers, inner.role = outer.path, outer.query, outer.headers, outer.role
        self.connection.active = inner

    def start(self):
        if self.streams:
            self.handler(self.inner)

    # ---- in

    def arrived(self, data):
        if self.closed:
            return
        try:
            self.frames.receive_data(data)
            for event in self.frames.events():
                self._take(event)
        except RemoteProtocolError as err:
            self._close(err.event_hint.code if isinstance(err.event_hint, CloseConnection) else 1002)

    def _take(self, event):
        if isinstance(event, (TextMessage, BytesMessage)):
            piece = event.data.encode() if isinstance(event, TextMessage) else event.data
            self.message += piece
            self.inner.hold(len(piece))
            if len(self.message) > MESSAGE_BYTES_MAX:
                self._close(1009)
            elif event.message_finished:
                message = bytes(self.message)
                self.message.clear()
                self.inner.release()
                self._request(message)
        elif isinstance(event, Ping):
            self.connection.say_raw(self.frames.send(event.response()))
        elif isinstance(event, CloseConnection):
            if not self.closed:
                self.connection.say_raw(self.frames.send(event.response()))
            self._end()

    def _request(self, message):
        inner = self.inner
        if inner.on_body is not None:
            inner.on_body(message + b"\n", False)
        elif not self.streams and not inner.answered and inner.on_answer is None:
            inner.body = message
            self.handler(inner)

    # ---- out

    def _send_line(self, line):
        if line and not self.closed:
            self.connection.say_raw(self.frames.send(TextMessage(line.decode("utf-8", "replace"))))

    def send_whole(self, request, status, body, content_type, headers):
        for line in body.split(b"\n"):
            self._send_line(line)
        self._close(1000)

    def send_head(self, request, status, content_type, headers):
        pass

    def send_piece(self, request, data):
        *lines, self.line = (self.line + data).split(b"\n")
        for line in lines:
            self._send_line(line)

    def send_end(self, request):
        self._send_line(self.line)
        self._close(1000)

    def _close(self, code):
        if not self.closed:
            self.connection.say_raw(self.frames.send(CloseConnection(code=code)))
            self._end()

    def _end(self):
        """Nothing more either way; a call under way ends with the connection."""
        self.closed = True
        self.inner.gone = True
        self.connection.close()
