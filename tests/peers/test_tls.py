"""TLS between peer threads: whose address a certificate is, handshakes that do not end, TLS and none."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import time
from types import SimpleNamespace

import pytest

from etcdfast.consensus.peers import PeerTls, tls
from etcdfast.consensus.peers.addresses import WrongAddress, check_address
from tests.harness.certs import Authority
from tests.harness.wait import wait_until
from tests.peers.fakemember import FakeMember, listener, view_of
from tests.peers.rawhttp import exchange

A, B, CLUSTER = 0xA, 0xB, 0xC1
KINDS = (0, 1)


# ---- addresses --------------------------------------------------------------------------------------


class Lookup:
    """The world's names."""

    @staticmethod
    async def names(host):
        found = {"10.0.0.1": ["one.example.com."], "10.0.0.2": ["two.example.com", "other.org"]}
        if host not in found:
            raise OSError("no such host")
        return found[host]

    @staticmethod
    async def hosts(name):
        found = {"forward.org": ["10.0.0.3"], "one.example.com": ["10.0.0.1"], "six.org": ["fd00::6"]}
        if name not in found:
            raise OSError(f"lookup {name}: no such host")
        return found[name]


@pytest.mark.parametrize(
    "host, ips, names, wrong",
    [
        ("10.0.0.9", [], [], None),
        ("10.0.0.9", ["10.0.0.8", "10.0.0.9"], [], None),
        ("::ffff:10.0.0.9", ["10.0.0.9"], [], None),
        ("fd00::9", ["fd00:0::9"], [], None),
        (
            "10.0.0.9",
            ["10.0.0.8", "10.0.0.7"],
            [],
            "x509: certificate is valid for 10.0.0.8, 10.0.0.7, not 10.0.0.9",
        ),
        ("10.0.0.1", ["10.0.0.8"], ["one.example.com"], None),
        ("10.0.0.1", [], ["*.example.com"], None),
        ("10.0.0.2", [], ["*.example.com"], None),
        ("10.0.0.2", [], ["*.org"], None),
        ("10.0.0.2", [], ["*.net", "two"], 'tls: "10.0.0.2" does not match any of DNSNames ["*.net" "two"]'),
        ("10.0.0.3", [], ["forward.org"], None),
        ("fd00::6", [], ["six.org"], None),
        ("10.0.0.3", [], ["*.org"], 'tls: "10.0.0.3" does not match any of DNSNames ["*.org"] (no such host)'),
        ("10.0.0.4", [], ["forward.org"], 'tls: "10.0.0.4" does not match any of DNSNames ["forward.org"]'),
        ("10.0.0.4", ["10.0.0.5"], ["gone.org"], "lookup gone.org: no such host)"),
    ],
)
def test_whose_address_it_is(host, ips, names, wrong):
    if wrong is None:
        asyncio.run(check_address(host, ips, names, Lookup))
        return
    with pytest.raises(WrongAddress) as told:
        asyncio.run(check_address(host, ips, names, Lookup))
    assert wrong in str(told.value)


# ---- members ----------------------------------------------------------------------------------------


def configured(directory, **changes):
    """Settings of a member whose certificate is in the directory."""
    authority = Authority(directory)
    cert = authority.issue("member", hosts=["127.0.0.1"])
    fields = {
        "data_dir": str(directory),
        "listen_peer_urls": ("https://127.0.0.1:1",),
        "peer_cert_file": str(cert.cert_path),
        "peer_key_file": str(cert.key_path),
        "peer_client_cert_file": "",
        "peer_client_key_file": "",
        "peer_client_cert_auth": True,
        "peer_trusted_ca_file": str(authority.ca_path),
        "peer_auto_tls": False,
        "peer_crl_file": "",
        "peer_cert_allowed_cn": (),
        "peer_cert_allowed_hostname": (),
        "peer_skip_client_san_verification": False,
        "tls_min_version": "TLS1.2",
        "tls_max_version": "",
        "cipher_suites": (),
        **changes,
    }
    return SimpleNamespace(**fields)


