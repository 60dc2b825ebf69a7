"""A watch load: the phases of its workers, who moves them on, and what the watchers got.

making -> (held, until somebody says go) -> going -> finished. A load that is `concurrent` begins with the making.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass

from etcdfast._ext.loadgen import Generator
from etcdfast.bench.page import FINISH_OFFSET, GO_OFFSET, STOP_OFFSET, flag, raise_flag, sums
from etcdfast.bench.workload import Watching

# short: nothing but the clock ends a slice of a generator that waits for events
SLICE_NS = 10_000_000
SHOW_SECONDS = 0.1
DRAIN_SECONDS = 2.0


@dataclass
class WatchResult:
    """What the watchers of a run got. Times are CLOCK_MONOTONIC in ns, 0 when there was no such thing."""

    made: int
    events: int
    responses: int
    response_bytes: int
    start_ns: int
    made_ns: int
    first_event_ns: int
    last_event_ns: int

    @property
    def make_seconds(self) -> float:
        return max(self.made_ns - self.start_ns, 0) / 1e9

    @property
    def event_seconds(self) -> float:
        return (self.last_event_ns - self.first_event_ns) / 1e9


def merge(rows: list[tuple]) -> WatchResult:
    made, events, responses, size = (sum(row[i] for row in rows) for i in range(4))
    firsts = [row[6] for row in rows if row[6]]
    return WatchResult(
        made,
        events,
        responses,
        size,
        min((row[4] for row in rows), default=0),
        max((row[5] for row in rows), default=0),
        min(firsts, default=0),
        max((row[7] for row in rows), default=0),
    )


def streams_of(worker: int, processes: int, conns: int, streams: int) -> list[int]:
    """Numbers of the streams of a worker: stream s is on connection s % conns, that of worker c % processes."""
    return [s for s in range(streams) if s % conns % processes == worker]


class Conductor:
    """Called by the reporting process many times a second; sees the sums of all workers, moves the phases on.

    `puts`: requests the load makes. `progress(done)` is told the watchers made and events received so far, in
    one number. `pause` is called when the watchers of a load with `hold` are made: `pause(made)` at first, then
    `pause(None)` until it returns True.
    """

    def __init__(
        self,
        page: mmap.mmap,
        processes: int,
        plan: Watching,
        puts: int,
        progress: Callable[[int], None] | None,
        pause: Callable[[int | None], bool] | None,
    ) -> None:
        self._page, self._processes, self._plan, self._puts = page, processes, plan, puts
        self._progress, self._pause = progress, pause
        self._held = False
        self._last = (0, 0, 0)
        self._changed_at = time.monotonic()
        self._shown_at = 0.0

    def __call__(self) -> None:
        done, made, events = now = sums(self._page, self._processes)
        clock = time.monotonic()
        if now != self._last:
            self._last, self._changed_at = now, clock
        if self._progress is not None and clock - self._shown_at >= SHOW_SECONDS:
            self._shown_at = clock
            self._progress(made + events)
        if flag(self._page, FINISH_OFFSET):
            return
        plan = self._plan
        if not flag(self._page, GO_OFFSET):
            if made >= plan.watchers and self._may_go(made):
                self._changed_at = clock
                raise_flag(self._page, GO_OFFSET)
        elif events >= plan.events and (plan.concurrent or done >= self._puts):
            raise_flag(self._page, STOP_OFFSET)
            raise_flag(self._page, FINISH_OFFSET)
        if not self._held and clock - self._changed_at > plan.timeout_seconds:
            raise_flag(self._page, STOP_OFFSET)
            raise_flag(self._page, FINISH_OFFSET)

    def _may_go(self, made: int) -> bool:
        if not self._plan.hold or self._pause is None:
            return True
        self._held = not self._pause(None if self._held else made)
        return not self._held


def drive(generator: Generator, plan: Watching, clients: int, page: mmap.mmap, tick: Callable[[], None]) -> dict:
    """One worker from its first watcher to its last event."""
    interrupted = False
    drain_until = None
    cpu_start = time.thread_time()
    generator.hold(True)
    generator.start_streams()
    loading = plan.concurrent
    if loading:
        generator.start()
    while not generator.aborted:
        try:
            generator.poll(SLICE_NS)
            tick()
        except KeyboardInterrupt:
            interrupted = True
            raise_flag(page, STOP_OFFSET)
        if generator.streams_lost:
            # the others cannot get what is counted on either
            raise_flag(page, STOP_OFFSET)
            raise_flag(page, FINISH_OFFSET)
            break
        if flag(page, FINISH_OFFSET) or flag(page, STOP_OFFSET):
            if not generator.running:
                break
            drain_until = drain_until or time.monotonic() + DRAIN_SECONDS
            if time.monotonic() > drain_until:
                break
        elif not loading and flag(page, GO_OFFSET):
            generator.start()
            loading = True
    return {"cpu": time.thread_time() - cpu_start, "interrupted": interrupted}
