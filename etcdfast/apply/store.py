"""The store of the apply process: RocksDB through rocksdict, and what is kept beside it in memory.

Layout: one ascending stream of keys, all beginning with b"k" + BE64 main revision, then
    b"_" + BE64 sub            a revision: mvccpb.KeyValue, byte for byte what etcd stores
    b"_" + BE64 sub + b"t"     a tombstone
    0xfe + bucket byte + key   the value of another bucket's key (apply/buckets.py), each key once
    0xff                       applied record: raft index and term up to which the store goes
New keys are always the highest, so RocksDB moves its files down the levels without rewriting them; only
compaction of old revisions makes it work. Other buckets are small and live in `meta`; what the stream
holds of them is how they come back after a restart. Leases may be a million: they live in their own table.

Source: reference/formats.md section 6, reference/anchors.md section 4 (what rocksdict cannot do).
"""

import bisect
import os
import threading
import time

import rocksdict
from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from etcdfast import log
from etcdfast._ext import meters
from etcdfast._ext.mvcc import StoreCorrupt, parse_applied
from etcdfast.apply import buckets

MIB = 1 << 20

# A flush by ourselves comes first; RocksDB's own limit only catches a turn that writes very much at once.
FLUSH_BYTES = 24 * MIB
WRITE_BUFFER_BYTES = 40 * MIB
BLOCK_CACHE_BYTES = 24 * MIB


class StoreError(Exception):
    """RocksDB cannot be opened, written or flushed; one line."""


class Store:
    """The open store. `meta` holds the other buckets: prefixed key -> value.

    Errors: StoreError; StoreCorrupt when what is on disk is not what this program writes.
    """

    def __init__(self, path, read_only=False):
        self.path = path
        self._options = options()
        try:
            if read_only:
                self.db = Rdict(path, self._options, access_type=AccessType.read_only(False))
            else:
                os.makedirs(path, mode=0o700, exist_ok=True)
                self.db = Rdict(path, self._options)
        except Exception as err:
            raise StoreError(f"cannot open the store {path}: {_one_line(err)}") from err
        self._write_options = WriteOptions()
        self._write_options.disable_wal = True
        self._sweeping = _sweeping()
        self.meta = {}
        self.meta_revisions = {}  # key -> revision it is stored at
        self._meta_keys = None
        self.leases = None  # LeaseTable: bucket lease, which is not in meta
        self.flushing = None
        self.sealed = set()  # by `seal` and not yet on disk: no flush may begin that takes more with it
        self.compacting = False

    # ---- hot path ----

    @property
    def read(self):
        return self.db.get

    def walk(self, key):
        """(key, value) pairs from `key` on; may end early at damage, so a missing record is looked up again."""
        return self.db.items(from_key=key)

    @staticmethod
    def new_batch():
        return WriteBatch(raw_mode=True)

    def write(self, batch):
        try:
            self.db.write(batch, self._write_options)
        except Exception as err:
            raise StoreError(f"cannot write to the store: {_one_line(err)}") from err

    # ---- start ----

    def applied(self):
        """(current revision, index, term) of the applied record; (1, 0, 0) for a new store."""
        last = self.db.iter()
        last.seek_to_last()
        if not last.valid():
            last.status()
            return 1, 0, 0
        found = parse_applied(last.key(), last.value())
        if found is None:
            raise StoreCorrupt(f"store {self.path} does not end with an applied record")
        return found

    def records(self):
        """(key, value) of the whole stream in order, as an iterator, and the last key it must come to.

        rocksdict's iterators end at a damaged block as if nothing came after it, and do not tell: whoever
        walks the stream to its end must look whether that was the end.
        """
        return self.db.items(read_opt=self._sweeping), self._last_key()

    # ---- other buckets, as apply/cold.py sees them ----

    def get(self, key):
        return self.meta.get(key)

    def scan(self, start, end):
        """(key, value) pairs with start <= key < end at the time of the first one.

        Bucket `key` comes from RocksDB with all that is in the stream (buckets.is_revision tells revisions
        apart); other buckets come from memory. A range lies in one bucket.
        """
        if start[:1] == buckets.KEY:
            return self._scan_stream(start, end)
        if start[:1] == buckets.LEASE:
            return ((key, value) for key, value in self.leases.items() if start <= key < end)
        if self._meta_keys is None:
            self._meta_keys = sorted(self.meta)
        keys = self._meta_keys
        chosen = keys[bisect.bisect_left(keys, start) : bisect.bisect_left(keys, end)]
        return iter([(key, self.meta[key]) for key in chosen])

    def forget_order(self):
        """The set of keys in `meta` changed."""
        self._meta_keys = None

    def _scan_stream(self, start, end):
        last_key = self._last_key()
        key = None
        for key, value in self.db.items(from_key=start, read_opt=self._sweeping):
            if key >= end:
                return
            yield key, value
        if last_key is not None and last_key >= start and (key is None or key < last_key):
            raise StoreCorrupt(f"store {self.path} is damaged behind key {key.hex() if key else start.hex()}")

    def _last_key(self):
        last = self.db.iter()
        last.seek_to_last()
        return last.key()

    # ---- figures ----

    def stored_bytes(self):
        """Bytes on disk and in memtables: what counts against the quota."""
        files = self.db.property_int_value("rocksdb.total-sst-files-size") or 0
        return files + (self.db.property_int_value("rocksdb.cur-size-all-mem-tables") or 0)

    def memtable_bytes(self):
        return self.db.property_int_value("rocksdb.cur-size-active-mem-table") or 0

    # ---- flush and compaction: the calls that let other threads run ----

    def start_flush(self, done):
        """Flush in a thread; `done(error or None)` is called there. False while one is under way."""
        if self.flushing is not None:
            return False

        def work():
            error = None
            try:
                self.db.flush(True)
            except Exception as err:
                error = StoreError(f"cannot flush the store: {_one_line(err)}")
            self.flushing = None
            done(error)

        self.flushing = threading.Thread(target=work, name="flush", daemon=True)
        self.flushing.start()
        return True

    def seal(self):
        """Send what is in memory to disk as it is now, without waiting (0.2 ms): what is written from here on goes
        apart. Until `await_sealed`, in a thread, has ended no other flush may begin. Returns what that takes.
        """
        try:
            self.db.flush(False)
        except Exception as err:
            raise StoreError(f"cannot flush the store: {_one_line(err)}") from err
        sealed = object()
        self.sealed.add(sealed)
        return sealed

    def await_sealed(self, sealed, given_up):
        """Wait in a thread until what was sealed is on disk. Errors: StoreError, also when given_up() says so."""
        try:
            number = self.db.property_int_value
            while number("rocksdb.num-immutable-mem-table"):
                if number("rocksdb.background-errors") or given_up():
                    raise StoreError("the store could not be flushed")
                time.sleep(0.002)
        finally:
            self.sealed.discard(sealed)

    def start_compaction(self):
        """Let RocksDB give back the space of deleted records, in a thread. One at a time is enough."""
        if self.compacting:
            return
        self.compacting = True
        meters.put("defrag_inflight", 1)
        began = time.monotonic_ns()

        def work():
            try:
                self.db.compact_range(None, None)
                meters.observe("backend_defrag", time.monotonic_ns() - began)
            except Exception as err:  # space comes back later; a broken disk shows itself on the next flush
                log.warn("compaction of the store ended early", error=_one_line(err))
            self.compacting = False
            meters.put("defrag_inflight", 0)

        threading.Thread(target=work, name="compact", daemon=True).start()

    def close(self):
        if self.flushing is not None:
            self.flushing.join()
        try:
            self.db.flush(True)
            if self.compacting:
                self.db.cancel_all_background(True)  # cut short: it changes no data, and the process ends
            else:
                self.db.close()
        except Exception as err:
            raise StoreError(f"cannot close the store: {_one_line(err)}") from err


