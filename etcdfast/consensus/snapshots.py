"""When a raft snapshot is taken, and the order of its steps.

A snapshot says: the store holds everything up to this index on disk, the log before it may go. The steps, each
only when the one before is durable:

    .snap file written and synced (helper thread) -> SNAPSHOT record in the WAL, synced -> segments released
"""

import os
import threading

from etcdfast import log
from etcdfast._ext import meters
from etcdfast.formats import snapfile

# Long entries fill segments before snapshot_count of them have come.
LOG_BYTES_BETWEEN = 4 * 64_000_000

_IDLE, _WRITING, _RECORDING = range(3)


def _took(marshal_ns, sync_ns, total_ns):
    meters.observe("snap_marshal", marshal_ns)
    meters.observe("snap_fsync", sync_ns)
    meters.observe("snap_save", total_ns)


class Snapshots:
    """position: (index, term) of the last snapshot. snapshot_count: entries between two. files_max: .snap files that
    are kept, 0 for all. catchup_entries: how many entries before a snapshot followers can still get from the log."""

    def __init__(self, directory, snapshot_count, position, files_max=5, catchup_entries=5000):
        self.index, self.term = position
        self._directory = directory
        self._count = snapshot_count
        self._files_max = files_max
        self._catchup = catchup_entries
        self._bytes_then = 0
        self._state = _IDLE
        self._next = None
        self._thread = None
        self._error = None
        self._batch = 0

    def advance(self, loop, flushed_index, log_bytes, describe):
        """Do what can be done now; called on ticks. True when segments up to `index` may be released.

        flushed_index: what apply has on disk. log_bytes: written to the WAL since start. describe(index) gives
        (term, ConfState, data) of a snapshot there. Errors: OSError when the file could not be written.
        """
        if self._state == _IDLE:
            grown = flushed_index - self.index
            if grown > 0 and (grown >= self._count or log_bytes - self._bytes_then >= LOG_BYTES_BETWEEN):
                self._begin(flushed_index, log_bytes, *describe(flushed_index))
        elif self._state == _WRITING:
            if not self._thread.is_alive():
                self._record(loop)
        elif loop.batches[1] >= self._batch:
            self.index, self.term = self._next[:2]
            self._state = _IDLE
            return True
        return False

    def keep_from(self, wanted=()):
        """The entry from which the log's files shall stay, 0 for no matter: what followers need next (`wanted`: their
        indexes), and some entries before the snapshot for those that are about to lag. For Wal.keep_from, which has a
        bound of its own.
        """
        return max(min(self.index + 1 - self._catchup, *wanted), 1) if wanted else 0

    def _begin(self, index, log_bytes, term, conf_state, data):
        from etcdfast.formats.raftpb import encode_conf_state

        self._next = (index, term, encode_conf_state(conf_state))
        self._bytes_then = log_bytes
        self._thread = threading.Thread(
            target=self._write, args=(data, conf_state, index, term), name="snapshot", daemon=True
        )
        self._state = _WRITING
        self._thread.start()

    def _write(self, data, conf_state, index, term):
        try:
            snapfile.write(self._directory, data, conf_state, index, term, _took)
            snapfile.purge(self._directory, self._files_max, index)
        except OSError as err:
            self._error = err

    def _record(self, loop):
        if self._error:
            raise self._error
        if loop.append_snapshot(*self._next):
            # It goes with the batch that is filling: the one after those given to the disk.
            self._batch = loop.batches[0] + 1
            self._state = _RECORDING
            log.info("saved snapshot", snapshot_index=self._next[0], directory=os.path.basename(self._directory))
