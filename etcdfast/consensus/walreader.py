"""Entries that left memory, read back from the write-ahead log for followers that are behind.

    reader.entries(first, last) -> Piece(table, row, first, last) | LOADING | GONE

A segment is mapped and walked once, by a thread of its own (the interpreter lock is not held while it walks), and
its table of rows is kept while it is read from. The thread that owns the reader never waits for the disk: LOADING
says that `wake` will be called. What a segment holds may be outdated by a later one; index and term together say
what an entry is, so a row counts only if its term is that of the log.
"""

import mmap
import os
import queue
import threading
from collections import namedtuple

from etcdfast._ext import walscan
from etcdfast._ext.walscan import SegmentScan
from etcdfast.formats import wal

TABLES_MAX = 2  # each: mapped pages of 64 MB, and 8 MB of rows for 200,000 entries
# The open segment grows while it is read from: this much is walked at once, more is the thread's (1 MiB: 0.5 ms).
EXTEND_BYTES_MAX = 1 << 20
IDLE_TICKS = 50
THREAD_NICE = 10  # the loop has work whose clients wait

LOADING, GONE = "loading", "gone"

# Rows row .. row + last - first of `table` (_ext.walscan.EntryTable) are the entries first .. last. Pointers into the
# table's memory are good until the next call of the reader.
Piece = namedtuple("Piece", "table row first last")


class _Segment:
    """One segment file. `end`: bytes walked or to be walked, which a record ends at; `failure`: exception or None."""

    def __init__(self, path):
        self.path = path
        self.scan = None
        self.end = 0
        self.mapped_bytes = 0
        self.busy = False  # with the thread: nobody else touches `scan`
        self.failure = None

    def walk(self):
        """Bring the rows up to `end`. Errors: wal.WalCorrupt, OSError."""
        if self.scan is None:
            with open(self.path, "rb") as file:
                self.mapped_bytes = os.fstat(file.fileno()).st_size
                self.scan = SegmentScan(mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ))
        code = self.scan.extend(self.end)
        if code not in (walscan.OK, walscan.END):
            raise wal.WalCorrupt(self.path, self.scan.offset, walscan.describe(code))


class WalReader:
    """`disk`: the open Wal of `directory`. `term_at(index)`: term of an entry of the log, 0 when unknown. `wake()` is
    called from the reader's thread when something that was LOADING can be asked for again (write to an eventfd).

    One thread owns the reader. Errors of `entries`: wal.WalCorrupt, OSError; both end the member.
    """

    def __init__(self, directory, disk, term_at, wake):
        self._directory = directory
        self._disk = disk
        self._term_at = term_at
        self._wake = wake
        self._segments = {}  # sequence -> _Segment, the least lately used first
        self._idle_ticks = 0
        self._work = queue.SimpleQueue()
        self._thread = None

    def entries(self, first, last):
        """As many entries from `first` to `last` as lie together: a Piece of at least one; or LOADING, or GONE.

        GONE: the files that held `first` are removed; a follower that needs it gets a snapshot.
        Precondition: first <= last <= the last durable index.
        """
        self._idle_ticks = 0
        files = self._disk.segments()
        term = self._term_at(first)
        # The last file that begins at or before the entry has it, unless a later one overwrote it.
        at = max((i for i, (_, index, _) in enumerate(files) if index <= first), default=None)
        if at is None or not term:
            return GONE
        durable_sequence, durable_end = self._disk.durable_end
        for sequence, index, _ in files[at:]:
            if sequence > durable_sequence:
                break
            segment = self._open(sequence, index, durable_end if sequence == durable_sequence else None)
            if segment is None:
                return LOADING
            if isinstance(segment.failure, FileNotFoundError):
                return GONE
            if segment.failure:
                raise segment.failure
            piece = self._find(segment.scan, first, last, term)
            if piece:
                return piece
        return GONE

    @property
    def first_index(self):
        """Oldest index that may be read back, as far as the files go."""
        return max(self._disk.oldest_index, 1)

    def tick(self):
        """To be called at every tick of the clock: what nobody asked for in a while is unmapped."""
        self._idle_ticks += 1
        if self._idle_ticks == IDLE_TICKS:
            self._drop(0)

    def close(self):
        """End the thread; it walks the segment that it is at to its end."""
        if self._thread:
            self._work.put(None)
            self._thread.join()
            self._thread = None
        self._segments.clear()

    # ---- segments --------------------------------------------------------------------------------

    def _open(self, sequence, index, end):
        """The segment, walked up to `end` (None: it is closed, to its end); None while the thread is at it."""
        segment = self._segments.pop(sequence, None)
        if segment is None:
            if not self._drop(TABLES_MAX - 1):
                return None
            segment = _Segment(os.path.join(self._directory, f"{sequence:016x}-{index:016x}.wal"))
        self._segments[sequence] = segment
        if segment.busy:
            return None
        if segment.failure:
            # A file that is gone is asked for anew at the next call; damage ends the member.
            del self._segments[sequence]
            return segment
        if end is None:
            try:
                end = os.stat(segment.path).st_size
            except FileNotFoundError:
                end = segment.end  # removed meanwhile: what is mapped stays good
        if segment.scan is not None and end == segment.end:
            return segment
        if segment.scan is not None and end > segment.mapped_bytes:
            segment.scan = None  # it grew beyond its mapping, by a batch that overshot: once in its life
        ahead = end - segment.scan.offset if segment.scan is not None else end
        segment.end = end
        if segment.scan is not None and ahead <= EXTEND_BYTES_MAX:
            segment.walk()
            return segment
        segment.busy = True
        self._start_thread()
        self._work.put(segment)
        return None

    def _find(self, scan, first, last, term):
        """The rows of `first` and of what follows, as far as they are those of the log; None when `first` is not."""
        table, base = scan.table, scan.first_index
        row = first - base
        if not 0 <= row < len(table) or scan.term(row) != term:
            return None
        # Terms grow along the log and along the rows, and a row is outdated only together with all behind it.
        low, high = first, min(last, base + len(table) - 1)
        while low < high:
            middle = (low + high + 1) // 2
            if scan.term(middle - base) == self._term_at(middle):
                low = middle
            else:
                high = middle - 1
        return Piece(table, row, first, low)

    def _drop(self, keep):
        """Let go of the least lately used but for `keep`; False when the thread holds too many of them."""
        for sequence in [s for s, segment in self._segments.items() if not segment.busy]:
            if len(self._segments) <= keep:
                break
            del self._segments[sequence]
        return len(self._segments) <= keep

    # ---- the thread ------------------------------------------------------------------------------

    def _start_thread(self):
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="wal-reader", daemon=True)
            self._thread.start()

    def _run(self):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), THREAD_NICE)
        while (segment := self._work.get()) is not None:
            try:
                segment.walk()
            except (wal.WalProblem, OSError, ValueError) as err:  # ValueError: mmap of an empty file
                segment.failure = err
            segment.busy = False
            self._wake()
