"""A real frontend process with a fake member behind its rings.

`Frontend` starts `python -m etcdfast.frontend`; a thread plays consensus and apply: `answer(record)` gets
every record of both request rings and returns what to push into the answer ring.
"""

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading

import grpc

from etcdfast._ext import ring
from etcdfast._ext.ring import APPLY_WORDS, CONSENSUS_WORDS, KINDS, NOBODY, Ring, StatusPage
from etcdfast.api import rpcs
from etcdfast.config import Config
from etcdfast.config.settings import SETTINGS, field_of
from tests.harness.wait import wait_until

KIND_NAMES = {number: name for name, number in KINDS.items()}
RPC_IDS = {rpc.method: rpc.id for rpc in rpcs.RPCS if not rpc.service.startswith("grpc.")}
RUN_MODULE = "import runpy; runpy.run_module('etcdfast.frontend', run_name='__main__')"
REQUEST_RING_BYTES = 4 << 20


def plain_config(**changed):
    config = {field_of(s): s.default for s in SETTINGS if field_of(s) in Config._fields}
    config.update(log_level="error", log_outputs=("stderr",), **changed)
    return config


def default_answer(record, member):
    """Every unary request is answered with the bytes of its own message."""
    if record["frontend"] == NOBODY or record["kind"] in ("CREDIT", "CANCEL"):
        return []
    return [("REPLY", record["payload"], {})]


def impatient(deadline):
    """A prelude that makes `deadline`, which is no setting, a second: its effect is tested, not its length."""
    return f"""
from etcdfast.frontend import process
usual = process.settings
process.settings = lambda config: usual(config) | {{"{deadline}": 1.0}}
"""


def events_record(targets, head, events):
    """Payload of an EVENTS record; targets are (slot, generation, stream, watch id)."""
    packed = b"".join(
        struct.pack("=IIIIq", slot, generation, stream, 0, wid) for slot, generation, stream, wid in targets
    )
    return struct.pack("=II", len(targets), len(head)) + packed + head + events


