"""Load generator: one thread, one epoll, an own HTTP/2 client that does just what a load needs.

A `Generator` owns its connections and clients. Python calls `poll()` in slices; within a slice the
interpreter lock is released and nothing of Python is touched. Several generators (one a process)
share a page: the next request number, so that together they issue exactly `total` requests, a stop
flag, and a row of progress each.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, ETIMEDOUT, errno
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset, strlen


cdef extern from "<string.h>" nogil:
    char* strerror_r(int errnum, char* buf, size_t buflen)


cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* ts)
    enum:
        CLOCK_MONOTONIC
        CLOCK_REALTIME


cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void* buf, size_t count)


cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    int socket(int domain, int kind, int protocol)
    int connect(int fd, const sockaddr* address, unsigned int length)
    int setsockopt(int fd, int level, int name, const void* value, unsigned int length)
    int getsockopt(int fd, int level, int name, void* value, unsigned int* length)
    ssize_t send(int fd, const void* buf, size_t count, int flags)
    ssize_t recv(int fd, void* buf, size_t count, int flags)
    enum:
        AF_UNIX
        SOCK_STREAM
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        SOL_SOCKET
        SO_ERROR
        MSG_NOSIGNAL


cdef extern from "<netinet/in.h>" nogil:
    enum:
        IPPROTO_TCP


cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_NODELAY


cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int maxevents, int timeout_ms)
    enum:
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLL_CLOEXEC


cdef extern from "<sys/timerfd.h>" nogil:
    struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* new_value, itimerspec* old_value)
    enum:
        TFD_NONBLOCK
        TFD_CLOEXEC
        TFD_TIMER_ABSTIME


cdef extern from *:
    int64_t __atomic_fetch_add(int64_t* target, int64_t value, int order) nogil
    int64_t __atomic_load_n(int64_t* target, int order) nogil
    enum:
        __ATOMIC_RELAXED


cdef enum:
    CLIENT_DONE
    CLIENT_LIMITED               # waits for the rate limiter
    CLIENT_READY                 # in its connection's ready queue
    CLIENT_INFLIGHT              # has a stream

cdef enum:
    CONN_IDLE                    # no socket; connects at retry_ns
    CONN_CONNECTING
    CONN_HANDSHAKE               # preface sent, peer's SETTINGS not seen
    CONN_OPEN
    CONN_DRAINING                # takes no new stream; closed when the last one ends

cdef enum:
    TABLE_EMPTY                  # next block enters the headers into the peer's table
    TABLE_FILLED
    TABLE_UNUSABLE               # the peer's table is too small for our headers
    TABLE_RESIZED                # next block must begin with size updates, then as EMPTY

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

cdef enum:
    FAULT_NONE = 0
    FAULT_COMPRESSED             # compressed message though we announced no encoding

cdef enum:
    GRPC_CANCELLED = 1
    GRPC_UNKNOWN = 2
    GRPC_RESOURCE_EXHAUSTED = 8
    GRPC_UNIMPLEMENTED = 12
    GRPC_INTERNAL = 13
    GRPC_UNAVAILABLE = 14
    GRPC_STATUS_MISSING = -1

cdef enum:
    FRAME_BYTES_MAX = 16384      # what we accept, as we send no SETTINGS_MAX_FRAME_SIZE
    INPUT_BYTES = 262144         # one read; shared by all connections
    KEPT_BYTES_MAX = 16393       # one frame that is not DATA
    BLOCK_TOTAL_BYTES_MAX = 65536
    OUT_HIGH_BYTES = 262144      # above this a connection starts no new request
    OUT_BYTES_MAX = 1048576      # a peer that does not read, but makes us answer, is cut here
    EVENTS_MAX = 512
    CONNECTING_MAX = 128         # below any usual listen backlog
    TIMER_EVENT = 0x7fffffff

cdef int64_t SECOND_NS = 1000000000
cdef int64_t WINDOW_MAX = 0x7fffffff
# return window in large steps: one frame per half GiB received
cdef uint32_t WINDOW_STEP = 0x20000000

cdef uint8_t PREFACE[64]
cdef uint32_t PREFACE_BYTES = 0


cdef void build_preface() noexcept:
    """Connection preface, SETTINGS (no push, largest stream window), window of the connection."""
    global PREFACE_BYTES
    cdef uint8_t* p = PREFACE
    memcpy(p, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24)
    store_frame_head(p + 24, 12, FRAME_SETTINGS, 0, 0)
    p[33] = 0
    p[34] = 2
    store_be32(p + 35, 0)
    p[39] = 0
    p[40] = 4
    store_be32(p + 41, <uint32_t>WINDOW_MAX)
    store_frame_head(p + 45, 4, FRAME_WINDOW_UPDATE, 0, 0)
    store_be32(p + 54, <uint32_t>(WINDOW_MAX - 65535))
    PREFACE_BYTES = 58


build_preface()


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return <int64_t>ts.tv_sec * SECOND_NS + ts.tv_nsec


@cython.final
cdef class Generator:
    cdef Client* clients
    cdef Conn* conns
    cdef Endpoint* endpoints
    cdef StreamSlot* slot_store
    cdef Template templates[2]
    cdef Histogram* histograms
    cdef Second* seconds
    cdef ErrorRow* errors
    cdef uint8_t* input
    cdef uint8_t* value_pool
    cdef int32_t* limited           # ring of clients that wait for the limiter, in slot order
    cdef int32_t* dirty             # connections to flush at the end of the turn
    cdef int epoll_fd
    cdef int timer_fd
    cdef Py_buffer shared
    cdef bint shared_held
    cdef int64_t* next_index        # shared by all processes
    cdef int64_t* stop_flag
    cdef int64_t* done_count        # this process's row of progress
    cdef readonly uint32_t conn_count
    cdef readonly uint32_t client_count
    cdef uint32_t endpoint_count
    cdef uint32_t template_count
    cdef uint32_t error_count
    cdef uint32_t limited_head
    cdef uint32_t limited_count
    cdef uint32_t dirty_count
    cdef uint32_t connecting
    cdef uint32_t idle
    cdef readonly uint32_t open_conns
    cdef readonly uint32_t running      # clients that have not finished
    cdef readonly bint started
    cdef readonly bint aborted          # no connection for dial_timeout
    cdef bint streaming
    cdef bint sequential
    cdef uint32_t stream_ids_max        # a connection is replaced beyond this stream id
    cdef uint32_t key_bytes
    cdef uint32_t value_bytes
    cdef uint64_t key_space
    cdef uint64_t seed
    cdef uint64_t read_share            # of 2**32; template 0 below it, template 1 from it
    cdef int64_t total
    cdef int64_t interval_ns
    cdef int64_t last_slot_ns
    cdef int64_t timer_armed_ns
    cdef int64_t dial_timeout_ns
    cdef int64_t down_since_ns
    cdef int64_t unix_offset_ns
    cdef readonly int64_t start_unix_second
    cdef readonly int64_t start_ns
    cdef readonly int64_t end_ns        # last response
    cdef readonly int64_t response_bytes
    cdef readonly int64_t reconnects
    cdef char last_error[200]           # why a connection ended last

    def __cinit__(self, *, uint32_t conns, uint32_t clients, list endpoints, list templates, object shared,
                  uint32_t worker, int64_t total, double rate, uint32_t key_bytes, uint32_t value_bytes,
                  uint64_t key_space, bint sequential, double read_share, uint64_t seed, bint streaming,
                  double dial_timeout_seconds, uint32_t stream_ids_max=0x7ffffff1):
        cdef uint32_t i, slots
        cdef int k
        cdef uint32_t pool_bytes = 65536 + value_bytes
        cdef uint64_t* words
        self.epoll_fd = -1
        self.timer_fd = -1
        if conns == 0 or clients == 0 or not endpoints or not 1 <= len(templates) <= KINDS:
            raise ValueError("need connections, clients, endpoints and one or two templates")
        if conns >= TIMER_EVENT or clients >= TIMER_EVENT:
            raise ValueError("too many connections or clients")
        self.conn_count = conns
        self.client_count = clients
        self.endpoint_count = <uint32_t>len(endpoints)
        self.template_count = <uint32_t>len(templates)
        self.total = total
        self.interval_ns = <int64_t>(1e9 / rate) if rate > 0 else 0
        self.key_bytes = key_bytes
        self.value_bytes = value_bytes
        self.key_space = key_space if key_space else 1
        self.sequential = sequential
        self.read_share = <uint64_t>(read_share * 4294967296.0)
        self.seed = seed
        self.streaming = streaming
        self.stream_ids_max = stream_ids_max
        self.dial_timeout_ns = <int64_t>(dial_timeout_seconds * 1e9)

        PyObject_GetBuffer(shared, &self.shared, PyBUF_WRITABLE)
        self.shared_held = True
        if self.shared.len < 128 + 64 * (<Py_ssize_t>worker + 1):
            raise ValueError("shared page is too small for this worker")
        self.next_index = <int64_t*>self.shared.buf
        self.stop_flag = <int64_t*>(<char*>self.shared.buf + 64)
        self.done_count = <int64_t*>(<char*>self.shared.buf + 128 + 64 * <Py_ssize_t>worker)

        self.clients = <Client*>calloc(clients, sizeof(Client))
        self.conns = <Conn*>calloc(conns, sizeof(Conn))
        self.endpoints = <Endpoint*>calloc(self.endpoint_count, sizeof(Endpoint))
        self.histograms = <Histogram*>calloc(KINDS, sizeof(Histogram))
        self.seconds = <Second*>calloc(KINDS * SECONDS_MAX, sizeof(Second))
        self.errors = <ErrorRow*>calloc(ERRORS_MAX, sizeof(ErrorRow))
        self.input = <uint8_t*>malloc(INPUT_BYTES + KEPT_BYTES_MAX)
        self.value_pool = <uint8_t*>malloc(pool_bytes + 8)
        self.limited = <int32_t*>malloc(clients * sizeof(int32_t))
        self.dirty = <int32_t*>malloc(conns * sizeof(int32_t))
        slots = 8
        while slots < 4 * ((clients + conns - 1) // conns):
            slots *= 2
        self.slot_store = <StreamSlot*>calloc(<size_t>conns * slots, sizeof(StreamSlot))
        if (self.clients == NULL or self.conns == NULL or self.endpoints == NULL or self.histograms == NULL
                or self.seconds == NULL or self.errors == NULL or self.input == NULL or self.value_pool == NULL
                or self.limited == NULL or self.dirty == NULL or self.slot_store == NULL):
            raise MemoryError()
        words = <uint64_t*>self.value_pool
        for i in range(pool_bytes // 8 + 1):
            words[i] = mix64(seed + i)
        for i in range(conns):
            self.conns[i].fd = -1
            self.conns[i].endpoint = i % self.endpoint_count
            self.conns[i].slots = self.slot_store + <size_t>i * slots
            self.conns[i].slots_mask = slots - 1
            self.conns[i].ready_head = self.conns[i].ready_tail = -1
            self.conns[i].sending_head = self.conns[i].sending_tail = -1
            self.conns[i].data_client = -1
        self.idle = conns
        for i in range(clients):
            self.clients[i].next = -1
        for k in range(KINDS):
            self.histograms[k].min_ns = <uint64_t>-1
        for i, (family, address, first, following, plain, table_bytes) in enumerate(endpoints):
            self._set_endpoint(&self.endpoints[i], family, address, first, following, plain, table_bytes)
        for i, (message, keys_at, values_at) in enumerate(templates):
            self._set_template(&self.templates[i], message, keys_at, values_at)

        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        self.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self.epoll_fd < 0 or self.timer_fd < 0:
            raise OSError(errno, "epoll or timerfd")
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.u64 = TIMER_EVENT
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, self.timer_fd, &event) < 0:
            raise OSError(errno, "epoll_ctl")
        self.down_since_ns = now_ns()

    def __dealloc__(self):
        cdef uint32_t i
        cdef int k
        if self.conns != NULL:
            for i in range(self.conn_count):
                if self.conns[i].fd >= 0:
                    close(self.conns[i].fd)
                if self.conns[i].inflater != NULL:
                    nghttp2_hd_inflate_del(self.conns[i].inflater)
                free(self.conns[i].out)
                free(self.conns[i].kept)
                free(self.conns[i].block)
        if self.clients != NULL:
            for i in range(self.client_count):
                free(self.clients[i].body)
        for k in range(KINDS):
            free(self.templates[k].message)
            free(self.templates[k].key_at)
            free(self.templates[k].value_at)
        free(self.clients)
        free(self.conns)
        free(self.endpoints)
        free(self.histograms)
        free(self.seconds)
        free(self.errors)
        free(self.input)
        free(self.value_pool)
        free(self.limited)
        free(self.dirty)
        free(self.slot_store)
        if self.epoll_fd >= 0:
            close(self.epoll_fd)
        if self.timer_fd >= 0:
            close(self.timer_fd)
        if self.shared_held:
            PyBuffer_Release(&self.shared)

    cdef int _set_endpoint(self, Endpoint* e, int family, bytes address, bytes first, bytes following,
                           bytes plain, uint32_t table_bytes) except -1:
        if len(address) > ADDRESS_BYTES_MAX or len(following) > 64 \
                or len(first) > BLOCK_BYTES_MAX or len(plain) > BLOCK_BYTES_MAX:
            raise ValueError("address or header block too long")
        e.family = family
        memcpy(e.address, <const char*>address, len(address))
        e.address_bytes = <uint32_t>len(address)
        memcpy(e.first_block, <const char*>first, len(first))
        e.first_block_bytes = <uint32_t>len(first)
        memcpy(e.next_block, <const char*>following, len(following))
        e.next_block_bytes = <uint32_t>len(following)
        memcpy(e.plain_block, <const char*>plain, len(plain))
        e.plain_block_bytes = <uint32_t>len(plain)
        e.table_bytes = table_bytes
        return 0

    cdef int _set_template(self, Template* t, bytes message, list keys_at, list values_at) except -1:
        cdef uint32_t i, at
        if len(keys_at) != len(values_at):
            raise ValueError("a put has one key and one value")
        t.message_bytes = <uint32_t>len(message)
        t.puts = <uint32_t>len(keys_at)
        t.message = <uint8_t*>malloc(len(message))
        t.key_at = <uint32_t*>malloc((t.puts + 1) * sizeof(uint32_t))
        t.value_at = <uint32_t*>malloc((t.puts + 1) * sizeof(uint32_t))
        if t.message == NULL or t.key_at == NULL or t.value_at == NULL:
            raise MemoryError()
        memcpy(t.message, <const char*>message, len(message))
        for i in range(t.puts):
            at = keys_at[i]
            if at + self.key_bytes > t.message_bytes:
                raise ValueError("key hole outside the message")
            t.key_at[i] = at
            at = values_at[i]
            if at + self.value_bytes > t.message_bytes:
                raise ValueError("value hole outside the message")
            t.value_at[i] = at
        return 0

    # ---- Python's side -------------------------------------------------------------------------

    def poll(self, int64_t slice_ns):
        """Work for up to slice_ns nanoseconds; returns sooner when there is nothing left to wait for.

        Before `start()` that is: every connection has the peer's SETTINGS. After: no client runs.
        """
        with nogil:
            self._poll(now_ns() + slice_ns)

    def start(self):
        """Start the clock and let every client send its first request. Call once, when connected."""
        cdef timespec ts
        cdef uint32_t i
        cdef int64_t now
        if self.started:
            raise RuntimeError("a generator starts once")
        with nogil:
            now = now_ns()
            clock_gettime(CLOCK_REALTIME, &ts)
            self.unix_offset_ns = <int64_t>ts.tv_sec * SECOND_NS + ts.tv_nsec - now
            self.start_unix_second = ts.tv_sec
            self.start_ns = self.end_ns = now
            self.last_slot_ns = now - self.interval_ns
            self.started = True
            self.running = self.client_count
            for i in range(self.client_count):
                self._next(<int32_t>i, now)
            self._flush_dirty()

    def connect_error(self):
        """Why a connection ended last, or an empty string."""
        return self.last_error[:strlen(self.last_error)].decode(errors="replace")

    def histogram(self, uint32_t kind):
        """(count, sum_ns, min_ns, max_ns, sum of squares in s^2, buckets as bytes of uint64)."""
        if kind >= KINDS:
            raise IndexError(kind)
        cdef Histogram* h = &self.histograms[kind]
        return (h.count, h.sum_ns, h.min_ns if h.count else 0, h.max_ns, h.sum_squares,
                (<const char*><char*>h.buckets)[:sizeof(h.buckets)])

    def seconds_of(self, uint32_t kind):
        """Rows (unix second of the request's start, count, sum_ns, min_ns, max_ns), empty ones left out."""
        if kind >= KINDS:
            raise IndexError(kind)
        cdef Second* s
        cdef int64_t i
        cdef int64_t last = (self.end_ns + self.unix_offset_ns) // SECOND_NS - self.start_unix_second
        rows = []
        for i in range(min(last + 1, <int64_t>SECONDS_MAX)):
            s = &self.seconds[<int64_t>kind * SECONDS_MAX + i]
            if s.count:
                rows.append((self.start_unix_second + i, s.count, s.sum_ns, s.min_ns, s.max_ns))
        return rows

    def error_rows(self):
        """Rows (count, gRPC status code, message as bytes, percent-encoded as on the wire)."""
        cdef uint32_t i
        return [(self.errors[i].count, self.errors[i].code,
                 (<const char*><char*>self.errors[i].text)[:self.errors[i].text_bytes])
                for i in range(self.error_count)]

    # ---- the loop ------------------------------------------------------------------------------

    cdef void _poll(self, int64_t until) noexcept nogil:
        cdef epoll_event events[512]
        cdef int64_t now = now_ns()
        cdef int64_t expirations
        cdef int n, i, timeout_ms
        cdef uint64_t which
        while now < until and not self.aborted:
            if self.started:
                if self.running == 0:
                    return
            elif self.open_conns == self.conn_count:
                return
            timeout_ms = <int>((until - now + 999999) // 1000000)
            if self.idle or self.connecting:
                self._tend(now)
                if timeout_ms > 5:
                    timeout_ms = 5
            n = epoll_wait(self.epoll_fd, events, EVENTS_MAX, timeout_ms)
            for i in range(n):
                which = events[i].data.u64
                if which == TIMER_EVENT:
                    read(self.timer_fd, &expirations, sizeof(expirations))
                    self.timer_armed_ns = 0
                else:
                    self._on_event(&self.conns[which], events[i].events)
            now = now_ns()
            if self.limited_count:
                self._release(now)
            if self.dirty_count:
                self._flush_dirty()

    cdef void _tend(self, int64_t now) noexcept nogil:
        """Connect what is due, give up what takes too long."""
        cdef uint32_t i
        cdef Conn* c
        for i in range(self.conn_count):
            c = &self.conns[i]
            if c.state == CONN_IDLE:
                if c.retry_ns <= now and self.connecting < CONNECTING_MAX:
                    self._connect(c, now)
            elif c.state in (CONN_CONNECTING, CONN_HANDSHAKE) and now - c.since_ns > self.dial_timeout_ns:
                self._end(c, END_ERRNO, ETIMEDOUT)
        if self.open_conns == 0 and self.started and now - self.down_since_ns > self.dial_timeout_ns:
            self.aborted = True

    cdef void _release(self, int64_t now) noexcept nogil:
        """Hand over the clients whose slot has come and set the timer for the next one."""
        cdef itimerspec timer
        cdef Client* client = NULL
        cdef int32_t i
        cdef int64_t stopping
        while self.limited_count:
            i = self.limited[self.limited_head]
            client = &self.clients[i]
            stopping = __atomic_load_n(self.stop_flag, __ATOMIC_RELAXED)
            if client.slot_ns > now and not stopping:
                break
            self.limited_head += 1
            if self.limited_head == self.client_count:
                self.limited_head = 0
            self.limited_count -= 1
            if stopping:
                client.state = CLIENT_DONE
                self.running -= 1
            else:
                client.start_ns = now
                self._push_ready(i)
        if self.limited_count and self.timer_armed_ns != client.slot_ns:
            memset(&timer, 0, sizeof(timer))
            timer.it_value.tv_sec = client.slot_ns // SECOND_NS
            timer.it_value.tv_nsec = client.slot_ns % SECOND_NS
            timerfd_settime(self.timer_fd, TFD_TIMER_ABSTIME, &timer, NULL)
            self.timer_armed_ns = client.slot_ns

    cdef void _next(self, int32_t i, int64_t now) noexcept nogil:
        """Give client i its next request, or end it when all are taken."""
        cdef Client* client = &self.clients[i]
        cdef uint64_t r
        if not __atomic_load_n(self.stop_flag, __ATOMIC_RELAXED):
            client.index = __atomic_fetch_add(self.next_index, 1, __ATOMIC_RELAXED)
        else:
            client.index = self.total
        if client.index >= self.total:
            client.state = CLIENT_DONE
            self.running -= 1
            return
        client.kind = 0
        if self.template_count > 1:
            r = mix64(self.seed ^ <uint64_t>client.index * 0x2545F491)
            client.kind = 0 if (r >> 32) < self.read_share else 1
        if self.interval_ns:
            self.last_slot_ns = max(self.last_slot_ns + self.interval_ns, now)
            client.slot_ns = self.last_slot_ns
            client.state = CLIENT_LIMITED
            self.limited[(self.limited_head + self.limited_count) % self.client_count] = i
            self.limited_count += 1
            if self.limited_count == 1:
                self._release(now)
            return
        client.start_ns = now
        self._push_ready(i)

    cdef void _push_ready(self, int32_t i) noexcept nogil:
        cdef uint32_t k = <uint32_t>i % self.conn_count
        cdef Conn* c = &self.conns[k]
        self.clients[i].state = CLIENT_READY
        self.clients[i].next = -1
        if c.ready_head < 0:
            c.ready_head = i
        else:
            self.clients[c.ready_tail].next = i
        c.ready_tail = i
        self._mark_dirty(c)

    cdef void _mark_dirty(self, Conn* c) noexcept nogil:
        if not c.dirty:
            c.dirty = 1
            self.dirty[self.dirty_count] = <int32_t>(c - self.conns)
            self.dirty_count += 1

    cdef void _flush_dirty(self) noexcept nogil:
        cdef Conn* c
        cdef int reason
        # ending a connection can make it dirty again: its clients take their next requests
        while self.dirty_count:
            self.dirty_count -= 1
            c = &self.conns[self.dirty[self.dirty_count]]
            c.dirty = 0
            reason = self._flush(c)
            if reason < 0:
                self._end(c, reason, errno)

    # ---- results -------------------------------------------------------------------------------

    cdef void _record(self, Client* client, int64_t now) noexcept nogil:
        cdef Histogram* h = &self.histograms[client.kind]
        cdef uint64_t latency_ns = <uint64_t>(now - client.start_ns)
        cdef double latency = <double>latency_ns * 1e-9
        cdef int64_t second
        cdef Second* s
        h.count += 1
        h.sum_ns += latency_ns
        h.sum_squares += latency * latency
        h.buckets[bucket_of(latency_ns)] += 1
        if latency_ns < h.min_ns:
            h.min_ns = latency_ns
        if latency_ns > h.max_ns:
            h.max_ns = latency_ns
        second = (client.start_ns + self.unix_offset_ns) // SECOND_NS - self.start_unix_second
        if second < 0:
            second = 0
        if second >= SECONDS_MAX:
            second = SECONDS_MAX - 1
        s = &self.seconds[client.kind * SECONDS_MAX + second]
        if s.count == 0 or latency_ns < s.min_ns:
            s.min_ns = latency_ns
        if latency_ns > s.max_ns:
            s.max_ns = latency_ns
        s.count += 1
        s.sum_ns += latency_ns

    cdef void _count_error(self, int32_t code, const uint8_t* text, size_t text_bytes) noexcept nogil:
        cdef uint32_t i
        cdef ErrorRow* row
        if text_bytes > ERROR_TEXT_BYTES:
            text_bytes = ERROR_TEXT_BYTES
        for i in range(self.error_count):
            row = &self.errors[i]
            if row.code == code and row.text_bytes == text_bytes and memcmp(row.text, text, text_bytes) == 0:
                row.count += 1
                return
        if self.error_count == ERRORS_MAX:
            self.errors[ERRORS_MAX - 1].count += 1
            return
        row = &self.errors[self.error_count]
        self.error_count += 1
        row.count = 1
        row.code = code
        if self.error_count == ERRORS_MAX:
            row.code = GRPC_UNKNOWN
            row.text_bytes = <uint32_t>snprintf(<char*>row.text, ERROR_TEXT_BYTES, "(further distinct errors)")
            return
        row.text_bytes = <uint32_t>text_bytes
        memcpy(row.text, text, text_bytes)

    cdef void _fail(self, int32_t i, int32_t code, const char* text, int64_t now) noexcept nogil:
        """Count client i's request as failed and go on to its next one. Its stream is gone already."""
        self._count_error(code, <const uint8_t*>text, strlen(text))
        self._settle(i, now)

    cdef void _settle(self, int32_t i, int64_t now) noexcept nogil:
        __atomic_fetch_add(self.done_count, 1, __ATOMIC_RELAXED)
        self.end_ns = now
        self._next(i, now)

    # ---- streams of a connection ---------------------------------------------------------------

    cdef void _slot_put(self, Conn* c, uint32_t stream_id, int32_t i) noexcept nogil:
        cdef uint32_t at = (stream_id >> 1) & c.slots_mask
        while c.slots[at].stream_id:
            at = (at + 1) & c.slots_mask
        c.slots[at].stream_id = stream_id
        c.slots[at].client = i

    cdef int32_t _slot_find(self, Conn* c, uint32_t stream_id) noexcept nogil:
        cdef uint32_t at = (stream_id >> 1) & c.slots_mask
        while c.slots[at].stream_id:
            if c.slots[at].stream_id == stream_id:
                return c.slots[at].client
            at = (at + 1) & c.slots_mask
        return -1

    cdef void _slot_drop(self, Conn* c, uint32_t stream_id) noexcept nogil:
        """Remove and close the gap, so that a search may stop at the first free slot."""
        cdef uint32_t mask = c.slots_mask
        cdef uint32_t at = (stream_id >> 1) & mask
        cdef uint32_t probe, home
        while c.slots[at].stream_id != stream_id:
            if c.slots[at].stream_id == 0:
                return
            at = (at + 1) & mask
        probe = at
        while True:
            probe = (probe + 1) & mask
            if c.slots[probe].stream_id == 0:
                break
            home = (c.slots[probe].stream_id >> 1) & mask
            if ((probe - home) & mask) >= ((probe - at) & mask):
                c.slots[at] = c.slots[probe]
                at = probe
        c.slots[at].stream_id = 0

    cdef void _leave_stream(self, Conn* c, int32_t i) noexcept nogil:
        """Take client i off its stream; what it still had to send is dropped and the stream reset."""
        cdef Client* client = &self.clients[i]
        cdef int32_t at, before
        self._slot_drop(c, client.stream_id)
        c.active -= 1
        if c.data_client == i:
            c.data_client = -1
        if client.body != NULL:
            free(client.body)
            client.body = NULL
            before = -1
            at = c.sending_head
            while at >= 0 and at != i:
                before = at
                at = self.clients[at].next
            if at == i:
                if before < 0:
                    c.sending_head = client.next
                else:
                    self.clients[before].next = client.next
                if c.sending_tail == i:
                    c.sending_tail = before
            if self._room(c, 13) == 0:
                store_frame_head(c.out + c.out_bytes, 4, FRAME_RST_STREAM, 0, client.stream_id)
                store_be32(c.out + c.out_bytes + 9, 8)
                c.out_bytes += 13
        # also when nothing is ready: a draining connection closes in its flush
        self._mark_dirty(c)

    cdef void _finish(self, Conn* c, int32_t i, int32_t grpc_status, const uint8_t* text, size_t text_bytes,
                      int64_t now) noexcept nogil:
        """The peer ended client i's stream: judge the answer."""
        cdef Client* client = &self.clients[i]
        self._leave_stream(c, i)
        if client.http_status != 200:
            self._fail_http(i, client.http_status, now)
        elif grpc_status == GRPC_STATUS_MISSING:
            self._fail(i, GRPC_INTERNAL, "server closed the stream without sending trailers", now)
        elif grpc_status != 0:
            self._count_error(grpc_status, text, text_bytes)
            self._settle(i, now)
        elif client.fault == FAULT_COMPRESSED:
            self._fail(i, GRPC_INTERNAL, "the answer is compressed though no encoding was offered", now)
        elif client.prefix_bytes or client.message_left:
            self._fail(i, GRPC_INTERNAL, "the stream ended within a message", now)
        elif client.messages != 1 and not self.streaming:
            self._fail(i, GRPC_INTERNAL, "a unary call was not answered by exactly one message", now)
        else:
            self._record(client, now)
            self._settle(i, now)

    cdef void _fail_http(self, int32_t i, int status, int64_t now) noexcept nogil:
        cdef char text[64]
        snprintf(text, sizeof(text), "unexpected HTTP status code received from server: %d", status)
        self._fail(i, GRPC_UNIMPLEMENTED if status == 404 else GRPC_UNKNOWN, text, now)

    # ---- connecting and ending -----------------------------------------------------------------

    cdef void _connect(self, Conn* c, int64_t now) noexcept nogil:
        cdef Endpoint* e = &self.endpoints[c.endpoint]
        cdef epoll_event event
        cdef int one = 1
        cdef int rc
        c.fd = socket(e.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        self.idle -= 1
        self.connecting += 1
        c.state = CONN_CONNECTING
        c.since_ns = now
        if c.fd < 0:
            self._end(c, END_ERRNO, errno)
            return
        if e.family != AF_UNIX:
            setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
        rc = connect(c.fd, <const sockaddr*>e.address, e.address_bytes)
        if rc < 0 and errno != EINPROGRESS:
            self._end(c, END_ERRNO, errno)
            return
        event.events = EPOLLIN | EPOLLOUT
        event.data.u64 = <uint64_t>(c - self.conns)
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, c.fd, &event) < 0:
            self._end(c, END_ERRNO, errno)
            return
        c.wants_write = 1

    cdef int _handshake(self, Conn* c) noexcept nogil:
        """The socket is connected: send the preface."""
        cdef int error = 0
        cdef unsigned int length = sizeof(error)
        getsockopt(c.fd, SOL_SOCKET, SO_ERROR, &error, &length)
        if error:
            self._end(c, END_ERRNO, error)
            return 0
        if nghttp2_hd_inflate_new(&c.inflater) != 0 or self._room(c, PREFACE_BYTES) < 0:
            return END_MEMORY
        memcpy(c.out, PREFACE, PREFACE_BYTES)
        c.out_bytes = PREFACE_BYTES
        c.state = CONN_HANDSHAKE
        c.next_stream_id = 1
        c.peer_streams_max = <uint32_t>-1
        c.peer_frame_bytes_max = 16384
        c.peer_table_bytes = 4096
        c.peer_initial_window = 65535
        c.send_window = 65535
        c.table_state = TABLE_EMPTY
        if self.endpoints[c.endpoint].table_bytes > 4096:
            c.table_state = TABLE_UNUSABLE
        return self._flush(c)

    cdef void _end(self, Conn* c, int reason, int error) noexcept nogil:
        """Close a connection; its requests under way fail, and it connects again after a pause."""
        cdef int64_t now = now_ns()
        cdef bint was_open = c.state == CONN_OPEN or c.state == CONN_DRAINING
        cdef char text[200]
        cdef char buffer[100]
        cdef const char* why
        cdef int32_t i, k, n
        if c.state == CONN_IDLE:
            return
        if reason == END_ERRNO:
            why = strerror_r(error, buffer, sizeof(buffer))
        elif reason == END_EOF:
            why = "EOF"
        elif reason == END_COMPRESSION:
            why = "header compression error"
        elif reason == END_FLOW:
            why = "flow control error"
        elif reason == END_OVERLOAD:
            why = "the server makes us answer but does not read"
        elif reason == END_MEMORY:
            why = "out of memory"
        elif reason == END_NOT_HTTP2:
            why = "the server does not speak HTTP/2 without TLS here"
        else:
            why = "HTTP/2 protocol error"
        if was_open:
            self.open_conns -= 1
            snprintf(text, sizeof(text), "error reading from server: %s", why)
            if self.open_conns == 0:
                self.down_since_ns = now
        else:
            self.connecting -= 1
            snprintf(text, sizeof(text), "connection error: %s", why)
            if self.endpoint_count > 1:
                c.endpoint = (c.endpoint + 1) % self.endpoint_count
        if reason != END_DRAINED:
            snprintf(self.last_error, sizeof(self.last_error), "%s", why)
        if c.fd >= 0:
            close(c.fd)
        c.fd = -1
        c.state = CONN_IDLE
        self.idle += 1
        self.reconnects += self.started
        if reason == END_DRAINED:
            c.retry_ns = now
        else:
            c.backoff_ns = min(max(2 * c.backoff_ns, <int64_t>20000000), SECOND_NS)
            c.retry_ns = now + c.backoff_ns
        if c.inflater != NULL:
            nghttp2_hd_inflate_del(c.inflater)
            c.inflater = NULL
        c.out_bytes = c.out_sent = c.kept_bytes = c.data_left = c.padding_left = 0
        c.block_bytes = c.block_stream_id = c.unacked_bytes = 0
        c.data_client = -1
        c.wants_write = 0
        c.sending_head = c.sending_tail = -1
        memset(c.memos, 0, sizeof(c.memos))
        memset(c.slots, 0, (c.slots_mask + 1) * sizeof(StreamSlot))
        c.active = 0
        if not self.started:
            return
        k = <int32_t>(c - self.conns)
        n = <int32_t>self.client_count
        i = k
        # what waits goes first, in order, when the connection never came up: fail it, as gRPC does
        if not was_open:
            c.ready_head = c.ready_tail = -1
        while i < n:
            if self.clients[i].state == CLIENT_INFLIGHT or (not was_open and self.clients[i].state == CLIENT_READY):
                free(self.clients[i].body)
                self.clients[i].body = NULL
                self._fail(i, GRPC_UNAVAILABLE, text, now)
            i += <int32_t>self.conn_count

    # ---- output --------------------------------------------------------------------------------

    cdef int _room(self, Conn* c, uint32_t more) noexcept nogil:
        """Make room for `more` bytes of output; 0, or END_OVERLOAD, or END_MEMORY."""
        cdef uint32_t need, capacity
        cdef uint8_t* grown
        if c.out_sent and c.out_sent == c.out_bytes:
            c.out_sent = c.out_bytes = 0
        need = c.out_bytes + more
        if need <= c.out_capacity:
            return 0
        if c.out_sent:
            memmove(c.out, c.out + c.out_sent, c.out_bytes - c.out_sent)
            c.out_bytes -= c.out_sent
            c.out_sent = 0
            need = c.out_bytes + more
        if need > OUT_BYTES_MAX:
            return END_OVERLOAD
        if need > c.out_capacity:
            capacity = max(c.out_capacity, <uint32_t>4096)
            while capacity < need:
                capacity *= 2
            grown = <uint8_t*>realloc(c.out, capacity)
            if grown == NULL:
                return END_MEMORY
            c.out = grown
            c.out_capacity = capacity
        return 0

    cdef int _window_update(self, Conn* c, uint32_t stream_id, uint32_t bytes_back) noexcept nogil:
        cdef int rc = self._room(c, 13)
        if rc < 0:
            return rc
        store_frame_head(c.out + c.out_bytes, 4, FRAME_WINDOW_UPDATE, 0, stream_id)
        store_be32(c.out + c.out_bytes + 9, bytes_back)
        c.out_bytes += 13
        self._mark_dirty(c)
        return 0

    cdef int _flush(self, Conn* c) noexcept nogil:
        """Put every frame that may go into the output and hand it to the kernel in one call."""
        cdef int rc
        cdef ssize_t sent
        cdef int32_t i
        if c.state == CONN_IDLE or c.state == CONN_CONNECTING:
            return 0
        if c.sending_head >= 0:
            rc = self._send_bodies(c)
            if rc < 0:
                return rc
        if c.state == CONN_OPEN:
            while (c.ready_head >= 0 and c.sending_head < 0 and c.active < c.peer_streams_max
                   and c.state == CONN_OPEN and c.out_bytes - c.out_sent < OUT_HIGH_BYTES):
                i = c.ready_head
                c.ready_head = self.clients[i].next
                if c.ready_head < 0:
                    c.ready_tail = -1
                rc = self._begin(c, i)
                if rc < 0:
                    return rc
        elif c.state == CONN_DRAINING and c.active == 0:
            return END_DRAINED
        if c.out_sent < c.out_bytes:
            sent = self._transport_send(c, c.out + c.out_sent, c.out_bytes - c.out_sent)
            if sent < 0:
                if errno != EAGAIN and errno != EINTR:
                    return END_ERRNO
                sent = 0
            c.out_sent += <uint32_t>sent
            if c.out_sent == c.out_bytes:
                c.out_sent = c.out_bytes = 0
        return self._arm(c, c.out_sent < c.out_bytes)

    cdef int _arm(self, Conn* c, bint wants_write) noexcept nogil:
        cdef epoll_event event
        if wants_write == c.wants_write:
            return 0
        event.events = EPOLLIN | EPOLLOUT if wants_write else EPOLLIN
        event.data.u64 = <uint64_t>(c - self.conns)
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_MOD, c.fd, &event) < 0:
            return END_ERRNO
        c.wants_write = wants_write
        return 0

    # TLS belongs into these two: same results and errno as send and recv on a non-blocking socket.

    cdef ssize_t _transport_send(self, Conn* c, const uint8_t* data, size_t length) noexcept nogil:
        return send(c.fd, data, length, MSG_NOSIGNAL)

    cdef ssize_t _transport_recv(self, Conn* c, uint8_t* data, size_t length) noexcept nogil:
        return recv(c.fd, data, length, 0)

    cdef void _fill(self, Client* client, uint8_t* message) noexcept nogil:
        """The message of a client's request; depends on the request's number and the seed alone."""
        cdef Template* t = &self.templates[client.kind]
        cdef uint64_t r, number, number_left
        cdef uint32_t k, n
        cdef uint8_t* p
        memcpy(message, t.message, t.message_bytes)
        if t.puts == 0:
            return
        r = mix64(self.seed + <uint64_t>client.index)
        for k in range(t.puts):
            number = <uint64_t>client.index * t.puts + k if self.sequential else mix64(r + k)
            number = number % self.key_space
            # the key of etcd's tool: the number as a zigzag varint, zeros after it
            p = message + t.key_at[k]
            memset(p, 0, self.key_bytes)
            number_left = number << 1
            n = 0
            while number_left >= 0x80 and n < self.key_bytes:
                p[n] = <uint8_t>(number_left | 0x80)
                number_left >>= 7
                n += 1
            if n < self.key_bytes:
                p[n] = <uint8_t>number_left
            # values that do not compress, or the stores would be compared at something else
            memcpy(message + t.value_at[k], self.value_pool + ((r >> 13) + 4099 * <uint64_t>k) % 65536, self.value_bytes)

    cdef int _begin(self, Conn* c, int32_t i) noexcept nogil:
        """Open a stream for client i: HEADERS, and DATA as far as flow control lets it."""
        cdef Client* client = &self.clients[i]
        cdef Endpoint* e = &self.endpoints[c.endpoint]
        cdef uint32_t message_bytes = self.templates[client.kind].message_bytes
        cdef const uint8_t* block = e.next_block
        cdef uint32_t block_bytes = e.next_block_bytes
        cdef uint32_t update_bytes = 0
        cdef uint32_t limit
        cdef uint8_t update[8]
        cdef uint8_t* p
        cdef int rc
        if c.table_state != TABLE_FILLED:
            block = e.first_block
            block_bytes = e.first_block_bytes
            if c.table_state == TABLE_RESIZED:
                # RFC 7541 4.2: first the smallest size the table had, then the one in use
                limit = min(c.peer_table_bytes, <uint32_t>4096)
                update[0] = 0x20
                update_bytes = 1
                if limit >= 31:
                    update[update_bytes] = 0x3f
                    limit -= 31
                    update_bytes += 1
                    while limit >= 0x80:
                        update[update_bytes] = <uint8_t>(limit | 0x80)
                        limit >>= 7
                        update_bytes += 1
                    update[update_bytes] = <uint8_t>limit
                    update_bytes += 1
                elif limit:
                    update[update_bytes] = <uint8_t>(0x20 | limit)
                    update_bytes += 1
            if c.table_state == TABLE_UNUSABLE or min(c.peer_table_bytes, <uint32_t>4096) < e.table_bytes:
                block = e.plain_block
                block_bytes = e.plain_block_bytes
                c.table_state = TABLE_UNUSABLE
            else:
                c.table_state = TABLE_FILLED
        client.state = CLIENT_INFLIGHT
        rc = self._room(c, 18 + update_bytes + block_bytes + min(message_bytes, <uint32_t>FRAME_BYTES_MAX))
        if rc < 0:
            return rc
        client.stream_id = c.next_stream_id
        client.http_status = 0
        client.fault = FAULT_NONE
        client.message_left = client.messages = client.unacked_bytes = 0
        client.prefix_bytes = 0
        client.next = -1
        c.next_stream_id += 2
        c.active += 1
        self._slot_put(c, client.stream_id, i)
        if c.next_stream_id > self.stream_ids_max:
            c.state = CONN_DRAINING
        p = c.out + c.out_bytes
        store_frame_head(p, update_bytes + block_bytes, FRAME_HEADERS, FLAG_END_HEADERS, client.stream_id)
        memcpy(p + 9, update, update_bytes)
        memcpy(p + 9 + update_bytes, block, block_bytes)
        p += 9 + update_bytes + block_bytes
        if (message_bytes <= FRAME_BYTES_MAX and message_bytes <= c.peer_frame_bytes_max
                and message_bytes <= c.send_window and message_bytes <= c.peer_initial_window):
            store_frame_head(p, message_bytes, FRAME_DATA, FLAG_END_STREAM, client.stream_id)
            self._fill(client, p + 9)
            c.out_bytes = <uint32_t>(p + 9 + message_bytes - c.out)
            c.send_window -= message_bytes
            return 0
        c.out_bytes = <uint32_t>(p - c.out)
        client.body = <uint8_t*>malloc(message_bytes)
        if client.body == NULL:
            return END_MEMORY
        self._fill(client, client.body)
        client.body_bytes = message_bytes
        client.body_sent = 0
        client.send_window = c.peer_initial_window
        if c.sending_head < 0:
            c.sending_head = i
        else:
            self.clients[c.sending_tail].next = i
        c.sending_tail = i
        return self._send_bodies(c)

    cdef int _send_bodies(self, Conn* c) noexcept nogil:
        """Send on what flow control held back, in order; stops when the connection's window is used up."""
        cdef int32_t i = c.sending_head
        cdef int32_t before = -1
        cdef int32_t following
        cdef Client* client
        cdef int64_t part
        cdef int rc
        while i >= 0:
            client = &self.clients[i]
            following = client.next
            while True:
                part = min(<int64_t>(client.body_bytes - client.body_sent), <int64_t>c.peer_frame_bytes_max)
                part = min(min(part, <int64_t>FRAME_BYTES_MAX), min(client.send_window, c.send_window))
                if part <= 0 or c.out_bytes - c.out_sent >= OUT_HIGH_BYTES:
                    break
                rc = self._room(c, 9 + <uint32_t>part)
                if rc < 0:
                    return rc
                store_frame_head(c.out + c.out_bytes, <uint32_t>part, FRAME_DATA,
                                 FLAG_END_STREAM if client.body_sent + part == client.body_bytes else 0,
                                 client.stream_id)
                memcpy(c.out + c.out_bytes + 9, client.body + client.body_sent, part)
                c.out_bytes += 9 + <uint32_t>part
                c.send_window -= part
                client.send_window -= part
                client.body_sent += <uint32_t>part
                if client.body_sent == client.body_bytes:
                    break
            if client.body_sent == client.body_bytes:
                free(client.body)
                client.body = NULL
                if before < 0:
                    c.sending_head = following
                else:
                    self.clients[before].next = following
                if c.sending_tail == i:
                    c.sending_tail = before
            else:
                before = i
            if c.send_window <= 0 or c.out_bytes - c.out_sent >= OUT_HIGH_BYTES:
                return 0
            i = following
        return 0

    # ---- input ---------------------------------------------------------------------------------

    cdef void _on_event(self, Conn* c, uint32_t events) noexcept nogil:
        cdef int reason = 0
        cdef int error
        if c.state == CONN_IDLE:
            return
        if c.state == CONN_CONNECTING:
            if events & (EPOLLOUT | EPOLLERR | EPOLLHUP):
                reason = self._handshake(c)
        else:
            if events & EPOLLOUT:
                self._mark_dirty(c)
            if events & (EPOLLIN | EPOLLERR | EPOLLHUP):
                reason = self._receive(c)
        if reason < 0:
            error = errno
            self._end(c, reason, error)

    cdef int _receive(self, Conn* c) noexcept nogil:
        cdef uint8_t* p = self.input
        cdef size_t kept = c.kept_bytes
        cdef ssize_t got
        if kept:
            memcpy(p, c.kept, kept)
        got = self._transport_recv(c, p + kept, INPUT_BYTES)
        if got < 0:
            if errno == EAGAIN or errno == EINTR:
                return 0
            return END_ERRNO
        if got == 0:
            return END_EOF
        c.kept_bytes = 0
        return self._parse(c, p, kept + <size_t>got, now_ns())

    cdef int _keep(self, Conn* c, const uint8_t* p, size_t n) noexcept nogil:
        if n > KEPT_BYTES_MAX:
            return END_PROTOCOL
        if c.kept == NULL:
            c.kept = <uint8_t*>malloc(KEPT_BYTES_MAX)
            if c.kept == NULL:
                return END_MEMORY
        memcpy(c.kept, p, n)
        c.kept_bytes = <uint32_t>n
        return 0

    cdef int _parse(self, Conn* c, const uint8_t* p, size_t n, int64_t now) noexcept nogil:
        """Handle every whole frame of p[:n], and DATA as far as it goes; keep the rest."""
        cdef uint32_t length, stream_id
        cdef size_t part
        cdef uint8_t kind, flags
        cdef int rc
        while True:
            if c.data_left:
                part = min(n, <size_t>c.data_left)
                if part == 0:
                    return 0
                rc = self._on_data(c, p, part)
                if rc < 0:
                    return rc
                c.data_left -= <uint32_t>part
                p += part
                n -= part
                if c.data_left == 0 and c.padding_left == 0:
                    self._end_data(c, now)
                continue
            if c.padding_left:
                part = min(n, <size_t>c.padding_left)
                if part == 0:
                    return 0
                c.padding_left -= <uint32_t>part
                p += part
                n -= part
                if c.padding_left == 0:
                    self._end_data(c, now)
                continue
            if n < 9:
                return self._keep(c, p, n) if n else 0
            length = (<uint32_t>p[0] << 16) | (<uint32_t>p[1] << 8) | p[2]
            kind = p[3]
            flags = p[4]
            stream_id = load_be32(p + 5) & 0x7fffffff
            if c.state == CONN_HANDSHAKE and kind != FRAME_SETTINGS:
                return END_NOT_HTTP2
            if length > FRAME_BYTES_MAX:
                return END_PROTOCOL
            if c.block_stream_id and (kind != FRAME_CONTINUATION or stream_id != c.block_stream_id):
                return END_PROTOCOL
            if kind == FRAME_DATA:
                if flags & FLAG_PADDED and n < 10:
                    return self._keep(c, p, n)
                rc = self._begin_data(c, p + 9, length, flags, stream_id)
                if rc < 0:
                    return rc
                p += 9 + (1 if flags & FLAG_PADDED else 0)
                n -= 9 + (1 if flags & FLAG_PADDED else 0)
                if c.data_left == 0 and c.padding_left == 0:
                    self._end_data(c, now)
                continue
            if n < 9 + <size_t>length:
                return self._keep(c, p, n)
            rc = self._on_frame(c, kind, flags, stream_id, p + 9, length, now)
            if rc < 0:
                return rc
            p += 9 + length
            n -= 9 + length

    cdef int _begin_data(self, Conn* c, const uint8_t* payload, uint32_t length, uint8_t flags,
                         uint32_t stream_id) noexcept nogil:
        cdef uint32_t padding = 0
        cdef uint32_t taken = length
        cdef Client* client
        cdef int rc
        if stream_id == 0 or stream_id >= c.next_stream_id:
            return END_PROTOCOL
        if flags & FLAG_PADDED:
            if length == 0 or payload[0] >= length:
                return END_PROTOCOL
            padding = payload[0]
            length -= 1 + padding
        c.data_left = length
        c.padding_left = padding
        c.data_ends_stream = flags & FLAG_END_STREAM
        c.data_client = self._slot_find(c, stream_id)
        # flow control counts padding too, and streams we no longer know
        c.unacked_bytes += taken
        if c.unacked_bytes >= WINDOW_STEP:
            rc = self._window_update(c, 0, c.unacked_bytes)
            if rc < 0:
                return rc
            c.unacked_bytes = 0
        if c.data_client >= 0:
            client = &self.clients[c.data_client]
            client.unacked_bytes += taken
            if client.unacked_bytes >= WINDOW_STEP:
                rc = self._window_update(c, stream_id, client.unacked_bytes)
                if rc < 0:
                    return rc
                client.unacked_bytes = 0
        return 0

    cdef int _on_data(self, Conn* c, const uint8_t* p, size_t n) noexcept nogil:
        """Follow the gRPC messages in a piece of a DATA payload; their content is not looked at."""
        cdef Client* client
        cdef uint32_t part
        self.response_bytes += n
        if c.data_client < 0:
            return 0
        client = &self.clients[c.data_client]
        while n:
            if client.message_left:
                part = <uint32_t>min(n, <size_t>client.message_left)
                client.message_left -= part
                p += part
                n -= part
                if client.message_left == 0:
                    client.messages += 1
                continue
            while n and client.prefix_bytes < 5:
                client.prefix[client.prefix_bytes] = p[0]
                client.prefix_bytes += 1
                p += 1
                n -= 1
            if client.prefix_bytes == 5:
                client.prefix_bytes = 0
                if client.prefix[0]:
                    client.fault = FAULT_COMPRESSED
                client.message_left = load_be32(client.prefix + 1)
                if client.message_left == 0:
                    client.messages += 1
        return 0

    cdef void _end_data(self, Conn* c, int64_t now) noexcept nogil:
        cdef int32_t i = c.data_client
        c.data_client = -1
        if i >= 0 and c.data_ends_stream:
            self._finish(c, i, GRPC_STATUS_MISSING, NULL, 0, now)

    cdef int _on_frame(self, Conn* c, uint8_t kind, uint8_t flags, uint32_t stream_id, const uint8_t* p,
                       uint32_t length, int64_t now) noexcept nogil:
        cdef uint32_t padding
        cdef int32_t i
        cdef int rc
        cdef int64_t increment
        if kind == FRAME_HEADERS:
            if stream_id == 0 or stream_id >= c.next_stream_id:
                return END_PROTOCOL
            if flags & FLAG_PADDED:
                if length == 0 or p[0] >= length:
                    return END_PROTOCOL
                padding = p[0]
                p += 1
                length -= 1 + padding
            if flags & FLAG_PRIORITY:
                if length < 5:
                    return END_PROTOCOL
                p += 5
                length -= 5
            if flags & FLAG_END_HEADERS:
                return self._on_block(c, stream_id, flags & FLAG_END_STREAM, p, length, now)
            c.block_stream_id = stream_id
            c.block_ends_stream = flags & FLAG_END_STREAM
            return self._keep_block(c, p, length)
        if kind == FRAME_CONTINUATION:
            if c.block_stream_id == 0:
                return END_PROTOCOL
            rc = self._keep_block(c, p, length)
            if rc == 0 and flags & FLAG_END_HEADERS:
                rc = self._on_block(c, stream_id, c.block_ends_stream, c.block, c.block_bytes, now)
                c.block_bytes = c.block_stream_id = 0
            return rc
        if kind == FRAME_SETTINGS:
            return self._on_settings(c, flags, stream_id, p, length)
        if kind == FRAME_PING:
            if length != 8 or stream_id:
                return END_PROTOCOL
            if flags & FLAG_ACK:
                return 0
            rc = self._room(c, 17)
            if rc == 0:
                store_frame_head(c.out + c.out_bytes, 8, FRAME_PING, FLAG_ACK, 0)
                memcpy(c.out + c.out_bytes + 9, p, 8)
                c.out_bytes += 17
                self._mark_dirty(c)
            return rc
        if kind == FRAME_WINDOW_UPDATE:
            if length != 4:
                return END_PROTOCOL
            increment = load_be32(p) & 0x7fffffff
            if stream_id == 0:
                c.send_window += increment
                if increment == 0 or c.send_window > WINDOW_MAX:
                    return END_FLOW
            else:
                i = self._slot_find(c, stream_id)
                if i < 0 or self.clients[i].body == NULL:
                    return 0
                self.clients[i].send_window += increment
                if increment == 0 or self.clients[i].send_window > WINDOW_MAX:
                    return END_FLOW
            if c.sending_head >= 0:
                self._mark_dirty(c)
            return 0
        if kind == FRAME_RST_STREAM:
            if length != 4 or stream_id == 0:
                return END_PROTOCOL
            i = self._slot_find(c, stream_id)
            if i >= 0:
                self._on_reset(c, i, load_be32(p), now)
            return 0
        if kind == FRAME_GOAWAY:
            if length < 8 or stream_id:
                return END_PROTOCOL
            self._on_goaway(c, load_be32(p) & 0x7fffffff)
            return 0
        if kind == FRAME_PUSH_PROMISE:
            return END_PROTOCOL
        return 0

    cdef int _keep_block(self, Conn* c, const uint8_t* p, uint32_t length) noexcept nogil:
        if c.block == NULL:
            c.block = <uint8_t*>malloc(BLOCK_TOTAL_BYTES_MAX)
            if c.block == NULL:
                return END_MEMORY
        if c.block_bytes + length > BLOCK_TOTAL_BYTES_MAX:
            return END_PROTOCOL
        memcpy(c.block + c.block_bytes, p, length)
        c.block_bytes += length
        return 0

    cdef int _on_settings(self, Conn* c, uint8_t flags, uint32_t stream_id, const uint8_t* p,
                          uint32_t length) noexcept nogil:
        cdef uint32_t at, value
        cdef int name, rc
        cdef int32_t i
        if stream_id or length % 6 or (flags & FLAG_ACK and length):
            return END_PROTOCOL
        if flags & FLAG_ACK:
            return 0
        for at in range(0, length, 6):
            name = (<int>p[at] << 8) | p[at + 1]
            value = load_be32(p + at + 2)
            if name == 1:
                if value != c.peer_table_bytes:
                    c.peer_table_bytes = value
                    c.table_state = TABLE_RESIZED
            elif name == 3:
                c.peer_streams_max = value
            elif name == 4:
                if value > WINDOW_MAX:
                    return END_FLOW
                i = c.sending_head
                while i >= 0:
                    self.clients[i].send_window += <int64_t>value - c.peer_initial_window
                    i = self.clients[i].next
                c.peer_initial_window = value
            elif name == 5:
                if value < 16384 or value > 16777215:
                    return END_PROTOCOL
                c.peer_frame_bytes_max = value
        rc = self._room(c, 9)
        if rc < 0:
            return rc
        store_frame_head(c.out + c.out_bytes, 0, FRAME_SETTINGS, FLAG_ACK, 0)
        c.out_bytes += 9
        if c.state == CONN_HANDSHAKE:
            c.state = CONN_OPEN
            c.backoff_ns = 0
            self.connecting -= 1
            self.open_conns += 1
        self._mark_dirty(c)
        return 0

    cdef void _on_reset(self, Conn* c, int32_t i, uint32_t code, int64_t now) noexcept nogil:
        cdef char text[100]
        cdef int32_t status = GRPC_INTERNAL
        if code == 7:
            status = GRPC_UNAVAILABLE
        elif code == 8:
            status = GRPC_CANCELLED
        elif code == 11:
            status = GRPC_RESOURCE_EXHAUSTED
        snprintf(text, sizeof(text), "stream terminated by RST_STREAM with HTTP/2 error code %u", code)
        self._leave_stream(c, i)
        self._fail(i, status, text, now)

    cdef void _on_goaway(self, Conn* c, uint32_t last_stream_id) noexcept nogil:
        """Take no new stream here; what the peer will not handle is sent again on the next connection."""
        cdef int32_t i = <int32_t>(c - self.conns)
        if c.state == CONN_OPEN:
            c.state = CONN_DRAINING
        while i < <int32_t>self.client_count:
            if self.clients[i].state == CLIENT_INFLIGHT and self.clients[i].stream_id > last_stream_id:
                self._leave_stream(c, i)
                self._push_ready(i)
            i += <int32_t>self.conn_count
        self._mark_dirty(c)

    cdef int _on_block(self, Conn* c, uint32_t stream_id, bint ends_stream, const uint8_t* p, uint32_t length,
                       int64_t now) noexcept nogil:
        """Response headers or trailers of a stream."""
        cdef int16_t http_status = 0
        cdef int32_t grpc_status = GRPC_STATUS_MISSING
        cdef uint8_t text[240]
        cdef uint32_t text_bytes = 0
        cdef uint64_t block = 0
        cdef bint references = 0 < length <= 8
        cdef uint32_t at
        cdef int k
        cdef int32_t i
        cdef Memo* memo = NULL
        if references:
            for at in range(length):
                # a one-byte reference into the tables; 0xff begins a longer one
                references = references and p[at] >= 0x80 and p[at] != 0xff
                block = (block << 8) | p[at]
        if references:
            for k in range(MEMOS):
                if c.memos[k].block == block and c.memos[k].block_bytes == length:
                    memo = &c.memos[k]
                    http_status = memo.http_status
                    grpc_status = memo.grpc_status
                    break
        if memo == NULL:
            if not references:
                # it may have changed the table
                memset(c.memos, 0, sizeof(c.memos))
            if self._inflate(c, p, length, &http_status, &grpc_status, text, &text_bytes) < 0:
                return END_COMPRESSION
            if references and grpc_status <= 0:
                memo = &c.memos[c.memo_next]
                c.memo_next = (c.memo_next + 1) % MEMOS
                memo.block = block
                memo.block_bytes = <uint16_t>length
                memo.http_status = http_status
                memo.grpc_status = <int16_t>grpc_status
        i = self._slot_find(c, stream_id)
        if i < 0:
            return 0
        if http_status >= 200:
            self.clients[i].http_status = http_status
        if ends_stream:
            self._finish(c, i, grpc_status, text, text_bytes, now)
        return 0

    cdef int _inflate(self, Conn* c, const uint8_t* p, uint32_t length, int16_t* http_status, int32_t* grpc_status,
                      uint8_t* text, uint32_t* text_bytes) noexcept nogil:
        cdef nghttp2_nv nv
        cdef int flags
        cdef ssize_t used
        cdef int32_t number
        while True:
            flags = 0
            used = nghttp2_hd_inflate_hd2(c.inflater, &nv, &flags, p, length, 1)
            if used < 0:
                return -1
            p += used
            length -= <uint32_t>used
            if flags & NGHTTP2_HD_INFLATE_EMIT:
                if nv.namelen == 7 and memcmp(nv.name, b":status", 7) == 0:
                    number = _decimal(nv.value, nv.valuelen)
                    http_status[0] = <int16_t>number if 100 <= number <= 999 else 1
                elif nv.namelen == 11 and memcmp(nv.name, b"grpc-status", 11) == 0:
                    number = _decimal(nv.value, nv.valuelen)
                    grpc_status[0] = number if number >= 0 else GRPC_UNKNOWN
                elif nv.namelen == 12 and memcmp(nv.name, b"grpc-message", 12) == 0:
                    text_bytes[0] = <uint32_t>min(nv.valuelen, <size_t>ERROR_TEXT_BYTES)
                    memcpy(text, nv.value, text_bytes[0])
            if flags & NGHTTP2_HD_INFLATE_FINAL:
                nghttp2_hd_inflate_end_headers(c.inflater)
                return 0
            if not flags & NGHTTP2_HD_INFLATE_EMIT and length == 0:
                return -1


cdef inline int32_t _decimal(const uint8_t* p, size_t n) noexcept nogil:
    """Value of 1 to 4 decimal digits, or -1."""
    cdef int32_t value = 0
    cdef size_t k
    if n == 0 or n > 4:
        return -1
    for k in range(n):
        if p[k] < 48 or p[k] > 57:
            return -1
        value = value * 10 + p[k] - 48
    return value
