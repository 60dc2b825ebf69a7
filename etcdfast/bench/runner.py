"""Run a workload: one generator a process, a shared page of progress, results put together.

numpy stays out of here: its import starts threads that spin for a while beside the server under test.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
import resource
import signal
import struct
import threading
import time
from array import array
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from etcdfast._ext.loadgen import Generator
from etcdfast._ext.tlscontext import TlsContext, TlsError, TlsOptions
from etcdfast.bench import watching
from etcdfast.bench.endpoints import Endpoint, header_row, path_literal
from etcdfast.bench.page import DONE_OFFSET, ROW_BYTES, STOP_OFFSET
from etcdfast.bench.workload import Workload

SLICE_NS = 50_000_000
TOTAL_UNLIMITED = 1 << 62
DRAIN_SECONDS = 2.0
KINDS = 4
TIMELINE_BIN_NS = 10_000_000  # of the generator

# https://grpc.github.io/grpc/core/md_doc_statuscodes.html, spelled as in Go's error texts
CODE_NAMES = (
    "OK Canceled Unknown InvalidArgument DeadlineExceeded NotFound AlreadyExists PermissionDenied ResourceExhausted"
    " FailedPrecondition Aborted OutOfRange Unimplemented Internal Unavailable DataLoss Unauthenticated"
).split()


class RunError(Exception):
    """The run could not begin; one line says why."""


@dataclass(frozen=True)
class Load:
    """How hard: `rate` is requests per second over all clients, 0 for no limit; `seconds` 0 for no limit."""

    conns: int
    clients: int
    total: int
    rate: float = 0
    seconds: float = 0
    processes: int = 1
    dial_timeout_seconds: float = 5.0
    seed: int = 1
    metadata: tuple[tuple[str, str], ...] = ()
    stream_ids_max: int = 0x7FFFFFF1
    acknowledged: bool = False  # remember which requests were answered well


@dataclass
class KindResult:
    """Latencies of one sort of request. `buckets` as in the generator's histogram; times in ns."""

    count: int = 0
    sum_ns: int = 0
    min_ns: int = 0
    max_ns: int = 0
    sum_squares: float = 0.0
    buckets: array = field(default_factory=lambda: array("Q"))
    seconds: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)

    def add(self, other: KindResult) -> None:
        mine = self.buckets or array("Q", bytes(8 * len(other.buckets)))
        self.buckets = array("Q", (a + b for a, b in zip(mine, other.buckets, strict=True)))
        self.sum_squares += other.sum_squares
        self.sum_ns += other.sum_ns
        self.max_ns = max(self.max_ns, other.max_ns)
        if other.count:
            self.min_ns = min(self.min_ns, other.min_ns) if self.count else other.min_ns
        self.count += other.count
        for second, row in other.seconds.items():
            mine = self.seconds.get(second)
            self.seconds[second] = (
                row
                if mine is None
                else (mine[0] + row[0], mine[1] + row[1], min(mine[2], row[2]), max(mine[3], row[3]))
            )


