"""Whole states on their way: snapshots to members too far behind, snapshots from a leader, leadership at a stop.

To a follower:  Ready.snapshots_wanted -> SNAPSHOT to apply -> a bbolt file -> POST /raft/snapshot -> report_snapshot
From a leader:  POST /raft/snapshot -> <index>.snap.db on disk -> MsgSnap into the core -> Ready.snapshot -> .snap file,
                WAL record and hard state on disk -> the member starts anew in place, on that state
"""

import json
import os
import time

from etcdfast import log
from etcdfast._ext import meters
from etcdfast._ext.peerwire import PeerMessage, marshal_message
from etcdfast._ext.ring import KINDS
from etcdfast.consensus.raft import ProposalDropped
from etcdfast.consensus.raft.messages import MSG_SNAP, Message, SnapshotMeta
from etcdfast.consensus.storage import install_snapshot
from etcdfast.formats.raftpb import RaftMessageError, decode_snapshot, encode_snapshot

RETRY_SECONDS = 1.0  # until apply is asked again for a file that it had no room or no time for


class Restart(Exception):
    """The member's state was replaced by a leader's snapshot: all its processes start anew on it."""


class Transfers:
    def __init__(self, process):
        self._process = process
        self._wanted = {}  # member id -> when it was wanted
        self._token = 0
        self._making = None  # (token, membership's bytes, ConfState) of the file under way
        self._retry_at = 0.0
        self._sending = {}  # path -> members it goes to
        self._incoming = None  # (index, membership's bytes) of the snapshot the core looks at

    # ---- to followers --------------------------------------------------------------------------------

    def wanted(self, members):
        for member in members:
            self._wanted[member] = True
        self._make()

    def tick(self):
        if self._wanted and self._making is None and time.monotonic() >= self._retry_at:
            self._make()

    def _make(self):
        """Ask apply for a file of the state as it is here in the order of the log."""
        process = self._process
        if self._making is not None or not process.raft.leads:
            return
        conf_state = process.membership.conf_state()
        asked = {
            "term": process.raft.log.term(process.loop.handed),
            "conf_state": {
                "voters": list(conf_state.voters),
                "learners": list(conf_state.learners),
                "auto_leave": False,
            },
        }
        self._token += 1
        if process.loop.tell_apply(KINDS["SNAPSHOT"], json.dumps(asked).encode(), index=self._token):
            self._making = self._token, process.membership.snapshot(), conf_state
        self._retry_at = time.monotonic() + RETRY_SECONDS

    def made(self, token, found):
        """SNAPSHOT_DONE."""
        if self._making is None or token != self._making[0]:
            _remove(found.get("path"))
            return
        _, data, conf_state = self._making
        self._making = None
        process = self._process
        members, self._wanted = list(self._wanted), {}
        if "error" in found or not process.raft.leads:
            if "error" in found:
                log.warn("no snapshot for members that are behind", error=found["error"])
            _remove(found.get("path"))
            for member in members:
                process.raft.report_snapshot(member, False)
            return
        index, path = found["index"], found["path"]
        term = process.raft.log.term(index) or found.get("term") or process.raft.term
        snapshot = encode_snapshot(data, conf_state, index, term)
        self._sending[path] = set(members)
        for member in members:
            message = marshal_message(MSG_SNAP, member, process.raft.id, process.raft.term, snapshot=snapshot)
            log.info("sending a snapshot", peer_id=f"{member:x}", snapshot_index=index, bytes=found.get("bytes", 0))
            process.raft.snapshot_sent(member, index)
            meters.peer_put(member, "snapshot_sending", 1)
            began = time.monotonic_ns()
            process.peering.send_snapshot(
                member, message, path, lambda ok, member=member, began=began: self._sent(path, member, index, ok, began)
            )
        if not members:
            self._done(path)

    def _sent(self, path, member, index, ok, began):
        meters.peer_put(member, "snapshot_sending", 0)
        meters.peer_count(member, "snapshot_sent" if ok else "snapshot_send_failures")
        if ok:
            meters.peer_observe(member, "snapshot_send", time.monotonic_ns() - began)
            log.info("a snapshot has arrived", peer_id=f"{member:x}", snapshot_index=index)
        self._process.raft.report_snapshot(member, ok)
        self._sending[path].discard(member)
        self._done(path)

    def _done(self, path):
        if not self._sending[path]:
            del self._sending[path]
            _remove(path)

    # ---- from a leader ---------------------------------------------------------------------------------

    def received(self, raw, path, reply):
        """A MsgSnap whose database is durable at `path`."""
        process = self._process
        try:
            posted = PeerMessage(raw)
            kind, to, frm, term, log_term, index, commit, _, reject, hint, context, snapshot = posted.fields()
            data, conf_state, index, snap_term = decode_snapshot(snapshot or b"")
        except (RaftMessageError, ValueError):
            _remove(path)
            reply(400, b"error unmarshalling raft snapshot message")
            return
        if not os.path.exists(path):
            # The same snapshot came twice, and when the first was not taken its file went.
            reply(500, b"the snapshot's database is gone")
            return
        if kind != MSG_SNAP or not index:
            _remove(path)
            reply(400, b"unexpected raft message type")
            return
        self._incoming = index, data, path, reply
        process.raft.step(
            Message(MSG_SNAP, to, frm, term, snapshot=SnapshotMeta(index, snap_term, conf_state))
        )
        if process.raft.has_ready():
            process.carry_out()
        # Not taken: this member has all of it already, or the leader is none any more.
        self._incoming = None
        _remove(path)
        reply(204)

    def install(self, meta, hard_state):
        """The core has taken the snapshot: make it this member's state. Raises Restart."""
        index, data, _, reply = self._incoming
        process = self._process
        meters.put("snapshot_applying", 1)  # until the processes that start anew have loaded it
        log.info("taking a snapshot in place of the own state", snapshot_index=index, snapshot_term=meta.term)
        install_snapshot(process.config, process.opened, meta, data, tuple(hard_state))
        # The leader must hear of it: otherwise it takes the snapshot for lost, and makes another. `stop` sees to that.
        reply(204)
        process.peering.stop()
        raise Restart

    # ---- at a stop -----------------------------------------------------------------------------------------

    def hand_over_leadership(self, deadline):
        """A leader that stops lets the most up-to-date of the others lead, so that nobody waits for an election."""
        process = self._process
        raft = process.raft
        if not raft.leads:
            return
        progress = raft.progress
        others = [
            member
            for member in raft.conf_state.voters
            if member != raft.id and member in progress and progress[member].recent_active
        ]
        if not others:
            return
        to = max(others, key=lambda member: progress[member].match)
        try:
            raft.transfer_leader(to)
        except ProposalDropped:
            return
        deadline = min(deadline, time.monotonic() + process.config.election_timeout / 1000)
        while raft.leads and time.monotonic() < deadline:
            process.turn()


def _remove(path):
    if path:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
