"""Leases with the bounds their ends must keep, seen from outside.

A lease granted or renewed by a request that was sent at t may not end before t + TTL: the server cannot
have counted from an earlier moment. All times are CLOCK_MONOTONIC seconds, which servers on this machine
share and which no SIGSTOP holds up.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from tests.harness import Client, Server, Stream, pb, wait_until

from .checker import Broken

PREFIX, PREFIX_END = b"lease/", b"lease0"
POLL_SECONDS = 0.02
# Ends are proposed by a loop that wakes every half second, on a machine that is busy with other tests: a
# lease that is still there so long after its time was forgotten.
OVERDUE_SECONDS = 15.0


@dataclass(slots=True)
class Lease:
    """One lease with one key of its own, and since when it may be gone."""

    id: int
    ttl: int
    not_before: float
    renewals: int = 0
    ended: float = 0.0  # when an answer first showed it gone; 0: it lives
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def key(self) -> bytes:
        return PREFIX + b"%d" % self.id


class Guard:
    """Leases of one member under watch; an end before its time is Broken, at once and for good."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.leases: dict[int, Lease] = {}
        self.broken: list[str] = []
        self._stopping = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="lease-guard", daemon=True)
        self._poller.start()

    def close(self) -> None:
        self._stopping.set()
        self._poller.join(20)

    def grant(self, client: Client, id_: int, ttl: int) -> Lease:
        sent = time.monotonic()
        granted = client.call("LeaseGrant", pb.LeaseGrantRequest(ID=id_, TTL=ttl)).message
        lease = Lease(id_, granted.TTL, sent + granted.TTL)
        client.put(lease.key, b"", lease=id_)
        self.leases[id_] = lease
        return lease

    def renew(self, stream: Stream, leases: list[Lease]) -> list[Lease]:
        """One keep-alive for each, all sent before the first answer; those the server says are gone."""
        sent = time.monotonic()
        for lease in leases:
            stream.send(pb.LeaseKeepAliveRequest(ID=lease.id))
        gone = []
        for lease in leases:
            answer = stream.receive(60)
            if answer.TTL == 0:
                gone.append(lease)
                continue
            with lease.lock:
                lease.not_before = sent + lease.ttl
                lease.renewals += 1
                if lease.ended:
                    self._judge(lease)
        return gone

    def check(self) -> None:
        if self.broken:
            raise Broken("; ".join(self.broken))

    def all_end(self, leases: list[Lease], since: float) -> None:
        """Wait until all of these are gone, none of them overdue counted from its bound or from `since`."""
        last = max(since, *(lease.not_before for lease in leases)) + OVERDUE_SECONDS
        wait_until(
            lambda: self.broken or all(lease.ended for lease in leases),
            f"the end of leases {[lease.id for lease in leases if not lease.ended]}",
            last - time.monotonic(),
        )
        self.check()

    def _poll(self) -> None:
        with self.server.client(2) as client:
            while not self._stopping.wait(POLL_SECONDS):
                before = list(self.leases.values())  # only what was there before the question was asked
                reply = client.call("Range", pb.RangeRequest(key=PREFIX, range_end=PREFIX_END))
                answered = time.monotonic()
                if not reply.ok:
                    continue  # it stands still, or is being restarted
                there = {kv.key for kv in reply.message.kvs}
                for lease in before:
                    if lease.key not in there and not lease.ended:
                        self._ended(lease, answered)

    def _ended(self, lease: Lease, answered: float) -> None:
        with lease.lock:
            lease.ended = answered
            self._judge(lease)

    def _judge(self, lease: Lease) -> None:
        early = lease.not_before - lease.ended
        if early > 0:
            self.broken.append(
                f"lease {lease.id} of {lease.ttl} s ended {early:.3f} s before its time ({lease.renewals} renewals)"
            )


class Keeper(threading.Thread):
    """Renews leases every so often until told to stop, or until the server says that a lease is gone."""

    def __init__(self, guard: Guard, leases: list[Lease], every_seconds: float) -> None:
        super().__init__(name="lease-keeper", daemon=True)
        self.guard, self.leases, self.every_seconds = guard, leases, every_seconds
        self.lost: list[Lease] = []
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with self.guard.server.client(60) as client, client.keep_alive() as stream:
                while not self._stopping.is_set():
                    gone = self.guard.renew(stream, [lease for lease in self.leases if lease not in self.lost])
                    self.lost += gone
                    self._stopping.wait(self.every_seconds)
        except BaseException as error:  # noqa: BLE001 - raised again by `stop`
            self.failure = error

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)
        if self.failure is not None:
            raise self.failure


class Puts(threading.Thread):
    """As many puts as a connection with a full window carries, until told to stop."""

    WINDOW = 128

    def __init__(self, server: Server) -> None:
        super().__init__(name="puts", daemon=True)
        self.server = server
        self.count = 0
        self._stopping = threading.Event()
        self.start()

    def run(self) -> None:
        with self.server.client(30) as client:
            window = []
            while not self._stopping.is_set():
                request = pb.PutRequest(key=b"load/%d" % (self.count % 5000), value=b"v" * 100)
                window.append(client.start("Put", request))
                if len(window) == self.WINDOW:
                    for pending in window:
                        self.count += pending.reply().ok
                    window.clear()

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)
