"""The calls of an API server of Kubernetes: every answer equal to etcd's, every watch's events too."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.harness import pb
from tests.harness.servers import Server, reference_server, target_server
from tests.harness.watch import WatchStream

from .kubernetes import PREFIX, ApiServer, Conflict, end_of

KINDS = (b"pods", b"configmaps", b"leases")


def _key(kind: bytes, number: int) -> bytes:
    return PREFIX + kind + b"/default/object-%04d" % number


def _traffic(server: Server, seed: int) -> tuple[list[Any], list[bytes]]:
    """What a day of an API server looks like; (recorded calls, events of the caches)."""
    chance = random.Random(seed)
    with server.client() as client, WatchStream(server.endpoint) as stream:
        first, second = ApiServer(client), ApiServer(client)
        for kind in KINDS:
            assert first.list_pages(PREFIX + kind + b"/")[0] == []
        caches = [first.watch(stream, PREFIX + kind + b"/", first.current_revision(PREFIX)) for kind in KINDS]
        last = first.compact(0, 0)
        first.create(_key(KINDS[0], 9998), b"never deleted")
        objects = 0
        for turn in range(150):
            for number in range(objects, objects + 2):
                first.create(_key(chance.choice(KINDS), number), bytes([chance.randrange(256)]) * 300)
            objects += 2
            kind, number = chance.choice(KINDS), chance.randrange(objects)
            found = second.get(_key(kind, number))
            if found is None:
                found = first.get(_key(KINDS[0], 9998))
                kind, number = KINDS[0], 9998
            if number == 9998 or chance.random() < 0.6:
                second.update(_key(kind, number), lambda value: value + b"+")
                with pytest.raises(Conflict) as stale:
                    first.delete(_key(kind, number), found.mod_revision)
                assert stale.value.current.mod_revision > found.mod_revision
            else:
                first.delete(_key(kind, number), found.mod_revision)
            with pytest.raises(Conflict):
                first.create(_key(KINDS[0], _first_left(first)), b"again")
            first.event(b"default/%d" % objects, b"event")
            if turn % 30 == 29:
                version, revision = last
                assert second.compact(version - 1, revision)[0] == version  # another one was first
                last = first.compact(version, revision)
                first.read_at(_key(kind, number), 2)  # compacted by now, or not yet
        for kind in KINDS:
            found, revision = first.list_pages(PREFIX + kind + b"/", limit=7)
            assert len(found) == first.count(PREFIX + kind + b"/") == len(second.list_pages(PREFIX + kind + b"/")[0])
            # A 3.7 leaves the lease out of answers of keys alone, as etcd 3.7 does; these have none.
            first.list_pages(PREFIX + kind + b"/", keys_only=True)
        now = first.current_revision(PREFIX)
        late = first.watch(stream, PREFIX + b"pods/", 1)
        stream.wait(lambda: late.refused or late.canceled, "the cache that is too old to be told")
        done = first.create(_key(b"pods", 9999), b"the end")
        for kind in KINDS[1:]:
            done = first.create(_key(kind, 9999), b"the end")
        for cache in caches:
            stream.wait(
                lambda cache=cache: cache.events and cache.events[-1].kv.key.endswith(b"9999"), "the last event"
            )
        stream.request_progress()
        stream.wait(lambda: any(r.header.revision >= done for r in caches[0].responses), "a bookmark")
        events = [event.SerializeToString(deterministic=True) for cache in caches for event in cache.events]
        assert now < done
        return first.record + second.record, events


def _first_left(server: ApiServer) -> int:
    request = pb.RangeRequest(key=PREFIX + KINDS[0] + b"/", range_end=end_of(PREFIX + KINDS[0] + b"/"), limit=1)
    found = server._call("Range", request).message.kvs
    return int(found[0].key[-4:]) if found else 9998


def test_every_answer_is_the_one_of_etcd() -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    with reference_server() as reference, target_server() as target:
        theirs, their_events = _traffic(reference, seed)
        ours, our_events = _traffic(target, seed)
    assert len(theirs) > 500
    for number, (left, right) in enumerate(zip(theirs, ours)):
        assert right == left, f"seed {seed}, call {number}"
    assert len(theirs) == len(ours)
    assert our_events == their_events, f"seed {seed}"


def test_a_list_in_one_stream_is_the_list() -> None:
    """What 3.7's API server asks instead of pages: RangeStream, merged, is the Range of the same revision."""
    with target_server() as server, server.client() as client:
        api = ApiServer(client)
        for number in range(300):
            api.create(_key(b"pods", number), b"x" * 1000)
        prefix = PREFIX + b"pods/"
        whole = client.call("Range", pb.RangeRequest(key=prefix, range_end=end_of(prefix))).message
        stream = client.channel.unary_stream(
            "/etcdserverpb.KV/RangeStream",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.RangeStreamResponse.FromString,
        )
        merged = pb.RangeResponse()
        parts = 0
        for part in stream(pb.RangeRequest(key=prefix, range_end=end_of(prefix)), timeout=30):
            merged.MergeFrom(part.range_response)
            parts += 1
    assert parts > 1
    assert merged == whole
