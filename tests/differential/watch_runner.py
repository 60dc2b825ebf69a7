"""Run one history of writes and watches against two servers and compare what the watches brought.

Truth is what a watch on everything, never cancelled and always in step, brings on the reference. Each
watch on each side must bring exactly its part of the truth, in its order; both sides must agree on
prev_kv and on every answer to a creation or cancellation, header and text included.

What may differ between the sides, and is therefore not compared:

- how many revisions travel in one response, and with it header.revision of a response with events
  (it must lie between its last event and the revision the store is at);
- how far the events of a watch have come when it is cancelled: each side shows a beginning of the truth;
- whether the last events before the answer to a cancellation carry prev_kv: etcd (to this day) forgets the
  option before it has sent what was queued;
- whether a watch from the past is served before or after a compaction that follows at once, and whether
  prev_kv of what it brings is compacted by then: the history waits before it compacts (`settle`);
- known differences of 3.5.1 to newer releases (formats.md 9.6; anchors.md 5b):
  1. 3.5.1 forgets a deletion at exactly the compacted revision (issue 19179);
  2. a negative start revision: 3.5.1 creates the watch and may cancel it later, newer releases refuse it
     in the answer to the creation, as compacted;
  3. a request for progress: 3.5.1 answers at once and always, newer releases only when there are watches,
     and all of them are in step and none waits for a future revision (issue 15220).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from tests.harness import Client, Server, WaitTimeout, pb, started_pair, target_name
from tests.harness.watch import Falsify, Watch, WatchStream

from .generator import Call, State
from .guarantees import matches
from .runner import Pair
from .watch_history import SLOTS, STREAMS, WatchStep, step_at

SENTINEL = b"~sentinel"
COMPACTED_TEXT = "etcdserver: mvcc: required revision has been compacted"
SETTLE_SECONDS = 20.0


class Mismatch(AssertionError):
    """The sides differ, or one of them differs from the truth."""


@dataclass(slots=True)
class Slot:
    """One watch on both sides, and how far it was compared."""

    stream: int
    request: Any
    watches: list[Watch]  # one per side
    opened: State
    done: int = 0  # revision up to which it was compared
    done_events: list[int] = field(default_factory=lambda: [0, 0])
    done_responses: list[int] = field(default_factory=lambda: [0, 0])
    seen: bool = False  # something showed that it caught up
    ended: bool = False

    @property
    def past(self) -> bool:
        return 0 < self.request.start_revision <= self.opened.current

    @property
    def compacted(self) -> bool:
        return 0 < self.request.start_revision < self.opened.compacted


@dataclass(slots=True)
class WatchSummary:
    steps: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    events: int = 0
    watches: int = 0
    fragments: int = 0
    known: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    failure: str | None = None


class Side:
    def __init__(self, server: Server, client: Client, falsify: Falsify | None = None) -> None:
        self.is_etcd = server.kind == "etcd"
        self.client = client
        self._falsify = falsify
        self.streams = [self._stream(number) for number in range(STREAMS)]

    def _stream(self, number: int) -> WatchStream:
        # Streams 0 and 1 share the connection of the writes.
        channel = self.client.channel if number < 2 else None
        return WatchStream(self.client.endpoint, channel=channel, falsify=self._falsify)

    def reopen(self, number: int) -> None:
        old = self.streams[number]
        old.close()
        old.check()
        self.streams[number] = self._stream(number)

    def close(self) -> None:
        for stream in self.streams:
            stream.close()


class WatchPair:
    """Two servers, their streams, and the slots of one history."""

    def __init__(self, pair: Pair, sides: list[Side], settle_seconds: float = SETTLE_SECONDS) -> None:
        self.pair = pair
        self.sides = sides
        self.settle_seconds = settle_seconds
        self.slots: list[Slot | None] = [None] * SLOTS
        self.pasts: list[Slot | None] = [None] * SLOTS
        self.summary = WatchSummary()
        self.truth: dict[int, list[Any]] = {}
        self._truth_events = 0
        self._witness_stream = WatchStream(pair.left.endpoint)
        self._begin()

    def close(self) -> None:
        self._witness_stream.close()

    @property
    def state(self) -> State:
        return self.pair.state

    def _begin(self) -> None:
        """A store whose history window begins with one put, which the truth knows."""
        if self.state.current == 1:
            self.write(Call(-1, "Put", pb.PutRequest(key=SENTINEL)))
        else:
            header = self.pair.left.get(SENTINEL).header
            self.pair.state = State(header.revision, self.state.compacted)
            self.write(Call(-1, "Put", pb.PutRequest(key=SENTINEL)))
        self.write(Call(-1, "Compact", pb.CompactionRequest(revision=self.state.current, physical=True)))
        self.witness = self._witness_stream.open(
            b"\x00", b"\x00", start_revision=self.state.current, prev_kv=True, fragment=True
        )

    # -- steps --------------------------------------------------------------------------------

    def run(self, step: Call | WatchStep) -> None:
        self.summary.steps += 1
        if isinstance(step, Call):
            self.summary.kinds[step.method] += 1
            self.write(step)
        else:
            self.summary.kinds[step.kind] += 1
            getattr(self, step.kind)(step)

    def write(self, call: Call) -> None:
        exchange, differences = self.pair.exchange(call)
        if differences:
            raise Mismatch("; ".join(map(str, differences)))
        if not exchange.left.ok:
            self.summary.answers[exchange.left.text] += 1

    def toggle(self, step: WatchStep) -> None:
        """Open the slot's watch (anew, or where its last one stopped), or cancel it, settled or not."""
        slot = self.slots[step.slot]
        if slot is not None:
            self._cancel(step.slot, slot, settled=step.flag)
            return
        past = self.pasts[step.slot]
        request = step.request
        if past is not None and step.number < 60:
            request = pb.WatchCreateRequest()
            request.CopyFrom(past.request)
            request.watch_id = step.request.watch_id
            request.start_revision = min(watch.next_revision for watch in past.watches)
        self._open(step.slot, request)

    def settle(self, _: WatchStep | None = None) -> None:
        """Wait until every watch has brought all there is; compare it."""
        self._learn_truth()
        unseen: set[int] = set()
        for slot in self.slots:
            if slot is None:
                continue
            for number, watch in enumerate(slot.watches):
                self._await(slot, number, watch)
            if slot.past and not slot.seen and not any(watch.events or watch.canceled for watch in slot.watches):
                unseen.add(slot.stream)
            slot.seen = True
        if unseen:
            self._pass_by(unseen)
            self._learn_truth()
        for number, slot in enumerate(self.slots):
            if slot is not None:
                self._compare(slot, self.state.current)
                if slot.ended:
                    self._retire(number, slot)
        for side in self.sides:
            for stream in side.streams:
                try:
                    stream.check()
                except AssertionError as error:
                    raise Mismatch(f"{self._name(side)}: {error}") from None

    def compact(self, step: WatchStep) -> None:
        self.settle()
        self.write(Call(step.index, "Compact", pb.CompactionRequest(revision=step.number, physical=step.flag)))

    def duplicate(self, step: WatchStep) -> None:
        """A creation with the id of an open watch; id 0 asks for a new one and is no duplicate."""
        slot = self.slots[step.slot]
        if slot is not None and slot.watches[0].id and not slot.compacted:
            step.request.watch_id = slot.watches[0].id
            self._refused(slot.stream, step.request)

    def refused(self, step: WatchStep) -> None:
        self._refused(step.slot % STREAMS, step.request)

    def negative(self, step: WatchStep) -> None:
        number = step.slot % STREAMS
        for side in self.sides:
            watch = side.streams[number].open_request(step.request)
            if side.is_etcd:
                # Below the compaction a history begins with: 3.5.1 cancels it when it catches up.
                self._wait(side, side.streams[number], lambda w=watch: w.canceled, "cancellation of a negative start")
                self.summary.known["negative-start"] += 1
                continue
            wanted = pb.WatchResponse(watch_id=-1, created=True, canceled=True, cancel_reason=COMPACTED_TEXT)
            wanted.header.CopyFrom(self.witness.created.header)
            wanted.header.revision = self.state.current
            if watch.created != wanted:
                raise Mismatch(f"creation from {step.request.start_revision}: {_text(watch.created)}")

    def unknown(self, step: WatchStep) -> None:
        """Cancelling what is not there has no answer: a stray would show it."""
        number = step.slot % STREAMS
        for side in self.sides:
            side.streams[number].cancel_id(step.number)
        self._fence(number)

    def nothing(self, step: WatchStep) -> None:
        """A message without any request in it has no answer."""
        number = step.slot % STREAMS
        for side in self.sides:
            side.streams[number].send(pb.WatchRequest())
        self._fence(number)

    def progress(self, step: WatchStep) -> None:
        self.settle()
        number = step.slot % STREAMS
        open_slots = [slot for slot in self.slots if slot is not None and slot.stream == number]
        starts = [slot.request.start_revision for slot in open_slots]
        if self.state.current + 1 in starts:
            return  # in step, and yet waiting for a revision: releases differ
        in_step = bool(open_slots) and max(starts) <= self.state.current
        for side in self.sides:
            stream = side.streams[number]
            before = len(stream.progress_responses)
            stream.request_progress()
            if side.is_etcd or in_step:
                self._wait(side, stream, lambda s=stream, b=before: len(s.progress_responses) > b, "answer on progress")
                wanted = pb.WatchResponse(watch_id=-1, header=self.witness.created.header)
                wanted.header.revision = self.state.current
                if stream.progress_responses[-1] != wanted:
                    raise Mismatch(f"{self._name(side)}: progress: {_text(stream.progress_responses[-1])}")
                continue
            self.summary.known["progress-not-in-step"] += 1
            self._fence(number)
            if len(stream.progress_responses) > before:
                raise Mismatch(
                    f"{self._name(side)}: progress answered at {self.state.current} on stream {number}, whose watches "
                    f"start at {starts}: {_text(stream.progress_responses[-1])}"
                )

    def reconnect(self, step: WatchStep) -> None:
        """A stream ends under its watches and is opened again; the slots may resume them on the new one."""
        if step.flag:
            self.settle()
        number = step.slot % STREAMS
        for side in self.sides:
            side.reopen(number)
        self._learn_truth()
        for slot_number, slot in enumerate(self.slots):
            if slot is not None and slot.stream == number:
                slot.ended = True
                self._compare(slot, self.state.current, whole=step.flag)
                self._retire(slot_number, slot)

    # -- watches ------------------------------------------------------------------------------

    def _open(self, number: int, request: Any) -> None:
        stream = number % STREAMS
        watches = [side.streams[stream].start_request(request) for side in self.sides]
        self._await_created(stream, watches)
        self.summary.watches += 1
        if watches[0].refused:
            self.summary.answers[watches[0].created.cancel_reason] += 1
            return
        done = request.start_revision - 1 if request.start_revision > 0 else self.state.current
        self.slots[number] = Slot(stream, request, watches, self.state, done)

    def _refused(self, stream: int, request: Any) -> None:
        watches = [side.streams[stream].start_request(request) for side in self.sides]
        self._await_created(stream, watches)
        if not watches[0].refused:
            raise Mismatch(f"the reference took {_text(request)}")
        self.summary.answers[watches[0].created.cancel_reason] += 1

    def _fence(self, stream: int) -> None:
        """Requests of a stream are answered in order: this answer comes after all before it."""
        self._refused(stream, pb.WatchCreateRequest(key=b"b", range_end=b"a"))

    def _await_created(self, stream: int, watches: list[Watch]) -> None:
        for side, watch in zip(self.sides, watches):
            self._wait(side, side.streams[stream], lambda w=watch: w.created, f"answer to {_text(watch.request)}")
        self._equal(f"answer to the creation {_text(watches[0].request)}", *(watch.created for watch in watches))

    def _cancel(self, number: int, slot: Slot, *, settled: bool) -> None:
        if settled or slot.compacted:
            self.settle()
            if self.slots[number] is None:
                return  # it had been cancelled for compaction
        for side, watch in zip(self.sides, slot.watches):
            side.streams[slot.stream].cancel_id(watch.id)
        for side, watch in zip(self.sides, slot.watches):
            self._wait(side, side.streams[slot.stream], lambda w=watch: w.canceled, "answer to a cancellation")
        self._equal("answer to a cancellation", *(watch.canceled for watch in slot.watches))
        slot.ended = True
        self._learn_truth()
        self._compare(slot, self.state.current, whole=settled)
        self._retire(number, slot)

    def _retire(self, number: int, slot: Slot) -> None:
        self.summary.fragments += sum(watch.fragments for watch in slot.watches)
        self.pasts[number], self.slots[number] = slot, None

    # -- comparing ----------------------------------------------------------------------------

    def _learn_truth(self) -> None:
        """Bring `truth` up to the current revision; every revision of a history has an event."""
        current = self.state.current
        self._wait(self.sides[0], self._witness_stream, lambda: self.witness.last_revision >= current, "the truth")
        events = self.witness.events
        for event in events[self._truth_events :]:
            self.truth.setdefault(event.kv.mod_revision, []).append(event)
        self._truth_events = len(events)

    def _due(self, slot: Slot, last: int) -> list[Any]:
        if slot.compacted:
            return []
        revisions = range(slot.done + 1, last + 1)
        return [event for r in revisions for event in self.truth.get(r, ()) if matches(slot.request, event)]

    def _may_lack(self, slot: Slot, number: int, event: Any) -> bool:
        """3.5.1 drops a deletion at exactly the compacted revision."""
        return (
            self.sides[number].is_etcd
            and event.type == pb.Event.DELETE
            and event.kv.mod_revision == slot.request.start_revision == slot.opened.compacted
        )

    def _await(self, slot: Slot, number: int, watch: Watch) -> None:
        side = self.sides[number]
        stream = side.streams[slot.stream]
        if slot.compacted:
            self._wait(side, stream, lambda: watch.canceled, f"cancellation for compaction of {_text(slot.request)}")
            return
        due = [event for event in self._due(slot, self.state.current) if not self._may_lack(slot, number, event)]
        wanted = slot.done_events[number] + len(due)
        last = due[-1].kv.mod_revision if due else 0
        try:
            stream.wait(
                lambda: len(watch.events) >= wanted and watch.last_revision >= last, "events", self.settle_seconds
            )
        except WaitTimeout:
            self._compare_events(slot, number, watch, self.state.current, whole=True)
            raise
        except AssertionError as error:
            raise Mismatch(f"{self._name(side)}: {error}") from None

    def _compare(self, slot: Slot, last: int, *, whole: bool = True) -> None:
        for number, watch in enumerate(slot.watches):
            self._compare_events(slot, number, watch, last, whole)
            self._check_responses(slot, number, watch, last)
        self._compare_prev(slot, whole)
        left, right = slot.watches
        if slot.compacted and not slot.ended:
            self._equal(f"cancellation for compaction of {_text(slot.request)}", left.canceled, right.canceled)
            if left.canceled.compact_revision != slot.opened.compacted:
                raise Mismatch(f"compact_revision of {_text(left.canceled)} is not {slot.opened.compacted}")
            self.summary.answers["compacted start"] += 1
            slot.ended = True
        elif not slot.ended:
            for number, watch in enumerate(slot.watches):
                if watch.canceled is not None:
                    raise Mismatch(
                        f"{self._name(self.sides[number])} cancelled {_text(slot.request)}: {_text(watch.canceled)}"
                    )
        slot.done = max(slot.done, last)
        slot.done_events = [len(watch.events) for watch in slot.watches]
        slot.done_responses = [len(watch.responses) for watch in slot.watches]

    def _compare_events(self, slot: Slot, number: int, watch: Watch, last: int, whole: bool) -> None:
        """Exactly the truth; when not `whole`, any beginning of it that ends with a revision."""
        came = watch.events[slot.done_events[number] :]
        due = self._due(slot, last)
        where = f"{self._name(self.sides[number])}, watch {_text(slot.request)} created at {slot.opened.current}"
        at = 0
        for event in due:
            if at < len(came) and (came[at].type, came[at].kv) == (event.type, event.kv):
                at += 1
            elif self._may_lack(slot, number, event):
                self.summary.known["deletion-at-compaction"] += 1
            elif at < len(came):
                raise Mismatch(f"{where}: {_text(came[at])}, not {_text(event)}")
            elif whole or (at and came[-1].kv.mod_revision == event.kv.mod_revision):
                raise Mismatch(f"{where}: missing, of {len(due)} events: {_text(event)}")
            else:
                break
        if at < len(came):
            raise Mismatch(f"{where}: added: {_text(came[at])}")
        self.summary.events += at

    def _check_responses(self, slot: Slot, number: int, watch: Watch, last: int) -> None:
        header = self.witness.created.header
        for response in watch.responses[slot.done_responses[number] :]:
            got = response.header
            if (got.cluster_id, got.member_id, got.raft_term) != (
                header.cluster_id,
                header.member_id,
                header.raft_term,
            ):
                raise Mismatch(f"{self._name(self.sides[number])}: header of {_text(response)}")
            if response.events:
                low = response.events[-1].kv.mod_revision
                if not low <= got.revision <= last:
                    raise Mismatch(f"{self._name(self.sides[number])}: revision of {_text(response)}")
                if response.watch_id != watch.id or response.compact_revision or response.cancel_reason:
                    raise Mismatch(f"{self._name(self.sides[number])}: {_text(response)}")

    def _compare_prev(self, slot: Slot, whole: bool) -> None:
        prevs: list[dict[Any, Any]] = []
        for number, watch in enumerate(slot.watches):
            came = watch.events[slot.done_events[number] :]
            prevs.append({(e.kv.mod_revision, e.kv.key, e.type): e for e in came})
        for name, one in prevs[0].items():
            other = prevs[1].get(name)
            if not slot.request.prev_kv and one.HasField("prev_kv"):
                raise Mismatch(f"prev_kv that was not asked for: {_text(one)}")
            if other is None or one == other:
                continue
            lacks = [not event.HasField("prev_kv") and side.is_etcd for event, side in zip((one, other), self.sides)]
            if whole or not any(lacks):
                raise Mismatch(f"prev_kv at {slot.opened}: etcd {_text(one)} | other {_text(other)}")

    def _pass_by(self, streams: Iterable[int]) -> None:
        """Watches that have nothing to bring show no sign of having caught up: another one does it for them.

        etcd brings up all that lag behind together, so what was opened before is through when this one is.
        """
        self.write(Call(-1, "Put", pb.PutRequest(key=SENTINEL)))
        for number in streams:
            request = pb.WatchCreateRequest(key=SENTINEL, start_revision=self.state.current)
            watches = [side.streams[number].start_request(request) for side in self.sides]
            self._await_created(number, watches)
            for side, watch in zip(self.sides, watches):
                self._wait(side, side.streams[number], lambda w=watch: w.events, "event of the sentinel")
                side.streams[number].cancel(watch)
        self._learn_truth()
        for slot in self.slots:
            if slot is not None:
                for number, watch in enumerate(slot.watches):
                    self._await(slot, number, watch)

    def _wait(self, side: Side, stream: WatchStream, condition: Callable[[], Any], what: str) -> None:
        try:
            stream.wait(condition, what, self.settle_seconds)
        except AssertionError as error:
            raise Mismatch(f"{self._name(side)}: {error}") from None

    def _equal(self, what: str, left: Any, right: Any) -> None:
        if left != right or left.SerializeToString(deterministic=True) != right.SerializeToString(deterministic=True):
            raise Mismatch(f"{what}: etcd {_text(left)} | other {_text(right)}")

    def _name(self, side: Side) -> str:
        return "etcd" if side is self.sides[0] else f"other ({target_name()})"


