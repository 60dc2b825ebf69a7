"""Unary calls through grpcio and by hand: routes, statuses and texts, deadlines, cancellation."""

import grpc
import pytest

from etcdfast._ext.ring import APPLY_WORDS, CONSENSUS_WORDS, NOBODY
from etcdfast.api.errors import ID
from etcdfast.api.pb import rpc_pb2 as pb
from tests.frontend.member import Frontend, server_stream, unary
from tests.frontend.rawh2 import DATA, END_STREAM, Client, frame, message, request_headers
from tests.harness.wait import wait_until

PUT = pb.PutRequest(key=b"k", value=b"v" * 200).SerializeToString()
GET = pb.RangeRequest(key=b"k").SerializeToString()
GET_LOCAL = pb.RangeRequest(key=b"k", serializable=True).SerializeToString()


# Five seconds and two election timeouts are the server's own deadline: this makes it 0.4 s.
OWN_TIMEOUT = -2300


def failure(call, *arguments, **options):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=10, **options)
    return caught.value.code().name, caught.value.details()


def txn(*ops):
    return pb.TxnRequest(success=ops).SerializeToString()


@pytest.mark.parametrize(
    ("service", "method", "body", "ring", "kind"),
    [
        ("etcdserverpb.KV", "Put", PUT, "f0c", "PROPOSE"),
        ("etcdserverpb.KV", "Range", GET, "f0c", "READ"),
        ("etcdserverpb.KV", "Range", GET_LOCAL, "f0a", "CALL"),
        ("etcdserverpb.KV", "DeleteRange", GET, "f0c", "PROPOSE"),
        ("etcdserverpb.KV", "Compact", b"\x08\x05", "f0c", "PROPOSE"),
        ("etcdserverpb.KV", "Txn", txn(pb.RequestOp(request_put=pb.PutRequest(key=b"k"))), "f0c", "PROPOSE"),
        ("etcdserverpb.KV", "Txn", txn(pb.RequestOp(request_range=pb.RangeRequest(key=b"k"))), "f0c", "READ"),
        (
            "etcdserverpb.KV",
            "Txn",
            txn(pb.RequestOp(request_range=pb.RangeRequest(key=b"k", serializable=True))),
            "f0a",
            "CALL",
        ),
        ("etcdserverpb.KV", "Txn", b"", "f0a", "CALL"),
        ("etcdserverpb.Maintenance", "Alarm", b"", "f0c", "PROPOSE"),
        ("etcdserverpb.Maintenance", "Status", b"", "f0a", "CALL"),
        ("etcdserverpb.Maintenance", "HashKV", b"", "f0a", "CALL"),
        ("etcdserverpb.Cluster", "MemberList", b"", "f0a", "CALL"),
        ("etcdserverpb.Cluster", "MemberList", b"\x08\x01", "f0c", "READ"),
    ],
)
def test_a_call_takes_its_road(frontend, service, method, body, ring, kind):
    before = len(frontend.seen)
    with frontend.channel() as channel:
        assert unary(channel, method, service)(body, timeout=10) == body
    record = frontend.seen[before]
    assert (record["ring"], record["kind"], record["payload"]) == (ring, kind, body)


@pytest.mark.parametrize(
    ("service", "method", "body", "code", "text"),
    [
        ("etcdserverpb.KV", "Put", b"", "INVALID_ARGUMENT", "etcdserver: key is not provided"),
        ("etcdserverpb.KV", "Range", b"", "INVALID_ARGUMENT", "etcdserver: key is not provided"),
        (
            "etcdserverpb.KV",
            "Put",
            b"\x0a\x05k",
            "INTERNAL",
            "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data",
        ),
        ("etcdserverpb.KV", "Nothing", b"", "UNIMPLEMENTED", "unknown method Nothing for service etcdserverpb.KV"),
        (
            "etcdserverpb.Maintenance",
            "Downgrade",
            b"",
            "UNIMPLEMENTED",
            "unknown method Downgrade for service etcdserverpb.Maintenance",
        ),
        ("no.Such", "Thing", b"", "UNIMPLEMENTED", "unknown service no.Such"),
        (
            "etcdserverpb.KV",
            "Put",
            b"x" * 2097153,
            "RESOURCE_EXHAUSTED",
            "grpc: received message larger than max (2097153 vs. 2097152)",
        ),
        ("grpc.health.v1.Health", "Check", b"\x0a\x01x", "NOT_FOUND", "unknown service"),
    ],
)
def test_a_refused_call_has_code_and_text(frontend, service, method, body, code, text):
    with frontend.channel() as channel:
        assert failure(unary(channel, method, service), body) == (code, text)
        assert unary(channel, "Put")(PUT, timeout=10) == PUT


