"""TLS connections: see tlsconn.pxd."""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, strcmp, strlen, strncpy

from etcdfast._ext.netsys cimport MSG_NOSIGNAL, recv, send
from etcdfast._ext.openssl cimport *

cdef extern from "<sys/stat.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    struct stat_t "stat":
        unsigned long st_dev
        unsigned long st_ino
        long st_size
        timespec st_mtim
        timespec st_ctim
    int stat(const char *path, stat_t *found)

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *lock, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *lock)
    int pthread_mutex_unlock(pthread_mutex_t *lock)
    int pthread_mutex_destroy(pthread_mutex_t *lock)

cdef extern from *:
    int atomic_add "__sync_add_and_fetch"(int *p, int n) nogil

# inet_pton for both families, without the address: is this text an IP?
cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *address)
    enum:
        AF_INET
        AF_INET6

cdef enum:
    RECORD_EXTRA = 128             # header, nonce, tag and padding of a record, at most

cdef BIO_METHOD *socket_method = NULL


# ---- rules and contexts

cdef tls_rules *tls_rules_new() noexcept nogil:
    cdef tls_rules *rules = <tls_rules *>calloc(1, sizeof(tls_rules))
    if rules != NULL:
        rules.refs = 1
    return rules


cdef void tls_rules_free(tls_rules *rules) noexcept nogil:
    cdef int i
    if rules == NULL or atomic_add(&rules.refs, -1) > 0:
        return
    if rules.ssl_ctx != NULL:
        SSL_CTX_free(rules.ssl_ctx)
    for i in range(rules.crl_count):
        X509_CRL_free(rules.crls[i])
    for i in range(rules.allowed_cn_count):
        free(rules.allowed_cns[i])
    for i in range(rules.allowed_host_count):
        free(rules.allowed_hosts[i])
    free(rules.crls)
    free(rules.allowed_cns)
    free(rules.allowed_hosts)
    free(rules)


cdef int tls_ctx_init(tls_ctx *ctx) noexcept nogil:
    return pthread_mutex_init(&ctx.lock, NULL)


cdef void tls_ctx_done(tls_ctx *ctx) noexcept nogil:
    tls_rules_free(ctx.current)
    ctx.current = NULL
    pthread_mutex_destroy(&ctx.lock)


cdef void tls_install(tls_ctx *ctx, tls_rules *rules) noexcept nogil:
    cdef tls_rules *before
    pthread_mutex_lock(&ctx.lock)
    before = ctx.current
    ctx.current = rules
    pthread_mutex_unlock(&ctx.lock)
    tls_rules_free(before)


cdef inline uint64_t mix(uint64_t h, uint64_t value) noexcept nogil:
    h = (h ^ value) * <uint64_t>0x9E3779B97F4A7C15
    return h ^ h >> 29


cdef uint64_t tls_look(tls_ctx *ctx) noexcept nogil:
    cdef stat_t found
    cdef uint64_t h = 1
    cdef int i
    for i in range(ctx.path_count):
        if stat(ctx.paths[i], &found) != 0:
            h = mix(h, 0)
            continue
        h = mix(h, found.st_dev)
        h = mix(h, found.st_ino)
        h = mix(h, <uint64_t>found.st_size)
        h = mix(h, <uint64_t>found.st_mtim.tv_sec * 1000000000 + <uint64_t>found.st_mtim.tv_nsec)
        # A file put back with its old time has a new one here.
        h = mix(h, <uint64_t>found.st_ctim.tv_sec * 1000000000 + <uint64_t>found.st_ctim.tv_nsec)
    return h


# ---- the rules of a peer's certificate, inside the handshake: the peer is told by an alert

cdef void say(tls_conn *conn, const char *text) noexcept nogil:
    if conn.error[0] == 0:
        strncpy(conn.error, text, sizeof(conn.error) - 1)


cdef int common_name(X509 *cert, char *buf, size_t room) noexcept nogil:
    """Size of the last CN, as Go takes it; 0 none, -1 it does not fit or holds a NUL. `buf` is ended by a NUL."""
    cdef X509_NAME *name = X509_get_subject_name(cert)
    cdef unsigned char *text = NULL
    cdef int at = -1
    cdef int found = -1
    cdef int size
    while True:
        at = X509_NAME_get_index_by_NID(name, NID_commonName, at)
        if at < 0:
            break
        found = at
    if found < 0:
        return 0
    size = ASN1_STRING_to_UTF8(&text, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, found)))
    if size < 0:
        return -1
    if <size_t>size >= room or strlen(<const char *>text) != <size_t>size:
        size = -1
    else:
        memcpy(buf, text, size)
        buf[size] = 0
    OPENSSL_free(text)
    return size


