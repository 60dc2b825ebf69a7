"""The bound on what all connections hold together: the heaviest goes, the others stay and are served."""

import random

import pytest

from etcdfast.api.pb import rpc_pb2 as pb
from tests.frontend.member import Frontend
from tests.frontend.rawh2 import (
    DATA,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    HEADERS,
    RST_STREAM,
    WINDOW_UPDATE,
    Client,
    frame,
    message,
    request_headers,
)
from tests.frontend.test_stalls import resident_bytes
from tests.harness.wait import wait_until

TIGHT = "import etcdfast.frontend.process as p; p.BUFFER_BYTES_MAX = 8 << 20"
TOO_MUCH = (ENHANCE_YOUR_CALM, "too_much_memory_held")
GET = pb.RangeRequest(key=b"k").SerializeToString()
PUT = pb.PutRequest(key=b"k", value=bytes(60_000)).SerializeToString()
ANSWER = bytes(60_000)


def answer(record, member):
    if record["kind"] == "READ":
        return [("REPLY", ANSWER, {})]
    return [] if record["kind"] in ("CREDIT", "CANCEL") else [("REPLY", b"", {})]


@pytest.fixture
def tight():
    with Frontend(prelude=TIGHT, answer=answer) as started:
        yield started


def served(client):
    stream, data = client.call(b"\x0a\x01k")
    client.send(data)
    return client.answer(stream)[0].get("grpc-status") == "0"


def pieces(body):
    return [body[i : i + 16384] for i in range(0, len(body), 16384)]


def begin(client, body, **headers):
    """(stream, bytes) of a call whose request does not end."""
    stream = client.next_stream
    client.next_stream += 2
    data = client.head(request_headers(**headers), stream)
    return stream, data + b"".join(frame(DATA, 0, stream, piece) for piece in pieces(body))


def test_unfinished_requests(tight):
    with Client(tight.port) as light, Client(tight.port) as heavy, Client(tight.port) as bystander:
        whole = message(PUT)
        stream, data = begin(light, whole[:50_000])
        light.send(data)
        assert served(light)
        for _ in range(300):  # 48 KB each
            if not heavy.send(begin(heavy, whole[:49_152])[1]):
                break
            assert served(bystander)
        assert heavy.read_to_end() == TOO_MUCH
        light.send(frame(DATA, END_STREAM, stream, whole[50_000:]))
        assert light.answer(stream)[0]["grpc-status"] == "0"
        assert served(bystander)


def test_many_connections_that_hold_a_little_each(tight):
    whole = message(PUT)
    clients = [Client(tight.port) for _ in range(300)]  # 14 MB of 8
    with Client(tight.port) as bystander:
        for client in clients:
            client.send(begin(client, whole[:49_152])[1])
        gone, stayed = 0, 0
        for client in clients:
            if not client.send(client.call(b"\x0a\x01k")[1]) or not lives(client):
                gone += 1
                assert client.goaway() == TOO_MUCH
            else:
                stayed += 1
            client.socket.close()
        assert gone > 100 < stayed
        assert served(bystander)


def lives(client):
    """Whether the call on stream 3 is answered."""
    while (got := client.read_frame()) is not None:
        if got[0] == HEADERS and got[2] == 3 and got[1] & END_STREAM:
            return True
    return False