def test_health_check_serves(frontend):
    with frontend.channel() as channel:
        assert unary(channel, "Check", "grpc.health.v1.Health")(b"", timeout=10) == b"\x08\x01"
        watch = server_stream(channel, "Watch", "grpc.health.v1.Health")(b"", timeout=10)
        assert next(watch) == b"\x08\x01"
        watch.cancel()


def test_a_large_request_arrives_whole(frontend):
    body = pb.PutRequest(key=b"k", value=bytes(range(256)) * 5000).SerializeToString()
    with frontend.channel() as channel:
        call = unary(channel, "Put")
        futures = [call.future(body, timeout=30) for _ in range(20)]
        assert all(f.result() == body for f in futures)
    wait_until(lambda: frontend.seen[-1]["payload"] == body, "the record")


def test_errors_from_apply_have_the_tables_text_or_their_own():
    answers = iter(
        [
            [("REPLY", b"", {"status": ID["COMPACTED"]})],
            [("END", b"", {"status": ID["FUTURE_REV"]})],
            [("REPLY", "söme 100%\n".encode(), {"status": ID["CORRUPT"]})],
        ]
    )
    with Frontend(answer=lambda record, member: next(answers)) as frontend, frontend.channel() as channel:
        call = unary(channel, "Range")
        assert failure(call, GET) == ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted")
        assert failure(call, GET) == ("OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision")
        assert failure(call, GET) == ("DATA_LOSS", "söme 100%\n")


def by_hand(frontend, data_of):
    """Send what data_of(client) returns on stream 1; the answer's headers."""
    with Client(frontend.port) as client:
        client.send(data_of(client))
        return client.answer(1)[0]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({":method": "GET"}, {":status": "405", "grpc-status": "13"}),
        ({"content-type": "application/json"}, {":status": "415", "grpc-status": "3"}),
        ({"content-type": None}, {":status": "415", "grpc-status": "3"}),
        ({"content-type": "application/grpcx"}, {":status": "415", "grpc-status": "3"}),
        ({"grpc_timeout": "5x"}, {":status": "400", "grpc-status": "13"}),
        ({"grpc_timeout": "123456789S"}, {":status": "400", "grpc-status": "13"}),
        (
            {"grpc_encoding": "gzip"},
            {
                "grpc-status": "12",
                "grpc-accept-encoding": "identity",
                "grpc-message": 'grpc: Decompressor is not installed for grpc-encoding "gzip"',
            },
        ),
        ({"grpc_encoding": "identity"}, {"grpc-status": "0"}),
        ({"content-type": "application/grpc+proto"}, {"grpc-status": "0"}),
        ({"te": None, "hasleader": "true", "grpc_timeout": "99999999H"}, {"grpc-status": "0"}),
        ({":path": "etcdserverpb.KV/Put"}, {"reset": 1}),
        (
            {":path": "/etcdserverpb.KV"},
            {"grpc-status": "12", "grpc-message": 'malformed method name: "/etcdserverpb.KV"'},
        ),
    ],
)
def test_request_headers_are_checked(frontend, headers, expected):
    def data_of(client):
        fields = dict(request_headers())
        fields.update({name.replace("_", "-"): value for name, value in headers.items()})
        fields = [(name, value) for name, value in fields.items() if value is not None]
        return client.head(fields, 1) + frame(DATA, END_STREAM, 1, message(PUT))

    got = by_hand(frontend, data_of)
    assert {name: got.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", "cardinality violation: received no request message from non-client-streaming RPC"),
        (
            message(PUT) + message(PUT),
            "cardinality violation: received multiple request messages for non-client-streaming RPC",
        ),
        (message(PUT)[:-1], "unexpected EOF"),
        (b"\0\0", "unexpected EOF"),
        (b"\1" + message(PUT)[1:], "grpc: compressed flag set with identity or empty encoding"),
        (b"\7" + message(PUT)[1:], "grpc: received unexpected payload format 7"),
    ],
)
@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_a_unary_call_is_one_whole_message(frontend, payload, text, piece):
    def data_of(client):
        pieces = [payload[i : i + piece] for i in range(0, len(payload), piece)]
        return (
            client.head(request_headers(), 1)
            + b"".join(frame(DATA, 0, 1, p) for p in pieces)
            + frame(DATA, END_STREAM, 1)
        )

    got = by_hand(frontend, data_of)
    assert (got["grpc-status"], got["grpc-message"]) == ("13", text)


