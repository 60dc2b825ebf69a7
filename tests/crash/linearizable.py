"""Is a history of one register linearizable? Wing and Gong's search, with visited states remembered (Lowe).

An operation takes effect at one moment between its beginning and its end. The search picks, again and again,
an operation that began before every unfinished one has ended, and whose result fits the value so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NEVER = 1 << 63
STATES_MAX = 2_000_000


@dataclass(frozen=True, slots=True)
class Call:
    """kind, argument, result as in registers.py; `ended` is NEVER when the outcome is unknown."""

    kind: str
    argument: object
    result: object
    began: int
    ended: int

    @property
    def is_open(self) -> bool:
        return self.ended == NEVER


def _after(call: Call, value: object) -> tuple[bool, object]:
    """(whether the call may come now, the value after it)."""
    if call.kind == "write":
        return True, call.argument
    if call.kind == "read":
        return call.result == value, value
    expected, wanted = call.argument
    done = value == expected
    if call.is_open:
        return True, wanted if done else value
    return call.result == [done, wanted if done else value], wanted if done else value


def _worth_a_search(calls: Sequence[Call]) -> list[Call]:
    """Without open calls that nobody can have noticed: what they wrote was never seen.

    Sound because every other call tells the value it found, so none depends on an unseen one in silence.
    """
    seen = {call.result for call in calls if call.kind == "read"}
    for call in calls:
        if call.kind == "cas":
            seen.add(call.argument[0])
            if not call.is_open:
                seen.add(call.result[1])
    return [call for call in calls if not call.is_open or _written(call) in seen]


def _written(call: Call) -> object:
    if call.kind == "read":
        return Call  # nothing, and no value equals it
    return call.argument[1] if call.kind == "cas" else call.argument


def is_linearizable(calls: Sequence[Call], value: object = None) -> bool:
    """Whether the calls on one register that held `value` fit. Errors: RuntimeError when the search is too wide."""
    calls = sorted(_worth_a_search(calls), key=lambda call: call.began)
    must = sum(1 << i for i, call in enumerate(calls) if not call.is_open)
    visited: set[tuple[int, object]] = set()
    stack = [(0, value)]
    while stack:
        done, value = stack.pop()
        if done & must == must:
            return True
        if (done, value) in visited:
            continue
        visited.add((done, value))
        if len(visited) > STATES_MAX:
            raise RuntimeError(f"more than {STATES_MAX} states: make the history shorter")
        limit = NEVER
        choices = []
        first = (~done & (done + 1)).bit_length() - 1  # the first one left
        for i in range(first, len(calls)):
            if done >> i & 1:
                continue
            call = calls[i]
            if call.began > limit:
                break
            limit = min(limit, call.ended)
            choices.append(i)
        for i in choices:
            if calls[i].began <= limit:
                fits, after = _after(calls[i], value)
                if fits:
                    stack.append((done | 1 << i, after))
    return False
