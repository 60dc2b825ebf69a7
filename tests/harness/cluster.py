"""Clusters under test: members of real etcd 3.5.1 and of etcdfast, alone or mixed, and what may befall them.

    with Cluster("etcdfast", 3) as cluster:            or ["etcd", "etcdfast", "etcd"]
        cluster.leader().kill9()
        cluster.wait_leader()
        cluster.wait_equal()

A cluster that is left by an exception keeps its directory and shows the end of every member's log.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from . import pb
from .network import Loopback, Network, Proxies
from .rpc import Client, Reply
from .security import PeerSecurity
from .servers import ETCD, Server, ServerError, target_name
from .wait import WaitTimeout, wait_until

TLS_VARIABLE = "ETCDFAST_CLUSTER_TLS"  # 1: every cluster's members meet over TLS, with certificates of both
CALL_SECONDS = 2.0
CHANGE_SECONDS = 40.0
LOG_TAIL_BYTES = 3000  # of each member, when a test fails; the whole logs are kept
# Between two of our ticks a machine with two cores may run something else for long.
TIMING = ("--heartbeat-interval", "50", "--election-timeout", "500")
# A change of members is refused until all peers have been connected for 5 s; tests that are not about
# that rule do not wait for it.
RELAXED = ("--strict-reconfig-check=false",)
# What a member says that cannot do it now but may soon.
PASSING = (
    "etcdserver: unhealthy cluster",
    "etcdserver: can only promote a learner member which is in sync with leader",
    "etcdserver: leader changed",
    "etcdserver: request timed out",
    "etcdserver: no leader",
    "etcdserver: not leader",
)


class Failures:
    """How many tests have failed so far: a cluster that several tests share is kept when one of them did."""

    count = 0


class ClusterMember(Server):
    """One member; `kind` is "etcd" or "etcdfast". Made by `Cluster` only."""

    def __init__(self, cluster: Cluster, number: int, kind: str, joins: str, flags: Sequence[str] = ()) -> None:
        self.kind = kind
        self.number = number
        self.cluster = cluster
        self.host = cluster.network.host(number)
        self.joins = joins  # the value of --initial-cluster, "" for the members that begin it
        self.learner = False
        self._id = 0
        super().__init__(cluster.directory / f"m{number}", f"m{number}", flags, cluster.environment)

    @property
    def peer_url(self) -> str:
        return f"{self.peer_scheme}://{self.cluster.network.advertised(self.number, self.peer_port)}"

    @property
    def peer_scheme(self) -> str:
        return self.cluster.security.scheme_of(self) if self.cluster.security else "http"

    def command(self) -> list[str]:
        program = [ETCD] if self.kind == "etcd" else [sys.executable, "-m", "etcdfast"]
        return [
            *self.cluster.network.prefix(self.number),
            *program,
            "--name", self.name,
            "--data-dir", str(self.data_dir),
            "--listen-client-urls", self.url,
            "--advertise-client-urls", self.url,
            "--listen-peer-urls", f"{self.peer_scheme}://{self.host}:{self.peer_port}",
            "--initial-advertise-peer-urls", self.peer_url,
            "--initial-cluster", self.joins or self.cluster.initial,
            "--initial-cluster-state", "existing" if self.joins else "new",
            "--initial-cluster-token", self.cluster.token,
            *(self.cluster.security.flags_of(self) if self.cluster.security else []),
            *self.cluster.flags,
            *self.flags,
        ]  # fmt: skip

    def wait_ready(self, deadline_seconds: float = 30.0) -> None:
        """Wait for a linearizable read; of a learner, which serves none, for one of its own.

        Errors: ServerError with the log if it exits or stays deaf.
        """
        request = pb.RangeRequest(key=b"\x00", serializable=self.learner)
        last: list[Reply] = []

        def ready() -> bool:
            if not self.alive:
                assert self.process is not None
                raise ServerError(f"{self} ended with status {self.process.poll()} at start\n{self.log_tail()}")
            # A gRPC channel that meets a closed port waits a second before it tries again.
            if not self._listens():
                return False
            with self.client() as client:
                last[:] = [client.call("Range", request, timeout_seconds=1.0)]
            return last[0].ok

        try:
            wait_until(ready, f"a read from {self}", deadline_seconds)
        except WaitTimeout as error:
            said = f"code {last[0].code}: {last[0].text}" if last else "it does not listen"
            raise ServerError(f"{error} ({said})\n{self.log_tail()}") from None
        self.processes()

    def _listens(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), 1.0).close()
        except OSError:
            return False
        return True

    def status(self) -> Any | None:
        """Maintenance.Status, or None when it does not answer."""
        if not self.alive:
            return None
        with self.client(CALL_SECONDS) as client:
            reply = client.call("Status", pb.StatusRequest())
        if not reply.ok:
            return None
        self._id = reply.message.header.member_id
        return reply.message

    @property
    def id(self) -> int:
        """The member's id, asked for once."""
        if not self._id:
            wait_until(self.status, f"the id of {self}")
        return self._id

    def __repr__(self) -> str:
        return f"{self.name} ({self.kind}, {self.endpoint})"


