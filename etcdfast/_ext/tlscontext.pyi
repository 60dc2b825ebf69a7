"""TLS of one role: what a listener or a dialler needs besides the socket."""

import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

class TlsError(OSError):
    """A file cannot be used, an option is unknown, or a connection failed; one line."""

class TlsWantRead(BlockingIOError): ...
class TlsWantWrite(BlockingIOError): ...

class TlsOptions(NamedTuple):
    """kind: "server" or "client". Names of files, "" = none.

    ca_file: a server that has one, or has client_cert_auth, wants a certificate of its clients and verifies it (without
             ca_file against the system's); a client verifies servers against it, or against the system's.
    crl_file: PEM or DER; certificates of these serials are refused, as in etcd whoever issued them.
    allowed_cns, allowed_hostnames: when any is given, the peer's certificate must match one of them.
    min_version, max_version: "TLS1.2", "TLS1.3", "" = no limit upwards.
    ciphers: Go's names of TLS 1.2 suites, in order of preference; () = the default.
    skip_verify: of a client, take any server.
    """

    kind: str
    cert_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    crl_file: str = ""
    client_cert_auth: bool = False
    allowed_cns: Sequence[str] = ()
    allowed_hostnames: Sequence[str] = ()
    min_version: str = "TLS1.2"
    max_version: str = ""
    ciphers: Sequence[str] = ()
    alpn: Sequence[bytes] = ()
    skip_verify: bool = False

def known_cipher(name: str) -> bool:
    """Whether Go knows a cipher suite of this name."""

class TlsContext:
    verifies: bool
    loads: int  # how often the files were read with success
    def __init__(self, options: TlsOptions, on_message: Callable[[str, str], Any] | None = None) -> None:
        """Read the files. `on_message(level, text)`: what to log when they are re-read. Errors: TlsError."""
    def reload(self) -> bool:
        """Read the files again whether they look changed or not; broken ones change nothing. True: read."""
    def expires(self) -> int | None:
        """When the certificate ends, in seconds since 1970; None without one."""

class TlsSocket:
    """A non-blocking connected socket (or a descriptor, which stays the caller's) under TLS."""

    def __init__(
        self,
        context: TlsContext,
        sock: socket.socket | int,
        *,
        server_side: bool = False,
        server_name: str | None = None,
    ) -> None:
        """`server_name`: of a client, the name or address that the server's certificate must have."""
    def do_handshake(self) -> None:
        """Errors: TlsWantRead, TlsWantWrite (again when the socket is so), TlsError."""
    def recv(self, size: int) -> bytes:
        """b"" at the end. Read until TlsWantRead before waiting for the socket. Errors: TlsWantRead, TlsError."""
    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Bytes that have left; the others must come again, first. Errors: TlsWantWrite, TlsError."""
    def fileno(self) -> int: ...
    def unwrap(self) -> None:
        """Say close_notify, if the socket takes it now."""
    def close(self) -> None:
        """Free the connection, and close the socket if it was given as one."""
    def peer_names(self) -> dict[str, Any] | None:
        """{"cn": str, "dns": [str], "ips": [str]} of the peer's certificate; None without one."""
    def peer_certificates(self) -> list[bytes]:
        """What the peer sent, DER, its own first."""
    def alpn(self) -> bytes: ...
    def version(self) -> str: ...
    def cipher(self) -> str: ...
    def detach(self) -> tuple[int, object]:
        """(descriptor, capsule of the tls_conn) for a C loop; this object forgets both. The caller owns them."""