class MetaBatch:
    """put and delete of other buckets: into the turn's batch and into memory. Leases go their own way there."""

    def __init__(self, store, mvcc):
        self._store = store
        self._mvcc = mvcc
        store.leases = mvcc.leases

    def put(self, key, value):
        store = self._store
        old = store.meta.get(key)
        growth = len(value) - len(old) if old is not None else len(key) - 1 + len(value)
        self._mvcc.meta_put(key, value, store.meta_revisions.get(key, 0), growth)
        if old is None:
            store.forget_order()
        store.meta[key] = value
        store.meta_revisions[key] = self._mvcc.current

    def delete(self, key):
        store = self._store
        if key in store.meta:
            shrink = len(key) - 1 + len(store.meta.pop(key))
            self._mvcc.meta_delete(key, store.meta_revisions.pop(key), -shrink)
            store.forget_order()


def options():
    """How this program's stores are read and written; a new object each time."""
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(3)
    options.set_max_background_jobs(2)
    options.set_compression_type(DBCompressionType.none())
    options.set_level_compaction_dynamic_level_bytes(False)
    options.set_level_zero_file_num_compaction_trigger(4)
    # Wide levels: a million keys of 300 bytes sit in the first one, moved there and never rewritten.
    options.set_max_bytes_for_level_base(1024 * MIB)
    options.set_target_file_size_base(64 * MIB)
    options.set_max_open_files(512)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(4 * MIB)
    options.set_paranoid_checks(True)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    options.set_bytes_per_sync(MIB)
    options.set_allow_concurrent_memtable_write(False)
    options.set_enable_write_thread_adaptive_yield(False)
    options.set_skip_stats_update_on_db_open(True)
    table = BlockBasedOptions()
    table.set_block_cache(Cache(BLOCK_CACHE_BYTES))
    table.set_block_size(4096)
    table.set_format_version(5)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_index_block_restart_interval(16)
    options.set_block_based_table_factory(table)
    return options


def _sweeping():
    """For walks over much of the store: read ahead, and leave the block cache to point reads."""
    options = ReadOptions()
    options.fill_cache(False)
    options.set_readahead_size(MIB)
    return options


def _one_line(err):
    return " ".join(str(err).split()) or type(err).__name__


def version():
    """The RocksDB binding in use, for the log."""
    return getattr(rocksdict, "__version__", "unknown")
