"""The members as consensus follows them: what raft snapshots carry, and who this member says it is.

The store's own buckets (apply) are what clients are shown; this copy follows the same entries by the same rules.
"""

from etcdfast.cluster import entries
from etcdfast.cluster import membership as rules
from etcdfast.cluster.membership import Member, MembershipError

__all__ = ["Member", "Membership", "MembershipError"]


class Membership(rules.Membership):
    def load_snapshot(self, data):
        """Take the state of a raft snapshot. Errors: snapfile.SnapFileError."""
        found = rules.Membership.from_v2(data)
        self.members, self.removed, self.cluster_version = found.members, found.removed, found.cluster_version

    def snapshot(self):
        """The bytes that a raft snapshot carries."""
        return self.to_v2()

    def apply_conf_change(self, change):
        """A committed raftpb ConfChange: None when it took effect, else the symbol of its error; raft then gets a
        change of node 0. Errors: MembershipError."""
        refused = self.check(change)
        if refused is None:
            self.apply(change)
        return refused

    def apply_own_request(self, data):
        """A committed normal entry: names, client URLs and versions are taken in, anything else passes."""
        self.carry_out(entries.read(data))
