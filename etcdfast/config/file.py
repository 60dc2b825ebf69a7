"""The configuration file: YAML (so JSON too), flag names as keys, TLS in blocks. {setting name: value}.

Values are of YAML's types as etcd wants them: durations are nanoseconds, lists of URLs are one string. Keys count
without regard to case, null is as if the key were not there, and what is unknown is ignored; all as in etcd, which
keeps silent about the last.
"""

from etcdfast.config.checks import ConfigError
from etcdfast.config.kinds import BOOL, DURATION, INT64, ORIGINS, RETIRED, STRINGS, UINT, UINT32, URLS, WORDS
from etcdfast.config.settings import BY_NAME
from etcdfast.config.values import UINT64_MAX, go_type

_TLS = ("cert-file", "key-file", "client-cert-file", "client-key-file", "client-cert-auth", "trusted-ca-file")
# Blocks, possibly in each other: key -> name of the setting. `crl-file` is ours: etcd has the flag alone.
BLOCKS = {
    "client-transport-security": {
        **{name: name for name in _TLS},
        "auto-tls": "auto-tls",
        "crl-file": "client-crl-file",
        "allowed-cn": "client-cert-allowed-cn",
        "allowed-hostname": "client-cert-allowed-hostname",
        "skip-client-san-verification": None,  # etcd has it in both blocks and looks at it in the other
    },
    "peer-transport-security": {
        **{name: f"peer-{name}" for name in _TLS},
        "auto-tls": "peer-auto-tls",
        "crl-file": "peer-crl-file",
        "allowed-cn": "peer-cert-allowed-cn",
        "allowed-hostname": "peer-cert-allowed-hostname",
        "skip-client-san-verification": "peer-skip-client-san-verification",
    },
    "socket-options": {"reuse-port": "socket-reuse-port", "reuse-address": "socket-reuse-address"},
    "discovery-config": {
        "token": "discovery-token",
        "client": {
            "endpoints": "discovery-endpoints",
            "request-timeout": "discovery-request-timeout",
            "dial-timeout": "discovery-dial-timeout",
            "keepalive-time": "discovery-keepalive-time",
            "keepalive-timeout": "discovery-keepalive-timeout",
            "secure": {
                "cert": "discovery-cert",
                "key": "discovery-key",
                "cacert": "discovery-cacert",
                "insecure-transport": "discovery-insecure-transport",
                "insecure-skip-tls-verify": "discovery-insecure-skip-tls-verify",
            },
            "auth": {"username": "discovery-user", "password": "discovery-password"},
        },
    },
}
# Settings that a file has in a block alone: as keys of their own etcd does not know them, and somebody may have left
# one behind that would now change what is served. The lists of revoked certificates have no place in etcd's file.
_IN_BLOCKS = {
    name
    for block in ("client-transport-security", "peer-transport-security")
    for name in BLOCKS[block].values()
    if name not in (None, "client-crl-file", "peer-crl-file", "peer-skip-client-san-verification")
}
_RANGES = {UINT: (0, UINT64_MAX), UINT32: (0, (1 << 32) - 1), INT64: (-(1 << 63), (1 << 63) - 1)}
_RANGES[DURATION] = _RANGES[INT64]
# Either way: etcd 3.5 takes one name and etcd 3.6 a list of them.
_NAMES = ("allowed-cn", "allowed-hostname")


def _load_yaml(text):
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        """Without dates, which etcd has none of."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in Loader.yaml_implicit_resolvers.items()
    }
    try:
        return yaml.load(text, Loader)  # noqa: S506 (a safe loader)
    except yaml.MarkedYAMLError as err:
        line = err.problem_mark.line + 1 if err.problem_mark else 0
        raise ConfigError(f"error converting YAML to JSON: yaml: line {line}: {err.problem}") from None
    except (yaml.YAMLError, ValueError, LookupError) as err:
        raise ConfigError(f"error converting YAML to JSON: yaml: {str(err).splitlines()[0]}") from None


def _value(setting, key, value):
    """`value` of the file for a setting. Raises ConfigError."""
    kind = setting.kind
    cannot = f"error unmarshaling JSON: cannot unmarshal {go_type(value)} into {key} of type {kind.go_type}"
    if kind in _RANGES:
        low, high = _RANGES[kind]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(cannot)
        return value / 1e9 if kind is DURATION else value
    if kind is BOOL:
        if type(value) is not bool:
            raise ConfigError(cannot)
        return value
    is_endpoints = setting.name == "discovery-endpoints"
    if kind is STRINGS or is_endpoints:
        if isinstance(value, str) and (is_endpoints or key in _NAMES):
            value = value.split(",") if is_endpoints else [value]
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise ConfigError(cannot)
        return tuple(sorted(set(value) if is_endpoints else {word for word in value if word}))
    if not isinstance(value, str):
        raise ConfigError(cannot)  # a number for a text too, as in etcd: `1` must be "1"
    if not value and (kind in (URLS, ORIGINS, WORDS) or key == "initial-cluster-state"):
        return setting.default
    try:
        return kind.parse(value)
    except ValueError as err:
        if kind is URLS:
            raise ConfigError(f"unexpected error setting up {key}: {err}") from None
        if key == "initial-cluster-state":
            return value  # its check has etcd's words
        raise ConfigError(f"invalid {key}: {err}") from None


def _read_block(block, name, keys, given, log):
    if not isinstance(block, dict):
        raise ConfigError(f"invalid {name}: cannot unmarshal {go_type(block)} into a block of settings")
    for key, value in block.items():
        key = str(key).lower()
        where = keys.get(key)
        if key not in keys:
            log.warn("the configuration file has an unknown key; ignored", key=f"{name}.{key}")
        elif value is None or where is None:
            continue
        elif isinstance(where, dict):
            _read_block(value, f"{name}.{key}", where, given, log)
        else:
            given[where] = _value(BY_NAME[where], key, value)


def read_file(path, log):
    """Raises ConfigError when the file cannot be read or used."""
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as err:
        did = "read" if isinstance(err, IsADirectoryError) else "open"
        raise ConfigError(f"{did} {path}: {err.strerror.lower()}") from None
    plain = _load_yaml(text)
    if plain is None:
        return {}
    if not isinstance(plain, dict):
        raise ConfigError(f"error unmarshaling JSON: cannot unmarshal {go_type(plain)} into a configuration")
    given = {}
    for key, value in plain.items():
        key = str(key).lower()
        if key in BLOCKS:
            if value is not None:
                _read_block(value, key, BLOCKS[key], given, log)
        elif key not in BY_NAME or BY_NAME[key].status == RETIRED or key in _IN_BLOCKS or key == "config-file":
            log.warn("the configuration file has an unknown key; ignored", key=key)
        elif value is not None:
            given[key] = _value(BY_NAME[key], key, value)
    return given
