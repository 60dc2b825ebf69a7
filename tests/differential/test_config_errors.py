"""Wrong settings beside real etcd: the same exit status, and both messages hold the same key words.

A case is what stands on the command line (ENV=x in front goes into the environment, FILE: is the text of a
configuration file) and the words. Ours runs in this process up to the point where a member would be started.
"""

import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from etcdfast import log
from etcdfast.config.checks import check_bootstrap
from etcdfast.config.helptext import flags_text
from etcdfast.config.kinds import STRING, STRINGS, URLS, WORDS
from etcdfast.config.load import load
from etcdfast.config.settings import BY_NAME
from etcdfast.supervisor import main
from tests.harness.servers import EtcdServer

ETCD = Path(EtcdServer().command()[0])
ADVERTISED = "--advertise-client-urls=http://127.0.0.1:1"
LISTEN = f"--listen-peer-urls=http://127.0.0.1:0 --listen-client-urls=http://127.0.0.1:0 {ADVERTISED}"

FLAGS = [
    ("--nope", "flag provided but not defined|-nope"),
    ("---x", "bad flag syntax"),
    ("-=x", "bad flag syntax"),
    ("--snapshot-count", "flag needs an argument|-snapshot-count"),
    ("--snapshot-count=x", 'invalid value "x" for flag -snapshot-count: parse error'),
    ("--snapshot-count=-1", 'invalid value "-1" for flag -snapshot-count'),
    ("--snapshot-count=99999999999999999999", "-snapshot-count: value out of range"),
    ("--max-txn-ops=", 'invalid value "" for flag -max-txn-ops'),
    ("--max-snapshots=x", "-max-snapshots: parse error"),
    ("--quota-backend-bytes=x", "-quota-backend-bytes: parse error"),
    ("--auth-token-ttl=x", "-auth-token-ttl: parse error"),
    ("--bcrypt-cost=-1", "-bcrypt-cost: parse error"),
    ("--pre-vote=maybe", 'invalid boolean value "maybe" for -pre-vote: parse error'),
    ("--client-cert-auth=2", "-client-cert-auth"),
    ("--grpc-keepalive-min-time=5", "-grpc-keepalive-min-time"),
    ("--experimental-warning-apply-duration=x", "-experimental-warning-apply-duration"),
    ("--initial-cluster-state=bad", 'invalid value "bad" for flag -initial-cluster-state: invalid value'),
    ("--discovery-fallback=x", "-discovery-fallback"),
    ("--v2-deprecation=x", "-v2-deprecation"),
    ("--proxy=x", "-proxy"),
    ("--cors=", "-cors"),
    ("--cors=http://[x", "-cors"),
    ("--cors=http://example.com", "-cors|host:port"),
    ("--listen-client-urls=127.0.0.1:0", "first path segment in URL cannot contain colon"),
    ("--listen-client-urls=ftp://127.0.0.1:0", "URL scheme must be http, https, unix, or unixs"),
    ("--listen-client-urls=http://127.0.0.1", 'URL address does not have the form "host:port"'),
    ("--listen-client-urls=http://127.0.0.1:1/x", "URL must not contain a path"),
    ("--listen-peer-urls=http://127.0.0.1:1,bad", "-listen-peer-urls|URL scheme must be"),
    ("--listen-metrics-urls=foo", "-listen-metrics-urls|URL scheme must be"),
    ("--advertise-client-urls=http://a:b", "-advertise-client-urls|invalid port"),
    ("--initial-advertise-peer-urls=ftp://x:1", "-initial-advertise-peer-urls|URL scheme must be"),
    ("--config-file /tmp --nope", "flag provided but not defined"),
    ("--name", "flag needs an argument"),
    ("foo", "is not a valid flag|foo"),
    ("--name a b", "is not a valid flag|b"),
    ("ETCD_NAME=b --name=a", "conflicting environment variable|shadowed by corresponding command-line flag|ETCD_NAME"),
    ("ETCD_SNAPSHOT_COUNT=zz", 'invalid value "zz" for ETCD_SNAPSHOT_COUNT: parse error'),
    ("ETCD_LISTEN_CLIENT_URLS=zz", "ETCD_LISTEN_CLIENT_URLS|URL scheme must be"),
    ("--heartbeat-interval=0", "--heartbeat-interval must be >0 (set to 0ms)"),
    ("--election-timeout=0", "--election-timeout must be >0 (set to 0ms)"),
    ("--heartbeat-interval=500", "--election-timeout[1000ms] should be at least as 5 times|[500ms]"),
    ("--election-timeout=50001", "--election-timeout[50001ms] is too long|50000ms"),
    ("--listen-peer-urls=http://example.com:2380", "expected IP in URL for binding (http://example.com:2380)"),
    (f"--listen-client-urls=http://example.com:1 {ADVERTISED}", "expected IP in URL for binding"),
    ("--listen-metrics-urls=http://example.com:80", "expected IP in URL for binding (http://example.com:80)"),
    ("--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls is required when --listen-client-urls"),
    ("--advertise-client-urls=http://:1", '--advertise-client-urls "http://:1" must be|unexpected empty host'),
    ("--initial-advertise-peer-urls=http://:1", '--initial-advertise-peer-urls "http://:1" must be "host:port"'),
    ("--auto-compaction-mode=bad", 'unknown auto-compaction-mode "bad"'),
    ("--logger=glog", 'unknown logger option "glog"'),
    ("--logger=capnslog", "--logger=capnslog is removed in v3.5"),
    ("--log-outputs=/nowhere/x", 'couldn\'t open sink "/nowhere/x": open /nowhere/x: no such file or directory'),
    ("--log-outputs=default,stderr", 'multi logoutput for "default" is not supported yet'),
    ("--log-outputs=systemd/journal", "can't find journal|/run/systemd/journal/socket"),
    ("--enable-log-rotation", "--log-outputs requires a single file path"),
    ("--enable-log-rotation --log-outputs=/tmp/a,/tmp/b", "--log-outputs requires a single file path"),
    (
        "--enable-log-rotation --log-outputs=/tmp/a --log-rotation-config-json={x",
        "improperly formatted log rotation config",
    ),
    (
        '--enable-log-rotation --log-outputs=/tmp/a --log-rotation-config-json={"maxsize":"x"}',
        "invalid log rotation config|cannot unmarshal string into|maxsize of type int",
    ),
    (
        "--discovery-srv=h.invalid --initial-cluster=default=http://localhost:2380",
        'multiple discovery or bootstrap flags are set|"initial-cluster"|"discovery-srv"',
    ),
    (
        f"--listen-client-urls=https://127.0.0.1:0 {ADVERTISED} --listen-peer-urls=http://127.0.0.1:0",
        "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:0 with HTTPS scheme",
    ),
    ("--listen-peer-urls=https://127.0.0.1:0", "cannot listen on TLS for 127.0.0.1:|KeyFile and CertFile are not"),
    (
        f"--cipher-suites=foo --listen-client-urls=https://127.0.0.1:0 {ADVERTISED} --cert-file=x --key-file=y",
        'unexpected TLS cipher suite "foo"',
    ),
    (f"--initial-cluster= {LISTEN}", "initial cluster"),
    (f"--initial-cluster=default=ftp://x:1 {LISTEN}", "error setting up initial cluster|URL scheme must be"),
    (
        f"--name=a --initial-cluster=b=http://h:1 {LISTEN}",
        'couldn\'t find local name "a" in the initial cluster configuration',
    ),
    (
        f"--name=a --initial-cluster=a=http://127.0.0.1:1,a=http://127.0.0.1:2380 {LISTEN}",
        "--initial-cluster has a=http://127.0.0.1:|but missing from --initial-advertise-peer-urls",
    ),
    (
        f"--initial-cluster=default=http://localhost:2380,b=http://localhost:2380 {LISTEN}",
        "initial cluster|has duplicate url",
    ),
    ("ETCD_CONFIG_FILE=/nowhere/x", "open /nowhere/x: no such file or directory"),
    ("--config-file=/nowhere/x", "open /nowhere/x: no such file or directory"),
    ("--config-file=/tmp", "read /tmp: is a directory"),
]
FILES = [
    ("name: [\n", "error converting YAML to JSON: yaml"),
    ("name: x: y\n", "error converting YAML to JSON: yaml|mapping values are not allowed in this context"),
    ("a: *b\n", "error converting YAML to JSON: yaml"),
    ("\ta: b\n", "error converting YAML to JSON: yaml|found character that cannot start any token"),
    ("[1, 2]", "error unmarshaling JSON|cannot unmarshal array"),
    ("word", "error unmarshaling JSON|cannot unmarshal string"),
    ("heartbeat-interval: x\n", "cannot unmarshal string into|heartbeat-interval of type uint"),
    ("snapshot-count: -1\n", "cannot unmarshal number -1 into|snapshot-count of type uint"),
    ("grpc-keepalive-min-time: 5s\n", "cannot unmarshal string into|grpc-keepalive-min-time of type time.Duration"),
    ("log-outputs: stderr\n", "cannot unmarshal string into|log-outputs of type []string"),
    ("cors: [a]\n", "cannot unmarshal array into|cors of type string"),
    ("auto-compaction-retention: 10\n", "cannot unmarshal number|auto-compaction-retention of type string"),
    ("name: 12\n", "cannot unmarshal number|name of type string"),
    ("force-new-cluster: 'true'\n", "cannot unmarshal string into|force-new-cluster of type bool"),
    ("client-transport-security: 5\n", "cannot unmarshal number|client-transport-security"),
    ("client-transport-security: {cert-file: 5}\n", "cannot unmarshal number|cert-file of type string"),
    ("peer-transport-security: {client-cert-auth: x}\n", "cannot unmarshal string|client-cert-auth of type bool"),
    ("listen-client-urls: ftp://x\n", "unexpected error setting up listen-client-urls: URL scheme must be"),
    (
        "listen-peer-urls: 'http://127.0.0.1:1/a'\n",
        "unexpected error setting up listen-peer-urls: URL must not contain",
    ),
    ("listen-client-urls: http://example.com:80\n", "expected IP in URL for binding (http://example.com:80)"),
    ("LISTEN-CLIENT-URLS: http://example.com:80\n", "expected IP in URL for binding (http://example.com:80)"),
    ('{"listen-metrics-urls": "http://example.com:80"}', "expected IP in URL for binding (http://example.com:80)"),
    ("initial-cluster-state: bad\n", 'unexpected clusterState "bad"'),
    ("auto-compaction-mode: bad\n", 'unknown auto-compaction-mode "bad"'),
    ("logger: x\n", 'unknown logger option "x"'),
    ("election-timeout: 5\n", "--election-timeout[5ms] should be at least as 5 times"),
    ("enable-log-rotation: true\n", "--log-outputs requires a single file path"),
    ("log-outputs: [default, stderr]\n", 'multi logoutput for "default" is not supported yet'),
    (
        "name: a\ninitial-cluster: b=http://h:1\nlisten-peer-urls: http://127.0.0.1:0\n"
        "listen-client-urls: http://127.0.0.1:0\n",
        'couldn\'t find local name "a"',
    ),
]
CASES = [*FLAGS, *(("FILE:" + text, words) for text, words in FILES)]
# Statuses that differ, and why: etcd panics (status 2) where we say what is wrong and end with 1.
PANICS = ["--log-level=bad", "FILE:log-level: bad\n", "FILE:cors: 'http://x'\n"]


