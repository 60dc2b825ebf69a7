"""CPU of a frontend process per call, system calls included, with nothing behind its rings but an echo.

    python -m bench.micro.frontend [--calls 300000] [--conns 100] [--streams 10] [--value-bytes 256]

Load comes from h2load (nghttp2-client) as unary Put calls. Prints calls per second, and microseconds of
user and system CPU of the frontend process per call.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
# PutResponse with a header of four large numbers
REPLY = bytes.fromhex("0a1e08f7a4b2c1d0e0f0c0cb0110a1c2e3f4a5b6c7d8b5011890bd0520022802")


def build_echo(folder):
    """Compile ringecho.c; returns the function."""
    library = Path(folder) / "ringecho.so"
    cc = os.environ.get("CC", sysconfig.get_config_var("CC").split()[0])
    subprocess.run(
        [
            cc,
            "-O2",
            "-std=gnu11",
            "-shared",
            "-fPIC",
            f"-I{ROOT}/etcdfast/_ext",
            "-o",
            library,
            Path(__file__).with_name("ringecho.c"),
        ],
        check=True,
    )
    echo = ctypes.CDLL(str(library)).ringecho
    echo.restype = ctypes.c_int64
    return echo


def cpu_seconds(pid):
    """(user, system) seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) / CLOCK_TICKS, int(fields[12]) / CLOCK_TICKS


def grpc_message(value_bytes):
    value = b"v" * value_bytes
    body = b"\x0a\x08" + b"k" * 8 + b"\x12" + _varint(len(value)) + value
    return b"\0" + len(body).to_bytes(4, "big") + body


def _varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + _varint(n >> 7)


def measure(calls, conns, streams, value_bytes):
    """Run once; returns a dict of figures."""
    from tests.frontend.member import Frontend

    with tempfile.TemporaryDirectory() as folder, Frontend(start_thread=False) as frontend:
        echo = build_echo(folder)
        stop = ctypes.c_int(0)
        fds = (ctypes.c_int * 3)(*(frontend.fds[name] for name in ("f0c", "f0a", "af0")))
        arguments = (fds, frontend.own_bell, frontend.frontend_bell, REPLY, len(REPLY), ctypes.byref(stop))
        answered = []
        thread = threading.Thread(target=lambda: answered.append(echo(*arguments)))
        thread.start()
        try:
            body = Path(folder) / "body"
            body.write_bytes(grpc_message(value_bytes))
            before = cpu_seconds(frontend.process.pid)
            run = subprocess.run(
                [
                    "h2load",
                    "-c",
                    str(conns),
                    "-m",
                    str(streams),
                    "-n",
                    str(calls),
                    "-d",
                    body,
                    "-H",
                    "content-type: application/grpc",
                    "-H",
                    "te: trailers",
                    f"http://{frontend.address}/etcdserverpb.KV/Put",
                ],
                capture_output=True,
                text=True,
                check=True,
            )
            after = cpu_seconds(frontend.process.pid)
        finally:
            stop.value = 1
            thread.join()
    finished = next(line for line in run.stdout.splitlines() if line.startswith("finished in"))
    succeeded = next(line for line in run.stdout.splitlines() if line.startswith("requests:"))
    user, system = ((b - a) * 1e6 / calls for a, b in zip(before, after))
    return {
        "answered": answered[0],
        "h2load": finished,
        "requests": succeeded,
        "user_us": user,
        "system_us": system,
        "cpu_us": user + system,
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=300_000)
    parser.add_argument("--conns", type=int, default=100)
    parser.add_argument("--streams", type=int, default=10)
    parser.add_argument("--value-bytes", type=int, default=256)
    chosen = parser.parse_args(arguments)
    figures = measure(chosen.calls, chosen.conns, chosen.streams, chosen.value_bytes)
    print(figures["h2load"])
    print(figures["requests"])
    print(
        f"frontend CPU per call: {figures['cpu_us']:.2f} us "
        f"(user {figures['user_us']:.2f}, system {figures['system_us']:.2f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
