"""A client that sends exactly the HTTP/2 frames a test wants, and shows what came back."""

import socket
import struct
import time

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
FRAME_BYTES_MAX = 16384
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 8, 9, 11


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(body):
    return b"\0" + struct.pack(">I", len(body)) + body


def request_headers(path="/etcdserverpb.KV/Put", **more):
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "test",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    headers.update({name.replace("_", "-"): value for name, value in more.items()})
    return [(name, value) for name, value in headers.items() if value is not None]


class Client:
    """One connection. `frames` gathers what was read: (kind, flags, stream, payload)."""

    def __init__(self, port, greet=True, deadline_seconds=10.0, receive_buffer=None, tls=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            # `tls` is an ssl.SSLContext.
            self.socket.settimeout(deadline_seconds)
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self.deadline_seconds = deadline_seconds
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.buffer = b""
        self.closed = False
        self.frames = []
        self.next_stream = 1
        if greet:
            self.send(PREFACE + frame(SETTINGS))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        """False when the server has closed."""
        try:
            self.socket.settimeout(self.deadline_seconds)
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def head(self, headers, stream, flags=END_HEADERS):
        return frame(HEADERS, flags, stream, self.encoder.encode(headers))

    def call(self, body, end=True, **headers):
        """Bytes of a whole unary call on the next stream; returns (stream, bytes)."""
        stream = self.next_stream
        self.next_stream += 2
        data, whole = self.head(request_headers(**headers), stream), message(body)
        pieces = [whole[i : i + FRAME_BYTES_MAX] for i in range(0, len(whole), FRAME_BYTES_MAX)]
        for piece in pieces[:-1]:
            data += frame(DATA, 0, stream, piece)
        return stream, data + frame(DATA, END_STREAM if end else 0, stream, pieces[-1])

    def read_frame(self, seconds=None):
        """The next frame; None at the end of the connection. Raises TimeoutError."""
        end = time.monotonic() + (seconds or self.deadline_seconds)
        while not self.closed:
            if len(self.buffer) >= 9:
                size = int.from_bytes(self.buffer[:3], "big")
                if len(self.buffer) >= 9 + size:
                    kind, flags, stream = struct.unpack(">BBI", self.buffer[3:9])
                    payload = self.buffer[9 : 9 + size]
                    self.buffer = self.buffer[9 + size :]
                    got = (kind, flags, stream & 0x7FFFFFFF, payload)
                    self.frames.append(got)
                    if kind == HEADERS:
                        got = (kind, flags, got[2], self.decoder.decode(payload))
                        self.frames[-1] = got
                    if kind == SETTINGS and not flags & ACK:
                        self.send(frame(SETTINGS, ACK))
                    return got
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError("no frame before the deadline")
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                self.closed = True
            self.buffer += data
        return None

    def answer(self, stream):
        """(status headers and trailers as a dict, body bytes) of a stream; RST_STREAM ends it too."""
        headers, body = {}, b""
        while True:
            got = self.read_frame()
            if got is None:
                raise ConnectionError(f"closed before the answer: {self.goaway()}")
            kind, flags, on, payload = got
            if on != stream:
                continue
            if kind == HEADERS:
                headers.update(payload)
            elif kind == DATA:
                body += payload
            elif kind == RST_STREAM:
                headers["reset"] = int.from_bytes(payload, "big")
                return headers, body
            if kind in (HEADERS, DATA) and flags & END_STREAM:
                return headers, body

    def read_to_end(self):
        """Read until the server closes; returns the GOAWAY (code, text) or None."""
        while self.read_frame() is not None:
            pass
        return self.goaway()

    def goaway(self):
        """(code, debug text) of the last GOAWAY seen."""
        for kind, _, _, payload in reversed(self.frames):
            if kind == GOAWAY:
                return int.from_bytes(payload[4:8], "big"), payload[8:].decode()
        return None
