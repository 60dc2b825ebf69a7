"""Locks and elections on two servers at once: calls that wait, and what must be true before the next step.

The services are queues of keys ordered by create revision, and all their state is in the key space. So
after every step the reference's keys tell which waiting calls must have been answered; the pair waits
for those answers (never for a time) and compares them and the whole contents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.harness import Client, Pending, Reply, Stream, pb, target_name, wait_until

from .compare import compare_replies

SESSION_EXPIRED = "mutex: session is expired"
# etcd's waiters look at their own key only when it is their turn. etcdfast tells a waiter whose key is
# gone at once (etcd-behaviour.md 8, a waiter whose lease dies leaves the queue).
EAGER = target_name() != "etcd"


@dataclass(slots=True)
class Waiting:
    """One Lock or Campaign under way on both sides; `rev` is the create revision of its key."""

    method: str
    request: Any
    key: bytes
    prefix: bytes
    rev: int
    calls: tuple[Pending, Pending]
    gone: bool = False  # its key vanished while it waited

    def __str__(self) -> str:
        return f"{self.method} of {self.key!r} (create revision {self.rev})"


class QueuePair:
    """Both servers; every method leaves them settled and with equal contents."""

    def __init__(self, left: Client, right: Client) -> None:
        self.sides = (left, right)
        self.waiting: list[Waiting] = []
        self.answered: list[Reply] = []
        self._observers: dict[bytes, tuple[Stream, Stream]] = {}
        self._seen: dict[bytes, tuple[list[Any], list[Any]]] = {}

    def close(self) -> None:
        for one in self.waiting:
            for call in one.calls:
                call.cancel()
        for streams in self._observers.values():
            for stream in streams:
                stream.close()
        self.waiting.clear()
        self._observers.clear()

    # -- steps ----------------------------------------------------------------------------------

    def call(self, method: str, request: Any) -> Reply:
        """A call that does not wait: equal answers, then everything settled. Returns the reference's answer."""
        left, right = (side.call(method, request) for side in self.sides)
        differences = compare_replies(method, request, left, right)
        assert not differences, f"{method} {_text(request)}: " + "; ".join(map(str, differences))
        self.settle()
        return left

    def enter(self, method: str, name: bytes, lease: int, value: bytes = b"") -> Reply | None:
        """Lock or Campaign: the answer when it need not wait, else None."""
        key = b"%s/%s" % (name, _hex(lease))
        if method == "Lock":
            request: Any = pb.LockRequest(name=name, lease=lease)
        else:
            request = pb.CampaignRequest(name=name, lease=lease, value=value)
        calls = tuple(side.start(method, request) for side in self.sides)
        for side, call in zip(self.sides, calls):
            wait_until(
                lambda side=side, call=call: call.done or _stands(side, method, key, value), f"{method} of {key!r}"
            )
        kvs = self.sides[0].get(key).kvs
        rev = kvs[0].create_revision if kvs else 0
        self.waiting.append(Waiting(method, request, key, name + b"/", rev, calls))  # type: ignore[arg-type]
        before = len(self.answered)
        self.settle()
        return self.answered[before] if len(self.answered) > before else None

    def cancel(self, one: Waiting) -> None:
        """The client gives up: its key leaves the queue on both sides."""
        self.waiting.remove(one)
        for call in one.calls:
            call.cancel()
        for side, name in zip(self.sides, ("reference", "target")):
            wait_until(lambda side=side: not _created(side, one), f"{one} to leave the queue of the {name}")
        self.settle()

    def observe(self, name: bytes) -> None:
        self._observers[name] = tuple(side.observe(pb.LeaderRequest(name=name)) for side in self.sides)  # type: ignore[assignment]
        self._seen[name] = ([], [])

    # -- what must hold -------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait for every answer that is due, compare it; then the contents and what observers saw."""
        for one in list(self.waiting):
            one.gone = one.gone or not _created(self.sides[0], one)
            due = not self._before(one)
            if due:
                for call in one.calls:
                    wait_until(lambda call=call: call.done, f"{one}: the answer ({'gone' if one.gone else 'first'})")
                self.waiting.remove(one)
                self._compare(one, one.calls[0].reply(), one.calls[1].reply())
            elif one.gone and EAGER:
                wait_until(lambda one=one: one.calls[1].done, f"{one}: told at once that its key is gone")
            else:
                assert not one.calls[0].done and not one.calls[1].done, f"{one} was answered before its turn"
        contents = pb.RangeRequest(key=b"\0", range_end=b"\0")
        left, right = (side.call("Range", contents) for side in self.sides)
        differences = compare_replies("Range", contents, left, right)
        assert not differences, "contents: " + "; ".join(map(str, differences))
        for name in self._observers:
            self._compare_seen(name)

    def _before(self, one: Waiting) -> bool:
        if not one.rev:
            return False  # refused: it never stood in the queue
        if one.rev <= 1:
            return False  # and 0 would mean no bound
        older = self.sides[0].get(one.prefix, one.prefix[:-1] + b"0", max_create_revision=one.rev - 1)
        return bool(older.kvs)  # the count leaves the bound out

    def _compare(self, one: Waiting, left: Reply, right: Reply) -> None:
        self.answered.append(left)
        if one.gone and one.method == "Campaign" and EAGER:
            # etcd elects the dead: it never looks whether the key is still there (v3.5.1 to v3.7.1).
            assert left.ok and not right.ok, (left, right)
            assert right.code == 2 and "session" in right.text, right
            return
        if one.gone and one.method == "Lock":
            assert (left.code, left.text) == (2, SESSION_EXPIRED), left
        differences = compare_replies(one.method, one.request, left, right)
        assert not differences, f"{one}: " + "; ".join(map(str, differences))

    def _compare_seen(self, name: bytes) -> None:
        """Observers have the leader of now, and have seen the same leaders before it."""
        leader = self.sides[0].get(name + b"/", name + b"0", sort_order=1, sort_target=2, limit=1).kvs
        for streams, seen in zip(self._observers[name], self._seen[name]):
            seen.extend(streams.waiting())
            while leader and not (seen and seen[-1].kv == leader[0]):
                seen.append(streams.receive())
        left, right = ([message.kv for message in seen] for seen in self._seen[name])
        assert left == right, f"observers of {name!r} saw {left} and {right}"
        for seen in self._seen[name]:
            assert all(message.header.revision >= message.kv.mod_revision for message in seen)


def leader_key(client: Client, name: bytes) -> Any:
    """The LeaderKey of who leads an election now, or None."""
    kvs = client.get(name + b"/", name + b"0", sort_order=1, sort_target=2, limit=1).kvs
    if not kvs:
        return None
    return pb.LeaderKey(name=name, key=kvs[0].key, rev=kvs[0].create_revision, lease=kvs[0].lease)


def _created(side: Client, one: Waiting) -> bool:
    kvs = side.get(one.key).kvs
    return bool(kvs) and kvs[0].create_revision == one.rev


def _stands(side: Client, method: str, key: bytes, value: bytes) -> bool:
    kvs = side.get(key).kvs
    return bool(kvs) and (method == "Lock" or kvs[0].value == value)


def _hex(lease: int) -> bytes:
    """As Go prints an int64 with %x."""
    return b"%x" % lease if lease >= 0 else b"-%x" % -lease


def _text(request: Any) -> str:
    return " ".join(str(request).split())
