"""TlsContext: certificates, CA bundle, revocations and rules of one role, re-read when their files change.

The C side of a connection is tlsconn.pxd: `tls_open(&context.ctx, fd, True, NULL)`.
"""

from etcdfast._ext.tlsconn cimport tls_conn, tls_ctx, tls_rules


cdef class TlsContext:
    cdef tls_ctx ctx
    cdef object options            # TlsOptions
    cdef object kept               # bytes that `ctx` points into
    cdef object on_message
    cdef bint reloading
    cdef readonly bint verifies    # peers must show a certificate that verifies
    cdef readonly unsigned long loads
    cdef tls_rules *build(self) except NULL
    cdef _say(self, str level, str text)


cdef class TlsSocket:
    cdef tls_conn *conn
    cdef object sock
    cdef int _fd
    cdef int _check(self) except -1
    cdef _fail(self)


# The connection in a capsule of TlsSocket.detach; the caller owns it from now on.
cdef tls_conn *tls_take(object capsule) except NULL
