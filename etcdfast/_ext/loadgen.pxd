# Closed-loop gRPC load over plaintext HTTP/2: the records of one generator thread.
#
# A generator must cost far less than the server it drives, for both share the machine. Three things
# carry that: requests are memcpy (every header is in the peer's HPACK table after the first one),
# one `send` carries all requests a connection has ready, and a header block made of table references
# only is decoded once per connection.

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "nghttp2/nghttp2.h" nogil:
    ctypedef struct nghttp2_hd_inflater:
        pass
    ctypedef struct nghttp2_nv:
        uint8_t* name
        uint8_t* value
        size_t namelen
        size_t valuelen
    int nghttp2_hd_inflate_new(nghttp2_hd_inflater** inflater_ptr)
    void nghttp2_hd_inflate_del(nghttp2_hd_inflater* inflater)
    ssize_t nghttp2_hd_inflate_hd2(nghttp2_hd_inflater* inflater, nghttp2_nv* nv_out, int* flags,
                                   const uint8_t* data, size_t length, int final)
    int nghttp2_hd_inflate_end_headers(nghttp2_hd_inflater* inflater)
    enum:
        NGHTTP2_HD_INFLATE_FINAL
        NGHTTP2_HD_INFLATE_EMIT


cdef enum:
    # 128 buckets per power of two: a bucket's middle is within 0.4% of every value in it
    HIST_BUCKETS = 7424
    # a day of per-second samples; the pages are touched only as time passes
    SECONDS_MAX = 86400
    KINDS = 2                    # txn-mixed reports reads and writes apart
    ERRORS_MAX = 64              # distinct errors told apart; the rest share the last row
    ERROR_TEXT_BYTES = 240
    MEMOS = 4                    # a unary response has two header blocks; two more for errors
    ADDRESS_BYTES_MAX = 128      # sizeof(struct sockaddr_storage)
    BLOCK_BYTES_MAX = 4096       # one request's header block, full form


ctypedef struct Template:
    # One gRPC message (5-byte prefix included) with holes for keys and values.
    uint8_t* message             # owned
    uint32_t message_bytes
    uint32_t puts                # holes of each sort
    uint32_t* key_at             # owned; offset of each key's varying part
    uint32_t* value_at           # owned


ctypedef struct Endpoint:
    uint8_t address[128]         # struct sockaddr of the family
    uint32_t address_bytes
    int family
    uint8_t first_block[4096]    # literals that enter the peer's dynamic table
    uint32_t first_block_bytes
    uint8_t next_block[64]       # the same headers as table references only
    uint32_t next_block_bytes
    uint8_t plain_block[4096]    # literals for a peer whose table is too small
    uint32_t plain_block_bytes
    uint32_t table_bytes         # dynamic table room that first_block takes (RFC 7541 4.1)


ctypedef struct Client:
    int64_t index                # number of its request, 0-based over all processes
    int64_t start_ns             # CLOCK_MONOTONIC; latency runs from here
    int64_t slot_ns              # when the rate limiter lets it go
    int64_t send_window          # of its stream, in bytes; used only while body is set
    uint8_t* body                # owned; rest of a message that flow control holds back
    uint32_t body_bytes
    uint32_t body_sent
    uint32_t stream_id
    uint32_t message_left        # bytes missing of the response message under way
    uint32_t messages            # complete response messages
    uint32_t unacked_bytes       # received on the stream and not yet returned as window
    int32_t next                 # link in its connection's queue; -1 ends
    int16_t http_status          # 0 until response headers came
    int16_t fault                # FAULT_*: what is wrong with the response body
    uint8_t state                # CLIENT_*
    uint8_t kind                 # template it uses, 0 or 1
    uint8_t prefix_bytes         # of the 5-byte gRPC prefix read so far
    uint8_t prefix[5]


ctypedef struct Memo:
    uint64_t block               # up to 8 bytes of table references
    uint16_t block_bytes         # 0: unused
    int16_t http_status
    int16_t grpc_status


ctypedef struct StreamSlot:
    uint32_t stream_id           # 0: free
    int32_t client


ctypedef struct Conn:
    int fd                       # -1: none
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


cdef extern from *:
    int __builtin_clzll(unsigned long long) nogil
