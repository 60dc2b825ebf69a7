"""Each checker of a watch guarantee passes a true record and finds its violation when one is planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.harness import pb
from tests.harness.watch import NODELETE, NOPUT

from .guarantees import GUARANTEES, Record, Replay, Violation, bookmarkable, check_all, reliable

# Revision 2 on: one list of effects each.
HISTORY: tuple[tuple[tuple[bytes, bytes | None], ...], ...] = (
    ((b"k/a", b"1"),),
    ((b"k/a", b"2"), (b"k/b", b"1"), (b"other", b"1")),
    ((b"k/b", None),),
    ((b"other", b"2"),),
    ((b"k/b", b"again"), (b"k/a", None)),
    ((b"k/c", b"1"),),
)
START = 2
LAST = len(HISTORY) + 1


def _replay() -> Replay:
    replay = Replay()
    for revision, effects in enumerate(HISTORY, 2):
        replay.apply(revision, effects)
    return replay


def _record(replay: Replay, *, progress_after: int = 0, **fields: Any) -> Record:
    """What a server that keeps every promise sends: one response per revision."""
    request = pb.WatchCreateRequest(key=b"k/", range_end=b"k0", start_revision=START, prev_kv=True, **fields)
    created = pb.WatchResponse(created=True, header=pb.ResponseHeader(revision=LAST))
    record = Record(request, created, [])
    for revision in range(START, LAST + 1):
        events = replay.select(request, revision, revision)
        if events:
            record.responses.append(pb.WatchResponse(header=pb.ResponseHeader(revision=revision), events=events))
        if revision == progress_after:
            record.responses.append(pb.WatchResponse(header=pb.ResponseHeader(revision=revision)))
    return record


def test_a_true_record_keeps_every_guarantee() -> None:
    replay = _replay()
    check_all(_record(replay, progress_after=5), replay, through=LAST)
    for kind in (NOPUT, NODELETE):
        check_all(_record(replay, filters=[kind]), replay, through=LAST)
    # All of it in one response, as catching up may do.
    record = _record(replay)
    joined = pb.WatchResponse(header=pb.ResponseHeader(revision=LAST), events=list(record.events))
    check_all(Record(record.request, record.created, [joined]), replay, through=LAST)


def test_prev_kv_may_be_missing_below_the_compaction_and_a_needed_start_may_be_refused() -> None:
    replay = _replay()
    replay.compacted = 4
    record = _record(replay)
    for response in record.responses[:3]:
        for event in response.events:
            event.ClearField("prev_kv")
    check_all(record, replay, through=LAST)
    record.request.start_revision = 3
    record.responses = [pb.WatchResponse(canceled=True, compact_revision=4)]
    check_all(record, replay)


def _swap(record: Record) -> None:
    record.responses[1], record.responses[2] = record.responses[2], record.responses[1]


def _swap_in_one_revision(record: Record) -> None:
    events = record.responses[1].events
    first = pb.Event.FromString(events[0].SerializeToString())
    events[0].CopyFrom(events[1])
    events[1].CopyFrom(first)


def _twice(record: Record) -> None:
    record.responses.insert(3, record.responses[2])


def _twice_at_once(record: Record) -> None:
    record.responses[0].events.append(record.responses[0].events[0])


def _split(record: Record) -> None:
    one = record.responses[1]
    rest = pb.WatchResponse(header=one.header, events=[one.events[1]])
    del one.events[1]
    record.responses.insert(2, rest)


def _half_a_revision(record: Record) -> None:
    del record.responses[1].events[1]


def test_etcd_may_forget_prev_kv_in_the_events_before_a_cancellation() -> None:
    replay = _replay()
    record = _record(replay)
    for event in record.responses[-2].events:
        event.ClearField("prev_kv")
    record.responses.append(pb.WatchResponse(canceled=True, header=pb.ResponseHeader(revision=LAST)))
    check_all(record, replay, etcd=True)
    with pytest.raises(Violation, match="not prev_kv"):
        check_all(record, replay)
    record.responses[1].events[0].ClearField("prev_kv")
    with pytest.raises(Violation, match="not prev_kv"):
        check_all(record, replay, etcd=True)


def _lost(record: Record) -> None:
    del record.responses[2]


def _lost_at_the_start(record: Record) -> None:
    del record.responses[0]


def _other_value(record: Record) -> None:
    record.responses[1].events[0].kv.value = b"!"


def _other_lease(record: Record) -> None:
    record.responses[1].events[0].kv.lease = 7


def _delete_as_put(record: Record) -> None:
    record.responses[2].events[0].type = pb.Event.PUT


def _compacted_without_need(record: Record) -> None:
    record.responses.append(pb.WatchResponse(canceled=True, compact_revision=4))


def _compacted_in_the_future(record: Record) -> None:
    record.responses[1:] = [pb.WatchResponse(canceled=True, compact_revision=LAST)]


def _bookmark(revision: int, place: int) -> Callable[[Record], None]:
    def plant(record: Record) -> None:
        record.responses.insert(place, pb.WatchResponse(header=pb.ResponseHeader(revision=revision)))

    plant.__name__ = f"_bookmark_{revision}_at_{place}"
    return plant


def _header_behind_its_events(record: Record) -> None:
    record.responses[1].header.revision -= 1


def _other_prev(record: Record) -> None:
    record.responses[1].events[0].prev_kv.value = b"!"


def _prev_of_a_creation(record: Record) -> None:
    record.responses[0].events[0].prev_kv.key = b"k/a"


def _no_prev(record: Record) -> None:
    record.responses[2].events[0].ClearField("prev_kv")


def _prev_not_asked_for(record: Record) -> None:
    record.request.prev_kv = False


def _creation_denied(record: Record) -> None:
    record.responses[0].events[0].kv.create_revision = 1


def _update_as_creation(record: Record) -> None:
    record.responses[1].events[0].kv.create_revision = 3
    record.responses[1].events[0].kv.version = 1


def _key_outside(record: Record) -> None:
    record.responses[1].events[1].kv.key = b"other"


def _filtered_kind(record: Record) -> None:
    record.request.filters.append(NODELETE)


def _before_the_start(record: Record) -> None:
    record.request.start_revision = START + 1


PLANTED: list[tuple[str, Callable[[Record], None]]] = [
    ("ordered", _swap),
    ("unique", _twice),
    ("unique", _twice_at_once),
    ("atomic", _split),
    ("atomic", _half_a_revision),
    ("atomic", _twice_at_once),
    ("reliable", _lost),
    ("reliable", _half_a_revision),
    ("reliable", _twice),
    ("reliable", _swap_in_one_revision),
    ("reliable", _other_value),
    ("reliable", _other_lease),
    ("reliable", _delete_as_put),
    ("resumable", _lost_at_the_start),
    ("resumable", _compacted_without_need),
    ("resumable", _compacted_in_the_future),
    ("bookmarkable", _bookmark(4, 2)),  # before the event of revision 4
    ("bookmarkable", _bookmark(2, 3)),  # behind the events
    ("bookmarkable", _bookmark(LAST + 1, 1)),
    ("bookmarkable", _header_behind_its_events),
    ("prev_kv", _other_prev),
    ("prev_kv", _prev_of_a_creation),
    ("prev_kv", _no_prev),
    ("prev_kv", _prev_not_asked_for),
    ("is_create", _creation_denied),
    ("is_create", _update_as_creation),
    ("filter", _key_outside),
    ("filter", _filtered_kind),
    ("filter", _before_the_start),
]


@pytest.mark.parametrize(("name", "plant"), PLANTED, ids=[f"{name}{plant.__name__}" for name, plant in PLANTED])
def test_a_planted_violation_is_found(name: str, plant: Callable[[Record], None]) -> None:
    replay = _replay()
    replay.compacted = 4 if "compacted" in plant.__name__ else -1
    record = _record(replay)
    plant(record)
    with pytest.raises(Violation) as found:
        GUARANTEES[name](record, replay)
    assert found.value.guarantee == name
    with pytest.raises(Violation):
        check_all(record, replay)


def test_every_guarantee_has_a_planted_violation() -> None:
    assert {name for name, _ in PLANTED} == set(GUARANTEES)


def test_a_lost_bookmarked_event_is_found() -> None:
    """The last event before a bookmark is lost: no gap between events shows it, the bookmark does."""
    replay = _replay()
    record = _record(replay, progress_after=LAST)
    del record.responses[-2]
    reliable(record, replay)
    with pytest.raises(Violation, match="not bookmarkable"):
        bookmarkable(record, replay)


def test_a_header_ahead_of_its_events_is_found_where_headers_count() -> None:
    replay = _replay()
    record = _record(replay)
    record.responses[0].header.revision = LAST
    bookmarkable(record, replay)
    with pytest.raises(Violation, match="not bookmarkable"):
        bookmarkable(record, replay, headers=True)


def test_events_missing_at_the_end_are_found_when_the_end_is_known() -> None:
    replay = _replay()
    record = _record(replay)
    del record.responses[-1]
    check_all(record, replay)
    with pytest.raises(Violation, match="not reliable: missing"):
        check_all(record, replay, through=LAST)
