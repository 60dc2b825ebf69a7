"""Past events against a plain model of what was written, on a store in memory and on RocksDB."""

import bisect
import random

import pytest

from etcdfast._ext import watchface
from etcdfast._ext.mvcc import Mvcc, StoreCorrupt
from etcdfast._ext.watchface import COMPACTED, FRONT, MORE, NO_DELETE, NO_PUT, PREV_KV, TOO_LARGE, PastEvents
from etcdfast.api.pb import kv_pb2, rpc_pb2
from tests.apply.rig import Rig

ALL = b"\0"


class Shelf:
    """The store in memory: as much of it as Mvcc asks for. `broken_at`: iterators end before that key."""

    def __init__(self):
        self.rows = {}
        self.order = []
        self.broken_at = None
        self.reads = self.walks = 0

    def read(self, key):
        self.reads += 1
        return self.rows.get(key)

    def walk(self, key):
        self.walks += 1
        # A copy: an iterator of RocksDB does not see later writes.
        for found in self.order[bisect.bisect_left(self.order, key) :]:
            if self.broken_at is not None and found >= self.broken_at:
                return
            yield found, self.rows[found]

    def new_batch(self):
        return ShelfBatch()

    def write(self, batch):
        for key, value in batch.rows:
            if value is None:
                if self.rows.pop(key, None) is not None:
                    self.order.remove(key)
            else:
                if key not in self.rows:
                    bisect.insort(self.order, key)
                self.rows[key] = value


class ShelfBatch:
    def __init__(self):
        self.rows = []

    def put(self, key, value):
        self.rows.append((key, value))

    def delete(self, key):
        self.rows.append((key, None))

    def __len__(self):
        return len(self.rows)


def wire(events):
    return rpc_pb2.WatchResponse(events=events).SerializeToString()


class World:
    """Mvcc on a Shelf, and beside it the list of all that happened."""

    def __init__(self, shelf=None):
        self.shelf = shelf or Shelf()
        self.mvcc = Mvcc(self.shelf.read, self.shelf.walk, self.shelf.new_batch, self.shelf.write)
        self.revisions = {}  # revision -> [(key, kv or None, the kv before or None)]
        self.live = {}
        self.turns = 0

    def write(self, changes, end_turn=True):
        main = self.mvcc.current + 1
        events = []
        for key, value in changes:
            before = self.live.get(key)
            if value is None:
                if before is None:
                    continue
                del self.live[key]
                events.append((key, None, before))
                continue
            kv = kv_pb2.KeyValue(
                key=key,
                value=value,
                mod_revision=main,
                create_revision=before.create_revision if before else main,
                version=before.version + 1 if before else 1,
            )
            self.live[key] = kv
            events.append((key, kv, before))
        assert watchface.write(self.mvcc, changes) == bool(events)
        if events:
            self.revisions[main] = events
        if end_turn:
            self.end_turn()

    def end_turn(self):
        self.turns += 1
        self.mvcc.write_batch(self.turns, 2)

    def compact(self, revision, drop=True):
        self.mvcc.set_compacted(revision)
        if not drop:
            return
        assert self.mvcc.compact_begin(revision) == 0
        done = False
        while not done:
            batch = self.shelf.new_batch()
            _, done = self.mvcc.compact_step(1000, 100, batch)
            self.shelf.write(batch)

    def expected(self, key, end, options, from_rev, upto=None):
        """[(revision, its events as bytes)]"""
        given = []
        for revision, events in sorted(self.revisions.items()):
            if revision < from_rev or revision > (upto or self.mvcc.current):
                continue
            chosen = []
            for name, kv, before in events:
                if not (name == key if not end else name >= key and (end == ALL or name < end)):
                    continue
                if options & (NO_DELETE if kv is None else NO_PUT):
                    continue
                prev = before if options & PREV_KV and revision - 1 >= self.mvcc.compacted else None
                if kv is None:
                    gone = kv_pb2.KeyValue(key=name, mod_revision=revision)
                    chosen.append(kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=gone, prev_kv=prev))
                else:
                    chosen.append(kv_pb2.Event(kv=kv, prev_kv=prev))
            if chosen:
                given.append((revision, wire(chosen)))
        return given


def drain(past, budget=1 << 40, bytes_max=1 << 40, between=None):
    """All steps to the end: (last status, [(revision, events)])."""
    given = []
    for _ in range(1_000_000):
        before = past.next_rev
        status, more = past.step(budget, bytes_max)
        given += more
        assert all(revision < past.next_rev for revision, _ in more) and past.next_rev >= before
        if status != MORE:
            return status, given
        if between is not None:
            between()
    raise AssertionError("no end")


