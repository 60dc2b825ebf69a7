"""Request checks for Python: tests and cold paths. The frontend calls request_check of requests.pxd."""

from typing import NamedTuple

class Verdict(NamedTuple):
    error: int
    malformed: bool
    cost: int
    read_only: bool
    serializable: bool
    physical: bool
    new_id: bool

def check(method: int, message: bytes, txn_ops_max: int = 128) -> Verdict:
    """Judge one gRPC message of RPC id `method`.

    Units:  cost in bytes as etcd's quota counts them; error is an id of api/errors.py, 0 for none.
    Errors: MemoryError.
    Source: etcd server/etcdserver/api/v3rpc/{key,quota}.go at 3.7 and later.
    """
