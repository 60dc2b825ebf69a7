"""Hostile clients: each connection that breaks a limit ends with the named code, and nobody else notices."""

import os
import random
import socket
import struct

import pytest

from tests.frontend.member import Frontend, impatient
from tests.frontend.rawh2 import (
    ACK,
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Client,
    frame,
    message,
    request_headers,
)

PUT = b"\x0a\x01k\x12\x01v"


def flood(frontend, piece, rounds=4000, first=b""):
    """Send `piece` over and over until the server closes; its GOAWAY."""
    with Client(frontend.port) as client:
        client.send(first)
        for _ in range(rounds):
            if not client.send(piece):
                break
        try:
            return client.read_to_end()
        except TimeoutError:
            raise AssertionError("the flood was borne to its end") from None


def test_a_ping_flood(frontend, bystander):
    assert flood(frontend, frame(PING, 0, 0, b"12345678")) == (ENHANCE_YOUR_CALM, "too_many_pings")


def test_an_empty_settings_flood(frontend, bystander):
    # One read may hold more of them than nghttp2 queues acknowledgements; then its own limit comes first.
    code, text = flood(frontend, frame(SETTINGS) * 100)
    assert (code, text in ("too_many_control_frames", "flooded")) == (ENHANCE_YOUR_CALM, True)


def test_a_settings_frame_full_of_entries(frontend, bystander):
    code, _ = flood(frontend, frame(SETTINGS, 0, 0, (b"\0\x03" + struct.pack(">I", 100)) * 2000), rounds=1)
    assert code == ENHANCE_YOUR_CALM


def test_a_priority_flood(frontend, bystander):
    assert flood(frontend, frame(PRIORITY, 0, 1, b"\0\0\0\x03\x10") * 100) == (
        ENHANCE_YOUR_CALM,
        "too_many_control_frames",
    )


def test_an_unknown_frame_flood(frontend, bystander):
    assert flood(frontend, frame(0xFA, 0, 0, b"x") * 100) == (ENHANCE_YOUR_CALM, "too_many_control_frames")


def test_an_empty_data_flood(frontend, bystander):
    with Client(frontend.port) as client:
        client.send(client.head(request_headers(), 1))
        for _ in range(4000):
            if not client.send(frame(DATA, 0, 1) * 100):
                break
        assert client.read_to_end() == (ENHANCE_YOUR_CALM, "too_many_control_frames")


def test_a_window_update_flood(frontend, bystander):
    assert flood(frontend, frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 100) == (
        ENHANCE_YOUR_CALM,
        "too_many_control_frames",
    )


def test_rapid_reset(frontend, bystander):
    with Client(frontend.port) as client:
        for _ in range(3000):
            stream, data = client.call(PUT, end=False)
            if not client.send(data + frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))):
                break
        assert client.read_to_end() == (ENHANCE_YOUR_CALM, "too_many_resets")


def test_streams_that_make_the_server_reset_them(frontend, bystander):
    with Client(frontend.port) as client:
        for _ in range(3000):
            stream, data = client.call(PUT, end=False)
            if not client.send(data + frame(WINDOW_UPDATE, 0, stream, b"\x7f\xff\xff\xff")):
                break
        assert client.read_to_end() == (ENHANCE_YOUR_CALM, "too_many_resets")


def test_honest_cancels_are_no_abuse(frontend, bystander):
    with Client(frontend.port) as client:
        for _ in range(3000):  # each cancel has an answered call beside it
            stream, data = client.call(PUT)
            client.send(data)
            assert client.answer(stream)[0]["grpc-status"] == "0"
            stream, data = client.call(PUT, end=False)
            client.send(data + frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL)))
        stream, data = client.call(PUT)
        client.send(data)
        assert client.answer(stream)[0]["grpc-status"] == "0"


def test_a_continuation_flood(frontend, bystander):
    with Client(frontend.port) as client:
        client.send(frame(HEADERS, 0, 1, b"\x82"))
        for _ in range(1000):
            if not client.send(frame(CONTINUATION, 0, 1, b"")):
                break
        assert client.read_to_end() == (ENHANCE_YOUR_CALM, "too_many_continuations")


def test_a_header_list_that_is_too_long(frontend, bystander):
    with Client(frontend.port) as client:
        block = client.encoder.encode(request_headers() + [(f"x-{i}", os.urandom(400).hex()) for i in range(120)])
        pieces = [block[i : i + 16000] for i in range(0, len(block), 16000)]
        client.send(frame(HEADERS, 0, 1, pieces[0]) + b"".join(frame(CONTINUATION, 0, 1, p) for p in pieces[1:]))
        assert client.read_to_end() == (ENHANCE_YOUR_CALM, "header_list_too_large")


def test_a_small_block_that_expands_to_a_long_header_list(frontend, bystander):
    with Client(frontend.port) as client:
        # one entry of 3000 bytes in the table, named again and again with one byte each
        block = client.encoder.encode(request_headers() + [("x", "y" * 3000)]) + b"\xbe" * 60
        client.send(frame(HEADERS, END_HEADERS, 1, block))
        assert client.read_to_end() == (ENHANCE_YOUR_CALM, "header_list_too_large")


