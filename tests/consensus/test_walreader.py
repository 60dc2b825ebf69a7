"""Entries read back from the log's files: against a list as model, under overwrites, cuts, snapshots and purges."""

import random
import threading

import pytest

from etcdfast.consensus.snapshots import Snapshots
from etcdfast.consensus.walreader import GONE, LOADING, TABLES_MAX, WalReader
from etcdfast.formats import wal
from tests.harness.wait import wait_until

METADATA = b"\x08\x81\x01\x10\x82\x02"
CONF_STATE = b"\x08\x81\x01\x28\x00"
SMALL = 65536


class Log:
    """A log of {index: (term, data)}, its files, and a reader of them."""

    def __init__(self, directory, **settings):
        self.directory = str(directory)
        self.settings = {"segment_bytes": SMALL, "prewrite": False, "max_wals": 0, **settings}
        self.disk = wal.create(self.directory, METADATA, **self.settings)
        self.entries = {}
        self.last = 0
        self.woken = threading.Event()
        self.reader = self.new_reader()

    def new_reader(self):
        return WalReader(self.directory, self.disk, lambda index: self.entries.get(index, (0, b""))[0], self.woken.set)

    def append(self, term, data, index=None):
        index = index or self.last + 1
        for later in range(index, self.last + 1):
            self.entries.pop(later, None)
        self.disk.append_entry(0, term, index, data)
        self.entries[index] = (term, data)
        self.last = index

    def flush(self):
        self.disk.flush()

    def receive_snapshot(self, index, term):
        self.disk.append_snapshot(index, term, CONF_STATE)
        self.disk.append_state(term, 0, index)
        self.flush()
        self.entries.clear()
        self.last = index

    def read(self, first, last):
        """[(index, term, data)], or GONE."""
        out = []
        while first <= last:
            self.woken.clear()
            piece = self.reader.entries(first, last)
            if piece is LOADING:
                assert self.woken.wait(20)
                continue
            if piece is GONE:
                return GONE
            assert piece.first == first <= piece.last <= last
            for row in range(piece.row, piece.row + piece.last - piece.first + 1):
                _, term, index, data = piece.table.entry(row)
                out.append((index, term, data or b""))
            first = piece.last + 1
        return out

    def expected(self, first, last):
        return [(index, *self.entries[index]) for index in range(first, last + 1)]

    def reopen(self, snapshot=(0, 0)):
        self.reader.close()
        self.disk.close()
        found, self.disk = wal.open_for_append(self.directory, snapshot, **self.settings)
        assert found.position[2] == self.disk.last_index == self.last
        assert [found.entries.entry(row)[2] for row in range(len(found.entries))] == sorted(self.entries)
        self.reader = self.new_reader()

    def close(self):
        self.reader.close()
        self.disk.close()


@pytest.fixture
def log(tmp_path):
    made = Log(tmp_path / "wal")
    yield made
    made.close()


def test_entries_of_many_segments(log):
    for index in range(1, 2001):
        log.append(1, bytes([index & 0xFF]) * (index % 300))
        if index % 50 == 0:
            log.flush()
    assert len(log.disk.segments()) > TABLES_MAX + 1
    assert log.read(1, 2000) == log.expected(1, 2000)
    assert log.read(1, 10) == log.expected(1, 10)


def test_the_open_segment_is_read_as_it_grows(log):
    for index in range(1, 200):
        log.append(1, b"x" * 20)
        log.flush()
        assert log.read(max(index - 5, 1), index) == log.expected(max(index - 5, 1), index)
    assert len(log.disk.segments()) == 1


