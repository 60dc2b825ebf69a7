"""TLS contexts and sockets for Python: see tlscontext.pyi."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New, PyCapsule_SetDestructor
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, strdup
from libc.stdint cimport uint64_t

from etcdfast._ext.openssl cimport *
from etcdfast._ext.tlsconn cimport *

import ipaddress
from collections import namedtuple

cdef extern from "<openssl/x509.h>" nogil:
    ctypedef struct ASN1_TIME:
        pass
    const ASN1_TIME *X509_get0_notAfter(const X509 *cert)
    int ASN1_TIME_to_tm(const ASN1_TIME *t, tm *out)
    X509 *SSL_CTX_get0_certificate(const SSL_CTX *ctx)

cdef extern from "<time.h>" nogil:
    struct tm:
        int tm_year
    long timegm(tm *t)


class TlsError(OSError):
    pass


class TlsWantRead(BlockingIOError):
    pass


class TlsWantWrite(BlockingIOError):
    pass


TlsOptions = namedtuple(
    "TlsOptions",
    "kind cert_file key_file ca_file crl_file client_cert_auth allowed_cns allowed_hostnames min_version max_version "
    "ciphers alpn skip_verify",
    defaults=("", "", "", "", False, (), (), "TLS1.2", "", (), (), False),
)

cdef const char *capsule_name = b"etcdfast.tls_conn"

VERSIONS = {"TLS1.2": TLS1_2_VERSION, "TLS1.3": TLS1_3_VERSION}

# Go's names of TLS 1.2 suites and OpenSSL's; None: suites that OpenSSL has no more (they are taken and never agreed on).
SUITES = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256": "ECDHE-ECDSA-AES128-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256": "ECDHE-RSA-AES128-SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256": "AES128-SHA256",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA": None,
    "TLS_RSA_WITH_RC4_128_SHA": None,
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA": None,
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA": None,
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA": None,
    # Of TLS 1.3: not to be chosen, in Go neither.
    "TLS_AES_128_GCM_SHA256": None,
    "TLS_AES_256_GCM_SHA384": None,
    "TLS_CHACHA20_POLY1305_SHA256": None,
}
DEFAULT_SUITES = (
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
)
# The cheapest first: a server's order decides.
cdef const char *suites_13 = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
# RSA keys from 1024 bits on and no SHA-1 signatures: what Go takes.
cdef str SECURITY_LEVEL = "@SECLEVEL=1"


def known_cipher(name):
    return name in SUITES


# ---- files into OpenSSL's objects

cdef int no_password(char *buf, int size, int writing, void *arg) noexcept nogil:
    return -1      # an encrypted key is an error, never a question at the terminal


cdef str reason(str fallback):
    cdef unsigned long error = ERR_peek_last_error()
    cdef const char *text = ERR_reason_error_string(error) if error else NULL
    ERR_clear_error()
    return text.decode("ascii", "replace") if text != NULL else fallback


cdef bytes read_file(str path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as err:
        raise TlsError(f"open {path}: {(err.strerror or str(err)).lower()}") from None


cdef list pem_blocks(bytes data, bytes kind):
    """The PEM blocks of a kind, whole. OpenSSL's reader skips what it does not know, and damage with it."""
    cdef bytes begin = b"-----BEGIN " + kind + b"-----"
    cdef bytes end = b"-----END " + kind + b"-----"
    blocks = []
    at = data.find(begin)
    while at >= 0:
        stop = data.find(end, at)
        if stop < 0:
            raise ValueError("PEM block has no end")
        blocks.append(data[at:stop + len(end)] + b"\n")
        at = data.find(begin, stop)
    return blocks


cdef X509 *read_cert(bytes block) except NULL:
    cdef BIO *bio = BIO_new_mem_buf(<const char *>block, <int>len(block))
    cdef X509 *cert
    if bio == NULL:
        raise MemoryError
    ERR_clear_error()
    cert = PEM_read_bio_X509(bio, NULL, no_password, NULL)
    BIO_free(bio)
    if cert == NULL:
        raise ValueError(reason("no certificate"))
    return cert


