"""Files in etcd's format of the state here: for Maintenance.Snapshot, and for a member that is too far behind.

An export is a checkpoint (apply/checkpoint.py) that a helper process (apply/export.py) writes as a bbolt file.
The loop gives 0.2 ms for it, between two turns; a thread waits for RocksDB and for the helper. Files lie in
member/snap as tmp-export*: what a former life left there goes at start.

At most one export for clients runs, and one for consensus; clients that ask meanwhile share the next one.
"""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time

from etcdfast import log
from etcdfast._ext import meters, wire
from etcdfast.api import errors, rpcs
from etcdfast.apply import checkpoint
from etcdfast.apply.services import BULK_UNSENT_MAX, Pause, Wait
from etcdfast.apply.store import StoreError

PREFIX = "tmp-export"
CHUNK_BYTES = 32768  # of a SnapshotResponse, as etcd
AHEAD_BYTES = 4 << 20  # fetched at once when the page cache has let the file go
LOOK_NS = 25_000_000
STOP_SECONDS = 5.0
# A file goes to a client as fast as that takes it, unless this member has much else to do: each byte costs the loop,
# the frontend and, on the same host, the client the time in which puts could have been answered.
PACE_BYTES = 262144  # between two looks at how busy the member is
BUSY_ENTRIES_PER_SECOND = 2000
BUSY_BYTES_PER_SECOND = 24 << 20

_SNAPSHOT = rpcs.BY_PATH["/etcdserverpb.Maintenance/Snapshot"].id


def remove_leftovers(directory):
    """Delete what a former life has left under our names. Errors: OSError."""
    for name in os.listdir(directory):
        if name.startswith(PREFIX):
            path = os.path.join(directory, name)
            (shutil.rmtree if os.path.isdir(path) else os.unlink)(path)


class Export:
    """One file, asked for by clients or by consensus.

    done: it is there, or `error` says why not. result: of apply/export.py. Of clients' files only `file` is left,
    open and without a name; it is closed when the last of them has it.
    """

    def __init__(self, token=None, conf_state=None):
        self.token = token
        self.of_consensus = token is not None
        self.conf_state = conf_state
        self.index = 0
        self.readers = 0
        self.file = None
        self.path = None
        self.result = None
        self.error = None
        self.done = False
        self.given_up = False
        self.thread = None
        self.helper = None


