"""The part of OpenSSL's C API (3.0 or newer) that the transport uses."""

from libc.stdint cimport uint64_t


cdef extern from "<openssl/ssl.h>" nogil:
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_CTX:
        pass
    ctypedef struct SSL_METHOD:
        pass
    ctypedef struct BIO:
        pass
    ctypedef struct BIO_METHOD:
        pass
    ctypedef struct X509:
        pass
    ctypedef struct X509_CRL:
        pass
    ctypedef struct X509_REVOKED:
        pass
    ctypedef struct X509_STORE:
        pass
    ctypedef struct X509_STORE_CTX:
        pass
    ctypedef struct X509_VERIFY_PARAM:
        pass
    ctypedef struct X509_NAME:
        pass
    ctypedef struct X509_NAME_ENTRY:
        pass
    ctypedef struct ASN1_STRING:
        pass
    ctypedef struct ASN1_INTEGER:
        pass
    ctypedef struct EVP_PKEY:
        pass
    ctypedef struct GENERAL_NAME:
        int type
    ctypedef struct GENERAL_NAMES:
        pass
    ctypedef struct X509_STACK "STACK_OF(X509)":
        pass
    ctypedef struct BIGNUM:
        pass

    ctypedef int (*verify_callback)(int ok, X509_STORE_CTX *store) noexcept nogil
    ctypedef int (*alpn_callback)(SSL *ssl, const unsigned char **out, unsigned char *out_size,
                                  const unsigned char *offered, unsigned int offered_size, void *arg) noexcept nogil
    ctypedef int (*password_callback)(char *buf, int size, int writing, void *arg) noexcept nogil

    const SSL_METHOD *TLS_method()
    SSL_CTX *SSL_CTX_new(const SSL_METHOD *method)
    void SSL_CTX_free(SSL_CTX *ctx)
    uint64_t SSL_CTX_set_options(SSL_CTX *ctx, uint64_t options)
    long SSL_CTX_set_mode(SSL_CTX *ctx, long mode)
    long SSL_CTX_clear_mode(SSL_CTX *ctx, long mode)
    long SSL_CTX_set_session_cache_mode(SSL_CTX *ctx, long mode)
    int SSL_CTX_set_num_tickets(SSL_CTX *ctx, size_t count)
    void SSL_CTX_set_read_ahead(SSL_CTX *ctx, int yes)
    long SSL_CTX_set_max_cert_list(SSL_CTX *ctx, long size)
    int SSL_CTX_set_min_proto_version(SSL_CTX *ctx, int version)
    int SSL_CTX_set_max_proto_version(SSL_CTX *ctx, int version)
    int SSL_CTX_set_cipher_list(SSL_CTX *ctx, const char *names)
    int SSL_CTX_set_ciphersuites(SSL_CTX *ctx, const char *names)
    int SSL_CTX_use_certificate(SSL_CTX *ctx, X509 *cert)
    int SSL_CTX_add0_chain_cert(SSL_CTX *ctx, X509 *cert)
    int SSL_CTX_use_PrivateKey(SSL_CTX *ctx, EVP_PKEY *key)
    int SSL_CTX_check_private_key(const SSL_CTX *ctx)
    X509_STORE *SSL_CTX_get_cert_store(const SSL_CTX *ctx)
    int SSL_CTX_add_client_CA(SSL_CTX *ctx, X509 *cert)
    int SSL_CTX_set_default_verify_paths(SSL_CTX *ctx)
    void SSL_CTX_set_verify(SSL_CTX *ctx, int mode, verify_callback callback)
    void SSL_CTX_set_alpn_select_cb(SSL_CTX *ctx, alpn_callback callback, void *arg)
    int SSL_CTX_set_alpn_protos(SSL_CTX *ctx, const unsigned char *protos, unsigned int size)
    void *SSL_CTX_get_app_data(const SSL_CTX *ctx)
    int SSL_CTX_set_app_data(SSL_CTX *ctx, void *data)
    X509_VERIFY_PARAM *SSL_CTX_get0_param(SSL_CTX *ctx)

    SSL *SSL_new(SSL_CTX *ctx)
    void SSL_free(SSL *ssl)
    SSL_CTX *SSL_get_SSL_CTX(const SSL *ssl)
    void SSL_set_bio(SSL *ssl, BIO *rbio, BIO *wbio)
    void SSL_set_accept_state(SSL *ssl)
    void SSL_set_connect_state(SSL *ssl)
    int SSL_do_handshake(SSL *ssl)
    int SSL_is_init_finished(const SSL *ssl)
    int SSL_read_ex(SSL *ssl, void *buf, size_t size, size_t *got)
    int SSL_write_ex(SSL *ssl, const void *buf, size_t size, size_t *took)
    int SSL_has_pending(const SSL *ssl)
    int SSL_shutdown(SSL *ssl)
    int SSL_get_error(const SSL *ssl, int rc)
    void SSL_get0_alpn_selected(const SSL *ssl, const unsigned char **data, unsigned int *size)
    const char *SSL_get_version(const SSL *ssl)
    const char *SSL_get_cipher_name(const SSL *ssl)
    X509 *SSL_get0_peer_certificate(const SSL *ssl)
    X509_STACK *SSL_get_peer_cert_chain(const SSL *ssl)
    long SSL_get_verify_result(const SSL *ssl)
    long SSL_set_tlsext_host_name(SSL *ssl, const char *name)
    int SSL_set_app_data(SSL *ssl, void *data)
    void *SSL_get_app_data(const SSL *ssl)
    int SSL_get_ex_data_X509_STORE_CTX_idx()
    int SSL_select_next_proto(unsigned char **out, unsigned char *out_size, const unsigned char *server,
                              unsigned int server_size, const unsigned char *client, unsigned int client_size)

    enum:
        SSL_OP_NO_RENEGOTIATION
        SSL_OP_NO_TICKET
        SSL_OP_NO_COMPRESSION
        SSL_OP_CIPHER_SERVER_PREFERENCE
        SSL_OP_PRIORITIZE_CHACHA
        SSL_OP_IGNORE_UNEXPECTED_EOF
        SSL_MODE_ENABLE_PARTIAL_WRITE
        SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
        SSL_MODE_RELEASE_BUFFERS
        SSL_MODE_AUTO_RETRY
        SSL_SESS_CACHE_OFF
        SSL_VERIFY_NONE
        SSL_VERIFY_PEER
        SSL_VERIFY_FAIL_IF_NO_PEER_CERT
        SSL_ERROR_NONE
        SSL_ERROR_WANT_READ
        SSL_ERROR_WANT_WRITE
        SSL_ERROR_ZERO_RETURN
        SSL_TLSEXT_ERR_OK
        SSL_TLSEXT_ERR_ALERT_FATAL
        OPENSSL_NPN_NEGOTIATED
        TLS1_2_VERSION
        TLS1_3_VERSION
        SSL_R_CERTIFICATE_VERIFY_FAILED
        SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE


