"""TLS over non-blocking sockets, on OpenSSL: the transport that stands in the place of recv and send.

    conn = tls_open(&context.ctx, fd, True, NULL)
    tls_handshake(conn)                      until TLS_DONE
    tls_recv(conn, ...), tls_send(conn, ...)
    tls_shutdown(conn); tls_close(conn)      the descriptor stays the caller's

A connection keeps the certificates and rules it was opened with (`tls_rules`); new ones see new files. It does not
need its context any more once it is open. One thread at a time uses a connection; several may share a context.
Edge-triggered epoll is enough: TLS_AGAIN means that the socket is empty (or full), unless `tls_more` says otherwise.
"""

from libc.stdint cimport uint64_t

from etcdfast._ext.openssl cimport BIO, SSL, SSL_CTX, X509_CRL, X509_STORE_CTX

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum:
    TLS_DONE = 0
    TLS_WANT_READ = 1
    TLS_WANT_WRITE = 2
    TLS_FAILED = -1
    TLS_AGAIN = -2
    TLS_RECORD_BYTES = 16384       # most plaintext of one record
    TLS_SEND_BYTES = 65536         # most that one tls_send takes
    TLS_FILES_MAX = 4              # certificate, key, CA bundle, CRL
    TLS_NAME_BYTES_MAX = 256
    TLS_USELESS_MAX = 16           # records in a row that carry nothing for the application (as in Go)
    TLS_RECORDS_MAX = 256          # of one tls_recv: a peer may send a byte in each
    TLS_CERTS_BYTES_MAX = 65536    # of a peer's certificates (Go: the same)
    # What an open connection costs more than a plain one: growth of the process over 1000 of them that show certificates.
    TLS_CONN_BYTES = 34816


ctypedef struct tls_rules:
    int refs                       # atomic
    SSL_CTX *ssl_ctx
    bint is_server
    X509_CRL **crls                # certificates revoked in any of them are refused, by serial, as in etcd
    int crl_count
    char **allowed_cns             # when any is given, the peer's certificate must match one of either list
    int allowed_cn_count
    char **allowed_hosts
    int allowed_host_count
    unsigned char alpn[64]         # wire form: length, name, ...
    unsigned int alpn_size


ctypedef struct tls_ctx:
    pthread_mutex_t lock           # of `current`
    tls_rules *current             # NULL: unusable
    const char *paths[TLS_FILES_MAX]   # watched files; owned by the TlsContext
    int path_count
    uint64_t seen                  # what the files looked like when they were last read
    void (*refresh)(tls_ctx *) noexcept nogil   # read them again
    void *owner


ctypedef struct tls_conn:
    SSL *ssl
    tls_rules *rules
    int fd
    bint is_server
    bint drained                   # the last recv took all there was: ask no more in this call
    bint starved                   # OpenSSL asked for bytes that are not there
    bint more                      # see tls_more
    char first[5]                  # the first bytes that came
    int first_size
    bint plain_http                # and they were those of a plain HTTP request
    bint finished                  # handshake done
    bint gathering                 # records gather in `out` and leave in one send
    bint recv_needs_write          # tls_recv goes on when the socket takes bytes again
    int ended                      # 0 no, 1 close_notify came, -1 failed
    int useless
    char *out                      # encrypted bytes that the socket did not take; owned
    size_t out_size
    size_t out_sent
    size_t out_room
    size_t taken                   # of the next tls_send's bytes: encrypted by an earlier one that did not get through
    char expected[TLS_NAME_BYTES_MAX]  # of a client: the name or address that the server must have, "" any
    char error[200]                # why it failed


# NULL: no memory or the context is unusable. `server_name`: of a client, whom to expect (NULL: not checked).
cdef tls_conn *tls_open(tls_ctx *ctx, int fd, bint is_server, const char *server_name) noexcept nogil
# One step: TLS_DONE, TLS_WANT_READ, TLS_WANT_WRITE, TLS_FAILED (tls_error). An alert was sent if there is one to send.
cdef int tls_handshake(tls_conn *conn) noexcept nogil
# > 0 bytes, of as many records as are there; 0 close_notify; TLS_AGAIN; -1 failed or cut off (tls_error).
cdef ssize_t tls_recv(tls_conn *conn, void *buf, size_t n) noexcept nogil
# > 0 bytes that have left (may be fewer than n); TLS_AGAIN: nothing more leaves now; -1 failed.
# Bytes not counted must come again, first, in the next call: in the same order, at any address, as many or more.
cdef ssize_t tls_send(tls_conn *conn, const void *buf, size_t n) noexcept nogil
# Send what OpenSSL had to say for itself. 0 all gone, TLS_AGAIN, -1. To be called when the socket takes bytes again.
cdef int tls_flush(tls_conn *conn) noexcept nogil
# Say close_notify, if the socket takes it. 0, TLS_AGAIN or -1.
cdef int tls_shutdown(tls_conn *conn) noexcept nogil
cdef void tls_close(tls_conn *conn) noexcept nogil
# CN of the peer's certificate (of several the last, as in Go): its size, 0 if it has none, -1 without a certificate
# or when it does not fit. Verified if the context verifies.
cdef int tls_peer_name(tls_conn *conn, char *buf, size_t room) noexcept nogil
cdef bint tls_has_peer(tls_conn *conn) noexcept nogil
# The protocol agreed on by ALPN: its size, 0 none.
cdef int tls_alpn(tls_conn *conn, const unsigned char **name) noexcept nogil

# What the watched files look like now, to be compared with `seen`.
cdef uint64_t tls_look(tls_ctx *ctx) noexcept nogil
cdef tls_rules *tls_rules_new() noexcept nogil
cdef void tls_rules_free(tls_rules *rules) noexcept nogil
# Use `rules` (its reference is taken over) for new connections.
cdef void tls_install(tls_ctx *ctx, tls_rules *rules) noexcept nogil
cdef int tls_ctx_init(tls_ctx *ctx) noexcept nogil
cdef void tls_ctx_done(tls_ctx *ctx) noexcept nogil
# What every context has, whatever its files. 0 or -1.
cdef int tls_rules_apply(tls_rules *rules) noexcept nogil
# Checks of a verified certificate, for SSL_CTX_set_verify.
cdef int tls_on_certificate(int ok, X509_STORE_CTX *store) noexcept nogil


cdef inline const char *tls_error(const tls_conn *conn) noexcept nogil:
    return conn.error


cdef inline bint tls_more(const tls_conn *conn) noexcept nogil:
    """Another tls_recv has something to tell without new bytes in the socket."""
    return conn.more


cdef inline size_t tls_unsent(const tls_conn *conn) noexcept nogil:
    """Encrypted bytes kept for a socket that is full."""
    return conn.out_size - conn.out_sent
