"""Streams of a peer link over socket pairs: frames, limits, deadlines, and what a hostile peer may send."""

import fcntl
import os
import socket
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcdfast._ext.peerlink import PeerLink
from etcdfast._ext.peerwire import ChunkDecoder, marshal_message

APP, MESSAGE = 0, 1
DOWN, FULL, BROKEN, MALFORMED = -1, -2, -4, -5
MSG_PROP, MSG_APP, MSG_APP_RESP, MSG_HEARTBEAT, MSG_READ_INDEX = 2, 3, 4, 8, 15
SECOND = 10**9
LOCAL, REMOTE = 0xA, 0xB
FRAME_MAX = 1 << 20


class Pair:
    """Link `a` of member A sends to link `b` of member B."""

    def __init__(self, **limits):
        self.a = PeerLink(REMOTE, LOCAL, **limits)
        self.b = PeerLink(LOCAL, REMOTE, **limits)
        for kind in (APP, MESSAGE):
            self.attach(kind)

    def attach(self, kind, leftover=b""):
        near, far = socket.socketpair()
        self.a.attach_out(kind, near.detach())
        self.b.attach_in(kind, far.detach(), leftover)

    def close(self):
        self.a.close()
        self.b.close()

    def carry(self, kind):
        """Messages that reach B."""
        got = []
        while True:
            left = self.a.flush(kind)
            assert left in (0, 1)
            count = self.b.receive(kind)
            assert count >= 0
            while isinstance(fields := self.b.next(kind), tuple):
                got.append(fields)
            assert fields == 0
            if not left and not count:
                return got


@pytest.fixture
def pair():
    made = Pair()
    yield made
    made.close()


@pytest.fixture
def raw():
    """(link of B, socket that writes to its incoming stream of the kind asked for)."""
    made = []

    def attach(kind, chunked=False, leftover=b"", **limits):
        near, far = socket.socketpair()
        link = PeerLink(LOCAL, REMOTE, **limits)
        made.extend((near, link))
        link.attach_in(kind, far.detach(), leftover, chunked)
        return link, near

    yield attach
    for thing in made:
        thing.close()


def take(link, kind):
    while (count := link.receive(kind)) > 0:
        pass
    assert count == 0
    return link.next(kind)


def frame(message):
    return struct.pack(">Q", len(message)) + message


def app_fields(term, prev_index, prev_term, commit, entries):
    return (MSG_APP, REMOTE, LOCAL, term, prev_term, prev_index, commit, entries, False, 0, None, None)


# ---- what goes in comes out -------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),  # how much the term rises
            st.integers(-2, 2) | st.just(0),  # where the message begins, from the end of the one before
            st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=2000)), max_size=5),
            st.integers(0, 2**64 - 1),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_appends_in_both_frame_types(steps, empty_snapshot):
    pair = Pair(empty_snapshot=empty_snapshot)
    try:
        term, last, last_term, sent = 1, 10, 1, []
        for rise, jump, rows, commit in steps:
            term += rise
            # A message that goes on where the last one ended says the last one's term, others an older one.
            prev = max(0, last + jump)
            prev_term = last_term if jump == 0 else 1
            entries = [(term, prev + 1 + i, type, data) for i, (type, data) in enumerate(rows)]
            assert pair.a.put_app(term, prev, prev_term, commit, entries) == 0
            sent.append(app_fields(term, prev, prev_term, commit, entries))
            last, last_term = prev + len(entries), term if entries else prev_term
        assert pair.carry(APP) == sent
    finally:
        pair.close()


def stream_bytes(link, kind):
    """Attach a stream and give what is written to it, without chunks."""
    near, far = socket.socketpair()
    link.attach_out(kind, near.detach())

    def written():
        assert link.flush(kind) == 0
        return ChunkDecoder().feed(far.recv(1 << 20))

    return written, far


