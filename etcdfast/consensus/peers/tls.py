"""TLS between members: what this one shows and whom it takes, and the wire that speaks it.

Handshakes are made here, by asyncio. A stream's connection is then handed to the main thread together with its TLS
state, and nothing of it is Python from there on.

Rules are etcd's (config/peertls.py). The address that a member comes from is compared with its certificate behind the
handshake (peers/addresses.py). Files are looked at anew for each connection.
"""

import asyncio
import os
import socket
import time

from etcdfast import log
from etcdfast._ext.tlscontext import TlsContext, TlsOptions, TlsSocket, TlsWantRead, TlsWantWrite
from etcdfast.config import peertls
from etcdfast.consensus.peers.addresses import WrongAddress, check_address
from etcdfast.consensus.peers.sockets import Taken, Wire

HANDSHAKE_SECONDS = 10.0
REFUSALS_SHOWN = 20  # a second; further ones are counted in the next line
FILE_PIECE_BYTES = 262144


class TlsRefused(Exception):
    """The other side was not taken; the log has said why."""


class PeerTls:
    """This member's TLS towards others. Errors: TlsError (an OSError) for files that cannot be used."""

    def __init__(self, config):
        self._config = config
        self._check_address = not config.peer_skip_client_san_verification
        self._refused = self._shown = 0  # since the last line; lines in this window
        self._window = 0.0
        self._accepting = _context(peertls.accepting(config)) if peertls.listens(config) else None
        # Without settings of its own the dialling side reads the system's authorities, for a URL that may never come.
        own = peertls.is_given(config) or peertls.is_self_signed(config)
        self._dialling = _context(peertls.dialling(config)) if own else None

    def reload(self):
        """Read the files anew though they look as before."""
        for context in (self._accepting, self._dialling):
            if context is not None:
                context.reload()

    async def accept(self, wire):
        """The wire over TLS of a member that dialled. Errors: TlsRefused."""
        host, address = wire.remote
        connected = wire.take_socket()
        names = None
        try:
            tls = TlsSocket(self._accepting, connected, server_side=True)
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                secure = TlsWire(connected, tls)
                await secure.shake_hands()
                if self._check_address and host and (names := tls.peer_names()):
                    await check_address(host, names["ips"], names["dns"])
            return secure
        except (OSError, WrongAddress) as err:
            connected.close()
            reason = "TLS handshake: timed out" if isinstance(err, TimeoutError) else str(err)
            self._tell_refused(address, names, reason)
            raise TlsRefused from None
        except BaseException:
            connected.close()
            raise

    def _tell_refused(self, address, names, reason):
        self._refused += 1
        now = time.monotonic()
        if now - self._window >= 1.0:
            self._window, self._shown = now, 0
        if self._shown >= REFUSALS_SHOWN:
            return
        self._shown += 1
        more = {"ip_addresses": names["ips"], "dns_names": names["dns"]} if names else {}
        if self._refused > 1:
            more["rejected"] = self._refused
        self._refused = 0
        log.warn("rejected connection on peer endpoint", remote_addr=address, **more, error=reason)

    async def dial(self, wire, host):
        """The wire over TLS to `host`. Errors: OSError."""
        connected = wire.take_socket()
        try:
            if self._dialling is None:
                self._dialling = _context(peertls.dialling(self._config))
            secure = TlsWire(connected, TlsSocket(self._dialling, connected, server_name=host or None))
            await secure.shake_hands()
            return secure
        except BaseException:
            connected.close()
            raise


def _context(options):
    return TlsContext(TlsOptions(**options), lambda level, text: getattr(log, level)(text, endpoint="peer"))


class TlsWire(Wire):
    """A connected socket under TLS; its owner may read and write it from two tasks at once."""

    def __init__(self, connected, tls):
        super().__init__(connected)
        self._tls = tls
        self._waiting = ([], [])  # futures: until the socket can be read, written

    async def shake_hands(self):
        await self._go_on(self._tls.do_handshake)

    async def recv(self, bytes_max):
        return await self._go_on(self._tls.recv, bytes_max)

    async def send(self, data):
        left = memoryview(data)
        while left:
            left = left[await self._go_on(self._tls.send, left) :]

    async def send_file(self, file, offset, count):
        sent = 0
        while sent < count:
            piece = os.pread(file.fileno(), min(FILE_PIECE_BYTES, count - sent), offset + sent)
            if not piece:
                break
            await self.send(piece)
            sent += len(piece)
            await asyncio.sleep(0)  # a peer that takes everything must not keep the others waiting
        return sent

    def end_sending(self):
        self._tls.unwrap()
        self._socket.shutdown(socket.SHUT_WR)

    def detach(self):
        self._forget()
        self._socket = None
        return Taken(*self._tls.detach())

    def close(self):
        if self._socket is not None:
            self._forget()
            self._tls.unwrap()
            self._tls.close()
            self._socket = None

    async def _go_on(self, function, *arguments):
        while True:
            try:
                return function(*arguments)
            except TlsWantRead:
                await self._until(0)
            except TlsWantWrite:
                await self._until(1)

    async def _until(self, writing):
        waiting = self._waiting[writing]
        if not waiting:
            fd = self._socket.fileno()
            (self._loop.add_writer if writing else self._loop.add_reader)(fd, self._wake, writing)
        future = self._loop.create_future()
        waiting.append(future)
        try:
            await future
        finally:
            if future in waiting:
                waiting.remove(future)
                if not waiting:
                    self._stop_watching(writing)

    def _wake(self, writing):
        self._stop_watching(writing)
        waiting = self._waiting[writing]
        for future in waiting:
            if not future.done():
                future.set_result(None)
        waiting.clear()

    def _stop_watching(self, writing):
        if self._socket is not None:
            (self._loop.remove_writer if writing else self._loop.remove_reader)(self._socket.fileno())

    def _forget(self):
        self._stop_watching(0)
        self._stop_watching(1)
