"""The one table of settings: a row gives a setting's flag, variable, file key, default, help and checks.

The name is the flag (`--name`), the YAML key, and in capitals with underscores behind `ETCD_` the
environment variable; `Config` has a field of the same name with underscores. Names, defaults and meaning
are etcd's (3.7); the last group is our own.
"""

from collections import namedtuple

from etcdfast.config import values
from etcdfast.version import CLUSTER_VERSION, MIN_CLUSTER_VERSION

MIB = 1 << 20
GIB = 1 << 30

# A ring must hold a whole request half as much again, and a ring is at most 1 GiB (ring.h).
REQUEST_BYTES_MAX = 512 * MIB
FRONTENDS_MAX = 64  # a frontend's number is one byte on the rings, 255 means nobody
ELECTION_TIMEOUT_MS_MAX = 50_000
RAFT_TIMEOUT_SECONDS_MIN = 5.0  # as in etcd: a stream is silent for up to 1.7 s between two heartbeats

# How a kind of value is read. `shown` is what --help prints for a default.
Kind = namedtuple("Kind", "parse is_switch keeps_default_on_empty")
STRING = Kind(values.string, False, False)
UINT = Kind(values.uint, False, False)
UINT32 = Kind(values.uint32, False, False)
INT64 = Kind(values.int64, False, False)
BOOL = Kind(values.boolean, True, False)
DURATION = Kind(values.duration, False, False)  # seconds in Config
URLS = Kind(values.urls, False, True)
STRINGS = Kind(values.strings, False, False)
CLUSTER_STATE = Kind(values.one_of("new", "existing"), False, False)
IGNORED = Kind(values.string, True, False)

# What a row that is not simply served does: NO_EFFECT settings are accepted and checked, and have nothing
# to act on in etcdfast; RETIRED ones are flags that etcd itself takes and ignores; REFUSED ones stop the
# start with their help text, because running on without them would be wrong.
# HIDDEN ones are served and not shown; RENAMED ones are older names of another row (RENAMED_TO).
SERVED, NO_EFFECT, RETIRED, REFUSED, HIDDEN, RENAMED = range(6)

Setting = namedtuple("Setting", "name kind default group help check status", defaults=(None, SERVED))


def positive_ms(setting, value):
    if value <= 0:
        raise ValueError(f"--{setting.name} must be >0 (set to {value}ms)")


def known_log_level(setting, value):
    if value.lower() not in ("debug", "info", "warn", "error", "dpanic", "panic", "fatal"):
        raise ValueError(f"unrecognized level: {values.quote(value)}")


def known_log_format(setting, value):
    if value not in ("json", "console"):
        raise ValueError(f"unknown log format: {value}, supported values json, console")


def known_logger(setting, value):
    if value != "zap":
        raise ValueError(f"unknown logger option {values.quote(value)}")


def at_most(limit):
    def check(setting, value):
        if value > limit:
            raise ValueError(f"--{setting.name} must be at most {limit} (set to {value})")

    return check


def not_negative(setting, value):
    if value < 0:
        raise ValueError(f"--{setting.name} must not be negative")


def positive(setting, value):
    if value <= 0:
        raise ValueError(f"--{setting.name} must be >0")


def refuse(setting, value):
    if value:
        raise ValueError(setting.help)


def known_feature_gates(setting, value):
    values.feature_gates(value, FEATURE_GATES)


def known_cluster_version(setting, value):
    if not value:
        return
    found = values.version(value)
    if found is None or not values.version(MIN_CLUSTER_VERSION) <= found <= values.version(CLUSTER_VERSION):
        raise ValueError(
            f"--{setting.name} must be a version from {MIN_CLUSTER_VERSION} to {CLUSTER_VERSION} "
            f"(set to {values.quote(value)})"
        )


