"""A watch hub on a store of its own, with the test as frontends on real rings, and what must hold of its output.

`Client.message` checks every message against `History` as it comes: ordered, unique, reliable (nothing
left out), atomic (a revision in one message or in its fragments), bookmarkable (no header runs ahead of the
events), filters, prev_kv, and that credit is never passed by more than one message.
"""

import os
import struct
from collections import deque

from etcdfast._ext import ring
from etcdfast._ext.hubface import HubFace
from etcdfast._ext.mvcc import Mvcc
from etcdfast.api.pb import rpc_pb2
from etcdfast.apply.store import Store

KINDS = ring.KINDS
RPC_WATCH = 7
CLUSTER, MEMBER, TERM = 11, 12, 13
FRAGMENT_BYTES = 2 << 20
SECOND = 1_000_000_000
CREATE, PUT, DELETE = rpc_pb2.WatchCreateRequest, 0, 1
NOPUT, NODELETE = CREATE.NOPUT, CREATE.NODELETE


def in_range(key, start, end):
    if not end:
        return key == start
    return key >= start and (end == b"\0" or key < end)


class History:
    """Every event there ever was: `events[rev]` is [(type, key, kv fields, kv fields before or None)]."""

    def __init__(self):
        self.state = {}
        self.current = 1
        self.compacted = -1
        self.events = {}

    def apply(self, operations):
        """The same operations as HubFace.apply."""
        before = dict(self.state)
        main = self.current + 1
        made = []
        for operation in operations:
            key = operation[0]
            if len(operation) == 2:
                old = self.state.get(key)
                create, version = (old[0], old[2] + 1) if old else (main, 1)
                kv = (create, main, version, operation[1])
                self.state[key] = kv
                made.append((PUT, key, kv, None if create == main else before.get(key)))
            else:
                for name in sorted(k for k in self.state if in_range(k, key, operation[1])):
                    del self.state[name]
                    made.append((DELETE, name, (0, main, 0, b""), before.get(name)))
        if made:
            self.current = main
            self.events[main] = made
        return bool(made)


class Watcher:
    def __init__(self, request):
        self.key = request.key or b"\0"
        self.end = request.range_end
        self.filters = set(request.filters)
        self.prev_kv = request.prev_kv
        self.fragment = request.fragment
        self.next_rev = 0  # all below was checked
        self.pieces = []  # events of fragments so far
        self.events = 0

    def wanted(self, history, first, last):
        """[(rev, events)] that this one must get of revisions first..last."""
        found = []
        for rev in range(first, last + 1):
            events = [
                e
                for e in history.events.get(rev, ())
                if in_range(e[1], self.key, self.end) and (NODELETE if e[0] else NOPUT) not in self.filters
            ]
            if events:
                found.append((rev, events))
        return found


