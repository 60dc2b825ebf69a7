"""Commands and their flags: parsing as etcd's tools do it (cobra), and help that shows how a command is used.

Flags may stand anywhere; `--name value`, `--name=value`, `-w value`, `-wvalue`; a switch needs no value; `--` ends
them. Errors are worded as cobra's.
"""

from collections import namedtuple

from etcdfast.config import values
from etcdfast.utl.errors import BAD_ARGUMENTS, UsageError, UtlError

# kind: "string", "bool", "uint", "int", "duration" (seconds); default: the value itself
Flag = namedtuple("Flag", "name kind default help short", defaults=("",))
# path: words of the command; usage: what follows them; arguments: (how many, message when they are not);
# run: called with (options, arguments)
Command = namedtuple("Command", "path usage short long flags arguments run examples", defaults=((), None, None, ""))

GLOBAL_FLAGS = (
    Flag("write-out", "string", "simple", "set the output format (fields, json, protobuf, simple, table)", "w"),
)


def _go(function, parse):
    """`parse` with its errors in the words of Go's strconv, as cobra shows them."""

    def parsed(text):
        try:
            return parse(text)
        except ValueError as err:
            reason = "invalid syntax" if str(err) == "parse error" else str(err)
            raise ValueError(f"strconv.{function}: parsing {values.quote(text)}: {reason}") from None

    return parsed


_PARSERS = {
    "string": str,
    "bool": _go("ParseBool", values.boolean),
    "uint": _go("ParseUint", values.uint),
    "int": _go("ParseInt", values.int64),
    "duration": lambda text: values.duration_ns(text) / 1e9,
}
_SHOWN_KIND = {"bool": ""}


class HelpWanted(Exception):
    """-h or --help was given."""


def parse(command, words):
    """(options {flag name: value}, arguments) of the words behind a command's own.

    Errors: UsageError, UtlError, HelpWanted.
    """
    known = {flag.name: flag for flag in (*command.flags, *GLOBAL_FLAGS)}
    short = {flag.short: flag for flag in known.values() if flag.short}
    options = {flag.name: flag.default for flag in known.values()}
    arguments = []
    given = set()
    words = list(words)
    while words:
        word = words.pop(0)
        if word == "--":
            arguments += words
            break
        if word in ("-h", "--help"):
            raise HelpWanted()
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            flag = known.get(name)
            if flag is None:
                raise UsageError(f"unknown flag: --{name}")
            shown = f"--{name}"
        elif word.startswith("-") and len(word) > 1:
            flag = short.get(word[1])
            if flag is None:
                raise UsageError(f"unknown shorthand flag: '{word[1]}' in {word}")
            value = word[2:].removeprefix("=")
            equals = len(word) > 2
            shown = f"-{flag.short}, --{flag.name}"
        else:
            arguments.append(word)
            continue
        if not equals:
            if flag.kind == "bool":
                value = "true"
            elif words:
                value = words.pop(0)
            else:
                needs = f"--{flag.name}" if word.startswith("--") else f"{word[1]!r} in {word}"
                raise UsageError(f"flag needs an argument: {needs}")
        try:
            options[flag.name] = _PARSERS[flag.kind](value)
        except ValueError as err:
            raise UsageError(f'invalid argument "{value}" for "{shown}" flag: {err}') from None
        given.add(flag.name)
    options["given"] = given
    return options, arguments


def check_arguments(command, arguments):
    """Errors: UtlError when they are too many or too few."""
    if command.arguments is not None:
        count, message = command.arguments
        if len(arguments) != count:
            raise UtlError(message, BAD_ARGUMENTS)


def require(options, *names):
    """Errors: UsageError when one of the flags was not given."""
    missing = [name for name in names if name not in options["given"]]
    if missing:
        listed = '", "'.join(missing)
        raise UsageError(f'required flag(s) "{listed}" not set')


# ---- help -----------------------------------------------------------------------------------------


def flag_lines(flags):
    """One line per flag, in columns, sorted by name, with kind and default."""
    rows = []
    for flag in sorted(flags, key=lambda flag: flag.name):
        start = f"-{flag.short}, " if flag.short else "    "
        kind = _SHOWN_KIND.get(flag.kind, " " + flag.kind)
        default = ""
        if flag.default:
            shown = f'"{flag.default}"' if flag.kind == "string" else values.format_duration(flag.default)
            default = f" (default {shown if flag.kind in ('string', 'duration') else flag.default})"
        rows.append((f"  {start}--{flag.name}{kind}", flag.help + default))
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{left:<{width}}   {right}" for left, right in rows)


def usage(prog, command):
    """The usage text of a command."""
    words = " ".join((prog, *command.path))
    out = f"Usage:\n  {words}{command.usage} [flags]\n"
    if command.examples:
        out += f"\nExamples:\n{command.examples.rstrip()}\n"
    own = (*command.flags, Flag("help", "bool", False, f"help for {command.path[-1]}", "h"))
    return out + f"\nFlags:\n{flag_lines(own)}\n\nGlobal Flags:\n{flag_lines(GLOBAL_FLAGS)}\n"


def full_help(prog, command):
    return f"{(command.long or command.short).rstrip()}\n\n{usage(prog, command)}"


def group_help(prog, path, commands, about):
    """Help of `prog` or of a word that begins several commands (path of length 0 or 1)."""
    words = " ".join((prog, *path))
    rows = {}
    for command in commands:
        if command.path[: len(path)] == path:
            rows.setdefault(command.path[len(path)], command.short)
    rows.update({word: short for word, short in about.items() if word in rows and not path})
    width = max(map(len, rows)) + 1
    listed = "\n".join(f"  {word:<{width}} {short}" for word, short in sorted(rows.items()))
    own = (Flag("help", "bool", False, f"help for {path[-1] if path else prog}", "h"),)
    flags_text = f"Flags:\n{flag_lines(own + (() if path else GLOBAL_FLAGS))}\n"
    if path:
        flags_text += f"\nGlobal Flags:\n{flag_lines(GLOBAL_FLAGS)}\n"
    return (
        f"Usage:\n  {words} [command]\n\nAvailable Commands:\n{listed}\n\n{flags_text}\n"
        f'Use "{words} [command] --help" for more information about a command.\n'
    )
