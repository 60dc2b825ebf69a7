"""--auth-token: "simple", "jwt,sign-method=...,pub-key=...,priv-key=...,ttl=10m", or nothing for no tokens at all.

Source: etcd's server/auth (decomposeOpts, jwtOptions).
"""

from etcdfast.config import values

INVALID = "auth: invalid auth options"
TTL_SECONDS = 300
OPTIONS = ("sign-method", "pub-key", "priv-key", "ttl")
SIGN_METHODS = frozenset(f"{kind}{bits}" for kind in ("RS", "PS", "ES", "HS") for bits in (256, 384, 512)) | {"EdDSA"}


def parse(text):
    """("simple" | "jwt" | "", {option: value}, [unknown options]); ttl in seconds. Errors: ValueError in etcd's words,
    and what is wrong."""
    kind, *pairs = text.split(",")
    options = {}
    for pair in pairs:
        parts = pair.split("=")
        if len(parts) != 2:
            raise ValueError(f"{INVALID}: {values.quote(pair)} is not name=value")
        if parts[0] in options:
            raise ValueError(f"{INVALID}: {parts[0]} is given twice")
        options[parts[0]] = parts[1]
    if kind == "simple" or not kind:
        return kind, {}, []
    if kind != "jwt":
        raise ValueError(f"{INVALID}: unknown token type {values.quote(kind)}")
    ttl = options.get("ttl")
    if ttl:
        try:
            ttl = values.duration_ns(ttl) // 10**9
        except ValueError as err:
            raise ValueError(f"{INVALID}: {err}") from None
    method = options.get("sign-method", "")
    if method not in SIGN_METHODS:
        raise ValueError(f"{INVALID}: unknown sign-method {values.quote(method)}")
    found = {name: options.get(name, "") for name in OPTIONS} | {"ttl": ttl or TTL_SECONDS}
    return kind, found, [name for name in options if name not in OPTIONS]
