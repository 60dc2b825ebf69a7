"""The cluster's version: what the leader decides, who may join, and in which form members write about it.

The cluster version is the lowest version that any member runs, without its patch level. It says what may be written
into the log. Pure; source: reference/formats.md sections 3.4 and 4.13, etcd 3.6 for downgrades.
"""

from etcdfast.version import CLUSTER_VERSION, MIN_CLUSTER_VERSION, SERVER_VERSION

V3_FORM_SINCE = (3, 6)  # below it members may be unable to apply the form of today, from 3.7 on they cannot the older


def parse(text):
    """(major, minor, patch) of "3.5.1" or "3.6.0-rc.1", None when it is no version."""
    numbers = (text or "").partition("-")[0].split(".")
    if len(numbers) != 3 or not all(number.isdecimal() and number.isascii() for number in numbers):
        return None
    return tuple(int(number) for number in numbers)


def packed(text):
    """A version as one number for the status page, 0 for none."""
    found = parse(text)
    return found[0] << 32 | found[1] << 16 | found[2] if found else 0


def writes_v2(cluster_version):
    """Whether attributes and versions are written as v2 requests: in a cluster known to be below 3.6."""
    known = parse(cluster_version)
    return known is not None and known[:2] < V3_FORM_SINCE


def decide(servers, cluster_version, downgrade=(False, ""), highest=""):
    """The version that the leader has to set now, None for no change.

    servers: {member id: version it runs, None when it did not tell} of every member, the own one included.
    downgrade: (enabled, target version). highest: beyond it the version does not rise, "" for no such limit.
    """
    wanted = _lowest(servers.values())
    if wanted is not None and highest and parse(wanted) > parse(highest):
        wanted = highest
    known = parse(cluster_version)
    if known is None:
        return wanted or MIN_CLUSTER_VERSION
    if wanted is None:
        return None
    now, then = known[:2], parse(wanted)[:2]
    if now[0] == then[0] and now < then:
        # An upgrade; while a downgrade goes on no member may raise what the others are to run without.
        return None if downgrade[0] else wanted
    if downgrade[0] and then == (now[0], now[1] - 1):
        return wanted
    return None


def _lowest(servers):
    found = [parse(server) for server in servers]
    if not found or None in found:
        return None
    major, minor, _ = min(found)
    return f"{major}.{minor}.0"


def compatible(found):
    """Whether this server can join members that told their (server, cluster) versions: {id: (server, cluster)}.

    One at least has to tell; a cluster that has not yet agreed on a version tells "not_decided".
    """
    told = [parse(cluster) for _, cluster in found.values()]
    known = [version for version in told if version is not None]
    low, high = parse(MIN_CLUSTER_VERSION), parse(CLUSTER_VERSION)
    return bool(known) and all(low <= version and version[:2] <= high[:2] for version in known)


def refusal(cluster_version, downgrade=(False, "")):
    """Why this server must not serve a cluster of that version: one line in etcd's words, None when it may."""
    known, own = parse(cluster_version), parse(SERVER_VERSION)
    if known is None or known[:2] <= own[:2]:
        return None
    target = parse(downgrade[1]) if downgrade[0] else None
    if target and target[:2] == own[:2]:
        return None
    return (
        "invalid downgrade; server version is lower than determined cluster version "
        f"(server {SERVER_VERSION}, cluster {cluster_version})"
    )