cdef bint is_address(const char *text) noexcept nogil:
    cdef char address[16]
    return inet_pton(AF_INET, text, address) == 1 or inet_pton(AF_INET6, text, address) == 1


cdef inline char lower(char c) noexcept nogil:
    return c + 32 if 65 <= c <= 90 else c


cdef bint host_fits(const char *pattern, size_t size, const char *host) noexcept nogil:
    """As in Go: equal but for case, and a whole first label of the pattern may be a star (OpenSSL would ask for two
    more labels behind it, and `*.local` is what people have)."""
    cdef size_t i = 0
    cdef size_t at = 0
    cdef size_t host_size = strlen(host)
    if host_size and host[host_size - 1] == c".":
        host_size -= 1
    if size > 2 and pattern[0] == c"*" and pattern[1] == c".":
        while at < host_size and host[at] != c".":
            at += 1
        if at == 0:
            return False
        i = 1
    if size == 0 or size - i != host_size - at:
        return False
    while i < size:
        if lower(pattern[i]) != lower(host[at]):
            return False
        i += 1
        at += 1
    return True


cdef bint has_host(X509 *cert, const char *host) noexcept nogil:
    """Whether `host`, a name or an address, is among the alternative names. A CN is no host name."""
    cdef GENERAL_NAMES *names
    cdef ASN1_STRING *value
    cdef int kind = 0
    cdef int i
    cdef bint found = False
    if is_address(host):
        return X509_check_ip_asc(cert, host, 0) == 1
    names = <GENERAL_NAMES *>X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL)
    if names == NULL:
        return False
    for i in range(sk_GENERAL_NAME_num(names)):
        value = <ASN1_STRING *>GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names, i), &kind)
        if kind == GEN_DNS and host_fits(<const char *>ASN1_STRING_get0_data(value),
                                         <size_t>ASN1_STRING_length(value), host):
            found = True
    GENERAL_NAMES_free(names)
    return found


cdef bint name_allowed(tls_rules *rules, X509 *cert) noexcept nogil:
    cdef char name[TLS_NAME_BYTES_MAX]
    cdef int i
    if rules.allowed_cn_count == 0 and rules.allowed_host_count == 0:
        return True
    if common_name(cert, name, sizeof(name)) > 0:
        for i in range(rules.allowed_cn_count):
            if strcmp(name, rules.allowed_cns[i]) == 0:
                return True
    for i in range(rules.allowed_host_count):
        if has_host(cert, rules.allowed_hosts[i]):
            return True
    return False


cdef int tls_on_certificate(int ok, X509_STORE_CTX *store) noexcept nogil:
    """OpenSSL has verified one certificate of the chain: revoked ones, and a leaf of the wrong name, are refused."""
    cdef SSL *ssl = <SSL *>X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx())
    cdef tls_conn *conn = <tls_conn *>SSL_get_app_data(ssl)
    cdef tls_rules *rules = conn.rules
    cdef X509 *cert = X509_STORE_CTX_get_current_cert(store)
    cdef X509_REVOKED *revoked = NULL
    cdef int i
    if not ok or cert == NULL:
        return ok
    for i in range(rules.crl_count):
        if X509_CRL_get0_by_serial(rules.crls[i], &revoked, X509_get0_serialNumber(cert)) == 1:
            say(conn, b"tls: certificate is revoked")
            X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_REVOKED)
            return 0
    if X509_STORE_CTX_get_error_depth(store) != 0:
        return 1
    if conn.expected[0] and not has_host(cert, conn.expected):
        X509_STORE_CTX_set_error(store, X509_V_ERR_HOSTNAME_MISMATCH)
        return 0
    if not name_allowed(rules, cert):
        say(conn, b"client certificate authentication failed")
        X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_REJECTED)
        return 0
    return 1


cdef int on_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_size, const unsigned char *offered,
                 unsigned int offered_size, void *arg) noexcept nogil:
    cdef tls_conn *conn = <tls_conn *>SSL_get_app_data(ssl)
    if SSL_select_next_proto(<unsigned char **>out, out_size, conn.rules.alpn, conn.rules.alpn_size, offered,
                             offered_size) != OPENSSL_NPN_NEGOTIATED:
        return SSL_TLSEXT_ERR_ALERT_FATAL
    return SSL_TLSEXT_ERR_OK


