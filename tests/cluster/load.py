"""Writers that go on whatever happens to the members, and the check that nothing acknowledged is lost."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field

from tests.crash.checker import Broken
from tests.harness import Client, pb
from tests.harness.cluster import Cluster, ClusterMember
from tests.harness.wait import WaitTimeout

CALL_SECONDS = 3.0
KEYS_EACH = 25
# Cancelled, deadline exceeded, too many requests, failed precondition, unavailable: said of the state of the
# cluster, not of the put.
TRY_AGAIN = (1, 4, 8, 9, 14)
# What etcd's raft says while its leader hands over, and in its last moments; these have no code of etcd's own.
OF_RAFT = ("raft proposal dropped", "raft: stopped")


@dataclass(slots=True)
class Written:
    """One key of one writer: the values an honest store may show."""

    acknowledged: int = 0  # number of the last write that was answered; 0: none
    revision: int = 0  # of that answer
    open: set[int] = field(default_factory=set)  # later or earlier ones without an answer


class Writer(threading.Thread):
    """Puts numbers to its own keys, one at a time, through members in turn; a failed put is made by another member."""

    def __init__(self, load: Load, number: int) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.load, self.prefix = load, b"load/%d/" % number
        self.rng = random.Random(number)
        self.keys: dict[bytes, Written] = {}
        self.failure: BaseException | None = None
        self._turn = number

    def run(self) -> None:
        number = 0
        try:
            while not self.load.stopping.is_set():
                members = self.load.cluster.voters
                self._turn += 1
                if not members:
                    time.sleep(0.02)
                    continue
                with members[self._turn % len(members)].client(CALL_SECONDS) as client:
                    for _ in range(self.load.puts_each_turn):
                        number += 1
                        if self.load.stopping.is_set() or not self._put(client, number):
                            break
        except BaseException as error:  # noqa: BLE001 - raised again by `stop`
            self.failure = error

    def _put(self, client: Client, number: int) -> bool:
        key = self.prefix + b"%d" % self.rng.randrange(KEYS_EACH)
        written = self.keys.setdefault(key, Written())
        reply = client.call("Put", pb.PutRequest(key=key, value=b"%d" % number))
        if reply.ok:
            written.acknowledged, written.revision = number, reply.message.header.revision
            self.load.count(1)
            return True
        written.open.add(number)
        if reply.code not in TRY_AGAIN and reply.text not in OF_RAFT:
            raise AssertionError(f"a put was refused with {reply.code}: {reply.text}")
        self.load.failed += 1
        return False


class Load:
    """Several writers on a cluster whose members come and go.

    with Load(cluster) as load:
        ...
        load.wait_more(100)
    load.check()
    """

    def __init__(self, cluster: Cluster, writers: int = 4, puts_each_turn: int = 40) -> None:
        self.cluster, self.puts_each_turn = cluster, puts_each_turn
        self.stopping = threading.Event()
        self.acknowledged = 0
        self.failed = 0
        self._changed = threading.Condition()
        self.writers = [Writer(self, number) for number in range(writers)]

    def __enter__(self) -> Load:
        for writer in self.writers:
            writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def count(self, number: int) -> None:
        with self._changed:
            self.acknowledged += number
            self._changed.notify_all()

    def wait_more(self, number: int, deadline_seconds: float = 30.0) -> None:
        """Until so many more puts have been acknowledged."""
        with self._changed:
            target = self.acknowledged + number
            if not self._changed.wait_for(lambda: self.acknowledged >= target or self._failure(), deadline_seconds):
                raise WaitTimeout(
                    f"{number - target + self.acknowledged} of {number} puts acknowledged in {deadline_seconds} s"
                )
        if failure := self._failure():
            raise failure

    def _failure(self) -> BaseException | None:
        return next((writer.failure for writer in self.writers if writer.failure), None)

    def stop(self) -> None:
        self.stopping.set()
        for writer in self.writers:
            if writer.is_alive():
                writer.join(30)
        if failure := self._failure():
            raise failure

    def check(self, member: ClusterMember | None = None) -> None:
        """Every key holds its last acknowledged value, or one whose outcome nobody was told. Errors: Broken."""
        with self.cluster.client(member) as client:
            found = {kv.key: kv for kv in client.get(b"load/", b"load0").kvs}
        for writer in self.writers:
            for key, written in writer.keys.items():
                kv = found.get(key)
                if kv is None:
                    if written.acknowledged:
                        raise Broken(f"{key!r}: put {written.acknowledged} was acknowledged, and the key is not there")
                    continue
                number = int(kv.value)
                if number == written.acknowledged and kv.mod_revision == written.revision:
                    continue
                # A put without an answer may have been done, at any time after it was sent, even behind later ones.
                if number not in written.open or kv.mod_revision < written.revision:
                    raise Broken(
                        f"{key!r}: put {written.acknowledged} was acknowledged at revision {written.revision}, "
                        f"found is put {number} of revision {kv.mod_revision}"
                    )
