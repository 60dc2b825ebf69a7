"""Endpoints as typed by a person -> socket addresses and HTTP/2 header blocks for the generator."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from urllib.parse import urlsplit

# RFC 7541 appendix A: entries of the static table that a gRPC request uses as they are
STATIC_METHOD_POST = 3
STATIC_SCHEME_HTTP = 6
FIRST_DYNAMIC_INDEX = 62
ENTRY_OVERHEAD_BYTES = 32


class EndpointError(ValueError):
    """An endpoint that cannot be used; the text says which and why."""


@dataclass(frozen=True)
class Endpoint:
    """Where to connect: `address` is the raw struct sockaddr of `family`."""

    text: str
    family: int
    address: bytes
    authority: str


def parse_endpoints(text: str) -> list[Endpoint]:
    """Comma-separated host:port, http://host:port or unix:///path; names are resolved here, once.

    Errors: EndpointError.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise EndpointError("--endpoints: no endpoint given")
    return [_parse(part) for part in parts]


def _parse(text: str) -> Endpoint:
    if text.startswith(("unix:", "unixs:")):
        return _parse_unix(text)
    url = urlsplit(text if "://" in text else f"http://{text}")
    if url.scheme == "https":
        raise EndpointError(f"endpoint {text}: TLS is not supported by this tool yet; use an http:// endpoint")
    if url.scheme != "http" or url.path not in ("", "/") or url.query:
        raise EndpointError(f"endpoint {text}: expected host:port, http://host:port or unix:///path")
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
    return Endpoint(text, family, raw, url.netloc)


def _parse_unix(text: str) -> Endpoint:
    scheme, path = text.split(":", 1)
    if scheme == "unixs":
        raise EndpointError(f"endpoint {text}: TLS is not supported by this tool yet; use unix://")
    path = path.removeprefix("//")
    raw_path = path.encode()
    if not path or len(raw_path) > 107:
        raise EndpointError(f"endpoint {text}: a socket path has 1 to 107 bytes")
    return Endpoint(text, socket.AF_UNIX, struct.pack("=H", socket.AF_UNIX) + raw_path + b"\0", "localhost")


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


def header_blocks(authority: str, path: str, metadata: list[tuple[str, str]] = ()) -> tuple[bytes, bytes, bytes, int]:
    """Header block of one gRPC method in three forms, and the table room the first one takes.

    Returns (first, following, plain, table_bytes): `first` enters the headers into the peer's
    dynamic table, `following` refers to them there (valid while nothing else is entered), `plain`
    needs no table.
    """
    fields = [
        (":path", path),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "etcdfast-bench"),
        *metadata,
    ]
    if len(fields) > 32:
        raise ValueError("too many headers for one-byte table references")
    fixed = _integer(7, 0x80, STATIC_METHOD_POST) + _integer(7, 0x80, STATIC_SCHEME_HTTP)
    first, plain, table_bytes = bytearray(fixed), bytearray(fixed), 0
    for name, value in fields:
        raw_name, raw_value = name.encode(), value.encode()
        literal = _integer(7, 0, len(raw_name)) + raw_name + _integer(7, 0, len(raw_value)) + raw_value
        first += b"\x40" + literal
        plain += b"\x00" + literal
        table_bytes += len(raw_name) + len(raw_value) + ENTRY_OVERHEAD_BYTES
    # the newest entry has the lowest index
    following = fixed + b"".join(
        _integer(7, 0x80, FIRST_DYNAMIC_INDEX + len(fields) - 1 - i) for i in range(len(fields))
    )
    return bytes(first), following, bytes(plain), table_bytes
