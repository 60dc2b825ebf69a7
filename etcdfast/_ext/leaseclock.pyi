from etcdfast._ext.leaseops import LeaseOps

class LeaseClock:
    ops: LeaseOps
    def __init__(self, ops: LeaseOps, timeout_ns: int) -> None: ...
