"""Watchers that do not read, and very many that do: writes go on, and everybody gets everything."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

import pytest

from tests.differential.guarantees import Record, Replay, check_all
from tests.harness import Client, Server, pb, target_server
from tests.harness.rpc import Pending
from tests.harness.watch import Watch, WatchStream

from .followers import SLOW_WINDOW_BYTES, ReplayModel
from .rounds import is_self_test
from .workload import Load

PUTS, VALUE_BYTES, KEYS = 3_000, 2_000, 50
IN_FLIGHT = 100
MANY, CHECKED = 400, 40


@pytest.fixture
def server() -> Iterator[Server]:
    with target_server() as server:
        yield server


def _put_many(client: Client, replay: Replay, count: int) -> None:
    """Pipelined puts of large values over a few keys; the replay learns them from their answers."""
    window: deque[tuple[bytes, bytes, Pending]] = deque()
    done: dict[int, tuple[bytes, bytes]] = {}
    for number in range(count + IN_FLIGHT):
        if number < count:
            key, value = b"slow/%02d" % (number % KEYS), b"%d" % number * (VALUE_BYTES // 4)
            window.append((key, value, client.start("Put", pb.PutRequest(key=key, value=value))))
        if number >= IN_FLIGHT and window:
            key, value, pending = window.popleft()
            done[pending.reply().message.header.revision] = key, value
    assert len(done) == count
    for revision in sorted(done):
        replay.apply(revision, [done[revision]])


def _check(watch: Watch, replay: Replay, through: int = 0) -> None:
    check_all(Record.of(watch), replay, through=through, etcd=is_self_test())


def _slow_streams(server: Server) -> list[tuple[WatchStream, Watch]]:
    """Streams that stop reading, on a whole range, with prev_kv, on one key, and from the past."""
    opened = []
    for fields in (
        {"key": b"slow/", "range_end": b"slow0"},
        {"key": b"\x00", "range_end": b"\x00", "prev_kv": True},
        {"key": b"slow/07", "fragment": True},
        {"key": b"slow/", "range_end": b"slow0", "start_revision": 2},
    ):
        stream = WatchStream(server.endpoint, window_bytes=SLOW_WINDOW_BYTES)
        opened.append((stream, stream.open(**fields)))
        stream.pause()
    return opened


def test_those_who_do_not_read_delay_nobody_and_get_everything(server: Server) -> None:
    replay = Replay()
    slow: list[tuple[WatchStream, Watch]] = []
    try:
        with server.client() as client, WatchStream(server.endpoint) as stream:
            _put_many(client, replay, 10)
            reader = stream.open(b"slow/", b"slow0", prev_kv=True)
            slow = _slow_streams(server)
            _put_many(client, replay, PUTS)
            # Writes are answered and the reader has all of it while the others stand still.
            stream.wait_events(reader, PUTS)
            _check(reader, replay, through=replay.current)
            for _, watch in slow:
                due = len(replay.select(watch.request, 1, replay.current))
                assert len(watch.events) < due / 2, "it did not stand still: nothing was shown"
            for stuck, _ in slow:
                stuck.resume()
            for stuck, watch in slow:
                record = Record.of(watch)
                due = len(replay.select(record.request, record.first_revision, replay.current))
                stuck.wait_events(watch, due)
                _check(watch, replay, through=replay.current)
                stuck.check()
            # And they are in step again.
            _put_many(client, replay, KEYS)
            for stuck, watch in slow:
                stuck.wait_revision(watch, replay.current - KEYS + 1)
    finally:
        for stuck, _ in slow:
            stuck.close()


def test_those_who_do_not_read_over_a_compaction(server: Server) -> None:
    """They get a beginning without a gap; then all the rest, or word that it is compacted."""
    replay = Replay()
    slow: list[tuple[WatchStream, Watch]] = []
    try:
        with server.client() as client:
            _put_many(client, replay, 10)
            slow = _slow_streams(server)
            _put_many(client, replay, PUTS)
            # The value a key has at the compacted revision stays: nothing below is needed by any new watch.
            replay.compacted = replay.current - 2 * KEYS
            client.compact(replay.compacted)
            for stuck, _ in slow:
                stuck.resume()
            for stuck, watch in slow:
                record = Record.of(watch)
                due = len(replay.select(record.request, record.first_revision, replay.current))
                stuck.wait(
                    lambda watch=watch, due=due: len(watch.events) == due or watch.canceled, "everything, or the end"
                )
                through = 0 if watch.canceled else replay.current
                _check(watch, replay, through=through)
                if watch.canceled is None:
                    continue
                assert watch.canceled.compact_revision == replay.compacted, watch.canceled
                again = stuck.open(
                    watch.request.key, watch.request.range_end, start_revision=replay.compacted, prev_kv=True
                )
                due = len(replay.select(again.request, replay.compacted, replay.current))
                stuck.wait_events(again, due)
                _check(again, replay, through=replay.current)
    finally:
        for stuck, _ in slow:
            stuck.close()


def test_many_watches_on_one_stream_next_to_puts(server: Server) -> None:
    """Opened, some cancelled, while writers are at work; every watch has all of its own."""
    rng = random.Random(7)
    with WatchStream(server.endpoint) as stream:
        load = Load(server, rng, 0, [], pause_seconds=0.01)
        load.start()
        load.wait_answers(20)
        watches = []
        for number in range(MANY):
            hot, writer = b"hot/%d" % (number % 4), b"0/%d/" % (number % 4)
            kind = number % 5
            start = rng.choice((0, 0, 2, 15))
            prev = number % 2 == 0
            if kind < 3:
                watches.append(stream.start(hot, start_revision=start, prev_kv=prev))
            elif kind == 3:
                watches.append(stream.start(writer + b"%d" % number, start_revision=start))
            else:
                watches.append(stream.start(writer + b"%d" % (number % 10), writer + b":", start_revision=start))
        stream.wait(lambda: all(watch.created for watch in watches), "answers to all creations")
        for watch in watches[::7]:
            stream.cancel_id(watch.id)
        stream.wait(lambda: all(watch.canceled for watch in watches[::7]), "answers to all cancellations")
        load.wait_answers(400)
        answered, unanswered = load.join()
        assert not unanswered
        model = ReplayModel()
        for operation in sorted(answered, key=lambda operation: operation.revision or 0):
            assert operation.revision is not None
            model.apply(operation, operation.revision)
        replay = model.replay
        for number, watch in enumerate(watches):
            record = Record.of(watch)
            if number % 7:
                due = len(replay.select(record.request, record.first_revision, replay.current))
                stream.wait_events(watch, due)
        for number in rng.sample(range(MANY), CHECKED):
            _check(watches[number], replay, through=replay.current if number % 7 else 0)
        assert [watch.id for watch in watches] == list(range(MANY))
        stream.check()
