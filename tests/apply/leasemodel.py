"""etcd's lessor the simple way: dictionaries, and every time worked out afresh. No line shared with the program.

Source: reference/formats.md 11.
"""

import math

from etcdfast.api.pb import lease_pb2
from tests.apply.leaserig import ELECTION_NS, GRACE_NS, MIN_TTL, SECOND

FOREVER = math.inf


class Lease:
    def __init__(self, ttl):
        self.ttl = ttl
        self.remaining = 0
        self.expiry = FOREVER
        self.offered = False
        self.resetting = False

    @property
    def left(self):
        return self.remaining if self.remaining > 0 else self.ttl


class LeaseModel:
    """`keys`: key -> lease id or 0, of live keys. Errors are symbols of api/errors.py, as from the rig."""

    def __init__(self, now):
        self.now = now
        self.primary = False
        self.revision = 1
        self.leases = {}
        self.keys = {}

    # ---- entries ----

    def grant(self, lease, ttl):
        if lease in self.leases:
            return "LEASE_EXIST"
        found = self.leases[lease] = Lease(max(ttl, MIN_TTL))
        if self.primary:
            found.expiry = self.now + found.ttl * SECOND + GRACE_NS
        return found.ttl

    def revoke(self, lease):
        if self.leases.pop(lease, None) is None:
            return "LEASE_NOT_FOUND"
        gone = [key for key in self.keys if self.keys[key] == lease]
        for key in gone:
            del self.keys[key]
        self.revision += bool(gone)
        return self.revision

    def checkpoint(self, remaining):
        for lease, seconds in remaining.items():
            if lease in self.leases:
                found = self.leases[lease]
                found.remaining = seconds
                if seconds <= 0:
                    found.resetting = False

    def write(self, puts, deletes):
        """One transaction: puts {key: lease, or None to keep its own}, deletes [(key, end)] before them."""
        if any(lease is None and key not in self.keys for key, lease in puts.items()):
            return "KEY_NOT_FOUND"
        if any(lease and lease not in self.leases for lease in puts.values()):
            return "LEASE_NOT_FOUND"
        gone = [key for key in self.keys for start, end in deletes if start <= key < (end or start + b"\0")]
        for key in gone:
            self.keys.pop(key, None)
        for key, lease in puts.items():
            self.keys[key] = self.keys[key] if lease is None else lease
        self.revision += bool(gone or puts)
        return self.revision

    # ---- calls ----

    def keep_alive(self, lease):
        """TTL, "waits" or "not primary"."""
        if not self.primary:
            return "not primary"
        found = self.leases.get(lease)
        if found is None:
            return 0
        if found.offered:
            return "waits"
        found.expiry = self.now + found.ttl * SECOND + GRACE_NS
        if found.remaining > 0:
            found.resetting = True
            return "waits"
        return found.ttl

    def time_to_live(self, lease):
        found = self.leases.get(lease)
        if found is None:
            return -1, 0, []
        left = found.expiry - GRACE_NS - self.now
        keys = sorted(key for key in self.keys if self.keys[key] == lease)
        return int(left / SECOND), found.ttl, keys

    def listed(self):
        return sorted(self.leases, key=lambda lease: (self.leases[lease].expiry, lease))

    def stored(self):
        return [
            (
                b"l" + (lease % 2**64).to_bytes(8, "big"),
                lease_pb2.Lease(ID=lease, TTL=found.ttl, RemainingTTL=found.remaining).SerializeToString(),
            )
            for lease, found in sorted(self.leases.items(), key=lambda item: item[0] % 2**64)
        ]

    # ---- time ----

    def lead(self):
        self.primary = True
        for found in self.leases.values():
            found.expiry = self.now + found.left * SECOND + ELECTION_NS + GRACE_NS
            found.offered = found.resetting = False

    def follow(self):
        self.primary = False
        for found in self.leases.values():
            found.expiry = FOREVER
            found.offered = found.resetting = False

    def due(self):
        """Who may be offered now; whoever is, stays so."""
        found = [i for i, lease in self.leases.items() if lease.expiry <= self.now and not lease.offered]
        for lease in found:
            self.leases[lease].offered = True
        return sorted(found)

    def right_checkpoint(self, lease, seconds):
        """Whether this is what a checkpoint of the lease made now may say."""
        found = self.leases[lease]
        if found.resetting:
            return seconds == 0
        left = math.ceil((found.expiry - GRACE_NS - self.now) / SECOND)
        return seconds == left < found.ttl
