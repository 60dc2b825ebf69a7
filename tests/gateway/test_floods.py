"""Clients that make the frontend work: what they send is looked at once, in slices, and bounded."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from etcdfast.frontend.http.gateway import _Messages
from etcdfast.frontend.http.goscan import NoValue, first_value
from etcdfast.frontend.http.jsonplans import JsonError
from tests.frontend.member import Frontend
from tests.gateway.test_limits import IMPATIENT
from tests.gateway.web import b64
from tests.harness.wait import wait_until

CHUNKED = b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
OBJECTS = [b'{"a":"}\\"{"}', b' {"b":["]\\\\",{}]}', b'\n"x\\"" [1]', b"{}"]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_objects_are_found_however_they_are_cut(step):
    text = b"".join(OBJECTS) + b' "left'
    messages, found = _Messages(), []
    for at in range(0, len(text), step):
        found += messages.feed(text[at : at + step])
    assert found == OBJECTS
    assert messages.rest() == b' "left' and messages.size == 6


def test_a_string_that_never_ends_is_looked_at_once():
    messages = _Messages()
    list(messages.feed(b'{"a":"'))
    begun = time.process_time()
    for _ in range(3000):
        assert not list(messages.feed(b"x" * 1000))
    assert time.process_time() - begun < 2.0
    with pytest.raises(JsonError):
        list(messages.feed(bytes(2 << 20)))


def test_long_texts_are_read_fast():
    numbers = "1," * 1_000_000
    begun = time.process_time()
    with pytest.raises(JsonError):
        first_value('{"a":[' + numbers + "x")
    with pytest.raises(JsonError):
        first_value("[" * 100_000)
    with pytest.raises(JsonError):
        first_value('{"a":NaN,"b":"' + " " * 20_000 + '"}')
    with pytest.raises(NoValue):
        first_value(" " * 20_000)
    assert first_value(" [" + numbers + "1] more")[1] == len(numbers) + 4
    assert time.process_time() - begun < 10.0


def test_trailers_are_bounded_and_change_nothing(web):
    body = b'{"key":"%b"}' % b64("trailed").encode()
    head = b"POST /v3/kv/range" + CHUNKED + b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    with web.raw() as client:
        client.sendall(head + b"Grpc-Timeout: nonsense\r\nHost: y\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    for trailer in (b"a: b\r\n", b"x" * 6, b"a:" + b"y" * 65536):
        with web.raw() as client, pytest.raises(OSError):
            client.sendall(head)
            for _ in range(2000):
                client.sendall(trailer * max(1, 8192 // len(trailer)))
            raise AssertionError("it was read without end")


def test_a_body_in_chunks_of_a_byte(web):
    value = b64(bytes(3000))
    body = b'{"key":"%b","value":"%b"}' % (b64("chunks").encode(), value.encode())
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    with web.raw() as client:
        client.sendall(b"POST /v3/kv/put" + CHUNKED + chunks + b"0\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert web.post("/v3/kv/range", {"key": b64("chunks")}).json["kvs"][0]["value"] == value


def test_a_wall_of_pipelined_requests_is_answered_in_order(web):
    paths = [b"/version", b"/none"] * 1000
    answers = b""
    with web.raw() as client:
        client.sendall(b"".join(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in paths[:-1]))
        client.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % paths[-1])
        while data := client.recv(1 << 20):
            answers += data
    statuses = [answers[at + 9 : at + 12] for at in _found(answers, b"HTTP/1.1 ")]
    assert statuses == [b"200", b"404"] * 1000


@pytest.mark.parametrize("reset", [True, False])
def test_who_goes_behind_a_pipeline_is_noticed(reset):
    """A connection is not read while requests of it wait; it was kept for ever, with its watch."""
    body = b'{"create_request":{"key":"YQ=="}}'
    text = b"POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with Frontend(answer=lambda record, member: [], prelude=IMPATIENT) as frontend:
        with socket.create_connection(("127.0.0.1", frontend.port)) as client:
            client.sendall(text + b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: [r for r in frontend.seen if r["kind"] == "CALL"], "the watch begins")
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: [r for r in frontend.seen if r["kind"] == "CANCEL"], "the watch ends")


def _found(text, what):
    at = text.find(what)
    while at >= 0:
        yield at
        at = text.find(what, at + 1)
