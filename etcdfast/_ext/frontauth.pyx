"""Whose call it is; see frontauth.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from etcdfast._ext.errids cimport ERR_INVALID_AUTH_TOKEN, ERR_TOO_MANY_REQUESTS, ERR_USER_EMPTY
from etcdfast._ext.frontconn cimport conn_t, loop_t
from etcdfast._ext.frontpost cimport RING_APPLY, post_unparked
from etcdfast._ext.h2request cimport h2_keep_request
from etcdfast._ext.h2stream cimport h2_drop_request
from etcdfast._ext.h2token cimport TOKEN_ASKED, TOKEN_BAD, h2_token, token_release
from etcdfast._ext.h2types cimport STREAM_BIDI, STREAM_PARKED, h2_stream
from etcdfast._ext.identity cimport IPC_TOKEN_CHECK, is_relayed
from etcdfast._ext.ring cimport IPC_CALL, ipc_record, record_payload, ring_claim, ring_commit
from etcdfast._ext.rpcids cimport RPC_AUTHENTICATE, RPC_ELECTION_RESIGN, RPC_LOCK
from etcdfast._ext.streamtimers cimport timer_stop


cdef bint ask(loop_t *loop, h2_token *t) noexcept nogil:
    """Ask apply about a token. False when that cannot be now."""
    cdef conn_t *conn = <conn_t *>t.conn.owner
    cdef ipc_record *r
    if t.conn.asked_count >= ASKED_MAX:
        return False
    r = ring_claim(loop.out[RING_APPLY], <uint32_t>sizeof(ipc_record) + t.size)
    if r == NULL:
        return False
    loop.token_serial += 1
    memset(<char *>r + 4, 0, sizeof(ipc_record) - 4)
    r.kind = IPC_CALL
    r.method = IPC_TOKEN_CHECK
    r.frontend = loop.index
    r.slot = conn.slot
    r.generation = conn.generation
    r.stream = loop.token_serial
    memcpy(record_payload(r), t.data, t.size)
    ring_commit(loop.out[RING_APPLY], r)
    t.state = TOKEN_ASKED
    t.serial = loop.token_serial
    t.refs += 1
    t.asked_next = <h2_token *>t.conn.asked
    t.conn.asked = t
    t.conn.asked_count += 1
    return True


cdef bint park(loop_t *loop, h2_stream *s, int ring, int kind) noexcept nogil:
    """Have the call wait for the answer about its token. False: it is refused instead."""
    cdef h2_token *t = <h2_token *>s.token
    if t.state != TOKEN_ASKED and not ask(loop, t):
        answer_error(loop, s, ERR_TOO_MANY_REQUESTS)
        return False
    s.late_ring = <unsigned char>ring
    s.late_kind = <unsigned char>kind
    s.flags |= STREAM_PARKED
    s.late_next = NULL
    s.late_prev = t.parked_tail
    if t.parked_tail != NULL:
        t.parked_tail.late_next = s
    else:
        t.parked_head = s
    t.parked_tail = s
    return True


cdef void auth_unpark(h2_stream *s) noexcept nogil:
    cdef h2_token *t = <h2_token *>s.token
    if not s.flags & STREAM_PARKED:
        return
    s.flags &= ~<uint32_t>STREAM_PARKED
    if s.late_prev != NULL:
        s.late_prev.late_next = s.late_next
    else:
        t.parked_head = s.late_next
    if s.late_next != NULL:
        s.late_next.late_prev = s.late_prev
    else:
        t.parked_tail = s.late_prev


cdef bint auth_admits(loop_t *loop, h2_stream *s, int *ring, int *kind) noexcept nogil:
    cdef client_t who
    cdef int found
    if s.method == RPC_AUTHENTICATE:
        return True     # whoever asks for a token needs none
    found = client_who(loop, s, &who)
    if found == WHO_FREE:
        return True
    if is_relayed(s.method):
        ring[0] = RING_APPLY
        kind[0] = IPC_CALL
    if found == WHO_UNKNOWN:
        h2_keep_request(s)
        if park(loop, s, ring[0], kind[0]):
            return False
    elif found == WHO_NOBODY and loop.identity_methods >> s.method & 1:
        answer_error(loop, s, ERR_USER_EMPTY)
    elif found == WHO_BAD and not RPC_LOCK <= s.method <= RPC_ELECTION_RESIGN:
        answer_error(loop, s, ERR_INVALID_AUTH_TOKEN)
    else:
        return True
    timer_stop(&loop.timers, s)
    return False


cdef bint auth_admits_message(loop_t *loop, h2_stream *s) noexcept nogil:
    cdef client_t who
    if s.flags & STREAM_PARKED:
        return False
    if client_who(loop, s, &who) != WHO_UNKNOWN:
        return True     # apply knows what a token that is none means for the message
    park(loop, s, RING_APPLY, IPC_CALL)
    return False


cdef void auth_answered(loop_t *loop, conn_t *conn, ipc_record *r) noexcept nogil:
    cdef h2_token **link = <h2_token **>&conn.h2.asked
    cdef h2_token *t
    cdef h2_stream *s
    cdef client_t who
    while link[0] != NULL and link[0].serial != r.stream:
        link = &link[0].asked_next
    t = link[0]
    if t == NULL:
        return
    link[0] = t.asked_next
    conn.h2.asked_count -= 1
    t.state = TOKEN_NEW
    # A good one is in the table now, unless so many came since that it is there no more.
    if r.status or token_look(loop, t, &who) != WHO_KNOWN:
        t.state = TOKEN_BAD
        t.checked_ns = loop.server.now_ns
    while t.parked_head != NULL:
        s = t.parked_head
        auth_unpark(s)
        if t.state == TOKEN_BAD and not s.flags & STREAM_BIDI and not RPC_LOCK <= s.method <= RPC_ELECTION_RESIGN:
            answer_error(loop, s, r.status if r.status else ERR_INVALID_AUTH_TOKEN)
            timer_stop(&loop.timers, s)
            h2_drop_request(s)
        else:
            post_unparked(loop, s)
    token_release(t)
