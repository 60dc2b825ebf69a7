"""Which handler answers a path.

    routes.add("/metrics", handler)                       # that path alone
    routes.add("/livez/", handler, roles=HEALTH)          # ending in a slash: everything below it
    handler(request)                                      # answers by the means of request.Request

A longer path goes before a shorter one, as in Go's ServeMux.
"""

CLIENT, GRPC, HTTP, METRICS = range(4)
ROLES = {"client": CLIENT, "grpc": GRPC, "http": HTTP, "metrics": METRICS}  # as in _ext/frontconn.pxd

CLIENTS = frozenset({CLIENT, HTTP})
EVERYWHERE = frozenset({CLIENT, HTTP, METRICS})


class Route:
    __slots__ = ("handler", "roles", "streams")

    def __init__(self, handler, roles, streams):
        self.handler = handler
        self.roles = roles
        self.streams = streams


class Routes:
    def __init__(self):
        self._exact = {}
        self._below = []  # (prefix, route), longest first

    def add(self, path, handler, roles=CLIENTS, streams=False):
        """`streams`: the handler is called as soon as the headers are there and takes the body piece by piece
        (request.on_body). Otherwise it is called with the whole body, which is bounded."""
        route = Route(handler, roles, streams)
        if path.endswith("/"):
            self._below.append((path, route))
            self._below.sort(key=lambda entry: -len(entry[0]))
        else:
            self._exact[path] = route

    def find(self, path, role):
        """None when nobody serves the path on a listener of that role."""
        route = self._exact.get(path)
        if route is None:
            for prefix, below in self._below:
                if path.startswith(prefix):
                    route = below
                    break
        return route if route is not None and role in route.roles else None
