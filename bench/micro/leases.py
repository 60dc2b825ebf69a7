"""What leases cost the apply process, without loop and rings: time per grant, renewal and expiry, memory, restart.

    python -m bench.micro.leases [--leases 1000000] [--keyed 100000]

`--keyed` of the leases have one key each. Times are CPU of the calling thread and hold what Python's face of the
operations costs on top (about 0.3 us each); RocksDB's own threads are not in them.
"""

import argparse
import gc
import shutil
import sys
import tempfile
import time

from etcdfast.api.pb import rpc_pb2
from tests.apply.leaserig import SECOND, LeaseRig

TURN = 256  # entries that share a batch
GRANT, REVOKE, PUT = 8, 9, 4


def resident_bytes():
    with open("/proc/self/smaps_rollup") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("Pss:")) * 1024


class Clock:
    def __init__(self, out):
        self.out = out

    def each(self, name, count, work):
        cpu, wall = time.thread_time(), time.perf_counter()
        work()
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        print(f"{name:32} {cpu / count * 1e6:9.3f} us each, {wall:8.3f} s for {count}", file=self.out)


def run(leases, keyed, folder, out):
    clock = Clock(out)
    rig = LeaseRig(folder)
    rig.ops.lead(rig.now)
    ops = rig.ops
    ops.now_ns = rig.now
    grants = [rpc_pb2.LeaseGrantRequest(ID=i + 1, TTL=60).SerializeToString() for i in range(leases)]
    puts = [rpc_pb2.PutRequest(key=b"key%08d" % i, value=b"v", lease=i + 1).SerializeToString() for i in range(keyed)]
    ids = [rpc_pb2.LeaseKeepAliveRequest(ID=i + 1).SerializeToString() for i in range(leases)]

    def entries(kind, messages):
        entry = ops.entry
        for i, message in enumerate(messages):
            status, _ = entry(kind, message)
            assert status == 0
            if i % TURN == TURN - 1:
                rig.write()
        rig.write()

    def renewals(at):
        call = ops.call
        for message in ids:
            call("keep_alive", message, at)

    def expiry():
        count = 0
        while found := ops.take_due(rig.now, TURN):
            entries(REVOKE, [ids[i - 1] for i in found])
            count += len(found)
        assert count == leases

    gc.collect()
    before = resident_bytes()
    clock.each("grant", leases, lambda: entries(GRANT, grants))
    rig.store.db.flush(True)
    print(f"{'memory of the table':32} {rig.table.held_bytes / leases:9.1f} B per lease", file=out)
    print(f"{'memory of the process, flushed':32} {(resident_bytes() - before) / leases:9.1f} B per lease", file=out)
    clock.each("put with a lease", keyed, lambda: entries(PUT, puts))
    clock.each("keep-alive", leases, lambda: renewals(rig.now + 30 * SECOND))
    clock.each("list of all", 1, lambda: ops.call("leases", b"", rig.now))
    clock.each("scan for a hash", leases, lambda: [None for _ in rig.table.items()])
    rig.close()
    clock.each("restart", leases, rig.open)
    clock.each("promote", 1, lambda: rig.ops.lead(rig.now))
    clock.each("demote", 1, rig.ops.follow)
    ops = rig.ops
    ops.lead(rig.now)
    renewals(rig.now)
    rig.advance(100)
    clock.each("expiry", leases, expiry)
    assert rig.table.count == 0
    print(f"{'memory of the process at the end':32} {(resident_bytes() - before) / leases:9.1f} B per lease", file=out)
    rig.close()


def main(arguments=None, out=sys.stdout):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leases", type=int, default=1_000_000)
    parser.add_argument("--keyed", type=int, default=100_000)
    given = parser.parse_args(arguments)
    folder = tempfile.mkdtemp(prefix="etcdfast-leases-")
    try:
        run(given.leases, min(given.keyed, given.leases), folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
