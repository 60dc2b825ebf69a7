"""What apply does by time, outside of all state: sample sizes, flush RocksDB, tell what is on disk."""

from etcdfast._ext import ring
from etcdfast.ipc.yielding import Yielding

INTERVAL_NS = 50_000_000
# A flush by number of entries keeps replay after a crash short on a quiet member, but not more often than this.
FLUSH_AGE_NS = 30 * 10**9

_LEADER, _MEMBER, _COMMIT = (ring.CONSENSUS_WORDS[word] for word in ("leader", "member_id", "commit_index"))
_ALIVE = ring.ALIVE_WORD
_FLUSHED = ring.APPLY_WORDS["flushed_index"]
_DB_BYTES = ring.APPLY_WORDS["db_bytes"]
_KEYS = ring.APPLY_WORDS["keys"]
_INDEX_BYTES = ring.APPLY_WORDS["index_bytes"]


class Housekeeper:
    """Callable of the loop; `page` is the apply status page, `consensus_page` that of consensus, `wake()` gets the loop
    out of its sleep.

    Errors of a call: StoreError, when a flush has failed.
    """

    def __init__(self, store, page, consensus_page, flush_bytes, flush_entries, wake):
        self._store = store
        self._page = page
        self._consensus = consensus_page
        self._yielding = Yielding()
        self._flush_bytes = flush_bytes
        self._flush_entries = flush_entries
        self._wake = wake
        self._loop = None
        self._error = None
        self._asked = False
        self._flushed_ns = 0
        self._flushed_index = 0
        self._mvcc = None

    def attach(self, loop):
        self._loop = loop
        self._mvcc = loop.mvcc
        self._flushed_index = loop.stored_index
        self._page[_FLUSHED] = loop.stored_index
        self.sample()

    def schedule_flush(self):
        self._asked = True

    def sample(self):
        stats = self._mvcc.index_stats
        self._page[_DB_BYTES] = self._store.stored_bytes()
        self._page[_KEYS] = stats[1]
        self._page[_INDEX_BYTES] = stats[4]

    def _behind(self):
        """Committed entries not applied yet, where a leader elsewhere has the clients' attention."""
        consensus = self._consensus
        if consensus[_LEADER] in (0, consensus[_MEMBER]):
            return 0
        return max(consensus[_COMMIT] - self._loop.applied_index, 0)

    def __call__(self, now_ns):
        self._page[_ALIVE] = now_ns
        if self._error is not None:
            raise self._error
        self.sample()
        self._yielding.note(self._behind())
        if self._store.flushing is not None or self._store.sealed:
            return
        entries = self._loop.applied_index - self._flushed_index
        if entries == 0 and not self._asked:
            return
        aged = now_ns - self._flushed_ns >= FLUSH_AGE_NS
        if (
            self._asked
            or self._store.memtable_bytes() >= self._flush_bytes
            or (entries >= self._flush_entries and aged)
        ):
            self._asked = False
            self._flushed_ns = now_ns
            self._loop.store_applied()
            index = self._loop.stored_index
            self._store.start_flush(lambda error: self._flushed(index, error))

    def _flushed(self, index, error):
        # In the flush thread.
        if error is None:
            self._flushed_index = index
            self._page[_FLUSHED] = index
        else:
            self._error = error
            self._wake()