def random_changes(rng, keys, most=4):
    chosen = rng.sample(keys, min(len(keys), rng.choice((1, 1, 1, 2, most))))
    return [(key, None if rng.random() < 0.3 else rng.randbytes(rng.choice((0, 3, 20, 200)))) for key in chosen]


KEYS = [bytes([97 + i // 6, 97 + i % 6]) for i in range(36)] + [b"a", b"\0", b"\xff\xff", b"c" * 130]
RANGES = [(b"aa", b""), (b"nothing", b""), (b"a", b"b"), (b"b", b"d"), (b"\0", ALL), (b"c", ALL), (b"bb", b"bc")]


# ---- one event ----


def test_events_are_as_etcd_writes_them():
    kv = kv_pb2.KeyValue(key=b"k" * 100, value=b"v" * 300, mod_revision=1 << 40, create_revision=7, version=3, lease=9)
    prev = kv_pb2.KeyValue(key=b"k" * 100, mod_revision=8, create_revision=7, version=2)
    record = kv.SerializeToString()
    assert watchface.event(1 << 40, record) == wire([kv_pb2.Event(kv=kv)])
    with_prev = kv_pb2.Event(kv=kv, prev_kv=prev)
    assert watchface.event(1 << 40, record, prev=prev.SerializeToString()) == wire([with_prev])
    tombstone = kv_pb2.KeyValue(key=b"k" * 100).SerializeToString()
    gone = kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=kv_pb2.KeyValue(key=b"k" * 100, mod_revision=300))
    assert watchface.event(300, tombstone, True) == wire([gone])
    gone.prev_kv.CopyFrom(prev)
    assert watchface.event(300, tombstone, True, prev.SerializeToString()) == wire([gone])
    with pytest.raises(ValueError):
        watchface.event(300, b"\x0a\x7fshort", True)


def test_previous_state():
    world = World()
    for value in (b"1", b"2", None, b"3"):
        world.write([(b"k", value)])
    states = [watchface.previous(world.mvcc, b"k", main) for main in range(8)]
    values = [kv_pb2.KeyValue.FromString(state).value if state else None for state in states]
    assert values == [None, None, None, b"1", b"2", None, b"3", b"3"]
    assert watchface.previous(world.mvcc, b"j", 5) is None
    world.compact(3, drop=False)  # asked for; the index still has everything
    assert watchface.previous(world.mvcc, b"k", 3) is None
    assert kv_pb2.KeyValue.FromString(watchface.previous(world.mvcc, b"k", 4)).value == b"2"


# ---- against the model ----


@pytest.mark.parametrize("seed", range(12))
def test_random_histories(seed):
    rng = random.Random(seed)
    world = World()
    keys = rng.sample(KEYS, rng.choice((1, 5, 40)))
    for _ in range(rng.choice((5, 60, 300))):
        world.write(random_changes(rng, keys), end_turn=rng.random() < 0.5)
    world.end_turn()
    if rng.random() < 0.5:
        world.compact(rng.randint(2, world.mvcc.current), drop=rng.random() < 0.7)
    for key, end in [*RANGES, (rng.choice(keys), b""), (rng.choice(keys), b"")]:
        for options in (0, PREV_KV, NO_PUT, NO_DELETE, PREV_KV | NO_PUT, NO_PUT | NO_DELETE):
            from_rev = rng.randint(max(world.mvcc.compacted, 1), world.mvcc.current + 2)
            past = PastEvents(world.mvcc, key, end, options, from_rev)
            assert past.opened == FRONT
            status, given = drain(past, rng.choice((1, 2, 7, 50, 1 << 20)), rng.choice((1, 100, 1 << 20)))
            assert status == FRONT and past.next_rev == max(world.mvcc.current + 1, from_rev)
            assert given == world.expected(key, end, options, from_rev), (key, end, options, from_rev)


@pytest.mark.parametrize("seed", range(8))
def test_writes_and_compactions_between_two_steps(seed):
    """What was given is right up to the revision it goes to; a compaction ends it instead of leaving holes."""
    rng = random.Random(100 + seed)
    world = World()
    for _ in range(100):
        world.write(random_changes(rng, KEYS, 30))
    compact_at = rng.choice((0, 0.02, 0.1))

    def between():
        for _ in range(rng.randrange(3)):
            world.write(random_changes(rng, KEYS), end_turn=rng.random() < 0.7)
        if rng.random() < compact_at:
            world.compact(rng.randint(max(world.mvcc.compacted, 1) + 1, world.mvcc.current))

    for key, end in RANGES:
        for options in (0, PREV_KV):
            from_rev = rng.randint(max(world.mvcc.compacted, 1), world.mvcc.current)
            past = PastEvents(world.mvcc, key, end, options, from_rev)
            given, status = [], MORE
            expected = []
            for _ in range(400):
                status, more = past.step(rng.choice((1, 5, 40)), 200)
                # prev_kv depends on what was compacted when the event was read.
                expected += world.expected(key, end, options, from_rev, past.next_rev - 1)
                from_rev = max(from_rev, past.next_rev)
                given += more
                if options & PREV_KV and compact_at:
                    given, expected = [(r, bare(e)) for r, e in given], [(r, bare(e)) for r, e in expected]
                assert given == expected
                if status != MORE:
                    break
                between()
            world.end_turn()
            if status == COMPACTED:
                assert past.next_rev < world.mvcc.compacted
            else:
                status, more = drain(past)
                assert status == FRONT and past.next_rev == world.mvcc.current + 1
                if not options:
                    assert given + more == expected + world.expected(key, end, options, from_rev)


def bare(events):
    response = rpc_pb2.WatchResponse.FromString(events)
    for event in response.events:
        event.ClearField("prev_kv")
    return response.SerializeToString()


def test_going_on_at_the_front():
    world = World()
    for key, end in ((b"k", b""), (b"k", b"l")):
        past = PastEvents(world.mvcc, key, end, PREV_KV, world.mvcc.current + 1)
        assert past.step() == (FRONT, [])
        for n in range(5):
            start = world.mvcc.current + 1
            world.write([(b"k", b"%d" % n), (b"other", b"x")])
            assert past.step() == (FRONT, world.expected(key, end, PREV_KV, start))


def test_what_is_not_written_yet_is_not_shown():
    world = World()
    world.write([(b"k", b"1")])
    for key, end in ((b"k", b""), (b"\0", ALL)):
        first = world.mvcc.current
        past = PastEvents(world.mvcc, key, end, 0, 1)
        world.write([(b"k", b"2")], end_turn=False)
        assert past.step() == (MORE, world.expected(key, end, 0, 1, first))
        world.end_turn()
        assert past.step() == (FRONT, world.expected(key, end, 0, first + 1))


# ---- the ways to read ----


def test_a_range_with_little_in_it_is_not_walked_for():
    world = World()
    for n in range(3000):
        world.write([(b"busy%03d" % (n % 400), b"v")], end_turn=n % 10 == 9)
        if n % 500 == 0:
            world.write([(b"quiet%d" % n, b"v"), (b"quiet", None if n % 1000 else b"w")])
    world.end_turn()
    for options in (0, PREV_KV, NO_PUT, NO_DELETE):
        world.shelf.reads = world.shelf.walks = 0
        past = PastEvents(world.mvcc, b"quiet", b"quieu", options, 1)
        assert drain(past, 100) == (FRONT, world.expected(b"quiet", b"quieu", options, 1))
        assert world.shelf.reads <= 30 and world.shelf.walks <= 6
    past = PastEvents(world.mvcc, b"busy", b"c", 0, 1)
    world.shelf.reads = 0
    assert drain(past, 1000) == (FRONT, world.expected(b"busy", b"c", 0, 1))
    assert world.shelf.reads == 0


def test_a_key_written_often_is_stepped_through():
    world = World()
    for n in range(1500):
        world.write([(b"k", None if n % 7 == 3 else b"%d" % n)], end_turn=n % 3 == 0)
        if n % 100 == 0:
            for _ in range(40):
                world.write([(b"other", b"x")])
    world.end_turn()
    for options in (0, PREV_KV, NO_PUT, NO_DELETE | PREV_KV):
        world.shelf.reads = 0
        past = PastEvents(world.mvcc, b"k", b"", options, 1)
        assert drain(past, 300, 5000) == (FRONT, world.expected(b"k", b"", options, 1))
        assert world.shelf.reads < 20 or options & PREV_KV, options


def test_a_revision_of_ten_thousand_events_stays_whole():
    world = World()
    names = [b"many/%05d" % n for n in range(10_000)]
    world.write([(name, b"v" * 50) for name in names])
    world.write([(b"single", b"v")])
    world.write([(name, None) for name in names])
    world.write([(b"many/last", b"v")])
    for options in (0, PREV_KV):
        for budget, bytes_max in ((700, 1 << 20), (1 << 20, 1000), (10_001, 1)):
            past = PastEvents(world.mvcc, b"many", b"many0", options, 1)
            status, given = drain(past, budget, bytes_max)
            assert status == FRONT and given == world.expected(b"many", b"many0", options, 1)
            assert len(given) == 3
    # The same by a list: few events of the range beside many others.
    some = b"many/00500"
    for end_turn in [False] * 9_999 + [True]:
        world.write([(b"y", b"")], end_turn)
    past = PastEvents(world.mvcc, b"many", some, 0, 1)
    _, given = past.step(150)
    assert past.listed and given == []
    status, more = drain(past, 150)
    assert status == FRONT and given + more == world.expected(b"many", some, 0, 1)


def test_a_revision_half_read_is_dropped_by_a_compaction():
    world = World()
    world.write([(b"k%03d" % n, b"") for n in range(100)])
    past = PastEvents(world.mvcc, b"k", b"l", 0, 1)
    assert past.step(50) == (MORE, [])
    world.write([(b"k000", b"")])
    world.compact(3)
    assert past.step(50) == (COMPACTED, [])
    assert past.step(50) == (COMPACTED, [])


def test_opening_below_the_compacted_revision():
    world = World()
    for n in range(10):
        world.write([(b"k", b"%d" % n)])
    world.compact(6)
    for end in (b"", b"l"):
        assert PastEvents(world.mvcc, b"k", end, 0, 5).opened == COMPACTED
        past = PastEvents(world.mvcc, b"k", end, PREV_KV, 6)
        assert past.opened == FRONT
        assert past.step() == (FRONT, world.expected(b"k", end, PREV_KV, 6))


@pytest.mark.parametrize("others", [0, 1500])
def test_a_revision_too_large_for_the_buffer(others):
    """The limit is that of a buffer: 256 MiB. All but the end of it is taken here before the step begins."""
    limit = 256 << 20
    world = World()
    world.write([(b"k", b"first")])
    world.write([(b"k%03d" % n, b"v" * 50) for n in range(100)])
    for _ in range(others):  # then the range is read by list
        world.write([(b"other", b"")])
    world.write([(b"k", b"last")])
    expected = world.expected(b"k", b"l", 0, 1)
    for options in (0, PREV_KV):
        past = PastEvents(world.mvcc, b"k", b"l", options, 1)
        assert past.step(before=limit - 2000) == (MORE, expected[:1])
        assert past.listed == (others > 0)
        for _ in range(2):
            assert past.step(before=limit - 2000) == (TOO_LARGE, []) and past.next_rev == 3
        assert past.step(30) == (MORE, [])  # the revision is set aside
        assert past.step(30) == (MORE, [])
        assert past.step(before=limit - 2000) == (TOO_LARGE, [])
        status, given = drain(past)
        assert status == FRONT and [revision for revision, _ in given] == [3, world.mvcc.current]
        if not options:
            assert given == expected[1:]


def test_every_step_gets_on_even_when_no_list_is_worth_while():
    """A reader that is given up after each step, as when there are too many of them, still comes to the end."""
    world = World()
    for n in range(4000):
        world.write([(b"k%02d" % (n % 50), b"v")], end_turn=n % 100 == 99)
    for budget in (1, 64, 512):
        given, next_rev, steps = [], 1, 0
        while next_rev <= world.mvcc.current and steps < 600:
            past = PastEvents(world.mvcc, b"k", b"l", 0, next_rev)
            _, more = past.step(budget)
            given += more
            assert past.next_rev > next_rev
            next_rev = past.next_rev
            steps += 1
        assert steps <= 4000 // max(budget // 3, 1)
        expected = world.expected(b"k", b"l", 0, 1)
        assert given == expected[: len(given)] and (budget == 1 or len(given) == len(expected))


# ---- what is not there must not be passed over ----


def damaged(world, at):
    world.shelf.broken_at = b"k" + at.to_bytes(8, "big")
    return world


def test_a_walk_that_ends_early_is_noticed():
    world = World()
    for n in range(200):
        world.write([(b"k%d" % (n % 5), b"%d" % n)])
    world.mvcc.meta_put(b"bucket", b"value", 0, 0)
    world.end_turn()
    damaged(world, 150)
    past = PastEvents(world.mvcc, b"k", b"l", 0, 1)
    status, given = past.step(100)
    assert status == MORE
    with pytest.raises(StoreCorrupt, match="damaged"):
        drain(past, 100)
    # All revisions are there and the applied record behind them is not: the walk cannot know the difference.
    world.shelf.broken_at = b"k" + world.mvcc.current.to_bytes(8, "big") + b"\xff"
    with pytest.raises(StoreCorrupt, match="damaged"):
        drain(PastEvents(world.mvcc, b"k", b"l", 0, 1))


def test_a_list_reads_past_the_early_end_of_a_walk():
    world = World()
    for n in range(200):
        world.write([(b"k", b"%d" % n)])
    damaged(world, 150)
    assert drain(PastEvents(world.mvcc, b"k", b"", 0, 1)) == (FRONT, world.expected(b"k", b"", 0, 1))
    key = b"k" + (180).to_bytes(8, "big") + b"_" + bytes(8)
    del world.shelf.rows[key]
    with pytest.raises(StoreCorrupt, match="180_0"):
        drain(PastEvents(world.mvcc, b"k", b"", 0, 1))


def test_current_revision_from_a_compaction():
    """After some restarts the current revision has no applied record yet; that is no damage."""
    world = World()
    for n in range(5):
        world.write([(b"k%d" % n, b"v")])
    world.mvcc.raise_current(20)
    past = PastEvents(world.mvcc, b"k", b"l", 0, 1)
    assert past.step() == (FRONT, world.expected(b"k", b"l", 0, 1))
    assert past.next_rev == 21


@pytest.mark.parametrize("broken", [b"\x0a\xff", b"\x0a\x20short", b"\xff\xff"])
def test_a_record_that_is_no_keyvalue(broken):
    world = World()
    world.write([(b"a", b"v"), (b"b", b"v")])
    key = b"k" + (2).to_bytes(8, "big") + b"_" + bytes(7) + b"\1"
    assert key in world.shelf.rows
    world.shelf.rows[key] = broken
    with pytest.raises(StoreCorrupt):
        PastEvents(world.mvcc, b"a", b"c", 0, 1).step()


def test_many_records_of_other_buckets_are_jumped_over():
    world = World()
    world.write([(b"k", b"1")])
    for n in range(2000):
        world.mvcc.meta_put(b"l%08d" % n, b"lease", 0, 0)
    world.end_turn()
    world.write([(b"k", b"2")])
    for n in range(2000):
        world.mvcc.meta_put(b"m%08d" % n, b"lease", 0, 0)
    world.end_turn()
    past = PastEvents(world.mvcc, b"\0", ALL, 0, 1)
    assert past.step(80) == (FRONT, world.expected(b"\0", ALL, 0, 1))


# ---- RocksDB ----


def test_on_the_real_store(tmp_path):
    rng = random.Random(4)
    rig = Rig(tmp_path / "store")
    try:
        keys = [b"key%02d" % n for n in range(40)]
        for n in range(3000):
            if rng.random() < 0.2:
                rig.propose("DeleteRange", rpc_pb2.DeleteRangeRequest(key=rng.choice(keys)), asked=False)
            else:
                rig.propose(
                    "Put",
                    rpc_pb2.PutRequest(key=rng.choice(keys), value=rng.randbytes(rng.randint(0, 99))),
                    asked=False,
                )
            if n % 500 == 0:
                rig.settle()
        rig.settle()
        mvcc = rig.process.mvcc
        by_key = []
        for key in keys:
            status, given = drain(PastEvents(mvcc, key, b"", PREV_KV), 100)
            assert status == FRONT
            by_key += given
            prev = None
            for revision, events in given:
                (event,) = rpc_pb2.WatchResponse.FromString(events).events
                assert event.kv.mod_revision == revision and event.kv.key == key
                assert (event.prev_kv if event.HasField("prev_kv") else None) == prev
                prev = None if event.type == kv_pb2.Event.DELETE else event.kv
            live = rig.range(key).message.kvs
            assert [prev] == list(live) if live else prev is None
        status, walked = drain(PastEvents(mvcc, b"key", b"kez", PREV_KV), 333, 5000)
        assert (status, walked) == (FRONT, sorted(by_key))
        assert len(walked) == mvcc.current - 1
    finally:
        rig.close()
