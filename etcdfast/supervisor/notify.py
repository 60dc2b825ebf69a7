"""Tell systemd what the member is doing (etcd's unit files are of Type=notify), and that it lives (WatchdogSec=)."""

import os
import socket
import time

from etcdfast._ext.ring import ALIVE_WORD


def notify(state):
    """Send lines such as READY=1, as sd_notify(3) names them.

    Best effort, as there: without NOTIFY_SOCKET, or if nobody listens there, nothing happens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as messenger:
        try:
            messenger.sendto(state.encode(), address)
        except OSError:
            pass


class Watchdog:
    """Says WATCHDOG=1 twice per interval while the member's loops come round; does nothing without WATCHDOG_USEC.

    That processes live is not enough, for the end of one ends the member anyhow: consensus and apply stamp their
    status pages, consensus at each tick and apply at each housekeeping. A loop that stood still for a whole interval
    is stuck, and systemd then does what the unit says. While the member starts or restarts in place there is nothing
    to stamp yet, and it is taken to live.
    """

    def __init__(self, environ=os.environ):
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        is_ours = usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        self.interval_seconds = int(usec) / 1e6 if is_ours else None
        self._due = time.monotonic()

    def seconds_left(self):
        """Until `turn` wants to be called, None for never."""
        return None if self.interval_seconds is None else max(self._due - time.monotonic(), 0)

    def turn(self, pages, is_ready):
        now = time.monotonic()
        if self.interval_seconds is None or now < self._due:
            return
        self._due = now + self.interval_seconds / 2
        if not is_ready or all(now - page[ALIVE_WORD] / 1e9 < self.interval_seconds for page in pages.values()):
            notify("WATCHDOG=1")
