"""The TLS core on socket pairs: who is taken, what is sent, files that change, and peers that mean no good."""

import contextlib
import datetime
import os
import random
import socket
import ssl

import pytest
from cryptography.hazmat.primitives import serialization

from etcdfast._ext import tlscontext
from etcdfast._ext.tlscontext import TlsContext, TlsError, TlsOptions, TlsSocket, TlsWantRead, TlsWantWrite
from etcdfast.config import kinds
from tests.harness.certs import Authority, bundle, write_whole

H2 = (b"h2", b"http/1.1")


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server(ca):
    return ca.issue("server", hosts=["127.0.0.1", "localhost"], client=False)


@pytest.fixture(scope="module")
def alice(ca):
    return ca.issue("alice", hosts=["a.example", "10.1.1.1"], server=False)


def options(kind, cert=None, **more):
    files = {"cert_file": str(cert.cert_path), "key_file": str(cert.key_path)} if cert else {}
    return TlsOptions(kind=kind, **files, **{name: str(v) if name.endswith("file") else v for name, v in more.items()})


def strict(ca, server, **more):
    return options("server", server, ca_file=ca.ca_path, client_cert_auth=True, alpn=H2, **more)


_opened = []


@pytest.fixture(autouse=True)
def closed_at_the_end():
    yield
    while _opened:
        _opened.pop().close()


def sockets(buffer_bytes=None):
    pair = socket.socketpair()
    _opened.extend(pair)
    for one in pair:
        one.setblocking(False)
        if buffer_bytes:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    return pair


def shake(left, right, steps=200):
    """Step both sides until both are done. Errors: whatever either says."""
    waiting = [left, right]
    for _ in range(steps):
        for one in list(waiting):
            try:
                one.do_handshake()
                waiting.remove(one)
            except BlockingIOError:
                pass
        if not waiting:
            return
    raise AssertionError("the handshake does not end")


def connect(server_context, client_context, name="localhost", buffer_bytes=None):
    left, right = sockets(buffer_bytes)
    pair = (
        TlsSocket(server_context, left, server_side=True),
        TlsSocket(client_context, right, server_name=name),
    )
    shake(*pair)
    return pair


def outcome(server_options, client_options, name="localhost"):
    """(what the server says, what the client says): None for being content."""
    left, right = sockets()
    sides = [
        TlsSocket(TlsContext(server_options), left, server_side=True),
        TlsSocket(TlsContext(client_options), right, server_name=name),
    ]
    said = ["", ""]
    for _ in range(40):
        for i, one in enumerate(sides):
            if said[i]:
                continue
            try:
                one.do_handshake()
                one.recv(1)
                said[i] = "end"
            except BlockingIOError:
                pass
            except TlsError as err:
                said[i] = str(err)
    return tuple(text or None for text in said)


def receive_all(tls):
    got = bytearray()
    try:
        while piece := tls.recv(65536):
            got += piece
    except TlsWantRead:
        pass
    return bytes(got)


def test_both_sides_know_each_other(ca, server, alice):
    left, right = connect(TlsContext(strict(ca, server)), TlsContext(options("client", alice, ca_file=ca.ca_path)))
    assert left.peer_names() == {"cn": "alice", "dns": ["a.example"], "ips": ["10.1.1.1"]}
    assert right.peer_names()["cn"] == "server"
    assert left.peer_certificates()[0] == alice.certificate.public_bytes(serialization.Encoding.DER)
    assert (left.version(), left.cipher()) == ("TLSv1.3", "TLS_AES_128_GCM_SHA256")
    assert left.alpn() == b""  # the client offered nothing
    left.send(b"hello")
    assert receive_all(right) == b"hello"


def test_no_certificate_is_asked_for_without_a_ca(server, ca):
    left, _ = connect(TlsContext(options("server", server)), TlsContext(options("client", ca_file=ca.ca_path)))
    assert left.peer_names() is None and left.peer_certificates() == []


