"""Tell systemd that the member is ready (etcd's unit files are of Type=notify)."""

import os
import socket


def notify_ready():
    """Best effort, as sd_notify: without NOTIFY_SOCKET, or if nobody listens there, nothing happens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as messenger:
        try:
            messenger.sendto(b"READY=1", address)
        except OSError:
            pass