@pytest.mark.parametrize("seed", range(8))
def test_any_history_is_read_as_the_log_has_it(tmp_path, seed):
    chance = random.Random(seed)
    log = Log(tmp_path / "wal")
    term, floor, floor_term = 1, 0, 0
    for _ in range(400):
        what = chance.random()
        if what < 0.1 and log.last > floor:
            # A new leader's log: some of the tail goes.
            term += 1
            index = chance.randrange(max(floor, log.last - 60) + 1, log.last + 1)
            log.append(term, b"over" * chance.randrange(40), index)
        elif what < 0.11:
            term += 1
            floor = log.last + chance.randrange(-20, 500)
            floor = max(floor, 1)
            floor_term = term
            log.receive_snapshot(floor, term)
        else:
            for _ in range(chance.randrange(1, 40)):
                log.append(term, chance.randbytes(chance.randrange(200)))
        log.flush()
        if chance.random() < 0.02:
            log.reopen((floor, floor_term))
        if log.last > floor and chance.random() < 0.5:
            first = chance.randrange(floor + 1, log.last + 1)
            last = chance.randrange(first, log.last + 1)
            assert log.read(first, last) == log.expected(first, last)
    if log.last > floor:
        assert log.read(floor + 1, log.last) == log.expected(floor + 1, log.last)
    log.close()


def test_what_nobody_asks_for_is_let_go(log):
    for _ in range(100):
        log.append(1, b"x" * 100)
    log.flush()
    log.read(1, 100)
    piece = log.reader.entries(1, 100)
    for _ in range(60):
        log.reader.tick()
    assert not log.reader._segments
    assert piece.table.entry(0)[2] == 1  # who holds a piece holds its memory
    assert log.read(1, 100) == log.expected(1, 100)


def test_segments_wanted_by_a_follower_are_kept_up_to_the_bound(tmp_path):
    log = Log(tmp_path / "wal", max_wals=2, keep_wals_max=6)

    def grow(segments):
        while log.disk.segments()[-1][0] < segments:
            log.append(1, b"x" * 1000)
            log.flush()

    grow(4)
    log.disk.keep_from(10)
    log.disk.release_to(log.last)
    grow(5)
    wait_until(lambda: log.disk.spare_ready, "the helper has nothing to do")
    assert log.disk.oldest_index == 0
    assert log.read(10, 20) == log.expected(10, 20)
    grow(9)
    log.disk.release_to(log.last)
    wait_until(lambda: len(log.disk.segments()) == 6, "more than the bound goes")
    oldest = log.disk.oldest_index
    assert oldest == log.reader.first_index > 20
    assert log.read(10, 20) is GONE
    assert log.read(oldest, log.last) == log.expected(oldest, log.last)
    log.disk.keep_from(0)
    wait_until(lambda: len(log.disk.segments()) == 2, "nobody wants them any more")
    assert log.read(log.disk.oldest_index, log.last) == log.expected(log.disk.oldest_index, log.last)
    log.close()


def test_a_file_that_goes_while_it_is_read(tmp_path):
    log = Log(tmp_path / "wal", max_wals=1)
    for _ in range(300):
        log.append(1, b"x" * 1000)
        log.flush()
    assert log.read(1, 10) == log.expected(1, 10)
    log.disk.release_to(log.last)
    # One before the last stays: entries up to the released index may be in it.
    wait_until(lambda: len(log.disk.segments()) == 2, "purged")
    assert log.reader.entries(1, 10) is GONE
    log.close()


def test_damage_is_named(log):
    for _ in range(300):
        log.append(1, b"x" * 1000)
        log.flush()
    first = wal.list_segments(log.directory)[0].path
    with open(first, "r+b") as file:
        file.seek(5000)
        file.write(b"\xff")
    with pytest.raises(wal.WalCorrupt, match="crc mismatch"):
        log.read(1, 10)


def test_where_the_log_is_kept_from(tmp_path):
    snapshots = Snapshots(str(tmp_path), 10_000, (20_000, 3), catchup_entries=5000)
    assert snapshots.keep_from() == 0  # no followers
    assert snapshots.keep_from([17_000, 400]) == 400
    assert snapshots.keep_from([17_000]) == 15_001
    assert Snapshots(str(tmp_path), 10_000, (0, 0)).keep_from([7]) == 1