class Frontend:
    def __init__(
        self, answer=default_answer, answer_ring_bytes=4 << 20, start_thread=True, prelude="", env=None, **config
    ):
        # `prelude` is Python that the frontend process runs before its module, to change what is no setting. With a
        # `cert_file` its listener is one of TLS.
        self.answer = answer
        self.seen = []  # records other than requests, and requests when `keep`
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        self.own_bell, frontend_bell = os.eventfd(0, flags), os.eventfd(0, flags)
        scheme = "https" if "cert_file" in config else "http"
        fds = {}
        for name, size in (("f0c", REQUEST_RING_BYTES), ("f0a", REQUEST_RING_BYTES), ("af0", answer_ring_bytes)):
            fds[name] = os.memfd_create(name)
            ring.format_ring(fds[name], size)
        pages = {}
        for name in ("consensus", "apply"):
            pages[name] = os.memfd_create(name)
            os.ftruncate(pages[name], ring.STATUS_PAGE_BYTES)
        self.requests = {name: Ring(fds[name], frontend_bell) for name in ("f0c", "f0a")}
        self.answers = Ring(fds["af0"], frontend_bell)
        self.consensus = StatusPage(pages["consensus"])
        self.apply = StatusPage(pages["apply"])
        self.consensus[CONSENSUS_WORDS["leader"]] = 1
        self.consensus[CONSENSUS_WORDS["member_id"]] = 0x1234
        self.apply[APPLY_WORDS["ready"]] = 1
        ready_read, ready_write = os.pipe()
        life_read, self.life_write = os.pipe()
        boot_read, boot_write = os.pipe()
        inherited = [self.listener.fileno(), self.own_bell, frontend_bell, ready_write, life_read, boot_read]
        inherited += [*fds.values(), *pages.values()]
        boot = {
            "role": "frontend",
            "index": 0,
            "frontends": 1,
            "config": plain_config(**config),
            "supervisor_pid": os.getpid(),
            "fds": {
                "doorbell": frontend_bell,
                "doorbells": {"consensus": self.own_bell, "apply": self.own_bell, "frontend0": frontend_bell},
                "rings": fds,
                "status": pages,
                "ready": ready_write,
                "life": life_read,
                "listen": [[f"{scheme}://{self.address}", self.listener.fileno(), "client"]],
            },
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{prelude}\n{RUN_MODULE}", "--boot-fd", str(boot_read)],
            pass_fds=inherited,
            env=env,
        )
        with os.fdopen(boot_write, "wb") as boot_file:
            boot_file.write(json.dumps(boot).encode())
        for fd in (boot_read, ready_write, life_read):
            os.close(fd)
        self.frontend_bell = frontend_bell
        self.fds = fds
        self.kept_fds = [*fds.values(), *pages.values(), frontend_bell, self.own_bell]
        with os.fdopen(ready_read) as ready:
            line = ready.readline()
        if line != '{"ready": "frontend0"}\n':
            self.process.kill()
            raise AssertionError(f"the frontend did not get ready: {line!r}")
        self.stopping = False
        self.paused = threading.Event()
        self.stalled = set()  # names of request rings that are not read
        self.thread = threading.Thread(target=self._run, daemon=True)
        if start_thread:
            self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopping = True
        os.eventfd_write(self.own_bell, 1)
        if self.thread.is_alive():
            self.thread.join(10)
        stuck = self.thread.is_alive() and self.process.poll() is None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        if self.thread.is_alive():
            self.thread.join(10)
        self.listener.close()
        os.close(self.life_write)
        for fd in self.kept_fds:
            os.close(fd)
        assert not stuck, "the frontend lives, and takes no answers"

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def push(self, record, kind, payload=b"", **fields):
        """One answer record for the call of `record`; waits for room while the frontend lives."""
        for name in ("method", "slot", "generation", "stream", "frontend"):
            fields.setdefault(name, record[name])
        self._push(KINDS[kind], payload, fields)

    def push_events(self, targets, head, events):
        """One EVENTS record, as `push`."""
        self._push(KINDS["EVENTS"], events_record(targets, head, events), {"method": RPC_IDS["Watch"]})

    def _push(self, kind, payload, fields):
        done = lambda: self.answers.push(kind, payload, **fields)  # noqa: E731
        with self.lock:
            if not done():
                # Nobody makes room any more in the ring of a frontend that has ended.
                wait_until(
                    lambda: done() or self.process.poll() is not None,
                    f"room for {len(payload)} bytes in the answer ring",
                    poll_seconds=0.0005,
                )

    def _run(self):
        while not self.stopping:
            busy = False
            for name, request_ring in self.requests.items():
                if self.paused.is_set():
                    break
                if name in self.stalled:
                    continue
                record = request_ring.pop()
                if record is not None:
                    busy = True
                    record["kind"] = KIND_NAMES[record["kind"]]
                    record["ring"] = name
                    self.seen.append(record)
                    for kind, payload, fields in self.answer(record, self):
                        self.push(record, kind, payload, **fields)
            if not busy and (
                self.paused.is_set()
                or all([r.sleep() for name, r in self.requests.items() if name not in self.stalled])
            ):
                select.select([self.own_bell], [], [], 0.1)
                try:
                    os.eventfd_read(self.own_bell)
                except BlockingIOError:
                    pass
            for request_ring in self.requests.values():
                request_ring.awake()

    def kinds(self, kind):
        return [r for r in self.seen if r["kind"] == kind]

    def channel(self, **options):
        return grpc.insecure_channel(
            self.address,
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                *options.items(),
            ],
        )


def unary(channel, method, service="etcdserverpb.KV"):
    """A call that takes and gives message bytes."""
    return channel.unary_unary(f"/{service}/{method}")


def server_stream(channel, method, service="etcdserverpb.KV"):
    return channel.unary_stream(f"/{service}/{method}")
