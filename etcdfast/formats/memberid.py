"""Ids of members and of the cluster, as etcd computes them (reference/formats.md section 5.1)."""

from hashlib import sha1


def _first_u64(data):
    return int.from_bytes(sha1(data).digest()[:8], "big")


def member_id(peer_urls, cluster_token, added_at_seconds=None):
    """Id of a member.

    A member of the first start has the cluster token and no time; one added through the API has an empty
    token and the unix seconds of the member that added it.
    """
    text = "".join(sorted(peer_urls)) + cluster_token
    if added_at_seconds is not None:
        text += str(added_at_seconds)
    return _first_u64(text.encode())


def cluster_id(member_ids):
    """Id of the cluster, from the ids of its first members; it never changes afterwards."""
    return _first_u64(b"".join(i.to_bytes(8, "big") for i in sorted(member_ids)))
