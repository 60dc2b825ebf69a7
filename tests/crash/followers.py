"""Watchers that follow a store through crashes: each goes on from its last revision + 1."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from tests.differential.guarantees import Record, Replay, check_all
from tests.harness import Server, pb
from tests.harness.watch import NODELETE, NOPUT, Falsify, Watch, WatchStream

from .history import Model, Operation

SLOW_WINDOW_BYTES = 65_536
_ALL: dict[str, Any] = {"key": b"\x00", "range_end": b"\x00"}


@dataclass(slots=True)
class Follower:
    """What one watcher asks for. `stream` shares a stream with the others of that name; `slow` stops reading."""

    stream: str
    fields: dict[str, Any]
    slow: bool = False
    next_revision: int = 1
    watch: Watch | None = None


def followers() -> list[Follower]:
    """Of every kind, for the keys of `workload`: `<round>/<writer>/...` and `hot/<n>`."""
    hot = [{"key": b"hot/%d" % number, "prev_kv": number % 2 == 0} for number in range(4)]
    return [
        Follower("shared", {**_ALL, "prev_kv": True, "progress_notify": True}),
        Follower("shared", {**_ALL, "filters": [NOPUT], "prev_kv": True}),
        Follower("shared", {**_ALL, "filters": [NODELETE], "progress_notify": True}),
        Follower("shared", {"key": b"hot/", "range_end": b"hot0", "prev_kv": True}),
        *(Follower("shared", fields) for fields in hot),
        Follower("shared", hot[0]),
        Follower("alone", {**_ALL, "fragment": True}),
        Follower("prefix", {"key": b"1", "range_end": b"2", "prev_kv": True}),
        Follower("from", {"key": b"3", "range_end": b"\x00", "progress_notify": True}),
        Follower("writer", {"key": b"0/0/", "range_end": b"0/00"}),
        Follower("never", {"key": b"never", "range_end": b"nevex"}),
        Follower("slow", {**_ALL, "prev_kv": True}, slow=True),
        Follower("slow hot", {"key": b"hot/", "range_end": b"hot0", "progress_notify": True}, slow=True),
    ]


@dataclass(slots=True)
class Followers:
    """All watchers of a test, connected to one server; used by one thread."""

    server: Server
    all: list[Follower] = field(default_factory=followers)
    falsify: Falsify | None = None
    streams: dict[str, WatchStream] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    events: int = 0
    resumed: int = 0
    compacted: int = 0

    @property
    def is_etcd(self) -> bool:
        return self.server.kind == "etcd"

    def endpoint_of(self, stream: str) -> str:
        """Where a stream of this name goes."""
        return self.server.endpoint

    def connect(self) -> None:
        for follower in self.all:
            if follower.stream not in self.streams:
                window = SLOW_WINDOW_BYTES if follower.slow else None
                endpoint = self.endpoint_of(follower.stream)
                self.streams[follower.stream] = WatchStream(endpoint, window_bytes=window, falsify=self.falsify)
            self._open(follower)
        for follower in self.all:
            watch = follower.watch
            self._stream(follower).wait(lambda watch=watch: watch.created, "answer to the creation of a watch")
            assert not watch.refused, f"{watch.request} refused: {watch.created}"

    def stop_reading(self) -> None:
        """The slow ones read no more, until `collect`."""
        for follower in self.all:
            if follower.slow:
                self._stream(follower).pause()

    def churn(self, rng: random.Random) -> None:
        """Cancel some watches and resume them; ask for progress."""
        reading = [follower for follower in self.all if not follower.slow]
        for follower in rng.sample(reading, 3):
            stream, watch = self._stream(follower), follower.watch
            assert watch is not None
            if watch.canceled is None:
                stream.cancel_id(watch.id)
                stream.wait(lambda watch=watch: watch.canceled, "answer to a cancellation")
            self._close(follower)
            self._open(follower)
            watch = follower.watch
            stream.wait(lambda watch=watch: watch.created, "answer to the creation of a watch")
        if not self.is_etcd:  # 3.5.1 answers whether it is true or not (issue 15220)
            for stream in self.streams.values():
                stream.request_progress()

    def wait_for_all(self, replay: Replay, deadline_seconds: float = 30.0) -> None:
        """Wait until every watch has brought what it has to up to the end of the replay."""
        for follower in self.all:
            while True:
                watch = follower.watch
                assert watch is not None
                record = Record.of(watch)
                due = len(replay.select(record.request, record.first_revision, replay.current))
                stream = self._stream(follower)
                stream.resume()
                stream.wait(
                    lambda watch=watch, due=due: len(watch.events) >= due or watch.canceled,
                    f"{due} events of {record}",
                    deadline_seconds,
                )
                if watch.canceled is None or len(watch.events) >= due:
                    break
                # Compacted while it did not read: go on from there.
                self._close(follower)
                self._open(follower)
                stream.wait(lambda follower=follower: follower.watch.created, "answer to the creation of a watch")

    def collect(self, ended: bool | set[str] = True) -> None:
        """Take what came of every watch; `ended`: the server is dead, its streams have to end by themselves.

        Of several servers those that are dead, by endpoint.
        """
        for stream in self.streams.values():
            stream.resume()
            if stream.endpoint in ended if isinstance(ended, set) else ended:
                stream.wait_end()
            stream.close()
            stream.check()
        for follower in self.all:
            self._close(follower)
        self.streams.clear()

    def check(self, replay: Replay, *, through: int = 0) -> None:
        """Every guarantee over all that was collected since the last check. Errors: Violation."""
        for record in self.records:
            # What was cancelled, for compaction too, need not have come to the end.
            ended = bool(record.responses) and record.responses[-1].canceled
            check_all(record, replay, through=0 if ended else through, etcd=self.is_etcd)
            self.events += sum(1 for _ in record.events)
        self.records.clear()

    def abandon(self) -> None:
        for stream in self.streams.values():
            stream.close()
        self.streams.clear()

    def _stream(self, follower: Follower) -> WatchStream:
        return self.streams[follower.stream]

    def _open(self, follower: Follower) -> None:
        request = pb.WatchCreateRequest(start_revision=follower.next_revision, **follower.fields)
        follower.watch = self._stream(follower).start_request(request)

    def _close(self, follower: Follower) -> None:
        watch, follower.watch = follower.watch, None
        if watch is None or watch.created is None:
            return
        self.records.append(Record.of(watch))
        self.resumed += 1
        follower.next_revision = watch.next_revision
        if watch.canceled is not None and watch.canceled.compact_revision:
            self.compacted += 1
            # 3.5.1 shows a deletion at exactly the compacted revision no more (issue 19179): begin behind it.
            start = watch.canceled.compact_revision + (1 if self.is_etcd else 0)
            follower.next_revision = max(follower.next_revision, start)


class ReplayModel(Model):
    """The store by what was found in it after each crash, and with it the replay the watches are held to."""

    def __init__(self) -> None:
        super().__init__()
        self.replay = Replay()

    def apply(self, operation: Operation, revision: int) -> None:
        super().apply(operation, revision)
        self.replay.apply(revision, operation.effects)
