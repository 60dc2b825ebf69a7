"""The turn of the consensus process: proposals into the log, the log to disk, committed entries to apply.

    f<i>c, ac rings --> raft log (one copy, wrapped as InternalRaftRequest) --> WAL filling buffer --> disk thread
                            |                                                                            |
                            +--> `ca` ring, once committed  <---- commit (the raft core, in Python) <----+

The loop decides nothing about raft: Python sets the term, whether proposals are taken, and the commit index
(`Loop` methods), and is asked only when something happened (`EV_*`). Backpressure runs against the arrows: a
full `ca` ring stops draining, and so does a full raft log, which fills when the WAL buffer is full.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.netsys cimport epoll_event
from etcdfast._ext.peerset cimport Peers
from etcdfast._ext.raftlog cimport RaftLog, raft_log
from etcdfast._ext.readwait cimport read_batch
from etcdfast._ext.ring cimport Ring, ipc_record, ring_view
from etcdfast._ext.spin cimport spin_t
from etcdfast._ext.walio cimport Wal, wal_t
from etcdfast._ext.walscan cimport EntryTable, walscan_row

# What a turn has to tell.
cdef enum:
    EV_APPENDED = 1  # the raft log grew (only when asked for)
    EV_DURABLE = 2  # durable_index, durable_term or durable_state advanced
    EV_TICK = 4  # ticks_due > 0
    EV_WAKE = 8  # the wake descriptor is readable (a signal came)
    EV_LIFE = 16  # the life descriptor is at its end: the supervisor is gone
    EV_CONF = 32  # an entry about the members was handed over; conf_index says which
    EV_WAL_FAILED = 64  # final
    EV_RING_BROKEN = 128  # final: a record that no working process writes
    EV_NO_MEMORY = 256  # final
    EV_ENTRY_TOO_LARGE = 512  # final: a committed entry that can never fit the `ca` ring
    EV_HARD = 1024  # the state given to hand_hard() is with apply
    EV_PEERS = 2048  # sockets of peers have something to read or take something
    EV_READS = 4096  # reads gathered, and no round of ReadIndex is under way
    EV_CALLS = 8192  # records that Python carries out gathered (take_calls)
    EV_OWN = 16384  # entries that this process itself waited for were handed over (take_own)
    EV_FORWARD = 65536  # proposals gathered for the leader
    EV_INBOX = 32768  # the inbox descriptor was rung: the peer thread has something

# What becomes of proposals and reads that are drained.
cdef enum:
    TAKE_NOTHING = 0  # they stay in their rings
    TAKE_ALONE = 1  # the only voter: entries of the own log; reads are confirmed at once
    TAKE_LEADING = 2  # entries of the own log; reads wait for a quorum's word
    TAKE_FOLLOWING = 3  # they go to the leader; reads wait for its word

# Descriptors in the epoll set; those of peers have tags from PEERS_TAG on.
cdef enum:
    FD_DOORBELL = 0
    FD_WAL = 1
    FD_WAKE = 2
    FD_LIFE = 3
    FD_INBOX = 4

cdef enum:
    LOOP_INBOUND_MAX = 65  # 64 frontends and apply
    LOOP_TURN_RECORDS = 4096  # records drained in a turn, all rings together
    LOOP_RING_RECORDS = 512  # and from one ring before the next has its go
    LOOP_TURN_BYTES = 4194304  # of proposals and reads drained in a turn
    LOOP_HAND_RECORDS = 4096  # committed entries handed over in a turn
    LOOP_PUBLISH_RECORDS = 256  # committed records that apply is shown at once, so that it starts early
    # Suffix that wraps a request: lease id 11, tag 2, length 2; in it id 11, name 3 and itself, auth revision 11.
    LOOP_HEADER_MAX = 320
    LOOP_PREFIX_MAX = 16  # tag 2, length 10
    LOOP_CALLS_MAX = 256  # records for Python that wait; more are refused
    LOOP_KEPT_ENTRIES = 4096  # handed over, but kept for members that are a little behind
    LOOP_OWN = 0xFD  # loop_waiter.frontend: this process itself

cdef inline uint64_t suffix_of(uint64_t request_id) noexcept nogil:
    """What counts up in the ids of a member (formats.md 3.6)."""
    return request_id & <uint64_t>0xFFFFFFFFFFFF


# Who waits for a proposal; found by request id, not by position, so that it holds for forwarded ones too.
ctypedef struct loop_waiter:
    uint64_t request_id  # 0: free
    uint32_t slot
    uint32_t generation
    uint32_t stream
    uint8_t frontend
    uint8_t method
    uint8_t flags


cdef class Turn:
    cdef readonly RaftLog log
    cdef readonly Wal wal
    cdef list rings  # kept mapped
    cdef object pages
    cdef EntryTable table  # the log read at start, None once handed over
    cdef raft_log *entries
    cdef wal_t *disk
    cdef ring_view *inbound[LOOP_INBOUND_MAX]
    cdef int inbounds
    cdef int next_inbound  # which goes first in the next turn
    cdef ring_view *out  # `ca`
    cdef void *status  # own page
    cdef int epoll
    cdef loop_waiter *waiters
    cdef uint64_t waiter_mask
    cdef uint64_t request_bytes_max

    # rows of `table`; NULL when there is none
    cdef walscan_row *replay
    cdef const uint8_t **replay_bases
    cdef uint64_t replay_first
    cdef uint64_t replay_last

    cdef readonly uint64_t term  # of entries that are drained into the log
    cdef readonly int taking  # TAKE_*
    cdef public bint tell_appended  # end turns with EV_APPENDED: there are members to send entries to
    cdef readonly Peers peers
    cdef read_batch reads[2]
    cdef int filling  # which of them gathers; the other is under way or empty
    cdef bint reads_told
    cdef list calls  # records as bytes
    cdef bint called  # `calls` grew
    cdef list own  # request ids
    cdef bint forward_full  # the arena of proposals for the leader has no room
    cdef bint forward_blocked  # nor has the leader's stream: what gathered waits
    cdef readonly uint64_t stable  # last index of the present log that is on the own disk
    cdef public uint64_t keep_index  # entries above it are kept for other members while there is room
    cdef readonly uint64_t commit
    cdef readonly uint64_t handed  # last index handed to apply
    cdef readonly uint64_t written  # last index given to the WAL
    cdef uint64_t sent  # and to the disk: in the batch in flight or an earlier one. A cut of the log lowers all three
    cdef readonly uint64_t conf_index  # of the last entry handed over that concerns the members
    cdef uint64_t hard_index, hard_term  # HARD record to follow that index, 0: none
    cdef readonly uint64_t ticks_due
    cdef uint64_t reported_last
    cdef uint64_t staged_index  # the batch whose time from disk to hand-over is taken, and since when; 0: none
    cdef uint64_t staged_ns
    cdef uint64_t request_prefix  # of request ids; formats.md 3.6
    cdef uint64_t request_suffix
    # Ids up to lost_suffix are of terms before lost_term: once an entry of that term is handed over, those that still
    # wait were with a leader that is gone, and no log holds them.
    cdef uint64_t lost_suffix
    cdef uint64_t lost_term  # 0: nothing to refuse
    cdef bint lost_due
    cdef uint64_t lost_at  # row of `waiters` that is looked at next

    cdef uint64_t state_term, state_vote, state_commit  # hard state as the core has it
    cdef uint64_t given_term, given_vote, given_commit  # as last given to the WAL
    cdef uint64_t sent_term, sent_vote  # in the batch in flight
    cdef readonly uint64_t durable_term_of_state
    cdef readonly uint64_t durable_vote
    cdef bint flush_state  # write a hard state of which only the commit index is new

    cdef uint64_t blocked_bytes  # room waited for in `out`, 0 when none
    cdef bint log_full
    cdef bint more  # work is left that needs no wake-up
    cdef uint64_t tick_nanoseconds
    cdef uint64_t tick_at
    cdef uint64_t now
    cdef spin_t spin

    cdef int turn_once(self) noexcept nogil
    cdef void show_disk(self) noexcept nogil
    cdef int hand_over(self) noexcept nogil
    cdef int hand_hard_record(self) noexcept nogil
    cdef int fill_waiter(self, ipc_record *r, uint64_t request_id) noexcept nogil
    cdef uint64_t new_request_id(self) noexcept nogil
    cdef int drain(self) noexcept nogil
    cdef int take_proposal(self, ipc_record *r) noexcept nogil
    cdef int pass_read(self, ipc_record *r) noexcept nogil
    cdef int gather_read(self, ipc_record *r) noexcept nogil
    cdef int gather_call(self, ipc_record *r) except -2 with gil
    cdef int hand_reads(self) noexcept nogil
    cdef void release_log(self) noexcept nogil
    cdef void note_stable(self) noexcept nogil
    cdef int refuse_lost(self) noexcept nogil
    cdef void note_own(self, uint64_t request_id) noexcept with gil
    cdef int wait_awake(self, epoll_event *found) noexcept nogil
    cdef int refuse(self, ipc_record *r, uint32_t status) noexcept nogil
    cdef int write_wal(self) noexcept nogil
    cdef int sleep(self) noexcept nogil
