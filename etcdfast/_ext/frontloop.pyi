"""The epoll loop of a frontend process; the interpreter lock is released while it runs."""

from collections.abc import Iterable, Sequence

from etcdfast._ext.ring import Ring, StatusPage
from etcdfast._ext.tlscontext import TlsContext
from etcdfast._ext.tokenpage import TokenReader

# Why run() came back
RUN_WAKEUP: int  # the wakeup descriptor is readable: a signal came
RUN_LIFE: int  # the supervisor is gone
RUN_DRAINED: int  # begin_drain() was called and no connection is left
RUN_HTTP: int  # fronthttp.HttpFace has news
RUN_BROKEN_RING: int  # the ring from apply holds what is no record
RUN_REJECTED: int  # take_rejected() has TLS handshakes that failed; once a second at most

class FrontLoop:
    def __init__(
        self,
        *,
        index: int,
        doorbell: int,
        to_consensus: Ring,
        to_apply: Ring,
        from_apply: Ring,
        consensus_page: StatusPage,
        apply_page: StatusPage,
        listeners: Sequence[int],
        wakeup: int,
        life: int,
        rpcs: Sequence[tuple[int, bytes, str, str]],
        errors: Sequence[tuple[int, bytes]],
        roles: Sequence[int] = (),
        knock: int = -1,
        message_bytes_max: int,
        txn_ops_max: int = 128,
        streams_max: int = 4096,
        connections_max: int = 4096,
        quota_bytes: int = 0,
        buffer_bytes_max: int = 536870912,
        request_timeout_seconds: float = 7.0,
        election_timeout_seconds: float = 1.0,
        ping_min_seconds: float = 5.0,
        keepalive_idle_seconds: float = 7200.0,
        keepalive_timeout_seconds: float = 20.0,
        header_seconds: float = 10.0,
        drain_seconds: float = 5.0,
        tls: TlsContext | None = None,
        tls_listeners: Iterable[int] = (),
        tokens: TokenReader | None = None,
        cert_names: bool = False,
        handshake_seconds: float = 10.0,
        handshakes_max: int = 1024,
    ) -> None:
        """Set up; nothing is accepted before run().

        Shapes: rpcs holds (id, path, kind, route) as in api/rpcs.py; errors holds (gRPC code, text) by
                error id; tls_listeners are indexes into listeners; roles: by listener, 0 all, 1 gRPC alone,
                2 HTTP alone, 3 HTTP for metrics; descriptors stay the caller's. knock: an eventfd by which another
                thread has run() return RUN_HTTP.
        Units:  message_bytes_max is the largest gRPC message taken, without its prefix; quota_bytes 0 = none;
                buffer_bytes_max is for what all connections hold together: above it the heaviest is closed.
        Errors: ValueError when a ring cannot hold such a message; OSError.
        """
    def run(self) -> int:
        """Serve until there is something for Python to do: a RUN_* value. Errors: OSError."""
    def set_quota(self, quota_bytes: int) -> None:
        """Bytes from which nothing more is stored; 0 = no limit."""
    def take_rejected(self) -> tuple[int, str, bytes]:
        """TLS handshakes that failed since the last call: how many, why the latest did, the sockaddr it came from."""
    def begin_drain(self) -> None:
        """Stop accepting, say GOAWAY, end when calls are answered or after drain_seconds."""
    def counters(self) -> dict:
        """Calls started and handled by RPC id and code, bytes, connections, buffers now and at their peak."""
