"""Load generator: one thread, one epoll, an own HTTP/2 client that does just what a load needs.

A `Generator` owns its connections and clients. Python calls `poll()` in slices; within a slice the
interpreter lock is released and nothing of Python is touched. Several generators (one a process)
share a page: the next request number, so that together they issue exactly `total` requests, a stop
flag, and a row of progress each.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, ETIMEDOUT, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, strlen

from etcdfast._ext.loadclients cimport (
    fail_request, mark_dirty, next_request, push_ready, release_slots,
)
from etcdfast._ext.loadh2 cimport h2_fill, h2_receive, h2_start, h2_stop
from etcdfast._ext.loadrequest cimport LEASE_ID_BYTES, STAMP_BYTES
from etcdfast._ext.loadstm cimport stm_free, stm_new
from etcdfast._ext.loadsys cimport (
    AF_UNIX, CLOCK_MONOTONIC, CLOCK_REALTIME, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLL_CLOEXEC, EPOLL_CTL_ADD,
    EPOLL_CTL_MOD, IPPROTO_TCP, MSG_NOSIGNAL, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, SO_ERROR,
    TCP_NODELAY, TFD_CLOEXEC, TFD_NONBLOCK, clock_gettime, close, connect, epoll_create1, epoll_ctl, epoll_event,
    epoll_wait, getsockopt, now_ns, read, recv, send, setsockopt, sockaddr, socket, strerror_r, timerfd_create,
    timespec,
)
from etcdfast._ext.tlsconn cimport (
    TLS_AGAIN, TLS_DONE, TLS_FAILED, TLS_WANT_WRITE, tls_alpn, tls_close, tls_conn, tls_error, tls_handshake, tls_more,
    tls_open, tls_recv, tls_send,
)
from etcdfast._ext.tlscontext cimport TlsContext
from etcdfast._ext.loadtypes cimport (
    ACKNOWLEDGED_MAX, ADDRESS_BYTES_MAX, BLOCK_BYTES_MAX, CLIENT_INFLIGHT, CLIENT_READY, CONNECTING_MAX, CONN_CONNECTING,
    CONN_DRAINING, CONN_HANDSHAKE, CONN_IDLE, CONN_OPEN, Client, Conn, END_COMPRESSION, END_DRAINED, END_EOF,
    END_ERRNO, END_FLOW, END_MEMORY, END_MESSAGE, END_NOT_HTTP2, END_NO_H2, END_OVERLOAD, END_TLS, ERRORS_MAX, EVENTS_MAX, Endpoint,
    ErrorRow, GRPC_UNAVAILABLE, HEADERS_MAX, Histogram, INPUT_BYTES, KEPT_BYTES_MAX, KINDS, KIND_CREATE, Load,
    METHODS_MAX, Method, PATH_BYTES_MAX, PUTS_KEPT_MAX, READ_NOTHING, READ_RENEWAL, READ_STM, STM_KEYS_MAX,
    STM_SNAPSHOT, READ_WATCH, SECONDS_MAX, Second, StreamSlot, TIMELINE_BIN_NS, TIMELINE_BINS, TIMER_EVENT,
    Template, Watcher, mix64,
)


cdef int64_t SECOND_NS = 1000000000


cdef bint speaks_h2(tls_conn* tls) noexcept nogil:
    cdef const unsigned char* name
    return tls_alpn(tls, &name) == 2 and name[0] == c"h" and name[1] == c"2"


@cython.final
cdef class Generator:
    cdef Load load
    cdef Py_buffer shared
    cdef bint shared_held
    cdef TlsContext tls

    def __cinit__(self, *, uint32_t conns, uint32_t clients, list endpoints, list templates, object shared,
                  uint32_t worker, int64_t total, double rate, uint32_t key_bytes, uint32_t value_bytes,
                  uint64_t key_space, bint sequential, double read_share, uint64_t seed, bint streaming,
                  double dial_timeout_seconds, list methods, uint32_t stream_ids_max=0x7ffffff1,
                  uint32_t load_kinds=1, uint32_t load_conns=0, bint renewing=False, bint held=False,
                  list streams=[], uint32_t watchers_each=0, uint32_t stream_conn=0,
                  object key_numbers=None, bint stamped=False, bint latency_by_number=False,
                  int64_t lease_base=0, int64_t ttl_end_ns=0, tuple stm=(), bint acknowledged=False,
                  TlsContext tls=None):
        cdef uint32_t i, at, slots
        cdef uint32_t stream_count = <uint32_t>len(streams)
        cdef uint32_t everyone = clients + stream_count
        cdef int k
        cdef uint32_t pool_bytes = 65536 + value_bytes
        cdef uint64_t* words
        self.load.epoll_fd = -1
        self.load.timer_fd = -1
        if conns == 0 or everyone == 0 or not endpoints or not 1 <= len(templates) <= KINDS:
            raise ValueError("need connections, clients or streams, endpoints and templates")
        if conns >= TIMER_EVENT or clients >= TIMER_EVENT or everyone >= TIMER_EVENT:
            raise ValueError("too many connections or clients")
        if not 1 <= len(methods) <= METHODS_MAX or load_kinds == 0 or load_kinds > len(templates):
            raise ValueError("need methods, and a template for each kind of load")
        if stream_count and (watchers_each == 0 or len(templates) <= KIND_CREATE or stream_conn >= conns):
            raise ValueError("streams need watchers, a template that makes one, and connections")
        self.load.conn_count = conns
        self.load.client_count = everyone
        self.load.load_clients = clients
        self.load.load_kinds = load_kinds
        self.load.watchers_each = watchers_each
        self.load.stamped = stamped and value_bytes >= STAMP_BYTES
        self.load.latency_by_number = latency_by_number
        self.load.lease_base = lease_base
        self.load.ttl_end_ns = ttl_end_ns
        self.load.endpoint_count = <uint32_t>len(endpoints)
        self.load.template_count = <uint32_t>len(templates)
        self.load.total = total
        self.load.interval_ns = <int64_t>(1e9 / rate) if rate > 0 else 0
        self.load.key_bytes = key_bytes
        self.load.value_bytes = value_bytes
        self.load.key_space = key_space if key_space else 1
        self.load.sequential = sequential
        self.load.read_share = <uint64_t>(read_share * 4294967296.0)
        self.load.seed = seed
        self.load.streaming = streaming
        self.load.stream_ids_max = stream_ids_max
        self.load.dial_timeout_ns = <int64_t>(dial_timeout_seconds * 1e9)

        PyObject_GetBuffer(shared, &self.shared, PyBUF_WRITABLE)
        self.shared_held = True
        if self.shared.len < 128 + 64 * (<Py_ssize_t>worker + 1):
            raise ValueError("shared page is too small for this worker")
        self.load.next_index = <int64_t*>self.shared.buf
        self.load.stop_flag = <int64_t*>(<char*>self.shared.buf + 64)
        self.load.done_count = <int64_t*>(<char*>self.shared.buf + 128 + 64 * <Py_ssize_t>worker)

        self.load.clients = <Client*>calloc(everyone, sizeof(Client))
        self.load.conns = <Conn*>calloc(conns, sizeof(Conn))
        self.load.endpoints = <Endpoint*>calloc(self.load.endpoint_count, sizeof(Endpoint))
        self.load.histograms = <Histogram*>calloc(KINDS, sizeof(Histogram))
        self.load.seconds = <Second*>calloc(KINDS * SECONDS_MAX, sizeof(Second))
        self.load.errors = <ErrorRow*>calloc(ERRORS_MAX, sizeof(ErrorRow))
        self.load.timeline = <uint32_t*>calloc(TIMELINE_BINS, sizeof(uint32_t))
        if acknowledged:
            self.load.acknowledged = <uint8_t*>calloc(ACKNOWLEDGED_MAX // 8, 1)
            if self.load.acknowledged == NULL:
                raise MemoryError()
        self.load.input = <uint8_t*>malloc(INPUT_BYTES + KEPT_BYTES_MAX)
        self.load.value_pool = <uint8_t*>malloc(pool_bytes + 8)
        self.load.limited = <int32_t*>malloc((clients + 1) * sizeof(int32_t))
        self.load.dirty = <int32_t*>malloc(conns * sizeof(int32_t))
        self.load.stream_numbers = <uint32_t*>calloc(stream_count + 1, sizeof(uint32_t))
        self.load.watchers = <Watcher*>calloc(<size_t>stream_count * watchers_each + 1, sizeof(Watcher))
        # the load clients have the first load_conns connections, the streams those from stream_conn on
        if load_conns == 0 or load_conns > conns:
            load_conns = conns
        slots = 8
        while slots < 4 * ((clients + load_conns - 1) // load_conns
                           + (stream_count + conns - stream_conn - 1) // (conns - stream_conn)):
            slots *= 2
        self.load.slot_store = <StreamSlot*>calloc(<size_t>conns * slots, sizeof(StreamSlot))
        if (self.load.clients == NULL or self.load.conns == NULL or self.load.endpoints == NULL
                or self.load.histograms == NULL or self.load.seconds == NULL or self.load.errors == NULL
                or self.load.input == NULL or self.load.value_pool == NULL or self.load.limited == NULL
                or self.load.dirty == NULL or self.load.slot_store == NULL or self.load.stream_numbers == NULL
                or self.load.watchers == NULL or self.load.timeline == NULL):
            raise MemoryError()
        words = <uint64_t*>self.load.value_pool
        for i in range(pool_bytes // 8 + 1):
            words[i] = mix64(seed + i)
        for i in range(conns):
            self.load.conns[i].fd = -1
            self.load.conns[i].endpoint = i % self.load.endpoint_count
            self.load.conns[i].slots = self.load.slot_store + <size_t>i * slots
            self.load.conns[i].slots_mask = slots - 1
            self.load.conns[i].ready_head = self.load.conns[i].ready_tail = -1
            self.load.conns[i].sending_head = self.load.conns[i].sending_tail = -1
            self.load.conns[i].data_client = -1
        self.load.idle = conns
        for i in range(clients):
            self.load.clients[i].next = -1
            self.load.clients[i].conn = i % load_conns
            self.load.clients[i].reads = READ_RENEWAL if renewing else READ_NOTHING
            self.load.clients[i].held = held
        if stm:
            self._set_stm(stm)
        for i in range(stream_count):
            at = clients + i
            self.load.stream_numbers[i] = streams[i]
            self.load.clients[at].next = -1
            self.load.clients[at].conn = stream_conn + i % (conns - stream_conn)
            self.load.clients[at].kind = KIND_CREATE
            self.load.clients[at].reads = READ_WATCH
            self.load.clients[at].held = True
            self.load.clients[at].watchers = self.load.watchers + <size_t>i * watchers_each
        for k in range(KINDS):
            self.load.histograms[k].min_ns = <uint64_t>-1
        for i, path in enumerate(methods):
            self._set_method(&self.load.methods[i], path)
        if tls is not None:
            self.tls = tls
            self.load.tls = &tls.ctx
        for i, (family, address, entering, plain, headers, table_bytes, tls_name) in enumerate(endpoints):
            self._set_endpoint(&self.load.endpoints[i], family, address, entering, plain, headers, table_bytes)
            if tls_name is not None:
                self._set_tls(&self.load.endpoints[i], tls_name)
        for i, (message, keys_at, values_at, method, lease_at, lease_of_client, ttl_at) in enumerate(templates):
            if method >= len(methods):
                raise ValueError("a template of an unknown method")
            self.load.templates[i].method = method
            self._set_template(&self.load.templates[i], message, keys_at, values_at, lease_at, lease_of_client, ttl_at)
        if key_numbers is not None:
            self._set_key_numbers(key_numbers)
        if latency_by_number:
            if total <= 0 or total > PUTS_KEPT_MAX:
                raise ValueError("too many requests to keep their times")
            self.load.put_sent_ns = <int64_t*>calloc(total, sizeof(int64_t))
            self.load.put_done_ns = <int64_t*>calloc(total, sizeof(int64_t))
            if self.load.put_sent_ns == NULL or self.load.put_done_ns == NULL:
                raise MemoryError()

        self.load.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        self.load.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self.load.epoll_fd < 0 or self.load.timer_fd < 0:
            raise OSError(errno, "epoll or timerfd")
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.u64 = TIMER_EVENT
        if epoll_ctl(self.load.epoll_fd, EPOLL_CTL_ADD, self.load.timer_fd, &event) < 0:
            raise OSError(errno, "epoll_ctl")
        self.load.down_since_ns = now_ns()

    def __dealloc__(self):
        cdef uint32_t i
        cdef int k
        if self.load.conns != NULL:
            for i in range(self.load.conn_count):
                tls_close(self.load.conns[i].tls)
                if self.load.conns[i].fd >= 0:
                    close(self.load.conns[i].fd)
                if self.load.conns[i].slots != NULL:
                    h2_stop(&self.load.conns[i])
                free(self.load.conns[i].out)
                free(self.load.conns[i].kept)
                free(self.load.conns[i].block)
        if self.load.clients != NULL:
            for i in range(self.load.client_count):
                free(self.load.clients[i].body)
                free(self.load.clients[i].content)
                stm_free(&self.load.clients[i])
        for k in range(METHODS_MAX):
            free(self.load.methods[k].path)
        for k in range(KINDS):
            free(self.load.templates[k].message)
            free(self.load.templates[k].key_at)
            free(self.load.templates[k].value_at)
        free(self.load.clients)
        free(self.load.conns)
        free(self.load.endpoints)
        free(self.load.histograms)
        free(self.load.seconds)
        free(self.load.errors)
        free(self.load.input)
        free(self.load.value_pool)
        free(self.load.limited)
        free(self.load.dirty)
        free(self.load.slot_store)
        free(self.load.stream_numbers)
        free(self.load.watchers)
        free(self.load.key_numbers)
        free(self.load.put_sent_ns)
        free(self.load.put_done_ns)
        free(self.load.timeline)
        free(self.load.acknowledged)
        if self.load.epoll_fd >= 0:
            close(self.load.epoll_fd)
        if self.load.timer_fd >= 0:
            close(self.load.timer_fd)
        if self.shared_held:
            PyBuffer_Release(&self.shared)

    cdef int _set_stm(self, tuple stm) except -1:
        cdef int isolation, lock
        cdef uint64_t keys
        cdef uint32_t keys_each, writes, i
        isolation, lock, keys, keys_each, writes = stm
        if keys_each > STM_KEYS_MAX or keys_each > keys or writes > keys_each or isolation > STM_SNAPSHOT:
            raise ValueError("a transaction that cannot be")
        self.load.stm_isolation = isolation
        self.load.stm_lock = lock
        self.load.stm_keys = keys
        self.load.stm_keys_each = keys_each
        self.load.stm_writes = writes
        for i in range(self.load.load_clients):
            self.load.clients[i].reads = READ_STM
            if stm_new(&self.load, <int32_t>i) < 0:
                raise MemoryError()
        return 0

    cdef int _set_method(self, Method* m, bytes path) except -1:
        if len(path) > PATH_BYTES_MAX:
            raise ValueError("path too long")
        m.path = <uint8_t*>malloc(len(path) + 1)
        if m.path == NULL:
            raise MemoryError()
        memcpy(m.path, <const char*>path, len(path))
        m.path_bytes = <uint32_t>len(path)
        return 0

    cdef int _set_endpoint(self, Endpoint* e, int family, bytes address, bytes entering, bytes plain,
                           uint32_t headers, uint32_t table_bytes) except -1:
        if (len(address) > ADDRESS_BYTES_MAX or headers > HEADERS_MAX
                or len(entering) > BLOCK_BYTES_MAX or len(plain) > BLOCK_BYTES_MAX):
            raise ValueError("address or header block too long")
        e.family = family
        memcpy(e.address, <const char*>address, len(address))
        e.address_bytes = <uint32_t>len(address)
        memcpy(e.entering, <const char*>entering, len(entering))
        e.entering_bytes = <uint32_t>len(entering)
        memcpy(e.plain, <const char*>plain, len(plain))
        e.plain_bytes = <uint32_t>len(plain)
        e.headers = headers
        e.table_bytes = table_bytes
        return 0

    cdef int _set_tls(self, Endpoint* e, bytes name) except -1:
        if self.load.tls == NULL or <size_t>len(name) >= sizeof(e.tls_name):
            raise ValueError("TLS without a context, or with a name too long")
        e.secure = True
        memcpy(e.tls_name, <const char*>name, len(name))
        return 0

    cdef int _set_key_numbers(self, object numbers) except -1:
        cdef Py_buffer view
        PyObject_GetBuffer(numbers, &view, PyBUF_SIMPLE)
        try:
            if view.len < 8 or view.len % 8 or view.len // 8 > 0xffffffff:
                raise ValueError("key numbers are uint64, at least one")
            self.load.key_numbers = <uint64_t*>malloc(view.len)
            if self.load.key_numbers == NULL:
                raise MemoryError()
            memcpy(self.load.key_numbers, view.buf, view.len)
            self.load.key_number_count = <uint32_t>(view.len // 8)
        finally:
            PyBuffer_Release(&view)
        return 0

    cdef int _set_template(self, Template* t, bytes message, list keys_at, list values_at, uint32_t lease_at,
                           bint lease_of_client, uint32_t ttl_at) except -1:
        cdef uint32_t i, at
        t.message_bytes = <uint32_t>len(message)
        if lease_at + LEASE_ID_BYTES > t.message_bytes and lease_at or ttl_at >= t.message_bytes:
            raise ValueError("lease hole outside the message")
        t.lease_at = lease_at
        t.lease_of_client = lease_of_client
        t.ttl_at = ttl_at
        t.keys = <uint32_t>len(keys_at)
        t.values = <uint32_t>len(values_at)
        t.message = <uint8_t*>malloc(len(message))
        t.key_at = <uint32_t*>malloc((t.keys + 1) * sizeof(uint32_t))
        t.value_at = <uint32_t*>malloc((t.values + 1) * sizeof(uint32_t))
        if t.message == NULL or t.key_at == NULL or t.value_at == NULL:
            raise MemoryError()
        memcpy(t.message, <const char*>message, len(message))
        for i in range(t.keys):
            at = keys_at[i]
            if at + self.load.key_bytes > t.message_bytes:
                raise ValueError("key hole outside the message")
            t.key_at[i] = at
        for i in range(t.values):
            at = values_at[i]
            if at + self.load.value_bytes > t.message_bytes:
                raise ValueError("value hole outside the message")
            t.value_at[i] = at
        return 0

    @property
    def open_conns(self):
        return self.load.open_conns

    @property
    def running(self):
        return self.load.running

    @property
    def aborted(self):
        return bool(self.load.aborted)

    @property
    def start_ns(self):
        return self.load.start_ns

    @property
    def end_ns(self):
        return self.load.end_ns

    @property
    def response_bytes(self):
        return self.load.response_bytes

    @property
    def reconnects(self):
        return self.load.reconnects

    @property
    def streams_lost(self):
        return self.load.streams_lost

    def watch_counts(self):
        """(watchers made, events, responses, their bytes, ns of: start, last watcher, first and last event or 0)."""
        return (self.load.watchers_made, self.load.watch_events, self.load.watch_responses, self.load.watch_bytes,
                self.load.since_ns, self.load.watch_made_ns, self.load.watch_start_ns, self.load.watch_end_ns)

    # ---- Python's side -------------------------------------------------------------------------

    def poll(self, int64_t slice_ns):
        """Work for up to slice_ns nanoseconds; returns sooner when there is nothing left to wait for.

        Before `start()` that is: every connection has the peer's SETTINGS. After: no client runs.
        """
        with nogil:
            self._poll(now_ns() + slice_ns)

    def hold(self, bint on):
        """Let `poll` last its whole slice, although nobody may run: events come unasked."""
        self.load.holding = on

    def start(self):
        """Let every load client send its first request. Call once, when connected."""
        cdef uint32_t i
        cdef int64_t now
        if self.load.start_ns:
            raise RuntimeError("a load starts once")
        with nogil:
            now = self._begin()
            self.load.start_ns = self.load.end_ns = now
            self.load.last_slot_ns = now - self.load.interval_ns
            self.load.running += self.load.load_clients
            for i in range(self.load.load_clients):
                next_request(&self.load, <int32_t>i, now)
            self._flush_dirty()

    def start_streams(self):
        """Let every stream make its watchers, one after another. Call once, when connected."""
        cdef uint32_t i, number
        cdef int64_t now
        if self.load.streams_started:
            raise RuntimeError("streams start once")
        with nogil:
            self.load.streams_started = True
            now = self._begin()
            self.load.running += self.load.client_count - self.load.load_clients
            for i in range(self.load.load_clients, self.load.client_count):
                number = self.load.stream_numbers[i - self.load.load_clients]
                self.load.clients[i].index = <int64_t>number * self.load.watchers_each
                self.load.clients[i].start_ns = now
                push_ready(&self.load, <int32_t>i)
            self._flush_dirty()

    cdef int64_t _begin(self) noexcept nogil:
        """Start the clock, once; now."""
        cdef timespec ts
        cdef int64_t now = now_ns()
        if not self.load.started:
            clock_gettime(CLOCK_REALTIME, &ts)
            self.load.unix_offset_ns = <int64_t>ts.tv_sec * SECOND_NS + ts.tv_nsec - now
            self.load.start_unix_second = ts.tv_sec
            self.load.since_ns = now
            self.load.started = True
        return now

    def connect_error(self):
        """Why a connection ended last, or an empty string."""
        return self.load.last_error[:strlen(self.load.last_error)].decode(errors="replace")

    def histogram(self, uint32_t kind):
        """(count, sum_ns, min_ns, max_ns, sum of squares in s^2, buckets as bytes of uint64)."""
        if kind >= KINDS:
            raise IndexError(kind)
        cdef Histogram* h = &self.load.histograms[kind]
        return (h.count, h.sum_ns, h.min_ns if h.count else 0, h.max_ns, h.sum_squares,
                (<const char*><char*>h.buckets)[:sizeof(h.buckets)])

    def seconds_of(self, uint32_t kind):
        """Rows (unix second of the request's start, count, sum_ns, min_ns, max_ns), empty ones left out."""
        if kind >= KINDS:
            raise IndexError(kind)
        cdef Second* s
        cdef int64_t i
        cdef int64_t last = max(self.load.end_ns, self.load.watch_end_ns) + self.load.unix_offset_ns
        last = last // SECOND_NS - self.load.start_unix_second
        rows = []
        for i in range(min(last + 1, <int64_t>SECONDS_MAX)):
            s = &self.load.seconds[<int64_t>kind * SECONDS_MAX + i]
            if s.count:
                rows.append((self.load.start_unix_second + i, s.count, s.sum_ns, s.min_ns, s.max_ns))
        return rows

    def error_rows(self):
        """Rows (count, gRPC status code, message as bytes, percent-encoded as on the wire)."""
        cdef uint32_t i
        return [(self.load.errors[i].count, self.load.errors[i].code,
                 (<const char*><char*>self.load.errors[i].text)[:self.load.errors[i].text_bytes])
                for i in range(self.load.error_count)]

    def timeline(self):
        """Answers of the load clients, counted by spans of TIMELINE_BIN_NS from start_ns on: uint32s as bytes."""
        cdef int64_t bins = 0
        if self.load.start_ns:
            bins = min((self.load.end_ns - self.load.start_ns) // TIMELINE_BIN_NS + 1, <int64_t>TIMELINE_BINS)
        return (<const char*><char*>self.load.timeline)[:bins * sizeof(uint32_t)]

    def acknowledged(self):
        """Bit n % 8 of byte n // 8: request n was answered well here; empty when this was not to be kept."""
        cdef int64_t size = min((self.load.next_index[0] + 7) // 8, <int64_t>ACKNOWLEDGED_MAX // 8)
        if self.load.acknowledged == NULL:
            return b""
        return (<const char*><char*>self.load.acknowledged)[:size]

    # ---- the loop ------------------------------------------------------------------------------

    cdef void _poll(self, int64_t until) noexcept nogil:
        cdef Load* g = &self.load
        cdef epoll_event events[512]
        cdef int64_t now = now_ns()
        cdef int64_t expirations
        cdef int n, i, timeout_ms
        cdef uint64_t which
        while now < until and not g.aborted:
            if g.started:
                if g.running == 0 and not g.holding or g.streams_lost:
                    return
            elif g.open_conns == g.conn_count:
                return
            timeout_ms = <int>((until - now + 999999) // 1000000)
            if g.idle or g.connecting:
                self._tend(now)
                if timeout_ms > 5:
                    timeout_ms = 5
            n = epoll_wait(g.epoll_fd, events, EVENTS_MAX, timeout_ms)
            for i in range(n):
                which = events[i].data.u64
                if which == TIMER_EVENT:
                    read(g.timer_fd, &expirations, sizeof(expirations))
                    g.timer_armed_ns = 0
                else:
                    self._on_event(&g.conns[which], events[i].events)
            now = now_ns()
            if g.limited_count:
                release_slots(g, now)
            if g.dirty_count:
                self._flush_dirty()
            g.done_count[1] = g.watchers_made
            g.done_count[2] = g.watch_events

    cdef void _tend(self, int64_t now) noexcept nogil:
        """Connect what is due, give up what takes too long."""
        cdef Load* g = &self.load
        cdef uint32_t i
        cdef Conn* c
        for i in range(g.conn_count):
            c = &g.conns[i]
            if c.state == CONN_IDLE:
                if c.retry_ns <= now and g.connecting < CONNECTING_MAX:
                    self._connect(c, now)
            elif c.state in (CONN_CONNECTING, CONN_HANDSHAKE) and now - c.since_ns > g.dial_timeout_ns:
                self._end(c, END_ERRNO, ETIMEDOUT)
        if (g.started and g.open_conns == 0
                and now - g.down_since_ns > g.dial_timeout_ns):
            g.aborted = True

    cdef void _flush_dirty(self) noexcept nogil:
        cdef Load* g = &self.load
        cdef Conn* c
        cdef int reason
        # ending a connection can make it dirty again: its clients take their next requests
        while g.dirty_count:
            g.dirty_count -= 1
            c = &g.conns[g.dirty[g.dirty_count]]
            c.dirty = 0
            reason = self._flush(c)
            if reason < 0:
                self._end(c, reason, errno)

    # ---- connecting and ending -----------------------------------------------------------------

    cdef void _connect(self, Conn* c, int64_t now) noexcept nogil:
        cdef Load* g = &self.load
        cdef Endpoint* e = &g.endpoints[c.endpoint]
        cdef epoll_event event
        cdef int one = 1
        cdef int rc
        c.fd = socket(e.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        g.idle -= 1
        g.connecting += 1
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
        event.data.u64 = <uint64_t>(c - g.conns)
        if epoll_ctl(g.epoll_fd, EPOLL_CTL_ADD, c.fd, &event) < 0:
            self._end(c, END_ERRNO, errno)
            return
        c.wants_write = 1

    cdef int _handshake(self, Conn* c) noexcept nogil:
        """The socket is connected: shake hands where there is TLS, then send the preface."""
        cdef Load* g = &self.load
        cdef Endpoint* e = &g.endpoints[c.endpoint]
        cdef int error = 0
        cdef int rc
        cdef unsigned int length = sizeof(error)
        getsockopt(c.fd, SOL_SOCKET, SO_ERROR, &error, &length)
        if error:
            self._end(c, END_ERRNO, error)
            return 0
        if e.secure:
            if c.tls == NULL:
                c.tls = tls_open(g.tls, c.fd, False, e.tls_name if e.tls_name[0] else NULL)
                if c.tls == NULL:
                    return END_MEMORY
            rc = tls_handshake(c.tls)
            if rc == TLS_FAILED:
                return END_TLS
            if rc != TLS_DONE:
                return self._arm(c, rc == TLS_WANT_WRITE)
            if not speaks_h2(c.tls):
                return END_NO_H2
        if h2_start(g, c) < 0:
            return END_MEMORY
        rc = self._flush(c)
        if rc == 0 and c.tls != NULL and tls_more(c.tls):
            rc = self._receive(c)
        return rc

    cdef void _end(self, Conn* c, int reason, int error) noexcept nogil:
        """Close a connection; its requests under way fail, and it connects again after a pause."""
        cdef Load* g = &self.load
        cdef int64_t now = now_ns()
        cdef bint was_open = c.state == CONN_OPEN or c.state == CONN_DRAINING
        cdef char text[256]
        cdef char buffer[100]
        cdef const char* why
        cdef uint32_t k = <uint32_t>(c - g.conns)
        cdef int32_t i
        cdef uint8_t state
        cdef bint had_stream
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
        elif reason == END_MESSAGE:
            why = "an answer that cannot be read"
        elif reason == END_NO_H2:
            why = "the server speaks TLS, but not HTTP/2 over it"
        elif reason == END_TLS:
            why = tls_error(c.tls)
        else:
            why = "HTTP/2 protocol error"
        if was_open:
            g.open_conns -= 1
            snprintf(text, sizeof(text), "error reading from server: %s", why)
            if g.open_conns == 0:
                g.down_since_ns = now
        else:
            g.connecting -= 1
            snprintf(text, sizeof(text), "connection error: %s", why)
            if g.endpoint_count > 1:
                c.endpoint = (c.endpoint + 1) % g.endpoint_count
        if reason != END_DRAINED:
            snprintf(g.last_error, sizeof(g.last_error), "%s", why)
        tls_close(c.tls)
        c.tls = NULL
        if c.fd >= 0:
            close(c.fd)
        c.fd = -1
        c.state = CONN_IDLE
        g.idle += 1
        g.reconnects += g.started
        if reason == END_DRAINED:
            c.retry_ns = now
        else:
            c.backoff_ns = min(max(2 * c.backoff_ns, <int64_t>20000000), SECOND_NS)
            c.retry_ns = now + c.backoff_ns
        c.wants_write = 0
        h2_stop(c)
        if not g.started:
            return
        # what waits goes first, in order, when the connection never came up: fail it, as gRPC does
        if not was_open:
            c.ready_head = c.ready_tail = -1
        for i in range(<int32_t>g.client_count):
            if g.clients[i].conn != k:
                continue
            state = g.clients[i].state
            had_stream = g.clients[i].stream_id != 0
            g.clients[i].stream_id = 0
            free(g.clients[i].body)
            g.clients[i].body = NULL
            if state == CLIENT_READY and not was_open:
                g.clients[i].state = CLIENT_INFLIGHT
            elif state != CLIENT_INFLIGHT and not (had_stream and g.clients[i].reads == READ_WATCH):
                continue
            fail_request(g, i, GRPC_UNAVAILABLE, text, now)

    # ---- output --------------------------------------------------------------------------------

    cdef int _flush(self, Conn* c) noexcept nogil:
        """Put every frame that may go into the output and hand it to the kernel in one call."""
        cdef Load* g = &self.load
        cdef int rc
        cdef ssize_t sent
        if c.state == CONN_IDLE or c.state == CONN_CONNECTING:
            return 0
        rc = h2_fill(g, c)
        if rc < 0:
            return rc
        while c.out_sent < c.out_bytes:
            sent = self._transport_send(c, c.out + c.out_sent, c.out_bytes - c.out_sent)
            if sent == TLS_AGAIN:
                break
            if sent < 0:
                return END_TLS if c.tls != NULL else END_ERRNO
            c.out_sent += <uint32_t>sent
            if c.out_sent == c.out_bytes:
                c.out_sent = c.out_bytes = 0
            elif c.tls == NULL:
                break  # a short write: the socket is full
        return self._arm(c, c.out_sent < c.out_bytes)

    cdef int _arm(self, Conn* c, bint wants_write) noexcept nogil:
        cdef Load* g = &self.load
        cdef epoll_event event
        if wants_write == c.wants_write:
            return 0
        event.events = EPOLLIN | EPOLLOUT if wants_write else EPOLLIN
        event.data.u64 = <uint64_t>(c - g.conns)
        if epoll_ctl(g.epoll_fd, EPOLL_CTL_MOD, c.fd, &event) < 0:
            return END_ERRNO
        c.wants_write = wants_write
        return 0

    # > 0 bytes, 0 the end (of recv), TLS_AGAIN, -1 failed: errno, or with TLS its error.

    cdef ssize_t _transport_send(self, Conn* c, const uint8_t* data, size_t length) noexcept nogil:
        cdef ssize_t n
        if c.tls != NULL:
            return tls_send(c.tls, data, length)
        n = send(c.fd, data, length, MSG_NOSIGNAL)
        return TLS_AGAIN if n < 0 and (errno == EAGAIN or errno == EINTR) else n

    cdef ssize_t _transport_recv(self, Conn* c, uint8_t* data, size_t length) noexcept nogil:
        cdef ssize_t n
        if c.tls != NULL:
            return tls_recv(c.tls, data, length)
        n = recv(c.fd, data, length, 0)
        return TLS_AGAIN if n < 0 and (errno == EAGAIN or errno == EINTR) else n

    # ---- input ---------------------------------------------------------------------------------

    cdef void _on_event(self, Conn* c, uint32_t events) noexcept nogil:
        cdef Load* g = &self.load
        cdef int reason = 0
        cdef int error
        if c.state == CONN_IDLE:
            return
        if c.state == CONN_CONNECTING:
            if c.tls != NULL or events & (EPOLLOUT | EPOLLERR | EPOLLHUP):
                reason = self._handshake(c)
        else:
            if events & EPOLLOUT:
                mark_dirty(g, c)
            if events & (EPOLLIN | EPOLLERR | EPOLLHUP):
                reason = self._receive(c)
        if reason < 0:
            error = errno
            self._end(c, reason, error)

    cdef int _receive(self, Conn* c) noexcept nogil:
        cdef Load* g = &self.load
        cdef uint8_t* p = g.input
        cdef size_t kept
        cdef ssize_t got
        cdef int rc
        while True:
            kept = c.kept_bytes
            if kept:
                memcpy(p, c.kept, kept)
            got = self._transport_recv(c, p + kept, INPUT_BYTES)
            if got == TLS_AGAIN:
                return 0
            if got < 0:
                return END_TLS if c.tls != NULL else END_ERRNO
            if got == 0:
                return END_EOF
            c.kept_bytes = 0
            rc = h2_receive(g, c, p, kept + <size_t>got, now_ns())
            if rc < 0 or c.tls == NULL or not tls_more(c.tls):
                return rc
