"""HTTP/1.1 clients for the gateway's tests: whole answers to compare, raw bytes, streams line by line."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from dataclasses import dataclass

# Headers that both servers must agree on; Date and lengths follow from the rest.
COMPARED = (
    "content-type",
    "grpc-metadata-content-type",
    "allow",
    "x-content-type-options",
    "access-control-allow-origin",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "location",
)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def compared(self):
        return {name: self.headers[name] for name in COMPARED if name in self.headers}

    @property
    def value(self):
        """The body as JSON where it is, else as it stands."""
        try:
            return json.loads(self.body)
        except ValueError:
            return self.body


def b64(data):
    return base64.b64encode(data if isinstance(data, bytes) else data.encode()).decode()


class Web:
    """A keep-alive connection to one server."""

    def __init__(self, server, timeout=20.0):
        self.host, self.port = server.host, server.port
        self.timeout = timeout
        self._connection = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ask(self, method, path, body=None, headers=None):
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        self._connection.request(method, path, body, headers or {})
        with self._connection.getresponse() as answer:
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())

    def post(self, path, body, headers=None):
        return self.ask("POST", path, body, headers)

    def get(self, path, headers=None):
        return self.ask("GET", path, None, headers)

    def raw(self):
        return socket.create_connection((self.host, self.port), timeout=self.timeout)


class Stream:
    """A POST whose answer comes in lines."""

    def __init__(self, web, path, body, headers=None):
        self._connection = http.client.HTTPConnection(web.host, web.port, timeout=web.timeout)
        self._connection.request("POST", path, json.dumps(body) if isinstance(body, dict) else body, headers or {})
        self.answer = self._connection.getresponse()
        self.status = self.answer.status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.answer.close()
        self._connection.close()

    def line(self):
        """The next message, None at the end."""
        line = self.answer.readline()
        return json.loads(line) if line else None


def exchange_raw(web, *pieces, half_close=False):
    """Send the pieces, return everything until the server closes."""
    with web.raw() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(65536):
                data += more
        except (BrokenPipeError, ConnectionResetError):
            pass
        return data
