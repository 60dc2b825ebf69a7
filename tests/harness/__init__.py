"""Outside-in test tools: start real servers, call them over the wire, wait for conditions.

Nothing in here imports a server process of ours; a server is only ever met through its ports,
its files and its exit status. The same tests therefore run against real etcd 3.5.1
(`ETCDFAST_TEST_TARGET=etcd`), which is how the tests themselves are tested.
"""

from .rpc import CODE_OK, Client, Pending, Reply
from .servers import (
    EtcdfastServer,
    EtcdServer,
    Server,
    ServerError,
    new_server,
    reference_server,
    started_pair,
    target_name,
    target_server,
)
from .streams import Stream, StreamEnded
from .wait import WaitTimeout, wait_until

__all__ = [
    "CODE_OK",
    "Client",
    "EtcdServer",
    "EtcdfastServer",
    "Pending",
    "Reply",
    "Server",
    "ServerError",
    "Stream",
    "StreamEnded",
    "WaitTimeout",
    "new_server",
    "reference_server",
    "started_pair",
    "target_name",
    "target_server",
    "wait_until",
]
