"""The watch hub case by case: what each request is answered with, and what each limit does."""

import os

import pytest

from etcdfast._ext import ring
from etcdfast._ext.watchcore import HubError
from etcdfast.api.pb import rpc_pb2
from tests.apply.watchrig import KINDS, NODELETE, NOPUT, SECOND, World


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.close()


def answers(client):
    return [(m.watch_id, m.created, m.canceled, m.header.revision, m.cancel_reason) for m in client.answers]


def events_of(client, watch_id=0):
    return client.watchers[watch_id].events


def raw_records(world, frontend=0):
    """What is in the ring now, as it is."""
    found = []
    while (record := world.af[frontend].pop()) is not None:
        found.append(record)
    return found


# ---- requests ----


def test_created_comes_first_with_the_current_revision(world):
    world.put(b"k")
    client = world.client()
    client.create(b"k")
    world.take()
    world.put(b"k")
    world.face.deliver()
    world.drain()
    assert answers(client) == [(0, True, False, 2, "")]
    assert events_of(client) == 1


def test_ids_count_up_and_skip_those_in_use(world):
    client = world.client()
    for watch_id in (0, 2, 0, 0, 7, -5, 0):
        client.create(b"k", watch_id=watch_id)
    world.settle()
    assert [m.watch_id for m in client.answers] == [0, 2, 1, 3, 7, -5, 4]
    client.cancel(1)
    client.create(b"k")
    world.settle()
    assert client.answers[-1].watch_id == 5, "an id once given out is not given out again by counting"


def test_refusals_have_etcds_words(world):
    client = world.client()
    client.create(b"k", watch_id=3)
    client.create(b"k", watch_id=3)
    client.create(b"b", b"a")
    client.create(b"b", b"b")
    client.create(b"k", start_revision=-1)
    client.create(b"b", b"a", start_revision=-1)
    world.settle()
    compacted = "etcdserver: mvcc: required revision has been compacted"
    assert answers(client) == [
        (3, True, False, 1, ""),
        (-1, True, True, 1, "mvcc: duplicate watch ID provided on the WatchStream"),
        (-1, True, True, 1, "mvcc: watcher range is empty"),
        (-1, True, True, 1, "mvcc: watcher range is empty"),
        (-1, True, True, 1, compacted),
        (-1, True, True, 1, compacted),
    ]
    assert world.face.verify() == 1


def test_empty_key_is_the_smallest_one_and_from_key_reaches_everything(world):
    client = world.client()
    client.create()
    client.create(b"", b"\0")
    client.create(b"m", b"\0")
    world.settle()
    for key in (b"\0", b"a", b"m", b"\xff\xff"):
        world.put(key)
    world.verify()
    assert [events_of(client, i) for i in range(3)] == [1, 4, 2]


@pytest.mark.parametrize("order", ["cancel last", "create last"])
def test_the_last_member_of_the_oneof_counts(world, order):
    create = rpc_pb2.WatchRequest(create_request={"key": b"k"}).SerializeToString()
    cancel = rpc_pb2.WatchRequest(cancel_request={"watch_id": 0}).SerializeToString()
    client = world.client()
    if order == "create last":
        client.asked.append(rpc_pb2.WatchCreateRequest(key=b"k"))
        client.send("CALL", cancel + create + b"\x82\x01\x01x")
    else:
        client.send("CALL", create + cancel)
    client.send("CALL", b"")
    world.settle()
    assert len(client.answers) == (order == "create last")


def test_packed_and_repeated_filters(world):
    client = world.client()
    for raw in (b"\x2a\x02\x00\x01", b"\x28\x00\x28\x01", b"\x2a\x01\x07"):
        request = rpc_pb2.WatchCreateRequest(key=b"k")
        body = request.SerializeToString() + raw
        client.asked.append(rpc_pb2.WatchCreateRequest.FromString(body))
        client.send("CALL", bytes([0x0A, len(body)]) + body)
    world.settle()
    world.put(b"k")
    world.delete(b"k")
    world.verify()
    assert [events_of(client, i) for i in range(3)] == [0, 0, 2], "an unknown filter filters nothing"


def test_cancel_is_answered_once_and_ends_the_events(world):
    client = world.client()
    client.create(b"k")
    world.settle()
    client.cancel(0)
    client.cancel(0)
    client.cancel(99)
    world.settle()
    world.put(b"k")
    world.settle()
    assert answers(client)[1:] == [(0, False, True, 1, "")]
    assert not world.face.hub.following


