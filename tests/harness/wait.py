"""Waiting for a condition with a deadline: the only kind of waiting the outside-in tests do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class WaitTimeout(AssertionError):
    """The condition did not come true before the deadline."""


def wait_until(
    condition: Callable[[], T],
    what: str,
    deadline_seconds: float = 20.0,
    poll_seconds: float = 0.005,
) -> T:
    """Call `condition` until it returns something true, and return that.

    Units:  seconds; the poll interval doubles up to 100 ms so that a long wait stays cheap.
    Errors: WaitTimeout naming `what`; an exception of `condition` passes through unchanged.
    """
    end = time.monotonic() + deadline_seconds
    pause = poll_seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() >= end:
            raise WaitTimeout(f"not within {deadline_seconds:.1f} s: {what}")
        time.sleep(pause)
        pause = min(pause * 2, 0.1)
