"""The one place where sockets between members are made, and the object that everything above reads and writes.

TLS will be a second kind of `Wire`.
"""

import asyncio
import socket
from urllib.parse import urlsplit

KEEPALIVE_SECONDS = 30


class Wire:
    """A connected TCP socket driven by asyncio."""

    def __init__(self, connected):
        self._socket = connected
        self._loop = asyncio.get_running_loop()

    async def recv(self, bytes_max):
        return await self._loop.sock_recv(self._socket, bytes_max)

    async def send(self, data):
        await self._loop.sock_sendall(self._socket, data)

    async def send_file(self, file, offset, count):
        """Returns the bytes sent, fewer than `count` at the end of the file."""
        return await self._loop.sock_sendfile(self._socket, file, offset, count, fallback=True)

    def end_sending(self):
        self._socket.shutdown(socket.SHUT_WR)

    def detach(self):
        """The socket, for somebody else; this wire is done."""
        taken, self._socket = self._socket, None
        return taken

    def close(self):
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _prepare(connected):
    connected.setblocking(False)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)


async def accept(listener):
    """The next connection. Errors: OSError."""
    connected, _ = await asyncio.get_running_loop().sock_accept(listener)
    try:
        _prepare(connected)
        return Wire(connected)
    except OSError:
        connected.close()
        raise


def host_of(url):
    """host:port for the Host header."""
    return urlsplit(url).netloc


async def connect(url, timeout_seconds):
    """A wire to the host of a peer URL. Errors: OSError (TimeoutError among them), ValueError for a bad URL."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or not parts.port:
        raise ValueError(f"peer URL {url} is not http://host:port")
    async with asyncio.timeout(timeout_seconds):
        failure = None
        for family, address in await _addresses(parts.hostname, parts.port):
            connected = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                _prepare(connected)
                await asyncio.get_running_loop().sock_connect(connected, address)
                return Wire(connected)
            except OSError as err:
                connected.close()
                failure = err
            except BaseException:
                connected.close()
                raise
        raise failure or OSError(f"{parts.hostname} has no address")


async def _addresses(host, port):
    # Most peer URLs hold an address; only names need the resolver, which blocks a helper thread.
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
            return [(family, (host, port))]
        except OSError:
            pass
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]
