"""The apply process put together: store, index, loop, cold path; start and stop."""

import ctypes
import gc
import os
import select
import signal
import time

from etcdfast import log
from etcdfast._ext import ring
from etcdfast._ext.applyloop import ApplyLoop
from etcdfast._ext.kvops import KvOps
from etcdfast._ext.leaseclock import LeaseClock
from etcdfast._ext.leaseops import LeaseOps
from etcdfast._ext.mvcc import Mvcc
from etcdfast._ext.outbox import Outbox, SupervisorGone
from etcdfast._ext.servicegate import ServiceGate
from etcdfast._ext.tokenpage import TokenPage, format_tokens
from etcdfast._ext.watchhub import WatchHub
from etcdfast.apply import elections, importing, locks
from etcdfast.apply.auth.rpcs import Auth
from etcdfast.apply.autocompact import AutoCompaction
from etcdfast.apply.cold import ColdPath
from etcdfast.apply.compaction import Compactor
from etcdfast.apply.engine import Engine
from etcdfast.apply.exports import Exports, remove_leftovers
from etcdfast.apply.housekeeping import INTERVAL_NS, Housekeeper
from etcdfast.apply.importing import ImportStopped
from etcdfast.apply.services import Services
from etcdfast.apply.space import Space
from etcdfast.apply.store import FLUSH_BYTES, MetaBatch, Store

_WORDS = ring.APPLY_WORDS
# mallopt(3) parameters
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


