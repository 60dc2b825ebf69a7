"""Bidi streams: requests in order through full rings, half close, cancel, windows, deadlines, drain."""

import random
import struct

import pytest

from etcdfast._ext.ring import Ring
from etcdfast.api.errors import ID
from etcdfast.api.pb import rpc_pb2 as pb
from tests.frontend.duplex import KEEP_ALIVE, WATCH, WINDOW_BYTES, Duplex
from tests.frontend.member import RPC_IDS, Frontend
from tests.frontend.rawh2 import DATA, END_STREAM, PADDED, WINDOW_UPDATE, Client, frame, message
from tests.harness.wait import wait_until

BIG_LOCAL_TXN = pb.TxnRequest(
    compare=[pb.Compare(key=b"k", value=b"v" * 60_000)],
    success=[pb.RequestOp(request_range=pb.RangeRequest(key=b"k", serializable=True))],
).SerializeToString()
UNMARSHAL = "grpc: failed to unmarshal the received message: proto: cannot parse invalid wire-format data"


def watch(number, size=10):
    """A WatchRequest that shows its number."""
    create = pb.WatchCreateRequest(key=b"%08d" % number + bytes(size), start_revision=number)
    return pb.WatchRequest(create_request=create).SerializeToString()


def number_of(record):
    return pb.WatchRequest.FromString(record["payload"]).create_request.start_revision


def keep_alive(number):
    return pb.LeaseKeepAliveRequest(ID=number).SerializeToString()


def silent(record, member):
    return []


def lease_server(record, member):
    """KeepAlive as apply serves it."""
    if record["kind"] == "HALF":
        return [("END", b"", {})]
    if record["kind"] == "CALL" and record["method"] == RPC_IDS["LeaseKeepAlive"]:
        lease = pb.LeaseKeepAliveRequest.FromString(record["payload"]).ID
        return [("MESSAGE", pb.LeaseKeepAliveResponse(ID=lease, TTL=60).SerializeToString(), {})]
    return []


def records(frontend, stream, *kinds):
    return [r for r in list(frontend.seen) if r["stream"] == stream and r["kind"] in kinds]


def kinds_of(frontend, stream):
    return [r["kind"] for r in list(frontend.seen) if r["stream"] == stream and r["kind"] != "CREDIT"]


def room(frontend, name):
    return Ring(frontend.fds[name], frontend.own_bell).room


@pytest.fixture
def quiet():
    with Frontend(answer=silent) as started:
        yield started


def fill_apply_ring(frontend, client):
    """Calls until the ring to apply, which is stalled, is full; then `client` waits itself."""
    while room(frontend, "f0a") > 70_000:
        before = room(frontend, "f0a")
        client.send(client.call(BIG_LOCAL_TXN, path="/etcdserverpb.KV/Txn")[1])
        wait_until(lambda before=before: room(frontend, "f0a") < before, "the call in the ring")
    client.send(client.call(BIG_LOCAL_TXN, path="/etcdserverpb.KV/Txn")[1])
    client.send(client.call(BIG_LOCAL_TXN, path="/etcdserverpb.KV/Txn")[1])


def test_each_message_is_a_call_and_the_end_is_half(quiet):
    with Duplex(quiet.port) as client:
        stream = client.open()
        bodies = [watch(n) for n in range(100)]
        client.say(stream, *bodies, end=True)
        wait_until(lambda: "HALF" in kinds_of(quiet, stream), "HALF")
        assert kinds_of(quiet, stream) == ["CALL"] * 100 + ["HALF"]
        calls = records(quiet, stream, "CALL", "HALF")
        assert [r["payload"] for r in calls] == [*bodies, b""]
        assert {(r["ring"], r["method"], r["term"]) for r in calls} == {("f0a", RPC_IDS["Watch"], 0)}
        # The client of a watch that asks no more still gets what it watches.
        quiet.push(calls[0], "MESSAGE", b"still here")
        assert client.read_messages(stream, 1) == [b"still here"]
        assert stream not in client.ended
        assert client.trailers[stream][":status"] == "200"


