"""A log file that rotates while several processes write to it.

At `maxsize` MiB the file gets the time into its name and a new one begins, as with lumberjack, etcd's library for it.
What becomes of the older ones is the supervisor's care (supervisor/oldlogs.py).

Whichever process finds the file full renames it. Nobody writes to a file after it was renamed, so that it can be
packed: who has the file's lock first looks whether its name still leads to it. Locks are of the kernel: a process
that dies leaves none behind.
"""

import fcntl
import os
import threading
import time

TIME_FORMAT = "%Y-%m-%dT%H-%M-%S"
OPEN_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class RotatingFile:
    """Appends lines to `path`. Errors: OSError when it cannot be opened at all."""

    def __init__(self, path, rotation):
        self.path = path
        self._rotation = rotation
        self._bytes_max = rotation.maxsize << 20
        self._own = threading.Lock()  # a lock of the kernel is one for all threads of a process
        os.makedirs(os.path.dirname(os.path.abspath(path)), 0o755, exist_ok=True)
        self._fd = os.open(path, OPEN_FLAGS, 0o600)

    def write(self, data):
        with self._own:
            while True:
                fcntl.flock(self._fd, fcntl.LOCK_EX)
                try:
                    found = os.fstat(self._fd)
                    if self._is_current(found):
                        if found.st_size + len(data) <= self._bytes_max or not found.st_size:
                            os.write(self._fd, data)
                            return
                        self._rotate(found.st_mode & 0o777)
                finally:
                    fcntl.flock(self._fd, fcntl.LOCK_UN)
                self._reopen()

    def _is_current(self, found):
        try:
            named = os.stat(self.path)
        except OSError:
            return False
        return (named.st_ino, named.st_dev) == (found.st_ino, found.st_dev)

    def _rotate(self, mode):
        now = time.time()
        while os.path.exists(older := backup_name(self.path, now, self._rotation.localtime)):
            now += 0.001
        os.rename(self.path, older)
        os.close(os.open(self.path, OPEN_FLAGS, mode))

    def _reopen(self):
        newer = os.open(self.path, OPEN_FLAGS, 0o600)
        os.close(self._fd)
        self._fd = newer


def backup_name(path, now, localtime):
    """dir/etcd.log -> dir/etcd-2026-11-27T11-00-00.123.log"""
    stem, extension = os.path.splitext(path)
    moment = time.localtime(now) if localtime else time.gmtime(now)
    return f"{stem}-{time.strftime(TIME_FORMAT, moment)}.{int(now * 1000) % 1000:03d}{extension}"
