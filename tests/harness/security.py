"""TLS between the members of a cluster under test: an authority, a certificate for each, and the flags for them.

with Cluster("etcdfast", 3, security=PeerSecurity()) as cluster:
    cluster.security.issue(cluster.members[0], hosts=["10.1.2.3"])   from the next connection on
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from .certs import Authority, Cert

if TYPE_CHECKING:
    from .cluster import ClusterMember


class PeerSecurity:
    """`client_auth`: members must show a certificate; `crl`: with a list of revoked ones, empty at first.

    `common_name` is that of every member's certificate, else its own name; `flags` go to every member. `only`: the
    numbers of the members that listen with TLS; the others only dial with it. `automatic`: certificates that
    members make themselves. The cluster says where the files are.
    """

    def __init__(
        self,
        *,
        client_auth: bool = True,
        crl: bool = False,
        common_name: str | None = None,
        flags: Sequence[str] = (),
        only: Collection[int] | None = None,
        automatic: bool = False,
    ) -> None:
        self.only = only
        self.automatic = automatic
        self.client_auth = client_auth
        self.with_crl = crl
        self.common_name = common_name
        self.flags = list(flags)
        self.directory = Path()
        self.authority: Authority | None = None
        self.certs: dict[int, Cert] = {}  # by number of the member

    def begin(self, directory: Path) -> None:
        """Called by the cluster."""
        self.directory = directory
        self.authority = Authority(directory, "peer-ca")
        if self.with_crl:
            self.revoke([])

    @property
    def crl_path(self) -> Path:
        return self.directory / "peer-ca.crl"

    def revoke(self, certs: Sequence[Cert]) -> None:
        assert self.authority is not None
        self.authority.crl(certs)

    def issue(self, member: ClusterMember, authority: Authority | None = None, **what: Any) -> Cert:
        """A certificate for the member's address, in place of the one it has; `what` goes to Authority.issue.

        Another `authority` must have the directory of this one.
        """
        assert self.authority is not None
        what = {"hosts": [member.host], "common_name": self.common_name, **what}
        made = self.certs[member.number] = (authority or self.authority).issue(member.name, **what)
        assert made.cert_path.parent == self.directory
        return made

    def scheme_of(self, member: ClusterMember) -> str:
        return "https" if self.only is None or member.number in self.only else "http"

    def flags_of(self, member: ClusterMember) -> list[str]:
        assert self.authority is not None
        if self.automatic:
            return ["--peer-auto-tls", *self.flags]
        if member.number not in self.certs:
            self.issue(member)
        cert = self.certs[member.number]
        return [
            "--peer-cert-file", str(cert.cert_path),
            "--peer-key-file", str(cert.key_path),
            "--peer-trusted-ca-file", str(self.authority.ca_path),
            *(["--peer-client-cert-auth"] if self.client_auth else []),
            *(["--peer-crl-file", str(self.crl_path)] if self.with_crl else []),
            *self.flags,
        ]  # fmt: skip


class ClientSecurity:
    """TLS between clients and one server: `server` certificate, `client` certificate, and the flags for both sides."""

    def __init__(self, directory: Path, *, client_auth: bool = True) -> None:
        self.client_auth = client_auth
        self.authority = Authority(directory, "client-ca")
        self.server = self.authority.issue("server", hosts=["127.0.0.1", "localhost"], client=False)
        self.client = self.authority.issue("client", server=False)

    def server_flags(self, port: int) -> list[str]:
        """To follow flags that say http."""
        url = f"https://127.0.0.1:{port}"
        return [
            "--listen-client-urls", url,
            "--advertise-client-urls", url,
            "--cert-file", str(self.server.cert_path),
            "--key-file", str(self.server.key_path),
            *(["--client-cert-auth", "--trusted-ca-file", str(self.authority.ca_path)] if self.client_auth else []),
        ]  # fmt: skip

    def client_flags(self) -> list[str]:
        """As etcdctl and our tools have them."""
        return [
            "--cacert", str(self.authority.ca_path),
            "--cert", str(self.client.cert_path),
            "--key", str(self.client.key_path),
        ]  # fmt: skip

    def channel(self, endpoint: str) -> grpc.Channel:
        ca, key, cert = (
            path.read_bytes() for path in (self.authority.ca_path, self.client.key_path, self.client.cert_path)
        )
        return grpc.secure_channel(endpoint, grpc.ssl_channel_credentials(ca, key, cert))