class Two:
    """Members A and B; B's main loop runs in a thread."""

    def __init__(self, directory, a_tls, b_tls, b_scheme="https", **settings):
        (a_socket, a_url), (b_socket, b_url) = listener(), listener()
        self.b_port = int(b_url.rpartition(":")[2])
        urls = {
            A: a_url.replace("http:", "https:") if a_tls else a_url,
            B: b_url.replace("http", b_scheme, 1),
        }
        self.a = FakeMember(directory / "a", a_socket, view_of(A, CLUSTER, urls), a_tls)
        self.b = FakeMember(directory / "b", b_socket, view_of(B, CLUSTER, urls), b_tls, **settings)
        self._stopping = False
        self._thread = threading.Thread(target=self._main)

    def _main(self):
        while not self._stopping:
            self.b.turn(0.02)

    def __enter__(self):
        self.a.start()
        self.b.start()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopping = True
        self._thread.join()
        self.a.close()
        self.b.close()


def test_streams_posts_and_snapshots(tmp_path):
    config = configured(tmp_path / "certs")
    with Two(tmp_path, PeerTls(config), PeerTls(config)) as two:
        a, b = two.a, two.b
        a.run_until(lambda: a.streams(B) == 4, "all streams")
        # Larger than what the sockets and TLS hold together, both ways at once.
        for n in range(40):
            assert a.link(B).put_plain(8, B, A, term=1, context=bytes([n]) * 300_000) == 0
            a.turn(0.01)
        a.run_until(lambda: len([m for m in b.got if m.frm == A and m.type == 8]) == 40, "every message")
        assert [m.context[:1] for m in b.got if m.type == 8] == [bytes([n]) for n in range(40)]
        asked = []
        a.thread.ask(B, "GET", "/version", b"", lambda *answer: asked.append(answer))
        a.run_until(lambda: asked, "an answer")
        assert asked[0][0] == 200


def test_a_handshake_must_end(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.2)
    config = configured(tmp_path / "certs")
    with Two(tmp_path, PeerTls(config), PeerTls(config)) as two:
        for hello in (b"", b"\x16\x03\x01\x02\x00\x01"):
            started = time.monotonic()
            with socket.create_connection(("127.0.0.1", two.b_port), 10) as connected:
                connected.sendall(hello)
                assert connected.recv(10) == b""
            assert time.monotonic() - started >= 0.2
        two.a.run_until(lambda: two.a.streams(B) == 4, "streams meanwhile")
    assert "".join(capfd.readouterr()).count("TLS handshake: timed out") == 2


def test_those_who_hang_make_room(tmp_path):
    """More of them than connections are allowed: members still come in."""
    config = configured(tmp_path / "certs")
    hanging = []
    with Two(tmp_path, PeerTls(config), PeerTls(config), connections_max=8) as two:
        try:
            for _ in range(30):
                hanging.append(socket.create_connection(("127.0.0.1", two.b_port), 10))
            two.a.run_until(lambda: two.a.streams(B) == 4, "streams")
        finally:
            for connected in hanging:
                connected.close()


def test_many_and_broken_handshakes_leave_no_descriptor(tmp_path):
    config = configured(tmp_path / "certs")
    with Two(tmp_path, PeerTls(config), PeerTls(config)) as two:
        two.a.run_until(lambda: two.a.streams(B) == 4, "streams")
        before = len(os.listdir("/proc/self/fd"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for n in range(60):
            try:
                with socket.create_connection(("127.0.0.1", two.b_port), 10) as raw:
                    if n % 2:
                        raw.sendall(os.urandom(50))
                        raw.recv(100)
                    else:
                        with context.wrap_socket(raw) as secure:  # without a certificate
                            secure.recv(100)
            except OSError:
                pass
        # Each kind of handshake came 30 times. Both members are in this process, and may have begun to probe each other
        # since, over connections that stay.
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 20, "descriptors back")


def test_tls_and_none_do_not_meet(tmp_path, capfd):
    """A member whose URLs say https listens without TLS: its peers say why, and nothing else happens."""
    config = configured(tmp_path / "certs")
    with Two(tmp_path, PeerTls(config), None) as two:
        said = ""

        def told():
            nonlocal said
            said += "".join(capfd.readouterr())
            return "cannot dial a peer's stream" in said and "wrong version number" in said

        two.a.run_until(told, "the reason")
        assert two.a.streams(B) == 0
        assert exchange(two.b_port, b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200")