def parts_of(case, folder):
    """(arguments, environment) of a case."""
    environ = {"PATH": os.environ["PATH"]}
    if case.startswith("FILE:"):
        path = folder / "etcd.yml"
        path.write_text(case.removeprefix("FILE:"))
        return [f"--config-file={path}"], environ
    words = case.split()
    while words and words[0].startswith("ETCD_"):
        name, _, value = words.pop(0).partition("=")
        environ[name] = value
    return words, environ


@pytest.fixture(scope="module")
def etcds(tmp_path_factory):
    """(status, output) of real etcd for every case."""

    def run(case):
        folder = tmp_path_factory.mktemp("etcd")
        arguments, environ = parts_of(case, folder)
        output = folder / "output"
        with open(output, "wb") as out:
            try:
                command = [ETCD, *arguments]
                status = subprocess.call(command, cwd=folder, env=environ, stdout=out, stderr=out, timeout=10)
            except subprocess.TimeoutExpired:
                status = None  # it started
        return status, said(output.read_text(errors="replace"))

    cases = [*(case for case, _ in CASES), *PANICS]
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(cases, pool.map(run, cases)))


def said(text):
    """Without the escapes of JSON."""
    return text.replace('\\"', '"')


@pytest.fixture
def ours(tmp_path, monkeypatch, capfd):
    def run(case):
        arguments, environ = parts_of(case, tmp_path)
        monkeypatch.setattr(os, "environ", environ)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(main, "_start", lambda config, read_again: check_bootstrap(config))
        monkeypatch.setattr(main.signal, "signal", lambda number, handler: None)
        try:
            status = main.main(arguments)
        finally:
            log.configure()
        shown = capfd.readouterr()
        return status, said(shown.out + shown.err)

    return run


