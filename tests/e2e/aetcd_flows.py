"""The basic flows of aetcd's documentation against one server, as a program: one line per result.

It is run by test_clients in a process of its own, because aetcd brings message classes with the names of
ours, and protobuf holds one class of a name per process. Usage: aetcd_flows.py HOST PORT
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import aetcd

WAIT_SECONDS = 20


def show(what: str, result: object) -> None:
    print(f"{what}: {result!r}", flush=True)


def kv_of(kv: Any) -> object:
    if kv is None:
        return None
    return kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version


def event_of(event: Any) -> object:
    return str(event.kind), kv_of(event.kv), kv_of(event.prev_kv)


async def soon(waited_for: Any) -> Any:
    return await asyncio.wait_for(waited_for, WAIT_SECONDS)


async def keys_and_values(client: aetcd.Client) -> None:
    put = await client.put(b"foo", b"bar")
    show("put", put.header.revision)
    show("put again", kv_of((await client.put(b"foo", b"baz", prev_kv=True)).prev_kv))
    show("get", kv_of(await client.get(b"foo")))
    show("get nothing", await client.get(b"nothing"))
    for number in range(5):
        await client.put(b"doc/%d" % number, b"%d" % number)
    show("prefix", [kv_of(kv) for kv in await client.get_prefix(b"doc/")])
    show("prefix sorted", [kv.key for kv in await client.get_prefix(b"doc/", sort_order="descend", sort_target="key")])
    show("range", [kv.key for kv in await client.get_range(b"doc/1", b"doc/4")])
    show("all", len(await client.get_all()))
    show("replace", await client.replace(b"foo", b"baz", b"new"))
    show("replace of another value", await client.replace(b"foo", b"baz", b"newer"))
    show("delete", kv_of((await client.delete(b"foo", prev_kv=True)).prev_kv))
    show("delete nothing", await client.delete(b"foo"))
    show("delete prefix", (await client.delete_prefix(b"doc/")).deleted)


async def transactions(client: aetcd.Client) -> None:
    operations = client.transactions
    await client.put(b"txn", b"1")
    for wanted in (b"1", b"2"):
        succeeded, responses = await client.transaction(
            compare=[operations.value(b"txn") == wanted, operations.version(b"txn") > 0],
            success=[operations.put(b"txn", b"yes"), operations.get(b"txn")],
            failure=[operations.get(b"txn"), operations.delete(b"txn")],
        )
        shown = [
            [kv_of(got) for _, got in one] if isinstance(one, list) else one.WhichOneof("response") for one in responses
        ]
        show(f"txn {wanted!r}", (succeeded, shown))
    succeeded, _ = await client.transaction(
        compare=[operations.create(b"new") == 0, operations.mod(b"new") < 1],
        success=[operations.put(b"new", b"1")],
        failure=[],
    )
    show("txn of a new key", (succeeded, kv_of(await client.get(b"new"))))


async def watches(client: aetcd.Client) -> None:
    watch = await soon(client.watch(b"w", prev_kv=True))
    await client.put(b"w", b"1")
    await client.put(b"other", b"not watched")
    await client.put(b"w", b"2")
    await client.delete(b"w")
    seen = []
    async for event in watch:
        seen.append(event_of(event))
        if len(seen) == 3:
            await watch.cancel()
    show("watch", seen)

    first = (await client.put(b"dir/a", b"1")).header.revision
    await client.delete(b"dir/a")
    await client.put(b"dir/b", b"2")
    past = await soon(client.watch_prefix(b"dir/", start_revision=first))
    events = past.__aiter__()
    show("watch of the past", [event_of(await soon(events.__anext__())) for _ in range(3)])
    await past.cancel()

    waiting = asyncio.ensure_future(
        client.watch_once(b"once", timeout=WAIT_SECONDS, start_revision=first, kind=aetcd.rtypes.EventKind.DELETE)
    )
    await client.put(b"once", b"1")
    await client.delete(b"once")
    show("watch once, deletes only", event_of(await soon(waiting)))
    try:
        await client.watch_once(b"never", timeout=0.2)
    except aetcd.exceptions.WatchTimeoutError:
        show("watch once", "timed out")

    # Several watches share aetcd's one stream.
    many = [await soon(client.watch(b"many/%d" % number)) for number in range(20)]
    for number in range(20):
        await client.put(b"many/%d" % number, b"v")
    show("many", [event_of(await soon(watch.__aiter__().__anext__()))[1][0] for watch in many])

    revision = (await client.put(b"w", b"3")).header.revision
    await client.compact(revision, physical=True)
    late = await soon(client.watch(b"w", start_revision=1))
    try:
        await soon(late.__aiter__().__anext__())
    except aetcd.exceptions.RevisionCompactedError as error:
        show("watch of a compacted revision", error.compacted_revision == revision)


async def leases(client: aetcd.Client) -> None:
    lease = await client.lease(100, lease_id=4711)
    show("lease", (lease.id, lease.ttl))
    await client.put(b"leased", b"1", lease=lease)
    show("lease keys", list(await lease.keys()))
    show("granted", await lease.granted_ttl())
    show("remaining", 90 <= await lease.remaining_ttl() <= 100)
    refreshed = await lease.refresh()
    show("refresh", (refreshed.ID, refreshed.TTL))
    await lease.revoke()
    show("after the revoke", (await client.get(b"leased"), await lease.remaining_ttl()))
    show("refresh of nothing", (await lease.refresh()).TTL)
    try:
        await lease.revoke()
    except Exception as error:  # noqa: BLE001 - which class it is, is what is shown
        show("revoke again", type(error).__name__)

    short = await client.lease(1)
    show("the shortest lease", short.ttl)
    await client.put(b"short", b"1", lease=short)
    gone = await soon(client.watch_once(b"short", timeout=WAIT_SECONDS, kind=aetcd.rtypes.EventKind.DELETE))
    show("expired", gone.kv.key)


async def locks(client: aetcd.Client, endpoint: tuple[str, int]) -> None:
    async with client.lock(b"lock", ttl=30) as lock:
        show("lock", await lock.is_acquired())
        other = client.lock(b"lock", ttl=30)
        show("lock taken", await other.acquire(timeout=0))
        await lock.refresh()
    show("unlocked", await lock.is_acquired())

    order: list[int] = []

    async def worker(number: int) -> None:
        async with aetcd.Client(host=endpoint[0], port=endpoint[1]) as own:
            async with own.lock(b"shared", ttl=30):
                order.append(number)
                order.append(number)

    await soon(asyncio.gather(*(worker(number) for number in range(5))))
    show("five workers, one at a time", order[::2] == order[1::2] and sorted(order[::2]) == list(range(5)))


async def status(client: aetcd.Client) -> None:
    found = await client.status()
    show("status", (found.raft_term, found.leader is not None))
    show("members", [(member.name, list(member.client_urls) != []) async for member in client.members()])


async def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    async with aetcd.Client(host=host, port=port) as client:
        await keys_and_values(client)
        await transactions(client)
        await watches(client)
        await leases(client)
        await locks(client, (host, port))
        await status(client)
    show("end", True)


asyncio.run(main())
