"""A ring record as Python sees it: the rare ones that the C turn leaves to Python."""

import struct

from etcdfast._ext.ring import KINDS, RECORD_HEADER_BYTES

_HEADER = struct.Struct("=IBBBBIIIIQQ")
assert _HEADER.size == RECORD_HEADER_BYTES


class Record:
    """Fields as in `_ext/ring.pxd`; raw: the whole record, which is what goes back to the turn."""

    PROPOSE, FORWARD, PEER_REPLY, SNAPSHOT_DONE = (
        KINDS[name] for name in ("PROPOSE", "FORWARD", "PEER_REPLY", "SNAPSHOT_DONE")
    )

    __slots__ = ("raw", "kind", "method", "frontend", "slot", "status", "index", "term")

    def __init__(self, raw):
        self.raw = raw
        _, self.kind, self.method, self.frontend, _, self.slot, _, _, self.status, self.index, self.term = (
            _HEADER.unpack_from(raw)
        )

    @property
    def payload(self):
        return self.raw[RECORD_HEADER_BYTES:]

    @property
    def message(self):
        """The payload of a PROPOSE without the user name behind it (_ext/identity.pxd)."""
        return self.raw[RECORD_HEADER_BYTES : len(self.raw) - self.status]
