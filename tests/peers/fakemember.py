"""A member made of PeerThread and PeerLink and just enough raft to be a follower: real etcd talks to it."""

from __future__ import annotations

import select
import socket
import time
from collections import namedtuple

from etcdfast._ext.peerlink import STREAMS, PeerLink
from etcdfast._ext.peerwire import PeerMessage, marshal_message
from etcdfast.consensus.peers import Inbox, PeerSettings, PeerThread, View

PROP, APP, APP_RESP, VOTE, VOTE_RESP, SNAP, HEARTBEAT, HEARTBEAT_RESP = 2, 3, 4, 5, 6, 7, 8, 9
READ_INDEX, READ_INDEX_RESP, PRE_VOTE, PRE_VOTE_RESP = 15, 16, 17, 18
KINDS = tuple(STREAMS.values())

Message = namedtuple(
    "Message", "type to frm term log_term index commit entries reject reject_hint context snapshot"
)


def listener():
    """A listening socket on a free port of 127.0.0.1, and its peer URL."""
    made = socket.create_server(("127.0.0.1", 0))
    return made, f"http://127.0.0.1:{made.getsockname()[1]}"


class FakeMember:
    """One member; the test's own thread is its main thread, inside `run_until`."""

    def __init__(self, directory, listening, view, tls=None, **settings):
        self.view = view
        self.id = view.member_id
        self.snap_dir = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.inbox = Inbox()
        listeners = [(listening, tls is not None)]
        self.thread = PeerThread(PeerSettings(str(directory), **settings), listeners, view, self.inbox, tls)
        self.links = {}
        self.got = []  # Message of every stream and POST, in order
        self.events = []  # everything else that came through the inbox
        self.posted = []  # messages that came by POST /raft
        self.expired = 0
        self.answer = True  # be a follower
        self.term = 0
        self.entries = []  # of the log, from index 1: (term, index, type, data)
        self.commit = 0
        self._poll = select.epoll()
        self._poll.register(self.inbox.fd, select.EPOLLIN)
        self._watched = {}  # fd -> (peer, kind, outgoing)

    def start(self):
        self.thread.start()
        for peer in self.view.peer_urls:
            if peer != self.id:
                self.thread.dial(peer)
        return self

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.thread.stop()
        for link in self.links.values():
            link.close()
        self.inbox.close()
        self._poll.close()

    def link(self, peer):
        return self.links.setdefault(peer, PeerLink(peer, self.id))

    def streams(self, peer):
        """How many of the four streams with a peer are attached."""
        link = self.link(peer)
        return sum(link.fd(kind, outgoing) >= 0 for kind in KINDS for outgoing in (False, True))

    def set_view(self, **changes):
        self.view = self.view._replace(**changes)
        self.thread.set_view(self.view)

    # ---- the main loop ---------------------------------------------------------------------------

    def run_until(self, condition, what, deadline_seconds=20.0):
        end = time.monotonic() + deadline_seconds
        while not (result := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"not within {deadline_seconds} s: {what}; last messages {self.got[-5:]}")
            self.turn(0.05)
        return result

    def turn(self, seconds):
        for fd, _ in self._poll.poll(seconds):
            if fd == self.inbox.fd:
                for event in self.inbox.take():
                    self._event(*event)
            elif fd in self._watched:
                self._readable(*self._watched[fd])
        now_ns = time.monotonic_ns()
        for peer, link in self.links.items():
            link.heartbeat(now_ns)
            dead = link.expired(now_ns)
            for kind in KINDS:
                if dead & 1 << kind:
                    self._drop(peer, kind, True)
                if dead & 4 << kind:
                    self._drop(peer, kind, False)
                if link.flush(kind) < 0:
                    self._drop(peer, kind, True)

    def _watch(self, fd, *what):
        self._watched[fd] = what
        self._poll.register(fd, select.EPOLLIN)

    def _drop(self, peer, kind, outgoing):
        link = self.link(peer)
        self._watched.pop(link.fd(kind, outgoing), None)
        link.detach(kind, outgoing)
        if not outgoing:
            self.thread.stream_lost(peer, kind)

    def _event(self, name, *arguments):
        if name in ("stream_out", "stream_in"):
            kind, peer, connected, more = arguments
            self._watched.pop(self.link(peer).fd(kind, name == "stream_out"), None)
            fd, tls = connected.detach()
            if name == "stream_out":
                self.link(peer).attach_out(kind, fd, tls)
            else:
                self.link(peer).attach_in(kind, fd, more, tls=tls)
            self._watch(fd, peer, kind, name == "stream_out")
            if name == "stream_in":
                self._messages(peer, kind)
        elif name == "call":
            arguments[0](*arguments[1])
        elif name == "message":
            body, reply = arguments
            self.posted.append(body)
            self._message(Message(*PeerMessage(body).fields()))
            reply(204)
        else:
            self.events.append((name, *arguments))

    def _readable(self, peer, kind, outgoing):
        link = self.link(peer)
        if outgoing:
            if link.check_out(kind) < 0:
                self._drop(peer, kind, True)
            return
        if link.receive(kind) < 0:
            self._drop(peer, kind, False)
            return
        self._messages(peer, kind)

    def _messages(self, peer, kind):
        link = self.link(peer)
        while isinstance(fields := link.next(kind), tuple):
            self._message(Message(*fields))
        assert fields in (0, -4), f"stream {kind} of {peer:x}: {fields}"
        if fields:
            self._drop(peer, kind, False)

    # ---- a follower ------------------------------------------------------------------------------

    def send(self, type, to, **fields):
        if self.link(to).put_plain(type, to, self.id, **fields):
            self.thread.post(to, marshal_message(type, to, self.id, **fields))

    def _message(self, m):
        self.got.append(m)
        if not self.answer or m.to != self.id:
            return
        if m.type == PRE_VOTE:
            self.send(PRE_VOTE_RESP, m.frm, term=m.term)
            return
        if m.term < self.term:
            return
        self.term = max(self.term, m.term)
        if m.type == VOTE:
            self.send(VOTE_RESP, m.frm, term=m.term)
        elif m.type == HEARTBEAT:
            self.commit = max(self.commit, m.commit)
            self.send(HEARTBEAT_RESP, m.frm, term=m.term, context=m.context)
        elif m.type == APP:
            if m.index > len(self.entries):
                self.send(APP_RESP, m.frm, term=m.term, index=m.index, reject=True, reject_hint=len(self.entries))
                return
            del self.entries[m.index :]
            self.entries += m.entries
            self.commit = max(self.commit, min(m.commit, len(self.entries)))
            self.send(APP_RESP, m.frm, term=m.term, index=len(self.entries))


