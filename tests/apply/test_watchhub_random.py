"""The watch hub under random interleavings: everything watchrig checks, from a seed.

Clients create, cancel and ask, read or do not read, vanish; revisions come, grow, are deleted and compacted;
rings are small enough to be full at every point. At the end everybody reads, and nothing may be missing.
ETCDFAST_WATCH_SEEDS=first-last runs other seeds.
"""

import os
import random

import pytest

from tests.apply.watchrig import NODELETE, NOPUT, World

FIRST, _, LAST = os.environ.get("ETCDFAST_WATCH_SEEDS", "1-8").partition("-")
KEYS = [b"a", b"aa", b"ab", b"b", b"ba", b"c", b"\0", b"zz"]


def random_range(rng):
    shape = rng.random()
    if shape < 0.5:
        return rng.choice(KEYS), b""
    if shape < 0.6:
        return b"", b"\0"
    if shape < 0.75:
        return rng.choice(KEYS), b"\0"
    a, b = rng.sample([*KEYS, b"d", b"zzz"], 2)
    return min(a, b), max(a, b)


def random_create(rng, world, client):
    key, end = random_range(rng)
    more = {}
    shape = rng.random()
    if shape < 0.3:
        more["start_revision"] = rng.randint(max(1, world.history.compacted - 3), world.history.current)
    elif shape < 0.4:
        more["start_revision"] = world.history.current + rng.randint(1, 10)
    if rng.random() < 0.3:
        more["prev_kv"] = True
    if rng.random() < 0.2:
        more["filters"] = [rng.choice([NOPUT, NODELETE])]
    if rng.random() < 0.2:
        more["progress_notify"] = True
    if rng.random() < 0.2:
        more["fragment"] = True
    client.create(key, end, **more)


def random_operations(rng, large):
    operations = []
    put = set()
    puts = rng.random() < 0.75  # etcd lets no transaction put and delete one key
    for _ in range(1 if rng.random() < 0.7 else rng.randint(2, 12)):
        if puts:
            key = rng.choice(KEYS)
            if key not in put:
                put.add(key)
                size = rng.choice([0, 3, 30, 300]) if rng.random() < 0.97 else rng.choice(large)
                operations.append((key, rng.randbytes(3) * (size // 3)))
        else:
            operations.append((*random_range(rng), None))
    return [(op[0] or b"\0", *op[1:]) for op in operations]


@pytest.mark.parametrize("seed", range(int(FIRST), int(LAST or FIRST) + 1))
def test_guarantees_hold_in_random_interleavings(tmp_path, seed):
    rng = random.Random(seed)
    world = World(
        tmp_path,
        frontends=rng.choice([1, 2, 3]),
        ring_bytes=rng.choice([1 << 12, 1 << 13, 1 << 15, 1 << 16, 1 << 18, 1 << 22]),
        interval_ns=3_000_000_000,
        seed=seed,
    )
    if rng.random() < 0.5:
        # Pieces of a few events, so that cuts between revisions and large messages are everywhere.
        world.face.limit(piece_bytes=rng.choice([64, 300, 3000]), part_bytes=rng.choice([1000, 4000]))
    if rng.random() < 0.5:
        # Little memory: buffers are given up, large messages wait for each other.
        world.face.limit(
            log_bytes=rng.choice([1, 300_000, 1 << 20]),
            refs_bytes=rng.choice([1, 2000, 1 << 20]),
            group_bytes=rng.choice([100, 3000, 1 << 20]),
            blob_bytes=rng.choice([1, 100_000, 2_000_000]),
        )
    # As if very many streams shared a connection.
    world.window = rng.choice([262144, 262144, 3000, 300])
    world.face.limit(window=world.window)
    try:
        play(rng, world, steps=700)
        world.verify()
    finally:
        world.close()


def play(rng, world, steps):
    frontends = len(world.af)
    # What a small ring or window carries in a test's time.
    large = [20_000, 60_000, 1_100_000] if world.af[0].capacity > 1 << 16 else [9_000, 60_000]
    if world.window < 10_000 or world.af[0].capacity < 1 << 15:
        large = [500, 4_000]
    readers = rng.choice([0.1, 0.5, 0.95])  # how readily clients give credit
    for _ in range(steps):
        clients = list(world.clients.values())
        act = rng.random()
        if act < 0.03 or not clients:
            slot = rng.randint(1, 3)
            client = world.client(rng.randrange(frontends), slot)
            random_create(rng, world, client)
        elif act < 0.12:
            random_create(rng, world, rng.choice(clients))
        elif act < 0.15:
            client = rng.choice(clients)
            if client.watchers:
                client.cancel(rng.choice(list(client.watchers)))
        elif act < 0.18:
            rng.choice(clients).ask_progress()
        elif act < 0.185:
            world.drop(rng.choice(clients))
        elif act < 0.45:
            for _ in range(rng.choice([1, 1, 1, 5, 40])):
                world.apply(*random_operations(rng, large))
            world.face.write()
        elif act < 0.60:
            # Frontends are not equally fast.
            world.drain(rng.choice([1, 3, 10, 1 << 30]), rng.choice([None, 0, 0, rng.randrange(frontends)]))
        elif act < 0.70:
            if rng.random() < readers:
                rng.choice(clients).give_credit(rng.choice([None, 1, 100, 5000]))
        elif act < 0.80:
            world.face.deliver()
        elif act < 0.86:
            world.take(rng.choice([1, 5, 1 << 30]))
        elif act < 0.94:
            world.face.catch_up(0)
        elif act < 0.98:
            world.tick(rng.choice([0.05, 1, 4]))
        elif act < 0.99 and world.history.current > 2:
            low = max(1, world.history.compacted + 1, world.history.current - 200)
            if low < world.history.current:
                world.compact(rng.randint(low, world.history.current - 1))
        else:
            world.face.verify()
