"""Adds, drops and stabs in any order on very many watched ranges, against a model that finds them by place.

    python -m tests.unit.stress_watchtree [--ranges 1000000] [--steps 3000000] [--seed 1]

Keys are numbers of eight digits below a common prefix, so that the model can look up what holds a key: a dict
for single keys, one for prefixes, and for other ranges lists by the block of keys that they begin in.
"""

import argparse
import random
import time

from etcdfast._ext.watchface import WatchedRanges

SPACE = 10**8
BLOCK = 1000  # keys; a range that is not wide is at most one block long
WIDE_MAX = 40
ALL = b"\0"


def name(number):
    return b"/registry/%08d" % number


class Stress:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.tree = WatchedRanges(self.rng.getrandbits(64))
        self.single = set()
        self.prefixes = set()
        self.blocks = {}
        self.wide = set()
        self.held = []  # every range, for picking one to drop

    def some_range(self):
        rng = self.rng
        number = rng.randrange(SPACE)
        roll = rng.random()
        if roll < 0.4:
            return name(number), b""
        if roll < 0.6:
            prefix = name(number)[: rng.choice((-1, -1, -2, -3, -4, -5))]
            return prefix, prefix[:-1] + bytes([prefix[-1] + 1])
        if roll < 0.9995 or len(self.wide) >= WIDE_MAX:
            return name(number), name(number + rng.randint(1, BLOCK))
        return name(number), rng.choice((ALL, name(number + SPACE // 10)))

    def place(self, watched):
        """The set of the model that a range belongs to."""
        key, end = watched
        if not end:
            return self.single
        if len(key) < len(name(0)):
            return self.prefixes
        if end == ALL or int(end[-9:].strip(b"/")) - int(key[-8:]) > BLOCK:
            return self.wide
        return self.blocks.setdefault(int(key[-8:]) // BLOCK, set())

    def add(self):
        watched = self.some_range()
        place = self.place(watched)
        assert (self.tree.add(*watched) != 0) == (watched in place)
        if watched not in place:
            self.tree.own(*watched, len(self.held) + 1)
            place.add(watched)
            self.held.append(watched)

    def drop(self):
        at = self.rng.randrange(len(self.held))
        watched, self.held[at] = self.held[at], self.held[-1]
        self.held.pop()
        self.place(watched).remove(watched)
        self.tree.drop(*watched)

    def stab(self):
        """Mostly where something is; keys longer than those of ranges as well."""
        rng = self.rng
        key = rng.choice(self.held)[0] if self.held and rng.random() < 0.7 else name(rng.randrange(SPACE))
        key += rng.choice((b"", b"", b"/x", b"\0"))
        found = [watched for watched, _ in self.tree.stab(key, rng.choice((1, 3, 64)))]
        wanted = {(key, b"")} & self.single
        for length in range(len(name(0)) - 5, len(name(0))):
            prefix = key[:length]
            if len(prefix) == length:
                wanted |= {(prefix, prefix[:-1] + bytes([prefix[-1] + 1]))} & self.prefixes
        digits = key.rpartition(b"/x")[0] or key.rstrip(b"\0")
        block = int(digits[len(b"/registry/") :].ljust(8, b"0")) // BLOCK
        near = self.blocks.get(block, set()) | self.blocks.get(block - 1, set()) | self.wide
        wanted |= {(start, end) for start, end in near if start <= key and (end == ALL or key < end)}
        assert len(found) == len(wanted) and set(found) == wanted, (key, set(found) ^ wanted)

    def run(self, ranges, steps):
        """Grow to about `ranges`, sway there for `steps`, and shrink to nothing."""
        rng = self.rng
        while len(self.held) < ranges:
            self.add()
            if rng.random() < 0.2:
                self.stab()
                self.drop()
        assert self.tree.verify() == 0
        full = self.tree.stats()
        for _ in range(steps):
            roll = rng.random()
            if roll < 0.4:
                self.stab()
            elif roll < 0.7 + 0.2 * (ranges - len(self.held)) / ranges:
                self.add()
            else:
                self.drop()
        assert self.tree.verify() == 0 and len(self.tree) == len(self.held)
        while self.held:
            self.drop()
            if rng.random() < 0.1:
                self.stab()
        assert self.tree.verify() == 0 and self.tree.stats()["used_bytes"] == 0
        return full


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranges", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=3_000_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.process_time()
    full = Stress(args.seed).run(args.ranges, args.steps)
    print(f"seed {args.seed}: {full}, {time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
