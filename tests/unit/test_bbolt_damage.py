"""Damaged and hostile bbolt files: a named error with the page, never a crash, never a loop."""

import hashlib
import os
import random
import struct

import pytest

from etcdfast.formats import bbolt

PAGE = 4096
BRANCH, LEAF, FREELIST = 1, 2, 16
NO_FREELIST = (1 << 64) - 1


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value


class Image:
    """A database in memory: pages 2 and 3 are leaves, 4 their branch, 5 the root leaf with bucket `b` at 4.

    Written here from the format sheet alone, so that the reader is tried on more than what the writer makes.
    """

    def __init__(self):
        self.pages = {}
        self.freelist = NO_FREELIST
        self.leaf(2, [(b"a", b"1"), (b"b", b"2")])
        self.leaf(3, [(b"m", b"3"), (b"n", b"4")])
        self.branch(4, [(b"a", 2), (b"m", 3)])
        self.leaf(5, [(b"b", struct.pack("<QQ", 4, 0), 1)])

    def leaf(self, number, items, **header):
        rows = [(item[0], item[1], item[2] if len(item) > 2 else 0) for item in items]
        elements = data = b""
        for i, (key, value, flags) in enumerate(rows):
            pos = 16 * (len(rows) - i) + len(data)
            elements += struct.pack("<IIII", flags, pos, len(key), len(value))
            data += key + value
        self.page(number, LEAF, len(rows), elements + data, **header)

    def branch(self, number, children, **header):
        elements = data = b""
        for i, (key, child) in enumerate(children):
            elements += struct.pack("<IIQ", 16 * (len(children) - i) + len(data), len(key), child)
            data += key
        self.page(number, BRANCH, len(children), elements + data, **header)

    def page(self, number, flags, count, body, id=None, overflow=0):
        header = struct.pack("<QHHI", number if id is None else id, flags, count, overflow)
        self.pages[number] = header + body

    def poke(self, number, offset, fmt, value):
        page = bytearray(self.pages[number].ljust(PAGE, b"\0"))
        struct.pack_into(fmt, page, offset, value)
        self.pages[number] = bytes(page)

    def meta(self, number, pages):
        body = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, PAGE, 0, 5, 0, self.freelist, pages, 8 + number)
        return struct.pack("<QHHI", number, 4, 0, 0) + body + struct.pack("<Q", fnv1a(body))

    def write(self, path):
        pages = max(self.pages) + 1
        with open(path, "wb") as file:
            for number in range(pages):
                page = self.meta(number, pages) if number < 2 else self.pages.get(number, b"")
                file.write(page.ljust(PAGE, b"\0"))


def read_all(path):
    with bbolt.Reader(path) as reader:
        reader.check()
        return {name: dict(reader.items(name)) for name in reader.buckets()}


def test_the_image_itself_is_sound(tmp_path):
    Image().write(tmp_path / "db")
    assert read_all(tmp_path / "db") == {b"b": {b"a": b"1", b"b": b"2", b"m": b"3", b"n": b"4"}}


def a_deep_tree(image):
    for number in range(6, 90):
        image.branch(number, [(b"a", number + 1)])
    image.leaf(90, [(b"a", b"1")])
    image.branch(4, [(b"a", 6)])


def an_overflow_page_used_twice(image):
    image.leaf(2, [(b"a", b"1")], overflow=1)  # pages 2 and 3