cdef int use_pair(SSL_CTX *ctx, str cert_file, str key_file) except -1:
    cdef X509 *cert
    cdef EVP_PKEY *key
    cdef BIO *bio
    cdef int ok
    data = read_file(cert_file)
    key_data = read_file(key_file)
    try:
        blocks = pem_blocks(data, b"CERTIFICATE")
        if not blocks:
            raise ValueError("failed to find any PEM data of a certificate")
        for i, block in enumerate(blocks):
            cert = read_cert(block)
            if i == 0:
                ok = SSL_CTX_use_certificate(ctx, cert)
                X509_free(cert)
            else:
                ok = SSL_CTX_add0_chain_cert(ctx, cert)
                if not ok:
                    X509_free(cert)
            if not ok:
                raise ValueError(reason("cannot be used"))
    except ValueError as err:
        raise TlsError(f"tls: {cert_file}: {err}") from None
    if b"ENCRYPTED" in key_data:
        raise TlsError(f"tls: {key_file}: the private key is encrypted; give one without a password")
    bio = BIO_new_mem_buf(<const char *>key_data, <int>len(key_data))
    if bio == NULL:
        raise MemoryError
    ERR_clear_error()
    key = PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL)
    BIO_free(bio)
    if key == NULL:
        raise TlsError(f"tls: {key_file}: failed to find a private key in PEM form ({reason('no key')})")
    ok = SSL_CTX_use_PrivateKey(ctx, key) == 1 and SSL_CTX_check_private_key(ctx) == 1
    EVP_PKEY_free(key)
    if not ok:
        ERR_clear_error()
        raise TlsError(f"tls: private key does not match public key ({cert_file}, {key_file})")
    return 0


cdef int use_authorities(tls_rules *rules, str ca_file) except -1:
    cdef X509_STORE *store = SSL_CTX_get_cert_store(rules.ssl_ctx)
    cdef X509 *cert
    cdef int ok
    if not ca_file:
        if SSL_CTX_set_default_verify_paths(rules.ssl_ctx) != 1:
            raise TlsError(f"tls: the system's certificates: {reason('cannot be read')}")
        return 0
    data = read_file(ca_file)
    try:
        blocks = pem_blocks(data, b"CERTIFICATE")
        if not blocks:
            raise ValueError("no certificate in PEM form")
        for block in blocks:
            cert = read_cert(block)
            ok = X509_STORE_add_cert(store, cert)
            if ok and rules.is_server:
                SSL_CTX_add_client_CA(rules.ssl_ctx, cert)
            X509_free(cert)
            if not ok:
                raise ValueError(reason("cannot be used"))
    except ValueError as err:
        raise TlsError(f"tls: {ca_file}: {err}") from None
    return 0


cdef int use_revocations(tls_rules *rules, str crl_file) except -1:
    cdef BIO *bio
    cdef X509_CRL *crl
    data = read_file(crl_file)
    try:
        blocks = pem_blocks(data, b"X509 CRL")
    except ValueError as err:
        raise TlsError(f"tls: {crl_file}: {err}") from None
    is_der = not blocks
    if is_der:
        blocks = [data]
    rules.crls = <X509_CRL **>calloc(len(blocks), sizeof(X509_CRL *))
    if rules.crls == NULL:
        raise MemoryError
    for block in blocks:
        bio = BIO_new_mem_buf(<const char *>block, <int>len(block))
        if bio == NULL:
            raise MemoryError
        ERR_clear_error()
        crl = d2i_X509_CRL_bio(bio, NULL) if is_der else PEM_read_bio_X509_CRL(bio, NULL, no_password, NULL)
        BIO_free(bio)
        if crl == NULL:
            raise TlsError(f"tls: {crl_file}: no certificate revocation list ({reason('neither PEM nor DER')})")
        rules.crls[rules.crl_count] = crl
        rules.crl_count += 1
    return 0