class Cluster:
    """`kinds`: one kind for all, or one for each member; the kind under test when not given.

    `flags` and `environment` go to every member. The network belongs to the cluster and is closed with it. With
    `security` the members meet each other over TLS.
    """

    def __init__(
        self,
        kinds: str | Sequence[str] | None = None,
        size: int = 3,
        *,
        flags: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        network: Network | None = None,
        timing: Sequence[str] = TIMING,
        security: PeerSecurity | None = None,
    ) -> None:
        kinds = kinds or target_name()
        each = [kinds] * size if isinstance(kinds, str) else list(kinds)
        self.directory = Path(tempfile.mkdtemp(prefix="cluster-test-"))
        self.network: Network = network or Loopback()
        self.token = f"test-{self.directory.name}"
        self.flags = [*timing, *flags]
        self.environment = dict(environment or {})
        if security is None and os.environ.get(TLS_VARIABLE):
            security = PeerSecurity(crl=True)
        self.security = security
        if security is not None:
            security.begin(self.directory / "certs")
        self._failures_before = Failures.count
        self.members: list[ClusterMember] = []
        self.removed: list[ClusterMember] = []
        self._numbers = 0
        for kind in each:
            self.members.append(self._new(kind, ""))
        self.initial = self._initial(self.members)

    def _new(self, kind: str, joins: str, flags: Sequence[str] = ()) -> ClusterMember:
        self._numbers += 1
        self.network.join(self._numbers)
        return ClusterMember(self, self._numbers, kind, joins, flags)

    @staticmethod
    def _initial(members: Iterable[ClusterMember]) -> str:
        return ",".join(f"{member.name}={member.peer_url}" for member in members)

    # -- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.close(keep=True)
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(keep=kind is not None)

    def start(self, deadline_seconds: float = 40.0) -> Cluster:
        """Start every member that does not run, and wait until each serves and one leads."""
        for member in self.members:
            if not member.alive:
                member.spawn()
        for member in self.members:
            member.wait_ready(deadline_seconds)
        self._name_all()
        self.wait_leader()
        return self

    def stop(self) -> None:
        """SIGTERM to each, the leader last: it has nobody left to hand over to, which etcd waits for otherwise."""
        leader = self.leader()
        for member in [*(member for member in self.live if member is not leader), leader]:
            member.stop()

    def close(self, keep: bool = False) -> None:
        for member in [*self.members, *self.removed]:
            member.kill9()
        self.network.close()
        if keep or Failures.count > self._failures_before:
            print(f"\nthe cluster's directory is kept: {self.directory}")
            for member in [*self.members, *self.removed]:
                if member.log_path.exists():
                    print(member.log_tail(LOG_TAIL_BYTES))
        else:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _name_all(self) -> None:
        if isinstance(self.network, Proxies):
            for member in self.members:
                self.network.name_member(member.number, member.id)

    # -- what it shows ------------------------------------------------------------------------

    @property
    def endpoints(self) -> str:
        return ",".join(member.endpoint for member in self.members)

    @property
    def live(self) -> list[ClusterMember]:
        return [member for member in self.members if member.alive]

    @property
    def voters(self) -> list[ClusterMember]:
        return [member for member in self.live if not member.learner]

    def leader(self) -> ClusterMember:
        """The member that leads, once one does and a majority says so."""
        return self.wait_leader()

    def wait_leader(self, other_than: ClusterMember | None = None, deadline_seconds: float = 20.0) -> ClusterMember:
        """Wait until more than half of all members name the same leader of the same term."""

        def agreed() -> ClusterMember | None:
            votes: dict[tuple[int, int], int] = {}
            for member in self.live:
                status = member.status()
                if status is not None and status.leader:
                    votes[status.raftTerm, status.leader] = votes.get((status.raftTerm, status.leader), 0) + 1
            for (_, leader), count in votes.items():
                if count * 2 > len(self.members):
                    found = next((member for member in self.live if member.id == leader), None)
                    if found is not None and found is not other_than:
                        return found
            return None

        return wait_until(agreed, "a leader that more than half of the members name", deadline_seconds)

    def followers(self) -> list[ClusterMember]:
        leader = self.leader()
        return [member for member in self.voters if member is not leader]

    def client(self, member: ClusterMember | None = None, timeout_seconds: float = 20.0) -> Client:
        return (member or self.voters[0]).client(timeout_seconds)

    def call(
        self,
        method: str,
        request: Any,
        *,
        by: ClusterMember | None = None,
        done: Callable[[], bool] | None = None,
    ) -> Any:
        """One call by any voter, repeated while the cluster cannot.

        `done` is for calls that cannot be made twice: asked after a refusal, whether an earlier one has worked.
        """
        replies: list[Reply] = []

        def once() -> Any | None:
            for member in [by] if by else self.voters:
                with member.client(CHANGE_SECONDS / 4) as client:
                    reply = client.call(method, request)
                if reply.ok:
                    return reply.message
                replies.append(reply)
                if len(replies) > 1 and done is not None and done():
                    return True
                if reply.code not in (1, 4, 14) and not reply.text.startswith(PASSING):
                    raise AssertionError(f"{method}: code {reply.code}: {reply.text}")
            return None

        try:
            return wait_until(once, method, CHANGE_SECONDS)
        except WaitTimeout as error:
            raise WaitTimeout(f"{error}; last: {replies[-1] if replies else 'nobody to ask'}") from None

    def member_list(self, by: ClusterMember | None = None) -> list[Any]:
        return list(self.call("MemberList", pb.MemberListRequest(linearizable=True), by=by).members)

    # -- changes ------------------------------------------------------------------------------

    def new_member(self, kind: str, *, learner: bool = False, flags: Sequence[str] = ()) -> ClusterMember:
        """A member that knows the others, but neither started nor known to them."""
        new = self._new(kind, "-", flags)
        new.learner = learner
        new.joins = self._initial([*self.members, new])
        return new

    def add(
        self, kind: str, *, learner: bool = False, flags: Sequence[str] = (), by: ClusterMember | None = None
    ) -> ClusterMember:
        """Add a member to the cluster, start it, and wait until it serves."""
        new = self.new_member(kind, learner=learner, flags=flags)
        # An answer may be lost, and a second call then finds the address taken: the list tells.
        request = pb.MemberAddRequest(peerURLs=[new.peer_url], isLearner=learner)
        self.call("MemberAdd", request, by=by, done=lambda: self._is_listed(new))
        self.members.append(new)
        new.start(CHANGE_SECONDS)
        self._name_all()
        return new

    def _is_listed(self, member: ClusterMember) -> bool:
        return any(member.peer_url in one.peerURLs for one in self.member_list())

    def promote(self, member: ClusterMember, *, by: ClusterMember | None = None) -> None:
        """Make a voter of a learner, as soon as it is in sync."""
        self.call("MemberPromote", pb.MemberPromoteRequest(ID=member.id), by=by)
        member.learner = False
        member.wait_ready()

    def remove(self, member: ClusterMember, *, by: ClusterMember | None = None) -> None:
        """Take a member out of the cluster and wait for its end, which it finds out itself."""
        id_, others = member.id, [other for other in self.voters if other is not member]
        self.call("MemberRemove", pb.MemberRemoveRequest(ID=id_), by=by or others[0])
        self.members.remove(member)
        self.removed.append(member)
        if member.alive:
            member.wait_exit(30)

    def move_leader(self, to: ClusterMember, deadline_seconds: float = 20.0) -> None:
        """MoveLeader, asked of the leader as etcd wants it, until `to` leads."""
        end = time.monotonic() + deadline_seconds
        while (leader := self.wait_leader()) is not to:
            if time.monotonic() > end:
                raise WaitTimeout(f"{to} did not become leader")
            with leader.client(CALL_SECONDS * 5) as client:
                client.call("MoveLeader", pb.MoveLeaderRequest(targetID=to.id))

    # -- agreement ----------------------------------------------------------------------------

    def revision(self) -> int:
        """The newest revision, by a linearizable read."""
        return self.call("Range", pb.RangeRequest(key=b"\x00")).header.revision

    def wait_equal(self, deadline_seconds: float = 30.0, *, revision: int = 0) -> int:
        """Wait until HashKV is the same on every voter; returns the revision it is of.

        Of the newest revision when none is given: then nobody may write meanwhile.
        Errors: WaitTimeout with what each of them says.
        """
        newest = self.revision()
        seen: dict[str, object] = {}

        def equal() -> bool:
            for member in self.voters:
                with member.client(CALL_SECONDS * 5) as client:
                    reply = client.call("HashKV", pb.HashKVRequest(revision=revision))
                if not reply.ok:
                    seen[repr(member)] = reply.text  # it is behind
                    continue
                told = reply.message
                seen[repr(member)] = told.hash, told.compact_revision, revision or told.header.revision
            return len(set(seen.values())) == 1 and _newest(seen) >= (revision or newest)

        try:
            wait_until(equal, f"the same HashKV of revision {revision or newest} everywhere", deadline_seconds)
        except WaitTimeout as error:
            raise WaitTimeout(f"{error}: {seen}") from None
        return revision or newest

    def wait_all_healthy(self, deadline_seconds: float = 30.0) -> None:
        """Wait until every member answers a linearizable read (a learner: one of its own)."""
        for member in self.members:
            member.wait_ready(deadline_seconds)
        self.wait_leader()


def _newest(seen: dict[str, object]) -> int:
    return max((one[2] for one in seen.values() if isinstance(one, tuple)), default=-1)
