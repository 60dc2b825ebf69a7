"""The revision index the long way round: etcd's generations per key, straight from formats.md 9.4 and 9.5.

Slow and plain on purpose: lists of generations, walked in the order the rules are written down.
"""


class Generation:
    def __init__(self, created=0, version=0):
        self.created = created
        self.version = version
        self.revs = []  # (main, sub, size), ascending; a tombstone is the last one of a closed generation


class KeyModel:
    def __init__(self):
        self.generations = [Generation()]

    @property
    def newest(self):
        return max((rev[:2] for gen in self.generations for rev in gen.revs), default=(0, 0))

    def is_empty(self):
        return len(self.generations) == 1 and not self.generations[0].revs

    def put(self, main, sub, size):
        gen = self.generations[-1]
        if not gen.revs:
            gen.created = main
        gen.revs.append((main, sub, size))
        gen.version += 1

    def tombstone(self, main, sub):
        if not self.generations[-1].revs:
            return False
        self.put(main, sub, 0)
        self.generations.append(Generation())
        return True

    def restore_first(self, main, sub, created, version, is_tombstone, size):
        gen = Generation(0 if is_tombstone else created, 1 if is_tombstone else version)
        gen.revs.append((main, sub, 0 if is_tombstone else size))
        self.generations = [gen, Generation()] if is_tombstone else [gen]

    def get(self, rev):
        last = len(self.generations) - 1
        for number in range(last, -1, -1):
            gen = self.generations[number]
            if not gen.revs:
                continue
            if number != last and gen.revs[-1][0] <= rev:
                return None
            if gen.revs[0][0] <= rev:
                seen = [r for r in gen.revs if r[0] <= rev]
                main, sub, size = seen[-1]
                return gen.created, main, sub, gen.version - (len(gen.revs) - len(seen)), size
        return None

    def _found(self, compact_rev):
        """(number of the generation the keep rule finds, index of its largest revision <= C or -1)."""
        number = 0
        while number < len(self.generations) - 1 and self.generations[number].revs[-1][0] < compact_rev:
            number += 1
        revs = self.generations[number].revs
        return number, max((i for i, rev in enumerate(revs) if rev[0] <= compact_rev), default=-1)

    def compact(self, compact_rev):
        """Drop what the rule drops; [(main, sub, is_tombstone, size)]."""
        before = self.flat()
        number, index = self._found(compact_rev)
        if index >= 0:
            del self.generations[number].revs[:index]
        del self.generations[:number]
        return before[: len(before) - len(self.flat())]

    def keep(self, rev):
        """The revision of this key in HashKV's keep set at rev, or None."""
        number, index = self._found(rev)
        revs = self.generations[number].revs
        if index < 0 or (number != len(self.generations) - 1 and index == len(revs) - 1):
            return None
        return revs[index][:2]

    def flat(self):
        """[(main, sub, is_tombstone, size)], oldest first."""
        last = len(self.generations) - 1
        return [
            (main, sub, number != last and i == len(gen.revs) - 1, size)
            for number, gen in enumerate(self.generations)
            for i, (main, sub, size) in enumerate(gen.revs)
        ]

    def described(self):
        """flat() with create revision and version of each revision."""
        out = []
        for number, gen in enumerate(self.generations):
            for i, (main, sub, size) in enumerate(gen.revs):
                tomb = number != len(self.generations) - 1 and i == len(gen.revs) - 1
                out.append((main, sub, tomb, size, gen.created, gen.version - (len(gen.revs) - 1 - i)))
        return out


class IndexModel:
    def __init__(self):
        self.keys = {}

    def put(self, key, main, sub, size):
        model = self.keys.setdefault(key, KeyModel())
        model.put(main, sub, size)
        return model.generations[-1].created, model.generations[-1].version

    def tombstone(self, key, main, sub):
        return key in self.keys and self.keys[key].tombstone(main, sub)

    def restore(self, key, main, sub, created, version, is_tombstone, size):
        if key not in self.keys:
            self.keys[key] = KeyModel()
            self.keys[key].restore_first(main, sub, created, version, is_tombstone, size)
            return True
        if is_tombstone:
            return self.keys[key].tombstone(main, sub)
        self.keys[key].put(main, sub, size)
        return True

    def get(self, key, rev):
        state = self.keys[key].get(rev) if key in self.keys else None
        return None if state is None else (key, *state)

    def in_range(self, key, end):
        if end == b"":
            return [key] if key in self.keys else []
        return sorted(k for k in self.keys if k >= key and (end == b"\0" or k < end))

    def range(self, key, end, rev):
        states = (self.get(k, rev) for k in self.in_range(key, end))
        return [state for state in states if state is not None]

    def compact(self, compact_rev):
        dropped = []
        for key in sorted(self.keys):
            dropped += self.keys[key].compact(compact_rev)
            if self.keys[key].is_empty():
                del self.keys[key]
        return dropped

    def keep_set(self, rev):
        kept = {}
        for key, model in self.keys.items():
            found = model.keep(rev)
            if found is not None:
                kept[key] = found
        return kept
