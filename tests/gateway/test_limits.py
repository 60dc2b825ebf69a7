"""What clients may cost: slow ones, silent ones, many, large answers."""

from __future__ import annotations

import socket
import time

import pytest

from tests.frontend.member import Frontend
from tests.gateway.web import b64, exchange_raw
from tests.harness.wait import wait_until

IMPATIENT = """
from etcdfast.frontend.http import http1
http1.HEADER_SECONDS = http1.BODY_SECONDS = http1.IDLE_SECONDS = 1.0
"""


class Where:
    host = "127.0.0.1"
    timeout = 20

    def __init__(self, port):
        self.port = port

    def raw(self):
        return socket.create_connection((self.host, self.port), timeout=self.timeout)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"GET /ver",
        b"GET /version HTTP/1.1\r\nHost: x\r\nA: ",
        b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /version HTTP/1.1\r\nHost: x\r\n\r\nGET /ver",
    ],
)
def test_slow_and_silent_clients_are_closed(text):
    with Frontend(prelude=IMPATIENT) as frontend:
        # Nothing at all waits for the first bytes like any connection.
        if text:
            data = exchange_raw(Where(frontend.port), text)
            assert data.count(b"HTTP/1.1 200") == text.count(b"\r\n\r\n") * text.startswith(b"GET")


def test_one_byte_now_and_then_does_not_help():
    with Frontend(prelude=IMPATIENT) as frontend, Where(frontend.port).raw() as slow:
        begun = time.monotonic()
        with pytest.raises(OSError):
            for byte in b"GET /version HTTP/1.1\r\nX: " + b"y" * 1000:
                slow.sendall(bytes([byte]))
                slow.settimeout(0.1)
                try:
                    if not slow.recv(1):
                        raise OSError("closed")
                except TimeoutError:
                    pass
        assert time.monotonic() - begun < 60


def test_a_large_answer(pair):
    value = b64(bytes(1_000_000))
    for number in range(7):
        pair.post("kv/put", {"key": b64(f"large{number}"), "value": value})
    found = pair.post("kv/range", {"key": b64("large"), "range_end": b64("largf")})
    assert found["count"] == "7" and found["kvs"][6]["value"] == value


def test_answers_that_nobody_reads_hold_nobody_up(web):
    value = b64(bytes(1_000_000))
    web.post("/v3/kv/put", {"key": b64("unread"), "value": value})
    body = b'{"key":"%b"}' % b64("unread").encode()
    request = b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    slow = [web.raw() for _ in range(20)]
    for connection in slow:
        connection.sendall(request * 5)
    for _ in range(20):
        assert web.post("/v3/kv/put", {"key": b64("other")}).status == 200
    for connection in slow:
        connection.close()
    assert web.get("/health").status == 200


def test_many_connections(web):
    held = [web.raw() for _ in range(300)]
    for connection in held:
        connection.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
    for connection in held:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.close()


SMALL_BUDGET = """
from etcdfast.frontend import process
usual = process.settings
process.settings = lambda config: usual(config) | {"buffer_bytes_max": 16 << 20}
"""


def test_unfinished_bodies_count_in_the_budget():
    """The heaviest connections go, the others are served."""
    with Frontend(prelude=SMALL_BUDGET) as frontend:
        where = Where(frontend.port)
        head = b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n"
        held = [where.raw() for _ in range(12)]
        for connection in held:
            try:
                connection.sendall(head + bytes(2_900_000))
            except OSError:
                pass
            connection.setblocking(False)

        def closed():
            return sum(map(is_closed, held))

        wait_until(lambda: closed() >= 6, "the heaviest connections are closed")
        answer = exchange_raw(where, b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert closed() < 12
        for connection in held:
            connection.close()


def is_closed(connection):
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
