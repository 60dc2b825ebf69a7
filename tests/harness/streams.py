"""A stream of the etcd API as a test needs it: send when told to, wait for the next message with a deadline."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc

from .wait import WaitTimeout

_END = object()


class StreamEnded(AssertionError):
    """The server ended the stream; `code` (0 = OK) and `text` are its status."""

    def __init__(self, path: str, code: int, text: str) -> None:
        super().__init__(f"{path} ended with {code}: {text}")
        self.code, self.text = code, text


class Stream:
    """One bidirectional or server stream; a thread of its own keeps what came until it is asked for.

    `method` has path and response class. With `request` given it is a server stream. Close it (or use
    `with`) before the channel goes.
    """

    def __init__(self, channel: grpc.Channel, method: Any, timeout_seconds: float, request: Any = None) -> None:
        self._path = method.path
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        arguments = {
            "request_serializer": lambda message: message.SerializeToString(),
            "response_deserializer": method.response.FromString,
        }
        if request is None:
            call = channel.stream_stream(method.path, **arguments)
            self._call = call(iter(self._requests.get, _END), timeout=timeout_seconds)
        else:
            self._call = channel.unary_stream(method.path, **arguments)(request, timeout=timeout_seconds)
        self._reader = threading.Thread(target=self._read, name=method.path, daemon=True)
        self._reader.start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the stream back, whatever its state."""
        self._call.cancel()
        self._requests.put(_END)
        self._reader.join(10)

    def half_close(self) -> None:
        """Nothing more will be sent; answers may still come."""
        self._requests.put(_END)

    def send(self, request: Any) -> None:
        self._requests.put(request)

    def receive(self, deadline_seconds: float = 20.0) -> Any:
        """The next message. Errors: StreamEnded with the server's status, WaitTimeout."""
        try:
            message = self._messages.get(timeout=deadline_seconds)
        except queue.Empty:
            raise WaitTimeout(f"{self._path}: no message within {deadline_seconds} s") from None
        if isinstance(message, StreamEnded):
            self._messages.put(message)  # and so for whoever asks again
            raise message
        return message

    def ask(self, request: Any, deadline_seconds: float = 20.0) -> Any:
        """Send one request and wait for one message."""
        self.send(request)
        return self.receive(deadline_seconds)

    def waiting(self) -> Iterator[Any]:
        """Everything that has come and was not yet asked for."""
        while not self._messages.empty():
            yield self.receive(0)

    def _read(self) -> None:
        try:
            for message in self._call:
                self._messages.put(message)
            code, text = grpc.StatusCode.OK, ""
        except grpc.RpcError as error:
            code, text = error.code(), error.details() or ""
        self._messages.put(StreamEnded(self._path, code.value[0], text))
