"""An HTTP/2 server that says exactly what a test wants said, and keeps watch over what it is told.

It is a model, not a library: blocking sockets, a thread per connection, an HPACK decoder without
Huffman (the generator sends none). Every rule of the protocol that a client can break towards a
server with few resources is checked here and noted in `violations`.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, PADDED, PRIORITY, ACK = 1, 4, 8, 0x20, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STATIC = {3: (":method", "POST"), 6: (":scheme", "http")}


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream_id) + payload


def settings(**values: int) -> bytes:
    names = {"table": 1, "streams": 3, "window": 4, "frame": 5}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", names[name], value) for name, value in values.items()))


def literal(name: str, value: str, indexed: bool = False) -> bytes:
    return (b"\x40" if indexed else b"\x00") + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


STATUS_200 = b"\x88"
OK_TRAILERS = literal("grpc-status", "0")


def message(size: int = 20) -> bytes:
    return b"\0" + struct.pack(">I", size) + bytes(size)


def ok_answer(stream_id: int) -> bytes:
    return (
        frame(HEADERS, END_HEADERS, stream_id, STATUS_200)
        + frame(DATA, 0, stream_id, message())
        + frame(HEADERS, END_HEADERS | END_STREAM, stream_id, OK_TRAILERS)
    )


class HpackModel:
    """RFC 7541 decoder for blocks without Huffman coding."""

    def __init__(self, limit: int = 4096) -> None:
        self.limit = self.size = limit
        self.entries: list[tuple[str, str]] = []

    def decode(self, block: bytes) -> list[tuple[str, str]]:
        out, at = [], 0
        while at < len(block):
            first = block[at]
            if first & 0x80:
                index, at = self._integer(block, at, 7)
                out.append(STATIC[index] if index < 62 else self.entries[index - 62])
            elif first & 0xE0 == 0x20:
                assert not out, "size update after a field"
                self.size, at = self._integer(block, at, 5)
                assert self.size <= self.limit, "table size above the limit"
                self._evict()
            else:
                assert first in (0x00, 0x40), f"unexpected representation {first:#x}"
                name, at = self._string(block, at + 1)
                value, at = self._string(block, at)
                out.append((name, value))
                if first == 0x40:
                    self.entries.insert(0, (name, value))
                    self._evict()
        return out

    def _evict(self) -> None:
        while sum(len(n) + len(v) + 32 for n, v in self.entries) > self.size:
            self.entries.pop()

    def _string(self, block: bytes, at: int) -> tuple[str, int]:
        assert not block[at] & 0x80, "Huffman"
        length, at = self._integer(block, at, 7)
        return block[at : at + length].decode(), at + length

    @staticmethod
    def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
        limit = (1 << bits) - 1
        value = block[at] & limit
        at += 1
        if value < limit:
            return value, at
        shift = 0
        while True:
            value += (block[at] & 0x7F) << shift
            shift += 7
            at += 1
            if not block[at - 1] & 0x80:
                return value, at


class Connection:
    """One client connection; `send` takes raw frames."""

    def __init__(self, server: ScriptedServer, sock: socket.socket, number: int) -> None:
        self.server, self.sock, self.number = server, sock, number
        self.hpack = HpackModel(server.table)
        self.window = 65535
        self.stream_window: dict[int, int] = {}
        self.bodies: dict[int, bytearray] = {}
        self.headers: dict[int, list[tuple[str, str]]] = {}
        self.last_stream_id = 0
        self.pings: list[bytes] = []
        self.finished = 0

    def send(self, data: bytes, piece: int = 0) -> None:
        step = piece or len(data) or 1
        for at in range(0, len(data), step):
            self.sock.sendall(data[at : at + step])

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)

    def _complain(self, text: str) -> None:
        self.server.violations.append(f"connection {self.number}: {text}")

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def run(self) -> None:
        if self._read(24) != PREFACE:
            self._complain("no preface")
        self.send(self.server.greeting)
        while True:
            head = self._read(9)
            length = int.from_bytes(head[:3])
            kind, flags, stream_id = head[3], head[4], int.from_bytes(head[5:])
            payload = self._read(length)
            self._on_frame(kind, flags, stream_id, payload)

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) > self.server.frame_bytes:
            self._complain(f"frame of {len(payload)} bytes")
        if kind == HEADERS:
            if stream_id % 2 == 0 or stream_id <= self.last_stream_id:
                self._complain(f"stream id {stream_id} after {self.last_stream_id}")
            self.last_stream_id = stream_id
            self.headers[stream_id] = self.hpack.decode(payload)
            self.bodies[stream_id] = bytearray()
            self.stream_window[stream_id] = self.server.window
            if len(self.bodies) > self.server.streams:
                self._complain(f"{len(self.bodies)} streams open")
        elif kind == DATA:
            self._on_data(flags, stream_id, payload)
        elif kind == SETTINGS and flags & ACK:
            self.server.acks += 1
        elif kind == PING and flags & ACK:
            self.pings.append(payload)
        elif kind == RST_STREAM:
            self.server.resets.append(stream_id)

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id not in self.bodies:
            return
        self.window -= len(payload)
        self.stream_window[stream_id] -= len(payload)
        if self.window < 0 or self.stream_window[stream_id] < 0:
            self._complain(f"window exceeded on stream {stream_id}")
        self.bodies[stream_id] += payload
        if self.server.early:
            del self.bodies[stream_id]
            self.grant(0, len(payload))
            self.server.script(self, stream_id, 0)
            return
        if not flags & END_STREAM:
            self.grant(stream_id, len(payload))
            return
        self.grant(0, len(payload))
        body, headers = bytes(self.bodies.pop(stream_id)), self.headers.pop(stream_id)
        with self.server.lock:
            self.server.requests.append((headers, body))
            number = len(self.server.requests)
        self.server.script(self, stream_id, number)

    def grant(self, stream_id: int, count: int) -> None:
        """Give back what was used, in both windows of an open stream."""
        if not count:
            return
        self.window += count
        update = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", count))
        if stream_id:
            self.stream_window[stream_id] += count
            update += frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", count))
        self.send(update)


class ScriptedServer:
    """Context manager. `script(connection, stream_id, n)` is called for the n-th complete request.

    With `early`, it is called instead at the first piece of each request, which is then forgotten.
    """

    def __init__(
        self,
        script: Callable[[Connection, int, int], None] | None = None,
        *,
        greeting: bytes | None = None,
        streams: int = 1 << 31,
        window: int = 65535,
        frame_bytes: int = 16384,
        table: int = 4096,
        early: bool = False,
    ) -> None:
        self.early = early
        self.script = script or (lambda connection, stream_id, _: connection.send(ok_answer(stream_id)))
        self.streams, self.window, self.frame_bytes, self.table = streams, window, frame_bytes, table
        values = {"window": window, "frame": frame_bytes, "table": table}
        if streams < 1 << 31:
            values["streams"] = streams
        self.greeting = settings(**values) if greeting is None else greeting
        self.requests: list[tuple[list[tuple[str, str]], bytes]] = []
        self.violations: list[str] = []
        self.resets: list[int] = []
        self.connections: list[Connection] = []
        self.acks = 0
        self.lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> ScriptedServer:
        self._start(self._accept)
        return self

    def __exit__(self, *exc) -> None:
        self.stop_listening()
        for connection in self.connections:
            try:
                connection.close()
            except OSError:
                pass
        for thread in self._threads:
            thread.join(10)

    def stop_listening(self) -> None:
        try:
            # wakes the accept call, which a plain close would not
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()

    def _start(self, body: Callable, *args) -> None:
        thread = threading.Thread(target=body, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(self, sock, len(self.connections))
            self.connections.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: Connection) -> None:
        try:
            connection.run()
        except (EOFError, OSError):
            pass
        except AssertionError as e:
            self.violations.append(f"connection {connection.number}: {e}")
            connection.sock.close()
        finally:
            connection.sock.close()