@dataclass
class Timeline:
    """Answers counted by spans of `TIMELINE_BIN_NS`; the first one begins at `first_ns` (CLOCK_MONOTONIC)."""

    first_ns: int
    counts: array

    def longest_gap(self, from_ns: int = 0) -> tuple[int, int]:
        """(ns, when it began) of the longest time without an answer, by whole spans, from some time on."""
        start = max(0, -(-(from_ns - self.first_ns) // TIMELINE_BIN_NS))
        longest = began = run = 0
        for at in range(start, len(self.counts)):
            run = 0 if self.counts[at] else run + 1
            if run > longest:
                longest, began = run, at + 1 - run
        return longest * TIMELINE_BIN_NS, self.first_ns + began * TIMELINE_BIN_NS


@dataclass
class Result:
    """One run. `errors` maps the text of an error, as etcd's tool prints it, to its count."""

    kinds: list[KindResult]
    errors: dict[str, int]
    start_ns: int
    end_ns: int
    client_cpu_seconds: float
    response_bytes: int
    reconnects: int
    processes: int
    aborted: str = ""
    interrupted: bool = False
    watch: watching.WatchResult | None = None
    timeline: Timeline = field(default_factory=lambda: Timeline(0, array("I")))
    acknowledged: bytes = b""  # bit n % 8 of byte n // 8: request n was answered well

    @property
    def count(self) -> int:
        """Requests answered; what watchers got is not among them."""
        return self.kinds[0].count if self.watch else sum(kind.count for kind in self.kinds)

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


def default_processes(conns: int) -> int:
    """One generator process for every four cores: the server under test is to have the others."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores // 4, conns))


def run(workload: Workload, endpoints: list[Endpoint], load: Load, progress=None, pause=None) -> Result:
    """Drive the load to its end.

    `progress(done)` is called a few times a second with the number of finished requests (watch loads:
    of watchers and events). `pause`: see `watching.Conductor`.
    SIGINT stops the load; what was measured until then is returned with `interrupted` set.
    Errors: RunError when no connection can be made.
    """
    processes = max(1, min(load.processes, load.conns))
    _allow_files(load.conns + 64 * processes)
    page = mmap.mmap(-1, max(mmap.PAGESIZE, DONE_OFFSET + ROW_BYTES * processes))
    tick = _Ticker(page, processes, progress)
    if workload.watching:
        tick = watching.Conductor(page, processes, workload.watching, load.total, progress, pause)
    if processes == 1:
        return _merge(
            [_work(0, 1, workload, endpoints, load, page, tick, threading.Barrier(1))],
            processes,
            bool(workload.watching),
        )
    return _merge(_run_processes(processes, workload, endpoints, load, page, tick), processes, bool(workload.watching))


class _Ticker:
    """Progress of all workers, seen by the process that reports."""

    def __init__(self, page: mmap.mmap, processes: int, progress) -> None:
        self._page, self._processes, self._progress = page, processes, progress

    def __call__(self) -> None:
        if self._progress is not None:
            rows = (
                struct.unpack_from("=q", self._page, DONE_OFFSET + ROW_BYTES * i)[0] for i in range(self._processes)
            )
            self._progress(sum(rows))


def _allow_files(needed: int) -> None:
    """Raise the limit of open files as far as the connections need it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))
    except (OSError, ValueError):
        raise RunError(
            f"--conns needs {needed} open files, but only {hard} are allowed (raise it with ulimit -n)"
        ) from None


def authenticate(endpoint: Endpoint, name: str, password: str, timeout_seconds: float) -> tuple[tuple[str, str], ...]:
    """Metadata of calls in the name of a user. Errors: RunError."""
    # By another process: grpc starts threads, and must not be there when the generators are forked.
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_token_main, args=(theirs, endpoint, name, password, timeout_seconds), daemon=True)
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        raise RunError("the process that authenticates ended early") from None
    finally:
        process.join()
    if isinstance(found, str):
        raise RunError(found)
    return found


def _token_main(pipe, endpoint, name, password, timeout_seconds) -> None:
    from etcdfast.bench import side_calls

    try:
        pipe.send(side_calls.token(endpoint, name, password, timeout_seconds))
    except (RunError, ValueError) as e:
        pipe.send(str(e))


def _run_processes(processes, workload, endpoints, load, page, tick) -> list[dict]:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes)
    pipes, workers = [], []
    for worker in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_worker_main, args=(theirs, worker, processes, workload, endpoints, load, page, barrier), daemon=True
        )
        process.start()
        theirs.close()
        pipes.append(ours)
        workers.append(process)
    stop_at = None
    results: list[dict | None] = [None] * processes
    interrupted = False
    while any(result is None for result in results):
        try:
            for worker, pipe in enumerate(pipes):
                if results[worker] is None and pipe.poll(0.05):
                    try:
                        results[worker] = pipe.recv()
                    except EOFError:
                        raise RunError(f"generator process {worker} ended early") from None
            tick()
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            struct.pack_into("=q", page, STOP_OFFSET, 1)
            stop_at = time.monotonic() + 2 * DRAIN_SECONDS
        if stop_at is not None and time.monotonic() > stop_at:
            raise RunError("interrupted; the generator processes did not stop in time")
    for process in workers:
        process.join()
    for result in results:
        if "failure" in result:
            raise RunError(result["failure"])
        result["interrupted"] |= interrupted
    return results


def _worker_main(pipe, worker, processes, workload, endpoints, load, page, barrier) -> None:
    # the parent turns an interrupt into the shared stop flag
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pipe.send(_work(worker, processes, workload, endpoints, load, page, lambda: None, barrier))
    except RunError as e:
        barrier.abort()
        pipe.send({"failure": str(e)})
    except threading.BrokenBarrierError:
        pipe.send({"failure": "another generator process could not connect"})


def _share(count: int, worker: int, processes: int) -> int:
    return count // processes + (worker < count % processes)


