"""The one place where sockets between members are made, and the object that everything above reads and writes.

A `Wire` is plain; `TlsWire` (peers/tls.py) is the same over TLS. Which of them a connection gets follows from the
scheme of the URL that is dialled, or of the one that is listened on.
"""

import asyncio
import socket

from etcdfast.config.values import split_host_port, split_url

KEEPALIVE_SECONDS = 30
SECURE = ("https", "unixs")
_UNIX = ("unix", "unixs")


class Taken:
    """A connection that a wire has given away: `fd`, and the state of its TLS or None. Both belong to who detaches."""

    def __init__(self, fd, tls=None):
        self._fd = fd
        self._tls = tls

    def detach(self):
        """(descriptor, TLS state or None); this object is done."""
        taken = self._fd, self._tls
        self._fd, self._tls = -1, None
        return taken

    def close(self):
        fd, self._tls = self._fd, None
        self._fd = -1
        if fd >= 0:
            socket.close(fd)


class Wire:
    """A connected socket driven by asyncio."""

    def __init__(self, connected):
        self._socket = connected
        self._loop = asyncio.get_running_loop()

    @property
    def remote(self):
        """(host, "host:port") of the other side; ("", "") when it has none."""
        try:
            name = self._socket.getpeername()
        except OSError:
            return "", ""
        if not isinstance(name, tuple):
            return "", ""
        host, port = name[:2]
        return host, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def recv(self, bytes_max):
        return await self._loop.sock_recv(self._socket, bytes_max)

    async def send(self, data):
        await self._loop.sock_sendall(self._socket, data)

    async def send_file(self, file, offset, count):
        """Returns the bytes sent, fewer than `count` at the end of the file."""
        return await self._loop.sock_sendfile(self._socket, file, offset, count, fallback=True)

    def end_sending(self):
        self._socket.shutdown(socket.SHUT_WR)

    def take_socket(self):
        """The socket, for another kind of wire; this one is done."""
        taken, self._socket = self._socket, None
        return taken

    def detach(self):
        """The connection, for somebody else; this wire is done."""
        return Taken(self.take_socket().detach())

    def close(self):
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _prepare(connected):
    connected.setblocking(False)
    if connected.family == socket.AF_UNIX:
        return
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)


async def accept(listener):
    """The next connection, before any TLS. Errors: OSError."""
    connected, _ = await asyncio.get_running_loop().sock_accept(listener)
    try:
        _prepare(connected)
        return Wire(connected)
    except OSError:
        connected.close()
        raise


def host_of(url):
    """host:port for the Host header."""
    scheme, address = split_url(url)
    return "localhost" if scheme in _UNIX else address


async def connect(url, timeout_seconds, tls=None):
    """A wire to the host of a peer URL; `tls` is the PeerTls that an https URL needs.

    Errors: OSError (TimeoutError among them), ValueError for a bad URL.
    """
    try:
        scheme, address = split_url(url)
        host, port = ("", 0) if scheme in _UNIX else split_host_port(address)
        if scheme not in ("http", *SECURE, *_UNIX) or not address or (not port and scheme not in _UNIX):
            raise ValueError
        port = int(port)
    except ValueError:
        raise ValueError(f"peer URL {url} is not http://host:port or https://host:port") from None
    if scheme in SECURE and tls is None:
        raise ValueError(f"peer URL {url}: there is no TLS here")
    async with asyncio.timeout(timeout_seconds):
        if scheme in _UNIX:
            wire = await _connect_one(socket.AF_UNIX, address)
        else:
            wire = await _connect_first(host, port)
        return await tls.dial(wire, host) if scheme in SECURE else wire


async def _connect_first(host, port):
    failure = None
    for family, address in await _addresses(host, port):
        try:
            return await _connect_one(family, address)
        except OSError as err:
            failure = err
    raise failure or OSError(f"{host} has no address")


async def _connect_one(family, address):
    connected = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        _prepare(connected)
        await asyncio.get_running_loop().sock_connect(connected, address)
        return Wire(connected)
    except BaseException:
        connected.close()
        raise


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
