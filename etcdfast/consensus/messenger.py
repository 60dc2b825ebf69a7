"""What the raft core wants sent, onto the links: entries straight from the log in memory, older ones read back from
the write-ahead log, and by POST while a member has not dialled its streams yet.

Messages with entries that cannot go just now (their segment is being read, the link is full) wait, in order; they are
positions only. The core's window of messages under way bounds how many.
"""

from collections import deque

from etcdfast._ext import peerset
from etcdfast._ext.peerwire import marshal_message
from etcdfast.consensus.raft.messages import MSG_APP, MSG_READ_INDEX, MSG_READ_INDEX_RESP
from etcdfast.consensus.walreader import GONE, LOADING

_READ_INDEX = (MSG_READ_INDEX, MSG_READ_INDEX_RESP)
# Of entries read back, in one message. Each becomes one sync of the member that is behind, and whoever shares its disk
# waits as long as that takes.
DISK_MESSAGE_BYTES = 1 << 18
DEFERRED_MAX = 1024
POST_ENTRIES_MAX = 64


class Messenger:
    """post(member id, marshalled message): by way of POST /raft."""

    def __init__(self, member_id, loop, raft, post):
        self._own = member_id
        self._peers = loop.peers
        self._entries = loop.log
        self._raft = raft
        self._post = post
        self.deferred = {}  # member id -> messages that wait, oldest first

    def send(self, messages):
        for message in messages:
            if message.type == MSG_APP:
                self._send_entries(message)
            else:
                self._send_plain(message)
        self._peers.flush()

    def _send_plain(self, message):
        kind, peers = message.type, self._peers
        try:
            if kind in _READ_INDEX:
                code = peers.send_read_index(message.to, kind, message.term, message.index, message.context)
            else:
                code = peers.send(
                    message.to,
                    kind,
                    message.term,
                    message.log_term,
                    message.index,
                    message.commit,
                    message.reject,
                    message.reject_hint,
                    message.context,
                )
        except KeyError:
            code = peerset.DOWN  # removed a moment ago, or known by its URLs alone
        if code == peerset.DOWN:
            self._post(message.to, self._marshal(message))

    # ---- entries -----------------------------------------------------------------------------------

    def _send_entries(self, message):
        waiting = self.deferred.get(message.to)
        if waiting is None:
            left = self._put_entries(message)
            if left is not None:
                self.deferred[message.to] = deque((left,))
        elif len(waiting) < DEFERRED_MAX:
            waiting.append(message)
        else:
            self._lost(message.to)

    def retry(self):
        """Send what waited, as far as it goes."""
        if not self._raft.leads:
            # Deposed in this very turn: what the messages name may be another leader's by now.
            self.forget()
            return
        for to, waiting in list(self.deferred.items()):
            while waiting and self.deferred.get(to) is waiting:
                left = self._put_entries(waiting.popleft())
                if left is not None:
                    waiting.appendleft(left)
                    break
            if not waiting:
                self.deferred.pop(to, None)
        self._peers.flush()

    def forget(self):
        """Another term: what waits is nothing any more."""
        self.deferred.clear()

    def _lost(self, to):
        self.deferred.pop(to, None)
        self._raft.report_unreachable(to)

    def _put_entries(self, message):
        """None when done with (sent or lost); else what is left of the message and has to wait."""
        peers, to = self._peers, message.to
        first, last = message.entries
        while True:
            try:
                if first > last or first >= self._entries.first_index:
                    code = peers.send_app(to, message.term, message.index, message.log_term, message.commit, last)
                    sent_to = last
                else:
                    code, sent_to = self._put_from_disk(message, first, last)
            except KeyError:
                code = peerset.DOWN
            if code == peerset.FULL:
                return message
            if code == peerset.DOWN:
                # From here on the core sends one message and waits for its answer.
                self._post(to, self._marshal(message))
                self._lost(to)
                return None
            if code == GONE:
                self._lost(to)
                return None
            if sent_to >= last:
                return None
            first = sent_to + 1
            message = message._replace(
                index=sent_to, log_term=self._raft.log.term(sent_to), entries=type(message.entries)(first, last)
            )

    def _put_from_disk(self, message, first, last):
        piece = self._raft.log.reader.entries(first, last)
        if piece is LOADING:
            return peerset.FULL, 0
        if piece is GONE:
            return GONE, 0
        return self._peers.send_app_rows(
            message.to,
            message.term,
            message.index,
            message.log_term,
            message.commit,
            piece.last,
            piece.table,
            piece.row,
            DISK_MESSAGE_BYTES,
        )

    # ---- by POST -------------------------------------------------------------------------------------

    def _marshal(self, message):
        """Bytes for POST /raft: with a few entries, or none when they left memory. That asks how far the member is, and
        by then it has dialled its streams."""
        entries, context = (), message.context
        if message.type == MSG_APP:
            first, last = message.entries
            if first >= self._entries.first_index:
                entries = [self._entry(index) for index in range(first, min(last, first + POST_ENTRIES_MAX - 1) + 1)]
        elif message.type in _READ_INDEX:
            entries, context = [(0, 0, 0, context)], b""
        return marshal_message(
            message.type,
            message.to,
            self._own,
            message.term,
            message.log_term,
            message.index,
            message.commit,
            entries,
            message.reject,
            message.reject_hint,
            context or None,
        )

    def _entry(self, index):
        term, kind, data, _ = self._entries.entry(index)
        return term, index, kind, data
