"""What a frontend's clients learn of the cluster's leader: calls that need one, learners, why a call timed out.

Everything comes from consensus' status page; the frontend asks nobody. Source: etcd's gRPC interceptors
(v3rpc/interceptor) and its choice of a text for a request that timed out; seen live on 3.5.1.
"""

from libc.stdint cimport uint32_t, uint64_t

from etcdfast._ext.errids cimport (
    ERR_DEADLINE, ERR_NOT_SUPPORTED_FOR_LEARNER, ERR_NO_LEADER, ERR_TIMEOUT, ERR_TIMEOUT_CONNECTION_LOST,
    ERR_TIMEOUT_LEADER_FAIL, ERR_TIMEOUT_LEADER_TRANSFER,
)
from etcdfast._ext.frontconn cimport loop_t
from etcdfast._ext.h2types cimport STREAM_NO_LEADER_OK, STREAM_READS, h2_stream
from etcdfast._ext.ring cimport (
    ST_CONNECTED_SINCE_NS, ST_LEADER, ST_LEADER_ELECTED_NS, ST_LEADER_LOST_NS, ST_LEARNER, ST_MEMBER_ID, ST_PEERS, status_get,
)
from etcdfast._ext.rpcids cimport (
    RPC_LEASE_TIME_TO_LIVE, RPC_MEMBER_PROMOTE, RPC_MOVE_LEADER, RPC_RANGE, RPC_SNAPSHOT, RPC_STATUS,
)

cdef enum:
    LEADERLESS_ELECTIONS = 3     # election timeouts without a leader that end a stream which requires one


cdef inline bint lacks_leader(loop_t *loop, h2_stream *s) noexcept nogil:
    """Whether the call requires a leader (metadata hasleader: true), and there is none."""
    return not s.flags & STREAM_NO_LEADER_OK and status_get(loop.consensus_page, ST_LEADER) == 0


cdef inline bint leads(loop_t *loop) noexcept nogil:
    """Whether this member is the leader."""
    cdef uint64_t leader = status_get(loop.consensus_page, ST_LEADER)
    return leader != 0 and leader == status_get(loop.consensus_page, ST_MEMBER_ID)


cdef inline bint learner_refuses(loop_t *loop, h2_stream *s, bint serializable) noexcept nogil:
    """Whether this member is a learner and the call is none that learners serve."""
    if not status_get(loop.consensus_page, ST_LEARNER):
        return False
    return not (s.method == RPC_STATUS or s.method == RPC_SNAPSHOT or (s.method == RPC_RANGE and serializable))


cdef inline uint32_t leader_refuses(loop_t *loop, h2_stream *s, bint serializable) noexcept nogil:
    """The error of a call that this member may not even begin; 0 none."""
    if learner_refuses(loop, s, serializable):
        return ERR_NOT_SUPPORTED_FOR_LEARNER
    return ERR_NO_LEADER if lacks_leader(loop, s) else 0


cdef inline uint32_t timeout_error(loop_t *loop, h2_stream *s) noexcept nogil:
    """Why a call had no answer within the server's own time (not its client's)."""
    cdef void *page = loop.consensus_page
    cdef uint64_t leader = status_get(page, ST_LEADER)
    cdef uint64_t elected = status_get(page, ST_LEADER_ELECTED_NS)
    cdef uint64_t lost = status_get(page, ST_LEADER_LOST_NS)
    cdef uint64_t start = s.deadline_ns - loop.request_timeout_ns
    cdef uint64_t connected
    if s.method == RPC_MOVE_LEADER:
        return ERR_TIMEOUT_LEADER_TRANSFER
    if leader == 0 and (s.method == RPC_LEASE_TIME_TO_LIVE or s.method == RPC_MEMBER_PROMOTE):
        return ERR_NO_LEADER   # only the leader could have answered
    if s.flags & STREAM_READS or status_get(page, ST_PEERS) == 0:
        return ERR_TIMEOUT
    # etcd takes two election timeouts before the election for the time in which the old leader may have failed.
    if start < elected and (start + 2 * loop.election_ns > elected or (lost < elected and 0 < lost < start)):
        return ERR_TIMEOUT_LEADER_FAIL
    if leader == 0:
        # etcd does not even propose without a leader: its caller's context ends.
        return ERR_DEADLINE if 0 < loop.leaderless_ns <= start else ERR_TIMEOUT
    connected = status_get(page, ST_CONNECTED_SINCE_NS)
    if connected == 0 or connected > start:
        return ERR_TIMEOUT_CONNECTION_LOST
    return ERR_TIMEOUT


cdef inline bint leader_watch(loop_t *loop) noexcept nogil:
    """Once a turn: whether the streams that require a leader are to end now."""
    if status_get(loop.consensus_page, ST_LEADER):
        loop.leaderless_ns = 0
        return False
    if loop.leaderless_ns == 0:
        loop.leaderless_ns = loop.server.now_ns
        loop.leaderless_told = False
    if loop.leaderless_told or loop.server.now_ns - loop.leaderless_ns < LEADERLESS_ELECTIONS * loop.election_ns:
        return False
    loop.leaderless_told = True
    return True


cdef inline int leader_lost_wait_ms(loop_t *loop, int most) noexcept nogil:
    """Not to sleep beyond the moment that leader_watch waits for; `most`: -1 for ever."""
    cdef uint64_t due = loop.leaderless_ns + LEADERLESS_ELECTIONS * loop.election_ns
    cdef int left
    if loop.leaderless_told or loop.conn_count == 0:
        return most
    left = <int>((due - loop.server.now_ns) // 1000000 + 1) if due > loop.server.now_ns else 0
    return left if most < 0 or left < most else most
