"""What --help, --version and a wrong flag print. Rendered from the table of settings."""

import platform
import sys

from etcdfast import version
from etcdfast.config.kinds import BOOL, DURATION, GROUPS, HIDDEN, RENAMED, RETIRED
from etcdfast.config.older import GATE_OF, RENAMED_TO
from etcdfast.config.settings import SETTINGS
from etcdfast.config.values import format_duration

USAGE = """Usage:

  etcdfast [flags]
    Start an etcdfast server. Every flag may also be given as a variable: --some-flag is ETCD_SOME_FLAG.

  etcdfast --config-file FILE
    Start with the settings of a YAML or JSON file. Other flags and variables are then ignored.

  etcdfast --version
    Show the version.

  etcdfast -h | --help
    Show the flags.
"""

_SHOWN_DEFAULT = {"data-dir": "${name}.etcd", "initial-cluster": "default=http://localhost:2380"}


def shown_default(setting):
    if setting.name in _SHOWN_DEFAULT:
        return _SHOWN_DEFAULT[setting.name]
    if setting.kind is DURATION:
        return format_duration(setting.default)
    if setting.kind is BOOL:
        return str(setting.default).lower()
    if isinstance(setting.default, tuple):
        return ",".join(setting.default)
    return str(setting.default)


def flags_text():
    lines = []
    shown = [setting for setting in SETTINGS if setting.status not in (HIDDEN, RENAMED, RETIRED)]
    for group in GROUPS:
        lines += ["", f"{group}:"]
        for setting in shown:
            if setting.group == group:
                lines += [f"  --{setting.name} '{shown_default(setting)}'", f"    {setting.help}"]
    lines += ["", "Older names, accepted as well:"]
    for older, newer in RENAMED_TO.items():
        lines += [f"  --{older}", f"    Now --{newer}."]
    for older, gate in GATE_OF.items():
        lines += [f"  --{older}", f"    Now --feature-gates={gate}=true."]
    return "\n".join(lines) + "\n"


def version_text():
    # The first line is etcd's: scripts take its third word as the version of the API.
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return (
        f"etcd Version: {version.SERVER_VERSION}\n"
        f"etcdfast Version: {version.__version__}\n"
        f"Python Version: {platform.python_version()}\n"
        f"OS/Arch: {sys.platform}/{machine}\n"
    )
