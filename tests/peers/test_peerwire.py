"""Raft messages as bytes: against the protobuf runtime, and against damage. HTTP chunks: cut anywhere, or wrong."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from etcdfast._ext.peerwire import ChunkDecoder, PeerMessage, PeerMessageError, marshal_message
from etcdfast.api.pb import raft_pb2

APP, PROP = 3, 2
EMPTY_SNAPSHOT = bytes.fromhex("4a0a12080a022800100018 00".replace(" ", ""))
U64 = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1), st.just(2**64 - 1))
# MsgApp is apart: its entries have to follow each other.
TYPES = st.sampled_from([4, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 18])
ENTRIES = st.lists(st.tuples(U64, U64, st.integers(0, 2), st.binary(max_size=300)), max_size=5)


def as_protobuf(fields, empty_snapshot):
    type, to, frm, term, log_term, index, commit, entries, reject, reject_hint, context, snapshot = fields
    message = raft_pb2.Message(
        type=type, to=to, term=term, logTerm=log_term, index=index, commit=commit, reject=reject, rejectHint=reject_hint
    )
    setattr(message, "from", frm)
    for e_term, e_index, e_type, data in entries:
        message.entries.add(Type=e_type, Term=e_term, Index=e_index, Data=data or None)
    if context is not None:
        message.context = context
    if snapshot is not None:
        message.snapshot.ParseFromString(snapshot)
    elif empty_snapshot:
        message.snapshot.ParseFromString(EMPTY_SNAPSHOT[2:])
    return message


@given(st.tuples(TYPES, U64, U64, U64, U64, U64, U64, ENTRIES, st.booleans(), U64, st.none() | st.binary(max_size=40)))
def test_a_message_is_the_same_bytes_as_the_protobuf_runtimes(drawn):
    fields = (*drawn, None)
    for empty_snapshot in (True, False):
        data = marshal_message(*fields, empty_snapshot=empty_snapshot)
        assert data == as_protobuf(fields, empty_snapshot).SerializeToString(deterministic=True)
        assert (EMPTY_SNAPSHOT in data) >= empty_snapshot
        assert PeerMessage(data).fields() == fields


@given(st.integers(1, 2**64 - 1), U64, st.binary(max_size=500), st.integers(0, 2**32))
def test_a_snapshot_message_keeps_its_snapshot(index, term, data, voter):
    snapshot = raft_pb2.Snapshot(data=data, metadata={"index": index, "term": term, "conf_state": {"voters": [voter]}})
    made = marshal_message(7, 1, 2, term, snapshot=snapshot.SerializeToString())
    message = PeerMessage(made)
    assert message.snap_index == index
    assert message.fields()[-1] == snapshot.SerializeToString()
    assert raft_pb2.Message.FromString(made).snapshot == snapshot


@given(st.integers(0, 2**63), st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=50)), max_size=8))
def test_appended_entries_follow_the_message(index, rows):
    entries = [(2, index + 1 + i, type, data) for i, (type, data) in enumerate(rows)]
    fields = (APP, 1, 2, 3, 1, index, 9, entries, False, 0, None, None)
    assert PeerMessage(marshal_message(*fields)).fields() == fields


@pytest.mark.parametrize(
    "entries",
    [
        [(2, 7, 0, b"")],  # a hole before it
        [(2, 5, 0, b"")],  # below
        [(2, 6, 0, b""), (2, 8, 0, b"")],  # a hole inside
        [(2, 6, 0, b""), (1, 7, 0, b"")],  # a term that falls
        [(0, 6, 0, b"")],  # below the term before
        [(4, 6, 0, b"")],  # above the message's
    ],
)
def test_entries_that_do_not_follow_are_refused(entries):
    with pytest.raises(PeerMessageError):
        PeerMessage(marshal_message(APP, 1, 2, 3, 1, 5, 0, entries))


def test_an_index_that_overflows_is_refused():
    with pytest.raises(PeerMessageError):
        PeerMessage(marshal_message(APP, 1, 2, 3, 1, 2**64 - 1, 0, [(1, 0, 0, b"")]))


def test_proposals_carry_no_term_and_index():
    message = PeerMessage(marshal_message(PROP, 1, 2, entries=[(5, 6, 0, b"x"), (5, 7, 1, b"")]))
    assert message.fields()[7] == [(0, 0, 0, b"x"), (0, 0, 1, b"")]


def test_fields_in_any_order_and_unknown_ones():
    data = marshal_message(8, 1, 2, 3, commit=4, context=b"abc", empty_snapshot=False)
    # In the midst vote (13), of raft 3.6.
    assert PeerMessage(data[14:] + b"\x68\x07" + data[:14]).fields() == PeerMessage(data).fields()


@pytest.mark.parametrize("size", [5, 1000, 70000])
def test_a_message_cut_anywhere_is_no_other_message(size):
    data = marshal_message(4, 1, 2, 3, 4, 5, 6, [(1, 1, 0, b"x" * size)], True, 7, b"context")
    whole = PeerMessage(data).fields()
    for cut in [*range(60), *range(len(data) - 60, len(data))]:
        if cut >= len(data):
            continue
        try:
            assert PeerMessage(data[:cut]).fields() != whole
        except PeerMessageError:
            pass


@settings(max_examples=500)
@given(st.binary(max_size=80) | st.tuples(st.integers(0, 79), st.integers(0, 255)))
def test_damage_is_an_error_or_what_the_protobuf_runtime_reads(damage):
    if isinstance(damage, tuple):
        fields = (9, 1, 2, 3, 4, 5, 6, [(1, 2, 0, b"data")], True, 7, b"context")
        data = bytearray(marshal_message(*fields, empty_snapshot=False))
        data[damage[0] % len(data)] = damage[1]
        damage = bytes(data)
    try:
        fields = PeerMessage(damage).fields()
    except PeerMessageError:
        return
    try:
        message = raft_pb2.Message.FromString(damage)
    except DecodeError:
        # The configuration state inside of a snapshot is read by who takes the snapshot.
        assert b"\x4a" in damage, "accepted what the protobuf runtime refuses"
        return
    assert (message.to, message.term, message.index, message.commit) == (fields[1], fields[3], fields[5], fields[6])
    assert [e.Data for e in message.entries] == [e[3] for e in fields[7]]


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a\xff\xff\xff\xff\x0f",  # entries of 4 GiB
        b"\x3a\x02\x22\x7f",  # data beyond its entry
        b"\x4a\x03\x12\x7f\x00",  # metadata beyond its snapshot
        b"\x08\xff\xff\xff\xff\x0f",  # a type that is no int32
        b"\x10",  # no value
        b"\x62\x80",  # a length cut short
        b"\x12\x01a",  # `to` as bytes
        b"\x3a\x02\x12\x00",  # an entry's term as bytes
    ],
)
def test_malformed(data):
    with pytest.raises(PeerMessageError):
        PeerMessage(data)


def test_more_entries_than_any_message_of_etcd_holds():
    entry = b"\x3a\x00"
    PeerMessage(entry * 1000)
    with pytest.raises(PeerMessageError):
        PeerMessage(entry * 262145)


# ---- chunks -----------------------------------------------------------------------------------------


def chunked(pieces, extension=b""):
    return b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces if piece)


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=8),
    st.sampled_from([b"", b";name=value", b" ", b";a=\"b c\""]),
    st.lists(st.integers(0, 4000), max_size=20),
    st.booleans(),
)
def test_chunks_cut_anywhere(pieces, extension, cuts, ended):
    data = chunked(pieces, extension) + (b"0\r\n\r\n" if ended else b"")
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    decoder = ChunkDecoder()
    got = b"".join(decoder.feed(data[a:b]) for a, b in zip(places, places[1:], strict=False))
    assert got == b"".join(pieces)
    assert decoder.ended == ended


def test_trailers_and_what_follows_the_last_chunk_are_not_payload():
    decoder = ChunkDecoder()
    assert decoder.feed(b"3\r\nabc\r\n000\r\nTrailer: x\r\n\r\nHTTP/1.1 200 OK\r\n") == b"abc"
    assert decoder.feed(b"5\r\nabcde\r\n") == b""
    assert decoder.ended


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",  # no size
        b"g\r\n",
        b"-1\r\n",
        b"0x3\r\nabc\r\n",
        b"3\nabc\r\n",  # bare LF
        b"3\r\rabc",
        b"3\r\nabcd\r\n",  # longer than it says
        b"3\r\nabc\n",
        b"1000000000000000\r\n",  # sixteen digits
        b"00000000000000003\r\nabc\r\n",
        b"3;" + b"x" * 5000 + b"\r\n",  # an extension without end
    ],
)
def test_malformed_chunks(data):
    with pytest.raises(PeerMessageError):
        ChunkDecoder().feed(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_chunks_or_an_error(data):
    decoder = ChunkDecoder()
    try:
        whole = decoder.feed(data)
    except PeerMessageError:
        whole = None
    decoder, parts = ChunkDecoder(), []
    try:
        for byte in data:
            parts.append(decoder.feed(bytes([byte])))
    except PeerMessageError:
        parts = None
    assert (whole is None) == (parts is None)
    assert whole is None or whole == b"".join(parts)
