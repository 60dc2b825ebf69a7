"""Clients of a few registers, each in a process of its own, that write down what they did and when.

    python -m tests.crash.registers ENDPOINTS NAME SEED THREADS KEYS     ends when its standard input does

ENDPOINTS are one member or several, with commas between: the threads go to each in turn.

One JSON line per finished call: [key, kind, argument, result, began, ended], times in CLOCK_MONOTONIC
nanoseconds, which is one clock for the whole machine. kind and argument: "read" null, "write" value,
"cas" [expected, value]. result: read: value or null; write: true; cas: [done, value found]; "?" for a call
whose outcome nobody knows, which goes on for ever as far as the history is concerned.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time

from tests.harness import Client, pb

# Cancelled, deadline exceeded, unavailable: whether it was done is open.
OPEN_CODES = (1, 4, 14)
CALL_SECONDS = 9.0
# Of several members: the others go on when one stands still.
CLUSTER_CALL_SECONDS = 3.0
# Said of a write in times without a leader.
OPEN_TEXTS = ("raft proposal dropped", "raft: stopped")


def compare_and_swap(key: bytes, expected: str | None, value: str) -> pb.TxnRequest:
    request = pb.TxnRequest()
    compare = request.compare.add(key=key, result=pb.Compare.EQUAL)
    if expected is None:
        compare.target, compare.version = pb.Compare.VERSION, 0
    else:
        compare.target, compare.value = pb.Compare.VALUE, expected.encode()
    request.success.add().request_put.CopyFrom(pb.PutRequest(key=key, value=value.encode()))
    request.failure.add().request_range.key = key
    return request


class Registers(threading.Thread):
    def __init__(
        self, endpoint: str, alone: bool, name: str, rng: random.Random, keys: int, stop: threading.Event
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.endpoint, self.alone, self.rng, self.keys, self.ended = endpoint, alone, rng, keys, stop
        self.seen: dict[bytes, str | None] = {}

    def run(self) -> None:
        count = 0
        with Client(self.endpoint, CALL_SECONDS if self.alone else CLUSTER_CALL_SECONDS) as client:
            while not self.ended.is_set():
                count += 1
                if not self._one(client, f"{self.name}.{count}"):
                    self.ended.wait(0.02)  # the member is away

    def _one(self, client: Client, token: str) -> bool:
        key = b"register/%d" % self.rng.randrange(self.keys)
        roll = self.rng.random()
        if roll < 0.35:
            kind, argument = "write", token
            method, request = "Put", pb.PutRequest(key=key, value=token.encode())
        elif roll < 0.6:
            expected = self.seen.get(key)
            kind, argument = "cas", [expected, token]
            method, request = "Txn", compare_and_swap(key, expected, token)
        else:
            # One member alone: what it has answered to anybody a serializable read must show as well.
            kind, argument = "read", None
            method, request = "Range", pb.RangeRequest(key=key, serializable=self.alone and roll < 0.8)
        began = time.monotonic_ns()
        reply = client.call(method, request)
        ended = time.monotonic_ns()
        if not reply.ok:
            if reply.code not in OPEN_CODES and reply.text not in OPEN_TEXTS:
                raise AssertionError(f"{method}: code {reply.code}: {reply.text}")
            result = "?"
        elif kind == "read":
            result = self.seen[key] = _only(reply.message.kvs)
        elif kind == "write":
            result = True
            self.seen[key] = token
        else:
            done = reply.message.succeeded
            self.seen[key] = token if done else _only(reply.message.responses[0].response_range.kvs)
            result = [done, self.seen[key]]
        # One write: print's end of line would be a second one, and other threads come between.
        sys.stdout.write(json.dumps([key.decode(), kind, argument, result, began, ended]) + "\n")
        sys.stdout.flush()
        return reply.ok


def _only(kvs) -> str | None:
    return kvs[0].value.decode() if kvs else None


def main(endpoints: str, name: str, seed: str, threads: str, keys: str) -> None:
    stop = threading.Event()
    rng = random.Random(int(seed))
    each = endpoints.split(",")
    running = [
        Registers(
            each[(int(name) + n) % len(each)], len(each) == 1, f"{name}.{n}", random.Random(rng.getrandbits(64)),
            int(keys), stop,
        )
        for n in range(int(threads))
    ]  # fmt: skip
    failed: list[object] = []
    threading.excepthook = lambda found: failed.append(found.exc_value)
    for thread in running:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in running:
        thread.join()
    if failed:
        raise SystemExit(f"a client failed: {failed[0]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
