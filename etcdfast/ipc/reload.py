"""Settings that change while a member runs: how the supervisor's SIGHUP comes to whoever uses them.

The supervisor writes the whole new Config into a memfd that every child has, then sends SIGHUP. A child reads it
at its next safe point, in its main thread, takes over the log settings, and calls what was handed to `on_reload`.
The order is free of locks: who reads a half-written page is signalled once more, for the write ends with a signal.
"""

import json
import os

from etcdfast import log
from etcdfast.config import Config

PAGE_BYTES_MAX = 1 << 20

_callbacks = []


def on_reload(callback):
    """`callback(new_config)` is called in this process' main thread at each reload.

    Called also when no setting has changed: files that settings name (certificates, keys, lists) may have.
    """
    _callbacks.append(callback)


def make_page():
    return os.memfd_create("etcdfast-reload")


def write(fd, config):
    """The supervisor's half, before it signals."""
    data = json.dumps(config.to_plain()).encode()
    os.pwrite(fd, data, 0)
    os.ftruncate(fd, len(data))


def run(fd):
    """A child's half: read the page and tell everybody. A callback that fails is logged and the rest still run."""
    try:
        config = Config.from_plain(json.loads(os.pread(fd, PAGE_BYTES_MAX, 0)))
    except (ValueError, TypeError):
        return  # half-written: another signal comes
    log.set_level(config.log_level)
    log.reopen()
    for callback in _callbacks:
        try:
            callback(config)
        except Exception as err:
            log.error("cannot take over new settings", error=f"{type(err).__name__}: {err}")
