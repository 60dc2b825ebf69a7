# Records and states of the load generator; everything one generator thread works on.
#
# A generator must cost far less than the server it drives, for both share the machine. Three things
# carry that: requests are memcpy (every header is in the peer's HPACK table after the first one),
# one `send` carries all requests a connection has ready, and a header block made of table references
# only is decoded once per connection.
#
# loadsys      system calls
# loadtypes    records and states
# loadstats    latencies and failures
# loadclients  the closed loop: next request, rate, whose turn it is
# loadrequest  the bytes of a request: header block, message
# loadwatch    WatchResponses: events counted, their order checked
# loadstm      transactions of several calls
# loadread     what becomes of the messages of an answer
# loadstream   streams and output of a connection
# loadh2       HTTP/2 without I/O
# loadgen      sockets, the epoll loop, and what Python sees

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from etcdfast._ext.tlsconn cimport tls_conn, tls_ctx


cdef enum:
    # 128 buckets per power of two: a bucket's middle is within 0.4% of every value in it
    HIST_BUCKETS = 7424
    # a day of per-second samples; the pages are touched only as time passes
    SECONDS_MAX = 86400
    KINDS = 4                    # sorts of latency reported apart: reads and writes, puts and events
    METHODS_MAX = 8
    ERRORS_MAX = 64              # distinct errors told apart; the rest share the last row
    ERROR_TEXT_BYTES = 240
    MEMOS = 4                    # a unary response has two header blocks; two more for errors
    STM_KEYS_MAX = 1024          # of a transaction; servers take 128 by default
    STM_KEY_BYTES = 16
    STM_LOCK_KEY_BYTES_MAX = 256
    ADDRESS_BYTES_MAX = 128      # sizeof(struct sockaddr_storage)
    BLOCK_BYTES_MAX = 4096       # one request's header block, full form
    PATH_BYTES_MAX = 512
    HEADERS_MAX = 40             # table references of one byte end at 126
    HEAD_BYTES_MAX = 32
    PUTS_KEPT_MAX = 10000000     # two times of 8 bytes each
    TIMELINE_BIN_NS = 10000000   # answers are counted by such spans of time
    TIMELINE_BINS = 360000       # an hour of them; later answers are in no bin
    ACKNOWLEDGED_MAX = 134217728 # request numbers whose answers are remembered, a bit each


cdef enum:
    # sorts of latency and templates of a watch load; other loads have 0, or 0 for reads and 1 for writes
    KIND_PUT = 0
    KIND_CREATE = 1
    KIND_EVENT_SENT = 2          # from the sending of the put to its event
    KIND_EVENT_ANSWERED = 3      # from the put's answer to its event; 0 when the event came first

cdef enum:
    CLIENT_DONE
    CLIENT_LIMITED               # waits for the rate limiter
    CLIENT_READY                 # in its connection's ready queue
    CLIENT_INFLIGHT              # waits for the answer of a request

cdef enum:
    # what becomes of the messages of an answer
    READ_NOTHING                 # only counted
    READ_WATCH                   # WatchResponses of a stream that stays open
    READ_RENEWAL                 # LeaseKeepAliveResponse: the lease must live
    READ_STM                     # answers to the steps of a transaction

cdef enum:
    STM_READ_COMMITTED
    STM_REPEATABLE_READS
    STM_SERIALIZABLE
    STM_SNAPSHOT

cdef enum:
    STM_LOCK_NONE
    STM_LOCK_CLIENT              # concurrency.Mutex
    STM_LOCK_RPC                 # v3lock

cdef enum:
    # methods of an stm load, in this order
    STM_TXN
    STM_RANGE
    STM_DELETE
    STM_WATCH
    STM_LOCK
    STM_UNLOCK

cdef enum:
    STEP_BEGIN                   # nothing done yet
    STEP_LOCK                    # v3lock's Lock
    STEP_ACQUIRE                 # put the own lock key, see who is first
    STEP_QUEUE                   # who is directly before us
    STEP_WAIT                    # until that key is deleted
    STEP_OWNED                   # does the own key still live
    STEP_FETCH
    STEP_COMMIT
    STEP_UNLOCK

cdef enum:
    FAULT_NONE = 0
    FAULT_COMPRESSED             # compressed message though we announced no encoding
    FAULT_EXPIRED                # a renewal answered with TTL 0

cdef enum:
    CONN_IDLE                    # no socket; connects at retry_ns
    CONN_CONNECTING              # or shaking hands, when it has a TLS state
    CONN_HANDSHAKE               # preface sent, peer's SETTINGS not seen
    CONN_OPEN
    CONN_DRAINING                # takes no new stream; closed when the last one ends

cdef enum:
    TABLE_EMPTY                  # next block enters the headers into the peer's table
    TABLE_FILLED
    TABLE_UNUSABLE               # the peer's table is too small for our headers
    TABLE_RESIZED                # next block must begin with size updates, then as EMPTY

