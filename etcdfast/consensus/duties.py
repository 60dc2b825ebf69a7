"""What a member does of itself: publish its name, and, while it leads, agree on the cluster's version.

Both are entries like any other: from a follower they go by way of the leader, and are asked again until they came
back. Source: formats.md sections 3.4 and 4.13.
"""

import time

from etcdfast import log, version
from etcdfast.cluster import entries
from etcdfast.consensus import versions

VERSION_SECONDS = 4.0  # etcd's monitor
ASK_SECONDS = 4.0  # for other members to tell their version


class Duties:
    def __init__(self, process):
        self._process = process
        self._may_publish = False
        self._published = False
        self._publish_id = 0
        self._publish_at = 0.0  # when to try again
        self._retry_seconds = process.config.request_timeout_seconds
        self._version_at = 0.0
        self._version_id = 0
        self._asking = None  # {member id: version text or None} of a round under way
        self._asked_at = 0.0

    # ---- when ------------------------------------------------------------------------------------

    def may_publish(self):
        """This member is fit to serve."""
        self._may_publish = True
        if self._process.raft.leader:
            self._publish()

    def leader_known(self):
        self._publish_at = 0.0
        if not self._process.raft.leads:  # a leader publishes with its first commit
            self._publish()

    def first_commit(self):
        """This member leads, and its state is the newest."""
        self._version_at = 0.0
        self._publish()
        if len(self._process.membership.members) == 1:
            self._decide({self._process.raft.id: version.SERVER_VERSION})
        else:
            self._ask_versions()

    def tick(self):
        now = time.monotonic()
        if not self._published and now >= self._publish_at:
            self._publish()
        if self._asking is not None and now - self._asked_at > ASK_SECONDS:
            self._answered()
        if self._process.raft.leads and self._process.raft.committed_in_term and now >= self._version_at:
            self._ask_versions()

    def done(self, request_ids):
        """Own entries that were handed to apply."""
        if self._publish_id in request_ids:
            self._published = True
            self._process.publish_done()

    # ---- the member's name ------------------------------------------------------------------------

    def _publish(self):
        process = self._process
        if self._published or not self._may_publish or process.raft.id not in process.membership.members:
            return
        loop, config = process.loop, process.config
        request_id = loop.next_request_id()
        data = entries.attributes(
            request_id,
            process.raft.id,
            config.name,
            config.advertise_client_urls,
            v2=versions.writes_v2(process.membership.cluster_version),
        )
        if loop.propose(0, data, request_id):
            self._publish_id = request_id
            self._publish_at = time.monotonic() + self._retry_seconds

    # ---- the cluster's version ---------------------------------------------------------------------

    def _ask_versions(self):
        """Once every member has told its version, or the time for it is over, the leader decides."""
        process = self._process
        self._version_at = time.monotonic() + VERSION_SECONDS
        if self._asking is not None:
            return
        known = {process.raft.id: version.SERVER_VERSION}
        others = [member for member in process.membership.members if member != process.raft.id]
        if not others:
            self._decide(known)
            return
        self._asking = known
        self._asked_at = time.monotonic()
        for member in others:
            process.peering.ask_version(member, self._take_version)

    def _take_version(self, member, found):
        if self._asking is None:
            return
        self._asking[member] = found
        if len(self._asking) >= len(self._process.membership.members):
            self._answered()

    def _answered(self):
        found, self._asking = self._asking, None
        if self._process.raft.leads:
            self._decide(found)

    def _decide(self, found):
        process = self._process
        membership, loop = process.membership, process.loop
        known = {member: found.get(member) for member in membership.members}
        wanted = versions.decide(
            known, membership.cluster_version, membership.downgrade, process.config.max_cluster_version
        )
        if wanted is None or wanted == membership.cluster_version:
            return
        what = "setting up initial cluster version" if not membership.cluster_version else "updating cluster version"
        request_id = loop.next_request_id()
        data = entries.cluster_version(request_id, wanted, v2=versions.writes_v2(membership.cluster_version))
        if loop.propose(0, data, request_id):
            # On a slow disk a tick comes before the entry does.
            self._version_at = time.monotonic() + VERSION_SECONDS
            log.info(what, cluster_version=wanted)
