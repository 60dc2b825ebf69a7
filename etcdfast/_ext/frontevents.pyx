"""EVENTS records to their watchers: see frontevents.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from etcdfast._ext.bidimap cimport bidi_find
from etcdfast._ext.frontconn cimport conn_t, loop_t
from etcdfast._ext.grpcwire cimport GRPC_PREFIX_BYTES
from etcdfast._ext.h2pen cimport put_event_head
from etcdfast._ext.h2stream cimport h2_flow, h2_lend_event, h2_pen_open
from etcdfast._ext.meters cimport M_CLIENT_SENT_BYTES, meter_count
from etcdfast._ext.h2types cimport STREAM_ANSWERED, STREAM_DEFERRED, STREAM_STARTED, h2_stream, mark_dirty
from etcdfast._ext.rpcids cimport RPC_WATCH
from etcdfast._ext.ring cimport ipc_events, ipc_record, ipc_target, record_payload, record_payload_len

cdef enum:
    WATCH_ID_BYTES_MAX = 11


cdef inline void pen_event(h2_stream *s, const uint8_t *head, uint32_t head_size, int64_t watch_id,
                           const uint8_t *events, uint32_t events_size) noexcept nogil:
    """One WatchResponse behind what the stream has to send."""
    cdef uint32_t most = GRPC_PREFIX_BYTES + head_size + WATCH_ID_BYTES_MAX + events_size
    cdef uint8_t *start = s.pen
    cdef uint8_t *at
    if s.pen_end - start < most:
        start = h2_pen_open(s, most)
        if start == NULL:
            return
    at = put_event_head(start, head, head_size, watch_id, events_size)
    memcpy(at, events, events_size)
    at += events_size
    s.pen = at
    s.out_bytes += <uint64_t>(at - start)
    if s.flags & (STREAM_STARTED | STREAM_DEFERRED) == STREAM_STARTED:
        mark_dirty(s.conn)
    else:
        h2_flow(s)


cdef uint64_t events_deliver(loop_t *loop, ipc_record *r) noexcept nogil:
    cdef const uint8_t *payload = <const uint8_t *>record_payload(r)
    cdef uint64_t size = record_payload_len(r)
    cdef const ipc_events *what = <const ipc_events *>payload
    cdef const ipc_target *t = <const ipc_target *>(payload + sizeof(ipc_events))
    cdef const ipc_target *end
    cdef const uint8_t *head
    cdef const uint8_t *events
    cdef uint64_t before
    cdef uint64_t made = 0
    cdef uint64_t penned = 0
    cdef uint64_t penned_bytes = 0
    cdef uint32_t events_size
    cdef uint32_t head_size
    cdef conn_t *conn = NULL
    cdef h2_stream *s = NULL
    if size < sizeof(ipc_events) or what.targets > EVENTS_TARGETS_MAX or what.head_bytes > EVENTS_HEAD_BYTES_MAX:
        return 0
    before = sizeof(ipc_events) + <uint64_t>what.targets * sizeof(ipc_target) + what.head_bytes
    if size < before:
        return 0
    end = t + what.targets
    head = <const uint8_t *>end
    head_size = what.head_bytes
    events = payload + before
    events_size = <uint32_t>(size - before)
    while t < end:
        # Watchers of one stream tend to follow each other.
        if conn == NULL or conn.slot != t.slot or conn.generation != t.generation:
            s = NULL
            conn = loop.conns[t.slot] if t.slot < loop.conn_room else NULL
            if conn != NULL and (conn.generation != t.generation or conn.h2 == NULL):
                conn = NULL
        if conn != NULL:
            if s == NULL or <uint32_t>s.id != t.stream:
                s = bidi_find(conn.h2, t.stream)
            if s != NULL and not s.flags & STREAM_ANSWERED:
                if events_size < EVENTS_LENT_BYTES:
                    before = s.out_bytes
                    pen_event(s, head, head_size, t.watch_id, events, events_size)
                    penned += 1
                    penned_bytes += s.out_bytes - before
                else:
                    h2_lend_event(s, head, head_size, t.watch_id, events, events_size)
                made += events_size
        t += 1
    loop.server.counters.sent[RPC_WATCH] += penned
    if penned_bytes > penned * GRPC_PREFIX_BYTES:
        meter_count(M_CLIENT_SENT_BYTES, penned_bytes - penned * GRPC_PREFIX_BYTES)
    return made
