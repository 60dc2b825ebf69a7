"""Connections of a frontend: sockets and what they hold, in turns of the loop in frontloop.pyx.

Sockets are edge-triggered and registered once; what may hold bytes stands in the ready list. The transport is in
fronttls.pxd (recv and send, plain or TLS).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from etcdfast._ext.h2types cimport h2_conn, h2_counters, h2_server, h2_stream
from etcdfast._ext.ring cimport ring_view
from etcdfast._ext.spin cimport spin_t
from etcdfast._ext.streamtimers cimport timers_t
from etcdfast._ext.tokenpage cimport token_view
from etcdfast._ext.tlsconn cimport tls_conn, tls_ctx

cdef enum:
    READ_BYTES = 65536
    EVENTS_MAX = 256
    ACCEPTS_PER_TURN = 64
    CREDIT_STEP_BYTES = 32768      # CREDIT is given in steps of this, or when all is sent
    CREDIT_COUNTED_BYTES = 4096    # for streams that never end
    CLOSING_BYTES_MAX = 67108864   # kept for peers that do not read on to their GOAWAY, all together
    LINGER_BYTES_MAX = 1048576     # read and thrown away after GOAWAY, so that close() does not reset it away
    # While a ring is full, a connection is read on until it has a request that waits; these bound all of them
    # together. Beyond, nothing is read: a wall of clients behind a stalled disk costs no more memory. The
    # share keeps what waits from ever ending a connection for the budget.
    LATE_BYTES_MAX = 67108864
    LATE_SHARE_OF_BUDGET = 4
    LATE_COST_BYTES = 1024         # of a waiting request besides its bytes: stream, session, allocators
    CANCELS_MAX = 65536            # 16 bytes each
    RPCS_MAX = 64
    ERRORS_MAX = 256

# epoll data: connections are generation << 32 | slot with the top bit clear, the rest are these.
cdef enum:
    TAG_LISTEN_BIT = 32
    TAG_BIT = 63

cdef enum:
    CONN_SNIFF = 0     # waits for the bytes that tell HTTP/2 from HTTP/1.1
    CONN_HTTP2 = 1
    CONN_CLOSING = 2   # GOAWAY is written, then it lingers
    CONN_LINGER = 3    # our side is shut, the rest is read and dropped
    CONN_HANDSHAKE = 5 # of TLS; CONN_SNIFF follows
    CONN_HTTP1 = 4     # bytes go to Python and come from there: fronthttp.pxd

# What a listener serves.
cdef enum:
    ROLE_CLIENT = 0    # gRPC and HTTP
    ROLE_GRPC = 1
    ROLE_HTTP = 2      # no gRPC
    ROLE_METRICS = 3   # no gRPC, and Python answers only some paths


ctypedef struct conn_t:
    loop_t *loop
    h2_conn *h2
    int fd
    uint32_t slot
    uint32_t generation
    int state
    bint used
    bint readable          # may hold bytes to read
    bint peer_done         # the peer has shut its side or failed: read on until that shows
    bint blocked           # the socket took less than was written
    bint in_ready
    uint32_t late_count    # its requests that wait for room in a ring; meanwhile it is not read
    conn_t *ready_next
    conn_t *free_next
    uint8_t *pending       # bytes the socket did not take; owned
    uint32_t pending_size
    uint32_t pending_sent
    uint8_t sniffed[4]
    uint32_t sniffed_size
    uint64_t opened_ns
    uint64_t read_ns       # last time bytes came
    uint64_t ping_ns       # keepalive ping under way since, 0 none
    uint64_t linger_until_ns
    uint32_t lingered_bytes
    # of TLS
    tls_conn *tls          # NULL: plain; owned
    uint32_t tls_held      # encrypted bytes that the socket did not take, as counted in the budget
    bint shaking           # in the list of handshakes
    conn_t *shake_next
    conn_t *shake_prev
    bint has_cert          # the client showed a certificate, and it was verified
    char *cert_name        # its CN, NULL when it has none; owned, ended by a NUL
    uint32_t cert_name_size
    uint32_t listener      # index of the listener it came by
    # of HTTP/1.1
    uint8_t *arrived       # bytes for Python; owned
    uint32_t arrived_size
    uint32_t arrived_room
    bint arrived_told      # and nothing more is read until Python took them
    bint read_off          # Python wants no more for now


ctypedef struct told_t:
    uint32_t slot          # of a connection that has news for Python
    uint32_t generation
    uint32_t stream
    uint32_t kind          # TOLD_* of fronthttp.pxd


ctypedef struct late_t:
    h2_stream *head        # requests that wait for room in a ring
    h2_stream *tail


ctypedef struct cancel_t:
    uint32_t slot          # of a call whose CANCEL found no room in the ring
    uint32_t generation
    uint32_t stream
    uint8_t method


ctypedef struct loop_t:
    h2_server server
    h2_counters counters
    int epoll_fd
    int spare_fd
    uint8_t index
    ring_view *out[2]      # RING_CONSENSUS, RING_APPLY
    ring_view *af
    void *consensus_page
    void *apply_page
    int *listeners
    uint32_t listener_count
    bint listening
    tls_ctx *tls           # NULL when no listener is of TLS
    bint *listener_tls     # by listener
    bint *listener_on      # in epoll
    conn_t *shake_head     # handshakes under way, the oldest first
    conn_t *shake_tail
    uint32_t shaking_count
    uint32_t shaking_max
    uint64_t handshake_ns  # most that a handshake may take
    uint64_t shaken        # handshakes done
    uint64_t tls_rejected  # handshakes that failed, and those told of
    uint64_t tls_told
    bint tell_rejected
    char rejected_why[200] # the latest
    uint8_t rejected_from[128]     # its sockaddr
    unsigned int rejected_from_size
    conn_t **conns         # by slot
    uint32_t conn_room
    uint32_t conn_count
    uint32_t conns_max
    conn_t *free_conns
    conn_t *ready_head
    conn_t *ready_tail
    late_t late[2]
    uint32_t late_count
    uint64_t late_bytes
    uint64_t late_bytes_max
    uint64_t closing_bytes # pending of connections whose HTTP/2 part is gone
    cancel_t *cancels      # owed to apply
    uint32_t cancel_count
    uint32_t cancel_room
    uint8_t *buf           # READ_BYTES
    token_view *tokens         # of auth, NULL: none is valid
    bint cert_names            # the CN of a verified client certificate is a user's name
    uint64_t identity_methods  # bit of each RPC_* id that etcd refuses at once, with auth on, to whoever has no name
    uint32_t token_serial      # of the last question after a token
    uint32_t post_need         # bytes of the record that found no room
    uint8_t route[RPCS_MAX]
    uint64_t stream_methods    # bit of each RPC_* id that is no unary call
    uint64_t lasting_methods   # that may wait for ever: ended when a drain begins
    uint8_t error_code[ERRORS_MAX]
    const char *error_text[ERRORS_MAX]
    uint32_t error_size[ERRORS_MAX]
    uint32_t errors
    uint32_t txn_ops_max
    uint64_t quota_bytes
    uint64_t request_timeout_ns
    uint64_t election_ns       # the election timeout
    uint64_t leaderless_ns     # since when there has been no leader, 0 there is one
    bint leaderless_told       # and the streams that require one have been ended
    uint64_t keepalive_idle_ns
    uint64_t keepalive_timeout_ns
    uint64_t header_ns
    uint64_t drain_ns
    spin_t spin
    timers_t timers
    uint64_t sweep_ns
    uint64_t alarm_ns
    uint64_t drain_since_ns
    int drain_step
    bint answers_wait      # records from apply are left for the next turn
    told_t *told
    uint32_t told_count
    uint32_t told_room
    bint python_due        # a second has passed, or somebody knocked
    uint8_t *roles         # by listener
    bint woken
    bint life_gone
    uint64_t turns
    uint64_t reads
    uint64_t writes
    uint64_t accepted
    uint64_t refused_connections
    uint64_t ring_full


# Accept what waits on a listener, within the limits.
cdef void conn_accept(loop_t *loop, uint32_t listener) noexcept nogil
# Take the listeners into epoll or out of it.
cdef void conn_listen(loop_t *loop, bint on) noexcept nogil
# What epoll said about the connection.
cdef void conn_event(loop_t *loop, conn_t *conn, uint32_t events) noexcept nogil
# Whether nothing may be read, from anybody.
cdef bint conn_paused(loop_t *loop) noexcept nogil
# Each ready connection once, one read; those with a request that waits for room in a ring stand back.
cdef void conn_read_ready(loop_t *loop) noexcept nogil
# A connection has no request left that waits.
cdef void conn_resume(loop_t *loop, conn_t *conn) noexcept nogil
# One write for each connection that has something to say.
cdef void conn_flush_dirty(loop_t *loop) noexcept nogil
# Deadlines of connections: preface, headers, keepalive, lingering. Once a second.
cdef void conn_sweep(loop_t *loop) noexcept nogil
# While too much is held, end the heaviest connections. Whether any was ended.
cdef bint conn_shed(loop_t *loop) noexcept nogil
# One step of the graceful end.
cdef void conn_drain(loop_t *loop) noexcept nogil
# Bytes of Python's; what the socket does not take is kept. The connection may be gone afterwards.
cdef void conn_say(loop_t *loop, conn_t *conn, const uint8_t *data, uint32_t size) noexcept nogil
# Close when all is written.
cdef void conn_finish(loop_t *loop, conn_t *conn) noexcept nogil
# Close now.
cdef void conn_drop(loop_t *loop, conn_t *conn) noexcept nogil
# Python has taken what arrived, or wants to be read again.
cdef void conn_read_on(loop_t *loop, conn_t *conn) noexcept nogil
# At the end of the process: close everything.
cdef void conn_free_all(loop_t *loop) noexcept nogil
