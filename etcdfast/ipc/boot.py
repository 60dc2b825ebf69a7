"""What a child process of a member is given at its start, and how it tells that it is up.

    boot = boot.receive(sys.argv[1:])    # in etcdfast/<room>/__main__.py
    ...
    boot.tell_ready()                    # or boot.tell_failed("one line for the user"), then exit non-zero

The supervisor writes one JSON object into the inherited descriptor `--boot-fd`. All descriptors in it are
inherited under the same numbers.
"""

import json
import os
import signal
import sys
from collections import namedtuple

from etcdfast import log
from etcdfast.config import Config
from etcdfast.ipc import reload

# Exit statuses of a child that ends by itself (the names are those of sysexits.h).
EXIT_CORRUPTION = 65
EXIT_INTERNAL = 70
EXIT_DISK = 74
EXIT_RESTART = 75  # of consensus: start every process of the member anew (a received snapshot is in place)
EXIT_REMOVED = 76  # of consensus: this member is no longer part of the cluster

# Of mlockall(2). On fault: what is only reserved (rings, stacks) is not brought in.
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4

_FIELDS = "role index frontends config doorbell doorbells rings status ready_fd life_fd listen reload_fd tokens"
_FIELDS += " meters_fd observe_fd profile_fd"


class Boot(namedtuple("Boot", _FIELDS)):
    """role: "frontend" | "consensus" | "apply"; index: which frontend; frontends: how many there are.

    doorbell: own eventfd; doorbells: {"consensus": fd, "apply": fd, "frontend0": fd, ...}
    rings: {"f0c": memfd, ...} of this process only; status: {"consensus": memfd, "apply": memfd}
    ready_fd: pipe to the supervisor; life_fd: reads end of file once the supervisor is gone, put it into
    the event loop; listen: ((url, listening socket, role), ...), of clients for a frontend, of other members for
    consensus. Roles: "client" gRPC and HTTP, "grpc" gRPC alone, "http" HTTP alone, "metrics" /metrics and the health
    paths, "peer". A URL of https or unixs means TLS.
    reload_fd: the page of `ipc/reload.py`, -1 for none. tokens: memfd of the auth tokens (_ext/tokenpage), which apply
    writes and frontends read.
    meters_fd: the block of figures of this process; observe_fd: where a frontend asks for what the supervisor shows
    (metrics/channel.py); profile_fd: the page for samples of this process. Each -1 for none.
    """

    __slots__ = ()

    def tell_ready(self):
        # Until here SIGHUP is ignored: the supervisor sends it only to who is ready. From here on it also writes to
        # the process' wake-up descriptor, and who reads it there calls `reload`.
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            signal.signal(signal.SIGHUP, lambda number, frame: None)
        self._tell({"ready": self.process})

    def on_reload(self, callback):
        reload.on_reload(callback)

    def reload(self):
        """SIGHUP came and this is a safe point: take over the new settings."""
        if self.reload_fd >= 0:
            reload.run(self.reload_fd)

    def tell_failed(self, reason):
        """The member cannot start (wrong data directory, corrupt file ...); `reason` is one line."""
        self._tell({"error": reason})

    @property
    def process(self):
        return f"frontend{self.index}" if self.role == "frontend" else self.role

    def _tell(self, message):
        try:
            os.write(self.ready_fd, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:  # the supervisor is gone; life_fd says so too
            pass
        os.close(self.ready_fd)


def from_json(data):
    plain = json.loads(data)
    fds = plain["fds"]
    return Boot(
        role=plain["role"],
        index=plain["index"],
        frontends=plain["frontends"],
        config=Config.from_plain(plain["config"]),
        doorbell=fds["doorbell"],
        doorbells=fds["doorbells"],
        rings=fds["rings"],
        status=fds["status"],
        ready_fd=fds["ready"],
        life_fd=fds["life"],
        listen=tuple((url, fd, role) for url, fd, role in fds.get("listen", ())),
        reload_fd=fds.get("reload", -1),
        tokens=fds.get("tokens", -1),
        meters_fd=fds.get("meters", -1),
        observe_fd=fds.get("observe", -1),
        profile_fd=fds.get("profile", -1),
    )


def _lock_memory(boot):
    """Keep every page that is used, now or later, out of swap. Ends the process when it may not."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        reason = os.strerror(ctypes.get_errno()).lower()
        boot.tell_failed(f"cannot lock memory (--memory-mlock): {reason}; raise the limit of locked memory")
        sys.exit(1)


def receive(arguments):
    """Read the boot object, tie this process' life to the supervisor's, set up its log and its name.

    SIGINT is ignored: a terminal sends it to every process of the member, and the supervisor alone decides. So is
    SIGHUP until `tell_ready`.
    Ends the process when the supervisor is already gone.
    """
    from etcdfast._ext import meters, proc

    if len(arguments) != 2 or arguments[0] != "--boot-fd" or not arguments[1].isdecimal():
        sys.exit("this is a part of etcdfast and is started by it; run `etcdfast` instead")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with open(int(arguments[1]), "rb") as boot_file:
        data = boot_file.read()
    supervisor_pid = json.loads(data)["supervisor_pid"]
    if not proc.die_with_parent(supervisor_pid):
        os._exit(1)
    boot = from_json(data)
    proc.set_name(f"etcdfast-{boot.process}")
    config = boot.config
    log.configure(config.log_level, config.log_outputs, config.log_format, config.log_rotation)
    if config.memory_mlock:
        _lock_memory(boot)
    if boot.meters_fd >= 0:
        meters.attach(boot.meters_fd)
    if boot.profile_fd >= 0:
        from etcdfast._ext import profiler

        profiler.install(boot.profile_fd)
    return boot
