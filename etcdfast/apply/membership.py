"""The cluster's members, versions and configuration as the applied log made them, kept in the store.

The rules are those of etcdfast/cluster/membership; the `members`, `members_removed`, `cluster` and `meta` buckets
keep their outcome. Raft's own view of voters and learners lives in consensus; `confState` here is its durable shadow.

Source: reference/formats.md sections 5.5 and 6.3.
"""

import json

from etcdfast.apply import buckets
from etcdfast.cluster import membership as rules
from etcdfast.cluster.membership import LEARNERS_MAX, MembershipError

__all__ = ["Membership", "MembershipError"]


class Membership:
    """`rules`: the cluster/membership.Membership; the methods here change it and write what changed into a batch."""

    def __init__(self, store, learners_max=LEARNERS_MAX):
        members = [
            rules.member_from_json(value) for _, value in store.scan(buckets.MEMBERS, buckets.end(buckets.MEMBERS))
        ]
        removed = [
            int(key[1:], 16) for key, _ in store.scan(buckets.MEMBERS_REMOVED, buckets.end(buckets.MEMBERS_REMOVED))
        ]
        version = (store.get(buckets.CLUSTER_VERSION) or b"").decode()
        self.rules = rules.Membership(members, removed, version, _downgrade(store), learners_max)
        self.storage_version = (store.get(buckets.STORAGE_VERSION) or b"").decode()

    @property
    def members(self):
        """{id: Member}"""
        return self.rules.members

    @property
    def removed(self):
        return self.rules.removed

    @property
    def cluster_version(self):
        return self.rules.cluster_version or ""

    @property
    def downgrade(self):
        """(enabled, target version)"""
        return self.rules.downgrade

    def ordered(self):
        """Members by id, as MemberList gives them."""
        return self.rules.ordered()

    def apply_change(self, change, batch):
        """Carry out one committed raftpb.ConfChange.

        Returns None, or the symbol of the error for which it left everything as it was. Errors: MembershipError.
        """
        refused = self.rules.check(change)
        if refused is not None:
            return refused
        member = self.rules.apply(change)
        if member is None:
            batch.delete(buckets.MEMBERS + _hex(change.node_id))
            batch.put(buckets.MEMBERS_REMOVED + _hex(change.node_id), b"removed")
        else:
            _save(member, batch)
        self._save_conf_state(batch)
        return None

    def carry_out(self, request, batch):
        """A request of etcd's own, as cluster/entries.read gives it."""
        kind, *values = request
        {
            "attributes": self.set_attributes,
            "version": self.set_cluster_version,
            "downgrade": self.set_downgrade,
        }[kind](*values, batch)

    def set_attributes(self, member_id, name, client_urls, batch):
        """A member published its name and client URLs; unknown and removed members are ignored."""
        member = self.rules.set_attributes(member_id, name, client_urls)
        if member is not None:
            _save(member, batch)

    def set_cluster_version(self, version, batch):
        self.rules.set_cluster_version(version)
        batch.put(buckets.CLUSTER_VERSION, version.encode())
        # The schema of the store follows the cluster's version: etcd's storage version monitor does
        # the same a few seconds later.
        self.storage_version = version
        batch.put(buckets.STORAGE_VERSION, version.encode())

    def set_downgrade(self, enabled, target, batch):
        self.rules.set_downgrade(enabled, target)
        enabled, target = self.downgrade
        state = {"target-version": target, "enabled": enabled}
        batch.put(buckets.DOWNGRADE, json.dumps(state, separators=(",", ":")).encode())

    def replace(self, found, batch):
        """Make the store show the members of `found` (a cluster/membership.Membership), as the log and its snapshot
        have them: etcd up to 3.5 lets its backend's copy go stale. What a snapshot does not carry stays: the
        downgrade, and the version where it names none. Returns whether anything differed."""
        mine = self.rules
        version = found.cluster_version or mine.cluster_version
        wanted = rules.Membership(found.members.values(), found.removed, version, mine.downgrade, mine.learners_max)
        if mine == wanted:
            return False
        self.rules = wanted
        for member_id in mine.members.keys() - wanted.members.keys():
            batch.delete(buckets.MEMBERS + _hex(member_id))
        for member_id in mine.removed - wanted.removed:
            batch.delete(buckets.MEMBERS_REMOVED + _hex(member_id))
        for member in wanted.ordered():
            _save(member, batch)
        for member_id in sorted(wanted.removed):
            batch.put(buckets.MEMBERS_REMOVED + _hex(member_id), b"removed")
        if version != mine.cluster_version:
            self.set_cluster_version(version, batch)
        self._save_conf_state(batch)
        return True

    def _save_conf_state(self, batch):
        state = {"voters": self.rules.voters()}
        learners = self.rules.learners()
        if learners:
            state["learners"] = learners
        state["auto_leave"] = False
        batch.put(buckets.CONF_STATE, json.dumps(state, separators=(",", ":")).encode())


def _save(member, batch):
    batch.put(buckets.MEMBERS + _hex(member.id), rules.member_json(member))


def _downgrade(store):
    raw = store.get(buckets.DOWNGRADE)
    if not raw:
        return False, ""
    found = json.loads(raw)
    return bool(found.get("enabled")), found.get("target-version") or ""


def _hex(member_id):
    return f"{member_id:x}".encode()
