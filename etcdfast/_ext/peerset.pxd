"""The links to all other members as the consensus loop uses them: what came goes to the raft core or the log, what
the core decides goes out. One thread owns it; Python is asked per message, never per entry.

    peer's socket --link_receive, link_next--> MsgProp: into the log (leader) or on to the leader (follower)
                                               anything else: step(Message), entries as an EntryBatch
    core's Message --send, send_app--> link buffer --flush--> peer's socket
    own proposals of a follower --forward--> one MsgProp per batch

Entries are taken from a stream only while the log has room for a message: TCP holds back the rest. Messages of the
other stream are always taken, for the log may be waiting for just them; proposals among them that find no room
gather in the arena, and beyond its limit are dropped, as etcd does.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.peerlink cimport PeerLink, peer_link
from etcdfast._ext.peerwire cimport peer_entry, peer_message
from etcdfast._ext.raftlog cimport RaftLog, raft_log

cdef enum:
    PEERS_MAX = 64
    PEERS_TAG = 16  # epoll tags from here on: PEERS_TAG + (slot * 4 + direction * 2 + kind)

# What proposals become.
cdef enum:
    PEERS_IDLE = 0  # nothing: no leader
    PEERS_LEADING = 1  # entries of the own log
    PEERS_FOLLOWING = 2  # a MsgProp to the leader

cdef enum:
    PEERS_RECEIVE_BYTES = 4194304  # from one stream before the others and the turn have their go
    PEERS_ROOM_ROWS = 16384  # free in the log before a message with entries is taken
    PEERS_ROOM_BYTES = 4194304
    FORWARD_ENTRIES_MAX = 4096  # of one MsgProp
    FORWARD_BYTES_MAX = 2097152


cdef class EntryBatch:
    """The entries of one message; valid until the next message of its stream is read.

    first, last: indexes (last = first - 1 when empty); nothing is copied.
    """
    cdef const peer_entry *entries
    cdef readonly uint64_t first
    cdef readonly uint64_t last
    cdef readonly uint64_t last_term
    cdef readonly uint32_t count


cdef class Peers:
    cdef RaftLog main
    cdef raft_log *log
    cdef RaftLog gathered  # proposals on their way: to the leader, or into the log when that has room again
    cdef raft_log *arena
    cdef list links  # slot -> PeerLink or None
    cdef peer_link *at[PEERS_MAX]
    cdef dict slots  # member id -> slot
    cdef uint64_t local
    cdef int epoll
    cdef uint64_t ready[2]  # per kind, bit slot: something may be read there
    cdef uint64_t writable  # bit slot: the sockets may take more
    cdef uint64_t ended  # bit slot: the other side may have closed a stream we write
    cdef uint64_t last_heard_ns[PEERS_MAX]
    cdef peer_entry *scratch
    cdef uint32_t scratch_room
    cdef readonly int mode
    cdef readonly uint64_t term
    cdef readonly uint64_t leader
    cdef readonly uint64_t forwarded  # proposals sent to a leader since the start
    cdef readonly uint64_t dropped  # proposals of other members for which there was no room
    cdef object message  # class of what the core is given
    cdef public object on_special  # (type, data): a configuration change that another member proposes
    cdef list broken  # (member id, kind, outgoing) of streams that ended since last asked
    cdef readonly uint32_t entries_received  # in the last receive()
    cdef readonly uint64_t behind  # committed entries that the leader has and its last message did not bring

    # Whether receive() or flush() has something to do.
    cdef bint has_work(self) noexcept nogil
    cdef void on_event(self, uint64_t tag, uint32_t events) noexcept nogil
    # What gathered, into the log that leads; False while it has no room.
    cdef int settle(self) noexcept nogil

    cdef int receive_kind(self, int slot, int kind, step) except -1
    cdef int take(self, int slot, peer_message *m, step) except -1
    cdef int take_proposals(self, int slot, peer_message *m) except -1
    cdef bint room(self) noexcept nogil
    cdef fail(self, int slot, int kind, bint outgoing)
    cdef int put(self, int code) except -100
    cdef int grow_scratch(self, uint64_t count) except -1
