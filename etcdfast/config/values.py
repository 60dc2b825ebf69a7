"""Kinds of setting values: text of a flag, variable or file -> plain Python value.

They take what Go's flag package and etcd's own flag types take, and refuse with the same words, because
users and scripts meet these words. Every parser raises ValueError with the reason only; the caller adds
which setting and which value.
"""

import json
import socket
from collections import namedtuple

UINT64_MAX = (1 << 64) - 1


def quote(text):
    """`text` in double quotes, as Go's %q prints it."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(escapes.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in text) + '"'


def _integer(text, low, high):
    digits = text[1:] if text[:1] in ("-", "+") and low < 0 else text
    try:
        if not digits or not digits[0].isdecimal() or not digits.isascii():
            raise ValueError
        # Go reads a leading 0 as octal; Python's base 0 wants 0o.
        is_octal = len(digits) > 1 and digits[0] == "0" and digits[1] in "01234567_"
        value = int(digits.replace("_", "") if is_octal else digits, 8 if is_octal else 0)
    except ValueError:
        raise ValueError("parse error") from None
    value = -value if text.startswith("-") else value
    if not low <= value <= high:
        raise ValueError("value out of range")
    return value


def uint(text):
    return _integer(text, 0, UINT64_MAX)


def uint32(text):
    try:
        return _integer(text, 0, (1 << 32) - 1)
    except ValueError as err:
        reason = "invalid syntax" if str(err) == "parse error" else str(err)
        raise ValueError(f"strconv.ParseUint: parsing {quote(text)}: {reason}") from None


def int64(text):
    return _integer(text, -(1 << 63), (1 << 63) - 1)


def boolean(text):
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ValueError("parse error")


def string(text):
    return text


_UNIT_NS = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION_NS_MAX = (1 << 63) - 1


def duration_ns(text):
    """Go's duration text ("1h30m", "100ms", "0") as nanoseconds. Raises ValueError in time.ParseDuration's words."""
    sign, rest = (-1, text[1:]) if text[:1] == "-" else (1, text.removeprefix("+"))
    if rest == "0":
        return 0
    invalid = f"time: invalid duration {quote(text)}"
    total_ns = 0
    while True:
        number_len = len(rest) - len(rest.lstrip("0123456789."))
        number, rest = rest[:number_len], rest[number_len:]
        unit_len = next((i for i, c in enumerate(rest) if c in "0123456789."), len(rest))
        unit, rest = rest[:unit_len], rest[unit_len:]
        whole, _, fraction = number.partition(".")
        if not whole + fraction or len(number) > 40:
            raise ValueError(invalid)
        if "." in fraction or not unit:  # a second point ends the number, with no unit behind it
            raise ValueError(f"time: missing unit in duration {quote(text)}")
        if unit not in _UNIT_NS:
            raise ValueError(f"time: unknown unit {quote(unit)} in duration {quote(text)}")
        total_ns += int(whole or "0") * _UNIT_NS[unit]
        if fraction:
            total_ns += int(fraction) * _UNIT_NS[unit] // 10 ** len(fraction)
        if total_ns > _DURATION_NS_MAX:
            raise ValueError(invalid)
        if not rest:
            return sign * total_ns


def duration(text):
    """Go's duration text as seconds."""
    try:
        return duration_ns(text) / 1e9
    except ValueError:
        raise ValueError("parse error") from None  # all that Go's flag package tells


def compaction_retention(mode, text):
    """What --auto-compaction-retention says in a mode: nanoseconds ("periodic") or revisions ("revision"); 0 is off.

    A plain number means hours or revisions. etcd takes a duration for a number of revisions too (as
    nanoseconds), so this does. Raises ValueError.
    """
    digits = text[1:] if text[:1] in ("-", "+") else text
    is_count = digits.isdecimal() and digits.isascii() and len(digits) < 40 and int(digits) < 1 << 63
    if is_count and (text[0] != "-" or int(digits) == 0):
        amount = int(digits) * (_UNIT_NS["h"] if mode == "periodic" else 1)
    else:
        amount = duration_ns(text) if text else 0
    if not 0 <= amount <= _DURATION_NS_MAX:
        raise ValueError("value out of range")
    return amount


def format_duration(seconds):
    """Seconds as Go prints a duration: "2h0m0s", "100ms"."""
    ns = round(seconds * 1e9)
    if ns == 0:
        return "0s"
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    if ns < 10**9:
        unit = next(u for u in ("ms", "us", "ns") if ns >= _UNIT_NS[u])
        return f"{sign}{ns / _UNIT_NS[unit]:.9g}{'µs' if unit == 'us' else unit}"
    hours, ns = divmod(ns, _UNIT_NS["h"])
    minutes, ns = divmod(ns, _UNIT_NS["m"])
    tail = f"{ns / 1e9:.9g}s"
    return sign + (f"{hours}h{minutes}m{tail}" if hours else f"{minutes}m{tail}" if minutes else tail)


