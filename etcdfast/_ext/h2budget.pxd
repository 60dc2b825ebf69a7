"""What connections hold in memory, and which of them holds the most, without ever looking at all of them.

Every connection counts what it makes the process keep. One that holds much stands in the list of its size
class (powers of two), so a connection that holds at least half as much as any other is found at once.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from etcdfast._ext.h2types cimport h2_conn, h2_server, h2_stream

cdef extern from *:
    int count_leading_zeros "__builtin_clzll"(uint64_t) nogil

cdef enum:
    H2_LIGHT_SHIFT = 12        # below 4 KiB a connection is in no list


cdef inline uint32_t weight_class(uint64_t held) noexcept nogil:
    cdef uint64_t units = held >> H2_LIGHT_SHIFT
    return 0 if units == 0 else <uint32_t>(64 - count_leading_zeros(units))


cdef inline void weight_unlink(h2_conn *conn) noexcept nogil:
    cdef h2_server *server = conn.server
    if conn.weight == 0:
        return
    if conn.weight_prev != NULL:
        conn.weight_prev.weight_next = conn.weight_next
    else:
        server.heavy[conn.weight] = conn.weight_next
        if conn.weight_next == NULL:
            server.heavy_bits &= ~(<uint64_t>1 << conn.weight)
    if conn.weight_next != NULL:
        conn.weight_next.weight_prev = conn.weight_prev
    conn.weight = 0


cdef inline void weight_move(h2_conn *conn, uint32_t weight) noexcept nogil:
    cdef h2_server *server = conn.server
    weight_unlink(conn)
    if weight == 0:
        return
    conn.weight = weight
    conn.weight_prev = NULL
    conn.weight_next = server.heavy[weight]
    if conn.weight_next != NULL:
        conn.weight_next.weight_prev = conn
    server.heavy[weight] = conn
    server.heavy_bits |= <uint64_t>1 << weight


cdef inline void hold(h2_conn *conn, int64_t more) noexcept nogil:
    """The connection makes the process keep `more` bytes, or fewer when negative."""
    cdef uint32_t weight
    conn.held_bytes = <uint64_t>(<int64_t>conn.held_bytes + more)
    conn.server.held_bytes = <uint64_t>(<int64_t>conn.server.held_bytes + more)
    weight = weight_class(conn.held_bytes)
    if weight != conn.weight:
        weight_move(conn, weight)


cdef inline h2_conn *heaviest(h2_server *server) noexcept nogil:
    """One that holds at least half of what the heaviest does; NULL when none holds 4 KiB."""
    if server.heavy_bits == 0:
        return NULL
    return server.heavy[63 - count_leading_zeros(server.heavy_bits)]


cdef inline bint over_budget(h2_server *server) noexcept nogil:
    """Too much is held, and somebody holds enough of it to be ended for that."""
    return server.held_bytes > server.budget_bytes and server.heavy_bits != 0


cdef inline void hold_text(h2_stream *s, uint32_t size) noexcept nogil:
    """Text kept for the answer; nghttp2 copies it once more."""
    s.text_held += 2 * size
    hold(s.conn, 2 * <int64_t>size)
