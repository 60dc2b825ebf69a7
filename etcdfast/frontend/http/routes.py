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
    __slots__ = ("handler", "roles", "streams", "folder")

    def __init__(self, handler, roles, streams, folder):
        self.handler = handler
        self.roles = roles
        self.streams = streams
        self.folder = folder


class Routes:
    def __init__(self):
        self._exact = {}
        self._below = []  # (prefix, route), longest first

    def add(self, path, handler, roles=CLIENTS, streams=False):
        """`streams`: the handler is called as soon as the headers are there and takes the body piece by piece
        (request.on_body). Otherwise it is called with the whole body, which is bounded."""
        route = Route(handler, roles, streams, path.endswith("/"))
        if path.endswith("/"):
            self._below.append((path, route))
            self._below.sort(key=lambda entry: -len(entry[0]))
        else:
            self._exact[path] = route

    def is_folder(self, path, role):
        """Whether only the path with a slash behind it is served, which is where Go sends clients then."""
        return path not in self._exact and any(
            prefix == path + "/" and route.folder and role in route.roles for prefix, route in self._below
        )

    def find(self, path, role):
        """None when nobody serves the path on a listener of that role."""
        route = self._exact.get(path)
        if route is None:
            for prefix, below in self._below:
                if path.startswith(prefix):
                    route = below
                    break
        return route if route is not None and role in route.roles else None