cdef char **copy_names(names, int *count) except? NULL:
    cdef char **copies
    if not names:
        return NULL
    copies = <char **>calloc(len(names), sizeof(char *))
    if copies == NULL:
        raise MemoryError
    for name in names:
        data = name.encode()
        copies[count[0]] = strdup(data)
        if copies[count[0]] == NULL:
            raise MemoryError
        count[0] += 1
    return copies


cdef int set_versions(SSL_CTX *ctx, options) except -1:
    cdef bytes text
    cdef int least, most
    for name in (options.min_version or "TLS1.2", options.max_version or "TLS1.3"):
        if name not in VERSIONS:
            raise TlsError(f"unexpected TLS version \"{name}\" (must be one of: TLS1.2, TLS1.3)")
    least = VERSIONS[options.min_version or "TLS1.2"]
    most = VERSIONS[options.max_version or "TLS1.3"]
    for name in options.ciphers:
        if name not in SUITES:
            raise TlsError(f"unexpected TLS cipher suite \"{name}\"")
    suites = [SUITES[name] for name in options.ciphers or DEFAULT_SUITES if SUITES[name]]
    if suites:
        text = (":".join(suites) + ":" + SECURITY_LEVEL).encode()
        if SSL_CTX_set_cipher_list(ctx, text) != 1:
            raise TlsError(f"tls: cipher suites: {reason('cannot be used')}")
    else:
        least = TLS1_3_VERSION     # nothing of TLS 1.2 is left
        text = ("DEFAULT:" + SECURITY_LEVEL).encode()
        if SSL_CTX_set_cipher_list(ctx, text) != 1:
            raise TlsError(f"tls: cipher suites: {reason('cannot be used')}")
    if least > most:
        raise TlsError("tls: no cipher suite is left for the versions of TLS that are allowed")
    if SSL_CTX_set_ciphersuites(ctx, suites_13) != 1 or SSL_CTX_set_min_proto_version(ctx, least) != 1 or \
            SSL_CTX_set_max_proto_version(ctx, most) != 1:
        raise TlsError(f"tls: {reason('versions cannot be set')}")
    return 0


cdef void refresh(tls_ctx *ctx) noexcept nogil:
    with gil:
        try:
            (<TlsContext><object>ctx.owner)._reread(False)
        except BaseException:
            pass           # without memory: the old files stay in force


