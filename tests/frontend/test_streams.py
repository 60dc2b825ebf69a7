"""Large and streamed answers: parts, credit, slow readers, memory."""

import pytest

from etcdfast._ext.ring import KINDS
from etcdfast.api.errors import ID
from etcdfast.api.pb import rpc_pb2 as pb
from tests.frontend.member import Frontend, server_stream, unary
from tests.frontend.rawh2 import DATA, WINDOW_UPDATE, Client, frame
from tests.harness.wait import wait_until

GET = pb.RangeRequest(key=b"k").SerializeToString()
CREDIT_BYTES = 262144
PART_BYTES = 60_000


class Streamer:
    """Plays apply for one large answer: sends no more than the credit allows."""

    def __init__(self, total, messages=None, ending=0):
        self.body = bytes(range(251)) * (total // 251 + 1)
        self.body = self.body[:total]
        self.messages = messages
        self.ending = ending
        self.call = None
        self.sent = 0
        self.credit = CREDIT_BYTES
        self.most_ahead = 0
        self.credited = 0

    def __call__(self, record, member):
        if record["kind"] == "CREDIT":
            self.credit += record["index"]
            self.credited += record["index"]
        elif record["kind"] == "CANCEL":
            self.call = None
            return []
        else:
            self.call = record
            if not self.messages:
                member.push(record, "BEGIN", index=len(self.body))
        self.pump(member)
        return []

    def pump(self, member):
        step = self.messages or PART_BYTES
        while self.call and self.sent < len(self.body) and self.credit >= min(step, len(self.body) - self.sent):
            part = self.body[self.sent : self.sent + step]
            member.push(self.call, "MESSAGE" if self.messages else "PART", part)
            self.sent += len(part)
            self.credit -= len(part)
        if self.call and self.sent == len(self.body):
            member.push(self.call, "END", status=self.ending)
            self.call = None


def test_an_answer_in_parts_is_one_message():
    streamer = Streamer(5_000_000)
    with Frontend(answer=streamer) as frontend, frontend.channel() as channel:
        assert unary(channel, "Range")(GET, timeout=30) == streamer.body


def test_a_stream_of_messages_arrives_in_order():
    streamer = Streamer(3_000_000, messages=50_000)
    with Frontend(answer=streamer) as frontend, frontend.channel() as channel:
        got = list(server_stream(channel, "RangeStream")(GET, timeout=30))
        assert b"".join(got) == streamer.body
        assert {len(part) for part in got} == {50_000}


def test_an_error_after_some_messages_ends_the_stream_with_it():
    import grpc

    streamer = Streamer(100_000, messages=50_000, ending=ID["COMPACTED"])
    with Frontend(answer=streamer) as frontend, frontend.channel() as channel:
        stream = server_stream(channel, "RangeStream")(GET, timeout=30)
        got = []
        with pytest.raises(grpc.RpcError) as caught:
            for part in stream:
                got.append(part)
        assert len(got) == 2
        assert caught.value.code() == grpc.StatusCode.OUT_OF_RANGE


def test_a_reader_that_stalls_stops_the_stream_within_its_credit():
    streamer = Streamer(4_000_000)
    with Frontend(answer=streamer) as frontend, Client(frontend.port) as client, Client(frontend.port) as other:
        stream, data = client.call(GET, path="/etcdserverpb.KV/Range")
        client.send(data)
        # The client opens no window: 65535 bytes may leave, the rest waits in apply.
        window = 65535
        wait_until(lambda: streamer.call and streamer.credit < PART_BYTES, "apply to use up its credit")
        assert streamer.sent <= CREDIT_BYTES + window
        for _ in range(50):  # others are served meanwhile; apply's state does not move
            stream2, data2 = other.call(b"\x0a\x01k", path="/grpc.health.v1.Health/Check")
            other.send(data2)
            assert other.answer(stream2)[0]["grpc-status"] == "5"
        assert streamer.sent <= CREDIT_BYTES + window
        # Opening the window lets all of it through.
        client.send(frame(WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big")))
        client.send(frame(WINDOW_UPDATE, 0, stream, (1 << 30).to_bytes(4, "big")))
        headers, body = client.answer(stream)
        assert headers["grpc-status"] == "0"
        assert body == b"\0" + len(streamer.body).to_bytes(4, "big") + streamer.body


def test_a_reader_that_goes_away_cancels_the_stream():
    streamer = Streamer(4_000_000)
    with Frontend(answer=streamer) as frontend:
        with Client(frontend.port) as client:
            stream, data = client.call(GET, path="/etcdserverpb.KV/Range")
            client.send(data)
            wait_until(lambda: streamer.call and streamer.credit < PART_BYTES, "apply to use up its credit")
        wait_until(lambda: frontend.kinds("CANCEL"), "CANCEL")
        cancelled = frontend.kinds("CANCEL")[0]
        assert (cancelled["stream"], cancelled["ring"]) == (stream, "f0a")


@pytest.mark.parametrize(
    ("kind", "timeout", "status"), [("BEGIN", None, "0"), ("MESSAGE", None, "0"), ("BEGIN", "1500m", "4")]
)
def test_only_the_clients_deadline_ends_an_answer_that_has_begun(kind, timeout, status):
    calls = []

    def answer(record, member):
        if record["kind"] == "READ":
            calls.append(record)
            return [(kind, b"" if kind == "BEGIN" else b"abc", {"index": 3})] if len(calls) == 1 else []
        return []

    # 5 s and two election timeouts: 0.4 s
    with Frontend(answer=answer, election_timeout=-2300) as frontend, Client(frontend.port) as client:
        stream, data = client.call(GET, path="/etcdserverpb.KV/Range", grpc_timeout=timeout)
        client.send(data)
        wait_until(lambda: calls, "the read")
        # A later call that gets no answer ends at the server's deadline, so the first one's is over.
        later, data = client.call(GET, path="/etcdserverpb.KV/Range")
        client.send(data)
        headers, _ = client.answer(later)
        assert (headers["grpc-status"], headers["grpc-message"]) == ("14", "etcdserver: request timed out")
        assert [r["stream"] for r in frontend.kinds("CANCEL")] in ([], [later])
        if status == "0":
            if kind == "BEGIN":
                frontend.push(calls[0], "PART", b"abc")
            frontend.push(calls[0], "END")
        ended = client.answer(stream)[0]
        assert ended["grpc-status"] == status


def test_many_small_windows_are_respected():
    body = b"0123456789" * 500

    with (
        Frontend(answer=lambda record, member: [("REPLY", body, {})]) as frontend,
        Client(frontend.port, greet=False) as client,
    ):
        from tests.frontend.rawh2 import PREFACE, SETTINGS

        client.send(PREFACE + frame(SETTINGS, 0, 0, b"\0\x04" + (100).to_bytes(4, "big")))  # INITIAL_WINDOW_SIZE
        stream, data = client.call(GET, path="/etcdserverpb.KV/Range")
        client.send(data)
        got = b""
        while len(got) < len(body) + 5:
            kind, _, on, payload = client.read_frame()
            if kind == DATA and on == stream:
                assert len(payload) <= 100
                got += payload
                client.send(frame(WINDOW_UPDATE, 0, stream, len(payload).to_bytes(4, "big")))
        assert got[5:] == body


def test_records_of_calls_that_do_not_exist_are_dropped():
    def answer(record, member):
        for slot, generation, stream in (
            (0, 99, 1),
            (7, 1, 1),
            (1 << 31, 1, 1),
            (record["slot"], record["generation"], 99),
        ):
            strange = {**record, "slot": slot, "generation": generation, "stream": stream}
            for kind in KINDS:
                member.push(strange, kind, b"x")
        return [("REPLY", record["payload"], {})]

    with Frontend(answer=answer) as frontend, frontend.channel() as channel:
        for _ in range(3):
            assert unary(channel, "Range")(GET, timeout=10) == GET


def test_cancels_reach_apply_even_through_a_full_ring():
    big = pb.TxnRequest(
        compare=[pb.Compare(key=b"k", value=b"v" * 60_000)],
        success=[pb.RequestOp(request_range=pb.RangeRequest(key=b"k", serializable=True))],
    ).SerializeToString()
    with Frontend(answer=lambda record, member: []) as frontend:
        frontend.paused.set()
        with Client(frontend.port) as client:
            for _ in range(90):  # 5.4 MB of calls into a ring of 4 MiB: it is full, the rest waits
                client.send(client.call(big, path="/etcdserverpb.KV/Txn")[1])
        frontend.paused.clear()
        calls = lambda: {r["stream"] for r in frontend.kinds("CALL")}  # noqa: E731
        cancels = lambda: {r["stream"] for r in frontend.kinds("CANCEL")}  # noqa: E731
        wait_until(lambda: len(calls()) > 10 and calls() == cancels(), "a CANCEL for every call that reached apply")
