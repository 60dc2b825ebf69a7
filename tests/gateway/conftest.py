"""Real etcd and etcdfast side by side, once per module; each request goes to both."""

from __future__ import annotations

import pytest

from tests.gateway.web import Web
from tests.harness import EtcdfastServer, started_pair


class Pair:
    def __init__(self, left, right):
        self.left, self.right = left, right

    def both(self, method, path, body=None, headers=None):
        return tuple(web.ask(method, path, body, headers) for web in (self.left, self.right))

    def alike(self, method, path, body=None, headers=None, normal=lambda value: value):
        """Same status, headers and body; returns the body."""
        left, right = self.both(method, path, body, headers)
        what = f"{method} {path} {body!r}"[:300]
        assert right.status == left.status, f"{what}: {left.body!r} / {right.body!r}"
        assert normal(right.value) == normal(left.value), what
        assert right.compared == left.compared, what
        return right.value

    def post(self, path, body, **more):
        return self.alike("POST", f"/v3/{path}", body, **more)


@pytest.fixture(scope="module")
def servers():
    with started_pair() as pair:
        yield pair


@pytest.fixture(scope="module")
def pair(servers):
    with Web(servers[0]) as left, Web(servers[1]) as right:
        yield Pair(left, right)


@pytest.fixture(scope="module")
def web():
    """One of ours alone: what a test does to it need not happen to etcd, too."""
    with EtcdfastServer() as server, Web(server) as web:
        yield web
