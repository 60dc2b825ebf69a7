"""What the flags of TLS say, which all our tools have alike; without grpc, whose import starts threads."""

from __future__ import annotations

from typing import NamedTuple


class SecurityError(ValueError):
    """Flags or files of TLS that cannot be used; one line."""


class Security(NamedTuple):
    """What --cacert, --cert, --key and --insecure-skip-tls-verify say: file names, "" for none."""

    cacert: str = ""
    cert: str = ""
    key: str = ""
    skip_verify: bool = False

    @property
    def wanted(self) -> bool:
        """Whether an endpoint without a scheme is one of TLS."""
        return any(self)

    def check(self) -> None:
        """Errors: SecurityError."""
        if bool(self.cert) != bool(self.key):
            raise SecurityError("--cert and --key go together: a client certificate needs its key")
        for name, path in (("--cacert", self.cacert), ("--cert", self.cert), ("--key", self.key)):
            read_file(name, path)


def split_scheme(endpoint: str, security: Security) -> tuple[str, bool]:
    """(address, whether it is TLS) of host:port, http://host:port or https://host:port."""
    for scheme, secure in (("http://", False), ("https://", True)):
        if endpoint.startswith(scheme):
            return endpoint[len(scheme) :], secure
    return endpoint, security.wanted


def read_file(name: str, path: str) -> bytes | None:
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as err:
        raise SecurityError(f"{name} {path}: {err.strerror}") from None