cdef enum:
    # reasons a connection ends; negative so that parsers can return them
    END_EOF = -1
    END_ERRNO = -2
    END_PROTOCOL = -3
    END_COMPRESSION = -4
    END_FLOW = -5
    END_OVERLOAD = -6
    END_MEMORY = -7
    END_DRAINED = -8             # by our own wish, no stream open
    END_NOT_HTTP2 = -9
    END_MESSAGE = -10            # a message that cannot be read
    END_TLS = -11                # Conn.tls says why
    END_NO_H2 = -12              # TLS without h2

cdef enum:
    GRPC_CANCELLED = 1
    GRPC_UNKNOWN = 2
    GRPC_NOT_FOUND = 5
    GRPC_RESOURCE_EXHAUSTED = 8
    GRPC_UNIMPLEMENTED = 12
    GRPC_INTERNAL = 13
    GRPC_UNAVAILABLE = 14
    GRPC_STATUS_MISSING = -1


cdef enum:
    FRAME_DATA = 0
    FRAME_HEADERS = 1
    FRAME_RST_STREAM = 3
    FRAME_SETTINGS = 4
    FRAME_PUSH_PROMISE = 5
    FRAME_PING = 6
    FRAME_GOAWAY = 7
    FRAME_WINDOW_UPDATE = 8
    FRAME_CONTINUATION = 9

cdef enum:
    FLAG_ACK = 0x1
    FLAG_END_STREAM = 0x1
    FLAG_END_HEADERS = 0x4
    FLAG_PADDED = 0x8
    FLAG_PRIORITY = 0x20

cdef enum:
    FRAME_BYTES_MAX = 16384      # what we accept, as we send no SETTINGS_MAX_FRAME_SIZE
    INPUT_BYTES = 262144         # one read; shared by all connections
    KEPT_BYTES_MAX = 16393       # one frame that is not DATA
    BLOCK_TOTAL_BYTES_MAX = 65536
    OUT_HIGH_BYTES = 262144      # above this a connection starts no new request
    OUT_BYTES_MAX = 1048576      # a peer that does not read, but makes us answer, is cut here
    CONTENT_BYTES_MAX = 268435456  # a message that is read; etcd's largest is far below
    EVENTS_MAX = 512
    CONNECTING_MAX = 128         # below any usual listen backlog
    TIMER_EVENT = 0x7fffffff


ctypedef struct Template:
    # One gRPC message (5-byte prefix included) with holes for keys, values and a lease.
    uint8_t* message             # owned
    uint32_t message_bytes
    uint32_t keys                # holes for keys
    uint32_t values              # holes for values
    uint32_t* key_at             # owned; offset of each key's varying part
    uint32_t* value_at           # owned
    uint32_t lease_at            # offset of a lease id, a varint of 9 bytes; 0: none
    uint32_t ttl_at              # offset of a TTL of one byte; 0: none
    uint8_t lease_of_client      # the id goes with the client, else with the request's number
    uint8_t method               # index into Load.methods


ctypedef struct Method:
    uint8_t* path                # owned; ":path" and its value, each with its length before it
    uint32_t path_bytes


ctypedef struct Endpoint:
    uint8_t address[128]         # struct sockaddr of the family
    uint32_t address_bytes
    int family
    uint8_t entering[4096]       # headers other than the path, as literals that enter the peer's table
    uint32_t entering_bytes
    uint8_t plain[4096]          # the same as literals for a peer whose table is too small
    uint32_t plain_bytes
    uint32_t headers             # how many they are
    uint32_t table_bytes         # dynamic table room of these and of every path (RFC 7541 4.1)
    uint8_t secure               # TLS
    char tls_name[256]           # whom to expect; empty: anybody


ctypedef struct Watcher:
    int64_t revision             # mod_revision of its newest event
    uint32_t events
    uint8_t in_fragment          # its last response said that more of the same revision follows


ctypedef struct Stm:
    # The transaction of one client.
    uint64_t* keys               # owned: Load.stm_keys_each numbers, all different
    int64_t* revisions           # owned: mod_revision of each, as read
    uint32_t fetched             # keys read so far
    int64_t base_revision        # of the first read of this attempt
    int64_t own_revision         # create revision of the lock key
    uint8_t step                 # STEP_*
    uint8_t method               # STM_*
    uint8_t locked               # the lock key may exist
    uint8_t failed               # counted as an error already; only the lock is left to give back
    uint8_t committed            # of the step's answer: succeeded
    uint8_t waited_gone          # of the step's answer: the key before us was deleted
    uint32_t found               # of the step's answer: keys of its last range
    int64_t found_create         # of the first of them
    int64_t found_own            # create revision of the own lock key, when it was there before
    int64_t header_revision
    uint8_t lock_key[256]
    uint32_t lock_key_bytes
    uint8_t other_key[256]       # the lock key directly before ours
    uint32_t other_key_bytes
    uint8_t* request             # owned
    uint32_t request_bytes
    uint32_t request_capacity


