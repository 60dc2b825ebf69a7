"""The result of reading the settings: one frozen record of plain values, the same in every process."""

import os
from collections import namedtuple

from etcdfast.config.kinds import FEATURE_GATES, REFUSED, RENAMED, RETIRED
from etcdfast.config.settings import FRONTENDS_MAX, GIB, SETTINGS, field_of
from etcdfast.config.values import cluster_map, compaction_retention, feature_gates, log_rotation

_FIELDS = [field_of(setting) for setting in SETTINGS if setting.status not in (RETIRED, REFUSED, RENAMED)]


class Config(namedtuple("Config", _FIELDS)):
    """One field per setting of the table: `--max-txn-ops` is `config.max_txn_ops`.

    Units: durations are seconds, except heartbeat_interval and election_timeout, which are milliseconds as
    in etcd. URL lists are tuples of strings. Values are plain, so that `to_plain` and `from_plain` carry a
    Config to the child processes as JSON.
    """

    __slots__ = ()

    @classmethod
    def from_plain(cls, plain):
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})

    def to_plain(self):
        return self._asdict()

    @property
    def member_dir(self):
        return os.path.join(self.data_dir, "member")

    @property
    def wal_path(self):
        return self.wal_dir or os.path.join(self.member_dir, "wal")

    @property
    def quota_bytes(self):
        """Bytes at which NOSPACE is raised; 0 = no limit."""
        if self.quota_backend_bytes == 0:
            return 2 * GIB
        return max(self.quota_backend_bytes, 0)

    @property
    def message_bytes_max(self):
        """Largest gRPC message taken from a client; the 512 KiB leave room for what wraps the request."""
        return self.max_request_bytes + 512 * 1024

    @property
    def auto_compaction_amount(self):
        """What auto-compaction keeps, in the mode's unit: nanoseconds or revisions; 0 is off."""
        return compaction_retention(self.auto_compaction_mode, self.auto_compaction_retention)

    @property
    def watch_progress_seconds(self):
        """Time between progress notifications, in etcd's bounds: none given is the default, and 100 ms the least."""
        interval = self.watch_progress_notify_interval
        return max(interval, 0.1) if interval > 0 else 600.0

    @property
    def request_timeout_seconds(self):
        return 5 + 2 * self.election_timeout / 1000

    @property
    def election_ticks(self):
        """Election timeout in heartbeat intervals, rounded down as in etcd."""
        return self.election_timeout // self.heartbeat_interval

    @property
    def initial_corrupt_check(self):
        """Whether a member compares its data with the others' before it serves."""
        return self._gate("InitialCorruptCheck")

    @property
    def compact_hash_check(self):
        """Whether the leader compares members after each compaction."""
        return self._gate("CompactHashCheck")

    def _gate(self, name):
        gates = feature_gates(self.feature_gates, FEATURE_GATES)
        return gates.get(name, gates.get("AllAlpha", FEATURE_GATES[name]))  # both of ours are alpha in etcd

    @property
    def log_rotation(self):
        """`values.LogRotation`, None when log files are not rotated."""
        return log_rotation(self.log_rotation_config_json) if self.enable_log_rotation else None

    @property
    def initial_members(self):
        """((name, (peer url, ...)), ...) of the first start, sorted."""
        return cluster_map(self.initial_cluster)

    @property
    def frontend_count(self):
        if self.frontends:
            return self.frontends
        return min(max(len(os.sched_getaffinity(0)) // 4, 1), FRONTENDS_MAX)
