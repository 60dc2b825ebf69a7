"""Calls with many messages: chunked lines, their errors, and websockets."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import struct

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Request, TextMessage

from tests.gateway.web import Stream, b64, exchange_raw


def both(pair, path, body, count, headers=None):
    """The first lines of both servers' answers, without the ids of events that etcd does not fix."""
    found = []
    for web in (pair.left, pair.right):
        with Stream(web, path, body, headers) as stream:
            lines = [stream.line() for _ in range(count)]
            found.append((stream.status, stream.answer.getheader("content-type"), lines))
    assert found[1] == found[0]
    return found[1][2]


def test_watch_from_a_revision(pair):
    revision = pair.post("kv/put", {"key": b64("w"), "value": b64("1")})["header"]["revision"]
    pair.post("kv/put", {"key": b64("w"), "value": b64("2")})
    pair.post("kv/deleterange", {"key": b64("w")})
    create = {"key": b64("w"), "start_revision": revision, "prev_kv": True, "watch_id": "5"}
    created, events = both(pair, "/v3/watch", {"create_request": create}, 2)
    assert created["result"]["created"]
    assert [event.get("type", "PUT") for event in events["result"]["events"]] == ["PUT", "PUT", "DELETE"]
    create = {"key": b64("w"), "startRevision": revision, "filters": ["NOPUT"]}
    both(pair, "/v3/watch", {"createRequest": create}, 2)


def test_events_as_they_happen(pair):
    for web in (pair.left, pair.right):
        with Stream(web, "/v3/watch", {"create_request": {"key": b64("live")}}) as stream:
            assert stream.line()["result"]["created"]
            for value in "abc":
                web.post("/v3/kv/put", {"key": b64("live"), "value": b64(value)})
                (event,) = stream.line()["result"]["events"]
                assert event["kv"]["value"] == b64(value)


def test_several_requests_in_one_body(pair):
    bodies = [{"create_request": {"key": b64("s1")}}, {"create_request": {"key": b64("s2")}}, {"cancel_request": {}}]
    text = "".join(json.dumps(body) for body in bodies)
    both(pair, "/v3/watch", text, 3)


def test_a_chunk_holds_one_message(pair):
    """etcd3-py takes each chunk for a message, however many come at once."""
    body = "".join(json.dumps({"create_request": {"key": b64(f"c{n}")}}) for n in range(20)).encode()
    head = f"POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((pair.right.host, pair.right.port), 20) as connected:
        connected.sendall(head + body)
        reader = connected.makefile("rb")
        while reader.readline().strip():
            pass
        for _ in range(20):
            chunk = reader.read(int(reader.readline(), 16))
            assert json.loads(chunk)["result"]["created"]
            assert reader.read(2) == b"\r\n"


def test_watches_that_are_refused(pair):
    both(pair, "/v3/watch", {"create_request": {"key": b64("b"), "range_end": b64("a")}}, 1)
    revision = pair.post("kv/put", {"key": b64("w"), "value": b64("1")})["header"]["revision"]
    pair.post("kv/put", {"key": b64("w"), "value": b64("1")})
    pair.post("kv/compaction", {"revision": str(int(revision) + 1)})
    both(pair, "/v3/watch", {"create_request": {"key": b64("w"), "start_revision": "1"}}, 2)


def test_a_client_that_goes_ends_its_watch(web):
    with Stream(web, "/v3/watch", {"create_request": {"key": b64("gone")}}) as stream:
        assert stream.line()["result"]["created"]
    assert web.post("/v3/kv/put", {"key": b64("gone")}).status == 200


def test_keep_alive(pair):
    pair.post("lease/grant", {"TTL": "60", "ID": "9"})
    for body in ({"ID": "9"}, {"ID": 12345}):
        for web in (pair.left, pair.right):
            answer = web.post("/v3/lease/keepalive", body)
            assert answer.status == 200
            result = answer.json["result"]
            assert (result["ID"], result.get("TTL")) == (str(body["ID"]), "60" if body["ID"] == "9" else None)
    pair.post("lease/revoke", {"ID": 9})