def test_open_streams_count(tight):
    calls = 20_000  # a stream is counted with 1 KiB: 20 MB
    clients = [Client(tight.port) for _ in range(10)]
    for client in clients:
        for _ in range(calls // len(clients)):
            if not client.send(begin(client, b"")[1]):
                break
    ends = [end_of(client) for client in clients]
    assert TOO_MUCH in ends
    for client in clients:
        client.socket.close()
    with Client(tight.port) as bystander:
        assert served(bystander)


def end_of(client):
    """The GOAWAY of a connection that was ended, or None when it still serves."""
    client.send(frame(6, 0, 0, b"settled!"))
    while (got := client.read_frame()) is not None:
        if got[:2] == (6, 1):
            return None
    return client.goaway()


def test_unread_answers(tight):
    before = resident_bytes(tight)
    with Client(tight.port, receive_buffer=4096) as heavy, Client(tight.port) as bystander:
        heavy.send(frame(WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big")))
        for number in range(400):  # 24 MB of answers, of which the sockets take some
            if not heavy.send(heavy.call(GET, path="/etcdserverpb.KV/Range")[1]):
                break
            if number % 8 == 0:
                assert served(bystander)
        assert heavy.read_to_end() == TOO_MUCH
        assert served(bystander)
        assert resident_bytes(tight) - before < (8 << 20) + (8 << 20)


def test_large_messages_wait_while_most_of_the_budget_is_held(tight):
    """Their windows open when others have given back what they held."""
    whole = message(PUT)
    large = message(pb.PutRequest(key=b"k", value=bytes(200_000)).SerializeToString())
    with Client(tight.port) as heavy, Client(tight.port) as waiting:
        begun = []
        for _ in range(115):  # 7.0 MB, with room for the whole messages
            stream, data = begin(heavy, whole[:49_152])
            begun.append(stream)
            heavy.send(data)
        assert served(heavy)
        stream, data = begin(waiting, large[:16_384])
        waiting.send(data)
        assert served(waiting)
        assert not [f for f in waiting.frames if f[0] == WINDOW_UPDATE and f[2] == stream]
        for other in begun[:100]:
            heavy.send(frame(DATA, END_STREAM, other, whole[49_152:]))
        wait_until(
            lambda: served(waiting) and [f for f in waiting.frames if f[0] == WINDOW_UPDATE and f[2] == stream],
            "the window of the large message",
        )
        rest = pieces(large[16_384:])
        for piece in rest[:-1]:
            waiting.send(frame(DATA, 0, stream, piece))
        waiting.send(frame(DATA, END_STREAM, stream, rest[-1]))
        assert waiting.answer(stream)[0]["grpc-status"] == "0"


# Ends the process with 99 when anything is still counted once no connection is left.
ALL_GIVEN_BACK = f"""
{TIGHT}
served = p._run
def run(loop, *more):
    status = served(loop, *more)
    counted = loop.counters()
    names = "held_bytes closing_bytes request_buffer_bytes answer_buffer_bytes requests_waiting "
    names += "requests_waiting_bytes timers connections"
    left = {{name: counted[name] for name in names.split() if counted[name]}}
    return 99 if left else status
p._run = run
"""


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_counted_when_all_are_gone(seed):
    rng = random.Random(seed)
    whole = message(PUT)
    with Frontend(prelude=ALL_GIVEN_BACK, answer=answer, election_timeout=-2300) as frontend:
        if seed % 2:
            frontend.stalled.add("f0c")
        clients = []
        for _ in range(60):
            client = Client(frontend.port, receive_buffer=rng.choice([None, 4096]))
            client.socket.setblocking(False)
            data = frame(WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big")) * rng.randrange(2)
            for _ in range(rng.randrange(40)):
                choice = rng.randrange(6)
                if choice == 0:
                    data += begin(client, whole[: rng.randrange(60_000)])[1]
                elif choice == 1:
                    data += client.call(GET, path="/etcdserverpb.KV/Range")[1]
                elif choice == 2:
                    data += client.call(PUT, grpc_timeout=rng.choice(["0n", "1m", "1S"]))[1]
                elif choice == 3:
                    data += client.call(b"", path="/no.such/" + "x" * rng.randrange(3000))[1]
                elif choice == 4:
                    data += begin(client, message(bytes(300_000))[: rng.randrange(60_000)])[1]
                else:
                    data += frame(RST_STREAM, 0, max(1, client.next_stream - 2), (8).to_bytes(4, "big"))
            try:
                client.socket.send(data)
            except (BlockingIOError, ConnectionResetError, BrokenPipeError):
                pass
            clients.append(client)
            if rng.random() < 0.3:
                clients.pop(rng.randrange(len(clients))).socket.close()
        with Client(frontend.port) as bystander:
            assert end_of(bystander) is None
        frontend.stalled.clear()
        for client in clients[::2]:
            client.socket.close()
        frontend.terminate()
        for client in clients[1::2]:
            client.socket.close()
        assert frontend.process.wait(20) == 0
