"""Watches in random histories: real etcd 3.5.1 and the target bring the same events and answers.

What may differ, and why, is said in `watch_runner`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.harness import Client, EtcdServer, Server, pb, started_pair
from tests.harness.watch import NODELETE, NOPUT, WatchStream

from .runner import Pair
from .watch_history import OWN_IDS
from .watch_replay import describe
from .watch_runner import COMPACTED_TEXT, WatchSummary, fresh_pair_history, run_history

STEPS = 400
FIXED_SEEDS = (3,)
SEED_VARIABLE = "ETCDFAST_DIFFERENTIAL_SEED"
STEPS_VARIABLE = "ETCDFAST_WATCH_STEPS"
# What a history must come across; one that stops doing so is a defect of the generator.
EXPECTED_ANSWERS = (
    "compacted start",
    "mvcc: watcher range is empty",
    "mvcc: duplicate watch ID provided on the WatchStream",
)


def _check(seed: int, summary: WatchSummary) -> None:
    if summary.failure is not None:
        pytest.fail(describe(seed, summary), pytrace=False)


def test_a_random_history_is_watched_alike() -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"seed {seed} (again: {SEED_VARIABLE}={seed}, or python -m tests.differential.watch_replay {seed})")
    steps = int(os.environ.get(STEPS_VARIABLE) or STEPS)
    _check(seed, fresh_pair_history(seed, range(steps)))


@pytest.mark.parametrize("seed", FIXED_SEEDS)
def test_fixed_seeds_are_watched_alike(seed: int) -> None:
    summary = fresh_pair_history(seed, range(STEPS))
    _check(seed, summary)
    missing = [answer for answer in EXPECTED_ANSWERS if answer not in summary.answers]
    assert not missing, f"none of {missing}: {summary.answers}"
    assert summary.watches > 30 and summary.events > 800, summary


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    with started_pair() as pair:
        yield pair


@pytest.fixture
def clients(servers: tuple[Server, Server]) -> Iterator[list[Client]]:
    with servers[0].client() as one, servers[1].client() as other:
        yield [one, other]


def _both(clients: list[Client]) -> list[WatchStream]:
    return [WatchStream(client.endpoint) for client in clients]


def test_ids_count_up_and_skip_those_that_clients_chose(clients: list[Client]) -> None:
    for stream in _both(clients):
        with stream:
            chosen = [stream.open(b"k", watch_id=number).id for number in (2, 7, -5)]
            given = [stream.open(b"k").id for _ in range(4)]
            assert (chosen, given) == ([2, 7, -5], [0, 1, 3, 4])
            stream.cancel(stream.watches[3])  # id 0
            stream.cancel(stream.watches[0])  # id 2
            assert stream.open(b"k").id == 5, "an id that was given is not given again"
            assert stream.open(b"k", watch_id=2).id == 2
            assert [stream.open(b"k").id for _ in range(2)] == [6, 8]
            stream.check()


def test_one_watch_among_several_on_a_key_is_cancelled(clients: list[Client]) -> None:
    for client, stream in zip(clients, _both(clients)):
        with stream:
            watches = [stream.open(b"shared") for _ in range(3)]
            client.put(b"shared", b"1")
            for watch in watches:
                stream.wait_events(watch, 1)
            stream.cancel(watches[1])
            assert not watches[1].canceled.cancel_reason and not watches[1].canceled.compact_revision
            client.put(b"shared", b"2")
            for watch in (watches[0], watches[2]):
                stream.wait_events(watch, 2)
            assert len(watches[1].events) == 1
            stream.check()


def test_a_deletion_at_the_compacted_revision_is_still_brought(clients: list[Client]) -> None:
    """Newer releases keep it until the next compaction (issue 19179); 3.5.1 has forgotten it."""
    for client, stream in zip(clients, _both(clients)):
        with stream:
            client.put(b"tomb", b"1")
            at = client.delete(b"tomb").header.revision
            client.compact(at)
            client.put(b"tomb", b"2")
            watch = stream.open(b"tomb", start_revision=at, prev_kv=True)
            stream.wait_revision(watch, at + 1)
            events = watch.events
            assert not any(event.HasField("prev_kv") for event in events)
            if client is clients[1] and not isinstance(_server_of(client), EtcdServer):
                assert [event.type for event in events] == [pb.Event.DELETE, pb.Event.PUT]
            else:
                assert [event.type for event in events] == [pb.Event.PUT]


_servers: dict[str, Server] = {}


def _server_of(client: Client) -> Server:
    return _servers[client.endpoint]


@pytest.fixture(autouse=True)
def _known_servers(request: pytest.FixtureRequest) -> None:
    if "servers" in request.fixturenames:
        _servers.update({server.endpoint: server for server in request.getfixturevalue("servers")})


def test_prev_kv_ends_at_the_compacted_revision(clients: list[Client]) -> None:
    seen = []
    for client, stream in zip(clients, _both(clients)):
        with stream:
            first = client.put(b"prev", b"0").header.revision
            for number in range(1, 6):
                client.put(b"prev", b"%d" % number)
            client.compact(first + 2)
            watch = stream.open(b"prev", start_revision=first + 2, prev_kv=True)
            stream.wait_events(watch, 4)
            seen.append([event.prev_kv.value for event in watch.events])
    assert seen == [[b"", b"2", b"3", b"4"]] * 2


def test_filters_leave_no_empty_responses(clients: list[Client]) -> None:
    for client, stream in zip(clients, _both(clients)):
        with stream:
            no_puts, no_deletes = stream.open(b"f", filters=[NOPUT]), stream.open(b"f", filters=[NODELETE])
            nothing, everything = stream.open(b"f", filters=[NOPUT, NODELETE]), stream.open(b"f")
            client.put(b"f", b"1")
            client.delete(b"f")
            client.put(b"f", b"2")
            stream.wait_events(everything, 3)
            past = stream.open(b"f", start_revision=everything.events[0].kv.mod_revision, filters=[NOPUT])
            stream.wait_events(past, 1)
            stream.cancel(everything)
            assert [len(watch.responses) for watch in (no_puts, nothing)] == [1, 0]
            assert len(no_deletes.events) == 2 and all(response.events for response in no_deletes.responses)


def test_half_a_stream_goes_on(clients: list[Client]) -> None:
    """The client has no more requests: events still come."""
    for client, stream in zip(clients, _both(clients)):
        with stream:
            watch = stream.open(b"half")
            stream.half_close()
            for number in range(3):
                client.put(b"half", b"%d" % number)
            stream.wait_events(watch, 3)
            assert stream.ended is None


def test_a_message_that_is_none_ends_the_stream(clients: list[Client]) -> None:
    ends = []
    for stream in _both(clients):
        with stream:
            stream.open(b"k")
            stream.send(b"\xff\xff\xff")
            ends.append(stream.wait_end().code)
    assert ends == [13, 13]


def test_a_negative_start_is_refused_as_compacted(clients: list[Client]) -> None:
    with WatchStream(clients[1].endpoint) as stream:
        if isinstance(_server_of(clients[1]), EtcdServer):
            pytest.skip("3.5.1 takes it (known difference)")
        for start in (-1, -(2**63)):
            watch = stream.open(b"k", start_revision=start, watch_id=9)
            created = watch.created
            assert (created.watch_id, created.canceled, created.cancel_reason) == (-1, True, COMPACTED_TEXT)
        assert stream.open(b"k").id == 0


# -- the comparison itself goes red ----------------------------------------------------------------


class Falsifier:
    """Changes the first response that `change` accepts; says whether it came to act."""

    def __init__(self, change) -> None:
        self.change, self.done = change, False

    def __call__(self, response):
        if self.done or response.watch_id >= OWN_IDS:
            return response
        copy = pb.WatchResponse.FromString(response.SerializeToString())
        changed = self.change(copy)
        if changed is False:
            return response
        self.done = True
        return changed


def _lost(response):
    return None if response.events else False


def _event_lost(response):
    if len(response.events) < 2:
        return False
    del response.events[0]
    return response


def _swapped(response):
    if len(response.events) < 2 or response.events[0] == response.events[1]:
        return False
    first = pb.Event.FromString(response.events[0].SerializeToString())
    response.events[0].CopyFrom(response.events[1])
    response.events[1].CopyFrom(first)
    return response


def _value(response):
    if not response.events or response.events[0].type == pb.Event.DELETE:
        return False
    response.events[0].kv.value += b"!"
    return response


def _prev_lost(response):
    if not response.events or not response.events[0].HasField("prev_kv"):
        return False
    response.events[0].ClearField("prev_kv")
    return response


def _prev_added(response):
    if not response.events or response.events[0].HasField("prev_kv"):
        return False
    response.events[0].prev_kv.key = b"x"
    return response


def _event_revision(response):
    if not response.events:
        return False
    response.header.revision = response.events[-1].kv.mod_revision - 1
    return response


def _wrong_watch(response):
    if not response.events:
        return False
    response.watch_id += 7_000_000
    return response


def _created_revision(response):
    if not response.created:
        return False
    response.header.revision += 1
    return response


def _reason(response):
    if not response.cancel_reason:
        return False
    response.cancel_reason += "."
    return response


def _compact_revision(response):
    if not response.compact_revision:
        return False
    response.compact_revision -= 1
    return response


def _progress_revision(response):
    if response.watch_id != -1 or response.created:
        return False
    response.header.revision -= 1
    return response


def _cancelled(response):
    if not response.events:
        return False
    response.canceled = True
    return response


FALSE = [
    _lost,
    _event_lost,
    _swapped,
    _value,
    _prev_lost,
    _prev_added,
    _event_revision,
    _wrong_watch,
    _created_revision,
    _reason,
    _compact_revision,
    _progress_revision,
    _cancelled,
]


def test_each_wrong_answer_is_found() -> None:
    """etcd on both sides, one of them falsified; one pair of servers for all."""
    with started_pair(EtcdServer(), EtcdServer()) as servers:
        with servers[0].client() as one, servers[1].client() as other:
            pair = Pair(one, other)
            for change in FALSE:
                falsify = Falsifier(change)
                for seed in range(40, 60):
                    summary = run_history(pair, servers, seed, range(40), falsify=falsify, settle_seconds=0.3)
                    if summary.failure or falsify.done:
                        break
                assert falsify.done, f"{change.__name__} never came to act"
                assert summary.failure is not None, f"{change.__name__} went unnoticed"
            assert run_history(pair, servers, 60, range(50)).failure is None
