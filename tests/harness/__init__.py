"""Outside-in test tools: start real servers, call them over the wire, wait for conditions.

Nothing in here imports a server process of ours; a server is only ever met through its ports,
its files and its exit status. The same tests therefore run against real etcd 3.5.1
(`ETCDFAST_TEST_TARGET=etcd`), which is how the tests themselves are tested.
"""

from .rpc import Client, Reply, CODE_OK
from .servers import (
    Server,
    ServerError,
    EtcdServer,
    EtcdfastServer,
    new_server,
    reference_server,
    target_name,
    target_server,
)
from .wait import wait_until, WaitTimeout

__all__ = [
    "CODE_OK",
    "Client",
    "EtcdServer",
    "EtcdfastServer",
    "Reply",
    "Server",
    "ServerError",
    "WaitTimeout",
    "new_server",
    "reference_server",
    "target_name",
    "target_server",
    "wait_until",
]
