"""Answers larger than a ring record: exact size up front, credit, pinned revisions, compaction beside them."""

import random

import pytest

from etcdfast.api.pb import rpc_pb2
from etcdfast.apply import compaction
from tests.apply.rig import CREDIT_BYTES, KINDS, RPC, Rig, answer_of

R = rpc_pb2.RangeRequest
KEYS = 3000


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path / "store")
    rng = random.Random(11)
    # Written in random order, so that reads in key order hop over the store.
    for i in rng.sample(range(KEYS), KEYS):
        rig.propose("Put", rpc_pb2.PutRequest(key=b"k%06d" % i, value=rng.randbytes(rng.randint(0, 400))), asked=False)
    rig.settle()
    yield rig
    rig.close()


def whole(rig):
    """All keys by small ranges, which take the short way."""
    kvs = []
    key = b"k"
    while True:
        answer = rig.range(key, b"l", limit=50).message
        kvs += answer.kvs
        if not answer.more:
            return kvs
        key = answer.kvs[-1].key + b"\0"


def pull(rig, stream, records=None):
    """Records of one call, at most CREDIT_BYTES ahead of the credit given; the test gives it bit by bit."""
    records = records or []
    outstanding = 0
    for _ in range(100_000):
        rig.turn()
        for record in rig.take():
            assert record["stream"] == stream
            records.append(record)
            if record["kind"] in (KINDS["PART"], KINDS["MESSAGE"]):
                outstanding += len(record["payload"])
        assert outstanding <= CREDIT_BYTES
        if records and records[-1]["kind"] in (KINDS["END"], KINDS["REPLY"]):
            return records
        if outstanding > CREDIT_BYTES // 2:
            rig.credit(stream, 5000)
            outstanding -= 5000
    raise AssertionError("no end")


def test_large_range_is_announced_exactly_and_obeys_credit(rig):
    answer = answer_of("Range", pull(rig, rig.read("Range", R(key=b"k", range_end=b"l"))))
    assert list(answer.message.kvs) == whole(rig)
    assert answer.message.count == KEYS and not answer.message.more


@pytest.mark.parametrize(
    "more",
    [
        {"limit": 2000},
        {"keys_only": True},
        {"sort_order": R.DESCEND},
        {"sort_order": R.DESCEND, "sort_target": R.MOD, "limit": 1999},
        {"sort_order": R.ASCEND, "sort_target": R.VALUE},
        {"sort_order": R.DESCEND, "sort_target": R.VALUE, "limit": 1500},
        {"sort_target": R.VALUE, "limit": 1500, "keys_only": True},
        {"min_mod_revision": 500, "max_mod_revision": 2500},
        {"min_mod_revision": 500, "limit": 1000},
        {"sort_target": R.CREATE, "keys_only": True},
    ],
    ids=str,
)
def test_large_range_with_options(rig, more):
    request = R(key=b"k", range_end=b"l", **more)
    got = answer_of("Range", pull(rig, rig.ask("Range", request))).message
    kvs = whole(rig)
    if "min_mod_revision" in more:
        kvs = [kv for kv in kvs if kv.mod_revision >= 500 and kv.mod_revision <= more.get("max_mod_revision", 1 << 40)]
    elif "limit" in more and "sort_order" not in more:
        kvs = kvs[: more["limit"] + 1]
    by = {R.KEY: "key", R.MOD: "mod_revision", R.CREATE: "create_revision", R.VALUE: "value"}[request.sort_target]
    kvs.sort(key=lambda kv: getattr(kv, by), reverse=request.sort_order == R.DESCEND)
    limit = request.limit or len(kvs)
    assert got.more == (len(kvs) > limit) and got.count == KEYS
    if request.keys_only:
        for kv in kvs:
            kv.value = b""
    # Equal empty values may come in any order.
    assert sorted(kv.SerializeToString() for kv in got.kvs if kv.value or request.keys_only) == sorted(
        kv.SerializeToString() for kv in kvs[:limit] if kv.value or request.keys_only
    )
    if not request.keys_only:
        assert [getattr(kv, by) for kv in got.kvs] == [getattr(kv, by) for kv in kvs[:limit]]


