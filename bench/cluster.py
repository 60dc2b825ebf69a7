"""Three members under test, started from nothing: a cluster of real etcd 3.5.1 or of etcdfast, and what it costs.

Shows the face of `members.Member`, so that the loads of one member run on it as they are: `endpoint` names
all members, CPU is the sum of all, memory that of the largest one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import _path  # noqa: F401
import grpc
from members import QUOTA_BYTES, READY_SECONDS, CpuMark, Member, MemberError, Memory

from etcdfast.api import rpcs
from etcdfast.api.grpc_stubs import Client

REPOSITORY = Path(__file__).resolve().parents[1]
SIZE = 3
LEADER_SECONDS = 60.0
POLL_SECONDS = 0.01


class ClusterMember(Member):
    """One of the members; it is told of the others before it starts."""

    def __init__(self, kind: str, directory: Path, name: str) -> None:
        super().__init__(kind, directory)
        self.name = name
        self.initial = ""

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self._peer_port}"

    def command(self) -> list[str]:
        url = f"http://{self.endpoint}"
        flags = [
            "--name", self.name,
            "--data-dir", str(self.directory / "data"),
            "--listen-client-urls", url,
            "--advertise-client-urls", url,
            "--listen-peer-urls", self.peer_url,
            "--initial-advertise-peer-urls", self.peer_url,
            "--initial-cluster", self.initial,
            "--initial-cluster-state", "new",
            "--quota-backend-bytes", str(QUOTA_BYTES),
            "--log-level", "error",
        ]  # fmt: skip
        if self.kind == "etcdfast":
            return [sys.executable, "-m", "etcdfast", *flags]
        return [str(Path(sys.executable).with_name("etcd")), *flags]

    def spawn(self) -> None:
        """Start it and return at once: alone it cannot answer."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=REPOSITORY, env=environment
            )

    def wait_ready(self) -> None:
        self._wait_ready(time.monotonic() + READY_SECONDS)

    def status(self):
        """Maintenance.Status, or None when it does not answer."""
        return self._ask("Maintenance", "Status", rpcs.message_class("etcdserverpb.StatusRequest")())

    def local_revision(self) -> int:
        """The newest revision this member itself has applied; 0 when it does not answer."""
        request = rpcs.message_class("etcdserverpb.RangeRequest")(key=b"\0", serializable=True)
        answer = self._ask("KV", "Range", request)
        return answer.header.revision if answer is not None else 0

    def _ask(self, service: str, method: str, request, seconds: float = 2.0):
        if not self.alive():
            return None
        with grpc.insecure_channel(self.endpoint, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                return getattr(getattr(Client(channel), service), method)(request, timeout=seconds)
            except grpc.RpcError:
                return None


class Cluster:
    """`kind`: "etcd" or "etcdfast"."""

    bench_flags: tuple[str, ...] = ()

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind, self.directory = kind, directory
        self.members = [ClusterMember(kind, directory / f"m{number}", f"m{number}") for number in range(1, SIZE + 1)]
        for member in self.members:
            member.initial = ",".join(f"{one.name}={one.peer_url}" for one in self.members)

    @property
    def endpoint(self) -> str:
        return ",".join(member.endpoint for member in self.members)

    def start(self) -> float:
        begin = time.monotonic()
        for member in self.members:
            member.spawn()
        for member in self.members:
            member.wait_ready()
        self.leader()
        return time.monotonic() - begin

    def leader(self) -> ClusterMember:
        """The member that leads, as soon as one says so of itself. Errors: MemberError."""
        deadline = time.monotonic() + LEADER_SECONDS
        while time.monotonic() < deadline:
            for member in self.members:
                status = member.status()
                if status is not None and status.leader and status.leader == status.header.member_id:
                    return member
            time.sleep(POLL_SECONDS)
        raise MemberError(f"no leader of {self.kind} within {LEADER_SECONDS:g} s")

    def followers(self) -> list[ClusterMember]:
        leader = self.leader()
        return [member for member in self.members if member is not leader and member.alive()]

    def _any(self) -> ClusterMember:
        return next(member for member in self.members if member.alive())

    def revision(self) -> int:
        return self._any().revision()

    def count(self, prefix: str) -> int:
        return self._any().count(prefix)

    def cpu_seconds(self) -> CpuMark:
        marks = [member.cpu_seconds() for member in self.members if member.alive()]
        return CpuMark({pid: used for mark in marks for pid, used in mark.processes.items()})

    def memory(self) -> Memory:
        """Of the member that has most."""
        return max((member.memory() for member in self.members if member.alive()), key=lambda memory: memory.pss)

    def settled_memory(self) -> Memory:
        return max((member.settled_memory() for member in self.members), key=lambda memory: memory.pss)

    def stop(self) -> None:
        """All at once: nobody waits for a quorum that goes away."""
        for member in self.members:
            if member.alive():
                member.kill9()

    def remove_data(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
