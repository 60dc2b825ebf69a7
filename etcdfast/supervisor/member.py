"""One running member: its processes are started together, watched, and stopped as one."""

import json
import os
import select
import signal
import time
from collections import deque

from etcdfast import log
from etcdfast.ipc import reload
from etcdfast.ipc.boot import EXIT_INTERNAL, EXIT_REMOVED, EXIT_RESTART
from etcdfast.metrics.service import Service
from etcdfast.metrics.sources import SUPERVISOR
from etcdfast.supervisor import children
from etcdfast.supervisor.errors import StartError
from etcdfast.supervisor.listeners import close_listeners
from etcdfast.supervisor.notify import Watchdog, notify
from etcdfast.supervisor.plumbing import Plumbing, children_of
from etcdfast.supervisor.reloading import read_reloadable

# How long each kind of process may take to stop. A frontend gives its calls 5 s; consensus and apply have
# to write to a disk that may be busy. Whoever takes longer is killed: nothing acknowledged is lost by it.
STOP_SECONDS = {"frontend": 7.0, "consensus": 20.0, "apply": 60.0}
READY_LINE_BYTES_MAX = 65536
# Each restart in place installs a snapshot: this many so soon after each other is a fault that would go on for ever.
RESTARTS_MAX = 10
RESTARTS_SECONDS = 60.0


