"""A database that etcd wrote becomes our store, at start: of a member taken over from etcd, of one restored from a
saved snapshot, of one that fell so far behind that it was sent a whole state.

    member/snap/db                  etcd's backend: taken when there is no store
    member/snap/<index>.snap.db     the state of a raft snapshot: taken when the store is older than that
    member/store.import             the new store while it is made: worthless until it is whole
    member/store.old                the store whose place it takes, on its way out
    member/snap/db.imported         etcd's backend afterwards, until the member has been started once more

Each step can be the last before a crash; `prepare` goes on from whatever it finds.

Source: reference/formats.md sections 6 and 8.5.
"""

import json
import os
import shutil
import sys
import time

from rocksdict import IngestExternalFileOptions, Rdict, SstFileWriter

from etcdfast import log
from etcdfast._ext.mvcc import StoreCorrupt, stored_applied, stored_meta_key
from etcdfast.apply import buckets
from etcdfast.apply.store import Store, StoreError, options
from etcdfast.formats import bbolt

INCOMING, OUTGOING = ".import", ".old"  # behind the name of the store
BACKEND, IMPORTED = "db", "db.imported"
BATCH_ITEMS = 4096
FILE_BYTES = 64 << 20
LOG_SECONDS = 5.0

_OWN_META = (buckets.META + b"consistent_index", buckets.META + b"term")  # ours are in the applied record


class ImportStopped(Exception):
    """The member was told to stop meanwhile; the next start begins again."""


def prepare(store, snap_dir, snapshot_index, stopped=lambda: False):
    """Have the store in place that the log goes on from, which may mean to import one; returns whether it did.

    store: its folder. snapshot_index: of the raft snapshot that the log begins with, 0 for none. stopped(): give up.
    Errors: StoreCorrupt, StoreError, ImportStopped.
    """
    try:
        _settle(store)
        source = _choose(store, snap_dir, snapshot_index)
        if source is not None:
            _import(source, store + INCOMING, stopped)
            _install(store)
        _clear(store, snap_dir, snapshot_index)
    except bbolt.BoltError as err:
        raise StoreCorrupt(f"cannot import {err}") from None
    except OSError as err:
        raise StoreError(f"cannot import into {store}: {err.strerror or err}") from None
    return source is not None


def forget(snap_dir):
    """The store has been loaded at a later start than the import's: etcd's backend is not needed any more.

    Errors: OSError.
    """
    path = os.path.join(snap_dir, IMPORTED)
    if os.path.exists(path):
        log.info("deleting the database that an earlier start has imported", path=path)
        os.unlink(path)


def main(arguments):
    """`python -m etcdfast.apply.importing '{"store": ..., "snap_dir": ..., "snapshot_index": ..., "parent": <pid>}'`:
    `prepare` without a member, for etcdfastutl. Prints {"imported": whether it did} or {"error"}; shows a bar only.
    """
    from etcdfast._ext import proc

    asked = json.loads(arguments[0])
    if not proc.die_with_parent(asked["parent"]):
        return 1
    log.configure(level="error")
    try:
        result = {"imported": prepare(asked["store"], asked["snap_dir"], asked["snapshot_index"])}
    except (StoreCorrupt, StoreError) as err:
        result = {"error": str(err)}
    print(json.dumps(result), flush=True)
    return 0


# ---- which one ----


def _choose(store, snap_dir, snapshot_index):
    """Path of the database to import, None when the store is right."""
    sent = os.path.join(snap_dir, f"{snapshot_index:016x}.snap.db")
    backend = os.path.join(snap_dir, BACKEND)
    have_store, have_backend = _is_store(store), os.path.exists(backend)
    if snapshot_index and os.path.exists(sent):
        if have_store:
            have = _applied_of(store)
        else:
            # etcd may have died after it received a state and before it took it over.
            have = _index_of(backend) if have_backend else 0
        if have < snapshot_index:
            return sent
    return backend if have_backend and not have_store else None


def _is_store(path):
    return os.path.exists(os.path.join(path, "CURRENT"))


def _applied_of(path):
    store = Store(path)
    try:
        return store.applied()[1]
    finally:
        store.db.close()


def _index_of(path):
    with bbolt.Reader(path) as reader:
        return _number(reader.get(b"meta", b"consistent_index"))


# ---- import ----


def _import(source, folder, stopped):
    """Make `folder` a whole store, synced, with what the database holds."""
    started = time.monotonic()
    try:
        with bbolt.Reader(source) as reader:
            progress = _Progress(source, reader.size)
            revisions, index, term = _fill(reader, folder, progress, stopped)
    except BaseException as err:
        shutil.rmtree(folder, ignore_errors=True)
        if type(err) is Exception:  # rocksdict's
            raise StoreError(f"cannot import {source} into {folder}: {' '.join(str(err).split())}") from err
        raise
    progress.end()
    log.info(
        "imported the database of etcd",
        path=source,
        revisions=revisions,
        applied_index=index,
        applied_term=term,
        took_seconds=round(time.monotonic() - started, 3),
    )


