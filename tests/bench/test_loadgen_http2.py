"""The generator's HTTP/2 against a server that plays every part of the protocol, also the odd ones."""

from __future__ import annotations

import random
import struct

import pytest

from etcdfast.bench import workload
from etcdfast.bench.endpoints import parse_endpoints
from etcdfast.bench.runner import Load, Result, run
from tests.bench.scripted_server import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    OK_TRAILERS,
    PADDED,
    PING,
    PRIORITY,
    RST_STREAM,
    STATUS_200,
    ScriptedServer,
    frame,
    literal,
    message,
    ok_answer,
    settings,
)

PUT = workload.put(8, 16, 100, True)


def drive(server: ScriptedServer, total: int = 20, work=PUT, **load) -> Result:
    values = {"conns": 1, "clients": 1, "dial_timeout_seconds": 10.0} | load
    return run(work, parse_endpoints(server.endpoint), Load(total=total, **values))


def request_headers(server: ScriptedServer) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/etcdserverpb.KV/Put"),
        (":authority", server.endpoint),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "etcdfast-bench"),
    ]


def put_fields(body: bytes) -> tuple[bytes, bytes]:
    """Key and value of a framed PutRequest."""
    assert body[0] == 0
    assert struct.unpack(">I", body[1:5])[0] == len(body) - 5
    fields, at = {}, 5
    while at < len(body):
        number, at = body[at] >> 3, at + 1
        length = shift = 0
        while True:
            length |= (body[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if body[at - 1] < 0x80:
                break
        fields[number] = body[at : at + length]
        at += length
    return fields[1], fields.get(2, b"")


def test_requests_are_whole_and_headers_the_same_each_time():
    with ScriptedServer() as server:
        result = drive(server, 250, clients=7)
    assert (result.count, result.errors) == (250, {})
    assert not server.violations
    assert all(headers == request_headers(server) for headers, _ in server.requests)
    keys = sorted(put_fields(body)[0] for _, body in server.requests)
    # --sequential-keys over 100 keys: numbers 0..99 in turn, as zigzag varints in 8 bytes
    expected = [workload.varint(2 * (i % 100)).ljust(8, b"\0") for i in range(250)]
    assert keys == sorted(expected)
    assert len({put_fields(body)[1] for _, body in server.requests}) > 100


def test_clients_spread_over_connections_in_turn():
    with ScriptedServer() as server:
        result = drive(server, 300, conns=4, clients=10)
        assert result.count == 300
        assert len(server.connections) == 4


def test_streams_limit_of_the_server_is_kept():
    with ScriptedServer(streams=3) as server:
        result = drive(server, 100, clients=20)
    assert (result.count, result.errors, server.violations) == (100, {}, [])


@pytest.mark.parametrize("window", [1, 10, 300, 65535, 1 << 20])
def test_large_messages_respect_both_windows(window):
    size = 3000 if window < 300 else 200_000
    work = workload.put(8, size, 100, True)
    with ScriptedServer(window=window) as server:
        result = drive(server, 6, work, clients=3)
    assert (result.count, result.errors, server.violations) == (6, {}, [])
    assert all(len(put_fields(body)[1]) == size for _, body in server.requests)


def test_small_initial_window_that_grows_by_settings():
    def script(connection, stream_id, n):
        if n == 1:
            connection.server.window = 50_000
            connection.send(settings(window=50_000))
        connection.send(ok_answer(stream_id))

    work = workload.put(8, 5000, 100, True)
    with ScriptedServer(script, window=100) as server:
        result = drive(server, 20, work)
    assert (result.count, result.errors) == (20, {})


@pytest.mark.parametrize("table", [0, 31, 200, 4096, 100_000])
def test_header_table_of_any_size(table):
    with ScriptedServer(table=table) as server:
        result = drive(server, 10)
    assert (result.count, result.errors, server.violations) == (10, {}, [])
    assert all(headers == request_headers(server) for headers, _ in server.requests)


def test_header_table_resized_under_way():
    sizes = [0, 4096, 64, 1000, 4096]

    def script(connection, stream_id, n):
        if n % 5 == 0 and sizes:
            connection.hpack.limit = size = sizes.pop(0)
            connection.send(settings(table=size))
        connection.send(ok_answer(stream_id))

    with ScriptedServer(script) as server:
        result = drive(server, 40)
    assert (result.count, result.errors, server.violations) == (40, {}, [])
    assert all(headers == request_headers(server) for headers, _ in server.requests)


def _shapes(stream_id: int) -> list[bytes]:
    """The same good answer in every form the protocol allows."""
    whole = message(100)
    headers = frame(HEADERS, END_HEADERS, stream_id, STATUS_200)
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, stream_id, OK_TRAILERS)
    pad = b"\x07" + OK_TRAILERS + bytes(7)
    return [
        headers + frame(DATA, 0, stream_id, whole) + trailers,
        headers + b"".join(frame(DATA, 0, stream_id, whole[i : i + 3]) for i in range(0, len(whole), 3)) + trailers,
        headers + frame(DATA, PADDED, stream_id, b"\x09" + whole + bytes(9)) + trailers,
        headers
        + frame(DATA, 0, stream_id)
        + frame(DATA, PADDED, stream_id, b"\x00")
        + frame(DATA, 0, stream_id, whole)
        + trailers,
        headers + frame(DATA, 0, stream_id, message(0)) + trailers,
        headers + frame(DATA, 0, stream_id, whole) + frame(HEADERS, END_HEADERS | END_STREAM | PADDED, stream_id, pad),
        headers
        + frame(DATA, 0, stream_id, whole)
        + frame(HEADERS, END_HEADERS | END_STREAM | PRIORITY, stream_id, bytes(5) + OK_TRAILERS),
        headers
        + frame(DATA, 0, stream_id, whole)
        + frame(HEADERS, END_STREAM, stream_id, OK_TRAILERS[:4])
        + frame(CONTINUATION, 0, stream_id, OK_TRAILERS[4:9])
        + frame(CONTINUATION, END_HEADERS, stream_id, OK_TRAILERS[9:]),
        frame(HEADERS, END_HEADERS, stream_id, literal(":status", "100"))
        + headers
        + frame(DATA, 0, stream_id, whole)
        + frame(0xBB, 0, stream_id, b"unknown frame kinds are ignored")
        + trailers,
    ]


@pytest.mark.parametrize("piece", [0, 1, 7])
def test_answers_in_every_shape_and_cut(piece):
    count = len(_shapes(1))

    def script(connection, stream_id, n):
        connection.send(_shapes(stream_id)[n % count], piece)

    with ScriptedServer(script) as server:
        result = drive(server, 3 * count, clients=2)
    assert (result.count, result.errors) == (3 * count, {})


def test_table_references_are_decoded_again_when_the_table_changed():
    """0xbe is the newest entry: first a good status, later, by the same byte, another one."""
    statuses = ["0", "0", "5", "5", "0", "14", "0", "0"]

    def script(connection, stream_id, n):
        status = statuses[n - 1]
        changed = n == 1 or status != statuses[n - 2]
        block = literal("grpc-status", status, indexed=True) if changed else b"\xbe"
        answer = frame(HEADERS, END_HEADERS, stream_id, STATUS_200) + frame(DATA, 0, stream_id, message())
        # once more by reference, so that a stale memory of 0xbe would show
        connection.send(answer + frame(HEADERS, END_HEADERS | END_STREAM, stream_id, block))

    with ScriptedServer(script) as server:
        result = drive(server, len(statuses))
    assert result.count == 5
    assert sorted(result.errors.values()) == [1, 2]


def _answer(*frames_of_stream) -> object:
    return lambda connection, stream_id, n: connection.send(b"".join(f(stream_id) for f in frames_of_stream))


HEAD = lambda s: frame(HEADERS, END_HEADERS, s, STATUS_200)  # noqa: E731
BODY = lambda s: frame(DATA, 0, s, message())  # noqa: E731
TAIL = lambda s: frame(HEADERS, END_HEADERS | END_STREAM, s, OK_TRAILERS)  # noqa: E731
FAULTS = {
    "trailers-only error": (
        _answer(
            lambda s: frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                s,
                STATUS_200 + literal("grpc-status", "8") + literal("grpc-message", "etcdserver: mvcc: 100%25 full"),
            )
        ),
        "etcdserver: mvcc: 100% full",
    ),
    "other error": (
        _answer(
            HEAD,
            lambda s: frame(
                HEADERS, END_HEADERS | END_STREAM, s, literal("grpc-status", "13") + literal("grpc-message", "x")
            ),
        ),
        "rpc error: code = Internal desc = x",
    ),
    "status that is no number": (
        _answer(HEAD, BODY, lambda s: frame(HEADERS, END_HEADERS | END_STREAM, s, literal("grpc-status", "abc"))),
        "rpc error: code = Unknown desc = ",
    ),
    "no trailers": (
        _answer(HEAD, lambda s: frame(DATA, END_STREAM, s, message())),
        "rpc error: code = Internal desc = server closed the stream without sending trailers",
    ),
    "trailers without status": (
        _answer(HEAD, BODY, lambda s: frame(HEADERS, END_HEADERS | END_STREAM, s, literal("x", "y"))),
        "rpc error: code = Internal desc = server closed the stream without sending trailers",
    ),
    "no message": (
        _answer(HEAD, TAIL),
        "rpc error: code = Internal desc = a unary call was not answered by exactly one message",
    ),
    "two messages": (
        _answer(HEAD, BODY, BODY, TAIL),
        "rpc error: code = Internal desc = a unary call was not answered by exactly one message",
    ),
    "cut message": (
        _answer(HEAD, lambda s: frame(DATA, 0, s, message()[:-1]), TAIL),
        "rpc error: code = Internal desc = the stream ended within a message",
    ),
    "cut prefix": (
        _answer(HEAD, BODY, lambda s: frame(DATA, 0, s, b"\0\0"), TAIL),
        "rpc error: code = Internal desc = the stream ended within a message",
    ),
    "compressed": (
        _answer(HEAD, lambda s: frame(DATA, 0, s, b"\1" + message()[1:]), TAIL),
        "rpc error: code = Internal desc = the answer is compressed though no encoding was offered",
    ),
    "http status": (
        _answer(lambda s: frame(HEADERS, END_HEADERS | END_STREAM, s, literal(":status", "502"))),
        "rpc error: code = Unknown desc = unexpected HTTP status code received from server: 502",
    ),
    "reset": (
        _answer(lambda s: frame(RST_STREAM, 0, s, struct.pack(">I", 7))),
        "rpc error: code = Unavailable desc = stream terminated by RST_STREAM with HTTP/2 error code 7",
    ),
    "reset after data": (
        _answer(HEAD, BODY, lambda s: frame(RST_STREAM, 0, s, struct.pack(">I", 11))),
        "rpc error: code = ResourceExhausted desc = stream terminated by RST_STREAM with HTTP/2 error code 11",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failed_requests_are_counted_by_what_failed(fault):
    script, text = FAULTS[fault]
    every_third = lambda c, s, n: script(c, s, n) if n % 3 == 0 else c.send(ok_answer(s))  # noqa: E731
    with ScriptedServer(every_third) as server:
        result = drive(server, 30, clients=4)
    assert result.errors == {text: 10}
    assert result.count == 20


BREAKERS = {
    "oversized frame": lambda s: struct.pack(">I", 20_000)[1:] + bytes([DATA, 0]) + struct.pack(">I", s),
    "data on stream 0": lambda s: frame(DATA, 0, 0, b"x"),
    "data on a stream of the future": lambda s: frame(DATA, 0, 999_999, b"x"),
    "padding longer than the frame": lambda s: frame(DATA, PADDED, s, b"\xff" + bytes(20)),
    "headers cut by another frame": lambda s: frame(HEADERS, 0, s, STATUS_200) + frame(PING, 0, 0, bytes(8)),
    "headers without end": lambda s: frame(HEADERS, 0, s, b"") + frame(CONTINUATION, 0, s, bytes(16384)) * 5,
    "reference to nowhere": lambda s: frame(HEADERS, END_HEADERS, s, b"\xfe"),
    "cut header block": lambda s: frame(HEADERS, END_HEADERS, s, b"\x40\x05ab"),
    "window overflow": lambda s: frame(8, 0, 0, struct.pack(">I", 0x7FFFFFFF)) * 2,
    "window update of nothing": lambda s: frame(8, 0, 0, bytes(4)),
    "ping of wrong size": lambda s: frame(PING, 0, 0, b"abc"),
    "settings of wrong size": lambda s: frame(4, 0, 0, b"abc"),
    "push promise": lambda s: frame(5, END_HEADERS, s, bytes(4)),
}


@pytest.mark.parametrize("breaker", BREAKERS)
def test_a_broken_connection_fails_its_requests_and_is_replaced(breaker):
    def script(connection, stream_id, n):
        connection.send(BREAKERS[breaker](stream_id) if n == 5 else ok_answer(stream_id))

    with ScriptedServer(script) as server:
        result = drive(server, 20, clients=3)
        assert len(server.connections) == 2
    # what was under way on that connection failed, at most one request of each client
    assert 1 <= sum(result.errors.values()) <= 3
    assert all(text.startswith("rpc error: code = Unavailable") for text in result.errors)
    assert result.count + sum(result.errors.values()) == 20
    assert result.reconnects == 1


def test_closed_connection_is_replaced():
    def script(connection, stream_id, n):
        connection.close() if n == 10 else connection.send(ok_answer(stream_id))

    with ScriptedServer(script) as server:
        result = drive(server, 40, clients=2)
    assert result.count + sum(result.errors.values()) == 40
    assert 1 <= sum(result.errors.values()) <= 2


def test_goaway_loses_nothing():
    """Streams the server will not handle are sent again elsewhere; handled ones are answered."""
    held: list[int] = []

    def script(connection, stream_id, n):
        if connection.number == 0 and n >= 10:
            held.append(stream_id)
            if len(held) == 4:
                last = sorted(held)[1]
                connection.send(frame(GOAWAY, 0, 0, struct.pack(">II", last, 0)))
                connection.send(b"".join(ok_answer(s) for s in held if s <= last))
        else:
            connection.send(ok_answer(stream_id))

    with ScriptedServer(script) as server:
        result = drive(server, 60, clients=4)
        assert len(server.connections) == 2
    assert (result.count, result.errors) == (60, {})
    assert len(server.requests) == 62


def test_stream_ids_run_out():
    with ScriptedServer() as server:
        result = drive(server, 100, clients=3, stream_ids_max=41)
        assert len(server.connections) == 5
    assert (result.count, result.errors, server.violations) == (100, {}, [])
    assert all(connection.last_stream_id <= 43 for connection in server.connections)


def test_pings_are_answered():
    def script(connection, stream_id, n):
        connection.send(frame(PING, 0, 0, b"%08d" % n) + ok_answer(stream_id))

    with ScriptedServer(script) as server:
        result = drive(server, 20)
        connection = server.connections[0]
    assert result.count == 20
    # the answer to the last one may be cut off by the end of the load
    assert connection.pings[:19] == [b"%08d" % n for n in range(1, 20)]


def test_early_answer_to_a_message_held_back():
    """The server refuses before it has read all: the rest is dropped and the stream reset."""
    refused = STATUS_200 + literal("grpc-status", "8") + literal("grpc-message", "too large")

    script = lambda c, s, n: c.send(frame(HEADERS, END_HEADERS | END_STREAM, s, refused))  # noqa: E731
    with ScriptedServer(script, window=100, early=True) as server:
        result = drive(server, 12, workload.put(8, 5000, 10, True), clients=3)
    assert result.errors == {"rpc error: code = ResourceExhausted desc = too large": 12}
    # the end of the load may cut off the last resets
    assert 9 <= len(server.resets) <= 12


def test_a_server_without_http2():
    with ScriptedServer(greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n") as server, pytest.raises(Exception) as caught:
        drive(server, 1, dial_timeout_seconds=0.5)
    assert "does not speak HTTP/2" in str(caught.value)


def test_server_gone_for_good_ends_the_load():
    def script(connection, stream_id, n):
        if n == 5:
            server.stop_listening()
            connection.close()
        else:
            connection.send(ok_answer(stream_id))

    server = ScriptedServer(script)
    with server:
        result = drive(server, 1000, dial_timeout_seconds=0.3)
    assert result.aborted
    assert result.count == 4


@pytest.mark.parametrize("seed", range(30))
def test_noise_from_the_server(seed):
    """Random frames, cut anywhere, never hang or harm the generator; good answers still count."""
    print("seed", seed)
    chance = random.Random(seed)

    def script(connection, stream_id, n):
        if chance.random() < 0.5:
            connection.send(ok_answer(stream_id))
            return
        kind = chance.choice([0, 0, 1, 1, 3, 4, 5, 6, 7, 8, 9, 200])
        noise = frame(
            kind,
            chance.randrange(256),
            chance.choice([0, stream_id, stream_id, 7]),
            chance.randbytes(chance.randrange(40)),
        )
        if chance.random() < 0.3:
            noise = noise[: chance.randrange(len(noise))]
        connection.send(noise)
        # whatever it was, the connection is over
        connection.close()

    with ScriptedServer(script) as server:
        result = drive(server, 15, clients=3, dial_timeout_seconds=5.0)
    assert result.count + sum(result.errors.values()) == 15
    assert not result.aborted
