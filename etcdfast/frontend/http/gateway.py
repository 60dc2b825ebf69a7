"""The JSON gateway: every `/v3/*` route of etcd, each request a call of the member.

Status codes, bodies and headers are those of grpc-gateway 1 as etcd 3.5.1 has it (seen live, tests/gateway compare);
3.7 differs in error bodies, which its own tests do not look at.
"""

import json
import re

import orjson

from etcdfast.api import errors, rpcs
from etcdfast.frontend.http.goscan import NoValue, first_value
from etcdfast.frontend.http.jsonplans import JsonError, framed, plan_of, to_frame
from etcdfast.frontend.http.request import REASONS, is_websocket
from etcdfast.frontend.http.websocket import serve_websocket

JSON = "application/json"
PREFIX_BYTES = 5
ANSWER_BYTES_MAX = 256 << 20  # of one message; larger ones are refused instead of held in memory
THREAD_BYTES = 4 << 20  # messages from here on are converted beside the loop
PENDING_BYTES_MAX = 4 << 20  # of a stream's request that is not complete
GRPC_HEADER = (("Grpc-Metadata-Content-Type", "application/grpc"),)

HTTP_STATUS = {
    errors.OK: 200,
    errors.CANCELLED: 408,
    errors.UNKNOWN: 500,
    errors.INVALID_ARGUMENT: 400,
    errors.DEADLINE_EXCEEDED: 504,
    errors.NOT_FOUND: 404,
    6: 409,
    errors.PERMISSION_DENIED: 403,
    errors.RESOURCE_EXHAUSTED: 429,
    errors.FAILED_PRECONDITION: 400,
    10: 409,
    errors.OUT_OF_RANGE: 400,
    errors.UNIMPLEMENTED: 501,
    errors.INTERNAL: 500,
    errors.UNAVAILABLE: 503,
    errors.DATA_LOSS: 500,
    errors.UNAUTHENTICATED: 401,
}

# Path below /v3/ -> service and method.
PATHS = {
    "kv/range": "KV/Range",
    "kv/put": "KV/Put",
    "kv/deleterange": "KV/DeleteRange",
    "kv/txn": "KV/Txn",
    "kv/compaction": "KV/Compact",
    "watch": "Watch/Watch",
    "lease/grant": "Lease/LeaseGrant",
    "lease/revoke": "Lease/LeaseRevoke",
    "kv/lease/revoke": "Lease/LeaseRevoke",
    "lease/keepalive": "Lease/LeaseKeepAlive",
    "lease/timetolive": "Lease/LeaseTimeToLive",
    "kv/lease/timetolive": "Lease/LeaseTimeToLive",
    "lease/leases": "Lease/LeaseLeases",
    "kv/lease/leases": "Lease/LeaseLeases",
    "cluster/member/add": "Cluster/MemberAdd",
    "cluster/member/remove": "Cluster/MemberRemove",
    "cluster/member/update": "Cluster/MemberUpdate",
    "cluster/member/list": "Cluster/MemberList",
    "cluster/member/promote": "Cluster/MemberPromote",
    "maintenance/alarm": "Maintenance/Alarm",
    "maintenance/status": "Maintenance/Status",
    "maintenance/defragment": "Maintenance/Defragment",
    "maintenance/hash": "Maintenance/Hash",
    "maintenance/hashkv": "Maintenance/HashKV",
    "maintenance/snapshot": "Maintenance/Snapshot",
    "maintenance/transfer-leadership": "Maintenance/MoveLeader",
    "maintenance/downgrade": "Maintenance/Downgrade",
    "auth/enable": "Auth/AuthEnable",
    "auth/disable": "Auth/AuthDisable",
    "auth/status": "Auth/AuthStatus",
    "auth/authenticate": "Auth/Authenticate",
    "auth/user/add": "Auth/UserAdd",
    "auth/user/get": "Auth/UserGet",
    "auth/user/list": "Auth/UserList",
    "auth/user/delete": "Auth/UserDelete",
    "auth/user/changepw": "Auth/UserChangePassword",
    "auth/user/grant": "Auth/UserGrantRole",
    "auth/user/revoke": "Auth/UserRevokeRole",
    "auth/role/add": "Auth/RoleAdd",
    "auth/role/get": "Auth/RoleGet",
    "auth/role/list": "Auth/RoleList",
    "auth/role/delete": "Auth/RoleDelete",
    "auth/role/grant": "Auth/RoleGrantPermission",
    "auth/role/revoke": "Auth/RoleRevokePermission",
    "lock/lock": "Lock/Lock",
    "lock/unlock": "Lock/Unlock",
    "election/campaign": "Election/Campaign",
    "election/proclaim": "Election/Proclaim",
    "election/leader": "Election/Leader",
    "election/resign": "Election/Resign",
    "election/observe": "Election/Observe",
}

