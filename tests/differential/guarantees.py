"""The guarantees of a watch, each as a checker of its name, over what one watch received.

The texts are those of etcd's API guarantees (anchors.md 5b); prev_kv, is_create and filter are what its
robustness tests add. A checker gets a `Record` (one watch with everything that came for it) and, where
the record alone cannot tell, a `Replay` (what really happened, learned without any watch).

What is not judged here, because etcd leaves it open: how many revisions travel in one response, and
whether prev_kv is there when the revision before the event's is compacted.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from tests.harness import pb
from tests.harness.watch import NODELETE, NOPUT, Watch, is_progress

_PUT, _DELETE = pb.Event.PUT, pb.Event.DELETE


class Violation(AssertionError):
    """A guarantee does not hold; `guarantee` is its name."""

    def __init__(self, guarantee: str, text: str) -> None:
        super().__init__(f"not {guarantee}: {text}")
        self.guarantee = guarantee


@dataclass(slots=True)
class Record:
    """One watch: the request, the answer to it, and the responses in order of arrival, fragments joined."""

    request: Any
    created: Any
    responses: list[Any]

    @classmethod
    def of(cls, watch: Watch) -> Record:
        """A snapshot of a watch that was created."""
        return cls(watch.request, watch.created, list(watch.responses))

    @property
    def first_revision(self) -> int:
        """The first revision whose events belong to this watch."""
        start = self.request.start_revision
        return start if start > 0 else self.created.header.revision + 1

    @property
    def cancelled(self) -> bool:
        """By request: it ends with the answer to that."""
        return bool(self.responses) and self.responses[-1].canceled and not self.responses[-1].compact_revision

    @property
    def events(self) -> Iterator[Any]:
        for response in self.responses:
            yield from response.events

    def __str__(self) -> str:
        return f"watch {{{' '.join(str(self.request).split())}}} created at {self.created.header.revision}"


@dataclass(slots=True)
class Replay:
    """Every event of the store, with its true prev_kv; revisions are consecutive."""

    by_revision: dict[int, list[Any]] = field(default_factory=dict)
    by_key: dict[bytes, list[Any]] = field(default_factory=dict)
    live: dict[bytes, Any] = field(default_factory=dict)
    current: int = 1
    compacted: int = -1

    def apply(self, revision: int, effects: Iterable[tuple[bytes, bytes | None]]) -> None:
        """One write: its puts, and its deletes (value None) of keys that exist, in the order of its operations."""
        if revision != self.current + 1:
            raise AssertionError(f"revision {revision} follows {self.current}")
        self.current = revision
        events = self.by_revision[revision] = []
        for key, value in effects:
            before = self.live.get(key)
            event = pb.Event(prev_kv=before)
            if value is None:
                event.type = _DELETE
                event.kv.key, event.kv.mod_revision = key, revision
                del self.live[key]
            else:
                event.kv.key, event.kv.value, event.kv.mod_revision = key, value, revision
                event.kv.create_revision = before.create_revision if before else revision
                event.kv.version = before.version + 1 if before else 1
                self.live[key] = event.kv
            events.append(event)
            self.by_key.setdefault(key, []).append(event)

    def select(self, request: Any, first: int, last: int) -> list[Any]:
        """The events a watch has to see between two revisions, both included."""
        if not request.range_end:
            events = self.by_key.get(request.key or b"\x00", [])
            events = events[bisect_left(events, first, key=_revision) : bisect_right(events, last, key=_revision)]
            return [event for event in events if matches(request, event)]
        revisions = range(max(first, 1), min(last, self.current) + 1)
        return [event for r in revisions for event in self.by_revision.get(r, ()) if matches(request, event)]

    def find(self, event: Any) -> Any | None:
        """The true event of the same revision, key and type."""
        events, revision = self.by_key.get(event.kv.key, []), event.kv.mod_revision
        for true in events[bisect_left(events, revision, key=_revision) :]:
            if true.kv.mod_revision != revision:
                break
            if true.type == event.type:
                return true
        return None


def _revision(event: Any) -> int:
    return event.kv.mod_revision


def matches(request: Any, event: Any) -> bool:
    """Whether an event is of the range of a watch and passes its filters."""
    if request.filters and (NOPUT if event.type == _PUT else NODELETE) in request.filters:
        return False
    first, end, key = request.key or b"\x00", request.range_end, event.kv.key
    if not end:
        return key == first
    return key >= first and (end == b"\x00" or key < end)


# -- the guarantees -------------------------------------------------------------------------------


def ordered(record: Record) -> None:
    """Events are ordered by revision; none comes after one that happened later."""
    last = 0
    for event in record.events:
        if event.kv.mod_revision < last:
            raise Violation("ordered", f"{_show(event)} after an event of revision {last}; {record}")
        last = event.kv.mod_revision


def unique(record: Record) -> None:
    """No event appears on a watch twice."""
    seen = set()
    for event in record.events:
        # A txn may delete a key and put it again: two events of one key at one revision.
        name = (event.kv.mod_revision, event.kv.key, event.type)
        if name in seen:
            raise Violation("unique", f"{_show(event)} came twice; {record}")
        seen.add(name)


def atomic(record: Record, replay: Replay) -> None:
    """One response carries all events of each revision in it."""
    last = 0
    for response in record.responses:
        for revision, events in groupby(response.events, lambda event: event.kv.mod_revision):
            came = list(events)
            if revision == last:
                raise Violation("atomic", f"revision {revision} is split over responses; {record}")
            last = revision
            due = len(replay.select(record.request, revision, revision))
            if len(came) != due:
                raise Violation("atomic", f"{len(came)} of {due} events of revision {revision} together; {record}")


def reliable(record: Record, replay: Replay, through: int = 0) -> None:
    """Between the start and the last event nothing is missing, nothing is added, and all is as it was written.

    `through`: a revision up to which the test knows everything has come.
    """
    came = list(record.events)
    last = max(through, came[-1].kv.mod_revision if came else 0)
    due = replay.select(record.request, record.first_revision, last)
    for number, (event, expected) in enumerate(zip(came, due)):
        if event.type != expected.type or event.kv != expected.kv:
            raise Violation("reliable", f"event {number} is {_show(event)}, not {_show(expected)}; {record}")
    if len(came) != len(due):
        longer = came if len(came) > len(due) else due
        what = "added" if longer is came else "missing"
        raise Violation("reliable", f"{what}: {_show(longer[min(len(came), len(due))])}; {record}")


def resumable(record: Record, replay: Replay) -> None:
    """A watch from a revision of the history window begins with the first event from there on.

    And it is only refused for compaction when it really needs what is compacted.
    """
    need = record.first_revision
    first = next(record.events, None)
    if record.request.start_revision > 0 and first is not None:
        due = replay.select(record.request, need, first.kv.mod_revision)
        if not due or (due[0].type, due[0].kv) != (first.type, first.kv):
            raise Violation("resumable", f"begins with {_show(first)}, not {_show(due[0] if due else None)}; {record}")
    for response in record.responses:
        for event in response.events:
            need = event.kv.mod_revision + 1
        if response.compact_revision and not need < response.compact_revision <= max(replay.compacted, 1):
            raise Violation(
                "resumable",
                f"canceled at compact revision {response.compact_revision}, but it needs {need} on, "
                f"and the store is compacted at {replay.compacted}; {record}",
            )


def bookmarkable(record: Record, replay: Replay, *, headers: bool = False) -> None:
    """What a progress notification names has been sent before it: all events up to its revision.

    `headers`: hold the header of a response with events to the same, which etcd 3.5.1 does not while
    catching up (formats.md 9.6: it names the current revision though more is to come).
    """
    mark, last, came, due, counted = 0, 0, 0, 0, record.first_revision - 1
    for response in record.responses:
        for event in response.events:
            if event.kv.mod_revision <= mark:
                raise Violation("bookmarkable", f"{_show(event)} after bookmark {mark}; {record}")
            last = event.kv.mod_revision
            came += 1
        revision = response.header.revision
        if response.canceled:
            continue  # compacted: the revision is 0
        if revision < last or revision < mark:
            raise Violation("bookmarkable", f"revision {revision} after events to {last}, bookmark {mark}; {record}")
        if is_progress(response) or headers:
            mark = revision
            due += len(replay.select(record.request, counted + 1, mark))
            counted = max(counted, mark)
            if mark > replay.current:
                raise Violation("bookmarkable", f"bookmark {mark} is in the future of {replay.current}; {record}")
            if came != due:
                raise Violation("bookmarkable", f"{came} of {due} events before bookmark {mark}; {record}")


def prev_kv(record: Record, replay: Replay, *, lost_at_cancel: bool = False) -> None:
    """prev_kv is the key as it was before the event: if asked for, if there was one, if not compacted.

    `lost_at_cancel`: the last events before the answer to a cancellation may lack it; etcd (to this day)
    forgets the option before it has sent what was queued.
    """
    may_lack = lost_at_cancel and record.cancelled
    lacking = None
    for event in record.events:
        due = replay.find(event)
        if due is None:
            continue  # reliable says so
        if event.HasField("prev_kv"):
            if not record.request.prev_kv:
                raise Violation("prev_kv", f"{_show(event)} carries one that was not asked for; {record}")
            if not due.HasField("prev_kv") or event.prev_kv != due.prev_kv:
                raise Violation("prev_kv", f"{_show(event)} carries {_kv(event)}, not {_kv(due)}; {record}")
            may_lack = may_lack and lacking is None
        elif record.request.prev_kv and due.HasField("prev_kv") and event.kv.mod_revision - 1 >= replay.compacted:
            lacking = lacking or event
        if lacking is not None and not may_lack:
            raise Violation("prev_kv", f"{_show(lacking)} lacks {_kv(replay.find(lacking))}; {record}")


def is_create(record: Record, replay: Replay) -> None:
    """A put is a creation (create_revision = mod_revision, version 1) exactly when the key was not there before."""
    for event in record.events:
        true = replay.find(event) if event.type == _PUT else None
        if true is None:
            continue
        says = event.kv.create_revision == event.kv.mod_revision, event.kv.version == 1
        was_there = true.HasField("prev_kv")
        if says != (not was_there, not was_there):
            there = "" if was_there else "not "
            raise Violation("is_create", f"{_show(event)}, though the key was {there}there; {record}")


def filter(record: Record) -> None:  # noqa: A001 - the name of the guarantee
    """Only events of the range asked for, from the start revision on, of kinds not filtered out.

    A response that is left without events is not sent: it would look like a bookmark.
    """
    for event in record.events:
        if not matches(record.request, event) or event.kv.mod_revision < record.first_revision:
            raise Violation("filter", f"{_show(event)} does not belong to this watch; {record}")


Checker = Callable[[Record, Replay], None]
GUARANTEES: dict[str, Checker] = {
    "ordered": lambda record, _: ordered(record),
    "unique": lambda record, _: unique(record),
    "filter": lambda record, _: filter(record),
    "atomic": atomic,
    "reliable": reliable,
    "resumable": resumable,
    "bookmarkable": bookmarkable,
    "prev_kv": prev_kv,
    "is_create": is_create,
}


def check_all(record: Record, replay: Replay, *, through: int = 0, etcd: bool = False) -> None:
    """Every guarantee. `through` as for `reliable`; `etcd` allows what real etcd is known to do. Errors: Violation."""
    for name, check in GUARANTEES.items():
        if name == "bookmarkable":
            bookmarkable(record, replay, headers=not etcd)
        elif name == "prev_kv":
            prev_kv(record, replay, lost_at_cancel=etcd)
        else:
            check(record, replay)
    if through:
        reliable(record, replay, through)


def _kv(event: Any) -> str:
    return f"prev_kv {{{_short(event.prev_kv)}}}" if event.HasField("prev_kv") else "no prev_kv"


def _show(event: Any) -> str:
    if event is None:
        return "nothing"
    return f"{pb.Event.EventType.Name(event.type)} {{{_short(event.kv)}}}"


def _short(kv: Any) -> str:
    text = " ".join(str(kv).split())
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"