@pytest.mark.parametrize("case, words", CASES, ids=[case for case, _ in CASES])
def test_a_wrong_setting_ends_as_in_etcd(case, words, etcds, ours):
    status, output = etcds[case]
    assert status in (1, 2), output
    our_status, our_output = ours(case)
    assert our_status == status, (our_output, output)
    for word in words.split("|"):
        assert word in output, "etcd does not say it"
        assert word in our_output


@pytest.mark.parametrize("case", PANICS)
def test_where_etcd_panics_we_say_what_is_wrong(case, etcds, ours):
    assert etcds[case][0] == 2
    assert "panic" in etcds[case][1]
    status, output = ours(case)
    assert status == 1
    assert "failed to verify flags" in output


@pytest.mark.parametrize("what", ["an address in use", "a data directory that is a file"])
def test_a_start_that_fails_ends_with_the_same_status(what, tmp_path):
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if what == "an address in use" else 0
        flags = LISTEN.replace("client-urls=http://127.0.0.1:0", f"client-urls=http://127.0.0.1:{port}").split()
        data_dir = "data" if port else "file/data"
        results = []
        for command in ([ETCD], [sys.executable, "-m", "etcdfast"]):
            environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(main.__file__).parents[2])}
            done = subprocess.run(
                [*command, f"--data-dir={data_dir}", *flags],
                cwd=tmp_path,
                env=environ,
                capture_output=True,
                text=True,
                timeout=60,
            )
            results.append(done)
    assert [done.returncode for done in results] == [1, 1]
    for done in results:
        assert ("address already in use" if port else "not a directory") in done.stderr.lower()


