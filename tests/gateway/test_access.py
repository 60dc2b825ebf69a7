"""Who may ask: CORS, host whitelist, the switch, and what health tells; against real etcd with the same flags."""

from __future__ import annotations

import pytest

from tests.gateway.conftest import Pair
from tests.gateway.web import Web, b64, exchange_raw
from tests.harness import EtcdfastServer, EtcdServer, started_pair

FLAGS = ["--cors", "http://one:80,http://two:81", "--host-whitelist", "localhost,127.0.0.1,example.org"]


@pytest.fixture(scope="module")
def limited():
    with (
        started_pair(EtcdServer(flags=FLAGS), EtcdfastServer(flags=FLAGS)) as (left, right),
        Web(left) as one,
        Web(right) as other,
    ):
        yield Pair(one, other)


@pytest.mark.parametrize("origin", ["http://one:80", "http://two:81", "http://three:1", "http://one", "", None])
@pytest.mark.parametrize("method", ["OPTIONS", "POST"])
def test_origins(limited, origin, method):
    headers = {} if origin is None else {"Origin": origin}
    limited.alike(method, "/v3/kv/range", {"key": b64("a")}, headers)
    limited.alike("GET" if method == "POST" else method, "/health", None, headers)


@pytest.mark.parametrize("host", ["example.org", "example.org:99", "localhost", "[::1]:2379", "evil.example", "x"])
def test_hosts(limited, host):
    for path in ("/v3/kv/range", "/health", "/nothing"):
        left, right = (exchange_raw(web, _ask(path, host)) for web in (limited.left, limited.right))
        assert right.split(b"\r\n")[0] == left.split(b"\r\n")[0]
        if b" 421 " in right:
            assert host.strip("[").split(":")[0].encode() in right and b"--host-whitelist" in right


def _ask(path, host):
    return f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode()


def test_gateway_switched_off():
    flags = ["--enable-grpc-gateway=false"]
    servers = EtcdServer(flags=flags), EtcdfastServer(flags=flags)
    with started_pair(*servers) as (left, right), Web(left) as one, Web(right) as other:
        pair = Pair(one, other)
        pair.alike("POST", "/v3/kv/range", {"key": b64("a")})
        pair.alike("GET", "/health")


def test_health(pair):
    pair.alike("GET", "/health")
    pair.alike("GET", "/health?exclude=NOSPACE&serializable=true")
    pair.alike("POST", "/health", "{}")
    pair.alike("POST", "/version", "{}")
    for web in (pair.left, pair.right):
        web.post("/v3/maintenance/alarm", {"action": "ACTIVATE", "alarm": "NOSPACE"})
    pair.alike("GET", "/health")
    pair.alike("GET", "/health?exclude=NOSPACE")
    pair.alike("GET", "/health?exclude=")
    pair.post("kv/put", {"key": b64("full")})
    for web in (pair.left, pair.right):
        web.post("/v3/maintenance/alarm", {"action": "DEACTIVATE", "alarm": "NOSPACE"})
    pair.alike("GET", "/health")


def test_live_and_ready(web):
    assert web.get("/livez").body == web.get("/readyz").body == b"ok\n"
    assert web.get("/livez?verbose").body == b"[+]serializable_read ok\nok\n"
    names = ("data_corruption", "serializable_read", "linearizable_read", "non_learner")
    assert web.get("/readyz?verbose").body == "".join(f"[+]{name} ok\n" for name in names).encode() + b"ok\n"
    assert web.get("/readyz?verbose=&exclude=linearizable_read").body.count(b"[+]") == 3
    for name in names:
        assert web.get(f"/readyz/{name}").body == b"ok\n"
    assert web.get("/livez/serializable_read").status == 200
    assert web.get("/livez/nothing").status == 404
    assert web.ask("POST", "/livez").status == 405
    web.post("/v3/maintenance/alarm", {"action": "ACTIVATE", "alarm": "CORRUPT"})
    failed = web.get("/readyz")
    assert (failed.status, failed.body.split(b"\n")[0]) == (503, b"[-]data_corruption failed: alarm activated: CORRUPT")
    assert web.get("/readyz?exclude=data_corruption").status == 200
    assert web.get("/livez").status == 200
    web.post("/v3/maintenance/alarm", {"action": "DEACTIVATE", "alarm": "CORRUPT"})


def test_version(web):
    assert web.get("/version").json == {"etcdserver": "3.7.1", "etcdcluster": "3.7.0", "storage": "3.7.0"}


def test_timeouts_of_the_client(pair):
    request = {"name": b64("held"), "lease": "0"}
    pair.post("lock/lock", request, normal=lambda value: sorted(value))
    pair.alike("POST", "/v3/lock/lock", request, {"Grpc-Timeout": "200m"})
    pair.alike("POST", "/v3/kv/range", {"key": b64("a")}, {"Grpc-Timeout": "soon"})


def test_a_metadata_header(pair):
    pair.alike("POST", "/v3/kv/range", {"key": b64("a")}, {"Grpc-Metadata-hasleader": "true", "Grpc-Metadata-x": "y"})
