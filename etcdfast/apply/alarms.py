"""Alarms: which members raised which, kept in bucket `alarm`.

Source: reference/formats.md sections 6.1 and 6.5, reference/etcd-behaviour.md section 0 (G7).
"""

from etcdfast._ext import wire
from etcdfast.apply import buckets

NONE, NOSPACE, CORRUPT = range(3)
NAMES = {NONE: "NONE", NOSPACE: "NOSPACE", CORRUPT: "CORRUPT"}


class Alarms:
    """The set of (alarm, member id); iteration is ordered, so equal logs answer equally."""

    def __init__(self, store):
        self._raised = set()
        for key, _ in store.scan(buckets.ALARM, buckets.end(buckets.ALARM)):
            found = {number: value for number, _, value in wire.fields(key[1:])}
            self._raised.add((found.get(2, NONE), found.get(1, 0)))

    def raised(self, alarm=NONE):
        """(member id, alarm) pairs of one alarm, or of all for NONE."""
        return [(member, kind) for kind, member in sorted(self._raised) if alarm in (NONE, kind)]

    def activate(self, member, alarm, batch):
        """Raise it; raising twice is no change. Returns the pair, or None for the alarm NONE."""
        if alarm == NONE:
            return None
        if (alarm, member) not in self._raised:
            self._raised.add((alarm, member))
            batch.put(_key(member, alarm), b"")
        return member, alarm

    def deactivate(self, member, alarm, batch):
        """Take it back. Returns the pair, or None when it was not raised."""
        if (alarm, member) not in self._raised:
            return None
        self._raised.discard((alarm, member))
        batch.delete(_key(member, alarm))
        return member, alarm

    def bits(self):
        """What status pages carry: bit 0 NOSPACE, bit 1 CORRUPT."""
        kinds = {kind for kind, _ in self._raised}
        return (NOSPACE in kinds) | (CORRUPT in kinds) << 1


def _key(member, alarm):
    # An AlarmMember message: zero scalars are left out.
    out = b""
    if member:
        out += b"\x08" + wire.varint(member)
    if alarm:
        out += b"\x10" + wire.varint(alarm)
    return buckets.ALARM + out
