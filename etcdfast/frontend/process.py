"""One frontend: maps the rings, waits until the member can answer, serves until told to stop."""

import os
import resource
import select
import signal
import socket
import sys

from etcdfast import log
from etcdfast._ext import frontloop
from etcdfast._ext.ring import APPLY_WORDS, Ring, StatusPage
from etcdfast._ext.tlscontext import TlsContext, TlsError, TlsOptions
from etcdfast._ext.tokenpage import TokenReader
from etcdfast.api.errors import ERRORS
from etcdfast.api.rpcs import RPCS
from etcdfast.config import clienttls
from etcdfast.config.checks import is_tls
from etcdfast.frontend.http import gateway
from etcdfast.frontend.http.health import Health
from etcdfast.frontend.http.observed import Observed
from etcdfast.frontend.http.routes import ROLES
from etcdfast.frontend.http.server import HttpServer
from etcdfast.ipc import boot as boot_module

# etcd allows 2^32-1 streams. A stream costs up to 64 KiB of request before its window ends, so one
# connection could hold memory without bound; clients queue beyond the limit they are told.
STREAMS_MAX = 4096
# Descriptors kept for everything that is no client connection (etcd: reservedInternalFDNum).
RESERVED_DESCRIPTORS = 150
CONNECTIONS_MAX = 1 << 16
# What unfinished requests, open streams and unread answers of all connections may take. Honest loads stay far
# below: clients that read hold nothing, and 4000 requests of 64 KiB under way are 256 MiB. On a small
# machine the store needs its memory more than clients that do not read.
BUFFER_BYTES_MAX = 512 << 20
BUFFER_SHARE_OF_MEMORY = 8
WAIT_LOG_SECONDS = 30.0


def serve(boot):
    """Run until SIGTERM or the supervisor's end. Returns the exit status."""
    signal_fd = _signals_to_descriptor()
    index, rings, doorbells = boot.index, boot.rings, boot.doorbells
    to_consensus = Ring(rings[f"f{index}c"], doorbells["consensus"])
    to_apply = Ring(rings[f"f{index}a"], doorbells["apply"])
    from_apply = Ring(rings[f"af{index}"], doorbells["apply"])
    consensus_page = StatusPage(boot.status["consensus"])
    apply_page = StatusPage(boot.status["apply"])
    if not _wait_for_apply(boot, apply_page, signal_fd):
        return 0
    listen = boot.listen
    try:
        tls = _tls_context(boot.config, listen)
    except TlsError as err:
        boot.tell_failed(str(err))
        return 1
    roles = [ROLES[role] for _, _, role in listen]
    knock = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    loop = frontloop.FrontLoop(
        index=index,
        doorbell=boot.doorbell,
        to_consensus=to_consensus,
        to_apply=to_apply,
        from_apply=from_apply,
        consensus_page=consensus_page,
        apply_page=apply_page,
        listeners=[fd for _, fd, _ in listen],
        roles=roles,
        knock=knock,
        wakeup=signal_fd,
        life=boot.life_fd,
        tokens=TokenReader(boot.tokens) if boot.tokens >= 0 else None,
        cert_names=boot.config.client_cert_auth,
        tls=tls,
        tls_listeners=[i for i, (url, _, _) in enumerate(listen) if is_tls(url)],
        share_figures=boot.meters_fd >= 0,
        **settings(boot.config),
    )
    http = http_server(loop, boot.config, roles, knock, consensus_page, apply_page, boot.observe_fd)
    for _, fd, _ in listen:
        os.set_blocking(fd, False)
    boot.on_reload(lambda config: loop.set_quota(config.quota_bytes))
    if tls is not None:
        boot.on_reload(lambda config: tls.reload())
    boot.tell_ready()
    log.info("serving client requests", frontend=index, addresses=[url for url, _, _ in listen])
    return _run(loop, http, signal_fd, boot)


def _tls_context(config, listen):
    if not any(is_tls(url) for url, _, _ in listen):
        return None
    options = TlsOptions(**clienttls.serving(config))
    return TlsContext(options, lambda level, text: getattr(log, level)(text, cert=options.cert_file))


def _log_rejected(loop):
    count, why, address = loop.take_rejected()
    more = {"rejected": count} if count > 1 else {}
    log.warn("rejected connection", remote_addr=_shown_address(address), error=why, **more)