def test_frame_types_follow_the_encoder_state():
    link = PeerLink(REMOTE, LOCAL)
    written, far = stream_bytes(link, APP)
    with far:
        assert link.put_app(2, 5, 1, 3, [(2, 6, 0, b"x")]) == 0
        assert written()[0] == 2  # nothing is known yet
        assert link.put_app(2, 6, 2, 6, [(2, 7, 0, b"y"), (2, 8, 0, b"")]) == 0
        compact = written()
        entry = bytes.fromhex("080010021807220179"), bytes.fromhex("080010021808")
        assert compact == struct.pack(">BQQ9sQ6sQ", 1, 2, 9, entry[0], 6, entry[1], 6)
        assert link.put_app(2, 8, 2, 8, []) == 0
        assert written() == struct.pack(">BQQ", 1, 0, 8)
        assert link.put_app(3, 8, 2, 8, [(3, 9, 0, b"")]) == 0
        assert written()[0] == 2  # another term
        assert link.put_app(3, 8, 2, 8, []) == 0
        assert written()[0] == 2  # back
    link.close()


def test_a_new_stream_begins_with_a_full_message(pair):
    pair.a.put_app(2, 5, 2, 3, [(2, 6, 0, b"x")])
    pair.carry(APP)
    pair.attach(APP)
    pair.a.put_app(2, 6, 2, 3, [(2, 7, 0, b"x")])
    assert pair.carry(APP) == [app_fields(2, 6, 2, 3, [(2, 7, 0, b"x")])]


def test_the_message_stream(pair):
    a = pair.a
    assert a.put_prop([(5, 6, 0, b"one"), (5, 7, 1, b""), (0, 0, 0, b"x" * 100000)]) == 0
    assert a.put_plain(MSG_APP_RESP, REMOTE, LOCAL, 7, 6, 5, 4, True, 3) == 0
    assert a.put_plain(MSG_HEARTBEAT, REMOTE, LOCAL, 7, commit=9, context=b"12345678") == 0
    assert a.put_read(MSG_READ_INDEX, REMOTE, LOCAL, 7, 2, b"12345678") == 0
    assert a.put_message(marshal_message(17, REMOTE, LOCAL, 8)) == 0
    blank = (False, 0, None, None)
    props = [(0, 0, 0, b"one"), (0, 0, 1, b""), (0, 0, 0, b"x" * 100000)]
    assert pair.carry(MESSAGE) == [
        (MSG_PROP, REMOTE, LOCAL, 0, 0, 0, 0, props, *blank),
        (MSG_APP_RESP, REMOTE, LOCAL, 7, 6, 5, 4, [], True, 3, None, None),
        (MSG_HEARTBEAT, REMOTE, LOCAL, 7, 0, 0, 9, [], False, 0, b"12345678", None),
        (MSG_READ_INDEX, REMOTE, LOCAL, 7, 0, 2, 0, [(0, 0, 0, b"12345678")], *blank),
        (17, REMOTE, LOCAL, 8, 0, 0, 0, [], *blank),
    ]
    assert pair.b.counters()["received_messages"] == 5 == a.counters()["sent_messages"]


def test_frames_cut_at_every_byte(raw):
    link, near = raw(APP, chunked=True)
    full = marshal_message(*app_fields(2, 5, 1, 3, [(2, 6, 0, b"abc")])[:8])
    stream = b"\x00\x02" + frame(full) + struct.pack(">BQQ", 1, 1, 9) + bytes.fromhex("080010021807220179") + b"\0" * 8
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (stream[:10], stream[10:70], stream[70:]))
    got = []
    for byte in chunks:
        near.send(bytes([byte]))
        fields = take(link, APP)
        if fields:
            got.append(fields)
    assert got == [
        app_fields(2, 5, 1, 3, [(2, 6, 0, b"abc")]),
        app_fields(2, 6, 2, 0, [(2, 7, 0, b"y")]),
    ]


