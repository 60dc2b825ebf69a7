"""Client stubs made from the RPC table, in place of generated grpc modules.

    with grpc.insecure_channel("127.0.0.1:2379") as channel:
        Client(channel).KV.Range(RangeRequest(key=b"a"), timeout=2)
        call(channel, "/etcdserverpb.KV/Range", RangeRequest(key=b"a"))

Works with sync and asyncio channels alike: what a stub returns is what grpcio's multicallable returns.
"""

from etcdfast.api import rpcs

_FACTORY = {rpcs.UNARY: "unary_unary", rpcs.SERVER_STREAM: "unary_stream", rpcs.BIDI_STREAM: "stream_stream"}


def method(channel, path):
    """The grpcio multicallable of one RPC. Raises KeyError for a path that is not in the table."""
    rpc = rpcs.BY_PATH[path]
    return getattr(channel, _FACTORY[rpc.kind])(
        path,
        request_serializer=rpcs.message_class(rpc.request).SerializeToString,
        response_deserializer=rpcs.message_class(rpc.response).FromString,
    )


def call(channel, path, request, **kwargs):
    """Call one RPC by its path; `request` is an iterator of messages for a bidi stream."""
    return method(channel, path)(request, **kwargs)


class _Service:
    def __init__(self, channel, service):
        self._channel = channel
        self._service = service

    def __getattr__(self, name):
        path = f"/{self._service}/{name}"
        if path not in rpcs.BY_PATH:
            raise AttributeError(f"service {self._service} has no RPC {name}")
        stub = method(self._channel, path)
        setattr(self, name, stub)  # later look-ups find the attribute itself
        return stub


class Client:
    """Stubs of every service on one channel: .KV .Watch .Lease .Cluster .Maintenance .Auth .Lock .Election .Health"""

    def __init__(self, channel):
        for service in dict.fromkeys(rpc.service for rpc in rpcs.RPCS):
            setattr(self, service.rsplit(".", 1)[1], _Service(channel, service))