def _shown_address(sockaddr):
    """host:port of a sockaddr as the kernel has it; "" of anything but TCP."""
    family = int.from_bytes(sockaddr[:2], sys.byteorder)
    port = int.from_bytes(sockaddr[2:4], "big")
    if family == socket.AF_INET and len(sockaddr) >= 8:
        return f"{socket.inet_ntop(family, sockaddr[4:8])}:{port}"
    if family == socket.AF_INET6 and len(sockaddr) >= 24:
        return f"[{socket.inet_ntop(family, sockaddr[8:24])}]:{port}"
    return ""


def settings(config):
    """Arguments of FrontLoop that follow from the configuration and the tables."""
    return {
        "rpcs": [(rpc.id, rpc.path.encode(), rpc.kind, rpc.route) for rpc in RPCS],
        "errors": [(row.code, row.text.encode()) for row in ERRORS],
        "message_bytes_max": config.message_bytes_max,
        "txn_ops_max": config.max_txn_ops,
        "streams_max": max(1, min(config.max_concurrent_streams, STREAMS_MAX)),
        "connections_max": _connections_max(),
        "quota_bytes": config.quota_bytes,
        "buffer_bytes_max": _buffer_bytes_max(config.frontend_count),
        "request_timeout_seconds": config.request_timeout_seconds,
        "election_timeout_seconds": config.election_timeout / 1000,
        "ping_min_seconds": config.grpc_keepalive_min_time,
        "keepalive_idle_seconds": config.grpc_keepalive_interval,
        "keepalive_timeout_seconds": config.grpc_keepalive_timeout,
    }


def http_server(loop, config, roles, knock, consensus_page, apply_page, observe_fd=-1):
    """The server of what is not gRPC, with all its routes."""
    server = HttpServer(
        loop,
        roles,
        knock,
        cors=config.cors,
        host_whitelist=config.host_whitelist,
        message_bytes_max=config.message_bytes_max,
    )
    Health(consensus_page, apply_page).add_to(server.routes)
    if observe_fd >= 0:
        Observed(observe_fd).add_to(server.routes)
    server.access.is_secure = lambda request: server.face.secure(request.handle)
    if config.enable_grpc_gateway:
        gateway.add_to(server.routes)
        auth_word = APPLY_WORDS["auth_enabled"]
        if config.client_cert_auth:
            # The name in the certificate would be the gateway's own in etcd, so it refuses.
            server.access.refuses_cn = lambda request: (
                request.path.startswith("/v3/") and apply_page[auth_word] and bool(request.cert_cn)
            )
    return server


def _buffer_bytes_max(frontends):
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(BUFFER_BYTES_MAX, memory_bytes // BUFFER_SHARE_OF_MEMORY) // frontends


def _connections_max():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, CONNECTIONS_MAX)
    soft = max(soft, min(hard, CONNECTIONS_MAX + RESERVED_DESCRIPTORS))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return max(16, min(CONNECTIONS_MAX, soft - RESERVED_DESCRIPTORS))


def _signals_to_descriptor():
    """SIGTERM becomes readable bytes: the loop runs outside the interpreter, where no handler would run."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    return reader.detach()


def _wait_for_apply(boot, apply_page, signal_fd):
    """True once apply answers; False when told to stop before. Ends the process with the supervisor."""
    ready_word = APPLY_WORDS["ready"]
    while not apply_page[ready_word]:
        readable, _, _ = select.select([boot.doorbell, signal_fd, boot.life_fd], [], [], WAIT_LOG_SECONDS)
        if boot.life_fd in readable:
            os._exit(1)
        if signal_fd in readable:
            return False
        if boot.doorbell in readable:
            os.eventfd_read(boot.doorbell)
        if not readable:
            log.info("waiting for the store before accepting clients", frontend=boot.index)
    return True


def _run(loop, http, signal_fd, boot):
    index = boot.index
    while True:
        why = loop.run()
        if why == frontloop.RUN_HTTP:
            http.turn()
        elif why == frontloop.RUN_WAKEUP:
            numbers = os.read(signal_fd, 4096)
            if signal.SIGHUP in numbers:
                boot.reload()
            if signal.SIGTERM in numbers:
                log.info("draining client connections", frontend=index, connections=loop.counters()["connections"])
                loop.begin_drain()
                http.begin_drain()
        elif why == frontloop.RUN_REJECTED:
            _log_rejected(loop)
        elif why == frontloop.RUN_DRAINED:
            log.info("stopped serving client requests", frontend=index)
            return 0
        elif why == frontloop.RUN_LIFE:
            os._exit(1)
        else:
            log.fatal("the ring from apply is broken", frontend=index)
            return boot_module.EXIT_INTERNAL