cdef int tls_rules_apply(tls_rules *rules) noexcept nogil:
    cdef SSL_CTX *ctx = rules.ssl_ctx
    # No resumption at all: a session would outlive the certificate that was verified for it.
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION |
                        SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA)
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF)
    SSL_CTX_set_num_tickets(ctx, 0)
    # RELEASE_BUFFERS: an idle connection gives back its 34 KB. Without AUTO_RETRY, records without application
    # data come to the surface, where they are counted.
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                     SSL_MODE_RELEASE_BUFFERS)
    SSL_CTX_clear_mode(ctx, SSL_MODE_AUTO_RETRY)
    SSL_CTX_set_read_ahead(ctx, 1)
    SSL_CTX_set_max_cert_list(ctx, TLS_CERTS_BYTES_MAX)
    if rules.alpn_size:
        if rules.is_server:
            SSL_CTX_set_alpn_select_cb(ctx, on_alpn, NULL)
        elif SSL_CTX_set_alpn_protos(ctx, rules.alpn, rules.alpn_size) != 0:
            return -1
    return 0


# ---- the socket, as OpenSSL sees it

cdef int keep(tls_conn *conn, const char *data, size_t size) noexcept nogil:
    """Append to `out`. 0, -1 without memory."""
    cdef char *grown
    if conn.out_size + size > conn.out_room:
        grown = <char *>realloc(conn.out, conn.out_size + size)
        if grown == NULL:
            return -1
        conn.out = grown
        conn.out_room = conn.out_size + size
    memcpy(conn.out + conn.out_size, data, size)
    conn.out_size += size
    return 0


cdef int flush_out(tls_conn *conn) noexcept nogil:
    """0 all gone, TLS_AGAIN, -1."""
    cdef ssize_t n
    while conn.out_sent < conn.out_size:
        n = send(conn.fd, conn.out + conn.out_sent, conn.out_size - conn.out_sent, MSG_NOSIGNAL)
        if n < 0:
            if errno == EINTR:
                continue
            return TLS_AGAIN if errno == EAGAIN else -1
        conn.out_sent += <size_t>n
    free(conn.out)
    conn.out = NULL
    conn.out_size = conn.out_sent = conn.out_room = 0
    return 0


cdef int socket_write(BIO *bio, const char *data, int size) noexcept nogil:
    """Takes everything while nothing is left over, so that a record is never half written for OpenSSL."""
    cdef tls_conn *conn = <tls_conn *>BIO_get_data(bio)
    cdef ssize_t n = 0
    cdef int rc
    BIO_clear_retry_flags(bio)
    if conn.gathering:
        return size if keep(conn, data, <size_t>size) == 0 else -1
    if conn.out_size:
        rc = flush_out(conn)
        if rc < 0:
            if rc == TLS_AGAIN:
                BIO_set_retry_write(bio)
            return -1
    n = send(conn.fd, data, <size_t>size, MSG_NOSIGNAL)
    if n < 0:
        if errno != EAGAIN and errno != EINTR:
            return -1
        n = 0
    if n < size and keep(conn, data + n, <size_t>(size - n)) < 0:
        return -1
    return size


cdef void look_at_first(tls_conn *conn, const char *data, size_t size) noexcept nogil:
    """Plain HTTP as Go's server tells it: by the five bytes in the place of a record's head."""
    cdef const char *first = conn.first
    while size and conn.first_size < 5:
        conn.first[conn.first_size] = data[0]
        conn.first_size += 1
        data += 1
        size -= 1
    conn.plain_http = conn.is_server and conn.first_size == 5 and (
        memcmp(first, b"GET /", 5) == 0 or memcmp(first, b"HEAD ", 5) == 0 or memcmp(first, b"POST ", 5) == 0 or
        memcmp(first, b"PUT /", 5) == 0 or memcmp(first, b"OPTIO", 5) == 0)


cdef int socket_read(BIO *bio, char *data, int size) noexcept nogil:
    """A short read has emptied the socket: the next question is answered without the system."""
    cdef tls_conn *conn = <tls_conn *>BIO_get_data(bio)
    cdef ssize_t n
    BIO_clear_retry_flags(bio)
    if conn.drained:
        conn.starved = True
        BIO_set_retry_read(bio)
        return -1
    n = recv(conn.fd, data, <size_t>size, 0)
    if n > 0:
        conn.drained = n < size
        if conn.first_size < 5:
            look_at_first(conn, data, <size_t>n)
        return <int>n
    if n < 0 and (errno == EAGAIN or errno == EINTR):
        conn.starved = True
        BIO_set_retry_read(bio)
        return -1
    if n == 0:
        say(conn, b"EOF")
    else:
        say(conn, b"read: connection reset by peer")
    return -1