cdef class TlsContext:
    def __cinit__(self):
        if tls_ctx_init(&self.ctx) != 0:
            raise MemoryError

    def __init__(self, options, on_message=None):
        if options.kind not in ("server", "client"):
            raise ValueError(f"kind of TLS context: {options.kind}")
        if bool(options.cert_file) != bool(options.key_file) or (options.kind == "server" and not options.cert_file):
            raise TlsError(
                f"KeyFile and CertFile must both be present[key: {options.key_file}, cert: {options.cert_file}]")
        self.options = options
        self.on_message = on_message
        self.verifies = (options.client_cert_auth or bool(options.ca_file)) if options.kind == "server" \
            else not options.skip_verify
        paths = [path.encode() for path in (options.cert_file, options.key_file, options.ca_file, options.crl_file)
                 if path]
        self.kept = paths
        for i, path in enumerate(paths):
            self.ctx.paths[i] = <const char *><bytes>path
        self.ctx.path_count = <int>len(paths)
        self.ctx.owner = <void *>self
        self.ctx.refresh = refresh
        self.ctx.seen = tls_look(&self.ctx)
        tls_install(&self.ctx, self.build())
        self.loads = 1

    def __dealloc__(self):
        tls_ctx_done(&self.ctx)

    cdef tls_rules *build(self) except NULL:
        cdef tls_rules *rules = tls_rules_new()
        cdef SSL_CTX *ctx
        options = self.options
        if rules == NULL:
            raise MemoryError
        try:
            rules.is_server = options.kind == "server"
            rules.ssl_ctx = ctx = SSL_CTX_new(TLS_method())
            if ctx == NULL:
                raise TlsError(f"tls: {reason('no memory')}")
            set_versions(ctx, options)
            if options.cert_file:
                use_pair(ctx, options.cert_file, options.key_file)
            if self.verifies:
                use_authorities(rules, options.ca_file)
                # Whatever stands in the bundle is trusted, as in Go: an intermediate or a leaf, too.
                X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(ctx), X509_V_FLAG_PARTIAL_CHAIN)
                SSL_CTX_set_verify(
                    ctx, SSL_VERIFY_PEER | (SSL_VERIFY_FAIL_IF_NO_PEER_CERT if rules.is_server else 0), tls_on_certificate)
            if options.crl_file:
                use_revocations(rules, options.crl_file)
            rules.allowed_cns = copy_names(options.allowed_cns, &rules.allowed_cn_count)
            rules.allowed_hosts = copy_names(options.allowed_hostnames, &rules.allowed_host_count)
            alpn = b"".join(bytes([len(name)]) + name for name in options.alpn)
            if len(alpn) > <Py_ssize_t>sizeof(rules.alpn):
                raise ValueError("too many protocols for ALPN")
            memcpy(rules.alpn, <const char *>alpn, len(alpn))
            rules.alpn_size = <unsigned int>len(alpn)
            if tls_rules_apply(rules) < 0:
                raise TlsError(f"tls: {reason('no memory')}")
        except BaseException:
            tls_rules_free(rules)
            raise
        return rules

    def _reread(self, bint force):
        cdef uint64_t looks
        if self.reloading:         # by another thread, which lets go of the interpreter while it reads
            return False
        self.reloading = True
        try:
            # Taken before reading: what is written meanwhile will look changed again.
            looks = tls_look(&self.ctx)
            if looks == self.ctx.seen and not force:
                return False
            self.ctx.seen = looks
            try:
                tls_install(&self.ctx, self.build())
            except (TlsError, ValueError) as err:
                self._say("warn", f"TLS files changed and cannot be used; the ones before stay in force: {err}")
                return False
            self.loads += 1
            self._say("info", "TLS files re-read for new connections")
            return True
        finally:
            self.reloading = False

    cdef _say(self, str level, str text):
        if self.on_message is not None:
            self.on_message(level, text)

    def reload(self):
        return self._reread(True)

    def expires(self):
        cdef X509 *cert = SSL_CTX_get0_certificate(self.ctx.current.ssl_ctx)
        cdef tm when
        if cert == NULL or ASN1_TIME_to_tm(X509_get0_notAfter(cert), &when) != 1:
            return None
        return timegm(&when)


# ---- sockets for Python

cdef void free_capsule(object capsule) noexcept:
    cdef tls_conn *conn = <tls_conn *>PyCapsule_GetPointer(capsule, capsule_name)
    tls_close(conn)


cdef tls_conn *tls_take(object capsule) except NULL:
    cdef tls_conn *conn = <tls_conn *>PyCapsule_GetPointer(capsule, capsule_name)
    PyCapsule_SetDestructor(capsule, NULL)
    return conn