def test_a_long_read_sees_one_revision(rig):
    before = whole(rig)
    stream = rig.read("Range", R(key=b"k", range_end=b"l"))
    rig.turn()
    assert rig.loop.answers.oldest_pin() == rig.process.mvcc.current
    for i in range(0, KEYS, 2):
        rig.propose("Put", rpc_pb2.PutRequest(key=b"k%06d" % i, value=b"new"), asked=False)
    rig.propose("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"k001", range_end=b"k002"), asked=False)
    answer = answer_of("Range", pull(rig, stream))
    assert list(answer.message.kvs) == before
    assert answer.message.header.revision == max(kv.mod_revision for kv in before)
    assert rig.loop.answers.oldest_pin() is None


def test_compaction_waits_for_a_long_read(rig):
    before = whole(rig)
    stream = rig.read("Range", R(key=b"k", range_end=b"l"))
    rig.turn()
    for i in range(KEYS):
        rig.propose("Put", rpc_pb2.PutRequest(key=b"k%06d" % i, value=b"new"), asked=False)
    rig.turn()
    compacted = rig.propose("Compact", rpc_pb2.CompactionRequest(revision=2 * KEYS, physical=True))
    for _ in range(20):
        rig.turn()
    first = rig.take()
    assert {record["stream"] for record in first} == {stream}
    # What is compacted is refused to newcomers at once.
    late = rig.read("Range", R(key=b"k", revision=KEYS))
    for _ in range(5):
        rig.turn()
    mixed = rig.take()
    assert [r["status"] for r in mixed if r["stream"] == late] == [9]
    first += [r for r in mixed if r["stream"] == stream]
    rig.credit(stream, sum(len(r["payload"]) for r in first if r["kind"] == KINDS["PART"]))
    answers = rig.settle()
    assert list(answer_of("Range", first + answers[stream]).message.kvs) == before
    assert answer_of("Compact", answers[compacted]).status == ""
    assert rig.process.mvcc.index_stats[2] < 2 * KEYS


def test_compaction_ends_a_read_that_holds_it_up_too_long(rig, monkeypatch):
    stream = rig.read("Range", R(key=b"k", range_end=b"l"))
    for _ in range(30):
        rig.turn()
    first = rig.take()
    assert first[0]["kind"] == KINDS["BEGIN"]
    for i in range(KEYS):
        rig.propose("Put", rpc_pb2.PutRequest(key=b"k%06d" % i, value=b"new"), asked=False)
    rig.turn()
    monkeypatch.setattr(compaction, "WAIT_NS", 0)
    compacted = rig.propose("Compact", rpc_pb2.CompactionRequest(revision=2 * KEYS, physical=True))
    answers = rig.settle()
    assert answers[stream][-1]["kind"] == KINDS["END"] and answers[stream][-1]["status"] == 9
    assert answer_of("Compact", answers[compacted]).status == ""


def test_cancel_drops_a_long_read(rig):
    stream = rig.read("Range", R(key=b"k", range_end=b"l"))
    rig.turn()
    rig.cancel(stream)
    for _ in range(5):
        rig.turn()
    rig.take()
    rig.credit(stream, 1000)  # crossing on the way: no stream any more
    rig.turn()
    assert rig.take() == [] and rig.loop.answers.oldest_pin() is None


def test_cancel_that_overtakes_its_read(rig):
    gone = rig.stream + 2
    rig.cancel(gone)
    rig.turn()
    assert rig.read("Range", R(key=b"k", range_end=b"l")) == gone
    rig.turn()
    assert rig.take() == [] and rig.loop.answers.oldest_pin() is None


def merged(records):
    assert records[-1]["kind"] == KINDS["END"] and records[-1]["status"] == 0
    out = rpc_pb2.RangeStreamResponse()
    parts = []
    for record in records[:-1]:
        if record["kind"] == KINDS["MESSAGE"]:
            parts.append(record["payload"])
        elif record["kind"] == KINDS["BEGIN"]:
            parts.append(b"")
            expected = record["index"]
        else:
            parts[-1] += record["payload"]
            assert len(parts[-1]) <= expected
    for part in parts[:-1]:
        chunk = rpc_pb2.RangeStreamResponse.FromString(part).range_response
        assert chunk.kvs and not chunk.HasField("header") and not chunk.more and not chunk.count
        out.range_response.MergeFrom(chunk)
    out.MergeFrom(rpc_pb2.RangeStreamResponse.FromString(parts[-1]))
    return out.range_response, parts


@pytest.mark.parametrize("more", [{}, {"limit": 700}, {"keys_only": True}, {"count_only": True}, {"limit": 3}], ids=str)
def test_range_stream_merges_to_the_range(rig, more):
    request = R(key=b"k", range_end=b"l", **more)
    got, parts = merged(pull(rig, rig.read("RangeStream", request)))
    assert got == answer_of("Range", pull(rig, rig.read("Range", request))).message
    assert all(len(part) <= 65536 for part in parts)


def test_range_stream_of_nothing(rig):
    got, parts = merged(pull(rig, rig.read("RangeStream", R(key=b"nothing"))))
    assert len(parts) == 1 and got.count == 0 and got.header.revision == rig.process.mvcc.current


def test_range_stream_with_values_larger_than_a_record(rig):
    big = [random.Random(i).randbytes(300_000) for i in range(3)]
    for i, value in enumerate(big):
        rig.put(b"x%d" % i, value)
    got, parts = merged(pull(rig, rig.read("RangeStream", R(key=b"x", range_end=b"y"))))
    assert [kv.value for kv in got.kvs] == big and got.count == 3
    unary = answer_of("Range", pull(rig, rig.read("Range", R(key=b"x", range_end=b"y"))))
    assert unary.message == got


@pytest.mark.parametrize(
    "more, status",
    [
        ({"sort_order": R.DESCEND}, "RANGE_STREAM_SORT"),
        ({"sort_order": R.ASCEND, "sort_target": R.MOD}, "RANGE_STREAM_SORT"),
        ({"min_mod_revision": 1}, "RANGE_STREAM_FILTER"),
        ({"revision": 1 << 40}, "FUTURE_REV"),
    ],
    ids=str,
)
def test_range_stream_refusals(rig, more, status):
    assert answer_of("Range", pull(rig, rig.read("RangeStream", R(key=b"k", range_end=b"l", **more)))).status == status


def test_large_answer_of_a_write(rig):
    """A transaction's answer is what it saw, however long it takes to be read."""
    request = rpc_pb2.TxnRequest()
    request.success.add().request_range.CopyFrom(R(key=b"k", range_end=b"l"))
    request.success.add().request_delete_range.CopyFrom(
        rpc_pb2.DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True)
    )
    before = whole(rig)
    answer = answer_of("Txn", pull(rig, rig.propose("Txn", request))).message
    assert list(answer.responses[0].response_range.kvs) == before
    assert list(answer.responses[1].response_delete_range.prev_kvs) == before
    assert rig.range(b"k", b"l").message.count == 0


def test_long_reads_are_limited_in_number(rig):
    refused = []
    opened = []
    for _ in range(2100):
        stream = rig.ask("Range", R(key=b"k", range_end=b"l"))
        opened.append(stream)
        rig.turn()
        refused += [r for r in rig.take() if r["kind"] == KINDS["REPLY"] and r["status"] == 13]
    assert len(refused) == 2100 - 2048
    for stream in opened:
        rig.cancel(stream)
    while rig.turn():
        rig.take()
    assert rig.loop.answers.oldest_pin() is None


def test_many_long_reads_share_the_turns(rig):
    streams = [rig.ask("Range", R(key=b"k", range_end=b"l")) for _ in range(40)]
    answers = rig.settle()
    expected = whole(rig)
    for stream in streams:
        assert list(answer_of("Range", answers[stream]).message.kvs) == expected
    assert RPC["Range"] == answers[streams[0]][0]["method"]
