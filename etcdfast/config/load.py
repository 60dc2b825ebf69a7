"""Command line and environment -> Config.

Layers, strongest first: flag, `ETCD_*` variable, default. (A configuration file stands alone in etcd: when
it comes, it replaces both layers; it belongs into `load`, beside `_read_flags` and `_read_variables`.)
A setting given both as a flag and as a variable is an error, as in etcd.
"""

from etcdfast.config.checks import ConfigError, check_config, check_values
from etcdfast.config.config import Config
from etcdfast.config.settings import (
    BY_NAME,
    NO_EFFECT,
    RAFT_TIMEOUT_SECONDS_MIN,
    RENAMED,
    RENAMED_TO,
    RETIRED,
    SETTINGS,
    field_of,
    variable_of,
)
from etcdfast.config.values import format_duration, quote


class UsageError(Exception):
    """A flag that cannot be read. The program prints the text and the usage to stderr and exits with 2."""


class Answered(Exception):
    """--help or --version: nothing to start. The text belongs on stdout, the exit status is 0."""


def _parse(setting, text):
    """The value of `text`; ValueError says why it is none."""
    if text == "" and setting.kind.keeps_default_on_empty:
        return setting.default
    return setting.kind.parse(text)


def _read_flags(arguments):
    """{setting name: raw text} as Go's flag package reads them: -x and --x, `=` or the next word."""
    given = {}
    words = list(arguments)
    wants_version = False
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            words.insert(0, word)
            break
        if word == "--":
            break
        name, equals, text = word[2 if word.startswith("--") else 1 :].partition("=")
        if not name or name.startswith("-"):
            raise UsageError(f"bad flag syntax: {word}")
        if name in ("help", "h"):
            from etcdfast.config import helptext  # a start that is no question never needs it

            raise Answered(helptext.USAGE + helptext.flags_text())
        setting = BY_NAME.get(name)
        is_switch = name == "version" or setting is not None and setting.kind.is_switch
        if setting is None and name != "version":
            raise UsageError(f"flag provided but not defined: -{name}")
        if not equals:
            if is_switch:
                text = "true"
            elif not words:
                raise UsageError(f"flag needs an argument: -{name}")
            else:
                text = words.pop(0)
        if name == "version":
            wants_version = True
            continue
        try:
            _parse(setting, text)
        except ValueError as err:
            what = "boolean value" if is_switch else "value"
            joint = "for" if is_switch else "for flag"
            raise UsageError(f"invalid {what} {quote(text)} {joint} -{name}: {err}") from None
        given[name] = text
    if wants_version:
        from etcdfast.config import helptext

        raise Answered(helptext.version_text())
    if words:
        raise ConfigError(f"{quote(words[0])} is not a valid flag")
    return given


def _read_variables(environ, flags, log):
    given = {}
    known = {variable_of(setting): setting for setting in SETTINGS}
    for variable, setting in known.items():
        text = environ.get(variable, "")
        if text and setting.name not in flags:
            try:
                _parse(setting, text)
            except ValueError as err:
                raise ConfigError(f"invalid value {quote(text)} for {variable}: {err}") from None
            log.info("recognized and used environment variable", variable_name=variable, variable_value=text)
            given[setting.name] = text
    for variable in environ:
        if not variable.startswith("ETCD_"):
            continue
        setting = known.get(variable)
        if setting is None:
            log.warn("unrecognized environment variable", environment_variable=variable)
        elif setting.name in flags:
            raise ConfigError(
                "conflicting environment variable is shadowed by corresponding command-line flag "
                f"(either unset environment variable or disable flag): {variable}"
            )
    return given


def _default_initial_cluster(settled):
    # etcd leaves the built-in text alone as long as the name is the default one, whatever the peer URLs.
    name = settled["name"]
    if name == BY_NAME["name"].default:
        return f"{name}=http://localhost:2380"
    pairs = (f"{name or 'default'}={url}" for url in settled["initial_advertise_peer_urls"])
    return ",".join(pairs)


def load(arguments, environ, log):
    """Read and check the settings of one member.

    `arguments` is argv without the program's name; `log` takes notices (`info`, `warn` with fields).
    Raises Answered (--help, --version), UsageError (exit status 2), ConfigError (exit status 1).
    """
    flags = _read_flags(arguments)
    given = {**_read_variables(environ, flags, log), **flags}
    for name in given:
        if BY_NAME[name].status == RETIRED:
            log.warn("flag is no longer supported - ignoring", flag_name=name)
        elif BY_NAME[name].status == NO_EFFECT:
            log.warn("flag has no effect in etcdfast", flag_name=name)
        elif BY_NAME[name].status == RENAMED:
            log.warn("flag has a new name", flag_name=name, new_flag_name=RENAMED_TO[name])
    for name in RENAMED_TO:
        if name in given:
            given[RENAMED_TO[name]] = given.pop(name)  # as in etcd 3.6, the older name counts
    settled = {
        field_of(setting): _parse(setting, given[setting.name]) if setting.name in given else setting.default
        for setting in SETTINGS
        if setting.status not in (RETIRED, RENAMED)
    }
    check_values(settled)
    if "listen-client-urls" in given and "advertise-client-urls" not in given:
        # Checked here because only here a default and a given value can be told apart.
        raise ConfigError("--advertise-client-urls is required when --listen-client-urls is set explicitly")
    for name in ("raft-read-timeout", "raft-write-timeout"):
        if settled[field_of(BY_NAME[name])] < RAFT_TIMEOUT_SECONDS_MIN:
            settled[field_of(BY_NAME[name])] = RAFT_TIMEOUT_SECONDS_MIN
            log.info(f"{name} increased to minimum value: {format_duration(RAFT_TIMEOUT_SECONDS_MIN)}")
    if not settled["data_dir"]:
        settled["data_dir"] = f"{settled['name']}.etcd"
        log.warn("'data-dir' was empty; using default", data_dir=settled["data_dir"])
    if "initial-cluster" not in given:
        settled["initial_cluster"] = _default_initial_cluster(settled)
    config = Config(**{field: settled[field] for field in Config._fields})
    check_config(config)
    return config