def _fill(reader, folder, progress, stopped):
    meta = dict(reader.items(b"meta"))
    index, term = _number(meta.get(b"consistent_index")), _number(meta.get(b"term"))
    db = Rdict(folder, options())
    files = _SortedFiles(folder)
    revisions = 0
    last = b""
    for batch in reader.batches(b"key", BATCH_ITEMS, buckets.KEY):
        if stopped():
            raise ImportStopped
        files.put_many(batch)
        revisions += len(batch)
        last = batch[-1][0]
        if len(last) not in (18, 19) or last[9] != 0x5F:
            raise StoreCorrupt(f"{reader.path} holds the key {last[1:].hex()}, which is no revision")
        progress.add(batch)
    marks = (meta.get(b"scheduledCompactRev"), meta.get(b"finishedCompactRev"))
    current = max(1, _number(last[1:9]), *(_number(mark and mark[:8]) for mark in marks))
    # Behind the last revision, in the order of the store's keys: of which there may be a million leases.
    for name, prefix in buckets.NAMES.items():
        for batch in reader.batches(name, BATCH_ITEMS, prefix) if prefix != buckets.KEY else ():
            progress.add(batch)
            files.put_many((stored_meta_key(current, key), value) for key, value in batch if key not in _OWN_META)
    files.put_many([stored_applied(current, index, term)])
    moved = IngestExternalFileOptions()
    moved.set_move_files(True)
    db.ingest_external_file(files.finish(), moved)
    db.close()
    _sync_folder(folder)
    for name in set(reader.buckets()) - buckets.NAMES.keys():
        log.warn("passed over a bucket that etcd has no use for", bucket=name.decode(errors="replace"))
    return revisions, index, term


def _number(raw):
    return int.from_bytes(raw, "big") if raw else 0


class _SortedFiles:
    """RocksDB's table files from items in ascending order, to be taken into a store as they are."""

    def __init__(self, folder):
        self._folder = folder
        self._paths = []
        self._writer = None

    def put_many(self, items):
        if self._writer is None or self._writer.file_size() > FILE_BYTES:
            self._close()
            self._paths.append(os.path.join(self._folder, f"import-{len(self._paths)}.sst"))
            self._writer = SstFileWriter(options())
            self._writer.open(self._paths[-1])
        put = self._writer.__setitem__
        for key, value in items:
            put(key, value)

    def finish(self):
        self._close()
        return self._paths

    def _close(self):
        if self._writer is not None:
            self._writer.finish()
            self._writer = None


class _Progress:
    """Tells how far it is: every few seconds in the log, and as a bar to whoever watches a terminal."""

    WIDTH = 40

    def __init__(self, source, total_bytes):
        self._source = source
        self._total = max(total_bytes, 1)
        self._done = 0
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._logged = time.monotonic()
        log.info("importing the database of etcd", path=source, bytes=total_bytes)

    def add(self, items):
        self._done += sum(len(key) + len(value) for key, value in items)
        part = min(self._done / self._total, 1.0)
        if self._terminal:
            filled = int(part * self.WIDTH)
            sys.stderr.write(f"\rimporting [{'#' * filled:<{self.WIDTH}}] {part:4.0%}")
            sys.stderr.flush()
        elif time.monotonic() - self._logged > LOG_SECONDS:
            self._logged = time.monotonic()
            log.info("importing the database of etcd", path=self._source, percent=int(part * 100))

    def end(self):
        if self._terminal:
            sys.stderr.write(f"\rimporting [{'#' * self.WIDTH}] 100%\n")
            sys.stderr.flush()


# ---- into place ----


def _install(store):
    if os.path.exists(store):
        os.rename(store, store + OUTGOING)
    # A crash here leaves both: `_settle` then goes on, because nothing moves the store before the other is whole.
    os.rename(store + INCOMING, store)
    _sync_folder(os.path.dirname(store))
    shutil.rmtree(store + OUTGOING, ignore_errors=True)


def _settle(store):
    """Go on from where a crash has left the last import."""
    incoming, outgoing = store + INCOMING, store + OUTGOING
    if os.path.exists(outgoing):
        if not os.path.exists(store):
            os.rename(incoming if os.path.exists(incoming) else outgoing, store)
            _sync_folder(os.path.dirname(store))
        shutil.rmtree(outgoing, ignore_errors=True)
    if os.path.exists(incoming):
        log.info("deleting an import that did not come to its end", path=incoming)
        shutil.rmtree(incoming)
    if os.path.exists(store) and not _is_store(store):
        # Its making did not get far, or it has lost a file: RocksDB would clear it and begin anew.
        if any(name.endswith(".sst") for name in os.listdir(store)):
            raise StoreCorrupt(f"the store {store} has data, but its file CURRENT is missing")
        shutil.rmtree(store)


def _clear(store, snap_dir, snapshot_index):
    """The store is in place: what it was made of goes, or stays for one more life when nobody else has it."""
    if not _is_store(store):
        return
    backend = os.path.join(snap_dir, BACKEND)
    if os.path.exists(backend):
        kept = os.path.join(snap_dir, IMPORTED)
        os.rename(backend, kept)
        log.info("kept etcd's database until the member has been started once more", path=kept)
    for name in os.listdir(snap_dir):
        if name.endswith(".snap.db") and name <= f"{snapshot_index:016x}.snap.db":
            os.unlink(os.path.join(snap_dir, name))


def _sync_folder(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)
