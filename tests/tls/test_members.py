"""Members that meet over TLS: they serve, move, catch up and rotate; who is not one of them stays outside.

What is refused is compared with a real etcd in the same cluster.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time

import pytest

from tests.harness import pb
from tests.harness.certs import Authority, bundle, write_whole
from tests.harness.cluster import Cluster, ClusterMember
from tests.harness.security import PeerSecurity
from tests.harness.servers import target_name
from tests.harness.wait import wait_until

REJECTED = "rejected connection"  # etcd 3.5.15 and we: "... on peer endpoint"
NAME = "a-member"  # the common name that is allowed
# Log files so small that who was away for long needs a snapshot.
SMALL_FILES = {
    "ETCDFAST_TEST_WAL": json.dumps({"segment_bytes": 64_000, "keep_wals_max": 1}),
    "ETCD_MAX_CLUSTER_VERSION": "3.5.0",
}
SNAPSHOTS = ["--snapshot-count", "100", "--max-wals", "1"]
MISSED = 5500  # etcd keeps 5000 entries behind a snapshot


@pytest.fixture(scope="module")
def cluster():
    """One of etcd and two of the kind under test."""
    security = PeerSecurity(crl=True, common_name=NAME, flags=["--peer-cert-allowed-cn", NAME])
    kinds = ["etcd", target_name(), target_name()]
    with Cluster(kinds, flags=SNAPSHOTS, environment=SMALL_FILES, security=security) as made:
        yield made


def put_many(cluster: Cluster, by: ClusterMember, count: int) -> None:
    with by.client() as client:
        for start in range(0, count, 500):
            requests = [pb.PutRequest(key=b"k%d" % (n % 50), value=b"%d" % n) for n in range(start, start + 500)]
            for pending in [client.start("Put", request) for request in requests]:
                assert pending.reply().ok


def put(cluster: Cluster, by: ClusterMember | None = None) -> None:
    cluster.call("Put", pb.PutRequest(key=b"key", value=b"value"), by=by)


class Asked:
    """What a peer port answers to GET /version: `status`, 0 when it hung up; `serial` of the certificate it showed."""

    def __init__(self, member: ClusterMember, cert=None, *, plain: bool = False, tls12: bool = False) -> None:
        self.status = self.serial = 0
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if tls12:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        if cert is not None:
            context.load_cert_chain(cert.cert_path, cert.key_path)
        try:
            with socket.create_connection((member.host, member.peer_port), 10) as raw:
                connected = raw if plain else context.wrap_socket(raw)
                with connected:
                    if not plain:
                        self.serial = _serial(connected.getpeercert(True))
                    connected.sendall(b"GET /version HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n")
                    response = http.client.HTTPResponse(connected)
                    response.begin()
                    self.status = response.status
        except (OSError, http.client.HTTPException):
            pass


def _serial(der: bytes) -> int:
    from cryptography import x509

    return x509.load_der_x509_certificate(der).serial_number


def test_kill_restart_and_move(cluster: Cluster) -> None:
    for member in cluster.members[1:]:
        cluster.move_leader(member)
        put(cluster)
        member.kill9()
        cluster.wait_leader(other_than=member)
        put(cluster)
        member.start()
    cluster.wait_equal()
    for member in cluster.members[1:]:
        assert REJECTED not in member.log_text().replace('"error":"EOF"', "").split("established a stream")[-1]


def test_snapshots_go_both_ways(cluster: Cluster) -> None:
    real, target, other = cluster.members
    for leader, lagging in ((real, target), (target, real)):
        cluster.move_leader(leader)
        lagging.kill9()
        put_many(cluster, leader, MISSED)
        if leader is target:  # it lets go of what its store has on disk, which a stop brings about
            for member in (target, other):
                member.stop()
                member.start()
            cluster.wait_leader()
        lagging.start()
        cluster.wait_equal()
    assert "a snapshot has arrived" in target.log_text() + other.log_text()


@pytest.fixture(scope="module")
def strangers(cluster: Cluster, tmp_path_factory):
    """Name -> (certificate, what the log says of it)."""
    own = cluster.security.authority
    foreign = Authority(tmp_path_factory.mktemp("foreign"), "foreign-ca")
    host = ["127.0.0.1"]
    revoked = own.issue("revoked", hosts=host, common_name=NAME)
    cluster.security.revoke([revoked])
    return {
        "of another CA": (foreign.issue("foreign", hosts=host, common_name=NAME), ""),
        "expired": (own.issue("expired", hosts=host, common_name=NAME, expired=True), "expired"),
        "revoked": (revoked, "revoked"),
        "of another address": (
            own.issue("elsewhere", hosts=["10.1.2.3"], common_name=NAME),
            "x509: certificate is valid for 10.1.2.3, not 127.0.0.1",
        ),
        "of another name": (
            own.issue("named", hosts=["etcd.invalid", "*.example.invalid"], common_name=NAME),
            "does not match any of DNSNames",
        ),
        "of a wrong common name": (own.issue("other", hosts=host), "client certificate authentication failed"),
        "for servers alone": (own.issue("server-only", hosts=host, common_name=NAME, client=False), ""),
        "none": (None, "certificate"),
    }


@pytest.mark.parametrize("tls12", [False, True], ids=["tls1.3", "tls1.2"])
def test_strangers_stay_outside(cluster: Cluster, strangers, tls12: bool) -> None:
    real, target, _ = cluster.members
    for what, (cert, reason) in strangers.items():
        before = target.log_text().count(REJECTED)
        told = Asked(real, cert, tls12=tls12).status, Asked(target, cert, tls12=tls12).status
        assert told == (0, 0), what
        lines = wait_until(
            lambda before=before: [line for line in target.log_text().splitlines() if REJECTED in line][before:],
            f"a line in the log about who is {what}",
        )
        assert reason in lines[-1], what
        assert '"remote-addr":"127.0.0.1:' in lines[-1]
    put(cluster)


def test_members_are_taken(cluster: Cluster) -> None:
    """And names that lead to the address, backwards or forwards, in place of the address."""
    own = cluster.security.authority
    for hosts in (["127.0.0.1"], ["10.1.2.3", "localhost"], ["localhost"], ["*.example.invalid", "127.0.0.1"], []):
        cert = own.issue("friend", hosts=hosts, common_name=NAME)
        for member in cluster.members[:2]:
            assert Asked(member, cert).status == 200, (hosts, member)


def test_plain_at_a_tls_port_and_what_never_ends(cluster: Cluster) -> None:
    for member in cluster.members[:2]:
        assert Asked(member, plain=True).status in (0, 400)
    hanging = [socket.create_connection((cluster.members[1].host, cluster.members[1].peer_port)) for _ in range(50)]
    try:
        for connection in hanging[:25]:
            connection.sendall(b"\x16\x03\x01\x02\x00\x01")  # the head of a ClientHello
        cert = cluster.security.authority.issue("friend", hosts=["127.0.0.1"], common_name=NAME)
        assert Asked(cluster.members[1], cert).status == 200
        put(cluster, by=cluster.members[1])
    finally:
        for connection in hanging:
            connection.close()


def test_rotation_without_a_restart(cluster: Cluster) -> None:
    """A new certificate, a new authority beside the old one, and then alone: members that run take each of them."""
    security = cluster.security
    watched = cluster.members[:2]
    fresh = security.issue(watched[1])
    assert Asked(watched[1], security.certs[1]).serial == fresh.serial
    old = security.authority
    old_friend = old.issue("friend-of-old", hosts=["127.0.0.1"], common_name=NAME)
    new = Authority(security.directory, "new-ca")
    ca_path = old.ca_path
    bundle(ca_path, [old, new])
    new_friend = new.issue("friend-of-new", hosts=["127.0.0.1"], common_name=NAME)
    assert Asked(watched[1], new_friend).status == 200
    assert Asked(watched[1], old_friend).status == 200
    for member in cluster.members:
        security.issue(member, new)
    write_whole(ca_path, new.ca_path.read_bytes())
    assert Asked(watched[1], old_friend).status == 0
    # etcd reads its authorities at the start alone. Two of the kind under test have not been started again since.
    cluster.members[0].kill9()
    cluster.members[0].start()
    cluster.wait_equal()
    member = cluster.members[2]
    member.kill9()
    member.start()
    put(cluster, by=member)
    cluster.wait_equal()


def test_a_revoked_member_is_cut_off(cluster: Cluster) -> None:
    """Last: the cluster goes on without it."""
    security, member = cluster.security, cluster.members[2]
    security.revoke([security.certs[3]])
    member.kill9()
    others = cluster.members[:2]
    # An etcd that leads would post to a revoked member all the same: it does not look at whom it dials.
    cluster.move_leader(others[1])
    member.spawn()
    wait_until(lambda: all(REJECTED in other.log_text() for other in others), "refusals")
    put(cluster, by=others[0])
    put(cluster, by=others[1])
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert member.status() is None or not member.status().leader
        time.sleep(0.1)
    security.revoke([])
    member.wait_ready()
    cluster.wait_equal()
