"""Watch and lease loads: on a real etcd as a person runs them, and against a server that breaks its promises."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from array import array

import pytest

from etcdfast.api.grpc_stubs import Client
from etcdfast.bench import coordination
from etcdfast.bench.endpoints import parse_endpoints
from etcdfast.bench.runner import Load, Result, run
from etcdfast.bench.workload import LEASE_IDS, bytes_field, framed, int_field
from tests.bench.scripted_server import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    OK_TRAILERS,
    STATUS_200,
    ScriptedServer,
    frame,
)
from tests.harness.servers import reference_server


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "etcdfast.bench", *args]


def bench(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=120)


def report_of(*args: str) -> dict:
    done = bench(*args, "--report-json", "-")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def etcd():
    with reference_server() as server:
        yield server


@pytest.fixture
def client(etcd):
    with etcd.client() as one:
        yield one


# ---- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        (
            "watch",
            "streams watch-per-stream watched-key-total put-rate put-total key-size key-space-size sequential-keys",
        ),
        ("watch-latency", "streams watchers-per-stream prevkv put-total put-rate key-size val-size"),
        ("watch-get", "watchers streams events"),
        ("lease-keepalive", "total"),
        ("stm", "isolation keys total keys-per-txn txn-wr-percent stm-locker val-size rate"),
    ],
)
def test_help_names_every_flag_of_etcds_tool(name, flags):
    done = bench(name, "--help")
    assert done.returncode == 0
    for flag in [*flags.split(), "endpoints", "conns", "clients", "precise", "sample"]:
        assert f"--{flag} " in done.stdout + " ", flag


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["watch", "--streams", "0"], "--streams: expected a positive number"),
        (["watch", "--key-space-size", "0"], "expected positive --key-space-size, got (0)"),
        (["watch", "--key-size", "1", "--key-space-size", "65"], "--key-size 1 is too small for 65 different keys"),
        (["watch", "--start-revision", "5"], "say with --events how many"),
        (["watch", "--whole-prefix"], "say with --events how many"),
        (["watch", "--streams", "100000", "--watch-per-stream", "1000"], "expected at most 10000000 watchers"),
        (["watch", "--duration", "5s"], "--duration does not apply"),
        (["watch-latency", "--put-total", "0"], "--put-total: expected a positive number"),
        (["watch-get", "--watchers", "10", "--streams", "3"], "expected --watchers to be a multiple of --streams"),
        (["lease-grant", "--expire-together", "--ttl", "200"], "needs a --ttl of at most 127"),
        (["stm", "--keys", "0"], "expected positive --keys, got (0)"),
        (["stm", "--keys-per-txn", "2"], "expected --keys-per-txn between 0 and 1, got (2)"),
        (["stm", "--txn-wr-percent", "101"], "expected [0, 100] --txn-wr-percent, got (101)"),
        (["stm", "--isolation", "x"], "--isolation: invalid choice: 'x'"),
        (["stm", "--stm-locker", "x"], "--stm-locker: invalid choice: 'x'"),
        (["lease-keepalive", "--ttl", "0"], "--ttl: expected a positive number"),
    ],
)
def test_wrong_input_is_one_line(args, reason):
    done = bench(*args)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("etcdfast-bench: ")
    assert done.stdout == ""


def test_events_are_counted_on_as_a_naive_model_counts_them():
    seed = random.randrange(1 << 30)
    chosen = random.Random(seed)
    for _ in range(200):
        numbers = array("Q", (chosen.randrange(4) for _ in range(chosen.randrange(1, 6))))
        watchers, puts = chosen.randrange(1, 15), chosen.randrange(15)
        watched = [numbers[i % len(numbers)] for i in range(watchers)]
        expected = sum(watched.count(numbers[i % len(numbers)]) for i in range(puts))
        assert coordination.events_of_puts(numbers, watchers, puts) == expected, f"seed {seed}"


# ---- on a real etcd -----------------------------------------------------------------------------


@pytest.mark.parametrize("processes", ["1", "2"])
def test_watch(etcd, client, processes):
    before = client.get(b"x").header.revision
    report = report_of(
        "watch", "--endpoints", etcd.endpoint, "--conns", "3", "--clients", "4", "--streams", "7",
        "--watch-per-stream", "6", "--watched-key-total", "5", "--key-space-size", "5", "--sequential-keys",
        "--put-total", "33", "--processes", processes,
    )  # fmt: skip
    numbers = coordination.watched_numbers(5, 5, True, 1)
    assert report["errors"] == {} and report["requests"] == 33
    assert report["watch"]["watchers"] == 42
    assert (
        report["watch"]["events"] == coordination.events_of_puts(numbers, 42, 33) == report["latency"]["event"]["count"]
    )
    assert report["latency"]["create"]["count"] == 42 and report["latency"]["put"]["count"] == 33
    assert client.get(b"x").header.revision - before == 33


def test_watch_report(etcd):
    done = bench("watch", "--endpoints", etcd.endpoint, "--streams=2", "--watch-per-stream=3", "--put-total=5")
    assert done.returncode == 0 and done.stderr == ""
    for part in ("Watch creation summary:", "Put summary:", "Watch events received summary:", "Total:\t30 events in "):
        assert part in done.stdout
    assert "Error distribution" not in done.stdout


def test_watch_events_of_others_after_a_pause(etcd):
    watching = subprocess.Popen(
        command(
            "watch", "--endpoints", etcd.endpoint, "--streams", "2", "--watch-per-stream", "1", "--prefix", "held/",
            "--whole-prefix", "--events", "1200", "--hold", "--report-json", "/dev/stderr",
        ),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        said = watching.stdout.readline()
        assert said == "watching: 2 watchers on 2 streams; press Enter to go on\n"
        assert bench(
            "txn-put", "--endpoints", etcd.endpoint, "--prefix", "held/", "--txn-ops", "100", "--key-space-size", "100",
            "--val-size", "500", "--total", "6",
        ).returncode == 0  # fmt: skip
        out, err = watching.communicate("\n", timeout=30)
    finally:
        watching.kill()
    assert watching.returncode == 0, err
    watch = json.loads(err)["watch"]
    # 100 events of a transaction are of one revision and larger than a frame
    assert (watch["events"], watch["responses"]) == (1200, 12)
    assert watch["response_bytes"] > 1200 * 500
    assert "Put summary" not in out


def test_watch_from_a_revision_of_the_past(etcd, client):
    first = client.put(b"past/1", b"x").header.revision
    for number in range(9):
        client.put(b"past/%d" % number, b"y")
    report = report_of(
        "watch", "--endpoints", etcd.endpoint, "--streams", "1", "--watch-per-stream", "2", "--prefix", "past/",
        "--whole-prefix", "--start-revision", str(first), "--events", "20",
    )  # fmt: skip
    assert report["watch"]["events"] == 20


def test_watch_of_a_compacted_revision_fails(etcd, client):
    revision = client.put(b"compacted", b"x").header.revision
    client.put(b"compacted", b"y")
    client.compact(revision + 1)
    done = bench(
        "watch", "--endpoints", etcd.endpoint, "--streams", "1", "--watch-per-stream", "1", "--start-revision",
        str(revision), "--events", "1",
    )  # fmt: skip
    assert done.returncode == 1
    assert f"watcher canceled: compacted up to revision {revision + 1}" in done.stdout
    assert done.stderr == "etcdfast-bench: 1 of 1 events did not come\n"


def test_events_that_do_not_come_are_not_waited_for_without_end(etcd):
    done = bench(
        "watch", "--endpoints", etcd.endpoint, "--streams", "1", "--watch-per-stream", "1", "--events", "5",
        "--event-timeout", "200ms",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "etcdfast-bench: 5 of 5 events did not come\n"


def test_server_killed_under_watchers():
    with reference_server() as server:
        watching = subprocess.Popen(
            command("watch", "--endpoints", server.endpoint, "--streams", "3", "--watch-per-stream", "2", "--hold"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            watching.stdout.readline()
            server.kill9()
            out, err = watching.communicate(timeout=30)
        finally:
            watching.kill()
    assert watching.returncode == 1
    assert err == "etcdfast-bench: 6000 of 6000 events did not come\n"
    assert "code = Unavailable" in out


def test_watch_latency(etcd):
    report = report_of(
        "watch-latency", "--endpoints", etcd.endpoint, "--streams", "2", "--watchers-per-stream", "3", "--put-total",
        "20", "--put-rate", "2000", "--prevkv",
    )  # fmt: skip
    latency = report["latency"]
    assert latency["put"]["count"] == 20
    assert latency["event"]["count"] == latency["event-after-answer"]["count"] == 120
    assert latency["event-after-answer"]["max_ms"] <= latency["event"]["max_ms"]
    assert latency["event"]["min_ms"] > 0


def test_watch_get(etcd):
    report = report_of("watch-get", "--endpoints", etcd.endpoint, "--watchers", "60", "--streams", "2", "--events", "3")
    assert report["watch"]["events"] == 180 and report["errors"] == {}
    assert report["requests"] > 0 and report["latency"]["get"]["count"] == report["requests"]


def leases(etcd) -> dict[int, int]:
    with etcd.client() as one:
        stub = Client(one.channel).Lease
        ids = [status.ID for status in stub.LeaseLeases(message("LeaseLeasesRequest")).leases]
        return {i: stub.LeaseTimeToLive(message("LeaseTimeToLiveRequest", ID=i)).grantedTTL for i in ids}


def message(name: str, **fields):
    from etcdfast.api import rpcs

    return rpcs.message_class(f"etcdserverpb.{name}")(**fields)


@pytest.mark.parametrize("more", [(), ("--one-stream",), ("--processes", "2")])
def test_lease_keepalive(etcd, more):
    before = leases(etcd)
    report = report_of(
        "lease-keepalive", "--endpoints", etcd.endpoint, "--conns", "2", "--clients", "5", "--total", "200", "--ttl",
        "77", *more,
    )  # fmt: skip
    assert (report["requests"], report["errors"]) == (200, {})
    assert sorted(leases(etcd).values()) == sorted([*before.values(), *[77] * 5])


def test_lease_grant_with_keys_that_end_together(etcd, client):
    before = leases(etcd)
    report = report_of(
        "lease-grant", "--endpoints", etcd.endpoint, "--clients", "4", "--total", "30", "--ttl", "60", "--attach-keys",
        "--expire-together", "--prefix", "together/",
    )  # fmt: skip
    made = {i: ttl for i, ttl in leases(etcd).items() if i not in before}
    assert report["requests"] == report["attached"]["requests"] == len(made) == 30
    assert set(made.values()) <= {59, 60}
    keys = client.get(b"together/", b"together0").kvs
    assert len(keys) == 30 and {kv.lease for kv in keys} == set(made)


@pytest.mark.parametrize(
    ("isolation", "locker"),
    [("c", "stm"), ("r", "stm"), ("s", "stm"), ("ss", "stm"), ("r", "lock-client"), ("s", "lock-rpc")],
)
def test_stm(etcd, client, isolation, locker):
    """Each transaction writes, so it makes one revision, and two more for its lock; conflicts make none."""
    before = client.get(b"x").header.revision
    report = report_of(
        "stm", "--endpoints", etcd.endpoint, "--conns", "2", "--clients", "6", "--total", "40", "--isolation",
        isolation, "--stm-locker", locker, "--keys", "5", "--keys-per-txn", "3", "--txn-wr-percent", "67",
    )  # fmt: skip
    assert (report["requests"], report["errors"]) == (40, {})
    assert client.get(b"x").header.revision - before == (40 if locker == "stm" else 120)
    assert client.get(b"stmlock/", b"stmlock0", count_only=True).count == 0


def test_stm_with_etcds_defaults_reads_only(etcd, client):
    before = client.get(b"x").header.revision
    report = report_of("stm", "--endpoints", etcd.endpoint, "--total", "20")
    assert report["requests"] == 20
    assert client.get(b"x").header.revision == before


def test_a_transaction_that_fails_gives_its_lock_back(etcd, client):
    # beyond the 128 operations a server takes
    done = bench(
        "stm", "--endpoints", etcd.endpoint, "--clients", "3", "--total", "6", "--keys", "200", "--keys-per-txn", "200",
        "--txn-wr-percent", "100", "--stm-locker", "lock-client",
    )  # fmt: skip
    assert done.returncode == 1
    assert "[6]\tetcdserver: too many operations in txn request" in done.stdout
    assert client.get(b"stmlock/", b"stmlock0", count_only=True).count == 0


# ---- against a server that plays its part wrongly -----------------------------------------------


def watch_response(watch_id: int = 0, revision: int = 9, events: list[int] = (), **fields: int | bytes) -> bytes:
    """A framed WatchResponse; `events` are mod_revisions."""
    numbers = {"created": 3, "canceled": 4, "compact_revision": 5, "cancel_reason": 6, "fragment": 7}
    body = bytes_field(1, int_field(3, revision)) + int_field(2, watch_id)
    for name, value in fields.items():
        make = bytes_field if isinstance(value, bytes) else int_field
        body += make(numbers[name], value)
    for mod_revision in events:
        value = bytes_field(1, b"key") + int_field(2, 1) + int_field(3, mod_revision) + bytes_field(5, b"v" * 20)
        body += bytes_field(11, bytes_field(2, value))
    return framed(body)


def data(stream_id: int, *messages: bytes) -> bytes:
    return b"".join(frame(DATA, 0, stream_id, one) for one in messages)


def watch_scripted(*messages: bytes, events: int, piece: int = 0) -> tuple[Result, ScriptedServer]:
    """One watcher; the server says it is made, then the messages."""

    def script(connection, stream_id, n):
        head = frame(HEADERS, END_HEADERS, stream_id, STATUS_200)
        connection.send(head + data(stream_id, watch_response(created=1), *messages), piece)

    work = coordination.watch(
        streams=1, watchers_each=1, watched_keys=1, puts=0, key_size=8, key_space=1, sequential=True, prefix=b"p",
        whole_prefix=False, val_size=8, start_revision=0, prev_kv=False, events=events, hold=False,
        timeout_seconds=0.3, seed=1,
    )  # fmt: skip
    with ScriptedServer(script, early=True) as server:
        result = run(work, parse_endpoints(server.endpoint), Load(conns=1, clients=0, total=0, dial_timeout_seconds=5))
    assert server.violations == []
    return result


ORDER = "rpc error: code = Internal desc = an event came again, or out of order"


@pytest.mark.parametrize(
    ("messages", "errors"),
    [
        ([watch_response(events=[2, 3]), watch_response(events=[4])], {}),
        ([watch_response(events=[2, 2, 2]), watch_response(events=[3, 3])], {}),
        ([watch_response(events=[3, 2])], {ORDER: 1}),
        ([watch_response(events=[2]), watch_response(events=[2])], {ORDER: 1}),
        ([watch_response(events=[2], fragment=1), watch_response(events=[2, 3])], {}),
        ([watch_response(events=[2], fragment=1), watch_response(events=[2]), watch_response(events=[2])], {ORDER: 1}),
        (
            [watch_response(events=[10])],
            {"rpc error: code = Internal desc = a response brought an event newer than its own revision": 1},
        ),
        (
            [watch_response(canceled=1, cancel_reason=b"tired")],
            {"rpc error: code = Canceled desc = watcher canceled: tired": 1},
        ),
        ([watch_response(watch_id=1, events=[2])], {"rpc error: code = Unavailable desc = error reading from server: "
                                                     "an answer that cannot be read": 1}),
        ([framed(b"\x5a\x05\x01")], {"rpc error: code = Unavailable desc = error reading from server: "
                                     "an answer that cannot be read": 1}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("piece", [0, 1])
def test_the_order_of_events_is_checked(messages, errors, piece):
    result = watch_scripted(*messages, events=sum(one.count(b"key") for one in messages) or 1, piece=piece)
    assert result.errors == errors
    if not errors:
        assert result.watch.events == sum(one.count(b"key") for one in messages)


def test_a_watch_stream_that_ends_ends_the_run():
    def script(connection, stream_id, n):
        head = frame(HEADERS, END_HEADERS, stream_id, STATUS_200) + data(stream_id, watch_response(created=1))
        connection.send(head + frame(HEADERS, END_HEADERS | END_STREAM, stream_id, OK_TRAILERS))

    work = coordination.watch_latency(
        streams=1, watchers_each=2, puts=10, key_size=8, val_size=8, prev_kv=False, timeout_seconds=20
    )
    begin = time.monotonic()
    with ScriptedServer(script, early=True) as server:
        result = run(work, parse_endpoints(server.endpoint), Load(conns=1, clients=1, total=10, dial_timeout_seconds=5))
    assert result.errors["rpc error: code = Unavailable desc = the server ended a stream that was to stay open"] == 1
    assert result.watch.made == 1 and time.monotonic() - begin < 15
    # a stream that the server ends is open on our side until we say so
    assert server.violations == []


def renewal(ttl: int) -> bytes:
    return framed(int_field(2, LEASE_IDS) + int_field(3, ttl))


@pytest.mark.parametrize("one_stream", [False, True])
def test_renewals_of_a_dead_lease_are_errors(one_stream):
    paths = set()

    def script(connection, stream_id, n):
        if stream_id in connection.headers:
            paths.add(dict(connection.headers[stream_id])[":path"])
        head = frame(HEADERS, END_HEADERS, stream_id, STATUS_200) + data(stream_id, renewal(0))
        connection.send(
            head + (b"" if one_stream else frame(HEADERS, END_HEADERS | END_STREAM, stream_id, OK_TRAILERS))
        )

    work = coordination.lease_keepalive(LEASE_IDS, one_stream)
    with ScriptedServer(script, early=one_stream) as server:
        total = 1 if one_stream else 6
        result = run(work, parse_endpoints(server.endpoint), Load(conns=1, clients=1, total=total))
    assert result.count == 0
    assert result.errors == {"etcdserver: requested lease not found": total}


def test_requests_of_two_methods_share_a_connection():
    """Each path enters the table once; the model's HPACK decoder sees through every reference."""
    seen = []

    def script(connection, stream_id, n):
        fields = dict(connection.headers[stream_id])
        seen.append((fields[":path"], fields["te"], fields["user-agent"]))
        head = frame(HEADERS, END_HEADERS, stream_id, STATUS_200)
        if fields[":path"].endswith("Watch"):
            connection.send(head + data(stream_id, watch_response(created=1)))
        else:
            connection.send(head + data(stream_id, framed(b"")) + frame(HEADERS, 5, stream_id, OK_TRAILERS))
            for watched in (1, 3):
                if watched in connection.stream_window:
                    connection.send(data(watched, watch_response(revision=2 + len(seen), events=[2 + len(seen)])))

    work = coordination.watch(
        streams=2, watchers_each=1, watched_keys=1, puts=4, key_size=8, key_space=1, sequential=True, prefix=b"p",
        whole_prefix=False, val_size=8, start_revision=0, prev_kv=False, events=0, hold=False, timeout_seconds=5,
        seed=1,
    )  # fmt: skip
    with ScriptedServer(script, early=True) as server:
        result = run(work, parse_endpoints(server.endpoint), Load(conns=1, clients=1, total=4))
    assert (result.errors, server.violations, result.watch.events) == ({}, [], 8)
    rest = ("trailers", "etcdfast-bench")
    assert seen == [("/etcdserverpb.Watch/Watch", *rest)] * 2 + [("/etcdserverpb.KV/Put", *rest)] * 4


def test_help_of_the_tool_names_the_commands():
    assert all(re.search(rf"^    {name} ", bench("--help").stdout, re.M) for name in ("watch", "lease-keepalive"))
