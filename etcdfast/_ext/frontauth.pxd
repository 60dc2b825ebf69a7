"""Whose call it is: the token or the client certificate that it came with, looked up without asking anybody.

Who is off, pays a look at the status page. With auth on a call with the connection's usual token costs a comparison
of its bytes and a look at its slot in the table of tokens (tokenpage.h). Only a token that is not there is asked after
at apply, once, however many calls came with it; they are parked meanwhile.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from etcdfast._ext.authtable cimport AUTH_NAME_BYTES_MAX
from etcdfast._ext.frontconn cimport conn_t, loop_t
from etcdfast._ext.grpcwire cimport GRPC_INTERNAL
from etcdfast._ext.h2stream cimport h2_end, h2_say
from etcdfast._ext.h2token cimport TOKEN_ASKED, TOKEN_BAD, TOKEN_KNOWN, TOKEN_NEW, h2_token
from etcdfast._ext.h2types cimport STREAM_CALL, h2_stream
from etcdfast._ext.identity cimport IPC_FLAG_AUTH_NOW, IPC_FLAG_BAD_TOKEN
from etcdfast._ext.ring cimport ST_AUTH_ENABLED, ST_AUTH_REVISION, ipc_record, status_get
from etcdfast._ext.tokenpage cimport token_find, token_hash, token_use

cdef enum:
    ASKED_MAX = 64                # tokens of a connection that apply is asked about; more are refused
    BAD_TOKEN_NS = 1000000000     # that a token's being none is remembered

cdef enum:
    WHO_FREE = 0                  # auth is off
    WHO_NOBODY = 1
    WHO_KNOWN = 2
    WHO_UNKNOWN = 3               # apply must be asked
    WHO_BAD = 4

ctypedef struct client_t:
    const char *name
    uint32_t size
    uint8_t flags                 # IPC_FLAG_*
    uint64_t revision


cdef inline int token_known(loop_t *loop, h2_token *t, client_t *who) noexcept nogil:
    who.name = t.found.name
    who.size = t.found.name_size
    who.revision = t.found.revision
    if who.revision == 0:
        who.revision = status_get(loop.apply_page, ST_AUTH_REVISION)
        who.flags = IPC_FLAG_AUTH_NOW
    return WHO_KNOWN


cdef inline int token_look(loop_t *loop, h2_token *t, client_t *who) noexcept nogil:
    if t.state == TOKEN_KNOWN and token_use(&t.found, loop.server.now_ns):
        return token_known(loop, t, who)
    who.flags = IPC_FLAG_BAD_TOKEN
    if t.size == 0 or loop.tokens == NULL:
        return WHO_BAD
    if t.state == TOKEN_ASKED:
        return WHO_UNKNOWN
    if t.state == TOKEN_BAD and loop.server.now_ns - t.checked_ns < BAD_TOKEN_NS:
        return WHO_BAD
    if t.hash[0] == 0 and t.hash[1] == 0:
        token_hash(loop.tokens, t.data, t.size, t.hash)
    if token_find(loop.tokens, t.hash, &t.found) and token_use(&t.found, loop.server.now_ns):
        t.state = TOKEN_KNOWN
        who.flags = 0
        return token_known(loop, t, who)
    t.state = TOKEN_NEW
    return WHO_UNKNOWN


cdef inline int client_who(loop_t *loop, h2_stream *s, client_t *who) noexcept nogil:
    """WHO_*; fills `who` with what its record carries."""
    cdef conn_t *conn
    who.size = 0
    who.flags = 0
    who.revision = 0
    if not status_get(loop.apply_page, ST_AUTH_ENABLED):
        return WHO_FREE
    if s.token != NULL:
        return token_look(loop, <h2_token *>s.token, who)
    conn = <conn_t *>s.conn.owner
    # As in etcd the certificate of the gateway's client names nobody.
    if not loop.cert_names or not conn.has_cert or s.flags & STREAM_CALL or conn.cert_name_size > AUTH_NAME_BYTES_MAX:
        return WHO_NOBODY
    who.name = conn.cert_name
    who.size = conn.cert_name_size
    who.flags = IPC_FLAG_AUTH_NOW
    who.revision = status_get(loop.apply_page, ST_AUTH_REVISION)
    return WHO_KNOWN


cdef inline void answer_error(loop_t *loop, h2_stream *s, uint32_t error) noexcept nogil:
    if error > loop.errors:
        h2_say(s, GRPC_INTERNAL, b"unknown error id")
    else:
        h2_end(s, loop.error_code[error], loop.error_text[error], loop.error_size[error])


# A unary call, or the only message of a stream, while auth is on: where it goes. False: it is answered, or parked.
cdef bint auth_admits(loop_t *loop, h2_stream *s, int *ring, int *kind) noexcept nogil
# A bidi stream's message, likewise. False: the stream is answered, or parked and its caller keeps the message.
cdef bint auth_admits_message(loop_t *loop, h2_stream *s) noexcept nogil
# The stream does not wait any more.
cdef void auth_unpark(h2_stream *s) noexcept nogil
# REPLY of IPC_TOKEN_CHECK.
cdef void auth_answered(loop_t *loop, conn_t *conn, ipc_record *r) noexcept nogil
