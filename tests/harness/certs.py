"""Certificates for tests, made in a millisecond each: an authority, what it issues, and lists of what it revoked.

    authority = Authority(directory)
    server = authority.issue("server", hosts=["127.0.0.1", "localhost"])
    alice = authority.issue("alice", hosts=[], server=False)
    authority.crl([alice])

Files appear whole: they are written aside and renamed, so a server that re-reads them at that moment finds the old
or the new. Issuing the same name again replaces its files, which is what a rotation is.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Cert:
    """PEM files of one certificate and its key."""

    cert_path: Path
    key_path: Path
    certificate: x509.Certificate

    @property
    def serial(self) -> int:
        return self.certificate.serial_number


class Authority:
    """A certificate authority of its own key: `ca_path` is its certificate. `rsa_keys`: RSA instead of P-256.

    Another authority made with the same directory and name replaces the files of this one.
    """

    def __init__(self, directory: Path | str, name: str = "ca", *, rsa_keys: bool = False) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.ca_path = self.directory / f"{name}.crt"
        self._rsa_keys = rsa_keys
        self._key = self._new_key()
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = _now()
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self._subject)
            .issuer_name(self._subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=3))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        write_whole(self.ca_path, _pem(self.certificate))

    def _new_key(self) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
        if self._rsa_keys:
            return rsa.generate_private_key(65537, 2048)
        return ec.generate_private_key(ec.SECP256R1())

    def issue(
        self,
        name: str,
        *,
        hosts: Sequence[str] = (),
        client: bool = True,
        server: bool = True,
        days: float = 1,
        not_before: datetime.datetime | None = None,
        expired: bool = False,
        common_name: str | None = None,
    ) -> Cert:
        """`name`.crt and `name`.key: `hosts` are DNS names and IP addresses, `client` and `server` the uses it allows.

        `common_name` is the name when not given; "" leaves it out.
        """
        key = self._new_key()
        now = _now()
        begins = not_before or now - datetime.timedelta(days=2)
        ends = now - datetime.timedelta(days=1) if expired else now + datetime.timedelta(days=days)
        subject = name if common_name is None else common_name
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []))
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH] * client + [ExtendedKeyUsageOID.SERVER_AUTH] * server
        if uses:
            builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
            )
        certificate = builder.sign(self._key, hashes.SHA256())
        cert = Cert(self.directory / f"{name}.crt", self.directory / f"{name}.key", certificate)
        # The key first: whoever watches the certificate finds the pair.
        write_whole(
            cert.key_path,
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8 if self._rsa_keys else serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            ),
            0o600,
        )
        write_whole(cert.cert_path, _pem(certificate))
        return cert

    def crl(self, revoked: Iterable[Cert | int] = (), *, name: str | None = None, pem: bool = True) -> Path:
        """`name`.crl (the authority's name when not given): certificates, or serial numbers, that are revoked."""
        now = _now()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._subject)
            .last_update(now - datetime.timedelta(hours=1))
            .next_update(now + datetime.timedelta(days=30))
        )
        for one in revoked:
            serial = one.serial if isinstance(one, Cert) else one
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(serial)
                .revocation_date(now - datetime.timedelta(hours=1))
                .build()
            )
        path = self.directory / f"{name or self.name}.crl"
        made = builder.sign(self._key, hashes.SHA256())
        write_whole(path, made.public_bytes(serialization.Encoding.PEM if pem else serialization.Encoding.DER))
        return path


def bundle(path: Path | str, authorities: Iterable[Authority]) -> Path:
    """One file with the certificates of several authorities: what a change of authorities goes through."""
    write_whole(Path(path), b"".join(_pem(authority.certificate) for authority in authorities))
    return Path(path)


def write_whole(path: Path, data: bytes, mode: int = 0o644) -> None:
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    os.chmod(temporary, mode)
    os.replace(temporary, path)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not authority,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
