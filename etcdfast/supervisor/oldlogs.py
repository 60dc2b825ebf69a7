"""What becomes of log files that were rotated: too many or too old ones go, the others are packed."""

import calendar
import os
import re
import threading
import time

from etcdfast import log
from etcdfast.logfile import TIME_FORMAT

SECONDS = 10.0  # between two looks
NICE = 19
_BACKUP = re.compile(r"-(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3})$")


def start(path, rotation):
    """Look after the older files of `path` in a thread of the calling process, until the process ends."""
    if rotation.maxbackups or rotation.maxage or rotation.compress:
        threading.Thread(target=_run, args=(path, rotation), daemon=True).start()


def _run(path, rotation):
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    while True:
        try:
            tidy(path, rotation, time.time())
        except OSError as err:
            log.warn("cannot tidy up older log files", path=err.filename or path, error=err.strerror)
        time.sleep(SECONDS)


def backups(path):
    """[(seconds of the name, path)] of the older files of `path`, newest first; packed ones end in .gz.

    The seconds are read as UTC: those of local times are only good for their order and, but for hours, their age.
    """
    folder = os.path.dirname(path) or "."
    stem, extension = os.path.splitext(os.path.basename(path))
    found = []
    for name in os.listdir(folder):
        plain = name.removesuffix(".gz")
        match = _BACKUP.search(plain.removesuffix(extension))
        if not match or plain != f"{stem}{match[0]}{extension}":
            continue
        moment, _, milliseconds = match[1].partition(".")
        try:
            seconds = _seconds(moment) + int(milliseconds) / 1000
        except ValueError:
            continue
        found.append((seconds, os.path.join(folder, name)))
    return sorted(found, reverse=True)


def _seconds(moment):
    return calendar.timegm(time.strptime(moment, TIME_FORMAT))


def tidy(path, rotation, now):
    """Remove older files that are too many or too old, then pack the rest. Only one process does this."""
    kept = backups(path)
    gone = set()
    if rotation.maxbackups:
        gone |= {file for _, file in kept[rotation.maxbackups :]}
    if rotation.maxage:
        gone |= {file for seconds, file in kept if seconds < now - rotation.maxage * 86_400}
    for file in gone:
        os.unlink(file)
    if rotation.compress:
        for _, file in kept:
            if file not in gone and not file.endswith(".gz"):
                _pack(file)


def _pack(file):
    packed = f"{file}.gz"
    partly = f"{packed}.tmp"  # no name of a backup: a crash leaves something that the next turn overwrites
    import gzip
    import shutil

    with open(file, "rb") as source, open(partly, "wb") as target:
        os.fchmod(target.fileno(), os.fstat(source.fileno()).st_mode & 0o777)
        with gzip.GzipFile("", "wb", fileobj=target) as out:
            shutil.copyfileobj(source, out, 1 << 20)
    os.rename(partly, packed)
    os.unlink(file)
