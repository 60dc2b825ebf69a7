"""Where settings come from -> Config.

A configuration file stands alone, as in etcd: flags and variables beside it are not looked at. Without one the
layers are, strongest first: flag, `ETCD_*` variable, default; and a setting given both as a flag and as a variable
is an error.
"""

from etcdfast.config.checks import ConfigError, check_config, check_values, is_tls
from etcdfast.config.config import Config
from etcdfast.config.flags import Answered, UsageError, read_flags, read_variables
from etcdfast.config.kinds import FEATURE_GATES, NO_EFFECT, RENAMED, RETIRED
from etcdfast.config.older import GATE_OF, RENAMED_TO
from etcdfast.config.settings import BY_NAME, MIB, RAFT_TIMEOUT_SECONDS_MIN, SETTINGS, field_of, variable_of
from etcdfast.config.values import feature_gates, format_duration

__all__ = ["Answered", "ConfigError", "UsageError", "load"]

# From here on etcd warns.
REQUEST_BYTES_RECOMMENDED = 10 * MIB
BCRYPT_COSTS = (4, 31)


def _newer_names(given, log):
    """Give what came under an older name its name of today. Raises ConfigError when both came."""
    for older in sorted(given.keys() & RENAMED_TO.keys()):
        newer = RENAMED_TO[older]
        if newer in given:
            raise ConfigError(f"cannot set --{older} and --{newer} at the same time, please use --{newer} only")
        log.warn("flag has a new name", flag_name=older, new_flag_name=newer)
        given[newer] = given.pop(older)
    gates = given.get("feature-gates", "")
    for older in sorted(given.keys() & GATE_OF.keys()):
        gate, value = GATE_OF[older], str(given.pop(older)).lower()
        if gate in given.get("feature-gates", ""):
            raise ConfigError(
                f"cannot specify both flags: --{older}={value} and --feature-gates={gate} at the same time, "
                f"please just use --feature-gates={gate}={value}"
            )
        log.warn("flag is a feature gate now", flag_name=older, new_flag_name=f"feature-gates={gate}={value}")
        gates += f"{',' if gates else ''}{gate}={value}"
    if gates:
        given["feature-gates"] = gates


def _notice_what_does_nothing(given, log):
    for name in sorted(given):
        if BY_NAME[name].status == RETIRED:
            log.warn("flag is no longer supported - ignoring", flag_name=name)
        elif BY_NAME[name].status == NO_EFFECT:
            log.warn("flag has no effect in etcdfast", flag_name=name)


def _notice(config, log):
    """What can be used, but may not be meant."""
    if config.max_request_bytes > REQUEST_BYTES_RECOMMENDED:
        log.warn(
            "exceeded recommended request limit",
            max_request_bytes=config.max_request_bytes,
            recommended_request_bytes=REQUEST_BYTES_RECOMMENDED,
        )
    for name in feature_gates(config.feature_gates, FEATURE_GATES):
        if FEATURE_GATES[name] is None and name != "AllAlpha":
            log.warn("feature gate has no effect in etcdfast", feature_gate=name)
    for url in config.listen_peer_urls:
        if not is_tls(url) and (config.peer_cert_file or config.peer_key_file):
            log.warn("scheme is http while peer key and cert files are present; ignoring them", url=url)


def _default_initial_cluster(settled):
    if settled["discovery_srv"] or settled["discovery_endpoints"]:
        return ""
    # etcd leaves the built-in text alone as long as the name is the default one, whatever the peer URLs.
    name = settled["name"]
    if name == BY_NAME["name"].default:
        return f"{name}=http://localhost:2380"
    pairs = (f"{name or 'default'}={url}" for url in settled["initial_advertise_peer_urls"])
    return ",".join(pairs)


def _given(arguments, environ, log):
    """{setting name: value} as it was set, and whether by a file."""
    flags = read_flags(arguments)
    path = flags.get("config-file") or environ.get(variable_of(BY_NAME["config-file"]), "")
    if not path:
        return {**read_variables(environ, flags, log), **flags}, False
    from etcdfast.config.file import read_file  # the YAML reader costs a start without a file nothing

    given = read_file(path, log)
    log.info(
        "loaded server configuration, other configuration command line flags and environment variables will be "
        "ignored if provided",
        path=path,
    )
    return {**given, "config-file": path}, True


def load(arguments, environ, log):
    """Read and check the settings of one member.

    `arguments` is argv without the program's name; `log` takes notices (`info`, `warn` with fields).
    Raises Answered (--help, --version), UsageError (exit status 2), ConfigError (exit status 1).
    """
    given, by_file = _given(arguments, environ, log)
    _newer_names(given, log)
    _notice_what_does_nothing(given, log)
    settled = {
        field_of(setting): given.get(setting.name, setting.default)
        for setting in SETTINGS
        if setting.status not in (RETIRED, RENAMED)
    }
    check_values(settled)
    if not by_file and "listen-client-urls" in given and "advertise-client-urls" not in given:
        # Checked here because only here a default and a given value can be told apart.
        raise ConfigError("--advertise-client-urls is required when --listen-client-urls is set explicitly")
    for name in ("raft-read-timeout", "raft-write-timeout"):
        if settled[field_of(BY_NAME[name])] < RAFT_TIMEOUT_SECONDS_MIN:
            settled[field_of(BY_NAME[name])] = RAFT_TIMEOUT_SECONDS_MIN
            log.info(f"{name} increased to minimum value: {format_duration(RAFT_TIMEOUT_SECONDS_MIN)}")
    if not BCRYPT_COSTS[0] <= settled["bcrypt_cost"] <= BCRYPT_COSTS[1]:
        log.warn("use default bcrypt cost instead of the invalid given cost", given_cost=settled["bcrypt_cost"])
        settled["bcrypt_cost"] = BY_NAME["bcrypt-cost"].default
    if by_file and not settled["self_signed_cert_validity"]:
        settled["self_signed_cert_validity"] = BY_NAME["self-signed-cert-validity"].default
    if not settled["data_dir"]:
        settled["data_dir"] = f"{settled['name']}.etcd"
        log.warn("'data-dir' was empty; using default", data_dir=settled["data_dir"])
    if "initial-cluster" not in given:
        settled["initial_cluster"] = _default_initial_cluster(settled)
    config = Config(**{field: settled[field] for field in Config._fields})
    check_config(config)
    _notice(config, log)
    return config
