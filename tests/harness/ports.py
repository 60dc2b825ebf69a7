"""Ports for servers under test."""

from __future__ import annotations

import os
import random
import socket

from .claims import claim

# Below the kernel's ephemeral range, so no outgoing connection of any test can sit on the port
# between the moment it is picked and the moment the server binds it (or binds it again: a crash
# test restarts on the same port).
_FIRST, _LAST = 11000, 31000
# Test processes that run side by side (the workers of one run, the runs of several checkouts) take
# ports block by block, each block held by one of them: a port is theirs even while nothing listens on it.
_BLOCK = 50
_blocks: dict[int, socket.socket] = {}
_ports: list[int] = []
_random = random.Random(os.getpid() ^ int.from_bytes(os.urandom(4), "little"))


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing is bound to and that no test process was handed out before."""
    for _ in range(1000):
        if not _ports:
            _take_block()
        port = _ports.pop()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("no free port found in 1000 tries")


def _take_block() -> None:
    """Errors: RuntimeError when other processes have all of them."""
    starts = list(range(_FIRST, _LAST, _BLOCK))
    _random.shuffle(starts)
    for start in starts:
        claimed = claim("ports", start)
        if claimed is not None:
            _blocks[start] = claimed
            break
    else:
        # Those handed out long ago once more: what is bound is seen, what a restart test will bind again is not.
        if not _blocks:
            raise RuntimeError("all ports for tests are taken")
        start = _random.choice(list(_blocks))
    _ports.extend(_random.sample(range(start, start + _BLOCK), _BLOCK))