cdef long socket_ctrl(BIO *bio, int what, long number, void *pointer) noexcept nogil:
    return what == BIO_CTRL_FLUSH


# ---- connections

cdef void note_error(tls_conn *conn) noexcept nogil:
    """Why OpenSSL gave up, if nothing better is known."""
    cdef unsigned long error = ERR_peek_error()
    cdef const char *text
    if conn.error[0] or error == 0:
        say(conn, b"EOF")
        return
    if ERR_GET_REASON(error) == SSL_R_CERTIFICATE_VERIFY_FAILED:
        text = X509_verify_cert_error_string(SSL_get_verify_result(conn.ssl))
    elif ERR_GET_REASON(error) == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        text = b"client didn't provide a certificate"
    else:
        text = ERR_reason_error_string(error)
        if text == NULL:
            text = b"failed"
    memcpy(conn.error, b"tls: ", 5)
    strncpy(conn.error + 5, text, sizeof(conn.error) - 6)


cdef tls_conn *tls_open(tls_ctx *ctx, int fd, bint is_server, const char *server_name) noexcept nogil:
    cdef tls_conn *conn
    cdef BIO *bio
    if ctx.path_count and ctx.refresh != NULL and tls_look(ctx) != ctx.seen:
        ctx.refresh(ctx)
    conn = <tls_conn *>calloc(1, sizeof(tls_conn))
    if conn == NULL:
        return NULL
    pthread_mutex_lock(&ctx.lock)
    conn.rules = ctx.current
    if conn.rules != NULL:
        atomic_add(&conn.rules.refs, 1)
    pthread_mutex_unlock(&ctx.lock)
    conn.fd = fd
    conn.is_server = is_server
    if conn.rules != NULL:
        conn.ssl = SSL_new(conn.rules.ssl_ctx)
    bio = BIO_new(socket_method) if conn.ssl != NULL else NULL
    if bio == NULL:
        tls_close(conn)
        return NULL
    BIO_set_data(bio, conn)
    BIO_set_init(bio, 1)
    SSL_set_bio(conn.ssl, bio, bio)
    SSL_set_app_data(conn.ssl, conn)
    if is_server:
        SSL_set_accept_state(conn.ssl)
        return conn
    SSL_set_connect_state(conn.ssl)
    if server_name != NULL and not expect(conn, server_name):
        tls_close(conn)
        return NULL
    return conn


cdef bint expect(tls_conn *conn, const char *name) noexcept nogil:
    if strlen(name) >= sizeof(conn.expected):
        return False
    strncpy(conn.expected, name, sizeof(conn.expected) - 1)
    return is_address(name) or SSL_set_tlsext_host_name(conn.ssl, name) == 1


cdef int tls_handshake(tls_conn *conn) noexcept nogil:
    cdef int rc, why
    if conn.ended:
        return TLS_FAILED
    if not conn.finished:
        conn.drained = conn.starved = conn.more = False
        ERR_clear_error()
        rc = SSL_do_handshake(conn.ssl)
        if rc != 1:
            why = SSL_get_error(conn.ssl, rc)
            if why == SSL_ERROR_WANT_READ:
                return TLS_WANT_READ
            if why == SSL_ERROR_WANT_WRITE:
                return TLS_WANT_WRITE
            note_error(conn)
            conn.ended = -1
            if not conn.plain_http:
                flush_out(conn)
            return TLS_FAILED
        conn.finished = True
        # What came behind the peer's last handshake record is in OpenSSL's buffer and rings no more.
        conn.more = SSL_has_pending(conn.ssl) == 1
    rc = flush_out(conn)
    if rc == 0:
        return TLS_DONE
    if rc == TLS_AGAIN:
        return TLS_WANT_WRITE
    say(conn, b"write: broken connection")
    conn.ended = -1
    return TLS_FAILED


