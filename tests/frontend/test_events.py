"""Watch events: one record for many watchers, composed for each; order, credit, those who are gone."""

import random
import struct

import pytest

from etcdfast._ext.ring import KINDS
from etcdfast.api.pb import rpc_pb2 as pb
from tests.frontend.duplex import Duplex
from tests.frontend.member import Frontend, events_record
from tests.frontend.rawh2 import WINDOW_UPDATE, frame, message
from tests.frontend.test_bidi import silent, watch
from tests.frontend.test_budget import TIGHT
from tests.harness.wait import wait_until

HEADER = pb.ResponseHeader(cluster_id=(1 << 64) - 1, member_id=(1 << 64) - 2, revision=7, raft_term=3)
HEAD = pb.WatchResponse(header=HEADER).SerializeToString()
SEED = random.SystemRandom().randrange(1 << 32)
CREDIT_STEP_BYTES = 4096


def events_of(count, value_bytes, seed=0):
    """Field 11 of a WatchResponse."""
    from etcdfast.api.pb import kv_pb2

    rng = random.Random(seed)
    out = pb.WatchResponse()
    for number in range(count):
        kv = kv_pb2.KeyValue(key=b"key%d" % number, value=rng.randbytes(value_bytes), mod_revision=7)
        out.events.add(type=0, kv=kv)
    return out.SerializeToString()


def response(watch_id, events):
    """What a watcher must get: etcd's own bytes of the message."""
    out = pb.WatchResponse.FromString(events)
    out.header.CopyFrom(HEADER)
    out.watch_id = watch_id
    return out.SerializeToString()


class Watchers:
    """Streams on several connections of a frontend with a silent member; `send` gives events to some of them."""

    def __init__(self, frontend, connections, streams, **client):
        self.frontend = frontend
        self.clients = [Duplex(frontend.port, **client) for _ in range(connections)]
        self.expected = {}
        self.calls = {}
        for client in self.clients:
            for _ in range(streams):
                stream = client.open()
                seen = len(frontend.kinds("CALL"))
                client.say(stream, watch(1))
                wait_until(lambda seen=seen: len(frontend.kinds("CALL")) > seen, "the call")
                self.calls[client, stream] = frontend.kinds("CALL")[-1]
                self.expected[client, stream] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for client in self.clients:
            client.socket.close()

    def target(self, where, watch_id):
        call = self.calls[where]
        return call["slot"], call["generation"], call["stream"], watch_id

    def send(self, whom, events, strangers=()):
        """`whom`: ((client, stream), watch id) pairs."""
        targets = [self.target(where, watch_id) for where, watch_id in whom] + list(strangers)
        self.frontend.push_events(targets, HEAD, events)
        for where, watch_id in whom:
            self.expected[where].append(response(watch_id, events))

    def check(self):
        for (client, stream), bodies in self.expected.items():
            assert client.read_messages(stream, len(bodies)) == bodies


def test_each_target_gets_its_own_message_in_order():
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    with Frontend(answer=silent) as frontend, Watchers(frontend, connections=5, streams=7) as watchers:
        places = list(watchers.calls)
        ids = [0, 1, 2, 127, 128, 1 << 20, (1 << 63) - 1, -1, -(1 << 63)]
        for number in range(200):
            events = events_of(rng.choice([1, 1, 1, 2, 20]), rng.choice([0, 10, 100, 600, 2000, 2048, 3000]), number)
            count = rng.choice([0, 1, 2, 10, 100])
            whom = [(rng.choice(places), rng.choice(ids)) for _ in range(count)]
            watchers.send(sorted(whom, key=lambda w: places.index(w[0])) if number % 2 else whom, events)
            if number % 50 == 0:
                watchers.check()
        watchers.check()


def test_a_thousand_targets_at_once():
    with Frontend(answer=silent) as frontend, Watchers(frontend, connections=10, streams=10) as watchers:
        whom = [(where, watch_id) for where in watchers.calls for watch_id in range(10)]
        for number in range(20):
            watchers.send(whom, events_of(1, 100, number))
        watchers.check()


