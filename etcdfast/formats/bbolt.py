"""bbolt database files: etcd's backend, `member/snap/db`, and every snapshot file.

Written here in one pass from sorted items, read here with every page checked; the pages themselves are
`_ext/boltwrite.pyx` and `_ext/boltread.pyx`. Source: formats.md sections 7 and 8.1-8.2.

    with bbolt.Writer(path) as writer:
        writer.bucket(b"meta", [(b"consistent_index", bytes(8))])
        writer.begin_bucket(b"key")
        for items in batches:
            writer.put_many(items)
        writer.end_bucket()
        size = writer.finish()

    with bbolt.Reader(path) as reader:
        for key, value in reader.items(b"key"):
            ...
"""

import fcntl
import hashlib
import os
from collections import namedtuple

from etcdfast._ext import crc32c
from etcdfast._ext.boltread import BoltError, BoltFile, PageSet, Tree
from etcdfast._ext.boltwrite import TreeWriter

__all__ = ["BoltError", "Reader", "Status", "Writer", "digest_of", "has_digest"]

BATCH_ITEMS = 4096
DIGEST_BYTES = 32  # SHA-256 behind the database in a saved snapshot
# A database is whole pages; the tools tell a file with a digest by the rest of its size.
_PAGE_GRAIN = 512
_COPY_BYTES = 1 << 20

# What `snapshot status` shows: crc u32; main revision of the last key; items of all buckets; bytes of the database.
Status = namedtuple("Status", "hash revision total_keys total_bytes")


class Writer:
    """A new database file, written from its beginning to its end.

    Buckets come in any order, one at a time, their keys in ascending order. `finish()` makes the file whole: until
    then no tool takes it for a database. Leaving the `with` block without it leaves the broken file behind.
    Errors: ValueError for what bbolt forbids, OSError (the file is useless then), FileExistsError.
    """

    def __init__(self, path, page_size=4096, fd=None):
        """Opens `path`, which must not exist; or takes `fd`, an empty file that the caller owns (it stays open)."""
        self.path = path
        self._own_fd = fd is None
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600) if fd is None else fd
        self._tree = TreeWriter(self.fd, page_size)
        self._buckets = {}
        self._open_bucket = None
        # The hot calls, without a step in between: see TreeWriter.
        self.put = self._tree.put
        self.put_many = self._tree.put_many
        self.put_revisions = self._tree.put_revisions

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    @property
    def items(self):
        """Items put so far, in all buckets."""
        return self._tree.items

    def begin_bucket(self, name):
        """The items put from here on are this bucket's. A name comes once."""
        if self._open_bucket is not None:
            raise ValueError(f"bucket {self._open_bucket!r} is still open")
        if name in self._buckets or not name:
            raise ValueError(f"bucket {name!r} has been written already" if name else "a bucket needs a name")
        self._open_bucket = name

    def end_bucket(self, sequence=0):
        if self._open_bucket is None:
            raise ValueError("no bucket is open")
        self._buckets[self._open_bucket] = self._tree.end(sequence=sequence)
        self._open_bucket = None

    def bucket(self, name, items=()):
        """A whole bucket of (key, value) pairs in ascending order. Returns how many they were."""
        self.begin_bucket(name)
        count = self.put_many(items)
        self.end_bucket()
        return count

    def finish(self, sync=True):
        """Write the tree of buckets and the metas; durable when this returns, if `sync`. Returns the file's bytes."""
        if self._open_bucket is not None:
            raise ValueError(f"bucket {self._open_bucket!r} is still open")
        for name, value in sorted(self._buckets.items()):
            self._tree.put(name, value, bucket=True)
        root = int.from_bytes(self._tree.end(inline=False)[:8], "little")
        size = self._tree.finish(root)
        if sync:
            os.fsync(self.fd)
        return size

    def close(self):
        if self._own_fd and self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


