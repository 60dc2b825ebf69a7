"""Shrink a failing run to few calls: delta debugging over call indexes, on fresh servers each time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

Fails = Callable[[Sequence[int]], bool]


def minimise(indexes: Sequence[int], fails: Fails, limit_seconds: float = 60.0) -> list[int]:
    """A shorter list of calls that still fails, as short as the time allows.

    `fails` replays a list of indexes and tells whether it still fails; the input list must. The
    last index, the call whose answer differed, is always kept, so the result is about that call.
    """
    end = time.monotonic() + limit_seconds
    current = list(indexes)
    # The failing call needs few others as a rule: look for the shortest failing tail of the run
    # before taking the middle apart, which turns a long run into a short one in a few replays.
    tail = 1
    while tail < len(current) and time.monotonic() < end:
        if fails(current[-tail:]):
            current = current[-tail:]
            break
        tail *= 4
    pieces = 2
    while len(current) > 1 and time.monotonic() < end:
        body, last = current[:-1], current[-1]
        size = max(1, len(body) // pieces)
        for start in range(0, len(body), size):
            if time.monotonic() >= end:
                return current
            shorter = [*body[:start], *body[start + size :], last]
            if fails(shorter):
                current = shorter
                pieces = max(pieces - 1, 2)
                break
        else:
            if size == 1:
                break
            pieces = min(pieces * 2, len(body))
    return current
