"""A consensus process under test: this process plays supervisor, frontends and apply on its rings."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time

from etcdfast import log
from etcdfast._ext.ring import APPLY_WORDS, CONSENSUS_WORDS, KINDS, STATUS_PAGE_BYTES, Ring, StatusPage, format_ring
from etcdfast.config import load

MIB = 1 << 20
DEADLINE_SECONDS = 20.0


def make_config(data_dir, **fields):
    """A Config as the command line of a single member gives it, with `fields` replaced."""
    config = load.load(["--data-dir", str(data_dir)], {}, log)
    return config._replace(**fields)


class Member:
    """One start of a consensus process.

    The rings are played by `propose`, `read` (as frontends) and `take` (as apply). `applied` is what the
    played store says it has when it opens.
    """

    def __init__(self, config, *, frontends=1, applied=0, ring_bytes=4 * MIB, wal=None, opened=True):
        self.config = config
        self.frontends = frontends
        self.doorbells = {
            name: os.eventfd(0, os.EFD_NONBLOCK)
            for name in ("consensus", "apply", *(f"frontend{i}" for i in range(frontends)))
        }
        names = ["ca", "ac", *(f"f{i}c" for i in range(frontends))]
        self.ring_fds = {name: os.memfd_create(name) for name in names}
        sizes = ring_bytes if isinstance(ring_bytes, dict) else {}
        for name, fd in self.ring_fds.items():
            format_ring(fd, sizes.get(name, 4 * MIB) if sizes else ring_bytes)
        self.status_fds = {name: os.memfd_create(name) for name in ("consensus", "apply")}
        for fd in self.status_fds.values():
            os.ftruncate(fd, STATUS_PAGE_BYTES)
        self.status = StatusPage(self.status_fds["consensus"])
        self.apply_status = StatusPage(self.status_fds["apply"])
        self.into = {name: Ring(self.ring_fds[name], self.doorbells["consensus"]) for name in names if name != "ca"}
        self.out = Ring(self.ring_fds["ca"], self.doorbells["consensus"])
        self.ready_read, ready_write = os.pipe()
        self.life_read, self.life_write = os.pipe()
        boot = {
            "role": "consensus",
            "index": 0,
            "frontends": frontends,
            "supervisor_pid": os.getpid(),
            "config": config.to_plain(),
            "fds": {
                "doorbell": self.doorbells["consensus"],
                "doorbells": self.doorbells,
                "rings": self.ring_fds,
                "status": self.status_fds,
                "ready": ready_write,
                "life": self.life_read,
            },
        }
        boot_fd = os.memfd_create("boot")
        os.write(boot_fd, json.dumps(boot).encode())
        os.lseek(boot_fd, 0, os.SEEK_SET)
        passed = [
            boot_fd,
            ready_write,
            self.life_read,
            *self.doorbells.values(),
            *self.ring_fds.values(),
            *self.status_fds.values(),
        ]
        # A log file is written in its whole size before the member starts.
        environ = os.environ | {"ETCDFAST_TEST_WAL": json.dumps({"segment_bytes": 4_000_000} | (wal or {}))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "etcdfast.consensus", "--boot-fd", str(boot_fd)],
            pass_fds=passed,
            env=environ,
            stderr=subprocess.PIPE,
        )
        os.close(boot_fd)
        os.close(ready_write)
        self._stderr = b""
        if opened:
            self.open_store(applied)

    # ---- apply's side ----------------------------------------------------------------------------

    def open_store(self, applied=0, term=0):
        self.apply_status[APPLY_WORDS["applied_index"]] = applied
        self.apply_status[APPLY_WORDS["applied_term"]] = term
        self.apply_status[APPLY_WORDS["opened"]] = 1
        os.eventfd_write(self.doorbells["consensus"], 1)

    def flushed(self, index):
        self.apply_status[APPLY_WORDS["flushed_index"]] = index

    def take(self, deadline_seconds=DEADLINE_SECONDS):
        """The next record on `ca`, or None when the process ended first."""
        end = time.monotonic() + deadline_seconds
        while True:
            record = self.out.pop()
            if record is not None:
                return record
            if self.out.sleep():
                if self.process.poll() is not None and self.out.sleep():
                    return self.out.pop()
                left = end - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"nothing on `ca` in {deadline_seconds} s; log so far:\n{self.log_text()}")
                select.select([self.doorbells["apply"], self.process.stderr], [], [], min(left, 0.2))
                try:
                    os.eventfd_read(self.doorbells["apply"])
                except BlockingIOError:
                    pass
                self._read_stderr()
            self.out.awake()

    def take_kind(self, kind):
        """Records up to and with the first of `kind`."""
        records = []
        while True:
            record = self.take()
            assert record is not None, f"ended before {kind}:\n{self.log_text()}"
            records.append(record)
            if record["kind"] == KINDS[kind]:
                return records

    def start(self):
        """Records up to HARD, after which the member serves."""
        return self.take_kind("HARD")

    # ---- frontends' side -------------------------------------------------------------------------

    def propose(self, payload, *, method=2, frontend=0, stream=1, **fields):
        """False while the ring is full."""
        return self.into[f"f{frontend}c"].push(
            KINDS["PROPOSE"], payload, method=method, frontend=frontend, stream=stream, **fields
        )

    def read(self, payload, *, frontend=0, stream=1, **fields):
        return self.into[f"f{frontend}c"].push(
            KINDS["READ"], payload, method=1, frontend=frontend, stream=stream, **fields
        )

    # ---- supervisor's side -----------------------------------------------------------------------

    def word(self, name):
        return self.status[CONSENSUS_WORDS[name]]

    def told(self, deadline_seconds=DEADLINE_SECONDS):
        """What the process wrote to its ready pipe."""
        found, _, _ = select.select([self.ready_read], [], [], deadline_seconds)
        assert found, f"nothing told; log so far:\n{self.log_text()}"
        return json.loads(os.read(self.ready_read, 65536) or b"null")

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, deadline_seconds=DEADLINE_SECONDS):
        """Exit status of the process."""
        end = time.monotonic() + deadline_seconds
        while self.process.poll() is None and time.monotonic() < end:
            select.select([self.process.stderr], [], [], 0.05)
            self._read_stderr()
        return self.process.wait(0.1)

    def stop(self):
        """SIGTERM and the exit status; what is left on `ca` stays there for `take`."""
        self.terminate()
        return self.wait()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def log_text(self):
        self._read_stderr()
        return self._stderr.decode(errors="replace")

    def _read_stderr(self):
        while self.process.stderr and select.select([self.process.stderr], [], [], 0)[0]:
            data = os.read(self.process.stderr.fileno(), 65536)
            if not data:
                break
            self._stderr += data

    def close(self):
        if self.process.poll() is None:
            self.kill()
        self._read_stderr()
        self.process.stderr.close()
        self.into.clear()
        self.out = None
        fds = [*self.doorbells.values(), *self.ring_fds.values(), *self.status_fds.values()]
        for fd in (*fds, self.ready_read, self.life_read, self.life_write):
            os.close(fd)

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        self.close()
        if not failed:  # builds with sanitizers (ETCDFAST_BUILD=asan) report there
            assert b"runtime error:" not in self._stderr and b"AddressSanitizer" not in self._stderr, self._stderr
