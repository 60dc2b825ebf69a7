"""A TCP proxy before the peer port of each member: links that can be cut, slowed and healed without being root.

Commands come on standard input, a JSON list a line, each answered by a line `done`:
    ["listen", member, front port, peer port]   ["name", member, hex id]
    ["cut", sender, receiver]   ["slow", member]   ["heal"]
Who dialled is read from the header X-Server-From of the first request of a connection; before that is known
nothing is passed on. What a cut holds back goes on when it is healed, as TCP would send it again.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

HEAD_BYTES_MAX = 65536
SLOW_BYTES_PER_SECOND = 125_000
PIECE_BYTES = 4096


class Links:
    def __init__(self) -> None:
        self.members: dict[str, int] = {}
        self.cuts: set[tuple[int, int]] = set()
        self.slow: set[int] = set()
        self.changed = asyncio.Condition()
        self.servers: list[asyncio.Server] = []

    async def command(self, words: list) -> None:
        name, *arguments = words
        if name == "listen":
            member, front, peer = arguments
            self.servers.append(
                await asyncio.start_server(lambda r, w: self.serve(member, peer, r, w), "127.0.0.1", front)
            )
        async with self.changed:
            if name == "name":
                self.members[arguments[1]] = arguments[0]
            elif name == "cut":
                self.cuts.add(tuple(arguments))
            elif name == "slow":
                self.slow.add(arguments[0])
            elif name == "heal":
                self.cuts.clear()
                self.slow.clear()
            self.changed.notify_all()

    async def serve(self, member: int, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = b""
            while b"\r\n\r\n" not in head and len(head) < HEAD_BYTES_MAX:
                piece = await reader.read(PIECE_BYTES)
                if not piece:
                    return
                head += piece
            found = re.search(rb"(?i)\r\nx-server-from: *([0-9a-f]+)\r\n", head)
            dialler = found[1].decode() if found else ""
            await self.pass_gate(dialler, member)
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            inner_writer.write(head)
            await asyncio.gather(
                self.pump(reader, inner_writer, lambda: (self.members.get(dialler, 0), member)),
                self.pump(inner_reader, writer, lambda: (member, self.members.get(dialler, 0))),
            )
        except (ConnectionError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def pass_gate(self, dialler: str, member: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: (self.members.get(dialler, 0), member) not in self.cuts)

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way) -> None:
        try:
            while piece := await reader.read(PIECE_BYTES):
                async with self.changed:
                    await self.changed.wait_for(lambda: way() not in self.cuts)
                if way()[0] in self.slow:
                    await asyncio.sleep(len(piece) / SLOW_BYTES_PER_SECOND)
                writer.write(piece)
                await writer.drain()
        except (ConnectionError, OSError):
            pass
        finally:
            writer.close()


async def main() -> None:
    links = Links()
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        await links.command(json.loads(line))
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
