"""Starting the processes of a member, and what became of them."""

import json
import os
import signal
import sys
from collections import namedtuple

import etcdfast
from etcdfast.supervisor.errors import StartError

Running = namedtuple("Running", "process pid pidfd ready_fd")

PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(etcdfast.__file__)))


def command_of(role, boot_fd):
    # -P and -s: modules come from this package and the environment it is installed in, never from the
    # working directory or a user's own site folder.
    return [sys.executable, "-P", "-s", "-m", f"etcdfast.{role}", "--boot-fd", str(boot_fd)]


def environment_of_children():
    environ = dict(os.environ)
    environ.pop("NOTIFY_SOCKET", None)  # the supervisor alone speaks to systemd
    older = environ.get("PYTHONPATH")
    environ["PYTHONPATH"] = f"{PACKAGE_ROOT}{os.pathsep}{older}" if older else PACKAGE_ROOT
    # Threads of RocksDB and of the log writer would each get a heap of their own that never shrinks.
    environ.setdefault("MALLOC_ARENA_MAX", "2")
    return environ


def _fds_in(fds):
    for value in fds.values():
        if isinstance(value, int):
            yield value
        elif isinstance(value, dict):
            yield from value.values()
        else:
            yield from (fd for _, fd, _ in value)


def start(child, boot, environ):
    """Start one process; `boot` is its boot object without the ready pipe, which is made here."""
    ready_read, ready_write = os.pipe()
    boot["fds"]["ready"] = ready_write
    # A memfd, not a pipe: the object may be longer than a pipe holds.
    boot_fd = os.memfd_create("etcdfast-boot")
    os.write(boot_fd, json.dumps(boot).encode())
    os.lseek(boot_fd, 0, os.SEEK_SET)
    # Duplicating a descriptor onto itself is how posix_spawn is told to pass it on under its number.
    inherited = sorted({boot_fd, *_fds_in(boot["fds"])})
    actions = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in inherited]
    try:
        pid = os.posix_spawn(
            sys.executable,
            command_of(child.role, boot_fd),
            environ,
            file_actions=actions,
            # A group of its own: what a terminal or `timeout` sends to our group reaches us alone, and we
            # stop the processes in their order.
            setpgroup=0,
            setsigdef=[signal.SIGTERM],
        )
    except OSError as err:
        raise StartError(f"cannot start the {child.process} process: {err.strerror}") from None
    os.close(boot_fd)
    os.close(ready_write)
    return Running(child.process, pid, os.pidfd_open(pid), ready_read)


def reap(running):
    """Wait status of an ended process as (exit status or None, signal number or None)."""
    _, status = os.waitpid(running.pid, 0)
    os.close(running.pidfd)
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None


def describe_end(process, exit_status, signal_number):
    """One line about an end: what a person needs to look further."""
    if signal_number is not None:
        name = signal.Signals(signal_number).name if signal_number in set(signal.Signals) else signal_number
        return f"the {process} process was ended by signal {name}"
    return f"the {process} process ended with status {exit_status}"
