"""The revision index against a plain model of etcd's generations (tests/unit/revmodel.py)."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcdfast._ext.revface import CompactedError, RevisionIndex
from tests.unit.revmodel import IndexModel

EDGE_KEYS = [
    b"", b"\0", b"\0\0", b"\0\1", b"a", b"a\0", b"a\0\0", b"aa", b"aaaa", b"aaaa\0", b"aaaaa", b"aaab",
    b"ab", b"b", b"\x7f", b"\x80", b"\xff", b"\xff\xff", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\xff",
]  # fmt: skip
ALL = b"\0"


def walk(index, key, end=b"", rev=0, cap=256, budget=1 << 40):
    """A whole range through resumed batches."""
    states, resume = index.range_batch(key, end, rev, cap=cap, budget=budget)
    while resume is not None:
        assert len(states) <= 10**6
        more, resume = index.range_batch(resume, end or key, rev, exclusive=True, cap=cap, budget=budget)
        states += more
    return states


def walk_desc(index, key, end=b"", rev=0, cap=256, budget=1 << 40):
    states, before = index.range_batch_desc(key, end, rev, cap=cap, budget=budget)
    while before is not None:
        more, before = index.range_batch_desc(key, end, rev, before, cap=cap, budget=budget)
        states += more
    return states


def count_sliced(index, key, end, rev, budget):
    total, resume = index.count_step(key, end, rev, budget)
    while resume is not None:
        assert resume >= key
        key = resume
        more, resume = index.count_step(key, end, rev, budget)
        total += more
    return total


def compact(index, rev, budget=1 << 40, cap=256):
    index.compact_begin(rev)
    dropped, done = [], False
    while not done:
        part, done = index.compact_step(budget, cap)
        assert len(part) <= cap
        dropped += part
    return dropped


class Pair:
    """Index and model driven alike; every answer that both give is compared."""

    def __init__(self, rng):
        self.rng = rng
        self.index = RevisionIndex()
        self.model = IndexModel()
        self.main = 1
        self.compacted = 0

    def write(self, keys):
        """One transaction: each key put, deleted, or deleted and put again."""
        main, sub = self.main + self.rng.choice((1, 1, 1, 3)), 0
        for key in keys:
            for _ in range(self.rng.choice((1, 1, 1, 2))):
                if self.rng.random() < 0.35:
                    gone = self.index.tombstone(key, main, sub)
                    assert gone == self.model.tombstone(key, main, sub)
                    sub += gone
                else:
                    size = self.rng.randrange(1 << 20)
                    assert self.index.put(key, main, sub, size) == self.model.put(key, main, sub, size)
                    sub += 1
        if sub:
            self.main = main

    def revs(self):
        low = max(1, self.compacted)
        picked = {0, self.main, self.main + 5, low, min(low + 1, self.main)}
        picked.update(self.rng.randint(low, max(low, self.main)) for _ in range(3))
        return sorted(picked)

    def check(self, keys):
        index, model, rng = self.index, self.model, self.rng
        assert index.verify() == 0
        now = 1 << 62
        for key in keys:
            held = model.keys[key].described() if key in model.keys else []
            # create and version of a tombstone are nobody's to see
            mask = lambda rows: [row if not row[2] else row[:4] for row in rows]  # noqa: E731
            assert mask(index.revisions(key)) == mask(held), key
            for rev in self.revs():
                assert index.get(key, rev) == model.get(key, rev or now), (key, rev)
        for rev in self.revs():
            low, end = rng.choice(keys), rng.choice([*keys, ALL, ALL])
            want = model.range(low, end, rev or now)
            cap, budget = rng.randint(1, 5), rng.randint(1, 9)
            assert walk(index, low, end, rev, cap, budget) == want, (low, end, rev)
            assert walk_desc(index, low, end, rev, cap, budget) == want[::-1], (low, end, rev)
            assert index.count(low, end, rev) == len(want), (low, end, rev)
            if end:
                assert count_sliced(index, low, end, rev, budget) == len(want)
            if rev:
                kept = model.keep_set(rev)
                assert index.kept_any(rev, budget) == bool(kept)
                for key in keys:
                    for main, sub, *_ in index.revisions(key):
                        assert index.kept_at(key, main, sub, rev) == (kept.get(key) == (main, sub))
        self.check_revisions(keys)
        stats = index.stats()
        assert stats["keys"] == len(model.keys)
        assert stats["live_keys"] == len(model.range(b"", ALL, now))
        assert stats["revisions"] == sum(len(key.flat()) for key in model.keys.values())

    def check_revisions(self, keys):
        """What reading past events asks for, against all that is held of each key."""
        index, rng = self.index, self.rng
        first = (rng.randint(0, self.main + 1), rng.choice((0, 0, 1, 2)))
        for key in keys:
            wanted = [row[:4] for row in index.revisions(key) if row[:2] >= first]
            cap = rng.randint(1, 9)
            assert index.revs_from(key, *first, cap=cap) == wanted[:cap], (key, first)
        low, end = rng.choice(keys), rng.choice([*keys, ALL, ALL, b""])
        last = rng.randint(first[0], self.main + 1)
        wanted = []
        for key in sorted(self.model.keys):
            if key == low if not end else key >= low and (end == ALL or key < end):
                wanted += [row[:4] for row in index.revisions(key) if first[0] <= row[0] <= last]
        found = index.revs_of_range(low, end, first[0], last, len(wanted))
        assert found == wanted, (low, end, first, last)
        if wanted:
            assert index.revs_of_range(low, end, first[0], last, len(wanted) - 1) is None
        assert index.revs_of_range(low, end, first[0], last, len(wanted), rng.randint(0, 99)) in (wanted, None)

    def compact(self, keys):
        """A sliced compaction with writes and reads in between."""
        at = self.rng.randint(self.compacted, self.main)
        if at <= self.compacted:
            return
        want = self.model.compact(at)
        self.index.compact_begin(at)
        self.compacted = at
        dropped, done = [], False
        while not done:
            part, done = self.index.compact_step(self.rng.randint(1, 6), self.rng.randint(1, 4))
            dropped += part
            if self.rng.random() < 0.4:
                self.write(self.rng.sample(keys, 2))
            for rev in (0, at, self.main):
                key = self.rng.choice(keys)
                assert self.index.get(key, rev) == self.model.get(key, rev or 1 << 62)
            assert self.index.count(b"", ALL) == len(self.model.range(b"", ALL, 1 << 62))
        assert sorted(dropped) == sorted(want)

    def restore(self):
        """A new index from what this one holds, as at start-up."""
        stored = sorted(
            (main, sub, key, tomb, size, created, version)
            for key in self.model.keys
            for main, sub, tomb, size, created, version in self.index.revisions(key)
        )
        self.index, self.model = RevisionIndex(), IndexModel()
        for main, sub, key, tomb, size, created, version in stored:
            assert self.index.restore(key, main, sub, created, version, tomb, size)
            assert self.model.restore(key, main, sub, created, version, tomb, size)

    def empty(self):
        """Delete and compact everything away; each block is then back in the allocator."""
        self.main += 1
        for sub, key in enumerate(list(self.model.keys)):
            self.index.tombstone(key, self.main, sub)
        compact(self.index, self.main + 1)
        one = RevisionIndex()
        one.put(b"k", 1, 0)
        one.tombstone(b"k", 2, 0)
        compact(one, 3)
        assert self.index.stats()["used_bytes"] == one.stats()["used_bytes"]
        assert self.index.stats()["keys"] == self.index.stats()["revisions"] == 0
        assert self.index.verify() == 0


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), width=st.sampled_from([3, 8, 20]))
def test_random_histories(seed, width):
    rng = random.Random(seed)
    pair = Pair(rng)
    keys = rng.sample(EDGE_KEYS, width)
    for _ in range(40):
        step = rng.random()
        if step < 0.8:
            pair.write(rng.sample(keys, rng.randint(1, 3)))
        elif step < 0.9:
            pair.compact(keys)
        elif step < 0.93:
            pair.restore()
        else:
            pair.check(keys)
    pair.check(keys)
    pair.empty()


def shared_prefix_keys(rng, count):
    prefixes = [b"", b"/registry/pods/default/", b"/registry/events/" + b"x" * 70, b"\xff" * 9, b"\0" * 5]
    keys = set()
    while len(keys) < count:
        keys.add(rng.choice(prefixes) + rng.randbytes(rng.choice((1, 2, 3, 4, 9))))
    return list(keys)


@pytest.mark.parametrize("order", ["ascending", "descending", "random", "inward"])
@pytest.mark.parametrize("seed", [1, 2])
def test_many_keys(order, seed):
    """Three levels of tree: splits and merges at every level, in each order of growth."""
    rng = random.Random(f"{order}{seed}")
    pair = Pair(rng)
    keys = sorted(shared_prefix_keys(rng, 9000))
    if order == "descending":
        keys.reverse()
    elif order == "random":
        rng.shuffle(keys)
    elif order == "inward":
        keys = [key for both in zip(keys[:4500], keys[:4499:-1], strict=True) for key in both]
    for key in keys:
        pair.main += 1
        assert pair.index.put(key, pair.main, 0, 7) == pair.model.put(key, pair.main, 0, 7)
    assert pair.index.stats()["height"] >= 2
    some = rng.sample(keys, 20)
    pair.check(some)
    assert walk(pair.index, b"", ALL) == pair.model.range(b"", ALL, pair.main)
    middle = pair.main
    # Delete in the same order, almost all, so that merges run along one edge, too.
    left = set(rng.sample(keys, 40))
    for number, key in enumerate(keys):
        if key not in left:
            pair.main += 1
            assert pair.index.tombstone(key, pair.main, 0) == pair.model.tombstone(key, pair.main, 0)
        if number % 3000 == 2999:
            pair.check(some)
    assert pair.index.count(b"", ALL) == 40
    assert pair.index.count(b"", ALL, middle) == 9000
    for at in (middle + 3000, pair.main + 1):
        want = pair.model.compact(at)
        assert sorted(compact(pair.index, at, budget=50, cap=37)) == sorted(want)
        pair.compacted = at
        pair.main += 1
        pair.check(some + list(left))
    assert pair.index.stats()["keys"] == 40
    assert pair.index.stats()["height"] <= 1
    for key in keys:
        pair.main += 1
        assert pair.index.put(key, pair.main, 0, 7) == pair.model.put(key, pair.main, 0, 7)
    pair.check(some)
    pair.empty()


@pytest.mark.parametrize("step", [1, -1])
def test_sorted_loads_fill_leaves(step):
    """Nine tenths of 64 stay in a leaf that grows at its end, also between keys that are there already."""
    index = RevisionIndex()
    for number in range(1000):
        index.put(b"%03d" % number, number + 2, 0)
    before = index.stats()["leaves"]
    for number in range(20000)[::step]:
        index.put(b"500-%010d" % number, 50000 + step * number, 0)
    assert index.stats()["leaves"] - before <= 20000 / 57
    assert index.verify() == 0


def test_worked_example_of_the_keep_rule():
    """put 2, put 5, delete 7, put 9: what each compaction drops, as in revrecord.pxd."""
    for at, kept in ((1, [2, 5, 7, 9]), (2, [2, 5, 7, 9]), (4, [2, 5, 7, 9]), (5, [5, 7, 9]), (6, [5, 7, 9]),
                     (7, [7, 9]), (8, [9]), (9, [9]), (10, [9])):  # fmt: skip
        index = RevisionIndex()
        index.put(b"k", 2, 0)
        index.put(b"k", 5, 0)
        index.tombstone(b"k", 7, 0)
        index.put(b"k", 9, 0)
        compact(index, at)
        assert [row[0] for row in index.revisions(b"k")] == kept, at
        assert index.get(b"k") == (b"k", 9, 9, 0, 1, 0)


def test_a_tombstone_at_the_compacted_revision_stays_until_the_next_compaction():
    index = RevisionIndex()
    index.put(b"k", 2, 0, 10)
    index.tombstone(b"k", 3, 0)
    assert compact(index, 3) == [(2, 0, False, 10)]
    assert [index.stats()[name] for name in ("keys", "live_keys", "revisions")] == [1, 0, 1]
    assert index.get(b"k") is None and index.get(b"k", 3) is None
    assert compact(index, 4) == [(3, 0, True, 0)]
    assert index.stats()["keys"] == 0


def test_keep_set_leaves_out_a_key_put_again_in_the_transaction_that_deleted_it():
    index = RevisionIndex()
    index.put(b"k", 2, 0)
    index.tombstone(b"k", 3, 0)
    index.put(b"k", 3, 1)
    assert index.count(b"", ALL, 3) == 1
    assert not index.kept_any(3)
    assert not index.kept_at(b"k", 3, 1, 3)
    assert index.kept_any(4) and index.kept_at(b"k", 3, 1, 4)


def test_restored_tombstone_of_an_unknown_key_is_a_closed_generation():
    index = RevisionIndex()
    assert index.restore(b"k", 5, 0, is_tombstone=True)
    assert not index.restore(b"k", 6, 0, is_tombstone=True)
    assert index.get(b"k") is None
    assert index.put(b"k", 7, 0) == (7, 1)
    assert compact(index, 6) == [(5, 0, True, 0)]
    assert index.get(b"k") == (b"k", 7, 7, 0, 1, 0)


def test_versions_above_32_bits():
    index = RevisionIndex()
    big = 2**32
    index.restore(b"k", 9, 0, create_main=3, version=big - 1)
    assert index.put(b"k", 10, 0, 5) == (3, big)
    index.put(b"k", 11, 0, 6)
    compact(index, 11)
    assert index.get(b"k") == (b"k", 3, 11, 0, big + 1, 6)
    assert index.put(b"k", 12, 0, 6) == (3, big + 2)
    index.restore(b"m", 13, 0, create_main=3, version=2**40)
    assert index.get(b"m") == (b"m", 3, 13, 0, 2**40, 0)
    assert index.verify() == 0


def test_one_hot_key():
    """Very many revisions and generations of one key, dropped in small parts."""
    index, total = RevisionIndex(), 30000
    for main in range(2, total):
        if main % 5 == 0:
            assert index.tombstone(b"hot", main, 0)
        else:
            assert index.put(b"hot", main, 0, main) == (main - main % 5 + 1 if main > 5 else 2, main % 5 - (main < 5))
    for rev in (2, 4, 17, 12344, 29998):
        assert index.get(b"hot", rev)[2] == rev
    assert index.get(b"hot", 20000) is None
    dropped = compact(index, 29001, budget=1, cap=100)
    assert [row[0] for row in dropped] == list(range(2, 29001))
    assert index.get(b"hot", 29002) == (b"hot", 29001, 29002, 0, 2, 29002)
    compact(index, total)
    assert index.stats()["revisions"] == 1
    assert index.stats()["used_bytes"] < 2000
    assert index.verify() == 0


def test_long_keys():
    index = RevisionIndex()
    base = b"L" * 1_500_000
    keys = [base[:length] + tail for length in (7000, 8160, 8200, 1_500_000) for tail in (b"", b"a", b"b\0", b"b")]
    keys += [b"%03d" % number + base[:20000] for number in range(150)]
    for main, key in enumerate(keys, 2):
        index.put(key, main, 0, 1)
    assert [state[0] for state in walk(index, b"", ALL)] == sorted(keys)
    assert [state[0] for state in walk(index, base, base + b"b\0")] == [base, base + b"a", base + b"b"]
    assert index.verify() == 0
    for main, key in enumerate(keys, 1000):
        assert index.tombstone(key, main, 0)
    assert len(compact(index, 5000, budget=7)) == 2 * len(keys)
    assert index.stats()["keys"] == 0
    assert index.stats()["used_bytes"] < 50_000


def test_memory_of_removed_keys_serves_other_sizes():
    index = RevisionIndex()
    main = 2
    for length in (8, 40, 80, 200):
        for number in range(4000):
            index.put(b"%06d" % number + b"." * length, main, 0)
            index.tombstone(b"%06d" % number + b"." * length, main + 1, 0)
            main += 2
        compact(index, main)
        assert index.stats()["keys"] == 0
    # The largest load needs 4000 * (240 + 80 + 24) bytes; nothing of the three before it adds to that.
    assert index.stats()["held_bytes"] < 3 << 20


@pytest.mark.parametrize("first", ["put", "churn"])
def test_failed_allocations_change_nothing(first):
    """Fail the n-th allocation of a run of writes, for each n, and go on."""
    rng = random.Random(3)
    keys = [b"/p/" + rng.randbytes(3) for _ in range(700)]
    if first == "churn":
        keys = keys[:40] * 18
    index, model, failures, countdown = RevisionIndex(), IndexModel(), 0, 1
    for main, key in enumerate(keys, 2):
        while True:
            index.fail_allocation(countdown)
            try:
                if main % 3 == 0 and first == "churn":
                    done = index.tombstone(key, main, 0)
                else:
                    done = index.put(key, main, 0, 9)
            except MemoryError:
                failures += 1
                countdown += 1
                assert index.verify() == 0
                assert index.get(key) == model.get(key, 1 << 62)
                continue
            index.fail_allocation(0)
            countdown = 1
            break
        if main % 3 == 0 and first == "churn":
            assert done == model.tombstone(key, main, 0)
        else:
            assert done == model.put(key, main, 0, 9)
    assert failures > 100
    assert index.verify() == 0
    assert walk(index, b"", ALL) == model.range(b"", ALL, 1 << 62)
    assert index.stats()["revisions"] == sum(len(key.flat()) for key in model.keys.values())


def test_compaction_survives_failed_allocations():
    index, model = RevisionIndex(), IndexModel()
    for main in range(2, 3000):
        key = b"%04d" % (main * 7 % 500)
        index.put(key, main, 0, 1)
        model.put(key, main, 0, 1)
    index.compact_begin(2500)
    dropped, done, failures = [], False, 0
    while not done:
        index.fail_allocation(1)
        try:
            part, done = index.compact_step(10, 5)
            dropped += part
        except MemoryError:
            failures += 1
        index.fail_allocation(0)
        if not done:
            part, done = index.compact_step(10, 5)
            dropped += part
    assert sorted(dropped) == sorted(model.compact(2500))
    assert index.verify() == 0


def test_named_refusals():
    index = RevisionIndex()
    index.put(b"k", 5, 1)
    for main, sub in ((5, 1), (5, 0), (4, 9)):
        with pytest.raises(ValueError, match="not above the newest"):
            index.put(b"k", main, sub)
        with pytest.raises(ValueError, match="not above the newest"):
            index.tombstone(b"k", main, sub)
    assert index.put(b"k", 5, 2) == (5, 2)
    assert not index.tombstone(b"none", 6, 0)
    index.compact_begin(5)
    with pytest.raises(RuntimeError, match="under way"):
        index.compact_begin(6)
    assert index.compact_step() == ([(5, 1, False, 0)], True)
    assert index.compact_step() == ([], True)
    with pytest.raises(CompactedError):
        index.compact_begin(5)
    for call in (
        lambda: index.get(b"k", 4),
        lambda: index.count(b"k", b"", 4),
        lambda: index.count_step(b"k", b"", 4, 1),
        lambda: index.range_batch(b"k", rev=4),
        lambda: index.range_batch_desc(b"k", rev=4),
        lambda: index.kept_at(b"k", 5, 2, 4),
        lambda: index.kept_any(4),
    ):
        with pytest.raises(CompactedError):
            call()
    assert index.get(b"k", 5) == (b"k", 5, 5, 2, 2, 0)
    for bad in (0, -1, 2**63):
        with pytest.raises((ValueError, OverflowError)):
            index.put(b"k", bad, 0)
    with pytest.raises(ValueError):
        index.put(b"k", 9, 0, 2**31)
    with pytest.raises(TypeError):
        index.put("k", 9, 0)
    index.clear()
    assert index.stats() == dict.fromkeys(index.stats(), 0)
    assert index.put(b"k", 2, 0) == (2, 1)


def test_an_empty_index_answers():
    index = RevisionIndex()
    assert index.get(b"k") is None
    assert index.count(b"", ALL) == 0
    assert index.range_batch(b"", ALL) == ([], None)
    assert index.range_batch_desc(b"", ALL) == ([], None)
    assert not index.tombstone(b"k", 2, 0)
    assert not index.kept_any(5) and not index.kept_at(b"k", 1, 0, 5)
    assert compact(index, 5) == []
    assert index.verify() == 0
