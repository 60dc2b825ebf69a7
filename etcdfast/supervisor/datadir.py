"""The data directory of a member: made, checked, and locked for one member at a time."""

import fcntl
import os
import time

from etcdfast import log
from etcdfast.supervisor.errors import StartError

LOCK_NAME = "etcdfast.lock"
ORPHANS_SECONDS = 5.0  # the kernel ends them at once; a disk that hangs may hold one back
MODE = 0o700  # as etcd: stored values and password hashes are nobody else's business


def _make(path):
    try:
        os.makedirs(path, MODE, exist_ok=True)
    except OSError as err:
        raise StartError(f"cannot make directory {path}: {err.strerror}") from None
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise StartError(f"cannot write to directory {path}: Permission denied")


def _is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _lock(path, lock_fd):
    """Take the lock, or raise StartError.

    When the member that has it was killed, its processes end a moment after its supervisor, whose number is
    in the file; a restart waits for that moment.
    """
    deadline = time.monotonic() + ORPHANS_SECONDS
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = os.pread(lock_fd, 20, 0).decode(errors="replace").strip()
        except OSError as err:
            raise StartError(f"cannot lock {path}: {err.strerror}") from None
        if time.monotonic() > deadline or not holder.isdecimal() or _is_running(int(holder)):
            who = f" (process {holder})" if holder.isdecimal() else ""
            raise StartError(
                f"data directory {os.path.dirname(os.path.dirname(path))} is in use by another etcdfast member{who}"
            )
        time.sleep(0.002)


def open_data_dir(config):
    """Make the member's directories and take its lock; returns the lock's descriptor.

    The lock lasts as long as the descriptor is open, in this process or in a child that inherits it.
    Raises StartError: another member has it, or it cannot be written.
    """
    _make(config.data_dir)
    if os.stat(config.data_dir).st_mode & 0o077:
        log.warn(
            "check file permission",
            error=f'directory "{config.data_dir}" exists, but others may read it; the recommended mode is 0700',
        )
    _make(config.member_dir)
    path = os.path.join(config.member_dir, LOCK_NAME)
    try:
        lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise StartError(f"cannot open lock file {path}: {err.strerror}") from None
    try:
        _lock(path, lock_fd)
    except StartError:
        os.close(lock_fd)
        raise
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
    return lock_fd


def is_new_member(config):
    """True before the first start: there is no log yet."""
    try:
        return not any(name.endswith(".wal") for name in os.listdir(config.wal_path))
    except FileNotFoundError:
        return True
    except OSError as err:
        raise StartError(f"cannot read directory {config.wal_path}: {err.strerror}") from None
