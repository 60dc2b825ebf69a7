"""Concurrent writers against a server that is going to die under them."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import deque

from tests.harness import Client, Reply, Server
from tests.harness.rpc import Pending

from . import history
from .history import Operation

WRITERS = 4
IN_FLIGHT = 12  # per writer: what one crash may leave unanswered
HOT_KEYS = 4
# What etcd's raft says of a write in times without a leader; these have no code of etcd's own.
OF_RAFT = ("raft proposal dropped", "raft: stopped")
BIG_VALUE_BYTES = 120_000  # every now and then, so that log segments fill up


class Writer(threading.Thread):
    """One connection with a window of writes in flight; ends at the first call that fails."""

    def __init__(self, load: Load, number: int, rng: random.Random, keys: list[bytes]) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.load, self.number = load, number
        self.rng = rng
        self.prefix = b"%d/%d/" % (load.round, number)
        self.counter = itertools.count()
        self.deletable = keys  # this writer's alone, each known to exist
        self.answered: list[Operation] = []
        self.unanswered: list[Operation] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with Client(self.load.endpoint_of(self.number), self.load.call_seconds) as client:
                self._write(client)
        except BaseException as error:  # noqa: BLE001 - raised again by the round
            self.failure = error
        finally:
            self.load.ended(self)

    def _write(self, client: Client) -> None:
        window: deque[tuple[Operation, Pending]] = deque()
        going = True
        while going or window:
            if going and len(window) < IN_FLIGHT:
                time.sleep(self.load.pause_seconds)
                operation = self._next()
                window.append((operation, client.start(operation.method, operation.request)))
                going = not self.load.stopping
                continue
            operation, pending = window.popleft()
            reply = pending.reply()
            if reply.ok:
                self._answered(operation, reply)
                continue
            self.unanswered.append(operation)
            going = False
            # Unavailable and the like: the outcome is open. Anything else is an answer, and a wrong one.
            if reply.code not in (1, 4, 14) and reply.text not in OF_RAFT:
                raise AssertionError(f"{operation.method} refused with {reply.code}: {reply.text}")

    def _answered(self, operation: Operation, reply: Reply) -> None:
        operation.revision = reply.message.header.revision
        self.answered.append(operation)
        self.deletable.extend(
            key for key, value in operation.effects if value is not None and not key.startswith(b"hot/")
        )
        self.load.count_answer()

    def _next(self) -> Operation:
        roll = self.rng.random()
        number = next(self.counter)
        token = self.prefix + b"%d" % number
        if roll < 0.45:
            size = BIG_VALUE_BYTES if self.rng.random() < 0.02 else self.rng.randrange(200)
            return history.put(token, token + b"=" + bytes(size))
        if roll < 0.60:
            return history.put(b"hot/%d" % self.rng.randrange(HOT_KEYS), token)
        if roll < 0.75 and self.deletable:
            return history.delete(self._take())
        effects: list[history.Effect] = [(b"%s/%d" % (token, part), token) for part in range(self.rng.randint(2, 6))]
        if self.rng.random() < 0.5:
            effects.append((b"hot/%d" % self.rng.randrange(HOT_KEYS), token))
        if self.deletable:
            effects.append((self._take(), None))
        return history.txn(token, tuple(effects), by_failure=self.rng.random() < 0.3)

    def _take(self) -> bytes:
        return self.deletable.pop(self.rng.randrange(len(self.deletable)))


class Load:
    """Several writers at once, and a count of answers to time a kill by.

    pause_seconds: of each writer before each write, where something slower than the server has to follow.
    """

    call_seconds = 20.0

    def __init__(
        self,
        server: Server,
        rng: random.Random,
        round_number: int,
        live: list[bytes],
        pause_seconds: float = 0.0,
    ) -> None:
        self.server = server
        self.pause_seconds = pause_seconds
        self.round = round_number
        self.stopping = False
        self._changed = threading.Condition()
        self._answers = 0
        self._ended = 0
        self.writers = [
            Writer(self, number, random.Random(rng.getrandbits(64)), live[number::WRITERS]) for number in range(WRITERS)
        ]

    def endpoint_of(self, number: int) -> str:
        """Where a writer writes."""
        return self.server.endpoint

    def start(self) -> None:
        for writer in self.writers:
            writer.start()

    def count_answer(self) -> None:
        with self._changed:
            self._answers += 1
            self._changed.notify_all()

    def ended(self, _: Writer) -> None:
        with self._changed:
            self._ended += 1
            self._changed.notify_all()

    def wait_answers(self, number: int, deadline_seconds: float = 30.0) -> None:
        """Wait until so many writes were answered (or all writers ended)."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._answers >= number or self._ended == WRITERS, deadline_seconds):
                raise AssertionError(f"only {self._answers} of {number} writes answered in {deadline_seconds} s")

    def join(self, deadline_seconds: float = 40.0) -> tuple[list[Operation], list[Operation]]:
        """Wait for all writers: (answered, unanswered) operations. Raises what a writer raised."""
        self.stopping = True
        for writer in self.writers:
            writer.join(deadline_seconds)
            if writer.is_alive():
                raise AssertionError(f"{writer.name} still waits for an answer of a dead server")
        for writer in self.writers:
            if writer.failure is not None:
                raise writer.failure
        return (
            [operation for writer in self.writers for operation in writer.answered],
            [operation for writer in self.writers for operation in writer.unanswered],
        )
