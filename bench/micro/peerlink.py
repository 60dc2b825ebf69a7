"""What entries cost between two members: put into frames, written, read, taken apart, over a TCP connection.

    python bench/micro/peerlink.py [--entries 60] [--value-bytes 256] [--total 2000000] [--rounds 5]

One thread does both ends, so half of what is shown falls to each member; the kernel's part is in it.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from etcdfast._ext.peerbench import benchmark  # noqa: E402
from etcdfast._ext.peerlink import STREAMS, PeerLink  # noqa: E402


def run(entries, value_bytes, total):
    """Nanoseconds per entry of one run, both ends."""
    messages = max(1, total // entries)
    sender, receiver = PeerLink(2, 1), PeerLink(1, 2)
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            far, _ = server.accept()
        sender.attach_out(STREAMS["msgapp"], near.detach())
        receiver.attach_in(STREAMS["msgapp"], far.detach())
        return benchmark(sender, receiver, messages, entries, value_bytes) / (messages * entries)
    finally:
        sender.close()
        receiver.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=60, help="of one message")
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--total", type=int, default=2_000_000, help="entries of a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    took = [run(arguments.entries, arguments.value_bytes, arguments.total) for _ in range(arguments.rounds)]
    print(f"{statistics.median(took):.0f} ns per entry, both ends (rounds: {', '.join(f'{t:.0f}' for t in took)})")


if __name__ == "__main__":
    main()