def test_large_events_to_many():
    """48 KiB for each of 100 streams a few times over: lent from the ring, then copied for who is slow."""
    with (
        Frontend(answer=silent, answer_ring_bytes=1 << 20) as frontend,
        Watchers(frontend, connections=4, streams=25) as watchers,
    ):
        for number in range(5):
            watchers.send([(where, number) for where in watchers.calls], events_of(24, 2000, number))
        watchers.check()


def test_those_who_are_gone_are_skipped():
    with Frontend(answer=silent) as frontend, Watchers(frontend, connections=4, streams=4) as watchers:
        places = list(watchers.calls)
        reset, ended, closed = places[1], places[6], watchers.clients[2]
        reset[0].reset(reset[1])
        frontend.push(watchers.calls[ended], "END")
        assert ended[0].read_until_ended(ended[1]) == ("0", "")
        wait_until(lambda: len(frontend.kinds("CANCEL")) == 1, "CANCEL of the reset stream")
        closed.socket.close()
        wait_until(lambda: len(frontend.kinds("CANCEL")) == 5, "CANCEL of the closed connection's streams")
        gone = [watchers.target(p, 5) for p in places if p in (reset, ended) or p[0] is closed]
        slot, generation, stream, _ = watchers.target(places[0], 0)
        strangers = [
            *gone,
            (slot, generation + 1, stream, 1),
            (slot, generation, 99, 1),
            (slot, generation, 0, 1),
            (slot, generation, (1 << 32) - 1, 1),
            (1 << 31, generation, stream, 1),
            ((1 << 32) - 1, 0, 0, 0),
        ]
        random.Random(1).shuffle(strangers)
        left = [p for p in places if p not in (reset, ended) and p[0] is not closed]
        for size in (10, 3000):
            watchers.send([(where, 3) for where in left], events_of(1, size), strangers)
        for where in (reset, ended, *[p for p in places if p[0] is closed]):
            del watchers.expected[where]
        watchers.check()
        assert ended[0].bodies[ended[1]] == b""


def test_records_that_are_not_sound_are_dropped():
    with Frontend(answer=silent) as frontend, Watchers(frontend, connections=1, streams=1) as watchers:
        place = next(iter(watchers.calls))
        good = events_record([watchers.target(place, 1)], HEAD, b"")
        for payload in (
            b"",
            b"x",
            good[:7],
            good[:20],
            good[:-1],
            struct.pack("=II", 0xFFFFFFFF, len(HEAD)) + good[8:],
            struct.pack("=II", 2, len(HEAD)) + good[8:],
            struct.pack("=II", 1, 0xFFFFFFFF) + good[8:],
            struct.pack("=II", 1, 49) + good[8:] + bytes(100),
        ):
            with frontend.lock:
                assert frontend.answers.push(KINDS["EVENTS"], payload)
        watchers.send([(place, 4)], events_of(1, 1))
        watchers.check()


def test_events_and_other_answers_keep_their_order():
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    with Frontend(answer=silent) as frontend, Watchers(frontend, connections=2, streams=3, own_window=3000) as watchers:
        places = list(watchers.calls)
        for number in range(400):
            where = rng.choice(places)
            call = watchers.calls[where]
            kind = rng.choice(["EVENTS", "EVENTS", "MESSAGE", "BEGIN"])
            if kind == "EVENTS":
                watchers.send([(p, number) for p in places], events_of(1, rng.choice([5, 200, 2500]), number))
                continue
            body = rng.randbytes(rng.choice([0, 1, 300, 5000]))
            if kind == "MESSAGE":
                frontend.push(call, "MESSAGE", body)
            else:
                frontend.push(call, "BEGIN", index=len(body))
                others = [p for p in places if p != where]
                for at in range(0, len(body), 1500):
                    frontend.push(call, "PART", body[at : at + 1500])
                    watchers.send([(p, number) for p in others], events_of(1, 10, number))
            watchers.expected[where].append(body)
        for client, stream in places:
            client.send(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1 << 30)))
        watchers.check()


