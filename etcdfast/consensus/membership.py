"""The members as consensus knows them: what raft snapshots carry, and who this member says it is.

The store's own buckets (apply) are what clients are shown; this copy follows the same entries.
"""

import json
from collections import namedtuple

from etcdfast.consensus import requests
from etcdfast.consensus.raft.core import ADD_LEARNER_NODE, ADD_NODE, REMOVE_NODE, UPDATE_NODE
from etcdfast.formats import snapfile

Member = namedtuple("Member", "peer_urls name client_urls is_learner", defaults=("", (), False))


class MembershipError(Exception):
    """A committed configuration change that cannot be read; one line."""


class Membership:
    """members: {id: Member}; removed: ids that may never come back; cluster_version: text or None."""

    def __init__(self):
        self.members = {}
        self.removed = set()
        self.cluster_version = None

    @property
    def voters(self):
        return sorted(member for member, at in self.members.items() if not at.is_learner)

    def load_snapshot(self, data):
        """Take the state of a raft snapshot. Errors: snapfile.SnapFileError."""
        members, removed, self.cluster_version = snapfile.decode_members(data)
        self.members = {
            member_id: Member(peer_urls, name, client_urls, is_learner)
            for member_id, peer_urls, name, client_urls, is_learner in members
        }
        self.removed = set(removed)

    def snapshot(self):
        """The bytes that a raft snapshot carries."""
        rows = [(member_id, m.peer_urls, m.name, m.client_urls, m.is_learner) for member_id, m in self.members.items()]
        return snapfile.encode_members(sorted(rows), sorted(self.removed), self.cluster_version)

    def apply_conf_change(self, change):
        """A committed raftpb ConfChange. Errors: MembershipError."""
        if change.type == REMOVE_NODE:
            self.members.pop(change.node_id, None)
            self.removed.add(change.node_id)
            return
        try:
            context = json.loads(change.context or b"{}")
            if context.get("id", change.node_id) != change.node_id:
                raise ValueError("its two ids differ")
            urls = tuple(str(url) for url in context.get("peerURLs") or ())
            name = str(context.get("name") or "")
        except (ValueError, AttributeError, TypeError) as err:
            raise MembershipError(f"configuration change of member {change.node_id:x} cannot be read: {err}") from None
        known = self.members.get(change.node_id)
        if change.type == UPDATE_NODE:
            if known:
                self.members[change.node_id] = known._replace(peer_urls=urls)
        elif context.get("isPromote"):
            if known:
                self.members[change.node_id] = known._replace(is_learner=False)
        elif change.type in (ADD_NODE, ADD_LEARNER_NODE) and change.node_id not in self.removed:
            self.members[change.node_id] = Member(urls, name, (), change.type == ADD_LEARNER_NODE)

    def apply_own_request(self, data):
        """A committed entry that begins with its header: attributes and cluster version are taken in."""
        found = requests.parse_own(data)
        if found is None:
            return
        if found[0] == "version":
            self.cluster_version = found[1]
        elif found[1] in self.members:
            _, member_id, name, client_urls = found
            self.members[member_id] = self.members[member_id]._replace(name=name, client_urls=client_urls)
