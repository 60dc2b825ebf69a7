"""Python's side of HTTP that is not gRPC: see fronthttp.pxd and fronthttp.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove

from etcdfast._ext.bidimap cimport bidi_add
from etcdfast._ext.frontconn cimport (
    CONN_HTTP1, conn_drop, conn_finish, conn_read_on, conn_say, conn_t, loop_t, told_t,
)
from etcdfast._ext.frontloop cimport FrontLoop
from etcdfast._ext.grpcwire cimport be32
from etcdfast._ext.h2budget cimport hold
from etcdfast._ext.h2request cimport h2_end_request, h2_take_data
from etcdfast._ext.h2stream cimport (
    h2_copy_out, h2_drop_request, h2_drop_stream, h2_flow, h2_new_stream, h2_push_copy, h2_respond,
)
from etcdfast._ext.h2token cimport token_note
from etcdfast._ext.h2types cimport *
from etcdfast._ext.http2 cimport h2_find
from etcdfast._ext.netsys cimport clock_ns
from etcdfast._ext.nghttp2 cimport *

cdef enum:
    ARRIVALS_PER_TAKE = 64      # Python needs some 30 us for each; gRPC waits meanwhile
    ANSWERS_PER_TAKE = 256
    UNSENT_BYTES_MAX = 262144   # of an HTTP/1.1 connection; beyond it its call waits
    HEADERS_MAX = 32

ARRIVED = TOLD_ARRIVED
GONE = TOLD_GONE
WRITABLE = TOLD_WRITABLE
RESET = TOLD_RESET
ANSWER = 4
REQUEST = 5
BODY = 6


cdef inline uint64_t handle_of(conn_t *conn) noexcept nogil:
    return <uint64_t>conn.generation << 32 | conn.slot


cdef class HttpFace:
    def __init__(self, FrontLoop loop not None):
        self.kept = loop
        self.loop = loop.loop

    cdef conn_t *find(self, uint64_t handle) noexcept:
        cdef uint32_t slot = <uint32_t>handle
        cdef conn_t *conn
        if slot >= self.loop.conn_room:
            return NULL
        conn = self.loop.conns[slot]
        if conn == NULL or not conn.used or conn.generation != <uint32_t>(handle >> 32) or conn.h2 == NULL:
            return NULL
        return conn

    cdef h2_stream *find_stream(self, uint64_t handle, uint32_t stream) noexcept:
        cdef conn_t *conn = self.find(handle)
        if conn == NULL or (stream & 1 and conn.h2.session == NULL):
            return NULL
        return h2_find(conn.h2, stream)

    # ---- what has come

    def take(self):
        cdef loop_t *loop = self.loop
        cdef uint32_t done = 0
        cdef uint32_t arrivals = 0
        cdef uint32_t answers = 0
        cdef uint64_t handle
        cdef told_t *t
        cdef conn_t *conn
        cdef h2_stream *s
        cdef list events = []
        loop.server.now_ns = clock_ns()
        loop.python_due = False
        while done < loop.told_count and arrivals < ARRIVALS_PER_TAKE:
            t = &loop.told[done]
            done += 1
            handle = <uint64_t>t.generation << 32 | t.slot
            if t.kind == TOLD_ARRIVED:
                found = self.take_arrived(t)
                if found is not None:
                    events.append((ARRIVED, handle, 0, found))
                    arrivals += 1
                continue
            if t.kind == TOLD_WRITABLE:
                conn = self.find(handle)
                if conn == NULL:
                    continue
                s = conn.h2.streams
                while s != NULL:
                    if s.out_bytes or s.out_ended:
                        told_add(s)
                    s = s.list_next
            events.append((t.kind, handle, t.stream, None))
        loop.told_count -= done
        memmove(loop.told, loop.told + done, loop.told_count * sizeof(told_t))
        while loop.server.told != NULL and answers < ANSWERS_PER_TAKE:
            s = loop.server.told
            told_remove(s)
            if s.flags & STREAM_CALL:
                found = self.take_call(s)
                if found is not None:
                    events.append(found)
                    answers += 1
            else:
                self.take_plain(s, events)
                answers += 1
        return events

    cdef object take_arrived(self, told_t *t):
        cdef conn_t *conn = self.find(<uint64_t>t.generation << 32 | t.slot)
        if conn == NULL or conn.state != CONN_HTTP1:
            return None
        data = PyBytes_FromStringAndSize(<char *>conn.arrived, conn.arrived_size)
        hold(conn.h2, -<int64_t>conn.arrived_room)
        free(conn.arrived)
        conn.arrived = NULL
        conn.arrived_size = conn.arrived_room = 0
        conn.arrived_told = False
        conn_read_on(self.loop, conn)
        return data

    cdef object take_call(self, h2_stream *s):
        """Its answer so far; None while what asked for it is not taken by its client."""
        cdef conn_t *conn = <conn_t *>s.conn.owner
        cdef h2_stream *plain
        cdef uint64_t size = s.out_bytes
        cdef int code = -1
        cdef uint32_t stream = <uint32_t>s.id
        if s.conn.session == NULL:
            if conn.pending_size > UNSENT_BYTES_MAX:
                return None
        else:
            plain = h2_find(s.conn, stream - 1)
            if plain == NULL or plain.out_bytes > H2_UNSENT_BYTES_MAX:
                return None
        frames = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        if size:
            h2_copy_out(s, <uint8_t *>PyBytes_AS_STRING(frames), size)
        text = None
        if s.out_ended:
            code = s.code
            if s.text != NULL:
                text = PyBytes_FromStringAndSize(s.text, s.text_size)
            h2_drop_stream(s)
        return (ANSWER, handle_of(conn), stream, frames, code, text)

    cdef take_plain(self, h2_stream *s, list events):
        cdef conn_t *conn = <conn_t *>s.conn.owner
        cdef const uint8_t *at = s.buf
        cdef const uint8_t *end = s.buf + s.whole
        cdef uint32_t name_size, size
        cdef int32_t left
        cdef bint ended = (s.flags & STREAM_REQUEST_ENDED) != 0
        cdef uint32_t body = s.have - s.whole
        cdef uint64_t handle = handle_of(conn)
        if s.flags & STREAM_PLAIN_HEAD:
            s.flags &= ~<uint32_t>STREAM_PLAIN_HEAD
            headers = []
            while at < end:
                name_size = be32(at)
                size = be32(at + 4)
                headers.append((PyBytes_FromStringAndSize(<const char *>at + 8, name_size),
                                PyBytes_FromStringAndSize(<const char *>at + 8 + name_size, size)))
                at += 8 + name_size + size
            events.append((REQUEST, handle, <uint32_t>s.id, headers, ended and body == 0))
            if ended and body == 0:
                h2_drop_request(s)
                return
            if body == 0:
                h2_drop_request(s)
                return
        events.append((BODY, handle, <uint32_t>s.id, PyBytes_FromStringAndSize(<const char *>s.buf + s.whole, body), ended))
        h2_drop_request(s)
        if s.window_used >= H2_WINDOW_STEP and not ended:
            s.window_used = 0
            left = nghttp2_session_get_stream_local_window_size(s.conn.session, s.id)
            if 0 <= left < H2_STREAM_WINDOW:
                if nghttp2_submit_window_update(s.conn.session, NGHTTP2_FLAG_NONE, s.id, H2_STREAM_WINDOW - left) != 0:
                    set_fatal(s.conn, NGHTTP2_INTERNAL_ERROR, b"out_of_memory")
                mark_dirty(s.conn)

    # ---- HTTP/1.1 connections

    def say(self, uint64_t handle, bytes data not None):
        cdef conn_t *conn = self.find(handle)
        if conn == NULL or conn.state != CONN_HTTP1:
            return -1
        conn_say(self.loop, conn, <const uint8_t *>PyBytes_AS_STRING(data), <uint32_t>PyBytes_GET_SIZE(data))
        conn = self.find(handle)
        return -1 if conn == NULL else conn.pending_size

    def finish(self, uint64_t handle):
        cdef conn_t *conn = self.find(handle)
        if conn != NULL and conn.state == CONN_HTTP1:
            conn_finish(self.loop, conn)

    def drop(self, uint64_t handle):
        cdef conn_t *conn = self.find(handle)
        if conn != NULL:
            conn_drop(self.loop, conn)

    def read(self, uint64_t handle, bint on):
        cdef conn_t *conn = self.find(handle)
        if conn != NULL and conn.state == CONN_HTTP1:
            conn.read_off = not on
            conn_read_on(self.loop, conn)

    def hold(self, uint64_t handle, int64_t more):
        cdef conn_t *conn = self.find(handle)
        if conn != NULL:
            hold(conn.h2, more)

    def fileno(self, uint64_t handle):
        cdef conn_t *conn = self.find(handle)
        return -1 if conn == NULL else conn.fd

    def listener(self, uint64_t handle):
        cdef conn_t *conn = self.find(handle)
        return -1 if conn == NULL else conn.listener

    def cert_name(self, uint64_t handle):
        cdef conn_t *conn = self.find(handle)
        if conn == NULL or conn.cert_name == NULL:
            return None
        return PyBytes_FromStringAndSize(conn.cert_name, conn.cert_name_size)

    def secure(self, uint64_t handle):
        cdef conn_t *conn = self.find(handle)
        return conn != NULL and conn.tls != NULL

    # ---- answers to HTTP/2 requests

    def respond(self, uint64_t handle, uint32_t stream, headers, bint end):
        cdef nghttp2_nv nv[HEADERS_MAX]
        cdef h2_stream *s = self.find_stream(handle, stream)
        cdef size_t n = 0
        if s == NULL or not s.flags & STREAM_PLAIN or s.flags & STREAM_STARTED:
            return False
        if len(headers) > HEADERS_MAX:
            raise ValueError("too many headers")
        for name, value in headers:
            nv[n].name = <uint8_t *>PyBytes_AS_STRING(name)
            nv[n].namelen = PyBytes_GET_SIZE(name)
            nv[n].value = <uint8_t *>PyBytes_AS_STRING(value)
            nv[n].valuelen = PyBytes_GET_SIZE(value)
            nv[n].flags = NGHTTP2_NV_FLAG_NONE
            n += 1
        return h2_respond(s, nv, n, end) == 0

    def body(self, uint64_t handle, uint32_t stream, bytes data not None, bint end):
        cdef h2_stream *s = self.find_stream(handle, stream)
        if s == NULL or not s.flags & STREAM_PLAIN or not s.flags & STREAM_STARTED or s.out_ended:
            return False
        if PyBytes_GET_SIZE(data):
            h2_push_copy(s, <const uint8_t *>PyBytes_AS_STRING(data), <uint32_t>PyBytes_GET_SIZE(data))
        s.out_ended = end
        h2_flow(s)
        return True

    def reset(self, uint64_t handle, uint32_t stream):
        cdef h2_stream *s = self.find_stream(handle, stream)
        if s != NULL and s.flags & STREAM_PLAIN:
            nghttp2_submit_rst_stream(s.conn.session, NGHTTP2_FLAG_NONE, s.id, NGHTTP2_CANCEL)
            mark_dirty(s.conn)

    # ---- calls

    def call(self, uint64_t handle, uint32_t stream, uint32_t method, framed, bint ends, uint64_t timeout_ns=0,
             bint require_leader=False, bytes token not None=b""):
        cdef conn_t *conn = self.find(handle)
        cdef h2_server *server = &self.loop.server
        cdef h2_stream *s
        if conn == NULL or stream & 1 or method > 63 or self.loop.route[method] == 0:
            return False
        s = h2_new_stream(conn.h2, <int32_t>stream)
        if s == NULL:
            return False
        s.flags |= STREAM_CALL
        if bidi_add(conn.h2, s) < 0:
            s.flags &= ~<uint32_t>STREAM_CALL
            h2_drop_stream(s)
            return False
        s.method = <uint8_t>method
        s.timeout_ns = timeout_ns
        if token:
            token_note(conn.h2, s, <const uint8_t *>PyBytes_AS_STRING(token), <size_t>PyBytes_GET_SIZE(token))
        if require_leader:
            s.flags &= ~<uint32_t>STREAM_NO_LEADER_OK
        server.counters.started[method] += 1
        if server.bidi_methods >> method & 1:
            s.flags |= STREAM_BIDI
            if server.counted_methods >> method & 1:
                s.flags |= STREAM_CREDITED | STREAM_COUNTED
        s.flags |= STREAM_OPENED
        server.on_open(conn.h2, s)
        self.message(handle, stream, framed, ends)
        return True

    def message(self, uint64_t handle, uint32_t stream, framed, bint ends):
        cdef h2_stream *s = self.find_stream(handle, stream)
        if s == NULL or s.flags & (STREAM_ANSWERED | STREAM_REQUEST_ENDED):
            return
        if framed is not None:
            h2_take_data(s.conn, s, <const uint8_t *>PyBytes_AS_STRING(framed), PyBytes_GET_SIZE(framed))
        if ends:
            h2_end_request(s.conn, s)

    def cancel(self, uint64_t handle, uint32_t stream):
        cdef h2_stream *s = self.find_stream(handle, stream)
        if s != NULL and s.flags & STREAM_CALL:
            h2_drop_stream(s)