def test_malformed_request_ends_the_member(world):
    world.client().send("CALL", b"\x0a\x05k")
    with pytest.raises(HubError, match="none"):
        world.take()


# ---- revisions ----


def test_start_in_the_past_present_and_future(world):
    for _ in range(5):
        world.put(b"k")
    client = world.client()
    for start in (1, 4, 6, 7, 9):
        client.create(b"k", start_revision=start)
    world.settle()
    assert [events_of(client, i) for i in range(5)] == [5, 3, 1, 0, 0]
    for _ in range(4):
        world.put(b"k")
    world.verify()
    assert [events_of(client, i) for i in range(5)] == [9, 7, 5, 4, 2]


def test_start_below_and_at_the_compacted_revision(world):
    for _ in range(5):
        world.put(b"k")
    world.compact(4)
    client = world.client()
    client.create(b"k", start_revision=3)
    client.create(b"k", start_revision=4)
    world.settle()
    assert answers(client) == [(0, True, False, 6, ""), (0, False, True, 0, ""), (1, True, False, 6, "")]
    assert client.answers[1].compact_revision == 4
    assert events_of(client, 1) == 3


def test_revisions_of_a_turn_share_a_message_and_none_is_split(world):
    client = world.client()
    client.create(b"a", b"z")
    world.settle()
    before = client.messages
    for i in range(20):
        world.apply(*((b"k%d" % n, b"%d" % i) for n in range(5)))
    world.face.write()
    world.verify()
    assert client.messages == before + 1 and events_of(client) == 100


def test_what_watchers_share_is_sent_once(world):
    clients = [world.client(slot=slot) for slot in range(1, 11)]
    for client in clients:
        for _ in range(300):
            client.create(b"k")
        client.create(b"k", prev_kv=True)
    world.settle()
    world.put(b"k")
    world.put(b"k")
    world.face.deliver()
    records = raw_records(world)
    # Two writes came apart from each other: 3000 watchers are three records each, ten with prev_kv one more.
    assert [r["kind"] for r in records] == [KINDS["EVENTS"]] * 4
    assert sum(int.from_bytes(r["payload"][:4], "little") for r in records) == 3010


# ---- filters, previous values ----


def test_filters_and_prev_kv(world):
    client = world.client()
    client.create(b"k", filters=[NOPUT], prev_kv=True)
    client.create(b"k", filters=[NODELETE], prev_kv=True)
    client.create(b"k", prev_kv=True)
    client.create(b"k")
    world.settle()
    for value in (b"1", b"2"):
        world.put(b"k", value)
    world.delete(b"k")
    world.put(b"k", b"3")
    client.create(b"k", start_revision=2, prev_kv=True)
    world.verify()
    assert [events_of(client, i) for i in range(5)] == [1, 3, 4, 4, 4]


# ---- progress ----


def test_progress_request_is_answered_at_the_front(world):
    client = world.client()
    client.ask_progress()
    world.settle()
    assert not client.progress, "nothing is watched: nothing to tell"
    client.create(b"k")
    client.ask_progress()
    world.put(b"other")
    client.ask_progress()
    world.settle()
    assert client.progress[-1] == (-1, 2)


def test_progress_waits_for_those_who_lag_and_not_for_the_future(world):
    world.window = 400
    world.face.limit(window=400)
    client = world.client()
    client.create(b"k")
    world.settle()
    for _ in range(50):
        world.put(b"k", b"x" * 50)
        world.face.deliver()
    client.ask_progress()
    client.ask_progress()
    for _ in range(5):
        world.turn()
        world.drain()
    assert not client.progress, "it has not read what happened"
    world.verify()
    assert client.progress == [(-1, 51)], "asked twice while behind, told once there"
    client.create(b"k", start_revision=60)
    client.ask_progress()
    world.settle()
    assert len(client.progress) == 1
    for _ in range(9):
        world.put(b"k")
    client.ask_progress()
    world.verify()
    assert client.progress[-1] == (-1, 60)


def test_progress_notifications_come_in_time_and_not_after_events(world):
    client = world.client()
    client.create(b"k", progress_notify=True)
    client.create(b"other", progress_notify=True)
    client.create(b"k")
    world.settle()
    world.tick()
    world.put(b"k")
    world.settle()
    world.tick(599)
    world.settle()
    assert client.progress == []
    world.tick(62)
    world.settle()
    assert client.progress == [(1, 2)], "the first one had an event in that time"
    world.tick(661)
    world.settle()
    assert sorted(client.progress[1:]) == [(0, 2), (1, 2)]
    client.cancel(0)
    client.cancel(1)
    world.settle()
    world.tick(2000)
    world.settle()
    assert len(client.progress) == 3


