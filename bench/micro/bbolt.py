"""Micro benchmarks of bbolt files: writing, reading, checking, hashing.

Run: python bench/micro/bbolt.py [--directory DIR] [--items N] [--value-bytes N]
"""

import argparse
import os
import tempfile
import time

from etcdfast.formats import bbolt


def run(directory, items, value_bytes):
    """{what: figure}: seconds of each step over a file of `items` revisions, and its bytes."""
    path = os.path.join(directory, "bench.db")
    value = os.urandom(value_bytes)
    rows = [(i.to_bytes(8, "big") + b"_" + bytes(8), value) for i in range(1, items + 1)]
    figures = {"items": items}

    def timed(name, function):
        began = time.perf_counter()
        result = function()
        figures[name] = time.perf_counter() - began
        return result

    def write():
        with bbolt.Writer(path) as writer:
            writer.bucket(b"key", rows)
            return writer.finish(sync=False)

    figures["bytes"] = timed("write_seconds", write)
    with bbolt.Reader(path) as reader:
        found = timed("read_seconds", lambda: sum(len(batch) for batch in reader.batches(b"key")))
        timed("check_seconds", reader.check)
        status = timed("status_seconds", reader.status)
    os.unlink(path)
    if (found, status.total_keys, status.revision) != (items, items, items):
        raise AssertionError(f"wrote {items} items, read {found}, status {status}")
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", default=None)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=280)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        for name, figure in run(directory, options.items, options.value_bytes).items():
            print(f"{name:<16} {figure:.3f}" if isinstance(figure, float) else f"{name:<16} {figure}")


if __name__ == "__main__":
    main()
