"""/health, /livez, /readyz and /version, as etcd 3.7 answers them.

Reads are real calls of the member, one key that need not exist, with the time limit of any call.
"""

import json

from etcdfast import version
from etcdfast._ext import meters
from etcdfast._ext.ring import APPLY_WORDS, CONSENSUS_WORDS
from etcdfast.api import errors
from etcdfast.frontend.http.request import NOSNIFF, TEXT
from etcdfast.frontend.http.routes import EVERYWHERE

RPC_RANGE = 1
ALARM_NAMES = ((1, "NOSPACE"), (2, "CORRUPT"))
CORRUPT_BIT = 2
# RangeRequest{key: "\0", limit: 1, keys_only: true} behind its gRPC prefix, and the same serializable.
READ = b"\0\0\0\0\7\x0a\x01\0\x18\1\x40\1"
SERIALIZABLE_READ = b"\0\0\0\0\x09\x0a\x01\0\x18\1\x38\1\x40\1"
# With auth on nobody asks here; that it refuses shows that it works.
FINE_ERRORS = frozenset(errors.ERRORS[errors.ID[symbol]].text for symbol in ("USER_EMPTY", "PERMISSION_DENIED"))
LIVEZ = ("serializable_read",)
READYZ = ("data_corruption", "serializable_read", "linearizable_read", "non_learner")
NOT_DECIDED = "not_decided"


class Health:
    def __init__(self, consensus_page, apply_page):
        self._consensus = consensus_page
        self._apply = apply_page

    def add_to(self, routes):
        routes.add("/health", self.health, EVERYWHERE)
        routes.add("/livez", lambda request: self._probe(request, LIVEZ), EVERYWHERE)
        routes.add("/readyz", lambda request: self._probe(request, READYZ), EVERYWHERE)
        for prefix, names in (("/livez/", LIVEZ), ("/readyz/", READYZ)):
            for name in names:
                routes.add(prefix + name, lambda request, name=name: self._probe(request, (name,)), EVERYWHERE)
        routes.add("/version", self.version)

    # ---- /health

    def health(self, request):
        if request.method != "GET":
            request.not_allowed()
            return
        query = request.query_values()
        excluded = query.get("exclude", ())
        alarms = self._apply[APPLY_WORDS["alarms"]]
        serializable = query.get("serializable", [""])[0] == "true"
        raised = [name for bit, name in ALARM_NAMES if alarms & bit and name not in excluded]
        if raised:
            _say_health(request, f"ALARM {raised[0]}")
        elif not serializable and not self._consensus[CONSENSUS_WORDS["leader"]]:
            _say_health(request, "RAFT NO LEADER")
        else:
            self._read(request, serializable, lambda error: _say_health(request, error and f"RANGE ERROR:{error}"))

    def _read(self, request, serializable, then):
        """then(error): None, or what the read failed with."""

        def on_answer(frames, code, text):
            if code < 0:
                return
            then(None if code == 0 or text in FINE_ERRORS else text)

        if not request.call(RPC_RANGE, SERIALIZABLE_READ if serializable else READ, True, on_answer):
            then("the connection is gone")

    # ---- /livez and /readyz

    def _probe(self, request, names):
        if request.method != "GET":
            request.not_allowed()
            return
        query = request.query_values()
        excluded = query.get("exclude", ())
        self._check(request, [name for name in names if name not in excluded], [], "verbose" in query)

    def _check(self, request, names, found, verbose):
        """One after another: each may have to wait for its read."""
        if not names:
            _say_probe(request, found, verbose)
            return
        name, rest = names[0], names[1:]

        def then(error):
            _count(request, name, error)
            self._check(request, rest, [*found, (name, error)], verbose)

        if name == "data_corruption":
            then("alarm activated: CORRUPT" if self._apply[APPLY_WORDS["alarms"]] & CORRUPT_BIT else None)
        elif name == "non_learner":
            then("local member is a learner" if self._consensus[CONSENSUS_WORDS["learner"]] else None)
        elif name == "linearizable_read" and not self._consensus[CONSENSUS_WORDS["leader"]]:
            then("RAFT NO LEADER")
        else:
            self._read(request, name == "serializable_read", lambda error: then(error and f"range error: {error}"))

    # ---- /version

    def version(self, request):
        if request.method != "GET":
            request.not_allowed()
            return
        known = cluster_version(self._consensus)
        body = {"etcdserver": version.SERVER_VERSION, "etcdcluster": known or NOT_DECIDED}
        if known:
            body["storage"] = known
        request.respond(200, json.dumps(body, separators=(",", ":")).encode(), "application/json")


def cluster_version(consensus_page):
    """The version that this member knows the cluster to have, "" before it is decided."""
    word = CONSENSUS_WORDS.get("cluster_version")
    packed = consensus_page[word] if word is not None else 0
    return f"{packed >> 32}.{packed >> 16 & 0xFFFF}.{packed & 0xFFFF}" if packed else ""


def _say_health(request, reason):
    meters.count("health_failures" if reason else "health_success")
    body = json.dumps({"health": "false" if reason else "true", "reason": reason or ""}, separators=(",", ":"))
    if reason:
        request.error(503, body)
    else:
        request.respond(200, body.encode(), TEXT)


def _count(request, name, error):
    word = f"{request.path.split('/')[1]}_{name}"
    meters.count(f"{word}_error" if error else f"{word}_success")
    meters.put(f"{word}_now", 0 if error else 1)


def _say_probe(request, found, verbose):
    lines = "".join(f"[-]{name} failed: {error}\n" if error else f"[+]{name} ok\n" for name, error in found)
    if any(error for _, error in found):
        request.error(503, lines)
    else:
        request.respond(200, ((lines if verbose else "") + "ok\n").encode(), TEXT, [NOSNIFF])