def test_a_ca_alone_asks_for_certificates_and_so_does_the_setting_alone(ca, server, alice):
    """As in etcd; without a CA it is the system's authorities who count."""
    shown, none = options("client", alice, ca_file=ca.ca_path), options("client", ca_file=ca.ca_path)
    assert outcome(options("server", server, ca_file=ca.ca_path), shown) == (None, None)
    assert "didn't provide" in outcome(options("server", server, ca_file=ca.ca_path), none)[0]
    assert "didn't provide" in outcome(options("server", server, client_cert_auth=True), none)[0]
    assert (
        "self-signed certificate in certificate chain"
        in outcome(options("server", server, client_cert_auth=True), shown)[0]
    )


@pytest.mark.parametrize(
    ("offered", "agreed"), [((b"h2",), b"h2"), ((b"http/1.1",), b"http/1.1"), ((b"http/1.1", b"h2"), b"h2"), ((), b"")]
)
def test_protocols(ca, server, alice, offered, agreed):
    left, right = connect(
        TlsContext(strict(ca, server)), TlsContext(options("client", alice, ca_file=ca.ca_path, alpn=offered))
    )
    assert left.alpn() == right.alpn() == agreed


def test_a_client_of_another_protocol_is_refused(ca, server, alice):
    ours, theirs = outcome(strict(ca, server), options("client", alice, ca_file=ca.ca_path, alpn=(b"spdy/3",)))
    assert "no application protocol" in ours and "no application protocol" in theirs


def test_certificates_that_are_not_taken(ca, server, alice, tmp_path):
    other = Authority(tmp_path, "other")
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=5)
    cases = {
        "expired": (ca.issue("expired", expired=True), "certificate has expired"),
        "early": (ca.issue("early", not_before=later), "certificate is not yet valid"),
        "stranger": (other.issue("stranger"), "unable to get local issuer certificate"),
        "server alone": (ca.issue("serves", client=False), "unsuitable certificate purpose"),
        "none": (None, "client didn't provide a certificate"),
    }
    for what, (cert, why) in cases.items():
        for version in ("TLS1.2", "TLS1.3"):
            ours, theirs = outcome(strict(ca, server), options("client", cert, ca_file=ca.ca_path, max_version=version))
            assert why in ours, (what, version)
            assert theirs is not None and "alert" in theirs, (what, version)


def test_revoked_certificates(ca, server, alice):
    bob = ca.issue("bob", server=False)
    for pem in (True, False):
        path = ca.crl([bob], name="revoked", pem=pem)
        wants = strict(ca, server, crl_file=path)
        ours, theirs = outcome(wants, options("client", bob, ca_file=ca.ca_path))
        assert ours == "tls: certificate is revoked" and "revoked" in theirs
        assert outcome(wants, options("client", alice, ca_file=ca.ca_path)) == (None, None)
    # A client looks at the list, too.
    ours, theirs = outcome(
        options("server", server), options("client", ca_file=ca.ca_path, crl_file=ca.crl([server], name="servers"))
    )
    assert theirs == "tls: certificate is revoked"


@pytest.mark.parametrize(
    ("rule", "taken"),
    [
        ({"allowed_hostnames": ("a.example",)}, True),
        ({"allowed_hostnames": ("no.example", "a.example")}, True),
        ({"allowed_hostnames": ("10.1.1.1",)}, True),
        ({"allowed_hostnames": ("alice",)}, False),  # a CN is no host name
        ({"allowed_hostnames": ("b.example",)}, False),
        ({"allowed_cns": ("bob", "alice")}, True),
        ({"allowed_cns": ("Alice",)}, False),
        ({"allowed_cns": ("a.example",)}, False),
    ],
)
def test_names_that_are_allowed(ca, server, alice, rule, taken):
    ours, _ = outcome(strict(ca, server, **rule), options("client", alice, ca_file=ca.ca_path))
    assert ours == (None if taken else "client certificate authentication failed")


@pytest.mark.parametrize(("name", "taken"), [("localhost", 1), ("127.0.0.1", 1), ("other", 0), ("127.0.0.2", 0)])
def test_a_client_knows_whom_it_wants(ca, server, name, taken):
    _, theirs = outcome(options("server", server), options("client", ca_file=ca.ca_path), name)
    assert (theirs is None) == bool(taken)
    assert outcome(options("server", server), options("client", skip_verify=True), name)[1] is None


