"""What the settings say about TLS towards clients: checks in etcd's words, and the options of the listeners' context."""

import os

from etcdfast.config.checks import ConfigError
from etcdfast.config.values import quote, split_url

SECURE = ("https", "unixs")
VERSIONS = ("", "TLS1.2", "TLS1.3")
ALPN = (b"h2", b"http/1.1")


def is_secure(url):
    return split_url(url)[0] in SECURE


def listened_urls(config):
    return (*config.listen_client_urls, *config.listen_client_http_urls, *config.listen_metrics_urls)


def serves_tls(config):
    """Whether any URL that clients come by is one of TLS."""
    return any(map(is_secure, listened_urls(config)))


def is_given(config):
    """Whether a certificate is named."""
    return bool(config.cert_file or config.key_file)


def check_tls_versions(config):
    """Of all listeners. Raises ConfigError."""
    least, most = config.tls_min_version, config.tls_max_version
    for version in (least, most):
        if version not in VERSIONS:
            raise ConfigError(f"unexpected TLS version {quote(version)} (must be one of: TLS1.2, TLS1.3)")
    if most and least > most:
        raise ConfigError(f"min version ({least}) is greater than max version ({most})")
    if least == "TLS1.3" and config.cipher_suites:
        raise ConfigError("cipher suites cannot be configured when only TLS1.3 is enabled")


def check_client_tls(config):
    """Raises ConfigError."""
    cert, key = config.cert_file, config.key_file
    for url in listened_urls(config):
        if is_secure(url) and not is_given(config) and not config.auto_tls:
            raise ConfigError(
                f"TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
            )
    if serves_tls(config) and bool(cert) != bool(key):
        raise ConfigError(f"KeyFile and CertFile must both be present[key: {key}, cert: {cert}]")


def client_tls_warnings(config):
    """(text, URL) of settings that a URL without TLS makes useless, as etcd says it."""
    for url in (*config.listen_client_urls, *config.listen_client_http_urls):
        if is_secure(url):
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
        "allowed_hostnames": config.client_cert_allowed_hostname,
        "min_version": config.tls_min_version,
        "max_version": config.tls_max_version,
        "ciphers": config.cipher_suites,
        "alpn": ALPN,
    }
