"""Requests that a member itself proposes: marshalled bytes of entries (formats.md 3.1, 3.4)."""

from etcdfast.cluster import entries, membership
from etcdfast.formats.raftpb import encode_conf_change

member_attributes = entries.attributes
cluster_version = entries.cluster_version


def bootstrap_member(member_id, peer_urls, name):
    """The ConfChangeAddNode of one first member; its id is 0, for nobody asked (formats.md 2.3)."""
    return encode_conf_change(membership.bootstrap_change(member_id, peer_urls, name))
