"""The supervisor's side: threads that answer what frontends pass on, and one that warns.

Why here and not in a frontend: a scrape is some 30 ms of Python. In a frontend it would hold the interpreter's lock
that the loop needs for each HTTP request, and made cheap for others (nice 19), it would hold it the longer. The
supervisor has nothing else to do. Its main thread needs the lock for signals only.
"""

import json
import threading
import time

from etcdfast import log
from etcdfast._ext import proc
from etcdfast.metrics import channel
from etcdfast.metrics.sources import SUPERVISOR, Sources

NICE = 19
WATCH_SECONDS = 5.0
QUIET_SECONDS = 60.0  # between two warnings of a kind
FDS_SECONDS = 600.0  # as etcd
WAITING_MAX = 32
DESCRIPTORS_WANTED = 1 << 17  # more than frontends accept connections
DESCRIPTORS_LEAST = 4096
TEXT = "text/plain; charset=utf-8"


class Service:
    """`names`: processes of the member; `frontends_end` is what each frontend is given (ipc/boot.py: observe_fd)."""

    def __init__(self, names, config):
        self.sources = Sources(names, config)
        self._control, frontends_end = channel.make()
        self.frontends_end = frontends_end.detach()
        self._config = config
        self._profiling = threading.Lock()
        self._scraping = threading.Lock()
        self._waiting = threading.Semaphore(WAITING_MAX)
        self._profiles = None
        if config.enable_pprof or config.log_level == "debug":
            from etcdfast.metrics.profile import Profiles

            self._profiles = Profiles(self.sources, names)

    def start(self):
        for work, name in ((self._serve, "metrics"), (self._watch, "limits")):
            threading.Thread(target=work, name=name, daemon=True).start()

    def fds_of(self, process):
        """The part of the boot object's "fds" that comes from here."""
        fds = {"meters": self.sources.fds[process]}
        if process.startswith("frontend"):
            fds["observe"] = self.frontends_end
        if self._profiles is not None:
            fds["profile"] = self._profiles.fds[process]
        return fds

    # ---- requests ------------------------------------------------------------------------------------

    def _serve(self):
        while True:
            try:
                taken = channel.take(self._control)
            except OSError as err:
                log.warn("cannot take requests for metrics", error=err)
                return
            if taken is None:
                return
            request, fd = taken
            if not self._waiting.acquire(blocking=False):
                self.sources.meters[SUPERVISOR].count("scrapes_busy")
                channel.answer(fd, 503, {"Content-Type": TEXT}, b"too many requests of this kind\n", 1.0)
                continue
            threading.Thread(target=self._answer, args=(request, fd), name="metrics-answer", daemon=True).start()

    def _answer(self, request, fd):
        try:
            proc.stand_back(0 if request.get("path") == "/debug/profile" else NICE)
            try:
                status, headers, body = self._made(request)
            except Exception as err:
                log.error("cannot answer", path=request.get("path"), error=f"{type(err).__name__}: {err}")
                self.sources.meters[SUPERVISOR].count("scrapes_failed")
                status, headers, body = 500, {"Content-Type": TEXT}, f"{err}\n".encode()
            channel.answer(fd, status, headers, body)
        finally:
            self._waiting.release()

    def _made(self, request):
        path = request["path"]
        if path == "/metrics":
            from etcdfast.metrics import text

            with self._scraping:  # one after the other: together they would only take longer
                found = text.answer(self.sources, _features(self._config), request.get("accept_encoding", ""))
            self.sources.meters[SUPERVISOR].count("scrapes_ok")
            return found
        if path == "/debug/vars":
            from etcdfast.metrics import debugvars

            body = json.dumps(debugvars.collect(self.sources), indent=1).encode() + b"\n"
            return 200, {"Content-Type": "application/json; charset=utf-8"}, body
        if path == "/debug/profile":
            return self._profile(request)
        if path.startswith("/debug/pprof"):
            if self._profiles is None:
                return 404, {"Content-Type": TEXT}, b"404 page not found\n"
            text = "This is no Go program: see /debug/profile?process=apply&seconds=10 (a collapsed-stack profile).\n"
            return 200, {"Content-Type": TEXT}, text.encode()
        return 404, {"Content-Type": TEXT}, b"404 page not found\n"

    def _profile(self, request):
        if self._profiles is None:
            return 404, {"Content-Type": TEXT}, b"404 page not found\n"
        if not self._profiling.acquire(blocking=False):
            return 503, {"Content-Type": TEXT}, b"another profile is under way\n"
        try:
            return self._profiles.answer(request.get("query", {}))
        finally:
            self._profiling.release()

    # ---- warnings ------------------------------------------------------------------------------------

    def _watch(self):
        proc.stand_back(NICE)
        seen = {}
        told = {}
        looked = 0.0
        while True:
            now = time.monotonic()
            if now - looked >= FDS_SECONDS or not looked:
                looked = now
                self._look_at_descriptors()
            self._look_at_accepts(seen, told, now)
            time.sleep(WATCH_SECONDS)

    def _look_at_descriptors(self):
        for name, figures in self.sources.processes().items():
            if figures.open_fds >= figures.max_fds * 4 // 5:
                log.warn(
                    "80% of file descriptors are used",
                    process=name,
                    used=figures.open_fds,
                    limit=int(figures.max_fds),
                )

    def _look_at_accepts(self, seen, told, now):
        """What frontends could not accept, once a minute: their loops do not stop to write lines."""
        kinds = (
            (
                "accepts_failed",
                "cannot accept connections of clients: no file descriptors are left (raise the limit of open files: "
                "ulimit -n, LimitNOFILE)",
            ),
            (
                "connections_full",
                "as many clients are connected as may be; more wait until one goes (the limit of open files decides: "
                "ulimit -n, LimitNOFILE)",
            ),
        )
        for word, text in kinds:
            for name, block in self.sources.meters.items():
                count = block[word] if name.startswith("frontend") else 0
                key = word, name
                if count > seen.get(key, 0) and now - told.get(key, -QUIET_SECONDS) >= QUIET_SECONDS:
                    log.warn(
                        text, process=name, times=count - seen.get(key, 0), connections=block["connections"],
                        connections_max=block["connections_max"],
                    )  # fmt: skip
                    told[key] = now
                    seen[key] = count


def _features(config):
    """etcd 3.7's feature gates as this server has them: (name, stage, on)."""
    return (
        ("AllAlpha", "ALPHA", False),
        ("AllBeta", "BETA", False),
        ("CompactHashCheck", "ALPHA", False),
        ("FastLeaseKeepAlive", "BETA", True),
        ("InitialCorruptCheck", "ALPHA", bool(config.initial_corrupt_check)),
        ("LeaseCheckpoint", "ALPHA", True),
        ("LeaseCheckpointPersist", "ALPHA", True),
        ("PriorityRequest", "ALPHA", False),
        ("SetMemberLocalAddr", "ALPHA", False),
        ("StopGRPCServiceOnDefrag", "ALPHA", False),
        ("TxnModeWriteWithSharedBuffer", "BETA", True),
    )


def raise_descriptor_limit():
    """Let every process of the member open as many files as it may; warn when that is too few for a busy member."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError) as err:
            log.warn("cannot raise the limit of open files", limit=soft, error=err)
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS_LEAST:
        log.warn(
            "the limit of open files is low: fewer clients than usual can be connected, and the store may run out of "
            "files (ulimit -n, LimitNOFILE)",
            limit=soft,
            recommended=DESCRIPTORS_LEAST,
        )
    return soft