cdef class TlsSocket:
    def __cinit__(self):
        self._fd = -1

    def __init__(self, TlsContext context not None, sock, *, bint server_side=False, server_name=None):
        cdef bytes name = server_name.encode("idna" if not server_name.isascii() else "ascii") if server_name else None
        if isinstance(sock, int):
            self._fd = sock
        else:
            self.sock = sock
            self._fd = sock.fileno()
        self.conn = tls_open(&context.ctx, self._fd, server_side, <const char *>name if name is not None else NULL)
        if self.conn == NULL:
            raise MemoryError

    def __dealloc__(self):
        tls_close(self.conn)

    cdef int _check(self) except -1:
        if self.conn == NULL:
            raise ValueError("the TLS connection is closed or detached")
        return 0

    cdef _fail(self):
        raise TlsError(self.conn.error.decode("utf-8", "replace") or "the connection is broken")

    def do_handshake(self):
        cdef int rc
        self._check()
        with nogil:
            rc = tls_handshake(self.conn)
        if rc == TLS_WANT_READ:
            raise TlsWantRead
        if rc == TLS_WANT_WRITE:
            raise TlsWantWrite
        if rc != TLS_DONE:
            self._fail()

    def recv(self, size_t size):
        cdef bytes data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        cdef ssize_t n
        self._check()
        n = tls_recv(self.conn, <char *>data, size)
        if n == TLS_AGAIN:
            raise (TlsWantWrite if self.conn.recv_needs_write else TlsWantRead)
        if n < 0:
            self._fail()
        return data if <size_t>n == size else data[:n]

    def send(self, const unsigned char[::1] data not None):
        cdef ssize_t n
        self._check()
        if len(data) == 0:
            return 0
        n = tls_send(self.conn, &data[0], <size_t>len(data))
        if n == TLS_AGAIN:
            raise TlsWantWrite
        if n < 0:
            self._fail()
        return n

    def fileno(self):
        return self._fd

    def unwrap(self):
        if self.conn != NULL:
            tls_shutdown(self.conn)

    def close(self):
        tls_close(self.conn)
        self.conn = NULL
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        self._fd = -1

    def peer_names(self):
        cdef char name[TLS_NAME_BYTES_MAX]
        cdef X509 *cert
        cdef GENERAL_NAMES *names
        cdef ASN1_STRING *value
        cdef int size, i
        cdef int kind = 0
        self._check()
        cert = SSL_get0_peer_certificate(self.conn.ssl)
        if cert == NULL:
            return None
        size = tls_peer_name(self.conn, name, sizeof(name))
        found = {"cn": name[:max(size, 0)].decode("utf-8", "replace"), "dns": [], "ips": []}
        names = <GENERAL_NAMES *>X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL)
        if names == NULL:
            return found
        for i in range(sk_GENERAL_NAME_num(names)):
            value = <ASN1_STRING *>GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names, i), &kind)
            if kind != GEN_DNS and kind != GEN_IPADD:
                continue
            data = ASN1_STRING_get0_data(value)[:ASN1_STRING_length(value)]
            if kind == GEN_DNS:
                found["dns"].append(data.decode("ascii", "replace"))
            elif len(data) in (4, 16):
                found["ips"].append(str(ipaddress.ip_address(data)))
        GENERAL_NAMES_free(names)
        return found

    def peer_certificates(self):
        cdef X509_STACK *chain
        cdef X509 *cert
        self._check()
        chain = SSL_get_peer_cert_chain(self.conn.ssl)
        cert = SSL_get0_peer_certificate(self.conn.ssl)
        if cert == NULL:
            return []
        found = [der(cert)]
        if chain != NULL:
            # A server's list lacks the client's own certificate, a client's begins with the server's.
            for i in range(sk_X509_num(chain)):
                data = der(sk_X509_value(chain, i))
                if data != found[0]:
                    found.append(data)
        return found

    def alpn(self):
        cdef const unsigned char *name = NULL
        cdef int size
        self._check()
        size = tls_alpn(self.conn, &name)
        return name[:size] if size else b""

    def version(self):
        self._check()
        return SSL_get_version(self.conn.ssl).decode()

    def cipher(self):
        self._check()
        return SSL_get_cipher_name(self.conn.ssl).decode()

    def detach(self):
        self._check()
        capsule = PyCapsule_New(self.conn, capsule_name, free_capsule)
        self.conn = NULL
        fd = self._fd
        if self.sock is not None:
            self.sock.detach()
            self.sock = None
        self._fd = -1
        return fd, capsule


cdef bytes der(X509 *cert):
    cdef unsigned char *data = NULL
    cdef int size = i2d_X509(cert, &data)
    if size < 0:
        raise MemoryError
    try:
        return <bytes>data[:size]
    finally:
        OPENSSL_free(data)