class Process:
    """`store_path`: the RocksDB folder; `snap_dir`: member/snap; `rings`, `doorbells`, `status`: by name, as booting
    gives them; `life_fd` reads end of file when the supervisor is gone, `wake_fd` is readable after SIGTERM.

    open() publishes the applied index; load() rebuilds the index and connects the rings; run() serves.
    Errors: StoreError, StoreCorrupt, and those of ApplyLoop.run.
    """

    def __init__(self, store_path, snap_dir, rings, doorbells, status, doorbell, frontends, life_fd, wake_fd, config,
                 tokens_fd=-1):
        self._store_path = store_path
        self._snap_dir = snap_dir
        self._rings = rings
        self._doorbells = doorbells
        self._doorbell = doorbell
        self._frontends = frontends
        self._life_fd = life_fd
        self._wake_fd = wake_fd
        self._config = config
        self.page = ring.StatusPage(status["apply"])
        self.consensus_page = ring.StatusPage(status["consensus"])
        self.store = self.mvcc = self.loop = self.engine = None
        if tokens_fd < 0:
            tokens_fd = os.memfd_create("etcdfast-tokens")
            format_tokens(tokens_fd)
        self.tokens = TokenPage(tokens_fd)

    def open(self):
        tune_malloc()
        os.makedirs(self._snap_dir, 0o700, exist_ok=True)
        remove_leftovers(self._snap_dir)
        if not self._await_consensus():
            raise ImportStopped
        snapshot_index = self.consensus_page[ring.CONSENSUS_WORDS["snapshot_index"]]
        self._imported = importing.prepare(self._store_path, self._snap_dir, snapshot_index, self._told_to_stop)
        self.store = Store(self._store_path)
        self._revision, index, term = self.store.applied()
        self._applied = index, term
        page = self.page
        page[_WORDS["applied_term"]] = term
        page[_WORDS["applied_index"]] = index
        page[_WORDS["flushed_index"]] = index
        page[_WORDS["quota_bytes"]] = self._config.quota_bytes
        page[_WORDS["opened"]] = 2 if self._imported else 1
        os.eventfd_write(self._doorbells["consensus"], 1)

    def _await_consensus(self):
        """Wait until it has read the log: then it is known what the store must hold. False: told to stop."""
        poll = select.poll()
        for fd in (self._doorbell, self._life_fd, self._wake_fd):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        while not self.consensus_page[ring.CONSENSUS_WORDS["opened"]]:
            spoke = {fd for fd, _ in poll.poll(1000)}
            if self._life_fd in spoke:
                raise SupervisorGone
            if self._doorbell in spoke:
                os.eventfd_read(self._doorbell)
            if self._wake_fd in spoke:
                return False
        return True

    def _told_to_stop(self):
        return self._wake_fd >= 0 and bool(select.select([self._wake_fd], [], [], 0)[0])

    def load(self):
        started = time.monotonic()
        store = self.store
        mvcc = self.mvcc = Mvcc(store.read, store.walk, store.new_batch, store.write)
        gc.disable()  # a million short-lived tuples are no garbage cycles
        stream, last_key = store.records()
        records = mvcc.load(stream, last_key, store.meta, store.meta_revisions)
        gc.enable()
        meta_batch = MetaBatch(store, mvcc)
        compactor = Compactor(store, mvcc)
        compacted = compactor.resume(store.meta)
        mvcc.set_compacted(compacted)
        mvcc.raise_current(compacted)
        housekeeper = Housekeeper(
            store,
            self.page,
            self.consensus_page,
            FLUSH_BYTES,
            self._config.snapshot_count,
            lambda: os.eventfd_write(self._doorbell, 1),
        )
        config = self._config
        request_timeout_ns = round(config.request_timeout_seconds * 1e9)
        ops = KvOps(mvcc)
        leases = LeaseOps(
            ops,
            mvcc.leases,
            min_lease_ttl(config),
            config.election_timeout * 1_000_000,
            round(config.lease_checkpoint_interval * 1e9),
        )
        hub = WatchHub(
            mvcc,
            round(config.watch_progress_seconds * 1e9),
            int.from_bytes(os.urandom(8)),
            config.message_bytes_max,
        )
        loop = self.loop = ApplyLoop(
            ops, hub, LeaseClock(leases, request_timeout_ns), meta_batch, compactor, housekeeper, INTERVAL_NS
        )
        loop.start_at(*self._applied)
        compactor.attach(loop)
        housekeeper.attach(loop)
        rings, bells = self._rings, self._doorbells
        out = Outbox(
            [ring.Ring(rings[f"af{i}"], bells[f"frontend{i}"]) for i in range(self._frontends)],
            ring.Ring(rings["ac"], bells["consensus"]),
            self._doorbell,
            self._life_fd,
            self._wake_fd,
        )
        loop.connect(
            ring.Ring(rings["ca"], bells["consensus"]),
            [ring.Ring(rings[f"f{i}a"], bells[f"frontend{i}"]) for i in range(self._frontends)],
            out,
            self.page,
            self.consensus_page,
        )
        self.engine = Engine(loop, store, housekeeper, self.page, self.consensus_page)
        exports = self.exports = Exports(store, self._snap_dir, lambda: os.eventfd_write(self._doorbell, 1))
        exports.attach(loop)
        auth = self.auth = Auth(self.engine, loop.ops.auth, self.tokens, self._doorbell, config)
        services = Services(
            Space(self.engine, mvcc),
            ServiceGate(loop),
            locks.HANDLERS | elections.HANDLERS | exports.handlers | auth.handlers,
            config.max_request_bytes,
            request_timeout_ns,
        )
        services.tick(time.monotonic_ns())
        services.on_lead = self._lead
        self.auto_compaction = AutoCompaction(services, config.auto_compaction_mode, config.auto_compaction_amount)
        services.start(auth.keep())
        self.cold = ColdPath(self.engine, auth, config.quota_bytes, config.max_learners)
        loop.attach_cold(self.cold, services, exports)
        log.info(
            "loaded the key-value store",
            revisions=records,
            current_revision=mvcc.current,
            compacted_revision=mvcc.compacted,
            applied_index=self._applied[0],
            took_seconds=round(time.monotonic() - started, 3),
        )
        if not self._imported:
            importing.forget(self._snap_dir)

    def reload(self, config):
        """Settings that change while the process runs."""
        self._config = config
        self.page[_WORDS["quota_bytes"]] = config.quota_bytes
        self.cold.set_quota(config.quota_bytes)
        self.auth.reload(config)

    def _lead(self, leads):
        """Who leads has changed: the leader alone compacts by itself."""
        self.auto_compaction.paused = not leads

    def run(self):
        gc.collect()
        gc.freeze()
        self.loop.run()

    def close(self):
        """Everything applied is in RocksDB's files when this returns."""
        self.exports.close()
        self.auth.close()
        self.loop.store_applied()
        index = self.loop.stored_index
        self.store.close()
        self.page[_WORDS["flushed_index"]] = index


def min_lease_ttl(config):
    """Least TTL of a lease in seconds: one and a half election timeouts, counted in whole heartbeats as in etcd."""
    ticks = 3 * (config.election_timeout // config.heartbeat_interval) // 2
    return -(-ticks * config.heartbeat_interval // 1000)


def catch_sigterm(stop):
    """A pipe that becomes readable at SIGTERM, when `stop` is called as well. Returns its read end.

    The number of every other signal that has a handler of Python's is written to it too.
    """
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGTERM, lambda number, frame: stop())
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    return read_fd


def tune_malloc():
    """Memtables and answers come and go by the megabyte: let the system have them back.

    Without this glibc raises its mmap threshold to the largest block freed and keeps the heap's top.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 256 * 1024)
        libc.mallopt(_M_TRIM_THRESHOLD, 1024 * 1024)
        libc.mallopt(_M_ARENA_MAX, 2)
    except (OSError, AttributeError):
        pass  # another C library has other habits