DAMAGE = {
    "another page's id": (lambda i: i.poke(2, 0, "<Q", 3), 2, "another page's id"),
    "type meta": (lambda i: i.poke(2, 8, "<H", 4), 2, "wrong type"),
    "type freelist": (lambda i: i.poke(2, 8, "<H", FREELIST), 2, "wrong type"),
    "two types": (lambda i: i.poke(2, 8, "<H", LEAF | BRANCH), 2, "wrong type"),
    "overflow": (lambda i: i.poke(3, 12, "<I", 7), 3, "reaches beyond the database"),
    "largest overflow": (lambda i: i.poke(3, 12, "<I", 0xFFFFFFFF), 3, "reaches beyond the database"),
    "count": (lambda i: i.poke(2, 10, "<H", 300), 2, "more elements than fit"),
    "branch count": (lambda i: i.poke(4, 10, "<H", 0xFFFF), 4, "more elements than fit"),
    "no children": (lambda i: i.poke(4, 10, "<H", 0), 4, "without children"),
    "position": (lambda i: i.poke(2, 16 + 4, "<I", 0xFFFFFFFF), 2, "element reaches beyond"),
    "position in the elements": (lambda i: i.poke(2, 16 + 4, "<I", 0), 2, "element reaches beyond"),
    "key bytes": (lambda i: i.poke(2, 16 + 8, "<I", 0xFFFFFFFF), 2, "element reaches beyond"),
    "value bytes": (lambda i: i.poke(2, 16 + 12, "<I", 0xFFFFFFFF), 2, "element reaches beyond"),
    "value bytes, just": (lambda i: i.poke(2, 16 + 12, "<I", 4096 - 16 - 32), 2, "element reaches beyond"),
    "empty key": (lambda i: i.poke(2, 16 + 8, "<I", 0), 2, "empty or too long"),
    "unknown flags": (lambda i: i.poke(2, 16, "<I", 2), 2, "unknown flags"),
    "keys backwards": (lambda i: i.leaf(2, [(b"b", b""), (b"a", b"")]), 2, "not in order"),
    "a key twice": (lambda i: i.leaf(2, [(b"a", b""), (b"a", b"")]), 2, "not in order"),
    "branch keys backwards": (lambda i: i.branch(4, [(b"m", 3), (b"a", 2)]), 4, "not in order"),
    "branch position": (lambda i: i.poke(4, 16, "<I", 0xFFFFFFF0), 4, "element reaches beyond"),
    "a key below the child's range": (lambda i: i.leaf(3, [(b"l", b"")]), 3, "outside the range"),
    "a key above the child's range": (lambda i: i.leaf(2, [(b"a", b""), (b"m", b"")]), 2, "outside the range"),
    "a child twice": (lambda i: i.branch(4, [(b"a", 2), (b"m", 2)]), 2, "referred to twice"),
    "a circle": (lambda i: i.branch(4, [(b"a", 2), (b"m", 4)]), 4, "referred to twice"),
    "the root inside": (lambda i: i.branch(4, [(b"a", 2), (b"m", 5)]), 5, "referred to twice"),
    "an overflow page twice": (an_overflow_page_used_twice, 3, "referred to twice"),
    "a child that is a meta page": (lambda i: i.branch(4, [(b"a", 1), (b"m", 3)]), 1, "outside the database"),
    "a child behind the end": (lambda i: i.branch(4, [(b"a", 2), (b"m", 6)]), 6, "outside the database"),
    "a child very far away": (lambda i: i.branch(4, [(b"a", 2), (b"m", 1 << 63)]), 1 << 63, "outside the database"),
    "too deep": (a_deep_tree, None, "too deep"),
    "a short bucket": (lambda i: i.leaf(5, [(b"b", bytes(15), 1)]), 5, "value of a bucket is too short"),
    "an inline bucket without page": (lambda i: i.leaf(5, [(b"b", bytes(16), 1)]), None, "value of a bucket is too"),
    "an inline bucket that is no leaf": (lambda i: i.leaf(5, [(b"b", bytes(32), 1)]), None, "no leaf"),
    "an inline bucket that counts too many": (
        lambda i: i.leaf(5, [(b"b", bytes(16) + struct.pack("<QHHI", 0, LEAF, 1, 0), 1)]), None, "more elements",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name, tmp_path):
    damage, page, reason = DAMAGE[name]
    image = Image()
    damage(image)
    path = tmp_path / "db"
    image.write(path)
    with pytest.raises(bbolt.BoltError, match=reason) as caught:
        read_all(path)
    assert caught.value.path == str(path) and str(path) in str(caught.value)
    if page is not None:
        assert caught.value.page == page
    # Reading alone comes to the same end as the check, except for what only the check can see.
    with pytest.raises(bbolt.BoltError), bbolt.Reader(path) as reader:
        for bucket in reader.buckets():
            list(reader.items(bucket))
        reader.status()


def freelist(ids, count=None):
    def damage(image):
        image.freelist = 6
        body = struct.pack(f"<{len(ids)}Q", *ids)
        image.page(6, FREELIST, len(ids) if count is None else count, body)
        image.pages.setdefault(8, b"")  # pages 7 and 8 are free
        image.pages.setdefault(7, b"")

    return damage


@pytest.mark.parametrize("damage", [freelist([7, 8]), freelist([2, 7, 8], 0xFFFF)], ids=["short", "counted in front"])
def test_a_file_with_a_freelist_is_sound(damage, tmp_path):
    image = Image()
    damage(image)
    image.write(tmp_path / "db")
    assert len(read_all(tmp_path / "db")[b"b"]) == 4


@pytest.mark.parametrize(
    "damage, page, reason",
    [
        (freelist([7]), 8, "neither in use nor in the freelist"),
        (freelist([2, 7, 8]), 2, "in use and in the freelist"),
        (freelist([6, 7, 8]), 6, "in use and in the freelist"),
        (freelist([8, 7]), 6, "not in order"),
        (freelist([7, 7, 8]), 6, "not in order"),
        (freelist([7, 8, 9]), 9, "outside the database"),
        (freelist([7, 8], 511), 6, "more elements than fit"),
        (freelist([1 << 62, 7, 8], 0xFFFF), 6, "more elements than fit"),
    ],
)
def test_a_damaged_freelist_is_named(damage, page, reason, tmp_path):
    image = Image()
    damage(image)
    image.write(tmp_path / "db")
    with pytest.raises(bbolt.BoltError, match=reason) as caught:
        read_all(tmp_path / "db")
    assert caught.value.page == page


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """(bytes, contents) of a file with branches, overflow, inline and empty buckets."""
    path = tmp_path_factory.mktemp("sound") / "db"
    source = random.Random(3)
    with bbolt.Writer(path) as writer:
        writer.bucket(b"key", [(struct.pack(">QcQ", i, b"_", 0), source.randbytes(200)) for i in range(1500)])
        writer.bucket(b"big", [(b"%d" % i, source.randbytes(9000)) for i in range(5)])
        writer.bucket(b"meta", [(b"term", bytes(8))])
        writer.bucket(b"empty")
        writer.finish()
    return path.read_bytes(), read_all(path)


def attempt(path, content):
    """Read everything there is. The data, or None when the file was refused by name."""
    path.write_bytes(content)
    try:
        return read_all(path)
    except bbolt.BoltError as err:
        assert str(path) in str(err) and err.reason
        return None


def test_flipped_bytes_are_named_or_harmless(sound, tmp_path):
    content, _ = sound
    source = random.Random(11)
    refused = 0
    pages = len(content) // PAGE
    # Headers and elements of all pages, then anywhere.
    offsets = [page * PAGE + source.randrange(96) for page in range(pages) for _ in range(4)]
    offsets += [source.randrange(len(content)) for _ in range(300)]
    for offset in offsets:
        damaged = bytearray(content)
        damaged[offset] ^= 1 << source.randrange(8)
        refused += attempt(tmp_path / "db", bytes(damaged)) is None
    assert refused > len(offsets) // 4


def test_a_damaged_meta_is_passed_over(sound, tmp_path):
    content, data = sound
    for offset in range(16, 16 + 64):
        damaged = bytearray(content)
        damaged[offset] ^= 0x10
        assert attempt(tmp_path / "db", bytes(damaged)) == data
        damaged[PAGE + offset] ^= 0x10
        assert attempt(tmp_path / "db", bytes(damaged)) is None


def test_a_meta_that_lies_with_a_right_checksum(sound, tmp_path):
    content, _ = sound
    path = tmp_path / "db"
    for offset, fmt in ((8, "<I"), (16, "<Q"), (32, "<Q"), (40, "<Q")):
        for value in (0, 1, 2, 3, 5, 7, 1 << 31, 1 << 62, (1 << 63) + 5):
            damaged = bytearray(content)
            struct.pack_into(fmt, damaged, 16 + offset, value % (1 << 8 * struct.calcsize(fmt)))
            struct.pack_into("<Q", damaged, 16 + 56, fnv1a(damaged[16 : 16 + 56]))
            attempt(path, bytes(damaged))


def test_a_file_cut_short_is_refused(sound, tmp_path):
    content, _ = sound
    for size in (0, 1, 16, 79, 80, PAGE - 1, PAGE, 2 * PAGE, len(content) // 2, len(content) - PAGE, len(content) - 1):
        assert attempt(tmp_path / "db", content[:size]) is None, size


def test_a_page_of_zeros_or_of_noise_is_refused(sound, tmp_path):
    content, _ = sound
    source = random.Random(5)
    for page in range(2, len(content) // PAGE, 5):
        for filling in (bytes(PAGE), source.randbytes(PAGE)):
            damaged = content[: page * PAGE] + filling + content[(page + 1) * PAGE :]
            outcome = attempt(tmp_path / "db", damaged)
            # The overflow pages of large values have no structure that could show it.
            assert outcome is None or outcome[b"big"] != sound[1][b"big"]


def test_what_lies_behind_the_database_does_not_count(sound, tmp_path):
    content, data = sound
    path = tmp_path / "db"
    digest = hashlib.sha256(content).digest()
    assert attempt(path, content + digest) == data
    assert bbolt.has_digest(len(content) + 32) and not bbolt.has_digest(len(content))
    with open(path, "rb") as file:
        assert bbolt.digest_of(file.fileno(), len(content)) == digest
        with pytest.raises(EOFError):
            bbolt.digest_of(file.fileno(), len(content) + 33)


def test_no_database_at_all(tmp_path):
    path = tmp_path / "db"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(bbolt.BoltError, match="this is no bbolt database"):
        bbolt.Reader(path)
    with pytest.raises(FileNotFoundError):
        bbolt.Reader(tmp_path / "missing")
    with pytest.raises(OSError):
        bbolt.Reader(os.fspath(tmp_path))
