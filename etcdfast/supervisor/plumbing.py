"""Shared memory and descriptors between the processes of a member.

Everything is a memfd, eventfd or pipe: nothing has a name in a file system, so nothing is left behind
after kill -9.
"""

import os
from collections import namedtuple

from etcdfast._ext.ring import STATUS_PAGE_BYTES, StatusPage, format_ring
from etcdfast._ext.tokenpage import format_tokens
from etcdfast.supervisor.errors import StartError

MIB = 1 << 20
ANSWER_RING_BYTES = 4 * MIB  # apply -> frontend: larger answers travel in parts under credit

# A ring takes a record only as a whole; half as much again keeps a second request from waiting for the
# first to be read. Header and raft wrapping are the 4096.
RECORD_OVERHEAD_BYTES = 4096

Ring = namedtuple("Ring", "name producer consumer capacity")
Child = namedtuple("Child", "process role index")


def request_ring_bytes(config):
    """Capacity of a ring that carries requests: a power of two, 4 MiB with the default limits."""
    wanted = 3 * (config.message_bytes_max + RECORD_OVERHEAD_BYTES) // 2
    return 1 << (wanted - 1).bit_length()


def children_of(frontends):
    """The processes of a member, in the order in which they are started: the slowest to be ready first."""
    return (
        Child("apply", "apply", 0),
        Child("consensus", "consensus", 0),
        *(Child(f"frontend{i}", "frontend", i) for i in range(frontends)),
    )


def rings_of(config, frontends):
    """All rings of a member; a name says from whom to whom: f0c is frontend 0 to consensus."""
    request_bytes = request_ring_bytes(config)
    rings = [
        Ring("ca", "consensus", "apply", request_bytes),
        Ring("ac", "apply", "consensus", request_bytes),
    ]
    for i in range(frontends):
        rings += [
            Ring(f"f{i}c", f"frontend{i}", "consensus", request_bytes),
            Ring(f"f{i}a", f"frontend{i}", "apply", request_bytes),
            Ring(f"af{i}", "apply", f"frontend{i}", ANSWER_RING_BYTES),
        ]
    return rings


class Plumbing:
    """The descriptors of one member; every one closes on exec until it is handed to a child by number."""

    def __init__(self, config, frontends):
        self.children = children_of(frontends)
        self.rings = rings_of(config, frontends)
        try:
            self.ring_fds = {ring.name: os.memfd_create(f"etcdfast-{ring.name}") for ring in self.rings}
            for ring in self.rings:
                format_ring(self.ring_fds[ring.name], ring.capacity)
            self.status_fds = {name: os.memfd_create(f"etcdfast-status-{name}") for name in ("consensus", "apply")}
            for fd in self.status_fds.values():
                os.ftruncate(fd, STATUS_PAGE_BYTES)
            self.tokens_fd = os.memfd_create("etcdfast-tokens")
            format_tokens(self.tokens_fd)
            self.doorbells = {child.process: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for child in self.children}
            # Held open for writing by this process alone: its end is the end of file for every child.
            self.life_read, self.life_write = os.pipe()
        except OSError as err:
            raise StartError(f"cannot make shared memory: {err.strerror}") from None

    def fds_of(self, process):
        """The part of the boot object's "fds" that comes from here."""
        rings = [ring for ring in self.rings if process in (ring.producer, ring.consumer)]
        peers = {ring.consumer if ring.producer == process else ring.producer for ring in rings}
        return {
            "doorbell": self.doorbells[process],
            "doorbells": {peer: self.doorbells[peer] for peer in sorted(peers)},
            "rings": {ring.name: self.ring_fds[ring.name] for ring in rings},
            "status": dict(self.status_fds),
            "tokens": self.tokens_fd,
            "life": self.life_read,
        }

    def close_shared(self):
        """Close what only the children use, once they are started."""
        self.pages = {name: StatusPage(fd) for name, fd in self.status_fds.items()}
        shared = (*self.ring_fds.values(), *self.status_fds.values(), *self.doorbells.values())
        for fd in (*shared, self.tokens_fd, self.life_read):
            os.close(fd)

    def close(self):
        """Close the rest, after `close_shared`, once no child is left."""
        self.pages = {}
        os.close(self.life_write)