def test_a_stream_without_a_message(quiet):
    with Duplex(quiet.port) as client:
        first, second = client.open(KEEP_ALIVE, end=True), client.open(KEEP_ALIVE)
        client.write(second, b"", end=True)
        wait_until(lambda: len(quiet.kinds("HALF")) == 2, "HALF of both")
        for record in quiet.kinds("HALF"):
            quiet.push(record, "END")
        assert client.read_until_ended(first) == client.read_until_ended(second) == ("0", "")
        third = client.open(KEEP_ALIVE)
        client.reset(third)
        client.settle()
    wait_until(lambda: room(quiet, "f0a") == Ring(quiet.fds["f0a"], quiet.own_bell).capacity, "all records to be read")
    assert not quiet.kinds("CANCEL")


def test_keep_alive_back_and_forth_and_half_close():
    with Frontend(answer=lease_server) as frontend, Duplex(frontend.port) as client:
        stream = client.open(KEEP_ALIVE)
        for number in range(1, 200):
            client.say(stream, keep_alive(number))
            got = client.read_messages(stream, number)[-1]
            assert pb.LeaseKeepAliveResponse.FromString(got) == pb.LeaseKeepAliveResponse(ID=number, TTL=60)
        client.write(stream, b"", end=True)
        assert client.read_until_ended(stream) == ("0", "")
        assert kinds_of(frontend, stream) == ["CALL"] * 199 + ["HALF"]  # nothing is cancelled that apply has ended
        assert not frontend.kinds("CREDIT")


def test_a_real_client_keeps_leases_alive():
    with Frontend(answer=lease_server) as frontend, frontend.channel() as channel:
        call = channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")(keep_alive(n) for n in range(1, 500))
        assert [pb.LeaseKeepAliveResponse.FromString(body).ID for body in call] == list(range(1, 500))


SEED = random.SystemRandom().randrange(1 << 32)


def test_messages_may_begin_and_end_anywhere(quiet):
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    sizes = [rng.choice([0, 1, 5, 100, 1000, 16_379, 16_384, 40_000]) for _ in range(120)]
    bodies = [watch(n, size) for n, size in enumerate(sizes)]
    bodies[10] = bodies[50] = b""  # an empty message is one, too
    whole = b"".join(message(body) for body in bodies)
    with Duplex(quiet.port) as client:
        stream = client.open()
        at = 0
        while at < len(whole):
            size = min(rng.choice([1, 2, 4, 5, 6, 37, 1000, 16_000]), len(whole) - at)
            pad = rng.choice([0, 0, 1, 200])
            while client.room(stream) < size + pad + 1:
                client.read_frame()
            if pad:
                payload = bytes([pad]) + whole[at : at + size] + bytes(pad)
                client.send(frame(DATA, PADDED, stream, payload))
                client.windows[stream] -= len(payload)
                client.windows[0] -= len(payload)
            else:
                client.write(stream, whole[at : at + size])
            at += size
        wait_until(lambda: len(records(quiet, stream, "CALL")) == len(bodies), "all messages")
        assert [r["payload"] for r in records(quiet, stream, "CALL")] == bodies


def test_large_messages_get_the_window_they_need_and_no_more(quiet):
    bodies = [watch(n, size) for n, size in enumerate([200_000, 70_000, 1_900_000, 10, 65_500, 2_000_000] * 3)]
    with Duplex(quiet.port) as client:
        streams = [client.open() for _ in range(3)]
        for body in bodies:
            for stream in streams:
                assert client.say(stream, body)
        for stream in streams:
            wait_until(lambda stream=stream: len(records(quiet, stream, "CALL")) == len(bodies), "all messages")
            assert [r["payload"] for r in records(quiet, stream, "CALL")] == bodies
        client.settle()
        assert all(client.windows[stream] <= 2 * WINDOW_BYTES for stream in streams)


