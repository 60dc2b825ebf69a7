"""Compaction: old revisions leave index and store in the background, a step per turn.

Asking for a compaction moves the compacted revision at once (the loop does that in its own order); the
dropping waits until no read under way needs what it drops, for WAIT_SECONDS at most.

Source: reference/formats.md 9.4; the order of the two records in bucket meta is etcd's.
"""

import time
from collections import deque
from itertools import islice

from etcdfast import log
from etcdfast._ext import meters
from etcdfast.apply import buckets

STEP_DROPS = 256
STEP_BUDGET = 4096  # index records looked at in a step
SWEEP_KEYS = 1024
WAIT_NS = 30 * 10**9

IDLE, WAIT, DROP, SWEEP = range(4)


class Compactor:
    """One compaction after the other; `step` does a slice of the one under way.

    active: there is something to do.
    """

    def __init__(self, store, mvcc):
        self._store = store
        self._mvcc = mvcc
        self._loop = None
        self._asked = deque()  # (revision, waiter or None)
        self._finished = []
        self._state = IDLE
        self._revision = 0
        self._waiter = None
        self._since_ns = 0
        self._keys = None
        self._swept_to = 0
        self.active = False
        self.dropped = 0

    def attach(self, loop):
        self._loop = loop

    def request(self, revision, waiter, meta_batch):
        """A committed compaction at `revision`, checked; `waiter` is answered at its end if not None."""
        self._mvcc.set_compacted(revision)
        meta_batch.put(buckets.SCHEDULED_COMPACT, revision_key(revision))
        self._asked.append((revision, waiter))
        self.active = True

    def resume(self, meta):
        """After a restart: the compacted revision, and what was scheduled and not finished.

        Returns the compacted revision, -1 for never.
        """
        scheduled = revision_of(meta.get(buckets.SCHEDULED_COMPACT))
        finished = revision_of(meta.get(buckets.FINISHED_COMPACT))
        if finished > 0:
            # The index learns what its store already is; there is nothing to drop.
            self._begin(finished)
            self._swept_to = finished
        if scheduled > finished:
            self._asked.append((scheduled, None))
            self.active = True
        return max(scheduled, finished)

    def _begin(self, revision):
        status = self._mvcc.compact_begin(revision)
        if status:
            raise AssertionError(f"compaction at {revision}: index error {status}")
        done = False
        batch = self._store.new_batch()
        while not done:
            dropped, done = self._mvcc.compact_step(1 << 20, 4096, batch)
        if len(batch):
            self._store.write(batch)

    def take_finished(self):
        """Waiters of the compactions that ended since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def step(self, now_ns):
        """One slice; 1 when there is more to do at once."""
        began = time.monotonic_ns()
        dropped, state = self.dropped, self._state
        more = self._step(now_ns)
        if more:
            took = time.monotonic_ns() - began
            meters.observe("compaction_pause", took)
            if state == DROP:
                meters.observe("index_pause", took)
            meters.count("compaction_keys", self.dropped - dropped)
        return more

    def _step(self, now_ns):
        if self._state == IDLE:
            if not self._asked:
                self.active = False
                return 0
            self._revision, self._waiter = self._asked.popleft()
            self._since_ns = now_ns
            self._state = WAIT
        if self._state == WAIT:
            pin = self._loop.answers.oldest_pin()
            if pin is not None and pin < self._revision:
                if now_ns - self._since_ns < WAIT_NS:
                    return 0
                self._loop.answers.end_below(self._revision)
                return 0
            self._mvcc.compact_begin(self._revision)
            self._state = DROP
        batch = self._store.new_batch()
        if self._state == DROP:
            dropped, done = self._mvcc.compact_step(STEP_BUDGET, STEP_DROPS, batch)
            self.dropped += dropped
            if done:
                self._state = SWEEP
                self._keys = self._store.db.keys(from_key=buckets.KEY + self._swept_to.to_bytes(8, "big"))
        elif self._sweep(batch):
            self._state = IDLE
            self._keys = None
            self._swept_to = self._revision
        if len(batch):
            self._store.write(batch)
        if self._state == IDLE:
            self._finish()
        return 1

    def _sweep(self, batch):
        """Delete applied records below the revision; True at the end.

        Only what came since the last compaction can hold any, so this walks no live data twice.
        """
        end = buckets.KEY + self._revision.to_bytes(8, "big")
        seen = 0
        for key in islice(self._keys, SWEEP_KEYS):
            seen += 1
            if key >= end:
                return True
            if key[9] == 0xFF:
                batch.delete(key)
        return seen < SWEEP_KEYS

    def _finish(self):
        self._loop.store_meta(buckets.FINISHED_COMPACT, revision_key(self._revision))
        meters.observe("compaction_total", max(0, time.monotonic_ns() - self._since_ns))
        meters.put("compaction_last", int(time.time()))
        log.info("finished compaction", revision=self._revision)
        if self._waiter is not None:
            self._finished.append(self._waiter)
            self._waiter = None


def revision_key(revision):
    return revision.to_bytes(8, "big") + b"_" + bytes(8)


def revision_of(raw):
    return int.from_bytes(raw[:8], "big") if raw else -1
