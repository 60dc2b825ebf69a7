"""What the peer thread knows of the cluster: snapshots that the main thread replaces as a whole."""

import re
from typing import NamedTuple

from etcdfast import version

NOT_DECIDED = "not_decided"
_HEX = re.compile(r"[0-9a-fA-F]+")
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})(\.|$)")


class PeerSettings(NamedTuple):
    """What does not change while the member runs. Units: seconds, bytes."""

    snap_dir: str  # where received databases go: member/snap
    election_timeout_seconds: float = 1.0
    message_bytes_max: int = 64 << 20  # body of POST /raft; etcd has no limit, its messages hold 1 MiB or one entry
    snapshot_message_bytes_max: int = 64 << 20  # the message before the database, as etcd 3.6
    bodies_bytes_max: int = 256 << 20  # of all request bodies held at once, the one that goes first excepted
    connections_max: int = 1024
    snapshot_answer_seconds: float = 60.0  # for the main thread to take a received snapshot
    probe_seconds: float = 4.0

    @property
    def dial_seconds(self):
        return 1.0 + self.election_timeout_seconds


class View(NamedTuple):
    """The cluster as of an applied index.

    `peer_urls` holds every member, this one included; `cluster_version` is None until it is decided; `members_json` is
    the body of GET /members without its newline.
    """

    member_id: int
    cluster_id: int
    peer_urls: dict[int, tuple[str, ...]]
    removed: frozenset[int] = frozenset()
    cluster_version: str | None = None
    members_json: bytes = b"[]"

    @property
    def own_urls(self):
        return self.peer_urls.get(self.member_id, ())

    def request_headers(self):
        """Headers of every request to a peer."""
        return {
            "X-Server-From": f"{self.member_id:x}",
            "X-Server-Version": version.SERVER_VERSION,
            "X-Min-Cluster-Version": version.MIN_CLUSTER_VERSION,
            "X-Etcd-Cluster-Id": f"{self.cluster_id:x}",
            "X-Peerurls": ",".join(self.own_urls),
        }


def parse_id(text):
    """A member id as etcd reads it, None for anything but hex of 64 bits."""
    if not _HEX.fullmatch(text):
        return None
    value = int(text, 16)
    return value if value < 1 << 64 else None


def major_minor(text):
    """(major, minor) of a version, None when it is none."""
    match = _VERSION.match(text)
    return (int(match[1]), int(match[2])) if match else None


def versions_fit(headers):
    """Whether the sender of these headers and this member speak a common version (formats.md 4.3)."""
    remote = major_minor(headers.get("x-server-version") or "2.0.0")
    remote_min = major_minor(headers.get("x-min-cluster-version") or "2.0.0")
    if remote is None or remote_min is None:
        return False
    return remote >= major_minor(version.MIN_CLUSTER_VERSION) and remote_min <= major_minor(version.SERVER_VERSION)
