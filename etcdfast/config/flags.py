"""The command line and the environment, as Go's flag package and etcd read them: {setting name: value}."""

from etcdfast.config.checks import ConfigError
from etcdfast.config.settings import BY_NAME, SETTINGS, variable_of
from etcdfast.config.values import quote

SECRETS = ("discovery-user", "discovery-password")  # their texts are not for the log
PROXIES = ("gateway", "grpc-proxy")


class UsageError(Exception):
    """A flag that cannot be read. The program prints the text and the usage to stderr and exits with 2."""


class Answered(Exception):
    """--help or --version: nothing to start. The text belongs on stdout, the exit status is 0."""


def parse(setting, text):
    """The value of `text`; ValueError says why it is none."""
    if text == "" and setting.kind.keeps_default_on_empty:
        return setting.default
    return setting.kind.parse(text)


def read_flags(arguments):
    """-x and --x, `=` or the next word. Raises UsageError, Answered, ConfigError for a word that is no flag."""
    given = {}
    words = list(arguments)
    wants_version = False
    if words[:1] and words[0] in PROXIES:
        raise ConfigError(f"etcdfast has no {words[0]}: run etcd's, it works with etcdfast members")
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
            given[name] = parse(setting, text)
        except ValueError as err:
            what = "boolean value" if is_switch else "value"
            joint = "for" if is_switch else "for flag"
            raise UsageError(f"invalid {what} {quote(text)} {joint} -{name}: {err}") from None
    if wants_version:
        from etcdfast.config import helptext

        raise Answered(helptext.version_text())
    if words:
        raise ConfigError(f"{quote(words[0])} is not a valid flag")
    return given


def read_variables(environ, flags, log):
    """ETCD_*; one whose flag is given too is a conflict. Raises ConfigError."""
    given = {}
    known = {variable_of(setting): setting for setting in SETTINGS}
    for variable, setting in known.items():
        text = environ.get(variable, "")
        if text and setting.name not in flags:
            try:
                given[setting.name] = parse(setting, text)
            except ValueError as err:
                raise ConfigError(f"invalid value {quote(text)} for {variable}: {err}") from None
            shown = "********" if setting.name in SECRETS else text
            log.info("recognized and used environment variable", variable_name=variable, variable_value=shown)
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
