"""Whatever the frontend's checks let into the log, apply carries out: an entry it cannot decode would end the
member at this start and at every one after it."""

import random

import pytest

from etcdfast._ext.applyloop import EntryCorrupt
from etcdfast._ext.requests import check
from etcdfast.api.pb import rpc_pb2 as pb
from tests.apply.rig import KINDS, RPC, Rig

INTERNAL_FIELD = {
    "Put": 4, "DeleteRange": 5, "Txn": 6, "Compact": 7, "LeaseGrant": 8, "LeaseRevoke": 9, "Alarm": 10,
}  # fmt: skip
CALLS = ("HashKV", "LeaseKeepAlive")


def operation(**body):
    return pb.RequestOp(**{f"request_{kind}": request for kind, request in body.items()})


def nested_transaction():
    """A bit of everything, three levels deep."""
    leaf = pb.TxnRequest(
        compare=[pb.Compare(key=b"b", target=pb.Compare.VALUE, result=pb.Compare.LESS, value=b"v")],
        success=[operation(put=pb.PutRequest(key=b"d", value=b"deep", prev_kv=True))],
        failure=[operation(delete_range=pb.DeleteRangeRequest(key=b"d", range_end=b"e", prev_kv=True))],
    )
    middle = pb.TxnRequest(
        compare=[pb.Compare(key=b"a", range_end=b"c", target=pb.Compare.VERSION, result=pb.Compare.GREATER)],
        success=[operation(txn=leaf), operation(range=pb.RangeRequest(key=b"a", range_end=b"z", limit=3))],
        failure=[operation(put=pb.PutRequest(key=b"c", value=b"else"))],
    )
    return pb.TxnRequest(
        compare=[
            pb.Compare(key=b"a", target=pb.Compare.MOD, result=pb.Compare.NOT_EQUAL, mod_revision=7),
            pb.Compare(key=b"a", target=pb.Compare.LEASE, lease=0),
        ],
        success=[
            operation(put=pb.PutRequest(key=b"a", value=b"value", ignore_lease=True)),
            operation(delete_range=pb.DeleteRangeRequest(key=b"x", range_end=b"\0")),
            operation(txn=middle),
            operation(range=pb.RangeRequest(key=b"a", range_end=b"\0", sort_order=2, sort_target=3, revision=2)),
        ],
        failure=[operation(txn=middle), operation(put=pb.PutRequest(key=b"b", value=b"v"))],
    )


REQUESTS = {
    "Txn": nested_transaction(),
    "Put": pb.PutRequest(key=b"a", value=b"value", lease=0, prev_kv=True, ignore_lease=True),
    "DeleteRange": pb.DeleteRangeRequest(key=b"a", range_end=b"b", prev_kv=True),
    "Compact": pb.CompactionRequest(revision=2, physical=True),
    "Range": pb.RangeRequest(
        key=b"a", range_end=b"z", limit=2, revision=2, sort_order=1, sort_target=4, min_mod_revision=1
    ),
    "HashKV": pb.HashKVRequest(revision=2),
    "LeaseGrant": pb.LeaseGrantRequest(TTL=60, ID=0x7E57),
    "LeaseRevoke": pb.LeaseRevokeRequest(ID=0x7E57),
    "LeaseKeepAlive": pb.LeaseKeepAliveRequest(ID=0x7E57),
    "LeaseTimeToLive": pb.LeaseTimeToLiveRequest(ID=0x7E57, keys=True),
    "LeaseLeases": pb.LeaseLeasesRequest(),
    "Alarm": pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=5, alarm=pb.NOSPACE),
}


def mutations(message, rand):
    """Every prefix, four changes of every byte, and some pieces taken out, doubled or put in."""
    yield from (message[:size] for size in range(len(message)))
    for at, byte in enumerate(message):
        for changed in {byte ^ 1, byte ^ 2, byte ^ 0x80, rand.randrange(256)} - {byte}:
            yield message[:at] + bytes([changed]) + message[at + 1 :]
    for _ in range(300):
        at, size = rand.randrange(len(message) + 1), rand.randrange(1, 12)
        yield message[:at] + message[at + size :]
        yield message[:at] + message[at : at + size] * 2 + message[at + size :]
        yield message[:at] + rand.randbytes(size) + message[at:]


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path / "db")
    assert made.ca.push(KINDS["HARD"])  # it leads: keep-alives are answered
    for key in (b"a", b"b", b"c", b"d", b"x"):
        assert made.put(key, b"value").status == ""
    yield made
    made.close()


def entry_of(method, message, request_id):
    """Entry.Data as consensus makes it around the request's bytes, whatever they are."""
    size = len(message)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    header = bytes([100 << 3 & 127 | 128, 100 << 3 >> 7, 2, 8, request_id & 127])
    return bytes([INTERNAL_FIELD[method] << 3 | 2]) + length + message + header


def send(rig, method, message, verdict):
    """Hand the bytes over the way this request goes; returns the stream of the answer."""
    if verdict.new_id:
        message += b"\x10\xff\x7f"  # as consensus does
    if method in INTERNAL_FIELD and not verdict.read_only:
        return rig.entry(entry_of(method, message, rig.index))
    rig.stream += 2
    ring, kind = (rig.f0a, "CALL") if method in CALLS else (rig.ca, "READ")
    assert ring.push(KINDS[kind], message, method=RPC[method], frontend=0, slot=7, generation=3, stream=rig.stream)
    return rig.stream


@pytest.mark.parametrize("method", REQUESTS)
def test_what_passes_the_checks_is_answered(rig, method):
    waiting = set()
    for message in mutations(REQUESTS[method].SerializeToString(), random.Random(20)):
        verdict = check(RPC[method], message)
        if verdict.malformed or verdict.error:
            continue
        waiting.add(send(rig, method, message, verdict))
        if len(waiting) == 64:
            assert rig.settle().keys() >= waiting
            waiting.clear()
    assert rig.settle().keys() >= waiting
    assert rig.index == rig.loop.applied_index
    assert rig.put(b"after", b"all").status in ("", "NO_SPACE")


def test_an_entry_that_is_no_message_ends_the_member(tmp_path):
    """Never by going on, and never by reading past its end."""
    message = REQUESTS["Txn"].SerializeToString()
    cuts = [size for size in range(1, len(message), 23) if check(RPC["Txn"], message[:size]).malformed]
    assert len(cuts) > 5
    for size in cuts:
        rig = Rig(tmp_path / str(size))
        rig.entry(entry_of("Txn", message[:size], 1))
        with pytest.raises(EntryCorrupt, match="cannot be decoded"):
            rig.turn()
        rig.close(flush=False)