def split_host_port(address):
    """("host", "port") of "host:port" or "[v6]:port". Raises ValueError for anything else."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host or "[" in host or "]" in host:
        raise ValueError(f"address {address}: too many colons in address")
    if not colon or "]" in port:
        raise ValueError(f"address {address}: missing port in address")
    return host, port


def is_ip(host):
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):  # ValueError: embedded NUL
            continue
        return True
    return False


def split_url(url):
    """(scheme, rest) of a URL that `urls` accepted: rest is "host:port", or the path of a unix socket."""
    scheme, rest = url.split(":", 1)
    return scheme, rest.removeprefix("//")


def _resolved(url):
    scheme, rest = split_url(url)
    if scheme in ("unix", "unixs"):
        return scheme, rest, ""
    host, port = split_host_port(rest)
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    # One address of a name, IPv4 before IPv6, as Go takes it.
    return scheme, min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0], port


def same_addresses(urls, others):
    """True when two lists of URLs are equal, as written or once their names are resolved (which may block)."""
    if sorted(urls) == sorted(others):
        return True
    if len(urls) != len(others):
        return False
    try:
        return sorted(map(_resolved, urls)) == sorted(map(_resolved, others))
    except (OSError, UnicodeError):
        return False


def _check_url(text):
    scheme, colon, rest = text.partition(":")
    letters = scheme.translate({ord(c): None for c in "+-."})
    if not colon or not scheme or "/" in scheme:
        scheme = ""
    elif not (scheme[0].isalpha() and letters.isalnum() and scheme.isascii()):
        raise ValueError(f"parse {quote(text)}: first path segment in URL cannot contain colon")
    if any(ord(c) < 0x20 or c == "\x7f" for c in text):
        raise ValueError(f"parse {quote(text)}: net/url: invalid control character in URL")
    if scheme.lower() in ("unix", "unixs"):
        return
    if scheme.lower() not in ("http", "https"):
        raise ValueError(f"URL scheme must be http, https, unix, or unixs: {text}")
    authority, slash, _ = rest.removeprefix("//").partition("/") if rest.startswith("//") else ("", "", "")
    port = authority.rpartition(":")[2] if ":" in authority else ""
    if ":" in authority and "]" not in port and not (port.isdecimal() and port.isascii() or port == ""):
        raise ValueError(f"parse {quote(text)}: invalid port {quote(':' + port)} after host")
    try:
        split_host_port(authority)
    except ValueError:
        raise ValueError(f'URL address does not have the form "host:port": {text}') from None
    if slash:
        raise ValueError(f"URL must not contain a path: {text}")


def urls(text):
    """Comma-separated URLs as a sorted tuple without doubles."""
    found = [part.strip() for part in text.split(",")]
    for url in found:
        _check_url(url)
    return tuple(sorted(set(found)))


def strings(text):
    """Comma-separated words as a tuple, sorted and without doubles."""
    return tuple(sorted(set(text.split(",")))) if text else ()


def origins(text):
    """ "*", or URLs as for `urls`: what etcd takes for --cors."""
    return ("*",) if text == "*" else urls(text)


def one_of(*allowed):
    def parse(text):
        if text not in allowed:
            raise ValueError("invalid value")
        return text

    return parse


def cluster_map(text):
    """`name=url,name=url,...` as a tuple of (name, (url, ...)), names and URLs sorted. Raises ValueError."""
    members = {}
    for pair in filter(None, text.split(",")):
        name, _, url = pair.partition("=")
        members.setdefault(name, []).append(url)
    return tuple((name, urls(",".join(found))) for name, found in sorted(members.items()))


def feature_gates(text, known):
    """`Name=true,Name=false` as {name: bool}; `known` holds every name. Raises ValueError."""
    found = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = (part.strip() for part in pair.partition("="))
        if not separator:
            raise ValueError(f"missing bool value for {name}")
        if name not in known:
            raise ValueError(f"unrecognized feature gate: {name}")
        try:
            found[name] = boolean(value)
        except ValueError:
            raise ValueError(
                f"invalid value of {pair}: strconv.ParseBool: parsing {quote(value)}: invalid syntax"
            ) from None
    return found


def version(text):
    """(major, minor, patch) of "3.5.1", None when it is no version."""
    numbers = text.split(".")
    if len(numbers) != 3 or not all(number.isdecimal() and number.isascii() for number in numbers):
        return None
    return tuple(int(number) for number in numbers)


LogRotation = namedtuple("LogRotation", "maxsize maxage maxbackups localtime compress")
_ROTATION_DEFAULTS = LogRotation(maxsize=100, maxage=0, maxbackups=0, localtime=False, compress=False)


def log_rotation(text):
    """--log-rotation-config-json: MiB, days, files (0 is no limit, but the default for maxsize). Raises ValueError."""
    try:
        plain = json.loads(text)
    except ValueError as err:
        raise ValueError(f"improperly formatted log rotation config: {err}") from None
    if not isinstance(plain, dict):
        raise ValueError(f"invalid log rotation config: cannot unmarshal {go_type(plain)}")
    found = {}
    for name, value in plain.items():
        name = name.lower()
        if name not in LogRotation._fields or value is None:
            continue  # as in etcd; one of them, filename, would have no meaning
        wanted = bool if name in ("localtime", "compress") else int
        if type(value) is not wanted:
            raise ValueError(
                f"invalid log rotation config: cannot unmarshal {go_type(value)} into {name} of type {wanted.__name__}"
            )
        found[name] = value
    rotation = _ROTATION_DEFAULTS._replace(**found)
    return rotation._replace(maxsize=rotation.maxsize or _ROTATION_DEFAULTS.maxsize)


def go_type(value):
    """What a decoded value is called in etcd's messages."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return f"number {value}"
    return {str: "string", list: "array", dict: "object"}.get(type(value), "null")
