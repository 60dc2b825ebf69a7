"""bbolt files: ours hold against real etcdutl, and come back as they were written."""

import importlib.util
import os
import random
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcdfast._ext.boltwrite import TreeWriter
from etcdfast.formats import bbolt
from tests.harness import etcdutl


def write(path, buckets, page_size=4096):
    """A file of {name: {key: value}}."""
    with bbolt.Writer(path, page_size) as writer:
        for name, items in buckets.items():
            writer.bucket(name, sorted(items.items()))
        size = writer.finish(sync=False)
    assert size == os.path.getsize(path)


def read(path):
    with bbolt.Reader(path) as reader:
        reader.check()
        return {name: dict(reader.items(name)) for name in reader.buckets()}


def revisions(count, value_bytes):
    return {struct.pack(">QcQ", 2 + i, b"_", 0): os.urandom(value_bytes) for i in range(count)}


def accepted_by_etcdutl(path):
    """etcdutl reads it, checks it, and comes to the same figures as we do."""
    with bbolt.Reader(path) as reader:
        ours = reader.status()
    assert etcdutl.status(path) == {
        "hash": ours.hash, "revision": ours.revision, "totalKey": ours.total_keys, "totalSize": ours.total_bytes,
    }  # fmt: skip
    return ours


SHAPES = {
    "nothing at all": {},
    "empty buckets": {b"alarm": {}, b"auth": {}, b"key": {}},
    "one item": {b"meta": {b"k": b""}},
    "a leaf filled to its last byte": {b"b": {b"k": bytes(4096 - 16 - 16 - 1)}},
    "a leaf one byte too small": {b"b": {b"k": bytes(4096 - 16 - 16)}},
    "values of several pages": {b"key": revisions(20, 10_000), b"z": {b"a": b"1", b"b": bytes(1 << 20), b"c": b"2"}},
    "a value of one page between small ones": {b"b": {b"a": b"1", b"b": bytes(4050), b"c": b"2"}},
    "two levels": {b"key": revisions(300, 300)},
    "three levels": {b"key": revisions(40_000, 200)},
    "keys as long as they may be": {b"b": {bytes([i]) * 32768: bytes([i]) for i in range(1, 60)}},
    "a thousand buckets": {b"bucket%d" % i: {b"k": bytes(i)} for i in range(1000)},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_comes_back_and_etcdutl_takes_it(shape, tmp_path):
    path = tmp_path / "db"
    write(path, SHAPES[shape])
    assert read(path) == SHAPES[shape]
    assert accepted_by_etcdutl(path).total_keys == sum(map(len, SHAPES[shape].values()))


@pytest.mark.parametrize("above", [0, 1])
def test_a_bucket_of_a_quarter_page_is_inline_and_a_larger_one_is_not(above, tmp_path):
    path = tmp_path / "db"
    write(path, {b"b": {b"k": bytes(1024 - 16 - 16 - 1 + above)}})
    with bbolt.Reader(path) as reader:
        # metas, the root, and a leaf of its own for the larger one
        assert reader.size == (3 + above) * 4096
    accepted_by_etcdutl(path)


@pytest.mark.parametrize("page_size", [1024, 16384, 65536])
def test_other_page_sizes(page_size, tmp_path):
    path = tmp_path / "db"
    shape = {b"key": revisions(3000, 100), b"big": {b"k": bytes(200_000)}}
    write(path, shape, page_size)
    assert read(path) == shape
    accepted_by_etcdutl(path)


BUCKETS = st.dictionaries(
    st.binary(min_size=1, max_size=20),
    st.dictionaries(st.binary(min_size=1, max_size=300), st.binary(max_size=3000), max_size=60),
    max_size=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BUCKETS)
def test_random_buckets_come_back(tmp_path, buckets):
    path = tmp_path / "db"
    path.unlink(missing_ok=True)
    write(path, buckets, 1024)
    assert read(path) == buckets


def test_many_random_sizes(tmp_path):
    source = random.Random(7)
    items = {}
    for _ in range(4000):
        size = source.choice((0, 10, 500, 3000, 4100, 9000))
        items[source.randbytes(source.randint(1, 40))] = source.randbytes(source.randint(0, size))
    path = tmp_path / "db"
    write(path, {b"b": items})
    assert read(path) == {b"b": items}
    accepted_by_etcdutl(path)


def test_items_come_in_batches_and_with_a_prefix(tmp_path):
    path = tmp_path / "db"
    items = revisions(1000, 30)
    write(path, {b"key": items})
    with bbolt.Reader(path) as reader:
        batches = list(reader.batches(b"key", 300, prefix=b"k"))
    assert [len(batch) for batch in batches] == [300, 300, 300, 100]
    assert {key[1:]: value for batch in batches for key, value in batch} == items
    assert all(key[:1] == b"k" for batch in batches for key, _ in batch)


def test_revisions_of_our_store_go_in_without_its_own_records(tmp_path):
    items = revisions(10, 5)
    tombstone = struct.pack(">QcQc", 99, b"_", 0, b"t")
    items[tombstone] = b"\n\x01k"
    stored = []
    for key, value in sorted(items.items()):
        stored += [(b"k" + key, value), (b"k" + key[:8] + b"\xfemember", b"x"), (b"k" + key[:8] + b"\xff", bytes(16))]
    path = tmp_path / "db"
    with bbolt.Writer(path) as writer:
        writer.begin_bucket(b"key")
        assert writer.put_revisions(iter(stored)) == 11
        writer.end_bucket()
        writer.finish()
    assert read(path) == {b"key": items}


def test_buckets_within_buckets(tmp_path):
    path = tmp_path / "db"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    tree = TreeWriter(fd, 4096)
    tree.put_many((b"%04d" % i, b"x" * 100) for i in range(500))
    inner = tree.end()
    tree.put(b"a", b"1")
    small = tree.end(sequence=9)
    tree.put(b"inner", inner, bucket=True)
    tree.put(b"item", b"value")
    tree.put(b"small", small, bucket=True)
    outer = tree.end()
    tree.put(b"outer", outer, bucket=True)
    tree.finish(int.from_bytes(tree.end(inline=False)[:8], "little"))
    os.close(fd)
    with bbolt.Reader(path) as reader:
        reader.check()
        assert reader.children(b"outer") == [b"inner", b"small"]
        assert list(reader.items(b"outer")) == [(b"item", b"value")]
        assert list(reader.nested_items(b"outer", b"small")) == [(b"a", b"1")]
        assert len(list(reader.nested_items(b"outer", b"inner"))) == 500
    accepted_by_etcdutl(path)


@pytest.mark.parametrize(
    "items, words",
    [
        ([(b"b", b""), (b"a", b"")], "not above"),
        ([(b"a", b""), (b"a", b"")], "not above"),
        ([(b"ab", b""), (b"a", b"")], "not above"),
        ([(b"", b"")], "a key of 0 bytes"),
        ([(bytes(32769), b"")], "a key of 32769 bytes"),
        ([("a", b"")], "type bytes"),
        ([(b"a", None)], "type bytes"),
        ([(b"a",)], "tuples"),
        ([b"a"], "tuples"),
    ],
)
def test_what_bbolt_forbids_is_refused(items, words, tmp_path):
    with bbolt.Writer(tmp_path / "db") as writer:
        writer.begin_bucket(b"b")
        with pytest.raises((ValueError, TypeError), match=words):
            writer.put_many(items)


def test_order_is_checked_across_pages(tmp_path):
    with bbolt.Writer(tmp_path / "db") as writer:
        writer.begin_bucket(b"b")
        writer.put(b"k1", bytes(4000))
        writer.put(b"k2", bytes(4000))
        with pytest.raises(ValueError, match="not above"):
            writer.put(b"k2", bytes(4000))
        writer.put(b"k3", b"")


def test_buckets_are_written_one_at_a_time_and_once(tmp_path):
    with bbolt.Writer(tmp_path / "db") as writer:
        writer.begin_bucket(b"a")
        with pytest.raises(ValueError, match="still open"):
            writer.begin_bucket(b"b")
        with pytest.raises(ValueError, match="still open"):
            writer.finish()
        writer.end_bucket()
        with pytest.raises(ValueError, match="no bucket is open"):
            writer.end_bucket()
        with pytest.raises(ValueError, match="already"):
            writer.begin_bucket(b"a")
    with pytest.raises(FileExistsError):
        bbolt.Writer(tmp_path / "db")


def test_an_unfinished_file_is_no_database(tmp_path):
    path = tmp_path / "db"
    with bbolt.Writer(path) as writer:
        writer.bucket(b"key", sorted(revisions(10_000, 300).items()))
    with pytest.raises(bbolt.BoltError, match="no bbolt database"):
        bbolt.Reader(path)


def test_a_full_disk_is_an_error():
    with open("/dev/full", "r+b", buffering=0) as full:
        writer = bbolt.Writer("/dev/full", fd=full.fileno())
        writer.begin_bucket(b"b")
        with pytest.raises(OSError, match="No space left"):
            for i in range(10_000):
                writer.put(b"%08d" % i, bytes(1000))


def test_the_micro_benchmark_runs(tmp_path):
    source = Path(__file__).parents[2] / "bench" / "micro" / "bbolt.py"
    spec = importlib.util.spec_from_file_location("bench_micro_bbolt", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    figures = module.run(tmp_path, 500, 100)
    assert figures["items"] == 500 and figures["bytes"] > 500 * 100
    assert all(figures[f"{step}_seconds"] > 0 for step in ("write", "read", "check", "status"))
