"""Who may ask from where: the host whitelist (DNS rebinding) and CORS. As etcd, on client listeners alone."""

from etcdfast.frontend.http.routes import CLIENTS, METRICS


class Access:
    def __init__(self, cors, host_whitelist):
        self._any_origin = not cors or "*" in cors
        self._origins = frozenset(cors)
        self._any_host = not host_whitelist or "*" in host_whitelist
        self._hosts = frozenset(host_whitelist)
        self._common = _cors("*")
        self.is_secure = lambda request: False  # whether its connection is TLS
        self.refuses_cn = lambda request: False  # whether its certificate's name would be ignored

    def cors_lines(self, request):
        if request.role == METRICS:
            return ""
        if self._any_origin:
            return self._common
        origin = request.headers.get("origin", "")
        return _cors(origin) if origin in self._origins else ""

    def refused(self, request):
        """Answer it here if it may not be served, or asks what is allowed."""
        if request.role not in CLIENTS:
            return False
        if not self._any_host and not self.is_secure(request):
            host = _host_name(request.headers.get("host", ""))
            if host not in self._hosts:
                request.cors = ""
                request.error(421, _unknown_host(host))
                return True
        if self.refuses_cn(request):
            request.cors = ""
            request.error(
                400, "CommonName of client sending a request against gateway will be ignored and not used as expected"
            )
            return True
        if request.method == "OPTIONS":
            request.respond(200, b"", "")
            return True
        return False


def _cors(origin):
    return (
        "Access-Control-Allow-Headers: accept, content-type, authorization\r\n"
        "Access-Control-Allow-Methods: POST, GET, OPTIONS, PUT, DELETE\r\n"
        f"Access-Control-Allow-Origin: {origin}\r\n"
    )


def _host_name(host):
    """Without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, _ = host.rpartition(":")
    return name if colon else host


def _unknown_host(host):
    return (
        f'\nThe request was understood, but "{host}" in its Host header is no name of this server, so it was refused: '
        "a web page could otherwise have the name of its own site resolve to this address.\n\n"
        "Either serve clients by TLS, which needs no list, or add the name to the list:\n"
        f'- e.g. etcd --host-whitelist "{host}"\n'
    )
