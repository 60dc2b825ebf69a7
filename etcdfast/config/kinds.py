"""What a row of the table of settings is made of: kinds of values, what becomes of a row, checks of one value."""

from collections import namedtuple

from etcdfast.config import values
from etcdfast.version import CLUSTER_VERSION, MIN_CLUSTER_VERSION

# How a kind of value is read: from text, and `go_type` names what a configuration file must hold, in the words of
# etcd's messages. A switch needs no value as a flag.
Kind = namedtuple("Kind", "parse go_type is_switch keeps_default_on_empty", defaults=(False, False))
STRING = Kind(values.string, "string")
UINT = Kind(values.uint, "uint")
UINT32 = Kind(values.uint32, "uint32")
INT64 = Kind(values.int64, "int64")
BOOL = Kind(values.boolean, "bool", is_switch=True)
DURATION = Kind(values.duration, "time.Duration")  # seconds in Config, nanoseconds in a file
URLS = Kind(values.urls, "string", keeps_default_on_empty=True)
ORIGINS = Kind(values.origins, "string")
WORDS = Kind(values.strings, "string")  # separated by commas, everywhere
STRINGS = Kind(values.strings, "[]string")
CLUSTER_STATE = Kind(values.one_of("new", "existing"), "string")
IGNORED = Kind(values.string, "string", is_switch=True)

# What a row that is not simply served does: NO_EFFECT settings are accepted and checked, and have nothing
# to act on in etcdfast; RETIRED ones are flags that etcd itself takes and ignores; REFUSED ones stop the
# start with their help text, because running on without them would be wrong.
# HIDDEN ones are served and not shown; RENAMED ones are older names of another row or of a feature gate (older.py).
SERVED, NO_EFFECT, RETIRED, REFUSED, HIDDEN, RENAMED = range(6)

Setting = namedtuple("Setting", "name kind default group help check status", defaults=(None, SERVED))

# Groups of --help, named and ordered as etcd's.
MEMBER, CLUSTERING, SECURITY, AUTH = "Member", "Clustering", "Security", "Auth"
MONITORING, LOGGING, TRACING = "Profiling and Monitoring", "Logging", "Distributed tracing"
FEATURES, UNSAFE, OWN, OLDER = "Features", "Unsafe feature", "etcdfast", "No longer in etcd"
NOWHERE = ""  # not in --help
GROUPS = (MEMBER, CLUSTERING, SECURITY, AUTH, MONITORING, LOGGING, TRACING, FEATURES, UNSAFE, OWN, OLDER)

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
    "AllAlpha": None,
    "AllBeta": None,
}

# Go's names; what OpenSSL lacks of them (RC4) never comes to be spoken.
CIPHER_SUITES = frozenset(
    """
    TLS_RSA_WITH_RC4_128_SHA TLS_RSA_WITH_3DES_EDE_CBC_SHA TLS_RSA_WITH_AES_128_CBC_SHA TLS_RSA_WITH_AES_256_CBC_SHA
    TLS_RSA_WITH_AES_128_CBC_SHA256 TLS_RSA_WITH_AES_128_GCM_SHA256 TLS_RSA_WITH_AES_256_GCM_SHA384
    TLS_ECDHE_ECDSA_WITH_RC4_128_SHA TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA
    TLS_ECDHE_RSA_WITH_RC4_128_SHA TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA
    TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256 TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256
    TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
    TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
    TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305 TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305
    TLS_AES_128_GCM_SHA256 TLS_AES_256_GCM_SHA384 TLS_CHACHA20_POLY1305_SHA256
    """.split()
)
TLS_VERSIONS = ("", "TLS1.2", "TLS1.3")


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
    if value == "capnslog":
        raise ValueError("--logger=capnslog is removed in v3.5")
    if value != "zap":
        raise ValueError(f"unknown logger option {values.quote(value)}")


def known_tls_version(setting, value):
    if value not in TLS_VERSIONS:
        raise ValueError(f"unexpected TLS version {values.quote(value)} (must be one of: TLS1.2, TLS1.3)")


def known_cipher_suites(setting, value):
    for name in value:
        if name not in CIPHER_SUITES:
            raise ValueError(f"unexpected TLS cipher suite {values.quote(name)}")


def known_state(setting, value):
    if value not in ("new", "existing"):
        raise ValueError(f"unexpected clusterState {values.quote(value)}")


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
        shown = values.format_duration(value) if setting.kind is DURATION else value
        raise ValueError(f"--{setting.name} must be >0 (set to {shown})")


def refuse(setting, value):
    if value != setting.default:
        raise ValueError(setting.help)


def known_feature_gates(setting, value):
    gates = values.feature_gates(value, FEATURE_GATES)
    if gates.get("LeaseCheckpointPersist") and not gates.get("LeaseCheckpoint"):
        raise ValueError("enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint")


def known_cluster_version(setting, value):
    if not value:
        return
    found = values.version(value)
    if found is None or not values.version(MIN_CLUSTER_VERSION) <= found <= values.version(CLUSTER_VERSION):
        raise ValueError(
            f"--{setting.name} must be a version from {MIN_CLUSTER_VERSION} to {CLUSTER_VERSION} "
            f"(set to {values.quote(value)})"
        )
