"""CPU of a frontend process per watch event delivered, with nothing behind its rings but this script.

    python -m bench.micro.events [--conns 100] [--streams 1] [--each 10] [--events-bytes 120] [--seconds 5]

Pushes EVENTS records for conns x streams x each targets as fast as the frontend takes them; clients are plain
sockets that throw away what they read. Prints targets per second, and microseconds of user and system CPU
of the frontend process per target.
"""

import argparse
import multiprocessing
import select
import sys
import time

from bench.micro.frontend import cpu_seconds

WATCH = "/etcdserverpb.Watch/Watch"
HEAD = bytes.fromhex("0a1e08f7a4b2c1d0e0f0c0cb0110a1c2e3f4a5b6c7d8b5011890bd0520022802")
READ_BYTES = 1 << 20
UNREAD_BYTES_MAX = 16 << 20


def _drain(sockets, total):
    """Read all sockets until each is closed; runs in a process of its own."""
    poll = select.epoll()
    by_fd = {sock.fileno(): sock for sock in sockets}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    buffer = bytearray(READ_BYTES)
    count = 0
    while by_fd:
        for fd, _ in poll.poll():
            got = by_fd[fd].recv_into(buffer)
            if got == 0:
                poll.unregister(fd)
                del by_fd[fd]
            count += got
        total.value = count


def measure(conns, streams, each, events_bytes, seconds, paced=False):
    """Run once; returns a dict of figures."""
    from etcdfast._ext.ring import KINDS, Ring
    from tests.frontend.duplex import Duplex
    from tests.frontend.member import Frontend, events_record

    with Frontend(answer=lambda record, member: []) as frontend:
        clients = [Duplex(frontend.port) for _ in range(conns)]
        for client in clients:
            for _ in range(streams):
                client.say(client.open(WATCH), b"")
        while len(frontend.kinds("CALL")) < conns * streams:
            time.sleep(0.01)
        targets = [
            (call["slot"], call["generation"], call["stream"], 1 + number)
            for call in frontend.kinds("CALL")
            for number in range(each)
        ]
        payload = events_record(targets, HEAD, bytes(events_bytes))
        total = multiprocessing.Value("Q", 0, lock=False)
        reader = multiprocessing.get_context("fork").Process(
            target=_drain, args=([client.socket for client in clients], total), daemon=True
        )
        reader.start()
        kind = KINDS["EVENTS"]
        size = 5 + len(HEAD) + 2 + events_bytes  # of a message
        unread_bytes_max = 1 if paced else UNREAD_BYTES_MAX
        pushed = 0
        start = time.monotonic()
        before = cpu_seconds(frontend.process.pid)
        while time.monotonic() < start + seconds:
            # As apply does, by credit: what is under way is bounded.
            if pushed * len(targets) * size - total.value < unread_bytes_max and frontend.answers.push(kind, payload):
                pushed += 1
            else:
                time.sleep(0.0001)
        while (left := Ring(frontend.fds["af0"], frontend.own_bell)).room < left.capacity:
            time.sleep(0.001)
        while total.value < pushed * len(targets) * size:
            time.sleep(0.001)
        after = cpu_seconds(frontend.process.pid)
        elapsed = time.monotonic() - start
        reader.kill()
        reader.join()
        for client in clients:
            client.socket.close()
    made = pushed * len(targets)
    user, system = ((b - a) * 1e6 / made for a, b in zip(before, after))
    return {"targets_per_second": made / elapsed, "bytes": total.value, "user_us": user, "system_us": system}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--conns", type=int, default=100)
    parser.add_argument("--streams", type=int, default=1, help="per connection")
    parser.add_argument("--each", type=int, default=10, help="watchers per stream in a record")
    parser.add_argument("--events-bytes", type=int, default=120)
    parser.add_argument("--paced", action="store_true", help="push a record when the one before has been read by all")
    parser.add_argument("--seconds", type=float, default=5.0)
    chosen = parser.parse_args(arguments)
    figures = measure(chosen.conns, chosen.streams, chosen.each, chosen.events_bytes, chosen.seconds, chosen.paced)
    print(
        f"{figures['targets_per_second'] / 1e6:.2f} million targets/s, frontend CPU per target: "
        f"user {figures['user_us']:.3f} us, system {figures['system_us']:.3f} us"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