class Reader:
    """A database file, open for reading.

    size: bytes of the database (what lies behind it, as a digest, is not counted).
    Errors: BoltError for what is in the file (path, page, reason), OSError for reading it. Each read checks what it
    meets; `check()` looks at everything.
    """

    def __init__(self, path, lock=True):
        """`lock` takes bbolt's own lock, shared: a database that a running etcd has open is refused."""
        self.path = os.fspath(path)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if lock:
                self._lock()
            self._file = BoltFile(self.fd, self.path)
        except BaseException:
            self.close()
            raise
        self.page_size = self._file.page_bytes
        self.size = self._file.pages * self._file.page_bytes
        self._buckets = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def buckets(self):
        """Names of the top-level buckets, in order."""
        return list(self._top())

    def batches(self, bucket, items_max=BATCH_ITEMS, prefix=b""):
        """Lists of at most `items_max` (prefix + key, value), in order; nothing when there is no such bucket."""
        tree = self._tree(bucket)
        while tree is not None and (items := tree.batch(items_max, prefix)):
            yield items

    def items(self, bucket):
        """(key, value) pairs in order; none when there is no such bucket."""
        for items in self.batches(bucket):
            yield from items

    def get(self, bucket, key):
        """The value of one key of a small bucket, None if it is not there: reads up to it."""
        return next((value for found, value in self.items(bucket) if found == key), None)

    def children(self, *names):
        """Names of the buckets inside the bucket at this path of names (etcd itself has none)."""
        return list(self._children(self._value(names)))

    def nested_items(self, *names):
        """(key, value) pairs of the bucket at this path of names."""
        tree = Tree(self._file, self._value(names))
        while items := tree.batch(BATCH_ITEMS):
            yield from items

    def status(self):
        """`Status` as the snapshot tools of etcd compute it; every page read is checked. Errors: BoltError."""
        crc = total = 0
        last = None
        seen = PageSet(self._file)
        for name, value in self._children(None, seen).items():
            tree = Tree(self._file, value, seen)
            crc = tree.crc(crc32c.update(crc, name))
            total += tree.items
            if name == b"key":
                last = tree.last_key()
        revision = int.from_bytes(last[:8], "big", signed=True) if last and len(last) >= 17 else 0
        return Status(crc, revision, total, self.size)

    def hash(self):
        """The CRC-32C over all buckets as `snapshot status` shows it."""
        return self.status().hash

    def check(self):
        """Look at every page (formats.md 7.8). Errors: BoltError for the first thing that is wrong."""
        seen = PageSet(self._file)
        pending = list(self._children(None, seen).values())
        while pending:
            pending.extend(Tree(self._file, pending.pop(), seen).walk())
        self._file.check_freelist(seen)

    def _lock(self):
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BoltError(self.path, None, "a running etcd has this database open: stop it first") from None

    def _top(self):
        if self._buckets is None:
            self._buckets = self._children(None)
        return self._buckets

    def _children(self, bucket, seen=None):
        tree = Tree(self._file, bucket, seen)
        found = {}
        while items := tree.batch(BATCH_ITEMS, buckets=True):
            found.update(items)
        return found

    def _tree(self, name):
        value = self._top().get(name)
        return None if value is None else Tree(self._file, value)

    def _value(self, names):
        value = None
        for name in names:
            value = self._children(value)[name]
        return value


# ---- the digest behind a saved snapshot --------------------------------------------------------------


def has_digest(size):
    """Whether a file of `size` bytes ends with a digest."""
    return size % _PAGE_GRAIN == DIGEST_BYTES


def digest_of(fd, size):
    """SHA-256 over the first `size` bytes of a file. Errors: OSError; EOFError when it is shorter."""
    digest = hashlib.sha256()
    at = 0
    while at < size:
        data = os.pread(fd, min(_COPY_BYTES, size - at), at)
        if not data:
            raise EOFError(f"the file ends at {at} of {size} bytes")
        digest.update(data)
        at += len(data)
    return digest.digest()