# Gates of etcd's newest release. True or False: what it is here unless set; None: nothing to switch in etcdfast.
# The corruption check at start is on, unlike in etcd.
FEATURE_GATES = {
    "StopGRPCServiceOnDefrag": None,
    "InitialCorruptCheck": True,
    "CompactHashCheck": False,
    "TxnModeWriteWithSharedBuffer": None,
    "LeaseCheckpoint": None,
    "LeaseCheckpointPersist": None,
    "SetMemberLocalAddr": None,
    "FastLeaseKeepAlive": None,
    "PriorityRequest": None,
}

MEMBER, CLUSTERING, COMPACTION, LOGGING, BACKEND = "Member", "Clustering", "Auto-compaction", "Logging", "Backend"
CORRUPTION, UNSAFE, OWN = "Corruption checks", "Unsafe feature", "etcdfast"
SECURITY, AUTH, HTTP, TRACING = "Security", "Auth", "Gateway, health and metrics", "Tracing"

# Names of etcd 3.5, which calls them experimental.
RENAMED_TO = {
    f"experimental-{name}": name
    for name in (
        "compact-hash-check-time",
        "compaction-batch-limit",
        "compaction-sleep-interval",
        "corrupt-check-time",
        "downgrade-check-time",
        "max-learners",
        "memory-mlock",
        "peer-skip-client-san-verification",
        "snapshot-catchup-entries",
        "warning-apply-duration",
        "warning-unary-request-duration",
        "watch-progress-notify-interval",
    )
}