cdef extern from "<openssl/bio.h>" nogil:
    BIO_METHOD *BIO_meth_new(int type, const char *name)
    int BIO_meth_set_write(BIO_METHOD *method, int (*write)(BIO *, const char *, int) noexcept nogil)
    int BIO_meth_set_read(BIO_METHOD *method, int (*read)(BIO *, char *, int) noexcept nogil)
    int BIO_meth_set_ctrl(BIO_METHOD *method, long (*ctrl)(BIO *, int, long, void *) noexcept nogil)
    BIO *BIO_new(const BIO_METHOD *method)
    BIO *BIO_new_mem_buf(const void *buf, int size)
    int BIO_free(BIO *bio)
    void BIO_set_data(BIO *bio, void *data)
    void *BIO_get_data(BIO *bio)
    void BIO_set_init(BIO *bio, int yes)
    void BIO_set_retry_read(BIO *bio)
    void BIO_set_retry_write(BIO *bio)
    void BIO_clear_retry_flags(BIO *bio)
    enum:
        BIO_TYPE_SOURCE_SINK
        BIO_CTRL_FLUSH


cdef extern from "<openssl/err.h>" nogil:
    unsigned long ERR_peek_error()
    unsigned long ERR_peek_last_error()
    void ERR_clear_error()
    const char *ERR_reason_error_string(unsigned long error)
    int ERR_GET_REASON(unsigned long error)