def test_no_notification_to_one_who_lags_or_waits_for_the_future(tmp_path):
    world = World(tmp_path, interval_ns=SECOND)
    world.window = 200
    world.face.limit(window=200)
    try:
        client = world.client()
        client.create(b"k", progress_notify=True)
        client.create(b"k", progress_notify=True, start_revision=100)
        world.settle()
        world.tick()
        for _ in range(20):
            world.put(b"k", b"x" * 20)
            world.face.deliver()
        for _ in range(5):
            world.tick(2)
            world.drain()
        assert client.progress == []
        world.settle()
        for _ in range(2):
            world.tick(2)
            world.settle()
        assert set(client.progress) == {(0, 21)}
    finally:
        world.close()


# ---- those who do not read ----


def test_a_stuck_stream_holds_bounded_memory_and_nobody_up(world):
    stuck, reader = world.client(slot=1), world.client(slot=2)
    for client in (stuck, reader):
        client.create(b"k", b"l")
    world.settle()
    for i in range(12_000):
        world.apply((b"k%d" % (i % 7), b"x" * 100))
        if i % 10 == 9:
            world.face.write()
            world.face.deliver()
            world.drain()
            reader.give_credit()
            world.take()
    assert events_of(reader) >= 11_000, "who reads is served whatever another does"
    # In flight: the window and a message; held: the group's share of recent events.
    assert stuck.outstanding <= stuck.window + 49152 + 200
    log, refs, blobs, used, held = world.face.bytes_held
    assert log < 4 << 20 and refs < 1 << 20 and blobs == 0
    assert world.face.hub.lagging == 1
    world.verify()
    assert events_of(stuck) == 12_000 and world.face.hub.lagging == 0
    assert world.face.bytes_held[:3] == (0, 0, 0)


def test_a_stuck_large_message_is_shared_and_answers_wait_behind_it(world):
    clients = [world.client(slot=slot) for slot in range(1, 11)]
    for client in clients:
        client.create(b"k")
    world.settle()
    world.put(b"k", b"x" * 1_000_000)
    for _ in range(3):
        world.turn()
        world.drain()
    assert 1_000_000 < world.face.hub.blob_bytes < 1_001_000
    for client in clients:
        assert client.begun[0] > 1_000_000 and client.outstanding <= client.window
        client.create(b"k", start_revision=2)
        client.cancel(0)
        client.ask_progress()
    world.turn()
    world.drain()
    assert all(len(client.answers) == 1 for client in clients)
    world.verify()
    for client in clients:
        assert answers(client)[1:] == [(1, True, False, 2, ""), (0, False, True, 2, "")]
        assert client.progress == [(-1, 2)]
    assert world.face.hub.blob_bytes == 0


def test_large_messages_wait_for_each_other_when_they_take_too_much(world):
    world.face.limit(blob_bytes=1_500_000)
    clients = [world.client(slot=slot) for slot in (1, 2, 3)]
    for client, key in zip(clients, (b"a", b"b", b"c"), strict=True):
        client.create(key)
    world.settle()
    for key in (b"a", b"b", b"c"):
        world.put(key, b"x" * 1_000_000)
    world.turn()
    assert world.face.hub.blob_bytes < 1_500_000
    world.verify()
    assert [events_of(client) for client in clients] == [1, 1, 1]


def test_requests_without_end_behind_a_large_message_are_dropped(world):
    client = world.client()
    client.create(b"k")
    world.settle()
    world.put(b"k", b"x" * 1_000_000)
    world.turn()
    for _ in range(30):
        for _ in range(2000):
            client.create(b"k", b"a")
        while client.late:
            world.take()
            client.flush()
    world.take()
    held = sum(len(a.SerializeToString()) for a in client.answers)
    world.settle()
    refused = [m for m in client.answers if m.cancel_reason]
    assert 5_000 < len(refused) < 20_000 and held < 1000


def test_fragments_stay_below_the_limit_and_join_up(world):
    client = world.client()
    client.create(b"a", b"z", fragment=True)
    client.create(b"a", b"z")
    client.create(b"k", fragment=True)
    world.settle()
    world.apply(*((b"k%d" % i, b"x" * 700_000) for i in range(8)))
    world.put(b"k", b"x" * 2_500_000)
    world.verify()
    assert events_of(client, 0) == events_of(client, 1) == 9
    assert client.messages == 3 + (4 + 1) + 2 + 1, "eight values are four messages of two"


