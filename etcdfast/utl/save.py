"""`snapshot save`: the database of a running member, etcd or etcdfast, into a file.

Written beside its place, checked against the SHA-256 that the member sends last, synced, renamed: a file of the
wanted name is always a whole snapshot. Source: formats.md 8.1.
"""

import contextlib
import getpass
import hashlib
import os
import time

import grpc

from etcdfast.api import grpc_stubs
from etcdfast.api.pb import rpc_pb2 as pb
from etcdfast.client.channels import open_channel, token_of
from etcdfast.client.security import Security, SecurityError, split_scheme
from etcdfast.formats import bbolt
from etcdfast.utl import output
from etcdfast.utl.errors import BAD_CONNECTION, INTERRUPTED, UtlError

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.primary_user_agent", "etcdfastutl"),
    # A window that holds what a fast member sends while this end writes.
    ("grpc.http2.lookahead_bytes", 4 << 20),
)


def snapshot_save(options, arguments):
    path = arguments[0]
    endpoints = [endpoint for endpoint in options["endpoints"].split(",") if endpoint]
    if len(endpoints) != 1:
        listed = " ".join(endpoints)
        raise UtlError(f"snapshot must be requested to one selected node, not multiple [{listed}]", INTERRUPTED)
    started = time.monotonic()
    with contextlib.closing(_channel(endpoints[0], options)) as channel:
        _connect(channel, endpoints[0], options["dial-timeout"])
        metadata = _token(channel, options)
        size, version = save(channel, path, metadata, endpoints[0])
    took = time.monotonic() - started
    told = f" of a member at version {version}" if version else ""
    output.say(f"fetched {output.human_bytes(size)}{told} from {endpoints[0]} in {took:.1f} s")
    print(f"Snapshot saved at {path}")


def save(channel, path, metadata=(), endpoint=""):
    """Fetch into `path`. Returns (bytes of the database, storage version or ""). Errors: UtlError, OSError."""
    part = f"{path}.part"
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as err:
        reason = (err.strerror or str(err)).lower()
        raise UtlError(f"could not open {part} (open {part}: {reason})", INTERRUPTED) from None
    try:
        with open(fd, "wb", buffering=1 << 20) as file:
            size, version = _receive(channel, file, metadata, endpoint)
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, path)
        _sync_folder(os.path.dirname(os.path.abspath(path)))
    except BaseException as err:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        if isinstance(err, OSError):
            raise UtlError(f"could not write {path}: {err.strerror or err}", INTERRUPTED) from None
        raise
    return size, version


def _receive(channel, file, metadata, endpoint):
    """Write what comes. The digest is the last 32 bytes, however the messages are cut."""
    digest = hashlib.sha256()
    total = 0
    tail = b""
    version = ""
    last = None
    call = grpc_stubs.Client(channel).Maintenance.Snapshot(pb.SnapshotRequest(), metadata=metadata)
    progress = None
    try:
        for message in call:
            if progress is None:
                progress = output.Progress(f"snapshot of {endpoint}", message.remaining_bytes + len(message.blob))
            version = message.version or version
            data = tail + message.blob
            tail = data[-bbolt.DIGEST_BYTES :]
            done = data[: -bbolt.DIGEST_BYTES]
            digest.update(done)
            file.write(done)
            total += len(done)
            last = message.remaining_bytes
            progress.add(len(message.blob))
    except grpc.RpcError as err:
        raise UtlError(_reason(err), INTERRUPTED) from None
    finally:
        call.cancel()
        if progress is not None:
            progress.close()
    if last is None or last != 0 or not bbolt.has_digest(total + len(tail)):
        raise UtlError(f"the snapshot ended early, after {total + len(tail)} bytes: nothing was saved", INTERRUPTED)
    if digest.digest() != tail:
        sums = f"expected sha256 {tail.hex()}, got {digest.hexdigest()}"
        raise UtlError(f"{sums}: the snapshot was changed on its way, nothing was saved", INTERRUPTED)
    file.write(tail)
    return total, version


# ---- connection -----------------------------------------------------------------------------------


def _channel(endpoint, options):
    security = Security(
        options["cacert"], options["cert"], options["key"], skip_verify=options["insecure-skip-tls-verify"]
    )
    address, is_tls = split_scheme(endpoint, security)
    try:
        return open_channel(address, security if is_tls else None, _OPTIONS)
    except SecurityError as err:
        raise UtlError(str(err)) from None
    except OSError as err:
        raise UtlError(f"no connection to {endpoint}: {err.strerror or err}", BAD_CONNECTION) from None


def _connect(channel, endpoint, timeout_seconds):
    try:
        grpc.channel_ready_future(channel).result(timeout_seconds)
    except grpc.FutureTimeoutError:
        raise UtlError(
            f"context deadline exceeded: no connection to {endpoint} within {timeout_seconds:g} s "
            "(is a member listening there, and is it http or https?)",
            BAD_CONNECTION,
        ) from None


def _token(channel, options):
    """Metadata of an authenticated call, () without --user."""
    if not options["user"]:
        return ()
    name, colon, password = options["user"].partition(":")
    if options["password"]:
        password = options["password"]
    elif not colon:
        password = getpass.getpass("Password: ")
    try:
        return token_of(channel, name, password, options["dial-timeout"])
    except grpc.RpcError as err:
        raise UtlError(_reason(err), BAD_CONNECTION) from None


def _reason(err):
    details = err.details() or "no reason given"
    return "context deadline exceeded" if err.code() == grpc.StatusCode.DEADLINE_EXCEEDED else details


def _sync_folder(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