@pytest.mark.parametrize(
    ("sent", "end", "status", "text"),
    [
        (message(b"\x0a\x05k"), False, "13", UNMARSHAL),
        (message(b"\x0a\x02\x0a\x05"), False, "13", UNMARSHAL),  # malformed inside
        (b"\x01" + bytes(4), False, "13", "grpc: compressed flag set with identity or empty encoding"),
        (b"\x07" + bytes(4), False, "13", "grpc: received unexpected payload format 7"),
        (b"\x00\x00\x20\x00\x01", False, "8", "grpc: received message larger than max (2097153 vs. 2097152)"),
        (b"\x00\x00\x00\x00\x09ab", True, "13", "unexpected EOF"),
        (b"\x00\x00", True, "13", "unexpected EOF"),
    ],
)
@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_message_that_is_none_ends_the_stream(frontend, before, at_once, sent, end, status, text):
    frontend.answer, usual = silent, frontend.answer
    try:
        with Duplex(frontend.port) as client:
            stream = client.open()
            slot = None
            seen = len(frontend.seen)
            client.say(stream, *[watch(n) for n in range(before)])
            client.write(stream, sent, end=end, frame_bytes=16384 if at_once else 1)
            assert client.read_until_ended(stream) == (status, text)
            client.settle()
            expected = ["CALL"] * before + ["CANCEL"] * (before > 0)
            wait_until(lambda: len(frontend.seen) >= seen + len(expected), "the records")
            new = frontend.seen[seen:]
            assert [r["kind"] for r in new] == expected
            assert len({(r["slot"], r["generation"], r["stream"]) for r in new}) == (before > 0), slot
    finally:
        frontend.answer = usual


def test_who_leaves_is_cancelled_once(quiet):
    with Duplex(quiet.port) as client:
        reset, kept, timed = client.open(), client.open(), client.open(grpc_timeout="300m")
        for stream in (reset, kept, timed):
            client.say(stream, watch(1), watch(2))
        wait_until(lambda: len(quiet.kinds("CALL")) == 6, "the calls")
        assert records(quiet, timed, "CALL")[0]["term"] > 0
        client.reset(reset)
        client.reset(reset)
        wait_until(lambda: "CANCEL" in kinds_of(quiet, reset), "CANCEL of the reset stream")
        assert client.read_until_ended(timed)[0] == "4"
        wait_until(lambda: "CANCEL" in kinds_of(quiet, timed), "CANCEL of the stream whose time is over")
        ended = client.open()
        client.say(ended, watch(1))
        wait_until(lambda: records(quiet, ended, "CALL"), "the call")
        quiet.push(records(quiet, ended, "CALL")[0], "END", status=ID["NO_LEADER"])
        assert client.read_until_ended(ended) == ("14", "etcdserver: no leader")
    wait_until(lambda: "CANCEL" in kinds_of(quiet, kept), "CANCEL when the connection ended")
    for stream in (reset, kept, timed):
        assert kinds_of(quiet, stream) == ["CALL", "CALL", "CANCEL"]
    assert kinds_of(quiet, ended) == ["CALL"]


def test_order_survives_a_full_ring_and_nothing_more_is_taken_meanwhile(quiet):
    quiet.stalled.add("f0a")
    rng = random.Random(7)
    bodies = [watch(n, rng.randrange(200)) for n in range(20_000)]
    whole = b"".join(message(body) for body in bodies)
    with Duplex(quiet.port) as client, Duplex(quiet.port) as other, Client(quiet.port) as filler:
        streams = [client.open(), client.open(), other.open()]
        clients = [client, client, other]
        sent = [0, 0, 0]
        fill_apply_ring(quiet, filler)
        for turn in range(8):
            for i, (c, stream) in enumerate(zip(clients, streams)):
                sent[i] += c.write_what_fits(stream, whole[sent[i] : sent[i] + 20_000])
            c = clients[turn % 3]
            c.socket.settimeout(0.05)
            try:
                c.read_frame(0.05)
            except TimeoutError:
                pass
        # A stalled ring gives nothing back: each stream is stuck within its first window.
        assert all(size <= WINDOW_BYTES for size in sent)
        assert max(sent) > WINDOW_BYTES - 16384
        quiet.stalled.clear()
        for i, (c, stream) in enumerate(zip(clients, streams)):
            assert c.write(stream, whole[sent[i] :], end=True)
        for stream in streams:
            calls = lambda stream=stream: [  # noqa: E731
                r for r in list(quiet.seen) if r["stream"] == stream and r["method"] == RPC_IDS["Watch"]
            ]
            count = 2 if stream == 1 else 1  # stream 1 is open on both connections
            wait_until(
                lambda calls=calls, count=count: sum(r["kind"] == "HALF" for r in calls()) == count,
                "HALF",
                deadline_seconds=30,
            )
            by_slot = {}
            for record in calls():
                by_slot.setdefault(record["slot"], []).append(record)
            for found in by_slot.values():
                assert [r["kind"] for r in found] == ["CALL"] * len(bodies) + ["HALF"]
                assert [number_of(r) for r in found[:-1]] == list(range(len(bodies)))