@pytest.mark.parametrize(
    ("names", "wanted", "taken"),
    [
        (["*.local"], "m1.local", True),
        (["*.local"], "M1.LOCAL.", True),
        (["*.Example.com", "x"], "a.example.com", True),
        (["*.example.com"], "a.b.example.com", False),
        (["*.example.com"], "example.com", False),
        (["a*.example.com"], "ab.example.com", False),
        (["*"], "localhost", False),
        (["local"], "localhost", False),
        (["10.0.0.1"], "10.0.0.1", True),
        ([], "wild", False),  # its CN
    ],
)
def test_host_names_fit_as_in_go(ca, names, wanted, taken):
    cert = ca.issue("wild", hosts=names)
    _, theirs = outcome(options("server", cert), options("client", ca_file=ca.ca_path), wanted)
    assert theirs is None if taken else "hostname mismatch" in theirs.lower() or "ip address" in theirs.lower()
    ours, _ = outcome(
        strict(ca, cert, allowed_hostnames=(wanted,)), options("client", cert, ca_file=ca.ca_path, skip_verify=True)
    )
    assert (ours is None) == taken


def test_the_last_of_several_names_counts(ca, server):
    """As in Go. A name with a NUL in it is none."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    assert server.certificate.subject  # made by the same authority
    cert = ca.issue("twice", server=False)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text) for text in ("first", "last")])
    key = serialization.load_pem_private_key(cert.key_path.read_bytes(), None)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(cert.certificate.not_valid_before_utc)
        .not_valid_after(cert.certificate.not_valid_after_utc)
    )
    made = builder.sign(ca._key, hashes.SHA256())
    write_whole(cert.cert_path, made.public_bytes(serialization.Encoding.PEM))
    left, _ = connect(TlsContext(strict(ca, server)), TlsContext(options("client", cert, ca_file=ca.ca_path)))
    assert left.peer_names()["cn"] == "last"


def test_versions(ca, server):
    def agreed(ours, theirs):
        pair = connect(
            TlsContext(options("server", server, **ours)), TlsContext(options("client", ca_file=ca.ca_path, **theirs))
        )
        return pair[0].version()

    assert agreed({"max_version": "TLS1.2"}, {}) == "TLSv1.2"
    assert agreed({}, {"max_version": "TLS1.2"}) == "TLSv1.2"
    assert agreed({"min_version": "TLS1.3"}, {}) == "TLSv1.3"
    ours, theirs = outcome(
        options("server", server, min_version="TLS1.3"), options("client", ca_file=ca.ca_path, max_version="TLS1.2")
    )
    assert "unsupported protocol" in ours and "protocol version" in theirs


def ssl_client(version=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    if version:
        context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions_are_refused(server, version):
    left, right = sockets()
    ours = TlsSocket(TlsContext(options("server", server)), left, server_side=True)
    with ssl_client(version).wrap_socket(right, do_handshake_on_connect=False) as theirs:
        with pytest.raises(ssl.SSLWantReadError):
            theirs.do_handshake()
        with pytest.raises(TlsError, match="unsupported protocol"):
            ours.do_handshake()
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            theirs.do_handshake()


def test_cipher_suites(ca, server):
    name = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"
    pair = connect(
        TlsContext(options("server", server, ciphers=(name,), max_version="TLS1.2")),
        TlsContext(options("client", ca_file=ca.ca_path)),
    )
    assert pair[0].cipher() == "ECDHE-ECDSA-CHACHA20-POLY1305"
    # RSA suites alone, and a certificate that is none: nothing in common.
    ours, _ = outcome(
        options("server", server, ciphers=("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",), max_version="TLS1.2"),
        options("client", ca_file=ca.ca_path),
    )
    assert "no shared cipher" in ours
    # Suites that OpenSSL has no more leave TLS 1.3.
    pair = connect(
        TlsContext(options("server", server, ciphers=("TLS_RSA_WITH_RC4_128_SHA",))),
        TlsContext(options("client", ca_file=ca.ca_path)),
    )
    assert pair[0].version() == "TLSv1.3"
    with pytest.raises(TlsError, match="unexpected TLS cipher suite"):
        TlsContext(options("server", server, ciphers=("FOO",)))


def test_the_settings_and_openssl_know_the_same_suites():
    assert all(tlscontext.known_cipher(name) for name in kinds.CIPHER_SUITES)


def test_no_session_is_resumed(server):
    context, theirs_context = TlsContext(options("server", server)), ssl_client(ssl.TLSVersion.TLSv1_2)
    session = None
    for _ in range(2):
        left, right = sockets()
        ours = TlsSocket(context, left, server_side=True)
        with theirs_context.wrap_socket(right, do_handshake_on_connect=False, session=session) as theirs:
            waiting = [theirs, ours]
            while waiting:
                for one in list(waiting):
                    try:
                        one.do_handshake()
                        waiting.remove(one)
                    except (BlockingIOError, ssl.SSLWantReadError):
                        pass
            assert not theirs.session_reused
            session = theirs.session
            assert not session.has_ticket and not session.id


# ---- files


def test_files_that_cannot_be_used(ca, server, alice, tmp_path):
    junk, empty = tmp_path / "junk", tmp_path / "empty"
    junk.write_text("junk\n")
    empty.touch()
    cut = tmp_path / "cut"
    cut.write_bytes(server.cert_path.read_bytes()[:200])
    encrypted = tmp_path / "encrypted.key"
    key = serialization.load_pem_private_key(server.key_path.read_bytes(), None)
    for form in (serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL):
        encrypted.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"secret"))
        )
        with pytest.raises(TlsError, match="the private key is encrypted"):
            TlsContext(TlsOptions("server", str(server.cert_path), str(encrypted)))
    with pytest.raises(TlsError, match="private key does not match public key"):
        TlsContext(TlsOptions("server", str(server.cert_path), str(alice.key_path)))
    with pytest.raises(TlsError, match="KeyFile and CertFile must both be present"):
        TlsContext(TlsOptions("server", str(server.cert_path)))
    with pytest.raises(TlsError, match="no such file or directory"):
        TlsContext(TlsOptions("server", str(server.cert_path), str(tmp_path / "none")))
    for bad in (junk, empty, cut):
        for field in ("cert_file", "key_file", "ca_file", "crl_file"):
            with pytest.raises(TlsError, match=f"tls: {bad}: "):
                TlsContext(options("server", server, ca_file=ca.ca_path)._replace(**{field: str(bad)}))


def test_new_connections_see_new_files(ca, tmp_path):
    here = Authority(tmp_path)
    cert, said = here.issue("server", hosts=["localhost"]), []
    context = TlsContext(options("server", cert, ca_file=here.ca_path), lambda level, text: said.append((level, text)))
    alice = ca.issue("alice2", server=False)
    old = here.issue("old", server=False)
    client = TlsContext(options("client", old, ca_file=here.ca_path))
    first = connect(context, client)
    serial = here.issue("server", hosts=["localhost"]).serial
    second = connect(context, client)
    assert second[1].peer_certificates() != first[1].peer_certificates()
    assert context.loads == 2 and serial
    # A broken file: the old stays, and one line says so.
    good = cert.key_path.read_bytes()
    cert.key_path.write_bytes(b"junk")
    for _ in range(3):
        assert connect(context, client)[1].peer_certificates() == second[1].peer_certificates()
    os.unlink(cert.key_path)
    connect(context, client)
    assert [level for level, _ in said] == ["info", "warn", "warn"]
    assert "cannot be used; the ones before stay in force" in said[1][1]
    write_whole(cert.key_path, good)
    connect(context, client)
    # Another CA, then no more of the first.
    stranger = TlsContext(options("client", alice, ca_file=here.ca_path))
    with pytest.raises(TlsError):
        connect(context, stranger)
    bundle(here.ca_path, [here, ca])
    connect(context, stranger)
    bundle(here.ca_path, [ca])
    connect(context, TlsContext(options("client", alice, skip_verify=True)))
    with pytest.raises(TlsError):
        connect(context, TlsContext(options("client", old, skip_verify=True)))
    # What was connected goes on.
    for left, right in (first, second):
        left.send(b"still here")
        assert receive_all(right) == b"still here"


def test_a_reload_that_is_asked_for(ca, server):
    context = TlsContext(options("server", server))
    assert context.reload() and context.loads == 2
    assert abs(context.expires() - server.certificate.not_valid_after_utc.timestamp()) < 1


# ---- bytes


@pytest.mark.parametrize("buffer_bytes", [None, 4096])
@pytest.mark.parametrize("seed", [1, 2])
def test_both_ways_at_once(ca, server, alice, buffer_bytes, seed):
    chance = random.Random(seed)
    pair = connect(
        TlsContext(strict(ca, server)),
        TlsContext(options("client", alice, ca_file=ca.ca_path)),
        "localhost",
        buffer_bytes,
    )
    data = [chance.randbytes(1_500_000), chance.randbytes(1_500_000)]
    sent, got = [0, 0], [bytearray(), bytearray()]
    while any(len(got[1 - i]) < len(data[i]) for i in (0, 1)):
        i = chance.randrange(2)
        if chance.random() < 0.5 and sent[i] < len(data[i]):
            size = chance.choice((1, 100, 5000, 16383, 16384, 16385, 40000, 200000))
            try:
                # A buffer of its own each time, as a caller's that moves.
                sent[i] += pair[i].send(bytearray(data[i][sent[i] : sent[i] + size]))
            except TlsWantWrite:
                pass
        else:
            try:
                got[i] += pair[i].recv(chance.choice((1, 1000, 16384, 65536, 1 << 18)))
            except TlsWantRead:
                pass
    assert bytes(got[1]) == data[0] and bytes(got[0]) == data[1]
    pair[0].unwrap()
    assert pair[1].recv(10) == b""
    assert pair[1].recv(10) == b""


class Wire:
    """A pair of TLS sides with a test in the middle that moves the bytes."""

    def __init__(self, server_context, client_context):
        self.far = sockets()  # [0] is the server's
        self.near = sockets()
        self.server = TlsSocket(server_context, self.far[0], server_side=True)
        self.client = TlsSocket(client_context, self.near[0], server_name="localhost")
        self.failed = None

    def take(self, end):
        try:
            return end.recv(1 << 20)
        except BlockingIOError:
            return b""

    def turn(self, spoil=lambda data: data, piece=1 << 20):
        for one, source, target in ((self.client, self.near[1], self.far[1]), (self.server, self.far[1], self.near[1])):
            try:
                one.do_handshake()
            except BlockingIOError:
                pass
            except TlsError as err:
                self.failed = str(err)
            data = self.take(source)
            if one is self.client:
                data = spoil(data)
            for at in range(0, len(data), piece):
                target.send(data[at : at + piece])
                other = self.server if one is self.client else self.client
                try:
                    other.do_handshake()
                except BlockingIOError:
                    pass
                except TlsError as err:
                    self.failed = str(err)
                    return


def test_one_byte_at_a_time(ca, server, alice):
    wire = Wire(TlsContext(strict(ca, server)), TlsContext(options("client", alice, ca_file=ca.ca_path)))
    for _ in range(6):
        wire.turn(piece=1)
    assert wire.failed is None
    wire.server.do_handshake()
    wire.client.send(b"0123456789" * 100)
    got = b""
    for byte in wire.take(wire.near[1]):
        wire.far[1].send(bytes([byte]))
        try:
            got += wire.server.recv(4096)
        except TlsWantRead:
            pass
    assert got == b"0123456789" * 100


def test_spoilt_handshakes_fail_and_nothing_else(ca, server, alice):
    context = TlsContext(strict(ca, server))
    client = TlsContext(options("client", alice, ca_file=ca.ca_path))
    chance = random.Random(7)

    def flip(data):
        if not data:
            return data
        spoilt = bytearray(data)
        for _ in range(chance.choice((1, 1, 1, 8))):
            spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
        return bytes(spoilt)

    failed = 0
    for _ in range(150):
        wire = Wire(context, client)
        for _ in range(4):
            wire.turn(flip)
        failed += wire.failed is not None
    assert failed > 100
    for size in (0, 1, 4, 5, 6, 100, 20000):
        for head in (b"", b"\x16\x03\x01", b"\x16\x03\x01\xff\xff", b"\x80\x2e\x01", b"\x15\x03\x01\x00\x02"):
            left, right = sockets()
            ours = TlsSocket(context, left, server_side=True)
            right.send(head + chance.randbytes(size))
            right.shutdown(socket.SHUT_WR)
            with pytest.raises(TlsError):
                for _ in range(5):
                    try:
                        ours.do_handshake()
                    except TlsWantRead:
                        pass
    connect(context, client)


def test_cut_off_anywhere(ca, server, alice):
    context = TlsContext(strict(ca, server))
    client = TlsContext(options("client", alice, ca_file=ca.ca_path))
    for keep in range(1, 2000, 37):
        wire, passed = Wire(context, client), 0
        for _ in range(4):

            def pass_some(data, keep=keep):
                nonlocal passed
                data = data[: max(0, keep - passed)]
                passed += len(data)
                return data

            wire.turn(pass_some)
        wire.far[1].close()
        try:
            for _ in range(5):
                try:
                    wire.server.do_handshake()
                    wire.server.recv(100)
                except TlsWantRead:
                    pass
            raise AssertionError("the end does not show")
        except TlsError:
            pass


def test_an_end_without_a_word_is_no_clean_end(ca, server):
    left, right = connect(TlsContext(options("server", server)), TlsContext(options("client", ca_file=ca.ca_path)))
    right.send(b"last")
    right.close()
    assert left.recv(100) == b"last"
    with pytest.raises(TlsError, match="EOF"):
        left.recv(100)


def test_a_spoilt_record_ends_the_connection(ca, server, alice):
    wire = Wire(TlsContext(strict(ca, server)), TlsContext(options("client", alice, ca_file=ca.ca_path)))
    for _ in range(6):
        wire.turn()
    wire.client.send(b"x" * 100)
    data = bytearray(wire.take(wire.near[1]))
    data[20] ^= 1
    wire.far[1].send(data)
    with pytest.raises(TlsError, match="bad record mac"):
        wire.server.recv(200)
    with pytest.raises(TlsError):
        wire.server.send(b"no more")


def test_plain_http_is_told_apart(server):
    context = TlsContext(options("server", server))
    left, right = sockets()
    right.send(b"GET /health HTTP/1.1\r\n\r\n")
    with pytest.raises(TlsError, match="http request"):
        TlsSocket(context, left, server_side=True).do_handshake()
    with pytest.raises(BlockingIOError):
        right.recv(100)  # no alert for who speaks no TLS: the listener answers


def test_records_of_a_byte_are_taken_in_turns(ca, server):
    left, right = connect(TlsContext(options("server", server)), TlsContext(options("client", ca_file=ca.ca_path)))
    wanted, pieces, sent = 1500, [], 0
    while sent < wanted:
        with contextlib.suppress(TlsWantWrite):
            while sent < wanted:
                sent += right.send(b"x")
        with contextlib.suppress(TlsWantRead):
            while True:
                pieces.append(left.recv(65536))
    assert sum(map(len, pieces)) == sent and max(map(len, pieces)) <= 256
    with pytest.raises(TlsWantRead):
        left.recv(1)


def test_a_detached_connection_lives_on_its_own(ca, server):
    context = TlsContext(options("server", server))
    left, _ = connect(context, TlsContext(options("client", ca_file=ca.ca_path)))
    fd, capsule = left.detach()
    assert left.fileno() == -1
    with pytest.raises(ValueError, match="closed or detached"):
        left.recv(1)
    del context, left, capsule
    os.close(fd)
