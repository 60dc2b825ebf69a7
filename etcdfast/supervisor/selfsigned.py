"""Certificates that a member makes for itself: --auto-tls and --peer-auto-tls.

As etcd's: below the data directory, made once and used again at the next start, for the hosts of the URLs listened on.
"""

import datetime
import ipaddress
import os

from etcdfast import log
from etcdfast.config.values import split_host_port
from etcdfast.supervisor.errors import StartError

DAYS_PER_YEAR = 365


def self_signed(directory, addresses, years, for_clients_too=False):
    """(certificate, key): the paths of both, made unless they are there.

    `addresses` are host:port as in URLs. `for_clients_too`: it may be shown to servers as well. Errors: StartError.
    """
    if years == 0:
        raise StartError("selfSignedCertValidity is invalid,it should be greater than 0")
    cert_path, key_path = os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem")
    if os.path.exists(cert_path) and os.path.exists(key_path):
        return cert_path, key_path
    hosts = [split_host_port(address)[0] for address in addresses]
    cert, key, ends = _make(hosts, years, for_clients_too)
    log.warn("automatically generate certificates", certificate_validity_bound_not_after=ends.isoformat())
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        _write(key_path, key, 0o600)
        _write(cert_path, cert, 0o644)
    except OSError as err:
        raise StartError(f"cannot write certificates below {directory}: {err.strerror}") from None
    return cert_path, key_path


def _write(path, data, mode):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        file.write(data)


def _make(hosts, years, for_clients_too):
    # Takes 0.1 s to import, and hardly any member needs it.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    # P-256 where etcd takes P-521: each handshake signs with it, twenty times as fast.
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "etcd")])
    now = datetime.datetime.now(datetime.UTC)
    ends = now + datetime.timedelta(days=DAYS_PER_YEAR * years)
    uses = [ExtendedKeyUsageOID.SERVER_AUTH]
    if for_clients_too:
        uses.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(ends)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_encipherment=True,
                content_commitment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    names = [_general_name(x509, host) for host in dict.fromkeys(hosts) if host]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    cert = builder.sign(key, hashes.SHA256())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return cert.public_bytes(serialization.Encoding.PEM), key_pem, ends


def _general_name(x509, host):
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
