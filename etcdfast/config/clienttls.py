"""What the settings say about TLS towards clients: the options of the listeners' context."""

import os

from etcdfast.config.checks import is_tls

ALPN = (b"h2", b"http/1.1")


def listened_urls(config):
    return (*config.listen_client_urls, *config.listen_client_http_urls, *config.listen_metrics_urls)


def serves_tls(config):
    """Whether any URL that clients come by is one of TLS."""
    return any(map(is_tls, listened_urls(config)))


def is_given(config):
    """Whether a certificate is named."""
    return bool(config.cert_file or config.key_file)


def client_tls_warnings(config):
    """(text, URL) of settings that a URL without TLS makes useless, as etcd says it."""
    for url in (*config.listen_client_urls, *config.listen_client_http_urls):
        if is_tls(url):
            continue
        if is_given(config):
            yield "scheme is HTTP while key and cert files are present; ignoring key and cert files", url
        if config.client_cert_auth:
            yield "scheme is HTTP while --client-cert-auth is enabled; ignoring client cert auth for this URL", url


def self_signed_directory(config):
    """Where --auto-tls keeps its certificate."""
    return os.path.join(os.path.abspath(config.data_dir), "fixtures", "client")


def serving(config):
    """Fields of the TlsOptions of client listeners."""
    cert, key = config.cert_file, config.key_file
    if not cert and config.auto_tls:
        directory = self_signed_directory(config)
        cert, key = os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem")
    return {
        "kind": "server",
        "cert_file": cert,
        "key_file": key,
        "ca_file": config.trusted_ca_file,
        "client_cert_auth": config.client_cert_auth,
        "crl_file": config.client_crl_file,
        "allowed_cns": config.client_cert_allowed_cn,
        "allowed_hostnames": config.client_cert_allowed_hostname,
        "min_version": config.tls_min_version,
        "max_version": config.tls_max_version,
        "ciphers": config.cipher_suites,
        "alpn": ALPN,
    }
