"""Time and memory of the revision index, one operation at a time.

    python bench/micro/revindex.py [--keys 1000000] [--key-bytes 32] [--seed 1]

Operations run in a loop in C (revindex.drive), as the apply process calls them. Memory is what the
index holds from the system, and beside it the growth of the process's resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from etcdfast._ext.revface import RevisionIndex, drive  # noqa: E402


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def packed_keys(count, key_bytes, order, rng):
    """Distinct keys in one bytes object: random bytes, or a counter behind a common prefix."""
    if order == "random":
        return b"".join(rng.randbytes(key_bytes - 4) + i.to_bytes(4, "big") for i in range(count))
    prefix = b"/registry/events/default/".ljust(key_bytes, b"x")[: key_bytes - 12]
    return b"".join(prefix + b"%012d" % i for i in range(count))


def shuffled(keys, key_bytes, rng):
    parts = [keys[i : i + key_bytes] for i in range(0, len(keys), key_bytes)]
    rng.shuffle(parts)
    return b"".join(parts)


def timed(index, operation, keys, key_bytes, main=0):
    """(nanoseconds of CPU per key, results); CPU time, as other work on the machine counts less in it."""
    began = time.process_time_ns()
    results = drive(index, operation, keys, key_bytes, main)
    return round((time.process_time_ns() - began) * key_bytes / len(keys), 1), results


def compaction(figures, prefix, index, at, budget=1000):
    """Whole compaction in slices; its total and its longest slice."""
    index.compact_begin(at)
    began, longest, dropped, done = time.process_time_ns(), 0, 0, False
    while not done:
        slice_began = time.process_time_ns()
        part, done = index.compact_step(budget)
        longest = max(longest, time.process_time_ns() - slice_began)
        dropped += len(part)
    figures[f"{prefix}_ms"] = round((time.process_time_ns() - began) / 1e6, 2)
    figures[f"{prefix}_slice_longest_us"] = round(longest / 1e3, 1)
    return dropped


def run_order(order, count, key_bytes, rng):
    """All operations on keys that were inserted in one order."""
    keys = packed_keys(count, key_bytes, order, rng)
    mixed = shuffled(keys, key_bytes, rng)
    some = max(1, count // 20)
    tail = mixed[: key_bytes * some]
    few = tail[: key_bytes * 20]
    index = RevisionIndex()
    figures = {}

    def step(figure, operation, on, main=0, results=None):
        figures[figure], got = timed(index, operation, on, key_bytes, main)
        assert results is None or got == results, f"{figure}: {got} results, expected {results}"

    before = resident_bytes()
    step("insert_ns", "put", keys, 2, count)
    figures["held_bytes_beyond_key"] = round(index.stats()["held_bytes"] / count - key_bytes, 2)
    figures["resident_bytes_beyond_key"] = round((resident_bytes() - before) / count - key_bytes, 2)
    figures["leaf_fill"] = round(count / index.stats()["leaves"] / 64, 3)
    step("get_ns", "get", mixed, results=count)
    step("range_of_10_ns", "range", tail)
    step("count_now_ns", "count", tail)
    updates = count + 2
    step("update_ns", "put", tail, updates, some)
    step("count_after_updates_ns", "count", few, updates - 1)  # at a revision before a twentieth of the keys changed
    step("get_old_ns", "get_old", tail, updates - 1, some)
    assert compaction(figures, "compact_updates", index, updates + some) == some
    deletes = updates + some + 1
    step("delete_ns", "tombstone", mixed, deletes, count)
    assert compaction(figures, "compact_deletes", index, deletes + count) == 2 * count
    index.clear()
    step("restore_ns", "restore", keys, 2, count)
    return {f"{order}_{name}": value for name, value in figures.items()}


def run(count, key_bytes, seed=1):
    """One round; a dict of CPU nanoseconds per operation, bytes per key and compaction times."""
    rng = random.Random(seed)
    figures = {"keys": count, "key_bytes": key_bytes}
    for order in ("random", "ascending"):
        figures |= run_order(order, count, key_bytes, rng)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--key-bytes", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.keys < 1 or args.key_bytes < 16:
        parser.error("--keys must be at least 1, --key-bytes at least 16")
    print(json.dumps(run(args.keys, args.key_bytes, args.seed), indent=1))


if __name__ == "__main__":
    main()
