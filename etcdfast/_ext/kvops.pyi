from etcdfast._ext.mvcc import Mvcc

class KvOps:
    mvcc: Mvcc
    alarms: int
    def __init__(self, mvcc: Mvcc) -> None: ...
