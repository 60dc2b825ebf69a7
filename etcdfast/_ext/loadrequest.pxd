# The bytes of a request: its header block, and the message of its template with the holes filled.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from etcdfast._ext.loadtypes cimport (
    TABLE_FILLED, TABLE_RESIZED, TABLE_UNUSABLE, Client, Conn, Endpoint, Load, Method, Template, mix64,
)


cdef enum:
    LEASE_ID_BYTES = 9           # varint of 2**56 .. 2**63 - 1
    TABLE_BYTES_OURS = 4096      # what we use of a peer's table, however large it is (RFC 9113 6.5.2: the default)
    STAMP_BYTES = 8


cdef inline uint32_t method_of(Load* g, Client* client) noexcept nogil:
    return client.stm.method if client.stm != NULL else g.templates[client.kind].method


cdef inline uint32_t message_bytes_of(Load* g, Client* client) noexcept nogil:
    return client.stm.request_bytes if client.stm != NULL else g.templates[client.kind].message_bytes


cdef inline uint32_t header_block_bound(Load* g, Client* client, Endpoint* e) noexcept nogil:
    """Bytes that header_block takes at most."""
    return 16 + g.methods[method_of(g, client)].path_bytes + max(e.entering_bytes, e.plain_bytes)


cdef inline uint8_t* header_block(Load* g, Conn* c, uint32_t method, uint8_t* p) noexcept nogil:
    """Write a request's header block; returns its end. The peer decodes blocks in the order of these calls.

    The first block of a connection enters every header into the peer's table, one that brings a new
    path enters that, all others are one byte a header. Entry number n of `table_entries` has the
    index 62 + table_entries - n; the first path is entry 1, the other headers follow it.
    """
    cdef Endpoint* e = &g.endpoints[c.endpoint]
    cdef Method* m = &g.methods[method]
    cdef uint32_t limit, j
    cdef bint resized = c.table_state == TABLE_RESIZED
    if resized:
        # RFC 7541 4.2: the size in use, before anything else; shrinking may have emptied the table
        limit = min(c.peer_table_bytes, <uint32_t>TABLE_BYTES_OURS)
        p[0] = 0x20
        p += 1
        if limit >= 31:
            p[0] = 0x3f
            limit -= 31
            p += 1
            while limit >= 0x80:
                p[0] = <uint8_t>(limit | 0x80)
                limit >>= 7
                p += 1
            p[0] = <uint8_t>limit
            p += 1
        elif limit:
            p[0] = <uint8_t>(0x20 | limit)
            p += 1
    if c.table_state != TABLE_FILLED:
        c.table_entries = 0
        memset(c.path_entry, 0, sizeof(c.path_entry))
        if min(c.peer_table_bytes, <uint32_t>TABLE_BYTES_OURS) < e.table_bytes:
            c.table_state = TABLE_UNUSABLE
    # :method POST and :scheme http of the static table
    p[0] = 0x83
    p[1] = 0x86
    p += 2
    if c.table_state == TABLE_UNUSABLE:
        p[0] = 0x00
        memcpy(p + 1, m.path, m.path_bytes)
        p += 1 + m.path_bytes
        memcpy(p, e.plain, e.plain_bytes)
        return p + e.plain_bytes
    if c.path_entry[method]:
        p[0] = <uint8_t>(0x80 | (62 + c.table_entries - c.path_entry[method]))
        p += 1
    else:
        c.table_entries += 1
        c.path_entry[method] = c.table_entries
        p[0] = 0x40
        memcpy(p + 1, m.path, m.path_bytes)
        p += 1 + m.path_bytes
    if c.table_state != TABLE_FILLED:
        c.table_state = TABLE_FILLED
        c.table_entries += e.headers
        memcpy(p, e.entering, e.entering_bytes)
        return p + e.entering_bytes
    for j in range(e.headers):
        p[j] = <uint8_t>(0x80 | (62 + c.table_entries - (2 + j)))
    return p + e.headers


cdef inline void fill_key(Load* g, uint8_t* p, uint64_t number) noexcept nogil:
    """The key of etcd's tool: the number as a zigzag varint, zeros after it."""
    cdef uint32_t n = 0
    memset(p, 0, g.key_bytes)
    number <<= 1
    while number >= 0x80 and n < g.key_bytes:
        p[n] = <uint8_t>(number | 0x80)
        number >>= 7
        n += 1
    if n < g.key_bytes:
        p[n] = <uint8_t>number


cdef inline void fill_lease(uint8_t* p, int64_t lease) noexcept nogil:
    cdef uint32_t n
    for n in range(LEASE_ID_BYTES - 1):
        p[n] = <uint8_t>(lease | 0x80)
        lease >>= 7
    p[LEASE_ID_BYTES - 1] = <uint8_t>lease


cdef inline void fill_message(Load* g, int64_t client_index, Client* client, uint8_t* message) noexcept nogil:
    """The message of a client's request; depends on the request's number, the seed and the clock alone."""
    cdef Template* t = &g.templates[client.kind]
    cdef uint64_t r, number
    cdef int64_t lease
    cdef uint32_t k
    if client.stm != NULL:
        memcpy(message, client.stm.request, client.stm.request_bytes)
        return
    memcpy(message, t.message, t.message_bytes)
    if t.lease_at:
        lease = g.lease_base + (client_index if t.lease_of_client else client.index)
        fill_lease(message + t.lease_at, lease)
    if t.ttl_at:
        # rounded up, so that none ends before the moment they share
        lease = (g.ttl_end_ns - client.start_ns + 999999999) // 1000000000
        message[t.ttl_at] = <uint8_t>max(min(lease, <int64_t>127), <int64_t>1)
    if t.keys == 0 and t.values == 0:
        return
    r = mix64(g.seed + <uint64_t>client.index)
    for k in range(t.keys):
        if g.key_numbers != NULL:
            number = g.key_numbers[(<uint64_t>client.index * t.keys + k) % g.key_number_count]
        else:
            number = <uint64_t>client.index * t.keys + k if g.sequential else mix64(r + k)
            number = number % g.key_space
        fill_key(g, message + t.key_at[k], number)
    for k in range(t.values):
        # values that do not compress, or the stores would be compared at something else
        memcpy(message + t.value_at[k], g.value_pool + ((r >> 13) + 4099 * <uint64_t>k) % 65536, g.value_bytes)
        if g.stamped:
            memcpy(message + t.value_at[k], &client.start_ns, STAMP_BYTES)