def test_window_of_a_stream_falls_with_the_streams_of_its_connection(world):
    for slot, count in ((1, 600), (2, 1)):
        for _ in range(count):
            world.client(slot=slot).create(b"k")
        world.settle()
    windows = sorted(row[5] for row in world.face.streams() if row[1] == 1)
    assert windows[-1] == 262144 and windows[-17] < 262144 and windows[0] == 8192
    assert [row[5] for row in world.face.streams() if row[1] == 2] == [262144]
    for client in list(world.clients.values()):
        world.drop(client)
    world.settle()
    world.client(slot=1).create(b"k")
    world.settle()
    assert [row[5] for row in world.face.streams()] == [262144], "streams that are gone do not count"


def test_more_credit_than_was_used_ends_the_member(world):
    client = world.client()
    client.create(b"k")
    world.settle()
    client.send("CREDIT", index=1)
    with pytest.raises(HubError, match="credit"):
        world.take()


def test_compaction_overtakes_one_who_lags_and_not_one_whose_events_are_at_hand(world):
    world.window = 2000
    world.face.limit(window=2000, group_bytes=20_000)
    far, near = world.client(slot=1), world.client(slot=2)
    far.create(b"k")
    near.create(b"k")
    world.settle()

    def put(times):
        for _ in range(times):
            world.put(b"k", b"x" * 1000)
            world.face.deliver()
            world.drain()

    put(100)
    for _ in range(300):
        world.turn()
        world.drain()
        near.give_credit()
    put(12)
    world.compact(world.history.current)
    world.tick()
    world.settle()
    assert answers(far)[1:] == [(0, False, True, 0, "")]
    assert far.answers[1].compact_revision == 113
    assert events_of(near) == 112
    world.verify()


def test_everything_is_given_back(world):
    world.put(b"k")
    client = world.client()
    client.create(b"k")
    world.settle()
    world.drop(client)
    world.settle()
    before = world.face.bytes_held[3]
    for _ in range(3):
        clients = [world.client(slot=slot) for slot in range(1, 6)]
        for number, client in enumerate(clients):
            for i in range(500):
                client.create(b"%d" % (i % (50 + number)), b"" if i % 3 else b"\0", prev_kv=i % 2 == 0)
        world.settle()
        for i in range(20):
            world.put(b"%d" % i)
        world.settle()
        for client in clients:
            for watch_id in list(client.watchers)[:250]:
                client.cancel(watch_id)
        world.settle()
        for client in clients:
            world.drop(client)
        world.settle()
        assert world.face.hub.watchers == 0 and not world.face.hub.following
    log, refs, blobs, used, held = world.face.bytes_held
    assert (log, refs, blobs) == (0, 0, 0)
    assert used <= before + 8192, "only the tables may be larger"


# ---- rings ----


def test_ring_full_at_every_record(tmp_path):
    world = World(tmp_path, frontends=2, ring_bytes=4096)
    try:
        clients = [world.client(frontend=f, slot=s) for f in (0, 1) for s in (1, 2, 3)]
        for client in clients:
            client.create(b"a", b"z", prev_kv=True)
            client.create(b"k")
            client.create(b"k", progress_notify=True)
        for i in range(100):
            world.put(b"k", b"x" * (i * 7 % 900))
            world.put(b"m", b"x" * (i * 3 % 90))
            world.turn(slice_ns=0)
            world.drain(1)
        assert world.face.bytes_held[1], "somebody waits for room"
        world.verify()
        assert all(events_of(client, 0) for client in clients)
    finally:
        world.close()


@pytest.fixture
def stalled(tmp_path):
    """Two frontends, the second of which takes nothing, and four watchers of k, one after the other on the two;
    the first of them has what was put last, the others wait for room."""
    world = World(tmp_path, frontends=2, ring_bytes=4096)
    clients = [world.client(frontend=i % 2, slot=1 + i) for i in range(4)]
    for client in clients:
        client.create(b"k")
        world.settle()
    other = world.client(frontend=1, slot=9)
    other.create(b"other")
    world.settle()
    while not world.face.bytes_held[1]:
        world.put(b"other", b"x" * 500)
        world.face.deliver()
    world.put(b"k", b"1")
    world.face.deliver()
    world.drain(only=0)
    assert [events_of(client) for client in clients] == [1, 0, 0, 0]
    yield world, clients
    world.close()