def _work(worker, processes, workload, endpoints, load, page, tick, barrier) -> dict:
    """One generator from connecting to its last answer; connections worker, worker + processes, ..."""
    conns = _share(load.conns, worker, processes)
    watched = workload.watching
    clients = clients_of(worker, processes, load)
    streams = watching.streams_of(worker, processes, load.conns, watched.streams) if watched else []
    if clients == 0 and not streams:
        barrier.wait()
        return _empty(workload)
    apart = watched is not None and watched.apart
    rotated = [endpoints[(worker + processes * i) % len(endpoints)] for i in range(len(endpoints))]
    rows = [
        (e.family, e.address, *header_row(e.authority, workload.methods, [*load.metadata, *e.metadata]), tls_name(e))
        for e in rotated
    ]
    # what the clients of earlier workers have
    lease_base = workload.lease_base
    if workload.lease_of_client:
        lease_base += sum(clients_of(w, processes, load) for w in range(worker))
    conns += apart
    generator = Generator(
        conns=conns,
        clients=clients,
        endpoints=rows,
        templates=[
            (m.data, m.keys_at, m.values_at, m.method, m.lease_at, m.lease_of_client, m.ttl_at)
            for m in workload.messages
        ],
        shared=page,
        worker=worker,
        total=load.total if load.total else TOTAL_UNLIMITED,
        rate=load.rate * clients / load.clients if load.clients else 0,
        key_bytes=workload.key_bytes,
        value_bytes=workload.value_bytes,
        key_space=workload.key_space,
        sequential=workload.sequential,
        read_share=workload.read_share,
        seed=load.seed,
        streaming=workload.streaming,
        dial_timeout_seconds=load.dial_timeout_seconds,
        stream_ids_max=load.stream_ids_max,
        methods=[path_literal(path) for path in workload.methods],
        load_kinds=workload.load_kinds,
        load_conns=1 if apart else 0,
        renewing=workload.renewing,
        held=workload.held,
        streams=streams,
        watchers_each=watched.watchers_each if watched else 0,
        stream_conn=int(apart),
        key_numbers=workload.key_numbers,
        stamped=workload.stamped,
        latency_by_number=workload.by_number,
        lease_base=lease_base,
        ttl_end_ns=workload.ttl_end_ns,
        stm=workload.stm,
        acknowledged=load.acknowledged,
        tls=tls_context(endpoints),
    )
    deadline = time.monotonic() + load.dial_timeout_seconds
    while generator.open_conns < conns:
        generator.poll(SLICE_NS)
        if generator.open_conns < conns and time.monotonic() > deadline:
            reason = generator.connect_error() or "no answer in time"
            where = ",".join(e.text for e in endpoints)
            raise RunError(f"cannot connect to {where}: {reason} ({generator.open_conns} of {conns} connections made)")
    barrier.wait()
    if watched:
        return watching.drive(generator, watched, clients, page, tick) | _counted(generator)
    return _drive(generator, load, page, tick)


def tls_name(endpoint: Endpoint) -> bytes | None:
    """Whom the generator expects there: b"" anybody, None without TLS."""
    if endpoint.security is None:
        return None
    return b"" if endpoint.security.skip_verify else endpoint.host.encode("idna")


def tls_context(endpoints: list[Endpoint]) -> TlsContext | None:
    """What the secure ones of them are met with. Errors: RunError."""
    security = next((e.security for e in endpoints if e.security is not None), None)
    if security is None:
        return None
    try:
        return TlsContext(
            TlsOptions(
                "client",
                cert_file=security.cert,
                key_file=security.key,
                ca_file=security.cacert,
                skip_verify=security.skip_verify,
                alpn=(b"h2",),
            )
        )
    except TlsError as e:
        raise RunError(str(e)) from None


def clients_of(worker: int, processes: int, load: Load) -> int:
    """Client i belongs to connection i % conns, so the clients of a worker follow from its connections."""
    return sum(_share(load.clients, connection, load.conns) for connection in range(worker, load.conns, processes))


