"""Requests that are not gRPC, of a frontend's connections: what came, and what to say.

A connection has a handle, never used again. Everything here is for the thread that calls FrontLoop.run().
"""

from etcdfast._ext.frontloop import FrontLoop

# Kinds of event
ARRIVED: int  # (kind, handle, 0, bytes): of an HTTP/1.1 connection
GONE: int  # (kind, handle, 0, None): closed by either side; its calls are cancelled
WRITABLE: int  # (kind, handle, 0, None): the socket has taken all of its output
RESET: int  # (kind, handle, stream, None): the HTTP/2 request is over, answered or not
ANSWER: int  # (kind, handle, stream, frames, code, text): of a call; code -1 while more may come
REQUEST: int  # (kind, handle, stream, [(name, value), ...], ended): an HTTP/2 request
BODY: int  # (kind, handle, stream, bytes, ended): of its body

class HttpFace:
    def __init__(self, loop: FrontLoop) -> None: ...
    def take(self) -> list[tuple]:
        """What has come since, bounded; run() comes back at once for the rest.

        ANSWER: frames are gRPC messages with their prefixes of five bytes, cut anywhere while code is -1.
                text is percent encoded. A call whose connection does not take its output yields nothing.
        """
    def say(self, handle: int, data: bytes) -> int:
        """Write to an HTTP/1.1 connection. Bytes that the socket has not taken yet; -1: it is gone."""
    def finish(self, handle: int) -> None:
        """Close when all is written; what still comes is thrown away."""
    def drop(self, handle: int) -> None:
        """Close now."""
    def read(self, handle: int, on: bool) -> None:
        """Whether the connection is to be read."""
    def respond(self, handle: int, stream: int, headers: list[tuple[bytes, bytes]], end: bool) -> bool:
        """Headers (with :status) of the answer to an HTTP/2 request. False: it is gone."""
    def body(self, handle: int, stream: int, data: bytes, end: bool) -> bool:
        """Bytes behind them."""
    def reset(self, handle: int, stream: int) -> None:
        """End an HTTP/2 request without an answer."""
    def call(
        self,
        handle: int,
        stream: int,
        method: int,
        framed: bytes | None,
        ends: bool,
        timeout_ns: int = 0,
        require_leader: bool = False,
        token: bytes = b"",
    ) -> bool:
        """Begin a call. stream: even and unused on that connection; framed: gRPC message with prefix, or none yet;
        ends: it is the last. False: the connection is gone, or the method is not served."""
    def message(self, handle: int, stream: int, framed: bytes | None, ends: bool) -> None:
        """A further message of a bidi call."""
    def cancel(self, handle: int, stream: int) -> None:
        """Nobody waits for the call any more."""
    def hold(self, handle: int, more: int) -> None:
        """Python keeps so many bytes more for the connection, fewer when negative: they count in the budget."""
    def fileno(self, handle: int) -> int:
        """Descriptor of the connection, -1 when it is gone. To look at, not to keep."""
    def listener(self, handle: int) -> int:
        """Index of the listener by which it came."""
    def cert_name(self, handle: int) -> bytes | None:
        """Common name of the client's verified certificate."""
    def secure(self, handle: int) -> bool:
        """Whether the connection is TLS."""
