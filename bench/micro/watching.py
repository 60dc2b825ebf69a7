"""Time of watched ranges and of past events, one operation at a time.

    python bench/micro/watching.py [--keys 1000000] [--events 1000000] [--seed 1]

Stabs run in a loop in C as the hub makes them; past events are read from RocksDB in slices to the front.
CPU time, as other work on the machine counts less in it. Memory is what is in use, beyond the keys' bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from etcdfast._ext import watchface  # noqa: E402
from etcdfast._ext.mvcc import Mvcc  # noqa: E402
from etcdfast.apply.store import Store  # noqa: E402

STABS = 200_000
BUSY_KEYS = 1000
VALUE_BYTES = 100


def name(number):
    return b"/bench/watch/key%08d" % number


def stab_ns(tree, keys):
    packed = b"".join(keys)
    tree.stab_all(packed, len(keys[0]))
    began = time.process_time_ns()
    hits = tree.stab_all(packed, len(keys[0]))
    return round((time.process_time_ns() - began) / len(keys), 1), hits


def stabs(count, kind, rng, questions):
    """Figures of `count` watched ranges of one kind: key, prefix or range."""
    tree = watchface.WatchedRanges(rng.getrandbits(64))
    order = list(range(count))
    rng.shuffle(order)
    names = [name(number) for number in order]
    began = time.process_time_ns()
    if kind == "range":
        for number in order:  # ten keys, nine of which they hold; no prefix
            tree.add(name(number * 10), name(number * 10 + 9))
    else:
        tree.add_all(b"".join(names), len(names[0]), kind == "prefix")
    figures = {"add_ns": round((time.process_time_ns() - began) / count, 1)}
    tails = {"key": b"", "prefix": b"/x", "range": b"/x"}
    factor = 10 if kind == "range" else 1
    asked = [name(rng.randrange(count) * factor) + tails[kind] for _ in range(questions)]
    figures["hit_ns"], hits = stab_ns(tree, asked)
    assert hits == questions
    figures["miss_ns"], hits = stab_ns(tree, [key.replace(b"watch", b"other") for key in asked])
    assert hits == 0
    ends = 0 if kind == "key" else len(names[0])
    figures["bytes_beyond_key"] = round(tree.stats()["used_bytes"] / count - len(names[0]) - ends, 1)
    return {f"{kind}_{count}_{figure}": value for figure, value in figures.items()}


def history(count, keys, per_turn):
    """Nanoseconds for each of the events of `keys` keys written in turn."""
    figures = {}
    with tempfile.TemporaryDirectory() as path:
        store = Store(path)
        mvcc = Mvcc(store.read, store.walk, store.new_batch, store.write)
        for number in range(count):
            watchface.write(mvcc, [(name(number % keys), b"v" * VALUE_BYTES)])
            if number % per_turn == per_turn - 1:
                mvcc.write_batch(number, 1)
        mvcc.write_batch(count, 1)
        store.db.flush(True)
        for label, key, end, options, events in (
            ("range", b"/bench/", b"/bench0", 0, count),
            ("key", name(0), b"", 0, -(-count // keys)),
            ("key_prev_kv", name(0), b"", watchface.PREV_KV, -(-count // keys)),
        ):
            past = watchface.PastEvents(mvcc, key, end, options, 1)
            began = time.process_time_ns()
            status, revisions, _ = past.drain()
            assert (status, revisions) == (watchface.FRONT, events), (label, status, revisions)
            figures[f"{label}_{keys}_keys_event_ns"] = round((time.process_time_ns() - began) / events, 1)
        store.close()
    return figures


def run(keys, events, seed=1, questions=STABS):
    """One round; a dict of CPU nanoseconds per operation or event, and of bytes per range."""
    rng = random.Random(seed)
    figures = {}
    for kind in ("key", "prefix", "range"):
        for count in (max(1, keys // 100), max(1, keys // 10), keys):
            figures |= stabs(count, kind, rng, questions)
    return figures | history(events, 1, 64) | history(events, min(BUSY_KEYS, events), 64)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if not 1 <= args.keys <= 10**7 or args.events < 1:
        parser.error("--keys must be 1 to 10000000, --events at least 1")
    print(json.dumps(run(args.keys, args.events, args.seed), indent=1))


if __name__ == "__main__":
    main()
