"""The bidi streams of one connection by stream id: open addressing, linear probes, removal by shifting back.

The client chooses the ids, so the hash has a factor that it does not know: ids that all fall on one entry would
make each watch event cost a walk.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from etcdfast._ext.h2types cimport h2_conn, h2_stream

cdef enum:
    BIDIMAP_LEAST = 8      # entries; at most half are in use


cdef inline uint32_t bidi_home(h2_conn *conn, uint32_t stream_id, uint32_t mask) noexcept nogil:
    return (stream_id * conn.server.bidi_factor) >> 8 & mask


cdef inline h2_stream *bidi_find(h2_conn *conn, uint32_t stream_id) noexcept nogil:
    cdef uint32_t at
    cdef h2_stream *s
    if conn.bidi == NULL:
        return NULL
    at = bidi_home(conn, stream_id, conn.bidi_mask)
    while True:
        s = conn.bidi[at]
        if s == NULL or <uint32_t>s.id == stream_id:
            return s
        at = at + 1 & conn.bidi_mask


cdef inline void bidi_place(h2_stream **entries, uint32_t mask, h2_stream *s) noexcept nogil:
    cdef uint32_t at = bidi_home(s.conn, <uint32_t>s.id, mask)
    while entries[at] != NULL:
        at = at + 1 & mask
    entries[at] = s


cdef inline int bidi_add(h2_conn *conn, h2_stream *s) noexcept nogil:
    """0, or -1 when out of memory."""
    cdef uint32_t room = conn.bidi_mask + 1 if conn.bidi != NULL else 0
    cdef uint32_t more, i
    cdef h2_stream **grown
    if 2 * (conn.bidi_count + 1) > room:
        more = 2 * room if room else BIDIMAP_LEAST
        grown = <h2_stream **>calloc(more, sizeof(h2_stream *))
        if grown == NULL:
            return -1
        for i in range(room):
            if conn.bidi[i] != NULL:
                bidi_place(grown, more - 1, conn.bidi[i])
        free(conn.bidi)
        conn.bidi = grown
        conn.bidi_mask = more - 1
    bidi_place(conn.bidi, conn.bidi_mask, s)
    conn.bidi_count += 1
    return 0


cdef inline void bidi_remove(h2_conn *conn, h2_stream *s) noexcept nogil:
    """Precondition: it is in."""
    cdef uint32_t mask = conn.bidi_mask
    cdef uint32_t at = bidi_home(conn, <uint32_t>s.id, mask)
    cdef uint32_t hole, home
    while conn.bidi[at] != s:
        at = at + 1 & mask
    conn.bidi_count -= 1
    if conn.bidi_count == 0:
        free(conn.bidi)
        conn.bidi = NULL
        conn.bidi_mask = 0
        return
    hole = at
    while True:
        at = at + 1 & mask
        if conn.bidi[at] == NULL:
            break
        home = bidi_home(conn, <uint32_t>conn.bidi[at].id, mask)
        # It may fill the hole unless its home lies behind the hole, going round.
        if (at - home & mask) >= (at - hole & mask):
            conn.bidi[hole] = conn.bidi[at]
            hole = at
    conn.bidi[hole] = NULL
