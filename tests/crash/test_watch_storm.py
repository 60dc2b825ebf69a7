"""Clients that open, cancel, stop reading, resume and leave at random while writers and compactions go on.

Every watch that was ever open is held to the guarantees; the replay comes from the answers to the writes.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from typing import Any

from tests.differential.guarantees import Record, Violation, check_all
from tests.harness import Server, pb, target_server, wait_until
from tests.harness.watch import NODELETE, NOPUT, Watch, WatchStream

from .followers import SLOW_WINDOW_BYTES, ReplayModel
from .history import Effect, Operation
from .rounds import is_self_test
from .workload import Load

SEED_VARIABLE = "ETCDFAST_STORM_SEED"
ACTIONS_VARIABLE = "ETCDFAST_STORM_ACTIONS"
ACTIONS = 150  # of all clients together
CLIENTS = 6
OPEN_MAX = 12  # per client
BIG_OPS, BIG_VALUE_BYTES = 100, 30_000  # nearly 3 MB with prev_kv: large messages, and fragments
MIDDLE_VALUE_BYTES = 700  # 70 KB: more than one record of a ring


class BigWriter(threading.Thread):
    """Large transactions over the same keys, and deletions of them all, one after the other."""

    def __init__(self, server: Server, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.server, self.rng = server, rng
        self.stop = threading.Event()
        self.done: list[Operation] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with self.server.client() as client:
                live: set[bytes] = set()
                while not self.stop.wait(self.rng.uniform(0.01, 0.1)):
                    operation = self._erase(live) if live and self.rng.random() < 0.4 else self._puts(live)
                    reply = client.call(operation.method, operation.request)
                    operation.revision = reply.message.header.revision
                    self.done.append(operation)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.failure = error

    def _puts(self, live: set[bytes]) -> Operation:
        value = self.rng.randbytes(10) * (self.rng.choice((10, MIDDLE_VALUE_BYTES, 14_000, BIG_VALUE_BYTES)) // 10)
        txn = pb.TxnRequest()
        effects: list[Effect] = []
        count = min(BIG_OPS, 1_400_000 // len(value))
        for number in range(count):
            key = b"big/%03d" % number
            txn.success.add().request_put.CopyFrom(pb.PutRequest(key=key, value=value))
            effects.append((key, value))
            live.add(key)
        return Operation("Txn", txn.SerializeToString(), tuple(effects))

    def _erase(self, live: set[bytes]) -> Operation:
        request = pb.DeleteRangeRequest(key=b"big/", range_end=b"big0")
        effects = tuple((key, None) for key in sorted(live))
        live.clear()
        return Operation("DeleteRange", request.SerializeToString(), effects)


class Client(threading.Thread):
    """One stream at a time, with up to OPEN_MAX watches."""

    def __init__(self, storm: Storm, number: int, rng: random.Random) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.storm, self.rng = storm, rng
        self.window = SLOW_WINDOW_BYTES if number % 2 else None
        self.open: list[Watch] = []
        self.records: list[Record] = []
        self.streams: list[WatchStream] = []
        self.actions: Counter[str] = Counter()
        self.failure: BaseException | None = None

    @property
    def stream(self) -> WatchStream:
        return self.streams[-1]

    def run(self) -> None:
        try:
            self._connect()
            while not self.storm.stop.is_set():
                action = self.rng.choices(
                    (self._start, self._cancel, self._pause, self._reuse, self._progress, self._leave),
                    (40, 22, 12, 10, 10, 1),
                )[0]
                self.actions[action.__name__] += 1
                action()
            self.stream.resume()
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.failure = error

    def _connect(self) -> None:
        self.streams.append(WatchStream(self.storm.server.endpoint, window_bytes=self.window))
        self.open = []

    def _request(self) -> Any:
        rng = self.rng
        key, range_end = rng.choice(
            (
                (b"\x00", b"\x00"),
                (b"big/", b"big0"),
                (b"big/%03d" % rng.randrange(BIG_OPS), b""),
                (b"big/0", b"big/%03d" % rng.randrange(1, BIG_OPS)),
                (b"hot/", b"hot0"),
                (b"hot/%d" % rng.randrange(4), b""),
                (b"hot/%d" % rng.randrange(4), b""),
                (b"0/1/", b"0/10"),
                (b"0/2/", b"\x00"),
            )
        )
        current = self.storm.current()
        start = rng.choice((0, 0, 0, max(1, current - rng.randrange(300)), current + rng.randrange(30), 1))
        return pb.WatchCreateRequest(
            key=key,
            range_end=range_end,
            start_revision=start,
            prev_kv=rng.random() < 0.5,
            fragment=rng.random() < 0.4,
            progress_notify=rng.random() < 0.3,
            filters=rng.choice(([], [], [], [NOPUT], [NODELETE])),
        )

    def _start(self, watch_id: int = 0) -> None:
        if len(self.open) >= OPEN_MAX:
            return
        request = self._request()
        request.watch_id = watch_id
        self.open.append(self.stream.start_request(request))

    def _cancel(self) -> int:
        """The id of the cancelled watch, or 0."""
        if not self.open:
            return 0
        watch = self.open.pop(self.rng.randrange(len(self.open)))
        self.stream.resume()
        self.stream.wait(lambda: watch.created, "answer to a creation")
        if watch.refused:
            raise AssertionError(f"refused: {watch.created}")
        if watch.canceled is None:
            self.stream.cancel_id(watch.id)
            self.stream.wait(lambda: watch.canceled, "answer to a cancellation")
        self.records.append(Record.of(watch))
        return 0 if watch.canceled.compact_revision else watch.id

    def _pause(self) -> None:
        self.stream.pause()
        self.storm.stop.wait(self.rng.uniform(0.02, 0.5))
        if self.rng.random() < 0.8:
            self.stream.resume()

    def _reuse(self) -> None:
        """A new watch under the id of one just cancelled must see nothing of that one."""
        if is_self_test():
            return  # etcd hands it what was still queued for the old one
        watch_id = self._cancel()
        if watch_id:
            self._start(watch_id)

    def _progress(self) -> None:
        if not is_self_test():  # 3.5.1 answers whether it is true or not
            self.stream.request_progress()

    def _leave(self) -> None:
        """In the middle of whatever is being sent."""
        self.stream.close()
        self.records.extend(Record.of(watch) for watch in self.open if watch.created is not None)
        self._connect()


class Storm:
    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.rng = random.Random(seed)
        self.stop = threading.Event()
        self.compacted = -1
        self.load = Load(server, random.Random(seed + 1), 0, [])
        self.big = BigWriter(server, random.Random(seed + 2))
        self.clients = [Client(self, number, random.Random(seed * 100 + number)) for number in range(CLIENTS)]

    def current(self) -> int:
        """A recent revision."""
        return self.big.done[-1].revision or 1 if self.big.done else 1

    def done(self) -> int:
        for thread in (self.big, *self.clients):
            if thread.failure is not None:
                raise thread.failure
        return sum(client.actions.total() for client in self.clients)

    def blow(self, actions: int) -> ReplayModel:
        """Everything at once until the clients have done so much; returns what happened."""
        for thread in (self.load, self.big, *self.clients):
            thread.start()
        with self.server.client() as client:
            for part in range(1, 11):
                wait_until(lambda part=part: self.done() >= actions * part // 10, f"{actions} actions", 120)
                # 3.5.1 would forget deletions at exactly that revision, for watches that start there.
                if part % 3 == 0 and not is_self_test():
                    wanted = max(2, self.current() - self.rng.randrange(400))
                    client.call("Compact", pb.CompactionRequest(revision=wanted))
                    self.compacted = max(self.compacted, wanted)  # a lower one is refused
        self.stop.set()
        self.big.stop.set()
        answered, unanswered = self.load.join()
        assert not unanswered
        for thread in (self.big, *self.clients):
            thread.join(60)
            if thread.failure is not None:
                raise thread.failure
        model = ReplayModel()
        for operation in sorted([*answered, *self.big.done], key=lambda operation: operation.revision or 0):
            model.apply(operation, operation.revision or 0)
        model.replay.compacted = self.compacted
        return model

    def check(self, model: ReplayModel) -> Counter[str]:
        """What is open gets everything to the end; then every guarantee for every watch."""
        replay, seen = model.replay, Counter[str]()
        for client in self.clients:
            for watch in client.open:
                client.stream.wait(lambda watch=watch: watch.created, "answer to a creation")
                record = Record.of(watch)
                due = len(replay.select(record.request, record.first_revision, replay.current))
                try:
                    client.stream.wait(lambda w=watch, due=due: len(w.events) >= due or w.canceled, f"{due} events", 60)
                except AssertionError as error:
                    check_all(Record.of(watch), replay)
                    raise Violation("reliable", f"{error}; {len(watch.events)} came; {record}") from None
                record = Record.of(watch)
                client.records.append(record)
                check_all(record, replay, through=0 if watch.canceled else replay.current, etcd=is_self_test())
            for record in client.records:
                check_all(record, replay, etcd=is_self_test())
                seen["watches"] += 1
                seen["events"] += sum(1 for _ in record.events)
                seen["compacted"] += any(response.compact_revision for response in record.responses)
            for stream in client.streams:
                stream.close()
                stream.check()
                seen["progress"] += len(stream.progress_responses)
            seen.update(client.actions)
        return seen


def test_every_watch_in_a_storm_keeps_its_guarantees() -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    actions = int(os.environ.get(ACTIONS_VARIABLE) or ACTIONS)
    print(f"seed {seed} ({SEED_VARIABLE}={seed} does alike, though not the same)")
    flags = ["--experimental-watch-progress-notify-interval", "100ms"]
    with target_server(flags=flags) as server:
        storm = Storm(server, seed)
        seen = storm.check(storm.blow(actions))
    print(dict(seen))
    assert seen["watches"] > 30 and seen["events"] > 2_000, seen
