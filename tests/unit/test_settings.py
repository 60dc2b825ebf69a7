"""Settings: every row as flag and as variable, etcd's messages, precedence, conflicts, help."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcdfast.config import Config, values
from etcdfast.config.checks import ConfigError, check_bootstrap
from etcdfast.config.helptext import flags_text, shown_default
from etcdfast.config.kinds import (
    BOOL,
    DURATION,
    INT64,
    NO_EFFECT,
    ORIGINS,
    REFUSED,
    RETIRED,
    SERVED,
    STRING,
    STRINGS,
    UINT,
    URLS,
    WORDS,
)
from etcdfast.config.load import Answered, UsageError, load
from etcdfast.config.older import GATE_OF, RENAMED_TO
from etcdfast.config.settings import BY_NAME, SETTINGS, field_of, variable_of

ROOT = Path(__file__).parents[2]


class Notices:
    def __init__(self):
        self.lines = []

    def info(self, message, **fields):
        self.lines.append(("info", message, fields))

    def warn(self, message, **fields):
        self.lines.append(("warn", message, fields))


def read(*arguments, **environ):
    return load(arguments, environ, Notices())


# A text for each kind of value, and what it must become; then for the rows that take no such text.
BY_KIND = {
    STRING: ("x", "x"),
    STRINGS: ("b,a,b", ("a", "b")),
    WORDS: ("b,a,b", ("a", "b")),
    ORIGINS: ("http://h:1", ("http://h:1",)),
    DURATION: ("3m", 180.0),
    INT64: ("-3", -3),
    UINT: ("7", 7),
    URLS: ("http://127.0.0.1:1", ("http://127.0.0.1:1",)),
}
EXAMPLES = {
    "name": ("m1", "m1"),
    "data-dir": ("/d", "/d"),
    "wal-dir": ("/w", "/w"),
    "snapshot-count": ("0x10", 16),
    "heartbeat-interval": ("50", 50),
    "election-timeout": ("2000", 2000),
    "listen-peer-urls": ("http://127.0.0.1:1", ("http://127.0.0.1:1",)),
    "listen-client-urls": ("http://[::1]:2,http://127.0.0.1:1", ("http://127.0.0.1:1", "http://[::1]:2")),
    "quota-backend-bytes": ("-1", -1),
    "max-txn-ops": ("1024", 1024),
    "max-request-bytes": ("1000", 1000),
    "max-concurrent-streams": ("100", 100),
    "grpc-keepalive-min-time": ("100ms", 0.1),
    "grpc-keepalive-interval": ("1h30m", 5400.0),
    "grpc-keepalive-timeout": ("0", 0.0),
    "initial-advertise-peer-urls": ("http://h:1", ("http://h:1",)),
    "initial-cluster": ("default=http://h:1", "default=http://h:1"),
    "initial-cluster-state": ("existing", "existing"),
    "initial-cluster-token": ("t", "t"),
    "advertise-client-urls": ("http://h:1,http://h:1", ("http://h:1",)),
    "watch-progress-notify-interval": ("1m30s", 90.0),
    "auto-compaction-mode": ("revision", "revision"),
    "auto-compaction-retention": ("1h30m", "1h30m"),
    "logger": ("zap", "zap"),
    "log-outputs": ("stderr,/tmp/x", ("/tmp/x", "stderr")),
    "log-level": ("debug", "debug"),
    "log-format": ("console", "console"),
    "warning-apply-duration": ("1.5s", 1.5),
    "warning-unary-request-duration": ("2us", 2e-6),
    "compaction-batch-limit": ("7", 7),
    "compaction-sleep-interval": ("1m", 60.0),
    "backend-bbolt-freelist-type": ("array", "array"),
    "backend-batch-interval": ("1s", 1.0),
    "backend-batch-limit": ("5", 5),
    "frontends": ("3", 3),
    "snapshot-catchup-entries": ("7", 7),
    "corrupt-check-time": ("12h", 43_200.0),
    "compact-hash-check-time": ("5m", 300.0),
    "feature-gates": ("InitialCorruptCheck=false", "InitialCorruptCheck=false"),
    "max-wals": ("0", 0),
    "max-snapshots": ("3", 3),
    "initial-election-tick-advance": ("false", False),
    "pre-vote": ("false", False),
    "raft-read-timeout": ("6s", 6.0),
    "raft-write-timeout": ("1m", 60.0),
    "strict-reconfig-check": ("false", False),
    "max-learners": ("3", 3),
    "max-cluster-version": ("3.5.0", "3.5.0"),
    "downgrade-check-time": ("1s", 1.0),
    "force-new-cluster": ("true", True),
    "tls-min-version": ("TLS1.3", "TLS1.3"),
    "tls-max-version": ("TLS1.2", "TLS1.2"),
    "auth-token": ("jwt,pub-key=p,sign-method=RS256", "jwt,pub-key=p,sign-method=RS256"),
    "metrics": ("extensive", "extensive"),
    "cipher-suites": ("TLS_RSA_WITH_AES_128_CBC_SHA", ("TLS_RSA_WITH_AES_128_CBC_SHA",)),
    "discovery-fallback": ("proxy", "proxy"),
    "v2-deprecation": ("not-yet", "not-yet"),
    "log-rotation-config-json": ('{"maxsize":1}', '{"maxsize":1}'),
}
SERVED_NAMES = [
    setting.name for setting in SETTINGS if setting.status in (SERVED, NO_EFFECT) and setting.name != "config-file"
]
for _setting in SETTINGS:
    if _setting.name in SERVED_NAMES and _setting.name not in EXAMPLES:
        _turned = not _setting.default
        EXAMPLES[_setting.name] = (str(_turned).lower(), _turned) if _setting.kind is BOOL else BY_KIND[_setting.kind]
REFUSED_EXAMPLES = {
    "unsafe-no-fsync": "true",
    "enable-v2": "true",
    "experimental-enable-v2v3": "/v2",
    "proxy": "on",
    "discovery": "http://h/x",
    "discovery-proxy": "http://h",
    "discovery-insecure-skip-tls-verify": "true",
}


def partners(name):
    """A setting that another one must come with."""
    return {
        "listen-client-urls": ["--advertise-client-urls=http://h:1"],
        "enable-log-rotation": ["--log-outputs=/tmp/x"],
        "discovery-token": ["--discovery-endpoints=http://h:1"],
        "discovery-endpoints": ["--discovery-token=x"],
    }.get(name, [])


def test_every_example_has_a_row():
    assert set(EXAMPLES) == set(SERVED_NAMES)
    assert set(REFUSED_EXAMPLES) == {setting.name for setting in SETTINGS if setting.status == REFUSED}


@pytest.mark.parametrize("name", SERVED_NAMES)
@pytest.mark.parametrize("form", ["--{}={}", "-{}={}", "--{} {}", "-{} {}"])
def test_a_row_as_flag(name, form):
    text, value = EXAMPLES[name]
    if BY_NAME[name].kind.is_switch:
        form = form.replace(" ", "=")  # a switch never takes the next word
    config = read(*form.format(name, text).split(" ", 1), *partners(name))
    assert getattr(config, field_of(BY_NAME[name])) == value


@pytest.mark.parametrize("name", SERVED_NAMES)
def test_a_row_as_variable(name):
    text, value = EXAMPLES[name]
    config = read(*partners(name), **{variable_of(BY_NAME[name]): text})
    assert getattr(config, field_of(BY_NAME[name])) == value


@pytest.mark.parametrize("name", SERVED_NAMES)
def test_a_row_as_flag_and_variable_is_a_conflict(name):
    variable = variable_of(BY_NAME[name])
    with pytest.raises(ConfigError, match=f"conflicting environment variable is shadowed .*: {variable}$"):
        read(f"--{name}={EXAMPLES[name][0]}", *partners(name), **{variable: EXAMPLES[name][0]})


@pytest.mark.parametrize("name", sorted(REFUSED_EXAMPLES))
def test_what_would_be_wrong_to_ignore_is_refused(name):
    for arguments, environ in (
        ([f"--{name}={REFUSED_EXAMPLES[name]}"], {}),
        ([], {variable_of(BY_NAME[name]): REFUSED_EXAMPLES[name]}),
    ):
        with pytest.raises(ConfigError, match="not supported|is gone, from etcd too"):
            read(*arguments, **environ)


def test_what_is_refused_can_be_said_to_be_off():
    assert read("--unsafe-no-fsync=false", "--proxy=off", "--enable-v2=false", "--discovery=")


@pytest.mark.parametrize("name", [setting.name for setting in SETTINGS if setting.status == RETIRED])
def test_retired_flags_are_ignored_with_a_warning(name):
    notices = Notices()
    load([f"--{name}"], {}, notices)
    assert ("warn", "flag is no longer supported - ignoring", {"flag_name": name}) in notices.lines


def test_defaults_are_etcds():
    config = read()
    assert config.data_dir == "default.etcd"
    assert config.initial_cluster == "default=http://localhost:2380"
    assert config.quota_bytes == 2 * 1024**3
    assert (config.max_request_bytes, config.message_bytes_max) == (1572864, 2097152)
    assert (config.snapshot_count, config.max_txn_ops, config.max_concurrent_streams) == (10000, 128, 2**32 - 1)
    assert config.request_timeout_seconds == 7
    assert config.wal_path == "default.etcd/member/wal"


def test_what_follows_from_other_settings():
    assert read("--name=abc").data_dir == "abc.etcd"
    assert read("--name=abc").initial_cluster == "abc=http://localhost:2380"
    own = read("--name=abc", "--initial-advertise-peer-urls=http://b:1,http://a:1")
    assert own.initial_members == (("abc", ("http://a:1", "http://b:1")),)
    # With the default name etcd leaves its built-in text alone.
    assert read("--initial-advertise-peer-urls=http://a:1").initial_cluster == "default=http://localhost:2380"
    assert read("--quota-backend-bytes=-5").quota_bytes == 0
    assert read("--wal-dir=/w").wal_path == "/w"
    assert read("--frontends=5").frontend_count == 5
    assert read().frontend_count >= 1


@pytest.mark.parametrize(
    "arguments, text",
    [
        ("--nope", "flag provided but not defined: -nope"),
        ("--snapshot-count", "flag needs an argument: -snapshot-count"),
        ("--snapshot-count=x", 'invalid value "x" for flag -snapshot-count: parse error'),
        ("--snapshot-count=-1", 'invalid value "-1" for flag -snapshot-count: parse error'),
        ("--snapshot-count=", 'invalid value "" for flag -snapshot-count: parse error'),
        ("--unsafe-no-fsync=maybe", 'invalid boolean value "maybe" for -unsafe-no-fsync: parse error'),
        (
            "--quota-backend-bytes=99999999999999999999",
            'invalid value "99999999999999999999" for flag -quota-backend-bytes: value out of range',
        ),
        ("--initial-cluster-state=bad", 'invalid value "bad" for flag -initial-cluster-state: invalid value'),
        ("--grpc-keepalive-min-time=5", 'invalid value "5" for flag -grpc-keepalive-min-time: parse error'),
        ("---x", "bad flag syntax: ---x"),
        ("-=x", "bad flag syntax: -=x"),
        (
            "--listen-client-urls=127.0.0.1:0",
            'invalid value "127.0.0.1:0" for flag -listen-client-urls: '
            'parse "127.0.0.1:0": first path segment in URL cannot contain colon',
        ),
        (
            "--listen-client-urls=ftp://127.0.0.1:0",
            'invalid value "ftp://127.0.0.1:0" for flag -listen-client-urls: '
            "URL scheme must be http, https, unix, or unixs: ftp://127.0.0.1:0",
        ),
        (
            "--listen-client-urls=http://127.0.0.1",
            'invalid value "http://127.0.0.1" for flag -listen-client-urls: '
            'URL address does not have the form "host:port": http://127.0.0.1',
        ),
        (
            "--listen-client-urls=http://127.0.0.1:1/x",
            'invalid value "http://127.0.0.1:1/x" for flag -listen-client-urls: '
            "URL must not contain a path: http://127.0.0.1:1/x",
        ),
    ],
)
def test_flags_that_cannot_be_read(arguments, text):
    with pytest.raises(UsageError) as caught:
        read(arguments)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "arguments, text",
    [
        ("foo", '"foo" is not a valid flag'),
        ("-- x", '"x" is not a valid flag'),
        ("--name a b", '"b" is not a valid flag'),
        (
            "--listen-client-urls=http://example.com:2379 --advertise-client-urls=http://localhost:1",
            "expected IP in URL for binding (http://example.com:2379)",
        ),
        ("--listen-peer-urls=http://:2380", "expected IP in URL for binding (http://:2380)"),
        (
            "--listen-client-urls=http://127.0.0.1:0",
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            "--listen-client-urls=",
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            "--advertise-client-urls=http://:1",
            '--advertise-client-urls "http://:1" must be in the format "host:port", "unix:/path/to/socket" '
            'or "unixs:/path/to/socket" (unexpected empty host (http://:1))',
        ),
        (
            "--listen-client-urls=https://127.0.0.1:0 --advertise-client-urls=https://h:1",
            "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:0 "
            "with HTTPS scheme",
        ),
        (
            "--listen-metrics-urls=https://127.0.0.1:0",
            "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:0 "
            "with HTTPS scheme",
        ),
        (
            "--listen-metrics-urls=https://127.0.0.1:0 --cert-file=x",
            "KeyFile and CertFile must both be present[key: , cert: x]",
        ),
        (
            "--listen-peer-urls=https://127.0.0.1:0",
            "cannot listen on TLS for 127.0.0.1:0: KeyFile and CertFile are not presented "
            "(--peer-cert-file, --peer-key-file)",
        ),
        ("--auto-tls --self-signed-cert-validity=0", "selfSignedCertValidity is invalid,it should be greater than 0"),
        ("--tls-min-version=TLS1.1", 'unexpected TLS version "TLS1.1" (must be one of: TLS1.2, TLS1.3)'),
        (
            "--tls-min-version=TLS1.3 --tls-max-version=TLS1.2",
            "min version (TLS1.3) is greater than max version (TLS1.2)",
        ),
        (
            "--tls-min-version=TLS1.3 --cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA",
            "cipher suites cannot be configured when only TLS1.3 is enabled",
        ),
        ("--cipher-suites=foo", 'unexpected TLS cipher suite "foo"'),
        ("--listen-metrics-urls=http://h:1", "expected IP in URL for binding (http://h:1)"),
        (
            "--listen-client-http-urls=http://localhost:2379",
            "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url http://localhost:2379",
        ),
        (
            "--discovery-srv=h --initial-cluster=default=http://localhost:2380",
            'multiple discovery or bootstrap flags are set. Choose one of "initial-cluster", "discovery-endpoints" '
            'or "discovery-srv"',
        ),
        ("--discovery-token=x", "both --discovery-token and --discovery-endpoints must be set"),
        ("--discovery-token=x --discovery-endpoints=h,", "--discovery-endpoints must not contain empty endpoints"),
        (
            "--discovery-token=x --discovery-endpoints=h --discovery-srv=h",
            'multiple discovery or bootstrap flags are set. Choose one of "initial-cluster", "discovery-endpoints" '
            'or "discovery-srv"',
        ),
        ("--log-outputs=default,stderr", 'multi logoutput for "default" is not supported yet'),
        (
            "--log-outputs=systemd/journal,stderr",
            "running with systemd/journal but other '--log-outputs' values "
            '(["stderr" "systemd/journal"]) are configured',
        ),
        (
            "--enable-log-rotation",
            "--log-outputs requires a single file path when --log-rotate-config-json is defined",
        ),
        (
            "--enable-log-rotation --log-outputs=/tmp/a,/tmp/b",
            "--log-outputs requires a single file path when --log-rotate-config-json is defined",
        ),
        (
            "--enable-log-rotation --log-outputs=/tmp/a --log-rotation-config-json={x",
            "improperly formatted log rotation config: Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)",
        ),
        (
            '--enable-log-rotation --log-outputs=/tmp/a --log-rotation-config-json={"maxsize":"x"}',
            "invalid log rotation config: cannot unmarshal string into maxsize of type int",
        ),
        (
            "--feature-gates=LeaseCheckpointPersist=1",
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
        ),
        ("gateway start", "etcdfast has no gateway: run etcd's, it works with etcdfast members"),
        ("--heartbeat-interval=0", "--heartbeat-interval must be >0 (set to 0ms)"),
        ("--election-timeout=0", "--election-timeout must be >0 (set to 0ms)"),
        (
            "--heartbeat-interval=500",
            "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[500ms]",
        ),
        (
            "--election-timeout=50001",
            "--election-timeout[50001ms] is too long, and should be set less than 50000ms",
        ),
        ("--log-level=bad", 'unrecognized level: "bad"'),
        ("--log-format=xml", "unknown log format: xml, supported values json, console"),
        ("--logger=glog", 'unknown logger option "glog"'),
        ("--max-request-bytes=1073741824", "--max-request-bytes must be at most 536870912 (set to 1073741824)"),
        ("--auto-compaction-mode=", "undefined auto-compaction-mode"),
        ("--auto-compaction-mode=period", 'unknown auto-compaction-mode "period"'),
        (
            "--auto-compaction-retention=-1",
            'error parsing CompactionRetention: time: missing unit in duration "-1"',
        ),
        (
            "--auto-compaction-mode=revision --auto-compaction-retention=x",
            'error parsing CompactionRetention: time: invalid duration "x"',
        ),
        (
            "--auto-compaction-retention=5y",
            'error parsing CompactionRetention: time: unknown unit "y" in duration "5y"',
        ),
        ("--auto-compaction-retention=-5m", "error parsing CompactionRetention: value out of range"),
        ("--auto-compaction-retention=3000000", "error parsing CompactionRetention: value out of range"),
        ("--lease-checkpoint-interval=0", "--lease-checkpoint-interval must be >0 (set to 0s)"),
        ("--frontends=65", "--frontends must be at most 64 (set to 65)"),
        ("--grpc-keepalive-timeout=-1s", "--grpc-keepalive-timeout must not be negative"),
    ],
)
def test_settings_that_cannot_be_used(arguments, text):
    with pytest.raises(ConfigError) as caught:
        read(*arguments.split())
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "arguments, text",
    [
        ("--initial-cluster=", "initial cluster unset and no discovery endpoints found"),
        (
            "--name=a --initial-cluster=b=http://h:1",
            'couldn\'t find local name "a" in the initial cluster configuration',
        ),
        (
            "--name=a --initial-cluster=a=http://h:1,a=http://localhost:2380",
            "--initial-cluster has a=http://h:1 but missing from --initial-advertise-peer-urls=http://localhost:2380",
        ),
        (
            "--name=a --initial-cluster=a=http://h:1 --initial-advertise-peer-urls=http://h:1,http://h:2",
            "--initial-advertise-peer-urls has http://h:2 but missing from --initial-cluster=a=http://h:1,a=http://h:2",
        ),
        (
            "--initial-cluster=default=http://localhost:2380,b=http://localhost:2380",
            "initial cluster default=http://localhost:2380,b=http://localhost:2380 has duplicate url",
        ),
    ],
)
def test_a_first_start_that_cannot_be(arguments, text):
    with pytest.raises(ConfigError) as caught:
        check_bootstrap(read(*arguments.split()))
    assert str(caught.value) == text


def test_who_joins_need_not_know_what_was_announced_before():
    arguments = "--name=a --initial-cluster=a=http://h:1,b=http://h:2 --initial-cluster-state=existing".split()
    check_bootstrap(read(*arguments))
    with pytest.raises(ConfigError, match="couldn't find local name"):
        check_bootstrap(read(*arguments, "--name=c"))
    with pytest.raises(ConfigError, match="has duplicate url"):
        check_bootstrap(read(*arguments, "--initial-cluster=a=http://h:1,b=http://h:1"))


def test_addresses_count_not_how_they_are_written():
    own = ["--name=a", "--initial-advertise-peer-urls=http://localhost:1"]
    check_bootstrap(read(*own, "--initial-cluster=a=http://127.0.0.1:1"))
    with pytest.raises(ConfigError, match="^--initial-cluster has a=http://127.0.0.2:1 but missing from "):
        check_bootstrap(read(*own, "--initial-cluster=a=http://127.0.0.2:1"))


def test_timeouts_of_peers_have_a_minimum():
    notices = Notices()
    config = load(["--raft-read-timeout=1s", "--raft-write-timeout=7s"], {}, notices)
    assert (config.raft_read_timeout, config.raft_write_timeout) == (5, 7)
    assert ("info", "raft-read-timeout increased to minimum value: 5s", {}) in notices.lines


@pytest.mark.parametrize(
    "flags, at_start, at_compaction",
    [
        ((), True, False),
        (("--feature-gates=InitialCorruptCheck=false, CompactHashCheck=1,PriorityRequest=true",), False, True),
        (("--experimental-initial-corrupt-check=false",), False, False),
        (("--experimental-compact-hash-check-enabled",), True, True),
        (("--experimental-initial-corrupt-check=false", "--feature-gates=CompactHashCheck=true"), False, True),
        (("--feature-gates=AllAlpha=false",), False, False),
        (("--feature-gates=AllAlpha=true,InitialCorruptCheck=false",), False, True),
    ],
)
def test_corruption_checks_are_gated(flags, at_start, at_compaction):
    config = read(*flags)
    assert (config.initial_corrupt_check, config.compact_hash_check) == (at_start, at_compaction)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("Nonsense=true", "unrecognized feature gate: Nonsense"),
        ("CompactHashCheck", "missing bool value for CompactHashCheck"),
        ("CompactHashCheck=maybe", 'invalid value of CompactHashCheck=maybe: strconv.ParseBool: parsing "maybe"'),
    ],
)
def test_feature_gates_are_checked(text, reason):
    with pytest.raises(ConfigError, match=reason):
        read(f"--feature-gates={text}")


def test_every_older_name_is_read_as_its_row():
    for older, newer in RENAMED_TO.items():
        text, value = EXAMPLES[newer]
        assert getattr(read(f"--{older}={text}"), field_of(BY_NAME[newer])) == value
        with pytest.raises(ConfigError, match=f"^cannot set --{older} and --{newer} at the same time, please use "):
            read(f"--{older}={text}", f"--{newer}={text}")
    for older, gate in GATE_OF.items():
        if gate != "LeaseCheckpointPersist":
            assert read(f"--{older}", "--feature-gates=PriorityRequest=true").feature_gates == (
                f"PriorityRequest=true,{gate}=true"
            )
        with pytest.raises(ConfigError, match=f"^cannot specify both flags: --{older}=false and --feature-gates="):
            read(f"--{older}=false", f"--feature-gates={gate}=true")


def test_variables():
    notices = Notices()
    config = load([], {"ETCD_NAME": "q", "ETCD_FOO": "1", "OTHER": "x", "ETCD_WAL_DIR": ""}, notices)
    assert (config.name, config.wal_dir) == ("q", "")
    used = {"variable_name": "ETCD_NAME", "variable_value": "q"}
    assert ("info", "recognized and used environment variable", used) in notices.lines
    assert ("warn", "unrecognized environment variable", {"environment_variable": "ETCD_FOO"}) in notices.lines
    with pytest.raises(ConfigError, match='^invalid value "zz" for ETCD_SNAPSHOT_COUNT: parse error$'):
        read(ETCD_SNAPSHOT_COUNT="zz")


def test_the_flags_of_a_kubernetes_manifest():
    pki = "/etc/kubernetes/pki/etcd"
    notices = Notices()
    config = load(
        f"""
        --advertise-client-urls=https://10.0.0.1:2379 --cert-file={pki}/server.crt --client-cert-auth=true
        --data-dir=/var/lib/etcd --experimental-initial-corrupt-check=true
        --experimental-watch-progress-notify-interval=5s --feature-gates=LeaseCheckpoint=true
        --initial-advertise-peer-urls=https://10.0.0.1:2380 --initial-cluster=node1=https://10.0.0.1:2380
        --key-file={pki}/server.key --listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379
        --listen-metrics-urls=http://127.0.0.1:2381 --listen-peer-urls=https://10.0.0.1:2380 --name=node1
        --peer-cert-file={pki}/peer.crt --peer-client-cert-auth=true --peer-key-file={pki}/peer.key
        --peer-trusted-ca-file={pki}/ca.crt --snapshot-count=10000 --trusted-ca-file={pki}/ca.crt
        """.split(),
        {},
        notices,
    )
    check_bootstrap(config)
    assert (config.watch_progress_seconds, config.initial_corrupt_check) == (5, True)
    assert [message for level, message, _ in notices.lines if level == "warn"] == [
        "flag has a new name",
        "flag is a feature gate now",
        "feature gate has no effect in etcdfast",
    ]


def test_secrets_do_not_reach_the_log():
    notices = Notices()
    assert load([], {"ETCD_DISCOVERY_PASSWORD": "secret"}, notices).discovery_password == "secret"
    assert "secret" not in str(notices.lines)


def test_an_empty_list_is_empty():
    assert read("--peer-cert-allowed-cn=").peer_cert_allowed_cn == ()


def test_the_last_of_equal_flags_counts():
    assert read("--name=a", "--name=b").name == "b"


@pytest.mark.parametrize(
    "mode, text, amount",
    [
        ("periodic", "0", 0),
        ("periodic", "", 0),
        ("periodic", "-0", 0),
        ("periodic", "1", 3600 * 10**9),
        ("periodic", "+2", 7200 * 10**9),
        ("periodic", "1h30m", 5400 * 10**9),
        ("periodic", "500ms", 500 * 10**6),
        ("revision", "1000", 1000),
        ("revision", "010", 10),
        ("revision", "1us", 1000),  # as etcd has it
    ],
)
def test_what_auto_compaction_keeps(mode, text, amount):
    config = read(f"--auto-compaction-mode={mode}", f"--auto-compaction-retention={text}")
    assert config.auto_compaction_amount == amount


def test_the_older_name_of_a_setting():
    notices = Notices()
    name = "experimental-watch-progress-notify-interval"
    config = load([f"--{name}=5s"], {}, notices)
    assert config.watch_progress_notify_interval == config.watch_progress_seconds == 5
    assert ("warn", "flag has a new name", {"flag_name": name, "new_flag_name": name[13:]}) in notices.lines
    assert read(ETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL="1ms").watch_progress_seconds == 0.1
    assert read("--watch-progress-notify-interval=-1s").watch_progress_seconds == 600
    with pytest.raises(UsageError, match=f"-{name}: parse error"):
        read(f"--{name}=5")


def test_a_hidden_setting_is_served():
    assert read().lease_checkpoint_interval == 300
    assert read("--lease-checkpoint-interval=1s").lease_checkpoint_interval == 1
    assert "lease-checkpoint-interval" not in flags_text()


def test_a_config_travels_as_json():
    config = read("--listen-client-urls=http://127.0.0.1:1", "--advertise-client-urls=http://h:1", "--name=ä")
    assert Config.from_plain(json.loads(json.dumps(config.to_plain()))) == config


def test_help_shows_every_served_row():
    text = flags_text()
    for setting in SETTINGS:
        shown = f"  --{setting.name} '{shown_default(setting)}'\n"
        assert (shown in text) == (setting.status in (SERVED, NO_EFFECT, REFUSED) and bool(setting.group))
    assert all(f"  --{older}\n" in text for older in (*RENAMED_TO, *GATE_OF))
    for question in ("--help", "-h", "-help"):
        with pytest.raises(Answered) as caught:
            read("--name=x", question)
        assert text in str(caught.value)


def run(*arguments, **environ):
    return subprocess.run(
        [sys.executable, "-m", "etcdfast", *arguments], cwd=ROOT, env=environ, capture_output=True, text=True
    )


def test_the_command_itself():
    version = run("--version")
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout.startswith("etcd Version: 3.7.1\netcdfast Version: 0.1.0\n")
    assert run("--help").returncode == 0
    wrong_flag = run("--nope")
    assert (wrong_flag.returncode, wrong_flag.stdout) == (2, "")
    assert wrong_flag.stderr.startswith("flag provided but not defined: -nope\nUsage:\n")
    for shown in (run("--heartbeat-interval=0"), run("--name=a", ETCD_NAME="b"), run("--log-outputs=/nowhere/x")):
        assert (shown.returncode, shown.stdout) == (1, "")
        last = json.loads(shown.stderr.splitlines()[-1])
        assert (last["level"], last["msg"]) == ("fatal", "failed to verify flags")
        assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("0", 0),
        ("1h", 3600),
        ("1.5s", 1.5),
        ("-2m", -120),
        ("+1s", 1),
        ("1h2m3s4ms5us6ns", 3723.004005006),
        (".5s", 0.5),
    ],
)
def test_durations(text, seconds):
    assert values.duration(text) == pytest.approx(seconds, abs=1e-12)


@pytest.mark.parametrize("text", ["", "5", "s", "1x", "1s2", "1..5s", "--1s", ".s", "1 s", "9223372037s"])
def test_durations_that_are_none(text):
    with pytest.raises(ValueError, match="parse error"):
        values.duration(text)


@given(st.integers(-(10**15), 10**15).map(lambda us: us / 1e6))
def test_a_duration_printed_is_read_back(seconds):
    assert values.duration(values.format_duration(seconds)) == pytest.approx(seconds, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize(
    "seconds, text", [(0, "0s"), (7200, "2h0m0s"), (0.1, "100ms"), (90.5, "1m30.5s"), (2e-6, "2µs")]
)
def test_durations_are_printed_as_go_prints_them(seconds, text):
    assert values.format_duration(seconds) == text


@pytest.mark.parametrize(
    "text, value", [("0", 0), ("010", 8), ("0b11", 3), ("0o17", 15), ("1_000", 1000), ("0xfF", 255)]
)
def test_numbers_have_gos_bases(text, value):
    assert values.uint(text) == value


@given(st.text(max_size=40))
def test_no_text_breaks_a_parser(text):
    for setting in SETTINGS:
        try:
            setting.kind.parse(text)
        except ValueError as err:
            assert str(err)
