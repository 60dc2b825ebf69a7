"""What the settings say about TLS between members: the options of both sides' contexts."""

import os

from etcdfast.config.checks import is_tls


def listens(config):
    """Whether any URL that members come by is one of TLS."""
    return any(map(is_tls, config.listen_peer_urls))


def is_given(config):
    """Whether a certificate is named."""
    return bool(config.peer_cert_file or config.peer_key_file)


def is_self_signed(config):
    """Whether --peer-auto-tls is in force. As in etcd, the other settings of TLS between members are not, then."""
    return config.peer_auto_tls and not is_given(config)


def self_signed_directory(config):
    """Where --peer-auto-tls keeps its certificate."""
    return os.path.join(os.path.abspath(config.data_dir), "fixtures", "peer")


def useless_auth(config):
    """URLs at which --peer-client-cert-auth has no effect."""
    return [url for url in config.listen_peer_urls if config.peer_client_cert_auth and not is_tls(url)]


def _common(config):
    common = {
        "min_version": config.tls_min_version,
        "max_version": config.tls_max_version,
        "ciphers": config.cipher_suites,
    }
    if is_self_signed(config):
        return common
    return {
        **common,
        "ca_file": config.peer_trusted_ca_file,
        # Whom etcd takes no connection from it still dials. Here neither is done with a revoked one.
        "crl_file": config.peer_crl_file,
        "allowed_cns": config.peer_cert_allowed_cn,
        "allowed_hostnames": config.peer_cert_allowed_hostname,
    }


def _own(config):
    if is_self_signed(config):
        directory = self_signed_directory(config)
        return os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem")
    return config.peer_cert_file, config.peer_key_file


def accepting(config):
    """Fields of the TlsOptions towards members that dial this one."""
    cert, key = _own(config)
    auth = config.peer_client_cert_auth and not is_self_signed(config)
    return {"kind": "server", "cert_file": cert, "key_file": key, "client_cert_auth": auth, **_common(config)}


def dialling(config):
    """Fields of the TlsOptions towards members that this one dials."""
    cert, key = _own(config)
    if config.peer_client_cert_file and not is_self_signed(config):
        cert, key = config.peer_client_cert_file, config.peer_client_key_file
    # A certificate that a member made for itself nobody can verify.
    skip = is_self_signed(config)
    return {"kind": "client", "cert_file": cert, "key_file": key, "skip_verify": skip, **_common(config)}
