# WatchResponses as they come: watchers confirmed, events counted, their order checked, their age recorded.
#
# No object and no copy per event. Field numbers: etcdserverpb.WatchResponse, mvccpb.Event, mvccpb.KeyValue.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset, strlen

from etcdfast._ext.loadclients cimport push_ready
from etcdfast._ext.loadstats cimport count_error, record_latency, record_span
from etcdfast._ext.loadtypes cimport (
    CLIENT_DONE, CLIENT_INFLIGHT, END_MESSAGE, GRPC_CANCELLED, GRPC_INTERNAL, HEAD_BYTES_MAX, KIND_EVENT_ANSWERED,
    KIND_EVENT_SENT, Client, Load, Watcher,
)
from etcdfast._ext.wire cimport WIRE_BYTES, WIRE_MORE, wire_cursor, wire_field, wire_next, wire_varint, wire_varint_size


cdef enum:
    TAG_EVENTS = 0x5a            # field 11, bytes


ctypedef struct WatchHead:
    # Everything of a WatchResponse but its events.
    int64_t revision             # of the header
    int64_t watch_id
    int64_t compact_revision
    uint8_t created
    uint8_t canceled
    uint8_t fragment
    const uint8_t* reason
    uint64_t reason_bytes
    const uint8_t* events        # where the first one begins; NULL: none


cdef inline int header_revision(Load* g, const uint8_t* p, uint64_t n, int64_t* revision) noexcept nogil:
    """Revision (field 3) of a ResponseHeader. 0, or END_MESSAGE.

    What stands before the revision, the ids of cluster and member, is the same in every answer of a
    member, so it is compared with that of the last answer instead of being read.
    """
    cdef wire_cursor at
    cdef wire_field f
    cdef uint64_t value
    cdef int rc
    at.pos = p
    at.end = p + n
    if g.head_bytes and n > g.head_bytes and memcmp(p, g.head, g.head_bytes) == 0:
        at.pos += g.head_bytes
        if wire_varint(&at, &value) < 0:
            return END_MESSAGE
        revision[0] = <int64_t>value
        return 0
    while True:
        rc = wire_next(&at, &f)
        if rc != WIRE_MORE:
            return rc if rc == 0 else END_MESSAGE
        if f.number == 3:
            revision[0] = <int64_t>f.value
            g.head_bytes = <uint32_t>(at.pos - p) - wire_varint_size(f.value)
            if g.head_bytes > HEAD_BYTES_MAX:
                g.head_bytes = 0
            memcpy(g.head, p, g.head_bytes)


cdef inline int watch_head(Load* g, WatchHead* h, const uint8_t* p, size_t n) noexcept nogil:
    """0, or END_MESSAGE when it is no WatchResponse. Events have the highest number and so come last."""
    cdef wire_cursor at
    cdef wire_field f
    cdef const uint8_t* start
    cdef int rc
    memset(h, 0, sizeof(WatchHead))
    at.pos = p
    at.end = p + n
    while True:
        start = at.pos
        if start < at.end and start[0] == TAG_EVENTS:
            h.events = start
            return 0
        rc = wire_next(&at, &f)
        if rc != WIRE_MORE:
            return rc if rc == 0 else END_MESSAGE
        if f.number == 1 and f.type == WIRE_BYTES:
            if header_revision(g, f.data, f.size, &h.revision) < 0:
                return END_MESSAGE
        elif f.number == 2:
            h.watch_id = <int64_t>f.value
        elif f.number == 3:
            h.created = f.value != 0
        elif f.number == 4:
            h.canceled = f.value != 0
        elif f.number == 5:
            h.compact_revision = <int64_t>f.value
        elif f.number == 6:
            h.reason = f.data
            h.reason_bytes = f.size
        elif f.number == 7:
            h.fragment = f.value != 0


cdef inline int key_value(const uint8_t* p, uint64_t n, bint want_value, int64_t* revision,
                          const uint8_t** value, uint64_t* value_bytes) noexcept nogil:
    """mod_revision (field 3) of a KeyValue, and its value (field 5) if wanted. 0, or END_MESSAGE.

    The fields come in order (1 key, 2 create_revision, 3 mod_revision, 4 version, 5 value), so without
    a wish for the value the rest is not looked at.
    """
    cdef wire_cursor at
    cdef wire_field f
    cdef int rc
    at.pos = p
    at.end = p + n
    # a short key, as nearly all are
    if n > 2 and p[0] == 0x0a and p[1] < 0x80 and n > <uint64_t>p[1] + 2:
        at.pos += <uint64_t>p[1] + 2
    while True:
        rc = wire_next(&at, &f)
        if rc != WIRE_MORE:
            return rc if rc == 0 else END_MESSAGE
        if f.number == 3:
            revision[0] = <int64_t>f.value
            if not want_value:
                return 0
        elif f.number == 5:
            value[0] = f.data
            value_bytes[0] = f.size
            return 0