class Client:
    """One watch stream as its frontend sees it."""

    def __init__(self, world, frontend, slot, stream, generation=1):
        self.world = world
        self.address = (frontend, slot, generation, stream)
        self.window = None
        self.outstanding = 0  # bytes that came and were not credited
        self.uncredited = 0
        self.begun = None  # [total, bytes so far] of a message in parts
        self.watchers = {}
        self.asked = deque()  # creates not answered
        self.answers = []  # control answers, as they came
        self.progress = []
        self.cancelled = {}
        self.late = deque()  # requests that found no room
        self.messages = 0

    # ---- requests ----

    def send(self, kind, payload=b"", index=0):
        frontend, slot, generation, stream = self.address
        self.late.append((kind, payload, index))
        self.flush()

    def flush(self):
        frontend, slot, generation, stream = self.address
        while self.late:
            kind, payload, index = self.late[0]
            if not self.world.fa[frontend].push(
                KINDS[kind],
                payload,
                method=RPC_WATCH,
                frontend=frontend,
                slot=slot,
                generation=generation,
                stream=stream,
                index=index,
            ):
                return
            self.late.popleft()

    def create(self, key=b"", end=b"", **more):
        request = rpc_pb2.WatchCreateRequest(key=key, range_end=end, **more)
        self.asked.append(request)
        self.send("CALL", rpc_pb2.WatchRequest(create_request=request).SerializeToString())

    def cancel(self, watch_id):
        self.send("CALL", rpc_pb2.WatchRequest(cancel_request={"watch_id": watch_id}).SerializeToString())

    def ask_progress(self):
        self.send("CALL", rpc_pb2.WatchRequest(progress_request={}).SerializeToString())

    def give_credit(self, size=None):
        """Credit for `size` of the bytes that came, all of them by default."""
        size = self.uncredited if size is None else min(size, self.uncredited)
        if size:
            self.uncredited -= size
            self.outstanding -= size
            self.send("CREDIT", index=size)

    # ---- answers ----

    def charge(self, size, whole):
        """Bytes of events came: `whole` messages need credit before them, parts for all of them."""
        if whole:
            assert self.outstanding < self.window, f"{self.address}: a message without credit"
        else:
            assert self.outstanding + size <= self.window, f"{self.address}: a part beyond credit"
        self.outstanding += size
        self.uncredited += size

    def record(self, kind, payload, index):
        if kind == KINDS["MESSAGE"]:
            assert self.begun is None, "a message within a message"
            response = rpc_pb2.WatchResponse.FromString(payload)
            assert not response.events
            self.outstanding += len(payload) + 5
            self.uncredited += len(payload) + 5
            self.message(response)
        elif kind == KINDS["BEGIN"]:
            assert self.begun is None and index > 0
            assert self.outstanding < self.window, "a message without credit"
            self.outstanding += 5
            self.uncredited += 5
            self.begun = [index, bytearray()]
        else:
            assert kind == KINDS["PART"] and 0 < len(payload) <= 32768
            self.charge(len(payload), False)
            self.begun[1] += payload
            assert len(self.begun[1]) <= self.begun[0]
            if len(self.begun[1]) == self.begun[0]:
                data, self.begun = self.begun[1], None
                self.message(rpc_pb2.WatchResponse.FromString(bytes(data)), len(data))

    def message(self, m, size=0):
        self.messages += 1
        history = self.world.history
        header = m.header
        assert (header.cluster_id, header.member_id, header.raft_term) == (CLUSTER, MEMBER, TERM)
        assert header.revision <= history.current
        if m.created:
            request = self.asked.popleft()
            self.answers.append(m)
            assert not m.events
            if m.canceled:
                assert m.watch_id == -1 and m.cancel_reason
                return
            assert m.watch_id not in self.watchers
            watcher = self.watchers[m.watch_id] = Watcher(request)
            start = request.start_revision
            watcher.next_rev = start if start else header.revision + 1
            watcher.start = start
            watcher.created_at = header.revision
        elif m.canceled:
            self.answers.append(m)
            watcher = self.watchers.pop(m.watch_id)
            self.cancelled[m.watch_id] = watcher
            assert not watcher.pieces, "cancelled within the fragments of a revision"
            if m.compact_revision:
                assert header.revision == 0 and not m.cancel_reason
                assert watcher.next_rev < m.compact_revision <= history.compacted
        elif m.events:
            self.events(m, self.watchers[m.watch_id], size)
        else:
            # Progress: of one watcher, or of all.
            self.progress.append((m.watch_id, header.revision))
            for watch_id, watcher in self.watchers.items():
                if m.watch_id in (-1, watch_id):
                    missing = watcher.wanted(history, watcher.next_rev, header.revision)
                    assert not missing, f"progress {header.revision} overtook revision {missing[0][0]}"
                    assert watcher.next_rev <= max(header.revision, watcher.created_at) + 1 or m.watch_id == -1
                    assert header.revision >= watcher.start

    def events(self, m, watcher, size):
        history = self.world.history
        got = watcher.pieces + list(m.events)
        if m.fragment:
            assert watcher.fragment
            assert size < FRAGMENT_BYTES or len(m.events) == 1
            watcher.pieces = got
            return
        watcher.pieces = []
        last = got[-1].kv.mod_revision
        wanted = [e for rev, events in watcher.wanted(history, watcher.next_rev, last) for e in events]
        assert len(got) == len(wanted), f"{len(got)} events instead of {len(wanted)} up to {last}"
        for event, want in zip(got, wanted, strict=True):
            check_event(event, want, watcher.prev_kv, history.compacted)
        watcher.next_rev = last + 1
        watcher.events += len(got)
        assert header_covers(m.header.revision, last)
        missing = watcher.wanted(history, last + 1, m.header.revision)
        assert not missing, f"header {m.header.revision} ahead of revision {missing[0][0]}"

    def verify_complete(self):
        history = self.world.history
        assert not self.asked and self.begun is None
        for watch_id, watcher in self.watchers.items():
            assert not watcher.pieces
            missing = watcher.wanted(history, watcher.next_rev, history.current)
            assert not missing, f"{self.address} watcher {watch_id} never got revision {missing[0][0]}"


def header_covers(revision, last):
    return revision >= last


def check_event(event, want, with_prev, compacted):
    kind, key, kv, prev = want
    assert event.type == kind and event.kv.key == key
    assert fields(event.kv) == kv, f"{key}: {fields(event.kv)} instead of {kv}"
    if not with_prev or prev is None:
        assert not event.HasField("prev_kv")
    elif event.HasField("prev_kv"):
        assert event.prev_kv.key == key and fields(event.prev_kv) == prev
    else:
        assert kv[1] - 1 < compacted, f"{key} at {kv[1]} without prev_kv"


def fields(kv):
    return kv.create_revision, kv.mod_revision, kv.version, kv.value


