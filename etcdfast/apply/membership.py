"""The cluster's members, versions and configuration as the applied log made them.

Entries change this state, the `members`, `members_removed`, `cluster` and `meta` buckets keep it.
Raft's own view of voters and learners lives in consensus; `confState` here is its durable shadow.

Source: reference/formats.md sections 2.3, 5.4, 5.5 and 6.3.
"""

import json
from dataclasses import dataclass, field

from etcdfast.apply import buckets

ADD_NODE, REMOVE_NODE, UPDATE_NODE, ADD_LEARNER = range(4)


class MembershipError(Exception):
    """A committed configuration change that no correct member can have proposed."""


@dataclass
class Member:
    id: int
    peer_urls: list = field(default_factory=list)
    is_learner: bool = False
    name: str = ""
    client_urls: list = field(default_factory=list)

    @classmethod
    def from_json(cls, raw):
        found = json.loads(raw)
        return cls(
            id=found["id"],
            peer_urls=list(found.get("peerURLs") or ()),
            is_learner=bool(found.get("isLearner", False)),
            name=found.get("name", ""),
            client_urls=list(found.get("clientURLs") or ()),
        )

    def to_json(self):
        """The bytes that etcd stores: its key order, empty attributes left out."""
        out = {"id": self.id, "peerURLs": self.peer_urls}
        if self.is_learner:
            out["isLearner"] = True
        if self.name:
            out["name"] = self.name
        if self.client_urls:
            out["clientURLs"] = self.client_urls
        return json.dumps(out, separators=(",", ":"), ensure_ascii=False).encode()


class Membership:
    """Members by id, ids removed for ever, cluster version, downgrade state."""

    def __init__(self, store):
        self.members = {}
        self.removed = set()
        self.cluster_version = ""
        self.downgrade = {"target-version": "", "enabled": False}
        for key, value in store.scan(buckets.MEMBERS, buckets.end(buckets.MEMBERS)):
            member_id = int(key[1:], 16)
            self.members[member_id] = Member.from_json(value)
        for key, _ in store.scan(buckets.MEMBERS_REMOVED, buckets.end(buckets.MEMBERS_REMOVED)):
            self.removed.add(int(key[1:], 16))
        self.cluster_version = (store.get(buckets.CLUSTER_VERSION) or b"").decode()
        self.storage_version = (store.get(buckets.STORAGE_VERSION) or b"").decode()
        raw = store.get(buckets.DOWNGRADE)
        if raw:
            self.downgrade = json.loads(raw)

    def ordered(self):
        """Members by id, as MemberList gives them."""
        return [self.members[member_id] for member_id in sorted(self.members)]

    def apply_change(self, kind, node_id, context, batch):
        """Carry out one committed ConfChange; its writes go into `batch`.

        A change that etcd refuses at apply time (unknown or removed id) leaves everything as it was.
        Returns whether it took effect. Errors: MembershipError when context and node id disagree.
        """
        if kind == REMOVE_NODE:
            if node_id not in self.members:
                return False
            del self.members[node_id]
            self.removed.add(node_id)
            batch.delete(buckets.MEMBERS + _hex(node_id))
            batch.put(buckets.MEMBERS_REMOVED + _hex(node_id), b"removed")
        else:
            try:
                change = json.loads(context)
                member = Member.from_json(context)
            except (ValueError, KeyError, TypeError) as fault:
                raise MembershipError(f"member {node_id:x}: unreadable context of a configuration change") from fault
            if member.id != node_id:
                raise MembershipError(f"configuration change for {node_id:x} names member {member.id:x}")
            if node_id in self.removed or not self._admit(kind, member, bool(change.get("isPromote"))):
                return False
            self._save(self.members[node_id], batch)
        self._save_conf_state(batch)
        return True

    def _admit(self, kind, member, promote):
        known = self.members.get(member.id)
        if kind == UPDATE_NODE:
            if known is None or self._url_taken(member):
                return False
            known.peer_urls = member.peer_urls
        elif promote:
            if known is None or not known.is_learner:
                return False
            known.is_learner = False
        else:
            if known is not None or self._url_taken(member):
                return False
            member.is_learner = kind == ADD_LEARNER
            self.members[member.id] = member
        return True

    def _url_taken(self, member):
        urls = set(member.peer_urls)
        return any(urls & set(other.peer_urls) for other in self.members.values() if other.id != member.id)

    def set_attributes(self, member_id, name, client_urls, batch):
        """A member published its name and client URLs; unknown and removed members are ignored."""
        member = self.members.get(member_id)
        if member is None:
            return
        member.name = name
        member.client_urls = list(client_urls)
        self._save(member, batch)

    def set_cluster_version(self, version, batch):
        self.cluster_version = version
        batch.put(buckets.CLUSTER_VERSION, version.encode())
        # The schema of the store follows the cluster's version: etcd's storage version monitor does
        # the same a few seconds later.
        self.storage_version = version
        batch.put(buckets.STORAGE_VERSION, version.encode())

    def set_downgrade(self, enabled, target, batch):
        self.downgrade = {"target-version": target if enabled else "", "enabled": enabled}
        batch.put(buckets.DOWNGRADE, json.dumps(self.downgrade, separators=(",", ":")).encode())

    def _save(self, member, batch):
        batch.put(buckets.MEMBERS + _hex(member.id), member.to_json())

    def _save_conf_state(self, batch):
        voters = [m.id for m in self.ordered() if not m.is_learner]
        learners = [m.id for m in self.ordered() if m.is_learner]
        state = {"voters": voters}
        if learners:
            state["learners"] = learners
        state["auto_leave"] = False
        batch.put(buckets.CONF_STATE, json.dumps(state, separators=(",", ":")).encode())


def _hex(member_id):
    return f"{member_id:x}".encode()