def test_large_frames_come_through_small_sockets(pair):
    for size in (1 << 20, 20 << 20, 100, 3 << 20):
        entries = [(1, i + 1, 0, bytes([i]) * (size // 4)) for i in range(4)]
        assert pair.a.put_app(1, 0, 0, 0, entries) == 0
        assert pair.carry(APP) == [app_fields(1, 0, 0, 0, entries)]


def test_what_came_with_the_http_head_is_read_first(raw):
    data = frame(marshal_message(MSG_HEARTBEAT, 1, 2, 3))
    chunk = b"%x\r\n%s\r\n" % (len(data), data)
    link, near = raw(MESSAGE, chunked=True, leftover=chunk[:20])
    assert link.next(MESSAGE) == 0
    near.send(chunk[20:])
    assert take(link, MESSAGE)[:4] == (MSG_HEARTBEAT, 1, 2, 3)
    link, near = raw(MESSAGE, chunked=True, leftover=b"no chunk")
    assert link.next(MESSAGE) == link.receive(MESSAGE) == MALFORMED


# ---- heartbeats and deadlines -----------------------------------------------------------------------


def test_link_heartbeats_keep_a_stream_alive_and_are_no_messages(pair):
    now = time.monotonic_ns()
    assert pair.a.heartbeat(now) == 3
    assert pair.carry(APP) == pair.carry(MESSAGE) == []
    assert pair.a.heartbeat(now + 1_600_000_000) == 0
    assert pair.a.heartbeat(now + 1_700_000_000) == 3
    assert pair.carry(APP) == pair.carry(MESSAGE) == []
    assert pair.b.counters()["received_bytes"] == 2 * (13 + 50)
    assert pair.b.counters()["received_messages"] == 0


def test_a_heartbeat_is_what_etcd_writes():
    link = PeerLink(REMOTE, LOCAL)
    written, far = stream_bytes(link, MESSAGE)
    with far:
        link.heartbeat(time.monotonic_ns())
        # 38 bytes (formats.md 4.5)
        scalars, empty_snapshot = "0808100018002000280030004000", "4a0a12080a02280010001800"
        assert written().hex() == f"000000000000001e{scalars}{empty_snapshot}50005800"
    link.close()


def test_no_heartbeat_behind_bytes_that_wait(pair):
    pair.a.put_plain(MSG_APP_RESP, REMOTE, LOCAL, 1)
    assert pair.a.heartbeat(time.monotonic_ns()) == 1  # the other stream's
    assert len(pair.carry(MESSAGE)) == 1


def test_a_silent_stream_expires(pair):
    now = time.monotonic_ns()
    assert pair.b.expired(now + 4 * SECOND) == 0
    assert pair.b.expired(now + 6 * SECOND) == 4 | 8
    assert pair.a.expired(now + 6 * SECOND) == 0  # nothing waits to be written


def test_a_peer_that_does_not_read_expires(pair):
    entry = [(1, 1, 0, b"x" * (1 << 20))]
    for _ in range(4):
        pair.a.put_app(1, 0, 0, 0, entry)
    assert pair.a.flush(APP) == 1
    now = time.monotonic_ns()
    assert pair.a.expired(now + 4 * SECOND) == 0
    assert pair.a.expired(now + 6 * SECOND) == 1


def test_a_pause_of_our_own_is_not_the_peers_silence(pair):
    entry = [(1, 1, 0, b"x" * (1 << 20))]
    for _ in range(4):
        pair.a.put_app(1, 0, 0, 0, entry)
    assert pair.a.flush(APP) == 1
    # Bytes came meanwhile on one side, and the other side's socket takes more again.
    now = time.monotonic_ns() + 6 * SECOND
    assert pair.b.expired(now) == 8
    while pair.b.receive(APP) > 0:
        pass
    assert pair.a.expired(now) == 0


# ---- limits -----------------------------------------------------------------------------------------


def test_a_full_buffer_refuses_and_loses_nothing():
    pair = Pair(out_bytes_max=1 << 20)
    try:
        entries = [[(1, i + 1, 0, bytes([i]) * 300_000)] for i in range(4)]
        codes = [pair.a.put_app(1, i, 1 if i else 0, 0, entries[i]) for i in range(4)]
        assert codes == [0, 0, 0, FULL]
        assert pair.a.counters()["full"] == 1
        got = pair.carry(APP)
        assert [fields[7] for fields in got] == entries[:3]
        # The refused one did not move the encoder's state.
        assert pair.a.put_app(1, 3, 1, 0, entries[3]) == 0
        assert pair.carry(APP) == [app_fields(1, 3, 1, 0, entries[3])]
    finally:
        pair.close()


def test_a_message_above_the_limit_goes_alone():
    pair = Pair(out_bytes_max=1000)
    try:
        assert pair.a.put_prop([(0, 0, 0, b"x" * 5000)]) == 0
        assert pair.a.put_prop([(0, 0, 0, b"x")]) == FULL
        assert len(pair.carry(MESSAGE)) == 1
        assert pair.a.put_prop([(0, 0, 0, b"x")]) == 0
    finally:
        pair.close()


def test_proposals_leave_room_for_small_messages():
    pair = Pair(out_bytes_max=100_000)
    try:
        while pair.a.put_prop([(0, 0, 0, b"x" * 1000)]) == 0:
            pass
        assert pair.a.put_plain(MSG_HEARTBEAT, REMOTE, LOCAL, 1) == 0
    finally:
        pair.close()


def test_memory_of_a_large_message_is_given_back(pair):
    import psutil

    process = psutil.Process()
    pair.a.put_app(1, 0, 0, 0, [(1, 1, 0, b"x" * (60 << 20))])
    assert len(pair.carry(APP)) == 1
    large = process.memory_info().rss
    now = time.monotonic_ns()
    for step in range(3):
        for link in (pair.a, pair.b):
            link.heartbeat(now + step * 2 * SECOND)
        pair.carry(APP)
    assert large - process.memory_info().rss > 100 << 20


# ---- hostile bytes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">Q", FRAME_MAX + 1),
        struct.pack(">Q", 2**64 - 1),
        struct.pack(">Q", 2**63),
        frame(b"\xff\xff"),
        frame(marshal_message(4, 1, 2)[:-1]),
    ],
)
def test_malformed_message_frames(raw, data):
    link, near = raw(MESSAGE, frame_bytes_max=FRAME_MAX)
    near.send(data)
    assert take(link, MESSAGE) == MALFORMED


FULL_APP = b"\x02" + frame(marshal_message(*app_fields(2, 5, 1, 3, [])[:8]))


@pytest.mark.parametrize(
    "data",
    [
        b"\x03",
        b"\xff",
        struct.pack(">BQQ", 1, 0, 0),  # compact before anything is known
        b"\x02" + struct.pack(">Q", FRAME_MAX + 1),
        b"\x02" + frame(marshal_message(8, 1, 2)),  # no MsgApp
        FULL_APP + struct.pack(">BQ", 1, 2**64 - 1),
        FULL_APP + struct.pack(">BQ", 1, 262145),
        FULL_APP + struct.pack(">BQQ", 1, 1, 2**64 - 1),
        FULL_APP + struct.pack(">BQQ", 1, 1, 2**63),
        FULL_APP + struct.pack(">BQQ", 1, 2, FRAME_MAX + 1),
        FULL_APP + struct.pack(">BQQ2sQ", 1, 1, 2, b"\xff\xff", 0),
        FULL_APP + struct.pack(">BQQQ", 1, 1, 0, 0),  # index 0 does not follow
    ],
)
def test_malformed_append_frames(raw, data):
    link, near = raw(APP, frame_bytes_max=FRAME_MAX)
    near.send(data)
    got = take(link, APP)
    while isinstance(got, tuple):
        got = link.next(APP)
    assert got == MALFORMED


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([APP, MESSAGE]), st.booleans(), st.sampled_from([b"", FULL_APP]))
def test_any_bytes_are_messages_or_an_error(data, kind, chunked, before):
    near, far = socket.socketpair()
    link = PeerLink(LOCAL, REMOTE, frame_bytes_max=FRAME_MAX)
    link.attach_in(kind, far.detach(), b"", chunked)
    with near:
        near.send(before + data or b"\0")
        near.shutdown(socket.SHUT_WR)
        while (count := link.receive(kind)) > 0:
            while isinstance(got := link.next(kind), tuple):
                pass
            if got < 0:
                assert got in (MALFORMED, BROKEN)
                break
        else:
            assert count in (BROKEN, MALFORMED)
    link.close()