cdef ssize_t tls_recv(tls_conn *conn, void *buf, size_t n) noexcept nogil:
    cdef size_t got = 0
    cdef size_t once = 0
    cdef int why
    cdef int records = 0
    conn.drained = conn.starved = conn.more = conn.recv_needs_write = False
    while got < n and not conn.ended and records < TLS_RECORDS_MAX:
        ERR_clear_error()
        conn.starved = False
        if SSL_read_ex(conn.ssl, <char *>buf + got, n - got, &once) == 1:
            got += once
            records += 1
            conn.useless = 0
            continue
        why = SSL_get_error(conn.ssl, 0)
        if why == SSL_ERROR_WANT_READ:
            if conn.starved:
                break
            # A record for the TLS layer itself (a ticket, a key update): more may lie behind it.
            conn.useless += 1
            if conn.useless > TLS_USELESS_MAX:
                say(conn, b"tls: too many ignored records")
                conn.ended = -1
        elif why == SSL_ERROR_WANT_WRITE:
            conn.recv_needs_write = True
            break
        elif why == SSL_ERROR_ZERO_RETURN:
            conn.ended = 1
        else:
            note_error(conn)
            conn.ended = -1
    if got:
        conn.more = got == n or conn.ended or records == TLS_RECORDS_MAX
        return <ssize_t>got
    if conn.ended:
        return 0 if conn.ended == 1 else -1
    return TLS_AGAIN


cdef int tls_flush(tls_conn *conn) noexcept nogil:
    return flush_out(conn)


cdef ssize_t tls_send(tls_conn *conn, const void *buf, size_t n) noexcept nogil:
    cdef const char *data = <const char *>buf
    cdef size_t done, size, before
    cdef size_t once = 0
    cdef int rc, why
    if conn.ended < 0:
        return -1
    if conn.out_size:
        rc = flush_out(conn)
        if rc < 0:
            return rc
    # All that was encrypted before has left; those bytes come again and count now.
    done = before = conn.taken
    conn.taken = 0
    if done >= n:
        conn.taken = done - n      # cannot be: see the contract. Count no more than was asked.
        return <ssize_t>n
    size = min(n, <size_t>TLS_SEND_BYTES)
    conn.gathering = size - done > TLS_RECORD_BYTES
    if conn.gathering:
        conn.out = <char *>realloc(NULL, size - done + (size - done) // TLS_RECORD_BYTES * RECORD_EXTRA + 2 * RECORD_EXTRA)
        if conn.out != NULL:
            conn.out_room = size - done + (size - done) // TLS_RECORD_BYTES * RECORD_EXTRA + 2 * RECORD_EXTRA
    while done < size and (conn.gathering or conn.out_size == 0):
        ERR_clear_error()
        if SSL_write_ex(conn.ssl, data + done, size - done, &once) == 1:
            done += once
            conn.taken = done
            continue
        why = SSL_get_error(conn.ssl, 0)
        conn.gathering = False
        if why == SSL_ERROR_WANT_WRITE:
            break
        note_error(conn)
        conn.ended = -1
        return -1
    conn.gathering = False
    rc = flush_out(conn)
    if rc == TLS_AGAIN and before:
        conn.taken = done - before
        return <ssize_t>before
    if rc < 0:
        return rc
    conn.taken = 0
    return <ssize_t>done if done else TLS_AGAIN


cdef int tls_shutdown(tls_conn *conn) noexcept nogil:
    if not conn.finished or conn.ended < 0:
        return -1
    ERR_clear_error()
    if SSL_shutdown(conn.ssl) < 0:
        return TLS_AGAIN if conn.out_size else -1
    return flush_out(conn)


cdef void tls_close(tls_conn *conn) noexcept nogil:
    if conn == NULL:
        return
    if conn.ssl != NULL:
        SSL_free(conn.ssl)
    tls_rules_free(conn.rules)
    free(conn.out)
    free(conn)


cdef bint tls_has_peer(tls_conn *conn) noexcept nogil:
    return SSL_get0_peer_certificate(conn.ssl) != NULL


cdef int tls_peer_name(tls_conn *conn, char *buf, size_t room) noexcept nogil:
    cdef X509 *cert = SSL_get0_peer_certificate(conn.ssl)
    return common_name(cert, buf, room) if cert != NULL else -1


cdef int tls_alpn(tls_conn *conn, const unsigned char **name) noexcept nogil:
    cdef unsigned int size = 0
    SSL_get0_alpn_selected(conn.ssl, name, &size)
    return <int>size


cdef int _make_method() except -1:
    global socket_method
    socket_method = BIO_meth_new(BIO_TYPE_SOURCE_SINK | 64, b"etcdfast socket")
    if socket_method == NULL:
        raise MemoryError
    BIO_meth_set_write(socket_method, socket_write)
    BIO_meth_set_read(socket_method, socket_read)
    BIO_meth_set_ctrl(socket_method, socket_ctrl)
    return 0


_make_method()
