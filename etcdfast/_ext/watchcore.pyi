from etcdfast._ext.mvcc import Mvcc

class HubError(Exception): ...

class WatchCore:
    """Contract for Cython callers in watchcore.pxd; no methods for Python."""

    following: bool
    crowded: bool
    watchers: int
    lagging: int
    events_sent: int
    fed: int
    blob_bytes: int
    def __init__(self, mvcc: Mvcc, progress_interval_ns: int, seed: int, message_bytes_max: int) -> None: ...
