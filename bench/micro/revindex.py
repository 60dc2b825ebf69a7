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

from etcdfast._ext.revindex import RevisionIndex, drive  # noqa: E402


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


def timed(figures, name, times, call):
    began = time.process_time_ns()  # CPU time: other work on the machine counts less
    result = call()
    figures[name] = round((time.process_time_ns() - began) / times, 1)
    return result


def compaction(figures, prefix, index, at, budget=1000):
    """Whole compaction in slices; its total and its longest slice."""
    index.compact_begin(at)
    began, longest, dropped, done = time.perf_counter_ns(), 0, 0, False
    while not done:
        slice_began = time.perf_counter_ns()
        part, done = index.compact_step(budget)
        longest = max(longest, time.perf_counter_ns() - slice_began)
        dropped += len(part)
    figures[f"{prefix}_ms"] = round((time.perf_counter_ns() - began) / 1e6, 2)
    figures[f"{prefix}_slice_longest_us"] = round(longest / 1e3, 1)
    return dropped


def run(count, key_bytes, seed=1):
    """One round; a dict of nanoseconds per operation, bytes per key and compaction times."""
    rng = random.Random(seed)
    figures = {"keys": count, "key_bytes": key_bytes}
    for order in ("random", "ascending"):
        keys = packed_keys(count, key_bytes, order, rng)
        mixed = shuffled(keys, key_bytes, rng)
        tail = mixed[: key_bytes * max(1, count // 20)]
        some = len(tail) // key_bytes
        index = RevisionIndex()
        before = resident_bytes()
        assert timed(figures, f"{order}_insert_ns", count, lambda: drive(index, "put", keys, key_bytes, 2)) == count
        held, grown = index.stats()["held_bytes"], resident_bytes() - before
        figures[f"{order}_bytes_per_key_beyond_key"] = round(held / count - key_bytes, 2)
        figures[f"{order}_resident_per_key_beyond_key"] = round(grown / count - key_bytes, 2)
        assert timed(figures, f"{order}_get_ns", count, lambda: drive(index, "get", mixed, key_bytes)) == count
        timed(figures, f"{order}_range10_ns", some, lambda: drive(index, "range", tail, key_bytes))
        timed(figures, f"{order}_count_now_ns", some, lambda: drive(index, "count", tail, key_bytes, 0))
        main = count + 2
        assert timed(figures, f"{order}_update_ns", some, lambda: drive(index, "put", tail, key_bytes, main)) == some
        few = tail[: key_bytes * min(some, 20)]
        timed(
            figures, f"{order}_count_old_us", 1000 * len(few) // key_bytes,
            lambda: drive(index, "count", few, key_bytes, main),
        )  # fmt: skip
        timed(figures, f"{order}_get_old_ns", some, lambda: drive(index, "get_old", tail, key_bytes, main - 1))
        assert compaction(figures, f"{order}_compact", index, main + some) == some
        main += some
        timed(figures, f"{order}_delete_ns", count, lambda: drive(index, "tombstone", mixed, key_bytes, main + 1))
        assert compaction(figures, f"{order}_compact_all", index, main + count + 2) == 2 * count
        index.clear()
        assert timed(figures, f"{order}_restore_ns", count, lambda: drive(index, "restore", keys, key_bytes, 2)) == count
        index.clear()
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
