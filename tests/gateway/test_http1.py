"""HTTP/1.1 as such: bytes cut anywhere, pipelines, lies about lengths, what never ends."""

from __future__ import annotations

import json
import random
import shutil
import subprocess

import pytest

from tests.gateway.web import b64, exchange_raw

GET = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def post(path, body, *headers):
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % (path, len(body))
    return head + b"".join(h + b"\r\n" for h in headers) + b"\r\n" + body


def statuses(data):
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


def test_cut_at_every_byte(web):
    text = post(b"/v3/kv/put", b'{"key":"YQ==","value":"Yg=="}') + LAST
    for cut in range(1, len(text) - 1, 7):
        assert statuses(exchange_raw(web, text[:cut], text[cut:])) == [200, 404]


def test_one_byte_at_a_time(web):
    text = post(b"/v3/kv/range", b'{"key":"YQ=="}') + LAST
    assert statuses(exchange_raw(web, *(text[i : i + 1] for i in range(len(text))))) == [200, 404]


def test_a_pipeline_keeps_its_order(web):
    rng = random.Random(7)
    parts, wanted = [], []
    for number in range(60):
        if rng.random() < 0.5:
            key = f"pipe{number}"
            parts.append(post(b"/v3/kv/put", json.dumps({"key": b64(key), "value": b64(key)}).encode()))
            wanted.append(200)
        else:
            parts.append(rng.choice([GET, b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"]))
            wanted.append(200 if parts[-1] is GET else 404)
    text = b"".join(parts)
    cuts = sorted(rng.sample(range(len(text)), 9))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    assert statuses(exchange_raw(web, *pieces, LAST)) == [*wanted, 404]


def test_a_long_pipeline_of_instant_answers(web):
    assert statuses(exchange_raw(web, GET * 3000, LAST)) == [200] * 3000 + [404]


@pytest.mark.parametrize(
    "text",
    [
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\n{}",
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: 2x\r\n\r\n{}",
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, identity\r\n\r\n{}",
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"GET /version HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n",
        b"GET /version HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"GET /version HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
        b"GET /version HTTP/1.1\r\n\r\n",
        b"GET /version HTTP/9.9\r\nHost: x\r\n\r\n",
        b"\0\1\2\3\r\n\r\n",
        b"GARBAGE\r\n\r\n",
    ],
)
def test_smuggling_and_nonsense(web, text):
    """Refused and closed: nothing behind it is ever taken for a request."""
    data = exchange_raw(web, text + GET)
    assert statuses(data) == [400], data
    assert b"etcdserver" not in data


def test_a_header_that_never_ends(web):
    data = exchange_raw(web, b"GET /version HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 200_000)
    assert statuses(data) in ([431], [400], [])


def test_a_body_that_is_too_large(web):
    head = b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n"
    data = exchange_raw(web, head, b"x" * 8_000_000)
    assert statuses(data) in ([413], [])


def test_a_message_that_is_too_large(pair):
    """The limit of gRPC messages, in gRPC's words."""
    for size in (1_500_000, 1_572_864, 2_200_000):
        pair.post("kv/put", {"key": b64("big"), "value": b64(bytes(size))})


def test_expect_continue(web):
    with web.raw() as connection:
        body = b'{"key":"YQ=="}'
        head = post(b"/v3/kv/range", body, b"Expect: 100-continue", b"Connection: close")[: -len(body)]
        connection.sendall(head)
        answer = connection.makefile("rb")
        assert answer.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert answer.readline() == b"\r\n"
        connection.sendall(body)
        assert answer.readline().startswith(b"HTTP/1.1 200 ")


def test_http_1_0(web):
    data = exchange_raw(web, b"GET /version HTTP/1.0\r\n\r\n")
    assert statuses(data) == [200]
    ask = b"GET /version HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    data = exchange_raw(web, ask, b"GET /nothing HTTP/1.0\r\n\r\n")
    assert statuses(data) == [200, 404]


def test_absolute_targets_and_queries(web):
    ask = b"GET http://somewhere/version?a=b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert statuses(exchange_raw(web, ask)) == [200]


def test_head_has_no_body(web):
    data = exchange_raw(web, b"HEAD /version HTTP/1.1\r\nHost: x\r\n\r\n", LAST)
    assert statuses(data) == [405, 404]


def test_upgrade_to_http2_is_not_taken(web):
    ask = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    data = exchange_raw(web, ask + b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
    assert statuses(data) == [200]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("version", ["--http1.1", "--http2", "--http2-prior-knowledge"])
def test_curl(web, version):
    url = f"http://{web.host}:{web.port}"

    def curl(*arguments, body=""):
        command = ["curl", "-sS", "-m", "10", version, *arguments]
        done = subprocess.run(command, input=body.encode(), capture_output=True, check=True)
        return done.stdout

    put = json.dumps({"key": b64("curl"), "value": b64(b"v" * 100_000)})
    assert b"revision" in curl(f"{url}/v3/kv/put", "--data-binary", "@-", body=put)
    assert json.loads(curl(f"{url}/v3/kv/range", "-d", json.dumps({"key": b64("curl")})))["count"] == "1"
    assert b"etcdserver" in curl(f"{url}/version")
    assert curl("-o", "/dev/null", "-w", "%{http_code}", f"{url}/nothing") == b"404"
    assert curl("-I", f"{url}/version").split()[1] == b"405"
