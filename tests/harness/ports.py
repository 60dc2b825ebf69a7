"""Ports for servers under test."""

from __future__ import annotations

import os
import random
import socket

# Below the kernel's ephemeral range, so no outgoing connection of any test can sit on the port
# between the moment it is picked and the moment the server binds it (or binds it again: a crash
# test restarts on the same port).
_FIRST, _LAST = 11000, 31000
_picked: set[int] = set()
_random = random.Random(os.getpid() ^ int.from_bytes(os.urandom(4), "little"))


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing is bound to and that this process did not hand out before."""
    for _ in range(1000):
        port = _random.randrange(_FIRST, _LAST)
        if port in _picked:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _picked.add(port)
        return port
    raise RuntimeError("no free port found in 1000 tries")
