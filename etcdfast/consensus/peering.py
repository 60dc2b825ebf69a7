"""This member among the others, on the main thread: which links there are, what the peer thread hands over, and the
requests that members send each other over HTTP (formats.md section 4).
"""

import json
import os
import time

from etcdfast import log
from etcdfast._ext import meters
from etcdfast._ext.peerlink import PeerLink
from etcdfast._ext.peerset import APP, MESSAGE
from etcdfast._ext.peerwire import PeerMessage
from etcdfast._ext.ring import KINDS
from etcdfast.api import errors, rpcs
from etcdfast.cluster.membership import CONNECTED_SECONDS
from etcdfast.consensus.peers import Inbox, PeerSettings, PeerThread, PeerTls, View
from etcdfast.consensus.records import Record
from etcdfast.formats.raftpb import RaftMessageError, put_bytes, put_uint, read_fields

_KEEP_ALIVE = rpcs.BY_PATH["/etcdserverpb.Lease/LeaseKeepAlive"].id
_TIME_TO_LIVE = rpcs.BY_PATH["/etcdserverpb.Lease/LeaseTimeToLive"].id
_HASH_KV = rpcs.BY_PATH["/etcdserverpb.Maintenance/HashKV"].id
_PATHS = {_KEEP_ALIVE: "/leases", _TIME_TO_LIVE: "/leases/internal"}
_PROTOBUF = "application/protobuf"
WAITING_MAX = 65536  # requests of members to apply, or of apply to the leader, that wait for their answer

# HTTP statuses of refusals, as etcd's members give and read them.
_STATUS_OF = {"LEASE_NOT_FOUND": 404, "TIMEOUT_APPLIED_INDEX": 408, "TIMEOUT": 408, "NOT_LEADER": 400}
_ERROR_OF_TEXT = {row.text: row.id for row in errors.ERRORS if row.text}


