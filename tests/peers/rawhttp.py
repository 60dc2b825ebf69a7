"""HTTP/1.1 requests as plain bytes over a socket of their own, and what came back."""

from __future__ import annotations

import re
import socket
from typing import NamedTuple


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def request_bytes(method, path, headers=None, body=b"", length=True):
    fields = {"Host": "x", **(headers or {})}
    if length and (body or method == "POST"):
        fields["Content-Length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def exchange(port, data, timeout_seconds=10.0, method=""):
    """Send bytes, then read an answer to its end; b"" when the server closed without a word.

    Not to the end of the connection: etcd may take 5 s to close one.
    """
    with socket.create_connection(("127.0.0.1", port), timeout_seconds) as connected:
        try:
            connected.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have answered before all of it was sent
        got = b""
        while True:
            try:
                more = connected.recv(65536)
            except ConnectionResetError:
                return got
            got += more
            if not more or _complete(got, method):
                return got


def _complete(data, method):
    head, end, body = data.partition(b"\r\n\r\n")
    if not end or head.startswith(b"HTTP/1.1 100"):
        return False
    if head.lower().find(b"transfer-encoding: chunked") >= 0:
        return body.endswith(b"0\r\n\r\n")
    length = re.search(rb"(?im)^content-length: (\d+)", head)
    return method == "HEAD" or len(body) >= int(length[1] if length else 0)


def parse(data):
    """The first answer in `data`, whose body ends with it; None for no answer."""
    if not data:
        return None
    head, _, body = data.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunked(body)
    return Answer(int(first.split()[1]), headers, body)


def ask(port, method, path, headers=None, body=b""):
    data = request_bytes(method, path, {"Connection": "close", **(headers or {})}, body)
    return parse(exchange(port, data, method=method))


def _unchunked(body):
    out = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        out += rest[: int(size, 16)]
        body = rest[int(size, 16) + 2 :]
    return out
