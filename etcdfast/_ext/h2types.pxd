"""What HTTP/2 connections and streams hold. h2stream.pxd and http2.pxd have the functions."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from etcdfast._ext.blockpool cimport block_pool
from etcdfast._ext.h2guard cimport h2_guard
from etcdfast._ext.nghttp2 cimport (
    nghttp2_data_provider, nghttp2_mem, nghttp2_nv, nghttp2_option, nghttp2_session, nghttp2_session_callbacks,
)

# Limits against abuse. Each closes the connection that breaks it. Requests: an honest client may begin a
# thousand large ones at once, and each may fill its initial window before its turn for a grant comes.
cdef enum:
    H2_REQUEST_BUFFER_MAX = 67108864  # bytes of unfinished requests of one connection
    H2_ANSWER_BUFFER_MAX = 67108864   # bytes of answers that one connection does not take
    H2_GRANT_BYTES_MAX = 8388608      # stream windows opened beyond the initial one, per connection
    H2_STREAM_WINDOW = 65535          # initial, as RFC 9113; larger messages get a grant for their length
    H2_CONNECTION_WINDOW = 1048576
    H2_PING_STRIKES_MAX = 2           # as grpc-go
    H2_PING_IDLE_SECONDS = 7200       # between pings of a connection without streams, as grpc-go
    H2_STREAM_COST_BYTES = 1024       # of an open stream besides its bytes: ours and nghttp2's
    H2_WEIGHTS = 53                   # size classes of h2budget.pxd: 64 bits without the lowest 12, and none
    H2_OUT_BYTES = 262144             # pulled per connection and turn
    H2_OUT_SLACK_BYTES = 73728        # one frame or one header block beyond it
    # A bidi stream gets window back in steps, and none while this much of its answers is not sent: a client that
    # sends and never reads has one window of requests under way.
    H2_WINDOW_STEP = 16384
    H2_UNSENT_BYTES_MAX = 65536
    H2_EARLY_BYTES = 336              # what is kept of pseudo headers before :path is known

cdef enum:
    STREAM_REQUEST_ENDED = 1   # the client's END_STREAM came
    STREAM_OPENED = 2          # headers are complete and in order
    STREAM_DISPATCHED = 4      # a ring holds its request
    STREAM_ANSWERED = 8        # its status is decided; later records are dropped
    STREAM_STARTED = 16        # response headers are submitted
    STREAM_DEFERRED = 32       # nghttp2 waits for more data
    STREAM_NO_LEADER_OK = 64   # unset by metadata hasleader: true
    STREAM_CREDITED = 128      # sent bytes go back to apply as CREDIT
    STREAM_LATE = 256          # waits for room in a ring
    STREAM_GRANT_WAITS = 512
    STREAM_CANCELLABLE = 1024  # apply may hold a cursor for it
    STREAM_HEALTH_WATCH = 2048
    STREAM_BIDI = 4096         # many requests, in order; each a CALL of its own
    STREAM_COUNTED = 8192      # CREDIT counts every byte of DATA, gRPC prefixes too (Watch)
    STREAM_HALF_OWED = 16384   # the client's END_STREAM came, HALF waits behind its messages
    STREAM_NEW_ID = 32768      # LeaseGrant without an id
    STREAM_READS = 65536       # waits for a linearizable read, not for the log
    STREAM_CALL = 131072       # a call that Python made for an HTTP request: its answers go there, see fronthttp.pxd
    STREAM_PLAIN = 262144      # an HTTP/2 request that is not gRPC: Python's
    STREAM_PLAIN_HEAD = 524288 # its headers are complete and not taken by Python yet
    STREAM_PARKED = 536870912  # waits to learn whose its token is: frontauth.pxd


# How the memory of a chunk's data is kept.
cdef enum:
    CHUNK_OWNED = 0            # data is malloc's, or NULL
    CHUNK_BORROWED = 1         # data lies in the ring, only until h2_settle
    CHUNK_PEN_SMALL = 2        # data follows the chunk in a block of PEN_SMALL_BYTES
    CHUNK_PEN_LARGE = 3        # of PEN_LARGE_BYTES

# Blocks of the pens (h2pen.pxd), chunk included, and of chunks alone. Spare ones are kept up to a bound.
cdef enum:
    PEN_SMALL_BYTES = 4096
    PEN_LARGE_BYTES = 16384
    PEN_SPARE_BYTES_MAX = 8388608
    CHUNK_HEAD_BYTES = 64      # gRPC prefix, ResponseHeader (46 at most) and watch id (11 at most)


ctypedef struct h2_chunk:
    h2_chunk *next
    const uint8_t *data
    uint32_t size
    uint32_t sent
    uint8_t kind               # CHUNK_*
    uint8_t head_size          # bytes of head that go before data
    uint8_t head_sent
    uint8_t head[CHUNK_HEAD_BYTES]


ctypedef struct h2_stream:
    # What a watch event for the stream touches comes first: one cache line.
    h2_conn *conn
    int32_t id
    uint32_t flags             # STREAM_*
    uint8_t *pen               # where the next message goes, in the block at out_tail; NULL when none is open
    uint8_t *pen_end
    uint64_t out_bytes
    h2_chunk *out_tail
    uint32_t begun_left        # bytes of the message begun that are still to come
    uint8_t method             # RPC_* id
    uint8_t encoding_refused
    uint16_t http_status       # 0, or why the headers are refused
    uint8_t bad_timeout
    uint8_t version            # row of the client's version in the figures
    uint8_t seen               # pseudo headers, content type, token: SEEN_* of http2.pyx
    void *token                # h2_token that it came with, NULL for none; counted there
    uint64_t timeout_ns        # 0 none; what has passed already is 1
    char *note                 # path, content type, method or encoding for an error text; owned
    uint32_t note_size
    # request being gathered: prefix and message
    const uint8_t *loan        # whole request inside the bytes being fed
    uint32_t loan_size
    uint8_t *buf               # owned
    uint32_t have
    uint32_t room
    uint32_t grant             # window opened beyond the initial one
    h2_stream *grant_next
    # of a bidi stream: buf holds whole messages that wait for room in a ring, then the beginning of one
    uint32_t taken             # bytes of buf whose messages are in the ring
    uint32_t whole             # bytes of buf that are whole messages, taken ones included
    uint32_t window_used       # received since the window was looked at
    # answer
    bint first_used
    h2_chunk *out_head
    bint out_ended
    uint8_t code               # gRPC status
    char *text                 # percent encoded grpc-message, owned; or NULL
    uint32_t text_size
    uint32_t text_held         # counted for note and text
    h2_stream *borrow_next     # in server.borrowers
    h2_stream **borrow_link    # what points to it there; NULL when it is not in
    uint32_t sent_bytes        # sent since the last CREDIT
    h2_stream *sent_next       # in server.sent
    h2_stream **sent_link      # what points to it there; NULL when it is not in
    h2_stream *told_next       # in server.told
    h2_stream **told_link      # what points to it there; NULL when it is not in
    uint64_t opened_ns         # now_ns when its headers began
    # the owner's
    uint64_t deadline_ns       # the timer's
    uint64_t client_deadline_ns  # 0 none
    h2_stream *timer_next
    h2_stream *timer_prev
    int32_t timer_slot         # -1 none
    bint deadline_is_clients
    h2_stream *late_next
    h2_stream *late_prev
    uint32_t late_bytes        # counted for it while it waits
    uint8_t late_ring
    uint8_t late_kind
    h2_stream *list_next       # all streams of the connection, or the free list
    h2_stream *list_prev
    h2_chunk first             # saves an allocation for the usual single chunk; last, as it needs no zeros


ctypedef struct h2_conn:
    h2_server *server
    nghttp2_session *session   # NULL: an HTTP/1.1 connection, whose streams are calls
    bint serves_plain          # requests that are not gRPC go to Python
    bint grpc_off              # and no gRPC is served: the listener is for HTTP alone
    uint8_t early[H2_EARLY_BYTES]  # pseudo headers of the open block that came before :path
    uint32_t early_size
    h2_guard guard
    h2_stream *streams
    uint32_t stream_count
    h2_stream **bidi           # its bidi streams by id, see bidimap.pxd; owned
    uint32_t bidi_mask
    uint32_t bidi_count
    h2_stream *open            # whose header block is being read
    h2_stream *loaner          # whose request is on loan
    uint32_t header_bytes      # of the open block
    uint64_t request_bytes     # gathered and not passed on
    uint64_t answer_bytes      # owned chunks not sent
    uint64_t held_bytes        # all that the connection makes the process keep: see h2budget.pxd
    uint32_t weight            # size class of it, 0 in no list
    h2_conn *weight_next
    h2_conn *weight_prev
    uint64_t grants
    h2_stream *grant_head
    h2_stream *grant_tail
    uint32_t fatal             # HTTP/2 error code + 1 that ends the connection; 0 none
    const char *fatal_text
    bint broken                # nghttp2 failed within: it may only be deleted, another call can end the process
    int32_t last_stream
    uint32_t ping_strikes
    bint ping_reset            # data or headers went out since the last ping
    uint64_t last_ping_ns
    bint going_away
    bint dirty
    h2_conn *dirty_next
    void *token                # h2_token of its latest call that had one
    uint32_t asked_count
    void *asked                # h2_tokens that apply is asked about
    void *owner


ctypedef void (*h2_event)(h2_conn *, h2_stream *) noexcept nogil
ctypedef void (*h2_call)(h2_conn *, h2_stream *, const uint8_t *, uint32_t) noexcept nogil
ctypedef bint (*h2_take)(h2_conn *, h2_stream *, const uint8_t *, uint32_t) noexcept nogil


ctypedef struct h2_route:
    const char *path           # owned by whoever made the server
    uint32_t size
    uint8_t method             # RPC_* id; 0 = a service name
    bint served


ctypedef struct h2_counters:
    uint64_t started[64]           # by RPC id
    uint64_t handled[64][17]       # by RPC id and gRPC code
    uint64_t received[64]          # messages, by RPC id
    uint64_t sent[64]
    uint64_t received_bytes
    uint64_t sent_bytes
    uint64_t unknown_calls
    uint64_t goaways[16]           # by HTTP/2 error code
    uint64_t request_buffer_bytes  # now, all connections
    uint64_t answer_buffer_bytes   # now, all connections
    uint64_t answer_buffer_peak


ctypedef struct h2_server:
    nghttp2_session_callbacks *callbacks
    nghttp2_option *option
    nghttp2_mem mem
    block_pool pool            # behind mem
    h2_stream *free_streams
    h2_chunk *spare[3]         # free blocks: chunks alone, small and large pens
    uint64_t spare_bytes
    h2_route *routes           # open addressing, routes_mask + 1 entries
    uint32_t routes_mask
    uint64_t bidi_methods      # bit of each RPC_* id
    uint64_t counted_methods
    uint32_t bidi_factor       # of the hash of stream ids: odd, not known outside
    uint32_t message_bytes_max
    uint32_t streams_max
    uint64_t ping_min_ns
    uint64_t now_ns
    uint8_t *out               # bytes pulled for the connection being written
    uint32_t out_size
    uint64_t held_bytes        # by all connections
    uint64_t budget_bytes      # above it the heaviest connection goes; above 3/4 no large window is opened
    h2_conn *heavy[H2_WEIGHTS]
    uint64_t heavy_bits        # lists that hold any
    h2_conn *dirty             # connections with something to write
    h2_stream *borrowers       # streams whose answer lies in the ring
    h2_stream *sent            # streams that owe CREDIT
    h2_stream *told            # streams that have something for Python
    h2_stream **told_end       # where the next one is linked
    h2_event on_open           # headers are in order
    h2_call on_call            # the whole request is there
    h2_take on_message         # a message of a bidi stream; False: kept until h2_taken
    h2_event on_half           # a bidi stream's client has sent its last message
    h2_event on_refused        # a bidi stream was answered here while the owner may work for it
    h2_event on_gone           # last use of the stream
    h2_event on_plain_gone     # an HTTP/2 request of Python's ended early
    void *owner
    h2_counters *counters


cdef inline void borrowers_add(h2_stream *s) noexcept nogil:
    cdef h2_server *server = s.conn.server
    if s.borrow_link != NULL:
        return
    s.borrow_next = server.borrowers
    if s.borrow_next != NULL:
        s.borrow_next.borrow_link = &s.borrow_next
    s.borrow_link = &server.borrowers
    server.borrowers = s


cdef inline void borrowers_remove(h2_stream *s) noexcept nogil:
    if s.borrow_link == NULL:
        return
    s.borrow_link[0] = s.borrow_next
    if s.borrow_next != NULL:
        s.borrow_next.borrow_link = s.borrow_link
    s.borrow_link = NULL


cdef inline void sent_add(h2_stream *s) noexcept nogil:
    cdef h2_server *server = s.conn.server
    if s.sent_link != NULL:
        return
    s.sent_next = server.sent
    if s.sent_next != NULL:
        s.sent_next.sent_link = &s.sent_next
    s.sent_link = &server.sent
    server.sent = s


cdef inline void sent_remove(h2_stream *s) noexcept nogil:
    if s.sent_link == NULL:
        return
    s.sent_link[0] = s.sent_next
    if s.sent_next != NULL:
        s.sent_next.sent_link = s.sent_link
    s.sent_link = NULL


cdef inline void told_add(h2_stream *s) noexcept nogil:
    """The stream has something for Python; first come, first served."""
    cdef h2_server *server = s.conn.server
    if s.told_link != NULL:
        return
    if server.told == NULL:
        server.told_end = &server.told
    s.told_next = NULL
    s.told_link = server.told_end
    server.told_end[0] = s
    server.told_end = &s.told_next


cdef inline void told_remove(h2_stream *s) noexcept nogil:
    if s.told_link == NULL:
        return
    s.told_link[0] = s.told_next
    if s.told_next != NULL:
        s.told_next.told_link = s.told_link
    else:
        s.conn.server.told_end = s.told_link
    s.told_link = NULL


cdef inline void mark_dirty(h2_conn *conn) noexcept nogil:
    """The connection has something to write."""
    if not conn.dirty:
        conn.dirty = True
        conn.dirty_next = conn.server.dirty
        conn.server.dirty = conn


cdef inline void set_fatal(h2_conn *conn, uint32_t code, const char *text) noexcept nogil:
    """The connection must end with GOAWAY `code`; the first reason stays."""
    if conn.fatal == 0:
        conn.fatal = code + 1
        conn.fatal_text = text
        mark_dirty(conn)
