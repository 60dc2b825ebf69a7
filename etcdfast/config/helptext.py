"""What --help, --version and a wrong flag print. Rendered from the table of settings."""

import platform
import sys

from etcdfast import version
from etcdfast.config.settings import BOOL, DURATION, NO_EFFECT, SERVED, SETTINGS
from etcdfast.config.values import format_duration

USAGE = """Usage:

  etcdfast [flags]
    Start an etcdfast server. Every flag may also be given as a variable: --some-flag is ETCD_SOME_FLAG.

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
    group = None
    for setting in SETTINGS:
        if setting.status not in (SERVED, NO_EFFECT):
            continue
        if setting.group != group:
            group = setting.group
            lines += ["", f"{group}:"]
        lines += [f"  --{setting.name} '{shown_default(setting)}'", f"    {setting.help}"]
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
