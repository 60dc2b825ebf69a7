"""The Python face of the apply process' state: what the cold path (apply/cold.py) may know and do.

Attributes (all plain numbers, read at the time of the call):
    current_revision, compacted_revision (-1 never), applied_index, applied_term,
    cluster_id, member_id, raft_term, leader, commit_index (from the consensus status page),
    db_bytes (on disk and in memtables), db_in_use_bytes (keys and values of all records held, of every bucket)
    index_stats: (keys, live keys, revisions, used bytes, held bytes)
    store: get(key), scan(start, end) on prefixed keys (apply/buckets.py); a scan's view does not move

Methods:
    set_alarms(bits)            bit 0 NOSPACE, bit 1 CORRUPT: what the hot path then refuses
    pin(revision) -> handle, unpin(handle)   hold back compaction of what `revision` can see
    kept_at(key, main, sub, revision)        whether HashKV at `revision` takes that record
    kept_any(revision), live_count_at(revision)
    schedule_flush(), schedule_compaction()  RocksDB work in the background
"""

from etcdfast._ext.ring import APPLY_WORDS, CONSENSUS_WORDS


class Engine:
    def __init__(self, loop, store, housekeeper, own_page, consensus_page):
        self._loop = loop
        self._mvcc = loop.mvcc
        self.store = store
        self._housekeeper = housekeeper
        self._own = own_page
        self._consensus = consensus_page

    @property
    def current_revision(self):
        return self._mvcc.current

    @property
    def compacted_revision(self):
        return self._mvcc.compacted

    @property
    def applied_index(self):
        return self._loop.applied_index

    @property
    def applied_term(self):
        return self._loop.applied_term

    @property
    def cluster_id(self):
        return self._consensus[CONSENSUS_WORDS["cluster_id"]]

    @property
    def member_id(self):
        return self._consensus[CONSENSUS_WORDS["member_id"]]

    @property
    def raft_term(self):
        return self._consensus[CONSENSUS_WORDS["term"]]

    @property
    def leader(self):
        return self._consensus[CONSENSUS_WORDS["leader"]]

    @property
    def commit_index(self):
        return self._consensus[CONSENSUS_WORDS["commit_index"]]

    @property
    def db_bytes(self):
        return self.store.stored_bytes()

    @property
    def db_in_use_bytes(self):
        return self._mvcc.in_use_bytes

    @property
    def index_stats(self):
        return self._mvcc.index_stats

    def set_alarms(self, bits):
        self._loop.ops.alarms = bits
        self._own[APPLY_WORDS["alarms"]] = bits

    def pin(self, revision):
        return self._loop.answers.pin(revision)

    def unpin(self, pin):
        self._loop.answers.unpin(pin)

    def kept_at(self, key, main, sub, revision):
        return self._mvcc.kept_at(key, main, sub, revision)

    def kept_any(self, revision):
        return self._mvcc.kept_any(revision)

    def live_count_at(self, revision):
        return self._mvcc.count_at(revision)

    def schedule_flush(self):
        self._housekeeper.schedule_flush()

    def schedule_compaction(self):
        self.store.start_compaction()