def test_a_claimed_size_costs_no_memory(raw):
    import psutil

    link, near = raw(MESSAGE)
    before = psutil.Process().memory_info().rss
    near.send(struct.pack(">Q", 64 << 20) + b"x" * 1000)
    assert take(link, MESSAGE) == 0
    assert psutil.Process().memory_info().rss - before < 8 << 20


def test_entries_without_bytes_cost_bounded_memory(raw):
    link, near = raw(APP, frame_bytes_max=64 << 20)
    near.send(FULL_APP + struct.pack(">BQ", 1, 8 << 20))
    take(link, APP)
    assert link.next(APP) == MALFORMED


# ---- streams come and go ----------------------------------------------------------------------------


def test_nothing_attached_is_down():
    link = PeerLink(1, 2)
    assert link.put_plain(8) == link.put_app(1, 0, 0, 0, []) == DOWN
    assert link.receive(APP) == link.next(APP) == DOWN
    assert link.flush(APP) == link.check_out(APP) == 0
    assert link.heartbeat(10 * SECOND) == link.expired(10**18) == 0


def test_a_closed_stream_is_broken(pair):
    pair.a.close()
    assert pair.b.receive(APP) == BROKEN
    pair.b.detach(APP, False)
    assert pair.b.receive(APP) == DOWN


