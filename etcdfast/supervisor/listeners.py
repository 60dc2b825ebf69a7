"""Listening sockets, bound by the supervisor so that an address in use is one clear line at the start."""

import contextlib
import os
import socket
import stat

from etcdfast.config.values import split_host_port, split_url
from etcdfast.supervisor.errors import StartError

# Connections that wait for accept; the kernel lowers it to net.core.somaxconn. A start under load finds
# all clients waiting here until the member is ready.
BACKLOG = 4096


def _bind_tcp(host, port, shared):
    # Go, and so etcd, listens on the first address of a name and prefers IPv4.
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listener = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6 and host not in ("::", ""):
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _open_tcp(address, count, shared):
    host, port = split_host_port(address)
    listeners = []
    if count > 1 and not shared:
        # SO_REUSEPORT lets a second member of the same user join the port unseen. A socket without it
        # finds out who is there, and settles the port when 0 was asked for.
        with _bind_tcp(host, port, shared=False) as probe:
            probe.listen(1)
            port = probe.getsockname()[1]
    for _ in range(count):
        listeners.append(_bind_tcp(host, port, shared or count > 1))
        port = listeners[0].getsockname()[1]
    return listeners


def _open_unix(path, count):
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)  # left behind by a member that was killed; a living one holds the data directory
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    # A path cannot be bound twice: the frontends share one socket.
    return [listener, *(listener.dup() for _ in range(count - 1))]


def client_urls(config):
    """[(url, role)] of everything a frontend listens on; `ipc/boot.py` says what the roles are."""
    plain_role = "grpc" if config.listen_client_http_urls else "client"
    return [
        *((url, plain_role) for url in config.listen_client_urls),
        *((url, "http") for url in config.listen_client_http_urls),
        *((url, "metrics") for url in config.listen_metrics_urls),
    ]


def open_listeners(wanted, frontends, shared=False):
    """Bind and listen on every URL of [(url, role)]: [frontend][k] = (url, socket, role).

    `shared`: another program may have the port open too (SO_REUSEPORT); connections are then divided among them.
    A port 0 is settled by the kernel; the URL returned has the real one.
    Raises StartError with a line that names the URL.
    """
    by_frontend = [[] for _ in range(frontends)]
    for url, role in wanted:
        scheme, address = split_url(url)
        is_unix = scheme in ("unix", "unixs")
        try:
            found = _open_unix(address, frontends) if is_unix else _open_tcp(address, frontends, shared)
            for listener in found:
                listener.listen(BACKLOG)
        except OSError as err:
            raise StartError(f"listen on {url}: {(err.strerror or str(err)).lower()}") from None
        except OverflowError:
            raise StartError(f"listen on {url}: invalid port") from None
        if not is_unix:
            host, _ = split_host_port(address)
            port = found[0].getsockname()[1]
            url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        for listeners, listener in zip(by_frontend, found):
            listeners.append((url, listener, role))
    return by_frontend


def close_listeners(listeners):
    """Close [(url, socket, role)]; a unix socket's file goes too."""
    for url, listener, _ in listeners:
        listener.close()
        scheme, path = split_url(url)
        if scheme in ("unix", "unixs"):
            with contextlib.suppress(OSError):
                os.unlink(path)