def test_who_has_a_piece_does_not_get_it_again_when_the_rest_goes_to_history(stalled):
    world, clients = stalled
    world.face.limit(log_bytes=1)
    world.put(b"x", b"1")
    world.put(b"k", b"x" * 200_000)
    world.put(b"other", b"x" * 200_000)
    assert world.face.hub.lagging == 5
    world.verify()
    assert [events_of(client) for client in clients] == [2] * 4


def test_a_cancel_amid_a_piece_takes_it_from_nobody(stalled):
    world, clients = stalled
    clients[0].cancel(0)
    world.take()
    world.verify()
    assert [events_of(client) for client in clients[1:]] == [1] * 3


def test_a_late_comer_amid_a_piece_gets_it_once(stalled):
    world, clients = stalled
    clients[0].create(b"k", start_revision=world.history.current - 1)
    clients[0].create(b"k")
    clients[2].create(b"k", start_revision=1)
    world.take()
    for _ in range(5):
        world.face.deliver()
        world.face.catch_up()
        world.drain(only=0)
        for client in clients:
            client.give_credit()
    assert [events_of(clients[0], 1), events_of(clients[0], 2), events_of(clients[2], 1)] == [1, 0, 1]
    world.verify()
    assert [events_of(clients[0], 1), events_of(clients[0], 2), events_of(clients[2], 1)] == [1, 0, 1]


def test_laggards_whose_events_were_dropped_read_them(world):
    world.window = 2000
    world.face.limit(window=2000, log_bytes=300_000)
    client = world.client()
    client.create(b"k")
    world.settle()
    for i in range(2200):
        world.put(b"k", b"%d" % i * 100)
        world.face.deliver()
    assert 0 < world.face.bytes_held[0] < 600_000, "some of what it lacks is here and some is not"
    world.verify()
    assert events_of(client) == 2200


def test_a_revision_is_whole_when_its_group_is_given_up_within_it(world):
    world.face.limit(refs_bytes=1)
    client = world.client()
    for end in (b"y", b"z"):
        client.create(b"a", end)
        client.create(b"a", end, start_revision=100)
    world.settle()
    for count in (2, 3, 4, 5):
        world.apply(*((b"%c" % (97 + i), b"x") for i in range(count)))
        world.face.write()
        world.face.deliver()
    world.verify()
    assert [events_of(client, i) for i in range(4)] == [14, 0, 14, 0]


def test_a_slow_frontend_and_a_stuck_client_in_one_group(tmp_path):
    world = World(tmp_path, frontends=2, ring_bytes=8192)
    world.window = 500
    world.face.limit(window=500, group_bytes=2000, piece_bytes=300)
    try:
        stuck, quick, slow = world.client(0, 1), world.client(0, 2), world.client(1, 3)
        for client in (stuck, quick, slow):
            client.create(b"k")
            client.create(b"k")
        world.settle()
        for i in range(600):
            for _ in range(i % 9):
                world.put(b"k", b"x" * (i % 40))
            world.face.deliver()
            world.drain(only=0)
            world.drain(i % 3, only=1)
            quick.give_credit()
            slow.give_credit()
            world.take()
        world.verify()
        assert len({w.events for c in (stuck, quick, slow) for w in c.watchers.values()}) == 1
    finally:
        world.close()


def test_events_given_up_in_the_middle_of_a_revision_come_whole_from_history(world):
    world.face.limit(log_bytes=1)
    clients = [world.client(slot=slot) for slot in (1, 2)]
    clients[0].create(b"a", b"z")
    clients[1].create(b"b")
    clients[1].create(b"c", b"d", start_revision=3)
    world.settle()
    world.apply(*((b"%c" % (97 + i), b"x" * 200_000) for i in range(6)))
    world.face.write()
    world.apply((b"b", b"1"), (b"c", b"2"))
    world.face.write()
    world.verify()
    assert [w.events for c in clients for w in c.watchers.values()] == [8, 2, 1]


def test_figures(world):
    page = ring.StatusPage(page_fd(world))
    client = world.client()
    client.create(b"k")
    client.create(b"k", b"\0")
    world.settle()
    world.put(b"k")
    world.verify()
    world.face.figures(page)
    words = {
        name: page[ring.APPLY_WORDS[name]] for name in ("watch_streams", "watchers", "slow_watchers", "watch_events")
    }
    assert words == {"watch_streams": 1, "watchers": 2, "slow_watchers": 0, "watch_events": 2}


def page_fd(world):
    fd = os.memfd_create("page")
    os.ftruncate(fd, 4096)
    world.fds.append(fd)
    return fd