class FakeLeader(FakeMember):
    """Leads a cluster of itself and one real member. What is not acknowledged within a heartbeat is sent again."""

    leading = False
    snapshot = (0, 0)  # index and term before `entries`
    match = 0
    compact = 0  # MsgApps that could go as compact frames
    heartbeat_at = 0.0

    def campaign(self, peer, term, last_index, last_term):
        self.term = term
        self.peer = peer
        self.send(VOTE, peer, term=term, index=last_index, log_term=last_term)

    def append(self, *rows):
        """Entries (type, data) of this term, to the log and to the peer."""
        prev = self.last_index()
        self.entries += [(self.term, prev + 1 + i, type, data) for i, (type, data) in enumerate(rows)]
        self._replicate(prev)

    def _replicate(self, prev):
        at = prev - self.snapshot[0]
        prev_term = self.entries[at - 1][0] if at else self.snapshot[1]
        code = self.link(self.peer).put_app(self.term, prev, prev_term, self.commit, self.entries[at:])
        assert code in (0, -1)
        self.compact += code == 0 and prev_term == self.term

    def last_index(self):
        return self.snapshot[0] + len(self.entries)

    def turn(self, seconds):
        super().turn(seconds)
        now = time.monotonic()
        if self.leading and now > self.heartbeat_at:
            self.heartbeat_at = now + 0.1
            if self.snapshot[0] <= self.match < self.last_index():
                self._replicate(self.match)
            self.send(HEARTBEAT, self.peer, term=self.term, commit=min(self.commit, self.match))
            self.link(self.peer).flush(1)

    def _message(self, m):
        if m.type == VOTE_RESP and m.term == self.term and not m.reject:
            self.got.append(m)
            self.leading = True
        elif m.type == APP_RESP and self.leading and not m.reject:
            self.got.append(m)
            self.match = m.index
            if m.index > self.commit:
                self.commit = m.index
                self.append()
        elif m.type == PROP and self.leading:
            self.got.append(m)
            self.append(*((type, data) for _, _, type, data in m.entries))
        elif m.type == READ_INDEX and self.leading:
            self.got.append(m)
            context = m.entries[0][3]
            assert self.link(m.frm).put_read(READ_INDEX_RESP, m.frm, self.id, self.term, self.commit, context) == 0
        elif self.leading or m.type in (PRE_VOTE, VOTE):
            self.got.append(m)
        else:
            super()._message(m)


def view_of(member_id, cluster_id, urls, **more):
    return View(member_id, cluster_id, {member: (url,) for member, url in urls.items()}, **more)