cdef inline int watch_event(Load* g, const uint8_t* p, uint64_t n, int64_t* revision, const uint8_t** value,
                            uint64_t* value_bytes) noexcept nogil:
    """mod_revision and value of one Event (1 type, 2 kv, 3 prev_kv). 0, or END_MESSAGE."""
    cdef wire_cursor at
    cdef wire_field f
    cdef int rc
    revision[0] = 0
    value_bytes[0] = 0
    at.pos = p
    at.end = p + n
    while True:
        rc = wire_next(&at, &f)
        if rc != WIRE_MORE:
            return rc if rc == 0 else END_MESSAGE
        if f.number == 2 and f.type == WIRE_BYTES:
            return key_value(f.data, f.size, g.stamped, revision, value, value_bytes)


cdef inline void event_latency(Load* g, Watcher* w, const uint8_t* value, uint64_t value_bytes,
                               int64_t now) noexcept nogil:
    cdef int64_t sent, done
    if g.latency_by_number:
        if <int64_t>w.events >= g.total:
            return
        sent = g.put_sent_ns[w.events]
        done = g.put_done_ns[w.events]
        if sent:
            record_span(g, KIND_EVENT_SENT, sent, now)
            record_span(g, KIND_EVENT_ANSWERED, done if done else now, now)
    elif g.stamped and value_bytes >= 8:
        memcpy(&sent, value, 8)
        # from this run, or a value that someone else has put
        if g.since_ns <= sent <= now:
            record_span(g, KIND_EVENT_SENT, sent, now)


cdef inline void complain(Load* g, const char* text) noexcept nogil:
    count_error(g, GRPC_INTERNAL, <const uint8_t*>text, strlen(text))


cdef inline int watch_events(Load* g, Watcher* w, WatchHead* h, const uint8_t* end, int64_t now) noexcept nogil:
    """Every event of a response. etcd's guarantees: ordered, unique, and whole revisions in one response."""
    cdef wire_cursor at
    cdef wire_field f
    cdef int64_t revision
    cdef int64_t least = w.revision if w.in_fragment else w.revision + 1
    cdef const uint8_t* value = NULL
    cdef uint64_t value_bytes
    cdef int rc
    at.pos = h.events
    at.end = end
    while True:
        rc = wire_next(&at, &f)
        if rc != WIRE_MORE:
            break
        if f.number != 11 or f.type != WIRE_BYTES:
            continue
        if watch_event(g, f.data, f.size, &revision, &value, &value_bytes) < 0:
            return END_MESSAGE
        if revision < least:
            complain(g, "an event came again, or out of order")
        least = revision
        event_latency(g, w, value, value_bytes, now)
        w.events += 1
        g.watch_events += 1
    if rc < 0:
        return END_MESSAGE
    w.revision = least
    w.in_fragment = h.fragment
    if h.revision < least:
        complain(g, "a response brought an event newer than its own revision")
    g.watch_end_ns = now
    return 0


cdef inline int refused(Load* g, Client* client, WatchHead* h) noexcept nogil:
    """A watcher was not made, or has ended: the run cannot count what it misses."""
    cdef char text[160]
    cdef int n
    if h.reason_bytes:
        n = snprintf(text, sizeof(text), "watcher canceled: %.*s", <int>min(h.reason_bytes, <uint64_t>100),
                     <const char*>h.reason)
    elif h.compact_revision:
        n = snprintf(text, sizeof(text), "watcher canceled: compacted up to revision %lld",
                     <long long>h.compact_revision)
    else:
        n = snprintf(text, sizeof(text), "watcher canceled")
    count_error(g, GRPC_CANCELLED, <const uint8_t*>text, n)
    g.streams_lost += 1
    if client.state != CLIENT_DONE:
        client.state = CLIENT_DONE
        g.running -= 1
    return 0


cdef inline int watch_message(Load* g, int32_t i, const uint8_t* p, size_t n, int64_t now) noexcept nogil:
    """One WatchResponse of stream client i. 0, or END_MESSAGE."""
    cdef Client* client = &g.clients[i]
    cdef WatchHead h
    if watch_head(g, &h, p, n) < 0:
        return END_MESSAGE
    if h.canceled or h.watch_id < 0 and h.created:
        return refused(g, client, &h)
    if h.created:
        # etcd counts watch ids up from 0 on each stream
        if client.state != CLIENT_INFLIGHT or h.watch_id != client.created:
            return END_MESSAGE
        record_latency(g, client, now)
        client.created += 1
        g.watchers_made += 1
        g.watch_made_ns = now
        if client.created < g.watchers_each:
            client.index += 1
            client.start_ns = now
            push_ready(g, i)
        else:
            client.state = CLIENT_DONE
            g.running -= 1
    if h.events == NULL:
        return 0
    if h.watch_id < 0 or h.watch_id >= client.created:
        return END_MESSAGE
    if g.watch_start_ns == 0:
        g.watch_start_ns = now
    g.watch_responses += 1
    g.watch_bytes += <int64_t>n
    return watch_events(g, &client.watchers[h.watch_id], &h, p + n, now)
