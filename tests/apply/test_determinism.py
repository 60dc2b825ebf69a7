"""One log, applied in any pieces and with any stops between, makes one store."""

import random
import shutil

import pytest

from etcdfast.api.pb import rpc_pb2
from tests.apply.rig import Rig
from tests.apply.test_restart import check_state, hash_kv, random_log

ENTRIES = 600


def copied(source, destination):
    """A copy of a store, because the lock of one that was let go unclosed stays with this process."""
    for _ in range(100):
        try:
            return shutil.copytree(source, destination)
        except shutil.Error:  # RocksDB was still removing a file that it needs no more
            shutil.rmtree(destination)
    raise AssertionError(f"{source} does not come to rest")


def apply_all(directory, name, log, rng, turn_max, stop_chance, flush_chance):
    """Feed the log in turns of up to turn_max entries, with stops and flushes by chance; returns the open rig."""
    path = directory / name
    rig = Rig(path)
    stops = []
    while rig.loop.applied_index < len(log):
        first = rig.loop.applied_index + 1
        # Now and then a start hands over again what apply has already.
        for index in range(max(1, first - rng.choice((0, 0, 5))), min(len(log), first + rng.randrange(turn_max)) + 1):
            rig.entry(log[index - 1], asked=rng.random() < 0.5, index=index)
        if rng.random() < 0.5:
            rig.settle()
        else:
            rig.turn()  # what a compaction still has to do is left over
        rig.take()
        if rng.random() < flush_chance:
            rig.process.store.db.flush(True)
        if rng.random() < stop_chance:
            clean = rng.random() < 0.3
            stops.append((rig.loop.applied_index, clean))
            rig.close(flush=clean)
            path = copied(path, path.with_name(f"{name} {len(stops)}"))
            rig = Rig(path)
    rig.settle()
    rig.index = len(log)
    print(f"turns of up to {turn_max}, stops at (index, clean): {stops}")
    return rig


def image(rig):
    """Everything that members compare: hashes of the store, and HashKV at several revisions."""
    current = rig.loop.mvcc.current
    compacted = max(rig.loop.mvcc.compacted, 1)
    newest = hash_kv(rig)
    older = [hash_kv(rig, revision).hash for revision in range(compacted, current, max(1, (current - compacted) // 7))]
    whole = rig.call("Hash", rpc_pb2.HashRequest()).message
    return current, compacted, newest.hash, newest.compact_revision, older, whole.hash


@pytest.mark.parametrize("seed", [random.SystemRandom().randrange(1 << 30)], ids=["seed"])
def test_equal_logs_make_equal_stores_however_they_are_cut(tmp_path, seed):
    print(f"seed {seed}")
    rng = random.Random(seed)
    log, model = random_log(seed, ENTRIES)
    images = {}
    for name, turn_max, stop_chance, flush_chance in (
        ("one by one", 1, 0.0, 0.0),
        ("hundreds", 400, 0.0, 0.0),
        ("with stops", 60, 0.3, 0.5),
        ("with stops, long turns", 250, 0.6, 0.7),
    ):
        rig = apply_all(tmp_path, name, log, rng, turn_max, stop_chance, flush_chance)
        check_state(rig, model)
        images[name] = image(rig)
        rig.close(flush=True)
        # And what a further start makes of the files alone.
        rig = Rig(copied(rig.path, tmp_path / f"{name} again"))
        rig.settle()
        images[name + ", started again"] = image(rig)
        rig.close()
    assert len(set(map(repr, images.values()))) == 1, images
