"""aetcd with user and password against one server with auth on: one line per result; see aetcd_flows.py.

Usage: aetcd_login.py HOST PORT
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import aetcd


async def shown(what: str, waited_for: Any) -> None:
    try:
        result: object = await asyncio.wait_for(waited_for, 20)
    except Exception as error:
        result = type(error).__name__, str(error)
    print(f"{what}: {result!r}", flush=True)


async def value(client: aetcd.Client, key: bytes) -> object:
    found = await client.get(key)
    return found and (found.key, found.value, found.mod_revision)


async def put(client: aetcd.Client, key: bytes) -> object:
    return (await client.put(key, b"value")).header.revision


async def first_event(client: aetcd.Client, key: bytes) -> object:
    watch = await client.watch(key)
    await client.put(key, b"seen")
    async for event in watch:
        await watch.cancel()
        return event.kv.key, event.kv.value
    return None


async def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    for name, password in (("ann", "ann's"), ("root", "root's")):
        async with aetcd.Client(host=host, port=port, username=name, password=password) as client:
            await shown(f"{name} put", put(client, b"a/1"))
            await shown(f"{name} get", value(client, b"a/1"))
            await shown(f"{name} put elsewhere", put(client, b"b/1"))
            await shown(f"{name} get elsewhere", value(client, b"b/1"))
            await shown(f"{name} watch", first_event(client, b"a/2"))
    async with aetcd.Client(host=host, port=port) as client:
        await shown("nobody get", value(client, b"a/1"))
    wrong = aetcd.Client(host=host, port=port, username="ann", password="wrong")
    await shown("wrong password", wrong.connect())
    await wrong.close()
    print("end", flush=True)


asyncio.run(main())