def _drive(generator: Generator, load: Load, page: mmap.mmap, tick) -> dict:
    interrupted = False
    drain_until = None
    cpu_start = time.thread_time()
    stop_at = time.monotonic() + load.seconds if load.seconds else math.inf
    generator.start()
    while generator.running and not generator.aborted:
        try:
            left = stop_at - time.monotonic()
            generator.poll(int(min(SLICE_NS, max(left, 0.001) * 1e9)))
            tick()
            if left <= 0:
                struct.pack_into("=q", page, STOP_OFFSET, 1)
        except KeyboardInterrupt:
            interrupted = True
            struct.pack_into("=q", page, STOP_OFFSET, 1)
        stopping = struct.unpack_from("=q", page, STOP_OFFSET)[0]
        if stopping and drain_until is None:
            drain_until = time.monotonic() + DRAIN_SECONDS
        if drain_until is not None and time.monotonic() > drain_until:
            break
    cpu = time.thread_time() - cpu_start
    tick()
    return {"cpu": cpu, "interrupted": interrupted} | _counted(generator)


def _counted(generator: Generator) -> dict:
    return {
        "kinds": [(generator.histogram(k), generator.seconds_of(k)) for k in range(KINDS)],
        "errors": generator.error_rows(),
        "start_ns": generator.start_ns,
        "end_ns": generator.end_ns,
        "response_bytes": generator.response_bytes,
        "reconnects": generator.reconnects,
        "aborted": generator.connect_error() if generator.aborted else "",
        "unanswered": generator.running,
        "watch": generator.watch_counts(),
        "timeline": generator.timeline(),
        "acknowledged": generator.acknowledged(),
    }


def _empty(workload: Workload) -> dict:
    now = time.monotonic_ns()
    nothing = ((0, 0, 0, 0, 0.0, b""), [])
    return {
        "kinds": [nothing] * KINDS, "errors": [], "start_ns": now, "end_ns": now, "cpu": 0.0, "response_bytes": 0,
        "reconnects": 0, "aborted": "", "unanswered": 0, "interrupted": False, "watch": None,
        "timeline": b"", "acknowledged": b"",
    }  # fmt: skip


def error_text(code: int, message: bytes) -> str:
    """The text etcd's Go client shows: the bare message of etcd's own errors, else gRPC's form."""
    text = unquote_to_bytes(message).decode(errors="replace")
    if text.startswith("etcdserver: ") or text.startswith("etcdserver/"):
        return text
    name = CODE_NAMES[code] if 0 <= code < len(CODE_NAMES) else f"Code({code})"
    return f"rpc error: code = {name} desc = {text}"


def _merge(parts: list[dict], processes: int, watched: bool) -> Result:
    kinds = [KindResult() for _ in range(KINDS)]
    errors: dict[str, int] = {}
    for part in parts:
        for kind, (row, seconds) in zip(kinds, part["kinds"], strict=True):
            count, sum_ns, min_ns, max_ns, sum_squares, buckets = row
            if not count:
                continue
            kind.add(
                KindResult(
                    count, sum_ns, min_ns, max_ns, sum_squares, array("Q", buckets),
                    {second: tuple(rest) for second, *rest in seconds},
                )
            )  # fmt: skip
        for count, code, message in part["errors"]:
            text = error_text(code, message)
            errors[text] = errors.get(text, 0) + count
        if part["unanswered"]:
            text = "rpc error: code = Canceled desc = not answered before the load was stopped"
            errors[text] = errors.get(text, 0) + part["unanswered"]
    return Result(
        kinds,
        errors,
        min(part["start_ns"] for part in parts),
        max(part["end_ns"] for part in parts),
        sum(part["cpu"] for part in parts),
        sum(part["response_bytes"] for part in parts),
        sum(part["reconnects"] for part in parts),
        processes,
        next((part["aborted"] for part in parts if part["aborted"]), ""),
        any(part["interrupted"] for part in parts),
        watching.merge([part["watch"] for part in parts if part["watch"]]) if watched else None,
        _merge_timelines([(part["start_ns"], part["timeline"]) for part in parts if part["timeline"]]),
        _merge_bits([part["acknowledged"] for part in parts]),
    )


def _merge_timelines(parts: list[tuple[int, bytes]]) -> Timeline:
    """Of processes that began together, a little apart: each span goes to the one of the first it lies in most."""
    if not parts:
        return Timeline(0, array("I"))
    first_ns = min(start for start, _ in parts)
    counts = array("I")
    for start, raw in parts:
        shift = round((start - first_ns) / TIMELINE_BIN_NS)
        own = array("I", raw)
        counts.extend([0] * (shift + len(own) - len(counts)))
        for at, count in enumerate(own):
            counts[at + shift] += count
    return Timeline(first_ns, counts)


def _merge_bits(parts: list[bytes]) -> bytes:
    longest = max(len(part) for part in parts)
    merged = 0
    for part in parts:
        merged |= int.from_bytes(part, "little")
    return merged.to_bytes(longest, "little")
