"""HTTP/1.1 on the client port: GET /health and /version, one request per connection.

The place of the JSON gateway. Until it is here, anything else is 404. Work is bounded: one thread, a queue
of limited length, limited bytes and seconds per request.
"""

import json
import queue
import socket
import threading
import time

from etcdfast import version
from etcdfast._ext.ring import APPLY_WORDS, CONSENSUS_WORDS

REQUEST_BYTES_MAX = 8192
REQUEST_SECONDS = 5.0
WAITING_MAX = 128
ALARM_NAMES = ((1, "NOSPACE"), (2, "CORRUPT"))
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class Http1Server:
    """Answers connections handed over by the loop; starts its thread with the first of them."""

    def __init__(self, consensus_page, apply_page):
        self._consensus_page = consensus_page
        self._apply_page = apply_page
        self._waiting = queue.Queue(WAITING_MAX)
        self._thread = None

    def take(self, fd, first_bytes):
        """Own the connected socket `fd`, of which `first_bytes` were read. Closed at once when the queue is full."""
        connection = socket.socket(fileno=fd)
        try:
            self._waiting.put_nowait((connection, first_bytes))
        except queue.Full:
            connection.close()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="http1", daemon=True)
            self._thread.start()

    def _serve(self):
        while True:
            connection, data = self._waiting.get()
            with connection:
                try:
                    self._answer(connection, data)
                except OSError:
                    pass

    def _answer(self, connection, data):
        deadline = time.monotonic() + REQUEST_SECONDS
        while b"\r\n\r\n" not in data:
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0 or len(data) > REQUEST_BYTES_MAX:
                return
            connection.settimeout(left_seconds)
            more = connection.recv(REQUEST_BYTES_MAX)
            if not more:
                return
            data += more
        status, content_type, body, headers = self.respond(data.split(b"\r\n", 1)[0])
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\n{headers}Content-Type: {content_type}\r\n"
        connection.settimeout(REQUEST_SECONDS)
        connection.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        connection.shutdown(socket.SHUT_WR)

    def respond(self, request_line):
        """(status, content type, body, further header lines) for one request line."""
        text = "text/plain; charset=utf-8"
        parts = request_line.split()
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
            return 400, text, b"bad request\n", ""
        method, target = parts[0], parts[1].decode("latin-1")
        path, _, query = target.partition("?")
        handler = {"/health": self._health, "/version": self._version}.get(path)
        if handler is None:
            return 404, text, b"404 page not found\n", ""
        if method != b"GET":
            return 405, text, b"Method Not Allowed\n", "Allow: GET\r\n"
        return (*handler(query), "")

    def _health(self, query):
        excluded = {value for name, _, value in (p.partition("=") for p in query.split("&")) if name == "exclude"}
        alarms = self._apply_page[APPLY_WORDS["alarms"]]
        raised = [name for bit, name in ALARM_NAMES if alarms & bit and name not in excluded]
        reason = ""
        if raised:
            reason = f"ALARM {raised[0]}"
        elif not self._consensus_page[CONSENSUS_WORDS["leader"]]:
            reason = "RAFT NO LEADER"
        body = json.dumps({"health": "false" if reason else "true", "reason": reason}, separators=(",", ":"))
        # etcd sends failures with http.Error, which ends the body with a newline.
        return (503 if reason else 200), "text/plain; charset=utf-8", (body + ("\n" if reason else "")).encode()

    def _version(self, query):
        body = {
            "etcdserver": version.SERVER_VERSION,
            "etcdcluster": version.CLUSTER_VERSION,
            "storage": version.STORAGE_VERSION,
        }
        return 200, "application/json", json.dumps(body, separators=(",", ":")).encode()
