"""A process that stands still longer than any deadline: timeouts are told as such, nothing is lost or done twice."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

from tests.harness import pb, target_name, target_server

from . import history
from .checker import Broken, Checker
from .test_linearizable import SEED_VARIABLE
from .victims import by_role
from .workload import Load

PAUSE_SECONDS = 8.0  # etcd gives a request 5 s and twice the election timeout
TIMED_OUT = "etcdserver: request timed out"


class Paused(threading.Thread):
    """One member of which one process is stopped under load and goes on later; `failure` is what was wrong."""

    def __init__(self, role: str, rng: random.Random) -> None:
        super().__init__(name=role, daemon=True)
        self.role, self.rng = role, rng
        self.failure: BaseException | None = None
        self.told = ""

    def run(self) -> None:
        try:
            with target_server() as server:
                self._check(server)
        except BaseException as error:  # noqa: BLE001 - raised again by the test
            self.failure = error

    def _check(self, server) -> None:
        (pid,) = by_role(server)[self.role]
        checker = Checker()
        with server.client(60) as client:
            client.get(b"late")  # connected before anything stands still
            for number in range(2):  # the second round shows that all goes on as before
                load = Load(server, self.rng, number, [])
                load.start()
                load.wait_answers(self.rng.randint(50, 400))
                if number == 0:
                    os.kill(pid, signal.SIGSTOP)
                    late = client.start("Put", pb.PutRequest(key=b"late", value=b"1"))
                    read = client.start("Range", pb.RangeRequest(key=b"late"))
                    time.sleep(PAUSE_SECONDS)  # the wait is what is tested: all deadlines pass
                    os.kill(pid, signal.SIGCONT)
                    late, read = late.reply(), read.reply()
                    self.told = f"{late.code} {late.text} / {read.code} {read.text}"
                    for reply in (late, read):
                        if not reply.ok and (reply.code, reply.text) != (14, TIMED_OUT):
                            raise Broken(f"{reply.method} answered {reply.code}: {reply.text}")
                answered, unanswered = load.join()
                if number == 0:
                    operation = history.put(b"late", b"1")
                    operation.revision = late.message.header.revision if late.ok else None
                    (answered if late.ok else unanswered).append(operation)
                elif unanswered:
                    raise Broken(f"{len(unanswered)} calls without an answer after the pause")
                # Behind every write that was under way: what nobody was told of may still come after a read.
                fence = history.put(b"fence/%d" % number, b"")
                fence.revision = client.put(b"fence/%d" % number, b"").header.revision
                answered.append(fence)
                checker.after_restart(client, answered, unanswered)
                checker.check_contents(client)
        if not server.alive:
            raise Broken("the member ended")


@pytest.mark.skipif(target_name() == "etcd", reason="etcd is one process")
def test_a_process_that_stood_still() -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    print(f"seed {seed} ({SEED_VARIABLE}={seed})")
    rng = random.Random(seed)
    members = [Paused(role, random.Random(rng.getrandbits(64))) for role in ("frontend", "consensus", "apply")]
    for member in members:
        member.start()
    for member in members:
        member.join(90)
        assert not member.is_alive(), f"{member.role}: no end"
        print(f"{member.role} stood still: a put and a read then got {member.told}")
    for member in members:
        if member.failure is not None:
            raise AssertionError(f"{member.role} stood still: {member.failure}") from member.failure
    # Behind a process that stands still the frontend itself tells of the timeout.
    assert all("14" in member.told for member in members if member.role != "frontend")
