"""Endpoints as typed by a person -> socket addresses and HTTP/2 header blocks for the generator."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from urllib.parse import urlsplit

from etcdfast.client.security import Security

# RFC 7541 4.1
ENTRY_OVERHEAD_BYTES = 32
HEADERS_MAX = 32
NOTHING = Security()


class EndpointError(ValueError):
    """An endpoint that cannot be used; the text says which and why."""


@dataclass(frozen=True)
class Endpoint:
    """Where to connect: `address` is the raw struct sockaddr of `family`."""

    text: str
    family: int
    address: bytes
    authority: str
    security: Security | None = None  # TLS
    host: str = ""  # name or address that its certificate must hold
    metadata: tuple[tuple[str, str], ...] = ()  # of every call


def parse_endpoints(text: str, security: Security = NOTHING) -> list[Endpoint]:
    """Comma-separated host:port, http://host:port, https://host:port or unix:///path; names are resolved here, once.

    Errors: EndpointError.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise EndpointError("--endpoints: no endpoint given")
    return [_parse(part, security) for part in parts]


def _parse(text: str, security: Security) -> Endpoint:
    if text.startswith(("unix:", "unixs:")):
        return _parse_unix(text, security)
    url = urlsplit(text if "://" in text else f"{'https' if security.wanted else 'http'}://{text}")
    if url.scheme not in ("http", "https") or url.path not in ("", "/") or url.query:
        raise EndpointError(f"endpoint {text}: expected host:port, http://host:port, https://host:port or unix:///path")
    try:
        port = url.port
    except ValueError:
        port = None
    if not url.hostname or not port:
        raise EndpointError(f"endpoint {text}: expected host:port")
    try:
        family, _, _, _, address = socket.getaddrinfo(url.hostname, port, type=socket.SOCK_STREAM)[0]
    except OSError as e:
        raise EndpointError(f"endpoint {text}: {e.strerror}") from None
    if family == socket.AF_INET6:
        host, port, flow, scope = address
        raw = struct.pack("=H", family) + struct.pack(">HI", port, flow)
        raw += socket.inet_pton(family, host.split("%")[0]) + struct.pack("=I", scope)
    else:
        raw = struct.pack("=H", family) + struct.pack(">H", port) + socket.inet_pton(family, address[0]) + bytes(8)
    return Endpoint(text, family, raw, url.netloc, security if url.scheme == "https" else None, url.hostname)


def _parse_unix(text: str, security: Security) -> Endpoint:
    scheme, path = text.split(":", 1)
    path = path.removeprefix("//")
    raw_path = path.encode()
    if not path or len(raw_path) > 107:
        raise EndpointError(f"endpoint {text}: a socket path has 1 to 107 bytes")
    address = struct.pack("=H", socket.AF_UNIX) + raw_path + b"\0"
    return Endpoint(text, socket.AF_UNIX, address, "localhost", security if scheme == "unixs" else None, "localhost")


def _integer(prefix_bits: int, flags: int, value: int) -> bytes:
    """RFC 7541 5.1."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes([flags | value])
    out = bytearray([flags | limit])
    value -= limit
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _literal(name: str, value: str) -> bytes:
    """Name and value as strings, without the byte that says what to do with them (RFC 7541 6.2)."""
    raw_name, raw_value = name.encode(), value.encode()
    return _integer(7, 0, len(raw_name)) + raw_name + _integer(7, 0, len(raw_value)) + raw_value


def _entry_bytes(name: str, value: str) -> int:
    return len(name.encode()) + len(value.encode()) + ENTRY_OVERHEAD_BYTES


def path_literal(path: str) -> bytes:
    """The `:path` header of a method, for `Generator`."""
    return _literal(":path", path)


def header_row(authority: str, paths: list[str], metadata: list[tuple[str, str]] = ()) -> tuple[bytes, bytes, int, int]:
    """Headers of a request other than its path: (entering, plain, headers, table_bytes).

    `entering` are literals that enter them into the peer's dynamic table, `plain` literals that do
    not, `headers` their number. `table_bytes` is the room in the table for them and all the paths.
    """
    fields = [
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "etcdfast-bench"),
        *metadata,
    ]
    if len(fields) > HEADERS_MAX:
        raise ValueError("too many headers for one-byte table references")
    literals = [_literal(name, value) for name, value in fields]
    table_bytes = sum(_entry_bytes(name, value) for name, value in fields)
    table_bytes += sum(_entry_bytes(":path", path) for path in paths)
    return (
        b"".join(b"\x40" + one for one in literals),
        b"".join(b"\x00" + one for one in literals),
        len(fields),
        table_bytes,
    )
