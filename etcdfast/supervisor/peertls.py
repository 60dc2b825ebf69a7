"""Settings and files of TLS between members, looked at before anything is started: a mistake is one line."""

from etcdfast import log
from etcdfast.config import peertls
from etcdfast.config.checks import is_tls
from etcdfast.config.values import split_url
from etcdfast.supervisor.errors import StartError


def check_peer_tls(config):
    """Errors: StartError. To be called when the data directory is this member's: --peer-auto-tls writes there."""
    for url in peertls.useless_auth(config):
        text = "scheme is HTTP while --peer-client-cert-auth is enabled; ignoring client cert auth for this URL"
        log.warn(text, peer_url=url)
    if config.peer_auto_tls:
        _self_signed(config)
    if peertls.is_given(config) or peertls.listens(config):
        _check_files(config)


def _self_signed(config):
    if peertls.is_given(config):
        log.warn("ignoring peer auto TLS since certs given")
        return
    if config.peer_client_cert_auth or config.peer_trusted_ca_file:
        log.warn("members cannot verify each other with --peer-auto-tls; trusted CA and client cert auth are ignored")
    from etcdfast.supervisor.selfsigned import self_signed

    hosts = [split_url(url)[1] for url in config.listen_peer_urls if is_tls(url) and url.startswith("https:")]
    self_signed(peertls.self_signed_directory(config), hosts, config.self_signed_cert_validity, for_clients_too=True)


def _check_files(config):
    from etcdfast._ext.tlscontext import TlsContext, TlsError, TlsOptions

    accepting = TlsOptions(**peertls.accepting(config))
    log.info(
        "starting with peer TLS",
        cert=accepting.cert_file,
        key=accepting.key_file,
        client_cert=config.peer_client_cert_file,
        client_key=config.peer_client_key_file,
        trusted_ca=accepting.ca_file,
        client_cert_auth=accepting.client_cert_auth,
        crl_file=accepting.crl_file,
        cipher_suites=accepting.ciphers,
    )
    try:
        TlsContext(accepting)
        TlsContext(TlsOptions(**peertls.dialling(config)))
    except TlsError as err:
        raise StartError(str(err)) from None
