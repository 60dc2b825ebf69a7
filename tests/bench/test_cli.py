"""The command as a person types it: help, wrong input, and real loads on a real etcd."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from etcdfast.bench import workload
from etcdfast.bench.runner import Timeline
from tests.harness.cluster import Cluster
from tests.harness.servers import reference_server
from tests.harness.wait import wait_until


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "etcdfast.bench", *args]


def bench(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def etcd():
    with reference_server() as server:
        yield server


class Figures:
    """What the server counts before and after a load."""

    def __init__(self, server) -> None:
        self._server = server
        self.revision, self.keys = self._read()

    def _read(self) -> tuple[int, int]:
        from tests.harness import pb

        with self._server.client() as client:
            answer = client.call("Range", pb.RangeRequest(key=b"\0", range_end=b"\0", count_only=True)).message
        return answer.header.revision, answer.count

    def grown(self) -> tuple[int, int]:
        revision, keys = self._read()
        return revision - self.revision, keys - self.keys


def report_of(*args: str) -> dict:
    done = bench(*args, "--report-json", "-")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ([], "a command is missing"),
        (["pot"], "invalid choice: 'pot'"),
        (["put", "--bogus"], "unrecognized arguments: --bogus"),
        (["put", "--val-size", "big"], "--val-size: expected a whole number, got 'big'"),
        (["put", "--val-size", "-1"], "--val-size: expected 0 or more"),
        (["put", "--total", "0"], "--total: expected a positive number"),
        (["put", "--clients", "0"], "--clients: expected a positive number"),
        (["put", "--rate", "-5"], "--rate: expected 0 or more"),
        (["put", "--key-space-size", "0"], "expected positive --key-space-size, got (0)"),
        (["put", "--key-size", "1", "--key-space-size", "65"], "--key-size 1 is too small for 65 different keys"),
        (["put", "--sequential-keys=maybe"], "expected true or false, got 'maybe'"),
        (["put", "--compact-interval", "5"], "--compact-interval: expected a duration"),
        (["put", "--endpoints", "https://localhost:2379", "--cert", "x"], "--cert and --key go together"),
        (["put", "--cacert", "/nowhere/ca.crt"], "--cacert /nowhere/ca.crt: No such file or directory"),
        (["put", "--user", "root"], "--user: expected NAME:PASSWORD"),
        (["put", "--endpoints", "localhost"], "expected host:port"),
        (["put", "--endpoints", "localhost:999999"], "expected host:port"),
        (["put", "--endpoints", ","], "no endpoint given"),
        (["put", "--endpoints", "unix://" + "x" * 200], "a socket path has 1 to 107 bytes"),
        (["put", "--report-json", "/nonexistent/x"], "--report-json /nonexistent/x: No such file"),
        (["range"], "required: key"),
        (["range", ""], "the key is empty"),
        (["range", "a", "b", "--prefix"], "--prefix and end-range exclude each other"),
        (["range", "a", "--consistency", "x"], "--consistency: expected l (linearizable) or s (serializable), got 'x'"),
        (["txn-put", "--txn-ops", "0"], "expected positive --txn-ops, got (0)"),
        (["txn-put", "--txn-ops", "3", "--key-space-size", "2"], "expected --txn-ops no larger than --key-space-size"),
        (["txn-mixed", "--rw-ratio", "-1"], "--rw-ratio: expected a number of 0 or more"),
    ],
)
def test_wrong_input_is_one_line(args, reason):
    done = bench(*args)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("etcdfast-bench: ")
    assert done.stdout == ""


def test_no_server():
    done = bench("put", "--endpoints", "127.0.0.1:1", "--dial-timeout", "100ms")
    assert done.returncode == 1
    assert (
        done.stderr == "etcdfast-bench: cannot connect to 127.0.0.1:1: Connection refused (0 of 1 connections made)\n"
    )


@pytest.mark.parametrize("name", ["put", "range", "txn-put", "txn-mixed"])
def test_help_names_every_flag_of_etcds_tool(name):
    flags = {
        "put": "key-size val-size rate total key-space-size sequential-keys prefix compact-interval"
        " compact-index-delta check-hashkv",
        "range": "rate total consistency limit count-only keys-only stream prefix",
        "txn-put": "key-size val-size txn-ops rate total key-space-size",
        "txn-mixed": "key-size val-size rate total end-key limit key-space-size consistency rw-ratio",
    }[name]
    done = bench(name, "--help")
    assert done.returncode == 0
    for flag in [*flags.split(), "endpoints", "conns", "clients", "precise", "sample"]:
        assert f"--{flag} " in done.stdout + " ", flag


def test_put_total_is_the_number_of_revisions(etcd):
    before = Figures(etcd)
    report = report_of(
        "put", "--endpoints", etcd.endpoint, "--total", "700", "--conns", "5", "--clients", "30",
        "--sequential-keys", "--key-space-size", "500", "--key-size", "12", "--val-size", "100",
    )  # fmt: skip
    assert report["requests"] == 700 and report["errors"] == {}
    assert before.grown() == (700, 500)
    with etcd.client() as client:
        from tests.harness import pb

        key = workload.varint(2 * 499).ljust(12, b"\0")
        assert len(client.call("Range", pb.RangeRequest(key=key)).message.kvs[0].value) == 100


def test_put_report(etcd):
    done = bench(
        "--endpoints", etcd.endpoint, "put", "--total=200", "--clients=3", "--sequential-keys=false", "--sample"
    )
    assert done.returncode == 0 and done.stderr == ""
    for part in ("Summary:", "Requests/sec:", "Response time histogram:", "Latency distribution:", "UNIX-SECOND"):
        assert part in done.stdout
    assert sum(int(n) for n in re.findall(r"\[(\d+)\]\t\|", done.stdout)) == 200
    assert "Error distribution" not in done.stdout


def test_put_in_two_processes_shares_the_total(etcd):
    before = Figures(etcd)
    report = report_of(
        "put", "--endpoints", etcd.endpoint, "--total", "301", "--conns", "5", "--clients", "23", "--processes", "2",
        "--sequential-keys", "--key-space-size", "301", "--prefix", "two-processes/",
    )  # fmt: skip
    assert report["requests"] == 301 and report["client_processes"] == 2
    assert before.grown() == (301, 301)


def test_put_at_a_rate(etcd):
    before = Figures(etcd)
    report = report_of("put", "--endpoints", etcd.endpoint, "--total", "50", "--rate", "2000", "--clients", "8")
    assert report["requests"] == 50
    assert before.grown()[0] == 50


def test_values_beyond_every_window(etcd):
    report = report_of("put", "--endpoints", etcd.endpoint, "--total", "12", "--clients", "6", "--val-size", "1000000")
    assert report["requests"] == 12 and report["errors"] == {}


def test_refused_requests_are_in_the_error_distribution(etcd):
    done = bench("put", "--endpoints", etcd.endpoint, "--total", "3", "--val-size", "2000000")
    assert done.returncode == 1
    assert "Error distribution:\n  [3]\tetcdserver: request is too large" in done.stdout


@pytest.mark.parametrize("consistency", ["l", "s"])
def test_range(etcd, consistency):
    before = Figures(etcd)
    done = bench(
        "range", "--endpoints", etcd.endpoint, "foo", "--total", "200", "--clients", "10", "--consistency", consistency
    )
    assert done.returncode == 0
    assert done.stdout.startswith(f"bench with {'linearizable' if consistency == 'l' else 'serializable'} range\n")
    assert before.grown() == (0, 0)


def test_range_options_reach_the_server(etcd):
    assert bench(
        "put", "--endpoints", etcd.endpoint, "--total", "40", "--sequential-keys", "--key-space-size", "40",
        "--prefix", "opt/", "--val-size", "1000",
    ).returncode == 0  # fmt: skip
    sizes = {}
    for options in [(), ("--keys-only",), ("--count-only",), ("--limit", "10")]:
        report = report_of("range", "--endpoints", etcd.endpoint, "opt/", "--prefix", "--total", "1", *options)
        sizes[options] = report["response_bytes"]
    assert sizes[()] > 40_000 > sizes["--limit", "10"] > 10_000 > sizes["--keys-only",] > 400 > sizes["--count-only",]


def test_txn_put(etcd):
    before = Figures(etcd)
    report = report_of(
        "txn-put",
        "--endpoints",
        etcd.endpoint,
        "--total",
        "60",
        "--txn-ops",
        "5",
        "--key-space-size",
        "300",
        "--key-size",
        "11",
        "--clients",
        "4",
    )
    assert report["requests"] == 60 and report["errors"] == {}
    # one revision a transaction; 60 * 5 keys in turn are each of the 300 once
    assert before.grown() == (60, 300)


def test_txn_mixed(etcd):
    before = Figures(etcd)
    done = bench(
        "txn-mixed", "--endpoints", etcd.endpoint, "--total", "400", "--rw-ratio", "3", "--clients", "5",
        "--limit", "3", "--key-space-size", "1000", "--report-json", "/dev/stderr",
    )  # fmt: skip
    assert done.returncode == 0
    reads, writes = (int(n) for n in re.findall(r"Total (?:Read|Write) Ops: (\d+)", done.stdout))
    assert reads + writes == 400 and 60 < writes < 140
    assert before.grown()[0] == writes
    latency = json.loads(done.stderr)["latency"]
    assert (latency["read"]["count"], latency["write"]["count"]) == (reads, writes)


def test_rangestream_on_a_server_without_it(etcd):
    done = bench("range", "--endpoints", etcd.endpoint, "foo", "--stream", "--total", "5")
    assert done.returncode == 1
    assert "[5]\trpc error: code = Unimplemented" in done.stdout


def test_compaction_and_hash_beside_a_load(etcd):
    done = bench(
        "put", "--endpoints", etcd.endpoint, "--rate", "500", "--total", "250", "--compact-interval", "50ms",
        "--compact-index-delta", "10", "--check-hashkv",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"HashKV Summary:\n\tHashKV: \d+\n\tEndpoint: .*\n\tTime taken to get hashkv: .*\n\tDB size: .*B", done.stdout
    )
    from tests.harness import pb

    with etcd.client() as client:
        old = client.call("Range", pb.RangeRequest(key=b"foo", revision=2))
    assert old.text == "etcdserver: mvcc: required revision has been compacted"


@pytest.mark.parametrize("processes", ["1", "2"])
def test_interrupt_still_reports(etcd, processes):
    before = Figures(etcd)
    load = subprocess.Popen(
        command(
            "put", "--endpoints", etcd.endpoint, "--total", "100000000", "--clients", "4", "--conns", "2",
            "--processes", processes,
        ),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_until(lambda: before.grown()[0] > 100, "load on the server", 30)
        load.send_signal(signal.SIGINT)
        out, err = load.communicate(timeout=30)
    finally:
        load.kill()  # not a load for the rest of the run
        load.communicate()
    assert (load.returncode, err) == (130, "")
    assert sum(int(n) for n in re.findall(r"\[(\d+)\]\t\|", out)) == before.grown()[0]


def test_duration_ends_the_load(etcd):
    report = report_of("put", "--endpoints", etcd.endpoint, "--duration", "200ms", "--clients", "2")
    assert report["requests"] > 0 and not report["interrupted"]


def test_server_killed_under_load():
    with reference_server() as server:
        load = subprocess.Popen(
            command(
                "put", "--endpoints", server.endpoint, "--total", "100000000", "--clients", "8", "--conns", "2",
                "--dial-timeout", "500ms",
            ),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        before = Figures(server)
        wait_until(lambda: before.grown()[0] > 100, "load on the server", 30)
        server.kill9()
        out, err = load.communicate(timeout=30)
    assert load.returncode == 1
    assert re.fullmatch(r"etcdfast-bench: stopped: no connection for 0\.5s: .+\n", err)
    assert "Error distribution:" in out and "code = Unavailable" in out


def test_server_restarted_under_load():
    """What was acknowledged is there: etcd's revisions are at least the acknowledged puts."""
    with reference_server() as server:
        load = subprocess.Popen(
            command(
                "put", "--endpoints", server.endpoint, "--total", "6000", "--rate", "3000", "--clients", "8",
                "--conns", "2", "--dial-timeout", "20s", "--report-json", "-",
            ),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        before = Figures(server)
        wait_until(lambda: before.grown()[0] > 300, "load on the server", 30)
        server.kill9()
        server.start()
        out, err = load.communicate(timeout=60)
        assert load.returncode == 0, err
        report = json.loads(out)
        assert report["requests"] + report["errors_total"] == 6000
        assert report["reconnects"] >= 2
        assert before.revision + before.grown()[0] - 1 >= report["requests"]


def test_a_cluster_loses_its_leader_under_load(tmp_path):
    """Connections go to all endpoints; the dead one's go on with the others, and the time line shows the gap."""
    bits = tmp_path / "bits"
    with Cluster("etcd", 3) as cluster:
        load = subprocess.Popen(
            command(
                "put", "--endpoints", cluster.endpoints, "--total", "9000", "--rate", "3000", "--clients", "12",
                "--conns", "6", "--report-json", "-", "--sequential-keys", "--key-space-size", "9000", "--prefix",
                "n", "--acknowledged", str(bits), "--processes", "2",
            ),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with cluster.client(cluster.followers()[0]) as client:
            wait_until(lambda: client.get(b"n", b"o", count_only=True, serializable=True).count > 500, "load", 30)
        leader = cluster.leader()
        killed_ns = time.monotonic_ns()
        leader.kill9()
        out, err = load.communicate(timeout=60)
        assert load.returncode == 0, err
        report = json.loads(out)
        assert report["requests"] + report["errors_total"] == 9000
        assert report["reconnects"] >= 2
        line = report["timeline"]
        assert sum(line["counts"]) == report["requests"]
        gap_ns, began_ns = Timeline(line["first_ns"], line["counts"]).longest_gap(killed_ns)
        assert gap_ns > 200_000_000 and began_ns >= killed_ns, "no election took place under the load"
        acknowledged = bits.read_bytes()
        assert sum(byte.bit_count() for byte in acknowledged) == report["requests"]
        with cluster.client(cluster.wait_leader()) as client:
            there = {kv.key for kv in client.get(b"n", b"o", keys_only=True).kvs}
        for number in range(9000):
            if acknowledged[number >> 3] >> (number & 7) & 1:
                assert b"n" + workload.varint(2 * number).ljust(8, b"\0") in there, f"acknowledged put {number} is lost"