def test_the_clients_deadline_ends_a_call():
    with Frontend(answer=lambda record, member: []) as frontend, Client(frontend.port) as client:
        stream, data = client.call(PUT, grpc_timeout="30m")
        client.send(data)
        headers, _ = client.answer(stream)
        assert (headers["grpc-status"], headers["grpc-message"]) == ("4", "etcdserver: context deadline exceeded")
        stream, data = client.call(GET_LOCAL, path="/etcdserverpb.KV/Range", grpc_timeout="20m")
        client.send(data)
        assert client.answer(stream)[0]["grpc-status"] == "4"
        wait_until(lambda: frontend.kinds("CANCEL"), "CANCEL for the read")
        assert [r["stream"] for r in frontend.kinds("CANCEL")] == [stream]


@pytest.mark.parametrize("timeout", ["0n", "1n", "0S", "00000000H"])
@pytest.mark.parametrize("body", [GET, GET_LOCAL])
def test_a_deadline_that_has_passed_is_no_call(timeout, body):
    with Frontend() as frontend, Client(frontend.port) as client:
        stream, data = client.call(body, path="/etcdserverpb.KV/Range", grpc_timeout=timeout)
        client.send(data)
        headers, got = client.answer(stream)
        assert (headers["grpc-status"], headers["grpc-message"], got) == (
            "4",
            "etcdserver: context deadline exceeded",
            b"",
        )
        stream, data = client.call(b"", path="/etcdserverpb.KV/Range", grpc_timeout=timeout)
        client.send(data)
        assert client.answer(stream)[0]["grpc-status"] == "3"  # what is wrong with the request comes first
        assert frontend.seen == []


def test_the_servers_own_timeout_is_etcds():
    with (
        Frontend(answer=lambda record, member: [], election_timeout=OWN_TIMEOUT) as frontend,
        frontend.channel() as channel,
    ):
        assert failure(unary(channel, "Put"), PUT) == ("UNAVAILABLE", "etcdserver: request timed out")


def test_a_late_answer_to_a_cancelled_call_is_dropped():
    held = []

    def answer(record, member):
        if record["kind"] in ("CREDIT", "CANCEL"):
            return []
        if not held:
            held.append(record)
            return []
        return [("REPLY", record["payload"], {})]

    with Frontend(answer=answer) as frontend, frontend.channel() as channel:
        call = unary(channel, "Range")
        first = call.future(GET, timeout=30)
        wait_until(lambda: held, "the request")
        first.cancel()
        wait_until(lambda: frontend.kinds("CANCEL"), "CANCEL")
        frontend.push(held[0], "REPLY", b"late")
        assert call(GET, timeout=10) == GET


def test_puts_beyond_the_quota_are_refused_and_raise_the_alarm_once():
    with Frontend(quota_backend_bytes=1_000_000) as frontend, frontend.channel() as channel:
        cost = 256 + len(b"k") + 200
        frontend.apply[APPLY_WORDS["db_bytes"]] = 1_000_000 - cost - 1
        assert unary(channel, "Put")(PUT, timeout=10) == PUT
        frontend.apply[APPLY_WORDS["db_bytes"]] = 1_000_000 - cost
        no_space = ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded")
        assert failure(unary(channel, "Put"), PUT) == no_space
        frontend.apply[APPLY_WORDS["db_bytes"]] = 1_000_000
        assert failure(unary(channel, "Put"), b"") == no_space  # before the missing key is seen, as in etcd
        put_in_txn = txn(pb.RequestOp(request_put=pb.PutRequest(key=b"k", value=b"v" * 100)))
        assert failure(unary(channel, "Txn"), put_in_txn) == no_space
        assert unary(channel, "DeleteRange")(GET, timeout=10) == GET
        alarms = [r for r in frontend.seen if r["frontend"] == NOBODY]
        assert len(alarms) == 1
        raised = pb.AlarmRequest.FromString(alarms[0]["payload"])
        assert (raised.action, raised.memberID, raised.alarm) == (1, 0x1234, 1)


def test_hasleader_needs_a_leader():
    with Frontend() as frontend, frontend.channel() as channel:
        frontend.consensus[CONSENSUS_WORDS["leader"]] = 0
        call = unary(channel, "Put")
        assert call(PUT, timeout=10) == PUT
        assert failure(call, PUT, metadata=[("hasleader", "true")]) == ("UNAVAILABLE", "etcdserver: no leader")


def test_a_full_request_ring_holds_the_sockets_back():
    body = pb.PutRequest(key=b"k", value=b"v" * 100_000).SerializeToString()
    with Frontend() as frontend, frontend.channel() as channel:
        frontend.paused.set()
        call = unary(channel, "Put")
        futures = [call.future(body, timeout=60) for _ in range(100)]  # 10 MB through a ring of 4 MiB
        assert not any(f.done() for f in futures)
        frontend.paused.clear()
        assert all(f.result() == body for f in futures)