class Member:
    """Starts at construction; `run` returns when every process has ended.

    `peer_listeners` is [(url, socket, role)], `listeners` is [frontend][k] = (url, socket, role). They stay open here
    while the member restarts in place. `lock_fd` is passed on, so that the data directory stays locked until the last
    process of the member is gone, even if this one is killed first. `read_again()` reads the settings as at the start.
    Signals: SIGTERM and SIGINT stop the member; further ones change nothing. SIGHUP: see supervisor/reloading.py.
    """

    def __init__(self, config, peer_listeners, listeners, lock_fd, read_again):
        self._config = config
        self._read_again = read_again
        self._reload_wanted = False
        self._reload_fd = reload.make_page()
        self._peer_listeners = peer_listeners
        self._listeners = listeners
        self._lock_fd = lock_fd
        self._observed = Service([child.process for child in children_of(len(listeners))], config)
        self._running = {}
        self._waiting_ready = {}
        self._failure = None  # StartError: why the member ends, once it has to
        self._stop_signal = None
        self._wanted = None  # EXIT_RESTART or EXIT_REMOVED, once consensus ended with it
        self._restarts = deque(maxlen=RESTARTS_MAX)  # times, monotonic
        self._watchdog = Watchdog()
        self._poll = select.poll()
        self._signals_read, signals_write = os.pipe()
        for fd in (self._signals_read, signals_write):
            os.set_blocking(fd, False)
        # Children must inherit an ignored SIGINT; ours is set after they are started.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._start_children()
        signal.set_wakeup_fd(signals_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # the wake-up pipe has it already
        self._poll.register(self._signals_read, select.POLLIN)
        self._observed.start()

    def _start_children(self):
        self._started_at = time.monotonic()
        self._plumbing = Plumbing(self._config, len(self._listeners))
        environ = children.environment_of_children()
        try:
            for child in self._plumbing.children:
                self._start_child(child, environ)
        except StartError:
            self._kill_all()
            raise
        self._observed.sources.follow(self._plumbing.status_fds, self._plumbing.ring_fds)
        self._observed.sources.set_pids({running.process: running.pid for running in self._running.values()})
        self._plumbing.close_shared()

    def _start_child(self, child, environ):
        fds = {**self._plumbing.fds_of(child.process), **self._observed.fds_of(child.process)}
        fds |= {"lock": self._lock_fd, "reload": self._reload_fd}
        listeners = {"frontend": self._listeners, "consensus": [self._peer_listeners]}.get(child.role)
        if listeners:
            fds["listen"] = [(url, listener.fileno(), role) for url, listener, role in listeners[child.index]]
        boot = {
            "role": child.role,
            "index": child.index,
            "frontends": len(self._listeners),
            "supervisor_pid": os.getpid(),
            "config": self._config.to_plain(),
            "fds": fds,
        }
        running = children.start(child, boot, environ)
        self._running[running.pidfd] = running
        self._waiting_ready[running.ready_fd] = running
        self._poll.register(running.pidfd, select.POLLIN)
        self._poll.register(running.ready_fd, select.POLLIN)

    def run(self):
        """Watch the member until it has ended.

        Returns the signal that stopped it, None when it was removed from its cluster. Raises StartError with the
        reason and the exit status when a process failed.
        """
        while self._goes_on():
            self._turn(self._watchdog.seconds_left())
            self._watchdog.turn(self._plumbing.pages, not self._waiting_ready)
            if self._wanted == EXIT_RESTART and self._goes_on():
                self._restart()
            elif self._wanted == EXIT_REMOVED:
                break
        if self._failure is None:
            self._stop_in_order()
        if self._failure is not None:
            self._kill_all()
            raise self._failure
        return self._stop_signal

    def _goes_on(self):
        return self._running and self._failure is None and self._stop_signal is None

    def _restart(self):
        """Start every process anew. What clients and members send meanwhile waits at the listening sockets."""
        now = time.monotonic()
        if len(self._restarts) == RESTARTS_MAX and now - self._restarts[0] < RESTARTS_SECONDS:
            self._failure = StartError(
                f"restarted in place {RESTARTS_MAX} times within {RESTARTS_SECONDS:.0f} s: giving up", EXIT_INTERNAL
            )
            return
        self._restarts.append(now)
        self._observed.sources.meters[SUPERVISOR].count("restarts")
        self._wanted = None
        # What the others hold is of the state before, and nothing acknowledged is in them alone.
        self._kill_all()
        self._plumbing.close()
        log.info("restarting the member's processes in place: a snapshot of the leader replaces its state")
        self._start_children()

    def _turn(self, timeout_seconds):
        """Handle what happens next, or nothing within the time."""
        timeout_ms = None if timeout_seconds is None else max(0, int(timeout_seconds * 1000) + 1)
        events = self._poll.poll(timeout_ms)
        happened = {fd for fd, _ in events}
        # A service manager may send its signal to every process at once: ours explains why others end.
        if self._signals_read in happened:
            self._read_signals()
        # What a process says comes before its end: its reason is better than its exit status.
        for fd in happened & self._waiting_ready.keys():
            self._read_ready(fd)
        for fd in happened & self._running.keys():
            self._note_end(fd)

    def _read_ready(self, fd):
        running = self._waiting_ready.pop(fd)
        line = os.read(fd, READY_LINE_BYTES_MAX)
        self._poll.unregister(fd)
        os.close(fd)
        if not line:
            return  # it ended without a word; its end is the next event
        message = json.loads(line)
        if "error" in message:
            self._fail(message["error"], running)
        elif not self._waiting_ready and self._failure is None:
            took = time.monotonic() - self._started_at
            log.info("ready to serve client requests", took=f"{took * 1000:.1f}ms")
            notify("READY=1")
            if self._reload_wanted:
                self._reload()

    def _fail(self, reason, running, exit_status=1):
        if self._failure is None:
            self._failure = StartError(reason, exit_status, process=running.process, pid=running.pid)

    def _note_end(self, pidfd):
        running = self._running.pop(pidfd)
        self._poll.unregister(pidfd)
        exit_status, signal_number = children.reap(running)
        if running.ready_fd in self._waiting_ready:
            self._read_ready(running.ready_fd)
        stopping = self._stop_signal is not None or self._wanted == EXIT_REMOVED
        # A process that is asked to stop before it has got so far as to listen ends by the signal itself.
        if stopping and (exit_status == 0 or signal_number == signal.SIGTERM):
            return
        if running.process == "consensus" and exit_status in (EXIT_RESTART, EXIT_REMOVED):
            self._wanted = exit_status
            return
        self._fail(
            children.describe_end(running.process, exit_status, signal_number),
            running,
            exit_status if exit_status else 1,
        )

    def _read_signals(self):
        for number in os.read(self._signals_read, 64):
            if number == signal.SIGHUP:
                self._reload_wanted = True
            if number not in (signal.SIGTERM, signal.SIGINT):
                continue
            if self._stop_signal is None:
                name = "terminated" if number == signal.SIGTERM else "interrupt"
                log.info("received signal; shutting down", signal=name)
                self._stop_signal = number
        if self._reload_wanted and not self._waiting_ready and self._goes_on():
            self._reload()

    def _reload(self):
        """Read the settings again and tell every process what is new. A file that is wrong changes nothing."""
        self._reload_wanted = False
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        log.reopen()
        self._config = read_reloadable(self._config, self._read_again)
        log.set_level(self._config.log_level)
        reload.write(self._reload_fd, self._config)
        for running in self._running.values():
            self._signal(running, signal.SIGHUP)
        notify("READY=1")

    def _stop_in_order(self):
        """Stop in the direction the data flows, so that each process sees the last of what comes to it."""
        if self._wanted == EXIT_REMOVED:
            log.warn("server error", error="the member has been permanently removed from the cluster")
            log.warn("data-dir used by this member must be removed")
        # From here on nobody new is kept waiting.
        for listeners in (self._peer_listeners, *self._listeners):
            close_listeners(listeners)
        notify("STOPPING=1")
        log.info("closing etcd server", name=self._config.name, data_dir=self._config.data_dir)
        for role, seconds in STOP_SECONDS.items():
            stopping = [r for r in self._running.values() if r.process.startswith(role)]
            for running in stopping:
                self._signal(running, signal.SIGTERM)
            deadline = time.monotonic() + seconds
            while self._failure is None and any(r.pidfd in self._running for r in stopping):
                left = deadline - time.monotonic()
                if left <= 0:
                    for running in (r for r in stopping if r.pidfd in self._running):
                        log.warn("process did not stop in time; killing it", process=running.process)
                        self._discard(running)
                    break
                self._turn(left)
            if self._failure is not None:
                return
        log.info("closed etcd server", name=self._config.name, data_dir=self._config.data_dir)

    def _signal(self, running, number):
        try:
            signal.pidfd_send_signal(running.pidfd, number)
        except ProcessLookupError:  # ended already; its pidfd will say so
            pass

    def _discard(self, running):
        self._signal(running, signal.SIGKILL)
        self._poll.unregister(running.pidfd)
        del self._running[running.pidfd]
        if self._waiting_ready.pop(running.ready_fd, None):
            self._poll.unregister(running.ready_fd)
            os.close(running.ready_fd)
        children.reap(running)

    def _kill_all(self):
        # Killed, not asked: after a fault each further step of the others could only do harm, and what is
        # acknowledged is on disk.
        for running in list(self._running.values()):
            self._discard(running)
