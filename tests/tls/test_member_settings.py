"""Settings of TLS between members: what does not start, members with certificates of their own, TLS for some."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.harness import pb
from tests.harness.certs import Authority
from tests.harness.cluster import Cluster
from tests.harness.ports import free_port
from tests.harness.security import PeerSecurity
from tests.harness.servers import EtcdfastServer, EtcdServer, target_name
from tests.harness.wait import wait_until

CERT = ["--peer-cert-file", "{dir}/good.crt", "--peer-key-file", "{dir}/good.key"]
BOTH = "KeyFile and CertFile must both be present"
COMPATIBLE = {"ETCD_MAX_CLUSTER_VERSION": "3.5.0"}


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certs")
    authority = Authority(directory)
    for name in ("good", "other"):
        authority.issue(name, hosts=["127.0.0.1"])
    (directory / "text.crl").write_text("no list")
    return directory


@pytest.mark.parametrize(
    "flags, said, theirs",
    [
        ([], "cannot listen on TLS for 127.0.0.1:", "cannot listen on TLS for 127.0.0.1:"),
        (CERT[:2], f"{BOTH}[key: , cert: ", BOTH),
        (
            [*CERT, "--peer-cert-allowed-cn", "a", "--peer-cert-allowed-hostname", "b"],
            "AllowedCNs and AllowedHostnames are mutually exclusive",
            "AllowedCN and AllowedHostname are mutually exclusive",
        ),
        (["--peer-cert-file", "{dir}/none.crt", *CERT[2:]], "none.crt: no such file or directory", "no such file"),
        (["--peer-cert-file", "{dir}/other.crt", *CERT[2:]], "private key does not match public key", "does not match"),
        ([*CERT, "--peer-trusted-ca-file", "{dir}/none.crt"], "none.crt: no such file or directory", "no such file"),
        ([*CERT, "--peer-client-cert-file", "x"], f"Client{BOTH.replace('and ', 'and Client')} or both absent", ""),
        ([*CERT, "--peer-crl-file", "{dir}/text.crl"], "text.crl: no certificate revocation list", ""),
    ],
)  # fmt: skip
def test_what_does_not_start(certs, tmp_path, flags, said, theirs):
    """etcd looks at a revocation list only when somebody comes; what `theirs` is "" it starts with, or tells later."""
    for kind, text in ((EtcdfastServer, said), (EtcdServer, theirs)):
        if not text:
            continue
        url = f"https://127.0.0.1:{free_port()}"
        server = kind(directory=tmp_path / kind.kind)
        server.flags = [
            *("--listen-peer-urls", url, "--initial-advertise-peer-urls", url, "--initial-cluster", f"default={url}"),
            *(flag.format(dir=certs) for flag in flags),
        ]
        try:
            assert server.spawn().wait(20) == 1
            line = json.loads(server.log_text().strip().splitlines()[-1])
            assert text in line["error"], line
        except subprocess.TimeoutExpired:
            pytest.fail(f"{kind.kind} started")
        finally:
            server.close()


def test_certificates_of_their_own():
    with Cluster(
        ["etcd", target_name(), target_name()], environment=COMPATIBLE, security=PeerSecurity(automatic=True)
    ) as cluster:
        cluster.call("Put", pb.PutRequest(key=b"key", value=b"value"), by=cluster.members[1])
        made = cluster.members[1].data_dir / "fixtures/peer/cert.pem"
        before = made.read_bytes()
        cluster.members[1].kill9()
        cluster.members[1].start()
        assert made.read_bytes() == before
        cluster.wait_equal()


def test_tls_for_some_and_for_all_after_an_update():
    """A member of https among some of http, which have certificates too; then another one gets an https URL."""
    kinds = [target_name(), "etcd", target_name()]
    security = PeerSecurity(only={1})
    with Cluster(kinds, environment=COMPATIBLE, security=security) as cluster:
        for member in cluster.members:
            cluster.call("Put", pb.PutRequest(key=b"key", value=b"value"), by=member)
        cluster.wait_equal()
        member = cluster.members[2]
        security.only = {1, 3}
        cluster.call("MemberUpdate", pb.MemberUpdateRequest(ID=member.id, peerURLs=[member.peer_url]))
        member.kill9()
        member.start()
        cluster.call("Put", pb.PutRequest(key=b"other", value=b"value"), by=member)
        cluster.wait_equal()
        assert all(one.peerURLs[0].startswith("https") == (one.name != "m2") for one in cluster.member_list())
        wait_until(lambda: "established a stream" in member.log_text(), "streams")