_RPC = {f"{rpc.service.rpartition('.')[2]}/{rpc.method}": rpc for rpc in rpcs.RPCS}


class Endpoint:
    """What one path calls; the plans are made with its first request."""

    __slots__ = ("rpc", "_request", "_response")

    def __init__(self, rpc):
        self.rpc = rpc
        self._request = self._response = None

    @property
    def request_plan(self):
        if self._request is None:
            self._request = plan_of(self.rpc.request)
        return self._request

    @property
    def response_plan(self):
        if self._response is None:
            self._response = plan_of(self.rpc.response)
        return self._response


def add_to(routes):
    """Serve the gateway's paths."""
    for path, name in PATHS.items():
        endpoint = Endpoint(_RPC[name])
        handler = {rpcs.UNARY: _unary, rpcs.SERVER_STREAM: _server_stream, rpcs.BIDI_STREAM: _bidi}[endpoint.rpc.kind]

        def handle(request, handler=handler, endpoint=endpoint):
            if request.upgrade and is_websocket(request):
                serve_websocket(request, lambda inner: handler(inner, endpoint), endpoint.rpc.kind == rpcs.BIDI_STREAM)
            elif request.method != "POST":
                request.error(405, "Method Not Allowed")
            else:
                handler(request, endpoint)

        routes.add(f"/v3/{path}", handle, streams=endpoint.rpc.kind == rpcs.BIDI_STREAM)
    routes.add("/v3/", lambda request: request.error(404, "Not Found"))


# ---- what requests of all kinds have in common

_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNIT_NS = {"H": 3600 * 10**9, "M": 60 * 10**9, "S": 10**9, "m": 10**6, "u": 1000, "n": 1}


def _begin(request, endpoint, frame, ends, on_answer):
    """Begin the call; what cannot begin is answered here."""
    headers = request.headers
    timeout_ns = 0
    if "grpc-timeout" in headers:
        match = _TIMEOUT.fullmatch(headers["grpc-timeout"])
        if match is None:
            _fail(request, errors.INVALID_ARGUMENT, f"invalid grpc-timeout: {headers['grpc-timeout']}")
            return False
        timeout_ns = max(1, int(match[1]) * _UNIT_NS[match[2]])
    token = headers.get("grpc-metadata-token") or headers.get("authorization") or ""
    token = token.removeprefix("Bearer ")  # etcd takes none with it; browsers' websockets cannot do without
    leader = headers.get("grpc-metadata-hasleader") == "true"
    rpc = endpoint.rpc
    request.body = b""  # it is in the call's message now
    request.release()
    if not request.call(rpc.id, frame, ends, on_answer, timeout_ns, leader, token.encode("latin-1", "replace")):
        _fail(request, errors.UNIMPLEMENTED, f"unknown method {rpc.method} for service {rpc.service}")
        return False
    return True


def _fail(request, code, text):
    if code == errors.DEADLINE_EXCEEDED:
        text = "context deadline exceeded"  # as the gateway's client in etcd, which sees it first
    shown = json.dumps(text or "", ensure_ascii=False)
    shown = shown.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    body = f'{{"error":{shown},"code":{code},"message":{shown}}}'.encode("utf-8", "replace")
    request.respond(HTTP_STATUS.get(code, 500), body, JSON)


# ---- one message each way


def _unary(request, endpoint):
    try:
        frame = to_frame(endpoint.request_plan, request.body)
    except JsonError as err:
        _fail(request, errors.INVALID_ARGUMENT, str(err))
        return
    plan = endpoint.response_plan
    parts = None

    def on_answer(frames, code, text):
        nonlocal parts
        if code < 0:
            if parts is None:
                parts = bytearray()
            parts += frames
            request.hold(len(frames))
            if len(parts) > ANSWER_BYTES_MAX:
                request.cancel_call()
                size = int.from_bytes(parts[1:PREFIX_BYTES], "big")
                text = f"grpc: received message larger than max ({size} vs. {ANSWER_BYTES_MAX})"
                _fail(request, errors.RESOURCE_EXHAUSTED, text)
            return
        if code > 0:
            _fail(request, code, text)
            return
        if parts is not None:
            parts += frames
            frames = bytes(parts)
            parts = None
        if len(frames) < THREAD_BYTES:
            request.respond(200, plan.to_json(frames, PREFIX_BYTES), JSON, GRPC_HEADER)
        else:
            request.respond_later(lambda: (200, plan.to_json(frames, PREFIX_BYTES), JSON, GRPC_HEADER))

    _begin(request, endpoint, frame, True, on_answer)


