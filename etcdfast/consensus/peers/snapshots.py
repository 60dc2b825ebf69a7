"""Databases between members: POST /raft/snapshot, received into member/snap and sent from a file (formats.md 4.9).

Body: u64 BE length of the message, the MsgSnap, then the database file to the end of the body. Neither side has a
checksum for the database: what HTTP delivered whole is taken.
"""

import asyncio
import os
import struct
import time

from etcdfast import log
from etcdfast._ext import meters
from etcdfast._ext.peerwire import PeerMessage, PeerMessageError
from etcdfast.consensus.peers import sockets
from etcdfast.consensus.peers.http1 import HttpError, read_response_head, request_head

MSG_SNAP = 7
SYNC_BYTES = 32 << 20  # written between two syncs: the one at the end must not take longer than the sender waits
SEND_PIECE_BYTES = 4 << 20
SEND_PIECE_SECONDS = 30.0  # for one of them
ANSWER_SECONDS = 60.0  # behind the last byte
_TEMPORARY = "tmp-{}.snap.db"


def database_path(snap_dir, index):
    return os.path.join(snap_dir, f"{index:016x}.snap.db")


def remove_leftovers(snap_dir):
    """Delete what an interrupted receive left behind."""
    try:
        names = os.listdir(snap_dir)
    except FileNotFoundError:
        return
    for name in names:
        if name.startswith("tmp-") and name.endswith(".snap.db"):
            os.unlink(os.path.join(snap_dir, name))


class Receiver:
    """Takes one snapshot at a time."""

    def __init__(self, snap_dir, message_bytes_max):
        self._snap_dir = snap_dir
        self._message_bytes_max = message_bytes_max
        self._busy = False
        self._count = 0

    async def receive(self, request):
        """(bytes of the MsgSnap, path of the database, durable). Errors: HttpError with what to answer, OSError."""
        if self._busy:
            raise HttpError("another snapshot is being received", 503)
        self._busy = True
        try:
            message, rest = await self._message(request)
            return message, await self._database(request, PeerMessage(message), rest)
        finally:
            self._busy = False

    async def _message(self, request):
        """(message, first bytes of the database)."""
        data, wanted = bytearray(), 8
        while len(data) < wanted:
            piece = await self._piece(request)
            if piece is None:
                raise HttpError(f"failed to decode raft message ({'unexpected EOF' if data else 'EOF'})")
            data += piece
            if wanted == 8 and len(data) >= 8:
                (size,) = struct.unpack_from(">Q", data)
                if size > self._message_bytes_max:
                    raise HttpError("failed to decode raft message (error limit exceeded)")
                wanted += size
        message, rest = bytes(data[8:wanted]), bytes(data[wanted:])
        try:
            parsed = PeerMessage(message)
        except PeerMessageError:
            raise HttpError("failed to decode raft message (unexpected EOF)") from None
        if parsed.type != MSG_SNAP:
            raise HttpError("wrong raft message type")
        return message, rest

    async def _piece(self, request):
        try:
            return await request.piece()
        except TimeoutError:
            raise HttpError("the snapshot stopped coming", 408) from None

    async def _database(self, request, message, rest):
        index = message.snap_index
        path = database_path(self._snap_dir, index)
        self._count += 1
        temporary = os.path.join(self._snap_dir, _TEMPORARY.format(self._count))
        started = time.monotonic()
        meters.peer_put(message.frm, "snapshot_receiving", 1)
        log.info("receiving a snapshot", remote_member=f"{message.frm:x}", snapshot_index=index)
        try:
            with open(temporary, "xb", buffering=0) as file:
                size = await self._store(request, file, rest)
            # An older one of the same index holds the same state and may be in use.
            if os.path.exists(path):
                os.unlink(temporary)
            else:
                os.rename(temporary, path)
                await asyncio.to_thread(_sync_directory, self._snap_dir)
        except BaseException as err:
            _unlink_quietly(temporary)
            meters.peer_count(message.frm, "snapshot_receive_failures")
            log.warn("failed to receive a snapshot", snapshot_index=index, error=f"{type(err).__name__}: {err}")
            if isinstance(err, OSError) and not isinstance(err, TimeoutError):
                raise HttpError(f"failed to save KV snapshot ({err.strerror or err})", 500) from None
            raise
        finally:
            meters.peer_put(message.frm, "snapshot_receiving", 0)
        took_ns = int((time.monotonic() - started) * 1e9)
        meters.peer_count(message.frm, "snapshot_received")
        meters.peer_observe(message.frm, "snapshot_receive", took_ns)
        meters.observe("snap_db_save", took_ns)
        log.info(
            "received a snapshot",
            remote_member=f"{message.frm:x}",
            snapshot_index=index,
            bytes=size,
            took_seconds=round(time.monotonic() - started, 3),
        )
        return path

    async def _store(self, request, file, piece):
        size = unsynced = 0
        while piece is not None:
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
            size += len(piece)
            unsynced += len(piece)
            if unsynced >= SYNC_BYTES:
                await asyncio.to_thread(os.fdatasync, file.fileno())
                unsynced = 0
            piece = await self._piece(request)
        began = time.monotonic_ns()
        await asyncio.to_thread(os.fsync, file.fileno())
        meters.observe("snap_db_fsync", time.monotonic_ns() - began)
        return size


async def send(url, headers, message, path, dial_seconds, tls=None):
    """POST a snapshot to a peer; returns the status of its answer.

    Errors: OSError (TimeoutError among them), HttpError, ValueError for a bad URL.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = {
            "Host": sockets.host_of(url),
            **headers,
            "Content-Type": "application/octet-stream",
            "Content-Length": 8 + len(message) + size,
            "Connection": "close",
        }
        wire = await sockets.connect(url, dial_seconds, tls)
        try:
            prefix = request_head("POST", "/raft/snapshot", head) + struct.pack(">Q", len(message))
            # Who refuses answers before it has read the body, and does not read on.
            answer = asyncio.create_task(read_response_head(wire, None))
            body = asyncio.create_task(_send_body(wire, prefix + message, file, size))
            try:
                await asyncio.wait((answer, body), return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    await body
                async with asyncio.timeout(ANSWER_SECONDS):
                    response, _ = await answer
                if 200 <= response.status < 300:
                    await body
                return response.status
            finally:
                for task in (answer, body):
                    task.cancel()
                await asyncio.gather(answer, body, return_exceptions=True)
        finally:
            wire.close()


async def _send_body(wire, start, file, size):
    async with asyncio.timeout(SEND_PIECE_SECONDS):
        await wire.send(start)
    sent = 0
    while sent < size:
        async with asyncio.timeout(SEND_PIECE_SECONDS):
            came = await wire.send_file(file, sent, min(SEND_PIECE_BYTES, size - sent))
        if not came:
            raise OSError(f"the database became shorter while it was sent: {sent} of {size} bytes")
        sent += came


def _sync_directory(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unlink_quietly(path):
    try:
        os.unlink(path)
    except OSError:
        pass