_ROWS = (
    Setting("name", STRING, "default", MEMBER, "Human-readable name of this member."),
    Setting("data-dir", STRING, "", MEMBER, "Directory of this member's data; '${name}.etcd' when not given."),
    Setting("wal-dir", STRING, "", MEMBER, "Directory of the write-ahead log, if it is to live apart from the data."),
    Setting("snapshot-count", UINT, 10_000, MEMBER, "Applied entries after which the log before them is released."),
    Setting(
        "snapshot-catchup-entries",
        UINT,
        5000,
        MEMBER,
        "Entries kept behind a snapshot for followers that lag a little.",
    ),
    Setting("max-wals", UINT, 5, MEMBER, "Files of the write-ahead log to keep, 0 for all.", at_most((1 << 32) - 1)),
    Setting("max-snapshots", UINT, 5, MEMBER, "Snapshot files to keep, 0 for all.", at_most((1 << 32) - 1)),
    Setting("heartbeat-interval", UINT, 100, MEMBER, "Milliseconds between heartbeats.", positive_ms),
    Setting("election-timeout", UINT, 1000, MEMBER, "Milliseconds without a leader until an election.", positive_ms),
    Setting(
        "initial-election-tick-advance",
        BOOL,
        True,
        MEMBER,
        "Do not sit out a whole election timeout at the start.",
    ),
    Setting("pre-vote", BOOL, True, MEMBER, "Ask for votes only after finding out that an election could be won."),
    Setting(
        "raft-read-timeout",
        DURATION,
        RAFT_TIMEOUT_SECONDS_MIN,
        MEMBER,
        "Time without data after which a connection of another member is given up; at least 5s.",
    ),
    Setting(
        "raft-write-timeout",
        DURATION,
        RAFT_TIMEOUT_SECONDS_MIN,
        MEMBER,
        "Time for data to go out to another member before the connection is given up; at least 5s.",
    ),
    Setting("listen-peer-urls", URLS, ("http://localhost:2380",), MEMBER, "URLs to listen on for other members."),
    Setting("listen-client-urls", URLS, ("http://localhost:2379",), MEMBER, "URLs to listen on for clients."),
    Setting(
        "quota-backend-bytes",
        INT64,
        0,
        MEMBER,
        "Stored bytes at which the NOSPACE alarm is raised: 0 means 2 GiB, a negative number no limit.",
    ),
    Setting("max-txn-ops", UINT, 128, MEMBER, "Most operations in one list of a transaction.", at_most(1 << 31)),
    Setting(
        "max-request-bytes",
        UINT,
        1536 * 1024,
        MEMBER,
        "Most bytes of one client request.",
        at_most(REQUEST_BYTES_MAX),
    ),
    Setting("max-concurrent-streams", UINT32, (1 << 32) - 1, MEMBER, "Most open streams of one client connection."),
    Setting("grpc-keepalive-min-time", DURATION, 5.0, MEMBER, "Least time between a client's pings.", not_negative),
    Setting(
        "grpc-keepalive-interval",
        DURATION,
        7200.0,
        MEMBER,
        "Time without traffic after which a client is pinged, 0 for never.",
        not_negative,
    ),
    Setting(
        "grpc-keepalive-timeout",
        DURATION,
        20.0,
        MEMBER,
        "Time for the answer to a ping before the connection is closed, 0 for no limit.",
        not_negative,
    ),
    Setting(
        "watch-progress-notify-interval",
        DURATION,
        600.0,
        MEMBER,
        "Time between progress notifications to watchers that asked for them; at least 100ms.",
    ),
    Setting(
        "initial-advertise-peer-urls",
        URLS,
        ("http://localhost:2380",),
        CLUSTERING,
        "This member's peer URLs as told to the other members.",
    ),
    Setting(
        "initial-cluster",
        STRING,
        "",
        CLUSTERING,
        "First members as name=url,name=url; when not given, this member alone.",
    ),
    Setting(
        "initial-cluster-state",
        CLUSTER_STATE,
        "new",
        CLUSTERING,
        "'new' for the first start of a cluster, 'existing' to join one; ignored once the member has data.",
    ),
    Setting("initial-cluster-token", STRING, "etcd-cluster", CLUSTERING, "Sets clusters of equal URLs apart."),
    Setting(
        "advertise-client-urls",
        URLS,
        ("http://localhost:2379",),
        CLUSTERING,
        "This member's client URLs as told to clients.",
    ),
    Setting(
        "strict-reconfig-check",
        BOOL,
        True,
        CLUSTERING,
        "Refuse changes of the membership that would leave the cluster without a quorum.",
    ),
    Setting(
        "max-cluster-version",
        STRING,
        "",
        OWN,
        "Highest version the cluster may agree on, such as 3.5.0: etcd members of that release can then join, so that "
        "a migration can be taken back. None by default.",
        known_cluster_version,
    ),
    Setting("max-learners", INT64, 1, CLUSTERING, "Most learners in the cluster at one time."),
    Setting(
        "downgrade-check-time",
        DURATION,
        5.0,
        CLUSTERING,
        "No effect: downgrades are not supported.",
        None,
        NO_EFFECT,
    ),
    Setting(
        "auto-compaction-mode",
        STRING,
        "periodic",
        COMPACTION,
        "'periodic' keeps a time (hours without a unit, as in '5m'), 'revision' a number of revisions.",
    ),
    Setting(
        "auto-compaction-retention",
        STRING,
        "0",
        COMPACTION,
        "What auto-compaction keeps: 0 is off.",
    ),
    Setting(
        "corrupt-check-time",
        DURATION,
        3600.0,
        CORRUPTION,
        "Time between two comparisons of all members' data by the leader; 0s is off.",
        not_negative,
    ),
    Setting(
        "compact-hash-check-time",
        DURATION,
        60.0,
        CORRUPTION,
        "Time between two looks for a compaction to compare members at (feature gate CompactHashCheck).",
        positive,
    ),
    Setting(
        "feature-gates",
        STRING,
        "",
        CORRUPTION,
        "'Name=true|false' pairs: InitialCorruptCheck (default true), CompactHashCheck (default false); "
        "etcd's others have no effect.",
        known_feature_gates,
    ),
    # Names of 3.5 for two of the gates.
    Setting("experimental-initial-corrupt-check", BOOL, True, CORRUPTION, "", None, HIDDEN),
    Setting("experimental-compact-hash-check-enabled", BOOL, False, CORRUPTION, "", None, HIDDEN),
    Setting("logger", STRING, "zap", LOGGING, "Only 'zap': structured lines.", known_logger),
    Setting(
        "log-outputs",
        STRINGS,
        ("default",),
        LOGGING,
        "Where to log: 'stderr' (default), 'stdout', or files, separated by commas.",
    ),
    Setting("log-level", STRING, "info", LOGGING, "debug, info, warn, error, panic or fatal.", known_log_level),
    Setting("log-format", STRING, "json", LOGGING, "json or console.", known_log_format),
    Setting(
        "warning-apply-duration",
        DURATION,
        0.1,
        LOGGING,
        "Time to apply one request after which a warning is logged.",
        not_negative,
    ),
    Setting(
        "warning-unary-request-duration",
        DURATION,
        0.3,
        LOGGING,
        "Time of one whole request after which a warning is logged.",
        not_negative,
    ),
    Setting("compaction-batch-limit", INT64, 1000, BACKEND, "Most revisions removed in one step of a compaction."),
    Setting(
        "compaction-sleep-interval",
        DURATION,
        0.01,
        BACKEND,
        "Rest between two steps of a compaction.",
        not_negative,
    ),
    Setting(
        "backend-bbolt-freelist-type",
        STRING,
        "map",
        BACKEND,
        "No effect: the store is not bbolt.",
        None,
        NO_EFFECT,
    ),
    Setting("backend-batch-interval", DURATION, 0.0, BACKEND, "No effect: the store is not bbolt.", None, NO_EFFECT),
    Setting("backend-batch-limit", INT64, 0, BACKEND, "No effect: the store is not bbolt.", None, NO_EFFECT),
    Setting("cert-file", STRING, "", SECURITY, "Certificate that clients are shown (PEM, with its chain)."),
    Setting("key-file", STRING, "", SECURITY, "Key of --cert-file."),
    Setting("client-cert-file", STRING, "", SECURITY, "Certificate for calls to client ports."),
    Setting("client-key-file", STRING, "", SECURITY, "Key of --client-cert-file."),
    Setting("client-cert-auth", BOOL, False, SECURITY, "Serve only clients with a certificate of the CA."),
    Setting("client-crl-file", STRING, "", SECURITY, "List of revoked client certificates."),
    Setting(
        "client-cert-allowed-hostname",
        STRINGS,
        (),
        SECURITY,
        "Names of which a client's certificate must hold one, separated by commas.",
    ),
    Setting("trusted-ca-file", STRING, "", SECURITY, "Certificates of the CAs that sign clients' certificates."),
    Setting("auto-tls", BOOL, False, SECURITY, "Serve clients with a certificate made at the start."),
    Setting("peer-cert-file", STRING, "", SECURITY, "Certificate that other members are shown."),
    Setting("peer-key-file", STRING, "", SECURITY, "Key of --peer-cert-file."),
    Setting(
        "peer-client-cert-file",
        STRING,
        "",
        SECURITY,
        "Certificate for calls to members.",
    ),
    Setting("peer-client-key-file", STRING, "", SECURITY, "Key of --peer-client-cert-file."),
    Setting("peer-client-cert-auth", BOOL, False, SECURITY, "Take only members whose certificate the CA signed."),
    Setting("peer-trusted-ca-file", STRING, "", SECURITY, "Certificates of the CAs that sign members' certificates."),
    Setting("peer-auto-tls", BOOL, False, SECURITY, "Meet other members with a certificate made at the start."),
    Setting("peer-crl-file", STRING, "", SECURITY, "List of revoked certificates of members."),
    Setting("peer-cert-allowed-cn", STRINGS, (), SECURITY, "Common names that members may have."),
    Setting(
        "peer-cert-allowed-hostname", STRINGS, (), SECURITY, "Names of which a member's certificate must hold one."
    ),
    Setting(
        "peer-skip-client-san-verification",
        BOOL,
        False,
        SECURITY,
        "Do not compare the address of a member that connects with the names in its certificate.",
    ),
    Setting("cipher-suites", STRINGS, (), SECURITY, "TLS 1.2 cipher suites by Go's names, separated by commas."),
    Setting("tls-min-version", STRING, "TLS1.2", SECURITY, "Oldest TLS version to speak: TLS1.2 or TLS1.3."),
    Setting("tls-max-version", STRING, "", SECURITY, "Newest TLS version to speak; none given is the newest there is."),
    Setting("self-signed-cert-validity", UINT, 1, SECURITY, "Years that certificates of --auto-tls are valid."),
    Setting("cors", STRINGS, ("*",), SECURITY, "Origins that browsers may call from, or * for all."),
    Setting("host-whitelist", STRINGS, ("*",), SECURITY, "Host names that plain HTTP requests may name, or * for all."),
    Setting(
        "auth-token",
        STRING,
        "simple",
        AUTH,
        "'simple', or 'jwt,pub-key=...,priv-key=...,sign-method=...,ttl=10m'.",
    ),
    Setting("bcrypt-cost", UINT, 10, AUTH, "Cost of hashing a password, 4 to 31."),
    Setting("auth-token-ttl", UINT, 300, AUTH, "Seconds that a simple token lives on without use."),
    Setting("enable-grpc-gateway", BOOL, True, HTTP, "Serve the JSON API below /v3/ on the client URLs."),
    Setting(
        "listen-client-http-urls",
        URLS,
        (),
        HTTP,
        "URLs for HTTP alone; --listen-client-urls then serve gRPC alone.",
    ),
    Setting("listen-metrics-urls", URLS, (), HTTP, "Further URLs for /metrics and the health paths."),
    Setting("metrics", STRING, "basic", HTTP, "'basic', or 'extensive' to have histograms of call times too."),
    Setting("enable-pprof", BOOL, False, HTTP, "Serve /debug/profile, a sampling profile of the member's processes."),
    Setting("socket-reuse-port", BOOL, False, MEMBER, "Set SO_REUSEPORT on listening sockets."),
    Setting("socket-reuse-address", BOOL, False, MEMBER, "Set SO_REUSEADDR on listening sockets (always set here)."),
    Setting("memory-mlock", BOOL, False, MEMBER, "Keep the member's memory out of swap."),
    Setting("enable-log-rotation", BOOL, False, LOGGING, "Rotate the log files of --log-outputs."),
    Setting(
        "log-rotation-config-json",
        STRING,
        '{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}',
        LOGGING,
        "When to rotate: maxsize in MiB, maxage in days, maxbackups in files.",
    ),
    Setting(
        "force-new-cluster",
        BOOL,
        False,
        UNSAFE,
        "Go on alone with this member's data: every other member is removed. Only to recover from a lost quorum.",
    ),
    Setting(
        "unsafe-no-fsync",
        BOOL,
        False,
        UNSAFE,
        "--unsafe-no-fsync is not supported: etcdfast answers a write only after it is on disk",
        refuse,
        REFUSED,
    ),
    Setting(
        "config-file",
        STRING,
        "",
        "Configuration file",
        "--config-file (ETCD_CONFIG_FILE) is not supported yet: use flags or ETCD_* variables",
        refuse,
        REFUSED,
    ),
    Setting(
        "frontends",
        UINT,
        0,
        OWN,
        "Frontend processes; 0 follows the cores (one on up to 4, then one per 4 cores).",
        at_most(FRONTENDS_MAX),
    ),
    Setting(
        "lease-checkpoint-interval",
        DURATION,
        300.0,
        OWN,
        "Time between checkpoints of the remaining life of leases that live longer than it.",
        positive,
        HIDDEN,
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

_BY_NAME = {setting.name: setting for setting in _ROWS}
SETTINGS = _ROWS + tuple(
    _BY_NAME[newer]._replace(name=older, group="Renamed", help="", check=None, status=RENAMED)
    for older, newer in RENAMED_TO.items()
)
BY_NAME = {setting.name: setting for setting in SETTINGS}


def variable_of(setting):
    return "ETCD_" + setting.name.upper().replace("-", "_")


def field_of(setting):
    return setting.name.replace("-", "_")