ctypedef struct Client:
    int64_t index                # number of its request, 0-based over all processes
    int64_t start_ns             # CLOCK_MONOTONIC; latency runs from here
    int64_t slot_ns              # when the rate limiter lets it go
    int64_t send_window          # of its stream, in bytes; used only while body is set, and by held streams
    uint8_t* body                # owned; rest of a message that flow control holds back
    uint32_t body_bytes
    uint32_t body_sent
    uint32_t stream_id           # 0: none open
    uint32_t conn                # the connection it belongs to
    uint32_t message_left        # bytes missing of the response message under way
    uint32_t messages            # complete response messages
    uint32_t unacked_bytes       # received on the stream and not yet returned as window
    int32_t next                 # link in its connection's queue; -1 ends
    int16_t http_status          # 0 until response headers came
    int16_t fault                # FAULT_*: what is wrong with the response body
    uint8_t state                # CLIENT_*
    uint8_t kind                 # template it uses; of its latencies
    uint8_t reads                # READ_*
    uint8_t held                 # its stream stays open from request to request
    uint8_t prefix_bytes         # of the 5-byte gRPC prefix read so far
    uint8_t prefix[5]
    uint8_t* content             # owned; head of a message that comes in pieces
    uint32_t content_bytes
    uint32_t content_capacity
    uint32_t created             # watchers the server has confirmed
    Stm* stm                     # owned; NULL: requests come from templates
    Watcher* watchers            # of a watch stream, by watch id: Load.watchers_each rows


ctypedef struct Memo:
    uint64_t block               # up to 8 bytes of table references
    uint16_t block_bytes         # 0: unused
    int16_t http_status
    int16_t grpc_status


ctypedef struct StreamSlot:
    uint32_t stream_id           # 0: free
    int32_t client


cdef extern from "nghttp2/nghttp2.h" nogil:
    ctypedef struct nghttp2_hd_inflater:
        pass


ctypedef struct Conn:
    int fd                       # -1: none
    tls_conn* tls                # owned; NULL: plain
    int state                    # CONN_*
    uint32_t endpoint
    uint32_t next_stream_id
    uint32_t peer_streams_max
    uint32_t peer_frame_bytes_max
    uint32_t peer_table_bytes
    int64_t peer_initial_window
    int64_t send_window
    uint32_t unacked_bytes
    uint32_t active              # streams open
    uint8_t table_state          # TABLE_*
    uint32_t table_entries       # headers we entered into the peer's table
    uint32_t path_entry[8]       # by method: its number among them, from 1; 0: not entered
    uint8_t wants_write          # EPOLLOUT armed
    uint8_t dirty                # queued for a flush at the end of the turn
    int32_t ready_head           # clients that wait to send, in order of becoming ready
    int32_t ready_tail
    int32_t sending_head         # clients whose message is partly sent
    int32_t sending_tail
    uint8_t* out                 # owned; frames not yet taken by the kernel: [out_sent, out_bytes)
    uint32_t out_capacity
    uint32_t out_bytes
    uint32_t out_sent
    uint8_t* kept                # owned; head of a frame that has not arrived whole
    uint32_t kept_bytes
    uint32_t data_left           # payload bytes missing of the DATA frame under way, padding apart
    uint32_t padding_left
    int32_t data_client          # -1: stream no longer known
    uint8_t data_ends_stream
    uint8_t* block               # owned; header block spread over CONTINUATION frames
    uint32_t block_bytes
    uint32_t block_stream_id     # 0: none under way
    uint8_t block_ends_stream
    nghttp2_hd_inflater* inflater
    Memo memos[4]
    uint32_t memo_next
    StreamSlot* slots            # owned; open addressing, at most a quarter full
    uint32_t slots_mask
    int64_t since_ns             # when the state was entered
    int64_t retry_ns             # when to connect again
    int64_t backoff_ns


ctypedef struct Second:
    uint64_t count
    uint64_t sum_ns
    uint64_t min_ns
    uint64_t max_ns


ctypedef struct Histogram:
    uint64_t count
    uint64_t sum_ns
    uint64_t min_ns
    uint64_t max_ns
    double sum_squares           # of seconds
    uint64_t buckets[7424]


ctypedef struct ErrorRow:
    uint64_t count
    int32_t code                 # gRPC status code
    uint32_t text_bytes
    uint8_t text[240]


