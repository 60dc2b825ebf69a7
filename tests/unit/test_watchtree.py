"""Watched ranges against a plain model: a set of (key, end) pairs that is looked through whole."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcdfast._ext.watchface import WatchedRanges
from tests.unit.stress_watchtree import Stress

ALL = b"\0"


def holds(watched, key):
    start, end = watched
    if not end:
        return key == start
    return key >= start and (end == ALL or key < end)


def prefix_end(key):
    key = key.rstrip(b"\xff")
    return key[:-1] + bytes([key[-1] + 1]) if key else ALL


def stabbed(tree, key, cap=64):
    found = tree.stab(key, cap)
    assert len(set(found)) == len(found), "a range was given twice"
    return dict(found)


class Pair:
    """Tree and model driven alike."""

    def __init__(self, rng, keys, seed=7):
        self.rng = rng
        self.keys = keys
        self.tree = WatchedRanges(seed)
        self.model = {}
        self.owners = 0

    def some_range(self):
        rng = self.rng
        key = rng.choice(self.keys)
        kind = rng.random()
        if kind < 0.3:
            return key, b""
        if kind < 0.6:
            return key, prefix_end(key)
        if kind < 0.65:
            return key, ALL
        return key, rng.choice(self.keys)  # also empty ranges: nothing lies in them

    def add(self, watched):
        key, end = watched
        assert self.tree.add(key, end) == self.model.get(watched, 0)
        if watched not in self.model:
            self.owners += 1
            self.tree.own(key, end, self.owners)
            self.model[watched] = self.owners
        assert len(self.tree) == len(self.model)

    def drop(self, watched):
        if watched in self.model:
            del self.model[watched]
            self.tree.drop(*watched)
        else:
            with pytest.raises(KeyError):
                self.tree.drop(*watched)

    def check(self, keys, cap=64):
        for key in keys:
            wanted = {watched: owner for watched, owner in self.model.items() if holds(watched, key)}
            assert stabbed(self.tree, key, cap) == wanted
        assert self.tree.verify() == 0

    def drop_all(self):
        for watched in self.rng.sample(list(self.model), len(self.model)):
            self.drop(watched)


EDGE_KEYS = [
    b"", b"\0", b"\0\0", b"a", b"a\0", b"aa", b"ab", b"a\xff", b"a\xff\xff", b"b", b"12345678", b"123456789",
    b"12345678\0", b"1234567", b"\x7f", b"\x80", b"\xfe", b"\xff", b"\xff\xff", b"long" * 40,
]  # fmt: skip

range_strategy = st.tuples(
    st.sampled_from(EDGE_KEYS) | st.binary(max_size=3), st.sampled_from(EDGE_KEYS) | st.binary(max_size=2)
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.booleans(), range_strategy), max_size=60), st.lists(st.binary(max_size=3), max_size=10))
def test_any_ranges(steps, keys):
    pair = Pair(random.Random(1), EDGE_KEYS)
    for add, watched in steps:
        if add:
            pair.add(watched)
        elif pair.model:
            pair.drop(pair.rng.choice(list(pair.model)))
    pair.check(EDGE_KEYS + keys)
    pair.drop_all()
    assert pair.tree.stats()["used_bytes"] == 0


@pytest.mark.parametrize("seed", range(6))
def test_random_adds_drops_and_stabs(seed):
    rng = random.Random(seed)
    alphabet = rng.choice([b"ab", b"abcdef", b"a\xff", bytes(range(256))])
    keys = [bytes(rng.choices(alphabet, k=rng.randrange(12))) for _ in range(120)]
    pair = Pair(rng, keys, seed)
    for _ in range(30):
        for _ in range(40):
            pair.add(pair.some_range())
        for _ in range(rng.choice((10, 40, 70))):
            pair.drop(rng.choice(list(pair.model)) if pair.model and rng.random() < 0.9 else pair.some_range())
        pair.check(rng.choices(keys, k=15) + [rng.randbytes(3)], cap=rng.choice((1, 2, 7, 64)))
    pair.drop_all()
    assert pair.tree.verify() == 0
    assert pair.tree.stats()["used_bytes"] == 0


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_order_of_adding_does_not_matter(order):
    """Sorted adds are what a tree without balance breaks under."""
    numbers = list(range(3000))
    if order == "descending":
        numbers.reverse()
    elif order == "random":
        random.Random(3).shuffle(numbers)
    tree = WatchedRanges()
    for n in numbers:
        tree.add(b"%06d" % n, b"%06d" % (n + 3))
    assert tree.stats()["nodes"] == 3000
    assert tree.verify() == 0
    for n in range(0, 3000, 7):
        assert {key for (key, _), _ in tree.stab(b"%06d" % n)} == {b"%06d" % m for m in range(max(n - 2, 0), n + 1)}
    for n in numbers[::2]:
        tree.drop(b"%06d" % n, b"%06d" % (n + 3))
    assert tree.verify() == 0


def test_all_ranges_of_a_key_come_in_batches():
    tree = WatchedRanges()
    for n in range(1000):
        tree.add(b"a%04d" % n, b"z%04d" % n)
    for n in range(1, 13):
        tree.add(b"mmmmmmmmmmmm"[:n], prefix_end(b"mmmmmmmmmmmm"[:n]))
    tree.add(b"mmmmmmmmmmmm")
    for cap in (1, 2, 3, 9, 64):
        assert len(stabbed(tree, b"mmmmmmmmmmmm", cap)) == 1013


def test_more_lengths_of_prefixes_than_are_hashed():
    """The surplus lies in the tree, is found there, and one range is never in both places."""
    tree = WatchedRanges()
    prefixes = [b"p" * n for n in range(1, 21)]
    for prefix in prefixes:
        assert tree.add(prefix, prefix_end(prefix)) == 0
        tree.own(prefix, prefix_end(prefix), len(prefix))
    assert tree.stats()["prefix_lengths"] == 8 and tree.stats()["nodes"] == 12
    tree.drop(b"pp", b"pq")
    for prefix in prefixes:
        if prefix != b"pp":
            assert tree.add(prefix, prefix_end(prefix)) == len(prefix)
    assert tree.add(b"x" * 20, prefix_end(b"x" * 20)) == 0  # takes the place that is free now
    assert tree.stats()["prefix_lengths"] == 8 and tree.stats()["nodes"] == 12
    assert tree.add(b"p" * 20, prefix_end(b"p" * 20)) == 20
    assert {len(key) for (key, _), _ in tree.stab(b"p" * 20)} == set(range(1, 21)) - {2}
    assert tree.verify() == 0


def test_growing_and_shrinking_back():
    rng = random.Random(5)
    tree = WatchedRanges(rng.getrandbits(64))
    names = [b"/registry/pods/%08d" % n for n in range(40_000)]
    tree.add_all(b"".join(names), len(names[0]))
    assert len(tree) == 40_000 and tree.verify() == 0
    assert tree.stab_all(b"".join(names), len(names[0])) == 40_000
    assert tree.stab_all(b"".join(name.replace(b"pods", b"node") for name in names), len(names[0])) == 0
    full = tree.stats()["used_bytes"]
    rng.shuffle(names)
    for name in names[:39_000]:
        tree.drop(name)
    assert tree.verify() == 0
    assert tree.stats()["used_bytes"] < full / 20
    assert all(tree.stab(name) for name in names[39_000:])
    for name in names[39_000:]:
        tree.drop(name)
    assert tree.stats()["used_bytes"] == 0


def test_memory_per_range():
    """24 bytes, a slot and the key for one key or a prefix; 48 and both ends for other ranges."""
    count, length = 100_000, 24
    keys = b"".join(b"/registry/x/%012d" % n for n in range(count))
    single, prefixes, other = WatchedRanges(), WatchedRanges(), WatchedRanges()
    single.add_all(keys, length)
    assert single.stats()["used_bytes"] / count - length <= 24 + 22
    prefixes.add_all(keys, length, prefixes=True)
    assert prefixes.stats()["used_bytes"] / count - 2 * length <= 24 + 22
    for n in range(0, count, 10):
        other.add(keys[n * length : (n + 1) * length], b"/registry/y/%012d" % n)
    assert other.stats()["nodes"] == count // 10
    assert other.stats()["used_bytes"] / (count // 10) - 2 * length <= 48


def test_failed_allocation_changes_nothing():
    rng = random.Random(9)
    pair = Pair(rng, [bytes(rng.choices(b"abc", k=rng.randrange(5))) for _ in range(60)])
    failed = 0
    for _ in range(400):
        watched = pair.some_range()
        if watched in pair.model:
            pair.drop(watched)
            continue
        pair.tree.fail_allocation(rng.choice((1, 1, 2)))
        try:
            pair.tree.add(*watched)
        except MemoryError:
            failed += 1
            pair.tree.fail_allocation(0)
            assert pair.tree.verify() == 0 and len(pair.tree) == len(pair.model)
            pair.add(watched)
        else:
            pair.tree.fail_allocation(0)
            pair.tree.drop(*watched)
            pair.add(watched)
    assert failed > 100
    pair.check(pair.keys)


@pytest.mark.parametrize("seed", [1, 2])
def test_stress_in_small(seed):
    """`python -m tests.unit.stress_watchtree` does the same with a million ranges."""
    Stress(seed).run(3000, 6000)