# ---- many messages back


def _lines(request, endpoint):
    """on_answer of a call whose messages become lines of a chunked answer."""
    plan = endpoint.response_plan
    left = b""
    begun = False

    def on_answer(frames, code, text):
        nonlocal left, begun
        data = left + frames if left else frames
        at, end = 0, len(data)
        lines = []
        while end - at >= PREFIX_BYTES:
            size = int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big") + PREFIX_BYTES
            if end - at < size:
                break
            message = data if at == 0 and size == end else data[at : at + size]
            lines.append(plan.to_json(message, PREFIX_BYTES, b'{"result":', b"}\n"))
            at += size
        left = data[at:]
        if lines:
            if not begun:
                begun = True
                request.begin(200, JSON, GRPC_HEADER)
            for line in lines:  # a chunk each, as in etcd: there are clients that take a chunk for a message
                request.write(line)
        if code < 0:
            return
        if code == 0:
            if not begun:
                request.begin(200, JSON, GRPC_HEADER)
            request.end()
        elif not begun:
            _fail(request, code, text)
        else:
            status = HTTP_STATUS.get(code, 500)
            error = {"grpc_code": code, "http_code": status, "message": text or "", "http_status": REASONS[status]}
            request.write(orjson.dumps({"error": error}))
            request.end()

    return on_answer


def _server_stream(request, endpoint):
    try:
        frame = to_frame(endpoint.request_plan, request.body)
    except JsonError as err:
        _fail(request, errors.INVALID_ARGUMENT, str(err))
        return
    _begin(request, endpoint, frame, True, _lines(request, endpoint))


# ---- many messages both ways

_OUTSIDE = re.compile(rb'["{}\[\]]')
_INSIDE = re.compile(rb'["\\]')


class _Messages:
    """JSON objects one after another, however their bytes are cut. Each byte is looked at once."""

    def __init__(self):
        self._data = bytearray()
        self._at = 0  # scanned so far
        self._depth = 0
        self._in_string = False

    def feed(self, data):
        """Yields the bytes of each object, and of whatever comes before one."""
        self._data += data
        while True:
            match = (_INSIDE if self._in_string else _OUTSIDE).search(self._data, self._at)
            if match is None:
                self._at = len(self._data)
                break
            token = match[0]
            self._at = match.end()
            if token == b'"':
                self._in_string = not self._in_string
            elif token == b"\\":
                if self._at == len(self._data):
                    self._at -= 1  # what it escapes has not come
                    break
                self._at += 1
            elif token in (b"{", b"["):
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth <= 0:
                    found = bytes(self._data[: self._at])
                    del self._data[: self._at]
                    self._at = self._depth = 0
                    yield found
        if len(self._data) > PENDING_BYTES_MAX:
            raise JsonError("a message is too large")

    @property
    def size(self):
        return len(self._data)

    def rest(self):
        return bytes(self._data)


def _bidi(request, endpoint):
    plan = endpoint.request_plan
    messages = _Messages()
    begun = ended = False

    def send(data):
        """False when it is no message: as in etcd the first one is an error, a later one ends the client's side."""
        nonlocal begun, ended
        try:
            try:
                frame = plan.to_frame(orjson.loads(data))
            except (orjson.JSONDecodeError, JsonError, UnicodeError):
                value, _ = first_value(data.decode("utf-8", "replace"))
                frame = framed(plan, value)
        except NoValue:
            return True
        except JsonError as err:
            if not begun:
                ended = True
                _fail(request, errors.UNKNOWN, str(err))
            else:
                finish()
            return False
        if begun:
            request.call_message(frame, False)
        else:
            begun = True
            ended = not _begin(request, endpoint, frame, False, _lines(request, endpoint))
        return True

    def finish():
        nonlocal begun, ended
        ended = True
        if begun:
            request.call_message(None, True)
        else:
            begun = True
            _begin(request, endpoint, None, True, _lines(request, endpoint))

    def on_body(data, is_last):
        if ended:
            return
        try:
            request.hold(len(data))
            for found in messages.feed(data):
                if not send(found) or ended:
                    return
        except JsonError as err:
            if begun:
                finish()
            else:
                _fail(request, errors.UNKNOWN, str(err))
            return
        if is_last and not ended and send(messages.rest()) and not ended:
            finish()
        request.hold(messages.size - request.held)

    request.on_body = on_body