def run_history(
    pair: Pair,
    servers: tuple[Server, Server],
    seed: int,
    indexes: Iterable[int],
    *,
    falsify: Falsify | None = None,
    settle_seconds: float = SETTLE_SECONDS,
    trace: Callable[[str], object] | None = None,
) -> WatchSummary:
    """Run the steps and settle; the summary's `failure` tells the first mismatch."""
    with ExitStack() as stack:
        sides = []
        for number, client in enumerate((pair.left, pair.right)):
            side = Side(servers[number], client, falsify if number else None)
            stack.callback(side.close)
            sides.append(side)
        both = WatchPair(pair, sides, settle_seconds)
        stack.callback(both.close)
        summary = both.summary
        step: Call | WatchStep | None = None
        try:
            for index in indexes:
                step = step_at(seed, index, both.state)
                if trace is not None:
                    trace(f"{index} {both.state} {describe_step(step)}")
                both.run(step)
            step = None
            both.settle()
        except AssertionError as error:
            where = describe_step(step) if step is not None else "the end"
            summary.failure = f"seed {seed}, at {where} (revision {both.state.current}): {error}"
        return summary


def fresh_pair_history(seed: int, indexes: Iterable[int], **options: Any) -> WatchSummary:
    """`run_history` against newly started servers."""
    with started_pair() as servers, servers[0].client() as one, servers[1].client() as other:
        return run_history(Pair(one, other), servers, seed, indexes, **options)


def describe_step(step: Call | WatchStep) -> str:
    if isinstance(step, Call):
        return f"step {step.index}: {step.method} {_text(step.request)}"
    return (
        f"step {step.index}: {step.kind} slot {step.slot} number {step.number} flag {step.flag} "
        f"{'' if step.request is None else _text(step.request)}"
    )


def _text(message: Any) -> str:
    text = " ".join(str(message).split())
    return f"{{{text}}}" if len(text) <= 700 else f"{{{text[:700]}... ({len(text)} characters)}}"
