"""/metrics and /debug/*: the supervisor makes the answers, see metrics/channel.py.

A thread per request waits for it, asleep in the kernel. It is not nice: what little it does holds the lock that the
loop needs, so it had better be done with.
"""

import threading
from urllib.parse import parse_qs

from etcdfast.frontend.http.request import TEXT
from etcdfast.frontend.http.routes import CLIENTS, EVERYWHERE
from etcdfast.metrics import channel

WAITING_MAX = 16
ANSWER_SECONDS = 30.0
PROFILE_SECONDS_MAX = 300.0
PROFILE_SECONDS_MORE = 60.0  # behind the time a profile takes


class Observed:
    def __init__(self, fd):
        self._fd = fd
        self._waiting = threading.Semaphore(WAITING_MAX)

    def add_to(self, routes):
        routes.add("/metrics", self.answer, EVERYWHERE)
        for path in ("/debug/vars", "/debug/profile", "/debug/pprof/"):
            routes.add(path, self.answer, CLIENTS)

    def answer(self, request):
        if request.method not in ("GET", "HEAD") and request.path != "/metrics":
            request.not_allowed()
        elif not self._waiting.acquire(blocking=False):
            request.error(503, "too many requests of this kind wait")
        else:
            threading.Thread(target=self._ask, args=(request,), name="observed", daemon=True).start()

    def _ask(self, request):
        try:
            answer = self._made(request)
        finally:
            self._waiting.release()
        request.server.answer_from_thread(request, answer)

    def _made(self, request):
        asked = {name: values[-1] for name, values in parse_qs(request.query).items()}
        seconds = ANSWER_SECONDS
        if request.path == "/debug/profile":
            seconds = _seconds(asked) + PROFILE_SECONDS_MORE
        question = {
            "path": request.path,
            "query": asked,
            "accept_encoding": request.headers.get("accept-encoding", ""),
        }
        try:
            status, headers, body = channel.ask(self._fd, question, seconds)
        except channel.Unavailable as err:
            return 503, f"{err}\n".encode(), TEXT, ()
        return status, body, headers.pop("Content-Type", TEXT), tuple(headers.items())


def _seconds(asked):
    try:
        return min(PROFILE_SECONDS_MAX, max(0.0, float(asked.get("seconds", 0))))
    except ValueError:
        return 0.0
