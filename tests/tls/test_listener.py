"""TLS in a frontend process: handshakes of all kinds beside others' calls, and transfers larger than the sockets."""

import select
import shutil
import socket
import ssl
import subprocess
import threading
import time

import psutil
import pytest

from tests.frontend.member import Frontend, default_answer, impatient
from tests.frontend.rawh2 import Client, message
from tests.harness.certs import Authority
from tests.harness.wait import wait_until

ECHO = b"\x0a\x01b"  # a request whose answer is itself
OPENSSL = shutil.which("openssl")


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def alice(ca):
    return ca.issue("alice", server=False)


def files(ca, **more):
    server = ca.issue("server", hosts=["127.0.0.1", "localhost"], client=False)
    return {
        "cert_file": str(server.cert_path),
        "key_file": str(server.key_path),
        "trusted_ca_file": str(ca.ca_path),
        "client_cert_auth": True,
        **more,
    }


@pytest.fixture(scope="module")
def frontend(ca):
    with Frontend(**files(ca)) as started:
        yield started


@pytest.fixture
def context(ca, alice):
    return client_context(ca, alice)


def client_context(ca, cert=None, version=None, alpn=("h2",)):
    made = ssl.create_default_context(cafile=ca.ca_path)
    if cert:
        made.load_cert_chain(cert.cert_path, cert.key_path)
    if alpn:
        made.set_alpn_protocols(alpn)
    if version:
        made.minimum_version = made.maximum_version = version
    return made


def served(client, body=ECHO):
    stream, data = client.call(body)
    client.send(data)
    headers, answer = client.answer(stream)
    assert (headers["grpc-status"], answer) == ("0", message(body))


@pytest.fixture
def bystander(frontend, context):
    """A connection that is served before and after whatever the test does to others."""
    with Client(frontend.port, tls=context) as client:
        served(client)
        yield client
        served(client)


def descriptors(frontend):
    return psutil.Process(frontend.process.pid).num_fds()


def dial(frontend):
    return socket.create_connection(("127.0.0.1", frontend.port), timeout=10)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("alpn", [("h2",), ("http/1.1", "h2"), None])
def test_a_call(frontend, ca, alice, version, alpn):
    with Client(frontend.port, tls=client_context(ca, alice, version, alpn)) as client:
        served(client)
        assert client.socket.selected_alpn_protocol() == ("h2" if alpn else None)


def test_grpc_libraries_agree(frontend, ca, alice):
    import grpc

    credentials = grpc.ssl_channel_credentials(
        ca.ca_path.read_bytes(), alice.key_path.read_bytes(), alice.cert_path.read_bytes()
    )
    with grpc.secure_channel(f"localhost:{frontend.port}", credentials) as channel:
        call = channel.unary_unary("/etcdserverpb.KV/Put")
        assert call(ECHO, timeout=10) == ECHO
        big = b"\x12\xff\xff\x3f" + b"v" * (0x3F << 14 | 0x3FFF)
        assert call(b"\x0a\x01k" + big, timeout=30) == b"\x0a\x01k" + big


def test_without_a_certificate(frontend, ca, bystander):
    # TLS 1.3 has the client believe that all is well until it reads.
    with pytest.raises((ssl.SSLError, ConnectionError), match="CERTIFICATE_REQUIRED|reset"):
        with Client(frontend.port, tls=client_context(ca)) as client:
            served(client)
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        Client(frontend.port, tls=client_context(ca, version=ssl.TLSVersion.TLSv1_2))


@pytest.mark.parametrize(
    "request_line", ["GET /health", "HEAD /health", "POST /v3/kv/range", "PUT /v2/keys/a", "OPTIONS /"]
)
def test_plain_http_is_answered_as_by_go(frontend, bystander, request_line):
    with dial(frontend) as plain:
        plain.sendall(request_line[:3].encode())  # not always in one piece
        time.sleep(0.01)
        plain.sendall(f"{request_line[3:]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        got = b""
        while piece := plain.recv(4096):
            got += piece
    assert got == b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"


def test_plain_http2_is_closed(frontend, bystander):
    with dial(frontend) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert b"HTTP" not in plain.recv(4096)  # an alert, or nothing


def test_tls_on_a_plain_port_is_closed_at_once(ca):
    with Frontend() as plain:
        began = time.monotonic()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            Client(plain.port, tls=client_context(ca))
        assert time.monotonic() - began < 4  # who waits for a line gets five seconds


def test_one_byte_at_a_time(frontend, context):
    inner, outer = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(inner, outer, server_hostname="localhost")
    with dial(frontend) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def move():
            for byte in outer.read():
                wire.send(bytes([byte]))
            if select.select([wire], [], [], 0.2)[0]:
                inner.write(wire.recv(1 << 16))

        for _ in range(20):
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                move()
        sender = Client.__new__(Client)
        import hpack

        sender.encoder, sender.next_stream = hpack.Encoder(), 1
        stream, data = sender.call(ECHO)
        tls.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + data)
        got = b""
        end = time.monotonic() + 10
        while message(ECHO) not in got and time.monotonic() < end:
            move()
            try:
                got += tls.read(1 << 16)
            except ssl.SSLWantReadError:
                pass
        assert message(ECHO) in got


