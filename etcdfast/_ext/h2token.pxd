"""Auth tokens of calls: kept per connection, because a client sends the same one with every call.

A token that equals the connection's last one costs a comparison of some 40 bytes; what the frontend has found out
about it (frontauth.pxd) stays with it. Nothing here knows whether auth is on.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from etcdfast._ext.h2budget cimport hold
from etcdfast._ext.h2types cimport h2_conn, h2_stream
from etcdfast._ext.tokenpage cimport token_found

cdef enum:
    H2_TOKEN_BYTES_MAX = 8192   # of a token; a longer one is none

# What is known of a token.
cdef enum:
    TOKEN_NEW = 0               # nothing yet
    TOKEN_KNOWN = 1             # `found` says whose it is, while token_use() agrees
    TOKEN_ASKED = 2             # apply is being asked
    TOKEN_BAD = 3               # it is none, as of checked_ns

ctypedef struct h2_token:
    h2_conn *conn
    uint32_t refs               # streams, the connection, and the list of questions
    uint32_t size
    uint32_t serial             # of the question after it
    uint8_t state               # TOKEN_*
    uint64_t checked_ns
    h2_token *asked_next        # in conn.asked
    h2_stream *parked_head      # calls that wait for the answer, linked by late_next and late_prev
    h2_stream *parked_tail
    token_found found
    uint64_t hash[2]
    uint8_t data[1]             # size bytes


cdef inline void token_release(h2_token *t) noexcept nogil:
    t.refs -= 1
    if t.refs == 0:
        hold(t.conn, -<int>(sizeof(h2_token) + t.size))
        free(t)


cdef inline void token_note(h2_conn *conn, h2_stream *s, const uint8_t *value, size_t size) noexcept nogil:
    """The call came with this token. Without memory it is a call without one."""
    cdef h2_token *t = <h2_token *>conn.token
    if size >= 7 and memcmp(value, b"Bearer ", 7) == 0:
        value += 7
        size -= 7
    if size > H2_TOKEN_BYTES_MAX:
        size = 0                # which is no token either
    if s.token != NULL:
        token_release(<h2_token *>s.token)
        s.token = NULL
    if t == NULL or t.size != size or memcmp(t.data, value, size) != 0:
        # Many calls may come with a token that apply is being asked about, and others between them.
        t = <h2_token *>conn.asked
        while t != NULL and (t.size != size or memcmp(t.data, value, size) != 0):
            t = t.asked_next
    if t == NULL:
        t = <h2_token *>calloc(1, sizeof(h2_token) + size)
        if t == NULL:
            return
        t.conn = conn
        t.size = <uint32_t>size
        t.refs = 1
        memcpy(t.data, value, size)
        hold(conn, <int>(sizeof(h2_token) + size))
        if conn.token != NULL:
            token_release(<h2_token *>conn.token)
        conn.token = t
    t.refs += 1
    s.token = t


cdef inline void token_drop(h2_stream *s) noexcept nogil:
    if s.token != NULL:
        token_release(<h2_token *>s.token)
        s.token = NULL


cdef inline void token_close(h2_conn *conn) noexcept nogil:
    """The connection goes. Precondition: its streams are gone."""
    cdef h2_token *t = <h2_token *>conn.asked
    cdef h2_token *after
    while t != NULL:
        after = t.asked_next
        token_release(t)
        t = after
    conn.asked = NULL
    if conn.token != NULL:
        token_release(<h2_token *>conn.token)
        conn.token = NULL
