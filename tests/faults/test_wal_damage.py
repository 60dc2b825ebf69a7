"""Damage at every place of a small log: a repaired tail or a named error, never silence.

Three kinds. A torn write leaves some sectors of the last batch unwritten: it must always be repaired, with
every earlier batch whole. A flipped bit in any record must always be named. A lost sector anywhere must be
named as soon as anything that survives shows that acknowledged records are gone.
"""

import os
import random

import pytest

from etcdfast._ext import walscan
from etcdfast.formats import wal
from tests.unit import walmodel

SECTOR = 512
METADATA = b"\x08\x81\x01\x10\x82\x02"
SMALL = 65536
OPEN = {"segment_bytes": SMALL, "prewrite": False}


class Built:
    """A log of several batches: its file after each of them, and what it then held."""

    def __init__(self, directory, batches, seed):
        self.directory = str(directory)
        rng = random.Random(seed)
        log = wal.create(self.directory, METADATA, **OPEN)
        (self.segment,) = wal.list_segments(self.directory)
        self.files, index = [], 0
        self.contents = []
        for sizes in batches:
            for size in sizes:
                index += 1
                # Zeros inside, as values have them: the torn-write test must not fall for those.
                data = (
                    rng.randbytes(size) if size < 1500 else rng.randbytes(300) + bytes(size - 600) + rng.randbytes(300)
                )
                log.append_entry(0, 3, index, data)
            log.append_state(3, 0x81, index)
            log.flush()
            with open(self.segment.path, "rb") as file:
                self.files.append(file.read())
        os.close(os.open(self.segment.path, os.O_RDONLY))
        del log  # stopped without the closing state: the file stays as after the last batch
        with open(self.segment.path, "wb") as file:
            file.write(self.files[-1])
        self.frames = walmodel.frames(self.files[-1])
        self.end = self.frames[-1].end
        self.stops = {0, *(f.end for f in self.frames)}
        self.ends = [walmodel.frames(content)[-1].end for content in self.files]
        # Short files are legal; the 64 KiB of zeros behind would only make every scan slow.
        self.short = self.files[-1][: (self.end // SECTOR + 2) * SECTOR]
        self.entries = [f.data for f in self.frames if f.type == walmodel.ENTRY]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    # Consecutive sizes: some record is 64 bytes, where one flipped bit makes the length word zero, "the end". The last
    # batch has one as well: no later hard state bears witness there.
    batches = [[0, 5, 100], [600], [*range(30, 50)], [37, 250, 1800, 64], [1], [90] * 8, [700, 3], [*range(42, 50)]]
    return Built(tmp_path_factory.mktemp("damage") / "wal", batches, seed=20261120)


def scan(content):
    """(code, scan) of a file's content as the only and last segment."""
    found = walscan.LogScan(0)
    return found.segment(bytes(content), True), found


def read_entries(found):
    table = found.table
    return [
        walmodel.entry(kind, term, index, data)
        for kind, term, index, data in (table.entry(i) for i in range(len(table)))
    ]


def assert_prefix(built, found):
    """What was read is exactly the first records of the log, and it stopped at the end of one of them."""
    got = read_entries(found)
    assert got == built.entries[: len(got)]
    assert found.offset in built.stops


def test_the_undamaged_log_reads_whole(built):
    code, found = scan(built.files[-1])
    assert code == walscan.END
    assert read_entries(found) == built.entries
    assert found.offset == built.end


def test_the_log_has_the_awkward_records(built):
    """What the other tests rely on to be able to fail."""
    last_batch = [f for f in built.frames if f.offset >= built.ends[-2]]
    lengths = {int.from_bytes(built.files[-1][f.offset : f.offset + 8], "little") for f in last_batch}
    assert 64 in lengths
    assert any(f.data and bytes(2 * SECTOR) in f.data for f in built.frames)
    assert any(f.offset // SECTOR != (f.end - 1) // SECTOR for f in built.frames)


def test_cut_off_at_every_byte(built):
    content = built.short
    for length in range(len(content) + 1):
        code, found = scan(content[:length])
        inside = [f for f in built.frames if f.end <= length]
        if len(inside) < 2:
            # Not even the head: that cannot be a torn write, the head is durable before the file has its name.
            assert code not in (walscan.END, walscan.TORN), length
            continue
        assert code in (walscan.END, walscan.TORN), (length, walscan.describe(code))
        assert_prefix(built, found)
        assert found.offset == inside[-1].end, length


def test_every_single_bit_of_every_record(built):
    content = bytearray(built.short)
    missed = []
    for offset in range(built.end):
        for bit in range(8):
            content[offset] ^= 1 << bit
            code, found = scan(content)
            assert found.offset in built.stops
            # A changed first seed shows at the record after it.
            assert found.offset <= max(offset, built.frames[0].end)
            content[offset] ^= 1 << bit
            if code in (walscan.END, walscan.TORN):
                missed.append((offset, bit, code))
    assert not missed, f"flips that were not named: {missed[:20]} ({len(missed)})"


def test_every_single_bit_after_the_end(built):
    """Zeros that are not zero any more: harmless or named, but every record is still there."""
    content = bytearray(built.short)
    whole = scan(content)[1].table.rows()
    for offset in range(built.end, len(content)):
        for bit in range(8):
            content[offset] ^= 1 << bit
            code, found = scan(content)
            content[offset] ^= 1 << bit
            assert found.table.rows() == whole, (offset, bit)
            assert found.offset == built.end
            assert code != walscan.OK


def test_every_lost_sector(built):
    """Any run of sectors zero: a prefix, and a named error if a surviving hard state covers what is missing."""
    sectors = -(-built.end // SECTOR)
    silent = 0
    for first in range(sectors):
        for last in range(first, sectors):
            content = bytearray(built.short)
            content[first * SECTOR : (last + 1) * SECTOR] = bytes((last + 1 - first) * SECTOR)
            code, found = scan(content)
            assert_prefix(built, found)
            if code not in (walscan.END, walscan.TORN):
                continue
            silent += 1
            kept = len(found.table)
            survivors = [
                walmodel.HardState.FromString(f.data).commit
                for before, f in zip(built.frames, built.frames[1:], strict=False)
                if f.type == walmodel.STATE and before.offset >= (last + 1) * SECTOR
            ]
            assert not [commit for commit in survivors if commit > kept], (first, last, kept)
    assert silent, "no run of sectors at the end was taken for a torn write"


@pytest.mark.parametrize("batch", range(1, 8))
def test_torn_batch_is_always_repaired(built, batch):
    """Any subset of the last batch's sectors on disk, the others as before: earlier batches stay whole."""
    seed = 1000 + batch
    rng = random.Random(seed)
    before, after = built.files[batch - 1], built.files[batch]
    first, last = built.ends[batch - 1] // SECTOR, -(-built.ends[batch] // SECTOR)
    count = last - first
    subsets = range(2**count) if count <= 8 else [rng.getrandbits(count) for _ in range(400)]
    outcomes = set()
    for subset in subsets:
        content = bytearray(before)
        for i in range(count):
            if subset >> i & 1:
                at = (first + i) * SECTOR
                content[at : at + SECTOR] = after[at : at + SECTOR]
        code, found = scan(content)
        assert code in (walscan.END, walscan.TORN), (seed, batch, bin(subset), walscan.describe(code))
        assert_prefix(built, found)
        assert found.offset >= built.ends[batch - 1], (seed, batch, bin(subset))
        outcomes.add(code)
    assert outcomes


def test_repair_keeps_a_copy_and_goes_on(built, tmp_path):
    """The whole way on real files: damage, open, append, read again."""
    for case, frame in enumerate(built.frames[3:]):
        directory = str(tmp_path / f"w{case}")
        os.makedirs(directory)
        path = os.path.join(directory, os.path.basename(built.segment.path))
        torn = built.files[-1][: frame.offset + 9]
        with open(path, "wb") as file:
            file.write(torn)
        with pytest.raises(wal.WalCorrupt, match="torn"):
            wal.read(directory)
        back, log = wal.open_for_append(directory, **OPEN)
        assert back.repaired == path + ".broken"
        with open(back.repaired, "rb") as file:
            assert file.read() == torn
        kept = len(back.entries)
        assert back.position[0] == frame.offset
        log.append_entry(0, 4, kept + 1, b"after the repair")
        log.close()
        again = wal.read(directory)
        assert len(again.entries) == kept + 1
        assert again.entries.entry(kept) == (0, 4, kept + 1, b"after the repair")
        with open(path, "rb") as file:
            walmodel.frames(file.read())


def test_fatal_damage_names_segment_and_offset_and_changes_nothing(built, tmp_path):
    directory = str(tmp_path / "wal")
    os.makedirs(directory)
    path = os.path.join(directory, os.path.basename(built.segment.path))
    victim = built.frames[6]
    content = bytearray(built.files[-1])
    content[victim.end - 12] ^= 0x10
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises(wal.WalCorrupt) as caught:
        wal.open_for_append(directory, **OPEN)
    assert caught.value.path == path
    assert caught.value.offset == victim.offset
    assert path in str(caught.value)
    assert str(victim.offset) in str(caught.value)
    assert "crc mismatch" in str(caught.value)
    with open(path, "rb") as file:
        assert file.read() == content
    assert os.listdir(directory) == [os.path.basename(path)]


def test_only_the_last_segment_may_be_torn(tmp_path):
    directory = str(tmp_path / "wal")
    log = wal.create(directory, METADATA, max_wals=0, **OPEN)
    index = 0
    while log.stats()["cuts"] < 3:
        index += 1
        log.append_entry(0, 1, index, bytes([index % 256]) * 5000)
        log.flush()
    log.close()
    segments = wal.list_segments(directory)
    for victim in segments[:-1]:
        with open(victim.path, "rb") as file:
            whole = file.read()
        frames = walmodel.log([whole])[0] if victim is segments[0] else None
        for length in (len(whole) - 8, len(whole) - 5100, len(whole) // 2):
            with open(victim.path, "wb") as file:
                file.write(whole[:length])
            with pytest.raises((wal.WalCorrupt, wal.WalMissing)):
                wal.open_for_append(directory, **OPEN)
        if frames:
            # Cut off exactly between two records: only the next segment's seed can tell.
            with open(victim.path, "wb") as file:
                file.write(whole[: frames[-2].end])
            with pytest.raises(wal.WalCorrupt, match="crc"):
                wal.open_for_append(directory, **OPEN)
        with open(victim.path, "wb") as file:
            file.write(whole)
    assert len(wal.read(directory).entries) == index


def test_random_damage_never_goes_unnoticed(built):
    """Up to four random changes: whatever is read is a prefix, bit for bit."""
    seed = int(os.environ.get("ETCDFAST_TEST_SEED", "11"))
    rng = random.Random(seed)
    for round_number in range(3000):
        content = bytearray(built.short)
        for _ in range(rng.randrange(1, 5)):
            at, how = rng.randrange(built.end), rng.randrange(4)
            if how == 0:
                content[at] ^= 1 << rng.randrange(8)
            elif how == 1:
                content[at : at + 8] = rng.randbytes(8)
            elif how == 2:
                at = at // SECTOR * SECTOR
                content[at : at + SECTOR] = rng.randbytes(SECTOR)
            else:
                del content[at:]
                break
        _, found = scan(content)
        got = read_entries(found)
        assert got == built.entries[: len(got)], (seed, round_number)