def test_ends_in_the_middle_leave_nothing_behind(frontend, context, bystander):
    before = descriptors(frontend)
    hello = _client_hello(context)
    for keep in range(0, len(hello) + 1, 40):
        with dial(frontend) as wire:
            wire.sendall(hello[:keep])
            if keep % 80:
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, no end
    for how in ("clean", "end", "reset"):
        client = Client(frontend.port, tls=context)
        served(client)
        if how == "clean":
            client.socket.unwrap()  # waits for the server's goodbye
        elif how == "reset":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.socket.close()
    wait_until(lambda: descriptors(frontend) == before, "the end of all connections")


def _client_hello(context):
    inner, outer = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(inner, outer, server_hostname="localhost").do_handshake()
    return outer.read()


def test_half_a_request_then_the_end(frontend, context, bystander):
    """The peer's end comes with its last bytes in one read."""
    before = descriptors(frontend)
    client = Client(frontend.port, tls=context)
    _, data = client.call(b"\x0a\x01x" * 3000)
    client.send(data[:-20])
    client.socket.close()
    wait_until(lambda: descriptors(frontend) == before, "the end of the connection")


def test_answers_to_who_reads_late(frontend, context):
    """Megabytes that wait for the socket are sent whole, while others are served."""
    body = b"\x0a\x01k\x12" + b"\xa0\x8d\x06" + b"v" * 100_000
    with Client(frontend.port, tls=context, receive_buffer=4096) as slow, Client(frontend.port, tls=context) as other:
        # Windows wide enough that the sockets are what is full.
        slow.send(_window(0, 1 << 28))
        streams = []
        for _ in range(30):
            stream, data = slow.call(body)
            slow.send(_window(stream, 1 << 26) if False else data)
            slow.send(_window(stream, 1 << 26))
            streams.append(stream)
        for _ in range(20):
            served(other)
        left = dict.fromkeys(streams, b"")
        ended = set()
        while len(ended) < len(streams):
            kind, flags, stream, payload = slow.read_frame()
            if kind == 0:
                left[stream] += payload
            elif kind == 1 and flags & 1:
                ended.add(stream)
        assert all(got == message(body) for got in left.values())


def _window(stream, more):
    return b"\0\0\4\10\0" + stream.to_bytes(4, "big") + more.to_bytes(4, "big")


def test_many_connections(frontend, context):
    clients = [Client(frontend.port, tls=context) for _ in range(100)]
    try:
        pending = []
        for client in clients:
            stream, data = client.call(ECHO)
            client.send(data)
            pending.append((client, stream))
        for client, stream in pending:
            assert client.answer(stream)[1] == message(ECHO)
    finally:
        for client in clients:
            client.socket.close()


@pytest.mark.skipif(OPENSSL is None, reason="the command openssl is not installed")
def test_renegotiation_is_refused(frontend, ca, alice, bystander):
    assert "no renegotiation" in _s_client(frontend, ca, alice, "-tls1_2", typed="R\n")


@pytest.mark.skipif(OPENSSL is None, reason="the command openssl is not installed")
def test_key_updates_without_end_are_refused(frontend, ca, alice, bystander):
    assert "KEYUPDATE" in _s_client(frontend, ca, alice, "-tls1_3", typed="K\n", ends=False)
    before = descriptors(frontend)
    assert "did not close" not in _s_client(frontend, ca, alice, "-tls1_3", typed="K\n" * 60)
    wait_until(lambda: descriptors(frontend) <= before, "the end of the connection")


