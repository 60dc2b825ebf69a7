"""Auto-compaction: old revisions leave after a time, or once they are so many revisions old.

Both modes run as a task of etcdfast.apply.services and propose a Compact; the leader alone does, and an idle
member does not. Modes, intervals and retries are etcd's.

Source: etcd's v3compactor (periodic, revision).
"""

from etcdfast import log
from etcdfast.api import errors, rpcs
from etcdfast.apply.services import Pause, Proposal, text_of
from etcdfast.config.values import format_duration

NS = 10**9
HOUR_NS = 3600 * NS
REVISION_INTERVAL_NS = 300 * NS
RETRY_DIVISOR = 10
RETRY_NS_MIN = NS // 1000  # a period of microseconds would otherwise keep the member busy with itself

COMPACT = rpcs.BY_PATH["/etcdserverpb.KV/Compact"].id
_DONE = (0, errors.ID["COMPACTED"])  # compacted further already: as good as done


class AutoCompaction:
    """`services` runs it; `mode`: "periodic" (retention in ns) or "revision" (retention in revisions).

    paused: set while this member does not lead. Nothing runs for a retention of 0 (auto-compaction is off).
    """

    def __init__(self, services, mode, retention):
        self._services = services
        self._retention = retention
        self.paused = False
        if retention:
            services.start(self._periodic() if mode == "periodic" else self._by_revision())

    def _periodic(self):
        """The revision of one retention ago is compacted, every retention but at least every hour."""
        services, period_ns = self._services, self._retention
        interval_ns = min(period_ns, HOUR_NS)
        retry_ns = max(interval_ns // RETRY_DIVISOR, RETRY_NS_MIN)
        samples_max = period_ns // retry_ns + 1
        samples = []  # revisions, oldest first
        last = 0
        success_ns = services.now_ns
        wait_ns = period_ns  # the first time a whole retention must have passed
        while True:
            samples.append(services.space.current_revision)
            del samples[:-samples_max]
            yield Pause(retry_ns)
            if self.paused:
                continue
            revision = samples[0]
            if services.now_ns - success_ns < wait_ns or revision == last:
                continue
            wait_ns = interval_ns
            fields = {"revision": revision, "compact_period": format_duration(period_ns / NS)}
            if (yield from self._compact("periodic", revision, fields, retry_ns)):
                last, success_ns = revision, services.now_ns

    def _by_revision(self):
        """Every five minutes, everything but the last so many revisions."""
        retention, last = self._retention, 0
        while True:
            yield Pause(REVISION_INTERVAL_NS)
            if self.paused:
                continue
            revision = self._services.space.current_revision - retention
            if revision <= 0 or revision == last:
                continue
            fields = {"revision": revision, "revision_compaction_retention": retention}
            if (yield from self._compact("revision", revision, fields, REVISION_INTERVAL_NS)):
                last = revision

    def _compact(self, mode, revision, fields, retry_ns):
        log.info(f"starting auto {mode} compaction", **fields)
        started_ns = self._services.now_ns
        status, payload = yield Proposal(COMPACT, _request(revision))
        if status in _DONE:
            took = format_duration((self._services.now_ns - started_ns) / NS)
            log.info(f"completed auto {mode} compaction", **fields, took=took)
            return True
        retry = format_duration(retry_ns / NS)
        log.warn(f"failed auto {mode} compaction", **fields, retry_interval=retry, error=text_of(status, payload))
        return False


def _request(revision):
    from etcdfast.api.pb import rpc_pb2

    return rpc_pb2.CompactionRequest(revision=revision).SerializeToString()