@pytest.mark.parametrize("kind", ["EVENTS", "LENT", "MESSAGE", "BEGIN"])
def test_an_answer_within_another_ends_the_connection(kind):
    """It would be taken for a part of it: better no answer than a wrong one."""
    with Frontend(answer=silent) as frontend, Watchers(frontend, connections=2, streams=1) as watchers:
        broken, other = watchers.calls
        frontend.push(watchers.calls[broken], "BEGIN", index=10)
        frontend.push(watchers.calls[broken], "PART", b"12345")
        if kind in ("EVENTS", "LENT"):
            frontend.push_events([watchers.target(broken, 1)], HEAD, events_of(1, 3000 if kind == "LENT" else 1))
        else:
            frontend.push(watchers.calls[broken], kind, b"x" if kind == "MESSAGE" else b"", index=1)
        assert broken[0].read_to_end() == (2, "answer_within_another")
        watchers.send([(other, 1)], events_of(1, 1))
        del watchers.expected[broken]
        watchers.check()


def test_credit_is_what_was_sent():
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    with Frontend(answer=silent) as frontend, Watchers(frontend, connections=3, streams=4, own_window=1000) as watchers:
        places = list(watchers.calls)
        for number in range(150):
            watchers.send([(rng.choice(places), number) for _ in range(10)], events_of(1, rng.choice([9, 99, 4000])))
            call = watchers.calls[rng.choice(places)]
            place = next(p for p in places if watchers.calls[p] is call)
            body = bytes(rng.randrange(100))
            frontend.push(call, "MESSAGE", body)
            watchers.expected[place].append(body)

        def credited(place):
            call = watchers.calls[place]
            own = [r for r in frontend.kinds("CREDIT") if (r["slot"], r["stream"]) == (call["slot"], call["stream"])]
            assert all(r["index"] >= CREDIT_STEP_BYTES and r["method"] == call["method"] for r in own)
            return sum(r["index"] for r in own)

        for place in places:
            place[0].settle()
            assert credited(place) == 0  # a window of 1000 bytes
        for client, stream in places:
            client.send(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1 << 30)))
        watchers.check()
        for place in places:
            sent = sum(len(message(body)) for body in watchers.expected[place])
            assert len(place[0].bodies[place[1]]) == sent
            wait_until(lambda place=place, sent=sent: credited(place) > sent - CREDIT_STEP_BYTES, "the credit")
            assert credited(place) <= sent


def test_streams_that_are_reset_with_events_unsent():
    with Frontend(answer=silent) as frontend, Watchers(frontend, connections=3, streams=8, own_window=500) as watchers:
        places = list(watchers.calls)
        for number in range(30):
            watchers.send([(where, number) for where in places], events_of(1, 300 if number % 3 else 3000, number))
            if number % 5 == 4:
                client, stream = place = places.pop(number % len(places))
                client.reset(stream)
                wait_until(lambda place=place: "CANCEL" in kinds_of_place(frontend, watchers.calls[place]), "CANCEL")
                del watchers.expected[place]
        for client, stream in places:
            client.send(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1 << 30)))
        watchers.check()


def kinds_of_place(frontend, call):
    return [r["kind"] for r in list(frontend.seen) if (r["slot"], r["stream"]) == (call["slot"], call["stream"])]


def test_a_watcher_that_does_not_read_is_ended_when_the_budget_is_over():
    """The member's credit keeps it far below this; should it ever fail, the heaviest goes."""
    with Frontend(answer=silent, prelude=TIGHT) as frontend:
        with Watchers(frontend, connections=2, streams=2, own_window=0) as watchers:
            stuck, fine = watchers.clients
            places = [p for p in watchers.calls if p[0] is stuck]
            own = [p for p in watchers.calls if p[0] is fine]
            for number in range(400):
                frontend.push_events([watchers.target(p, 1) for p in places], HEAD, events_of(1, 1500 * (number % 20)))
            assert stuck.read_to_end() == (11, "too_much_memory_held")
            for client, stream in own:
                client.send(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1 << 30)))
            watchers.send([(p, 1) for p in own], events_of(1, 100))
            for p in places:
                del watchers.expected[p]
            watchers.check()