def _s_client(frontend, ca, cert, *more, typed, ends=True):
    """What `openssl s_client` prints; `ends`: the server closes."""
    process = subprocess.Popen(
        [OPENSSL, "s_client", "-connect", f"127.0.0.1:{frontend.port}", "-CAfile", str(ca.ca_path)]
        + ["-cert", str(cert.cert_path), "-key", str(cert.key_path), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        time.sleep(0.3)
        for line in typed.splitlines(keepends=True):
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except BrokenPipeError:
                break
            time.sleep(0.01)
        if not ends:
            time.sleep(0.2)
            process.stdin.close()
            process.stdin = None
        return process.communicate(timeout=10)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0] + "\n(the server did not close)"


def test_versions_and_suites_by_settings(ca, alice):
    with Frontend(**files(ca, tls_min_version="TLS1.3")) as frontend:
        with Client(frontend.port, tls=client_context(ca, alice)) as client:
            served(client)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            Client(frontend.port, tls=client_context(ca, alice, ssl.TLSVersion.TLSv1_2))
    suites = ["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"]
    with Frontend(**files(ca, tls_max_version="TLS1.2", cipher_suites=suites)) as frontend:
        with Client(frontend.port, tls=client_context(ca, alice)) as client:
            served(client)
            assert client.socket.cipher()[:2] == ("ECDHE-ECDSA-AES256-GCM-SHA384", "TLSv1.2")


def test_a_drain_says_goodbye(ca, context):
    with Frontend(**files(ca)) as frontend, Client(frontend.port, tls=context) as client:
        served(client)
        frontend.terminate()
        assert client.read_to_end() == (0, "")
        assert client.socket.recv(1) == b""  # close_notify: without it this raises
        client.socket.close()
        assert frontend.process.wait(10) == 0


# ---- those that never end


def test_a_handshake_that_never_ends_is_closed(ca, context):
    """GHSA-6vch-q96h-7gc3."""
    with Frontend(prelude=impatient("handshake_seconds"), **files(ca)) as frontend:
        hello = _client_hello(context)
        half = [dial(frontend) for _ in range(20)]
        for i, wire in enumerate(half):
            wire.sendall(hello[: i * len(hello) // 20])
        dripping = dial(frontend)
        with Client(frontend.port, tls=context) as client:
            served(client)
            end = time.monotonic() + 5
            at = 0
            closed = set()
            while len(closed) < len(half) + 1:
                assert time.monotonic() < end, f"{len(closed)} of {len(half) + 1} are closed"
                try:
                    dripping.send(hello[at : at + 1])  # a byte now and then gives no more time
                    at += 1
                except OSError:
                    closed.add(dripping)
                readable, _, _ = select.select([w for w in [*half, dripping] if w not in closed], [], [], 0.05)
                for wire in readable:
                    try:
                        if wire.recv(4096) == b"":
                            closed.add(wire)
                    except ConnectionError:
                        closed.add(wire)
            served(client)
        for wire in (*half, dripping):
            wire.close()


def test_a_flood_of_half_handshakes_is_bounded(ca, context):
    prelude = """
from etcdfast.frontend import process
usual = process.settings
process.settings = lambda config: usual(config) | {"handshakes_max": 16}
"""
    with Frontend(prelude=prelude, **files(ca)) as frontend:
        with Client(frontend.port, tls=context) as early:
            before = descriptors(frontend)
            flood = [dial(frontend) for _ in range(200)]
            wait_until(lambda: descriptors(frontend) >= before + 16, "the first of the flood")
            served(early)
            assert descriptors(frontend) <= before + 17
            # Behind the flood in the kernel's queue, and yet it comes to its turn: the silent ones give way.
            results = []

            def late():
                with Client(frontend.port, tls=context, deadline_seconds=30) as client:
                    served(client)
                    results.append(True)

            flood_left, rest = flood[:40], flood[40:]
            for wire in rest:
                wire.close()
            thread = threading.Thread(target=late)
            thread.start()
            thread.join(20)
            assert results == [True]
            served(early)
            for wire in flood_left:
                wire.close()


def test_handshakes_that_drip_give_way(ca, context):
    """A byte now and then is no reason to keep a place that others wait for."""
    prelude = """
from etcdfast.frontend import process
usual = process.settings
process.settings = lambda config: usual(config) | {"handshakes_max": 8, "handshake_seconds": 6.0}
"""
    with Frontend(prelude=prelude, **files(ca)) as frontend:
        wires = [dial(frontend) for _ in range(8)]
        stop = threading.Event()

        def drip():
            hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(400)
            for at in range(len(hello)):
                for wire in wires:
                    try:
                        wire.sendall(hello[at : at + 1])
                    except OSError:
                        pass
                if stop.wait(0.3):
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        begun = time.monotonic()
        try:
            with Client(frontend.port, tls=context, deadline_seconds=30) as client:
                served(client)
            assert time.monotonic() - begun < 5.0
        finally:
            stop.set()
            thread.join()
            for wire in wires:
                wire.close()


def test_handshakes_leave_time_for_calls(ca, context):
    """A call behind three hundred handshakes is answered before they are all done, each time but by bad luck."""
    with Frontend(**files(ca)) as frontend, Client(frontend.port, tls=context) as client:
        served(client)
        hello = _client_hello(context)
        for _ in range(6):
            wires = [dial(frontend) for _ in range(300)]
            for wire in wires:
                wire.send(hello)
            served(client)
            left = len(wires) - len(select.select(wires, [], [], 0)[0])
            for wire in wires:
                assert wire.recv(1 << 16)
                wire.close()
            if left:
                break
        assert left, "all handshakes came first"


def test_memory_is_counted(ca, context):
    """With room for a few connections only, no more than these are kept, and they are served."""
    prelude = """
from etcdfast.frontend import process
usual = process.settings
process.settings = lambda config: usual(config) | {"buffer_bytes_max": 1 << 20}
"""
    with Frontend(prelude=prelude, answer=default_answer, **files(ca)) as frontend:
        clients = []
        for _ in range(80):
            client = Client(frontend.port, tls=context)
            clients.append(client)
        gone = 0
        for client in clients:
            try:
                served(client)
            except (ConnectionError, ssl.SSLError):
                gone += 1
            client.socket.close()
        assert 10 < gone < 70
