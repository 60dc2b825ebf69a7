"""A client of bidi streams that sends exactly the frames a test wants and keeps to the server's windows."""

import struct
from collections import defaultdict

from tests.frontend.rawh2 import (
    ACK,
    DATA,
    END_STREAM,
    FRAME_BYTES_MAX,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Client,
    frame,
    message,
    request_headers,
)

WATCH = "/etcdserverpb.Watch/Watch"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
WINDOW_BYTES = 65535
CANCEL = 8


class Duplex(Client):
    """`bodies` gathers what each stream got; `own_window` is what it lets the server send per stream, None endless."""

    def __init__(self, port, own_window=None, **more):
        super().__init__(port, greet=False, **more)
        self.windows = defaultdict(lambda: WINDOW_BYTES)
        self.given = defaultdict(int)  # window the server has given back
        self.bodies = defaultdict(bytearray)
        self.found = {}  # stream: (whole messages, bytes that they are)
        self.trailers = defaultdict(dict)
        self.ended = {}  # stream: "end", or the code of RST_STREAM
        self.settings_sent, self.settings_taken = 1, 0
        window = (1 << 31) - 1 if own_window is None else own_window
        self.send(
            PREFACE
            + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, window))
            + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", (1 << 31) - 1 - WINDOW_BYTES))
        )

    def open(self, path=WATCH, end=False, **headers):
        stream = self.next_stream
        self.next_stream += 2
        self.send(self.head(request_headers(path=path, **headers), stream, 4 | (END_STREAM if end else 0)))
        return stream

    def read_frame(self, seconds=None):
        got = super().read_frame(seconds)
        if got is None:
            return None
        kind, flags, stream, payload = got
        if kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            self.windows[stream] += more
            self.given[stream] += more
        elif kind == SETTINGS:
            self.settings_taken += flags & ACK
        elif kind == DATA:
            self.bodies[stream] += payload
        elif kind == HEADERS:
            self.trailers[stream].update(payload)
        elif kind == RST_STREAM:
            self.ended.setdefault(stream, int.from_bytes(payload, "big"))
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            self.ended.setdefault(stream, "end")
        return got

    def settle(self):
        """All that the server had to say when it read this has come. (Pings without data between them are strikes.)"""
        self.settings_sent += 1
        self.send(frame(SETTINGS))
        while self.settings_taken < self.settings_sent:
            if self.read_frame() is None:
                return False
        return True

    def room(self, stream):
        return min(self.windows[stream], self.windows[0])

    def write(self, stream, data, end=False, frame_bytes=FRAME_BYTES_MAX):
        """Send within the windows, waiting for them; False when the stream ended before."""
        while data or end:
            size = min(self.room(stream), len(data), frame_bytes)
            if data and size <= 0:
                if self.read_frame() is None or stream in self.ended:
                    return False
                continue
            last = end and size == len(data)
            if not self.send(frame(DATA, END_STREAM if last else 0, stream, data[:size])):
                return False
            self.windows[stream] -= size
            self.windows[0] -= size
            data = data[size:]
            end = end and not last
        return True

    def write_what_fits(self, stream, data):
        """Send as far as the windows go; the number of bytes sent."""
        size = max(0, min(self.room(stream), len(data)))
        self.write(stream, data[:size])
        return size

    def say(self, stream, *bodies, end=False):
        return self.write(stream, b"".join(message(body) for body in bodies), end=end)

    def reset(self, stream):
        self.send(frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL)))

    def messages(self, stream):
        """The whole messages that came so far on the stream."""
        found, at = self.found.get(stream, ([], 0))
        data = self.bodies[stream]
        while len(data) - at >= 5:
            assert data[at] == 0
            end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
            if len(data) < end:
                break
            found.append(bytes(data[at + 5 : end]))
            at = end
        self.found[stream] = found, at
        return found

    def forget(self, stream):
        """As if nothing had come on the stream."""
        self.bodies[stream].clear()
        self.found.pop(stream, None)

    def read_messages(self, stream, count):
        while len(self.messages(stream)) < count:
            if self.read_frame() is None:
                raise ConnectionError(f"closed before {count} messages: {self.goaway()}")
        return self.messages(stream)

    def read_until_ended(self, stream):
        """How the stream ended: (grpc-status, grpc-message), or the code of its RST_STREAM."""
        while stream not in self.ended:
            if self.read_frame() is None:
                raise ConnectionError(f"closed before the stream's end: {self.goaway()}")
        if "grpc-status" in self.trailers[stream]:
            return self.trailers[stream]["grpc-status"], self.trailers[stream].get("grpc-message", "")
        return self.ended[stream]