def test_streams_that_end_while_their_messages_wait(quiet):
    """Reset, closed, timed out, refused: what waits is not posted, and only those with a CALL get a CANCEL."""
    quiet.stalled.add("f0a")
    with Duplex(quiet.port) as client, Duplex(quiet.port) as leaver, Client(quiet.port) as filler:
        posted = client.open()
        client.say(posted, watch(0))
        wait_until(lambda: room(quiet, "f0a") < (4 << 20), "the first call in the ring")
        fill_apply_ring(quiet, filler)
        ends = [client.open() for _ in range(3)] + [client.open(grpc_timeout="200m")]
        data = b""
        for stream in [posted, *ends]:
            data += frame(DATA, 0, stream, b"".join(message(watch(n)) for n in range(1, 4)))
        # In one piece: once a message waits its connection is not read.
        data += frame(3, 0, ends[0], struct.pack(">I", 8))  # RST_STREAM
        data += frame(DATA, 0, ends[1], b"\x07\0\0\0\0")
        data += frame(DATA, END_STREAM, ends[2], b"\0")
        data += frame(3, 0, posted, struct.pack(">I", 8))
        client.send(data)
        leaver.say(leaver.open(), watch(1))
        assert client.read_until_ended(ends[1])[0] == "13"
        assert client.read_until_ended(ends[2]) == ("13", "unexpected EOF")
        assert client.read_until_ended(ends[3])[0] == "4"
        leaver.socket.close()
        quiet.stalled.clear()
        last = client.open()
        client.say(last, watch(9))
        wait_until(lambda: records(quiet, last, "CALL"), "a call behind all of them")
        ours = [r for r in quiet.seen if r["method"] == RPC_IDS["Watch"] and r["stream"] != last]
        first = next(r for r in ours if r["stream"] == posted)
        mine = [(r["stream"], r["kind"]) for r in ours if r["slot"] == first["slot"]]
        assert mine == [(posted, "CALL"), (posted, "CANCEL")]