class Peering:
    def __init__(self, process):
        self._process = process
        self._inbox = Inbox()
        self.wake_fd = self._inbox.fd
        self._thread = None
        self._own = process.opened.member_id
        self._waiting = {}  # token -> what to do with apply's answer (status, payload)
        self._token = 0
        self._since = {}  # member id -> monotonic seconds since which it is heard without a break
        self._bytes_before = {}  # member id -> (sent, received) over links that are gone
        self._broke = {}  # member id -> when a stream with it ended last
        self._timeout = process.config.election_timeout / 1000
        self._handlers = {
            "stream_out": self._stream_out,
            "stream_in": self._stream_in,
            "message": self._message,
            "snapshot": self._snapshot,
            "lease_keep_alive": self._lease_keep_alive,
            "lease_time_to_live": self._lease_time_to_live,
            "hash_kv": self._hash_kv,
            "promote": lambda member, reply: self._process.calls.promote_for_peer(member, reply),
            "removed": self._removed,
            "unreachable": self._unreachable,
            "refused": self._refused,
            "probe": self._probed,
            "call": lambda function, arguments: function(*arguments),
            "failed": self._failed,
        }

    # ---- start and stop ------------------------------------------------------------------------------

    def start(self):
        process, config = self._process, self._process.config
        settings = PeerSettings(
            snap_dir=os.path.join(config.member_dir, "snap"),
            election_timeout_seconds=config.election_timeout / 1000,
        )
        tls = PeerTls(config)
        process.on_reload(lambda config: tls.reload())
        self._thread = PeerThread(settings, process.peer_listeners, self._view(), self._inbox, tls)
        self._thread.start()
        for member in process.peers.members:
            self._thread.dial(member)

    def stop(self):
        self._thread.stop()
        for member in self._process.peers.members:
            self._process.peers.remove(member)

    def _failed(self, text):
        raise RuntimeError(f"the peer thread failed: {text}")

    # ---- who -----------------------------------------------------------------------------------------

    def sync(self):
        """Links and view follow the membership."""
        process = self._process
        wanted = {member.id for member in self._known()} - {self._own}
        if self._own in process.membership.removed:
            wanted = set()
        have = set(process.peers.members)
        for member in have - wanted:
            counters = process.peers.link(member).counters()
            before = self._bytes_before.get(member, (0, 0))
            self._bytes_before[member] = before[0] + counters["sent_bytes"], before[1] + counters["received_bytes"]
            meters.peer_put(member, "gone", 1)
            process.peers.remove(member)
            self._since.pop(member, None)
            self._broke.pop(member, None)
        for member in wanted - have:
            process.peers.add(member, self._new_link(member))
            meters.peer_put(member, "gone", 0)
        process.show("peers", len(wanted))
        if self._thread is not None:
            self._thread.set_view(self._view())
            for member in have - wanted:
                self._thread.undial(member)
            for member in wanted - have:
                self._thread.dial(member)

    def show(self):
        """What others may ask about the cluster is another now."""
        if self._thread is not None:
            self._thread.set_view(self._view())

    def _known(self):
        """The members; before the log tells of any, those of the cluster that this member joins."""
        return self._process.membership.ordered() or self._process.opened.remotes

    def _view(self):
        process = self._process
        membership = process.membership
        return View(
            member_id=self._own,
            cluster_id=process.opened.cluster_id,
            peer_urls={member.id: member.peer_urls for member in self._known()},
            removed=frozenset(membership.removed),
            cluster_version=membership.cluster_version,
            members_json=membership.members_json().rstrip(b"\n"),
        )

    def _new_link(self, member):
        config = self._process.config
        return PeerLink(
            member, self._own, read_seconds=config.raft_read_timeout, write_seconds=config.raft_write_timeout
        )

    def connected(self):
        """Ids of the members heard for CONNECTED_SECONDS or longer, the own one included."""
        self.note_broken()
        now = time.monotonic()
        return {self._own} | {member for member, since in self._since.items() if now - since >= CONNECTED_SECONDS}

    def is_active(self, member):
        self.note_broken()
        return member in self._since or member == self._own

    def note_broken(self):
        """At once, as in etcd: a member that has just died must not count as connected for a change of members."""
        for member, kind, outgoing in self._process.peers.take_broken():
            if not outgoing:
                self._thread.stream_lost(member, kind)
            self._broke[member] = time.monotonic()
            if self._since.pop(member, None):
                meters.peer_count(member, "disconnected")
            if not outgoing:
                meters.peer_count(member, "received_failures")

    def tick(self):
        """Streams that ended are dialled again; who is heard is noted."""
        process, peers = self._process, self._process.peers
        self.note_broken()
        now = time.monotonic()
        for member in peers.members:
            heard = peers.heard_ns(member) / 1e9
            # Links say something every 1.7 s even when raft has nothing to say.
            if heard > self._broke.get(member, 0.0) and now - heard < max(self._timeout, 2.5):
                self._since.setdefault(member, now)
            elif self._since.pop(member, None):
                meters.peer_count(member, "disconnected")
            self._show_figures(member)
        process.show("peers_active", len(self._since))
        self._show_connection()

    def _show_figures(self, member):
        counters = self._process.peers.link(member).counters()
        sent, received = self._bytes_before.get(member, (0, 0))
        meters.peer_put(member, "sent_bytes", sent + counters["sent_bytes"])
        meters.peer_put(member, "received_bytes", received + counters["received_bytes"])
        meters.peer_put(member, "active", int(member in self._since))

    def _unreachable(self, member):
        meters.peer_count(member, "sent_failures")
        self._process.raft.report_unreachable(member)

    def _probed(self, member, seconds):
        if seconds is None:
            meters.peer_count(member, "sent_failures")
        else:
            meters.peer_observe(member, "round_trip", int(seconds * 1e9))

    def _show_connection(self):
        """Since when the leader, or from the leader a quorum, can be reached."""
        process = self._process
        leader = process.raft.leader
        if leader == self._own or not leader:
            voters = process.raft.conf_state.voters
            # The quorum stands since its latest member came; this member was there all along.
            reached = sorted(0.001 if voter == self._own else self._since.get(voter, 0.0) for voter in voters)
            reached = [since for since in reached if since]
            needed = len(voters) // 2 + 1
            since = reached[needed - 1] if len(reached) >= needed else 0.0
        else:
            since = self._since.get(leader, 0.0)
        process.show("connected_since_ns", int(since * 1e9))

    # ---- what the peer thread hands over ------------------------------------------------------------

    def take_inbox(self):
        for kind, *arguments in self._inbox.take():
            self._handlers[kind](*arguments)
        self._process.peers.flush()

    def _stream_out(self, kind, peer, socket, headers):
        self._attach(peer, kind, True, socket, b"")
        self._process.loop.unblock_forward()

    def _stream_in(self, kind, peer, socket, leftover):
        self._attach(peer, kind, False, socket, leftover)

    def _attach(self, peer, kind, outgoing, socket, leftover):
        fd, tls = socket.detach()
        try:
            self._process.peers.attach(peer, kind, outgoing, fd, leftover, tls=tls)
        except KeyError:
            os.close(fd)  # removed since
        else:
            log.info(
                "established a stream with a peer",
                peer_id=f"{peer:x}",
                stream=("msgappv2", "message")[kind],
                direction="to" if outgoing else "from",
            )

    def _refused(self, peer):
        """Nobody listens where a peer did. A leader that has closed its streams as well is dead: why wait?"""
        process = self._process
        if peer != process.raft.leader or peer not in process.peers.members:
            return
        link = process.peers.link(peer)
        if link.fd(APP, False) < 0 and link.fd(MESSAGE, False) < 0:
            voters = sorted(voter for voter in process.raft.conf_state.voters if voter != peer)
            if self._own in voters:
                log.warn("the leader is gone: its streams are closed and nobody listens there", peer_id=f"{peer:x}")
                process.raft.leader_lost(voters.index(self._own))

    def _message(self, body, reply):
        process = self._process
        process.peers.take_marshalled(PeerMessage(body), process.raft.step)
        reply(204)

    def _snapshot(self, message, path, reply):
        self._process.transfers.received(message, path, reply)

    def _removed(self):
        self._process.removed_by_others()

    # ---- requests of other members that apply answers --------------------------------------------------

    def _ask_apply(self, method, payload, done):
        """PEER to apply; done(status, payload) gets the answer."""
        self._token += 1
        if len(self._waiting) >= WAITING_MAX or not self._process.loop.tell_apply(
            KINDS["PEER"], payload, method=method, index=self._token
        ):
            done(errors.ID["TOO_MANY_REQUESTS"], b"")
            return
        self._waiting[self._token] = done

    def ask_own_hash(self, revision, done):
        """HashKV of this member's own store: done(status, JSON bytes)."""
        self._ask_apply(_HASH_KV, put_uint(1, revision), done)

    def _lease_keep_alive(self, body, reply):
        self._ask_apply(_KEEP_ALIVE, body, lambda status, payload: _answer(reply, status, payload, _PROTOBUF))

    def _lease_time_to_live(self, body, reply):
        try:
            inner = read_fields(body, {1: bytes})[1]
        except RaftMessageError:
            reply(400, b"error unmarshalling request")
            return
        self._ask_apply(
            _TIME_TO_LIVE,
            inner[-1] if inner else b"",
            lambda status, payload: _answer(reply, status, payload, _PROTOBUF),
        )

    def _hash_kv(self, body, reply):
        revision = json.loads(body).get("revision", 0)
        self._ask_apply(
            _HASH_KV,
            put_uint(1, revision & (1 << 64) - 1),
            lambda status, payload: _answer(reply, status, payload, "application/json"),
        )

    def take_record(self, record):
        """A record of apply's: an answer to one of these, or something it wants of the leader."""
        if record.kind == Record.PEER_REPLY:
            done = self._waiting.pop(record.index, None)
            if done is not None:
                done(record.status, record.payload)
        elif record.kind == Record.FORWARD:
            self._forward(record)
        elif record.kind == Record.SNAPSHOT_DONE:
            self._process.transfers.made(record.index, json.loads(record.payload))

    # ---- what this member asks of others ---------------------------------------------------------------

    def _forward(self, record):
        """Apply wants the leader to renew a lease or tell of one."""
        slot, method = record.slot, record.method
        leader = self._process.raft.leader
        if not leader or leader == self._own:
            self._forwarded(slot, method, errors.ID["NO_LEADER"] if not leader else errors.ID["NOT_LEADER"], b"")
            return
        body = record.payload if method == _KEEP_ALIVE else put_bytes(1, record.payload)
        self._thread.ask(
            leader,
            "POST",
            _PATHS[method],
            body,
            lambda status, headers, answer: self._take_forwarded(slot, method, status, answer),
            {"Content-Type": _PROTOBUF},
        )

    def _take_forwarded(self, slot, method, status, answer):
        if status == 200:
            if method == _TIME_TO_LIVE:
                try:
                    inner = read_fields(answer, {1: bytes})[1]
                except RaftMessageError:
                    inner = []
                answer = inner[-1] if inner else b""
            self._forwarded(slot, method, 0, answer)
            return
        text = answer.decode("utf-8", "replace").strip()
        symbol = {404: "LEASE_NOT_FOUND", 408: "TIMEOUT_APPLIED_INDEX", 0: "TIMEOUT"}.get(status, "NO_LEADER")
        self._forwarded(slot, method, _ERROR_OF_TEXT.get(text, errors.ID[symbol]), b"")

    def _forwarded(self, slot, method, status, payload):
        self._process.loop.tell_apply(KINDS["FORWARDED"], payload, method=method, slot=slot, status=status)

    def ask_version(self, member, done):
        """done(member, version text, or None when it does not answer)."""

        def answered(status, headers, body):
            try:
                found = json.loads(body)["etcdserver"] if status == 200 else None
            except (ValueError, KeyError, TypeError):
                found = None
            done(member, found)

        self._thread.ask(member, "GET", "/version", b"", answered)

    def ask_hash(self, member, question, token, done):
        """HashKV of another member: done(member, token, HTTP status, body)."""
        self._thread.ask(
            member, "GET", "/members/hashkv", question, lambda status, headers, body: done(member, token, status, body)
        )

    def ask_promote(self, member_id, done):
        """The leader is asked to promote a learner: done(error symbol or None)."""

        def answered(status, headers, body):
            if status == 200:
                done(None)
                return
            text = body.decode("utf-8", "replace").strip()
            found = _ERROR_OF_TEXT.get(text)
            if found is not None:
                done(errors.ERRORS[found].symbol)
            else:
                done("MEMBER_NOT_FOUND" if status == 404 else "TIMEOUT")

        self._thread.ask(self._process.raft.leader, "POST", f"/members/promote/{member_id}", b"", answered)

    def post(self, member, data):
        """A raft message by POST; one that gets lost comes back as "unreachable"."""
        self._thread.post(member, data)

    def call(self, function, *arguments):
        """Have something called on the main thread, from any thread."""
        self._inbox.put("call", function, arguments)

    def send_snapshot(self, member, message, path, done):
        """done(whether it arrived)."""
        self._thread.send_snapshot(member, message, path, done)


def _answer(reply, status, payload, content_type):
    if not status:
        reply(200, payload, content_type)
        return
    row = errors.ERRORS[status]
    text = payload or row.text.encode()
    reply(_STATUS_OF.get(row.symbol, 400), text)
