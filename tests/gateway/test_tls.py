"""The same by TLS, and what each kind of listener serves."""

from __future__ import annotations

import http.client
import json
import shutil
import ssl
import subprocess

import pytest

from tests.gateway.web import Answer, Web, b64
from tests.harness import EtcdfastServer, EtcdServer, started_pair
from tests.harness.certs import Authority
from tests.harness.ports import free_port


class Listeners:
    """Certificates, and servers that listen plain and by TLS."""

    def __init__(self, directory):
        self.ca = Authority(directory)
        self.server = self.ca.issue("server", hosts=["127.0.0.1"])
        self.named = self.ca.issue("alice", server=False)

    def make(self, kind, directory, *flags):
        server = kind(directory, port=free_port())
        server.tls_port, server.metrics_port = free_port(), free_port()
        server.flags = [
            "--listen-client-urls", f"{server.url},https://127.0.0.1:{server.tls_port}",
            "--listen-metrics-urls", f"http://127.0.0.1:{server.metrics_port}",
            "--cert-file", str(self.server.cert_path),
            "--key-file", str(self.server.key_path),
            "--trusted-ca-file", str(self.ca.ca_path),
            "--client-cert-auth",
            *flags,
        ]  # fmt: skip
        return server

    def ask(self, port, method, path, body=None):
        context = ssl.create_default_context(cafile=self.ca.ca_path)
        context.load_cert_chain(self.named.cert_path, self.named.key_path)
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
        connection.request(method, path, json.dumps(body) if body is not None else None)
        with connection.getresponse() as answer:
            found = {name.lower(): value for name, value in answer.getheaders()}
            read = Answer(answer.status, found, answer.read())
        connection.close()
        return read


@pytest.fixture(scope="module")
def listeners(tmp_path_factory):
    return Listeners(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="module")
def pair(listeners, tmp_path_factory):
    made = [listeners.make(kind, tmp_path_factory.mktemp(kind.kind)) for kind in (EtcdServer, EtcdfastServer)]
    with started_pair(*made) as both:
        yield both


def alike(listeners, pair, method, path, body=None):
    left, right = (listeners.ask(server.tls_port, method, path, body) for server in pair)
    assert (right.status, right.value, right.compared) == (left.status, left.value, left.compared)
    return right


def test_requests_by_tls(listeners, pair):
    assert alike(listeners, pair, "POST", "/v3/kv/put", {"key": b64("k"), "value": b64(b"v" * 300_000)}).status == 200
    assert alike(listeners, pair, "POST", "/v3/kv/range", {"key": b64("k")}).json["count"] == "1"
    alike(listeners, pair, "GET", "/health")
    alike(listeners, pair, "GET", "/nothing")


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_by_tls(listeners, pair, version):
    """A Prometheus or a curl speaks HTTP/2 as soon as there is TLS."""
    certs = ["--cacert", str(listeners.ca.ca_path)]
    certs += ["--cert", str(listeners.named.cert_path), "--key", str(listeners.named.key_path)]
    for server in pair:
        url = f"https://127.0.0.1:{server.tls_port}"
        shown = []
        for more in ([f"{url}/health"], [f"{url}/v3/kv/range", "-d", json.dumps({"key": b64("curl")})]):
            command = ["curl", "-sS", "-m", "10", version, *certs, "-w", "%{http_version} %{http_code}", *more]
            shown.append(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        wanted = "1.1" if version == "--http1.1" else "2"
        assert [text[-len(wanted) - 4 :] for text in shown] == [f"{wanted} 200"] * 2


def test_a_metrics_listener_has_health_and_nothing_else(pair):
    class Metrics:
        host = "127.0.0.1"

    for server in pair:
        Metrics.port = server.metrics_port
        with Web(Metrics) as web:
            assert web.get("/health").value == {"health": "true", "reason": ""}
            assert "access-control-allow-origin" not in web.get("/health").headers
            assert web.post("/v3/kv/range", {"key": b64("k")}).status == 404
            assert web.get("/version").status == 404


def test_the_name_in_a_certificate_is_no_user_here(listeners, pair):
    """G20: with auth on, a request with a certificate that names somebody is refused; last, for auth stays on."""
    for server in pair:
        with Web(server) as web:
            for path, body in (
                ("user/add", {"name": "root", "password": "pw"}),
                ("role/add", {"name": "root"}),
                ("user/grant", {"user": "root", "role": "root"}),
            ):
                answer = web.post(f"/v3/auth/{path}", body)
                assert answer.status == 200, answer.body
            assert web.post("/v3/auth/enable", {}).status == 200
    assert alike(listeners, pair, "POST", "/v3/kv/range", {"key": b64("k")}).status == 400
    assert alike(listeners, pair, "GET", "/health").status == 200


def test_http_by_itself(tmp_path):
    """--listen-client-http-urls: gRPC on one, all else on the other."""
    port = free_port()
    flags = ["--listen-client-http-urls", f"http://127.0.0.1:{port}"]
    with EtcdfastServer(tmp_path, flags=flags) as server, Web(server) as web:
        try:
            answer = web.get("/health")
        except (http.client.HTTPException, OSError):
            answer = None
        assert answer is None

        class Http:
            host = "127.0.0.1"

        Http.port = port
        with Web(Http) as other:
            assert other.get("/health").status == 200
            assert other.post("/v3/kv/range", {"key": b64("k")}).status == 200