class World:
    """`path`: folder of the store. Nothing happens but what the test asks for."""

    def __init__(self, path, frontends=1, ring_bytes=1 << 20, interval_ns=600 * SECOND, seed=1):
        self.store = Store(str(path))
        self.mvcc = Mvcc(self.store.read, self.store.walk, self.store.new_batch, self.store.write)
        self.face = HubFace(self.mvcc, interval_ns, seed, FRAGMENT_BYTES, CLUSTER, MEMBER, TERM)
        self.history = History()
        self.fds = []
        self.fa, self.af, self.hub_fa = [], [], []
        for number in range(frontends):
            to_apply, from_apply = self.ring(ring_bytes), self.ring(ring_bytes)
            self.fa.append(ring.Ring(to_apply, -1))
            self.hub_fa.append(ring.Ring(to_apply, -1))
            self.face.attach(number, ring.Ring(from_apply, -1))
            self.af.append(ring.Ring(from_apply, -1))
        self.clients = {}
        self.gone = set()
        self.now = SECOND
        self.events = 0
        self.window = 262144  # of each stream

    def ring(self, size):
        fd = os.memfd_create("ring")
        self.fds.append(fd)
        ring.format_ring(fd, size)
        return fd

    def close(self):
        self.store.close()
        for fd in self.fds:
            os.close(fd)

    def client(self, frontend=0, slot=1, stream=None):
        stream = stream or 1 + 2 * (len(self.clients) + len(self.gone))
        client = Client(self, frontend, slot, stream)
        self.clients[client.address] = client
        client.window = self.window
        return client

    def drop(self, client):
        """The stream is gone: nothing that still comes for it counts."""
        client.send("CANCEL")
        del self.clients[client.address]
        self.gone.add(client.address)

    # ---- writes ----

    def apply(self, *operations):
        """One transaction, not yet written."""
        changed = self.face.apply(list(operations))
        assert changed == self.history.apply(operations)
        assert self.mvcc.current == self.history.current

    def put(self, key, value=b"v"):
        self.apply((key, value))
        self.face.write()

    def delete(self, key, end=b""):
        self.apply((key, end, None))
        self.face.write()

    def compact(self, revision):
        self.history.compacted = revision
        self.mvcc.set_compacted(revision)
        assert self.mvcc.compact_begin(revision) == 0
        done = False
        while not done:
            batch = self.store.new_batch()
            _, done = self.mvcc.compact_step(1 << 20, 1 << 16, batch)
            if len(batch):
                self.store.write(batch)

    # ---- turns ----

    def take(self, records=1 << 30):
        for one in self.hub_fa:
            self.face.take(one, records)

    def turn(self, slice_ns=SECOND):
        """As the loop: deliver, calls, deliver, history."""
        more = self.face.deliver()
        self.take()
        more |= self.face.deliver()
        return more | self.face.catch_up(slice_ns)

    def drain(self, records=1 << 30, only=None):
        """Records of apply, to the clients; how many. `only`: of that frontend."""
        taken = 0
        for client in self.clients.values():
            if client.late:
                client.flush()
        for number, one in enumerate(self.af):
            while only in (None, number) and taken < records and (r := one.pop()) is not None:
                taken += 1
                assert r["frontend"] == number and r["method"] == RPC_WATCH
                if r["kind"] == KINDS["EVENTS"]:
                    self.spread(number, r["payload"])
                    continue
                address = (r["frontend"], r["slot"], r["generation"], r["stream"])
                client = self.clients.get(address)
                if client is None:
                    assert address in self.gone
                    continue
                client.record(r["kind"], r["payload"], r["index"])
        return taken

    def spread(self, frontend, payload):
        """An EVENTS record, as the frontend makes messages of it."""
        targets, head_bytes = struct.unpack_from("<II", payload)
        assert 0 < targets <= 1024
        at = 8 + 24 * targets
        head, events = payload[at : at + head_bytes], payload[at + head_bytes :]
        assert len(events) <= 49152
        plain = rpc_pb2.WatchResponse.FromString(head + events)
        for i in range(targets):
            slot, generation, stream, unused, watch_id = struct.unpack_from("<IIIIq", payload, 8 + 24 * i)
            address = (frontend, slot, generation, stream)
            client = self.clients.get(address)
            if client is None:
                assert address in self.gone
                continue
            assert client.begun is None, "events within a message"
            message = rpc_pb2.WatchResponse()
            message.CopyFrom(plain)
            message.watch_id = watch_id
            client.charge(message.ByteSize() + 5, True)
            client.message(message)
            self.events += len(message.events)

    def settle(self, turns=10_000):
        """Until nothing is left to do, with every client reading."""
        quiet = 0
        for _ in range(turns):
            more = self.turn()
            taken = self.drain()
            for client in self.clients.values():
                client.give_credit()
            quiet = 0 if more or taken or any(c.late for c in self.clients.values()) else quiet + 1
            if quiet == 3:
                return
        raise AssertionError(f"still at work after {turns} turns")

    def tick(self, seconds=0.05):
        self.now += int(seconds * SECOND)
        self.face.tick(self.now)

    def verify(self):
        self.settle()
        self.face.verify()
        for client in self.clients.values():
            client.verify_complete()