def test_the_streams_of_a_connection_are_limited():
    with (
        Frontend(answer=lambda record, member: [], max_concurrent_streams=10) as frontend,
        Client(frontend.port) as client,
    ):
        while client.read_frame()[0] != SETTINGS or not client.frames[-1][3]:
            pass
        settings = client.frames[-1][3]
        announced = dict(struct.iter_unpack(">HI", settings))
        assert announced[3] == 10
        client.send(frame(PING, 0, 0, b"settled!"))
        while client.read_frame()[:2] != (PING, ACK):
            pass
        for _ in range(11):
            client.send(client.call(PUT)[1])
        kind, *_ = next(f for f in iter(client.read_frame, None) if f[0] in (RST_STREAM, 7))
        assert kind in (RST_STREAM, 7)


def test_slow_starters_are_closed():
    def end_of(client):
        client.deadline_seconds = 20
        return client.read_to_end()

    with (
        Frontend(prelude=impatient("header_seconds")) as frontend,
        socket.create_connection(("127.0.0.1", frontend.port), timeout=20) as silent,
        Client(frontend.port, greet=False) as half,
        Client(frontend.port) as greeted,
    ):
        half.send(PREFACE[:10])
        while greeted.read_frame()[:2] != (SETTINGS, ACK):
            pass
        greeted.send(frame(HEADERS, 0, 1, b"\x82"))
        assert end_of(greeted) == (ENHANCE_YOUR_CALM, "slow_headers")
        assert end_of(half) == (ENHANCE_YOUR_CALM, "slow_preface")
        assert silent.recv(1) == b""


@pytest.mark.parametrize("seed", range(30))
def test_random_bytes(frontend, bystander, seed):
    rng = random.Random(seed)
    with Client(frontend.port, greet=bool(seed % 3)) as client:
        if seed % 3 == 0:
            client.send(PREFACE)
        client.send(rng.randbytes(rng.choice([1, 9, 50, 5000, 100_000])))
        client.socket.shutdown(socket.SHUT_WR)
        client.read_to_end()


@pytest.mark.parametrize("seed", range(60))
def test_random_frames(frontend, bystander, seed):
    rng = random.Random(seed)
    with Client(frontend.port) as client:
        for _ in range(200):
            stream, data = client.call(PUT, end=rng.random() < 0.8)
            if rng.random() < 0.3:
                broken = bytearray(data)
                broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
                data = bytes(broken)
            if rng.random() < 0.5:
                data += frame(
                    rng.randrange(11),
                    rng.randrange(256),
                    rng.choice([0, stream, 1, stream + 2]),
                    rng.randbytes(rng.randrange(20)),
                )
            if not client.send(data):
                break
        client.socket.shutdown(socket.SHUT_WR)
        try:
            client.read_to_end()
        except Exception as err:  # the client's own HPACK state may be off after what it did
            assert "hpack" in type(err).__module__


def test_an_exchange_cut_at_every_offset(frontend, bystander):
    with Client(frontend.port, greet=False) as model:
        whole = PREFACE + frame(SETTINGS) + model.call(PUT)[1] + frame(SETTINGS, ACK) + frame(PING, 0, 0, b"12345678")
    for cut in range(len(whole)):
        with Client(frontend.port, greet=False) as client:
            client.send(whole[:cut])


def test_an_exchange_byte_by_byte(frontend, bystander):
    with Client(frontend.port, greet=False) as client:
        for byte in PREFACE + frame(SETTINGS) + client.call(PUT)[1]:
            client.send(bytes([byte]))
        headers, body = client.answer(1)
        assert (headers["grpc-status"], body) == ("0", message(PUT))


def test_padded_frames_are_taken(frontend, bystander):
    with Client(frontend.port) as client:
        padded = bytes([20]) + message(PUT) + bytes(20)
        client.send(client.head(request_headers(), 1) + frame(DATA, END_STREAM | 8, 1, padded))
        headers, body = client.answer(1)
        assert (headers["grpc-status"], body) == ("0", message(PUT))


def test_data_on_a_stream_that_never_was(frontend, bystander):
    with Client(frontend.port) as client:
        client.send(frame(DATA, END_STREAM, 5, message(PUT)))
        code, _ = client.read_to_end()
        assert code == PROTOCOL_ERROR


def test_unfinished_requests_are_bounded(frontend, bystander):
    # 4096 streams may hold a window each; more than 64 MiB of that ends the connection
    with Client(frontend.port) as client:
        piece = b"\0" + struct.pack(">I", 1_000_000) + b"x" * 16000
        for _ in range(2000):
            stream = client.next_stream
            client.next_stream += 2
            data = client.head(request_headers(), stream) + frame(DATA, 0, stream, piece)
            data += frame(DATA, 0, stream, b"x" * 16000) * 3
            if not client.send(data):
                break
        try:
            assert client.read_to_end() == (ENHANCE_YOUR_CALM, "too_many_buffered_requests")
        finally:
            client.socket.close()
