"""The configuration file: what it may hold, what it replaces, what is wrong with it."""

import json

import pytest

from etcdfast.config.checks import ConfigError
from etcdfast.config.kinds import BOOL, DURATION, INT64, NO_EFFECT, SERVED, STRINGS, UINT, UINT32
from etcdfast.config.load import load
from etcdfast.config.settings import BY_NAME, SETTINGS, field_of
from tests.unit.test_settings import EXAMPLES, Notices

IN_BLOCKS = {
    "client-transport-security": {
        "cert-file": "cert-file",
        "key-file": "key-file",
        "client-cert-file": "client-cert-file",
        "client-key-file": "client-key-file",
        "client-cert-auth": "client-cert-auth",
        "trusted-ca-file": "trusted-ca-file",
        "auto-tls": "auto-tls",
        "crl-file": "client-crl-file",
        "allowed-hostname": "client-cert-allowed-hostname",
    },
    "peer-transport-security": {
        "cert-file": "peer-cert-file",
        "key-file": "peer-key-file",
        "client-cert-file": "peer-client-cert-file",
        "client-key-file": "peer-client-key-file",
        "client-cert-auth": "peer-client-cert-auth",
        "trusted-ca-file": "peer-trusted-ca-file",
        "auto-tls": "peer-auto-tls",
        "crl-file": "peer-crl-file",
        "allowed-cn": "peer-cert-allowed-cn",
        "allowed-hostname": "peer-cert-allowed-hostname",
        "skip-client-san-verification": "peer-skip-client-san-verification",
    },
    "socket-options": {"reuse-port": "socket-reuse-port", "reuse-address": "socket-reuse-address"},
}
BLOCK_OF = {name: (block, key) for block, keys in IN_BLOCKS.items() for key, name in keys.items()}
NAMES = [
    setting.name
    for setting in SETTINGS
    if setting.status in (SERVED, NO_EFFECT) and setting.name not in ("config-file", "discovery-fallback")
]


@pytest.fixture
def read(tmp_path):
    def _read(text, *arguments, notices=None, **environ):
        path = tmp_path / "etcd.yml"
        path.write_text(text)
        return load([f"--config-file={path}", *arguments], environ, notices or Notices())

    return _read


def in_yaml(name):
    """The example of a setting as a line or a block."""
    setting = BY_NAME[name]
    text, value = EXAMPLES[name]
    if setting.kind is DURATION:
        value = round(value * 1e9)
    elif setting.kind is STRINGS:
        value = list(value)
    elif setting.kind not in (BOOL, UINT, UINT32, INT64):
        value = text
    block, key = BLOCK_OF.get(name, (None, name))
    line = f"{key}: {json.dumps(value)}\n"
    return f"{block}:\n  {line}" if block else line


@pytest.mark.parametrize("name", NAMES)
def test_a_row_in_the_file(read, name):
    more = {
        "enable-log-rotation": "log-outputs: [/tmp/x]\n",
        "discovery-token": "discovery-config: {client: {endpoints: ['http://h:1']}}\n",
        "discovery-endpoints": "discovery-token: x\n",
    }.get(name, "")
    assert getattr(read(in_yaml(name) + more), field_of(BY_NAME[name])) == EXAMPLES[name][1]


def test_the_file_stands_alone(read):
    notices = Notices()
    config = read("name: x\n", "--snapshot-count=7", "--name=y", notices=notices, ETCD_WAL_DIR="/w", ETCD_NONSENSE="1")
    assert (config.name, config.snapshot_count, config.wal_dir) == ("x", 10000, "")
    assert config.initial_cluster == "x=http://localhost:2380"
    assert [line for line in notices.lines if line[0] == "warn" and "data-dir" not in line[1]] == []
    text = "loaded server configuration, other configuration command line flags and environment variables will be "
    assert any(line[1].startswith(text) and line[2] == {"path": config.config_file} for line in notices.lines)


def test_the_file_is_named_by_a_variable(tmp_path):
    path = tmp_path / "c"
    path.write_text("name: x\n")
    assert load(["--name=y"], {"ETCD_CONFIG_FILE": str(path), "ETCD_NAME": "z"}, Notices()).name == "x"


def test_the_block_of_discovery(read):
    config = read(
        "discovery-config:\n  token: x\n  client:\n    endpoints: ['http://h:1', 'http://g:2']\n"
        "    request-timeout: 7000000000\n    secure: {cacert: /ca}\n    auth: {username: u, password: p}\n"
    )
    assert (config.discovery_token, config.discovery_endpoints) == ("x", ("http://g:2", "http://h:1"))
    assert (config.discovery_request_timeout, config.discovery_cacert) == (7, "/ca")
    assert (config.discovery_user, config.discovery_password, config.initial_cluster) == ("u", "p", "")


def test_json_is_yaml(read):
    assert read('{"name": "j", "max-txn-ops": 5, "log-outputs": ["stdout"]}').max_txn_ops == 5


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "name:\ninitial-cluster: null\nsocket-options:\n"])
def test_nothing_said_is_the_default(read, text):
    config = read(text)
    assert (config.name, config.initial_cluster) == ("default", "default=http://localhost:2380")


def test_keys_count_without_regard_to_case(read):
    assert read("Name: x\nClient-Transport-Security: {Cert-File: y}\n").cert_file == "y"


def test_listening_urls_alone_are_enough(read):
    config = read("listen-client-urls: 'http://127.0.0.1:1, http://[::1]:2'\n")
    assert config.listen_client_urls == ("http://127.0.0.1:1", "http://[::1]:2")
    assert config.advertise_client_urls == ("http://localhost:2379",)