def test_many_streams_of_one_connection_come_and_go():
    """The map of streams grows, and stays right while entries are taken out of it."""
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    calls = {}

    def answer(record, member):
        if record["kind"] == "CALL":
            calls[record["stream"]] = record
        elif record["kind"] == "CANCEL":
            del calls[record["stream"]]
        return []

    with Frontend(answer=answer) as frontend, Duplex(frontend.port) as client:
        opened = set()
        for _ in range(6):
            for _ in range(200):
                stream = client.open()
                client.say(stream, b"")
                opened.add(stream)
            for stream in rng.sample(sorted(opened), 120):
                client.reset(stream)
                opened.remove(stream)
            wait_until(lambda: calls.keys() == opened, "the calls and cancels")
            whom = rng.sample(sorted(opened), len(opened) // 2)
            for size in (10, 700):
                targets = [(c["slot"], c["generation"], c["stream"], s) for s in whom for c in (calls[s],)]
                frontend.push_events(targets, HEAD, events_of(1, size))
                for stream in whom:
                    client.read_messages(stream, 1)
                    assert client.messages(stream) == [response(stream, events_of(1, size))]
                    client.forget(stream)
            client.settle()
            assert not any(client.bodies.values())


# Ends the process with 99 when anything is still counted once no connection is left.
ALL_GIVEN_BACK = """
import etcdfast.frontend.process as p
served = p._run
def run(loop, *more):
    status = served(loop, *more)
    counted = loop.counters()
    names = "held_bytes closing_bytes request_buffer_bytes answer_buffer_bytes requests_waiting "
    names += "requests_waiting_bytes timers connections"
    left = {name: counted[name] for name in names.split() if counted[name]}
    if left: print(left, flush=True)
    return 99 if left else status
p._run = run
"""


@pytest.mark.parametrize("seed", [SEED, 1, 2, 3], ids=["random", "1", "2", "3"])
def test_nothing_is_counted_when_all_are_gone(seed):
    print(f"seed {seed}")
    rng = random.Random(seed)
    calls = []

    def answer(record, member):
        if record["kind"] == "CALL":
            calls.append(record)
        return []

    with Frontend(answer=answer, prelude=ALL_GIVEN_BACK) as frontend:
        clients = [Duplex(frontend.port, own_window=rng.choice([0, 100, 5000, 1 << 20])) for _ in range(12)]
        streams = []
        for step in range(400):
            choice = rng.randrange(10)
            client = rng.choice(clients)
            mine = [s for c, s in streams if c is client and s not in client.ended]
            if choice == 0 or not mine:
                if len(streams) < 150:
                    streams.append((client, client.open(grpc_timeout=rng.choice([None, None, "50m"]))))
            elif choice < 4:
                stream = rng.choice(mine)
                client.write_what_fits(stream, message(watch(step, rng.choice([0, 100, 3000, 90_000]))))
            elif choice == 4:
                client.reset(rng.choice(mine))
            elif choice == 5 and step > 200 and len(clients) > 3:
                clients.remove(client)
                client.socket.close()
            elif choice == 6:
                frontend.stalled ^= {"f0a"}
            elif calls:
                targets = [
                    (r["slot"], r["generation"], r["stream"], rng.randrange(3)) for r in rng.choices(calls, k=20)
                ]
                frontend.push_events(targets, HEAD, events_of(1, rng.choice([10, 500, 3000])))
                if rng.random() < 0.1:
                    frontend.push(rng.choice(calls), "END")
        frontend.stalled.clear()
        for client in clients[::2]:
            client.socket.close()
        frontend.terminate()
        for client in clients[1::2]:
            client.socket.close()
        assert frontend.process.wait(20) == 0
