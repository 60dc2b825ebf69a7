"""A full request ring: it holds back the connections whose requests wait, and nobody else."""

import threading
import urllib.request

from etcdfast._ext.ring import Ring
from etcdfast.api.pb import rpc_pb2 as pb
from tests.frontend.member import Frontend
from tests.frontend.rawh2 import Client
from tests.harness.wait import wait_until

BIG = 100_000
GET = pb.RangeRequest(key=b"k").SerializeToString()
GET_LOCAL = pb.RangeRequest(key=b"k", serializable=True).SerializeToString()
HEALTH, RANGE = "/grpc.health.v1.Health/Check", "/etcdserverpb.KV/Range"


def put(number, size):
    return pb.PutRequest(key=b"%06d" % number, value=bytes(size)).SerializeToString()


def room(frontend, name):
    return Ring(frontend.fds[name], frontend.own_bell).room


def resident_bytes(frontend):
    with open(f"/proc/{frontend.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def short(record, member):
    return [] if record["kind"] in ("CREDIT", "CANCEL") else [("REPLY", b"", {})]


class Pusher:
    """Sends puts of 60 KB over a connection of its own from a thread, and reads all answers."""

    def __init__(self, frontend, count):
        self.client = Client(frontend.port, deadline_seconds=60)
        self.count = count
        self.answered = []
        self.thread = threading.Thread(target=self._send)
        self.thread.start()

    def _send(self):
        for number in range(self.count):
            self.client.send(self.client.call(put(number, 60_000))[1])

    def finish(self):
        while len(self.answered) < self.count:
            kind, flags, stream, payload = self.client.read_frame()
            if kind == 1 and flags & 1:
                assert dict(payload)["grpc-status"] == "0"
                self.answered.append(stream)
        self.thread.join(60)
        self.client.socket.close()


def served(client, path, body):
    stream, data = client.call(body, path=path)
    client.send(data)
    return client.answer(stream)[0]["grpc-status"] == "0"


def test_what_needs_no_log_is_served_while_the_log_stalls():
    with Frontend(answer=short) as frontend, Client(frontend.port) as old:
        assert served(old, HEALTH, b"")
        frontend.stalled.add("f0c")
        pushers = [Pusher(frontend, 120) for _ in range(2)]  # 14 MB for a ring of 4 MiB
        wait_until(lambda: room(frontend, "f0c") < 130_000, "the ring to be full")
        with Client(frontend.port) as new:
            for client in (old, new):
                for _ in range(50):
                    assert served(client, HEALTH, b"")
                    assert served(client, RANGE, GET_LOCAL)
                    assert served(client, "/etcdserverpb.Maintenance/Status", b"")
            url = f"http://{frontend.address}/health?serializable=true"
            assert urllib.request.urlopen(url, timeout=10).status == 200
            # One request for the log, and this connection stands in line, too.
            waits, data = new.call(put(0, BIG))
            new.send(data)
            assert served(old, RANGE, GET_LOCAL)
            frontend.stalled.clear()
            assert new.answer(waits)[0]["grpc-status"] == "0"
            assert served(new, HEALTH, b"")
        for pusher in pushers:
            pusher.finish()
        by_connection = {}
        for record in frontend.kinds("PROPOSE"):
            by_connection.setdefault((record["slot"], record["generation"]), []).append(record["stream"])
        assert all(streams == sorted(streams) for streams in by_connection.values())
        assert sum(len(streams) for streams in by_connection.values()) == 241


def test_waiting_requests_cost_one_read_per_connection():
    with Frontend(answer=short) as frontend:
        frontend.stalled.add("f0c")
        before = resident_bytes(frontend)
        clients = [Client(frontend.port) for _ in range(200)]
        for client in clients:
            client.socket.setblocking(False)
            for number in range(20):  # 1.2 MB each, 240 MB together, as far as the sockets take it
                try:
                    client.socket.send(client.call(put(number, 60_000))[1])
                except BlockingIOError:
                    break
        wait_until(lambda: room(frontend, "f0c") < 130_000, "the ring to be full")
        with Client(frontend.port) as other:
            for _ in range(20):
                assert served(other, HEALTH, b"")
            # A read of 64 KiB brings one request to an end, and holds the beginning of another.
            assert resident_bytes(frontend) - before < 200 * 3 * 65536 + (8 << 20)
            for client in clients:
                client.socket.close()
            frontend.stalled.clear()
            assert served(other, RANGE, GET)


def test_a_connection_that_ends_while_its_request_waits():
    with Frontend(answer=short, election_timeout=-2300) as frontend, Client(frontend.port) as other:
        frontend.stalled.add("f0c")
        pusher = Pusher(frontend, 70)
        wait_until(lambda: room(frontend, "f0c") < 130_000, "the ring to be full")
        for _ in range(50):
            with Client(frontend.port) as leaver:
                leaver.send(leaver.call(put(1, BIG))[1])
                leaver.send(leaver.call(GET, path=RANGE)[1])
                assert served(other, HEALTH, b"")
        # The server's own deadline ends what waits, and so the connections are read again.
        with Client(frontend.port) as client:
            stream, data = client.call(put(2, BIG))
            client.send(data)
            headers, _ = client.answer(stream)
            assert (headers["grpc-status"], headers["grpc-message"]) == ("14", "etcdserver: request timed out")
            assert served(client, HEALTH, b"")
            frontend.stalled.clear()
            assert served(client, RANGE, GET)
        pusher.client.socket.close()
        pusher.thread.join(60)


def test_a_wall_of_waiting_requests_is_left_in_the_sockets_and_ends_nobody():
    tight = "import etcdfast.frontend.process as p; p.BUFFER_BYTES_MAX = 24 << 20"
    with Frontend(answer=short, prelude=tight) as frontend:
        frontend.stalled.add("f0c")
        pushers = [Pusher(frontend, 4) for _ in range(200)]  # 48 MB for a ring of 4 MiB and a quarter of 24 MiB
        wait_until(lambda: room(frontend, "f0c") < 130_000, "the ring to be full")
        for pusher in pushers:
            pusher.thread.join(0.001)
        frontend.stalled.clear()
        for pusher in pushers:
            pusher.finish()
        assert len(frontend.kinds("PROPOSE")) == 800