def test_help_names_every_flag_of_etcds():
    shown = subprocess.run([ETCD, "--help"], capture_output=True, text=True, check=True).stdout
    theirs = set(re.findall(r"^  --([a-z0-9-]+)", shown, re.MULTILINE)) - {"version"}
    assert len(theirs) > 80
    assert not theirs - set(re.findall(r"^  --([a-z0-9-]+)", flags_text(), re.MULTILINE))
    groups = [line for line in re.findall(r"^(\S.*):$", shown, re.MULTILINE) if line != "Usage"]
    ours = re.findall(r"^(\S.*):$", flags_text(), re.MULTILINE)
    assert [group for group in groups if group in ours] == [group for group in ours if group in groups]


def test_every_default_that_etcd_shows_is_taken_as_a_flag_and_as_a_variable():
    shown = subprocess.run([ETCD, "--help"], capture_output=True, text=True, check=True).stdout
    pairs = re.findall(r"^  --([a-z0-9-]+) (?:'(.*)'|(\d+))$", shown, re.MULTILINE)
    assert len(pairs) > 80
    for name, quoted, bare in pairs:
        text = quoted or bare
        if not text and BY_NAME[name].kind not in (STRING, STRINGS, URLS, WORDS):
            continue
        partners = [ADVERTISED] if name == "listen-client-urls" else []
        assert load([f"--{name}={text}", *partners], {}, log.Quiet), name
        assert load(partners, {f"ETCD_{name.upper().replace('-', '_')}": text}, log.Quiet), name