ctypedef struct Load:
    # Everything one generator thread works on; owned by its Generator.
    Client* clients
    Conn* conns
    Endpoint* endpoints
    StreamSlot* slot_store
    Template templates[4]
    Method methods[8]
    Watcher* watchers
    uint64_t* key_numbers        # owned; keys in turn are these; NULL: 0 .. key_space - 1
    int64_t* put_sent_ns         # owned; by request number, for latencies of events; NULL: not kept
    int64_t* put_done_ns         # owned; 0: not answered yet
    uint32_t* timeline           # owned; answers of load clients by time since start_ns
    uint8_t* acknowledged        # owned; bit n % 8 of byte n // 8: request n was answered well; NULL: not kept
    tls_ctx* tls                 # of the secure endpoints; NULL: there are none
    Histogram* histograms
    Second* seconds
    ErrorRow* errors
    uint8_t* input
    uint8_t* value_pool
    int32_t* limited             # ring of clients that wait for the limiter, in slot order
    int32_t* dirty               # connections to flush at the end of the turn
    int epoll_fd
    int timer_fd
    int64_t* next_index          # shared by all processes
    int64_t* stop_flag
    int64_t* done_count          # this process's row of progress; behind it watchers made, events come
    uint32_t conn_count
    uint32_t client_count        # load clients first, stream clients behind them
    uint32_t load_clients
    uint32_t watchers_each       # on a stream
    uint32_t* stream_numbers     # owned; by stream client: its number over all processes
    uint32_t load_kinds          # templates of the load clients: 1, or 2 for reads and writes
    uint32_t key_number_count
    uint32_t endpoint_count
    uint32_t template_count
    uint32_t error_count
    uint32_t limited_head
    uint32_t limited_count
    uint32_t dirty_count
    uint32_t connecting
    uint32_t idle
    uint32_t open_conns
    uint32_t running             # clients that have not finished
    bint started
    bint streams_started
    bint aborted                 # no connection for dial_timeout
    int stm_isolation            # STM_READ_COMMITTED ..
    int stm_lock                 # STM_LOCK_*
    uint64_t stm_keys            # different keys in all
    uint32_t stm_keys_each       # of a transaction
    uint32_t stm_writes          # how many of them it writes
    bint holding                 # poll its whole slice, whoever runs
    bint streaming
    bint sequential
    bint stamped                 # values begin with the time their put was sent
    bint latency_by_number       # the n-th event of a watcher is of request n
    uint32_t stream_ids_max      # a connection is replaced beyond this stream id
    uint32_t key_bytes
    uint32_t value_bytes
    uint64_t key_space
    uint64_t seed
    uint64_t read_share          # of 2**32; template 0 below it, template 1 from it
    int64_t total
    int64_t interval_ns
    int64_t last_slot_ns
    int64_t timer_armed_ns
    int64_t dial_timeout_ns
    int64_t down_since_ns
    int64_t unix_offset_ns
    int64_t start_unix_second
    int64_t since_ns             # when the first client of any sort began
    int64_t start_ns             # when the load clients did
    int64_t end_ns               # last response
    int64_t response_bytes
    int64_t reconnects
    int64_t lease_base           # lease ids are this and a number: 2**56 and above, 9 bytes as a varint
    int64_t ttl_end_ns           # when leases that expire together do
    int64_t watchers_made
    int64_t watch_events
    int64_t watch_responses
    int64_t watch_bytes          # of their messages
    int64_t watch_made_ns        # last watcher
    int64_t watch_start_ns       # first event; 0: none came
    int64_t watch_end_ns         # last event
    int64_t streams_lost
    uint8_t head[32]             # ResponseHeader up to the revision, as the last answer had it
    uint32_t head_bytes          # 0: none seen
    char last_error[200]         # why a connection ended last


cdef extern from *:
    int __builtin_clzll(unsigned long long) nogil


cdef inline uint32_t bucket_of(uint64_t value) noexcept nogil:
    """Bucket of a value: exact below 256, then the top 8 bits and their position."""
    cdef uint32_t shift
    if value < 256:
        return <uint32_t>value
    shift = 56 - <uint32_t>__builtin_clzll(value)
    return (shift << 7) + <uint32_t>(value >> shift)


cdef inline uint64_t mix64(uint64_t x) noexcept nogil:
    """Random number of position x (the output function of splitmix64)."""
    x += <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint32_t load_be32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline void store_be32(uint8_t* p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 24)
    p[1] = <uint8_t>(v >> 16)
    p[2] = <uint8_t>(v >> 8)
    p[3] = <uint8_t>v


cdef inline void store_frame_head(uint8_t* p, uint32_t length, uint8_t kind, uint8_t flags,
                                  uint32_t stream_id) noexcept nogil:
    """The 9 bytes before a frame's payload (RFC 9113 4.1)."""
    p[0] = <uint8_t>(length >> 16)
    p[1] = <uint8_t>(length >> 8)
    p[2] = <uint8_t>length
    p[3] = kind
    p[4] = flags
    store_be32(p + 5, stream_id)