def test_an_ended_body_is_broken_behind_its_last_message(raw):
    data = frame(marshal_message(MSG_HEARTBEAT, 1, 2, 3))
    link, near = raw(MESSAGE, chunked=True)
    # Real etcd ends the body and keeps the connection when another one replaces the stream.
    near.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
    assert link.receive(MESSAGE) > 0
    assert link.next(MESSAGE)[:4] == (MSG_HEARTBEAT, 1, 2, 3)
    assert link.next(MESSAGE) == BROKEN
    assert link.receive(MESSAGE) == BROKEN


def test_the_dialler_of_an_outgoing_stream_hangs_up(pair):
    assert pair.a.check_out(APP) == 0
    pair.b.close()
    assert pair.a.check_out(APP) == BROKEN
    pair.a.put_app(1, 0, 0, 0, [])
    assert pair.a.flush(APP) == BROKEN


def test_a_new_stream_replaces_the_older_one(pair):
    old_out, old_in = pair.a.fd(APP, True), pair.b.fd(APP, False)
    assert pair.a.put_app(1, 0, 0, 0, [(1, 1, 0, b"lost with its stream")]) == 0
    pair.attach(APP)
    assert pair.carry(APP) == []
    for fd in {old_out, old_in} - {pair.a.fd(APP, True), pair.b.fd(APP, False)}:
        with pytest.raises(OSError):
            os.fstat(fd)
    assert fcntl.fcntl(pair.a.fd(APP, True), fcntl.F_GETFL) & os.O_NONBLOCK


def test_bad_arguments(pair):
    for kind in (-1, 2):
        with pytest.raises(ValueError):
            pair.a.attach_out(kind, 0)
        with pytest.raises(ValueError):
            pair.a.fd(kind, True)
    with pytest.raises(OSError):
        pair.a.attach_out(APP, 1 << 20)


def test_the_micro_benchmark_runs():
    from bench.micro import peerlink

    assert peerlink.run(entries=10, value_bytes=100, total=5000) > 0
