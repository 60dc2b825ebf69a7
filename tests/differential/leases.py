"""Random lease histories for two servers: the generator's calls with leases put into them, and lease calls between."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from typing import Any

from tests.harness import Client, Reply, Stream, pb

from .compare import Difference, compare_replies
from .generator import INT64_MAX, INT64_MIN, Call, State, call_at
from .known_differences import Exchange
from .runner import Pair

MIN_TTL_SECONDS = 2  # etcd-behaviour.md G8
MAX_TTL_SECONDS = 9_000_000_000
# Never 0, which asks the server for an id. etcd 3.5.1 loses leases whose id is negative or the largest
# there is when it starts again: it loads the ids from 0 up to, not including, the largest (3.7 loads all).
# Their keys then stay for ever, and a put with ignore_lease of one is its death. So those ids are kept
# out of histories with restarts.
IDS = (1, 2, 7, 77, 0x694D_8C4E_1A2B_3C4D, 1 << 40, 1 << 62, INT64_MAX - 1)
LOST_BY_ETCD = (INT64_MAX, -1, INT64_MIN)
ABSENT = (99, -99)
LONG_TTLS = (900, 1000, 3600, 86_400, 5_000_000, MAX_TTL_SECONDS)
SHORT_TTLS = (1, 0, -1, MIN_TTL_SECONDS, INT64_MIN)
REFUSED_TTLS = (MAX_TTL_SECONDS + 1, INT64_MAX)
# Both servers count whole seconds down from moments that lie a call apart; a start adds the election
# timeout to what is left (formats.md 11, promote), and etcdfast's may be taken at another moment.
TTL_TOLERANCE_SECONDS = 2


def lease_call_at(seed: int, index: int, state: State, live: list[int]) -> list[Call]:
    """Call(s) number `index` of run `seed`; `live` are the leases that exist, sorted.

    A lease too short to outlive the run is revoked in the same step, so that no expiry, whose moment no
    one chooses, falls into the history.
    """
    rng = random.Random(f"lease {seed}:{index}")
    phase = index % 60
    if phase == 20:  # a refusal too rare to be left to chance
        put = pb.PutRequest(key=b"absent", lease=rng.choice(ABSENT))
        return [Call(index, "Txn", pb.TxnRequest(success=[pb.RequestOp(request_put=put)]))]
    if phase == 40:
        return [Call(index, "Put", pb.PutRequest(key=b"a", ignore_lease=True, lease=_some_id(rng, live) or 1))]
    roll = rng.random()
    if roll < 0.60:
        call = call_at(seed, index, state)
        _lend(rng, call.request, live)
        return [call]
    if roll < 0.72:
        return [_call(index, "LeaseGrant", ID=_any_id(rng), TTL=rng.choice(LONG_TTLS + LONG_TTLS + REFUSED_TTLS))]
    if roll < 0.75:
        id_ = _any_id(rng)
        return [
            _call(index, "LeaseGrant", ID=id_, TTL=rng.choice(SHORT_TTLS)),
            _call(index, "LeaseTimeToLive", ID=id_, keys=True),
            _call(index, "LeaseRevoke", ID=id_),
        ]
    if roll < 0.80:
        return [_call(index, "LeaseRevoke", ID=_some_id(rng, live))]
    if roll < 0.88:
        return [_call(index, "LeaseKeepAlive", ID=_some_id(rng, live))]
    if roll < 0.97:
        return [_call(index, "LeaseTimeToLive", ID=_some_id(rng, live), keys=rng.random() < 0.7)]
    return [_call(index, "LeaseLeases")]


def _call(index: int, method: str, **fields: Any) -> Call:
    return Call(index, method, getattr(pb, f"{method}Request")(**fields))


def _any_id(rng: random.Random) -> int:
    return rng.choice(IDS)


def _some_id(rng: random.Random, live: list[int]) -> int:
    if live and rng.random() < 0.85:
        return rng.choice(live)
    return rng.choice((*IDS, *ABSENT, 0))


def _lend(rng: random.Random, request: Any, live: list[int]) -> None:
    """Give the puts of a request leases, and let its compares look at leases."""
    if isinstance(request, pb.PutRequest):
        if request.ignore_lease:
            request.lease = _some_id(rng, live) if rng.random() < 0.2 else 0
        elif rng.random() < 0.55:
            request.lease = rng.choice(live) if live and rng.random() < 0.92 else rng.choice((*IDS, *ABSENT))
        else:
            request.lease = 0
    elif isinstance(request, pb.TxnRequest):
        for compare in request.compare:
            if rng.random() < 0.4:
                compare.target = pb.Compare.LEASE
                compare.lease = _some_id(rng, live)
        for operation in (*request.success, *request.failure):
            kind = operation.WhichOneof("request")
            if kind in ("request_put", "request_txn"):
                _lend(rng, getattr(operation, kind), live)


class LeasePair(Pair):
    """A pair that also answers the lease calls; `live` is what the reference says exists."""

    def __init__(self, left: Client, right: Client) -> None:
        super().__init__(left, right)
        self.live: dict[int, int] = {}  # id -> granted TTL
        self._due: dict[int, tuple[float, float]] = {}  # id -> earliest and latest expiry, monotonic seconds
        self._streams: tuple[Stream, Stream] = (left.keep_alive(), right.keep_alive())

    def close(self) -> None:
        for stream in self._streams:
            stream.close()

    def restarted(self, left: Client, right: Client, before: float) -> None:
        """Both servers began anew after `before`: every lease has its whole time again."""
        self.close()
        self.left, self.right = left, right
        self._streams = (left.keep_alive(), right.keep_alive())
        for id_, ttl in self.live.items():
            self._due[id_] = (before + ttl, time.monotonic() + ttl)

    def exchange(self, call: Call) -> tuple[Exchange, list[Difference]]:
        if call.method == "LeaseKeepAlive":
            return self._keep_alive(call)
        if not call.method.startswith("Lease"):
            exchange, differences = super().exchange(call)
            return exchange, self._seen_as_newer(call, exchange) if differences else []
        before = self.state
        sent = time.monotonic()
        pending = self.left.start(call.method, call.request)
        right = self.right.call(call.method, call.request)
        left = pending.reply()
        self._learn(call, left)
        if call.method == "LeaseGrant" and left.ok:
            self.live[call.request.ID] = left.message.TTL
            self._due[call.request.ID] = (sent + left.message.TTL, time.monotonic() + left.message.TTL)
        elif call.method == "LeaseRevoke" and left.ok:
            del self.live[call.request.ID]
        exchange = Exchange(call.method, call.request, left, right, before.current, before.compacted)
        return exchange, list(self._differences(call, left, right))

    def _seen_as_newer(self, call: Call, exchange: Exchange) -> list[Difference]:
        """The differences but for KEYS_ONLY_LEASE, which sorting with ties would spread over whole groups."""

        def contents(request: Any, revision: int) -> dict[bytes, Any]:
            found = self._contents(request, revision)
            if _unseen(request):
                for kv in found.values():
                    kv.lease = 0
            return found

        left = exchange.left
        if left.ok and call.method in ("Range", "Txn"):
            message = left.message
            _forget_unseen(call.request, message)
            left = _again(left, message)
        return compare_replies(call.method, call.request, left, exchange.right, contents)

    def _differences(self, call: Call, left: Reply, right: Reply) -> Iterable[Difference]:
        if left.ok and right.ok and call.method == "LeaseTimeToLive":
            left, right, found = _without_time(left, right)
            yield from found
        elif left.ok and right.ok and call.method == "LeaseLeases":
            for side, reply in (("etcd", left), ("other", right)):
                yield from self._out_of_order(side, [lease.ID for lease in reply.message.leases])
            left, right = _sorted(left), _sorted(right)
        yield from compare_replies(call.method, call.request, left, right)

    def _out_of_order(self, side: str, ids: list[int]) -> Iterable[Difference]:
        """The list goes by expiry; leases whose expiries cannot be told apart may come in any order."""
        for one, other in zip(ids, ids[1:]):
            if one in self._due and other in self._due and self._due[one][0] > self._due[other][1] + 1:
                yield Difference(f"leases out of order ({side})", one, other)

    def _keep_alive(self, call: Call) -> tuple[Exchange, list[Difference]]:
        sent = time.monotonic()
        for stream in self._streams:
            stream.send(call.request)
        left, right = (
            Reply(call.method, 0, "", stream.receive().SerializeToString(deterministic=True))
            for stream in self._streams
        )
        if call.request.ID in self.live:
            ttl = self.live[call.request.ID]
            self._due[call.request.ID] = (sent + ttl, time.monotonic() + ttl)
        exchange = Exchange(call.method, call.request, left, right, self.state.current, self.state.compacted)
        if left.data == right.data:
            return exchange, []
        parsed = [" ".join(str(pb.LeaseKeepAliveResponse.FromString(side.data)).split()) for side in (left, right)]
        return exchange, [Difference("message", *parsed)]


def _without_time(left: Reply, right: Reply) -> tuple[Reply, Reply, list[Difference]]:
    """Both replies without the time left and with their keys sorted, and what is wrong with that time."""
    one, other = left.message, right.message
    found = []
    for side, message in (("etcd", one), ("other", other)):
        # A promotion's extension may show as one second above the granted TTL.
        if message.TTL > message.grantedTTL + 1:
            found.append(Difference(f"TTL above the granted one ({side})", message.TTL, message.grantedTTL))
    if abs(one.TTL - other.TTL) > TTL_TOLERANCE_SECONDS or (one.TTL == -1) != (other.TTL == -1):
        found.append(Difference("TTL", one.TTL, other.TTL))
    for message in (one, other):
        message.TTL = 0
        message.keys[:] = sorted(message.keys)
    return _again(left, one), _again(right, other), found


# KEYS_ONLY_LEASE: from 3.7 on a range of keys only is read from the index, which has no leases, unless it is
# sorted by value (etcd-behaviour.md G4). etcd 3.5.1 tells the lease.
def _unseen(request: Any) -> bool:
    return request.keys_only and request.sort_target != pb.RangeRequest.VALUE


def _forget_unseen(request: Any, response: Any) -> None:
    """Take out of a Range or Txn response the leases that a newer etcd does not tell."""
    if isinstance(request, pb.RangeRequest):
        if _unseen(request):
            for kv in response.kvs:
                kv.lease = 0
        return
    operations = request.success if response.succeeded else request.failure
    for operation, answer in zip(operations, response.responses):
        kind = operation.WhichOneof("request")
        if kind == "request_range":
            _forget_unseen(operation.request_range, answer.response_range)
        elif kind == "request_txn":
            _forget_unseen(operation.request_txn, answer.response_txn)


def _sorted(reply: Reply) -> Reply:
    message = reply.message
    leases = sorted(message.leases, key=lambda lease: lease.ID)
    del message.leases[:]
    message.leases.extend(leases)
    return _again(reply, message)


def _again(reply: Reply, message: Any) -> Reply:
    return Reply(reply.method, reply.code, reply.text, message.SerializeToString(deterministic=True))
