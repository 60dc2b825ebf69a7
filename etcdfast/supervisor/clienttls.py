"""Settings and files of TLS towards clients, looked at before anything is started: a mistake is one line."""

from etcdfast import log
from etcdfast.config import clienttls
from etcdfast.config.values import split_url
from etcdfast.supervisor.errors import StartError


def check_client_tls(config):
    """Errors: StartError. To be called when the data directory is this member's: --auto-tls writes there."""
    for text, url in clienttls.client_tls_warnings(config):
        log.warn(text, client_url=url)
    if config.auto_tls:
        _self_signed(config)
    if clienttls.serves_tls(config):
        _check_files(config)


def _self_signed(config):
    if clienttls.is_given(config):
        log.warn("ignoring client auto TLS since certs given")
        return
    from etcdfast.supervisor.selfsigned import self_signed

    hosts = [split_url(url)[1] for url in clienttls.listened_urls(config) if url.startswith("https:")]
    self_signed(clienttls.self_signed_directory(config), hosts, config.self_signed_cert_validity)


def _check_files(config):
    from etcdfast._ext.tlscontext import TlsContext, TlsError, TlsOptions

    options = TlsOptions(**clienttls.serving(config))
    log.info(
        "starting with client TLS",
        cert=options.cert_file,
        key=options.key_file,
        trusted_ca=options.ca_file,
        client_cert_auth=options.client_cert_auth,
        crl_file=options.crl_file,
        cipher_suites=options.ciphers,
    )
    try:
        TlsContext(options)
    except TlsError as err:
        raise StartError(str(err)) from None