def test_unknown_keys_are_ignored_with_a_warning(read):
    notices = Notices()
    text = "nonsense: 1\ncert-file: left-behind\nclient-transport-security: {more: 1}\nconfig-file: x\nv: 1\n"
    config = read(text, notices=notices)
    assert config.cert_file == ""
    told = [fields["key"] for _, message, fields in notices.lines if "unknown key" in message]
    assert told == ["nonsense", "cert-file", "client-transport-security.more", "config-file", "v"]


def test_the_older_forms(read):
    text = "experimental-corrupt-check-time: 60000000000\nexperimental-enable-lease-checkpoint: true\n"
    config = read(text + "peer-transport-security: {allowed-cn: one}\nfeature-gates: 'CompactHashCheck=true'\n")
    assert (config.corrupt_check_time, config.compact_hash_check) == (60, True)
    assert config.feature_gates == "CompactHashCheck=true,LeaseCheckpoint=true"
    assert config.peer_cert_allowed_cn == ("one",)
    assert read("client-transport-security: {allowed-cn: [a, b]}").client_cert_allowed_cn == ("a", "b")
    assert read("experimental-snapshot-catch-up-entries: 7\n").snapshot_catchup_entries == 7


def test_the_sample_of_etcd(read):
    # Every key of etcd's etcd.conf.yml.sample with its value there, but the v2 discovery's.
    config = read(
        """
name: 'default'
data-dir:
wal-dir:
snapshot-count: 10000
heartbeat-interval: 100
election-timeout: 1000
quota-backend-bytes: 0
listen-peer-urls: http://localhost:2380
listen-client-urls: http://localhost:2379
max-snapshots: 5
max-wals: 5
cors:
initial-advertise-peer-urls: http://localhost:2380
advertise-client-urls: http://localhost:2379
discovery:
discovery-fallback: 'proxy'
discovery-proxy:
discovery-srv:
initial-cluster:
initial-cluster-token: 'etcd-cluster'
initial-cluster-state: 'new'
strict-reconfig-check: false
enable-pprof: true
proxy: 'off'
proxy-failure-wait: 5000
client-transport-security: {cert-file: , key-file: , client-cert-auth: false, trusted-ca-file: , auto-tls: false}
peer-transport-security:
  cert-file:
  client-cert-auth: false
  auto-tls: false
  allowed-cn:
  allowed-hostname:
self-signed-cert-validity: 1
log-level: debug
logger: zap
log-outputs: [stderr]
force-new-cluster: false
auto-compaction-mode: periodic
auto-compaction-retention: "1"
cipher-suites: [
  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
  TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
]
tls-min-version: 'TLS1.2'
tls-max-version: 'TLS1.3'
"""
    )
    assert (config.auto_compaction_amount, config.strict_reconfig_check) == (3600 * 10**9, False)
    assert config.cors == ("*",)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("name: [\n", "error converting YAML to JSON: yaml: line 2: "),
        ("name: x: y\n", "error converting YAML to JSON: yaml: line 1: mapping values are not allowed in this context"),
        ("a: *b\n", "error converting YAML to JSON: yaml: "),
        ("\0", "error converting YAML to JSON: yaml: "),
        ("name: !!bool q\n", "error converting YAML to JSON: yaml: "),
        ("[1, 2]", "error unmarshaling JSON: cannot unmarshal array into a configuration"),
        ("heartbeat-interval: x\n", "cannot unmarshal string into heartbeat-interval of type uint"),
        ("snapshot-count: -1\n", "cannot unmarshal number -1 into snapshot-count of type uint"),
        ("snapshot-count: 1.5\n", "cannot unmarshal number 1.5 into snapshot-count of type uint"),
        (
            "max-concurrent-streams: 4294967296\n",
            "cannot unmarshal number 4294967296 into max-concurrent-streams of type",
        ),
        ("grpc-keepalive-min-time: 5s\n", "cannot unmarshal string into grpc-keepalive-min-time of type time.Duration"),
        ("log-outputs: stderr\n", r"cannot unmarshal string into log-outputs of type \[\]string"),
        ("cors: [a]\n", "cannot unmarshal array into cors of type string"),
        ("auto-compaction-retention: 10\n", "cannot unmarshal number 10 into auto-compaction-retention of type string"),
        ("force-new-cluster: 'true'\n", "cannot unmarshal string into force-new-cluster of type bool"),
        ("listen-client-urls: ftp://x\n", "unexpected error setting up listen-client-urls: URL scheme must be http"),
        ("listen-client-urls: http://example.com:80\n", r"expected IP in URL for binding \(http://example.com:80\)"),
        ("initial-cluster-state: bad\n", 'unexpected clusterState "bad"'),
        ("client-transport-security: 5\n", "invalid client-transport-security: cannot unmarshal number 5 into a block"),
        (
            "client-transport-security: {allowed-cn: x, allowed-hostname: [y]}\n",
            r"AllowedCNs and AllowedHostnames are mutually exclusive \(cns=x, hostnames=y\)",
        ),
        ("unsafe-no-fsync: true\n", "--unsafe-no-fsync is not supported"),
        (
            "max-learners: 1\nexperimental-max-learners: 2\n",
            "cannot set --experimental-max-learners and --max-learners",
        ),
    ],
)
def test_what_is_wrong_is_told(read, text, reason):
    with pytest.raises(ConfigError, match=reason):
        read(text)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="^open /nowhere/x: no such file or directory$"):
        load(["--config-file", "/nowhere/x"], {}, Notices())
    with pytest.raises(ConfigError, match=f"^read {tmp_path}: is a directory$"):
        load(["--config-file", str(tmp_path)], {}, Notices())
