"""The process: readiness, draining at SIGTERM, the supervisor's end, HTTP/1.1, memory."""

import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request

import pytest

from etcdfast._ext.ring import APPLY_WORDS, CONSENSUS_WORDS
from etcdfast.version import SERVER_VERSION
from tests.frontend.member import Frontend, impatient, unary
from tests.frontend.rawh2 import GOAWAY, Client, frame
from tests.harness.wait import wait_until

PUT = b"\x0a\x01k\x12\x01v"


def get(frontend, path):
    """(status, content type, body) of a GET over HTTP/1.1."""
    try:
        with urllib.request.urlopen(f"http://{frontend.address}{path}", timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.status, answer.headers["Content-Type"], answer.read()


def test_sigterm_lets_calls_under_way_end_and_takes_no_connection_more():
    held = []

    def answer(record, member):
        held.append(record)
        return []

    with Frontend(answer=answer) as frontend, Client(frontend.port) as client:
        stream, data = client.call(PUT)
        client.send(data)
        wait_until(lambda: held, "the request")
        frontend.terminate()
        while client.read_frame()[0] != GOAWAY:
            pass
        assert client.goaway() == (0, "")
        frontend.push(held[0], "REPLY", b"done")
        headers, body = client.answer(stream)
        assert (headers["grpc-status"], body[5:]) == ("0", b"done")
        client.read_to_end()
        assert frontend.process.wait(10) == 0


def test_sigterm_does_not_wait_for_ever():
    silent = Frontend(answer=lambda record, member: [], prelude=impatient("drain_seconds"))
    with silent as frontend, Client(frontend.port) as client:
        client.send(client.call(PUT)[1])
        wait_until(lambda: frontend.seen, "the request")
        frontend.terminate()
        assert frontend.process.wait(20) == 0


def test_an_idle_frontend_stops_at_once():
    with Frontend() as frontend, Client(frontend.port) as client:
        while client.read_frame()[0] != 4:
            pass
        frontend.terminate()
        assert client.read_to_end() == (0, "")
        assert frontend.process.wait(10) == 0


def test_the_supervisors_end_ends_the_process():
    with Frontend() as frontend:
        life, frontend.life_write = frontend.life_write, os.open("/dev/null", os.O_WRONLY)
        os.close(life)
        assert frontend.process.wait(10) != 0


def test_health_and_version_over_http1(frontend):
    assert get(frontend, "/health") == (200, "text/plain; charset=utf-8", b'{"health":"true","reason":""}')
    status, kind, body = get(frontend, "/version")
    assert (status, kind) == (200, "application/json")
    assert json.loads(body) == {"etcdserver": SERVER_VERSION, "etcdcluster": "not_decided"}
    frontend.consensus[CONSENSUS_WORDS["cluster_version"]] = 3 << 32 | 7 << 16
    assert json.loads(get(frontend, "/version")[2]) == {
        "etcdserver": SERVER_VERSION,
        "etcdcluster": "3.7.0",
        "storage": "3.7.0",
    }
    assert get(frontend, "/nothing")[0] == 404


def test_health_tells_alarms_and_a_missing_leader():
    with Frontend() as frontend:
        frontend.apply[APPLY_WORDS["alarms"]] = 1
        assert get(frontend, "/health")[::2] == (503, b'{"health":"false","reason":"ALARM NOSPACE"}\n')
        assert get(frontend, "/health?exclude=NOSPACE")[0] == 200
        frontend.consensus[CONSENSUS_WORDS["leader"]] = 0
        assert get(frontend, "/health?exclude=NOSPACE")[::2] == (503, b'{"health":"false","reason":"RAFT NO LEADER"}\n')


@pytest.mark.parametrize("first", [b"\0", b"GET / HTTP/1.1\r\n", b"P", b"PRX" * 3000, b"GET " + b"x" * 20000])
def test_what_is_neither_protocol_is_closed_and_harms_nobody(frontend, bystander, first):
    with socket.create_connection(("127.0.0.1", frontend.port), timeout=10) as connection:
        connection.sendall(first)
        connection.shutdown(socket.SHUT_WR)
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            pass


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_with_prior_knowledge(frontend, tmp_path):
    body = tmp_path / "body"
    body.write_bytes(b"\0\0\0\0" + bytes([len(PUT)]) + PUT)
    done = subprocess.run(
        [
            "curl",
            "-sS",
            "--http2-prior-knowledge",
            "-i",
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
            "--data-binary",
            f"@{body}",
            f"http://{frontend.address}/etcdserverpb.KV/Put",
        ],
        capture_output=True,
        timeout=20,
        check=True,
    )
    assert done.stdout.startswith(b"HTTP/2 200")
    assert body.read_bytes() in done.stdout
    assert b"grpc-status: 0" in done.stdout


def test_many_connections_come_and_go(frontend, bystander):
    for _ in range(20):
        clients = [Client(frontend.port) for _ in range(50)]
        for client in clients:
            client.send(client.call(PUT)[1])
        for client in clients[::2]:
            assert client.answer(1)[0]["grpc-status"] == "0"
        for client in clients:
            client.socket.close()


def test_the_process_is_small(frontend):
    with frontend.channel() as channel:
        unary(channel, "Put")(PUT, timeout=10)
    with open(f"/proc/{frontend.process.pid}/status") as status:
        resident = next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
    assert resident < 30 * 1024


def test_a_connection_that_does_not_answer_pings_is_closed():
    with (
        Frontend(grpc_keepalive_interval=1.0, grpc_keepalive_timeout=1.0) as frontend,
        Client(frontend.port) as silent,
        Client(frontend.port) as alive,
    ):
        pings = 0
        while pings < 3:
            kind, flags, _, payload = alive.read_frame()
            if kind == 6 and not flags & 1:
                pings += 1
                alive.send(frame(6, 1, 0, payload))
        silent.read_to_end()
        assert (6, 0) in [f[:2] for f in silent.frames]
        stream, data = alive.call(PUT)
        alive.send(data)
        assert alive.answer(stream)[0]["grpc-status"] == "0"
