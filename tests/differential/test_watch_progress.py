"""Periodic progress notifications, and the end of streams when a member is stopped: both sides alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import Server, reference_server, started_pair, target_server
from tests.harness.watch import Watch, WatchStream, is_progress

# The name of 3.5; newer releases dropped the prefix, etcdfast knows both.
FLAGS = ["--experimental-watch-progress-notify-interval", "150ms"]
UNAVAILABLE = 14


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    with started_pair(reference_server(flags=FLAGS), target_server(flags=FLAGS)) as pair:
        yield pair


def _bookmarks(watch: Watch) -> list[int]:
    return [response.header.revision for response in watch.responses if is_progress(response)]


def _periods(stream: WatchStream, watch: Watch, more: int) -> None:
    """Wait for so many more notifications of this watch."""
    due = len(_bookmarks(watch)) + more
    stream.wait(lambda: len(_bookmarks(watch)) >= due, f"{due} progress notifications")


def test_progress_is_notified_to_those_who_asked_and_are_in_step(servers: tuple[Server, Server]) -> None:
    for server in servers:
        with server.client() as client, WatchStream(server.endpoint) as stream:
            first = client.put(b"p", b"0").header.revision
            idle = stream.open(b"idle", progress_notify=True)
            past = stream.open(b"p", start_revision=first, progress_notify=True)
            silent = stream.open(b"idle")
            future = stream.open(b"p", start_revision=first + 1000, progress_notify=True)
            _periods(stream, idle, 2)
            _periods(stream, past, 2)
            assert set(_bookmarks(idle)) == {first} == set(_bookmarks(past))
            assert [is_progress(response) for response in past.responses[:2]] == [False, True]
            last = client.put(b"other", b"").header.revision
            # One may have been on its way.
            _periods(stream, idle, 2)
            _periods(stream, past, 2)
            assert _bookmarks(idle)[-1] == _bookmarks(past)[-1] == last
            assert all(response.watch_id == idle.id for response in idle.responses)
            assert not silent.responses and not stream.progress_responses
            stream.check()
            # 3.5.1 notifies who waits for a future revision as well; newer releases do not.
            assert server.kind == "etcd" or not future.responses


def test_a_member_that_stops_ends_its_streams(servers: tuple[Server, Server]) -> None:
    for server in servers:
        with WatchStream(server.endpoint) as stream, WatchStream(server.endpoint) as unused:
            watch = stream.open(b"\x00", b"\x00")
            with server.client() as client:
                client.put(b"k", b"v")
            stream.wait_events(watch, 1)
            server.stop()
            assert stream.wait_end().code == UNAVAILABLE
            assert unused.wait_end().code == UNAVAILABLE
            stream.check()
