"""Numbered things of this machine that test processes share without asking each other: ports, test networks.

A claim is a name in the abstract namespace of unix sockets, so it ends with the process, however that ends.
"""

from __future__ import annotations

import socket


def claim(what: str, number: int) -> socket.socket | None:
    """The claim, held until it is closed; None when another process (or this one) has it."""
    claimed = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claimed.bind(f"\0etcdfast-test-{what}-{number}")
    except OSError:
        claimed.close()
        return None
    return claimed
