"""Log lines as etcd writes them: one JSON object per line (or a console line), from every process.

    log.configure(level="info", outputs=("default",), form="json")
    log.info("ready to serve client requests", member_id=..., took_seconds=0.2)

A field's underscores become hyphens, as etcd's field names have them. A line leaves in one write, so lines
of several processes on one pipe or file do not mix (up to PIPE_BUF bytes on a pipe).
"""

import json
import os
import socket
import sys
import time

from etcdfast.logfile import OPEN_FLAGS, RotatingFile

DEBUG, INFO, WARN, ERROR, FATAL = range(5)
_NAMES = ("debug", "info", "warn", "error", "fatal")
_LEVELS = {"debug": DEBUG, "info": INFO, "warn": WARN, "error": ERROR, "dpanic": FATAL, "panic": FATAL, "fatal": FATAL}
_ROOT = os.path.dirname(os.path.abspath(__file__)) + os.sep

_level = INFO
_console = False
_outputs = [2]  # descriptors
_files = {}  # path -> descriptor of the outputs that are files
_rotating = None  # RotatingFile
_journal = None  # socket

JOURNAL = "systemd/journal"
JOURNAL_SOCKET = "/run/systemd/journal/socket"
_PRIORITIES = (b"7", b"6", b"4", b"3", b"2")  # syslog's, by level


class LogError(Exception):
    """A log output that cannot be opened; one line for the user."""


def configure(level="info", outputs=("default",), form="json", rotation=None):
    """Set level, outputs and form for this process.

    `outputs` holds "default" or "stderr", "stdout", "systemd/journal", or paths that lines are appended to; with
    `rotation` (maxsize, ... as in `logfile.py`) the one path is a file that rotates.
    Raises LogError when one cannot be opened.
    """
    global _console, _outputs, _files, _rotating, _journal
    opened, files, rotating, journal = [], {}, None, None
    for output in outputs or ("default",):
        try:
            if output in ("default", "stderr"):
                opened.append(2)
            elif output == "stdout":
                opened.append(1)
            elif output == JOURNAL:
                journal = _connect_journal()
            elif rotation is not None:
                rotating = RotatingFile(output, rotation)
            else:
                files[output] = _open(output)
                opened.append(files[output])
        except OSError as err:
            if output == JOURNAL:
                reason = f"dial unixgram {JOURNAL_SOCKET}: connect: {err.strerror.lower()}"
                raise LogError(f"can't find journal ({reason})") from None
            raise LogError(f"couldn't open sink {json.dumps(output)}: open {output}: {err.strerror.lower()}") from None
    if _journal is not None:
        _journal.close()
    set_level(level)
    _console = form == "console"
    _outputs, _files, _rotating, _journal = list(dict.fromkeys(opened)), files, rotating, journal


def _open(path):
    return os.open(path, OPEN_FLAGS, 0o600)


def _connect_journal():
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        journal.connect(JOURNAL_SOCKET)
    except OSError:
        journal.close()
        raise
    return journal


def _journal_entry(level, line):
    # A field whose text has line ends is sent with its length.
    message = b"MESSAGE\n%b%b\n" % (len(line).to_bytes(8, "little"), line)
    return b"PRIORITY=%b\nSYSLOG_IDENTIFIER=etcdfast\n%b" % (_PRIORITIES[level], message)


def set_level(level):
    global _level
    _level = _LEVELS[level.lower()]


def reopen():
    """Open the files anew by their names: somebody may have renamed them (logrotate)."""
    for path, fd in _files.items():
        try:
            newer = _open(path)
        except OSError as err:
            error("cannot open log output anew; the old file goes on", path=path, error=err.strerror)
            continue
        # Under the old number, in one step: a thread that is writing never meets a number of something else.
        os.dup2(newer, fd, inheritable=False)
        os.close(newer)
    # A file that rotates is found by its name at every line.


def enabled(level):
    return level >= _level


def _timestamp():
    now_ns = time.time_ns()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ns // 10**9)) + f".{now_ns // 1000 % 10**6:06d}Z"


def _caller():
    frame = sys._getframe(3)
    return f"{frame.f_code.co_filename.removeprefix(_ROOT)}:{frame.f_lineno}"


def _write(level, message, fields):
    if level < _level:
        return
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    if _console:
        parts = [_timestamp(), _NAMES[level], _caller(), message]
        if named:
            parts.append(json.dumps(named, ensure_ascii=False, default=str))
        line = "\t".join(parts)
    else:
        record = {"level": _NAMES[level], "ts": _timestamp(), "caller": _caller(), "msg": message, **named}
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=str)
    text = line.encode(errors="backslashreplace")
    data = text + b"\n"
    for fd in _outputs:
        try:
            os.write(fd, data)
        except OSError:  # a full disk or a closed pipe must not stop the member
            pass
    try:
        if _rotating is not None:
            _rotating.write(data)
        if _journal is not None:
            _journal.send(_journal_entry(level, text), socket.MSG_DONTWAIT)
    except OSError:
        pass


def debug(message, **fields):
    _write(DEBUG, message, fields)


def info(message, **fields):
    _write(INFO, message, fields)


def warn(message, **fields):
    _write(WARN, message, fields)


def error(message, **fields):
    _write(ERROR, message, fields)


def fatal(message, **fields):
    """Log the reason of an end; ending is the caller's own deed."""
    _write(FATAL, message, fields)


class Quiet:
    """Takes what a log takes and drops it: for what was said before."""

    debug = info = warn = staticmethod(lambda message, **fields: None)