def test_a_chunked_body_stays_open(web):
    """A client may send further requests while answers come: one lease, renewed twice."""
    web.post("/v3/lease/grant", {"TTL": "60", "ID": "10"})
    with web.raw() as connection:
        connection.sendall(b"POST /v3/lease/keepalive HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        answers = connection.makefile("rb")
        for number in range(2):
            for piece in (b'{"I', b'D":"10"}'):
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            if number == 0:
                assert answers.readline().startswith(b"HTTP/1.1 200 ")
                while answers.readline() != b"\r\n":
                    pass
            size = int(answers.readline(), 16)
            assert json.loads(answers.read(size))["result"]["ID"] == "10"
            answers.readline()
        connection.sendall(b"0\r\n\r\n")
        assert answers.read() == b"0\r\n\r\n"


def test_snapshot(pair):
    for web in (pair.left, pair.right):
        with Stream(web, "/v3/maintenance/snapshot", {}) as stream:
            data = b""
            left = None
            while (line := stream.line()) is not None:
                result = line["result"]
                data += base64.b64decode(result.get("blob", ""))
                left = int(result.get("remaining_bytes", 0))
        assert left == 0
        assert hashlib.sha256(data[:-32]).digest() == data[-32:]


def test_observe(pair):
    for web in (pair.left, pair.right):
        web.post("/v3/lease/grant", {"TTL": "60", "ID": "11"})
        leader = web.post("/v3/election/campaign", {"name": b64("o"), "lease": 11, "value": b64("1")}).json["leader"]
        with Stream(web, "/v3/election/observe", {"name": b64("o")}) as stream:
            assert stream.line()["result"]["kv"]["value"] == b64("1")
            web.post("/v3/election/proclaim", {"leader": leader, "value": b64("2")})
            assert stream.line()["result"]["kv"]["value"] == b64("2")
        web.post("/v3/lease/revoke", {"ID": "11"})


def test_errors_of_streams(pair):
    both(pair, "/v3/election/observe", "{", 1)
    both(pair, "/v3/maintenance/snapshot", "[]", 1)


def test_a_slow_reader_of_a_large_stream_holds_nobody_up(web):
    """Credit, not memory: 32 MiB of events for a client that reads none of them until the end."""
    value = b64(os.urandom(512 * 1024))
    with web.raw() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        body = json.dumps({"create_request": {"key": b64("slow")}}).encode()
        slow.sendall(b"POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        lines = slow.makefile("rb")
        while lines.readline() != b"\r\n":
            pass
        for _ in range(24):
            assert web.post("/v3/kv/put", {"key": b64("slow"), "value": value}).status == 200
        seen = 0
        while seen < 24:
            size = int(lines.readline(), 16)
            for line in lines.read(size).splitlines():
                seen += len(json.loads(line)["result"].get("events", ()))
            lines.readline()


# ---- websockets


class Socket:
    def __init__(self, web, path, subprotocols=(), headers=()):
        self.raw = web.raw()
        self.ws = WSConnection(ConnectionType.CLIENT)
        hello = Request(host="x", target=path, subprotocols=list(subprotocols), extra_headers=list(headers))
        self.raw.sendall(self.ws.send(hello))
        self.waiting = []
        self.accepted = self.event()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.raw.close()

    def event(self):
        while not self.waiting:
            data = self.raw.recv(65536)
            self.ws.receive_data(data or None)
            self.waiting += list(self.ws.events())
        return self.waiting.pop(0)

    def send(self, value):
        self.raw.sendall(self.ws.send(TextMessage(json.dumps(value))))

    def message(self):
        text = ""
        while True:
            event = self.event()
            if isinstance(event, CloseConnection):
                return None
            assert isinstance(event, (TextMessage, BytesMessage)), event
            text += event.data if isinstance(event, TextMessage) else event.data.decode()
            if event.message_finished:
                return json.loads(text)


def test_watch_by_websocket(pair):
    found = []
    for web in (pair.left, pair.right):
        with Socket(web, "/v3/watch") as ws:
            assert isinstance(ws.accepted, AcceptConnection)
            ws.send({"create_request": {"key": b64("ws1")}})
            messages = [ws.message()]
            ws.send({"create_request": {"key": b64("ws2")}})
            messages.append(ws.message())
            web.post("/v3/kv/put", {"key": b64("ws2"), "value": b64("x")})
            messages.append(ws.message())
            ws.send({"cancel_request": {"watch_id": "1"}})
            messages.append(ws.message())
            found.append(messages)
    assert found[1] == found[0]


def test_unary_calls_by_websocket(web):
    """etcd waits for the end of the client's side first, which a websocket does not have."""
    with Socket(web, "/v3/kv/range") as ws:
        ws.send({"key": b64("none")})
        assert set(ws.message()) == {"header"}
        assert ws.message() is None
    with Socket(web, "/v3/kv/range") as ws:
        ws.send({})
        assert ws.message()["message"] == "etcdserver: key is not provided"


def test_a_token_as_subprotocol(web):
    with Socket(web, "/v3/kv/range", subprotocols=["Bearer", "some-token"]) as ws:
        assert ws.accepted.subprotocol == "Bearer"
        ws.send({"key": b64("x")})
        assert "header" in ws.message()


def test_a_closed_websocket_ends_its_watch(web):
    with Socket(web, "/v3/watch") as ws:
        ws.send({"create_request": {"key": b64("closed")}})
        assert ws.message()["result"]["created"]
        ws.raw.sendall(ws.ws.send(CloseConnection(code=1000)))
        assert isinstance(ws.event(), CloseConnection)
        assert ws.raw.recv(1) == b""
    assert web.post("/v3/kv/put", {"key": b64("closed")}).status == 200


@pytest.mark.parametrize("headers", [b"Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: a\r\n", b""])
def test_a_wrong_handshake(web, headers):
    hello = b"GET /v3/watch HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + headers + b"\r\n"
    assert exchange_raw(web, hello).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "frame",
    [
        b"\x81\x05hello",  # not masked
        b"\xf1\x80\0\0\0\0",  # reserved bits
        b"\x81\xff" + struct.pack(">Q", 1 << 62) + bytes(4),  # longer than anything
        b"\x83\x80\0\0\0\0",  # an opcode nobody knows
    ],
)
def test_frames_that_break_the_rules(web, frame):
    hello = (
        b"GET /v3/watch HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with web.raw() as connection:
        connection.sendall(hello + frame)
        data = b""
        connection.settimeout(5)
        if frame[0] == 0x81 and frame[1] == 0xFF:
            connection.shutdown(socket.SHUT_WR)
        while more := connection.recv(4096):
            data += more
    assert data.startswith(b"HTTP/1.1 101 ")


def test_plain_post_is_no_websocket(web):
    answer = web.ask("POST", "/v3/kv/range", {"key": b64("x")}, {"Upgrade": "websocket", "Connection": "Upgrade"})
    assert answer.status == 200
