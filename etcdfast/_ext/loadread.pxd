# What becomes of the messages of an answer: read where they lie, or put together first.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy

from etcdfast._ext.loadclients cimport settle
from etcdfast._ext.loadstats cimport count_error, record_latency
from etcdfast._ext.loadtypes cimport (
    CLIENT_INFLIGHT, CONTENT_BYTES_MAX, END_MEMORY, END_MESSAGE, FAULT_EXPIRED, GRPC_NOT_FOUND, READ_RENEWAL,
    READ_STM, READ_WATCH, Client, Load,
)
from etcdfast._ext.loadstm cimport stm_message
from etcdfast._ext.loadwatch cimport watch_message
from etcdfast._ext.wire cimport WIRE_MORE, wire_cursor, wire_field, wire_next


cdef inline int keep_content(Client* client, const uint8_t* p, uint32_t n, uint32_t total) noexcept nogil:
    """Append a piece of a message of `total` bytes. 0, or END_*."""
    cdef uint8_t* grown
    if total > CONTENT_BYTES_MAX:
        return END_MESSAGE
    if client.content_capacity < total:
        grown = <uint8_t*>realloc(client.content, total)
        if grown == NULL:
            return END_MEMORY
        client.content = grown
        client.content_capacity = total
    memcpy(client.content + client.content_bytes, p, n)
    client.content_bytes += n
    return 0


cdef inline int renewal_message(Load* g, int32_t i, const uint8_t* p, size_t n, int64_t now) noexcept nogil:
    """One LeaseKeepAliveResponse: 1 header, 2 ID, 3 TTL; TTL 0 says that there is no such lease."""
    cdef Client* client = &g.clients[i]
    cdef wire_cursor at
    cdef wire_field f
    cdef int64_t ttl = 0
    cdef int rc
    at.pos = p
    at.end = p + n
    while True:
        rc = wire_next(&at, &f)
        if rc != WIRE_MORE:
            break
        if f.number == 3:
            ttl = <int64_t>f.value
    if rc < 0:
        return END_MESSAGE
    if not client.held:
        if ttl <= 0:
            client.fault = FAULT_EXPIRED
        return 0
    if client.state != CLIENT_INFLIGHT:
        return END_MESSAGE
    if ttl <= 0:
        count_error(g, GRPC_NOT_FOUND, b"etcdserver: requested lease not found", 37)
    else:
        record_latency(g, client, now)
    settle(g, i, now)
    return 0


cdef inline int on_message(Load* g, int32_t i, const uint8_t* p, size_t n, int64_t now) noexcept nogil:
    """A whole message of client i's answer; 0, 1 (see stm_message), or END_* when the connection cannot go on."""
    if g.clients[i].reads == READ_WATCH:
        return watch_message(g, i, p, n, now)
    if g.clients[i].reads == READ_RENEWAL:
        return renewal_message(g, i, p, n, now)
    if g.clients[i].reads == READ_STM:
        return stm_message(g, &g.clients[i], p, n)
    return 0
