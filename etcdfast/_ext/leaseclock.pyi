from etcdfast._ext.leaseops import LeaseOps

class LeaseClock:
    ops: LeaseOps
    def __init__(self, ops: LeaseOps) -> None: ...
