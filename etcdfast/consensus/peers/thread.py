"""The peer thread: an event loop of its own, driven by the main thread through the methods of `PeerThread`."""

import asyncio
import threading

from etcdfast import log
from etcdfast._ext.peerlink import STREAMS
from etcdfast.consensus.peers import snapshots
from etcdfast.consensus.peers.client import POSTS_BYTES_MAX, PeerClient
from etcdfast.consensus.peers.http1 import HttpError
from etcdfast.consensus.peers.routes import Routes
from etcdfast.consensus.peers.server import Server
from etcdfast.consensus.peers.streams import StreamDialer

COMMANDS_MAX = 8192  # that the thread has not taken yet; beyond, posts and questions are refused
ASKS_MAX = 64  # under way to one member
STOP_SECONDS = 5.0


class PeerThread:
    """Peer HTTP of one member. All public methods are for the main thread and return at once.

    `settings` is PeerSettings; `listeners` are (listening socket, whether it speaks TLS), the sockets owned from here
    on; `view` a View; `inbox` an Inbox, which the caller closes after `stop`; `tls` a PeerTls, None where nobody needs
    one. A member id given to post, ask or send_snapshot may also be one that is in no view but has told its URLs
    (X-PeerURLs): a fresh joiner.
    """

    def __init__(self, settings, listeners, view, inbox, tls=None):
        self.settings = settings
        self.tls = tls
        self.view = view
        self.inbox = inbox
        self.receiver = snapshots.Receiver(settings.snap_dir, settings.snapshot_message_bytes_max)
        self._listeners = list(listeners)
        self._commands = 0
        self._command_bytes = 0
        self._lock = threading.Lock()  # of the two counters: both threads change them
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._main, name="peers", daemon=True)
        self._loop = None
        # of the thread itself
        self._clients = {}  # peer -> PeerClient
        self._dialled = {}  # peer -> ({kind: StreamDialer}, [tasks])
        self._sending = set()  # peers a snapshot goes to
        self._asking = {}  # peer -> questions under way
        self._tasks = set()
        self._stopped = None

    # ---- for the main thread ---------------------------------------------------------------------

    def start(self):
        """Serve; returns when the event loop runs. Errors: OSError of the snapshot directory."""
        snapshots.remove_leftovers(self.settings.snap_dir)
        for listener, _ in self._listeners:
            listener.setblocking(False)
        self._thread.start()
        self._started.wait()

    def stop(self):
        """End the thread and close its sockets; those given to the main thread stay."""
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._stopped.set)
            except RuntimeError:
                pass
        self._thread.join(STOP_SECONDS)

    def set_view(self, view):
        self.view = view

    def dial(self, peer):
        """Keep streams from this member of the view, and probe it. Nothing when it is dialled already."""
        self._command(0, self._dial, peer)

    def undial(self, peer):
        """Stop that; streams handed over already are the main thread's to close."""
        self._command(0, self._undial, peer)

    def stream_lost(self, peer, kind):
        """The stream that came as "stream_in" is broken: dial it again."""
        self._command(0, self._stream_lost, peer, kind)

    def post(self, peer, message, done=None):
        """POST /raft a marshalled message; done(ok) comes back as "call", a failure as "unreachable" too."""
        if not self._command(len(message), self._post, peer, message, done):
            self.inbox.put("unreachable", peer)
            if done is not None:
                self.inbox.put("call", done, (False,))

    def send_snapshot(self, peer, message, path, done):
        """POST /raft/snapshot: a marshalled MsgSnap and the database at `path`, which must stay until done(ok)."""
        self._command(0, self._send_snapshot, peer, message, path, done)

    def ask(self, peer, method, path, body, done, headers=None, timeout_seconds=5.0):
        """One HTTP request to a member; done(status, headers, body). Status 0: it could not be asked, body says why."""
        if not self._command(len(body), self._ask, peer, method, path, body, headers, timeout_seconds, done):
            self.inbox.put("call", done, (0, {}, b"too many requests"))

    def _command(self, size, function, *arguments):
        """False when too much waits for the thread. Only what carries bytes is refused: the rest is rare."""
        with self._lock:
            bounded = function == self._post or function == self._ask
            full = self._commands >= COMMANDS_MAX or (self._commands and self._command_bytes + size > POSTS_BYTES_MAX)
            if bounded and full:
                return False
            self._commands += 1
            self._command_bytes += size
        try:
            self._loop.call_soon_threadsafe(self._carry_out, size, function, arguments)
        except RuntimeError:  # the thread has ended; "failed" says why, if it was not told to
            return False
        return True

    # ---- in the thread ---------------------------------------------------------------------------

    def _carry_out(self, size, function, arguments):
        with self._lock:
            self._commands -= 1
            self._command_bytes -= size
        function(*arguments)

    def _main(self):
        try:
            asyncio.run(self._run())
        except Exception as err:
            log.error("the peer thread failed", error=f"{type(err).__name__}: {err}")
            self.inbox.put("failed", f"the peer thread failed: {type(err).__name__}: {err}")
        finally:
            self._started.set()

    async def _run(self):
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        routes = Routes(self)
        self._remotes = routes.remotes
        server = Server(routes.handle, self.settings.connections_max, self.settings.bodies_bytes_max)
        listening = [
            asyncio.create_task(server.listen(listener, self.tls if secure else None))
            for listener, secure in self._listeners
        ]
        stopped = asyncio.create_task(self._stopped.wait())
        self._started.set()
        try:
            done, _ = await asyncio.wait([*listening, stopped], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await server.close()
            tasks = [*listening, stopped, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for client in self._clients.values():
                client.close()
            for listener, _ in self._listeners:
                listener.close()

    def spawn(self, coroutine):
        """A task of this thread that ends with it."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task):
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            err = task.exception()
            log.error("a task of the peer thread failed", error=f"{type(err).__name__}: {err}")
            self.inbox.put("failed", f"a task of the peer thread failed: {type(err).__name__}: {err}")

    def _urls(self, peer):
        return self.view.peer_urls.get(peer) or self._remotes.get(peer) or ()

    def _client(self, peer):
        client = self._clients.get(peer)
        if client is None:
            # Members come and go, and strangers may have announced themselves: forget those of neither kind.
            for other in [at for at in self._clients if not self._urls(at) and at not in self._dialled]:
                self._clients.pop(other).close()
            client = self._clients[peer] = PeerClient(self, peer, lambda: self._urls(peer))
        return client

    def _dial(self, peer):
        if peer in self._dialled:
            return
        dialers = {
            kind: StreamDialer(self, peer, name, kind, lambda: self._urls(peer)) for name, kind in STREAMS.items()
        }
        tasks = [self.spawn(dialer.run()) for dialer in dialers.values()]
        tasks.append(self.spawn(self._client(peer).probe_for_ever()))
        self._dialled[peer] = dialers, tasks

    def _undial(self, peer):
        _, tasks = self._dialled.pop(peer, ({}, []))
        for task in tasks:
            task.cancel()

    def _stream_lost(self, peer, kind):
        dialers, _ = self._dialled.get(peer, ({}, []))
        if kind in dialers:
            dialers[kind].lost()

    def _post(self, peer, message, done):
        self._client(peer).post(message, done)

    def _ask(self, peer, method, path, body, headers, timeout_seconds, done):
        if self._asking.get(peer, 0) >= ASKS_MAX:
            self.inbox.put("call", done, (0, {}, b"too many requests"))
            return
        self._asking[peer] = self._asking.get(peer, 0) + 1
        self.spawn(self._ask_one(peer, method, path, body, headers, timeout_seconds, done))

    async def _ask_one(self, peer, method, path, body, headers, timeout_seconds, done):
        answer = (0, {}, b"the member is stopping")
        try:
            answer = await self._client(peer).request(method, path, body, headers, timeout_seconds)
        except (OSError, HttpError, ValueError) as err:
            answer = (0, {}, (str(err) or type(err).__name__).encode())
        finally:
            self._asking[peer] -= 1
            if not self._asking[peer]:
                del self._asking[peer]
            self.inbox.put("call", done, answer)

    def _send_snapshot(self, peer, message, path, done):
        if peer in self._sending:
            self.inbox.put("call", done, (False,))
            return
        self._sending.add(peer)
        self.spawn(self._send_one(peer, message, path, done))

    async def _send_one(self, peer, message, path, done):
        ok = False
        picker = self._client(peer).picker
        try:
            status = await snapshots.send(
                picker.pick(), self.view.request_headers(), message, path, self.settings.dial_seconds, self.tls
            )
            ok = status == 204
            if status == 403:
                self.inbox.put("removed")
            if not ok:
                log.warn("a peer refused a snapshot", remote_member=f"{peer:x}", status=status)
        except (OSError, HttpError, ValueError) as err:
            picker.failed()
            log.warn("failed to send a snapshot", remote_member=f"{peer:x}", error=str(err) or type(err).__name__)
        finally:
            self._sending.discard(peer)
            self.inbox.put("call", done, (ok,))
