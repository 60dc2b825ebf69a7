"""One request that is not gRPC, whatever protocol brought it, and the ways to answer it.

Exactly one of `respond`, `respond_later`, `begin` is called, now or later. A request whose client went away is
`gone`: answers to it are dropped, and `on_gone` tells who works for it.
"""

from urllib.parse import parse_qs

REASONS = {
    100: "Continue",
    101: "Switching Protocols",
    200: "OK",
    204: "No Content",
    301: "Moved Permanently",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    412: "Precondition Failed",
    413: "Request Entity Too Large",
    421: "Misdirected Request",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
TEXT = "text/plain; charset=utf-8"
NOSNIFF = ("X-Content-Type-Options", "nosniff")


def is_websocket(request):
    return request.headers.get("upgrade", "").lower() == "websocket" and request.method == "GET"


class Request:
    """method, path, query: text as sent; headers: {lower case name: value}, repeated ones joined by a comma;
    body: bytes; role: routes.CLIENT ...; keep_alive: for HTTP/1.1.

    handle, call_id: of the connection, and the id that this request's call may have on it.
    """

    __slots__ = (
        "server",
        "exchange",
        "handle",
        "call_id",
        "method",
        "path",
        "query",
        "headers",
        "body",
        "role",
        "route",
        "keep_alive",
        "http10",
        "upgrade",
        "expects_continue",
        "parts",
        "body_bytes",
        "body_ended",
        "on_body",
        "on_gone",
        "on_answer",
        "answered",
        "chunked",
        "gone",
        "cors",
        "too_large",
        "target",
        "held",
    )

    def __init__(self, server, exchange, handle, call_id):
        self.server = server
        self.exchange = exchange
        self.handle = handle
        self.call_id = call_id
        self.method = self.path = self.query = ""
        self.headers = {}
        self.body = b""
        self.role = 0
        self.route = None
        self.keep_alive = True
        self.http10 = self.upgrade = self.expects_continue = False
        self.parts = []
        self.body_bytes = 0
        self.body_ended = False
        self.on_body = None  # on_body(bytes, ended) of a route that streams
        self.on_gone = None  # on_gone()
        self.on_answer = None  # on_answer(frames, code, text) of its call
        self.answered = self.chunked = self.gone = self.too_large = False
        self.cors = ""
        self.target = ""  # as sent
        self.held = 0  # bytes that count in the budget of its connection

    @property
    def peer(self):
        """Address of the client as text."""
        return self.server.peer_of(self.handle)

    @property
    def cert_cn(self):
        """Common name of the client's verified certificate, None without one."""
        name = self.server.face.cert_name(self.handle)
        return None if name is None else name.decode("utf-8", "replace")

    def query_values(self):
        """{name: [values]} with values that may be empty, as Go's url.Query()."""
        return parse_qs(self.query, keep_blank_values=True)

    def hold(self, more):
        """Count bytes kept for the request in the budget of all connections; the heaviest goes when it is spent."""
        self.held += more
        self.server.face.hold(self.handle, more)

    def release(self):
        if self.held:
            self.server.face.hold(self.handle, -self.held)
            self.held = 0

    # ---- answers

    def respond(self, status, body=b"", content_type=TEXT, headers=()):
        """The whole answer. headers: further (name, value) pairs of text."""
        if self.answered:
            return
        self.answered = True
        if not self.gone:
            self.exchange.send_whole(self, status, body, content_type, headers)

    def error(self, status, text, headers=()):
        """As Go's http.Error: plain text with a newline."""
        self.respond(status, text.encode() + b"\n", TEXT, (*headers, NOSNIFF))

    def not_allowed(self, allow=("GET",)):
        self.error(405, "Method Not Allowed", [("Allow", word) for word in allow])

    def respond_later(self, work):
        """Have a helper thread make the answer: work() -> (status, body, content type, headers)."""
        self.server.run_later(self, work)

    def begin(self, status, content_type, headers=()):
        """An answer in pieces: `write` each, then `end`."""
        if self.answered:
            return
        self.answered = True
        if not self.gone:
            self.exchange.send_head(self, status, content_type, headers)

    def write(self, data):
        if not self.gone and data:
            self.exchange.send_piece(self, data)

    def end(self):
        if not self.gone:
            self.exchange.send_end(self)

    # ---- the call it makes of the member

    def call(self, method, framed, ends, on_answer, timeout_ns=0, require_leader=False, token=b""):
        """Begin the request's call of RPC id `method` with a gRPC message behind its prefix (None: not yet).

        on_answer(frames, code, text) is told what comes: gRPC messages behind their prefixes, cut anywhere while
        `code` is -1; the status and its message at the end. False: not served.
        One call at a time; another may begin when it has ended.
        """
        self.on_answer = on_answer
        return self.server.face.call(self.handle, self.call_id, method, framed, ends, timeout_ns, require_leader, token)

    def call_message(self, framed, ends):
        self.server.face.message(self.handle, self.call_id, framed, ends)

    def cancel_call(self):
        self.on_answer = None
        self.server.face.cancel(self.handle, self.call_id)
