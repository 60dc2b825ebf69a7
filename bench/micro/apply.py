"""CPU of the apply process per put and per read, without any other process.

    python -m bench.micro.apply [--entries 300000] [--batch 60] [--keys 8 --values 256] [--auth]

The ring from consensus is filled outside the measured time; a turn is what is measured. `background` is
the CPU of RocksDB's own threads (flush, compaction), from the whole process' CPU. With --auth the puts are those of a
user of 100 with 16 ranges to write, and auth is on; the reads are nobody's and refused.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time

from etcdfast.api.pb import raft_internal_pb2, rpc_pb2
from tests.apply.rig import KINDS, RPC, Config, Rig


class Result:
    def __init__(self, operations, turn_seconds, cpu_seconds, thread_seconds):
        self.operations = operations
        self.turn_us = turn_seconds / operations * 1e6
        self.loop_us = thread_seconds / operations * 1e6
        self.background_us = (cpu_seconds - thread_seconds) / operations * 1e6


AUTH_REVISION = 9
READWRITE = 2


def turn_auth_on(rig):
    """A hundred users; returns the header of one's entries."""
    table = rig.loop.ops.auth
    ranges = [(READWRITE, b"\0", b"\x10")] + [(READWRITE, b"p%02d/" % i, b"p%02d0" % i) for i in range(15)]
    for i in range(100):
        table.set_user(b"user%d" % i, False, ranges)
    table.set_enabled(True, AUTH_REVISION)
    return {"username": "user42", "auth_revision": AUTH_REVISION}


def put_entry(key, value, head):
    request = raft_internal_pb2.InternalRaftRequest(
        header={"ID": 7 << 56, **head}, put=rpc_pb2.PutRequest(key=key, value=value)
    )
    return request.SerializeToString()


def measure(rig, push, operations, batch):
    """Push `batch` records, turn, until `operations` are done."""
    turn_seconds = cpu_seconds = thread_seconds = 0.0
    done = 0
    bell = rig.bells["frontend0"]
    while done < operations:
        for i in range(done, done + batch):
            push(i)
        cpu, thread, wall = time.process_time(), time.thread_time(), time.perf_counter()
        while rig.turn():
            pass
        turn_seconds += time.perf_counter() - wall
        thread_seconds += time.thread_time() - thread
        cpu_seconds += time.process_time() - cpu
        done += batch
        rig.drain()
        try:
            os.eventfd_read(bell)
        except BlockingIOError:
            pass
    return Result(done, turn_seconds, cpu_seconds, thread_seconds)


def puts(rig, entries, batch, key_bytes, value_bytes, sequential, head):
    order = list(range(entries))
    if not sequential:
        random.Random(1).shuffle(order)
    value = random.Random(2).randbytes(value_bytes)
    push, start = rig.ca.push, rig.index

    def one(i):
        data = put_entry(order[i % entries].to_bytes(key_bytes, "big"), value, head)
        push(KINDS["ENTRY"], data, frontend=0, slot=1, generation=1, stream=i, index=start + i + 1, term=2)

    result = measure(rig, one, entries, batch)
    rig.index = rig.loop.applied_index
    return result


def reads(rig, count, batch, key_bytes, keys):
    rng = random.Random(3)
    requests = [
        rpc_pb2.RangeRequest(key=rng.randrange(keys).to_bytes(key_bytes, "big")).SerializeToString()
        for _ in range(min(count, 100_000))
    ]
    push = rig.ca.push

    def one(i):
        push(
            KINDS["READ"], requests[i % len(requests)], method=RPC["Range"], frontend=0, slot=1, generation=1, stream=i
        )

    return measure(rig, one, count, batch)


def memory_mib():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) / 1024


def run(entries, batch, key_bytes, value_bytes, sequential, out, auth=False):
    folder = tempfile.mkdtemp(prefix="etcdfast-apply-")
    try:
        before = memory_mib()
        rig = Rig(folder, ring_bytes=1 << 24, config=Config())
        head = turn_auth_on(rig) if auth else {}
        for name, result in (
            ("put", puts(rig, entries, batch, key_bytes, value_bytes, sequential, head)),
            ("range of one key", reads(rig, entries // 2, batch, key_bytes, entries)),
        ):
            print(
                f"{name:18} {result.loop_us:6.2f} us loop, {result.background_us:6.2f} us background,"
                f" {result.turn_us:6.2f} us wall",
                file=out,
            )
        print(f"memory {memory_mib() - before:.0f} MiB more, index {rig.word('index_bytes') >> 20} MiB", file=out)
        for line in (rig.process.store.db.property_value("rocksdb.cfstats") or "").splitlines()[:14]:
            print("   ", line, file=out)
        rig.close()
        started = time.perf_counter()
        rig = Rig(folder, config=Config())
        print(f"start with {entries} keys: {time.perf_counter() - started:.3f} s", file=out)
        rig.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments=None, out=sys.stdout):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=300_000)
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--keys", type=int, default=8, help="bytes per key")
    parser.add_argument("--values", type=int, default=256, help="bytes per value")
    parser.add_argument("--sequential", action="store_true")
    parser.add_argument("--auth", action="store_true")
    given = parser.parse_args(arguments)
    run(given.entries, given.batch, given.keys, given.values, given.sequential, out, given.auth)


if __name__ == "__main__":
    main()
