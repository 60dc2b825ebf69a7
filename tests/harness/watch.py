"""A client of Watch streams that shows exactly what came, in the order it came.

One `WatchStream` is one bidi call. A thread reads its answers and files each under the watch it
belongs to, with fragments joined again; the test waits for conditions on what was filed. Reading
can be stopped (`pause`), which closes the flow-control window on the server: a slow watcher.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import grpc

from . import pb
from .rpc import Reply, channel_options
from .wait import WaitTimeout

PATH = "/etcdserverpb.Watch/Watch"
NOPUT = pb.WatchCreateRequest.NOPUT
NODELETE = pb.WatchCreateRequest.NODELETE
CONNECT_MS = 10_000
STREAM_WIDE = -1  # watch_id of answers that concern all watches of the stream, and of refusals

# Passes a response through, changes it, or drops it (None): for tests of the tests.
Falsify = Callable[[Any], Any]
T = TypeVar("T")


class Watch:
    """One watch: what was asked, and everything that came for it.

    Changed by the reading thread of its stream only; read it after waiting on the stream.
    """

    def __init__(self, request: Any) -> None:
        self.request = request
        # None until the answer to the creation is there; a refused creation has it, too.
        self.created: Any = None
        self.canceled: Any = None
        # Events, progress and cancellation in order of arrival, fragments joined. A stream-wide
        # progress answer stands in the list of each watch that was open when it came.
        self.responses: list[Any] = []
        self.events: list[Any] = []
        self.fragments = 0  # messages that were parts of a split response
        self.message_bytes: list[int] = []  # of each message with events, parts counted singly
        self._parts: Any = None

    @property
    def id(self) -> int:
        assert self.created is not None, "the creation was not answered yet"
        return self.created.watch_id

    @property
    def refused(self) -> bool:
        return self.created is not None and self.created.canceled

    @property
    def last_revision(self) -> int:
        """Of the last event; 0 when there was none."""
        return self.events[-1].kv.mod_revision if self.events else 0

    @property
    def next_revision(self) -> int:
        """Where a resumed watch has to start: behind the last event or bookmark, else where this one started."""
        bookmarks = [r.header.revision for r in self.responses if is_progress(r)]
        last = max([self.last_revision, *bookmarks])
        if last:
            return last + 1
        if self.request.start_revision > 0:
            return self.request.start_revision
        return self.created.header.revision + 1 if self.created is not None else 0

    def _file(self, response: Any) -> None:
        if response.events:
            self.message_bytes.append(response.ByteSize())
        if response.canceled:
            self.canceled, self._parts = response, None
        if response.fragment or self._parts is not None:
            self.fragments += 1
            if self._parts is None:
                self._parts = response
            else:
                self._parts.events.extend(response.events)
            if response.fragment:
                return
            response, self._parts = self._parts, None
            response.fragment = False
        self.responses.append(response)
        self.events.extend(response.events)


def is_progress(response: Any) -> bool:
    """A bookmark: all events up to its header.revision have been sent."""
    return not (response.events or response.created or response.canceled)


class WatchStream:
    """One Watch call over its own connection, or over a channel given.

    Errors: AssertionError for what a test waits for in vain; `ended` has code and text of a stream that
    ended. `strays` holds answers for ids that no open watch of this stream has: always a defect. So is what
    `interleaved` holds: messages between the fragments of one response, which etcd's Go client would lose.
    `window_bytes`: the stream's flow-control window, for tests that stop reading (own connection only).
    """

    def __init__(
        self,
        endpoint: str,
        *,
        channel: grpc.Channel | None = None,
        metadata: Iterable[tuple[str, str]] = (),
        reading: bool = True,
        window_bytes: int | None = None,
        falsify: Falsify | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._own = channel is None
        self._channel = channel or grpc.insecure_channel(endpoint, options=channel_options(window_bytes, CONNECT_MS))
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._reading = reading
        self._falsify = falsify
        self._unanswered: deque[Watch] = deque()  # creations are answered in order
        self._open: dict[int, Watch] = {}
        self._compacted: set[int] = set()
        self.watches: list[Watch] = []
        self.progress_responses: list[Any] = []
        self.strays: list[Any] = []
        self.interleaved: list[Any] = []
        self._fragmented: int | None = None  # whose response is coming in fragments
        self._between: list[Any] = []
        self.messages = 0
        self.ended: Reply | None = None
        self.failure: BaseException | None = None
        method = self._channel.stream_stream(PATH, request_serializer=None, response_deserializer=None)
        self._call = method(iter(self._requests.get, None), metadata=tuple(metadata) or None)
        self._reader = threading.Thread(target=self._read, name=f"watch-{endpoint}", daemon=True)
        self._reader.start()

    def __enter__(self) -> WatchStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the call and wait for the end of the reading thread."""
        self._call.cancel()
        self.resume()
        self._requests.put(None)
        self._reader.join(20)
        if self._own:
            self._channel.close()
        if self._reader.is_alive():
            raise AssertionError("the reading thread of a watch stream does not end")

    # -- asking -------------------------------------------------------------------------------

    def send(self, request: Any) -> None:
        """One message as it is: a WatchRequest, or raw bytes."""
        self._requests.put(request if isinstance(request, bytes) else request.SerializeToString())

    def half_close(self) -> None:
        """No more requests; the server goes on sending."""
        self._requests.put(None)

    def start(self, key: bytes = b"", range_end: bytes = b"", **fields: Any) -> Watch:
        """Ask for a watch without waiting for the answer. `fields` are those of WatchCreateRequest."""
        return self.start_request(pb.WatchCreateRequest(key=key, range_end=range_end, **fields))

    def start_request(self, request: Any) -> Watch:
        watch = Watch(request)
        with self._changed:
            self._unanswered.append(watch)
            self.watches.append(watch)
            self.send(pb.WatchRequest(create_request=request))
        return watch

    def open(self, key: bytes = b"", range_end: bytes = b"", **fields: Any) -> Watch:
        """Ask for a watch and wait for the answer, be it a refusal."""
        return self.open_request(pb.WatchCreateRequest(key=key, range_end=range_end, **fields))

    def open_request(self, request: Any) -> Watch:
        watch = self.start_request(request)
        self.wait(lambda: watch.created, "answer to the creation of a watch")
        return watch

    def cancel(self, watch: Watch) -> None:
        """Ask for the end of a watch and wait for the answer."""
        self.cancel_id(watch.id)
        self.wait(lambda: watch.canceled, "answer to the cancellation of a watch")

    def cancel_id(self, watch_id: int) -> None:
        """Ask for the end of a watch, whether there is one or not."""
        self.send(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id)))

    def request_progress(self) -> None:
        self.send(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))

    # -- reading ------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop reading; one message that is already asked for may still come."""
        with self._changed:
            self._reading = False

    def resume(self) -> None:
        with self._changed:
            self._reading = True
            self._changed.notify_all()

    def wait(self, condition: Callable[[], T], what: str, deadline_seconds: float = 30.0) -> T:
        """Wait until `condition` is true; it is called whenever something came.

        Errors: WaitTimeout naming `what`; AssertionError when the stream ends first.
        """
        end = time.monotonic() + deadline_seconds
        with self._changed:
            while True:
                result = condition()
                if result:
                    return result
                if self.failure is not None:
                    raise AssertionError(f"no {what}: {self.failure}") from self.failure
                if self.ended is not None:
                    raise AssertionError(f"no {what}: the stream ended with {self.ended.code}: {self.ended.text}")
                left = end - time.monotonic()
                if left <= 0:
                    raise WaitTimeout(f"not within {deadline_seconds:.1f} s: {what}")
                self._changed.wait(left)

    def wait_events(self, watch: Watch, count: int, deadline_seconds: float = 30.0) -> list[Any]:
        """Wait for that many events of a watch; returns those that are there."""
        try:
            self.wait(lambda: len(watch.events) >= count, f"{count} events", deadline_seconds)
        except WaitTimeout as error:
            raise WaitTimeout(f"{error}; {len(watch.events)} came, the last at {watch.last_revision}") from None
        return watch.events

    def wait_revision(self, watch: Watch, revision: int, deadline_seconds: float = 30.0) -> None:
        """Wait for an event of at least this revision."""
        self.wait(lambda: watch.last_revision >= revision, f"event of revision {revision}", deadline_seconds)

    def wait_end(self, deadline_seconds: float = 30.0) -> Reply:
        """Wait for the end of the stream: its code and text."""
        end = time.monotonic() + deadline_seconds
        with self._changed:
            while self.ended is None:
                left = end - time.monotonic()
                if left <= 0:
                    raise WaitTimeout(f"not within {deadline_seconds:.1f} s: end of the watch stream")
                self._changed.wait(left)
            return self.ended

    def check(self) -> None:
        """That nothing came which is a defect whatever the test is about. Errors: AssertionError."""
        if self.failure is not None:
            raise AssertionError(f"a message nobody can read: {self.failure}") from self.failure
        if self.strays:
            raise AssertionError(f"an answer for no watch: {_short(self.strays[0])}")
        if self.interleaved:
            raise AssertionError(f"between the fragments of a response: {_short(self.interleaved[0])}")

    # -- inside -------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            for data in self._messages():
                response = pb.WatchResponse.FromString(data)
                if self._falsify is not None:
                    response = self._falsify(response)
                with self._changed:
                    self.messages += 1
                    if response is not None:
                        self._file(response)
                    self._changed.notify_all()
            ended = Reply("Watch", self._call.code().value[0], self._call.details() or "", b"")
        except grpc.RpcError as error:
            ended = Reply("Watch", error.code().value[0], error.details() or "", b"")
        except BaseException as error:  # noqa: BLE001 - shown to the thread that waits
            self.failure = error
            ended = Reply("Watch", grpc.StatusCode.UNKNOWN.value[0], f"client: {error}", b"")
        with self._changed:
            self.ended = ended
            self._changed.notify_all()

    def _messages(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._reading)
            try:
                yield next(self._call)
            except StopIteration:
                return

    def _file(self, response: Any) -> None:
        self._follow_fragments(response)
        if response.created:
            self._file_created(response)
        elif response.watch_id == STREAM_WIDE and STREAM_WIDE not in self._open:
            if not is_progress(response):
                self.strays.append(response)
                return
            self.progress_responses.append(response)
            for watch in self._open.values():
                watch._file(response)
        else:
            watch = self._open.get(response.watch_id)
            if watch is None:
                # A cancellation for compaction may cross one by request; etcd answers that as well.
                if not (response.canceled and response.watch_id in self._compacted):
                    self.strays.append(response)
                return
            watch._file(response)
            if response.canceled:
                del self._open[response.watch_id]
                if response.compact_revision:
                    self._compacted.add(response.watch_id)

    def _follow_fragments(self, response: Any) -> None:
        """Nothing comes between fragments, unless the watch is cancelled there: then answers may come before that."""
        control = response.created or response.canceled
        if self._fragmented is None:
            self._fragmented = response.watch_id if response.fragment else None
        elif response.canceled and response.watch_id == self._fragmented:
            self._fragmented = None
            self._between.clear()
        elif control:
            self._between.append(response)
        elif is_progress(response) or response.watch_id != self._fragmented:
            self.interleaved.append(response)
        else:
            self.interleaved.extend(self._between)
            self._between.clear()
            self._fragmented = response.watch_id if response.fragment else None

    def _file_created(self, response: Any) -> None:
        if not self._unanswered:
            self.strays.append(response)
            return
        watch = self._unanswered.popleft()
        watch.created = response
        if response.canceled:
            watch.canceled = response
        elif response.watch_id in self._open:
            self.strays.append(response)
        else:
            self._open[response.watch_id] = watch


def _short(message: Any) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= 400 else f"{text[:400]}... ({len(text)} characters)"