class Exports:
    """`store`: Store; `directory`: member/snap; `wake()` gets the loop out of its sleep; `options` go to the helper.

    active: `step` has something to do.
    """

    def __init__(self, store, directory, wake, **options):
        self._store = store
        self._directory = directory
        self._wake = wake
        self._options = options
        self._loop = None
        self._next = None  # of clients, not yet begun
        self._running = None  # of clients
        self._asked = []  # by consensus, not yet begun: at most as many as came in one turn
        self._of_consensus = None
        self._untold = []  # (token, payload) of SNAPSHOT_DONE
        self._count = 0
        self.active = False
        self.handlers = {_SNAPSHOT: self._serve}

    def attach(self, loop):
        self._loop = loop

    def ask(self, token, payload):
        """Consensus wants the state as it is at the end of this turn; SNAPSHOT_DONE will bring `token` back."""
        self._asked.append(Export(token, json.loads(payload)["conf_state"] if payload else None))
        self.active = True

    def step(self):
        """Between two turns: begin what is asked for, tell of what is done."""
        self.active = False  # before anything is looked at: a thread says `done`, then `active`
        asked, self._asked = self._asked, []
        for export in asked:
            if self._of_consensus is not None:
                self._tell(export, {"error": "another one is being made"})
            else:
                self._of_consensus = export
                self._begin(export)
        export = self._of_consensus
        if export is not None and export.done:
            self._of_consensus = None
            self._tell(export, {"error": export.error} if export.error else {**export.result, "path": export.path})
        if self._running is not None and self._running.done:
            self._drop_unread(self._running)
            self._running = None
        if self._running is None and self._next is not None:
            self._running, self._next = self._next, None
            if self._running.readers:
                self._begin(self._running)
            else:
                self._running = None
        while self._untold and self._loop.tell_snapshot(*self._untold[0]):
            self._untold.pop(0)
        if self._untold:
            self.active = True

    def close(self):
        """The process ends: so do the helpers, and their files go."""
        for export in (self._running, self._of_consensus):
            if export is not None:
                export.given_up = True
                _kill(export)
                export.thread.join(STOP_SECONDS)

    # ---- making a file ----

    def _begin(self, export):
        """Fix the state that the file will have; the rest is the thread's."""
        self._loop.store_applied()
        export.index = self._loop.applied_index
        self._count += 1
        sealed = self._store.seal()
        base = os.path.join(self._directory, f"{PREFIX}-{self._count}-{export.index:x}")
        export.thread = threading.Thread(target=self._make, args=(export, sealed, base), name="export", daemon=True)
        export.thread.start()

    def _make(self, export, sealed, base):
        started = time.monotonic()
        try:
            export.result = self._run(export, sealed, base)
            if export.of_consensus and export.result["index"] != export.index:
                raise StoreError("the store went on before it could be fixed")
            export.path = base + ".db"
            if not export.of_consensus:
                export.file = os.open(export.path, os.O_RDONLY | os.O_CLOEXEC)
                os.unlink(export.path)
            meters.observe("backend_snapshot", int((time.monotonic() - started) * 1e9))
            log.info(
                "made a snapshot file",
                applied_index=export.result["index"],
                bytes=export.result["bytes"],
                took_seconds=round(time.monotonic() - started, 3),
            )
        except Exception as err:  # whoever asked needs an answer, whatever it was
            self._store.sealed.discard(sealed)
            export.error = f"cannot make a snapshot file: {_reason(err)}"
            if not export.given_up:
                log.warn("failed to make a snapshot file", error=export.error)
            with contextlib.suppress(OSError):
                os.unlink(base + ".db")
        shutil.rmtree(base, ignore_errors=True)
        export.done = True
        self.active = True
        self._wake()

    def _run(self, export, sealed, base):
        checkpoint.link_files(self._store.path, base)
        self._store.await_sealed(sealed, lambda: export.given_up)
        checkpoint.link_manifest(self._store.path, base)
        asked = {
            "store": base,
            "path": base + ".db",
            "parent": os.getpid(),
            "conf_state": export.conf_state,
            "sha256": not export.of_consensus,
            **self._options,
        }
        command = [sys.executable, "-P", "-s", "-m", "etcdfast.apply.export", json.dumps(asked)]
        helper = export.helper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        with helper:
            if export.given_up:
                helper.kill()
            line = helper.stdout.readline()
        if not line:
            raise StoreError(f"the helper process ended with status {helper.returncode}")
        result = json.loads(line)
        if "error" in result:
            raise StoreError(result["error"])
        return result

    def _tell(self, export, answer):
        self._untold.append((export.token, json.dumps(answer).encode()))

    # ---- Maintenance.Snapshot ----

    def _join(self):
        """The next export of clients."""
        if self._next is None:
            self._next = Export()
        self._next.readers += 1
        self.active = True
        return self._next

    def _leave(self, export):
        export.readers -= 1
        if export.readers:
            return
        export.given_up = True
        if export.done:
            self._drop_unread(export)
        else:
            _kill(export)  # `step` sees its end

    @staticmethod
    def _drop_unread(export):
        if not export.readers and export.file is not None:
            os.close(export.file)
            export.file = None

    def _serve(self, services, call, payload):
        """Handler of apply/services: the file in messages of 32 KiB, then its SHA-256."""
        export = self._join()
        try:
            while not export.done:
                yield Pause(LOOK_NS)
                call.check()
            if export.error is not None:
                return errors.ID["UNKNOWN"], b"", export.error
            call.unsent_max = BULK_UNSENT_MAX
            total = export.result["bytes"]
            version = export.result["version"].encode()
            tail = b"\x22" + wire.varint(len(version)) + version if version else b""
            at = 0
            pace = _Pace(self._loop)
            while at < total:
                rest_ns = pace.rest_ns(at)
                if rest_ns:
                    yield Pause(rest_ns)
                while not call.may_send:
                    yield Wait(credit=True)
                try:
                    chunk = _read(export.file, min(CHUNK_BYTES, total - at), at)
                except OSError as err:
                    return errors.ID["UNKNOWN"], b"", f"cannot read the snapshot file: {err.strerror}"
                if chunk is None:
                    yield Pause(LOOK_NS)
                    continue
                at += len(chunk)
                call.send(_message(total - at, chunk) + tail)
            while not call.may_send:
                yield Wait(credit=True)
            call.send(_message(0, bytes.fromhex(export.result["sha256"])) + tail)
            return 0, b"", ""
        finally:
            self._leave(export)


class _Pace:
    """How long a stream should rest, by what else the member did while its last bytes went."""

    def __init__(self, loop):
        self._loop = loop
        self._at = 0
        self._since = time.monotonic_ns()
        self._applied = loop.applied_index

    def rest_ns(self, at):
        """Nanoseconds to wait before the byte at `at` goes; mostly 0."""
        if at - self._at < PACE_BYTES:
            return 0
        now, applied = time.monotonic_ns(), self._loop.applied_index
        took = now - self._since
        busy = (applied - self._applied) * 1_000_000_000 > BUSY_ENTRIES_PER_SECOND * took
        rest = (at - self._at) * 1_000_000_000 // BUSY_BYTES_PER_SECOND - took if busy else 0
        self._at, self._since, self._applied = at, now + max(rest, 0), applied
        return max(rest, 0)


def _read(fd, size, at):
    """Some bytes of the file; None when they have to come from the disk first, which is asked to fetch them: the loop
    must not wait for it. Errors: OSError."""
    into = bytearray(size)
    try:
        size = os.preadv(fd, [into], at, os.RWF_NOWAIT)
    except BlockingIOError:
        os.posix_fadvise(fd, at, AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
        return None
    except OSError as err:
        if err.errno != errno.EOPNOTSUPP:
            raise
        size = os.preadv(fd, [into], at)  # a file system that cannot tell
    if not size:
        raise OSError(errno.EIO, "it is shorter than it was made")
    return bytes(into[:size])


def _message(remaining, blob):
    """SnapshotResponse: 2 remaining_bytes, 3 blob."""
    head = b"\x10" + wire.varint(remaining) if remaining else b""
    return head + b"\x1a" + wire.varint(len(blob)) + blob


def _kill(export):
    helper = export.helper
    if helper is not None and helper.poll() is None:
        helper.kill()


def _reason(err):
    if isinstance(err, OSError):
        return f"{err.filename or 'file'}: {err.strerror}"
    return " ".join(str(err).split()) or type(err).__name__
