"""Tell systemd what the member is doing (etcd's unit files are of Type=notify)."""

import os
import socket


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
