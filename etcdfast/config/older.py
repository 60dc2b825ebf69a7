"""Names of etcd's older releases: what they are called now, and what became of what they did."""

from etcdfast.config.kinds import (
    BOOL,
    DURATION,
    IGNORED,
    NO_EFFECT,
    OLDER,
    REFUSED,
    RETIRED,
    STRING,
    UINT,
    Kind,
    Setting,
    refuse,
)
from etcdfast.config.values import one_of

# Names of etcd 3.5, which calls them experimental (and of 3.4, for the freelist).
RENAMED_TO = {
    f"experimental-{name}": name
    for name in (
        "backend-bbolt-freelist-type",
        "bootstrap-defrag-threshold-megabytes",
        "compact-hash-check-time",
        "compaction-batch-limit",
        "compaction-sleep-interval",
        "corrupt-check-time",
        "distributed-tracing-address",
        "distributed-tracing-instance-id",
        "distributed-tracing-sampling-rate",
        "distributed-tracing-service-name",
        "downgrade-check-time",
        "enable-distributed-tracing",
        "max-learners",
        "memory-mlock",
        "peer-skip-client-san-verification",
        "snapshot-catchup-entries",
        "warning-apply-duration",
        "warning-unary-request-duration",
        "watch-progress-notify-interval",
    )
}
RENAMED_TO["log-output"] = "log-outputs"  # 3.4
# The key of a configuration file has one hyphen more than the flag had.
RENAMED_TO["experimental-snapshot-catch-up-entries"] = "snapshot-catchup-entries"

# Switches of etcd 3.5 that are feature gates since 3.6.
GATE_OF = {
    "experimental-compact-hash-check-enabled": "CompactHashCheck",
    "experimental-enable-lease-checkpoint": "LeaseCheckpoint",
    "experimental-enable-lease-checkpoint-persist": "LeaseCheckpointPersist",
    "experimental-initial-corrupt-check": "InitialCorruptCheck",
    "experimental-stop-grpc-service-on-defrag": "StopGRPCServiceOnDefrag",
    "experimental-txn-mode-write-with-shared-buffer": "TxnModeWriteWithSharedBuffer",
}

_PROXY = Kind(one_of("off", "readonly", "on"), "string")
_FALLBACK = Kind(one_of("exit", "proxy"), "string")
_DEPRECATION = Kind(one_of("not-yet", "write-only", "write-only-drop-data", "gone"), "string")
_V2 = "the v2 API is gone, from etcd too (3.6)"

ROWS = (
    Setting(
        "discovery",
        STRING,
        "",
        OLDER,
        "--discovery: v2 discovery is gone, from etcd too (3.7): use --initial-cluster or --discovery-srv",
        refuse,
        REFUSED,
    ),
    Setting(
        "discovery-proxy",
        STRING,
        "",
        OLDER,
        "--discovery-proxy: v2 discovery is gone, from etcd too (3.7)",
        refuse,
        REFUSED,
    ),
    Setting("discovery-fallback", _FALLBACK, "exit", OLDER, "No effect: there are no proxies.", None, NO_EFFECT),
    Setting("enable-v2", BOOL, False, OLDER, f"--enable-v2: {_V2}", refuse, REFUSED),
    Setting("experimental-enable-v2v3", STRING, "", OLDER, f"--experimental-enable-v2v3: {_V2}", refuse, REFUSED),
    Setting("v2-deprecation", _DEPRECATION, "gone", OLDER, "No effect: there is no v2 store.", None, NO_EFFECT),
    Setting("proxy", _PROXY, "off", OLDER, "--proxy: the v2 proxy is gone, from etcd too (3.6)", refuse, REFUSED),
    *(
        Setting(f"proxy-{name}", UINT, default, OLDER, "No effect: there is no v2 proxy.", None, NO_EFFECT)
        for name, default in (
            ("failure-wait", 5000),
            ("refresh-interval", 30000),
            ("dial-timeout", 1000),
            ("write-timeout", 5000),
            ("read-timeout", 0),
        )
    ),
    Setting("debug", BOOL, False, OLDER, "No effect: use --log-level=debug.", None, NO_EFFECT),
    Setting("log-package-levels", STRING, "", OLDER, "No effect: use --log-level.", None, NO_EFFECT),
    Setting(
        "experimental-wait-cluster-ready-timeout",
        DURATION,
        5.0,
        OLDER,
        "No effect: a member serves once it is ready.",
        None,
        NO_EFFECT,
    ),
    Setting(
        "next-cluster-version-compatible",
        BOOL,
        False,
        OLDER,
        "No effect: see --max-cluster-version.",
        None,
        NO_EFFECT,
    ),
    *(
        Setting(name, IGNORED, "", "Retired", "", None, RETIRED)
        for name in (
            "cluster-active-size",
            "cluster-remove-delay",
            "cluster-sync-interval",
            "config",
            "force",
            "max-result-buffer",
            "max-retry-attempts",
            "peer-heartbeat-interval",
            "peer-election-timeout",
            "retry-interval",
            "snapshot",
            "v",
            "vv",
        )
    ),
)
