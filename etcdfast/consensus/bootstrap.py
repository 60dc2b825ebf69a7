"""The first members of a cluster, and the changes that leave one member alone. Pure.

Source: reference/formats.md sections 5.1 and 5.2; etcd 3.5.1 for --force-new-cluster.
"""

from etcdfast.cluster import membership as rules
from etcdfast.cluster.membership import Member
from etcdfast.formats import memberid
from etcdfast.formats.raftpb import encode_conf_change


def first_members(config):
    """[Member] of --initial-cluster, ascending by id: every one of them computes the same."""
    token = config.initial_cluster_token
    return sorted(Member(memberid.member_id(urls, token), name, urls) for name, urls in config.initial_members)


def first_entries(members):
    """Data of the entries that the log of every first member begins with, index 1 for the lowest id."""
    return [encode_conf_change(rules.bootstrap_change(m.id, m.peer_urls, m.name)) for m in sorted(members)]


def changes_to_be_alone(own_id, membership, peer_urls):
    """[ConfChange] after which `own_id` is the only member; None when that cannot be: it is unknown or was removed.

    peer_urls: its own, for the case that it is no member yet.
    """
    if own_id in membership.removed or not membership.members:
        return None
    changes = []
    own = membership.members.get(own_id)
    if own is None:
        # First, for a configuration without any voter is none.
        changes.append(rules.add_change(0, own_id, peer_urls))
    elif own.is_learner:
        changes.append(rules.promote_change(0, own_id))
    others = sorted(set(membership.members) - {own_id})
    return changes + [rules.remove_change(0, member_id) for member_id in others]
