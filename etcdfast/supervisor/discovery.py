"""--discovery-endpoints and --discovery-token (v3 discovery): members find each other through another etcd cluster.

A first member writes `name=url,...` below /_etcd/registry/TOKEN/members and waits until as many are there as
/_etcd/registry/TOKEN/_config/size says; the oldest of them are the cluster. Keys, texts and errors are etcd's, so
members of both kinds may meet there.

The talk with that cluster is held by a process of its own (`python -m etcdfast.supervisor.discovery`): the gRPC library
would stay in the supervisor's memory for good.
"""

import json
import os
import sys
import time

from etcdfast import log
from etcdfast.config import Config
from etcdfast.formats.memberid import member_id
from etcdfast.supervisor.errors import StartError

REGISTRY = "/_etcd/registry"
POLL_SECONDS = 0.5
RETRY_SECONDS_MAX = 30.0


class DiscoveryError(Exception):
    """One line, in etcd's words."""


def find_cluster(config):
    """`name=url,...` as --initial-cluster has it; waits for the others without end. Raises StartError."""
    import subprocess

    done = subprocess.run(
        [sys.executable, "-P", "-s", "-m", __name__, str(os.getpid())],
        input=json.dumps(config.to_plain()).encode(),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {"error": f"the discovery process ended with status {done.returncode}"}
    if "error" in answer:
        raise StartError(f"failed to join discovery cluster ({answer['error']})")
    return answer["cluster"]


class Registry:
    """The discovery cluster, over whichever of its endpoints answers. Calls are tried again until one does."""

    def __init__(self, config):
        import grpc

        from etcdfast.api.pb import rpc_pb2

        self._grpc = grpc
        self._pb = rpc_pb2
        self._timeout_seconds = config.discovery_request_timeout
        self._metadata = ()
        self._channels = [self._open(config, endpoint) for endpoint in config.discovery_endpoints]
        if config.discovery_user:
            name, _, password = config.discovery_user.partition(":")
            password = config.discovery_password or password
            request = rpc_pb2.AuthenticateRequest(name=name, password=password)
            answer = self._call("Auth/Authenticate", request, rpc_pb2.AuthenticateResponse)
            self._metadata = (("token", answer.token),)

    def _open(self, config, endpoint):
        scheme, separator, address = endpoint.partition("://")
        if not separator:
            scheme, address = "", endpoint
        options = [
            ("grpc.keepalive_time_ms", int(config.discovery_keepalive_time * 1000)),
            ("grpc.keepalive_timeout_ms", int(config.discovery_keepalive_timeout * 1000)),
        ]
        files = (config.discovery_cacert, config.discovery_key, config.discovery_cert)
        if scheme != "https" and (scheme == "http" or config.discovery_insecure_transport and not any(files)):
            return self._grpc.insecure_channel(address, options)
        contents = [_read(file) if file else None for file in files]
        return self._grpc.secure_channel(address, self._grpc.ssl_channel_credentials(*contents), options)

    def _call(self, path, request, answer_type):
        wait_seconds, turn = 1.0, 0
        final = {self._grpc.StatusCode[code] for code in ("INVALID_ARGUMENT", "PERMISSION_DENIED", "UNAUTHENTICATED")}
        while True:
            channel = self._channels[turn % len(self._channels)]
            method = channel.unary_unary(
                f"/etcdserverpb.{path}", type(request).SerializeToString, answer_type.FromString
            )
            try:
                return method(request, timeout=self._timeout_seconds, metadata=self._metadata)
            except self._grpc.RpcError as err:
                if err.code() in final:
                    raise DiscoveryError(err.details()) from None
                log.warn("the discovery cluster does not answer", method=path, error=err.details())
            turn += 1
            if turn % len(self._channels) == 0:
                time.sleep(wait_seconds)
                wait_seconds = min(wait_seconds * 2, RETRY_SECONDS_MAX)

    def get(self, key, range_end=b""):
        """Pairs of the answer."""
        request = self._pb.RangeRequest(key=key.encode(), range_end=range_end)
        return self._call("KV/Range", request, self._pb.RangeResponse).kvs

    def put(self, key, value):
        request = self._pb.PutRequest(key=key.encode(), value=value.encode())
        self._call("KV/Put", request, self._pb.PutResponse)


def _read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as err:
        raise DiscoveryError(f"open {path}: {err.strerror.lower()}") from None


def _size(registry, folder):
    found = registry.get(f"{folder}/_config/size")
    if not found:
        raise DiscoveryError("discovery: size key not found")
    text = found[0].value.decode(errors="replace")
    if not (text.isdecimal() and text.isascii() and int(text) > 0):
        raise DiscoveryError("discovery: size key is bad")
    return int(text)


def _members(registry, folder):
    """[(key, `name=urls`)], the oldest first."""
    prefix = f"{folder}/members"
    found = sorted(registry.get(prefix, prefix[:-1].encode() + b"t"), key=lambda pair: pair.create_revision)
    pairs = [(pair.key.decode(errors="replace"), pair.value.decode(errors="replace").strip()) for pair in found]
    return [(key, text) for key, text in pairs if "=" in text]


def join(config, registry):
    """Register this member and wait for the others. Raises DiscoveryError."""
    folder = f"{REGISTRY}/{config.discovery_token}"
    own_key = f"{folder}/members/{member_id(config.initial_advertise_peer_urls, config.discovery_token):x}"
    size = _size(registry, folder)

    def check(members):
        if own_key not in [key for key, _ in members[:size]] and len(members) >= size:
            raise DiscoveryError("discovery: cluster is full")

    check(_members(registry, folder))
    registry.put(own_key, ",".join(f"{config.name}={url}" for url in config.initial_advertise_peer_urls))
    members = _members(registry, folder)
    if len(members) < size:
        log.info("waiting for peers from discovery service", cluster_size=size, found_peers=len(members))
    while len(members) < size:
        time.sleep(POLL_SECONDS)
        members = _members(registry, folder)
    check(members)
    return ",".join(text for _, text in members[:size])


def main():
    from etcdfast._ext import proc

    if not proc.die_with_parent(int(sys.argv[1])):
        return 1
    config = Config.from_plain(json.load(sys.stdin))
    # Our stdout is for the answer.
    outputs = ["stderr" if output == "stdout" else output for output in config.log_outputs]
    log.configure(config.log_level, outputs, config.log_format, config.log_rotation)
    try:
        answer = {"cluster": join(config, Registry(config))}
    except DiscoveryError as err:
        answer = {"error": str(err)}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
