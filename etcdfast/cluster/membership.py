"""The members of a cluster and what configuration changes do to them.

`Membership.check` is what etcd validates when it applies a change: it depends on nothing but the log, so every
member decides alike. `may_add`, `may_remove` and `may_promote` are what the member that proposes asks before
(strict reconfiguration): they also depend on who can be reached just then.

Source: reference/formats.md sections 2.3, 5.4 and 5.5; etcd 3.5.1 for the order of the checks.
"""

import json
from collections import namedtuple

from etcdfast.formats import gojson, snapfile
from etcdfast.formats.raftpb import ConfChange, ConfState

ADD_NODE, REMOVE_NODE, UPDATE_NODE, ADD_LEARNER_NODE = range(4)  # raftpb.ConfChangeType
LEARNERS_MAX = 1  # etcd's default of --max-learners
CONNECTED_SECONDS = 5.0  # how long a member must have been connected to count as healthy
LEARNER_READY = 0.9  # of the leader's last index

# peer_urls, client_urls: tuples of text; a member is started once it has published its name.
Member = namedtuple("Member", "id name peer_urls client_urls is_learner", defaults=("", (), (), False))


class MembershipError(Exception):
    """A committed configuration change that no correct member can have proposed: the member must stop."""


class Membership:
    """members: {id: Member}; removed: ids that may never come back; cluster_version: text or None;
    downgrade: (enabled, target version) as DowngradeInfoSet left it."""

    def __init__(self, members=(), removed=(), cluster_version=None, downgrade=(False, ""), learners_max=LEARNERS_MAX):
        self.members = {member.id: member for member in members}
        self.removed = set(removed)
        self.cluster_version = cluster_version or None
        self.downgrade = downgrade
        self.learners_max = learners_max

    def __eq__(self, other):
        return isinstance(other, Membership) and self._content() == other._content()

    __hash__ = None

    def _content(self):
        return self.members, self.removed, self.cluster_version, self.downgrade

    # ---- who ----

    def ordered(self):
        """Members by id, as MemberList and GET /members show them."""
        return [self.members[member_id] for member_id in sorted(self.members)]

    def voters(self):
        """Their ids, ascending."""
        return [member.id for member in self.ordered() if not member.is_learner]

    def learners(self):
        return [member.id for member in self.ordered() if member.is_learner]

    def conf_state(self):
        return ConfState(tuple(self.voters()), tuple(self.learners()))

    # ---- changes ----

    def check(self, change):
        """Why a committed raftpb.ConfChange has no effect: symbol of api/errors, or None when it has.

        A refused change goes to raft as one of node 0, and its error to whoever proposed it.
        Errors: MembershipError when the change cannot be read.
        """
        node_id, kind = change.node_id, change.type
        if node_id in self.removed:
            return "MEMBER_NOT_FOUND"
        known = self.members.get(node_id)
        if kind == REMOVE_NODE:
            return None if known else "MEMBER_NOT_FOUND"
        member, promote = read_context(change)
        if kind == UPDATE_NODE:
            if known is None:
                return "MEMBER_NOT_FOUND"
            return "PEER_URL_EXIST" if self._url_taken(member) else None
        if promote:
            if known is None:
                return "MEMBER_NOT_FOUND"
            return None if known.is_learner else "MEMBER_NOT_LEARNER"
        if known is not None:
            return "MEMBER_EXIST"
        if self._url_taken(member):
            return "PEER_URL_EXIST"
        if kind == ADD_LEARNER_NODE and len(self.learners()) >= self.learners_max:
            return "TOO_MANY_LEARNERS"
        return None

    def _url_taken(self, member):
        urls = set(member.peer_urls)
        return any(urls & set(other.peer_urls) for other in self.members.values() if other.id != member.id)

    def apply(self, change):
        """Carry out a change that `check` let pass. Returns the Member as it is now, None when it was removed."""
        node_id, kind = change.node_id, change.type
        if kind == REMOVE_NODE:
            del self.members[node_id]
            self.removed.add(node_id)
            return None
        member, promote = read_context(change)
        if kind == UPDATE_NODE:
            member = self.members[node_id]._replace(peer_urls=member.peer_urls)
        elif promote:
            member = self.members[node_id]._replace(is_learner=False)
        else:
            member = member._replace(is_learner=kind == ADD_LEARNER_NODE)
        self.members[node_id] = member
        return member

    def set_attributes(self, member_id, name, client_urls):
        """A member published its name and client URLs. Returns the Member; None, and no effect, when unknown."""
        known = self.members.get(member_id)
        if known is None:
            return None
        member = self.members[member_id] = known._replace(name=name, client_urls=tuple(client_urls))
        return member

    def set_cluster_version(self, version):
        self.cluster_version = version or None

    def set_downgrade(self, enabled, target):
        self.downgrade = (bool(enabled), target if enabled else "")

    def carry_out(self, request):
        """A request of etcd's own as cluster/entries.read gives it; None is no news."""
        if request is None:
            return
        kind, *values = request
        {
            "attributes": self.set_attributes,
            "version": self.set_cluster_version,
            "downgrade": self.set_downgrade,
        }[kind](*values)

    # ---- forms ----

    def to_json(self):
        """Text of the MEMBERS record between consensus and apply."""
        enabled, target = self.downgrade
        return json.dumps(
            {
                "members": [json.loads(member_json(member)) for member in self.ordered()],
                "removed": sorted(self.removed),
                "cluster_version": self.cluster_version,
                "downgrade": {"target-version": target, "enabled": enabled},
            },
            separators=(",", ":"),
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text, learners_max=LEARNERS_MAX):
        """Errors: MembershipError."""
        try:
            found = json.loads(text)
            downgrade = found.get("downgrade") or {}
            return cls(
                [_member(raw) for raw in found["members"]],
                [int(member_id) for member_id in found["removed"]],
                found.get("cluster_version"),
                (bool(downgrade.get("enabled")), downgrade.get("target-version") or ""),
                learners_max,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise MembershipError(f"membership cannot be read: {err!r}") from None

    def to_v2(self):
        """The v2 store that a raft snapshot carries (formats.md 8.4)."""
        rows = [(m.id, m.peer_urls, m.name, m.client_urls, m.is_learner) for m in self.ordered()]
        return snapfile.encode_members(rows, sorted(self.removed), self.cluster_version)

    @classmethod
    def from_v2(cls, data, learners_max=LEARNERS_MAX):
        """Errors: snapfile.SnapFileError."""
        members, removed, version = snapfile.decode_members(data)
        found = [
            Member(member_id, name, tuple(peer_urls), tuple(client_urls), is_learner)
            for member_id, peer_urls, name, client_urls, is_learner in members
        ]
        return cls(found, removed, version, learners_max=learners_max)

    def members_json(self):
        """The body of GET /members on the peer port."""
        return b"[" + b",".join(member_json(member) for member in self.ordered()) + b"]\n"


def members_from_json(body):
    """The members of such a body. Errors: MembershipError."""
    try:
        return [_member(raw) for raw in json.loads(body)]
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise MembershipError(f"member list cannot be read: {err!r}") from None


def member_json(member):
    """A member as etcd's backend holds it: its key order, empty attributes left out."""
    out = {"id": member.id, "peerURLs": list(member.peer_urls)}
    if member.is_learner:
        out["isLearner"] = True
    if member.name:
        out["name"] = member.name
    if member.client_urls:
        out["clientURLs"] = list(member.client_urls)
    return gojson.dumps(out).encode()


def member_from_json(raw):
    """Errors: MembershipError."""
    try:
        return _member(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise MembershipError(f"member cannot be read: {err!r}") from None


def _member(found):
    return Member(
        int(found["id"]),
        str(found.get("name") or ""),
        tuple(str(url) for url in found.get("peerURLs") or ()),
        tuple(str(url) for url in found.get("clientURLs") or ()),
        bool(found.get("isLearner", False)),
    )


# ---- configuration changes as they stand in the log -------------------------------------------------


def read_context(change):
    """(Member, whether it is a promotion) of a ConfChange that has a context. Errors: MembershipError."""
    try:
        found = json.loads(change.context or b"")
        member, promote = _member(found), bool(found.get("isPromote", False))
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        reason = f"configuration change of member {change.node_id:x} cannot be read: {err!r}"
        raise MembershipError(reason) from None
    if member.id != change.node_id:
        raise MembershipError(f"configuration change of member {change.node_id:x} names member {member.id:x}")
    return member, promote


def _context(member_id, peer_urls, **more):
    found = {"id": member_id, "peerURLs": None if peer_urls is None else list(peer_urls), **more}
    return gojson.dumps(found).encode()


def bootstrap_change(member_id, peer_urls, name):
    """Of a first member; its request id is 0, for nobody asked."""
    return ConfChange(0, ADD_NODE, member_id, _context(member_id, peer_urls, name=name))


def add_change(request_id, member_id, peer_urls, is_learner=False):
    if is_learner:
        return ConfChange(request_id, ADD_LEARNER_NODE, member_id, _context(member_id, peer_urls, isLearner=True))
    return ConfChange(request_id, ADD_NODE, member_id, _context(member_id, peer_urls))


def promote_change(request_id, member_id):
    return ConfChange(request_id, ADD_NODE, member_id, _context(member_id, None, isPromote=True))


def update_change(request_id, member_id, peer_urls):
    return ConfChange(request_id, UPDATE_NODE, member_id, _context(member_id, peer_urls))


def remove_change(request_id, member_id):
    return ConfChange(request_id, REMOVE_NODE, member_id, None)


# ---- what the proposing member asks before (strict reconfiguration) ------------------------------------


def _quorum(count):
    return count // 2 + 1


def _voting(membership):
    return [member for member in membership.members.values() if not member.is_learner]


def may_add(membership, is_learner, connected):
    """Whether a member may be added: None, or the error symbol.

    connected: ids of the members reachable for CONNECTED_SECONDS or longer, the own one included. As in the newest
    etcd they must be a quorum with the new member counted as down; older ones want all voters connected.
    """
    voters = _voting(membership)
    if not is_learner:
        started = sum(1 for member in voters if member.name)
        # The one member of a restored cluster may be joined by a second, whatever that one does.
        if not (started == 1 and len(voters) == 1) and started < _quorum(len(voters) + 1):
            return "MEMBER_NOT_ENOUGH_STARTED"
    healthy = sum(1 for member in voters if member.id in connected)
    if len(voters) == 1 and healthy == 1:
        return None
    needed = _quorum(len(voters) if is_learner else len(voters) + 1)
    return None if healthy >= needed else "UNHEALTHY"


def may_remove(membership, member_id, own_id, connected, active):
    """Whether a member may be removed: None, or the error symbol.

    connected: as in `may_add`; active: whether there is a connection to that member at all (one that is down
    is no part of the quorum).
    """
    member = membership.members.get(member_id)
    if member is not None and member.is_learner:
        return None
    voters = _voting(membership)
    rest = [voter for voter in voters if voter.id != member_id]
    if sum(1 for voter in rest if voter.name) < _quorum(len(rest)):
        return "MEMBER_NOT_ENOUGH_STARTED"
    if member_id != own_id and not active:
        return None
    healthy = sum(1 for voter in voters if voter.id in connected)
    return None if healthy - 1 >= _quorum(len(voters) - 1) else "UNHEALTHY"


def may_promote(membership, member_id):
    """Whether the voters would still be a quorum of started ones with the learner: None, or the error symbol."""
    voters = [voter for voter in _voting(membership) if voter.id != member_id]
    started = 1 + sum(1 for voter in voters if voter.name)
    return None if started >= _quorum(1 + len(voters)) else "MEMBER_NOT_ENOUGH_STARTED"


def learner_ready(match, leader_match):
    """Whether a learner has enough of the log to be promoted: None, or the error symbol. The leader alone knows.

    match: of that learner in the leader's progress, None when it has none: then the change itself is refused.
    """
    if match is None:
        return None
    return None if match >= leader_match * LEARNER_READY else "LEARNER_NOT_READY"