cdef extern from "<openssl/pem.h>" nogil:
    X509 *PEM_read_bio_X509(BIO *bio, X509 **x, password_callback callback, void *arg)
    X509_CRL *PEM_read_bio_X509_CRL(BIO *bio, X509_CRL **x, password_callback callback, void *arg)
    EVP_PKEY *PEM_read_bio_PrivateKey(BIO *bio, EVP_PKEY **x, password_callback callback, void *arg)


cdef extern from "<openssl/x509v3.h>" nogil:
    void X509_free(X509 *cert)
    void X509_CRL_free(X509_CRL *crl)
    void EVP_PKEY_free(EVP_PKEY *key)
    X509_CRL *d2i_X509_CRL_bio(BIO *bio, X509_CRL **crl)
    int i2d_X509(const X509 *cert, unsigned char **out)
    int X509_up_ref(X509 *cert)
    int X509_STORE_add_cert(X509_STORE *store, X509 *cert)
    int X509_CRL_get0_by_serial(X509_CRL *crl, X509_REVOKED **found, const ASN1_INTEGER *serial)
    const ASN1_INTEGER *X509_get0_serialNumber(const X509 *cert)
    X509_NAME *X509_get_subject_name(const X509 *cert)
    int X509_NAME_get_index_by_NID(const X509_NAME *name, int nid, int after)
    X509_NAME_ENTRY *X509_NAME_get_entry(const X509_NAME *name, int index)
    ASN1_STRING *X509_NAME_ENTRY_get_data(const X509_NAME_ENTRY *entry)
    int ASN1_STRING_to_UTF8(unsigned char **out, const ASN1_STRING *text)
    const unsigned char *ASN1_STRING_get0_data(const ASN1_STRING *text)
    int ASN1_STRING_length(const ASN1_STRING *text)
    void *X509_get_ext_d2i(const X509 *cert, int nid, int *critical, int *index)
    int sk_GENERAL_NAME_num(const GENERAL_NAMES *names)
    GENERAL_NAME *sk_GENERAL_NAME_value(const GENERAL_NAMES *names, int index)
    void *GENERAL_NAME_get0_value(const GENERAL_NAME *name, int *type)
    void GENERAL_NAMES_free(GENERAL_NAMES *names)
    int sk_X509_num(const X509_STACK *stack)
    X509 *sk_X509_value(const X509_STACK *stack, int index)
    int X509_check_ip_asc(X509 *cert, const char *address, unsigned int flags)
    int X509_VERIFY_PARAM_set_flags(X509_VERIFY_PARAM *param, unsigned long flags)
    int X509_STORE_CTX_get_error_depth(const X509_STORE_CTX *store)
    void X509_STORE_CTX_set_error(X509_STORE_CTX *store, int error)
    void *X509_STORE_CTX_get_ex_data(const X509_STORE_CTX *store, int index)
    X509 *X509_STORE_CTX_get_current_cert(const X509_STORE_CTX *store)
    const char *X509_verify_cert_error_string(long error)
    enum:
        X509_V_OK
        X509_V_ERR_CERT_REVOKED
        X509_V_ERR_CERT_REJECTED
        X509_V_ERR_HOSTNAME_MISMATCH
        X509_V_FLAG_PARTIAL_CHAIN
        GEN_DNS
        GEN_IPADD


cdef extern from "<openssl/obj_mac.h>" nogil:
    enum:
        NID_commonName
        NID_subject_alt_name


cdef extern from "<openssl/crypto.h>" nogil:
    void OPENSSL_free(void *p)