def test_a_client_that_never_reads_is_bounded():
    body = pb.LeaseKeepAliveResponse(ID=1, TTL=1 << 60).SerializeToString() * 5
    count = 30_000

    def answer(record, member):
        return [("MESSAGE", body, {})] if record["kind"] == "CALL" else []

    whole = b"".join(message(keep_alive(n)) for n in range(count))
    with Frontend(answer=answer) as frontend, Duplex(frontend.port, own_window=0) as client:
        stream = client.open(KEEP_ALIVE)
        sent = calls = idle = 0
        while idle < 3:
            size = client.write_what_fits(stream, whole[sent : sent + 8192])
            sent += size
            idle = 0 if size else idle + 1
            most = whole[:sent].count(b"\0\0\0")  # messages, more or less
            wait_until(lambda most=most: len(frontend.seen) >= most - 2, "the calls of what was sent")
            client.settle()
        # Until 64 KiB of answers wait the window comes back; then there is one more window.
        calls = len(frontend.seen)
        assert WINDOW_BYTES <= sent < 2 * WINDOW_BYTES + 8192
        with Duplex(frontend.port) as other:
            stream2 = other.open(KEEP_ALIVE)
            other.say(stream2, keep_alive(1))
            assert other.read_messages(stream2, 1) == [body]
        # It reads on, and gets on.
        client.send(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", (1 << 31) - 1)))
        assert client.write(stream, whole[sent:], end=True)
        while len(client.bodies[stream]) < (len(body) + 5) * count:
            assert client.read_frame() is not None
        assert len(frontend.kinds("CALL")) == count + 1 > calls


def test_streams_and_waiters_know_no_deadline_of_the_server():
    waiting = {"Lock": "/v3lockpb.Lock/Lock", "Campaign": "/v3electionpb.Election/Campaign"}
    # 5 s and two election timeouts: 0.4 s
    with Frontend(answer=silent, election_timeout=-2300) as frontend, Duplex(frontend.port) as client:
        open_streams = [client.open(), client.open(KEEP_ALIVE)]
        for stream in open_streams:
            client.say(stream, b"")
        for path in (*waiting.values(), "/v3electionpb.Election/Observe"):
            stream, data = client.call(b"", path=path)
            client.send(data)
            open_streams.append(stream)
        put, data = client.call(pb.PutRequest(key=b"k").SerializeToString())
        client.send(data)
        assert client.read_until_ended(put) == ("14", "etcdserver: request timed out")
        client.settle()
        assert not set(open_streams) & set(client.ended)
        assert sorted(r["kind"] for r in frontend.seen) == ["CALL"] * 5 + ["PROPOSE"]


def test_a_drain_ends_what_would_never_end(quiet):
    with Duplex(quiet.port) as client, Duplex(quiet.port, own_window=10) as slow:
        asked = [client.open(), client.open(KEEP_ALIVE)]
        unasked = client.open()
        for stream in asked:
            client.say(stream, b"")
        for path in ("/v3lockpb.Lock/Lock", "/v3electionpb.Election/Campaign", "/v3electionpb.Election/Observe"):
            stream, data = client.call(b"", path=path)
            client.send(data)
            asked.append(stream)
        put, data = client.call(pb.PutRequest(key=b"k").SerializeToString())
        client.send(data)
        stuck = slow.open()
        slow.say(stuck, b"")
        wait_until(lambda: len(quiet.seen) == 7, "the calls")
        watcher = next(r for r in quiet.seen if r["slot"] != quiet.seen[0]["slot"])
        quiet.push(watcher, "MESSAGE", bytes(1000))
        quiet.terminate()
        for stream in (*asked, unasked):
            assert client.read_until_ended(stream) == ("14", "etcdserver: server stopped")
        kinds = [f[0] for f in client.frames]
        assert kinds.index(7) < next(i for i, f in enumerate(client.frames) if f[0] == 1)  # GOAWAY, then HEADERS
        late = client.open()
        assert client.read_until_ended(late) == ("14", "etcdserver: server stopped")
        wait_until(lambda: len(quiet.kinds("CANCEL")) == 6, "CANCEL of each that apply works for")
        # The put is waited for.
        assert quiet.process.poll() is None
        quiet.push(next(r for r in quiet.seen if r["kind"] == "PROPOSE"), "REPLY", b"done")
        client.read_until_ended(put)
        assert client.bodies[put] == message(b"done")
        slow.socket.close()
        client.socket.close()
        assert quiet.process.wait(10) == 0


@pytest.mark.parametrize(
    ("path", "body", "ring", "kind"),
    [
        ("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest(TTL=5, ID=7), "f0c", "PROPOSE"),
        ("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest(ID=7), "f0c", "PROPOSE"),
        ("/etcdserverpb.Lease/LeaseTimeToLive", pb.LeaseTimeToLiveRequest(ID=7, keys=True), "f0c", "READ"),
        ("/etcdserverpb.Lease/LeaseLeases", pb.LeaseLeasesRequest(), "f0c", "READ"),
        ("/v3lockpb.Lock/Lock", None, "f0a", "CALL"),
        ("/v3lockpb.Lock/Unlock", None, "f0a", "CALL"),
        ("/v3electionpb.Election/Campaign", None, "f0a", "CALL"),
        ("/v3electionpb.Election/Proclaim", None, "f0a", "CALL"),
        ("/v3electionpb.Election/Leader", None, "f0a", "CALL"),
        ("/v3electionpb.Election/Resign", None, "f0a", "CALL"),
    ],
)
def test_the_ways_of_unary_requests(frontend, path, body, ring, kind):
    data = body.SerializeToString() if body else b"\x0a\x02\x0a\x00"
    before = len(frontend.seen)
    with Client(frontend.port) as client:
        stream, request = client.call(data, path=path)
        client.send(request)
        assert client.answer(stream)[1][5:] == data
    record = frontend.seen[before]
    assert (record["ring"], record["kind"], record["payload"], record["flags"] & 4) == (ring, kind, data, 0)


def test_a_lease_without_an_id_is_marked_also_when_it_waits():
    with Frontend(answer=silent) as frontend, Client(frontend.port) as client:
        bodies = [b"", b"\x08\x05", b"\x10\x00", b"\x10\x07\x10\x00", b"\x10\x07", b"\x08\x05\x10\x01"]
        new = [True, True, True, True, False, False]
        for stalled in (False, True):
            if stalled:
                frontend.stalled.add("f0c")
                while room(frontend, "f0c") > 70_000:
                    before = room(frontend, "f0c")
                    client.send(client.call(pb.PutRequest(key=b"k", value=bytes(60_000)).SerializeToString())[1])
                    wait_until(lambda before=before: room(frontend, "f0c") < before, "the put in the ring")
                for _ in range(2):
                    client.send(client.call(pb.PutRequest(key=b"k", value=bytes(60_000)).SerializeToString())[1])
            for body in bodies:
                client.send(client.call(body, path="/etcdserverpb.Lease/LeaseGrant")[1])
            frontend.stalled.clear()
            grants = lambda: [r for r in frontend.seen if r["method"] == RPC_IDS["LeaseGrant"]]  # noqa: E731
            wait_until(lambda stalled=stalled, grants=grants: len(grants()) == 6 + 6 * stalled, "the grants")
            assert [bool(r["flags"] & 4) for r in grants()[-6:]] == new
            assert [r["payload"] for r in grants()[-6:]] == bodies


def test_a_lease_is_charged_to_the_quota():
    from etcdfast._ext.ring import APPLY_WORDS

    with Frontend(quota_backend_bytes=10_000) as frontend, Client(frontend.port) as client:

        def grant():
            stream, data = client.call(b"\x10\x07", path="/etcdserverpb.Lease/LeaseGrant")
            client.send(data)
            return client.answer(stream)[0].get("grpc-message")

        frontend.apply[APPLY_WORDS["db_bytes"]] = 10_000 - 65
        assert grant() is None
        frontend.apply[APPLY_WORDS["db_bytes"]] = 10_000 - 64
        assert grant() == "etcdserver: mvcc: database space exceeded"


def test_a_watcher_that_reads_may_open_as_many_windows_as_it_likes(quiet):
    """Control frames are bounded, but not for who takes what is sent: some for each frame of data."""
    with Duplex(quiet.port, own_window=1 << 20) as client:
        stream = client.open()
        client.say(stream, b"")
        wait_until(lambda: quiet.seen, "the call")
        for _ in range(3000):
            quiet.push(quiet.seen[0], "MESSAGE", b"event")
            client.read_messages(stream, 1)
            client.forget(stream)
            client.send(frame(WINDOW_UPDATE, 0, stream, b"\0\0\0\x01") * 4)
        assert client.settle()


def test_watch_and_keep_alive_are_the_bidi_routes():
    from etcdfast.api.rpcs import BIDI_STREAM, RPCS

    assert [rpc.path for rpc in RPCS if rpc.kind == BIDI_STREAM] == [WATCH, KEEP_ALIVE]
